"""The training loop that every network goes through: read `train` first.

A `Task` is plain functions: how to draw the batch of a step, how to take the step, how to validate. The engine counts
steps and minutes, keeps the best weights and writes checkpoints. A batch follows from the number of its step alone, so
a run that was interrupted, killed or stopped by its time budget goes on as if nothing had happened: on one thread of a
CPU its weights are the same to the last bit (where the learning rate follows steps; time does not repeat).
"""

from __future__ import annotations

import io
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from flatscope.files.write import write_atomic
from flatscope.inference.card import Card
from flatscope.training.recipes import RecipeError

Batch = TypeVar("Batch")
Progress = Callable[[int, int], None]
_FORMAT = 2  # of checkpoints; 1 held the flake finder only
_STATE = ("step", "elapsed", "validated", "best", "best_score", "sums", "count", "history")
_LEAST_VALIDATIONS = 12  # before patience may end a run: fewer say nothing about a trend
_LEAST_WARMUP = 0.01  # share of the peak rate that a cosine schedule starts with
_POWER = 0.9  # of the polynomial schedule: Chen et al. 2017, arXiv:1706.05587


class Part(Protocol):
    """Something that changes while training: a network, the average of one, an optimiser."""

    def state_dict(self) -> dict[str, Any]:
        """All of it as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take up what `state_dict` gave."""


@dataclass(frozen=True)
class Moment:
    """Where a run stands before a step.

    Parameters
    ----------
    step, steps
        Steps taken, and steps in all.
    share
        Share of the run that is done, in [0, 1]: of its steps or of its minutes, whichever is nearer the end.
    """

    step: int
    steps: int
    share: float


@dataclass(frozen=True)
class Schedule:
    """How the learning rate changes during a run.

    Parameters
    ----------
    kind
        "constant"; "cosine": down to ``lr * final_lr``, by `Moment.share`; "poly": (1 - t)^0.9, by steps; or
        "late": constant for half of the run, then linearly to 0, by `Moment.share`.
    lr
        The highest rate.
    warmup
        Share of the run in which the rate rises to `lr`; "cosine" and "poly" only.
    final_lr
        The last rate over the highest; "cosine" only.
    """

    kind: str
    lr: float
    warmup: float = 0.0
    final_lr: float = 0.0

    def rate(self, at: Moment) -> float:
        """Learning rate of the next step."""
        if self.kind == "cosine":
            if at.share < self.warmup:
                return self.lr * max(at.share / self.warmup, _LEAST_WARMUP)
            along = (at.share - self.warmup) / (1 - self.warmup)
            return self.lr * (self.final_lr + (1 - self.final_lr) * (1 + math.cos(math.pi * along)) / 2)
        if self.kind == "poly":
            rise = round(self.warmup * at.steps)
            if at.step < rise:
                return self.lr * (at.step + 1) / rise
            return self.lr * (1.0 - (at.step - rise) / max(at.steps - rise, 1)) ** _POWER
        if self.kind == "late":
            return self.lr * min(2.0 * (1.0 - at.share), 1.0)
        return self.lr


@dataclass(frozen=True)
class Task(Generic[Batch]):
    """What a run does.

    Parameters
    ----------
    parts
        All that a step changes, by name.
    draw
        Gives the batch of a step from the step's number alone.
    take
        Takes a step on a batch; returns its losses by name.
    steps
        Steps in all.
    identity
        What must be the same for a run to go on from a checkpoint: plain values by name.
    seed
        Of what the networks themselves draw, such as dropout.
    max_minutes
        The run ends after this time even if steps are left.
    checkpoint_minutes
        Longest time between two checkpoints.
    validate
        Measures the networks as they are; the value "score", if there is one, chooses the best weights.
    validate_every
        Steps from one validation to the next; the end of the run is validated too.
    patience
        The run ends when no validation was the best for this share of it; None: at its last step.
    kept
        The part whose weights are the outcome: the best of those validated, else the last.
    """

    parts: Mapping[str, Part]
    draw: Callable[[int], Batch]
    take: Callable[[Batch, Moment], dict[str, float]]
    steps: int
    identity: Mapping[str, Any]
    seed: int = 0
    max_minutes: float | None = None
    checkpoint_minutes: float = 1.0
    validate: Callable[[], dict[str, float]] | None = None
    validate_every: int = 0
    patience: float | None = None
    kept: str = "net"


@dataclass(frozen=True)
class Report:
    """What one validation found.

    Parameters
    ----------
    number
        Validations before this one.
    step, minutes
        Where the run stood.
    losses
        Means over the steps since the last validation, by name.
    measured
        What the task's `validate` returned.
    best
        True if no validation before had a score as high.
    """

    number: int
    step: int
    minutes: float
    losses: dict[str, float]
    measured: dict[str, float]
    best: bool


@dataclass(frozen=True)
class Trained:
    """A trained network, ready for `onnx_export.export`.

    Parameters
    ----------
    net
        On the CPU, in eval mode.
    card
        What it is, and what it scored on pictures that it never saw.
    calibration
        Pictures that fix the ranges of an export in 8 bits; None for 32 bits.
    """

    net: nn.Module
    card: Card
    calibration: Any = None


def train(
    task: Task[Batch],
    *,
    checkpoint: Path | None = None,
    on_progress: Progress | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Run[Batch]:
    """Train by a task to its last step, or to the end of its time.

    Parameters
    ----------
    task
        See `Task`.
    checkpoint
        File to go on from where it exists. It is written at least every `checkpoint_minutes`, after each validation,
        at the end, and when Ctrl-C ends the run; in one piece or not at all.
    on_progress
        Called with (steps taken, steps expected) after each step. Under a time budget the latter is an estimate.
    on_report
        Called after each validation.

    Raises
    ------
    RecipeError
        The checkpoint belongs to another run or version.
    FloatingPointError
        A loss is no longer finite.
    KeyboardInterrupt
        Passed on, after the checkpoint was written.
    """
    run = Run(task, checkpoint)
    run.restore()
    zero = time.perf_counter() - run.elapsed
    with torch.random.fork_rng(devices=[]), _save_on_interrupt(run):
        while True:
            if run.is_validation_due:
                report = run.validate()
                run.elapsed = time.perf_counter() - zero
                run.save()
                if on_report is not None:
                    on_report(report)
            if run.is_over:
                break
            torch.manual_seed(task.seed + run.step)
            batch = task.draw(run.step)
            with hold_interrupt():  # a step is taken whole or not at all
                run.advance(batch)
                run.elapsed = time.perf_counter() - zero
            if run.elapsed - run.saved > 60.0 * task.checkpoint_minutes:
                run.save()
            if on_progress is not None:
                on_progress(run.step, run.expected_steps)
    run.save()
    return run


@dataclass
class Run(Generic[Batch]):
    """Where a run stands, and how that is stored."""

    task: Task[Batch]
    path: Path | None = None
    step: int = 0
    elapsed: float = 0.0  # seconds, earlier sessions included
    validated: int = 0  # step of the last validation
    best: dict[str, Any] | None = None
    best_score: float = -math.inf
    sums: dict[str, float] = field(default_factory=dict)  # of the losses since the last validation
    count: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    saved: float = 0.0  # seconds at the last checkpoint

    @property
    def share(self) -> float:
        """Share of the run that is done, in [0, 1]."""
        minutes = self.task.max_minutes
        return min(max(self.step / self.task.steps, self.elapsed / (60.0 * (minutes or math.inf))), 1.0)

    @property
    def is_over(self) -> bool:
        """Whether no step is left, or no time, or no hope of a better score."""
        return self.share >= 1.0 or self.is_flat

    @property
    def is_flat(self) -> bool:
        """Whether no validation was the best for the task's patience."""
        if self.task.patience is None or len(self.history) < _LEAST_VALIDATIONS:
            return False
        best = max((report["step"] for report in self.history if report["best"]), default=0)
        return bool(self.validated - best > self.task.patience * self.validated)

    @property
    def is_validation_due(self) -> bool:
        """Whether steps were taken that must be validated now."""
        if self.task.validate is None or self.step == self.validated:
            return False
        return self.step % self.task.validate_every == 0 or self.is_over

    @property
    def expected_steps(self) -> int:
        """Steps that the run will have taken at its end."""
        return max(self.step, min(self.task.steps, math.ceil(self.step / self.share)))

    @property
    def weights(self) -> dict[str, Any]:
        """The outcome: the best weights of the kept part, or its last where nothing was validated."""
        return self.task.parts[self.task.kept].state_dict() if self.best is None else self.best

    @property
    def best_step(self) -> int:
        """Steps behind the outcome."""
        return max((report["step"] for report in self.history if report["best"]), default=self.step)

    def advance(self, batch: Batch) -> None:
        """Take one step."""
        losses = self.task.take(batch, Moment(self.step, self.task.steps, self.share))
        self.sums = {name: self.sums.get(name, 0.0) + value for name, value in losses.items()}
        self.step, self.count = self.step + 1, self.count + 1

    def validate(self) -> Report:
        """Measure the weights and keep them if they are the best so far."""
        assert self.task.validate is not None
        measured = self.task.validate()
        with hold_interrupt():
            losses = {name: value / max(self.count, 1) for name, value in self.sums.items()}
            score = measured.get("score", -math.inf)
            best = score > self.best_score
            report = Report(len(self.history), self.step, self.elapsed / 60, losses, measured, best)
            if best:
                kept = self.task.parts[self.task.kept].state_dict()
                self.best = {name: value.detach().cpu().clone() for name, value in kept.items()}
                self.best_score = score
            self.history.append(asdict(report))
            self.validated, self.sums, self.count = self.step, {}, 0
        return report

    def save(self) -> None:
        """Write the checkpoint, if the run has one."""
        self.saved = self.elapsed
        if self.path is None:
            return
        state = {
            "format": _FORMAT,
            "identity": _flatten(self.task.identity),
            "parts": {name: part.state_dict() for name, part in self.task.parts.items()},
            **{name: getattr(self, name) for name in _STATE},
        }
        stream = io.BytesIO()
        torch.save(state, stream)
        write_atomic(self.path, stream.getvalue())

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        if self.path is None or not self.path.is_file():
            return
        state = _read(self.path)
        before, now = state["identity"], _flatten(self.task.identity)
        for name in now | before:
            if before.get(name) != now.get(name):
                raise RecipeError(
                    f"{self.path}: made with {name} = {before.get(name)}, this run has {now.get(name)}: "
                    "train into another folder, or remove the file to start anew"
                )
        for name, part in self.task.parts.items():
            part.load_state_dict(state["parts"][name])
        for name in _STATE:
            setattr(self, name, state[name])
        self.saved = self.elapsed


def descend(
    optimiser: torch.optim.Optimizer,
    loss: Tensor,
    *,
    rate: float,
    step: int,
    clip: Callable[[], object] | None = None,
) -> float:
    """Take a step of an optimiser down the gradient of a loss, and return the loss.

    Parameters
    ----------
    rate
        Learning rate.
    step
        Number of the step, for the error.
    clip
        Called between gradient and step.

    Raises
    ------
    FloatingPointError
        The loss is not finite; nothing has changed.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise FloatingPointError(
            f"loss is {value} at step {step}: lower lr (now {rate:.3g}) or check the data"
        )
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if clip is not None:
        clip()
    optimiser.step()
    return value


def follow(average: nn.Module, net: nn.Module, *, decay: float, count: int) -> None:
    """Move averaged weights towards those of a network.

    The average must forget the random start, so its memory is short at first and grows with `count` up to `decay`.
    Buffers are copied: statistics of a normalisation are running means already.
    """
    decay = min(decay, (1 + count) / (10 + count))
    with torch.no_grad():
        for kept, now in zip(average.parameters(), net.parameters(), strict=True):
            kept.lerp_(now, 1 - decay)
        for copied, new in zip(average.buffers(), net.buffers(), strict=True):
            copied.copy_(new)


@contextmanager
def hold_interrupt() -> Iterator[None]:
    """Let a Ctrl-C that arrives inside wait for the end (in the main thread; others never get one)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: pending.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        raise KeyboardInterrupt


@contextmanager
def _save_on_interrupt(run: Run[Any]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        with hold_interrupt():
            run.save()
        raise


def _flatten(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values: what JSON makes of them, so that a tuple equals the list that it is stored as."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(identity)))
    return plain


def _read(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises an error of another kind for each way in which a file is none of its own
        state = None
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise RecipeError(
            f"{path} is not a checkpoint of this version: train into another folder, or remove the file"
        )
    return state
