"""Polygons with holes for formats without holes: a slit of no width leads from each hole to the outside."""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import Polygon

from flatscope.results.exports.rows import take_ring


def cut_keyholes(polygon: Polygon) -> NDArray[np.float64]:
    """Draw a polygon and its holes as one ring.

    Each slit is level and leads to the right, from the rightmost corner of a hole to the ring around it. Holes are
    taken from right to left, so that no slit meets a hole that is not yet part of the ring. Corners in the middle of a
    straight edge are left out.

    Parameters
    ----------
    polygon
        A valid polygon.

    Returns
    -------
    Corners, shape (n, 2), the first one not repeated. The ring has the polygon's area.

    Examples
    --------
    >>> square = shapely.box(0, 0, 9, 9).difference(shapely.box(3, 3, 5, 5))
    >>> ring = cut_keyholes(square)
    >>> len(ring), float(Polygon(ring).area)
    (11, 77.0)
    """
    turned = shapely.orient_polygons(shapely.simplify(polygon, 0.0))
    ring = take_ring(turned.exterior)
    holes = [take_ring(hole) for hole in turned.interiors]
    for hole in sorted(holes, key=lambda corners: -corners[:, 0].max()):
        ring = _join(ring, hole)
    return ring


def _join(ring: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """One ring from a ring and a hole in it."""
    first = int(hole[:, 0].argmax())
    x, y = hole[first]
    after = np.roll(ring, -1, axis=0)
    # Half-open, so that a corner at this height belongs to one of its two edges.
    crossing = np.flatnonzero((ring[:, 1] <= y) != (after[:, 1] <= y))
    start, end = ring[crossing], after[crossing]
    across = start[:, 0] + (y - start[:, 1]) * (end[:, 0] - start[:, 0]) / (end[:, 1] - start[:, 1])
    across[across < x] = np.inf
    nearest = int(across.argmin())
    edge = int(crossing[nearest])
    slit = [[across[nearest], y]]
    return np.concatenate(
        [ring[: edge + 1], slit, hole[first:], hole[: first + 1], slit, ring[edge + 1 :]], axis=0
    )
