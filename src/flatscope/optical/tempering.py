"""A population that moves from the prior to the posterior, by tempering.

Sequential Monte Carlo (Del Moral et al. 2006, doi:10.1111/j.1467-9868.2006.00553.x) with moves along differences of the
population (ter Braak 2006, doi:10.1007/s11222-006-8769-1). Its members are vectors of standard normal numbers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy import special

Float = NDArray[np.float64]

_MOVES = 3
"""Moves of every member at each temperature, three times as many at the end."""


def temper(
    latent: Float, log_density: Callable[[Float], Float], *, count: int, rng: np.random.Generator
) -> tuple[Float, float]:
    """Move members drawn from a standard normal prior to the posterior.

    Parameters
    ----------
    latent
        Drawn from the prior, shape (drawn, numbers).
    log_density
        Log likelihood of members, shape (n, numbers) to (n,).
    count
        Members that arrive.
    rng
        Source of randomness.

    Returns
    -------
    The members that arrive, in random order, and the logarithm of the likelihood averaged over the prior.
    """
    fit = log_density(latent)
    reached, step, log_mean = 0.0, 0.6, 0.0
    while reached < 1.0:
        advance = _next_temperature(fit, 1.0 - reached)
        reached += advance
        total = special.logsumexp(advance * fit)
        log_mean += float(total - np.log(len(fit)))
        chosen = _resample(rng, np.exp(advance * fit - total), count=count)
        latent, fit = latent[chosen], fit[chosen]
        for _ in range(_MOVES if reached < 1.0 else 3 * _MOVES):
            latent, fit, share = _move(rng, latent, fit, log_density, reached=reached, step=step)
            step = float(np.clip(step * (1.35 if share > 0.35 else 0.7 if share < 0.2 else 1.0), 0.05, 1.0))
    return rng.permutation(latent), log_mean


def _next_temperature(fit: Float, most: float) -> float:
    """How far the population can be tempered at once and keep half of its effective size."""

    def effective(advance: float) -> float:
        weight = np.exp(advance * (fit - fit.max()))
        return float(weight.sum() ** 2 / (weight**2).sum())

    if effective(most) > 0.5 * len(fit):
        return most
    low, high = 0.0, most
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) > 0.5 * len(fit) else (low, middle)
    return max(low, 0.02 * most)


def _resample(rng: np.random.Generator, weight: Float, *, count: int) -> NDArray[np.int64]:
    """Places drawn in proportion to their weights, evenly spread (systematic resampling)."""
    places = (rng.random() + np.arange(count)) / count
    return np.minimum(np.searchsorted(np.cumsum(weight), places), len(weight) - 1)


def _move(
    rng: np.random.Generator,
    latent: Float,
    fit: Float,
    log_density: Callable[[Float], Float],
    *,
    reached: float,
    step: float,
) -> tuple[Float, Float, float]:
    """One move of every set-up that leaves the tempered posterior as it is; returns the share that moved.

    Half of the set-ups at a time move along the difference of two of the other half: the population knows which
    way oxide and lamp can change together.
    """
    latent, fit = latent.copy(), fit.copy()
    half = len(fit) // 2
    moved = 0
    for own, others in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        here, count = latent[own], len(fit[own])
        pair = rng.integers(0, len(fit[others]), (2, count))
        # Each set-up changes some of its numbers only: the badly determined ones may travel far.
        touched = rng.random(here.shape) < 0.5
        along = step * (latent[others][pair[0]] - latent[others][pair[1]])
        proposal = here + touched * (along + 0.1 * step * rng.standard_normal(here.shape))
        new_fit = log_density(proposal)
        prior = 0.5 * ((here**2).sum(1) - (proposal**2).sum(1))
        taken = np.log(rng.random(count)) < reached * (new_fit - fit[own]) + prior
        latent[own] = np.where(taken[:, None], proposal, here)
        fit[own] = np.where(taken, new_fit, fit[own])
        moved += int(taken.sum())
    return latent, fit, moved / len(fit)
