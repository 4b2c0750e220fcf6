"""How many layers: posterior probabilities from the contrast of all regions of a batch of pictures together.

The contrast of N layers depends on oxide, lamp, aperture, camera and published refractive indices, none of which is
known well. A population of set-ups is drawn from the prior and moved, step by step, towards those that explain all
levels of the batch (`flatscope.optical.tempering`). What remains uncertain about the
set-up stays in the probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import special

from flatscope.optical.levels import Levels, find_levels, observe_levels
from flatscope.optical.materials import find_material
from flatscope.optical.observations import MOST_LAYERS, Observation
from flatscope.optical.setups import LATENTS, MODEL_SIGMA, OPEN_ODDS, Prior, Setups
from flatscope.optical.tempering import temper
from flatscope.optical.thickness import Ruler, Thickness, measure_thickness
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

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
_THINNED = 2
"""Every second one is kept: probabilities are averaged over these."""
_WITNESSES = 6.0
"""Regions share the errors of the published indices: more than this many do not make the set-up surer (found on drawn
scenes, seeds 1 and 2)."""
_EMPTY_RUNG = 1.0
"""Price, in log-odds, of a layer number that no level of the batch has, below one that has a level: crystals cleave and
grow layer by layer, so that ladders have few gaps."""
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
_BRIGHT = 0.6
"""A crystal with this contrast is thick."""
_SHARPER = 1.15
"""Exponent of the final probabilities, which `_WITNESSES` leaves too unsure (found on drawn scenes, seeds 1 and 2)."""
_OXIDE_SHARE = 0.015
"""Relative error of a fitted oxide that no number of regions removes: published indices, angle of the cone."""
_FAR_LAYERS = 2.0
"""This many layers from a known region, theory is as uncertain as without it."""
_MEMORY_LAYERS = 6.0
"""What theory misses at a known region fades away (1/e) over this many layers."""


@dataclass(frozen=True, eq=False)
class SetupFit:
    """What the levels of a batch say of its set-up.

    Parameters
    ----------
    prior
        Before looking.
    latent
        Set-ups of the posterior, standard normal numbers of shape (n, `LATENTS`).
    levels
        Of the batch.
    known
        Regions of known layer number; none, mostly.
    bare_colour
        Stored colour of the substrate in fractions of full scale, shape (3,).
    log_evidence
        Logarithm of the probability density of the levels, averaged over the prior.
    notes
        What the colours say against the stated set-up, one line each.
    """

    prior: Prior
    latent: Float
    levels: Levels
    known: Observation
    bare_colour: Float
    log_evidence: float
    notes: tuple[str, ...] = ()

    @cached_property
    def setups(self) -> Setups:
        """Set-ups over which probabilities are averaged."""
        return self.prior.setups(self.latent)

    @cached_property
    def theory(self) -> Float32:
        """Stored contrasts of `LAYER_GRID` layers in each of them, shape (n, layers, 3)."""
        return self.setups.contrasts(self.bare_colour).astype(np.float32)

    @cached_property
    def ruler(self) -> Ruler:
        """What tells the thickness of thick crystals."""
        witnesses = replace(self.known.join(observe_levels(self.levels)), bare_colour=self.bare_colour)
        return Ruler.of(self.setups, witnesses)

    @property
    def p_open(self) -> float:
        """Probability that the oxide is not the stated one."""
        return float(self.setups.is_open.mean())

    def oxide(self) -> tuple[float, float]:
        """Oxide and its 1-sigma error in nm, by the stated oxide or without it, whichever is likelier."""
        likelier = self.setups.is_open == (self.p_open > 0.5)
        oxide = self.setups.oxide_nm[likelier]
        return float(oxide.mean()), float(np.hypot(oxide.std(), _OXIDE_SHARE * oxide.mean()))


@dataclass(frozen=True)
class LayerPosterior:
    """What a batch says of the regions of a picture and of the set-up.

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
    step
        Shape (regions,): which step of contrast among the thin levels of the batch it belongs to, from 1; 0 for none.
    steps
        Number of these steps.
    notes
        What the colours say against the stated set-up, one line each.
    """

    p: Float
    p_foreign: Float
    low: Float
    high: Float
    oxide_nm: float
    oxide_sigma_nm: float
    gamma: float
    thickness: Thickness
    step: Ints
    steps: int
    notes: tuple[str, ...] = ()

    def take(self, which: Ints) -> LayerPosterior:
        """The regions at the given places."""
        names = ("p", "p_foreign", "low", "high", "step")
        chosen = {name: getattr(self, name)[which] for name in names}
        return replace(self, thickness=self.thickness.take(which), **chosen)


def count_layers(observation: Observation, prior: Prior, *, rng: np.random.Generator) -> LayerPosterior:
    """Fit the set-up to the regions of one picture and give every region's layer probabilities.

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
    known = observation.known > 0
    regions = observation.take(np.flatnonzero(~known))
    fit = fit_setups(
        find_levels([regions]),
        observation.take(np.flatnonzero(known)),
        prior,
        bare_colour=observation.bare_colour,
        rng=rng,
    )
    return name_regions(observation, fit)


def fit_setups(
    levels: Levels,
    known: Observation,
    prior: Prior,
    *,
    bare_colour: Float,
    rng: np.random.Generator,
    drawn: int = _DRAWN,
) -> SetupFit:
    """Fit one set-up to the levels of a batch.

    Parameters
    ----------
    levels
        From `find_levels`.
    known
        Regions of known layer number, each number at most once.
    prior
        Material and nominal set-up.
    bare_colour
        Stored colour of the substrate in fractions of full scale, shape (3,).
    rng
        Source of randomness.
    drawn
        Set-ups drawn from the prior.
    """
    witnesses = replace(known.join(observe_levels(levels)), bare_colour=bare_colour)
    if len(witnesses.contrast):
        latent, log_evidence = _fit_setups(witnesses, prior, rng=rng, drawn=drawn)
    else:
        latent, log_evidence = prior.draw_latent(rng, _PARTICLES), 0.0
    # In single precision, as other processes get them.
    latent = latent[::_THINNED].astype(np.float32).astype(float)
    return SetupFit(prior, latent, levels, known, bare_colour, log_evidence)


def weigh_material(fit: SetupFit, prior: Prior, *, drawn: int, rng: np.random.Generator) -> float:
    """Logarithm of the density of the levels of a batch under another prior, averaged over set-ups of stated oxide."""
    latent = rng.standard_normal((drawn, LATENTS))
    latent[:, -1] = 0.0  # the stated oxide is right
    witnesses = replace(observe_levels(fit.levels), bare_colour=fit.bare_colour)
    return float(special.logsumexp(_log_evidence(witnesses, prior, latent)) - np.log(drawn))


def name_regions(observation: Observation, fit: SetupFit) -> LayerPosterior:
    """Layer probabilities of the regions of one picture under a fitted set-up."""
    if len(fit.known.known) and not (observation.known > 0).any():
        observation = fit.known.join(observation)
        posterior = name_regions(observation, fit)
        return posterior.take(np.flatnonzero(observation.known == 0))
    crystal, foreign = _log_likelihood(observation, fit.theory, fit.prior)
    return _summarise(crystal, foreign, fit, observation)


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
    setups = prior.setups(_fit_setups(known, prior, rng=rng)[0][:count])
    ladders, _, _ = _pass_through(setups.contrasts(known.bare_colour).astype(np.float32), known)
    return setups, ladders.astype(float)


def _fit_setups(
    witnesses: Observation, prior: Prior, *, rng: np.random.Generator, drawn: int = _DRAWN
) -> tuple[Float, float]:
    """Set-ups of the posterior, and the logarithm of the witnesses' density averaged over the prior."""

    def evidence(latent: Float) -> Float:
        return _log_evidence(witnesses, prior, latent)

    return temper(rng.standard_normal((drawn, LATENTS)), evidence, count=_PARTICLES, rng=rng)


def _layer_log_prior() -> Float:
    """Few layers as 1 / N, since growth starts with one and cleaving leaves more area the thinner the steps; thicker
    ones evenly in the logarithm of thickness."""
    prior = np.zeros(len(LAYER_GRID))
    prior[:_FEW] = _SHARE_FEW / LAYER_GRID[:_FEW] / (1.0 / LAYER_GRID[:_FEW]).sum()
    spacing = np.gradient(np.log(LAYER_GRID[_FEW:]))
    prior[_FEW:] = _SHARE_THICK * spacing / spacing.sum()
    return np.log(prior)


_LOG_PRIOR = _layer_log_prior()


def _log_likelihood(observation: Observation, theory: Float32, prior: Prior) -> tuple[Float32, Float]:
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
    model, scatter, reach = _pass_through(theory, observation.take(np.flatnonzero(observation.known > 0)))
    # Between two grid points of a thick crystal lies a crystal in between: half their distance counts as error.
    gap = np.zeros_like(model)
    gap[:, _FEW - 1 : -1] = 0.35 * np.abs(np.diff(model[:, _FEW - 1 :], axis=1))
    thick = LAYER_GRID * find_material(prior.material).layer_nm > _THIN_NM
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
    return log, _log_foreign(observation)


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


def _log_foreign(observation: Observation) -> Float:
    """Log density times prior of what is no crystal of the material."""
    residue = np.log(_SHARE_RESIDUE) + _log_gauss(observation, _RESIDUE_WIDTH)
    return np.asarray(np.logaddexp(residue, np.log(_SHARE_FOREIGN) + _log_gauss(observation, _FOREIGN_WIDTH)))


def _log_gauss(observation: Observation, width: float) -> Float:
    """Up to a constant, the one that `_log_student` leaves out within 0.2."""
    variance = width**2 + observation.sigma**2
    return np.asarray(
        -0.5 * (np.minimum(observation.contrast, 1.5) ** 2 / variance + np.log(variance)).sum(-1)
    )


def _log_evidence(witnesses: Observation, prior: Prior, latent: Float) -> Float:
    """Log likelihood of all witnesses under each set-up, whatever their layer numbers, less the price of gaps and of an
    oxide that is not the stated one."""
    setups = prior.setups(latent)
    theory = setups.contrasts(witnesses.bare_colour).astype(np.float32)
    crystal, foreign = _log_likelihood(witnesses, theory, prior)
    foreign = np.where(witnesses.known > 0, -np.inf, foreign)
    total = np.logaddexp(_log_sum(crystal), foreign[:, None])
    doubt = np.log(OPEN_ODDS) if prior.stated_nm is not None else 0.0
    heat = min(1.0, _WITNESSES / len(witnesses.contrast))
    return np.asarray(
        heat * (total.sum(0) - _EMPTY_RUNG * _count_gaps(crystal, total)) + doubt * setups.is_open, float
    )


def _count_gaps(crystal: Float32, total: Float) -> Float:
    """Expected number of layer numbers that no witness has, below one that some witness has; shape (setups,)."""
    share = np.exp(crystal[..., :MOST_LAYERS] - total[..., None])
    empty = np.prod(1.0 - share, axis=0)
    above = np.cumsum(share[..., ::-1], axis=-1)[..., ::-1] - share
    return np.asarray((empty * (1.0 - np.prod(1.0 - np.clip(above, 0.0, 1.0), axis=0))).sum(-1))


def _log_sum(log: Float32) -> Float32:
    """Logarithm of the sum of exponentials over the last axis."""
    highest = log.max(-1)
    return np.asarray(highest + np.log(np.exp(log - highest[..., None]).sum(-1)))


def _summarise(crystal: Float32, foreign: Float, fit: SetupFit, observation: Observation) -> LayerPosterior:
    """Average over the set-ups."""
    each = np.exp(crystal - _log_sum(crystal)[..., None]).mean(1)
    p = (
        np.concatenate([each[:, :MOST_LAYERS], each[:, MOST_LAYERS:].sum(1, keepdims=True)], axis=1)
        ** _SHARPER
    )
    p /= p.sum(1, keepdims=True)
    share = np.exp(foreign[:, None] - np.logaddexp(_log_sum(crystal), foreign[:, None]))
    cumulative = np.cumsum(each, axis=1)
    step, steps = _number_steps(observation.contrast, fit)
    return LayerPosterior(
        p,
        np.where(observation.known > 0, 0.0, share.mean(1)),
        LAYER_GRID[np.argmax(cumulative >= 0.025, axis=1)],
        LAYER_GRID[np.argmax(cumulative >= 0.975, axis=1)],
        *fit.oxide(),
        float(fit.setups.camera.gamma.mean()),
        measure_thickness(observation, fit.ruler),
        step,
        steps,
        fit.notes,
    )


def _number_steps(contrast: Float, fit: SetupFit) -> tuple[Ints, int]:
    """Step of each region among the levels that are not bright as thick crystals are, and the number of steps."""
    thin = np.abs(fit.levels.contrast).max(1, initial=0.0) < _BRIGHT
    of_level = np.concatenate([[0], np.where(thin, np.cumsum(thin), 0)])
    return of_level[fit.levels.number(contrast)], int(thin.sum())
