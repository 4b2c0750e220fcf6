"""Every site of a lattice in an ADF-STEM image, and what is seen around it.

Crops follow the lattice, not the image: each is turned and stretched so that a site's neighbours always lie at the same
places, whatever the orientation, the pixel size and the distortions of the scan.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, stats
from scipy.spatial import cKDTree

from flatscope.electron.lattice import (
    Phases,
    find_honeycomb,
    find_lattice,
    fold_cell,
    map_phases,
    place_sites,
    repeat_cell,
)
from flatscope.electron.levelling import blur, measure_spread

Float = NDArray[np.float64]
Real = NDArray[np.float32]

CROP_PX = 24
"""Side of a crop."""
STEP = 0.1
"""Its pixel, in lattice constants: it shows the six nearest sites of the same sublattice, and all nearer ones."""
_LEVEL_CELLS = 2.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_CONTRAST_CELLS = 4.0  # Gaussian that the contrast is smooth over
_LEAST_CONTRAST = 0.3  # share of the median contrast below which it is not levelled any further
_MOST_FOR_MEDIAN = 800  # sites whose crops make the usual one
_WIDTH = 0.14  # Gaussian (1 sigma, lattice constants) that columns are seen through
_NEIGHBOURS = 30  # nearest sites of the same sublattice that make the usual one
_LEAST_HEIGHT = 0.3  # smallest height of the usual column, as a share of the median
_LEAST_SIGMA = 0.01  # smallest scatter of ratios
_CLEAR_SIGMA = 4.0  # sigmas from which the filtered residual is a defect and no noise
_CUT_WIDTHS = 2.0  # radius that is cut out around a defect, widths of the filter
_LEAST_KEPT = 0.2  # share of the field left that still tells the noise
_SURROGATES = 3  # images of randomised phases


@dataclass(frozen=True)
class _Spill:
    """When a site deviates only because one beside it does."""

    beside_cells: float = 0.7  # largest distance, in lattice constants
    clear_z: float = 4.0  # sigmas by which the other one deviates
    darker_share: float = 0.35  # of the other one's darkness, below which a dark site is its spill


_SPILL = _Spill()


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

    def take(self, some: NDArray[np.int64]) -> Sites:
        """Some of them."""
        return replace(
            self,
            positions=self.positions[some],
            cells=self.cells[some],
            sublattice=self.sublattice[some],
        )

    def swap(self) -> Sites:
        """The same with the other sublattice first."""
        return replace(self, sublattice=1 - self.sublattice, places=self.places[::-1])


def find_sites(image: NDArray[np.floating], *, first: int, expected_px: float | None = None) -> Sites:
    """Find the lattice in an image, and all its sites.

    Parameters
    ----------
    image
        Shape (rows, cols).
    first
        Which sublattice the brighter one is, 0 or 1.
    expected_px
        Lattice constant where it is known.

    Raises
    ------
    NoLatticeError
        The image shows no hexagonal lattice.
    """
    phases = map_phases(image, find_lattice(image, expected_px=expected_px))
    return list_sites(phases, find_honeycomb(fold_cell(image, phases))[0], first=first)


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
    kinds = [
        np.full(len(positions), kind) for (positions, _), kind in zip(found, (first, 1 - first), strict=True)
    ]
    return Sites(
        np.vstack([positions for positions, _ in found]),
        np.vstack([cells for _, cells in found]),
        np.concatenate(kinds),
        phases,
        places if first == 0 else places[::-1],
    )


def level(
    image: NDArray[np.floating], constant_px: float, *, crystal: NDArray[np.bool_] | None = None
) -> Float:
    """An image without slow changes of background and contrast, its standard deviation about 1.

    Parameters
    ----------
    image
        Shape (rows, cols).
    constant_px
        Lattice constant.
    crystal
        Where the image shows the crystal, without dirt and holes, shape (rows, cols); None for everywhere.
    """
    whole = np.asarray(image, float)
    counted = np.ones(whole.shape) if crystal is None or not crystal.any() else crystal.astype(float)

    def average(values: Float, cells: float) -> Float:
        return blur(values * counted, cells * constant_px) / np.maximum(
            blur(counted, cells * constant_px), 1e-3
        )

    flat = whole - average(whole, _LEVEL_CELLS)
    contrast = np.sqrt(np.maximum(average(flat**2, _CONTRAST_CELLS), 0.0))
    return np.asarray(flat / np.maximum(contrast, _LEAST_CONTRAST * float(np.median(contrast)) + 1e-12))


def cut_crops(image: NDArray[np.floating], sites: Sites, *, some: NDArray[np.int64] | None = None) -> Real:
    """Crops centred on sites, each beside what is usually seen around its sublattice.

    Parameters
    ----------
    image
        Shape (rows, cols), see `level`.
    sites
        See `list_sites`.
    some
        Which of them, shape (n,); None for all.

    Returns
    -------
    Shape (n, 2, 24, 24): the crop, and the median of all crops of its sublattice. The site lies between the four pixels
    in the middle; of its three neighbours of the other sublattice one always lies below.
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
    wanted = np.arange(len(sites.positions)) if some is None else some
    crops = np.empty((len(wanted), 2, CROP_PX, CROP_PX), np.float32)
    for kind in (0, 1):
        mine = np.flatnonzero(sites.sublattice == kind)
        here = sites.sublattice[wanted] == kind
        if not here.any():
            continue
        frame = grid @ find_axes(sites, kind)

        def cut(places: Float, frame: Float = frame) -> Float:
            pixels = np.moveaxis(places[:, None, None] + frame, -1, 0)
            return np.asarray(
                ndimage.map_coordinates(smooth, pixels, order=3, mode="mirror", prefilter=False)
            )

        crops[here, 0] = cut(sites.positions[wanted[here]])
        crops[here, 1] = np.median(
            cut(sites.positions[mine[:: max(len(mine) // _MOST_FOR_MEDIAN, 1)]]), axis=0
        )
    return crops


def find_axes(sites: Sites, kind: int) -> Float:
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


@dataclass(frozen=True)
class Readings:
    """How bright sites are, against what repeats.

    Parameters
    ----------
    ratio
        Shape (n,): a site's height above the hollows between columns over that of its usual neighbours; 1 where all
        is as it should be, 0 where nothing stands.
    sigma
        Shape (n,): its scatter among usual neighbours (1 sigma).
    quiet
        Of either sublattice: scatter where no column stands over that on its columns, at most 1. Counting noise grows
        with what is counted.
    residual
        Shape (rows, cols): what does not repeat, seen through a filter as wide as a column, in units of its noise.
    floor
        Largest residual on any site of an image of the same spectrum without order; a smaller one may be chance.
    """

    ratio: Float
    sigma: Float
    quiet: tuple[float, float]
    residual: Float
    floor: float

    @property
    def z(self) -> Float:
        """Deviation from the usual in units of its scatter, shape (n,)."""
        return (self.ratio - 1.0) / self.sigma

    def over_chance(self, sites: Sites) -> Float:
        """What is seen on each site over what an image without order shows by chance, shape (n,)."""
        row, col = np.rint(sites.positions).astype(int).T
        return np.asarray(ndimage.maximum_filter(np.abs(self.residual), 3)[row, col] / self.floor)


def measure_sites(levelled: Float, sites: Sites) -> Readings:
    """Compare every site with the usual one of its sublattice.

    Parameters
    ----------
    levelled
        Shape (rows, cols), see `level`.
    sites
        See `list_sites`.
    """
    width = _WIDTH * sites.phases.lattice.constant_px
    model = repeat_cell(levelled, sites.phases)
    seen = np.where(sites.phases.crystal, levelled - model, 0.0)
    matched, usual = (ndimage.gaussian_filter(image, width) for image in (seen, model))
    heights = _sample(matched + usual, sites.positions)
    hollows = _find_hollows(sites)
    # A crop of the lattice without hollows is smaller than one cell: any level will do.
    levels = _sample(matched + usual, hollows) if len(hollows) else np.array([float(usual.min())])
    places = hollows if len(hollows) else np.zeros((1, 2))
    low = np.median(levels[_find_near(places, sites.positions)], axis=1)
    ratio, sigma = np.ones(len(heights)), np.full(len(heights), np.inf)
    excess = np.zeros(len(heights))
    spread_of = partial(stats.median_abs_deviation, scale="normal")
    dim = float(spread_of(_sample(matched, hollows))) if len(hollows) >= _NEIGHBOURS else np.inf
    quiet = [1.0, 1.0]
    for kind in (0, 1):
        mine = np.flatnonzero(sites.sublattice == kind)
        if not len(mine):
            continue
        near = _find_near(sites.positions[mine], sites.positions[mine])
        middle = np.median(heights[mine][near], axis=1)
        everywhere = max(float(np.median(middle - low[mine])), 1e-9)
        height = np.maximum(middle - low[mine], _LEAST_HEIGHT * everywhere)
        ratio[mine] = 1.0 + (heights[mine] - middle) / height
        spread = 1.4826 * np.median(np.abs(ratio[mine][near] - 1.0), axis=1)
        sigma[mine] = np.maximum(spread, _LEAST_SIGMA)
        excess[mine] = heights[mine] - middle
        quiet[kind] = min(dim / max(float(spread_of(excess[mine])), 1e-12), 1.0)
    ratio[_find_outshone(sites, excess, np.abs(ratio - 1.0) / sigma)] = 1.0
    scale, floor = _find_floor(seen, sites, width)
    return Readings(ratio, sigma, (quiet[0], quiet[1]), matched / scale, floor)


def _find_outshone(sites: Sites, excess: Float, z: Float) -> NDArray[np.int64]:
    """Sites that deviate only because one beside them does: columns are wider than the filter, and a heavy atom between
    two sites is one atom."""
    reach = _SPILL.beside_cells * sites.phases.lattice.constant_px
    pairs = cKDTree(sites.positions).query_pairs(reach, output_type="ndarray")
    order = np.argsort(np.abs(excess[pairs]), axis=1)
    less, more = np.take_along_axis(pairs, order, axis=1).T
    alike = (excess[less] * excess[more] > 0.0) & (z[more] > _SPILL.clear_z)
    spilled = (excess[more] > 0.0) | (np.abs(excess[less]) < _SPILL.darker_share * np.abs(excess[more]))
    return np.unique(less[alike & spilled])


def _find_near(these: Float, places: Float) -> NDArray[np.int64]:
    """Which of `these` are nearest to each place, shape (n, 30) or as many as there are."""
    _, near = cKDTree(these).query(places, k=min(_NEIGHBOURS, len(these)))
    return np.reshape(near, (len(places), -1))


def _find_hollows(sites: Sites) -> Float:
    """Where in the image no column stands, shape (n, 2)."""
    step = (sites.places[1] - sites.places[0]) @ np.linalg.inv(sites.phases.lattice.reciprocal).T
    hollows = sites.positions[sites.sublattice == 1] + step
    inside = ((hollows >= 0.0) & (hollows <= np.array(sites.phases.crystal.shape) - 1.0)).all(1)
    return np.asarray(hollows[inside])


def _sample(image: Float, places: Float) -> Float:
    return np.asarray(ndimage.map_coordinates(image, places.T, order=3, mode="mirror"))


def _find_floor(seen: Float, sites: Sites, width: float) -> tuple[float, float]:
    """Noise behind the filter, and the largest value over it that noise alone makes on a site of such an image.

    The residual's phases are drawn at random, so that its spectrum stays and all order goes; single defects, which
    would raise the spectrum however bright and frequent they are, are cut out before.
    """
    crystal = sites.phases.crystal
    matched = ndimage.gaussian_filter(seen, width)
    most = _CLEAR_SIGMA * measure_spread(matched[crystal] if crystal.any() else matched)
    defect = np.abs(matched) > most
    reach = _CUT_WIDTHS * width
    kept = ndimage.distance_transform_edt(~defect) > reach if defect.any() else np.ones(seen.shape, bool)
    spectrum = np.abs(fft.rfft2(np.where(kept, seen, 0.0))) / np.sqrt(max(float(kept.mean()), _LEAST_KEPT))
    row, col = np.rint(sites.positions).astype(int).T
    tops, scales = [], []
    rng = np.random.default_rng(0)
    for _ in range(_SURROGATES):
        phase = np.exp(2j * np.pi * rng.random(spectrum.shape))
        noise = ndimage.gaussian_filter(fft.irfft2(spectrum * phase, seen.shape), width)
        scales.append(float(noise.std()))
        tops.append(float(np.abs(noise[row, col]).max(initial=0.0)))
    scale = max(float(np.mean(scales)), 1e-12)
    return scale, max(float(np.mean(tops)) / scale, 1.0)
