"""What an answer is: tables with fixed columns, and the record of how they came about."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special
from shapely.geometry import Polygon

from flatscope.micrograph import Calibration

FLAKE_COLUMNS = (
    "image",
    "flake_id",
    "region_id",
    "layers",
    "layers_p",
    "p_1",
    "p_2",
    "p_3",
    "p_4",
    "p_thick",
    "status",
    "reason",
    "area_um2",
    "area_px",
    "row_px",
    "col_px",
    "touches_edge",
    "contrast_r",
    "contrast_g",
    "contrast_b",
    "oxide_nm",
    "oxide_sigma_nm",
    "p_5",
    "p_6",
    "layers_low",
    "layers_high",
)
"""Columns of a flake table, one row a region of uniform thickness.

`layers` is "1" to "6", "thick" (more than six), "1|2" where two numbers fit (status "uncertain") or "" for a rejected
region; `layers_p` its probability; `p_thick` the probability of more than six layers; `layers_low` to `layers_high` the
95 % interval of the layer number (thick regions too, where the optics can still tell)."""

TWIST_COLUMNS = (
    "image",
    "flake_id",
    "row_px",
    "col_px",
    "twist_deg",
    "sigma_deg",
    "twist_fold30_deg",
    "bottom_deg",
    "top_deg",
    "status",
    "reason",
    "method",
    "moire_nm",
    "area_1l_px",
    "area_2l_px",
    "area_1l_um2",
    "area_2l_um2",
    "moire_sigma_nm",
    "moire_phonon_per_nm",
)
"""Columns of a twist table, one row a second layer.

`twist_deg` in [0, 60] and, folded, `twist_fold30_deg` in [0, 30], both with the error `sigma_deg`; `bottom_deg` and
`top_deg` the direction of a corner of either layer in [0, 120), counter-clockwise as displayed. `status` is
"accepted", "uncertain" (only the folded angle is defined) or "rejected" (no angle); `reason` says why and begins with
"six-fold symmetric", "too small", "truncated", "clipped" or "layers not separable"."""

COLUMN_COLUMNS = (
    "image",
    "column_id",
    "row_px",
    "col_px",
    "x_nm",
    "y_nm",
    "sigma_nm",
    "species",
    "species_p",
    "intensity",
    "sublattice",
    "status",
    "reason",
    "intensity_sigma",
    "sigma_px",
)
"""Columns of a column table, one row an atomic column.

`x_nm` to the right and `y_nm` down from the centre of the first pixel; `sigma_nm` the 1-sigma error of either
coordinate. `intensity` is the column's height over that of the usual column of its sublattice. `species` names the
atoms ("W", "Se2", "Se" where one of two lacks, "other", "none"), `species_p` how sure that is. `status` is "accepted",
"uncertain" or "rejected", in words in `reason`."""

DEFECT_COLUMNS = (
    "image",
    "frame",
    "defect_id",
    "kind",
    "kind_p",
    "row_px",
    "col_px",
    "x_nm",
    "y_nm",
    "sublattice",
    "z_score",
    "intensity_ratio",
    "track_id",
    "status",
    "reason",
)
"""Columns of a defect table, one row a defect (in a movie: a defect and a frame).

`kind` is "V_W", "V_Se", "V_Se2", "W_Se2", "Se_W", "O_Se", "X_W" for a dopant of unknown element, or "hole",
"contamination", "disorder" for what is larger than a point; `kind_p` how sure that is. `z_score` is how far the site's
brightness lies off the usual one in units of its scatter, `intensity_ratio` that brightness over the usual one.
`track_id` is empty outside movies. `status` is "accepted", "uncertain" or "rejected", in words in `reason`."""

TRACK_COLUMNS = (
    "image",
    "track_id",
    "frame",
    "time_s",
    "kind",
    "kind_p",
    "row_px",
    "col_px",
    "x_nm",
    "y_nm",
    "sublattice",
    "intensity_ratio",
    "site",
)
"""Columns of a track table, one row a defect and a frame.

`row_px` and `col_px` lie in the frame, `x_nm` and `y_nm` in the specimen as the first frame shows it, drift removed;
`site` names the lattice site (two cell numbers and the sublattice), the same in all frames."""

EVENT_COLUMNS = (
    "image",
    "event",
    "track_id",
    "frame",
    "time_s",
    "kind",
    "kind_after",
    "x_nm",
    "y_nm",
    "distance_nm",
)
"""Columns of an event table.

`event` is "appearance", "disappearance", "hop", "transformation", or "entered" and "left" at the border of the field;
`frame` the first one after it."""

EXTENDED_KINDS = ("hole", "contamination", "disorder")
"""Kinds that are no point defects."""

STATUSES = ("accepted", "uncertain", "rejected", "failed")
"""Of a row: counted, counted with a doubt that its reason names, left out with a reason, or a picture that was not
read."""

ABOVE_NM = 1.0
"""Empty space above and below a sheet of atoms."""
THICK_LABEL = 254
REJECTED_LABEL = 255


@dataclass(frozen=True)
class Provenance:
    """Where an answer came from: enough to repeat it."""

    version: str
    image: str
    image_sha256: str
    weights: str
    weights_sha256: str
    settings: dict[str, Any]
    timings_s: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FlakeTable:
    """The flakes of one micrograph.

    Parameters
    ----------
    frame
        One row a region, columns `FLAKE_COLUMNS`, sorted by interest (thin, large, sure; rejected ones last).
    labels
        Shape (rows, cols), int32: `region_id` of each pixel, 0 on the substrate.
    outlines
        `region_id` to its outline in pixels, x = column and y = row of pixel centres, with holes.
    calibration
        Pixel size, or None: then `area_um2` is empty.
    provenance
        Settings, weights, versions, timings and notes.
    """

    frame: pd.DataFrame
    labels: NDArray[np.int32]
    outlines: dict[int, Polygon]
    calibration: Calibration | None
    provenance: Provenance

    def __post_init__(self) -> None:
        missing = [name for name in FLAKE_COLUMNS if name not in self.frame.columns]
        if missing:
            raise ValueError(f"a flake table needs the columns {missing}")

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def found(self) -> pd.DataFrame:
        """The rows that count: accepted and uncertain."""
        return self.frame[self.frame["status"].isin(("accepted", "uncertain"))]

    @property
    def rejected(self) -> pd.DataFrame:
        """The rows that were left out, each with its reason."""
        return self.frame[self.frame["status"] == "rejected"]

    def layer_image(self) -> NDArray[np.uint8]:
        """Layer number of every pixel.

        Returns
        -------
        Shape (rows, cols), uint8: 0 substrate, 1 to 6 layers (the likeliest if several fit), 254 thick, 255 rejected.
        """
        lookup = np.zeros(int(self.labels.max(initial=0)) + 1, np.uint8)
        chances = self.frame[[*(f"p_{layers}" for layers in range(1, 7)), "p_thick"]].to_numpy(float)
        values = np.array([1, 2, 3, 4, 5, 6, THICK_LABEL], np.uint8)
        for region, status, p in zip(self.frame["region_id"], self.frame["status"], chances, strict=True):
            if status == "failed":
                continue
            lookup[region] = REJECTED_LABEL if status == "rejected" else values[p.argmax()]
        return lookup[self.labels]

    def to_csv(self) -> str:
        """The table as comma-separated text, columns in the documented order, empty cells for the unknown."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(FLAKE_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def to_json(self) -> str:
        """The provenance record as indented JSON."""
        return json.dumps(asdict(self.provenance), indent=2, default=str)

    def _repr_html_(self) -> str:
        unit = "µm²" if self.calibration else "px (pixel size unknown: pass um_per_px)"
        counts = f"{len(self.found)} regions, {len(self.rejected)} rejected; areas in {unit}"
        head = f"<p><b>{html.escape(self.provenance.image)}</b>: {counts}</p>"
        shown = self.found if len(self.found) else self.frame
        area = "area_um2" if self.calibration else "area_px"
        columns = ["flake_id", "region_id", "layers", "layers_p", "status", "reason", area]
        return head + shown[columns].to_html(
            index=False, float_format=lambda value: f"{value:.3g}", max_rows=30
        )


@dataclass(frozen=True)
class TwistTable:
    """The twist angles of one picture.

    Parameters
    ----------
    frame
        One row a second layer, columns `TWIST_COLUMNS`, the surest first.
    calibration
        Pixel size, or None: then areas in µm² are empty.
    provenance
        Settings and versions.
    """

    frame: pd.DataFrame
    calibration: Calibration | None
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def measured(self) -> pd.DataFrame:
        """The rows with an angle in [0, 60]°."""
        return self.frame[self.frame["status"] == "accepted"]

    def to_csv(self) -> str:
        """The table as comma-separated text, columns in the documented order, empty cells for the unknown."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(TWIST_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def _repr_html_(self) -> str:
        columns = ["flake_id", "twist_deg", "sigma_deg", "twist_fold30_deg", "moire_nm", "status", "reason"]
        head = f"<p><b>{html.escape(self.provenance.image)}</b>: {len(self.measured)} of {len(self)} measured</p>"
        return head + self.frame[columns].to_html(index=False, float_format=lambda value: f"{value:.3g}")


def shortest_vectors(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of the three shortest vectors of a lattice, given two; equal in a hexagonal one."""
    first, second = vectors
    return np.sort(np.hypot(*np.array([first, second, first + second, first - second]).T))[:3]


@dataclass(frozen=True)
class ColumnTable:
    """The atomic columns of one image.

    Parameters
    ----------
    frame
        One row a column, columns `COLUMN_COLUMNS`, from top to bottom.
    vectors_px
        Lattice vectors, shape (2, 2), each (rows, cols) in pixels.
    strain
        Percent against the mean lattice: along columns, along rows, shear. Shape (3, rows, cols), NaN where there is
        no crystal. A scan's distortions are in it.
    sublattices_sure
        Whether brightness tells the sublattices apart, or the user did.
    calibration
        Pixel size by the material's lattice constant.
    provenance
        Settings, versions and notes.
    """

    frame: pd.DataFrame
    vectors_px: NDArray[np.float64]
    strain: NDArray[np.float64]
    sublattices_sure: bool
    calibration: Calibration
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def lattice_px(self) -> float:
        """Mean length of the three shortest lattice vectors."""
        return float(shortest_vectors(self.vectors_px).mean())

    @property
    def found(self) -> pd.DataFrame:
        """The rows that count: accepted and uncertain."""
        return self.frame[self.frame["status"] != "rejected"]

    def to_csv(self) -> str:
        """The table as comma-separated text, columns in the documented order."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(COLUMN_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def _repr_html_(self) -> str:
        counts = self.found["species"].value_counts()
        said = ", ".join(f"{count} {name}" for name, count in counts.items())
        head = f"<p><b>{html.escape(self.provenance.image)}</b>: {len(self.found)} columns: {html.escape(said)}</p>"
        return head + self.frame.to_html(index=False, float_format=lambda value: f"{value:.3g}", max_rows=30)


@dataclass(frozen=True)
class DefectTable:
    """The defects of one image.

    Parameters
    ----------
    frame
        One row a defect, columns `DEFECT_COLUMNS`, from top to bottom.
    area_nm2
        Of the crystal that was judged.
    cell_nm2
        Of a unit cell.
    sites
        Number of sites judged on each sublattice.
    residual
        Shape (rows, cols): what the repeating part of the image leaves, in units of its noise.
    crops
        Shape (n, 24, 24): the surroundings of each row's site, turned so that a neighbour lies below it.
    evidence
        Shape (n, rows, cols): what in the crop speaks for the row's kind; NaN where brightness alone decided.
    calibration
        Pixel size by the material's lattice constant.
    provenance
        Settings, weights, versions and notes.
    """

    frame: pd.DataFrame
    area_nm2: float
    cell_nm2: float
    sites: dict[str, int]
    residual: NDArray[np.float64]
    crops: NDArray[np.float64]
    evidence: NDArray[np.float64]
    calibration: Calibration
    provenance: Provenance

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def found(self) -> pd.DataFrame:
        """The point defects that count: accepted and uncertain."""
        point = ~self.frame["kind"].isin(EXTENDED_KINDS)
        return self.frame[point & (self.frame["status"] != "rejected")]

    def densities(self) -> pd.DataFrame:
        """Number of each kind, and per nm² with the exact 95 % interval of a Poisson count."""
        return count_densities(self.found["kind"].value_counts().to_dict(), self.area_nm2)

    def to_csv(self) -> str:
        """The table as comma-separated text, columns in the documented order."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(DEFECT_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def _repr_html_(self) -> str:
        said = ", ".join(f"{row['count']} {row['kind']}" for row in self.densities().to_dict("records"))
        head = f"<p><b>{html.escape(self.provenance.image)}</b>: {len(self.found)} defects: {html.escape(said)}</p>"
        return head + self.frame.to_html(index=False, float_format=lambda value: f"{value:.3g}", max_rows=30)


@dataclass(frozen=True)
class TrackTable:
    """The defects of a movie.

    Parameters
    ----------
    frame
        One row a defect and a frame, columns `TRACK_COLUMNS`, by track.
    events
        Columns `EVENT_COLUMNS`, by frame.
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
    calibration
        Pixel size by the material's lattice constant.
    provenance
        Settings, weights, versions and notes.
    """

    frame: pd.DataFrame
    events: pd.DataFrame
    drift: pd.DataFrame
    area_nm2: float
    cell_nm2: float
    sublattices_sure: bool
    frame_s: float | None
    calibration: Calibration
    provenance: Provenance

    def __len__(self) -> int:
        return int(self.frame["track_id"].nunique())

    def to_csv(self) -> str:
        """The tracks as comma-separated text, columns in the documented order."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(TRACK_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def _repr_html_(self) -> str:
        said = ", ".join(f"{count} {name}" for name, count in self.events["event"].value_counts().items())
        head = f"<p><b>{html.escape(self.provenance.image)}</b>: {len(self)} tracks; {html.escape(said)}</p>"
        return head + self.frame.to_html(index=False, float_format=lambda value: f"{value:.3g}", max_rows=30)


def count_densities(counts: dict[str, int], area_nm2: float) -> pd.DataFrame:
    """Rows `kind`, `count`, `per_nm2`, `low`, `high`: counts over an area with Garwood's exact 95 % interval
    (doi:10.1093/biomet/28.3-4.437)."""
    rows = []
    for kind, count in sorted(counts.items()):
        low = special.gammaincinv(count, 0.025) if count else 0.0
        high = special.gammaincinv(count + 1, 0.975)
        rows.append((kind, count, *(value / max(area_nm2, 1e-12) for value in (count, low, high))))
    return pd.DataFrame(rows, columns=["kind", "count", "per_nm2", "low", "high"])


@dataclass(frozen=True)
class Atoms:
    """Atoms in a box.

    Parameters
    ----------
    symbols
        Elements, "X" where nobody knows.
    positions_nm
        Shape (n, 3): x to the right, y up, z towards the beam's source.
    box_nm
        Width and height of the field.
    """

    symbols: Sequence[str]
    positions_nm: NDArray[np.float64]
    box_nm: tuple[float, float]

    @property
    def cell_nm(self) -> tuple[float, float, float]:
        """The box with empty space above and below."""
        thickness = float(np.ptp(self.positions_nm[:, 2])) if len(self.symbols) else 0.0
        return (*self.box_nm, thickness + 2.0 * ABOVE_NM)
