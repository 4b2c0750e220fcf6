"""Claims about overlay, thumbnails and page."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from shapely.geometry import Polygon, box
from skimage.color import deltaE_ciede2000, rgb2lab

from flatscope.micrograph import Calibration, Micrograph
from flatscope.report.figures import (
    choose_bar_um,
    draw_overlay,
    draw_thumbnails,
    encode_jpeg,
    encode_png,
    name_layers,
    to_display,
)
from flatscope.report.page import PictureEntry, RunRecord, build_page
from flatscope.results import FLAKE_COLUMNS, LAYER_COLOURS, FlakeTable, Marks, Provenance, column_names

RECORD = RunRecord("Flakes", {"material": "graphene"}, {"flatscope": "0"})
SUBSTRATE = (140, 110, 150)


def make_table(
    regions: list[tuple[str, str, tuple[int, int, int, int]]],
    *,
    shape: tuple[int, int] = (300, 400),
    um_per_px: float | None = 0.2,
) -> FlakeTable:
    """A table of rectangles: (layers, status, (row, col, rows, cols))."""
    labels = np.zeros(shape, np.int32)
    outlines: dict[int, Polygon] = {}
    rows = []
    for region, (layers, status, (row, col, height, width)) in enumerate(regions, start=1):
        labels[row : row + height, col : col + width] = region
        outlines[region] = box(col - 0.5, row - 0.5, col + width - 0.5, row + height - 0.5)
        values = dict.fromkeys(column_names(FLAKE_COLUMNS), 0.25)
        if layers:
            values[f"p_{layers.split('|')[0]}"] = 0.9
        rows.append(
            {
                **values,
                "image": "a.jpg",
                "flake_id": region,
                "region_id": region,
                "layers": layers,
                "layers_p": 0.9,
                "status": status,
                "reason": "dust or a hole" if status == "rejected" else "",
                "area_px": height * width,
                "area_um2": height * width * (um_per_px or np.nan) ** 2,
                "row_px": row + (height - 1) / 2,
                "col_px": col + (width - 1) / 2,
                "touches_edge": False,
            }
        )
    frame = pd.DataFrame(rows, columns=list(column_names(FLAKE_COLUMNS)))
    calibration = None if um_per_px is None else Calibration((um_per_px * 1e3,) * 2, "user")
    return FlakeTable(
        frame, Marks.outlines(outlines, labels.shape), calibration, Provenance("a.jpg", "", {}), labels
    )


def make_picture(shape: tuple[int, int] = (300, 400)) -> Micrograph:
    return Micrograph(np.full((*shape, 3), SUBSTRATE, np.uint8), source="a.jpg")


def differs(image: Image.Image) -> NDArray[np.bool_]:
    return np.abs(np.asarray(image).astype(int) - SUBSTRATE).max(-1) > 0


def test_regions_take_their_layers_colour_and_the_substrate_stays_as_it_was() -> None:
    table = make_table(
        [("1", "accepted", (120, 100, 60, 60)), ("", "rejected", (120, 260, 60, 60))], um_per_px=None
    )
    overlay = draw_overlay(to_display(make_picture()), table)
    pixels = np.asarray(overlay).astype(float)
    # Away from the label in the middle of the region.
    expected = 0.7 * np.array(SUBSTRATE) + 0.3 * np.array(LAYER_COLOURS["1"])
    assert np.abs(pixels[128, 108] - expected).max() <= 1
    assert tuple(pixels[150, 290]) == SUBSTRATE, "a rejected region is outlined, not filled"
    touched = differs(overlay)
    touched[115:186, 95:166] = touched[115:186, 255:326] = False
    touched[:100, :150] = touched[:100, -150:] = touched[-100:, :150] = (
        False  # the legend is in one of these corners
    )
    assert not touched.any(), "nothing is drawn where there is nothing"


@pytest.mark.parametrize("um_per_px", [0.05, 0.2, 0.384, 1.3])
def test_scale_bar_is_as_long_as_it_says(um_per_px: float) -> None:
    table = make_table([], um_per_px=um_per_px)
    pixels = np.asarray(draw_overlay(to_display(make_picture()), table))
    white = (pixels[200:] == 255).all(-1)
    longest = max(len(run) for row in white for run in "".join("x" if on else " " for on in row).split())
    assert longest == pytest.approx(choose_bar_um(400 * um_per_px) / um_per_px, abs=0.5)


@pytest.mark.parametrize("width_um", [0.3, 1.0, 7.7, 100.0, 768.0, 2500.0])
def test_scale_bar_is_a_round_number_that_fits(width_um: float) -> None:
    bar = choose_bar_um(width_um)
    assert width_um / 12.6 < bar <= width_um / 5 * 1.001
    assert f"{bar:.0e}"[0] in "125"


def test_there_is_no_scale_bar_without_a_pixel_size() -> None:
    assert not differs(draw_overlay(to_display(make_picture()), make_table([], um_per_px=None))).any()


def test_legend_gives_way_to_crystals() -> None:
    table = make_table([("2", "accepted", (0, 0, 150, 150))], um_per_px=None)
    pixels = np.asarray(draw_overlay(to_display(make_picture()), table)).astype(int)
    assert np.abs(pixels[4:40, 4:40] - pixels[20, 20]).max() == 0, "the crystal's corner is free"
    assert (pixels[:100, 200:] == 25).all(-1).any(), "the legend is in the other corner"


def test_small_overlay_shows_the_same_places() -> None:
    table = make_table([("3", "accepted", (200, 300, 60, 80))], um_per_px=None)
    small = draw_overlay(to_display(make_picture()), table, longest_px=200)
    assert small.size == (200, 150)
    rows, cols = np.nonzero(differs(small)[75:, 100:])
    assert rows.min() + 75 == pytest.approx(100, abs=2)
    assert rows.max() + 75 == pytest.approx(129, abs=2)
    assert cols.min() + 100 == pytest.approx(150, abs=3)
    assert cols.max() + 100 == pytest.approx(189, abs=2)


# Machado, Oliveira, Fernandes 2009, 10.1109/TVCG.2009.113, severity 1: what a colour looks like without one
# kind of cone.
DEFICIENT = {
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("kind", DEFICIENT)
def test_layer_colours_stay_apart_for_colour_blind_eyes(kind: str) -> None:
    srgb = np.array(list(LAYER_COLOURS.values())) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEFICIENT[kind]).T, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    apart = deltaE_ciede2000(lab[:, None], lab[None]) + 1000 * np.eye(len(lab))
    assert apart.min() > 10, "every pair of classes can be told apart side by side"
    assert apart[:3, :3].min() > 20, "and mono-, bi- and trilayers at a glance"


def test_dark_deep_picture_is_brightened_and_says_so() -> None:
    rng = np.random.default_rng(0)
    dark = Micrograph(rng.integers(900, 1100, (64, 64, 3)).astype(np.uint16), full_scale=65535.0)
    shown = to_display(dark)
    assert shown.gain > 10
    assert 190 < np.median(shown.pixels) < 230
    assert to_display(make_picture()).gain == 1
    assert (to_display(make_picture()).pixels == SUBSTRATE).all()
    black = to_display(Micrograph(np.zeros((20, 20, 3), np.uint8)))
    assert black.gain == 1
    assert black.pixels.max() == 0


@pytest.mark.parametrize("place", [(120, 150, 30, 20), (0, 0, 40, 12), (260, 380, 40, 20), (0, 0, 300, 400)])
def test_thumbnail_holds_the_whole_flake(place: tuple[int, int, int, int]) -> None:
    row, col, height, width = place
    pixels = make_picture().pixels.copy()
    pixels[row : row + height, col : col + width] = (0, 255, 0)
    table = make_table([("1", "accepted", place)])
    (thumbnail,) = draw_thumbnails(to_display(Micrograph(pixels)), table, side_px=200).values()
    assert thumbnail.size == (200, 200)
    green = (np.asarray(thumbnail).astype(int) * (-1, 1, -1)).sum(-1) > 150
    outline = np.abs(np.asarray(thumbnail).astype(int) - LAYER_COLOURS["1"]).max(-1) < 40
    side = min(max(height, width) * 1.7 + 24, 400)
    shown = (green | outline).sum() / 200**2 * side**2
    assert shown == pytest.approx(height * width, rel=0.25)


def test_thick_and_rejected_regions_get_no_thumbnail() -> None:
    table = make_table([("thick", "accepted", (10, 10, 50, 50)), ("", "rejected", (100, 100, 50, 50))])
    assert draw_thumbnails(to_display(make_picture()), table) == {}


def test_layer_image_survives_its_file() -> None:
    table = make_table(
        [
            ("1", "accepted", (10, 10, 9, 9)),
            ("thick", "accepted", (50, 10, 9, 9)),
            ("", "rejected", (90, 10, 9, 9)),
        ]
    )
    with Image.open(io.BytesIO(encode_png(table.layer_image()))) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), table.layer_image())
        assert set(np.unique(np.asarray(image))) == {0, 1, 254, 255}


def test_names_of_layers() -> None:
    assert [name_layers(layers) for layers in ("1", "1|2", "6|thick", "thick", "")] == [
        "1L", "1L or 2L", "6L or thick", "thick", "–",
    ]  # fmt: skip


def page_of(
    table: FlakeTable, *, image: str = "a.jpg", failure: str = "", notes: tuple[str, ...] = ()
) -> str:
    display = to_display(make_picture())
    frame = table.frame.assign(image=image)
    jpeg = encode_jpeg(Image.fromarray(display.pixels))
    thumbnails = {region: encode_jpeg(picture) for region, picture in draw_thumbnails(display, table).items()}
    entry = PictureEntry(
        image, frame, jpeg, jpeg, thumbnails, failure, notes, calibrated=table.calibration is not None
    )
    return build_page([entry], frame, RECORD)


def test_page_needs_no_other_file_and_no_network() -> None:
    page = page_of(make_table([("1", "accepted", (10, 10, 50, 50)), ("1|2", "uncertain", (80, 10, 50, 50))]))
    links = re.findall(r"""(?:src|href|action|data|poster)\s*=\s*['"]([^'"]*)""", page)
    assert len(links) > 6
    assert {link.split(",")[0] for link in links if not link.startswith("#")} == {"data:image/jpeg;base64"}
    words = re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|<iframe", words)
    anchors = {link[1:] for link in links if link.startswith("#")}
    assert anchors <= set(re.findall(r"id='([^']+)'", page)), "every link on the page has its target"


def test_page_escapes_what_comes_from_outside() -> None:
    nasty = """<script>alert("x")</script>'&.jpg"""
    page = page_of(make_table([("1", "accepted", (10, 10, 50, 50))]), image=nasty, notes=("<b>note</b>",))
    assert "<script>alert" not in page
    assert "<b>note" not in page
    assert page.count("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&#x27;&amp;.jpg") >= 3


def test_page_counts_and_gives_reasons() -> None:
    table = make_table(
        [
            ("1", "accepted", (10, 10, 50, 50)),
            ("2|3", "uncertain", (80, 10, 50, 50)),
            ("", "rejected", (150, 10, 9, 9)),
        ]
    )
    page = page_of(table)
    for words in (
        "<b>2</b>regions found",
        "<b>1</b>monolayers",
        "<b>0</b>bilayers",
        "<b>1</b>uncertain",
        "<b>100 µm²</b>largest monolayer",
        "<td>dust or a hole</td><td class='n'>1</td>",
        "2L or 3L",
        "90 %",
    ):
        assert words in page, words
    assert (
        "µm²"
        not in page_of(make_table([("1", "accepted", (10, 10, 50, 50))], um_per_px=None)).split("id='words'")[
            0
        ]
    )


def test_page_names_failed_and_empty_pictures() -> None:
    empty = make_table([])
    assert "a.jpg was not analysed: is damaged" in page_of(empty, failure="is damaged")
    assert "a.jpg: no flake found: every pixel is alike" in page_of(empty, notes=("every pixel is alike",))


def test_page_for_a_hundred_noisy_pictures_stays_small() -> None:
    rng = np.random.default_rng(1)
    noise = rng.normal(SUBSTRATE, 6.0, (1200, 1920, 3)).clip(0, 255).astype(np.uint8)
    shape = (1200, 1920)
    table = make_table([("1", "accepted", (20 + 100 * n, 50, 60, 60)) for n in range(8)], shape=shape)
    display = to_display(Micrograph(noise))
    small = draw_overlay(display, table, longest_px=640)
    parts = [encode_jpeg(small), encode_jpeg(small)]
    parts += [encode_jpeg(picture) for picture in draw_thumbnails(display, table, most=8).values()]
    assert 100 * sum(map(len, parts)) * 4 / 3 < 30e6


def test_an_uncertain_region_is_drawn_as_its_likeliest_number() -> None:
    table = make_table([("1|2", "uncertain", (10, 10, 9, 9))])
    table = replace(table, frame=table.frame.assign(p_1=0.3, p_2=0.6))
    assert table.layer_image()[12, 12] == 2
