"""What a detector and a scan make of an image: counting noise, and rows that lag, jump and drift.

An image read row by row carries more noise from row to row than along a row: the detector still glows from the pixel
before, every row begins with another offset, and the beam returns a little beside its place. How much of each is
measured from a single image.

References
----------
Jones and Nellist 2013, doi:10.1017/S1431927613001402 (distortions of scans).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize, signal

Float: TypeAlias = NDArray[np.float64]
Real: TypeAlias = NDArray[np.float32]

_HIGH = 0.35  # frequency (cycles a pixel) beyond which a resolved image is noise
_NARROW = 0.05  # half width of the strips of frequencies along either axis
_BRAGG = 12.0  # power over the noise around it from which a frequency belongs to the lattice
_BINS = 12  # of frequencies, and of brightness
_LEAST_IN_BIN = 50  # frequencies in a bin that counts
_ROUNDS = 3  # of the search for the place where the beam meets a site
_HALF_OF_SQUARES = 0.455  # median of the square of a normal number


SPOILS = ("gaussian", "s&p", "speckle", "mixed")


@dataclass(frozen=True)
class NoiseParams:
    """Noise of a scanned image.

    Parameters
    ----------
    gain
        Image units an electron.
    read_sigma
        Noise beside counting, image units (1 sigma).
    lag
        Share of a pixel's signal that comes from the one before in its row, and so on: 0 is none, below 1.
    row_sigma
        Offset of each row, image units (1 sigma).
    jitter_px
        Displacement of each row along itself (1 sigma).
    drift_px
        Displacement from the first row to the last, (rows, cols).
    flyback_px, flyback_cols
        Displacement at the beginning of each row, and after how many columns it has fallen by a factor e.
    """

    gain: float = 0.1
    read_sigma: float = 0.0
    lag: float = 0.0
    row_sigma: float = 0.0
    jitter_px: float = 0.0
    drift_px: tuple[float, float] = (0.0, 0.0)
    flyback_px: float = 0.0
    flyback_cols: float = 20.0

    def __post_init__(self) -> None:
        """Refuse what no detector does."""
        for name in ("gain", "flyback_cols"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)} is not positive")
        for name in ("read_sigma", "row_sigma", "jitter_px"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} = {getattr(self, name)} is negative")
        if not 0.0 <= self.lag < 1.0:
            raise ValueError(f"lag = {self.lag} is not in [0, 1)")


def count_electrons(
    rng: np.random.Generator,
    images: NDArray[np.floating],
    *,
    electrons_per_px: float,
    mtf: tuple[float, float] | None = None,
) -> Real:
    """Count electrons of images that are exposed at once, not scanned.

    Parameters
    ----------
    rng
        Source of randomness.
    images
        Shape (images, rows, cols), mean intensities, the incoming beam at 1.
    electrons_per_px
        What the incoming beam brings to a pixel of one image.
    mtf
        Frequency (cycles a pixel) at which the detector's transfer has fallen to a half, and the power of its fall:
        transfer = 1 / (1 + (f / first)^second). Signal and noise both pass through it. None is a perfect detector.

    Returns
    -------
    Counts, shape of `images`.
    """
    counts = rng.poisson(np.maximum(images, 0.0) * electrons_per_px).astype(np.float32)
    if mtf is None:
        return counts
    down = fft.fftfreq(counts.shape[1])[:, None]
    across = fft.rfftfreq(counts.shape[2])[None]
    transfer = 1.0 / (1.0 + (np.hypot(down, across) / mtf[0]) ** mtf[1])
    spectra = fft.rfft2(counts) * transfer.astype(np.float32)
    return np.asarray(fft.irfft2(spectra, counts.shape[1:]), np.float32)


def scan(
    rng: np.random.Generator,
    image: NDArray[np.floating],
    params: NoiseParams,
    *,
    sites_px: Float | None = None,
) -> tuple[Real, Float]:
    """Read an image row by row.

    Parameters
    ----------
    rng
        Source of randomness.
    image
        Shape (rows, cols), without noise, in units of `NoiseParams.gain` an electron.
    params
        The noise.
    sites_px
        Places in the image, shape (n, 2), that are to be moved with it.

    Returns
    -------
    The scanned image, and where the places are in it.
    """
    rows, cols = image.shape
    jitter = rng.normal(0.0, params.jitter_px, rows) if params.jitter_px else np.zeros(rows)

    def displace(down: Float, across: Float) -> tuple[Float, Float]:
        """Where the beam is when it should be at (down, across)."""
        share = down / max(rows - 1, 1)
        start = params.flyback_px * np.exp(-np.maximum(across, 0.0) / params.flyback_cols)
        jumped = np.interp(down, np.arange(rows), jitter)
        return down + params.drift_px[0] * share, across + params.drift_px[1] * share + start + jumped

    grid = np.meshgrid(np.arange(rows, dtype=float), np.arange(cols, dtype=float), indexing="ij")
    still = not (params.jitter_px or params.flyback_px or any(params.drift_px))
    mean = (
        np.asarray(image, float)
        if still
        else ndimage.map_coordinates(np.asarray(image, float), displace(*grid), order=3, mode="reflect")
    )
    seen = params.gain * rng.poisson(np.maximum(mean, 0.0) / params.gain)
    seen = seen + rng.normal(0.0, params.read_sigma, image.shape)
    seen = smear(seen, params.lag)
    seen = seen + rng.normal(0.0, params.row_sigma, (rows, 1))
    places = np.zeros((0, 2)) if sites_px is None else np.asarray(sites_px, float)
    moved = places.copy()
    for _ in range(_ROUNDS if len(places) else 0):
        # A place shows up where the beam is on it.
        there = np.stack(displace(moved[:, 0], moved[:, 1]), axis=1)
        moved = moved + places - there
    return np.asarray(seen, np.float32), moved


def smear(image: NDArray[np.floating], lag: float) -> Float:
    """An image of shape (rows, cols) as a detector that lags reads it, see `NoiseParams`."""
    first = lag * np.asarray(image, float)[:, :1]
    return np.asarray(signal.lfilter([1.0 - lag], [1.0, -lag], image, axis=1, zi=first)[0])


def spoil(
    rng: np.random.Generator,
    image: NDArray[np.floating],
    kind: str,
    *,
    variance: float = 0.01,
    salted: float = 0.05,
) -> Float:
    """An image from 0 to 1 with the noise that image processing knows, which no microscope makes, by scikit-image.

    Parameters
    ----------
    rng
        Source of randomness.
    image
        Shape (rows, cols), any range.
    kind
        One of `SPOILS`: additive Gaussian noise, black and white pixels, multiplicative Gaussian noise, or all three.
    variance, salted
        Of Gaussian noise and of its factor; share of black and white pixels.

    Raises
    ------
    ValueError
        If there is no such kind.
    """
    from skimage.util import random_noise

    if kind not in SPOILS:
        raise ValueError(f"kind = {kind!r}: choose one of {', '.join(SPOILS)}")
    low = float(image.min())
    made = (np.asarray(image, float) - low) / max(float(image.max()) - low, 1e-12)
    settings = {"gaussian": {"var": variance}, "s&p": {"amount": salted}, "speckle": {"var": variance}}
    for name in settings if kind == "mixed" else (kind,):
        made = random_noise(made, mode=name, rng=rng, **settings[name])
    return np.asarray(made)


def measure_ratios(image: NDArray[np.floating]) -> tuple[float, float]:
    """Noise along the slow and the fast axis of a scan over that along the diagonal.

    Parameters
    ----------
    image
        Shape (rows, cols); rows are scanned one after the other.

    Returns
    -------
    Ratios of median power above 0.35 cycles a pixel: from row to row, and along rows; 1 for noise that knows no
    direction.
    """
    power, down, across = _power(image)
    slow = (np.abs(down) > _HIGH) & (np.abs(across) < _NARROW)
    fast = (np.abs(across) > _HIGH) & (np.abs(down) < _NARROW)
    corner = (np.abs(np.abs(down) - np.abs(across)) < _NARROW) & (np.hypot(down, across) > _HIGH)
    base = max(float(np.median(power[corner])), 1e-300)
    return float(np.median(power[slow])) / base, float(np.median(power[fast])) / base


def fit_noise(image: NDArray[np.floating]) -> NoiseParams:
    """Measure the noise of one scanned image of a crystal.

    Parameters
    ----------
    image
        Shape (rows, cols), any unit; rows are scanned one after the other.

    Returns
    -------
    Noise with which a drawn image has this one's: `scan` takes it. Drift and flyback are left at 0.

    Raises
    ------
    ValueError
        If the image is constant or smaller than 64 px a side.

    Notes
    -----
    What repeats (Bragg peaks) is taken for signal, all else for noise, so that an image without a crystal, or full of
    defects, gives too much noise. Rows that jump by a fifth of a pixel or more come out up to a third too still.
    """
    image = np.asarray(image, float)
    if min(image.shape) < 64:
        raise ValueError(
            f"{image.shape[1]}x{image.shape[0]} px are too few: noise is measured from 64 px a side"
        )
    if image.max() <= image.min():
        raise ValueError(f"all pixels are {image.min():g}: there is no noise")
    power, down, across = _power(image)
    lag, white = _fit_lag(power, down, across)
    clean = find_repeating(image)
    rest = image - clean
    gain, read = _fit_gain(rest, clean, white)
    row_variance = float(np.var(rest.mean(1) - ndimage.uniform_filter1d(rest.mean(1), 9)))
    row_sigma = np.sqrt(max(row_variance - white / image.shape[1], 0.0))
    jitter = _fit_jitter(rest, clean)
    return NoiseParams(gain=gain, read_sigma=read, lag=lag, row_sigma=float(row_sigma), jitter_px=jitter)


def find_repeating(image: NDArray[np.floating]) -> Float:
    """What repeats in an image, and what is smooth: frequencies that stand out of those about them."""
    image = np.asarray(image, float)
    spectrum = fft.fft2(image)
    power = np.abs(spectrum) ** 2
    floor = ndimage.zoom(
        np.median(_blocks(power), axis=(1, 3)), (8, 8), order=0, mode="nearest", grid_mode=True
    )
    base = np.full_like(power, float(np.median(power)))
    base[: floor.shape[0], : floor.shape[1]] = floor
    # Medians of blocks near the origin hold the image itself.
    base = np.minimum(base, np.quantile(power, 0.75))
    # Only the tops: rows that jump smear each peak down the rows, and that is noise.
    tops = (power > _BRAGG * base) & (power == ndimage.maximum_filter(power, 7, mode="wrap"))
    kept = ndimage.maximum_filter(tops, 3, mode="wrap")
    clean = fft.ifft2(np.where(kept, spectrum, 0.0)).real
    return np.asarray(clean)


def simulate_again(rng: np.random.Generator, image: NDArray[np.floating], params: NoiseParams) -> Real:
    """What repeats in an image with noise as it was measured: what `fit_noise` is checked with."""
    clean = find_repeating(image)
    low = min(float(clean.min()), 0.0)
    # A detector's zero is arbitrary, a count is not: counting noise of what lies below zero would be lost.
    return scan(rng, clean - low, params)[0] + np.float32(low)


def _power(image: NDArray[np.floating]) -> tuple[Float, Float, Float]:
    """Power of the windowed image and its frequencies down and across; white noise of variance 1 has a mean of 1."""
    image = np.asarray(image, float)
    window = np.outer(*(np.hanning(side) for side in image.shape))
    spectrum = fft.fft2((image - image.mean()) * window)
    power = np.abs(spectrum) ** 2 / np.square(window).sum()
    down, across = np.broadcast_arrays(
        fft.fftfreq(image.shape[0])[:, None], fft.fftfreq(image.shape[1])[None]
    )
    return np.asarray(power), np.asarray(down), np.asarray(across)


def _fit_lag(power: Float, down: Float, across: Float) -> tuple[float, float]:
    """Lag, and the variance of the noise before it, from how the noise falls along rows."""
    edges = np.linspace(0.0, 0.5, _BINS + 1)
    high = np.abs(down) > _HIGH
    # A row's own offset stands at frequency zero.
    place = np.digitize(np.abs(across), edges) - 1
    middles, levels = [], []
    for index in range(_BINS):
        inside = power[high & (place == index) & (np.abs(across) > 1.5 / across.shape[1])]
        if inside.size >= _LEAST_IN_BIN:
            middles.append(0.5 * (edges[index] + edges[index + 1]))
            levels.append(np.log(np.median(inside) / np.log(2.0) + 1e-300))
    wave = np.cos(2.0 * np.pi * np.array(middles))

    def left(lag: float) -> tuple[float, float]:
        shape = np.log((1.0 - lag) ** 2 / (1.0 - 2.0 * lag * wave + lag**2))
        level = float(np.mean(levels - shape))
        return float(np.square(levels - shape - level).sum()), level

    found = optimize.minimize_scalar(lambda lag: left(lag)[0], bounds=(0.0, 0.9), method="bounded")
    lag = float(found.x)
    return (lag if lag > 1e-3 else 0.0), float(np.exp(left(lag)[1]))


def _fit_gain(rest: Float, clean: Float, white: float) -> tuple[float, float]:
    """Image units an electron and what noise there is besides, from how the noise grows with brightness."""
    low = min(float(clean.min()), 0.0)
    bright = clean - low
    edges = np.quantile(bright, np.linspace(0.0, 1.0, _BINS + 1))
    place = np.clip(np.digitize(bright, edges) - 1, 0, _BINS - 1)
    means = np.array([bright[place == index].mean() for index in range(_BINS) if (place == index).any()])
    spreads = np.array([rest[place == index].var() for index in range(_BINS) if (place == index).any()])
    slope, level = np.polyfit(means, spreads / max(float(np.mean(spreads)), 1e-300) * white, 1)
    average = max(float(bright.mean()), 1e-300)
    if slope <= 0.0:
        return 1e-3 * white / average, float(np.sqrt(white))
    if level < 0.0:
        return white / average, 0.0
    return float(slope), float(np.sqrt(level))


def _fit_jitter(rest: Float, clean: Float) -> float:
    """Displacement of rows along themselves, from how far each is off what repeats."""
    slope = np.gradient(clean, axis=1)
    weight = np.square(slope).sum(1) + 1e-300
    shift = -(rest * slope).sum(1) / weight
    noise = rest.var(1) / weight
    # Rows jump one by one; what changes slowly from row to row is the crystal's.
    jump = shift[1:-1] - 0.5 * (shift[:-2] + shift[2:])
    return float(
        np.sqrt(max(float(np.median(jump**2)) / _HALF_OF_SQUARES / 1.5 - float(np.mean(noise)), 0.0))
    )


def _blocks(power: Float) -> Float:
    """Squares of 8×8 frequencies, shape (n, 8, m, 8)."""
    rows, cols = (side // 8 for side in power.shape)
    return power[: rows * 8, : cols * 8].reshape(rows, 8, cols, 8)
