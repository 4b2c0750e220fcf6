"""`flatscope train`: a recipe in, weights out."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatscope.app import show
from flatscope.app.cli import EXIT_FINE, EXIT_SOME_FAILED
from flatscope.app.settings import checked
from flatscope.electron.columns import ColumnParams
from flatscope.electron.defects import DefectParams
from flatscope.electron.drawing.appearance import draw_clean
from flatscope.electron.drawing.microscopes import learn_look
from flatscope.electron.physics.crystals import DICHALCOGENIDES, find_crystal
from flatscope.electron.scans import open_scan
from flatscope.files.layer_labels import find_layer_labels
from flatscope.files.read import find_pictures, read
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical.flakes import FlakeParams
from flatscope.units import um_from_nm

if TYPE_CHECKING:
    from flatscope.training.recipes import Recipe

_COMPARED = 4
"""So many drawn images show how near a learned look comes."""
_SUPERVISED = {
    "bilayers": "flatscope.training.orient",
    "series": "flatscope.training.columns",
    "sites": "flatscope.training.defects",
}
"""Where networks are trained on what a recipe's `pictures` names."""


@click.command()
@click.argument("recipe")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and the .onnx file."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw scenes."
)
@click.option(
    "--images", type=click.Path(path_type=Path), help="For layers-adapt: folder with pictures of one set-up."
)
@click.option(
    "--masks",
    type=click.Path(path_type=Path),
    help="For layers-adapt: folder with NAME.layers.png (0 substrate, 1 to 6 layers, 254 thick, 255 unknown), or COCO, "
    "labelme or Label Studio JSON.",
)
@click.option(
    "--image", type=click.Path(path_type=Path), help="For realism: one experimental ADF-STEM image."
)
@click.option("--nm-per-px", type=float, default=None, help="For realism: its pixel size; else the file's.")
@click.option(
    "--material",
    default=None,
    help="For layers-adapt (graphene by default), columns (MoS2 by default), and realism.",
)
@click.option("--oxide-nm", type=float, default=None, help="For layers-adapt: nominal SiO2 thickness.")
@click.option("--weights", default="flakes", show_default=True, help="For layers-adapt: what to start from.")
@click.option("--no-resume", is_flag=True, help="Start anew, even if the folder holds a checkpoint.")
@click.option("--ship", is_flag=True, help="Put the weights among those that ship with flatscope.")
def train(recipe: str, out: Path, device: str, **options: Any) -> int:
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
    given = options["images"], options["masks"]
    if plan.pictures == "labelled":
        if None in given:
            raise click.UsageError(f"{recipe} needs labelled pictures: give --images DIR and --masks DIR")
        if device != "auto" or options["no_resume"] or options["ship"]:
            raise click.UsageError(f"--device, --no-resume and --ship do not belong to {recipe}")
        params = checked(
            FlakeParams, material=options["material"] or "graphene", oxide_nm=options["oxide_nm"]
        )
        return _adapt(plan, *given, params, weights=options["weights"], out=out)
    if given != (None, None):
        raise click.UsageError(f"{recipe} draws its pictures: --images and --masks belong to layers-adapt")
    if plan.pictures == "crops":
        if device not in ("auto", "cpu"):
            raise click.UsageError(f"--device {device}: {recipe} trains on the CPU")
        return _learn_look(plan, out=out, **options)
    if options["image"] is not None:
        raise click.UsageError("--image belongs to realism")
    if plan.pictures in _SUPERVISED:
        if options["material"]:
            known = checked(ColumnParams, material=options["material"])
            plan = replace(plan, material=find_crystal(known.material).name)
        return _train_supervised(plan, out=out, **options)
    # torch takes seconds to import; a wrong recipe should be told before.
    from flatscope.inference import registry
    from flatscope.training import data, export, loop

    with show.progress("scenes") as on_progress:
        made = data.build(plan, workers=options["workers"], on_progress=on_progress)
    with show.progress("steps") as on_progress:
        best = loop.train(
            plan,
            out=out,
            data=made,
            device=device,
            resume=not options["no_resume"],
            on_progress=on_progress,
            on_epoch=_print_epoch,
        )
    net, card = export.read_checkpoint(best)
    path = export.export(
        net,
        card,
        out / f"{card.name}.onnx",
        calibration=made.train.contrast[: export.CALIBRATION_SCENES] if plan.bits == 8 else None,
    )
    for name, score in card.scores.items():
        click.echo(f"{name}: {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.data}")
    if options["ship"]:
        path = registry.register(path, name=card.name)
    click.echo(f"weights: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


def _train_supervised(
    recipe: Recipe, *, out: Path, workers: int, no_resume: bool, ship: bool, **_: Any
) -> int:
    from flatscope.inference import registry
    from flatscope.training import export

    home = importlib.import_module(_SUPERVISED[recipe.pictures])
    with show.progress(f"{recipe.pictures}, then steps") as on_progress:
        outcome = home.train(recipe, out=out, workers=workers, resume=not no_resume, on_progress=on_progress)
    for name, score in outcome.scores.items():
        click.echo(f"{name}: {score.value:.3f} ({score.low:.3f} to {score.high:.3f}) on {score.data}")
    card = home.make_card(recipe, outcome)
    path = export.export(outcome.net, card, out / f"{card.name}.onnx")
    if ship:
        path = registry.register(path, name=card.name)
    click.echo(f"weights: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return EXIT_FINE


def choose_crystal(material: str, *, dopants: str = "") -> DefectParams:
    """The crystal of an image whose look is learned."""
    known = checked(DefectParams, material=material, dopants=dopants)
    if not find_crystal(known.material).is_dichalcogenide:
        raise MicrographError(f"--material {material}: a look is learned of {', '.join(DICHALCOGENIDES)}")
    return known


def _learn_look(recipe: Recipe, *, out: Path, workers: int, no_resume: bool, ship: bool, **given: Any) -> int:
    image, material, nm_per_px = given["image"], given["material"], given["nm_per_px"]
    if image is None or material is None:
        raise click.UsageError(f"{recipe.name} learns from an image: give --image FILE and --material NAME")
    if ship:
        raise click.UsageError(f"--ship does not belong to {recipe.name}: its weights are of one image")
    known = choose_crystal(material)
    size = None if nm_per_px is None else um_from_nm(nm_per_px)
    micrograph = read(image, um_per_px=size, modality="electron")
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
    drawn = draw_clean(teacher.look, _COMPARED, side=recipe.scene_px, seed=recipe.seed + 1, workers=workers)
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
    click.echo(f"weights: {network.path} ({network.path.stat().st_size / 1e6:.1f} MB)")
    return EXIT_FINE


def _adapt(recipe: Recipe, images: Path, masks: Path, params: FlakeParams, *, weights: str, out: Path) -> int:
    base = Network.load(weights)
    problems: list[MicrographError] = []
    labels = find_layer_labels(find_pictures([images]), masks, on_problem=problems.append)
    for problem in problems:
        click.echo(f"left out: {problem}", err=True)
    if not labels:
        raise MicrographError(
            f"no picture in {images} has labels in {masks}: NAME.layers.png, NAME.mask.png, NAME.png, or JSON"
        )
    from flatscope.evaluation.adaptation import adapt
    from flatscope.training.adapt import LabelledPicture

    pictures = []
    for path, marked in labels.items():
        try:
            picture = read(path)
            pictures.append(LabelledPicture(picture, marked.draw(picture.shape)))
        except MicrographError as error:
            problems.append(error)
            click.echo(f"left out: {error}", err=True)
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
    size = outcome.weights.stat().st_size / 1e6
    click.echo(f"kept: {outcome.chosen}\nweights: {outcome.weights} ({size:.1f} MB), for --weights")
    return EXIT_SOME_FAILED if problems else EXIT_FINE


def require_training() -> None:
    """Say what is missing, where the extra `train` is not installed.

    Raises
    ------
    click.ClickException
        With the way out.
    """
    for package in ("torch", "onnx"):
        if importlib.util.find_spec(package) is None:
            raise click.ClickException(f"training needs {package}: pip install 'flatscope[train]'")


def _print_epoch(report: Any) -> None:
    click.echo(
        f"epoch {report.epoch:3d}  {report.minutes:6.1f} min  loss {report.train_loss:.4f} / {report.val_loss:.4f}  "
        f"IoU thin {report.iou_thin:.3f} thick {report.iou_thick:.3f}  edge {report.dice_edge:.3f}"
        + ("  best" if report.best else "")
    )
