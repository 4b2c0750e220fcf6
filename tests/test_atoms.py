"""Atomic columns: sheets and images with known truth, the lattice, the fit, and everything that is no lattice."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import fft, ndimage

from flatscope.app.cli import run
from flatscope.electron.columns import ColumnParams, find_brighter, find_columns
from flatscope.electron.fitting import fit_columns
from flatscope.electron.lattice import NoLatticeError, find_lattice, map_phases, measure_strain, place_sites
from flatscope.electron.levelling import blur
from flatscope.electron.physics.crystals import (
    CRYSTALS,
    NUMBERS,
    Sheet,
    SheetParams,
    build_sheet,
    find_crystal,
)
from flatscope.electron.physics.detector import find_spot, open_probe
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.evaluation.columns import evaluate_labels, evaluate_localisation, match_points
from flatscope.files.read import read
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.optical.materials import MATERIALS
from flatscope.results import COLUMN_COLUMNS, column_names

PIXEL_NM, SIDE = 0.02, 200


def sheet(material: str = "WSe2", *, turn: float = 10.0, **defects: Any) -> Sheet:
    field = (SIDE * PIXEL_NM, SIDE * PIXEL_NM)
    return build_sheet(np.random.default_rng(3), SheetParams(material, field, turn_deg=turn, **defects))


HIGH = ScanParams(PIXEL_NM, voltage_kv=200.0, convergence_mrad=22.0, collection_mrad=(80.0, 250.0))
ALIKE = ScanParams(PIXEL_NM, collection_mrad=(70.0, 200.0))
MEDIUM = ScanParams(PIXEL_NM, collection_mrad=(50.0, 120.0))
"""Detectors that see tungsten brighter than a pair of selenium atoms, as bright, and less bright."""


def picture(
    crystal: Sheet, optics: ScanParams = HIGH, *, electrons: float = 100.0, seed: int = 1
) -> np.ndarray:
    image = draw_adf(crystal, optics, shape=(SIDE, SIDE))
    mean = np.maximum(image / image.mean() * electrons, 0.0)
    return np.random.default_rng(seed).poisson(mean).astype(np.float32)


def as_micrograph(image: np.ndarray, pixel_nm: float | None = PIXEL_NM) -> Micrograph:
    calibration = None if pixel_nm is None else Calibration((pixel_nm, pixel_nm), "file")
    return Micrograph(image, full_scale=float(image.max()) or 1.0, calibration=calibration, source="scan")


# --- sheets and their images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CRYSTALS)
def test_sheets_have_the_crystals_density_and_distances(name: str) -> None:
    crystal, built = find_crystal(name), sheet(name)
    area = crystal.lattice_nm**2 * np.sqrt(3.0) / 2.0
    assert len(built.sites_nm) == pytest.approx(2.0 * (SIDE * PIXEL_NM) ** 2 / area, rel=0.03)
    atoms = crystal.first[1] + crystal.second[1]
    assert len(built.numbers) == pytest.approx(0.5 * atoms * len(built.sites_nm), rel=0.03)
    middle = np.argmin(np.hypot(*(built.sites_nm - 0.5 * SIDE * PIXEL_NM).T))
    gap = np.hypot(*(built.sites_nm - built.sites_nm[middle]).T)
    near = np.argsort(gap)[1:4]
    np.testing.assert_allclose(gap[near], crystal.lattice_nm / np.sqrt(3.0))
    assert (built.sublattice[near] != built.sublattice[middle]).all()
    if name in MATERIALS:
        assert MATERIALS[name].lattice_nm == pytest.approx(crystal.lattice_nm, rel=2e-3)


def test_defects_come_in_the_shares_asked_for() -> None:
    params = SheetParams(
        "MoS2",
        (30.0, 30.0),
        vacancies={"first": 0.02, "one": 0.1, "both": 0.05},
        dopant="V",
        dopant_share=0.1,
    )
    built = build_sheet(np.random.default_rng(0), params)
    metal, pairs = built.species[built.sublattice == 0], built.species[built.sublattice == 1]
    assert np.mean(metal == "") == pytest.approx(0.02, abs=0.01)
    assert np.mean(metal == "V") == pytest.approx(0.098, abs=0.02)
    assert np.mean(pairs == "S") == pytest.approx(0.1, abs=0.02) and np.mean(pairs == "") == pytest.approx(
        0.05, abs=0.015
    )
    atoms = 2 * (pairs == "S2").sum() + (pairs == "S").sum()
    assert (built.numbers == NUMBERS["S"]).sum() == atoms
    with pytest.raises(ValueError, match="vacancies of kind three"):
        SheetParams(vacancies={"three": 0.1})
    with pytest.raises(ValueError, match="unknown element 'Xx'"):
        SheetParams(dopant="Xx")


def test_an_image_holds_what_the_atoms_scatter() -> None:
    """Heavier atoms send more, about as a power between 1.3 and 2 of Z; a pair sends more than its atoms apart do where
    the detector begins low; and each column's place is where its atoms are."""
    share = {
        number: find_spot(
            (number,), 0.0, 0.008, voltage_kv=200.0, convergence_mrad=22.0, collection_mrad=(80.0, 250.0)
        )
        for number in (6, 16, 42, 74)
    }
    cross_section = [float(transfer[0]) for _, transfer in share.values()]
    powers = np.diff(np.log(cross_section)) / np.diff(np.log([6, 16, 42, 74]))
    assert ((powers > 1.3) & (powers < 2.0)).all()
    gains = [
        find_spot((16, 16), 0.317, 0.008, voltage_kv=60.0, convergence_mrad=30.0, collection_mrad=angles)[1][
            0
        ]
        for angles in ((35.0, 200.0), (90.0, 200.0))
    ]
    assert gains[0] > 5.0 * abs(gains[1]) > 0.0
    crystal = sheet()
    image = draw_adf(crystal, HIGH, shape=(SIDE, SIDE))
    beam = (SIDE * PIXEL_NM) ** 2
    heavy = cross_section[3] * int((crystal.numbers == 74).sum()) / beam
    assert heavy < image.mean() < 2.0 * heavy
    one = Sheet(
        np.array([74]),
        np.array([[2.013, 1.486, 0.0]]),
        np.zeros((0, 2)),
        np.zeros(0, int),
        np.zeros(0, "<U1"),
    )
    spot = draw_adf(one, ScanParams(pixel_nm=PIXEL_NM), shape=(SIDE, SIDE))
    grid = np.arange(SIDE) * PIXEL_NM
    near = np.s_[85:117, 58:90]
    weight = spot[near] / spot[near].sum()
    place = (weight.sum(1) @ grid[85:117], weight.sum(0) @ grid[58:90])
    np.testing.assert_allclose(place, (2.013, 1.486), atol=6e-4)


def test_half_of_what_is_its_own_mirror_image_tells_all() -> None:
    probe = open_probe(60.0, 25.0, (50.0, 150.0))
    down, across = np.meshgrid(*(fft.fftfreq(len(probe.squared), probe.step_nm),) * 2, indexing="ij")
    one = probe.scatter(probe.find_phase(42) * np.exp(-0.1j * down))
    way = np.exp(-4.0j * probe.wavelength_nm * probe.squared)
    for even, wave in (
        ((False, True), one),
        ((True, False), one.T),
        ((True, True), probe.scatter(probe.find_phase(16))),
    ):
        whole, half = (probe.detect(wave, wave, way, even=axes) for axes in ((False, False), even))
        np.testing.assert_allclose(half, whole, rtol=1e-9)
    lopsided = probe.scatter(probe.find_phase(42) * np.exp(-0.1j * (down + across)))
    whole, half = (probe.detect(lopsided, even=axes) for axes in ((False, False), (True, True)))
    assert np.abs(half / whole - 1.0).max() > 1e-3


def test_pixels_coarser_than_the_probe_see_the_same_image() -> None:
    crystal = sheet()
    fine = draw_adf(crystal, ScanParams(pixel_nm=PIXEL_NM, source_nm=0.02), shape=(SIDE, SIDE))
    coarse = draw_adf(crystal, ScanParams(pixel_nm=3 * PIXEL_NM, source_nm=0.02), shape=(66, 66))
    fine = draw_adf(crystal, ScanParams(pixel_nm=PIXEL_NM, source_nm=0.02), shape=(198, 198))
    inner = np.s_[8:-8, 8:-8]
    difference = coarse[inner] - fine[::3, ::3][inner]
    assert np.abs(difference).max() < 0.02 * fine.max()


def test_the_wavelength_and_what_no_microscope_has() -> None:
    """60 and 300 kV: 4.87 and 1.97 pm."""
    assert ScanParams(voltage_kv=60.0).wavelength_nm == pytest.approx(4.866e-3, rel=1e-3)
    assert ScanParams(voltage_kv=300.0).wavelength_nm == pytest.approx(1.969e-3, rel=1e-3)
    with pytest.raises(ValueError, match="pixel_nm = 0 is not positive"):
        ScanParams(pixel_nm=0)
    with pytest.raises(ValueError, match="source_nm = -1 is negative"):
        ScanParams(source_nm=-1)


def test_defocus_blurs_and_astigmatism_stretches() -> None:
    one = Sheet(
        np.array([74]), np.array([[2.0, 2.0, 0.0]]), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, "<U1")
    )
    sharp, blurred, stretched = (
        draw_adf(one, ScanParams(pixel_nm=PIXEL_NM, **optics), shape=(SIDE, SIDE))
        for optics in ({}, {"defocus_nm": 10.0}, {"astigmatism_nm": 6.0, "defocus_nm": 4.0})
    )
    assert blurred.max() < 0.9 * sharp.max()
    rows, cols = (np.square(np.arange(SIDE) - 100.0) @ stretched.sum(axis) for axis in (1, 0))
    assert abs(np.log(rows / cols)) > 0.1


def test_coma_throws_a_tail_and_trefoil_three_but_columns_stay() -> None:
    one = Sheet(
        np.array([74]), np.array([[2.0, 2.0, 0.0]]), np.zeros((0, 2)), np.zeros(0, int), np.zeros(0, "<U1")
    )
    tailed, threefold = (
        draw_adf(one, ScanParams(pixel_nm=PIXEL_NM, **optics), shape=(SIDE, SIDE))
        for optics in ({"coma_nm": 500.0, "coma_deg": 0.0}, {"trefoil_nm": 300.0})
    )
    offsets = np.arange(SIDE) - 100.0
    rows, cols = (offsets**3 @ np.maximum(tailed, 0.0).sum(axis) for axis in (1, 0))
    assert abs(cols) > 20.0 * abs(rows)
    place = np.array(ndimage.center_of_mass(np.maximum(tailed - 0.3 * tailed.max(), 0.0)))
    assert np.hypot(*(place - 100.0)) * PIXEL_NM < 0.02

    def turn(degrees: float) -> np.ndarray:
        return np.asarray(ndimage.rotate(threefold[1:, 1:], degrees, reshape=False, order=3))

    same, other = (np.abs(turn(angle) - threefold[1:, 1:]).max() for angle in (120.0, 180.0))
    assert same < 0.03 * threefold.max() < 0.1 * threefold.max() < other


# --- the lattice -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("material", ["WSe2", "MoS2", "graphene", "hBN"])
@pytest.mark.parametrize("turn", [0.0, 17.0, 44.0])
def test_lattice_constant_within_half_a_percent(material: str, turn: float) -> None:
    found = find_lattice(picture(sheet(material, turn=turn), electrons=50.0))
    assert found.constant_px * PIXEL_NM == pytest.approx(find_crystal(material).lattice_nm, rel=5e-3)
    product = found.vectors @ found.reciprocal.T
    np.testing.assert_allclose(product, np.eye(2), atol=1e-9)


@pytest.mark.parametrize("shape", [(200, 300), (83, 41)])
@pytest.mark.parametrize("sigma", [3.0, 11.0, 40.0])
def test_the_fast_blur_is_the_slow_one(shape: tuple[int, int], sigma: float) -> None:
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 3.0)
    difference = blur(image, sigma) - ndimage.gaussian_filter(image, sigma)
    assert np.abs(difference).max() < 0.03 * np.abs(image).max()


def test_no_lattice_in_noise_and_none_in_a_photograph_of_dots() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(NoLatticeError, match="no lattice"):
        find_lattice(rng.poisson(5.0, (300, 300)).astype(float))
    places = rng.uniform(0, 4.0, (600, 2))
    amorphous = Sheet(
        np.full(600, 42),
        np.column_stack([places, np.zeros(600)]),
        places,
        np.zeros(600, int),
        np.full(600, "Mo"),
    )
    with pytest.raises(NoLatticeError, match="no lattice"):
        find_lattice(picture(amorphous))
    with pytest.raises(MicrographError, match=r"^scan: not periodic: no lattice"):
        find_columns(as_micrograph(picture(amorphous)), ColumnParams("MoS2"))


def test_sites_follow_a_distorted_scan_and_strain_says_by_how_much() -> None:
    """An image stretched by 2 % along its columns in one half only."""
    side = 2 * SIDE
    params = SheetParams("MoS2", (side * PIXEL_NM,) * 2, turn_deg=10.0)
    crystal = build_sheet(np.random.default_rng(3), params)
    places, edge = crystal.positions_nm.copy(), 0.5 * side * PIXEL_NM
    places[:, 1] = np.where(places[:, 1] > edge, edge + 1.02 * (places[:, 1] - edge), places[:, 1])
    bent = replace(crystal, positions_nm=places)
    image = draw_adf(bent, ScanParams(pixel_nm=PIXEL_NM), shape=(side, side))
    strain = measure_strain(map_phases(image, find_lattice(image)))
    left, right = strain[:, 150:250, 80:140].mean((1, 2)), strain[:, 150:250, 260:320].mean((1, 2))
    np.testing.assert_allclose(right - left, (2.0, 0.0, 0.0), atol=0.2)


def test_every_site_is_placed_once() -> None:
    crystal = sheet("MoS2")
    image = picture(crystal)
    phases = map_phases(image, find_lattice(image))
    found, cells = place_sites(phases, np.array([0.3, 0.6]))
    assert len({tuple(cell) for cell in cells.tolist()}) == len(cells)
    assert len(found) == pytest.approx(len(crystal.sites_nm) / 2, rel=0.03)


# --- columns ---------------------------------------------------------------------------------------------------------


def inner(points: np.ndarray, rim: float = 20.0) -> np.ndarray:
    return ((points > rim) & (points < SIDE - 1 - rim)).all(1)


@pytest.mark.parametrize("material", ["WSe2", "MoS2", "WS2"])
def test_places_and_sublattices(material: str) -> None:
    crystal = sheet(material)
    table = find_columns(as_micrograph(picture(crystal)), ColumnParams(material))
    assert list(table.frame.columns) == list(column_names(COLUMN_COLUMNS))
    true = crystal.sites_nm / PIXEL_NM
    found = table.found[["row_px", "col_px"]].to_numpy(float)
    pairs = [(i, j) for i, j in match_points(found, true, 3.0) if inner(true[j][None])[0]]
    assert len(pairs) == inner(true).sum()
    error = np.array([found[i] - true[j] for i, j in pairs])
    assert np.sqrt((error**2).mean()) < 0.1
    names = np.array(find_crystal(material).sublattices)
    assert all(table.found["sublattice"].iloc[i] == names[crystal.sublattice[j]] for i, j in pairs)
    ratio = np.sqrt((error**2).mean()) / np.sqrt(
        (table.found["sigma_px"].iloc[[i for i, _ in pairs]] ** 2).mean()
    )
    assert 0.8 < ratio < 1.25


def test_a_column_that_lacks_an_atom_and_one_that_holds_another() -> None:
    crystal = sheet("WSe2", vacancies={"one": 0.1}, dopant="Ti", dopant_share=0.15)
    table = find_columns(as_micrograph(picture(crystal)), ColumnParams("WSe2"))
    true = crystal.sites_nm / PIXEL_NM
    found = table.frame[["row_px", "col_px"]].to_numpy(float)
    said = {j: table.frame["species"].iloc[i] for i, j in match_points(found, true, 3.0)}
    for name, wanted in (("W", {"W"}), ("Se2", {"Se2"}), ("Se", {"Se"}), ("Ti", {"other", "none"})):
        places = np.flatnonzero((crystal.species == name) & inner(true))
        assert len(places) > 3
        assert np.mean([said[j] in wanted for j in places]) > 0.85, name


def test_pixel_size_comes_from_the_lattice() -> None:
    image = picture(sheet("WSe2"))
    for stated, words in (
        (None, "as the file states none"),
        (0.022, "is off by +10%"),
    ):
        table = find_columns(as_micrograph(image, stated), ColumnParams("WSe2"))
        assert table.calibration.pixel_size_nm[0] == pytest.approx(PIXEL_NM, rel=5e-3)
        assert any(words in note for note in table.provenance.notes)
    assert find_columns(as_micrograph(image), ColumnParams("WSe2")).provenance.notes == ()
    with pytest.raises(MicrographError, match=r"its lattice constant is 0.6[56]\d nm .* WSe2 has 0.328 nm"):
        find_columns(as_micrograph(image, 0.04), ColumnParams("WSe2"))


@pytest.mark.parametrize("name", ["MoS2", "WS2", "MoSe2", "WSe2", "hBN"])
def test_the_brighter_sublattice_is_the_heavier_one(name: str) -> None:
    """Of MoSe2 that is the chalcogen: two selenium atoms outshine molybdenum."""
    crystal = sheet(name)
    frame = find_columns(as_micrograph(picture(crystal, electrons=400.0)), ColumnParams(name)).found
    true = crystal.sites_nm / PIXEL_NM
    pairs = match_points(frame[["row_px", "col_px"]].to_numpy(float), true, 3.0)
    names = find_crystal(name).sublattices
    right = [frame["sublattice"].iloc[i] == names[crystal.sublattice[j]] for i, j in pairs]
    assert len(right) > 100 and np.mean(right) > 0.99


@pytest.mark.parametrize("name", ["WSe2", "MoSe2"])
def test_the_brighter_sublattice_follows_from_an_image_that_is_sure(name: str) -> None:
    crystal = sheet(name)
    sure = find_columns(as_micrograph(picture(crystal)), ColumnParams(name))
    seen = {
        optics: find_columns(as_micrograph(picture(crystal, optics)), ColumnParams(name))
        for optics in (HIGH, MEDIUM)
    }
    # At medium angles two selenium atoms outshine either metal.
    assert find_brighter(seen[MEDIUM], sure) == "chalcogen"
    assert find_brighter(seen[HIGH], sure) == ("metal" if name == "WSe2" else "chalcogen")


def test_sublattices_as_bright_as_each_other_are_said_to_be_unsure() -> None:
    image = picture(sheet("WSe2"), ALIKE)
    table = find_columns(as_micrograph(image), ColumnParams("WSe2"))
    assert any("about as bright" in note and "--brighter" in note for note in table.provenance.notes)
    assert not table.sublattices_sure and (table.frame["status"] != "accepted").all()
    turned = find_columns(as_micrograph(image), ColumnParams("WSe2", brighter="chalcogen"))
    assert (turned.frame["sublattice"] != table.frame["sublattice"]).all()
    assert turned.sublattices_sure and (turned.frame["status"] == "accepted").mean() > 0.8


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.full((64, 64), 3.0, np.float32), "all pixels are 3"),
        (np.zeros((64, 64, 3), np.uint8) + np.arange(3, dtype=np.uint8), "is coloured"),
    ],
)
def test_what_is_no_scan(image: np.ndarray, words: str) -> None:
    with pytest.raises(MicrographError, match=words):
        find_columns(Micrograph(image, source="scan"))


def test_filtered_images_state_larger_errors_and_say_so() -> None:
    image = picture(sheet("WSe2"), electrons=10.0)
    plain = find_columns(as_micrograph(image), ColumnParams("WSe2"))
    smooth = find_columns(as_micrograph(ndimage.gaussian_filter(image, 1.5)), ColumnParams("WSe2"))
    assert not plain.provenance.notes and any("lower limits" in note for note in smooth.provenance.notes)
    ratio = smooth.found["sigma_px"].median() / plain.found["sigma_px"].median()
    assert ratio > 0.4


def test_nothing_is_found_where_there_is_no_crystal() -> None:
    """Half of the field empty, and a patch burnt out."""
    image = picture(sheet("WSe2"))
    rng = np.random.default_rng(0)
    image[:, 120:] = rng.poisson(image.mean() / 4, image[:, 120:].shape)
    table = find_columns(as_micrograph(image), ColumnParams("WSe2"))
    assert (table.found["col_px"] > 120 + 2 * 9.5).sum() == 0
    assert any("shows no such lattice" in note for note in table.provenance.notes)
    assert np.isfinite(table.frame["intensity"]).all() and table.frame["intensity"].abs().max() < 20
    image = picture(sheet("WSe2"))
    image[60:120, 60:120] = image.max()
    frame = find_columns(as_micrograph(image), ColumnParams("WSe2")).found
    assert not (
        frame["row_px"].between(62, 117) & frame["col_px"].between(62, 117) & (frame["status"] == "accepted")
    ).any()


def test_graphene_is_refused_where_sublattices_differ_and_a_distorted_scan_is_said() -> None:
    image = picture(sheet("MoS2"))
    with pytest.raises(MicrographError, match="those of graphene do not: check --material"):
        find_columns(as_micrograph(image, None), ColumnParams("graphene"))
    wide = ndimage.zoom(image, (1.0, 1.1), order=1)
    notes = find_columns(as_micrograph(wide, None), ColumnParams("MoS2")).provenance.notes
    assert any("the scan is distorted" in note for note in notes)
    stated = find_columns(as_micrograph(picture(sheet("WSe2")), 0.0193), ColumnParams("WSe2"))
    assert any(
        "MoS2 would fit better" in note or "WS2 would fit better" in note for note in stated.provenance.notes
    )


def test_saturated_pixels_are_said() -> None:
    image = picture(sheet("WSe2"))
    cut = np.minimum(image, np.quantile(image, 0.95))
    assert any(
        "saturated" in note
        for note in find_columns(as_micrograph(cut), ColumnParams("WSe2")).provenance.notes
    )


def test_settings_without_a_meaning() -> None:
    with pytest.raises(ValueError, match="unknown material 'lead'"):
        ColumnParams("lead")
    with pytest.raises(ValueError, match="brighter = 'top': choose one of auto, metal, chalcogen"):
        ColumnParams(brighter="top")


def test_the_joint_fit_separates_overlapping_columns() -> None:
    """Three Gaussians 4 px apart, as wide as half of that, come out as they were put in."""
    rows, cols = np.mgrid[:60, :60]
    places, heights = np.array([[30.2, 27.9], [30.0, 32.1], [26.4, 30.1]]), np.array([5.0, 3.0, 1.0])
    image = 0.5 + sum(
        height * np.exp(-0.5 * ((rows - row) ** 2 + (cols - col) ** 2) / 2.0**2)
        for height, (row, col) in zip(heights, places, strict=True)
    )
    fit = fit_columns(np.asarray(image), np.rint(places), 4.5)
    np.testing.assert_allclose(fit.positions, places, atol=0.15)
    assert fit.width_px == pytest.approx(2.0, abs=0.25)


def test_errors_reach_the_oracle_and_are_as_stated() -> None:
    for score in evaluate_localisation(doses=(3.0, 50.0), images=2):
        assert score.sublattice_right > 0.99
        assert score.error_pm < 1.1 * score.oracle_pm
        assert 0.8 < score.stated_pm / score.error_pm < 1.2
        assert score.bound_pm < score.error_pm < 1.6 * score.bound_pm


def test_the_model_has_two_atoms_for_a_pair_and_one_where_one_lacks() -> None:
    crystal = sheet("WSe2", vacancies={"one": 0.05})
    table = find_columns(as_micrograph(picture(crystal)), ColumnParams("WSe2"))
    model = table.model
    counts = table.found["species"].value_counts()
    assert model.symbols.count("Se") == 2 * counts["Se2"] + counts["Se"]
    assert model.symbols.count("W") == counts["W"]
    assert model.box_nm == pytest.approx((SIDE * PIXEL_NM,) * 2, rel=5e-3)
    pair = model.positions_nm[np.array(model.symbols) == "Se"]
    assert sorted(set(np.round(pair[:, 2], 4))) == pytest.approx([-0.16705, 0.16705], abs=1e-4)


# --- the command -----------------------------------------------------------------------------------------------------


def test_atoms_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "good.npy", picture(sheet("WSe2")))
    np.save(tmp_path / "in" / "noise.npy", np.random.default_rng(0).normal(size=(100, 100)))
    np.save(tmp_path / "in" / "nan.npy", np.full((100, 100), np.nan))
    (tmp_path / "in" / "cut.mrc").write_bytes(b"\0" * 50)
    (tmp_path / "in" / "cut.tif").write_bytes(b"II*\0")
    command = [
        "atoms",
        str(tmp_path / "in"),
        "--material",
        "WSe2",
        "--nm-per-px",
        "0.02",
        "--out",
        str(tmp_path / "o"),
    ]
    assert run(command) == 1
    said = capsys.readouterr()
    for name, words in (
        ("noise.npy", "no lattice"),
        ("nan.npy", "values are NaN"),
        ("cut.mrc", "is damaged or truncated"),
        ("cut.tif", "is damaged or truncated"),
    ):
        assert sum(name in line and words in line for line in said.err.splitlines()) == 1, said.err
    frame = pd.read_csv(tmp_path / "o" / "columns.csv", keep_default_na=False)
    assert list(frame.columns) == list(column_names(COLUMN_COLUMNS))
    failed = frame[frame["status"] == "failed"]
    assert set(frame["image"]) - set(failed["image"]) == {"good.npy"}
    assert set(failed["image"]) == {"noise.npy", "nan.npy", "cut.mrc", "cut.tif"} and all(failed["reason"])
    assert json.loads((tmp_path / "o" / "run.json").read_text())["settings"]["material"] == "WSe2"
    xyz = (tmp_path / "o" / "good.xyz").read_text().splitlines()
    assert int(xyz[0]) == len(xyz) - 2
    cif = (tmp_path / "o" / "good.cif").read_text()
    assert "_cell_length_a 40.0" in cif or "_cell_length_a 39.9" in cif
    assert (tmp_path / "o" / "report.html").read_text("utf-8").count("<img") == 2
    rings = np.asarray(Image.open(tmp_path / "o" / "good.columns.png"))
    assert (rings == (230, 159, 0)).all(-1).sum() > 500 and (rings == (86, 180, 233)).all(-1).sum() > 500
    assert run([*command[:1], str(tmp_path / "in" / "noise.npy"), *command[2:]]) == 2


def test_another_detector_of_the_same_scan_tells_the_sublattices(tmp_path: Path, capsys: Any) -> None:
    """At medium angles selenium pairs may be brighter than tungsten; of another crystal nothing is taken over."""
    crystal = sheet("WSe2")
    medium = picture(crystal, MEDIUM, seed=2)
    np.save(tmp_path / "medium.npy", medium)
    np.save(tmp_path / "high.npy", picture(crystal))
    np.save(tmp_path / "turned.npy", picture(sheet("WSe2", turn=40.0)))
    frames = []
    for other in ("turned", "high"):
        inputs = [str(tmp_path / f"{name}.npy") for name in ("medium", other)]
        assert run(["atoms", *inputs, "--material", "WSe2", "--out", str(tmp_path / other)]) == 0
        frame = pd.read_csv(tmp_path / other / "columns.csv")
        frames.append(frame[frame["image"] == "medium.npy"])
    assert "medium.npy: sublattices are those of high.npy" in capsys.readouterr().err
    true = crystal.sites_nm / PIXEL_NM
    right = []
    for frame in frames:
        pairs = match_points(frame[["row_px", "col_px"]].to_numpy(float), true[inner(true)], 3.0)
        kinds = crystal.sublattice[inner(true)]
        right.append(np.mean([(frame["sublattice"].iloc[i] == "metal") == (kinds[j] == 0) for i, j in pairs]))
    assert right == [0.0, 1.0]
    assert (frames[0]["status"] != "accepted").all() and (frames[1]["status"] == "accepted").mean() > 0.7


def test_models_can_be_read_by_others(tmp_path: Path) -> None:
    ase_io = pytest.importorskip("ase.io")
    np.save(tmp_path / "a.npy", picture(sheet("MoS2")))
    assert run(["atoms", str(tmp_path / "a.npy"), "--material", "MoS2", "--out", str(tmp_path / "o")]) == 0
    atoms, again = (ase_io.read(tmp_path / "o" / f"a.{kind}") for kind in ("xyz", "cif"))
    assert len(atoms) == len(again)
    gap = atoms.get_positions()[:, :2] - again.get_positions()[:, :2]
    assert np.abs(gap).max() < 0.01


def test_mrc_keeps_pixel_size_and_rows(tmp_path: Path) -> None:
    mrcfile = pytest.importorskip("mrcfile")
    with mrcfile.new(tmp_path / "a.mrc") as made:
        made.set_data(np.arange(40 * 50, dtype=np.float32).reshape(40, 50))
        made.voxel_size = 0.2
    found = read(tmp_path / "a.mrc", modality="electron")
    assert found.calibration is not None and found.calibration.pixel_size_nm == pytest.approx((0.02, 0.02))
    assert found.pixels.shape == (40, 50) and found.pixels[0, 1] == 1.0
    with pytest.raises(MicrographError, match=r"\.mrc is not read"):
        read(tmp_path / "a.mrc")


def test_evaluation_by_labels(tmp_path: Path, capsys: Any) -> None:
    crystal = sheet("WSe2")
    np.save(tmp_path / "a.npy", picture(crystal))
    true = crystal.sites_nm / PIXEL_NM
    kept = inner(true)
    names = np.where(crystal.sublattice == 0, "W", "Se2")
    frame = pd.DataFrame({"row_px": true[:, 0], "col_px": true[:, 1], "label": names})[kept]
    frame.to_csv(tmp_path / "a.csv", index=False)
    command = ["evaluate", "columns", "--image", str(tmp_path / "a.npy"), "--material", "WSe2", "--labels"]
    assert run([*command, str(tmp_path / "a.csv"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["f1"]["value"] > 0.99 and scores["sublattice"]["value"] == 1.0
    assert 0.5 < scores["classical_f1"] <= 1.0
    # every second column unmarked, every marked one on the wrong sublattice
    frame["label"] = np.where(frame["label"] == "W", "Se2", "Ti_W")
    frame[::2].to_csv(tmp_path / "a.csv", index=False)
    assert run([*command, str(tmp_path / "a.csv"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert (
        scores["precision"]["value"] == pytest.approx(0.5, abs=0.05) and scores["sublattice"]["value"] == 0.0
    )
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    assert run([*command, str(tmp_path / "a.csv")]) == 2
    assert "holds no table with row_px, col_px and label" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize("detector", ["adf1", "adf2"])
def test_expert_labels(detector: str, real_data: Path) -> None:
    pytest.importorskip("rsciio")
    folder = real_data / "electron" / "wse2_ti"
    scores = evaluate_labels(
        folder / f"ti_wse2_{detector}.dm4", folder / "ti_wse2_columns.csv", ColumnParams("WSe2")
    )
    assert scores.f1.value > 0.99 > scores.classical_f1
    if detector == "adf2":
        assert scores.sublattice.value > 0.995
