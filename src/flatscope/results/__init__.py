"""What an answer is: a table with declared columns, its marks in the picture, and where it came from."""

from __future__ import annotations

from flatscope.results.answers import (
    EXTENDED_KINDS,
    LAYER_COLOURS,
    MOST_NUMBERED,
    REJECTED_LABEL,
    TABLES,
    THICK_LABEL,
    THIN_LABEL,
    ColumnTable,
    DefectTable,
    FlakeTable,
    MoireTable,
    TrackTable,
    TwistTable,
    column_names,
)
from flatscope.results.declared import (
    COLUMN_COLUMNS,
    DEFECT_COLUMNS,
    EVENT_COLUMNS,
    FLAKE_COLUMNS,
    LAYER_COLUMN_COLUMNS,
    MOIRE_COLUMNS,
    TRACK_COLUMNS,
    TWIST_COLUMNS,
)
from flatscope.results.marks import Marks
from flatscope.results.model import ABOVE_NM, Atoms, count_densities, shortest_vectors
from flatscope.results.table import STATUSES, Column, Provenance, Table, empty_frame, failed_frame, mark

__all__ = [
    "ABOVE_NM",
    "COLUMN_COLUMNS",
    "DEFECT_COLUMNS",
    "EVENT_COLUMNS",
    "EXTENDED_KINDS",
    "FLAKE_COLUMNS",
    "LAYER_COLOURS",
    "LAYER_COLUMN_COLUMNS",
    "MOIRE_COLUMNS",
    "MOST_NUMBERED",
    "REJECTED_LABEL",
    "STATUSES",
    "TABLES",
    "THICK_LABEL",
    "THIN_LABEL",
    "TRACK_COLUMNS",
    "TWIST_COLUMNS",
    "Atoms",
    "Column",
    "ColumnTable",
    "DefectTable",
    "FlakeTable",
    "Marks",
    "MoireTable",
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
