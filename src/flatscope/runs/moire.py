"""The run that measures twisted bilayers: each image alone, what is drawn and written."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from flatscope.electron.moire import MoireParams, find_moire
from flatscope.files.read import read
from flatscope.micrograph import Micrograph
from flatscope.report.figures import encode_png
from flatscope.report.moire import draw_layers, draw_stacking
from flatscope.report.study import make_study_page
from flatscope.results import LAYER_COLUMN_COLUMNS, MOIRE_COLUMNS, MoireTable, failed_frame
from flatscope.results.exports import find_export
from flatscope.results.table import conform, frame_to_csv
from flatscope.runs.items import Item
from flatscope.runs.settings import as_plain
from flatscope.runs.task import Answer, Content, Finished, Task
from flatscope.units import um_from_nm

_NOTE = (
    "Rings: orange for the first layer, blue for the second; green where the column is not the usual one, gray where "
    "columns of both layers overlap and are not resolved. Which layer is on top an image does not tell; the model puts "
    "the second one below. The first layer is taken to be unstrained: strain is that of the second against it."
)


@dataclass(frozen=True)
class ScanParams:
    """What `find_moire` is given besides its own settings.

    Parameters
    ----------
    nm_per_px
        Pixel size; the lattice of the first material corrects it.
    signal
        Of files with several data sets (Velox, HyperSpy, HDF5) the name of the one to read. Else HAADF, ADF or the
        first image.
    """

    nm_per_px: float | None = None
    signal: str = ""

    def __post_init__(self) -> None:
        if self.nm_per_px is not None and not 0.0 < self.nm_per_px < math.inf:
            raise ValueError(
                f"nm_per_px of {self.nm_per_px:g} is no pixel size: give nm per pixel, such as 0.02"
            )


@dataclass(frozen=True)
class Given:
    """What all images of a run share."""

    params: MoireParams
    scan: ScanParams


def make_task(params: MoireParams, scan: ScanParams) -> Task:
    """The task of measuring twisted bilayers."""
    return Task(
        "moire",
        as_plain(params, scan),
        alone=measure,
        conclude=draw,
        tabulate=tabulate,
        views=make_views,
        endings=(".layers.png", ".xyz", ".cif"),
        view_names=("moire.csv", "columns.csv", "report.html"),
        given=Given(params, scan),
    )


def _read(item: Item, given: Given) -> Micrograph:
    size = given.scan.nm_per_px
    um_per_px = None if size is None else um_from_nm(size)
    return read(item.sources[0], um_per_px=um_per_px, modality="electron", signal=given.scan.signal)


def measure(item: Item, given: Given) -> MoireTable:
    """Measure the bilayer in one image."""
    return find_moire(_read(item, given), given.params).renamed(item.name)


def tabulate(item: Item, table: MoireTable, shared: None, given: Given) -> dict[str, MoireTable]:
    """The pairs of layers of one image."""
    return {"moire": table}


def draw(item: Item, table: MoireTable, shared: None, given: Given) -> tuple[Answer, dict[str, bytes]]:
    """The columns of both layers, drawn over their image, the stacking, and the model."""
    overlay = encode_png(draw_layers(_read(item, given), table))
    figures = {"columns of both layers": overlay, "stacking": draw_stacking(table)}
    files = {
        ".layers.png": overlay,
        ".xyz": find_export("xyz").encode(table),
        ".cif": find_export("cif").encode(table),
    }
    return Answer({"moire": table}, figures, _count(item.name, table), table.provenance.notes), files


def _count(name: str, table: MoireTable) -> dict[str, str]:
    """One line about an image."""
    row = table.frame.iloc[0]
    columns = table.columns[table.columns["status"] != "rejected"]
    overlapping = columns["reason"].str.startswith("overlapping")
    return {
        "image": name,
        "layers": f"{row['material_a']}/{row['material_b']}",
        "twist °": f"{row['twist_deg']:.3f} ± {row['twist_sigma_deg']:.3f}",
        "strain %": f"{row['strain_percent']:+.2f} ± {row['strain_sigma_percent']:.2f}",
        "moiré nm": f"{row['moire_nm']:.3f} ± {row['moire_sigma_nm']:.3f}",
        "columns": str(len(columns)),
        "not resolved": f"{overlapping.mean():.0%}",
        "status": f"{row['status']}{': ' * bool(row['reason'])}{row['reason']}",
    }


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """Tables and report."""
    frames, columns, rows = [], [], []
    figures: dict[str, bytes] = {}
    notes: list[str] = []
    for item, answer in run.answers():
        table = answer.tables["moire"]
        assert isinstance(table, MoireTable)
        frames.append(table.frame)
        columns.append(table.columns)
        rows.append(dict(answer.facts))
        figures |= {f"{item.name}: {caption}": picture for caption, picture in answer.figures.items()}
        notes += [f"{item.name}: {note}" for note in answer.notes]
    for name, why in run.failures.items():
        frames.append(failed_frame(MOIRE_COLUMNS, name, why))
        columns.append(failed_frame(LAYER_COLUMN_COLUMNS, name, why))
        notes.append(f"{name} failed: {why}")
    for name, parts, declared in (
        ("moire.csv", frames, MOIRE_COLUMNS),
        ("columns.csv", columns, LAYER_COLUMN_COLUMNS),
    ):
        whole = pd.concat([part.astype(object) for part in parts], ignore_index=True)
        yield name, frame_to_csv(conform(whole, declared))
    page = make_study_page("Twisted bilayers", rows or [{"image": "none"}], figures, notes=[*notes, _NOTE])
    yield "report.html", page
