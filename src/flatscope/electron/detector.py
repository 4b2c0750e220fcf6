"""How much an annular detector sees of an atom, and of two atoms one above the other.

The image of a thin sheet is the probe's intensity, convolved with what each column scatters onto the detector. For a
column that is a short calculation of its own: the wave behind each atom, the part of it that falls onto the detector,
and how much of what two atoms scatter there still knows of each other after their vibration and the way between them.

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
        One atomic number, or two.
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
    side = fft.next_fast_len(
        int(np.ceil(2.0 * _MARGIN * _BOX_NM * (collection_mrad[1] + convergence_mrad) * 1e-3 / wavelength))
    )
    step = _BOX_NM / side
    k = fft.fftfreq(side, step)
    squared = k[:, None] ** 2 + k[None] ** 2
    angle = 1e3 * wavelength * np.sqrt(squared)
    inside = ((angle >= collection_mrad[0]) & (angle <= collection_mrad[1])).astype(float)
    # The beam comes from everywhere in the aperture: the detector as an atom sees it is smeared by as much.
    aperture = (angle <= convergence_mrad).astype(float)
    seen = fft.ifft2(fft.fft2(inside) * fft.fft2(aperture / aperture.sum())).real
    phases = [find_phase(number, squared, voltage_kv=voltage_kv) for number in numbers]
    half = np.arange(int(2e-3 * convergence_mrad / wavelength * _BOX_NM) // 2 + 2)
    frequency: Float = 2.0 * half.astype(float) / _BOX_NM

    def send(behind: NDArray[np.complex128]) -> Float:
        """Transfer of what scatters a plane wave into this one."""
        scattered = fft.fft2(behind - 1.0) * step**2
        # Of the two beams whose interference makes a frequency of the image, one comes from half of it to either side.
        sums = [
            float(
                (seen * np.roll(scattered, -shift, axis) * np.roll(scattered, shift, axis).conj()).real.sum()
            )
            for shift in half
            for axis in (0, 1)
        ]
        return np.asarray(np.reshape(sums, (-1, 2)).mean(1) / _BOX_NM**2)

    alone = [send(np.exp(1j * fft.ifft2(phase).real / step**2)) for phase in phases]
    blurred = np.exp(-2.0 * np.pi**2 * thermal_nm**2 * frequency**2)
    if len(numbers) == 1:
        return frequency, np.asarray(alone[0] * blurred)
    # The lower atom meets the wave that the upper one has bent; by vibration one stands beside the other. One distance
    # stands for all of them: with the mean over directions it is exact to third order.
    aside = np.exp(-2j * np.pi * thermal_nm * k[:, None])
    upper, lower = (
        np.exp(1j * fft.ifft2(phase * way).real / step**2)
        for phase, way in zip(phases, (aside, aside.conj()), strict=True)
    )
    between = np.exp(-1j * np.pi * wavelength * gap_nm * squared)
    both = send(lower * fft.ifft2(between * fft.fft2(upper)))
    # Their middle moves less than each of them.
    return frequency, np.asarray(both * np.sqrt(blurred) - (alone[0] + alone[1]) * blurred)
