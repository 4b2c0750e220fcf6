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


_ASKED = ("material",)
"""Settings that nobody can guess: commands ask for them."""


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
                default = "" if entry.name in _ASKED else show_default(entry)
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
    made = make_params(read_table(options, *kinds), *kinds, where=_name_source(options))
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


def ask(options: Mapping[str, Any], *kinds: type) -> None:
    """Refuse a call without a setting that has no sensible default.

    Raises
    ------
    click.UsageError
        If neither a flag nor a settings file nor a profile states one of `_ASKED`; it names the choices.
    """
    table = read_table(options, *kinds)
    for kind in kinds:
        for entry, _, words in list_flags(kind):
            if entry.name in _ASKED and entry.name not in table and options.get(entry.name) is None:
                raise click.UsageError(f"Missing option '--{entry.name}': {words.split('.')[0]}")


def _name_source(options: Mapping[str, Any]) -> str:
    """Where settings come from that make no sense."""
    return str(options.get("settings_file") or f"set-up {options.get('setup')}")


def read_table(options: Mapping[str, Any], *kinds: type) -> dict[str, Any]:
    """What a profile and a settings file say, the file above the profile; flags beat both.

    Raises
    ------
    SettingsError
        If one of them cannot be read or has an unknown setting.
    """
    table: dict[str, Any] = {}
    if options.get("setup"):
        from flatscope.runs.profiles import read_profile

        table |= read_profile(options["setup"]).list_settings(*kinds, material=options.get("material"))
    source = options.get("settings_file")
    return table if source is None else table | read_settings(source, *kinds)


def show_default(entry: Field[Any]) -> str:
    """The default of a field as help text shows it."""
    if entry.default is MISSING or entry.default is None or entry.default == ():
        return ""
    return f"{entry.default:g}" if isinstance(entry.default, float) else str(entry.default)
