"""How an answer shows itself in a notebook: one line, a small picture with its marks, the first rows."""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from shapely.geometry.base import BaseGeometry

if TYPE_CHECKING:
    from flatscope.results.table import Table

_MOST_ROWS = 30
_MOST_MARKS = 2000  # a notebook stays quick up to here
_WIDTH_PX = 420
STATUS_COLOURS = {"accepted": "#ffd23f", "uncertain": "#ff7f51", "rejected": "#9a9a9a"}


def show_table(table: Table) -> str:
    """HTML of an answer: headline, picture with marks, first rows."""
    frame = table.frame
    shown = frame[list(table.SHOWN)] if table.SHOWN else frame
    rows = shown.to_html(index=False, float_format=lambda value: f"{value:.3g}", max_rows=_MOST_ROWS)
    head = f"<b>{html.escape(table.provenance.image)}</b>: {html.escape(table.headline())}"
    return f"<p>{head}</p>{_draw(table)}{rows}"


def _draw(table: Table) -> str:
    """The preview with the marks over it, as SVG."""
    if not table.preview:
        return ""
    rows, cols = table.marks.shape_px
    frame = table.frame
    status = dict(zip(frame[table.ROW_ID], frame["status"], strict=True)) if "status" in frame.columns else {}
    shapes = [
        _trace(
            shape,
            STATUS_COLOURS.get(status.get(row_id, "accepted"), STATUS_COLOURS["rejected"]),
            cols / _WIDTH_PX,
        )
        for row_id, shape in list(table.marks)[:_MOST_MARKS]
    ]
    picture = base64.b64encode(table.preview).decode("ascii")
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
