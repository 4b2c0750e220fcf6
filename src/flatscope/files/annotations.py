"""Label images and outlines: what annotators draw and flatscope finds, as files.

A label image holds one number a pixel, 0 for what is not labelled. Outlines are GeoJSON, written by
`flatscope.results.exports.geojson` and read here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from flatscope.files.border import check_claim, guard, read_bytes
from flatscope.files.tiff import check_page, open_tiff, refuse_cut
from flatscope.files.write import write_atomic
from flatscope.micrograph import Calibration, MicrographError
from flatscope.results.exports.geojson import Outline, find_pixel_um
from flatscope.results.exports.rows import CORNER_PX
from flatscope.units import nm_from_um
from flatscope.words import WordsError, parse_json

LABEL_SUFFIXES = (".png", ".tif", ".tiff")

_TIFF_FIRST_BYTES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


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
    data = read_bytes(path, what="label image")
    try:
        with guard(path):
            labels = _decode_labels(data)
    except MicrographError as error:
        if isinstance(error.__cause__, UnidentifiedImageError):
            raise MicrographError(f"{path}: is no label image: use a gray png or tif") from error
        raise
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
            check_claim((image.height, image.width), there=len(data), drawn=True)
            return np.asarray(image)
    refuse_cut(io.BytesIO(data), len(data))
    with open_tiff(data) as tif:
        page = tif.pages.first
        check_page(page, len(data), drawn=True)
        try:
            return np.asarray(page.asarray())
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


def read_outlines(path: Path | str) -> list[Outline]:
    """Read the outlines that the GeoJSON export wrote.

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
        collection = parse_json(read_bytes(path))
    except WordsError as error:
        raise MicrographError(f"{path}: {error}: export it again") from error
    if not isinstance(collection, dict) or collection.get("type") != "FeatureCollection":
        raise MicrographError(f"{path}: is no GeoJSON FeatureCollection: export it again")
    outlines = []
    for number, feature in enumerate(collection.get("features", [])):
        try:
            outlines.append(_from_feature(feature))
        except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
            detail = " ".join(str(error).split())[:120] or type(error).__name__
            raise MicrographError(
                f"{path}: feature {number} is no outline ({detail}): export it again"
            ) from error
    return outlines


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
    rows_um, cols_um = find_pixel_um(calibration)
    polygon = shapely.transform(
        shapely.geometry.shape(feature["geometry"]), lambda points: points / (cols_um, rows_um) - CORNER_PX
    )
    return Outline(polygon, dict(feature.get("properties") or {}), calibration)
