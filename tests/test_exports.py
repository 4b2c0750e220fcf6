"""Answers as files: what another program reads from them is what stood in the table."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ezdxf
import gdstk
import numpy as np
import pandas as pd
import pytest
import roifile
import shapely
from pyarrow import parquet
from pycocotools.coco import COCO
from scipy import ndimage

from flatscope.micrograph import Calibration, MicrographError
from flatscope.results import (
    COLUMN_COLUMNS,
    DEFECT_COLUMNS,
    EVENT_COLUMNS,
    FLAKE_COLUMNS,
    LAYER_COLOURS,
    LAYER_COLUMN_COLUMNS,
    MOIRE_COLUMNS,
    TRACK_COLUMNS,
    TWIST_COLUMNS,
    Atoms,
    ColumnTable,
    DefectTable,
    FlakeTable,
    Marks,
    MoireTable,
    Provenance,
    Table,
    TrackTable,
    TwistTable,
    empty_frame,
)
from flatscope.results.exports import EXPORTS, find_export, list_exports
from flatscope.results.exports.keyhole import cut_keyholes
from flatscope.results.exports.layout import name_layer
from flatscope.results.marks import trace_outlines

SHA = "0123456789abcdef" * 4
SHAPE = (60, 90)
# Twice as high as wide, so that nobody mixes them up.
CALIBRATION = Calibration((200.0, 100.0), "user", 0.01)
PIXEL_UM2 = 0.02
LONG = "Übersicht µ 二硒化钨 " + "x" * 219 + ".jpg"


def rows(columns: Any, count: int, **given: Any) -> pd.DataFrame:
    """A frame of that many rows with every declared column, numbers 1, 2, … where nothing is given."""
    fill = {"text": "a", "number": np.arange(1.0, count + 1), "count": np.arange(1, count + 1), "flag": True}
    return pd.DataFrame({c.name: fill[c.kind] for c in columns} | given, index=range(count))


def cells(top: int, left: int, bottom: int, right: int) -> shapely.Polygon:
    """The area of pixels from one to another, both included."""
    return shapely.box(left - 0.5, top - 0.5, right + 0.5, bottom + 0.5)


def flakes(image: str = "a.jpg", calibration: Calibration | None = CALIBRATION) -> FlakeTable:
    """Region 3: a frame with two holes; 1: a block in the lower right corner; 7: rejected; 4: without outline."""
    ring = cells(4, 5, 24, 35).difference(cells(8, 9, 12, 12)).difference(cells(10, 20, 20, 29))
    corner, dirt = cells(40, 70, 59, 89), cells(30, 40, 35, 50)
    labels = np.zeros(SHAPE, np.int32)
    labels[4:25, 5:36], labels[8:13, 9:13], labels[10:21, 20:30] = 3, 0, 0
    labels[40:, 70:], labels[30:36, 40:51], labels[0, 0] = 1, 7, 4
    ids = [1, 3, 7, 4]
    areas = [int((labels == region).sum()) for region in ids]
    nothing = [0.0, 0.0, 0.0, 0.0]
    chances = {f"p_{n}": nothing for n in range(3, 7)} | {"p_thick": [0, 0, 0, 1]}
    frame = rows(
        FLAKE_COLUMNS,
        4,
        image=image,
        region_id=ids,
        layers=["1", "1|2", "", "thick"],
        p_1=[1, 0.4, 1, 0],
        p_2=[0, 0.6, 0, 0],
        **chances,
        status=["accepted", "uncertain", "rejected", "uncertain"],
        reason=["", "two fit", "dirt", "small"],
        area_px=areas,
        area_um2=np.array(areas) * (np.nan if calibration is None else PIXEL_UM2),
        layers_low=np.nan,
    )
    marks = Marks.outlines({1: corner, 3: ring, 7: dirt}, SHAPE)
    return FlakeTable(frame, marks, calibration, provenance(image), labels)


def provenance(image: str) -> Provenance:
    return Provenance(image, SHA, {"material": "WSe2"}, version="9.8.7", notes=("a note",))


def twist(image: str = "t.jpg", calibration: Calibration | None = CALIBRATION) -> TwistTable:
    frame = rows(
        TWIST_COLUMNS,
        2,
        image=image,
        twist_deg=[21.96, np.nan],
        status=["accepted", "rejected"],
        reason=["", "small"],
    )
    return TwistTable(
        frame, Marks.points([1, 2], [10, 20.5], [30, 40], SHAPE), calibration, provenance(image)
    )


def columns(image: str = "c.tif") -> ColumnTable:
    species = ["W", "Se2", "none"]
    status = ["accepted", "uncertain", "rejected"]
    frame = rows(
        COLUMN_COLUMNS, 3, image=image, species=species, status=status, reason=["", "dim", "no atom"]
    )
    atoms = Atoms(
        ["W", "Se", "Se"], np.array([[1.0, 2.0, 0.0], [1.5, 0.25, 0.17], [1.5, 0.25, -0.17]]), (3.0, 4.0)
    )
    marks = Marks.points([1, 2, 3], [10, 20.25, 0], [30, 40.5, 0], SHAPE)
    strain = np.zeros((3, 2, 2))
    return ColumnTable(frame, marks, CALIBRATION, provenance(image), np.eye(2), strain, True, atoms)


def moire(image: str = "s.tif") -> MoireTable:
    frame = rows(MOIRE_COLUMNS, 1, image=image, twist_deg=[20.0], status="accepted", reason="")
    atoms = Atoms(["W", "Se"], np.array([[1.0, 2.0, 0.0], [1.5, 0.25, -0.6]]), (3.0, 4.0))
    found = rows(LAYER_COLUMN_COLUMNS, 2, image=image, layer=[1, 2], status="accepted", reason="")
    marks = Marks.points([1], [10], [30], SHAPE)
    return MoireTable(frame, marks, CALIBRATION, provenance(image), found, np.zeros(SHAPE, np.uint8), atoms)


def defects(image: str = "d.tif") -> DefectTable:
    given = {"kind": ["V_Se", "hole"], "status": ["accepted", "uncertain"], "frame": None, "track_id": None}
    frame = rows(DEFECT_COLUMNS, 2, image=image, **given)
    nothing = np.zeros((2, 1, 1))
    marks = Marks.points([1, 2], [10, 20.5], [30, 40], SHAPE)
    return DefectTable(
        frame, marks, CALIBRATION, provenance(image), 9.0, 0.1, {"metal": 5}, nothing[0], nothing, nothing
    )


def tracks(image: str = "m.tif") -> TrackTable:
    places = {
        "track_id": [1, 1, 1, 2],
        "frame": [0, 1, 3, 2],
        "row_px": [5, 6.5, 7, 9],
        "col_px": [8, 8, 9.25, 50],
    }
    frame = rows(TRACK_COLUMNS, 4, image=image, kind=["V_Se", "V_Se2", "V_Se2", "X_W"], **places)
    events = rows(EVENT_COLUMNS, 2, image=image, event=["hop", "appearance"], distance_nm=[0.33, np.nan])
    marks = Marks.paths(places["track_id"], places["row_px"], places["col_px"], SHAPE)
    drift = pd.DataFrame({"frame": [0], "row_nm": [0.0], "col_nm": [0.0]})
    return TrackTable(frame, marks, CALIBRATION, provenance(image), events, drift, 9.0, 0.1, True, None)


MAKERS: dict[type[Table], Callable[..., Any]] = {
    FlakeTable: flakes,
    TwistTable: twist,
    ColumnTable: columns,
    MoireTable: moire,
    DefectTable: defects,
    TrackTable: tracks,
}
EVERY = [
    pytest.param(export.name, kind, id=f"{export.name}-{kind.NAME}")
    for export in EXPORTS.values()
    for kind in export.tables
]


def emptied(table: Any) -> Any:
    """The answer of a picture in which nothing is."""
    given: dict[str, Any] = {"frame": empty_frame(table.COLUMNS), "marks": Marks.none(SHAPE)}
    if isinstance(table, FlakeTable):
        given["labels"] = np.zeros(SHAPE, np.int32)
    if isinstance(table, TrackTable):
        given["events"] = empty_frame(EVENT_COLUMNS)
    if isinstance(table, MoireTable):
        given["columns"] = empty_frame(LAYER_COLUMN_COLUMNS)
    if isinstance(table, ColumnTable | MoireTable):
        given["model"] = Atoms([], np.empty((0, 3)), (3.0, 4.0))
    return replace(table, **given)


def reopen(name: str, content: bytes, folder: Path) -> Any:
    """Read a file as another program does."""
    path = folder / f"it{find_export(name).suffix}"
    path.write_bytes(content)
    match name:
        case "csv":
            return pd.read_csv(path, keep_default_na=False)
        case "parquet":
            return parquet.read_table(path)
        case "json" | "labelme":
            return json.loads(path.read_text("utf-8"))
        case "geojson":
            return shapely.from_geojson(path.read_text("utf-8"))
        case "coco":
            return COCO(str(path))
        case "roi":
            if content == b"PK\x05\x06" + bytes(18):  # a zip file of nothing
                return []
            return roifile.ImagejRoi.fromfile(path)
        case "gds":
            return gdstk.read_gds(path)
        case "dxf":
            return ezdxf.readfile(path)
        case _:
            ase_io = pytest.importorskip("ase.io")
            with path.open(encoding="utf-8") as stream:
                return ase_io.read(stream, format={"xyz": "extxyz", "cif": "cif"}[name])


# ---------------------------------------------------------------- every format


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_long_names_in_any_letters_are_written_and_read(name: str, kind: type[Table], tmp_path: Path) -> None:
    assert len(LONG) == 240
    export = find_export(name)
    content = export.encode(MAKERS[kind](LONG))
    assert reopen(name, content, tmp_path) is not None
    if export.scope == "run" and name not in ("parquet", "csv"):
        assert LONG in json.dumps(json.loads(content), ensure_ascii=False)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_picture_in_which_nothing_is_gives_a_file_that_can_be_read(
    name: str, kind: type[Table], tmp_path: Path
) -> None:
    content = find_export(name).encode(emptied(MAKERS[kind]()))
    if name in ("xyz", "cif"):  # ASE wants an atom
        assert content.decode().splitlines()[-1].startswith(("Lattice", "_atom_site_fract_z"))
    else:
        assert reopen(name, content, tmp_path) is not None


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_equal_answers_give_equal_bytes(name: str, kind: type[Table]) -> None:
    export, table = find_export(name), MAKERS[kind]()
    content = export.encode(table)
    assert content == export.encode(MAKERS[kind]())
    origin = table.provenance
    if name in ("json", "parquet", "coco", "labelme", "cif", "xyz", "dxf", "gds"):
        assert origin.image_sha256.encode() in content and origin.version.encode() in content


def test_no_file_holds_the_time_of_day(tmp_path: Path) -> None:
    (tmp_path / "it.gds").write_bytes(find_export("gds").encode(flakes()))
    assert gdstk.gds_timestamp(tmp_path / "it.gds").year == 2000
    lines = find_export("dxf").encode(flakes()).decode().splitlines()
    for variable in ("$TDCREATE", "$TDUCREATE", "$TDUPDATE", "$TDUUPDATE"):
        assert lines[lines.index(variable) + 2] == "2451545.0", "Julian date of 1 January 2000"
    with zipfile.ZipFile(io.BytesIO(find_export("roi").encode(flakes()))) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    assert not ezdxf.options.write_fixed_meta_data_for_testing, "a user's own drawings keep their dates"


def test_an_unknown_format_is_explained() -> None:
    with pytest.raises(
        ValueError, match="no format is called 'gdsii': use one of csv, parquet, json, geojson"
    ):
        find_export("gdsii")


def test_a_format_that_cannot_hold_the_answer_names_those_that_can() -> None:
    with pytest.raises(
        ValueError, match=r"c.tif: GDSII holds flakes, twist, not columns: use one of csv, .*xyz, cif"
    ):
        find_export("gds").encode(columns())
    with pytest.raises(ValueError, match="CSV needs a finished picture: the run has none"):
        find_export("csv").encode([])
    assert "gds" in list_exports(FlakeTable) and "gds" not in list_exports(DefectTable)


@pytest.mark.parametrize("name", ["gds", "dxf"])
@pytest.mark.parametrize("maker", [flakes, twist])
def test_what_is_in_um_wants_a_pixel_size(name: str, maker: Callable[..., Table]) -> None:
    with pytest.raises(
        MicrographError, match=r"b\.jpg has no pixel size, and (GDSII|DXF) is in µm: .* --um-per-px"
    ):
        find_export(name).encode(maker("b.jpg", None))


@pytest.mark.parametrize(
    ("name", "package", "said"),
    [
        ("gds", "gdstk", "GDSII needs gdstk: pip install 'flatscope[exports]'"),
        ("dxf", "ezdxf", "DXF needs ezdxf: pip install 'flatscope[exports]'"),
        ("roi", "roifile", "ImageJ ROI needs roifile: pip install 'flatscope[exports]'"),
        ("parquet", "pyarrow", "Parquet needs pyarrow: pip install 'flatscope[tables]'"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"flatscope.results.exports.{name}", raising=False)
    with pytest.raises(ImportError) as caught:
        find_export(name).encode(flakes())
    assert str(caught.value) == said


def test_formats_are_loaded_when_they_are_used() -> None:
    code = (
        "import sys\nfrom flatscope.results.exports import EXPORTS\n"
        "print(sorted({'gdstk', 'ezdxf', 'roifile'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- tables


def test_csv_and_parquet_hold_the_rows_of_all_pictures(tmp_path: Path) -> None:
    one, two = flakes("a.jpg"), flakes("é, b.jpg", None)
    whole = pd.concat([one.frame, two.frame], ignore_index=True)
    read = reopen("csv", find_export("csv").encode([one, two]), tmp_path)
    assert list(read) == list(whole)
    assert read["image"].tolist() == whole["image"].tolist()
    assert read["area_um2"].tolist()[4:] == [""] * 4
    arrow = reopen("parquet", find_export("parquet").encode([one, two]), tmp_path)
    pd.testing.assert_frame_equal(arrow.to_pandas(), whole, check_dtype=False)
    about = json.loads(arrow.schema.metadata[b"flatscope"])
    assert [each["image"] for each in about["provenance"]] == ["a.jpg", "é, b.jpg"]
    assert about["columns"]["area_um2"]["unit"] == "µm²"


def test_pictures_with_and_without_a_count_share_a_file(tmp_path: Path) -> None:
    """In one table `frame` is a whole number, in the other nobody knows it."""
    known = replace(defects(), frame=defects().frame.assign(frame=[5, 6]))
    arrow = reopen("parquet", find_export("parquet").encode([known, defects("e.tif")]), tmp_path)
    assert arrow["frame"].to_pylist() == [5, 6, None, None]
    read = reopen("csv", find_export("csv").encode([known, defects("e.tif")]), tmp_path)
    assert read["frame"].tolist() == ["5", "6", "", ""]


def test_json_holds_what_each_picture_gave() -> None:
    whole = json.loads(find_export("json").encode([tracks("m.tif"), tracks("n.tif")]))
    first, second = whole["pictures"]
    assert (first["provenance"]["image"], second["provenance"]["image"]) == ("m.tif", "n.tif")
    assert [row["kind"] for row in first["rows"]] == ["V_Se", "V_Se2", "V_Se2", "X_W"]
    assert [event["distance_nm"] for event in first["events"]] == [0.33, None]
    assert first["pixel_size_nm"] == [200.0, 100.0]
    assert whole["columns"]["x_nm"]["unit"] == whole["event_columns"]["distance_nm"]["unit"] == "nm"


# ---------------------------------------------------------------- shapes in pixels


def test_geojson_is_in_um_from_the_corner(tmp_path: Path) -> None:
    content = find_export("geojson").encode([flakes(), flakes("b.jpg", None)])
    shapes = list(reopen("geojson", content, tmp_path).geoms)
    frame = flakes().frame.set_index("region_id")
    features = json.loads(content)["features"]
    assert [feature["properties"]["region_id"] for feature in features] == [1, 3, 7, 1, 3, 7]
    for shape, region in zip(shapes[:3], (1, 3, 7), strict=True):
        assert shape.area == pytest.approx(frame.loc[region, "area_um2"])
    assert shapes[0].bounds == pytest.approx((7.0, 8.0, 9.0, 12.0))
    assert shapes[3].bounds == pytest.approx((70, 40, 90, 60))
    assert features[3]["properties"]["area_um2"] is None


def test_geojson_holds_points_and_a_track_once(tmp_path: Path) -> None:
    point = reopen("geojson", find_export("geojson").encode([defects()]), tmp_path).geoms[1]
    assert (point.x, point.y) == pytest.approx((40.5 * 0.1, 21.0 * 0.2))
    content = find_export("geojson").encode([tracks()])
    line, dot = reopen("geojson", content, tmp_path).geoms
    assert shapely.get_coordinates(line)[-1] == pytest.approx((9.75 * 0.1, 7.5 * 0.2))
    assert dot.geom_type == "Point"
    first = json.loads(content)["features"][0]["properties"]
    assert (first["kind"], first["first_frame"], first["last_frame"], first["frames"]) == ("V_Se", 0, 3, 3)


# pycocotools hands numpy an object of the old kind.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_coco_masks_are_the_label_image(tmp_path: Path) -> None:
    """Also of the region with holes and of the one in the corner, pixel by pixel."""
    tables = [flakes("a.jpg"), flakes(LONG, None)]
    coco = reopen("coco", find_export("coco").encode(tables), tmp_path)
    assert [image["file_name"] for image in coco.loadImgs([1, 2])] == ["a.jpg", LONG]
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    seen = []
    for image_id in (1, 2):
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[image_id])):
            region = annotation["attributes"]["row_id"]
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, tables[0].labels == region)
            assert annotation["area"] == mask.sum()
            at, beside = np.nonzero(mask)
            box = [beside.min(), at.min(), np.ptp(beside) + 1, np.ptp(at) + 1]
            assert annotation["bbox"] == pytest.approx(box)
            seen.append((region, names[annotation["category_id"]], annotation["attributes"]["status"]))
    assert seen == 2 * [(1, "1L", "accepted"), (3, "1L|2L", "uncertain"), (7, "rejected", "rejected")]


def test_coco_counts_from_the_corner_and_from_the_first_pixel() -> None:
    whole = json.loads(find_export("coco").encode([flakes()]))
    corner = np.reshape(whole["annotations"][0]["segmentation"][0], (-1, 2))
    assert shapely.Polygon(corner).bounds == (70, 40, 90, 60)
    frame = flakes().frame.iloc[:1].assign(region_id=1)
    labels = np.zeros((8, 7), np.int32)
    labels[:6, :5], labels[2:4, 1:3] = 1, 0
    marks = Marks.outlines({1: cells(0, 0, 5, 4).difference(cells(2, 1, 3, 2))}, labels.shape)
    whole = json.loads(
        find_export("coco").encode([replace(flakes(), frame=frame, labels=labels, marks=marks)])
    )
    # Down the columns: none outside before the first pixel, then six of the region, and so on.
    assert whole["annotations"][0]["segmentation"]["counts"] == [0, 6, 2, 2, 2, 2, 2, 2, 2, 2, 2, 6, 2, 6, 18]


def test_coco_points_are_keypoints(tmp_path: Path) -> None:
    coco = reopen("coco", find_export("coco").encode([columns()]), tmp_path)
    annotation = coco.loadAnns(coco.getAnnIds())[1]
    assert annotation["keypoints"] == [41.0, 20.75, 2]
    category = coco.loadCats(annotation["category_id"])[0]
    assert (category["name"], category["keypoints"]) == ("Se2", ["centre"])


def test_labelme_shapes_lie_where_the_marks_do(tmp_path: Path) -> None:
    whole = reopen("labelme", find_export("labelme").encode(flakes()), tmp_path)
    assert (whole["imagePath"], whole["imageHeight"], whole["imageWidth"]) == ("a.jpg", 60, 90)
    assert (whole["flatscope"]["version"], whole["flatscope"]["image_sha256"]) == ("9.8.7", SHA)
    corner, ring, dirt = whole["shapes"]
    assert [shape["label"] for shape in whole["shapes"]] == ["1L", "1L|2L", "rejected"]
    assert {shape["shape_type"] for shape in whole["shapes"]} == {"polygon"}
    assert shapely.Polygon(corner["points"]).bounds == (70, 40, 90, 60)
    areas = flakes().frame.set_index("region_id")["area_px"]
    assert shapely.Polygon(ring["points"]).area == areas[3], "a slit leads to each hole"
    assert dirt["description"] == "rejected: dirt"
    line, dot = reopen("labelme", find_export("labelme").encode(tracks()), tmp_path)["shapes"]
    assert (line["shape_type"], line["points"]) == ("linestrip", [[8.5, 5.5], [8.5, 7.0], [9.75, 7.5]])
    assert (dot["shape_type"], dot["points"], dot["label"]) == ("point", [[50.5, 9.5]], "track 2")


def test_imagej_areas_count_from_the_corner_and_points_from_the_centre(tmp_path: Path) -> None:
    corner, ring, dirt = reopen("roi", find_export("roi").encode(flakes()), tmp_path)
    assert shapely.Polygon(corner.coordinates()).bounds == (70, 40, 90, 60)
    outside, *holes = ring.coordinates(multi=True)
    areas = flakes().frame.set_index("region_id")["area_px"]
    left = shapely.Polygon(outside).area - sum(shapely.Polygon(hole).area for hole in holes)
    assert len(holes) == 2 and left == areas[3]
    assert (ring.left, ring.top, ring.right, ring.bottom) == (5, 4, 36, 25)
    turns = [shapely.is_ccw(shapely.LinearRing(path)) for path in (outside, *holes)]
    assert turns == [not turns[1], turns[1], turns[1]], "holes stay empty under either rule of filling"
    assert (corner.name, ring.name) == ("0001 1L", "0003 1L or 2L")
    assert corner.hexcolor(corner.stroke_color) == "#{:02x}{:02x}{:02x}".format(*LAYER_COLOURS["1"])
    assert dirt.properties["reason"] == "dirt" and SHA in dirt.properties["source"]
    points = reopen("roi", find_export("roi").encode(columns()), tmp_path)
    assert points[1].roitype == roifile.ROI_TYPE.POINT
    assert points[1].coordinates().tolist() == [[40.5, 20.25]]
    line = reopen("roi", find_export("roi").encode(tracks()), tmp_path)[0]
    assert line.roitype == roifile.ROI_TYPE.POLYLINE
    assert line.coordinates().tolist() == [[8, 5], [8, 6.5], [9.25, 7]]


def test_imagej_keeps_fractions_of_a_pixel_far_from_the_corner(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    around = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    blob = shapely.Polygon(
        np.column_stack([np.cos(around), np.sin(around)]) * rng.uniform(9, 20, (40, 1)) + 5000.3
    )
    table = replace(flakes(), marks=Marks.outlines({1: blob}, (6000, 6000)))
    (roi,) = reopen("roi", find_export("roi").encode(table), tmp_path)
    np.testing.assert_allclose(roi.coordinates(), shapely.get_coordinates(blob)[:-1] + 0.5, atol=1e-3)


# ---------------------------------------------------------------- layouts in µm


@pytest.mark.parametrize("seed", range(8))
def test_a_ring_with_slits_covers_what_the_polygon_covers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    holes = shapely.union_all([shapely.box(x, y, x + 3, y + 2) for x, y in rng.integers(2, 40, (25, 2))])
    polygon = shapely.box(0, 0, 50, 50).difference(holes.buffer(0.2, join_style="mitre"))
    largest = max(getattr(polygon, "geoms", [polygon]), key=lambda part: part.area)
    assert len(largest.interiors) >= 5
    # Outside and holes turn the same way, as nothing forbids.
    turning = [
        hole if hole.is_ccw == largest.exterior.is_ccw else hole.reverse() for hole in largest.interiors
    ]
    ring = cut_keyholes(shapely.Polygon(largest.exterior, turning))
    assert shapely.Polygon(ring).area == pytest.approx(largest.area)
    edges = shapely.linestrings(np.stack([ring, np.roll(ring, -1, axis=0)], axis=1))
    assert largest.buffer(1e-9).covers(edges).all(), "no slit crosses a hole"
    places = rng.uniform(-1, 51, (2000, 2))
    inside = gdstk.inside(places.tolist(), gdstk.Polygon(ring.tolist()))
    np.testing.assert_array_equal(inside, shapely.contains_xy(largest, *places.T))


def test_gds_areas_are_those_of_the_table_and_holes_are_empty(tmp_path: Path) -> None:
    library = reopen("gds", find_export("gds").encode(flakes()), tmp_path)
    assert (library.unit, library.precision) == pytest.approx((1e-6, 1e-9))
    (cell,) = library.cells
    polygons = {(polygon.layer, polygon.datatype): polygon for polygon in cell.polygons}
    assert set(polygons) == {(0, 0), (1, 0), (2, 1), (255, 2)}
    areas = flakes().frame.set_index("region_id")["area_um2"]
    for place, region in (((1, 0), 1), ((2, 1), 3), ((255, 2), 7)):
        assert polygons[place].area() == pytest.approx(areas[region], rel=1e-6)
        assert polygons[place].get_gds_property(1).rstrip("\0") == str(region)
    assert polygons[2, 1].get_gds_property(2).rstrip("\0") == "1L|2L"
    # Rows and columns of pixel centres: two in holes, two in the crystal, one outside.
    places = np.array([(10, 10), (15, 25), (5, 6), (24, 35), (26, 35)])
    um = [((col + 0.5) * 0.1, (60 - row - 0.5) * 0.2) for row, col in places]
    assert gdstk.inside(um, polygons[2, 1]) == (False, False, True, True, False)
    low, high = polygons[1, 0].bounding_box()
    assert (*low, *high) == pytest.approx((7.0, 0.0, 9.0, 4.0)), "y runs up, the picture's lower edge is 0"
    assert polygons[0, 0].bounding_box() == ((0, 0), (9.0, 12.0))
    (label,) = cell.labels
    assert label.text == f"flatscope 9.8.7, a.jpg, sha256 {SHA}"


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_traced_regions_with_many_holes_keep_their_area_and_their_pixels(tmp_path: Path) -> None:
    """Of a sponge with more corners than a GDSII polygon holds."""
    noise = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(700, 900)), 3)
    labels = ndimage.label(noise > 0)[0]
    labels = labels.astype(np.int32)
    sizes = np.bincount(labels.ravel())[1:]
    ids = np.flatnonzero(sizes > 40) + 1
    outlines = trace_outlines(labels, ids)
    assert max(len(outline.interiors) for outline in outlines.values()) > 50
    frame = rows(
        FLAKE_COLUMNS, len(ids), region_id=ids, layers="1", status="accepted", area_px=sizes[ids - 1]
    )
    marks = Marks.outlines(outlines, labels.shape)
    table = replace(flakes(), frame=frame, marks=marks, labels=labels)
    (cell,) = reopen("gds", find_export("gds").encode(table), tmp_path).cells
    areas = dict.fromkeys(ids.tolist(), 0.0)
    parts = [polygon for polygon in cell.polygons if polygon.layer]
    for polygon in parts:
        areas[int(polygon.get_gds_property(1).rstrip("\0"))] += polygon.area()
    assert len(parts) > len(ids), "a large one is cut"
    expected = [PIXEL_UM2 * outlines[region].area for region in ids]
    assert list(areas.values()) == pytest.approx(expected, rel=1e-3)
    coco = reopen("coco", find_export("coco").encode(table), tmp_path)
    for annotation in coco.loadAnns(coco.getAnnIds()):
        mask = coco.annToMask(annotation).astype(bool)
        np.testing.assert_array_equal(mask, labels == annotation["attributes"]["row_id"])


def test_gds_names_are_ascii_and_short(tmp_path: Path) -> None:
    (cell,) = reopen("gds", find_export("gds").encode(flakes(LONG)), tmp_path).cells
    assert len(cell.name) == 32 and cell.name.isascii()
    (label,) = cell.labels
    assert label.text.isascii() and len(label.text) <= 512 and label.text.endswith(SHA)


def test_angles_are_texts_in_a_layout(tmp_path: Path) -> None:
    (cell,) = reopen("gds", find_export("gds").encode(twist()), tmp_path).cells
    texts = {label.text: (label.origin, label.layer, label.texttype) for label in cell.labels if label.layer}
    assert set(texts) == {"22.0 deg", "no angle"}
    origin, *place = texts["22.0 deg"]
    assert origin == pytest.approx((30.5 * 0.1, 49.5 * 0.2)) and place == [2, 0]
    space = reopen("dxf", find_export("dxf").encode(twist()), tmp_path).modelspace()
    assert [text.dxf.text for text in space.query("TEXT")] == ["22.0°", "no angle"]
    assert tuple(space.query("POINT")[0].dxf.location) == pytest.approx((3.05, 9.9, 0))


def test_dxf_outlines_lie_on_the_picture(tmp_path: Path) -> None:
    drawing = reopen("dxf", find_export("dxf").encode(flakes("Übersicht µ.jpg")), tmp_path)
    assert not drawing.audit().errors
    assert drawing.header["$INSUNITS"] == 13
    space = drawing.modelspace()
    (image,) = space.query("IMAGE")
    assert image.image_def.dxf.filename == "Übersicht µ.jpg"
    assert tuple(image.dxf.insert)[:2] == (0, 0)
    size = image.dxf.image_size
    assert (size.x, size.y) == (90, 60)
    assert (image.dxf.u_pixel.magnitude * size.x, image.dxf.v_pixel.magnitude * size.y) == pytest.approx(
        (9.0, 12.0)
    )
    areas = flakes().frame.set_index("region_id")["area_um2"]
    outlines = {line.dxf.layer: line for line in space.query("LWPOLYLINE")}
    assert set(outlines) == {"1L", "2L", "rejected"}
    for layer, region in (("1L", 1), ("2L", 3), ("rejected", 7)):
        line = outlines[layer]
        assert line.closed
        assert shapely.Polygon(line.get_points("xy")).area == pytest.approx(areas[region], rel=1e-9)
        assert [tag.value for tag in line.get_xdata("FLATSCOPE")][1] == region
    assert shapely.Polygon(outlines["1L"].get_points("xy")).bounds == pytest.approx((7.0, 0.0, 9.0, 4.0))
    assert tuple(drawing.layers.get("1L").rgb) == LAYER_COLOURS["1"]
    properties = dict(drawing.header.custom_vars.properties)
    assert properties == {"flatscope": "9.8.7", "picture": "Übersicht µ.jpg", "sha256": SHA}


def test_a_layer_of_a_drawing_is_named_by_its_number() -> None:
    from flatscope.results.exports.layout import lay_out

    pieces = lay_out(flakes(), "DXF").pieces
    assert [name_layer(piece) for piece in pieces] == ["1L", "2L", "rejected"]
    assert [name_layer(replace(pieces[0], layer=254)), name_layer(replace(pieces[0], layer=6))] == [
        "thick",
        "6L",
    ]


# ---------------------------------------------------------------- atoms


@pytest.mark.parametrize("name", ["xyz", "cif"])
@pytest.mark.parametrize("image", ["c.tif", LONG])
def test_atoms_come_back_where_they_were(name: str, image: str, tmp_path: Path) -> None:
    table = columns(image)
    content = find_export(name).encode(table)
    atoms = reopen(name, content, tmp_path)
    assert atoms.get_chemical_symbols() == ["W", "Se", "Se"]
    expected = 10.0 * table.model.positions_nm
    # A crystal's cell has no place below zero: the sheet is lifted.
    lift = (0, 0, 0) if name == "xyz" else (0, 0, 11.7)
    np.testing.assert_allclose(atoms.positions, expected + lift, atol=1e-3)
    np.testing.assert_allclose(atoms.cell.lengths(), (30.0, 40.0, 23.4), atol=1e-3)
    if name == "xyz":
        assert atoms.info["comment"] == f"flatscope 9.8.7, {image}, sha256 {SHA}"
    else:
        assert content.isascii() and SHA in content.decode().splitlines()[0]
        assert max(map(len, content.decode().splitlines())) <= 2048
