"""Learn from one experimental image what drawn ones lack: translation of unit-cell crops by a light U-GAT-IT.

References
----------
Kim et al. 2020, arXiv:1907.10830 (the network, its losses and their weights); Ke et al. 2024,
doi:10.1021/acs.nanolett.4c02654 (unit-cell crops of a single image).
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from flatscope.training import supervised
from flatscope.training.loop import hold_interrupt, write_state
from flatscope.training.nets.ugatit import Discriminator, Generator
from flatscope.training.recipes import Recipe, RecipeError

Real = NDArray[np.float32]
ADVERSARIAL, CYCLE, IDENTITY, ATTENTION = 1.0, 10.0, 10.0, 1000.0
"""Published weights of the losses."""
_BETAS, _EMA = (0.5, 0.999), 0.999
_SCANNED = 4
"""Drawn images that the crops of a step come from."""
_SAVE_S, _PARTS = 60.0, 1000
"""Seconds from one checkpoint to the next, and parts of the run that progress is told in."""


@dataclass(frozen=True)
class Outcome:
    """The translator, averaged over its last steps, in eval mode, and the steps taken."""

    net: Generator
    steps: int


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
    recipe: Recipe,
    teacher: Teacher,
    *,
    out: Path,
    fourier: bool = True,
    resume: bool = True,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Train by a recipe whose pictures are "crops".

    Parameters
    ----------
    recipe
        `scenes_train` images of `scene_px` are drawn; `widths`, `lr`, `weight_decay`, `epochs` (over the experimental
        crops), `batch` and `max_minutes` hold, the rest does not; the first of `widths` is that of both generators and
        discriminators at full resolution, and as many as there are blocks stand on either side of the attention. The
        rate falls linearly over the second half of the run, be it of steps or of minutes. More is not better: in nine
        epochs the translator learned that defects are rare in the experiment, and painted them over.
    teacher
        The experimental image.
    out
        Folder for a checkpoint, written once a minute and at the end, also that by Ctrl-C; a run goes on from it.
    fourier
        Whether a discriminator of spectra takes part.
    on_progress
        Called with (parts done, parts in all) of the run, be it of steps or of minutes.

    Raises
    ------
    FloatingPointError
        A loss is no longer finite.
    """
    look = teacher.look
    drawn = draw_clean(look, recipe.scenes_train, side=recipe.scene_px, seed=recipe.seed, workers=workers)
    steps = max(recipe.epochs * len(teacher.crops) // recipe.batch, 1)
    players = supervised.seeded(
        _Players, seed=recipe.seed, width=recipe.widths[0], blocks=len(recipe.widths), fourier=fourier
    )
    assert isinstance(players, _Players)
    run = _Run(recipe, players, out / f"{recipe.name}.pt", identity=_identify(recipe, teacher, fourier))
    if not resume:
        run.path.unlink(missing_ok=True)
    run.go_on()
    begun = saved = time.perf_counter()
    before = run.elapsed
    limit = math.inf if recipe.max_minutes is None else 60.0 * recipe.max_minutes
    share = max(run.done / steps, before / limit)
    try:
        while run.done < steps and run.elapsed < limit:
            rng = np.random.default_rng([recipe.seed, run.done])
            scanned = _scan_crops(rng, drawn, look, count=recipe.batch)
            real = teacher.crops[rng.integers(len(teacher.crops), size=recipe.batch)]
            with hold_interrupt():
                run.step(
                    _to_tensor(scanned), _to_tensor(real), rate=recipe.lr * min(2.0 * (1.0 - share), 1.0)
                )
            run.elapsed = before + time.perf_counter() - begun
            share = max(run.done / steps, run.elapsed / limit)
            if time.perf_counter() - saved > _SAVE_S:
                run.save()
                saved = time.perf_counter()
            if on_progress is not None:
                on_progress(min(round(_PARTS * share), _PARTS), _PARTS)
    finally:
        run.save()
    return Outcome(run.average.eval(), run.done)


def _scan_crops(rng: np.random.Generator, drawn: list[Drawn], look: Look, *, count: int) -> Real:
    """Crops of drawn images that are scanned anew, shape (count, side, side)."""
    parts = []
    for size in np.bincount(np.arange(count) % _SCANNED):
        one = drawn[rng.integers(len(drawn))]
        crops = cut_all(scan_again(rng, one, look), one.sites, side=look.side_px).images
        parts.append(crops[rng.integers(len(crops), size=size)])
    return np.concatenate(parts)


def make_card(recipe: Recipe, teacher: Teacher, outcome: Outcome) -> Card:
    """The card of a translator trained by `recipe` on `teacher`."""
    card = supervised.start_card(
        recipe,
        saw=f"{len(teacher.crops)} crops of {teacher.source}, {outcome.steps} steps",
        channels=("crop",),
        classes=("crop",),
        multiple=outcome.net.multiple,
    )
    return replace(
        card,
        pixel_size_nm=teacher.look.pixel_nm,
        material=teacher.look.material,
        look=teacher.look.to_dict(),
    )


class _Run:
    """Everything that changes while training."""

    def __init__(self, recipe: Recipe, players: _Players, path: Path, *, identity: dict[str, Any]) -> None:
        self.players, self.path, self.identity = players, path, identity
        self.average = copy.deepcopy(players.to_real)
        self.optimisers = [
            torch.optim.Adam(
                itertools.chain.from_iterable(part.parameters() for part in parts),
                lr=recipe.lr,
                betas=_BETAS,
                weight_decay=recipe.weight_decay,
            )
            for parts in (
                (players.to_real, players.to_drawn),
                (players.of_real, players.of_drawn),
            )
        ]
        self.done, self.elapsed = 0, 0.0

    def step(self, drawn: Tensor, real: Tensor, *, rate: float) -> None:
        """Train all players on a batch of either kind of crop."""
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
        players, (generators, discriminators) = self.players, self.optimisers
        (as_real, from_drawn), (as_drawn, from_real) = (
            players.to_real.translate(drawn),
            players.to_drawn.translate(real),
        )
        # Generators: what discriminators say does not change them here.
        players.of_real.requires_grad_(False)
        players.of_drawn.requires_grad_(False)
        same_real, not_drawn = players.to_real.translate(real)
        same_drawn, not_real = players.to_drawn.translate(drawn)
        loss = ADVERSARIAL * (_judge(players.of_real, as_real, 1.0) + _judge(players.of_drawn, as_drawn, 1.0))
        loss = loss + CYCLE * (
            functional.l1_loss(players.to_drawn(as_real), drawn)
            + functional.l1_loss(players.to_real(as_drawn), real)
        )
        loss = loss + IDENTITY * (functional.l1_loss(same_real, real) + functional.l1_loss(same_drawn, drawn))
        loss = loss + ATTENTION * sum(
            functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))
            for logits, wanted in ((from_drawn, 1.0), (from_real, 1.0), (not_drawn, 0.0), (not_real, 0.0))
        )
        self._take(generators, loss)
        players.of_real.requires_grad_(True)
        players.of_drawn.requires_grad_(True)
        judged = sum(
            _judge(judges, true, 1.0) + _judge(judges, made.detach(), 0.0)
            for judges, true, made in (
                (players.of_real, real, as_real),
                (players.of_drawn, drawn, as_drawn),
            )
        )
        self._take(discriminators, judged)
        with torch.no_grad():
            keep = min(_EMA, (self.done + 1) / (self.done + 10))
            for kept, now in zip(self.average.parameters(), players.to_real.parameters(), strict=True):
                kept.lerp_(now, 1.0 - keep)
        self.done += 1

    def _take(self, optimiser: torch.optim.Optimizer, loss: Tensor | int) -> None:
        assert isinstance(loss, Tensor)
        if not math.isfinite(float(loss.detach())):
            raise FloatingPointError(f"loss is {float(loss.detach())} at step {self.done}: lower lr")
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()

    def save(self) -> None:
        """Write the checkpoint."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self.identity,
            "players": self.players.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
            "done": self.done,
            "elapsed": self.elapsed,
        }
        write_state(state, self.path)

    def go_on(self) -> None:
        """Take up the checkpoint, where there is one."""
        if not self.path.is_file():
            return
        state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        if state["identity"] != self.identity:
            raise RecipeError(
                f"{self.path}: made under other settings: train into another folder, or remove it"
            )
        self.players.load_state_dict(state["players"])
        self.average.load_state_dict(state["average"])
        for optimiser, kept in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        self.done, self.elapsed = int(state["done"]), float(state["elapsed"])


def _judge(judges: nn.ModuleList, crops: Tensor, wanted: float) -> Tensor:
    """Mean squares of what the discriminators say against what they should, places and attention alike."""
    total = crops.new_zeros(())
    for judge in judges:
        for logits in judge(crops):
            total = total + functional.mse_loss(logits, torch.full_like(logits, wanted))
    return total


def _identify(recipe: Recipe, teacher: Teacher, fourier: bool) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    plain = recipe.to_dict()
    plain.pop("max_minutes")
    return {**plain, "fourier": fourier, "source": teacher.source, "crops": len(teacher.crops)}


def _to_tensor(crops: Real) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(crops[:, None], np.float32))
