"""Train the network that reads focal series, on drawn ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from flatscope.electron import focal
from flatscope.electron.drawing.specimens import draw_contents, draw_optics, draw_specimen
from flatscope.electron.focal import MAPS
from flatscope.electron.kinds import COLUMN_CLASSES
from flatscope.electron.physics.crystals import find_crystal
from flatscope.inference.card import Score
from flatscope.parallel import map_in_order
from flatscope.training import supervised
from flatscope.training.engine import Trained
from flatscope.training.nets.columnnet import ColumnNet
from flatscope.training.nets.flakenet import FlakeNet
from flatscope.training.nets.msdnet import MSDNet
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Columns

Half = NDArray[np.float16]
DOSE_E_PER_A2 = (2e2, 2e5)  # range of the drawn series
IMAGES = 3  # of a focal series
SUPPORTS = ("", "graphene")


@dataclass(frozen=True)
class Series:
    """Focal series as the network sees them.

    Parameters
    ----------
    images
        Shape (n, rows, cols, 3), see `flatscope.electron.focal.normalise`.
    truth
        Shape (n, rows, cols, 3), see `flatscope.electron.focal.mark_columns`.
    """

    images: Half
    truth: Half

    def take(self, part: slice) -> Series:
        """Some of them."""
        return Series(self.images[part], self.truth[part])


def draw_all(
    count: int,
    *,
    side: int,
    material: str,
    seed: int,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Series:
    """Draw focal series of sheets of a material, bare and on graphene in turn.

    Parameters
    ----------
    side
        Rows and columns, pixels of `flatscope.electron.focal.PIXEL_NM`.
    seed
        Series i has the random stream (seed, i): the result does not depend on the number of workers.
    """
    images, truth = np.empty((2, count, side, side, 3), np.float16)
    jobs = [(seed, index, side, material) for index in range(count)]
    for index, made in enumerate(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress)):
        images[index], truth[index] = made
    return Series(images, truth)


def _draw(job: tuple[int, int, int, str]) -> tuple[Half, Half]:
    seed, index, side, material = job
    rng = np.random.default_rng([seed, index])
    size = (side * focal.PIXEL_NM,) * 2
    contents = draw_contents(rng, material, field_nm=size, support=SUPPORTS[index % len(SUPPORTS)])
    optics = draw_optics(rng, pixel_nm=focal.PIXEL_NM, dose_e_per_a2=DOSE_E_PER_A2)
    specimen = draw_specimen(rng, contents, optics, shape=(side, side))
    truth = focal.mark_columns(specimen.sheet, find_crystal(material), shape=(side, side))
    return focal.normalise(specimen.images).transpose(1, 2, 0).astype(np.float16), truth.astype(np.float16)


def turn(rng: np.random.Generator, images: Half, truth: Half) -> tuple[Half, Half]:
    """One of the eight turned or mirrored copies of a series and its truth."""
    quarters = int(rng.integers(4))
    images, truth = np.rot90(images, quarters), np.rot90(truth, quarters).copy()
    for _ in range(quarters):
        # What pointed to the right points up.
        truth[..., 1], truth[..., 2] = -truth[..., 2], truth[..., 1].copy()
    if rng.random() < 0.5:
        images, truth = images[:, ::-1], truth[:, ::-1].copy()
        truth[..., 2] *= -1.0
    return images, truth


def make_net(recipe: Recipe[Columns]) -> ColumnNet:
    """The network of a recipe, with first weights that follow from its seed."""
    outputs = len(COLUMN_CLASSES) + len(MAPS)

    def make() -> nn.Module:
        if recipe.task.depth:
            return ColumnNet(MSDNet(outputs=outputs, channels=IMAGES, depth=recipe.task.depth))
        return ColumnNet(FlakeNet(outputs=outputs, channels=IMAGES, widths=recipe.task.widths))

    net = supervised.seeded(make, seed=recipe.seed)
    assert isinstance(net, ColumnNet)
    return net


def train(
    recipe: Recipe[Columns],
    *,
    out: Path,
    workers: int = 2,
    resume: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Draw the focal series of a recipe and train on them.

    Parameters
    ----------
    recipe
        A recipe with the section [columns].
    out
        Folder for the drawn series and the checkpoint; a run that was cut off goes on from both.
    workers
        Processes that draw.
    resume
        Go on from the checkpoint where it exists; else it is removed.
    on_progress
        Called with (series drawn, series in all), then as by `engine.train`.

    Returns
    -------
    Trained
        Its card's scores are shares of the pixels of each kind of column in held-out series that are called so.
    """
    own, count = recipe.task, recipe.scenes_val + recipe.scenes_train

    def draw() -> dict[str, Half]:
        return vars(
            draw_all(
                count,
                side=own.scene_px,
                material=own.material,
                seed=recipe.seed,
                workers=workers,
                on_progress=on_progress,
            )
        )

    kept = out / f"series-{own.material}-{recipe.seed}-{own.scene_px}-{count}.npz"
    series = Series(**supervised.draw_or_load(kept, draw))
    held, known = series.take(slice(0, recipe.scenes_val)), series.take(slice(recipe.scenes_val, None))
    net = make_net(recipe)
    checkpoint = supervised.choose_checkpoint(recipe, out, resume=resume)
    supervised.fit_by(
        recipe, net, known.images, known.truth, augment=turn, checkpoint=checkpoint, on_progress=on_progress
    )
    card = supervised.start_card(
        recipe,
        saw=f"{recipe.scenes_train} series of {own.scene_px} px",
        channels=tuple(f"image {number}" for number in range(1, IMAGES + 1)),
        classes=COLUMN_CLASSES,
        maps=MAPS,
        multiple=net.multiple,
    )
    card = replace(
        card,
        pixel_size_nm=focal.PIXEL_NM,
        halo_px=net.halo_px,
        scores=_score(net, held),
        material=own.material,
    )
    return Trained(net, card)


def _score(net: nn.Module, series: Series) -> dict[str, Score]:
    """Share of the pixels of each kind of column that are called so, by series."""
    found: dict[str, list[float]] = {name: [] for name in COLUMN_CLASSES}
    with torch.inference_mode():
        for images, truth in zip(series.images, series.truth, strict=True):
            answers = net(supervised.to_tensor(images[None]))[0, : len(COLUMN_CLASSES)].argmax(0).numpy()
            for index, name in enumerate(COLUMN_CLASSES):
                mine = truth[..., 0] == index
                if mine.any():
                    found[name].append(float(np.mean(answers[mine] == index)))
    scores = {}
    for name, shares in found.items():
        if not shares:
            continue
        mean, half = float(np.mean(shares)), 1.96 * float(np.std(shares) / np.sqrt(len(shares)))
        scores[f"pixels of {name}"] = Score(mean, mean - half, mean + half, f"{len(shares)} drawn series")
    return scores
