"""Where the rows of a table lie in the picture: outlines, points and paths, each tied to a row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import shapely
from numpy.typing import NDArray
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
