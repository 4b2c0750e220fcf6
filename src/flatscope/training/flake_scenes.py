"""Scenes with known truth for the flake network, as it will see them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatscope.optical.background import mend_channels
from flatscope.optical.nuisances import draw_any_contrasts
from flatscope.optical.photographs import Microscope, draw_microscope
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.optical.setups import Prior
from flatscope.parallel import map_in_order
from flatscope.training.losses import IGNORE
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Flakes

SUBSTRATE, THIN, THICK, ARTEFACT = range(4)
Example: TypeAlias = tuple[NDArray[np.float16], NDArray[np.uint8], NDArray[np.uint8]]
"""What the network sees (3, rows, cols), the class and the edge of every pixel."""
_VISIBLE = 0.012  # contrast; a flake below it in every channel is ignored in training and validation
_SUBSTRATE_SIGMA = 0.008  # 1-sigma relative error of the substrate's estimated brightness
_ANY_FILM_SHARE = (
    0.25  # of anyone's scenes: films and substrates that thin-film optics on oxide does not describe
)
_GRAPHENE_SHARE = 0.3  # of these: graphene on the oxides that laboratories buy, faint as it is
_COLOURS = (0.15, 0.85)  # range of the substrate's stored brightness under any film
_OXIDES_NM = (90.0, 285.0, 300.0)
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
    own = recipe.task
    jobs = [(recipe.seed, index, side, own.contrast_scale, own.anyone_share) for index in range(total)]
    for index, made in enumerate(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress)):
        contrast[index], classes[index], edges[index] = made
    first = recipe.scenes_val
    return FlakeData(
        Scenes(contrast[first:], classes[first:], edges[first:]),
        Scenes(contrast[:first], classes[:first], edges[:first]),
    )


def _draw(job: tuple[int, int, int, float, float]) -> Example:
    seed, index, side, scale, anyone_share = job
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    return draw_example(rng, side, scale=scale, anyone_share=anyone_share)


def draw_example(
    rng: np.random.Generator,
    side: int,
    *,
    scale: float,
    microscope: Microscope | None = None,
    anyone_share: float = 0.0,
) -> Example:
    """Draw a scene of `side` x `side` px as the network sees it, its classes and its edges; see `Scenes`.

    With the probability `anyone_share` the scene has what `flatscope.optical.nuisances` knows of other people's
    pictures.
    """
    density = float(rng.uniform(0.3, 1.6))
    anyone = anyone_share > 0.0 and rng.random() < anyone_share
    if anyone:
        microscope = _draw_anyones_microscope(rng)
    scene = draw_scene(
        rng, SceneParams(shape=(side, side), density=density, microscope=microscope, anyone=anyone)
    )
    rgb, usable = mend_channels(scene.pixels.astype(np.float32) / np.float32(255.0))
    bare, _ = mend_channels(scene.bare, usable)
    classes = classify(scene)
    if anyone:
        classes[_find_invisible(scene, _compare(rgb, bare))] = IGNORE
    contrast = _compare(rgb, _disturb(rng, bare))
    seen = np.arcsinh(contrast / np.float32(scale)).transpose(2, 0, 1).astype(np.float16)
    return seen, classes, mark_edges(scene.regions)


def _compare(rgb: NDArray[np.float32], bare: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray(rgb / np.maximum(bare, np.float32(1e-3)) - np.float32(1.0))


def _find_invisible(scene: Scene, contrast: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels of thin flakes that this picture does not show: clipped, or lost in a rough substrate."""
    hidden = np.zeros(scene.layers.shape, bool)
    least = max(_VISIBLE, scene.parameters.get("roughness", 0.0))
    for layers in range(1, 7):
        own = scene.layers == layers
        if own.any() and np.abs(np.median(contrast[own], axis=0)).max() < least:
            hidden |= own
    return hidden


def _draw_anyones_microscope(rng: np.random.Generator) -> Microscope | None:
    """Any film, graphene on a common oxide, or None: whatever `draw_scene` draws."""
    kind = rng.random()
    if kind < _ANY_FILM_SHARE:
        setup = Prior(str(rng.choice(["graphene", "MoS2", "WS2"]))).draw(rng)
        return Microscope.from_contrast(setup, draw_any_contrasts(rng), rng.uniform(*_COLOURS, 3))
    if kind < _ANY_FILM_SHARE + _GRAPHENE_SHARE:
        prior = Prior(
            "graphene", oxide_nm=float(rng.choice(_OXIDES_NM)) + rng.normal(0.0, 8.0), oxide_sigma_nm=0.0
        )
        return draw_microscope(rng, prior.draw(rng))
    return None


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
    classes[scene.behind] = ARTEFACT
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
