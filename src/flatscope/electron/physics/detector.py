"""How much an annular detector sees of an atom, and of two atoms one above the other.

The image of a thin sheet is the probe's intensity, convolved with what each column scatters onto the detector. For a
column that is a short calculation of its own: the wave behind each atom, and the part of it that falls onto the
detector, for every pair of beams of the probe whose interference makes up the image.

References
----------
Nellist and Pennycook 1999, doi:10.1016/S0304-3991(99)00017-0 (incoherent imaging, columns); Kirkland 2010,
doi:10.1007/978-1-4419-6533-2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from flatscope.electron.physics.beam import find_phase, find_wavelength

Float: TypeAlias = NDArray[np.float64]
Wave: TypeAlias = NDArray[np.complex128]

_BOX_NM = 2.4  # field of one atom
_MARGIN = 1.25  # largest frequency over that of the detector's rim


@dataclass(frozen=True)
class Probe:
    """Waves between a probe and its detector.

    Parameters
    ----------
    voltage_kv, wavelength_nm
        Of the electrons.
    step_nm
        Pixel of an atom's field.
    squared
        Scattering vectors, squared (1/nm²), shape (side, side).
    frequency
        Of the image (1/nm), shape (n,); from 0 to what the probe passes.
    seen
        For each frequency the share of each scattering vector that the detector sees, shape (n, half, half): what is
        its own mirror image along either axis is kept from 0 to the highest.
    """

    voltage_kv: float
    wavelength_nm: float
    step_nm: float
    squared: Float
    frequency: Float
    seen: Float

    def scatter(self, phase: Float, arriving: Wave | float = 1.0) -> Wave:
        """What an atom takes out of the arriving wave and sends elsewhere."""
        behind = np.exp(1j * fft.ifft2(phase).real / self.step_nm**2)
        return np.asarray(fft.fft2((behind - 1.0) * arriving) * self.step_nm**2)

    def find_phase(self, number: int) -> Float:
        """Fourier transform of the phase that an atom gives."""
        return find_phase(number, self.squared, voltage_kv=self.voltage_kv)

    def detect(
        self, wave: Wave, upper: Wave | None = None, way: Wave | None = None, *, even: tuple[bool, bool]
    ) -> Float:
        """Transfer of a scattered wave, and with it of another that comes a way down from the upper atom; shape (n,).

        The two beams that interfere lie apart along the rows. `even` says along which axes the waves are their own
        mirror image: there half of them tells all.
        """
        side = len(self.squared)
        rows, cols = (np.arange(side // 2 + 1 if one else side) for one in even)
        folded = np.ix_(np.minimum(rows, side - rows), np.minimum(cols, side - cols))
        counted = np.multiply.outer(*(_count_twice(side) if one else np.ones(side) for one in even))
        found = []
        for shift, one in enumerate(self.seen):
            ahead, behind = (wave[(rows + move) % side, : len(cols)] for move in (shift, -shift))
            if upper is not None and way is not None:
                down = way[: len(rows), : len(cols)]
                ahead += down * upper[(rows + shift) % side, : len(cols)]
                behind += down * upper[(rows - shift) % side, : len(cols)]
            ahead *= one[folded] * counted
            found.append(np.vdot(behind, ahead).real)
        return np.array(found) / _BOX_NM**2


def _count_twice(side: int) -> Float:
    """How often each frequency from 0 to the highest stands for itself and its mirror image."""
    counted = np.full(side // 2 + 1, 2.0)
    counted[0] = 1.0
    if side % 2 == 0:
        counted[-1] = 1.0
    return counted


@lru_cache(maxsize=256)
def find_spot(
    numbers: tuple[int, ...],
    gap_nm: float,
    thermal_nm: float,
    *,
    voltage_kv: float,
    convergence_mrad: float,
    collection_mrad: tuple[float, float],
) -> tuple[Float, Float]:
    """Transfer of one atom, or what a pair adds to that of its two atoms.

    Parameters
    ----------
    numbers
        One atomic number, or two, the upper first.
    gap_nm
        Distance of the two along the beam.
    thermal_nm
        Vibration along either axis (1 sigma), of each on its own.
    voltage_kv, convergence_mrad
        The probe.
    collection_mrad
        Inner and outer angle of the detector.

    Returns
    -------
    Frequencies (1/nm) and, at each, the transfer (nm²): at 0 the cross section of scattering onto the detector.
    """
    probe = open_probe(voltage_kv, convergence_mrad, collection_mrad)
    alone = [_detect_atom(number, voltage_kv, convergence_mrad, collection_mrad) for number in numbers]
    blurred = np.exp(-2.0 * np.pi**2 * thermal_nm**2 * probe.frequency**2)
    if len(numbers) == 1:
        return probe.frequency, np.asarray(alone[0] * blurred)
    phases = [probe.find_phase(number) for number in numbers]
    # By vibration one atom stands beside the other. One distance stands for all: with the mean over directions it is
    # exact to third order.
    side = len(probe.squared)
    aside = np.exp(-2j * np.pi * thermal_nm * fft.fftfreq(side, probe.step_nm)[:, None])
    # Two beams end in the same direction: from the upper atom to the lower one the way is the same for both.
    way = np.exp(-1j * np.pi * probe.wavelength_nm * gap_nm * probe.squared)
    upper = probe.scatter(phases[0] * aside)
    lower = probe.scatter(phases[1] * aside.conj(), 1.0 + fft.ifft2(way * upper) / probe.step_nm**2)
    along = probe.detect(lower, upper, way, even=(False, True))
    across = probe.detect(lower.T, upper.T, way, even=(True, False))
    # Their middle moves less than each of them.
    both = (along + across) / 2.0 * np.sqrt(blurred)
    return probe.frequency, np.asarray(both - (alone[0] + alone[1]) * blurred)


@lru_cache(maxsize=64)
def _detect_atom(
    number: int, voltage_kv: float, convergence_mrad: float, collection_mrad: tuple[float, float]
) -> Float:
    """Transfer of an atom at rest."""
    probe = open_probe(voltage_kv, convergence_mrad, collection_mrad)
    return probe.detect(probe.scatter(probe.find_phase(number)), even=(True, True))


@lru_cache(maxsize=8)
def open_probe(voltage_kv: float, convergence_mrad: float, collection_mrad: tuple[float, float]) -> Probe:
    """What the detector sees of each scattering vector, for every frequency of the image.

    Two beams of the probe make a frequency; both lie in the aperture, on average half of it to either side of the axis.
    The detector as an atom sees it is smeared over all such pairs.
    """
    wavelength = find_wavelength(voltage_kv)
    rim = (collection_mrad[1] + convergence_mrad) * 1e-3 / wavelength
    side = fft.next_fast_len(int(np.ceil(2.0 * _MARGIN * _BOX_NM * rim)))
    k = fft.fftfreq(side, _BOX_NM / side)
    squared = k[:, None] ** 2 + k[None] ** 2
    angle = 1e3 * wavelength * np.sqrt(squared)
    inside = fft.rfft2(((angle >= collection_mrad[0]) & (angle <= collection_mrad[1])).astype(float))
    aperture = angle <= convergence_mrad
    shifts = np.arange(int(1e-3 * convergence_mrad / wavelength * _BOX_NM) + 1)
    half = side // 2 + 1
    seen = np.empty((len(shifts), half, half))
    for shift in shifts:
        pairs = np.roll(aperture, -shift, 0) & np.roll(aperture, shift, 0)
        smeared = fft.irfft2(inside * fft.rfft2(pairs / max(int(pairs.sum()), 1)), angle.shape)
        seen[shift] = smeared[:half, :half]
    frequency = 2.0 * shifts.astype(float) / _BOX_NM
    return Probe(voltage_kv, wavelength, _BOX_NM / side, squared, frequency, seen)
