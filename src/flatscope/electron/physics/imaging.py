"""Images of sheets, fast: ADF-STEM and HRTEM focal series.

For a sheet of one or two atoms' thickness nothing happens between one atom and the next. In ADF-STEM every column then
scatters for itself, and the image is the probe's intensity, convolved with what each column sends to the detector. In
HRTEM the sheet shifts the phase of the wave, and the lens makes that visible.

References
----------
Nellist and Pennycook 1999, doi:10.1016/S0304-3991(99)00017-0 (incoherent imaging); Kirkland 2010,
doi:10.1007/978-1-4419-6533-2 (aberrations, probe, phase objects).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.spatial import cKDTree

from flatscope.electron.physics.beam import SPLAT_PX, find_phase, find_wavelength, put_atoms
from flatscope.electron.physics.crystals import NUMBERS, Sheet
from flatscope.electron.physics.detector import find_spot

Float: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32]
Waves = TypeVar("Waves", Float, Real)

_WAVE_NM = 0.02  # largest pixel of the wave in HRTEM
_BAND = 1.0 / 3.0  # its largest frequency, cycles a pixel: its square still fits the grid
_PLANE_NM = 0.05  # atoms whose heights differ by less scatter from one plane
_SAME_COLUMN_NM = 0.03  # atoms closer than this, seen from above, are one column


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
    defocus_nm, spherical_um
        Positive defocus is underfocus; third-order spherical aberration.
    astigmatism_nm, astigmatism_deg, coma_nm, coma_deg, trefoil_nm, trefoil_deg
        Two-fold astigmatism, axial coma without the shift that it gives the image, three-fold astigmatism, and their
        directions.
    source_nm
        Blur by the source's size and by vibration (1 sigma).
    thermal_nm
        Vibration of the atoms along either axis (1 sigma).
    collection_mrad
        Inner and outer angle of the detector.
    """

    pixel_nm: float = 0.02
    voltage_kv: float = 60.0
    convergence_mrad: float = 30.0
    defocus_nm: float = 0.0
    spherical_um: float = 0.0
    astigmatism_nm: float = 0.0
    astigmatism_deg: float = 0.0
    coma_nm: float = 0.0
    coma_deg: float = 0.0
    trefoil_nm: float = 0.0
    trefoil_deg: float = 0.0
    source_nm: float = 0.035
    thermal_nm: float = 0.008
    collection_mrad: tuple[float, float] = (70.0, 200.0)

    def __post_init__(self) -> None:
        """Refuse what no microscope has."""
        for name in ("pixel_nm", "voltage_kv", "convergence_mrad"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} is not positive")
        for name in ("source_nm", "thermal_nm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative")
        if not 0.0 < self.collection_mrad[0] < self.collection_mrad[1]:
            raise ValueError(
                f"collection_mrad = {self.collection_mrad}: give inner and outer angle, the smaller first"
            )

    @property
    def wavelength_nm(self) -> float:
        """Relativistic wavelength of the electrons."""
        return find_wavelength(self.voltage_kv)


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
    Shape (rows, cols), share of the beam that reaches the detector.

    Notes
    -----
    The field is periodic: what leaves it on one side comes in on the other. What atoms beside each other scatter is
    added without their interference, which the detector's inner angle averages out; a pair one above the other keeps
    its own. Fails for crystals so thick that the probe changes on its way, and where the detector reaches into the
    bright disk.
    """
    # On the pixels themselves where they resolve the probe, else on parts of them.
    limit = params.wavelength_nm / (4e-3 * params.convergence_mrad)
    parts = max(int(np.ceil(params.pixel_nm / limit)), 1)
    pixel, fine = params.pixel_nm / parts, (shape[0] * parts, shape[1] * parts)
    down, across = fft.fftfreq(fine[0])[:, None], fft.rfftfreq(fine[1])[None]
    squared = down**2 + across**2
    transfer = make_transfer(params, pixel_nm=pixel, shape=fine)
    # Beyond the probe's cut-off the transfer is zero, which keeps the sharpening from growing.
    sharpen = np.where(
        np.abs(transfer) > 1e-6, np.exp(2.0 * np.pi**2 * squared * SPLAT_PX**2) * transfer, 0.0
    )
    blur = np.exp(-2.0 * np.pi**2 * squared * (params.source_nm / pixel) ** 2)
    frequency = np.sqrt(squared) / pixel
    spectrum = np.zeros(transfer.shape, np.complex128)
    for (numbers, gap_nm), places in _group(sheet).items():
        known, spot = find_spot(
            numbers,
            gap_nm,
            params.thermal_nm,
            voltage_kv=params.voltage_kv,
            convergence_mrad=params.convergence_mrad,
            collection_mrad=params.collection_mrad,
        )
        spots = fft.rfft2(put_atoms(places / pixel, np.ones(len(places)), fine))
        spectrum += spots * np.interp(frequency, known, spot, right=0.0)
    image = fft.irfft2(spectrum * blur * sharpen, fine)
    return np.asarray(image[::parts, ::parts] / pixel**2)


def _group(sheet: Sheet) -> dict[tuple[tuple[int, ...], float], Float]:
    """Places (n, 2) of the atoms of each element, and of each kind of pair of atoms one above the other."""
    flat, heights = sheet.positions_nm[:, :2], sheet.positions_nm[:, 2]
    groups: dict[tuple[tuple[int, ...], float], Float] = {
        ((int(number),), 0.0): flat[sheet.numbers == number] for number in np.unique(sheet.numbers)
    }
    # Where carbon lies at random there is no column whose atoms could agree.
    heavy = np.flatnonzero(sheet.numbers != NUMBERS["C"])
    if len(heavy) < 2:
        return groups
    pairs = heavy[cKDTree(flat[heavy]).query_pairs(_SAME_COLUMN_NM, output_type="ndarray")]
    gaps = np.rint(np.abs(np.diff(heights[pairs], axis=1))[:, 0] / _PLANE_NM).astype(int)
    kinds = np.sort(sheet.numbers[pairs], axis=1)
    middles = flat[pairs].mean(1)
    for low, high, gap in np.unique(np.column_stack([kinds, gaps]), axis=0):
        mine = (kinds[:, 0] == low) & (kinds[:, 1] == high) & (gaps == gap)
        groups[(int(low), int(high)), round(float(gap) * _PLANE_NM, 4)] = middles[mine]
    return groups


def make_transfer(params: ScanParams, *, pixel_nm: float, shape: tuple[int, int]) -> NDArray[np.complex128]:
    """Fourier transform of the probe's intensity, 1 at frequency 0; shape (rows, cols // 2 + 1)."""
    k_row = fft.fftfreq(shape[0], pixel_nm)[:, None]
    k_col = fft.fftfreq(shape[1], pixel_nm)[None]
    wavelength = params.wavelength_nm
    angle = wavelength * np.hypot(k_row, k_col)
    phase = _aberrate(params, k_row, k_col) - np.pi / wavelength * params.defocus_nm * angle**2
    # A soft rim of one frequency step, so that a small field's coarse frequencies do not make the aperture ragged.
    edge = 1e-3 * params.convergence_mrad
    step = wavelength / (pixel_nm * min(shape))
    aperture = np.clip((edge - angle) / step + 0.5, 0.0, 1.0)
    if params.coma_nm:
        # Coma also shifts the image, which means nothing: columns stay where they are.
        for axis in (k_row, k_col):
            phase = phase - axis * ((aperture * phase * axis).sum() / (aperture * axis**2).sum())
    probe = np.abs(fft.ifft2(aperture * np.exp(-1j * phase))) ** 2
    transfer: NDArray[np.complex128] = fft.rfft2(probe)
    return transfer / transfer[0, 0].real


@dataclass(frozen=True)
class SeriesParams:
    """The microscope of an HRTEM focal series.

    Parameters
    ----------
    pixel_nm
        Side of a pixel.
    voltage_kv
        Accelerating voltage.
    defocus_nm
        Of each image; positive is underfocus.
    spherical_um
        Third-order spherical aberration.
    astigmatism_nm, astigmatism_deg
        Two-fold astigmatism and its direction.
    trefoil_nm, trefoil_deg
        Three-fold astigmatism and its direction.
    coma_nm, coma_deg
        Axial coma and its direction.
    spread_nm
        Focal spread (1 sigma).
    source_mrad
        Half angle of the illumination (1 sigma).
    blur_nm
        Blur of the image by vibration and drift during exposure (1 sigma).
    drift_nm
        Shift of each image against the one before, (rows, cols).
    dose_e_per_a2
        Electrons on the sample in the whole series; None draws the mean image.
    mtf
        Frequency (cycles a detector pixel) at which the detector's transfer has fallen to a half, and the power of
        its fall: transfer = 1 / (1 + (f / first)^second); None is a perfect detector.
    """

    pixel_nm: float = 0.0125
    voltage_kv: float = 50.0
    defocus_nm: tuple[float, ...] = (-3.0, 2.0, 7.0)
    spherical_um: float = 14.29
    astigmatism_nm: float = 0.0
    astigmatism_deg: float = 0.0
    trefoil_nm: float = 0.0
    trefoil_deg: float = 0.0
    coma_nm: float = 0.0
    coma_deg: float = 0.0
    spread_nm: float = 1.0
    source_mrad: float = 0.0
    blur_nm: float = 0.02
    drift_nm: tuple[float, float] = (0.0, 0.0)
    dose_e_per_a2: float | None = None
    mtf: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what no microscope has."""
        for name in ("pixel_nm", "voltage_kv"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} is not positive")
        for name in ("spread_nm", "source_mrad", "blur_nm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative")
        if not self.defocus_nm:
            raise ValueError("a focal series without defocus values holds no image")
        if self.dose_e_per_a2 is not None and not self.dose_e_per_a2 > 0:
            raise ValueError(f"dose_e_per_a2 = {self.dose_e_per_a2} is not positive")

    @property
    def wavelength_nm(self) -> float:
        """Relativistic wavelength of the electrons."""
        return find_wavelength(self.voltage_kv)


def draw_series(
    sheet: Sheet, params: SeriesParams, *, shape: tuple[int, int], spread_nm: Float | None = None
) -> Real:
    """The mean images of a focal series, the incoming beam at 1.

    Parameters
    ----------
    sheet
        See `build_sheet`; its field begins at the centre of the first pixel and may reach farther than the image.
    params
        The microscope; dose and detector are not applied here, see `flatscope.electron.drawing.noise`.
    shape
        Rows and columns of the images.
    spread_nm
        Vibration of each atom along either axis in the sheet (1 sigma), shape (n,), see
        `flatscope.electron.physics.vibrations`.

    Returns
    -------
    Shape (images, rows, cols).

    Notes
    -----
    The field is periodic. The wave behind the sheet is that of a phase object whose atoms act from their own heights:
    exact for one plane of atoms, and to first order for several. Multiple scattering between planes that lie farther
    apart than the depth of focus is not in it, so it fails for bulk crystals. Vibration acts through the mean
    phase, and focal spread and illumination as envelopes of the wave: what they add where only quadratic terms of the
    wave contribute is missing.
    """
    wave = fit_grid(shape, params.pixel_nm)
    step = tuple(side * params.pixel_nm / points for side, points in zip(shape, wave, strict=True))
    down = fft.fftfreq(wave[0], step[0]).astype(np.float32)[:, None]
    across = fft.fftfreq(wave[1], step[1]).astype(np.float32)[None]
    squared = down**2 + across**2
    phase, loss = _shift_phase(sheet, params, step, spread_nm=spread_nm, squared=squared)
    behind = fft.fft2(np.exp(loss) * _turn(phase))
    curve = np.float32(np.pi * params.wavelength_nm)
    behind *= np.where(squared < (_BAND / max(step)) ** 2, _turn(-_aberrate(params, down, across)), 0.0)
    behind *= np.exp(np.float32(-0.5) * (curve * np.float32(params.spread_nm) * squared) ** 2)
    images = np.empty((len(params.defocus_nm), *shape), np.float32)
    for index, defocus in enumerate(params.defocus_nm):
        seen = behind * _turn(curve * np.float32(defocus) * squared)
        if params.source_mrad:
            angle = params.wavelength_nm * np.sqrt(squared)
            bend = 1e3 * params.spherical_um * angle**3 - defocus * angle
            opening = 2e-3 * np.pi / params.wavelength_nm * params.source_mrad
            seen *= np.exp(-0.5 * (opening * bend) ** 2)
        wave_function = fft.ifft2(seen)
        spectrum = fft.rfft2(wave_function.real**2 + wave_function.imag**2)
        images[index] = sample_image(spectrum, wave, shape, params=params, index=index)
    return images


def fit_grid(shape: tuple[int, int], pixel_nm: float) -> tuple[int, int]:
    """Points of the wave's grid over an image's field: even numbers, fast to transform."""
    rows, cols = (2 * fft.next_fast_len(int(np.ceil(0.5 * side * pixel_nm / _WAVE_NM))) for side in shape)
    return rows, cols


def _turn(phase: Real) -> NDArray[np.complex64]:
    """exp(i phase); twice as fast as the exponential of complex numbers."""
    turned = np.empty(phase.shape, np.complex64)
    np.cos(phase, out=turned.real)
    np.sin(phase, out=turned.imag)
    return turned


def _shift_phase(
    sheet: Sheet,
    params: SeriesParams,
    step: tuple[float, ...],
    *,
    spread_nm: Float | None,
    squared: Real,
) -> tuple[Real, Real]:
    """Phase and logarithm of the amplitude that the atoms give the wave at height 0; see `draw_series`."""
    shape = (squared.shape[0], squared.shape[1])
    half = squared[:, : shape[1] // 2 + 1]
    pixels = fft.fftfreq(shape[0])[:, None] ** 2 + fft.rfftfreq(shape[1])[None] ** 2
    area = step[0] * step[1]
    sharpen = np.where(
        half < (_BAND / max(step)) ** 2, np.exp(2.0 * np.pi**2 * pixels * SPLAT_PX**2) / area, 0.0
    ).astype(np.float32)
    even, odd = np.zeros((2, *half.shape), np.complex64)
    planes = np.rint(sheet.positions_nm[:, 2] / _PLANE_NM).astype(int)
    for plane in np.unique(planes):
        scattered = np.zeros(half.shape, np.complex64)
        for number in np.unique(sheet.numbers[planes == plane]):
            mine = (planes == plane) & (sheet.numbers == number)
            spread = None if spread_nm is None else spread_nm[mine] / np.sqrt(area)
            places = sheet.positions_nm[mine, :2] / np.array(step)
            spots = put_atoms(places, np.ones(int(mine.sum())), shape, spread_px=spread)
            strength = find_phase(int(number), half, voltage_kv=params.voltage_kv)
            scattered += fft.rfft2(spots.astype(np.float32)) * strength.astype(np.float32)
        travel = np.float32(np.pi * params.wavelength_nm * _PLANE_NM * plane) * half
        even += scattered * np.cos(travel)
        if plane:
            odd += scattered * np.sin(travel)
    return fft.irfft2(even * sharpen, shape), fft.irfft2(odd * sharpen, shape)


def _aberrate(params: ScanParams | SeriesParams, down: Waves, across: Waves) -> Waves:
    """Phase of the lens at zero defocus; what it multiplies is exp(-i phase)."""
    wavelength = params.wavelength_nm
    angle = wavelength * np.hypot(down, across)
    lens = 0.5e3 * math.pi / wavelength * params.spherical_um * angle**4
    turned = None
    for strength, direction, fold, power in (
        (params.astigmatism_nm, params.astigmatism_deg, 2, 2),
        (params.coma_nm, params.coma_deg, 1, 3),
        (params.trefoil_nm, params.trefoil_deg, 3, 3),
    ):
        if strength:
            turned = np.arctan2(-down, across) if turned is None else turned
            waves = 2.0 * math.pi / wavelength * strength / power
            lens += waves * angle**power * np.cos(fold * (turned - math.radians(direction)))
    return np.asarray(lens, angle.dtype)


def sample_image(
    spectrum: NDArray[np.complex64],
    wave: tuple[int, ...],
    shape: tuple[int, int],
    *,
    params: SeriesParams,
    index: int,
) -> Real:
    """An image on its own pixels from the spectrum on the wave's, blurred and shifted."""
    rows, cols = (min(here, there) for here, there in zip(wave, shape, strict=True))
    low, high = (rows + 1) // 2, rows // 2
    made = np.zeros((shape[0], shape[1] // 2 + 1), np.complex64)
    width = cols // 2 + 1
    made[:low, :width] = spectrum[:low, :width]
    made[len(made) - high :, :width] = spectrum[len(spectrum) - high :, :width]
    k_row = fft.fftfreq(shape[0], params.pixel_nm).astype(np.float32)[:, None]
    k_col = fft.rfftfreq(shape[1], params.pixel_nm).astype(np.float32)[None]
    made *= np.exp(np.float32(-2.0 * (np.pi * params.blur_nm) ** 2) * (k_row**2 + k_col**2))
    if any(params.drift_nm) and index:
        moved = index * (params.drift_nm[0] * k_row + params.drift_nm[1] * k_col)
        made *= _turn(np.asarray(-2.0 * np.pi * moved, np.float32))
    scale = np.float32(shape[0] * shape[1] / (wave[0] * wave[1]))
    return np.asarray(fft.irfft2(made * scale, shape), np.float32)
