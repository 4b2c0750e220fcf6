"""Label images and outlines: what annotators draw and flatscope finds, as files.

A label image holds one number a pixel, 0 for what is not labelled. Outlines are GeoJSON, which other programs count
from the corner of the first pixel, while flatscope counts pixel centres: the half pixel between them is added and
taken away here and nowhere else.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from shapely.geometry.base import BaseGeometry

from flatscope.files.write import write_atomic
from flatscope.micrograph import Calibration, MicrographError
from flatscope.results import FlakeTable
from flatscope.units import nm_from_um, um_from_nm

LABEL_SUFFIXES = (".png", ".tif", ".tiff")

_TIFF_FIRST_BYTES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# GeoJSON coordinates are rounded to this part of a pixel.
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


def read_labels(path: Path | str) -> NDArray[np.int32]:
    """Open a label image.

    Parameters
    ----------
    path
        An 8- or 16-bit png, or a tif of any integers. Of a palette picture the indices are the labels. A colour picture
        counts if its three channels are equal.

    Returns
    -------
    Shape (rows, cols), int32.

    Raises
    ------
    MicrographError
        If the file is missing, damaged, or no label image (colours, fractions, numbers beyond int32).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MicrographError(f"{path}: no such label image: check the path") from error
    except OSError as error:
        raise MicrographError(
            f"{path}: cannot be read ({error.strerror or error}): check the path"
        ) from error
    try:
        labels = _decode_labels(data)
    except UnidentifiedImageError as error:
        raise MicrographError(f"{path}: is no label image: use a gray png or tif") from error
    except (OSError, SyntaxError, ValueError, KeyError, IndexError) as error:
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise MicrographError(f"{path}: is damaged or truncated ({detail}): export it again") from error
    if labels.ndim == 3 and labels.shape[2] >= 3 and (labels[..., :1] == labels[..., 1:3]).all():
        labels = labels[..., 0]
    if labels.ndim != 2:
        raise MicrographError(f"{path}: labels of shape {labels.shape} are colours: use one number a pixel")
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.rint(labels)):
        raise MicrographError(
            f"{path}: labels must be whole numbers, not fractions: use an integer png or tif"
        )
    if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
        raise MicrographError(
            f"{path}: labels from {labels.min()} to {labels.max()} do not fit: use 0 to {np.iinfo(np.int32).max}"
        )
    return labels.astype(np.int32)


def _decode_labels(data: bytes) -> NDArray[Any]:
    if not data.startswith(_TIFF_FIRST_BYTES):
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tif:
            return np.asarray(tif.pages.first.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)


def write_labels(path: Path | str, labels: NDArray[np.integer[Any]]) -> Path:
    """Write a label image in the smallest integer type that holds it, without loss.

    Parameters
    ----------
    path
        Ends in .png, .tif or .tiff. A png holds labels up to 65535, a tif up to 2³¹ − 1.
    labels
        Shape (rows, cols), integers of 0 or more.

    Returns
    -------
    The path.

    Raises
    ------
    ValueError
        If the labels or the suffix do not fit.
    WriteError
        If the file cannot be written.
    """
    path = Path(path)
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels are (rows, cols) of integers, not {labels.shape} of {labels.dtype}")
    if path.suffix.lower() not in LABEL_SUFFIXES:
        raise ValueError(
            f"{path}: labels cannot be written as {path.suffix!r}: use {', '.join(LABEL_SUFFIXES)}"
        )
    smallest, largest = int(labels.min(initial=0)), int(labels.max(initial=0))
    if smallest < 0 or largest > np.iinfo(np.int32).max:
        raise ValueError(
            f"{path}: labels from {smallest} to {largest} do not fit: use 0 to {np.iinfo(np.int32).max}"
        )
    small = labels.astype(np.uint8 if largest < 2**8 else np.uint16 if largest < 2**16 else np.int32)
    stream = io.BytesIO()
    if path.suffix.lower() == ".png":
        if small.dtype == np.int32:
            raise ValueError(f"{path}: a png holds labels up to 65535, not {largest}: write a .tif")
        Image.fromarray(small).save(stream, format="PNG")
    else:
        import tifffile

        tifffile.imwrite(stream, small, photometric="minisblack", compression="zlib", metadata=None)
    return write_atomic(path, stream.getvalue())


def collect_outlines(table: FlakeTable) -> list[Outline]:
    """Take the outlines out of a flake table, in its order, each with its row as properties."""
    outlines = []
    polygons = dict(table.marks)
    for row in table.frame.to_dict("records"):
        polygon = polygons.get(row["region_id"])
        if polygon is not None:
            properties = {str(name): value for name, value in row.items()}
            outlines.append(Outline(polygon, properties, table.calibration))
    return outlines


def write_outlines(path: Path | str, outlines: Iterable[Outline]) -> Path:
    """Write outlines as a GeoJSON FeatureCollection.

    The origin is the upper left corner of the picture, x runs right and y runs down. A feature with a pixel size is in
    µm and states the size, one without is in px; its member "unit" says which. Numbers that are not finite become null,
    as JSON knows no NaN.

    Parameters
    ----------
    path
        Where to write.
    outlines
        In file order.

    Returns
    -------
    The path.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    collection = {
        "type": "FeatureCollection",
        "coordinates": "x right, y down, from the upper left corner of the picture, in the feature's unit",
        "features": [_to_feature(outline) for outline in outlines],
    }
    return write_atomic(
        path, json.dumps(collection, ensure_ascii=False, allow_nan=False, default=_to_plain) + "\n"
    )


def read_outlines(path: Path | str) -> list[Outline]:
    """Read the outlines that `write_outlines` wrote.

    Parameters
    ----------
    path
        A GeoJSON FeatureCollection. Features without a "unit" (from other programs) are taken as px.

    Returns
    -------
    Outlines in file order, in pixels again, whole numbers at pixel centres.

    Raises
    ------
    MicrographError
        If the file is missing, no GeoJSON, or a feature in µm does not state its pixel size.
    """
    path = Path(path)
    try:
        collection = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise MicrographError(f"{path}: no such file: check the path") from error
    except OSError as error:
        raise MicrographError(
            f"{path}: cannot be read ({error.strerror or error}): check the path"
        ) from error
    except ValueError as error:
        raise MicrographError(f"{path}: is no JSON ({error}): export it again") from error
    if not isinstance(collection, dict) or collection.get("type") != "FeatureCollection":
        raise MicrographError(f"{path}: is no GeoJSON FeatureCollection: export it again")
    outlines = []
    for number, feature in enumerate(collection.get("features", [])):
        try:
            outlines.append(_from_feature(feature))
        except (KeyError, TypeError, ValueError, shapely.errors.ShapelyError) as error:
            detail = " ".join(str(error).split())[:120] or type(error).__name__
            raise MicrographError(
                f"{path}: feature {number} is no outline ({detail}): export it again"
            ) from error
    return outlines


def _to_feature(outline: Outline) -> dict[str, Any]:
    rows_um, cols_um = _pixel_size_um(outline.calibration)

    def to_file(points: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.round((points + 0.5) * (cols_um, rows_um), _decimals(min(rows_um, cols_um)))

    feature: dict[str, Any] = {"type": "Feature", "unit": "px"}
    if outline.calibration is not None:
        feature["unit"] = "um"
        feature["pixel_size_um"] = [cols_um, rows_um]
        feature["pixel_size_source"] = outline.calibration.source
        feature["pixel_size_rel_sigma"] = outline.calibration.rel_sigma
    feature["geometry"] = shapely.geometry.mapping(shapely.transform(outline.polygon, to_file))
    feature["properties"] = {name: _to_plain(value) for name, value in outline.properties.items()}
    return feature


def _from_feature(feature: Mapping[str, Any]) -> Outline:
    calibration = None
    unit = feature.get("unit", "px")
    if unit == "um":
        if "pixel_size_um" not in feature:
            raise ValueError("it is in µm but has no pixel_size_um")
        cols_um, rows_um = (float(size) for size in feature["pixel_size_um"])
        calibration = Calibration(
            (nm_from_um(rows_um), nm_from_um(cols_um)),
            feature.get("pixel_size_source", "file"),
            float(feature.get("pixel_size_rel_sigma", 0.0)),
        )
    elif unit != "px":
        raise ValueError(f"its unit is {unit!r}, not px or um")
    rows_um, cols_um = _pixel_size_um(calibration)
    polygon = shapely.transform(
        shapely.geometry.shape(feature["geometry"]), lambda points: points / (cols_um, rows_um) - 0.5
    )
    return Outline(polygon, dict(feature.get("properties") or {}), calibration)


def _pixel_size_um(calibration: Calibration | None) -> tuple[float, float]:
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
