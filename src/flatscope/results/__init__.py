"""What an answer is: a table with declared columns, its marks in the picture, and where it came from."""

from __future__ import annotations

from flatscope.results.answers import (
    ABOVE_NM,
    COLUMN_COLUMNS,
    DEFECT_COLUMNS,
    EVENT_COLUMNS,
    EXTENDED_KINDS,
    FLAKE_COLUMNS,
    REJECTED_LABEL,
    TABLES,
    THICK_LABEL,
    TRACK_COLUMNS,
    TWIST_COLUMNS,
    Atoms,
    ColumnTable,
    DefectTable,
    FlakeTable,
    TrackTable,
    TwistTable,
    column_names,
    count_densities,
    shortest_vectors,
)
from flatscope.results.marks import Marks
from flatscope.results.table import STATUSES, Column, Provenance, Table, empty_frame, failed_frame, mark

__all__ = [
    "ABOVE_NM",
    "COLUMN_COLUMNS",
    "DEFECT_COLUMNS",
    "EVENT_COLUMNS",
    "EXTENDED_KINDS",
    "FLAKE_COLUMNS",
    "REJECTED_LABEL",
    "STATUSES",
    "TABLES",
    "THICK_LABEL",
    "TRACK_COLUMNS",
    "TWIST_COLUMNS",
    "Atoms",
    "Column",
    "ColumnTable",
    "DefectTable",
    "FlakeTable",
    "Marks",
    "Provenance",
    "Table",
    "TrackTable",
    "TwistTable",
    "column_names",
    "count_densities",
    "empty_frame",
    "failed_frame",
    "mark",
    "shortest_vectors",
]
