"""How near drawn crops come to those of an experimental image.

References
----------
Heusel et al. 2017, arXiv:1706.08500 (Fréchet distance of features); Portilla and Simoncelli 2000,
doi:10.1023/A:1026553619983 (statistics of oriented filters as features of textures).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import fft, linalg, stats

from flatscope.electron.drawing.appearance import Drawn, scan_again
from flatscope.electron.drawing.crops import cut_all
from flatscope.electron.drawing.microscopes import Teacher
from flatscope.electron.drawing.translation import TASK, check_honesty, translate
from flatscope.inference.runtime import Network

if TYPE_CHECKING:
    from flatscope.training.recipes import Recipe
    from flatscope.training.recipes.sections import Realism

Float = NDArray[np.float64]
Real = NDArray[np.float32]
Way = Callable[[np.random.Generator, Drawn], Real]
"""Makes of a drawn image one with another appearance."""

RINGS = 8  # of frequency, from 0 to half a cycle a pixel
VALUES = np.linspace(-4.0, 8.0, 49)
"""Edges of the bins of pixel values, in units of the lattice's contrast."""
_WAVES_PX = (2.5, 3.5, 5.0, 8.0)  # wavelengths of the filters
_DIRECTIONS = 6  # of the filters
_QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)  # of pixel values that are features
_RIDGE = 1e-6  # added to the variances of features, so that a constant feature has one
_SEED = 5  # of the noise that ways of drawing add


@dataclass(frozen=True)
class Likeness:
    """How far drawn crops are from real ones, and what became of their columns.

    Parameters
    ----------
    frechet
        Fréchet distance of `describe`'s features, each in units of its scatter among real crops.
    spectrum
        Power over that of real crops, in rings of frequency from the lowest to the highest, shape (`RINGS`,).
    rows
        Power from row to row over that along rows, both at high frequencies; in real crops it measures scan noise.
    histogram
        Largest difference of the cumulative distributions of pixel values (Kolmogorov and Smirnov).
    values
        Shares of the pixels in each of `VALUES`, shape (48,).
    moved, vanished
        Shares of columns moved and of defects vanished, see `translation.Honesty`; None for an experimental image.
    """

    frechet: float
    spectrum: Float
    rows: float
    histogram: float
    values: Float
    moved: float | None = None
    vanished: float | None = None

    HEAD: ClassVar = ("Fréchet", "power, worst ring", "row noise", "values", "moved", "vanished")

    def to_words(self) -> dict[str, str]:
        """For a table, by `HEAD`."""
        worst = self.spectrum[np.abs(np.log(self.spectrum)).argmax()]
        shares = ["" if share is None else f"{share:.1%}" for share in (self.moved, self.vanished)]
        texts = (f"{self.frechet:.1f}", f"{worst:.2f}", f"{self.rows:.2f}", f"{self.histogram:.3f}", *shares)
        return dict(zip(self.HEAD, texts, strict=True))


def measure_likeness(made: Real, real: Real) -> Likeness:
    """Compare crops with real ones.

    Parameters
    ----------
    made, real
        Shapes (n, side, side) and (m, side, side), see `flatscope.electron.drawing.crops.flatten`.
    """
    seen, wanted = describe(made), describe(real)
    scale = wanted.std(0) + 1e-9
    power, true_power = find_power(made), find_power(real)
    return Likeness(
        find_frechet(seen / scale, wanted / scale),
        _ring(power) / _ring(true_power),
        _compare_rows(power),
        float(stats.ks_2samp(made.ravel(), real.ravel()).statistic),
        np.histogram(made, VALUES)[0] / made.size,
    )


def learn_translation(
    teacher: Teacher,
    recipe: Recipe[Realism],
    *,
    out: Path,
    resume: bool = True,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Network:
    """Train the translator of an experimental image, and write it into a folder as `realism.onnx`.

    Parameters
    ----------
    recipe, out, resume
        See `flatscope.training.translator.train`.
    """
    from flatscope.training import onnx_export, translator

    trained = translator.train(
        recipe, teacher, out=out, resume=resume, workers=workers, on_progress=on_progress
    )
    path = onnx_export.export(trained.net, trained.card, out / f"{recipe.name}.onnx")
    return Network.load(path, task=TASK)


def keep_as_drawn(rng: np.random.Generator, drawn: Drawn) -> Real:
    """A drawn image as it is."""
    return drawn.image.astype(np.float32)


def list_ways(teacher: Teacher, network: Network) -> dict[str, Way]:
    """Three ways to make images to learn from: as tuned microscopes show them, with fitted noise, and translated."""
    return {
        "tuned microscopes": keep_as_drawn,
        "fitted noise": lambda rng, drawn: scan_again(rng, drawn, teacher.look),
        "translated": lambda rng, drawn: translate(rng, drawn, network),
    }


def compare_ways(teacher: Teacher, ways: Mapping[str, Way], images: Sequence[Drawn]) -> dict[str, Likeness]:
    """Measure how near each way of drawing comes to the held-out half of an experimental image.

    The other half of the image stands beside them: it is the practical lower bound.

    Parameters
    ----------
    ways
        Name to what makes an image of a drawn one.
    images
        Drawn images without noise.
    """
    scores = {"experiment, left half": measure_likeness(teacher.crops, teacher.held)}
    for name, way in ways.items():
        made = [way(np.random.default_rng([_SEED, index]), one) for index, one in enumerate(images)]
        crops = [
            cut_all(one, drawn.sites, side=teacher.look.side_px).images
            for one, drawn in zip(made, images, strict=True)
        ]
        checks = [check_honesty(np.random.default_rng(_SEED), drawn, way) for drawn in images]
        defects = np.concatenate([one.kinds > 0 for one in checks])
        scores[name] = replace(
            measure_likeness(np.concatenate(crops), teacher.held),
            moved=float(np.concatenate([one.moved for one in checks]).mean()),
            vanished=float(np.concatenate([one.vanished for one in checks])[defects].mean()),
        )
    return scores


def describe(crops: Real) -> Float:
    """Features of crops, shape (n, 56): mean and scatter of what oriented filters of four wavelengths see, by
    quadrature, and quantiles of the pixels' values.

    A window takes the crops' borders out, after which they count as periodic.
    """
    side = crops.shape[1]
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    window /= np.sqrt(np.square(window).mean())
    spectra = fft.fft2(crops * window, axes=(1, 2))
    down, across = fft.fftfreq(side)[:, None], fft.fftfreq(side)[None]
    features = [np.quantile(crops, _QUANTILES, axis=(1, 2)).T, crops.std((1, 2))[:, None]]
    for wave in _WAVES_PX:
        for turn in range(_DIRECTIONS):
            angle = np.pi * turn / _DIRECTIONS
            centre = np.array([np.sin(angle), np.cos(angle)]) / wave
            spot = np.exp(-0.5 * ((down - centre[0]) ** 2 + (across - centre[1]) ** 2) * (2.0 * wave) ** 2)
            seen = np.log(np.abs(fft.ifft2(spectra * spot, axes=(1, 2))) + 1e-3)
            features.append(np.stack([seen.mean((1, 2)), seen.std((1, 2))], axis=1))
    return np.concatenate(features, axis=1)


def find_frechet(one: Float, other: Float) -> float:
    """Fréchet distance of two clouds of features (n, k) and (m, k), taken as normal."""
    gap = one.mean(0) - other.mean(0)
    covariances = [np.cov(cloud.T) + _RIDGE * np.eye(cloud.shape[1]) for cloud in (one, other)]
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2.0 * root))


def find_power(crops: Real) -> Float:
    """Mean power of windowed crops, shape (side, side), frequency 0 first; white noise of variance 1 has 1."""
    side = crops.shape[1]
    window = np.outer(np.hanning(side + 2)[1:-1], np.hanning(side + 2)[1:-1])
    spectra = fft.fft2((crops - crops.mean((1, 2), keepdims=True)) * window, axes=(1, 2))
    return np.asarray((np.abs(spectra) ** 2).mean(0) / np.square(window).sum())


def _ring(power: Float) -> Float:
    """Mean power in rings of frequency, shape (`RINGS`,)."""
    frequency = np.hypot(*np.meshgrid(*(fft.fftfreq(side) for side in power.shape), indexing="ij"))
    place = np.digitize(frequency, np.linspace(0.0, 0.5, RINGS + 1)) - 1
    return np.array([power[place == index].mean() for index in range(RINGS)])


def _compare_rows(power: Float) -> float:
    down, across = (
        np.abs(axis) for axis in np.meshgrid(*(fft.fftfreq(side) for side in power.shape), indexing="ij")
    )
    return float(power[(down > 0.35) & (across < 0.1)].mean() / power[(across > 0.35) & (down < 0.1)].mean())
