"""The answer of each verb: its columns, declared once, and what only that verb knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.micrograph import Calibration
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
from flatscope.results.model import Atoms, count_densities, shortest_vectors
from flatscope.results.table import Column, Table, conform, freeze_frames

EXTENDED_KINDS = ("hole", "contamination", "disorder")
"""Kinds of defect that are larger than a point."""

MOST_NUMBERED = 10
"""Layer images hold layer numbers up to this one …"""
THIN_LABEL = 253
"""… this for a thin crystal whose layer number is not known …"""
THICK_LABEL = 254
"""… this for a thick one …"""
REJECTED_LABEL = 255
"""… and this for what was left out. 0 is the substrate."""

LAYER_COLOURS: dict[str, tuple[int, int, int]] = {
    "1": (240, 228, 66),
    "2": (86, 180, 233),
    "3": (213, 94, 0),
    "4": (0, 158, 115),
    "5": (204, 121, 167),
    "6": (0, 114, 178),
    "thin": (20, 20, 20),
    "thick": (190, 190, 190),
}
"""Okabe and Ito's palette (10.1038/nmeth.1618), which stays apart for colour-blind eyes. Thick is gray; thin crystals
of unknown layer number are near black and are drawn in white light."""


def column_names(columns: Sequence[Column]) -> tuple[str, ...]:
    """The names of declared columns, in their order."""
    return tuple(column.name for column in columns)


@dataclass(frozen=True)
class FlakeTable(Table):
    """The flakes of one light micrograph, the thin, large and sure ones first; see `Table` for the first fields.

    Parameters
    ----------
    labels
        Shape (rows, cols), int32: `region_id` of each pixel, 0 on the substrate.
    """

    NAME: ClassVar[str] = "flakes"
    COLUMNS: ClassVar[tuple[Column, ...]] = FLAKE_COLUMNS
    ROW_ID: ClassVar[str] = "region_id"
    SHOWN: ClassVar[tuple[str, ...]] = (
        *("flake_id", "region_id", "layers", "layers_p", "p_flake"),
        *("status", "reason", "area_um2", "area_px"),
    )

    labels: NDArray[np.int32] = field(repr=False)

    def headline(self) -> str:
        """Number of regions, and the unit of areas."""
        unit = "µm²" if self.calibration else "px (pixel size unknown: pass um_per_px)"
        return f"{len(self.found)} regions, {len(self.rejected)} rejected; areas in {unit}"

    def layer_image(self) -> NDArray[np.uint8]:
        """Layer number of every pixel.

        Returns
        -------
        Shape (rows, cols), uint8: 0 substrate, 1 to 10 layers (the likeliest number if uncertain), 253 thin and not
        known, 254 thick, 255 rejected or too small.
        """
        lookup = np.full(int(self.labels.max(initial=0)) + 1, REJECTED_LABEL, np.uint8)
        lookup[0] = 0
        lookup[self.frame["region_id"].to_numpy(int)] = self.layer_values()
        return lookup[self.labels]

    def layer_values(self) -> NDArray[np.uint8]:
        """What the layer image shows for each row: 1 to 10 layers, 253 thin and not known, 254 thick, 255 rejected."""
        frame = self.frame
        chances = frame[[*(f"p_{layers}" for layers in range(1, 7)), "p_thick"]].to_numpy(float)
        likeliest = np.array([1, 2, 3, 4, 5, 6, THICK_LABEL], np.uint8)[chances.argmax(axis=1)]
        single = {
            "thin": THIN_LABEL,
            "thick": THICK_LABEL,
            **{str(n): n for n in range(1, MOST_NUMBERED + 1)},
        }
        stated = frame["layers"].map(single)
        values = np.where(stated.isna(), likeliest, stated.fillna(0)).astype(np.uint8)
        return np.where(frame["status"] == "rejected", np.uint8(REJECTED_LABEL), values)

    @property
    def too_small(self) -> int:
        """Number of regions below the smallest area that counts; they have no row."""
        return int(self.labels.max(initial=0)) - len(self)


@dataclass(frozen=True)
class TwistTable(Table):
    """The twist angles of one picture, one row a second layer, the surest first."""

    NAME: ClassVar[str] = "twist"
    COLUMNS: ClassVar[tuple[Column, ...]] = TWIST_COLUMNS
    ROW_ID: ClassVar[str] = "flake_id"
    SHOWN: ClassVar[tuple[str, ...]] = (
        *("flake_id", "twist_deg", "sigma_deg", "twist_fold30_deg"),
        *("moire_nm", "status", "reason"),
    )

    def headline(self) -> str:
        """Number of second layers with an angle."""
        return f"{len(self.accepted)} of {len(self)} second layers have an angle"


@dataclass(frozen=True)
class ColumnTable(Table):
    """The atomic columns of one image, from top to bottom; see `Table` for the first fields.

    Parameters
    ----------
    vectors_px
        Lattice vectors, shape (2, 2), each (rows, cols) in pixels.
    strain
        Percent against the mean lattice: along columns, along rows, shear. Shape (3, rows, cols), NaN where there is
        no crystal. A scan's distortions are in it.
    sublattices_sure
        Whether brightness tells the sublattices apart, or the user did.
    model
        The atoms as a box of atoms with heights, for XYZ and CIF.
    """

    NAME: ClassVar[str] = "columns"
    COLUMNS: ClassVar[tuple[Column, ...]] = COLUMN_COLUMNS
    ROW_ID: ClassVar[str] = "column_id"

    calibration: Calibration
    vectors_px: NDArray[np.float64]
    strain: NDArray[np.float64] = field(repr=False)
    sublattices_sure: bool
    model: Atoms = field(repr=False)

    @property
    def lattice_px(self) -> float:
        """Mean length of the three shortest lattice vectors."""
        return float(shortest_vectors(self.vectors_px).mean())

    def headline(self) -> str:
        """Number of columns of each species."""
        counts = self.found["species"].value_counts()
        return f"{len(self.found)} columns: {', '.join(f'{count} {name}' for name, count in counts.items())}"


@dataclass(frozen=True)
class MoireTable(Table):
    """The pairs of layers of one image of a stack; see `Table` for the first fields.

    Parameters
    ----------
    columns
        The atomic columns of all layers from top to bottom: columns `LAYER_COLUMN_COLUMNS`.
    stacking
        Shape (rows, cols): the nearest stacking of each pixel, in the order of the columns `share_aa` to `share_sp`.
    model
        The atoms of all layers as a box of atoms, for XYZ and CIF; which layer lies below is not known.
    """

    NAME: ClassVar[str] = "moire"
    COLUMNS: ClassVar[tuple[Column, ...]] = MOIRE_COLUMNS
    ROW_ID: ClassVar[str] = "pair_id"

    calibration: Calibration
    columns: pd.DataFrame
    stacking: NDArray[np.uint8] = field(repr=False)
    model: Atoms = field(repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_columns", conform(self.columns, LAYER_COLUMN_COLUMNS))

    def renamed(self, image: str) -> Self:
        """The same answer under another picture name."""
        return replace(super().renamed(image), columns=self.columns.assign(image=image))

    def headline(self) -> str:
        """The twist and the moiré of the first pair."""
        if not len(self):
            return "no pair of layers"
        row = self.frame.iloc[0]
        return f"twisted by {row['twist_deg']:.2f}°, moiré of {row['moire_nm']:.2f} nm"


@dataclass(frozen=True)
class DefectTable(Table):
    """The defects of one image, from top to bottom; see `Table` for the first fields.

    Parameters
    ----------
    area_nm2
        Of the crystal that was examined.
    cell_nm2
        Of a unit cell.
    sites
        Number of sites examined on each sublattice.
    residual
        Shape (rows, cols): what the repeating part of the image leaves, in units of its noise.
    crops
        Shape (n, 24, 24): the surroundings of each row's site, turned so that a neighbour lies below it.
    evidence
        Shape (n, rows, cols): what in the crop speaks for the row's kind; NaN where brightness alone decided.
    """

    NAME: ClassVar[str] = "defects"
    COLUMNS: ClassVar[tuple[Column, ...]] = DEFECT_COLUMNS
    ROW_ID: ClassVar[str] = "defect_id"

    calibration: Calibration
    area_nm2: float
    cell_nm2: float
    sites: dict[str, int]
    residual: NDArray[np.float64] = field(repr=False)
    crops: NDArray[np.float64] = field(repr=False)
    evidence: NDArray[np.float64] = field(repr=False)

    @property
    def found(self) -> pd.DataFrame:
        """The point defects that count: accepted and uncertain."""
        counted = super().found
        return counted[~counted["kind"].isin(EXTENDED_KINDS)]

    def densities(self) -> pd.DataFrame:
        """Number of each kind, and per nm² with the exact 95 % interval of a Poisson count."""
        return count_densities(self.found["kind"].value_counts().to_dict(), self.area_nm2)

    def headline(self) -> str:
        """Number of defects of each kind."""
        said = ", ".join(f"{row['count']} {row['kind']}" for row in self.densities().to_dict("records"))
        return f"{len(self.found)} defects: {said}"


@dataclass(frozen=True)
class TrackTable(Table):
    """The defects of a movie by track; `len` counts tracks; see `Table` for the first fields.

    Parameters
    ----------
    events
        What happened, by frame: columns `EVENT_COLUMNS`.
    drift
        Of the specimen in the image since the first frame: columns `frame`, `row_nm`, `col_nm`.
    area_nm2
        Of the crystal in a frame.
    cell_nm2
        Of a unit cell.
    sublattices_sure
        Whether brightness tells the sublattices apart, or the user did; else every kind is uncertain.
    frame_s
        Time from one frame to the next, or None.
    """

    NAME: ClassVar[str] = "tracks"
    COLUMNS: ClassVar[tuple[Column, ...]] = TRACK_COLUMNS
    ROW_ID: ClassVar[str] = "track_id"

    calibration: Calibration
    events: pd.DataFrame
    drift: pd.DataFrame
    area_nm2: float
    cell_nm2: float
    sublattices_sure: bool
    frame_s: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "_events", conform(self.events, EVENT_COLUMNS))

    def renamed(self, image: str) -> Self:
        """The same answer under another picture name."""
        return replace(super().renamed(image), events=self.events.assign(image=image))

    def __len__(self) -> int:
        return int(self.frame["track_id"].nunique())

    @property
    def found(self) -> pd.DataFrame:
        """All rows: tracks hold what counts."""
        return self.frame

    def headline(self) -> str:
        """Number of tracks and of each event."""
        counts = self.events["event"].value_counts().items()
        return f"{len(self)} tracks; {', '.join(f'{count} {name}' for name, count in counts)}"


freeze_frames(TrackTable, "events", "drift")
freeze_frames(MoireTable, "columns")

TABLES: tuple[type[Table], ...] = (FlakeTable, TwistTable, ColumnTable, MoireTable, DefectTable, TrackTable)
"""The answers there are."""
