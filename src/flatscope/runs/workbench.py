"""A run that stays open: its rows as they stand, while items are added and corrections come in.

Every correction is on the disk before anyone is told that it is taken. Several tabs, a running batch and a second
command may write at once: what counts is always what the folder holds.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flatscope.results import Table
from flatscope.runs import lock
from flatscope.runs.answering import Answers, Entry
from flatscope.runs.edits import (
    EDITS,
    KINDS,
    Edits,
    Known,
    Line,
    Place,
    Remark,
    Undo,
    append_edits,
    list_edits,
    read_edits,
    sign,
    take_back,
)
from flatscope.runs.settings import LOG, RECORD, SettingsError
from flatscope.units import nm_from_um

_AT_ONCE_S = 0.6
"""A correction is answered after this time; rows of other items that change, too, follow."""
_ALL_VERBS = ("remark", "undo")
"""Kinds of corrections that every run takes."""


@dataclass(frozen=True)
class Change:
    """What a correction changes of a row.

    Parameters
    ----------
    item, id
        Which row.
    before, after
        Its cells that differ; None where the row is new or vanishes.
    """

    item: int
    id: int
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class Workbench:
    """An open run.

    Parameters
    ----------
    out
        The results folder.

    Raises
    ------
    SettingsError
        If what lies in the folder is no run of this version.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.answers = Answers(out)
        self.revision = 0
        self.entries: tuple[Entry, ...] = ()
        self.edits = Edits()
        self.trouble = ""
        self._change = threading.RLock()
        self._seen: Any = None
        self._shown: dict[int, pd.DataFrame] = {}
        self._joined: tuple[Any, pd.DataFrame] | None = None
        self._sizes: dict[str, float | None] = {}
        self.refresh()

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def record(self) -> Mapping[str, Any]:
        """run.json; empty before the first item of a run is finished."""
        return self.answers.record

    @property
    def verb(self) -> str:
        """Name of the command that made the run."""
        return self.answers.verb

    @property
    def kind(self) -> type[Table] | None:
        """The table that the rows are of."""
        return self.answers.find_kind(self.entries)

    def refresh(self) -> list[int]:
        """Look whether the folder has changed: new items, answers or corrections.

        Returns
        -------
        Places of the items whose rows are others now; `revision` has grown if there are any.
        """
        with self._change:
            seen = self._look()
            if seen == self._seen:
                return []
            if self._seen is not None and seen[:2] != self._seen[:2]:
                self.answers.reload()
            self._seen = seen
            edits = read_edits(self.out)
            before = {entry.name: (entry.answer, entry.status) for entry in self.entries}
            is_remarked = edits.of(Remark) != self.edits.of(Remark)
            self.edits, self.entries = edits, self._stand(edits)
            changed = [e.index for e in self.entries if before.get(e.name) != (e.answer, e.status)]
            if changed or is_remarked or not self.revision:
                self.revision += 1
            return changed

    def _look(self) -> Any:
        """What tells a changed folder from an unchanged one."""

        def stamp(name: str) -> Any:
            try:
                facts = os.stat(self.out / name)
            except OSError:
                return None
            return facts.st_mtime_ns, facts.st_size, facts.st_ino

        parts = () if self.record.get("complete") else tuple(sorted(self.answers.folder.stored()))
        return stamp(RECORD), stamp(LOG), stamp(EDITS), parts

    def _stand(self, edits: Edits) -> tuple[Entry, ...]:
        try:
            entries = self.answers.stand(edits.list_lines())
        except SettingsError as error:
            self.trouble = str(error)
            return self.answers.stand_stored()
        self.trouble = ""
        return entries

    def is_running(self) -> bool:
        """Whether a process is at work in the folder."""
        return lock.is_held(self.out)

    def is_behind(self) -> bool:
        """Whether tables and pictures in the folder are older than the corrections, and could be made again."""
        return not self.trouble and any(entry.answer and not entry.is_stored for entry in self.entries)

    # --- rows and tables ---------------------------------------------------------------------------------------------

    def table(self, index: int) -> Table | None:
        """The table of an item, or None where it has no answer."""
        return next(iter(self.answers.tables(self.entries[index]).values()), None)

    def rows(self) -> pd.DataFrame:
        """All rows of the run in the order of interest, with the place of their item in the column `item`.

        Where a correction changes the rows of many items, those that are not made yet stay as they were, until
        `catch_up` has made them.
        """
        key = self.revision, self.entries
        joined = self._joined
        if joined is None or joined[0] != key:
            joined = self._joined = key, self._join()
        return joined[1]

    def _join(self) -> pd.DataFrame:
        entries, kind = self.entries, self.kind
        frames = []
        for entry in entries:
            if not entry.answer or kind is None or self.answers.name_table(entry) != kind.NAME:
                continue  # images among movies have their marks and cards, but no rows beside theirs
            if self.answers.has_rows(entry) or entry.index not in self._shown:
                self._shown[entry.index] = self.answers.rows(entry).assign(item=entry.index)
            frames.append(self._shown[entry.index])
        if kind is None or not frames:
            return pd.DataFrame({"item": np.zeros(0, int)})
        whole = pd.concat(frames, ignore_index=True)
        if kind.NAME == "flakes":
            from flatscope.optical.tabulation import sort_by_interest

            whole = sort_by_interest(whole)
        return self._remark(whole, kind)

    def catch_up(self, limit_s: float, first: Sequence[int] = ()) -> list[int]:
        """Make rows that a correction has changed, for at most this time.

        Parameters
        ----------
        limit_s
            At least one item is done.
        first
            Places of the items to begin with.

        Returns
        -------
        Places of the items whose rows are made; `revision` has grown if there are any.
        """
        until, made = time.perf_counter() + limit_s, []
        with self._change:
            behind = [entry for entry in self.entries if not self.answers.has_rows(entry)]
            for entry in sorted(behind, key=lambda entry: entry.index not in first):
                self.answers.rows(entry)
                made.append(entry.index)
                if time.perf_counter() > until:
                    break
            if made:
                self.revision += 1
        return made

    def count_rows(self) -> dict[int, int]:
        """Place of an item to the number of its rows."""
        counts = self.rows()["item"].value_counts()
        return {int(index): int(count) for index, count in counts.items()}

    def pixel_size_nm(self, index: int) -> float | None:
        """Pixel size of an item, or None if unknown."""
        entry = self.entries[index]
        if entry.is_stored and "pixel_size_um" in entry.facts:
            size = entry.facts["pixel_size_um"]
            return None if size is None else nm_from_um(size[1])
        if entry.answer and entry.answer not in self._sizes:
            if entry.is_stored:
                kept = self.answers.read(entry, "tables", self.answers.name_table(entry), "calibration")
            else:
                table = self.table(index)
                kept = None if table is None else table.calibration
            self._sizes[entry.answer] = None if kept is None else float(kept.pixel_size_nm[1])
        return self._sizes.get(entry.answer)

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

    def _remark(self, rows: pd.DataFrame, kind: type[Table]) -> pd.DataFrame:
        """The rows with what was remarked of their place: the columns `star` and `note`."""
        star, note = np.zeros(len(rows), bool), np.full(len(rows), "", object)
        numbers = {entry.name: entry.index for entry in self.entries}
        for line in self.edits.of(Remark):
            index = numbers.get(line.image)
            if index is not None:
                row_id = self.find_row(index, line.row_px, line.col_px)
                hit = (rows["item"] == index).to_numpy() & (rows[kind.ROW_ID] == row_id).to_numpy(bool)
                star[hit], note[hit] = line.star, line.note
        return rows.assign(star=star, note=note)

    # --- corrections -------------------------------------------------------------------------------------------------

    def list_kinds(self) -> list[str]:
        """Kinds of corrections that this run takes."""
        if self.verb != "flakes":
            return list(_ALL_VERBS)
        return [str(kind.model_fields["edit"].default) for kind in KINDS]

    def list_edits(self) -> list[tuple[Line, bool]]:
        """Every correction of the folder and whether it counts."""
        return list_edits(self.out)

    def check(self, lines: Sequence[Line]) -> list[Line]:
        """Corrections with what the run knows of their places: digest, material, and what stands there now.

        Raises
        ------
        SettingsError
            If one names no picture of this run, or is of a kind that it does not take.
        """
        able, names = self.list_kinds(), {entry.name: entry for entry in self.entries}
        checked = []
        for line in lines:
            if line.edit not in able:
                raise SettingsError(
                    f"a run of flatscope {self.verb} takes no correction of the kind {line.edit!r}"
                )
            image = getattr(line, "image", "")
            if image and image not in names:
                raise SettingsError(f"no picture of this run is called {image[:80]!r}")
            if self.trouble and line.edit not in _ALL_VERBS:
                raise SettingsError(self.trouble)
            checked.append(self._fill_in(line, names[image]) if image else line)
        return checked

    def _fill_in(self, line: Line, entry: Entry) -> Line:
        known: dict[str, Any] = {}
        if "sha256" in type(line).model_fields:
            known["sha256"] = entry.sha256
        if isinstance(line, Place) and not line.before and entry.answer:
            row = self.read_row(entry.index, self.find_row(entry.index, line.row_px, line.col_px))
            shown = ("layers", "species", "kind", "twist_deg", "status", "reason")
            known["before"] = {name: row[name] for name in shown if row.get(name) not in (None, "")}
        return line.model_copy(update=known)

    def read_row(self, index: int, row_id: int) -> dict[str, Any]:
        """The cells of a row, remarks included; none where there is no such row."""
        rows, kind = self.rows(), self.kind
        if kind is None or kind.ROW_ID not in rows:
            return {}
        found = rows[(rows["item"] == index) & (rows[kind.ROW_ID] == row_id)]
        return {name: values[0] for name, values in to_columns(found.head(1)).items()} if len(found) else {}

    def correct(self, lines: Sequence[Line]) -> list[str]:
        """Add corrections: they are on the disk when this returns, and count in their own pictures.

        Returns
        -------
        Their ids.

        Raises
        ------
        SettingsError
            As for `check`; nothing is written then.
        WriteError
            If they cannot be written.
        """
        with self._change:
            self.refresh()
            signed = [sign(line) for line in self.check(lines)]
            append_edits(self.out, signed)
            self.refresh()
            self.catch_up(_AT_ONCE_S, self._find_places(signed))
            return [line.id for line in signed]

    def _find_places(self, lines: Sequence[Line]) -> list[int]:
        named = {getattr(line, "image", "") for line in lines}
        return [entry.index for entry in self.entries if entry.name in named]

    def preview(self, lines: Sequence[Line], limit_s: float = 0.8) -> tuple[list[Change], int]:
        """What corrections would change; nothing is written.

        Parameters
        ----------
        lines
            The corrections.
        limit_s
            Their own pictures are always looked at, others for this time.

        Returns
        -------
        The changes, and the number of pictures that may change but were not looked at.
        """
        with self._change:
            self.refresh()
            checked = self.check(lines)
            until = time.perf_counter() + limit_s
            whole = [line for line, _ in self.list_edits()] + checked
            after = self.answers.stand(Edits(tuple(take_back(whole))).list_lines())
            pairs = [(a, b) for a, b in zip(self.entries, after, strict=True) if a.answer != b.answer]
            first = self._find_places(checked)
            changes: list[Change] = []
            left = 0
            for before, now in sorted(pairs, key=lambda pair: pair[0].index not in first):
                if time.perf_counter() > until and before.index not in first:
                    left += 1
                    continue
                kind = self.kind
                assert kind is not None
                changes += compare(
                    before.index, self.answers.rows(before), self.answers.rows(now), kind.ROW_ID
                )
            return changes, left

    def undo(self) -> str:
        """Take back the last correction that counts; the id of the new line, or "" where there is none."""
        with self._change:
            done, _ = _follow_undos([line for line, _ in self.list_edits()])
            return self.correct([Undo(of=done[-1].id)])[0] if done else ""

    def redo(self) -> str:
        """Bring back what the last undo took back; "" where there is none, or a newer correction stands."""
        with self._change:
            _, undone = _follow_undos([line for line, _ in self.list_edits()])
            return self.correct([Undo(of=undone[-1].id)])[0] if undone else ""

    def question(self, lines: Sequence[Line]) -> list[str]:
        """What the optics say against known crystals that nobody says to trust, one line each."""
        doubts = []
        for line in lines:
            if isinstance(line, Known) and not line.trust:
                doubts += self._question(line)
        return doubts

    def _question(self, line: Known) -> list[str]:
        from flatscope.optical.known import question
        from flatscope.runs.reshape import find_region

        entry = next(entry for entry in self.entries if entry.name == line.image)
        regions = self.answers.part(entry)
        region = find_region(regions, line)
        if not region:
            return [f"{line.describe()}: no region is there"]
        contrast, sigma = regions.measured.contrast[region - 1], np.maximum(regions.noise, 0.005)
        task = self.answers.find_task()
        doubt = question(line.layers, contrast, sigma, task.given.params.prior())
        return [f"{line.describe()}={line.layers}L {doubt}"] if doubt else []


def _follow_undos(lines: Sequence[Line]) -> tuple[list[Line], list[Line]]:
    """What the next undo would take back, the last one last, and the undos that a redo would take back."""
    done: list[Line] = []
    undone: list[tuple[Line, Line]] = []
    for line in lines:
        if not isinstance(line, Undo):
            done.append(line)
            undone.clear()
            continue
        back = next((pair for pair in reversed(undone) if pair[1].id == line.of), None)
        gone = next((other for other in reversed(done) if other.id == line.of), None)
        if back is not None:
            undone.remove(back)
            done.append(back[0])
        elif gone is not None:
            done.remove(gone)
            undone.append((gone, line))
    return done, [undo for _, undo in undone]


def compare(item: int, before: pd.DataFrame, after: pd.DataFrame, row_id: str) -> list[Change]:
    """The rows that differ between two answers of one item."""
    had, has = ({int(row[row_id]): row for row in _to_records(frame)} for frame in (before, after))
    changes = []
    for number in {**had, **has}:
        old, new = had.get(number), has.get(number)
        if old is None or new is None:
            changes.append(Change(item, number, old, new))
            continue
        differ = [name for name in new if old.get(name) != new[name]]
        if differ:
            shown = {*differ, *({"layers", "layers_p", "status", "reason"} & new.keys())}
            names = [name for name in new if name in shown]
            changes.append(Change(item, number, {n: old.get(n) for n in names}, {n: new[n] for n in names}))
    return changes


def _to_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    columns = to_columns(frame)
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def to_columns(rows: pd.DataFrame) -> dict[str, list[Any]]:
    """A frame as lists by column, numbers with seven digits; what is not known is None."""
    columns: dict[str, list[Any]] = {}
    for name in rows:
        values = rows[name]
        if values.dtype.kind == "f":
            numbers = values.to_numpy(float)
            known = np.isfinite(numbers).tolist()
            rounded = (float(f"{number:.7g}") for number in numbers.tolist())
            columns[str(name)] = [v if k else None for v, k in zip(rounded, known, strict=True)]
        else:
            columns[str(name)] = values.astype(object).where(values.notna(), None).tolist()
    return columns
