"""`flatscope demo`: three micrographs with known truth, drawn, analysed and compared."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np

from flatscope.app import settings, show
from flatscope.app.batch import Bench, Job
from flatscope.app.flakes import work_through
from flatscope.app.outputs import RunFiles
from flatscope.evaluation.flakes import pair_with_truth
from flatscope.files.write import write_atomic
from flatscope.inference.runtime import Network
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.report.figures import encode_png
from flatscope.results import FlakeTable

LEAST_PX = 300
"""True regions below this are not asked for."""


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
        FlakeParams(material="graphene", oxide_nm=90.0),
        0.30,
    ),
    _Sample(
        "MoS2_285nm_cvd",
        2,
        SceneParams(shape=_SHAPE, material="MoS2", oxide_nm=285.0, growth="cvd", density=0.4),
        FlakeParams(material="MoS2", oxide_nm=285.0),
        0.15,
    ),
    _Sample(
        "WSe2_90nm",
        3,
        SceneParams(shape=_SHAPE, material="WSe2", oxide_nm=90.0, growth="exfoliated", density=0.6),
        FlakeParams(material="WSe2", oxide_nm=90.0),
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
    default=settings.DEFAULT_WEIGHTS,
    show_default=True,
    help="Name of shipped weights, or an .onnx file.",
)
def demo(out: Path, weights: str) -> int:
    """Draw three micrographs with known truth, analyse them, and say how much was found and named right."""
    network = Network.load(weights)
    scenes: list[Scene] = []
    jobs: list[Job] = []
    for sample in _SAMPLES:
        click.echo(f"drawing {sample.name} ...", err=True)
        scene = draw_scene(np.random.default_rng(sample.seed), sample.scene)
        path = write_atomic(out / "pictures" / f"{sample.name}.png", encode_png(scene.pixels))
        write_atomic(out / "pictures" / f"{sample.name}.layers.png", encode_png(scene.layers))
        scenes.append(scene)
        jobs.append(Job(path, path.name, sample.name, sample.params, sample.um_per_px))
    files = RunFiles(
        out=out,
        jobs=jobs,
        settings={
            sample.name: settings.as_plain(sample.params, settings.RunParams(sample.um_per_px, None, weights))
            for sample in _SAMPLES
        },
        weights=network.card.name,
        weights_sha256=network.sha256,
        command=("flatscope", *sys.argv[1:]),
        title="Flakes in three synthetic micrographs",
    )
    code = work_through(files, replace(Bench(out, weights), keep_tables=True), network=network, workers=1)
    show.print_summary(files)
    rows, total = [], np.zeros(3, int)
    for sample, scene, answer in zip(_SAMPLES, scenes, files.ordered, strict=True):
        tally = compare(scene, answer.table)
        total += tally
        rows.append((sample.name, *map(str, tally)))
    rows.append(("all", *map(str, total)))
    show.print_rows((f"truth (regions of at least {LEAST_PX} px)", "there", "found", "named right"), rows)
    return code


def compare(scene: Scene, table: FlakeTable | None) -> tuple[int, int, int]:
    """Count the true regions of at least `LEAST_PX`: there, found, and named right.

    Named right means that the layer number is the true one, or that the region is ambiguous between two, one of them
    true.
    """
    if table is None:
        return 0, 0, 0
    answers = pair_with_truth(table, scene, least_px=LEAST_PX)
    found = [answer for answer in answers if answer.named]
    return len(answers), len(found), sum(answer.true in answer.named for answer in found)
