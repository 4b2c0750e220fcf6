"""How thick a crystal is, in nm, by its interference colour: also where layers can no longer be counted.

The set-ups that explain the picture with the few layer numbers of `LAYER_GRID` are weighed once more, on a grid of
thickness so fine that no fringe falls between two of its points: thick crystals of different colour say most about lamp
and camera. Each region's thickness is then averaged over them. Colours repeat every half wavelength in the crystal, so
the answer may be two or three separate thicknesses.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from flatscope.optical.materials import Material, find_material
from flatscope.optical.observations import MOST_LAYERS, Observation
from flatscope.optical.setups import APERTURES, Setups
from flatscope.optical.substrates import Substrate
from flatscope.optical.thinfilm import stack_spectra

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]

_FEW = 10
"""Layer numbers up to this have a grid point each."""
_FINEST_NM = 1.2
"""Least step of the grid beyond them …"""
_FINEST_SHARE = 0.02
"""… and least relative step: a fringe of the shortest wavelength in MoS2 is 40 nm."""
_THICKEST_NM = 220.0
"""Thicker crystals are not told apart."""
_OXIDE_STEP_NM = 4.0
"""Spacing of the oxides at which spectra are computed; in between, linear interpolation is good to 0.5 %."""
_SIGMA = 0.05
"""Relative error of a computed contrast (1 sigma)."""
_FLOOR = 0.01
"""Absolute error of a contrast (1 sigma)."""
_FREEDOM = 4
"""Degrees of freedom of the Student distribution of contrasts."""
_WITNESSES = 6.0
"""Regions share the errors of the published indices: more than this many do not make the set-up surer."""
_SHARE_FEW = 0.65
"""Prior share of crystals of up to `_FEW` layers, as 1 / N; the rest lies evenly over the logarithm of thickness."""
_AVERAGED = 60
"""Set-ups over which a region's thickness is averaged."""
_AT_ONCE = 64
"""Regions that are compared at once."""
_SAME = 0.1
"""Thicknesses closer than this, relatively, are one candidate."""
_LEAST_SHARE = 0.1
"""Least probability of a candidate."""
_MOST_CANDIDATES = 3
_TOLD = 0.8
"""Least probability of all candidates together for which a thickness is stated."""


@dataclass(frozen=True, eq=False)
class Thickness:
    """Thickness of every region.

    Parameters
    ----------
    nm
        Likeliest thickness; NaN where colours leave it open.
    low, high
        95 % interval, from all candidates.
    candidates
        The thicknesses in question, likeliest first: "12.3|41.0"; empty where `nm` is NaN.
    number
        The one layer number from 7 to 10 that lies in the interval; 0 where there is none or more than one.
    """

    nm: Float
    low: Float
    high: Float
    candidates: NDArray[np.str_]
    number: NDArray[np.int64]

    def take(self, which: NDArray[np.int64]) -> Thickness:
        """The regions at the given places."""
        return Thickness(*(getattr(self, item.name)[which] for item in fields(self)))

    def spread(self, where: NDArray[np.bool_]) -> Thickness:
        """These regions at the places that are true, and nothing known of the others."""
        whole = Thickness.unknown(len(where))
        for item in fields(self):
            getattr(whole, item.name)[where] = getattr(self, item.name)
        return whole

    def columns(self) -> dict[str, NDArray[Any]]:
        """The columns of a table of flakes."""
        return {
            "thickness_nm": self.nm,
            "thickness_low_nm": self.low,
            "thickness_high_nm": self.high,
            "thickness_candidates_nm": self.candidates,
        }

    @classmethod
    def unknown(cls, count: int) -> Thickness:
        """Nothing known of a number of regions."""
        nm, low, high = np.full((3, count), np.nan)
        return cls(nm, low, high, np.full(count, "", "<U32"), np.zeros(count, np.int64))


@dataclass(frozen=True, eq=False)
class Ruler:
    """Contrasts at every thickness of a grid, under the set-ups that explain a batch.

    Parameters
    ----------
    grid
        Thicknesses in nm, shape (thicknesses,).
    theory
        Stored contrasts, shape (setups, thicknesses, 3).
    """

    grid: Float
    theory: Float32

    @classmethod
    def of(cls, setups: Setups, witnesses: Observation) -> Ruler:
        """The ruler of some set-ups, weighed once more by the witnesses that fix them.

        Parameters
        ----------
        setups
            Drawn from what the pictures leave open, a hundred or more.
        witnesses
            Those that fix the set-up.
        """
        grid = thickness_grid(find_material(setups.material))
        theory = _compute_theory(setups, grid, witnesses.bare_colour)
        return cls(grid, theory[_choose_setups(theory, grid, witnesses)])


def measure_thickness(observation: Observation, ruler: Ruler) -> Thickness:
    """Thickness of every region under the set-ups that explain its batch."""
    grid, rows = ruler.grid, []
    if not len(observation.contrast):
        return Thickness.unknown(0)
    for start in range(0, len(observation.contrast), _AT_ONCE):
        part = observation.take(np.arange(start, min(start + _AT_ONCE, len(observation.contrast))))
        log = _log_density(ruler.theory, part) + _log_prior(grid)
        each = np.exp(log - special.logsumexp(log, axis=-1, keepdims=True)).mean(1)
        rows += [_summarise(grid, share) for share in each]
    nm, low, high, candidates, number = zip(*rows, strict=True)
    return Thickness(
        np.array(nm), np.array(low), np.array(high), np.array(candidates, "<U32"), np.array(number)
    )


def thickness_grid(crystal: Material) -> Float:
    """Thicknesses in nm at which a crystal is compared: one to ten layers, then in fine steps."""
    grid = [crystal.layer_nm * count for count in range(1, _FEW + 1)]
    while grid[-1] < _THICKEST_NM:
        grid.append(grid[-1] + max(crystal.layer_nm, _FINEST_NM, _FINEST_SHARE * grid[-1]))
    return np.array(grid)


def _log_prior(grid: Float) -> Float32:
    prior = np.gradient(np.log(grid))
    prior[_FEW:] *= (1.0 - _SHARE_FEW) / prior[_FEW:].sum()
    few = 1.0 / np.arange(1, _FEW + 1)
    prior[:_FEW] = _SHARE_FEW * few / few.sum()
    return np.log(prior).astype(np.float32)


def _compute_theory(setups: Setups, grid: Float, bare_colour: Float) -> Float32:
    """Stored contrast of every set-up and thickness, shape (setups, thicknesses, 3)."""
    crystal = find_material(setups.material)
    place = setups.oxide_nm / _OXIDE_STEP_NM
    node = place.astype(int)
    share = (place - node)[:, None]
    bare, flakes = [], []
    for row in range(len(setups)):
        ends = [
            _spectra_at(
                crystal,
                int(setups.variant[row]),
                setups.substrate,
                int(setups.aperture[row]),
                node[row] + side,
            )
            for side in (0, 1)
        ]
        (low_bare, low), (high_bare, high) = ends
        bare.append((1.0 - share[row]) * low_bare + share[row] * high_bare)
        flakes.append((1.0 - share[row]) * low + share[row] * high)
    ratios = setups.see(np.stack(bare), np.stack(flakes))
    return setups.camera.contrasts(ratios, bare_colour).astype(np.float32)


@lru_cache(maxsize=1024)
def _spectra_at(
    crystal: Material, variant: int, substrate: Substrate, aperture: int, node: int
) -> tuple[Float, Float]:
    layers = thickness_grid(crystal) / crystal.layer_nm
    fitted = np.array([node * _OXIDE_STEP_NM])
    bare, flakes = stack_spectra(
        crystal, variant, substrate, layers, fitted_nm=fitted, na=APERTURES[aperture]
    )
    return bare[0], flakes[0]


def _choose_setups(theory: Float32, grid: Float, witnesses: Observation) -> NDArray[np.int64]:
    """Places of set-ups in proportion to how well they explain the witnesses, some several times."""
    count = len(theory)
    if not len(witnesses.contrast):
        return np.arange(count)[:: max(1, count // _AVERAGED)]
    log = special.logsumexp(_log_density(theory, witnesses) + _log_prior(grid), axis=-1)
    evidence = log.sum(0) * min(1.0, _WITNESSES / len(witnesses.contrast))
    weight = np.exp(evidence - special.logsumexp(evidence))
    places = np.searchsorted(np.cumsum(weight), (np.arange(_AVERAGED) + 0.5) / _AVERAGED)
    return np.minimum(places, count - 1)


def _log_density(theory: Float32, observation: Observation) -> Float32:
    """Logarithm of the density of every contrast, shape (regions, setups, thicknesses).

    Between two grid points lies a crystal in between: part of their distance counts as error. A saturated channel is a
    lower limit.
    """
    gap = np.gradient(theory, axis=1) * np.float32(0.35)
    error = (np.float32(_SIGMA) * theory) ** 2 + gap**2 + np.float32(_FLOOR) ** 2
    residual = theory - observation.contrast.astype(np.float32)[:, None, None, :]
    saturated = observation.saturated[:, None, None, :]
    residual = np.where(saturated, np.minimum(residual, 0.0), residual)
    noise = np.hypot(observation.sigma, observation.uneven).astype(np.float32)[:, None, None, :]
    variance = error + noise**2
    misfit = (residual**2 / variance).sum(-1)
    return np.asarray(
        -0.5 * ((_FREEDOM + 3) * np.log1p(misfit / _FREEDOM) + np.log(variance).sum(-1)), np.float32
    )


def _summarise(grid: Float, share: Float32) -> tuple[float, float, float, str, int]:
    """Likeliest thickness, its 95 % interval, the candidates, and the one number of 7 to 10 layers in it, or 0."""
    cumulative = np.cumsum(share)
    first, last = (int(np.argmax(cumulative >= limit * cumulative[-1])) for limit in (0.025, 0.975))
    # A point of the grid stands for the half step on either side of it.
    edges = np.concatenate([[grid[0]], 0.5 * (grid[1:] + grid[:-1]), [grid[-1]]])
    low, high = float(edges[first]), float(edges[last + 1])
    number = first + 1 if first == last and MOST_LAYERS <= first < _FEW else 0
    candidates = [mode for mode in _find_modes(grid, share) if mode[0] >= _LEAST_SHARE][:_MOST_CANDIDATES]
    if sum(mode[0] for mode in candidates) < _TOLD:
        return float("nan"), low, high, "", number
    names = "|".join(f"{nm:.1f}" if nm >= 10.0 else f"{nm:.2f}" for _, nm in candidates)
    return candidates[0][1], low, high, names, number


def _find_modes(grid: Float, share: Float32) -> list[tuple[float, float]]:
    """Probability and thickness of each hill of a distribution, the likeliest first."""
    smooth = np.convolve(share, [0.25, 0.5, 0.25], "same")
    inner = np.concatenate([[-1.0], smooth, [-1.0]])
    peaks = np.flatnonzero((inner[1:-1] > inner[:-2]) & (inner[1:-1] >= inner[2:]))
    valleys = [first + int(np.argmin(smooth[first : second + 1])) for first, second in pairwise(peaks)]
    hills: list[tuple[float, float]] = []
    for start, end in zip([0, *valleys], [*valleys, len(grid)], strict=True):
        part = share[start:end]
        mass = float(part.sum())
        if mass > 0:
            hills.append((mass, float(np.exp((np.log(grid[start:end]) * part).sum() / mass))))
    merged: list[tuple[float, float]] = []
    for mass, nm in sorted(hills, reverse=True):
        near = next((row for row, (_, other) in enumerate(merged) if abs(np.log(nm / other)) < _SAME), None)
        if near is None:
            merged.append((mass, nm))
        else:
            merged[near] = (merged[near][0] + mass, merged[near][1])
    return sorted(merged, reverse=True)
