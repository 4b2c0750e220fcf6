"""The region of one colour around a place: what a click draws where no region was found."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.results.marks import trace_outlines

_SMOOTH_PX = 1.2
"""Noise is averaged over this radius first; edges blur by about as much in a picture."""
_PATCH_PX = 2
"""The colour of the place is the median of a square that reaches this far."""
_STEPS = np.linspace(2.0, 8.0, 13)
"""Tolerances that are tried, in units of the noise."""
_LEAK = 1.6
"""A flood that grows by this factor between two tolerances has run over an edge."""
_SIMPLE_PX = 1.2
"""Corners that change the outline by less are left out."""

Places = NDArray[np.float64]


def flood(pixels: NDArray[np.uint8], row: float, col: float) -> Places:
    """Find the region of one colour around a place.

    The tolerance grows in steps of the picture's noise until the region runs over an edge; the step before counts.

    Parameters
    ----------
    pixels
        Shape (rows, cols, 3).
    row, col
        The place.

    Returns
    -------
    Corners of the outer boundary, shape (n, 2), rows and columns; none where the place lies outside or alone.

    Examples
    --------
    >>> picture = np.zeros((40, 40, 3), np.uint8)
    >>> picture[10:30, 10:30] = 90
    >>> corners = flood(picture, 20, 20)
    >>> corners.min(axis=0).round().tolist(), corners.max(axis=0).round().tolist()
    ([10.0, 10.0], [30.0, 30.0])
    """
    rows, cols = pixels.shape[:2]
    at = round(row), round(col)
    if not (0 <= at[0] < rows and 0 <= at[1] < cols):
        return np.zeros((0, 2))
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (_SMOOTH_PX, _SMOOTH_PX, 0))
    rim = (
        slice(max(at[0] - _PATCH_PX, 0), at[0] + _PATCH_PX + 1),
        slice(max(at[1] - _PATCH_PX, 0), at[1] + _PATCH_PX + 1),
    )
    colour = np.median(smooth[rim].reshape(-1, 3), axis=0)
    noise = np.maximum(1.48 * np.median(np.abs(np.diff(smooth, axis=1)), axis=(0, 1)), 0.5)
    far = np.sqrt((((smooth - colour) / noise) ** 2).mean(axis=2))
    best: NDArray[np.bool_] | None = None
    for tolerance in _STEPS:
        labels, _ = ndimage.label(far < tolerance)
        if not labels[at]:
            continue
        region = labels == labels[at]
        if best is not None and region.sum() > _LEAK * best.sum() and best.sum() > 4 * _PATCH_PX**2:
            break
        best = region
    if best is None:
        return np.zeros((0, 2))
    return _trace(best)


def _trace(region: NDArray[np.bool_]) -> Places:
    whole = ndimage.binary_fill_holes(ndimage.binary_opening(region) | region)
    shape = trace_outlines(np.asarray(whole, np.int32), np.array([1]))[1]
    largest = max(getattr(shape, "geoms", [shape]), key=lambda part: part.area)
    corners = np.asarray(largest.simplify(_SIMPLE_PX).exterior.coords, float)[:-1]
    return corners[:, ::-1]
