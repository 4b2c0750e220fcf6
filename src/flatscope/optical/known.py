"""Crystals whose layer number a user knows: their contrast at a place of a picture, and whether the optics agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.background import LIGHT_ORDER, estimate_background
from flatscope.optical.materials import find_material
from flatscope.optical.observations import MOST_LAYERS
from flatscope.optical.setups import MODEL_SIGMA, Prior

Float = NDArray[np.float64]

_AROUND_PX = 3
"""The median over 7x7 px stands for a place: enough against noise, little enough for a small flake."""
_INDEPENDENT = 5.4
"""Independent pixels among the 49: neighbours share their noise, nine count as one."""
_FLOOR = 0.006
"""1-sigma error of any contrast: background, compression, a film of adsorbates."""
_SETUPS = 3000
"""Set-ups of the prior that a known contrast is compared with."""
_FARTHEST = 5.0
"""A known region this many sigma from all set-ups …"""
_RARE = 0.01
"""… but this share, the nearest ones, is refused …"""
_FAINTEST = 0.05
"""… and so is one as faint as the bare substrate, if that few set-ups show the crystal so faintly."""
_BARE_SIGMA = 3.0
"""A contrast within this many sigma of zero is that of the bare substrate."""


class KnownPlaces:
    """Measures contrasts at places of pictures; the background of each picture is estimated once.

    Parameters
    ----------
    flatfield
        As for `find_flakes`; left out for a picture of another size.
    light_order
        As in `FlakeParams`.
    """

    def __init__(
        self, *, flatfield: NDArray[np.float32] | None = None, light_order: int = LIGHT_ORDER
    ) -> None:
        self._flatfield, self._order = flatfield, light_order
        self._seen: dict[str, tuple[NDArray[np.float32], Float]] = {}

    def measure(self, micrograph: Micrograph, row_px: float, col_px: float) -> tuple[Float, Float]:
        """Median contrast about a place and its 1-sigma error, both of shape (3,).

        Raises
        ------
        MicrographError
            If the place lies outside the picture.
        """
        rows, cols = micrograph.shape
        if not (0 <= row_px <= rows - 1 and 0 <= col_px <= cols - 1):
            raise MicrographError(
                f"{micrograph.name}@{row_px:g},{col_px:g}: lies outside the picture: ROW is 0 to {rows - 1}, "
                f"COL 0 to {cols - 1}"
            )
        if micrograph.sha256 not in self._seen:
            rgb = micrograph.rgb()
            flat = (
                self._flatfield
                if self._flatfield is not None and self._flatfield.shape == rgb.shape
                else None
            )
            background = estimate_background(rgb, flat=flat, order=self._order)
            self._seen[micrograph.sha256] = background.contrast(rgb), background.noise
        contrast, noise = self._seen[micrograph.sha256]
        row, col = round(row_px), round(col_px)
        around = contrast[
            max(row - _AROUND_PX, 0) : row + _AROUND_PX + 1, max(col - _AROUND_PX, 0) : col + _AROUND_PX + 1
        ]
        middle = np.median(around.reshape(-1, 3), axis=0).astype(float)
        return middle, np.hypot(noise / np.sqrt(_INDEPENDENT), _FLOOR)


def count_from_height(height_nm: float, layer_nm: float) -> int:
    """Number of layers of a crystal of that height.

    A microscope's tip often reads a monolayer too high, by water below it: less than one and a half layers is one.
    """
    return max(1, round(height_nm / layer_nm))


def question(layers: int, contrast: Sequence[float] | Float, sigma: Float, prior: Prior) -> str:
    """Compare a known crystal with the optics.

    Parameters
    ----------
    layers
        What the user says.
    contrast, sigma
        What the picture shows, and its 1-sigma error; shape (3,).
    prior
        Material and set-up as far as they are known.

    Returns
    -------
    How they disagree, in words, or "" where they don't.
    """
    if layers > MOST_LAYERS:
        return ""
    seen = np.asarray(contrast, float)
    latent = prior.draw_latent(np.random.default_rng(0), _SETUPS)
    theory = prior.setups(latent).contrasts()[:, layers - 1]
    error = np.sqrt(sigma**2 + (MODEL_SIGMA * theory) ** 2 + _FLOOR**2)
    nearest = float(np.quantile(np.sqrt((((theory - seen) / error) ** 2).sum(1)), _RARE))
    if (np.abs(seen) < _BARE_SIGMA * sigma).all():
        visible = np.abs(theory / sigma).max(1)
        if np.quantile(visible, _FAINTEST) > _BARE_SIGMA:
            return f"disagrees with the optics by {np.median(visible):.0f} sigma: is it the substrate?"
    if nearest > _FARTHEST:
        name = find_material(prior.material).name
        return f"disagrees with the optics by {nearest:.0f} sigma: is it {layers}L {name}?"
    return ""
