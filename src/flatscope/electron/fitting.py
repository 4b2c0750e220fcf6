"""Columns of an image fitted together: Gaussians of one width on a smooth background, with errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize
from scipy.spatial import cKDTree

from flatscope.electron.levelling import blur

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

REACH_SIGMA = 2.5  # half side of the square that a column is fitted on, in widths
_MARGIN_PX = 1  # by which that square is larger, so that moving columns stay inside
_ROUNDS = 12  # of the joint fit
_DAMPING = 0.7  # share of each improvement that is taken
_MOST_STEP = 0.3  # largest step of a column in one round, pixels
LARGEST_SHIFT = 0.45  # farthest that a column goes from its site, as a share of the distance to the next one
VAGUE_SHARE = 0.12  # 1-sigma error, as a share of that distance, from which a place is uncertain
_BACKGROUND_CELLS = 1.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_BLOCK = 8  # side of the blocks of frequencies over which noise is averaged


@dataclass(frozen=True)
class ColumnFit:
    """Gaussians fitted to all columns together.

    Parameters
    ----------
    positions
        Shape (n, 2), (row, col) in pixels.
    heights
        Shape (n,), above the background.
    position_sigma, height_sigma
        1-sigma errors, shape (n,); the first is that of either coordinate.
    width_px
        Of all columns (1 sigma).
    background
        Shape of the image.
    residual
        What is left of it.
    correlated
        By how much correlated noise makes the errors of positions larger; in them already.
    """

    positions: Float
    heights: Float
    position_sigma: Float
    height_sigma: Float
    width_px: float
    background: Float
    residual: Float
    correlated: float


def measure_spacing(positions: Float) -> float:
    """Median distance of a column to the next one."""
    if len(positions) < 2:
        return np.inf
    return float(np.median(cKDTree(positions).query(positions, k=2)[0][:, 1]))


def fit_columns(image: Float, positions: Float, spacing_px: float, *, seen: Mask | None = None) -> ColumnFit:
    """Fit all columns together.

    Parameters
    ----------
    image
        Shape (rows, cols).
    positions
        Where to start, shape (n, 2).
    spacing_px
        Distance of neighbouring columns: the scale of widths, shifts and the background.
    seen
        Pixels that count, shape (rows, cols), without dirt; None for all.

    Notes
    -----
    Each column's height and place are improved on what all others leave, again and again: a block Gauss–Newton fit.
    Errors follow from the scatter of the residual around each column, and from how far it is correlated.
    """
    counted = np.ones(image.shape) if seen is None else seen.astype(float)
    width = _find_width(image, counted, positions, spacing_px)
    return _fit(image, counted, positions, width, spacing_px, rounds=_ROUNDS)


def _find_width(image: Float, counted: Float, positions: Float, spacing: float) -> float:
    """The common width that leaves least, found on a part of a large image."""
    side = int(min(*image.shape, 40.0 * spacing))
    top, left = ((length - side) // 2 for length in image.shape)
    corner = np.array([top, left])
    inside = ((positions >= corner) & (positions < corner + side)).all(1)
    cut = np.s_[top : top + side, left : left + side]
    part, weight, near = image[cut], counted[cut], positions[inside] - corner
    if len(near) < 4 or not weight.any():
        part, weight, near = image, counted, positions

    def left_over(width: float) -> float:
        return float(np.square(_fit(part, weight, near, width, spacing, rounds=4).residual).mean())

    found = optimize.minimize_scalar(
        left_over,
        bounds=(0.15 * spacing, 0.55 * spacing),
        method="bounded",
        options={"xatol": 0.01 * spacing},
    )
    return float(found.x)


def _fit(
    image: Float, counted: Float, start: Float, width: float, spacing: float, *, rounds: int
) -> ColumnFit:
    """Fit columns of one width; `counted` is 1 where pixels count and 0 elsewhere."""
    reach = int(np.ceil(REACH_SIGMA * width)) + _MARGIN_PX
    offsets = np.arange(-reach, reach + 1)
    rows, cols = image.shape
    smooth = _BACKGROUND_CELLS * np.sqrt(3.0) * spacing
    positions = start.copy()
    base = np.rint(start).astype(int)
    down = base[:, 0, None, None] + offsets[None, :, None]
    across = base[:, 1, None, None] + offsets[None, None, :]
    inside = (down >= 0) & (down < rows) & (across >= 0) & (across < cols)
    index = np.where(inside, down * cols + across, 0).reshape(len(start), -1)
    weight, full = (
        (inside * counted.ravel()[index].reshape(inside.shape)).reshape(len(start), -1),
        inside.shape,
    )
    share = np.maximum(blur(counted, smooth), 1e-6)
    background = blur(ndimage.minimum_filter(image, int(spacing) | 1) * counted, smooth) / share
    heights = (image - background)[np.clip(base[:, 0], 0, rows - 1), np.clip(base[:, 1], 0, cols - 1)].clip(
        0.0
    )
    for step in range(rounds + 1):
        dy = (down - positions[:, 0, None, None]) / width
        dx = (across - positions[:, 1, None, None]) / width
        shape = np.exp(-0.5 * (dy**2 + dx**2)).reshape(len(start), -1) * weight
        model = np.bincount(index.ravel(), (heights[:, None] * shape).ravel(), image.size).reshape(
            image.shape
        )
        background = blur((image - model) * counted, smooth) / share
        residual = (image - model - background) * counted
        turned = [np.broadcast_to(along, full).reshape(shape.shape) for along in (dy, dx)]
        slopes = np.stack([shape, *(heights[:, None] / width * along * shape for along in turned)], axis=1)
        normal = slopes @ slopes.transpose(0, 2, 1)
        normal += 1e-6 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(3) + 1e-12 * np.eye(3)
        left = residual.ravel()[index] * weight
        if step == rounds:
            break
        change = np.linalg.solve(normal, (slopes @ left[..., None]))[..., 0]
        heights = heights + _DAMPING * change[:, 0]
        positions = positions + np.clip(_DAMPING * change[:, 1:], -_MOST_STEP, _MOST_STEP)
        shift = positions - start
        far = np.hypot(*shift.T) / (LARGEST_SHIFT * spacing)
        positions = start + shift / np.maximum(far, 1.0)[:, None]
    variance = (left**2 * shape).sum(1) / np.maximum(shape.sum(1), 1e-9)
    covariance = np.linalg.inv(normal) * variance[:, None, None]
    factors = _correlation(residual, width)
    errors = np.sqrt(np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 0.0)) * factors
    return ColumnFit(
        positions,
        heights,
        np.sqrt(0.5 * (errors[:, 1] ** 2 + errors[:, 2] ** 2)),
        errors[:, 0],
        width,
        background,
        residual,
        float(factors[1:].max()),
    )


def _correlation(residual: Float, width: float) -> Float:
    """By how much errors of height, row and column exceed those of independent pixels, shape (3,), at least 1.

    What a column's height or place takes up is the noise in a band of frequencies; filtered or resampled images, and
    detectors that lag, have more of it there than elsewhere.
    """
    # Medians over blocks of frequencies: what the Gaussians leave of the columns themselves stands in single ones.
    window = np.outer(*(np.hanning(side) for side in residual.shape))
    power = _blocks(np.abs(fft.fft2(residual * window)) ** 2, np.median)
    offsets = [np.minimum(np.arange(side), side - np.arange(side)) / width for side in residual.shape]
    below, right = (
        np.where(np.arange(side) * 2 < side, 1.0, -1.0) * offset
        for side, offset in zip(residual.shape, offsets, strict=True)
    )
    shape = np.exp(-0.5 * (offsets[0][:, None] ** 2 + offsets[1][None] ** 2))
    factors = []
    for template in (shape, shape * below[:, None], shape * right[None]):
        band = _blocks(np.abs(fft.fft2(template)) ** 2, np.mean)
        factors.append(float((band * power).sum() / band.sum() / max(float(power.mean()), 1e-300)))
    return np.sqrt(np.maximum(factors, 1.0))


def _blocks(power: Float, of: Callable[..., Any]) -> Float:
    """A statistic of each block of 8×8 frequencies."""
    rows, cols = (max(side // _BLOCK, 1) for side in power.shape)
    high, wide = (min(side, _BLOCK) for side in power.shape)
    cut = power[: rows * high, : cols * wide].reshape(rows, high, cols, wide)
    return np.asarray(of(cut, axis=(1, 3)))
