"""`flatscope atoms`: from electron micrographs to tables and models of their atomic columns."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
import pandas as pd

from flatscope.app import show
from flatscope.app.batch import name_apart
from flatscope.app.cli import EXIT_BAD_INPUT, EXIT_FINE, EXIT_SOME_FAILED
from flatscope.app.settings import checked
from flatscope.electron.columns import ColumnParams, build_model, find_brighter, find_columns, share_sites
from flatscope.electron.crystals import CRYSTALS
from flatscope.files.read import find_pictures, read
from flatscope.files.structures import to_cif, to_xyz
from flatscope.files.write import write_atomic
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.report.atoms import draw_columns, draw_strain
from flatscope.report.figures import encode_png
from flatscope.report.study import make_study_page
from flatscope.results import ColumnTable
from flatscope.units import um_from_nm


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--modality",
    type=click.Choice(["stem"]),
    default="stem",
    show_default=True,
    expose_value=False,
    help="ADF-STEM images, the only ones so far.",
)
@click.option("--material", required=True, help=f"One of {', '.join(CRYSTALS)}.")
@click.option(
    "--nm-per-px", type=float, default=None, help="Pixel size; the lattice of the material corrects it."
)
@click.option(
    "--brighter",
    default="auto",
    show_default=True,
    help="Sublattice that is the brighter one: metal or chalcogen (a or b in hBN).",
)
def atoms(inputs: tuple[str, ...], out: Path, material: str, nm_per_px: float | None, brighter: str) -> int:
    """Find and name every atomic column in images of a monolayer (npy, tif, png, mrc; with the extra vendor also dm3,
    dm4, emd, ser).

    Images of several detectors in one scan belong into one call: where medium angles leave it open which sublattice is
    which, another image of the same columns tells.

    Writes columns.csv (one row a column), NAME.columns.png (rings around the columns), NAME.xyz and NAME.cif (the
    atomic model), report.html and run.json.
    """
    params = checked(ColumnParams, material=material, brighter=brighter)
    paths = find_pictures(inputs, modality="electron")
    size = None if nm_per_px is None else um_from_nm(nm_per_px)
    answers: dict[str, _Answer] = {}
    failed = 0
    try:
        with show.progress("images") as on_progress:
            for done, (path, (name, stem)) in enumerate(zip(paths, name_apart(paths), strict=True), start=1):
                try:
                    micrograph = read(path, um_per_px=size, modality="electron")
                    answers[name] = _answer(micrograph, params, name=name, stem=stem, out=out)
                except MicrographError as error:
                    failed += 1
                    click.echo(f"flatscope: {error}", err=True)
                    continue
                on_progress(done, len(paths))
        _settle(answers, params, um_per_px=size, out=out)
    finally:
        # Also after Ctrl-C or on a full disk: what is finished can be read.
        if answers:
            _write(out, answers)
    if not answers:
        return EXIT_BAD_INPUT
    for name, answer in answers.items():
        for note in answer.table.provenance.notes:
            click.echo(f"{name}: {note}", err=True)
    rows = [_summarise(name, answer.table) for name, answer in answers.items()]
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
    click.echo(f"report: {out / 'report.html'}")
    return EXIT_SOME_FAILED if failed else EXIT_FINE


@dataclass(frozen=True)
class _Answer:
    """What was found in an image, and how it is shown."""

    source: str
    stem: str
    table: ColumnTable
    overlay: bytes


def _answer(micrograph: Micrograph, params: ColumnParams, *, name: str, stem: str, out: Path) -> _Answer:
    """Find the columns of one image and write what belongs to it alone."""
    table = find_columns(micrograph, params)
    table.frame["image"] = name
    overlay = encode_png(draw_columns(micrograph, table))
    write_atomic(out / f"{stem}.columns.png", overlay)
    model = build_model(table, params, shape=micrograph.shape)
    write_atomic(out / f"{stem}.xyz", to_xyz(model, comment=f"flatscope, {name}, {params.material}"))
    write_atomic(out / f"{stem}.cif", to_cif(model, name=stem))
    return _Answer(micrograph.source, stem, table, overlay)


def _settle(answers: dict[str, _Answer], params: ColumnParams, *, um_per_px: float | None, out: Path) -> None:
    """Images whose sublattices are as bright as each other take them from one of another detector in the same scan."""
    sure = {name: answer.table for name, answer in answers.items() if answer.table.sublattices_sure}
    for name, answer in list(answers.items()):
        if name in sure:
            continue
        partner = next((other for other, table in sure.items() if share_sites(answer.table, table)), None)
        if partner is not None:
            known = replace(params, brighter=find_brighter(answer.table, sure[partner]))
            micrograph = read(answer.source, um_per_px=um_per_px, modality="electron")
            again = replace(micrograph, notes=(*micrograph.notes, f"sublattices are those of {partner}"))
            answers[name] = _answer(again, known, name=name, stem=answer.stem, out=out)


def _write(out: Path, answers: dict[str, _Answer]) -> None:
    tables = {name: answer.table for name, answer in answers.items()}
    figures: dict[str, bytes] = {}
    for name, answer in answers.items():
        figures[f"{name}: columns"] = answer.overlay
        figures[f"{name}: strain, distortions of the scan included"] = draw_strain(answer.table.strain)
    frames = [table.to_csv() for table in tables.values()]
    head = frames[0].split("\n", 1)[0] + "\n"
    write_atomic(out / "columns.csv", head + "".join(text.split("\n", 1)[1] for text in frames))
    record = {name: asdict(table.provenance) for name, table in tables.items()}
    write_atomic(out / "run.json", json.dumps(record, indent=2, default=str))
    notes = [f"{name}: {note}" for name, table in tables.items() for note in table.provenance.notes]
    notes.append(
        "Rings: orange and blue for the two sublattices, red where doubtful; gray crosses: rejected. Positions in nm "
        "count from the centre of the first pixel, by the lattice constant of the material. Strain is against the "
        "mean lattice; drift and flyback of a scan look the same."
    )
    rows = [_summarise(name, table) for name, table in tables.items()]
    write_atomic(out / "report.html", make_study_page("Atomic columns", rows, figures, notes=notes))


def _summarise(name: str, table: ColumnTable) -> dict[str, str]:
    found = table.found
    counts = pd.Series(found["species"]).value_counts()
    return {
        "image": name,
        "columns": str(len(found)),
        "species": ", ".join(f"{count} {species}" for species, count in counts.items()),
        "doubtful": str(int((found["status"] == "doubtful").sum())),
        "rejected": str(len(table) - len(found)),
        "nm/px": f"{table.calibration.pixel_size_nm[0]:.5f}",
        "lattice px": f"{table.lattice_px:.3f}",
        "sigma pm": f"{1e3 * found['sigma_nm'].median():.1f}" if len(found) else "",
    }
