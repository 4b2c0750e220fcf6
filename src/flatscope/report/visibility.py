"""A plan as a figure: contrast against layer number, and of one layer against the thickness of the film below."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

CHANNELS = (("red", "#c0392b"), ("green", "#2e8b57"), ("blue", "#2d5fa8"))
"""Channels of a colour camera and the colours they are drawn in."""
_FAINT = 0.02
"""Contrast below which a crystal is lost in the noise of an ordinary picture."""


@dataclass(frozen=True, eq=False)
class FilmCurve:
    """Contrast of one layer against the thickness of a film below it.

    Parameters
    ----------
    film
        What the film is made of.
    thickness_nm
        Shape (n,).
    contrast
        Shape (variants, n, 3).
    best_nm
        Thicknesses to mark.
    """

    film: str
    thickness_nm: Float
    contrast: Float
    best_nm: list[float]


def draw_visibility(
    layers: Float, films: FilmCurve | None, *, material: str, substrate: str, suffix: str = ".png"
) -> bytes:
    """Draw how visible a crystal is; bands are the range between published indices.

    Parameters
    ----------
    layers
        Contrast of one, two, … layers in red, green and blue, shape (variants, n, 3).
    films
        The right half of the figure, or None.
    material, substrate
        Their names.
    suffix
        ".png", ".svg" or ".pdf".

    Returns
    -------
    The file's bytes.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels = 1 if films is None else 2
    figure = Figure(figsize=(4.6 * panels, 3.6), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels))
    counts = np.arange(1, layers.shape[1] + 1)
    _draw_lines(axes[0], counts, layers, marker="o")
    axes[0].set_xlabel(f"layers of {material}")
    axes[0].set_title(f"on {substrate}", fontsize=10, pad=14)
    axes[0].set_xticks(counts)
    axes[0].legend(fontsize=8)
    if films is not None:
        _draw_lines(axes[1], films.thickness_nm, films.contrast)
        for best in films.best_nm:
            axes[1].axvline(best, color="0.4", lw=0.8, ls=":")
            place = {"xy": (best, 1.01), "xycoords": ("data", "axes fraction")}
            axes[1].annotate(f"{best:g}", **place, fontsize=8, ha="center")
        axes[1].set_xlabel(f"{films.film} thickness / nm")
        axes[1].set_title(f"one layer of {material}", fontsize=10, pad=14)
    for axis in axes:
        axis.axhspan(-_FAINT, _FAINT, color="0.9", zorder=0)
        axis.set_ylabel("contrast $I/I_{substrate} - 1$")
    file = io.BytesIO()
    # Without a date and with fixed names the same plan is the same file.
    dateless: dict[str, Any] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    with mpl.rc_context({"svg.hashsalt": "flatscope"}):
        figure.savefig(file, format=suffix.removeprefix("."), dpi=130, metadata=dateless.get(suffix))
    return file.getvalue()


def _draw_lines(axis: Any, over: NDArray[Any], contrasts: Float, **style: Any) -> None:
    """The mean of each channel over the published indices, and their range."""
    for channel, (name, colour) in enumerate(CHANNELS):
        values = contrasts[..., channel]
        axis.plot(over, values.mean(0), color=colour, lw=1.4, ms=3.5, label=name, **style)
        axis.fill_between(over, values.min(0), values.max(0), color=colour, alpha=0.15, lw=0)
