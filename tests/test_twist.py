"""Twist angles: known geometry, artificial bilayers, and everything that makes an angle meaningless."""

from __future__ import annotations

import doctest
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import ndimage
from skimage import draw

from flatscope.app.cli import run
from flatscope.evaluation.outlines import draw_rough_bilayer
from flatscope.evaluation.twist import evaluate_twist, top_area_px
from flatscope.micrograph import Calibration, Micrograph
from flatscope.optical import twist
from flatscope.optical.bilayers import PUBLISHED, RAGGED, BilayerParams, cut_triangle, draw_bilayer
from flatscope.optical.edges import measure_error
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.twist import TwistParams, measure_twist, moire_period_nm
from flatscope.report.figures import Display
from flatscope.report.twist import draw_twist
from flatscope.results import TWIST_COLUMNS, column_names

SIZE = (400, 400)


def paint(
    *crystals: tuple[float, float, float, tuple[float, float]], shape: tuple[int, int] = SIZE
) -> np.ndarray:
    """Layers from (radius, turn, cut, centre as x, y), each on top of what is there."""
    layers = np.zeros(shape, np.uint8)
    for radius, turn, cut, centre in crystals:
        outline = cut_triangle(radius, turn=turn, cut=cut) + centre
        rows, cols = draw.polygon(outline[:, 1], outline[:, 0], shape)
        layers[rows, cols] += 1
    return layers


def only_row(layers: np.ndarray, **settings: Any) -> pd.Series:
    frame = measure_twist(layers, TwistParams(**settings)).frame
    assert len(frame) == 1 and list(frame.columns) == list(column_names(TWIST_COLUMNS))
    return frame.iloc[0]


@pytest.mark.parametrize("bottom", [0.0, 17.0, 59.0, 101.0])
@pytest.mark.parametrize("twist", [0.0, 8.3, 30.0, 52.7, 60.0])
def test_a_triangle_on_a_triangle(bottom: float, twist: float) -> None:
    """Angles counter-clockwise as displayed, and the twist the same whichever way round it is."""
    for turn in (bottom + twist, bottom - twist):
        row = only_row(paint((150.0, bottom, 0.0, (200, 200)), (60.0, turn, 0.0, (205, 190))))
        assert row["status"] == "accepted"
        assert row["twist_deg"] == pytest.approx(twist, abs=0.3)
        assert row["twist_fold30_deg"] == pytest.approx(min(twist, 60.0 - twist), abs=0.3)
        assert abs((row["bottom_deg"] - bottom + 60.0) % 120.0 - 60.0) < 0.2
        assert abs((row["top_deg"] - turn + 60.0) % 120.0 - 60.0) < 0.4
        assert 0 < row["sigma_deg"] < 0.5


def test_a_corner_points_where_it_is_said_to() -> None:
    """0° is to the right, 90° up: the topmost point of a triangle turned by 90° is its corner."""
    outline = cut_triangle(10.0, turn=90.0, cut=0.0)
    top = outline[outline[:, 1].argmin()]
    np.testing.assert_allclose(top, (0.0, -10.0), atol=1e-9)
    hexagon = cut_triangle(9.0, turn=12.0, cut=1.0 / 3.0, points=1)
    np.testing.assert_allclose(np.hypot(*hexagon.T), np.full(6, 9.0 / np.sqrt(3.0)))


def test_the_example_of_measure_twist_runs() -> None:
    ran = doctest.testmod(twist)
    assert ran.attempted and not ran.failed


def test_hexagons_have_a_folded_angle_only() -> None:
    row = only_row(paint((150.0, 10.0, 0.33, (200, 200)), (60.0, 52.0, 0.0, (200, 200))))
    assert row["status"] == "uncertain"
    assert row["reason"].startswith("six-fold symmetric") and "folded to [0, 30]" in row["reason"]
    assert np.isnan(row["twist_deg"]) and row["twist_fold30_deg"] == pytest.approx(18.0, abs=0.3)
    assert row["moire_nm"] == pytest.approx(moire_period_nm(18.0, 0.3160), rel=0.02)


def test_what_hides_an_outline_does_not_bend_the_angle() -> None:
    """The border of the picture, an unknown patch, and the end of the first layer under the second."""
    layers = paint((150.0, 20.0, 0.0, (200, 200)), (60.0, 45.0, 0.0, (210, 200)))
    cut = layers[130:, :].copy()
    patched = layers.copy()
    patched[100:180, 150:260] = 255
    below = paint((150.0, 20.0, 0.0, (200, 200)))
    upper = paint((70.0, 45.0, 0.0, (262, 178)))
    clipped = np.where(below > 0, below + upper, 0).astype(np.uint8)
    assert (upper[below == 0] > 0).sum() > 300
    for spoiled in (cut, patched, clipped):
        row = only_row(spoiled)
        assert row["status"] != "accepted" or row["twist_deg"] == pytest.approx(25.0, abs=1.0)
    assert only_row(cut)["status"] == "accepted"


@pytest.mark.parametrize(
    ("layers", "why"),
    [
        (paint((150.0, 20.0, 0.0, (200, 200)), (12.0, 45.0, 0.0, (200, 200))), "too small"),
        (paint((60.0, 20.0, 0.0, (200, 200)), (60.0, 20.0, 0.0, (200, 200))), "layers not separable"),
        (paint((150.0, 20.0, 0.0, (200, 425)), (60.0, 45.0, 0.0, (200, 425))), "truncated"),
        (paint((150.0, 30.0, 0.0, (200, 20)), (90.0, 55.0, 0.0, (200, 5))), "truncated"),
    ],
)
def test_no_number_where_none_is_defined(layers: np.ndarray, why: str) -> None:
    """The last two show two edges of a layer each."""
    row = only_row(layers, method="edges")
    assert row["status"] == "rejected" and row["reason"].startswith(f"{why}: ")
    assert row[["twist_deg", "sigma_deg", "twist_fold30_deg", "moire_nm"]].isna().all()


@pytest.mark.parametrize(
    "layers",
    [
        paint((150.0, 20.0, 0.0, (200, 425)), (60.0, 45.0, 0.0, (200, 425))),
        paint((150.0, 30.0, 0.0, (200, 20)), (90.0, 55.0, 0.0, (200, 5))),
    ],
)
def test_the_network_reads_two_edges_where_three_are_not_seen(layers: np.ndarray) -> None:
    row = only_row(layers)
    assert row["status"] == "accepted" and "network" in row["method"]
    assert abs(row["twist_deg"] - 25.0) < 3.0 * row["sigma_deg"] and row["sigma_deg"] < 2.8


def test_pictures_without_a_second_layer() -> None:
    for layers in (
        np.zeros((30, 40), np.uint8),
        np.full((30, 40), 255, np.uint8),
        np.ones((1, 1), np.uint8),
        paint((150.0, 20.0, 0.0, (200, 200))),
    ):
        table = measure_twist(layers)
        assert len(table) == 0 and list(table.frame.columns) == list(column_names(TWIST_COLUMNS))
    with pytest.raises(ValueError, match="layers are"):
        measure_twist(np.zeros((4, 4)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_top_px of 1"):
        TwistParams(min_top_px=1)


def test_an_angle_does_not_depend_on_where_a_crystal_lies() -> None:
    """Nor on its neighbours: two crystals in one picture have the angles that each has alone."""
    crystals = [
        [(100.0, 20.0, 0.1, (120, 150)), (45.0, 37.0, 0.0, (120, 150))],
        [(110.0, 75.0, 0.0, (640, 420)), (50.0, 30.0, 0.15, (640, 420))],
    ]
    both = measure_twist(
        paint(crystals[0][0], crystals[1][0], crystals[0][1], crystals[1][1], shape=(560, 800))
    ).frame
    assert len(both) == 2 and (both["status"] == "accepted").all()
    for crystal in crystals:
        alone = only_row(paint(*crystal, shape=(560, 800)))
        row = both[(both["col_px"] - alone["col_px"]).abs() < 5].iloc[0]
        assert row["twist_deg"] == pytest.approx(alone["twist_deg"], abs=1e-6)
    moved = np.roll(paint(*crystals[0], shape=(560, 800)), (300, 500), axis=(0, 1))
    assert only_row(moved)["twist_deg"] == pytest.approx(
        only_row(paint(*crystals[0], shape=(560, 800)))["twist_deg"], abs=1e-6
    )


def test_touching_crystals_keep_their_own_angle() -> None:
    row = measure_twist(
        paint(
            (100.0, 20.0, 0.0, (130, 200)), (100.0, 50.0, 0.0, (270, 210)), (40.0, 33.0, 0.0, (120, 200)),
            (40.0, 10.0, 0.0, (280, 210)),
        ).clip(0, 2)
    ).frame  # fmt: skip
    angles = dict(zip(row["col_px"].round(-1), row["twist_deg"], strict=True))
    assert angles[120.0] == pytest.approx(13.0, abs=1.0) and angles[280.0] == pytest.approx(40.0, abs=1.0)


def test_what_find_flakes_found_is_measured_as_its_label_image() -> None:
    layers = paint((170.0, 20.0, 0.0, (200, 220)), (80.0, 50.0, 0.0, (200, 220)))
    shades = np.array([[0.62, 0.45, 0.55], [0.47, 0.41, 0.56], [0.33, 0.42, 0.58]], np.float32)
    picture = Micrograph(
        np.uint8(255 * shades[layers]), source="drawn", calibration=Calibration((50.0, 50.0), "user")
    )
    found = find_flakes(picture, FlakeParams("MoS2", oxide_nm=300.0))
    table, alone = measure_twist(found), measure_twist(found.layer_image())
    assert table.frame["twist_deg"].tolist() == alone.frame["twist_deg"].tolist()
    assert table.frame["image"].tolist() == [found.provenance.image]
    assert table.frame["area_2l_um2"][0] == pytest.approx(0.0025 * table.frame["area_2l_px"][0])


def test_moire_period_and_its_error() -> None:
    """Twisted by 1.1°, graphene's period is 12.8 nm; turned by 60° a lattice is the same again."""
    assert moire_period_nm(1.1, 0.2461) == pytest.approx(12.82, abs=0.01)
    assert moire_period_nm(60.0 - 1.1, 0.2461) == pytest.approx(12.82, abs=0.01)
    assert moire_period_nm(0.0, 0.2461) == np.inf
    row = only_row(paint((150.0, 5.0, 0.0, (200, 200)), (60.0, 15.0, 0.0, (200, 200))), material="WSe2")
    ahead, behind = (moire_period_nm(row["twist_deg"] + step, 0.3282) for step in (-1e-4, 1e-4))
    assert row["moire_sigma_nm"] == pytest.approx((ahead - behind) / 2e-4 * row["sigma_deg"], rel=1e-3)
    assert row["moire_phonon_per_nm"] == pytest.approx(4 * np.pi / np.sqrt(3) / row["moire_nm"])


def test_artificial_bilayers_are_what_they_say() -> None:
    for seed in range(20):
        bilayer = draw_bilayer(np.random.default_rng(seed), RAGGED)
        assert 0.0 <= bilayer.twist_deg <= 60.0 and set(np.unique(bilayer.layers)) <= {0, 1, 2}
        turn = (bilayer.top_deg - bilayer.bottom_deg) % 120.0
        assert bilayer.twist_deg == pytest.approx(min(turn, 120.0 - turn))
    same = [draw_bilayer(np.random.default_rng(3), PUBLISHED).layers for _ in range(2)]
    np.testing.assert_array_equal(*same)
    rough = BilayerParams(radius_px=(150.0, 150.0), roughness_px=2.0, ratio=(0.3, 0.3))
    clean = BilayerParams(radius_px=(150.0, 150.0), ratio=(0.3, 0.3))
    changed = [
        (draw_bilayer(np.random.default_rng(seed), rough).layers > 0).sum()
        / (draw_bilayer(np.random.default_rng(seed), clean).layers > 0).sum()
        for seed in range(5)
    ]
    assert np.abs(np.array(changed) - 1.0).max() < 0.06


@pytest.mark.slow
@pytest.mark.parametrize(("mix", "mean", "p95"), [("clean", 0.2, 0.8), ("ragged", 1.6, 6.0)])
def test_errors_on_artificial_bilayers(mix: str, mean: float, p95: float) -> None:
    scores = evaluate_twist(mix, 80)
    assert scores.coverage.value > 0.85 and scores.mean_error.value < mean and scores.p95_error < p95
    assert scores.max_error < 12.0
    assert scores.in_one_sigma.value > 0.5 and scores.in_two_sigma.value > 0.85
    assert scores.mean_error.value < 0.2 * scores.constant_error


@pytest.mark.parametrize("correlation_px", [1.0, 3.0, 6.0])
def test_the_error_of_a_direction_follows_the_correlation_of_its_outline(correlation_px: float) -> None:
    """Edges with planted noise of 2 px rms: the error that is stated is the one that is made."""
    rng = np.random.default_rng(3)
    reach = np.hypot(correlation_px / 2.0, 2.0)  # 1 sigma: of the noise, then of the outline's blur
    along = np.arange(120.0) - 59.5
    made, stated = [], []
    for _ in range(150):
        noise = ndimage.gaussian_filter1d(rng.standard_normal((3, 240)), reach)[:, 60:180]
        edges = [(along, across / noise.std()) for across in noise]
        made.append(np.mean([across @ along / (along @ along) for _, across in edges]))
        stated.append(measure_error(edges))
    assert np.rad2deg(np.std(made)) == pytest.approx(np.sqrt(np.mean(np.square(stated))), rel=0.2)


def test_masks_of_the_other_generator_are_what_they_say() -> None:
    drawn = [draw_rough_bilayer(np.random.default_rng([9, index])) for index in range(30)]
    assert {0, 1, 2} == set(np.unique(np.stack([one.layers for one in drawn])))
    assert any(max(one.cuts) == 0.0 for one in drawn) and any(max(one.cuts) > 0.2 for one in drawn)
    large = [one for one in drawn if (one.layers == 2).sum() > 3000 and max(one.cuts) < 0.22][:5]
    found = [measure_twist(one.layers).frame.iloc[-1:] for one in large]
    off = [
        abs(float(row["twist_deg"].iloc[0]) - one.twist_deg)
        for row, one in zip(found, large, strict=True)
        if row["status"].iloc[0] == "accepted"
    ]
    assert len(off) >= 2 and np.median(off) < 1.5


def test_labels_of_an_overlay_do_not_cover_each_other() -> None:
    """Six crystals at one place: each angle stands somewhere else, inside the picture."""
    places, angles = (
        dict.fromkeys(("row_px", "col_px"), 150.0),
        dict.fromkeys(("twist_deg", "twist_fold30_deg"), 10.0),
    )
    layers_of_it = {"bottom_deg": 0.0, "top_deg": 10.0, "area_1l_px": 1500.0, "area_2l_px": 300.0}
    frame = pd.DataFrame([places | angles | layers_of_it | {"sigma_deg": 1.0, "status": "accepted"}] * 6)
    blank = Display(np.zeros((300, 300, 3), np.uint8))
    layers = np.zeros((300, 300), np.uint8)

    def count_letters(rows: int) -> int:
        drawn = np.asarray(draw_twist(blank, layers, frame.head(rows))).astype(int)
        return int((drawn.min(-1) > 200).sum())

    assert count_letters(4) > 3.6 * count_letters(1)


# --- the command -----------------------------------------------------------------------------------------------------


def test_label_images_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    layers = paint((150.0, 20.0, 0.0, (200, 200)), (60.0, 45.0, 0.0, (210, 200)))
    (tmp_path / "in").mkdir()
    Image.fromarray(layers).save(tmp_path / "in" / "a.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "in" / "empty.png")
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(tmp_path / "in" / "strange.png")
    command = [
        "twist",
        str(tmp_path / "in"),
        "--labels",
        "--material",
        "MoS2",
        "--um-per-px",
        "0.1",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run(command) == 1
    said = capsys.readouterr()
    assert "label 77 is no layer number" in said.err and said.err.count("\n") == 1
    frame = pd.read_csv(tmp_path / "out" / "twist.csv")
    assert list(frame.columns) == list(column_names(TWIST_COLUMNS))
    assert frame["status"].tolist() == ["accepted", "failed"]
    assert frame["twist_deg"][0] == pytest.approx(25.0, abs=0.2)
    assert frame["area_2l_um2"][0] == pytest.approx(0.01 * frame["area_2l_px"][0], rel=1e-4)
    overlay = np.asarray(Image.open(tmp_path / "out" / "a.twist.png"))
    assert overlay.shape == (*SIZE, 3) and (overlay == (86, 180, 233)).all(-1).sum() > 200
    page = (tmp_path / "out" / "report.html").read_text()
    assert "data:image/png" in page and "a.png" in page
    assert "<summary>1 inputs failed</summary>" in page and "1 of 1 second layers have an angle" in page
    Image.fromarray(layers[::-1]).save(tmp_path / "in" / "a.tif")
    assert run([*command, "--fold", "30"]) == 2
    assert "other settings (fold" in capsys.readouterr().err
    assert run([*command, "--fold", "30", "--replace"]) == 1
    assert {path.name for path in (tmp_path / "out").glob("*.twist.png")} == {
        "a.png.twist.png",
        "a.tif.twist.png",
        "empty.twist.png",
    }
    folded = pd.read_csv(tmp_path / "out" / "twist.csv")
    assert folded["twist_deg"].isna().all() and folded["twist_fold30_deg"][0] == pytest.approx(25.0, abs=0.2)


@pytest.mark.slow
def test_more_pictures_than_one_process_wants_give_the_same_table(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "in").mkdir()
    for number in range(9):
        layers = paint((90.0, 20.0, 0.0, (100, 100)), (40.0, 25.0 + 5.0 * number, 0.0, (105, 100)))
        Image.fromarray(layers[:210, :210]).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "4.png").write_bytes(b"no picture")
    for workers in ("1", "2"):
        command = ["twist", str(tmp_path / "in"), "--labels", "--material", "MoS2", "--workers", workers]
        assert run([*command, "--out", str(tmp_path / workers)]) == 1
        said = capsys.readouterr()
        assert said.err.count("4.png") == 1 and "8 of 8 second layers measured" in said.out
    tables = [(tmp_path / workers / "twist.csv").read_bytes() for workers in ("1", "2")]
    assert tables[0] == tables[1]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--material", "lead"], "unknown material 'lead'"),
        (["--labels", "--um-per-px", "0"], "um_per_px of 0 is no pixel size"),
        (["--weights", "nonsense"], "no weights called 'nonsense'"),
    ],
)
def test_bad_input_of_twist(tmp_path: Path, capsys: Any, more: list[str], words: str) -> None:
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "a.png")
    stated = [] if "--material" in more else ["--material", "MoS2"]
    assert run(["twist", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), *stated, *more]) == 2
    assert words in capsys.readouterr().err


def test_a_drawn_micrograph_of_stacked_crystals(tmp_path: Path, capsys: Any) -> None:
    """The whole way: optics, flake finder, layer numbers, angle."""
    layers = paint((170.0, 20.0, 0.0, (200, 220)), (80.0, 50.0, 0.0, (200, 220)))
    colours = np.array([[0.62, 0.45, 0.55], [0.47, 0.41, 0.56], [0.33, 0.42, 0.58]])
    noise = np.random.default_rng(0).normal(0.0, 0.008, (*SIZE, 3))
    Image.fromarray(((colours[layers] + noise).clip(0, 1) * 255).astype(np.uint8)).save(tmp_path / "a.png")
    settings = ["--material", "MoS2", "--oxide-nm", "300", "--out", str(tmp_path / "out")]
    code = run(["twist", str(tmp_path / "a.png"), *settings])
    frame = pd.read_csv(tmp_path / "out" / "twist.csv")
    assert code == 0 and len(frame) == 1
    assert frame["twist_deg"][0] == pytest.approx(30.0, abs=1.5)
    assert "1 of 1 second layers measured" in capsys.readouterr().out


def test_scores_are_printed_as_json(capsys: Any) -> None:
    assert run(["evaluate", "twist", "--mix", "clean", "--count", "6", "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["bilayers"] <= 6 and scores["constant_error"] > 0


def test_wrong_pixels_elsewhere_are_no_second_layer() -> None:
    layers = paint((150.0, 20.0, 0.0, (200, 200)), (40.0, 45.0, 0.0, (200, 200)))
    area = top_area_px(layers)
    assert area == pytest.approx((layers == 2).sum(), rel=0.02)
    layers[::17, ::17] = 2
    assert (layers == 2).sum() > area + 400
    assert top_area_px(layers) == pytest.approx(area, rel=0.02)
