"""What the page says: corrections, their preview, undo and redo."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, HTTPException, Request, Response

from flatscope.app.server.desk import AtDesk, Desk, write_json
from flatscope.app.server.models import EditEntry, EditLines, Kept, Preview, Refusal, Undone
from flatscope.runs.edits import Line, read_lines
from flatscope.runs.settings import SettingsError

router = APIRouter(prefix="/api", tags=["correct"])
_REFUSALS: dict[int | str, dict[str, Any]] = {409: {"model": Refusal}, 422: {"model": Refusal}}


@router.get("/edits", response_model=list[EditEntry])
def get_edits(request: Request, desk: AtDesk) -> Response:
    """Every correction of the run, undos too, in the order of the file."""
    listed = [
        {
            "id": line.id,
            "counts": counts,
            "edit": line.edit,
            **line.model_dump(mode="json", exclude_defaults=True),
        }
        for line, counts in desk.bench.list_edits()
    ]
    return write_json(request, listed)


@router.post("/edits", response_model=Kept, responses=_REFUSALS)
def post_edits(said: EditLines, desk: AtDesk) -> dict[str, Any]:
    """Keep corrections: they are on the disk when the answer comes. All of them are taken, or none."""
    lines = _read(desk, said.lines)
    doubts = desk.bench.question(lines)
    if doubts:
        raise HTTPException(409, "; ".join(doubts))
    return {"ids": _keep(desk, lines), "revision": desk.bench.revision}


@router.post("/edits/preview", response_model=Preview, responses=_REFUSALS)
def post_preview(said: EditLines, request: Request, desk: AtDesk) -> Response:
    """What corrections would change; nothing is written."""
    begun = time.perf_counter()
    lines = _read(desk, said.lines)
    try:
        changes, left = desk.bench.preview(lines)
        doubts = desk.bench.question(lines)
    except SettingsError as error:
        raise HTTPException(422, str(error)) from None
    return write_json(
        request,
        {
            "revision": desk.bench.revision,
            "changes": [{"item": c.item, "id": c.id, "before": c.before, "after": c.after} for c in changes],
            "more": left,
            "doubts": doubts,
            "took_s": round(time.perf_counter() - begun, 4),
        },
    )


@router.post("/undo", response_model=Undone)
def post_undo(desk: AtDesk) -> dict[str, Any]:
    """Take back the last correction that counts."""
    return _turn(desk, desk.bench.undo())


@router.post("/redo", response_model=Undone)
def post_redo(desk: AtDesk) -> dict[str, Any]:
    """Bring back what the last undo took back."""
    return _turn(desk, desk.bench.redo())


def _read(desk: Desk, contents: Sequence[dict[str, Any]]) -> list[Line]:
    """Corrections from what the page sent; `known` is about the run's own material unless it says otherwise."""
    material = desk.bench.record.get("settings", {}).get("material")
    own = {"material": material} if material else {}
    whole = [own | content if content.get("edit") == "known" else content for content in contents]
    for content in whole:
        content.pop("who", None)
        content.pop("when", None)
    try:
        return read_lines(whole)
    except ValueError as error:
        raise HTTPException(422, str(error)) from None


def _keep(desk: Desk, lines: Sequence[Line]) -> list[str]:
    try:
        ids = desk.bench.correct(lines)
    except SettingsError as error:
        raise HTTPException(422, str(error)) from None
    desk.tell_edits(ids)
    return ids


def _turn(desk: Desk, line_id: str) -> dict[str, Any]:
    if line_id:
        desk.tell_edits([line_id])
    return {"id": line_id, "revision": desk.bench.revision}
