"""Published studies, their protocols run beside flatscope; one file a study."""

from __future__ import annotations

from dataclasses import dataclass

from flatscope.evaluation.metrics import Interval

SIZES = ("quick", "cpu", "full")
"""A few minutes, an hour or two, and the published settings (for a GPU)."""


@dataclass(frozen=True)
class Row:
    """A line of a study's table: what was published, the same protocol run here, and flatscope's own method."""

    name: str
    published: float | None
    reproduced: Interval | None
    ours: Interval | None = None
