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

from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from flatscope.electron.beam import find_phase, find_wavelength

Float: TypeAlias = NDArray[np.float64]
Wave: TypeAlias = NDArray[np.complex128]

_BOX_NM, _MARGIN = 2.4, 1.25
"""An atom's field, and how far its frequencies go beyond the detector's rim."""


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
    wavelength = find_wavelength(voltage_kv)
    frequency, seen = _look(voltage_kv, convergence_mrad, collection_mrad)
    side = seen.shape[1]
    step = _BOX_NM / side
    k = fft.fftfreq(side, step)
    squared = k[:, None] ** 2 + k[None] ** 2
    phases = [find_phase(number, squared, voltage_kv=voltage_kv) for number in numbers]

    def scatter(phase: Float, arriving: Wave | float = 1.0) -> Wave:
        """What an atom takes out of the arriving wave and sends elsewhere."""
        behind = np.exp(1j * fft.ifft2(phase).real / step**2)
        return np.asarray(fft.fft2((behind - 1.0) * arriving) * step**2)

    # Two beams end in the same direction: from the upper atom to the lower one the way is the same for both.
    way = np.exp(-1j * np.pi * wavelength * gap_nm * squared)

    def send(wave: Wave, upper: Wave | None = None) -> Float:
        """Transfer of a scattered wave, and with it of another one that comes from the upper atom."""
        sums = []
        for turned in (False, True):
            here = wave.T if turned else wave
            above = None if upper is None else upper.T if turned else upper
            for shift, one in enumerate(seen):
                ahead, behind = (np.roll(here, move, 0) for move in (-shift, shift))
                if above is not None:
                    ahead = ahead + way * np.roll(above, -shift, 0)
                    behind = behind + way * np.roll(above, shift, 0)
                sums.append((one * ahead * behind.conj()).real.sum())
        return np.asarray(np.reshape(sums, (2, -1)).mean(0) / _BOX_NM**2)

    alone = [send(scatter(phase)) for phase in phases]
    blurred = np.exp(-2.0 * np.pi**2 * thermal_nm**2 * frequency**2)
    if len(numbers) == 1:
        return frequency, np.asarray(alone[0] * blurred)
    # By vibration one atom stands beside the other. One distance stands for all: with the mean over directions it is
    # exact to third order.
    aside = np.exp(-2j * np.pi * thermal_nm * k[:, None])
    upper = scatter(phases[0] * aside)
    lower = scatter(phases[1] * aside.conj(), 1.0 + fft.ifft2(way * upper) / step**2)
    both = send(lower, upper)
    # Their middle moves less than each of them.
    return frequency, np.asarray(both * np.sqrt(blurred) - (alone[0] + alone[1]) * blurred)


@lru_cache(maxsize=8)
def _look(
    voltage_kv: float, convergence_mrad: float, collection_mrad: tuple[float, float]
) -> tuple[Float, Float]:
    """What the detector sees of each scattering vector, for every frequency of the image.

    Two beams of the probe make a frequency; both lie in the aperture, on average half of it to either side of the axis.
    The detector as an atom sees it is smeared over all such pairs.

    Returns
    -------
    Frequencies down the rows, 1/nm, shape (n,), and shares seen, shape (n, side, side).
    """
    wavelength = find_wavelength(voltage_kv)
    rim = (collection_mrad[1] + convergence_mrad) * 1e-3 / wavelength
    side = fft.next_fast_len(int(np.ceil(2.0 * _MARGIN * _BOX_NM * rim)))
    k = fft.fftfreq(side, _BOX_NM / side)
    angle = 1e3 * wavelength * np.hypot(k[:, None], k[None])
    inside = fft.fft2(((angle >= collection_mrad[0]) & (angle <= collection_mrad[1])).astype(float))
    aperture = angle <= convergence_mrad
    half = np.arange(int(1e-3 * convergence_mrad / wavelength * _BOX_NM) + 1)
    seen = []
    for shift in half:
        pairs = np.roll(aperture, -shift, 0) & np.roll(aperture, shift, 0)
        seen.append(fft.ifft2(inside * fft.fft2(pairs / max(int(pairs.sum()), 1))).real)
    return 2.0 * half.astype(float) / _BOX_NM, np.array(seen)
