"""`flatscope reproduce`: a published study's protocol, run beside flatscope."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import click

from flatscope.app import show
from flatscope.app.train import require_training
from flatscope.evaluation.papers import SIZES, Row
from flatscope.files.write import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flatscope.evaluation.papers.saito2019 import Study

Float: TypeAlias = "NDArray[np.float64]"
_HEAD = ("", "published", "reproduced", "flatscope")


@click.group()
def reproduce() -> None:
    """Run a published study's protocol, its numbers and flatscope's side by side."""


@reproduce.command()
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="quick",
    show_default=True,
    help="A few minutes, an hour or two, or the published settings.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("saito2019"),
    show_default=True,
    help="Folder for report, table and checkpoints; the same command goes on from them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def saito2019(size: str, out: Path, as_json: bool) -> int:
    """Layer numbers by a U-Net from 24 pictures (Saito et al. 2019, doi:10.1038/s41524-019-0262-4)."""
    require_training()
    from flatscope.evaluation.papers import saito2019 as paper

    with show.progress("steps") as on_progress:
        study = paper.run(size, out=out / "checkpoints", on_progress=on_progress)
    rows = paper.tabulate(study)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / "table.json", json.dumps([asdict(row) for row in rows], indent=1))
    write_atomic(out / "report.html", _saito_page(study, rows))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
    else:
        _print_table(rows)
        click.echo(f"report: {out / 'report.html'}")
    return 0


def _saito_page(study: Study, rows: list[Row]) -> str:
    from flatscope.evaluation.metrics import precision_recall
    from flatscope.evaluation.papers import saito2019 as paper
    from flatscope.report.study import draw_classes, draw_curves, make_study_page

    methods = {"best U-Net": study.networks[study.best], "flatscope": study.ours}
    curves = {
        name: {
            method: _curve(precision_recall(verdicts.histograms[:, index].sum(0)))
            for method, verdicts in methods.items()
        }
        for index, name in enumerate(paper.CLASSES[1:])
    }
    marks = {name: (recall, 0.9) for name, recall in paper.PUBLISHED_RECALL.items()}
    figures = {
        "Precision against recall by pixel, all pictures while they were tested": draw_curves(
            curves, marks=marks
        ),
        "Four of the pictures: substrate and thick dark, monolayer yellow, bilayer blue": draw_classes(
            study.examples, titles=("picture", "truth", "best U-Net", "flatscope")
        ),
    }
    notes = (
        f"Size {study.size}. Pictures are drawn, since the published ones are not public: each of MoS2 on 300 nm oxide "
        "with another microscope. Three-fold cross-validation by picture. Brackets: 95 % interval, by picture for "
        "pixels, binomial for regions.",
        "flatscope is told the material and 300 nm; its network has seen other drawn pictures, none of these.",
    )
    return make_study_page(
        f"Saito et al. 2019 (doi:{paper.DOI})", [_words(row) for row in rows], figures, notes=notes
    )


def _curve(precision_recall: tuple[Float, Float]) -> tuple[Float, Float]:
    """Recall and precision, without the last threshold, which takes every pixel."""
    precision, recall = precision_recall
    return recall[:-1], precision[:-1]


def _words(row: Row) -> dict[str, str]:
    published = "" if row.published is None else f"{row.published:.3f}"
    values = (
        row.name,
        published,
        *("" if value is None else str(value) for value in (row.reproduced, row.ours)),
    )
    return dict(zip(_HEAD, values, strict=True))


def _print_table(rows: list[Row]) -> None:
    lines = [_HEAD, *(tuple(_words(row).values()) for row in rows)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(_HEAD))]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
