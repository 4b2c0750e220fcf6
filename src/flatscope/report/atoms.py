"""Atomic columns drawn over their image, and maps of what was measured."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flatscope.micrograph import Micrograph, Stack
from flatscope.report.figures import Colour
from flatscope.report.study import draw_map
from flatscope.results import ColumnTable

_COLOURS: tuple[Colour, ...] = ((230, 159, 0), (86, 180, 233))
_UNUSUAL: Colour = (0, 200, 110)
_UNCERTAIN: Colour = (240, 60, 60)
_REJECTED: Colour = (150, 150, 150)
_LEAST_SIDE_PX = 1200
"""Small images are enlarged, so that rings around columns leave them visible."""


def draw_columns(image: Micrograph | Stack, table: ColumnTable) -> Image.Image:
    """Rings around all columns: orange and blue for the two sublattices, green where the column is not the usual one of
    its sublattice, red where uncertain; gray crosses where a site was rejected.

    Parameters
    ----------
    image
        Of a stack, the middle image is drawn.
    table
        What was found in it.

    Returns
    -------
    RGB image, enlarged by a whole number if it is small.
    """
    pixels = image.frames[len(image) // 2] if isinstance(image, Stack) else image.pixels
    pixels = pixels if pixels.ndim == 2 else pixels[..., 0]
    low, high = np.quantile(pixels, (0.002, 0.998))
    gray = np.clip((pixels - low) / max(float(high - low), 1e-12) * 255.0, 0.0, 255.0).astype(np.uint8)
    scale = max(-(-_LEAST_SIDE_PX // max(gray.shape)), 1)
    picture = Image.fromarray(gray).resize((gray.shape[1] * scale, gray.shape[0] * scale)).convert("RGB")
    pen = ImageDraw.Draw(picture)
    radius = 0.16 * scale * float(np.hypot(*table.vectors_px[0]))
    names = sorted(set(table.frame["sublattice"]), reverse=True)
    usual = {name: rows["species"].mode().iloc[0] for name, rows in table.found.groupby("sublattice")}
    for row in table.frame.to_dict("records"):
        x, y = ((float(row[key]) + 0.5) * scale for key in ("col_px", "row_px"))
        if row["status"] == "rejected":
            pen.line((x - radius / 2, y, x + radius / 2, y), fill=_REJECTED)
            pen.line((x, y - radius / 2, x, y + radius / 2), fill=_REJECTED)
            continue
        colour = _COLOURS[names.index(str(row["sublattice"])) % 2]
        if row["species"] != usual[row["sublattice"]]:
            colour = _UNUSUAL
        if row["status"] == "uncertain":
            colour = _UNCERTAIN
        pen.ellipse(
            (x - radius, y - radius, x + radius, y + radius), outline=colour, width=max(scale // 2, 1)
        )
    return picture


def draw_strain(strain: NDArray[np.float64]) -> bytes:
    """Maps of strain (3, rows, cols) in percent, as a PNG file."""
    names = ("along columns (x)", "along rows (y)", "shear")
    return draw_map(dict(zip(names, strain, strict=True)), label="strain / %")
