"""Published refractive indices and layer spacings of two-dimensional materials and their substrates.

The CSV files beside this one come from the refractiveindex.info database (CC0), made by
`tools/collect_refractive_indices.py`; each names its paper. Where published values scatter, several sources
are kept, and a *variant* pairs a monolayer source with a bulk source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

WAVELENGTHS_NM = np.arange(400.0, 721.0, 10.0)
"""Wavelengths at which flatscope does its optics: the visible range of a colour camera behind its infrared filter."""


Rows = tuple[tuple[float, float, float], ...]
"""A table of a user or of the database: wavelength in nm, n and k."""
_MUST_COVER_NM = (450.0, 650.0)
"""A table that leaves out more of the visible says too little; beyond its ends the last value is kept."""
_LARGEST_INDEX = 20.0
"""No crystal has a larger n or k in the visible: such numbers are another quantity, or columns in another order."""


@dataclass(frozen=True)
class Material:
    """A layered material.

    Parameters
    ----------
    name
        As written on the command line.
    layer_nm
        Thickness of one layer (half the c axis for 2H crystals).
    lattice_nm
        Lattice constant a in the plane of a crystal with three-fold axis, else None.
    variants
        Pairs (monolayer source, bulk source): names of CSV files without material and suffix, or tables.
    """

    name: str
    layer_nm: float
    lattice_nm: float | None
    variants: tuple[tuple[str | Rows, str | Rows], ...]


# Layer spacings, and lattice constants in the plane from the same papers: graphite 0.3355 nm, 10.1103/PhysRev.100.544;
# hBN 0.333 nm, 10.1107/S0365110X52001167; dichalcogenides c/2 from 10.1016/0022-4596(86)90070-7 (MoS2, MoSe2) and
# 10.1107/S0108768187098331 (WS2, WSe2), 10.1103/PhysRevB.64.235305 (MoTe2), 10.1107/S0365110X66000513 (WTe2),
# 10.1016/0022-4596(72)90158-2 (NbSe2), 10.1107/S0108270190000014 (TaS2), 10.1016/0925-8388(96)02313-4 (ReS2),
# 10.3891/acta.chem.scand.19-0257 (PtSe2), 10.1107/S0021889889006916 (SnS2); In2Se3 (alpha, 2H)
# 10.1021/acs.inorgchem.8b01950; quintuple layers of Bi2Se3 and Bi2Te3 10.1016/0022-3697(63)90207-5. Of the authors of
# indices, Weber assumed 0.34 nm for graphene and Tharrault 0.51 nm for PtSe2; the others do not say in the database.
MATERIALS = {
    material.name: material
    for material in (
        Material(
            "graphene",
            0.3355,
            0.2461,
            (("Weber", "Djurisic-o"), ("Song", "Song-cHOPG-o"), ("El-Sayed", "Djurisic-o")),
        ),
        Material(
            "hBN", 0.333, 0.2504, (("Rah-o", "Rah-o"), ("Zotev-o", "Zotev-o"), ("Grudinin-o", "Grudinin-o"))
        ),
        Material(
            "MoS2",
            0.615,
            0.3160,
            (
                ("Ermolaev-1L", "Ermolaev-o"),
                ("Hsu-1L", "Munkhbat-o"),
                ("Song-1L", "Song-bulk"),
                ("Jung", "Munkhbat-o"),
                ("Zhang", "Ermolaev-o"),
            ),
        ),
        Material(
            "WS2",
            0.618,
            0.3153,
            (("Hsu-1L", "Munkhbat-o"), ("Jung", "Vyshnevyy-o"), ("Ermolaev", "Munkhbat-o")),
        ),
        Material(
            "WSe2",
            0.649,
            0.3282,
            (
                ("Gu-1L", "Gu-5L"),
                ("Hsu-1L", "Munkhbat-o"),
                ("Jung", "Munkhbat-o"),
                ("Ermolaev", "Munkhbat-o"),
            ),
        ),
        Material("MoSe2", 0.646, 0.3288, (("Hsu-1L", "Munkhbat-o"), ("Hsu-1L", "Beal"))),
        Material("MoTe2", 0.698, 0.3517, (("Munkhbat-o", "Munkhbat-o"), ("Beal", "Beal"))),
        Material(
            "WTe2",
            0.704,
            None,
            (("Munkhbat-alpha", "Munkhbat-alpha"), ("Munkhbat-beta", "Munkhbat-beta")),
        ),
        Material("NbSe2", 0.627, 0.3443, (("Munkhbat-o", "Munkhbat-o"),)),
        Material("TaS2", 0.605, 0.3314, (("Munkhbat-o", "Munkhbat-o"),)),
        Material(
            "ReS2",
            0.607,
            None,
            (("Munkhbat-alpha", "Munkhbat-alpha"), ("Munkhbat-beta", "Munkhbat-beta")),
        ),
        Material("PtSe2", 0.508, 0.3728, (("Tharrault-1L", "Tharrault-12L"), ("Ermolaev", "Ermolaev"))),
        Material("SnS2", 0.590, 0.3648, (("Ermolaev", "Ermolaev"),)),
        Material("In2Se3", 0.962, 0.4025, (("Zotev", "Zotev"),)),
        Material("Bi2Se3", 0.955, 0.4143, (("Fang-2L", "Fang-10L"), ("Ermolaev", "Ermolaev"))),
        Material("Bi2Te3", 1.016, 0.4386, (("Ermolaev", "Ermolaev"),)),
    )
}


UNMEASURED = {
    material.name: material
    for material in (
        # 10.1107/S0365110X65004140, 10.1021/cm504242t and 10.1002/pssa.2210310216.
        Material("phosphorene", 0.524, None, ()),
        Material("CrI3", 0.660, 0.6867, ()),
        Material("GaSe", 0.797, 0.3743, ()),
    )
}
"""Known layers without a free table of n and k over the visible: the user brings one."""
_OTHER_NAMES = {
    **dict.fromkeys(("bp", "black phosphorus", "black-phosphorus", "phosphorus"), "phosphorene"),
    **dict.fromkeys(("bn", "h-bn"), "hBN"),
    **dict.fromkeys(("graphite", "c"), "graphene"),
}
"""What else people write, in small letters; in the refractiveindex.info database BP is boron phosphide."""


def find_material(name: str | Material) -> Material:
    """Look up a material by name, upper or lower case.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists those that are known.
    """
    if isinstance(name, Material):
        return name
    material = _find(name)
    if material is None:
        raise ValueError(
            f"unknown material {name!r}: flatscope knows {', '.join(MATERIALS)}; any other needs --layer-nm, and "
            "--nk FILE or flatscope[materials]"
        )
    if not material.variants:
        raise ValueError(
            f"no free table of n and k of {material.name} covers the visible: give one with --nk FILE "
            "(wavelength_nm,n,k)"
        )
    return material


def choose_material(name: str, *, layer_nm: float | None = None, nk: Rows = ()) -> Material:
    """A material of any name: built in, from a table, or from the refractiveindex.info database.

    Parameters
    ----------
    name
        Name, or BOOK/PAGE of the database.
    layer_nm
        Thickness of one layer; needed where flatscope does not know it.
    nk
        Wavelength in nm, n and k, in any order of wavelength.

    Raises
    ------
    ValueError
        If the name is unknown, the layer thickness is missing or senseless, or the table cannot be used.

    Examples
    --------
    >>> choose_material("CrI3", nk=((400, 2.6, 0.9), (550, 2.5, 0.5), (750, 2.4, 0.3))).layer_nm
    0.66
    """
    if layer_nm is not None and not 0.1 <= layer_nm <= 10.0:
        raise ValueError(
            f"layer_nm of {layer_nm:g} is no thickness of one layer: give nm, 0.335 for graphene"
        )
    known = _find(name)
    if nk:
        table = check_rows(nk)
        thickness = layer_nm or (known.layer_nm if known else None)
        if thickness is None:
            raise ValueError(
                f"material {name!r} is not built in: pass --layer-nm, the thickness of one layer"
            )
        return Material(
            known.name if known else name, thickness, known.lattice_nm if known else None, ((table, table),)
        )
    if known is not None and known.variants:
        return known if layer_nm is None else replace(known, layer_nm=layer_nm)
    # Imported here: the database is an extra, and opening its catalog takes a second.
    from flatscope.optical.materials.database import find_pages

    tables = find_pages(name) if known is None or "/" in name else {}
    if not tables:
        return find_material(name)
    if layer_nm is None:
        raise ValueError(
            f"material {name!r} is in the database ({', '.join(tables)}) but not its layers: pass --layer-nm, the "
            "thickness of one layer"
        )
    return Material(name, layer_nm, None, tuple((rows, rows) for rows in tables.values()))


def _find(name: str) -> Material | None:
    wanted = _OTHER_NAMES.get(name.lower(), name).lower()
    everything = (*MATERIALS.values(), *UNMEASURED.values())
    return next((known for known in everything if known.name.lower() == wanted), None)


def check_rows(rows: Rows) -> Rows:
    """A table of n and k sorted by wavelength, if it can be used.

    Raises
    ------
    ValueError
        If a number is not finite or out of range, a wavelength occurs twice, or the table leaves out the visible.
    """
    table = np.array(sorted(rows), float)
    if table.ndim != 2 or table.shape[1] != 3 or not np.isfinite(table).all():
        raise ValueError("a table of n and k needs rows of three numbers: wavelength in nm, n, k")
    wavelength, n, k = table.T
    if (n <= 0).any() or (k < 0).any() or table[:, 1:].max() > _LARGEST_INDEX:
        bad = table[(n <= 0) | (k < 0) | (table[:, 1:].max(1) > _LARGEST_INDEX)][0]
        raise ValueError(
            f"n of {bad[1]:g} and k of {bad[2]:g} at {bad[0]:g} nm: n must be above 0, k 0 or more, both below "
            f"{_LARGEST_INDEX:g}"
        )
    if (np.diff(wavelength) == 0).any():
        raise ValueError(
            f"{wavelength[:-1][np.diff(wavelength) == 0][0]:g} nm occurs twice in the table of n and k"
        )
    low, high = _MUST_COVER_NM
    if wavelength[0] > low or wavelength[-1] < high:
        raise ValueError(
            f"the table of n and k covers {wavelength[0]:g} to {wavelength[-1]:g} nm: it must cover {low:g} to "
            f"{high:g} nm, better 400 to 750 (beyond its ends the last value is kept)"
        )
    return tuple((float(a), float(b), float(c)) for a, b, c in table)


@cache
def read_index(material: str, source: str | Rows) -> NDArray[np.complex128]:
    """Refractive index n + ik of one published data set or table.

    Returns
    -------
    Complex array over `WAVELENGTHS_NM`.
    """
    if isinstance(source, str):
        path = resources.files(__package__) / f"{material}.{source}.csv"
        with path.open(encoding="utf-8") as lines:
            table = np.loadtxt((line for line in lines if line[0].isdigit()), delimiter=",")
    else:
        table = np.array(source)
    n, k = (np.interp(WAVELENGTHS_NM, table[:, 0], table[:, column]) for column in (1, 2))
    return n + 1j * k


def layer_index(material: Material, variant: int, layers: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Refractive index of a crystal of a given number of layers.

    Published monolayer and bulk values are mixed with weights 1/N and 1 − 1/N: the outermost layers feel the missing
    neighbours, the inner ones do not. Two- and three-layer measurements (10.1002/adom.201900239) lie within the
    scatter between sources of this.

    Parameters
    ----------
    material, variant
        Which pair of sources; see `Material.variants`.
    layers
        Layer numbers, shape (n,).

    Returns
    -------
    Complex array of shape (n, wavelengths).
    """
    monolayer, bulk = (read_index(material.name, source) for source in material.variants[variant])
    weight = 1.0 / np.maximum(layers, 1.0)[:, None]
    return weight * monolayer + (1.0 - weight) * bulk
