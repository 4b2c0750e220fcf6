"""`flatscope moire`: measure twisted bilayers in electron micrographs."""

from __future__ import annotations

from pathlib import Path

from flatscope.app import show
from flatscope.app.command import Call, Plan, analysis
from flatscope.electron.moire import MoireParams
from flatscope.runs.moire import ScanParams, make_task
from flatscope.runs.task import Finished


@analysis(MoireParams, ScanParams)
def moire(call: Call, params: MoireParams, scan: ScanParams) -> Plan:
    """Measure twist, strain, moiré and stacking of twisted bilayers in ADF-STEM images, and find the atomic columns of
    both layers (npy, npz, tif, png, mrc, ndata; with the extra vendor also dm3, dm4, emd, hspy, h5, ser).

    Writes moire.csv (one row a pair of layers), columns.csv (one row a column, with its layer), NAME.layers.png,
    NAME.xyz and NAME.cif (the atomic model), report.html and run.json.
    """
    task = make_task(params, scan)
    items = call.name([(path,) for path in call.find("electron")], task.endings)
    return Plan(task, items, summarise, what="images")


def summarise(run: Finished, out: Path) -> None:
    """Print one line an image."""
    show.print_notes(run)
    rows = [dict(answer.facts) for _, answer in run.answers()]
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
