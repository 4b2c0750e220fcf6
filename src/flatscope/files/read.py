"""Reading micrographs: jpg, png, bmp, tif (OME and ImageJ too) and npy; of electron microscopes also mrc and vendors'.

What a file says is kept: 16-bit data stay 16 bit, gray stays gray, and the pixel size is taken where a microscope
program wrote it. What had to be decided (a page chosen, an alpha channel dropped, a full scale guessed) is said in
`Micrograph.notes`.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatscope.files.archives import ARCHIVE_SUFFIXES, list_arrays
from flatscope.files.border import check_file, guard, read_bytes
from flatscope.files.decode import Decoded, decode_mrc, decode_npy, decode_with_pillow
from flatscope.files.hdf5 import HDF5_SUFFIXES, list_hdf5
from flatscope.files.signals import Signal, choose_signal
from flatscope.files.tiff import decode_tiff, decode_tiff_stack
from flatscope.files.vendor import VENDOR_SUFFIXES, list_vendor
from flatscope.micrograph import Calibration, Micrograph, MicrographError, Stack
from flatscope.units import nm_from_um, um_from_nm

Modality = Literal["light", "electron"]
_Kind = Literal["bmp", "jpg", "npy", "png", "tif", "mrc", "vendor", "hdf5", "archive"]

_KINDS: dict[str, _Kind] = {
    ".bmp": "bmp",
    ".jpeg": "jpg",
    ".jpg": "jpg",
    ".npy": "npy",
    ".png": "png",
    ".tif": "tif",
    ".tiff": "tif",
}

_ELECTRON_KINDS: dict[str, _Kind] = {
    ".npy": "npy",
    ".tif": "tif",
    ".tiff": "tif",
    ".png": "png",
    ".mrc": "mrc",
    **dict.fromkeys(VENDOR_SUFFIXES, "vendor"),
    **dict.fromkeys(HDF5_SUFFIXES, "hdf5"),
    **dict.fromkeys(ARCHIVE_SUFFIXES, "archive"),
}

SUFFIXES = tuple(_KINDS)
"""What `read` opens as light micrographs; capitals do not matter."""
ELECTRON_SUFFIXES = tuple(_ELECTRON_KINDS)
"""And as electron micrographs."""

OWN_SUFFIXES = (
    *(".twist.png", ".layers.png", ".overlay.png", ".mask.png", ".columns.png", ".defects.png"),
    ".defects.mp4",
)
"""Endings of what flatscope or an annotator puts beside a picture: never taken for pictures in a folder."""

_RECORD, _MADE_FOLDERS = "run.json", ("items", "export")
"""File that marks a results folder, and the folders in it that are never searched for pictures."""

FILE_REL_SIGMA = 0.02
"""Assumed relative error of a pixel size that comes from a nominal magnification and was not measured by us."""

PIXEL_SIZE_RANGE_NM = (1e-3, 2e4)
"""From an electron microscope's pixel to a loupe's. A page scanned at 300 dpi has 85,000 nm, so a printer's resolution
that found its way into a calibration falls outside."""

_MOST_OBLONG = 1.1  # sides of a pixel; the lattice is found through distortions of this size

# Detectors digitise to 8, 10, 12, 14 or 16 bit; 16-bit files hold all of them.
_FULL_SCALES = (255, 1023, 4095, 16383, 65535)

# More negative pixels than this are no noise around zero: an offset was subtracted, or the picture is no intensity.
_MAX_NEGATIVE_SHARE = 0.01

_FIRST_BYTES: tuple[tuple[bytes, _Kind], ...] = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
    (b"II+\0", "tif"),
    (b"MM\0+", "tif"),
    (b"\x93NUMPY", "npy"),
)


def read(
    path: Path | str, *, um_per_px: float | None = None, modality: Modality = "light", signal: str = ""
) -> Micrograph:
    """Open a picture.

    Parameters
    ----------
    path
        A jpg, png, bmp, tif, tiff or npy file. The content decides the format; the suffix must be one of these. Of an
        electron microscope also mrc, npz, ndata and, with the extra `vendor`, dm3, dm4, emd, hspy, h5, hdf5 and ser.
    um_per_px
        Pixel size in µm, above the file's own. Without it the size comes from OME-XML or an ImageJ calibration. The
        resolution of a JPEG, PNG or plain TIFF (dots per inch or cm) is about print and never taken.
    modality
        "electron" keeps numbers as they are, negative ones too, since a detector's zero is arbitrary.
    signal
        Of a file with several data sets of an electron microscope the name of one; else HAADF, ADF or the first image.

    Returns
    -------
    The picture, uint8, uint16 or float32, shape (rows, cols) or (rows, cols, 3), turned as EXIF says, with its
    pixel size (None if unknown), the sha256 of the file and notes on what had to be decided:

    - of several pages the first is read; three channel pages make one RGB picture;
    - an alpha channel is dropped (nothing is blended in); palettes, CMYK, LAB and 1-bit pictures become RGB or gray;
    - full scale is 255 for 8 bit, else what the file states, else 255, 1023, 4095, 16383 or 65535, whichever is next
      above the largest value; for fractions up to 1 it is 1, for larger numbers the largest.

    Raises
    ------
    MicrographError
        If there is no such file, it is no picture, is damaged, too small or too large, or has NaN pixels.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = Path(tempfile.mkdtemp(), "photo.png")
    >>> Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    >>> read(path, um_per_px=0.15).shape
    (20, 30)
    """
    if modality not in ("light", "electron"):
        raise MicrographError(f"modality {modality!r}: choose light or electron")
    path = Path(path)
    given = _calibrate_by_user(um_per_px)
    kinds = _KINDS if modality == "light" else _ELECTRON_KINDS
    data, kind, decoded = _decode(path, kinds, signal=signal)
    notes = decoded.notes
    if kind != kinds[path.suffix.lower()]:
        notes.insert(0, f"named {path.suffix} but holds a {kind}")
    try:
        pixels = _drop_alpha(decoded.pixels, notes)
        if modality == "light":
            pixels, full_scale = _scale(pixels, decoded.bits, notes)
        else:
            pixels = _join_equal_channels(pixels, notes)
            full_scale = float(np.abs(pixels).max(initial=0)) or 1.0
            decoded.pixel_size_nm = _square(decoded.pixel_size_nm, notes)
    except MicrographError as error:
        raise MicrographError(f"{path}: {error}") from error
    return Micrograph(
        pixels=pixels,
        full_scale=full_scale,
        calibration=calibrate(given, decoded.pixel_size_nm, notes),
        source=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        notes=tuple(notes),
    )


def read_stack(path: Path | str, *, um_per_px: float | None = None, signal: str = "") -> Stack:
    """Open a stack of electron micrographs: a focal series or a movie.

    Parameters
    ----------
    path
        A npy, npz, ndata, tif or mrc file or, with the extra `vendor`, dm3, dm4, emd, hspy, h5, hdf5 or ser.
    um_per_px
        Pixel size in µm, above the file's own.
    signal
        As for `read`.

    Returns
    -------
    Images as they are in the file, shape (images, rows, cols); one image is a stack of one.

    Raises
    ------
    MicrographError
        If there is no such file, it holds no images, is damaged or too large, or has NaN pixels.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "series.npy")
    >>> np.save(path, np.zeros((3, 20, 30)))
    >>> len(read_stack(path)), read_stack(path).shape
    (3, (20, 30))
    """
    path = Path(path)
    given = _calibrate_by_user(um_per_px)
    data, _, decoded = _decode(path, _ELECTRON_KINDS, stack=True, signal=signal)
    with guard(path):
        decoded.pixel_size_nm = _square(decoded.pixel_size_nm, decoded.notes)
    frames = decoded.pixels
    if frames.dtype.kind == "b":
        frames = frames.astype(np.uint8)
    return Stack(
        frames if frames.ndim != 2 else frames[None],
        calibration=calibrate(given, decoded.pixel_size_nm, decoded.notes),
        source=str(path),
        sha256=hashlib.sha256(data).hexdigest(),
        notes=tuple(decoded.notes),
    )


def _decode(
    path: Path, kinds: dict[str, _Kind], *, signal: str, stack: bool = False
) -> tuple[bytes, _Kind, Decoded]:
    """A file's bytes, what kind it is, and what it holds."""
    _check_suffix(path, tuple(kinds))
    data = read_bytes(path)
    kind = kinds[path.suffix.lower()]
    if kind != "mrc" and kind not in _SIGNALS:
        kind = _recognise(data, path)
    decoders = _STACK_DECODERS if stack else _DECODERS
    with guard(path):
        if kind in _SIGNALS:
            return data, kind, choose_signal(_SIGNALS[kind](path), signal, stack=stack, there=len(data))
        if kind not in decoders:
            raise MicrographError(f"a {kind} picture is no stack: give npy, tif or mrc")
        return data, kind, decoders[kind](data)


def find_pictures(
    inputs: Iterable[Path | str],
    *,
    modality: Modality = "light",
    recursive: bool = False,
    suffixes: tuple[str, ...] = (),
) -> list[Path]:
    """List the pictures that files, folders and globs name.

    Parameters
    ----------
    inputs
        Files are taken as they are. Of folders (not their subfolders) and globs, those with one of `SUFFIXES` (or
        `ELECTRON_SUFFIXES`),
        sorted by name, without hidden ones and without what flatscope or an annotator puts beside a picture.
    modality
        Which suffixes count.
    recursive
        Subfolders too, except those that flatscope made in a results folder.
    suffixes
        Other ones than those of the modality.

    Returns
    -------
    Paths in the order of the inputs, each once.

    Raises
    ------
    MicrographError
        If an input does not exist, or a folder or glob has no picture.

    Examples
    --------
    >>> import tempfile
    >>> from PIL import Image
    >>> path = Path(tempfile.mkdtemp(), "photo.png")
    >>> Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    >>> [found.name for found in find_pictures([path.parent])]
    ['photo.png']
    """
    suffixes = suffixes or (SUFFIXES if modality == "light" else ELECTRON_SUFFIXES)
    found: dict[Path, None] = {}
    for item in inputs:
        path = Path(item)
        if path.is_dir():
            listed = sorted(_list_folder(path, suffixes, recursive=recursive), key=lambda path: path.parts)
            if not listed:
                raise MicrographError(
                    f"{path}: the folder holds no pictures: flatscope reads {', '.join(suffixes)}"
                )
        elif path.exists():
            listed = [path]
        elif glob.has_magic(str(item)):
            matching = map(Path, glob.glob(str(item), recursive=True))
            pictures = [path for path in matching if _is_picture(path.name, suffixes) and path.is_file()]
            listed = sorted(pictures, key=lambda path: path.parts)
            if not listed:
                raise MicrographError(f"{item}: no picture matches: flatscope reads {', '.join(suffixes)}")
        else:
            raise MicrographError(f"{path}: no such file or folder: check the path")
        found.update(dict.fromkeys(listed))
    return list(found)


def _is_picture(name: str, suffixes: tuple[str, ...]) -> bool:
    if name.startswith("."):  # macOS leaves ._photo.jpg beside photo.jpg on USB sticks
        return False
    small = name.lower()
    return os.path.splitext(small)[1] in suffixes and not small.endswith(OWN_SUFFIXES)


def _list_folder(path: Path, suffixes: tuple[str, ...], *, recursive: bool) -> list[Path]:
    try:
        entries = list(os.scandir(path))
        found = [
            path / entry.name for entry in entries if _is_picture(entry.name, suffixes) and entry.is_file()
        ]
    except PermissionError as error:
        raise MicrographError(f"{path}: no permission to read this folder: change its permissions") from error
    if recursive:
        skipped = _MADE_FOLDERS if (path / _RECORD).exists() else ()
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and entry.name not in skipped:
                found += _list_folder(Path(entry.path), suffixes, recursive=True)
    return found


def _check_suffix(path: Path, suffixes: tuple[str, ...]) -> None:
    if path.suffix.lower() not in suffixes:
        check_file(path)
        raise MicrographError(
            f"{path}: {path.suffix or 'no suffix'} is not read: convert it to one of {', '.join(suffixes)}"
        )


def _recognise(data: bytes, path: Path) -> _Kind:
    for first, kind in _FIRST_BYTES:
        if data.startswith(first):
            return kind
    raise MicrographError(
        f"{path}: is no picture in spite of its name, it begins with {data[:8]!r}: name a real {path.suffix} file"
    )


def _drop_alpha(pixels: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 4):
        return pixels
    colours = {1: 1, 2: 1, 4: 3}[pixels.shape[2]]
    if pixels.shape[2] > colours:
        alpha = pixels[..., -1]
        opaque = np.iinfo(alpha.dtype).max if alpha.dtype.kind in "iu" else 1
        share = float(np.mean(alpha < opaque))
        # Blending would need a background colour, and any choice would look like a substrate.
        if share:
            notes.append(f"the alpha channel was dropped; {share:.1%} of the pixels were not opaque")
    kept = pixels[..., 0] if colours == 1 else pixels[..., :colours]
    return np.ascontiguousarray(kept)


def _join_equal_channels(pixels: NDArray[Any], notes: list[str]) -> NDArray[Any]:
    """One channel of a gray picture that was saved as colours, where rounding made them differ by one of 256 levels."""
    if pixels.ndim != 3 or pixels.dtype.kind != "u":
        return pixels
    level = np.iinfo(pixels.dtype).max // 255
    low, middle, high = (np.sort(pixels, axis=2)[..., number] for number in range(3))
    if int((high - low).max(initial=0)) > level:
        return pixels
    if (high > low).any():
        notes.append("its colours differ by at most one of 256 levels and were read as gray")
    return np.ascontiguousarray(middle)


def _square(size_nm: tuple[float, float] | None, notes: list[str]) -> tuple[float, float] | None:
    """The side of a pixel that is nearly a square; what the sides differ is left to the lattice as a distortion.

    Raises
    ------
    MicrographError
        If it is no square.
    """
    low, high = PIXEL_SIZE_RANGE_NM
    if size_nm is None or not all(low <= side <= high for side in size_nm):
        return size_nm  # `calibrate` says that it is no microscope's
    (rows, cols), (small, large) = size_nm, sorted(size_nm)
    if large > _MOST_OBLONG * small:
        raise MicrographError(
            f"its pixels are {rows:.4g} nm high and {cols:.4g} nm wide: resample it to square ones of {small:.4g} nm"
        )
    if large > (1.0 + FILE_REL_SIGMA) * small:
        notes.append(f"its pixels are {rows:.4g} nm high and {cols:.4g} nm wide: strain shows the difference")
    return (rows * cols) ** 0.5, (rows * cols) ** 0.5


def _scale(pixels: NDArray[Any], bits: int | None, notes: list[str]) -> tuple[NDArray[Any], float]:
    """Bring pixels to uint8, uint16 or float32 and find their full scale."""
    if pixels.dtype == np.uint8:
        return pixels, 255.0
    if pixels.dtype.kind == "b":
        return pixels.astype(np.uint8) * np.uint8(255), 255.0
    if (
        pixels.size == 0
        or pixels.dtype.kind not in "iuf"
        or (pixels.dtype.kind == "f" and not np.isfinite(pixels).all())
    ):
        return pixels, 1.0  # Micrograph says what is wrong
    largest, smallest = float(pixels.max()), float(pixels.min())
    if smallest < 0:
        share = float(np.mean(pixels < 0))
        if share > _MAX_NEGATIVE_SHARE:
            raise MicrographError(
                f"{share:.0%} of the values are negative (down to {smallest:.4g}), so this is no picture of light: "
                "add the offset that was subtracted"
            )
        notes.append(f"{share:.2%} of the values were negative and set to 0")
        pixels = np.maximum(pixels, 0)
    if pixels.dtype.kind == "f" and largest <= 1.0:
        return pixels.astype(np.float32), 1.0
    full_scale = _full_scale(largest, bits, str(pixels.dtype), notes)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.float32), full_scale


def _full_scale(largest: float, bits: int | None, dtype: str, notes: list[str]) -> float:
    if bits is not None and largest <= 2**bits - 1:
        return float(2**bits - 1)
    full_scale = next((float(value) for value in _FULL_SCALES if largest <= value), largest)
    if dtype != "uint16" or full_scale < _FULL_SCALES[-1]:
        notes.append(
            f"full scale was taken as {full_scale:g}, since the largest value of these {dtype} is {largest:g}"
        )
    return full_scale


def _calibrate_by_user(um_per_px: float | None) -> Calibration | None:
    if um_per_px is None:
        return None
    size = nm_from_um(float(um_per_px))
    low, high = PIXEL_SIZE_RANGE_NM
    if not low <= size <= high:
        raise MicrographError(
            f"a pixel size of {um_per_px:g} µm is no microscope's: "
            f"pass µm per pixel between {um_from_nm(low):g} and {um_from_nm(high):g}, for example 0.15"
        )
    return Calibration((size, size), "user", FILE_REL_SIGMA)


def calibrate(
    given: Calibration | None, in_file: tuple[float, float] | None, notes: list[str]
) -> Calibration | None:
    """The pixel size that was given, else the file's if it is a microscope's; what was decided joins the notes."""
    low, high = PIXEL_SIZE_RANGE_NM
    if in_file and not all(low <= side <= high for side in in_file):
        notes.append(
            f"the file's pixel size of {um_from_nm(in_file[1]):.4g} µm is no microscope's and was ignored"
        )
        in_file = None
    if given is None:
        return Calibration(in_file, "file", FILE_REL_SIGMA) if in_file else None
    if in_file and any(
        abs(mine / its - 1) > FILE_REL_SIGMA for mine, its in zip(given.pixel_size_nm, in_file, strict=True)
    ):
        notes.append(
            f"the given pixel size of {um_from_nm(given.pixel_size_nm[1]):.4g} µm was used, "
            f"the file says {um_from_nm(in_file[1]):.4g} µm"
        )
    return given


_DECODERS: dict[str, Callable[..., Decoded]] = {
    "jpg": decode_with_pillow,
    "png": decode_with_pillow,
    "bmp": decode_with_pillow,
    "npy": decode_npy,
    "tif": decode_tiff,
    "mrc": decode_mrc,
}
_STACK_DECODERS: dict[str, Callable[..., Decoded]] = {
    "png": decode_with_pillow,
    "npy": partial(decode_npy, stack=True),
    "tif": decode_tiff_stack,
    "mrc": partial(decode_mrc, stack=True),
}
_SIGNALS: dict[str, Callable[[Path], list[Signal]]] = {
    "vendor": list_vendor,
    "hdf5": list_hdf5,
    "archive": list_arrays,
}
