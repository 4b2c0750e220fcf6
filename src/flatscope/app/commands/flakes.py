"""`flatscope flakes`: find the flakes of light micrographs and count their layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis
from flatscope.optical.flakes import FlakeParams
from flatscope.runs.flakes import ENDINGS, Given, make_task
from flatscope.runs.light import LightParams, choose_light, read_known
from flatscope.runs.settings import as_plain

_MANY = 40  # pictures; a page with a hundred must still open on a phone


@analysis(FlakeParams, LightParams)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="JSON file with a few regions of known layer number: refits the set-up.",
)
def flakes(call: Call, params: FlakeParams, light: LightParams) -> Plan:
    """Find flakes in pictures (files, folders, globs) and count their layers.

    Writes flakes.csv (one row a region), flakes.geojson (outlines), report.html, run.json and, for each picture,
    NAME.layers.png (0 substrate, 1 to 6 layers, 254 thick, 255 rejected) and NAME.overlay.png. A picture that cannot
    be analysed is a row with status "failed"; one without flakes has no row, and its reason in run.json and the report.
    """
    if call.options.get("light_order") and light.flatfield == "none":
        raise click.UsageError(
            "--flatfield none takes the light as even, --light-order follows it: give one of them"
        )
    paths = call.find("light")
    params, flat = choose_light(params, light.flatfield, paths)
    if call.options["calibrate"] is not None:
        known = read_known(call.options["calibrate"], flatfield=flat, light_order=params.light_order)
        params = replace(params, known=(*params.known, *known))
    many = len(paths) > _MANY
    given = Given(params, light, flat, 640 if many else 900, 8 if many else 24)
    count = len(paths)
    title = f"{params.material} flakes in {count} picture{'s' * (count > 1)}"
    task = make_task(given, settings=as_plain(params, light), title=title)
    return Plan(task, call.name([(path,) for path in paths], ENDINGS), show.summarise_flakes)
