"""Published studies, their protocols run beside flatscope; one file a study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flatscope.evaluation.metrics import Interval
from flatscope.optical.flakes import FlakeParams

OXIDE_NM = 300.0
"""Oxide of the drawn pictures that stand in for the unpublished ones of MoS2."""
PARAMS = FlakeParams("MoS2", oxide_nm=OXIDE_NM, oxide_sigma_nm=5.0, min_area_px=80)
"""What flatscope is told. These studies count every pixel, so it may name smaller crystals than by default (80 px,
chosen on other scenes)."""
SIZES = ("quick", "cpu", "full")
"""A few minutes, an hour or two, and the published settings (for a GPU)."""


@dataclass(frozen=True)
class Row:
    """A line of a study's table: what was published, the same protocol run here, and flatscope's own method."""

    name: str
    published: float | None
    reproduced: Interval | None
    ours: Interval | None = None


def part_of(
    on_progress: Callable[[int, int], None] | None, *, number: int, parts: int, steps: int
) -> Callable[[int, int], None] | None:
    """The progress of training `number` of `parts`, each of `steps`, as progress of them all."""
    return None if on_progress is None else lambda step, _: on_progress(number * steps + step, parts * steps)
