"""Learn from one experimental image what drawn ones lack: translation of unit-cell crops by a light U-GAT-IT.

References
----------
Kim et al. 2020, arXiv:1907.10830 (the network, its losses and their weights); Ke et al. 2024,
doi:10.1021/acs.nanolett.4c02654 (unit-cell crops of a single image).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from flatscope.electron.drawing.appearance import Drawn, Look, draw_clean, scan_again
from flatscope.electron.drawing.crops import cut_all
from flatscope.electron.drawing.microscopes import Teacher
from flatscope.inference.card import Card
from flatscope.training import engine, supervised
from flatscope.training.engine import Moment, Task, Trained
from flatscope.training.nets.ugatit import Discriminator, Generator
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Realism

Real = NDArray[np.float32]
Batch = tuple[Tensor, Tensor]
ADVERSARIAL = 1.0  # weights of the losses as published
CYCLE = 10.0
IDENTITY = 10.0
ATTENTION = 1000.0
_BETAS = (0.5, 0.999)  # of Adam, as published
_EMA = 0.999  # decay a step of the averaged translator
_SCANNED = 4  # drawn images that the crops of a step come from


class _Players(nn.Module):
    """Both generators, and the discriminators of both kinds of crop."""

    def __init__(self, *, width: int, blocks: int, fourier: bool) -> None:
        super().__init__()
        self.to_real, self.to_drawn = (Generator(width=width, blocks=blocks) for _ in range(2))
        self.of_real, self.of_drawn = (
            nn.ModuleList(
                [
                    Discriminator(halvings=2, width=width),
                    Discriminator(halvings=3, width=width),
                    *([Discriminator(halvings=2, width=width, spectrum=True)] if fourier else []),
                ]
            )
            for _ in range(2)
        )


def train(
    recipe: Recipe[Realism],
    teacher: Teacher,
    *,
    out: Path,
    fourier: bool = True,
    resume: bool = True,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Draw images and learn to translate their unit cells into the look of one experimental image.

    More is not better: in nine epochs the translator learned that defects are rare in the experiment, and painted them
    over.

    Parameters
    ----------
    recipe
        A recipe with the section [realism]: `scenes_train` images are drawn, epochs count experimental crops.
    teacher
        The experimental image.
    out
        Folder for the checkpoint; a run that was cut off goes on from it.
    fourier
        Whether a discriminator of spectra takes part.
    resume
        Go on from the checkpoint where it exists; else it is removed.
    workers
        Processes that draw.
    on_progress
        See `engine.train`.

    Returns
    -------
    Trained
        The translator, averaged over its last steps.

    Raises
    ------
    RecipeError
        The checkpoint was made under other settings.
    FloatingPointError
        A loss is no longer finite.
    """
    own, look = recipe.task, teacher.look
    drawn = draw_clean(look, recipe.scenes_train, side=own.scene_px, seed=recipe.seed, workers=workers)
    players = supervised.seeded(
        _Players, seed=recipe.seed, width=own.widths[0], blocks=len(own.widths), fourier=fourier
    )
    assert isinstance(players, _Players)
    average = copy.deepcopy(players.to_real)
    generators, discriminators = _make_optimisers(players, recipe)
    schedule = supervised.read_schedule(recipe)

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([recipe.seed, step])
        scanned = _scan_crops(rng, drawn, look, count=recipe.batch)
        real = teacher.crops[rng.integers(len(teacher.crops), size=recipe.batch)]
        return _to_tensor(scanned), _to_tensor(real)

    def take(batch: Batch, at: Moment) -> dict[str, float]:
        rate = schedule.rate(at)
        loss, made = _sum_generator_losses(players, *batch)
        generated = engine.descend(generators, loss, rate=rate, step=at.step)
        loss = _sum_discriminator_losses(players, *batch, made)
        discriminated = engine.descend(discriminators, loss, rate=rate, step=at.step)
        engine.follow(average, players.to_real, decay=_EMA, count=at.step)
        return {"generators": generated, "discriminators": discriminated}

    task = Task(
        parts={
            "players": players,
            "average": average,
            "generators": generators,
            "discriminators": discriminators,
        },
        draw=draw,
        take=take,
        steps=max(recipe.epochs * len(teacher.crops) // recipe.batch, 1),
        identity=_identify(recipe, teacher, fourier),
        seed=recipe.seed,
        max_minutes=recipe.max_minutes,
        checkpoint_minutes=recipe.checkpoint_minutes,
        kept="average",
    )
    checkpoint = supervised.choose_checkpoint(recipe, out, resume=resume)
    run = engine.train(task, checkpoint=checkpoint, on_progress=on_progress)
    return Trained(average.eval(), _make_card(recipe, teacher, average, run.step))


def _scan_crops(rng: np.random.Generator, drawn: list[Drawn], look: Look, *, count: int) -> Real:
    """Crops of drawn images that are scanned anew, shape (count, side, side)."""
    parts = []
    for size in np.bincount(np.arange(count) % _SCANNED):
        one = drawn[rng.integers(len(drawn))]
        crops = cut_all(scan_again(rng, one, look), one.sites, side=look.side_px).images
        parts.append(crops[rng.integers(len(crops), size=size)])
    return np.concatenate(parts)


def _make_card(recipe: Recipe[Realism], teacher: Teacher, net: Generator, steps: int) -> Card:
    card = supervised.start_card(
        recipe,
        saw=f"{len(teacher.crops)} crops of {teacher.source}, {steps} steps",
        channels=("crop",),
        classes=("crop",),
        multiple=net.multiple,
    )
    look = teacher.look
    return replace(card, pixel_size_nm=look.pixel_nm, material=look.material, look=look.to_dict())


def _make_optimisers(players: _Players, recipe: Recipe[Realism]) -> tuple[torch.optim.Adam, torch.optim.Adam]:
    """One for both generators, one for all discriminators."""
    sides = ((players.to_real, players.to_drawn), (players.of_real, players.of_drawn))
    generators, discriminators = (
        torch.optim.Adam(
            itertools.chain.from_iterable(part.parameters() for part in side),
            lr=recipe.lr,
            betas=_BETAS,
            weight_decay=recipe.weight_decay,
        )
        for side in sides
    )
    return generators, discriminators


def _sum_generator_losses(
    players: _Players, drawn: Tensor, real: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The generators' loss, and the crops that they made: drawn ones as real, and real ones as drawn."""
    (as_real, from_drawn), (as_drawn, from_real) = (
        players.to_real.translate(drawn),
        players.to_drawn.translate(real),
    )
    # what the discriminators say does not change them here
    players.of_real.requires_grad_(False)
    players.of_drawn.requires_grad_(False)
    same_real, not_drawn = players.to_real.translate(real)
    same_drawn, not_real = players.to_drawn.translate(drawn)
    loss = ADVERSARIAL * (_compare(players.of_real, as_real, 1.0) + _compare(players.of_drawn, as_drawn, 1.0))
    loss = loss + CYCLE * (
        functional.l1_loss(players.to_drawn(as_real), drawn)
        + functional.l1_loss(players.to_real(as_drawn), real)
    )
    loss = loss + IDENTITY * (functional.l1_loss(same_real, real) + functional.l1_loss(same_drawn, drawn))
    attention = sum(
        functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))
        for logits, wanted in ((from_drawn, 1.0), (from_real, 1.0), (not_drawn, 0.0), (not_real, 0.0))
    )
    return loss + ATTENTION * attention, (as_real, as_drawn)


def _sum_discriminator_losses(
    players: _Players, drawn: Tensor, real: Tensor, made: tuple[Tensor, Tensor]
) -> Tensor:
    """The discriminators' loss on true crops and on those that the generators made."""
    players.of_real.requires_grad_(True)
    players.of_drawn.requires_grad_(True)
    as_real, as_drawn = made
    sides = ((players.of_real, real, as_real), (players.of_drawn, drawn, as_drawn))
    first, second = (
        _compare(side, true, 1.0) + _compare(side, false.detach(), 0.0) for side, true, false in sides
    )
    return first + second


def _compare(discriminators: nn.ModuleList, crops: Tensor, wanted: float) -> Tensor:
    """Sum of the mean squared differences between the discriminators' logits and the wanted value."""
    total = crops.new_zeros(())
    for discriminator in discriminators:
        for logits in discriminator(crops):
            total = total + functional.mse_loss(logits, torch.full_like(logits, wanted))
    return total


def _identify(recipe: Recipe[Realism], teacher: Teacher, fourier: bool) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    settings = recipe.settings()
    for key in ("max_minutes", "checkpoint_minutes"):
        settings.pop(key)
    return {**settings, "fourier": fourier, "source": teacher.source, "crops": len(teacher.crops)}


def _to_tensor(crops: Real) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(crops[:, None], np.float32))
