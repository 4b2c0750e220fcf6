"""The empty substrate behind the flakes: uneven light, the substrate's colour, noise.

Light varies smoothly across a picture; crystals begin with a step. Blocks of pixels that join without a step make up
the substrate, and a polynomial in the logarithm of the brightness carries it on under the flakes. Contrast is
I / I_substrate − 1: exposure, white balance and vignetting cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.lighting import (
    BLOCK_PX,
    DARKEST,
    SATURATED,
    block_statistics,
    evaluate,
    find_bands,
    find_lighting,
    find_unlit,
    fit_polynomial,
    legendre,
)

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Blocks = NDArray[np.bool_]

LIGHT_ORDER = 6
"""Order of the polynomial that follows uneven light: vignetting of 60 % leaves an error of 0.4 %, the outermost corner
aside."""
_DEAD = 0.03
"""A channel is dead if three quarters of the picture lie below this fraction of full scale."""
_NOISY = 0.12
"""A channel says nothing if a pixel's noise exceeds this contrast: ten times that of an ordinary camera."""


@dataclass(frozen=True)
class Background:
    """The empty substrate's picture.

    Parameters
    ----------
    coefficients
        Shape (3, order + 1, order + 1): ln brightness in Legendre polynomials of row and column, both scaled
        to [-1, 1].
    flat
        Flat field the picture was divided by first, shape (rows, cols, 3), mean 1, or None.
    noise
        1-sigma noise of the contrast of one pixel on the substrate, shape (3,).
    step
        What one grey level of the file is worth as contrast, shape (3,).
    coverage
        Share of the picture that is substrate.
    colour
        Mean brightness of the substrate in fractions of full scale, shape (3,).
    notes
        What a user should know, one line each.
    bands
        Brightness of each row relative to the light, shape (rows, 3), where the camera writes bands; else None.
    unlit
        Blocks of 8 px at the picture's border where a field stop takes the light, shape (rows, cols) in blocks, or
        None; their contrast is set to 0.
    grain
        1-sigma scatter of the contrast of a block of 8x8 px on the substrate, shape (3,): noise that neighbours share,
        roughness, and what the light leaves unexplained.
    """

    coefficients: Float
    flat: Float32 | None
    noise: Float
    step: Float
    coverage: float
    colour: Float
    notes: tuple[str, ...]
    bands: Float32 | None = None
    unlit: Blocks | None = None
    grain: Float = field(default_factory=lambda: np.zeros(3))

    def picture(self, shape: tuple[int, int]) -> Float32:
        """The empty substrate in fractions of full scale, shape (rows, cols, 3)."""
        order = self.coefficients.shape[1] - 1
        rows, cols = (legendre(np.linspace(-1.0, 1.0, side), order).astype(np.float32) for side in shape)
        out = np.empty((*shape, 3), np.float32)
        for channel in range(3):
            out[..., channel] = np.exp(rows @ self.coefficients[channel].astype(np.float32) @ cols.T)
        if self.bands is not None:
            out *= self.bands[:, None]
        return out if self.flat is None else out * self.flat

    def at(self, points: Float, shape: tuple[int, int]) -> Float:
        """The empty substrate at some points of a picture.

        Parameters
        ----------
        points
            Row and column, shape (n, 2).
        shape
            Rows and columns of the picture.

        Returns
        -------
        Fractions of full scale, shape (n, 3).
        """
        order = self.coefficients.shape[1] - 1
        scaled = 2.0 * points / np.maximum(np.array(shape) - 1.0, 1.0) - 1.0
        rows, cols = (legendre(scaled[:, axis], order) for axis in (0, 1))
        values = np.exp(np.einsum("ni,kij,nj->nk", rows, self.coefficients, cols, optimize=True))
        nearest = points.round().astype(int)
        if self.bands is not None:
            values *= self.bands[nearest[:, 0]]
        if self.flat is not None:
            values *= self.flat[nearest[:, 0], nearest[:, 1]]
        return np.asarray(values)

    def contrast(self, rgb: Float32) -> Float32:
        """Contrast I / I_substrate − 1, shape (rows, cols, 3)."""
        ratio = self.picture(rgb.shape[:2])
        np.divide(rgb, ratio, out=ratio)
        ratio -= 1.0
        if self.unlit is not None:
            size = rgb.shape[0] // self.unlit.shape[0]
            unlit = np.repeat(np.repeat(self.unlit, size, axis=0), size, axis=1)
            missing = [(0, side - had) for side, had in zip(rgb.shape[:2], unlit.shape, strict=True)]
            ratio[np.pad(unlit, missing, mode="edge")] = 0.0
        return ratio


def estimate_background(
    rgb: Float32, *, flat: Float32 | None = None, order: int = LIGHT_ORDER, levels: float = 255.0
) -> Background:
    """Find the substrate in a picture and fit its brightness.

    Parameters
    ----------
    rgb
        Shape (rows, cols, 3), fractions of full scale.
    flat
        A flat field, same shape; the picture is divided by it first.
    order
        Highest polynomial order of the light's variation; lowered where little substrate is in view. 0 is even light.
    levels
        Grey levels of the file, for the smallest step it can show.

    Raises
    ------
    MicrographError
        If no substrate can be seen: everything saturated or black.

    Notes
    -----
    Fails where crystals cover nearly everything, or where a crystal's edge is so gradual that it joins the substrate.
    """
    source = rgb if flat is None else rgb / flat
    found = find_lighting(source, order=order, levels=levels)
    bands = find_bands(source, found)
    if bands is not None:
        found = find_lighting(source / bands[:, None], order=order, levels=levels)
    substrate, notes = found.blocks, found.notes
    colour = np.exp(found.logs[substrate]).mean(0)
    noise = np.array([np.median(found.relative[..., channel][substrate]) for channel in range(3)])
    coverage = float(substrate.mean())
    if bands is not None:
        notes = (*notes, f"bands along the rows ({np.log(bands).std(0).max():.1%}) are evened out")
    rest = (found.logs - evaluate(found.coefficients, found.blocks.shape))[substrate]
    grain = 1.48 * np.median(np.abs(rest - np.median(rest, axis=0)), axis=0)
    unlit = find_unlit(found)
    if unlit is not None:
        notes = (*notes, f"the light falls off at the border: {unlit.mean():.0%} of the picture is left out")
    if coverage < 0.15:
        notes = (
            *notes,
            f"only {coverage:.0%} of the picture looks like bare substrate: contrasts are less sure",
        )
    step = 1.0 / (levels * colour)
    return Background(
        found.coefficients,
        flat,
        np.maximum(noise, step / np.sqrt(12.0)),
        step,
        coverage,
        colour,
        notes,
        bands,
        unlit,
        grain,
    )


def mend_channels(rgb: Float32, usable: Blocks | None = None) -> tuple[Float32, Blocks]:
    """Put the mean of the channels that say something in place of those that are dead, burnt out or all noise.

    Parameters
    ----------
    rgb
        Shape (rows, cols, 3), fractions of full scale.
    usable
        Which channels say something, shape (3,), if that is known.

    Returns
    -------
    The picture, and which channels say something. The picture is as it was where all or none do.
    """
    if usable is None:
        usable = _find_usable(rgb)
    if usable.all() or not usable.any():
        return rgb, usable
    mended = rgb.copy()
    mended[..., ~usable] = rgb[..., usable].mean(-1, keepdims=True)
    return mended, usable


def note_channels(usable: Blocks) -> tuple[str, ...]:
    """A note on the channels that `mend_channels` left out."""
    names = [name for name, good in zip(("red", "green", "blue"), usable, strict=True) if not good]
    if len(names) in (0, 3):
        return ()
    verb = "channel says" if len(names) == 1 else "channels say"
    return (f"the {' and '.join(names)} {verb} nothing (dead, burnt out or all noise): left out",)


def _find_usable(rgb: Float32) -> Blocks:
    rows = rgb.shape[0] // BLOCK_PX
    some = (
        rgb
        if rows < 64
        else rgb[: rows * BLOCK_PX].reshape(rows, BLOCK_PX, -1, 3)[::4].reshape(-1, *rgb.shape[1:])
    )
    means, spreads = (values.reshape(-1, 3) for values in block_statistics(some))
    lit = (np.percentile(means, 75, axis=0) > _DEAD) & (np.median(means, axis=0) < SATURATED)
    quiet = lit & (np.percentile(spreads / np.maximum(means, DARKEST), 25, axis=0) < _NOISY)
    return quiet if quiet.any() else lit


def estimate_flatfield(pictures: Sequence[Float32]) -> Float32:
    """Flat field common to a set of pictures: the median of the light that each shows on its own substrate.

    Parameters
    ----------
    pictures
        At least three arrays of the same shape (rows, cols, 3).

    Returns
    -------
    Shape (rows, cols, 3), mean 1.

    Raises
    ------
    MicrographError
        If there are fewer than three pictures, or their shapes differ.
    """
    if len(pictures) < 3:
        raise MicrographError(
            f"{len(pictures)} pictures are too few for a flat field: give at least 3, or --flatfield FILE"
        )
    if len({picture.shape for picture in pictures}) > 1:
        raise MicrographError(
            "a flat field needs pictures of one size: analyse the sizes apart, or --flatfield FILE"
        )
    # Light is smooth: a coarse grid holds all of it, whatever the size of the pictures.
    grid = (60, 80)
    lights = [evaluate(estimate_background(picture).coefficients, grid) for picture in pictures]
    shade = np.median([light - light.mean((0, 1)) for light in lights], axis=0)
    coefficients = fit_polynomial(shade, np.ones(grid), order=LIGHT_ORDER)
    field = Background(coefficients, None, np.zeros(3), np.zeros(3), 1.0, np.ones(3), ()).picture(
        pictures[0].shape[:2]
    )
    return np.asarray(field / field.mean((0, 1)), np.float32)


def flatfield_from(frame: Micrograph, shape: tuple[int, int]) -> Float32:
    """A recorded flat frame, smoothed and scaled to mean 1.

    Raises
    ------
    MicrographError
        If its size differs from the picture's, or it holds black pixels.
    """
    if frame.shape != shape:
        raise MicrographError(
            f"{frame.name}: the flat field is {frame.shape[1]}x{frame.shape[0]} px, "
            f"the picture {shape[1]}x{shape[0]}: record one with the same camera settings"
        )
    smooth = ndimage.gaussian_filter(frame.rgb(), (4, 4, 0))
    if smooth.min() < 0.01:
        raise MicrographError(f"{frame.name}: the flat field has black parts: record one with more light")
    return np.asarray(smooth / smooth.mean((0, 1)), np.float32)
