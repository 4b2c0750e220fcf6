"""The shapes of what the page is told and what it says, for the OpenAPI file."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Item(BaseModel):
    """One input of the run."""

    index: int
    name: str
    stem: str
    status: Literal["analysed", "failed", "waiting"]
    reason: str
    notes: list[str]
    n_rows: int
    width: int
    height: int
    n_frames: int
    um_per_px: float | None = None
    nm_per_px: float | None = None


class ColumnInfo(BaseModel):
    """A column of the rows."""

    name: str
    unit: str
    meaning: str
    kind: Literal["text", "number", "count", "flag"]


class RunInfo(BaseModel):
    """What was asked, and what there is."""

    name: str
    verb: str
    flatscope: str
    complete: bool
    running: bool
    revision: int
    settings: dict[str, Any]
    weights: dict[str, Any]
    material: str | None
    items: list[Item]
    columns: list[ColumnInfo]
    table: str
    row_id: str
    sprite_px: int
    can: list[str]
    trouble: str = Field(description="Why corrections cannot be taken here, or nothing.")


class Rows(BaseModel):
    """All rows by column, in the order of interest."""

    revision: int
    item: list[int]
    columns: dict[str, list[Any]]


class MarksOfItem(BaseModel):
    """Where the rows of an item lie, in pixels of the full picture, whole numbers at pixel centres."""

    revision: int
    shape: tuple[int, int]
    kind: Literal["outlines", "points", "paths"]
    ids: list[int]
    rings: list[list[list[float]]] | None = None
    x: list[float] | None = None
    y: list[float] | None = None
    lines: list[list[float]] | None = None
    classes: list[str] | None = None


class Tiles(BaseModel):
    """A deep-zoom picture."""

    width: int
    height: int
    tile_size: int
    levels: int
    n_frames: int
    version: str


class Refusal(BaseModel):
    """Why not, in one line."""

    detail: str


class EditLines(BaseModel):
    """Corrections, each a line of edits.jsonl without who and when."""

    model_config = ConfigDict(extra="forbid")

    lines: list[dict[str, Any]] = Field(min_length=1, max_length=20_000)


class Kept(BaseModel):
    """Corrections that are on the disk."""

    ids: list[str]
    revision: int


class Undone(BaseModel):
    """An undo or a redo; an empty id where there was nothing to do."""

    id: str
    revision: int


class EditEntry(BaseModel):
    """A correction as the file holds it."""

    model_config = ConfigDict(extra="allow")

    id: str
    edit: str
    counts: bool


class Change(BaseModel):
    """What a correction would change of a row."""

    item: int
    id: int
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Preview(BaseModel):
    """What corrections would change; nothing is written."""

    revision: int
    changes: list[Change]
    more: int = Field(description="Pictures that may change, too, and were not looked at.")
    took_s: float
    doubts: list[str] = Field(description="What the optics say against it, one line each.")
