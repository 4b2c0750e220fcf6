"""Flakes as a layout program sees them: µm, y up, the origin in the lower left corner of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from flatscope.micrograph import Calibration, MicrographError
from flatscope.results.answers import REJECTED_LABEL, THICK_LABEL, THIN_LABEL, FlakeTable
from flatscope.results.exports.keyhole import cut_keyholes
from flatscope.results.exports.rows import CORNER_PX, list_marked, split_shape
from flatscope.results.table import Table
from flatscope.units import um_from_nm

SECOND_LAYER = 2  # where the angles of second layers stand
_DOUBTS = {"accepted": 0, "uncertain": 1}
_LEFT_OUT = 2


@dataclass(frozen=True)
class Piece:
    """A polygon, or a text at a point, of a layout.

    Parameters
    ----------
    corners_um
        Shape (n, 2), x and y; one corner for a text.
    layer
        Number of layers, as in the layer image: 1 to 10, 253 for thin and not known, 254 for thick, 255 for rejected.
    doubt
        0 accepted, 1 uncertain, 2 rejected.
    row_id, label
        Of the row.
    """

    corners_um: NDArray[np.float64]
    layer: int
    doubt: int
    row_id: int
    label: str

    @property
    def is_text(self) -> bool:
        """A point that holds a text only."""
        return len(self.corners_um) == 1


@dataclass(frozen=True)
class Layout:
    """Pieces, and the picture below them, whose lower left corner is the origin."""

    pieces: list[Piece]
    width_um: float
    height_um: float


def lay_out(table: Table, title: str) -> Layout:
    """Place the marks of a picture in a layout.

    Parameters
    ----------
    table
        Of flakes or twist angles.
    title
        Of the format, for the error.

    Raises
    ------
    MicrographError
        If the pixel size is unknown.
    """
    if table.calibration is None:
        raise MicrographError(
            f"{table.provenance.image} has no pixel size, and {title} is in µm: run again with --um-per-px"
        )
    rows, cols = table.marks.shape_px
    rows_um, cols_um = (um_from_nm(size) for size in table.calibration.pixel_size_nm)
    layers = _list_layers(table)
    pieces = [
        Piece(
            _to_um(corners, rows, table.calibration),
            layers.get(row.row_id, SECOND_LAYER),
            _DOUBTS.get(row.status, _LEFT_OUT),
            row.row_id,
            row.label,
        )
        for row in list_marked(table)
        for corners in _list_corners(row.shape)
    ]
    return Layout(pieces, cols * cols_um, rows * rows_um)


def name_layer(piece: Piece) -> str:
    """Name of a piece's layer: "1L", "thin", "thick", "rejected", or "twist" for texts."""
    if piece.is_text:
        return "twist"
    named = {THIN_LABEL: "thin", THICK_LABEL: "thick", REJECTED_LABEL: "rejected"}
    return named.get(piece.layer, f"{piece.layer}L")


def _list_layers(table: Table) -> dict[int, int]:
    if not isinstance(table, FlakeTable):
        return {}
    return dict(zip(table.frame["region_id"].tolist(), table.layer_values().tolist(), strict=True))


def _list_corners(shape: BaseGeometry) -> Iterator[NDArray[np.float64]]:
    for part in split_shape(shape):
        yield cut_keyholes(part) if part.geom_type == "Polygon" else shapely.get_coordinates(part)


def _to_um(points: NDArray[np.float64], rows: int, calibration: Calibration) -> NDArray[np.float64]:
    """Pixels, y down from the centre of the first one, to µm, y up from the lower left corner."""
    rows_um, cols_um = (um_from_nm(size) for size in calibration.pixel_size_nm)
    x, y = (points + CORNER_PX).T
    return np.column_stack([x * cols_um, (rows - y) * rows_um])
