"""`flatscope train`: a recipe in, weights out."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatscope.app import show
from flatscope.app.cli import EXIT_FINE, EXIT_SOME_FAILED, require_training
from flatscope.electron.columns import ColumnParams
from flatscope.electron.drawing.appearance import draw_clean
from flatscope.electron.drawing.microscopes import learn_look
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.scans import open_scan
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical.flakes import FlakeParams
from flatscope.runs.settings import checked, choose_crystal
from flatscope.units import um_from_nm

if TYPE_CHECKING:
    from flatscope.inference.card import Card
    from flatscope.training.recipes import Recipe

_COMPARED = 4  # drawn images that show how near a learned look comes
_DRAWN = ("flakes", "columns", "defects", "orientation")  # sections whose pictures are drawn
_BELONGS = {
    "images": ("adaptation",),
    "masks": ("adaptation",),
    "oxide_nm": ("adaptation",),
    "weights": ("adaptation",),
    "image": ("realism",),
    "nm_per_px": ("realism",),
    "material": ("adaptation", "columns", "realism"),
    "device": ("flakes",),
    "no_resume": (*_DRAWN, "realism"),
    "ship": _DRAWN,
}
"""Option to the sections of recipes that it has a meaning for."""
_RECIPES = {"adaptation": "layers-adapt"}
"""Section to the recipe that ships with it, where the two have different names."""


@click.command()
@click.argument("recipe")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and the .onnx file."
)
@click.option("--device", help="For flakes: auto (the default), cpu, cuda, cuda:1 ...")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw pictures."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="For layers-adapt: folder with pictures of one set-up."
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    help="For layers-adapt: folder with NAME.layers.png (0 substrate, 1 to 10 layers, 254 thick, 253 and 255 unknown), "
    "or COCO, labelme or Label Studio JSON.",
)
@click.option(
    "--image", type=click.Path(path_type=Path), help="For realism: one experimental ADF-STEM image."
)
@click.option("--nm-per-px", type=float, default=None, help="For realism: its pixel size; else the file's.")
@click.option("--material", help="For layers-adapt and realism, and for columns (MoS2 by default).")
@click.option("--oxide-nm", type=float, default=None, help="For layers-adapt: nominal SiO2 thickness.")
@click.option("--weights", help="For layers-adapt: what to start from (flakes by default).")
@click.option("--no-resume", is_flag=True, help="Start anew, even if the folder holds a checkpoint.")
@click.option("--ship", is_flag=True, help="Put the weights among those that ship with flatscope.")
def train(recipe: str, out: Path, workers: int, **options: Any) -> int:
    """Train a network by RECIPE, a name or a .toml file.

    Ctrl-C leaves a checkpoint; the same command goes on from it.

    The recipe layers-adapt takes three or more labelled pictures of your own set-up (--images, --masks) and adapts the
    shipped weights to it in minutes. It keeps the outcome only if that is better on pictures held out.

    The recipe realism takes one experimental ADF-STEM image (--image, --material) and learns to give drawn images its
    look: for `flatscope simulate stem --realism`.

    The recipe orientation trains the network behind `flatscope twist --method network`, columns the one behind
    `flatscope atoms --modality hrtem`, for any --material.
    """
    require_training()
    from flatscope.training import recipes

    plan = recipes.load(recipe)
    given: dict[str, Any] = {name: value for name, value in options.items() if value not in (None, False)}
    _refuse_foreign(plan, given)
    if plan.task.name == "adaptation":
        return _adapt(plan, out, **given)
    if plan.task.name == "realism":
        return _learn_look(plan, out, workers=workers, **given)
    return _train_drawn(plan, out, workers=workers, **given)


def _refuse_foreign(recipe: Recipe[Any], given: dict[str, Any]) -> None:
    """Refuse options that have no meaning for the section of a recipe."""
    section = recipe.task.name
    if given.get("device") == "cpu" and section != "adaptation":
        given.pop("device")  # where all the others train anyway
    for name in given:
        if section not in _BELONGS[name]:
            homes = ", ".join(_RECIPES.get(home, home) for home in _BELONGS[name])
            flag = f"--{name.replace('_', '-')}"
            raise click.UsageError(f"{flag} belongs to {homes}, not to {recipe.name}")


def _train_drawn(
    recipe: Recipe[Any], out: Path, *, workers: int, no_resume: bool = False, ship: bool = False, **given: Any
) -> int:
    # torch takes seconds to import: a wrong recipe is refused before
    from flatscope.inference import registry
    from flatscope.training import onnx_export

    if "material" in given:
        known = checked(ColumnParams, material=given.pop("material"))
        recipe = recipe.change(material=find_crystal(known.material).name)
    if recipe.task.name == "flakes":
        given["on_report"] = _print_epoch
    home = importlib.import_module(f"flatscope.training.{recipe.task.name}")
    with show.progress("pictures, then steps") as on_progress:
        trained = home.train(
            recipe, out=out, workers=workers, resume=not no_resume, on_progress=on_progress, **given
        )
    path = onnx_export.export(
        trained.net, trained.card, out / f"{recipe.name}.onnx", calibration=trained.calibration
    )
    _print_scores(trained.card)
    if ship:
        path = registry.register(path, name=recipe.name)
    _print_weights(path)
    return EXIT_FINE


def _learn_look(
    recipe: Recipe[Any], out: Path, *, workers: int, no_resume: bool = False, **given: Any
) -> int:
    if not {"image", "material"} <= given.keys():
        raise click.UsageError(f"{recipe.name} learns from an image: give --image FILE and --material NAME")
    known = choose_crystal(given["material"])
    size = um_from_nm(given["nm_per_px"]) if "nm_per_px" in given else None
    micrograph = read(given["image"], um_per_px=size, modality="electron")
    notes = list(micrograph.notes)
    opened = open_scan(micrograph, known.material, notes)
    for note in notes:
        click.echo(note)
    teacher = learn_look(opened, known.material, source=micrograph.name, workers=workers)
    from flatscope.evaluation.likeness import Likeness, compare_ways, learn_translation, list_ways

    with show.progress("steps") as on_progress:
        network = learn_translation(
            teacher, recipe, out=out, resume=not no_resume, workers=workers, on_progress=on_progress
        )
    side = recipe.task.scene_px
    drawn = draw_clean(teacher.look, _COMPARED, side=side, seed=recipe.seed + 1, workers=workers)
    looks = compare_ways(teacher, list_ways(teacher, network), drawn)
    show.print_rows(
        ("", *Likeness.HEAD), [(name, *score.to_words().values()) for name, score in looks.items()]
    )
    click.echo(
        "Fréchet: distance of unit cells from those of the right half of the image; power: over theirs in the ring of "
        "frequency that is furthest off"
    )
    if looks["fitted noise"].frechet < looks["translated"].frechet:
        click.echo(
            "fitted noise comes nearer than the translation: train longer, or take simulate stem --noise"
        )
    _print_weights(network.path)
    return EXIT_FINE


def _adapt(recipe: Recipe[Any], out: Path, **given: Any) -> int:
    if not {"images", "masks"} <= given.keys():
        raise click.UsageError(f"{recipe.name} needs labelled pictures: give --images DIR and --masks DIR")
    if "material" not in given:
        raise click.UsageError(f"{recipe.name} learns the colours of one material: give --material NAME")
    params = checked(FlakeParams, material=given["material"], oxide_nm=given.get("oxide_nm"))
    base = Network.load(given.get("weights", "flakes"))
    from flatscope.evaluation.adaptation import adapt
    from flatscope.training.adapt import read_labelled

    problems: list[MicrographError] = []
    pictures = read_labelled(given["images"], given["masks"], on_problem=problems.append)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    with show.progress("steps") as on_progress:
        outcome = adapt(pictures, params, recipe, base=base, out=out, on_progress=on_progress)
    regions = ", ".join(f"{count} of {n}L" for n, count in outcome.known.items() if count)
    click.echo(f"labelled regions measured: {regions}")
    click.echo(f"{outcome.trained} pictures trained on, {outcome.held_out} held out; errors on these:")
    for name, errors in outcome.errors.items():
        click.echo(
            f"  {name:17} {errors.total:4d}  ({errors.regions} regions: {errors.wrong} with another layer number, "
            f"{errors.missed} missed; {errors.false} found where nothing is labelled)"
        )
    if outcome.weights is None:
        click.echo(
            "nothing is better than the default: no weights written; label more pictures, or other ones"
        )
        return EXIT_SOME_FAILED
    click.echo(f"kept: {outcome.chosen}")
    _print_weights(outcome.weights, ", for --weights")
    return EXIT_SOME_FAILED if problems else EXIT_FINE


def _print_scores(card: Card) -> None:
    for name, score in card.scores.items():
        click.echo(f"{name}: {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.data}")


def _print_weights(path: Path, remark: str = "") -> None:
    click.echo(f"weights: {path} ({path.stat().st_size / 1e6:.1f} MB){remark}")


def _print_epoch(report: Any) -> None:
    measured = report.measured
    click.echo(
        f"epoch {report.number:3d}  {report.minutes:6.1f} min  "
        f"loss {report.losses['loss']:.4f} / {measured['loss']:.4f}  "
        f"IoU thin {measured['iou_thin']:.3f} thick {measured['iou_thick']:.3f}  edge {measured['dice_edge']:.3f}"
        + ("  best" if report.best else "")
    )
