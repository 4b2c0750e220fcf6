"""A reproduced study as one self-contained page: its table, and figures like the paper's."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
_COLOURS = np.array([[40, 40, 48], [240, 228, 66], [86, 180, 233], [213, 94, 0]], np.uint8)
"""Substrate, one layer, two layers, thick: the colour-blind-safe ones of the overlays."""


def draw_curves(
    curves: Mapping[str, Mapping[str, Curve]], *, marks: Mapping[str, tuple[float, float]]
) -> bytes:
    """Precision against recall, a panel a class, as a PNG file.

    Parameters
    ----------
    curves
        Class to method to (recall, precision).
    marks
        Class to a published (recall, precision).
    """
    figure, axes = make_panels(len(curves))
    for axis, (name, methods) in zip(axes, curves.items(), strict=True):
        for method, (recall, precision) in methods.items():
            axis.plot(recall, precision, label=method)
        if name in marks:
            axis.plot(*marks[name], "kx", label="published")
        axis.set(title=name, xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        axis.legend(loc="lower left", frameon=False)
    return to_png(figure)


def draw_lines(
    panels: Mapping[str, Mapping[str, Curve]],
    *,
    labels: tuple[str, str],
    scales: tuple[str, str] = ("linear", "log"),
    steps: bool = False,
) -> bytes:
    """Lines by name, a panel each, as a PNG file.

    Parameters
    ----------
    panels
        Title to name to (x, y); the last point is marked.
    labels, scales
        Of the axes.
    steps
        Draw histograms: y holds from x to the next one.
    """
    figure, axes = make_panels(len(panels))
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
        for name, (x, y) in lines.items():
            if not len(x):
                continue
            shown = np.maximum(y, 1e-3) if scales[1] == "log" else y
            (line,) = axis.plot(x, shown, label=name, drawstyle="steps-post" if steps else "default")
            if not steps:
                axis.plot(x[-1], shown[-1], "o", color=line.get_color())
        axis.set(title=title, xlabel=labels[0], ylabel=labels[1], xscale=scales[0], yscale=scales[1])
        if scales[0] == "log":
            axis.xaxis.set_minor_formatter("")
        elif all(len(x) == 0 or 0.0 <= x.min() <= x.max() <= 1.0 for x, _ in lines.values()):
            axis.set_xlim(0.0, 1.02)
        axis.legend(frameon=False, fontsize="small")
    return to_png(figure)


def draw_classes(rows: Sequence[tuple[NDArray[np.uint8], ...]], *, titles: Sequence[str]) -> bytes:
    """Pictures with maps of their classes beside them, as a PNG file.

    Parameters
    ----------
    rows
        Each a picture (rows, cols, 3) and maps of classes (rows, cols).
    titles
        Of the columns.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.4 * len(titles), 2.4 * len(rows)), layout="constrained")
    for row, images in enumerate(rows):
        for col, image in enumerate(images):
            axis = figure.add_subplot(len(rows), len(titles), row * len(titles) + col + 1)
            axis.imshow(image if image.ndim == 3 else _COLOURS[image], interpolation="nearest")
            axis.set_axis_off()
            if row == 0:
                axis.set_title(titles[col])
    return to_png(figure)


def draw_grays(images: Mapping[str, NDArray[np.floating]]) -> bytes:
    """Gray images beside each other, each from its darkest to its brightest hundredth, as a PNG file.

    Parameters
    ----------
    images
        Title to image (rows, cols).
    """
    figure, axes = make_panels(len(images))
    for axis, (title, image) in zip(axes, images.items(), strict=True):
        low, high = np.quantile(image, (0.01, 0.99))
        axis.imshow(image, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        axis.set_title(title)
        axis.set_axis_off()
    return to_png(figure)


def draw_confusion(matrices: Mapping[str, NDArray[np.floating]], *, classes: Sequence[str]) -> bytes:
    """Shares of each true class (rows) that are found as each class (columns), a panel a method, as a PNG file."""
    figure, axes = make_panels(len(matrices))
    for axis, (name, matrix) in zip(axes, matrices.items(), strict=True):
        axis.imshow(matrix, vmin=0.0, vmax=1.0, cmap="Blues")
        for (row, col), share in np.ndenumerate(matrix):
            axis.text(
                col, row, f"{share:.2f}", ha="center", va="center", color="white" if share > 0.5 else "black"
            )
        axis.set(title=name, xlabel="found", ylabel="true")
        axis.set_xticks(range(len(classes)), classes, rotation=30)
        axis.set_yticks(range(len(classes)), classes)
    return to_png(figure)


def draw_distributions(
    values: Mapping[str, NDArray[np.integer]], *, classes: Sequence[str], label: str
) -> bytes:
    """Histograms of pixel values, a panel a class and a line a method, as a PNG file.

    Parameters
    ----------
    values
        Method to counts of shape (classes, bins), bins from 0 to 255.
    classes
        Names of the panels.
    label
        What the values are.
    """
    figure, axes = make_panels(len(classes))
    for index, axis in enumerate(axes):
        for method, counts in values.items():
            share = counts[index] / max(float(counts[index].sum()), 1.0)
            axis.plot(np.linspace(0.0, 255.0, len(share)), share, label=method)
        axis.set(title=classes[index], xlabel=label, ylabel="share of the class")
        axis.legend(frameon=False)
    return to_png(figure)


def draw_map(maps: Mapping[str, NDArray[np.floating]], *, label: str) -> bytes:
    """Maps of one quantity about zero, a panel each on a common scale, gray where nothing is known; a PNG file."""
    from matplotlib import colormaps

    known = np.concatenate([values[np.isfinite(values)] for values in maps.values()])
    limit = float(np.quantile(np.abs(known), 0.99)) if len(known) else 1.0
    colours = colormaps["RdBu_r"].with_extremes(bad="0.7")
    figure, axes = make_panels(len(maps))
    for axis, (name, values) in zip(axes, maps.items(), strict=True):
        shown = axis.imshow(values, cmap=colours, vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set(title=name, xticks=(), yticks=())
    figure.colorbar(shown, ax=axes, label=label, shrink=0.8)
    return to_png(figure)


def make_histogram(values: NDArray[np.floating], *, upto: float, label: str) -> bytes:
    """How often values from 0 to `upto` occur, in thirty bins, as a PNG file."""
    figure, (axis,) = make_panels(1)
    axis.hist(values, bins=np.linspace(0.0, upto, 31), color="#2d5fa8")
    axis.set(xlabel=label, ylabel="crystals", xlim=(0.0, upto))
    return to_png(figure)


def make_study_page(
    title: str,
    table: Sequence[Mapping[str, str]],
    figures: Mapping[str, bytes],
    *,
    notes: Sequence[str],
    more: Mapping[str, Sequence[Mapping[str, str]]] = MappingProxyType({}),
    folded: Mapping[str, Sequence[Mapping[str, str]]] = MappingProxyType({}),
) -> str:
    """HTML that holds everything in itself.

    Parameters
    ----------
    title
        Heading.
    table
        Rows, all with the same keys; none, and there is no table.
    figures
        Caption to PNG file.
    notes
        Paragraphs above the table.
    more
        Caption to another table, below the figures.
    folded
        Caption to a table that a click on the caption unfolds, below the first table.
    """
    shown = "".join(
        f'<figure><img alt="{html.escape(caption)}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode("ascii")}"><figcaption>{html.escape(caption)}</figcaption></figure>'
        for caption, png in figures.items()
    )
    said = "".join(f"<p>{html.escape(note)}</p>" for note in notes)
    hidden = "".join(
        f"<details><summary>{html.escape(caption)}</summary>{_tabulate(rows)}</details>"
        for caption, rows in folded.items()
    )
    below = "".join(f"<h2>{html.escape(caption)}</h2>{_tabulate(rows)}" for caption, rows in more.items())
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse}td,th{padding:.25rem .5rem;border-bottom:1px solid #ccc;text-align:left}"
        ".wide{overflow-x:auto}h2{font-size:1.1rem;margin-top:2rem}img{max-width:100%}figure{margin:2rem 0}"
        "td:last-child{min-width:14rem}summary{cursor:pointer;margin:1rem 0}</style>"
        f"<h1>{html.escape(title)}</h1>{said}{_tabulate(table)}{hidden}{shown}{below}</html>"
    )


def _tabulate(rows: Sequence[Mapping[str, str]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{html.escape(key)}</th>" for key in rows[0])
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in row.values()) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def make_panels(count: int) -> tuple[Any, Any]:
    """A figure and its axes beside each other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * count, 3.8), layout="constrained")
    return figure, [figure.add_subplot(1, count, place + 1) for place in range(count)]


def to_png(figure: Any) -> bytes:
    """A figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()
