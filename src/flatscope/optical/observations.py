"""Contrasts with their errors, measured in a picture or known beforehand: the input of layer counting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.camera import GREY
from flatscope.optical.regions import Regions

Bools = NDArray[np.bool_]
Float = NDArray[np.float64]
Ints = NDArray[np.int64]

DARK = 0.02
"""A channel in which the substrate lies below this, in fractions of full scale, says nothing …"""
CLIPPED = 0.985
"""… nor one in which it lies above this."""
SILENT_SIGMA = 10.0
"""Error of a contrast of which nothing is known."""
MOST_LAYERS = 6
"""Largest layer number that can be distinguished from the next; more is "thick"."""
_WITNESS_PX = 250.0
"""The optics' blur mixes the colour of smaller regions, in pixels of the working picture, with that around them."""
_RIM_PX = 4.0
"""A rim is narrower than this: twice the area over the length of the outline."""
_SOFT_PX = 6.0
"""Blur reaches so far into a region that one of this half width is half as good a witness as a wide one."""
_SCATTER = 0.15
"""A region that varies by this share of its contrast is half as good a witness as an even one …"""
_FAINTEST = 0.03
"""… and faint ones are judged as if they had this much more contrast."""
_CORRELATED_PX = 9.0
"""Neighbouring pixels share their noise: this many of them count as one."""
_KNOWN_SIGMA = 0.002
"""Error of the contrast of a known region, beyond the scatter of several (1 sigma)."""
_LARGEST_CONTRAST = 1000.0
"""A substrate a thousand times darker than a crystal is black to a camera of ten bits."""
_KNOWN_PX = 1e4
"""Area that stands for a known region's: larger than most, so that it is looked at first."""


@dataclass(frozen=True, eq=False)
class Observation:
    """Measured contrasts of the regions of one picture.

    Parameters
    ----------
    contrast
        Shape (regions, 3).
    sigma
        1-sigma error of each contrast, shape (regions, 3).
    uneven
        How much the contrast varies within a region beyond the noise (1 sigma), shape (regions, 3): edges out of
        focus and crumpled pieces, which say little about the set-up.
    saturated
        Where the camera stopped counting, so that the true contrast may be any larger; shape (regions, 3), bool.
    area_px
        Shape (regions,).
    known
        Layer number where it is known, else 0; shape (regions,). No number occurs twice.
    witness
        How good a witness of the set-up each region is, 0 to 1, shape (regions,); those at 0 are counted under the
        set-up that the others give.
    bare_colour
        Stored colour of the substrate in fractions of full scale, shape (3,).
    """

    contrast: Float
    sigma: Float
    uneven: Float
    saturated: Bools
    area_px: Float
    known: Ints
    witness: Float
    bare_colour: Float = field(default_factory=GREY.copy)

    def take(self, which: Ints) -> Observation:
        """The regions at the given places."""
        return replace(self, **{name: getattr(self, name)[which] for name in self._columns()})

    def join(self, other: Observation) -> Observation:
        """These regions, then others, on the substrate of the others."""
        columns = {
            name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in self._columns()
        }
        return replace(other, **columns)

    @classmethod
    def _columns(cls) -> list[str]:
        return [item.name for item in fields(cls) if item.name != "bare_colour"]


@dataclass(frozen=True)
class KnownRegion:
    """A region whose layer number the user knows: its contrast I / I_substrate − 1 in red, green, blue."""

    layers: int
    contrast: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MOST_LAYERS:
            raise ValueError(
                f"a known region of {self.layers} layers: flatscope tells 1 to {MOST_LAYERS} apart"
            )
        if not all(-1.0 <= value <= _LARGEST_CONTRAST for value in self.contrast):
            raise ValueError(
                f"a contrast of {self.contrast}: I / I_substrate - 1 lies between -1 and {_LARGEST_CONTRAST:g}"
            )


def observe_regions(regions: Regions) -> Observation:
    """Contrasts of the regions of a picture that are large enough, in the order of their labels.

    The set-up is fitted to what the network takes for crystals, and of these to the large and compact ones if there are
    any, the more the wider and evener they are. Channels that say nothing have the contrast 0 with a large error.
    """
    counted = np.flatnonzero(regions.large_enough)
    measured = regions.measured
    independent = np.maximum(measured.inside_px[counted], _CORRELATED_PX)[:, None]
    sigma = np.sqrt(regions.noise**2 * _CORRELATED_PX / independent + (0.5 * regions.step) ** 2 / 3.0)
    silent = find_silent(regions.bare_colour)
    crystal = ~regions.foreign[counted]
    area = measured.area_px[counted]
    half_width = np.sqrt(area * regions.evidence.roundness[counted] / np.pi)
    large = crystal & (area >= _WITNESS_PX)
    compact = large & (half_width >= _RIM_PX)
    chosen = compact if compact.any() else large if large.any() else crystal
    strongest = np.abs(measured.contrast[counted]).max(1, initial=0.0)
    scatter = regions.uneven[counted].max(1, initial=0.0) / (strongest + _FAINTEST)
    quality = 1.0 / (1.0 + (_SOFT_PX / np.maximum(half_width, 1.0)) ** 2) / (1.0 + (scatter / _SCATTER) ** 2)
    return Observation(
        np.where(silent, 0.0, measured.contrast[counted]),
        np.where(silent, SILENT_SIGMA, sigma),
        uneven=np.where(silent, 0.0, regions.uneven[counted]),
        saturated=regions.saturated[counted] & ~silent,
        area_px=area,
        known=np.zeros(len(counted), np.int64),
        witness=np.where(chosen, quality, 0.0),
        bare_colour=regions.bare_colour,
    )


def find_silent(bare_colour: Float) -> Bools:
    """Channels in which the substrate of this colour is clipped or nearly black, shape (3,)."""
    return np.asarray((bare_colour < DARK) | (bare_colour > CLIPPED))


def observe_known(known: Sequence[KnownRegion]) -> Observation:
    """Contrasts of known regions: the median of each layer number, and its scatter."""
    if not known:
        return _observe_nothing()
    layers = np.unique([region.layers for region in known]).astype(np.int64)
    of_each = [np.array([region.contrast for region in known if region.layers == n]) for n in layers]
    typical = np.stack([np.median(contrasts, axis=0) for contrasts in of_each])
    scatter = np.stack(
        [
            1.4826 * np.median(np.abs(contrasts - middle), axis=0)
            for contrasts, middle in zip(of_each, typical, strict=True)
        ]
    )
    count = len(layers)
    return Observation(
        typical,
        np.full((count, 3), _KNOWN_SIGMA),
        uneven=scatter,
        saturated=np.zeros((count, 3), bool),
        area_px=np.full(count, _KNOWN_PX),
        known=layers,
        witness=np.ones(count),
    )


def _observe_nothing() -> Observation:
    none = np.zeros((0, 3))
    no = np.zeros(0)
    return Observation(none, none, none, none > 0, no, no.astype(np.int64), no)
