"""COCO: regions with masks, atomic columns and defects as keypoints, for the tools of object detection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from flatscope.results.answers import FlakeTable
from flatscope.results.exports.rows import (
    CORNER_PX,
    MarkedRow,
    describe_origin,
    list_marked,
    split_shape,
    take_ring,
)
from flatscope.results.table import Table

_POINT_BOX_PX = 1.0  # side of the box of a point: the pixel it lies in
_VISIBLE = 2  # COCO's flag of a keypoint that is seen
_DECIMALS = 3  # of a coordinate in px


def encode_coco(tables: Sequence[Table]) -> bytes:
    """All pictures of a run as one COCO file; a category is a label.

    A region with holes has a run-length mask, as COCO's polygons know no holes; one without has polygons, which
    annotation tools can edit. Coordinates count from the upper left corner of the picture. Status and reason stand in
    each annotation's `attributes`.
    """
    marked = [list_marked(table) for table in tables]
    labels = sorted({row.label for rows in marked for row in rows})
    category = {label: number for number, label in enumerate(labels, start=1)}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, (table, rows) in enumerate(zip(tables, marked, strict=True), start=1):
        height, width = table.marks.shape_px
        name = table.provenance.image
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for row in rows:
            annotation = {
                "id": len(annotations) + 1,
                "image_id": image_id,
                "category_id": category[row.label],
                "iscrowd": 0,
                **_describe(row, table),
                "attributes": {"row_id": row.row_id, "status": row.status, "reason": row.reason},
            }
            annotations.append(annotation)
    points = {} if isinstance(tables[0], FlakeTable) else {"keypoints": ["centre"], "skeleton": []}
    whole = {
        "info": {
            "description": f"{tables[0].NAME} found by flatscope",
            "version": tables[0].provenance.version,
            "sources": [describe_origin(table) for table in tables],
        },
        "licenses": [],
        "images": images,
        "categories": [
            {"id": number, "name": label, "supercategory": tables[0].NAME, **points}
            for label, number in category.items()
        ],
        "annotations": annotations,
    }
    return (json.dumps(whole, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _describe(row: MarkedRow, table: Table) -> dict[str, Any]:
    """Segmentation or keypoint, box and area in px."""
    if not isinstance(table, FlakeTable):
        x, y = (_round(value + CORNER_PX) for value in (row.shape.x, row.shape.y))
        half = _POINT_BOX_PX / 2
        box = [_round(x - half), _round(y - half), _POINT_BOX_PX, _POINT_BOX_PX]
        return {
            "keypoints": [x, y, _VISIBLE],
            "num_keypoints": 1,
            "bbox": box,
            "area": _POINT_BOX_PX**2,
            "segmentation": [],
        }
    left, top, right, bottom = shapely.bounds(row.shape) + CORNER_PX
    parts = list(split_shape(row.shape))
    segmentation: Any
    if any(part.interiors for part in parts):
        segmentation = _run_lengths(table.labels == row.row_id)
    else:
        segmentation = [
            [_round(value) for value in (take_ring(part.exterior) + CORNER_PX).ravel()] for part in parts
        ]
    return {
        "segmentation": segmentation,
        "bbox": [_round(value) for value in (left, top, right - left, bottom - top)],
        "area": int(row.cells["area_px"]),
    }


def _run_lengths(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed mask: lengths of runs down the columns, the first one outside."""
    flat = mask.ravel(order="F")
    ends = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return {"counts": [0, *runs] if flat[0] else runs, "size": list(mask.shape)}


def _round(value: float) -> float:
    return round(float(value), _DECIMALS)
