"""Metrics on cases computed by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from flatscope.evaluation.flakes import evaluate_scenes, score_picture
from flatscope.evaluation.metrics import bootstrap, match_regions, overlap_table, ratio, reliability
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Provenance


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
    frame = pd.DataFrame(columns=list(FLAKE_COLUMNS), index=range(4))
    frame["region_id"] = [1, 2, 3, 4]
    frame["layers"] = ["2", "thick", "1", "thick"]
    frame["layers_low"], frame["layers_high"] = [2.0, 7.0, 1.0, 60.0], [2.0, 10.0, 1.0, 200.0]
    frame["status"] = "accepted"
    table = FlakeTable(frame, labels, {}, None, Provenance("0", "a.png", "", "", "", {}))
    counts = score_picture(table, true, layer_nm=0.335)
    assert counts == (2, 2, 3, 2, 2, 1, 200, 300)


def test_scores_on_scenes_add_up() -> None:
    scores = evaluate_scenes(3, side_px=384)
    hits = sum(map(sum, scores.confusion))
    assert scores.scenes == 3
    assert hits == round(scores.found.value * scores.regions) > 0
    assert hits == sum(number for _, _, number in scores.reliability)
    for interval in (scores.found, scores.right, scores.crystal, scores.ambiguous):
        assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    assert scores.crystal.value > 0.5
