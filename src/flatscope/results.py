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

`layers` is "1" to "6", "thick" (more than six), "1|2" where two numbers fit (status "ambiguous") or "" for a rejected
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
    "quality",
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
`top_deg` the direction of a corner of either layer in [0, 120), counter-clockwise as displayed. `quality` is "ok",
"hexagonal" (only the folded angle is defined), or why there is none: "too small", "truncated", "clipped", "layers not
separable", in words in `reason`."""

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
atoms ("W", "Se2", "Se" where one of two lacks, "other", "none"), `species_p` how sure that is. `status` is "ok",
"doubtful" or "rejected", in words in `reason`."""

STATUSES = ("accepted", "ambiguous", "rejected", "failed")
"""Of a row: counted, counted with two possible layer numbers, left out with a reason, or a picture that was
not read."""

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
        """The rows that count: accepted and ambiguous."""
        return self.frame[self.frame["status"].isin(("accepted", "ambiguous"))]

    @property
    def rejected(self) -> pd.DataFrame:
        """The rows that were left out, each with its reason."""
        return self.frame[self.frame["status"] == "rejected"]

    def layer_image(self) -> NDArray[np.uint8]:
        """Layer number of every pixel.

        Returns
        -------
        Shape (rows, cols), uint8: 0 substrate, 1 to 6 layers (the likeliest one if ambiguous), 254 thick, 255 rejected.
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
        return self.frame[self.frame["quality"] == "ok"]

    def to_csv(self) -> str:
        """The table as comma-separated text, columns in the documented order, empty cells for the unknown."""
        text = io.StringIO()
        self.frame.to_csv(text, index=False, columns=list(TWIST_COLUMNS), float_format="%.6g")
        return text.getvalue()

    def _repr_html_(self) -> str:
        columns = ["flake_id", "twist_deg", "sigma_deg", "twist_fold30_deg", "moire_nm", "quality", "reason"]
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
        """The rows that count: ok and doubtful."""
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
