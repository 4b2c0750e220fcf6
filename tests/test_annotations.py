"""Label images and outlines survive the way through a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import shapely
import tifffile
from PIL import Image

from flatscope.files.annotations import read_labels, read_outlines, write_labels
from flatscope.micrograph import Calibration, MicrographError
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Marks, Provenance, column_names
from flatscope.results.exports.geojson import Outline, collect_outlines, encode_outlines

# A ring: a square of 10 px with a hole of 2 px, its corners on pixel centres.
RING = shapely.Polygon([(3, 4), (13, 4), (13, 14), (3, 14)], holes=[[(7, 8), (7, 10), (9, 10), (9, 8)]])


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("suffix", "largest", "stored"),
    [
        (".png", 255, np.uint8),
        (".png", 256, np.uint16),
        (".png", 65535, np.uint16),
        (".tif", 255, np.uint8),
        (".tif", 65535, np.uint16),
        (".tif", 2**31 - 1, np.int32),
    ],
)
def test_labels_come_back_and_take_no_more_room_than_needed(
    tmp_path: Path, suffix: str, largest: int, stored: type
) -> None:
    labels = np.random.default_rng(0).integers(0, largest, (31, 47), dtype=np.int64, endpoint=True)
    labels[5, 6] = largest
    path = write_labels(tmp_path / f"labels{suffix}", labels)
    np.testing.assert_array_equal(read_labels(path), labels)
    with_other = np.asarray(Image.open(path)) if suffix == ".png" else tifffile.imread(path)
    assert with_other.dtype == stored
    np.testing.assert_array_equal(with_other, labels)


def test_palette_indices_and_equal_channels_are_labels(tmp_path: Path) -> None:
    labels = np.arange(24, dtype=np.uint8).reshape(4, 6) % 5
    palette = Image.fromarray(labels).convert("P")
    palette.putpalette([200, 10, 10] * 256)  # every index in one colour: only the index tells them apart
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "palette.png"), labels)
    Image.fromarray(np.repeat(labels[..., None], 3, axis=2)).save(tmp_path / "gray.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "gray.png"), labels)
    Image.fromarray(labels).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_labels(tmp_path / "lzw.tif"), labels)


def test_what_is_no_label_image_is_refused(tmp_path: Path) -> None:
    colours = np.zeros((20, 20, 3), np.uint8)
    colours[0, 0] = (1, 2, 3)
    Image.fromarray(colours).save(tmp_path / "colours.png")
    with pytest.raises(
        MicrographError, match=r"labels of shape \(20, 20, 3\) are colours: use one number a pixel"
    ):
        read_labels(tmp_path / "colours.png")
    tifffile.imwrite(tmp_path / "half.tif", np.full((20, 20), 0.5, np.float32))
    with pytest.raises(MicrographError, match="must be whole numbers, not fractions"):
        read_labels(tmp_path / "half.tif")
    tifffile.imwrite(tmp_path / "below.tif", np.full((20, 20), -1, np.int16))
    with pytest.raises(MicrographError, match="labels from -1 to -1 do not fit: use 0 to 2147483647"):
        read_labels(tmp_path / "below.tif")
    (tmp_path / "words.png").write_text("words")
    with pytest.raises(MicrographError, match="is no label image: use a gray png or tif"):
        read_labels(tmp_path / "words.png")
    with pytest.raises(MicrographError, match="no such label image: check the path"):
        read_labels(tmp_path / "nowhere.png")


def test_labels_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a png holds labels up to 65535, not 70000: write a \.tif"):
        write_labels(tmp_path / "a.png", np.full((4, 4), 70000))
    with pytest.raises(ValueError, match="labels from -3 to 0 do not fit"):
        write_labels(tmp_path / "a.tif", np.full((4, 4), -3))
    with pytest.raises(ValueError, match=r"cannot be written as '\.jpg': use \.png"):
        write_labels(tmp_path / "a.jpg", np.zeros((4, 4), int))
    with pytest.raises(ValueError, match="integers, not"):
        write_labels(tmp_path / "a.png", np.zeros((4, 4)))
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- outlines


def write_outlines(path: Path, outlines: list[Outline]) -> Path:
    path.write_bytes(encode_outlines(outlines))
    return path


@pytest.mark.parametrize(
    "calibration",
    [
        None,
        Calibration((384.0, 384.0), "user", 0.02),
        Calibration((150.0, 75.0), "file", 0.01),
        Calibration((0.0155, 0.0155), "lattice", 0.001),
    ],
)
def test_outlines_come_back_where_they_were(tmp_path: Path, calibration: Calibration | None) -> None:
    path = write_outlines(tmp_path / "a.geojson", [Outline(RING, {"region_id": 7}, calibration)])
    (back,) = read_outlines(path)
    assert shapely.equals_exact(back.polygon, RING, tolerance=2e-4)
    assert back.properties == {"region_id": 7}
    if calibration is None:
        assert back.calibration is None
    else:
        assert back.calibration is not None
        assert back.calibration.pixel_size_nm == pytest.approx(calibration.pixel_size_nm)
        assert (back.calibration.source, back.calibration.rel_sigma) == (
            calibration.source,
            calibration.rel_sigma,
        )


def test_files_count_from_the_corner_of_the_first_pixel(tmp_path: Path) -> None:
    """The centre of the first pixel is (0, 0) here and half a pixel from the corner in the file, in px as in µm."""
    dot = shapely.Polygon([(0, 0), (9, 0), (9, 19)])
    calibration = Calibration((200.0, 100.0), "user")
    path = write_outlines(tmp_path / "a.geojson", [Outline(dot), Outline(dot, {}, calibration)])
    pixels, microns = json.loads(path.read_text())["features"]
    assert pixels["unit"] == "px"
    assert pixels["geometry"]["coordinates"][0][:3] == [[0.5, 0.5], [9.5, 0.5], [9.5, 19.5]]
    assert (microns["unit"], microns["pixel_size_um"]) == ("um", [0.1, 0.2])
    np.testing.assert_allclose(
        microns["geometry"]["coordinates"][0][:3], [[0.05, 0.1], [0.95, 0.1], [0.95, 3.9]]
    )


def test_area_in_the_file_is_the_area_in_um2(tmp_path: Path) -> None:
    calibration = Calibration((384.0, 384.0), "user")
    path = write_outlines(tmp_path / "a.geojson", [Outline(RING, {}, calibration)])
    geometry = shapely.geometry.shape(json.loads(path.read_text())["features"][0]["geometry"])
    assert geometry.area == pytest.approx(RING.area * calibration.pixel_area_um2, rel=1e-4)


def test_values_json_does_not_know_become_null_or_plain(tmp_path: Path) -> None:
    properties = {
        "area_um2": float("nan"),
        "sigma": np.float64("inf"),
        "layers": "1|2",
        "touches_edge": np.bool_(True),
        "region_id": np.int64(3),
        "p_1": np.float32(0.5),
        "gone": pd.NA,
    }
    path = write_outlines(tmp_path / "a.geojson", [Outline(RING, properties)])
    (back,) = read_outlines(path)
    assert back.properties == {
        "area_um2": None,
        "sigma": None,
        "layers": "1|2",
        "touches_edge": True,
        "region_id": 3,
        "p_1": 0.5,
        "gone": None,
    }


def test_a_flake_table_gives_its_outlines_in_its_order() -> None:
    frame = pd.DataFrame([dict.fromkeys(column_names(FLAKE_COLUMNS), 0.0) for _ in range(3)])
    frame = frame.assign(region_id=[5, 2, 9], layers="1", status="accepted")
    other = shapely.Polygon([(0, 0), (5, 0), (5, 5)])
    calibration = Calibration((100.0, 100.0), "user")
    table = FlakeTable(
        frame,
        Marks.outlines({2: other, 5: RING}, (20, 20)),  # region 9 has no outline
        calibration,
        Provenance("a.jpg", "", {}),
        np.zeros((20, 20), np.int32),
    )
    first, second = collect_outlines(table)
    assert (first.properties["region_id"], second.properties["region_id"]) == (5, 2)
    assert first.polygon is RING
    assert second.polygon is other
    assert first.calibration == calibration


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[1, 2]", "is no GeoJSON FeatureCollection"),
        ('{"type": "FeatureCollection", "features": [{"type": "Feature"}]}', "feature 0 is no outline"),
        (
            '{"type": "FeatureCollection", "features": [{"unit": "um", "geometry": {}}]}',
            "feature 0 is no outline .*no pixel_size_um",
        ),
        (
            '{"type": "FeatureCollection", "features": [{"unit": "mile", "geometry": {}}]}',
            "its unit is 'mile', not px or um",
        ),
    ],
)
def test_damaged_outlines_are_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.geojson").write_text(content)
    with pytest.raises(MicrographError, match=message):
        read_outlines(tmp_path / "a.geojson")


@pytest.mark.real
def test_real_masks_are_label_images(real_data: Path) -> None:
    masks = sorted((real_data / "optical").glob("*/*.mask.png"))
    counts = [len(np.unique(read_labels(path))) - 1 for path in masks]
    assert len(counts) >= 8
    # By the README of the data one WSe2 mask is empty; the others hold flakes, a few to some tens each.
    assert counts.count(0) == 1
    assert max(counts) < 200
