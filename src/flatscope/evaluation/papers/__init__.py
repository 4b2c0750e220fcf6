"""Published studies, each with its protocol, table and figures, run beside flatscope.

A module of this package is one study. It has `SIZES`, how much of the protocol is run; ``run(size, out=...)``, which
measures; and ``present(study)``, which makes an `Answer` of what was measured.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from flatscope.evaluation.metrics import Interval
from flatscope.report.study import make_study_page

Progress = Callable[[int, int], None]
STUDIES: Mapping[str, str] = MappingProxyType(
    {
        "saito2019": "layer numbers by a U-Net from 24 pictures (doi:10.1038/s41524-019-0262-4).",
        "yang2024-layers": "layer numbers of CVD crystals by four networks (doi:10.1021/acs.nanolett.3c04815).",
        "yang2024-twist": "twist angles by enclosing triangles and by a ResNet (the same paper).",
        "larsen2021": "atomic columns of MoS2 in HRTEM focal series by an MSD-net and a U-Net.",
        "defectfinder2018": "six kinds of defect in windows of 64 px by a network with class activation maps.",
        "maksov2019": "defects through a movie by a network trained on its first frame "
        "(doi:10.1038/s41524-019-0152-9).",
        "ke2023": "defects by U-Nets that learn from images made to look like one experimental image "
        "(doi:10.1021/acs.nanolett.4c02654).",
    }
)
"""Name of a study to what it is about."""
SIZES = ("quick", "cpu", "full")
"""Half a minute, until validation stops improving (hours on one core), and the published size (for a GPU)."""
SETTINGS = ("published", "across")
"""One microscope and the published split; or every picture by another microscope, none on both sides of a split."""
MICROSCOPES = MappingProxyType({"published": "one microscope for all", "across": "another microscope"})
"""The settings in words: each picture is taken with ..."""
IN_THEIR_SETTING = ("saito2019", "yang2024-layers", "yang2024-twist", "defectfinder2018")
"""Studies whose ``run`` takes a `setting`."""


@dataclass(frozen=True)
class Answer:
    """What a study answers.

    Parameters
    ----------
    title
        Heading of its page.
    rows
        Its table in words, all rows with the same keys.
    numbers
        The same as numbers, for JSON.
    figures
        Caption to PNG file.
    notes
        What a reader of the table should know, a paragraph each.
    """

    title: str
    rows: list[dict[str, str]]
    numbers: list[dict[str, Any]]
    figures: dict[str, bytes]
    notes: tuple[str, ...]

    def to_html(self) -> str:
        """The answer as one page that needs no other file."""
        return make_study_page(self.title, self.rows, self.figures, notes=self.notes)


@dataclass(frozen=True)
class Row:
    """A line of a study's table: what was published, the same protocol run here, and flatscope's own method."""

    name: str
    published: float | None
    reproduced: Interval | None
    ours: Interval | None = None

    def to_words(self) -> dict[str, str]:
        """The line by the heads of the table."""
        return {
            "": self.name,
            "published": "" if self.published is None else f"{self.published:.3f}",
            "reproduced": "" if self.reproduced is None else str(self.reproduced),
            "flatscope": "" if self.ours is None else str(self.ours),
        }


def reproduce(name: str, size: str, *, out: Path, on_progress: Progress | None = None, **more: Any) -> Answer:
    """Run a study and present what it measured.

    Parameters
    ----------
    name
        One of `STUDIES`.
    size
        One of `SIZES`.
    out
        Folder for checkpoints; the same call goes on from them.
    on_progress
        Called with (steps done, steps in all).
    more
        What only this study takes, see its ``run``.
    """
    study = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    answer: Answer = study.present(study.run(size, out=out, on_progress=on_progress, **more))
    return answer


def part_of(on_progress: Progress | None, *, number: int, parts: int, steps: int) -> Progress | None:
    """The progress of training `number` of `parts`, each of `steps`, as progress of them all."""
    return None if on_progress is None else lambda step, _: on_progress(number * steps + step, parts * steps)
