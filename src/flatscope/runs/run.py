"""One run, whatever the command: each item alone, all items together, each item's answer, then the views.

Every finished item lies in the results folder at once, under a key of its content, its settings, the weights and the
version. A second start takes up where the first one ended, however it ended, and writes the same bytes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from flatscope.files.write import WriteError
from flatscope.micrograph import MicrographError
from flatscope.parallel import LostWorkerError, Workers
from flatscope.results.store import StoreError, unpack
from flatscope.runs.folder import SCHEMA, Folder
from flatscope.runs.items import Item, digest_of, make_key, readable_name
from flatscope.runs.lock import hold
from flatscope.runs.task import Answer, Finished, Task, load, name_answer
from flatscope.runs.work import Concluded, Outcome, do_alone, do_conclude, listen, name_cut, start

EXIT_FINE, EXIT_SOME_FAILED, EXIT_BAD_INPUT = 0, 1, 2
_PACKAGES = ("numpy", "scipy", "scikit-image", "onnxruntime", "pillow", "pandas")


@dataclass
class _Entry:
    """Where one item stands."""

    item: Item
    key: str
    digests: list[str]
    failure: str = ""
    is_lasting: bool = False  # it fails again while its content stays
    is_cut_short: bool = False
    shared: Any = None
    answer: str = ""  # name of the stored answer
    is_concluded: bool = False  # the answer is stored and its files are written
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class Reporter(Protocol):
    """Tells the user how far a run is."""

    def stage(self, name: str, total: int) -> None:
        """A stage of that many items begins."""

    def done(self, *, failed: bool) -> None:
        """One more item is done."""

    def count(self, done: int, total: int) -> None:
        """Steps of the only item done, and in all; 0 where nobody knows."""

    def say(self, line: str) -> None:
        """Something the user should read now."""


class Run:
    """A run of a task over items into a folder.

    Parameters
    ----------
    task
        What to do.
    items
        With what.
    folder
        Where the results go, see `Folder`.
    workers
        Processes; with one, or one item, everything happens in this one.
    reporter
        Hears what happens.
    limit_s
        A worker that needs longer for one item is ended.

    Raises
    ------
    SettingsError
        If the folder holds another run.
    """

    def __init__(
        self,
        task: Task,
        items: Sequence[Item],
        folder: Folder,
        *,
        workers: int,
        reporter: Reporter,
        limit_s: float = 3600.0,
    ) -> None:
        self.task, self.items, self.folder, self.reporter = task, tuple(items), folder, reporter
        self._workers, self._limit_s = workers, limit_s
        self.timings: dict[str, float] = {}
        self._begun, self._started = time.perf_counter(), _now()
        self._is_claimed = folder.record is not None
        folder.check(task.asked, [item.name for item in self.items], task.view_names)
        self._entries = list(self._enter_items())

    def _enter_items(self) -> Iterator[_Entry]:
        """All items with their keys; one that an earlier start knew as it is now keeps its key."""
        identity = digest_of(self.task.asked)
        earlier = {} if self.folder.record is None else {e["name"]: e for e in self.folder.record["items"]}
        for item in self.items:
            digests = [self.folder.digests.of(path) for path in item.sources]
            had = earlier.get(item.name)
            is_same = item.given is None and had and had["stem"] == item.stem and had["sha256"] == digests
            yield _Entry(item, had["key"] if had and is_same else make_key(item, identity, digests), digests)

    # --- the four steps ----------------------------------------------------------------------------------------------

    def work(self) -> Finished:
        """Do what is not done yet.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, when what was finished is written; a second Ctrl-C ends at once.
        WriteError
            If the disk is full or the folder is read-only; what was written before stays.
        SettingsError
            If another process is at work in the folder.
        """
        with hold(self.folder.out):
            return self._work()

    def _work(self) -> Finished:
        count = min(self._workers, len(self.items))
        workers = Workers(count, start=start, given=(self.task,), limit_s=self._limit_s)
        listen(self.reporter.count if len(self.items) == 1 else None)
        with workers:
            try:
                self._do_alone(workers)
            except (KeyboardInterrupt, WriteError):
                if self.count_finished():
                    with contextlib.suppress(WriteError):
                        self._finish(workers, is_complete=False)
                raise
            return self._finish(workers, is_complete=True)

    def already_finished(self) -> Finished | None:
        """The run as an earlier start left it, if nothing is left to do."""
        record = self.folder.record
        if record is None or not record["complete"]:
            return None
        if record.get("corrections", "") != self.task.corrections:
            return None
        had = record["items"]
        if [entry["key"] for entry in had] != [entry.key for entry in self._entries]:
            return None
        done = [entry for entry in had if entry["status"] == "analysed"]
        if not all(self.folder.size_of(entry["answer"]) == entry["bytes"] for entry in done):
            return None
        if not all(entry["status"] == "analysed" or entry.get("is_lasting") for entry in had):
            return None
        if not set(record["files"]) <= {entry.name for entry in os.scandir(self.folder.out)}:
            return None
        self._recall_failures()
        changed = self.folder.find_changed()
        self._say_changed(changed)
        if not self.folder.is_tidy:
            self.folder.tidy({name for entry in done for name in (entry["key"], entry["answer"])})
        if self.folder.digests.are_new:
            with contextlib.suppress(WriteError):  # a finished run may lie where nobody may write
                self._write_log(changed)
        return Finished(
            self.task,
            self.items,
            {entry["name"]: entry["reason"] for entry in had if entry["status"] != "analysed"},
            True,
            self.folder.item_path,
            {entry["name"]: entry["answer"] for entry in done},
            {entry["name"]: entry["key"] for entry in done},
        )

    def _do_alone(self, workers: Workers) -> None:
        """The heavy part of every item that is not stored yet."""
        self._recall_failures()
        waiting = self._find_missing()
        self.reporter.stage("analysing", len(waiting))
        jobs = [(entry.item, self.folder.item_path(entry.key)) for entry in waiting]
        for number, outcome in workers.do(do_alone, jobs):
            entry = waiting[number]
            if isinstance(outcome, LostWorkerError):
                outcome = Outcome(f"{outcome}, out of memory perhaps: use --workers 1")
            entry.failure, entry.is_lasting = outcome.failure, outcome.is_lasting
            entry.is_cut_short = outcome.is_cut_short
            for stage, seconds in outcome.timings_s.items():
                self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            if entry.failure:
                self._say_failure(entry)
            else:
                self._claim()
            self.reporter.done(failed=bool(entry.failure))
            if entry.is_cut_short:
                raise KeyboardInterrupt

    def _find_missing(self) -> list[_Entry]:
        """What has no heavy part yet, or half of one."""
        stored = self.folder.stored()
        missing = []
        for entry in self._entries:
            if entry.failure:
                continue
            if entry.key in stored and self.folder.is_whole(entry.key):
                continue
            if entry.key in stored:
                self.reporter.say(f"{_where(entry.item)}: its stored part was half-written, it is made again")
            missing.append(entry)
        return missing

    def _claim(self) -> None:
        """From now on the folder is this run's, and the next start need not read the inputs again for their digests."""
        if not self._is_claimed:
            self._write_record(is_complete=False)
            self._write_log(())
        self._is_claimed = True

    def _finish(self, workers: Workers, *, is_complete: bool) -> Finished:
        """All items together, their answers and the views.

        Raises
        ------
        WriteError
            If something cannot be written; smaller files, which may still fit, are tried before.
        """
        finished = [entry for entry in self._entries if not entry.failure and self._part_path(entry).exists()]
        begun = time.perf_counter()
        self._share(finished)
        trouble: list[WriteError] = []
        with _remember(trouble):
            self._conclude(workers, finished)
        self.timings["drawing_s"] = time.perf_counter() - begun
        run = self._look_back(is_complete=is_complete and not trouble)
        if len(run.failures) == len(self.items) == 1:
            return run  # nothing to show
        self._claim()
        with _remember(trouble):
            self._write_views(run)
        changed = self.folder.find_changed()
        with _remember(trouble):
            self._write_record(is_complete=is_complete and not trouble)
            self._write_log(changed)
        if trouble:
            raise trouble[0]
        if is_complete:
            self.folder.tidy({name for entry in self._entries for name in (entry.key, entry.answer)})
        self._say_changed(changed)
        return run

    def _say_changed(self, names: Iterable[str]) -> None:
        for name in sorted(names):
            self.reporter.say(
                f"{self.folder.out / name} was changed since flatscope wrote it: it stays as it is"
            )

    def _look_back(self, *, is_complete: bool) -> Finished:
        """The run as its views see it."""
        answered = [entry for entry in self._entries if entry.is_concluded]
        return Finished(
            self.task,
            self.items,
            {entry.item.name: entry.failure for entry in self._entries if entry.failure},
            is_complete,
            self.folder.item_path,
            {entry.item.name: entry.answer for entry in answered},
            {entry.item.name: self._part_path(entry).stem for entry in answered},
        )

    def _write_views(self, run: Finished) -> None:
        for name, content in self.task.views(run):
            if callable(content):
                with self.folder.writing(name) as path:
                    content(path)
            else:
                self.folder.write(name, content)

    def count_finished(self) -> int:
        """Number of items whose heavy part is stored."""
        stored = self.folder.stored()
        return sum(entry.key in stored or entry.is_cut_short for entry in self._entries)

    def _part_path(self, entry: _Entry) -> Path:
        path = self.folder.item_path(entry.key)
        return name_cut(path) if entry.is_cut_short else path

    def _recall_failures(self) -> None:
        """Failures that an earlier start noted, and that would happen again."""
        had = {
            e["key"]: e["reason"] for e in (self.folder.record or {}).get("items", []) if e.get("is_lasting")
        }
        for entry in self._entries:
            entry.failure = had.get(entry.key, "")
            entry.is_lasting = bool(entry.failure)
            if entry.failure:
                self._say_failure(entry)

    def _say_failure(self, entry: _Entry) -> None:
        self.reporter.say(f"{_where(entry.item)}: {entry.failure}")

    def _share(self, finished: Sequence[_Entry]) -> None:
        """Let the items know of each other."""
        shared: Mapping[str, Any] = {}
        if self.task.together is not None and finished:

            def loader(entry: _Entry) -> Callable[[], Any]:
                return lambda: load(self._part_path(entry), self.task.kinds)

            parts = {entry.item.name: loader(entry) for entry in finished}
            shared = self.task.together(parts, self.task.given)
        for entry in finished:
            entry.shared = shared.get(entry.item.name)
            entry.answer = name_answer(entry.key, entry.shared, is_cut_short=entry.is_cut_short)

    def _conclude(self, workers: Workers, finished: Sequence[_Entry]) -> None:
        """The answer and the files of every item that lacks them."""
        had = {
            entry["answer"]: entry
            for entry in (self.folder.record or {}).get("items", [])
            if "answer" in entry
        }
        waiting = []
        for entry in finished:
            before = had.get(entry.answer)
            is_stored = before is not None and self.folder.size_of(entry.answer) == before["bytes"]
            if before and is_stored and all(map(self._is_there, before["files"])):
                entry.facts, entry.notes, entry.files = before["facts"], before["notes"], before["files"]
                entry.is_concluded = True
                self.folder.files.update({n: (self.folder.record or {})["files"][n] for n in entry.files})
            else:
                waiting.append(entry)
        self.reporter.stage("drawing", len(waiting))
        jobs = [(e.item, self._part_path(e), e.shared, self.folder.item_path(e.answer)) for e in waiting]
        for number, outcome in workers.do(do_conclude, jobs):
            entry = waiting[number]
            if isinstance(outcome, LostWorkerError):
                outcome = Concluded(failure=str(outcome))
            entry.failure, entry.facts = outcome.failure, dict(outcome.facts)
            entry.notes = list(outcome.notes)
            for ending, content in outcome.files.items():
                self.folder.write(entry.item.stem + ending, content)
                entry.files.append(entry.item.stem + ending)
            entry.is_concluded = not entry.failure
            if entry.failure:
                self._say_failure(entry)
            self.reporter.done(failed=bool(entry.failure))

    def _is_there(self, name: str) -> bool:
        return name in (self.folder.record or {})["files"] and (self.folder.out / name).exists()

    # --- the record --------------------------------------------------------------------------------------------------

    def _write_record(self, *, is_complete: bool) -> None:
        record = {"schema": SCHEMA, **self.task.asked, "complete": is_complete}
        if self.task.corrections:
            record["corrections"] = self.task.corrections
        record["items"] = [self._describe(entry) for entry in self._entries]
        self.folder.write_record(record)

    def _describe(self, entry: _Entry) -> dict[str, Any]:
        known = {
            "name": entry.item.name,
            "stem": entry.item.stem,
            "inputs": [readable_name(path) for path in entry.item.sources],
            "sha256": entry.digests,
            "key": entry.key,
        }
        if entry.failure:
            return {**known, "status": "failed", "reason": entry.failure, "is_lasting": entry.is_lasting}
        if not entry.is_concluded or entry.is_cut_short:
            return {**known, "status": "not analysed"}
        return {
            **known,
            "status": "analysed",
            "answer": entry.answer,
            "bytes": self.folder.size_of(entry.answer),
            "notes": entry.notes,
            "facts": entry.facts,
            "files": entry.files,
        }

    def _write_log(self, changed: Collection[str]) -> None:
        start = {
            "started": self._started,
            "seconds": round(time.perf_counter() - self._begun, 3),
            "command": [readable_name(Path(part), whole=True) for part in sys.argv],
            "folder": readable_name(Path.cwd(), whole=True),
            "workers": self._workers,
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": _find_versions(),
        }
        self.folder.write_log(start, changed)


def read_answers(out: Path, record: Mapping[str, Any]) -> Iterator[tuple[str, Answer]]:
    """Stems and answers of a results folder, read one by one.

    Parameters
    ----------
    out
        The folder.
    record
        Its run.json.

    Raises
    ------
    MicrographError
        If a stored answer is damaged.
    """
    folder = Folder(out)
    for entry in record["items"]:
        if entry["status"] == "analysed":
            path = folder.item_path(entry["answer"])
            try:
                yield entry["stem"], unpack(path.read_bytes(), (Answer,))
            except (OSError, StoreError) as error:
                raise MicrographError(f"{path} {error}: run flatscope {record['verb']} again") from None


def exit_code(run: Finished) -> int:
    """0: every item has an answer; 1: some failed; 2: all did."""
    if len(run.failures) == len(run.items):
        return EXIT_BAD_INPUT
    return EXIT_SOME_FAILED if run.failures else EXIT_FINE


@contextlib.contextmanager
def _remember(trouble: list[WriteError]) -> Iterator[None]:
    """Put off what could not be written, so that the rest is tried."""
    try:
        yield
    except WriteError as error:
        trouble.append(error)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


@cache
def _find_versions() -> dict[str, str]:
    """Of the packages that numbers depend on."""
    return {name: metadata.version(name) for name in _PACKAGES}


def _where(item: Item) -> str:
    return readable_name(item.sources[0], whole=True) if item.sources else item.name
