"""How far atoms move: by element and by how many neighbours hold them, from molecular dynamics.

The table `vibrations.csv` is made by `tools/measure_vibrations.py`; it says with which potential and at which
temperature.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.physics.crystals import NUMBERS, Crystal, Sheet, find_crystal

Float: TypeAlias = NDArray[np.float64]

TABLE_K = 300.0
"""Temperature of the table."""
_REACH = 1.2  # bond lengths up to which atoms are neighbours
_CARBON = "graphene"  # crystal whose carbon stands for that of a support or of dirt


@dataclass(frozen=True)
class Amplitude:
    """Vibration of one kind of atom at `TABLE_K`, 1 sigma along an axis.

    Parameters
    ----------
    material, element
        "MoS2", "S".
    neighbours
        Atoms that hold it: three of a whole sulphur atom, fewer at an edge or next to a vacancy.
    in_plane_nm, out_of_plane_nm
        Along either axis in the sheet, and across it.
    atoms
        How many were followed.
    """

    material: str
    element: str
    neighbours: int
    in_plane_nm: float
    out_of_plane_nm: float
    atoms: int


@cache
def read_amplitudes() -> tuple[Amplitude, ...]:
    """The whole table."""
    text = (
        resources.files("flatscope.electron.physics").joinpath("vibrations.csv").read_text(encoding="utf-8")
    )
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return tuple(
        Amplitude(
            row["material"],
            row["element"],
            int(row["neighbours"]),
            1e-3 * float(row["in_plane_pm"]),
            1e-3 * float(row["out_of_plane_pm"]),
            int(row["atoms"]),
        )
        for row in rows
    )


def count_neighbours(sheet: Sheet, crystal: Crystal) -> NDArray[np.int64]:
    """How many atoms of another kind hold each atom; in graphene, and for carbon anywhere, of the same kind.

    Returns
    -------
    Shape (n,), one number an atom of the sheet.
    """
    counts = np.zeros(len(sheet.numbers), np.int64)
    carbon = sheet.numbers == NUMBERS["C"]
    graphene = find_crystal(_CARBON)
    for members, bond, alike in ((~carbon, _bond(crystal), False), (carbon, _bond(graphene), True)):
        index = np.flatnonzero(members)
        if len(index) < 2:
            continue
        pairs = cKDTree(sheet.positions_nm[index]).query_pairs(_REACH * bond, output_type="ndarray")
        one, other = index[pairs[:, 0]], index[pairs[:, 1]]
        held = alike | (sheet.numbers[one] != sheet.numbers[other])
        np.add.at(counts, one[held], 1)
        np.add.at(counts, other[held], 1)
    return counts


def find_amplitudes(sheet: Sheet, material: str, *, temperature_k: float = TABLE_K) -> Float:
    """Vibration of every atom along either axis in the sheet, nm (1 sigma).

    Parameters
    ----------
    sheet
        See `flatscope.electron.physics.crystals.build_sheet`.
    material
        Its crystal.
    temperature_k
        Amplitudes grow with its square root, as of classical oscillators.

    Returns
    -------
    Shape (n,).

    Notes
    -----
    Numbers of neighbours that the table lacks take the nearest one that it holds, and elements that it lacks what the
    material's atoms with as many neighbours do.
    """
    crystal = find_crystal(material)
    counts = count_neighbours(sheet, crystal)
    sigma = np.zeros(len(sheet.numbers))
    kinds = np.unique(np.stack([sheet.numbers, counts]), axis=1).T
    names = {number: name for name, number in NUMBERS.items()}
    for number, count in kinds:
        mine = (sheet.numbers == number) & (counts == count)
        sigma[mine] = _look_up(names[int(number)], int(count), crystal.name)
    return sigma * np.sqrt(temperature_k / TABLE_K)


def displace(
    rng: np.random.Generator, sheet: Sheet, material: str, *, temperature_k: float = TABLE_K
) -> Float:
    """Positions at one moment, shape (n, 3), nm: each atom displaced in the sheet on its own, heights kept."""
    moved = sheet.positions_nm.copy()
    sigma = find_amplitudes(sheet, material, temperature_k=temperature_k)
    moved[:, :2] += rng.normal(size=(len(moved), 2)) * sigma[:, None]
    return moved


def _look_up(element: str, count: int, material: str) -> float:
    table = read_amplitudes()
    if element == "C":
        material = _CARBON
    of_material = [row for row in table if row.material == material]
    of_element = [row for row in of_material if row.element == element] or of_material
    return min(of_element, key=lambda row: (abs(row.neighbours - count), -row.atoms)).in_plane_nm


def _bond(crystal: Crystal) -> float:
    return float(np.hypot(crystal.lattice_nm / np.sqrt(3.0), 0.5 * crystal.pair_nm))
