"""From regions and their layer probabilities to a table: one row a region, the most interesting first."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from shapely.geometry.base import BaseGeometry

import flatscope
from flatscope.optical.layers import LayerPosterior
from flatscope.optical.observations import MOST_LAYERS
from flatscope.optical.regions import Regions
from flatscope.optical.verdicts import reach_verdicts, weigh_evidence
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Marks, Provenance, column_names
from flatscope.results.marks import trace_outlines

_INTERVAL = 0.95
"""Probability that a thickness lies in its interval, and the layer number with it where the interval holds one only."""
_THIN_GUESS = 3.0
"""Layers that a thin crystal has for the ranking, as long as nobody knows its number."""


def tabulate(
    regions: Regions, posterior: LayerPosterior, *, material: str, settings: Mapping[str, Any]
) -> FlakeTable:
    """Make the table of one picture, at its own pixels, sorted by interest.

    Parameters
    ----------
    regions
        What `flatscope.optical.flakes.find_regions` found in it.
    posterior
        Layer probabilities of all regions; those of regions below the smallest area may be NaN.
    material
        Name of the crystal.
    settings
        Of the verb, as plain values, for the provenance.
    """
    begun = time.perf_counter()
    frame = list_rows(regions, posterior, material)
    labels = regions.enlarge_labels()
    outlines = trace_outlines(labels, frame["region_id"].to_numpy(int))
    open_notes = _note_open(frame, outlines, regions.image)
    timings = {**regions.timings_s, "outlines_s": round(time.perf_counter() - begun, 4)}
    provenance = Provenance(
        regions.image,
        regions.sha256,
        settings,
        regions.weights.name,
        regions.weights.version,
        regions.weights.sha256,
        flatscope.__version__,
        (*regions.notes, *posterior.notes, *_note_material(regions, material), *open_notes),
        {**timings, "total_s": round(sum(timings.values()), 4)},
    )
    marks = Marks.outlines(outlines, regions.shape)
    return FlakeTable(frame, marks, regions.calibration, provenance, labels, preview=regions.preview)


def list_rows(regions: Regions, posterior: LayerPosterior, material: str) -> pd.DataFrame:
    """The rows of one picture by interest, without outlines: what `tabulate` puts into its table."""
    return sort_by_interest(_make_frame(regions, posterior, material))


def _make_frame(regions: Regions, posterior: LayerPosterior, material: str) -> pd.DataFrame:
    """One row for each region that is large enough, in pixels of the picture."""
    rows, measured, factor = np.flatnonzero(regions.large_enough), regions.measured, regions.factor
    p_flake = weigh_evidence(regions, posterior)
    verdicts = [
        replace(verdict, layers=str(number), p=_INTERVAL * verdict.p)
        if number and verdict.layers == "thick"
        else verdict
        for verdict, number in zip(
            reach_verdicts(regions, posterior, p_flake, material),
            posterior.thickness.number[rows].tolist(),
            strict=True,
        )
    ]
    centre = measured.centre if factor == 1 else (measured.centre + 0.5) * factor - 0.5
    area_px = measured.area_px[rows] * factor**2
    size = np.nan if regions.calibration is None else regions.calibration.pixel_area_um2
    columns = {
        "image": regions.image,
        "flake_id": regions.flake_id[rows],
        "region_id": rows + 1,
        "layers": [verdict.layers for verdict in verdicts],
        "layers_p": np.array([verdict.p for verdict in verdicts], float),
        "p_flake": p_flake[rows],
        **{f"p_{layer + 1}": posterior.p[rows, layer] for layer in range(MOST_LAYERS)},
        "p_thick": posterior.p[rows, MOST_LAYERS],
        "status": [verdict.status for verdict in verdicts],
        "reason": [verdict.reason for verdict in verdicts],
        "area_um2": area_px * size,
        "area_px": area_px.astype(int),
        "row_px": centre[rows, 0],
        "col_px": centre[rows, 1],
        "touches_edge": regions.touches_edge[rows],
        **{f"contrast_{name}": measured.contrast[rows, channel] for channel, name in enumerate("rgb")},
        "oxide_nm": posterior.oxide_nm,
        "oxide_sigma_nm": posterior.oxide_sigma_nm,
        "layers_low": posterior.low[rows],
        "layers_high": posterior.high[rows],
        **posterior.thickness.take(rows).columns(),
    }
    frame = pd.DataFrame(columns, columns=list(column_names(FLAKE_COLUMNS)))
    unknown = frame["layers"] == "thin"
    numbers = [name for name in frame if name.startswith(("p_", "layers_")) and name != "p_flake"]
    frame.loc[unknown, [*numbers, "thickness_nm", "thickness_low_nm", "thickness_high_nm"]] = np.nan
    frame.loc[unknown, "thickness_candidates_nm"] = ""
    return frame


def _note_open(frame: pd.DataFrame, outlines: Mapping[int, BaseGeometry], image: str) -> tuple[str, ...]:
    """Say how thin crystals get their layer numbers."""
    thin = frame.loc[frame["layers"] == "thin", "region_id"]
    if not len(thin):
        return ()
    inside = outlines[int(thin.iloc[0])].representative_point()
    place = f"--known {image}@{inside.y:.0f},{inside.x:.0f}=1L"
    which = "1 thin crystal has" if len(thin) == 1 else f"{len(thin)} thin crystals have"
    return (f"{which} no layer number: name the number of one place, such as {place}, and the others follow",)


def _note_small(regions: Regions) -> Iterator[str]:
    """Say how many regions are too small to be listed."""
    small, least_px = int((~regions.large_enough).sum()), regions.least_px * regions.factor**2
    size = f"{least_px:.0f} px"
    if regions.calibration is not None:
        size = f"{least_px * regions.calibration.pixel_area_um2:.3g} µm²"
    if small or regions.specks:
        specks = f" and {regions.specks} specks" * bool(regions.specks)
        yield f"{small} regions below {size}{specks} are not listed"


def _note_material(regions: Regions, material: str) -> tuple[str, ...]:
    """Notes on areas and layer numbers."""
    notes = list(_note_small(regions))
    if len(regions) and regions.calibration is None:
        notes.append("pixel size unknown: areas in px only; pass --um-per-px for µm²")
    if regions.weights.material not in ("", material):
        notes.append(f"the weights are adapted to {regions.weights.material}: its colours are left out")
    if material == "hBN":
        notes.append("hBN monolayers have a contrast of at most 0.02: many will be missed")
    return tuple(notes)


def sort_by_interest(frame: pd.DataFrame) -> pd.DataFrame:
    """Thin, large and sure regions first, rejected ones last.

    Interest is the logarithm of the area, times the probability that it is a crystal, times that of the stated layer
    number, over the square root of the expected one. Where no number is known, the odds are even and three layers are
    expected.

    Parameters
    ----------
    frame
        Rows of flake tables, of one picture or of several.
    """
    numbers = np.array([1, 2, 3, 4, 5, 6, 12.0])
    p = frame[["p_1", "p_2", "p_3", "p_4", "p_5", "p_6", "p_thick"]].to_numpy(float)
    expected = np.where(frame["layers"] == "thin", _THIN_GUESS, np.nan_to_num(p @ numbers, nan=50.0))
    stated = frame["layers_p"].fillna(0.5) * frame["p_flake"].fillna(0.0)
    interest = np.log(frame["area_px"]) * stated / np.sqrt(expected)
    rank = frame["status"].map({"accepted": 0, "uncertain": 0}).fillna(1)
    order = np.lexsort((-frame["area_px"], -interest, rank))
    return frame.iloc[order].reset_index(drop=True)
