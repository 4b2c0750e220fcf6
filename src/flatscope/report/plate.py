"""A figure for a paper: one picture with its marks, a scale bar and a legend, at a stated width."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any, Literal

import numpy as np
from PIL import Image

from flatscope.report.figures import choose_bar_um
from flatscope.results import LAYER_COLOURS, FlakeTable, Table
from flatscope.results.exports.rows import MarkedRow, list_marked, split_shape
from flatscope.units import nm_from_um, um_from_nm

_DPI = 300
"""Dots per inch that journals ask of pictures."""
_MM_PER_INCH = 25.4
_LETTER_PT = 6.0
"""Smallest size of letters that journals print."""
_LINE_PT = 0.8
_MOST_CLASSES = 8
"""The legend names the commonest ones."""


def draw_plate(picture: Image.Image, table: Table, *, width_mm: float, kind: Literal["png", "svg"]) -> bytes:
    """Draw a picture with its marks for print.

    Parameters
    ----------
    picture
        At its full size.
    table
        Its answer; rejected rows are left out.
    width_mm
        Width on the page.
    kind
        PNG with 300 dots per inch, or SVG, whose lines and letters stay sharp and can be edited.

    Returns
    -------
    The file; equal answers give equal bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rows, cols = table.marks.shape_px
    width = width_mm / _MM_PER_INCH
    figure = Figure(figsize=(width, width * rows / cols), dpi=_DPI)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    most = round(2 * width * _DPI)
    if picture.width > most:
        picture = picture.resize((most, max(1, round(most * rows / cols))), Image.Resampling.BICUBIC)
    axes.imshow(np.asarray(picture.convert("RGB")), extent=(-0.5, cols - 0.5, rows - 0.5, -0.5))
    axes.set_axis_off()
    axes.set_xlim(-0.5, cols - 0.5)
    axes.set_ylim(rows - 0.5, -0.5)
    _draw_rows(axes, [row for row in list_marked(table) if row.status != "rejected"], table)
    if table.calibration is not None:
        _draw_bar(axes, table.calibration.pixel_size_nm[1], (rows, cols))
    stream = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "flatscope", "svg.fonttype": "none"}):
        figure.savefig(stream, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)
    return stream.getvalue()


def _draw_rows(axes: Any, rows: list[MarkedRow], table: Table) -> None:
    """All marks, one colour a class, and a legend with their numbers."""
    from matplotlib.collections import PolyCollection
    from matplotlib.lines import Line2D

    counts = Counter(_classify(row, table) for row in rows)
    palette = list(LAYER_COLOURS.values())
    colours = {name: palette[place % 6] for place, (name, _) in enumerate(counts.most_common())}
    if isinstance(table, FlakeTable):
        colours = {_classify(row, table): row.colour for row in rows}
    handles = []
    for name, count in sorted(counts.most_common(_MOST_CLASSES)):
        red, green, blue = (part / 255.0 for part in colours[name])
        colour = (red, green, blue)
        shapes = [part for row in rows if _classify(row, table) == name for part in split_shape(row.shape)]
        points = np.array([(one.x, one.y) for one in shapes if one.geom_type == "Point"]).reshape(-1, 2)
        lines = [np.asarray(one.coords) for one in shapes if one.geom_type == "LineString"]
        rings = [
            np.asarray(ring.coords)
            for one in shapes
            if one.geom_type == "Polygon"
            for ring in (one.exterior, *one.interiors)
        ]
        if rings or lines:
            style: dict[str, Any] = {"facecolors": "none", "edgecolors": [colour], "linewidths": _LINE_PT}
            axes.add_collection(PolyCollection(rings, **style))
            axes.add_collection(PolyCollection(lines, closed=False, **style))
        if len(points):
            axes.scatter(*points.T, s=6.0, facecolors="none", edgecolors=[colour], linewidths=0.5)
        handles.append(Line2D([], [], color=colour, linewidth=2.0, label=f"{name} ({count})"))
    if handles:
        legend = axes.legend(handles=handles, loc="upper left", fontsize=_LETTER_PT, labelcolor="white")
        legend.get_frame().set(facecolor=(0.1, 0.1, 0.1), edgecolor="none", alpha=0.8)


def _classify(row: MarkedRow, table: Table) -> str:
    return str(row.cells["kind"]) if table.NAME == "tracks" else row.label


def _draw_bar(axes: Any, pixel_nm: float, shape: tuple[int, int]) -> None:
    """A scale bar in the lower right corner."""
    from matplotlib.patches import Rectangle

    rows, cols = shape
    length_um = choose_bar_um(um_from_nm(pixel_nm * cols))
    length = nm_from_um(length_um) / pixel_nm
    text = f"{length_um:g} µm" if length_um >= 1 else f"{nm_from_um(length_um):g} nm"
    thick, gap = 0.012 * rows, 0.03 * cols
    left, top = cols - gap - length, rows - gap - thick
    box: dict[str, Any] = {"facecolor": (0.1, 0.1, 0.1), "alpha": 0.8, "linewidth": 0.0}
    axes.add_patch(Rectangle((left - gap / 2, top - 0.075 * rows), length + gap, thick + 0.09 * rows, **box))
    axes.add_patch(Rectangle((left, top), length, thick, facecolor="white", linewidth=0.0))
    place = (left + length / 2, top - 0.01 * rows)
    axes.text(*place, text, color="white", fontsize=_LETTER_PT, ha="center", va="bottom")
