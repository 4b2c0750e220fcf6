"""Light micrographs with known truth: flakes drawn through thin-film optics, camera and all that spoils a picture.

A scene is a map of thickness (cleaved flakes with terraces, CVD triangles with second layers), coloured by the optics
of one drawn set-up, then soiled, blurred, unevenly lit, recorded with noise, tone-mapped and compressed.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from flatscope.optical.materials import MATERIALS
from flatscope.optical.setups import LATENTS, MODEL_SIGMA, Prior, Setups, store
from flatscope.optical.thinfilm import LAYER_GRID
from flatscope.results import THICK_LABEL

Float = NDArray[np.float64]
Polygon = NDArray[np.float64]

SUBSTRATE = 0
"""Entries of the thickness map: 0 is the substrate, 1 to 28 the layer numbers of `LAYER_GRID`, then foreign matter."""
GOLD, DIRT, SECOND_SUBSTRATE = 40, 41, 42
_THINNEST_THICK = 7
_FEW_LAYERS = int(np.searchsorted(LAYER_GRID, 10.0)) + 1
"""Index of ten layers: what a flake of few layers may have."""
OPAQUE = 0.6
"""Stored contrast from which a crystal looks opaque."""
_VISIBLE_RESIDUE = 0.03
"""Residue that changes the brightness by more, in any channel, is foreign matter."""


@dataclass(frozen=True)
class Microscope:
    """What one laboratory's pictures have in common: a set-up, and the crystals it looks at.

    Parameters
    ----------
    setup
        One set-up.
    crystal
        Linear contrast of `LAYER_GRID` layers, shape (28, 3): theory, and what real crystals differ from it.
    """

    setup: Setups
    crystal: Float

    @classmethod
    def from_contrast(cls, setup: Setups, contrast: Float) -> Microscope:
        """One whose camera stores these contrasts (28, 3)."""
        flare = setup.flare[0]
        linear = (1.0 + contrast) ** setup.gamma[0] * (1.0 + flare) - 1.0 - flare
        return cls(setup, np.maximum(linear, -0.98))

    @property
    def contrast(self) -> Float:
        """Contrast as the camera stores it, shape (28, 3)."""
        return store(self.crystal[None], self.setup.gamma, self.setup.flare)[0]


def draw_microscope(rng: np.random.Generator, setup: Setups) -> Microscope:
    """One set-up, and how real crystals differ from theory in it."""
    return Microscope(setup, _imperfect_contrasts(rng, setup))


@dataclass(frozen=True)
class SceneParams:
    """What to draw; None leaves the choice to chance.

    Parameters
    ----------
    shape
        Rows and columns.
    material
        One of `MATERIALS`.
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
    microscope
        The same for several pictures; its material, oxide and gamma count then.
    """

    shape: tuple[int, int] = (512, 512)
    material: str | None = None
    oxide_nm: float | None = None
    growth: str | None = None
    gamma: float | None = None
    density: float = 1.0
    clean: bool = False
    microscope: Microscope | None = None


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
    material = given.setup.material if given else params.material or str(rng.choice(list(MATERIALS)))
    growth = params.growth or ("cvd" if material != "graphene" and rng.random() < 0.3 else "exfoliated")
    prior = Prior(material, oxide_nm=params.oxide_nm, oxide_sigma_nm=0.0, gamma=params.gamma)
    microscope = given or draw_microscope(rng, prior.setups(rng.standard_normal((1, LATENTS))))
    if crystals is None:
        thickness, drawn = (_grow_crystals if growth == "cvd" else _cleave_flakes)(rng, params)
    else:
        thickness, drawn = crystals.copy(), {}
    foreign = np.zeros(params.shape, bool)
    residue: NDArray[np.float32] | None = None
    if not params.clean:
        _draw_foreign(rng, thickness)
        foreign = thickness >= GOLD
        if rng.random() < 0.75:
            residue = _draw_residue(rng, params.shape)
            foreign |= (np.abs(residue).max(-1) > _VISIBLE_RESIDUE) & (thickness == SUBSTRATE)
    pixels, bare, camera = _photograph(rng, microscope, thickness, residue)
    if not params.clean and rng.random() < 0.25:
        written = _caption(rng, pixels)
        foreign |= written
        thickness[written] = SUBSTRATE
    quality = int(rng.integers(78, 98))
    if rng.random() < 0.7:
        pixels = _compress(pixels, quality)
    thickness[foreign] = SUBSTRATE
    layers = np.where(thickness <= 6, thickness, THICK_LABEL).astype(np.uint8)
    parameters = {"growth": growth, "jpeg_quality": quality, **drawn, **camera}
    contrast = np.vstack([np.zeros((1, 3)), microscope.contrast])
    opaque = (contrast.max(1) > OPAQUE)[thickness]
    return Scene(
        pixels,
        layers,
        label_regions(thickness),
        opaque,
        foreign,
        bare,
        contrast,
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


# --- shapes ---------------------------------------------------------------------------------------------------------


class _Canvas:
    """A thickness map that polygons are drawn on; x is the column."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.image = Image.new("L", (shape[1], shape[0]), SUBSTRATE)
        self.draw = ImageDraw.Draw(self.image)

    def fill(self, polygon: Polygon, value: int) -> None:
        if len(polygon) >= 3:
            self.draw.polygon(polygon.ravel().tolist(), fill=int(value))

    def stroke(self, line: Polygon, value: int, width: int) -> None:
        self.draw.line(line.ravel().tolist(), fill=int(value), width=width)

    def array(self) -> NDArray[np.uint8]:
        return np.array(self.image)


def _cut(polygon: Polygon, normal: Polygon, offset: float) -> Polygon:
    """The part of a polygon where point · normal > offset (Sutherland–Hodgman)."""
    if len(polygon) < 3:
        return polygon[:0]
    side = polygon @ normal - offset
    following, next_side = np.roll(polygon, -1, axis=0), np.roll(side, -1)
    corners = []
    for point, after, here, there in zip(polygon, following, side, next_side, strict=True):
        if here > 0:
            corners.append(point)
        if (here > 0) != (there > 0):
            corners.append(point + here / (here - there) * (after - point))
    return np.array(corners) if len(corners) >= 3 else polygon[:0]


def _roughen(rng: np.random.Generator, polygon: Polygon, depth: int, strength: float) -> Polygon:
    """Displace the midpoints of the edges again and again; some edges stay straight, as cleaved ones do."""
    rough = rng.random(len(polygon)) < 0.45
    for _ in range(depth):
        following = np.roll(polygon, -1, axis=0)
        edge = following - polygon
        middle = polygon + edge * rng.uniform(0.35, 0.65, (len(polygon), 1))
        bend = rng.normal(0.0, strength, len(polygon)) * rough
        middle += bend[:, None] * edge[:, ::-1] * (1.0, -1.0)
        polygon = np.stack([polygon, middle], axis=1).reshape(-1, 2)
        rough = np.repeat(rough, 2)
    return polygon


def _cleaved(rng: np.random.Generator, centre: Polygon, size: float) -> Polygon:
    """A cleaved flake's outline: a box cut along a few directions, often 30° or 60° apart."""
    aspect = np.exp(rng.normal(0.0, 0.5))
    box = (
        np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
        * size
        * (np.sqrt(aspect), 1.0 / np.sqrt(aspect))
    )
    turn = rng.uniform(0.0, np.pi)
    for _ in range(int(rng.integers(1, 6))):
        angle = rng.integers(12) * np.pi / 6 if rng.random() < 0.6 else rng.uniform(0.0, 2 * np.pi)
        normal = np.array([np.cos(angle), np.sin(angle)])
        box = _cut(box, normal, -size * rng.uniform(0.2, 0.95))
    if len(box) < 3:
        return box
    box = _roughen(rng, box, int(rng.integers(0, 4)), rng.uniform(0.03, 0.25))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.asarray(box @ rotation.T + centre)


def _thin_or_thick(rng: np.random.Generator, thin: float) -> int:
    if rng.random() < thin:
        return int(rng.choice(10, p=_THIN_SHARES)) + 1
    return int(rng.integers(_THINNEST_THICK, len(LAYER_GRID) + 1))


_THIN_SHARES = np.array([0.22, 0.2, 0.15, 0.12, 0.09, 0.07, 0.05, 0.04, 0.03, 0.03])


def _cleave_flakes(rng: np.random.Generator, params: SceneParams) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    rows, cols = params.shape
    canvas = _Canvas(params.shape)
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    thin = rng.uniform(0.25, 0.85)
    area = rows * cols / 512**2 * params.density
    flakes = int(rng.poisson(rng.uniform(3.0, 12.0) * area)) + 1
    crumbs = int(rng.poisson(rng.choice([3.0, 25.0, 90.0], p=[0.4, 0.4, 0.2]) * area))
    nests = rng.uniform(0.0, 1.0, (int(rng.integers(1, 6)), 2))
    for _ in range(crumbs):
        centre = rng.uniform(0.0, 1.0, 2)
        if rng.random() < 0.6:
            centre = nests[rng.integers(len(nests))] + rng.normal(0.0, 0.1, 2)
        centre = centre * (cols, rows)
        canvas.fill(_cleaved(rng, centre, scale * np.exp(rng.normal(1.0, 0.6))), _thin_or_thick(rng, 0.4))
    if rng.random() < 0.15:
        # A piece of bulk larger than what a network sees at once.
        size = float(rng.uniform(120.0, 450.0))
        _terraced(
            rng, canvas, _cleaved(rng, rng.uniform(0.0, 1.0, 2) * (cols, rows), size), size=size, thin=0.1
        )
    for _ in range(flakes):
        size = scale * float(np.exp(rng.normal(3.1, 0.65)))
        centre = rng.uniform(-0.05, 1.05, 2) * (cols, rows)
        _terraced(rng, canvas, _cleaved(rng, centre, size), size=size, thin=thin)
    return canvas.array(), {"scale": scale, "flakes": flakes, "crumbs": crumbs, "thin_share": thin}


def _terraced(
    rng: np.random.Generator, canvas: _Canvas, outline: Polygon, *, size: float, thin: float
) -> None:
    """One flake: terraces in parallel or crossing cuts, torn strips, folds, and a thick neighbour now and then."""
    if len(outline) < 3:
        return
    base = _thin_or_thick(rng, thin)
    canvas.fill(outline, base)
    centre = outline.mean(0)
    angle = rng.uniform(0.0, 2 * np.pi)
    for _ in range(int(rng.choice([0, 1, 2, 3, 5], p=[0.42, 0.26, 0.16, 0.1, 0.06]))):
        turn = angle + (rng.normal(0.0, 0.1) if rng.random() < 0.6 else rng.uniform(0.0, 2 * np.pi))
        normal = np.array([np.cos(turn), np.sin(turn)])
        piece = _cut(outline, normal, float(centre @ normal + rng.uniform(-0.6, 0.7) * size))
        if rng.random() < 0.35:
            piece = _cut(piece, -normal, float(-centre @ normal - rng.uniform(0.0, 0.8) * size))
        if base <= _FEW_LAYERS and rng.random() < 0.75:
            value = int(np.clip(base + rng.integers(-3, 4), 1, _FEW_LAYERS))
        else:
            value = _thin_or_thick(rng, thin)
        canvas.fill(piece, value)
    if rng.random() < 0.12:
        for offset in np.cumsum(rng.uniform(0.1, 0.5, 5)) - 0.7:
            normal = np.array([np.cos(angle), np.sin(angle)])
            strip = _cut(outline, normal, float(centre @ normal + offset * size))
            strip = _cut(strip, -normal, float(-centre @ normal - (offset + rng.uniform(0.03, 0.15)) * size))
            canvas.fill(strip, SUBSTRATE)
    if rng.random() < 0.15:
        ends = centre + rng.normal(0.0, 0.6, (2, 2)) * size
        canvas.stroke(ends, int(min(2 * base + 1, len(LAYER_GRID))), int(rng.integers(1, 4)))
    if base > _FEW_LAYERS and rng.random() < 0.6:
        edge = np.vstack([outline, outline[:1]])
        first = int(rng.integers(0, len(outline)))
        last = int(rng.integers(first + 2, len(edge) + 2))
        canvas.stroke(edge[first:last], int(rng.integers(4, 14)), int(rng.integers(1, 4)))
    if rng.random() < 0.3:
        neighbour = _cleaved(rng, outline[int(rng.integers(len(outline)))], size * rng.uniform(0.2, 0.8))
        canvas.fill(neighbour, _thin_or_thick(rng, 0.3))


def grown_outline(
    radius: float, *, turn: float, hexagonality: float, bulge: float, points: int = 12
) -> Polygon:
    """Outline of a CVD crystal about the origin, x = column.

    Parameters
    ----------
    radius
        Distance of the farthest corners in px.
    turn
        Rotation in radians, counter-clockwise as displayed; 0 has a corner on the right.
    hexagonality
        0 a triangle, 1 a regular hexagon.
    bulge
        Edges bent outwards (positive) or inwards, as a share of the radius.
    points
        Points along each edge.
    """
    short = 0.5 + 0.5 * hexagonality
    angles = np.arange(6) * np.pi / 3
    # A triangle's edge midpoints lie at half its corner radius; pushed out to the full radius they make a hexagon.
    corners = np.where(np.arange(6) % 2 == 0, 1.0, short)[:, None] * np.stack(
        [np.cos(angles), np.sin(angles)], 1
    )
    share = np.linspace(0.0, 1.0, points, endpoint=False)
    edges = []
    for start, end in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        line = start + share[:, None] * (end - start)
        edges.append(line * (1.0 + bulge * np.sin(np.pi * share))[:, None])
    outline = np.vstack(edges) * radius
    cos, sin = np.cos(turn), np.sin(turn)
    return np.stack(
        [outline[:, 0] * cos - outline[:, 1] * sin, -(outline[:, 0] * sin + outline[:, 1] * cos)], 1
    )


def _grow_crystals(rng: np.random.Generator, params: SceneParams) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    rows, cols = params.shape
    canvas = _Canvas(params.shape)
    area = rows * cols / 512**2 * params.density
    radius = float(np.exp(rng.uniform(np.log(14.0), np.log(80.0))))
    count = int(np.clip(rng.poisson(rng.uniform(0.05, 0.3) * 512**2 * area / radius**2 / 1.5), 1, 300))
    hexagonality = float(np.clip(rng.beta(0.6, 1.5), 0.0, 1.0))
    bulge = float(rng.normal(0.0, 0.06))
    second = rng.uniform(0.0, 0.8)
    aligned = rng.random() < 0.5
    direction = rng.uniform(0.0, 2 * np.pi)
    seeds = []
    for _ in range(count):
        centre = rng.uniform(-0.03, 1.03, 2) * (cols, rows)
        size = radius * np.exp(rng.normal(0.0, 0.25))
        turn = (
            direction + rng.integers(2) * np.pi + rng.normal(0.0, 0.05)
            if aligned
            else rng.uniform(0.0, 2 * np.pi)
        )
        seeds.append((centre, size, turn))
        shape = float(np.clip(hexagonality + rng.normal(0.0, 0.1), 0.0, 1.0))
        canvas.fill(grown_outline(size, turn=turn, hexagonality=shape, bulge=bulge) + centre, 1)
    for centre, size, turn in seeds:
        top = 1
        while rng.random() < (second if top == 1 else 0.25) and top < 4:
            top += 1
            size *= rng.uniform(0.2, 0.65)
            turn += float(rng.choice([0.0, np.pi / 3, rng.uniform(0.0, np.pi)]))
            shift = rng.normal(0.0, 0.08 * size, 2)
            shape = float(np.clip(hexagonality + rng.normal(0.0, 0.15), 0.0, 1.0))
            canvas.fill(grown_outline(size, turn=turn, hexagonality=shape, bulge=bulge) + centre + shift, top)
        if rng.random() < 0.25:
            dot = _cleaved(rng, centre, max(1.0, radius * rng.uniform(0.02, 0.08)))
            canvas.fill(dot, int(rng.integers(8, len(LAYER_GRID))))
    return canvas.array(), {"radius_px": radius, "crystals": count, "hexagonality": hexagonality}


# --- dirt -----------------------------------------------------------------------------------------------------------


def _draw_foreign(rng: np.random.Generator, thickness: NDArray[np.uint8]) -> None:
    rows, cols = thickness.shape
    canvas = _Canvas(thickness.shape)
    area = rows * cols / 512**2
    if rng.random() < 0.5:
        for _ in range(int(rng.poisson(4 * area))):
            centre, size = rng.uniform(0, 1, 2) * (cols, rows), np.exp(rng.normal(1.1, 0.8))
            angle = np.linspace(0.0, 2 * np.pi, 14)
            blob = np.stack([np.cos(angle), np.sin(angle)], 1) * size * rng.uniform(0.5, 1.3, (14, 1))
            canvas.fill(blob + centre, DIRT)
    if rng.random() < 0.2:
        for _ in range(int(rng.integers(1, 4))):
            line = np.cumsum(rng.normal(0.0, 0.05, (9, 2)) + rng.normal(0.0, 0.08, 2), 0) + rng.uniform(
                0.0, 1.0, 2
            )
            canvas.stroke(line * (cols, rows), DIRT, int(rng.integers(1, 3)))
    if rng.random() < 0.14:
        _draw_gold(rng, canvas, rows, cols)
    if rng.random() < 0.05:
        # The other side of an etched edge, always the smaller part of the picture.
        normal = rng.normal(0.0, 1.0, 2)
        frame = np.array([[0.0, 0.0], [cols, 0.0], [cols, rows], [0.0, rows]])
        half_width = 0.5 * float(np.abs(normal) @ (cols, rows))
        middle = 0.5 * float(normal @ (cols, rows))
        canvas.fill(_cut(frame, normal, middle + rng.uniform(0.35, 0.85) * half_width), SECOND_SUBSTRATE)
    drawn = canvas.array()
    thickness[drawn > 0] = drawn[drawn > 0]


def _draw_gold(rng: np.random.Generator, canvas: _Canvas, rows: int, cols: int) -> None:
    """Alignment marks: crosses, squares and bars with straight edges."""
    turn = rng.normal(0.0, 0.05)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    unit = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    for _ in range(int(rng.integers(1, 5))):
        centre, size = rng.uniform(0.0, 1.0, 2) * (cols, rows), rng.uniform(6.0, 70.0)
        arm = size * rng.uniform(0.15, 0.4)
        shapes = [(size, size)] if rng.random() < 0.4 else [(size, arm), (arm, size)]
        for half in shapes:
            canvas.fill((unit * half) @ rotation.T + centre, GOLD)


def _draw_residue(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
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


def _tint(rng: np.random.Generator) -> NDArray[np.float32]:
    """Strength of a residue in the three channels: gray, or as coloured as a thin film."""
    colour = rng.normal(0.0, 0.7, 3) if rng.random() < 0.5 else 0.0
    return np.asarray(rng.uniform(0.4, 1.2, 3) + colour, np.float32)


def _soft_spot(
    rng: np.random.Generator, shape: tuple[int, int], place: Polygon, size_px: float
) -> NDArray[np.float32]:
    """A blurred, elongated blob, 1 at its centre; `place` in shares of rows and columns."""
    rows, cols = np.ogrid[: shape[0], : shape[1]]
    down = (rows - np.float32(place[0] * shape[0])) / np.float32(size_px)
    across = (cols - np.float32(place[1] * shape[1])) / np.float32(size_px)
    turn, stretch = rng.uniform(0.0, np.pi), np.exp(rng.normal(0.0, 0.35))
    along = (np.cos(turn) * down + np.sin(turn) * across) * stretch
    beside = (np.cos(turn) * across - np.sin(turn) * down) / stretch
    return np.asarray(np.exp(-((along**2 + beside**2) ** rng.uniform(0.6, 1.5))), np.float32)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], grain_px: float) -> NDArray[np.float32]:
    """A Gaussian random field of unit variance, smooth over `grain_px`."""
    coarse = tuple(int(np.ceil(side / grain_px)) + 3 for side in shape)
    seed = rng.standard_normal(coarse).astype(np.float32)
    image = Image.fromarray(seed)
    big = image.resize((round(coarse[1] * grain_px), round(coarse[0] * grain_px)), Image.Resampling.BICUBIC)
    return np.asarray(big)[: shape[0], : shape[1]] * np.float32(1.3)


# --- camera ---------------------------------------------------------------------------------------------------------


def _photograph(
    rng: np.random.Generator,
    microscope: Microscope,
    thickness: NDArray[np.uint8],
    residue: NDArray[np.float32] | None,
) -> tuple[NDArray[np.uint8], NDArray[np.float32], dict[str, Any]]:
    """Turn a thickness map into a picture, and the empty substrate's picture with it."""
    setup = microscope.setup
    table = _colour_table(rng, microscope)
    light = np.take(table, thickness, axis=0)
    if residue is not None:
        light *= 1.0 + residue
    softness = float(np.exp(rng.normal(-0.25, 0.35))) if rng.random() < 0.8 else float(rng.uniform(1.5, 4.0))
    for channel in range(3):
        sigma = softness * rng.uniform(0.95, 1.1)
        light[..., channel] = ndimage.gaussian_filter(light[..., channel], sigma, truncate=2.5)
    sharpening = float(rng.uniform(0.2, 0.9)) if rng.random() < 0.3 else 0.0
    if sharpening:
        for channel in range(3):
            soft = ndimage.gaussian_filter(light[..., channel], 1.2, truncate=2.5)
            light[..., channel] += np.float32(sharpening) * (light[..., channel] - soft)
    flare, gamma = float(setup.flare[0]), float(setup.gamma[0])
    light += np.float32(flare)
    light /= np.float32(1.0 + flare)
    # The brightest channel of the substrate is set to a usual exposure; white balance sets the others.
    bare = setup.bare()[0]
    balance = np.exp(rng.normal(0.0, 0.18, 3))
    colour = bare * balance / (bare * balance).max()
    colour = colour ** rng.uniform(0.3, 1.0)
    level = (colour * rng.uniform(0.3, 0.85) ** gamma).astype(np.float32)
    lamp = _illumination(rng, thickness.shape) * level
    light *= lamp
    electrons = float(np.exp(rng.uniform(np.log(2500.0), np.log(40000.0))))
    read = float(rng.uniform(0.001, 0.004))
    noise = rng.standard_normal(light.shape, dtype=np.float32)
    if rng.random() < 0.5:
        noise = 0.62 * (
            noise
            + np.roll(noise, 1, axis=0)
            + np.roll(noise, 1, axis=1)
            + np.roll(noise, (1, 1), axis=(0, 1))
        )
        noise *= np.float32(0.8)
    light += noise * np.sqrt(np.maximum(light, 0.0) / np.float32(electrons) + np.float32(read**2))
    steps = 8191
    curve = np.round(255.0 * (np.arange(steps + 1) / steps) ** (1.0 / gamma)).astype(np.uint8)
    # Many cameras stop short of the full scale.
    white = float(rng.uniform(0.82, 1.0)) if rng.random() < 0.4 else 1.0
    np.clip(light, 0.0, white, out=light)
    light *= np.float32(steps)
    pixels = curve[light.astype(np.uint16)]
    camera = {
        "softness_px": softness,
        "sharpening": sharpening,
        "white": white,
        "electrons": electrons,
        "read_noise": read,
        "balance": balance.tolist(),
        "level": level.tolist(),
    }
    return pixels, np.clip(lamp, 0.0, 1.0) ** np.float32(1.0 / gamma), camera


def _imperfect_contrasts(rng: np.random.Generator, setup: Setups) -> Float:
    """Linear contrast of `LAYER_GRID` layers, off from theory as real crystals are, shape (28, 3).

    Doping, strain, adsorbates and the errors of published refractive indices move a contrast by a few percent.
    """
    one = np.ones(1)
    linear = replace(setup, gamma=one, flare=0.0 * one).contrasts()[0]
    common = rng.normal(0.0, MODEL_SIGMA / np.sqrt(2.0), 3)
    return np.asarray(
        np.maximum(linear * (1.0 + common + rng.normal(0.0, MODEL_SIGMA / np.sqrt(2.0), linear.shape)), -0.98)
    )


def _colour_table(rng: np.random.Generator, microscope: Microscope) -> NDArray[np.float32]:
    """Linear brightness of every entry of the thickness map, the substrate being 1."""
    table = np.ones((SECOND_SUBSTRATE + 1, 3), np.float32)
    table[1 : len(LAYER_GRID) + 1] = 1.0 + microscope.crystal
    mirror = 1.0 / microscope.setup.bare()[0]
    table[GOLD] = np.array([0.85, 0.68, 0.38]) * mirror * rng.uniform(0.5, 1.1)
    table[DIRT] = rng.uniform(0.05, 0.7) * np.exp(rng.normal(0.0, 0.15, 3))
    table[SECOND_SUBSTRATE] = np.exp(rng.normal(0.0, 0.5) + rng.normal(0.0, 0.3, 3))
    return table


def _illumination(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
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


def _caption(rng: np.random.Generator, pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
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


def _compress(pixels: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", quality=quality)
    return np.array(Image.open(buffer))
