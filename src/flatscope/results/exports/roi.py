"""ImageJ: a zip file of regions of interest, for its ROI Manager."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator

import numpy as np
import roifile
import shapely
from numpy.typing import NDArray
from shapely.geometry import Polygon

from flatscope.results.exports.rows import (
    CORNER_PX,
    MarkedRow,
    describe_origin,
    list_marked,
    split_shape,
    take_ring,
)
from flatscope.results.table import Table

_MOVE, _LINE, _CLOSE = 0.0, 1.0, 4.0  # steps of an ImageJ path, as in java.awt.geom.PathIterator
_FAST = 1  # level of zlib


def encode_roi(table: Table) -> bytes:
    """One ROI a row: areas as outlines or, with holes, as composites; points; tracks as broken lines.

    In ImageJ an area's coordinates count from the corner of the first pixel, those of points and lines from its centre
    (documentation of ij.gui.Roi).
    """
    origin = describe_origin(table)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for row in list_marked(table):
            for number, roi in enumerate(_draw(row)):
                # The ROI Manager shows the name of the entry.
                name = (
                    f"{row.row_id:04d} {row.label.replace('|', ' or ')}{f' part {number + 1}' * (number > 0)}"
                )
                roi.name = name
                roi.stroke_color = bytes((255, *row.colour))
                roi.props = _list_properties(row, origin)
                # A ZipInfo made by hand carries no time of day.
                archive.writestr(zipfile.ZipInfo(f"{name}.roi"), roi.tobytes(), zipfile.ZIP_DEFLATED, _FAST)
    return stream.getvalue()


def _list_properties(row: MarkedRow, origin: str) -> str:
    said = {"label": row.label, "source": origin, "status": row.status}
    if row.reason:
        said["reason"] = row.reason
    return "".join(f"{key}: {value}\n" for key, value in said.items())


def _draw(row: MarkedRow) -> Iterator[roifile.ImagejRoi]:
    """The ROIs of a row: one a part of its mark."""
    for part in split_shape(row.shape):
        if part.geom_type != "Polygon":
            kind = roifile.ROI_TYPE.POLYLINE if part.geom_type == "LineString" else roifile.ROI_TYPE.POINT
            yield _draw_corners(np.asarray(part.coords, float)[:, :2], kind)
        elif part.interiors:
            yield _draw_composite(part)
        else:
            yield _draw_corners(take_ring(part.exterior) + CORNER_PX, roifile.ROI_TYPE.FREEHAND)


def _draw_corners(corners: NDArray[np.float64], kind: roifile.ROI_TYPE) -> roifile.ImagejRoi:
    roi = roifile.ImagejRoi.frompoints(corners.astype(np.float32), name="")
    roi.roitype = kind
    return roi


def _draw_composite(polygon: Polygon) -> roifile.ImagejRoi:
    """An area with holes: a path of closed rings, which turn one way outside and the other way inside."""
    turned = shapely.orient_polygons(polygon)
    steps: list[float] = []
    for ring in (turned.exterior, *turned.interiors):
        for number, (x, y) in enumerate(take_ring(ring) + CORNER_PX):
            steps += [_LINE if number else _MOVE, x, y]
        steps.append(_CLOSE)
    left, top, right, bottom = shapely.bounds(turned) + CORNER_PX
    return roifile.ImagejRoi(
        roitype=roifile.ROI_TYPE.RECT,
        left=int(np.floor(left)),
        top=int(np.floor(top)),
        right=int(np.ceil(right)),
        bottom=int(np.ceil(bottom)),
        shape_roi_size=len(steps),
        multi_coordinates=np.array(steps, np.float32),
    )
