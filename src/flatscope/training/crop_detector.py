"""Train U-Nets that mark defects on unit-cell crops, and read whole images with them.

References
----------
Ke et al. 2024, doi:10.1021/acs.nanolett.4c02654 (U-Nets on unit-cell crops).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flatscope.electron.drawing.crops import (
    cut_all,
    cut_around,
    put_back_mean,
    read_sites,
)
from flatscope.electron.kinds import MARKS
from flatscope.electron.sites import Sites
from flatscope.training import supervised
from flatscope.training.losses import IGNORE
from flatscope.training.nets.unet import YangUNet

Float = NDArray[np.float64]
Real = NDArray[np.float32]

WIDTHS = (16, 32, 64, 128)  # channels a level
THRESHOLDS = np.linspace(0.05, 0.95, 19)  # probabilities that are tried
_LR = 2e-3
_BATCH = 64  # crops a step
_CROPS_AT_ONCE = 256  # crops that are read together, for the memory that this takes


@dataclass(frozen=True)
class Marked:
    """An image and what stands on its sites.

    Parameters
    ----------
    image
        Shape (rows, cols), see `flatscope.electron.drawing.crops.flatten`.
    marks
        Shape (rows, cols), see `flatscope.electron.drawing.crops.mark_defects`; 255 is not learned from.
    sites
        Of the image.
    kinds
        Shape (n,): what stands on each of them, see `flatscope.electron.kinds.classify_marks`.
    """

    image: Real
    marks: NDArray[np.uint8]
    sites: Sites
    kinds: NDArray[np.uint8]


@dataclass(frozen=True)
class Detector:
    """A trained network and how to read it.

    Parameters
    ----------
    net
        In eval mode.
    side_px
        Side of its crops.
    threshold
        A site counts as a defect from this probability on.
    """

    net: nn.Module
    side_px: int
    threshold: float


def train(
    images: Sequence[Marked],
    held: Sequence[Marked],
    *,
    side: int,
    steps: int,
    seed: int,
    checkpoint: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> Detector:
    """Train a U-Net on the crops of marked images, and choose its threshold on others.

    Parameters
    ----------
    images
        Images to learn from.
    held
        Others of the same look, which decide on the threshold.
    side
        Side of the crops, see `flatscope.electron.drawing.appearance.Look`.
    steps
        Steps of 64 crops each.
    seed
        Seeds the first weights and the order.
    checkpoint, on_progress
        See `engine.train`.
    """
    crops, marks = _cut(images, side)
    net = supervised.seeded(YangUNet, seed=seed, outputs=len(MARKS), channels=1, widths=WIDTHS)
    plan = supervised.Plan(
        lr=_LR, steps=steps, batch=_BATCH, schedule="poly", warmup=steps // 20 + 1, seed=seed
    )
    supervised.fit(net, crops, marks, plan, augment=_leave, checkpoint=checkpoint, on_progress=on_progress)
    return Detector(net, side, _find_threshold(net, held, side))


def detect(detector: Detector, image: NDArray[np.floating], sites: Sites) -> NDArray[np.int64]:
    """Name what stands on each site of an image, as a place in `flatscope.electron.kinds.MARKS`."""
    return name(read(detector.net, image, sites, side=detector.side_px), detector.threshold)


def read(net: nn.Module, image: NDArray[np.floating], sites: Sites, *, side: int) -> Float:
    """Read the probabilities of all kinds on every site, shape (n, kinds); kinds of the other sublattice have 0."""
    cells = cut_around(np.asarray(image, np.float32), sites.positions, side=side, clip=True)
    maps = []
    with torch.inference_mode():
        for start in range(0, len(cells.images), _CROPS_AT_ONCE):
            part = torch.from_numpy(cells.images[start : start + _CROPS_AT_ONCE, None])
            maps.append(torch.softmax(net(part), dim=1).numpy())
    whole = put_back_mean(np.concatenate(maps), cells, (image.shape[0], image.shape[1]))
    p = read_sites(whole, sites.positions, sites.phases.lattice.constant_px)
    first = sites.sublattice == 0
    p[np.ix_(first, [1, 2])] = 0.0
    p[~first, 3] = 0.0
    return np.asarray(p / np.maximum(p.sum(1, keepdims=True), 1e-12))


def name(p: Float, threshold: float) -> NDArray[np.int64]:
    """Name each site by its probabilities: the likeliest defect if one is at least as likely as the threshold."""
    return np.where(p[:, 0] < 1.0 - threshold, 1 + p[:, 1:].argmax(1), 0)


def _cut(images: Sequence[Marked], side: int) -> tuple[Real, NDArray[np.uint8]]:
    """Crops (n, side, side, 1) of all images and their marks (n, side, side)."""
    crops, marks = [], []
    for one in images:
        crops.append(cut_all(one.image, one.sites, side=side).images)
        marks.append(cut_all(one.marks, one.sites, side=side).images)
    return np.concatenate(crops)[..., None], np.concatenate(marks)


def _leave(rng: np.random.Generator, crop: Real, marks: NDArray[np.uint8]) -> tuple[Real, NDArray[np.uint8]]:
    """Crops are not turned or mirrored: a scan has a direction, and there are enough of them."""
    return crop, marks


def _find_threshold(net: nn.Module, held: Sequence[Marked], side: int) -> float:
    """The one with the best F1 of place and kind."""
    p = np.concatenate([read(net, one.image, one.sites, side=side) for one in held])
    kinds = np.concatenate([one.kinds for one in held]).astype(int)
    p, kinds = p[kinds != IGNORE], kinds[kinds != IGNORE]

    def score(threshold: float) -> float:
        called = name(p, threshold)
        right = int(((called == kinds) & (kinds > 0)).sum())
        return 2.0 * right / max(int((called > 0).sum() + (kinds > 0).sum()), 1)

    return float(max(THRESHOLDS, key=score))
