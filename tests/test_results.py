"""Claims about answers: tables that nobody changes, marks tied to rows, and bytes that come back as they were."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from pandas.errors import ChainedAssignmentError
from scipy import ndimage
from shapely.geometry import LineString, Polygon

from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph
from flatscope.optical.flakes import FlakeParams
from flatscope.results import (
    FLAKE_COLUMNS,
    TABLES,
    Atoms,
    ColumnTable,
    FlakeTable,
    Marks,
    Provenance,
    Table,
    TrackTable,
    column_names,
    empty_frame,
    mark,
)
from flatscope.results.answers import COLUMN_COLUMNS, EVENT_COLUMNS, TRACK_COLUMNS
from flatscope.results.marks import trace_outlines
from flatscope.results.store import StoreError, pack, unpack
from flatscope.results.table import as_plain, conform, make_schema
from flatscope.results.view import make_preview

SQUARE = Polygon([(2, 2), (8, 2), (8, 8), (2, 8)], [[(4, 4), (5, 4), (5, 5), (4, 5)]])


def rows(columns: Any, count: int, **given: Any) -> pd.DataFrame:
    """A frame of that many rows with every declared column, numbers 1, 2, … where nothing is given."""
    fill = {"text": "a", "number": np.arange(1.0, count + 1), "count": np.arange(1, count + 1), "flag": True}
    return pd.DataFrame({c.name: fill[c.kind] for c in columns} | given, index=range(count))


def flakes(**given: Any) -> FlakeTable:
    frame = rows(FLAKE_COLUMNS, 2, status=["accepted", "rejected"], reason=["", "dust"], **given)
    labels = np.zeros((20, 30), np.int32)
    labels[2:9, 2:9], labels[12:15, 12:15] = 1, 2
    picture = Micrograph(np.full((20, 30, 3), 90, np.uint8), source="a.jpg")
    return FlakeTable(
        frame,
        Marks.outlines({1: SQUARE}, labels.shape),
        Calibration((150.0, 150.0), "user"),
        Provenance.of(picture, FlakeParams(), timings_s={"total_s": 1.0}),
        labels,
        preview=make_preview(picture),
    )


def test_nobody_changes_a_table_after_the_fact() -> None:
    table = flakes()
    with pytest.raises(ChainedAssignmentError):
        table.frame["layers"] = "7"
    taken = table.frame
    taken["layers"] = "7"
    taken.loc[0, "area_px"] = 0
    assert table.frame["layers"].tolist() == ["a", "a"]
    assert table.frame["area_px"].tolist() == [1, 2]
    with pytest.raises(FrozenInstanceError):
        table.frame = taken  # type: ignore[misc]


def test_a_table_keeps_its_declared_columns_in_their_order() -> None:
    shuffled = rows(FLAKE_COLUMNS, 1, status="accepted")[list(column_names(FLAKE_COLUMNS))[::-1]]
    assert tuple(conform(shuffled.assign(more=1), FLAKE_COLUMNS).columns) == column_names(FLAKE_COLUMNS)
    with pytest.raises(ValueError, match="needs the columns oxide_nm"):
        conform(shuffled.drop(columns="oxide_nm"), FLAKE_COLUMNS)


def test_unknown_cells_are_empty_in_csv_and_null_in_json() -> None:
    table = flakes(area_um2=np.nan, flake_id=[3, None])
    head, first, second = table.to_csv().splitlines()
    place = head.split(",").index("area_um2")
    assert (first.split(",")[place], second.split(",")[1]) == ("", "")
    whole = json.loads(table.to_json())
    assert whole["rows"][0]["area_um2"] is None
    assert whole["columns"]["area_um2"]["unit"] == "µm²"
    assert whole["provenance"]["image"] == "a.jpg"


def test_marking_rows_gives_status_and_reason_to_these_rows_of_a_new_frame() -> None:
    frame = pd.DataFrame({"status": ["accepted", "rejected", "accepted"], "reason": ["", "dust", ""]})
    marked = mark(frame, [True, False, False], status="uncertain", reason="alike")
    assert marked["status"].tolist() == ["uncertain", "rejected", "accepted"]
    assert marked["reason"].tolist() == ["alike", "dust", ""]
    assert frame["status"].tolist()[0] == "accepted"


@pytest.mark.parametrize("kind", TABLES)
def test_every_column_is_declared_once_with_a_meaning(kind: type[Table]) -> None:
    names = column_names(kind.COLUMNS)
    assert len(set(names)) == len(names)
    assert all(column.meaning.endswith(".") for column in kind.COLUMNS)
    assert kind.ROW_ID in names
    schema = make_schema(kind.NAME, kind.COLUMNS)
    assert schema["items"]["required"] == list(names)
    # A unit in a name is the declared one.
    units = {"px": "px", "nm": "nm", "um2": "µm²", "deg": "°", "s": "s"}
    for column in kind.COLUMNS:
        ending = column.name.rsplit("_", 1)[-1]
        if ending in units and "_per_" not in column.name and column.name != "layers_p":
            assert column.unit == units[ending], column.name


def test_marks_are_found_by_the_row_they_belong_to() -> None:
    marks = Marks.paths([7, 4, 7], [0.0, 5.0, 2.0], [1.0, 5.0, 3.0], (10, 10))
    assert len(marks) == 2 and 7 in marks and 5 not in marks
    assert marks[7].equals(LineString([(1, 0), (3, 2)]))
    assert (marks[4].x, marks[4].y) == (5.0, 5.0)
    with pytest.raises(KeyError):
        marks[5]


def test_outlines_of_parts_that_touch_at_a_corner_are_valid_and_as_large_as_the_region() -> None:
    rng = np.random.default_rng(3)
    labels = (ndimage.gaussian_filter(rng.normal(size=(60, 60)), 1.2) > 0.05).astype(np.int32)
    outline = trace_outlines(labels, np.array([1]))[1]
    assert outline.is_valid and outline.geom_type == "MultiPolygon"
    inside = shapely.contains_xy(outline, *np.meshgrid(np.arange(60), np.arange(60)))
    np.testing.assert_array_equal(inside, labels > 0)


def test_stored_answers_come_back_as_they_were() -> None:
    frame = rows(COLUMN_COLUMNS, 3, status="accepted")
    provenance = Provenance("b.dm4", "0" * 64, {"material": "WS2", "sigma": [1.0, None]}, notes=("µ",))
    columns = ColumnTable(
        frame,
        Marks.points([1, 2, 3], [0.5, 1.5, 2.5], [3.0, 4.0, 5.0], (9, 9)),
        Calibration((0.01, 0.01), "lattice"),
        provenance,
        np.eye(2),
        np.full((3, 2, 2), np.nan),
        True,
        Atoms(["W", "S"], np.arange(6.0).reshape(2, 3), (1.0, 2.0)),
    )
    tracks = TrackTable(
        rows(TRACK_COLUMNS, 2),
        Marks.none((9, 9)),
        Calibration((0.01, 0.01), "lattice"),
        provenance,
        rows(EVENT_COLUMNS, 1, track_id=[None]),
        pd.DataFrame({"frame": [0, 1], "row_nm": [0.0, 0.1]}),
        1.0,
        0.1,
        False,
        None,
    )
    for table in (flakes(flake_id=[1, None]), columns, tracks):
        back = unpack(pack(table))
        assert type(back) is type(table)
        for part in fields(table):
            had, got = getattr(table, part.name), getattr(back, part.name)
            if isinstance(had, pd.DataFrame):
                pd.testing.assert_frame_equal(had, got, check_dtype=len(had.columns) != 2)
            elif isinstance(had, Marks):
                assert had.ids.tolist() == got.ids.tolist() and had.shape_px == got.shape_px
                assert all(one.equals(other) for one, other in zip(had.shapes, got.shapes, strict=True))
            elif isinstance(had, Atoms):
                assert (list(had.symbols), had.box_nm) == (list(got.symbols), got.box_nm)
            elif isinstance(had, np.ndarray):
                np.testing.assert_array_equal(had, got)
            else:
                assert had == got


def test_equal_answers_have_equal_bytes_and_timings_are_not_among_them() -> None:
    one = flakes()
    slow = replace(one, provenance=replace(one.provenance, timings_s={"total_s": 99.0}))
    assert pack(one) == pack(flakes()) == pack(slow)
    assert pack(one) != pack(flakes(layers="2"))


def test_stored_bytes_never_make_what_was_not_expected() -> None:
    with pytest.raises(StoreError, match="damaged"):
        unpack(pack(flakes())[:-40])
    with pytest.raises(StoreError, match="FlakeParams"):
        unpack(pack(FlakeParams()))
    assert unpack(pack(FlakeParams()), [FlakeParams]) == FlakeParams()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("tree.json", '{"~": "array", "array": 0}')
        archive.writestr("0.npy", b"\x80\x04\x8c\x02os\x94.")
    with pytest.raises(StoreError):
        unpack(stream.getvalue())


def test_a_notebook_shows_the_picture_with_its_marks_and_escapes_names() -> None:
    table = flakes().renamed("<b>.jpg")
    page = table._repr_html_()
    assert "&lt;b&gt;.jpg" in page and "<b>.jpg" not in page.replace("<b>&lt;b&gt;", "")
    assert page.count("<path") == 1 and "data:image/jpeg;base64," in page
    assert flakes().frame["image"].tolist() == ["a", "a"]


def test_provenance_names_the_weights_and_repeats_the_settings() -> None:
    network = Network.load("defects", task="defects")
    picture = Micrograph(np.zeros((20, 20)), source="folder/c.npy", notes=("a page was chosen",))
    made = Provenance.of(picture, FlakeParams(oxide_nm=90.0), network=network, notes=("faint",))
    assert (made.image, made.notes) == ("c.npy", ("a page was chosen", "faint"))
    assert (made.weights, made.weights_sha256) == (network.card.name, network.sha256)
    assert FlakeParams(**{k: v for k, v in made.settings.items() if k not in ("known", "nk")}) == FlakeParams(
        oxide_nm=90.0
    )
    assert "timings_s" not in made.to_dict() and as_plain(made.to_dict()) == made.to_dict()
    assert len(empty_frame(FLAKE_COLUMNS)) == 0
