"""Light, dead channels, bands and field stops of other people's pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from flatscope.micrograph import Micrograph
from flatscope.optical.background import estimate_background, mend_channels
from flatscope.optical.flakes import FlakeParams, find_regions
from flatscope.optical.plateaus import find_plateaus
from flatscope.optical.scenes import SceneParams, draw_scene

SHAPE = (384, 512)
COLOUR = np.array([0.5, 0.42, 0.6])


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw_flake(contrast: float, *, corner: tuple[int, int], light: Any = 1.0, noise: float = 0.006) -> Any:
    """An even substrate in some light with a rectangular flake from a corner of the picture to (row, column)."""
    picture = np.ones((*SHAPE, 3)) * COLOUR
    picture[: corner[0], : corner[1]] *= 1.0 + contrast
    picture *= light * (1.0 + rng(1).normal(0.0, noise, (*SHAPE, 3)))
    return np.clip(picture, 0.0, 1.0).astype(np.float32)


def vignette(depth: float) -> Any:
    rows, cols = np.meshgrid(np.linspace(-1, 1, SHAPE[0]), np.linspace(-1, 1, SHAPE[1]), indexing="ij")
    return 1.0 - depth * (rows**2 + cols**2)[..., None] / 2.0


@pytest.mark.parametrize("contrast", [-0.05, 0.04, 0.3])
def test_light_does_not_bend_through_a_flake_that_fills_a_third_of_the_picture(contrast: float) -> None:
    light = vignette(0.3)
    found = estimate_background(draw_flake(contrast, corner=(256, 256), light=light))
    error = found.picture(SHAPE) / (COLOUR * light) - 1.0
    assert np.abs(error).max() < 0.02
    assert np.abs(np.median(error, axis=(0, 1))).max() < 0.003


def test_a_rough_dark_substrate_is_not_taken_for_a_crystal_though_the_bright_flake_is_smooth() -> None:
    picture = draw_flake(3.0, corner=(100, 150), light=0.3)
    picture[100:] *= (1.0 + np.repeat(np.repeat(rng(3).normal(0.0, 0.05, (71, 128)), 4, 0), 4, 1))[..., None]
    assert estimate_background(picture).colour == pytest.approx(0.3 * COLOUR, rel=0.05)


def test_bands_along_the_rows_are_evened_out_and_said() -> None:
    bands = 1.0 + 0.015 * np.sin(np.arange(SHAPE[0]) * 2 * np.pi / 31)[:, None, None]
    picture = draw_flake(-0.08, corner=(120, 200), light=bands)
    found = estimate_background(picture)
    rows = found.contrast(picture)[:, 220:].mean(axis=1)
    assert rows.std() < 0.002
    assert any("bands" in note for note in found.notes)
    assert estimate_background(draw_flake(-0.08, corner=(120, 200))).bands is None


def test_what_lies_behind_a_field_stop_is_left_out_and_a_dark_crystal_at_the_border_is_not() -> None:
    cols = np.arange(SHAPE[1])[None, :, None]
    stop = 0.1 + 0.9 / (1.0 + np.exp((cols - 440) / 12.0))
    picture = draw_flake(-0.4, corner=(90, 90), light=stop)
    found = estimate_background(picture)
    contrast = found.contrast(picture)
    assert (contrast[:, 480:] == 0.0).all()
    assert contrast[20:70, 20:70].mean() == pytest.approx(-0.4, abs=0.02)
    assert any("falls off" in note for note in found.notes)


def test_a_field_stop_is_left_out_though_one_channel_falls_more_than_the_others() -> None:
    """A black level of the camera takes more from the channel that is dimmest."""
    cols = np.arange(SHAPE[1])[None, :, None]
    stop = 0.3 + 0.7 / (1.0 + np.exp((cols - 440) / 12.0)) ** np.array([0.75, 0.8, 1.3])
    found = estimate_background(draw_flake(-0.1, corner=(90, 90), light=stop))
    assert found.unlit is not None
    assert found.unlit[:, -3:].all()
    assert not found.unlit[:, :40].any()


def test_a_plateau_is_found_to_its_border_and_a_shade_is_none() -> None:
    """Without a network: a faint even area with a step around it, beside a spot of dust far out of focus."""
    rows, cols = np.indices(SHAPE)
    area = (rows > 60) & (rows < 260) & (cols > 60) & (cols < 240)
    dust = np.exp(-((rows - 200) ** 2 + (cols - 400) ** 2) / (2 * 30.0**2))
    contrast = np.repeat(
        (-0.03 * ndimage.gaussian_filter(area.astype(float), 1.5) - 0.06 * dust)[..., None], 3, -1
    )
    contrast = (contrast + rng(2).normal(0.0, 0.01, contrast.shape)).astype(np.float32)
    found = find_plateaus(contrast, np.zeros(SHAPE, bool), least_px=250.0)
    assert (found & area).sum() > 0.97 * area.sum()
    assert (found & ~area).sum() < 0.03 * area.sum()
    assert not find_plateaus(contrast, area, least_px=250.0)[area].any()


@pytest.mark.parametrize("kind", ["dead", "burnt out", "noise"])
def test_a_channel_that_says_nothing_is_left_out_and_the_others_count(kind: str) -> None:
    picture = draw_flake(-0.1, corner=(200, 200))
    blue = {"dead": 0.008, "burnt out": 1.0, "noise": rng(4).uniform(0.0, 0.4, SHAPE)}[kind]
    picture[..., 2] = blue
    mended, usable = mend_channels(picture)
    assert usable.tolist() == [True, True, False]
    assert mended[..., 2] == pytest.approx(picture[..., :2].mean(-1))
    regions = find_regions(Micrograph((picture * 255).astype(np.uint8), source="blue.png"), FlakeParams())
    assert any("the blue channel says nothing" in note for note in regions.notes)
    assert regions.noise[2] > 1.0 > regions.noise[:2].max()


def test_noise_and_a_rough_substrate_give_no_regions() -> None:
    flat = draw_flake(0.0, corner=(0, 0), noise=0.06)
    rough = draw_flake(0.0, corner=(0, 0))
    rough *= (1.0 + np.repeat(np.repeat(rng(5).normal(0.0, 0.03, (48, 64)), 8, 0), 8, 1))[..., None]
    for picture in (flat, rough):
        regions = find_regions(Micrograph((np.clip(picture, 0, 1) * 255).astype(np.uint8)), FlakeParams())
        assert regions.large_enough.sum() <= 1


def test_scenes_of_any_laboratory_are_repeatable_and_hold_what_they_say() -> None:
    params = SceneParams(shape=(128, 128), anyone=True)
    scenes = [draw_scene(rng(seed, 9), params) for seed in range(24)]
    assert (scenes[3].pixels == draw_scene(rng(3, 9), params).pixels).all()
    colours = np.array([np.median(scene.pixels, axis=(0, 1)) for scene in scenes])
    assert (colours.min(1) < 8).any(), "no dead channel"
    assert max((scene.regions > 0).mean() for scene in scenes) > 0.5, "no close-up"
    assert any(scene.behind.any() for scene in scenes), "no field stop"
    assert any("banding" in scene.parameters for scene in scenes)
