"""Where the rows of a table lie in the picture: outlines, points and paths, each tied to a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import MultiPolygon, Polygon
from shapely.geometry.base import BaseGeometry


@dataclass(frozen=True)
class Marks:
    """Shapes in a picture.

    Parameters
    ----------
    ids
        Shape (n,), integers: the row's value of the table's `ROW_ID` column. Rows may have no mark; the rows of a track
        share one.
    shapes
        Shape (n,), shapely polygons, points or lines in pixels: x = column, y = row, whole numbers at pixel centres.
    shape_px
        Rows and columns of the picture.
    """

    ids: NDArray[np.int64]
    shapes: NDArray[np.object_]
    shape_px: tuple[int, int]

    def __post_init__(self) -> None:
        if len(self.ids) != len(self.shapes):
            raise ValueError(f"{len(self.shapes)} shapes with {len(self.ids)} ids: give one id a shape")
        object.__setattr__(self, "shape_px", (int(self.shape_px[0]), int(self.shape_px[1])))

    @classmethod
    def none(cls, shape_px: tuple[int, int]) -> Self:
        """No marks, in a picture of that many rows and columns."""
        return cls(np.empty(0, np.int64), np.empty(0, object), shape_px)

    @classmethod
    def outlines(cls, polygons: Mapping[int, BaseGeometry], shape_px: tuple[int, int]) -> Self:
        """Outlines of regions, by the id of their row."""
        shapes = np.empty(len(polygons), object)
        shapes[:] = list(polygons.values())
        return cls(np.array(list(polygons), np.int64), shapes, shape_px)

    @classmethod
    def points(cls, ids: Any, rows: Any, cols: Any, shape_px: tuple[int, int]) -> Self:
        """One point a row, from row and column numbers in pixels."""
        places = shapely.points(np.asarray(cols, float), np.asarray(rows, float))
        return cls(np.asarray(ids, np.int64), np.asarray(places, object), shape_px)

    @classmethod
    def paths(cls, ids: Any, rows: Any, cols: Any, shape_px: tuple[int, int]) -> Self:
        """One line a track through the places of its rows, in their order; a track of one row is a point."""
        ids, places = (
            np.asarray(ids, np.int64),
            np.column_stack([np.asarray(cols, float), np.asarray(rows, float)]),
        )
        tracks = np.unique(ids)
        shapes = np.empty(len(tracks), object)
        for place, track in enumerate(tracks):
            line = places[ids == track]
            shapes[place] = shapely.Point(line[0]) if len(line) == 1 else shapely.LineString(line)
        return cls(tracks, shapes, shape_px)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[tuple[int, BaseGeometry]]:
        return zip(self.ids.tolist(), self.shapes, strict=True)

    def __getitem__(self, row_id: int) -> BaseGeometry:
        """The shape of a row.

        Raises
        ------
        KeyError
            If the row has none.
        """
        (places,) = np.nonzero(self.ids == row_id)
        if not len(places):
            raise KeyError(row_id)
        return self.shapes[places[0]]

    def __contains__(self, row_id: object) -> bool:
        return bool((self.ids == row_id).any())


def trace_outlines(labels: NDArray[np.int32], which: NDArray[np.int64]) -> dict[int, BaseGeometry]:
    """Trace the outlines of regions.

    Parameters
    ----------
    labels
        Shape (rows, cols).
    which
        The labels to trace.

    Returns
    -------
    Label to polygon with holes, x = column and y = row of pixel centres; the line runs halfway between the pixels
    inside and outside, so the area is the number of pixels less a corner's half each. Parts that touch at a corner only
    make a multipolygon.

    Examples
    --------
    >>> labels = np.zeros((9, 9), np.int32)
    >>> labels[1:4, 1:4] = labels[4:6, 4:6] = 1
    >>> trace_outlines(labels, np.array([1]))[1].geom_type
    'MultiPolygon'
    """
    from skimage.measure import find_contours  # imported here: `flatscope --help` must not pay for it

    outlines: dict[int, BaseGeometry] = {}
    boxes = ndimage.find_objects(labels)
    for label in which.tolist():
        box = boxes[label - 1]
        mask = np.pad(labels[box] == label, 1).astype(np.float32)
        rings = [ring[:, ::-1] + (box[1].start - 1, box[0].start - 1) for ring in find_contours(mask, 0.5)]
        # Of the rings of one region, an outer one reaches farthest to the left; holes run the other way round.
        rings.sort(key=lambda ring: float(ring[:, 0].min()))
        ways = [_signed_area(ring) > 0 for ring in rings]
        outer = [Polygon(ring) for ring, way in zip(rings, ways, strict=True) if way == ways[0]]
        holes = [ring for ring, way in zip(rings, ways, strict=True) if way != ways[0]]
        parts = [_with_holes(part, holes if len(outer) == 1 else _inside(part, holes)) for part in outer]
        outlines[label] = parts[0] if len(parts) == 1 else MultiPolygon(parts)
    return outlines


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return float(x[:-1] @ y[1:] - x[1:] @ y[:-1])


def _with_holes(outer: Polygon, holes: list[NDArray[np.float64]]) -> Polygon:
    return Polygon(outer.exterior.coords, holes)


def _inside(outer: Polygon, holes: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
    return [hole for hole in holes if outer.contains(Polygon(hole))]
