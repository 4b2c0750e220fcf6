"""The learning curve of a training: scores against samples seen, written down while it runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flatscope.training.engine import Report

LEAST_STEPS = 50  # between two measurements of a curve: one takes as long as ten to thirty steps


class LearningCurve:
    """Scores a network while it is trained; may choose its best weights and end the training.

    Parameters
    ----------
    checkpoint
        File that the training goes on from. The curve lies beside it, ``.jsonl``, one measurement a line: `step`,
        `samples` (pictures seen), `core_seconds` (of this process: core time where it has one thread), `loss` (mean
        since the line before) and the scores.
    score
        Of a network in eval mode, by name.
    every
        Steps from one measurement to the next.
    patience
        The first score, larger is better, chooses the weights, and the training ends after this share of it without a
        new best. None: the training goes to its end and the last weights count, so the scores choose nothing.
    """

    def __init__(
        self,
        checkpoint: Path,
        score: Callable[[nn.Module], dict[str, float]],
        *,
        every: int,
        patience: float | None = None,
    ) -> None:
        self.checkpoint, self.every, self.patience = checkpoint, every, patience
        self._score, self._begun = score, time.process_time()

    @property
    def samples(self) -> int:
        """Pictures seen at the last measurement."""
        return int(self._read_last().get("samples", 0))

    def measure(self, net: nn.Module) -> dict[str, float]:
        """The scores of a network, which comes and goes in training mode; "score" is the one that chooses."""
        net.eval()
        with torch.inference_mode():
            scores = self._score(net)
        net.train()
        return scores if self.patience is None else {"score": next(iter(scores.values())), **scores}

    def write(self, report: Report, *, samples: int) -> None:
        """Append what a measurement found."""
        now = time.process_time()
        seconds = round(self._read_last().get("core_seconds", 0.0) + now - self._begun, 1)
        self._begun = now
        scores = {name: value for name, value in report.measured.items() if name != "score"}
        line = {"step": report.step, "samples": samples, "core_seconds": seconds, **report.losses, **scores}
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    @property
    def _path(self) -> Path:
        return self.checkpoint.with_suffix(".jsonl")

    def _read_last(self) -> dict[str, Any]:
        """The last measurement."""
        lines = self._path.read_text("utf-8").splitlines() if self._path.is_file() else ["{}"]
        last: dict[str, Any] = json.loads(lines[-1])
        return last
