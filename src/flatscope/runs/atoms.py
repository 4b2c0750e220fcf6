"""The run that finds atomic columns: each image or series, images of one scan together, what is drawn and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from flatscope.electron.columns import ColumnParams, find_brighter, find_columns, share_sites
from flatscope.files.read import read, read_stack
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError, Stack, join
from flatscope.report.atoms import draw_columns, draw_strain
from flatscope.report.figures import encode_png
from flatscope.report.study import make_study_page
from flatscope.results import COLUMN_COLUMNS, ColumnTable, failed_frame
from flatscope.results.exports import find_export
from flatscope.results.table import frame_to_csv
from flatscope.runs.items import Item
from flatscope.runs.settings import as_plain
from flatscope.runs.task import Answer, Content, Finished, Task
from flatscope.units import um_from_nm

_NOTE = (
    "Rings: orange and blue for the two sublattices, green where the column is not the usual one, red where "
    "uncertain; gray crosses: rejected. Positions in nm count from the centre of the first pixel, by the lattice "
    "constant of the material. Strain is against the mean lattice; drift and flyback of a scan look the same."
)


@dataclass(frozen=True)
class ImageParams:
    """What `find_columns` is given besides its own settings.

    Parameters
    ----------
    modality
        ADF-STEM images, or HRTEM focal series of three.
    nm_per_px
        Pixel size; the lattice of the material corrects it.
    signal
        Of files with several data sets (Velox, HyperSpy, HDF5) the name of the one to read. Else HAADF, ADF or the
        first image.
    """

    modality: Literal["stem", "hrtem"] = "stem"
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

    params: ColumnParams
    image: ImageParams


def make_task(params: ColumnParams, image: ImageParams) -> Task:
    """The task of finding atomic columns."""
    hrtem = image.modality == "hrtem"
    return Task(
        "atoms",
        as_plain(params, image),
        alone=measure,
        together=None if hrtem else find_partners,
        conclude=draw,
        tabulate=tabulate,
        views=make_views,
        endings=(".columns.png", ".xyz", ".cif"),
        view_names=("columns.csv", "report.html"),
        given=Given(params, image),
        weights=load_network(params.weights).describe() if hrtem else {},
    )


def list_series(paths: list[Path], *, signal: str = "") -> list[tuple[Path, ...]]:
    """The files of every focal series; files of one image are a series together."""
    series: list[tuple[Path, ...]] = []
    lone: list[Path] = []
    for path in paths:
        try:
            images = len(read_stack(path, signal=signal))
        except MicrographError:
            images = 0  # said when its turn comes
        if images == 1 and len(paths) > 1:
            lone.append(path)
        else:
            series.append((path,))
    return [*series, tuple(lone)] if lone else series


@cache
def load_network(weights: str) -> Network:
    """The network that reads focal series, with one thread."""
    return Network.load(weights, task="columns", threads=1)


def _read(item: Item, given: Given) -> Micrograph | Stack:
    size = given.image.nm_per_px
    um_per_px = None if size is None else um_from_nm(size)
    if given.image.modality == "stem":
        signal = given.image.signal
        return read(item.sources[0], um_per_px=um_per_px, modality="electron", signal=signal)
    return join([read_stack(path, um_per_px=um_per_px, signal=given.image.signal) for path in item.sources])


def measure(item: Item, given: Given) -> ColumnTable:
    """Find the columns of one image or series."""
    network = load_network(given.params.weights) if given.image.modality == "hrtem" else None
    return find_columns(_read(item, given), given.params, network=network).renamed(item.name)


def find_partners(parts: Mapping[str, Callable[[], ColumnTable]], given: Given) -> dict[str, Any]:
    """For images whose sublattices are alike: the brighter one, by an image of another detector in the same scan."""
    if len(parts) < 2:
        return {}
    tables = {name: load() for name, load in parts.items()}
    sure = {name: table for name, table in tables.items() if table.sublattices_sure}
    shared = {}
    for name, table in tables.items():
        partner = next(
            (other for other in sure if name not in sure and share_sites(table, sure[other])), None
        )
        if partner is not None:
            shared[name] = {"brighter": find_brighter(table, sure[partner]), "partner": partner}
    return shared


def tabulate(
    item: Item, table: ColumnTable, shared: dict[str, str] | None, given: Given
) -> dict[str, ColumnTable]:
    """The columns of one image, its sublattices named by a partner where there is one."""
    if shared is None:
        return {"columns": table}
    image = _read(item, given)
    image = replace(image, notes=(*image.notes, f"sublattices are those of {shared['partner']}"))
    known = replace(given.params, brighter=shared["brighter"])
    return {"columns": find_columns(image, known).renamed(item.name)}


def draw(
    item: Item, table: ColumnTable, shared: dict[str, str] | None, given: Given
) -> tuple[Answer, dict[str, bytes]]:
    """The columns, drawn over their image, and the model."""
    table = tabulate(item, table, shared, given)["columns"]
    image = _read(item, given)
    overlay = encode_png(draw_columns(image, table))
    figures = {
        "columns": overlay,
        "strain, distortions of the scan included": draw_strain(table.strain),
    }
    files = {
        ".columns.png": overlay,
        ".xyz": find_export("xyz").encode(table),
        ".cif": find_export("cif").encode(table),
    }
    return Answer({"columns": table}, figures, _count(item.name, table), table.provenance.notes), files


def _count(name: str, table: ColumnTable) -> dict[str, str]:
    """One line about an image."""
    found = table.found
    counts = found["species"].value_counts()
    return {
        "image": name,
        "columns": str(len(found)),
        "species": ", ".join(f"{count} {species}" for species, count in counts.items()),
        "uncertain": str(int((found["status"] == "uncertain").sum())),
        "rejected": str(len(table.rejected)),
        "nm/px": f"{table.calibration.pixel_size_nm[0]:.5f}",
        "lattice px": f"{table.lattice_px:.3f}",
        "sigma pm": f"{1e3 * found['sigma_nm'].median():.1f}" if len(found) else "",
    }


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """Table and report."""
    frames, rows = [], []
    figures: dict[str, bytes] = {}
    notes: list[str] = []
    for item, answer in run.answers():
        frames.append(answer.tables["columns"].frame)
        rows.append(dict(answer.facts))
        figures |= {f"{item.name}: {caption}": picture for caption, picture in answer.figures.items()}
        notes += [f"{item.name}: {note}" for note in answer.notes]
    frames += [failed_frame(COLUMN_COLUMNS, name, why) for name, why in run.failures.items()]
    notes += [f"{name} failed: {why}" for name, why in run.failures.items()]
    whole = pd.concat([frame.astype(object) for frame in frames], ignore_index=True)
    yield "columns.csv", frame_to_csv(ColumnTable.conform(whole))
    yield (
        "report.html",
        make_study_page("Atomic columns", rows or [{"image": "none"}], figures, notes=[*notes, _NOTE]),
    )
