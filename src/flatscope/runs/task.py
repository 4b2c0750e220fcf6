"""What a run is told to do, and what it knows in the end; plain data, so that other processes can take it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import flatscope
from flatscope.micrograph import MicrographError
from flatscope.results import Table
from flatscope.results.store import StoreError, unpack
from flatscope.runs.items import Item, digest_of

if TYPE_CHECKING:
    import pandas as pd


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
    shared
        What it took from all items together.
    """

    tables: Mapping[str, Table] = field(default_factory=dict)
    figures: Mapping[str, bytes] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    shared: Any = None


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
    tabulate
        `tabulate(item, part, shared, given)` returns the tables of the answer by name, without drawing: what `conclude`
        draws.
    list_rows
        `list_rows(item, part, shared, given)` returns the rows of the first of these tables, where that is quicker.
    recall
        `recall(shared, given)` is told what an earlier start found in `together`, so that it need not be found again.
    lighten
        Gives a part that takes less memory and says the same, for parts that are kept by the hundred.
    kinds
        Dataclasses that parts may hold.
    weights
        Name, version and digest of the network; empty where there is none.
    digests
        Of what else the answers depend on, such as a flat field.
    corrections
        A name for the corrections by hand that answers follow; "" for none. They change no heavy part.
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
    tabulate: Callable[[Item, Any, Any, Any], Mapping[str, Table]] | None = None
    list_rows: Callable[[Item, Any, Any, Any], pd.DataFrame] | None = None
    recall: Callable[[Any, Any], None] | None = None
    lighten: Callable[[Any], Any] | None = None
    kinds: tuple[type, ...] = ()
    weights: Mapping[str, str] = field(default_factory=dict)
    digests: Mapping[str, str] = field(default_factory=dict)
    corrections: str = ""

    @property
    def asked(self) -> dict[str, Any]:
        """What makes this run another one than a second with other settings."""
        return {
            "verb": self.verb,
            "flatscope": flatscope.__version__,
            "settings": dict(self.settings),
            "weights": dict(self.weights),
            "digests": dict(self.digests),
        }

    def with_edits(self, edits: tuple[str, ...]) -> Task:
        """The same task under these corrections by hand, lines of `edits.jsonl`, if its verb takes corrections."""
        if not hasattr(self.given, "edits"):
            return self
        given = replace(self.given, edits=edits)
        return replace(self, given=given, corrections=name_corrections(edits))


def name_corrections(edits: Sequence[str]) -> str:
    """A name for corrections by hand, lines of `edits.jsonl`; "" for none."""
    return digest_of(list(edits)) if edits else ""


def name_answer(key: str, shared: Any, *, is_cut_short: bool = False) -> str:
    """The name of an answer: equal ones hold the same.

    Parameters
    ----------
    key
        Of the item.
    shared
        What its answer takes from all items together.
    is_cut_short
        Whether its work was ended early.
    """
    return digest_of([key, "answer", shared, is_cut_short])


def load(path: Path, kinds: tuple[type, ...]) -> Any:
    """A stored part or answer; a damaged one is removed, so that the next start makes it again.

    Raises
    ------
    MicrographError
        If it is damaged.
    """
    try:
        return unpack(path.read_bytes(), kinds)
    except StoreError:
        path.unlink(missing_ok=True)
        name = f"{path.parent.name}/{path.name}"
        raise MicrographError(f"{name} was damaged and is removed: start again") from None


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
    _locate: Callable[[str], Path]
    _answers: Mapping[str, str]
    _parts: Mapping[str, str]

    def parts(self) -> Iterator[tuple[Item, Any]]:
        """Items with the heavy parts of their answers, read one by one."""
        for item in self.items:
            if item.name in self._parts:
                yield item, load(self._locate(self._parts[item.name]), self.task.kinds)

    def answers(self) -> Iterator[tuple[Item, Answer]]:
        """Items with their answers in the order of the inputs, read one by one."""
        for item in self.items:
            if item.name in self._answers:
                yield item, load(self._locate(self._answers[item.name]), (Answer, *self.task.kinds))
