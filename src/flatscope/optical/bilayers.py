"""Artificial bilayers with exact truth: a grown crystal with a rotated second layer on it, as label images.

Angles are in degrees, counter-clockwise as displayed, of the direction from a crystal's centre to a corner; a triangle
looks the same every 120°. The twist is the smallest turn from one layer to the other, in [0, 60]°: 0° is stacked
like 3R, 60° like 2H, if the edges of both layers are terminated alike.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import draw

Layers = NDArray[np.uint8]
Polygon = NDArray[np.float64]

HEXAGON_CUT = 1.0 / 3.0
"""Corners cut off at this share of the side turn a triangle into a regular hexagon."""

_LEAST_FREE = 0.8
"""Share of a crystal that lies on no other, if it is drawn."""


@dataclass(frozen=True)
class BilayerParams:
    """What to draw.

    Parameters
    ----------
    shape
        Rows and columns.
    radius_px
        Smallest and largest circumradius of the lower layer.
    ratio
        Size of the upper layer relative to the lower one.
    offset
        The upper layer's centre is off by up to this share of the lower layer's side, in both directions.
    cut
        Share of the side at which corners are cut off: 0 a triangle, 1/3 a regular hexagon.
    cut_share
        Share of the layers that are cut; the others are whole triangles.
    bulge
        Edges bent outwards or inwards (1 sigma), as a share of the radius.
    roughness_px, grain_px
        Segmentation error: outlines displaced by this much (rms), correlated (1/e) over this many pixels.
    holes, salt
        Mean number of holes of a few pixels a flake; share of pixels with a wrong class.
    beyond
        Chance that the crystal reaches over the border of the picture.
    """

    shape: tuple[int, int] = (512, 512)
    radius_px: tuple[float, float] = (50.0, 199.0)
    ratio: tuple[float, float] = (0.2, 0.6)
    offset: float = 0.125
    cut: tuple[float, float] = (0.0, 0.0)
    cut_share: float = 0.0
    bulge: float = 0.0
    roughness_px: float = 0.0
    grain_px: float = 3.0
    holes: float = 0.0
    salt: float = 0.0
    beyond: float = 0.0


PUBLISHED = BilayerParams(cut=(0.2917, 0.3333), cut_share=0.5)
"""The generator of Yang et al. 2024 (doi:10.1021/acs.nanolett.3c04815), as far as it is described."""
RAGGED = BilayerParams(
    cut=(0.0, 0.25), cut_share=1.0, bulge=0.01, roughness_px=2.0, holes=2.0, salt=0.002, beyond=0.15
)
"""Masks as a network makes them."""


@dataclass(frozen=True)
class Bilayer:
    """A drawn bilayer.

    Parameters
    ----------
    layers
        Shape (rows, cols), uint8: 0 substrate, 1 and 2 layers.
    bottom_deg, top_deg
        Direction of a corner of either layer, in [0, 120).
    twist_deg
        In [0, 60].
    cuts
        Of lower and upper layer.
    """

    layers: Layers
    bottom_deg: float
    top_deg: float
    twist_deg: float
    cuts: tuple[float, float]


def draw_bilayer(rng: np.random.Generator, params: BilayerParams = BilayerParams()) -> Bilayer:
    """Draw one crystal with a second layer, clipped by the crystal's own edge where it lies beyond.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same picture.
    params
        What to draw.
    """
    rows, cols = params.shape
    radius = float(rng.uniform(*params.radius_px))
    turns = rng.uniform(0.0, 120.0, 2)
    cuts = np.where(rng.random(2) < params.cut_share, rng.uniform(*params.cut, 2), 0.0)
    if rng.random() < params.beyond:
        centre = rng.uniform(0.0, 1.0, 2) * (cols, rows)
    else:
        margin = np.minimum(radius, 0.5 * np.array([cols, rows]) - 1.0)
        centre = rng.uniform(margin, np.array([cols, rows]) - margin)
    side = np.sqrt(3.0) * radius
    shift = rng.uniform(-params.offset, params.offset, 2) * side
    upper_radius = radius * float(rng.uniform(*params.ratio))
    outlines = [
        cut_triangle(size, turn=turn, cut=cut, bulge=float(rng.normal(0.0, params.bulge))) + place
        for size, turn, cut, place in (
            (radius, turns[0], cuts[0], centre),
            (upper_radius, turns[1], cuts[1], centre + shift),
        )
    ]
    masks = [_fill(rng, outline, params) for outline in outlines]
    layers = masks[0].astype(np.uint8)
    layers[masks[0] & masks[1]] = 2
    _spoil(rng, layers, params)
    return Bilayer(
        layers,
        float(turns[0]),
        float(turns[1]),
        float(abs((turns[1] - turns[0] + 60.0) % 120.0 - 60.0)),
        (float(cuts[0]), float(cuts[1])),
    )


def draw_sample(
    rng: np.random.Generator, params: BilayerParams, *, count: int
) -> tuple[Layers, list[Bilayer]]:
    """Draw several crystals in one picture; where one meets another it stops.

    Parameters
    ----------
    rng
        Source of randomness; the same state gives the same picture.
    params
        What to draw.
    count
        Crystals tried; one that would lie mostly on others is left out.

    Returns
    -------
    The label image, and each bilayer with what can be seen of it.
    """
    layers = np.zeros(params.shape, np.uint8)
    drawn = []
    for _ in range(count):
        bilayer = draw_bilayer(rng, params)
        free = (bilayer.layers > 0) & (layers == 0)
        if free.sum() > _LEAST_FREE * (bilayer.layers > 0).sum():
            seen = np.where(free, bilayer.layers, 0).astype(np.uint8)
            layers[free] = seen[free]
            drawn.append(replace(bilayer, layers=seen))
    return layers, drawn


def cut_triangle(radius: float, *, turn: float, cut: float, bulge: float = 0.0, points: int = 16) -> Polygon:
    """Outline of a triangle with cut corners about the origin, x = column, y = row.

    Parameters
    ----------
    radius
        Circumradius of the whole triangle, px.
    turn
        Direction of a corner, degrees counter-clockwise as displayed.
    cut
        Share of the side cut off at either end, 0 to 1/3.
    bulge
        Edges bent outwards (positive) or inwards, as a share of the radius.
    points
        Points along each edge.
    """
    angles = np.deg2rad(turn + np.array([0.0, 120.0, 240.0]))
    corners = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    following = np.roll(corners, -1, axis=0)
    ends = np.stack([corners + cut * (following - corners), following - cut * (following - corners)], axis=1)
    vertices = ends.reshape(-1, 2)
    along = np.linspace(0.0, 1.0, points, endpoint=False)[:, None]
    edges = []
    for start, end in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        length = float(np.hypot(*(end - start)))
        if length < 1e-9:
            continue
        outward = np.array([end[1] - start[1], start[0] - end[0]]) / length
        edges.append(start + along * (end - start) + bulge * radius * 4.0 * along * (1.0 - along) * outward)
    outline = np.vstack(edges)
    return np.stack([outline[:, 0], -outline[:, 1]], axis=1)


def _fill(rng: np.random.Generator, outline: Polygon, params: BilayerParams) -> NDArray[np.bool_]:
    mask = np.zeros(params.shape, bool)
    mask[draw.polygon(outline[:, 1], outline[:, 0], params.shape)] = True
    if params.roughness_px:
        # The border moves to where the distance from it, noise added, is zero.
        distance = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
        noise = ndimage.gaussian_filter(rng.standard_normal(params.shape), 0.5 * params.grain_px)
        mask = distance + params.roughness_px / noise.std() * noise > 0
    return mask


def _spoil(rng: np.random.Generator, layers: Layers, params: BilayerParams) -> None:
    """Holes and wrong pixels, in place."""
    inside = np.argwhere(layers > 0)
    for _ in range(rng.poisson(params.holes) if len(inside) else 0):
        place = inside[rng.integers(len(inside))]
        hole = draw.disk(place, float(rng.uniform(1.0, 4.0)), shape=layers.shape)
        layers[hole] = rng.integers(0, 2)
    if params.salt:
        wrong = rng.random(layers.shape) < params.salt
        layers[wrong] = rng.integers(0, 3, int(wrong.sum()))
