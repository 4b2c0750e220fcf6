"""The optics: against an independent program, against measurement, against physics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tmm

from flatscope.optical import materials
from flatscope.optical.camera import GREY, LUMINANCE, Camera
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.materials import MATERIALS, WAVELENGTHS_NM, find_material, layer_index, read_index
from flatscope.optical.setups import APERTURES, LATENTS, PLAIN_LATENTS, Prior, add_flare
from flatscope.optical.thinfilm import (
    LAYER_GRID,
    channel_weights,
    cone_light,
    contrast,
    reflectance,
    spectral_table,
)

ONE = np.ones(1)
# Graphene on about 90 nm oxide, red, green, blue; measured on the development pictures.
MEASURED = np.array([[-0.138, -0.139, -0.068], [-0.251, -0.262, -0.147], [-0.350, -0.368, -0.215]])


@pytest.mark.parametrize("polarisation", ["s", "p"])
@pytest.mark.parametrize("angle_deg", [0.0, 27.0, 64.0])
@pytest.mark.parametrize("name", sorted(MATERIALS))
def test_reflectance_agrees_with_the_tmm_package(name: str, angle_deg: float, polarisation: str) -> None:
    """A stack of flake, oxide and silicon, at every fifth wavelength, to 1e-10."""
    crystal = MATERIALS[name]
    index = layer_index(crystal, 0, np.array([3.0]))[0]
    films = (3 * crystal.layer_nm, 93.0)
    stack = [np.ones(1, complex), index, read_index("SiO2", "Malitson"), read_index("Si", "Schinke")]
    sin2 = np.sin(np.deg2rad(angle_deg)) ** 2
    ours = reflectance(stack, [np.array(d) for d in films], WAVELENGTHS_NM, sin2, polarisation=polarisation)
    for place in range(0, len(WAVELENGTHS_NM), 5):
        theirs = tmm.coh_tmm(
            polarisation,
            [1.0, *(complex(part[place]) for part in stack[1:])],
            [np.inf, *films, np.inf],
            np.deg2rad(angle_deg),
            WAVELENGTHS_NM[place],
        )["R"]
        assert ours[place] == pytest.approx(theirs, abs=1e-10)


def test_graphene_contrast_meets_measurement_with_only_the_oxide_fitted() -> None:
    """Mean error at most 0.015 over one to three layers and three channels; the oxide within 5 nm of 90."""
    oxide = np.arange(60.0, 130.0, 0.5)
    weights = np.repeat(channel_weights(5500.0 * ONE, np.zeros((1, 3)), ONE, 0.0 * ONE), len(oxide), axis=0)
    bare, flakes = spectral_table("graphene", 0, na=0.35, oxide_range_nm=(60.0, 130.0)).at(oxide)
    error = np.abs(contrast(bare, flakes, weights)[:, :3] - MEASURED).mean((1, 2))
    best = int(error.argmin())
    assert error[best] <= 0.015
    assert abs(oxide[best] - 90.0) <= 5.0


def test_a_wide_aperture_changes_the_contrast_of_monolayer_mos2() -> None:
    """On 285 nm oxide the green contrast of MoS2 grows manyfold from NA 0 to 0.75."""
    weights = channel_weights(5500.0 * ONE, np.zeros((1, 3)), ONE, 0.0 * ONE)
    green = [
        contrast(
            *spectral_table("MoS2", 0, na=na, oxide_range_nm=(280.0, 300.0)).at(np.array([285.0])), weights
        )[0, 0, 1]
        for na in (0.0, 0.75)
    ]
    assert green[1] < green[0] - 0.1


def test_an_infinitely_thick_film_hides_the_substrate() -> None:
    silicon = read_index("Si", "Schinke")
    graphite = read_index("graphene", "Djurisic-o")
    air = np.ones(1, complex)
    thick = cone_light([air, graphite, silicon], [np.array(5000.0)], na=0.5)
    bulk = cone_light([air, graphite], [], na=0.5)
    np.testing.assert_allclose(thick, bulk, rtol=1e-9)


@pytest.mark.parametrize("na", [0.0, 0.35, 0.4, 0.55, 0.6, 0.85, 0.9])
def test_few_angles_are_enough_for_the_aperture_cone(na: float) -> None:
    index = layer_index(find_material("MoS2"), 0, np.array([1.0]))[0]
    stack = [np.ones(1, complex), index, read_index("SiO2", "Malitson"), read_index("Si", "Schinke")]
    films = [np.array(0.615), np.array(285.0)]
    few, many = (cone_light(stack, films, na=na, nodes=nodes) for nodes in (None, 24))
    np.testing.assert_allclose(few, many, atol=1e-3)


def test_oxide_interpolation_is_finer_than_the_camera() -> None:
    """Spectra from the 2 nm grid, half-way between two nodes, against the exact ones."""
    coarse = spectral_table("WSe2", 0, na=0.55, oxide_range_nm=(80.0, 100.0)).at(np.array([91.0]))
    exact = spectral_table("WSe2", 0, na=0.55, oxide_range_nm=(91.0, 93.0), step_nm=0.5).at(np.array([91.0]))
    weights = channel_weights(4000.0 * ONE, np.zeros((1, 3)), ONE, 0.1 * ONE)
    np.testing.assert_allclose(contrast(*coarse, weights), contrast(*exact, weights), rtol=2e-3, atol=1e-3)


def test_a_table_does_not_depend_on_the_range_asked_for() -> None:
    wide = spectral_table("MoSe2", 1, na=0.35, oxide_range_nm=(60.0, 320.0)).at(np.array([99.3]))
    narrow = spectral_table("MoSe2", 1, na=0.35, oxide_range_nm=(98.0, 99.5)).at(np.array([99.3]))
    for one, other in zip(wide, narrow, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", sorted(MATERIALS))
def test_contrasts_are_physical_for_every_set_up(name: str) -> None:
    """No layer is darker than black, and equal light with more gamma gives less contrast."""
    latent = np.random.default_rng(3).standard_normal((200, LATENTS))
    setups = Prior(name).setups(latent)
    values = setups.contrasts()
    assert values.shape == (200, len(LAYER_GRID), 3)
    assert np.isfinite(values).all() and values.min() >= -1.0
    latent[:, PLAIN_LATENTS:] = 0.0
    flat, steep = (Prior(name, gamma=gamma).setups(latent).contrasts() for gamma in (1.0, 2.2))
    assert (np.abs(steep) <= np.abs(flat) + 1e-12).all()


def test_every_index_file_names_its_paper() -> None:
    sources = {
        (crystal.name, source)
        for crystal in MATERIALS.values()
        for pair in crystal.variants
        for source in pair
    }
    sources |= {("SiO2", "Malitson"), ("Si", "Schinke")}
    folder = materials.__path__[0]
    for material, source in sources:
        with open(f"{folder}/{material}.{source}.csv", encoding="utf-8") as lines:
            assert "doi:10." in lines.readline(), (material, source)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Prior("unobtainium"), "unknown material 'unobtainium': flatscope knows graphene, hBN"),
        (lambda: Prior("black phosphorus"), "no free table of n and k of phosphorene covers the visible"),
        (lambda: Prior("MoS2", oxide_nm=1900.0), "oxide of 1900 nm lies outside"),
        (lambda: Prior("MoS2", gamma=9.0), "gamma of 9 lies outside"),
        (lambda: Prior("MoS2", oxide_sigma_nm=np.inf), "oxide_sigma_nm of inf is no error: give 0 or more"),
        (lambda: Prior("MoS2", oxide_sigma_nm=np.nan), "oxide_sigma_nm of nan is no error: give 0 or more"),
        (lambda: Prior("MoS2", oxide_nm=np.nan), "oxide of nan nm lies outside"),
        (lambda: FlakeParams(min_area_um2=np.inf), "min_area_um2 of inf is no area"),
        (lambda: FlakeParams(light_order=9), "light_order of 9 lies outside 0 to 8"),
        (lambda: cone_light([ONE, ONE], [], na=1.2), "numerical aperture 1.2"),
        (lambda: reflectance([ONE, ONE], [ONE], ONE, 0.0, polarisation="s"), "2 indices need 0 thicknesses"),
        (lambda: reflectance([ONE, ONE], [], ONE, 0.0, polarisation="x"), "polarisation 'x'"),
    ],
)
def test_errors_say_what_is_wrong(call: object, words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        call()  # type: ignore[operator]


def test_every_set_up_sees_through_its_own_objective_oxide_and_index() -> None:
    """Contrasts of one layer, against 24 angles of each set-up's own cone."""
    latent = np.random.default_rng(5).standard_normal((40, LATENTS))
    setups = Prior("WSe2").setups(latent)
    assert set(setups.aperture) == set(range(len(APERTURES)))
    assert set(setups.variant) == set(range(len(MATERIALS["WSe2"].variants)))
    weights, contrasts = setups.weights(), setups.contrasts()
    oxide, silicon = read_index("SiO2", "Malitson"), read_index("Si", "Schinke")
    for row in range(len(setups)):
        index = layer_index(find_material("WSe2"), int(setups.variant[row]), np.array([1.0]))[0]
        films = [np.array(find_material("WSe2").layer_nm), np.array(setups.oxide_nm[row])]
        na = APERTURES[setups.aperture[row]]
        bare = cone_light([np.ones(1, complex), oxide, silicon], films[1:], na=na, nodes=24)
        flake = cone_light([np.ones(1, complex), index, oxide, silicon], films, na=na, nodes=24)
        linear = contrast(bare[None], flake[None, None], weights[row : row + 1])
        ratio = add_flare(1.0 + linear * (1.0 + setups.error[row]), setups.flare[row : row + 1])
        stored = setups.camera.take(np.array([row])).contrasts(ratio, GREY)
        np.testing.assert_allclose(contrasts[row, 0], stored[0, 0], atol=3e-3)


# --- cameras --------------------------------------------------------------------------------------------------------


def _drawn_cameras(count: int) -> Camera:
    return Prior("graphene").draw(np.random.default_rng(8), count).camera


def test_a_camera_stores_what_it_exposes() -> None:
    cameras = _drawn_cameras(200)
    stored = np.linspace(0.1, 0.98, 25)[None, :, None] * np.ones((200, 1, 3))
    np.testing.assert_allclose(cameras.store(cameras.expose(stored)), stored, atol=1e-9)


def test_colours_keep_their_luminance_and_grey_stays_grey() -> None:
    """However vivid, whatever the matrix; and twice the saturation doubles the distance from grey."""
    cameras = replace(_drawn_cameras(50), unmixing=np.zeros((50, 2)))
    colour = np.array([0.5, 0.3, 0.2])
    made = cameras.matrix() @ colour
    np.testing.assert_allclose(made @ LUMINANCE, colour @ LUMINANCE, rtol=1e-12)
    np.testing.assert_allclose(_drawn_cameras(50).matrix().sum(-1), 1.0, rtol=1e-12)
    twice = replace(cameras, saturation=2.0 * cameras.saturation).matrix() @ colour
    np.testing.assert_allclose(twice - colour @ LUMINANCE, 2.0 * (made - colour @ LUMINANCE), rtol=1e-9)


def test_white_balance_drops_out() -> None:
    """A vivid camera, balanced two ways: the contrast that follows from the substrate's stored colour is the one that
    the pixels show."""
    camera = replace(
        Camera.plain(np.array([1.8])), saturation=np.array([1.6]), unmixing=np.array([[0.3, 0.2]])
    )
    ratio = np.array([[[0.86, 0.87, 0.93], [0.75, 0.74, 0.86]]])
    shown = []
    for balance in ([0.4, 0.3, 0.22], [0.25, 0.3, 0.28]):
        light = np.concatenate([np.ones((1, 1, 3)), ratio], axis=1) * balance
        stored = camera.picture(light[0][None].astype(np.float32))[0].astype(float)
        shown.append(camera.contrasts(ratio, stored[0])[0])
        np.testing.assert_allclose(shown[-1], stored[1:] / stored[0] - 1.0, atol=1e-5)
        np.testing.assert_allclose(camera.ratios(shown[-1][None], stored[0]), ratio, rtol=1e-5)
    assert np.abs(shown[0] - shown[1]).max() > 0.01
