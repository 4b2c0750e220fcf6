"""`flatscope simulate`: draw focal series and scans with their truth."""

from __future__ import annotations

import json
import math
import time
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from flatscope.app.command import Plan, carry_out, clear
from flatscope.electron.columns import ColumnParams
from flatscope.electron.drawing.appearance import Look
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.translation import MOVED_NM
from flatscope.electron.physics.crystals import find_crystal
from flatscope.micrograph import MicrographError
from flatscope.runs.folder import Folder
from flatscope.runs.settings import checked
from flatscope.runs.simulate import Order, list_items, load_translator, make_task
from flatscope.runs.task import Finished

_QUICK_PX = 64  # side of quick images
_LEAST_CELLS = 8  # side of translated images in lattice constants, at least
_SUPPORTS = {"none": ("",), "graphene": ("graphene",), "both": ("", "graphene")}
_NO_ABTEM = "multislice needs abTEM: pip install 'flatscope[multislice]'"
_NO_H5PY = "data sets are written as HDF5: pip install 'flatscope[simulate]'"


@click.command()
@click.argument("modality", type=click.Choice(["hrtem", "stem"]))
@click.option(
    "-n", "--count", type=click.IntRange(1), default=100, show_default=True, help="Number of items."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the data set.")
@click.option("--material", default=None, help="MoS2 by default; with --realism what its weights say.")
@click.option("--support", type=click.Choice(tuple(_SUPPORTS)), default="both", show_default=True)
@click.option("--side-px", type=click.IntRange(32), default=256, show_default=True)
@click.option("--nm-per-px", type=float, default=None, help="0.0115 for hrtem and 0.02 for stem by default.")
@click.option(
    "--dose",
    type=float,
    nargs=2,
    default=None,
    help="Range: electrons per Å² of a series (100 100000), or detected electrons a pixel (3 100); with --realism over "
    "those of the image that was learned from (1 1).",
)
@click.option("--noise", type=click.Path(path_type=Path), help="For stem: what flatscope fit-noise wrote.")
@click.option(
    "--realism",
    type=click.Path(path_type=Path),
    help="For stem: weights that flatscope train realism wrote; they say material, pixel size and noise.",
)
@click.option(
    "--translated",
    type=click.FloatRange(0.0, 1.0),
    default=1.0,
    show_default=True,
    help="With --realism: share of images that are translated; the others have the noise fitted to the same image.",
)
@click.option("--exact", is_flag=True, help="For hrtem: multislice by abTEM (extra: multislice).")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True)
@click.option("--replace", is_flag=True, help="Remove an earlier data set from the folder first.")
@click.option("--timings", is_flag=True, help="Print where the time went.")
@click.option("--quick", is_flag=True, help=f"Images of {_QUICK_PX} px.")
def simulate(modality: str, count: int, seed: int, out: Path, **settings: Any) -> int:
    """Draw HRTEM focal series or ADF-STEM images of sheets with every kind of defect, with their truth.

    With --realism the images look like the one that the weights were trained on: dichalcogenides with vacancies, oxygen
    and a dopant, in its lattice's own direction.

    Writes data.h5 (images, and masks: 0 nothing, 1 and 2 the columns of either sublattice, 3 half a pair, 4 another
    one, 255 nobody can tell), columns.csv, defects.csv and params.jsonl. Item i follows from the seed and i alone.
    """
    if find_spec("h5py") is None:
        raise click.ClickException(_NO_H5PY)
    if settings["exact"] and find_spec("abtem") is None:
        raise click.ClickException(_NO_ABTEM)
    order = _read_order(modality, seed, settings)
    plan = Plan(make_task(order), list_items(count), summarise, what="items")
    folder = Folder(out)
    if settings["replace"]:
        clear(folder)
    return carry_out(plan, folder, settings, begun=time.perf_counter())


def summarise(run: Finished, out: Path) -> None:
    """Print what became of columns when images were translated, and where the data set lies."""
    params = [answer.facts["params"] for _, answer in run.answers()]
    if run.task.given.realism is not None:
        names = ("columns", "moved", "vanished")
        columns, moved, vanished = (sum(one[name] for one in params) for name in names)
        click.echo(
            f"of {columns} columns {moved / max(columns, 1):.1%} were moved by more than {1e3 * MOVED_NM:.0f} pm, and "
            f"{vanished} defects vanished: marked 255"
        )
    click.echo(f"{len(params)} items: {out / 'data.h5'}")


def _read_order(modality: str, seed: int, settings: dict[str, Any]) -> Order:
    hrtem = modality == "hrtem"
    if settings["exact"] and not hrtem:
        raise click.UsageError("--exact belongs to hrtem")
    if settings["noise"] is not None and hrtem:
        raise click.UsageError("--noise belongs to stem: series have the counting noise of --dose")
    if settings["realism"] is not None:
        settings = settings | _read_look(settings, hrtem=hrtem)
    elif settings["translated"] != 1.0:
        raise click.UsageError("--translated belongs to --realism")
    material = find_crystal(checked(ColumnParams, material=settings["material"] or "MoS2").material).name
    pixel_nm = settings["nm_per_px"]
    if pixel_nm is None:
        pixel_nm = 0.0115 if hrtem else 0.02
    dose = settings["dose"] or ((1e2, 1e5) if hrtem else (3.0, 100.0))
    if not 0.0 < dose[0] <= dose[1] < math.inf:
        raise click.UsageError(
            f"--dose {dose[0]:g} {dose[1]:g}: give two positive numbers, the smaller one first"
        )
    if not 0.0 < pixel_nm < 0.1:
        raise click.UsageError(f"--nm-per-px {pixel_nm:g}: columns want pixels below 0.1 nm")
    return Order(
        modality=modality,
        material=material,
        side_px=_QUICK_PX if settings["quick"] else settings["side_px"],
        pixel_nm=pixel_nm,
        dose=dose,
        supports=_SUPPORTS[settings["support"]],
        seed=seed,
        exact=settings["exact"],
        noise=None if settings["noise"] is None else _read_noise(settings["noise"]),
        realism=settings["realism"],
        translated=settings["translated"],
    )


def _read_look(settings: dict[str, Any], *, hrtem: bool) -> dict[str, Any]:
    """Material and pixel size that weights for --realism were trained at."""
    if hrtem:
        raise click.UsageError("--realism belongs to stem")
    for name in ("material", "nm_per_px", "noise"):
        if settings[name] is not None:
            raise click.UsageError(
                f"--{name.replace('_', '-')} comes with the weights of --realism: leave it out"
            )
    look = Look.from_card(load_translator(settings["realism"]).card)
    least = int(np.ceil(_LEAST_CELLS * look.constant_px))
    if (_QUICK_PX if settings["quick"] else settings["side_px"]) < least:
        raise click.UsageError(
            f"these weights want images of {least} px or more: --side-px {least}, no --quick"
        )
    return {
        "material": look.material,
        "nm_per_px": look.pixel_nm,
        "dose": settings["dose"] or (1.0, 1.0),
    }


def _read_noise(path: Path) -> NoiseParams:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        known = {field.name for field in fields(NoiseParams)}
        chosen: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in stored["noise"].items()
            if key in known
        }
        return NoiseParams(**chosen)
    except OSError as error:
        raise MicrographError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MicrographError(f"{path}: is not what flatscope fit-noise wrote ({error})") from None
