"""Two-dimensional crystals as an electron beam sees them: lattice constants, sites, and sheets with defects."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

Float: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Keep: TypeAlias = Callable[[Float], Mask]
"""Which of some places, shape (n, 2), lie inside."""

NUMBERS = {
    "B": 5, "C": 6, "N": 7, "O": 8, "Si": 14, "S": 16, "Ti": 22, "V": 23, "Cr": 24, "Fe": 26, "Se": 34, "Nb": 41,
    "Mo": 42, "Ta": 73, "W": 74, "Re": 75,
}  # fmt: skip
"""Atomic numbers of what these crystals hold."""
_VACANCIES = ("first", "one", "both")
GAPS_NM = {2: 0.615, 1: 0.475, 0: 0.335}
"""From a sheet to the next one below, by how many of the two are dichalcogenides: as in their bulk crystals (Böker et
al. 2001, doi:10.1103/PhysRevB.64.235305; graphite and hBN), and the mean of both."""
_ADATOM_NM = 0.15  # height of a lone atom over the topmost ones
_SUPPORT_NM = 0.34  # distance to a support (van der Waals)
_CARBON_PER_NM3 = 100.0  # atoms in amorphous carbon of 2 g/cm³
_CLOSEST = 0.45  # smallest distance of sites of two grains, in lattice constants


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
    def brighter(self) -> int:
        """Which site an annular detector at high angles sees brighter, as the sum over its atoms of Z to the power 1.7
        (Yamashita et al. 2018, doi:10.1038/s41598-018-30941-5)."""
        one, other = self.strengths
        return 0 if one >= other else 1

    @property
    def dimmer_share(self) -> float:
        """How bright the dimmer site is compared with the brighter one, by the same rule."""
        return min(self.strengths) / max(self.strengths)

    @property
    def strengths(self) -> tuple[float, float]:
        """How bright a high-angle detector sees either site, by the same rule."""
        one, other = (count * NUMBERS[element] ** 1.7 for element, count in (self.first, self.second))
        return one, other

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


DICHALCOGENIDES = tuple(name for name, crystal in CRYSTALS.items() if crystal.is_dichalcogenide)


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
    second_dopant, second_share
        Element in place of one atom on that share of the sites of the second sublattice: oxygen on sulphur.
    antisites
        Share of the sites of either sublattice that hold what belongs on the other one.
    adatom, adatoms_per_nm2
        Element of lone atoms on top of the sheet, and how many there are.
    holes, hole_nm
        Number of holes and their mean radius.
    edge
        Whether the crystal ends at a line through the field, vacuum beyond.
    grain_deg
        Misorientation of a second grain beyond a wavy line through the field; None for one grain.
    twist_deg
        Angle of a second sheet below the first against it; None for a single sheet.
    support
        "", or the crystal of a perfect sheet below.
    tilt_deg, tilt_axis_deg
        Tilt about an axis in the sheet.
    patches
        Number of patches of amorphous carbon on top, a nanometre or so wide and thick.
    """

    material: str = "MoS2"
    field_nm: tuple[float, float] = (5.0, 5.0)
    turn_deg: float = 0.0
    shift_nm: tuple[float, float] = (0.0, 0.0)
    vacancies: Mapping[str, float] = field(default_factory=dict)
    dopant: str = ""
    dopant_share: float = 0.0
    second_dopant: str = ""
    second_share: float = 0.0
    antisites: float = 0.0
    adatom: str = "C"
    adatoms_per_nm2: float = 0.0
    holes: int = 0
    hole_nm: float = 0.4
    edge: bool = False
    grain_deg: float | None = None
    twist_deg: float | None = None
    support: str = ""
    tilt_deg: float = 0.0
    tilt_axis_deg: float = 0.0
    patches: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        find_crystal(self.material)
        if self.support:
            find_crystal(self.support)
        unknown = sorted(set(self.vacancies) - set(_VACANCIES))
        if unknown:
            raise ValueError(f"vacancies of kind {', '.join(unknown)}: choose from {', '.join(_VACANCIES)}")
        for element in (self.dopant, self.second_dopant, self.adatom):
            if element and element not in NUMBERS:
                raise ValueError(f"unknown element {element!r}: flatscope knows {', '.join(NUMBERS)}")


@dataclass(frozen=True)
class Sheet:
    """A monolayer, or two, with everything that is true about it.

    Parameters
    ----------
    numbers
        Atomic numbers, shape (n,).
    positions_nm
        Shape (n, 3): down the rows, along the columns, and up towards the source; the sheet lies about 0.
    sites_nm
        Shape (m, 2): every site of the perfect crystal in the field, and every lone atom on top of it.
    sublattice
        Shape (m,): 0 or 1, -1 of a lone atom.
    species
        What stands on each site: "Mo", "S2", "S" where one of a pair lacks, "OS" where another element stands in for
        it, a dopant's symbol, or "" for nothing.
    buried
        Shape (m,): which sites lie under amorphous carbon.
    """

    numbers: NDArray[np.int64]
    positions_nm: Float
    sites_nm: Float
    sublattice: NDArray[np.int64]
    species: NDArray[np.str_]
    buried: Mask = field(default_factory=lambda: np.zeros(0, bool))

    def __post_init__(self) -> None:
        """No atom is buried unless declared."""
        if len(self.buried) != len(self.species):
            object.__setattr__(self, "buried", np.zeros(len(self.species), bool))


def build_sheet(rng: np.random.Generator, params: SheetParams = SheetParams()) -> Sheet:
    """Build a monolayer, or two, with defects at random sites.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same sheet.
    params
        What to build.
    """
    crystal = find_crystal(params.material)
    field_nm = np.array(params.field_nm)
    keep = _draw_outline(rng, params)
    layers = [_build_layer(rng, params, params.turn_deg, keep=keep)]
    if params.twist_deg is not None:
        below = _build_layer(rng, params, params.turn_deg + params.twist_deg, keep=keep)
        below.positions_nm[:, 2] -= GAPS_NM[2 * crystal.is_dichalcogenide]
        layers.append(below)
    numbers = [layer.numbers for layer in layers]
    places = [layer.positions_nm for layer in layers]
    sites, kinds, species = (
        np.concatenate([getattr(layer, name) for layer in layers])
        for name in ("sites_nm", "sublattice", "species")
    )
    count = rng.poisson(params.adatoms_per_nm2 * float(field_nm.prod())) if params.adatoms_per_nm2 else 0
    if count:
        lone = rng.random((count, 2)) * field_nm
        lone = lone[keep(lone)]
        numbers.append(np.full(len(lone), NUMBERS[params.adatom]))
        places.append(np.column_stack([lone, np.full(len(lone), 0.5 * crystal.pair_nm + _ADATOM_NM)]))
        sites, kinds = np.vstack([sites, lone]), np.concatenate([kinds, np.full(len(lone), -1)])
        species = np.concatenate([species, np.full(len(lone), params.adatom)])
    buried = np.zeros(len(sites), bool)
    for _ in range(params.patches):
        dirt, covered = _draw_patch(rng, field_nm, 0.5 * crystal.pair_nm + _ADATOM_NM)
        numbers.append(np.full(len(dirt), NUMBERS["C"]))
        places.append(dirt)
        buried |= covered(sites)
    if params.support:
        under = find_crystal(params.support)
        plain = SheetParams(params.support, params.field_nm, shift_nm=tuple(rng.random(2) * under.lattice_nm))
        carrier = _build_layer(rng, plain, float(rng.uniform(0.0, 60.0)), keep=_draw_outline(rng, plain))
        lowest = min(float(layer.positions_nm[:, 2].min(initial=0.0)) for layer in layers)
        carrier.positions_nm[:, 2] += lowest - 0.5 * under.pair_nm - _SUPPORT_NM
        numbers.append(carrier.numbers)
        places.append(carrier.positions_nm)
    positions = np.vstack(places)
    if params.tilt_deg:
        sites, positions = _tilt(sites, positions, params)
    return Sheet(np.concatenate(numbers), positions, sites, kinds, species, buried)


def _draw_patch(rng: np.random.Generator, field_nm: Float, bottom_nm: float) -> tuple[Float, Keep]:
    """Positions of the atoms in a patch of amorphous carbon, and what it covers."""
    centre, radius = rng.random(2) * field_nm, rng.uniform(0.3, 0.8)
    thick = rng.uniform(0.8, 2.0)
    atoms = rng.random((rng.poisson(_CARBON_PER_NM3 * np.pi * radius**2 * thick), 3))
    angle, away = 2.0 * np.pi * atoms[:, 0], radius * np.sqrt(atoms[:, 1])
    flat = centre + np.column_stack([away * np.sin(angle), away * np.cos(angle)])

    def covered(sites: Float) -> Mask:
        return np.asarray(np.hypot(*(sites - centre).T) < radius)

    return np.column_stack([flat, bottom_nm + thick * atoms[:, 2]]), covered


def refill(sheet: Sheet, species: NDArray[np.str_], material: str) -> Sheet:
    """A single flat sheet of a material with other species on its sites; lone atoms and dirt are gone."""
    crystal = find_crystal(material)
    sites = sheet.sublattice >= 0
    atoms = _fill(sheet.sites_nm[sites], species[sites], sheet.sublattice[sites], crystal)
    return replace(
        Sheet(*atoms, sheet.sites_nm[sites], sheet.sublattice[sites], species[sites]),
        buried=np.zeros(int(sites.sum()), bool),
    )


def deform(sheet: Sheet, axes: Float, *, field_nm: tuple[float, float]) -> Sheet:
    """A sheet as a scan shows it that stretches, shears and turns; what leaves the field is gone.

    Parameters
    ----------
    sheet
        Its middle comes to lie in the middle of the field.
    axes
        Shape (2, 2): where one nanometre down and one across the sheet lie in the scan, (rows, cols) in nm.
    field_nm
        Height and width of the scan's field.
    """
    middle = 0.5 * (sheet.sites_nm.min(0) + sheet.sites_nm.max(0))

    def place(flat: Float) -> tuple[Float, Mask]:
        moved = (flat - middle) @ axes + 0.5 * np.array(field_nm)
        return moved, ((moved >= 0.0) & (moved < field_nm)).all(1)

    sites, kept = place(sheet.sites_nm)
    atoms, seen = place(sheet.positions_nm[:, :2])
    return Sheet(
        sheet.numbers[seen],
        np.column_stack([atoms, sheet.positions_nm[:, 2]])[seen],
        sites[kept],
        sheet.sublattice[kept],
        sheet.species[kept],
        sheet.buried[kept],
    )


def _build_layer(rng: np.random.Generator, params: SheetParams, turn_deg: float, *, keep: Keep) -> Sheet:
    """One sheet about height 0, with its vacancies, dopants and antisites."""
    crystal = find_crystal(params.material)
    sites, kinds = _place_sites(crystal, params, turn_deg)
    if params.grain_deg is not None:
        others, other_kinds = _place_sites(crystal, params, turn_deg + params.grain_deg)
        side = _draw_line(rng, params.field_nm)
        mine, theirs = side(sites), ~side(others)
        theirs[theirs] &= (
            cKDTree(sites[mine]).query(others[theirs])[0] > _CLOSEST * crystal.lattice_nm
            if mine.any()
            else True
        )
        sites = np.vstack([sites[mine], others[theirs]])
        kinds = np.concatenate([kinds[mine], other_kinds[theirs]])
    kept = keep(sites)
    sites, kinds = sites[kept], kinds[kept]
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
    if params.second_dopant:
        hit = (kinds == 1) & (rng.random(len(sites)) < params.second_share)
        species[hit] = params.second_dopant + (element if atoms == 2 else "")
    if params.antisites:
        hit = rng.random(len(sites)) < params.antisites
        species[hit] = np.array(crystal.species[::-1], dtype="<U4")[kinds[hit]]
    return Sheet(*_fill(sites, species, kinds, crystal), sites, kinds, species)


def _place_sites(crystal: Crystal, params: SheetParams, turn_deg: float) -> tuple[Float, NDArray[np.int64]]:
    """Every site of the perfect crystal in the field, and its sublattice."""
    angle = np.deg2rad(turn_deg)
    # Down the rows is against the usual direction of turning.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    vectors = crystal.lattice_nm * np.array([[0.0, 1.0], [-0.5 * np.sqrt(3.0), 0.5]]) @ turn.T
    field_nm = np.array(params.field_nm)
    reach = int(np.ceil(0.6 * np.hypot(*field_nm) / crystal.lattice_nm)) + 3
    cells = np.stack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 2, indexing="ij")).reshape(2, -1).T
    # Shifts by whole cells leave the crystal as it is, and the middle of the cells in the field.
    shift = np.array(params.shift_nm) @ np.linalg.inv(vectors)
    corners = (cells + shift - np.rint(shift)) @ vectors + 0.5 * field_nm
    # The second site lies in the middle of one of the cell's two triangles.
    sites = np.vstack([corners, corners + (vectors[0] + vectors[1]) / 3.0])
    kinds = np.repeat([0, 1], len(corners))
    inside = ((sites >= 0.0) & (sites < field_nm)).all(1)
    return sites[inside], kinds[inside]


def _fill(
    sites: Float, species: NDArray[np.str_], kinds: NDArray[np.int64], crystal: Crystal
) -> tuple[NDArray[np.int64], Float]:
    """Atomic numbers and positions of what stands on the sites."""
    numbers: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    places: list[Float] = [np.zeros((0, 3))]
    half = 0.5 * crystal.pair_nm
    for name in np.unique(species):
        for kind in (0, 1):
            here = sites[(species == name) & (kinds == kind)]
            pair = crystal.is_dichalcogenide and (kind == 1 or len(_split(str(name))) == 2)
            for element, level in zip(_split(str(name)), (half, -half) if pair else (0.0,), strict=False):
                numbers.append(np.full(len(here), NUMBERS[element], np.int64))
                places.append(np.column_stack([here, np.full(len(here), level)]))
    return np.concatenate(numbers), np.vstack(places)


def _split(name: str) -> list[str]:
    """Elements of a column from the top down: "S2" is S, S; "OS" is O, S."""
    atoms = re.findall(r"([A-Z][a-z]?)(\d?)", name)
    return [element for element, count in atoms for _ in range(int(count or 1))]


def _draw_line(rng: np.random.Generator, field_nm: tuple[float, float]) -> Keep:
    """One side of a wavy line through the middle part of a field."""
    angle, phase = rng.uniform(0.0, 2.0 * np.pi, 2)
    normal, along = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    middle = np.array(field_nm) * rng.uniform(0.3, 0.7, 2)
    height, length = rng.uniform(0.0, 0.3), rng.uniform(1.0, 4.0)

    def side(sites: Float) -> Mask:
        away = sites - middle
        wave = height * np.sin(2.0 * np.pi * (away @ along) / length + phase)
        return np.asarray(away @ normal > wave)

    return side


def _draw_outline(rng: np.random.Generator, params: SheetParams) -> Keep:
    """Where there is a crystal: on one side of an edge, and outside holes."""
    side = _draw_line(rng, params.field_nm) if params.edge else None
    holes = [
        (
            rng.random(2) * np.array(params.field_nm),
            params.hole_nm * rng.uniform(0.5, 1.5),
            rng.normal(size=4),
        )
        for _ in range(params.holes)
    ]

    def keep(sites: Float) -> Mask:
        kept = np.ones(len(sites), bool) if side is None else side(sites)
        for centre, radius, wave in holes:
            away = sites - centre
            angle = np.arctan2(*away.T)
            turns = np.stack([np.cos(2 * angle), np.sin(2 * angle), np.cos(3 * angle), np.sin(3 * angle)])
            kept &= np.hypot(*away.T) > radius * (1.0 + 0.15 * (wave @ turns))
        return kept

    return keep


def _tilt(sites: Float, positions: Float, params: SheetParams) -> tuple[Float, Float]:
    """Everything turned about an axis through the middle of the field; sites seen from above."""
    axis, tilt = np.deg2rad([params.tilt_axis_deg, params.tilt_deg])
    middle = 0.5 * np.array(params.field_nm)
    normal = np.array([np.cos(axis), np.sin(axis)])

    def turned(places: Float, heights: Float) -> tuple[Float, Float]:
        away = (places - middle) @ normal
        moved = (np.cos(tilt) - 1.0) * away + np.sin(tilt) * heights
        return places + moved[:, None] * normal, np.cos(tilt) * heights - np.sin(tilt) * away

    seen, height = turned(positions[:, :2], positions[:, 2])
    return turned(sites, np.zeros(len(sites)))[0], np.column_stack([seen, height])
