"""Take up a run from its folder alone: the task with its settings, and the items with the files they came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flatscope.micrograph import MicrographError
from flatscope.runs.edits import read_edits
from flatscope.runs.folder import Folder
from flatscope.runs.items import Item, digest_of, make_key
from flatscope.runs.run import Run
from flatscope.runs.settings import RECORD, SettingsError, make_params, read_settings
from flatscope.runs.task import Task

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Reopened:
    """A run as its folder knows it.

    Parameters
    ----------
    task
        What was done, under the settings of the folder.
    items
        With what, each with the file that it came from.
    """

    task: Task
    items: tuple[Item, ...]


def find_sources(folder: Folder, entry: Record) -> tuple[Path, ...]:
    """The files that an item of run.json came from, by content; none that was moved or changed since.

    Parameters
    ----------
    folder
        The results folder, whose log.json knows the paths.
    entry
        The item in run.json.
    """
    known = folder.log["inputs"]
    found = []
    for name, digest in zip(entry["inputs"], entry["sha256"], strict=False):
        alike = [path for path, facts in known.items() if facts[2] == digest and digest]
        alike.sort(key=lambda path: os.path.basename(path) != name)
        here = next((path for path in map(Path, alike) if path.is_file()), None)
        if here is None:
            return ()
        found.append(here)
    return tuple(found)


def reopen(folder: Folder, edits: Sequence[str] = ()) -> Reopened:
    """Make the task and the items of a run again.

    Parameters
    ----------
    folder
        With a run.json.
    edits
        Corrections by hand that count, as lines of `edits.jsonl`.

    Raises
    ------
    SettingsError
        If this version of flatscope would do something else, or an input is gone; the message says what.
    """
    record = folder.record
    if record is None:
        raise SettingsError(f"{folder.out} holds no run")
    verb = record["verb"]
    if verb not in _PLANS:
        raise SettingsError(f"{folder.out} holds a run of flatscope {verb}, which is not taken up again")
    items = []
    for entry in record["items"]:
        sources = find_sources(folder, entry)
        if not sources and entry["status"] != "failed":
            raise SettingsError(f"{entry['name']} is not where it was: its picture was moved or changed")
        items.append(Item(entry["name"], entry["stem"], sources))
    try:
        made = _PLANS[verb](folder, record, items)
    except (MicrographError, ValueError) as error:
        raise SettingsError(" ".join(str(error).split())) from None
    asked = made.task.asked
    for name, value in asked.items():
        if record[name] != value and not (name == "settings" and _is_one_by_one(record)):
            raise SettingsError(
                f"{folder.out} was made with other {name} than this flatscope has: start it again"
            )
    return Reopened(made.task.with_edits(tuple(edits)), made.items)


class _Quiet:
    """Hears what happens in a run and tells nobody."""

    def stage(self, name: str, total: int) -> None:
        """Nobody is told."""

    def done(self, *, failed: bool) -> None:
        """Nobody is told."""

    def count(self, done: int, total: int) -> None:
        """Nobody is told."""

    def say(self, line: str) -> None:
        """Nobody is told."""


def bring_up_to_date(out: Path) -> None:
    """Do what is left to do in a results folder: unfinished items, and what follows from new corrections.

    The same command would do the same.

    Raises
    ------
    SettingsError
        As for `reopen`, or if another process is at work in the folder.
    WriteError
        If something cannot be written.
    """
    folder = Folder(out)
    reopened = reopen(folder, read_edits(out).list_lines())
    if check_keys(reopened, folder.record or {}):
        Run(reopened.task, reopened.items, folder, workers=1, reporter=_Quiet()).work()


def check_keys(reopened: Reopened, record: Record) -> bool:
    """Whether the items have the keys that run.json states, so that their stored parts still hold."""
    identity = digest_of({**reopened.task.asked, "settings": record["settings"]})
    return all(
        entry["status"] == "failed" or make_key(item, identity, entry["sha256"]) == entry["key"]
        for item, entry in zip(reopened.items, record["items"], strict=True)
    )


def _read(folder: Folder, *kinds: type) -> list[Any]:
    path = folder.out / RECORD
    return make_params(read_settings(path, *kinds), *kinds, where=str(path))


def _is_one_by_one(record: Record) -> bool:
    """Whether every item has settings of its own, as in the demonstration."""
    return set(record["settings"]) == {entry["stem"] for entry in record["items"]}


def _plan_flakes(folder: Folder, record: Record, items: list[Item]) -> Reopened:
    from flatscope.optical.flakes import FlakeParams
    from flatscope.runs.flakes import Given, make_task, plan
    from flatscope.runs.light import LightParams, choose_light

    kinds = (FlakeParams, LightParams)
    if not _is_one_by_one(record):
        params, light = _read(folder, *kinds)
        params, flat = choose_light(
            params, light.flatfield, [path for item in items for path in item.sources]
        )
        return Reopened(plan(Given(params, light, flat), items), tuple(items))
    where = str(folder.out / RECORD)
    made = [make_params(record["settings"][item.stem], *kinds, where=where) for item in items]
    own = [replace(item, given=Given(*params)) for item, params in zip(items, made, strict=True)]
    shared = Given(FlakeParams(), LightParams(weights=made[0][1].weights))
    task = make_task(shared, settings=dict(record["settings"]), title="Flakes in synthetic micrographs")
    return Reopened(task, tuple(own))


def _plan_twist(folder: Folder, record: Record, items: list[Item]) -> Reopened:
    from flatscope.optical.twist import TwistParams
    from flatscope.runs.twist import PictureParams, make_task

    return Reopened(make_task(*_read(folder, TwistParams, PictureParams)), tuple(items))


def _plan_atoms(folder: Folder, record: Record, items: list[Item]) -> Reopened:
    from flatscope.electron.columns import ColumnParams
    from flatscope.runs.atoms import ImageParams, make_task

    return Reopened(make_task(*_read(folder, ColumnParams, ImageParams)), tuple(items))


def _plan_moire(folder: Folder, record: Record, items: list[Item]) -> Reopened:
    from flatscope.electron.moire import MoireParams
    from flatscope.runs.moire import ScanParams, make_task

    return Reopened(make_task(*_read(folder, MoireParams, ScanParams)), tuple(items))


def _plan_defects(folder: Folder, record: Record, items: list[Item]) -> Reopened:
    from flatscope.electron.tracks import TrackParams
    from flatscope.runs.defects import ImageParams, make_task

    return Reopened(make_task(*_read(folder, TrackParams, ImageParams), threads=1), tuple(items))


_PLANS: dict[str, Callable[[Folder, Record, list[Item]], Reopened]] = {
    "flakes": _plan_flakes,
    "twist": _plan_twist,
    "atoms": _plan_atoms,
    "moire": _plan_moire,
    "defects": _plan_defects,
}
