"""Yang et al. 2024, twist angles: the published rule and the published regressor beside flatscope.

References
----------
Nano Lett. 2024, doi:10.1021/acs.nanolett.3c04815. Their generator, rule and network are rebuilt from their description;
what it leaves open stands at the constants below. Labels there are folded to [0, 30]°, so all errors here are of folded
angles. The drawn angles are exact.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatscope.evaluation.metrics import Interval
from flatscope.evaluation.papers import Answer, Progress, part_of
from flatscope.evaluation.twist import (
    LEAST_TOP_PX,
    MIXES,
    Reading,
    fold,
    read_by_moments,
    read_mask,
    share,
    top_area_px,
)
from flatscope.optical.bilayers import Bilayer, BilayerParams, Layers, draw_bilayer
from flatscope.optical.orientation import METHODS
from flatscope.optical.twist import TwistParams
from flatscope.parallel import map_in_order, worker_processes
from flatscope.report.study import draw_lines

DOI = "10.1021/acs.nanolett.3c04815"
RULE = "enclosing triangles (published rule)"
REGRESSOR = "ResNet-18 (published)"
TESTED = ("clean", "ragged")
"""The published generator's shapes, and masks as a network makes them."""
_TEST_SEED = 5
_TRAINING_SEED = 2024
_LEAST_FILLED = (
    0.9  # smallest share of its enclosing triangle that a layer fills, else the rule does not answer
)
_LEAST_EQUAL = (
    0.9  # smallest ratio of that triangle's shortest side to its longest, else the rule does not answer
)
_LEARNING_RATE = 1e-3
_BATCH = 32  # masks a step
_PUBLISHED_PX = 512  # side of the published masks
_RUNS = 9  # of which the median time is taken
_WATCHED = 0.01  # masks that a point of the learning curve is measured on, as a share of those trained on
_MEASUREMENTS = 60  # points of a learning curve
_TIMED = 32  # masks on which flatscope is timed, or all that are tested
_OURS = {name: partial(read_mask, params=TwistParams(method=name)) for name in METHODS}


@dataclass(frozen=True)
class Size:
    """How much of the protocol is run.

    Parameters
    ----------
    side_px
        The regressor sees masks scaled to this.
    pictures
        Masks of each mix that it is trained on.
    steps
        Of 32 masks each.
    tested
        Bilayers of each mix.
    """

    side_px: int
    pictures: int
    steps: int
    tested: int


SIZES = {
    "quick": Size(32, 40, 2, 12),
    # The published number of masks and steps, at a quarter of their side.
    "cpu": Size(128, 50_000, 47_000, 500),
    "full": Size(512, 50000, 47000, 1000),
}


@dataclass(frozen=True)
class Line:
    """What one method reaches on one mix; errors of folded angles in degrees.

    `coverage` is the share of the bilayers (second layer of 400 px or more) that it answers for, `in_one_sigma` and
    `in_two_sigma` the shares of its errors within what it states, None if it states none. `a_second` counts masks of
    512×512 px on two cores: those of the regressor one after the other, with two threads, those of flatscope in two
    processes, as `flatscope twist` does; the others, whose time is negligible, on one. `curve` is the mean error
    of the surest answers against their share of all bilayers.
    """

    mix: str
    method: str
    coverage: Interval
    mean_error: Interval
    p95_error: float
    max_error: float
    in_one_sigma: Interval | None
    in_two_sigma: Interval | None
    a_second: float
    curve: tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Study:
    """Lines of every method on every mix."""

    size: str
    lines: list[Line]


def run(
    size: str, *, setting: str = "across", out: Path | None = None, on_progress: Progress | None = None
) -> Study:
    """Train the regressor, and measure every method on the same masks.

    Parameters
    ----------
    size
        One of `SIZES`.
    setting
        "published" is clean masks alone.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    on_progress
        Called with (steps done, steps in all).
    """
    chosen = SIZES[size]
    lines = []
    mixes = TESTED[:1] if setting == "published" else TESTED
    for number, mix in enumerate(mixes):
        net = _train(
            MIXES[mix],
            chosen,
            checkpoint=None if out is None else out / f"{size}-{mix}.pt",
            on_progress=part_of(on_progress, number=number, parts=len(mixes), steps=chosen.steps),
        )
        methods: dict[str, Callable[[Layers], Reading]] = {
            "always 15°": lambda _: Reading(folded_deg=15.0),
            "third moments": read_by_moments,
            RULE: read_by_triangles,
            REGRESSOR: lambda layers, net=net: read_by_regressor(layers, net, chosen.side_px),  # type: ignore[misc]
            **{f"flatscope, {name}": read for name, read in _OURS.items()},
        }
        made = _compare(mix, chosen.tested, methods)
        speeds = {REGRESSOR: _pictures_a_second(net), **_ours_a_second(mix, min(_TIMED, chosen.tested))}
        lines += [replace(line, a_second=speeds.get(line.method, line.a_second)) for line in made]
    return Study(size, lines)


def present(study: Study) -> Answer:
    """The study's table, and errors against the share that is answered."""
    rows = [
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
        for line in study.lines
    ]
    curves = {
        f"{mix} masks": {line.method: line.curve for line in study.lines if line.mix == mix}
        for mix in dict.fromkeys(line.mix for line in study.lines)
    }
    figures = {
        "Mean error of the surest answers against their share of all bilayers": draw_lines(
            curves, labels=("share answered", "mean error of the folded angle, °")
        )
    }
    notes = (
        f"Size {study.size}. Errors of angles folded to [0, 30]°, as the paper's labels are; drawn angles are exact. "
        "Clean: the published generator's shapes; ragged: outlines 2 px rough, holes, wrong pixels, cut and clipped. "
        "Only second layers of 400 px or more. Brackets: 95 % interval by bilayer.",
        f"The ResNet-18 is trained on such masks scaled to {SIZES[study.size].side_px} px; its speed is the one at "
        "512 px, as published.",
    )
    numbers = [{key: value for key, value in asdict(line).items() if key != "curve"} for line in study.lines]
    return Answer(f"Yang et al. 2024, twist angles (doi:{DOI})", rows, numbers, figures, notes)


def read_by_triangles(layers: Layers) -> Reading:
    """The published rule: the smallest triangle around each layer, and the turn between their left-most sides."""
    import cv2

    sides = []
    for least in (1, 2):
        mask = (layers >= least).astype(np.uint8)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        if not outlines:
            return Reading()
        outline = max(outlines, key=cv2.contourArea)
        if len(outline) < 3:
            return Reading()
        area, corners = cv2.minEnclosingTriangle(outline)
        if corners is None:
            return Reading()
        corners = corners.reshape(3, 2).astype(float)
        edges = np.roll(corners, -1, axis=0) - corners
        lengths = np.hypot(*edges.T)
        filled = cv2.contourArea(outline) / max(area, 1e-9)
        if filled < _LEAST_FILLED or lengths.min() < _LEAST_EQUAL * lengths.max():
            return Reading()
        leftmost = int((corners + 0.5 * edges)[:, 0].argmin())
        sides.append(float(np.rad2deg(np.arctan2(edges[leftmost, 1], edges[leftmost, 0]))))
    turn = (sides[1] - sides[0]) % 60.0
    return Reading(folded_deg=min(turn, 60.0 - turn))


def read_by_regressor(layers: Layers, net: Any, side_px: int) -> Reading:
    """The trained network's answer."""
    from flatscope.training.supervised import answer, to_tensor

    x = to_tensor(_scale(layers, side_px)[None]).numpy()
    return Reading(folded_deg=float(answer(net, x)[0, 0]))


def _train(
    params: BilayerParams,
    size: Size,
    *,
    checkpoint: Path | None,
    on_progress: Progress | None,
) -> Any:
    from flatscope.training import supervised
    from flatscope.training.curve import LEAST_STEPS, LearningCurve
    from flatscope.training.nets.resnet import ResNet18

    def draw() -> dict[str, NDArray[Any]]:
        count = size.pictures + max(round(_WATCHED * size.pictures), 1)
        jobs = [(params, size.side_px, index) for index in range(count)]
        made = list(map_in_order(_draw, jobs, workers=1))
        return {
            "pictures": np.stack([picture for picture, _ in made]),
            "angles": np.array([angle for _, angle in made], np.float32),
        }

    drawn = draw() if checkpoint is None else supervised.draw_or_load(checkpoint.with_suffix(".npz"), draw)
    pictures, watched = np.split(drawn["pictures"], [size.pictures])
    angles, true = np.split(drawn["angles"], [size.pictures])

    def score(net: Any) -> dict[str, float]:
        x = supervised.to_tensor(watched).split(_BATCH)
        error = abs(np.concatenate([supervised.answer(net, part.numpy())[:, 0] for part in x]) - true)
        return {"mean_error_deg": float(np.mean(error)), "p95_error_deg": float(np.quantile(error, 0.95))}

    plan = supervised.Plan(
        lr=_LEARNING_RATE, steps=size.steps, batch=_BATCH, schedule="poly", warmup=size.steps // 20
    )
    return supervised.fit(
        supervised.seeded(ResNet18, seed=0, channels=1),
        pictures,
        angles,
        plan,
        augment=_turn,
        checkpoint=None
        if checkpoint is None
        else LearningCurve(checkpoint, score, every=max(size.steps // _MEASUREMENTS, LEAST_STEPS)),
        on_progress=on_progress,
    )


def _draw(job: tuple[BilayerParams, int, int]) -> tuple[NDArray[np.uint8], float]:
    params, side, index = job
    drawn = draw_bilayer(np.random.default_rng([_TRAINING_SEED, index]), params)
    return _scale(drawn.layers, side), float(fold(np.array(drawn.twist_deg)))


def _turn(
    rng: np.random.Generator, picture: NDArray[np.uint8], angle: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A folded twist is the same after any quarter turn and in the mirror."""
    turned = np.rot90(picture, int(rng.integers(4)))
    return (turned[:, ::-1] if rng.random() < 0.5 else turned), angle


def _scale(layers: Layers, side: int) -> NDArray[np.uint8]:
    """The mask as a gray picture (side, side, 1)."""
    picture = Image.fromarray(layers * np.uint8(127)).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(picture)[..., None]


def _compare(mix: str, count: int, methods: dict[str, Callable[[Layers], Reading]]) -> list[Line]:
    """Run every method on every bilayer in turn, so that all meet the same load of the machine."""
    drawn: list[Bilayer] = []
    readings: dict[str, list[Reading]] = {name: [] for name in methods}
    spent = dict.fromkeys(methods, 0.0)
    for index in range(count):
        bilayer = draw_bilayer(np.random.default_rng([_TEST_SEED, index]), MIXES[mix])
        if top_area_px(bilayer.layers) < LEAST_TOP_PX:
            continue
        drawn.append(bilayer)
        for name, method in methods.items():
            begun = time.perf_counter()
            readings[name].append(method(bilayer.layers))
            spent[name] += time.perf_counter() - begun
    true = fold(np.array([bilayer.twist_deg for bilayer in drawn]))
    return [_judge(mix, name, true, readings[name], len(drawn) / spent[name]) for name in methods]


def _pictures_a_second(net: Any) -> float:
    """Of the regressor at the published size, 512×512 px, whatever it was trained at, with two threads; median of some
    runs."""
    from flatscope.training.supervised import answer, threads

    x = np.zeros((1, 1, _PUBLISHED_PX, _PUBLISHED_PX), np.float32)
    seconds = []
    with threads(2):
        for _ in range(_RUNS):
            begun = time.perf_counter()
            answer(net, x)
            seconds.append(time.perf_counter() - begun)
    return 1.0 / float(np.median(seconds))


def _ours_a_second(mix: str, count: int) -> dict[str, float]:
    """Of flatscope's methods with two processes that have started already."""
    layers = [
        draw_bilayer(np.random.default_rng([_TEST_SEED, index]), MIXES[mix]).layers for index in range(count)
    ]
    speeds = {}
    with worker_processes(2) as pool:
        for name, read in _OURS.items():
            list(pool.map(read, layers[:4]))
            begun = time.perf_counter()
            list(pool.map(read, layers, chunksize=8))
            speeds[f"flatscope, {name}"] = count / (time.perf_counter() - begun)
    return speeds


def _judge(
    mix: str, method: str, true: NDArray[np.float64], readings: list[Reading], a_second: float
) -> Line:
    said = np.array([(one.folded_deg, one.sigma_deg) for one in readings])
    answered = np.isfinite(said[:, 0])
    error, sigma = np.abs(said[:, 0] - true)[answered], said[answered, 1]
    stated = bool(np.isfinite(sigma).any())
    # Without stated errors any part of the answers is as good as all of them.
    order = error[np.argsort(sigma)] if stated else np.full_like(error, error.mean() if len(error) else 0.0)
    number = np.arange(1, len(order) + 1)
    return Line(
        mix,
        method,
        share(answered),
        share(error),
        float(np.quantile(error, 0.95)) if len(error) else float("nan"),
        float(error.max(initial=0.0)),
        share(error < sigma) if stated else None,
        share(error < 2.0 * sigma) if stated else None,
        a_second,
        (number / len(readings), np.cumsum(order) / number),
    )
