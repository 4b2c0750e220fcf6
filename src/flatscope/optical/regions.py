"""The regions of one picture: where they are and what can be measured of them, before anyone counts their layers."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.micrograph import Calibration
from flatscope.optical.background import Background
from flatscope.optical.evidence import Evidence
from flatscope.results.store import StoreError, pack, unpack

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

_LEAST_INNER_PX = 6
"""A region with fewer pixels away from edges is measured on all of its pixels."""
_SAMPLE_PX = 250
"""Pixels of a region that are enough for its median."""
_SEAM_PX = 6
"""A region beside a gold mark is the mark's blurred seam if it lies within this distance of it …"""
_SEAM_SHARE = 0.3
"""… with at least this share of its area."""
_GOLD_CONTRAST = 0.4
"""Gold is brighter than the substrate by this contrast in the red, and less bright in the blue."""
_DIMMEST_WHITE = 0.85
"""A camera that stops counting does so above this share of the full scale."""
_NEAR_WHITE = 0.93
"""A region within this share of where the camera stops is saturated."""


@dataclass(frozen=True, eq=False)
class Measured:
    """What can be read off each region; row i belongs to label i + 1.

    Parameters
    ----------
    area_px
        Shape (regions,).
    centre
        Mean row and column, shape (regions, 2).
    contrast
        Median contrast of the pixels away from edges, shape (regions, 3).
    spread
        Robust standard deviation of the same pixels, shape (regions, 3).
    inside_px
        Number of these pixels, shape (regions,).
    boxes
        First row, first column, last row and last column of each region, shape (regions, 4).
    """

    area_px: Float
    centre: Float
    contrast: Float
    spread: Float
    inside_px: Float
    boxes: Ints

    def take(self, which: Bools) -> Measured:
        """The chosen regions."""
        return Measured(**{item.name: getattr(self, item.name)[which] for item in fields(self)})


@dataclass(frozen=True)
class Weights:
    """The network that found the regions.

    Parameters
    ----------
    name, version, sha256
        Its name and version, and the digest of its file.
    material, known
        Of weights adapted to one set-up: the material, and regions known there as (layers, red, green, blue contrast).
    """

    name: str
    version: str
    sha256: str
    material: str = ""
    known: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of one picture, measured: all that counting their layers needs.

    The picture is worked on at 1/`factor` of its size: pixels below are those of the working picture, and row i of an
    array belongs to label i + 1.

    Parameters
    ----------
    labels
        Shape (rows, cols), int32: 1, 2, … without gaps, 0 on the substrate; crystals first, then foreign matter.
    measured
        Areas, places and contrasts.
    evidence
        What speaks for a crystal and what for dirt.
    foreign
        What the network takes for residue, dirt, metal or a caption; shape (regions,), as all below.
    metal
        Foreign matter as bright and yellow as gold.
    beside_metal
        Regions that lie mostly along the border of such metal.
    flake_id
        Number of the flake: regions that touch belong to one.
    saturated
        Channels in which the camera stopped counting, shape (regions, 3).
    noise, step
        1-sigma noise of one pixel's contrast, and what one grey level is worth as contrast, shape (3,).
    bare_colour
        Stored colour of the substrate in fractions of full scale, shape (3,).
    least_px
        Smallest area that counts.
    factor
        Rows and columns of the picture for one of the working picture.
    shape
        Rows and columns of the picture.
    is_gray
        Whether the picture has no colours.
    specks
        Number of specks far below the smallest area, which were left out.
    calibration
        Pixel size of the picture, or None.
    image, sha256
        Name and digest of the picture.
    weights
        The network that found the regions.
    notes
        What a user should know, one line each.
    preview
        A small JPEG of the picture.
    timings_s
        Seconds that each stage took; not stored.
    """

    labels: Labels
    measured: Measured
    evidence: Evidence
    foreign: Bools
    metal: Bools
    beside_metal: Bools
    flake_id: Ints
    saturated: Bools
    noise: Float
    step: Float
    bare_colour: Float
    least_px: float
    factor: int
    specks: int
    shape: tuple[int, int]
    is_gray: bool
    calibration: Calibration | None
    image: str
    sha256: str
    weights: Weights
    notes: tuple[str, ...] = ()
    preview: bytes = field(default=b"", repr=False)
    timings_s: dict[str, float] = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        return len(self.foreign)

    @property
    def large_enough(self) -> Bools:
        """Regions whose area counts, shape (regions,)."""
        return self.measured.area_px >= self.least_px

    @property
    def touches_edge(self) -> Bools:
        """Regions that reach the border of the picture, shape (regions,)."""
        (top, left, bottom, right), (rows, cols) = self.measured.boxes.T, self.labels.shape
        return (top == 0) | (left == 0) | (bottom == rows - 1) | (right == cols - 1)

    @property
    def uneven(self) -> Float:
        """How much the contrast varies within each region beyond the noise (1 sigma), shape (regions, 3)."""
        return np.sqrt(np.maximum(self.measured.spread**2 - (1.2 * self.noise) ** 2, 0.0))

    def enlarge_labels(self) -> Labels:
        """The labels at the picture's own size; a rest at the right and bottom is substrate."""
        if self.factor == 1:
            return self.labels
        labels = np.repeat(np.repeat(self.labels, self.factor, axis=0), self.factor, axis=1)
        missing = [(0, side - had) for side, had in zip(self.shape, labels.shape, strict=True)]
        return np.pad(labels, missing)

    def to_bytes(self) -> bytes:
        """The regions as bytes; equal regions give equal bytes."""
        return pack(self)

    @classmethod
    def from_bytes(cls, content: bytes) -> Regions:
        """Read what `to_bytes` wrote.

        Raises
        ------
        StoreError
            If the bytes are damaged, something else, or of another version of flatscope.
        """
        regions = unpack(content, (Regions, Measured, Evidence, Weights))
        if not isinstance(regions, Regions):
            raise StoreError("holds no regions of a picture")
        return regions


class PackedRegions(Regions):
    """Regions whose labels are kept compressed, a hundredth of their size, and unpacked whenever somebody asks."""

    @classmethod
    def of(cls, regions: Regions) -> PackedRegions:
        """The same regions."""
        return cls(**{entry.name: getattr(regions, entry.name) for entry in fields(Regions)})

    @property
    def labels(self) -> Labels:
        """As in `Regions`; a new array each time."""
        content, shape = self._packed
        return np.frombuffer(zlib.decompress(content), np.int32).reshape(shape)

    @labels.setter
    def labels(self, labels: Labels) -> None:
        object.__setattr__(
            self, "_packed", (zlib.compress(labels.astype(np.int32).tobytes(), 1), labels.shape)
        )

    _packed: tuple[bytes, tuple[int, ...]]


def measure(labels: Labels, contrast: Float32, edge: Mask) -> Measured:
    """Area, place and contrast of every region.

    Parameters
    ----------
    labels
        1, 2, … without gaps; 0 is left out.
    contrast
        Shape (rows, cols, 3).
    edge
        Pixels to leave out of the contrast where a region has others.
    """
    count = int(labels.max())
    flat = np.flatnonzero(labels)
    owner = labels.ravel()[flat]
    area = np.bincount(owner, minlength=count + 1)[1:].astype(float)
    rows, cols = np.divmod(flat, labels.shape[1])
    centre = np.stack([np.bincount(owner, axis, count + 1)[1:] / area for axis in (rows, cols)], axis=1)
    middle, spread, inside = measure_contrasts(labels, contrast, edge)
    found = ndimage.find_objects(labels)
    corners = [(down.start, across.start, down.stop - 1, across.stop - 1) for down, across in found]
    boxes = np.array(corners, np.int64).reshape(-1, 4)
    return Measured(area, centre, middle, spread, inside, boxes)


def measure_contrasts(labels: Labels, contrast: Float32, edge: Mask) -> tuple[Float, Float, Float]:
    """Median contrast of every region, its robust spread, and the number of pixels behind them.

    Pixels away from edges count where a region has such, a few hundred of them drawn from a large region.
    """
    count = int(labels.max())
    flat = np.flatnonzero(labels)
    owner = labels.ravel()[flat] - 1
    inner = ~edge.ravel()[flat]
    has_inner = np.bincount(owner, inner, count) >= _LEAST_INNER_PX
    used = inner | ~has_inner[owner]
    flat, owner = flat[used], owner[used]
    size = np.bincount(owner, minlength=count)
    # A lottery that gives every pixel the same number whenever it is asked (Knuth's multiplicative hash).
    lot = (flat.astype(np.uint32) * np.uint32(2654435761)) / np.float32(2**32)
    kept = lot * size[owner] < _SAMPLE_PX
    flat, owner = flat[kept], owner[kept]
    order = np.argsort(owner, kind="stable")
    owner, values = owner[order], contrast.reshape(-1, 3)[flat[order]]
    middle = _medians(owner, values, count)
    spread = 1.48 * _medians(owner, np.abs(values - middle[owner]), count)
    return middle, spread, np.bincount(owner, minlength=count).astype(float)


def _medians(owner: Ints | Labels, values: Float32 | Float, count: int) -> Float:
    """Median of each column of `values` for each owner 0 … count − 1; every owner has a value."""
    sizes = np.bincount(owner, minlength=count)
    start = np.cumsum(sizes) - sizes
    result = np.empty((count, values.shape[1]))
    for column in range(values.shape[1]):
        ordered = values[np.lexsort((values[:, column], owner)), column]
        result[:, column] = 0.5 * (ordered[start + (sizes - 1) // 2] + ordered[start + sizes // 2])
    return result


def is_metallic(contrast: Float) -> Bools:
    """Regions much brighter than the substrate and yellowish, from their contrasts, shape (regions, 3)."""
    return (contrast[..., 0] > _GOLD_CONTRAST) & (contrast[..., 0] > contrast[..., 2])


def mark_saturated(measured: Measured, rgb: Float32, background: Background) -> Bools:
    """Which channels of which regions lie where the camera stops, shape (regions, 3).

    Many cameras stop short of the full scale: the brightest pixels of the picture show where.

    Parameters
    ----------
    measured
        The regions.
    rgb
        The picture, shape (rows, cols, 3), fractions of full scale.
    background
        Its substrate.
    """
    brightness = (1.0 + measured.contrast) * background.at(measured.centre, rgb.shape[:2])
    white = np.maximum(np.percentile(rgb[::8, ::8].reshape(-1, 3), 99.9, axis=0), _DIMMEST_WHITE)
    return np.asarray(brightness > _NEAR_WHITE * white)


def mark_seams(labels: Labels, metal: Bools) -> Bools:
    """Regions that are mostly the blurred border of metal, not crystals that touch it.

    Parameters
    ----------
    labels
        1, 2, … without gaps; 0 is left out.
    metal
        Which regions are metal, shape (regions,).

    Returns
    -------
    Shape (regions,).
    """
    if not metal.any():
        return np.zeros(len(metal), bool)
    near = ndimage.binary_dilation(np.isin(labels, np.flatnonzero(metal) + 1), iterations=_SEAM_PX)
    count = len(metal) + 1
    area = np.bincount(labels.ravel(), minlength=count)
    share = np.bincount(labels[near], minlength=count) / np.maximum(area, 1)
    return (share[1:] > _SEAM_SHARE) & ~metal


def number_flakes(labels: Labels, count: int) -> Ints:
    """Number of the flake that each of `count` regions belongs to; regions that touch, at corners too, are one."""
    flakes, _ = ndimage.label(labels > 0, structure=np.ones((3, 3)))
    numbers = np.zeros(count + 1, np.int64)
    numbers[labels.ravel()] = flakes.ravel()
    return numbers[1:]
