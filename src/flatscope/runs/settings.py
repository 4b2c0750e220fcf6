"""Settings of every verb as plain values: the JSON file, its schema and run.json, all from the verb's dataclasses."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_type_hints

from flatscope.files.border import read_bytes
from flatscope.micrograph import MicrographError
from flatscope.results.table import as_plain as _as_plain
from flatscope.words import WordsError, parse_json

if TYPE_CHECKING:
    from flatscope.electron.defects import DefectParams

Settings = TypeVar("Settings")

RECORD, LOG = "run.json", "log.json"
"""Files of a results folder: what was asked and answered, and what differs from one machine and day to the next."""
_FILES = ("weights", "flatfield")
"""Settings that may name a file: run.json holds its name, log.json beside it where it lies."""


class SettingsError(ValueError):
    """Settings that do not exist or make no sense; the message is one line with the way out."""


def read_settings(path: Path | str, *kinds: type) -> dict[str, Any]:
    """Open a settings file, or a run.json, whose settings are taken.

    Raises
    ------
    SettingsError
        If it is missing, no JSON object, or has an unknown key.
    """
    table = read_json(path)
    if "flatscope" in table and isinstance(table.get("settings"), dict):
        verb = table.get("verb", "another command")
        table = table["settings"] | _find_paths(Path(path), table["settings"])
        known = {entry.name for kind in kinds for entry in fields(kind)}
        strange = sorted(set(table) - known)
        if strange:
            raise SettingsError(
                f"{path}: is the run.json of flatscope {verb}, which has {', '.join(strange)}"
            )
    _refuse_unknown(table, [entry.name for kind in kinds for entry in fields(kind)], where=str(path))
    return table


def _find_paths(record: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Where the files lie that the settings of a run.json name."""
    try:
        paths = read_json(record.with_name(LOG))["settings"]
        return {name: paths[name] for name in paths if Path(paths[name]).name == settings.get(name)}
    except (SettingsError, KeyError, TypeError):
        return {}


def read_json(path: Path | str) -> dict[str, Any]:
    """Open a JSON file that holds an object.

    Raises
    ------
    SettingsError
        If it does not.
    """
    try:
        table = parse_json(read_bytes(Path(path)))
    except MicrographError as error:
        raise SettingsError(str(error)) from None
    except WordsError as error:
        raise SettingsError(f"{path}: {error}") from None
    if not isinstance(table, dict):
        raise SettingsError(
            f'{path}: holds a {type(table).__name__}, not an object like {{"material": "MoS2"}}'
        )
    return table


def make_params(table: Mapping[str, Any], *kinds: type, where: str) -> list[Any]:
    """Check plain values and make the settings of a run.

    Parameters
    ----------
    table
        Names of fields to values, as a JSON file gives them; missing ones take their default.
    kinds
        The dataclasses to make.
    where
        Who is named in an error: a file, or the command line.

    Raises
    ------
    SettingsError
        For a value of the wrong type or outside its range; the message names the key.
    """
    made: list[Any] = []
    for kind in kinds:
        own = {entry.name: table[entry.name] for entry in fields(kind) if entry.name in table}
        if not own:
            made.append(kind())
            continue
        _refuse_unknown_in_nested(own, kind, where)
        # Imported here: it costs 0.1 s that a run without a settings file must not pay.
        from pydantic import TypeAdapter, ValidationError

        try:
            # As JSON, so that 8 passes for 8.0 and a list for a tuple, but "8" does not pass for 8.
            made.append(TypeAdapter(kind).validate_json(json.dumps(own), strict=True))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            message = str(first["msg"]).removeprefix("Value error, ")
            given = f" (given: {_shorten(first['input'])})" if key else ""
            raise SettingsError(f"{where}: {key + ': ' if key else ''}{message}{given}") from None
    return made


def _refuse_unknown_in_nested(table: Mapping[str, Any], kind: type, where: str) -> None:
    """The same check for lists of settings inside settings."""
    hints = get_type_hints(kind)
    for name, value in table.items():
        inner = next((part for part in get_args(hints[name]) if is_dataclass(part)), None)
        if inner is None or not isinstance(value, list):
            continue
        for number, part in enumerate(value):
            if isinstance(part, dict):
                known = [entry.name for entry in fields(inner)]
                _refuse_unknown(part, known, where=f"{where}: {name}[{number}]")


def checked(kind: Callable[..., Settings], **values: Any) -> Settings:
    """Settings of a verb from the command line; a value that has no meaning there is bad input and no bug.

    Raises
    ------
    SettingsError
        With what the settings themselves say about it.
    """
    try:
        return kind(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from None


def choose_crystal(material: str, *, dopants: str = "") -> DefectParams:
    """The crystal of an image whose look is learned.

    Raises
    ------
    SettingsError
        The material is unknown or no dichalcogenide.
    """
    # imported late: settings of light micrographs need no electrons
    from flatscope.electron.defects import DefectParams
    from flatscope.electron.physics.crystals import DICHALCOGENIDES, find_crystal

    known = checked(DefectParams, material=material, dopants=dopants)
    if not find_crystal(known.material).is_dichalcogenide:
        raise SettingsError(f"--material {material}: a look is learned of {', '.join(DICHALCOGENIDES)}")
    return known


def as_plain(*params: Any) -> dict[str, Any]:
    """Settings as `read_settings` reads them back; of a file the name."""
    plain = {name: value for part in params for name, value in _as_plain(part).items()}
    return plain | {name: Path(path).name for name, path in list_paths(*params).items()}


def list_paths(*params: Any) -> dict[str, str]:
    """Settings that name a file by more than a name of shipped weights, and where it lies."""
    given = {name: getattr(part, name, None) for part in params for name in _FILES if hasattr(part, name)}
    return {
        name: os.path.abspath(value)
        for name, value in given.items()
        if isinstance(value, str) and Path(value).suffix and os.path.isfile(value)
    }


def make_schema(title: str, *kinds: type) -> dict[str, Any]:
    """JSON schema of a settings file."""
    from pydantic import TypeAdapter

    merged: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "type": "object",
        "additionalProperties": False,
        "properties": {},
        "$defs": {},
    }
    for kind in kinds:
        schema, words = TypeAdapter(kind).json_schema(), describe(kind)
        for name, entry in schema["properties"].items():
            merged["properties"][name] = {**entry, "description": words.get(name, "")}
        merged["$defs"].update(schema.get("$defs", {}))
    for nested in merged["$defs"].values():
        nested["additionalProperties"] = False
    return merged


def _refuse_unknown(table: Mapping[str, Any], known: list[str], *, where: str) -> None:
    import difflib

    for key in table:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
            raise SettingsError(f"{where}: unknown setting {key!r}: {hint}")


def _shorten(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def describe(kind: type) -> dict[str, str]:
    """Help texts of the fields, from the Parameters sections of the docstrings of a dataclass and its bases."""
    words: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            words |= _describe_own(base)
    return words


def _describe_own(kind: type) -> dict[str, str]:
    section = re.split(r"\n\s*Parameters\n\s*-+\n", kind.__doc__ or "", maxsplit=1)[-1]
    section = re.split(r"\n\s*\w+\n\s*-{3,}\n", section, maxsplit=1)[0]
    names = {entry.name for entry in fields(kind)}
    words: dict[str, list[str]] = {}
    current: list[str] = []
    for line in section.splitlines():
        text = line.strip()
        if text and all(part.strip() in names for part in text.split(",")):
            current = []
            words.update({part.strip(): current for part in text.split(",")})
        elif text:
            current.append(text)
    return {name: " ".join(lines).replace("`", "") for name, lines in words.items()}
