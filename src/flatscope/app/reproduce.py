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

    from flatscope.evaluation.papers import saito2019, yang2024

Float: TypeAlias = "NDArray[np.float64]"
_HEAD = ("", "published", "reproduced", "flatscope")


@click.command()
@click.argument("study", type=click.Choice(("saito2019", "yang2024-layers")))
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
    default=Path("reproduced"),
    show_default=True,
    help="Folder for report, table and checkpoints; the same command goes on from them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(study: str, size: str, out: Path, as_json: bool) -> int:
    """Run the protocol of a published STUDY, its numbers and flatscope's side by side.

    saito2019: layer numbers by a U-Net from 24 pictures (doi:10.1038/s41524-019-0262-4).

    yang2024-layers: layer numbers of CVD crystals by four networks (doi:10.1021/acs.nanolett.3c04815).
    """
    require_training()
    from flatscope.evaluation.papers import saito2019, yang2024

    with show.progress("steps") as on_progress:
        if study == "saito2019":
            saito = saito2019.run(size, out=out / study, on_progress=on_progress)
            rows = saito2019.tabulate(saito)
            page = _saito_page(saito, rows)
        else:
            yang = yang2024.run(size, out=out / study, on_progress=on_progress)
            rows = yang2024.tabulate(yang)
            page = _yang_page(yang, rows)
    _deliver(study, rows, page, out=out, as_json=as_json)
    return 0


def _deliver(name: str, rows: list[Row], page: str, *, out: Path, as_json: bool) -> None:
    """Write table and page, and print the table."""
    plain = [asdict(row) for row in rows]
    write_atomic(out / f"{name}.json", json.dumps(plain, indent=1))
    write_atomic(out / f"{name}.html", page)
    if as_json:
        click.echo(json.dumps(plain))
    else:
        _print_table(rows)
        click.echo(f"report: {out / name}.html")


def _yang_page(study: yang2024.Study, rows: list[Row]) -> str:
    from flatscope.evaluation.papers import yang2024 as paper
    from flatscope.report.study import draw_classes, draw_confusion, draw_distributions, make_study_page

    methods = {study.best: study.networks[study.best], "flatscope": study.ours}
    shares = {
        name: verdicts.confusion.sum(0) / verdicts.confusion.sum((0, 2))[:, None].clip(1)
        for name, verdicts in methods.items()
    }
    values = {"annotated": study.truth, **{name: verdicts.values for name, verdicts in methods.items()}}
    figures = {
        "Confusion of pixels, shares of the true class": draw_confusion(shares, classes=paper.CLASSES),
        "Green pixel values of each class as annotated and as found": draw_distributions(
            values, classes=paper.CLASSES, label="green value"
        ),
        "Parts of the tested frames: background dark, monolayer yellow, bilayer blue, thick red": draw_classes(
            study.examples, titles=("frame", "truth", study.best, "flatscope")
        ),
    }
    notes = (
        f"Size {study.size}. Frames are drawn, since the published ones are not public: each of MoS2 on 300 nm oxide "
        "with another microscope. No frame is both trained on and tested, except in the line that says so. Brackets: "
        "95 % interval by frame.",
        "flatscope is told the material and 300 nm; its network has seen other drawn pictures, none of these.",
    )
    return make_study_page(
        f"Yang et al. 2024, layers (doi:{paper.DOI})", [_words(row) for row in rows], figures, notes=notes
    )


def _saito_page(study: saito2019.Study, rows: list[Row]) -> str:
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
