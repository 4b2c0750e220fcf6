"""Metrics on cases computed by hand."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from flatscope.evaluation.flakes import evaluate_scenes, score_picture
from flatscope.evaluation.metrics import (
    binomial_interval,
    bootstrap,
    class_accuracy,
    class_iou,
    confusion_matrix,
    match_regions,
    overlap_table,
    precision_recall,
    ratio,
    recall_at_precision,
    receiver_operating_curve,
    reliability,
    score_histogram,
    vote_regions,
)
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Marks, Provenance, column_names


def test_overlaps_of_two_label_images() -> None:
    true = np.zeros((4, 6), np.int32)
    true[:, :2], true[:2, 4:] = 3, 5
    found = np.zeros((4, 6), np.int32)
    found[:, 1:3], found[:2, 4:] = 1, 9
    rows, cols, overlap = overlap_table(found, true)
    assert rows.tolist() == [1, 9] and cols.tolist() == [3, 5]
    # 1 and 3 share 4 of 12 pixels, 9 and 5 all of 4.
    np.testing.assert_allclose(overlap, [[4 / 12, 0.0], [0.0, 1.0]])
    assert match_regions(overlap) == [(1, 1)]
    with pytest.raises(ValueError, match="cannot be compared"):
        overlap_table(found, true[:2])


def test_a_region_is_matched_once() -> None:
    """Two found regions on one true one: the better takes it."""
    assert match_regions(np.array([[0.6], [0.7]]), least=0.5) == [(1, 0)]
    assert match_regions(np.zeros((0, 2))) == []


def test_bootstrap_is_by_picture_and_sums_counts() -> None:
    counts = [(10, 9), (10, 1), (10, 8), (10, 2)]
    interval = bootstrap(counts, ratio(1, 0))
    assert interval.value == pytest.approx(0.5)
    # The mean of four draws from 0.9, 0.1, 0.8, 0.2 scatters by 0.18.
    assert 0.1 < interval.low < 0.3 and 0.7 < interval.high < 0.9
    same = bootstrap([(10, 5)] * 4, ratio(1, 0))
    assert same.low == same.value == same.high == 0.5
    assert np.isnan(bootstrap([(0, 0)], ratio(1, 0)).value)


def test_reliability_of_stated_probabilities() -> None:
    p = np.array([0.95, 0.97, 0.55, 0.58])
    right = np.array([True, True, True, False])
    assert reliability(p, right) == [(pytest.approx(0.565), 0.5, 2), (pytest.approx(0.96), 1.0, 2)]


def test_bulk_is_found_but_not_held_against_the_finder() -> None:
    """Marked: a thin flake and one of eight layers. Found: both, a thin one that nobody marked, and bulk."""
    true = np.zeros((40, 80), np.int32)
    true[5:15, 5:15], true[5:15, 25:35] = 1, 2
    labels = true.copy()
    labels[25:35, 5:15], labels[25:35, 40:70] = 3, 4
    frame = pd.DataFrame(columns=list(column_names(FLAKE_COLUMNS)), index=range(4))
    frame["region_id"] = [1, 2, 3, 4]
    frame["layers"] = ["2", "thick", "1", "thick"]
    frame["layers_low"], frame["layers_high"] = [2.0, 7.0, 1.0, 60.0], [2.0, 10.0, 1.0, 200.0]
    frame["status"] = "accepted"
    table = FlakeTable(frame, Marks.none(labels.shape), None, Provenance("a.png", "", {}), labels)
    counts = score_picture(table, true, layer_nm=0.335)
    assert counts == (2, 2, 3, 2, 2, 1, 200, 300)


def test_scores_on_scenes_add_up() -> None:
    scores = evaluate_scenes(3, side_px=384)
    hits = sum(map(sum, scores.confusion))
    assert scores.scenes == 3
    assert hits == round(scores.found.value * scores.regions) > 0
    assert 0 < sum(number for _, _, number in scores.reliability) <= hits, (
        "an open number states no probability"
    )
    assert sum(number for _, _, number in scores.crystal_reliability) >= hits
    for interval in (scores.found, scores.right, scores.crystal, scores.ambiguous):
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    assert scores.crystal.value > 0.5


def test_pixels_by_class() -> None:
    true = np.array([[0, 0, 0, 1], [1, 2, 2, 255]])
    found = np.array([[0, 0, 1, 1], [0, 2, 1, 0]])
    confusion = confusion_matrix(true, found, count=4)
    assert confusion.tolist() == [[2, 1, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    np.testing.assert_allclose(class_accuracy(confusion), [2 / 3, 1 / 2, 1 / 2, np.nan])
    np.testing.assert_allclose(class_iou(confusion), [2 / 4, 1 / 4, 1 / 2, np.nan])


def test_wilson_interval() -> None:
    """Seven of ten: 0.397 to 0.892 (Brown et al. 2001, doi:10.1214/ss/1009213286, formula 4); never outside 0 to 1."""
    seven = binomial_interval(7, 10)
    assert (seven.value, seven.low, seven.high) == pytest.approx((0.7, 0.3968, 0.8922), abs=1e-4)
    assert (binomial_interval(0, 5).low, binomial_interval(5, 5).high) == (0.0, 1.0)
    assert np.isnan(binomial_interval(0, 0).value)


def test_curves_of_a_score() -> None:
    """Five pixels: yes at 0.9, 0.7 and 0.3, no at 0.6 and 0.1; as one histogram and as the sum of two."""
    score, truth = np.array([0.9, 0.7, 0.3, 0.6, 0.1]), np.array([True, True, True, False, False])
    whole = score_histogram(score, truth, bins=10)
    parts = score_histogram(score[:2], truth[:2], bins=10) + score_histogram(score[2:], truth[2:], bins=10)
    np.testing.assert_array_equal(whole, parts)
    precision, recall = precision_recall(whole)
    # At least 0.9, 0.7, 0.6, 0.3, 0.1.
    np.testing.assert_allclose(precision[[0, 2, 3, 6, 8]], [1, 1, 2 / 3, 3 / 4, 3 / 5])
    np.testing.assert_allclose(recall[[0, 2, 3, 6, 8]], [1 / 3, 2 / 3, 2 / 3, 1, 1])
    false_rate, true_rate = receiver_operating_curve(whole)
    np.testing.assert_allclose(false_rate[[2, 3, 8]], [0, 1 / 2, 1])
    np.testing.assert_allclose(true_rate, recall)
    assert recall_at_precision(whole, precision=0.9) == pytest.approx(2 / 3)
    assert recall_at_precision(whole, precision=0.7) == pytest.approx(1.0)


def test_regions_vote() -> None:
    regions = np.array([[1, 1, 1, 0], [7, 7, 0, 0]], np.int32)
    found = np.array([[2, 2, 0, 1], [1, 0, 2, 2]])
    labels, winner = vote_regions(regions, found, count=3)
    assert labels.tolist() == [1, 7]
    assert winner.tolist() == [2, 0]


@pytest.mark.slow
def test_published_networks_are_timed_in_every_runtime() -> None:
    pytest.importorskip("torch")
    from flatscope.evaluation import benchmark

    seen: list[tuple[int, int]] = []
    benchmarked = {"LR-ASPP", benchmark.OURS}
    speeds = benchmark.time_layer_networks(
        rounds=2, threads=1, only=benchmarked, on_progress=lambda *step: seen.append(step)
    )
    assert {(speed.network, speed.runtime) for speed in speeds} == {
        ("flatscope", "whole answer"),
        *itertools.product(benchmarked, ("torch", "torch NHWC", "ONNX 32-bit", "ONNX 8-bit")),
    }
    assert all(0 < speed.low <= speed.seconds <= speed.high for speed in speeds)
    assert seen[-1][0] == seen[-1][1]
    peaks = {speed.runtime: speed.peak_mib for speed in speeds if speed.network == "LR-ASPP"}
    assert np.isnan(peaks["torch"]) and (np.isnan(peaks["ONNX 8-bit"]) or 20 < peaks["ONNX 8-bit"] < 2000)


@pytest.mark.slow
def test_saito_2019_runs_through_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The smallest study: every line of the table, a page with two figures, and checkpoints that spare a second run
    all training."""
    pytest.importorskip("torch")
    from flatscope.app.cli import run

    args = ["reproduce", "saito2019", "--quick", "--out", str(tmp_path), "--json"]
    assert run(args) == 0
    rows = json.loads(capsys.readouterr().out)
    named = {row["name"]: row for row in rows}
    assert named["accuracy, colours changed: both, weighted loss"]["published"] == 0.723
    assert named["the same by twelve people"]["published"] == 0.67
    assert named["accuracy of monolayer, best network"]["ours"]["value"] > 0.5
    for layer in ("monolayer", "bilayer"):
        recall = f"recall of {layer} at precision 0.9"
        ideal = named[f"{recall}, were each region named right"]["ours"]["value"]
        assert 1.0 > ideal >= named[f"{recall}, best network"]["ours"]["value"] and ideal > 0.5
    assert (tmp_path / "saito2019.html").read_text("utf-8").count("<img") == 2

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    from flatscope.training import supervised

    monkeypatch.setattr(supervised, "cross_entropy", refuse)
    assert run(args) == 0
    assert json.loads(capsys.readouterr().out) == rows


@pytest.mark.slow
def test_yang_2024_splits_frames_and_shows_the_leak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    from flatscope.app.cli import run
    from flatscope.evaluation.papers import yang2024_layers

    tiny = yang2024_layers.SIZES["quick"]
    assert run(["reproduce", "yang2024-layers", "--quick", "--out", str(tmp_path), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["U-Net of base 4: IoU of monolayer"]["ours"]["value"] > 0.5
    assert rows[f"{yang2024_layers.LEAK}: IoU of bilayer"]["ours"] is None
    page = (tmp_path / "yang2024-layers.html").read_text("utf-8")
    assert page.count("<img") == 3 and "steps of training: U-Net of base 4 2." in page
    assert (tiny.steps_of("FCN"), tiny.steps_of("LR-ASPP")) == (1, 2)


def test_resized_tiles_keep_picture_and_classes_together() -> None:
    """Black outside the tile is ignored, every class keeps its colour, and sizes come out as asked."""
    pytest.importorskip("torch")
    from flatscope.evaluation.papers import yang2024_layers

    truth = np.zeros((60, 60), np.uint8)
    truth[10:40, 20:50] = 2
    picture = np.repeat((80 + 60 * truth)[..., None], 3, axis=2).astype(np.uint8)
    augment = yang2024_layers.make_augment(48)
    outside = 0
    for seed in range(12):
        part, target = augment(np.random.default_rng(seed), picture, truth)
        assert part.shape == (48, 48, 3) and target.shape == (48, 48)
        known = target != 255
        outside += int((~known).sum())
        assert (part[~known] == 0).all()
        agree = (part[known][:, 0] > 140) == (target[known] == 2)
        assert agree.mean() > 0.97
    assert outside > 0


def test_changed_colours_leave_the_truth_alone() -> None:
    """A gray picture, or one of another contrast, is cut and turned with its classes."""
    from flatscope.evaluation.papers import saito2019

    truth = np.zeros((40, 40), np.uint8)
    truth[5:20, 8:30] = 1
    picture = np.repeat((60 + 100 * truth)[..., None], 3, axis=2).astype(np.uint8)
    for colours in saito2019.COLOURS:
        augment = saito2019.make_augment(colours, crop_px=32)
        for seed in range(6):
            part, target = augment(np.random.default_rng(seed), picture, truth)
            assert part.shape == (32, 32, 3)
            bright = part[..., 1] > (int(part.min()) + int(part.max())) / 2
            np.testing.assert_array_equal(bright, target == 1)
