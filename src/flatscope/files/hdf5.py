"""Arrays in HDF5, those of Nion Swift with their calibration, through h5py (the extra `vendor`)."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.archives import read_calibrations
from flatscope.files.border import check_claim
from flatscope.files.signals import Signal
from flatscope.micrograph import MicrographError

HDF5_SUFFIXES = (".h5", ".hdf5")


def list_hdf5(path: Path) -> list[Signal]:
    """Every array of numbers in an HDF5 file, by its path inside.

    Raises
    ------
    MicrographError
        If h5py is not installed.
    """
    signals: list[Signal] = []

    def add(name: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if not shape or item.dtype.kind not in "biuf" or item.external or item.is_virtual:
            return  # the last two keep their numbers in other files
        units, scales = read_calibrations(item.attrs.get("properties", ""), len(shape))
        signals.append(Signal(name, tuple(shape), partial(_load, path, name), units, scales))

    with _open(path) as file:
        file.visititems(add)  # which follows no links
    return signals


def _load(path: Path, name: str) -> NDArray[Any]:
    with _open(path) as file:
        return np.asarray(file[name][()])


def check_datasets(path: Path) -> None:
    """Refuse an HDF5 file with an array that claims more than the file can hold, before another library reads it all.

    Raises
    ------
    MicrographError
        With what it claims.
    """
    size = path.stat().st_size

    def check(_: str, item: Any) -> None:
        shape = getattr(item, "shape", None)
        if shape and len(shape) > 1 and item.dtype.kind in "biuf":
            check_claim((math.prod(shape), 1, 1), there=size)

    with _open(path) as file:
        file.visititems(check)


def _open(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise MicrographError(f"{path.suffix} files need h5py: pip install 'flatscope[vendor]'") from None
    return h5py.File(path, "r")
