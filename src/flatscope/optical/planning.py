"""Before the microscope: how visible a crystal is on a substrate, and which film thickness shows one layer best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.signal import find_peaks

from flatscope.optical.materials import Material
from flatscope.optical.substrates import Substrate
from flatscope.optical.thinfilm import channel_weights, contrast, stack_spectra

Float = NDArray[np.float64]

MOST_LAYERS = 10
"""Layer numbers that a plan shows."""
THICKNESSES_NM = np.arange(10.0, 401.0, 2.0)
"""Thicknesses of the fitted film among which the best are looked for."""
_LAMP_K = 5500.0
"""Colour temperature of a plain microscope."""
_VISIBLE = 0.02
"""Contrast that stands out from the noise of a single pixel in an ordinary picture."""


@dataclass(frozen=True, eq=False)
class Plan:
    """How visible crystals of one to ten layers are under a plain colour camera, linear and white-balanced.

    Parameters
    ----------
    material, substrate
        What lies on what; the substrate has its thickness.
    layers
        Contrast of 1 to 10 layers, shape (variants, 10, 3): red, green, blue, by each published index.
    films
        Contrast of one layer over `THICKNESSES_NM` of the fitted film, shape (variants, thicknesses, 3); None where
        the substrate has no film.
    """

    material: Material
    substrate: Substrate
    layers: Float
    films: Float | None

    def best_nm(self) -> list[float]:
        """Thicknesses of the fitted film at which one layer stands out most, the best first, at most three.

        What counts is the root mean square contrast of the three channels, averaged over the published indices.
        """
        if self.films is None:
            return []
        seen = np.sqrt((self.films**2).mean(-1)).mean(0)
        peaks, _ = find_peaks(np.concatenate([[0.0], seen, [0.0]]))
        best = sorted(peaks - 1, key=lambda place: -seen[place])[:3]
        return [float(THICKNESSES_NM[place]) for place in best if seen[place] > 0.5 * seen.max()]

    def countable(self) -> int:
        """Layers that are told apart by more than `_VISIBLE` in some channel, counted from one."""
        ladder = np.concatenate([np.zeros((1, 3)), self.layers.mean(0)])
        clear = np.abs(np.diff(ladder, axis=0)).max(1) > _VISIBLE
        return int(np.argmin(clear)) if not clear.all() else len(clear)


def plan_visibility(material: Material, substrate: Substrate, *, na: float = 0.55) -> Plan:
    """Compute how visible a material is on a substrate.

    Parameters
    ----------
    material
        From `flatscope.optical.materials.choose_material`.
    substrate
        Its fitted film has a thickness; without one the best is taken.
    na
        Numerical aperture of the objective, 0 to 0.95.

    Raises
    ------
    ValueError
        If `na` lies outside 0 to 0.95.

    Examples
    --------
    >>> from flatscope.optical.materials import find_material
    >>> plan = plan_visibility(find_material("graphene"), Substrate.parse("SiO2 / Si"))
    >>> str(plan.substrate)
    'SiO2 76 / Si'
    """
    variants = range(len(material.variants))
    films = None
    if substrate.fitted is not None:
        over = [_contrasts(material, v, substrate, np.ones(1), THICKNESSES_NM, na) for v in variants]
        films = np.stack([values[:, 0] for values in over])
        if substrate.nominal_nm is None:
            best = Plan(material, substrate, np.zeros((1, MOST_LAYERS, 3)), films).best_nm()[0]
            substrate = substrate.with_nominal(best)
    counts = np.arange(1.0, MOST_LAYERS + 1.0)
    fitted = np.array([substrate.nominal_nm or 0.0])
    layers = [_contrasts(material, v, substrate, counts, fitted, na)[0] for v in variants]
    return Plan(material, substrate, np.stack(layers), films)


def _contrasts(
    material: Material, variant: int, substrate: Substrate, layers: Float, fitted_nm: Float, na: float
) -> Float:
    """Shape (thicknesses, layers, 3)."""
    one = np.ones(len(fitted_nm))
    weights = channel_weights(_LAMP_K * one, np.zeros((len(one), 3)), one, 0.0 * one)
    bare, flakes = stack_spectra(material, variant, substrate, layers, fitted_nm=fitted_nm, na=na)
    return contrast(bare, flakes, weights)
