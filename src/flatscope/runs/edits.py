"""What users know better: one line of `edits.jsonl` for each correction, replayed at every start.

The file lies beside the results and only grows: an undo is another line. Each line says who corrected what and when,
and what stood there before. Lines name places in a picture, since the numbers of regions change with every
segmentation.
"""

from __future__ import annotations

import contextlib
import datetime
import getpass
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from flatscope.files.write import WriteError

EDITS = "edits.jsonl"
_LAYERS = r"^(thin|thick|([1-9]|10)(\|([1-9]|10|thick))*)$"
_Pixel = Annotated[float, Field(ge=0)]
_Corner = tuple[_Pixel, _Pixel]
"""Row and column."""


class Line(BaseModel):
    """What every correction says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    edit: str
    who: str = ""
    when: str = ""
    before: dict[str, Any] = {}

    @property
    def id(self) -> str:
        """What an undo calls this line: a digest of all that it says."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """The line as it stands in the file."""
        plain = {"edit": self.edit, **self.model_dump(mode="json", exclude_defaults=True)}
        return json.dumps(plain, ensure_ascii=False)

    def says_the_same(self, other: Line) -> bool:
        """Whether two lines differ only in who said it, when, and what stood there before."""
        about = {"who", "when", "before"}
        return type(self) is type(other) and self.model_dump(exclude=about) == other.model_dump(exclude=about)


class Place(Line):
    """A place in a picture, by its name in the run; the digest of its file, if given, says if it is still the same."""

    image: str
    sha256: str = ""
    row_px: _Pixel
    col_px: _Pixel

    def is_in(self, image: str, sha256: str) -> bool:
        """Whether the place lies in that picture."""
        return self.image == image and self.sha256 in ("", sha256)

    def describe(self) -> str:
        """The place as `--known` takes it."""
        return f"{self.image}@{self.row_px:g},{self.col_px:g}"


class Known(Place):
    """The crystal at this place has that many layers, by its height if one is given; all others follow."""

    edit: Literal["known"] = "known"
    material: str
    layers: Annotated[int, Field(ge=1, le=10_000)]
    height_nm: Annotated[float, Field(gt=0, lt=1e4)] | None = None
    contrast: tuple[float, float, float] | None = None
    trust: bool = False


class KnownColour(Line):
    """Crystals of this contrast have that many layers, as a file given to `--calibrate` says."""

    edit: Literal["known_colour"] = "known_colour"
    material: str
    layers: Annotated[int, Field(ge=1, le=10)]
    contrast: tuple[float, float, float]
    trust: bool = False


class SetLayers(Place):
    """The region at this place has that many layers, whatever the optics say of it."""

    edit: Literal["layers"] = "layers"
    layers: Annotated[str, Field(pattern=_LAYERS)]


class Residue(Place):
    """The region at this place is no crystal."""

    edit: Literal["residue"] = "residue"


class Restore(Place):
    """The region at this place is a crystal though it was rejected; the optics count its layers."""

    edit: Literal["restore"] = "restore"


class PixelSize(Line):
    """Pixel size of one picture, or of all without a pixel size of their own."""

    edit: Literal["pixel_size"] = "pixel_size"
    image: str = ""
    um_per_px: Annotated[float, Field(gt=0, lt=1e4)]


class Split(Place):
    """The region at this place is two, divided along a line of corners."""

    edit: Literal["split"] = "split"
    line: Annotated[tuple[_Corner, ...], Field(min_length=2)]


class Merge(Place):
    """The region at this place and those at other places are one."""

    edit: Literal["merge"] = "merge"
    others: Annotated[tuple[_Corner, ...], Field(min_length=1)]


class Outline(Line):
    """A region with this outline; `layers` of "" takes its pixels away from whatever lies there."""

    edit: Literal["outline"] = "outline"
    image: str
    sha256: str = ""
    corners: Annotated[tuple[_Corner, ...], Field(min_length=3)]
    layers: Annotated[str, Field(pattern=rf"^$|{_LAYERS}")] = ""


class Remark(Place):
    """A star or a note at a place; it changes no answer."""

    edit: Literal["remark"] = "remark"
    star: bool = False
    note: str = ""


class Undo(Line):
    """Take back the line with this `id`; taking back an undo brings the line back."""

    edit: Literal["undo"] = "undo"
    of: str


KINDS = (
    *(Known, KnownColour, SetLayers, Residue, Restore, PixelSize),
    *(Split, Merge, Outline, Remark, Undo),
)
"""Every kind of correction there is."""
Edit = Annotated[
    Known | KnownColour | SetLayers | Residue | Restore | PixelSize | Split | Merge | Outline | Remark | Undo,
    Field(discriminator="edit"),
]
_READER: TypeAdapter[Line] = TypeAdapter(Edit)
Kind = TypeVar("Kind", bound=Line)


@dataclass(frozen=True)
class Edits:
    """The corrections of a run that count, in their order.

    Parameters
    ----------
    lines
        Without those that were taken back.
    problems
        Lines that could not be read or are not replayed, one line of text each.
    taken_back
        Lines that do not count any more.
    """

    lines: tuple[Line, ...] = ()
    problems: tuple[str, ...] = ()
    taken_back: tuple[Line, ...] = ()

    def of(self, kind: type[Kind]) -> list[Kind]:
        """The corrections of a kind."""
        return [line for line in self.lines if isinstance(line, kind)]

    def about(self, image: str) -> tuple[Line, ...]:
        """The corrections of one picture, and of all pictures alike."""
        return tuple(line for line in self.lines if getattr(line, "image", None) in (image, ""))

    def list_lines(self) -> tuple[str, ...]:
        """The corrections that change answers, as lines of the file; a remark changes none."""
        return tuple(line.to_json() for line in self.lines if not isinstance(line, Remark))

    def with_lines(self, fresh: Sequence[Line]) -> Edits:
        """These and further corrections."""
        return replace(self, lines=(*self.lines, *fresh))


def read_edits(folder: Path) -> Edits:
    """Read the corrections of a results folder; a line that makes no sense is told, and stays in the file."""
    path = folder / EDITS
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return Edits()
    except (OSError, ValueError) as error:
        return Edits(problems=(f"{path}: cannot be read ({error}): its corrections do not count",))
    lines: list[Line] = []
    problems: list[str] = []
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            lines.append(_READER.validate_json(content))
        except ValidationError as error:
            problems.append(f"{path}: line {number} is left out: {_explain(error)}")
    kept = take_back(lines)
    gone = tuple(line for line in lines if line not in kept)
    return Edits(tuple(kept), tuple(problems), gone)


def list_edits(folder: Path) -> list[tuple[Line, bool]]:
    """Every line of a folder's corrections that makes sense, undos too, and whether it counts."""
    try:
        text = (folder / EDITS).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return []
    lines: list[Line] = []
    for content in filter(str.strip, text.split("\n")):
        with contextlib.suppress(ValidationError):
            lines.append(_READER.validate_json(content))
    return list(zip(lines, _find_counting(lines), strict=True))


def parse_edits(lines: Iterable[str]) -> Edits:
    """Corrections from lines that are sound and count."""
    return Edits(tuple(_READER.validate_json(line) for line in lines))


def append_edits(folder: Path, lines: Iterable[Line]) -> None:
    """Add corrections to the file of a results folder; each line reaches the disk whole.

    Raises
    ------
    WriteError
        If the file cannot be written.
    """
    content = "".join(line.to_json() + "\n" for line in lines)
    if not content:
        return
    path = folder / EDITS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Several tabs and commands append to one file: one write a call, at the end whoever wrote before.
        with open(path, "ab", buffering=0) as stream:
            if stream.tell() and not path.read_bytes().endswith(b"\n"):
                content = "\n" + content  # a line that a kill cut off spoils no other
            stream.write(content.encode())
            os.fsync(stream.fileno())
    except OSError as error:
        raise WriteError.of(error, path, len(content)) from error


def sign(line: Kind) -> Kind:
    """The line with who says it and when."""
    try:
        who = getpass.getuser()
    except (OSError, KeyError, ImportError):
        who = ""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    return line.model_copy(update={"who": who, "when": now})


def keep_new(fresh: Iterable[Line], edits: Edits, *, ever: bool = False) -> list[Line]:
    """Those corrections that no line says already; `ever` counts lines that were taken back, too."""
    kept: list[Line] = []
    said = (*edits.lines, *edits.taken_back) if ever else edits.lines
    for line in fresh:
        if not any(line.says_the_same(other) for other in (*said, *kept)):
            kept.append(line)
    return kept


def take_back(lines: Sequence[Line]) -> list[Line]:
    """The lines that count, without the undos."""
    counts = _find_counting(lines)
    return [
        line for line, counted in zip(lines, counts, strict=True) if counted and not isinstance(line, Undo)
    ]


def read_lines(contents: Iterable[Any]) -> list[Line]:
    """Corrections from plain objects, such as a page sends them.

    Raises
    ------
    ValueError
        If one makes no sense; the message says which and why, in one line.
    """
    lines: list[Line] = []
    for number, content in enumerate(contents, start=1):
        try:
            lines.append(_READER.validate_python(content, strict=False))
        except ValidationError as error:
            raise ValueError(f"correction {number}: {_explain(error)}") from None
    return lines


def _find_counting(lines: Sequence[Line]) -> list[bool]:
    """Which lines count: an undo takes back the last line of its id before it."""
    counts = [True] * len(lines)
    for number in reversed(range(len(lines))):
        line = lines[number]
        if isinstance(line, Undo) and counts[number]:
            before = [place for place in range(number) if lines[place].id == line.of and counts[place]]
            if before:
                counts[before[-1]] = False
    return counts


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part != first["loc"][0]) or str(
        first["loc"][0] if first["loc"] else ""
    )
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{where}: {message}" if where else message


def make_schema() -> dict[str, Any]:
    """JSON schema of a line of `edits.jsonl`."""
    schema = _READER.json_schema()
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of edits.jsonl",
        **schema,
    }
