"""`flatscope materials`: what is built in, where its refractive indices come from, and how visible it is."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import click

from flatscope.app import show
from flatscope.files.indices import read_indices
from flatscope.optical.materials import MATERIALS, UNMEASURED, choose_material
from flatscope.optical.substrates import SOURCES, Substrate

_DRAWN = (".png", ".svg", ".pdf")


@click.command()
@click.option("--plan", metavar="MATERIAL", help="Say how visible this material is on --substrate.")
@click.option("--substrate", default="SiO2 / Si", show_default=True, help="As flakes takes it.")
@click.option(
    "--na", type=float, default=0.55, show_default=True, help="Numerical aperture of the objective."
)
@click.option("--layer-nm", type=float, help="Thickness of one layer, for a material that is not built in.")
@click.option("--nk", type=click.Path(path_type=Path), help="CSV file of wavelength_nm, n and k.")
@click.option("--out", type=click.Path(path_type=Path), help="Figure of the plan: a .png, .svg or .pdf file.")
def materials(
    plan: str | None,
    substrate: str,
    na: float,
    layer_nm: float | None,
    nk: Path | None,
    out: Path | None,
) -> None:
    """List materials and substrates with the sources of their refractive indices, or plan for one.

    --plan prints the contrast of one to ten layers in red, green and blue under a plain camera, and the thickness of
    the substrate's film that shows one layer best.
    """
    if plan is None:
        _list()
        return
    # imported late: the list needs no figure
    from flatscope.files.write import write_atomic
    from flatscope.optical.planning import THICKNESSES_NM, plan_visibility
    from flatscope.report.visibility import FilmCurve, draw_visibility

    if out is not None and out.suffix.lower() not in _DRAWN:
        raise click.UsageError(f"--out {out}: name a file that ends in {', '.join(_DRAWN)}")
    crystal = choose_material(plan, layer_nm=layer_nm, nk=() if nk is None else read_indices(nk))
    planned = plan_visibility(crystal, Substrate.parse(substrate), na=na)
    rows = [
        (str(number), *(f"{value:+.3f}" for value in contrast))
        for number, contrast in enumerate(planned.layers.mean(0), start=1)
    ]
    click.echo(f"contrast of {crystal.name} on {planned.substrate}, NA {na:g}")
    show.print_rows(("layers", "red", "green", "blue"), rows)
    click.echo(f"layers told apart by 0.02 or more: the first {planned.countable()}")
    curve = None
    if planned.films is not None:
        film, best = planned.substrate.films[planned.substrate.fitted or 0][0], planned.best_nm()
        click.echo(f"{film} that shows one layer best: {', '.join(f'{value:g}' for value in best)} nm")
        curve = FilmCurve(film, THICKNESSES_NM, planned.films, best)
    if out is not None:
        names = {"material": crystal.name, "substrate": str(planned.substrate)}
        write_atomic(out, draw_visibility(planned.layers, curve, **names, suffix=out.suffix.lower()))
        click.echo(f"figure: {out}")


def _list() -> None:
    folder = resources.files("flatscope.optical.materials")

    def describe(name: str, source: str) -> tuple[str, str]:
        """Range of a table, and its paper."""
        lines = (folder / f"{name}.{source}.csv").read_text(encoding="utf-8").splitlines()
        held = lines[1].partition("not measured below ")[2].partition(":")[0]
        return f"{held.removesuffix(' nm') or '400'}-750 nm", lines[0].lstrip("# ")

    rows = []
    for material in MATERIALS.values():
        sources = sorted({str(source) for variant in material.variants for source in variant})
        for number, source in enumerate(sources):
            head = (material.name, f"{material.layer_nm:g} nm") if number == 0 else ("", "")
            rows.append((*head, source, *describe(material.name, source)))
    rows += [
        (one.name, f"{one.layer_nm:g} nm", "", "", "no free table: give one with --nk")
        for one in UNMEASURED.values()
    ]
    show.print_rows(("material", "layer", "n, k", "measured", "source"), rows)
    click.echo("")
    substrates = [(name, source, *describe(name, source)) for name, source in SOURCES.items()]
    show.print_rows(("substrate", "n, k", "measured", "source"), substrates)
