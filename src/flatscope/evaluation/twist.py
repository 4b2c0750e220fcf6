"""Twist angles against the truth of artificial bilayers, beside simpler ways and the bound that their edges allow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage

from flatscope.evaluation.metrics import Interval, Score, bootstrap
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.bilayers import (
    PUBLISHED,
    RAGGED,
    Bilayer,
    BilayerParams,
    Layers,
    draw_bilayer,
    draw_sample,
)
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.optical.twist import TwistParams, measure_twist

MICROGRAPHS = BilayerParams(
    shape=(768, 768), radius_px=(50.0, 150.0), ratio=(0.25, 0.6), cut=(0.0, 0.25), cut_share=1.0, bulge=0.01
)
"""Crystals of a sample, before they are photographed."""
MIXES: dict[str, BilayerParams] = {"clean": PUBLISHED, "ragged": RAGGED, "micrographs": MICROGRAPHS}
"""The published generator's shapes with exact edges, masks as a network makes them, and photographs of samples."""
DEFINED_CUT = 0.27
"""Crystals with corners cut at more of the side look the same every 60°."""
LEAST_TOP_PX = 400
"""Smaller second layers do not count."""
_A_PICTURE = 6  # crystals tried in each micrograph
_OXIDE_NM = 285.0  # of the micrographs
_CORRELATION = np.sqrt(np.pi)  # integral of a Gaussian correlation over its length of 1/e


@dataclass(frozen=True)
class Reading:
    """What a method says of one bilayer, in degrees; NaN where it does not answer."""

    twist_deg: float = np.nan
    folded_deg: float = np.nan
    sigma_deg: float = np.nan


@dataclass(frozen=True)
class TwistScores(Score):
    """Scores on artificial bilayers, errors in degrees.

    `coverage` is the share of bilayers with a defined twist (corners of both layers cut at less than 0.27 of the side,
    second layer of 400 px or more) that get an angle; `mean_error`, `p95_error` and `max_error` are those of all angles
    that are accepted; `in_one_sigma` and `in_two_sigma` the shares within the stated error. `folded_error` is the mean
    over all angles folded to [0, 30]°, of hexagonal crystals too. `bound` is the mean error that the roughness and
    length of the edges allow if none is hidden (unknown for micrographs). `constant_error` always says 30°;
    `moment_error` compares the third moments of both layers, whatever they look like.
    """

    coverage: Interval
    mean_error: Interval
    p95_error: float
    max_error: float
    in_one_sigma: Interval
    in_two_sigma: Interval
    folded_error: float
    bound: float
    constant_error: float
    moment_error: float
    bilayers: int
    a_second: float


def evaluate_twist(
    mix: str,
    count: int,
    *,
    seed: int = 5,
    method: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> TwistScores:
    """Score `measure_twist` on artificial bilayers.

    Parameters
    ----------
    mix
        One of `MIXES`.
    count
        How many are drawn, about six in each micrograph; those with a second layer below 400 px do not count.
    seed
        Not 2 or 4, on which settings were chosen.
    method
        How a layer's orientation is measured, see `TwistParams`.
    """
    read = _read_micrographs if mix == "micrographs" else _read_masks
    truths: list[Bilayer] = []
    readings: list[Reading] = []
    spent = 0.0
    for found, seconds in read(mix, count, seed=seed, params=TwistParams(method=method)):
        for truth, reading in found:
            truths.append(truth)
            readings.append(reading)
        spent += seconds
        if on_progress is not None:
            on_progress(min(len(truths), count), count)
    defined = np.array([max(truth.cuts) < DEFINED_CUT for truth in truths])
    said = np.array([[one.twist_deg, one.folded_deg, one.sigma_deg] for one in readings]).reshape(-1, 3)
    true = np.array([truth.twist_deg for truth in truths])
    answered = np.isfinite(said[:, 0])
    error, sigma = np.abs(said[:, 0] - true)[answered], said[answered, 2]
    clear = [truth for truth, counts in zip(truths, defined, strict=True) if counts]
    return TwistScores(
        coverage=share(answered[defined]),
        mean_error=share(error),
        p95_error=float(np.quantile(error, 0.95)) if len(error) else float("nan"),
        max_error=float(error.max(initial=0.0)),
        in_one_sigma=share(error < sigma),
        in_two_sigma=share(error < 2.0 * sigma),
        folded_error=float(np.nanmean(np.abs(said[:, 1] - fold(true)))),
        bound=float("nan")
        if mix == "micrographs"
        else float(np.mean([_bound_deg(truth, MIXES[mix]) for truth in clear])),
        constant_error=float(np.mean([abs(truth.twist_deg - 30.0) for truth in clear])),
        moment_error=float(
            np.mean([abs(read_by_moments(truth.layers).twist_deg - truth.twist_deg) for truth in clear])
        ),
        bilayers=len(truths),
        a_second=len(truths) / max(spent, 1e-9),
    )


def fold(twist_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fold angles to [0, 30]°: θ and 60° − θ become the same."""
    return np.minimum(twist_deg, 60.0 - twist_deg)


def share(values: NDArray[Any]) -> Interval:
    """Mean of some values with its interval."""
    return bootstrap(np.stack([np.ones(len(values)), np.asarray(values, float)], 1), _ratio)


def _ratio(sums: NDArray[np.float64]) -> float:
    return float(sums[1] / sums[0]) if sums[0] else float("nan")


def top_area_px(layers: Layers) -> int:
    """Area of a drawn second layer, without single wrong pixels elsewhere in the picture."""
    smooth = Image.fromarray(layers).filter(ImageFilter.MedianFilter(3))
    return int(((np.asarray(smooth) == 2) & (layers == 2)).sum())


def read_mask(layers: Layers, params: TwistParams) -> Reading:
    """What flatscope says of the largest second layer."""
    return _largest(measure_twist(layers, params).frame)


def _largest(frame: pd.DataFrame) -> Reading:
    if len(frame) == 0:
        return Reading()
    row = frame.loc[frame["area_2l_px"].idxmax()]
    return Reading(float(row["twist_deg"]), float(row["twist_fold30_deg"]), float(row["sigma_deg"]))


def read_by_moments(layers: Layers) -> Reading:
    """Difference of the orientations by third moments, which in a triangle point to a corner."""
    turns = []
    for least in (1, 2):
        row, col = np.nonzero(ndimage.median_filter(layers, 3) >= least)
        if len(row) == 0:
            return Reading(30.0, 15.0)
        z = (col - col.mean()) - 1j * (row - row.mean())
        turns.append(float(np.rad2deg(np.angle((z**3).sum())) / 3.0))
    twist = abs((turns[1] - turns[0] + 60.0) % 120.0 - 60.0)
    return Reading(twist, min(twist, 60.0 - twist))


Found = tuple[list[tuple[Bilayer, Reading]], float]
"""Bilayers of a picture with the answer for each, and the seconds it took."""


def _read_masks(mix: str, count: int, *, seed: int, params: TwistParams) -> Iterator[Found]:
    for index in range(count):
        drawn = draw_bilayer(np.random.default_rng([seed, index]), MIXES[mix])
        if top_area_px(drawn.layers) < LEAST_TOP_PX:
            continue
        begun = time.perf_counter()
        reading = read_mask(drawn.layers, params)
        yield [(drawn, reading)], time.perf_counter() - begun


def _read_micrographs(mix: str, count: int, *, seed: int, params: TwistParams) -> Iterator[Found]:
    finder = Network.load("flakes")
    flakes = FlakeParams("MoS2", oxide_nm=_OXIDE_NM, min_area_px=LEAST_TOP_PX // 2)
    for index in range(-(-count // _A_PICTURE)):
        rng = np.random.default_rng([seed, index])
        crystals, drawn = draw_sample(rng, MIXES[mix], count=_A_PICTURE)
        plan = SceneParams(shape=crystals.shape, material="MoS2", oxide_nm=_OXIDE_NM, clean=True)
        scene = draw_scene(rng, plan, crystals=crystals)
        begun = time.perf_counter()
        table = find_flakes(Micrograph(scene.pixels, source=f"scene {index}"), flakes, network=finder)
        frame = measure_twist(table, params).frame
        seconds = time.perf_counter() - begun
        found = []
        for bilayer in drawn:
            if top_area_px(bilayer.layers) < LEAST_TOP_PX:
                continue
            row, col = ndimage.center_of_mass(bilayer.layers == 2)
            reach = 0.5 * np.sqrt((bilayer.layers == 2).sum())
            near = frame[np.hypot(frame["row_px"] - row, frame["col_px"] - col) < reach]
            found.append((bilayer, _largest(near)))
        yield found, seconds


def _bound_deg(drawn: Bilayer, params: BilayerParams) -> float:
    """Mean error of the twist if every edge were seen whole and fitted by least squares."""
    variance = 0.0
    for least, cut in zip((1, 2), drawn.cuts, strict=True):
        side = np.sqrt((drawn.layers >= least).sum() / (np.sqrt(3.0) / 4.0 * (1.0 - 3.0 * cut**2)))
        lengths = side * np.array([1.0 - 2.0 * cut] * 3 + [cut] * 3)
        noise = params.roughness_px**2 * params.grain_px * _CORRELATION
        variance += noise / float((lengths**3 / 12.0).sum())
    return float(np.rad2deg(np.sqrt(variance)) * np.sqrt(2.0 / np.pi))
