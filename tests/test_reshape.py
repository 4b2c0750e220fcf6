"""Claims about corrected outlines: what is split, merged, drawn and erased is measured anew, and nothing else moves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from flatscope import FlakeParams, Micrograph
from flatscope.optical.flakes import find_regions, name_layers
from flatscope.optical.regions import Regions
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.runs.edits import Merge, Outline, Split
from flatscope.runs.reshape import reshape

PLACE: dict[str, Any] = {"image": "a.png"}


@pytest.fixture(scope="module")
def regions() -> Regions:
    scene = draw_scene(np.random.default_rng(1), SceneParams((256, 256), "MoS2", oxide_nm=90.0, clean=True))
    return find_regions(Micrograph(scene.pixels), FlakeParams("MoS2", oxide_nm=90.0))


def middle_of(regions: Regions, label: int) -> tuple[int, int]:
    """A pixel of a region near its centre."""
    inside = np.argwhere(regions.labels == label)
    row, col = inside[np.abs(inside - regions.measured.centre[label - 1]).sum(1).argmin()].tolist()
    return row, col


def largest(regions: Regions) -> int:
    return int(regions.measured.area_px.argmax()) + 1


def is_sound(regions: Regions) -> bool:
    """Labels without gaps, and areas and boxes that are those of the labels."""
    count = len(regions)
    areas = np.bincount(regions.labels.ravel(), minlength=count + 1)[1:]
    boxes = regions.measured.boxes
    tops = [np.argwhere(regions.labels == label).min(0) for label in range(1, count + 1)]
    return (
        len(areas) == count > 0
        and bool((areas == regions.measured.area_px).all() and areas.all())
        and bool((boxes[:, :2] == tops).all())
    )


def test_a_line_divides_a_region_and_no_pixel_is_lost(regions: Regions) -> None:
    label = largest(regions)
    row, col = middle_of(regions, label)
    line = Split(**PLACE, row_px=row, col_px=col, line=((row, 0), (row, 255)))
    made = reshape(regions, [line])
    assert is_sound(made) and len(made) >= len(regions) + 1
    assert ((made.labels > 0) == (regions.labels > 0)).all()
    pieces = np.unique(made.labels[regions.labels == label])
    assert len(pieces) >= 2
    np.testing.assert_allclose(
        made.measured.contrast[pieces - 1], regions.measured.contrast[[label - 1]].repeat(len(pieces), 0)
    )
    others = np.setdiff1d(np.arange(1, len(regions) + 1), [label])
    np.testing.assert_array_equal(made.measured.area_px[others - 1], regions.measured.area_px[others - 1])
    # Each piece is counted like the region that it comes from.
    (table,) = name_layers([made], FlakeParams("MoS2", oxide_nm=90.0))
    rows = table.frame.set_index("region_id")
    large = [piece for piece in pieces if piece in rows.index]
    assert len(large) == 2 and rows.loc[large, "layers"].nunique() == 1


def test_a_line_beside_a_region_changes_nothing(regions: Regions) -> None:
    row, col = middle_of(regions, largest(regions))
    made = reshape(regions, [Split(**PLACE, row_px=row, col_px=col, line=((0, 0), (0, 1)))])
    assert made.labels is regions.labels
    assert made.notes[-1].endswith("the line does not divide the region")


def test_merged_regions_are_one_with_the_mean_contrast(regions: Regions) -> None:
    one, other = (int(label) + 1 for label in np.argsort(-regions.measured.area_px)[:2])
    places = [middle_of(regions, label) for label in (one, other)]
    made = reshape(regions, [Merge(**PLACE, row_px=places[0][0], col_px=places[0][1], others=(places[1],))])
    assert is_sound(made) and len(made) == len(regions) - 1
    label = made.labels[places[0]]
    assert label == made.labels[places[1]] > 0
    areas = regions.measured.area_px[[one - 1, other - 1]]
    assert made.measured.area_px[label - 1] == areas.sum()
    wanted = areas @ regions.measured.contrast[[one - 1, other - 1]] / areas.sum()
    np.testing.assert_allclose(made.measured.contrast[label - 1], wanted)


def test_what_is_split_and_merged_again_is_what_it_was(regions: Regions) -> None:
    label = largest(regions)
    row, col = middle_of(regions, label)
    cut = reshape(regions, [Split(**PLACE, row_px=row, col_px=col, line=((row, 0), (row, 255)))])
    pieces = [int(piece) for piece in np.unique(cut.labels[regions.labels == label])]
    first, *rest = [middle_of(cut, piece) for piece in pieces]
    whole = reshape(cut, [Merge(**PLACE, row_px=first[0], col_px=first[1], others=tuple(rest))])
    np.testing.assert_array_equal(whole.labels, regions.labels)
    np.testing.assert_allclose(whole.measured.centre, regions.measured.centre)
    np.testing.assert_allclose(whole.measured.contrast, regions.measured.contrast)


def test_an_outline_draws_a_region_or_takes_its_pixels_away(regions: Regions) -> None:
    corners = ((100.0, 100.0), (100.0, 140.0), (130.0, 140.0), (130.0, 100.0))
    drawn = reshape(regions, [Outline(**PLACE, corners=corners, layers="2")])
    label = drawn.labels[115, 120]
    assert is_sound(drawn) and (drawn.labels == label).sum() == drawn.measured.area_px[label - 1]
    assert (drawn.labels[101:130, 101:140] == label).all()
    erased = reshape(drawn, [Outline(**PLACE, corners=corners)])
    assert is_sound(erased) and not erased.labels[101:130, 101:140].any()
    assert len(erased) <= len(regions)


@pytest.mark.parametrize(
    "line",
    [
        Split(**PLACE, row_px=0, col_px=0, line=((0, 0), (5, 5))),
        Merge(**PLACE, row_px=900, col_px=0, others=((0.0, 900.0),)),
        Outline(**PLACE, corners=((900.0, 900.0),) * 3),
    ],
)
def test_corrections_of_nothing_are_notes(regions: Regions, line: Any) -> None:
    made = reshape(regions, [line])
    assert made.labels is regions.labels and len(made.notes) == len(regions.notes) + 1
    gone = line.model_copy(update={"sha256": "another"})
    assert "has changed since" in reshape(regions, [gone]).notes[-1]


def test_a_picture_without_regions_takes_a_drawn_one() -> None:
    empty = find_regions(Micrograph(np.full((60, 80, 3), 90, np.uint8)))
    made = reshape(empty, [Outline(**PLACE, corners=((10.0, 10.0), (10.0, 30.0), (30.0, 30.0)), layers="1")])
    assert is_sound(made) and len(made) == 1 and not made.foreign[0]
    (table,) = name_layers([made])
    assert len(table) == 1
