"""What every picture format writes: the rows of an answer that have a mark, each with a label and a colour."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from flatscope.results.answers import LAYER_COLOURS, FlakeTable, TrackTable, TwistTable
from flatscope.results.table import Table
from flatscope.results.view import STATUS_COLOURS

Colour = tuple[int, int, int]

CORNER_PX = 0.5
"""From the centre of a pixel, where flatscope counts from, to its upper left corner, where most files do."""

REJECTED = "rejected"


@dataclass(frozen=True)
class MarkedRow:
    """A row of a table, or a track, that lies somewhere in the picture.

    Parameters
    ----------
    row_id
        The value of the table's `ROW_ID` column.
    shape
        Polygon, point or line in pixels, x = column and y = row, whole numbers at pixel centres.
    label
        What it is, in a word: "1L", "1L|2L", "thick"; a species; a kind of defect; an angle; "track 7".
    colour
        Red, green, blue, 0 to 255.
    status, reason
        Of the row.
    cells
        Column to value; of a track, what its rows have in common.
    """

    row_id: int
    shape: BaseGeometry
    label: str
    colour: Colour
    status: str
    reason: str
    cells: Mapping[str, Any]


def list_marked(table: Table) -> list[MarkedRow]:
    """The rows with a mark, in the table's order; of a track table, its tracks."""
    frame = _join_tracks(table.frame) if isinstance(table, TrackTable) else table.frame
    shapes = dict(table.marks)
    marked = []
    for cells in frame.to_dict("records"):
        shape = shapes.get(cells[table.ROW_ID])
        if shape is None:
            continue
        status = cells.get("status", "accepted")
        label = _label(table, cells)
        colour = _choose_colour(table, cells, status)
        named = {str(name): value for name, value in cells.items()}
        marked.append(
            MarkedRow(int(cells[table.ROW_ID]), shape, label, colour, status, cells.get("reason", ""), named)
        )
    return marked


def _join_tracks(frame: pd.DataFrame) -> pd.DataFrame:
    """One row a track: what it was first, and from which frame to which it was seen."""
    tracks = frame.sort_values(["track_id", "frame"], kind="stable").groupby("track_id", sort=True)
    return pd.DataFrame(
        {
            "image": tracks["image"].first(),
            "track_id": tracks["track_id"].first(),
            "kind": tracks["kind"].first(),
            "sublattice": tracks["sublattice"].first(),
            "first_frame": tracks["frame"].first(),
            "last_frame": tracks["frame"].last(),
            "frames": tracks.size(),
        }
    )


def _label(table: Table, cells: Mapping[Any, Any]) -> str:
    """What a row is, in a word."""
    if isinstance(table, TrackTable):
        return f"track {cells['track_id']}"
    if isinstance(table, TwistTable):
        angle = cells["twist_deg"]
        return f"{angle:.1f}°" if np.isfinite(angle) else "no angle"
    if cells["status"] == REJECTED:
        return REJECTED
    if isinstance(table, FlakeTable):
        parts = [
            part if part in ("thin", "thick") else f"{part}L" for part in cells["layers"].split("|") if part
        ]
        return "|".join(parts) or "unknown"
    return cells.get("species") or cells.get("kind") or "unknown"


def _choose_colour(table: Table, cells: Mapping[Any, Any], status: str) -> Colour:
    """Layer numbers have their own colours, everything else that of its status."""
    if isinstance(table, FlakeTable) and status != REJECTED:
        return LAYER_COLOURS.get(cells["layers"].split("|")[0], LAYER_COLOURS["thick"])
    return read_colour(status)


def read_colour(status: str) -> Colour:
    """The colour of a status."""
    red, green, blue = bytes.fromhex(STATUS_COLOURS.get(status, STATUS_COLOURS[REJECTED])[1:])
    return red, green, blue


def describe_origin(table: Table) -> str:
    """Version, picture and digest of its file in one line, for a format's comment."""
    origin = table.provenance
    image = " ".join(origin.image.split())
    return f"flatscope {origin.version}, {image}, sha256 {origin.image_sha256}"


def make_plain(text: str) -> str:
    """Text in ASCII, for formats that know nothing else: other letters become their numbers."""
    return text.encode("ascii", "backslashreplace").decode("ascii")


def split_shape(shape: BaseGeometry) -> Iterator[BaseGeometry]:
    """The parts of a shape that are one polygon, point or line each; none that is empty."""
    for part in getattr(shape, "geoms", [shape]):
        if not part.is_empty:
            yield part


def take_ring(ring: Any) -> NDArray[np.float64]:
    """Corners of a ring, shape (n, 2), the first one not repeated at the end."""
    return np.asarray(ring.coords, float)[:-1, :2]
