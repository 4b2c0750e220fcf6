"""The one vocabulary of what stands on a lattice site: defects and usual columns, their names, and networks' classes.

A kind is written with letters for any crystal: M and X for the elements of its first and second site, X2 for a pair, V
for a vacancy, D for a dopant. In WSe2 the kind V_X2 is called "V_Se2". Shipped networks state these letters on their
cards; the order of their classes is `SITE_CLASSES`, `COLUMN_CLASSES` and `MARKS`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.physics.crystals import NUMBERS, Crystal, Sheet, find_crystal

What = Literal["usual", "vacancy", "antisite", "dopant", "adatom", "extended"]

UNKNOWN = 255
"""Class of a site that no network classifies: its occupant is none of the classes, or cannot be seen."""


@dataclass(frozen=True)
class Kind:
    """One kind of defect, or the usual column of a sublattice.

    Parameters
    ----------
    code
        The kind in letters that hold for every crystal, as on the cards of networks.
    what
        What it is.
    sublattice
        0 or 1; None for what has no site of its own.
    holds
        What the site holds, a pattern of the crystal's `first` and `second` species and the `element` of a pair; ""
        for nothing, None for any element.
    name
        How users read it, a pattern of the same words and of the `dopant`; "" for the usual column.
    darker
        Whether the site is always darker than usual, as something lacks or is lighter.
    """

    code: str
    what: What
    sublattice: int | None
    holds: str | None
    name: str
    darker: bool = False

    def holds_in(self, crystal: Crystal) -> str | None:
        """What the site holds in a crystal: "Se2", "Se", "OSe", "W", "" for nothing, None for any element."""
        return None if self.holds is None else self.holds.format(**_words(crystal))

    def name_in(self, crystal: Crystal, dopant: str = "", *, bright: bool | None = None) -> str:
        """The usual notation in a crystal: "V_W", "V_Se", "V_Se2", "W_Se2", "Se_W", "O_Se", "Ti_W", "X_W", "hole".

        Parameters
        ----------
        crystal
            The material.
        dopant
            Element that is known to be there. Vanadium is written out, as "V" is a vacancy.
        bright
            Whether the site is brighter than usual: a dopant that contradicts this is called "X", an unknown element.
        """
        if dopant and bright is not None and self.sublattice is not None:
            host = (crystal.first, crystal.second)[self.sublattice][0]
            if bright != (NUMBERS[dopant] > NUMBERS[host]):
                dopant = ""
        spelled = {"": "X", "V": "vanadium"}.get(dopant, dopant)
        return self.name.format(**_words(crystal), dopant=spelled)


def _words(crystal: Crystal) -> dict[str, str]:
    first, second = crystal.species
    return {"first": first, "second": second, "element": crystal.second[0]}


M = Kind("M", "usual", 0, "{first}", "")
V_M = Kind("V_M", "vacancy", 0, "", "V_{first}", darker=True)
D_M = Kind("D_M", "dopant", 0, None, "{dopant}_{first}")
X_M = Kind("X_M", "antisite", 0, "{second}", "{element}_{first}")
X2 = Kind("X2", "usual", 1, "{second}", "")
V_X = Kind("V_X", "vacancy", 1, "{element}", "V_{element}", darker=True)
V_X2 = Kind("V_X2", "vacancy", 1, "", "V_{second}", darker=True)
M_X2 = Kind("M_X2", "antisite", 1, "{first}", "{first}_{second}")
O_X = Kind("O_X", "dopant", 1, "O{element}", "O_{element}", darker=True)
D_X2 = Kind("D_X2", "dopant", 1, None, "{dopant}_{second}")
ADATOM = Kind("adatom", "adatom", None, None, "{dopant}")
HOLE = Kind("hole", "extended", None, None, "hole", darker=True)
CONTAMINATION = Kind("contamination", "extended", None, None, "contamination")
DISORDER = Kind("disorder", "extended", None, None, "disorder")

SITE_KINDS = (M, V_M, D_M, X_M, X2, V_X, V_X2, M_X2, O_X)
"""Classes of the networks that name a site of a dichalcogenide, in their order: first those of a metal site."""
SITE_CLASSES = tuple(kind.code for kind in SITE_KINDS)
"""The same as cards write them."""
GROUPS = ((0, 4), (4, 9))
"""Classes of a metal site and of a chalcogen site, the usual column first: (first, last + 1)."""

COLUMN_CLASSES = ("background", "first", "second", "part", "other")
"""Classes of the networks that read focal series: no column, a whole one of either sublattice, one atom of a pair, and
anything else. They go by what the column holds, wherever it stands."""
BACKGROUND, FIRST, SECOND, PART, OTHER = range(len(COLUMN_CLASSES))
FOREIGN, NOTHING = "other", "none"
"""Species of a column that does not belong to the material, and of a site without an atom."""
_UNSEEN = ("C", "O")
"""Adatoms too light to be seen in a focal series."""

MARKS = ("nothing", "vacancy", "oxygen", "dopant")
"""Classes of the networks that mark defects pixel by pixel: chalcogens lack, oxygen stands for one, or another metal
stands on a metal site."""
_MARKS = {M: 0, X2: 0, V_X: 1, V_X2: 1, O_X: 2, D_M: 3}


def list_kinds(crystal: Crystal, sublattice: int) -> tuple[Kind, ...]:
    """What may stand on a site of a sublattice (0 or 1): the usual column first, then every kind of defect."""
    if crystal.is_dichalcogenide:
        first, end = GROUPS[sublattice]
        return SITE_KINDS[first:end]
    return ((M, V_M, D_M), (X2, V_X2, D_X2))[sublattice]


def find_kind(name: str, crystal: Crystal) -> Kind | None:
    """The kind that users call `name` in a crystal, such as "V_Se" or "Ti_W", or "W" for a usual column; None if there
    is none."""
    for sublattice, species in enumerate(crystal.species):
        for kind in list_kinds(crystal, sublattice):
            if name == (kind.name_in(crystal) or species):
                return kind
    element, _, host = name.partition("_")
    if host in crystal.species and element in (*NUMBERS, "vanadium"):
        return (D_M, D_X2)[crystal.species.index(host)]
    return None


def find_codes(names: Iterable[str], crystal: Crystal) -> dict[str, str]:
    """Name to code of every kind of point defect among `names`."""
    kinds = {name: find_kind(name, crystal) for name in sorted(set(names))}
    return {name: kind.code for name, kind in kinds.items() if kind is not None}


def classify_sites(sheet: Sheet, crystal: Crystal) -> NDArray[np.int64]:
    """Class of what stands on each site of a drawn sheet.

    Returns
    -------
    Shape (m,): places in `SITE_KINDS`; `UNKNOWN` under dirt, for lone atoms, and where no class fits.
    """
    known = {(kind.sublattice, kind.holds_in(crystal)): place for place, kind in enumerate(SITE_KINDS)}
    dopant = SITE_KINDS.index(D_M)
    found = np.full(len(sheet.species), UNKNOWN)
    for index, (species, sublattice) in enumerate(zip(sheet.species, sheet.sublattice, strict=True)):
        if sublattice >= 0 and not sheet.buried[index]:
            default = dopant if sublattice == 0 and str(species) in NUMBERS else UNKNOWN
            found[index] = known.get((int(sublattice), str(species)), default)
    return found


def classify_marks(sheet: Sheet, crystal: Crystal) -> NDArray[np.uint8]:
    """What stands on each site of a drawn sheet, shape (m,): places in `MARKS`, or `UNKNOWN`."""
    lookup = np.full(UNKNOWN + 1, UNKNOWN, np.uint8)
    for kind, mark in _MARKS.items():
        lookup[SITE_KINDS.index(kind)] = mark
    return lookup[classify_sites(sheet, crystal)]


def classify_columns(sheet: Sheet, crystal: Crystal) -> NDArray[np.int64]:
    """What the column on each site of a drawn sheet holds.

    Returns
    -------
    Shape (m,): places in `COLUMN_CLASSES`; `UNKNOWN` under dirt, and for lone light atoms, which cannot be seen.
    """
    first, second = crystal.species
    part = crystal.second[0] if crystal.is_dichalcogenide else ""
    known = {first: FIRST, second: SECOND, part: PART, "": BACKGROUND}
    classes = np.array([known.get(str(name), OTHER) for name in sheet.species], np.int64)
    classes[sheet.buried & (classes != BACKGROUND)] = UNKNOWN
    classes[(sheet.sublattice < 0) & np.isin(sheet.species, _UNSEEN)] = UNKNOWN
    return classes


@dataclass(frozen=True)
class Defect:
    """A site of a drawn sheet that does not hold what it should.

    Parameters
    ----------
    kind
        Its name, see `Kind.name_in`; the element's symbol for a lone atom.
    row_nm, col_nm
        Where.
    """

    kind: str
    row_nm: float
    col_nm: float


def list_defects(sheet: Sheet, material: str) -> list[Defect]:
    """Every defect of a sheet of a material, in the order of its sites."""
    crystal = find_crystal(material)
    defects = []
    for (row, col), sublattice, species in zip(sheet.sites_nm, sheet.sublattice, sheet.species, strict=True):
        if sublattice < 0 or species != crystal.species[sublattice]:
            name = _name_species(str(species), int(sublattice), crystal)
            defects.append(Defect(name, float(row), float(col)))
    return defects


def _name_species(species: str, sublattice: int, crystal: Crystal) -> str:
    """What a defect is called whose site holds `species`; sublattice -1 is none."""
    if sublattice < 0:
        return ADATOM.name.format(dopant=species)
    for kind in list_kinds(crystal, sublattice):
        if kind.holds_in(crystal) == species:
            return kind.name_in(crystal)
    one = crystal.second[0]
    if crystal.is_dichalcogenide and sublattice == 1 and species.endswith(one):
        return f"{species.removesuffix(one)}_{one}"
    return f"{species}_{crystal.species[sublattice]}"
