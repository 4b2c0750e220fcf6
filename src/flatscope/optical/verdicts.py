"""The verdict on each region: crystal or dirt, and how many layers it has.

What a person sees at a glance must be found. A region that looks like a crystal counts as one also where no thickness
of the stated material explains its colour; its layer number is then not known.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.layers import LayerPosterior
from flatscope.optical.observations import MOST_LAYERS
from flatscope.optical.regions import Regions

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
Ints = NDArray[np.int64]

ROOMY = 4
"""The colour of foreign matter is measured well enough to judge by from this multiple of the smallest area on."""
_SURE = 0.7
"""A layer number at least this probable stands alone."""
_ENOUGH = 0.9
"""Otherwise the likeliest numbers are named until together they are this probable …"""
_MOST_NAMED = 3
"""… two at least, and at most this many."""
_UNEVEN_SHARE = 0.15
"""A crystal of one thickness varies by at most this share of its contrast …"""
_UNEVEN = 0.05
"""… plus this much contrast (1 sigma)."""
_CRUMPLED_SHARE = 0.25
"""One that varies by more than this share of its contrast is left out; else its layer number stays open."""
_LIKELY = 0.5
"""Regions that are crystals with less than this probability are left out …"""
_VISIBLE = 0.2
"""… unless they are large, even and compact: a person sees these at a glance, and they are kept from here on …"""
_EVEN = 0.1
"""… if they vary by less than this share of their contrast …"""
_COMPACT = 0.3
"""… and 4π area / perimeter² is at least this."""
_DISPUTED = 0.8
"""Crystals with less than this probability are uncertain."""
_UNEXPLAINED = 0.5
"""A colour belongs to no thickness if that is likelier than this."""
_SURELY_CRYSTAL = 0.8
"""The network is sure of regions whose pixels it calls a crystal with this mean probability …"""
_DOUBT = 2.0
"""… and the optics are trusted as if they had explained that many of them before looking."""
_FAINT_CONTRAST = 0.02
"""Below this contrast a monolayer is lost in the noise of most pictures."""
_DARK_CONTRAST = -0.25
"""Foreign matter darker than this in every channel is dust or a hole."""
_THICK_SHARE = 0.5
"""A crystal is thick if the network says so with this share of its probability for any crystal."""
_SAME_STEP = 0.02
"""Contrasts belong to one step if they differ by less than this …"""
_SAME_STEP_SHARE = 0.12
"""… or by less than this share of the larger one."""
_NAMES = (*map(str, range(1, MOST_LAYERS + 1)), "thick")


@dataclass(frozen=True)
class _Weights:
    """Log-odds that a region is a crystal, fitted to drawn scenes by `tools/calibrate_evidence.py`."""

    base: float = -0.55
    crystal: float = 0.41  # of the network's log-odds
    roundness: float = 0.25  # of the logarithm of 4π area / perimeter²
    uneven: float = -0.46  # of the logarithm of the scatter within, as a share of the contrast
    explained: float = (
        0.53  # of the log-odds that a thickness explains the colour, as far as optics are trusted
    )


_WEIGHTS = _Weights()


@dataclass(frozen=True)
class Verdict:
    """The verdict on one region.

    Parameters
    ----------
    layers
        "1" to "6", "thick", several joined by "|", "thin" where no number is known, or "" for a rejected region.
    p
        Probability that one of them is right, given that it is a crystal; NaN where no number is stated.
    status
        "accepted", "uncertain" or "rejected".
    reason
        Why, in words.
    """

    layers: str
    p: float
    status: str
    reason: str


def reach_verdicts(
    regions: Regions, posterior: LayerPosterior, p_flake: Float, material: str
) -> list[Verdict]:
    """State how many layers every region that is large enough has, or why it does not count.

    Parameters
    ----------
    regions
        What was measured.
    posterior
        Layer probabilities of all regions; those of regions below the smallest area may be NaN.
    p_flake
        Probability that each region is a crystal, from `weigh_evidence`.
    material
        Name of the crystal, for the reasons.
    """
    steps = _Steps.of(regions, p_flake)
    return [
        _reach_verdict(regions, posterior, index, p_flake=p_flake, material=material, steps=steps)
        for index in np.flatnonzero(regions.large_enough).tolist()
    ]


def weigh_evidence(regions: Regions, posterior: LayerPosterior) -> Float:
    """Probability that each region is a crystal of the material, not residue or bare substrate; shape (regions,).

    What counts is how sure the network is, how even the region is, and its outline. An unexplained colour speaks
    against a crystal as far as the optics explain those of which the network is sure: where they explain none, material
    or camera are not what was stated, and their verdict says nothing.
    """
    odds = list_evidence(regions, posterior) @ np.array(astuple(_WEIGHTS))
    return np.asarray(np.where(regions.metal | regions.beside_metal, 0.01, 1.0 / (1.0 + np.exp(-odds))))


def list_evidence(regions: Regions, posterior: LayerPosterior) -> Float:
    """What `_Weights` are the weights of, in their order; shape (regions, 5)."""
    evidence = regions.evidence
    unexplained = np.nan_to_num(posterior.p_foreign, nan=0.5)
    sure = regions.large_enough & (evidence.crystal > _SURELY_CRYSTAL)
    trust = (_DOUBT + (1.0 - unexplained[sure]).sum()) / (_DOUBT + sure.sum())
    return np.stack(
        [
            np.ones(len(regions)),
            _logit(evidence.crystal),
            np.log(np.clip(evidence.roundness, 0.02, 1.0)),
            np.log(_scatter(regions) + 0.05),
            trust * _logit(1.0 - unexplained),
        ],
        axis=1,
    )


def _logit(p: Float) -> Float:
    """Log-odds, of which no network is sure beyond 50 to 1."""
    return np.asarray(np.log((p + 0.02) / (1.02 - p)))


def _scatter(regions: Regions) -> Float:
    """Scatter within each region beyond the noise, as a share of its strongest contrast."""
    contrast = np.abs(regions.measured.contrast)
    strongest = contrast.argmax(1)
    rows = np.arange(len(regions))
    return np.asarray(regions.uneven[rows, strongest] / (contrast[rows, strongest] + 0.03))


def _stand_out(regions: Regions) -> Bools:
    """Regions that are large, even and compact."""
    large = regions.measured.area_px >= ROOMY * regions.least_px
    return np.asarray(large & (_scatter(regions) < _EVEN) & (regions.evidence.roundness > _COMPACT))


def _reach_verdict(
    regions: Regions, posterior: LayerPosterior, index: int, *, p_flake: Float, material: str, steps: _Steps
) -> Verdict:
    if regions.beside_metal[index]:
        return _reject("touches a gold mark")
    if not steps.shown[index]:
        return _reject(_name_foreign(regions, posterior, index, material))
    contrast, uneven = np.abs(regions.measured.contrast[index]), regions.uneven[index]
    strongest = int(contrast.argmax())
    doubt = "may be residue" * bool(p_flake[index] < _DISPUTED)
    if uneven[strongest] > _UNEVEN_SHARE * contrast[strongest] + _UNEVEN:
        said = "colour not uniform: out of focus, folded or crumpled"
        if uneven[strongest] > _CRUMPLED_SHARE * contrast[strongest]:
            return _reject(said)
        return _leave_open(regions, index, said, doubt)
    if posterior.p_foreign[index] > _UNEXPLAINED:
        step = f"contrast step {steps.number[index]} of {steps.count} of this picture"
        return _leave_open(regions, index, step, doubt)
    verdict = name_layers(posterior.p[index], faint=bool(contrast.max() < _FAINT_CONTRAST))
    if not doubt:
        return verdict
    return Verdict(verdict.layers, verdict.p, "uncertain", f"{doubt}; {verdict.reason}".strip("; "))


def _reject(reason: str) -> Verdict:
    return Verdict("", np.nan, "rejected", reason)


def _leave_open(regions: Regions, index: int, why: str, doubt: str) -> Verdict:
    """The verdict on a crystal whose colour tells no layer number."""
    if regions.evidence.thick[index] > _THICK_SHARE * regions.evidence.crystal[index]:
        return Verdict(
            "thick", np.nan, "uncertain", f"thick crystal by its look, not by its colour; {doubt}".strip("; ")
        )
    return Verdict(
        "thin", np.nan, "uncertain", f"thin crystal, layer number not known: {why}; {doubt}".strip("; ")
    )


def name_layers(p: Float, *, faint: bool) -> Verdict:
    """Name the likeliest layer number, or several if none stands out.

    Parameters
    ----------
    p
        Probability of 1 to 6 layers and of more, shape (7,).
    faint
        The contrast is close to the noise.
    """
    order = np.argsort(-p)
    first = int(order[0])
    remark = "near the noise: faint contrast" if faint else ""
    if p[first] >= _SURE:
        return Verdict(_NAMES[first], float(p[first]), "accepted", remark)
    enough = int(np.clip(np.searchsorted(np.cumsum(p[order]), _ENOUGH) + 1, 2, _MOST_NAMED))
    shares = ", ".join(f"{p[place]:.0%} {_NAMES[place]}" for place in order[:enough])
    reason = "; ".join(part for part in (f"ambiguous: {shares}", remark) if part)
    named = "|".join(_NAMES[place] for place in sorted(order[:enough]))
    return Verdict(named, float(p[order[:enough]].sum()), "uncertain", reason)


@dataclass(frozen=True)
class _Steps:
    """Which regions count, and the levels of contrast among the thin ones, the faintest first.

    Parameters
    ----------
    shown
        Regions that are likely crystals, or that nobody would overlook.
    number
        Step of each region, from 1; 0 for thick crystals and dirt.
    count
        Number of steps.
    """

    shown: Bools
    number: Ints
    count: int

    @classmethod
    def of(cls, regions: Regions, p_flake: Float) -> _Steps:
        """Find the steps of a picture: where the sorted contrasts leave a gap, a new one begins."""
        number = np.zeros(len(regions), np.int64)
        shown = (p_flake >= _LIKELY) | ((p_flake >= _VISIBLE) & _stand_out(regions))
        thin = regions.large_enough & shown
        thin &= regions.evidence.thick <= _THICK_SHARE * regions.evidence.crystal
        strength = np.linalg.norm(regions.measured.contrast, axis=1)
        order = np.flatnonzero(thin)[np.argsort(strength[thin])]
        if not len(order):
            return cls(shown, number, 0)
        ordered = strength[order]
        gaps = np.diff(ordered) > np.maximum(_SAME_STEP, _SAME_STEP_SHARE * ordered[1:])
        number[order] = np.concatenate([[1], 1 + np.cumsum(gaps)])
        return cls(shown, number, int(number.max()))


def _name_foreign(regions: Regions, posterior: LayerPosterior, index: int, material: str) -> str:
    """What a region that is no crystal may be."""
    if regions.metal[index]:
        return "gold or another metal"
    if regions.measured.contrast[index].max() < _DARK_CONTRAST:
        return "dust or a hole"
    if not regions.foreign[index] and posterior.p_foreign[index] > _UNEXPLAINED:
        return f"colour fits no thickness of {material}"
    return "residue, scratch or caption"
