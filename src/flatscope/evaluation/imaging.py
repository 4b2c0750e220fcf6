"""The fast image models against multislice and PRISM (extra: multislice): how far off, and how much faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import ndimage

from flatscope.electron.crystals import Sheet, SheetParams, build_sheet, find_crystal
from flatscope.electron.imaging import ScanParams, SeriesParams, draw_adf, draw_series
from flatscope.electron.multislice import simulate_adf, simulate_series
from flatscope.electron.vibrations import find_amplitudes

Made = TypeVar("Made")
_SEED, _PHONONS = 3, 20
_SERIES_CELLS, _SERIES_PX = (9, 16), 400
_SCAN_CELLS, _SCAN_PX = (2, 4), 28


@dataclass(frozen=True)
class Agreement:
    """One model against the exact one.

    `rms` is the largest rms difference of an image in units of its standard deviation. `sites` compares the brightness
    of columns of each kind (fast over exact). `ratio` is how many times as fast the fast model is.
    """

    model: str
    sheet: str
    rms: float
    sites: dict[str, float]
    ratio: float
    seconds: float


def compare_series(support: str = "", *, phonons: int = _PHONONS) -> Agreement:
    """HRTEM: the fast model against multislice with frozen phonons, MoS2 with vacancies, the published microscope."""
    sheet, pixel_nm = _build(_SERIES_CELLS, _SERIES_PX, {"one": 0.08, "both": 0.02, "first": 0.02}, support)
    optics = SeriesParams(pixel_nm=pixel_nm, astigmatism_nm=3.4, coma_nm=10.0, trefoil_nm=10.0, spread_nm=0.8)
    shape = (round(_SERIES_PX * _SERIES_CELLS[0] * 3**0.5 / _SERIES_CELLS[1]), _SERIES_PX)
    spread = find_amplitudes(sheet, "MoS2")
    fast, seconds = _clock(lambda: draw_series(sheet, optics, shape=shape, spread_nm=spread))
    exact, slow = _clock(
        lambda: simulate_series(
            sheet, optics, shape=shape, spread_nm=spread, phonons=phonons, rng=np.random.default_rng(_SEED)
        ),
        runs=1,
    )
    rms = max(float((a - b).std() / b.std()) for a, b in zip(fast, exact, strict=True))
    name = f"MoS2 on {support}" if support else "MoS2"
    return Agreement(f"HRTEM, {phonons} phonons", name, rms, {}, slow / seconds, seconds)


def compare_adf(material: str = "MoS2") -> Agreement:
    """ADF-STEM: the fast model against PRISM, atoms at rest, 60 kV, 30 mrad, detector from 70 to 180 mrad."""
    vacancies = {"one": 0.25, "both": 0.0, "first": 0.0}
    sheet, pixel_nm = _build(_SCAN_CELLS, _SCAN_PX, vacancies, "", material)
    optics = ScanParams(pixel_nm=pixel_nm, source_nm=0.0, thermal_nm=0.0, collection_mrad=(70.0, 180.0))
    shape = (round(_SCAN_PX * _SCAN_CELLS[0] * 3**0.5 / _SCAN_CELLS[1]), _SCAN_PX)
    fast, seconds = _clock(lambda: draw_adf(sheet, optics, shape=shape))
    exact, slow = _clock(
        lambda: simulate_adf(
            sheet, optics, shape=shape, phonons=0, rng=np.random.default_rng(_SEED), sampling_nm=0.004
        ),
        runs=1,
    )
    places = (sheet.sites_nm / pixel_nm).T
    a, b = (ndimage.map_coordinates(image, places, order=3, mode="grid-wrap") for image in (fast, exact))
    sites = {
        str(name): float(a[sheet.species == name].mean() / b[sheet.species == name].mean())
        for name in np.unique(sheet.species)
        if name
    }
    rms = float((fast - exact).std() / exact.std())
    return Agreement("ADF-STEM", material, rms, sites, slow / seconds, seconds)


def _build(
    cells: tuple[int, int], pixels: int, vacancies: dict[str, float], support: str, material: str = "MoS2"
) -> tuple[Sheet, float]:
    """A sheet that goes on where it ends, and the pixel size with which a whole number of pixels covers it."""
    constant = find_crystal(material).lattice_nm
    field = (cells[0] * constant * 3**0.5, cells[1] * constant)
    params = SheetParams(material, field, shift_nm=(1e-3, 1e-3), vacancies=vacancies, support=support)
    return build_sheet(np.random.default_rng(_SEED), params), field[1] / pixels


def _clock(once: Callable[[], Made], *, runs: int = 5) -> tuple[Made, float]:
    """What comes out, and the median time after a first run."""
    made, seconds = once(), []
    for _ in range(runs):
        begun = time.perf_counter()
        made = once()
        seconds.append(time.perf_counter() - begun)
    return made, float(np.median(seconds))
