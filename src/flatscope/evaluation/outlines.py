"""Twist angles on masks by another generator: outlines drawn as lines with noise, of any roughness and correlation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage import draw

from flatscope.evaluation.metrics import Interval, Score
from flatscope.evaluation.twist import DEFINED_CUT, LEAST_TOP_PX, Reading, read_mask, share, top_area_px
from flatscope.optical.bilayers import HEXAGON_CUT, Layers
from flatscope.optical.twist import TwistParams

_SIDE_PX = 512  # of a mask
_ROUGHNESS_PX = (1.0, 3.0)  # rms
_CORRELATION_PX = (1.0, 6.0)  # 1/e
_RADIUS_PX = (50.0, 199.0)  # circumradius of the lower layer
_RATIO = (0.2, 0.6)  # size of the upper layer relative to the lower one
_WHOLE = 0.25  # share of layers that are whole triangles; the others are cut anywhere up to a hexagon
_BEYOND = 0.15  # share of crystals that the frame may cut
_OFF = 0.1  # share of second layers that may reach beyond the first one, which clips them
_STEP_PX = 0.5  # between points of an outline

Float = NDArray[np.float64]


@dataclass(frozen=True)
class RoughBilayer:
    """A drawn bilayer with rough outlines.

    Parameters
    ----------
    layers
        Shape (rows, cols), uint8: 0 substrate, 1 and 2 layers.
    twist_deg
        In [0, 60].
    cuts
        Of lower and upper layer, as shares of the side.
    roughness_px, correlation_px
        Noise across both outlines: rms, and where its correlation falls to 1/e.
    """

    layers: Layers
    twist_deg: float
    cuts: tuple[float, float]
    roughness_px: float
    correlation_px: float


@dataclass(frozen=True)
class OutlineScores(Score):
    """Scores of the outlines within a range of roughness and correlation; errors in degrees.

    The columns are those of `TwistScores`: `coverage` of bilayers with a defined twist, errors of accepted angles, and
    the shares within one and two stated errors.
    """

    outlines: str
    bilayers: int
    coverage: Interval
    mean_error: Interval
    p95_error: float
    in_one_sigma: Interval
    in_two_sigma: Interval


def evaluate_outlines(
    count: int,
    *,
    seed: int = 5,
    method: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[OutlineScores]:
    """Score `measure_twist` in each quarter of the range of roughness and correlation, on triangles, and on all.

    Parameters
    ----------
    count
        How many are drawn; those with a second layer below 400 px do not count.
    seed
        Not 2, on which settings were chosen.
    method
        See `TwistParams`.
    """
    params = TwistParams(method=method)
    drawn: list[RoughBilayer] = []
    readings: list[Reading] = []
    for index in range(count):
        bilayer = draw_rough_bilayer(np.random.default_rng([seed, index]))
        if top_area_px(bilayer.layers) >= LEAST_TOP_PX:
            drawn.append(bilayer)
            readings.append(read_mask(bilayer.layers, params))
        if on_progress is not None:
            on_progress(index + 1, count)
    rough = np.array([one.roughness_px for one in drawn])
    correlated = np.array([one.correlation_px for one in drawn])
    rougher, longer = rough > np.mean(_ROUGHNESS_PX), correlated > np.mean(_CORRELATION_PX)
    groups = {
        "1-2 px rms, 1-3.5 px correlation": ~rougher & ~longer,
        "1-2 px rms, 3.5-6 px": ~rougher & longer,
        "2-3 px rms, 1-3.5 px": rougher & ~longer,
        "2-3 px rms, 3.5-6 px": rougher & longer,
        "triangles": np.array([max(one.cuts) == 0.0 for one in drawn]),
        "all": np.ones(len(drawn), bool),
    }
    return [_score(name, drawn, readings, which) for name, which in groups.items() if which.any()]


def _score(
    name: str, drawn: list[RoughBilayer], readings: list[Reading], which: NDArray[np.bool_]
) -> OutlineScores:
    defined = np.array([max(one.cuts) < DEFINED_CUT for one in drawn])
    said = np.array([reading.twist_deg for reading in readings])
    sigma = np.array([reading.sigma_deg for reading in readings])
    off = np.abs(said - [one.twist_deg for one in drawn])
    answered = which & np.isfinite(said)
    error, stated = off[answered], sigma[answered]
    return OutlineScores(
        name,
        int(which.sum()),
        share(np.isfinite(said)[which & defined]),
        share(error),
        float(np.quantile(error, 0.95)) if len(error) else float("nan"),
        share(error < stated),
        share(error < 2.0 * stated),
    )


def draw_rough_bilayer(rng: np.random.Generator) -> RoughBilayer:
    """Draw one crystal with a second layer, from triangles to near-hexagons, some cut by the frame or by each other.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same picture.
    """
    roughness, correlation = float(rng.uniform(*_ROUGHNESS_PX)), float(rng.uniform(*_CORRELATION_PX))
    radius = float(rng.uniform(*_RADIUS_PX))
    turns = rng.uniform(0.0, 120.0, 2)
    cuts = np.where(rng.random(2) < _WHOLE, 0.0, rng.uniform(0.0, HEXAGON_CUT, 2))
    margin = 0.0 if rng.random() < _BEYOND else min(radius, 0.5 * _SIDE_PX - 1.0)
    centre = rng.uniform(margin, _SIDE_PX - margin, 2)
    reach = 0.65 if rng.random() < _OFF else 0.2
    shift = rng.uniform(-reach, reach, 2) * radius
    masks = []
    for size, turn, cut, place in (
        (radius, turns[0], cuts[0], centre),
        (radius * float(rng.uniform(*_RATIO)), turns[1], cuts[1], centre + shift),
    ):
        outline = place + _draw_outline(rng, size, turn, cut, roughness, correlation)
        mask = np.zeros((_SIDE_PX, _SIDE_PX), bool)
        mask[draw.polygon(outline[:, 0], outline[:, 1], mask.shape)] = True
        masks.append(mask)
    layers = masks[0].astype(np.uint8)
    layers[masks[0] & masks[1]] = 2
    twist = float(abs((turns[1] - turns[0] + 60.0) % 120.0 - 60.0))
    return RoughBilayer(layers, twist, (float(cuts[0]), float(cuts[1])), roughness, correlation)


def _draw_outline(
    rng: np.random.Generator, radius: float, turn: float, cut: float, roughness: float, correlation: float
) -> Float:
    """A triangle with cut corners about the origin, its points moved across its edges; (row, col), shape (n, 2)."""
    angles = np.deg2rad(turn + np.array([0.0, 120.0, 240.0]))
    corners = radius * np.stack([-np.sin(angles), np.cos(angles)], axis=1)
    following = np.roll(corners, -1, axis=0)
    vertices = corners
    if cut:
        ends = [corners + cut * (following - corners), following - cut * (following - corners)]
        vertices = np.stack(ends, axis=1).reshape(-1, 2)
    edges = np.roll(vertices, -1, axis=0) - vertices
    lengths = np.hypot(*edges.T)
    begins = np.concatenate([[0.0], np.cumsum(lengths)])
    along = np.arange(0.0, begins[-1], _STEP_PX)
    edge = np.searchsorted(begins[1:-1], along, side="right")
    unit = edges[edge] / lengths[edge, None]
    points = vertices[edge] + (along - begins[edge])[:, None] * unit
    noise = _draw_noise(rng, len(along), roughness, correlation)
    return points + noise[:, None] * np.stack([unit[:, 1], -unit[:, 0]], axis=1)


def _draw_noise(rng: np.random.Generator, count: int, roughness: float, correlation: float) -> Float:
    """Noise along a closed line whose correlation falls like a Gaussian or, as often, like an exponential."""
    frequency = np.fft.rfftfreq(count, _STEP_PX)
    if rng.random() < 0.5:
        power = np.exp(-((np.pi * frequency * correlation) ** 2))
    else:
        power = 1.0 / (1.0 + (2.0 * np.pi * frequency * correlation) ** 2)
    waves = (rng.standard_normal(len(frequency)) + 1j * rng.standard_normal(len(frequency))) * np.sqrt(power)
    waves[0] = 0.0
    noise = np.fft.irfft(waves, count)
    return np.asarray(roughness / noise.std() * noise, float)
