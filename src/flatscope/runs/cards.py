"""What a card shows of a row of an electron micrograph: its crop, what speaks for its kind; and maps over an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatscope.electron.rates import count_kinds
from flatscope.results import ColumnTable, DefectTable, MoireTable, Table, TrackTable

Pixels = NDArray[np.uint8]
_ENLARGED_PX = 192
"""Side of a crop on a card."""
_STRAINS = ("strain_xx", "strain_yy", "shear")
_BOUND = 0.99
"""Quantile of a map's absolute values that becomes its deepest colour."""
_STACKINGS = {"AA": (230, 159, 0), "AB": (86, 180, 233), "BA": (0, 158, 115), "SP": (120, 120, 120)}
_H_NAMES = ("2H", "MM or XX", "XX or MM", "SP")
_ORANGE = np.array([255.0, 140.0, 0.0])


@dataclass(frozen=True)
class Overlay:
    """A map that lies over a picture.

    Parameters
    ----------
    pixels
        Shape (rows, cols, 4), red, green, blue and opacity.
    unit, low, high
        Of what it shows; empty and 0 for classes.
    legend
        Names of classes and their colours.
    """

    pixels: Pixels
    unit: str = ""
    low: float = 0.0
    high: float = 0.0
    legend: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def list_maps(table: Table) -> list[str]:
    """Names of the maps that belong to an answer."""
    if isinstance(table, ColumnTable):
        return list(_STRAINS)
    if isinstance(table, MoireTable):
        return ["stacking"]
    return ["residual"] if isinstance(table, DefectTable) else []


def draw_overlay_map(table: Table, name: str) -> Overlay:
    """One of `list_maps`.

    Raises
    ------
    KeyError
        If the answer has no such map.
    """
    if name not in list_maps(table):
        raise KeyError(name)
    if isinstance(table, ColumnTable):
        return _colour(table.strain[_STRAINS.index(name)], "%")
    if isinstance(table, DefectTable):
        return _colour(table.residual, "σ")
    assert isinstance(table, MoireTable)
    colours = np.array(list(_STACKINGS.values()), np.uint8)[table.stacking]
    opacity = np.full((*table.stacking.shape, 1), 255, np.uint8)
    is_h = len(table) and table.frame["kind"].iloc[0] == "H"
    names = _H_NAMES if is_h else tuple(_STACKINGS)
    legend = dict(zip(names, _STACKINGS.values(), strict=True))
    return Overlay(np.concatenate([colours, opacity], axis=2), legend=legend)


def _colour(values: NDArray[np.float64], unit: str) -> Overlay:
    """Red above zero, blue below, nothing where nothing is known."""
    from matplotlib import colormaps

    known = np.isfinite(values)
    bound = float(np.quantile(np.abs(values[known]), _BOUND)) if known.any() else 1.0
    bound = bound or 1.0
    scaled = 0.5 + 0.5 * np.clip(np.where(known, values, 0.0) / bound, -1.0, 1.0)
    pixels = np.asarray(colormaps["RdBu_r"](scaled, bytes=True), np.uint8).copy()
    pixels[..., 3] = np.where(known, 255, 0)
    return Overlay(pixels, unit, -bound, bound)


def cut_crops(table: Table, row_id: int, picture: Image.Image) -> dict[str, Image.Image]:
    """The surroundings of a row, and where a network looked at them what spoke for the row's kind.

    Parameters
    ----------
    table
        The answer.
    row_id
        The row; of a movie, the track.
    picture
        Of the item, or of the frame.
    """
    if isinstance(table, DefectTable):
        (places,) = np.nonzero(table.frame["defect_id"].to_numpy() == row_id)
        if not len(places):
            return {}
        crop, evidence = table.crops[places[0]], table.evidence[places[0]]
        gray = _to_gray(crop)
        crops = {"crop": _enlarge(gray)}
        if np.isfinite(evidence).all() and evidence.size:
            crops["evidence"] = _lay_over(gray, evidence)
        return crops
    if isinstance(table, ColumnTable) and row_id in table.marks:
        place, reach = table.marks[row_id], 1.5 * table.lattice_px
        box = (place.x - reach, place.y - reach, place.x + reach + 1, place.y + reach + 1)
        part = picture.crop(tuple(round(side) for side in box))
        return {"crop": part.resize((_ENLARGED_PX,) * 2, Image.Resampling.BICUBIC).convert("RGB")}
    return {}


def _to_gray(crop: NDArray[np.float64]) -> Pixels:
    low, high = float(np.nanmin(crop)), float(np.nanmax(crop))
    return np.asarray(255.0 * (np.nan_to_num(crop) - low) / max(high - low, 1e-12), np.uint8)


def _enlarge(gray: Pixels) -> Image.Image:
    return Image.fromarray(gray).resize((_ENLARGED_PX,) * 2, Image.Resampling.NEAREST).convert("RGB")


def _lay_over(gray: Pixels, evidence: NDArray[np.float64]) -> Image.Image:
    """Orange where the network looked."""
    weight = np.maximum(evidence, 0.0) / max(float(evidence.max()), 1e-12)
    small = Image.fromarray(np.asarray(255.0 * weight, np.uint8))
    share = np.asarray(small.resize((_ENLARGED_PX,) * 2, Image.Resampling.BILINEAR), float)[..., None] / 255.0
    base = np.asarray(_enlarge(gray), float)
    return Image.fromarray(np.asarray(base * (1 - 0.6 * share) + 0.6 * share * _ORANGE, np.uint8))


def collect_intensities(table: Table) -> list[dict[str, Any]]:
    """Brightness of the sites of an image by class: species of columns, or kinds of defects.

    Returns
    -------
    Of each class its name, its sublattice and its values.
    """
    if not isinstance(table, ColumnTable | DefectTable):
        return []
    value, name = ("intensity", "species") if isinstance(table, ColumnTable) else ("intensity_ratio", "kind")
    found = table.found
    found = found[np.isfinite(found[value].to_numpy(float))]
    return [
        {"name": str(kind), "sublattice": str(site), "values": rows[value].round(4).tolist()}
        for (site, kind), rows in found.groupby(["sublattice", name], sort=True)
    ]


def describe_movie(table: TrackTable, n_frames: int) -> dict[str, Any]:
    """Tracks, events and counts of a movie, places in pixels of their frame."""
    frame = table.frame.sort_values(["track_id", "frame"], kind="stable")
    tracks = [
        {
            "id": int(number),
            "kind": str(rows["kind"].iloc[0]),
            "frames": rows["frame"].astype(int).tolist(),
            "x": rows["col_px"].round(2).tolist(),
            "y": rows["row_px"].round(2).tolist(),
        }
        for number, rows in frame.groupby("track_id", sort=True)
    ]
    counts = count_kinds(frame, np.arange(n_frames))
    return {
        "n_frames": n_frames,
        "frame_s": table.frame_s,
        "tracks": tracks,
        "events": _describe_events(table),
        "count": {"kinds": list(counts.columns), "by_frame": [counts[kind].tolist() for kind in counts]},
    }


def _describe_events(table: TrackTable) -> list[dict[str, Any]]:
    """Each event where its track was nearest in time."""
    by_track = dict(iter(table.frame.groupby("track_id")))
    events = []
    for event in table.events.to_dict("records"):
        rows, x, y = by_track.get(event["track_id"]), None, None
        if rows is not None:
            near = rows.iloc[int((rows["frame"] - event["frame"]).abs().to_numpy().argmin())]
            x, y = round(float(near["col_px"]), 2), round(float(near["row_px"]), 2)
        time = event["time_s"]
        events.append(
            {
                "event": event["event"],
                "track_id": int(event["track_id"]),
                "frame": int(event["frame"]),
                "time_s": float(time) if time == time else None,  # NaN is no equal of itself
                "kind": event["kind"],
                "kind_after": event["kind_after"] or None,
                "x": x,
                "y": y,
            }
        )
    return events
