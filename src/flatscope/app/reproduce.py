"""`flatscope reproduce`: a published study's protocol, run beside flatscope."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from flatscope.app import show
from flatscope.app.train import choose_crystal, require_training
from flatscope.evaluation.papers import SIZES, Row
from flatscope.files.read import read
from flatscope.files.write import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from flatscope.evaluation.papers import saito2019, yang2024

Progress = Callable[[int, int], None]
Float: TypeAlias = "NDArray[np.float64]"
_STUDIES = (
    "saito2019",
    "yang2024-layers",
    "yang2024-twist",
    "larsen2021",
    "defectfinder2018",
    "maksov2019",
    "ke2023",
)
_HEAD = ("", "published", "reproduced", "flatscope")


@dataclass(frozen=True)
class Outcome:
    """A study that was run: its table in words, the same in numbers, and its page."""

    table: list[dict[str, str]]
    numbers: list[dict[str, Any]]
    page: str


@click.command()
@click.argument("study", type=click.Choice(_STUDIES))
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="quick",
    show_default=True,
    help="A few minutes, an hour or two, or the published settings.",
)
@click.option("--quick", "size", flag_value="quick", help="The same as --size quick.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reproduced"),
    show_default=True,
    help="Folder for report, table and checkpoints; the same command goes on from them.",
)
@click.option(
    "--image", type=click.Path(path_type=Path), help="For ke2023: the experimental image; else one is drawn."
)
@click.option("--material", default=None, help="For ke2023: its crystal (MoS2 by default).")
@click.option("--dopants", default=None, help="For ke2023: element that is known to stand on metal sites.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="For ke2023: table with row_px, col_px, label of its columns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(study: str, size: str, out: Path, as_json: bool, **given: Any) -> int:
    """Run the protocol of a published STUDY, its numbers and flatscope's side by side.

    saito2019: layer numbers by a U-Net from 24 pictures (doi:10.1038/s41524-019-0262-4).

    yang2024-layers: layer numbers of CVD crystals by four networks (doi:10.1021/acs.nanolett.3c04815).

    yang2024-twist: twist angles by enclosing triangles and by a ResNet (the same paper).

    larsen2021: atomic columns of MoS2 in HRTEM focal series by an MSD-net and a U-Net.

    defectfinder2018: six kinds of defect in windows of 64 px, by a network with class activation maps.

    maksov2019: defects through a movie by a network trained on its first frame (doi:10.1038/s41524-019-0152-9).

    ke2023: defects by U-Nets taught with images made realistic by one experimental image
    (doi:10.1021/acs.nanolett.4c02654).
    """
    require_training()
    if study != "ke2023" and any(value is not None for value in given.values()):
        raise click.UsageError("--image, --material, --dopants and --labels belong to ke2023")
    runs: dict[str, Callable[[str, Path, Progress], Outcome]] = {
        "saito2019": _run_saito,
        "yang2024-layers": _run_layers,
        "yang2024-twist": _run_twist,
        "larsen2021": _run_larsen,
        "defectfinder2018": _run_defectfinder,
        "maksov2019": _run_maksov,
        "ke2023": partial(_run_ke, **given),
    }
    with show.progress("steps") as on_progress:
        outcome = runs[study](size, out / study, on_progress)
    numbers = json.dumps(outcome.numbers, indent=1, default=lambda array: array.tolist())
    write_atomic(out / f"{study}.json", numbers)
    write_atomic(out / f"{study}.html", outcome.page)
    if as_json:
        click.echo(numbers)
    else:
        _print_table(outcome.table)
        click.echo(f"report: {out / study}.html")
    return 0


def _run_saito(size: str, out: Path, on_progress: Progress) -> Outcome:
    from flatscope.evaluation.papers import saito2019

    study = saito2019.run(size, out=out, on_progress=on_progress)
    rows = saito2019.tabulate(study)
    return Outcome([_words(row) for row in rows], [asdict(row) for row in rows], _saito_page(study, rows))


def _run_layers(size: str, out: Path, on_progress: Progress) -> Outcome:
    from flatscope.evaluation.papers import yang2024

    study = yang2024.run(size, out=out, on_progress=on_progress)
    rows = yang2024.tabulate(study)
    return Outcome([_words(row) for row in rows], [asdict(row) for row in rows], _yang_page(study, rows))


def _run_twist(size: str, out: Path, on_progress: Progress) -> Outcome:
    from flatscope.evaluation.papers import yang2024_twist as paper
    from flatscope.report.study import draw_lines, make_study_page

    lines = paper.run(size, out=out, on_progress=on_progress)
    table = [
        {
            "masks": line.mix,
            "method": line.method,
            "coverage": str(line.coverage),
            "mean error °": str(line.mean_error),
            "95 % below °": f"{line.p95_error:.2f}",
            "largest °": f"{line.max_error:.1f}",
            "in one, two sigma": ""
            if line.in_one_sigma is None or line.in_two_sigma is None
            else f"{line.in_one_sigma.value:.3f}, {line.in_two_sigma.value:.3f}",
            "a second": f"{line.a_second:.0f}",
        }
        for line in lines
    ]
    curves = {
        f"{mix} masks": {line.method: line.curve for line in lines if line.mix == mix} for mix in paper.TESTED
    }
    figures = {
        "Mean error of the surest answers against their share of all bilayers": draw_lines(
            curves, labels=("share answered", "mean error of the folded angle, °")
        )
    }
    notes = (
        f"Size {size}. Errors of angles folded to [0, 30]°, as the paper's labels are; drawn angles are exact. Clean: "
        "the published generator's shapes; ragged: outlines 2 px rough, holes, wrong pixels, cut and clipped. Only "
        "second layers of 400 px or more. Brackets: 95 % interval by bilayer.",
        f"The ResNet-18 is trained on such masks scaled to {paper.SIZES[size].side_px} px; its speed is the one at "
        "512 px, as published.",
    )
    numbers = [{key: value for key, value in asdict(line).items() if key != "curve"} for line in lines]
    page = make_study_page(f"Yang et al. 2024, twist angles (doi:{paper.DOI})", table, figures, notes=notes)
    return Outcome(table, numbers, page)


def _run_larsen(size: str, out: Path, on_progress: Progress) -> Outcome:
    import numpy as np

    from flatscope.evaluation.papers import larsen2021 as paper
    from flatscope.report.study import draw_classes, draw_lines, make_study_page

    study = paper.run(size, out=out, on_progress=on_progress)
    table = [
        {
            "sheet": line.support,
            "method": line.method,
            "weights": f"{line.weights:,}",
            "F1 a series": str(line.f1),
            "F1 of 1 S": str(line.single),
            "threshold": f"{line.threshold:.2f}",
            "ms": f"{line.ms:.0f}",
        }
        for line in study.lines
    ]
    bins = np.linspace(0.0, 1.0, 41)
    each = {
        support: {
            line.method: (bins[:-1], np.histogram(line.each, bins)[0].astype(float))
            for line in study.lines
            if line.support == support
        }
        for support in study.sweep
    }
    figures = {
        "F1 of place and kind, series by series": draw_lines(
            each, labels=("F1", "series"), scales=("linear", "linear"), steps=True
        ),
        "F1 against dose": draw_lines(
            study.sweep, labels=("electrons per Å² in a series", "F1"), scales=("log", "linear")
        ),
        "The published example's microscope: three images, the truth and what each finds; yellow: 1 Mo, blue: 2 S, "
        "red: 1 S": draw_classes(
            study.examples, titles=("-3 nm", "2 nm", "7 nm", "truth", paper.MSD, paper.UNET, paper.OURS)
        ),
    }
    notes = (
        f"Size {size}; tested series by {study.model}, 10,000 electrons per Å² in a series of three, {paper.MATERIAL} "
        "with vacancies, antisites, holes, edges, grain boundaries. A column counts when it lies within 0.05 nm and is "
        "of its kind; thresholds are chosen on other series. Brackets: 95 % interval by series.",
        f"flatscope's network in ONNX Runtime is {study.faster:.1f} times as fast as an MSD-net of 100 layers in "
        "torch.",
    )
    numbers = [{key: value for key, value in asdict(line).items() if key != "each"} for line in study.lines]
    sweep = {
        support: {name: [list(map(float, axis)) for axis in curve] for name, curve in curves.items()}
        for support, curves in study.sweep.items()
    }
    numbers.append({"faster": study.faster, "model": study.model, "sweep": sweep})
    return Outcome(table, numbers, make_study_page("Larsen et al. 2021", table, figures, notes=notes))


def _run_defectfinder(size: str, out: Path, on_progress: Progress) -> Outcome:
    from flatscope.evaluation.papers import defectfinder2018 as paper
    from flatscope.report.defects import draw_windows
    from flatscope.report.study import draw_confusion, make_study_page

    study = paper.run(size, out=out, on_progress=on_progress)
    rows = paper.tabulate(study)
    shares = {name: counts / counts.sum(1, keepdims=True).clip(1) for name, counts in study.confusion.items()}
    figures = {
        "Confusion of kinds, shares of the true one": draw_confusion(shares, classes=study.names),
        "A window of each kind, and what in it speaks for that kind in the published network": draw_windows(
            study.examples, names=study.names
        ),
    }
    chosen = max(study.grid, key=lambda point: study.grid[point])
    grid = ", ".join(f"{rate:g} and {drop:g}: {value:.3f}" for (rate, drop), value in study.grid.items())
    notes = (
        f"Size {size}. Windows of 64×64 px of drawn WS2 with Gaussian, salt-and-pepper and speckle noise together; six "
        "kinds; no sheet on both sides of the split but in the line that says so. Brackets: 95 % interval.",
        f"Accuracy on held-out windows over the published grid of learning rate and dropout: {grid}; chosen: "
        f"{chosen[0]:g} and {chosen[1]:g}.",
        "flatscope knows from the lattice which sublattice a defect is on; its network has seen other drawn sheets, "
        "none of these.",
    )
    page = make_study_page("DefectFinder 2018", [_words(row) for row in rows], figures, notes=notes)
    return Outcome([_words(row) for row in rows], [asdict(row) for row in rows], page)


def _run_maksov(size: str, out: Path, on_progress: Progress) -> Outcome:
    from flatscope.evaluation.papers import maksov2019 as paper
    from flatscope.report.study import draw_confusion, make_study_page

    study = paper.run(size, out=out, on_progress=on_progress)
    table = [
        {
            "method": line.method,
            "F1 of defects": f"{line.defects:.3f}",
            "F1 of links": f"{line.links:.3f}",
            "D / true D, by slope": f"{line.diffusion:.2f}",
            "D / true D, by variance (as published)": f"{line.by_variance:.2f}",
        }
        for line in study.lines
    ]
    figures = {}
    for name, transitions in study.transitions.items():
        if len(transitions):
            matrix = transitions.pivot(index="kind", columns="kind_after", values="p")
            order = [*matrix.index, "none"]
            square = matrix.reindex(index=order, columns=order).fillna(0.0).to_numpy()
            figures[f"{name}: what a defect is one frame later"] = draw_confusion(
                {name: square}, classes=order
            )
    notes = (
        f"Size {size}. A drawn movie of WS2, {paper.SIZES[size].frames} frames of 256×256 px at 30 electrons a pixel, "
        "drifting by 1.5 Å a frame; sulphur vacancies hop to a neighbouring site in a tenth of the frames, so that the "
        f"true D is {study.true_diffusion:.5f} nm² a frame. Published route: Fourier map of the first frame, a network "
        "trained on it, blobs of 5 to 700 px, a Gaussian mixture of three classes, nearest neighbours linked.",
    )
    page = make_study_page(f"Maksov et al. 2019 (doi:{paper.DOI})", table, figures, notes=notes)
    return Outcome(table, [asdict(line) for line in study.lines], page)


def _run_ke(
    size: str,
    out: Path,
    on_progress: Progress,
    *,
    image: Path | None,
    material: str | None,
    dopants: str | None,
    labels: Path | None,
) -> Outcome:
    import numpy as np

    from flatscope.evaluation.papers import ke2023 as paper
    from flatscope.evaluation.realism import RINGS, VALUES
    from flatscope.report.study import draw_confusion, draw_grays, draw_lines, make_study_page

    if image is None and (material or dopants or labels):
        raise click.UsageError("--material, --dopants and --labels describe an image: give it by --image")
    params = choose_crystal(material or "MoS2", dopants=dopants or "")
    study = paper.run(
        size,
        out=out,
        image=None if image is None else read(image, modality="electron"),
        params=params,
        labels=labels,
        on_progress=on_progress,
    )
    doses = np.array(study.doses)
    curves = {
        name: (doses, np.array([score.value for score in scores])) for name, scores in study.scores.items()
    }
    telling = study.telling
    shown = (0, len(telling.doses) // 2, len(telling.doses) - 1)
    compared = {"best possible": telling.bound, **{name: telling.found[name] for name in paper.COMPARED}}
    confusion = {
        f"{name}, {telling.doses[place]:.2g} e/Å²": shares[place]
        for name, shares in compared.items()
        for place in shown
    }
    frequency = (np.arange(RINGS) + 0.5) / RINGS
    # The experiment last: so each way has one colour in all figures.
    looks = sorted(study.looks.items(), key=lambda item: item[0] not in paper.WAYS)
    spectra = {name: (frequency, one.spectrum) for name, one in looks}
    values = {name: (VALUES[:-1], one.values) for name, one in looks}
    figures = {
        "Parts of the experimental image and of drawn ones": draw_grays(study.examples),
        "Power spectra of crops": draw_lines(
            {"": spectra}, labels=("frequency over the highest", "power over that of real crops")
        ),
        "Pixel values of crops": draw_lines(
            {"": values},
            labels=("value over the lattice's contrast", "share of pixels"),
            scales=("linear", "linear"),
            steps=True,
        ),
        "Drawn images of other microscopes and scans than were learned from": draw_lines(
            {"": curves}, labels=("electrons a pixel", "F1 of place and kind"), scales=("log", "linear")
        ),
        **{
            f"Chalcogen sites under counting noise, shares of the true kind: {name}": draw_confusion(
                {title: shares for title, shares in confusion.items() if title.startswith(f"{name}, ")},
                classes=("pristine", "vacancy", "oxygen"),
            )
            for name in compared
        },
    }
    table = paper.tabulate(study)
    page = make_study_page(
        f"Ke et al. 2024 (doi:{paper.DOI})", table, figures, notes=paper.describe(study, size)
    )
    numbers = {key: value for key, value in asdict(study).items() if key != "examples"}
    return Outcome(table, [numbers], page)


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
    size = paper.SIZES[study.size]
    steps = ", ".join(f"{name} {size.steps_of(name)}" for name in size.networks)
    notes = (
        f"Size {study.size}, steps of training: {steps}. No weights from other pictures: all start at random.",
        "Frames are drawn, since the published ones are not public: each of MoS2 on 300 nm oxide "
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


def _print_table(table: list[dict[str, str]]) -> None:
    lines = [tuple(table[0]), *(tuple(row.values()) for row in table)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
