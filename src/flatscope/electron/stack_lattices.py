"""Both lattices of a stack, followed together through an image, and how well they are known.

Each lattice is followed by the phases of its Bragg peaks in what the other's mean cell leaves, in turn. What the scan
then still moves, it moves for both layers alike: that is found from the image against the sum of both. In the first
lattice's own coordinates the second is a plain lattice again, which least squares of all pixels refine; the scatter of
small blocks of the image gives the errors, whatever the noise is like.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.restoration import unwrap_phase

from flatscope.electron.lattice import Lattice, Phases, fold_cell, repeat_cell
from flatscope.electron.levelling import blur
from flatscope.electron.stacking import TERMS, Other, evaluate_polynomial, fit_polynomial

Float = NDArray[np.float64]

_LEVEL_CELLS = 2.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_PHASE_CELLS = 4.0  # Gaussian that phases are averaged over: the other lattice must not be seen through it
_ROUNDS = 3  # of following both lattices in turn
_FLOW_CELLS = 1.5  # Gaussian over which the scan's displacement is the same
_FLOW_ROUNDS = 2
_FLOW_GAIN = 11.0 / 6.0
"""Noise of two rounds over that of one: each takes what the other left, so that a Gaussian G of frequencies becomes
2 G - G², whose mean square is 11/6 of that of G."""
_REFINE_ROUNDS = 4  # of least squares of both lattices
_SLIDE_CELLS = 2.0  # Gaussian, windows of 1.5 nm, over which layers are displaced alike against each other
_SLIDE_ROUNDS = 4
_UNEVEN_SHARE = 0.3  # drawn rigid layers show up to 0.1, relaxed ones 0.9, see `flatscope evaluate moire`
_RIDGE = 0.02  # of the mean, added to the squares of slopes
_PARTS = (
    4  # of the field along either side, whose scatter is the error where layers are bent against each other
)
_CELL_ROUNDS = 3  # of mean cells, each in what the other leaves
_PLANE = [TERMS.index(term) for term in ((0, 0), (1, 0), (0, 1))]
_BLOCK_PX = 8
"""Side of the blocks of pixels that stand for independent draws of noise: a lagging detector's reaches two pixels."""


@dataclass(frozen=True)
class Layer:
    """One lattice of a stack.

    Parameters
    ----------
    lattice
        Its vectors in pixels.
    path
        Polynomials of its lattice coordinates over the image, shape (2, terms).
    phases
        The same at each pixel, displacements of the scan included.
    cell
        Its mean cell.
    """

    lattice: Lattice
    path: Float
    phases: Phases
    cell: Float


@dataclass(frozen=True)
class Pair:
    """Both lattices of a bilayer.

    Parameters
    ----------
    layers
        The first and the second.
    rest
        What they leave of the image.
    link
        Shape (2, 2): takes the first lattice's coordinates to the second's, up to a shift.
    link_covariance
        Shape (4, 4), of its entries row by row.
    place_sigma_px
        Shape (rows, cols): 1-sigma error of a place along either axis, the mean of both.
    slid_px
        Shape (2, rows, cols): by how much the second layer lies off a plain lattice in the first one's coordinates.
    uneven
        Share of its variance that noise does not explain.
    """

    layers: tuple[Layer, Layer]
    rest: Float
    link: Float
    link_covariance: Float
    place_sigma_px: Float
    slid_px: Float
    uneven: float

    @property
    def is_bent(self) -> bool:
        """Whether the layers are bent against each other; if not, `slid_px` is 0."""
        return self.uneven > _UNEVEN_SHARE

    def swap(self) -> Pair:
        """The same with the second lattice first."""
        link = np.asarray(np.linalg.inv(self.link), float)
        slopes = -np.kron(link, link.T)
        covariance = slopes @ self.link_covariance @ slopes.T
        return replace(
            self, layers=self.layers[::-1], link=link, link_covariance=covariance, slid_px=-self.slid_px
        )


def follow_both(image: Float, first: Phases, other: Other) -> Pair:
    """Follow both lattices through the image, each in what the other leaves."""
    flat = image - blur(image, _LEVEL_CELLS * first.lattice.constant_px)
    lattices = [first.lattice, other.lattice]
    models = [np.zeros_like(flat), np.zeros_like(flat)]
    layers: list[Layer] = []
    for _ in range(_ROUNDS):
        layers = []
        for number, lattice in enumerate(lattices):
            rest = flat - models[1 - number]
            layer = _follow_one(rest, lattice)
            models[number] = repeat_cell(rest, layer.phases)
            layers.append(layer)
        lattices = [layer.lattice for layer in layers]
    return _refine(flat, [layer.path for layer in layers], lattices)


def _follow_one(rest: Float, lattice: Lattice) -> Layer:
    """Fit a lattice's phases by polynomials over the whole image."""
    window = _PHASE_CELLS * lattice.constant_px
    rows, cols = (np.arange(side) for side in rest.shape)
    step = max(int(window / 4.0), 1)
    some = np.ix_(rows[step // 2 :: step], cols[step // 2 :: step])
    waves, third = [], lattice.reciprocal[1] - lattice.reciprocal[0]
    for down, across in (*lattice.reciprocal, third):
        wave = rest * (np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None])
        waves.append((blur(wave.real, window) + 1j * blur(wave.imag, window))[some])
    angles = [np.asarray(unwrap_phase(np.angle(wave), rng=0)) / (2.0 * np.pi) for wave in waves]
    # The third phase is the second less the first: all three say where two coordinates lie.
    left = angles[1] - angles[0] - angles[2]
    left = (left - np.rint(np.median(left))) / 3.0
    grid = np.stack(np.meshgrid(some[0].ravel(), some[1].ravel(), indexing="ij")).reshape(2, -1)
    plain = lattice.reciprocal @ grid
    scaled = (grid + 0.5) / (0.5 * np.array(rest.shape)[:, None]) - 1.0
    cells = (
        angles[0].ravel() + left.ravel() + plain[0],
        angles[1].ravel() - left.ravel() + plain[1],
    )
    path = np.stack([fit_polynomial(scaled, cell) for cell in cells])
    return _make_layer(path, _locate(path, rest.shape, None), lattice.power, rest)


def _make_layer(path: Float, cell: Float, power: float, rest: Float) -> Layer:
    """A layer whose coordinates are known: its mean lattice, and its mean cell in what the other leaves."""
    step = max(min(rest.shape) // 64, 1)
    some = np.mgrid[0 : rest.shape[0] : step, 0 : rest.shape[1] : step].reshape(2, -1)
    terms = np.column_stack([some.T, np.ones(some.shape[1])])
    reciprocal = np.linalg.lstsq(terms, cell[:, some[0], some[1]].T, rcond=None)[0][:2].T
    phases = Phases(cell, np.ones(rest.shape, bool), Lattice(np.asarray(reciprocal, float), power))
    return Layer(phases.lattice, path, phases, fold_cell(rest, phases))


def _locate(path: Float, shape: tuple[int, ...], moved: Float | None) -> Float:
    """Lattice coordinates of each pixel, displaced by `moved` (2, rows, cols) pixels."""
    axes = [one.ravel() for one in _grid(shape)]
    cell = np.stack([evaluate_polynomial(one, *axes) for one in path])
    if moved is None:
        return cell
    slopes = [np.asarray(np.gradient(one)) for one in cell]
    return np.stack([one + (slope * moved).sum(0) for one, slope in zip(cell, slopes, strict=True)])


# --- both together ---------------------------------------------------------------------------------------------------


def _refine(flat: Float, paths: list[Float], lattices: list[Lattice]) -> Pair:
    """Both lattices as one: the second a plain lattice in the first one's coordinates, displaced alike by the scan;
    and how they are bent against each other."""
    powers = [lattice.power for lattice in lattices]
    window = _FLOW_CELLS * lattices[0].constant_px
    paths = [paths[0], _tie(paths)]
    moved, jumps = np.zeros((2, *flat.shape)), np.zeros(flat.shape[0])
    layers, rest = _fit_cells(flat, paths, powers, [moved, moved])
    for turn in range(_REFINE_ROUNDS):
        _add_planes(paths, _find_change(rest, layers)[0])
        layers, rest = _fit_cells(flat, paths, powers, [moved, moved])
        if turn < _FLOW_ROUNDS:
            model = flat - rest
            moved += _find_flow(rest, model, window)
            jumped = _find_jumps(rest, model)
            jumps += jumped
            moved[1] += jumped[:, None]
            layers, rest = _fit_cells(flat, paths, powers, [moved, moved])
    _, link, covariance = _find_change(rest, layers)
    sigma = _find_place_error(rest, flat - rest, jumps, window)
    slid, uneven = np.zeros((2, *flat.shape)), 0.0
    for turn in range(_SLIDE_ROUNDS):
        step, share, noise = _find_slide(rest, layers, _SLIDE_CELLS * lattices[0].constant_px)
        if not turn:
            uneven = share
            # Where the layers are bent against each other, their mean is as uncertain as large parts differ.
            covariance = (
                _find_change(rest, layers, min(flat.shape) // _PARTS)[2]
                if uneven > _UNEVEN_SHARE
                else covariance
            )
        if uneven <= _UNEVEN_SHARE:
            break
        slid += step
        if turn == _SLIDE_ROUNDS - 1:
            # Half of it is either layer's.
            sigma = np.sqrt(sigma**2 + 0.25 * noise)
        layers, rest = _fit_cells(flat, paths, powers, [moved - 0.5 * slid, moved + 0.5 * slid])
    return Pair((layers[0], layers[1]), rest, link, covariance, sigma, slid, uneven)


def _add_planes(paths: list[Float], change: Float) -> None:
    for path, by in zip(paths, change, strict=True):
        path[:, _PLANE] += by


def _tie(paths: list[Float]) -> Float:
    """The second lattice's coordinates as a linear map of the first one's, nearest to what they are."""
    axes = [np.linspace(-1.0, 1.0, 24)] * 2
    one, two = (np.stack([evaluate_polynomial(c, *axes).ravel() for c in path], axis=1) for path in paths)
    terms = np.column_stack([one, np.ones(len(one))])
    link = np.linalg.lstsq(terms, two, rcond=None)[0]
    tied = link[:2].T @ paths[0]
    tied[:, TERMS.index((0, 0))] += link[2]
    return np.asarray(tied)


def _fit_cells(
    flat: Float, paths: list[Float], powers: list[float], moved: list[Float]
) -> tuple[list[Layer], Float]:
    """Both layers with their mean cells, each in what the other leaves, and what both leave."""
    cells = [_locate(path, flat.shape, by) for path, by in zip(paths, moved, strict=True)]
    models = [np.zeros_like(flat), np.zeros_like(flat)]
    for _ in range(_CELL_ROUNDS):
        for number, cell in enumerate(cells):
            phases = Phases(cell, np.ones(flat.shape, bool), Lattice(np.eye(2), 0.0))
            models[number] = repeat_cell(flat - models[1 - number], phases)
    layers = [
        _make_layer(path, cell, power, flat - models[1 - number])
        for number, (path, cell, power) in enumerate(zip(paths, cells, powers, strict=True))
    ]
    return layers, flat - models[0] - models[1]


def _find_change(rest: Float, layers: list[Layer], block: int = _BLOCK_PX) -> tuple[Float, Float, Float]:
    """One step of least squares: planes to be added to the coordinates, shape (2, 2, 3); the link between the lattices
    and its covariance, from the scatter of blocks (Huber 1967)."""
    planes = [np.ones(rest.shape), *np.broadcast_arrays(*_grid(rest.shape))]
    slopes = [slope for layer in layers for slope in _find_slopes(layer)]
    columns = np.stack([slope * plane for slope in slopes for plane in planes])
    pulls = np.stack([_sum_blocks(rest * column, block, block).ravel() for column in columns])
    columns = columns.reshape(len(columns), -1)
    inverse = np.linalg.inv(columns @ columns.T)
    change = (inverse @ pulls.sum(1)).reshape(2, 2, 3)
    one, two = (layer.lattice.reciprocal for layer in layers)
    back = np.linalg.inv(one)
    link = two @ back
    # Planes go from -1 to 1; the link's change is linear in those of both lattices.
    half = 0.5 * np.array(rest.shape)
    steps = (inverse @ pulls).reshape(2, 2, 3, -1)[:, :, 1:] / half[:, None]
    turned = np.einsum("ijb,jk->ikb", steps[1] - np.einsum("ij,jkb->ikb", link, steps[0]), back).reshape(
        4, -1
    )
    return change, link, turned @ turned.T


def _grid(shape: tuple[int, ...]) -> tuple[Float, Float]:
    """Rows and columns from -1 to 1."""
    down, across = ((np.arange(side) + 0.5) / (0.5 * side) - 1.0 for side in shape)
    return np.asarray(down[:, None], float), np.asarray(across[None], float)


def _find_slopes(layer: Layer) -> tuple[Float, Float]:
    """How a layer's image changes with either of its coordinates."""
    side = len(layer.cell)
    places = (layer.phases.cell % 1.0) * side - 0.5
    slopes = (0.5 * side * (np.roll(layer.cell, -1, axis) - np.roll(layer.cell, 1, axis)) for axis in (0, 1))
    one, two = (
        np.asarray(ndimage.map_coordinates(slope, places, order=1, mode="grid-wrap")) for slope in slopes
    )
    return one, two


def _sum_blocks(values: Float, high: int = _BLOCK_PX, wide: int = _BLOCK_PX) -> Float:
    """Sums over blocks of pixels."""
    rows, cols = (-side % block for side, block in zip(values.shape, (high, wide), strict=True))
    padded = np.pad(values, ((0, rows), (0, cols)))
    return np.asarray(padded.reshape(padded.shape[0] // high, high, -1, wide).sum((1, 3)))


def _widen(values: Float, shape: tuple[int, ...]) -> Float:
    """From blocks back to pixels."""
    wide = ndimage.zoom(values, _BLOCK_PX, order=1, mode="nearest", grid_mode=True)
    return np.asarray(wide[: shape[0], : shape[1]])


def _find_slide(rest: Float, layers: list[Layer], window: float) -> tuple[Float, float, Float]:
    """By how many pixels the second layer lies off its place against the first, shape (2, rows, cols), without what
    shifts and turns it as a whole; the share of its variance that is no noise; and the variance that is."""
    one, two = (np.asarray(np.gradient(repeat_mean(layer)), float) for layer in layers)
    # What the scan still moves, and by what both layers move against each other.
    columns = [first + second for first, second in zip(one, two, strict=True)]
    columns += [0.5 * (second - first) for first, second in zip(one, two, strict=True)]
    sigma = window / _BLOCK_PX
    blocks = [_sum_blocks(rest * column) for column in columns]
    pull = np.stack([ndimage.gaussian_filter(block, sigma) for block in blocks], axis=-1)
    squares, scatter = (np.empty((*pull.shape[:2], 4, 4)) for _ in range(2))
    for i, j in itertools.combinations_with_replacement(range(4), 2):
        made = ndimage.gaussian_filter(_sum_blocks(columns[i] * columns[j]), sigma)
        squares[..., i, j] = squares[..., j, i] = made
        noise = ndimage.gaussian_filter(blocks[i] * blocks[j], sigma / np.sqrt(2.0))
        scatter[..., i, j] = scatter[..., j, i] = noise / (4.0 * np.pi * sigma**2)
    # Where columns of both layers lie on each other, nothing tells them apart: there the neighbourhood decides.
    squares += _RIDGE * np.eye(4) * np.einsum("rcii->i", squares) / pull[..., 0].size
    back = np.linalg.inv(squares)
    found = np.einsum("rcij,rcj->irc", back, pull)[2:]
    variance = np.einsum("rcij,rcjk,rcki->irc", back, scatter, back)[2:]
    planes = np.stack(
        [np.ones(found[0].size), *(g.ravel() for g in np.broadcast_arrays(*_grid(found[0].shape)))]
    )
    flat = found.reshape(2, -1)
    flat = flat - (np.linalg.lstsq(planes.T, flat.T, rcond=None)[0].T @ planes)
    share = max(1.0 - float(variance.mean()) / max(float(np.square(flat).mean()), 1e-300), 0.0)
    slid = np.stack([_widen(part.reshape(found[0].shape), rest.shape) for part in flat])
    return slid, share, _widen(variance.mean(0), rest.shape)


def repeat_mean(layer: Layer) -> Float:
    """The mean cell of a layer in place of every one."""
    places = (layer.phases.cell % 1.0) * len(layer.cell) - 0.5
    return np.asarray(ndimage.map_coordinates(layer.cell, places, order=1, mode="grid-wrap"))


def _find_flow(rest: Float, model: Float, window: float) -> Float:
    """Displacement, shape (2, rows, cols), by which the model must be sampled elsewhere to be the image (Lucas and
    Kanade 1981)."""
    down, across = np.gradient(model)
    dd, da, aa, rd, ra = (
        blur(np.asarray(one), window)
        for one in (down**2, down * across, across**2, rest * down, rest * across)
    )
    root = np.maximum(dd * aa - da**2, 1e-300)
    return np.stack([(aa * rd - da * ra) / root, (dd * ra - da * rd) / root])


def _find_jumps(rest: Float, model: Float) -> Float:
    """How far each row jumps along itself, pixels."""
    across = np.gradient(model, axis=1)
    raw = (rest * across).sum(1) / np.maximum((across**2).sum(1), 1e-300)
    noise = float(np.median(_find_jump_noise(rest, across)))
    # What exceeds the noise counts.
    return np.asarray(max(1.0 - noise / max(float(raw.var()), 1e-300), 0.0) * raw)


def _find_jump_noise(rest: Float, across: Float) -> Float:
    """Variance of the displacement of each row."""
    return np.square(_sum_blocks(rest * across, 1)).sum(1) / np.maximum((across**2).sum(1), 1e-300) ** 2


def _find_place_error(rest: Float, model: Float, jumps: Float, window: float) -> Float:
    """1-sigma error of a place, mean of both axes, by the scatter of blocks: of the displacement within a window, and
    of what the jumps of rows keep of the noise."""
    down, across = np.asarray(np.gradient(model), float)
    total = np.zeros(rest.shape)
    for slope in (down, across):
        scatter = blur(np.square(_sum_blocks(rest * slope)), window / np.sqrt(2.0) / _BLOCK_PX)
        pull = _widen(scatter, rest.shape) / (4.0 * np.pi * window**2 * _BLOCK_PX**2)
        total += 0.5 * _FLOW_GAIN * pull / np.maximum(blur(slope**2, window), 1e-300) ** 2
    row = float(np.median(_find_jump_noise(rest, across)))
    kept = float(np.var(jumps))
    # A place lies between two rows.
    return np.sqrt(total + 0.5 * (2.0 / 3.0) * row * kept / (kept + row))
