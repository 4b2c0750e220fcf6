"""A population that moves from the prior to the posterior, by tempering.

Sequential Monte Carlo (Del Moral et al. 2006, doi:10.1111/j.1467-9868.2006.00553.x) with moves along differences of the
population (ter Braak 2006, doi:10.1007/s11222-006-8769-1). Its members are vectors of standard normal numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

Float = NDArray[np.float64]
Floats = NDArray[Any]

_MOVES = 5
"""Moves of every member at each temperature, three times as many at the end."""


def temper(
    latent: Float,
    measure: Callable[[Float], Floats],
    weigh: Callable[[Floats, float], Float],
    *,
    count: int,
    rng: np.random.Generator,
) -> tuple[Float, float]:
    """Move members drawn from a standard normal prior to the posterior.

    Parameters
    ----------
    latent
        Drawn from the prior, shape (drawn, numbers).
    measure
        What is computed of members once, shape (n, numbers) to (n, ...).
    weigh
        Their log likelihood at a temperature between 0 and 1 from it, shape (n, ...) to (n,): the same for all at 0.
    count
        Members that arrive.
    rng
        Source of randomness.

    Returns
    -------
    The members that arrive, in random order, and the logarithm of the likelihood averaged over the prior.
    """
    seen = measure(latent)
    reached, step, log_mean, fit = 0.0, 0.6, 0.0, weigh(seen, 0.0)
    while reached < 1.0:
        reached, gain = _next_temperature(weigh, seen, fit, reached)
        total = special.logsumexp(gain)
        log_mean += float(total - np.log(len(gain)))
        chosen = _resample(rng, np.exp(gain - total), count=count)
        latent, seen = latent[chosen], seen[chosen]
        fit = weigh(seen, reached)
        for _ in range(_MOVES if reached < 1.0 else 3 * _MOVES):
            members = (latent, seen, fit)
            latent, seen, fit, share = _move(rng, members, measure, weigh, reached=reached, step=step)
            step = float(np.clip(step * (1.35 if share > 0.35 else 0.7 if share < 0.2 else 1.0), 0.05, 1.0))
    return rng.permutation(latent), log_mean


def _next_temperature(
    weigh: Callable[[Floats, float], Float], seen: Floats, fit: Float, reached: float
) -> tuple[float, Float]:
    """How far the population can be tempered at once and keep half of its effective size, and what it gains."""

    def gain(temperature: float) -> Float:
        return np.asarray(weigh(seen, temperature) - fit)

    def effective(log: Float) -> float:
        weight = np.exp(log - log.max())
        return float(weight.sum() ** 2 / (weight**2).sum())

    low, high, last = reached, 1.0, gain(1.0)
    if effective(last) > 0.5 * len(last):
        return 1.0, last
    for _ in range(8):
        middle = low + (high - low) * (0.5 if low > reached else 0.2)
        low, high = (middle, high) if effective(gain(middle)) > 0.5 * len(last) else (low, middle)
    reached = max(low, reached + 0.02 * (1.0 - reached))
    return reached, gain(reached)


def _resample(rng: np.random.Generator, weight: Float, *, count: int) -> NDArray[np.int64]:
    """Places drawn in proportion to their weights, evenly spread (systematic resampling)."""
    places = (rng.random() + np.arange(count)) / count
    return np.minimum(np.searchsorted(np.cumsum(weight), places), len(weight) - 1)


def _move(
    rng: np.random.Generator,
    members: tuple[Float, Floats, Float],
    measure: Callable[[Float], Floats],
    weigh: Callable[[Floats, float], Float],
    *,
    reached: float,
    step: float,
) -> tuple[Float, Floats, Float, float]:
    """One move of every member, what was measured of it and its likelihood, that leaves the tempered posterior as it
    is; returns them and the share that moved.

    Half of the members at a time move along the difference of two of the other half: the population knows which
    way oxide and lamp can change together.
    """
    latent, seen, fit = members[0].copy(), members[1].copy(), members[2].copy()
    half = len(fit) // 2
    moved = 0
    for own, others in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half))):
        here, count = latent[own], len(fit[own])
        pair = rng.integers(0, len(fit[others]), (2, count))
        # Each member changes some of its numbers only: the badly determined ones may travel far.
        touched = rng.random(here.shape) < 0.5
        along = step * (latent[others][pair[0]] - latent[others][pair[1]])
        proposal = here + touched * (along + 0.1 * step * rng.standard_normal(here.shape))
        new_seen = measure(proposal)
        new_fit = weigh(new_seen, reached)
        prior = 0.5 * ((here**2).sum(1) - (proposal**2).sum(1))
        taken = np.log(rng.random(count)) < new_fit - fit[own] + prior
        latent[own][taken], seen[own][taken], fit[own][taken] = (
            proposal[taken],
            new_seen[taken],
            new_fit[taken],
        )
        moved += int(taken.sum())
    return latent, seen, fit, moved / len(fit)
