"""What a person sees in the terminal: tables, progress, where the time went."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from flatscope.app.outputs import RunFiles

_MOST_ROWS = 12


def print_summary(files: RunFiles) -> None:
    """The best flakes, counts, and where the report lies."""
    frame = files.frame()
    found = frame[frame["status"].isin(("accepted", "uncertain"))]
    thin = found[found["layers"] != "thick"]
    if len(thin):
        print_flakes(thin.head(_MOST_ROWS))
        if len(thin) > _MOST_ROWS:
            click.echo(f"... and {len(thin) - _MOST_ROWS} more thin ones in flakes.csv")
    rejected, failed = int((frame["status"] == "rejected").sum()), len(files.failed)
    pictures = len(files.answers)
    click.echo(
        f"{len(thin)} thin and {len(found) - len(thin)} thick regions in {pictures} picture{'s' * (pictures != 1)}, "
        f"{rejected} rejected (each with its reason)"
        + (f", {failed} picture{'s' if failed != 1 else ''} failed" if failed else "")
    )
    for answer in files.ordered:
        status = answer.frame["status"]
        if not answer.failure and not status.isin(("accepted", "uncertain")).any():
            why = "; ".join(answer.notes) or "nothing stands out from the substrate"
            click.echo(f"{answer.job.image}: no flake found ({why})")
    if any(not answer.failure and answer.pixel_size_um is None for answer in files.ordered):
        click.echo("pixel size unknown: areas are in px; pass --um-per-px for µm²")
    click.echo(f"report: {files.out / 'report.html'}")


def print_flakes(found: pd.DataFrame) -> None:
    """A table of regions."""
    from rich.table import Table

    calibrated = bool(found["area_um2"].notna().all())
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("picture", overflow="fold")
    for head in ("region", "layers", "sure", "area µm²" if calibrated else "area px", "row", "col"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("remark")
    for row in found.to_dict("records"):
        area = float(row["area_um2" if calibrated else "area_px"])
        table.add_row(
            str(row["image"]),
            str(row["region_id"]),
            str(row["layers"]).replace("|", " or "),
            f"{float(row['layers_p']):.2f}",
            f"{area:.1f}" if calibrated else f"{area:.0f}",
            f"{float(row['row_px']):.0f}",
            f"{float(row['col_px']):.0f}",
            str(row["reason"]) if isinstance(row["reason"], str) else "",
        )
    _console().print(table)


def print_json(files: RunFiles) -> None:
    """run.json and all rows of the table as one JSON object on stdout."""
    rows = json.loads(files.frame().to_json(orient="records", double_precision=6))
    out = {"out": str(files.out), "run": files.record(complete=True), "flakes": rows}
    click.echo(json.dumps(out, indent=2, ensure_ascii=False))


def print_timings(files: RunFiles, *, total_s: float) -> None:
    """Seconds of each stage, summed over pictures, on stderr so that --json stays clean."""
    stages = files.timings()
    width = max(map(len, stages), default=0)
    for stage, seconds in stages.items():
        click.echo(f"{stage.removesuffix('_s'):{width}} {seconds:8.3f} s", err=True)
    click.echo(f"{'command, start-up excluded':{width}} {total_s:8.3f} s", err=True)


def print_rows(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A plain table."""
    from rich.table import Table

    table = Table(*heads, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar on stderr if it is a terminal; the callback takes (done, total)."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _console() -> Console:
    from rich.console import Console

    # In a pipe there is no width to respect; names should not be folded there.
    return Console(width=None if sys.stdout.isatty() else 140, highlight=False, markup=False)
