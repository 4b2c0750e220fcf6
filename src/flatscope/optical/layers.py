"""How many layers: posterior probabilities from the contrast of all regions of a picture together.

The contrast of N layers depends on oxide, lamp, aperture, camera and published refractive indices, none of which is
known well. A population of set-ups is drawn from the prior and moved, step by step, towards those that explain all
regions of the picture: sequential Monte Carlo (Del Moral et al. 2006, doi:10.1111/j.1467-9868.2006.00553.x) with moves
along differences of the population (ter Braak 2006, doi:10.1007/s11222-006-8769-1). What remains uncertain about the
set-up stays in the probabilities.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from flatscope.optical.materials import find_material
from flatscope.optical.observations import MOST_LAYERS, Observation
from flatscope.optical.setups import LATENTS, MODEL_SIGMA, Prior, Setups
from flatscope.optical.thickness import Thickness, measure_thickness
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

_FEW = int(np.searchsorted(LAYER_GRID, 10.0)) + 1
"""Entries of `LAYER_GRID` up to ten layers: "few", where the grid has no gaps."""
_THIN_NM = 4.0
"""Crystals above this thickness are thick: a few percent of error in a published index move their interference colours
far more than those of a thin one."""
_THICK_SIGMA = 0.12
"""Relative error of the computed contrast of a thick crystal (1 sigma); `MODEL_SIGMA` for a thin one."""
_THICK_FLOOR = 0.03
"""Contrast error of any thick region (1 sigma)."""
_FLOOR = 0.006
"""Contrast error of any thin region: background, compression, a film of adsorbates (1 sigma)."""
_DRAWN = 4000
"""Set-ups drawn from the prior. Set-ups that give one layer less explain many pictures nearly as well: only many draws
weigh the two ways evenly."""
_PARTICLES = 500
"""Set-ups that move on to the posterior."""
_REPORTED = 250
"""Set-ups over which the probabilities are averaged."""
_MOVES = 3
"""Moves of every set-up at each temperature, three times as many at the end."""
_FITTED_REGIONS = 16
"""Largest number of regions that the set-up is fitted to."""
_SAME_CONTRAST = 0.015
"""Regions closer than this in every channel say the same …"""
_ALIKE_REGIONS = 3
"""… and at most this many of them are fitted."""
_WITNESSES = 6.0
"""Regions share the errors of the published indices: more than this many do not make the set-up surer (found on drawn
scenes, seeds 1 and 2)."""
_FREEDOM = 4
"""Degrees of freedom of the Student distribution of contrasts; residue and blurred edges give it heavy tails."""
_SHARE_FEW = 0.55
"""Prior share of regions that are crystals of up to ten layers."""
_SHARE_THICK = 0.3
"""Prior share of regions that are thicker crystals."""
_SHARE_RESIDUE = 0.12
"""Prior share of regions that are faint residue."""
_SHARE_FOREIGN = 0.03
"""Prior share of regions that are other foreign matter."""
_RESIDUE_WIDTH = 0.06
"""Spread of the contrast of residue."""
_FOREIGN_WIDTH = 0.6
"""Spread of the contrast of other foreign matter."""
_SHARPER = 1.15
"""Exponent of the final probabilities, which `_WITNESSES` leaves too unsure (found on drawn scenes, seeds 1 and 2)."""
_OXIDE_SHARE = 0.015
"""Relative error of a fitted oxide that no number of regions removes: published indices, angle of the cone."""
_FAR_LAYERS = 2.0
"""This many layers from a known region, theory is as uncertain as without it."""
_MEMORY_LAYERS = 6.0
"""What theory misses at a known region fades away (1/e) over this many layers."""


@dataclass(frozen=True)
class LayerPosterior:
    """What a picture says of its regions and of the set-up.

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
    thickness
        Of every region, in nm.
    """

    p: Float
    p_foreign: Float
    low: Float
    high: Float
    oxide_nm: float
    oxide_sigma_nm: float
    gamma: float
    thickness: Thickness


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
    Fails without notice where the crystal is another material that happens to share the colours of the stated one.
    """
    latent = rng.standard_normal((_DRAWN, LATENTS))
    witnesses = _choose_witnesses(observation)
    if len(witnesses.contrast):
        latent = _fit_setups(witnesses, prior, latent, rng=rng)
    latent = latent[:_PARTICLES]
    setups = prior.setups(latent)
    crystal, foreign = _log_likelihood(observation, prior.setups(latent[:: _PARTICLES // _REPORTED]))
    thickness = measure_thickness(observation, witnesses, prior.setups(latent[:: _PARTICLES // _REPORTED]))
    return _summarise(crystal, foreign, setups, observation.known, thickness)


def sample_ladders(
    known: Observation, prior: Prior, *, count: int, rng: np.random.Generator
) -> tuple[Setups, Float]:
    """Set-ups that the known regions allow, and the contrasts that layers have there.

    Parameters
    ----------
    known
        Regions of known layer number only, at least one.
    prior
        Material and nominal set-up.
    count
        Number of set-ups, up to 500.

    Returns
    -------
    The set-ups, and the stored contrast of `LAYER_GRID` layers in each, through the known ones; shape (count, 28, 3).
    """
    latent = rng.standard_normal((_DRAWN, LATENTS))
    setups = prior.setups(_fit_setups(known, prior, latent, rng=rng)[:count])
    ladders, _, _ = _pass_through(setups.contrasts(known.bare_colour).astype(np.float32), known)
    return setups, ladders.astype(float)


def _fit_setups(witnesses: Observation, prior: Prior, latent: Float, *, rng: np.random.Generator) -> Float:
    """Move set-ups drawn from the prior to the posterior, by tempering; `_PARTICLES` of them arrive."""
    heat = min(1.0, _WITNESSES / len(witnesses.contrast))

    def evidence(latent: Float) -> Float:
        return heat * _log_evidence(witnesses, prior.setups(latent))

    fit = evidence(latent)
    reached, step = 0.0, 0.6
    while reached < 1.0:
        advance = _next_temperature(fit, 1.0 - reached)
        reached += advance
        weight = np.exp(advance * fit - logsumexp(advance * fit))
        chosen = _resample(rng, weight, count=_PARTICLES)
        latent, fit = latent[chosen], fit[chosen]
        for _ in range(_MOVES if reached < 1.0 else 3 * _MOVES):
            latent, fit, share = _move(rng, latent, fit, evidence, reached=reached, step=step)
            step = float(np.clip(step * (1.35 if share > 0.35 else 0.7 if share < 0.2 else 1.0), 0.05, 1.0))
    return rng.permutation(latent)


def _choose_witnesses(observation: Observation) -> Observation:
    """The regions that fix the set-up best: known ones, then large unsaturated ones of different contrast."""
    order = np.argsort(-(observation.area_px + 1e9 * (observation.known > 0)))
    chosen: list[int] = []
    for place in order[observation.witness[order] & ~observation.saturated[order].any(1)]:
        distance = np.abs(observation.contrast[chosen] - observation.contrast[place])
        if (distance < _SAME_CONTRAST).all(1).sum() < _ALIKE_REGIONS:
            chosen.append(int(place))
        if len(chosen) == _FITTED_REGIONS:
            break
    witnesses = observation.take(np.array(chosen, int))
    return replace(witnesses, sigma=np.hypot(witnesses.sigma, witnesses.uneven))


def _layer_log_prior() -> Float:
    """Few layers as 1 / N, since growth starts with one and cleaving leaves more area the thinner the steps; thicker
    ones evenly in the logarithm of thickness."""
    prior = np.zeros(len(LAYER_GRID))
    prior[:_FEW] = _SHARE_FEW / LAYER_GRID[:_FEW] / (1.0 / LAYER_GRID[:_FEW]).sum()
    spacing = np.gradient(np.log(LAYER_GRID[_FEW:]))
    prior[_FEW:] = _SHARE_THICK * spacing / spacing.sum()
    return np.log(prior)


_LOG_PRIOR = _layer_log_prior()


def _log_likelihood(observation: Observation, setups: Setups) -> tuple[Float32, Float]:
    """Log likelihood times prior of each region, set-up and layer number, and of foreign matter.

    Returns
    -------
    Shapes (regions, setups, layer numbers) and (regions,).
    """
    theory = setups.contrasts(observation.bare_colour).astype(np.float32)
    model, scatter, reach = _pass_through(theory, observation.take(np.flatnonzero(observation.known > 0)))
    # Between two grid points of a thick crystal lies a crystal in between: half their distance counts as error.
    gap = np.zeros_like(model)
    gap[:, _FEW - 1 : -1] = 0.35 * np.abs(np.diff(model[:, _FEW - 1 :], axis=1))
    thick = LAYER_GRID * find_material(setups.material).layer_nm > _THIN_NM
    share = np.where(thick, _THICK_SIGMA, MODEL_SIGMA).astype(np.float32)[:, None]
    floor = np.where(thick, _THICK_FLOOR, _FLOOR).astype(np.float32)[:, None]
    far = np.minimum(reach / _FAR_LAYERS, 1.0).astype(np.float32)[:, None]
    variance = (far * share * model) ** 2 + scatter**2 + gap**2 + floor**2
    log = _log_student(model, variance, observation) + _LOG_PRIOR.astype(np.float32)
    # The known regions say which set-up it is: they are compared with theory, each with its own layer number only.
    for row in np.flatnonzero(observation.known > 0):
        own = slice(int(observation.known[row]) - 1, int(observation.known[row]))
        there = theory[:, own]
        alone = _log_student(
            there, (share[own] * there) ** 2 + floor[own] ** 2, observation.take(np.array([row]))
        )
        log[row] = -np.inf
        log[row, :, own] = alone[0]
    return log, _log_foreign(observation.contrast)


def _pass_through(theory: Float32, known: Observation) -> tuple[Float32, Float32, Float]:
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


def _log_foreign(contrast: Float) -> Float:
    """Log density times prior of what is no crystal of the material."""
    residue = np.log(_SHARE_RESIDUE) + _log_gauss(contrast, _RESIDUE_WIDTH)
    return np.asarray(np.logaddexp(residue, np.log(_SHARE_FOREIGN) + _log_gauss(contrast, _FOREIGN_WIDTH)))


def _log_gauss(contrast: Float, width: float) -> Float:
    """Up to a constant, the one that `_log_student` leaves out within 0.2."""
    return np.asarray(-0.5 * (np.minimum(contrast, 1.5) ** 2 / width**2 + 2.0 * np.log(width)).sum(-1))


def _log_evidence(witnesses: Observation, setups: Setups) -> Float:
    """Log likelihood of all regions under each set-up, whatever their layer numbers."""
    crystal, foreign = _log_likelihood(witnesses, setups)
    foreign = np.where(witnesses.known > 0, -np.inf, foreign)
    return np.asarray(np.logaddexp(_log_sum(crystal), foreign[:, None]).sum(0), float)


def _log_sum(log: Float32) -> Float32:
    """Logarithm of the sum of exponentials over the last axis."""
    highest = log.max(-1)
    return np.asarray(highest + np.log(np.exp(log - highest[..., None]).sum(-1)))


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
    evidence: Callable[[Float], Float],
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
        new_fit = evidence(proposal)
        prior = 0.5 * ((here**2).sum(1) - (proposal**2).sum(1))
        taken = np.log(rng.random(count)) < reached * (new_fit - fit[own]) + prior
        latent[own] = np.where(taken[:, None], proposal, here)
        fit[own] = np.where(taken, new_fit, fit[own])
        moved += int(taken.sum())
    return latent, fit, moved / len(fit)


def _summarise(
    crystal: Float32, foreign: Float, setups: Setups, known: NDArray[np.int64], thickness: Thickness
) -> LayerPosterior:
    """Average over the set-ups."""
    each = np.exp(crystal - _log_sum(crystal)[..., None]).mean(1)
    p = (
        np.concatenate([each[:, :MOST_LAYERS], each[:, MOST_LAYERS:].sum(1, keepdims=True)], axis=1)
        ** _SHARPER
    )
    p /= p.sum(1, keepdims=True)
    share = np.exp(foreign[:, None] - np.logaddexp(_log_sum(crystal), foreign[:, None]))
    cumulative = np.cumsum(each, axis=1)
    return LayerPosterior(
        p,
        np.where(known > 0, 0.0, share.mean(1)),
        LAYER_GRID[np.argmax(cumulative >= 0.025, axis=1)],
        LAYER_GRID[np.argmax(cumulative >= 0.975, axis=1)],
        *_summarise_oxide(setups),
        float(setups.camera.gamma.mean()),
        thickness,
    )


def _summarise_oxide(setups: Setups) -> tuple[float, float]:
    """Oxide and its error, by the stated oxide or without it, whichever is likelier."""
    likelier = setups.is_open == (setups.is_open.mean() > 0.5)
    oxide = setups.oxide_nm[likelier]
    return float(oxide.mean()), float(np.hypot(oxide.std(), _OXIDE_SHARE * oxide.mean()))
