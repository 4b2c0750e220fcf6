"""The camera: from the light on its sensor to the numbers in the file, and back.

A sensor colour P is balanced, so that its three channels agree on white, and 1 is where the sensor is full. The
camera's software takes from each channel what its neighbours leak into it (a matrix with negative off-diagonals),
raises or lowers the saturation, L = Y + s (P − Y) with Y the luminance of P, and stores L along a tone curve: a power
1/gamma, an S-shape, and a stretch that puts a dark level at 0.

Saturation mixes channels, so the stored contrast of a crystal depends on the substrate's colour. That colour is in the
picture: the sensor's white balance follows from it and need not be known.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Floats = NDArray[np.floating]

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Shares of red, green and blue in the luminance that picture software uses (ITU-R BT.601)."""
GREY = np.array([0.5, 0.5, 0.5])
"""Stored colour of a substrate that is not known, in fractions of full scale."""
_DIMMEST = 0.02
"""Least sensor signal of a channel on the substrate, as a share of the luminance: no set-up has less light there."""
_BLACK = 0.002
"""Half a grey level of 255: least stored brightness that a contrast refers to."""
_STEPS = 8191
"""Steps of the tabled tone curve."""


@dataclass(frozen=True)
class Camera:
    """A number n of cameras; every array has n as its first axis.

    Parameters
    ----------
    unmixing
        How strongly the matrix sets red against green and green against blue, 0 for none; shape (n, 2).
    saturation
        Factor on the distance of a colour from its luminance: 1 leaves colours as they are, 0.2 to 3.
    gamma
        The camera stores intensity to the power 1/gamma.
    curve
        Slope of the S-shape at half of full scale, 1 for none.
    black
        Stored level that a contrast stretch puts at 0; below 0 for a picture whose blacks are grey.
    """

    unmixing: Float
    saturation: Float
    gamma: Float
    curve: Float
    black: Float

    @classmethod
    def plain(cls, gamma: Float) -> Camera:
        """Cameras with a tone curve and nothing else."""
        one = np.ones(len(gamma))
        return cls(np.zeros((len(gamma), 2)), one, gamma, one, 0.0 * one)

    def __len__(self) -> int:
        return len(self.gamma)

    def take(self, which: NDArray[np.int64]) -> Camera:
        """The cameras at the given places."""
        return Camera(**{item.name: getattr(self, item.name)[which] for item in fields(self)})

    def matrix(self) -> Float:
        """What the software makes of a balanced sensor colour, shape (n, 3, 3); white stays white."""
        red_green, green_blue = self.unmixing.T
        matrix = np.zeros((len(self), 3, 3))
        matrix[:, 0, 0], matrix[:, 0, 1] = 1.0 + red_green, -red_green
        matrix[:, 1, 0], matrix[:, 1, 2] = -0.5 * red_green, -0.5 * green_blue
        matrix[:, 1, 1] = 1.0 + 0.5 * (red_green + green_blue)
        matrix[:, 2, 1], matrix[:, 2, 2] = -green_blue, 1.0 + green_blue
        vivid = self.saturation[:, None, None]
        return np.asarray(vivid * matrix + (1.0 - vivid) * (LUMINANCE @ matrix)[:, None, :])

    def store(self, linear: Floats) -> Float:
        """Stored brightness of linear brightness, both in fractions of full scale, shape (n, ..., 3)."""
        gamma, curve, black = (
            self._along(values, linear) for values in (1.0 / self.gamma, self.curve, self.black)
        )
        stored = np.clip(linear, 0.0, 1.0) ** gamma
        if (self.curve != 1.0).any():
            rising, falling = stored**curve, (1.0 - stored) ** curve
            stored = rising / (rising + falling)
        return np.asarray(np.clip((stored - black) / (1.0 - black), 0.0, 1.0))

    def expose(self, stored: Floats) -> Float:
        """Linear brightness that is stored as this, shape (n, ..., 3): the inverse of `store`."""
        gamma, curve, black = (
            self._along(values, stored) for values in (self.gamma, 1.0 / self.curve, self.black)
        )
        linear = np.clip(black + (1.0 - black) * stored, 0.0, 1.0)
        if (self.curve != 1.0).any():
            rising, falling = linear**curve, (1.0 - linear) ** curve
            linear = rising / (rising + falling)
        return np.asarray(linear**gamma)

    def sense(self, stored: Float) -> Float:
        """Balanced sensor colour that is stored as this, shape (n, 3); a channel without light gets a little."""
        linear = self.expose(np.broadcast_to(stored, (len(self), 3)).astype(float))
        sensor = np.linalg.solve(self.matrix(), linear[..., None])[..., 0]
        return np.asarray(np.maximum(sensor, _DIMMEST * (linear @ LUMINANCE)[:, None]))

    def contrasts(self, ratio: Floats, bare_colour: Float) -> Float:
        """Contrast of crystals against the substrate, as the camera stores it.

        Parameters
        ----------
        ratio
            Sensor signal of each crystal over that of the substrate, shape (n, crystals, 3).
        bare_colour
            Stored colour of the substrate in fractions of full scale, shape (3,) or (n, 3).

        Returns
        -------
        Shape (n, crystals, 3).
        """
        # The matrix with the substrate's sensor colour in it: it takes ratios to stored linear colours.
        mixed = (self.matrix() * self.sense(bare_colour)[:, None, :]).astype(ratio.dtype)
        linear = np.matmul(ratio, np.swapaxes(mixed, 1, 2))
        bare = self.store(mixed.sum(-1)[:, None, :])
        return np.asarray(self.store(linear) / np.maximum(bare, _BLACK) - 1.0)

    def ratios(self, contrast: Float, bare_colour: Float) -> Float:
        """Sensor signal of crystals over that of the substrate: inverts `contrasts`, where nothing was clipped."""
        sensor = self.sense(bare_colour)
        bare = self.store(np.einsum("nij,nj->ni", self.matrix(), sensor))[:, None, :]
        linear = self.expose(np.clip((1.0 + contrast) * bare, 0.0, 1.0))
        return np.asarray(
            np.einsum("nij,nkj->nki", np.linalg.inv(self.matrix()), linear) / sensor[:, None, :]
        )

    def develop(self, light: Float32, *, white: float = 1.0) -> NDArray[np.uint8]:
        """The picture that one camera makes of the light on its sensor.

        Parameters
        ----------
        light
            Shape (rows, cols, 3), 1 where the sensor is full; it is changed.
        white
            The sensor stops counting here.
        """
        np.clip(light, 0.0, white, out=light)
        light = self._mix(light)
        light *= np.float32(_STEPS)
        levels = self.store(np.linspace(0.0, 1.0, _STEPS + 1)[None, :, None])[0, :, 0]
        return np.round(255.0 * levels).astype(np.uint8)[light.astype(np.uint16)]

    def picture(self, light: Float32) -> Float32:
        """What `develop` makes of light without noise, in fractions of full scale, shape (rows, cols, 3)."""
        return self.store(self._mix(np.clip(light, 0.0, 1.0))[None])[0].astype(np.float32)

    def _mix(self, light: Float32) -> Float32:
        if (self.saturation == 1.0).all() and not self.unmixing.any():
            return light
        mixed = light.reshape(-1, 3) @ self.matrix()[0].T.astype(np.float32)
        return np.clip(mixed, 0.0, 1.0).reshape(light.shape)

    @staticmethod
    def _along(values: Float, picture: Floats) -> Float:
        """One number a camera, to be combined with an array of this shape, in its precision."""
        return values.reshape((-1,) + (1,) * (picture.ndim - 1)).astype(picture.dtype)
