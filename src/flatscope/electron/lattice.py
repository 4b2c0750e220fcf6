"""The lattice in an image: Bragg peaks, its phase everywhere, the mean unit cell, sites and strain.

References
----------
Hÿtch, Snoeck and Kilaas 1998, doi:10.1016/S0304-3991(98)00035-7 (geometric phase).
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special
from skimage.restoration import unwrap_phase

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LEAST_PERIOD_PX = 2.3  # smallest resolved distance of lattice planes
_LEAST_PERIODS = 6  # lattice planes that an image must show
_LEAST_POWER = 60.0
"""A Bragg peak's power in one image over the median at its frequency; noise of a megapixel reaches about 20. In the
mean of several images' spectra less is as unlikely."""
_QUIET = 0.2  # quantile of a ring of frequencies from which its noise is estimated
_LEAST_SHARE = 0.1  # smallest noise, as a share of the mean power
_LEAST_EXPECTED = 25.0  # power that is enough where the lattice constant is known
_AS_EXPECTED = 1.15  # largest ratio to a known lattice constant
_MOST_PEAKS = 200  # Bragg peaks that are compared
_ANGLE_DEG = 12.0  # how far two reciprocal vectors may be from 60°, as scans distort
_LENGTH_RATIO = 1.2  # largest ratio of their lengths
_CLOSURE = 0.05  # largest distance of their difference from a third peak, as a share of their length
_ALIKE = 1.15  # ratio of their lengths up to which hexagons of peaks are compared
_ORDERS = (1, 3, 4)
"""Squared lengths of the shortest reciprocal vectors, in units of the first: a crystal's strongest peaks are among
these. A moiré pattern's lie far beyond its own first ones."""
_WINDOW_CELLS = 1.5  # Gaussian (1 sigma, lattice constants) that phases are averaged over
_STRAIN_CELLS = 0.75  # Gaussian that their slopes are averaged over
_LEAST_STRENGTH = 0.35  # amplitude over its median below which there is no crystal
_CELL_BINS = 36  # side of the mean unit cell
_BLOCKS_A_SIGMA = 5.0  # squares of pixels to one sigma, which wide filters work on
_ROUNDS = 12  # of the search for the pixel of a lattice coordinate


class NoLatticeError(ValueError):
    """The image shows no hexagonal lattice; the message names the one that was expected."""


@dataclass(frozen=True)
class Lattice:
    """A hexagonal lattice.

    Parameters
    ----------
    reciprocal
        Shape (2, 2): two vectors about 60° apart, each (cycles a pixel down the rows, along the columns).
    power
        That of the weakest of its three Bragg peaks over the noise at its frequency.
    """

    reciprocal: Float
    power: float

    @property
    def constant_px(self) -> float:
        """Lattice constant in pixels, the mean of three directions."""
        third = self.reciprocal[1] - self.reciprocal[0]
        lengths = np.hypot(*np.vstack([self.reciprocal, third]).T)
        return float(2.0 / np.sqrt(3.0) / lengths.mean())

    @property
    def vectors(self) -> Float:
        """Lattice vectors in pixels, shape (2, 2), each (rows, cols)."""
        return np.asarray(np.linalg.inv(self.reciprocal).T)


@dataclass(frozen=True)
class Phases:
    """Where in its unit cell each pixel lies.

    Parameters
    ----------
    cell
        Shape (2, rows, cols): continuous lattice coordinates along both vectors of the lattice.
    crystal
        Shape (rows, cols): where there is a lattice.
    lattice
        The mean one.
    """

    cell: Float
    crystal: Mask
    lattice: Lattice


def blur(image: NDArray[np.floating], sigma: float) -> Float:
    """Gaussian filter; a wide one works on means of squares of pixels, which takes a tenth of the time.

    Parameters
    ----------
    image
        Shape (rows, cols).
    sigma
        In pixels.
    """
    image = np.asarray(image, float)
    block = int(sigma // _BLOCKS_A_SIGMA)
    if block < 2:
        return np.asarray(ndimage.gaussian_filter(image, sigma))
    rows, cols = image.shape
    padded = np.pad(image, ((0, -rows % block), (0, -cols % block)), mode="symmetric")
    small = padded.reshape(padded.shape[0] // block, block, -1, block).mean((1, 3))
    # The squares have blurred a little already.
    small = ndimage.gaussian_filter(small, np.sqrt((sigma / block) ** 2 - 1.0 / 12.0))
    return _between(rows, len(small), block) @ small @ _between(cols, small.shape[1], block).T


def _between(fine: int, coarse: int, block: int) -> Float:
    """Matrix of linear interpolation from the middles of blocks to pixels, shape (fine, coarse)."""
    place = np.clip((np.arange(fine) + 0.5) / block - 0.5, 0.0, coarse - 1.0)
    left = np.minimum(place.astype(int), max(coarse - 2, 0))
    weights = np.zeros((fine, coarse))
    weights[np.arange(fine), left] = 1.0 - (place - left)
    weights[np.arange(fine), np.minimum(left + 1, coarse - 1)] += place - left
    return weights


def find_lattice(image: NDArray[np.floating], *, expected_px: float | None = None) -> Lattice:
    """Find the Bragg peaks of a hexagonal lattice.

    Parameters
    ----------
    image
        Shape (rows, cols), any units; or (images, rows, cols) of one field, whose spectra are averaged.
    expected_px
        Lattice constant where it is known: a lattice about as large is taken before another one, such as a support's.

    Raises
    ------
    NoLatticeError
        No three peaks 60° apart rise from the noise, neither of the whole field nor of a part of it.
    """
    images = image if image.ndim == 3 else image[None]
    # A crystal at the rim of the field is lost to the window: look at overlapping parts half as wide.
    high, wide = (side // 2 for side in images.shape[1:])
    parts = [
        images[:, top : top + high, left : left + wide]
        for top, left in itertools.product((0, high // 2, high), (0, wide // 2, wide))
    ]
    # What is expected anywhere comes before anything else.
    for wanted in (expected_px, None) if expected_px is not None else (None,):
        found: list[Lattice] = []
        for look in ([images], parts):
            for part in look:
                with contextlib.suppress(NoLatticeError):
                    found.append(_find_in(part, wanted))
            if found:
                return max(found, key=lambda lattice: lattice.power)
    return _find_in(images, None)


def _find_in(images: NDArray[np.floating], expected_px: float | None) -> Lattice:
    power = np.mean([_power(one / max(float(one.std()), 1e-300)) for one in images], axis=0)
    shape = np.array(power.shape)
    down, across = (np.fft.fftshift(np.fft.fftfreq(side)) for side in shape)
    frequency = np.hypot(down[:, None], across[None])
    ring = (frequency * shape.max() / 4.0).astype(int)
    order = np.argsort(ring, axis=None, kind="stable")
    bounds = np.searchsorted(ring.ravel()[order], np.arange(ring.max() + 2))
    flat = power.ravel()[order]
    # The peaks of a small crystal are wide: a low quantile of the ring is still noise, brought to the noise's median.
    low, middle = special.gammaincinv(len(images), (_QUIET, 0.5))
    floor = np.array(
        [
            np.quantile(flat[a:b], _QUIET) * middle / low if b > a else 1.0
            for a, b in itertools.pairwise(bounds)
        ]
    )
    # Where a filter has taken everything away, what little is left is no lattice.
    over = power / np.maximum(floor[ring], max(_LEAST_SHARE * float(power.mean()), 1e-300))
    over[(frequency < _LEAST_PERIODS / shape.min()) | (frequency > 1.0 / _LEAST_PERIOD_PX)] = 0.0
    least = _as_unlikely(_LEAST_POWER if expected_px is None else _LEAST_EXPECTED, len(images))
    tops = np.argwhere((over == ndimage.maximum_filter(over, 5)) & (over > least))
    tops = tops[np.argsort(over[tuple(tops.T)])[::-1][:_MOST_PEAKS]]
    if len(tops) < 6:
        raise NoLatticeError(
            f"no lattice: {len(tops)} Bragg peaks rise from the noise, a hexagon has six; the field must hold "
            f"{_LEAST_PERIODS} lattice planes or more"
        )
    places = (np.array([top_of(power, row, col) for row, col in tops]) - shape // 2) / shape
    found = _pick(places, over[tuple(tops.T)], expected_px)
    if found is None:
        raise NoLatticeError(
            f"no lattice: {len(tops)} Bragg peaks, but no three of them about 60° apart and as long: no hexagon, or "
            "a scan distorted by more than a fifth"
        )
    return found


def _as_unlikely(power: float, count: int) -> float:
    """Power over its median that the mean of `count` spectra of noise exceeds as rarely as one exceeds `power`."""
    return float(special.gammainccinv(count, 0.5**power) / special.gammaincinv(count, 0.5))


def _power(image: NDArray[np.floating]) -> Float:
    flat = image - blur(image, max(image.shape) / 16.0)
    window = np.outer(np.hanning(image.shape[0]), np.hanning(image.shape[1]))
    return np.asarray(np.abs(fft.fftshift(fft.fft2(flat * window))) ** 2)


def top_of(power: Float, row: int, col: int) -> tuple[float, float]:
    """The top of a peak between pixels, by parabolas through the logarithm."""
    if not (0 < row < power.shape[0] - 1 and 0 < col < power.shape[1] - 1):
        return float(row), float(col)
    near = np.log(power[row - 1 : row + 2, col - 1 : col + 2] + 1e-300)
    steps = []
    for before, here, after in ((near[0, 1], near[1, 1], near[2, 1]), (near[1, 0], near[1, 1], near[1, 2])):
        bend = 2.0 * here - before - after
        steps.append(float(np.clip(0.5 * (after - before) / bend, -0.5, 0.5)) if bend > 0 else 0.0)
    return row + steps[0], col + steps[1]


def _pick(places: Float, over: Float, expected_px: float | None) -> Lattice | None:
    """The hexagon of peaks that the strongest one is a low order of, where one is expected among those of that size."""
    length = np.hypot(*places.T)
    angle = np.rad2deg(np.arctan2(-places[:, 0], places[:, 1]))
    found = []
    for i, j in np.argwhere(
        (np.abs((angle[:, None] - angle[None] + 180.0) % 360.0 - 180.0 - 60.0) < _ANGLE_DEG)
        & (np.abs(np.log(length[:, None] / length[None])) < np.log(_LENGTH_RATIO))
    ):
        gap = np.hypot(*(places - (places[i] - places[j])).T)
        third = int(gap.argmin())
        if gap[third] < _CLOSURE * length[i]:
            found.append((min(over[i], over[j], over[third]), length[i], i, j))
    if not found:
        return None
    if expected_px is not None:
        length_of = 2.0 / np.sqrt(3.0) / expected_px
        found = [item for item in found if abs(np.log(item[1] / length_of)) < np.log(_AS_EXPECTED)]
        if not found:
            return None
    _, longest, strong, _ = max(found)
    first = min(
        length
        for _, length, i, j in found
        if _find_order(places[[i, j]], places[strong]) in _ORDERS and length < _ALIKE * longest
    )
    power, _, i, j = max(item for item in found if first / _ALIKE < item[1] < _ALIKE * first)
    return Lattice(places[[i, j]], float(power))


def _find_order(reciprocal: Float, place: Float) -> int:
    """Squared length of a reciprocal lattice vector in units of the first, 0 where there is no such vector."""
    exact = place @ np.linalg.inv(reciprocal)
    index = np.rint(exact)
    if np.hypot(*((index - exact) @ reciprocal)) > _CLOSURE * np.hypot(*reciprocal[0]) or not index.any():
        return 0
    # The two vectors are 60° apart.
    return int(index[0] ** 2 + index[1] ** 2 + index[0] * index[1])


def map_phases(image: NDArray[np.floating], lattice: Lattice) -> Phases:
    """Follow the lattice through the image, distortions of the scan included.

    Parameters
    ----------
    image
        Shape (rows, cols).
    lattice
        See `find_lattice`.
    """
    window = _WINDOW_CELLS * lattice.constant_px
    image = np.asarray(image, float)
    flat = image - blur(image, window)
    rows, cols = (np.arange(side) for side in image.shape)
    waves, third = [], lattice.reciprocal[1] - lattice.reciprocal[0]
    for down, across in (*lattice.reciprocal, third):
        carrier = np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None]
        wave = flat * carrier
        waves.append(blur(wave.real, window) + 1j * blur(wave.imag, window))
    strength = np.prod([np.abs(wave) / max(float(np.median(np.abs(wave))), 1e-300) for wave in waves], axis=0)
    crystal = np.asarray(strength > _LEAST_STRENGTH**3)
    cell = np.empty((2, *image.shape))
    for place, ((down, across), wave) in enumerate(zip(lattice.reciprocal, waves, strict=False)):
        angle = np.ma.array(np.angle(wave), mask=~crystal) if not crystal.all() else np.angle(wave)
        unwrapped = np.asarray(np.ma.filled(unwrap_phase(angle, rng=0), 0.0))
        cell[place] = unwrapped / (2.0 * np.pi) + down * rows[:, None] + across * cols[None]
    return Phases(cell, crystal, lattice)


def fold_cell(image: NDArray[np.floating], phases: Phases) -> Float:
    """The mean unit cell, shape (36, 36), along both lattice vectors."""
    place = np.floor((phases.cell[:, phases.crystal] % 1.0) * _CELL_BINS).astype(int) % _CELL_BINS
    index = place[0] * _CELL_BINS + place[1]
    total = np.bincount(index, np.asarray(image, float)[phases.crystal], _CELL_BINS**2)
    count = np.bincount(index, minlength=_CELL_BINS**2)
    mean = total.sum() / max(count.sum(), 1)
    return np.where(count > 0, total / np.maximum(count, 1), mean).reshape(_CELL_BINS, _CELL_BINS)


def repeat_cell(image: NDArray[np.floating], phases: Phases) -> Float:
    """The mean unit cell in place of every one."""
    cell = fold_cell(image, phases)
    places = (phases.cell % 1.0) * len(cell) - 0.5
    return np.asarray(ndimage.map_coordinates(cell, places, order=1, mode="grid-wrap"))


def find_honeycomb(cell: Float) -> tuple[Float, Float]:
    """Where in the mean cell the two sites of a honeycomb lie, and how bright they are.

    Parameters
    ----------
    cell
        See `fold_cell`.

    Returns
    -------
    Coordinates in the cell, shape (2, 2), the brighter site first, and brightness of both sites and of the hollow
    between them, shape (3,).
    """
    smooth = ndimage.gaussian_filter(cell, 1.5, mode="wrap")
    # Three places of three-fold symmetry; the hollow is the darkest of them. Their sum pattern is best where it fits.
    third = _CELL_BINS // 3
    one, two = (np.roll(smooth, (-k * third, -2 * k * third), axis=(0, 1)) for k in (1, 2))
    stack = np.stack([smooth, one, two])
    fit = stack[0] + stack[1] - 2.0 * stack[2]
    row, col = np.unravel_index(int(fit.argmax()), fit.shape)
    values = stack[:, row, col]
    places = (np.array([[row, col], [row + third, col + 2 * third]]) + 0.5) / _CELL_BINS
    bright = 0 if values[0] >= values[1] else 1
    return places[[bright, 1 - bright]] % 1.0, np.array([values[bright], values[1 - bright], values[2]])


def place_sites(phases: Phases, place: Float) -> tuple[Float, NDArray[np.int64]]:
    """All sites of one sublattice.

    Parameters
    ----------
    phases
        See `map_phases`.
    place
        Coordinates in the cell, shape (2,).

    Returns
    -------
    Positions (n, 2) as (row, col) within the image where there is crystal, and the cells they belong to (n, 2).
    """
    shape = np.array(phases.crystal.shape)
    forward = phases.lattice.reciprocal
    back = np.linalg.inv(forward)
    known = phases.cell[:, phases.crystal]
    low, high = np.floor(known.min(1)).astype(int) - 1, np.ceil(known.max(1)).astype(int) + 1
    cells = np.stack(
        np.meshgrid(*(np.arange(a, b + 1) for a, b in zip(low, high, strict=True)), indexing="ij")
    )
    cells = cells.reshape(2, -1)
    target = cells + np.asarray(place)[:, None]
    # The mean offset between the plain lattice and its phase is where the search starts.
    grid = np.argwhere(phases.crystal)[:: max(int(phases.crystal.sum()) // 5000, 1)].T
    offset = (phases.cell[:, grid[0], grid[1]] - forward @ grid).mean(1)
    found = back @ (target - offset[:, None])
    near = ((found > -12.0) & (found < shape[:, None] + 12.0)).all(0)
    cells, target, found = cells[:, near], target[:, near], found[:, near]
    for _ in range(_ROUNDS):
        inside = np.clip(found, 0.0, shape[:, None] - 1.0)
        here = np.stack([ndimage.map_coordinates(cell, inside, order=1) for cell in phases.cell])
        found = found + back @ (target - here - forward @ (found - inside))
    row, col = (
        np.clip(np.rint(axis).astype(int), 0, side - 1) for axis, side in zip(found, shape, strict=True)
    )
    inside = ((found >= 0.0) & (found <= shape[:, None] - 1.0)).all(0)
    kept = inside & phases.crystal[row, col]
    return found[:, kept].T, cells[:, kept].T


def measure_strain(phases: Phases) -> Float:
    """Strain against the mean lattice, in percent, shape (3, rows, cols): along columns, along rows, shear; NaN where
    there is no crystal.

    Notes
    -----
    Drift and flyback of the scan stretch an image too, and look the same.
    """
    window = _STRAIN_CELLS * phases.lattice.constant_px
    local = np.empty((2, 2, *phases.crystal.shape))
    for place, cell in enumerate(phases.cell):
        for axis in (0, 1):
            local[place, axis] = blur(np.gradient(cell, axis=axis), window)
    mean = np.median(local[:, :, phases.crystal], axis=2)
    # The local lattice is the mean one, deformed: reciprocal vectors go with the inverse.
    change = np.einsum("ij,jkrc->ikrc", np.linalg.inv(mean), local - mean[:, :, None, None])
    strain = -100.0 * np.stack([change[1, 1], change[0, 0], 0.5 * (change[0, 1] + change[1, 0])])
    strain[:, ~phases.crystal] = np.nan
    return strain
