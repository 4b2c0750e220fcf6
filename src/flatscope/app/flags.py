"""Flags of every command, from its dataclasses of settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import click

from flatscope.files.indices import read_indices
from flatscope.runs.settings import SettingsError, describe, make_params, read_settings


class _Numbers(click.ParamType[Any]):
    """A list of numbers on the command line, such as -3,2,7."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A tuple of floats."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).replace(",", " ").split())
        except ValueError:
            self.fail(f"{value!r}: give numbers, such as -3,2,7", param, ctx)


class _IndexFile(click.ParamType[Any]):
    """A file of refractive indices; the settings hold its numbers, so that a run does not depend on the file."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Rows of wavelength in nm, n and k."""
        return value if isinstance(value, tuple) else read_indices(value)


_TYPES: dict[Any, click.ParamType[Any]] = {
    tuple[float, ...]: _Numbers(),
    tuple[tuple[float, float, float], ...]: _IndexFile(),
}


def list_flags(kind: type) -> list[tuple[Field[Any], Any, str]]:
    """Fields of a settings dataclass that fit on a command line, with their type and help text.

    Returns
    -------
    (field, type for click, help from the class's docstring); nested settings are left out.
    """
    hints, words = get_type_hints(kind), describe(kind)
    flags: list[tuple[Field[Any], Any, str]] = []
    for entry in fields(kind):
        hint = hints[entry.name]
        if hint in _TYPES:
            flags.append((entry, _TYPES[hint], words.get(entry.name, "")))
            continue
        plain = [part for part in get_args(hint) or (hint,) if part in (str, int, float, bool)]
        if get_origin(hint) is Literal:
            flags.append((entry, click.Choice(get_args(hint)), words.get(entry.name, "")))
        elif plain and Ellipsis not in get_args(hint):
            flags.append((entry, plain[0], words.get(entry.name, "")))
    return flags


def settings_options(*kinds: type) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add a flag for every setting of these dataclasses to a command, and `--settings` for a file of them."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        command = click.option(
            "--settings",
            "settings_file",
            type=click.Path(path_type=Path),
            help="JSON file with settings (see: flatscope schema), or the run.json of an earlier run. Flags beat it.",
        )(command)
        for kind in reversed(kinds):
            for entry, value_type, words in reversed(list_flags(kind)):
                default = show_default(entry)
                words += f"  [default: {default}]" if default else ""
                flag = "--" + entry.name.replace("_", "-")
                # No default for click, so that only what was given beats the settings file.
                if value_type is bool:
                    option = click.option(flag, entry.name, is_flag=True, default=None, help=words)
                else:
                    option = click.option(flag, entry.name, type=value_type, default=None, help=words)
                command = option(command)
        return command

    return add


def gather(options: Mapping[str, Any], *kinds: type) -> list[Any]:
    """Settings from the file and the flags of a command, one object a dataclass.

    Parameters
    ----------
    options
        What click collected, `settings_file` among it.
    kinds
        The dataclasses that `settings_options` was given.

    Raises
    ------
    SettingsError
        If one is unknown, no number, or makes no sense.
    """
    source = options.get("settings_file")
    table = {} if source is None else read_settings(source, *kinds)
    made = make_params(table, *kinds, where=str(source))
    gathered = []
    for params in made:
        flags = {
            entry.name: options[entry.name]
            for entry, _, _ in list_flags(type(params))
            if options.get(entry.name) is not None
        }
        for name, value in flags.items():
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise SettingsError(f"--{name.replace('_', '-')} {value} is no number to work with")
        try:
            gathered.append(replace(params, **flags))
        except ValueError as error:
            raise SettingsError(f"command line: {error}") from None
    return gathered


def show_default(entry: Field[Any]) -> str:
    """The default of a field as help text shows it."""
    if entry.default is MISSING or entry.default is None or entry.default == ():
        return ""
    return f"{entry.default:g}" if isinstance(entry.default, float) else str(entry.default)
