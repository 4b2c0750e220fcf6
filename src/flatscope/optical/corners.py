"""Corners of a crystal whose edges lie in six directions: found by its fit, or set by hand and read as an angle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.edges import EdgeFit, Mask, fit_edges
from flatscope.optical.orientation import Orientation, find_orientation
from flatscope.results.marks import trace_outlines

_HAND_PX = 1.0
"""1-sigma error of a corner that somebody sets by hand."""
_SIMPLE_PX = 0.5

Places = NDArray[np.float64]
"""Shape (n, 2): rows and columns."""


@dataclass(frozen=True)
class Crystal:
    """The outline of one layer and the corners of the shape that was fitted to it.

    Parameters
    ----------
    outline
        As the segmentation has it, in pixels of the picture.
    corners
        Of the fitted shape; none where fewer than three straight edges are seen.
    """

    outline: Places
    corners: Places


def find_corners(mask: Mask, hidden: Mask, first: tuple[int, int]) -> Crystal:
    """Outline and fitted corners of a layer.

    Parameters
    ----------
    mask, hidden
        As for `fit_edges`.
    first
        Row and column of their first pixel in the picture.
    """
    shape = trace_outlines(mask.astype(np.int32), np.array([1]))[1]
    largest = max(getattr(shape, "geoms", [shape]), key=lambda part: part.area)
    ring = np.asarray(largest.simplify(_SIMPLE_PX).exterior.coords, float)[:-1, ::-1] + first
    fit = fit_edges(mask, hidden)
    corners = np.zeros((0, 2)) if fit is None else _intersect(fit) + first
    return Crystal(ring, corners)


def _intersect(fit: EdgeFit) -> Places:
    """Where neighbouring edges meet, in rows and columns of the mask."""
    there = [kind for kind in range(6) if fit.lengths_px[kind] > 0 and np.isfinite(fit.places_px[kind])]
    places = []
    for kind, following in zip(there, [*there[1:], *there[:1]], strict=True):
        angles = np.deg2rad(fit.centre_deg + 60.0 * np.array([kind, following]))
        normals = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        if abs(np.linalg.det(normals)) < 0.1:  # parallel edges: the shape is open there
            return np.zeros((0, 2))
        x, y = np.linalg.solve(normals, fit.places_px[[kind, following]]) + fit.middle_px
        places.append((-y, x))
    return np.array(places, float).reshape(-1, 2)


def orient_by_corners(corners: Sequence[tuple[float, float]]) -> Orientation:
    """Orientation of a crystal whose corners somebody set.

    Parameters
    ----------
    corners
        Three to six, rows and columns, in their order around the crystal.

    Raises
    ------
    ValueError
        If there are fewer, or they lie on one spot.
    """
    places = np.asarray(corners, float)
    if not 3 <= len(places) <= 6:
        raise ValueError(f"{len(places)} corners: a crystal has three to six")
    x, y = places[:, 1], -places[:, 0]
    area = float(x @ np.roll(y, -1) - y @ np.roll(x, -1))
    if area < 0:
        x, y = x[::-1], y[::-1]
    across, up = np.roll(x, -1) - x, np.roll(y, -1) - y
    lengths = np.hypot(across, up)
    if abs(area) < 1.0 or lengths.min() < 1.0:
        raise ValueError("the corners lie on one spot or line: drag them apart")
    normal = np.rad2deg(np.arctan2(up, across)) - 90.0
    centre = float(np.rad2deg(np.angle((lengths**2 * np.exp(6j * np.deg2rad(normal))).sum())) / 6.0)
    kinds = np.rint((normal - centre) / 60.0).astype(int) % 6
    by_kind = np.bincount(kinds, lengths, 6).astype(float)
    sigma = float(np.rad2deg(np.sqrt(2.0) * _HAND_PX / np.sqrt((lengths**2).sum())))
    return find_orientation(centre, by_kind, sigma, method="by hand")
