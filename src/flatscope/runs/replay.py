"""Corrections of users put into effect on the light half of a run: known crystals, layers, residue, pixel size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.micrograph import Calibration
from flatscope.optical.flakes import FlakeParams, choose_least_px
from flatscope.optical.observations import MOST_LAYERS, KnownRegion
from flatscope.optical.regions import Regions
from flatscope.optical.tabulation import sort_by_interest
from flatscope.optical.verdicts import Verdict, name_layers
from flatscope.results import REJECTED_LABEL, THICK_LABEL, THIN_LABEL, FlakeTable
from flatscope.runs.edits import (
    Edits,
    Known,
    KnownColour,
    Line,
    Outline,
    PixelSize,
    Place,
    Residue,
    Restore,
    SetLayers,
)
from flatscope.runs.reshape import find_deepest, find_region, name_drawn, trace_corners
from flatscope.units import nm_from_um

_THICKNESS = ("thickness_nm", "thickness_low_nm", "thickness_high_nm")
_NUMBERS = (*map(str, range(1, MOST_LAYERS + 1)), "thick")


def collect_known(
    edits: Edits, material: str, parts: Mapping[str, Callable[[], Regions]]
) -> tuple[KnownRegion, ...]:
    """The known crystals of a run: the contrast of the region at each place, or of the place where there is none.

    Parameters
    ----------
    edits
        All corrections.
    material
        What was said of other materials does not count.
    parts
        Name of a picture to what loads its regions.
    """
    known = [
        KnownRegion(line.layers, line.contrast) for line in edits.of(KnownColour) if line.material == material
    ]
    for line in edits.of(Known):
        if line.material != material or line.layers > MOST_LAYERS:
            continue
        contrast = line.contrast
        if line.image in parts:
            regions = parts[line.image]()
            region = find_region(regions, line) if line.is_in(line.image, regions.sha256) else 0
            if region:
                red, green, blue = regions.measured.contrast[region - 1].tolist()
                contrast = (red, green, blue)
        if contrast is not None:
            known.append(KnownRegion(line.layers, contrast))
    return tuple(known)


def adopt_layer_image(table: FlakeTable, layers: NDArray[np.uint8]) -> list[Line]:
    """Turn a layer image that somebody painted over into corrections.

    Parameters
    ----------
    table
        The answer whose layer image it was.
    layers
        As it is now, shape (rows, cols).

    Returns
    -------
    A correction for each region of which most pixels have another value now, and an outline around other painted
    pixels.
    """
    lines: list[Line] = []
    frame, values = table.frame, table.layer_values()
    about: dict[str, Any] = {"image": table.provenance.image, "sha256": table.provenance.image_sha256}
    count = int(table.labels.max(initial=0)) + 1
    pairs = table.labels.ravel().astype(np.int64) * 256 + layers.ravel()
    votes = np.bincount(pairs, minlength=256 * count).reshape(count, 256)
    said = np.full(count, REJECTED_LABEL, np.uint8)
    said[0] = 0
    for row, region in enumerate(frame["region_id"].tolist()):
        painted = said[region] = int(votes[region].argmax())
        if painted == values[row]:
            continue
        row_px, col_px = find_deepest((table.labels == region) & (layers == painted))
        place: dict[str, Any] = {
            **about,
            "row_px": row_px,
            "col_px": col_px,
            "before": {name: str(frame[name].iloc[row]) for name in ("layers", "status", "reason")},
        }
        lines.append(SetLayers(**place, layers=_name(painted)) if _name(painted) else Residue(**place))
    rest = layers != said[table.labels]
    for value in np.unique(layers[rest]).tolist():
        for corners in trace_corners(rest & (layers == value)):
            lines.append(Outline(**about, corners=corners, layers=_name(value)))
    return lines


def _name(value: int) -> str:
    """Layers as a correction names them, of a value in a layer image; "" for no crystal."""
    if value in (0, REJECTED_LABEL):
        return ""
    return {THIN_LABEL: "thin", THICK_LABEL: "thick"}.get(value, str(value))


def set_pixel_size(regions: Regions, lines: Sequence[Line], params: FlakeParams) -> Regions:
    """The regions with the pixel size that a user gave them, and the smallest area that follows from it."""
    sizes = [
        line
        for line in lines
        if isinstance(line, PixelSize)
        and (line.image == regions.image or (not line.image and regions.calibration is None))
    ]
    if not sizes:
        return regions
    calibration = Calibration((nm_from_um(sizes[-1].um_per_px),) * 2, "user")
    least_px = choose_least_px(params, calibration) / regions.factor**2
    return replace(regions, calibration=calibration, least_px=least_px)


def correct(table: FlakeTable, lines: Sequence[Line]) -> FlakeTable:
    """Put what users said of regions into their rows; the last word about a region counts.

    Parameters
    ----------
    table
        As the optics have it.
    lines
        Corrections of its picture.
    """
    rows, cols = table.labels.shape

    def find(place: Place) -> int:
        row, col = round(place.row_px), round(place.col_px)
        return int(table.labels[row, col]) if row < rows and col < cols else 0

    frame, notes = correct_rows(table.frame, lines, find, sha256=table.provenance.image_sha256)
    provenance = replace(table.provenance, notes=(*table.provenance.notes, *notes))
    return replace(table, frame=frame, provenance=provenance)


def correct_rows(
    frame: pd.DataFrame, lines: Sequence[Line], find: Callable[[Place], int], *, sha256: str
) -> tuple[pd.DataFrame, list[str]]:
    """The same for rows alone.

    Parameters
    ----------
    frame
        Rows of one picture.
    lines
        Its corrections.
    find
        The region at a place, 0 for none.
    sha256
        Of the picture.

    Returns
    -------
    The rows by interest, and what a user should know.
    """
    numbers = {int(region): row for row, region in enumerate(frame["region_id"])}
    notes: list[str] = []
    done = 0
    for line in lines:
        if isinstance(line, Outline) and line.layers:
            line = name_drawn(line)
        if not isinstance(line, Known | SetLayers | Residue | Restore):
            continue
        if not line.is_in(line.image, sha256):
            notes.append(f"{line.describe()}: the picture has changed since, the correction does not count")
            continue
        region = find(line)
        if region not in numbers:
            notes.append(f"{line.describe()}: no region is there, so that the correction changes none")
            continue
        for name, value in _correct_row(frame.iloc[numbers[region]].to_dict(), line).items():
            frame.loc[numbers[region], name] = value
        done += 1
    if done:
        notes.append(f"{done} correction{'s' * (done > 1)} by hand")
    return sort_by_interest(frame), notes


def _correct_row(row: dict[str, Any], line: Line) -> dict[str, Any]:
    """The cells of a row that a correction changes."""
    match line:
        case Residue():
            return {
                "layers": "",
                "layers_p": np.nan,
                "p_flake": 0.0,
                "status": "rejected",
                "reason": "marked as residue by hand",
            }
        case Restore():
            if row["status"] != "rejected":
                return {}
            verdict = name_layers(np.array([row[f"p_{number}"] for number in _NUMBERS], float), faint=False)
            return {
                **_state(verdict),
                "p_flake": 1.0,
                "reason": f"restored by hand; {verdict.reason}".strip("; "),
            }
        case SetLayers(layers=layers):
            return _set_layers(layers, "set by hand")
        case Known(layers=number, height_nm=height):
            said = "known" if height is None else f"known: {height:g} nm high"
            cells = _set_layers(str(number) if number <= MOST_LAYERS else "thick", said)
            high = {} if height is None else dict.fromkeys(_THICKNESS, height)
            return {**cells, **high}
    return {}


def _state(verdict: Verdict) -> dict[str, Any]:
    return {
        "layers": verdict.layers,
        "layers_p": verdict.p,
        "status": verdict.status,
        "reason": verdict.reason,
    }


def _set_layers(layers: str, reason: str) -> dict[str, Any]:
    """Cells of a region whose layer numbers a user states."""
    if layers == "thin":
        nothing = dict.fromkeys(
            (*(f"p_{number}" for number in _NUMBERS), "layers_low", "layers_high"), np.nan
        )
        said = Verdict("thin", np.nan, "uncertain", reason)
        return {**nothing, **_state(said), "p_flake": 1.0}
    named = layers.split("|")
    merged = {name if name in _NUMBERS else "thick" for name in named}
    chances = {f"p_{number}": (number in merged) / len(merged) for number in _NUMBERS}
    counts = [int(name) for name in named if name.isdigit()]
    ends = {"layers_low": min(counts), "layers_high": max(counts)} if len(counts) == len(named) else {}
    status = "accepted" if len(named) == 1 else "uncertain"
    return {**chances, **ends, **_state(Verdict(layers, 1.0, status, reason)), "p_flake": 1.0}
