"""What spoils other people's pictures: dead channels, colour casts, halos, rough substrates, bands, field stops.

`flatscope.optical.photographs` draws an ordinary microscope, `flatscope.optical.camera` what its software does to
colours; these are further ways in which pictures of other laboratories were seen to differ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]

_USELESS_SHARE = 0.14
"""Share of pictures with a channel that says nothing."""
_STOPPED = 0.6
"""What lies behind a field stop gets less than this share of the light."""
_FAINTEST, _STRONGEST = 0.015, 0.2
"""Range of a monolayer's contrast on any substrate, transparent ones included."""


@dataclass(frozen=True)
class Rendering:
    """What happens to a stored picture beyond the camera's colours.

    Parameters
    ----------
    gain
        Factor on each channel, shape (3,): a colour cast, a dead or a burnt-out channel.
    sharpening, radius_px
        Strength and radius of an unsharp mask.
    """

    gain: Float
    sharpening: float = 0.0
    radius_px: float = 1.0

    def scale(self, picture: Float32) -> Float32:
        """The picture after the gains, in fractions of full scale, shape (rows, cols, 3)."""
        return np.clip(picture * self.gain.astype(np.float32), 0.0, 1.0)

    def finish(self, pixels: Pixels) -> Pixels:
        """The picture after gains and unsharp mask, with halos along its edges, shape (rows, cols, 3)."""
        if self is PLAIN:
            return pixels
        picture = self.scale(pixels.astype(np.float32) / np.float32(255.0))
        if self.sharpening > 0.0:
            soft = ndimage.gaussian_filter(picture, (self.radius_px, self.radius_px, 0.0), truncate=2.5)
            picture = np.clip(picture + np.float32(self.sharpening) * (picture - soft), 0.0, 1.0)
        return (picture * 255.0 + 0.5).astype(np.uint8)


PLAIN = Rendering(np.ones(3))
"""Nothing happens."""


def draw_rendering(rng: np.random.Generator) -> Rendering:
    """Draw what happens to a stored picture."""
    gain = np.exp(rng.normal(0.0, 0.25, 3)) if rng.random() < 0.3 else np.ones(3)
    if rng.random() < _USELESS_SHARE:
        # A channel that is nearly black, or burnt out, everywhere.
        gain[int(rng.integers(3))] *= 0.02 if rng.random() < 0.6 else 60.0
    sharpening, radius_px = 0.0, 1.0
    if rng.random() < 0.2:
        sharpening = float(np.exp(rng.uniform(np.log(0.3), np.log(2.5))))
        radius_px = float(np.exp(rng.uniform(np.log(0.8), np.log(5.0))))
    return Rendering(gain, sharpening, radius_px)


def spoil_light(rng: np.random.Generator, light: Float32) -> tuple[Mask, dict[str, Any]]:
    """Draw a rough substrate, bands along rows and a field stop over the light, in place.

    Returns
    -------
    What lies behind the field stop, shape (rows, cols), and the numbers drawn.
    """
    rows, cols = light.shape[:2]
    drawn: dict[str, Any] = {}
    if rng.random() < 0.12:
        grain = np.exp(rng.uniform(np.log(0.8), np.log(8.0), 2))
        rough = ndimage.gaussian_filter(
            rng.standard_normal((rows, cols), dtype=np.float32), grain, mode="wrap", truncate=2.5
        )
        drawn["roughness"] = float(np.exp(rng.uniform(np.log(0.004), np.log(0.04))))
        rough *= np.float32(drawn["roughness"] / max(float(rough.std()), 1e-6))
        light *= (
            (1.0 + rough)[..., None]
            if rng.random() < 0.7
            else 1.0 + rough[..., None] * rng.normal(1.0, 0.3, 3).astype(np.float32)
        )
    if rng.random() < 0.12:
        period, phase = np.exp(rng.uniform(np.log(6.0), np.log(120.0))), rng.uniform(0.0, 2.0 * np.pi)
        wave = np.sin(2.0 * np.pi * np.arange(rows) / period + phase)
        if rng.random() < 0.5:
            wave = ndimage.gaussian_filter1d(rng.standard_normal(rows), period / 6.0, mode="wrap")
        drawn["banding"] = float(np.exp(rng.uniform(np.log(0.002), np.log(0.03))))
        bands = drawn["banding"] * wave / max(float(wave.std()), 1e-6)
        light *= (1.0 + bands[:, None, None] * rng.uniform(0.5, 1.2, 3)).astype(np.float32)
    behind = np.zeros((rows, cols), bool)
    if rng.random() < 0.08:
        centre = rng.uniform(0.2, 0.8, 2) * (rows, cols)
        down, across = np.ogrid[:rows, :cols]
        distance = np.hypot(down - centre[0], across - centre[1])
        beyond = distance - rng.uniform(0.45, 0.75) * np.hypot(rows, cols)
        width = np.exp(rng.uniform(np.log(2.0), np.log(40.0)))
        share = rng.uniform(0.0, 0.15) + 1.0 / (1.0 + np.exp(np.clip(beyond / width, -30.0, 30.0)))
        share = np.minimum(share, 1.0).astype(np.float32)
        light *= share[..., None]
        behind = share < _STOPPED
    return behind, drawn


def draw_any_contrasts(rng: np.random.Generator) -> Float:
    """Stored contrasts of `LAYER_GRID` layers of some film on some substrate, shape (28, 3).

    Thin films change the colour in proportion to their thickness at first, darker or brighter; thick ones tend to a
    colour of their own. Gold, glass, polymer stamps and films that are not in the library look like this.
    """
    low, high = np.log(_FAINTEST), np.log(_STRONGEST)
    sign = -1.0 if rng.random() < 0.65 else 1.0
    tint = rng.normal(1.0, 0.25 if rng.random() < 0.5 else 0.8, 3)
    first = sign * np.exp(rng.uniform(low, high)) * tint / max(float(np.abs(tint).max()), 0.1)
    reach, turn = np.exp(rng.uniform(np.log(3.0), np.log(30.0))), rng.uniform(10.0, 60.0)
    thin = first * reach * (1.0 - np.exp(-LAYER_GRID[:, None] / reach))
    bulk = np.exp(rng.normal(0.3, 0.6) + rng.normal(0.0, 0.4, 3)) - 1.0
    weight = LAYER_GRID[:, None] ** 2 / (LAYER_GRID[:, None] ** 2 + turn**2)
    return np.asarray(np.clip(thin * (1.0 - weight) + bulk * weight, -0.95, 4.0))
