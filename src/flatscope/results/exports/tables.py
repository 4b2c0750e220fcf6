"""The rows of a run in one file: CSV, Parquet, JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from flatscope.results.answers import TrackTable
from flatscope.results.declared import EVENT_COLUMNS
from flatscope.results.table import Table, conform, describe, frame_to_csv, frame_to_parquet


def encode_csv(tables: Sequence[Table]) -> bytes:
    """All rows, picture after picture, as comma-separated text in UTF-8; empty cells for the unknown."""
    return frame_to_csv(_join(tables)).encode()


def encode_parquet(tables: Sequence[Table]) -> bytes:
    """All rows, picture after picture; units and every picture's provenance in the file's metadata."""
    provenance = [table.provenance.to_dict() for table in tables]
    return frame_to_parquet(_join(tables), tables[0].COLUMNS, provenance)


def encode_json(tables: Sequence[Table]) -> bytes:
    """What each picture gave, with its provenance and pixel size; the columns' units and meanings once.

    Tracks come with their events.
    """
    first = tables[0]
    whole: dict[str, Any] = {"table": first.NAME, "columns": describe(first.COLUMNS)}
    if isinstance(first, TrackTable):
        whole["event_columns"] = describe(EVENT_COLUMNS)
    whole["pictures"] = [_describe_picture(table) for table in tables]
    return (json.dumps(whole, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _describe_picture(table: Table) -> dict[str, Any]:
    calibration = table.calibration
    picture: dict[str, Any] = {
        "provenance": table.provenance.to_dict(),
        "shape_px": list(table.marks.shape_px),
        "pixel_size_nm": None if calibration is None else [float(size) for size in calibration.pixel_size_nm],
        "pixel_size_source": None if calibration is None else calibration.source,
        "rows": _list_records(table.frame),
    }
    if isinstance(table, TrackTable):
        picture["events"] = _list_records(table.events)
    return picture


def _list_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON holds them: what is unknown is null."""
    return json.loads(frame.to_json(orient="records", double_precision=10))


def _join(tables: Sequence[Table]) -> pd.DataFrame:
    """The rows of all pictures, with the declared columns."""
    # As objects, since a column of counts has another type in a picture where some are unknown.
    frames = [table.frame.astype(object) for table in tables]
    return conform(pd.concat(frames, ignore_index=True), tables[0].COLUMNS)
