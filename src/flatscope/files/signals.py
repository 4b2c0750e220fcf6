"""Files of several data sets, such as the detectors of one scan: which one is read, and which are no image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.files.border import check_claim
from flatscope.files.decode import Decoded
from flatscope.micrograph import MicrographError
from flatscope.units import nm_from

_PREFERRED = (
    "haadf",
    "adf",
)  # where nobody asks for another: what the physics of `flatscope.electron` is about
_ENERGY = ("ev", "kev", "mev")
_ANGLE = ("rad", "mrad", "µrad", "deg")
_SPOKEN = 8  # names of signals in a message


@dataclass(frozen=True)
class Signal:
    """One data set of a file.

    Parameters
    ----------
    name
        As the program that wrote it calls it; "" if it does not.
    shape
        Of the array.
    load
        Reads the array.
    units, scales
        Of each axis; "" and 1 where unknown.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], NDArray[np.generic]]
    units: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()

    def find_pixel_size(self) -> tuple[float, float] | None:
        """Height and width of a pixel in nm, or None."""
        try:
            sides = [
                abs(nm_from(scale, unit=unit))
                for scale, unit in zip(self.scales[-2:], self.units[-2:], strict=True)
            ]
        except ValueError:
            return None
        return (sides[0], sides[1]) if len(sides) == 2 and min(sides) > 0.0 else None

    def describe(self) -> str:
        """What it is where it is no image and no stack of them, else ""."""
        units = [unit.strip().lower() for unit in self.units]
        if any(unit in _ENERGY for unit in units):
            return "a spectrum" if len(self.shape) == 1 else "a spectrum image"
        if len(self.shape) < 2:
            return "a profile"
        if any("1/" in unit or "^-1" in unit or unit in _ANGLE for unit in units[-2:]):
            return "diffraction patterns" if len(self.shape) > 2 else "a diffraction pattern"
        if len(self.shape) > 3 and np.prod(self.shape[:-2]) > max(self.shape[:-2]):
            return f"{len(self.shape)}D data, such as 4D-STEM"
        return ""


def choose_signal(signals: Sequence[Signal], wanted: str, *, stack: bool, there: int) -> Decoded:
    """Read one image, or one stack, of a file.

    Parameters
    ----------
    signals
        All data sets of the file.
    wanted
        Name of one; capitals do not matter. "" takes HAADF, else ADF, else the first image.
    stack
        Whether all frames are wanted; images of one size without a detector's name are then frames too.
    there
        Bytes of the file.

    Raises
    ------
    MicrographError
        If there is no such signal, or none is an image; the message says what there is.
    """
    images = [signal for signal in signals if not signal.describe()]
    if wanted:
        chosen = _find(signals, wanted)
        if chosen.describe():
            raise MicrographError(f"{chosen.name} is {chosen.describe()}: name an image by --signal")
        alike = [chosen]
    else:
        if not images:
            kinds = list(dict.fromkeys(signal.describe() for signal in signals))
            raise MicrographError(f"holds {' and '.join(kinds) or 'no data'}: give an image")
        named = [one for part in _PREFERRED for one in images if part in one.name.lower()]
        chosen = (named or images)[0]
        alike = [chosen] if named else [one for one in images if one.shape == chosen.shape]
    check_claim(chosen.shape, there=there)
    pixels = np.asarray(chosen.load())
    if stack and pixels.ndim == 2:
        pixels = np.stack([pixels, *(np.asarray(one.load()) for one in alike[1:])])
    frames = pixels.reshape(-1, *pixels.shape[-2:])
    notes = []
    if len(signals) > 1 and not (stack and len(alike) > 1):
        others = ", ".join(one.name or "unnamed" for one in signals[:_SPOKEN] if one is not chosen)
        notes.append(
            f"of {len(signals)} signals {chosen.name or 'the first image'} was read; others: {others}"
        )
    if len(frames) > 1 and not stack:
        notes.append(f"the first frame of a stack of shape {pixels.shape} was read")
    kept = frames if stack and pixels.ndim > 2 else frames[0]
    return Decoded(np.ascontiguousarray(kept), notes, chosen.find_pixel_size())


def _find(signals: Sequence[Signal], wanted: str) -> Signal:
    """The signal of a name, or the only one whose name contains it."""
    word = wanted.strip().lower()
    exact = [one for one in signals if one.name.lower() == word]
    near = [one for one in signals if word in one.name.lower()]
    for found in (exact, near):
        if len(found) == 1 or (found and found is exact):
            return found[0]
    names = ", ".join(one.name or "unnamed" for one in signals[:_SPOKEN])
    raise MicrographError(f"holds no signal {wanted!r}: it has {names}: name one by --signal")
