"""Losses for nets that give class logits and edge logits. Label 255 is ignored everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

IGNORE = 255


def cross_entropy(logits: Tensor, classes: Tensor, *, weights: Sequence[float] | None = None) -> Tensor:
    """Mean cross entropy over labelled pixels, each weighted by its class.

    Parameters
    ----------
    logits
        (n, K, rows, cols).
    classes
        Integer (n, rows, cols), 0..K-1, or 255 to ignore.
    weights
        One positive number a class; the mean is over the sum of the weights, so that doubling all of them
        changes nothing.

    Returns
    -------
    Tensor
        Scalar; 0 (with a gradient of 0) where no pixel is labelled.
    """
    weight = None if weights is None else torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    target = classes.long()
    total = functional.cross_entropy(logits, target, weight=weight, ignore_index=IGNORE, reduction="sum")
    labelled = target[target != IGNORE]
    norm = labelled.numel() if weight is None else weight[labelled].sum()
    return total / max(float(norm), 1e-6)


def soft_dice(logits: Tensor, classes: Tensor, *, index: int, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice overlap of class `index`, pooled over the batch; in [0, 1].

    Pooled, since a picture without the class would otherwise pull the mean to 0 or 1 on the smoothing alone.
    `smooth` is in pixels. Milletari et al. 2016, doi:10.1109/3DV.2016.79 (with p instead of p squared).
    """
    labelled = classes != IGNORE
    p = torch.softmax(logits, dim=1)[:, index][labelled]
    truth = (classes == index)[labelled].to(p.dtype)
    overlap: Tensor = (2 * (p * truth).sum() + smooth) / (p.sum() + truth.sum() + smooth)
    return 1 - overlap


def binary_cross_entropy(logits: Tensor, truth: Tensor, *, positive_weight: float = 1.0) -> Tensor:
    """Mean binary cross entropy of logits (n, rows, cols) against 0/1/255; positives count `positive_weight`.

    Scalar; 0 (with a gradient of 0) where no pixel is labelled.
    """
    labelled = truth != IGNORE
    target = truth[labelled].to(logits.dtype)
    weight = torch.as_tensor(positive_weight, dtype=logits.dtype, device=logits.device)
    total = functional.binary_cross_entropy_with_logits(
        logits[labelled], target, pos_weight=weight, reduction="sum"
    )
    return total / max(target.numel(), 1)


def flake_loss(
    logits: Tensor,
    classes: Tensor,
    edges: Tensor,
    *,
    class_weights: Sequence[float] | None = None,
    dice_weight: float = 1.0,
    edge_weight: float = 1.0,
    edge_positive_weight: float = 1.0,
) -> Tensor:
    """Cross entropy + Dice on 'thin' + weighted edge cross entropy.

    `logits` is (n, 5, rows, cols): substrate, thin, thick, artefact, edge (see `nets.flakenet`).
    """
    regions, edge = logits[:, :-1], logits[:, -1]
    loss = cross_entropy(regions, classes, weights=class_weights)
    loss = loss + dice_weight * soft_dice(regions, classes, index=1)
    return loss + edge_weight * binary_cross_entropy(edge, edges, positive_weight=edge_positive_weight)
