"""The fast image models against multislice and PRISM (extra: multislice): how far off, and how much faster."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
from scipy import ndimage

from flatscope.electron.physics.crystals import Sheet, SheetParams, build_sheet, find_crystal
from flatscope.electron.physics.imaging import ScanParams, SeriesParams, draw_adf, draw_series
from flatscope.electron.physics.multislice import simulate_adf, simulate_series
from flatscope.electron.physics.vibrations import find_amplitudes
from flatscope.evaluation.metrics import Score

Made = TypeVar("Made")
_HRTEM = "HRTEM"
_ADF = "ADF-STEM"
_UNITS = {_HRTEM: "kV", _ADF: "mrad"}  # of the setting at which a model is tried
_SEED = 3  # of sheets and vibrations
_PHONONS = 20  # configurations of vibrating atoms in multislice
_SERIES_CELLS = (9, 16)  # rectangular cells of a sheet in HRTEM, down and across
_SERIES_PX = 400  # its width
_SCAN_CELLS = (2, 4)  # the same for ADF-STEM, where the exact model takes minutes
_SCAN_PX = 28
_VOLTAGES_KV = (20.0, 30.0, 50.0, 80.0, 120.0, 200.0)  # tried in `measure_limits`
_INNER_MRAD = (40.0, 55.0, 70.0, 90.0, 120.0)  # the same: inner angles of the detector


@dataclass(frozen=True)
class Agreement(Score):
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

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "model": self.model,
            "sheet": self.sheet,
            "rms / std": f"{self.rms:.3f}",
            "times as fast": f"{self.ratio:.0f}",
            "ms": f"{1e3 * self.seconds:.1f}",
            "columns, fast / exact": ", ".join(f"{name} {value:.3f}" for name, value in self.sites.items()),
        }


def compare_models(*, on_progress: Callable[[int, int], None] | None = None) -> list[Agreement]:
    """Compare both fast models with the exact ones on their usual sheets: bare, on graphene, and of two materials."""
    runs: list[Callable[[], Agreement]] = [partial(compare_series, support) for support in ("", "graphene")]
    runs += [partial(compare_adf, material) for material in ("MoS2", "WSe2")]
    found = []
    for done, compare in enumerate(runs, start=1):
        found.append(compare())
        if on_progress is not None:
            on_progress(done, len(runs))
    return found


def compare_series(
    support: str = "",
    *,
    material: str = "MoS2",
    layers: int = 1,
    voltage_kv: float = 50.0,
    phonons: int = _PHONONS,
) -> Agreement:
    """HRTEM: the fast model against multislice, a sheet with vacancies, the published microscope.

    Parameters
    ----------
    layers
        1, or 2 one above the other.
    phonons
        Configurations of vibrating atoms in multislice; 0 holds them at rest in both models.
    """
    vacancies = {"one": 0.08, "both": 0.02, "first": 0.02}
    contents = SheetParams(
        material, vacancies=vacancies, support=support, twist_deg=0.0 if layers == 2 else None
    )
    sheet, pixel_nm = _build(_SERIES_CELLS, _SERIES_PX, contents)
    optics = SeriesParams(
        pixel_nm=pixel_nm,
        voltage_kv=voltage_kv,
        astigmatism_nm=3.4,
        coma_nm=10.0,
        trefoil_nm=10.0,
        spread_nm=0.8,
    )
    shape = (round(_SERIES_PX * _SERIES_CELLS[0] * 3**0.5 / _SERIES_CELLS[1]), _SERIES_PX)
    spread = find_amplitudes(sheet, material) if phonons else None
    fast, seconds = _clock(lambda: draw_series(sheet, optics, shape=shape, spread_nm=spread))
    exact, slow = _clock(
        lambda: simulate_series(
            sheet, optics, shape=shape, spread_nm=spread, phonons=phonons, rng=np.random.default_rng(_SEED)
        ),
        runs=1,
    )
    rms = max(float((a - b).std() / b.std()) for a, b in zip(fast, exact, strict=True))
    name = ("two layers of " if layers == 2 else "") + material + (f" on {support}" if support else "")
    return Agreement(f"{_HRTEM}, {phonons} phonons", name, rms, {}, slow / seconds, seconds)


def compare_adf(material: str = "MoS2", *, inner_mrad: float = 70.0) -> Agreement:
    """ADF-STEM: the fast model against PRISM, atoms at rest, 60 kV, 30 mrad, detector up to 180 mrad."""
    sheet, pixel_nm = _build(_SCAN_CELLS, _SCAN_PX, SheetParams(material, vacancies={"one": 0.25}))
    optics = ScanParams(pixel_nm=pixel_nm, source_nm=0.0, thermal_nm=0.0, collection_mrad=(inner_mrad, 180.0))
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
    return Agreement(_ADF, material, rms, sites, slow / seconds, seconds)


@dataclass(frozen=True)
class Limit(Score):
    """How far a fast model is off under one setting: `rms` as in `Agreement`, `at` in kV (HRTEM) or mrad (ADF-STEM)."""

    model: str
    sheet: str
    at: float
    rms: float

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "model": self.model,
            "sheet": self.sheet,
            "at": f"{self.at:g} {_UNITS[self.model]}",
            "rms / std": f"{self.rms:.3f}",
        }


def measure_limits(*, on_progress: Callable[[int, int], None] | None = None) -> list[Limit]:
    """Where the fast models fail, atoms at rest: HRTEM against voltage, ADF-STEM against the detector's inner angle."""
    sheets = (("MoS2", 1), ("WSe2", 1), ("MoS2", 2))
    series = [(material, layers, at) for material, layers in sheets for at in _VOLTAGES_KV]
    scans = [(material, at) for material in ("MoS2", "WSe2") for at in _INNER_MRAD]
    limits: list[Limit] = []

    def add(limit: Limit) -> None:
        limits.append(limit)
        if on_progress is not None:
            on_progress(len(limits), len(series) + len(scans))

    for material, layers, at in series:
        one = compare_series(material=material, layers=layers, voltage_kv=at, phonons=0)
        add(Limit(_HRTEM, one.sheet, at, one.rms))
    for material, at in scans:
        one = compare_adf(material, inner_mrad=at)
        add(Limit(_ADF, one.sheet, at, one.rms))
    return limits


def _build(cells: tuple[int, int], pixels: int, contents: SheetParams) -> tuple[Sheet, float]:
    """A sheet that goes on where it ends, and the pixel size with which a whole number of pixels covers it."""
    constant = find_crystal(contents.material).lattice_nm
    field = (cells[0] * constant * 3**0.5, cells[1] * constant)
    params = replace(contents, field_nm=field, shift_nm=(1e-3, 1e-3))
    return build_sheet(np.random.default_rng(_SEED), params), field[1] / pixels


def _clock(once: Callable[[], Made], *, runs: int = 5) -> tuple[Made, float]:
    """What comes out, and the median time after a first run."""
    made, seconds = once(), []
    for _ in range(runs):
        begun = time.perf_counter()
        made = once()
        seconds.append(time.perf_counter() - begun)
    return made, float(np.median(seconds))
