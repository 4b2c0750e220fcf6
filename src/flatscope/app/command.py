"""What the analysing commands share: their flags, their inputs, and how a run is carried out and ends."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flatscope.app import show
from flatscope.app.flags import ask, gather, settings_options
from flatscope.app.startup import pause_collecting
from flatscope.files.read import Modality, find_pictures
from flatscope.runs.folder import Folder
from flatscope.runs.items import Item, name_items, recall_names
from flatscope.runs.run import EXIT_BAD_INPUT, Run, exit_code
from flatscope.runs.settings import list_paths
from flatscope.runs.task import Finished, Task

if TYPE_CHECKING:
    from flatscope.runs.edits import Line

_DEFAULT_WORKERS = 2


@dataclass(frozen=True)
class Call:
    """How a command was called.

    Parameters
    ----------
    inputs
        Files, folders and globs.
    folder
        Where the results go.
    options
        Values of the command's own flags.
    """

    inputs: tuple[str, ...]
    folder: Folder
    options: dict[str, Any] = field(default_factory=dict)

    def find(self, modality: Modality, *, suffixes: tuple[str, ...] = ()) -> list[Path]:
        """The pictures that the inputs name, with those of subfolders after `--recursive`."""
        recursive = bool(self.options.get("recursive"))
        return find_pictures(self.inputs, modality=modality, recursive=recursive, suffixes=suffixes)

    def name(self, sources: Sequence[tuple[Path, ...]], endings: Sequence[str]) -> list[Item]:
        """Items of files; those of an earlier start keep their names."""
        taken = self.folder.foreign_names()
        items = name_items(sources, endings=endings, taken=taken)
        if self.folder.record is None:
            return items
        kept = recall_names(items, self.folder.record["items"], self.folder.digests.of)
        if all(kept.get(number) == (item.name, item.stem) for number, item in enumerate(items)):
            return items
        return name_items(sources, endings=endings, taken=taken, kept=kept)


@dataclass(frozen=True)
class Plan:
    """What a command is going to do.

    Parameters
    ----------
    task, items
        See `flatscope.runs.run.Run`.
    summarise
        Prints what a person wants to see when all is done.
    what
        A word for several items.
    edits
        Corrections to add to those of the folder, once it is known to be this run's.
    """

    task: Task
    items: Sequence[Item]
    summarise: Callable[[Finished, Path], None]
    what: str = "pictures"
    edits: Sequence[Line] = ()


def analysis(*kinds: type) -> Callable[[Callable[..., Plan]], click.Command]:
    """Make a command of a function that plans a run.

    Parameters
    ----------
    kinds
        Settings of the command, frozen dataclasses. The function is called with a `Call` and one object of each.
    """

    def make(plan: Callable[..., Plan]) -> click.Command:
        @functools.wraps(plan)
        def command(inputs: tuple[str, ...], out: Path, **options: Any) -> int:
            begun = time.perf_counter()
            settings = gather(options, *kinds)
            ask(options, *kinds)
            with pause_collecting():
                folder = Folder(out)
                if options["replace"]:
                    clear(folder)
                folder.paths = list_paths(*settings)
                planned = plan(Call(inputs, folder, options), *settings)
            return carry_out(planned, folder, options, begun=begun)

        wrapped: Callable[..., Any] = settings_options(*kinds)(command)
        for option in reversed(_OPTIONS):
            wrapped = option(wrapped)
        made = click.command()(wrapped)
        made.settings_kinds = kinds  # type: ignore[attr-defined]
        return made

    return make


with_profile = click.option(
    "--setup",
    metavar="NAME",
    help="Profile of a microscope (see: flatscope setup). Settings file and flags beat it.",
)


def clear(folder: Folder) -> None:
    """Remove an earlier run from its folder, and tell which files stay because somebody changed them."""
    for name in folder.clear():
        click.echo(
            f"flatscope: {folder.out / name} was changed since flatscope wrote it: it stays, and the new file is "
            "named apart",
            err=True,
        )


_OPTIONS = (
    click.argument("inputs", nargs=-1, required=True, metavar="INPUT..."),
    click.option(
        "--out",
        required=True,
        type=click.Path(path_type=Path),
        help="Folder for the results; made if missing.",
    ),
    click.option("--recursive", is_flag=True, help="Take the pictures in subfolders of a folder too."),
    click.option("--replace", is_flag=True, help="Remove an earlier run from the folder first."),
    click.option(
        "--workers",
        type=click.IntRange(1),
        default=None,
        help="Processes for several inputs.  [default: 2, or the number of cores if fewer]",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table."),
    click.option("--timings", is_flag=True, help="Print where the time went."),
)


def carry_out(plan: Plan, folder: Folder, options: dict[str, Any], *, begun: float) -> int:
    """Run a plan and say what came of it; the exit code.

    Raises
    ------
    SettingsError
        If the folder holds another run.
    KeyboardInterrupt
        After Ctrl-C, when what was finished is written.
    """
    task = plan.task
    workers = options.get("workers") or min(_DEFAULT_WORKERS, os.cpu_count() or 1)
    with show.reporter(plan.what) as reporter:
        with pause_collecting():
            run = Run(task, plan.items, folder, workers=workers, reporter=reporter)
            if plan.edits:
                from flatscope.runs.edits import append_edits

                append_edits(folder.out, plan.edits)
            earlier = run.already_finished()
        try:
            finished = earlier or run.work()
        except KeyboardInterrupt:
            done = run.count_finished()
            if done:
                reporter.say(
                    f"{done} of {len(plan.items)} {plan.what} are finished; the results in {folder.out} cover them, "
                    "and the same command goes on from there"
                )
            raise
    if earlier:
        failed = f" ({len(earlier.failures)} failed)" * bool(earlier.failures)
        count = f"all {len(plan.items)} {plan.what} were" if len(plan.items) > 1 else "this was"
        click.echo(f"flatscope: {count} finished before{failed}: nothing to do", err=True)
    code = exit_code(finished)
    if code == EXIT_BAD_INPUT:
        if len(plan.items) > 1:
            click.echo(f"flatscope: none of the {len(plan.items)} {plan.what} could be analysed", err=True)
        return code
    if options.get("as_json"):
        show.print_json(finished, folder)
    else:
        if not earlier:
            plan.summarise(finished, folder.out)
        if "report.html" in task.view_names:
            click.echo(f"report: {folder.out / 'report.html'}")
    if options.get("timings"):
        show.print_timings(run.timings, total_s=time.perf_counter() - begun)
    return code
