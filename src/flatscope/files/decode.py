"""Decoding jpg, png, bmp, npy and mrc: bytes to numbers, without looking at what they mean."""

from __future__ import annotations

import io
import math
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from flatscope.files.border import check_claim, say_truncated
from flatscope.micrograph import MicrographError

Image.MAX_IMAGE_PIXELS = None  # Pillow's limit on a picture; `check_claim` has ours

_MOST_LAST = 16
"""An array whose third side is shorter holds its images along that one."""

_MRC_HEADER = 1024  # bytes; what microscopes add to it follows, and bytes 92 to 95 say how much
_MRC_EXTENDED = slice(92, 96)

# Pillow's modes that are no array of gray, RGB or RGBA values, and what they become.
_PLAIN_MODES = {
    "P": "RGB",
    "PA": "RGBA",
    "La": "LA",
    "RGBa": "RGBA",
    "CMYK": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "RGBX": "RGB",
}


@dataclass
class Decoded:
    """Pixels the right way up, any number type, 1 to 4 channels, with what the file says of them."""

    pixels: NDArray[Any]
    notes: list[str] = field(default_factory=list)
    pixel_size_nm: tuple[float, float] | None = None
    bits: int | None = None


def decode_with_pillow(data: bytes) -> Decoded:
    """Decode a jpg, png or bmp and turn it as its EXIF block says."""
    with warnings.catch_warnings():
        # Pillow warns of large pictures (we have our own limit) and of odd EXIF blocks (of which only one tag counts).
        warnings.simplefilter("ignore")
        return decode_frame(data, frame=0)


def decode_frame(data: bytes, *, frame: int) -> Decoded:
    """Decode one frame of whatever Pillow reads, turned as its orientation says."""
    with Image.open(io.BytesIO(data)) as image:
        if frame:
            image.seek(frame)
        check_claim((image.height, image.width), there=len(data))
        decoded = _decode_open(image, data, frame)
        # Asked after decoding, since a png's block may come last; Pillow turns a TIFF itself and takes the tag away.
        decoded.pixels = turn(decoded.pixels, int(image.getexif().get(0x0112, 1)))
        return decoded


def _decode_open(image: ImageFile.ImageFile, data: bytes, frame: int) -> Decoded:
    rawmode = _rawmode(image)
    notes: list[str] = []
    if rawmode in ("RGB;16B", "RGB;16L", "RGB;16N", "RGBA;16B", "RGBA;16L", "RGBA;16N"):
        return Decoded(_decode_deep_colour(data, frame=frame, rawmode=rawmode))
    if rawmode == "LA;16B":
        notes.append("16-bit gray with alpha was read as 8 bit")
    if image.mode == "LAB":
        notes.append("converted from LAB to sRGB")
        return Decoded(np.asarray(_lab_to_rgb(image)), notes)
    if image.mode == "CMYK":
        notes.append("converted from CMYK to RGB without a colour profile")
    target = "RGBA" if image.mode == "P" and "transparency" in image.info else _PLAIN_MODES.get(image.mode)
    return Decoded(np.asarray(image.convert(target) if target else image), notes)


def _rawmode(image: ImageFile.ImageFile) -> str:
    if not image.tile:
        return ""
    args = image.tile[0][3]
    return str(args[0] if isinstance(args, tuple) and args else args)


def _decode_deep_colour(data: bytes, *, frame: int, rawmode: str) -> NDArray[np.uint16]:
    """Decode a 16-bit colour picture.

    Pillow knows no 16-bit colour: it keeps the high byte of each number. Told that the other byte order holds, it keeps
    the low one, and the two make the whole.
    """
    mode, order = rawmode.split(";16")
    if order == "N":
        order = "L" if sys.byteorder == "little" else "B"
    halves = []
    for kept in (order, "L" if order == "B" else "B"):
        with Image.open(io.BytesIO(data)) as image:
            if frame:
                image.seek(frame)
            tiles = []
            for tile in image.tile:
                args = tile.args
                raw = f"{mode};16{kept}"
                tiles.append(tile._replace(args=(raw, *args[1:]) if isinstance(args, tuple) else raw))
            image.tile = tiles
            halves.append(np.asarray(image))
    high, low = halves
    return (high.astype(np.uint16) << 8) | low


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None  # None only comes back from in-place conversion
    return converted


def turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Apply an EXIF orientation (1 to 8; anything else counts as 1)."""
    if orientation in (5, 6, 7, 8):
        pixels = np.swapaxes(pixels, 0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def decode_npy(data: bytes, *, stack: bool = False) -> Decoded:
    """Decode an array of one picture, or of a stack of images."""
    stream = io.BytesIO(data)
    shape, fortran, dtype = read_npy_header(stream)
    # np.load would first reserve what the header claims.
    claimed, there = math.prod(shape) * dtype.itemsize, len(data) - stream.tell()
    if claimed != there:
        raise MicrographError(
            f"is damaged or truncated ({there} of {claimed} bytes): copy or export it again"
        )
    pixels = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")
    notes: list[str] = []
    if stack:
        pixels = _put_images_first(pixels, notes)
    elif pixels.ndim == 3 and pixels.shape[0] in (3, 4) and pixels.shape[2] > 4:
        pixels = np.moveaxis(pixels, 0, 2)
        notes.append(f"shape {shape} was read as channels first")
    return Decoded(np.ascontiguousarray(pixels, dtype.newbyteorder("=")), notes)


def read_npy_header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array of an npy file.

    Raises
    ------
    MicrographError
        If it is no array of numbers.
    """
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject or dtype.kind not in "biuf":
        raise MicrographError(f"an array of {dtype} is no picture: save numbers")
    if not all(type(side) is int and side >= 0 for side in shape):  # True is a whole number to NumPy's reader
        raise MicrographError(f"is damaged: its header claims the shape {shape}: export it again")
    return shape, fortran, dtype


def _put_images_first(pixels: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] < min(pixels.shape[:2]) and pixels.shape[2] < _MOST_LAST:
        notes.append(f"shape {pixels.shape} was read as images last")
        return np.moveaxis(pixels, 2, 0)
    return pixels


def decode_mrc(data: bytes, *, stack: bool = False) -> Decoded:
    """Decode an MRC file of one image, or of a stack of them; its cell gives the pixel size."""
    from mrcfile.mrcinterpreter import MrcInterpreter
    from mrcfile.utils import data_dtype_from_header, data_shape_from_header

    # mrcfile would first reserve what the header claims, and gives None for a kind of data that it doesn't know.
    head = bytearray(data[:_MRC_HEADER])
    claim, head[_MRC_EXTENDED] = head[_MRC_EXTENDED], bytes(4)
    opened = MrcInterpreter(io.BytesIO(head), permissive=True, header_only=True)
    header: Any = opened.header
    if header is None:
        raise MicrographError("is no MRC file or its header is damaged: export it again")
    kind, shape = data_dtype_from_header(header), data_shape_from_header(header)
    if kind.kind not in "iuf":
        raise MicrographError(f"holds numbers of {kind}, as a Fourier transform does: save an image")
    check_claim(shape[-2:], there=len(data))
    begin = _MRC_HEADER + max(int(np.frombuffer(claim, header.nsymbt.dtype)[0]), 0)
    claimed, there = math.prod(shape) * kind.itemsize, len(data) - begin
    if claimed > there:
        raise MicrographError(say_truncated(max(there, 0), claimed))
    pixels = np.frombuffer(data, kind, math.prod(shape), begin).reshape(shape)
    pixels = pixels.astype(kind.newbyteorder("="))
    size = opened.voxel_size
    notes = []
    if pixels.ndim == 3 and not stack:
        notes.append(f"the first of {len(pixels)} images was read")
        pixels = pixels[0]
    sides = (float(size.y), float(size.x))
    known = all(side > 0 for side in sides)
    return Decoded(pixels, notes, (0.1 * sides[0], 0.1 * sides[1]) if known else None)
