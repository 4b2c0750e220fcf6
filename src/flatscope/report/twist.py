"""Twisted bilayers drawn over their picture, and the angles of a sample as a histogram."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from flatscope.report.figures import Colour, Display, load_font
from flatscope.report.study import make_histogram
from flatscope.results import LAYER_COLOURS, REJECTED_LABEL, THIN_LABEL

_LOWER, _UPPER = LAYER_COLOURS["1"], LAYER_COLOURS["2"]
_WORDS: Colour = (255, 255, 255)
_SHADE: Colour = (0, 0, 0)
_WITHOUT: Colour = (200, 200, 200)
_AXIS_SHARE = 0.9  # length of an axis, as a share of the way from a triangle's centre to its corner
_SHORTEST_AXIS = 14.0  # px; of small second layers, too, the direction should be seen

Box = tuple[float, float, float, float]


def draw_twist(display: Display, layers: NDArray[np.uint8], frame: pd.DataFrame) -> Image.Image:
    """Outlines of both layers, the axes to their corners, and the angle; a ring where there is no angle.

    Parameters
    ----------
    display
        The picture.
    layers
        Its label image: 0 substrate, 1 and 2 layers, up to 254 more, 253 and 255 unknown.
    frame
        Rows of a twist table.

    Returns
    -------
    RGB image of the picture's size: the first layer's outline and axes yellow, the second's blue.
    """
    pixels = display.pixels.copy()
    for least, colour in ((1, _LOWER), (2, _UPPER)):
        inside = (layers >= least) & ~np.isin(layers, (THIN_LABEL, REJECTED_LABEL))
        pixels[inside & ~ndimage.binary_erosion(inside)] = colour
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    letter = min(max(11, round(min(picture.size) / 55)), 40)
    measured = frame["twist_fold30_deg"].notna()
    for row in frame[~measured].to_dict("records"):
        _draw_ring(pen, row, letter=letter)
    for row in frame[measured].to_dict("records"):
        _draw_axes(pen, row, width=max(2, letter // 6))
    taken: list[Box] = []
    for row in frame[measured].to_dict("records"):
        taken.append(_write_angle(pen, row, taken, letter=letter))
    return picture


def _draw_ring(pen: ImageDraw.ImageDraw, row: dict[object, object], *, letter: int) -> None:
    """A ring around a second layer without an angle."""
    x, y = _centre(row)
    reach = max(0.5 * letter, math.sqrt(float(str(row["area_2l_px"])) / 1.3))
    for wider, colour in ((1.0, _SHADE), (0.0, _WITHOUT)):
        edge = reach + wider
        pen.ellipse(
            (x - edge, y - edge, x + edge, y + edge), outline=colour, width=1 + round(wider) + letter // 12
        )


def _draw_axes(pen: ImageDraw.ImageDraw, row: dict[object, object], *, width: int) -> None:
    """Lines from the second layer's centre to where the corners of both layers point."""
    x, y = _centre(row)
    upper, lower = float(str(row["area_2l_px"])), float(str(row["area_1l_px"]))
    for key, colour, area in (("bottom_deg", _LOWER, lower + upper), ("top_deg", _UPPER, upper)):
        # The circumradius of a triangle of this area.
        reach = max(_AXIS_SHARE * math.sqrt(area / 1.3), _SHORTEST_AXIS)
        for corner in (0.0, 120.0, 240.0):
            angle = math.radians(float(str(row[key])) + corner)
            end = (x + reach * math.cos(angle), y - reach * math.sin(angle))
            pen.line([(x, y), end], fill=_SHADE, width=width + 2)
            pen.line([(x, y), end], fill=colour, width=width)


def _write_angle(
    pen: ImageDraw.ImageDraw, row: dict[object, object], taken: list[Box], *, letter: int
) -> Box:
    """The angle beside its crystal, clear of the labels that are there; a line leads to one that lies far away."""
    font, text, (x, y) = load_font(letter), _name(row), _centre(row)
    width, height = pen.textlength(text, font=font), 1.3 * letter
    size = pen.im.size
    places = list(_places_around(x, y, width, height, size))
    left, top = next(
        (place for place in places if not any(_overlap((*place, width, height), box) for box in taken)),
        places[0],
    )
    middle = (left + width / 2, top + height / 2)
    if math.hypot(middle[0] - x, middle[1] - y) > width:
        pen.line([(x, y), middle], fill=_WORDS, width=1)
    pen.text((left, top), text, fill=_WORDS, font=font, stroke_width=2, stroke_fill=_SHADE)
    return left, top, width, height


def _places_around(
    x: float, y: float, width: float, height: float, size: tuple[int, int]
) -> Iterator[tuple[float, float]]:
    """Upper left corners for a label of this size about a point, the nearest first, all inside the picture."""
    for ring in range(1, 8):
        for down in (1.0, -1.0, 0.0):
            for right in (1.0, -1.0, 0.0):
                if down or right:
                    left = x + right * (0.5 * width + height * ring) - 0.5 * width
                    top = y + down * height * (ring + 0.5) - 0.5 * height
                    yield min(max(left, 0.0), size[0] - width), min(max(top, 0.0), size[1] - height)


def _overlap(one: Box, other: Box) -> bool:
    return all(
        abs(one[k] + one[k + 2] / 2 - other[k] - other[k + 2] / 2) < (one[k + 2] + other[k + 2]) / 2
        for k in (0, 1)
    )


def _centre(row: dict[object, object]) -> tuple[float, float]:
    return float(str(row["col_px"])), float(str(row["row_px"]))


def draw_histogram(frame: pd.DataFrame, *, fold: bool) -> bytes:
    """How often each angle occurs in a sample, as a PNG file."""
    key, highest = ("twist_fold30_deg", 30.0) if fold else ("twist_deg", 60.0)
    return make_histogram(frame[key].dropna().to_numpy(float), upto=highest, label="twist angle / °")


def _name(row: dict[object, object]) -> str:
    angle, folded, sigma = (float(str(row[key])) for key in ("twist_deg", "twist_fold30_deg", "sigma_deg"))
    digits = 1 if sigma >= 0.1 else 2
    if not math.isnan(angle):
        return f"{angle:.{digits}f} ± {sigma:.{digits}f}°"
    if row["status"] == "uncertain":
        return f"{folded:.{digits}f} or {60.0 - folded:.{digits}f} ± {sigma:.{digits}f}°"
    return f"{folded:.{digits}f} ± {sigma:.{digits}f}°"
