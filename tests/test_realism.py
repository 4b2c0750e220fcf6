"""Realistic noise from one image: unit-cell crops, translation, detectors, and what they are measured by."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flatscope.app.cli import run
from flatscope.electron.drawing.appearance import (
    Drawn,
    Look,
    change_dose,
    draw_clean,
    draw_few_defects,
    draw_one,
    open_drawn,
    scan_again,
)
from flatscope.electron.drawing.crops import (
    choose_side,
    cut_around,
    find_centres,
    find_noise,
    flatten,
    mark_defects,
    put_back,
    put_back_mean,
    read_sites,
)
from flatscope.electron.drawing.microscopes import Teacher, learn_look
from flatscope.electron.drawing.noise import NoiseParams, fit_noise, scan
from flatscope.electron.drawing.specimens import draw_microscope, draw_scanned
from flatscope.electron.drawing.translation import check_honesty
from flatscope.electron.kinds import classify_marks
from flatscope.electron.lattice import find_lattice, map_phases
from flatscope.electron.physics.crystals import SheetParams, build_sheet, deform, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.scans import open_scan
from flatscope.electron.sites import Sites, cut_crops, find_axes
from flatscope.evaluation.likeness import (
    VALUES,
    compare_ways,
    describe,
    find_frechet,
    find_power,
    measure_likeness,
)
from flatscope.evaluation.papers.ke2023_scoring import find_least_dose
from flatscope.evaluation.windows import classify_counts
from flatscope.inference.card import Card, WeightsError
from flatscope.micrograph import Micrograph

PIXEL_NM = 0.026
AXES_PX = np.array([[10.5, 5.0], [-4.6, 12.0]])
"""A crystal that lies askew and is distorted by the scan."""
SCAN = NoiseParams(gain=0.1, lag=0.1)
LOOK = Look("MoS2", PIXEL_NM, AXES_PX, 0.8, SCAN, -1.0, (ScanParams(pixel_nm=PIXEL_NM),))


def draw_image(seed: int = 0, *, side: int = 200, electrons: float = 20.0) -> np.ndarray:
    """A scan of MoS2 as `LOOK` says, counts."""
    rng = np.random.default_rng(seed)
    scanned = draw_scanned(
        rng,
        SheetParams("MoS2"),
        LOOK.microscopes[0],
        NoiseParams(gain=1.0, lag=0.2),
        shape=(side, side),
        electrons_per_px=electrons,
        axes_px=AXES_PX,
    )
    return np.asarray(scanned.image, float)


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    return draw_one(np.random.default_rng(3), LOOK, side=160)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    image = draw_image(1, side=256)
    opened = open_scan(Micrograph(image, float(image.max())), "MoS2", [])
    return learn_look(opened, "MoS2", source="drawn", tried=6, workers=1)


def same_axes(one: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of two crystals' axes, whichever of three equal directions is called down."""
    turn = np.array([[-0.5, np.sqrt(0.75)], [-np.sqrt(0.75), -0.5]])
    mirror = np.diag([1.0, -1.0])
    same = [np.linalg.matrix_power(turn, k) @ flip for k in range(3) for flip in (np.eye(2), mirror)]
    return min(float(np.abs(step @ one - other).max()) for step in same)


# Crystals as scans show them


def test_a_drawn_crystal_lies_as_it_was_told(drawn: Drawn) -> None:
    assert same_axes(find_axes(drawn.sites, 0), AXES_PX) < 0.1
    # The image's own lattice and the truth agree on every site and its sublattice.
    true = drawn.sheet.sites_nm / PIXEL_NM
    inside = ((true > 10) & (true < 150)).all(1)
    gaps = np.hypot(*(true[inside][:, None] - drawn.sites.positions).transpose(2, 0, 1))
    assert gaps.min(1).max() < 1.0
    assert (drawn.sheet.sublattice[inside] == drawn.sites.sublattice[gaps.argmin(1)]).mean() > 0.99


def test_deformed_sheets_keep_their_neighbours_and_lose_what_leaves_the_field() -> None:
    sheet = build_sheet(np.random.default_rng(0), SheetParams("MoS2", (6.0, 6.0)))
    axes = np.array([[1.1, 0.2], [-0.1, 0.9]])
    made = deform(sheet, axes, field_nm=(3.0, 2.0))
    assert ((made.sites_nm >= 0) & (made.sites_nm < (3.0, 2.0))).all()
    assert len(made.sites_nm) == pytest.approx(
        len(sheet.sites_nm) * 6.0 / 36.0 / np.linalg.det(axes), rel=0.1
    )
    # Atoms went with their sites: one or two above each of them.
    gaps = np.hypot(*(made.positions_nm[:, None, :2] - made.sites_nm).transpose(2, 0, 1))
    assert gaps.min(1).max() < 1e-9
    np.testing.assert_array_equal(np.bincount(gaps.argmin(1)), np.where(made.sublattice == 0, 1, 2))


# Unit-cell crops


def test_crops_go_back_to_where_they_came_from(drawn: Drawn) -> None:
    image = drawn.image.astype(np.float32)
    side = choose_side(drawn.sites.phases.lattice.constant_px)
    assert side % 8 == 0 and side >= 2.0 * drawn.sites.phases.lattice.constant_px
    cells = cut_around(image, np.vstack(list(find_centres(drawn.sites).values())), side=side, clip=True)
    np.testing.assert_array_equal(put_back(cells.images, cells, image.shape), image)
    np.testing.assert_allclose(put_back_mean(cells.images[:, None], cells, image.shape)[0], image, atol=1e-5)
    few = cut_around(image, drawn.sites.positions[:3], side=side, clip=True)
    with pytest.raises(ValueError, match="some pixels lie in no crop"):
        put_back(few.images, few, image.shape)
    with pytest.raises(ValueError, match="10x10 px are too few: crops are"):
        cut_around(image[:10, :10], drawn.sites.positions, side=side)


def test_crops_are_centred_on_metal_chalcogen_and_hollow(drawn: Drawn) -> None:
    centres = find_centres(drawn.sites)
    heights = {
        name: np.median(
            drawn.image[tuple(np.rint(places[((places > 5) & (places < 154)).all(1)]).astype(int).T)]
        )
        for name, places in centres.items()
    }
    assert heights["first"] > heights["second"] + 0.5 > heights["hollow"] + 1.0
    cells = cut_around(drawn.image, centres["second"], side=32, clip=True)
    whole = ((centres["second"] > 17) & (centres["second"] < 142)).all(1)
    assert np.abs(cells.corners + 15.5 - centres["second"])[whole].max() <= 0.5


@pytest.mark.parametrize(("gain", "offset"), [(1.0, 0.0), (300.0, -40.0)])
def test_flat_images_do_not_know_the_detector(gain: float, offset: float) -> None:
    image = draw_image(electrons=200.0)
    phases = map_phases(image, find_lattice(image))
    plain = flatten(image, phases)
    made = flatten(gain * image + offset, phases)
    np.testing.assert_allclose(made, plain, atol=1e-9)
    rows = np.arange(len(image))[:, None]
    assert np.abs(flatten(image + 3.0 * rows, phases) - plain)[20:-20, 20:-20].max() < 0.2


def test_noise_is_measured_in_units_of_the_lattice(drawn: Drawn) -> None:
    for planted in (0.3, 1.5):
        noisy = drawn.image + planted * np.random.default_rng(1).standard_normal(drawn.image.shape)
        phases = map_phases(noisy, find_lattice(noisy))
        assert find_noise(flatten(noisy, phases), phases) == pytest.approx(planted, rel=0.12)


def test_defects_are_marked_where_they_are_and_nowhere_else() -> None:
    rng = np.random.default_rng(5)
    contents = replace(draw_few_defects(rng, "MoS2", dopants=("W",)), field_nm=(5.0, 5.0), antisites=0.02)
    sheet = build_sheet(rng, contents)
    kinds = classify_marks(sheet, find_crystal("MoS2"))
    for species, sublattice, kind in (
        ("Mo", 0, 0), ("W", 0, 3), ("S2", 1, 0), ("S", 1, 1), ("", 1, 1), ("OS", 1, 2), ("Mo", 1, 255), ("S2", 0, 255),
    ):  # fmt: skip
        mine = (sheet.species == species) & (sheet.sublattice == sublattice)
        assert mine.any() and (kinds[mine] == kind).all(), species
    marks = mark_defects(sheet, "MoS2", shape=(200, 200), pixel_nm=0.025)
    rows, cols = np.rint(sheet.sites_nm / 0.025).astype(int).clip(0, 199).T
    assert np.mean(marks[rows, cols] == kinds) > 0.995
    area = np.pi * (0.25 * 0.316 / 0.025) ** 2
    assert (marks > 0).sum() == pytest.approx((kinds > 0).sum() * area, rel=0.15)
    # What is read at a site is what was marked there.
    maps = (marks == np.arange(4)[:, None, None]).astype(np.float32)
    inside = ((sheet.sites_nm > 0.2) & (sheet.sites_nm < 4.8)).all(1) & (kinds < 4)
    read = read_sites(maps, sheet.sites_nm[inside] / 0.025, 0.316 / 0.025)
    assert (read.argmax(1) == kinds[inside]).all()


# What an image teaches


def test_an_image_teaches_its_lattice_its_noise_and_its_sharpness(teacher: Teacher) -> None:
    look = teacher.look
    assert same_axes(look.axes_px, AXES_PX) < 0.1
    assert look.constant_px == pytest.approx(np.sqrt(np.linalg.det(AXES_PX)), rel=0.01)
    side = look.side_px
    # No pixel is in both halves.
    seen = {crop.tobytes() for crop in teacher.crops[:, :, -1]}
    assert not seen & {crop.tobytes() for crop in teacher.held[:, :, 0]}
    assert len(teacher.crops) > 200 and teacher.held.shape[1:] == (side, side)
    blurred, sharp = (
        learn_look(
            open_scan(Micrograph(image, float(image.max())), "MoS2", []),
            "MoS2",
            source="",
            tried=8,
            workers=1,
        )
        for image in (
            draw_scanned(
                np.random.default_rng(2),
                SheetParams("MoS2"),
                replace(LOOK.microscopes[0], source_nm=source),
                NoiseParams(gain=1.0),
                shape=(200, 200),
                electrons_per_px=500.0,
                axes_px=AXES_PX,
            ).image.astype(float)
            for source in (0.055, 0.015)
        )
    )
    widths = [np.mean([one.source_nm for one in found.look.microscopes]) for found in (blurred, sharp)]
    assert widths[0] > widths[1] + 0.008


def test_microscopes_are_tuned_to_what_the_image_shows() -> None:
    """An image with coma is drawn again with coma."""
    scanned = draw_scanned(
        np.random.default_rng(2),
        SheetParams("MoS2"),
        replace(LOOK.microscopes[0], coma_nm=600.0, coma_deg=50.0),
        NoiseParams(gain=1.0),
        shape=(200, 200),
        electrons_per_px=500.0,
        axes_px=AXES_PX,
    )
    opened = open_scan(Micrograph(scanned.image, float(scanned.image.max())), "MoS2", [])
    found = learn_look(opened, "MoS2", source="", tried=8, workers=1)

    def show(image: np.ndarray, sites: Sites) -> np.ndarray:
        return cut_crops(image, sites, some=np.flatnonzero(sites.sublattice == 0)[:1])[0, 1]

    wanted = show(found.image, opened.sites)
    drawn_again, without = (
        draw_one(np.random.default_rng(0), look, side=160)
        for look in (
            replace(found.look, microscopes=found.look.microscopes[:1]),
            replace(found.look, microscopes=LOOK.microscopes),
        )
    )
    gaps = [np.sqrt(np.square(show(one.image, one.sites) - wanted).mean()) for one in (drawn_again, without)]
    assert gaps[0] < 0.5 * gaps[1]


def test_a_small_image_teaches_nothing() -> None:
    image = draw_image(side=100)
    opened = open_scan(Micrograph(image, float(image.max())), "MoS2", [])
    with pytest.raises(ValueError, match=r"hold .* crops of .* px in half of the field: 64 are needed"):
        learn_look(opened, "MoS2", source="small.npy", tried=2, workers=1)


def test_a_look_survives_its_card() -> None:
    plain = {
        "name": "realism", "version": "1", "task": "realism", "recipe": "realism", "training_data": "", "seed": 1,
        "channels": ("crop",), "classes": ("crop",), "scale": 1.0, "multiple": 2, "halo_px": 0, "created_with": "",
        "licence": "BSD-3-Clause",
    }  # fmt: skip
    card = Card(**plain, look=LOOK.to_dict())
    again = Look.from_card(Card.from_json(card.to_json()))
    np.testing.assert_array_equal(again.axes_px, LOOK.axes_px)
    assert again.microscopes == LOOK.microscopes and again.noise == LOOK.noise
    assert again.scan == SCAN and again.zero == -1.0
    with pytest.raises(WeightsError, match="no look of a scan"):
        Look.from_card(Card(**plain, look={"noise": 1.0}))
    with pytest.raises(WeightsError, match="damaged card of realism"):
        Look.from_card(Card(**plain))


def test_drawn_images_follow_from_their_seed_for_any_number_of_workers() -> None:
    one, other = (draw_clean(LOOK, 5, side=128, seed=7, workers=workers) for workers in (1, 2))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a.image, b.image)
    assert np.abs(one[0].image - one[1].image).max() > 1.0


def test_fitted_noise_is_that_of_the_image(teacher: Teacher) -> None:
    """A scan with electrons and lag, measured on its left half, drawn again on another crystal."""
    one = draw_one(np.random.default_rng(9), replace(teacher.look, microscopes=LOOK.microscopes), side=200)
    made = scan_again(np.random.default_rng(0), one, teacher.look)
    assert find_noise(made, one.sites.phases) == pytest.approx(teacher.look.noise, rel=0.2)
    assert teacher.look.scan.lag == pytest.approx(0.2, abs=0.05)
    assert fit_noise(made).lag == pytest.approx(0.2, abs=0.08)


# Honesty


def test_a_faithful_look_moves_nothing(drawn: Drawn) -> None:
    rng = np.random.default_rng(0)
    for look_like in (
        lambda rng, one: one.image.astype(np.float32),
        # A lag shifts the whole image: no column against the others.
        lambda rng, one: np.roll(one.image, 1, axis=1).astype(np.float32),
        lambda rng, one: one.image + 0.2 * rng.standard_normal(one.image.shape),
    ):
        found = check_honesty(rng, drawn, look_like)
        assert found.rejected.mean() < 0.02


def test_a_column_that_is_moved_is_rejected_and_no_other(drawn: Drawn) -> None:
    perfect = np.flatnonzero(
        (drawn.sheet.species == "Mo") & (classify_marks(drawn.sheet, find_crystal("MoS2")) == 0)
    )
    places = drawn.sheet.sites_nm[perfect] / PIXEL_NM
    victim = places[np.hypot(*(places - 80.0).T).argmin()]

    def push(rng: np.random.Generator, one: Drawn) -> np.ndarray:
        rows, cols = np.mgrid[: one.image.shape[0], : one.image.shape[1]]
        near = np.exp(-((((rows - victim[0]) ** 2 + (cols - victim[1]) ** 2) / (2 * 3.0**2)) ** 2))
        shifted = np.roll(one.image, 1, axis=0)
        return (near * shifted + (1.0 - near) * one.image).astype(np.float32)

    found = check_honesty(np.random.default_rng(0), drawn, push)
    moved = found.places_px[found.moved]
    assert len(moved) >= 1
    assert np.hypot(*(moved - victim).T).max() < 8.0
    assert not found.vanished.any()


def test_a_defect_that_vanishes_is_rejected(drawn: Drawn) -> None:
    """An image of the same lattice without defects, in place of one with them."""
    look = replace(LOOK, microscopes=LOOK.microscopes)
    sheet = replace(drawn.sheet, species=drawn.sheet.species.copy())
    from flatscope.electron.physics.crystals import refill
    from flatscope.electron.physics.imaging import draw_adf

    species = np.where(sheet.sublattice == 0, "Mo", "S2")
    perfect = draw_adf(refill(sheet, species, "MoS2"), look.microscopes[0], shape=drawn.image.shape)
    healed = open_drawn(perfect, refill(sheet, species, "MoS2"), look).image.astype(np.float32)
    found = check_honesty(np.random.default_rng(0), drawn, lambda rng, one: healed)
    defects = (found.kinds > 0) & (found.kinds < 4)
    assert found.vanished[defects].mean() > 0.8
    assert not found.vanished[~defects].any()


# Distances and bounds


def test_distances_are_none_to_itself_and_grow_with_what_differs(drawn: Drawn) -> None:
    centres = np.vstack(list(find_centres(drawn.sites).values()))

    def cut(image: np.ndarray) -> np.ndarray:
        return cut_around(image.astype(np.float32), centres, side=32).images

    noisy = [drawn.image + 0.8 * np.random.default_rng(k).normal(size=drawn.image.shape) for k in (1, 2)]
    real, again = (cut(image) for image in noisy)
    same = measure_likeness(real, real)
    assert same.values.sum() == pytest.approx(1.0, abs=1e-3)
    assert same.values @ (VALUES[:-1] + 0.125) == pytest.approx(float(real.mean()), abs=0.02)
    assert same.frechet == pytest.approx(0.0, abs=1e-3) and same.histogram == 0.0
    np.testing.assert_allclose(same.spectrum, 1.0)
    near, louder, clean = (
        measure_likeness(crops, real) for crops in (again, cut(noisy[1] * 1.3), cut(drawn.image))
    )
    assert near.frechet < 0.2 * louder.frechet < 0.2 * clean.frechet
    np.testing.assert_allclose(near.spectrum, 1.0, atol=0.25)
    np.testing.assert_allclose(louder.spectrum[-3:], 1.3**2, rtol=0.15)
    striped = noisy[1] + 0.8 * np.random.default_rng(3).normal(size=(len(drawn.image), 1))
    assert measure_likeness(cut(striped), real).rows > 1.5 * near.rows
    assert near.rows == pytest.approx(1.0, abs=0.2)


def test_frechet_distance_of_two_normal_clouds() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(40_000, 2)) * (1.0, 2.0)
    other = rng.normal(size=(40_000, 2)) * (3.0, 2.0) + (0.0, 4.0)
    # |gap|² + (1 - 3)² for the first axis.
    assert find_frechet(one, other) == pytest.approx(16.0 + 4.0, rel=0.03)


def test_features_of_white_noise_are_those_of_a_normal_distribution_without_a_direction() -> None:
    """Quantiles and scatter of the pixels, then mean and scatter of four wavelengths in six directions."""
    rng = np.random.default_rng(0)
    crops = rng.normal(size=(300, 24, 24)).astype(np.float32)
    assert find_power(crops)[2:-2, 2:-2].mean() == pytest.approx(1.0, rel=0.05)
    rows = rng.normal(size=(300, 24, 1)).astype(np.float32)
    quiet, louder, striped = (describe(made).mean(0) for made in (crops, 2.0 * crops, crops + rows))
    assert quiet[[1, 3, 5, 7]] == pytest.approx([-1.645, 0.0, 1.645, 1.0], abs=0.06)
    seen, scatter = quiet[8::2].reshape(4, 6), quiet[9::2].reshape(4, 6)
    assert np.ptp(seen, axis=1).max() < 0.12 and np.ptp(scatter, axis=1).max() < 0.12
    # Twice as loud: logarithms of amplitudes grow by log 2, and scatter as before.
    np.testing.assert_allclose(louder[:8], 2.0 * quiet[:8], atol=1e-5)
    np.testing.assert_allclose(louder[8::2], quiet[8::2] + np.log(2.0), atol=0.03)
    np.testing.assert_allclose(louder[9::2], quiet[9::2], atol=0.05)
    # The first direction lies across, the fourth down.
    assert ((striped[8::2].reshape(4, 6) - seen).argmax(1) == 3).all()


def test_the_least_dose_is_where_counts_tell_in_nine_of_ten_cases() -> None:
    rows, cols = np.mgrid[:20, :20]
    one = 1.0 + np.exp(-((rows - 10) ** 2 + (cols - 10) ** 2) / 18.0)
    other = 1.0 + 0.8 * np.exp(-((rows - 10) ** 2 + (cols - 10) ** 2) / 18.0)
    dose = find_least_dose(one, other)
    rng = np.random.default_rng(0)
    templates = dose * np.stack([one, other])
    right = [
        np.mean(classify_counts(rng.poisson(template, (3000, 20, 20)).astype(float), templates) == kind)
        for kind, template in enumerate(templates)
    ]
    assert np.mean(right) == pytest.approx(0.9, abs=0.015)
    assert find_least_dose(one, other, accuracy=0.99) > 3.0 * dose


# Networks

torch = pytest.importorskip("torch")


def test_generators_leave_crops_as_they_are_at_first_and_export(tmp_path: Path) -> None:
    from flatscope.training import supervised
    from flatscope.training.nets.ugatit import Discriminator, Generator
    from flatscope.training.onnx_export import run_onnx, to_onnx

    net = supervised.seeded(Generator, seed=1, width=8, blocks=2).eval()
    x = np.random.default_rng(0).normal(size=(3, 1, 24, 40)).astype(np.float32)
    wanted = supervised.answer(net, x)
    assert wanted.shape == x.shape
    assert np.corrcoef(wanted.ravel(), x.ravel())[0, 1] > 0.5
    given = run_onnx(to_onnx(net, channels=1, multiple=net.multiple), x)
    assert np.abs(given - wanted).max() < 1e-4
    # A crop's look is its own: what else is in the batch does not matter.
    np.testing.assert_allclose(supervised.answer(net, x[:1]), wanted[:1], atol=1e-5)
    for halvings, spectrum in ((2, False), (3, False), (2, True)):
        judge = supervised.seeded(Discriminator, seed=2, halvings=halvings, width=8, spectrum=spectrum).eval()
        places, logits = judge(torch.from_numpy(x))
        assert places.shape[:2] == (3, 1) and logits.shape == (3, 2)
        moved, _ = judge(torch.from_numpy(x + np.float32(5.0)))
        if spectrum:
            # Brightness is no part of it.
            assert torch.allclose(places, moved, atol=1e-3)


def test_translation_goes_on_where_it_was_cut_off_and_refuses_other_settings(
    teacher: Teacher, tmp_path: Path
) -> None:
    from flatscope.training import recipes, translator

    recipe = recipes.load(
        "realism", scenes_train=1, scene_px=128, widths=(4, 8), batch=40, epochs=1, max_minutes=None
    )
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        assert 0 < done <= total
        if len(seen) == 3:
            raise KeyboardInterrupt

    whole = translator.train(recipe, teacher, out=tmp_path / "a", workers=1)
    with pytest.raises(KeyboardInterrupt):
        translator.train(recipe, teacher, out=tmp_path / "b", workers=1, on_progress=stop)
    again = translator.train(recipe, teacher, out=tmp_path / "b", workers=1)
    steps = len(teacher.crops) // 40
    assert steps > len(seen) == 3
    assert whole.card == again.card and f"{steps} steps" in whole.card.training_data
    for one, other in zip(whole.net.state_dict().values(), again.net.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    fresh = translator.train(recipe.change(seed=5), teacher, out=tmp_path / "c", workers=1)
    assert any(
        not torch.equal(one, other)
        for one, other in zip(whole.net.parameters(), fresh.net.parameters(), strict=True)
    )
    with pytest.raises(recipes.RecipeError, match="made with batch = 40, this run has 4: train into another"):
        translator.train(recipe.change(batch=4), teacher, out=tmp_path / "a", workers=1)


def test_a_detector_finds_what_it_was_taught(tmp_path: Path) -> None:
    """Without noise, on another sheet than learned from."""
    from flatscope.evaluation.papers.ke2023 import mark
    from flatscope.training import crop_detector

    images = draw_clean(LOOK, 4, side=160, seed=1, dopants=("W",), workers=2)
    marked = [mark(one, one.image.astype(np.float32), None) for one in images]
    detector = crop_detector.train(
        marked[:3], marked[2:3], side=LOOK.side_px, steps=120, seed=1, checkpoint=tmp_path / "net.pt"
    )
    called = crop_detector.detect(detector, marked[3].image, marked[3].sites)
    positions = marked[3].sites.positions
    inside = ((positions > 12) & (positions < 147)).all(1) & (marked[3].kinds < 4)
    truth, called = marked[3].kinds[inside], called[inside]
    assert ((called == truth) & (truth > 0)).sum() >= 0.6 * (truth > 0).sum() > 0
    assert (called[truth == 0] > 0).mean() < 0.05


def test_images_of_one_look_have_crops_of_one_size(tmp_path: Path) -> None:
    """However their lattices are measured: twice these two constants lie on either side of 32 px."""
    from flatscope.evaluation.papers.ke2023 import mark
    from flatscope.training import crop_detector

    looks = [replace(LOOK, axes_px=AXES_PX * constant / LOOK.constant_px) for constant in (15.5, 17.0)]
    images = [draw_one(np.random.default_rng(1), look, side=160) for look in looks]
    assert {choose_side(one.sites.phases.lattice.constant_px) for one in images} == {32, 40}
    marked = [mark(one, one.image.astype(np.float32), None) for one in images]
    detector = crop_detector.train(
        marked, marked[:1], side=looks[0].side_px, steps=1, seed=1, checkpoint=tmp_path / "a.pt"
    )
    assert detector.side_px == 32
    for one in marked:
        assert len(crop_detector.detect(detector, one.image, one.sites)) == len(one.sites.positions)


@pytest.mark.parametrize(("said", "metal", "chalcogen"), [(3, 3, 0), (2, 0, 2)])
def test_a_sublattice_only_has_its_own_defects(drawn: Drawn, said: int, metal: int, chalcogen: int) -> None:
    """Whatever a network says: oxygen on a metal site is none, nor is another metal on a chalcogen site."""
    from flatscope.training import crop_detector

    class Stubborn(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            logits = torch.full((len(x), 4, *x.shape[2:]), -9.0)
            logits[:, said] = 1.0
            logits[:, 0] = 0.5
            return logits

    called = crop_detector.detect(
        crop_detector.Detector(Stubborn(), LOOK.side_px, 0.5), drawn.image, drawn.sites
    )
    first = drawn.sites.sublattice == 0
    assert (called[first] == metal).all() and (called[~first] == chalcogen).all()


def test_labels_choose_the_best_threshold_of_each_detector(drawn: Drawn) -> None:
    """By hand: eight sites, three of them marked as a dopant; a detector that is sure of two of these and half sure of
    a pristine site, and of the third."""
    from flatscope.evaluation.papers.ke2023_scoring import Labels, choose_by_labels, score_labels
    from flatscope.training import crop_detector

    kinds = np.array([3, 3, 3, 0, 0, 0, 0, 0])
    here = np.array([True] * 7 + [False])
    labels = Labels(kinds, np.ones(8, bool), here, np.arange(8) % 2)
    called = np.array([3, 3, 0, 3, 0, 0, 0, 3])
    (label,) = score_labels([[called]] * 4, labels)
    assert label == "3 of dopant"
    assert score_labels([[called]] * 4, labels)[label].value == pytest.approx(2 / 3)
    # Two detectors together: one finds nothing.
    both = score_labels([[called, np.zeros(8, int)]] * 4, labels)
    assert both["3 of dopant"].value == pytest.approx(2 * 2 / (3 + 6))

    # the chance of a dopant at each site, in place of a network's
    chances = np.array([0.9, 0.9, 0.6, 0.6, 0.1, 0.1, 0.1, 0.9])

    def read(net: Any, image: Any, sites: Any, *, side: int) -> Any:
        return np.stack([1.0 - chances, 0.0 * chances, 0.0 * chances, chances], axis=1)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(crop_detector, "read", read)
        teacher, opened = SimpleNamespace(image=drawn.image), SimpleNamespace(sites=drawn.sites)
        chosen = choose_by_labels(
            [crop_detector.Detector(torch.nn.Identity(), 32, 0.05)], opened, teacher, labels
        )  # type: ignore[arg-type]
    np.testing.assert_array_equal(chosen[3][0], [3, 3, 3, 3, 0, 0, 0, 3])
    assert score_labels(chosen, labels)["3 of dopant"].value == pytest.approx(6 / 7)


def test_rejected_columns_are_not_learned_from(drawn: Drawn) -> None:
    from flatscope.evaluation.papers.ke2023 import mark

    honesty = check_honesty(np.random.default_rng(0), drawn, lambda rng, one: one.image.astype(np.float32))
    moved = honesty.moved_nm.copy()
    moved[0] = 1.0
    made = mark(drawn, drawn.image.astype(np.float32), replace(honesty, moved_nm=moved))
    row, col = np.rint(honesty.places_px[0]).astype(int)
    assert made.marks[row, col] == 255
    assert (made.marks == 255).mean() < 0.01
    assert (made.kinds == 255).sum() >= 1


def test_raw_simulation_knows_only_the_lattice(teacher: Teacher) -> None:
    from flatscope.evaluation.papers.ke2023 import forget

    known = replace(
        teacher.look, microscopes=tuple(replace(LOOK.microscopes[0], coma_nm=900.0) for _ in range(3))
    )
    raw = forget(known)
    assert len(raw.microscopes) == 3 and all(one.coma_nm == one.trefoil_nm == 0.0 for one in raw.microscopes)
    assert replace(raw, microscopes=known.microscopes) == known
    told = draw_one(np.random.default_rng(1), raw, side=128, dopants=("W",))
    assert set(told.sheet.species) <= {"Mo", "W", "S2", "S", "OS", ""}


def test_a_corrector_is_between_just_tuned_and_drifted() -> None:
    def draw(misaligned: float) -> np.ndarray:
        """Coma (nm) of many microscopes."""
        rngs = map(np.random.default_rng, range(200))
        return np.array([draw_microscope(rng, pixel_nm=0.02, misaligned=misaligned).coma_nm for rng in rngs])

    tuned, between, drifted = (draw(strength) for strength in (0.0, 0.5, 1.0))
    assert tuned.max() == 0.0
    assert 200.0 < drifted.mean() < 550.0
    np.testing.assert_allclose(between, 0.5 * drifted)


def test_ways_are_compared_with_the_half_held_out(teacher: Teacher) -> None:
    images = draw_clean(replace(teacher.look, microscopes=LOOK.microscopes), 2, side=128, seed=2, workers=1)
    looks = compare_ways(
        teacher,
        {
            "raw": lambda rng, one: one.image.astype(np.float32),
            "fitted": lambda rng, one: scan_again(rng, one, teacher.look),
        },
        images,
    )
    assert looks["experiment, left half"].frechet < looks["fitted"].frechet < 0.3 * looks["raw"].frechet
    assert looks["raw"].moved == looks["raw"].vanished == 0.0


# Commands


def save_image(path: Path, side: int = 256) -> Path:
    np.save(path, draw_image(2, side=side))
    return path


@pytest.mark.slow
def test_train_and_simulate_with_the_look_of_an_image(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    image = save_image(tmp_path / "scan.npy")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "realism"\nseed = 1\nscenes_train = 1\nepochs = 1\nbatch = 64\nlr = 1e-4\nschedule = "late"\n'
        "[realism]\nscene_px = 128\nwidths = [4, 8]\n"
    )
    # Fewer microscopes and translations are tried than by default.
    monkeypatch.setattr("flatscope.electron.drawing.translation._DRAWS", 2)
    monkeypatch.setattr("flatscope.app.commands.train.learn_look", partial(learn_look, tried=3))
    options = ["--image", str(image), "--material", "MoS2", "--workers", "1", "--out", str(tmp_path / "w")]
    assert run(["train", str(recipe), *options]) == 0
    printed = capsys.readouterr().out
    assert "fitted noise" in printed and "Fréchet" in printed and "moved" in printed
    distances = {
        name: float(line.removeprefix(name).split()[0])
        for line in printed.splitlines()
        for name in ("translated", "fitted noise", "tuned microscopes")
        if line.startswith(f"{name}  ")
    }
    assert distances["fitted noise"] < 0.5 * distances["tuned microscopes"]
    nearest = min(distances, key=lambda name: distances[name])
    assert (f"{nearest} comes nearer than the translation" in printed) == (nearest != "translated")
    weights = str(tmp_path / "w" / "realism.onnx")
    simulate = ["simulate", "stem", "--realism", weights, "-n", "2", "--side-px", "128", "--seed", "4"]
    for workers in ("1", "2"):
        assert run([*simulate, "--workers", workers, "--out", str(tmp_path / workers)]) == 0
    assert "were moved by more than 10 pm" in capsys.readouterr().out
    with h5py.File(tmp_path / "1" / "data.h5") as one, h5py.File(tmp_path / "2" / "data.h5") as other:
        images, masks = one["images"][:], one["masks"][:]
        np.testing.assert_array_equal(images, other["images"][:])
        pixel_nm = float(one.attrs["pixel_nm"])
    columns = pd.read_csv(tmp_path / "1" / "columns.csv", keep_default_na=False)
    first = columns[columns["item"] == 0]
    row, col = (np.clip(np.rint(first[name] / pixel_nm).astype(int), 0, 127) for name in ("row_nm", "col_nm"))
    wanted = first["species"].map({"Mo": 1, "S2": 2, "S": 3}).fillna(4).to_numpy()
    marked = masks[0][row, col]
    assert np.mean((marked == wanted) | (marked == 255)) > 0.95 and (marked == 255).mean() < 0.5
    # Metal columns are bright where the table says that they are.
    bright = images[0, 0][row[first["species"] == "Mo"], col[first["species"] == "Mo"]].mean()
    assert bright > images[0, 0].mean() + 0.7
    # Of half of the images only the noise is that of the image: the same sheets, other pixels.
    mixed = tmp_path / "mixed"
    assert run([*simulate, "-n", "6", "--translated", "0.5", "--out", str(mixed)]) == 0
    translated = [
        json.loads(line)["translated"] for line in (mixed / "params.jsonl").read_text().splitlines()
    ]
    assert set(translated) == {True, False}
    with h5py.File(mixed / "data.h5") as store:
        same = [np.array_equal(store["images"][index], images[index]) for index in range(2)]
    assert same == translated[:2]
    assert run(["simulate", "stem", "--translated", "0.5", "--out", str(tmp_path / "bad")]) == 2
    assert "--translated belongs to --realism" in capsys.readouterr().err
    for wrong, said in (
        (["--material", "MoS2"], "comes with the weights"),
        (["--dose", "30", "3"], "the smaller one first"),
        (["--quick"], "px or more"),
    ):
        assert run([*simulate, *wrong, "--out", str(tmp_path / "bad")]) == 2
        assert said in capsys.readouterr().err
    assert run(["simulate", "hrtem", "--realism", weights, "--out", str(tmp_path / "bad")]) == 2
    assert not (tmp_path / "bad").exists()


def test_more_electrons_leave_less_of_what_was_added(drawn: Drawn) -> None:
    """Nine times the dose: a third of the noise, on the same columns."""
    noisy = scan_again(np.random.default_rng(1), drawn, LOOK)
    weaker = change_dose(drawn, noisy, 9.0)
    assert (weaker - drawn.image).std() == pytest.approx((noisy - drawn.image).std() / 3.0, rel=1e-3)
    np.testing.assert_allclose(change_dose(drawn, noisy, 1.0), noisy, rtol=1e-5)


def test_a_detector_that_lags_is_drawn_with_the_contrast_that_it_left(drawn: Drawn) -> None:
    look = replace(LOOK, scan=replace(SCAN, lag=0.4), zero=-3.0)
    mean = np.mean([scan_again(np.random.default_rng(seed), drawn, look) for seed in range(40)], axis=0)
    assert mean.std() == pytest.approx(drawn.image.std(), rel=0.03)


def test_wrong_input_for_a_look_is_told_in_one_line(tmp_path: Path, capsys: Any) -> None:
    small = save_image(tmp_path / "small.npy", side=100)
    noise = tmp_path / "noise.npy"
    np.save(noise, np.random.default_rng(0).normal(size=(128, 128)))
    for given, said in (
        ([], "give --image FILE and --material NAME"),
        (["--image", str(small)], "give --image FILE and --material NAME"),
        (["--image", str(small), "--material", "MoS2"], "64 are needed"),
        (["--image", str(noise), "--material", "MoS2"], "not periodic"),
        (["--image", str(small), "--material", "graphene"], "MoS2, WS2, MoSe2, WSe2"),
        (["--image", str(tmp_path / "none.npy"), "--material", "MoS2"], "none.npy"),
    ):
        assert run(["train", "realism", *given, "--out", str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err.strip()
        assert said in error and len(error.splitlines()) == 1, error
    assert run(["train", "defects", "--image", str(small), "--out", str(tmp_path / "out")]) == 2
    assert "--image belongs to realism" in capsys.readouterr().err
    assert run(["reproduce", "maksov2019", "--image", str(small)]) == 2
    assert "belong to ke2023" in capsys.readouterr().err
    assert run(["reproduce", "ke2023", "--labels", str(small), "--out", str(tmp_path)]) == 2
    assert "give it by --image" in capsys.readouterr().err
    for wrong, said in (
        (("--material", "graphene"), "MoS2, WS2, MoSe2, WSe2"),
        (("--dopants", "Tj"), "dopants = 'Tj': give one element of"),
        (("--labels", str(tmp_path / "none.csv")), "cannot be read"),
        ((), "64 are needed"),
    ):
        assert run(["reproduce", "ke2023", "--image", str(small), *wrong, "--out", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.splitlines()) == 1


@pytest.mark.real
def test_a_real_scan_teaches_its_look(real_data: Path) -> None:
    from flatscope.files.read import read

    path = real_data / "electron" / "wse2_ti" / "ti_wse2_adf2.dm4"
    pytest.importorskip("rsciio")
    opened = open_scan(read(path, modality="electron"), "WSe2", [])
    taught = learn_look(opened, "WSe2", source=path.name, tried=4)
    assert len(taught.crops) > 4000 and len(taught.held) > 4000
    assert 0.5 < taught.look.noise < 0.8
    # Both halves look alike, and have more noise from row to row than along rows.
    halves = measure_likeness(taught.crops, taught.held)
    assert halves.rows > 1.5 and abs(np.log(halves.spectrum[1:])).max() < 0.1


def test_a_scan_that_lags_has_more_noise_from_row_to_row() -> None:
    flat = np.full((64, 64), 50.0)
    crops = np.stack(
        [scan(np.random.default_rng(k), flat, NoiseParams(gain=1.0, lag=0.3))[0] for k in range(40)]
    )
    power = find_power(crops.astype(np.float32))
    assert power[28:36, 1:4].mean() > 1.5 * power[1:4, 28:36].mean()


@pytest.mark.slow
def test_the_study_runs_and_says_what_it_did(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatscope.evaluation.papers import ke2023

    monkeypatch.setattr("flatscope.electron.drawing.translation._DRAWS", 1)
    monkeypatch.setattr(ke2023, "DOSES", (1.0, 10.0))
    assert run(["reproduce", "ke2023", "--quick", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in (*ke2023.WAYS, ke2023.OURS, "best possible"):
        assert name in printed
    page = (tmp_path / "ke2023.html").read_text(encoding="utf-8")
    assert "a drawn one" in page and page.count("<img") == 8
    (numbers,) = json.loads((tmp_path / "ke2023.json").read_text())
    assert len(numbers["scores"]["translated"]) == 2
    # Two U-Nets a way, of other seeds.
    one, other = (
        torch.load(tmp_path / "ke2023" / f"translated-{repeat}.pt", weights_only=True) for repeat in (1, 2)
    )
    assert one.keys() == other.keys() and "2 U-Nets of other seeds a way" in page
    gain = numbers["overall"]["translated"]["value"] - numbers["overall"]["fitted noise"]["value"]
    assert numbers["gains"]["translated"]["value"] == pytest.approx(gain) and "over fitted noise" in printed
    # At the least dose the likelihood is right in about nine of ten cases, at a hundred times as much always.
    bound = np.array(numbers["telling"]["bound"])
    np.testing.assert_allclose(bound.sum(2), 1.0)
    np.testing.assert_array_equal(bound[-1], np.eye(3))
