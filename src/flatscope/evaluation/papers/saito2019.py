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
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation.metrics import (
    Interval,
    binomial_interval,
    bootstrap,
    class_accuracy,
    confusion_matrix,
    recall_at_precision,
    score_histogram,
    vote_regions,
)
from flatscope.evaluation.papers import OXIDE_NM, PARAMS, Row, part_of
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.flakes import find_flakes
from flatscope.optical.scenes import Microscope, Scene, SceneParams, draw_scene
from flatscope.results import FlakeTable

DOI = "10.1038/s41524-019-0262-4"
CLASSES = ("other", "monolayer", "bilayer")
"""Classes 0, 1 and 2; other is the substrate and everything thicker."""
COLOURS = ("none", "gray", "contrast", "both")
"""What augmentation does to colours."""
PUBLISHED_ACCURACY = {
    ("none", False): 0.584, ("none", True): 0.643, ("gray", False): 0.46, ("gray", True): 0.56,
    ("contrast", False): 0.678, ("contrast", True): 0.789, ("both", False): 0.633, ("both", True): 0.723,
}  # fmt: skip
"""Mean per-class pixel accuracy by (colours, weighted)."""
PUBLISHED_VOTE, PUBLISHED_PEOPLE = 0.733, 0.67
PUBLISHED_RECALL = {"monolayer": 0.76, "bilayer": 0.94}
"""Recall up to which the precision is above 0.9."""
_TRAINED, _VOTED, _FOLDS = 24, 11, 3
_SIDE_PX = 512
_LEAST_SHARE = (0.01, 0.005)
"""Smallest share of monolayer and of bilayer in a picture that is taken."""
_LEAST_REGION_PX = 300

Classes = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


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
        (colours, weighted) that are trained.
    """

    widths: tuple[int, ...]
    crop_px: int
    steps: int
    batch: int
    lr: float
    variants: tuple[tuple[str, bool], ...]


ALL_VARIANTS = tuple(itertools.product(COLOURS, (False, True)))
_FEW_VARIANTS = (("none", False), ("none", True), ("contrast", True))
SIZES = {
    "quick": Size((8, 16, 32, 64, 128), 128, 100, 4, 2e-3, _FEW_VARIANTS),
    "cpu": Size((16, 32, 64, 128, 256), 128, 800, 4, 1e-3, _FEW_VARIANTS),
    # 16 pictures in 40 versions each, 100 times over.
    "full": Size((64, 128, 256, 512, 1024), 512, 64000, 1, 1e-5, ALL_VARIANTS),
}
"""Fewer steps need a higher learning rate than the paper's 1e-5."""


@dataclass(frozen=True)
class Verdicts:
    """What one method says of pictures, and what is true: per picture, so that intervals can be drawn.

    Parameters
    ----------
    confusion
        Shape (pictures, 3, 3).
    histograms
        Shape (pictures, 2, 2, bins): of monolayer and bilayer, see `score_histogram`.
    votes
        Regions voted right, and regions in all.
    """

    confusion: NDArray[np.int64]
    histograms: NDArray[np.int64]
    votes: tuple[int, int] = (0, 0)

    @property
    def accuracy(self) -> Interval:
        """Mean per-class pixel accuracy."""
        flat = self.confusion.reshape(len(self.confusion), -1)
        return bootstrap(flat, lambda sums: float(np.nanmean(class_accuracy(sums.reshape(3, 3)))))

    def accuracy_of(self, index: int) -> Interval:
        """Pixel accuracy of one class."""
        flat = self.confusion.reshape(len(self.confusion), -1)
        return bootstrap(flat, lambda sums: float(class_accuracy(sums.reshape(3, 3))[index]))

    def recall(self, index: int) -> Interval:
        """Largest recall at a precision of 0.9, of monolayer (0) or bilayer (1)."""
        bins = self.histograms.shape[-1]
        flat = self.histograms[:, index].reshape(len(self.histograms), -1)
        return bootstrap(flat, lambda sums: recall_at_precision(sums.reshape(2, bins)))

    @property
    def vote(self) -> Interval:
        """Share of regions whose majority class is the true one."""
        return binomial_interval(*self.votes)


@dataclass(frozen=True)
class Study:
    """The outcome: what the published network reaches under each variant, what flatscope's own method does, and what it
    would if each of its regions had the right layer number."""

    size: str
    networks: dict[tuple[str, bool], Verdicts]
    best: tuple[str, bool]
    ours: Verdicts
    ideal: Verdicts
    examples: list[tuple[NDArray[np.uint8], Classes, Classes, Classes]] = field(default_factory=list)
    """Pictures with the true classes, the best network's and ours."""


def run(
    size: str, *, out: Path | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Study:
    """Train and test by the paper's protocol, and flatscope on the same pictures.

    Parameters
    ----------
    size
        One of `SIZES`.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    on_progress
        Called with (steps done, steps in all).
    """
    from flatscope.training import supervised
    from flatscope.training.nets.unet import SaitoUNet

    chosen = SIZES[size]
    scenes = draw_scenes(_TRAINED, seed=2019)
    extra = draw_scenes(_VOTED, seed=2020)
    pictures, truth = stack(scenes)
    folds = np.arange(_TRAINED) % _FOLDS
    parts = len(chosen.variants) * _FOLDS
    done = 0
    networks: dict[tuple[str, bool], Verdicts] = {}
    guesses: dict[tuple[str, bool], list[Probabilities]] = {}
    for colours, weighted in chosen.variants:
        tested: list[Probabilities] = [np.empty(0, np.float32)] * _TRAINED
        for fold in range(_FOLDS):
            kept = folds != fold
            weights = supervised.median_frequency_weights(truth[kept], count=3) if weighted else None
            plan = supervised.Plan(
                lr=chosen.lr, steps=chosen.steps, batch=chosen.batch, class_weights=weights, seed=fold
            )
            net = supervised.fit(
                supervised.seeded(SaitoUNet, seed=fold, outputs=3, widths=chosen.widths),
                pictures[kept],
                truth[kept],
                plan,
                augment=make_augment(colours, crop_px=chosen.crop_px),
                checkpoint=None if out is None else out / f"{size}-{colours}-{weighted}-{fold}.pt",
                on_progress=part_of(on_progress, number=done, parts=parts, steps=chosen.steps),
            )
            done += 1
            for index in np.flatnonzero(~kept):
                tested[index] = supervised.predict(net, pictures[index : index + 1])[0]
            if fold == 0:
                voted = list(supervised.predict(net, stack(extra)[0]))
        networks[colours, weighted] = judge(scenes, tested, extra, voted)
        guesses[colours, weighted] = tested
    best = max(networks, key=lambda key: networks[key].accuracy.value)
    network = Network.load("flakes")
    tables = [_find(scene, network) for scene in scenes]
    mine = [probabilities(table) for table in tables]
    named = [name_by_truth(table, scene) for table, scene in zip(tables, scenes, strict=True)]
    ours = judge(scenes, mine, extra, [read_scene(scene, network) for scene in extra])
    examples = [
        (scenes[index].pixels, truth[index], _decide(guesses[best][index]), _decide(mine[index]))
        for index in range(4)
    ]
    return Study(size, networks, best, ours, judge(scenes, named, [], []), examples)


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


def draw_scenes(count: int, *, seed: int, microscope: Microscope | None = None) -> list[Scene]:
    """Pictures of MoS2 that show monolayer and bilayer, cleaved and grown in turn; on 300 nm oxide, each taken with
    another microscope, or all with the one given."""
    found: list[Scene] = []
    for trial in itertools.count():
        growth = "cvd" if len(found) % 2 else "exfoliated"
        scene = draw_scene(
            np.random.default_rng([seed, trial]),
            SceneParams(
                shape=(_SIDE_PX, _SIDE_PX),
                material="MoS2",
                oxide_nm=OXIDE_NM,
                growth=growth,
                microscope=microscope,
            ),
        )
        if all(np.mean(scene.layers == n) >= share for n, share in zip((1, 2), _LEAST_SHARE, strict=True)):
            found.append(scene)
        if len(found) == count:
            break
    return found


def classify(layers: NDArray[np.uint8]) -> Classes:
    """Layer numbers as the paper's three classes."""
    return np.where((layers == 1) | (layers == 2), layers, 0).astype(np.uint8)


def stack(scenes: list[Scene]) -> tuple[NDArray[np.uint8], Classes]:
    """Pictures (n, rows, cols, 3) and classes (n, rows, cols)."""
    return np.stack([scene.pixels for scene in scenes]), np.stack(
        [classify(scene.layers) for scene in scenes]
    )


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


def read_scene(scene: Scene, network: Network) -> Probabilities:
    """flatscope's own answer as class probabilities of every pixel, shape (3, rows, cols)."""
    return probabilities(_find(scene, network))


def _find(scene: Scene, network: Network) -> FlakeTable:
    return find_flakes(Micrograph(scene.pixels, source="scene"), PARAMS, network=network)


def probabilities(table: FlakeTable) -> Probabilities:
    """A flake table as class probabilities of every pixel, shape (3, rows, cols)."""
    p = np.zeros((int(table.labels.max(initial=0)) + 1, 3), np.float32)
    rows = table.found
    p[rows["region_id"].to_numpy(int), 1:] = rows[["p_1", "p_2"]].to_numpy(np.float32)
    p[:, 0] = 1.0 - p[:, 1:].sum(1)
    return np.ascontiguousarray(p[table.labels].transpose(2, 0, 1))


def name_by_truth(table: FlakeTable, scene: Scene) -> Probabilities:
    """The regions of a flake table, each with the shares of the true classes in it, shape (3, rows, cols): what is
    left to be wrong is where the borders lie."""
    labels, true = table.labels, classify(scene.layers)
    shares = np.stack([np.bincount(labels[true == index], minlength=labels.max() + 1) for index in range(3)])
    p = (shares / np.maximum(shares.sum(0), 1)).astype(np.float32)
    return np.ascontiguousarray(p[:, labels])


def judge(
    scenes: list[Scene], guesses: list[Probabilities], extra: list[Scene], voted: list[Probabilities]
) -> Verdicts:
    """Compare class probabilities with the truth; regions of the extra scenes vote."""
    confusion, histograms = [], []
    for scene, guess in zip(scenes, guesses, strict=True):
        true = classify(scene.layers)
        confusion.append(confusion_matrix(true, _decide(guess), count=3))
        histograms.append([score_histogram(guess[layer], true == layer) for layer in (1, 2)])
    right = total = 0
    for scene, guess in zip(extra, voted, strict=True):
        areas = np.bincount(scene.regions.ravel())
        marked = np.where(
            (areas[scene.regions] >= _LEAST_REGION_PX) & (classify(scene.layers) > 0), scene.regions, 0
        )
        labels, winner = vote_regions(marked.astype(np.int32), _decide(guess), count=3)
        true_of = dict(zip(scene.regions.ravel().tolist(), scene.layers.ravel().tolist(), strict=True))
        right += sum(int(true_of[int(label)] == won) for label, won in zip(labels, winner, strict=True))
        total += len(labels)
    return Verdicts(np.stack(confusion), np.array(histograms), (right, total))


def _decide(p: Probabilities) -> Classes:
    return p.argmax(0).astype(np.uint8)
