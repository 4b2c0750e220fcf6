"""Train the network that says how a crystal lies, on drawn bilayers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flatscope.inference.card import Score
from flatscope.optical.bilayers import BilayerParams, draw_bilayer
from flatscope.optical.orientation import CROP_PX, crop_layer, decode_density
from flatscope.optical.twist import find_stacks
from flatscope.parallel import map_in_order
from flatscope.training import supervised
from flatscope.training.engine import Trained
from flatscope.training.nets.orientnet import OUTPUTS, OrientNet
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Orientation

Pixels = NDArray[np.uint8]
Degrees = NDArray[np.float32]
_LEAST_PX = 200  # smaller layers are not taught
_AROUND = 1.3  # half a picture's side in circumradii


@dataclass(frozen=True)
class Crystals:
    """Layers as the network sees them.

    Parameters
    ----------
    crops
        Shape (n, 64, 64, 2), see `crop_layer`.
    corners_deg
        Shape (n,), direction of a corner.
    """

    crops: Pixels
    corners_deg: Degrees

    def take(self, part: slice) -> Crystals:
        """Some of them."""
        return Crystals(self.crops[part], self.corners_deg[part])


def draw_crystals(
    count: int, *, seed: int, workers: int = 2, on_progress: Callable[[int, int], None] | None = None
) -> Crystals:
    """Both layers of `count` drawn bilayers of every shape, size and quality of the masks.

    Parameters
    ----------
    seed
        Bilayer i has the random stream (seed, i): the result does not depend on the number of workers.
    """
    jobs = [(seed, index) for index in range(count)]
    made = list(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress))
    return Crystals(
        np.concatenate([crops for crops, _ in made]), np.concatenate([corners for _, corners in made])
    )


def _draw(job: tuple[int, int]) -> tuple[Pixels, Degrees]:
    rng = np.random.default_rng(job)
    radius = float(np.exp(rng.uniform(np.log(30.0), np.log(200.0))))
    params = BilayerParams(
        shape=(round(2.0 * _AROUND * radius),) * 2,
        radius_px=(radius, radius),
        ratio=(0.2, 0.7),
        offset=float(rng.uniform(0.0, 0.3)),
        cut=(0.0, 1.0 / 3.0),
        cut_share=float(rng.choice([0.5, 1.0])),
        bulge=float(rng.choice([0.0, 0.01, 0.03])),
        roughness_px=float(rng.choice([0.0, 1.0, 2.0, 3.0])),
        grain_px=float(rng.uniform(2.0, 6.0)),
        holes=2.0,
        salt=float(rng.choice([0.0, 0.002])),
        beyond=0.4,
    )
    drawn = draw_bilayer(rng, params)
    stacks = list(find_stacks(drawn.layers))
    crops, corners = [], []
    if stacks:
        stack = max(stacks, key=lambda one: int(one.top.sum()))
        for mask, hidden, corner in (
            (stack.bottom, stack.border | stack.seam, drawn.bottom_deg),
            (stack.top, stack.border | stack.end, drawn.top_deg),
        ):
            if mask.sum() >= _LEAST_PX:
                crops.append(crop_layer(mask, hidden))
                corners.append(corner)
    return np.reshape(crops, (-1, CROP_PX, CROP_PX, 2)).astype(np.uint8), np.array(corners, np.float32)


def turn(rng: np.random.Generator, crop: Pixels, corner: Degrees) -> tuple[Pixels, Degrees]:
    """One of the eight turned or mirrored copies of a crop, with its direction."""
    quarters = int(rng.integers(4))
    crop, corner = np.rot90(crop, quarters), corner + np.float32(90.0 * quarters)
    if rng.random() < 0.5:
        crop, corner = crop[:, ::-1], np.float32(180.0) - corner
    return crop, corner


def train(
    recipe: Recipe[Orientation],
    *,
    out: Path,
    workers: int = 2,
    resume: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Draw the bilayers of a recipe and train on their layers.

    Parameters
    ----------
    recipe
        A recipe with the section [orientation]: `scenes_train` and `scenes_val` together count bilayers; the first
        `scenes_val` layers are held out.
    out
        Folder for the drawn crystals and the checkpoint; a run that was cut off goes on from both.
    workers
        Processes that draw.
    resume
        Go on from the checkpoint where it exists; else it is removed.
    on_progress
        Called with (bilayers drawn, bilayers in all), then as by `engine.train`.

    Returns
    -------
    Trained
        Its card's scores are the mean error modulo 60 degrees of held-out layers and the share of errors within the
        stated one.
    """
    count = recipe.scenes_val + recipe.scenes_train

    def draw() -> dict[str, NDArray[Any]]:
        return vars(draw_crystals(count, seed=recipe.seed, workers=workers, on_progress=on_progress))

    crystals = Crystals(**supervised.draw_or_load(out / f"crystals-{recipe.seed}-{count}.npz", draw))
    held = crystals.take(slice(0, recipe.scenes_val))
    known = crystals.take(slice(recipe.scenes_val, None))
    net = supervised.seeded(OrientNet, seed=recipe.seed, widths=recipe.task.widths)
    checkpoint = supervised.choose_checkpoint(recipe, out, resume=resume)
    supervised.fit_by(
        recipe,
        net,
        known.crops,
        known.corners_deg,
        augment=turn,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    card = supervised.start_card(
        recipe,
        saw=f"{recipe.scenes_train} bilayers",
        channels=("layer", "hidden"),
        maps=OUTPUTS,
        multiple=CROP_PX,
    )
    return Trained(net, replace(card, scores=_score(net, held)))


def _score(net: nn.Module, crystals: Crystals) -> dict[str, Score]:
    with torch.inference_mode():
        parts = np.array_split(np.arange(len(crystals.crops)), max(len(crystals.crops) // 256, 1))
        made = [net(supervised.to_tensor(crystals.crops[part])).numpy() for part in parts]
    answers = np.concatenate(made)
    angle, sigma, _ = decode_density(answers)
    error = np.abs((angle - crystals.corners_deg + 30.0) % 60.0 - 30.0)
    data = f"{len(error)} drawn crystals"
    found = {"mean error modulo 60, degrees": error, "in one sigma": error < sigma}
    scores = {}
    for name, values in found.items():
        mean, half = float(values.mean()), 1.96 * float(values.std() / np.sqrt(len(values)))
        scores[name] = Score(mean, mean - half, mean + half, data)
    return scores
