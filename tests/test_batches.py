"""Pictures of one set-up: levels, batches, and what is said against a stated set-up."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from flatscope.optical.batches import Sighting, fit_batches, from_plain, group_pictures, to_plain
from flatscope.optical.camera import Camera
from flatscope.optical.layers import name_regions
from flatscope.optical.levels import find_levels
from flatscope.optical.observations import Observation, observe_known
from flatscope.optical.rungs import FEW, share_rungs
from flatscope.optical.setups import LATENTS, Prior

COLOUR = np.array([0.62, 0.55, 0.48])
NOBODY = observe_known(())


def observe(contrast: np.ndarray, bare_colour: np.ndarray = COLOUR, area_px: float = 1000.0) -> Observation:
    count = len(contrast)
    return Observation(
        contrast,
        np.full((count, 3), 0.002),
        np.zeros((count, 3)),
        np.zeros((count, 3), bool),
        np.full(count, area_px),
        np.zeros(count, np.int64),
        np.ones(count),
        bare_colour,
    )


def ladder(material: str, oxide_nm: float, saturation: float = 1.0, gamma: float = 1.0) -> np.ndarray:
    """Contrasts of one to six layers through a camera of this saturation and gamma."""
    setups = Prior(material, oxide_nm, 0.0).setups(np.zeros((1, LATENTS)))
    camera = replace(Camera.plain(np.array([gamma])), saturation=np.array([saturation]))
    return replace(setups, camera=camera).contrasts(COLOUR)[0][:6]


def picture(rungs: np.ndarray, layers: list[int], seed: int) -> Sighting:
    """A picture with one region of each of these layer numbers, a little off as real ones are."""
    rng = np.random.default_rng(seed)
    true = rungs[np.array(layers) - 1]
    scatter = rng.normal(0.0, 0.004, true.shape) + true * rng.normal(0.0, 0.015, true.shape)
    return Sighting(observe(true + scatter, COLOUR * rng.normal(1.0, 0.005, 3)), (1200, 1920, None, False))


def count(sighting: Sighting, fit: object) -> list[int]:
    return (name_regions(sighting.observation, fit).p.argmax(1) + 1).tolist()  # type: ignore[arg-type]


def test_levels_are_what_comes_back_and_blends_are_left_out() -> None:
    """Three thicknesses in many regions, and a few rims half way between two of them."""
    rungs = ladder("graphene", 90.0)
    rng = np.random.default_rng(0)
    numbers = np.repeat([0, 1, 3], 12)
    many = rungs[numbers] + rng.normal(0.0, 0.003, (36, 3))
    rims = 0.5 * (rungs[[1, 1]] + rungs[[3, 3]]) + rng.normal(0.0, 0.003, (2, 3))
    levels = find_levels([observe(np.vstack([many, rims]))])
    np.testing.assert_allclose(levels.contrast, rungs[[0, 1, 3]], atol=0.006)
    assert levels.number(many).tolist() == (np.searchsorted([0, 1, 3], numbers) + 1).tolist()
    assert levels.number(np.array([[0.5, -0.5, 0.5]])).tolist() == [0]


def test_a_channel_that_says_nothing_changes_no_level() -> None:
    rungs = ladder("graphene", 90.0)[[0, 1]]
    silent = np.array([False, False, True])
    seen = observe(np.where(silent, 0.0, rungs))
    seen = replace(seen, sigma=np.where(silent, 10.0, seen.sigma))
    assert len(find_levels([seen])) == 2
    fits = fit_batches([Sighting(seen, (9, 9, None, False))], NOBODY, Prior("graphene", 90.0))
    assert count(Sighting(seen, ()), fits[0]) == [1, 2]


def test_what_one_picture_cannot_tell_the_others_do() -> None:
    """A vivid camera: a picture with a lone bilayer, then the same among pictures with other terraces."""
    rungs = ladder("graphene", 90.0, saturation=2.0)
    lone = picture(rungs, [2], 1)
    others = [
        picture(rungs, layers, seed) for seed, layers in enumerate([[1, 2], [1, 3, 4], [2, 3], [1, 4]], 5)
    ]
    alone = fit_batches([lone], NOBODY, Prior("graphene", 90.0))[0]
    together = fit_batches([lone, *others], NOBODY, Prior("graphene", 90.0))[0]
    p_alone, p_together = (name_regions(lone.observation, fit).p[0, 1] for fit in (alone, together))
    assert p_together > 0.9 > p_alone
    step = name_regions(lone.observation, together)
    assert (step.step.tolist(), step.steps) == ([2], 4)


def test_the_order_of_the_pictures_does_not_matter() -> None:
    rungs = ladder("MoS2", 90.0, saturation=1.4)
    sightings = [picture(rungs, layers, seed) for seed, layers in enumerate([[1, 2], [1, 3], [2], [1, 2, 4]])]
    forth = fit_batches(sightings, NOBODY, Prior("MoS2", 92.0))
    back = fit_batches(sightings[::-1], NOBODY, Prior("MoS2", 92.0))
    np.testing.assert_array_equal(forth[0].latent, back[0].latent)


def test_pictures_share_a_set_up_by_folder_colour_and_size() -> None:
    base = Sighting(observe(np.zeros((0, 3))), (10, 10, None, False), "a")
    other_colour = replace(base, observation=observe(np.zeros((0, 3)), COLOUR * [1.2, 1.0, 1.0]))
    dimmer = replace(base, observation=observe(np.zeros((0, 3)), 0.85 * COLOUR))
    pictures = [
        base,
        replace(base, folder="b"),
        replace(base, kind=(10, 20, None, False)),
        other_colour,
        dimmer,
    ]
    assert group_pictures(pictures) == [[0, 4], [3], [1], [2]]
    assert group_pictures(pictures, "folder") == [[0, 2, 3, 4], [1]]
    assert group_pictures(pictures, "none") == [[0], [1], [2], [3], [4]]


def test_a_fit_passes_through_plain_values() -> None:
    rungs = ladder("graphene", 90.0)
    sighting = picture(rungs, [1, 2, 3], 3)
    (fit,) = fit_batches([sighting], NOBODY, Prior("graphene", 90.0))
    copy = from_plain(to_plain(fit), NOBODY, Prior("graphene", 90.0))
    one, other = (name_regions(sighting.observation, each) for each in (fit, copy))
    np.testing.assert_array_equal(one.p, other.p)
    assert (one.oxide_nm, one.notes) == (other.oxide_nm, other.notes)


@pytest.mark.parametrize(("stated", "questioned"), [(285.0, True), (92.0, False)])
def test_a_wrong_oxide_is_said(stated: float, questioned: bool) -> None:
    rungs = ladder("WS2", 88.0)
    sightings = [
        picture(rungs, layers, seed) for seed, layers in enumerate([[1, 2], [1, 3], [2, 4], [1, 2, 3]])
    ]
    fit = fit_batches(sightings, NOBODY, Prior("WS2", stated))[0]
    assert any("of oxide; these colours want" in note for note in fit.notes) == questioned
    assert fit.oxide()[0] == pytest.approx(88.0, abs=6.0)
    assert count(sightings[3], fit) == [1, 2, 3]


@pytest.mark.slow
def test_a_lone_level_of_many_crystals_is_thin() -> None:
    """Dark, near gray: one crystal of it may be thick, a dozen of the same colour are a monolayer."""
    rungs = 0.85 * ladder("WS2", 88.0, saturation=0.3)
    one = picture(rungs, [1], 1)
    many = [picture(rungs, [1, 1, 1, 1], seed) for seed in range(3)]
    p_one, p_many = (
        name_regions(one.observation, fit_batches(seen, NOBODY, Prior("WS2"))[0]).p[0]
        for seen in ([one], [one, *many])
    )
    assert p_many[6] < 0.1 < p_many[0]
    assert p_many[0] > p_one[0]


@pytest.mark.slow
def test_pictures_of_one_chip_tell_each_other_its_oxide() -> None:
    """A picture of one level alone holds to a wrong oxide; beside another one of the folder, of other size, it does
    not."""
    rungs = ladder("WS2", 88.0)
    lone = picture(rungs, [1, 1], 1)
    telling = replace(picture(rungs, [1, 2, 3, 4], 2), kind=(600, 800, None, False))
    alone = fit_batches([lone], NOBODY, Prior("WS2", 285.0))[0]
    together = fit_batches([lone, telling], NOBODY, Prior("WS2", 285.0))[0]
    assert together.p_open > 0.9
    assert together.p_open > alone.p_open
    assert together.oxide()[0] == pytest.approx(88.0, abs=10.0)


def test_a_stated_oxide_is_not_left_for_one_level() -> None:
    rungs = ladder("MoS2", 280.0)
    fit = fit_batches([picture(rungs, [2], 3)], NOBODY, Prior("MoS2", 289.0, 5.0))[0]
    assert fit.p_open < 0.1
    assert not fit.notes


def test_uneven_and_narrow_witnesses_weigh_less() -> None:
    """Six even regions, and six that vary by a quarter of their contrast: the level of these counts less."""
    rungs = ladder("graphene", 90.0)
    contrast = rungs[np.repeat([0, 3], 6)]
    seen = observe(contrast)
    seen = replace(seen, witness=np.repeat([0.8, 0.2], 6))
    levels = find_levels([seen])
    np.testing.assert_allclose(levels.contrast, rungs[[0, 3]], atol=1e-6)
    assert levels.weight[0] == 1.0 and levels.weight[1] == pytest.approx(0.25, abs=0.01)
    assert levels.repeats[0] > levels.repeats[1]


def test_what_rungs_hold_makes_them_likelier() -> None:
    """Shares add up where nothing repeats; rungs that hold crystals get more of them; thick ones seldom repeat."""
    nothing = np.zeros((1, FEW + 2), np.float32)
    shares = share_rungs(nothing, 1)[0]
    assert shares.sum() == pytest.approx(1.0, abs=1e-5)
    held = nothing.copy()
    held[0, 2] = 10.0
    assert share_rungs(held, 1)[0, 2] > 3.0 * shares[2]
    again = share_rungs(nothing, 4)[0]
    assert again[0] / again[FEW] > 20.0 * shares[0] / shares[FEW]


def test_another_material_is_said() -> None:
    rungs = ladder("graphene", 90.0)
    sightings = [
        picture(rungs, layers, seed) for seed, layers in enumerate([[1, 2], [1, 3], [2, 4], [1, 2, 3]])
    ]
    fit = fit_batches(sightings, NOBODY, Prior("MoS2", 90.0, 4.0))[0]
    assert any("far better than MoS2" in note for note in fit.notes)


@pytest.mark.slow
def test_a_hundred_pictures_are_fitted_in_three_seconds() -> None:
    """Processor time; a second time it is remembered."""
    rungs = ladder("graphene", 90.0, saturation=1.6)
    rng = np.random.default_rng(0)
    sightings = [picture(rungs, rng.integers(1, 7, 12).tolist(), seed) for seed in range(100)]
    fit_batches(sightings[:3], NOBODY, Prior("graphene", 91.0))  # spectra
    begun = time.process_time()
    fit_batches(sightings, NOBODY, Prior("graphene", 91.0))
    first = time.process_time() - begun
    fit_batches(sightings, NOBODY, Prior("graphene", 91.0))
    assert first < 3.0
    assert time.process_time() - begun - first < 0.3
