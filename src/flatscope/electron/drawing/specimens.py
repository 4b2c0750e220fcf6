"""Focal series and scans with known truth: sheets with every kind of defect, under microscopes as they are.

Ranges follow low-voltage microscopes with a corrector: what networks are trained and tested on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.drawing.noise import NoiseParams, count_electrons, scan
from flatscope.electron.physics.crystals import NUMBERS, Sheet, SheetParams, build_sheet, deform, find_crystal
from flatscope.electron.physics.imaging import ScanParams, SeriesParams, draw_adf, draw_series
from flatscope.electron.physics.vibrations import find_amplitudes

Float: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32]
Draw: TypeAlias = Callable[..., Real]

RIM_NM = 0.7
"""How far the crystal and the wave go on beyond the image."""
_VOLTAGES = ((50.0, 0.5), (60.0, 0.25), (80.0, 0.25))  # kV of focal series, and their shares
DEFOCUS_NM = (-6.0, 10.0)
"""Range of the middle image's defocus."""
STEP_NM = (4.0, 6.0)
"""Range of the step between images."""
_TEMPERATURES_K = (150.0, 700.0)  # wider than samples are, since potentials differ in how far atoms move
_METALS = ("Ti", "V", "Cr", "Fe", "Nb", "Mo", "Ta", "W", "Re")  # dopants on metal sites of scans
_OTHER_ENOUGH = 0.1  # relative difference of atomic numbers from which a dopant is seen
_COMA_NM = 300.0  # of a corrector that has drifted (1 sigma along either axis)
_TREFOIL_NM = 150.0
_DOPANTS = ("W", "V", "Re", "Nb")  # on metal sites of focal series
_SECOND_DOPANTS = ("O", "Se")  # on their chalcogen sites
_ADATOMS = ("C", "C", "O", "Mo")  # on top of them


@dataclass(frozen=True)
class Specimen:
    """A focal series and what is true about it.

    Parameters
    ----------
    images
        Shape (3, rows, cols): counts, in ascending order of defocus.
    mean
        The same without counting noise and detector, the incoming beam at 1.
    sheet
        Positions count from the centre of the first pixel.
    optics
        The microscope, dose and detector included.
    """

    images: Real
    mean: Real
    sheet: Sheet
    optics: SeriesParams


@dataclass(frozen=True)
class Scanned:
    """An ADF-STEM image and what is true about it.

    Parameters
    ----------
    image
        Shape (rows, cols): counts.
    mean
        The same without noise and distortions.
    sheet
        Positions count from the centre of the first pixel; `sites_nm` are where the scan shows them.
    optics, noise
        The microscope and its scan.
    """

    image: Real
    mean: Real
    sheet: Sheet
    optics: ScanParams
    noise: NoiseParams


def draw_optics(
    rng: np.random.Generator, *, pixel_nm: float, dose_e_per_a2: tuple[float, float] = (1e2, 1e5)
) -> SeriesParams:
    """A microscope at random.

    Parameters
    ----------
    pixel_nm
        Side of a pixel.
    dose_e_per_a2
        Range of the electrons on the sample in a whole series; logarithms are drawn.
    """
    voltages, shares = zip(*_VOLTAGES, strict=True)
    middle, step = rng.uniform(*DEFOCUS_NM), rng.uniform(*STEP_NM)
    low, high = np.log(dose_e_per_a2)
    # The detector's own pixels are about half as large as these networks'.
    finer = pixel_nm / 0.0115
    return SeriesParams(
        pixel_nm=pixel_nm,
        voltage_kv=float(rng.choice(voltages, p=shares)),
        defocus_nm=(middle - step, middle, middle + step),
        spherical_um=float(rng.uniform(-15.0, 15.0)),
        astigmatism_nm=float(rng.uniform(0.0, 5.0)),
        astigmatism_deg=float(rng.uniform(0.0, 180.0)),
        trefoil_nm=float(rng.uniform(0.0, 20.0)),
        trefoil_deg=float(rng.uniform(0.0, 120.0)),
        coma_nm=float(rng.uniform(0.0, 20.0)),
        coma_deg=float(rng.uniform(0.0, 360.0)),
        spread_nm=float(rng.uniform(0.35, 1.4)),
        blur_nm=float(rng.uniform(0.005, 0.03)),
        dose_e_per_a2=float(np.exp(rng.uniform(low, high))),
        mtf=(float(rng.uniform(0.25, 0.7) * finer), float(rng.uniform(1.5, 3.0))),
    )


def draw_contents(
    rng: np.random.Generator, material: str, *, field_nm: tuple[float, float], support: str = ""
) -> SheetParams:
    """A sheet at random: most with point defects, some with holes, an edge, a grain boundary or dirt."""
    crystal = find_crystal(material)
    pair = crystal.is_dichalcogenide
    return SheetParams(
        material,
        field_nm,
        turn_deg=float(rng.uniform(0.0, 360.0)),
        shift_nm=(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
        vacancies={
            "first": float(rng.choice([0.0, 0.02, 0.05])),
            "one": float(rng.choice([0.02, 0.1, 0.3])) if pair else 0.0,
            "both": float(rng.choice([0.0, 0.03, 0.08])),
        },
        dopant=str(rng.choice(_DOPANTS)) if pair else "",
        dopant_share=float(rng.choice([0.0, 0.0, 0.03])),
        second_dopant=str(rng.choice(_SECOND_DOPANTS)) if pair else "",
        second_share=float(rng.choice([0.0, 0.0, 0.03])),
        antisites=float(rng.choice([0.0, 0.0, 0.01])),
        adatom=str(rng.choice(_ADATOMS)),
        adatoms_per_nm2=float(rng.choice([0.0, 0.0, 0.1])),
        holes=int(rng.choice([0, 0, 1, 2])),
        hole_nm=float(rng.uniform(0.25, 0.9)),
        edge=bool(rng.random() < 0.15),
        grain_deg=float(rng.uniform(5.0, 60.0)) if rng.random() < 0.15 else None,
        support=support,
        tilt_deg=float(rng.uniform(0.0, 4.0)) if rng.random() < 0.3 else 0.0,
        tilt_axis_deg=float(rng.uniform(0.0, 180.0)),
        patches=int(rng.random() < 0.15),
    )


def draw_point_defects(rng: np.random.Generator, material: str) -> SheetParams:
    """A dichalcogenide with every kind of point defect at random sites, a few percent of each: what
    `flatscope.electron.defects` names."""
    crystal = find_crystal(material)
    host = crystal.first[0]
    dopants = [name for name in _METALS if abs(NUMBERS[name] / NUMBERS[host] - 1.0) > _OTHER_ENOUGH]
    return SheetParams(
        material,
        turn_deg=float(rng.uniform(0.0, 360.0)),
        shift_nm=(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
        vacancies={"first": 0.02, "one": 0.04, "both": 0.02},
        dopant=str(rng.choice(dopants)),
        dopant_share=0.04,
        second_dopant="O",
        second_share=0.04,
        antisites=0.02,
        holes=int(rng.random() < 0.1),
        patches=int(rng.random() < 0.1),
    )


def draw_specimen(
    rng: np.random.Generator,
    contents: SheetParams,
    optics: SeriesParams,
    *,
    shape: tuple[int, int],
    draw: Draw = draw_series,
) -> Specimen:
    """Take a focal series of a sheet.

    Parameters
    ----------
    contents
        Its `field_nm` is replaced by that of the image and a rim.
    optics
        The microscope; its dose must be given.
    shape
        Rows and columns of the images.
    draw
        `draw_series`, or another function with its arguments, such as multislice.

    Raises
    ------
    ValueError
        If the optics state no dose.
    """
    if optics.dose_e_per_a2 is None:
        raise ValueError("a series without dose cannot be counted: set SeriesParams.dose_e_per_a2")
    whole, wide, rim = _build_beyond(rng, contents, optics.pixel_nm, shape)
    spread = find_amplitudes(whole, contents.material, temperature_k=float(rng.uniform(*_TEMPERATURES_K)))
    mean = draw(whole, optics, shape=wide, spread_nm=spread)[:, rim:-rim, rim:-rim]
    electrons = optics.dose_e_per_a2 * (10.0 * optics.pixel_nm) ** 2 / len(mean)
    images = count_electrons(rng, mean, electrons_per_px=electrons, mtf=optics.mtf)
    return Specimen(images, mean, _move(whole, -rim * optics.pixel_nm), optics)


def draw_microscope(rng: np.random.Generator, *, pixel_nm: float, misaligned: float = 0.0) -> ScanParams:
    """An ADF-STEM microscope at random.

    Parameters
    ----------
    pixel_nm
        Side of a pixel.
    misaligned
        Strength of coma and trefoil: 0 is a corrector just tuned, 1 one that has drifted as far as images are still
        kept.
    """
    return ScanParams(
        pixel_nm=pixel_nm,
        voltage_kv=float(rng.choice([60.0, 80.0, 100.0, 200.0])),
        convergence_mrad=float(rng.uniform(24.0, 34.0)),
        defocus_nm=float(rng.normal(0.0, 2.0)),
        spherical_um=float(rng.normal(0.0, 2.0)),
        astigmatism_nm=float(rng.uniform(0.0, 2.0)),
        astigmatism_deg=float(rng.uniform(0.0, 180.0)),
        source_nm=float(rng.uniform(0.02, 0.05)),
        coma_nm=misaligned * _COMA_NM * float(rng.rayleigh()),
        coma_deg=float(rng.uniform(0.0, 360.0)),
        trefoil_nm=misaligned * _TREFOIL_NM * float(rng.rayleigh()),
        trefoil_deg=float(rng.uniform(0.0, 120.0)),
    )


def draw_noise(rng: np.random.Generator) -> NoiseParams:
    """Noise of a scan at random, about what real images have."""
    return NoiseParams(
        gain=1.0,
        lag=float(rng.uniform(0.0, 0.3)),
        jitter_px=float(rng.uniform(0.0, 0.4)),
        drift_px=(float(rng.normal(0.0, 3.0)), float(rng.normal(0.0, 3.0))),
        flyback_px=float(rng.uniform(0.0, 1.5)),
        flyback_cols=float(rng.uniform(5.0, 40.0)),
    )


def draw_scanned(
    rng: np.random.Generator,
    contents: SheetParams,
    optics: ScanParams,
    noise: NoiseParams,
    *,
    shape: tuple[int, int],
    electrons_per_px: float,
    axes_px: Float | None = None,
) -> Scanned:
    """Scan a sheet.

    Parameters
    ----------
    contents
        Its `field_nm` is replaced by that of the image and a rim.
    optics
        The microscope.
    noise
        Its gain is replaced by one electron.
    shape
        Rows and columns of the image.
    electrons_per_px
        Detected in a pixel, on average over the image.
    axes_px
        How the scan distorts and turns the crystal, see `flatscope.electron.sites.find_axes` of the first sublattice;
        then the contents' own direction does not count. None for pixels that are square.
    """
    whole, wide, rim = _build_beyond(rng, contents, optics.pixel_nm, shape, axes_px)
    mean = draw_adf(whole, optics, shape=wide)
    mean *= electrons_per_px / max(float(mean[rim:-rim, rim:-rim].mean()), 1e-12)
    sites_px = whole.sites_nm / optics.pixel_nm
    seen, moved = scan(rng, mean, replace(noise, gain=1.0), sites_px=sites_px)
    sheet = _move(replace(whole, sites_nm=moved * optics.pixel_nm), -rim * optics.pixel_nm)
    inner = (slice(rim, -rim), slice(rim, -rim))
    return Scanned(seen[inner], mean[inner].astype(np.float32), sheet, optics, noise)


def _build_beyond(
    rng: np.random.Generator,
    contents: SheetParams,
    pixel_nm: float,
    shape: tuple[int, int],
    axes_px: Float | None = None,
) -> tuple[Sheet, tuple[int, int], int]:
    """A sheet that goes on beyond the image, rows and columns of both, and the rim in pixels."""
    rim = int(np.ceil(RIM_NM / pixel_nm))
    wide = (shape[0] + 2 * rim, shape[1] + 2 * rim)
    field_nm = (wide[0] * pixel_nm, wide[1] * pixel_nm)
    if axes_px is None:
        return build_sheet(rng, replace(contents, field_nm=field_nm)), wide, rim
    axes = axes_px * pixel_nm / find_crystal(contents.material).lattice_nm
    # The field's box, seen from the crystal.
    high, width = np.abs(np.linalg.inv(axes)).T @ np.array(field_nm)
    sheet = build_sheet(rng, replace(contents, turn_deg=0.0, field_nm=(float(high), float(width))))
    return deform(sheet, axes, field_nm=field_nm), wide, rim


def _move(sheet: Sheet, by_nm: float) -> Sheet:
    moved = sheet.positions_nm + np.array([by_nm, by_nm, 0.0])
    return replace(sheet, positions_nm=moved, sites_nm=sheet.sites_nm + by_nm)
