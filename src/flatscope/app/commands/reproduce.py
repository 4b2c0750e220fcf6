"""`flatscope reproduce`: run a published study beside flatscope."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from flatscope.app import show
from flatscope.app.cli import require_training
from flatscope.evaluation.papers import IN_THEIR_SETTING, SETTINGS, SIZES, STUDIES
from flatscope.evaluation.papers import reproduce as run_study
from flatscope.files.read import read
from flatscope.files.write import write_atomic
from flatscope.runs.settings import choose_crystal


@click.command(
    help="Run the protocol of a published STUDY and show its numbers beside flatscope's.\n\n"
    + "\n\n".join(f"{name}: {words}" for name, words in STUDIES.items())
)
@click.argument("study", type=click.Choice(tuple(STUDIES)))
@click.option(
    "--size",
    type=click.Choice(SIZES),
    default="quick",
    show_default=True,
    help="Half a minute, until validation stops improving, or the published size.",
)
@click.option(
    "--setting",
    type=click.Choice(SETTINGS),
    default="across",
    show_default=True,
    help="As published: one microscope, their split; or across set-ups.",
)
@click.option("--quick", "size", flag_value="quick", help="The same as --size quick.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("reproduced"),
    show_default=True,
    help="Folder for report, table and checkpoints; the same command goes on from them.",
)
@click.option(
    "--image", type=click.Path(path_type=Path), help="For ke2023: the experimental image; else one is drawn."
)
@click.option("--material", default=None, help="For ke2023: its crystal (MoS2 by default).")
@click.option("--dopants", default=None, help="For ke2023: an element known to occupy metal sites.")
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="For ke2023: table with row_px, col_px, label of its columns.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
def reproduce(study: str, size: str, setting: str, out: Path, as_json: bool, **given: Any) -> int:
    require_training()
    more = _read_experiment(**given) if study == "ke2023" else {}
    if study in IN_THEIR_SETTING:
        more["setting"] = setting
    elif setting == "published":
        raise click.UsageError(f"--setting published: only {', '.join(IN_THEIR_SETTING)} take it so far")
    if study != "ke2023" and any(value is not None for value in given.values()):
        raise click.UsageError("--image, --material, --dopants and --labels belong to ke2023")
    with show.progress("steps") as on_progress:
        answer = run_study(study, size, out=out / study, on_progress=on_progress, **more)
    numbers = json.dumps(answer.numbers, indent=1, default=lambda array: array.tolist())
    write_atomic(out / f"{study}.json", numbers)
    write_atomic(out / f"{study}.html", answer.to_html())
    if as_json:
        click.echo(numbers)
    else:
        _print_table(answer.rows)
        click.echo(f"report: {out / study}.html")
    return 0


def _read_experiment(
    *, image: Path | None, material: str | None, dopants: str | None, labels: Path | None
) -> dict[str, Any]:
    """What ke2023 takes beside its size: an experimental image, its crystal and its labels."""
    if image is None:
        if material or dopants or labels:
            raise click.UsageError("--material, --dopants and --labels describe an image: give it by --image")
        return {}
    params = choose_crystal(material or "MoS2", dopants=dopants or "")
    return {"image": read(image, modality="electron"), "params": params, "labels": labels}


def _print_table(rows: Sequence[dict[str, str]]) -> None:
    """Unlike `show.print_rows`, never folded: these tables are wide."""
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())
