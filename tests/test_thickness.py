"""Thickness by interference colour: planted truth, repeats, and what a clipped channel may say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flatscope.evaluation.thick_crystals import evaluate_thickness
from flatscope.optical.materials import find_material
from flatscope.optical.observations import Observation
from flatscope.optical.setups import LATENTS, Prior, Setups
from flatscope.optical.thickness import Ruler, measure_thickness, thickness_grid
from flatscope.optical.thinfilm import LAYER_GRID

CRYSTAL = find_material("hBN")


def plain_setups() -> Setups:
    """Copies of the middle of the prior on 285 nm oxide: nothing of the set-up is open."""
    return Prior("hBN", oxide_nm=285.0, gamma=1.0).setups(np.zeros((4, LATENTS)))


def observe(contrast: np.ndarray) -> Observation:
    count = len(contrast)
    return Observation(
        contrast,
        np.full((count, 3), 0.003),
        uneven=np.zeros((count, 3)),
        saturated=np.zeros((count, 3), bool),
        area_px=np.full(count, 1000.0),
        known=np.zeros(count, np.int64),
        witness=np.ones(count),
    )


def test_a_colour_of_theory_gives_its_own_thickness() -> None:
    """Within 5 % from 2 to 130 nm, and the truth lies in its interval."""
    setups = plain_setups()
    seen = observe(setups.contrasts()[0][5:])
    found = measure_thickness(seen, Ruler.of(setups, seen))
    true = LAYER_GRID[5:] * CRYSTAL.layer_nm
    assert found.nm == pytest.approx(true, rel=0.05)
    assert ((found.low <= true) & (true <= found.high)).all()


def test_colours_that_repeat_give_several_candidates() -> None:
    """A gray camera sees 24 nm as it sees 141 nm, a fringe later: both are named."""
    setups = Prior("hBN", oxide_nm=285.0, gamma=1.0, gray=True).setups(np.zeros((4, LATENTS)))
    place = int(np.argmin(np.abs(LAYER_GRID * CRYSTAL.layer_nm - 24.0)))
    found = measure_thickness(
        observe(setups.contrasts()[0][[place]]), Ruler.of(setups, observe(np.zeros((0, 3))))
    )
    first, second = sorted(float(part) for part in str(found.candidates[0]).split("|"))
    assert first == pytest.approx(24.0, rel=0.05)
    assert second > 100.0
    assert found.low[0] < first < second < found.high[0]


def test_a_colour_of_nothing_states_no_candidate_and_a_wide_interval() -> None:
    blind = replace(observe(np.zeros((1, 3))), sigma=np.full((1, 3), 1e3))
    found = measure_thickness(blind, Ruler.of(plain_setups(), observe(np.zeros((0, 3)))))
    assert found.high[0] / found.low[0] > 20.0


def test_a_clipped_channel_is_a_lower_limit() -> None:
    """The thickness is found by the other two, where the clipped number misleads."""
    setups = plain_setups()
    place = int(np.argmin(np.abs(LAYER_GRID * CRYSTAL.layer_nm - 14.0)))
    seen = setups.contrasts()[0][[place]].copy()
    brightest = int(seen[0].argmax())
    seen[0, brightest] *= 0.5
    clipped = replace(observe(seen), saturated=np.arange(3)[None] == brightest)
    true = LAYER_GRID[place] * CRYSTAL.layer_nm
    assert measure_thickness(clipped, Ruler.of(setups, clipped)).nm[0] == pytest.approx(true, rel=0.03)
    assert measure_thickness(observe(seen), Ruler.of(setups, observe(seen))).nm[0] < 0.9 * true


def test_no_fringe_falls_between_two_points_of_the_grid() -> None:
    """A quarter of the shortest fringe, wavelength / 2 n, in MoS2 as in hBN."""
    for name, index in (("hBN", 2.2), ("MoS2", 5.5)):
        grid = thickness_grid(find_material(name))
        assert np.diff(grid)[grid[1:] < 100.0].max() <= 400.0 / (2.0 * index) / 4.0
        np.testing.assert_allclose(grid[:10], find_material(name).layer_nm * np.arange(1, 11))


@pytest.mark.slow
def test_thick_crystals_under_any_camera_are_told_most_of_the_time() -> None:
    """Of 6 pictures; `evaluate thickness` prints the figure of a hundred."""
    scores = evaluate_thickness(6, seed=3)
    assert scores.regions == 48
    assert scores.among_two.value >= 0.75
    assert scores.told.value >= 0.85


def test_seven_to_ten_layers_are_counted_where_the_interval_holds_one_number() -> None:
    """MoS2 on 285 nm changes enough from layer to layer; in noise, and in graphene, no number stands alone."""
    nowhere = observe(np.zeros((0, 3)))
    counted = {}
    for material in ("MoS2", "graphene"):
        ruler = Ruler.of(Prior(material, oxide_nm=285.0, gamma=1.0).setups(np.zeros((4, LATENTS))), nowhere)
        seen = observe(ruler.theory[0, 5:12].astype(float))
        counted[material] = measure_thickness(seen, ruler).number.tolist()
    assert counted == {"MoS2": [0, 7, 8, 9, 10, 0, 0], "graphene": [0] * 7}
    noisy = replace(seen, sigma=np.full((7, 3), 0.2))
    assert not measure_thickness(noisy, ruler).number.any()
