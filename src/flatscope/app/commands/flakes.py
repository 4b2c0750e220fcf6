"""`flatscope flakes`: find the flakes of light micrographs and count their layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from numpy.typing import NDArray

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis, with_profile
from flatscope.optical.flakes import FlakeParams
from flatscope.runs.flakes import ENDINGS, Given, plan
from flatscope.runs.items import Item
from flatscope.runs.light import LAYER_IMAGE, LightParams, Stated, adopt_painted, choose_light, write_down

if TYPE_CHECKING:
    from flatscope.runs.edits import Line


@analysis(FlakeParams, LightParams)
@with_profile
@click.option(
    "--known",
    multiple=True,
    metavar="FILE@ROW,COL=1L",
    help="A crystal whose layer number (=1L) or height (=23.5nm) is known: refits the set-up. Several times.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="JSON file with a few regions of known layer number, to the same end.",
)
@click.option("--trust", is_flag=True, help="Believe known regions also where the optics disagree.")
def flakes(call: Call, params: FlakeParams, light: LightParams) -> Plan:
    """Find flakes in pictures (files, folders, globs) and count their layers.

    Writes flakes.csv (one row a region), flakes.geojson (outlines), report.html, run.json and, for each picture,
    NAME.layers.png (0 substrate, 1 to 10 layers, 253 thin and not known, 254 thick, 255 rejected) and NAME.overlay.png.
    A picture that cannot be analysed is a row with status "failed"; one without flakes has no row, and its reason in
    run.json and the report. What you know of single crystals (--known, --calibrate) stays in edits.jsonl and counts at
    every start.
    """
    if call.options.get("light_order") and light.flatfield == "none":
        raise click.UsageError(
            "--flatfield none takes the light as even, --light-order follows it: give one of them"
        )
    paths = call.find("light")
    params, flat = choose_light(params, light.flatfield, paths)
    items = call.name([(path,) for path in paths], ENDINGS)
    edits, fresh = _collect_edits(call, items, params, flat)
    task = plan(Given(params, light, flat, edits=edits), items)
    return Plan(task, items, show.summarise_flakes, edits=fresh)


def _collect_edits(
    call: Call, items: Sequence[Item], params: FlakeParams, flat: NDArray[np.float32] | None
) -> tuple[tuple[str, ...], list[Line]]:
    """All corrections of the run as lines of `edits.jsonl`, and those that are not in it yet."""
    stated = Stated(call.options["known"], call.options["calibrate"], call.options["trust"])
    folder = call.folder
    changed = set() if folder.record is None else folder.find_changed()
    painted = {name for name in changed if name.endswith(LAYER_IMAGE)}
    if not (stated.places or stated.calibrate or painted or (folder.out / "edits.jsonl").exists()):
        return (), []
    from flatscope.runs.edits import keep_new, read_edits, sign  # pydantic takes 0.1 s

    had = read_edits(folder.out)
    problems = list(had.problems)
    fresh = keep_new(write_down(stated, items, params, flatfield=flat), had)
    if painted and folder.record is not None:
        lines, told = adopt_painted(folder.out, folder.record, painted)
        fresh += [sign(line) for line in keep_new(lines, had, ever=True)]
        problems += told
    for problem in problems:
        click.echo(f"flatscope: {problem}", err=True)
    return had.with_lines(fresh).list_lines(), fresh
