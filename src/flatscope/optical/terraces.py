"""Regions of uniform thickness: what the network marks as crystal, cut at the edges of terraces."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, sparse

from flatscope.inference.card import Card
from flatscope.optical.blurred import (
    AMONG_FAINTEST,
    NARROW_PX,
    SAME_LAYER,
    TERRACE_PX,
    grow_labels,
    part_levels,
    renumber,
)
from flatscope.optical.plateaus import find_plateaus
from flatscope.optical.regions import Measured, measure_contrasts

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

SPECK_SHARE = 0.25
"""Specks below this share of the smallest area that counts are left out."""
_SEED_PX = 6
"""A smaller inside is a gap in the edge, not a terrace."""
_STEP_SIGMA = 5.0
"""A change of contrast over two pixels is a step if it exceeds the noise by this factor …"""
_STEP_CONTRAST = 0.018
"""… and this contrast …"""
_STEP_RELATIVE = 0.035
"""… and this share of the contrast itself."""
_SAME_CONTRAST = 0.010
"""Neighbours are one terrace if their contrasts differ by less than this …"""
_SAME_RELATIVE = 0.035
"""… or by less than this share of the larger one."""
_FAINTEST = 0.1
"""The faintest crystals are those below whose contrast this share of the area of all large pieces lies."""
_ONE_NOISE_PX = 36.0
"""Pixels that share their noise: demosaicing and JPEG give neighbours one colour."""
_LEAST_NOISE_PX = 9.0
"""A piece with fewer pixels is as noisy as one of that size."""
_INDISTINCT_SIGMA = 3.0
"""A piece joins its nearest neighbour if noise explains their difference to this many sigma."""
_BORDER_PX = 4
"""Borders move at most this far."""
_MIXED_CONTRAST = 0.015
"""A contrast is a mixture of two others if it lies closer than this to the line between them …"""
_MIXED_RELATIVE = 0.05
"""… or closer than this share of itself."""


@dataclass(frozen=True, eq=False)
class Division:
    """A picture divided into regions.

    Parameters
    ----------
    labels
        Shape (rows, cols), int32: 1, 2, … without gaps, 0 on the substrate; crystals first, then foreign matter.
    edge
        Pixels on a boundary, shape (rows, cols).
    crystals
        Number of the regions that are crystals.
    specks
        Number of specks that were left out.
    lost
        Number of regions that were left out as no stronger than the substrate's own roughness.
    """

    labels: Labels
    edge: Mask
    crystals: int
    specks: int
    lost: int = 0

    def notes(self, factor: int) -> tuple[str, ...]:
        """What was left out, in words, for a picture that was reduced by `factor`."""
        notes = []
        if self.lost:
            notes.append(f"{self.lost} regions no stronger than the substrate's own roughness are not listed")
        if factor > 1:
            notes.append(f"analysed at 1/{factor} of the picture's resolution")
        return tuple(notes)


def divide_picture(
    chances: Float32, contrast: Float32, card: Card, *, least_px: float, noise: Float
) -> Division:
    """Divide a picture into regions of uniform thickness, by what a network sees in it.

    Parameters
    ----------
    chances
        The network's probabilities, shape (outputs, rows, cols).
    contrast
        Shape (rows, cols, 3).
    card
        Names the network's outputs.
    least_px
        Smallest area that counts; specks far below it are left out.
    noise
        1-sigma noise of one pixel's contrast, shape (3,).
    """
    chance = dict(zip(card.outputs, chances, strict=True))
    crystal, specks = _drop_specks(chance["thin"] + chance["thick"] > 0.5, least_px)
    crystal |= find_plateaus(contrast, crystal, least_px=least_px)
    edge = mark_steps(crystal, contrast, noise=noise)
    edge |= chance["edge"] > card.thresholds.get("edge", 0.5)
    labels = cut_regions(crystal, edge, contrast, noise=noise)
    crystals = int(labels.max())
    foreign, more = _drop_specks((chance["artefact"] > 0.5) & (labels == 0), least_px)
    parts, _ = ndimage.label(foreign, output=np.int32)
    labels = np.where(parts > 0, parts + crystals, labels).astype(np.int32)
    return Division(labels, edge, crystals, specks + more)


def drop_noise(division: Division, measured: Measured, grain: Float) -> tuple[Division, Measured]:
    """Leave out regions that the substrate's own roughness explains.

    A picture holds as many independent places as blocks of 64 px. The largest of that many random contrasts lies at
    the square root of twice the logarithm of their number: a region must be stronger.

    Parameters
    ----------
    division, measured
        The regions, and their contrasts.
    grain
        1-sigma scatter of the contrast of such a block on the substrate, shape (3,).

    Returns
    -------
    The other regions.
    """
    places = max(division.labels.size / 64.0, 2.0)
    strength = np.abs(measured.contrast) / np.maximum(grain, 1e-6)
    real = strength.max(1, initial=0.0) > np.sqrt(2.0 * np.log(places))
    if real.all():
        return division, measured
    lookup = np.concatenate([[0], np.cumsum(real) * real]).astype(np.int32)
    crystals = int(real[: division.crystals].sum())
    lost = int((~real).sum())
    return replace(division, labels=lookup[division.labels], crystals=crystals, lost=lost), measured.take(
        real
    )


def _drop_specks(mask: Mask, least_px: float) -> tuple[Mask, int]:
    """A mask without its specks, and their number."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)), output=np.int32)
    large = np.bincount(parts.ravel()) >= SPECK_SHARE * least_px
    large[0] = False
    return large[parts], count - int(large.sum())


def mark_steps(flake: Mask, contrast: Float32, *, noise: Float) -> Mask:
    """Pixels of a flake where the contrast changes from one terrace to the next.

    Parameters
    ----------
    flake
        Pixels that belong to a crystal, shape (rows, cols).
    contrast
        Shape (rows, cols, 3).
    noise
        1-sigma noise of one pixel's contrast, shape (3,).

    Returns
    -------
    Shape (rows, cols); a step two pixels wide is marked as two to four pixels.
    """
    steps = np.zeros(flake.shape, bool)
    # The mean of nine pixels, two of them subtracted: noise x sqrt(2) / 3 where pixels are independent.
    least = np.maximum(_STEP_SIGMA * noise * np.sqrt(2.0) / 3.0, _STEP_CONTRAST).astype(np.float32)
    joined, _ = ndimage.label(flake, structure=np.ones((3, 3)), output=np.int32)
    sizes = np.bincount(joined.ravel())
    for label, box in enumerate(ndimage.find_objects(joined), start=1):
        rows, cols = (slice(max(part.start - 2, 0), part.stop + 2) for part in box)
        if sizes[label] < 10 * _SEED_PX:
            continue
        own = joined[rows, cols] == label
        smooth = ndimage.uniform_filter(contrast[rows, cols], (3, 3, 1))
        scale = np.maximum(1.0, np.abs(smooth) * np.float32(_STEP_RELATIVE) / least)
        jump = np.zeros(own.shape, bool)
        for axis in (0, 1):
            change = np.abs(np.roll(smooth, -1, axis) - np.roll(smooth, 1, axis))
            jump |= (change > least * scale).any(-1)
        steps[rows, cols] |= jump & own
    return steps


def cut_regions(flake: Mask, edge: Mask, contrast: Float32, *, noise: Float) -> Labels:
    """Divide the flakes of a picture into regions of uniform thickness.

    Parameters
    ----------
    flake
        Pixels that belong to a crystal, shape (rows, cols).
    edge
        Pixels on a boundary, terrace steps included (see `mark_steps`).
    contrast
        Shape (rows, cols, 3).
    noise
        1-sigma noise of one pixel's contrast, shape (3,).

    Returns
    -------
    Shape (rows, cols), int32: 1, 2, … without gaps, 0 outside `flake`.
    """
    seeds, _ = ndimage.label(flake & ~edge, output=np.int32)
    sizes = np.bincount(seeds.ravel())
    small = sizes < _SEED_PX
    small[0] = True
    seeds[small[seeds]] = 0
    labels = grow_labels(seeds, flake)
    # Slivers that are all edge have no seed: each connected rest is a region of its own.
    rest, count = ndimage.label(flake & (labels == 0), output=np.int32)
    if count:
        labels = np.where(rest > 0, rest + labels.max(), labels)
    labels = renumber(labels)
    faintest = _faintest_contrast(labels, contrast, edge)
    labels = part_levels(_merge_alike(labels, contrast, edge, noise, faintest), contrast, noise, faintest)
    if not labels.any():
        return labels
    return _settle_borders(_join_rims(labels, contrast, edge), contrast, edge, noise)


def _join_rims(labels: Labels, contrast: Float32, edge: Mask) -> Labels:
    """Give rims to the region that they touch most.

    A rim is a blurred border: narrow everywhere, with a colour between those of two broad regions beside it, or of one
    and the substrate.
    """
    count = int(labels.max())
    middle = np.concatenate([np.zeros((1, 3)), measure_contrasts(labels, contrast, edge)[0]])
    low, high = (filtered(labels, NARROW_PX) for filtered in (ndimage.minimum_filter, ndimage.maximum_filter))
    broad = np.zeros(count + 1, bool)
    broad[labels[low == high]] = True
    broad[0] = True
    pairs, touching = _neighbours(labels + 1)
    pairs, touching = np.concatenate([pairs, pairs[:, ::-1]]) - 1, np.tile(touching, 2)
    asked = ~broad[pairs[:, 0]] & broad[pairs[:, 1]]
    pairs, touching = pairs[asked], touching[asked]
    owner = np.arange(count + 1, dtype=np.int32)
    for label in np.unique(pairs[:, 0]):
        own = pairs[:, 0] == label
        beside = pairs[own, 1]
        if any(_is_mixture(middle[label], *two) for two in itertools.combinations(middle[beside], 2)):
            owner[label] = beside[np.where(beside > 0, touching[own], 0).argmax()]
    return renumber(owner[labels])


def _settle_borders(labels: Labels, contrast: Float32, edge: Mask, noise: Float) -> Labels:
    """Move the border between two regions to where the contrast is half way from one to the other.

    The optics blur a step evenly to both sides: the step is where half of its height is reached. Nothing moves where
    the colour of the substrate is mixed in.
    """
    middle = np.concatenate([np.zeros((1, 3)), measure_contrasts(labels, contrast, edge)[0]])
    free = np.pad(ndimage.minimum_filter(labels, NARROW_PX) > 0, 1).ravel()
    around = np.pad(labels, 1)
    width = around.shape[1]
    square = np.add.outer((-width, 0, width), (-1, 0, 1)).ravel()
    cross = np.array([0, -width, width, -1, 1])
    place, values = around.ravel(), np.pad(contrast, ((1, 1), (1, 1), (0, 0)), mode="edge").reshape(-1, 3)
    asked = np.flatnonzero(free)
    for _ in range(_BORDER_PX):
        choice = place[asked + cross[:, None]]
        borders = (choice != choice[0]).any(0)
        asked, choice = asked[borders], choice[:, borders]
        seen = values[asked + square[:, None]].mean(0)
        misfit = (((middle[choice] - seen) / noise) ** 2).sum(-1)
        misfit[choice == 0] = np.inf
        best = np.take_along_axis(choice, misfit.argmin(0)[None], axis=0)[0]
        moved = asked[best != choice[0]]
        place[asked] = best
        asked = np.unique(moved + cross[:, None])
        asked = asked[free[asked]]
    # Single pixels that noise put on the other side go back: the majority of nine decides.
    asked = np.flatnonzero(place)
    beside = place[asked + cross[:, None]]
    asked = asked[((beside != beside[0]) & (beside > 0)).any(0)]
    nine = place[asked + square[:, None]]
    alike = (nine[:, None] == nine).sum(0) * (nine > 0)
    place[asked] = np.take_along_axis(nine, alike.argmax(0)[None], axis=0)[0]
    return renumber(around[1:-1, 1:-1])


def _is_mixture(contrast: Float, one: Float, other: Float) -> bool:
    """Whether a contrast lies between two others, shape (3,)."""
    way = other - one
    share = np.clip((contrast - one) @ way / max(float(way @ way), 1e-12), 0.0, 1.0)
    allowed = np.maximum(_MIXED_CONTRAST, _MIXED_RELATIVE * np.abs(contrast))
    return bool((np.abs(contrast - one - share * way) < allowed).all())


def _neighbours(labels: Labels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of labels that share a border, smaller label first, shape (pairs, 2), and its length in pixels."""
    pairs = []
    for first, second in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
        touch = (first != second) & (first > 0) & (second > 0)
        pairs.append(np.stack([first[touch], second[touch]], axis=1))
    found, length = np.unique(np.sort(np.concatenate(pairs), axis=1), axis=0, return_counts=True)
    return found.astype(np.int64), length


def _faintest_contrast(labels: Labels, contrast: Float32, edge: Mask) -> float:
    """Contrast of the faintest crystals of a picture in their strongest channel; 0 where no piece is large."""
    area = np.bincount(labels.ravel())
    large = area >= TERRACE_PX
    large[0] = False
    if not large.any():
        return 0.0
    lookup = (np.cumsum(large) * large).astype(np.int32)
    strength = np.abs(measure_contrasts(lookup[labels], contrast, edge)[0]).max(1)
    order = np.argsort(strength)
    held = np.cumsum(area[large][order])
    return float(strength[order][np.searchsorted(held, _FAINTEST * held[-1])])


def _merge_alike(labels: Labels, contrast: Float32, edge: Mask, noise: Float, faintest: float) -> Labels:
    """Join neighbours that were cut apart but whose contrast is the same, as far as noise can tell."""
    for _ in range(3):
        pairs, _ = _neighbours(labels)
        if len(pairs) == 0:
            break
        # Most regions are specks without a neighbour: only the others need measuring.
        involved, pairs = np.unique(pairs, return_inverse=True)
        own = np.zeros(int(labels.max()) + 1, np.int32)
        own[involved] = np.arange(1, len(involved) + 1)
        middle, spread, inside = measure_contrasts(own[labels], contrast, edge)
        first, second = middle[pairs[:, 0]], middle[pairs[:, 1]]
        fewest = inside[pairs].min(1)
        allowed = np.maximum(_SAME_CONTRAST, _SAME_RELATIVE * np.maximum(np.abs(first), np.abs(second)))
        weaker = np.minimum(np.abs(first).max(1), np.abs(second).max(1))
        thin = SAME_LAYER * faintest * (weaker < AMONG_FAINTEST * faintest)
        allowed = np.maximum(allowed, thin[:, None])
        rough = spread[pairs].max(1) / np.sqrt(np.maximum(fewest, 1.0))[:, None]
        alike = (np.abs(first - second) < allowed + rough).all(1)
        error = noise * np.sqrt(_ONE_NOISE_PX / np.maximum(inside, _LEAST_NOISE_PX))[:, None]
        doubt = _INDISTINCT_SIGMA * np.hypot(error[pairs[:, 0]], error[pairs[:, 1]])
        alike |= _choose_nearest(pairs, np.abs(first - second) / (allowed + doubt), inside)
        if not alike.any():
            break
        count = int(labels.max())
        joined = sparse.coo_array(
            (np.ones(alike.sum()), (involved[pairs[alike, 0]] - 1, involved[pairs[alike, 1]] - 1)),
            shape=(count, count),
        )
        _, group = sparse.csgraph.connected_components(joined, directed=False)
        labels = np.concatenate([[0], group + 1]).astype(np.int32)[labels]
    return labels


def _choose_nearest(pairs: NDArray[np.int64], misfit: Float, inside: Float) -> Mask:
    """Pairs in which the smaller piece has no nearer neighbour, none of whose channels misfits by 1 or more.

    Only pieces are asked that are both so small that noise hides their colours: those of a ribbon torn by its edges. A
    piece between two that differ must not join the two.
    """
    worst = misfit.max(1)
    worst[inside[pairs].max(1) >= _ONE_NOISE_PX] = np.inf
    smaller = np.where(inside[pairs[:, 0]] < inside[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
    nearest = np.full(len(inside), np.inf)
    np.minimum.at(nearest, smaller, worst)
    return np.asarray((worst < 1.0) & (worst == nearest[smaller]))
