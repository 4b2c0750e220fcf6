"""Where each item of an open run stands, and its rows and tables: stored ones are read, others are made in memory.

Where corrections or new items make a stored answer old, the light half of the task is done again, by the functions that
`Run` calls. The heavy half is never repeated.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from flatscope.micrograph import MicrographError
from flatscope.results import TABLES, Table
from flatscope.results.store import StoreError, read_part
from flatscope.runs.folder import Folder
from flatscope.runs.reopen import Reopened, find_sources, reopen
from flatscope.runs.settings import SettingsError
from flatscope.runs.task import Answer, Task, load, name_answer, name_corrections

_TABLES_KEPT = 48
"""Whole tables, label images included, that stay in memory: a table of a large picture takes 30 MB."""
_HEAVY_PARTS_KEPT = 16
"""Heavy parts that stay in memory where they cannot be made lighter."""
_KINDS = {kind.NAME: kind for kind in TABLES}
_VERB_TABLES = {
    "flakes": ("flakes",),
    "twist": ("twist",),
    "atoms": ("columns",),
    "moire": ("moire",),
    "defects": ("defects", "tracks"),
}
"""Tables that the answers of a verb hold; which one depends on the input."""


@dataclass(frozen=True)
class Entry:
    """Where one item stands.

    Parameters
    ----------
    index
        Its place among the items.
    name, stem
        In tables, and of its files.
    sources
        The files it came from; none where they are gone.
    sha256
        Of the first of them.
    key
        Of its heavy part.
    status
        "analysed", "failed" or "waiting".
    reason
        Why it failed.
    notes, facts
        As run.json has them.
    answer
        Name of its answer as it stands; equal names hold equal answers. "" where there is none.
    is_stored
        Whether the folder holds that answer; otherwise it is made in memory.
    shared
        What the answer takes from all items together.
    """

    index: int
    name: str
    stem: str
    sources: tuple[Path, ...]
    sha256: str
    key: str
    status: str
    reason: str = ""
    notes: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    answer: str = ""
    is_stored: bool = False
    shared: Any = None


class Recent:
    """The last values that were asked for, by name; threads may share it.

    Parameters
    ----------
    most
        Number of values kept.
    """

    def __init__(self, most: int) -> None:
        self._most, self._kept, self._lock = most, OrderedDict[Any, Any](), threading.Lock()

    def get(self, name: Any, make: Callable[[], Any]) -> Any:
        """The value of that name, made if it is not there."""
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        value = make()
        with self._lock:
            self._kept[name] = value
            while len(self._kept) > self._most:
                self._kept.popitem(last=False)
        return value


class Answers:
    """The answers of an open run.

    Parameters
    ----------
    out
        The results folder.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.folder = Folder(out)
        self._reopened: Reopened | None = None
        self._tables, self._parts = Recent(_TABLES_KEPT), Recent(_HEAVY_PARTS_KEPT)
        self._light: dict[str, Any] = {}
        self._is_recalled = False
        self._frames: dict[str, pd.DataFrame] = {}

    @property
    def record(self) -> Mapping[str, Any]:
        """run.json; empty before the first item of a run is finished."""
        return self.folder.record or {}

    @property
    def verb(self) -> str:
        """Name of the command that made the run."""
        return str(self.record.get("verb", ""))

    def reload(self) -> None:
        """Read run.json again, which another process has written."""
        self.folder, self._reopened = Folder(self.out), None

    # --- where the items stand ---------------------------------------------------------------------------------------

    def stand(self, lines: tuple[str, ...]) -> tuple[Entry, ...]:
        """The items as they stand under some corrections.

        Parameters
        ----------
        lines
            Of `edits.jsonl`, those that change answers.

        Raises
        ------
        SettingsError
            If the run cannot be taken up again here; `stand_stored` tells what is stored all the same.
        """
        record, entries = self.record, self.stand_stored()
        is_current = record.get("complete", False) and self.corrections == name_corrections(lines)
        return self._follow(entries, lines) if record and not is_current else entries

    @property
    def corrections(self) -> str:
        """Name of the corrections that the stored answers follow."""
        return str(self.record.get("corrections", ""))

    def stand_stored(self) -> tuple[Entry, ...]:
        """The items as run.json has them."""
        stored = self.folder.stored()
        return tuple(
            Entry(
                index,
                item["name"],
                item["stem"],
                find_sources(self.folder, item),
                item["sha256"][0] if item["sha256"] else "",
                item["key"],
                "waiting" if item["status"] == "not analysed" else item["status"],
                item.get("reason", ""),
                tuple(item.get("notes", ())),
                item.get("facts", {}),
                item.get("answer", ""),
                item.get("answer", "") in stored,
            )
            for index, item in enumerate(self.record.get("items", ()))
        )

    def _follow(self, entries: Sequence[Entry], lines: tuple[str, ...]) -> tuple[Entry, ...]:
        """Items whose answers follow corrections, and items that are finished but not in run.json yet."""
        task, stored = self.find_task(lines), self.folder.stored()
        able = [entry for entry in entries if entry.key in stored and entry.status != "failed"]
        shared: Mapping[str, Any] = {}
        if task.together is not None and able:
            self._recall(entries, task)
            parts = {entry.name: self._loader(entry, task) for entry in able}
            shared = task.together(parts, task.given)
        followed = list(entries)
        for entry in able:
            own = shared.get(entry.name)
            answer = name_answer(entry.key, own)
            is_stored = answer == entry.answer and answer in stored
            followed[entry.index] = replace(
                entry, status="analysed", answer=answer, is_stored=is_stored, shared=own
            )
        return tuple(followed)

    def _recall(self, entries: Sequence[Entry], task: Task) -> None:
        """Spare `together` what it found before, once a start."""
        if task.recall is None or self._is_recalled:
            return
        self._is_recalled = True
        for entry in entries:
            if entry.is_stored:
                shared = self.shared(entry)
                if shared is not None:
                    task.recall(shared, task.given)

    def find_task(self, lines: tuple[str, ...] = ()) -> Task:
        """The task under some corrections.

        Raises
        ------
        SettingsError
            If the run cannot be taken up again here.
        """
        if self._reopened is None:
            self._reopened = reopen(self.folder)
        return self._reopened.task.with_edits(lines)

    def warm(self, entries: Collection[Entry]) -> None:
        """Read the heavy parts that corrections will need, and compute once what all their answers share.

        Raises
        ------
        SettingsError
            If the run cannot be taken up again here.
        """
        task = self.find_task()
        stored = [entry for entry in entries if entry.is_stored]
        self._recall(stored, task)
        for entry in stored if task.lighten is not None else ():
            self._loader(entry, task)()
        if stored and task.list_rows is not None and self._reopened is not None:
            entry = stored[0]
            item, shared = self._reopened.items[entry.index], self.shared(entry)
            if shared is not None:
                task.list_rows(item, self.part(entry), shared, task.given)

    def part(self, entry: Entry) -> Any:
        """The heavy part of an item.

        Raises
        ------
        MicrographError
            If it is damaged.
        SettingsError
            If the run cannot be taken up again here.
        """
        return self._loader(entry, self.find_task())()

    def _loader(self, entry: Entry, task: Task) -> Callable[[], Any]:
        path, key = self.folder.item_path(entry.key), entry.key

        def load_light() -> Any:
            if key not in self._light:
                assert task.lighten is not None
                self._light[key] = task.lighten(load(path, task.kinds))
            return self._light[key]

        if task.lighten is not None:
            return load_light
        return lambda: self._parts.get(key, lambda: load(path, task.kinds))

    # --- what they hold ----------------------------------------------------------------------------------------------

    def name_table(self, entry: Entry) -> str:
        """Name of the table of an item."""
        names = _VERB_TABLES[self.verb]
        if len(names) == 1:
            return names[0]
        if not entry.is_stored:
            return next(iter(self.tables(entry)))
        return names[1] if "rates" in entry.facts else names[0]

    def find_kind(self, entries: Sequence[Entry]) -> type[Table] | None:
        """The table that the rows of the run are of: that of the first answer."""
        for entry in entries:
            if entry.answer:
                return _KINDS[self.name_table(entry)]
        names = _VERB_TABLES.get(self.verb, ())
        return _KINDS[names[0]] if names else None

    def tables(self, entry: Entry) -> Mapping[str, Table]:
        """The tables of an answer, by name; none where there is no answer."""
        if not entry.answer:
            return {}
        tables: Mapping[str, Table] = self._tables.get(entry.answer, lambda: self._make_tables(entry))
        return tables

    def _make_tables(self, entry: Entry) -> Mapping[str, Table]:
        if entry.is_stored:
            stored: Mapping[str, Table] = self.read(entry, "tables")
            return stored
        task = self.find_task()
        assert task.tabulate is not None and self._reopened is not None
        return task.tabulate(self._reopened.items[entry.index], self.part(entry), entry.shared, task.given)

    def has_rows(self, entry: Entry) -> bool:
        """Whether the rows are at hand."""
        return not entry.answer or entry.answer in self._frames

    def rows(self, entry: Entry) -> pd.DataFrame:
        """The rows of one item."""
        rows = self._frames.get(entry.answer)
        if rows is None:
            rows = self._frames[entry.answer] = self._make_rows(entry)
        return rows

    def _make_rows(self, entry: Entry) -> pd.DataFrame:
        if entry.is_stored:
            stored: pd.DataFrame = self.read(entry, "tables", self.name_table(entry), "frame")
            return stored
        task = self.find_task()
        if task.list_rows is None or self._reopened is None:
            return next(iter(self.tables(entry).values())).frame
        return task.list_rows(self._reopened.items[entry.index], self.part(entry), entry.shared, task.given)

    def shared(self, entry: Entry) -> Any:
        """What the answer of an item took from all items together; None where nobody kept it."""
        if entry.shared is not None or not entry.is_stored:
            return entry.shared
        try:
            return self.read(entry, "shared")
        except KeyError:  # stored before answers kept it
            return None

    def figure(self, entry: Entry, caption: str) -> bytes:
        """A picture of a stored answer; nothing where there is none."""
        if not entry.is_stored:
            return b""
        try:
            return bytes(self.read(entry, "figures", caption))
        except KeyError:
            return b""

    def read(self, entry: Entry, *steps: str) -> Any:
        """A part of a stored answer.

        Raises
        ------
        KeyError
            If there is no such part.
        MicrographError
            If the answer is damaged.
        """
        path = self.folder.item_path(entry.answer)
        try:
            return read_part(path, *steps, kinds=(Answer,))
        except (OSError, StoreError) as error:
            raise MicrographError(f"{path.name} {error}: run flatscope {self.verb} again") from None


__all__ = ["Answers", "Entry", "Recent", "SettingsError"]
