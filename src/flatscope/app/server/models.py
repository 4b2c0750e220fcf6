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


class Format(BaseModel):
    """A format that the run can be written in."""

    format: str
    name: str
    note: str
    available: bool


class Step(BaseModel):
    """A layer number and its computed contrast in red, green and blue."""

    layers: int
    contrast: tuple[float, float, float]
    sigma: tuple[float, float, float]


class Batch(BaseModel):
    """Pictures that share a set-up, and the ladder of layer numbers under it."""

    items: list[int]
    ladder: list[Step]


class Contrasts(BaseModel):
    """The batches of a run."""

    groups: list[Batch]


class Spot(BaseModel):
    """A place in a picture."""

    model_config = ConfigDict(extra="forbid")

    item: int
    row_px: float = Field(ge=0)
    col_px: float = Field(ge=0)


class Corners(BaseModel):
    """Corners of an outline, rows and columns."""

    corners: list[tuple[float, float]]


class Card(BaseModel):
    """All that is known of one row; pictures as data addresses."""

    row: dict[str, Any]
    neighbours: list[dict[str, Any]]
    crop: str | None = None
    fit: str | None = None
    evidence: str | None = None


class LegendEntry(BaseModel):
    """A class of a map and its colour."""

    name: str
    colour: str


class MapInfo(BaseModel):
    """Unit and range of a map, or its classes."""

    name: str
    unit: str
    low: float
    high: float
    legend: list[LegendEntry]


class IntensityClass(BaseModel):
    """Brightness of the sites of one class."""

    name: str
    sublattice: str
    values: list[float]


class Histogram(BaseModel):
    """Brightness of the sites of an image, by class."""

    classes: list[IntensityClass]
    edges: list[float]


class MovieInfo(BaseModel):
    """Tracks, events and counts of a movie."""

    n_frames: int
    frame_s: float | None
    tracks: list[dict[str, Any]]
    events: list[dict[str, Any]]
    count: dict[str, Any]


class CrystalShape(BaseModel):
    """Outline and fitted corners of a layer, rows and columns."""

    corners: list[tuple[float, float]]
    outline: list[tuple[float, float]]
    angle_deg: float | None


class Twist(BaseModel):
    """Both crystals of a stack and the angle between them."""

    bottom: CrystalShape
    top: CrystalShape
    twist_deg: float | None
    sigma_deg: float | None
    box: tuple[float, float, float, float]


class BothCorners(BaseModel):
    """Corners of both crystals as somebody set them."""

    model_config = ConfigDict(extra="forbid")

    bottom: list[tuple[float, float]] = Field(min_length=3, max_length=6)
    top: list[tuple[float, float]] = Field(min_length=3, max_length=6)


class Direction(BaseModel):
    """Direction of a corner."""

    angle_deg: float


class TwistAngle(BaseModel):
    """The angle that corners make."""

    twist_deg: float
    sigma_deg: float
    bottom: Direction
    top: Direction
