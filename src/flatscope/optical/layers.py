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
from flatscope.optical.likelihood import pass_through, weigh_contrasts
from flatscope.optical.observations import MOST_LAYERS, Observation, observe_known
from flatscope.optical.rungs import FEW, fill_rungs, gather_rungs, log_shares
from flatscope.optical.setups import LATENTS, OPEN_ODDS, OPEN_RANGE_NM, Prior, Setups
from flatscope.optical.tempering import temper
from flatscope.optical.thickness import Ruler, Thickness, measure_thickness
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]

_DRAWN = 4000
"""Set-ups drawn from the prior. Set-ups that give one layer less explain many pictures nearly as well: only many draws
weigh the two ways evenly."""
_PARTICLES = 500
"""Set-ups that move on to the posterior."""
_THINNED = 2
"""Every second one is kept: probabilities are averaged over these."""
_WITNESSES = 12.0
"""Regions share the errors of the published indices: more than this many do not make the set-up surer (found on drawn
scenes, seeds 1 and 2)."""
_BRIGHT = 0.6
"""A crystal with this contrast is thick."""
_SHARPER = 1.15
"""Exponent of the final probabilities, which `_WITNESSES` leaves too unsure (found on drawn scenes, seeds 1 and 2)."""
_OXIDE_SHARE = 0.015
"""Relative error of a fitted oxide that no number of regions removes: published indices, angle of the cone."""


@dataclass(frozen=True)
class Hearsay:
    """What other pictures of a chip say of its oxide; without them what is known before looking.

    Parameters
    ----------
    log_odds
        Log-odds that the stated oxide is wrong.
    oxide_nm, sigma_nm
        The oxide in that case, with its 1-sigma error; one in two is another chip all the same.
    """

    log_odds: float = float(np.log(OPEN_ODDS))
    oxide_nm: float = 190.0
    sigma_nm: float = 1e6

    def weigh(self, setups: Setups, *, stated: bool) -> Float:
        """Log weight of each set-up beside those of the stated oxide, shape (n,)."""
        height = OPEN_RANGE_NM / (np.sqrt(2.0 * np.pi) * self.sigma_nm)
        same = height * np.exp(-0.5 * ((setups.oxide_nm - self.oxide_nm) / self.sigma_nm) ** 2)
        told = np.log(0.5 + 0.5 * same) if self.sigma_nm < OPEN_RANGE_NM else 0.0
        return np.where(setups.is_open, told + (self.log_odds if stated else 0.0), 0.0)


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
    hearsay
        What other pictures of the chip said of its oxide.
    """

    prior: Prior
    latent: Float
    levels: Levels
    known: Observation
    bare_colour: Float
    log_evidence: float
    notes: tuple[str, ...] = ()
    hearsay: Hearsay = Hearsay()

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
        return Ruler.of(self.setups, _Witnesses.of(self.levels, self.known, self.bare_colour).seen)

    @property
    def p_open(self) -> float:
        """Probability that the oxide is not the stated one."""
        return float(self.setups.is_open.mean())

    def log_odds_open(self) -> float:
        """Log-odds that the oxide is not the stated one, as far as this many set-ups can tell."""
        least = 0.5 / len(self.latent)
        share = np.clip(self.p_open, least, 1.0 - least)
        return float(np.log(share / (1.0 - share)))

    def open_oxide(self) -> tuple[float, float]:
        """Oxide in nm and its error, if it is not the stated one."""
        oxide = self.setups.oxide_nm[self.setups.is_open]
        return float(oxide.mean()), float(np.hypot(oxide.std(), _OXIDE_SHARE * oxide.mean()))

    def oxide(self) -> tuple[float, float]:
        """Oxide and its 1-sigma error in nm, by the stated oxide or without it, whichever is likelier."""
        likelier = self.setups.is_open == (self.p_open > 0.5)
        oxide = self.setups.oxide_nm[likelier]
        return float(oxide.mean()), float(np.hypot(oxide.std(), _OXIDE_SHARE * oxide.mean()))


@dataclass(frozen=True, eq=False)
class _Witnesses:
    """What a set-up is fitted to: known regions, then the levels of a batch, the strongest first.

    Parameters
    ----------
    seen
        Their contrasts.
    repeats
        How many crystals stand behind each, shape (witnesses,).
    number
        Number of each level, from 1, and 0 for known regions; shape (witnesses,).
    """

    seen: Observation
    repeats: Ints
    number: Ints

    @classmethod
    def of(cls, levels: Levels, known: Observation, bare_colour: Float) -> _Witnesses:
        order = np.argsort(-levels.strength, kind="stable")
        seen = replace(known.join(observe_levels(levels).take(order)), bare_colour=bare_colour)
        none = np.zeros(len(known.known))
        return cls(
            seen,
            np.append(none + 1, levels.repeats[order]).astype(np.int64),
            np.append(none, order + 1).astype(np.int64),
        )


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
    hearsay: Hearsay = Hearsay(),
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
    hearsay
        What other pictures of the chip say of its oxide.
    """
    witnesses = _Witnesses.of(levels, known, bare_colour)
    if len(witnesses.repeats):
        latent, log_evidence = _fit_setups(witnesses, prior, hearsay, rng=rng)
    else:
        latent, log_evidence = prior.draw_latent(rng, _PARTICLES), 0.0
    # In single precision, as other processes get them.
    latent = latent[::_THINNED].astype(np.float32).astype(float)
    return SetupFit(prior, latent, levels, known, bare_colour, log_evidence, hearsay=hearsay)


def weigh_material(fit: SetupFit, prior: Prior, *, drawn: int, rng: np.random.Generator) -> float:
    """Logarithm of the density of the levels of a batch under another prior, averaged over set-ups of stated oxide."""
    latent = prior.close(rng.standard_normal((drawn, LATENTS)))
    witnesses = _Witnesses.of(fit.levels, observe_known(()), fit.bare_colour)
    seen = _measure_setups(witnesses, prior, Hearsay(), latent)
    return float(special.logsumexp(_weigh_setups(witnesses, seen)) - np.log(drawn))


def name_regions(observation: Observation, fit: SetupFit) -> LayerPosterior:
    """Layer probabilities of the regions of one picture under a fitted set-up."""
    if len(fit.known.known) and not (observation.known > 0).any():
        observation = fit.known.join(observation)
        posterior = name_regions(observation, fit)
        return posterior.take(np.flatnonzero(observation.known == 0))
    crystal, foreign = weigh_contrasts(observation, fit.theory, fit.prior)
    bonus = _weigh_rungs(observation, fit)
    crystal += bonus[..., np.minimum(np.arange(len(LAYER_GRID)), FEW)]
    return _summarise(crystal, foreign.astype(np.float32)[:, None] + bonus[..., FEW + 1], fit, observation)


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
    witnesses = _Witnesses.of(find_levels(()), known, known.bare_colour)
    setups = prior.setups(_fit_setups(witnesses, prior, Hearsay(), rng=rng)[0][:count])
    ladders, _, _ = pass_through(setups.contrasts(known.bare_colour).astype(np.float32), known)
    return setups, ladders.astype(float)


def _fit_setups(
    witnesses: _Witnesses, prior: Prior, hearsay: Hearsay, *, rng: np.random.Generator
) -> tuple[Float, float]:
    """Set-ups of the posterior, and the logarithm of the witnesses' density averaged over the prior."""

    def measure(latent: Float) -> Float32:
        return _measure_setups(witnesses, prior, hearsay, latent)

    def weigh(seen: Float32, temperature: float) -> Float:
        return _weigh_setups(witnesses, seen, temperature)

    latent = rng.standard_normal((_DRAWN, LATENTS))
    return temper(latent, measure, weigh, count=_PARTICLES, rng=rng)


def _measure_setups(witnesses: _Witnesses, prior: Prior, hearsay: Hearsay, latent: Float) -> Float32:
    """Log density of every witness on every rung under each set-up, and the log weight of its oxide (the same on every
    rung); shape (set-ups, witnesses + 1, rungs)."""
    setups, seen = prior.setups(latent), witnesses.seen
    theory = setups.contrasts(seen.bare_colour).astype(np.float32)
    density = gather_rungs(*weigh_contrasts(seen, theory, prior))
    oxide = hearsay.weigh(setups, stated=prior.stated_nm is not None)
    oxide = np.broadcast_to(oxide[:, None].astype(np.float32), density.shape[1:])
    return np.moveaxis(np.concatenate([density, oxide[None]]), 0, 1)


def _weigh_setups(witnesses: _Witnesses, seen: Float32, temperature: float = 1.0) -> Float:
    """Log likelihood of all witnesses under each set-up, whatever their layer numbers, and the log weight of its oxide.

    Densities are tempered, the shares of the rungs are not: what fits a few thin layers sharply is found before it
    drowns among what fits thick crystals loosely.
    """
    density = np.moveaxis(seen[:, :-1], 1, 0)
    weight = witnesses.seen.witness
    total, _ = fill_rungs(density, weight, witnesses.repeats, temperature=temperature)
    heat = min(1.0, _WITNESSES / weight.sum())
    return np.asarray(heat * total + temperature * seen[:, -1, 0])


def _weigh_rungs(observation: Observation, fit: SetupFit) -> Float32:
    """What the other crystals of the batch add to the log prior of each region; shape (regions, set-ups, rungs).

    Regions of one level stand or fall together.
    """
    witnesses = _Witnesses.of(fit.levels, fit.known, fit.bare_colour)
    density = gather_rungs(*weigh_contrasts(witnesses.seen, fit.theory, fit.prior))
    _, filled = fill_rungs(density, witnesses.seen.witness, witnesses.repeats)
    held = filled.sum(0)
    bonus = np.empty((len(fit.levels) + 1, *held.shape), np.float32)
    bonus[0] = log_shares(held, 1)
    for number, repeats, own in zip(witnesses.number, witnesses.repeats, filled, strict=True):
        if number:
            bonus[number] = log_shares(held - own, repeats)
    return np.asarray(bonus[fit.levels.number(observation.contrast, observation.uneven)])


def _log_sum(log: Float32) -> Float32:
    """Logarithm of the sum of exponentials over the last axis."""
    highest = log.max(-1)
    return np.asarray(highest + np.log(np.exp(log - highest[..., None]).sum(-1)))


def _summarise(crystal: Float32, foreign: Float32, fit: SetupFit, observation: Observation) -> LayerPosterior:
    """Average over the set-ups."""
    each = np.exp(crystal - _log_sum(crystal)[..., None]).mean(1)
    p = (
        np.concatenate([each[:, :MOST_LAYERS], each[:, MOST_LAYERS:].sum(1, keepdims=True)], axis=1)
        ** _SHARPER
    )
    p /= p.sum(1, keepdims=True)
    share = np.exp(foreign - np.logaddexp(_log_sum(crystal), foreign))
    cumulative = np.cumsum(each, axis=1)
    step, steps = _number_steps(observation, fit)
    return LayerPosterior(
        p,
        share.mean(1),
        LAYER_GRID[np.argmax(cumulative >= 0.025, axis=1)],
        LAYER_GRID[np.argmax(cumulative >= 0.975, axis=1)],
        *fit.oxide(),
        float(fit.setups.camera.gamma.mean()),
        measure_thickness(observation, fit.ruler),
        step,
        steps,
        fit.notes,
    )


def _number_steps(observation: Observation, fit: SetupFit) -> tuple[Ints, int]:
    """Step of each region among the levels that are not bright as thick crystals are, and the number of steps."""
    thin = np.abs(fit.levels.contrast).max(1, initial=0.0) < _BRIGHT
    of_level = np.concatenate([[0], np.where(thin, np.cumsum(thin), 0)])
    return of_level[fit.levels.number(observation.contrast, observation.uneven)], int(thin.sum())
