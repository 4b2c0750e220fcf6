"""DXF, the format of drawing programs, with the picture below the outlines."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import ezdxf
from ezdxf.colors import rgb2int
from ezdxf.document import Drawing
from ezdxf.entities.dxfgfx import DXFGraphic

from flatscope.results.answers import LAYER_COLOURS
from flatscope.results.exports.layout import Layout, Piece, lay_out, name_layer
from flatscope.results.exports.rows import REJECTED, read_colour
from flatscope.results.table import Table

_VERSION = "R2010"
_MICRONS = 13  # of the header variable INSUNITS
_APPLICATION = "FLATSCOPE"  # owner of the extended data of a polygon
_PICTURE_LAYER = "picture"
_TEXT_SHARE = 0.02  # height of a text over that of the picture
_TEXT, _WHOLE_NUMBER = 1000, 1071  # group codes of extended data


def encode_dxf(table: Table) -> bytes:
    """Closed outlines in µm, y up from the lower left corner of the picture, one drawing layer a layer number.

    The layers are called 1L to 10L, thin, thick and rejected; slits of no width lead to holes. Extended data hold label
    and row. The picture itself is an IMAGE of its size in µm that is looked for by name beside the drawing. Twist
    angles are points with a text.

    Raises
    ------
    MicrographError
        If the pixel size is unknown.
    """
    layout = lay_out(table, "DXF")
    with _without_time():
        drawing = ezdxf.new(_VERSION)
        drawing.units = _MICRONS
        drawing.appids.add(_APPLICATION)
        origin = table.provenance
        for name, value in (
            ("flatscope", origin.version),
            ("picture", origin.image),
            ("sha256", origin.image_sha256),
        ):
            drawing.header.custom_vars.append(name, " ".join(value.split()))
        _lay_picture(drawing, table, layout)
        for piece in layout.pieces:
            _draw(drawing, piece, text_um=_TEXT_SHARE * layout.height_um)
        stream = io.StringIO()
        drawing.write(stream)
    return drawing.encode(stream.getvalue())


@contextmanager
def _without_time() -> Iterator[None]:
    """Equal answers give equal bytes: fixed dates and numbers in place of the time of day and random ones."""
    before = ezdxf.options.write_fixed_meta_data_for_testing
    ezdxf.options.write_fixed_meta_data_for_testing = True
    try:
        yield
    finally:
        ezdxf.options.write_fixed_meta_data_for_testing = before


def _lay_picture(drawing: Drawing, table: Table, layout: Layout) -> None:
    rows, cols = table.marks.shape_px
    drawing.layers.add(_PICTURE_LAYER)
    name = " ".join(table.provenance.image.split())
    definition = drawing.add_image_def(filename=name, size_in_pixel=(cols, rows), name="PICTURE")
    drawing.modelspace().add_image(
        definition,
        insert=(0.0, 0.0),
        size_in_units=(layout.width_um, layout.height_um),
        dxfattribs={"layer": _PICTURE_LAYER},
    )


def _draw(drawing: Drawing, piece: Piece, *, text_um: float) -> None:
    layer = name_layer(piece)
    if layer not in drawing.layers:
        drawing.layers.add(layer, true_color=_choose_colour(layer))
    space, own = drawing.modelspace(), {"layer": layer}
    entity: DXFGraphic
    if piece.is_text:
        (place,) = piece.corners_um.tolist()
        entity = space.add_point(place, dxfattribs=own)
        space.add_text(piece.label, height=text_um, dxfattribs=own).set_placement(place)
    else:
        entity = space.add_lwpolyline(piece.corners_um.tolist(), close=True, dxfattribs=own)
    entity.set_xdata(
        _APPLICATION, [(_TEXT, piece.label), (_WHOLE_NUMBER, piece.row_id), (_WHOLE_NUMBER, piece.doubt)]
    )


def _choose_colour(layer: str) -> int:
    known = LAYER_COLOURS.get(layer.removesuffix("L"))
    return rgb2int(known or read_colour(layer if layer == REJECTED else "accepted"))
