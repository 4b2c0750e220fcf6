"""`flatscope defects`: find, name and follow point defects in ADF-STEM images and movies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis
from flatscope.electron.tracks import TrackParams
from flatscope.files.movie import VIDEO_SUFFIXES
from flatscope.files.read import ELECTRON_SUFFIXES
from flatscope.micrograph import MicrographError
from flatscope.runs.defects import ImageParams, make_task
from flatscope.runs.task import Finished


@analysis(TrackParams, ImageParams)
def defects(call: Call, params: TrackParams, image: ImageParams) -> Plan:
    """Find, name and follow point defects in ADF-STEM images and movies of a monolayer.

    Images: npy, npz, tif, png, mrc, ndata and, with the extra vendor, dm3, dm4, emd, hspy, h5, ser. Movies: stacks of
    these, and with the extra movies mp4, avi, mov, gif.

    Writes defects.csv (one row a defect, in a movie one a defect and frame), NAME.defects.png, for movies tracks.csv,
    events.csv and NAME.defects.mp4, and report.html and run.json.
    """
    paths = _list_inputs(call)
    threads = call.options["workers"] or 2 if len(paths) == 1 else 1
    task = make_task(params, image, threads=threads)
    return Plan(task, call.name([(path,) for path in paths], task.endings), summarise, what="inputs")


def _list_inputs(call: Call) -> list[Path]:
    """Videos as they are named, and everything else as images and stacks."""
    videos = [Path(item) for item in call.inputs if Path(item).suffix.lower() in VIDEO_SUFFIXES]
    for video in videos:
        if not video.is_file():
            raise MicrographError(f"{video}: no such file: check the path")
    rest = tuple(item for item in call.inputs if Path(item) not in videos)
    suffixes = (*ELECTRON_SUFFIXES, *VIDEO_SUFFIXES)
    return [*videos, *replace(call, inputs=rest).find("electron", suffixes=suffixes)] if rest else videos


def summarise(run: Finished, out: Path) -> None:
    """Print one line an input."""
    show.print_notes(run)
    rows = [answer.facts["line"] for _, answer in run.answers()]
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
