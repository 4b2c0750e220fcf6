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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import flatscope
from flatscope.app.folder import SCHEMA, Folder
from flatscope.app.items import Digests, Item, digest_of, make_key
from flatscope.files.write import WriteError, write_atomic
from flatscope.micrograph import MicrographError
from flatscope.parallel import LostWorkerError, Workers
from flatscope.results import Table
from flatscope.results.store import StoreError, pack, unpack

EXIT_FINE, EXIT_SOME_FAILED, EXIT_BAD_INPUT = 0, 1, 2
_PACKAGES = ("numpy", "scipy", "scikit-image", "onnxruntime", "pillow", "pandas")


@dataclass(frozen=True)
class Answer:
    """What is known of one item in the end.

    Parameters
    ----------
    tables
        By name: "flakes", "twist", "columns", "defects", "tracks", "events".
    figures
        Pictures for the report, by caption.
    facts
        Plain values for run.json.
    notes
        What a user should know, one line each.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class CutShort:
    """What is known of an item whose work Ctrl-C ended early: it is shown, and done again at the next start."""

    part: Any


Content = bytes | str | Callable[[Path], None]
"""Of a file: its bytes, its text, or what writes it to a path."""


class Views(Protocol):
    """Makes the files of the run as a whole."""

    def __call__(self, run: Finished) -> Iterator[tuple[str, Content]]:
        """Yield file names and their content."""


def _take_as_given(given: Any) -> Any:
    return given


@dataclass(frozen=True)
class Task:
    """What a command does with its items. Its functions belong to modules, so that they reach other processes.

    Parameters
    ----------
    verb
        Name of the command.
    settings
        Plain values, for run.json; all items depend on them.
    alone
        `alone(item, tools)` does the heavy part of one item and returns what `pack` can store.
    conclude
        `conclude(item, part, shared, tools)` returns the item's `Answer` and its own files by ending.
    views
        Makes the files of the whole run.
    endings
        Of the files that `conclude` returns.
    view_names
        Of the files that `views` may make.
    given
        What all items share; must be picklable.
    prepare
        `prepare(given)` makes the tools, once a process: it loads the network.
    together
        `together(parts, given)` looks at all parts, by name of their item, and returns what `conclude` should know of
        the others, by name; plain values. Optional.
    kinds
        Dataclasses that parts may hold.
    weights
        Name, version and digest of the network; empty where there is none.
    digests
        Of what else the answers depend on, such as a flat field.
    """

    verb: str
    settings: Mapping[str, Any]
    alone: Callable[[Item, Any], Any]
    conclude: Callable[[Item, Any, Any, Any], tuple[Answer, Mapping[str, bytes]]]
    views: Views
    endings: tuple[str, ...]
    view_names: tuple[str, ...]
    given: Any = None
    prepare: Callable[[Any], Any] = _take_as_given
    together: Callable[[Mapping[str, Callable[[], Any]], Any], Mapping[str, Any]] | None = None
    kinds: tuple[type, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Finished:
    """A run as its views see it.

    Parameters
    ----------
    task
        What was done.
    items
        All of them, in the order of the inputs.
    failures
        Name of an item to why it has no answer.
    is_complete
        False if the run was interrupted.
    """

    task: Task
    items: tuple[Item, ...]
    failures: Mapping[str, str]
    is_complete: bool
    _paths: Mapping[str, Path]
    _part_paths: Mapping[str, Path]

    def parts(self) -> Iterator[tuple[Item, Any]]:
        """Items with the heavy parts of their answers, read one by one."""
        for item in self.items:
            if item.name in self._part_paths:
                yield item, unpack(self._part_paths[item.name].read_bytes(), self.task.kinds)

    def answers(self) -> Iterator[tuple[Item, Answer]]:
        """Items with their answers in the order of the inputs, read one by one."""
        for item in self.items:
            if item.name in self._paths:
                yield item, unpack(self._paths[item.name].read_bytes(), (Answer, *self.task.kinds))


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
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)


class Reporter(Protocol):
    """Tells the user how far a run is."""

    def stage(self, name: str, total: int) -> None:
        """A stage of that many items begins."""

    def done(self, *, failed: bool) -> None:
        """One more item is done."""

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
        Where the results go, see `Folder`; checked against `task` already.
    workers
        Processes; with one, or one item, everything happens in this one.
    reporter
        Hears what happens.
    limit_s
        A worker that needs longer for one item is ended.
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
        self._digests = Digests(folder.log.get("inputs"))
        self._is_claimed = folder.record is not None
        identity = digest_of(self.asked)
        self._entries = []
        for item in self.items:
            digests = [self._digests.of(path) for path in item.sources]
            self._entries.append(_Entry(item, make_key(item, identity, digests), digests))

    @property
    def asked(self) -> dict[str, Any]:
        """What makes this run another one than a second with other settings."""
        return {
            "verb": self.task.verb,
            "flatscope": flatscope.__version__,
            "settings": dict(self.task.settings),
            "weights": dict(self.task.weights),
            "digests": dict(self.task.digests),
        }

    # --- the four steps ----------------------------------------------------------------------------------------------

    def work(self) -> Finished:
        """Do what is not done yet.

        Raises
        ------
        KeyboardInterrupt
            After Ctrl-C, when what was finished is written; a second Ctrl-C ends at once.
        WriteError
            If the disk is full or the folder is read-only; what was written before stays.
        """
        count = min(self._workers, len(self.items))
        workers = Workers(count, start=_start, given=(self.task,), limit_s=self._limit_s)
        with workers:
            try:
                self._do_alone(workers)
            except (KeyboardInterrupt, WriteError):
                if self.count_finished():
                    with contextlib.suppress(WriteError):
                        self._finish(workers, is_complete=False)
                raise
            if any(entry.is_cut_short for entry in self._entries):
                self._finish(workers, is_complete=False)
                raise KeyboardInterrupt
            return self._finish(workers, is_complete=True)

    def already_finished(self) -> Finished | None:
        """The run as an earlier start left it, if nothing is left to do."""
        record = self.folder.record
        if record is None or not record["complete"]:
            return None
        stored = self.folder.stored()
        had = record["items"]
        if [entry["key"] for entry in had] != [entry.key for entry in self._entries]:
            return None
        if not all(e["status"] == "analysed" and stored.get(e["answer"]) == e["bytes"] for e in had):
            return None
        present = {entry.name for entry in os.scandir(self.folder.out)}
        if not set(record["files"]) <= present:
            return None
        paths = {e["name"]: self.folder.item_path(e["answer"]) for e in had}
        parts = {entry.item.name: self.folder.item_path(entry.key) for entry in self._entries}
        return Finished(self.task, self.items, {}, True, paths, parts)

    def _do_alone(self, workers: Workers) -> None:
        """The heavy part of every item that is not stored yet."""
        stored = self.folder.stored()
        self._recall_failures()
        waiting = [entry for entry in self._entries if entry.key not in stored and not entry.failure]
        self.reporter.stage("analysing", len(waiting))
        jobs = [(entry.item, self.folder.item_path(entry.key)) for entry in waiting]
        for number, outcome in workers.do(_do_alone, jobs):
            entry = waiting[number]
            if isinstance(outcome, LostWorkerError):
                outcome = _Outcome(f"{outcome}, out of memory perhaps: use --workers 1")
            entry.failure, entry.is_lasting = outcome.failure, outcome.is_lasting
            entry.is_cut_short = outcome.is_cut_short
            for stage, seconds in outcome.timings_s.items():
                self.timings[stage] = self.timings.get(stage, 0.0) + seconds
            if entry.failure:
                self._say_failure(entry)
            elif not self._is_claimed:
                self._write_record(is_complete=False)  # from now on the folder is this run's
            self.reporter.done(failed=bool(entry.failure))

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
        with _remember(trouble):
            self._write_views(run)
        with _remember(trouble):
            self._write_record(is_complete=is_complete and not trouble)
            self._write_log()
        if trouble:
            raise trouble[0]
        if is_complete:
            self.folder.sweep({name for entry in self._entries for name in (entry.key, entry.answer)})
        for name in self.folder.kept:
            self.reporter.say(
                f"{self.folder.out / name} was changed since flatscope wrote it: it stays as it is"
            )
        return run

    def _look_back(self, *, is_complete: bool) -> Finished:
        """The run as its views see it."""
        stored = self.folder.stored()
        answered = [entry for entry in self._entries if not entry.failure and entry.answer in stored]
        return Finished(
            self.task,
            self.items,
            {entry.item.name: entry.failure for entry in self._entries if entry.failure},
            is_complete,
            {entry.item.name: self.folder.item_path(entry.answer) for entry in answered},
            {entry.item.name: self._part_path(entry) for entry in answered},
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
        return _cut_path(path) if entry.is_cut_short else path

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
        if self.task.together is not None:

            def loader(entry: _Entry) -> Callable[[], Any]:
                return lambda: _load_part(self._part_path(entry), self.task.kinds)

            parts = {entry.item.name: loader(entry) for entry in finished}
            shared = self.task.together(parts, self.task.given)
        for entry in finished:
            entry.shared = shared.get(entry.item.name)
            entry.answer = digest_of([entry.key, "answer", entry.shared, entry.is_cut_short])

    def _conclude(self, workers: Workers, finished: Sequence[_Entry]) -> None:
        """The answer and the files of every item that lacks them."""
        had = {
            entry["answer"]: entry
            for entry in (self.folder.record or {}).get("items", [])
            if "answer" in entry
        }
        stored = self.folder.stored()
        waiting = []
        for entry in finished:
            before = had.get(entry.answer)
            if before and entry.answer in stored and all(map(self._is_there, before["files"])):
                entry.facts, entry.notes, entry.files = before["facts"], before["notes"], before["files"]
                self.folder.files.update({n: (self.folder.record or {})["files"][n] for n in entry.files})
            else:
                waiting.append(entry)
        self.reporter.stage("drawing", len(waiting))
        jobs = [(e.item, self._part_path(e), e.shared, self.folder.item_path(e.answer)) for e in waiting]
        for number, outcome in workers.do(_do_conclude, jobs):
            entry = waiting[number]
            if isinstance(outcome, LostWorkerError):
                outcome = _Concluded(failure=str(outcome))
            entry.failure, entry.facts = outcome.failure, dict(outcome.facts)
            entry.notes = list(outcome.notes)
            for ending, content in outcome.files.items():
                self.folder.write(entry.item.stem + ending, content)
                entry.files.append(entry.item.stem + ending)
            if entry.failure:
                self._say_failure(entry)
            self.reporter.done(failed=bool(entry.failure))

    def _is_there(self, name: str) -> bool:
        return name in (self.folder.record or {})["files"] and (self.folder.out / name).exists()

    # --- the record --------------------------------------------------------------------------------------------------

    def _write_record(self, *, is_complete: bool) -> None:
        self._is_claimed = True
        sizes = self.folder.stored()
        record = {"schema": SCHEMA, **self.asked, "complete": is_complete}
        record["items"] = [self._describe(entry, sizes) for entry in self._entries]
        self.folder.write_record(record)

    def _describe(self, entry: _Entry, sizes: Mapping[str, int]) -> dict[str, Any]:
        known = {
            "name": entry.item.name,
            "stem": entry.item.stem,
            "inputs": [_readable_name(path) for path in entry.item.sources],
            "sha256": entry.digests,
            "key": entry.key,
        }
        if entry.failure:
            return {**known, "status": "failed", "reason": entry.failure, "is_lasting": entry.is_lasting}
        if entry.answer not in sizes or entry.is_cut_short:
            return {**known, "status": "not analysed"}
        return {
            **known,
            "status": "analysed",
            "answer": entry.answer,
            "bytes": sizes[entry.answer],
            "notes": entry.notes,
            "facts": entry.facts,
            "files": entry.files,
        }

    def _write_log(self) -> None:
        start = {
            "started": self._started,
            "seconds": round(time.perf_counter() - self._begun, 3),
            "command": [_readable_name(Path(part), whole=True) for part in sys.argv],
            "folder": _readable_name(Path.cwd(), whole=True),
            "workers": self._workers,
            "timings_s": {stage: round(seconds, 4) for stage, seconds in self.timings.items()},
            "python": platform.python_version(),
            "system": platform.platform(),
            "packages": {name: metadata.version(name) for name in _PACKAGES},
        }
        self.folder.write_log(start, self._digests.to_plain())


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


def _where(item: Item) -> str:
    return _readable_name(item.sources[0], whole=True) if item.sources else item.name


def _readable_name(path: Path, *, whole: bool = False) -> str:
    return os.fsencode(path if whole else path.name).decode("utf-8", "replace")


# --- in the processes ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Outcome:
    """What a worker hands back of an item's heavy part; the part itself lies on the disk."""

    failure: str = ""
    is_lasting: bool = False
    is_cut_short: bool = False
    timings_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Concluded:
    """What a worker hands back; the answer itself lies on the disk."""

    failure: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)


class _Process:
    """What a process keeps between items: its task, its tools, and the part it made last."""

    task: Task
    tools: Any
    last: tuple[Path, Any] | None = None


def _start(task: Task) -> None:
    _Process.task, _Process.tools, _Process.last = task, task.prepare(task.given), None


def _cut_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}-cut.zip")


def _load_part(path: Path, kinds: tuple[type, ...]) -> Any:
    """A stored part; a damaged one is removed, so that the next start makes it again."""
    try:
        return unpack(path.read_bytes(), kinds)
    except StoreError as error:
        path.unlink(missing_ok=True)
        raise MicrographError(f"{path} {error}: it is removed, start again") from None


def _explain(error: Exception, item: Item) -> str:
    """Why an item failed, without its path, which stands beside it already."""
    if isinstance(error, MemoryError):
        return "does not fit into memory: use fewer workers, or cut it into parts"
    text = " ".join(str(error).split())
    if not isinstance(error, MicrographError):
        return f"unexpected {type(error).__name__} ({text[:200]}): please report it with the picture"
    for source in item.sources:
        for prefix in (f"{source}: ", f"{source} "):
            text = text.removeprefix(prefix)
    return text


def _do_alone(job: tuple[Item, Path]) -> _Outcome:
    """Make and store the heavy part of one item."""
    item, path = job
    begun = time.perf_counter()
    try:
        part = _Process.task.alone(item, _Process.tools)
    except WriteError:
        raise
    except Exception as error:  # one item's bug must not cost the others their answers
        is_readable = all(source.is_file() for source in item.sources)
        return _Outcome(_explain(error, item), is_lasting=isinstance(error, MicrographError) and is_readable)
    timings = dict(getattr(part, "timings_s", {}))
    timings["other_s"] = time.perf_counter() - begun - sum(timings.values())
    is_cut_short = isinstance(part, CutShort)
    if is_cut_short:
        part, path = part.part, _cut_path(path)
    write_atomic(path, pack(part))
    _Process.last = path, part
    return _Outcome(is_cut_short=is_cut_short, timings_s=timings)


def _do_conclude(job: tuple[Item, Path, Any, Path]) -> _Concluded:
    """The answer of one item, stored, and its files."""
    item, path, shared, target = job
    task, last = _Process.task, _Process.last
    try:
        part = last[1] if last is not None and last[0] == path else _load_part(path, task.kinds)
        answer, files = task.conclude(item, part, shared, _Process.tools)
    except WriteError:
        raise
    except Exception as error:
        return _Concluded(failure=_explain(error, item))
    write_atomic(target, pack(answer))
    return _Concluded(facts=answer.facts, notes=answer.notes, files=files)
