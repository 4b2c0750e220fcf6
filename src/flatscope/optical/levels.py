"""Levels: the colours that come back, region after region, in the pictures of one set-up.

A crystal of N layers has the same contrast wherever it lies, so the regions of a batch crowd around few levels. Levels
say more about the set-up than the regions themselves: blurred rims, folds and residue have colours in between, but they
scatter. They also count without any optics: the second level is the second step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.observations import Observation

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
Ints = NDArray[np.int64]

_WIDTH = 0.008
"""Regions of one thickness differ by this contrast (1 sigma): background, compression, a film of adsorbates …"""
_WIDTH_SHARE = 0.03
"""… and by this share of their contrast."""
_UNEVEN_SHARE = 0.5
"""The median of an uneven region is off by this share of its scatter, in all channels alike: blur and shading change
its brightness."""
_MEMBER = 2.5
"""Regions closer to a level than this many of these widths belong to it …"""
_APART = 2.0
"""… and two levels are at least this far apart."""
_MOST_LEVELS = 12
"""Largest number of levels; the strongest are kept."""
_LEAST_STRENGTH = 0.02
"""Levels weaker than this share of the strongest one are left out."""
_BLEND = 1.2
"""A level closer to the line between two stronger ones, in widths, is a blend of them …"""
_BLEND_STRENGTH = 0.25
"""… if it has less than this share of the strength of the weaker one."""
_MOST_WITNESSES = 600
"""Largest number of regions that levels are made of; the best witnesses are kept."""
_MOST_REPEATS = 5.0
"""Crystals of one colour say no more than this many independent ones."""
_FEW_MEMBERS = 3.0
"""The scatter of a level with fewer members is hardly known: this many with the usual scatter are added to them."""


@dataclass(frozen=True, eq=False)
class Levels:
    """The levels of a batch, the faintest first.

    Parameters
    ----------
    contrast, sigma
        Median contrast of each level and its 1-sigma error, shape (levels, 3).
    strength
        How much of the batch stands behind each level: the sum of the square roots of areas, shape (levels,).
    weight
        How good its regions are as witnesses, compared with those of the best level; 0 to 1, shape (levels,).
    repeats
        How many crystals say the same, 1 to 5, shape (levels,).
    noise
        Usual 1-sigma error of the contrast of one region, shape (3,).
    """

    contrast: Float
    sigma: Float
    strength: Float
    weight: Float
    repeats: Float
    noise: Float

    def __len__(self) -> int:
        return len(self.contrast)

    def number(self, contrast: Float, uneven: Float | None = None) -> Ints:
        """The level that each region belongs to, from 1; 0 for none. Shape (n, 3) to (n,)."""
        if not len(self) or not len(contrast):
            return np.zeros(len(contrast), np.int64)
        away = _distance(contrast, self.contrast, self.noise, 0.0 if uneven is None else uneven[:, None, :])
        nearest = away.argmin(1)
        return np.where(away[np.arange(len(contrast)), nearest] < _MEMBER, nearest + 1, 0)


def find_levels(observations: Sequence[Observation]) -> Levels:
    """Find the levels among the witnesses of some pictures of one set-up.

    A level is a crest of the density of contrasts. A weak one on the line between two stronger ones is their blend.

    Parameters
    ----------
    observations
        One a picture, in any order.
    """
    seen = _gather_witnesses(observations)
    if seen is None:
        nowhere, none = np.zeros((0, 3)), np.zeros(0)
        return Levels(nowhere, nowhere, none, none, none, np.zeros(3))
    contrast, quality = seen.contrast, seen.witness
    noise, weight = np.median(seen.sigma, axis=0), quality * np.sqrt(seen.area_px)
    uneven2 = seen.uneven**2
    away = _distance(contrast, contrast, noise, np.sqrt(0.5 * (uneven2[:, None] + uneven2)))
    density = np.exp(-0.5 * away**2) @ weight
    crests = _find_crests(density, away)
    crests = crests[~_are_blends(contrast[crests], density[crests], noise)]
    own = away[:, crests] == away[:, crests].min(1, keepdims=True)
    own &= away[:, crests] < _MEMBER
    levels = [_summarise(seen.take(np.flatnonzero(mine)), noise) for mine in own.T]
    middle, sigma, strength, good, repeats = (np.array(part) for part in zip(*levels, strict=True))
    rising = np.argsort(np.linalg.norm(middle, axis=1))
    return Levels(
        middle[rising], sigma[rising], strength[rising], good[rising] / good.max(), repeats[rising], noise
    )


def observe_levels(levels: Levels) -> Observation:
    """Levels as witnesses of the set-up."""
    count = len(levels)
    return Observation(
        levels.contrast,
        levels.sigma,
        uneven=np.zeros((count, 3)),
        saturated=np.zeros((count, 3), bool),
        area_px=levels.strength**2,
        known=np.zeros(count, np.int64),
        witness=levels.weight,
    )


def _gather_witnesses(observations: Sequence[Observation]) -> Observation | None:
    """The best witnesses of all pictures, if there are any."""
    used = [seen.take(np.flatnonzero(_is_used(seen))) for seen in observations]
    if not any(len(seen.contrast) for seen in used):
        return None
    joined = reduce(Observation.join, used)
    # The order of the pictures must not matter, not even to rounding.
    joined = joined.take(np.lexsort((joined.witness, joined.area_px, *joined.contrast.T)))
    best = np.argsort(-joined.witness * np.sqrt(joined.area_px), kind="stable")[:_MOST_WITNESSES]
    return joined.take(np.sort(best))


def _is_used(seen: Observation) -> Bools:
    used = (seen.witness > 0.0) & ~seen.saturated.any(1)
    even = used & (seen.uneven.max(1) < 0.3 * np.abs(seen.contrast).max(1))
    return np.asarray(even if even.any() else used)


def _distance(contrast: Float, other: Float, noise: Float, uneven: Float | float = 0.0) -> Float:
    """Distances in widths of a level, shape (n, m); `uneven` broadcasts to (n, m, 3).

    What makes a region uneven moves all channels together: its variance has rank one (Sherman and Morrison 1950).
    """
    width = np.sqrt(_WIDTH**2 + (_WIDTH_SHARE * other) ** 2 + noise**2)
    apart = (contrast[:, None, :] - other) / width
    shared = _UNEVEN_SHARE * np.asarray(uneven) / width
    along = (apart * shared).sum(-1) ** 2 / (1.0 + (shared**2).sum(-1))
    return np.asarray(np.sqrt(np.maximum((apart**2).sum(-1) - along, 0.0)))


def _find_crests(density: Float, away: Float) -> Ints:
    """Places denser than all others near them, the densest first."""
    chosen: list[int] = []
    for place in np.argsort(-density, kind="stable"):
        if density[place] < _LEAST_STRENGTH * density.max() or len(chosen) == _MOST_LEVELS:
            break
        near = away[place] < _APART
        if density[place] >= density[near].max() and (away[place, chosen] >= _APART).all():
            chosen.append(int(place))
    return np.array(chosen, np.int64)


def _are_blends(contrast: Float, density: Float, noise: Float) -> Bools:
    """Weak levels between two stronger ones, the densest first."""
    blends = np.zeros(len(contrast), bool)
    for index in range(2, len(contrast)):
        stronger = [
            other
            for other in range(index)
            if not blends[other] and density[index] < _BLEND_STRENGTH * density[other]
        ]
        for place, one in enumerate(stronger):
            for other in stronger[:place]:
                way = contrast[other] - contrast[one]
                share = float((contrast[index] - contrast[one]) @ way / max(float(way @ way), 1e-12))
                between = contrast[one] + share * way
                off = _distance(contrast[index : index + 1], between[None], noise)[0, 0]
                if 0.1 < share < 0.9 and off < _BLEND:
                    blends[index] = True
    return blends


def _summarise(members: Observation, noise: Float) -> tuple[Float, Float, float, float, float]:
    """Weighted median of the members of a level, its error, their strength, quality and number."""
    contrast, quality = members.contrast, members.witness
    weight = quality * np.sqrt(members.area_px)
    middle = np.array([_median(column, weight) for column in contrast.T])
    usual = np.hypot(_WIDTH, _WIDTH_SHARE * middle)
    count = quality.sum() ** 2 / (quality**2).sum()
    scatter2 = quality @ (contrast - middle) ** 2 / quality.sum()
    scatter2 = (count * scatter2 + _FEW_MEMBERS * usual**2) / (count + _FEW_MEMBERS)
    sigma = np.sqrt((scatter2 + noise**2) / count)
    further = float(quality.sum() - quality.max())
    repeats = 1.0 + further / (1.0 + further / (_MOST_REPEATS - 1.0))
    return middle, sigma, float(weight.sum()), float(weight @ quality / weight.sum()), round(repeats)


def _median(values: Float, weight: Float) -> float:
    order = np.argsort(values, kind="stable")
    passed = np.cumsum(weight[order])
    return float(values[order][np.searchsorted(passed, 0.5 * passed[-1])])
