"""Every site of a lattice in an ADF-STEM image, and what is seen around it.

Crops follow the lattice, not the image: each is turned and stretched so that a site's neighbours always lie at the same
places, whatever the orientation, the pixel size and the distortions of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.lattice import Phases, blur, place_sites

Float = NDArray[np.float64]
Real = NDArray[np.float32]

CROP_PX = 24
"""Side of a crop."""
STEP = 0.1
"""Its pixel, in lattice constants: it shows the six nearest sites of the same sublattice, and all nearer ones."""
_LEVEL_CELLS, _CONTRAST_CELLS = 2.0, 4.0
"""Background and contrast are levelled over Gaussians of so many lattice constants (1 sigma)."""
_LEAST_CONTRAST = 0.3
"""Contrast is levelled where it is more than this part of the median."""
_MOST_FOR_MEDIAN = 3000


@dataclass(frozen=True)
class Sites:
    """The sites of a honeycomb.

    Parameters
    ----------
    positions
        Shape (n, 2), (row, col) in pixels.
    cells
        Shape (n, 2): the unit cells they belong to.
    sublattice
        Shape (n,): 0 or 1.
    phases
        The lattice they were found by.
    places
        Where in the unit cell either sublattice lies, shape (2, 2).
    """

    positions: Float
    cells: NDArray[np.int64]
    sublattice: NDArray[np.int64]
    phases: Phases
    places: Float


def list_sites(phases: Phases, places: Float, *, first: int) -> Sites:
    """All sites in an image.

    Parameters
    ----------
    phases
        See `flatscope.electron.lattice.map_phases`.
    places
        Where in the unit cell the sites lie, shape (2, 2), the brighter one first (`find_honeycomb`).
    first
        Which sublattice the brighter one is, 0 or 1.
    """
    found = [place_sites(phases, place) for place in places]
    kinds = [np.full(len(positions), kind) for (positions, _), kind in zip(found, (first, 1 - first), strict=True)]
    return Sites(
        np.vstack([positions for positions, _ in found]),
        np.vstack([cells for _, cells in found]),
        np.concatenate(kinds),
        phases,
        places if first == 0 else places[::-1],
    )


def level(image: NDArray[np.floating], constant_px: float) -> Float:
    """An image without slow changes of background and contrast, its standard deviation about 1.

    Parameters
    ----------
    image
        Shape (rows, cols).
    constant_px
        Lattice constant.
    """
    flat = np.asarray(image, float) - blur(image, _LEVEL_CELLS * constant_px)
    contrast = np.sqrt(np.maximum(blur(flat**2, _CONTRAST_CELLS * constant_px), 0.0))
    return np.asarray(flat / np.maximum(contrast, _LEAST_CONTRAST * float(np.median(contrast)) + 1e-12))


def cut_crops(image: NDArray[np.floating], sites: Sites) -> Real:
    """Crops centred on sites, each beside what is usually seen around its sublattice.

    Parameters
    ----------
    image
        Shape (rows, cols), see `level`.
    sites
        See `list_sites`.

    Returns
    -------
    Shape (n, 2, 24, 24): the crop, and the median of all crops of its sublattice. The site lies between the four pixels
    in the middle; its three neighbours of the other sublattice always point to the same side.
    """
    constant = sites.phases.lattice.constant_px
    step = STEP * constant
    image = np.asarray(image, float)
    if step > 1.0:
        # Coarser pixels see the mean of several.
        image = ndimage.gaussian_filter(image, 0.5 * np.sqrt(step**2 - 1.0))
    smooth = ndimage.spline_filter(image, order=3)
    offsets = STEP * (np.arange(CROP_PX) - 0.5 * (CROP_PX - 1))
    grid = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1)
    crops = np.empty((len(sites.positions), 2, CROP_PX, CROP_PX), np.float32)
    for kind in (0, 1):
        mine = np.flatnonzero(sites.sublattice == kind)
        if not len(mine):
            continue
        around = grid @ _find_frame(sites, kind)
        places = sites.positions[mine, None, None] + around
        crops[mine, 0] = ndimage.map_coordinates(
            smooth, np.moveaxis(places, -1, 0), order=3, mode="mirror", prefilter=False
        )
        some = mine[:: max(len(mine) // _MOST_FOR_MEDIAN, 1)]
        crops[mine, 1] = np.median(crops[some, 0], axis=0)
    return crops


def _find_frame(sites: Sites, kind: int) -> Float:
    """Axes of a crop around sites of a sublattice, shape (2, 2): pixels down and across for one lattice constant."""
    one, two = sites.phases.lattice.vectors
    if one @ two > 0:
        two = two - one
    up = (one + 2.0 * two) / np.sqrt(3.0)
    # Neighbours of the other sublattice lie either along this axis or against it, and along two others 120° away.
    gap = (sites.places[1 - kind] - sites.places[kind]) @ np.linalg.inv(sites.phases.lattice.reciprocal).T
    inside = np.linalg.solve(np.stack([one, two]).T, gap)
    along = np.abs((inside - np.array([1.0, 2.0]) / 3.0 + 0.5) % 1.0 - 0.5).sum()
    against = np.abs((inside + np.array([1.0, 2.0]) / 3.0 + 0.5) % 1.0 - 0.5).sum()
    sign = 1.0 if along <= against else -1.0
    return np.stack([sign * up, sign * one])
