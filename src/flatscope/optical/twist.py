"""The twist angle of stacked crystals: which layer lies on which, how each is oriented, and the turn between them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.morphology import convex_hull_image
from skimage.segmentation import watershed

import flatscope
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration
from flatscope.optical.edges import Mask
from flatscope.optical.materials import find_material
from flatscope.optical.orientation import METHODS, Orientation, orient
from flatscope.results import (
    REJECTED_LABEL,
    THIN_LABEL,
    TWIST_COLUMNS,
    FlakeTable,
    Marks,
    Provenance,
    TwistTable,
    column_names,
)
from flatscope.results.table import as_plain

Layers = NDArray[np.uint8]

_SPECK_PX = 12
"""Smaller second layers are wrong pixels of a segmentation."""
_SPOT_PX = 60
"""Smaller unknown spots do not interrupt an outline."""
_LARGEST_CAUTION_DEG = 4.1
"""No angle is given if `Orientation.caution_deg` of both layers together exceeds this (chosen on drawn bilayers, seeds
2 and 4; see docs/twist.md)."""
_HIDDEN_SHARE = 0.15
"""A missing angle is put down to a truncated or clipped outline if more than this share of it is hidden."""
_CONVEX_SHARE = 0.9
"""A flake that fills more of its convex hull than this is one crystal."""
_SEPARABLE = 1.2
"""Smallest area of the first layer, relative to the second one on it, whose outline shows."""
_SAME_PX = 3
"""Outlines this close are one."""
_AROUND_PX = 10
"""Crystals are looked at with this margin."""


@dataclass(frozen=True)
class TwistParams:
    """Settings of `measure_twist`.

    Parameters
    ----------
    material
        graphene, hBN, MoS2, WS2, WSe2, MoSe2, MoTe2, NbSe2, TaS2, PtSe2, SnS2, In2Se3, Bi2Se3 or Bi2Te3: its lattice
        constant gives the moiré period.
    min_top_px
        Second layers smaller than this get no angle.
    method
        Way to find a layer's orientation: "edges" by its straight edges, "network" by a network that learned from drawn
        crystals, "auto" by both, the surer one weighing more.
    """

    material: str = "MoS2"
    min_top_px: int = 250
    method: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if find_material(self.material).lattice_nm is None:
            raise ValueError(f"{self.material} has no three-fold axis: its twist needs another method")
        if self.min_top_px < _SPECK_PX:
            raise ValueError(f"min_top_px of {self.min_top_px}: give {_SPECK_PX} or more")
        if self.method not in METHODS:
            raise ValueError(f"method {self.method!r}: choose one of {', '.join(METHODS)}")


def measure_twist(
    layers: Layers | FlakeTable,
    params: TwistParams = TwistParams(),
    *,
    network: Network | None = None,
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
    network
        Of the task "orientation"; None: the shipped one.
    calibration
        Pixel size of a label image, for areas in µm².
    image
        Name of a label image, for the table.

    Returns
    -------
    TwistTable
        One row a second layer, the surest first, with the columns `flatscope.results.TWIST_COLUMNS`: ``flake_id`` of
        the crystal, the centre ``row_px``, ``col_px``; ``twist_deg`` in [0, 60], ``twist_fold30_deg`` in [0, 30], which
        counts θ and 60° − θ as one, and the 1-sigma error of both, ``sigma_deg``; ``bottom_deg`` and ``top_deg``, the
        direction of a corner of either layer in [0, 120), counter-clockwise as displayed; ``status`` ("accepted",
        "uncertain" if only the folded angle is defined, "rejected" without an angle), ``reason`` and ``method``;
        ``moire_nm`` with ``moire_sigma_nm``, the moiré period, and ``moire_phonon_per_nm``, the wave vector of its
        phonon; ``area_1l_px`` and ``area_2l_px`` of the bare first and of the second layer, and the same in µm² with a
        pixel size.

    Raises
    ------
    ValueError
        If `layers` has another shape or type.

    Notes
    -----
    The angle is that between the outlines, which is the twist if both crystals have the same composition and the same
    kind of edge. On the kind of edge it also depends whether 0° is 3R and 60° is 2H.
    Fails where a second layer's outline does not follow its lattice.

    Examples
    --------
    >>> import numpy as np
    >>> from flatscope import measure_twist
    >>> from flatscope.optical.bilayers import draw_bilayer
    >>> bilayer = draw_bilayer(np.random.default_rng(0))
    >>> table = measure_twist(bilayer.layers)
    >>> angles = table.accepted
    >>> bool(abs(angles["twist_deg"] - bilayer.twist_deg).max() < 3 * angles["sigma_deg"].max())
    True
    """
    digest, preview = "", b""
    if isinstance(layers, FlakeTable):
        calibration, image = layers.calibration, layers.provenance.image
        digest, preview = layers.provenance.image_sha256, layers.preview
        layers = layers.layer_image()
    if layers.ndim != 2 or layers.dtype != np.uint8:
        raise ValueError(f"layers are (rows, cols) of uint8, not {layers.shape} of {layers.dtype}")
    network = network or _shipped_network()
    rows = [{"image": image, **_measure(stack, params, network)} for stack in find_stacks(layers)]
    frame = pd.DataFrame(rows, columns=list(column_names(TWIST_COLUMNS)))
    if calibration is not None:
        for layer in ("1l", "2l"):
            frame[f"area_{layer}_um2"] = frame[f"area_{layer}_px"] * calibration.pixel_area_um2
    frame = frame.sort_values(["sigma_deg", "area_2l_px"], ascending=[True, False], ignore_index=True)
    provenance = Provenance(
        image,
        digest or hashlib.sha256(np.ascontiguousarray(layers).tobytes()).hexdigest(),
        as_plain(params),
        network.card.name,
        network.card.version,
        network.sha256,
        flatscope.__version__,
    )
    marks = Marks.points(frame["flake_id"], frame["row_px"], frame["col_px"], layers.shape)
    return TwistTable(frame, marks, calibration, provenance, preview=preview)


def moire_period_nm(twist_deg: float, lattice_nm: float) -> float:
    """Moiré period of two equal hexagonal lattices: a / (2 sin(θ/2)), θ from the nearest multiple of 60°."""
    angle = np.deg2rad(min(twist_deg, 60.0 - twist_deg))
    return float(lattice_nm / (2.0 * np.sin(angle / 2.0))) if angle > 0 else float("inf")


@dataclass(frozen=True)
class Stack:
    """A second layer and the crystal it lies on, cut out of a label image.

    Parameters
    ----------
    flake_id
        Number of the crystal in the picture.
    corner_px
        Row and column of the cut-out's first pixel.
    bottom, top
        Both layers, shape (rows, cols).
    border
        Where an outline means nothing: at the border of the picture, or beside an unknown area.
    seam
        The same for the lower layer, where another crystal goes on.
    end
        The same for the upper layer, where the lower one ends under it: the outline there is the lower one's.
    alone_px
        Area of the lower layer with nothing on it.
    """

    flake_id: int
    corner_px: tuple[int, int]
    bottom: Mask
    top: Mask
    border: Mask
    seam: Mask
    end: Mask
    alone_px: int


def find_stacks(layers: Layers) -> Iterator[Stack]:
    """All second layers of a label image, see `measure_twist`; specks are left out."""
    known = np.where(layers == THIN_LABEL, REJECTED_LABEL, layers).astype(np.uint8)
    smooth = Image.fromarray(known).filter(ImageFilter.MedianFilter(_SAME_PX))
    clean = _fill_gaps(np.asarray(smooth))
    crystal = (clean > 0) & (clean < REJECTED_LABEL)
    # Neither the border of the picture nor an unknown area is the end of a crystal.
    unknown = np.pad(clean, 1, constant_values=REJECTED_LABEL) == REJECTED_LABEL
    border = ndimage.binary_dilation(unknown, iterations=_SAME_PX + 1)[1:-1, 1:-1]
    flakes, _ = ndimage.label(crystal, structure=np.ones((3, 3)))
    second = crystal & (clean >= 2)
    # Where a segmentation tears a small second layer, its pieces lie a pixel or two apart, on the same crystal.
    joined = ndimage.binary_dilation(second, np.ones((3, 3)), mask=crystal)
    tops, _ = ndimage.label(joined, structure=np.ones((3, 3)))
    tops[~second] = 0
    tops[np.bincount(tops.ravel(), minlength=1)[tops] < _SPECK_PX] = 0
    boxes = ndimage.find_objects(flakes)
    for label, box in enumerate(ndimage.find_objects(tops), start=1):
        if box is None:
            continue
        flake_id = int(flakes[box][tops[box] == label][0])
        down, across = boxes[flake_id - 1]
        first, left = (max(side.start - _AROUND_PX, 0) for side in (down, across))
        around = np.s_[first : down.stop + _AROUND_PX, left : across.stop + _AROUND_PX]
        flake, top = flakes[around] == flake_id, tops[around] == label
        bottom, seam = _own_crystal(flake, tops[around], label)
        end = ndimage.binary_dilation(~flake, iterations=_SAME_PX + 1)
        alone = int((bottom & (tops[around] == 0)).sum())
        yield Stack(flake_id, (first, left), bottom, top, border[around], seam, end, alone)


def _fill_gaps(layers: Layers) -> Layers:
    """Give small unknown spots the layer number beside them."""
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


@cache
def _shipped_network() -> Network:
    return Network.load("orientation", task="orientation", threads=1)


def _measure(stack: Stack, params: TwistParams, network: Network) -> dict[str, Any]:
    """The row of one second layer."""
    row, col = ndimage.center_of_mass(stack.top)
    area = int(stack.top.sum())
    result: dict[str, Any] = {
        "flake_id": stack.flake_id,
        "row_px": row + stack.corner_px[0],
        "col_px": col + stack.corner_px[1],
        "method": "",
        "area_1l_px": stack.alone_px,
        "area_2l_px": area,
    }
    if stack.bottom.sum() < _SEPARABLE * area:
        return result | _reject("layers not separable", "hardly any monolayer around the second layer")
    if area < params.min_top_px:
        return result | _reject("too small", f"second layer of {area} px: an angle needs {params.min_top_px}")
    outlines = (stack.bottom, stack.border | stack.seam), (stack.top, stack.border | stack.end)
    lower, upper = (orient(*outline, method=params.method, network=network) for outline in outlines)
    clipped = _covered(stack.top, stack.end & ~stack.border)
    cut = max(_covered(stack.top, stack.border), _covered(stack.bottom, stack.border))
    if lower is None or upper is None:
        return result | _explain_missing(cut, clipped, "fewer than 3 straight edges are seen")
    sigma = float(np.hypot(lower.sigma_deg, upper.sigma_deg))
    caution = float(np.hypot(lower.caution_deg, upper.caution_deg))
    if caution > _LARGEST_CAUTION_DEG:
        return result | _explain_missing(cut, clipped, f"the error could be {caution:.1f}°", area=area)
    turn = upper.corner_deg - lower.corner_deg
    folded = abs((turn + 30.0) % 60.0 - 30.0)
    period = moire_period_nm(folded, find_material(params.material).lattice_nm or np.nan)
    slope = 0.5 * period / np.tan(np.deg2rad(max(folded, 1e-6)) / 2.0)
    result |= {
        "method": " and ".join(name for name in METHODS if name in f"{lower.method} {upper.method}"),
        "bottom_deg": lower.corner_deg,
        "top_deg": upper.corner_deg,
        "sigma_deg": sigma,
        "twist_fold30_deg": folded,
        "moire_nm": period,
        "moire_sigma_nm": slope * np.deg2rad(sigma),
        "moire_phonon_per_nm": 4.0 * np.pi / (np.sqrt(3.0) * period),
    }
    if not (lower.three_fold and upper.three_fold):
        reason = "six-fold symmetric: only the angle folded to [0, 30]° is defined"
        return result | {"status": "uncertain", "reason": reason}
    return result | {"twist_deg": abs((turn + 60.0) % 120.0 - 60.0), "status": "accepted", "reason": ""}


def turn_between(lower: Orientation, upper: Orientation) -> tuple[float, float]:
    """Twist in [0, 60]° of two layers and its 1-sigma error; folded to [0, 30]° where one of them is six-fold."""
    turn = upper.corner_deg - lower.corner_deg
    sigma = float(np.hypot(lower.sigma_deg, upper.sigma_deg))
    if lower.three_fold and upper.three_fold:
        return float(abs((turn + 60.0) % 120.0 - 60.0)), sigma
    return float(abs((turn + 30.0) % 60.0 - 30.0)), sigma


def _reject(why: str, detail: str) -> dict[str, Any]:
    return {"status": "rejected", "reason": f"{why}: {detail}"}


def _explain_missing(cut: float, clipped: float, why: str, *, area: int | None = None) -> dict[str, Any]:
    """Why there is no angle: a hidden outline, else its size or roughness."""
    if max(cut, clipped) > _HIDDEN_SHARE:
        if cut >= clipped:
            return _reject(
                "truncated", f"{cut:.0%} of an outline lies beyond the picture or is unknown: {why}"
            )
        return _reject("clipped", f"{clipped:.0%} of the second layer ends where the first one does: {why}")
    if area is not None:
        return _reject("too small", f"second layer of {area} px with outlines this rough: {why}")
    return _reject("layers not separable", why)


def _covered(mask: Mask, cover: Mask) -> float:
    """Share of a mask's outline that lies under a cover."""
    rim = mask & ~ndimage.binary_erosion(mask)
    return float((rim & cover).sum() / max(int(rim.sum()), 1))


def _own_crystal(flake: Mask, tops: NDArray[np.integer[Any]], label: int) -> tuple[Mask, Mask]:
    """The part of a flake that belongs to one of several second layers, and the seam to its neighbours.

    A flake that is nearly convex is one crystal, which lies under all of them.
    """
    others = np.unique(tops[flake & (tops > 0)])
    if len(others) < 2 or flake.sum() > _CONVEX_SHARE * convex_hull_image(flake).sum():
        return flake, np.zeros_like(flake)
    depth = ndimage.distance_transform_edt(flake)
    part = watershed(-depth, markers=np.where(flake, tops, 0), mask=flake)
    own = part == label
    seam = ndimage.binary_dilation(flake & (part != label), iterations=_SAME_PX + 1)
    return own, seam
