"""Photographs of drawn specimens: optics of one set-up, residue, blur, uneven light, noise, tone curve, compression."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from flatscope.optical.camera import GREY
from flatscope.optical.nuisances import PLAIN, draw_rendering, spoil_light
from flatscope.optical.setups import MODEL_SIGMA, Setups, add_flare
from flatscope.optical.shapes import DIRT, GOLD, SECOND_SUBSTRATE, Thickness
from flatscope.optical.thinfilm import LAYER_GRID

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Mask = NDArray[np.bool_]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Microscope:
    """A set-up and its crystals: what the pictures of one laboratory have in common.

    Parameters
    ----------
    setup
        One set-up.
    crystal
        Linear contrast of `LAYER_GRID` layers, shape (28, 3): theory, and how real crystals differ from it.
    bare_colour
        Stored colour of the substrate in fractions of full scale, shape (3,); None where each picture has its own.
    """

    setup: Setups
    crystal: Float
    bare_colour: Float | None = None

    @classmethod
    def from_contrast(cls, setup: Setups, contrast: Float, bare_colour: Float = GREY) -> Microscope:
        """A microscope whose camera stores these contrasts, shape (28, 3), on a substrate of this colour."""
        flare = setup.flare[0]
        linear = setup.camera.ratios(contrast[None], bare_colour)[0] * (1.0 + flare) - 1.0 - flare
        return cls(setup, np.maximum(linear, -0.98), bare_colour)

    def contrast(self, bare_colour: Float = GREY) -> Float:
        """Contrast as the camera stores it on a substrate of this colour, shape (28, 3)."""
        ratio = add_flare(1.0 + self.crystal[None], self.setup.flare)
        return self.setup.camera.contrasts(ratio, bare_colour)[0]


def draw_microscope(rng: np.random.Generator, setup: Setups) -> Microscope:
    """Draw how the crystals under this set-up differ from theory."""
    return Microscope(setup, _imperfect_contrasts(rng, setup))


def _imperfect_contrasts(rng: np.random.Generator, setup: Setups) -> Float:
    """Linear contrast of `LAYER_GRID` layers, off from theory as real crystals are, shape (28, 3).

    Doping, strain, adsorbates and the errors of published refractive indices move a contrast by a few percent.
    """
    linear = replace(setup, flare=np.zeros(1)).ratios()[0] - 1.0
    common = rng.normal(0.0, MODEL_SIGMA / np.sqrt(2.0), 3)
    return np.asarray(
        np.maximum(linear * (1.0 + common + rng.normal(0.0, MODEL_SIGMA / np.sqrt(2.0), linear.shape)), -0.98)
    )


@dataclass(frozen=True)
class Photograph:
    """A picture of a map of thickness, and what is true about it.

    Parameters
    ----------
    pixels
        The picture, shape (rows, cols, 3).
    bare
        The empty substrate in the same light, in fractions of full scale, shape (rows, cols, 3).
    contrast
        Stored contrast of `LAYER_GRID` layers, shape (28, 3).
    behind
        What lies behind a field stop, shape (rows, cols).
    camera
        The numbers drawn.
    """

    pixels: Pixels
    bare: Float32
    contrast: Float
    behind: Mask
    camera: dict[str, Any]


def photograph(
    rng: np.random.Generator,
    microscope: Microscope,
    thickness: Thickness,
    residue: Float32 | None,
    *,
    anyone: bool = False,
) -> Photograph:
    """Turn a map of thickness into a picture.

    Parameters
    ----------
    rng
        Source of randomness.
    microscope
        Set-up and crystals.
    thickness
        Entries as in `flatscope.optical.shapes`, shape (rows, cols).
    residue
        What residue adds to the relative brightness, shape (rows, cols, 3), or None.
    anyone
        Also draw what `flatscope.optical.nuisances` knows of other people's pictures.
    """
    camera, flare = microscope.setup.camera, float(microscope.setup.flare[0])
    light = np.take(_colour_table(rng, microscope), thickness, axis=0)
    if residue is not None:
        light *= 1.0 + residue
    optics = _blur(rng, light)
    light += np.float32(flare)
    light /= np.float32(1.0 + flare)
    level, balance = _expose(rng, microscope)
    lamp = _illumination(rng, thickness.shape) * level
    light *= lamp
    rendering, behind = PLAIN, np.zeros(thickness.shape, bool)
    spoilt: dict[str, Any] = {}
    if anyone:
        rendering = draw_rendering(rng)
        behind, spoilt = spoil_light(rng, light)
    sensor = _add_noise(rng, light)
    # Many cameras stop short of the full scale.
    white = float(rng.uniform(0.82, 1.0)) if rng.random() < 0.4 else 1.0
    pixels, bare = camera.develop(light, white=white), camera.picture(lamp)
    drawn = {"white": white, **sensor, "balance": balance.tolist(), "level": level.tolist(), **spoilt}
    contrast = microscope.contrast(bare.mean((0, 1)))
    return Photograph(rendering.finish(pixels), rendering.scale(bare), contrast, behind, {**optics, **drawn})


def _blur(rng: np.random.Generator, light: Float32) -> dict[str, float]:
    """Blur, and now and then sharpen, the light in place; returns by how much."""
    softness = float(np.exp(rng.normal(-0.25, 0.35))) if rng.random() < 0.8 else float(rng.uniform(1.5, 4.0))
    for channel in range(3):
        sigma = softness * rng.uniform(0.95, 1.1)
        light[..., channel] = ndimage.gaussian_filter(light[..., channel], sigma, truncate=2.5)
    sharpening = float(rng.uniform(0.2, 0.9)) if rng.random() < 0.3 else 0.0
    if sharpening:
        for channel in range(3):
            soft = ndimage.gaussian_filter(light[..., channel], 1.2, truncate=2.5)
            light[..., channel] += np.float32(sharpening) * (light[..., channel] - soft)
    return {"softness_px": softness, "sharpening": sharpening}


def _expose(rng: np.random.Generator, microscope: Microscope) -> tuple[Float32, Float]:
    """Linear brightness of the substrate in the three channels, and the camera's white balance.

    The brightest channel of the substrate is set to a usual exposure; white balance sets the others.
    """
    setup = microscope.setup
    bare = setup.bare()[0]
    balance = np.exp(rng.normal(0.0, 0.18, 3))
    colour = bare * balance / (bare * balance).max()
    colour = colour ** rng.uniform(0.3, 1.0)
    level = colour * rng.uniform(0.3, 0.85) ** float(setup.camera.gamma[0])
    if microscope.bare_colour is not None:
        level = setup.camera.sense(microscope.bare_colour)[0]
    return level.astype(np.float32), balance


def _add_noise(rng: np.random.Generator, light: Float32) -> dict[str, float]:
    """Add counting and read noise in place, half of the time correlated as by demosaicing; returns how much."""
    electrons = float(np.exp(rng.uniform(np.log(2500.0), np.log(40000.0))))
    read = float(rng.uniform(0.001, 0.004))
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    if rng.random() < 0.5:
        down, right = np.roll(noise, 1, axis=0), np.roll(noise, 1, axis=1)
        noise = 0.62 * (noise + down + right + np.roll(noise, (1, 1), axis=(0, 1)))
        noise *= np.float32(0.8)
    light += noise * np.sqrt(np.maximum(light, 0.0) / np.float32(electrons) + np.float32(read**2))
    return {"electrons": electrons, "read_noise": read}


def _colour_table(rng: np.random.Generator, microscope: Microscope) -> Float32:
    """Linear brightness of every entry of the thickness map, the substrate being 1."""
    table = np.ones((SECOND_SUBSTRATE + 1, 3), np.float32)
    table[1 : len(LAYER_GRID) + 1] = 1.0 + microscope.crystal
    mirror = 1.0 / microscope.setup.bare()[0]
    table[GOLD] = np.array([0.85, 0.68, 0.38]) * mirror * rng.uniform(0.5, 1.1)
    table[DIRT] = rng.uniform(0.05, 0.7) * np.exp(rng.normal(0.0, 0.15, 3))
    table[SECOND_SUBSTRATE] = np.exp(rng.normal(0.0, 0.5) + rng.normal(0.0, 0.3, 3))
    return table


def _illumination(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Vignetting, an off-centre lamp and a slight slope, a little different in each channel; 1 at the brightest."""
    rows = np.linspace(-1.0, 1.0, shape[0], dtype=np.float32)[:, None, None]
    cols = np.linspace(-1.0, 1.0, shape[1], dtype=np.float32)[None, :, None]
    centre = rng.normal(0.0, 0.25, 2)
    fall = np.abs(rng.normal(0.0, 0.12)) * rng.uniform(0.9, 1.1, 3)
    quartic = np.abs(rng.normal(0.0, 0.03)) * np.ones(3)
    slope = rng.normal(0.0, 0.05, 2)[:, None] * rng.uniform(0.8, 1.2, (2, 3))
    down, across = (rows - centre[0]) ** 2, (cols - centre[1]) ** 2
    radius2 = (down + across) * np.float32(0.5)
    lamp = 1.0 - fall.astype(np.float32) * radius2 - quartic.astype(np.float32) * radius2**2
    lamp += slope[0].astype(np.float32) * rows
    lamp += slope[1].astype(np.float32) * cols
    if rng.random() < 0.15:
        # A field stop or tube that cuts the corners: steep, out where the lamp image ends.
        stop = np.maximum(np.sqrt(radius2) - rng.uniform(0.75, 1.0), 0.0)
        lamp *= 1.0 - np.float32(rng.uniform(0.5, 3.0)) * stop
    return np.asarray(np.maximum(lamp / lamp.max(), 0.2), np.float32)


def draw_residue(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Tape glue, drying marks and debris: what they add to the relative brightness, shape (rows, cols, 3)."""
    film = _smooth_field(rng, shape, float(np.exp(rng.uniform(np.log(12.0), np.log(90.0)))))
    level = rng.uniform(0.6, 1.8)
    strength = rng.uniform(-0.1, 0.06)
    glue = strength * np.clip((film - level) * 2.0, 0.0, 1.0)
    if rng.random() < 0.4:
        # A drying front leaves a line along a contour.
        glue = glue + rng.uniform(-0.15, 0.1) * np.exp(-(((film - level) / 0.05) ** 2))
    if rng.random() < 0.35:
        # Wisps of glue: broken lines where one field crosses zero and another is high.
        width = rng.uniform(0.02, 0.08)
        line = np.exp(-((_smooth_field(rng, shape, float(rng.uniform(25.0, 120.0))) / width) ** 2))
        line *= np.clip(_smooth_field(rng, shape, 40.0) - 0.5, 0.0, 1.0)
        glue = glue + rng.uniform(-0.4, 0.5) * line
    if rng.random() < 0.2:
        # Debris far above the focus: dark, with no edge.
        for _ in range(int(rng.integers(1, 4))):
            spot = _soft_spot(rng, shape, rng.uniform(0.0, 1.0, 2), float(np.exp(rng.normal(2.3, 0.6))))
            glue = glue - rng.uniform(0.2, 0.9) * spot
    residue = glue.astype(np.float32)[..., None] * _tint(rng)
    if rng.random() < 0.3:
        # Lumps of glue in rows: bright or dark, of any colour, without an edge.
        start, drift = rng.uniform(0.0, 1.0, 2), rng.normal(0.0, 0.09, 2)
        size, tint = float(np.exp(rng.normal(1.9, 0.5))), _tint(rng)
        for step in range(int(rng.integers(2, 14))):
            place = start + step * drift + rng.normal(0.0, 0.03, 2)
            spot = _soft_spot(rng, shape, place, size * float(np.exp(rng.normal(0.0, 0.4))))
            residue += np.float32(rng.uniform(-0.1, 0.45)) * spot[..., None] * tint
    return np.maximum(residue, np.float32(-0.95))


def _tint(rng: np.random.Generator) -> Float32:
    """Strength of a residue in the three channels: gray, or as coloured as a thin film."""
    colour = rng.normal(0.0, 0.7, 3) if rng.random() < 0.5 else 0.0
    return np.asarray(rng.uniform(0.4, 1.2, 3) + colour, np.float32)


def _soft_spot(rng: np.random.Generator, shape: tuple[int, int], place: Float, size_px: float) -> Float32:
    """A blurred, elongated blob, 1 at its centre; `place` in shares of rows and columns."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    down = (rows - np.float32(place[0] * shape[0])) / np.float32(size_px)
    across = (cols - np.float32(place[1] * shape[1])) / np.float32(size_px)
    turn, stretch = rng.uniform(0.0, np.pi), np.exp(rng.normal(0.0, 0.35))
    along = (np.cos(turn) * down + np.sin(turn) * across) * stretch
    beside = (np.cos(turn) * across - np.sin(turn) * down) / stretch
    return np.asarray(np.exp(-((along**2 + beside**2) ** rng.uniform(0.6, 1.5))), np.float32)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], grain_px: float) -> Float32:
    """A Gaussian random field of unit variance, smooth over `grain_px`."""
    coarse = tuple(int(np.ceil(side / grain_px)) + 3 for side in shape)
    seed = rng.standard_normal(coarse).astype(np.float32)
    image = Image.fromarray(seed)
    big = image.resize((round(coarse[1] * grain_px), round(coarse[0] * grain_px)), Image.Resampling.BICUBIC)
    return np.asarray(big)[: shape[0], : shape[1]] * np.float32(1.3)


def write_caption(rng: np.random.Generator, pixels: Pixels) -> Mask:
    """Burn a scale bar and a caption into the picture; returns where."""
    rows, cols = pixels.shape[:2]
    mask = Image.new("L", (cols, rows), 0)
    pen = ImageDraw.Draw(mask)
    height = int(rng.integers(9, 22))
    words = rng.choice(
        ["10 um", "5 um", "20 um  50x", "S12_MoS2_100x 2024-10-28", "sample 3 area B", "100 x"]
    )
    corner = rng.integers(4)
    x = 8 if corner % 2 == 0 else max(8, cols - 12 * height)
    y = 6 if corner < 2 else rows - 2 * height - 8
    pen.text((x, y), str(words), fill=255, font=ImageFont.load_default(height))
    bar = int(cols * rng.uniform(0.08, 0.25))
    pen.rectangle(
        (x, y + height + 6, min(x + bar, cols - 1), y + height + 6 + int(rng.integers(1, 5))), fill=255
    )
    where = np.asarray(mask) > 0
    ink = rng.choice(np.array([[255, 255, 255], [0, 0, 0], [255, 230, 0], [255, 0, 0]]))
    share = np.asarray(mask, np.float32)[where, None] / 255.0
    pixels[where] = (pixels[where] * (1.0 - share) + ink * share).astype(np.uint8)
    return where


def compress(pixels: Pixels, quality: int) -> Pixels:
    """The picture after JPEG compression of this quality."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    return np.array(Image.open(buffer))
