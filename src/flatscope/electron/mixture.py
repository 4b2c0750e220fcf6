"""How bright usual sites, vacancies and other elements are, and how frequent: a mixture fitted to one image.

The brightness of every site is compared with its usual neighbours (`flatscope.electron.sites.Readings`). Empty sites
and halves of a pair have known brightness; a foreign element is looked for where several sites are far off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from flatscope.electron.physics.crystals import Crystal

Float = NDArray[np.float64]


@dataclass(frozen=True)
class _Part:
    """A part of a mixture before it is fitted: mean brightness ratio, and its spread between microscopes."""

    name: str
    middle: float
    spread: float


# An empty site is darker than nothing, as usual columns around it raise the level of the hollows it is compared with.
_VACANCY = _Part("vacancy", -0.06, 0.08)
_HALF = _Part("half", 0.39, 0.08)  # one atom of a pair
ELSE = "else"  # name of the part that fits anything

# Degrees of freedom of the Student distribution of ordinary sites; scan noise has heavier tails than counting noise.
_TAIL = 8.0
_OTHER_SPREAD = 0.05  # spread of the brightness of one foreign element, beside noise
_LEAST_REACH = 4.0  # smallest range of ratios of the part that takes what fits no other
_FIRST_SHARE = 0.005  # share of each part of defects before the fit
_ROUNDS = 100  # of expectation maximisation
_FAR_OFF = 4.0  # sigmas off the usual from which a site may be an element of its own
_LEAST_ALIKE = 3  # sites that make an element of its own
_LEAST_APART = 3.0  # sigmas between an element of its own and the usual sites
_MOST_ELSE = 0.02  # largest share of sites that fit nothing


@dataclass(frozen=True)
class Mixture:
    """What the brightness of a sublattice's sites is made of.

    Parameters
    ----------
    names
        "" for usual sites, "vacancy", "half" of a pair, "dark" and "bright" foreign elements, "else".
    middles, spreads
        Mean ratio of each part but the first and the last, and its spread beside noise.
    shares
        Share of the sites in each part.
    reach
        Range of ratios that anything else may have.
    quiet
        Scatter where nothing stands over that of usual sites. In between and beyond, variances grow with brightness.
    """

    names: tuple[str, ...]
    middles: Float
    spreads: Float
    shares: Float
    reach: float
    quiet: float = 1.0

    def densities(self, ratio: Float, sigma: Float) -> Float:
        """Density of each part at sites of ratio and scatter (n,), shape (parts, n)."""
        counted = self.quiet**2 + (1.0 - self.quiet**2) * np.maximum(self.middles, 0.0)
        width = np.sqrt(counted[:, None] * sigma**2 + self.spreads[:, None] ** 2)
        parts = stats.norm.pdf((ratio - self.middles[:, None]) / width) / width
        usual = stats.t.pdf((ratio - 1.0) / sigma, _TAIL) / sigma
        return np.vstack([usual, parts, np.full(len(ratio), 1.0 / self.reach)])

    def weigh(self, ratio: Float, sigma: Float) -> tuple[Float, NDArray[np.object_]]:
        """Probability that each site is not as it should be, and the name of its likeliest part."""
        weight = self.shares[:, None] * self.densities(ratio, sigma)
        weight /= weight.sum(0)
        return 1.0 - weight[0], np.array(self.names, object)[weight.argmax(0)]

    def compare(self, ratio: Float, sigma: Float) -> Float:
        """How much likelier each site's brightness is for a defect than for a usual site, shape (n,)."""
        density = self.densities(ratio, sigma)
        shares = self.shares[1:]
        return np.asarray((shares @ density[1:]) / shares.sum() / np.maximum(density[0], 1e-300))


def steady(sigma: Float) -> Float:
    """Scatter of sites, half way to that of the whole image: thirty neighbours tell it only roughly."""
    return np.asarray(np.sqrt(0.5 * (sigma**2 + float(np.median(sigma)) ** 2)))


def fit_mixture(
    ratio: Float, sigma: Float, crystal: Crystal, sublattice: int, *, quiet: float = 1.0
) -> Mixture:
    """Learn from an image how bright usual sites, vacancies and other elements are, and how frequent.

    Parameters
    ----------
    ratio, sigma
        Brightness over the usual one, see `flatscope.electron.sites.Readings`, and its scatter, see `steady`; shape
        (n,).
    crystal, sublattice
        Where the sites belong.
    quiet
        See `Mixture`.

    Notes
    -----
    Expectation maximisation. At most one foreign element is darker than usual and one brighter; only sublattices of
    single atoms have them.
    """
    mixture = _start(ratio, sigma, crystal, sublattice, quiet)
    free = np.isin(mixture.names[1:-1], ["dark", "bright"])
    apart = _LEAST_APART * float(np.median(sigma))
    for _ in range(_ROUNDS):
        weight = mixture.shares[:, None] * mixture.densities(ratio, sigma)
        weight /= weight.sum(0)
        shares = (weight.sum(1) + 0.5) / (len(ratio) + 0.5 * len(mixture.names))
        # What fits nothing is rare, or it would swallow the tails of what does.
        shares[0] += max(shares[-1] - _MOST_ELSE, 0.0)
        shares[-1] = min(shares[-1], _MOST_ELSE)
        means = (weight[1:-1] * ratio).sum(1) / np.maximum(weight[1:-1].sum(1), 1e-9)
        means = np.where(
            mixture.middles < 1.0, np.minimum(means, 1.0 - apart), np.maximum(means, 1.0 + apart)
        )
        mixture = replace(mixture, shares=shares, middles=np.where(free, means, mixture.middles))
    # A part that would rather be nearer to the usual sites is their tail, no element of its own.
    own = ~free | (np.abs(mixture.middles - 1.0) > 1.01 * apart)
    kept = np.concatenate([[True], own, [True]])
    return replace(
        mixture,
        names=tuple(np.array(mixture.names)[kept]),
        middles=mixture.middles[own],
        spreads=mixture.spreads[own],
        shares=mixture.shares[kept] / mixture.shares[kept].sum(),
    )


def _start(ratio: Float, sigma: Float, crystal: Crystal, sublattice: int, quiet: float) -> Mixture:
    """The mixture before it is fitted: all parts that the sites may need."""
    parts = [_VACANCY]
    if (crystal.first, crystal.second)[sublattice][1] == 2:
        parts.append(_HALF)
    else:
        for name, side in (("dark", ratio < 1.0), ("bright", ratio > 1.0)):
            far = ratio[side & (np.abs(ratio - 1.0) > _FAR_OFF * sigma)]
            if len(far) >= _LEAST_ALIKE:
                parts.append(_Part(name, float(np.median(far)), _OTHER_SPREAD))
    names = ("", *(part.name for part in parts), ELSE)
    shares = np.full(len(names), _FIRST_SHARE)
    shares[0] = 1.0 - shares[1:].sum()
    reach = max(float(np.ptp(ratio)), _LEAST_REACH)
    middles, spreads = (np.array([getattr(part, what) for part in parts]) for what in ("middle", "spread"))
    return Mixture(names, middles, spreads, shares, reach, quiet)
