"""Both layers of a stack drawn over their image, and the map of stackings."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from flatscope.micrograph import Micrograph
from flatscope.report.figures import Colour
from flatscope.report.study import make_panels, to_png
from flatscope.results import MoireTable

_COLOURS: tuple[Colour, Colour] = ((230, 159, 0), (86, 180, 233))
_UNUSUAL: Colour = (0, 200, 110)
_OVERLAPPING: Colour = (150, 150, 150)
_LEAST_SIDE_PX = 1200
"""Small images are enlarged, so that rings around columns leave them visible."""
_RADIUS_NM = 0.05  # of the ring of a first sublattice; of the second it is smaller
_STACKINGS = ((213, 94, 0), (86, 180, 233), (0, 114, 178), (240, 228, 66))  # in the order of the shares


def draw_layers(image: Micrograph, table: MoireTable) -> Image.Image:
    """Rings around the columns of both layers.

    Parameters
    ----------
    image
        The micrograph.
    table
        What was found in it.

    Returns
    -------
    RGB image, enlarged by a whole number if it is small.
    """
    pixels = image.pixels if image.pixels.ndim == 2 else image.pixels[..., 0]
    low, high = np.quantile(pixels, (0.002, 0.998))
    gray = np.clip((pixels - low) / max(float(high - low), 1e-12) * 255.0, 0.0, 255.0).astype(np.uint8)
    scale = max(-(-_LEAST_SIDE_PX // max(gray.shape)), 1)
    picture = Image.fromarray(gray).resize((gray.shape[1] * scale, gray.shape[0] * scale)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    columns = table.columns[table.columns["status"] != "rejected"]
    usual = {key: rows["species"].mode().iloc[0] for key, rows in columns.groupby(["layer", "sublattice"])}
    first = columns.groupby("layer")["sublattice"].max()
    for row in columns.to_dict("records"):
        key = (row["layer"], row["sublattice"])
        colour = _COLOURS[(int(row["layer"]) - 1) % 2]
        if row["reason"].startswith("overlapping"):
            colour = _OVERLAPPING
        elif row["species"] != usual[key]:
            colour = _UNUSUAL
        radius = _RADIUS_NM / table.calibration.pixel_size_nm[0] * scale
        radius *= 1.0 if row["sublattice"] == first[row["layer"]] else 0.6
        x, y = ((float(row[name]) + 0.5) * scale for name in ("col_px", "row_px"))
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), outline=colour, width=max(scale // 2, 1)
        )
    return picture


def draw_stacking(table: MoireTable) -> bytes:
    """The map of the nearest stacking, as a PNG file."""
    figure, (axis,) = make_panels(1)
    axis.imshow(np.array(_STACKINGS, np.uint8)[table.stacking], interpolation="nearest")
    axis.set_axis_off()
    names = (
        ("2H", "MM or XX", "XX or MM", "SP")
        if table.frame["kind"].iloc[0] == "H"
        else ("AA", "AB", "BA", "SP")
    )
    for name, colour in zip(names, _STACKINGS, strict=True):
        axis.plot([], [], "s", color=np.array(colour) / 255.0, label=name)
    axis.legend(loc="upper right", fontsize="small")
    return to_png(figure)
