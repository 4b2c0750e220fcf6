"""`flatscope benchmark`: how fast networks run on this machine."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

from flatscope.app import show
from flatscope.app.train import require_training


@click.group()
def benchmark() -> None:
    """Measure how fast networks run on this machine."""


@benchmark.command()
@click.option("--rounds", type=click.IntRange(1), default=7, show_default=True, help="Times each is timed.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def layers(rounds: int, threads: int, as_json: bool) -> int:
    """Networks that tell layer numbers: pictures of 512×512 a second, one at a time."""
    require_training()
    from flatscope.evaluation.benchmark import OURS, PUBLISHED_PER_SECOND, time_layer_networks

    with show.progress("timings") as on_progress:
        speeds = time_layer_networks(rounds=rounds, threads=threads, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps([{**asdict(speed), "per_second": speed.per_second} for speed in speeds]))
        return 0
    ours = {speed.runtime: speed.seconds for speed in speeds if speed.network == OURS}
    click.echo(
        f"{'network':18}  {'runtime':12}  {'a second':>8}  {'ms':>7}  {'quartiles':>15}  {'ours is':>8}  "
        f"{'peak MiB':>8}  published"
    )
    for speed in speeds:
        peak = "" if speed.peak_mib != speed.peak_mib else f"{speed.peak_mib:.0f}"
        published = PUBLISHED_PER_SECOND.get(speed.network) if speed.runtime == "torch" else None
        ratio = f"{speed.seconds / ours[speed.runtime]:.1f}x" if speed.runtime in ours else ""
        quartiles = f"{1000 * speed.low:.0f} to {1000 * speed.high:.0f}"
        click.echo(
            f"{speed.network:18}  {speed.runtime:12}  {speed.per_second:8.2f}  {1000 * speed.seconds:7.0f}  "
            f"{quartiles:>15}  {ratio:>8}  {peak:>8}  {'' if published is None else f'{published:.2f}'}".rstrip()
        )
    click.echo(f"ours is: times as fast as this line, {OURS} in the same runtime")
    return 0
