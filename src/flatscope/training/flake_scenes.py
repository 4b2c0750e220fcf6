"""Scenes with known truth for the flake network, as it will see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.photographs import Microscope
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.parallel import map_in_order
from flatscope.training.losses import IGNORE
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Flakes

SUBSTRATE, THIN, THICK, ARTEFACT = range(4)
Example: TypeAlias = tuple[NDArray[np.float16], NDArray[np.uint8], NDArray[np.uint8]]
"""What the network sees (3, rows, cols), the class and the edge of every pixel."""
_VISIBLE = 0.012  # contrast; a flake below it in every channel is ignored in training and validation
_SUBSTRATE_SIGMA = 0.008  # 1-sigma relative error of the substrate's estimated brightness
_CORNER_SHARE = 0.08  # of the scenes whose light falls off in a corner


@dataclass(frozen=True)
class Scenes:
    """Scenes as the network's input and target: see `flatscope.training.flakes.Split`."""

    contrast: NDArray[np.float16]
    classes: NDArray[np.uint8]
    edges: NDArray[np.uint8]


@dataclass(frozen=True)
class FlakeData:
    """Training and validation scenes; no scene is in both."""

    train: Scenes
    val: Scenes


def build(
    recipe: Recipe[Flakes], *, workers: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> FlakeData:
    """Draw all scenes of a recipe.

    Each scene has its own random stream, so the result does not depend on the number of workers.

    Parameters
    ----------
    recipe
        Says how many scenes, how large, from which seed.
    workers
        Processes to draw with; 1 draws in this one.
    on_progress
        Called with (scenes drawn, scenes in all).
    """
    side, total = recipe.task.scene_px, recipe.scenes_train + recipe.scenes_val
    contrast = np.empty((total, 3, side, side), np.float16)
    classes, edges = np.empty((2, total, side, side), np.uint8)
    jobs = [(recipe.seed, index, side, recipe.task.contrast_scale) for index in range(total)]
    for index, made in enumerate(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress)):
        contrast[index], classes[index], edges[index] = made
    first = recipe.scenes_val
    return FlakeData(
        Scenes(contrast[first:], classes[first:], edges[first:]),
        Scenes(contrast[:first], classes[:first], edges[:first]),
    )


def _draw(job: tuple[int, int, int, float]) -> Example:
    seed, index, side, scale = job
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    return draw_example(rng, side, scale=scale)


def draw_example(
    rng: np.random.Generator, side: int, *, scale: float, microscope: Microscope | None = None
) -> Example:
    """Draw a scene of `side` x `side` px as the network sees it, its classes and its edges; see `Scenes`."""
    density = float(rng.uniform(0.3, 1.6))
    scene = draw_scene(rng, SceneParams(shape=(side, side), density=density, microscope=microscope))
    contrast = scene.pixels / (
        np.float32(255.0) * np.maximum(_disturb(rng, scene.bare), np.float32(1e-3))
    ) - np.float32(1.0)
    seen = np.arcsinh(contrast / np.float32(scale)).transpose(2, 0, 1).astype(np.float16)
    return seen, classify(scene), mark_edges(scene.regions)


def _disturb(rng: np.random.Generator, bare: NDArray[np.float32]) -> NDArray[np.float32]:
    """The substrate as `estimate_background` would give it: a little off, a little sloped."""
    rows = np.linspace(-1.0, 1.0, bare.shape[0], dtype=np.float32)[:, None, None]
    cols = np.linspace(-1.0, 1.0, bare.shape[1], dtype=np.float32)[None, :, None]
    sigma = _SUBSTRATE_SIGMA * rng.choice([0.3, 1.0, 2.5])
    tilt = rng.normal(0.0, sigma, (6, 3)).astype(np.float32)
    error = (
        tilt[0]
        + tilt[1] * rows
        + tilt[2] * cols
        + tilt[3] * rows * cols
        + tilt[4] * rows**2
        + tilt[5] * cols**2
    )
    if rng.random() < _CORNER_SHARE:
        # Corners that fall off faster than a polynomial follows.
        corner = rng.choice([-1.0, 1.0], 2)
        distance = np.sqrt((rows - corner[0]) ** 2 + (cols - corner[1]) ** 2)
        error = error + np.float32(rng.uniform(0.1, 1.2)) * np.maximum(
            np.float32(rng.uniform(0.3, 1.0)) - distance, 0.0
        )
    return np.asarray(bare * (1.0 + error), np.float32)


def classify(scene: Scene) -> NDArray[np.uint8]:
    """Class of every pixel: substrate, thin, thick (much brighter than the substrate), artefact; 255 where a flake is
    invisible.

    Returns
    -------
    Shape (rows, cols), uint8.
    """
    classes = np.where(scene.opaque, THICK, THIN).astype(np.uint8)
    classes[scene.regions == 0] = SUBSTRATE
    classes[scene.foreign] = ARTEFACT
    visible = np.abs(scene.contrast).max(1) > _VISIBLE
    for layers in range(1, 7):
        if not visible[layers]:
            classes[scene.layers == layers] = IGNORE
    return classes


def mark_edges(regions: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Pixels next to another region, terrace steps included.

    Returns
    -------
    Shape (rows, cols), uint8: 1 on an edge, else 0.
    """
    edges = np.zeros(regions.shape, bool)
    for axis in (0, 1):
        step = np.diff(regions, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(None, -1), slice(1, None)
        edges[tuple(before)] |= step
        edges[tuple(after)] |= step
    return edges.astype(np.uint8)
