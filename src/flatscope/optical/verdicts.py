"""The verdict on each region: how many layers it has, or why it does not count."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.layers import LayerPosterior
from flatscope.optical.observations import MOST_LAYERS
from flatscope.optical.regions import Regions

Float = NDArray[np.float64]

BELOW_MINIMUM = "below minimum area"
"""Reason of regions that are listed without an outline."""
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
_EVEN_SHARE = 0.8
"""Residue with a spread below this share of its contrast may be a crystal …"""
_SURELY_CRYSTAL = 0.15
"""… if its colour is foreign with less than this probability …"""
_THINNEST = 3
"""… and belongs to at most this many layers with the probability `_ENOUGH`."""
_DISPUTED = 0.9
"""Factor on the probability of a region that the network calls residue and its colour a crystal: so often it is one."""
_FAINT_CONTRAST = 0.02
"""Below this contrast a monolayer is lost in the noise of most pictures."""
_DARK_CONTRAST = -0.25
"""Foreign matter darker than this in every channel is dust or a hole."""
_NAMES = (*map(str, range(1, MOST_LAYERS + 1)), "thick")


@dataclass(frozen=True)
class Verdict:
    """The verdict on one region.

    Parameters
    ----------
    layers
        "1" to "6", "thick", several joined by "|", or "" for a rejected region.
    p
        Probability that one of them is right; NaN for a rejected region.
    status
        "accepted", "uncertain" or "rejected".
    reason
        Why, in words.
    """

    layers: str
    p: float
    status: str
    reason: str


def reach_verdicts(regions: Regions, posterior: LayerPosterior, material: str) -> list[Verdict]:
    """State how many layers every region has, or why it does not count.

    Parameters
    ----------
    regions
        What was measured.
    posterior
        Layer probabilities of all regions; those of regions below the smallest area may be NaN.
    material
        Name of the crystal, for the reasons.
    """
    return [_reach_verdict(regions, posterior, index, material) for index in range(len(regions))]


def _reach_verdict(regions: Regions, posterior: LayerPosterior, index: int, material: str) -> Verdict:
    if not regions.large_enough[index]:
        return _reject(BELOW_MINIMUM)
    foreign = bool(regions.foreign[index])
    if foreign and not _could_be_thin_crystal(regions, posterior, index):
        return _reject(_name_foreign(regions, index))
    if regions.beside_metal[index]:
        return _reject("touches a gold mark")
    if posterior.p_foreign[index] > 0.5:
        return _reject(f"colour fits no thickness of {material}")
    contrast, uneven = np.abs(regions.measured.contrast[index]), regions.uneven[index]
    strongest = int(contrast.argmax())
    if uneven[strongest] > _UNEVEN_SHARE * contrast[strongest] + _UNEVEN:
        return _reject("colour not uniform: out of focus, folded or crumpled")
    verdict = _name_layers(posterior.p[index], faint=bool(contrast.max() < _FAINT_CONTRAST))
    return _dispute(verdict) if foreign else verdict


def _reject(reason: str) -> Verdict:
    return Verdict("", np.nan, "rejected", reason)


def _name_layers(p: Float, *, faint: bool) -> Verdict:
    """The likeliest layer number, or several if none stands out."""
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


def _dispute(verdict: Verdict) -> Verdict:
    """The verdict on a region that the network takes for residue and its colour for a crystal."""
    reason = f"may be residue; {verdict.reason}".strip("; ")
    return replace(verdict, p=_DISPUTED * verdict.p, status="uncertain", reason=reason)


def _could_be_thin_crystal(regions: Regions, posterior: LayerPosterior, index: int) -> bool:
    """Whether foreign matter is large enough to judge, as even as a thin crystal, and of its colour.

    The network knows no material and no oxide; a faint monolayer and a film of glue look alike to it.
    """
    if regions.measured.area_px[index] < ROOMY * regions.least_px:
        return False
    contrast, spread = np.abs(regions.measured.contrast[index]), regions.measured.spread[index]
    strongest = int(contrast.argmax())
    even = spread[strongest] < _EVEN_SHARE * contrast[strongest]
    thin = posterior.p[index, :_THINNEST].sum() > _ENOUGH
    return bool(even and posterior.p_foreign[index] < _SURELY_CRYSTAL and thin)


def _name_foreign(regions: Regions, index: int) -> str:
    """What a region that is no crystal may be."""
    if regions.metal[index]:
        return "gold or another metal"
    if regions.measured.contrast[index].max() < _DARK_CONTRAST:
        return "dust or a hole"
    return "residue, scratch or caption"
