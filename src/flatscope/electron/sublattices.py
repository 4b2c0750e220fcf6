"""Which sublattice of a honeycomb is which: a probability, by how bright its columns are and where defects stand.

At high angles a column is about as bright as the sum over its atoms of Z to the power 1.7. At medium angles light atoms
gain: below about 65 mrad a pair of selenium atoms outshines tungsten. Where the detector's inner angle is not known,
all usual ones are weighed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special, stats

from flatscope.electron.physics.crystals import NUMBERS, Crystal
from flatscope.electron.sites import Readings, Sites

Float = NDArray[np.float64]

SURE_P = 0.8
"""Probability from which the sublattices are taken for known."""
_INNER_MRAD = (35.0, 45.0, 55.0, 65.0, 75.0, 90.0, 110.0)
_FIRST_OVER_SECOND = {
    "MoS2": (1.32, 1.55, 1.78, 1.98, 2.13, 2.24, 2.31),
    "WS2": (2.30, 2.83, 3.36, 3.82, 4.16, 4.44, 4.65),
    "MoSe2": (0.46, 0.48, 0.51, 0.54, 0.56, 0.57, 0.55),
    "WSe2": (0.80, 0.88, 0.95, 1.03, 1.08, 1.11, 1.10),
    "hBN": (1.86, 2.01, 2.05, 2.02, 1.98, 1.93, 1.90),
}
"""Height of a column of the first sublattice over one of the second, at these inner angles: `draw_adf`, mean of 60 and
80 kV, 30 mrad convergence, source 0.05 nm."""
_TOWARDS_LIMIT = {0.0: 0.5, 0.5: 0.3, 1.0: 0.2}
"""How far microscopes of higher voltage go towards the rule of high angles, and how likely each is."""
_SPREAD = 0.2  # of the logarithm (1 sigma): focus, tails of columns and what the fast model lacks
_FAR_Z = 4.0  # sigmas off the usual from which a site tells where defects stand
_LEAST_FAR = 5  # such sites that tell
_ONE_SIDED = 3.0  # ratio of their numbers on the two sublattices from which they tell
_STATED_ODDS = 20.0  # that a dopant which is stated to be there explains the many sites of its brightness
_DOPANT_PRIOR = 0.3  # share of materials whose many dark sites are dopants that nobody stated
_CHALCOGEN_DARK = ((0.6, 0.39, 0.08), (0.4, -0.06, 0.08))
"""Shares, means and spreads of the brightness of halves of a pair and of empty sites, see
`flatscope.electron.mixture`."""


@dataclass(frozen=True)
class Naming:
    """Which sublattice the brighter one is (0 or 1), and the probability of that."""

    first: int
    p: float

    @property
    def sure(self) -> bool:
        """Whether the sublattices are taken for known."""
        return self.p >= SURE_P

    def swap(self) -> Naming:
        """The other way round."""
        return Naming(1 - self.first, 1.0 - self.p)


def weigh_brightness(
    ratio: float, error: float, crystal: Crystal, *, inner_mrad: float | None = None
) -> Naming:
    """Weigh which sublattice is the brighter one.

    Parameters
    ----------
    ratio
        Height of the dimmer site over that of the brighter one.
    error
        1-sigma error of `ratio`.
    crystal
        The material.
    inner_mrad
        Inner angle of the detector; None where it is not known.
    """
    if crystal.first == crystal.second:
        return Naming(0, 1.0)
    seen = -np.log(np.clip(ratio, 1e-3, 1.0))
    sigma = float(np.hypot(_SPREAD, error / max(ratio, 1e-3)))
    by_angle = np.log(_FIRST_OVER_SECOND[crystal.name])
    if inner_mrad is not None:
        by_angle = np.interp([inner_mrad], _INNER_MRAD, by_angle)
    limit = np.log(crystal.strengths[0] / crystal.strengths[1])
    expected = np.array([(1.0 - part) * by_angle + part * limit for part in _TOWARDS_LIMIT])
    weight = np.array(list(_TOWARDS_LIMIT.values()))[:, None]
    logs = [
        special.logsumexp(stats.norm.logpdf(sign * seen, expected, sigma), b=weight) for sign in (1.0, -1.0)
    ]
    p = float(special.expit(logs[0] - logs[1]))
    return Naming(0, p) if p >= 0.5 else Naming(1, 1.0 - p)


def weigh_defects(
    naming: Naming, sites: Sites, readings: Readings, crystal: Crystal, dopants: Sequence[str]
) -> Naming:
    """Weigh it again by the sites that are far off the usual: stated dopants stand on the first sublattice, and so
    does what is neither half a pair nor an empty site.

    Parameters
    ----------
    naming
        By brightness; sublattice 0 of `sites` is the first one by it.
    sites, readings
        See `flatscope.electron.sites`.
    dopants
        Elements that are known to be there.
    """
    if not crystal.is_dichalcogenide:
        return naming
    host = NUMBERS[crystal.first[0]]
    log_odds = 0.0
    for side in (-1.0, 1.0):
        far = side * readings.z > _FAR_Z
        counts = np.bincount(sites.sublattice[far], minlength=2)
        many = int(counts.argmax())
        if counts[many] < _LEAST_FAR or counts[many] < _ONE_SIDED * counts[1 - many]:
            continue
        stated = any(side * (NUMBERS[one] - host) > 0.0 for one in dopants)
        if stated:
            gain = np.log(_STATED_ODDS)
        elif side < 0.0:
            ratio = float(np.median(readings.ratio[far & (sites.sublattice == many)]))
            second = sum(share * stats.norm.pdf(ratio, at, wide) for share, at, wide in _CHALCOGEN_DARK)
            gain = np.log(_DOPANT_PRIOR / ((1.0 - _DOPANT_PRIOR) * max(second, 1e-3) + 1e-9))
            # Halves of a pair and light dopants are as bright at medium angles: only what is neither tells.
            gain = float(np.clip(gain, 0.0, np.log(_STATED_ODDS)))
        else:
            continue
        log_odds += gain if many == 0 else -gain
    p = float(special.expit(special.logit(np.clip(naming.p, 1e-6, 1.0 - 1e-6)) + log_odds))
    return Naming(naming.first, p)
