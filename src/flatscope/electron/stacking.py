"""How many lattices an image shows: a second layer turned against the first, and a third.

The image is taken into the first lattice's own frame, where that is a perfect hexagon: what the scan distorts, it
distorts for all layers alike. Without the mean cell of the first, a second lattice shows as three Bragg peaks 60° apart
whose angle and length are any that two known crystals can have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from flatscope.electron.lattice import Lattice, Phases, fold_cell, repeat_cell, top_of
from flatscope.electron.levelling import blur
from flatscope.electron.physics.crystals import CRYSTALS

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

_LEVEL_CELLS = 2.0  # Gaussian (1 sigma, lattice constants) that the background is smooth over
_MOST_PX = 1024  # side of the middle part that is looked at
_GRID_CELLS = 0.5  # spacing of the points, in lattice constants, that the frame is fitted to
_DEGREE = 3  # of the polynomial from lattice coordinates to pixels: drift and flyback of a scan
_CLIP = 3.0  # points off the polynomial by more than this many medians are left out
_STRETCH = 0.03  # strain by which a lattice constant may differ from the table's
_NEAREST_PX = 2.0  # frequencies from a peak of the first lattice; a Hann window's peak reaches as far
_CLEAR_PX = 5.0  # from which on the first three peaks decide, and the next three need not be asked
_FRACTIONS = (1, 2, 3)  # a superstructure of the first lattice has peaks at these parts of its vectors
_STEP_PX = 0.5  # of the search, frequencies
_BLOCK = 16  # side of the blocks of frequencies whose median is noise
_HALO = 0.75  # quantile of a ring of angles and lengths that tells how far peaks of a bent lattice reach
_LEAST_HALO = 2.0  # smallest of three maxima of nine frequencies each that noise shows
_LEAST_POWER = 25.0
"""Power of the weakest of three peaks over the noise: by chance, once in e^75 triples of frequencies times some 10^6
that are tried."""
_LEAST_RATIO = (
    8.0  # the same over the halo; images of monolayers here stay below 7 wherever the share is not tiny
)
_LEAST_SHARE = 0.003
"""Of the first lattice's power: between graphene under MoS2, which is a support and disturbs little (0.0005), and the
faintest real bilayer here (0.009)."""
_THIRD_SHARE = 0.1  # of the strongest other lattice's power, below which a third is its side lobe
_MIXED_PX = 2.5  # around sums and differences of two lattices' vectors, where no third one is sought
_LOBES_PX = 6.0  # around those of a known one
_OVERLAP = (
    0.45  # smallest share of a field where both lie on each other: grains show up to 0.31, stacks from 0.76
)
_OVERLAP_CELLS = 3.0  # Gaussian that their strengths are seen through


@dataclass(frozen=True)
class Other:
    """A lattice besides the first.

    Parameters
    ----------
    lattice
        In pixels; its power is that of the weakest of three peaks over the noise.
    twist_deg
        Against the first, counter-clockwise as displayed, in (-30, 30].
    ratio
        Its lattice constant over the first's.
    share
        Its power over the first's.
    """

    lattice: Lattice
    twist_deg: float
    ratio: float
    share: float

    def to_words(self) -> str:
        """As errors and reports say it."""
        size = f", the second {abs(self.ratio - 1.0):.0%} {'larger' if self.ratio > 1.0 else 'smaller'}"
        return f"twisted by {abs(self.twist_deg):.0f}°" + (size if abs(self.ratio - 1.0) > _STRETCH else "")


@dataclass(frozen=True)
class _Frame:
    """An image in its lattice's own frame.

    Parameters
    ----------
    rest, weight
        Shape (rows, cols): the image without the mean cell and under a window; the window.
    reciprocal
        Of the perfect hexagon in it, cycles a pixel.
    cell
        The mean cell.
    back
        Takes reciprocal vectors of the frame (as rows, from the right) to the image's.
    """

    rest: Float
    weight: Float
    reciprocal: Float
    cell: Float
    back: Float


def find_others(image: NDArray[np.floating], phases: Phases, *, most: int = 1) -> tuple[Other, ...]:
    """Find the lattices of other layers.

    Parameters
    ----------
    image
        Shape (rows, cols).
    phases
        Of the first lattice, see `flatscope.electron.lattice.map_phases`.
    most
        How many are sought.

    Returns
    -------
    The strongest first; empty for a monolayer.

    Notes
    -----
    Fails for layers that are not twisted and as large, whose peaks fall on each other, below about 2° in fields of
    10 nm, and for a layer with less than a tenth of the first one's amplitude.
    """
    frame = _take_to_frame(np.asarray(image, float), phases)
    spectrum = _find_power(frame)
    found: list[tuple[Other, Float]] = []
    while len(found) < most:
        least = max([_LEAST_SHARE, *(_THIRD_SHARE * other.share for other, _ in found)])
        seen = _find_one(frame, spectrum, [places for _, places in found], least_share=least)
        if seen is None or not _overlaps(image, phases, seen[0].lattice):
            break
        found.append(seen)
    return tuple(other for other, _ in found)


def _take_to_frame(image: Float, phases: Phases) -> _Frame:
    """Fit pixels as polynomials of lattice coordinates, and sample the image where a perfect lattice has its own."""
    lattice = phases.lattice
    cut = tuple(slice((n - min(n, _MOST_PX)) // 2, (n + min(n, _MOST_PX)) // 2) for n in image.shape)
    image, cell, crystal = image[cut], phases.cell[(slice(None), *cut)], phases.crystal[cut]
    ideal = make_hexagon(lattice)
    rows, cols = image.shape
    step = max(int(_GRID_CELLS * lattice.constant_px), 1)
    points = np.stack(np.meshgrid(np.arange(0, rows, step), np.arange(0, cols, step), indexing="ij"))
    points = points[:, crystal[points[0], points[1]]]
    at = cell[:, points[0], points[1]]
    middle, half = at.mean(1), 0.5 * np.array([[rows], [cols]])
    scaled = (np.linalg.inv(ideal) @ (at - middle[:, None])) / half
    pixels = np.stack([fit_polynomial(scaled, one.astype(float)) for one in points])
    axes = [(np.arange(n) - 0.5 * (n - 1)) / (0.5 * n) for n in image.shape]
    places = np.stack([evaluate_polynomial(one, *axes) for one in pixels])
    flat = image - blur(image, _LEVEL_CELLS * lattice.constant_px)
    seen = ndimage.map_coordinates(flat, places, order=1, mode="constant")
    last = np.array(image.shape)[:, None, None] - 1.0
    inside = np.asarray(((places >= 0.0) & (places <= last)).all(0))
    grid = [(np.arange(n) - 0.5 * (n - 1)) for n in image.shape]
    perfect = ideal[:, 0, None, None] * grid[0][:, None] + ideal[:, 1, None, None] * grid[1][None]
    flat_phases = Phases(perfect, inside, Lattice(ideal, lattice.power))
    weight = np.outer(np.hanning(rows), np.hanning(cols)) * inside
    rest = (seen - repeat_cell(seen, flat_phases)) * weight
    back = np.linalg.inv(ideal) @ lattice.reciprocal
    return _Frame(rest, weight, ideal, fold_cell(seen, flat_phases), back)


def make_hexagon(lattice: Lattice) -> Float:
    """The perfect hexagon nearest to a lattice, as long on average."""
    length = 2.0 / np.sqrt(3.0) / lattice.constant_px
    plain = length * np.array([[1.0, 0.0], [0.5, np.sqrt(0.75)]])
    if np.linalg.det(lattice.reciprocal) < 0.0:
        plain = plain * (1.0, -1.0)
    left, _, right = np.linalg.svd(lattice.reciprocal.T @ plain)
    return np.asarray(plain @ (left @ right).T)


TERMS = [(i, j) for i in range(_DEGREE + 1) for j in range(_DEGREE + 1 - i)]


def fit_polynomial(at: Float, values: Float) -> Float:
    """Weights of a polynomial of the third degree through values at places from -1 to 1, shape (2, n); values far off
    do not count."""
    terms = np.stack([at[0] ** i * at[1] ** j for i, j in TERMS], axis=1)
    kept, found = np.ones(len(values), bool), np.zeros(len(TERMS))
    for _ in range(3):
        found = np.linalg.lstsq(terms[kept], values[kept], rcond=None)[0]
        off = np.abs(values - terms @ found)
        kept = off <= _CLIP * np.median(off) + 1e-9
    return found


def evaluate_polynomial(weights: Float, down: Float, across: Float) -> Float:
    """A polynomial on a grid of places from -1 to 1, shape (rows, cols)."""
    total = np.zeros((len(down), len(across)))
    for i in range(_DEGREE + 1):
        row = sum(w * across**q for (p, q), w in zip(TERMS, weights, strict=True) if p == i)
        total += (down**i)[:, None] * row
    return total


@dataclass(frozen=True)
class _Spectrum:
    """Power of each frequency, the largest of it and its eight neighbours over the noise about it, and that noise."""

    power: Float
    over: Float
    noise: Float


def _find_power(frame: _Frame) -> _Spectrum:
    power = np.abs(fft.fftshift(fft.fft2(frame.rest))) ** 2
    rows, cols = (side // _BLOCK for side in power.shape)
    blocks = power[: rows * _BLOCK, : cols * _BLOCK].reshape(rows, _BLOCK, cols, _BLOCK)
    middle = ndimage.median_filter(np.median(blocks, axis=(1, 3)), 3) / np.log(2.0)
    noise = np.full_like(power, np.median(power) / np.log(2.0))
    wide = ndimage.zoom(middle, _BLOCK, order=1, mode="nearest", grid_mode=True)
    noise[: wide.shape[0], : wide.shape[1]] = wide
    over = ndimage.maximum_filter(power / np.maximum(noise, 1e-300), 3)
    return _Spectrum(power, np.asarray(over), noise)


def _find_one(
    frame: _Frame, spectrum: _Spectrum, known: list[Float], *, least_share: float
) -> tuple[Other, Float] | None:
    """The clearest lattice besides the first and those that are known, and its reciprocal vectors in the frame."""
    constants = np.log([crystal.lattice_nm for crystal in CRYSTALS.values()])
    pairs = np.unique(constants[:, None] - constants[None])
    slack = np.log(1.0 + _STRETCH)
    size = max(spectrum.power.shape)
    amplitudes = np.abs(fft.fft2(frame.cell)) / frame.cell.size
    base = float(np.median(spectrum.noise))
    best: tuple[float, Other, Float] | None = None
    for turned, times, first in ((0.0, 1.0, amplitudes[0, 1]), (30.0, np.sqrt(3.0), amplitudes[1, 1])):
        far = times * float(np.hypot(*frame.reciprocal[0]))
        step = _STEP_PX / (far * size)
        stretches = np.arange(pairs.min() - slack, pairs.max() + slack, step)
        stretches = stretches[np.abs(stretches[:, None] - pairs).min(1) < slack]
        twist, stretch = np.meshgrid(np.arange(0.0, np.pi / 3.0, step), stretches, indexing="ij")
        places = _list_places(frame, twist + np.deg2rad(turned), far * np.exp(stretch))
        power, allowed = _find_weakest(frame, spectrum.over, places, known)
        away = np.hypot(np.minimum(twist, np.pi / 3.0 - twist), stretch) * far * size
        ratio = np.where(allowed, power / _find_halo(power, allowed, np.rint(away).astype(int)), 0.0)
        at = np.unravel_index(int(ratio.argmax()), ratio.shape)
        share = float(power[at]) * base / max(float(first * frame.weight.sum()) ** 2, 1e-300)
        if power[at] < _LEAST_POWER or ratio[at] < _LEAST_RATIO or share < least_share:
            continue
        angle, scale = _refine(spectrum.power, places[at], places[at])
        angle, scale = angle + float(twist[at]), scale * float(np.exp(stretch[at]))
        vectors = scale * frame.reciprocal @ _turn(angle).T
        degrees = (np.rad2deg(angle) + 30.0) % 60.0 - 30.0
        other = Other(Lattice(vectors @ frame.back, float(power[at])), float(degrees), 1.0 / scale, share)
        if best is None or ratio[at] > best[0]:
            best = (float(ratio[at]), other, vectors)
        if away[at] > _CLEAR_PX:
            break
    return None if best is None else best[1:]


def _refine(power: Float, start: Float, places: Float) -> tuple[float, float]:
    """By which angle and factor three peaks lie off their places, shape (3, 2)."""
    shape = np.array(power.shape)
    tops = []
    for place in places:
        pixel = np.rint(place * shape).astype(int) + shape // 2
        corner = np.maximum(pixel - 1, 0)
        near = power[corner[0] : pixel[0] + 2, corner[1] : pixel[1] + 2]
        highest = np.add(np.unravel_index(int(near.argmax()), near.shape), corner)
        tops.append((np.array(top_of(power, *highest)) - shape // 2) / shape)
    turned = np.array(tops) @ np.array([1j, 1.0]) / (start @ np.array([1j, 1.0]))
    mean = turned.mean()
    return -float(np.angle(mean)), float(np.abs(mean))


def _turn(angle: float) -> Float:
    """Counter-clockwise as displayed, for (rows, cols)."""
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _list_places(frame: _Frame, angle: Float, length: Float) -> Float:
    """Where three peaks 60° apart lie at each angle against the first lattice, shape (..., 3, 2)."""
    start = np.arctan2(-frame.reciprocal[0, 0], frame.reciprocal[0, 1])
    along = start + angle[..., None] + np.arange(3) * np.pi / 3.0
    return np.stack([-length[..., None] * np.sin(along), length[..., None] * np.cos(along)], axis=-1)


def _find_weakest(frame: _Frame, over: Float, places: Float, known: list[Float]) -> tuple[Float, Mask]:
    """Power of the weakest of three peaks, and where the other lattices leave room for them."""
    shape = np.array(over.shape)
    index = places @ np.linalg.inv(frame.reciprocal)
    allowed = np.ones(places.shape[:2], bool)
    for part in _FRACTIONS:
        off = (index - np.rint(index * part) / part) @ frame.reciprocal * shape
        allowed &= (np.hypot(off[..., 0], off[..., 1]) > _NEAREST_PX).all(-1)
    for one in known:
        lobes, sums = (cKDTree(_mix(first, one) * shape) for first in (0.0 * one, frame.reciprocal))
        for tree, reach in ((lobes, _LOBES_PX), (sums, _MIXED_PX)):
            allowed &= (tree.query(places * shape)[0] > reach).all(-1)
    pixel = np.rint(places * shape).astype(int) + shape // 2
    inside = ((pixel >= 0) & (pixel < shape)).all(-1)
    pixel = np.clip(pixel, 0, shape - 1)
    power = np.where(inside, over[pixel[..., 0], pixel[..., 1]], 0.0).min(-1)
    return power, allowed


def _mix(first: Float, second: Float) -> Float:
    """Sums of the vectors of two lattices: where columns on each other scatter more, or less, than apart."""
    index = np.array([(h, k) for h in range(-2, 3) for k in range(-2, 3) if h * h + k * k + h * k <= 4])
    return np.asarray(((index @ first)[:, None] + (index @ second)[None]).reshape(-1, 2))


def _find_halo(power: Float, allowed: Mask, ring: NDArray[np.int64]) -> Float:
    """What is usual as near to the first lattice's peaks, of the shape of `power`."""
    usual = np.full(int(ring.max()) + 1, _LEAST_HALO)
    for radius in range(len(usual)):
        here = power[(ring == radius) & allowed]
        if len(here):
            usual[radius] = max(float(np.quantile(here, _HALO)), _LEAST_HALO)
    return usual[ring]


def _overlaps(image: NDArray[np.floating], phases: Phases, other: Lattice) -> bool:
    """Whether two lattices lie on each other, not side by side as grains do."""
    strengths = []
    window = _OVERLAP_CELLS * phases.lattice.constant_px
    flat = np.asarray(image, float) - blur(image, window)
    rows, cols = (np.arange(side) for side in flat.shape)
    for lattice in (phases.lattice, other):
        down, across = lattice.reciprocal[0]
        wave = flat * (np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None])
        strength = np.hypot(blur(wave.real, window), blur(wave.imag, window))
        strengths.append(strength / max(float(strength.mean()), 1e-300))
    return float(np.minimum(strengths[0], strengths[1]).mean()) > _OVERLAP
