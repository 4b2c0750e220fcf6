"""What the page looks at: the run, its rows, marks, pictures and thumbnails."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import StreamingResponse

from flatscope.app.server.desk import AtDesk, Desk, write_json
from flatscope.app.server.models import MarksOfItem, Rows, RunInfo, Tiles
from flatscope.app.server.sprites import CELL_PX
from flatscope.micrograph import MicrographError
from flatscope.results import MoireTable, Table
from flatscope.results.exports.rows import split_shape
from flatscope.runs.answering import Entry
from flatscope.runs.pictures import TILE_PX, count_levels
from flatscope.runs.workbench import to_columns
from flatscope.units import um_from_nm

router = APIRouter(prefix="/api", tags=["look"])
_DIGITS = 2
"""Of a pixel: a hundredth is more than a screen shows."""
_FOREVER = "private, max-age=31536000, immutable"
_SHORT = "private, max-age=5"


@router.get("/run", response_model=RunInfo)
def get_run(request: Request, desk: AtDesk) -> Response:
    """What was asked, and what there is."""
    bench = desk.bench
    record, kind = bench.record, bench.kind
    settings = record.get("settings", {})
    counts = bench.count_rows()
    return write_json(
        request,
        {
            "name": bench.out.resolve().name,
            "verb": bench.verb,
            "flatscope": record.get("flatscope", ""),
            "complete": record.get("complete", False),
            "running": bench.is_running(),
            "revision": bench.revision,
            "settings": settings,
            "weights": record.get("weights", {}),
            "material": settings.get("material"),
            "items": [_describe(desk, entry, counts.get(entry.index, 0)) for entry in bench.entries],
            "columns": [] if kind is None else _describe_columns(kind),
            "table": "" if kind is None else kind.NAME,
            "row_id": "" if kind is None else kind.ROW_ID,
            "sprite_px": CELL_PX,
            "can": bench.list_kinds(),
            "trouble": bench.trouble,
        },
    )


def _describe(desk: Desk, entry: Entry, n_rows: int) -> dict[str, Any]:
    width, height, frames = 0, 0, 1
    if entry.status == "analysed":
        width, height, frames = desk.pictures.measure(entry.index)
    size = desk.bench.pixel_size_nm(entry.index)
    is_light = desk.bench.verb in ("flakes", "twist")
    return {
        "index": entry.index,
        "name": entry.name,
        "stem": entry.stem,
        "status": entry.status,
        "reason": entry.reason,
        "notes": list(entry.notes),
        "n_rows": n_rows,
        "width": width,
        "height": height,
        "n_frames": frames,
        "um_per_px": um_from_nm(size) if size is not None and is_light else None,
        "nm_per_px": size if not is_light else None,
    }


def _describe_columns(kind: type[Table]) -> list[dict[str, str]]:
    columns = [{"name": c.name, "unit": c.unit, "meaning": c.meaning, "kind": c.kind} for c in kind.COLUMNS]
    return [
        *columns,
        {"name": "star", "unit": "", "meaning": "Marked by hand.", "kind": "flag"},
        {"name": "note", "unit": "", "meaning": "Noted by hand.", "kind": "text"},
    ]


@router.get("/rows", response_model=Rows)
def get_rows(request: Request, desk: AtDesk) -> Response:
    """All rows by column, in the order of interest."""
    rows, revision = desk.bench.rows(), desk.bench.revision
    columns = to_columns(rows)
    item = columns.pop("item")
    return write_json(request, {"revision": revision, "item": item, "columns": columns})


@router.get("/items/{index}/marks", response_model=MarksOfItem)
def get_marks(index: int, request: Request, desk: AtDesk) -> Response:
    """Where the rows of an item lie."""
    entry, revision = desk.entry(index), desk.bench.revision
    table = desk.bench.table(index)
    if table is None:
        raise HTTPException(404, f"{entry.name} has no answer yet")
    said = {"revision": revision, "shape": list(table.marks.shape_px)}
    return write_json(request, said | _trace(table))


def _trace(table: Table) -> dict[str, Any]:
    """Marks as flat lists of numbers."""
    if isinstance(table, MoireTable):
        columns = table.columns
        names = [f"layer {row[0]} {row[1]}" for row in columns[["layer", "species"]].to_numpy(object)]
        return {
            "kind": "points",
            "ids": columns["column_id"].tolist(),
            "x": columns["col_px"].round(_DIGITS).tolist(),
            "y": columns["row_px"].round(_DIGITS).tolist(),
            "classes": names,
        }
    ids, shapes = table.marks.ids.tolist(), table.marks.shapes
    kinds = {shape.geom_type for shape in shapes}
    if kinds <= {"Point"} and table.NAME != "tracks":
        places = np.array([(shape.x, shape.y) for shape in shapes], float).reshape(-1, 2).round(_DIGITS)
        return {"kind": "points", "ids": ids, "x": places[:, 0].tolist(), "y": places[:, 1].tolist()}
    if table.NAME == "tracks":
        return {"kind": "paths", "ids": ids, "lines": [_flatten(shape.coords) for shape in shapes]}
    rings = [
        [_flatten(ring.coords) for part in split_shape(shape) for ring in (part.exterior, *part.interiors)]
        for shape in shapes
    ]
    return {"kind": "outlines", "ids": ids, "rings": rings}


def _flatten(corners: Any) -> list[float]:
    flat: list[float] = np.asarray(corners, float)[:, :2].round(_DIGITS).ravel().tolist()
    return flat


@router.get("/items/{index}/tiles.json", response_model=Tiles)
def get_tiling(index: int, desk: AtDesk) -> dict[str, Any]:
    """Sizes of the deep-zoom picture of an item."""
    entry = desk.entry(index)
    try:
        width, height, frames = desk.pictures.measure(index)
    except MicrographError as error:
        raise HTTPException(404, str(error)) from None
    return {
        "width": width,
        "height": height,
        "tile_size": TILE_PX,
        "levels": count_levels(width, height),
        "n_frames": frames,
        "version": entry.sha256[:12],
    }


@router.get("/items/{index}/tiles/{frame}/{level}/{place}.jpg", response_class=Response)
def get_tile(index: int, frame: int, level: int, place: str, request: Request, desk: AtDesk) -> Response:
    """A tile of a deep-zoom picture; `place` is COLUMN_ROW, level 0 is one pixel."""
    desk.entry(index)
    col, _, row = place.partition("_")
    if not (col.isdecimal() and row.isdecimal() and len(place) < 16):
        raise HTTPException(404, f"{place[:40]!r} is no place of a tile: write COLUMN_ROW")
    try:
        content = desk.pictures.tile(index, frame, level, int(col), int(row))
    except MicrographError as error:
        raise HTTPException(404, str(error)) from None
    kept = _FOREVER if request.query_params.get("v") else _SHORT
    return Response(content, media_type="image/jpeg", headers={"cache-control": kept})


@router.get("/sprites/{page}.jpg", response_class=Response)
def get_sprites(page: int, request: Request, desk: AtDesk) -> Response:
    """A sheet of 8 × 8 thumbnails, in the order of the rows."""
    content = desk.sprites.sheet(page)
    if content is None:
        raise HTTPException(404, f"there is no sheet {page} of thumbnails")
    kept = _FOREVER if request.query_params.get("v") else _SHORT
    return Response(content, media_type="image/jpeg", headers={"cache-control": kept})


@router.get("/report", response_class=Response)
def get_report(desk: AtDesk) -> Response:
    """The report page of the run; it may run its own script and nothing else."""
    path = desk.bench.out / "report.html"
    if not path.is_file() or path.resolve().parent != desk.bench.out.resolve():
        raise HTTPException(404, "the run has no report yet")
    policy = (
        "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        "script-src 'unsafe-inline'"
    )
    headers = {"content-security-policy": policy}
    return Response(path.read_bytes(), media_type="text/html; charset=utf-8", headers=headers)


@router.get("/events", response_class=StreamingResponse)
async def get_events(desk: AtDesk) -> StreamingResponse:
    """Server-sent events: progress, revision, edit, job."""
    first = [("progress", desk.progress or desk.measure_progress())]
    first.append(("revision", {"revision": desk.bench.revision, "items": []}))
    return StreamingResponse(desk.hub.listen(first), media_type="text/event-stream")
