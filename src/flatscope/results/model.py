"""Plain numbers and atoms that answers hold: a box of atoms, lattice vectors, densities of defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

ABOVE_NM = 1.0  # empty space above and below a sheet of atoms


@dataclass(frozen=True)
class Atoms:
    """Atoms in a box.

    Parameters
    ----------
    symbols
        Elements, "X" if unknown.
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


def shortest_vectors(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Lengths of the three shortest vectors of a lattice, given two; equal in a hexagonal one."""
    first, second = vectors
    return np.sort(np.hypot(*np.array([first, second, first + second, first - second]).T))[:3]


def count_densities(counts: dict[str, int], area_nm2: float) -> pd.DataFrame:
    """Count kinds per area with Garwood's exact 95 % interval (doi:10.1093/biomet/28.3-4.437).

    Returns
    -------
    Rows `kind`, `count`, `per_nm2`, `low`, `high`.
    """
    rows = []
    for kind, count in sorted(counts.items()):
        low = special.gammaincinv(count, 0.025) if count else 0.0
        high = special.gammaincinv(count + 1, 0.975)
        rows.append((kind, count, *(value / max(area_nm2, 1e-12) for value in (count, low, high))))
    return pd.DataFrame(rows, columns=["kind", "count", "per_nm2", "low", "high"])
