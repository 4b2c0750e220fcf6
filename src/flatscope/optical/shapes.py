"""Crystals and foreign matter drawn as maps of thickness: cleaved flakes with terraces, CVD crystals, gold, dirt."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flatscope.optical.thinfilm import LAYER_GRID

Polygon = NDArray[np.float64]
Thickness = NDArray[np.uint8]

SUBSTRATE = 0
"""Entries of a thickness map: 0 is the substrate, 1 to 28 the layer numbers of `LAYER_GRID`, then foreign matter."""
GOLD = 40
DIRT = 41
SECOND_SUBSTRATE = 42
_FEW_LAYERS = int(np.searchsorted(LAYER_GRID, 10.0)) + 1
"""Index of ten layers: what a flake of few layers may have."""
_THIN_SHARES = np.array([0.22, 0.2, 0.15, 0.12, 0.09, 0.07, 0.05, 0.04, 0.03, 0.03])
"""Chances of 1 to 10 layers in a thin flake."""
_THINNEST_THICK = 7
"""Fewest layers of a thick flake."""


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

    def array(self) -> Thickness:
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


def _outline_cleaved(rng: np.random.Generator, centre: Polygon, size: float) -> Polygon:
    """Outline of a cleaved flake: a box cut along a few directions, often 30° or 60° apart."""
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


def _draw_thickness(rng: np.random.Generator, thin: float) -> int:
    """Layer number of a flake that is thin with this probability."""
    if rng.random() < thin:
        return int(rng.choice(10, p=_THIN_SHARES)) + 1
    return int(rng.integers(_THINNEST_THICK, len(LAYER_GRID) + 1))


def cleave_flakes(
    rng: np.random.Generator, shape: tuple[int, int], density: float
) -> tuple[Thickness, dict[str, Any]]:
    """Draw crumbs and terraced flakes as tape leaves them.

    Parameters
    ----------
    rng
        Source of randomness.
    shape
        Rows and columns.
    density
        Flakes per 512x512 px, relative to a typical picture.

    Returns
    -------
    The map of thickness, and the numbers drawn.
    """
    rows, cols = shape
    canvas = _Canvas(shape)
    scale = float(np.exp(rng.uniform(np.log(0.6), np.log(1.8))))
    thin = rng.uniform(0.25, 0.85)
    area = rows * cols / 512**2 * density
    flakes = int(rng.poisson(rng.uniform(3.0, 12.0) * area)) + 1
    crumbs = int(rng.poisson(rng.choice([3.0, 25.0, 90.0], p=[0.4, 0.4, 0.2]) * area))
    nests = rng.uniform(0.0, 1.0, (int(rng.integers(1, 6)), 2))
    for _ in range(crumbs):
        centre = rng.uniform(0.0, 1.0, 2)
        if rng.random() < 0.6:
            centre = nests[rng.integers(len(nests))] + rng.normal(0.0, 0.1, 2)
        centre = centre * (cols, rows)
        canvas.fill(
            _outline_cleaved(rng, centre, scale * np.exp(rng.normal(1.0, 0.6))), _draw_thickness(rng, 0.4)
        )
    if rng.random() < 0.15:
        # A piece of bulk larger than what a network sees at once.
        size = float(rng.uniform(120.0, 450.0))
        _draw_terraces(
            rng,
            canvas,
            _outline_cleaved(rng, rng.uniform(0.0, 1.0, 2) * (cols, rows), size),
            size=size,
            thin=0.1,
        )
    for _ in range(flakes):
        size = scale * float(np.exp(rng.normal(3.1, 0.65)))
        centre = rng.uniform(-0.05, 1.05, 2) * (cols, rows)
        _draw_terraces(rng, canvas, _outline_cleaved(rng, centre, size), size=size, thin=thin)
    return canvas.array(), {"scale": scale, "flakes": flakes, "crumbs": crumbs, "thin_share": thin}


def _draw_terraces(
    rng: np.random.Generator, canvas: _Canvas, outline: Polygon, *, size: float, thin: float
) -> None:
    """One flake: terraces in parallel or crossing cuts, torn strips, folds, and a thick neighbour now and then."""
    if len(outline) < 3:
        return
    base = _draw_thickness(rng, thin)
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
            value = _draw_thickness(rng, thin)
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
        neighbour = _outline_cleaved(
            rng, outline[int(rng.integers(len(outline)))], size * rng.uniform(0.2, 0.8)
        )
        canvas.fill(neighbour, _draw_thickness(rng, 0.3))


def _outline_grown(
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


def grow_crystals(
    rng: np.random.Generator, shape: tuple[int, int], density: float
) -> tuple[Thickness, dict[str, Any]]:
    """Draw CVD crystals with second layers on them; see `cleave_flakes`."""
    rows, cols = shape
    canvas = _Canvas(shape)
    area = rows * cols / 512**2 * density
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
        corners = float(np.clip(hexagonality + rng.normal(0.0, 0.1), 0.0, 1.0))
        canvas.fill(_outline_grown(size, turn=turn, hexagonality=corners, bulge=bulge) + centre, 1)
    for centre, size, turn in seeds:
        top = 1
        while rng.random() < (second if top == 1 else 0.25) and top < 4:
            top += 1
            size *= rng.uniform(0.2, 0.65)
            turn += float(rng.choice([0.0, np.pi / 3, rng.uniform(0.0, np.pi)]))
            shift = rng.normal(0.0, 0.08 * size, 2)
            corners = float(np.clip(hexagonality + rng.normal(0.0, 0.15), 0.0, 1.0))
            canvas.fill(
                _outline_grown(size, turn=turn, hexagonality=corners, bulge=bulge) + centre + shift, top
            )
        if rng.random() < 0.25:
            dot = _outline_cleaved(rng, centre, max(1.0, radius * rng.uniform(0.02, 0.08)))
            canvas.fill(dot, int(rng.integers(8, len(LAYER_GRID))))
    return canvas.array(), {"radius_px": radius, "crystals": count, "hexagonality": hexagonality}


def lay_large_flakes(rng: np.random.Generator, thickness: Thickness) -> None:
    """Lay flakes as large as a close-up shows them over a map of thickness, in place, in half of all maps.

    Some fill half of the picture. Most are thin; pieces of another thickness and holes lie within them.
    """
    if rng.random() < 0.5:
        return
    rows, cols = thickness.shape
    canvas = _Canvas(thickness.shape)
    side = min(rows, cols)
    for _ in range(int(rng.choice([1, 2, 3], p=[0.6, 0.25, 0.15]))):
        size = side * float(np.exp(rng.uniform(np.log(0.15), np.log(0.65))))
        centre = rng.uniform(0.0, 1.0, 2) * (cols, rows)
        outline = _outline_cleaved(rng, centre, size)
        if rng.random() < 0.2:
            turn, corners = rng.uniform(0.0, 2.0 * np.pi), float(rng.choice([0.0, rng.uniform(), 1.0]))
            # A hexagon with edges bent by this much is a disc.
            bulge = 0.155 if corners == 1.0 else float(rng.normal(0.0, 0.06))
            outline = _outline_grown(0.7 * size, turn=turn, hexagonality=corners, bulge=bulge) + centre
        _draw_terraces(rng, canvas, outline, size=size, thin=0.85)
    drawn = canvas.array()
    thickness[drawn > 0] = drawn[drawn > 0]


def draw_foreign(rng: np.random.Generator, thickness: Thickness) -> None:
    """Draw dust, scratches, gold and a second substrate on a map of thickness, in place."""
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
