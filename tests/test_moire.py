"""Stacked lattices: drawn bilayers, how many lattices an image shows, and what `flatscope moire` says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.spatial import cKDTree

from flatscope.app.cli import run
from flatscope.electron.columns import ColumnParams, find_columns
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import draw_scanned
from flatscope.electron.drawing.stacks import (
    BilayerParams,
    LayerParams,
    ScannedBilayer,
    build_bilayer,
    draw_bilayer,
)
from flatscope.electron.lattice import find_lattice, map_phases
from flatscope.electron.moire import MoireParams, find_moire
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.stack_columns import OVERLAPPING
from flatscope.electron.stacking import Other, find_others
from flatscope.evaluation.moire_multislice import build_cell, find_twist
from flatscope.files.read import read
from flatscope.micrograph import Calibration, Micrograph, MicrographError

SIDE, PIXEL_NM = 256, 0.025
SCAN = NoiseParams(gain=1.0, lag=0.2, jitter_px=0.2, drift_px=(2.0, -2.0), flyback_px=1.0)
SKEWED = ((1.01, 0.008), (-0.005, 0.992))


def bilayer(
    twist: float, *materials: str, electrons: float = 10.0, side: int = SIDE, **layers: Any
) -> ScannedBilayer:
    first, second = materials or ("MoS2", "MoS2")
    params = BilayerParams(
        (LayerParams(first, 7.0, **layers), LayerParams(second, 7.0 + twist, (0.1, 0.05), **layers)),
        distortion=SKEWED,
    )
    return draw_bilayer(
        np.random.default_rng([5, round(10 * twist)]),
        params,
        ScanParams(PIXEL_NM),
        SCAN,
        shape=(side, side),
        electrons_per_px=electrons,
    )


def monolayer(material: str, *, turn: float = 7.0, electrons: float = 10.0, **contents: Any) -> np.ndarray:
    sheet = SheetParams(material, turn_deg=turn, **contents)
    rng = np.random.default_rng([6, round(turn)])
    drawn = draw_scanned(
        rng, sheet, ScanParams(PIXEL_NM), SCAN, shape=(SIDE, SIDE), electrons_per_px=electrons
    )
    return np.asarray(drawn.image, float)


def look(image: np.ndarray, *, most: int = 1) -> tuple[Other, ...]:
    image = np.asarray(image, float)
    return find_others(image, map_phases(image, find_lattice(image)), most=most)


def as_micrograph(image: np.ndarray, pixel_nm: float | None = PIXEL_NM) -> Micrograph:
    calibration = None if pixel_nm is None else Calibration((pixel_nm, pixel_nm), "file")
    return Micrograph(image, full_scale=float(image.max()), calibration=calibration, source="scan")


# --- drawn bilayers --------------------------------------------------------------------------------------------------


def test_relaxed_layers_move_towards_ab_stacking_and_shrink_aa() -> None:
    """Metal columns near a metal column of the other layer become fewer, those near a chalcogen column more."""

    def count(relax_nm: float) -> tuple[int, int]:
        params = BilayerParams((LayerParams(), LayerParams(turn_deg=2.0)), relax_nm=relax_nm)
        sheet, layer = build_bilayer(np.random.default_rng(0), params, field_nm=(20.0, 20.0))
        top = sheet.sites_nm[(layer == 0) & (sheet.sublattice == 0)]
        below = [sheet.sites_nm[(layer == 1) & (sheet.sublattice == kind)] for kind in (0, 1)]
        gaps = [np.hypot(*(top[:, None] - one[None]).transpose(2, 0, 1)).min(1) for one in below]
        return int((gaps[0] < 0.06).sum()), int((gaps[1] < 0.06).sum())

    rigid, relaxed = count(0.0), count(0.08)
    assert relaxed[0] < 0.8 * rigid[0] and relaxed[1] > 1.1 * rigid[1]


def test_vacancies_strain_and_distortion_are_in_the_truth_of_a_bilayer() -> None:
    rng = np.random.default_rng(1)
    layers = (LayerParams(vacancies={"first": 0.1}), LayerParams("WSe2", 30.0, strain=(0.02, 0.02, 0.0)))
    sheet, layer = build_bilayer(rng, BilayerParams(layers, distortion=SKEWED), field_nm=(8.0, 8.0))
    metal = sheet.sublattice == 0
    assert 0.05 < float((sheet.species[metal & (layer == 0)] == "").mean()) < 0.15
    assert not (sheet.species[layer == 1] == "").any()
    metals = [sheet.sites_nm[metal & (layer == one)] @ np.linalg.inv(SKEWED).T for one in (0, 1)]
    steps = [float(np.median(cKDTree(places).query(places, k=2)[0][:, 1])) for places in metals]
    assert steps == pytest.approx([0.316, 0.3282 * 1.02], rel=1e-6)


# --- how many lattices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("materials", "twist"),
    [
        (("MoS2", "MoS2"), 20.0),
        (("MoS2", "MoS2"), 5.0),
        (("graphene", "graphene"), 13.0),
        (("graphene", "hBN"), 28.0),
        (("WSe2", "MoS2"), 9.0),
    ],
)
def test_a_twisted_bilayer_is_two_lattices_whose_angle_the_scan_does_not_change(
    materials: tuple[str, str], twist: float
) -> None:
    (other,) = look(bilayer(twist, *materials).scanned.image)
    assert abs(other.twist_deg) == pytest.approx(twist, abs=0.25)


@pytest.mark.parametrize("electrons", [0.5, 5.0, 500.0])
@pytest.mark.parametrize("material", ["MoS2", "graphene", "WSe2"])
def test_a_monolayer_is_one_lattice_at_every_dose(material: str, electrons: float) -> None:
    image = monolayer(material, electrons=electrons, vacancies={"first": 0.02}, holes=1, patches=1)
    assert look(image) == ()


def test_two_grains_side_by_side_are_no_stack() -> None:
    assert look(monolayer("WS2", electrons=50.0, grain_deg=20.0)) == ()


def test_atoms_refuse_a_bilayer_and_say_what_it_is(tmp_path: Path, capsys: Any) -> None:
    image = bilayer(20.0).scanned.image
    with pytest.raises(MicrographError, match=r"^scan: two lattices, twisted by 20°: flatscope moire$"):
        find_columns(as_micrograph(image), ColumnParams("MoS2"))
    np.save(tmp_path / "stack.npy", image)
    np.save(tmp_path / "flat.npy", monolayer("MoS2").astype(np.float32))
    for verb in ("atoms", "defects"):
        args = ["--material", "MoS2", "--workers", "1", "--out"]
        assert run([verb, str(tmp_path / "stack.npy"), *args, str(tmp_path / f"{verb}1")]) == 2
        assert "two lattices, twisted by 20°: flatscope moire" in capsys.readouterr().err
    both = [str(tmp_path / "stack.npy"), str(tmp_path / "flat.npy")]
    assert run(["atoms", *both, *args, str(tmp_path / "both")]) == 1
    assert ",failed,two lattices" in (tmp_path / "both" / "columns.csv").read_text("utf-8").replace('"', "")


@pytest.mark.real
def test_the_real_bilayer_is_two_lattices_and_the_real_monolayers_are_one(real_data: Path) -> None:
    folder = real_data / "electron"

    def open_image(name: str) -> np.ndarray:
        pixels = read(folder / name, modality="electron").pixels
        return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 0], float)

    (other,) = look(open_image("bilayers/twisted_graphene.png"))
    assert abs(other.twist_deg) == pytest.approx(5.2, abs=0.4)
    assert other.ratio == pytest.approx(1.0, abs=0.015)
    for name in ("mos2/mos2_haadf.npy", "other/graphene_film.png", "other/mos2_holes.png"):
        assert look(open_image(name)) == (), name


# --- flatscope moire -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("materials", "twist"), [(("MoS2",), 21.0), (("MoS2",), 55.0), (("MoS2", "WSe2"), 12.0)]
)
def test_twist_and_columns_of_drawn_bilayers_come_back(materials: tuple[str, ...], twist: float) -> None:
    drawn = bilayer(twist, materials[0], materials[-1], vacancies={"first": 0.02})
    table = find_moire(as_micrograph(drawn.scanned.image), MoireParams("/".join(materials)))
    (row,) = table.frame.to_dict("records")
    turned = twist if row["kind"] else min(twist, 60.0 - twist)
    assert row["twist_deg"] == pytest.approx(turned, abs=4.0 * row["twist_sigma_deg"])
    assert 0.001 < row["twist_sigma_deg"] < 0.02
    assert abs(row["strain_percent"]) < 0.2 and row["shear_percent"] < 0.2
    assert sum(row[f"share_{name}"] for name in ("aa", "ab", "ba", "sp")) == pytest.approx(1.0)
    sheet, columns = drawn.scanned.sheet, table.columns
    clear = columns[(columns["status"] != "rejected") & (columns["reason"] != OVERLAPPING)]
    at = clear[["row_px", "col_px"]].to_numpy(float)
    gap, nearest = cKDTree(sheet.sites_nm / PIXEL_NM).query(at)
    assert float(np.sqrt(np.mean(gap**2) / 2.0)) * PIXEL_NM < 0.005
    true = np.where(sheet.species[nearest] == "", "none", sheet.species[nearest])
    if row["kind"]:
        assert float((true == clear["species"]).mean()) > 0.97
        gone = (true == "none") & (sheet.sublattice[nearest] == 0)
        assert float((clear["species"][gone] == "none").mean()) > 0.9
    layer = drawn.layer[nearest]
    same = float((layer == clear["layer"] - 1).mean())
    assert max(same, 1.0 - same) > 0.995


def test_strain_of_one_layer_is_measured_against_the_other() -> None:
    layers = (LayerParams("MoS2", 3.0), LayerParams("MoS2", 18.0, strain=(0.006, 0.006, 0.0)))
    drawn = draw_bilayer(
        np.random.default_rng(2),
        BilayerParams(layers, distortion=SKEWED),
        ScanParams(PIXEL_NM),
        SCAN,
        shape=(SIDE, SIDE),
        electrons_per_px=20.0,
    )
    (row,) = find_moire(as_micrograph(drawn.scanned.image), MoireParams("MoS2")).frame.to_dict("records")
    assert abs(row["strain_percent"]) == pytest.approx(0.6, abs=0.1)
    assert row["twist_deg"] == pytest.approx(15.0, abs=0.1)


@pytest.mark.slow
def test_domains_of_relaxed_layers_show_in_the_map_of_stacking() -> None:
    """AB and BA grow against rigid layers, AA shrinks, and each column is found where relaxation took it."""

    def measure(relax_nm: float) -> tuple[pd.Series[Any], float]:
        layers = (LayerParams("MoS2", 3.0), LayerParams("MoS2", 6.2))
        drawn = draw_bilayer(
            np.random.default_rng(3),
            BilayerParams(layers, relax_nm=relax_nm, distortion=SKEWED),
            ScanParams(PIXEL_NM),
            SCAN,
            shape=(400, 400),
            electrons_per_px=10.0,
        )
        table = find_moire(as_micrograph(drawn.scanned.image), MoireParams("MoS2"))
        at = table.columns.loc[table.columns["status"] != "rejected", ["row_px", "col_px"]].to_numpy(float)
        true = drawn.scanned.sheet.sites_nm / PIXEL_NM
        off = at - true[cKDTree(true).query(at)[1]]
        # A detector that lags moves all of them.
        off -= np.median(off, axis=0)
        return table.frame.iloc[0], float(np.sqrt(np.mean(off**2))) * PIXEL_NM

    rigid, _ = measure(0.0)
    relaxed, off = measure(0.08)
    assert rigid["reason"] == "" and "bent against each other" in relaxed["reason"]
    assert relaxed["share_aa"] < 0.6 * rigid["share_aa"]
    assert min(relaxed["share_ab"], relaxed["share_ba"]) > 1.3 * max(rigid["share_ab"], rigid["share_ba"])
    assert off < 0.004
    assert abs(relaxed["twist_deg"] - 3.2) < 3.0 * relaxed["twist_sigma_deg"]


def test_materials_and_pixel_sizes_that_do_not_fit_are_said() -> None:
    image = bilayer(12.0, "MoS2", "WSe2").scanned.image
    (row,) = find_moire(as_micrograph(image), MoireParams("MoS2")).frame.to_dict("records")
    assert row["status"] == "uncertain" and "check --material" in row["reason"]
    image = bilayer(21.0).scanned.image
    (row,) = find_moire(as_micrograph(image, 1.38 * PIXEL_NM), MoireParams("MoS2")).frame.to_dict("records")
    assert row["status"] == "uncertain" and "the stated pixel size is off by +38%" in row["reason"]
    with pytest.raises(ValueError, match="names 3 layers: flatscope moire reads two"):
        MoireParams("MoS2/WSe2/hBN")


@pytest.mark.parametrize(
    ("material", "turn", "bonds", "seen"),
    [
        ("graphene", 0.0, 1.0, "an untwisted bilayer in AB stacking"),
        ("WSe2", 60.0, 1.0, "an untwisted 2H bilayer, or a monolayer at medium angles"),
        ("WSe2", 0.0, 1.0, "an untwisted 3R bilayer, or another material"),
        ("MoS2", None, 0.0, "a monolayer, or layers that are not twisted"),
    ],
)
def test_what_one_lattice_may_be_is_said(material: str, turn: float | None, bonds: float, seen: str) -> None:
    shift = bonds * find_crystal(material).lattice_nm / np.sqrt(3.0)
    second = () if turn is None else (LayerParams(material, turn, (shift, 0.0)),)
    drawn = draw_bilayer(
        np.random.default_rng(1),
        BilayerParams((LayerParams(material), *second)),
        ScanParams(PIXEL_NM, voltage_kv=200.0, convergence_mrad=22.0, collection_mrad=(80.0, 250.0)),
        SCAN,
        shape=(SIDE, SIDE),
        electrons_per_px=20.0,
    )
    with pytest.raises(MicrographError, match=f"one lattice only: .*{seen}"):
        find_moire(as_micrograph(drawn.scanned.image), MoireParams(material))


@pytest.mark.parametrize(("index", "twist"), [((1, 2), 21.787), ((2, 3), 13.174)])
def test_the_cell_that_two_layers_share_repeats(index: tuple[int, int], twist: float) -> None:
    sheet, layer, size = build_cell("MoS2", index)
    assert find_twist(index) == pytest.approx(twist, abs=1e-3)
    for number in (0, 1):
        metal = sheet.sites_nm[(layer == number) & (sheet.sublattice == 0)]
        gap = cKDTree(metal, boxsize=size).query(metal, k=2)[0][:, 1]
        assert gap == pytest.approx(0.316, abs=1e-6)


def test_three_lattices_are_no_bilayer() -> None:
    layers = tuple(LayerParams("MoS2", turn) for turn in (3.0, 14.0, 35.0))
    drawn = draw_bilayer(
        np.random.default_rng(2),
        BilayerParams(layers),
        ScanParams(PIXEL_NM),
        SCAN,
        shape=(SIDE, SIDE),
        electrons_per_px=20.0,
    )
    with pytest.raises(MicrographError, match="three lattices or more"):
        find_moire(as_micrograph(drawn.scanned.image), MoireParams("MoS2"))


def test_the_command_writes_a_row_a_pair_and_the_columns_of_both_layers(tmp_path: Path, capsys: Any) -> None:
    np.save(tmp_path / "stack.npy", bilayer(21.0).scanned.image)
    np.save(tmp_path / "flat.npy", monolayer("MoS2").astype(np.float32))
    inputs = [str(tmp_path / "stack.npy"), str(tmp_path / "flat.npy")]
    args = ["--material", "MoS2", "--workers", "1", "--out"]
    assert run(["moire", *inputs, *args, str(tmp_path / "out")]) == 1
    rows = pd.read_csv(tmp_path / "out" / "moire.csv")
    assert rows["status"].tolist() == ["accepted", "failed"] and "one lattice only" in rows["reason"][1]
    columns = pd.read_csv(tmp_path / "out" / "columns.csv")
    assert set(columns["layer"].dropna()) == {1, 2}
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"stack.layers.png", "stack.xyz", "stack.cif", "report.html"} <= written
    assert run(["moire", inputs[1], *args, str(tmp_path / "alone")]) == 2
    assert "one lattice only" in capsys.readouterr().err
