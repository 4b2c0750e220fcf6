"""Answers of a run in the formats of `flatscope.results.exports`, for the command and the page alike."""

from __future__ import annotations

import importlib.util
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from flatscope.results import Table
from flatscope.results.exports import EXPORTS, Export

Tables = Sequence[tuple[str, Mapping[str, Table]]]
"""Stem of an item and its tables, item by item."""


@dataclass(frozen=True)
class Offer:
    """A format that a run can be written in.

    Parameters
    ----------
    format, name
        As a command knows it, and as people do.
    note
        What comes out, or what is missing.
    available
        Whether what it needs is installed.
    """

    format: str
    name: str
    note: str
    available: bool


def list_offers(kind: type[Table]) -> list[Offer]:
    """The formats that hold the answers of a run."""
    return [_offer(export) for export in EXPORTS.values() if issubclass(kind, export.tables)]


def _offer(export: Export) -> Offer:
    scope = "one file" if export.scope == "run" else "one file a picture, in a zip file"
    if export.needs and importlib.util.find_spec(export.needs) is None:
        missing = f"needs {export.needs}: pip install 'flatscope[{export.extra}]'"
        return Offer(export.name, export.title, missing, False)
    return Offer(export.name, export.title, f"{export.suffix}, {scope}", True)


def encode_run(export: Export, answers: Tables) -> list[tuple[str, bytes]]:
    """Names and content of the files of one format; the tables of a run are joined by kind.

    Raises
    ------
    ImportError, ValueError, MicrographError
        As for `Export.encode`.
    """
    if export.scope == "picture":
        return [
            (f"{stem}{export.suffix}", export.encode(table))
            for stem, tables in answers
            for table in tables.values()
        ]
    by_kind: dict[str, list[Table]] = {}
    for _, tables in answers:
        for name, table in tables.items():
            by_kind.setdefault(name, []).append(table)
    return [(f"{name}{export.suffix}", export.encode(tables)) for name, tables in by_kind.items()]


def join_files(name: str, files: Iterable[tuple[str, bytes]]) -> tuple[str, bytes]:
    """One file as it is, several as a zip file of this name; equal files give equal bytes."""
    listed = list(files)
    if len(listed) == 1:
        return listed[0]
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for entry, content in listed:
            archive.writestr(zipfile.ZipInfo(entry), content, zipfile.ZIP_DEFLATED)
    return f"{name}.zip", stream.getvalue()
