"""Scores of found regions and pixels against true ones, with bootstrap intervals by picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

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


@dataclass(frozen=True)
class Score:
    """What scores have in common: they stand as numbers in JSON and in words in a table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        return asdict(self)

    def to_words(self) -> dict[str, str]:
        """A row of a table, by its heads."""
        values = {entry.name.replace("_", " "): getattr(self, entry.name) for entry in fields(self)}
        return {
            name: f"{value:.3f}" if isinstance(value, float) else str(value)
            for name, value in values.items()
            if not isinstance(value, list)
        }

    def to_text(self) -> str:
        """Every score on a line, and every list as a small table below its name."""
        words = self.to_words()
        names = [entry.name.replace("_", " ") for entry in fields(self)]
        width = max(map(len, names))
        lines = []
        for name in names:
            if name in words:
                lines.append(f"{name:{width}}  {words[name]}")
                continue
            lines.append(f"{name}:")
            for row in getattr(self, name.replace(" ", "_")):
                parts = (f"{part:.3f}" if isinstance(part, float) else f"{part!s:>6}" for part in row)
                lines.append("  " + "  ".join(parts))
        return "\n".join(lines)


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
    counts: Sequence[Sequence[float]] | NDArray[np.floating] | NDArray[np.integer],
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


def confusion_matrix(
    true: NDArray[np.integer], found: NDArray[np.integer], *, count: int
) -> NDArray[np.int64]:
    """Pixels by true class (rows) and found class (columns), shape (count, count); true 255 is left out."""
    known = true < count
    joint = true[known].astype(np.int64) * count + found[known]
    return np.bincount(joint, minlength=count * count).reshape(count, count)


def class_accuracy(confusion: Float | NDArray[np.int64]) -> Float:
    """Share of each true class's pixels that are found as such, shape (count,); NaN without any."""
    pixels = confusion.sum(1)
    return np.where(pixels > 0, np.diag(confusion) / np.maximum(pixels, 1), np.nan)


def class_iou(confusion: Float | NDArray[np.int64]) -> Float:
    """Intersection over union of each class, shape (count,); NaN where it is neither there nor found."""
    both = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - both
    return np.where(union > 0, both / np.maximum(union, 1), np.nan)


def binomial_interval(right: int, total: int) -> Interval:
    """A share with Wilson's 95 % interval (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z, share = 1.959964, right / total
    middle = (share + z**2 / (2 * total)) / (1 + z**2 / total)
    half = z / (1 + z**2 / total) * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    # Rounding must not push the share itself out of its interval.
    return Interval(
        share, min(share, max(float(middle - half), 0.0)), max(share, min(float(middle + half), 1.0))
    )


def score_histogram(
    score: NDArray[np.floating], truth: NDArray[np.bool_], *, bins: int = 200
) -> NDArray[np.int64]:
    """How often each score in [0, 1] occurs where the truth is no (row 0) and yes (row 1), shape (2, bins).

    Histograms of pictures add up, so that curves over many pictures need no list of pixels.
    """
    place = np.minimum((score * bins).astype(np.int64), bins - 1)
    return np.stack([np.bincount(place[truth == flag], minlength=bins) for flag in (False, True)])


def precision_recall(histogram: Float | NDArray[np.int64]) -> tuple[Float, Float]:
    """Precision and recall of "score at least this", from the highest threshold down; where nothing is found, the
    precision is 1."""
    no, yes = np.cumsum(np.asarray(histogram, float)[:, ::-1], axis=1)
    found = no + yes
    return np.where(found > 0, yes / np.maximum(found, 1e-9), 1.0), yes / max(float(yes[-1]), 1e-9)


def receiver_operating_curve(histogram: Float | NDArray[np.int64]) -> tuple[Float, Float]:
    """False and true positive rates of "score at least this", from the highest threshold down."""
    no, yes = np.cumsum(np.asarray(histogram, float)[:, ::-1], axis=1)
    return no / max(float(no[-1]), 1e-9), yes / max(float(yes[-1]), 1e-9)


def recall_at_precision(histogram: Float | NDArray[np.int64], *, precision: float = 0.9) -> float:
    """The largest recall at which the precision is still at least this; 0 if never."""
    precisions, recalls = precision_recall(histogram)
    enough = (precisions >= precision) & (recalls > 0)
    return float(recalls[enough].max()) if enough.any() else 0.0


def vote_regions(
    regions: NDArray[np.int32], found: NDArray[np.integer], *, count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The class that most pixels of each region are found as; the lowest class on a tie.

    Returns
    -------
    Labels of the regions (0 left out) and the winning class of each.
    """
    labels = np.unique(regions[regions > 0]).astype(np.int64)
    place = np.searchsorted(labels, regions[regions > 0])
    votes = np.zeros((len(labels), count), np.int64)
    np.add.at(votes, (place, found[regions > 0]), 1)
    return labels, votes.argmax(1)
