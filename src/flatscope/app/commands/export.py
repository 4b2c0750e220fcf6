"""`flatscope export`: write a finished run in other formats."""

from __future__ import annotations

from pathlib import Path

import click

from flatscope.files.write import write_atomic
from flatscope.results.exports import EXPORTS, find_export
from flatscope.runs.exporting import encode_run
from flatscope.runs.folder import read_run
from flatscope.runs.run import read_answers
from flatscope.runs.settings import SettingsError


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
    answers = [(stem, answer.tables) for stem, answer in read_answers(run, record)]
    if not answers:
        raise SettingsError(f"{run} holds no finished picture: nothing to export")
    target = out or run / "export"
    try:
        # All formats are made before the first is written: one that does not fit leaves nothing half done.
        files = [made for one in chosen for made in encode_run(one, answers)]
    except (ValueError, ImportError) as error:
        raise SettingsError(" ".join(str(error).split())) from None
    for name, content in files:
        click.echo(str(write_atomic(target / name, content)))
    return 0
