"""The lattice in an image: Bragg peaks, its phase everywhere, the mean unit cell, sites and strain.

References
----------
Hÿtch, Snoeck and Kilaas 1998, doi:10.1016/S0304-3991(98)00035-7 (geometric phase).
"""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, special
from scipy.spatial import cKDTree
from skimage.restoration import unwrap_phase

from flatscope.electron.levelling import CLIP, blur, clip_image, find_patches, measure_spread, quieten

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LEAST_PERIOD_PX = 2.3  # smallest resolved distance of lattice planes
_LEAST_PERIODS = 6  # lattice planes that an image must show
_LEAST_PEAK = 5.0  # evidence (-log of the chance that noise makes it) of a Bragg peak that is looked at
_LEAST_HEXAGON = 45.0
"""Evidence of three Bragg peaks together: there are 10^9 ways to choose three of a megapixel's frequencies 60° apart,
and noise makes as much once in 10^7 images."""
_LEAST_EXPECTED = 36.0  # evidence that is enough where the lattice constant is known, as fewer ways are left
_MOST_OF_ONE = (
    0.42  # share of the least evidence that a single peak may bring: none of three stands for another
)
_RING_PX = 3.0  # width of such a ring, frequencies
_QUIET = 0.2  # quantile of a ring of frequencies from which its noise is estimated
_LEAST_SHARE = 0.1  # smallest noise, as a share of the mean power
_AS_EXPECTED = 1.15  # largest ratio to a known lattice constant
_MOST_PEAKS = 200  # Bragg peaks that are compared
_ANGLE_DEG = 12.0  # how far two reciprocal vectors may be from 60°, as scans distort
_LENGTH_RATIO = 1.2  # largest ratio of their lengths
_CLOSURE = 0.05  # largest distance of their difference from a third peak, as a share of their length
_ALIKE = 1.15  # ratio of their lengths up to which hexagons of peaks are compared
_ORDERS = (1, 3, 4)
"""Squared lengths of the shortest reciprocal vectors, in units of the first: a crystal's strongest peaks are among
these. A moiré pattern's lie far beyond its own first ones."""
_WINDOW_CELLS = (1.5, 2.2, 3.3, 5.0)
"""Gaussians (1 sigma, lattice constants) that phases are averaged over: the first one that noise allows."""
_LEAST_SIGNAL = 12.0  # power of each lattice wave over its noise in such a window: phases to 0.03 of a period
_RING = 0.15  # half width of the ring of frequencies whose noise is the lattice's, as a share of its radius
_STRAIN_CELLS = 0.75  # Gaussian that their slopes are averaged over
_LEAST_STRENGTH = 0.35  # amplitude over its median below which there is no crystal
_FOLD_ROUNDS = 2  # of its mean, what is far off clipped
_CELL_BINS = 36  # side of the mean unit cell
_CELL_SMOOTH = 1.5  # Gaussian (1 sigma, bins) that it is seen through
_PARTS = 8  # of the cells, whose scatter is the error of a mean
_BESIDE_PX = 0.8  # a site lies so near to one of the pixels at least
_ROUNDS = 2  # of the way from this pixel to the site
_TWIN_CELLS = 0.4  # two sites of one sublattice nearer than this (lattice constants) are one


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
    """The lattice that is clearest in the mean spectrum of images, shape (images, rows, cols)."""
    power = np.mean([_power(one) for one in images], axis=0)
    shape = np.array(power.shape)
    over = _compare_with_ring(power, len(images))
    evidence = _weigh_peaks(over, len(images))
    tops = np.argwhere((over == ndimage.maximum_filter(over, 5)) & (evidence > _LEAST_PEAK))
    tops = tops[np.argsort(over[tuple(tops.T)])[::-1][:_MOST_PEAKS]]
    if len(tops) < 6:
        raise NoLatticeError(
            f"no lattice: {len(tops)} Bragg peaks rise from the noise, a hexagon has six; the field must hold "
            f"{_LEAST_PERIODS} lattice planes or more"
        )
    places = (np.array([top_of(power, row, col) for row, col in tops]) - shape // 2) / shape
    found = _pick(places, over[tuple(tops.T)], evidence[tuple(tops.T)], expected_px)
    if found is None:
        raise NoLatticeError(
            f"no lattice: {len(tops)} Bragg peaks, but no three of them about 60° apart and as long: no hexagon, or "
            "a scan distorted by more than a fifth"
        )
    return found


def _compare_with_ring(power: Float, count: int) -> Float:
    """Power of each frequency over the noise's median in its ring, 0 where no lattice is looked for."""
    shape = power.shape
    down, across = (np.fft.fftshift(np.fft.fftfreq(side)) for side in shape)
    frequency = np.hypot(down[:, None], across[None])
    radius = frequency * max(shape) / _RING_PX
    ring = radius.astype(int)
    order = np.argsort(ring, axis=None, kind="stable")
    bounds = np.searchsorted(ring.ravel()[order], np.arange(ring.max() + 2))
    flat = power.ravel()[order]
    # The peaks of a small crystal are wide: a low quantile of the ring is still noise, brought to the noise's median.
    low, middle = special.gammaincinv(count, (_QUIET, 0.5))
    floor = np.array(
        [
            np.quantile(flat[a:b], _QUIET) * middle / low if b > a else 1.0
            for a, b in itertools.pairwise(bounds)
        ]
    )
    # Filtered noise falls within a ring too.
    smooth = np.exp(np.interp(radius, np.arange(len(floor)) + 0.5, np.log(np.maximum(floor, 1e-300))))
    # Where a filter has taken everything away, what little is left is no lattice.
    over = power / np.maximum(smooth, max(_LEAST_SHARE * float(power.mean()), 1e-300))
    over[(frequency < _LEAST_PERIODS / min(shape)) | (frequency > 1.0 / _LEAST_PERIOD_PX)] = 0.0
    return np.asarray(over)


def _weigh_peaks(over: Float, count: int) -> Float:
    """Evidence of peaks: minus the logarithm of the chance that the mean of `count` spectra of noise reaches them."""
    return np.asarray(
        -np.log(np.maximum(special.gammaincc(count, over * special.gammaincinv(count, 0.5)), 1e-300))
    )


def _power(image: NDArray[np.floating]) -> Float:
    flat = quieten(image)
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


def _pick(places: Float, over: Float, evidence: Float, expected_px: float | None) -> Lattice | None:
    """The hexagon of peaks that the strongest one is a low order of, where one is expected among those of that size."""
    length = np.hypot(*places.T)
    angle = np.rad2deg(np.arctan2(-places[:, 0], places[:, 1]))
    found = []
    least = _LEAST_HEXAGON if expected_px is None else _LEAST_EXPECTED
    weight = np.minimum(evidence, _MOST_OF_ONE * least)
    for i, j in np.argwhere(
        (np.abs((angle[:, None] - angle[None] + 180.0) % 360.0 - 180.0 - 60.0) < _ANGLE_DEG)
        & (np.abs(np.log(length[:, None] / length[None])) < np.log(_LENGTH_RATIO))
    ):
        gap = np.hypot(*(places - (places[i] - places[j])).T)
        third = int(gap.argmin())
        if gap[third] < _CLOSURE * length[i] and weight[[i, j, third]].sum() > least:
            found.append((min(over[i], over[j], over[third]), length[i], i, j))
    if not found:
        return None
    if expected_px is not None:
        length_of = 2.0 / np.sqrt(3.0) / expected_px
        every = found
        found = [item for item in every if abs(np.log(item[1] / length_of)) < np.log(_AS_EXPECTED)]
        if not found or _is_higher_order(places, max(found), every):
            return None
    _, longest, strong, _ = max(found)
    first = min(
        length
        for _, length, i, j in found
        if _find_order(places[[i, j]], places[strong]) in _ORDERS and length < _ALIKE * longest
    )
    power, _, i, j = max(item for item in found if first / _ALIKE < item[1] < _ALIKE * first)
    return Lattice(places[[i, j]], float(power))


def _is_higher_order(
    places: Float, one: tuple[float, float, int, int], found: list[tuple[float, float, int, int]]
) -> bool:
    """Whether a hexagon of peaks (power, length, two peaks) belongs to a larger lattice that shows as clearly."""
    power, longest, strong, _ = one
    return any(
        other > power and length * _ALIKE < longest and _find_order(places[[i, j]], places[strong]) in _ORDERS
        for other, length, i, j in found
    )


def _find_order(reciprocal: Float, place: Float) -> int:
    """Squared length of a reciprocal lattice vector in units of the first, 0 where there is no such vector."""
    exact = place @ np.linalg.inv(reciprocal)
    index = np.rint(exact)
    if np.hypot(*((index - exact) @ reciprocal)) > _CLOSURE * np.hypot(*reciprocal[0]) or not index.any():
        return 0
    # The two vectors are 60° apart.
    return int(index[0] ** 2 + index[1] ** 2 + index[0] * index[1])


def map_phases(image: NDArray[np.floating], lattice: Lattice) -> Phases:
    """Follow the lattice through the image, bends and distortions of the scan included.

    Parameters
    ----------
    image
        Shape (rows, cols).
    lattice
        See `find_lattice`.

    Notes
    -----
    Phases are averaged over windows as small as noise allows. Fails where the lattice is turned by more than about 5°
    against the mean one, and finds no crystal there.
    """
    flat, beyond = clip_image(image)
    noise = _find_noise(flat, lattice)
    waves = np.zeros((3, *flat.shape), complex)
    for cells in _WINDOW_CELLS:
        window = cells * lattice.constant_px
        waves = _demodulate(flat, lattice, window)
        signal = np.median(np.abs(waves), axis=(1, 2)) ** 2
        if (signal > _LEAST_SIGNAL * noise / (4.0 * np.pi * window**2)).all():
            break
    strength = np.prod([np.abs(wave) / max(float(np.median(np.abs(wave))), 1e-300) for wave in waves], axis=0)
    crystal = np.asarray((strength > _LEAST_STRENGTH**3) & ~find_patches(beyond, lattice.constant_px))
    cell = np.empty((2, *flat.shape))
    rows, cols = (np.arange(side) for side in flat.shape)
    for place, ((down, across), wave) in enumerate(zip(lattice.reciprocal, waves, strict=False)):
        angle = np.ma.array(np.angle(wave), mask=~crystal) if not crystal.all() else np.angle(wave)
        unwrapped = np.asarray(np.ma.filled(unwrap_phase(angle, rng=0), 0.0))
        cell[place] = unwrapped / (2.0 * np.pi) + down * rows[:, None] + across * cols[None]
    return Phases(cell, crystal, lattice)


def _demodulate(flat: Float, lattice: Lattice, window: float) -> NDArray[np.complex128]:
    """Amplitude and phase of three lattice waves everywhere, shape (3, rows, cols), averaged over a Gaussian window."""
    rows, cols = (np.arange(side) for side in flat.shape)
    waves, third = [], lattice.reciprocal[1] - lattice.reciprocal[0]
    for down, across in (*lattice.reciprocal, third):
        carrier = np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None]
        wave = (flat - blur(flat, window)) * carrier
        waves.append(blur(wave.real, window) + 1j * blur(wave.imag, window))
    return np.stack(waves)


def _find_noise(flat: Float, lattice: Lattice) -> float:
    """Power density of noise at the lattice's own frequencies: the mean square of a pixel where it is white."""
    window = np.outer(*(np.hanning(side) for side in flat.shape))
    power = np.abs(fft.fft2(flat * window)) ** 2 / np.square(window).sum()
    frequency = np.hypot(*np.meshgrid(*(fft.fftfreq(side) for side in flat.shape), indexing="ij"))
    ring = np.abs(frequency * lattice.constant_px * np.sqrt(0.75) - 1.0) < _RING
    return float(np.quantile(power[ring], _QUIET) / -np.log(1.0 - _QUIET)) if ring.any() else 0.0


def fold_cell(image: NDArray[np.floating], phases: Phases) -> Float:
    """The mean unit cell, shape (36, 36), along both lattice vectors; what is far off the usual is clipped.

    Parameters
    ----------
    image
        Shape (rows, cols).
    phases
        See `map_phases`.
    """
    place = np.floor((phases.cell[:, phases.crystal] % 1.0) * _CELL_BINS).astype(int) % _CELL_BINS
    index = place[0] * _CELL_BINS + place[1]
    values = np.asarray(image, float)[phases.crystal]
    count = np.bincount(index, minlength=_CELL_BINS**2)
    cell = _average(index, values, count)
    for _ in range(_FOLD_ROUNDS):
        off = values - cell[index]
        most = CLIP * measure_spread(off)
        cell = cell + _average(index, np.clip(off, -most, most), count)
    return cell.reshape(_CELL_BINS, _CELL_BINS)


def _average(index: NDArray[np.int64], values: Float, count: NDArray[np.int64]) -> Float:
    """Mean of the values in each bin; the mean of all in an empty one."""
    total = np.bincount(index, values, len(count))
    mean = total.sum() / max(count.sum(), 1)
    return np.where(count > 0, total / np.maximum(count, 1), mean)


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
    smooth = ndimage.gaussian_filter(cell, _CELL_SMOOTH, mode="wrap")
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


def measure_honeycomb(image: NDArray[np.floating], phases: Phases, places: Float) -> tuple[Float, float]:
    """How bright both sites of a honeycomb and the hollow are, and how surely they differ.

    Parameters
    ----------
    image
        Shape (rows, cols).
    phases
        See `map_phases`.
    places
        Of both sites in the cell, shape (2, 2), the brighter one first.

    Returns
    -------
    Brightness of the sites and of the hollow, shape (3,); and the 1-sigma error of the height of the dimmer site over
    that of the brighter one, by eight parts of the cells.
    """
    points = np.floor(np.vstack([places, 2.0 * places[1] - places[0]]) % 1.0 * _CELL_BINS).astype(int)
    group = (3 * np.floor(phases.cell[0]) + 5 * np.floor(phases.cell[1])).astype(int) % _PARTS

    def read(crystal: Mask) -> Float:
        cell = fold_cell(image, replace(phases, crystal=crystal))
        return np.asarray(ndimage.gaussian_filter(cell, _CELL_SMOOTH, mode="wrap")[tuple(points.T)])

    bright = read(phases.crystal)
    parts = np.array([read(phases.crystal & (group == part)) for part in range(_PARTS)])
    heights = parts[:, :2] - parts[:, 2:]
    mean = heights.mean(0)
    # The error of a quotient of means, to first order.
    off = (heights[:, 1] - mean[1] / mean[0] * heights[:, 0]) / mean[0]
    return bright, float(off.std(ddof=1) / np.sqrt(_PARTS))


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

    Notes
    -----
    Each site is found from the pixels beside it alone, so that a lattice that bends or breaks has each of its sites
    once.
    """
    off = phases.cell - np.asarray(place)[:, None, None]
    cells = np.rint(off)
    off -= cells
    back = np.linalg.inv(phases.lattice.reciprocal)
    away = np.tensordot(back, off, 1)
    beside = phases.crystal & (np.abs(away) < _BESIDE_PX).all(0)
    pixels = np.argwhere(beside)
    found: Float = pixels.astype(float) - away[:, beside].T
    # On bent lattices the mean one leads only roughly from a pixel to its site.
    for _ in range(_ROUNDS):
        at = np.clip(found.T, 0.0, np.array(beside.shape)[:, None] - 1.0)
        here = np.stack([ndimage.map_coordinates(cell, at, order=1) for cell in phases.cell])
        left = (here - np.asarray(place)[:, None] - cells[:, beside]).T
        found = np.clip(found - left @ back.T, pixels - 1.5, pixels + 1.5)
    order = np.argsort(np.hypot(*away[:, beside]), kind="stable")
    kept = _drop_twins(found[order], _TWIN_CELLS * phases.lattice.constant_px)
    chosen = order[kept]
    last = np.array(beside.shape) - 1.0
    chosen = chosen[((found[chosen] >= 0.0) & (found[chosen] <= last)).all(1)]
    return found[chosen], cells[:, beside].T[chosen].astype(np.int64)


def _drop_twins(places: Float, reach: float) -> NDArray[np.int64]:
    """Which places stay when of two nearer than `reach` the later one goes; in ascending order of rows."""
    if not len(places):
        return np.zeros(0, np.int64)
    pairs = cKDTree(places).query_pairs(reach, output_type="ndarray")
    twin = np.zeros(len(places), bool)
    twin[pairs.max(1)] = True
    kept = np.flatnonzero(~twin)
    return np.asarray(kept[np.lexsort(places[kept].T[::-1])])


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
