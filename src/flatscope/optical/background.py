"""The empty substrate behind the flakes: uneven light, the substrate's colour, noise.

Light varies smoothly across a picture; crystals begin with a step. Blocks of pixels that join without a step make up
the substrate, and a polynomial in the logarithm of the brightness carries it on under the flakes. Contrast is
I / I_substrate − 1: exposure, white balance and vignetting cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.micrograph import Micrograph, MicrographError

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Blocks = NDArray[np.bool_]

LIGHT_ORDER = 6
"""Order of the polynomial that follows uneven light: vignetting of 60 % leaves an error of 0.4 %, the outermost corner
aside."""
_BLOCK_PX = 8
"""Side of a block, of which mean and scatter are taken; smaller in small pictures."""
_LEAST_AREA = 0.01
"""Smallest share of the picture of an even area that may be the substrate."""
_MOST_AREAS = 4
"""Largest number of such areas."""
_RIVAL = 0.2
"""Smallest score of such an area, relative to the best one: light fitted to a small crystal may bend until it passes
through the substrate too."""
_ALIKE = 0.05
"""Areas whose brightness differs by less than this share are one."""
_SECOND_AREA = 0.12
"""A note reports a second even area if it covers at least this share of the picture …"""
_ANOTHER_COLOUR = 0.3
"""… and its brightness differs by at least this share."""
_SATURATED = 0.992
"""Fraction of full scale above which a block has lost its colour."""
_DARKEST = 2e-3
"""Fraction of full scale below which a block has no colour: a floor for the logarithm."""
_DEAD = 0.03
"""A channel is dead if three quarters of the picture lie below this fraction of full scale."""
_NOISY = 0.12
"""A channel says nothing if a pixel's noise exceeds this contrast: ten times that of an ordinary camera."""
_FULL_ORDER_AREA = 0.3
"""Smallest share of the picture that fixes the full order of the light; less fixes its second order only."""


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
    """

    coefficients: Float
    flat: Float32 | None
    noise: Float
    step: Float
    coverage: float
    colour: Float
    notes: tuple[str, ...]

    def picture(self, shape: tuple[int, int]) -> Float32:
        """The empty substrate in fractions of full scale, shape (rows, cols, 3)."""
        order = self.coefficients.shape[1] - 1
        rows, cols = (_legendre(np.linspace(-1.0, 1.0, side), order).astype(np.float32) for side in shape)
        out = np.empty((*shape, 3), np.float32)
        for channel in range(3):
            out[..., channel] = np.exp(rows @ self.coefficients[channel].astype(np.float32) @ cols.T)
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
        rows, cols = (_legendre(scaled[:, axis], order) for axis in (0, 1))
        values = np.exp(np.einsum("ni,kij,nj->nk", rows, self.coefficients, cols, optimize=True))
        if self.flat is not None:
            nearest = points.round().astype(int)
            values *= self.flat[nearest[:, 0], nearest[:, 1]]
        return np.asarray(values)

    def contrast(self, rgb: Float32) -> Float32:
        """Contrast I / I_substrate − 1, shape (rows, cols, 3)."""
        ratio = self.picture(rgb.shape[:2])
        np.divide(rgb, ratio, out=ratio)
        ratio -= 1.0
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
    means, spreads = _block_statistics(source)
    usable = (means.max(-1) < _SATURATED) & (means.min(-1) > _DARKEST)
    if not usable.any():
        raise MicrographError("no substrate in view: the whole picture is saturated or black")
    logs = np.log(np.maximum(means, _DARKEST))
    relative = spreads / np.maximum(means, _DARKEST)
    typical = np.array([np.median(relative[..., channel][usable]) for channel in range(3)])
    # Half of the blocks may hold edges: the quiet ones show the noise.
    quiet = np.array([np.percentile(relative[..., channel][usable], 25) for channel in range(3)])
    # Noise weighs more where the light is dim, at most inversely to the brightness. Compression wipes out the noise
    # of some blocks: a grey level up and down is still flat.
    dimmer = np.maximum(np.median(means[usable], axis=0) / np.maximum(means, _DARKEST), 1.0)
    limit = np.maximum(
        2.0 * np.minimum(typical, 1.5 * quiet) * dimmer, 1.2 / (levels * np.maximum(means, _DARKEST))
    )
    flat_block = usable & (relative < limit).all(-1)
    if flat_block.sum() < 0.02 * flat_block.size:
        flat_block = usable & (relative <= np.percentile(relative[usable], 40, axis=0)).all(-1)
    if not flat_block.any():
        flat_block = usable
    areas = _smooth_areas(logs, flat_block, 1.0 / (levels * np.maximum(means, _DARKEST)))
    coefficients, substrate = _choose_substrate(
        [_fit_light(logs, flat_block, area, order=order) for area in areas]
    )
    notes = _note_second(logs, areas, substrate)
    colour = np.exp(logs[substrate]).mean(0)
    noise = np.array([np.median(relative[..., channel][substrate]) for channel in range(3)])
    coverage = float(substrate.mean())
    if coverage < 0.15:
        notes = (
            *notes,
            f"only {coverage:.0%} of the picture looks like bare substrate: contrasts are less sure",
        )
    step = 1.0 / (levels * colour)
    return Background(
        coefficients, flat, np.maximum(noise, step / np.sqrt(12.0)), step, coverage, colour, notes
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


def _find_usable(rgb: Float32) -> Blocks:
    means, spreads = (values[::2].reshape(-1, 3) for values in _block_statistics(rgb))
    lit = (np.percentile(means, 75, axis=0) > _DEAD) & (np.percentile(means, 25, axis=0) < _SATURATED)
    quiet = lit & (np.percentile(spreads / np.maximum(means, _DARKEST), 25, axis=0) < _NOISY)
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
    lights = [_evaluate(estimate_background(picture).coefficients, grid) for picture in pictures]
    shade = np.median([light - light.mean((0, 1)) for light in lights], axis=0)
    coefficients = _fit_polynomial(shade, np.ones(grid), order=LIGHT_ORDER)
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


def _block_statistics(rgb: Float32) -> tuple[Float, Float]:
    """Mean and standard deviation of blocks of pixels, both of shape (rows, cols, 3) in blocks."""
    size = max(2, min(_BLOCK_PX, min(rgb.shape[:2]) // 8))
    rows, cols = (side // size for side in rgb.shape[:2])
    blocks = rgb[: rows * size, : cols * size].reshape(rows, size, cols, size, 3)
    mean = np.einsum("iajbc->ijc", blocks) / size**2
    square = np.einsum("iajbc,iajbc->ijc", blocks, blocks) / size**2
    return mean.astype(float), np.sqrt(np.maximum(square - mean**2, 0.0)).astype(float)


def _smooth_areas(logs: Float, flat_block: Blocks, grey: Float) -> list[Blocks]:
    """Areas of flat blocks without steps that may be the substrate, the likeliest first.

    Parameters
    ----------
    logs
        Logarithm of the blocks' brightness, shape (rows, cols, 3).
    flat_block
        Blocks without structure, shape (rows, cols).
    grey
        One grey level as a change of `logs`, same shape.
    """
    flat = flat_block.copy()
    for axis in (0, 1):
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        both = flat_block[tuple(before)] & flat_block[tuple(after)]
        step = np.abs(np.diff(logs, axis=axis))
        if both.any():
            # Noise is correlated by demosaicing, so its effect on a block's mean is measured, not derived; compression
            # rounds the mean itself to about a grey level.
            jump = np.maximum(np.maximum(6.0 * np.median(step[both], axis=0), 0.006), grey[tuple(before)])
            flat[tuple(before)] &= ~(step > jump).any(-1)
    labels, count = ndimage.label(flat)
    if count == 0:
        return [flat_block]
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    share = sizes / labels.size + _share_of_border(labels, len(sizes))
    least = np.where(sizes > _LEAST_AREA * labels.size, _RIVAL * share.max(), np.inf)
    large = [label for label in np.argsort(-share) if share[label] > least[label]]
    chosen: list[int] = []
    for label in large or [int(sizes.argmax())]:
        colour = logs[labels == label].mean(0)
        # Pieces of like colour are one substrate, cut by crystals: the largest stands for all.
        if all(np.abs(colour - logs[labels == other].mean(0)).max() > _ALIKE for other in chosen):
            chosen.append(int(label))
    return [labels == label for label in chosen[:_MOST_AREAS]]


def _share_of_border(labels: NDArray[np.integer[Any]], count: int) -> Float:
    """Share of the picture's border that each label holds; 0 for the label 0."""
    border = np.ones(labels.shape, bool)
    border[1:-1, 1:-1] = False
    share = np.bincount(labels[border], minlength=count) / border.sum()
    share[0] = 0.0
    return share


def _choose_substrate(fits: list[tuple[Float, Blocks]]) -> tuple[Float, Blocks]:
    """Choose the light whose blocks hold most of the picture and of its border, and these blocks.

    The substrate surrounds the crystals, and one smooth light passes through all pieces into which they cut it.
    """
    return max(fits, key=lambda fit: fit[1].mean() + _share_of_border(fit[1].astype(int), 2)[1])


def _note_second(logs: Float, areas: list[Blocks], substrate: Blocks) -> tuple[str, ...]:
    """A note on a large even area of another colour."""
    colour = logs[substrate].mean(0)
    for area in areas:
        if area.mean() > _SECOND_AREA and np.abs(logs[area].mean(0) - colour).max() > _ANOTHER_COLOUR:
            return (
                f"a second even area covers {area.mean():.0%} of the picture: "
                "gold, another substrate or a large thick crystal",
            )
    return ()


def _fit_light(logs: Float, flat_block: Blocks, substrate: Blocks, *, order: int) -> tuple[Float, Blocks]:
    """Fit the substrate's light, then take in every block that agrees with it, a few times over."""
    reach = substrate

    def fit() -> Float:
        # A small area says nothing about curvature far from it.
        return _fit_polynomial(
            logs, reach.astype(float), order=order if reach.mean() >= _FULL_ORDER_AREA else min(order, 2)
        )

    for slack in (8.0, 6.0, 5.0, 4.0):
        residual = logs - _evaluate(fit(), logs.shape[:2])
        spread = 1.48 * np.median(np.abs(residual[reach] - np.median(residual[reach], axis=0)), axis=0)
        agreed = flat_block & (np.abs(residual) < slack * np.clip(spread, 0.002, 0.02)).all(-1)
        if agreed.sum() < 0.5 * substrate.sum():
            agreed = agreed | substrate
        reach = agreed
    return fit(), reach


def _legendre(x: Float, order: int) -> Float:
    values: Float = np.polynomial.legendre.legvander(x, order).astype(float)
    return values


def _evaluate(coefficients: Float, shape: tuple[int, int]) -> Float:
    order = coefficients.shape[1] - 1
    rows, cols = (_legendre(_block_centres(side), order) for side in shape)
    values: Float = np.einsum("ri,kij,cj->rck", rows, coefficients, cols, optimize=True)
    return values


def _block_centres(count: int) -> Float:
    """Places of block centres when the picture spans [-1, 1]."""
    return (np.arange(count) + 0.5) / count * 2.0 - 1.0


@lru_cache(maxsize=4)
def _design(rows: int, cols: int, order: int) -> tuple[list[tuple[int, int]], Float]:
    """Powers of row and column, and the value of each polynomial at every block, shape (blocks, terms)."""
    down, across = (_legendre(_block_centres(side), order) for side in (rows, cols))
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    return powers, np.stack([np.multiply.outer(down[:, i], across[:, j]).ravel() for i, j in powers], 1)


def _fit_polynomial(values: Float, weight: Float, *, order: int) -> Float:
    """Weighted least squares in two-dimensional Legendre polynomials of total order `order`, with a faint ridge.

    Returns
    -------
    Shape (channels, order + 1, order + 1).
    """
    powers, design = _design(values.shape[0], values.shape[1], order)
    used = weight.ravel() > 0
    chosen, target = design[used], values.reshape(-1, values.shape[2])[used]
    ridge = (
        1e-3 * used.sum() * np.diag([0.0 if i + j == 0 else float((i + j) ** 2) for i, j in powers]) / 16.0
    )
    solution = np.linalg.solve(chosen.T @ chosen + ridge, chosen.T @ target)
    coefficients = np.zeros((values.shape[2], order + 1, order + 1))
    for (i, j), row in zip(powers, solution, strict=True):
        coefficients[:, i, j] = row
    return coefficients
