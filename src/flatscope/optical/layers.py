"""How many layers: posterior probabilities from the contrast of all regions of a picture together.

The contrast of N layers depends on oxide, lamp, aperture, camera and published refractive indices, none of
which is known well. A population of set-ups is drawn from the prior and moved, step by step, towards those
that explain all regions of the picture (sequential Monte Carlo, Del Moral et al. 2006,
10.1111/j.1467-9868.2006.00553.x, with moves that keep the Gaussian prior, Cotter et al. 2013,
10.1214/13-STS421). What remains uncertain about the set-up stays in the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from flatscope.optical.setups import LATENTS, MODEL_SIGMA, Prior, Setups
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]

MOST_LAYERS = 6
"""Layer numbers up to here are told apart; what is above is thick."""
_PARTICLES = 500
_FITTED_REGIONS = 40
_WITNESSES = 12.0
"""Regions share the errors of the published indices, so more than this many do not make the set-up surer."""
_FLOOR = 0.006
"""Contrast error of any region: background, compression, a film of adsorbates (1 sigma)."""
_FOREIGN_SHARE = 0.02
_FOREIGN_WIDTH = 0.6
"""Prior share of regions that are no crystal of this material, and the spread of their contrast."""


@dataclass(frozen=True)
class Observation:
    """Measured contrasts of the regions of one picture.

    Parameters
    ----------
    contrast
        Shape (regions, 3).
    sigma
        1-sigma error of each contrast, shape (regions, 3).
    ceiling
        Contrast at which the camera saturates, shape (3,); at or above it the true contrast may be any larger.
    area_px
        Shape (regions,).
    known
        Layer number where the user knows it, else 0; shape (regions,).
    """

    contrast: Float
    sigma: Float
    ceiling: Float
    area_px: Float
    known: NDArray[np.int64]


@dataclass(frozen=True)
class LayerPosterior:
    """What the picture says.

    Parameters
    ----------
    p
        Shape (regions, 7): probability of 1 to 6 layers and of more, given that the region is a crystal.
    p_foreign
        Shape (regions,): probability that the colour belongs to no thickness of this material.
    low, high
        Shape (regions,): 95 % interval of the layer number.
    oxide_nm, oxide_sigma_nm
        Oxide thickness after looking at the picture.
    gamma
        The camera's gamma, posterior mean.
    """

    p: Float
    p_foreign: Float
    low: Float
    high: Float
    oxide_nm: float
    oxide_sigma_nm: float
    gamma: float


def count_layers(observation: Observation, prior: Prior, *, rng: np.random.Generator) -> LayerPosterior:
    """Fit the set-up to all regions of a picture together and give every region's layer probabilities.

    Parameters
    ----------
    observation
        Contrasts with their errors.
    prior
        Material and nominal set-up.
    rng
        Source of randomness.

    Notes
    -----
    Fails without a word where the crystal is not the stated material but happens to share its colours.
    """
    latent = rng.standard_normal((_PARTICLES, LATENTS))
    setups = prior.setups(latent)
    if len(observation.contrast) == 0:
        empty = np.zeros(0)
        return _summarise(
            np.zeros((0, _PARTICLES, len(LAYER_GRID))), np.zeros((0, _PARTICLES)), setups, empty
        )
    fitted = _select(observation)
    heat = min(1.0, _WITNESSES / len(fitted.contrast))

    def evidence(latent: Float) -> Float:
        return heat * _log_evidence(fitted, prior.setups(latent))

    fit = evidence(latent)
    reached, step = 0.0, 0.6
    while reached < 1.0:
        advance = _next_temperature(fit, 1.0 - reached)
        reached += advance
        weight = np.exp(advance * fit - logsumexp(advance * fit))
        chosen = _systematic(rng, weight)
        latent, fit = latent[chosen], fit[chosen]
        for _ in range(2 if reached < 1.0 else 3):
            latent, fit, share = _move(rng, latent, fit, evidence, reached=reached, step=step)
            step = float(np.clip(step * (1.35 if share > 0.35 else 0.7 if share < 0.2 else 1.0), 0.05, 0.9))
    setups = prior.setups(latent)
    crystal, foreign = _log_likelihood(observation, setups)
    return _summarise(crystal, foreign, setups, observation.known)


def _select(observation: Observation) -> Observation:
    """The regions that tell most about the set-up: large ones, known ones first."""
    order = np.argsort(-(observation.area_px + 1e9 * (observation.known > 0)))[:_FITTED_REGIONS]
    return Observation(
        observation.contrast[order],
        observation.sigma[order],
        observation.ceiling,
        observation.area_px[order],
        observation.known[order],
    )


def _layer_log_prior() -> Float:
    """Thin layers equally likely; thick ones share the rest evenly in the logarithm of thickness."""
    thick = LAYER_GRID > MOST_LAYERS
    prior = np.empty(len(LAYER_GRID))
    prior[~thick] = 0.6 / (~thick).sum()
    spacing = np.gradient(np.log(LAYER_GRID[thick]))
    prior[thick] = 0.4 * spacing / spacing.sum()
    return np.log(prior)


_LOG_PRIOR = _layer_log_prior()


def _log_likelihood(observation: Observation, setups: Setups) -> tuple[Float, Float]:
    """Log likelihood times prior of each region, set-up and layer number, and of foreign matter.

    Returns
    -------
    Shapes (regions, setups, layer numbers) and (regions, setups).
    """
    model = setups.contrasts().astype(np.float32)
    measured = observation.contrast.astype(np.float32)[:, None, None, :]
    ceiling = observation.ceiling.astype(np.float32)
    saturated = measured >= 0.93 * (1.0 + ceiling) - 1.0
    residual = np.minimum(model[None], ceiling) - measured
    residual = np.where(saturated & (residual > 0), np.float32(0), residual)
    # Between two grid points of a thick crystal lies a crystal in between: half their distance counts as error.
    gap = np.zeros_like(model)
    gap[:, MOST_LAYERS:-1] = 0.35 * np.abs(np.diff(model[:, MOST_LAYERS:], axis=1))
    variance = (
        (observation.sigma[:, None, None, :].astype(np.float32)) ** 2
        + np.float32(_FLOOR**2)
        + (np.float32(MODEL_SIGMA) * np.abs(model)) ** 2
        + gap**2
    )
    log = -0.5 * (residual**2 / variance + np.log(variance)).sum(-1, dtype=np.float64) + _LOG_PRIOR
    known = observation.known > 0
    if known.any():
        rows = np.flatnonzero(known)
        kept = log[rows, :, observation.known[rows] - 1].copy()
        log[rows] = -np.inf
        log[rows, :, observation.known[rows] - 1] = kept - _LOG_PRIOR[observation.known[rows] - 1][:, None]
    wide2 = _FOREIGN_WIDTH**2
    brightness = np.minimum(observation.contrast, 1.5)
    foreign = -0.5 * (brightness**2 / wide2 + np.log(wide2)).sum(-1) + np.log(_FOREIGN_SHARE)
    return log, np.repeat(foreign[:, None], len(setups), axis=1)


def _log_evidence(observation: Observation, setups: Setups) -> Float:
    """Log likelihood of all regions under each set-up, whatever their layer numbers."""
    crystal, foreign = _log_likelihood(observation, setups)
    return np.asarray(np.logaddexp(logsumexp(crystal, axis=-1), foreign).sum(0))


def _next_temperature(fit: Float, most: float) -> float:
    """How far the population can be tempered at once and keep half of its effective size."""

    def effective(advance: float) -> float:
        weight = np.exp(advance * (fit - fit.max()))
        return float(weight.sum() ** 2 / (weight**2).sum())

    if effective(most) > 0.4 * len(fit):
        return most
    low, high = 0.0, most
    for _ in range(20):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective(middle) > 0.4 * len(fit) else (low, middle)
    return max(low, 0.02 * most)


def _systematic(rng: np.random.Generator, weight: Float) -> NDArray[np.int64]:
    places = (rng.random() + np.arange(len(weight))) / len(weight)
    return np.minimum(np.searchsorted(np.cumsum(weight), places), len(weight) - 1)


def _move(
    rng: np.random.Generator,
    latent: Float,
    fit: Float,
    evidence: Callable[[Float], Float],
    *,
    reached: float,
    step: float,
) -> tuple[Float, Float, float]:
    """One move of every set-up that leaves the tempered posterior as it is; returns the share that moved."""
    # Each set-up changes some of its numbers only: the badly determined ones may travel far.
    touched = rng.random(latent.shape) < 0.5
    proposal = np.where(
        touched, np.sqrt(1.0 - step**2) * latent + step * rng.standard_normal(latent.shape), latent
    )
    new_fit = evidence(proposal)
    taken = np.log(rng.random(len(fit))) < reached * (new_fit - fit)
    return np.where(taken[:, None], proposal, latent), np.where(taken, new_fit, fit), float(taken.mean())


def _summarise(
    crystal: Float, foreign: Float, setups: Setups, known: NDArray[np.int64] | Float
) -> LayerPosterior:
    oxide = setups.oxide_nm
    regions = len(crystal)
    total = logsumexp(crystal, axis=-1) if regions else np.zeros((0, len(setups)))
    each = np.exp(crystal - total[..., None]).mean(1) if regions else np.zeros((0, len(LAYER_GRID)))
    p = np.concatenate([each[:, :MOST_LAYERS], each[:, MOST_LAYERS:].sum(1, keepdims=True)], axis=1)
    p_foreign = np.exp(foreign - np.logaddexp(total, foreign)).mean(1) if regions else np.zeros(0)
    p_foreign = np.where(np.asarray(known) > 0, 0.0, p_foreign)
    cumulative = np.cumsum(each, axis=1)
    low = LAYER_GRID[np.argmax(cumulative >= 0.025, axis=1)] if regions else np.zeros(0)
    high = LAYER_GRID[np.argmax(cumulative >= 0.975, axis=1)] if regions else np.zeros(0)
    return LayerPosterior(
        p, p_foreign, low, high, float(oxide.mean()), float(oxide.std()), float(setups.gamma.mean())
    )
