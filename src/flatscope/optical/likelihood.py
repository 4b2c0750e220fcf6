"""How well a measured contrast agrees with every layer number under each set-up, and with what is no crystal."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.materials import find_material
from flatscope.optical.observations import Observation
from flatscope.optical.rungs import FEW, LOG_PRIOR, SHARE_FOREIGN, SHARE_RESIDUE
from flatscope.optical.setups import OWN_SIGMA, Prior
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

_THIN_NM = 4.0
"""Crystals above this thickness are thick: a few percent of error in a published index move their interference colours
far more than those of a thin one."""
_THICK_SIGMA = 0.12
"""Relative error of the computed contrast of a thick crystal (1 sigma); `OWN_SIGMA` for a thin one."""
_THICK_FLOOR = 0.03
"""Contrast error of any thick region (1 sigma)."""
_FLOOR = 0.006
"""Contrast error of any thin region: background, compression, a film of adsorbates (1 sigma)."""
_FREEDOM = 4
"""Degrees of freedom of the Student distribution of contrasts; residue and blurred edges give it heavy tails."""
_RESIDUE_WIDTH = 0.06
"""Spread of the contrast of residue."""
_FOREIGN_WIDTH = 0.6
"""Spread of the contrast of other foreign matter."""
_FAR_LAYERS = 2.0
"""This many layers from a known region, theory is as uncertain as without it."""
_MEMORY_LAYERS = 6.0
"""What theory misses at a known region fades away (1/e) over this many layers."""
_IMPOSSIBLE = -1e4
"""Log density of what is known to be something else."""


def weigh_contrasts(observation: Observation, theory: Float32, prior: Prior) -> tuple[Float32, Float]:
    """Log likelihood times prior of each region, set-up and layer number, and of foreign matter.

    Parameters
    ----------
    observation
        Regions, known ones among them.
    theory
        Stored contrasts under each set-up, shape (setups, layer numbers, 3).
    prior
        Names the material.

    Returns
    -------
    Shapes (regions, setups, layer numbers) and (regions,).
    """
    model, scatter, reach = pass_through(theory, observation.take(np.flatnonzero(observation.known > 0)))
    # Between two grid points of a thick crystal lies a crystal in between: half their distance counts as error.
    gap = np.zeros_like(model)
    gap[:, FEW - 1 : -1] = 0.35 * np.abs(np.diff(model[:, FEW - 1 :], axis=1))
    thick = LAYER_GRID * find_material(prior.material).layer_nm > _THIN_NM
    share = np.where(thick, _THICK_SIGMA, OWN_SIGMA).astype(np.float32)[:, None]
    floor = np.where(thick, _THICK_FLOOR, _FLOOR).astype(np.float32)[:, None]
    far = np.minimum(reach / _FAR_LAYERS, 1.0).astype(np.float32)[:, None]
    variance = (far * share * model) ** 2 + scatter**2 + gap**2 + floor**2
    log = _log_student(model, variance, observation) + LOG_PRIOR.astype(np.float32)
    # The known regions say which set-up it is: they are compared with theory, each with its own layer number only.
    for row in np.flatnonzero(observation.known > 0):
        own = slice(int(observation.known[row]) - 1, int(observation.known[row]))
        there = theory[:, own]
        alone = _log_student(
            there, (share[own] * there) ** 2 + floor[own] ** 2, observation.take(np.array([row]))
        )
        log[row] = _IMPOSSIBLE
        log[row, :, own] = alone[0]
    foreign = _log_foreign(observation.contrast, observation.sigma)
    return log, np.where(observation.known > 0, _IMPOSSIBLE, foreign)


def pass_through(theory: Float32, known: Observation) -> tuple[Float32, Float32, Float]:
    """Bend the ladder of contrasts of every set-up so that it passes through the regions that are known.

    What theory misses at the known layer numbers is added, linearly in between, and less and less beyond.

    Returns
    -------
    The ladders and their error (scatter of the known regions, half of what was added beyond them), both (setups, layer
    numbers, 3), and the distance of each layer number from the nearest known one (far, if none is known).
    """
    if not len(known.known):
        return theory, np.zeros_like(theory), np.full(len(LAYER_GRID), np.inf)
    order = np.argsort(known.known)
    rungs = known.known[order]
    missed = known.contrast[order].astype(np.float32) - theory[:, rungs - 1]
    share = np.stack([np.interp(LAYER_GRID, rungs, row) for row in np.eye(len(rungs))], axis=1)
    reach = np.abs(LAYER_GRID[:, None] - rungs).min(1)
    share *= np.exp(-reach / _MEMORY_LAYERS)[:, None]
    added = np.einsum("gk,skc->sgc", share.astype(np.float32), missed)
    beyond = 0.5 * np.minimum(reach / _FAR_LAYERS, 1.0)[:, None] * added
    return theory + added, np.hypot(beyond, share @ known.uneven[order]).astype(np.float32), reach


def _log_student(model: Float32, model_variance: Float32, observation: Observation) -> Float32:
    """Logarithm of the density of every contrast, up to a constant; shape (regions, setups, layer numbers).

    A multivariate t distribution in place of the normal one (Lange et al. 1989, doi:10.1080/01621459.1989.10478852):
    now and then residue or a blurred edge puts a contrast far off.
    """
    measured = observation.contrast.astype(np.float32)[:, None, None, :]
    noise = observation.sigma.astype(np.float32)[:, None, None, :] ** 2
    misfit = np.zeros((len(observation.contrast), *model.shape[:2]), np.float32)
    product = np.ones_like(misfit)
    # One channel at a time: sums over an axis of three are slow, and one logarithm does for all three.
    for channel in range(3):
        residual = model[..., channel] - measured[..., channel]
        saturated = observation.saturated[:, channel]
        residual[saturated] = np.minimum(residual[saturated], 0.0)
        variance = model_variance[..., channel] + noise[..., channel]
        residual *= residual
        residual /= variance
        misfit += residual
        product *= variance
    misfit *= np.float32(1.0 / _FREEDOM)
    return np.asarray(-0.5 * ((_FREEDOM + 3) * np.log1p(misfit, out=misfit) + np.log(product, out=product)))


def _log_foreign(contrast: Float, sigma: Float) -> Float:
    """Log density times prior of what is no crystal of the material, from arrays of shape (regions, 3)."""
    residue = np.log(SHARE_RESIDUE) + _log_gauss(contrast, sigma, _RESIDUE_WIDTH)
    return np.asarray(
        np.logaddexp(residue, np.log(SHARE_FOREIGN) + _log_gauss(contrast, sigma, _FOREIGN_WIDTH))
    )


def _log_gauss(contrast: Float, sigma: Float, width: float) -> Float:
    """Up to a constant, the one that the density of crystals leaves out within 0.2."""
    variance = width**2 + sigma**2
    return np.asarray(-0.5 * (np.minimum(contrast, 1.5) ** 2 / variance + np.log(variance)).sum(-1))
