"""The twist angle of stacked crystals, from the edges of both layers.

Edges of a grown crystal with three-fold symmetry, cut corners included, lie in six directions 60° apart. Every
straight piece of an outline therefore tells the orientation modulo 60°, however little of the crystal is left; which
of the two orientations it is follows from the longer edges, as cut corners are the shorter ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from skimage.measure import find_contours
from skimage.segmentation import watershed

import flatscope
from flatscope.micrograph import Calibration
from flatscope.optical.materials import find_material
from flatscope.results import REJECTED_LABEL, TWIST_COLUMNS, FlakeTable, Provenance, TwistTable

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Layers = NDArray[np.uint8]

_SPECK_PX, _SPOT_PX = 12, 60
"""Second layers below the first are wrong pixels of a segmentation; unknown spots below the second interrupt no
outline."""
_LEAST_ASYMMETRY = 0.25
"""Below this, longer and shorter edges cannot be told apart: corners cut at 0.27 of the side or more."""
_LARGEST_SIGMA_DEG, _LEAST_EDGES = 3.3, 3
"""No angle is given with a larger error, or from fewer edges of a layer."""
_SIGMA_SCALE = 1.2
"""What the errors of rough outlines lack, found on drawn bilayers (seeds 2 and 4)."""
_HIDDEN_SHARE = 0.15
"""An outline of which more is hidden is called truncated or clipped, if there is no angle."""
_SAME_PX, _AROUND_PX = 3, 10
"""Outlines this close are one; crystals are looked at with so much around them."""
_SMOOTH_PX = 2.0
"""Outlines are followed on masks blurred by this much (1 sigma), which moves no straight edge."""
_WINDOW_SHARE, _LEAST_WINDOW_PX = 0.045, 4.0
"""The direction of an outline is taken over this share of its length to either side."""
_ALIGNED_DEG, _LEAST_RUN_PX = 14.0, 6
"""A straight piece deviates by less than this from one of six directions, and is at least so long."""
_FACING_DEG, _TRIM_PX = 70.0, 2.0
"""A point belongs to the nearest edge if it faces that way, and if the next one is farther by this much."""
_STARTS_DEG, _ROUNDS = (0.0, 10.0, -10.0, 20.0, -20.0, 30.0), 8
"""First guesses of the direction, about the mean of the outline's; improvements of each."""
_SAME_DEG, _RIVAL_PX = 0.5, 6.0
"""Fits closer than this are one; outlines tell them apart once every so many pixels."""
_NOWHERE_PX, _FARTHEST_PX = 1e6, 6.0
"""Distance of an edge that is not there, and the largest one that counts against a fit."""
_LEAST_VARIANCE = 0.003
"""Of a point of an outline that follows pixels, px²."""
_OUTLIER_SIGMA, _OUTLIER_DEG = 3.5, 0.7
"""An edge whose own direction is off by more than so many errors, this much added, belongs to something else."""
_MOST_LAG_PX = 6
"""Residuals are correlated over up to so many pixels."""


@dataclass(frozen=True)
class TwistParams:
    """Settings of `measure_twist`.

    Parameters
    ----------
    material
        One of `flatscope.optical.materials.MATERIALS`: its lattice constant gives the moiré period.
    min_top_px
        Second layers smaller than this get no angle.
    """

    material: str = "MoS2"
    min_top_px: int = 250

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        find_material(self.material)
        if self.min_top_px < _SPECK_PX:
            raise ValueError(f"min_top_px of {self.min_top_px}: give {_SPECK_PX} or more")


def measure_twist(
    layers: Layers | FlakeTable,
    params: TwistParams = TwistParams(),
    *,
    calibration: Calibration | None = None,
    image: str = "",
) -> TwistTable:
    """Measure the twist angle of every crystal with a second layer.

    Parameters
    ----------
    layers
        What `find_flakes` found, or a label image of shape (rows, cols), uint8: 0 substrate, 1 and 2 layers, 3 to 254
        more, 255 unknown.
    params
        Material and limits.
    calibration
        Pixel size of a label image, for areas in µm².
    image
        Name of a label image, for the table.

    Returns
    -------
    One row a second layer, the surest first; each without an angle has the reason.

    Raises
    ------
    ValueError
        If `layers` has another shape or type.

    Notes
    -----
    Angles come from the outlines: two crystals of the same composition whose edges end alike are taken to be turned
    as their outlines are. Whether 0° is 3R and 60° is 2H holds only as far as both layers have the same kind of edge.
    Fails where a second layer's outline does not follow its lattice.
    """
    if isinstance(layers, FlakeTable):
        calibration, image = layers.calibration, layers.provenance.image
        layers = layers.layer_image()
    if layers.ndim != 2 or layers.dtype != np.uint8:
        raise ValueError(f"layers are (rows, cols) of uint8, not {layers.shape} of {layers.dtype}")
    clean = _fill_gaps(ndimage.median_filter(layers, _SAME_PX))
    crystal = (clean > 0) & (clean < REJECTED_LABEL)
    # A pixel at the border of the picture ends no crystal, nor does what nobody knows.
    unknown = np.pad(clean, 1, constant_values=REJECTED_LABEL) == REJECTED_LABEL
    hidden = ndimage.binary_dilation(unknown, iterations=_SAME_PX + 1)[1:-1, 1:-1]
    flakes, _ = ndimage.label(crystal, structure=np.ones((3, 3)))
    tops, _ = ndimage.label(crystal & (clean >= 2), structure=np.ones((3, 3)))
    tops[np.bincount(tops.ravel(), minlength=1)[tops] < _SPECK_PX] = 0
    boxes = ndimage.find_objects(flakes)
    rows = []
    for label, box in enumerate(ndimage.find_objects(tops), start=1):
        if box is None:
            continue
        flake = int(flakes[box][tops[box] == label][0])
        down, across = boxes[flake - 1]
        top, left = (max(side.start - _AROUND_PX, 0) for side in (down, across))
        around = np.s_[top : down.stop + _AROUND_PX, left : across.stop + _AROUND_PX]
        found = _measure(flakes[around] == flake, tops[around], label, hidden[around], params)
        place = {"row_px": found["row_px"] + top, "col_px": found["col_px"] + left}
        rows.append({"image": image, "flake_id": flake, **found, **place})
    frame = pd.DataFrame(rows, columns=list(TWIST_COLUMNS))
    if calibration is not None:
        for layer in ("1l", "2l"):
            frame[f"area_{layer}_um2"] = frame[f"area_{layer}_px"] * calibration.pixel_area_um2
    frame = frame.sort_values(["sigma_deg", "area_2l_px"], ascending=[True, False], ignore_index=True)
    provenance = Provenance(flatscope.__version__, image, "", "", "", {"twist": asdict(params)})
    return TwistTable(frame, calibration, provenance)


def _fill_gaps(layers: Layers) -> Layers:
    """Give small unknown spots the layer number next to them."""
    spots, _ = ndimage.label(layers == REJECTED_LABEL)
    small = np.bincount(spots.ravel()) < _SPOT_PX
    small[0] = False
    gaps = small[spots]
    if not gaps.any():
        return layers
    nearest = ndimage.distance_transform_edt(
        layers == REJECTED_LABEL, return_distances=False, return_indices=True
    )
    return np.where(gaps, layers[tuple(nearest)], layers).astype(np.uint8)


def moire_period_nm(twist_deg: float, lattice_nm: float) -> float:
    """Moiré period of two equal hexagonal lattices: a / (2 sin(θ/2)), θ from the nearest multiple of 60°."""
    angle = np.deg2rad(min(twist_deg, 60.0 - twist_deg))
    return float(lattice_nm / (2.0 * np.sin(angle / 2.0))) if angle > 0 else float("inf")


def _measure(
    flake: Mask, tops: NDArray[np.integer[Any]], label: int, hidden: Mask, params: TwistParams
) -> dict[str, Any]:
    """The row of one second layer."""
    top = tops == label
    bottom, seam = _own_crystal(flake, tops, label)
    row, col = ndimage.center_of_mass(top)
    area = int(top.sum())
    result: dict[str, Any] = {
        "row_px": row,
        "col_px": col,
        "method": "edges",
        "area_1l_px": int(bottom.sum()) - area,
        "area_2l_px": area,
    }
    if bottom.sum() < 1.2 * area:
        return result | _refuse("layers not separable", "hardly any monolayer around the second layer")
    if area < params.min_top_px:
        return result | _refuse("too small", f"second layer of {area} px: an angle needs {params.min_top_px}")
    # Where the second layer meets the end of the first, its outline is the first one's.
    beyond = ndimage.binary_dilation(~flake, iterations=_SAME_PX + 1)
    lower = orient(bottom, hidden | seam)
    upper = orient(top, hidden | beyond)
    clipped = _covered(top, beyond & ~hidden)
    cut = max(_covered(top, hidden), _covered(bottom, hidden))
    if lower is None or upper is None or min(lower.edges, upper.edges) < _LEAST_EDGES:
        return result | _explain_missing(cut, clipped, f"fewer than {_LEAST_EDGES} straight edges are seen")
    sigma = _SIGMA_SCALE * float(np.hypot(lower.sigma_deg, upper.sigma_deg))
    if sigma > _LARGEST_SIGMA_DEG:
        return result | _explain_missing(cut, clipped, f"the error would be {sigma:.1f}°", area=area)
    turn = upper.edge_deg - lower.edge_deg
    folded = abs((turn + 30.0) % 60.0 - 30.0)
    period = moire_period_nm(folded, find_material(params.material).lattice_nm)
    slope = 0.5 * period / np.tan(np.deg2rad(max(folded, 1e-6)) / 2.0)
    result |= {
        "bottom_deg": (lower.edge_deg + 60.0) % 120.0,
        "top_deg": (upper.edge_deg + 60.0) % 120.0,
        "sigma_deg": sigma,
        "twist_fold30_deg": folded,
        "moire_nm": period,
        "moire_sigma_nm": slope * np.deg2rad(sigma),
        "moire_phonon_per_nm": 4.0 * np.pi / (np.sqrt(3.0) * period),
    }
    if min(lower.asymmetry, upper.asymmetry) < _LEAST_ASYMMETRY:
        return result | _refuse("hexagonal", "only the angle folded to [0, 30]° is defined")
    return result | {"twist_deg": abs((turn + 60.0) % 120.0 - 60.0), "quality": "ok", "reason": ""}


def _refuse(quality: str, reason: str) -> dict[str, Any]:
    return {"quality": quality, "reason": reason}


def _explain_missing(cut: float, clipped: float, why: str, *, area: int | None = None) -> dict[str, Any]:
    """Why there is no angle: what hides most of the outline, else its size or roughness."""
    if max(cut, clipped) > _HIDDEN_SHARE:
        if cut >= clipped:
            return _refuse(
                "truncated", f"{cut:.0%} of an outline lies beyond the picture or is unknown: {why}"
            )
        return _refuse("clipped", f"{clipped:.0%} of the second layer ends where the first one does: {why}")
    if area is not None:
        return _refuse("too small", f"second layer of {area} px with outlines this rough: {why}")
    return _refuse("layers not separable", why)


def _covered(mask: Mask, cover: Mask) -> float:
    """Share of a mask's outline that lies under a cover."""
    rim = mask & ~ndimage.binary_erosion(mask)
    return float((rim & cover).sum() / max(int(rim.sum()), 1))


def _own_crystal(flake: Mask, tops: NDArray[np.integer[Any]], label: int) -> tuple[Mask, Mask]:
    """The part of a flake that belongs to one of several second layers, and the seam to its neighbours."""
    others = np.unique(tops[flake & (tops > 0)])
    if len(others) < 2:
        return flake, np.zeros_like(flake)
    depth = ndimage.distance_transform_edt(flake)
    part = watershed(-depth, markers=np.where(flake, tops, 0), mask=flake)
    own = part == label
    seam = ndimage.binary_dilation(flake & (part != label), iterations=_SAME_PX + 1)
    return own, seam


@dataclass(frozen=True)
class Orientation:
    """How one layer lies.

    Parameters
    ----------
    edge_deg
        Direction of the normal of the longer edges, degrees counter-clockwise as displayed, in [0, 120).
    sigma_deg
        1-sigma error.
    edges
        In how many of six directions straight pieces were found.
    asymmetry
        (longer − shorter) / all edges, by length: 1 for a triangle, 0 for a regular hexagon.
    """

    edge_deg: float
    sigma_deg: float
    edges: int
    asymmetry: float


def orient(mask: Mask, hidden: Mask) -> Orientation | None:
    """Orientation of a crystal from the straight pieces of its outline; None where there is none.

    Parameters
    ----------
    mask
        The crystal, shape (rows, cols).
    hidden
        Where its outline is not its own: cut by the picture or another crystal. Same shape.
    """
    outline = _follow(mask)
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
    phase = np.exp(6j * np.deg2rad(normal[own])).sum()
    guess = float(np.rad2deg(np.angle(phase)) / 6.0)
    # Rough outlines of small crystals mislead the first guess: the best of several counts.
    fits = [_fit_from(outline, normal, own, guess + start) for start in _STARTS_DEG]
    found = [pair for pair in fits if pair is not None]
    if not found:
        return None
    _, fit = min(found, key=lambda pair: pair[0])
    sigma = float(np.hypot(fit.sigma, _rival_deg(found, int(own.sum()))))
    longer = fit.centre if fit.lengths[::2].sum() >= fit.lengths[1::2].sum() else fit.centre + 60.0
    asymmetry = abs(float(fit.lengths[::2].sum() - fit.lengths[1::2].sum())) / float(fit.lengths.sum())
    return Orientation(longer % 120.0, sigma, int((fit.lengths > 0).sum()), asymmetry)


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
    misfit = np.inf
    for _ in range(_ROUNDS):
        if fit is None:
            return None
        kinds, distance = _assign(outline, normal - fit.centre, own, fit)
        misfit = float((np.minimum(distance[own], _FARTHEST_PX) ** 2).mean())
        again = _fit_edges(outline, kinds, fit.centre)
        if again is None:
            break
        fit = again
    return None if fit is None else (misfit, fit)


def _follow(mask: Mask) -> Float | None:
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
    # Of points that are one over some pixels, so many fewer are left when each edge has taken its place and slope.
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
    return _Fit(centre - float(np.rad2deg(np.arctan(mean))), sigma, places, lengths)


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
