"""Outlines, points and paths as GeoJSON, which counts from the corner of the first pixel, in µm where that is known."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from flatscope.micrograph import Calibration
from flatscope.results.exports.rows import CORNER_PX, list_marked
from flatscope.results.table import Table
from flatscope.units import um_from_nm

# Coordinates are rounded to this part of a pixel.
_COORDINATE_STEP_PX = 1e-4


@dataclass(frozen=True)
class Outline:
    """The outline of one region.

    Parameters
    ----------
    polygon
        Polygon or multipolygon in pixels, x = column and y = row, whole numbers at pixel centres.
    properties
        Whatever belongs to the region: numbers, text, truth values or None.
    calibration
        Pixel size, or None: then the file holds pixels and says so.
    """

    polygon: BaseGeometry
    properties: Mapping[str, Any] = field(default_factory=dict)
    calibration: Calibration | None = None


def encode_geojson(tables: Sequence[Table]) -> bytes:
    """The marks of all pictures as one FeatureCollection, each with its row as properties."""
    return encode_outlines(outline for table in tables for outline in collect_outlines(table))


def collect_outlines(table: Table) -> list[Outline]:
    """Take the marks out of a table, in its order, each with its row as properties."""
    return [Outline(row.shape, row.cells, table.calibration) for row in list_marked(table)]


def encode_outlines(outlines: Iterable[Outline]) -> bytes:
    """Write outlines as a GeoJSON FeatureCollection.

    The origin is the upper left corner of the picture, x runs right and y runs down. A feature with a pixel size is in
    µm and states the size, one without is in px; its member "unit" says which. Numbers that are not finite become null,
    as JSON knows no NaN.

    Parameters
    ----------
    outlines
        In file order.
    """
    collection = {
        "type": "FeatureCollection",
        "coordinates": "x right, y down, from the upper left corner of the picture, in the feature's unit",
        "features": [_to_feature(outline) for outline in outlines],
    }
    text = json.dumps(collection, ensure_ascii=False, allow_nan=False, default=_to_plain) + "\n"
    return text.encode()


def _to_feature(outline: Outline) -> dict[str, Any]:
    rows_um, cols_um = find_pixel_um(outline.calibration)

    def to_file(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.round((points + CORNER_PX) * (cols_um, rows_um), _decimals(min(rows_um, cols_um)))

    feature: dict[str, Any] = {"type": "Feature", "unit": "px"}
    if outline.calibration is not None:
        feature["unit"] = "um"
        feature["pixel_size_um"] = [cols_um, rows_um]
        feature["pixel_size_source"] = outline.calibration.source
        feature["pixel_size_rel_sigma"] = outline.calibration.rel_sigma
    feature["geometry"] = shapely.geometry.mapping(shapely.transform(outline.polygon, to_file))
    feature["properties"] = {name: _to_plain(value) for name, value in outline.properties.items()}
    return feature


def find_pixel_um(calibration: Calibration | None) -> tuple[float, float]:
    """Height and width of a pixel in the file's unit: µm, or 1 where only pixels are known."""
    if calibration is None:
        return 1.0, 1.0
    rows, cols = calibration.pixel_size_nm
    return um_from_nm(rows), um_from_nm(cols)


def _decimals(pixel: float) -> int:
    """Decimals that keep a coordinate to `_COORDINATE_STEP_PX`."""
    return max(0, math.ceil(-math.log10(pixel * _COORDINATE_STEP_PX)))


def _to_plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return value
    # pandas.NA and pandas.NaT, which must not be imported for this alone, differ from themselves
    return None if str(value) in ("<NA>", "NaT") else str(value)
