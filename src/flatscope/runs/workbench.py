"""A run that stays open: its rows and marks as they stand, while items are added and corrections come in.

What an answer is, the run decides: stored answers are read, and where corrections or new items make them old, the
light half of the task is done again in memory, by the functions that `Run` calls. The heavy half is never repeated.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flatscope.micrograph import MicrographError
from flatscope.results import TABLES, Table
from flatscope.results.store import StoreError, read_part
from flatscope.runs.edits import (
    EDITS,
    KINDS,
    WAITING,
    Edits,
    Line,
    Remark,
    Undo,
    append_edits,
    list_edits,
    read_edits,
    sign,
)
from flatscope.runs.folder import Folder
from flatscope.runs.reopen import Reopened, find_sources, reopen
from flatscope.runs.settings import LOG, RECORD, SettingsError
from flatscope.runs.task import Answer, Task, load, name_answer, name_corrections
from flatscope.units import nm_from_um

_TABLES_KEPT = 48
"""Whole tables, label images included, that stay in memory: a table of a large picture takes 30 MB."""
_PARTS_KEPT = 64
"""Heavy parts that stay in memory."""
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


class _Recent:
    """The last values that were asked for, by name."""

    def __init__(self, most: int) -> None:
        self._most, self._kept = most, OrderedDict[str, Any]()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        value = make()
        self._kept[name] = value
        while len(self._kept) > self._most:
            self._kept.popitem(last=False)
        return value


class Workbench:
    """An open run.

    Parameters
    ----------
    out
        The results folder.

    Raises
    ------
    SettingsError
        If the folder holds no run of this version.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.revision = 0
        self.entries: tuple[Entry, ...] = ()
        self.edits = Edits()
        self.trouble = ""
        self.folder = Folder(out)
        self._lock = threading.RLock()
        self._seen: Any = None
        self._reopened: Reopened | None = None
        self._tables, self._parts = _Recent(_TABLES_KEPT), _Recent(_PARTS_KEPT)
        self._frames: dict[str, pd.DataFrame] = {}
        self._sizes: dict[str, float | None] = {}
        self._joined: tuple[int, pd.DataFrame] | None = None
        self.refresh()

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def record(self) -> Mapping[str, Any]:
        """run.json; empty before the first item of a run is finished."""
        return self.folder.record or {}

    @property
    def verb(self) -> str:
        """Name of the command that made the run."""
        return str(self.record.get("verb", ""))

    @property
    def kind(self) -> type[Table] | None:
        """The table that the rows are of."""
        names = _VERB_TABLES.get(self.verb, ())
        for entry in self.entries:
            if entry.answer:
                return _KINDS[self._name_table(entry)]
        return _KINDS[names[0]] if names else None

    def refresh(self) -> list[int]:
        """Look whether the folder has changed: new items, answers or corrections.

        Returns
        -------
        Places of the items whose rows are others now; `revision` has grown if there are any.
        """
        with self._lock:
            seen = self._look()
            if seen == self._seen:
                return []
            if self._seen is None or seen[:2] != self._seen[:2]:
                self.folder = Folder(self.out)
                self._reopened = None
            self._seen = seen
            self.edits = read_edits(self.out)
            before = {entry.name: (entry.answer, entry.status) for entry in self.entries}
            remarks = self._list_remarks()
            self.entries = self._stand(self.edits)
            changed = [e.index for e in self.entries if before.get(e.name) != (e.answer, e.status)]
            if changed or remarks != self._remarks or not self.revision:
                self._remarks = remarks
                self.revision += 1
            return changed

    _remarks: Any = None

    def _look(self) -> Any:
        """What tells a changed folder from an unchanged one."""

        def stamp(name: str) -> Any:
            try:
                facts = os.stat(self.out / name)
            except OSError:
                return None
            return facts.st_mtime_ns, facts.st_size

        is_complete = self.record.get("complete", False)
        parts = () if is_complete else tuple(sorted(self.folder.stored()))
        return stamp(RECORD), stamp(LOG), stamp(EDITS), parts

    def _stand(self, edits: Edits) -> tuple[Entry, ...]:
        """The items as they stand under some corrections."""
        record = self.record
        entries = []
        stored = self.folder.stored()
        for index, item in enumerate(record.get("items", ())):
            status = item["status"]
            if status == "not analysed":
                status = "waiting"
            entries.append(
                Entry(
                    index,
                    item["name"],
                    item["stem"],
                    find_sources(self.folder, item),
                    item["sha256"][0] if item["sha256"] else "",
                    item["key"],
                    status,
                    item.get("reason", ""),
                    tuple(item.get("notes", ())),
                    item.get("facts", {}),
                    item.get("answer", ""),
                    item.get("answer", "") in stored,
                )
            )
        lines = tuple(line.to_json() for line in edits.lines)
        had = record.get("corrections", "")
        is_current = record.get("complete", False) and had == name_corrections(lines)
        if not record or is_current:
            return tuple(entries)
        return self._follow(entries, lines, stored)

    def _follow(
        self, entries: Sequence[Entry], lines: tuple[str, ...], stored: Collection[str]
    ) -> tuple[Entry, ...]:
        """Items whose answers follow corrections and items that run.json does not know yet."""
        try:
            task = self._task(lines)
        except SettingsError as error:
            self.trouble = str(error)
            return tuple(entries)
        self.trouble = ""
        able = [entry for entry in entries if entry.key in stored and entry.status != "failed"]
        shared: Mapping[str, Any] = {}
        if task.together is not None and able:
            parts = {entry.name: self._loader(entry, task) for entry in able}
            shared = task.together(parts, task.given)
        followed = list(entries)
        for entry in able:
            own = shared.get(entry.name)
            answer = name_answer(entry.key, own)
            facts = {
                name: getattr(entry, name) for name in ("index", "name", "stem", "sources", "sha256", "key")
            }
            followed[entry.index] = Entry(
                **facts,
                status="analysed",
                notes=entry.notes,
                facts=entry.facts,
                answer=answer,
                is_stored=answer == entry.answer and entry.is_stored,
                shared=own,
            )
        return tuple(followed)

    def _task(self, lines: tuple[str, ...]) -> Task:
        """The task under some corrections.

        Raises
        ------
        SettingsError
            If the run cannot be taken up again here.
        """
        if self._reopened is None:
            self._reopened = reopen(self.folder)
        return self._reopened.task.with_edits(lines)

    def _loader(self, entry: Entry, task: Task) -> Callable[[], Any]:
        path = self.folder.item_path(entry.key)
        return lambda: self._parts.get(entry.key, lambda: load(path, task.kinds))

    # --- rows and tables ---------------------------------------------------------------------------------------------

    def _name_table(self, entry: Entry) -> str:
        names = _VERB_TABLES[self.verb]
        if len(names) == 1 or not entry.is_stored:
            return names[0] if len(names) == 1 else next(iter(self.tables(entry.index)))
        return names[1] if "rates" in entry.facts else names[0]

    def tables(self, index: int) -> Mapping[str, Table]:
        """The tables of an item's answer, by name; none where it has no answer."""
        with self._lock:
            return self._find_tables(self.entries[index])

    def _find_tables(self, entry: Entry) -> Mapping[str, Table]:
        if not entry.answer:
            return {}
        return self._tables.get(entry.answer, lambda: self._make_tables(entry))

    def _make_tables(self, entry: Entry) -> Mapping[str, Table]:
        if entry.is_stored:
            tables: Mapping[str, Table] = self._read(entry, "tables")
            return tables
        task = self._task(tuple(line.to_json() for line in self.edits.lines))
        assert task.tabulate is not None and self._reopened is not None
        item = self._reopened.items[entry.index]
        return task.tabulate(item, self._loader(entry, task)(), entry.shared, task.given)

    def table(self, index: int) -> Table | None:
        """The table of an item, or None where it has no answer."""
        return next(iter(self.tables(index).values()), None)

    def figure(self, index: int, caption: str) -> bytes:
        """A picture of an item's stored answer; nothing where there is none."""
        entry = self.entries[index]
        if not entry.is_stored:
            return b""
        try:
            return bytes(self._read(entry, "figures", caption))
        except KeyError:
            return b""

    def _read(self, entry: Entry, *steps: str) -> Any:
        path = self.folder.item_path(entry.answer)
        try:
            return read_part(path, *steps, kinds=(Answer,))
        except (OSError, StoreError) as error:
            raise MicrographError(f"{path.name} {error}: run flatscope {self.verb} again") from None

    def frame(self, entry: Entry) -> pd.DataFrame:
        """The rows of one item."""
        if entry.answer not in self._frames:
            if entry.is_stored:
                rows = self._read(entry, "tables", self._name_table(entry), "frame")
            else:
                rows = next(iter(self._find_tables(entry).values())).frame
            self._frames[entry.answer] = rows
        return self._frames[entry.answer]

    def rows(self) -> pd.DataFrame:
        """All rows of the run in the order of interest, with the place of their item in the column `item`."""
        with self._lock:
            if self._joined is None or self._joined[0] != self.revision:
                self._joined = self.revision, self._join(self.entries)
            return self._joined[1]

    def _join(self, entries: Sequence[Entry]) -> pd.DataFrame:
        kind = self.kind
        able = [entry for entry in entries if entry.answer]
        if kind is None or not able:
            return pd.DataFrame({"item": []})
        frames = [self.frame(entry).assign(item=entry.index) for entry in able]
        whole = pd.concat(frames, ignore_index=True)
        if kind.NAME == "flakes":
            from flatscope.optical.tabulation import sort_by_interest

            whole = sort_by_interest(whole)
        return self._remark(whole, kind)

    def count_rows(self) -> dict[int, int]:
        """Place of an item to the number of its rows."""
        rows = self.rows()
        return {int(index): int(count) for index, count in rows["item"].value_counts().items()}

    def pixel_size_nm(self, index: int) -> float | None:
        """Pixel size of an item, or None if unknown."""
        entry = self.entries[index]
        if entry.is_stored and "pixel_size_um" in entry.facts:
            size = entry.facts["pixel_size_um"]
            return None if size is None else nm_from_um(size[1])
        if not entry.answer:
            return None
        if entry.is_stored and entry.answer not in self._sizes:
            kept = self._read(entry, "tables", self._name_table(entry), "calibration")
            self._sizes[entry.answer] = None if kept is None else float(kept.pixel_size_nm[1])
        elif entry.answer not in self._sizes:
            table = self.table(index)
            size = None if table is None else table.calibration
            self._sizes[entry.answer] = None if size is None else float(size.pixel_size_nm[1])
        return self._sizes[entry.answer]

    def is_running(self) -> bool:
        """Whether a process is working in the folder."""
        return False

    def list_kinds(self) -> list[str]:
        """Kinds of corrections that this run takes."""
        if self.verb != "flakes":
            return ["remark", "undo"]
        waiting = {kind.__name__.lower() for kind in WAITING}
        known = [kind.model_fields["edit"].default for kind in KINDS]
        return [name for name in known if name not in waiting]

    # --- corrections -------------------------------------------------------------------------------------------------

    def _list_remarks(self) -> tuple[Remark, ...]:
        return tuple(self.edits.of(Remark))

    def _remark(self, rows: pd.DataFrame, kind: type[Table]) -> pd.DataFrame:
        """The rows with what was remarked of their place: the columns `star` and `note`."""
        star, note = np.zeros(len(rows), bool), np.full(len(rows), "", object)
        numbers = {entry.name: entry.index for entry in self.entries}
        for line in self._list_remarks():
            index = numbers.get(line.image)
            if index is None:
                continue
            row_id = self.find_row(index, line.row_px, line.col_px)
            hit = (rows["item"] == index).to_numpy() & (rows[kind.ROW_ID] == row_id).to_numpy(bool)
            star[hit], note[hit] = line.star, line.note
        return rows.assign(star=star, note=note)

    def find_row(self, index: int, row_px: float, col_px: float) -> int:
        """The id of the row at a place of an item: the region there, or the nearest point; 0 for none."""
        table = self.table(index)
        if table is None or not len(table.marks):
            return 0
        labels = getattr(table, "labels", None)
        if labels is not None:
            row, col = round(row_px), round(col_px)
            return int(labels[row, col]) if row < labels.shape[0] and col < labels.shape[1] else 0
        frame = table.frame
        far = np.hypot(frame["row_px"] - row_px, frame["col_px"] - col_px)
        return int(frame[table.ROW_ID].iloc[int(far.argmin())]) if len(frame) else 0

    def list_edits(self) -> list[tuple[Line, bool]]:
        """Every correction of the folder and whether it counts."""
        return list_edits(self.out)

    def correct(self, lines: Sequence[Line]) -> list[str]:
        """Add corrections: they are on the disk when this returns.

        Returns
        -------
        Their ids.

        Raises
        ------
        WriteError
            If they cannot be written.
        """
        with self._lock:
            signed = [sign(line) for line in lines]
            append_edits(self.out, signed)
            self.refresh()
            return [line.id for line in signed]

    def undo(self) -> str:
        """Take back the last correction that counts; its id, or "" where there is none."""
        with self._lock:
            counting = [line for line, counts in self.list_edits() if counts and not isinstance(line, Undo)]
            return self.correct([Undo(of=counting[-1].id)])[0] if counting else ""

    def redo(self) -> str:
        """Bring back what the last undo took back; its id, or "" where a newer correction or none is there."""
        with self._lock:
            counting = [line for line, counts in self.list_edits() if counts]
            if not counting or not isinstance(counting[-1], Undo):
                return ""
            return self.correct([Undo(of=counting[-1].id)])[0]


def to_columns(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """A frame as lists by column; what is not known is None."""
    columns: dict[str, list[Any]] = {}
    for name in rows:
        values = rows[name]
        if values.dtype.kind == "f":
            known = np.isfinite(values.to_numpy(float))
            rounded = [float(f"{value:.7g}") for value in values.to_numpy(float)]
            columns[str(name)] = [v if k else None for v, k in zip(rounded, known.tolist(), strict=True)]
        else:
            columns[str(name)] = values.astype(object).where(values.notna(), None).tolist()
    return columns
