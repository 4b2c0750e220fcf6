"""The colour of N layers on a substrate: thin-film optics, lamp, aperture and camera.

Light falls through the objective's aperture cone on air / flake / films / base, or comes through the base. Films are
folded, from the base up, into one coefficient, a form that stays finite for thick absorbing films. A camera channel
sees the reflected or transmitted share weighted with lamp and sensitivity, and flatscope measures the contrast
I / I_substrate − 1. Contrast of graphene on oxide: Blake et al. 2007 (doi:10.1063/1.2768624); aperture cone: Saigal et
al. 2016 (doi:10.1063/1.4963133).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.materials import WAVELENGTHS_NM, Material, find_material, layer_index
from flatscope.optical.substrates import SIO2_ON_SI, Substrate

Complex = NDArray[np.complex128]
Float = NDArray[np.float64]

THICK_LAYERS = np.array(
    [7, 8, 9, 10, 12, 14, 17, 20, 24, 29, 35, 42, 50, 60, 72, 86, 103, 124, 150, 200, 280, 400.0]
)
"""Layer numbers at which thick crystals are evaluated: dense where their colour still changes fast."""
LAYER_GRID = np.concatenate([np.arange(1.0, 7.0), THICK_LAYERS])
"""One to six layers, then the thick ones."""
CAMERA_BANDS_NM = ((605.0, 70.0), (535.0, 80.0), (460.0, 70.0))
"""Centre and full width at half maximum of the red, green and blue bands of a typical colour camera."""


_BLOCK = 10
"""Rows of oxide thickness that are computed together."""


def reflectance(
    indices: list[Complex],
    thicknesses_nm: list[Float],
    wavelength_nm: Float,
    sin2: Float | float,
    *,
    polarisation: str,
) -> Float:
    """Reflectance of a stack of films between two half-spaces.

    Parameters
    ----------
    indices
        Refractive indices n + ik from the medium of incidence (real) to the substrate; any shapes that broadcast.
    thicknesses_nm
        Thickness of each film between the two half-spaces (two fewer than `indices`), broadcasting with them.
    wavelength_nm
        Vacuum wavelength, broadcasting.
    sin2
        Squared sine of the angle of incidence, 0 to 1, broadcasting.
    polarisation
        "s" or "p".

    Returns
    -------
    Reflected share of the intensity, in the broadcast shape.

    Raises
    ------
    ValueError
        If the numbers of indices and thicknesses do not fit, or the polarisation is neither "s" nor "p".
    """
    reflected, _, _ = _fold(indices, thicknesses_nm, wavelength_nm, sin2, polarisation)
    return np.abs(reflected) ** 2


def transmittance(
    indices: list[Complex],
    thicknesses_nm: list[Float],
    wavelength_nm: Float,
    sin2: Float | float,
    *,
    polarisation: str,
) -> Float:
    """Transmittance of a stack of films into its base, the same for light from either side.

    Parameters and errors are those of `reflectance`.

    Returns
    -------
    Transmitted share of the intensity, in the broadcast shape.
    """
    _, transmitted, admittances = _fold(indices, thicknesses_nm, wavelength_nm, sin2, polarisation)
    return np.asarray(admittances[-1].real / admittances[0].real * np.abs(transmitted) ** 2)


def _fold(
    indices: list[Complex],
    thicknesses_nm: list[Float],
    wavelength_nm: Float,
    sin2: Float | float,
    polarisation: str,
) -> tuple[Complex, Complex, list[Complex]]:
    """Coefficients of the tangential electric field, reflected and transmitted, and the admittance of every medium."""
    if len(indices) != len(thicknesses_nm) + 2:
        raise ValueError(
            f"{len(indices)} indices need {len(indices) - 2} thicknesses, not {len(thicknesses_nm)}"
        )
    if polarisation not in ("s", "p"):
        raise ValueError(f"polarisation {polarisation!r}: use 's' or 'p'")
    in_plane2 = indices[0] ** 2 * sin2
    normals = [np.sqrt(index**2 - in_plane2) for index in indices]
    if polarisation == "s":
        admittances = normals
    else:
        admittances = [index**2 / normal for index, normal in zip(indices, normals, strict=True)]
    reflected = transmitted = np.zeros(1, complex)
    for upper in range(len(indices) - 2, -1, -1):
        both = admittances[upper] + admittances[upper + 1]
        fresnel = (admittances[upper] - admittances[upper + 1]) / both
        passed = 2.0 * admittances[upper] / both
        if upper == len(indices) - 2:
            reflected, transmitted = fresnel, passed
            continue
        way = np.exp(2j * np.pi * normals[upper + 1] * thicknesses_nm[upper] / wavelength_nm)
        again = 1.0 + fresnel * way**2 * reflected
        transmitted = passed * way * transmitted / again
        reflected = (fresnel + way**2 * reflected) / again
    return reflected, transmitted, admittances


@lru_cache(maxsize=16)
def _aperture_nodes(na: float, count: int) -> tuple[Float, Float]:
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1.0) / 2.0 * na**2, weights / 2.0


def cone_light(
    indices: list[Complex],
    thicknesses_nm: list[Float],
    *,
    na: float,
    through: bool = False,
    nodes: int | None = None,
) -> Float:
    """Unpolarised light over `WAVELENGTHS_NM` that a stack sends back, or lets through, in a filled aperture cone.

    An objective that obeys the sine condition fills its pupil evenly in sin²θ (Köhler illumination).

    Parameters
    ----------
    indices, thicknesses_nm
        As in `reflectance`, the last axis being the wavelength.
    na
        Numerical aperture, 0 to 0.95.
    through
        Transmittance in place of reflectance.
    nodes
        Angles of the Gauss–Legendre rule. None takes two up to NA 0.4, three up to 0.6 and four above, which is
        exact to 1e-3 of the contrast at NA 0.9 and to less below.

    Raises
    ------
    ValueError
        If `na` lies outside 0 to 0.95.
    """
    if not 0.0 <= na <= 0.95:
        raise ValueError(f"numerical aperture {na} lies outside 0 to 0.95")
    if nodes is None:
        nodes = 1 if na == 0.0 else 2 if na <= 0.4 else 3 if na <= 0.6 else 4
    share = transmittance if through else reflectance
    angles, weights = _aperture_nodes(na, nodes)
    total = 0.0
    for sin2, weight in zip(angles, weights, strict=True):
        for polarisation in ("s", "p"):
            part = share(indices, thicknesses_nm, WAVELENGTHS_NM, sin2, polarisation=polarisation)
            total = total + weight / 2.0 * part
    return np.asarray(total)


@dataclass(frozen=True)
class SpectralTable:
    """Reflectance spectra of bare substrate and of flakes, on a grid of oxide thickness.

    `bare` has shape (oxides, wavelengths), `flakes` (oxides, layer numbers, wavelengths); `oxide_nm` and
    `layers` are the grids.
    """

    oxide_nm: Float
    layers: Float
    bare: Float
    flakes: Float

    def at(self, oxide_nm: Float) -> tuple[Float, Float]:
        """Spectra at any oxide thickness inside the grid, by linear interpolation.

        Returns
        -------
        Bare (n, wavelengths) and flakes (n, layer numbers, wavelengths).
        """
        step = self.oxide_nm[1] - self.oxide_nm[0]
        place = np.clip((oxide_nm - self.oxide_nm[0]) / step, 0.0, len(self.oxide_nm) - 1.001)
        low = place.astype(int)
        share = (place - low)[:, None].astype(self.bare.dtype)
        bare = (1.0 - share) * self.bare[low] + share * self.bare[low + 1]
        share = share[..., None]
        return bare, (1.0 - share) * self.flakes[low] + share * self.flakes[low + 1]


@lru_cache(maxsize=64)
def spectral_table(
    material: str | Material,
    variant: int,
    *,
    na: float,
    oxide_range_nm: tuple[float, float],
    step_nm: float = 2.0,
    substrate: Substrate = SIO2_ON_SI,
) -> SpectralTable:
    """Light of all layer numbers of `LAYER_GRID` on a substrate, over a range of thickness of its fitted film.

    Parameters
    ----------
    material, variant
        See `flatscope.optical.materials`.
    na
        Numerical aperture of the objective, 0 to 0.95.
    oxide_range_nm
        Lowest and highest thickness of the fitted film, mostly the oxide; the table covers at least these.
    step_nm
        Grid spacing; 2 nm interpolates the contrast to 1e-3.
    substrate
        What the crystal lies on; the stated thickness of its fitted film does not matter.
    """
    first = int(np.floor(oxide_range_nm[0] / step_nm)) // _BLOCK
    last = int(np.ceil(oxide_range_nm[1] / step_nm)) // _BLOCK
    crystal, bottom = find_material(material), substrate.with_nominal(None)
    blocks = [_spectra(crystal, variant, bottom, na, step_nm, number) for number in range(first, last + 1)]
    oxide: Float = np.arange(first * _BLOCK, (last + 1) * _BLOCK, dtype=float) * step_nm
    bare, flakes = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    return SpectralTable(oxide, LAYER_GRID, bare, flakes)


@lru_cache(maxsize=512)
def _spectra(
    crystal: Material, variant: int, substrate: Substrate, na: float, step_nm: float, block: int
) -> tuple[Float, Float]:
    """Ten rows of a table: whatever ranges are asked for, no row is computed twice."""
    fitted: Float = np.arange(block * _BLOCK, (block + 1) * _BLOCK, dtype=float) * step_nm
    return stack_spectra(crystal, variant, substrate, LAYER_GRID, fitted_nm=fitted, na=na)


def stack_spectra(
    crystal: Material,
    variant: int,
    substrate: Substrate,
    layers: Float,
    *,
    fitted_nm: Float,
    na: float,
) -> tuple[Float, Float]:
    """Spectra of a bare substrate and of crystals on it.

    Parameters
    ----------
    crystal, variant
        See `flatscope.optical.materials`.
    substrate
        What the crystal lies on.
    layers
        Layer numbers, shape (m,); they need not be whole.
    fitted_nm
        Thicknesses of the substrate's fitted film, shape (n,).
    na
        Numerical aperture of the objective.

    Returns
    -------
    Shares of the light, bare (n, wavelengths) and flakes (n, m, wavelengths).
    """
    air, indices = np.ones(1, complex), substrate.indices()
    films = [
        fitted_nm[:, None] if place == substrate.fitted else np.full((1, 1), thickness)
        for place, (_, thickness) in enumerate(substrate.films)
    ]
    bare = cone_light([air, *indices], films, na=na, through=substrate.through)
    thick = [(layers * crystal.layer_nm)[None, :, None], *(film[:, None] for film in films)]
    index = layer_index(crystal, variant, layers)[None]
    flakes = cone_light([air, index, *indices], thick, na=na, through=substrate.through)
    count, wavelengths = len(fitted_nm), len(WAVELENGTHS_NM)
    return (
        np.broadcast_to(bare, (count, wavelengths)).copy(),
        np.broadcast_to(flakes, (count, len(layers), wavelengths)).copy(),
    )


def channel_weights(lamp_k: Float, shift_nm: Float, width: Float, mixing: Float) -> Float:
    """What each camera channel sees of each wavelength.

    Parameters
    ----------
    lamp_k
        Colour temperature of the lamp behind its filters in K, shape (n,).
    shift_nm
        Shift of the red, green and blue band centres from `CAMERA_BANDS_NM`, shape (n, 3).
    width
        Band widths relative to `CAMERA_BANDS_NM`, shape (n,).
    mixing
        Share of each channel that the other two leak into it, 0 to 0.5, shape (n,).

    Returns
    -------
    Shape (n, 3, wavelengths), each channel summing to one.
    """
    metres = WAVELENGTHS_NM * 1e-9
    # Planck's law; 0.014388 m K is hc / k.
    lamp = metres**-5.0 / np.expm1(0.014388 / (metres * lamp_k[:, None]))
    centre = np.array([band[0] for band in CAMERA_BANDS_NM]) + shift_nm
    sigma = np.array([band[1] for band in CAMERA_BANDS_NM]) * width[:, None] / 2.3548
    bands = np.exp(-0.5 * ((WAVELENGTHS_NM - centre[..., None]) / sigma[..., None]) ** 2) * lamp[:, None, :]
    bands /= bands.sum(-1, keepdims=True)
    leak = mixing[:, None, None] / 2.0
    return (1.0 - 3.0 * leak) * bands + leak * bands.sum(1, keepdims=True)


def contrast(bare: Float, flakes: Float, weights: Float, *, gamma: Float | float = 1.0) -> Float:
    """Contrast I / I_substrate − 1 of every layer number in every camera channel.

    Parameters
    ----------
    bare
        Substrate spectra, shape (n, wavelengths).
    flakes
        Flake spectra, shape (n, layer numbers, wavelengths).
    weights
        From `channel_weights`, shape (n, 3, wavelengths).
    gamma
        The camera stores intensity to the power 1/gamma; 1 is a linear camera.

    Returns
    -------
    Shape (n, layer numbers, 3).
    """
    substrate = np.einsum("nw,ncw->nc", bare, weights, optimize=True)[:, None, :]
    flake = np.matmul(flakes, np.swapaxes(weights, 1, 2))
    exponent = 1.0 / np.reshape(np.asarray(gamma, float), (-1, 1, 1))
    return np.asarray((flake / substrate) ** exponent - 1.0)
