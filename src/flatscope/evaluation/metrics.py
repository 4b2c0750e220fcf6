"""Scores of found regions against true ones, with bootstrap intervals by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A score with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def overlap_table(
    found: NDArray[np.int32], true: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64], Float]:
    """Intersection over union of every found region with every true one.

    Parameters
    ----------
    found, true
        Label images of the same shape, 0 the rest.

    Returns
    -------
    The labels found, the labels true, and the overlaps of shape (found, true).

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    if found.shape != true.shape:
        raise ValueError(f"label images of shapes {found.shape} and {true.shape} cannot be compared")
    rows, found_place = np.unique(found, return_inverse=True)
    cols, true_place = np.unique(true, return_inverse=True)
    joint = np.bincount(found_place.ravel() * len(cols) + true_place.ravel(), minlength=len(rows) * len(cols))
    joint = joint.reshape(len(rows), len(cols)).astype(float)
    union = joint.sum(1, keepdims=True) + joint.sum(0, keepdims=True) - joint
    overlap = joint / union
    keep_rows, keep_cols = rows > 0, cols > 0
    return (
        rows[keep_rows].astype(np.int64),
        cols[keep_cols].astype(np.int64),
        np.asarray(overlap[np.ix_(keep_rows, keep_cols)], float),
    )


def match_regions(overlap: Float, *, least: float = 0.5) -> list[tuple[int, int]]:
    """Pair found with true regions, best overlap first, each used once.

    Parameters
    ----------
    overlap
        Shape (found, true).
    least
        Smallest overlap that counts; from 0.5 the pairing is unique.

    Returns
    -------
    Pairs (row, column) of `overlap`.
    """
    pairs: list[tuple[int, int]] = []
    left = overlap.copy()
    while left.size and left.max() >= least:
        row, col = (int(place) for place in np.unravel_index(int(left.argmax()), left.shape))
        pairs.append((row, col))
        left[row], left[:, col] = -1.0, -1.0
    return pairs


def bootstrap(
    counts: Sequence[Sequence[float]] | Float,
    score: Callable[[Float], float],
    *,
    seed: int = 0,
    draws: int = 2000,
) -> Interval:
    """A score of summed counts with its 95 % interval, pictures drawn with replacement.

    Parameters
    ----------
    counts
        One row a picture.
    score
        From the sums over pictures, shape (columns,), to the score; NaN where it is not defined.
    """
    table = np.atleast_2d(np.asarray(counts, float))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(table), size=(draws, len(table)))
    scores = np.array([score(table[rows].sum(0)) for rows in drawn])
    scores = scores[np.isfinite(scores)]
    low, high = np.percentile(scores, (2.5, 97.5)) if len(scores) else (np.nan, np.nan)
    return Interval(float(score(table.sum(0))), float(low), float(high))


def ratio(numerator: int, *denominator: int) -> Callable[[Float], float]:
    """Score: one summed column over the sum of others."""

    def score(sums: Float) -> float:
        below = sum(sums[place] for place in denominator)
        return float(sums[numerator] / below) if below > 0 else float("nan")

    return score


def reliability(p: Float, right: NDArray[np.bool_], *, bins: int = 10) -> list[tuple[float, float, int]]:
    """Stated probability against the share that is right, in bins of probability.

    Returns
    -------
    Mean stated probability, share right, and number, of each bin that is not empty.
    """
    place = np.minimum((p * bins).astype(int), bins - 1)
    return [
        (float(p[place == index].mean()), float(right[place == index].mean()), int((place == index).sum()))
        for index in range(bins)
        if (place == index).any()
    ]
