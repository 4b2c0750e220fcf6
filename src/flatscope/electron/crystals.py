"""Two-dimensional crystals as an electron beam sees them: lattice constants, sites, and sheets with defects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

NUMBERS = {
    "B": 5, "C": 6, "N": 7, "O": 8, "Si": 14, "S": 16, "Ti": 22, "V": 23, "Cr": 24, "Fe": 26, "Se": 34, "Nb": 41,
    "Mo": 42, "Ta": 73, "W": 74, "Re": 75,
}  # fmt: skip
"""Atomic numbers of what these crystals hold."""
_VACANCIES = ("first", "one", "both")


@dataclass(frozen=True)
class Crystal:
    """One monolayer, a honeycomb seen from above.

    Parameters
    ----------
    name
        As users write it.
    lattice_nm
        Lattice constant.
    first, second
        Element and number of atoms in the column of each site of the cell.
    pair_nm
        Distance of the two atoms of a pair, along the beam.
    """

    name: str
    lattice_nm: float
    first: tuple[str, int]
    second: tuple[str, int]
    pair_nm: float = 0.0

    @property
    def sublattices(self) -> tuple[str, str]:
        """Names of both sites of the cell."""
        return ("metal", "chalcogen") if self.is_dichalcogenide else ("a", "b")

    @property
    def is_dichalcogenide(self) -> bool:
        """Whether the second site holds a pair of atoms, one above the other."""
        return self.second[1] == 2

    @property
    def species(self) -> tuple[str, str]:
        """What stands in a perfect column of each site: "W", "Se2"."""
        return tuple(
            element + (str(count) if count > 1 else "") for element, count in (self.first, self.second)
        )  # type: ignore[return-value]

    @property
    def spacing_nm(self) -> float:
        """Distance of the lattice planes (100)."""
        return self.lattice_nm * 3**0.5 / 2.0


# Wieting and Verble 1971 (doi:10.1103/PhysRevB.3.4286), Schutte et al. 1987 (doi:10.1016/0022-4596(87)90057-0), Castro
# Neto et al. 2009 (doi:10.1103/RevModPhys.81.109) and Lynch and Drickamer 1966 (doi:10.1063/1.1726442).
CRYSTALS = {
    crystal.name: crystal
    for crystal in (
        Crystal("MoS2", 0.3160, ("Mo", 1), ("S", 2), 0.3172),
        Crystal("WS2", 0.3153, ("W", 1), ("S", 2), 0.3141),
        Crystal("MoSe2", 0.3289, ("Mo", 1), ("Se", 2), 0.3338),
        Crystal("WSe2", 0.3282, ("W", 1), ("Se", 2), 0.3341),
        Crystal("graphene", 0.2461, ("C", 1), ("C", 1)),
        Crystal("hBN", 0.2504, ("N", 1), ("B", 1)),
    )
}


def find_crystal(name: str) -> Crystal:
    """The crystal of a name, in any case.

    Raises
    ------
    ValueError
        If it is unknown; lists the names.
    """
    for crystal in CRYSTALS.values():
        if crystal.name.lower() == name.lower():
            return crystal
    raise ValueError(f"unknown material {name!r}: flatscope knows {', '.join(CRYSTALS)}")


@dataclass(frozen=True)
class SheetParams:
    """What to build.

    Parameters
    ----------
    material
        One of `CRYSTALS`.
    field_nm
        Height and width of the field that the crystal fills.
    turn_deg
        Rotation, counter-clockwise as displayed.
    shift_nm
        Of the crystal, (rows, cols).
    vacancies
        Shares of the sites of each kind that lack: "first" (an atom of the first sublattice), "one" (one of a pair),
        "both" (a pair, or the atom of the second sublattice).
    dopant, dopant_share
        Element on that share of the sites of the first sublattice.
    """

    material: str = "MoS2"
    field_nm: tuple[float, float] = (5.0, 5.0)
    turn_deg: float = 0.0
    shift_nm: tuple[float, float] = (0.0, 0.0)
    vacancies: Mapping[str, float] = field(default_factory=dict)
    dopant: str = ""
    dopant_share: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        find_crystal(self.material)
        unknown = sorted(set(self.vacancies) - set(_VACANCIES))
        if unknown:
            raise ValueError(f"vacancies of kind {', '.join(unknown)}: choose from {', '.join(_VACANCIES)}")
        if self.dopant and self.dopant not in NUMBERS:
            raise ValueError(f"unknown element {self.dopant!r}: flatscope knows {', '.join(NUMBERS)}")


@dataclass(frozen=True)
class Sheet:
    """A monolayer with everything that is true about it.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (n,).
    positions_nm
        Shape (n, 3): down the rows, along the columns, and up towards the source; the sheet lies about 0.
    sites_nm
        Shape (m, 2): every site of the perfect crystal in the field.
    sublattice
        Shape (m,): 0 or 1.
    species
        What stands on each site: "Mo", "S2", "S" where one of a pair lacks, a dopant's symbol, or "" for nothing.
    """

    numbers: NDArray[np.int64]
    positions_nm: NDArray[np.float64]
    sites_nm: NDArray[np.float64]
    sublattice: NDArray[np.int64]
    species: NDArray[np.str_]


def build_sheet(rng: np.random.Generator, params: SheetParams = SheetParams()) -> Sheet:
    """Build a monolayer with vacancies and dopants at random sites.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same sheet.
    params
        What to build.
    """
    crystal = find_crystal(params.material)
    angle = np.deg2rad(params.turn_deg)
    # Down the rows is against the usual direction of turning.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    vectors = crystal.lattice_nm * np.array([[0.0, 1.0], [-0.5 * np.sqrt(3.0), 0.5]]) @ turn.T
    field_nm = np.array(params.field_nm)
    reach = int(np.ceil(1.5 * np.hypot(*field_nm) / crystal.lattice_nm)) + 2
    cells = np.stack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 2, indexing="ij")).reshape(2, -1).T
    corners = cells @ vectors + 0.5 * field_nm + np.array(params.shift_nm)
    # The second site lies in the middle of one of the cell's two triangles.
    sites = np.vstack([corners, corners + (vectors[0] + vectors[1]) / 3.0])
    kinds = np.repeat([0, 1], len(corners))
    inside = ((sites >= 0.0) & (sites < field_nm)).all(1)
    sites, kinds = sites[inside], kinds[inside]
    species = np.array(crystal.species, dtype="<U4")[kinds]
    if params.dopant:
        species[(kinds == 0) & (rng.random(len(sites)) < params.dopant_share)] = params.dopant
    chance = rng.random(len(sites))
    element, atoms = crystal.second
    shares = [params.vacancies.get(kind, 0.0) for kind in _VACANCIES]
    species[(kinds == 0) & (chance < shares[0])] = ""
    if atoms == 2:
        species[(kinds == 1) & (chance < shares[1])] = element
    species[(kinds == 1) & (chance >= shares[1]) & (chance < shares[1] + shares[2])] = ""
    numbers, places = [], []
    half = 0.5 * crystal.pair_nm
    for name, kind, (row, col) in zip(species, kinds, sites, strict=True):
        pair = kind == 1 and atoms == 2
        levels = (half, -half) if name.endswith("2") else ((half,) if pair else (0.0,))
        for level in levels if name else ():
            numbers.append(NUMBERS[name.removesuffix("2")])
            places.append((row, col, level))
    return Sheet(
        np.array(numbers, np.int64), np.reshape(places, (-1, 3)).astype(float), sites, kinds, species
    )
