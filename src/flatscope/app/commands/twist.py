"""`flatscope twist`: measure the twist angles of stacked crystals in pictures or label images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis, with_profile
from flatscope.optical.twist import TwistParams
from flatscope.runs.task import Finished
from flatscope.runs.twist import (
    PictureParams,
    count_reasons,
    find_label_images,
    join_rows,
    make_task,
    say_number,
)


@analysis(TwistParams, PictureParams)
@with_profile
def twist(call: Call, params: TwistParams, picture: PictureParams) -> Plan:
    """Measure the twist angle of every crystal with a second layer in pictures (files, folders, globs).

    Writes twist.csv (one row a second layer; without an angle it has the reason), NAME.twist.png (outlines, axes and
    angles), report.html and run.json. Angles lie in [0, 60]°: 0° where both layers point the same way, 60° where they
    point opposite ways; --fold 30 counts θ and 60° − θ as one.
    """
    paths = find_label_images(call.inputs) if picture.labels else call.find("light")
    task = make_task(params, picture)
    return Plan(task, call.name([(path,) for path in paths], task.endings), summarise)


def summarise(run: Finished, out: Path) -> None:
    """Print the angles, and how many second layers have none and why."""
    frame = join_rows(run)
    frame = frame[frame["status"] != "failed"]
    good = frame[frame["twist_fold30_deg"].notna()]
    if len(good):
        angles = good["twist_deg"].where(good["twist_deg"].notna(), good["twist_fold30_deg"])
        rows = [_describe(row, angle) for angle, row in zip(angles, good.to_dict("records"), strict=True)]
        show.print_rows(("picture", "row", "col", "twist", "sigma", "moiré nm", "status", "remark"), rows)
    if not len(frame):
        pictures = len(run.items) - len(run.failures)
        click.echo(f"no crystal with a second layer in {pictures} picture{'s' * (pictures != 1)}")
        return
    why = count_reasons(frame[frame["twist_fold30_deg"].isna()])
    click.echo(f"{len(good)} of {len(frame)} second layers measured" + (f", {why}" if why else ""))


def _describe(row: dict[Any, Any], angle: float) -> tuple[str, ...]:
    return (
        row["image"],
        f"{row['row_px']:.0f}",
        f"{row['col_px']:.0f}",
        f"{angle:.2f}°",
        f"{row['sigma_deg']:.2f}°",
        f"{say_number(row['moire_nm'])} ± {say_number(row['moire_sigma_nm'])}",
        row["status"],
        row["reason"],
    )
