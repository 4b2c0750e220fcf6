"""`flatscope evaluate`: measure how good the answers are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flatscope.app import show
from flatscope.app.cli import require_training
from flatscope.app.flags import ask, gather, settings_options
from flatscope.evaluation.flakes import evaluate as evaluate_flakes
from flatscope.evaluation.flakes import evaluate_scenes
from flatscope.evaluation.metrics import Score
from flatscope.files.read import find_pictures
from flatscope.inference.runtime import Network
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.orientation import METHODS
from flatscope.runs.light import LightParams, choose_light
from flatscope.runs.settings import checked

_as_json = click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
_weights = click.option(
    "--weights", default="flakes", show_default=True, help="Name of shipped weights, or an .onnx file."
)
_image = click.option(
    "--image", type=click.Path(path_type=Path), help="An ADF-STEM image with marked columns."
)
_labels = click.option(
    "--labels", type=click.Path(path_type=Path), help="CSV: row_px, col_px, label (W, Se2, Ti_W, V_Se)."
)
_nm_per_px = click.option("--nm-per-px", type=float, help="Pixel size, where the file does not state it.")


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
@settings_options(FlakeParams, LightParams)
@_as_json
def flakes(images: Path, masks: Path, **options: Any) -> int:
    """Compare found flakes with annotated ones."""
    params, light = gather(options, FlakeParams, LightParams)
    ask(options, FlakeParams, LightParams)
    network = Network.load(light.weights)
    params, flat = choose_light(params, light.flatfield, find_pictures([images]))
    with show.progress("pictures") as on_progress:
        scores = evaluate_flakes(
            images,
            masks,
            params,
            network=network,
            um_per_px=light.um_per_px,
            flatfield=flat,
            on_progress=on_progress,
        )
    return _print(scores, as_json=options["as_json"])


@evaluate.command()
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of scenes.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Not the training's.")
@_weights
@_as_json
def scenes(count: int, seed: int, weights: str, as_json: bool) -> int:
    """Compare layer numbers with the truth on scenes that were never trained on."""
    network = Network.load(weights)
    with show.progress("scenes") as on_progress:
        scores = evaluate_scenes(count, seed=seed, network=network, on_progress=on_progress)
    return _print(scores, as_json=as_json)


@evaluate.command()
@click.option("--count", type=click.IntRange(1), default=100, show_default=True, help="Number of pictures.")
@click.option("--material", default="hBN", show_default=True, help="A built-in material.")
@click.option("--seed", type=click.IntRange(0), default=7, show_default=True, help="Of the pictures.")
@_as_json
def thickness(count: int, material: str, seed: int, as_json: bool) -> int:
    """Compare the thickness of drawn crystals of 5 to 150 nm, on 90 and 285 nm oxide, with the truth."""
    from flatscope.evaluation.thick_crystals import evaluate_thickness  # imported late: few ask for it

    with show.progress("pictures") as on_progress:
        scores = evaluate_thickness(count, material=material, seed=seed, on_progress=on_progress)
    return _print(scores, as_json=as_json)


@evaluate.command()
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=Path("../shared/data/optical"),
    show_default=True,
    help="Folder with graphene, wse2, labs and so on.",
)
@click.option("--lab", "labs", multiple=True, help="Name of a laboratory; may be given several times.")
@click.option(
    "--oxide",
    type=click.Choice(["stated", "open", "both"]),
    default="both",
    show_default=True,
    help="Give the oxide that a laboratory states, leave it open, or a line for each.",
)
@click.option(
    "--pictures", type=click.IntRange(1), default=None, help="At most this many of each laboratory."
)
@click.option(
    "--sheets",
    type=click.Path(path_type=Path),
    default=None,
    help="Folder for every picture with its marks beside what flatscope shows.",
)
@_weights
@_as_json
def laboratories(data: Path, labs: tuple[str, ...], as_json: bool, **options: Any) -> int:
    """Count what is seen and named right in the pictures of many laboratories, beside a rule without physics."""
    from flatscope.evaluation.laboratories import evaluate_laboratories

    with show.progress("pictures") as on_progress:
        scores = evaluate_laboratories(
            data,
            labs,
            network=Network.load(options["weights"]),
            oxide=options["oxide"],
            most_pictures=options["pictures"],
            sheets=options["sheets"],
            on_progress=on_progress,
        )
    return _print(*scores, as_json=as_json)


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
@_as_json
def adaptation(setups: int, pictures: tuple[int, ...], out: Path, as_json: bool) -> int:
    """Adapt to drawn set-ups outside the default's range, beside a U-Net trained from scratch."""
    require_training()
    from flatscope.evaluation.adaptation import measure_learning_curve, tabulate

    with show.progress("steps") as on_progress:
        points = measure_learning_curve(setups=setups, pictures=pictures, out=out, on_progress=on_progress)
    return _print(tabulate(points), as_json=as_json)


@evaluate.command()
@click.option(
    "--mix",
    type=click.Choice(["clean", "ragged", "micrographs", "outlines"]),
    default="ragged",
    show_default=True,
)
@click.option("--count", type=click.IntRange(1), default=1000, show_default=True, help="Bilayers drawn.")
@click.option("--seed", type=click.IntRange(0), default=5, show_default=True, help="Of the bilayers.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="How a layer's orientation is measured.",
)
@_as_json
def twist(mix: str, count: int, seed: int, method: str, as_json: bool) -> int:
    """Compare twist angles with the truth on artificial bilayers; all errors in degrees.

    The mixes are label images with exact edges, label images as a network makes them, photographs, and label images
    with rough outlines by another generator, in four ranges of roughness and correlation.
    """
    from flatscope.evaluation.outlines import evaluate_outlines
    from flatscope.evaluation.twist import evaluate_twist

    with show.progress("bilayers") as on_progress:
        if mix == "outlines":
            quarters = evaluate_outlines(count, seed=seed, method=method, on_progress=on_progress)
            return _print(quarters, as_json=as_json)
        scores = evaluate_twist(mix, count, seed=seed, method=method, on_progress=on_progress)
    return _print(scores, as_json=as_json)


@evaluate.command()
@_image
@_labels
@click.option("--material", default="MoS2", show_default=True)
@_nm_per_px
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
@_as_json
def columns(
    image: Path | None, labels: Path | None, nm_per_px: float | None, as_json: bool, **options: Any
) -> int:
    """Compare atomic columns with expert labels or drawn truth.

    Drawn are ADF images at 3, 10 and 50 electrons a pixel, or HRTEM focal series at 100 to 100,000 electrons per Å², as
    many on either support, by multislice where abTEM is installed.
    """
    from flatscope.electron.columns import ColumnParams
    from flatscope.evaluation.columns import evaluate_labels, evaluate_localisation
    from flatscope.evaluation.series import evaluate_series

    _refuse_half(image, labels)
    params = checked(ColumnParams, material=options["material"])
    if options["modality"] == "hrtem" and image is not None:
        raise click.UsageError("--image belongs to --modality stem")
    if image is not None and labels is not None:
        return _print(evaluate_labels(image, labels, params, nm_per_px=nm_per_px), as_json=as_json)
    count, seed = options["images"], options["seed"]
    scores: Sequence[Score]
    with show.progress("images") as on_progress:
        if options["modality"] == "hrtem":
            scores = evaluate_series(
                material=params.material,
                series=count,
                seed=seed,
                weights=options["weights"],
                on_progress=on_progress,
            )
        else:
            scores = evaluate_localisation(
                material=params.material, images=count, seed=seed, on_progress=on_progress
            )
    return _print(scores, as_json=as_json)


@evaluate.command()
@click.option("--limits", is_flag=True, help="Also where they fail: other voltages, detectors and sheets.")
@_as_json
def imaging(limits: bool, as_json: bool) -> int:
    """Compare the fast models of electron micrographs with multislice and PRISM (extra: multislice)."""
    from flatscope.evaluation.imaging import compare_models, measure_limits

    with show.progress("comparisons") as on_progress:
        found = compare_models(on_progress=on_progress)
        failing = measure_limits(on_progress=on_progress) if limits else []
    return _print(found, failing, as_json=as_json)


@evaluate.command()
@_image
@_labels
@click.option("--material", default="WSe2", show_default=True, help="Of the image.")
@click.option("--dopants", default="", help="Element that is known to be in it.")
@_nm_per_px
@click.option(
    "--sheets", type=click.IntRange(1), default=40, show_default=True, help="Drawn ones, without --image."
)
@click.option("--seed", type=click.IntRange(0), default=17, show_default=True, help="Of the drawn sheets.")
@click.option("--weights", default="defects", show_default=True, help="A name, or an .onnx file.")
@_as_json
def defects(
    image: Path | None, labels: Path | None, nm_per_px: float | None, as_json: bool, **options: Any
) -> int:
    """Compare point defects with expert labels or drawn truth.

    Drawn are fields with six kinds of defect, which the whole route finds, places and names; then windows at given
    places and on given sublattices, which are only named, at the noise of DefectFinder's poster and against dose.
    """
    from flatscope.electron.defects import DefectParams
    from flatscope.evaluation.defects import evaluate_labels, evaluate_route
    from flatscope.evaluation.windows import evaluate_windows

    _refuse_half(image, labels)
    if image is not None and labels is not None:
        names = ("material", "dopants", "weights")
        params = checked(DefectParams, **{name: options[name] for name in names})
        return _print(evaluate_labels(image, labels, params, nm_per_px=nm_per_px), as_json=as_json)
    drawn = {"count": options["sheets"], "seed": options["seed"], "weights": options["weights"]}
    with show.progress("fields, then noises") as on_progress:
        routes = evaluate_route(**drawn, on_progress=on_progress)
        scores = evaluate_windows(**drawn, on_progress=on_progress)
    return _print(routes, scores, as_json=as_json)


@evaluate.command()
@click.option("--movies", type=click.IntRange(1), default=4, show_default=True, help="Movies drawn.")
@click.option("--seed", type=click.IntRange(0), default=23, show_default=True, help="Of the movies.")
@_as_json
def tracks(movies: int, seed: int, as_json: bool) -> int:
    """Follow hopping sulphur vacancies through drawn, drifting movies, beside plain linking (extra: movies)."""
    from flatscope.evaluation.defects import evaluate_tracks

    with show.progress("movies") as on_progress:
        scores = evaluate_tracks(movies=movies, seed=seed, on_progress=on_progress)
    return _print(scores, as_json=as_json)


@evaluate.command()
@click.option(
    "--images", type=click.IntRange(1), default=4, show_default=True, help="Of each pair and range."
)
@click.option("--seed", type=click.IntRange(0), default=31, show_default=True, help="Of the drawn bilayers.")
@click.option(
    "--monolayers",
    type=click.IntRange(0),
    default=0,
    help="Also look for stacks in this many drawn monolayers.",
)
@click.option("--multislice", is_flag=True, help="Bilayers by multislice instead (extra: multislice).")
@click.option("--cache", type=click.Path(path_type=Path), help="Folder that keeps the images by multislice.")
@_as_json
def moire(
    images: int, seed: int, monolayers: int, multislice: bool, cache: Path | None, as_json: bool
) -> int:
    """Measure drawn twisted bilayers, beside the peaks in their spectrum read by hand; self-consistent figures, unless
    multislice draws them."""
    from flatscope.evaluation.moire import count_false_stacks, evaluate_moire
    from flatscope.evaluation.moire_multislice import evaluate_multislice

    with show.progress("bilayers") as on_progress:
        if multislice:
            cells, scores = evaluate_multislice(count=images, seed=seed, cache=cache, on_progress=on_progress)
            return _print(cells, scores, as_json=as_json)
        tables: list[Sequence[Score]] = [evaluate_moire(count=images, seed=seed, on_progress=on_progress)]
    if monolayers:
        with show.progress("monolayers") as on_progress:
            tables.append([count_false_stacks(count=monolayers, on_progress=on_progress)])
    return _print(*tables, as_json=as_json)


def _refuse_half(image: Path | None, labels: Path | None) -> None:
    if (image is None) != (labels is None):
        raise click.UsageError("--image and --labels belong together")


def _print(*scores: Score | Sequence[Score], as_json: bool) -> int:
    """One evaluation, or tables of scores below each other."""
    if isinstance(scores[0], Score):
        numbers = json.dumps(scores[0].to_dict(), indent=2, ensure_ascii=False)
        click.echo(numbers if as_json else scores[0].to_text())
        return 0
    tables = [table for table in scores if not isinstance(table, Score) and table]
    if as_json:
        click.echo(json.dumps([row.to_dict() for table in tables for row in table]))
        return 0
    for table in tables:
        rows = [row.to_words() for row in table]
        show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
    return 0
