"""Scenes, background, regions and layer numbers against planted truth."""

from __future__ import annotations

import doctest
import io
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from flatscope.evaluation.flakes import pair_with_truth
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.optical import flakes
from flatscope.optical.background import estimate_background, estimate_flatfield
from flatscope.optical.flakes import REGION_SETTINGS, FlakeParams, find_flakes, find_regions, name_layers
from flatscope.optical.layers import count_layers
from flatscope.optical.observations import KnownRegion, Observation
from flatscope.optical.regions import Regions, measure
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.optical.setups import LATENTS, Prior
from flatscope.optical.terraces import cut_regions, mark_steps
from flatscope.results.store import StoreError, pack


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(list(seed))


# --- scenes ---------------------------------------------------------------------------------------------------------


def test_a_scene_follows_from_its_seed() -> None:
    first, again, other = (draw_scene(rng(seed), SceneParams(shape=(200, 260))) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    np.testing.assert_array_equal(first.layers, again.layers)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("growth", ["exfoliated", "cvd"])
def test_the_picture_shows_the_contrast_that_the_truth_states(growth: str) -> None:
    """Away from edges, in a clean scene, pixels over the bare substrate give the contrast that the scene states."""
    checked = 0
    for seed in range(12):
        params = SceneParams(
            shape=(320, 320),
            material="graphene" if growth == "exfoliated" else "MoS2",
            growth=growth,
            clean=True,
        )
        scene = draw_scene(rng(7, seed), params)
        inside = ndimage.minimum_filter(scene.regions, 15) == ndimage.maximum_filter(scene.regions, 15)
        for layers in range(1, 7):
            where = inside & (scene.layers == layers)
            bright = scene.pixels[where].max(initial=0) > 200
            if where.sum() < 60 or bright:
                continue
            measured = np.median(scene.pixels[where] / 255.0 / scene.bare[where], axis=0) - 1.0
            np.testing.assert_allclose(measured, scene.contrast[layers], atol=0.03)
            checked += 1
    assert checked >= 10


def test_truth_is_of_one_piece() -> None:
    """Regions, layers and dirt agree: a region has one layer number, dirt has none."""
    scene = draw_scene(rng(4), SceneParams(shape=(400, 400), density=2.0))
    assert ((scene.regions > 0) == (scene.layers > 0)).all()
    assert not (scene.foreign & (scene.layers > 0)).any()
    for label in range(1, int(scene.regions.max()) + 1):
        assert len(np.unique(scene.layers[scene.regions == label])) == 1


# --- background -----------------------------------------------------------------------------------------------------


def _lit(shape: tuple[int, int], strength: float) -> np.ndarray:
    rows, cols = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    light = 1.0 - strength * ((rows - 0.2) ** 2 + 0.7 * (cols + 0.1) ** 2) / 2.0
    return (light[..., None] * np.array([0.5, 0.45, 0.6])).astype(np.float32)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6])
def test_uneven_light_is_followed_under_the_flakes(strength: float) -> None:
    """Planted vignetting of up to 60 % comes back to 1 %, the outermost corner to 5 %, also where a fifth of the
    picture is crystal."""
    light = _lit((480, 640), strength)
    picture = light.copy()
    picture[100:300, 150:400] *= 0.8
    picture[350:460, 500:620] *= 1.4
    picture += rng(1).normal(0.0, 0.006, picture.shape).astype(np.float32)
    background = estimate_background(picture)
    error = np.abs(background.picture((480, 640)) / light - 1.0)
    assert np.percentile(error, 99.5) < 0.01 and error.max() < 0.05
    contrast = background.contrast(picture)
    assert np.median(contrast[120:280, 170:380], axis=(0, 1)) == pytest.approx([-0.2] * 3, abs=0.006)


def test_noise_is_measured_on_the_substrate() -> None:
    picture = _lit((320, 320), 0.2) * (1.0 + rng(2).normal(0.0, 0.02, (320, 320, 3)).astype(np.float32))
    assert estimate_background(picture).noise == pytest.approx([0.02] * 3, rel=0.1)


def test_a_second_even_area_is_mentioned() -> None:
    picture = _lit((320, 480), 0.1)
    picture[:, 330:] *= 2.0
    picture = np.clip(picture, 0, 0.97) + rng(3).normal(0.0, 0.004, picture.shape).astype(np.float32)
    background = estimate_background(picture)
    assert any("second even area" in note for note in background.notes)
    assert background.colour == pytest.approx([0.49, 0.44, 0.59], rel=0.1)


def test_the_substrate_is_what_surrounds_the_crystals() -> None:
    """A smooth crystal may be larger than the substrate around it, which reaches the border."""
    picture = np.full((320, 480, 3), (0.3, 0.25, 0.35), np.float32)
    picture[30:290, 40:440] *= 1.9
    picture += rng(8).normal(0.0, 0.004, picture.shape).astype(np.float32)
    assert estimate_background(picture).colour == pytest.approx([0.3, 0.25, 0.35], rel=0.02)


def test_a_substrate_cut_in_pieces_under_uneven_light_is_one() -> None:
    """Cracks part it, its light falls off from piece to piece, and another wafer holds as much of the border."""
    rng = np.random.default_rng(2)
    light = np.linspace(1.0, 0.8, 512)[:, None, None] * np.ones((512, 512, 1), np.float32)
    picture = np.array([0.37, 0.36, 0.54], np.float32) * light
    for row in (120, 250, 380):
        picture[row : row + 10, :370] *= 0.6
    picture[:, 370:] = np.array([0.6, 0.58, 0.75]) * light[:, 370:]
    picture = (picture * (1.0 + 0.004 * rng.standard_normal(picture.shape))).astype(np.float32)
    background = estimate_background(picture)
    assert any("second even area" in note for note in background.notes)
    assert background.at(np.array([[200.0, 100.0]]), (512, 512))[0] == pytest.approx(
        0.922 * np.array([0.37, 0.36, 0.54]), rel=0.02
    )


def test_compression_that_rounds_to_grey_levels_makes_no_steps() -> None:
    """A dim picture whose blocks of 8 px are stored as whole levels: its light still passes through all of it."""
    slope = np.linspace(40.0, 52.0, 512)[None, :, None] * np.array([0.9, 1.0, 1.4])
    blocks = np.rint(slope[:, ::8] + np.zeros((64, 1, 1)))
    stored = np.repeat(np.repeat(blocks, 8, axis=0), 8, axis=1) / 255.0
    noise = 0.004 * np.random.default_rng(0).standard_normal(stored.shape)
    background = estimate_background((stored * (1.0 + noise)).astype(np.float32))
    assert background.coverage > 0.8
    middle = background.at(np.array([[255.0, 255.0]]), (512, 512))[0]
    assert middle == pytest.approx(46.0 / 255.0 * np.array([0.9, 1.0, 1.4]), rel=0.02)


def test_a_white_picture_has_no_substrate() -> None:
    with pytest.raises(MicrographError, match="saturated or black"):
        estimate_background(np.ones((64, 64, 3), np.float32))


def test_a_flat_field_comes_out_of_a_set_of_pictures() -> None:
    """Flakes in different places, one lamp: its shape comes back to 1 %."""
    light = _lit((240, 320), 0.4)
    pictures = []
    for seed in range(7):
        picture = light * rng(seed).uniform(0.8, 1.1)
        row, col = rng(seed, 1).integers(0, 160, 2)
        picture[row : row + 60, col : col + 90] *= 0.7
        pictures.append(picture + rng(seed, 2).normal(0.0, 0.005, picture.shape).astype(np.float32))
    flat = estimate_flatfield(pictures)
    np.testing.assert_allclose(flat, light / light.mean((0, 1)), rtol=0.01)
    with pytest.raises(MicrographError, match="2 pictures are too few"):
        estimate_flatfield(pictures[:2])


# --- regions --------------------------------------------------------------------------------------------------------


def _terraces() -> tuple[np.ndarray, np.ndarray]:
    """A flake of three terraces on an empty substrate, the first and last of equal thickness and not in touch."""
    layers = np.zeros((120, 200), int)
    layers[20:100, 20:80], layers[20:100, 80:120], layers[20:100, 120:180] = 1, 2, 1
    contrast = (np.array([0.0, -0.10, -0.19])[layers][..., None] * np.array([1.0, 1.0, 0.5])).astype(
        np.float32
    )
    contrast = ndimage.gaussian_filter(contrast, (0.8, 0.8, 0))
    return layers, contrast + rng(5).normal(0.0, 0.012, contrast.shape).astype(np.float32)


def test_terraces_are_cut_where_the_contrast_steps() -> None:
    layers, contrast = _terraces()
    flake = layers > 0
    steps = mark_steps(flake, contrast, noise=np.full(3, 0.012))
    labels = cut_regions(flake, steps, contrast, noise=np.full(3, 0.012))
    found = measure(labels, contrast, steps)
    assert sorted(found.area_px) == pytest.approx([3200, 4800, 4800], rel=0.06)
    assert found.contrast[np.argsort(found.centre[:, 1]), 0] == pytest.approx(
        [-0.10, -0.19, -0.10], abs=0.004
    )
    assert (labels > 0).sum() == flake.sum()


def test_an_edge_without_a_step_does_not_divide() -> None:
    """A network that sees an edge where the contrast does not change is overruled."""
    layers, contrast = _terraces()
    flake = layers > 0
    edge = np.zeros_like(flake)
    edge[:, 49:51] = True
    noise = np.full(3, 0.012)
    labels = cut_regions(flake, edge | mark_steps(flake, contrast, noise=noise), contrast, noise=noise)
    assert labels.max() == 3


@pytest.mark.parametrize("turned", [False, True])
def test_a_second_layer_out_of_focus_is_a_region_of_its_own(turned: bool) -> None:
    """A blur of four pixels leaves no step to mark; one level with a blurred rim stays one region."""
    layers = np.zeros((120, 160))
    layers[20:100, 20:140] = 1.0
    one, two = layers.copy(), layers.copy()
    two[35:85, 50:110] = 2.0
    counts = []
    for thickness in (one, two):
        smooth = ndimage.gaussian_filter(thickness, 4.0)
        contrast = (smooth[..., None] * np.array([-0.1, -0.12, -0.05])).astype(np.float32)
        contrast += rng(6).normal(0.0, 0.012, contrast.shape).astype(np.float32)
        contrast, flake = (array.swapaxes(0, 1) if turned else array for array in (contrast, smooth > 0.5))
        steps = mark_steps(flake, contrast, noise=np.full(3, 0.012))
        labels = cut_regions(flake, steps, contrast, noise=np.full(3, 0.012))
        counts.append(int(labels.max()))
    assert counts == [1, 2]
    inner = np.bincount(labels.ravel()).min()
    assert inner == pytest.approx(50 * 60, rel=0.15)


@pytest.mark.parametrize(("speck", "noise"), [(0.0, 0.012), (3.0, 0.012), (0.0, 0.03)])
def test_a_second_layer_out_of_focus_is_parted_from_the_first(speck: float, noise: float) -> None:
    """However bright a speck of dust lies on it, and in noise that its many pixels average out."""
    layers = np.zeros((160, 160))
    layers[20:140, 20:140] = 1.0
    layers[45:105, 45:105] = 2.0
    smooth = ndimage.gaussian_filter(layers, 4.0)
    contrast = (smooth[..., None] * np.array([-0.05, -0.06, -0.03])).astype(np.float32)
    contrast += rng(9).normal(0.0, noise, contrast.shape).astype(np.float32)
    contrast[70:73, 70:73] += np.float32(speck)
    labels = cut_regions(smooth > 0.5, np.zeros(layers.shape, bool), contrast, noise=np.full(3, noise))
    sizes = np.sort(np.bincount(labels.ravel())[1:])
    assert sizes[-2:] == pytest.approx([60 * 60, 120 * 120 - 60 * 60], rel=0.15)
    assert sizes[:-2].sum() < 200  # the speck itself


@pytest.mark.parametrize("blur_px", [3.0, 5.0])
def test_the_rim_of_an_enlarged_picture_is_no_terrace(blur_px: float) -> None:
    """A blurred triangle is one region, and so it is where a smaller spot of a second layer lies on it."""
    rows, cols = np.indices((200, 200))
    triangle = (
        (rows > 40) & (cols > 100 - (rows - 40) * 0.58) & (cols < 100 + (rows - 40) * 0.58) & (rows < 165)
    )
    smooth = ndimage.gaussian_filter(triangle.astype(float), blur_px)
    contrast = (smooth[..., None] * np.array([-0.15, -0.11, -0.01])).astype(np.float32)
    contrast += rng(3).normal(0.0, 0.003, contrast.shape).astype(np.float32)
    flake = smooth > 0.5
    noise = np.full(3, 0.003)
    labels = cut_regions(flake, mark_steps(flake, contrast, noise=noise), contrast, noise=noise)
    assert np.bincount(labels.ravel())[1:].max() > 0.97 * flake.sum()


def test_a_ribbon_that_edges_tear_is_one_where_noise_hides_the_difference_of_its_pieces() -> None:
    """Chroma noise of a JPEG is shared by blocks: a piece of a few pixels has no colour of its own."""
    flake = np.zeros((80, 160), bool)
    flake[35:46, 20:140] = True
    contrast = np.where(flake[..., None], np.array([-0.3, -0.3, -0.05]), 0.0).astype(np.float32)
    blocks = np.repeat(np.repeat(rng(4).normal(0.0, 0.02, (10, 20, 3)), 8, axis=0), 8, axis=1)
    contrast += blocks.astype(np.float32)
    edge = flake & ~ndimage.binary_erosion(flake, iterations=4)
    edge[:, 40::20] = edge[:, 41::20] = True
    labels = cut_regions(flake, edge, contrast, noise=np.full(3, 0.02))
    assert np.bincount(labels.ravel())[1:].max() > 0.8 * flake.sum()


def test_a_border_lies_where_the_contrast_is_half_way() -> None:
    """Whatever the network marks as the edge: here only what lies inside the second layer."""
    layers = np.zeros((120, 120))
    layers[20:100, 20:100] = 1.0
    layers[45:75, 40:80] = 2.0
    smooth = ndimage.gaussian_filter(layers, 1.5)
    contrast = (smooth[..., None] * np.array([-0.1, -0.12, -0.05])).astype(np.float32)
    contrast += rng(7).normal(0.0, 0.006, contrast.shape).astype(np.float32)
    edge = (smooth > 1.5) & (smooth < 1.95)
    labels = cut_regions(layers > 0, edge, contrast, noise=np.full(3, 0.006))
    assert sorted(np.bincount(labels.ravel())[1:]) == pytest.approx([30 * 40, 80 * 80 - 30 * 40], rel=0.03)


@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_a_blurred_rim_is_no_crystal(beside: float) -> None:
    """The rim of a thick crystal passes through the colours of thinner ones, on bare substrate and on a terrace."""
    layers = np.full((120, 120), beside)
    layers[30:90, 30:90] = 4.0
    smooth = ndimage.gaussian_filter(layers, 1.3)
    contrast = (smooth[..., None] * np.array([-0.1, -0.12, -0.05])).astype(np.float32)
    contrast += rng(8).normal(0.0, 0.006, contrast.shape).astype(np.float32)
    height = (smooth - beside) / (4.0 - beside)
    flake = (height > 0.5) | (beside > 0)
    edge = ((height > 0.75) & (height < 0.95)) | ((height > 0.05) & (height < 0.15))
    labels = cut_regions(flake, edge, contrast, noise=np.full(3, 0.006))
    assert labels.max() == (2 if beside else 1)
    assert np.bincount(labels.ravel())[labels[60, 60]] == pytest.approx(60 * 60, rel=0.03)


def test_regions_do_not_depend_on_how_the_picture_is_held() -> None:
    layers, contrast = _terraces()
    for turned in (lambda a: a[::-1], lambda a: a[:, ::-1], lambda a: a.swapaxes(0, 1)):
        areas = []
        for flake, values in ((layers > 0, contrast), (turned(layers) > 0, turned(contrast))):
            steps = mark_steps(flake, values, noise=np.full(3, 0.012))
            areas.append(
                sorted(
                    measure(cut_regions(flake, steps, values, noise=np.full(3, 0.012)), values, steps).area_px
                )
            )
        assert areas[0] == pytest.approx(areas[1], rel=0.01)


# --- layer numbers --------------------------------------------------------------------------------------------------


def _observe(contrast: np.ndarray, known: list[int] | None = None) -> Observation:
    count = len(contrast)
    return Observation(
        contrast,
        np.full((count, 3), 0.002),
        np.zeros((count, 3)),
        np.zeros((count, 3), bool),
        np.full(count, 1000.0),
        np.array(known or [0] * count, np.int64),
        np.ones(count),
    )


def test_measured_graphene_is_counted_and_its_oxide_found() -> None:
    """The development pictures' contrasts of one, two and three layers, told only 90 ± 10 nm."""
    measured = np.array([[-0.138, -0.139, -0.068], [-0.251, -0.262, -0.147], [-0.350, -0.368, -0.215]])
    posterior = count_layers(_observe(measured), Prior("graphene", 90.0), rng=rng(0))
    assert (posterior.p.argmax(1) == [0, 1, 2]).all()
    assert posterior.p.max(1).min() > 0.7
    assert abs(posterior.oxide_nm - 90.0) < 8.0


@pytest.mark.parametrize("material", ["graphene", "MoS2", "WSe2"])
def test_planted_layers_and_oxide_come_back(material: str) -> None:
    """Several terraces of one unknown set-up: the truth is among the probable, and the oxide within its error."""
    named, pulls = [], []
    for seed in range(6):
        setup = Prior(material, 95.0, 6.0, gamma=1.0).draw(rng(seed, 11), wide=False)
        truth = np.array([1, 2, 3, 5])
        contrast = setup.contrasts()[0][truth - 1] * (1.0 + rng(seed).normal(0.0, 0.02, (4, 3)))
        posterior = count_layers(_observe(contrast), Prior(material, 95.0, 6.0), rng=rng(0))
        named += (posterior.p[np.arange(4), truth - 1] > 0.1).tolist()
        pulls.append((posterior.oxide_nm - setup.oxide_nm[0]) / posterior.oxide_sigma_nm)
    assert np.mean(named) > 0.9
    assert np.abs(pulls).max() < 4.0


def test_a_known_region_settles_what_the_others_are() -> None:
    """A lone contrast that could be one layer or two under an unknown gamma: being told decides."""
    setup = Prior("graphene", 90.0, 0.0, gamma=2.2).setups(np.zeros((1, LATENTS)))
    contrast = setup.contrasts()[0][[0, 1]]
    told = count_layers(_observe(contrast, [1, 0]), Prior("graphene", 90.0), rng=rng(0))
    alone = count_layers(_observe(contrast[1:]), Prior("graphene", 90.0), rng=rng(0))
    assert told.p[0, 0] == 1.0
    assert told.p[1, 1] > 0.9 > 0.5 > alone.p[0, 1]


def test_a_colour_of_no_thickness_is_foreign() -> None:
    posterior = count_layers(
        _observe(np.array([[0.5, -0.6, 0.4], [-0.14, -0.14, -0.07]])), Prior("graphene", 90.0), rng=rng(0)
    )
    assert posterior.p_foreign[0] > 0.9 > 0.1 > posterior.p_foreign[1]


def test_saturation_says_only_at_least_so_bright() -> None:
    """A region at the camera's ceiling may be any crystal brighter than that, so it is thick and nothing is
    rejected."""
    observation = Observation(
        np.array([[0.6, 0.6, 0.6]]),
        np.full((1, 3), 0.002),
        np.zeros((1, 3)),
        np.ones((1, 3), bool),
        np.array([500.0]),
        np.zeros(1, np.int64),
        np.ones(1),
    )
    posterior = count_layers(observation, Prior("graphene", 90.0), rng=rng(0))
    assert posterior.p[0, 6] > 0.95 and posterior.p_foreign[0] < 0.1


def test_no_region_gives_the_prior_back() -> None:
    posterior = count_layers(_observe(np.zeros((0, 3))), Prior("graphene", 90.0, 10.0), rng=rng(0))
    assert posterior.p.shape == (0, 7)
    assert posterior.oxide_nm == pytest.approx(90.0, abs=2.0)
    assert posterior.oxide_sigma_nm == pytest.approx(10.0, rel=0.15)


def _ladder(*layers: int) -> np.ndarray:
    """Contrasts of graphene on 92 nm oxide through a linear camera."""
    setup = Prior("graphene", 92.0, 0.0, gamma=1.0).setups(np.zeros((1, LATENTS)))
    return setup.contrasts()[0][np.array(layers) - 1]


def test_one_soiled_region_does_not_change_what_the_others_are() -> None:
    """Residue over a fifth region, of a colour between the layers', leaves the four terraces where they were."""
    contrast = np.vstack([_ladder(1, 2, 3, 4), _ladder(2) * (0.7, 1.2, 0.4)])
    posterior = count_layers(_observe(contrast), Prior("graphene", 90.0), rng=rng(0))
    assert posterior.p[:4].argmax(1).tolist() == [0, 1, 2, 3]
    assert posterior.p[:4].max(1).min() > 0.7


def test_a_region_without_witness_is_counted_but_tells_nothing() -> None:
    contrast = np.vstack([_ladder(1, 2), [[-0.5, 0.3, -0.5]]])
    silent = replace(_observe(contrast), witness=np.array([1.0, 1.0, 0.0]))
    posterior = count_layers(silent, Prior("graphene", 90.0), rng=rng(0))
    alone = count_layers(_observe(contrast[:2]), Prior("graphene", 90.0), rng=rng(0))
    np.testing.assert_allclose(posterior.p[:2], alone.p, atol=1e-5)
    assert posterior.oxide_nm == alone.oxide_nm
    assert posterior.p_foreign[2] > 0.9


def test_uneven_regions_hardly_tell_about_the_set_up() -> None:
    """The same wrong colour, even or uneven: only the even one may move the oxide."""
    contrast = np.vstack([_ladder(1, 2, 3), _ladder(2) * (1.25, 1.0, 0.5), _ladder(3) * (1.25, 1.0, 0.5)])
    even = _observe(contrast)
    uneven = replace(even, uneven=np.array([0.0, 0.0, 0.0, 0.3, 0.3])[:, None] * np.ones(3))
    clean = count_layers(_observe(contrast[:3]), Prior("graphene", 90.0), rng=rng(0))
    moved, kept = (count_layers(seen, Prior("graphene", 90.0), rng=rng(0)) for seen in (even, uneven))
    assert abs(kept.oxide_nm - clean.oxide_nm) < abs(moved.oxide_nm - clean.oxide_nm)


# --- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("material", "oxide_nm"), [("graphene", 90.0), ("MoS2", 285.0), ("WSe2", 75.0)])
def test_the_shipped_network_finds_and_counts_on_a_drawn_picture(material: str, oxide_nm: float) -> None:
    """Nominal oxide 4 nm off: most regions of 500 px are found, and those found have the right number named."""
    there, found, right = 0, 0, 0
    for seed in range(3):
        params = SceneParams(
            shape=(600, 800),
            material=material,
            oxide_nm=oxide_nm,
            growth="exfoliated",
            gamma=1.0,
            density=0.5,
        )
        scene = draw_scene(rng(seed, 21), params)
        told = FlakeParams(material, oxide_nm=oxide_nm + 4.0, oxide_sigma_nm=5.0)
        table = find_flakes(Micrograph(scene.pixels, source="scene"), told)
        answers = pair_with_truth(table, scene, least_px=500)
        hits = [answer for answer in answers if answer.named]
        there, found = there + len(answers), found + len(hits)
        right += sum(answer.true in answer.named for answer in hits)
    assert there >= 20
    assert found >= 0.6 * there
    assert right >= 0.85 * found


def test_a_gray_picture_is_read_and_less_sure() -> None:
    """Brightness alone: the flakes are where they are in colour, fewer of their layer numbers stand alone."""
    scene = draw_scene(
        rng(0, 21),
        SceneParams(
            shape=(480, 640), material="graphene", oxide_nm=90.0, growth="exfoliated", gamma=1.0, clean=True
        ),
    )
    told = FlakeParams("graphene", oxide_nm=90.0, oxide_sigma_nm=5.0)
    brightness = scene.pixels.mean(-1).round().astype(np.uint8)
    colour, gray = (
        find_flakes(Micrograph(pixels, source="s"), told) for pixels in (scene.pixels, brightness)
    )
    covered = (colour.layer_image() > 0) & (colour.layer_image() < 255)
    assert ((gray.layer_image() > 0) & covered).sum() > 0.6 * covered.sum()
    numbered = gray.found[gray.found["layers"].str.contains(r"\d")]
    assert len(numbered) > 4 and numbered["layers_p"].notna().all()
    assert any("gray" in note for note in gray.provenance.notes)
    assert not any("gray" in note for note in colour.provenance.notes)


def test_the_example_of_find_flakes_runs() -> None:
    ran = doctest.testmod(flakes)
    assert ran.attempted and not ran.failed


# --- two halves -----------------------------------------------------------------------------------------------------


@pytest.fixture
def two_pictures(monkeypatch: pytest.MonkeyPatch) -> list[Micrograph]:
    """Pictures of MoS2, the larger one with a pixel size and worked on at half its size."""
    monkeypatch.setattr(flakes, "_WORKING_PX", 6e4)
    sizes, shapes = (None, Calibration((50.0, 50.0), "user")), ((200, 300), (401, 603))
    return [
        Micrograph(
            draw_scene(rng(seed, 31), SceneParams(shape=shape, material="MoS2", oxide_nm=285.0)).pixels,
            calibration=size,
            source=f"{seed}.png",
            notes=("drawn",),
        )
        for seed, (shape, size) in enumerate(zip(shapes, sizes, strict=True))
    ]


def test_stored_regions_give_the_table_that_find_flakes_gives(two_pictures: list[Micrograph]) -> None:
    params = FlakeParams("MoS2", oxide_nm=285.0, min_area_px=250)
    stored = [find_regions(picture, params).to_bytes() for picture in two_pictures]
    tables = name_layers([Regions.from_bytes(content) for content in stored], params)
    for picture, content, table in zip(two_pictures, stored, tables, strict=True):
        whole = find_flakes(picture, params)
        pd.testing.assert_frame_equal(table.frame, whole.frame, check_exact=True)
        assert len(table.found) and table.too_small
        assert (table.labels == whole.labels).all() and table.labels.shape == picture.shape
        assert list(table.marks) == list(whole.marks) and len(table.marks)
        assert table.preview == whole.preview != b""
        assert table.calibration == whole.calibration
        assert replace(table.provenance, timings_s={}) == replace(whole.provenance, timings_s={})
        assert len(content) < 0.2 * picture.pixels.size


def test_stored_regions_hold_no_time_and_only_what_their_settings_decide(
    two_pictures: list[Micrograph],
) -> None:
    picture = two_pictures[0]
    plain = find_regions(picture).to_bytes()
    other = FlakeParams("WSe2", 90.0, 3.0, 2.2, known=(KnownRegion(1, (0.1, 0.2, 0.3)),))
    assert find_regions(picture, other).to_bytes() == plain
    for changes in ({"light_order": 2}, {"min_area_px": 900}):
        assert set(changes) <= set(REGION_SETTINGS)
        assert find_regions(picture, replace(other, **changes)).to_bytes() != plain
    dates = {entry.date_time for entry in zipfile.ZipFile(io.BytesIO(plain)).infolist()}
    assert dates == {(1980, 1, 1, 0, 0, 0)}


@pytest.mark.parametrize("damage", ["cut", "text", "another"])
def test_damaged_regions_are_refused_in_one_line(two_pictures: list[Micrograph], damage: str) -> None:
    content = find_regions(two_pictures[0]).to_bytes()
    damaged = {"cut": content[: len(content) // 2], "text": b"image,flake_id\n", "another": pack([1, 2])}
    with pytest.raises(StoreError, match=r"is damaged|holds no regions") as caught:
        Regions.from_bytes(damaged[damage])
    assert "\n" not in str(caught.value)


def test_a_picture_of_one_value_has_no_regions() -> None:
    regions = find_regions(Micrograph(np.full((40, 50, 3), 99, np.uint8), source="even.png"))
    (table,) = name_layers([Regions.from_bytes(regions.to_bytes())])
    assert len(table) == 0 and not table.layer_image().any()
    assert table.provenance.notes == ("every pixel has the same value: nothing to find",)


def test_a_gray_camera_has_one_channel_three_times() -> None:
    contrast = Prior("MoS2", 285.0, gray=True).setups(rng(1).standard_normal((5, LATENTS))).contrasts()
    np.testing.assert_allclose(contrast - contrast[..., :1], 0.0, atol=1e-5)
