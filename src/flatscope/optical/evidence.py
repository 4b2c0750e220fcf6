"""What speaks for a crystal and what for dirt: how sure the network is, how sharp and even a region is, its outline.

None of it needs the material or its optics, so that a crystal counts as one where no thickness explains its colour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Labels = NDArray[np.int32]

_INSIDE_PX, _OUTSIDE_PX = 1, 2
"""An edge is measured from this far inside the border to this far outside of it: a blur of a pixel fits in between."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """How each region looks; every array has the shape (regions,).

    Parameters
    ----------
    crystal, residue, thick
        Mean probability that the network gives its pixels for a crystal of any thickness, for residue and for a thick
        crystal.
    rise
        Share of its contrast that it gains within four pixels of the border to the substrate: about 1 for a sharp edge,
        less for a diffuse one; NaN where it touches no substrate.
    roundness
        4π area / perimeter², 1 for a disc and less for a ragged outline.
    """

    crystal: Float
    residue: Float
    thick: Float
    rise: Float
    roundness: Float


def gather_evidence(
    labels: Labels, contrast: Float32, chances: Float32, outputs: Sequence[str], middle: Float
) -> Evidence:
    """Measure how every region looks.

    Parameters
    ----------
    labels
        Shape (rows, cols): 1, 2, … without gaps; 0 is the substrate.
    contrast
        Shape (rows, cols, 3).
    chances, outputs
        The network's probabilities, shape (outputs, rows, cols), and their names.
    middle
        Contrast of each region, shape (regions, 3).
    """
    count = len(middle)
    flat = np.flatnonzero(labels)
    owner = labels.ravel()[flat] - 1
    area = np.maximum(np.bincount(owner, minlength=count), 1)

    def mean(name: str) -> Float:
        return np.bincount(owner, chances[outputs.index(name)].ravel()[flat], count) / area

    thin, thick, residue = (mean(name) for name in ("thin", "thick", "artefact"))
    gained, asked = np.zeros(count), np.zeros(count)
    border = np.zeros(count)
    for axis in (0, 1):
        for own, inside, outside in _cross_borders(labels, axis):
            border += np.bincount(own, minlength=count)
            bare = labels.ravel()[outside] == 0
            own, inside, outside = own[bare], inside[bare], outside[bare]
            step = contrast.reshape(-1, 3)[inside] - contrast.reshape(-1, 3)[outside]
            gained += np.bincount(own, (step * middle[own]).sum(1), count)
            asked += np.bincount(own, (middle[own] ** 2).sum(1), count)
    rise = np.divide(gained, asked, out=np.full(count, np.nan), where=asked > 0)
    # Steps along rows and columns overstate the length of a slanted line by 4/π on average.
    perimeter = np.maximum(border * np.pi / 4.0, 1.0)
    return Evidence(thin + thick, residue, thick, rise, 4.0 * np.pi * area / perimeter**2)


def _cross_borders(labels: Labels, axis: int) -> list[tuple[Ints, Ints, Ints]]:
    """Where a line along an axis leaves a region: the region, and the pixels a little inside and outside of it."""
    rows, cols = labels.shape
    before, after = (labels[:-1], labels[1:]) if axis == 0 else (labels[:, :-1], labels[:, 1:])
    row, col = np.nonzero(before != after)
    place, length = (row, rows) if axis == 0 else (col, cols)
    crossings = []
    for own, sign, start in ((before, -1, place), (after, 1, place + 1)):
        label = own[row, col].astype(np.int64)
        inside = np.clip(start + sign * _INSIDE_PX, 0, length - 1)
        outside = np.clip(start - sign * _OUTSIDE_PX, 0, length - 1)
        flat = [(at * cols + col) if axis == 0 else (row * cols + at) for at in (inside, outside)]
        kept = label > 0
        crossings.append((label[kept] - 1, flat[0][kept], flat[1][kept]))
    return crossings
