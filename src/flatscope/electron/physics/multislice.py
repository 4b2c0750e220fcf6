"""Images of sheets by abTEM's multislice and PRISM algorithms (GPL: the extra `multislice`, loaded when needed).

What the fast models of `flatscope.electron.physics.imaging` are measured against, and what networks are tested on.

References
----------
Madsen and Susi 2021, doi:10.12688/openreseurope.13015.2 (abTEM); Ophus 2017, doi:10.1186/s40679-017-0046-1 (PRISM).
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from flatscope.electron.physics.crystals import Sheet
from flatscope.electron.physics.imaging import Float, Real, ScanParams, SeriesParams, fit_grid, sample_image

_SLICE_NM = 0.1  # thickness of a slice
_VACUUM_NM = 0.2  # empty space above and below the sheet


class MultisliceError(RuntimeError):
    """abTEM is not installed; the message says how to get it."""


def simulate_series(
    sheet: Sheet,
    params: SeriesParams,
    *,
    shape: tuple[int, int],
    spread_nm: Float | None = None,
    phonons: int = 0,
    rng: np.random.Generator | None = None,
) -> Real:
    """The mean images of a focal series by multislice; parameters and result as in `draw_series`.

    Parameters
    ----------
    sheet, params, shape
        See `flatscope.electron.physics.imaging.draw_series`.
    spread_nm
        Vibration of each atom along either axis in the sheet (1 sigma), shape (n,).
    phonons
        Number of displaced copies of the sheet whose images are averaged; 0 keeps the atoms where they are.
    rng
        Source of the displacements; needed with `phonons`.

    Raises
    ------
    MultisliceError
        If abTEM is not installed.
    """
    abtem, ase = _load()
    wave = fit_grid(shape, params.pixel_nm)
    extent = [side * params.pixel_nm for side in shape]
    low, high = float(sheet.positions_nm[:, 2].min()), float(sheet.positions_nm[:, 2].max())
    reach = max(-low, high) + _VACUUM_NM
    lens = abtem.CTF(
        energy=1e3 * params.voltage_kv,
        semiangle_cutoff=np.inf,
        focal_spread=10.0 * np.sqrt(2.0) * params.spread_nm,
        Cs=1e4 * params.spherical_um,
        astigmatism=10.0 * params.astigmatism_nm,
        astigmatism_angle=np.deg2rad(params.astigmatism_deg),
        coma=10.0 * params.coma_nm,
        coma_angle=np.deg2rad(params.coma_deg),
        trefoil=10.0 * params.trefoil_nm,
        trefoil_angle=np.deg2rad(params.trefoil_deg),
    )
    total = np.zeros((len(params.defocus_nm), *wave))
    for _ in range(max(phonons, 1)):
        places = sheet.positions_nm.copy()
        if phonons and spread_nm is not None and rng is not None:
            places[:, :2] += rng.normal(size=(len(places), 2)) * spread_nm[:, None]
        # Its beam goes along z, ours against it; its first axis is ours along the columns.
        turned = np.column_stack([places[:, 1], extent[0] - places[:, 0], reach - places[:, 2]])
        atoms = ase.Atoms(
            numbers=sheet.numbers,
            positions=10.0 * turned,
            cell=[10.0 * extent[1], 10.0 * extent[0], 20.0 * reach],
            pbc=True,
        )
        potential = abtem.Potential(
            atoms, gpts=wave[::-1], slice_thickness=10.0 * _SLICE_NM, projection="infinite"
        )
        behind = abtem.PlaneWave(energy=1e3 * params.voltage_kv).multislice(potential)
        for index, defocus in enumerate(params.defocus_nm):
            # The wave comes out below the sheet, the defocus counts from its middle.
            lens.defocus = 10.0 * (defocus + reach)
            seen = np.asarray(behind.apply_ctf(lens).intensity().compute(progress_bar=False).array)
            total[index] += _upright(seen)
    spectra = fft.rfft2((total / max(phonons, 1)).astype(np.float32))
    return np.stack(
        [
            sample_image(spectrum, wave, shape, params=params, index=index)
            for index, spectrum in enumerate(spectra)
        ]
    )


def _upright(seen: NDArray[Any]) -> NDArray[Any]:
    """From (x, y up) to (rows down, cols): row 0 is y = height, which is y = 0 by periodicity."""
    return np.roll(seen.T[::-1], 1, axis=0)


def _load() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            abtem, ase = importlib.import_module("abtem"), importlib.import_module("ase")
    except ImportError:
        raise MultisliceError("multislice needs abTEM: pip install 'flatscope[multislice]'") from None
    return abtem, ase


def simulate_adf(
    sheet: Sheet,
    params: ScanParams,
    *,
    shape: tuple[int, int],
    phonons: int,
    rng: np.random.Generator,
    sampling_nm: float = 0.006,
) -> NDArray[np.float64]:
    """The mean ADF-STEM image of a sheet by PRISM; parameters and result as in `draw_adf`.

    Parameters
    ----------
    sheet, params, shape
        See `flatscope.electron.physics.imaging.draw_adf`.
    phonons
        Number of displaced copies of the sheet whose images are averaged.
    rng
        Source of the displacements.
    sampling_nm
        Pixel of the wave; its frequencies must reach the detector's outer angle.

    Raises
    ------
    MultisliceError
        If abTEM is not installed.
    """
    abtem, ase = _load()
    extent = [side * params.pixel_nm for side in shape]
    reach = float(np.abs(sheet.positions_nm[:, 2]).max()) + _VACUUM_NM
    total = np.zeros(shape)
    for _ in range(max(phonons, 1)):
        places = sheet.positions_nm.copy()
        if phonons:
            places += params.thermal_nm * rng.normal(size=places.shape)
        turned = np.column_stack([places[:, 1], extent[0] - places[:, 0], reach - places[:, 2]])
        cell = [10.0 * extent[1], 10.0 * extent[0], 20.0 * reach]
        atoms = ase.Atoms(numbers=sheet.numbers, positions=10.0 * turned, cell=cell, pbc=True)
        potential = abtem.Potential(
            atoms, sampling=10.0 * sampling_nm, slice_thickness=10.0 * _SLICE_NM, projection="infinite"
        )
        probe = abtem.SMatrix(
            potential=potential,
            energy=1e3 * params.voltage_kv,
            semiangle_cutoff=params.convergence_mrad,
            downsample=False,
        )
        grid = abtem.GridScan(
            start=(0, 0), end=(10.0 * extent[1], 10.0 * extent[0]), gpts=shape[::-1], endpoint=False
        )
        lens = abtem.CTF(
            # The probe is focused on the middle of the sheet, the wave begins above it.
            defocus=10.0 * (params.defocus_nm + reach),
            Cs=1e4 * params.spherical_um,
            astigmatism=10.0 * params.astigmatism_nm,
            astigmatism_angle=np.deg2rad(params.astigmatism_deg),
            semiangle_cutoff=params.convergence_mrad,
            energy=1e3 * params.voltage_kv,
        )
        detector = abtem.AnnularDetector(*params.collection_mrad)
        seen = probe.scan(scan=grid, detectors=detector, ctf=lens).compute(progress_bar=False)
        total += _upright(np.asarray(seen.array))
    spectrum = fft.rfft2(total / max(phonons, 1))
    squared = fft.fftfreq(shape[0])[:, None] ** 2 + fft.rfftfreq(shape[1])[None] ** 2
    blurred = fft.irfft2(
        spectrum * np.exp(-2.0 * np.pi**2 * squared * (params.source_nm / params.pixel_nm) ** 2), shape
    )
    return np.asarray(blurred)
