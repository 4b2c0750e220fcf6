"""Rungs: how many crystals of each layer number a batch holds, and what that says of its set-up.

Thin layers come more often than thicker ones, and a layer number that was found will be found again. So a set-up that
makes monolayers of most crystals is likelier than one that makes trilayers of all of them and leaves the rungs below
empty. Thick crystals differ from one another: a colour that comes back in many crystals is hardly theirs.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

FEW = int(np.searchsorted(LAYER_GRID, 10.0)) + 1
"""Entries of `LAYER_GRID` up to ten layers: "few", where the grid has no gaps."""
_SHARE_FEW = 0.55
"""Prior share of crystals of up to ten layers, …"""
_SHARE_THICK = 0.3
"""… of thicker ones, …"""
SHARE_RESIDUE = 0.12
"""… of faint residue, …"""
SHARE_FOREIGN = 0.03
"""… and of other foreign matter."""
_CRYSTALS_KNOWN = 10.0
"""The prior shares weigh as much as this many crystals: batches differ in what they hold."""
_SAME_THICK = 0.15
"""Chance that another thick crystal has the same colour: about seven colours can be told apart."""
_SAME_FOREIGN = 0.3
"""Chance that another piece of residue has the same colour."""


def _layer_log_prior() -> Float:
    """Few layers as 1 / N, since growth starts with one and cleaving leaves more area the thinner the steps; thicker
    ones evenly in the logarithm of thickness."""
    prior = np.zeros(len(LAYER_GRID))
    prior[:FEW] = _SHARE_FEW / LAYER_GRID[:FEW] / (1.0 / LAYER_GRID[:FEW]).sum()
    spacing = np.gradient(np.log(LAYER_GRID[FEW:]))
    prior[FEW:] = _SHARE_THICK * spacing / spacing.sum()
    return np.log(prior)


LOG_PRIOR = _layer_log_prior()
"""Logarithm of the prior share of each entry of `LAYER_GRID`."""
_SHARES = np.append(np.exp(LOG_PRIOR[:FEW]), (_SHARE_THICK, SHARE_RESIDUE + SHARE_FOREIGN))
"""Prior shares of the rungs: one to ten layers, thicker, foreign."""


def log_shares(held: Float32, crystals: int) -> Float32:
    """What a batch that holds these crystals adds to the log prior of a region of a level with this many crystals."""
    return np.asarray(np.log(share_rungs(held, crystals) / _SHARES), np.float32)


def gather_rungs(crystal: Float32, foreign: Float) -> Float32:
    """Log densities on each rung, from log densities times prior as a crystal of every layer number and as foreign
    matter, shapes (levels, set-ups, layer numbers) and (levels,), to (levels, set-ups, rungs)."""
    rungs = np.empty((*crystal.shape[:2], len(_SHARES)), np.float32)
    rungs[..., :FEW] = crystal[..., :FEW]
    thick = crystal[..., FEW:]
    highest = thick.max(-1)
    rungs[..., FEW] = highest + np.log(np.exp(thick - highest[..., None]).sum(-1))
    rungs[..., FEW + 1] = foreign[:, None]
    rungs -= np.log(_SHARES).astype(np.float32)
    return rungs


def fill_rungs(
    density: Float32, weight: Float, repeats: Ints, *, temperature: float = 1.0
) -> tuple[Float, Float32]:
    """Put the levels of a batch on the rungs of every set-up.

    One level after another is looked at, and what it adds to a rung makes that rung likelier for the next one
    (a Dirichlet prior on the shares of the rungs).

    Parameters
    ----------
    density
        From `gather_rungs`, shape (levels, set-ups, rungs), the strongest level first.
    weight
        How far each level counts, 0 to 1, shape (levels,).
    repeats
        How many crystals stand behind each level, shape (levels,).
    temperature
        Power of the densities, 0 to 1.

    Returns
    -------
    Log likelihood of all levels under each set-up, shape (set-ups,), and the number of crystals of each level on each
    rung, shape (levels, set-ups, rungs).
    """
    highest = density.max(-1)
    filled = np.exp(np.float32(temperature) * (density - highest[..., None]))
    held = np.zeros(density.shape[1:], np.float32)
    total = np.zeros(density.shape[1])
    for level, crystals in enumerate(repeats):
        own = filled[level]
        own *= share_rungs(held, crystals)
        mean = own.sum(-1)
        usual = share_rungs(0.0 * held[:1], crystals).sum()
        total += weight[level] * (temperature * highest[level] + np.log(mean / usual))
        own *= (weight[level] * crystals / mean)[:, None]
        held += own
    return total, filled


def share_rungs(held: Float32, crystals: int) -> Float32:
    """Probability that the next crystals, all of one colour, lie on each rung, where a batch holds these already; shape
    (set-ups, rungs)."""
    known = held + (_CRYSTALS_KNOWN * _SHARES).astype(np.float32)
    share = np.ones_like(known)
    for further in range(crystals):
        share *= (known + np.float32(further)) / (known[:1].sum() + np.float32(further))
    share[..., FEW:] *= np.array([_SAME_THICK, _SAME_FOREIGN], np.float32) ** (crystals - 1)
    return share
