"""What a detector makes of an image: counting noise and its transfer."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Real: TypeAlias = NDArray[np.float32]


def count_electrons(
    rng: np.random.Generator,
    images: NDArray[np.floating],
    *,
    electrons_per_px: float,
    mtf: tuple[float, float] | None = None,
) -> Real:
    """Count electrons.

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
