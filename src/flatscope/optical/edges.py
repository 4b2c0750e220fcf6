"""The straight edges of a crystal's outline: their common direction, and how sure it is.

Edges lie in six directions 60° apart. They are fitted together, each edge free in its place. The error of the direction
follows from the outline itself: noise that is correlated over a few pixels turns an edge more than noise of the same
size from pixel to pixel. So the spectrum of the outline's distance from its edges is measured, roughness and
correlation length together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from skimage.measure import find_contours

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Edge = tuple[Float, Float]
"""Places along an edge and distances from it, px, in the order of the outline."""

_LEAST_EDGES = 3
"""Fewest edges that give a direction."""
_SMOOTH_PX = 2.0
"""Outlines are followed on masks blurred by this much (1 sigma), which moves no straight edge."""
_WINDOW_SHARE = 0.045
"""The direction of an outline is taken over this share of its length to either side …"""
_LEAST_WINDOW_PX = 4.0
"""… and over at least this length."""
_ALIGNED_DEG = 14.0
"""A straight piece deviates by less than this from one of six directions …"""
_LEAST_RUN_PX = 6
"""… and is at least this long."""
_FACING_DEG = 70.0
"""A point belongs to the nearest edge if its normal deviates by less than this from the edge's …"""
_TRIM_PX = 2.0
"""… and the next edge is farther by more than this."""
_STARTS_DEG = (0.0, 10.0, -10.0, 20.0, -20.0, 30.0)
"""First guesses of the direction, about the mean of the outline's."""
_ROUNDS = 8
"""Improvements of each guess."""
_SAME_DEG = 0.5
"""Fits closer than this are one."""
_RIVAL_PX = 6.0
"""Pixels of an outline that count as one when two fits are compared."""
_NOWHERE_PX = 1e6
"""Distance of an edge that is not there."""
_FARTHEST_PX = 6.0
"""Largest distance that counts against a fit."""
_LEAST_VARIANCE = 0.003
"""Variance of a point of an outline that follows pixels, px²; and its spectrum at least, px³."""
_OUTLIER_SIGMA = 3.5
"""An edge belongs to something else if its own direction deviates by more than this many errors …"""
_OUTLIER_DEG = 0.7
"""… where this is added to its error."""
_MOST_LAG_PX = 6
"""Residuals along an edge are correlated over at most this many pixels."""
_ROUGH_PX2 = 0.25
"""An outline that scatters by more than this about its edges is rough (variance in px²)."""
_SIGMA_SCALE_ROUGH = 1.15
"""Factor on the error of a rough outline; found on drawn bilayers (`evaluate twist --mix outlines`, seed 2, and
`--mix ragged`, seed 4), as the next."""
_SIGMA_SCALE_SMOOTH = 0.68
"""The same of a smooth outline: steps of pixels along an edge repeat, and so err less than noise would."""
_CORRELATIONS_PX = np.array([0.5, 1.5, 3.0, 4.5, 6.5, 9.0, 13.0])
"""Correlation lengths of an outline's noise (1/e) among which its spectrum decides."""
_HIGHEST_PER_PX = 0.12
"""Highest frequency along an outline that is compared: beyond it the blur leaves nothing, and pixels begin."""


@dataclass(frozen=True)
class EdgeFit:
    """Lines in six directions through an outline.

    Parameters
    ----------
    centre_deg
        Direction of the normal of edge 0, degrees counter-clockwise as displayed.
    sigma_deg
        Its 1-sigma error.
    scatter_px2
        Variance of the outline about its edges.
    places_px
        Distance of each edge from the outline's centre, shape (6,); NaN where no edge is.
    lengths_px
        Shape (6,); 0 where no edge is, or one that points elsewhere.
    kinds
        Which edge each point of the outline lies on, −1 if on none.
    middle_px
        The outline's centre: to the right of the mask's first pixel, and up.
    """

    centre_deg: float
    sigma_deg: float
    scatter_px2: float
    places_px: Float
    lengths_px: Float
    kinds: NDArray[np.int64]
    middle_px: tuple[float, float] = (0.0, 0.0)


def fit_edges(mask: Mask, hidden: Mask, *, near_deg: float | None = None) -> EdgeFit | None:
    """Fit the straight pieces of a crystal's outline; None with fewer than three of them.

    Parameters
    ----------
    mask
        The crystal, shape (rows, cols).
    hidden
        Where its outline is not its own: cut by the picture or another crystal. Same shape.
    near_deg
        Rough direction of an edge's normal modulo 60°, if known: saves the search.
    """
    outline = _trace_outline(mask)
    if outline is None:
        return None
    tangent = _directions(outline)
    row, col = np.rint(-outline[:, 1]).astype(int), np.rint(outline[:, 0]).astype(int)
    inside = (row >= 0) & (row < mask.shape[0]) & (col >= 0) & (col < mask.shape[1])
    own = inside.copy()
    own[inside] = ~hidden[row[inside], col[inside]]
    if own.sum() < 3 * _LEAST_RUN_PX:
        return None
    normal = tangent - 90.0
    # About its centre, so that turning the edges does not move them.
    right, up = outline.mean(0).tolist()
    outline = outline - (right, up)
    if near_deg is None:
        # Rough outlines of small crystals mislead the first guess: the best of several counts.
        phase = np.exp(6j * np.deg2rad(normal[own])).sum()
        guesses = [float(np.rad2deg(np.angle(phase)) / 6.0) + start for start in _STARTS_DEG]
    else:
        guesses = [near_deg]
    fits = [_fit_from(outline, normal, own, guess) for guess in guesses]
    found = [pair for pair in fits if pair is not None]
    if not found:
        return None
    _, fit = min(found, key=lambda pair: pair[0])
    if (fit.lengths_px > 0).sum() < _LEAST_EDGES:
        return None
    sigma = _SIGMA_SCALE_SMOOTH if fit.scatter_px2 <= _ROUGH_PX2 else _SIGMA_SCALE_ROUGH
    edges = _cut_edges(outline, fit.kinds, fit.centre_deg)
    sigma *= measure_error([edge for kind, edge in edges.items() if fit.lengths_px[kind] > 0])
    sigma = float(np.hypot(sigma, _rival_deg(found, int(own.sum()))))
    return replace(fit, sigma_deg=sigma, middle_px=(right, up))


def measure_error(edges: Sequence[Edge]) -> float:
    """Error of the common direction of some edges, from the spectrum of their noise.

    The power of the distances from the edges at low frequencies is compared with noise of several correlation lengths
    (blurred as the outline is). What turns an edge is the power at half a wave along it.

    Parameters
    ----------
    edges
        Of one outline, at least one with three points.

    Returns
    -------
    1-sigma error, degrees.

    References
    ----------
    The likelihood of a spectrum: Whittle, J. R. Stat. Soc. B 15, 125 (1953), doi:10.1111/j.2517-6161.1953.tb00131.x
    """
    # In order along the edge: an outline may begin in its middle.
    orders = [np.argsort(along) for along, _ in edges]
    centred = [
        ((along - along.mean())[order], (across - across.mean())[order])
        for (along, across), order in zip(edges, orders, strict=True)
    ]
    spreads = np.array([along @ along for along, _ in centred])
    slope = sum(along @ across for along, across in centred) / spreads.sum()
    power, frequency = [], []
    for along, across in centred:
        waves = fft.dct(across - slope * along, norm="ortho")
        count = np.arange(1, min(len(waves), max(int(2 * len(waves) * _HIGHEST_PER_PX), 1) + 1))
        power.append(waves[count] ** 2)
        frequency.append(count / (2 * len(waves)))
    measured, at = np.concatenate(power), np.concatenate(frequency)
    freedom = max(len(measured) - 1, 1)
    lowest = np.array([0.5 / len(along) for along, _ in centred])
    likelihood, variances = [], []
    for length in _CORRELATIONS_PX:
        shape = _draw_spectrum(at, length)
        level = max(float((measured / shape).sum()) / freedom, _LEAST_VARIANCE)
        likelihood.append(-0.5 * (freedom * np.log(level) + np.log(shape).sum()))
        # The mean of a level that is known from this many waves only.
        level *= freedom / max(freedom - 2, 1)
        variances.append(level * _draw_spectrum(lowest, length) / spreads)
    weight = np.exp(np.array(likelihood) - max(likelihood))
    variance = weight @ np.array(variances) / weight.sum()
    return float(np.rad2deg(1.0 / np.sqrt((1.0 / variance).sum())))


def _draw_spectrum(per_px: Float, length_px: float) -> Float:
    """Spectrum of noise of a correlation length, 1 at frequency 0: between Gaussian and exponential, then blurred."""
    turns = 2.0 * np.pi * per_px
    noise = 0.5 * np.exp(-((0.5 * turns * length_px) ** 2)) + 0.5 / (1.0 + (turns * length_px) ** 2)
    return np.asarray(noise * np.exp(-((turns * _SMOOTH_PX) ** 2)), float)


def _cut_edges(outline: Float, kinds: NDArray[np.int64], centre_deg: float) -> dict[int, Edge]:
    """Each edge with enough points, by its number."""
    edges = {}
    for kind in range(6):
        points = outline[kinds == kind]
        if len(points) >= _LEAST_RUN_PX:
            normal = np.deg2rad(centre_deg + 60.0 * kind)
            along, across = (
                np.array([-np.sin(normal), np.cos(normal)]),
                np.array([np.cos(normal), np.sin(normal)]),
            )
            edges[kind] = points @ along, points @ across
    return edges


def _rival_deg(fits: list[tuple[float, EdgeFit]], points: int) -> float:
    """How far fits from other first guesses spread the direction, each weighted by its likelihood."""
    fits = sorted(fits, key=lambda pair: pair[0])
    least, best = fits[0]
    total = spread = 0.0
    seen: list[float] = []
    for misfit, fit in fits:
        off = (fit.centre_deg - best.centre_deg + 30.0) % 60.0 - 30.0
        if all(abs(off - other) > _SAME_DEG for other in seen):
            seen.append(off)
            weight = np.exp(-0.5 * points / _RIVAL_PX * (misfit - least) / max(least, _LEAST_VARIANCE))
            total += weight
            spread += weight * off**2
    return float(np.sqrt(spread / total))


def _fit_from(
    outline: Float, normal: Float, own: NDArray[np.bool_], centre: float
) -> tuple[float, EdgeFit] | None:
    """Edges fitted from a first guess of their direction, and how badly: the mean square distance from the outline."""
    fit = _fit_lines(outline, _straight_runs(normal - centre, own), centre)
    misfit, before = np.inf, None
    for _ in range(_ROUNDS):
        if fit is None:
            return None
        kinds, distance = _assign(outline, normal - fit.centre_deg, own, fit)
        misfit = float((np.minimum(distance[own], _FARTHEST_PX) ** 2).mean())
        if before is not None and np.array_equal(kinds, before):
            break
        before = kinds
        again = _fit_lines(outline, kinds, fit.centre_deg)
        if again is None:
            break
        fit = again
    return None if fit is None else (misfit, replace(fit, kinds=kinds))


def _trace_outline(mask: Mask) -> Float | None:
    """The longest outline of a mask, a point a pixel, anticlockwise; x right and y up, shape (n, 2)."""
    padded = np.pad(ndimage.binary_fill_holes(mask), 8).astype(np.float32)
    contours = find_contours(ndimage.gaussian_filter(padded, _SMOOTH_PX), 0.5)
    if not contours:
        return None
    curve = max(contours, key=len) - 8.0
    points = np.stack([curve[:, 1], -curve[:, 0]], axis=1)
    step = np.hypot(*np.diff(points, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(step)])
    count = int(along[-1])
    if count < 4 * _LEAST_RUN_PX:
        return None
    places = np.arange(count) * along[-1] / count
    even = np.stack([np.interp(places, along, points[:, axis]) for axis in (0, 1)], axis=1)
    following = np.roll(even, -1, axis=0)
    area = float((even[:, 0] * following[:, 1] - even[:, 1] * following[:, 0]).sum())
    return even if area > 0 else even[::-1]


def _directions(outline: Float) -> Float:
    """Direction of travel at every point in degrees, over a window of some points to either side."""
    window = round(max(_WINDOW_SHARE * len(outline), _LEAST_WINDOW_PX))
    ahead, behind = np.roll(outline, -window, axis=0), np.roll(outline, window, axis=0)
    # Means of three points: a chord's ends should not hang on single pixels.
    change = ndimage.uniform_filter1d(ahead, 3, axis=0, mode="wrap") - ndimage.uniform_filter1d(
        behind, 3, axis=0, mode="wrap"
    )
    return np.rad2deg(np.arctan2(change[:, 1], change[:, 0]))


def _straight_runs(normal: Float, own: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which of six edges (0 to 5) each point lies on, −1 if on none: long runs of points whose normals agree."""
    kind = np.rint(normal / 60.0).astype(int)
    good = (np.abs(normal - 60.0 * kind) < _ALIGNED_DEG) & own
    state = np.where(good, kind % 6, -1)
    changes = np.flatnonzero(state != np.roll(state, 1))
    for start, end in zip(changes, [*changes[1:], *(changes[:1] + len(state))], strict=True):
        if end - start < _LEAST_RUN_PX:
            state[np.arange(start, end) % len(state)] = -1
    return state


def _fit_lines(outline: Float, kinds: NDArray[np.int64], centre: float) -> EdgeFit | None:
    """One direction for all edges, by least squares, each edge free in its place."""
    places, lengths = np.full(6, np.nan), np.zeros(6)
    slopes, spreads, residuals = np.zeros(6), np.zeros(6), {}
    for kind, (t, height) in _cut_edges(outline, kinds, centre).items():
        places[kind], lengths[kind] = float(height.mean()), len(t)
        t, height = t - t.mean(), height - height.mean()
        spreads[kind] = float((t * t).sum())
        slopes[kind] = float((t * height).sum() / spreads[kind])
        residuals[kind] = height - slopes[kind] * t
    found = lengths > 0
    if not found.any():
        return None
    squares = sum(float((rest * rest).sum()) for rest in residuals.values())
    # Each edge takes a place and a slope, each worth as many points as are correlated.
    correlated = _correlation_px(list(residuals.values()))
    freedom = max(lengths.sum() - 2.0 * correlated * found.sum(), 0.25 * lengths.sum())
    per_slope = max(squares / freedom, _LEAST_VARIANCE) * correlated
    # Edges that point elsewhere by far more than their error belong to tears or neighbours.
    weight = spreads.copy()
    for _ in range(3):
        mean = float((weight * slopes).sum() / weight.sum())
        allowed = np.hypot(np.sqrt(per_slope / np.maximum(spreads, 1e-9)), np.deg2rad(_OUTLIER_DEG))
        agree = found & (np.abs(slopes - mean) < _OUTLIER_SIGMA * allowed)
        if not agree.any():
            break
        weight = np.where(agree, spreads, 0.0)
    lengths = np.where(weight > 0, lengths, 0.0)
    # A slope upwards along an edge turns its normal clockwise.
    turned = centre - float(np.rad2deg(np.arctan(mean)))
    return EdgeFit(turned, np.nan, squares / freedom, places, lengths, kinds)


def _assign(
    outline: Float, normal: Float, own: NDArray[np.bool_], fit: EdgeFit
) -> tuple[NDArray[np.int64], Float]:
    """The nearest of the fitted edges for each point of the outline that faces its way, −1 near corners; and its
    distance."""
    kind = np.arange(6)
    angles = np.deg2rad(fit.centre_deg + 60.0 * kind)
    away = outline @ np.stack([np.cos(angles), np.sin(angles)]) - fit.places_px
    facing = np.abs((normal[:, None] - 60.0 * kind + 180.0) % 360.0 - 180.0) < _FACING_DEG
    distance = np.where(facing & np.isfinite(away), np.abs(away), _NOWHERE_PX)
    order = np.sort(distance, axis=1)
    clear = own & (order[:, 1] - order[:, 0] > _TRIM_PX)
    return np.where(clear, distance.argmin(1), -1), order[:, 0]


def _correlation_px(residuals: list[Float]) -> float:
    """Over how many pixels residuals are one: the sum of their autocorrelation."""
    lags = np.zeros(_MOST_LAG_PX + 1)
    for rest in residuals:
        for lag in range(min(len(rest), _MOST_LAG_PX + 1)):
            lags[lag] += float((rest[: len(rest) - lag] * rest[lag:]).sum())
    if lags[0] <= 0:
        return 1.0
    return float(np.clip(1.0 + 2.0 * (lags[1:] / lags[0]).clip(0.0).sum(), 1.0, 2.0 * _MOST_LAG_PX + 1.0))
