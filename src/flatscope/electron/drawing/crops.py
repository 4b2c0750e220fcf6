"""Crops as large as a few unit cells, in the image's own pixels, and back into the image.

Unlike those of `flatscope.electron.sites` they are neither turned nor resampled: a scan's noise keeps its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.kinds import classify_marks
from flatscope.electron.lattice import Phases, repeat_cell
from flatscope.electron.levelling import blur
from flatscope.electron.physics.crystals import Sheet, find_crystal
from flatscope.electron.sites import Sites, find_axes

Float = NDArray[np.float64]
Real = NDArray[np.float32]

_FLAT_CELLS = 2.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_SHOWN = 2.0  # lattice constants that a crop shows
_MULTIPLE = 8  # pixels of which its side is a multiple, as networks halve it three times
_LEAST_PX = 24  # smallest side
_MARK = 0.25  # radius of a mark, in lattice constants: below half of the distance between neighbours


@dataclass(frozen=True)
class Crops:
    """Crops of an image.

    Parameters
    ----------
    images
        Shape (n, side, side), of the image's own type.
    corners
        Shape (n, 2): row and column of each crop's first pixel.
    """

    images: NDArray[Any]
    corners: NDArray[np.int64]


def choose_side(constant_px: float) -> int:
    """Rows and columns of a crop for a lattice constant."""
    return max(int(np.ceil(_SHOWN * constant_px / _MULTIPLE)) * _MULTIPLE, _LEAST_PX)


def flatten(image: NDArray[np.floating], phases: Phases) -> Float:
    """An image without slow changes of background, in units of its lattice's own contrast.

    The mean unit cell has a standard deviation of 1 thereby, however strong the noise.

    Parameters
    ----------
    image
        Shape (rows, cols).
    phases
        Of its lattice.
    """
    flat = np.asarray(image, float) - blur(image, _FLAT_CELLS * phases.lattice.constant_px)
    return np.asarray(flat / max(float(repeat_cell(flat, phases).std()), 1e-12))


def find_noise(flat: NDArray[np.floating], phases: Phases) -> float:
    """Standard deviation of what does not repeat, see `flatten`."""
    rest = (flat - repeat_cell(np.asarray(flat, float), phases))[phases.crystal]
    return 1.4826 * float(np.median(np.abs(rest - np.median(rest))))


def find_centres(sites: Sites) -> dict[str, Float]:
    """Where crops are centred, each of shape (n, 2): on the sites of either sublattice, and in the hollows of their
    hexagons, which lie beyond the second sublattice as that lies beyond the first.
    """
    one, two = (sites.positions[sites.sublattice == kind] for kind in (0, 1))
    step = -find_axes(sites, 0)[0] / np.sqrt(3.0)
    return {"first": one, "second": two, "hollow": one + step}


def cut_around(image: NDArray[Any], centres: Float, *, side: int, clip: bool = False) -> Crops:
    """Crops around places.

    Parameters
    ----------
    image
        Shape (rows, cols).
    centres
        Shape (n, 2).
    side
        See `choose_side`.
    clip
        Whether crops that would stick out of the image are moved into it; else they are left out.

    Raises
    ------
    ValueError
        The image is smaller than a crop.
    """
    shape = np.array(image.shape)
    if shape.min() < side:
        raise ValueError(f"{shape[1]}x{shape[0]} px are too few: crops are {side} px wide")
    corners = np.rint(centres - 0.5 * (side - 1)).astype(np.int64).reshape(-1, 2)
    if clip:
        corners = np.clip(corners, 0, shape - side)
    else:
        corners = corners[((corners >= 0) & (corners <= shape - side)).all(1)]
    windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
    return Crops(windows[corners[:, 0], corners[:, 1]], corners)


def cut_all(image: NDArray[Any], sites: Sites, *, side: int) -> Crops:
    """Crops around all sites and hollows that lie whole in the image, see `cut_around`."""
    return cut_around(image, np.vstack(list(find_centres(sites).values())), side=side)


def put_back(images: Real, crops: Crops, shape: tuple[int, int]) -> Real:
    """An image in which each pixel comes from the crop whose centre is nearest, so that noise is not averaged.

    Parameters
    ----------
    images
        Shape (n, side, side), in the order of `crops`, which hold a crop for every part of the image.
    shape
        Rows and columns of the image.
    """
    side = images.shape[1]
    middles = crops.corners + 0.5 * (side - 1)
    grid = np.stack(np.meshgrid(*(np.arange(length) for length in shape), indexing="ij"), axis=-1)
    _, owner = cKDTree(middles).query(grid.reshape(-1, 2))
    place = grid.reshape(-1, 2) - crops.corners[owner]
    if place.min() < 0 or place.max() >= side:
        raise ValueError("some pixels lie in no crop")
    return np.asarray(images[owner, place[:, 0], place[:, 1]].reshape(shape), np.float32)


def put_back_mean(images: Real, crops: Crops, shape: tuple[int, int]) -> Real:
    """The mean of all crops at each pixel, 0 where there is none.

    Parameters
    ----------
    images
        Shape (n, channels, side, side), in the order of `crops`.
    shape
        Rows and columns of the image.

    Returns
    -------
    Shape (channels, rows, cols).
    """
    side = images.shape[-1]
    total = np.zeros((images.shape[1], *shape), np.float32)
    count = np.zeros(shape, np.float32)
    for made, (row, col) in zip(images, crops.corners, strict=True):
        here = (slice(row, row + side), slice(col, col + side))
        total[:, *here] += made
        count[here] += 1.0
    return np.asarray(total / np.maximum(count, 1.0))


def mark_defects(
    sheet: Sheet, material: str, *, shape: tuple[int, int], pixel_nm: float
) -> NDArray[np.uint8]:
    """What stands on each pixel's site, as a place in `flatscope.electron.kinds.MARKS`; `UNKNOWN` on other
    defects.

    Parameters
    ----------
    sheet
        Positions count from the centre of the first pixel.
    shape
        Rows and columns of the image.
    """
    crystal = find_crystal(material)
    places = sheet.sites_nm / pixel_nm
    kinds = classify_marks(sheet, crystal)
    marks = np.zeros(shape, np.uint8)
    radius = _MARK * crystal.lattice_nm / pixel_nm
    reach = int(np.ceil(radius))
    for (row, col), kind in zip(places[kinds > 0], kinds[kinds > 0], strict=True):
        top, left = max(int(row) - reach, 0), max(int(col) - reach, 0)
        here = marks[top : int(row) + reach + 2, left : int(col) + reach + 2]
        down, across = np.ogrid[: here.shape[0], : here.shape[1]]
        here[np.hypot(down + top - row, across + left - col) <= radius] = kind
    return marks


def read_sites(maps: Real, positions: Float, constant_px: float) -> Float:
    """What maps say of sites: their mean within a mark.

    Parameters
    ----------
    maps
        Shape (kinds, rows, cols), see `put_back_mean`.
    positions
        Shape (n, 2).
    constant_px
        Lattice constant.

    Returns
    -------
    Shape (n, kinds).
    """
    reach = int(np.ceil(_MARK * constant_px))
    steps = np.stack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 2), axis=-1).reshape(-1, 2)
    steps = steps[np.hypot(*steps.T) <= _MARK * constant_px]
    pixels = np.rint(positions).astype(int)[:, None] + steps
    limits = np.array(maps.shape[1:]) - 1
    row, col = np.moveaxis(np.clip(pixels, 0, limits), -1, 0)
    return np.asarray(maps[:, row, col].mean(-1).T, float)
