"""Set-ups: how microscopes differ from one another, how probable each is, and the colours it gives.

A scene draws one set-up; layer counting weighs thousands of them against a picture. Both use the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from flatscope.optical.materials import MATERIALS, WAVELENGTHS_NM, Material, find_material
from flatscope.optical.substrates import SIO2_ON_SI, Substrate
from flatscope.optical.thinfilm import LAYER_GRID, channel_weights, contrast, spectral_table

Float = NDArray[np.float64]

MODEL_SIGMA = 0.04
"""Relative 1-sigma error of a computed contrast, beyond what a set-up explains; drawn pictures have it too."""
OXIDE_RANGE_NM = (1.0, 1000.0)
"""Thinnest and thickest oxide, or other fitted film, that is computed."""
APERTURES = (0.35, 0.55, 0.85)
"""Numerical apertures that stand for 10x and 20x, 50x, and 100x objectives."""


@dataclass(frozen=True)
class Setups:
    """A number n of set-ups; every array has n as its first axis.

    Parameters
    ----------
    material
        Name of the crystal, or the crystal itself where it is not built in.
    substrate
        What it lies on.
    oxide_nm
        Thickness of the substrate's fitted film, mostly SiO2; 0 without films.
    variant
        Which published refractive indices, an index into `Material.variants`.
    aperture
        Index into `APERTURES`.
    lamp_k
        Colour temperature in K.
    shift_nm
        Shift of the camera's red, green and blue bands, shape (n, 3).
    width, mixing
        Relative width of the bands, and the share each takes from the other two.
    gamma
        The camera stores intensity to the power 1/gamma.
    flare
        Stray light as a share of the substrate's brightness.
    """

    material: str | Material
    substrate: Substrate
    oxide_nm: Float
    variant: NDArray[np.int64]
    aperture: NDArray[np.int64]
    lamp_k: Float
    shift_nm: Float
    width: Float
    mixing: Float
    gamma: Float
    flare: Float

    def __len__(self) -> int:
        return len(self.oxide_nm)

    def take(self, which: NDArray[np.int64]) -> Setups:
        """The set-ups at the given places."""
        arrays = {
            item.name: getattr(self, item.name)[which]
            for item in fields(self)
            if item.name not in ("material", "substrate")
        }
        return Setups(self.material, self.substrate, **arrays)

    def weights(self) -> Float:
        """What each camera channel sees of each wavelength, shape (n, 3, wavelengths)."""
        return channel_weights(self.lamp_k, self.shift_nm, self.width, self.mixing)

    def bare(self) -> Float:
        """Linear brightness of the bare substrate under a camera balanced on a perfect mirror, shape (n, 3)."""
        spectra = self._spectra()[0]
        return np.einsum("nw,ncw->nc", spectra, self.weights(), optimize=True)

    def contrasts(self) -> Float:
        """Contrast of `LAYER_GRID` layers against the substrate as the camera stores it, shape (n, layers, 3)."""
        bare, flakes = self._spectra()
        linear = contrast(bare, flakes, self.weights())
        return store(linear, self.gamma, self.flare)

    def _spectra(self) -> tuple[Float, Float]:
        # Tables cover the oxides at hand in steps of 20 nm, so that nearby pictures share them.
        low = np.floor(self.oxide_nm.min() / 20.0) * 20.0
        high = max(np.ceil(self.oxide_nm.max() / 20.0) * 20.0, low + 20.0)
        bare = np.empty((len(self), len(WAVELENGTHS_NM)))
        flakes = np.empty((len(self), len(LAYER_GRID), len(WAVELENGTHS_NM)))
        for variant in np.unique(self.variant):
            for aperture in np.unique(self.aperture):
                rows = np.flatnonzero((self.variant == variant) & (self.aperture == aperture))
                if len(rows):
                    table = spectral_table(
                        self.material,
                        int(variant),
                        na=APERTURES[aperture],
                        oxide_range_nm=(float(low), float(high)),
                        substrate=self.substrate,
                    )
                    bare[rows], flakes[rows] = table.at(self.oxide_nm[rows])
        return bare, flakes


def store(linear: Float, gamma: Float, flare: Float) -> Float:
    """Contrast after stray light and the camera's tone curve.

    Parameters
    ----------
    linear
        Contrast of the light itself, shape (n, ...).
    gamma, flare
        Shape (n,).
    """
    shape = (-1,) + (1,) * (linear.ndim - 1)
    flare, gamma = flare.reshape(shape), gamma.reshape(shape)
    return np.asarray(((1.0 + linear + flare) / (1.0 + flare)) ** (1.0 / gamma) - 1.0)


_ALL_MIXED = 2.0 / 3.0
"""Leakage between channels at which all three are the same."""
LATENTS = 12
"""Standard normal numbers that make one set-up: the prior is simple in these, whatever shape each quantity has."""


@dataclass(frozen=True)
class Prior:
    """What is known of a set-up before looking at the picture.

    Parameters
    ----------
    material
        Name of the crystal, or the crystal itself.
    oxide_nm, oxide_sigma_nm
        Nominal thickness of the oxide, or of the substrate's fitted film, and its 1-sigma error; None means what the
        substrate states, else anything from 60 to 320 nm.
    gamma
        The camera's gamma if known (1 for a linear scientific camera); None is linear or 1 to 2.4, half each.
    gray
        The camera sees no colours: its three channels are one, the mean of those of a colour camera.
    substrate
        What the crystal lies on.

    Raises
    ------
    ValueError
        For an unknown material, an oxide outside `OXIDE_RANGE_NM` or a gamma outside 0.4 to 3.
    """

    material: str | Material
    oxide_nm: float | None = None
    oxide_sigma_nm: float = 10.0
    gamma: float | None = None
    gray: bool = False
    substrate: Substrate = SIO2_ON_SI

    def __post_init__(self) -> None:
        find_material(self.material)
        low, high = OXIDE_RANGE_NM
        stated = self.substrate.nominal_nm
        if self.oxide_nm is not None and (
            self.substrate.fitted is None or stated not in (None, self.oxide_nm)
        ):
            raise ValueError(
                f"oxide of {self.oxide_nm:g} nm does not belong to the substrate {self.substrate}: state its "
                "thickness once"
            )
        if self.oxide_nm is not None and not low <= self.oxide_nm <= high:
            raise ValueError(
                f"oxide of {self.oxide_nm:g} nm lies outside {low:g} to {high:g} nm, "
                "the range flatscope knows: leave it out, or adapt"
            )
        if not 0 <= self.oxide_sigma_nm < np.inf:
            raise ValueError(f"oxide_sigma_nm of {self.oxide_sigma_nm} is no error: give 0 or more")
        if self.gamma is not None and not 0.4 <= self.gamma <= 3.0:
            raise ValueError(
                f"gamma of {self.gamma:g} lies outside 0.4 to 3: 1 is a linear camera, 2.2 an ordinary one"
            )

    def setups(self, latent: Float) -> Setups:
        """Set-ups from standard normal numbers of shape (n, `LATENTS`)."""
        crystal = find_material(self.material)
        share = ndtr(latent)
        nominal = self.substrate.nominal_nm if self.oxide_nm is None else self.oxide_nm
        if self.substrate.fitted is None:
            oxide = np.zeros(len(latent))
        elif nominal is None:
            oxide = 60.0 + 260.0 * share[:, 0]
        else:
            oxide = np.clip(nominal + self.oxide_sigma_nm * latent[:, 0], *OXIDE_RANGE_NM)
        gamma = 1.0 + 1.4 * np.maximum(2.0 * share[:, 1] - 1.0, 0.0)
        return Setups(
            crystal.name if crystal is MATERIALS.get(crystal.name) else crystal,
            self.substrate,
            oxide,
            np.minimum((share[:, 2] * len(crystal.variants)).astype(int), len(crystal.variants) - 1),
            np.minimum((share[:, 3] * len(APERTURES)).astype(int), len(APERTURES) - 1),
            2800.0 + 3700.0 * share[:, 4],
            6.0 * latent[:, 5:6] + 4.0 * latent[:, 6:9],
            0.85 + 0.4 * share[:, 9],
            np.full(len(latent), _ALL_MIXED) if self.gray else 0.22 * share[:, 10],
            gamma if self.gamma is None else np.full(len(latent), self.gamma),
            self._flare(latent[:, 11]),
        )

    def _flare(self, latent: Float) -> Float:
        """Stray light; a transparent base seen from above adds what its back side reflects, as much as its front."""
        stray = 0.05 * np.abs(latent)
        if self.substrate.transparent and not self.substrate.through:
            return np.asarray(stray + ndtr(latent))
        return stray
