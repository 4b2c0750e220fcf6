"""Corrections by hand: a file that only grows, and what its lines change in an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from flatscope import FlakeParams, Micrograph, find_regions, name_layers
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.results import FlakeTable, Marks, Provenance, column_names
from flatscope.results.answers import FLAKE_COLUMNS
from flatscope.runs.edits import (
    Edits,
    Known,
    KnownColour,
    PixelSize,
    Residue,
    Restore,
    SetLayers,
    Undo,
    append_edits,
    keep_new,
    make_schema,
    parse_edits,
    read_edits,
    sign,
)
from flatscope.runs.replay import adopt_layer_image, collect_known, correct
from flatscope.runs.reshape import reshape

import pandas as pd  # isort: skip

HERE: dict[str, Any] = {"image": "a.png", "row_px": 5, "col_px": 5}


def table_of(*rows: tuple[str, str]) -> FlakeTable:
    """Squares side by side: (layers, status)."""
    labels = np.zeros((10, 10 * len(rows)), np.int32)
    made = []
    for number, (layers, status) in enumerate(rows, start=1):
        labels[2:8, 10 * number - 8 : 10 * number - 2] = number
        cells: dict[str, Any] = dict.fromkeys(column_names(FLAKE_COLUMNS), 0.01)
        cells |= {
            "image": "a.png",
            "flake_id": number,
            "region_id": number,
            "layers": layers,
            "status": status,
        }
        cells |= {"reason": "", "area_px": 36, "touches_edge": False, "p_2": 0.95, "p_flake": 0.9}
        made.append(cells)
    provenance = Provenance("a.png", "abc", {})
    return FlakeTable(pd.DataFrame(made), Marks.none(labels.shape), None, provenance, labels)


def row_at(table: FlakeTable, region: int) -> dict[str, Any]:
    return table.frame.set_index("region_id").loc[region].to_dict()


def test_a_file_of_corrections_only_grows(tmp_path: Path) -> None:
    append_edits(tmp_path, [sign(Residue(**HERE))])
    before = (tmp_path / "edits.jsonl").read_bytes()
    append_edits(tmp_path, [SetLayers(**HERE, layers="2")])
    after = (tmp_path / "edits.jsonl").read_bytes()
    assert after.startswith(before)
    lines = read_edits(tmp_path).lines
    assert [line.edit for line in lines] == ["residue", "layers"]
    assert lines[0].when and json.loads(before)["edit"] == "residue"
    assert parse_edits(line.to_json() for line in lines).lines == lines


def test_a_line_cut_off_by_a_kill_spoils_no_other(tmp_path: Path) -> None:
    append_edits(tmp_path, [Residue(**HERE)])
    with open(tmp_path / "edits.jsonl", "a", encoding="utf-8") as stream:
        stream.write('{"edit": "layers", "image"')
    append_edits(tmp_path, [SetLayers(**HERE, layers="3")])
    read = read_edits(tmp_path)
    assert [line.edit for line in read.lines] == ["residue", "layers"]
    assert len(read.problems) == 1 and "line 2 is left out" in read.problems[0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "Invalid JSON"),
        ('{"edit": "fold"}', "fold"),
        ('{"edit": "layers", "image": "a.png", "row_px": 1, "col_px": 2, "layers": "many"}', "layers"),
        ('{"edit": "residue", "image": "a.png", "row_px": -1, "col_px": 2}', "row_px"),
        ('{"edit": "residue", "image": "a.png", "row_px": 1, "col_px": 2, "colour": "red"}', "colour"),
    ],
)
def test_a_line_that_makes_no_sense_is_told_and_kept(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "edits.jsonl").write_text(f"{line}\n" + Residue(**HERE).to_json() + "\n", encoding="utf-8")
    read = read_edits(tmp_path)
    assert len(read.lines) == len(read.problems) == 1
    assert "edits.jsonl: line 1 is left out" in read.problems[0] and words in read.problems[0]
    assert line in (tmp_path / "edits.jsonl").read_text("utf-8")


def test_an_undo_takes_a_line_back_and_its_own_undo_brings_it_again(tmp_path: Path) -> None:
    line = sign(Residue(**HERE))
    undo = Undo(of=line.id)
    for lines, kept in (
        ([line], 1),
        ([line, undo], 0),
        ([line, undo, Undo(of=undo.id)], 1),
        ([undo, line], 1),
    ):
        (tmp_path / "edits.jsonl").unlink(missing_ok=True)
        append_edits(tmp_path, lines)
        assert len(read_edits(tmp_path).lines) == kept


def test_what_is_known_already_is_not_written_twice() -> None:
    known = Known(**HERE, material="MoS2", layers=1)
    assert keep_new([sign(known), known], Edits((sign(known),))) == []
    assert len(keep_new([known, known.model_copy(update={"layers": 2})], Edits((sign(known),)))) == 1


def test_the_last_word_about_a_region_counts() -> None:
    table = correct(
        table_of(("1", "accepted"), ("", "rejected")), [Residue(**HERE), SetLayers(**HERE, layers="3")]
    )
    row = row_at(table, 1)
    assert (row["layers"], row["status"], row["layers_p"], row["p_3"], row["p_2"]) == (
        "3",
        "accepted",
        1,
        1,
        0,
    )
    assert table.layer_image()[5, 5] == 3
    assert row_at(table, 2)["status"] == "rejected"
    assert table.provenance.notes == ("2 corrections by hand",)


def test_corrections_give_the_rows_they_say() -> None:
    first, second = HERE, {**HERE, "col_px": 15}
    table = table_of(("1", "accepted"), ("", "rejected"))
    marked = row_at(correct(table, [Residue(**first)]), 1)
    assert (marked["status"], marked["layers"], marked["p_flake"]) == ("rejected", "", 0)
    restored = row_at(correct(table, [Restore(**second)]), 2)
    assert (restored["status"], restored["layers"], restored["p_flake"]) == ("accepted", "2", 1)
    open_again = correct(table, [SetLayers(**first, layers="thin")])
    assert row_at(open_again, 1)["layers"] == "thin" and open_again.layer_image()[5, 5] == 253
    high = row_at(correct(table, [Known(**first, material="hBN", layers=70, height_nm=23.5)]), 1)
    assert (high["layers"], high["reason"]) == ("thick", "known: 23.5 nm high")


def test_a_correction_without_a_region_says_so() -> None:
    table = correct(table_of(("1", "accepted")), [Residue(image="a.png", row_px=0, col_px=0)])
    assert row_at(table, 1)["status"] == "accepted"
    assert table.provenance.notes == ("a.png@0,0: no region is there, so that the correction changes none",)
    changed = correct(table_of(("1", "accepted")), [Residue(**HERE, sha256="another")])
    assert row_at(changed, 1)["status"] == "accepted" and "has changed since" in changed.provenance.notes[0]


def test_known_crystals_count_for_their_material_only() -> None:
    edits = Edits(
        (
            KnownColour(material="MoS2", layers=1, contrast=(-0.1, -0.2, 0.0)),
            KnownColour(material="WS2", layers=2, contrast=(-0.2, -0.3, 0.1)),
            Known(**HERE, material="MoS2", layers=2, contrast=(-0.2, -0.4, 0.0)),
            Known(**HERE, material="MoS2", layers=40, height_nm=26.0, contrast=(0.4, 0.4, 0.4)),
            PixelSize(um_per_px=0.1),
        )
    )
    known = collect_known(edits, "MoS2", {})
    assert [(region.layers, region.contrast[1]) for region in known] == [(1, -0.2), (2, -0.4)]


def test_the_schema_names_every_kind() -> None:
    kinds = {"known", "known_colour", "layers", "residue", "restore", "pixel_size", "undo", "split", "merge"}
    assert kinds < set(make_schema()["discriminator"]["mapping"])


def test_what_is_painted_beside_regions_becomes_outlines() -> None:
    """A layer image painted over, a patch on bare substrate and a piece cut off, comes back as it was painted."""
    scene = draw_scene(np.random.default_rng(1), SceneParams((256, 256), "MoS2", oxide_nm=90.0, clean=True))
    params = FlakeParams("MoS2", oxide_nm=90.0)
    regions = find_regions(Micrograph(scene.pixels), params)
    (table,) = name_layers([regions], params)
    painted = table.layer_image().copy()
    bare = np.argwhere(ndimage.minimum_filter(painted == 0, 31)[20:-20, 20:-20])[0] + 20
    patch = tuple(slice(at - 8, at + 9) for at in bare)
    painted[patch] = 3
    row = table.frame.iloc[0]
    own = painted[round(row["row_px"]) :] == 1
    painted[round(row["row_px"]) :][own & (table.labels[round(row["row_px"]) :] == row["region_id"])] = 2
    lines = adopt_layer_image(table, painted)
    again = correct(name_layers([reshape(regions, lines)], params)[0], lines).layer_image()
    assert (again[patch] == 3).mean() > 0.9
    assert (again != painted).mean() < 0.002 < (table.layer_image() != painted).mean()
    assert adopt_layer_image(table, table.layer_image()) == []
