"""A focal series as networks see it: its pixels brought to their size, each image divided by its background."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse, special
from scipy.sparse import csgraph
from scipy.spatial import cKDTree
from skimage.feature import peak_local_max

from flatscope.electron.kinds import (
    BACKGROUND,
    COLUMN_CLASSES,
    FIRST,
    OTHER,
    PART,
    SECOND,
    UNKNOWN,
    classify_columns,
)
from flatscope.electron.lattice import Lattice, blur
from flatscope.electron.physics.crystals import Crystal, Sheet
from flatscope.inference.runtime import Network

Float: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32]

PIXEL_NM = 0.025
"""Pixel of the networks: a column's image is some three of them wide."""
_BACKGROUND_NM = 1.0
_DISK_NM = 0.055
"""A column's pixels in the truth."""
MAPS = ("down", "right", "log_sigma")
"""From a pixel to its column's middle, pixels; logarithm of that distance's 1-sigma error along either axis."""
LEAST_PRESENCE = 0.5
"""Probability from which a column is there."""
_SMOOTH_PX, _APART_PX, _FAINTEST, _SAME_PX = 0.8, 2, 0.15, 2.5
"""Filter, distance and height of the tops of a column's probability; columns closer than the last are one."""
_NEAR = np.array([(row, col) for row in range(-2, 3) for col in range(-2, 3) if row**2 + col**2 <= 5])
_CORE = np.array([(row, col) for row in range(-1, 2) for col in range(-1, 2)])
"""Pixels about a top that say where the middle is, and about the middle that say what stands there."""
_BOND_REACH, _AROUND_NM, _SAY, _LOUDEST, _ANTISITE, _TINY = 1.35, 1.0, 0.2, 3.0, 0.06, 1e-3
"""Of sublattices: columns within so many bonds are neighbours; how far columns tell each other (1 sigma), and how much
each of them says at most; how often a column stands on the wrong sublattice."""
_CLOSURE_RAD, _LARGEST_DRIFT, _WEAK = 0.6, 0.15, 0.27
"""Of drift: how well the phases of three Bragg peaks must agree; how far it may be, in lattice constants, as doubled
phases begin again beyond a quarter of a plane distance; and the share of the strongest peaks below which a phase says
nothing."""


def normalise(images: NDArray[np.floating], *, pixel_nm: float = PIXEL_NM) -> Real:
    """Each image over its background less 1, all in units of their common standard deviation.

    Parameters
    ----------
    images
        Shape (images, rows, cols), counts or any other linear unit.
    pixel_nm
        Side of a pixel.
    """
    flat = np.stack(
        [image / np.maximum(blur(image, _BACKGROUND_NM / pixel_nm), 1e-9) - 1.0 for image in images]
    )
    return np.asarray(flat / max(float(flat.std()), 1e-9), np.float32)


def resample(images: NDArray[np.floating], factor: float) -> Real:
    """Bring images to pixels `factor` times as large; counts a pixel stay what they are on average.

    Parameters
    ----------
    images
        Shape (images, rows, cols).
    factor
        Above 1, what falls on parts of old pixels is averaged over each new one; below, values are interpolated.

    Notes
    -----
    New pixel i has its centre at ``(i + 0.5) * factor - 0.5`` of the old ones.
    """
    rows, cols = (_average(side, factor) for side in images.shape[1:])
    return np.asarray(rows @ np.asarray(images, np.float32) @ cols.T, np.float32)


def _average(side: int, factor: float) -> Real:
    """Matrix that averages `side` pixels over new ones, shape (new, side)."""
    count = max(int(side / factor), 1)
    middle = (np.arange(count) + 0.5) * factor - 0.5
    away = np.abs(np.arange(side)[None] - middle[:, None])
    # A box of the new width over old pixels; narrower than one old pixel it turns into linear interpolation.
    reach = 0.5 * (max(factor, 1.0) + 1.0)
    weights = np.clip(reach - away, 0.0, 1.0)
    return np.asarray(weights / weights.sum(1, keepdims=True), np.float32)


def mark_columns(
    sheet: Sheet, crystal: Crystal, *, shape: tuple[int, int], pixel_nm: float = PIXEL_NM
) -> Real:
    """Truth of every pixel: class of its column, and the way to the column's middle.

    Parameters
    ----------
    sheet
        Its positions count from the centre of the first pixel.
    crystal
        Tells which columns are whole.
    shape
        Rows and columns of the images.
    pixel_nm
        Side of a pixel.

    Returns
    -------
    Shape (rows, cols, 3): class, or 255 where nobody could tell; pixels down and right to the middle.
    """
    truth = np.zeros((*shape, 3), np.float32)
    radius = _DISK_NM / pixel_nm
    offsets = np.arange(-int(np.ceil(2.0 * radius)), int(np.ceil(2.0 * radius)) + 1)
    classes = classify_columns(sheet, crystal)
    places = sheet.sites_nm / pixel_nm
    # What is ignored comes first, so that a column beside it stays one.
    for chosen, reach in ((classes == UNKNOWN, 2.0 * radius), ((classes > 0) & (classes != UNKNOWN), radius)):
        base = np.rint(places[chosen]).astype(int)
        rows, cols, name = np.broadcast_arrays(
            base[:, 0, None, None] + offsets[:, None],
            base[:, 1, None, None] + offsets,
            classes[chosen, None, None],
        )
        down, right = places[chosen, 0, None, None] - rows, places[chosen, 1, None, None] - cols
        inside = (
            (np.hypot(down, right) <= reach)
            & (rows >= 0)
            & (rows < shape[0])
            & (cols >= 0)
            & (cols < shape[1])
        )
        truth[rows[inside], cols[inside]] = np.stack([name[inside], down[inside], right[inside]], axis=1)
    return truth


@dataclass(frozen=True)
class Reading:
    """What a network says of the columns of a series, one entry a column.

    Parameters
    ----------
    positions
        Shape (n, 2), (row, col) in the network's pixels.
    sigma
        1-sigma error of either coordinate, the same pixels; shape (n,).
    p
        Shape (n, 5), probability of each class: background, first, second, part, other.
    contrast
        Shape (n, images), of the normalised images at each column.
    """

    positions: Float
    sigma: Float
    p: Float
    contrast: Float


def read_columns(network: Network, images: Real, *, least_p: float = LEAST_PRESENCE) -> Reading:
    """Find the columns in a normalised series.

    Parameters
    ----------
    network
        Weights for the task "columns".
    images
        Shape (3, rows, cols), see `resample` and `normalise`.
    least_p
        A column is there where its probability is at least this.
    """
    logits = network.predict(images)
    count = len(COLUMN_CLASSES)
    p = special.softmax(logits[:count].astype(float), axis=0)
    down, right, log_sigma = logits[count:].astype(float)
    smooth = ndimage.gaussian_filter(1.0 - p[BACKGROUND], _SMOOTH_PX)
    tops = peak_local_max(smooth, min_distance=_APART_PX, threshold_abs=_FAINTEST, exclude_border=False)
    # Every pixel about a top says where it thinks the middle is; the mean counts by how sure each is of a column.
    near = tops[:, None] + _NEAR
    rows, cols = (np.clip(near[..., axis], 0, side - 1) for axis, side in enumerate(smooth.shape))
    weight = (1.0 - p[BACKGROUND, rows, cols]) * np.exp(-2.0 * log_sigma[rows, cols])
    weight /= weight.sum(1, keepdims=True)
    positions = np.stack(
        [(weight * (rows + down[rows, cols])).sum(1), (weight * (cols + right[rows, cols])).sum(1)], axis=1
    )
    sigma = np.exp((weight * log_sigma[rows, cols]).sum(1))
    inner = np.clip(np.rint(positions).astype(int), 0, np.array(smooth.shape) - 1)[:, None] + _CORE
    inner = np.clip(inner, 0, np.array(smooth.shape) - 1)
    chances = p[:, inner[..., 0], inner[..., 1]].mean(2).T
    kept = _drop_doubles(positions, 1.0 - chances[:, BACKGROUND], least_p)
    blurred = [ndimage.gaussian_filter(image, _SMOOTH_PX) for image in images]
    contrast = np.stack(
        [ndimage.map_coordinates(image, positions[kept].T, order=1, mode="nearest") for image in blurred]
    )
    return Reading(positions[kept], sigma[kept], chances[kept], contrast.T)


def _drop_doubles(positions: Float, presence: Float, least_p: float) -> NDArray[np.int64]:
    """Columns that are likely there; of two that are one, the surer."""
    order = np.argsort(-presence, kind="stable")
    taken = presence >= least_p
    tree = cKDTree(positions) if len(positions) else None
    for index in order:
        if tree is not None and taken[index]:
            others = np.array(tree.query_ball_point(positions[index], _SAME_PX))
            taken[others[(others != index)]] = False
    return np.flatnonzero(taken)


def find_clearest(images: NDArray[np.floating], lattice: Lattice) -> int:
    """Which image of a series shows the lattice best."""
    peaks = np.abs(_measure_peaks(images, lattice)).min(1)
    return int(np.argmax(peaks / images.std((1, 2))))


def find_drift(images: NDArray[np.floating], lattice: Lattice) -> Float:
    """Shift of every image against the clearest one, pixels.

    The phases of three Bragg peaks tell it, doubled since the contrast of a lattice turns round with defocus.

    Returns
    -------
    Shape (images, 2), (rows, cols); that of the images about it where one shows the lattice too weakly to tell; NaN
    where the three peaks disagree, or where the shift is so large that it could as well be another one.

    Notes
    -----
    A shift by a whole lattice vector looks like none.
    """
    reciprocal = np.vstack([lattice.reciprocal, lattice.reciprocal[1] - lattice.reciprocal[0]])
    peaks = _measure_peaks(images, lattice)
    strength = np.abs(peaks) / images.std((1, 2))[:, None]
    strong = np.flatnonzero(strength.min(1) >= _WEAK * np.median(strength.max(0)))
    clearest = find_clearest(images, lattice)
    if clearest not in strong:
        return np.zeros((len(images), 2))
    # From one strong image to the next, as these lie closer to each other than to the clearest.
    places = np.zeros((len(strong), 2))
    for index in range(1, len(strong)):
        turned = np.angle((peaks[strong[index]] * np.conj(peaks[strong[index - 1]])) ** 2)
        step = np.linalg.lstsq(-4.0 * np.pi * reciprocal, turned, rcond=None)[0]
        left = np.abs(turned + 4.0 * np.pi * reciprocal @ step).max()
        if left > _CLOSURE_RAD or np.hypot(*step) > _LARGEST_DRIFT * lattice.constant_px:
            step = np.full(2, np.nan)
        places[index] = places[index - 1] + step
    places -= places[strong == clearest]
    every = np.arange(len(images))
    return np.stack([np.interp(every, strong, places[:, axis]) for axis in (0, 1)], axis=1)


def _measure_peaks(images: NDArray[np.floating], lattice: Lattice) -> NDArray[np.complex128]:
    """Amplitudes of three Bragg peaks in each image, shape (images, 3)."""
    rows, cols = (np.arange(side) for side in images.shape[1:])
    window = np.outer(*(np.hanning(side) for side in images.shape[1:]))
    flat = (images - images.mean((1, 2), keepdims=True)) * window
    third = lattice.reciprocal[1] - lattice.reciprocal[0]
    peaks = [
        (flat @ np.exp(-2j * np.pi * across * cols)) @ np.exp(-2j * np.pi * down * rows)
        for down, across in (*lattice.reciprocal, third)
    ]
    return np.stack(peaks, axis=1)


def align(images: NDArray[np.floating], shifts: Float) -> Real:
    """Images moved back by their shifts; what moves in is the mirrored rim."""
    return np.stack(
        [
            ndimage.shift(np.asarray(image, np.float32), -shift, order=1, mode="mirror")
            if shift.any()
            else image
            for image, shift in zip(images, shifts, strict=True)
        ]
    ).astype(np.float32)


def settle_sublattices(reading: Reading) -> tuple[NDArray[np.int64], Float]:
    """Sublattice of each column, and its kinds' probabilities given that neighbours alternate.

    A network judges each column by what is around it; in a honeycomb every column also says what its neighbours are
    not. Columns are coloured in turn from neighbour to neighbour, and what the network says of all within two
    nanometres decides which colour is which, so that a grain's boundary may change it.

    Parameters
    ----------
    reading
        See `read_columns`.

    Returns
    -------
    Sublattice (0 or 1), shape (n,); probabilities of the classes, shape (n, 5).
    """
    p = reading.p
    count = len(p)
    if count < 2:
        return np.asarray(p[:, FIRST] <= p[:, SECOND] + p[:, PART], np.int64), p
    tree = cKDTree(reading.positions)
    bond = float(np.median(tree.query(reading.positions, k=2)[0][:, 1]))
    pairs = tree.query_pairs(_BOND_REACH * bond, output_type="ndarray")
    links = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count)).tocsr()
    colour = _colour(links + links.T)
    lean = np.log((p[:, FIRST] + _TINY) / (p[:, SECOND] + p[:, PART] + _TINY))
    # What neighbours say is not independent: each counts a little.
    away = tree.sparse_distance_matrix(tree, 2.0 * _AROUND_NM / PIXEL_NM, output_type="coo_matrix")
    weight = _SAY * np.exp(-0.5 * (away.data * PIXEL_NM / _AROUND_NM) ** 2)
    said = np.bincount(away.row, weight * (colour * np.clip(lean, -_LOUDEST, _LOUDEST))[away.col], count)
    first = special.expit(2.0 * colour * said)
    chance = first * (1.0 - _ANTISITE) + (1.0 - first) * _ANTISITE
    prior = np.ones_like(p)
    prior[:, FIRST] = chance
    prior[:, SECOND] = prior[:, PART] = 1.0 - chance
    prior[:, [BACKGROUND, OTHER]] = 0.5
    settled = p * prior
    return np.where(first >= 0.5, 0, 1), settled / settled.sum(1, keepdims=True)


def _colour(links: sparse.csr_array) -> Float:
    """+1 and -1 in turn from neighbour to neighbour."""
    count = links.shape[0]
    colour = np.zeros(count)
    for start in range(count):
        if colour[start]:
            continue
        order, before = csgraph.breadth_first_order(links, start, directed=False)
        colour[start] = 1.0
        for index in order[1:]:
            colour[index] = -colour[before[index]]
    return colour
