"""Point defects: planted truth in images and movies, what is no defect, and what is said when nothing can be done."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import ndimage, stats

import flatscope
from flatscope.app.cli import run
from flatscope.electron.defects import (
    DefectParams,
    find_defects,
    forbid,
)
from flatscope.electron.drawing.hopping import HoppingMovie, HoppingParams, draw_hopping
from flatscope.electron.drawing.noise import SPOILS, NoiseParams, spoil
from flatscope.electron.drawing.specimens import Scanned, draw_scanned
from flatscope.electron.kinds import (
    COLUMN_CLASSES,
    CONTAMINATION,
    D_M,
    DISORDER,
    GROUPS,
    HOLE,
    SITE_CLASSES,
    SITE_KINDS,
    classify_sites,
    find_codes,
    find_kind,
    list_kinds,
)
from flatscope.electron.mixture import fit_mixture
from flatscope.electron.occupancy import smooth
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.rates import (
    count_kinds,
    count_transitions,
    find_events,
    measure_diffusion,
    measure_dwell,
    measure_lifetimes,
    measure_rates,
)
from flatscope.electron.sites import CROP_PX, cut_crops, find_sites, level, measure_sites
from flatscope.electron.tracks import TrackParams, track_defects
from flatscope.evaluation.columns import match_points
from flatscope.evaluation.defects import as_movie, count_links, find_by_fourier
from flatscope.files.movie import check_frame, read_movie, write_movie
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, MicrographError, Movie
from flatscope.parallel import stream
from flatscope.report.defects import choose_styles
from flatscope.results import (
    DEFECT_COLUMNS,
    EVENT_COLUMNS,
    EXTENDED_KINDS,
    TRACK_COLUMNS,
    column_names,
    count_densities,
)

QUIET = NoiseParams(gain=1.0)
PIXEL_NM = 0.025


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load("defects", task="defects", threads=1)


def draw(
    material: str = "WS2",
    *,
    seed: int = 1,
    shape: tuple[int, int] = (240, 240),
    electrons: float = 60.0,
    turn: float = 17.0,
    **contents: Any,
) -> Scanned:
    return draw_scanned(
        np.random.default_rng(seed),
        SheetParams(material, turn_deg=turn, shift_nm=(0.03, 0.07), **contents),
        ScanParams(pixel_nm=PIXEL_NM),
        QUIET,
        shape=shape,
        electrons_per_px=electrons,
    )


def as_micrograph(image: np.ndarray, pixel_nm: float = PIXEL_NM) -> Micrograph:
    return Micrograph(
        image, full_scale=float(image.max()), calibration=Calibration((pixel_nm, pixel_nm), "user")
    )


def noise_image(shape: tuple[int, ...]) -> np.ndarray:
    """Speckle without any order, as of an amorphous film."""
    noise = np.random.default_rng(0).normal(size=shape)
    return 100.0 + 20.0 * ndimage.gaussian_filter(noise, (0.0, 2.0, 2.0)[-len(shape) :]) / 0.14


# Sites and crops


@pytest.mark.parametrize("turn", [0.0, 23.0, 49.0])
def test_crops_follow_the_lattice(turn: float) -> None:
    """Whatever the orientation, the usual crop of a sublattice is the same, with a neighbour below its middle."""
    made = [draw("MoS2", turn=angle, electrons=1e4) for angle in (11.0, turn)]
    usual = []
    for one in made:
        sites = find_sites(one.image, first=0)
        crops = cut_crops(level(one.image, sites.phases.lattice.constant_px), sites)
        usual.append([crops[sites.sublattice == kind][0, 1] for kind in (0, 1)])
    middle = CROP_PX // 2
    for kind in (0, 1):
        one, two = (crops[kind] for crops in usual)
        assert np.corrcoef(one.ravel(), two.ravel())[0, 1] > 0.98
        # A neighbour of the other sublattice is 5.8 px below, a hollow as far above.
        above = [crop[middle - 7 : middle - 5, middle - 1 : middle + 1].mean() for crop in (one, two)]
        below = [crop[middle + 5 : middle + 7, middle - 1 : middle + 1].mean() for crop in (one, two)]
        assert min(np.subtract(below, above)) > 0.5


def test_vacant_sites_have_no_height() -> None:
    made = draw("MoS2", electrons=2e3, vacancies={"one": 0.03, "both": 0.03, "first": 0.03})
    sites = find_sites(made.image, first=0)
    readings = measure_sites(level(made.image, sites.phases.lattice.constant_px), sites)
    true = made.sheet.sites_nm / PIXEL_NM
    pairs = match_points(sites.positions, true, 3.0)
    species = made.sheet.species[[j for _, j in pairs]]
    ratio = readings.ratio[[i for i, _ in pairs]]
    assert abs(np.median(ratio[species == "Mo"]) - 1.0) < 0.02
    assert abs(np.median(ratio[species == ""])) < 0.15
    assert abs(np.median(ratio[species == "S"]) - 0.46) < 0.15


def test_swapped_sublattices_swap_their_crops() -> None:
    made = draw("MoS2", electrons=1e3)
    sites = find_sites(made.image, first=0)
    other = sites.swap()
    image = level(made.image, sites.phases.lattice.constant_px)
    # The same places, but what is usual belongs to what the place is, not to what it is called.
    np.testing.assert_allclose(cut_crops(image, sites)[:, 1], cut_crops(image, other)[:, 1], atol=1e-5)
    assert (sites.sublattice + other.sublattice == 1).all()


# The vocabulary


def test_shipped_networks_know_the_same_classes_in_the_same_order(network: Network) -> None:
    assert network.card.classes == SITE_CLASSES
    assert Network.load("columns", task="columns", threads=1).card.classes == COLUMN_CLASSES
    for sublattice, (first, end) in enumerate(GROUPS):
        assert {kind.sublattice for kind in SITE_KINDS[first:end]} == {sublattice}
        assert [kind.what for kind in SITE_KINDS[first:end]].index("usual") == 0


@pytest.mark.parametrize("material", ["WSe2", "MoS2", "hBN"])
def test_a_name_leads_back_to_its_kind(material: str) -> None:
    crystal = find_crystal(material)
    for sublattice in (0, 1):
        for kind in list_kinds(crystal, sublattice):
            name = kind.name_in(crystal, "Ti") or crystal.species[sublattice]
            assert find_kind(name, crystal) == kind
    assert find_kind("vanadium_" + crystal.species[0], crystal) is D_M
    assert find_kind("Xx_" + crystal.species[0], crystal) is None and find_kind("", crystal) is None


@pytest.mark.parametrize(
    ("material", "dopant"), [("WSe2", "Ti"), ("WS2", "V"), ("graphene", "Si"), ("hBN", "")]
)
def test_every_kind_has_a_mark_of_its_own(material: str, dopant: str) -> None:
    crystal = find_crystal(material)
    kinds = [kind for sublattice in (0, 1) for kind in list_kinds(crystal, sublattice)[1:]]
    names = {kind.name_in(crystal, dopant) for kind in kinds}
    styles = choose_styles(find_codes(names, crystal))
    assert set(styles) == names and len(set(styles.values())) == len(names)


def test_tables_and_kinds_agree_on_what_is_larger_than_a_point() -> None:
    assert {kind.name_in(find_crystal("WSe2")) for kind in (HOLE, CONTAMINATION, DISORDER)} == set(
        EXTENDED_KINDS
    )


def test_the_names_that_users_know() -> None:
    crystal = find_crystal("WSe2")
    names = [kind.name_in(crystal) for kind in SITE_KINDS]
    assert names == ["", "V_W", "X_W", "Se_W", "", "V_Se", "V_Se2", "W_Se2", "O_Se"]


# Defects in images


@pytest.mark.parametrize("material", ["WS2", "MoS2"])
def test_planted_defects_are_found_and_named(material: str, network: Network) -> None:
    crystal = find_crystal(material)
    made = draw(
        material,
        electrons=150.0,
        shape=(320, 320),
        vacancies={"first": 0.01, "one": 0.02, "both": 0.01},
        dopant="Ti",
        dopant_share=0.015,
    )
    params = DefectParams(material, dopants="Ti")
    table = find_defects(as_micrograph(made.image), params, network=network)
    true = made.sheet.sites_nm / PIXEL_NM
    classes = classify_sites(made.sheet, crystal)
    inner = ((true > 12.0) & (true < 307.0)).all(1)
    planted = inner & ~np.isin(classes, [first for first, _ in GROUPS]) & (classes != 255)
    found = table.found
    places = found[["row_px", "col_px"]].to_numpy(float)
    pairs = match_points(places, true[planted], 4.0)
    names = [SITE_KINDS[one].name_in(crystal, "Ti") for one in classes[planted]]
    assert planted.sum() > 25
    assert len(pairs) >= 0.95 * planted.sum()
    extra = ((places > 12.0) & (places < 307.0)).all(1).sum() - len(pairs)
    assert extra <= 1
    assert np.mean([found["kind"].iloc[i] == names[j] for i, j in pairs]) > 0.9
    density = table.densities().set_index("kind")
    expected = sum(name == "Ti_" + crystal.first[0] for name in names) / (295 * PIXEL_NM) ** 2
    row = density.loc["Ti_" + crystal.first[0]]
    assert row["low"] < expected < row["high"]


def test_a_perfect_crystal_has_no_defects(network: Network) -> None:
    for seed, electrons in ((1, 8.0), (2, 60.0)):
        made = draw(seed=seed, electrons=electrons, shape=(300, 300))
        assert len(find_defects(as_micrograph(made.image), DefectParams("WS2"), network=network).found) <= 1


def test_two_holes_are_two(network: Network) -> None:
    """Each where it is, within a lattice constant, and together as large as they are; their borders are no defects."""
    made = draw(shape=(300, 300), holes=2, hole_nm=0.9, seed=4)
    atoms = np.ones((300, 300), bool)
    atoms[tuple(np.rint(made.sheet.sites_nm / PIXEL_NM).astype(int).clip(0, 299).T)] = False
    away_nm = ndimage.distance_transform_edt(atoms) * PIXEL_NM
    true, count = ndimage.label(away_nm > 0.25)
    middles = np.array(ndimage.center_of_mass(true > 0, true, range(1, count + 1)))
    table = find_defects(as_micrograph(made.image), DefectParams("WS2"), network=network)
    large = table.frame[table.frame["kind"].isin(["hole", "contamination", "disorder"])]
    assert list(large["kind"]) == ["hole", "hole"] and count == 2
    found = large[["row_px", "col_px"]].to_numpy(float)
    assert np.hypot(*(found - middles).T).max() * PIXEL_NM < find_crystal("WS2").lattice_nm
    lacking_nm2 = (300 * PIXEL_NM) ** 2 - table.area_nm2
    # An empty place ends half-way to the next atoms.
    assert lacking_nm2 == pytest.approx((away_nm > 0.16).sum() * PIXEL_NM**2, rel=0.15)
    inside = table.frame["reason"] == "part of a larger feature"
    assert inside.sum() > 5 and (table.frame.loc[inside, "status"] == "rejected").all()
    assert len(table.found) <= 2


def test_an_amorphous_film_is_not_periodic() -> None:
    with pytest.raises(MicrographError, match="not periodic"):
        find_defects(as_micrograph(noise_image((256, 256))), DefectParams("WS2"))


def test_a_wrong_material_and_a_wrong_sublattice_are_noted(network: Network) -> None:
    scan = as_micrograph(draw("WS2").image)
    notes = find_defects(scan, DefectParams("MoSe2"), network=network).provenance.notes
    assert any("by more than those of MoSe2 should" in note for note in notes)
    notes = find_defects(scan, DefectParams("WS2", brighter="chalcogen"), network=network).provenance.notes
    assert any("--brighter chalcogen against what high angles show" in note for note in notes)
    assert not find_defects(scan, DefectParams("WS2"), network=network).provenance.notes


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="dopants = 'Xx'"):
        DefectParams("WSe2", dopants="Xx")
    with pytest.raises(ValueError, match="brighter = 'left'"):
        DefectParams("WSe2", brighter="left")
    with pytest.raises(ValueError, match="hop_cells"):
        TrackParams("WSe2", hop_cells=0.0)


def test_evidence_belongs_to_its_row(network: Network) -> None:
    made = draw(electrons=200.0, vacancies={"first": 0.03})
    table = find_defects(as_micrograph(made.image), DefectParams("WS2"), network=network)
    assert table.evidence.shape[0] == table.crops.shape[0] == len(table)
    vacant = table.frame.index[(table.frame["kind"] == "V_W") & (table.frame["status"] == "accepted")]
    assert len(vacant) > 3
    half = CROP_PX // 2
    for index in vacant:
        crop = table.crops[index]
        # The metal is missing in the middle of each crop; its neighbours are not.
        assert crop[half - 1 : half + 1, half - 1 : half + 1].mean() < crop.mean()
        assert np.isfinite(table.evidence[index]).all()


def test_the_mixture_learns_shares_and_brightness() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, 4000, p=[0.94, 0.04, 0.02])
    sigma = np.full(4000, 0.08)
    ratio = np.array([1.0, 0.3, 1.8])[kinds] + sigma * rng.normal(size=4000)
    mixture = fit_mixture(ratio, sigma, find_crystal("WSe2"), 0)
    at = dict(zip(mixture.names[1:-1], mixture.middles, strict=True))
    assert at["dark"] == pytest.approx(0.3, abs=0.03)
    assert at["bright"] == pytest.approx(1.8, abs=0.05)
    unusual, names = mixture.weigh(ratio, sigma)
    assert ((unusual > 0.5) == (kinds > 0)).mean() > 0.995
    assert (names[kinds == 1] == "dark").mean() > 0.97


def test_an_empty_site_scatters_less_than_a_bright_one() -> None:
    """Counting noise grows with what is counted: a site halfway between a faint element and the usual one, which is
    nearer to the latter in units of its noise, is as it should be."""
    rng = np.random.default_rng(2)
    kinds = (rng.random(4000) < 0.05).astype(int)
    sigma, quiet = np.full(4000, 0.13), 0.4
    scatter = np.array([1.0, np.sqrt(quiet**2 + (1.0 - quiet**2) * 0.2)])[kinds] * 0.13
    ratio = np.array([1.0, 0.2])[kinds] + scatter * rng.normal(size=4000)
    plain, counted = (
        fit_mixture(ratio, sigma, find_crystal("WSe2"), 0, quiet=one).weigh(np.array([0.5]), sigma[:1])[0][0]
        for one in (1.0, quiet)
    )
    assert counted < 0.5 * plain
    # Scans of few electrons tell how much less: nothing stands in the hollows.
    few, many = (measure_quiet(read_noise) for read_noise in (0.0, 30.0))
    assert few[0] < 0.5 and few[1] < 0.7 and many[0] > 0.75 and many[1] > 0.9


def measure_quiet(read_sigma: float) -> tuple[float, float]:
    """Scatter where nothing stands over that on either sublattice, of WS2 scanned with counting and other noise."""
    rng = np.random.default_rng(3)
    image = np.asarray(
        draw_scanned(
            rng,
            SheetParams("WS2"),
            ScanParams(pixel_nm=0.03),
            NoiseParams(gain=1.0, read_sigma=read_sigma),
            shape=(256, 256),
            electrons_per_px=30.0,
        ).image,
        float,
    )
    sites = find_sites(image, first=0, expected_px=0.3153 / 0.03)
    return measure_sites(level(image, sites.phases.lattice.constant_px), sites).quiet


def test_names_fit_the_brightness() -> None:
    """A lighter dopant is not on a brighter site, no defect that lacks atoms is, and vanadium is no vacancy."""
    tungsten, molybdenum, graphene = (find_crystal(name) for name in ("WSe2", "MoS2", "graphene"))
    assert D_M.name_in(tungsten, "Ti", bright=False) == "Ti_W"
    assert D_M.name_in(tungsten, "Ti", bright=True) == "X_W"
    assert D_M.name_in(molybdenum, "W", bright=True) == "W_Mo"
    assert D_M.name_in(molybdenum, "V", bright=False) == "vanadium_Mo"
    assert D_M.name_in(graphene, bright=True) == "X_C"
    loud = np.zeros((2, len(SITE_CLASSES)))
    loud[:, SITE_CLASSES.index("V_M")] = 9.0
    likely = forbid(loud, np.array([0.4, 1.6])).argmax(1)
    assert SITE_CLASSES[likely[0]] == "V_M" and SITE_CLASSES[likely[1]] not in ("V_M", "V_X", "V_X2", "O_X")


def test_noise_alone_is_no_element_of_its_own() -> None:
    rng = np.random.default_rng(1)
    ratio = 1.0 + 0.1 * rng.standard_t(6, 5000)
    mixture = fit_mixture(ratio, np.full(5000, 0.1), find_crystal("graphene"), 0)
    unusual, _ = mixture.weigh(ratio, np.full(5000, 0.1))
    assert (unusual > 0.5).mean() < 0.003


def test_densities_have_exact_intervals() -> None:
    table = count_densities({"V_S": 7, "V_W": 0}, 20.0).set_index("kind")
    assert table.loc["V_S", "low"] == pytest.approx(stats.chi2.ppf(0.025, 14) / 2 / 20.0)
    assert table.loc["V_S", "high"] == pytest.approx(stats.chi2.ppf(0.975, 16) / 2 / 20.0)
    assert table.loc["V_W", "low"] == 0.0
    assert table.loc["V_W", "high"] == pytest.approx(3.689 / 20.0, rel=1e-3)


@pytest.mark.parametrize("kind", SPOILS)
def test_noise_of_image_processing(kind: str) -> None:
    rng = np.random.default_rng(0)
    image = np.full((200, 200), 0.5)
    image[0, 0], image[0, 1] = 0.0, 1.0
    made = spoil(rng, image, kind, variance=0.01, salted=0.1)
    extreme = np.isin(made, [0.0, 1.0]).mean()
    if kind in ("s&p", "mixed"):
        assert 0.05 < extreme < 0.13
    else:
        wanted = 0.1 if kind == "gaussian" else 0.05
        assert made.std() == pytest.approx(wanted, rel=0.05)


def test_noise_of_no_kind() -> None:
    with pytest.raises(ValueError, match="kind = 'snow'"):
        spoil(np.random.default_rng(0), np.eye(32), "snow")


def test_the_fourier_map_finds_a_gap_in_a_lattice() -> None:
    rows, cols = np.mgrid[:200, :200]
    image = 2.0 + np.cos(2 * np.pi * rows / 6.0) + np.cos(2 * np.pi * cols / 6.0)
    image *= 1.0 - 0.9 * np.exp(-((rows - 80.0) ** 2 + (cols - 130.0) ** 2) / 60.0)
    centres, mask = find_by_fourier(image)
    assert np.hypot(*(centres - [80.0, 130.0]).T).min() < 2.0
    assert mask[80, 130] and not mask[150, 50]


# Movies


@pytest.fixture(scope="module")
def hopping() -> tuple[HoppingParams, HoppingMovie]:
    params = HoppingParams(
        material="WS2", frames=10, shape=(160, 160), electrons_per_px=25.0, vacancies=0.03, hop=0.15
    )
    return params, draw_hopping(np.random.default_rng(7), params)


def test_hopping_vacancies_are_followed_and_drift_is_removed(
    hopping: tuple[HoppingParams, HoppingMovie], network: Network
) -> None:
    params, made = hopping
    tables = [
        track_defects(as_movie(made, params), TrackParams("WS2"), network=network, workers=workers)
        for workers in (1, 2)
    ]
    pd.testing.assert_frame_equal(tables[0].frame, tables[1].frame)
    pd.testing.assert_frame_equal(tables[0].events, tables[1].events)
    table = tables[0]
    drift = table.drift[["row_nm", "col_nm"]].to_numpy() / params.optics.pixel_nm
    # 5 px a frame, half the lattice constant: the wrong lattice vector would be 11 px off.
    assert np.abs(drift - made.drift_px).max() < 0.2
    good, said, known, right, seen, there = count_links(table.frame, made.truth, params)
    assert 2.0 * good / (said + known) > 0.9
    assert 2.0 * right / (seen + there) > 0.93
    assert set(table.frame["kind"]) == {"V_S"}
    # Defects that do not hop stay where they are in the specimen, to the last digit.
    for _, track in table.frame.groupby(["track_id", "site"]):
        assert np.ptp(track["x_nm"]) == np.ptp(track["y_nm"]) == 0.0
    assert list(table.frame.columns) == list(column_names(TRACK_COLUMNS))
    assert list(table.events.columns) == list(column_names(EVENT_COLUMNS))


def test_a_movie_whose_sublattices_look_alike_is_uncertain(tmp_path: Path, network: Network) -> None:
    """At 60 kV tungsten and a pair of selenium are as bright: no kind is certain until the user says which is which."""
    params = HoppingParams(material="WSe2", frames=3, shape=(128, 128), vacancies=0.05, electrons_per_px=60.0)
    made = draw_hopping(np.random.default_rng(2), params)
    table = track_defects(as_movie(made, params), TrackParams("WSe2"), network=network)
    assert not table.sublattices_sure
    assert any("--brighter metal or chalcogen settles it" in note for note in table.provenance.notes)
    np.save(tmp_path / "movie.npy", made.frames)
    command = ["defects", str(tmp_path / "movie.npy"), "--material", "WSe2", "--out", str(tmp_path / "out")]
    assert run(command) == 0
    found = pd.read_csv(tmp_path / "out" / "defects.csv")
    assert len(found) and set(found["status"]) == {"uncertain"}
    told = TrackParams("WSe2", brighter="metal")
    assert track_defects(as_movie(made, params), told, network=network).sublattices_sure


def with_frames(movie: Movie, change: dict[int, Any]) -> Movie:
    def each() -> Any:
        for number, frame in enumerate(movie):
            yield change.get(number, frame)

    return replace(movie, open=each)


def test_broken_frames_and_frames_of_another_size_are_left_out(
    hopping: tuple[HoppingParams, HoppingMovie], network: Network
) -> None:
    params, made = hopping
    movie = with_frames(
        as_movie(made, params), {3: MicrographError("is damaged"), 5: np.ones((40, 40), np.float32)}
    )
    table = track_defects(movie, TrackParams("WS2"), network=network)
    assert set(table.drift["frame"]) == set(range(10)) - {3, 5}
    notes = " ".join(table.provenance.notes)
    assert "frame 3 is damaged" in notes and "frame 5 is 40x40 px" in notes
    good, said, known, *_ = count_links(table.frame, made.truth[~made.truth["frame"].isin([3, 5])], params)
    assert 2.0 * good / (said + known) > 0.85


def test_movies_that_cannot_be_followed() -> None:
    size = Calibration((0.025, 0.025), "user")
    amorphous = noise_image((4, 128, 128))
    with pytest.raises(MicrographError, match="not periodic"):
        track_defects(Movie(lambda: iter(amorphous), 4, size, source="film.npy"), TrackParams("WS2"))
    one = draw(shape=(128, 128)).image
    with pytest.raises(MicrographError, match="1 of its frames can be read"):
        track_defects(Movie(lambda: iter([one]), 1, size, source="one.npy"), TrackParams("WS2"))
    with pytest.raises(MicrographError, match=r"none of its frames can be read: the first one is damaged"):
        track_defects(Movie(lambda: iter([MicrographError("is damaged")]), 1, size), TrackParams("WS2"))


def test_states_of_a_site_through_a_gap() -> None:
    """Evidence for a defect, two frames that say nothing, evidence again: it was there all the time."""
    emission = np.ones((12, 3))
    emission[2:5, 1] = emission[7:9, 1] = 40.0
    emission[[0, 1, 9, 10, 11], 1:] = 0.02
    p = smooth(emission, share=0.02)
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (p[2:9, 1] > 0.8).all()
    assert (p[[0, 1, 10, 11], 0] > 0.9).all()
    # A single frame of the same strength is noise.
    alone = np.full((12, 3), 0.02)
    alone[:, 0], alone[5, 1] = 1.0, 40.0
    assert smooth(alone, share=0.002)[5, 0] > 0.5


def test_jobs_are_taken_when_they_are_needed() -> None:
    taken: list[int] = []

    def jobs() -> Any:
        for number in range(20):
            taken.append(number)
            yield number

    made = stream(lambda number: number**2, jobs(), workers=2)
    assert [next(made) for _ in range(3)] == [0, 1, 4]
    assert len(taken) <= 6
    assert list(made) == [number**2 for number in range(3, 20)]


# What tracks say


def make_track(number: int, frames: list[int], xs: list[float], kinds: list[str]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": "m",
            "track_id": number,
            "frame": frames,
            "time_s": [0.5 * frame for frame in frames],
            "kind": kinds,
            "kind_p": 1.0,
            "row_px": 50.0,
            "col_px": 50.0,
            "x_nm": xs,
            "y_nm": 1.0,
            "sublattice": "chalcogen",
            "intensity_ratio": 0.4,
            "site": [f"{x}" for x in xs],
        }
    )


@pytest.fixture
def two_tracks() -> pd.DataFrame:
    return pd.concat(
        [
            make_track(1, [0, 1, 2, 3], [0.0, 0.0, 0.3, 0.3], ["V_S", "V_S", "V_S", "V_S2"]),
            make_track(2, [2, 3, 5], [2.0, 2.0, 2.0], ["V_S", "V_S", "V_S"]),
        ],
        ignore_index=True,
    )


def test_events_of_two_tracks(two_tracks: pd.DataFrame) -> None:
    events = find_events(two_tracks, np.arange(6), shape=(100, 100), margin_px=5.0)
    said = [(row.event, row.track_id, row.frame) for row in events.itertuples()]
    assert said == [
        ("hop", 1, 2),
        ("appearance", 2, 2),
        ("transformation", 1, 3),
        ("disappearance", 1, 4),
    ]
    assert events["distance_nm"].iloc[0] == pytest.approx(0.3)
    assert events["time_s"].iloc[-1] == pytest.approx(2.0)
    at_rim = two_tracks.assign(row_px=2.0)
    again = find_events(at_rim, np.arange(6), shape=(100, 100), margin_px=5.0)
    assert set(again["event"]) == {"hop", "entered", "transformation", "left"}


def test_transitions_dwell_times_and_rates(two_tracks: pd.DataFrame) -> None:
    frames = np.arange(6)
    transitions = count_transitions(two_tracks, frames).set_index(["kind", "kind_after"])
    assert transitions.loc[("V_S", "V_S"), "count"] == 4
    assert transitions.loc[("V_S", "V_S2"), "count"] == 1
    assert transitions.loc[("V_S2", "none"), "count"] == 1
    # Jeffreys' prior: (4 + 1/2) of (5 + 3/2); the interval is that of a beta distribution.
    assert transitions.loc[("V_S", "V_S"), "p"] == pytest.approx(4.5 / 6.5)
    assert transitions.loc[("V_S", "V_S"), "low"] == pytest.approx(stats.beta.ppf(0.025, 4.5, 2.0))
    gone = count_transitions(two_tracks, frames, left={1}).set_index(["kind", "kind_after"])
    assert gone.loc[("V_S2", "none"), "count"] == 0
    assert transitions.groupby("kind")["p"].sum().to_numpy() == pytest.approx(1.0)
    dwell = measure_dwell(two_tracks, frames)
    assert sorted(dwell["frames"]) == [1, 1, 2, 4]
    assert dwell[dwell["frames"] == 2]["cut"].all()
    assert dwell["ended"].tolist() == [True, True, True, False]
    assert measure_dwell(two_tracks, frames, left={1})["ended"].tolist() == [True, True, False, False]
    events = find_events(two_tracks, frames, shape=(100, 100), margin_px=5.0)
    # The first track is watched over four steps, its disappearance included, the second one over three.
    rates = measure_rates(events, two_tracks, frames, area_nm2=20.0, frame_s=0.5).set_index("event")
    assert rates.loc["hop", "per_frame"] == pytest.approx(1 / 7)
    assert rates.loc["hop", "per_s"] == pytest.approx(2 / 7)
    assert rates.loc["hop", "low"] < 1 / 7 < rates.loc["hop", "high"]
    # One appearance in 20 nm² over five steps.
    assert rates.loc["appearance", "per_frame"] == pytest.approx(1 / 100)
    assert rates["per"].to_dict() == {
        "appearance": "nm²", "disappearance": "defect", "hop": "defect", "transformation": "defect"
    }  # fmt: skip
    counts = count_kinds(two_tracks, frames)
    assert counts["V_S"].tolist() == [1, 1, 2, 1, 0, 1]


def test_an_interval_from_one_track_is_unknown(two_tracks: pd.DataFrame) -> None:
    frames = np.arange(6)
    lone = two_tracks[two_tracks["track_id"] == 1]
    events = find_events(lone, frames, shape=(100, 100), margin_px=5.0)
    rates = measure_rates(events, lone, frames, area_nm2=20.0, frame_s=None).set_index("event")
    assert np.isnan(rates.loc["hop", ["low", "high", "per_s"]].to_numpy(float)).all()
    stays = measure_lifetimes(measure_dwell(lone, frames), frame_s=None)
    assert np.isnan(stays[["low", "high"]].to_numpy()).all()
    walk = make_track(1, list(range(40)), list(np.cumsum(np.ones(40))), ["V_S"] * 40)
    (spread,) = measure_diffusion(walk)
    assert np.isfinite(spread.coefficient) and np.isnan([spread.low, spread.high]).all()


def test_stays_that_outlast_the_movie_count_and_the_interval_covers_the_truth() -> None:
    """Stays of 12 frames in the mean, watched through windows of 10 frames: most of them are cut."""
    rng = np.random.default_rng(8)
    truth, covered, naive, trials = 12.0, 0, [], 100
    for _ in range(trials):
        lasting = np.ceil(rng.exponential(truth, 30)).astype(int)
        ended = lasting < 10
        stays = pd.DataFrame(
            {"track_id": np.arange(30), "kind": "V_S", "frames": np.minimum(lasting, 10), "ended": ended}
        )
        found = measure_lifetimes(stays, frame_s=2.0).iloc[0]
        assert found["mean_s"] == pytest.approx(2.0 * found["mean_frames"])
        covered += found["low"] <= truth <= found["high"]
        naive.append(lasting[ended].mean())
    assert covered >= 0.93 * trials
    assert np.mean(naive) < 0.5 * truth  # what the stays that ended would say alone


def test_a_kind_that_never_left_has_no_upper_bound() -> None:
    stays = pd.DataFrame({"track_id": [1, 2], "kind": "V_S", "frames": [20, 20], "ended": False})
    found = measure_lifetimes(stays, frame_s=None).iloc[0]
    assert found["mean_frames"] == found["high"] == np.inf and 5.0 < found["low"] < 20.0


def test_few_tracks_give_wide_and_honest_intervals_of_diffusion() -> None:
    rng = np.random.default_rng(9)
    true, covered, trials = 0.02, 0, 40
    for _ in range(trials):
        steps = rng.normal(0.0, np.sqrt(2.0 * true), (4, 30, 2)).cumsum(axis=1)
        parts = [
            make_track(number, list(range(30)), list(walk[:, 0]), ["V_S"] * 30).assign(y_nm=walk[:, 1])
            for number, walk in enumerate(steps)
        ]
        (found,) = measure_diffusion(pd.concat(parts))
        covered += found.low <= true <= found.high
    assert covered >= 0.88 * trials


def test_diffusion_of_random_walks_without_the_error_of_places() -> None:
    rng = np.random.default_rng(3)
    true, error = 0.02, 0.15
    parts = []
    for number in range(60):
        steps = rng.normal(0.0, np.sqrt(2.0 * true), (40, 2))
        places = np.cumsum(steps, axis=0) + rng.normal(0.0, error, (40, 2))
        track = make_track(number, list(range(40)), list(places[:, 0]), ["V_S"] * 40)
        parts.append(track.assign(y_nm=places[:, 1]))
    (found,) = measure_diffusion(pd.concat(parts))
    assert found.low < true < found.high
    assert found.coefficient == pytest.approx(true, rel=0.15)
    assert found.error_nm == pytest.approx(error, rel=0.15)
    # The published formula counts that error as motion: D + σ².
    assert found.by_variance == pytest.approx(true + error**2, rel=0.1)


# Movies as files


def test_stacks_and_videos_are_read_frame_by_frame(tmp_path: Path) -> None:
    import tifffile

    frames = np.random.default_rng(0).integers(0, 60000, (5, 32, 48), np.uint16)
    np.save(tmp_path / "a.npy", frames)
    tifffile.imwrite(tmp_path / "a.tif", frames)
    tifffile.imwrite(tmp_path / "b.tif", frames, imagej=True)
    for name in ("a.npy", "a.tif", "b.tif"):
        movie = read_movie(tmp_path / name, um_per_px=2e-5, frame_s=0.2)
        assert movie.count == 5 and movie.frame_s == 0.2
        np.testing.assert_array_equal(np.stack(list(movie)), frames)
        np.testing.assert_array_equal(np.stack(list(movie)), frames)  # again from the start
        assert movie.calibration is not None
        assert movie.calibration.pixel_size_nm == pytest.approx((0.02, 0.02))


def test_videos_survive_a_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("av")
    rows, cols = np.mgrid[:64, :80]
    frames = [
        np.repeat((127 + 100 * np.sin(0.2 * rows + 0.1 * cols + t)).astype(np.uint8)[..., None], 3, 2)
        for t in range(6)
    ]
    write_movie(tmp_path / "a.mp4", iter(frames), frame_s=0.5)
    movie = read_movie(tmp_path / "a.mp4")
    seen = list(movie)
    assert len(seen) == 6 and movie.frame_s == pytest.approx(0.5)
    assert not movie.notes  # gray, so nothing had to be decided
    assert np.abs(np.stack(seen).astype(float) - np.stack(frames)[..., 0]).mean() < 6.0
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(MicrographError, match="no video that can be read"):
        read_movie(tmp_path / "cut.mp4")


def test_a_frame_that_is_none() -> None:
    for frame, said in (
        (np.ones((30, 30)), "is 1 everywhere"),
        (np.full((30, 30), np.nan), "NaN"),
        (np.ones((4, 30)), "is no image"),
        (np.ones((30, 30, 7)), "is no image"),
    ):
        with pytest.raises(MicrographError, match=said):
            check_frame(frame)


def test_files_that_are_no_movies(tmp_path: Path) -> None:
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "bad.tif").write_bytes(b"II*\0nothing")
    np.save(tmp_path / "five.npy", np.zeros((2, 3, 4, 5, 6)))
    for name, said in (
        ("gone.npy", "no such file"),
        ("empty.npy", "the file is empty"),
        ("text.npy", "no npy file"),
        ("bad.tif", "holds no page"),
        ("five.npy", "is no movie"),
        ("movie.docx", "is no movie"),
    ):
        with pytest.raises(MicrographError, match=said):
            read_movie(tmp_path / name)


# The command


def test_the_command_answers_images_and_movies(
    tmp_path: Path, hopping: tuple[HoppingParams, HoppingMovie], capsys: Any
) -> None:
    params, made = hopping
    np.save(tmp_path / "movie.npy", made.frames[:5])
    np.save(tmp_path / "scan.npy", made.frames[0])
    np.save(tmp_path / "film.npy", noise_image((128, 128)))
    out = tmp_path / "out"
    inputs = [str(tmp_path / name) for name in ("movie.npy", "scan.npy", "film.npy")]
    size = ["--nm-per-px", str(params.optics.pixel_nm), "--frame-s", "0.5"]
    code = run(["defects", *inputs, "--material", "WS2", *size, "--out", str(out)])
    said = capsys.readouterr()
    assert code == 1
    assert "film.npy: not periodic" in said.err
    found = pd.read_csv(out / "defects.csv", keep_default_na=False)
    assert list(found.columns) == list(column_names(DEFECT_COLUMNS))
    failed = found[found["status"] == "failed"]
    assert set(failed["image"]) == {"film.npy"} and failed["reason"].str.startswith("not periodic").all()
    assert set(found["image"]) == {"movie.npy", "scan.npy", "film.npy"}
    assert set(found.loc[found["image"] == "movie.npy", "frame"].astype(int)) == set(range(5))
    tracks = pd.read_csv(out / "tracks.csv")
    assert list(tracks.columns) == list(column_names(TRACK_COLUMNS))
    assert set(tracks["time_s"]) <= {0.0, 0.5, 1.0, 1.5, 2.0}
    assert list(pd.read_csv(out / "events.csv").columns) == list(column_names(EVENT_COLUMNS))
    page = (out / "report.html").read_text("utf-8")
    assert page.count("<img") >= 3 and "movie.npy: what a defect is one frame later" in page
    assert {"scan.defects.png", "movie.defects.mp4", "run.json"} <= {path.name for path in out.iterdir()}


def test_ctrl_c_in_a_movie_keeps_what_was_seen(
    tmp_path: Path, hopping: tuple[HoppingParams, HoppingMovie], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flatscope.runs import defects

    _, made = hopping
    np.save(tmp_path / "movie.npy", made.frames)
    opened = defects.read_movie

    def interrupted(path: Path, **settings: Any) -> Movie:
        movie = opened(path, **settings)
        rounds = iter(range(10))

        def each() -> Any:
            second = next(rounds) == 1  # the first round learns, the second follows
            for number, frame in enumerate(movie.open()):
                if second and number == 6:
                    os.kill(os.getpid(), signal.SIGINT)
                yield frame

        return replace(movie, open=each)

    monkeypatch.setattr(defects, "read_movie", interrupted)
    before = signal.getsignal(signal.SIGINT)
    out = tmp_path / "out"
    assert run(["defects", str(tmp_path / "movie.npy"), "--material", "WS2", "--out", str(out)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    frames = set(pd.read_csv(out / "tracks.csv")["frame"])
    assert max(frames) < 8 and len(frames) >= 5


@pytest.mark.real
def test_dopants_that_experts_marked(real_data: Path) -> None:
    """Thresholds chosen on these labels reach 0.92; here none is."""
    from flatscope.evaluation.defects import evaluate_labels

    folder = real_data / "electron" / "wse2_ti"
    pytest.importorskip("rsciio")
    scores = {
        one.kind: one
        for one in evaluate_labels(
            folder / "ti_wse2_adf2.dm4", folder / "ti_wse2_columns.csv", DefectParams("WSe2", dopants="Ti")
        )
    }
    assert scores["Ti_W"].f1.value > 0.9
    assert scores["all defects"].f1.value > 0.88


@pytest.mark.real
def test_a_silicon_atom_is_one_track(real_data: Path) -> None:
    pytest.importorskip("av")
    movie = read_movie(real_data / "electron" / "graphene_si" / "si_in_graphene.mp4", um_per_px=1.55e-5)
    table = flatscope.track_defects(movie, flatscope.TrackParams("graphene", dopants="Si"))
    longest = table.frame.groupby("track_id").size().idxmax()
    track = table.frame[table.frame["track_id"] == longest]
    assert len(track) == 30 and set(track["kind"]) == {"Si_C"}
    bright = [
        np.argwhere(blurred == blurred.max())[0]
        for frame in movie
        for blurred in [ndimage.gaussian_filter(np.asarray(frame, float), 3.0)[10:-10, 10:-10]]
    ]
    away = np.hypot(*(track[["row_px", "col_px"]].to_numpy() - np.array(bright) - 10.0).T)
    # Contamination in a corner is brighter in a few frames; elsewhere the brightest spot is the atom.
    assert np.median(away) < 6.0


# Training and studies


def test_windows_of_one_sheet_stay_together_and_networks_name_them(network: Network) -> None:
    from flatscope.evaluation.windows import KINDS, classify_windows, draw_windows

    windows = draw_windows(6, seed=3, electrons_per_px=100.0)
    again = draw_windows(2, seed=3, electrons_per_px=100.0)
    np.testing.assert_array_equal(windows.images[: len(again.images)], again.images)
    assert (np.diff(windows.sheets) >= 0).all() and set(windows.kinds) == set(range(len(KINDS)))
    assert (classify_windows(windows, network) == windows.kinds).mean() > 0.95


def test_a_drifted_corrector_changes_what_is_seen_not_what_is_there(network: Network) -> None:
    from flatscope.evaluation.windows import classify_windows, draw_windows, find_best_accuracy

    tuned, drifted = (draw_windows(6, seed=3, electrons_per_px=100.0, misaligned=one) for one in (0.0, 1.0))
    np.testing.assert_array_equal(tuned.kinds, drifted.kinds)
    assert np.abs(tuned.images - drifted.images).mean() > 0.01
    right = [(classify_windows(one, network) == one.kinds).mean() for one in (tuned, drifted)]
    best = find_best_accuracy("scan", 100.0, misaligned=1.0)
    assert best is not None and right[1] < right[0] and right[1] < best + 0.03


def test_nobody_names_windows_better_than_the_likelihood(network: Network) -> None:
    from flatscope.evaluation.windows import classify_windows, draw_windows, find_best_accuracy

    few, many = (find_best_accuracy("scan", dose) for dose in (1.0, 10.0))
    gaussian = find_best_accuracy("gaussian", None)
    assert few is not None and many is not None and gaussian is not None
    assert 0.7 < few < 0.97 < many <= 1.0
    assert find_best_accuracy("s&p", None) is None
    windows = draw_windows(10, seed=6, noise="gaussian")
    right = (classify_windows(windows, network) == windows.kinds).mean()
    # About 200 windows: what is 0.93 and more of what can be had.
    assert 0.93 * gaussian < right < gaussian + 0.03


@pytest.mark.slow
def test_the_site_network_is_trained_and_exported(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from flatscope.training import defects as home
    from flatscope.training import onnx_export, recipes

    recipe = recipes.load(
        "defects", scenes_train=6, scenes_val=3, scene_px=128, widths=[8, 8, 8], epochs=1, batch=16
    )
    assert len(SITE_CLASSES) == GROUPS[-1][1]
    drawn = [home.draw_crops(3, side=128, seed=1, workers=workers) for workers in (1, 2)]
    np.testing.assert_array_equal(drawn[0].images, drawn[1].images)
    outcome = home.train(recipe, out=tmp_path, workers=1)
    path = onnx_export.export(outcome.net, outcome.card, tmp_path / "own.onnx")
    own = Network.load(path, task="defects", threads=1)
    # The exported network says of each crop what the trained one says.
    crops = home.supervised.to_tensor(drawn[0].images)
    maps = outcome.net(crops).detach().numpy()
    assert maps.shape[1] == len(SITE_CLASSES) and np.ptp(maps.mean((2, 3)), axis=0).min() > 0.01
    np.testing.assert_allclose(own.run(crops.numpy()), maps, atol=1e-4)
    # Probabilities sharpened, order kept.
    outcome.net.sharpen(0.5)
    np.testing.assert_allclose(outcome.net(crops).detach().numpy(), 0.5 * maps, atol=1e-5)


def reproduce(study: str, folder: Path, capsys: Any, *more: str) -> list[dict[str, Any]]:
    """The numbers of a study at its smallest size, which stand on a page with a picture."""
    assert run(["reproduce", study, "--quick", "--out", str(folder), "--json", *more]) == 0
    page = (folder / f"{study}.html").read_text("utf-8")
    assert page.count("<img") >= 1 and "flatscope" in page
    numbers: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return numbers


@pytest.mark.slow
def test_defectfinders_study_sets_chance_beside_flatscope(tmp_path: Path, capsys: Any) -> None:
    """One step teaches a network of six kinds nothing."""
    pytest.importorskip("torch")
    by_copy, by_sheet = reproduce("defectfinder2018", tmp_path, capsys)
    assert by_copy["published"] is None and by_copy["ours"] is None
    for theirs in (by_copy["reproduced"], by_sheet["reproduced"]):
        assert theirs["low"] < theirs["value"] < min(theirs["high"], 0.4)
    assert by_sheet["ours"]["low"] > 0.75
    by_copy, by_sheet = reproduce("defectfinder2018", tmp_path, capsys, "--setting", "published")
    assert by_copy["published"] == 0.9568 and by_sheet["ours"] is None


def test_maksovs_study_follows_what_its_route_untrained_does_not(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    theirs, ours = reproduce("maksov2019", tmp_path, capsys)
    assert (theirs["method"], ours["method"]) == ("published route", "flatscope")
    assert theirs["defects"] < 0.5 and theirs["links"] < 0.5
    assert ours["defects"] > 0.9 and ours["links"] > 0.9
    assert run(["reproduce", "maksov2019", "--quick", "--setting", "published", "--out", str(tmp_path)]) == 2


def test_the_honest_split_keeps_copies_of_a_window_together(tmp_path: Path) -> None:
    """As published, nearly every window has copies on both sides; by sheet, no sheet has."""
    from flatscope.evaluation.papers.defectfinder2018 import POSTER_KINDS, _draw_published

    by_copy, by_sheet = _draw_published(1200, tmp_path / "windows.npz")
    assert not set(by_sheet.tested.sheets) & {*by_sheet.known.sheets, *by_sheet.choice.sheets}
    assert set(by_copy.tested.sheets) <= set(by_copy.known.sheets)
    for split in (by_copy, by_sheet):
        shares = [len(part.kinds) / 1200 for part in (split.known, split.choice, split.tested)]
        assert shares == pytest.approx([0.536, 0.264, 0.2], abs=0.06)
        assert np.unique(split.known.kinds).tolist() == list(range(len(POSTER_KINDS)))
