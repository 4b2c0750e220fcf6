"""labelme: one JSON file a picture, with polygons, points and lines that can be moved by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.results.exports.keyhole import cut_keyholes
from flatscope.results.exports.rows import CORNER_PX, MarkedRow, list_marked, split_shape
from flatscope.results.table import Table

_VERSION = "5.5.0"  # of the format: labelme's own number, which its reader compares
_DECIMALS = 3  # of a coordinate in px


def encode_labelme(table: Table) -> bytes:
    """The marks of one picture, which labelme looks for beside the file.

    labelme's polygons know no holes: a slit of no width leads to each.
    """
    height, width = table.marks.shape_px
    whole = {
        "version": _VERSION,
        "flags": {},
        "shapes": [shape for row in list_marked(table) for shape in _draw(row)],
        "imagePath": table.provenance.image,
        "imageData": None,
        "imageHeight": height,
        "imageWidth": width,
        "flatscope": table.provenance.to_dict(),
    }
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _draw(row: MarkedRow) -> Iterator[dict[str, Any]]:
    """The shapes of a row: one a part of its mark."""
    for part in split_shape(row.shape):
        kind = {"Polygon": "polygon", "LineString": "linestrip"}.get(part.geom_type, "point")
        corners = cut_keyholes(part) if kind == "polygon" else np.asarray(part.coords, float)[:, :2]
        yield {
            "label": row.label,
            "points": _to_corner(corners),
            "group_id": row.row_id,
            "description": f"{row.status}: {row.reason}" if row.reason else row.status,
            "shape_type": kind,
            "flags": {},
        }


def _to_corner(points: NDArray[np.float64]) -> list[list[float]]:
    return np.round(points + CORNER_PX, _DECIMALS).tolist()
