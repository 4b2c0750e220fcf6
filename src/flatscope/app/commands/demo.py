"""`flatscope demo`: three micrographs with known truth, drawn, analysed and compared."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from flatscope.app import show
from flatscope.app.command import Plan, carry_out
from flatscope.evaluation.flakes import pair_with_truth
from flatscope.files.write import write_atomic
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.report.figures import encode_png
from flatscope.results import FlakeTable, Table
from flatscope.runs.flakes import Given as FlakesGiven
from flatscope.runs.flakes import make_task
from flatscope.runs.folder import Folder
from flatscope.runs.items import Item
from flatscope.runs.light import LightParams
from flatscope.runs.settings import as_plain
from flatscope.runs.task import Finished

LEAST_PX = 300
"""True regions below this are not asked for."""
SMALLEST_PX = 250
"""Regions below this are not listed; the 20 µm² of a calibrated picture would hide true ones that are asked for."""


@dataclass(frozen=True)
class _Sample:
    name: str
    seed: int
    scene: SceneParams
    params: FlakeParams
    um_per_px: float


_SHAPE = (800, 1200)
_SAMPLES = (
    _Sample(
        "graphene_90nm",
        1,
        SceneParams(shape=_SHAPE, material="graphene", oxide_nm=90.0, growth="exfoliated", density=0.6),
        FlakeParams("graphene", oxide_nm=90.0, min_area_px=SMALLEST_PX),
        0.30,
    ),
    _Sample(
        "MoS2_285nm_cvd",
        2,
        SceneParams(shape=_SHAPE, material="MoS2", oxide_nm=285.0, growth="cvd", density=0.4),
        FlakeParams("MoS2", oxide_nm=285.0, min_area_px=SMALLEST_PX),
        0.15,
    ),
    _Sample(
        "WSe2_90nm",
        3,
        SceneParams(shape=_SHAPE, material="WSe2", oxide_nm=90.0, growth="exfoliated", density=0.6),
        FlakeParams("WSe2", oxide_nm=90.0, min_area_px=SMALLEST_PX),
        0.30,
    ),
)


@click.command()
@click.option(
    "--out",
    default="demo",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for pictures and results.",
)
@click.option(
    "--weights",
    default="flakes",
    show_default=True,
    help="Name of shipped weights, or an .onnx file.",
)
def demo(out: Path, weights: str) -> int:
    """Draw three micrographs with known truth, analyse them, and say how much was found and named right."""
    scenes: dict[str, Scene] = {}
    items: list[Item] = []
    for sample in _SAMPLES:
        click.echo(f"drawing {sample.name} ...", err=True)
        scene = draw_scene(np.random.default_rng(sample.seed), sample.scene)
        path = write_atomic(out / "pictures" / f"{sample.name}.png", encode_png(scene.pixels))
        write_atomic(out / "pictures" / f"{sample.name}.layers.png", encode_png(scene.layers))
        given = FlakesGiven(sample.params, LightParams(sample.um_per_px, None, weights))
        items.append(Item(path.name, sample.name, (path,), given))
        scenes[path.name] = scene
    stated = {item.stem: as_plain(item.given.params, item.given.light) for item in items}
    title = "Flakes in three synthetic micrographs"
    task = make_task(FlakesGiven(FlakeParams(), LightParams(weights=weights)), settings=stated, title=title)

    def conclude(run: Finished, out: Path) -> None:
        show.summarise_flakes(run, out)
        _compare_all(run, scenes)

    folder = Folder(out)
    return carry_out(Plan(task, items, conclude), folder, {"workers": 1}, begun=time.perf_counter())


def _compare_all(run: Finished, scenes: dict[str, Scene]) -> None:
    """Print how much of the truth was found and named right."""
    rows, total = [], np.zeros(3, int)
    for item, answer in run.answers():
        tally = compare(scenes[item.name], answer.tables["flakes"])
        total += tally
        rows.append((item.stem, *map(str, tally)))
    rows.append(("all", *map(str, total)))
    show.print_rows((f"truth (regions of at least {LEAST_PX} px)", "there", "found", "named right"), rows)


def compare(scene: Scene, table: Table) -> tuple[int, int, int]:
    """Count the true regions of at least `LEAST_PX`: there, found, and named right.

    Named right means that the layer number is the true one, or that the region is ambiguous between two, one of them
    true.
    """
    assert isinstance(table, FlakeTable)
    answers = pair_with_truth(table, scene, least_px=LEAST_PX)
    found = [answer for answer in answers if answer.named]
    return len(answers), len(found), sum(answer.true in answer.named for answer in found)
