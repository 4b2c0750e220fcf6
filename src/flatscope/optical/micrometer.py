"""Pixel size from a picture of a stage micrometer: lines at a known distance, at any angle."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, optimize

from flatscope.micrograph import Micrograph, MicrographError

Float = NDArray[np.float64]

_FEWEST_LINES = 4.0
"""Fewer lines across the picture give no period."""
_HIGHEST = 0.35
"""Finer lines, in cycles per pixel, cannot be told from their blur."""
_PEAK = 200.0
"""The lines' peak stands out by this factor from the median of the spectrum …"""
_RING = 0.3
"""… at frequencies within this factor (its logarithm) of its own."""
_HARMONICS = 4
"""Multiples of the lines' frequency that count: lines are narrow."""
_DIVISORS = (1, 2, 3, 4, 5)
"""The strongest peak may be this multiple of the lines' frequency."""
_SHARE = 0.6
"""The lowest frequency counts whose multiples are that strong, compared with the strongest."""
_SMOOTH_SHARE = 0.05
"""Light is followed over this share of the picture."""


def measure_pixel_size(micrograph: Micrograph, pitch_um: float) -> float:
    """Measure the pixel size from lines of known distance.

    Parameters
    ----------
    micrograph
        Picture of a stage micrometer or a grating, with at least four lines.
    pitch_um
        Distance of neighbouring lines.

    Returns
    -------
    µm per pixel.

    Raises
    ------
    MicrographError
        If the picture shows no periodic lines.

    Examples
    --------
    >>> lines = np.where(np.arange(200) % 16 < 3, 40, 200).astype(np.uint8)
    >>> round(measure_pixel_size(Micrograph(np.tile(lines, (150, 1))), 10.0), 4)
    0.625
    """
    frequency = find_frequency(micrograph.rgb().mean(-1).astype(float))
    if frequency is None:
        raise MicrographError(
            f"{micrograph.name}: shows no periodic lines: take a picture of a stage micrometer that fills the field, "
            "or give --um-per-px"
        )
    return pitch_um * float(np.hypot(*frequency))


def find_frequency(image: Float) -> Float | None:
    """Frequency of lines in cycles per pixel along rows and columns, shape (2,), or None if there are none."""
    smooth = ndimage.gaussian_filter(image, _SMOOTH_SHARE * min(image.shape))
    window = np.multiply.outer(*(np.hanning(side) for side in image.shape))
    flat = (image - smooth) * window
    power = np.abs(np.fft.rfft2(flat)) ** 2
    rows = np.fft.fftfreq(image.shape[0])[:, None]
    cols = np.fft.rfftfreq(image.shape[1])[None, :]
    radius = np.hypot(rows, cols)
    lowest = _FEWEST_LINES / np.hypot(*image.shape)
    asked = (radius > lowest) & (radius < _HIGHEST)
    if not asked.any():
        return None
    place = np.unravel_index(int(np.where(asked, power, 0.0).argmax()), power.shape)
    strongest = np.array([rows[place[0], 0], cols[0, place[1]]])
    # Pictures without lines have their strongest peak at low frequencies, where all are strong.
    ring = asked & (np.abs(np.log(np.maximum(radius, 1e-9) / np.hypot(*strongest))) < _RING)
    if not power[place] > _PEAK * np.median(power[ring]):
        return None
    exact = _refine(flat, strongest)
    candidates = [exact / divisor for divisor in _DIVISORS]
    strength = np.array([_comb(flat, frequency) for frequency in candidates])
    strength[[np.hypot(*frequency) < lowest for frequency in candidates]] = 0.0
    return candidates[int(np.flatnonzero(strength >= _SHARE * strength.max())[-1])]


def _comb(flat: Float, frequency: Float) -> float:
    """Mean power of an image at the multiples of a frequency: longer lines, such as every tenth, add little to it."""
    highest = int(_HIGHEST / np.hypot(*frequency))
    return float(np.mean([_power(flat, number * frequency) for number in range(1, max(highest, 1) + 1)]))


def _refine(flat: Float, frequency: Float) -> Float:
    """The frequency nearby whose multiples hold most power."""
    scale = 0.3 / np.array(flat.shape)
    multiples = [n for n in range(1, _HARMONICS + 1) if np.hypot(*(n * frequency)) < _HIGHEST]

    def miss(step: Float) -> float:
        return -sum(_power(flat, number * (frequency + step * scale)) for number in multiples)

    how = {"xatol": 1e-3, "fatol": 0.0, "maxiter": 60}
    found = optimize.minimize(miss, np.zeros(2), method="Nelder-Mead", options=how)
    return np.asarray(frequency + found.x * scale)


def _power(flat: Float, frequency: Float) -> float:
    """Power of an image at one frequency, which need not lie on the grid of its Fourier transform."""
    (down, across) = (
        2.0 * np.pi * f * np.arange(side) for f, side in zip(frequency, flat.shape, strict=True)
    )
    # Real parts apart: a complex product would copy the image.
    (cc, cs), (sc, ss) = (
        np.stack([np.cos(down), np.sin(down)]) @ flat @ np.stack([np.cos(across), np.sin(across)]).T
    )
    return float((cc - ss) ** 2 + (cs + sc) ** 2)
