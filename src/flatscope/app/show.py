"""What a person sees in the terminal: tables, progress, where the time went."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flatscope.runs.folder import read_run

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from rich.console import Console

    from flatscope.runs.folder import Folder
    from flatscope.runs.task import Finished

_MOST_ROWS = 12


def summarise_flakes(run: Finished, out: Path) -> None:
    """Print the best flakes, counts, and the pictures without any."""
    from flatscope.runs.flakes import join_rows

    answers = [(item.name, answer, answer.tables["flakes"]) for item, answer in run.answers()]
    frame = join_rows([table.frame for _, _, table in answers], run)
    found = frame[frame["status"].isin(("accepted", "uncertain"))]
    thin = found[found["layers"] != "thick"]
    if len(thin):
        print_flakes(thin)
    pictures, failed = len(run.items), len(run.failures)
    rejected = int((frame["status"] == "rejected").sum())
    small = sum(answer.facts["regions_too_small"] for _, answer, _ in answers)
    click.echo(
        f"{len(thin)} thin and {len(found) - len(thin)} thick regions in {pictures} picture{'s' * (pictures != 1)}, "
        f"{rejected} rejected (each with its reason)"
        + (f", {small} too small to list" if small else "")
        + (f", {failed} picture{'s' * (failed != 1)} failed" if failed else "")
    )
    for name, answer, table in answers:
        if not len(table.found):
            why = "; ".join(answer.notes) or "nothing stands out from the substrate"
            click.echo(f"{name}: no flake found ({why})")
    if any(table.calibration is None for _, _, table in answers):
        click.echo("pixel size unknown: areas are in px; pass --um-per-px for µm²")


def print_flakes(found: pd.DataFrame) -> None:
    """A table of the first regions."""
    from rich.table import Table

    more = len(found) - _MOST_ROWS
    found = found.head(_MOST_ROWS)
    calibrated = bool(found["area_um2"].notna().all())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("picture", overflow="fold")
    for head in (
        "region",
        "layers",
        "sure",
        "crystal",
        "area µm²" if calibrated else "area px",
        "row",
        "col",
    ):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("remark")
    for row in found.to_dict("records"):
        area = float(row["area_um2" if calibrated else "area_px"])
        table.add_row(
            str(row["image"]),
            str(row["region_id"]),
            str(row["layers"]).replace("|", " or "),
            *(f"{float(row[name]):.2f}".replace("nan", "") for name in ("layers_p", "p_flake")),
            f"{area:.1f}" if calibrated else f"{area:.0f}",
            f"{float(row['row_px']):.0f}",
            f"{float(row['col_px']):.0f}",
            str(row["reason"]) if isinstance(row["reason"], str) else "",
        )
    _console().print(table)
    if more > 0:
        click.echo(f"... and {more} more thin ones in flakes.csv")


def print_json(run: Finished, folder: Folder) -> None:
    """run.json and all rows of the tables as one JSON object on stdout."""
    rows: dict[str, list[Any]] = {}
    for _, answer in run.answers():
        for name, table in answer.tables.items():
            text = table.frame.to_json(orient="records", double_precision=6)
            rows.setdefault(name, []).extend(json.loads(text))
    out = {"out": str(folder.out), "run": read_run(folder.out), **rows}
    click.echo(json.dumps(out, indent=2, ensure_ascii=False))


def print_timings(timings: Mapping[str, float], *, total_s: float) -> None:
    """Seconds of each stage, summed over items, on stderr so that --json stays clean."""
    width = max(map(len, timings), default=0)
    for stage, seconds in timings.items():
        click.echo(f"{stage.removesuffix('_s'):{width}} {seconds:8.3f} s", err=True)
    click.echo(f"{'command, start-up excluded':{width}} {total_s:8.3f} s", err=True)


def print_notes(run: Finished) -> None:
    """What a user should know of each item, on stderr."""
    for item, answer in run.answers():
        for note in answer.notes:
            click.echo(f"{item.name}: {note}", err=True)


def print_rows(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A plain table."""
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


class Reporter:
    """Tells on stderr what a person must know of a long work, without a bar: in a file or a pipe."""

    def stage(self, name: str, total: int) -> None:
        """A stage of that many items begins."""

    def done(self, *, failed: bool) -> None:
        """One more item is done."""

    def count(self, done: int, total: int) -> None:
        """Steps done, and in all; 0 if unknown."""

    def say(self, line: str) -> None:
        """One line."""
        click.echo(f"flatscope: {line}", err=True)


class _Bar(Reporter):
    """A progress bar: the stage, how many are done and failed, how fast, and the time left."""

    def __init__(self, what: str, bar: Any) -> None:
        self._what, self._bar, self._failed = what, bar, 0
        self._task = bar.add_task(what, total=None, failed="")

    def stage(self, name: str, total: int) -> None:
        self._bar.reset(self._task, description=f"{name} {self._what}", total=total)

    def done(self, *, failed: bool) -> None:
        self._failed += failed
        said = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=1, failed=said)

    def count(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total or None)


@contextmanager
def reporter(what: str) -> Iterator[Reporter]:
    """Tell how far a work is: with a bar on a terminal, only with lines elsewhere."""
    if not sys.stderr.isatty():
        yield Reporter()
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[failed]}"),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Bar(what, bar)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """The same for a function that calls back with (done, total)."""
    with reporter(what) as telling:
        yield telling.count


def _console() -> Console:
    from rich.console import Console

    # In a pipe there is no width to respect; names should not be folded there.
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
