"""Batches: pictures that one microscope took of one chip share one set-up, and what one cannot tell, the others do.

Camera and tone curve belong to a microscope, the oxide to a chip, which is mostly a folder; both show in the colour of
the bare substrate. Pictures of one folder, one colour and one size are therefore fitted together, by the levels of
contrast that come back in them. The fit depends on neither the order of the pictures nor on who computes it.
"""

from __future__ import annotations

import base64
import hashlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.layers import Hearsay, SetupFit, fit_setups, weigh_material
from flatscope.optical.levels import Levels, find_levels
from flatscope.optical.materials import MATERIALS
from flatscope.optical.observations import Observation, observe_regions
from flatscope.optical.regions import Regions
from flatscope.optical.setups import LATENTS, Prior
from flatscope.units import um_from_nm

Float = NDArray[np.float64]

Grouping = Literal["auto", "folder", "none"]
"""Pictures that share a set-up: those of one folder that look alike, all of one folder, or each picture alone."""
_SAME_COLOUR = 0.06
"""Substrates of one chip under one camera differ by at most this in the logarithm of a ratio of two channels …"""
_SAME_BRIGHTNESS = 0.35
"""… and by this in the logarithm of their brightness: exposure is often automatic."""
_SAME_NOISE = 0.4
"""Their noise differs by at most this in its logarithm: stretching a picture's contrast stretches its noise."""
_REMEMBERED = 200
"""Fits that are kept: a batch that has not changed is not fitted again."""
_SAID_OPEN = 0.3
"""Batches that find the stated oxide wrong with this probability tell others of their folder what it is."""
_SAME_CHIP = 4.0
"""Oxides that scatter more than this beyond their errors (squared) belong to several chips."""
_SURELY_OPEN = 0.7
"""The stated oxide is questioned if it is wrong with at least this probability …"""
_OFF_SIGMA = 2.5
"""… and lies this many standard errors away."""
_FAR_BETTER = 4.6
"""Another material is named if it makes the colours this much likelier (natural logarithm): a hundred times."""
_UNLIKELY = 3.0
"""Other materials are tried where the levels are less likely than this, each (natural logarithm of the density)."""
_FEWEST_LEVELS = 2.5
"""Fewer good levels are too few to doubt the material."""
_ENOUGH_LEVELS = 6
"""More levels make no set-up surer."""
_TRIED = 1000
"""Set-ups drawn for each other material."""


@dataclass(frozen=True)
class Sighting:
    """What a batch must know of one picture.

    Parameters
    ----------
    observation
        Its regions.
    kind
        What pictures of a batch have in common: size in pixels, pixel size, whether they are gray.
    folder
        Where it lies.
    noise
        1-sigma noise of the contrast of a pixel.
    """

    observation: Observation
    kind: tuple[Any, ...]
    folder: str = ""
    noise: float = 0.01

    @classmethod
    def of(cls, regions: Regions, folder: str = "") -> Sighting:
        """What the regions of a picture show of its set-up."""
        size = regions.calibration
        pixel = None if size is None else round(um_from_nm(size.pixel_size_nm[0]), 4)
        noise = float(np.median(regions.noise))
        return cls(observe_regions(regions), (*regions.shape, pixel, regions.is_gray), folder, noise)


def fit_batches(
    sightings: Sequence[Sighting], known: Observation, prior: Prior, *, group: Grouping = "auto"
) -> list[SetupFit]:
    """Fit one set-up to each batch of pictures.

    Parameters
    ----------
    sightings
        One a picture.
    known
        Regions of known layer number.
    prior
        Material and nominal set-up.
    group
        Which pictures share a set-up.

    Returns
    -------
    The fit that belongs to each picture; pictures of one batch have the same.
    """
    fits: list[SetupFit | None] = [None] * len(sightings)
    chips: dict[str, list[list[int]]] = {}
    for batch in group_pictures(sightings, group):
        chips.setdefault(sightings[batch[0]].folder if group != "none" else str(batch), []).append(batch)
    for batches in chips.values():
        for batch, fit in zip(batches, _fit_chip(sightings, batches, known, prior), strict=True):
            for index in batch:
                fits[index] = fit
    return [fit for fit in fits if fit is not None]


@dataclass(frozen=True, eq=False)
class _Task:
    """What a batch is fitted to."""

    levels: Levels
    known: Observation
    bare_colour: Float
    prior: Prior

    def name(self, hearsay: Hearsay) -> str:
        """What stands for the fit to it."""
        digest = hashlib.sha256(repr((self.prior, hearsay, self.bare_colour.tolist())).encode())
        for part in (self.levels, self.known):
            for item in fields(part):
                digest.update(np.ascontiguousarray(getattr(part, item.name), float).tobytes())
        return digest.hexdigest()


def _fit_chip(
    sightings: Sequence[Sighting], batches: list[list[int]], known: Observation, prior: Prior
) -> list[SetupFit]:
    """Fit each batch of one folder, and once more where the others know better what the oxide is."""
    tasks = []
    for batch in batches:
        seen = [sightings[index].observation for index in batch]
        own = replace(prior, gray=bool(sightings[batch[0]].kind[-1]))
        bare_colour = np.median(sorted(o.bare_colour.tolist() for o in seen), axis=0)
        tasks.append(_Task(find_levels(seen), known, bare_colour, own))
    fits = [_remember(task, Hearsay()) for task in tasks]
    told = [_listen([fit for fit in fits if fit is not own]) for own in fits]
    return [_question(task, hearsay) for task, hearsay in zip(tasks, told, strict=True)]


def _listen(others: Sequence[SetupFit]) -> Hearsay:
    """What the other batches of a folder say of the oxide, if they know better than what is stated."""
    odds = Hearsay().log_odds
    log_odds = odds + sum(fit.log_odds_open() - odds for fit in others)
    oxides = np.array([fit.open_oxide() for fit in others if fit.p_open > _SAID_OPEN]).reshape(-1, 2)
    if log_odds < 0.0 or not len(oxides):
        return Hearsay()
    weight = oxides[:, 1] ** -2.0
    oxide_nm = float(weight @ oxides[:, 0] / weight.sum())
    if weight @ (oxides[:, 0] - oxide_nm) ** 2 > _SAME_CHIP * len(oxides):
        return Hearsay()
    return Hearsay(log_odds, oxide_nm, float(weight.sum() ** -0.5))


def group_pictures(sightings: Sequence[Sighting], group: Grouping = "auto") -> list[list[int]]:
    """Divide pictures into batches that share a set-up, each a list of places.

    By "auto", pictures of a batch have one folder, one size, one noise, and substrates of one colour.
    """
    if group == "none":
        return [[index] for index in range(len(sightings))]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for index, sighting in enumerate(sightings):
        kind = sighting.kind if group == "auto" else sighting.kind[-1:]
        alike.setdefault((sighting.folder, *kind), []).append(index)
    if group == "folder":
        return list(alike.values())
    batches = []
    for places in alike.values():
        colours = np.array([sightings[place].observation.bare_colour for place in places])
        noise = np.array([sightings[place].noise for place in places])
        numbers = _cluster(np.log(np.maximum(colours, 0.01)), np.log(np.maximum(noise, 1e-4)))
        batches += [[places[at] for at in np.flatnonzero(numbers == n)] for n in np.unique(numbers)]
    return batches


def _cluster(logs: Float, noise: Float) -> NDArray[np.int64]:
    """Number of the cluster of each colour and noise, in logarithms; no two of a cluster are too different."""
    if len(logs) < 2:
        return np.zeros(len(logs), np.int64)
    brightness = logs.mean(1, keepdims=True)
    scaled = np.hstack(
        [(logs - brightness) / _SAME_COLOUR, brightness / _SAME_BRIGHTNESS, noise[:, None] / _SAME_NOISE]
    )
    order = np.lexsort(scaled.T)
    numbers = np.empty(len(logs), np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage  # takes a tenth of a second

    numbers[order] = fcluster(linkage(scaled[order], "complete", metric="chebyshev"), 1.0, "distance")
    return numbers


_fits: OrderedDict[str, SetupFit] = OrderedDict()


def _remember(task: _Task, hearsay: Hearsay) -> SetupFit:
    """The fit to a batch, from memory if it was made before."""
    key = task.name(hearsay)
    if key not in _fits:
        fit = fit_setups(
            task.levels,
            task.known,
            task.prior,
            bare_colour=task.bare_colour,
            # The same pictures and settings give the same answer.
            rng=np.random.default_rng(0),
            hearsay=hearsay,
        )
        _keep(key, fit)
    return _fits[key]


def _question(task: _Task, hearsay: Hearsay) -> SetupFit:
    """The same with what its colours say against the stated set-up."""
    key = task.name(hearsay) + "?"
    if key not in _fits:
        fit = _remember(task, hearsay)
        _keep(key, replace(fit, notes=question_setup(fit)))
    return _fits[key]


def recall(fit: SetupFit) -> None:
    """Take a fit that an earlier start made, so that the same levels are not fitted again."""
    key = _Task(fit.levels, fit.known, fit.bare_colour, fit.prior).name(fit.hearsay)
    _keep(key, replace(fit, notes=()))
    _keep(key + "?", fit)


def _keep(key: str, fit: SetupFit) -> None:
    _fits[key] = fit
    if len(_fits) > _REMEMBERED:
        _fits.popitem(last=False)


# --- the stated set-up is questioned --------------------------------------------------------------------------------


def question_setup(fit: SetupFit) -> tuple[str, ...]:
    """What the colours of a batch say against the stated oxide and material, one line each."""
    notes = []
    stated = fit.prior.stated_nm
    oxide, sigma = fit.oxide()
    off = abs(oxide - (stated or oxide)) / np.hypot(sigma, fit.prior.oxide_sigma_nm)
    if stated is not None and fit.p_open > _SURELY_OPEN and off > _OFF_SIGMA:
        notes.append(
            f"you said {stated:.0f} nm of oxide; these colours want {oxide:.0f} ± {sigma:.0f} nm: "
            "check it, or leave it out"
        )
    better = _find_better_material(fit)
    if better:
        notes.append(f"{better} would explain these colours far better than {fit.prior.crystal_name}")
    return tuple(notes)


def _find_better_material(fit: SetupFit) -> str:
    """Name of a built-in material that makes the levels far likelier, with the oxide as stated; mostly none."""
    name, prior = fit.prior.crystal_name, fit.prior
    levels = float(fit.levels.weight.sum())
    if prior.stated_nm is None or levels < _FEWEST_LEVELS or len(fit.known.known) or name not in MATERIALS:
        return ""
    if fit.log_evidence > _UNLIKELY * min(levels, _ENOUGH_LEVELS) and fit.p_open < _SURELY_OPEN:
        return ""
    evidence = {
        other: weigh_material(fit, replace(prior, material=other), drawn=_TRIED, rng=np.random.default_rng(0))
        for other in MATERIALS
    }
    best = max(evidence, key=lambda other: evidence[other])
    return best if evidence[best] > max(evidence[name], fit.log_evidence) + _FAR_BETTER else ""


# --- fits as plain values -------------------------------------------------------------------------------------------


def to_plain(fit: SetupFit) -> dict[str, Any]:
    """A fit as plain values, for another process."""
    levels = {item.name: getattr(fit.levels, item.name).tolist() for item in fields(Levels)}
    return {
        "latent": base64.b64encode(fit.latent.astype("<f4").tobytes()).decode(),
        "levels": levels,
        "bare_colour": fit.bare_colour.tolist(),
        "is_gray": fit.prior.gray,
        "notes": list(fit.notes),
        "log_evidence": fit.log_evidence,
        "hearsay": list(astuple(fit.hearsay)),
    }


def from_plain(plain: Mapping[str, Any], known: Observation, prior: Prior) -> SetupFit:
    """The fit that `to_plain` wrote, under the same known regions and prior."""
    latent = np.frombuffer(base64.b64decode(plain["latent"]), "<f4").reshape(-1, LATENTS).astype(float)
    levels = Levels(**{name: np.array(values, float) for name, values in plain["levels"].items()})
    return SetupFit(
        replace(prior, gray=plain["is_gray"]),
        latent,
        replace(levels, contrast=levels.contrast.reshape(-1, 3), sigma=levels.sigma.reshape(-1, 3)),
        known,
        np.array(plain["bare_colour"]),
        plain["log_evidence"],
        tuple(plain["notes"]),
        Hearsay(*plain["hearsay"]),
    )
