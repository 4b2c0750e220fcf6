"""`flatscope evaluate`: what the command prints is true of answers whose faults are known."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flatscope.app.cli import run
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import Scanned, draw_scanned
from flatscope.electron.physics.crystals import Sheet, SheetParams
from flatscope.electron.physics.imaging import ScanParams, draw_adf, draw_series
from flatscope.evaluation import defects, flakes, imaging, windows
from flatscope.evaluation.collection import Mark
from flatscope.files.annotations import write_labels
from flatscope.optical.scenes import SceneParams, draw_scene

PIXEL_NM = 0.027
SIDE_PX = 192
BORDER_PX = 24


def evaluate(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    """What `flatscope evaluate ... --json` prints."""
    assert run(["evaluate", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def sulphur() -> Scanned:
    """A sheet of WS2 that lacks single sulphur atoms, and nothing else."""
    return draw_scanned(
        np.random.default_rng(1),
        SheetParams("WS2", turn_deg=17.0, vacancies={"one": 0.1}),
        ScanParams(pixel_nm=PIXEL_NM),
        NoiseParams(gain=1.0),
        shape=(SIDE_PX, SIDE_PX),
        electrons_per_px=60.0,
    )


@pytest.fixture
def labelled(sulphur: Scanned, tmp_path: Path) -> tuple[Path, pd.DataFrame]:
    """The sheet as a file, and its true columns away from the border."""
    np.save(tmp_path / "sheet.npy", sulphur.image)
    sheet = sulphur.sheet
    names = np.where(sheet.sublattice == 0, "W", np.where(sheet.species == "S", "V_S", "S2"))
    rows, cols = (sheet.sites_nm / PIXEL_NM).T
    table = pd.DataFrame({"row_px": rows, "col_px": cols, "label": names})
    inside = (
        table[["row_px", "col_px"]]
        .apply(lambda axis: axis.between(BORDER_PX, SIDE_PX - BORDER_PX))
        .all(axis=1)
    )
    return tmp_path / "sheet.npy", table[inside].reset_index(drop=True)


def test_defects_are_scored_against_what_an_expert_marked(
    labelled: tuple[Path, pd.DataFrame], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All vacancies marked: all right. Every second one marked as perfect: all found, half of what is found wrong."""
    image, table = labelled
    vacant = np.flatnonzero(table["label"] == "V_S")
    command = ["defects", "--image", image, "--labels", tmp_path / "labels.csv", "--material", "WS2"]
    command += ["--nm-per-px", PIXEL_NM]
    table.to_csv(tmp_path / "labels.csv", index=False)
    every, kind, fourier = evaluate(capsys, *command)
    assert (every["kind"], kind["kind"], every["labels"]) == ("all defects", "V_S", len(vacant))
    assert every["f1"]["value"] == kind["f1"]["value"] > 0.95
    assert "thresholds chosen on the labels" in fourier["kind"]
    table.loc[vacant[::2], "label"] = "S2"
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert run(["evaluate", *map(str, command)]) == 0
    head, first = capsys.readouterr().out.splitlines()[:2]
    assert head.split() == ["F1", "precision", "recall", "found", "labels"]
    _, precision, recall = map(float, re.findall(r"([\d.]+) \[", first))
    assert recall > 0.95 and precision == pytest.approx(0.5, abs=0.1)
    assert first.startswith("all defects") and first.split()[-1] == str(len(vacant) // 2)


def test_labels_and_image_belong_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("defects", "columns"):
        assert run(["evaluate", command, "--labels", str(tmp_path / "a.csv")]) == 2
        assert "--image and --labels belong together" in capsys.readouterr().err


def test_windows_are_harder_to_name_the_fewer_electrons_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(windows, "SPOILS", ())
    monkeypatch.setattr(windows, "_BOUND_SHEETS", 1)
    monkeypatch.setitem(windows.evaluate_windows.__kwdefaults__, "doses", (1.0, 100.0))
    scores = [one for one in evaluate(capsys, "defects", "--sheets", 2) if "noise" in one]
    assert [(one["noise"], one["electrons_per_px"], one["misaligned"]) for one in scores] == [
        ("none", None, 0.0), ("scan", 1.0, 0.0), ("scan", 100.0, 0.0), ("scan", 1.0, 1.0), ("scan", 100.0, 1.0)
    ]  # fmt: skip
    clean, few, many, few_drifted, _ = (one["accuracy"]["value"] for one in scores)
    assert few < 0.9 < many <= clean and few_drifted < 0.9
    assert all(one["worst_recall"] <= one["accuracy"]["value"] for one in scores)
    assert len({one["windows"] for one in scores}) == 1


def test_tracks_know_the_lattice_and_plain_linking_does_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The specimen drifts by half a lattice constant a frame: a nearest neighbour is then another site."""
    pytest.importorskip("trackpy")
    monkeypatch.setattr(defects, "MOVIE", replace(defects.MOVIE, frames=5, shape=(160, 160)))
    scores = evaluate(capsys, "tracks", "--movies", 1)
    links = {one["method"]: one["links"]["value"] for one in scores}
    ours = links.pop("flatscope")
    assert ours > 0.9 and len(links) == 3 and ours > max(links.values()) + 0.1
    assert {one["detections"]["value"] for one in scores[1:]} == {scores[1]["detections"]["value"]}
    assert all(one["links"]["low"] <= one["links"]["value"] <= one["links"]["high"] for one in scores)


def test_scenes_are_the_same_for_a_seed_and_others_for_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(flakes.evaluate_scenes.__kwdefaults__, "side_px", 256)
    one, again, other = (evaluate(capsys, "scenes", "--count", 1, "--seed", seed) for seed in (3, 3, 5))
    assert one == again and one["confusion"] != other["confusion"]
    assert one["scenes"] == 1 and one["regions"] >= sum(map(sum, one["confusion"])) > 0


def test_imaging_says_how_far_off_and_how_fast_the_models_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In place of the exact models: HRTEM with another contrast, ADF-STEM twice as bright."""

    def simulate_series(sheet: Sheet, optics: Any, *, shape: Any, spread_nm: Any, **_: Any) -> Any:
        images = draw_series(sheet, optics, shape=shape, spread_nm=spread_nm)
        return images + 0.25 * (images - images.mean((1, 2), keepdims=True))

    monkeypatch.setattr(imaging, "simulate_series", simulate_series)
    monkeypatch.setattr(
        imaging,
        "simulate_adf",
        lambda sheet, optics, *, shape, **_: 2.0 * draw_adf(sheet, optics, shape=shape),
    )
    monkeypatch.setattr(imaging, "_SERIES_PX", 120)
    found = evaluate(capsys, "imaging")
    assert [(one["model"], one["sheet"]) for one in found] == [
        ("HRTEM, 20 phonons", "MoS2"), ("HRTEM, 20 phonons", "MoS2 on graphene"),
        ("ADF-STEM", "MoS2"), ("ADF-STEM", "WSe2"),
    ]  # fmt: skip
    assert [one["rms"] for one in found] == pytest.approx([0.2, 0.2, 0.5, 0.5], abs=1e-6)
    assert set(found[3]["sites"]) == {"W", "Se", "Se2"}
    assert list(found[3]["sites"].values()) == pytest.approx([0.5] * 3)
    assert all(one["ratio"] > 0 and one["seconds"] > 0 for one in found)


def test_imaging_without_abtem_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "abtem", None)
    assert run(["evaluate", "imaging"]) == 2
    assert (
        capsys.readouterr().err == "flatscope: multislice needs abTEM: pip install 'flatscope[multislice]'\n"
    )


@pytest.fixture
def laboratory(tmp_path: Path) -> Path:
    """A drawn picture of MoS2 and its true regions, in the folder of a laboratory that states its oxide."""
    plan = SceneParams((320, 480), "MoS2", oxide_nm=285.0, gamma=1.0, clean=True)
    scene = draw_scene(np.random.default_rng(2), plan)
    folder = tmp_path / "cvd_mos2"
    folder.mkdir()
    Image.fromarray(np.round(scene.pixels).astype(np.uint8)).save(folder / "chip.png")
    large = np.bincount(scene.regions.ravel())[scene.regions] >= 300
    regions = np.where(large & ~scene.foreign, scene.regions, 0)
    write_labels(folder / "chip.mask.png", regions)
    layers = dict(zip(regions.ravel().tolist(), scene.layers.ravel().tolist(), strict=True))
    classes = {str(region): {1: "ML", 2: "BL"}.get(count, "FL") for region, count in layers.items() if region}
    (folder / "chip.classes.json").write_text(json.dumps(classes), "utf-8")
    return tmp_path


@pytest.mark.slow
def test_laboratories_are_scored_against_what_their_people_marked(
    laboratory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = evaluate(capsys, "laboratories", "--data", laboratory, "--sheets", tmp_path / "sheets")
    stated, free = (row for row in rows if "seen" in row and "rule_seen" in row)
    labels = [row for row in rows if "answers" in row and row["oxide"] == "285 nm"]
    assert (stated["oxide"], free["oxide"]) == ("285 nm", "open")
    assert stated["right"]["value"] >= 0.6 and stated["false"] <= 2
    assert stated["marks"] == sum(row["marked"] for row in labels)
    assert stated["right"]["value"] == pytest.approx(sum(row["right"] for row in labels) / stated["marks"])
    assert (tmp_path / "sheets" / "cvd_mos2, oxide open" / "chip.png").is_file()

    # The same picture with every number wrong: as much is seen, and nothing is right.
    classes = laboratory / "cvd_mos2" / "chip.classes.json"
    wrong = {"ML": "FL", "BL": "ML", "FL": "BL"}
    said = json.loads(classes.read_text("utf-8"))
    classes.write_text(json.dumps({region: wrong[label] for region, label in said.items()}), "utf-8")
    again = evaluate(capsys, "laboratories", "--data", laboratory, "--oxide", "stated")[0]
    assert again["seen"] == stated["seen"] and again["right"]["value"] <= 0.2


def test_missing_laboratories_are_named_in_one_line(
    laboratory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, said in (
        (("--data", tmp_path / "nowhere"), "nowhere: no such folder"),
        (("--data", laboratory, "--lab", "iit_ws2"), "the pictures of iit_ws2 are not there"),
        (("--data", laboratory, "--lab", "harvard"), "harvard: no such laboratory: there are graphene, wse2"),
    ):
        assert run(["evaluate", "laboratories", *map(str, arguments)]) != 0
        line = capsys.readouterr().err.strip()
        assert said in line and "\n" not in line


@pytest.mark.parametrize(
    ("label", "name", "material", "right"),
    [
        ("ML", "1", "WS2", True),
        ("ML", "2", "WS2", False),
        ("FL", "thick", "WS2", True),
        ("thin", "6", "WSe2", True),
        ("thin", "7", "WSe2", False),
        ("thin", "thick", "WSe2", False),
        ("thin", "thick", "graphene", True),  # more than six layers, which may be twelve
        ("7-10", "1", "hBN", False),
        ("7-10", "thick", "hBN", True),
    ],
)
def test_labels_say_which_numbers_are_right(label: str, name: str, material: str, right: bool) -> None:
    assert Mark(label, np.ones((2, 2), bool), "outline").is_right(name, material) is right
