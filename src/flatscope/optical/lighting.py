"""The light on the substrate, in blocks of pixels: which are bare, how it bends, where bands and stops spoil it.

Light varies smoothly across a picture; crystals begin with a step. All areas between steps, crystals included, share
the bend of the light, as each has one contrast.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.micrograph import MicrographError

Float32 = NDArray[np.float32]
Float = NDArray[np.float64]
Blocks = NDArray[np.bool_]

BLOCK_PX = 8
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
SATURATED = 0.992
"""Fraction of full scale above which a block has lost its colour."""
DARKEST = 2e-3
"""Fraction of full scale below which a block has no colour: a floor for the logarithm."""
_LEAST_BANDED = 32
"""Smallest number of blocks along either side of a picture that shows bands."""
_LEAST_BANDED_AREA = 0.6
"""Smallest share of the picture of a substrate that shows bands: crystals that share rows look like them."""
_BANDED_EVERY = 3
"""One in three blocks along a row shows its brightness well enough."""
_BANDED = 0.002
"""Bands fainter than this (rms) are left."""
_UNLIT = 0.12
"""A field stop takes more than this share of the light …"""
_LEAST_UNLIT = 0.001
"""… from at least this share of the picture …"""
_MOST_UNLIT = 0.5
"""… and at most this."""
_WHOLE_SIDE = 0.2
"""Share of the picture's border behind one side of it."""
_LEAST_SCATTER = 0.002
"""Smallest scatter of a block's brightness: light is no polynomial."""
_MOST_SPREAD = 2.0
"""Residuals of the light scatter by at most this multiple of a block; more is a crystal."""
_ONE_AREA = 0.5
"""An area that covers this share of the picture shows all of its light by itself."""
_ENOUGH = 6000
"""Blocks that fix a polynomial's 28 terms well enough."""
_LARGE = 0.02
"""Smallest share of the picture of a crystal that shows the light upon it."""
_LEAST_BEND = 0.002
"""Smallest share of the picture of an area that shows how the light bends."""
_TORN = 4.0
"""Weight of the border that a light tears into areas without a step, in shares of all blocks."""
_FULL_ORDER_AREA = 0.3
"""Smallest share of the picture that fixes the full order of the light; less fixes its second order only."""


@dataclass(frozen=True)
class Lighting:
    """The light and the bare substrate in blocks of pixels.

    Parameters
    ----------
    coefficients
        As of `Background`.
    blocks
        Which blocks are substrate, shape (rows, cols).
    logs, relative
        Logarithm of each block's brightness, and its scatter as a share of it, shape (rows, cols, 3).
    scatter
        Of a block's mean, shape (3,).
    notes
        As of `Background`.
    """

    coefficients: Float
    blocks: Blocks
    logs: Float
    relative: Float
    scatter: Float
    notes: tuple[str, ...]


def find_lighting(source: Float32, *, order: int, levels: float) -> Lighting:
    means, spreads = block_statistics(source)
    usable = (means.max(-1) < SATURATED) & (means.min(-1) > DARKEST)
    if not usable.any():
        raise MicrographError("no substrate in view: the whole picture is saturated or black")
    logs = np.log(np.maximum(means, DARKEST))
    relative = spreads / np.maximum(means, DARKEST)
    typical = np.array([np.median(relative[..., channel][usable]) for channel in range(3)])
    # Half of the blocks may hold edges: the quiet ones show the noise.
    quiet = np.array([np.percentile(relative[..., channel][usable], 25) for channel in range(3)])
    # Noise weighs more where the light is dim, at most inversely to the brightness. Compression wipes out the noise
    # of some blocks: a grey level up and down is still flat.
    dimmer = np.maximum(np.median(means[usable], axis=0) / np.maximum(means, DARKEST), 1.0)
    limit = np.maximum(
        2.0 * np.minimum(typical, 1.5 * quiet) * dimmer, 1.2 / (levels * np.maximum(means, DARKEST))
    )
    flat_block = usable & (relative < limit).all(-1)
    if flat_block.sum() < 0.02 * flat_block.size:
        flat_block = usable & (relative <= np.percentile(relative[usable], 40, axis=0)).all(-1)
    if not flat_block.any():
        flat_block = usable
    labels, scatter = _cut_at_steps(logs, flat_block, 1.0 / (levels * np.maximum(means, DARKEST)))
    areas = _rank_areas(logs, labels) if labels.any() else [flat_block]
    bend = _fit_bend(logs, labels, order=order)
    starts: list[Float | None] = [bend]
    if areas[0].mean() < _ONE_AREA:
        starts.append(None)
        # A rough substrate has no large area without a step, but most blocks have its colour.
        level = logs - evaluate(bend, logs.shape[:2])
        usual = np.abs(level - np.median(level[usable], axis=0)) < _MOST_SPREAD * scatter
        areas.append(usable & usual.all(-1))
    fits = [
        _fit_light(logs, flat_block, area, order=order, scatter=scatter, bend=start)
        for area in areas
        if area.any()
        for start in starts
    ]
    coefficients, substrate = _choose_substrate(fits, labels)
    coefficients = _carry_under_crystals(logs, labels, coefficients, substrate)
    notes = _note_second(logs, areas, substrate)
    return Lighting(coefficients, substrate, logs, relative, scatter, notes)


def find_bands(source: Float32, found: Lighting) -> Float32 | None:
    """Brightness of each row of the substrate relative to the light, shape (rows, 3); None without bands."""
    size = source.shape[0] // found.blocks.shape[0]
    rows, cols = (count * size for count in found.blocks.shape)
    if min(found.blocks.shape) < _LEAST_BANDED or found.blocks.mean() < _LEAST_BANDED_AREA:
        return None
    means = source[:rows, :cols].reshape(rows, -1, size, 3)[:, ::_BANDED_EVERY].mean(2)
    order = found.coefficients.shape[1] - 1
    down = legendre((np.arange(rows) + 0.5) / rows * 2.0 - 1.0, order)
    across = legendre(block_centres(found.blocks.shape[1])[::_BANDED_EVERY], order)
    light = np.einsum("ri,kij,cj->rck", down, found.coefficients, across, optimize=True)
    residual = np.log(np.maximum(means, DARKEST)) - light
    # A row holds fewer pixels of a block than the block.
    limit = 4.0 * np.sqrt(size) * found.scatter
    used = np.repeat(found.blocks[:, ::_BANDED_EVERY], size, axis=0) & (np.abs(residual) < limit).all(-1)
    count = used.sum(1)[:, None]
    # Crystals that the bands hide among the substrate do not sway the middle of a row, unless they hold most of it.
    level = _middle_of_rows(np.where(used[..., None], residual, np.inf), count[:, 0])
    level -= np.average(level, axis=0, weights=np.maximum(count[:, 0], 1e-6))
    level *= count / (count + 0.05 * used.shape[1])
    error = np.sqrt(np.mean((residual - level[:, None])[used] ** 2, axis=0) / max(np.median(count), 1.0))
    if (level.std(0) < np.maximum(_BANDED, 2.0 * error)).all():
        return None
    missing = source.shape[0] - rows
    return np.exp(np.pad(level, ((0, missing), (0, 0)), mode="edge")).astype(np.float32)


def _middle_of_rows(values: Float, count: NDArray[np.int64]) -> Float:
    """Median of the first `count` values in order of each row, shape (rows, 3); 0 for rows without any."""
    ordered = np.sort(values, axis=1)
    place = np.maximum(count - 1, 0)
    rows = np.arange(len(values))
    middle = 0.5 * (ordered[rows, place // 2] + ordered[rows, (place + 1) // 2])
    return np.where(count[:, None] > 0, middle, 0.0)


def find_unlit(found: Lighting) -> Blocks | None:
    """Blocks that a field stop or the end of a tube darkens, all channels alike and gradually; None without such."""
    deviation = np.exp(found.logs - evaluate(found.coefficients, found.blocks.shape)) - 1.0
    gray = ndimage.median_filter(deviation.mean(-1), 3)
    labels, count = ndimage.label(gray < -_UNLIT)
    share = _share_of_border(labels, count + 1)
    unlit = np.zeros(labels.shape, bool)
    for label in np.flatnonzero(share > 0):
        own = labels == label
        if own.mean() < _LEAST_UNLIT:
            continue
        depth = float(np.percentile(gray[own], 10))
        rim = own & ndimage.binary_dilation(~own, iterations=2)
        colour = np.median(deviation[own], axis=0)
        # A crystal has its full contrast close to its edge.
        gradual = float(np.median(gray[rim])) > 0.6 * depth
        # A tone curve or a black level lets one channel fall more than another, but all fall. Crystals do that too,
        # but they hold no whole side of the picture.
        even = np.ptp(colour) < -0.5 * colour.mean()
        if gradual and (even or (share[label] > _WHOLE_SIDE and colour.max() < 0.5 * colour.mean())):
            unlit |= own
    if not unlit.any() or unlit.mean() > _MOST_UNLIT:
        return None
    unlit = ndimage.binary_dilation(unlit, iterations=8, mask=unlit | (gray < -_UNLIT / 6.0))
    return np.asarray(ndimage.binary_dilation(unlit, iterations=2))


def block_statistics(rgb: Float32) -> tuple[Float, Float]:
    """Mean and standard deviation of blocks of pixels, both of shape (rows, cols, 3) in blocks."""
    size = max(2, min(BLOCK_PX, min(rgb.shape[:2]) // 8))
    rows, cols = (side // size for side in rgb.shape[:2])
    blocks = rgb[: rows * size, : cols * size].reshape(rows, size, cols, size, 3)
    mean = np.einsum("iajbc->ijc", blocks) / size**2
    square = np.einsum("iajbc,iajbc->ijc", blocks, blocks) / size**2
    return mean.astype(float), np.sqrt(np.maximum(square - mean**2, 0.0)).astype(float)


def _cut_at_steps(logs: Float, flat_block: Blocks, grey: Float) -> tuple[NDArray[np.int32], Float]:
    """Areas of flat blocks without a step.

    Parameters
    ----------
    logs
        Logarithm of the blocks' brightness, shape (rows, cols, 3).
    flat_block
        Blocks without structure, shape (rows, cols).
    grey
        One grey level as a change of `logs`, same shape.

    Returns
    -------
    Number of the area of each block, 0 for none, and the scatter of one block (1 sigma), shape (3,).
    """
    flat, scatter = flat_block.copy(), np.full(3, _LEAST_SCATTER)
    for axis in (0, 1):
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        both = flat_block[tuple(before)] & flat_block[tuple(after)]
        step = np.abs(np.diff(logs, axis=axis))
        if both.any():
            # Noise is correlated by demosaicing, so its effect on a block's mean is measured, not derived. Compression
            # rounds the mean: most neighbours are alike then, and the others differ by its step.
            usual, large = np.quantile(step[both], (0.5, 0.9), axis=0)
            jump = np.maximum(np.maximum(6.0 * usual, 1.6 * large), np.maximum(grey[tuple(before)], 0.006))
            flat[tuple(before)] &= ~(step > jump).any(-1)
            scatter = np.maximum(scatter, np.maximum(usual, large / 2.4))
    return ndimage.label(flat, output=np.int32)[0], scatter


def _rank_areas(logs: Float, labels: NDArray[np.int32]) -> list[Blocks]:
    """The areas that may be the substrate, the likeliest first."""
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


def _choose_substrate(fits: list[tuple[Float, Blocks]], labels: NDArray[np.int32]) -> tuple[Float, Blocks]:
    """Choose the light whose blocks hold most of the picture and of its border, and these blocks.

    The substrate surrounds the crystals, and one smooth light passes through all pieces into which they cut it. A light
    that bends through substrate and crystals leaves both where no step is, which counts against it.
    """

    def score(fit: tuple[Float, Blocks]) -> float:
        held = fit[1]
        torn = sum(
            float(np.mean((held[1:] != held[:-1]) & (here[1:] == here[:-1]) & (here[1:] > 0)))
            for held, here in ((held, labels), (held.T, labels.T))
        )
        return float(held.mean() + _share_of_border(held.astype(int), 2)[1] - _TORN * torn)

    return max(fits, key=score)


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


def _fit_bend(logs: Float, labels: NDArray[np.int32], *, order: int) -> Float:
    """Shape of the light that all areas share, crystals included: each has a constant contrast.

    Returns
    -------
    Coefficients as of `fit_polynomial`; the constant term says nothing.
    """
    powers, design = _design(*labels.shape, order)
    owner = labels.ravel()
    sizes = np.bincount(owner)
    used = _take_some((owner > 0) & (sizes[owner] >= _LEAST_BEND * owner.size))
    coefficients = np.zeros((3, order + 1, order + 1))
    if order == 0 or not len(used):
        return coefficients
    owner, terms, values = owner[used], design[used][:, 1:], logs.reshape(-1, 3)[used]
    weight = np.maximum(np.bincount(owner, minlength=len(sizes)), 1)[:, None]
    both = np.hstack([terms, values])
    own = np.stack([np.bincount(owner, column, len(sizes)) for column in both.T], axis=1)
    both -= (own / weight)[owner]
    terms, values = both[:, :-3], both[:, -3:]
    for _ in range(3):
        ridge = 1e-3 / 16.0 * len(terms) * np.diag([float((i + j) ** 2) for i, j in powers[1:]])
        solution = np.linalg.solve(terms.T @ terms + ridge, terms.T @ values)
        wrong = np.abs(values - terms @ solution).max(1)
        kept = wrong <= max(3.0 * 1.48 * float(np.median(wrong)), 0.004)
        terms, values = terms[kept], values[kept]
    for (i, j), row in zip(powers[1:], solution, strict=True):
        coefficients[:, i, j] = row
    return coefficients


def _carry_under_crystals(
    logs: Float, labels: NDArray[np.int32], coefficients: Float, substrate: Blocks
) -> Float:
    """The light fitted once more to the substrate and, each with a contrast of its own, the large crystals.

    A polynomial fitted to the substrate alone says little about the light under a crystal that fills a corner.
    """
    areas = np.where(np.bincount(labels.ravel())[labels] >= _LARGE * labels.size, labels, 0)
    areas[substrate] = labels.max() + 1
    order = coefficients.shape[1] - 1
    if substrate.mean() < _FULL_ORDER_AREA and not (areas[~substrate] > 0).any():
        return coefficients
    carried = _fit_bend(logs, areas, order=order)
    before, after = (
        (logs - evaluate(fitted, logs.shape[:2]))[substrate] for fitted in (coefficients, carried)
    )
    level = np.median(after, axis=0)
    carried[:, 0, 0] += level
    if np.abs(after - level).mean() > 1.1 * np.abs(before).mean():
        return coefficients
    return carried


def _fit_light(
    logs: Float, flat_block: Blocks, substrate: Blocks, *, order: int, scatter: Float, bend: Float | None
) -> tuple[Float, Blocks]:
    """Fit the substrate's light, then take in every block that agrees with it, a few times over.

    Parameters
    ----------
    logs, flat_block
        As for `_cut_at_steps`.
    substrate
        Where to start.
    order
        Of the polynomial.
    scatter
        Scatter of a block, shape (3,).
    bend
        The shape of the light to start from; None fits the first one to `substrate` alone.
    """
    reach, shape = substrate, logs.shape[:2]
    start = np.zeros((3, order + 1, order + 1)) if bend is None else bend
    rest = logs - evaluate(start, shape)

    def fit() -> Float:
        # A small area says nothing about curvature far from it; a bend that crystals share says it already.
        most = order if bend is None and reach.mean() >= _FULL_ORDER_AREA else 2 if bend is None else 1
        change = fit_polynomial(rest, reach.astype(float), order=min(order, most))
        missing = order + 1 - change.shape[1]
        return np.asarray(start + np.pad(change, ((0, 0), (0, missing), (0, missing))))

    for slack in (8.0, 6.0, 5.0, 4.0):
        if bend is not None and slack == 8.0:
            residual = rest - np.median(rest[substrate], axis=0)
        else:
            residual = logs - evaluate(fit(), shape)
        spread = 1.48 * np.median(np.abs(residual[reach] - np.median(residual[reach], axis=0)), axis=0)
        agreed = flat_block & (
            np.abs(residual) < slack * np.clip(spread, _LEAST_SCATTER, _MOST_SPREAD * scatter)
        ).all(-1)
        if agreed.sum() < 0.5 * substrate.sum():
            agreed = agreed | substrate
        reach = agreed
    return fit(), reach


def legendre(x: Float, order: int) -> Float:
    values: Float = np.polynomial.legendre.legvander(x, order).astype(float)
    return values


def evaluate(coefficients: Float, shape: tuple[int, int]) -> Float:
    order = coefficients.shape[1] - 1
    rows, cols = (legendre(block_centres(side), order) for side in shape)
    values: Float = np.einsum("ri,kij,cj->rck", rows, coefficients, cols, optimize=True)
    return values


def block_centres(count: int) -> Float:
    """Places of block centres when the picture spans [-1, 1]."""
    return (np.arange(count) + 0.5) / count * 2.0 - 1.0


@lru_cache(maxsize=4)
def _design(rows: int, cols: int, order: int) -> tuple[list[tuple[int, int]], Float]:
    """Powers of row and column, and the value of each polynomial at every block, shape (blocks, terms)."""
    down, across = (legendre(block_centres(side), order) for side in (rows, cols))
    powers = [(i, j) for i in range(order + 1) for j in range(order + 1 - i)]
    return powers, np.stack([np.multiply.outer(down[:, i], across[:, j]).ravel() for i, j in powers], 1)


def _take_some(used: Blocks) -> NDArray[np.intp]:
    """Places of the used blocks, evenly thinned out: `_ENOUGH` of them fix the light."""
    places = np.flatnonzero(used)
    return places[:: max(1, len(places) // _ENOUGH)]


def fit_polynomial(values: Float, weight: Float, *, order: int) -> Float:
    """Weighted least squares in two-dimensional Legendre polynomials of total order `order`, with a faint ridge.

    Returns
    -------
    Shape (channels, order + 1, order + 1).
    """
    powers, design = _design(values.shape[0], values.shape[1], order)
    used = _take_some(weight.ravel() > 0)
    chosen, target = design[used], values.reshape(-1, values.shape[2])[used]
    ridge = 1e-3 * len(used) * np.diag([0.0 if i + j == 0 else float((i + j) ** 2) for i, j in powers]) / 16.0
    solution = np.linalg.solve(chosen.T @ chosen + ridge, chosen.T @ target)
    coefficients = np.zeros((values.shape[2], order + 1, order + 1))
    for (i, j), row in zip(powers, solution, strict=True):
        coefficients[:, i, j] = row
    return coefficients
