"""`flatscope export`: write a finished run in other formats."""

from __future__ import annotations

from pathlib import Path

import click

from flatscope.files.write import write_atomic
from flatscope.results import Table
from flatscope.results.exports import EXPORTS, Export, find_export
from flatscope.runs.folder import read_run
from flatscope.runs.run import read_answers
from flatscope.runs.settings import SettingsError
from flatscope.runs.task import Answer


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--to", "formats", required=True, metavar="LIST", help=f"Some of {', '.join(EXPORTS)}.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to write to.  [default: RUN/export]")
def export(run: Path, formats: str, out: Path | None) -> int:
    """Write what a finished RUN found (the --out of flakes, twist, atoms or defects) in other formats.

    A format of a whole run makes one file, named after the table; a format of a picture makes one a picture.
    """
    try:
        chosen = [find_export(name) for name in formats.replace(",", " ").split()]
    except ValueError as error:
        raise SettingsError(f"--to {formats}: {error}") from None
    record = read_run(run)
    if not record["complete"]:
        raise SettingsError(
            f"{run} holds a run that is not finished: start flatscope {record['verb']} again first"
        )
    answers = list(read_answers(run, record))
    if not answers:
        raise SettingsError(f"{run} holds no finished picture: nothing to export")
    target = out or run / "export"
    try:
        # All formats are made before the first is written: one that does not fit leaves nothing half done.
        files = [made for one in chosen for made in _encode(one, answers)]
    except (ValueError, ImportError) as error:
        raise SettingsError(" ".join(str(error).split())) from None
    for name, content in files:
        click.echo(str(write_atomic(target / name, content)))
    return 0


def _encode(export: Export, answers: list[tuple[str, Answer]]) -> list[tuple[str, bytes]]:
    """Names and content of the files of one format; the tables of a run are joined by kind."""
    if export.scope == "picture":
        return [
            (f"{stem}{export.suffix}", export.encode(table))
            for stem, answer in answers
            for table in answer.tables.values()
        ]
    by_kind: dict[str, list[Table]] = {}
    for _, answer in answers:
        for name, table in answer.tables.items():
            by_kind.setdefault(name, []).append(table)
    return [(f"{name}{export.suffix}", export.encode(tables)) for name, tables in by_kind.items()]
