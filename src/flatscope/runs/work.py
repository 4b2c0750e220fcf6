"""The work on one item, in this process or another: its heavy part, then its answer, each stored at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flatscope.files.write import WriteError, write_atomic
from flatscope.micrograph import MicrographError
from flatscope.results.store import pack
from flatscope.runs.items import Item
from flatscope.runs.task import CutShort, Task, load


@dataclass(frozen=True)
class Outcome:
    """What a worker hands back of an item's heavy part; the part itself lies on the disk."""

    failure: str = ""
    is_lasting: bool = False
    is_cut_short: bool = False
    timings_s: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Concluded:
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
    on_steps: Callable[[int, int], None] | None = None


def start(task: Task) -> None:
    _Process.task, _Process.tools, _Process.last = task, task.prepare(task.given), None


def listen(on_steps: Callable[[int, int], None] | None) -> None:
    """Hear from here on how far the item at hand is, in steps done and in all; None hears no more."""
    _Process.on_steps = on_steps


def tell_steps(done: int, total: int) -> None:
    """Tell how far the item at hand is, if somebody in this process listens."""
    if _Process.on_steps is not None:
        _Process.on_steps(done, total)


def name_cut(path: Path) -> Path:
    return path.with_name(f"{path.stem}-cut.zip")


def _explain(error: Exception, item: Item) -> str:
    """Why an item failed, without its path, which stands beside it already."""
    if isinstance(error, MemoryError):
        return "does not fit into memory: use fewer workers, or cut it into parts"
    text = " ".join(str(error).split())
    for source in item.sources:
        for prefix in (f"{source}: ", f"{source} "):
            text = text.removeprefix(prefix)
        text = text.replace(str(source), source.name)
    text = os.fsencode(text).decode("utf-8", "replace")
    if isinstance(error, MicrographError):
        return text
    return f"unexpected {type(error).__name__} ({text[:200]}): please report it with the picture"


def _is_lasting(error: Exception, item: Item) -> bool:
    """True if an item will fail again while its content stays: not for want of memory, a package or the file."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError | ImportError):
            return False
        cause = cause.__cause__ or cause.__context__
    return isinstance(error, MicrographError) and all(source.is_file() for source in item.sources)


def do_alone(job: tuple[Item, Path]) -> Outcome:
    """Make and store the heavy part of one item."""
    item, path = job
    begun = time.perf_counter()
    try:
        part = _Process.task.alone(item, _Process.tools)
        is_cut_short = isinstance(part, CutShort)
        if is_cut_short:
            part, path = part.part, name_cut(path)
        content = pack(part)
    except WriteError:
        raise
    except Exception as error:  # one item's bug must not cost the others their answers
        return Outcome(_explain(error, item), is_lasting=_is_lasting(error, item))
    timings = dict(getattr(part, "timings_s", {}))
    timings["other_s"] = time.perf_counter() - begun - sum(timings.values())
    write_atomic(path, content)
    _Process.last = path, part
    return Outcome(is_cut_short=is_cut_short, timings_s=timings)


def do_conclude(job: tuple[Item, Path, Any, Path]) -> Concluded:
    """The answer of one item, stored, and its files."""
    item, path, shared, target = job
    task, last = _Process.task, _Process.last
    try:
        part = last[1] if last is not None and last[0] == path else load(path, task.kinds)
        answer, files = task.conclude(item, part, shared, _Process.tools)
        content = pack(replace(answer, shared=shared))
    except WriteError:
        raise
    except Exception as error:
        return Concluded(failure=_explain(error, item))
    write_atomic(target, content)
    return Concluded(facts=answer.facts, notes=answer.notes, files=files)
