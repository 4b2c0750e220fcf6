"""Lattices in images that nobody tuned the microscope for: bright atoms, dirt, bends, few electrons, other phases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial import cKDTree

from flatscope.electron.columns import ColumnParams, find_columns
from flatscope.electron.defects import DefectParams, find_defects
from flatscope.electron.lattice import NoLatticeError, find_lattice, map_phases
from flatscope.electron.levelling import quieten
from flatscope.electron.physics.crystals import CRYSTALS, SheetParams, build_sheet, find_crystal
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.electron.sublattices import weigh_brightness
from flatscope.evaluation.defects import evaluate_route
from flatscope.micrograph import Calibration, Micrograph, MicrographError

PIXEL_NM = 0.02


def expose(mean: np.ndarray, electrons: float, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).poisson(np.maximum(mean / mean.mean() * electrons, 0.0)).astype(float)


def as_micrograph(image: np.ndarray, pixel_nm: float = PIXEL_NM) -> Micrograph:
    calibration = Calibration((pixel_nm, pixel_nm), "file")
    return Micrograph(image, full_scale=float(image.max()), calibration=calibration, sha256="-")


def test_a_bright_atom_and_dirt_hide_no_graphene() -> None:
    side = 200
    sheet = build_sheet(np.random.default_rng(2), SheetParams("graphene", (4.0, 4.0), turn_deg=11.0))
    mean = draw_adf(sheet, ScanParams(PIXEL_NM), shape=(side, side))
    heavy = sheet.sites_nm[np.hypot(*(sheet.sites_nm - 2.0).T).argmin()] / PIXEL_NM
    rows, cols = np.mgrid[:side, :side]
    mean = mean + 8.0 * np.ptp(mean) * np.exp(
        -0.5 * ((rows - heavy[0]) ** 2 + (cols - heavy[1]) ** 2) / 3.0**2
    )
    mean[:50, :60] += 3.0 * np.ptp(mean)
    image = expose(mean, 6.0)
    found = find_columns(as_micrograph(image), ColumnParams("graphene")).found
    true = sheet.sites_nm / PIXEL_NM
    clean = ((true > 3) & (true < side - 4)).all(1) & ((true[:, 0] > 62) | (true[:, 1] > 72))
    gap, _ = cKDTree(found[["row_px", "col_px"]].to_numpy(float)).query(true[clean])
    assert (gap < 2.5).mean() > 0.95
    defects = find_defects(as_micrograph(image), DefectParams("graphene", dopants="Si")).found
    places = defects.loc[defects["kind"] == "Si_C", ["row_px", "col_px"]].to_numpy(float)
    assert (np.hypot(*(places - heavy).T) * PIXEL_NM < 0.1).sum() == 1


def test_noise_of_any_filter_is_no_lattice_at_the_expected_size_either() -> None:
    for seed, sigma in enumerate((0.0, 1.0, 2.0)):
        noise = np.random.default_rng(seed).poisson(1.0, (3, 160, 160)).astype(float)
        with pytest.raises(NoLatticeError):
            find_lattice(ndimage.gaussian_filter(noise, (0, sigma, sigma)), expected_px=16.0)


def test_a_lattice_bent_by_six_degrees_has_each_site_once() -> None:
    side = 260
    sheet = build_sheet(np.random.default_rng(3), SheetParams("MoS2", (side * PIXEL_NM,) * 2, turn_deg=13.0))
    mean = draw_adf(sheet, ScanParams(PIXEL_NM), shape=(side, side))
    rows, cols = np.mgrid[:side, :side]
    bend, along = np.deg2rad(6.0), (cols - side / 2) / side
    source = np.stack([rows + 0.5 * bend * along**2 * side, cols - bend * along * (rows - side / 2)])
    image = expose(ndimage.map_coordinates(mean, source, order=3, mode="reflect"), 20.0)
    found = (
        find_columns(as_micrograph(image), ColumnParams("MoS2")).found[["row_px", "col_px"]].to_numpy(float)
    )
    gap, at = cKDTree(source.reshape(2, -1).T).query(sheet.sites_nm / PIXEL_NM)
    true = np.stack(np.unravel_index(at[gap < 0.8], (side, side)), axis=1)
    assert (cKDTree(true).query(found)[0] < 2.0).mean() > 0.98
    assert len(found) < 1.02 * len(true)


def test_a_doubled_cell_is_another_phase() -> None:
    sheet = build_sheet(np.random.default_rng(4), SheetParams("MoS2", (4.8, 4.8), turn_deg=5.0))
    mean = draw_adf(sheet, ScanParams(PIXEL_NM), shape=(240, 240))
    cell = map_phases(mean, find_lattice(mean)).cell
    doubled = mean * (1.0 + 0.7 * np.cos(np.pi * cell[0]))
    assert len(find_columns(as_micrograph(expose(mean, 20.0)), ColumnParams("MoS2")).found)
    with pytest.raises(MicrographError, match=r"its cell is doubled, .* not 2H MoS2"):
        find_columns(as_micrograph(expose(doubled, 20.0)), ColumnParams("MoS2"))


def test_quiet_images_hold_nothing_brighter_than_a_few_sigma() -> None:
    image = np.random.default_rng(5).normal(size=(128, 128))
    image[60:64, 60:64] += 1000.0
    assert np.abs(quieten(image)).max() < 5.0


def test_brightness_names_sublattices_by_the_detector() -> None:
    tungsten = find_crystal("WSe2")
    low, high = (weigh_brightness(0.75, 0.0, tungsten, inner_mrad=angle) for angle in (35.0, 110.0))
    assert low.first == 1 and high.first == 0
    assert all(
        weigh_brightness(0.999, 0.0, one).p < 0.6 for one in CRYSTALS.values() if one.is_dichalcogenide
    )
    assert weigh_brightness(0.5, 0.0, find_crystal("WS2")).sure
    with pytest.raises(ValueError, match="inner_mrad = -1: give the detector's inner angle"):
        DefectParams("WSe2", inner_mrad=-1.0)


@pytest.mark.slow
def test_the_route_finds_and_names_defects_beside_antisites() -> None:
    (score,) = evaluate_route(count=2, doses=(10.0,))
    assert score.f1.value > 0.9 and score.worst_f1 > 0.6
