"""Electron micrographs in vendors' own formats, through RosettaSciIO (GPL: the extra `vendor`, loaded when needed)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from flatscope.files.decode import Decoded
from flatscope.micrograph import MicrographError
from flatscope.units import nm_from

_READERS = {".dm3": "digitalmicrograph", ".dm4": "digitalmicrograph", ".emd": "emd", ".ser": "tia"}
VENDOR_SUFFIXES = tuple(_READERS)
"""What `decode_vendor` opens."""


def decode_vendor(path: Path, *, stack: bool = False) -> Decoded:
    """Read the first image of a dm3, dm4, emd or ser file, or the first stack, with its pixel size.

    Raises
    ------
    MicrographError
        If the extra is not installed or the file holds no image.
    """
    try:
        reader: Any = importlib.import_module(f"rsciio.{_READERS[path.suffix.lower()]}")
    except ImportError:
        raise MicrographError(
            f"{path.suffix} files need RosettaSciIO: pip install 'flatscope[vendor]'"
        ) from None
    images = [entry for entry in reader.file_reader(str(path)) if np.ndim(entry["data"]) >= 2]
    if not images:
        raise MicrographError("holds no image")
    first = images[0]
    pixels = np.asarray(first["data"])
    alike = [entry["data"] for entry in images if np.shape(entry["data"]) == pixels.shape]
    notes = []
    if stack and pixels.ndim == 2:
        pixels = np.stack([np.asarray(image) for image in alike])
    elif stack:
        pixels = pixels.reshape(-1, *pixels.shape[-2:])
    elif len(images) > 1:
        notes.append(f"the first of {len(images)} images was read")
    if pixels.ndim > 2 and not stack:
        notes.append(f"the first frame of a stack of shape {pixels.shape} was read")
        pixels = pixels.reshape(-1, *pixels.shape[-2:])[0]
    sides = [
        nm_from(abs(float(axis["scale"])), unit=str(axis["units"]))
        for axis in first["axes"][-2:]
        if str(axis.get("units")) not in ("", "None", "<undefined>", "px")
    ]
    return Decoded(np.ascontiguousarray(pixels), notes, (sides[0], sides[1]) if len(sides) == 2 else None)
