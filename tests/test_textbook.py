"""Values that textbooks, tables and another program state, against what flatscope computes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tmm
from scipy import fft

from flatscope.electron.physics.crystals import Sheet
from flatscope.electron.physics.imaging import SeriesParams, draw_series
from flatscope.electron.rates import measure_rates
from flatscope.optical.layers import count_layers
from flatscope.optical.materials import WAVELENGTHS_NM, find_material, layer_index, read_index
from flatscope.optical.observations import Observation
from flatscope.optical.setups import Prior
from flatscope.optical.thinfilm import cone_light
from flatscope.results import count_densities

GARWOOD = {0: (0.0, 3.689), 1: (0.0253, 5.572), 2: (0.242, 7.225), 5: (1.623, 11.668), 10: (4.795, 18.390)}
"""95 % limits of the mean of a Poisson count (Garwood 1936, doi:10.1093/biomet/28.3-4.437; Pearson and Hartley's
Biometrika Tables, table 40)."""


@pytest.mark.parametrize("name", ["graphene", "MoS2"])
@pytest.mark.parametrize("na", [0.55, 0.9])
def test_the_aperture_cone_averages_both_polarisations_as_tmm_does(name: str, na: float) -> None:
    """Rings of equal width in the pupil, each weighted by its area."""
    crystal = find_material(name)
    index = layer_index(crystal, 0, np.array([1.0]))[0]
    oxide, silicon = read_index("SiO2", "Malitson"), read_index("Si", "Schinke")
    films = (crystal.layer_nm, 285.0)
    ours = cone_light([np.ones(1, complex), index, oxide, silicon], [np.array(d) for d in films], na=na)
    rings = (np.arange(40) + 0.5) / 40.0
    for place in range(2, len(WAVELENGTHS_NM), 24):
        stack = [1.0, complex(index[place]), complex(oxide[place]), complex(silicon[place])]
        theirs = [
            tmm.unpolarized_RT(stack, [np.inf, *films, np.inf], np.arcsin(na * ring), WAVELENGTHS_NM[place])[
                "R"
            ]
            for ring in rings
        ]
        assert ours[place] == pytest.approx(np.average(theirs, weights=rings), abs=1e-3)


def test_before_looking_n_layers_are_n_times_rarer_than_one() -> None:
    """A contrast with an error of a thousand says nothing; the final probabilities are sharpened a little."""
    blind = Observation(
        contrast=np.zeros((1, 3)),
        sigma=np.full((1, 3), 1e3),
        uneven=np.zeros((1, 3)),
        saturated=np.zeros((1, 3), bool),
        area_px=np.full(1, 1000.0),
        known=np.zeros(1, np.int64),
        witness=np.zeros(1),
    )
    p = count_layers(blind, Prior("graphene"), rng=np.random.default_rng(0)).p[0]
    powers = np.log(p[0] / p[1:6]) / np.log(np.arange(2, 7))
    assert powers == pytest.approx(powers[0], abs=0.01)
    assert 0.99 < powers[0] < 1.2


@pytest.mark.parametrize("count", GARWOOD)
def test_densities_have_garwoods_limits(count: int) -> None:
    row = count_densities({"V_S": count}, 20.0).iloc[0]
    assert (row["low"] * 20.0, row["high"] * 20.0) == pytest.approx(GARWOOD[count], abs=6e-4)


@pytest.mark.parametrize("count", [count for count in GARWOOD if count])
def test_rates_have_garwoods_limits(count: int) -> None:
    """Of this number of events among 50 defects that another frame follows."""
    events = pd.DataFrame({"event": ["hop"] * count})
    events["track_id"] = 0
    tracks = pd.DataFrame({"frame": [0] * 25 + [1] * 25 + [2] * 25, "track_id": [*range(25)] * 3})
    row = measure_rates(events, tracks, np.arange(3), area_nm2=1.0, frame_s=None).iloc[0]
    assert (row["low"] * 50.0, row["high"] * 50.0) == pytest.approx(GARWOOD[count], abs=6e-4)


@pytest.mark.parametrize("defocus_nm", [-60.0, -20.0, 20.0, 60.0])
def test_a_source_of_finite_size_damps_waves_as_the_lens_bends_them(defocus_nm: float) -> None:
    """An atom of carbon at 80 kV with Cs = 1 mm and a source of 0.5 mrad: by exp(-2 π² α² (Cs λ² q³ - Δf q)²), where
    underfocus is positive (Frank 1973, Optik 38, 519; Williams and Carter 2009, doi:10.1007/978-0-387-76501-3)."""
    atom = Sheet(
        np.array([6]), np.array([[2.0, 2.0, 0.0]]), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, "<U1")
    )
    side, source = 200, 0.5
    params = SeriesParams(
        pixel_nm=0.02,
        voltage_kv=80.0,
        defocus_nm=(defocus_nm,),
        spherical_um=1000.0,
        spread_nm=0.0,
        blur_nm=0.0,
    )
    point, wide = (
        fft.rfft2(draw_series(atom, one, shape=(side, side))[0].astype(float))
        for one in (params, SeriesParams(**{**vars(params), "source_mrad": source}))
    )
    q = np.hypot(fft.fftfreq(side, 0.02)[:, None], fft.rfftfreq(side, 0.02)[None])
    wavelength = 4.1757e-3
    bend = 1e6 * wavelength**2 * q**3 - defocus_nm * q
    expected = point * np.exp(-2.0 * np.pi**2 * (1e-3 * source) ** 2 * bend**2)
    seen = (q > 0.0) & (q < 6.0)
    off = np.linalg.norm((wide - expected)[seen]) / np.linalg.norm((wide - point)[seen])
    assert off < 0.005
