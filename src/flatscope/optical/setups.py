"""Set-ups: how microscopes differ from one another, how probable each is, and the colours it gives.

A scene draws one set-up; layer counting weighs thousands of them against a picture. Both use the same distribution.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from flatscope.optical.camera import GREY, Camera
from flatscope.optical.materials import MATERIALS, Material, find_material
from flatscope.optical.substrates import SIO2_ON_SI, Substrate
from flatscope.optical.thinfilm import channel_weights, spectral_table

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Floats = NDArray[np.floating]

MODEL_SIGMA = 0.04
"""Relative 1-sigma error of a computed contrast, beyond what a set-up explains; drawn pictures have it too …"""
OWN_SIGMA = MODEL_SIGMA / np.sqrt(2.0)
"""… half of its variance belongs to each layer number alone, the other half to all of them together."""
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
    flare
        Stray light as a share of the substrate's brightness.
    camera
        What the camera's software does to colours.
    is_open
        Set-ups whose oxide is not taken from the stated one.
    error
        Relative error of the contrast of all layers in each channel: doping, published indices; shape (n, 3).
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
    flare: Float
    camera: Camera
    is_open: NDArray[np.bool_]
    error: Float

    def __len__(self) -> int:
        return len(self.oxide_nm)

    def take(self, which: NDArray[np.int64]) -> Setups:
        """The set-ups at the given places."""
        arrays = {
            item.name: getattr(self, item.name)[which]
            for item in fields(self)
            if item.name not in ("material", "substrate", "camera")
        }
        return Setups(self.material, self.substrate, camera=self.camera.take(which), **arrays)

    def weights(self) -> Float:
        """What each camera channel sees of each wavelength, shape (n, 3, wavelengths)."""
        return channel_weights(self.lamp_k, self.shift_nm, self.width, self.mixing)

    def bare(self) -> Float:
        """Linear brightness of the bare substrate under a camera balanced on a perfect mirror, shape (n, 3)."""
        spectra = self._spectra()[0]
        return np.einsum("nw,ncw->nc", spectra, self.weights(), optimize=True)

    def ratios(self) -> Floats:
        """Sensor signal of `LAYER_GRID` layers over that of the substrate, shape (n, layers, 3)."""
        bare, flakes = self._spectra()
        return self.see(bare, flakes)

    def see(self, bare: Floats, flakes: Floats) -> Floats:
        """Sensor signal of crystals over that of the substrate, from spectra: shapes (n, wavelengths) and (n, crystals,
        wavelengths) to (n, crystals, 3)."""
        weights = self.weights().astype(flakes.dtype)
        ratio = np.matmul(flakes, np.swapaxes(weights, 1, 2))
        ratio /= np.matmul(weights, bare[:, :, None])[:, None, :, 0]
        ratio -= 1.0
        ratio *= (1.0 + self.error[:, None, :]).astype(flakes.dtype)
        ratio += 1.0
        return add_flare(ratio, self.flare)

    def contrasts(self, bare_colour: Float = GREY) -> Float:
        """Contrast of `LAYER_GRID` layers as the camera stores it, shape (n, layers, 3).

        Parameters
        ----------
        bare_colour
            Stored colour of the substrate in fractions of full scale, shape (3,).
        """
        return self.camera.contrasts(self.ratios(), bare_colour)

    def _spectra(self) -> tuple[Float32, Float32]:
        # Tables cover the oxides at hand in steps of 20 nm, so that nearby pictures share them.
        low = np.floor(self.oxide_nm.min() / 20.0) * 20.0
        high = max(np.ceil(self.oxide_nm.max() / 20.0) * 20.0, low + 20.0)
        first, step, spectra = _tabulate(self.material, self.substrate, float(low), float(high))
        place = np.clip((self.oxide_nm - first) / step, 0.0, spectra.shape[1] - 1.001)
        row = place.astype(int)
        share = (place - row).astype(np.float32)[:, None, None]
        table = self.variant * len(APERTURES) + self.aperture
        seen = spectra[table, row]
        seen += share * (spectra[table, row + 1] - seen)
        return seen[:, 0], seen[:, 1:]


@lru_cache(maxsize=8)
def _tabulate(
    material: str | Material, substrate: Substrate, low_nm: float, high_nm: float
) -> tuple[float, float, Float32]:
    """First oxide and step in nm, and the spectra of the substrate and of crystals for all published indices and
    apertures, shape (variants * apertures, oxides, 1 + layers, wavelengths), in single precision: thousands of set-ups
    are looked up at a time."""
    tables = [
        spectral_table(material, variant, na=aperture, oxide_range_nm=(low_nm, high_nm), substrate=substrate)
        for variant in range(len(find_material(material).variants))
        for aperture in APERTURES
    ]
    oxide = tables[0].oxide_nm
    spectra = [np.concatenate([table.bare[:, None], table.flakes], axis=1) for table in tables]
    return float(oxide[0]), float(oxide[1] - oxide[0]), np.array(spectra, np.float32)


def add_flare(ratio: Floats, flare: Float) -> Floats:
    """Brightness relative to the substrate, shape (n, ...), under stray light, shape (n,)."""
    flare = flare.reshape((-1,) + (1,) * (ratio.ndim - 1)).astype(ratio.dtype)
    return np.asarray((ratio + flare) / (1.0 + flare))


_ALL_MIXED = 2.0 / 3.0
"""Leakage between channels at which all three are the same."""
LATENTS = 21
"""Standard normal numbers that make one set-up: the prior is simple in these, whatever shape each quantity has. With
the last three 0, contrasts are as computed."""
_OPEN = 17
"""The one of them that says whether the oxide is taken from the stated one."""
PLAIN_LATENTS = 12
"""The first of them make the optics and the gamma; with the others 0, the camera's software leaves colours alone."""
_THINNEST_OPEN_NM = 60.0
"""An oxide that is not stated is at least this thick …"""
OPEN_RANGE_NM = 260.0
"""… and at most so much thicker."""
OPEN_ODDS = 0.03
"""Odds that the stated oxide is wrong, and may be any. Half of the latent space is set aside for it, so that both
possibilities are looked at equally well; these odds are part of the likelihood."""


@dataclass(frozen=True)
class Prior:
    """What is known of a set-up before looking at the picture.

    Parameters
    ----------
    material
        Name of the crystal, or the crystal itself.
    oxide_nm, oxide_sigma_nm
        Nominal thickness of the oxide, or of the substrate's fitted film, and its 1-sigma error; None means what the
        substrate states, else anything from 60 to 320 nm. One set-up in twenty takes what is stated as wrong.
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

    @property
    def stated_nm(self) -> float | None:
        """The stated thickness of the oxide, or of the substrate's fitted film."""
        return self.substrate.nominal_nm if self.oxide_nm is None else self.oxide_nm

    @property
    def crystal_name(self) -> str:
        """Name of the material."""
        return find_material(self.material).name

    def draw(self, rng: np.random.Generator, count: int = 1, *, wide: bool = True) -> Setups:
        """Set-ups drawn by chance, with the stated oxide and exact theory; unless `wide`, the camera's software leaves
        colours alone."""
        latent = np.zeros((count, LATENTS))
        drawn = _OPEN if wide else PLAIN_LATENTS
        latent[:, :drawn] = rng.standard_normal((count, drawn))
        return self.setups(latent)

    def draw_latent(self, rng: np.random.Generator, count: int) -> Float:
        """Standard normal numbers of set-ups as probable as before looking, some with another oxide than the stated."""
        latent = rng.standard_normal((count, LATENTS))
        is_open = rng.random(count) < OPEN_ODDS / (1.0 + OPEN_ODDS)
        latent[:, _OPEN] = np.where(is_open, 1.0, -1.0) * np.abs(latent[:, _OPEN])
        return latent

    @staticmethod
    def close(latent: Float) -> Float:
        """The same set-ups with the stated oxide."""
        closed = latent.copy()
        closed[:, _OPEN] = -np.abs(closed[:, _OPEN])
        return closed

    def setups(self, latent: Float) -> Setups:
        """Set-ups from standard normal numbers of shape (n, `LATENTS`)."""
        crystal = find_material(self.material)
        share = special.ndtr(latent)
        nominal = self.stated_nm
        is_open = latent[:, _OPEN] > 0.0
        if self.substrate.fitted is None:
            oxide, is_open = np.zeros(len(latent)), np.zeros(len(latent), bool)
        elif nominal is None:
            oxide, is_open = _THINNEST_OPEN_NM + OPEN_RANGE_NM * share[:, 0], np.ones(len(latent), bool)
        else:
            stated = np.clip(nominal + self.oxide_sigma_nm * latent[:, 0], *OXIDE_RANGE_NM)
            oxide = np.where(is_open, _THINNEST_OPEN_NM + OPEN_RANGE_NM * share[:, 0], stated)
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
            self._flare(latent[:, 11]),
            self._camera(share),
            is_open,
            OWN_SIGMA * (latent[:, [_OPEN + 1] * 3] if self.gray else latent[:, _OPEN + 1 :]),
        )

    def _flare(self, latent: Float) -> Float:
        """Stray light; a transparent base seen from above adds what its back side reflects, as much as its front."""
        stray = 0.05 * np.abs(latent)
        if self.substrate.transparent and not self.substrate.through:
            return np.asarray(stray + special.ndtr(latent))
        return stray

    def _camera(self, share: Float) -> Camera:
        """What the software does. Many cameras change nothing, so each quantity has a range of shares that does so."""
        gamma = 1.0 + 1.4 * _beyond(share[:, 1], 0.5)
        return Camera(
            0.8 * _beyond(share[:, 12:14], 0.6),
            np.exp(
                np.log(3.0) * _beyond(share[:, 14], 0.6) + np.log(0.2) * _beyond(1.0 - share[:, 14], 0.85)
            ),
            gamma if self.gamma is None else np.full(len(share), self.gamma),
            1.0 + 0.8 * _beyond(share[:, 15], 0.65),
            0.3 * _beyond(share[:, 16], 0.7) - 0.08 * _beyond(1.0 - share[:, 16], 0.85),
        )


def _beyond(share: Float, start: float) -> Float:
    """0 up to the start, and from there evenly up to 1."""
    return np.maximum(share - start, 0.0) / (1.0 - start)
