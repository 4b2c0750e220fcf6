"""`flatscope atoms`: find the atomic columns of electron micrographs."""

from __future__ import annotations

from pathlib import Path

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis
from flatscope.electron.columns import ColumnParams
from flatscope.runs.atoms import ImageParams, list_series, make_task
from flatscope.runs.task import Finished


@analysis(ColumnParams, ImageParams)
def atoms(call: Call, params: ColumnParams, image: ImageParams) -> Plan:
    """Find and name every atomic column in images of a monolayer (npy, npz, tif, png, mrc, ndata; with the extra
    vendor also dm3, dm4, emd, hspy, h5, ser).

    ADF-STEM images of several detectors in one scan belong into one call: where medium angles leave it open which
    sublattice is which, another image of the same columns decides. An HRTEM focal series is one file of three images
    (rows and columns last), or three files of one.

    Writes columns.csv (one row a column), NAME.columns.png (rings around the columns), NAME.xyz and NAME.cif (the
    atomic model), report.html and run.json.
    """
    task = make_task(params, image)
    paths = call.find("electron")
    sources = (
        list_series(paths, signal=image.signal) if image.modality == "hrtem" else [(path,) for path in paths]
    )
    return Plan(task, call.name(sources, task.endings), summarise, what="images")


def summarise(run: Finished, out: Path) -> None:
    """Print one line an image."""
    show.print_notes(run)
    rows = [dict(answer.facts) for _, answer in run.answers()]
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
