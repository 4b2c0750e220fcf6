"""Focal series: sheets with every defect, the wave behind them, noise, networks, and the way back to the columns."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from scipy import ndimage

from flatscope.app.cli import run
from flatscope.electron import focal
from flatscope.electron.columns import ColumnParams, find_columns
from flatscope.electron.drawing.noise import (
    NoiseParams,
    count_electrons,
    fit_noise,
    measure_ratios,
    scan,
    simulate_again,
)
from flatscope.electron.drawing.specimens import draw_contents, draw_optics, draw_specimen
from flatscope.electron.kinds import FIRST, OTHER, PART, SECOND, UNKNOWN, list_defects
from flatscope.electron.lattice import NoLatticeError, find_lattice
from flatscope.electron.physics.beam import find_phase, find_wavelength
from flatscope.electron.physics.crystals import (
    NUMBERS,
    Sheet,
    SheetParams,
    build_sheet,
    find_crystal,
)
from flatscope.electron.physics.imaging import ScanParams, SeriesParams, draw_adf, draw_series
from flatscope.electron.physics.vibrations import count_neighbours, find_amplitudes, read_amplitudes
from flatscope.evaluation.series import bound_single, draw_test, evaluate_series, expose, score
from flatscope.files.read import read, read_stack
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, MicrographError, Stack

MOS2 = find_crystal("MoS2")


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load("columns", task="columns", threads=1)


def specimen(
    *, dose: float = 2e4, pixel_nm: float = 0.0125, side: int = 320, drift: float = 0.0, **contents: Any
) -> Any:
    """A series under a plain microscope."""
    optics = SeriesParams(
        pixel_nm,
        spherical_um=-5.0,
        astigmatism_nm=0.5,
        dose_e_per_a2=dose,
        mtf=(0.5, 2.0),
        drift_nm=(drift, -drift),
    )
    rng = np.random.default_rng(4)
    params = SheetParams("MoS2", turn_deg=11.0, **contents)
    return draw_specimen(rng, params, optics, shape=(side, side))


def as_stack(drawn: Any, **changes: Any) -> Stack:
    calibration = Calibration((drawn.optics.pixel_nm,) * 2, "user")
    return Stack(changes.pop("frames", drawn.images), calibration, source="series", **changes)


# --- sheets ----------------------------------------------------------------------------------------------------------


def test_defects_are_listed_by_their_usual_names() -> None:
    params = SheetParams(
        "MoS2",
        (9.0, 9.0),
        vacancies={"first": 0.02, "one": 0.05, "both": 0.02},
        dopant="W",
        dopant_share=0.02,
        second_dopant="O",
        second_share=0.03,
        antisites=0.02,
        adatom="C",
        adatoms_per_nm2=0.1,
    )
    built = build_sheet(np.random.default_rng(0), params)
    kinds = {defect.kind for defect in list_defects(built, "MoS2")}
    assert kinds == {"V_Mo", "V_S", "V_S2", "W_Mo", "O_S", "S_Mo", "Mo_S2", "C"}
    atoms = {"Mo": 1, "S2": 2, "S": 1, "": 0, "W": 1, "OS": 2, "C": 1}
    assert len(built.numbers) == sum(atoms[str(name)] for name in built.species)
    assert list_defects(build_sheet(np.random.default_rng(0)), "MoS2") == []


def test_holes_edges_and_grains_leave_a_crystal_everywhere_else() -> None:
    whole = build_sheet(np.random.default_rng(1), SheetParams(field_nm=(8.0, 8.0)))
    cut = build_sheet(
        np.random.default_rng(1), SheetParams(field_nm=(8.0, 8.0), edge=True, holes=2, hole_nm=0.8)
    )
    assert 0.15 < len(cut.sites_nm) / len(whole.sites_nm) < 0.85
    two = build_sheet(np.random.default_rng(1), SheetParams(field_nm=(8.0, 8.0), grain_deg=25.0))
    from scipy.spatial import cKDTree

    gap = cKDTree(two.sites_nm).query(two.sites_nm, k=2)[0][:, 1]
    assert 0.93 < len(two.sites_nm) / len(whole.sites_nm) < 1.02
    assert gap.min() > 0.4 * MOS2.lattice_nm and np.median(gap) == pytest.approx(
        MOS2.lattice_nm / 3**0.5, rel=1e-3
    )


def test_tilt_support_twist_and_dirt_add_atoms_where_they_belong() -> None:
    flat = build_sheet(np.random.default_rng(2), SheetParams())
    tilted = build_sheet(np.random.default_rng(2), SheetParams(tilt_deg=10.0, tilt_axis_deg=90.0))
    apart = np.ptp(tilted.positions_nm[:, 2]) - np.ptp(flat.positions_nm[:, 2]) * np.cos(np.deg2rad(10.0))
    assert apart == pytest.approx(5.0 * np.sin(np.deg2rad(10.0)), rel=0.08)
    carried = build_sheet(np.random.default_rng(2), SheetParams(support="graphene"))
    carbon = carried.numbers == NUMBERS["C"]
    assert carbon.sum() / 25.0 == pytest.approx(38.2, rel=0.03)  # atoms of graphene a nm²
    assert carried.positions_nm[carbon, 2].max() < flat.positions_nm[:, 2].min() - 0.3
    twisted = build_sheet(np.random.default_rng(2), SheetParams(twist_deg=7.0))
    assert len(twisted.numbers) == pytest.approx(2 * len(flat.numbers), rel=0.02)
    dirty = build_sheet(np.random.default_rng(2), SheetParams(patches=2))
    assert 0 < dirty.buried.sum() < len(dirty.sites_nm)
    assert dirty.positions_nm[dirty.numbers == NUMBERS["C"], 2].min() > flat.positions_nm[:, 2].max()


def test_loose_atoms_move_more() -> None:
    table = {(row.material, row.element, row.neighbours): row.in_plane_nm for row in read_amplitudes()}
    assert table["MoS2", "S", 2] > 1.1 * table["MoS2", "S", 3]
    assert table["MoS2", "Mo", 4] > 1.1 * table["MoS2", "Mo", 6]
    perfect = build_sheet(np.random.default_rng(0), SheetParams(field_nm=(4.0, 4.0)))
    lacking = build_sheet(np.random.default_rng(0), SheetParams(field_nm=(4.0, 4.0), vacancies={"both": 0.2}))
    inner = ((perfect.positions_nm[:, :2] > 0.5) & (perfect.positions_nm[:, :2] < 3.5)).all(1)
    counts = count_neighbours(perfect, MOS2)[inner]
    assert set(counts[perfect.numbers[inner] == 42]) == {6} and set(counts[perfect.numbers[inner] == 16]) == {
        3
    }
    spread, other = (
        find_amplitudes(sheet, "MoS2")[sheet.numbers == 42].mean() for sheet in (perfect, lacking)
    )
    assert other > spread
    hot = find_amplitudes(perfect, "MoS2", temperature_k=1200.0)
    np.testing.assert_allclose(hot, 2.0 * find_amplitudes(perfect, "MoS2"))


# --- images ----------------------------------------------------------------------------------------------------------


def test_the_beam_keeps_its_electrons_and_obeys_the_lens() -> None:
    """A weak atom's image turns round where the lens's phase does; what scatters is not lost."""
    assert find_wavelength(50.0) == pytest.approx(5.355e-3, rel=1e-3)
    # At rest mass and by Born, phase and scattering factor at zero angle: carbon's f(0) = 2.46 Å (Lobato).
    wave = find_phase(6, np.zeros(1), voltage_kv=50.0)[0]
    assert wave == pytest.approx(0.1 * 2.46 * find_wavelength(50.0) * (1 + 50.0 / 511.0), rel=0.05)
    one = Sheet(
        np.array([6]), np.array([[1.6, 1.6, 0.0]]), np.zeros((1, 2)), np.zeros(1, int), np.array(["C"])
    )
    plain = SeriesParams(0.0125, spherical_um=0.0, spread_nm=0.0, blur_nm=0.0, defocus_nm=(-5.0, 0.0, 5.0))
    under, focus, over = draw_series(one, plain, shape=(256, 256))
    assert all(image.mean() == pytest.approx(1.0, abs=2e-4) for image in (under, focus, over))
    contrast = [image[128, 128] - 1.0 for image in (under, focus, over)]
    assert contrast[0] * contrast[2] < 0 and abs(contrast[1]) < 0.3 * min(abs(contrast[0]), abs(contrast[2]))


def test_a_shifted_sheet_makes_a_shifted_image_on_any_pixels() -> None:
    drawn = specimen(vacancies={"one": 0.1})
    moved = replace(drawn.sheet, positions_nm=drawn.sheet.positions_nm + np.array([0.05, 0.0, 0.0]))
    images, others = (draw_series(sheet, drawn.optics, shape=(320, 320)) for sheet in (drawn.sheet, moved))
    np.testing.assert_allclose(others[:, 80:240, 80:240], images[:, 76:236, 80:240], atol=2e-3)
    fine = draw_series(drawn.sheet, replace(drawn.optics, pixel_nm=0.00625), shape=(640, 640))
    np.testing.assert_allclose(fine[:, ::2, ::2], images, atol=2e-3)


@pytest.mark.multislice
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("support", ["", "graphene"])
def test_the_fast_series_is_that_of_multislice(support: str) -> None:
    pytest.importorskip("abtem")
    from flatscope.evaluation.imaging import compare_series

    found = compare_series(support, phonons=20)
    assert found.rms < 0.1 and found.ratio > 10.0


@pytest.mark.multislice
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_fast_scan_is_that_of_prism() -> None:
    pytest.importorskip("abtem")
    from flatscope.evaluation.imaging import compare_adf

    found = compare_adf("MoS2")
    assert found.rms < 0.05 and found.ratio > 1000.0
    assert all(abs(value - 1.0) < 0.05 for value in found.sites.values()) and set(found.sites) == {
        "Mo",
        "S",
        "S2",
    }


# --- noise -----------------------------------------------------------------------------------------------------------


def test_counting_noise_is_poisson_and_the_detector_smooths_it() -> None:
    rng = np.random.default_rng(0)
    counts = count_electrons(rng, np.ones((1, 256, 256)), electrons_per_px=9.0)
    assert counts.mean() == pytest.approx(9.0, rel=0.01) and counts.var() == pytest.approx(9.0, rel=0.03)
    smooth = count_electrons(rng, np.ones((1, 256, 256)), electrons_per_px=9.0, mtf=(0.3, 2.0))
    assert smooth.mean() == pytest.approx(9.0, rel=0.01) and smooth.var() < 4.0


def test_noise_that_was_put_in_is_measured() -> None:
    sheet = build_sheet(np.random.default_rng(0), SheetParams(field_nm=(6.4, 6.4), turn_deg=9.0))
    clean = draw_adf(sheet, ScanParams(pixel_nm=0.02), shape=(320, 320))
    clean *= 40.0 / clean.mean()
    given = NoiseParams(gain=2.0, lag=0.25, jitter_px=0.1)
    image, _ = scan(np.random.default_rng(1), clean, given)
    found = fit_noise(image)
    assert found.lag == pytest.approx(0.25, abs=0.08)
    assert found.jitter_px == pytest.approx(0.1, rel=0.25)
    assert found.gain == pytest.approx(2.0, rel=0.3)
    again = simulate_again(np.random.default_rng(2), image, found)
    assert measure_ratios(again)[0] == pytest.approx(measure_ratios(image)[0], rel=0.2)
    still = scan(np.random.default_rng(3), clean, replace(given, jitter_px=0.0))[0]
    assert fit_noise(still).jitter_px < 0.02
    even = scan(np.random.default_rng(3), clean, NoiseParams(gain=2.0))[0]
    assert measure_ratios(even) == pytest.approx((1.0, 1.0), abs=0.15)
    with pytest.raises(ValueError, match="there is no noise"):
        fit_noise(np.ones((80, 80)))


@pytest.mark.real
@pytest.mark.parametrize(
    "name", ["wse2_ti/ti_wse2_adf1.dm4", "wse2_ti/ti_wse2_adf2.dm4", "mos2/mos2_haadf.npy"]
)
def test_real_scans_have_their_ratio_again(real_data: Path, name: str) -> None:
    if name.endswith("dm4"):
        pytest.importorskip("rsciio")
    image = np.asarray(read(real_data / "electron" / name, modality="electron").pixels, float)
    noise = fit_noise(image)
    again = np.mean(
        [measure_ratios(simulate_again(np.random.default_rng(i), image, noise)) for i in range(3)], axis=0
    )
    assert again[0] == pytest.approx(measure_ratios(image)[0], rel=0.2)


def test_drift_and_flyback_take_the_labels_along() -> None:
    places = np.array([[30.0, 10.0], [60.0, 40.0], [100.0, 80.0]])
    clean = np.zeros((128, 128))
    clean[tuple(places.astype(int).T)] = 1.0
    clean = 5e4 * ndimage.gaussian_filter(clean, 2.0)
    noise = NoiseParams(gain=1.0, drift_px=(4.0, -6.0), flyback_px=3.0, flyback_cols=15.0)
    image, moved = scan(np.random.default_rng(0), clean, noise, sites_px=places)
    assert np.hypot(*(moved - places).T).max() > 2.0
    for row, col in moved:
        top, left = int(row) - 6, int(col) - 6
        part = image[top : top + 13, left : left + 13]
        centre = ndimage.center_of_mass(part)
        np.testing.assert_allclose((top + centre[0], left + centre[1]), (row, col), atol=0.15)


# --- from series to columns ------------------------------------------------------------------------------------------


def test_resampling_keeps_counts_and_places() -> None:
    rows, cols = np.mgrid[:220, :220].astype(float)
    image = np.exp(-0.5 * ((rows - 101.3) ** 2 + (cols - 87.7) ** 2) / 36.0)
    for factor in (2.3, 0.8):
        small = focal.resample(image[None], factor)[0]
        place = np.array(ndimage.center_of_mass(small))
        np.testing.assert_allclose((place + 0.5) * factor - 0.5, (101.3, 87.7), atol=0.02)
        assert small.sum() * factor**2 == pytest.approx(image.sum(), rel=0.01)


def test_marked_pixels_point_to_their_column() -> None:
    drawn = specimen(vacancies={"one": 0.2}, patches=1)
    truth = focal.mark_columns(drawn.sheet, MOS2, shape=(160, 160))
    rows, cols = np.nonzero((truth[..., 0] > 0) & (truth[..., 0] != UNKNOWN))
    there = np.stack([rows + truth[rows, cols, 1], cols + truth[rows, cols, 2]], axis=1) * focal.PIXEL_NM
    from scipy.spatial import cKDTree

    gap, site = cKDTree(drawn.sheet.sites_nm).query(there)
    assert gap.max() < 1e-4
    names = np.array(["", "Mo", "S2", "S"])
    assert (names[truth[rows, cols, 0].astype(int)] == drawn.sheet.species[site]).all()


def test_a_series_gives_its_columns_back(network: Network) -> None:
    drawn = specimen(vacancies={"one": 0.08, "both": 0.03}, holes=1)
    table = find_columns(as_stack(drawn), ColumnParams("MoS2", defocus_nm=(-3.0, 2.0, 7.0)), network=network)
    found = table.found
    names = {"Mo": FIRST, "S2": SECOND, "S": PART}
    kinds = np.array([names.get(str(name), OTHER) for name in found["species"]])
    places = found[["row_px", "col_px"]].to_numpy(float) * drawn.optics.pixel_nm
    sigma = found["sigma_px"].to_numpy(float) * drawn.optics.pixel_nm
    counts = score(drawn, MOS2, places, kinds, sigma_nm=sigma)
    assert counts.true > 300 and counts.f1 > 0.97
    assert 2.0 * counts.part_right / (counts.part_found + counts.part_true) > 0.85
    assert counts.squared_nm2 < counts.stated_nm2 < 4.0 * counts.squared_nm2
    assert table.calibration.pixel_size_nm[0] == pytest.approx(0.0125, rel=0.01)
    assert table.provenance.notes == () and table.provenance.weights == "columns"
    single = found.loc[found["species"] == "S", "intensity"].median()
    assert 0.2 < single < 0.8 and found.loc[found["species"] == "S2", "intensity"].median() == pytest.approx(
        1.0, abs=0.1
    )


def test_order_pixels_and_drift_are_taken_care_of(network: Network) -> None:
    drawn = specimen()
    params = ColumnParams("MoS2", defocus_nm=(-3.0, 2.0, 7.0))
    plain = find_columns(as_stack(drawn), params, network=network).found
    turned = as_stack(drawn, frames=drawn.images[::-1])
    other = find_columns(turned, replace(params, defocus_nm=(7.0, 2.0, -3.0)), network=network).found
    pd.testing.assert_frame_equal(plain, other)
    unknown = find_columns(replace(as_stack(drawn), calibration=None), params, network=network)
    assert any("as the file states none" in note for note in unknown.provenance.notes)
    assert len(unknown.found) == pytest.approx(len(plain), rel=0.02)
    moving = find_columns(as_stack(specimen(drift=0.03)), params, network=network)
    assert any("moved onto each other" in note for note in moving.provenance.notes)
    apart = find_columns(as_stack(specimen(drift=0.06)), params, network=network)
    assert any("align them" in note for note in apart.provenance.notes)
    assert not (apart.frame["status"] == "accepted").any()
    beyond = find_columns(as_stack(drawn), replace(params, defocus_nm=(-30.0, 20.0, 70.0)), network=network)
    assert any("lies outside" in note for note in beyond.provenance.notes)


def noise_alone() -> np.ndarray:
    return ndimage.gaussian_filter(
        np.random.default_rng(0).poisson(50.0, (3, 240, 240)).astype(float), (0, 2, 2)
    )


@pytest.mark.parametrize(
    ("change", "params", "words"),
    [
        (lambda frames: frames[:2], ColumnParams("MoS2"), "holds 2 images, a focal series has 3"),
        (
            lambda frames: frames,
            ColumnParams("MoS2", defocus_nm=(1.0, 2.0)),
            "2 values of defocus for 3 images",
        ),
        (lambda frames: frames, ColumnParams("WSe2"), "know MoS2, not WSe2"),
        (lambda frames: np.minimum(frames, np.quantile(frames, 0.9)), ColumnParams("MoS2"), "are saturated"),
        (lambda frames: frames - frames.mean(), ColumnParams("MoS2"), "background not subtracted"),
        (
            lambda frames: frames * [[[1.0]], [[0.0]], [[1.0]]],
            ColumnParams("MoS2"),
            "all pixels of image 2 are 0",
        ),
        (lambda _: noise_alone(), ColumnParams("MoS2"), "no lattice"),
    ],
)
def test_series_that_cannot_be_read_say_why(
    network: Network, change: Any, params: ColumnParams, words: str
) -> None:
    drawn = specimen(side=240)
    with pytest.raises(MicrographError, match=words):
        find_columns(as_stack(drawn, frames=change(drawn.images)), params, network=network)


def test_a_small_crystal_at_the_rim_is_found_and_filtered_noise_is_not() -> None:
    rows, cols = np.mgrid[:300, :300]
    waves = [
        np.cos(2 * np.pi * 0.06 * (np.sin(a) * rows + np.cos(a) * cols)) for a in np.deg2rad([10, 70, 130])
    ]
    image = np.random.default_rng(0).normal(size=(300, 300)) + 2.0 * sum(waves) * (rows < 60)
    assert find_lattice(image).constant_px == pytest.approx(2.0 / np.sqrt(3.0) / 0.06, rel=0.02)
    for seed in range(6):
        smooth = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(240, 240)), (3.0, 3.5))
        with pytest.raises(NoLatticeError):
            find_lattice(smooth, expected_px=25.0)


def test_neighbours_settle_what_the_network_leaves_open() -> None:
    sheet = build_sheet(np.random.default_rng(0), SheetParams(field_nm=(5.0, 5.0)))
    rng = np.random.default_rng(1)
    p = np.full((len(sheet.sites_nm), 5), 0.02)
    p[np.arange(len(p)), 1 + sheet.sublattice] = 0.6
    p[np.arange(len(p)), 2 - sheet.sublattice] = 0.34
    wrong = rng.random(len(p)) < 0.3
    p[wrong] = p[wrong][:, [0, 2, 1, 3, 4]]
    reading = focal.Reading(sheet.sites_nm / focal.PIXEL_NM, np.full(len(p), 0.2), p, np.zeros((len(p), 3)))
    sublattice, settled = focal.settle_sublattices(reading)
    assert (sublattice == sheet.sublattice).mean() > 0.99
    np.testing.assert_allclose(settled.sum(1), 1.0)
    # One that is surely on the wrong site stays what it is.
    middle = int(np.argmin(np.hypot(*(sheet.sites_nm - 2.5).T)))
    p[middle] = (
        [0.0, 0.001, 0.999, 0.0, 0.0] if sheet.sublattice[middle] == 0 else [0.0, 0.999, 0.001, 0.0, 0.0]
    )
    _, settled = focal.settle_sublattices(replace(reading, p=p))
    assert settled[middle].argmax() == p[middle].argmax()


def test_the_bound_grows_with_dose_and_the_network_does_not_beat_it() -> None:
    bounds = [bound_single(0.05, dose, 0.1) for dose in (1e2, 1e3, 1e4, 1e5)]
    assert bounds == sorted(bounds) and bounds[0] < 0.3 and bounds[-1] > 0.999
    (low, high, *_) = evaluate_series(doses=(1e2, 1e4), series=2, seed=3, exact=False)
    assert low.f1.value < high.f1.value and low.single.value <= low.bound + 0.1
    assert high.model == "fast model" and high.columns > 300


def test_tests_are_the_same_series_at_every_dose() -> None:
    drawn, _ = draw_test("MoS2", "bare", 0, seed=1, exact=False)
    again, _ = draw_test("MoS2", "bare", 0, seed=1, exact=False)
    np.testing.assert_array_equal(drawn.images, again.images)
    counted = expose(np.random.default_rng(0), drawn, 1e3)
    assert counted.images.mean() == pytest.approx(
        1e3 * (10 * drawn.optics.pixel_nm) ** 2 / 3 * drawn.mean.mean(), rel=0.02
    )


# --- training --------------------------------------------------------------------------------------------------------


def test_turned_copies_still_point_to_their_columns() -> None:
    pytest.importorskip("torch")
    from flatscope.training import columns

    series = columns.draw_all(2, side=64, material="MoS2", seed=3, workers=1)
    images, truth = series.images[1], series.truth[1]
    ends = set()
    for seed in range(12):
        turned, marked = columns.turn(np.random.default_rng(seed), images, truth)
        rows, cols = np.nonzero((marked[..., 0] > 0) & (marked[..., 0] < UNKNOWN))
        down, right = (marked[rows, cols, axis].astype(float) for axis in (1, 2))
        # All pixels of a column point to the same place, or nearly so in half precision.
        places = np.round(np.stack([rows + down, cols + right], axis=1) * 4.0) / 4.0
        assert len(np.unique(places, axis=0)) < 0.2 * len(places)
        assert turned.shape == images.shape
        ends.add(turned.tobytes())
    assert len(ends) > 4


def test_the_loss_is_least_where_the_truth_is() -> None:
    torch = pytest.importorskip("torch")
    from flatscope.training.nets.columnnet import ColumnNet
    from flatscope.training.nets.flakenet import FlakeNet

    net = ColumnNet(FlakeNet(outputs=8, widths=(4, 8)))
    truth = torch.zeros(1, 8, 8, 3)
    truth[0, 2:5, 2:5, 0] = 2.0
    truth[0, 2:5, 2:5, 1] = 0.5
    truth[0, 6, 6, 0] = float(UNKNOWN)
    answers = torch.zeros(1, 8, 8, 8)
    answers[0, 0], answers[0, 2, 2:5, 2:5], answers[0, 0, 2:5, 2:5] = 6.0, 6.0, 0.0
    answers[0, 5, 2:5, 2:5] = 0.5
    answers[0, 7] = -2.0
    best = float(net.loss(answers, truth))
    ignored = answers.clone()
    ignored[0, :, 6, 6] = 9.0
    assert float(net.loss(ignored, truth)) == pytest.approx(best)
    for channel, change in ((2, -6.0), (5, 1.0), (7, 2.5)):
        worse = answers.clone()
        worse[0, channel, 2:5, 2:5] += change
        assert float(net.loss(worse, truth)) > best + 0.01


def test_a_network_for_another_material_is_trained_and_used(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\nseed = 1\nscenes_train = 8\nscenes_val = 2\nepochs = 1\nbatch = 4\nlr = 1e-3\n'
        'schedule = "poly"\n[columns]\nscene_px = 32\nwidths = [4, 8]\n'
    )
    command = ["train", str(recipe), "--out", str(tmp_path / "out"), "--workers", "1", "--material", "wse2"]
    assert run(command) == 0
    assert "pixels of first" in capsys.readouterr().out
    net = Network.load(tmp_path / "out" / "tiny.onnx", task="columns")
    assert net.card.material == "WSe2" and net.card.pixel_size_nm == focal.PIXEL_NM
    with pytest.raises(MicrographError, match="know WSe2, not MoS2"):
        find_columns(as_stack(specimen(side=240)), ColumnParams("MoS2"), network=net)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_study_of_focal_series_runs(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    assert run(["reproduce", "larsen2021", "--quick", "--out", str(tmp_path), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert {(line["support"], line["method"]) for line in numbers[:-1]} == {
        (support, method) for support in ("bare", "graphene") for method in ("MSD-net", "U-Net", "flatscope")
    }
    ours = [line["f1"]["value"] for line in numbers[:-1] if line["method"] == "flatscope"]
    assert min(ours) > 0.8 and numbers[-1]["faster"] > 4.0
    assert (tmp_path / "larsen2021.html").read_text("utf-8").count("<img") == 3


# --- files and commands ----------------------------------------------------------------------------------------------


def test_stacks_are_read_from_arrays_pages_and_mrc(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).poisson(20.0, (3, 40, 50)).astype(np.float32)
    np.save(tmp_path / "first.npy", frames)
    np.save(tmp_path / "last.npy", np.moveaxis(frames, 0, 2))
    tifffile.imwrite(tmp_path / "pages.tif", frames, photometric="minisblack")
    import mrcfile

    with mrcfile.new(tmp_path / "stack.mrc") as stream:
        stream.set_data(frames)
        stream.voxel_size = 0.12
    for name in ("first.npy", "last.npy", "pages.tif", "stack.mrc"):
        stack = read_stack(tmp_path / name)
        np.testing.assert_array_equal(stack.frames, frames)
    assert stack.calibration is not None and stack.calibration.pixel_size_nm[0] == pytest.approx(0.012)
    np.save(tmp_path / "nan.npy", np.where(frames > 35, np.nan, frames))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "first.npy").read_bytes()[:5000])
    for name, words in (("nan.npy", "NaN"), ("cut.npy", "truncated"), ("gone.npy", "no such file")):
        with pytest.raises(MicrographError, match=words):
            read_stack(tmp_path / name)


def test_series_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    """One file of three images, three files of one, and a broken one among them."""
    drawn = specimen(side=240)
    np.save(tmp_path / "series.npy", drawn.images)
    for number, image in enumerate(drawn.images):
        tifffile.imwrite(tmp_path / f"focus{number}.tif", image)
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY nonsense")
    options = ["--modality", "hrtem", "--material", "MoS2", "--nm-per-px", "0.0125", "--defocus-nm=-3,2,7"]
    one = [str(tmp_path / name) for name in ("series.npy", "broken.npy")]
    assert run(["atoms", *one, *options, "--out", str(tmp_path / "one")]) == 1
    assert "broken.npy" in capsys.readouterr().err
    three = [str(tmp_path / f"focus{number}.tif") for number in range(3)]
    assert run(["atoms", *three, *options, "--out", str(tmp_path / "three")]) == 0
    tables = [pd.read_csv(tmp_path / name / "columns.csv") for name in ("one", "three")]
    tables = [table[table["status"] != "failed"] for table in tables]
    pd.testing.assert_frame_equal(*(table.drop(columns="image") for table in tables), check_dtype=False)
    assert {"Mo", "S2"} <= set(tables[0]["species"])
    assert (tmp_path / "one" / "series.columns.png").is_file() and (tmp_path / "one" / "series.xyz").is_file()
    record = json.loads((tmp_path / "one" / "run.json").read_text())
    assert record["weights"]["name"] == "columns"
    tifffile.imwrite(tmp_path / "focus2.tif", drawn.images[2, :-8])
    assert run(["atoms", *three, *options, "--out", str(tmp_path / "bad")]) == 2
    assert "of one size" in capsys.readouterr().err
    assert run(["atoms", one[0], *options[:-1], "--defocus-nm", "a,b", "--out", str(tmp_path / "bad")]) == 2


@pytest.mark.parametrize("modality", ["hrtem", "stem"])
def test_data_sets_follow_from_their_seed_for_any_number_of_workers(tmp_path: Path, modality: str) -> None:
    h5py = pytest.importorskip("h5py")
    for name, workers in (("a", "1"), ("b", "2")):
        command = ["simulate", modality, "-n", "3", "--seed", "5", "--quick", "--workers", workers]
        assert run([*command, "--out", str(tmp_path / name)]) == 0
    with h5py.File(tmp_path / "a" / "data.h5") as one, h5py.File(tmp_path / "b" / "data.h5") as other:
        images, masks = one["images"][:], one["masks"][:]
        np.testing.assert_array_equal(images, other["images"][:])
        assert images.shape == (3, 3 if modality == "hrtem" else 1, 64, 64)
        pixel_nm = float(one.attrs["pixel_nm"])
    columns = pd.read_csv(tmp_path / "a" / "columns.csv", keep_default_na=False)
    known = columns[columns["species"].isin(["Mo", "S2", "S"]) & (columns["buried"] == False)]  # noqa: E712
    row, col = (np.clip(np.rint(known[name] / pixel_nm).astype(int), 0, 63) for name in ("row_nm", "col_nm"))
    marked = masks[known["item"], row, col]
    assert np.mean(marked == known["species"].map({"Mo": 1, "S2": 2, "S": 3})) > 0.9
    assert {"kind", "row_nm", "col_nm", "item"} == set(pd.read_csv(tmp_path / "a" / "defects.csv").columns)
    assert len((tmp_path / "a" / "params.jsonl").read_text().splitlines()) == 3


def test_a_data_set_that_is_cut_off_keeps_what_is_finished_and_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    h5py = pytest.importorskip("h5py")
    from flatscope.runs import simulate

    draw = simulate.draw_item
    drawn: list[int] = []

    def stop(item: Any, order: Any) -> Any:
        if item.given == 2:
            raise KeyboardInterrupt
        return draw(item, order)

    def note(item: Any, order: Any) -> Any:
        drawn.append(item.given)
        return draw(item, order)

    command = ["simulate", "hrtem", "-n", "4", "--quick", "--out"]
    monkeypatch.setattr(simulate, "draw_item", stop)
    assert run([*command, str(tmp_path / "cut")]) == 130
    with h5py.File(tmp_path / "cut" / "data.h5") as store:
        assert len(store["images"]) == len(store["masks"]) == 2
    assert set(pd.read_csv(tmp_path / "cut" / "columns.csv")["item"]) <= {0, 1}
    assert len((tmp_path / "cut" / "params.jsonl").read_text().splitlines()) == 2
    monkeypatch.setattr(simulate, "draw_item", note)
    assert run([*command, str(tmp_path / "cut")]) == run([*command, str(tmp_path / "whole")]) == 0
    assert drawn == [2, 3, 0, 1, 2, 3]
    for name in ("data.h5", "columns.csv", "defects.csv", "params.jsonl", "run.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_multislice_without_abtem_is_one_line_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from flatscope.app.commands import simulate

    monkeypatch.setattr(simulate, "find_spec", lambda name: None if name == "abtem" else name)
    assert run(["simulate", "hrtem", "-n", "4", "--quick", "--exact", "--out", str(tmp_path / "out")]) == 2
    assert (
        capsys.readouterr().err == "flatscope: multislice needs abTEM: pip install 'flatscope[multislice]'\n"
    )
    assert not (tmp_path / "out").exists()


def test_measured_noise_goes_into_drawn_scans(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("h5py")
    rows, cols = np.mgrid[:160, :160]
    image, _ = scan(
        np.random.default_rng(0), 60.0 + 30.0 * np.cos(rows + 0.6 * cols), NoiseParams(gain=1.0, lag=0.2)
    )
    np.save(tmp_path / "scan.npy", image)
    assert run(["fit-noise", str(tmp_path / "scan.npy"), "--out", str(tmp_path / "noise.json")]) == 0
    assert "drawn again" in capsys.readouterr().out
    command = ["simulate", "stem", "-n", "2", "--quick", "--noise", str(tmp_path / "noise.json")]
    assert run([*command, "--out", str(tmp_path / "set")]) == 0
    used = json.loads((tmp_path / "set" / "params.jsonl").read_text().splitlines()[0])["noise"]
    assert used["lag"] == pytest.approx(fit_noise(image).lag)
    (tmp_path / "noise.json").write_text("{}")
    assert run([*command, "--out", str(tmp_path / "set")]) == 2


def test_specimens_cover_what_they_should() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_contents(rng, "MoS2", field_nm=(5.0, 5.0)) for _ in range(200)]
    for name in ("holes", "edge", "grain_deg", "tilt_deg", "patches", "antisites", "dopant_share"):
        share = np.mean([bool(getattr(one, name)) for one in drawn])
        assert 0.05 < share < 0.75, name
    doses = [draw_optics(rng, pixel_nm=0.025).dose_e_per_a2 for _ in range(200)]
    assert min(doses) < 3e2 and max(doses) > 3e4
