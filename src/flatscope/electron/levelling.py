"""What in an image is no lattice: its slow background, single bright atoms and holes, and patches of dirt."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

CLIP = 3.0  # sigmas beyond which atoms, holes and dirt are clipped
_USUAL = 0.9  # quantile of absolute values that tells their sigma, whatever fewer pixels hold
_ROUNDS = 3  # of clipping, each with a better background
_PATCH_CELLS = 0.5  # radius (lattice constants) of the smallest patch of dirt, wider than any single atom
_BLOCKS_A_SIGMA = 5.0  # squares of pixels to one sigma, which wide filters work on


def blur(image: NDArray[np.floating], sigma: float) -> Float:
    """Gaussian filter; a wide one works on means of squares of pixels, which takes a tenth of the time.

    Parameters
    ----------
    image
        Shape (rows, cols).
    sigma
        In pixels.
    """
    image = np.asarray(image, float)
    block = int(sigma // _BLOCKS_A_SIGMA)
    if block < 2:
        return np.asarray(ndimage.gaussian_filter(image, sigma))
    rows, cols = image.shape
    padded = np.pad(image, ((0, -rows % block), (0, -cols % block)), mode="symmetric")
    small = padded.reshape(padded.shape[0] // block, block, -1, block).mean((1, 3))
    # The squares have blurred a little already.
    small = ndimage.gaussian_filter(small, np.sqrt((sigma / block) ** 2 - 1.0 / 12.0))
    return _between(rows, len(small), block) @ small @ _between(cols, small.shape[1], block).T


def _between(fine: int, coarse: int, block: int) -> Float:
    """Matrix of linear interpolation from the middles of blocks to pixels, shape (fine, coarse)."""
    place = np.clip((np.arange(fine) + 0.5) / block - 0.5, 0.0, coarse - 1.0)
    left = np.minimum(place.astype(int), max(coarse - 2, 0))
    weights = np.zeros((fine, coarse))
    weights[np.arange(fine), left] = 1.0 - (place - left)
    weights[np.arange(fine), np.minimum(left + 1, coarse - 1)] += place - left
    return weights


def quieten(image: NDArray[np.floating]) -> Float:
    """An image in which single bright atoms, holes, steps and dirt weigh no more than the lattice.

    Its slow background is gone, what deviates by many times the usual is clipped, and parts of more contrast than usual
    are brought to the usual one.

    Parameters
    ----------
    image
        Shape (rows, cols).
    """
    return clip_image(image)[0]


def clip_image(image: NDArray[np.floating]) -> tuple[Float, Mask]:
    """The quiet image, see `quieten`, and where it was clipped, both of shape (rows, cols)."""
    image = np.asarray(image, float)
    wide = max(image.shape) / 16.0
    flat = image - np.median(image)
    for _ in range(_ROUNDS):
        sigma = measure_spread(flat)
        background = image - flat
        clipped = background + np.clip(flat, -CLIP * sigma, CLIP * sigma)
        flat = image - blur(clipped, wide)
    beyond = np.abs(flat) > CLIP * sigma
    flat = np.clip(flat, -CLIP * sigma, CLIP * sigma)
    contrast = np.sqrt(np.maximum(blur(flat**2, wide), 0.0))
    return np.asarray(flat / np.maximum(contrast, float(np.median(contrast)) + 1e-300)), beyond


def find_patches(beyond: Mask, constant_px: float) -> Mask:
    """Where many pixels beside each other were clipped, more than one atom or an empty site has."""
    radius = _PATCH_CELLS * constant_px
    far = ndimage.distance_transform_edt(np.pad(beyond, 1, mode="edge"))[1:-1, 1:-1]
    core = far > radius
    return np.asarray(ndimage.distance_transform_edt(~core) < 2.0 * radius) if core.any() else core


def measure_spread(values: Float) -> float:
    """Standard deviation about zero of most values, whatever a tenth of them are."""
    if not values.size:
        return 0.0
    return max(float(np.quantile(np.abs(values), _USUAL)), 1e-300) / float(special.ndtri(0.5 + 0.5 * _USUAL))
