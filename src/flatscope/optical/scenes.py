"""Light micrographs with known truth: flakes drawn through thin-film optics, camera and all that spoils a picture.

A scene is a map of thickness (`flatscope.optical.shapes`), photographed through one drawn set-up
(`flatscope.optical.photographs`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.optical.photographs import (
    Microscope,
    compress,
    draw_microscope,
    draw_residue,
    photograph,
    write_caption,
)
from flatscope.optical.setups import Prior, Setups
from flatscope.optical.shapes import (
    GOLD,
    SUBSTRATE,
    cleave_flakes,
    draw_foreign,
    grow_crystals,
    lay_large_flakes,
)
from flatscope.results import THICK_LABEL

Float = NDArray[np.float64]

DRAWN_MATERIALS = ("graphene", "hBN", "MoS2", "WS2", "WSe2", "MoSe2")
"""Materials of a scene that names none."""
OPAQUE = 0.6
"""Stored contrast from which a crystal looks opaque."""
_VISIBLE_RESIDUE = 0.03
"""Residue that changes the brightness by more, in any channel, is foreign matter."""


@dataclass(frozen=True)
class SceneParams:
    """What to draw; None leaves the choice to chance.

    Parameters
    ----------
    shape
        Rows and columns.
    material
        Any built-in one; without it one of `DRAWN_MATERIALS`.
    oxide_nm
        True oxide thickness, else 60 to 320 nm.
    growth
        "exfoliated" or "cvd".
    gamma
        The camera's gamma, else 1 to 2.4.
    density
        Flakes per 512x512 px, relative to a typical picture.
    clean
        Leave out residue, dust, scratches, gold and captions.
    wide
        Draw cameras that change colours: saturation, matrix, S-shaped tone curve, stretched contrast.
    microscope
        The same for several pictures; its material, oxide and gamma count then.
    anyone
        Draw pictures of any laboratory: `wide`, large flakes, and what `flatscope.optical.nuisances` knows.
    """

    shape: tuple[int, int] = (512, 512)
    material: str | None = None
    oxide_nm: float | None = None
    growth: str | None = None
    gamma: float | None = None
    density: float = 1.0
    clean: bool = False
    wide: bool = False
    microscope: Microscope | None = None
    anyone: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture and everything that is true about it.

    Parameters
    ----------
    pixels
        Shape (rows, cols, 3), uint8: the picture.
    layers
        Shape (rows, cols), uint8: layer number, 0 substrate, 254 more than six.
    regions
        Shape (rows, cols), int32: connected regions of one thickness, 0 substrate.
    opaque
        Shape (rows, cols), bool: crystals much brighter than the substrate.
    foreign
        Shape (rows, cols), bool: dirt, gold, captions, a second substrate, visible residue.
    bare
        Shape (rows, cols, 3), float32: the empty substrate in the same light, in fractions of full scale.
    contrast
        Shape (29, 3): stored contrast of each entry of the thickness map, 0 the substrate.
    behind
        Shape (rows, cols), bool: what lies behind a field stop.
    setup
        The drawn microscope (one set-up).
    parameters
        Every other number drawn.
    """

    pixels: NDArray[np.uint8]
    layers: NDArray[np.uint8]
    regions: NDArray[np.int32]
    opaque: NDArray[np.bool_]
    foreign: NDArray[np.bool_]
    bare: NDArray[np.float32]
    contrast: Float
    behind: NDArray[np.bool_]
    setup: Setups
    parameters: dict[str, Any] = field(default_factory=dict)


def draw_scene(
    rng: np.random.Generator,
    params: SceneParams = SceneParams(),
    *,
    crystals: NDArray[np.uint8] | None = None,
) -> Scene:
    """Draw one picture with its truth.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same picture.
    params
        What to draw.
    crystals
        Layer numbers 0 to 6 of shape `params.shape`: crystals to show in place of grown or cleaved ones.
    """
    given = params.microscope
    material = given.setup.material if given else params.material or str(rng.choice(DRAWN_MATERIALS))
    growth = params.growth or ("cvd" if material != "graphene" and rng.random() < 0.3 else "exfoliated")
    prior = Prior(material, oxide_nm=params.oxide_nm, oxide_sigma_nm=0.0, gamma=params.gamma)
    microscope = given or draw_microscope(rng, prior.draw(rng, wide=params.wide or params.anyone))
    if crystals is None:
        draw_crystals = grow_crystals if growth == "cvd" else cleave_flakes
        thickness, drawn = draw_crystals(rng, params.shape, params.density)
        if params.anyone:
            lay_large_flakes(rng, thickness)
    else:
        thickness, drawn = crystals.copy(), {}
    foreign = np.zeros(params.shape, bool)
    residue: NDArray[np.float32] | None = None
    if not params.clean:
        draw_foreign(rng, thickness)
        foreign = thickness >= GOLD
        if rng.random() < 0.75:
            residue = draw_residue(rng, params.shape)
            foreign |= (np.abs(residue).max(-1) > _VISIBLE_RESIDUE) & (thickness == SUBSTRATE)
    taken = photograph(rng, microscope, thickness, residue, anyone=params.anyone)
    pixels = taken.pixels
    if not params.clean and rng.random() < 0.25:
        written = write_caption(rng, pixels)
        foreign |= written
        thickness[written] = SUBSTRATE
    quality = int(rng.integers(78, 98))
    if params.anyone and rng.random() < 0.25:
        quality = int(rng.integers(35, 78))
    if rng.random() < 0.7:
        pixels = compress(pixels, quality)
    thickness[foreign] = SUBSTRATE
    layers = np.where(thickness <= 6, thickness, THICK_LABEL).astype(np.uint8)
    parameters = {"growth": growth, "jpeg_quality": quality, **drawn, **taken.camera}
    contrast = np.vstack([np.zeros((1, 3)), taken.contrast])
    opaque = (contrast.max(1) > OPAQUE)[thickness]
    return Scene(
        pixels,
        layers,
        label_regions(thickness),
        opaque,
        foreign,
        taken.bare,
        contrast,
        taken.behind,
        microscope.setup,
        parameters,
    )


def label_regions(thickness: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Number the connected regions of each thickness, shape (rows, cols); 0 stays 0."""
    regions = np.zeros(thickness.shape, np.int32)
    count = 0
    for value in np.unique(thickness[thickness > 0]):
        found, number = ndimage.label(thickness == value)
        regions[found > 0] = found[found > 0] + count
        count += number
    return regions
