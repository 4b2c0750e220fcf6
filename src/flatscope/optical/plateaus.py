"""What a person sees at a glance: even areas that stand off the substrate, whether or not a network marks them.

A network is trained on drawn pictures. Where crystals are larger or fainter than those, it calls their inside
substrate. Contrast alone tells such areas: they are large, differ from the substrate by more than its own roughness,
and begin with a step. Whether they are crystals or residue is weighed later, as for every region.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]

_BLOCK_PX = 4
"""Areas are looked for in means over blocks of this side."""
_BROAD = 3
"""An area is broader than this many blocks everywhere: blurred rims and scratches are not."""
_LARGE = 4.0
"""Its core covers at least this multiple of the smallest area that counts."""
_LEVEL = 0.5
"""An area ends where less than this share of its contrast is left: a blurred step lies there."""
_REACH_PX = 6
"""A step is over this far from the border, on either side …"""
_STEP = 0.6
"""… where at least this share of the contrast is gained: shades and out-of-focus dust gain it over a longer way."""


def find_plateaus(contrast: Float32, known: Mask, *, least_px: float) -> Mask:
    """Even areas that stand off the substrate by a step.

    Parameters
    ----------
    contrast
        Shape (rows, cols, 3).
    known
        Pixels of crystals that are found already, shape (rows, cols).
    least_px
        Smallest area that counts.

    Returns
    -------
    Shape (rows, cols); `known` is not among it.
    """
    plateaus = np.zeros(known.shape, bool)
    blocks = _average_blocks(contrast)
    taken = _average_blocks(known[..., None].astype(np.float32))[..., 0] > 0
    free = ~ndimage.binary_dilation(taken)
    if not free.any():
        return plateaus
    # The substrate holds most blocks that are free: its scatter shows in their middle half.
    grain = np.maximum(1.48 * np.median(np.abs(blocks[free]), axis=0), 1e-3)
    limit = grain * np.sqrt(2.0 * np.log(max(known.size / _BLOCK_PX**2, 2.0)))
    core = ndimage.binary_opening((np.abs(blocks) > limit).any(-1) & ~taken, np.ones((_BROAD, _BROAD)))
    parts, _ = ndimage.label(core)
    sizes = np.bincount(parts.ravel()) * _BLOCK_PX**2
    for label, box in enumerate(ndimage.find_objects(parts), start=1):
        if sizes[label] < _LARGE * least_px:
            continue
        rows, cols = (slice(max(side.start - 3, 0), side.stop + 3) for side in box)
        own = parts[rows, cols] == label
        inside = tuple(slice(side.start * _BLOCK_PX, side.stop * _BLOCK_PX) for side in (rows, cols))
        found = _follow_step(own, blocks[rows, cols], contrast[inside], known[inside])
        if found is not None:
            plateaus[inside] |= found
    return plateaus


def _average_blocks(values: Float32) -> Float32:
    """Means over blocks; a rest at the right and bottom is left out."""
    rows, cols = (side // _BLOCK_PX for side in values.shape[:2])
    whole = values[: rows * _BLOCK_PX, : cols * _BLOCK_PX]
    return whole.reshape(rows, _BLOCK_PX, cols, _BLOCK_PX, -1).mean((1, 3))


def _follow_step(core: Mask, blocks: Float32, contrast: Float32, known: Mask) -> Mask | None:
    """The pixels of an area, from its core to half of its contrast; None if no step surrounds it.

    Parameters
    ----------
    core, blocks
        Blocks of the area, and the contrast of all blocks around.
    contrast, known
        Pixels of the same part of the picture, at most a block more on the right and at the bottom.
    """
    nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
    away = ndimage.distance_transform_edt(~core)
    level = _enlarge(blocks[tuple(nearest)], contrast.shape[:2])
    near = _enlarge(away <= 2.0, contrast.shape[:2])
    smooth = ndimage.uniform_filter(contrast, (3, 3, 1))
    share = (smooth * level).sum(-1) / np.maximum((level**2).sum(-1), 1e-9)
    free = near & ~known
    found = free & (share > _LEVEL)
    # Only what hangs together with the core.
    parts, _ = ndimage.label(found)
    kept = np.unique(parts[_enlarge(core, found.shape) & found])
    found = np.isin(parts, kept[kept > 0])
    depth = np.where(found, ndimage.distance_transform_edt(found), -ndimage.distance_transform_edt(~found))
    inner = share[(depth > _REACH_PX - 1.5) & (depth <= _REACH_PX + 1.5)]
    outer = share[(depth < 1.5 - _REACH_PX) & (depth >= -_REACH_PX - 1.5) & ~known]
    if not len(inner) or not len(outer) or np.median(inner) - np.median(outer) < _STEP:
        return None
    return found


def _enlarge(blocks: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The blocks as pixels; the last ones go on over a rest at the right and bottom."""
    whole = np.repeat(np.repeat(blocks, _BLOCK_PX, axis=0), _BLOCK_PX, axis=1)
    missing = [(0, max(side - had, 0)) for side, had in zip(shape, whole.shape, strict=False)]
    missing += [(0, 0)] * (whole.ndim - 2)
    return np.pad(whole, missing, mode="edge")[: shape[0], : shape[1]]
