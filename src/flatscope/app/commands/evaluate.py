"""`flatscope evaluate`: calls the evaluation room, which knows nothing of terminals."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatscope.app import show
from flatscope.app.flakes import choose_light, gather, settings_options
from flatscope.app.settings import checked
from flatscope.app.train import require_training
from flatscope.evaluation.flakes import evaluate as evaluate_flakes
from flatscope.evaluation.flakes import evaluate_scenes
from flatscope.files.read import find_pictures
from flatscope.inference.runtime import Network
from flatscope.optical.orientation import METHODS

if TYPE_CHECKING:
    from flatscope.evaluation.imaging import Agreement


@click.group()
def evaluate() -> None:
    """Measure how good the answers are."""


@evaluate.command()
@click.option("--images", required=True, type=click.Path(path_type=Path), help="Folder with pictures.")
@click.option(
    "--masks",
    required=True,
    type=click.Path(path_type=Path),
    help="Folder with NAME.mask.png: instance ids of flakes, 0 elsewhere.",
)
@settings_options
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="JSON file with settings. Flags beat it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def flakes(images: Path, masks: Path, **options: Any) -> int:
    """Compare found flakes with annotated ones."""
    params, run = gather(options)
    network = Network.load(run.weights)
    params, flat = choose_light(params, run.flatfield, find_pictures([images]))
    with show.progress("pictures") as on_progress:
        scores = evaluate_flakes(
            images,
            masks,
            params,
            network=network,
            um_per_px=run.um_per_px,
            flatfield=flat,
            on_progress=on_progress,
        )
    show.print_scores(scores, as_json=options["as_json"])
    return 0


@evaluate.command()
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of scenes.")
@click.option(
    "--seed",
    type=click.IntRange(0),
    default=7,
    show_default=True,
    help="Of the scenes; keep it apart from the training's.",
)
@click.option(
    "--weights", default="flakes", show_default=True, help="Name of shipped weights, or an .onnx file."
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def scenes(count: int, seed: int, weights: str, as_json: bool) -> int:
    """Compare layer numbers with the truth on scenes that were never trained on."""
    network = Network.load(weights)
    with show.progress("scenes") as on_progress:
        scores = evaluate_scenes(count, seed=seed, network=network, on_progress=on_progress)
    show.print_scores(scores, as_json=as_json)
    return 0


@evaluate.command()
@click.option("--setups", type=click.IntRange(1), default=3, show_default=True, help="Number of set-ups.")
@click.option(
    "--pictures",
    type=click.IntRange(3),
    multiple=True,
    default=(3, 6, 12, 24),
    show_default=True,
    help="Numbers of labelled pictures; may be given several times.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reproduced/adaptation"),
    show_default=True,
    help="Folder for checkpoints; the same command goes on from them.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def adaptation(setups: int, pictures: tuple[int, ...], out: Path, as_json: bool) -> int:
    """Adapt to drawn set-ups outside the default's range, beside a U-Net trained from scratch."""
    require_training()
    from flatscope.evaluation.adaptation import measure_learning_curve, tabulate

    with show.progress("steps") as on_progress:
        points = measure_learning_curve(setups=setups, pictures=pictures, out=out, on_progress=on_progress)
    rows = tabulate(points)
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows]))
        return 0
    show.print_rows(
        ("", "pictures", "region errors", "class accuracy", "region vote", "minutes"),
        [
            (
                row.method,
                str(row.pictures),
                "" if row.errors is None else str(row.errors),
                str(row.accuracy),
                str(row.vote),
                f"{row.minutes:.1f}",
            )
            for row in rows
        ],
    )
    return 0


@evaluate.command()
@click.option(
    "--mix", type=click.Choice(["clean", "ragged", "micrographs"]), default="ragged", show_default=True
)
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="Bilayers drawn.")
@click.option("--seed", type=click.IntRange(0), default=5, show_default=True, help="Of the bilayers.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="How a layer's orientation is told.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def twist(mix: str, count: int, seed: int, method: str, as_json: bool) -> int:
    """Compare twist angles with the truth on artificial bilayers; all errors in degrees.

    The mixes are label images with exact edges, label images as a network makes them, and photographs.
    """
    from flatscope.evaluation.twist import evaluate_twist

    with show.progress("bilayers") as on_progress:
        scores = evaluate_twist(mix, count, seed=seed, method=method, on_progress=on_progress)
    show.print_scores(scores, as_json=as_json)
    return 0


@evaluate.command()
@click.option("--image", type=click.Path(path_type=Path), help="An ADF-STEM image with marked columns.")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="CSV: row_px, col_px, label (W, Se2, Ti_W, V_Se)."
)
@click.option("--material", default="MoS2", show_default=True)
@click.option("--nm-per-px", type=float, default=None, help="Pixel size, where the file does not state it.")
@click.option(
    "--images", type=click.IntRange(1), default=10, show_default=True, help="Drawn ones, without --image."
)
@click.option("--seed", type=click.IntRange(0), default=11, show_default=True, help="Of the drawn images.")
@click.option(
    "--modality",
    type=click.Choice(["stem", "hrtem"]),
    default="stem",
    show_default=True,
    help="Of drawn images.",
)
@click.option("--weights", default="columns", show_default=True, help="For hrtem: a name, or an .onnx file.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def columns(
    image: Path | None,
    labels: Path | None,
    material: str,
    nm_per_px: float | None,
    as_json: bool,
    modality: str,
    weights: str,
    **drawn: Any,
) -> int:
    """Compare atomic columns with expert labels, with the truth of drawn ADF images at 3, 10 and 50 electrons a pixel,
    or with that of drawn HRTEM focal series (by multislice where abTEM is installed) at 100 to 100,000 electrons per
    Å², so many on either support."""
    from flatscope.electron.columns import ColumnParams
    from flatscope.evaluation.columns import evaluate_labels, evaluate_localisation

    if (image is None) != (labels is None):
        raise click.UsageError("--image and --labels belong together")
    params = checked(ColumnParams, material=material)
    if modality == "hrtem":
        if image is not None:
            raise click.UsageError("--image belongs to --modality stem")
        return _judge_series(params.material, weights, as_json=as_json, **drawn)
    if image is not None and labels is not None:
        show.print_scores(evaluate_labels(image, labels, params, nm_per_px=nm_per_px), as_json=as_json)
        return 0
    with show.progress("images") as on_progress:
        scores = evaluate_localisation(material=params.material, on_progress=on_progress, **drawn)
    if as_json:
        click.echo(json.dumps([asdict(score) for score in scores]))
        return 0
    show.print_rows(
        (
            "e/px",
            "sublattice",
            "error pm",
            "oracle pm",
            "stated pm",
            "bound pm",
            "sublattice right",
            "columns",
        ),
        [
            (
                f"{one.electrons_per_px:g}",
                one.sublattice,
                *(f"{value:.2f}" for value in (one.error_pm, one.oracle_pm, one.stated_pm, one.bound_pm)),
                f"{one.sublattice_right:.4f}",
                str(one.columns),
            )
            for one in scores
        ],
    )
    return 0


def _judge_series(material: str, weights: str, *, as_json: bool, images: int, seed: int) -> int:
    from flatscope.evaluation.series import evaluate_series

    with show.progress("series") as on_progress:
        scores = evaluate_series(
            material=material, series=images, seed=seed, weights=weights, on_progress=on_progress
        )
    if as_json:
        click.echo(json.dumps([score.to_dict() for score in scores]))
        return 0
    head = (
        "sheet",
        "e/Å²",
        "F1",
        "place alone",
        "single atoms",
        "bound",
        "error pm",
        "stated pm",
        "columns",
        "by",
    )
    rows = [
        (
            one.support,
            f"{one.dose_e_per_a2:g}",
            *(str(value) for value in (one.f1, one.placed, one.single)),
            f"{one.bound:.3f}",
            *(f"{value:.1f}" for value in (one.error_pm, one.stated_pm)),
            str(one.columns),
            one.model,
        )
        for one in scores
    ]
    show.print_rows(head, rows)
    return 0


@evaluate.command()
@click.option("--limits", is_flag=True, help="Also where they fail: other voltages, detectors and sheets.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def imaging(limits: bool, as_json: bool) -> int:
    """Compare the fast models of electron micrographs with multislice and PRISM (extra: multislice)."""
    from flatscope.electron.physics.multislice import MultisliceError
    from flatscope.evaluation.imaging import Limit, compare_adf, compare_series, measure_limits

    runs: list[Callable[[], Agreement]] = [partial(compare_series, support) for support in ("", "graphene")]
    runs += [partial(compare_adf, material) for material in ("MoS2", "WSe2")]
    found: list[Agreement] = []
    failing: list[Limit] = []
    try:
        with show.progress("comparisons") as on_progress:
            for done, once in enumerate(runs, start=1):
                found.append(once())
                on_progress(done, len(runs))
            if limits:
                failing = measure_limits(on_progress=on_progress)
    except MultisliceError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps([asdict(one) for one in found] + [asdict(one) for one in failing]))
        return 0
    show.print_rows(
        ("model", "sheet", "rms / std", "times as fast", "ms", "columns, fast / exact"),
        [
            (
                one.model,
                one.sheet,
                f"{one.rms:.3f}",
                f"{one.ratio:.0f}",
                f"{1e3 * one.seconds:.1f}",
                ", ".join(f"{name} {value:.3f}" for name, value in one.sites.items()),
            )
            for one in found
        ],
    )
    if failing:
        units = {"HRTEM": "kV", "ADF-STEM": "mrad"}
        show.print_rows(
            ("model", "sheet", "at", "rms / std"),
            [(one.model, one.sheet, f"{one.at:g} {units[one.model]}", f"{one.rms:.3f}") for one in failing],
        )
    return 0


@evaluate.command()
@click.option("--image", type=click.Path(path_type=Path), help="An ADF-STEM image with marked columns.")
@click.option(
    "--labels", type=click.Path(path_type=Path), help="CSV: row_px, col_px, label (W, Se2, Ti_W, V_Se)."
)
@click.option("--material", default="WSe2", show_default=True, help="Of the image.")
@click.option("--dopants", default="", help="Element that is known to be in it.")
@click.option("--nm-per-px", type=float, default=None, help="Pixel size, where the file does not state it.")
@click.option(
    "--sheets", type=click.IntRange(1), default=40, show_default=True, help="Drawn ones, without --image."
)
@click.option("--seed", type=click.IntRange(0), default=17, show_default=True, help="Of the drawn sheets.")
@click.option("--weights", default="defects", show_default=True, help="A name, or an .onnx file.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def defects(
    image: Path | None, labels: Path | None, nm_per_px: float | None, as_json: bool, **options: Any
) -> int:
    """Compare point defects with expert labels; or name drawn windows of six kinds, at the noise of DefectFinder's
    poster and against dose."""
    from flatscope.electron.defects import DefectParams
    from flatscope.evaluation.defects import evaluate_labels
    from flatscope.evaluation.windows import evaluate_windows

    if (image is None) != (labels is None):
        raise click.UsageError("--image and --labels belong together")
    if image is not None and labels is not None:
        params = checked(
            DefectParams,
            material=options["material"],
            dopants=options["dopants"],
            weights=options["weights"],
        )
        marked = evaluate_labels(image, labels, params, nm_per_px=nm_per_px)
        if as_json:
            click.echo(json.dumps([one.to_dict() for one in marked]))
            return 0
        show.print_rows(
            ("", "F1", "precision", "recall", "found", "labels"),
            [
                (one.kind, *(str(v) for v in (one.f1, one.precision, one.recall, one.found, one.labels)))
                for one in marked
            ],
        )
        return 0
    with show.progress("noises") as on_progress:
        scores = evaluate_windows(
            count=options["sheets"], seed=options["seed"], weights=options["weights"], on_progress=on_progress
        )
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in scores]))
        return 0
    show.print_rows(
        ("noise", "e/px", "accuracy", "best possible", "worst kind", "its recall", "windows"),
        [
            (
                f"{one.noise}, corrector drifted" if one.misaligned else one.noise,
                "" if one.electrons_per_px is None else f"{one.electrons_per_px:g}",
                str(one.accuracy),
                "" if one.best is None else f"{one.best:.3f}",
                one.worst,
                f"{one.worst_recall:.3f}",
                str(one.windows),
            )
            for one in scores
        ],
    )
    return 0


@evaluate.command()
@click.option("--movies", type=click.IntRange(1), default=4, show_default=True, help="Movies drawn.")
@click.option("--seed", type=click.IntRange(0), default=23, show_default=True, help="Of the movies.")
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def tracks(movies: int, seed: int, as_json: bool) -> int:
    """Follow hopping sulphur vacancies through drawn movies that drift by 1.5 Å a frame, beside plain linking (extra:
    movies)."""
    from flatscope.evaluation.defects import evaluate_tracks

    with show.progress("movies") as on_progress:
        scores = evaluate_tracks(movies=movies, seed=seed, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps([one.to_dict() for one in scores]))
        return 0
    show.print_rows(
        ("method", "F1 of links", "F1 of defects in frames"),
        [(one.method, str(one.links), str(one.detections)) for one in scores],
    )
    return 0
