"""How a crystal lies: by edges, by the shipped network, and by the published ways; and how the network is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import draw

from flatscope.app.cli import run
from flatscope.inference.runtime import Network
from flatscope.optical.bilayers import BilayerParams, cut_triangle, draw_bilayer, draw_sample
from flatscope.optical.orientation import (
    CROP_PX,
    Orientation,
    crop_layer,
    orient_by_edges,
    orient_by_network,
    weigh,
)
from flatscope.optical.twist import TwistParams, measure_twist

NOTHING = np.zeros((300, 300), bool)


def crystal(turn: float, *, cut: float = 0.0, radius: float = 100.0) -> np.ndarray:
    outline = cut_triangle(radius, turn=turn, cut=cut) + 150.0
    mask = np.zeros((300, 300), bool)
    mask[draw.polygon(outline[:, 1], outline[:, 0], mask.shape)] = True
    return mask


def off(found: float, true: float, *, period: float = 120.0) -> float:
    return abs((found - true + period / 2) % period - period / 2)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network.load("orientation", task="orientation", threads=1)


def test_the_shipped_network_says_what_it_said(network: Network) -> None:
    """A triangle with a tenth of its corners cut, turned by 33°, which is −26.85° modulo 60 to it."""
    crop = crop_layer(crystal(33.0, cut=0.1), NOTHING).transpose(2, 0, 1).astype(np.float32) / 255
    np.testing.assert_allclose(network.run(crop[None])[0], (-407.49, -139.45, -1.1786, 4.8088), rtol=2e-3)


@pytest.mark.parametrize("turn", [0.0, 13.0, 44.0, 71.0, 119.0])
@pytest.mark.parametrize("cut", [0.0, 0.15])
def test_both_ways_find_the_corner(network: Network, turn: float, cut: float) -> None:
    mask = crystal(turn, cut=cut)
    edges, seen = orient_by_edges(mask, NOTHING), orient_by_network(mask, NOTHING, network=network)
    assert edges is not None and edges.three_fold and seen.three_fold
    assert off(edges.corner_deg, turn) < 0.2
    assert off(seen.corner_deg, turn) < 2.0 and off(seen.corner_deg, turn) < 4.0 * seen.sigma_deg


def test_a_hexagon_is_known_to_60_degrees_only(network: Network) -> None:
    seen = orient_by_network(crystal(20.0, cut=1.0 / 3.0), NOTHING, network=network)
    assert not seen.three_fold and off(seen.corner_deg, 20.0, period=60.0) < 2.0


def test_the_network_is_less_sure_of_less_outline(network: Network) -> None:
    """Half of a crystal beyond the picture: the error grows, the angle stays."""
    hidden = NOTHING.copy()
    hidden[:, 150:] = True
    mask = crystal(35.0)
    whole, half = (orient_by_network(mask & ~cover, cover, network=network) for cover in (NOTHING, hidden))
    assert half.sigma_deg > whole.sigma_deg
    assert off(half.corner_deg, 35.0, period=60.0) < 4.0 * half.sigma_deg


def test_a_turned_or_mirrored_crystal_is_read_turned_or_mirrored(network: Network) -> None:
    """All eight copies are asked about, so that none is read better than another."""
    mask = crystal(33.0, cut=0.1) & ~crystal(80.0, radius=30.0)
    mask[:, :130] = False
    seen = orient_by_network(mask, NOTHING, network=network)
    for copy, corner in (
        (np.rot90(mask), seen.corner_deg + 90.0),
        (mask[:, ::-1], 180.0 - seen.corner_deg),
        (mask[::-1], -seen.corner_deg),
    ):
        again = orient_by_network(copy, NOTHING, network=network)
        assert off(again.corner_deg, corner) < 0.05
        assert again.sigma_deg == pytest.approx(seen.sigma_deg, rel=0.01)


def test_both_ways_together_are_no_worse_than_the_surer_one(network: Network) -> None:
    """The mean lies between both, has the smaller error or less, and doubts what disagrees."""
    one, other = Orientation(20.0, 0.5, 0.6, True, "edges"), Orientation(80.2, 0.6, 0.7, False, "network")
    both = weigh(one, other)
    # 80.2° is 20.2° to edges: which of the two it is, the surer one says.
    assert 20.0 < both.corner_deg < 20.2 and both.three_fold and both.method == "edges and network"
    assert both.sigma_deg < 0.5
    far = weigh(one, Orientation(20.7, 6.0, 7.5, False, "network"))
    assert far.method == "edges" and far.corner_deg == 20.0 and far.sigma_deg == 0.5
    against = weigh(one, Orientation(25.0, 0.6, 0.7, True, "network"))
    assert against.method == "network" and against.corner_deg == 25.0 and against.sigma_deg > 1.5 * 0.6


def test_what_only_one_way_is_sure_of_needs_more_caution() -> None:
    sure, unsure = (Orientation(20.5, error, error, True, "network") for error in (2.5, 9.0))
    straight = Orientation(20.0, 2.5, 2.5, True, "edges")
    both, one = weigh(straight, sure), weigh(straight, unsure)
    # The stated error is nearly the same, since the surer way counts; what is risked is not.
    assert one.sigma_deg == pytest.approx(both.sigma_deg, rel=0.06)
    assert one.caution_deg > 1.7 * both.caution_deg


def test_pieces_of_a_torn_second_layer_are_one_row() -> None:
    layers = crystal(10.0, radius=140.0).astype(np.uint8) + crystal(50.0, radius=60.0)
    layers[150:152][layers[150:152] == 2] = 1
    frame = measure_twist(layers).frame
    assert len(frame) == 1 and frame["twist_deg"][0] == pytest.approx(40.0, abs=1.0)


def test_second_layers_of_two_crystals_stay_two_however_near() -> None:
    """Two crystals a gap of substrate apart, both bilayers up to it."""
    layers = np.zeros((300, 300), np.uint8)
    layers[50:250, 40:260] = 1
    layers[100:200, 90:210] = 2
    layers[:, 149:151] = 0
    frame = measure_twist(layers).frame
    assert sorted(frame["area_2l_px"]) == pytest.approx([5900, 5900], abs=20)
    assert frame["flake_id"].nunique() == 2


def test_twist_by_the_network(network: Network) -> None:
    layers = crystal(10.0, radius=140.0).astype(np.uint8) + crystal(50.0, radius=60.0)
    row = measure_twist(layers, TwistParams(method="network"), network=network).frame.iloc[0]
    assert row["method"] == "network" and row["status"] == "accepted"
    assert row["twist_deg"] == pytest.approx(40.0, abs=3.0)


def test_a_crop_holds_the_whole_layer_and_what_lies_around_is_hidden() -> None:
    mask = crystal(0.0)
    crop = crop_layer(mask, NOTHING)
    assert crop.shape == (CROP_PX, CROP_PX, 2)
    assert crop[[0, -1], :, 0].max() == 0 and crop[:, [0, -1], 0].max() == 0
    # The crystal is 174 px high, which is 0.84 of what is shown.
    assert np.ptp(np.nonzero(crop[..., 0].max(1) > 127)[0]) == pytest.approx(0.84 * CROP_PX, abs=2)
    corner = np.roll(mask, (-63, -80), axis=(0, 1))
    assert crop_layer(corner, NOTHING)[0, 32, 1] == 255


def test_samples_of_several_crystals_do_not_overlap() -> None:
    layers, drawn = draw_sample(
        np.random.default_rng(1), BilayerParams(radius_px=(40.0, 90.0), offset=0.3), count=8
    )
    assert len(drawn) > 3
    stacked = np.stack([bilayer.layers for bilayer in drawn])
    assert ((stacked > 0).sum(0) <= 1).all()
    np.testing.assert_array_equal(stacked.max(0), layers)


def test_one_crystal_lends_its_outline_to_all_its_second_layers() -> None:
    """Of two small second layers in one triangle neither owns three edges of a part of it."""
    layers = crystal(20.0, radius=140.0).astype(np.uint8)
    for turn, shift in ((35.0, (-25, 25)), (65.0, (25, -25))):
        layers += np.roll(crystal(turn, radius=28.0), shift, axis=(0, 1))
    frame = measure_twist(layers).frame
    assert frame["status"].tolist() == ["accepted", "accepted"]
    assert sorted(frame["twist_deg"]) == pytest.approx([15.0, 45.0], abs=1.5)
    assert frame["area_1l_px"].tolist() == pytest.approx([(layers == 1).sum()] * 2, abs=5)


# --- the published ways ----------------------------------------------------------------------------------------------


def test_the_published_rule_answers_for_triangles_only() -> None:
    pytest.importorskip("cv2")
    from flatscope.evaluation.papers.yang2024_twist import read_by_triangles

    for turn, folded in ((30.0, 20.0), (55.0, 15.0), (10.0, 0.0)):
        layers = crystal(10.0, radius=140.0).astype(np.uint8) + crystal(turn, radius=60.0)
        assert read_by_triangles(layers).folded_deg == pytest.approx(folded, abs=1.0)
    blunt = crystal(10.0, radius=140.0, cut=0.3).astype(np.uint8) + crystal(40.0, radius=60.0)
    assert np.isnan(read_by_triangles(blunt).folded_deg)
    assert np.isnan(read_by_triangles(np.zeros((40, 40), np.uint8)).folded_deg)


@pytest.mark.slow
def test_yang_2024_twist(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest study: flatscope's edges beat the constant and the hardly trained regressor on clean masks."""
    pytest.importorskip("torch")
    from flatscope.evaluation.papers import yang2024_twist as paper

    monkeypatch.setattr(paper, "_TIMED", 4)
    monkeypatch.setattr(paper, "_RUNS", 1)
    assert run(["reproduce", "yang2024-twist", "--quick", "--out", str(tmp_path), "--json"]) == 0
    lines = {(line["mix"], line["method"]): line for line in json.loads(capsys.readouterr().out)}
    ours = lines["clean", "flatscope, edges"]
    assert ours["mean_error"]["value"] < 0.5 < lines["clean", paper.REGRESSOR]["mean_error"]["value"]
    assert lines["clean", "always 15°"]["coverage"]["value"] == 1.0
    assert lines["ragged", paper.RULE]["in_one_sigma"] is None
    assert (tmp_path / "yang2024-twist.html").read_text("utf-8").count("<img") == 1


# --- training --------------------------------------------------------------------------------------------------------


def test_the_loss_is_a_density_with_the_crystals_symmetry() -> None:
    """It integrates to one over a turn of 120°, peaks at the direction meant, and forgives 60° to a hexagon."""
    torch = pytest.importorskip("torch")
    from flatscope.training.nets.orientnet import OrientNet

    angles = torch.arange(0.0, 120.0, 0.05)
    meant = np.deg2rad(25.0)
    six = 40.0 * np.array([np.cos(6 * meant), np.sin(6 * meant)])
    three = np.array([np.cos(3 * meant), np.sin(3 * meant)])
    for strength in (0.0, 2.0):
        answer = torch.tensor([[*six, *(strength * three)]], dtype=torch.float64)
        loss = np.array([float(OrientNet.loss(answer, angle[None])) for angle in angles])
        # A density of the phase 6φ, with one of two signs: each 60° hold 2π.
        density = np.exp(-loss) / (2.0 * np.pi)
        assert density.sum() * np.deg2rad(0.05) * 6.0 == pytest.approx(1.0, rel=1e-3)
        best = float(angles[loss.argmin()])
        assert off(best, 25.0, period=120.0 if strength else 60.0) < 0.1
        # at strength 0 both directions are as likely as each other
        assert (loss[1700] - loss[500] > 3.0) == bool(strength)


def test_drawn_crystals_do_not_depend_on_the_workers_and_turn_with_their_truth() -> None:
    pytest.importorskip("torch")
    from flatscope.training import orientation

    alone, shared = (orientation.draw_crystals(6, seed=3, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(alone.crops, shared.crops)
    np.testing.assert_array_equal(alone.corners_deg, shared.corners_deg)
    crop, corner = crop_layer(crystal(37.0), NOTHING), np.float32(37.0)
    for seed in range(12):
        turned, said = orientation.turn(np.random.default_rng(seed), crop, corner)
        found = orient_by_edges(turned[..., 0] > 127, NOTHING[:CROP_PX, :CROP_PX])
        assert found is not None and off(found.corner_deg, float(said)) < 1.5


@pytest.mark.slow
def test_training_goes_on_where_it_was_cut_off_and_ships(tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("torch")
    recipe = tmp_path / "tiny.toml"
    recipe.write_text(
        'name = "tiny"\nseed = 1\nscenes_train = 20\nscenes_val = 4\nepochs = 2\nbatch = 8\nlr = 1e-3\n'
        'schedule = "poly"\n[orientation]\nwidths = [4, 8]\n'
    )
    command = ["train", str(recipe), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert run(command) == 0
    first = (tmp_path / "out" / "tiny.onnx").read_bytes()
    assert "in one sigma" in capsys.readouterr().out
    net = Network.load(tmp_path / "out" / "tiny.onnx", task="orientation")
    assert net.run(np.zeros((1, 2, CROP_PX, CROP_PX), np.float32)).shape == (1, 4)
    # finished: the same command trains nothing more
    assert run(command) == 0
    assert (tmp_path / "out" / "tiny.onnx").read_bytes() == first


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_label_image_given_as_a_photograph(tmp_path: Path, capsys: Any) -> None:
    drawn = draw_bilayer(np.random.default_rng(1), BilayerParams(shape=(200, 200), radius_px=(60.0, 80.0)))
    Image.fromarray(drawn.layers).save(tmp_path / "a.png")
    assert run(["twist", str(tmp_path / "a.png"), "--material", "MoS2", "--out", str(tmp_path / "out")]) == 2
    assert "holds layer numbers, not a photograph: pass --labels" in capsys.readouterr().err


def test_the_network_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    layers = crystal(10.0, radius=140.0).astype(np.uint8) + crystal(50.0, radius=60.0)
    Image.fromarray(layers).save(tmp_path / "a.png")
    command = [
        "twist",
        str(tmp_path / "a.png"),
        "--labels",
        "--material",
        "MoS2",
        "--out",
        str(tmp_path / "out"),
    ]
    assert run([*command, "--method", "network"]) == 0
    assert ",network," in (tmp_path / "out" / "twist.csv").read_text()
    other = ["flakes", str(tmp_path / "a.png"), "--material", "MoS2", "--weights", "orientation"]
    assert run([*other, "--out", str(tmp_path / "o")]) == 2
    assert "for the task 'orientation', not 'flakes'" in capsys.readouterr().err
