"""Saito et al. 2019: layer numbers of MoS2 and graphene by a U-Net trained on 24 pictures.

npj Comput. Mater. 5, 124, doi:10.1038/s41524-019-0262-4. The pictures are not public; their place is taken by drawn
ones: MoS2 on 300 nm oxide, cleaved and grown, each taken with another microscope, lamp and camera, each showing
monolayer and bilayer. What follows the paper: the network, its loss with and without median-frequency weights, the
four ways of changing colour, three-fold cross-validation by picture (no part of a test picture is ever trained on),
mean per-class pixel accuracy, the majority vote of regions in eleven more pictures, precision against recall.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation.metrics import class_accuracy, confusion_matrix, precision_recall
from flatscope.evaluation.monolayers import (
    CLASSES,
    Classes,
    Probabilities,
    Verdicts,
    decide,
    draw_laboratory,
    draw_scenes,
    find_in_scene,
    name_by_truth,
    score_scenes,
    stack,
    to_probabilities,
)
from flatscope.evaluation.papers import MICROSCOPES, Answer, Progress, Row, part_of
from flatscope.inference.runtime import Network
from flatscope.report.study import Curve, draw_classes, draw_curves

DOI = "10.1038/s41524-019-0262-4"
Variant = tuple[str, bool]
"""How training changes colours, and whether the loss weighs classes by their median frequency."""
COLOURS = ("none", "gray", "contrast", "both")
"""What augmentation does to colours."""
PUBLISHED_ACCURACY = {
    ("none", False): 0.584, ("none", True): 0.643, ("gray", False): 0.46, ("gray", True): 0.56,
    ("contrast", False): 0.678, ("contrast", True): 0.789, ("both", False): 0.633, ("both", True): 0.723,
}  # fmt: skip
"""Mean per-class pixel accuracy by variant."""
PUBLISHED_VOTE = 0.733  # share of regions whose majority vote is right
PUBLISHED_PEOPLE = 0.67  # the same by twelve people
PUBLISHED_RECALL = {"monolayer": 0.76, "bilayer": 0.94}
"""Recall up to which the precision is above 0.9."""
_MEASUREMENTS = 32  # points of a learning curve
_FOLDS = 3  # of the paper's cross-validation


@dataclass(frozen=True)
class Size:
    """How much of the protocol is run.

    Parameters
    ----------
    widths
        Channels of the U-Net's levels.
    crop_px
        Side of a training crop; smaller ones cost less.
    steps, batch, lr
        Of each training.
    variants
        Those that are trained.
    pictures, voted
        Of the cross-validation; and further ones, whose regions vote.
    """

    widths: tuple[int, ...]
    crop_px: int
    steps: int
    batch: int
    lr: float
    variants: tuple[Variant, ...]
    pictures: int = 24  # as published
    voted: int = 11  # as published


ALL_VARIANTS = tuple(itertools.product(COLOURS, (False, True)))
_FEW_VARIANTS = (("contrast", True), ("none", True), ("none", False))
SIZES = {
    "quick": Size((4, 8, 8, 16, 16), 64, 2, 1, 1e-3, (("none", False), ("both", True)), pictures=4, voted=1),
    # As many crops as published, of a sixteenth of the area, through a quarter of the channels.
    "cpu": Size((16, 32, 64, 128, 256), 128, 16_000, 4, 3e-4, _FEW_VARIANTS),
    # 16 pictures in 40 versions each, 100 times over.
    "full": Size((64, 128, 256, 512, 1024), 512, 64000, 1, 1e-5, ALL_VARIANTS),
}
"""Fewer steps need a higher learning rate than the paper's 1e-5."""


@dataclass(frozen=True)
class Study:
    """What came out.

    Parameters
    ----------
    size, setting
        See `run`.
    networks
        What the published network reaches under each variant.
    best
        The variant with the highest accuracy.
    ours
        What flatscope's own method reaches.
    ideal
        The same if each of its regions had the right layer number.
    examples
        Pictures with the true classes, the best network's and ours.
    """

    size: str
    setting: str
    networks: dict[Variant, Verdicts]
    best: Variant
    ours: Verdicts
    ideal: Verdicts
    examples: list[tuple[NDArray[np.uint8], Classes, Classes, Classes]] = field(default_factory=list)


def run(
    size: str, *, setting: str = "across", out: Path | None = None, on_progress: Progress | None = None
) -> Study:
    """Train and test by the paper's protocol, and flatscope on the same pictures.

    Parameters
    ----------
    size
        One of `SIZES`.
    setting
        "published": all pictures by one set-up, each with its own lamp level, white balance and focus; "across":
        each by another one.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    on_progress
        Called with (steps done, steps in all).
    """
    chosen = SIZES[size]
    microscope = draw_laboratory() if setting == "published" else None
    scenes = draw_scenes(chosen.pictures, seed=2019, microscope=microscope)
    extra = draw_scenes(chosen.voted, seed=2020, microscope=microscope)
    networks: dict[Variant, Verdicts] = {}
    guesses: dict[Variant, list[Probabilities]] = {}
    for number, variant in enumerate(chosen.variants):
        name = f"{size}-{setting}-{variant[0]}-{variant[1]}"
        guesses[variant], voted = _cross_validate(
            variant,
            chosen,
            stack(scenes),
            stack(extra)[0],
            checkpoint=None if out is None else out / name,
            on_progress=part_of(
                on_progress, number=number, parts=len(chosen.variants), steps=_FOLDS * chosen.steps
            ),
        )
        networks[variant] = score_scenes(scenes, guesses[variant], extra, voted)
    best = max(networks, key=lambda variant: networks[variant].accuracy.value)
    network = Network.load("flakes")
    tables = [find_in_scene(scene, network) for scene in scenes]
    mine = [to_probabilities(table) for table in tables]
    named = [name_by_truth(table, scene) for table, scene in zip(tables, scenes, strict=True)]
    voted = [to_probabilities(find_in_scene(scene, network)) for scene in extra]
    truth = stack(scenes)[1]
    examples = [
        (scenes[index].pixels, truth[index], decide(guesses[best][index]), decide(mine[index]))
        for index in range(4)
    ]
    return Study(
        size,
        setting,
        networks,
        best,
        score_scenes(scenes, mine, extra, voted),
        score_scenes(scenes, named, [], []),
        examples,
    )


def _cross_validate(
    variant: Variant,
    size: Size,
    scenes: tuple[NDArray[np.uint8], Classes],
    extra: NDArray[np.uint8],
    *,
    checkpoint: Path | None,
    on_progress: Progress | None,
) -> tuple[list[Probabilities], list[Probabilities]]:
    """Class probabilities of every scene by a network that has not seen it, and of extra pictures by the first one."""
    from flatscope.training import supervised
    from flatscope.training.curve import LEAST_STEPS, LearningCurve
    from flatscope.training.nets.unet import SaitoUNet

    colours, weighted = variant
    pictures, truth = scenes
    folds = np.arange(len(pictures)) % _FOLDS
    tested: list[Probabilities] = [np.empty(0, np.float32)] * len(pictures)
    voted: list[Probabilities] = []
    for fold in range(_FOLDS):
        kept = folds != fold
        weights = supervised.median_frequency_weights(truth[kept], count=3) if weighted else None
        plan = supervised.Plan(
            lr=size.lr, steps=size.steps, batch=size.batch, class_weights=weights, seed=fold
        )
        net = supervised.fit(
            supervised.seeded(SaitoUNet, seed=fold, outputs=3, widths=size.widths),
            pictures[kept],
            truth[kept],
            plan,
            augment=make_augment(colours, crop_px=size.crop_px),
            checkpoint=None
            if checkpoint is None
            else LearningCurve(
                checkpoint.with_name(f"{checkpoint.name}-{fold}.pt"),
                partial(_score, pictures=pictures[~kept], truth=truth[~kept]),
                every=max(size.steps // _MEASUREMENTS, LEAST_STEPS),
            ),
            on_progress=part_of(on_progress, number=fold, parts=_FOLDS, steps=size.steps),
        )
        for index in np.flatnonzero(~kept):
            tested[index] = supervised.predict(net, pictures[index : index + 1])[0]
        if fold == 0:
            voted = list(supervised.predict(net, extra))
    return tested, voted


def _score(net: Any, *, pictures: NDArray[np.uint8], truth: Classes) -> dict[str, float]:
    """Mean class accuracy on the pictures of the fold that is tested: for the learning curve, it chooses nothing."""
    from flatscope.training import supervised

    accuracy = class_accuracy(confusion_matrix(truth, supervised.predict(net, pictures).argmax(1), count=3))
    return {"tested": float(np.nanmean(accuracy)), **dict(zip(CLASSES, accuracy.tolist(), strict=True))}


def present(study: Study) -> Answer:
    """The study's table, curves of precision against recall, and four of its pictures."""
    methods = {"best U-Net": study.networks[study.best], "flatscope": study.ours}
    curves = {
        name: {method: _draw_curve(verdicts, index) for method, verdicts in methods.items()}
        for index, name in enumerate(CLASSES[1:])
    }
    marks = {name: (recall, 0.9) for name, recall in PUBLISHED_RECALL.items()}
    figures = {
        "Precision against recall by pixel, all pictures while they were tested": draw_curves(
            curves, marks=marks
        ),
        "Four of the pictures: substrate and thick dark, monolayer yellow, bilayer blue": draw_classes(
            study.examples, titles=("picture", "truth", "best U-Net", "flatscope")
        ),
    }
    notes = (
        f"Size {study.size}. Pictures are drawn, since the published ones are not public: each of MoS2 on 300 nm oxide "
        f"with {MICROSCOPES[study.setting]}. Three-fold cross-validation by picture. Brackets: 95 % interval, by "
        "picture for pixels, binomial for regions.",
        "flatscope is given the material and 300 nm; its network has seen other drawn pictures, none of these.",
    )
    rows = tabulate(study)
    return Answer(
        f"Saito et al. 2019 (doi:{DOI})",
        [row.to_words() for row in rows],
        [asdict(row) for row in rows],
        figures,
        notes,
    )


def _draw_curve(verdicts: Verdicts, index: int) -> Curve:
    """Recall and precision of a class, without the last threshold, which takes every pixel."""
    precision, recall = precision_recall(verdicts.histograms[:, index].sum(0))
    return recall[:-1], precision[:-1]


def tabulate(study: Study) -> list[Row]:
    """The study's numbers beside the published ones; flatscope's own stand once, beside the best network's."""
    rows = [
        Row(
            f"accuracy, colours changed: {colours}, {'weighted' if weighted else 'plain'} loss",
            PUBLISHED_ACCURACY[colours, weighted],
            verdicts.accuracy,
            study.ours.accuracy if (colours, weighted) == study.best else None,
        )
        for (colours, weighted), verdicts in study.networks.items()
    ]
    best = study.networks[study.best]
    rows += [
        Row(f"accuracy of {name}, best network", None, best.accuracy_of(index), study.ours.accuracy_of(index))
        for index, name in enumerate(CLASSES)
    ]
    rows += [
        Row(
            f"recall of {name} at precision 0.9, best network",
            PUBLISHED_RECALL[name],
            best.recall(index),
            study.ours.recall(index),
        )
        for index, name in enumerate(CLASSES[1:])
    ]
    rows += [
        Row(
            f"recall of {name} at precision 0.9, were each region named right",
            None,
            None,
            study.ideal.recall(index),
        )
        for index, name in enumerate(CLASSES[1:])
    ]
    rows.append(Row("majority vote of regions, best network", PUBLISHED_VOTE, best.vote, study.ours.vote))
    rows.append(Row("the same by twelve people", PUBLISHED_PEOPLE, None))
    return rows


def make_augment(
    colours: str, *, crop_px: int
) -> Callable[[np.random.Generator, NDArray[np.uint8], Classes], tuple[NDArray[np.uint8], Classes]]:
    """Random crops, flips and quarter turns; then gray, another contrast and brightness, or either."""

    def augment(
        rng: np.random.Generator, picture: NDArray[np.uint8], truth: Classes
    ) -> tuple[NDArray[np.uint8], Classes]:
        top, left = (int(rng.integers(0, side - crop_px + 1)) for side in truth.shape)
        part = picture[top : top + crop_px, left : left + crop_px]
        target = truth[top : top + crop_px, left : left + crop_px]
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        part, target = np.rot90(part, turns), np.rot90(target, turns)
        if mirrored:
            part, target = part[:, ::-1], target[:, ::-1]
        change = str(rng.choice(["gray", "contrast"])) if colours == "both" else colours
        if change == "gray" and rng.random() < 0.5:
            luminance = part @ np.array([0.299, 0.587, 0.114])
            part = np.repeat(luminance[..., None], 3, axis=2)
        elif change == "contrast":
            mean = part.mean((0, 1))
            part = mean * rng.uniform(0.7, 1.3) + (part - mean) * rng.uniform(0.6, 1.6)
        return np.clip(part, 0, 255).astype(np.uint8), np.ascontiguousarray(target)

    return augment
