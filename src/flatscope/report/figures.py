"""Pictures of an answer: overlay, layer image and thumbnails, drawn with Pillow because that takes milliseconds."""

from __future__ import annotations

import base64
import importlib.util
import io
import itertools
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flatscope.micrograph import Calibration, Micrograph
from flatscope.results import LAYER_COLOURS, REJECTED_LABEL, THIN_LABEL, FlakeTable
from flatscope.units import nm_from_um, um_from_nm

Colour = tuple[int, int, int]

REJECTED_COLOUR: Colour = (225, 225, 225)
_DARK: Colour = (25, 25, 25)
_LIGHT: Colour = (255, 255, 255)

_WORDS = {"1": "1 layer", "thin": "thin, number not known", "thick": "thick"}
"""What the legend calls the layer numbers."""
_FILL = 0.30
"""Opacity of a region's colour: enough to see at a glance, little enough to see the crystal below."""
_MOST_LABELS = 60


@dataclass(frozen=True)
class Display:
    """A picture as a screen shows it.

    Parameters
    ----------
    pixels
        Shape (rows, cols, 3), uint8.
    gain
        What the brightness was multiplied by: 1, or more where the picture would look black.
    """

    pixels: NDArray[np.uint8]
    gain: float = 1.0


def to_display(micrograph: Micrograph) -> Display:
    """Bring a picture of any depth to 8-bit colour, brightened where hardly anything would be seen.

    Returns
    -------
    The picture and the gain; a gain above 1 belongs in the caption, since it changes what one sees.
    """
    pixels = micrograph.pixels
    sample = pixels[::8, ::8]
    bright = float(np.percentile(sample, 99.5)) / micrograph.full_scale
    gain = 1.0 if bright > 0.5 or bright <= 0 else min(0.85 / bright, 50.0)
    if gain == 1.0 and pixels.dtype == np.uint8 and micrograph.full_scale == 255.0:
        eight = pixels
    else:
        scaled = np.multiply(pixels, np.float32(255.0 * gain / micrograph.full_scale), dtype=np.float32)
        eight = np.clip(scaled + 0.5, 0, 255, out=scaled).astype(np.uint8)
    if eight.ndim == 2:
        eight = np.repeat(eight[..., None], 3, axis=2)
    return Display(np.ascontiguousarray(eight), gain)


def draw_overlay(display: Display, table: FlakeTable, *, longest_px: int | None = None) -> Image.Image:
    """Draw regions, layer numbers, legend and scale bar over a picture.

    Parameters
    ----------
    display
        The picture from `to_display`.
    table
        Its flakes.
    longest_px
        Draw at this length of the longer side; None keeps the picture's own size. Lines and letters keep their size on
        the page, so that a small overlay can be read too.

    Returns
    -------
    RGB image. Regions are filled in their layer's colour and outlined; where several layer numbers fit, the outline
    alternates between their colours; thick regions are gray; thin ones of unknown layer number have a dark outline in
    white light and no colour; rejected regions have a dotted outline and no colour.
    """
    rows, cols = display.pixels.shape[:2]
    scale = 1.0 if longest_px is None else min(1.0, longest_px / max(rows, cols))
    size = (max(1, round(cols * scale)), max(1, round(rows * scale)))
    layers = Image.fromarray(table.layer_image())
    base = Image.fromarray(display.pixels)
    if size != (cols, rows):
        base = base.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)
        layers = layers.resize(size, Image.Resampling.NEAREST)
    picture = Image.fromarray(_fill(np.array(base), np.asarray(layers)))
    draw = ImageDraw.Draw(picture)
    letter = min(max(13, round(min(size) / 45)), 40)
    line = max(2, round(min(size) / 500))
    records = table.frame.to_dict("records")
    outlines = dict(table.marks)
    for record in reversed(records):  # the best last, so that it lies on top
        outline = outlines.get(int(record["region_id"]))
        if outline is not None:
            for ring in _rings(outline, scale):
                _trace(draw, ring, record, width=line)
    _write_labels(draw, table, records, scale=scale, letter=max(11, round(0.8 * letter)))
    _draw_legend(draw, records, np.asarray(layers), letter=letter)
    if table.calibration is not None:
        _draw_scale_bar(draw, table.calibration, scale=scale, size=size, letter=letter)
    return picture


def draw_thumbnails(
    display: Display, table: FlakeTable, *, side_px: int = 176, most: int = 24
) -> dict[int, Image.Image]:
    """Crop the picture around the first thin regions of a table, each with its outline.

    Parameters
    ----------
    display, table
        The picture and its flakes.
    side_px
        Side of a thumbnail.
    most
        Number of thumbnails.

    Returns
    -------
    `region_id` to a square RGB image, in the table's order.
    """
    whole = Image.fromarray(display.pixels)
    thumbnails: dict[int, Image.Image] = {}
    outlines = dict(table.marks)
    thin = table.found[table.found["layers"] != "thick"]
    for record in thin.head(most).to_dict("records"):
        outline = outlines.get(int(record["region_id"]))
        if outline is None:
            continue
        left, top, right, bottom = outline.bounds
        side = min(max(right - left, bottom - top) * 1.7 + 24.0, float(max(whole.size)))
        x0, y0 = (left + right - side) / 2, (top + bottom - side) / 2
        # A crop that reaches beyond the picture is filled with gray by Pillow; shifting it inside shows more crystal.
        x0 = min(max(x0, 0.0), max(0.0, whole.width - side))
        y0 = min(max(y0, 0.0), max(0.0, whole.height - side))
        box = (round(x0), round(y0), round(x0 + side), round(y0 + side))
        crop = whole.crop(box).resize((side_px, side_px), Image.Resampling.BICUBIC, reducing_gap=2.0)
        zoom = side_px / (box[2] - box[0])
        draw = ImageDraw.Draw(crop)
        for ring in _rings(outline, zoom, origin=(box[0], box[1])):
            _trace(draw, ring, record, width=2)
        thumbnails[int(record["region_id"])] = crop
    return thumbnails


def encode_png(image: Image.Image | NDArray[np.uint8]) -> bytes:
    """PNG file of an image; light compression, since a photograph's noise does not compress anyway: runs alone are
    faster to look for than repetitions, and the file comes out smaller."""
    stream = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(stream, format="PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return stream.getvalue()


def encode_jpeg(image: Image.Image, *, quality: int = 78) -> bytes:
    """JPEG file of an image."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def to_data_uri(jpeg: bytes) -> str:
    """The file as text that a page can hold in itself."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")


def choose_bar_um(width_um: float) -> float:
    """Length of a scale bar: 1, 2 or 5 times a power of ten, at most a fifth of the picture's width.

    Parameters
    ----------
    width_um
        Width of the picture in µm.
    """
    target = width_um / 5
    decade = 10.0 ** math.floor(math.log10(target))
    return max(step * decade for step in (1.0, 2.0, 5.0) if step * decade <= target * (1 + 1e-9))


def name_layers(layers: str) -> str:
    """Layer number as one writes it: "1" as "1L", "1|2" as "1L or 2L", "thick" and "thin" as they are."""
    if not layers:
        return "–"
    return " or ".join(f"{part}L" if part.isdigit() else part for part in layers.split("|"))


def pick_colours(layers: str, status: str) -> list[Colour]:
    """Colours of a region's outline, one for each layer number that fits."""
    if status == "rejected" or not layers:
        return [REJECTED_COLOUR]
    return [LAYER_COLOURS.get(part, LAYER_COLOURS["thick"]) for part in layers.split("|")]


def _fill(base: NDArray[np.uint8], layers: NDArray[np.uint8]) -> NDArray[np.uint8]:
    lookup = np.full((256, 3), LAYER_COLOURS["thick"], np.float32)
    for name, colour in LAYER_COLOURS.items():
        if name.isdigit():
            lookup[int(name)] = colour
    flat, pixels = layers.ravel(), base.reshape(-1, 3)
    inside = np.flatnonzero((flat > 0) & (flat != REJECTED_LABEL) & (flat != THIN_LABEL))
    mixed = pixels[inside] * np.float32(1 - _FILL) + lookup[flat[inside]] * np.float32(_FILL)
    pixels[inside] = mixed.astype(np.uint8)
    return base


def _rings(
    outline: Any, scale: float, origin: tuple[float, float] = (0.0, 0.0)
) -> Iterable[NDArray[np.float64]]:
    """Outer and inner boundaries of a polygon or multipolygon, in pixels of the drawing."""
    for part in getattr(outline, "geoms", (outline,)):
        for ring in (part.exterior, *part.interiors):
            points = np.asarray(ring.coords, float)[:, :2]
            if len(points) > 1:
                yield (points + 0.5 - origin) * scale - 0.5


def _trace(
    draw: ImageDraw.ImageDraw, ring: NDArray[np.float64], record: dict[Any, Any], *, width: int
) -> None:
    """One outline. A halo of the opposite brightness makes every line readable on any crystal and substrate."""
    colours = pick_colours(str(record["layers"]), str(record["status"]))
    if record["status"] == "rejected":
        for x, y in _walk(ring, step=3.0 * width):
            draw.rectangle((x - 1, y - 1, x + width / 2 + 1, y + width / 2 + 1), fill=_DARK)
            draw.rectangle((x, y, x + width / 2, y + width / 2), fill=REJECTED_COLOUR)
        return
    halo = _LIGHT if colours[0] == LAYER_COLOURS["thin"] else _DARK
    line = [tuple(point) for point in ring]
    draw.line(line, fill=halo, width=width + 2 * max(1, width // 2), joint=None)
    draw.line(line, fill=colours[0], width=width, joint=None)
    if len(colours) > 1:
        steps = _walk(ring, step=4.0 * width)
        for place, (begin, end) in enumerate(itertools.pairwise(steps)):
            draw.line([tuple(begin), tuple(end)], fill=colours[place % len(colours)], width=width)


def _walk(ring: NDArray[np.float64], *, step: float) -> NDArray[np.float64]:
    """Points at equal distances along a line, shape (n, 2)."""
    lengths = np.hypot(*np.diff(ring, axis=0).T)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    places = np.arange(0.0, along[-1], step)
    return np.stack([np.interp(places, along, ring[:, axis]) for axis in (0, 1)], 1)


@cache
def load_font(size: int) -> Any:
    """DejaVu Sans, which has the µ that Pillow's own font lacks; matplotlib carries it and need not be imported."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _write_labels(
    draw: ImageDraw.ImageDraw,
    table: FlakeTable,
    records: Sequence[dict[Any, Any]],
    *,
    scale: float,
    letter: int,
) -> None:
    """Region number and layers inside the best regions, or the layers alone, or nothing, as fits."""
    font = load_font(letter)
    left = _MOST_LABELS
    outlines = dict(table.marks)
    for record in records:
        outline = outlines.get(int(record["region_id"]))
        if outline is None or record["status"] == "rejected" or str(record["layers"]) == "thick":
            continue
        x0, y0, x1, y1 = (scale * side for side in outline.bounds)
        short = "/".join(name_layers(part) for part in str(record["layers"]).split("|"))
        for text in (f"#{int(record['region_id'])} {short}", short):
            width = draw.textlength(text, font=font)
            if width < 1.2 * (x1 - x0) and letter < y1 - y0 and left:
                inside = outline.representative_point()
                x = min(max((inside.x + 0.5) * scale, width / 2 + 3), draw.im.size[0] - width / 2 - 3)
                y = min(max((inside.y + 0.5) * scale, letter), draw.im.size[1] - letter)
                draw.text(
                    (x, y),
                    text,
                    fill="white",
                    font=font,
                    anchor="mm",
                    stroke_width=2,
                    stroke_fill=(20, 20, 20),
                )
                left -= 1
                break


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    records: Sequence[dict[Any, Any]],
    layers: NDArray[np.uint8],
    *,
    letter: int,
) -> None:
    """Colours and what they mean, in the corner where the fewest crystals lie (the scale bar has the fourth)."""
    present = {
        part
        for record in records
        if record["status"] in ("accepted", "uncertain")
        for part in str(record["layers"]).split("|")
    }
    entries: list[tuple[str, Sequence[Colour], bool]] = []
    for name, colour in LAYER_COLOURS.items():
        if name in present:
            word = _WORDS.get(name, f"{name} layers")
            entries.append((word, [colour], False))
    if any("|" in str(record["layers"]) for record in records):
        entries.append(("more than one fits", [LAYER_COLOURS["1"], LAYER_COLOURS["2"]], False))
    if any(record["status"] == "rejected" for record in records):
        entries.append(("rejected", [REJECTED_COLOUR], True))
    if not entries:
        return
    font, pad, row = load_font(letter), letter // 2, round(letter * 1.35)
    swatch = round(letter * 1.4)
    words = max(draw.textlength(word, font=font) for word, _, _ in entries)
    width, height = math.ceil(swatch + words + 3 * pad), len(entries) * row + pad
    far_right, far_down = layers.shape[1] - width - pad, layers.shape[0] - height - pad
    corners = [(pad, pad), (far_right, pad), (pad, far_down)]
    corner = min(corners, key=lambda c: np.count_nonzero(layers[c[1] : c[1] + height, c[0] : c[0] + width]))
    left, above = max(corner[0], 0), max(corner[1], 0)
    draw.rectangle((left, above, left + width, above + height), fill=(25, 25, 25))
    for index, (word, colours, dotted) in enumerate(entries):
        top = above + 0.5 * pad + index * row
        x0, x1 = left + pad, left + pad + swatch
        y0, y1 = top + 0.25 * letter, top + 1.05 * letter
        if dotted:
            for x in np.arange(x0, x1, letter / 3):
                draw.rectangle((x, (y0 + y1) / 2, x + 1, (y0 + y1) / 2 + 1), fill=colours[0])
        else:
            for part, colour in enumerate(colours):
                step = (x1 - x0) / len(colours)
                draw.rectangle((x0 + part * step, y0, x0 + (part + 1) * step, y1), fill=colour)
            if colours[0] == LAYER_COLOURS["thin"]:
                draw.rectangle((x0, y0, x1, y1), outline=_LIGHT, width=max(1, letter // 8))
        draw.text((x1 + pad, top), word, fill="white", font=font)


def _draw_scale_bar(
    draw: ImageDraw.ImageDraw, calibration: Calibration, *, scale: float, size: tuple[int, int], letter: int
) -> None:
    pixel_nm = calibration.pixel_size_nm[1] / scale
    length_um = choose_bar_um(um_from_nm(pixel_nm * size[0]))
    length = nm_from_um(length_um) / pixel_nm
    text = f"{length_um:g} µm" if length_um >= 1 else f"{nm_from_um(length_um):g} nm"
    font, pad, thick = load_font(letter), letter // 2, max(3, letter // 4)
    width = max(length, draw.textlength(text, font=font))
    right, bottom = size[0] - pad, size[1] - pad
    top = bottom - 2.2 * pad - thick - letter
    draw.rectangle((right - width - 2 * pad, top, right, bottom), fill=(25, 25, 25))
    middle = right - pad - width / 2
    # The bar's pixels are counted, so both ends belong to it.
    begin = round(middle - length / 2)
    draw.rectangle(
        (begin, bottom - pad - thick, begin + round(length) - 1, bottom - pad - 1), fill=(255, 255, 255)
    )
    draw.text((middle, top + pad / 2), text, fill="white", font=font, anchor="ma")
