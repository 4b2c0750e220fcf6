"""Twisted bilayers drawn by multislice (extra: multislice), beside the same ones drawn by the fast model.

At some angles the lattices of two layers share a cell: 13.17° has 19 of each, 21.79° has 7. The mean image of that cell
repeats, so that multislice of a small field gives a large one, which is then scanned with the noise of all others here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.drawing.noise import scan
from flatscope.electron.drawing.specimens import Scanned, draw_noise
from flatscope.electron.drawing.stacks import (
    BilayerParams,
    LayerParams,
    ScannedBilayer,
    build_bilayer,
    draw_distortion,
)
from flatscope.electron.physics.crystals import Sheet, find_crystal
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.electron.physics.multislice import simulate_adf
from flatscope.evaluation.metrics import Score
from flatscope.evaluation.moire import DISTORTED, PIXEL_NM, SIDE_PX, gather_scores, score_stack

Float = NDArray[np.float64]

_OPTICS = ScanParams(PIXEL_NM, voltage_kv=80.0, convergence_mrad=30.0, collection_mrad=(70.0, 200.0))
_SAMPLING_NM = 0.0069  # of the wave: two thirds of its frequencies reach 200 mrad at 80 kV
_SIDES = {(2, 3): (71, 123), (1, 2): (41, 71)}
"""Of the shared cell, pixels across and down, nearest to one by the root of three, at about 0.02 nm a pixel."""
_LEAST_NM = 1.35  # smallest field that a probe fits into; smaller cells are repeated
_PHONONS = 4  # configurations of vibrating atoms
_INSIDE = np.array([0.0123, 0.0217])  # nm, so that no atom lies on the rim of the cell


@dataclass(frozen=True)
class CellScore(Score):
    """The fast model against multislice on the shared cell of two layers, both scaled to the same mean.

    `difference` is the rms difference of both images over the standard deviation of that by multislice, `contrast` the
    standard deviation by the fast model over that by multislice, `brightest` the same for their brightest pixels, where
    columns lie on each other.
    """

    material: str
    twist_deg: float
    cell_nm: str
    difference: float
    contrast: float
    brightest: float


def evaluate_multislice(
    *,
    material: str = "MoS2",
    count: int = 4,
    seed: int = 37,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Score], list[Score]]:
    """Measure bilayers by multislice and by the fast model; the noise is the same.

    Parameters
    ----------
    material
        Of both layers.
    count
        Images of each model and angle.
    seed
        Of vibrations, distortions and noise.
    cache
        Folder that keeps the images by multislice: a second start takes up what is there.
    on_progress
        Called with the number of images done and their total.

    Returns
    -------
    How the models differ, and the scores of both.

    Raises
    ------
    MultisliceError
        If abTEM is not installed.
    """
    cells: list[Score] = []
    scores: list[Score] = []
    done, total = 0, 2 * count * len(_SIDES)
    for index in _SIDES:
        sheet, layer, size = build_cell(material, index)
        exact = _simulate(sheet, size, index, seed=seed, cache=cache, name=material)
        fast = draw_adf(sheet, _focus(size, exact.shape), shape=exact.shape)
        cells.append(_compare(material, index, size, exact, fast))
        for name, mean in (("multislice", exact), ("fast model", fast)):
            rows = []
            for number in range(count):
                rng = np.random.default_rng([seed, index[0], number])
                rows.append(score_stack(_scan_cell(rng, mean, sheet, layer, size, material, index)))
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
            scores.append(gather_scores(rows, f"{material}, {name}", f"{find_twist(index):.2f}"))
    return cells, scores


def find_twist(index: tuple[int, int]) -> float:
    """Angle of two lattices that share a cell: (m, n) of one lies on (n, m) of the other; degrees."""
    m, n = index
    return float(np.rad2deg(np.arccos((m * m + 4 * m * n + n * n) / (2.0 * (m * m + m * n + n * n)))))


def build_cell(material: str, index: tuple[int, int]) -> tuple[Sheet, NDArray[np.int64], tuple[float, float]]:
    """Two layers within one rectangle that repeats, the layer of each site, and its height and width (nm)."""
    m, n = index
    across = find_crystal(material).lattice_nm * float(np.sqrt(m * m + m * n + n * n))
    half = 0.5 * find_twist(index)
    # (m, n) of the first layer lies along the columns: 30° off the mean of its vectors, less half of the twist.
    layers = tuple(LayerParams(material, -30.0 + sign * half) for sign in (-1.0, 1.0))
    down = float(np.sqrt(3.0)) * across
    times = (int(np.ceil(_LEAST_NM / down)), int(np.ceil(_LEAST_NM / across)))
    size = (times[0] * down, times[1] * across)
    wide = (size[0] + 1.0, size[1] + 1.0)
    whole, layer = build_bilayer(np.random.default_rng(0), BilayerParams(layers), field_nm=wide)
    atoms, sites = (np.asarray(places)[:, :2] - _INSIDE for places in (whole.positions_nm, whole.sites_nm))
    inside, seen = (((at >= 0.0) & (at < np.array(size))).all(1) for at in (atoms, sites))
    moved = np.column_stack([atoms, whole.positions_nm[:, 2]])
    sheet = Sheet(
        whole.numbers[inside], moved[inside], sites[seen], whole.sublattice[seen], whole.species[seen]
    )
    return sheet, layer[seen], size


def _focus(size: tuple[float, float], shape: tuple[int, ...]) -> ScanParams:
    return replace(_OPTICS, pixel_nm=size[1] / shape[1])


def _simulate(
    sheet: Sheet,
    size: tuple[float, float],
    index: tuple[int, int],
    *,
    seed: int,
    cache: Path | None,
    name: str,
) -> Float:
    """The mean image of the cell by multislice, from the cache where it is there."""
    cols, rows = _SIDES[index]
    across = find_crystal(name).lattice_nm * np.sqrt(index[0] ** 2 + index[0] * index[1] + index[1] ** 2)
    shape = (rows * round(size[0] / (across * np.sqrt(3.0))), cols * round(size[1] / across))
    kept = None if cache is None else cache / f"{name}_{find_twist(index):.2f}_{seed}.npy"
    if kept is not None and kept.exists():
        return np.asarray(np.load(kept), float)
    rng = np.random.default_rng([seed, *index])
    optics = _focus(size, shape)
    mean = simulate_adf(sheet, optics, shape=shape, phonons=_PHONONS, rng=rng, sampling_nm=_SAMPLING_NM)
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(kept, mean)
    return mean


def _compare(
    material: str, index: tuple[int, int], size: tuple[float, float], exact: Float, fast: Float
) -> CellScore:
    scaled = fast * float(exact.mean() / fast.mean())
    spread = float(exact.std())
    return CellScore(
        material=material,
        twist_deg=find_twist(index),
        cell_nm=f"{size[0]:.2f} x {size[1]:.2f}",
        difference=float(np.sqrt(np.square(scaled - exact).mean())) / spread,
        contrast=float(scaled.std()) / spread,
        brightest=float(np.quantile(scaled, 0.999) / np.quantile(exact, 0.999)),
    )


def _scan_cell(
    rng: np.random.Generator,
    mean: Float,
    sheet: Sheet,
    layer: NDArray[np.int64],
    size: tuple[float, float],
    material: str,
    index: tuple[int, int],
) -> ScannedBilayer:
    """A field of repeated cells as the scan distorts it, with noise."""
    distortion = draw_distortion(rng, DISTORTED)
    back = np.linalg.inv(np.array(distortion))
    middle = 0.5 * SIDE_PX * PIXEL_NM
    grid = (np.mgrid[0:SIDE_PX, 0:SIDE_PX] * PIXEL_NM - middle).reshape(2, -1)
    cells = (back @ grid) / np.array(size)[:, None]
    places = (cells % 1.0) * np.array(mean.shape)[:, None]
    field = ndimage.map_coordinates(mean, places, order=3, mode="grid-wrap").reshape(SIDE_PX, SIDE_PX)
    field *= 10.0 / float(field.mean())
    reach = [int(np.ceil(0.6 * SIDE_PX * PIXEL_NM / side)) for side in size]
    steps = np.stack(np.meshgrid(*(np.arange(-far, far) for far in reach), indexing="ij"), axis=-1).reshape(
        -1, 2
    )
    sites = (sheet.sites_nm[None] + (steps * np.array(size))[:, None]).reshape(-1, 2)
    at = sites @ np.array(distortion).T + middle
    kept = ((at >= 0.0) & (at < SIDE_PX * PIXEL_NM)).all(1)
    noise = draw_noise(rng)
    seen, moved = scan(rng, np.maximum(field, 0.0), noise, sites_px=at[kept] / PIXEL_NM)
    many = [np.tile(one, len(steps))[kept] for one in (sheet.sublattice, sheet.species, layer)]
    whole = Sheet(np.zeros(0, int), np.zeros((0, 3)), moved * PIXEL_NM, many[0], many[1])
    scanned = Scanned(seen, field.astype(np.float32), whole, _OPTICS, noise)
    half = 0.5 * find_twist(index)
    layers = (LayerParams(material, -half), LayerParams(material, half))
    return ScannedBilayer(scanned, many[2], BilayerParams(layers, distortion=distortion))
