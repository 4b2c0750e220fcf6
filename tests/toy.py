"""A verb of a few lines, to try what every run promises; as a script it is a command line of its own."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from flatscope.app import cli
from flatscope.app.command import Call, Plan, analysis
from flatscope.micrograph import MicrographError
from flatscope.runs.items import Item
from flatscope.runs.settings import as_plain
from flatscope.runs.task import Answer, Content, Finished, Task


@dataclass(frozen=True)
class ToyParams:
    """How the toy works.

    Parameters
    ----------
    factor
        Changes every answer.
    seconds
        The heavy part of one item takes so long.
    joined
        The items look at each other.
    diary
        Every process notes in this file what it works at.
    """

    factor: float = 1.0
    seconds: float = 0.0
    joined: bool = False
    diary: str = ""


@dataclass(frozen=True)
class Weighed:
    """The heavy part of an item."""

    image: str
    size: int
    values: np.ndarray[Any, Any]


@analysis(ToyParams)
def toy(call: Call, params: ToyParams) -> Plan:
    """Weigh files: their first bytes say how, see `weigh`."""
    task = Task(
        "toy",
        as_plain(params),
        alone=weigh,
        together=compare if params.joined else None,
        conclude=describe,
        views=make_views,
        endings=(".layers.png", ".overlay.png"),
        view_names=("toy.csv", "report.html"),
        given=params,
        kinds=(Weighed,),
    )
    items = call.name([(path,) for path in call.find("light")], task.endings)
    return Plan(task, items, lambda run, out: click.echo(f"{len(run.items)} weighed"))


def weigh(item: Item, params: ToyParams) -> Weighed:
    """The heavy part. A file may ask to fail, to be a bug, or to kill its process, once or always."""
    content = item.sources[0].read_bytes()
    if params.diary:
        with open(params.diary, "a", encoding="utf-8") as diary:
            diary.write(f"{item.name}\n")
    if content.startswith(b"broken"):
        raise MicrographError(f"{item.sources[0]}: is broken")
    if content.startswith(b"bug"):
        raise IndexError(f"no row 7 in {item.sources[0]}")
    if content.startswith(b"deadly"):
        os.kill(os.getpid(), signal.SIGKILL)
    if content.startswith(b"once deadly"):
        mark = item.sources[0].with_suffix(".died")
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(params.seconds)
    return Weighed(item.name, len(content), np.frombuffer(content, np.uint8) * params.factor)


def compare(parts: Mapping[str, Callable[[], Weighed]], params: ToyParams) -> dict[str, Any]:
    """What the items know of one another: the heaviest."""
    heaviest = max(load().size for load in parts.values())
    return {name: {"heaviest": heaviest} for name in parts}


def describe(item: Item, part: Weighed, shared: Any, params: ToyParams) -> tuple[Answer, dict[str, bytes]]:
    """The light part."""
    answer = Answer(facts={"size": part.size, "shared": shared}, notes=("weighed",))
    return answer, {".layers.png": part.values.tobytes(), ".overlay.png": f"{item.name} {shared}".encode()}


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """A table of two kinds of content."""
    rows = [f"{item.name},{answer.facts['size']},{answer.facts['shared']}" for item, answer in run.answers()]
    rows += [f"{name},failed: {why}" for name, why in run.failures.items()]
    yield "toy.csv", "\n".join(rows) + "\n"
    yield "report.html", lambda path: Path(path).write_text(f"<p>{len(rows)}</p>", encoding="utf-8")


def run(args: list[str]) -> int:
    """`flatscope toy ...`"""
    listed, find = dict(cli._COMMANDS), cli.find_command
    cli._COMMANDS["toy"] = ("toy", "Weigh files.")
    cli.find_command = lambda name: toy if name == "toy" else find(name)
    try:
        return cli.run(["toy", *args])
    finally:
        cli._COMMANDS.clear()
        cli._COMMANDS.update(listed)
        cli.find_command = find


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
