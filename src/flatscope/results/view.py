"""How an answer shows itself in a notebook: one line, a small picture with its marks, the first rows."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from shapely.geometry.base import BaseGeometry

from flatscope.results.marks import Marks

_MOST_ROWS = 30
_MOST_MARKS = 2000  # a notebook stays quick up to here
_WIDTH_PX = 420
STATUS_COLOURS = {"accepted": "#ffd23f", "uncertain": "#ff7f51", "rejected": "#9a9a9a"}
_UNKNOWN = STATUS_COLOURS["rejected"]


def show_answer(head: str, rows: pd.DataFrame, picture: str = "") -> str:
    """HTML of an answer: a headline, its picture, the first rows.

    Parameters
    ----------
    head
        HTML of the headline.
    rows
        The columns to show.
    picture
        What `show_marks` made, or nothing.
    """
    table = rows.to_html(index=False, float_format=lambda value: f"{value:.3g}", max_rows=_MOST_ROWS)
    return f"<p>{head}</p>{picture}{table}"


def show_marks(preview: bytes, marks: Marks, status: Mapping[int, str]) -> str:
    """A picture with marks over it, as SVG; nothing without a picture.

    Parameters
    ----------
    preview
        JPEG of the picture.
    marks
        What to draw, in pixels of the full picture.
    status
        Of each row; a row without one counts as accepted.
    """
    if not preview:
        return ""
    rows, cols = marks.shape_px
    shapes = [
        _trace(shape, STATUS_COLOURS.get(status.get(row_id, "accepted"), _UNKNOWN), cols / _WIDTH_PX)
        for row_id, shape in list(marks)[:_MOST_MARKS]
    ]
    picture = base64.b64encode(preview).decode("ascii")
    return (
        f'<svg width="{_WIDTH_PX}" viewBox="-0.5 -0.5 {cols} {rows}">'
        f'<image x="-0.5" y="-0.5" width="{cols}" height="{rows}" href="data:image/jpeg;base64,{picture}"/>'
        f"{''.join(shapes)}</svg>"
    )


def _trace(shape: BaseGeometry, colour: str, px: float) -> str:
    """One mark; `px` is the picture's pixels per pixel on the screen."""
    style = f'fill="none" stroke="{colour}" stroke-width="{1.5 * px:.2f}"'
    if shape.geom_type == "Point":
        return f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{3 * px:.1f}" {style}/>'
    if shape.geom_type == "LineString":
        rings = [shape.coords]
    else:
        polygons = getattr(shape, "geoms", [shape])
        rings = [ring.coords for one in polygons for ring in (one.exterior, *one.interiors)]
    path = " ".join("M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in ring) for ring in rings)
    return f'<path d="{path}" {style}/>'


def make_preview(image: Any) -> bytes:
    """Make a small JPEG of a picture, of the first image of a series, or of a gray array.

    Colours are shown as they are, gray values from their 0.5th to their 99.5th percentile.
    """
    pixels = np.asarray(getattr(image, "frames", [getattr(image, "pixels", image)])[0])
    step = max(1, round(max(pixels.shape[:2]) / _WIDTH_PX))
    small = pixels[step // 2 :: step, step // 2 :: step].astype(float)
    low, high = (0.0, image.full_scale) if small.ndim == 3 else np.percentile(small, (0.5, 99.5))
    shown = np.clip((small - low) / max(high - low, 1e-12), 0.0, 1.0)
    stream = io.BytesIO()
    Image.fromarray((255.0 * shown).round().astype(np.uint8)).save(stream, format="JPEG", quality=80)
    return stream.getvalue()
