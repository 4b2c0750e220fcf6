"""What comes in from outside is checked before anything is made of it: one test a kind of damage or malice."""

from __future__ import annotations

import io
import itertools
import json
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
from PIL import Image

from flatscope.files.annotations import read_labels, read_outlines
from flatscope.files.border import MAX_MPX_VARIABLE, check_claim
from flatscope.files.label_formats import BrushRuns, find_shapes
from flatscope.files.layer_labels import find_layer_labels
from flatscope.files.movie import read_movie
from flatscope.files.read import read, read_stack
from flatscope.inference import card as cards
from flatscope.inference import registry
from flatscope.inference.card import Card, WeightsError
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical.observations import KnownRegion
from flatscope.results.table import frame_to_csv
from flatscope.runs.settings import SettingsError, read_settings
from flatscope.words import WordsError, parse_json

RNG = np.random.default_rng(5)
FRAMES = RNG.integers(0, 200, (5, 40, 50), np.uint8)
PEAK_MB = 300  # beyond what the tests themselves take; the claims below are of 100 MB to 100 GB


def _claim_mrc(header: dict[int, int], cut: int | None = None) -> bytes:
    data = bytearray(1024 + FRAMES.nbytes)
    struct.pack_into("<4i", data, 0, 50, 40, 5, 0)
    struct.pack_into("<3i", data, 28, 50, 40, 5)
    data[208:212], data[212:216] = b"MAP ", bytes((0x44, 0x44, 0, 0))
    data[1024:] = FRAMES.tobytes()
    for place, value in header.items():
        struct.pack_into("<i", data, place, value)
    return bytes(data[:cut])


def _tiff(pages: Any, *, cut: float = 1.0, **how: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pages, **how)
    whole = stream.getvalue()
    return whole[: int(cut * len(whole))]


def _pages(*, cut: float = 1.0) -> bytes:
    """Pages each with an entry of its own, as a microscope writes them one after the other."""
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for frame in FRAMES:
            writer.write(frame, metadata=None, contiguous=False)
    return stream.getvalue()[: int(cut * len(stream.getvalue()))]


def _retag(data: bytes, code: int, value: int) -> bytes:
    """A little-endian TIFF with another value of a tag of its first page."""
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages.first.tags[code]
        place, kind = tag.offset + 8, {3: "<H", 4: "<I"}[int(tag.dtype)]
    changed = bytearray(data)
    struct.pack_into(kind, changed, place, value)
    return bytes(changed)


def _tiny_tiles() -> bytes:
    data = _tiff(np.zeros((64, 64), np.uint8), tile=(16, 16), compression="zlib", metadata=None)
    for code, value in ((256, 12000), (257, 12000), (322, 1), (323, 1)):
        data = _retag(data, code, value)
    return data


def _header_npy(text: str) -> bytes:
    header = text.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(4000)


def _gif() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(FRAMES[0]).save(stream, "GIF")
    data = bytearray(stream.getvalue())
    struct.pack_into("<HH", data, 6, 12000, 12000)
    at = bytes(data).index(b"\x2c")
    struct.pack_into("<HH", data, at + 5, 12000, 12000)
    return bytes(data)


def _jpg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((2000, 2000), 90, np.uint8)).save(stream, "JPEG")
    data = bytearray(stream.getvalue())
    at = bytes(data).index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, 9000, 9000)
    return bytes(data)


DAMAGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut.mrc": (lambda: _claim_mrc({}, cut=5000), r"truncated \(3976 of at least 10000 bytes\)"),
    "mode.mrc": (lambda: _claim_mrc({12: 99}), "is damaged or truncated"),
    "claims.mrc": (
        lambda: _claim_mrc({0: 20000, 4: 20000, 8: 1}),
        "11024 bytes hold no picture of the 20000x20000 px claimed",
    ),
    "negative.mrc": (lambda: _claim_mrc({0: -50}), "damaged"),
    "extended.mrc": (lambda: _claim_mrc({92: 2_000_000_000}), r"truncated \(0 of at least 10000 bytes\)"),
    "short.mrc": (lambda: b"\x32\0\0\0", "damaged"),
    "cut_stack.tif": (lambda: _tiff(FRAMES, cut=0.6), "is damaged or truncated"),
    "one_of_five.tif": (lambda: _pages(cut=0.18), "is damaged or truncated"),
    "samples.tif": (lambda: _retag(_tiff(FRAMES[0]), 277, 65535), "claims 65535 values a pixel"),
    "tiles.tif": (_tiny_tiles, "is made of tiles of 1x1 px: save it without tiles"),
    "wide.tif": (lambda: _retag(_tiff(FRAMES[0], compression="zlib"), 256, 2_000_000), "damaged"),
    "high.tif": (lambda: _retag(_tiff(FRAMES[0]), 257, 40_000), r"of at least \d+ bytes"),
    "bool.npy": (
        lambda: _header_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (True, 40, 50)}"),
        "damaged",
    ),
    "deep.npy": (lambda: _header_npy("(" * 100), "is damaged or truncated"),
    "huge.npy": (
        lambda: _header_npy("{'descr': '|u1', 'fortran_order': False, 'shape': (9, 90000, 90000)}"),
        "damaged",
    ),
    "claims.gif": (_gif, "hold no picture of the 12000x12000 px claimed"),
    "playlist.mp4": (lambda: b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", "is no video that can be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_stacks_give_one_line_and_take_no_memory(tmp_path: Path, name: str) -> None:
    make, message = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(MicrographError, match=message) as caught:
        next(frame for frame in _frames_or_error(path))
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "\n" not in text
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < PEAK_MB
    if path.suffix in (".tif", ".mrc", ".npy"):
        with pytest.raises(MicrographError, match=r"damaged|claims|tiles|no stack"):
            read_stack(path)


def _frames_or_error(path: Path) -> Any:
    for frame in read_movie(path):
        if isinstance(frame, MicrographError):
            raise MicrographError(f"{path}: {frame}")
        yield frame


def test_a_flat_jpg_that_claims_more_than_a_camera_writes_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(_jpg())
    with pytest.raises(MicrographError, match="hold no picture of the 9000x9000 px claimed"):
        read(tmp_path / "a.jpg")


def test_labels_of_one_value_are_read_and_those_of_a_bomb_are_not(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((3000, 4000), np.uint8)).save(path)
    assert read_labels(path).shape == (3000, 4000)
    (tmp_path / "a.gif").write_bytes(_gif())
    with pytest.raises(MicrographError, match="hold no picture of the 12000x12000 px claimed"):
        read_labels(tmp_path / "a.gif")


def test_the_limit_on_megapixels_says_how_to_lift_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MicrographError, match=f"more than 100 Mpx: .* set {MAX_MPX_VARIABLE}=121 "):
        check_claim((11_000, 11_000), there=10**8)
    monkeypatch.setenv(MAX_MPX_VARIABLE, "121")
    check_claim((11_000, 11_000), there=10**8)
    monkeypatch.setenv(MAX_MPX_VARIABLE, "many")
    with pytest.raises(MicrographError, match="'many' is no number of megapixels"):
        check_claim((20, 20), there=400)


def test_an_ome_tiff_that_lost_its_pages_is_no_gray_picture(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    data = _tiff(FRAMES[:3], metadata={"axes": "CYX"}, photometric="minisblack", ome=True)
    path.write_bytes(data)
    assert read(path).pixels.shape == (40, 50, 3)
    for share in (0.5, 0.7, 0.9):
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(MicrographError, match="is damaged or truncated"):
            read(path)


def test_an_ome_tiff_opens_no_other_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.tif"
    secret.write_bytes(_tiff(np.full((40, 50), 77, np.uint8)))
    text = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0"><Pixels ID="Pixels:0" '
        'DimensionOrder="XYCZT" Type="uint8" SizeX="50" SizeY="40" SizeC="1" SizeZ="2" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData IFD="0" FirstZ="0"/><TiffData IFD="0" FirstZ="1"><UUID FileName="secret.tif">urn:uuid:0</UUID>'
        "</TiffData></Pixels></Image></OME>"
    )
    (tmp_path / "a.ome.tif").write_bytes(_tiff(FRAMES[0], description=text, metadata=None))
    for frames in (read_stack(tmp_path / "a.ome.tif").frames, list(read_movie(tmp_path / "a.ome.tif"))):
        assert not any((np.asarray(frame) == 77).all() for frame in frames)


def test_a_movie_cut_short_says_which_frames_are_missing(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(_pages(cut=0.75))
    frames = list(read_movie(tmp_path / "a.tif"))
    assert [isinstance(frame, MicrographError) for frame in frames] == [False] * 3 + [True] * (
        len(frames) - 3
    )
    assert "all that follow are missing" in str(frames[-1])


def test_a_video_whose_last_frames_cannot_be_decoded_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "µ"
        stream = container.add_stream("rawvideo", rate=5)
        stream.width, stream.height, stream.pix_fmt = 50, 40, "gray"
        for frame in FRAMES:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
    whole = path.read_bytes()
    assert sum(not isinstance(frame, MicrographError) for frame in read_movie(path)) == 5
    # A title in Latin-1, as cameras write it.
    path.write_bytes(whole.replace("µ".encode(), b"\xb5 "))
    assert read_movie(path).count == 5
    path.write_bytes(
        whole[
            : whole.index(FRAMES[2].tobytes()[:30]) if FRAMES[2].tobytes()[:30] in whole else len(whole) // 2
        ]
    )
    frames = list(read_movie(path))
    assert len(frames) < 6 and isinstance(frames[-1], MicrographError)
    assert "missing" in str(frames[-1]) or "damaged" in str(frames[-1])


def test_pipes_and_devices_are_refused(tmp_path: Path) -> None:
    for suffix in (".png", ".npy", ".tif", ".mp4", ".json"):
        pipe = tmp_path / f"pipe{suffix}"
        os.mkfifo(pipe)
        open_one: Callable[[Path], Any] = {".mp4": read_movie, ".json": read_outlines}.get(suffix, read)
        with pytest.raises(MicrographError, match="is a pipe or a device, not a file"):
            open_one(pipe)
    with pytest.raises(MicrographError, match="is a pipe or a device"):
        read_labels(tmp_path / "pipe.png")
    with pytest.raises(SettingsError, match="is a pipe or a device"):
        read_settings(tmp_path / "pipe.json")


# JSON


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nests deeper than 64"),
        ('{"a":' * 70 + "1" + "}" * 70, "nests deeper than 64"),
        ("[Infinity]", "Infinity is no number to work with"),
        ("[NaN]", "NaN is no number"),
        ("[-1e999]", "-1e999 is no number"),
        ("[1e308]", "1e308 is no number"),
        ("[" + "9" * 5000 + "]", "99999999999999999999... is no number"),
        ('["\\ud800"]', "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        ("[1", "is no JSON"),
    ],
)
def test_json_has_finite_numbers_and_a_bottom(text: str | bytes, message: str) -> None:
    with pytest.raises(WordsError, match=message) as caught:
        parse_json(text)
    assert len(str(caught.value)) < 200


def test_brackets_in_texts_are_no_nesting() -> None:
    assert parse_json(json.dumps({"a": "[" * 1000, "b": '\\"[{'})) == {"a": "[" * 1000, "b": '\\"[{'}
    assert parse_json("[1796094088110639539, 18446744073709551615]") == [1796094088110639539, 2**64 - 1]


def test_a_contrast_that_no_camera_measures_is_refused() -> None:
    for value in (-1.5, 1e12):
        with pytest.raises(ValueError, match="lies between -1 and 1000"):
            KnownRegion(1, (value, 0.0, 0.0))


def _coco(segmentation: Any, **image: Any) -> dict[str, Any]:
    mark = {"image_id": 1, "category_id": 1, "segmentation": segmentation}
    images = [{"id": 1, "file_name": "a.png", **image}]
    return {"images": images, "categories": [{"id": 1, "name": "1L"}], "annotations": [mark]}


@pytest.mark.parametrize(
    "labels",
    [
        [{"data": {"image": "a.png"}, "annotations": [{"result": [None]}]}],
        [{"data": None, "annotations": []}],
        _coco({"size": [10**9, 10**9], "counts": [10**18]}),
        _coco({"size": [40, 50], "counts": [10**12, 5]}),
        _coco({"size": [40, 50], "counts": "\u2603"}),
        _coco([["a"]]),
        _coco(None),
        _coco([[1, 2, 3, 4, 5, 6]], file_name=None),
        {"imagePath": 5, "shapes": [{"label": "1L", "points": [[0, 0]]}]},
        {"imagePath": "a.png", "shapes": {"label": "1L"}},
    ],
)
def test_damaged_labels_give_one_line(tmp_path: Path, labels: Any) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(labels))
    with pytest.raises(MicrographError) as caught:
        find_layer_labels([Path("a.png")], path)[Path("a.png")].draw((40, 50))
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_outlines_far_outside_are_clipped_at_once(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(_coco([[-1e14, -1e14, 1e14, -1e14, 1e14, 1e14, -1e14, 1e14]])))
    drawn = find_layer_labels([Path("a.png")], path)[Path("a.png")].draw((40, 50))
    assert (drawn == 1).all()


def _pack(bits: list[tuple[int, int]]) -> list[int]:
    text = "".join(f"{value:0{width}b}" for value, width in bits)
    text += "0" * (-len(text) % 8)
    return [int(text[at : at + 8], 2) for at in range(0, len(text), 8)]


def test_label_studios_rectangles_and_brushes_are_read(tmp_path: Path) -> None:
    """A brush by its published layout: total, width of a value, four widths of lengths, then runs."""
    mask = np.zeros((6, 8), bool)
    mask[2:4, 1:5] = True
    values = np.repeat(mask.ravel() * 255, 4)
    bits = [(values.size, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), values.size]
    for begin, end in itertools.pairwise(edges):
        bits += [(1, 1), (3, 2), (end - begin - 1, 16), (int(values[begin]), 8)]
    np.testing.assert_array_equal(BrushRuns((6, 8), tuple(_pack(bits))).decode(), mask)
    size = {"original_width": 8, "original_height": 6}
    rectangle = {"x": 12.5, "y": 100 / 3, "width": 50, "height": 100 / 3, "rectanglelabels": ["2L"]}
    marks = [
        {
            "type": "brushlabels",
            **size,
            "value": {"format": "rle", "rle": _pack(bits), "brushlabels": ["1L"]},
        },
        {"type": "rectanglelabels", **size, "value": rectangle},
        {"type": "choices", "value": {"choices": ["good"]}},
    ]
    for number, mark in enumerate(marks[:2], start=1):
        task = {"data": {"image": "/upload/1/ab-a.png"}, "annotations": [{"result": [mark, marks[2]]}]}
        path = tmp_path / "labels.json"
        path.write_text(json.dumps([task]))
        drawn = find_layer_labels([Path("a.png")], path)[Path("a.png")].draw((6, 8))
        np.testing.assert_array_equal(drawn, mask * np.uint8(number))


def test_a_turned_rectangle_turns_clockwise_about_its_first_corner() -> None:
    value = {"x": 50, "y": 50, "width": 25, "height": 10, "rotation": 90, "rectanglelabels": ["1L"]}
    mark = {"type": "rectanglelabels", "original_width": 200, "original_height": 100, "value": value}
    ((shape,),) = find_shapes([{"data": {"image": "a"}, "annotations": [{"result": [mark]}]}]).values()
    corners = shape.outlines[0] * (200, 100)
    np.testing.assert_allclose(corners, [[100, 50], [100, 100], [90, 100], [90, 50]])


# Weights and tables


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"[" * 40_000, b"{}"])
def test_weights_with_a_damaged_card_give_one_line(tmp_path: Path, damage: bytes) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(registry.resolve("flakes"))
    (entry,) = [entry for entry in model.metadata_props if entry.key == cards.KEY]
    marker = "#" * len(damage)
    entry.value = marker
    data = model.SerializeToString().replace(marker.encode(), damage)
    (tmp_path / "a.onnx").write_bytes(data)
    with pytest.raises(WeightsError, match="card") as caught:
        Network.load(tmp_path / "a.onnx")
    assert str(caught.value).startswith(f"{tmp_path / 'a.onnx'}: ") and "\n" not in str(caught.value)


def test_a_foreign_network_with_a_card_of_ours_gives_one_line(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["x"], ["y"])],
        "foreign",
        [value("x", onnx.TensorProto.FLOAT, [4])],
        [value("y", onnx.TensorProto.FLOAT, [4])],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=9)
    onnx.helper.set_model_props(model, {cards.KEY: Network.load("flakes").card.to_json()})
    onnx.save(model, tmp_path / "a.onnx")
    with pytest.raises(WeightsError, match="takes or gives no pictures: export it again"):
        Network.load(tmp_path / "a.onnx")


def test_a_card_with_an_infinite_scale_is_damaged() -> None:
    text = Network.load("flakes").card.to_json()
    with pytest.raises(WeightsError, match="damaged card: Infinity is no number"):
        Card.from_json(text.replace('"scale": ', '"scale": Infinity, "was": '))


def test_no_cell_of_a_csv_is_a_formula_or_two_lines() -> None:
    names = ["=1+1.png", "+a", "-b", "@c", "two\nlines", "plain", "µ.png"]
    text = frame_to_csv(
        pd.DataFrame({"image": names, "dx": [-0.5] * 7, "mixed": [-1.0, "x", None, 1, 2, 3, 4]})
    )
    assert text.splitlines()[1:] == [
        "'=1+1.png,-0.5,-1.0", "'+a,-0.5,x", "'-b,-0.5,", "'@c,-0.5,1", "two lines,-0.5,2", "plain,-0.5,3",
        "µ.png,-0.5,4",
    ]  # fmt: skip
