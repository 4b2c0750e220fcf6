"""ADF-STEM images of sheets, fast: every atom scatters for itself, and the probe blurs what it scatters.

For a sheet of one or two atoms' thickness nothing happens between one atom and the next, so the image is the probe's
intensity, convolved with a spot for each atom whose weight grows as a power of its atomic number.

References
----------
Nellist and Pennycook 1999, doi:10.1016/S0304-3991(99)00017-0 (incoherent imaging); Kirkland 2010,
doi:10.1007/978-1-4419-6533-2 (aberrations, probe); Yamashita et al. 2018, doi:10.1038/s41598-018-30941-5 (power of the
atomic number).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from flatscope.electron.crystals import Sheet

Float = NDArray[np.float64]

_REST_KEV = 510.99895
_HC_KEV_NM = 1.23984198
"""Planck's constant times the speed of light."""
_SPLAT_PX, _REACH_PX = 0.9, 5
"""Atoms are put on the grid as Gaussians of this width (1 sigma), taken out again in Fourier space."""


@dataclass(frozen=True)
class ScanParams:
    """The microscope of an ADF-STEM image.

    Parameters
    ----------
    pixel_nm
        Side of a pixel.
    voltage_kv
        Accelerating voltage.
    convergence_mrad
        Half angle of the probe.
    defocus_nm, spherical_um, astigmatism_nm, astigmatism_deg
        Aberrations: positive defocus is underfocus; third-order spherical; two-fold astigmatism and its direction.
    source_nm
        Blur by the source's size and by vibration (1 sigma).
    thermal_nm
        Vibration of the atoms, with the size of what they scatter from (1 sigma).
    power
        Weight of an atom is this power of its atomic number.
    """

    pixel_nm: float = 0.02
    voltage_kv: float = 60.0
    convergence_mrad: float = 30.0
    defocus_nm: float = 0.0
    spherical_um: float = 0.0
    astigmatism_nm: float = 0.0
    astigmatism_deg: float = 0.0
    source_nm: float = 0.035
    thermal_nm: float = 0.012
    power: float = 1.7

    def __post_init__(self) -> None:
        """Refuse what no microscope has."""
        for name in ("pixel_nm", "voltage_kv", "convergence_mrad", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} is not positive")
        for name in ("source_nm", "thermal_nm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative")

    @property
    def wavelength_nm(self) -> float:
        """Relativistic wavelength of the electrons."""
        energy = self.voltage_kv
        return float(_HC_KEV_NM / np.sqrt(energy * (2.0 * _REST_KEV + energy)))


def draw_adf(sheet: Sheet, params: ScanParams, *, shape: tuple[int, int]) -> Float:
    """The noiseless image of a sheet.

    Parameters
    ----------
    sheet
        See `build_sheet`; its field begins at the centre of the first pixel.
    params
        The microscope.
    shape
        Rows and columns of the image.

    Returns
    -------
    Shape (rows, cols), in units of what one carbon atom scatters in all, per pixel.

    Notes
    -----
    The field is periodic: what leaves it on one side comes in on the other.
    """
    # On the pixels themselves where they resolve the probe, else on parts of them.
    limit = params.wavelength_nm / (4e-3 * params.convergence_mrad)
    parts = max(int(np.ceil(params.pixel_nm / limit)), 1)
    pixel, fine = params.pixel_nm / parts, (shape[0] * parts, shape[1] * parts)
    weights = (sheet.numbers / 6.0) ** params.power
    spots = _put(sheet.positions_nm[:, :2] / pixel, weights, fine)
    down, across = fft.fftfreq(fine[0])[:, None], fft.rfftfreq(fine[1])[None]
    squared = down**2 + across**2
    sharpen = np.exp(2.0 * np.pi**2 * squared * _SPLAT_PX**2)
    blur = np.exp(-2.0 * np.pi**2 * squared * (params.source_nm**2 + params.thermal_nm**2) / pixel**2)
    transfer = make_transfer(params, pixel_nm=pixel, shape=fine)
    # Beyond the probe's cut-off the transfer is zero, which keeps the sharpening from growing.
    spectrum = fft.rfft2(spots) * blur * np.where(np.abs(transfer) > 1e-6, sharpen * transfer, 0.0)
    image = fft.irfft2(spectrum, fine)
    return np.asarray(image[::parts, ::parts] * parts**2)


def make_transfer(params: ScanParams, *, pixel_nm: float, shape: tuple[int, int]) -> NDArray[np.complex128]:
    """Fourier transform of the probe's intensity, 1 at frequency 0; shape (rows, cols // 2 + 1)."""
    k_row = fft.fftfreq(shape[0], pixel_nm)[:, None]
    k_col = fft.fftfreq(shape[1], pixel_nm)[None]
    wavelength = params.wavelength_nm
    angle = wavelength * np.hypot(k_row, k_col)
    direction = np.arctan2(-k_row, k_col)
    turned = np.cos(2.0 * (direction - np.deg2rad(params.astigmatism_deg)))
    phase = (
        2.0
        * np.pi
        / wavelength
        * (
            -0.5 * params.defocus_nm * angle**2
            + 0.5 * params.astigmatism_nm * angle**2 * turned
            + 0.25 * 1e3 * params.spherical_um * angle**4
        )
    )
    # A soft rim of one frequency step, so that a small field's coarse frequencies do not make the aperture ragged.
    edge = 1e-3 * params.convergence_mrad
    step = wavelength / (pixel_nm * min(shape))
    aperture = np.clip((edge - angle) / step + 0.5, 0.0, 1.0)
    probe = np.abs(fft.ifft2(aperture * np.exp(-1j * phase))) ** 2
    transfer: NDArray[np.complex128] = fft.rfft2(probe)
    return transfer / transfer[0, 0].real


def _put(places: Float, weights: Float, shape: tuple[int, int]) -> Float:
    """Gaussians of unit volume on a periodic grid."""
    base = np.rint(places).astype(int)
    offsets = np.arange(-_REACH_PX, _REACH_PX + 1)
    rows = base[:, 0, None] + offsets
    cols = base[:, 1, None] + offsets
    down = np.exp(-0.5 * ((rows - places[:, 0, None]) / _SPLAT_PX) ** 2)
    across = np.exp(-0.5 * ((cols - places[:, 1, None]) / _SPLAT_PX) ** 2)
    spots = (weights[:, None, None] / (2.0 * np.pi * _SPLAT_PX**2)) * down[:, :, None] * across[:, None, :]
    index = (rows % shape[0])[:, :, None] * shape[1] + (cols % shape[1])[:, None, :]
    return np.asarray(np.bincount(index.ravel(), spots.ravel(), shape[0] * shape[1]).reshape(shape), float)
