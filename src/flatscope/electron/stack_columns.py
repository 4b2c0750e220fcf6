"""Both lattices of a stack followed through an image, and the columns of each.

Each lattice is followed by the phases of its Bragg peaks in what the other's mean cell leaves, in turn. What the scan
then still moves, it moves for both layers alike: that is found from the image against the sum of both.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage, sparse
from scipy.sparse.linalg import cg
from scipy.spatial import cKDTree
from skimage.restoration import unwrap_phase

from flatscope.electron.columns import weigh_species
from flatscope.electron.lattice import (
    Lattice,
    Phases,
    blur,
    find_honeycomb,
    fold_cell,
    place_sites,
    repeat_cell,
)
from flatscope.electron.physics.crystals import Crystal
from flatscope.electron.stacking import Other, evaluate_polynomial, fit_polynomial
from flatscope.results import mark

Float = NDArray[np.float64]

_LEVEL_CELLS = 2.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_PHASE_CELLS = 4.0  # Gaussian that phases are averaged over: the other lattice must not be seen through it
_ROUNDS = 3  # of following both lattices in turn
_FLOW_CELLS = 1.5  # Gaussian over which the scan's displacement is the same
_FLOW_ROUNDS = 2
_WIDTH_NM = 0.045  # Gaussian (1 sigma) that columns are weighed by
_UNRESOLVED_NM = 0.06  # columns of two layers nearer than this are one spot
_SURE_P = 0.8  # probability of its species from which a column is accepted
OVERLAPPING = "overlapping: not resolved"


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
    """Both lattices of a bilayer, what they leave of the image, and how far each row jumps along itself (pixels)."""

    layers: tuple[Layer, Layer]
    rest: Float
    jumps: Float


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
    moved, jumps = np.zeros((2, *flat.shape)), np.zeros(len(flat))
    for _ in range(_FLOW_ROUNDS):
        moved += _find_flow(flat, models[0] + models[1], _FLOW_CELLS * lattices[0].constant_px)
        jumped = _find_jumps(flat, models[0] + models[1])
        moved[1] += jumped[:, None]
        jumps += jumped
        for number, layer in enumerate(layers):
            phases = replace(layer.phases, cell=_locate(layer.path, flat.shape, moved))
            rest = flat - models[1 - number]
            layers[number] = replace(layer, phases=phases, cell=fold_cell(rest, phases))
            models[number] = repeat_cell(rest, phases)
    return Pair((layers[0], layers[1]), flat - models[0] - models[1], jumps)


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
    scaled = _scale(grid.astype(float), rest.shape)
    cells = (
        angles[0].ravel() + left.ravel() + plain[0],
        angles[1].ravel() - left.ravel() + plain[1],
    )
    path = np.stack([fit_polynomial(scaled, cell) for cell in cells])
    cell = _locate(path, rest.shape, None)
    # The mean lattice by a plane through the coordinates.
    terms = np.column_stack([grid.T, np.ones(grid.shape[1])])
    at = np.stack([cell[0][grid[0], grid[1]], cell[1][grid[0], grid[1]]])
    reciprocal = np.linalg.lstsq(terms, at.T, rcond=None)[0][:2].T
    phases = Phases(cell, np.ones(rest.shape, bool), Lattice(np.asarray(reciprocal, float), lattice.power))
    return Layer(phases.lattice, path, phases, fold_cell(rest, phases))


def _scale(places: Float, shape: tuple[int, ...]) -> Float:
    """Pixels from -1 to 1 over the image."""
    half = 0.5 * np.array(shape).reshape((2,) + (1,) * (places.ndim - 1))
    return np.asarray((places + 0.5) / half - 1.0)


def _locate(path: Float, shape: tuple[int, ...], moved: Float | None) -> Float:
    """Lattice coordinates of each pixel, displaced by `moved` (2, rows, cols) pixels."""
    axes = [_scale(np.arange(side, dtype=float)[None].repeat(2, 0), (side, side))[0] for side in shape]
    cell = np.stack([evaluate_polynomial(one, *axes) for one in path])
    if moved is None:
        return cell
    slopes = [np.stack(np.gradient(one)) for one in cell]
    return np.stack([one + (slope * moved).sum(0) for one, slope in zip(cell, slopes, strict=True)])


def _find_flow(image: Float, model: Float, window: float) -> Float:
    """Displacement, shape (2, rows, cols), by which the model must be sampled elsewhere to be the image (Lucas and
    Kanade 1981)."""
    down, across = np.gradient(model)
    rest = image - model
    dd, da, aa, rd, ra = (
        blur(np.asarray(one), window)
        for one in (down**2, down * across, across**2, rest * down, rest * across)
    )
    root = np.maximum(dd * aa - da**2, 1e-300)
    return np.stack([(aa * rd - da * ra) / root, (dd * ra - da * rd) / root])


def _find_jumps(image: Float, model: Float) -> Float:
    """How far each row jumps along itself, pixels."""
    across = np.gradient(model, axis=1)
    rest = image - model
    raw = (rest * across).sum(1) / np.maximum((across**2).sum(1), 1e-300)
    noise = rest.var(1) / np.maximum((across**2).sum(1), 1e-300)
    # What exceeds the noise counts.
    kept = max(1.0 - float(np.median(noise)) / max(float(raw.var()), 1e-300), 0.0)
    return np.asarray(kept * raw)


# --- columns ---------------------------------------------------------------------------------------------------------


def find_places(layer: Layer) -> tuple[Float, Float]:
    """Where in a layer's cell its two sites lie, the brighter first, and their brightness: see `find_honeycomb`.

    The cell is the same after a third of a turn about a site, so the phases of three of its waves 120° apart are alike
    there: that places the sites between the bins of the cell.
    """
    places, bright = find_honeycomb(layer.cell)
    side = len(layer.cell)
    index = np.array([(1, 0), (-1, 1), (0, -1)])
    waves = fft.fft2(layer.cell)[index[:, 0], index[:, 1]]
    waves = waves * np.exp(2j * np.pi * (index @ (places[0] - 0.5 / side)))
    turned = np.angle(waves * np.conj(waves.sum())) / (2.0 * np.pi)
    shift = np.linalg.lstsq(index.astype(float), -turned, rcond=None)[0]
    return (places + shift) % 1.0, bright


def list_columns(
    pair: Pair, places: list[Float], crystals: tuple[Crystal, Crystal], *, pixel_nm: float, image: str
) -> pd.DataFrame:
    """All columns of both layers from top to bottom, with what stands in each.

    Parameters
    ----------
    places
        Of the first and the second sublattice in the cell of each layer.
    crystals
        Of both layers.
    pixel_nm
        Pixel size.
    image
        Name of the picture.
    """
    parts = []
    for number, (layer, crystal) in enumerate(zip(pair.layers, crystals, strict=True)):
        for kind in (0, 1):
            at, _ = place_sites(layer.phases, places[number][kind])
            part = pd.DataFrame({"row_px": at[:, 0], "col_px": at[:, 1], "layer": number + 1, "kind": kind})
            parts.append(part.assign(material=crystal.name, sublattice=crystal.sublattices[kind]))
    frame = pd.concat(parts, ignore_index=True)
    frame["sigma_px"] = _find_place_error(pair)
    frame = frame.assign(image=image, status="accepted", reason="", species="", species_p=0.0)
    excess = _weigh(pair, frame, _WIDTH_NM / pixel_nm)
    for number, crystal in enumerate(crystals):
        usual = _find_heights(pair.layers[number], places[number], _WIDTH_NM / pixel_nm)
        for kind in (0, 1):
            mine = np.flatnonzero((frame["layer"] == number + 1) & (frame["kind"] == kind))
            if not len(mine):
                continue
            ratio = 1.0 + excess[mine] / usual[kind]
            noise = np.full(len(mine), 1.4826 * float(np.median(np.abs(ratio - np.median(ratio)))))
            names, p = weigh_species(ratio, noise, crystal, kind)
            frame.loc[mine, "species"], frame.loc[mine, "species_p"] = names, p
            frame.loc[mine, "intensity"], frame.loc[mine, "intensity_sigma"] = ratio, noise
    return _finish_columns(frame, pair.rest.shape, pixel_nm)


def _finish_columns(frame: pd.DataFrame, shape: tuple[int, ...], pixel_nm: float) -> pd.DataFrame:
    """Rows with status, number and places in nm."""
    at = frame[["row_px", "col_px"]].to_numpy(float)
    gap = np.full(len(frame), np.inf)
    for number in (1, 2):
        mine, others = (frame["layer"] == number).to_numpy(), (frame["layer"] != number).to_numpy()
        gap[mine] = cKDTree(at[others]).query(at[mine])[0] * pixel_nm
    rim = _WIDTH_NM / pixel_nm
    cut = ((at < rim) | (at > np.array(shape) - 1.0 - rim)).any(1)
    unsure = frame["species_p"] < _SURE_P
    frame = mark(frame, unsure, status="uncertain", reason="its brightness fits two species")
    frame = mark(frame, gap < _UNRESOLVED_NM, status="uncertain", reason=OVERLAPPING)
    frame = mark(frame, cut, status="rejected", reason="cut by the border")
    frame["x_nm"], frame["y_nm"] = frame["col_px"] * pixel_nm, frame["row_px"] * pixel_nm
    frame["sigma_nm"] = frame["sigma_px"] * pixel_nm
    frame = frame.sort_values(["row_px", "col_px"], ignore_index=True)
    return frame.assign(column_id=np.arange(1, len(frame) + 1))


def _find_heights(layer: Layer, places: Float, width: float) -> tuple[float, float]:
    """How bright the mean column of either sublattice is above the hollow, weighed as single columns are."""
    seen = 2.0 * ndimage.gaussian_filter(repeat_mean(layer), width)
    hollow, one, two = (
        float(np.median(ndimage.map_coordinates(seen, at.T, order=1)))
        for at in (place_sites(layer.phases, place)[0] for place in (2.0 * places[1] - places[0], *places))
    )
    return max(one - hollow, 1e-9), max(two - hollow, 1e-9)


def _find_place_error(pair: Pair) -> float:
    """1-sigma error of a place (pixels): of the scan's displacement and, along rows, of their jumps, by the noise."""
    slopes = np.gradient(repeat_mean(pair.layers[0]) + repeat_mean(pair.layers[1]))
    steep = 0.5 * float(np.mean(slopes[0] ** 2) + np.mean(slopes[1] ** 2))
    noise = float(np.var(pair.rest)) / steep
    row = noise / pair.rest.shape[1]
    jumps = float(np.var(pair.jumps))
    window = _FLOW_CELLS * pair.layers[0].lattice.constant_px
    return float(np.sqrt(noise / (4.0 * np.pi * window**2) + 0.5 * row * jumps / (jumps + row)))


def repeat_mean(layer: Layer) -> Float:
    """The mean cell of a layer in place of every one."""
    places = (layer.phases.cell % 1.0) * len(layer.cell) - 0.5
    return np.asarray(ndimage.map_coordinates(layer.cell, places, order=1, mode="grid-wrap"))


def _weigh(pair: Pair, frame: pd.DataFrame, width: float) -> Float:
    """How much more than usual stands in each column, all together: what neighbours within a width share is divided
    among them."""
    at = frame[["row_px", "col_px"]].to_numpy(float)
    seen = 2.0 * ndimage.gaussian_filter(pair.rest, width)
    values = ndimage.map_coordinates(seen, at.T, order=1, mode="nearest")
    near = cKDTree(at).query_pairs(4.0 * width, output_type="ndarray")
    overlap = np.exp(-np.square(at[near[:, 0]] - at[near[:, 1]]).sum(1) / (4.0 * width**2))
    count = len(at)
    shared = sparse.coo_matrix((overlap, (near[:, 0], near[:, 1])), shape=(count, count))
    matrix = (shared + shared.T + 1.02 * sparse.identity(count)).tocsr()
    return np.asarray(cg(matrix, values, rtol=1e-4, maxiter=200)[0])
