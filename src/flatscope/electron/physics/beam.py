"""The electron wave: wavelength, aberrations, how strongly atoms shift its phase, and atoms on a grid.

References
----------
Kirkland 2010, doi:10.1007/978-1-4419-6533-2; Lobato and Van Dyck 2014, doi:10.1107/S205327331401643X (scattering
factors).
"""

from __future__ import annotations

import csv
from functools import cache
from importlib import resources
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.physics.crystals import NUMBERS

Float: TypeAlias = NDArray[np.float64]

REST_KEV = 510.99895
"""Rest energy of the electron."""
_HC_KEV_NM = 1.23984198  # Planck's constant times the speed of light
SPLAT_PX = 0.9
"""Width (1 sigma) of the Gaussians that atoms are put on the grid as; it is taken out again in Fourier space."""
_REACH_PX = 5  # half side of the square that such a Gaussian is drawn on


def find_wavelength(voltage_kv: float) -> float:
    """Relativistic wavelength of the electrons, nm."""
    return float(_HC_KEV_NM / np.sqrt(voltage_kv * (2.0 * REST_KEV + voltage_kv)))


@cache
def _coefficients() -> dict[int, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Coefficients a (Å) and b (Å²) by atomic number."""
    text = (
        resources.files("flatscope.electron.physics").joinpath("scattering.csv").read_text(encoding="utf-8")
    )
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        NUMBERS[row["element"]]: tuple(  # type: ignore[misc]
            tuple(float(row[f"{letter}{number}"]) for number in range(1, 6)) for letter in "ab"
        )
        for row in rows
    }


def find_phase(number: int, squared: NDArray[np.floating], *, voltage_kv: float) -> Float:
    """Fourier transform of the phase that one atom gives the wave, rad nm².

    Parameters
    ----------
    number
        Atomic number.
    squared
        Scattering vectors squared, 1/nm², any shape.
    voltage_kv
        Accelerating voltage.
    """
    a, b = _coefficients()[number]
    reduced = 0.01 * squared  # 1/nm² to 1/Å²
    factor = sum(
        one * (2.0 + two * reduced) / (1.0 + two * reduced) ** 2 for one, two in zip(a, b, strict=True)
    )
    relativistic = 1.0 + voltage_kv / REST_KEV
    return np.asarray(0.1 * relativistic * find_wavelength(voltage_kv) * factor)


def put_atoms(
    places: Float, weights: Float, shape: tuple[int, int], *, spread_px: Float | None = None
) -> Float:
    """Gaussians on a periodic grid, of width `SPLAT_PX` or a little more.

    Parameters
    ----------
    places
        Shape (n, 2), pixels.
    weights
        Volume of each.
    shape
        Of the grid.
    spread_px
        By how much each is wider, along either axis (1 sigma), as by vibration.
    """
    width = np.full(len(places), SPLAT_PX) if spread_px is None else np.hypot(SPLAT_PX, spread_px)
    base = np.rint(places).astype(int)
    offsets = np.arange(-_REACH_PX, _REACH_PX + 1)
    rows = base[:, 0, None] + offsets
    cols = base[:, 1, None] + offsets
    down = np.exp(-0.5 * ((rows - places[:, 0, None]) / width[:, None]) ** 2)
    across = np.exp(-0.5 * ((cols - places[:, 1, None]) / width[:, None]) ** 2)
    spots = (weights / (2.0 * np.pi * width**2))[:, None, None] * down[:, :, None] * across[:, None, :]
    index = (rows % shape[0])[:, :, None] * shape[1] + (cols % shape[1])[:, None, :]
    return np.asarray(np.bincount(index.ravel(), spots.ravel(), shape[0] * shape[1]).reshape(shape), float)
