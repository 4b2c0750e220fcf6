"""Defects drawn over their image, examples with what speaks for them, and how they move through a movie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flatscope.report.figures import Colour
from flatscope.report.study import make_panels, to_png
from flatscope.results import EXTENDED_KINDS, DefectTable, TrackTable

Style: TypeAlias = tuple[Colour, str]
"""Colour and shape of a mark."""

# Okabe and Ito's colours, which the colour-blind can distinguish too; shapes repeat the distinction.
_STYLES: dict[str, Style] = {
    "V_M": ((230, 159, 0), "circle"),
    "V_X": ((86, 180, 233), "square"),
    "V_X2": ((0, 158, 115), "diamond"),
    "O_X": ((213, 94, 0), "cross"),
    "M_X2": ((204, 121, 167), "circle"),
    "X_M": ((0, 114, 178), "diamond"),
    "D_M": ((240, 228, 66), "triangle"),
    "D_X2": ((240, 228, 66), "square"),
}
_MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle": "^", "cross": "x"}
_FAINT: Colour = (150, 150, 150)
_LEAST_SIDE_PX, _MOVIE_SIDE_PX = 1200, 640
_EXAMPLES = 4
_LEGEND_PX, _FONT_PX = 34, 20


def choose_styles(codes: Mapping[str, str]) -> dict[str, Style]:
    """Colour and shape of each kind, the same in every picture; `codes` leads from its name to its code, such as "V_W"
    to "V_M" (see `flatscope.electron.kinds`)."""
    return {name: _STYLES[code] for name, code in sorted(codes.items())}


def to_gray(pixels: NDArray[Any], limits: tuple[float, float] | None = None) -> NDArray[np.uint8]:
    """An image in 8 bits, from its 0.2nd to its 99.8th percentile or between `limits`."""
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    low, high = limits or np.quantile(pixels, (0.002, 0.998))
    return np.clip((pixels - low) / max(float(high - low), 1e-12) * 255.0, 0.0, 255.0).astype(np.uint8)


def draw_defects(
    pixels: NDArray[Any], table: DefectTable, styles: dict[str, Style], *, constant_px: float
) -> Image.Image:
    """An image with a mark around each defect, one colour and shape a kind; thin gray where rejected, and the names
    below.

    Parameters
    ----------
    pixels
        Shape (rows, cols) or (rows, cols, 3).
    table
        What was found in it.
    styles
        See `choose_styles`.
    constant_px
        Lattice constant: the size of the marks.
    """
    return _draw_marks(
        to_gray(pixels), table.frame, styles, radius=0.4 * constant_px, least_side=_LEAST_SIDE_PX
    )


def draw_frames(
    frames: Iterator[tuple[int, NDArray[Any]]],
    table: TrackTable,
    styles: dict[str, Style],
    *,
    constant_px: float,
) -> Iterator[Image.Image]:
    """Frames of a movie, each with its defects and their track numbers.

    Parameters
    ----------
    frames
        Number and image of each.
    table
        What was followed.
    styles
        See `choose_styles`.
    constant_px
        Lattice constant.
    """
    rows = dict(tuple(table.frame.groupby("frame")))
    limits: tuple[float, float] | None = None
    for number, pixels in frames:
        if limits is None:
            low, high = np.quantile(pixels, (0.002, 0.998))
            limits = (float(low), float(high))
        mine = rows.get(number, table.frame[:0]).assign(status="accepted")
        yield _draw_marks(
            to_gray(pixels, limits), mine, styles, radius=0.5 * constant_px, least_side=_MOVIE_SIDE_PX
        )


def _draw_marks(
    gray: NDArray[np.uint8],
    frame: pd.DataFrame,
    styles: dict[str, Style],
    *,
    radius: float,
    least_side: int,
) -> Image.Image:
    scale = max(-(-least_side // max(gray.shape)), 1)
    picture = Image.fromarray(gray).resize((gray.shape[1] * scale, gray.shape[0] * scale)).convert("RGB")
    whole = Image.new("RGB", (picture.width, picture.height + _LEGEND_PX * bool(styles)), (20, 20, 24))
    whole.paste(picture, (0, 0))
    pen = ImageDraw.Draw(whole)
    font = ImageFont.load_default(_FONT_PX)
    for row in frame.to_dict("records"):
        x, y = ((float(row[key]) + 0.5) * scale for key in ("col_px", "row_px"))
        if row["kind"] in EXTENDED_KINDS:
            pen.text((x, y), str(row["kind"]), fill=(255, 255, 255), anchor="mm", font=font)
        elif row["status"] == "rejected":
            _mark(pen, x, y, 0.6 * radius * scale, _FAINT, "circle", width=1)
        else:
            colour, shape = styles[str(row["kind"])]
            _mark(pen, x, y, radius * scale, colour, shape, width=max(scale, 2))
            if row["status"] == "uncertain":
                pen.text((x + radius * scale, y - radius * scale), "?", fill=colour, font=font)
            if row.get("track_id"):
                pen.text(
                    (x + 1.1 * radius * scale, y), str(row["track_id"]), fill=colour, anchor="lm", font=font
                )
    x = 10.0
    for kind, (colour, shape) in styles.items():
        y = picture.height + _LEGEND_PX / 2
        _mark(pen, x + 6, y, 6, colour, shape, width=2)
        pen.text((x + 18, y), kind, fill=(235, 235, 235), anchor="lm", font=font)
        x += 42 + font.getlength(kind)
    return whole


def _mark(
    pen: ImageDraw.ImageDraw, x: float, y: float, r: float, colour: Colour, shape: str, *, width: int
) -> None:
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        pen.ellipse(box, outline=colour, width=width)
    elif shape == "square":
        pen.rectangle(box, outline=colour, width=width)
    elif shape == "cross":
        pen.line((x - r, y - r, x + r, y + r), fill=colour, width=width)
        pen.line((x - r, y + r, x + r, y - r), fill=colour, width=width)
    else:
        points = {
            "diamond": ((x, y - r), (x + r, y), (x, y + r), (x - r, y)),
            "triangle": ((x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)),
        }[shape]
        pen.polygon(points, outline=colour, width=width)


def draw_examples(table: DefectTable) -> bytes:
    """Of each kind the four surest examples, and in orange what in them speaks for it, as a PNG file; "" if none."""
    found = table.found.sort_values("kind_p", ascending=False)
    kinds = sorted(set(found["kind"]))
    if not kinds:
        return b""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 * 2 * _EXAMPLES, 1.75 * len(kinds)), layout="constrained")
    for line, kind in enumerate(kinds):
        for place, (index, row) in enumerate(found[found["kind"] == kind].head(_EXAMPLES).iterrows()):
            crop, evidence = table.crops[index], table.evidence[index]
            for column, shown in enumerate((None, evidence)):
                axis = figure.add_subplot(
                    len(kinds), 2 * _EXAMPLES, line * 2 * _EXAMPLES + 2 * place + column + 1
                )
                axis.imshow(crop, cmap="gray", interpolation="nearest", extent=(-1.2, 1.2, -1.2, 1.2))
                if shown is not None and np.isfinite(shown).all():
                    axis.imshow(
                        np.maximum(shown, 0.0),
                        cmap="Oranges",
                        alpha=0.55,
                        interpolation="bilinear",
                        extent=(-1.2, 1.2, -1.2, 1.2),
                    )
                axis.set(xticks=(), yticks=())
                if column == 0:
                    axis.set_title(f"{kind} {row['kind_p']:.2f}", fontsize="small")
    return to_png(figure)


def draw_windows(
    examples: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], *, names: Sequence[str]
) -> bytes:
    """Windows (rows, cols), and below each its activation map laid over it, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.8 * len(examples), 3.8), layout="constrained")
    for place, (window, activation) in enumerate(examples):
        for line in (0, 1):
            axis = figure.add_subplot(2, len(examples), line * len(examples) + place + 1)
            box = (0, window.shape[1], window.shape[0], 0)
            axis.imshow(window, cmap="gray", interpolation="nearest", extent=box)
            if line:
                axis.imshow(
                    np.maximum(activation, 0.0),
                    cmap="Oranges",
                    alpha=0.55,
                    interpolation="bilinear",
                    extent=box,
                )
            else:
                axis.set_title(names[place], fontsize="small")
            axis.set(xticks=(), yticks=())
    return to_png(figure)


def draw_counts(counts: pd.DataFrame, styles: dict[str, Style], *, frame_s: float | None) -> bytes:
    """Number of defects of each kind against time, as a PNG file."""
    figure, (axis,) = make_panels(1)
    time = counts.index.to_numpy(float) * (frame_s or 1.0)
    for kind in counts.columns:
        colour, shape = styles[kind]
        axis.plot(
            time,
            counts[kind],
            color=np.array(colour) / 255.0,
            marker=_MARKERS[shape],
            markersize=4,
            fillstyle="none",
            drawstyle="steps-mid",
            label=kind,
        )
    axis.set(xlabel="time / s" if frame_s else "frame", ylabel="defects", ylim=(0, None))
    if len(counts.columns):
        axis.legend(frameon=False, fontsize="small")
    return to_png(figure)


def draw_broom(table: TrackTable, styles: dict[str, Style]) -> bytes:
    """All tracks in space and time, one colour a kind, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axis = figure.add_subplot(projection="3d")
    step = table.frame_s or 1.0
    for _, track in table.frame.groupby("track_id"):
        axis.plot(track["x_nm"], track["y_nm"], track["frame"] * step, color="0.75", linewidth=0.6)
    for kind, rows in table.frame.groupby("kind"):
        colour, shape = styles[str(kind)]
        axis.scatter(
            rows["x_nm"],
            rows["y_nm"],
            rows["frame"] * step,
            color=np.array(colour) / 255.0,
            marker=_MARKERS[shape],
            s=8,
            label=str(kind),
        )
    axis.set(xlabel="x / nm", ylabel="y / nm", zlabel="time / s" if table.frame_s else "frame")
    axis.invert_yaxis()
    if styles:
        axis.legend(frameon=False, fontsize="small")
    return to_png(figure)
