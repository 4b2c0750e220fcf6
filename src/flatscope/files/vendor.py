"""Electron micrographs in vendors' own formats, through RosettaSciIO (GPL: the extra `vendor`, loaded when needed)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from flatscope.files.hdf5 import check_datasets
from flatscope.files.signals import Signal
from flatscope.micrograph import MicrographError

_READERS = {
    ".dm3": "digitalmicrograph",
    ".dm4": "digitalmicrograph",
    ".emd": "emd",
    ".hspy": "hspy",
    ".ser": "tia",
}
_IN_HDF5 = (".emd", ".hspy")
VENDOR_SUFFIXES = tuple(_READERS)
"""What `list_vendor` opens."""


def list_vendor(path: Path) -> list[Signal]:
    """The data sets of a dm3, dm4, emd (Velox, NCEM), hspy or ser file.

    Raises
    ------
    MicrographError
        If the extra is not installed or the file claims more than it can hold.
    """
    suffix = path.suffix.lower()
    try:
        reader: Any = importlib.import_module(f"rsciio.{_READERS[suffix]}")
    except ImportError:
        raise MicrographError(
            f"{path.suffix} files need RosettaSciIO: pip install 'flatscope[vendor]'"
        ) from None
    if suffix in _IN_HDF5:
        check_datasets(path)
    return [_make_signal(entry) for entry in reader.file_reader(str(path))]


def _make_signal(entry: dict[str, Any]) -> Signal:
    data, axes = entry["data"], entry["axes"]
    units = tuple(_plain(axis.get("units")) for axis in axes)
    scales = tuple(float(axis.get("scale", 1.0)) for axis in axes)
    name = str(entry.get("metadata", {}).get("General", {}).get("title", ""))
    known = len(axes) == np.ndim(data)
    return Signal(
        name, np.shape(data), lambda: np.asarray(data), units if known else (), scales if known else ()
    )


def _plain(unit: Any) -> str:
    """A unit as text; what stands for none becomes empty."""
    text = str(unit)
    return "" if text in ("None", "<undefined>") else text
