"""A focal series as networks see it: its pixels brought to their size, each image divided by its background.

What a network says of every pixel is then read as columns, and neighbours agree on the sublattices.
"""

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
from flatscope.electron.levelling import blur
from flatscope.electron.physics.crystals import Crystal, Sheet
from flatscope.inference.runtime import Network

Float: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32]

PIXEL_NM = 0.025
"""Pixel of the networks: a column's image is some three of them wide."""
_BACKGROUND_NM = 1.0  # Gaussian (1 sigma) that the background is smooth over
_DISK_NM = 0.055  # radius of a column's pixels in the truth
MAPS = ("down", "right", "log_sigma")
"""From a pixel to its column's middle, pixels; logarithm of that distance's 1-sigma error along either axis."""
LEAST_PRESENCE = 0.5
"""Probability from which a column is there."""
_SMOOTH_PX = 0.8  # Gaussian (1 sigma) over the probability of a column before its tops are looked for
_APART_PX = 2  # least distance of two tops
_FAINTEST = 0.15  # least height of a top
_SAME_PX = 2.5  # columns closer than this are one
_NEAR = np.array([(row, col) for row in range(-2, 3) for col in range(-2, 3) if row**2 + col**2 <= 5])
"""Pixels about a top that say where the column's middle is."""
_CORE = np.array([(row, col) for row in range(-1, 2) for col in range(-1, 2)])
"""Pixels about the middle that say what stands there."""


@dataclass(frozen=True)
class _SublatticeVote:
    """How neighbouring columns tell each other which sublattice they are on."""

    bond_reach: float = 1.35  # bond lengths to a neighbour; the second shell of a honeycomb begins at 1.73
    range_nm: float = 1.0  # 1-sigma range of a vote
    weight: float = 0.2  # of one vote: neighbours see the same pixels, so votes depend on each other
    cap: float = 3.0  # largest log-odds of one vote
    antisite: float = 0.06  # prior share of columns on the wrong sublattice
    tiny: float = 1e-3  # added to probabilities before their logarithm


_VOTE = _SublatticeVote()


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
    Shape (rows, cols, 3): class, or 255 where it cannot be seen; pixels down and right to the middle.
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
    # Every pixel about a top states where the middle is; they are averaged by how sure each is of a column.
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
    """The likely columns; of two finds on one column, the surer."""
    order = np.argsort(-presence, kind="stable")
    taken = presence >= least_p
    tree = cKDTree(positions) if len(positions) else None
    for index in order:
        if tree is not None and taken[index]:
            others = np.array(tree.query_ball_point(positions[index], _SAME_PX))
            taken[others[(others != index)]] = False
    return np.flatnonzero(taken)


def settle_sublattices(reading: Reading) -> tuple[NDArray[np.int64], Float]:
    """Sublattice of each column, and its kinds' probabilities given that neighbours alternate.

    A network names each column by what is around it; in a honeycomb, neighbours are on different sublattices. Columns
    are coloured in turn from neighbour to neighbour. The network's opinions of all columns within two nanometres decide
    which colour is which, so that it may change at a grain boundary.

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
    pairs = tree.query_pairs(_VOTE.bond_reach * bond, output_type="ndarray")
    links = sparse.coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(count, count)).tocsr()
    colour = _colour(links + links.T)
    lean = np.log((p[:, FIRST] + _VOTE.tiny) / (p[:, SECOND] + p[:, PART] + _VOTE.tiny))
    away = tree.sparse_distance_matrix(tree, 2.0 * _VOTE.range_nm / PIXEL_NM, output_type="coo_matrix")
    weight = _VOTE.weight * np.exp(-0.5 * (away.data * PIXEL_NM / _VOTE.range_nm) ** 2)
    votes = np.bincount(away.row, weight * (colour * np.clip(lean, -_VOTE.cap, _VOTE.cap))[away.col], count)
    first = special.expit(2.0 * colour * votes)
    chance = first * (1.0 - _VOTE.antisite) + (1.0 - first) * _VOTE.antisite
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
