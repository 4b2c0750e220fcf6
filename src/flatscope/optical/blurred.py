"""Steps without an edge: a region out of focus that holds two levels of contrast is parted at its two crests.

Where a picture is out of focus, enlarged or strongly compressed, contrast passes slowly from one terrace to the next,
and no step can be marked. The levels still show in the region's histogram. The rim of a crystal does too, as a ramp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

_SMOOTH_PX = 5
"""Two levels of a region are looked for in means over this many pixels squared."""
NARROW_PX = 5
"""The rim of a terrace is narrower than this; a terrace is not."""
_NARROW_REST_PX = 7
"""The rest of a divided region has rims on both sides: it is divided again into broader pieces only."""
_RIM_SHARE = 0.3
"""The rim of a crystal has at least this share of its contrast: the crystal ends at about half of it."""
_TWO_LEVELS = 0.025
"""A blurred step joins two terraces if their contrasts differ by this much …"""
_TWO_LEVELS_RELATIVE = 0.13
"""… by this share of the larger one …"""
_TWO_LEVELS_SIGMA = 1.25
"""… and by this multiple of a pixel's noise, where 25 pixels are averaged."""
_SPECKS = 0.005
"""This share of the pixels at either end is dust, not a terrace."""
TERRACE_PX = 40
"""Smallest area of each of the two terraces without its rim …"""
_TERRACE_SHARE = 0.5
"""… and its smallest share of the area with its rim."""
_BRIGHT = 0.6
"""Above this contrast a crystal is thick: its texture is no terraces."""
SAME_LAYER = 0.3
"""Neighbours among the faintest crystals are one terrace if they differ by less than this share of their contrast: one
layer more changes it by about as much as the first one did."""
AMONG_FAINTEST = 1.3
"""The faintest crystals are no stronger than this multiple of the contrast that `part_levels` is given for them."""
_REACH_PX = 8
"""Edges are a few pixels wide; seeds grow at most this far into them."""


def part_levels(labels: Labels, contrast: Float32, noise: Float, faintest: float) -> Labels:
    """Divide, in place, regions with two levels of contrast: a terrace out of focus has no step to mark."""
    # Bright crystals fill many pictures, and are left alone.
    flat = np.flatnonzero((labels > 0) & (contrast[..., 1] < _BRIGHT))
    owner, count = labels.ravel()[flat], int(labels.max())
    area = np.maximum(np.bincount(owner, minlength=count + 1), 1)
    values = contrast.reshape(-1, 3)[flat].T
    mean, square = (
        np.stack([np.bincount(owner, channel, count + 1) / area for channel in powers], axis=1)
        for powers in (values, values**2)
    )
    excess = square - mean**2 - noise**2
    # A tenth of the region on another level spreads the contrast by a third of the levels' difference.
    thin = np.abs(mean).max(1) < AMONG_FAINTEST * faintest
    together = np.maximum(_TWO_LEVELS, SAME_LAYER * faintest * thin)
    least = 0.3 * np.maximum(together, _TWO_LEVELS_RELATIVE * np.abs(mean).max(1))
    uneven = (excess.max(1) > least**2) & (area >= 4 * TERRACE_PX)
    uneven &= area > 0.5 * np.bincount(labels.ravel(), minlength=count + 1)
    uneven[0] = False
    boxes = ndimage.find_objects(labels)
    highest = count
    for label in np.flatnonzero(uneven):
        rows, cols = (slice(max(part.start - 2, 0), part.stop + 2) for part in boxes[label - 1])
        channel = int((excess[label] / noise**2).argmax())
        view, values = labels[rows, cols], contrast[rows, cols, channel]
        waiting = [int(label)]
        narrow_px = NARROW_PX
        while waiting:
            own = view == waiting.pop()
            levels = _two_levels(own, values, float(noise[channel]), narrow_px, float(together[label]))
            if levels is None:
                continue
            first, second = (_label_terraces(level) for level in levels)
            found = int(first.max())
            grown = grow_labels(np.where(second > 0, second + found, first), own)
            found += int(second.max())
            # One piece keeps the label of the whole, so that no number is left out.
            view[grown > 1] = grown[grown > 1] + (highest - 1)
            waiting += range(highest + 1, highest + found)
            highest += found - 1
            narrow_px = _NARROW_REST_PX
    return labels


def _two_levels(
    own: Mask, contrast: Float32, noise: float, narrow_px: int, step: float
) -> tuple[Mask, Mask] | None:
    """The insides of the brighter and the darker part of a region in one channel; None if it has one level only."""
    # Pixels outside must not colour the mean inside.
    weight = np.maximum(ndimage.uniform_filter(own.astype(np.float32), _SMOOTH_PX), np.float32(1e-3))
    level = ndimage.uniform_filter(contrast * own, _SMOOTH_PX) / weight
    inside = level[own]
    # A single speck of dust may be ten times as bright as either terrace.
    inside = np.clip(inside, *np.quantile(inside, (_SPECKS, 1.0 - _SPECKS)))
    threshold = threshold_otsu(inside)
    bright, dark = (float(inside[side].mean()) for side in (inside > threshold, inside <= threshold))
    least = max(
        _TWO_LEVELS, step, _TWO_LEVELS_SIGMA * noise, _TWO_LEVELS_RELATIVE * max(abs(bright), abs(dark))
    )
    if bright - dark < least:
        return None
    parts = [own & (level > threshold), own & (level <= threshold)]
    opened = [_open(part, narrow_px) for part in parts]
    for part, core in zip(parts, opened, strict=True):
        if core.sum() < max(TERRACE_PX, _TERRACE_SHARE * part.sum()):
            return None
    high, low = (float(np.median(level[core])) for core in opened)
    if high - low <= least:
        return None
    weaker, stronger = sorted((low, high), key=abs)
    if weaker / stronger > _RIM_SHARE and not _are_levels(inside, low, high):
        return None
    return opened[0], opened[1]


def _are_levels(values: Float32, low: float, high: float) -> bool:
    """Whether values gather at two levels with a gap between: a blurred rim or a shade passes through all.

    A third level may lie half way, so the gap is looked for on either side of it too.
    """
    places = np.linspace(low, high, 5)
    near = np.histogram(values, np.append(places, 2.0 * high - places[-2]) - 0.125 * (high - low))[0]
    return bool(min(near[0], near[-1]) > near[1:-1].min())


def _label_terraces(mask: Mask) -> Labels:
    """Connected parts of a mask that are large enough, 1, 2, … without gaps."""
    parts, _ = ndimage.label(mask, output=np.int32)
    small = np.bincount(parts.ravel()) < TERRACE_PX
    parts[small[parts]] = 0
    return renumber(parts)


def _open(mask: Mask, narrow_px: int) -> Mask:
    """A mask without its parts narrower than this many pixels."""
    core = ndimage.minimum_filter(mask.view(np.uint8), narrow_px)
    return ndimage.maximum_filter(core, narrow_px).view(bool)


def grow_labels(labels: Labels, within: Mask) -> Labels:
    """Let labels grow pixel by pixel into the unlabelled part of a mask."""
    labels = np.where(within, labels, 0).astype(np.int32)
    rows, cols = np.nonzero(within & (labels == 0))
    for _ in range(_REACH_PX):
        found = np.zeros(len(rows), np.int32)
        for down, right in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            r, c = np.clip(rows + down, 0, labels.shape[0] - 1), np.clip(cols + right, 0, labels.shape[1] - 1)
            found = np.where(found == 0, labels[r, c], found)
        reached = found > 0
        if not reached.any():
            break
        labels[rows[reached], cols[reached]] = found[reached]
        rows, cols = rows[~reached], cols[~reached]
    return labels


def renumber(labels: Labels) -> Labels:
    present = np.bincount(labels.ravel()) > 0
    present[0] = False
    lookup = np.zeros(len(present), np.int32)
    lookup[present] = np.arange(1, present.sum() + 1)
    return lookup[labels]
