"""Twisted bilayers drawn over their picture, and the angles of a sample as a histogram."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from flatscope.report.figures import Colour, Display, load_font
from flatscope.report.study import make_histogram
from flatscope.results import LAYER_COLOURS, REJECTED_LABEL

_LOWER, _UPPER = LAYER_COLOURS["1"], LAYER_COLOURS["2"]
_WORDS: Colour = (255, 255, 255)


def draw_twist(display: Display, layers: NDArray[np.uint8], frame: pd.DataFrame) -> Image.Image:
    """Outlines of both layers, an axis to a corner of each, and the angle or why there is none.

    Parameters
    ----------
    display
        The picture.
    layers
        Its label image: 0 substrate, 1 and 2 layers, up to 254 more, 255 unknown.
    frame
        Rows of a twist table.

    Returns
    -------
    RGB image of the picture's size: the first layer's outline and axis yellow, the second's blue.
    """
    pixels = display.pixels.copy()
    for least, colour in ((1, _LOWER), (2, _UPPER)):
        inside = (layers >= least) & (layers < REJECTED_LABEL)
        pixels[inside & ~ndimage.binary_erosion(inside)] = colour
    picture = Image.fromarray(pixels)
    pen = ImageDraw.Draw(picture)
    font = load_font(min(max(11, round(min(picture.size) / 55)), 40))
    for row in frame.to_dict("records"):
        x, y = float(row["col_px"]), float(row["row_px"])
        reach = math.sqrt((row["area_1l_px"] + row["area_2l_px"]) / 1.3)
        for key, colour, share in (("bottom_deg", _LOWER, 1.0), ("top_deg", _UPPER, 0.7)):
            if not math.isnan(row[key]):
                angle = math.radians(row[key])
                end = (x + share * reach * math.cos(angle), y - share * reach * math.sin(angle))
                pen.line([(x, y), end], fill=colour, width=2)
        pen.text((x + 4, y + 4), _name(row), fill=_WORDS, font=font, stroke_width=2, stroke_fill=(0, 0, 0))
    return picture


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
    if not math.isnan(folded):
        return f"{folded:.{digits}f} ± {sigma:.{digits}f}°"
    return str(row["reason"]).partition(":")[0]
