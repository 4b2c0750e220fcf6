"""Cards of single rows, and what electron micrographs have besides: maps, histograms, movies."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from PIL import Image

from flatscope.app.server.desk import AtDesk, Desk, write_json
from flatscope.app.server.models import Card, Histogram, MapInfo, MovieInfo
from flatscope.report.figures import encode_png
from flatscope.results import Table, TrackTable
from flatscope.runs.cards import (
    Overlay,
    collect_intensities,
    cut_crops,
    describe_movie,
    draw_overlay_map,
    list_maps,
)

router = APIRouter(prefix="/api", tags=["electron"])
_NEIGHBOURS = 6
_BINS = 60


def _find_table(desk: Desk, index: int) -> Table:
    entry = desk.entry(index)
    table = desk.bench.table(index)
    if table is None:
        raise HTTPException(404, f"{entry.name} has no answer yet")
    return table


@router.get("/items/{index}/rows/{row_id}", response_model=Card)
def get_row(index: int, row_id: int, request: Request, desk: AtDesk) -> Response:
    """All that is known of one row."""
    table = _find_table(desk, index)
    row = desk.bench.read_row(index, row_id)
    if not row:
        raise HTTPException(404, f"there is no row {row_id} in {desk.entry(index).name}")
    row.pop("item", None)
    pictures = {}
    if desk.bench.verb in ("atoms", "defects"):
        crops = cut_crops(table, row_id, desk.pictures.whole(index))
        pictures = {name: _to_uri(picture) for name, picture in crops.items()}
    return write_json(request, {"row": row, "neighbours": _find_neighbours(table, row_id), **pictures})


def _find_neighbours(table: Table, row_id: int) -> list[dict[str, Any]]:
    """The nearest rows of the same picture."""
    frame = table.frame
    if not {"row_px", "col_px"} <= set(frame) or isinstance(table, TrackTable):
        return []
    ids = frame[table.ROW_ID].to_numpy()
    places = frame[["row_px", "col_px"]].to_numpy(float)
    far = np.hypot(*(places - places[ids == row_id][0]).T)
    nearest = np.argsort(far, kind="stable")[1 : _NEIGHBOURS + 1]
    return [{"id": int(ids[n]), "distance_px": round(float(far[n]), 2)} for n in nearest]


def _to_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


@router.get("/items/{index}/maps", response_model=list[str])
def get_maps(index: int, desk: AtDesk) -> list[str]:
    """Names of the maps that lie over an image."""
    return list_maps(_find_table(desk, index))


def _draw(desk: Desk, index: int, name: str) -> Overlay:
    try:
        return draw_overlay_map(_find_table(desk, index), name)
    except KeyError:
        raise HTTPException(404, f"there is no map {name[:40]!r}") from None


@router.get("/items/{index}/maps/{name}.json", response_model=MapInfo)
def get_map_info(index: int, name: str, desk: AtDesk) -> dict[str, Any]:
    """Unit and range of a map, or its classes."""
    overlay = _draw(desk, index, name)
    legend = [
        {"name": word, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for word, colour in overlay.legend.items()
    ]
    return {"name": name, "unit": overlay.unit, "low": overlay.low, "high": overlay.high, "legend": legend}


@router.get("/items/{index}/maps/{name}.png", response_class=Response)
def get_map(index: int, name: str, desk: AtDesk) -> Response:
    """A map as a transparent picture, to be laid over the whole image."""
    return Response(encode_png(_draw(desk, index, name).pixels), media_type="image/png")


@router.get("/histogram/{index}", response_model=Histogram)
def get_histogram(index: int, request: Request, desk: AtDesk) -> Response:
    """How bright the sites of an image are, by class."""
    classes = collect_intensities(_find_table(desk, index))
    if not classes:
        raise HTTPException(404, f"{desk.entry(index).name} has no intensities by class")
    values = np.concatenate([one["values"] for one in classes])
    edges = np.histogram_bin_edges(values, _BINS).round(5).tolist()
    return write_json(request, {"classes": classes, "edges": edges})


@router.get("/movie/{index}", response_model=MovieInfo)
def get_movie(index: int, request: Request, desk: AtDesk) -> Response:
    """Tracks, events and counts of a movie."""
    table = _find_table(desk, index)
    if not isinstance(table, TrackTable):
        raise HTTPException(404, f"{desk.entry(index).name} is no movie")
    return write_json(request, describe_movie(table, desk.pictures.measure(index)[2]))
