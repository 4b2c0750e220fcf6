"""Decoding TIFF, with the pixel size and the channels that OME-XML and ImageJ add to it."""

from __future__ import annotations

import io
import math
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError

from flatscope.files.border import check_claim, say_truncated
from flatscope.files.decode import Decoded, decode_frame, turn
from flatscope.micrograph import MicrographError
from flatscope.units import nm_from

if TYPE_CHECKING:
    import tifffile

_MOST_VALUES = 2_000_000_000  # of a stack
_MOST_SAMPLES = 64  # values a pixel; the most channels of a spectral camera that lie in one page
_LEAST_TILE_PX = 64  # a tile of fewer pixels costs more time than its pixels; the standard wants 16 px a side
_MOST_PAGES = 1_000_000
_VALUE_BYTES = (1, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 1, 1, 8, 8, 8)  # by the number of a tag's type


@contextmanager
def open_tiff(source: bytes | Path) -> Iterator[tifffile.TiffFile]:
    """Open a TIFF, and no other file: OME text can name any file of the computer as a part of it."""
    import tifffile

    stream: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    with stream, tifffile.TiffFile(stream, _multifile=False) as tif:
        yield tif


def decode_tiff(data: bytes) -> Decoded:
    """Decode the first picture of a TIFF: one page, or three that are its channels."""
    refuse_cut(io.BytesIO(data), len(data))
    with open_tiff(data) as tif:
        first = tif.pages.first
        check_page(first, len(data))
        numbers, notes = _choose_pages(tif, len(data))
        planes = [_decode_page(tif, number, data) for number in numbers]
        if len({plane.shape for plane in planes}) != 1:
            planes = planes[:1]
        pixels = planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)
        size = find_pixel_size(tif)
        orientation = _orientation(first)
        if size and orientation >= 5:
            size = size[::-1]
        return Decoded(pixels, notes, size, _stated_bits(tif))


def decode_tiff_stack(data: bytes) -> Decoded:
    """Decode every page of a TIFF as an image of a stack."""
    refuse_cut(io.BytesIO(data), len(data))
    with open_tiff(data) as tif:
        series = tif.series[0]
        if math.prod(series.shape) > _MOST_VALUES:
            raise MicrographError(f"a stack of shape {series.shape} is too large: cut it into parts")
        for page in tif.pages:
            check_page(page, len(data))
        if not series.axes.endswith("YX"):
            raise MicrographError(f"is coloured or has axes {series.axes}: save gray images as pages")
        check_claim(series.shape[-2:], there=len(data))
        if series.dataoffset is not None and series.dataoffset + series.nbytes > len(data):
            raise MicrographError(say_truncated(len(data), series.dataoffset + series.nbytes))
        pixels = np.asarray(series.asarray())
        size = find_pixel_size(tif)
        return Decoded(pixels.reshape(-1, *pixels.shape[-2:]), [], size)


def check_page(page: Any, size: int, *, drawn: bool = False) -> None:
    """Refuse a page that claims more than a file of this size can hold; a drawn one may be of a single colour.

    Raises
    ------
    MicrographError
        With what it claims.
    """
    frame = page.keyframe
    samples, depth = frame.samplesperpixel, frame.imagedepth
    if samples > _MOST_SAMPLES or depth > 1:
        raise MicrographError(
            f"claims {samples} values a pixel and a depth of {depth}: save a gray or RGB picture"
        )
    if frame.is_tiled and frame.tilewidth * frame.tilelength < _LEAST_TILE_PX:
        raise MicrographError(
            f"is made of tiles of {frame.tilewidth}x{frame.tilelength} px: save it without tiles"
        )
    raw = frame.imagelength * frame.imagewidth * samples * frame.bitspersample / 8
    plain = frame.compression == 1
    check_claim(
        (frame.imagelength, frame.imagewidth),
        there=size,
        raw_bytes=raw if plain else None,
        drawn=drawn or plain,
    )
    if len(page.dataoffsets) < math.prod(frame.chunked):
        raise MicrographError(
            f"is damaged: it names {len(page.dataoffsets)} of {math.prod(frame.chunked)} parts: "
            "copy or export it again"
        )
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    # tifffile fills what is missing with zeros.
    if ends and max(ends) > size:
        raise MicrographError(say_truncated(size, max(ends)))


def refuse_cut(stream: IO[bytes], size: int) -> None:
    """Refuse a TIFF whose list of pages goes on behind its end: tifffile would read the first ones in silence.

    Raises
    ------
    MicrographError
        With the number of bytes that are missing at least.
    """
    end = find_end(stream, size)
    if end > size:
        raise MicrographError(say_truncated(size, end))


def find_end(stream: IO[bytes], size: int) -> int:
    """How far into a TIFF its pages' tags reach: beyond `size` bytes if the file was cut."""
    start = stream.read(16)
    order = "<" if start[:2] == b"II" else ">"
    big = len(start) == 16 and start[2:4] in (b"+\0", b"\0+")
    link, entry, number = (
        (f"{order}Q", f"{order}HHQQ", f"{order}Q") if big else (f"{order}I", f"{order}HHII", f"{order}H")
    )
    inline = struct.calcsize(link)
    (offset,) = struct.unpack_from(link, start, 8 if big else 4)
    furthest, seen = 0, set[int]()
    while offset and offset not in seen and len(seen) < _MOST_PAGES:
        seen.add(offset)
        stream.seek(offset)
        head = stream.read(struct.calcsize(number))
        count = struct.unpack(number, head)[0] if len(head) == struct.calcsize(number) else 0
        tags = stream.read(count * struct.calcsize(entry) + inline) if count < 1 << 16 else b""
        if len(tags) < count * struct.calcsize(entry) + inline or not count:
            return max(furthest, size + 1)
        for _, kind, values, place in struct.iter_unpack(entry, tags[:-inline]):
            length = values * (_VALUE_BYTES[kind] if kind < len(_VALUE_BYTES) else 0)
            furthest = max(furthest, place + length if length > inline else 0)
        (offset,) = struct.unpack(link, tags[-inline:])
    return furthest


def _choose_pages(tif: tifffile.TiffFile, size: int) -> tuple[list[int], list[str]]:
    """Choose the pages that make one picture: one, or three channels."""
    import tifffile

    total = len(tif.pages)
    # Where a file is cut, tifffile sees its first page only; ImageJ's description still says how many there were.
    first = tif.pages.first
    images = int((tif.imagej_metadata or {}).get("images", 1))
    end = first.dataoffsets[0] + images * first.nbytes
    if tif.is_imagej and first.compression == tifffile.COMPRESSION.NONE and end > size:
        raise MicrographError(say_truncated(size, end))
    # The axes before the pixels, slowest first, for example T, Z, C.
    axes: str = ""
    shape: tuple[int, ...] = ()
    try:
        series = tif.series[0]
        axes, shape = series.axes.split("Y")[0].replace("S", ""), series.shape
    except (tifffile.TiffFileError, OSError, KeyError, IndexError):
        # An OME-TIFF that names files we do not have: its own pages are still there.
        pass
    sizes = dict(zip(axes, shape, strict=False))
    labels = [str(label).lower() for label in (tif.imagej_metadata or {}).get("Labels", [])[:3]]
    channels = sizes.get("C", 1)
    first_is_gray = first.samplesperpixel == 1
    if first_is_gray and channels in (3, 4):
        step = math.prod(shape[axes.index("C") + 1 : len(axes)])
        if 2 * step >= total:
            raise MicrographError(f"has only {total} of {channels} channel pages: copy or export it again")
        rest = f", the first of {total // channels} such pictures" if total > channels else ""
        note = f"the first three of {channels} channels were read as red, green, blue{rest}"
        return [0, step, 2 * step], [note]
    if first_is_gray and labels == ["red", "green", "blue"] and total >= 3:
        return [0, 1, 2], ["the slices labelled red, green and blue were read as one picture"]
    # ImageJ writes stacks beyond 4 GB with a single page entry.
    total = max(total, math.prod(shape[: len(axes)]))
    return [0], [f"the first of {total} pages was read"] if total > 1 else []


def _decode_page(tif: tifffile.TiffFile, number: int, data: bytes) -> NDArray[Any]:
    """Decode one page, turned as its orientation tag says, with palette and inverted gray resolved."""
    import tifffile

    page = tif.pages[number]
    frame: Any = page.keyframe
    check_page(page, len(data))
    photometric = frame.photometric
    simple = (
        tifffile.PHOTOMETRIC.MINISBLACK,
        tifffile.PHOTOMETRIC.MINISWHITE,
        tifffile.PHOTOMETRIC.RGB,
        tifffile.PHOTOMETRIC.PALETTE,
    )
    if photometric not in simple:
        return _decode_page_with_pillow(data, page)
    try:
        pixels = np.asarray(page.asarray())
    except ValueError as error:
        # LZW, JPEG and packed bits want a package that flatscope does without; Pillow's libtiff has them.
        if "imagecodecs" not in str(error):
            raise
        return _decode_page_with_pillow(data, page)
    if frame.axes.startswith("S"):
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim > 3 or (pixels.ndim == 3 and not frame.axes.endswith(("YXS", "SYX"))):
        pixels = pixels[0]  # a page that holds a volume
    if photometric == tifffile.PHOTOMETRIC.MINISWHITE:
        pixels = _invert(pixels, frame.bitspersample)
    elif photometric == tifffile.PHOTOMETRIC.PALETTE:
        colours = np.asarray(frame.colormap)
        pixels = (np.moveaxis(colours, 0, -1)[pixels] >> 8).astype(np.uint8)
    return turn(pixels, _orientation(frame))


def _decode_page_with_pillow(data: bytes, page: Any) -> NDArray[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return decode_frame(data, frame=int(page.index)).pixels
        except UnidentifiedImageError as error:
            kind = f"{page.keyframe.compression.name} compression, {page.keyframe.photometric.name} colour"
            raise MicrographError(
                f"this kind of TIFF is not read ({kind}): save it without compression"
            ) from error


def _invert(pixels: NDArray[Any], bits: int) -> NDArray[Any]:
    if pixels.dtype.kind == "b":
        return ~pixels
    if pixels.dtype.kind != "u":
        raise MicrographError(
            f"a TIFF with white as zero and pixels of {pixels.dtype} is not read: save it as RGB"
        )
    return (2**bits - 1 - pixels).astype(pixels.dtype)


def _orientation(page: Any) -> int:
    tag = page.tags.get("Orientation")
    return int(tag.value) if tag is not None else 1


def _stated_bits(tif: tifffile.TiffFile) -> int | None:
    """Bits that the camera used, if the file says so."""
    page = tif.pages.first
    if tif.is_ome:
        pixels = _ome_pixels(tif)
        if pixels is not None and pixels.get("SignificantBits", "").isdigit():
            return int(pixels.get("SignificantBits", ""))
    tag = page.tags.get("MaxSampleValue")
    if tag is not None:
        value = int(np.max(tag.value))
        if value + 1 in (2**10, 2**12, 2**14, 2**16):
            return value.bit_length()
    return int(page.bitspersample) if 8 < page.bitspersample < 16 else None


def find_pixel_size(tif: tifffile.TiffFile) -> tuple[float, float] | None:
    """Height and width of a pixel in nm, as a microscope program wrote it."""
    return _ome_pixel_size(tif) if tif.is_ome else _imagej_pixel_size(tif)


def _ome_pixels(tif: tifffile.TiffFile) -> ElementTree.Element | None:
    try:
        root = ElementTree.fromstring(tif.ome_metadata or "")
    except ElementTree.ParseError:
        return None
    # The namespace carries the year of the schema, which does not matter here.
    return next((element for element in root.iter() if element.tag.rpartition("}")[2] == "Pixels"), None)


def _ome_pixel_size(tif: tifffile.TiffFile) -> tuple[float, float] | None:
    pixels = _ome_pixels(tif)
    if pixels is None:
        return None
    size_x, size_y = (_ome_length(pixels, f"PhysicalSize{axis}") for axis in "XY")
    if size_x is None and size_y is None:
        return None
    return size_y or size_x or 0.0, size_x or size_y or 0.0


def _ome_length(pixels: ElementTree.Element, name: str) -> float | None:
    text = pixels.get(name)
    if text is None:
        return None
    try:
        # µm is the schema's default unit; "pixel" and "reference frame" are also allowed and no length.
        return nm_from(float(text), unit=pixels.get(f"{name}Unit", "µm"))
    except ValueError:
        return None


def _imagej_pixel_size(tif: tifffile.TiffFile) -> tuple[float, float] | None:
    unit = str((tif.imagej_metadata or {}).get("unit", ""))
    # ImageJ fills in inch and cm by itself from the print resolution.
    if not unit or unit.lower() in ("inch", "cm", "pixel", "pixels"):
        return None
    tags = tif.pages.first.tags
    sides = []
    for name in ("YResolution", "XResolution"):
        tag = tags.get(name)
        pixels, length = tag.value if tag is not None else (0, 0)
        if not (pixels and length):
            return None
        try:
            sides.append(nm_from(length / pixels, unit=unit))
        except ValueError:
            return None
    return sides[0], sides[1]
