"""`flatscope benchmark`: measure how fast networks run on this machine."""

from __future__ import annotations

import json

import click

from flatscope.app import show
from flatscope.app.cli import require_training


@click.group()
def benchmark() -> None:
    """Measure how fast networks run on this machine."""


@benchmark.command()
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Times each is timed.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def layers(rounds: int, threads: int, as_json: bool) -> int:
    """Time the networks for layer numbers: pictures of 512×512 a second, one at a time."""
    require_training()
    from flatscope.evaluation.benchmark import OURS, tabulate, time_layer_networks

    with show.progress("timings") as on_progress:
        speeds = time_layer_networks(rounds=rounds, threads=threads, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps([speed.to_dict() for speed in speeds]))
        return 0
    rows = tabulate(speeds)
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
    click.echo(f"ours is: times as fast as this line, {OURS} in the same runtime")
    return 0
