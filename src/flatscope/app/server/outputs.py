"""What leaves the workbench: other formats, figures for print, and the sentences for a methods section."""

from __future__ import annotations

from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, HTTPException, Query, Response
from fastapi.responses import PlainTextResponse

from flatscope.app.server.desk import AtDesk
from flatscope.app.server.models import Format
from flatscope.report.plate import draw_plate
from flatscope.results.exports import find_export
from flatscope.runs.exporting import encode_run, join_files, list_offers
from flatscope.runs.methods import describe_run

router = APIRouter(prefix="/api", tags=["take away"])
_TYPES = {"png": "image/png", "svg": "image/svg+xml"}


@router.get("/export", response_model=list[Format])
def list_exports(desk: AtDesk) -> list[dict[str, Any]]:
    """The formats that hold the answers of this run."""
    kind = desk.bench.kind
    return [] if kind is None else [vars(offer) for offer in list_offers(kind)]


@router.get("/export/{name}", response_class=Response)
def get_export(name: str, desk: AtDesk) -> Response:
    """The run in a format, corrections included: one file, or a zip file of one a picture."""
    bench = desk.bench
    try:
        export = find_export(name)
        answers = [(entry.stem, bench.answers.tables(entry)) for entry in bench.entries if entry.answer]
        files = encode_run(export, answers)
    except (ValueError, ImportError) as error:
        raise HTTPException(404, " ".join(str(error).split())) from None
    title = bench.out.resolve().name
    return _attach(*join_files(f"{title}.{name}", files), "application/octet-stream")


@router.get("/figure/{index}.{kind}", response_class=Response)
def get_figure(
    index: int,
    kind: Literal["png", "svg"],
    desk: AtDesk,
    width_mm: Annotated[float, Query(ge=20.0, le=400.0)] = 85.0,
    frame: Annotated[int, Query(ge=0)] = 0,
) -> Response:
    """A picture with its marks, a scale bar and a legend, at a width in mm."""
    entry = desk.entry(index)
    table = desk.bench.table(index)
    if table is None:
        raise HTTPException(404, f"{entry.name} has no answer yet")
    content = draw_plate(desk.pictures.whole(index, frame), table, width_mm=width_mm, kind=kind)
    return _attach(f"{entry.stem}.{kind}", content, _TYPES[kind])


@router.get("/methods", response_class=PlainTextResponse)
def get_methods(desk: AtDesk) -> str:
    """What a paper says of the run."""
    return describe_run(desk.bench)


def _attach(name: str, content: bytes, media_type: str) -> Response:
    disposition = f"attachment; filename*=UTF-8''{quote(name)}"
    headers = {"content-disposition": disposition, "content-security-policy": "default-src 'none'; sandbox"}
    return Response(content, media_type=media_type, headers=headers)
