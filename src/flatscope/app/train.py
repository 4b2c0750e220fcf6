"""`flatscope train`: a recipe in, weights out."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from flatscope.app import show


@click.command()
@click.argument("recipe")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for checkpoints and the .onnx file."
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1 ...")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Processes that draw scenes."
)
@click.option("--no-resume", is_flag=True, help="Start anew, even if the folder holds a checkpoint.")
@click.option("--ship", is_flag=True, help="Put the weights among those that ship with flatscope.")
def train(recipe: str, out: Path, device: str, **options: Any) -> int:
    """Train a network by RECIPE, a name or a .toml file.

    Ctrl-C leaves a checkpoint; the same command goes on from it.
    """
    require_training()
    from flatscope.training import recipes

    plan = recipes.load(recipe)
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
