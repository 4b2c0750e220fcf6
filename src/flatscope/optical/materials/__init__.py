"""Published refractive indices and layer spacings of two-dimensional materials and their substrates.

The CSV files beside this one come from the refractiveindex.info database (CC0), made by
`tools/collect_refractive_indices.py`; each names its paper. Where published values scatter, several sources
are kept, and a *variant* pairs a monolayer source with a bulk source.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

WAVELENGTHS_NM = np.arange(400.0, 721.0, 10.0)
"""Wavelengths at which flatscope does its optics: the visible range of a colour camera behind its infrared filter."""


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
        Lattice constant a in the plane.
    variants
        Pairs (monolayer source, bulk source): names of CSV files without material and suffix.
    """

    name: str
    layer_nm: float
    lattice_nm: float
    variants: tuple[tuple[str, str], ...]


# Layer spacings, and lattice constants in the plane from the same papers: graphite 0.3355 nm, 10.1103/PhysRev.100.544;
# hBN 0.333 nm, 10.1107/S0365110X52001167; dichalcogenides c/2 from 10.1016/0022-4596(86)90070-7 (MoS2, MoSe2) and
# 10.1107/S0108768187098331 (WS2, WSe2).
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
    )
}


def find_material(name: str) -> Material:
    """Look up a material by name, upper or lower case.

    Raises
    ------
    ValueError
        If the name is unknown; the message lists those that are known.
    """
    for known in MATERIALS.values():
        if known.name.lower() == name.lower():
            return known
    raise ValueError(f"unknown material {name!r}: flatscope knows {', '.join(MATERIALS)}")


@cache
def read_index(material: str, source: str) -> NDArray[np.complex128]:
    """Refractive index n + ik of one published data set.

    Returns
    -------
    Complex array over `WAVELENGTHS_NM`.
    """
    path = resources.files(__package__) / f"{material}.{source}.csv"
    with path.open(encoding="utf-8") as lines:
        table = np.loadtxt((line for line in lines if line[0].isdigit()), delimiter=",")
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
