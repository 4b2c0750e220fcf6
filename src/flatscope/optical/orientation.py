"""The orientation of a three-fold crystal from its outline: by its straight edges, or by a network.

Edges of a grown crystal with three-fold symmetry, cut corners included, lie in six directions 60° apart. Every straight
piece of an outline therefore fixes the orientation modulo 60°, however little of the crystal is left. The longer edges
decide between the two orientations that remain: cut corners are the shorter ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from skimage.measure import find_contours

from flatscope.inference.runtime import Network

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

METHODS = ("auto", "edges", "network")
"""Ways to find an orientation; "auto" weighs both."""
CROP_PX = 64
"""Side of the network's input."""

_LEAST_ASYMMETRY = 0.25
"""Smallest difference of longer and shorter edges, as a share of their sum, that tells them apart: corners cut at 0.27
of the side."""
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
"""Variance of a point of an outline that follows pixels, px²."""
_OUTLIER_SIGMA = 3.5
"""An edge belongs to something else if its own direction deviates by more than this many errors …"""
_OUTLIER_DEG = 0.7
"""… where this is added to its error."""
_ROUGH_PX2 = 0.25
"""An outline that scatters by more than this about its edges is rough (variance in px²)."""
_SIGMA_SCALE_ROUGH = 1.41
"""Factor on the error of a rough outline; found on drawn bilayers (seeds 2 and 4), as the next two."""
_SIGMA_SCALE_SMOOTH = 0.735
"""The same of a smooth outline: steps of pixels along an edge repeat, and so err less than noise would."""
_SIGMA_SCALE_NETWORK = 0.93
"""Factor on the error that the network states."""
_MOST_LAG_PX = 6
"""Residuals along an edge are correlated over at most this many pixels."""
_SURE_DEG = 0.65
"""Both ways underestimate large errors: from this one on an error grows …"""
_SURER = 0.18
"""… by this power of itself (drawn bilayers, seeds 2 and 4)."""
_CORRELATION = 0.8
"""Correlation of the errors of edges and network, which see the same outline (drawn bilayers, seeds 2 and 4)."""
_CONTRADICT_SIGMA = 3.0
"""Edges and network contradict each other if they differ by more than this many errors …"""
_DOUBT_SIGMA = 1.5
"""… and make each other doubtful from this many on."""
_ALONE = 1.25
"""Factor on the caution about an answer that only one way gives."""
_MARGIN_SHARE = 0.15
"""Margin around a layer in the network's input, as a share of the layer's size …"""
_MARGIN_PX = 3.0
"""… and added to that, on either side."""
_LEAST_LOGIT = 3.0
"""Smallest log odds (95 %) that tell a direction from the one 60° off."""


@dataclass(frozen=True)
class Orientation:
    """The orientation of one layer.

    Parameters
    ----------
    corner_deg
        Direction of a corner of the triangle, degrees counter-clockwise as displayed, in [0, 120).
    sigma_deg
        1-sigma error.
    caution_deg
        The error that decides whether to rely on it: larger where only one of two ways is sure.
    three_fold
        False if it looks the same turned by 60°, as a hexagon does.
    method
        "edges", "network", or "edges and network".
    """

    corner_deg: float
    sigma_deg: float
    caution_deg: float
    three_fold: bool
    method: str


def orient(mask: Mask, hidden: Mask, *, method: str, network: Network) -> Orientation | None:
    """Orientation of a crystal by one method, or by both; None where there is none.

    Parameters
    ----------
    mask, hidden
        See `orient_by_edges`.
    method
        One of `METHODS`.
    network
        Of the task "orientation".
    """
    if method == "edges":
        found = orient_by_edges(mask, hidden)
    else:
        found = orient_by_network(mask, hidden, network=network)
        straight = None if method == "network" else orient_by_edges(mask, hidden, near_deg=found.corner_deg)
        found = found if straight is None else weigh(straight, found)
    if found is None:
        return None
    return replace(found, sigma_deg=found.sigma_deg * max(found.sigma_deg, _SURE_DEG) ** _SURER)


def weigh(straight: Orientation, seen: Orientation) -> Orientation:
    """Mean of the answers of edges and network with the smallest error, given that their errors are correlated.

    An error that is far larger than the other has no weight. Where both disagree by far more than they state, the edges
    belong to something else, and the network counts; the farther apart, the larger the error. An outline that only one
    of both is sure of misleads more often than its error says: caution depends on both errors.

    Parameters
    ----------
    straight, seen
        From edges and from the network.
    """
    apart = (straight.corner_deg - seen.corner_deg + 30.0) % 60.0 - 30.0
    common = _CORRELATION * straight.sigma_deg * seen.sigma_deg
    variance = straight.sigma_deg**2 + seen.sigma_deg**2 - 2.0 * common
    doubt = abs(apart) / np.sqrt(variance)
    weight = 0.0
    if doubt <= _CONTRADICT_SIGMA:
        weight = float(np.clip((seen.sigma_deg**2 - common) / variance, 0.0, 1.0))
    sigma = np.sqrt(
        (weight * straight.sigma_deg) ** 2
        + ((1.0 - weight) * seen.sigma_deg) ** 2
        + 2.0 * weight * (1.0 - weight) * common
    )
    surer = straight if weight > 0.5 else seen
    farther = np.sqrt(max(doubt / _DOUBT_SIGMA, 1.0))
    return Orientation(
        # The surer one decides between the two directions 60° apart.
        float((surer.corner_deg + (weight - (surer is straight)) * apart) % 120.0),
        float(sigma * farther),
        float(np.sqrt(straight.sigma_deg * seen.sigma_deg) * farther),
        surer.three_fold,
        surer.method if weight in (0.0, 1.0) else f"{straight.method} and {seen.method}",
    )


def orient_by_edges(mask: Mask, hidden: Mask, *, near_deg: float | None = None) -> Orientation | None:
    """Orientation of a crystal from the straight pieces of its outline; None with fewer than three of them.

    Parameters
    ----------
    mask
        The crystal, shape (rows, cols).
    hidden
        Where its outline is not its own: cut by the picture or another crystal. Same shape.
    near_deg
        Rough direction of a corner modulo 60°, if known: saves the search.
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
    outline = outline - outline.mean(0)
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
    if (fit.lengths > 0).sum() < _LEAST_EDGES:
        return None
    sigma = float(np.hypot(fit.sigma, _rival_deg(found, int(own.sum()))))
    # Lines in the direction of a corner's opposite edge and in the other three.
    far, near = fit.lengths[::2].sum(), fit.lengths[1::2].sum()
    corner = fit.centre + (60.0 if far >= near else 0.0)
    three_fold = abs(far - near) >= _LEAST_ASYMMETRY * (far + near)
    scale = _SIGMA_SCALE_ROUGH if fit.scatter > _ROUGH_PX2 else _SIGMA_SCALE_SMOOTH
    return Orientation(corner % 120.0, scale * sigma, _ALONE * scale * sigma, bool(three_fold), "edges")


def crop_layer(mask: Mask, hidden: Mask) -> NDArray[np.uint8]:
    """The network's input: a square around a layer, shape (64, 64, 2), 0 to 255.

    Parameters
    ----------
    mask, hidden
        See `orient_by_edges`; the mask must not be empty.

    Returns
    -------
    The layer, and what hides its outline; parts of pixels are parts of 255.
    """
    rows, cols = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    height, width = rows[-1] - rows[0] + 1, cols[-1] - cols[0] + 1
    half = 0.5 * max(height, width) * (1.0 + _MARGIN_SHARE) + _MARGIN_PX
    middle = 0.5 * (rows[0] + rows[-1] + 1), 0.5 * (cols[0] + cols[-1] + 1)
    first, last = (np.array(middle) - half, np.array(middle) + half)
    before = np.maximum(np.ceil(-first), 0).astype(int)
    after = np.maximum(np.ceil(last - mask.shape), 0).astype(int)
    around = tuple(zip(before, after, strict=True))
    top, left, bottom, right = (float(edge) for edge in (*(first + before), *(last + before)))
    seen = [
        # The border of the picture hides what lies beyond it.
        Image.fromarray(
            np.pad(np.where(layer, np.uint8(255), np.uint8(0)), around, constant_values=outside)
        ).resize((CROP_PX, CROP_PX), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        for layer, outside in ((ndimage.binary_fill_holes(mask), 0), (hidden, 255))
    ]
    return np.stack([np.asarray(layer) for layer in seen], axis=2)


def orient_by_network(mask: Mask, hidden: Mask, *, network: Network) -> Orientation:
    """Orientation of a crystal by a network that learned from drawn ones; see `orient_by_edges`.

    Its answers for all eight turned and mirrored copies are turned back and averaged.

    References
    ----------
    The four numbers that it gives are explained in `flatscope.training.nets.orientnet`.
    """
    crop = crop_layer(mask, hidden) / np.float32(255.0)
    answers = np.zeros(4)
    for mirrored in (False, True):
        for quarters in range(4):
            copy = np.rot90(crop[:, ::-1] if mirrored else crop, quarters)
            answers += (
                _turn_back(network.run(network.card.normalise(copy)[None])[0], mirrored, quarters) / 8.0
            )
    (angle,), (sigma,), (logit,) = decode_density(answers[None])
    corner = angle + (0.0 if logit >= 0 else 60.0)
    error = _SIGMA_SCALE_NETWORK * float(sigma)
    three_fold = bool(abs(logit) >= _LEAST_LOGIT)
    return Orientation(float(corner % 120.0), error, _ALONE * error, three_fold, "network")


def _turn_back(answer: NDArray[np.float32], mirrored: bool, quarters: int) -> Float:
    """The network's answer for the crop itself, from that for a copy: mirrored, then turned by quarters."""
    six, three = (complex(*pair) for pair in answer.astype(float).reshape(2, 2))
    # A corner at φ lies at 180° − φ in the mirror, and a quarter turn adds 90°.
    six, three = six * np.exp(-3j * np.pi * quarters), three * np.exp(-1.5j * np.pi * quarters)
    if mirrored:
        six, three = six.conjugate(), -three.conjugate()
    return np.array([six.real, six.imag, three.real, three.imag])


def decode_density(answers: NDArray[np.floating]) -> tuple[Float, Float, Float]:
    """Direction of a corner modulo 60° and its error, both in degrees, and the log odds against a turn by 60°.

    Parameters
    ----------
    answers
        Of the network, shape (n, 4).
    """
    six_cos, six_sin, three_cos, three_sin = np.asarray(answers, float).T
    angle = np.arctan2(six_sin, six_cos) / 6.0
    logit = 2.0 * (three_cos * np.cos(3.0 * angle) + three_sin * np.sin(3.0 * angle))
    # The width of a sharp von Mises distribution is 1 / √κ, here of six times the angle.
    sigma = 1.0 / (6.0 * np.sqrt(np.maximum(np.hypot(six_cos, six_sin), 1e-6)))
    return np.rad2deg(angle), np.rad2deg(sigma), logit


def _rival_deg(fits: list[tuple[float, _Fit]], points: int) -> float:
    """How far fits from other first guesses spread the direction, each weighted by its likelihood."""
    fits = sorted(fits, key=lambda pair: pair[0])
    least, best = fits[0]
    total = spread = 0.0
    seen: list[float] = []
    for misfit, fit in fits:
        off = (fit.centre - best.centre + 30.0) % 60.0 - 30.0
        if all(abs(off - other) > _SAME_DEG for other in seen):
            seen.append(off)
            weight = np.exp(-0.5 * points / _RIVAL_PX * (misfit - least) / max(least, _LEAST_VARIANCE))
            total += weight
            spread += weight * off**2
    return float(np.sqrt(spread / total))


def _fit_from(
    outline: Float, normal: Float, own: NDArray[np.bool_], centre: float
) -> tuple[float, _Fit] | None:
    """Edges fitted from a first guess of their direction, and how badly: the mean square distance from the outline."""
    fit = _fit_edges(outline, _straight_runs(normal - centre, own), centre)
    misfit, before = np.inf, None
    for _ in range(_ROUNDS):
        if fit is None:
            return None
        kinds, distance = _assign(outline, normal - fit.centre, own, fit)
        misfit = float((np.minimum(distance[own], _FARTHEST_PX) ** 2).mean())
        if before is not None and np.array_equal(kinds, before):
            break
        before = kinds
        again = _fit_edges(outline, kinds, fit.centre)
        if again is None:
            break
        fit = again
    return None if fit is None else (misfit, fit)


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


@dataclass(frozen=True)
class _Fit:
    """Lines in six directions through an outline; `places` are distances from the origin, NaN where no edge is."""

    centre: float
    sigma: float
    scatter: float
    places: Float
    lengths: Float


def _fit_edges(outline: Float, kinds: NDArray[np.int64], centre: float) -> _Fit | None:
    """One direction for all edges, by least squares, each edge free in its place."""
    places, lengths = np.full(6, np.nan), np.zeros(6)
    slopes, spreads, residuals = np.zeros(6), np.zeros(6), {}
    for kind in range(6):
        which = np.flatnonzero(kinds == kind)
        if len(which) < _LEAST_RUN_PX:
            continue
        normal = np.deg2rad(centre + 60.0 * kind)
        across = np.array([np.cos(normal), np.sin(normal)])
        along = np.array([-np.sin(normal), np.cos(normal)])
        t, height = outline[which] @ along, outline[which] @ across
        places[kind], lengths[kind] = float(height.mean()), len(which)
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
    sigma = float(np.rad2deg(np.sqrt(per_slope / weight.sum())))
    if (weight > 0).sum() > 1:
        chi2 = float((weight * (slopes - mean) ** 2).sum()) / per_slope / ((weight > 0).sum() - 1)
        sigma *= np.sqrt(max(chi2, 1.0))
    # A slope upwards along an edge turns its normal clockwise.
    return _Fit(centre - float(np.rad2deg(np.arctan(mean))), sigma, squares / freedom, places, lengths)


def _assign(
    outline: Float, normal: Float, own: NDArray[np.bool_], fit: _Fit
) -> tuple[NDArray[np.int64], Float]:
    """The nearest of the fitted edges for each point of the outline that faces its way, −1 near corners; and its
    distance."""
    kind = np.arange(6)
    angles = np.deg2rad(fit.centre + 60.0 * kind)
    away = outline @ np.stack([np.cos(angles), np.sin(angles)]) - fit.places
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
