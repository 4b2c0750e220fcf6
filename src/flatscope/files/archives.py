"""Arrays in a zip file: NumPy's npz, and Nion Swift's ndata with its calibration."""

from __future__ import annotations

import math
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.border import check_claim
from flatscope.files.decode import read_npy_header
from flatscope.files.signals import Signal
from flatscope.micrograph import MicrographError
from flatscope.words import WordsError, parse_json

ARCHIVE_SUFFIXES = (".npz", ".ndata")
_CARD = "metadata.json"
_MOST_CARD_BYTES = 16 << 20  # Swift's record of an acquisition has 10 to 100 kB


def list_arrays(path: Path) -> list[Signal]:
    """Every array of numbers in an npz or ndata file; nothing is unpacked before it is asked for."""
    with zipfile.ZipFile(path) as archive:
        card = ""
        if _CARD in archive.namelist() and archive.getinfo(_CARD).file_size <= _MOST_CARD_BYTES:
            card = archive.read(_CARD).decode()
        names = [name for name in archive.namelist() if name.endswith(".npy")]
        return [_list_one(path, archive, name, card) for name in names]


def _list_one(path: Path, archive: zipfile.ZipFile, name: str, card: str) -> Signal:
    with archive.open(name) as stream:
        shape, _, _ = read_npy_header(stream)
    units, scales = read_calibrations(card, len(shape))
    return Signal(name.removesuffix(".npy"), shape, partial(_load, path, name), units, scales)


def _load(path: Path, name: str) -> NDArray[Any]:
    with zipfile.ZipFile(path) as archive, archive.open(name) as stream:
        shape, fortran, dtype = read_npy_header(stream)
        info = archive.getinfo(name)
        if len(shape) > 1:
            check_claim(shape, there=max(info.compress_size, 1))
        data = stream.read(math.prod(shape) * dtype.itemsize)
    return (
        np.frombuffer(data, dtype)
        .reshape(shape, order="F" if fortran else "C")
        .astype(dtype.newbyteorder("="))
    )


def read_calibrations(properties: Any, dimensions: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Units and scales of the axes from Nion Swift's JSON; nothing where it is none."""
    try:
        table = parse_json(properties) if isinstance(properties, str | bytes) else None
    except (WordsError, UnicodeError):
        return (), ()
    if not isinstance(table, dict):
        return (), ()
    entries = table.get("dimensional_calibrations") or table.get("spatial_calibrations")
    if not isinstance(entries, list) or len(entries) != dimensions:
        return (), ()
    try:
        return (
            tuple(str(entry.get("units") or "") for entry in entries),
            tuple(float(entry.get("scale", 1.0)) for entry in entries),
        )
    except (AttributeError, TypeError, ValueError):
        raise MicrographError("is damaged: its calibration is no number: export it again") from None
