"""The lattice of a movie: found in its first frames, then followed through drift, so that a site keeps its number.

Each frame's lattice numbers its own sites. Bragg phases fix the drift from one frame to the next up to a lattice
vector; what does not repeat picks the vector.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage

from flatscope.electron.lattice import (
    Lattice,
    NoLatticeError,
    Phases,
    find_honeycomb,
    find_lattice,
    fold_cell,
    map_phases,
)
from flatscope.electron.physics.crystals import Crystal
from flatscope.electron.scans import calibrate, order_sublattices, refuse_stack
from flatscope.electron.sites import Sites, level, list_sites
from flatscope.micrograph import Calibration, MicrographError, Movie, Stack

Float = NDArray[np.float64]
Real = NDArray[np.float32]
Whole = NDArray[np.int64]

FIRST_FRAMES = 30  # frames from which the lattice, the mean cell and the brightness of defects are learned
_LOCAL_POWER = 25.0  # Bragg power over noise from which a frame's own distortions are followed
_GRID_PX = 16  # spacing of the pixels whose lattice coordinates are kept
_NOISE_Z = 2.5  # residuals below this many sigmas count as noise when frames are compared
_CAP_Z = 8.0  # residuals above this many sigmas weigh no more than this
_POINT_CELLS = 0.25  # Gaussian (1 sigma, lattice constants) that residuals are blurred by
_WIDE_CELLS = 0.7  # Gaussian whose blur is subtracted, so that only points are left
_REACH_CELLS = 6  # largest drift between two frames, in lattice vectors
_STEADY_CELLS = 1.0  # change of the drift from frame to frame (1 sigma, lattice constants)


@dataclass(frozen=True)
class MovieLattice:
    """What the first frames tell about the lattice.

    Parameters
    ----------
    crystal
        The material.
    lattice
        Its vectors in pixels.
    places
        Where in the unit cell the sites lie, the brighter one first, shape (2, 2).
    first
        Which sublattice the brighter one is, 0 or 1.
    sure
        Whether brightness tells the sublattices apart, or the user did.
    """

    crystal: Crystal
    lattice: Lattice
    places: Float
    first: int
    sure: bool

    def list_sites(self, phases: Phases) -> Sites:
        """All sites of a frame with these phases."""
        return list_sites(phases, self.places, first=self.first)

    def place(self, cells: Whole, sublattice: int) -> Float:
        """Where sites lie in a perfect lattice, pixels (row, col)."""
        at = self.places[0 if sublattice == self.first else 1]
        return np.asarray((cells + at) @ self.lattice.vectors)


@dataclass(frozen=True)
class Landmarks:
    """What of a frame the next one is compared with.

    Parameters
    ----------
    residual
        Shape (rows, cols): points that do not repeat.
    cell
        Lattice coordinates on a coarse grid, shape (2, n, m).
    """

    residual: Real
    cell: Real


class Drift:
    """The drift of a specimen through a movie, frame by frame.

    `px` holds where the specimen lies in each frame against the first, `offsets` what is to be added to each frame's
    cell numbers so that they are those of the first frame.
    """

    def __init__(self, lattice: Lattice) -> None:
        self.px: list[Float] = []
        self.offsets: list[Whole] = []
        self._lattice = lattice
        self._before: Landmarks | None = None
        self._step = np.zeros(2)

    def add(self, seen: Landmarks) -> None:
        """Compare the next frame with the one before."""
        if self._before is None:
            self.px, self.offsets = [np.zeros(2)], [np.zeros(2, np.int64)]
        else:
            self._step = _find_shift(self._before, seen, self._lattice, expected=self._step)
            self.px.append(self.px[-1] + self._step)
            self.offsets.append(self.offsets[-1] + _find_slip(self._before, seen, self._step))
        self._before = seen


def take_first(movie: Movie) -> list[NDArray[Any]]:
    """The first frames that can be read, all of one size.

    Raises
    ------
    MicrographError
        If there is none.
    """
    first: list[NDArray[Any]] = []
    reasons: list[str] = []
    for frame in movie:
        if isinstance(frame, MicrographError):
            reasons.append(str(frame))
        elif not first or frame.shape == first[0].shape:
            first.append(frame)
        if len(first) == FIRST_FRAMES:
            break
    if not first:
        why = f": the first one {reasons[0]}" if reasons else ""
        raise MicrographError(f"{movie.source}: none of its frames can be read{why}")
    return first


def learn_lattice(
    images: Float, movie: Movie, crystal: Crystal, notes: list[str], *, brighter: str
) -> tuple[MovieLattice, Calibration]:
    """Find the lattice of the first frames together, and the pixel size by it.

    Parameters
    ----------
    images
        Shape (frames, rows, cols), see `take_first`.
    movie
        States the pixel size, if anything does.
    crystal
        The material.
    notes
        What a reader should know is added.
    brighter
        See `flatscope.electron.defects.DefectParams`.

    Raises
    ------
    MicrographError
        If the frames are not periodic, their lattice is not this material's, or there are two.
    """
    stated = None if movie.calibration is None else float(np.mean(movie.calibration.pixel_size_nm))
    try:
        lattice = find_lattice(images, expected_px=None if stated is None else crystal.lattice_nm / stated)
    except NoLatticeError as error:
        raise MicrographError(f"{movie.source}: not periodic: {error}") from None
    calibration = calibrate(Stack(images[:1], movie.calibration, movie.source, "-"), lattice, crystal, notes)
    cells = [fold_cell(level(image, lattice.constant_px), find_phases(image, lattice)) for image in images]
    refuse_stack(images[0], find_phases(images[0], lattice), movie.source)
    places, bright = find_honeycomb(np.mean(cells, axis=0))
    first, sure = order_sublattices(bright, crystal, notes, brighter=brighter)
    return MovieLattice(crystal, lattice, places, first, sure), calibration


def find_phases(image: Float, lattice: Lattice) -> Phases:
    """Where in its unit cell each pixel lies: followed through the image where its lattice is clear, else rigid."""
    flat = image - image.mean()
    window = np.outer(*(np.hanning(side) for side in image.shape))
    noise = float(np.median(np.abs(fft.rfft2(flat * window)) ** 2))
    rows, cols = (np.arange(side) for side in image.shape)
    angles, powers = [], []
    for down, across in (*lattice.reciprocal, lattice.reciprocal[1] - lattice.reciprocal[0]):
        turn = np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None]
        wave = (flat * window * turn).sum()
        angles.append(float(np.angle(wave)))
        powers.append(abs(wave) ** 2 / max(noise, 1e-300))
    if min(powers) > _LOCAL_POWER:
        return map_phases(image, lattice)
    grid = np.stack(np.broadcast_arrays(rows[:, None], cols[None])).astype(float)
    cell = np.tensordot(lattice.reciprocal, grid, 1) + np.array(angles[:2])[:, None, None] / (2.0 * np.pi)
    return Phases(cell, np.ones(image.shape, bool), lattice)


def find_landmarks(residual: Float, phases: Phases) -> Landmarks:
    """What to compare the next frame with.

    Parameters
    ----------
    residual
        What does not repeat, in units of its noise; shape (rows, cols).
    phases
        Of the frame.
    """
    constant_px = phases.lattice.constant_px
    kept = np.where(np.abs(residual) > _NOISE_Z, np.clip(residual, -_CAP_Z, _CAP_Z), 0.0)
    points, wide = (
        ndimage.gaussian_filter(kept, cells * constant_px) for cells in (_POINT_CELLS, _WIDE_CELLS)
    )
    coarse = phases.cell[:, ::_GRID_PX, ::_GRID_PX]
    return Landmarks((points - wide).astype(np.float32), coarse.astype(np.float32))


def _find_shift(before: Landmarks, after: Landmarks, lattice: Lattice, *, expected: Float) -> Float:
    """By how much the specimen has moved in the image (rows, cols), pixels.

    Bragg phases fix the shift up to a lattice vector. The residuals pick the vector, close to the previous shift.

    Parameters
    ----------
    before, after
        Two frames.
    lattice
        Of the movie.
    expected
        The previous shift.
    """
    apart = (after.cell - before.cell).reshape(2, -1)
    turn = np.exp(2j * np.pi * apart)
    # A crystal point keeps its lattice coordinate: where it was `apart` less, it has moved by as much back.
    part = -np.angle(turn.mean(1)) / (2.0 * np.pi)
    spectrum = fft.rfft2(after.residual) * np.conj(fft.rfft2(before.residual))
    match = fft.irfft2(spectrum, after.residual.shape)
    match = (match - match.mean()) / max(float(match.std()), 1e-12)
    steps = np.arange(-_REACH_CELLS, _REACH_CELLS + 1)
    cells = np.array(list(itertools.product(steps, steps)), float) + part
    shifts = cells @ lattice.vectors
    shape = np.array(match.shape)
    places = (shifts % shape).T
    score = ndimage.map_coordinates(match, places, order=1, mode="grid-wrap")
    away = np.hypot(*(shifts - expected).T) / (_STEADY_CELLS * lattice.constant_px)
    return np.asarray(shifts[int((score - 0.5 * away**2).argmax())])


def _find_slip(before: Landmarks, after: Landmarks, shift: Float) -> Whole:
    """What to add to a frame's cell numbers to get those of the frame before."""
    _, rows, cols = before.cell.shape
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")).astype(float)
    there = grid + shift[:, None, None] / _GRID_PX
    inside = ((there >= 0.0) & (there <= np.array([rows, cols])[:, None, None] - 1.0)).all(0)
    if not inside.any():
        inside = np.ones_like(inside)
    moved = np.stack(
        [ndimage.map_coordinates(one, there[:, inside], order=1, mode="nearest") for one in after.cell]
    )
    return np.asarray(np.rint(np.median(before.cell[:, inside] - moved, axis=1)).astype(np.int64))
