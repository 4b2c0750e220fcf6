"""`flatscope materials`: the materials and where their refractive indices come from."""

from __future__ import annotations

from importlib import resources

import click

from flatscope.app import show
from flatscope.optical.materials import MATERIALS


@click.command()
def materials() -> None:
    """List the materials and where their refractive indices come from."""
    folder = resources.files("flatscope.optical.materials")
    rows = []
    for material in MATERIALS.values():
        sources = sorted({str(source) for variant in material.variants for source in variant})
        for number, source in enumerate(sources):
            first = (folder / f"{material.name}.{source}.csv").read_text(encoding="utf-8").splitlines()[0]
            head = (material.name, f"{material.layer_nm:g} nm") if number == 0 else ("", "")
            rows.append((*head, source, first.lstrip("# ")))
    show.print_rows(("material", "layer", "n, k", "source"), rows)
