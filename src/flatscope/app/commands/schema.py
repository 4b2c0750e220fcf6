"""`flatscope schema`: the JSON schema of a command's settings, or of the rows it writes."""

from __future__ import annotations

import json

import click

from flatscope.app.cli import find_command
from flatscope.results import TABLES
from flatscope.results.table import make_schema
from flatscope.runs import settings

_ANALYSES = ("flakes", "twist", "atoms", "moire", "defects")


@click.command()
@click.argument("what", type=click.Choice([*_ANALYSES, *(f"{kind.NAME}.csv" for kind in TABLES)]))
def schema(what: str) -> None:
    """Print the JSON schema of the file that `flatscope WHAT --settings` takes, or of the rows of a table."""
    if what in _ANALYSES:
        kinds = find_command(what).settings_kinds  # type: ignore[attr-defined]
        made = settings.make_schema(f"Settings of flatscope {what}", *kinds)
    else:
        (kind,) = (kind for kind in TABLES if f"{kind.NAME}.csv" == what)
        made = make_schema(what, kind.COLUMNS)
    click.echo(json.dumps(made, indent=2, ensure_ascii=False))
