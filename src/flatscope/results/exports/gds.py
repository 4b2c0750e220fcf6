"""GDSII, the format of layout programs and of electron-beam writers."""

from __future__ import annotations

import datetime
import tempfile
from pathlib import Path

import gdstk

from flatscope.results.exports.layout import Piece, lay_out
from flatscope.results.exports.rows import describe_origin, make_plain
from flatscope.results.table import Table

_USER_UNIT_M = 1e-6
_DATABASE_UNIT_M = 1e-9  # corners are rounded to it; no light microscope sees as much
_PICTURE_LAYER = 0
_MOST_CORNERS = 8190  # of a polygon; its record of 65535 bytes holds no more
_MOST_NAME = 32  # letters of a cell's name in the format's definition
_MOST_TEXT = 512  # letters of a text in the format's definition
_MOST_PROPERTY = 126  # letters of a property in the format's definition
_STAMP = datetime.datetime(2000, 1, 1)  # equal answers give equal bytes: no time of day
_ROW_PROPERTY, _LABEL_PROPERTY = 1, 2


def encode_gds(table: Table) -> bytes:
    """One cell: each region on the layer of its layer number, in µm, y up from the lower left corner of the picture.

    Layers are the numbers of the layer image: 1 to 10, 253 for thin, 254 for thick, 255 for rejected. The data type is
    0 for accepted, 1 for uncertain, 2 for rejected. Layer 0 holds the frame of the picture and where it came from.
    Slits of no width lead to holes. Property 1 of a polygon is its row, property 2 its label. Twist angles are texts on
    layer 2.
    """
    layout = lay_out(table, "GDSII")
    library = gdstk.Library("flatscope", unit=_USER_UNIT_M, precision=_DATABASE_UNIT_M)
    cell = library.new_cell(_name_cell(table.provenance.image))
    frame = gdstk.rectangle((0, 0), (layout.width_um, layout.height_um), layer=_PICTURE_LAYER)
    origin = make_plain(describe_origin(table))
    cell.add(frame, gdstk.Label(_shorten(origin), (0, 0), anchor="sw", layer=_PICTURE_LAYER))
    for piece in layout.pieces:
        cell.add(_draw(piece))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layout.gds"  # gdstk writes to files only
        library.write_gds(path, max_points=_MOST_CORNERS, timestamp=_STAMP)
        return path.read_bytes()


def _draw(piece: Piece) -> gdstk.Polygon | gdstk.Label:
    label = make_plain(piece.label.replace("°", " deg"))
    if piece.is_text:
        (x, y) = piece.corners_um[0]
        return gdstk.Label(label, (x, y), layer=piece.layer, texttype=piece.doubt)
    polygon = gdstk.Polygon(piece.corners_um.tolist(), layer=piece.layer, datatype=piece.doubt)
    polygon.set_gds_property(_ROW_PROPERTY, str(piece.row_id))
    polygon.set_gds_property(_LABEL_PROPERTY, label[:_MOST_PROPERTY])
    return polygon


def _name_cell(image: str) -> str:
    """Letters, digits and _ of the picture's name, as the format wants them."""
    stem = "".join(c if c.isascii() and c.isalnum() else "_" for c in Path(image).stem)
    return stem[:_MOST_NAME] or "picture"


def _shorten(text: str) -> str:
    """Cut the middle out of a long line: the end holds the digest."""
    half = _MOST_TEXT // 2
    return text if len(text) <= _MOST_TEXT else f"{text[: half - 3]}...{text[-half:]}"
