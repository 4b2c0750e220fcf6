"""Yang et al. 2024: layer numbers of CVD MoS2 by four networks.

Nano Lett. (2024), doi:10.1021/acs.nanolett.3c04815. The pictures are not public; their place is taken by drawn frames
of MoS2 on 300 nm oxide, each taken with another microscope. What follows the paper: the four networks, tiles of
512×512, the classes, stochastic gradient descent with its rates and schedule, random resizing, flips and crops,
confusion matrices, and the distributions of pixel values by class. What does not: the paper cuts frames into tiles
and splits the tiles, so that pieces of one frame are trained on and tested. Here frames are split; what the leak is
worth is measured by training one network both ways, and testing both on tiles that neither has seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatscope.evaluation.metrics import Interval, bootstrap, class_accuracy, class_iou, confusion_matrix
from flatscope.evaluation.monolayers import OXIDE_NM, PARAMS, draw_laboratory
from flatscope.evaluation.papers import MICROSCOPES, Answer, Progress, Row, part_of
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.flakes import find_flakes
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.report.study import draw_classes, draw_confusion, draw_distributions

DOI = "10.1021/acs.nanolett.3c04815"
CLASSES = ("background", "monolayer", "bilayer", "thick")
TILE_PX = 512  # side of a tile, as published
LEAK = "the same, tiles of one frame on both sides"
_IGNORE = 255  # class of pixels that neither train nor count
_VALUE_BINS = 64  # of green values from 0 to 255
_MEASUREMENTS = 20  # points of a learning curve
_LEARNING_RATE = 0.015  # as published
_LEARNING_RATE_LRASPP = 0.02  # as published

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Size:
    """How much of the protocol is run.

    Parameters
    ----------
    networks
        Names, see `make_network`; the first one is trained with the leak too.
    frames
        Frames trained on, and frames tested.
    tiles
        Tiles along each side of a frame.
    crop_px
        Side of a training crop.
    steps, steps_resnet
        Of each training, four crops a step; of the two networks on ResNet-50, which are about ten times as slow.
    """

    networks: tuple[str, ...]
    frames: tuple[int, int]
    tiles: int
    crop_px: int
    steps: int
    steps_resnet: int = 0

    def steps_of(self, name: str) -> int:
        """Of the training of one network."""
        return self.steps_resnet if name in _ON_RESNET else self.steps


_ON_RESNET = ("DeepLabV3", "FCN")
SIZES = {
    "quick": Size(("U-Net of base 4",), (2, 2), 2, 64, 2, steps_resnet=1),
    "cpu": Size(("LR-ASPP", "U-Net of base 16", *_ON_RESNET), (48, 12), 2, 256, 20_000, 3000),
    # 300 passes over twelve tiles of each frame.
    "full": Size(("LR-ASPP", "U-Net of base 32", *_ON_RESNET), (60, 30), 4, 480, 72000, 72000),
}


@dataclass(frozen=True)
class Verdicts:
    """What one method says of the tested frames.

    Parameters
    ----------
    confusion
        Shape (frames, 4, 4).
    values
        Green pixel values by class as stated, shape (4, 64): a histogram from 0 to 255.
    """

    confusion: NDArray[np.int64]
    values: NDArray[np.int64]

    def iou(self, index: int) -> Interval:
        """Intersection over union of one class."""
        return self._interval(lambda confusion: float(class_iou(confusion)[index]))

    @property
    def accuracy(self) -> Interval:
        """Mean per-class pixel accuracy."""
        return self._interval(lambda confusion: float(np.nanmean(class_accuracy(confusion))))

    def _interval(self, score: Callable[[NDArray[np.float64]], float]) -> Interval:
        flat = self.confusion.reshape(len(self.confusion), -1)
        return bootstrap(flat, lambda sums: score(sums.reshape(4, 4)))


@dataclass(frozen=True)
class Study:
    """The outcome, by network; `truth` holds the pixel values by true class."""

    size: str
    setting: str
    networks: dict[str, Verdicts]
    ours: Verdicts
    truth: NDArray[np.int64]
    examples: list[tuple[Pixels, Pixels, Pixels, Pixels]] = field(default_factory=list)
    """Parts of frames with the true classes, those of the best network, and ours."""

    @property
    def best(self) -> str:
        """The network with the largest mean IoU of monolayer and bilayer; the leaking one does not count."""
        fair = [name for name in self.networks if name != LEAK]
        return max(fair, key=lambda name: sum(self.networks[name].iou(index).value for index in (1, 2)))


def run(
    size: str, *, setting: str = "across", out: Path | None = None, on_progress: Progress | None = None
) -> Study:
    """Train and test the networks, and flatscope on the same frames.

    Parameters
    ----------
    size
        One of `SIZES`.
    setting
        "published": all frames by one microscope; "across": each by another one.
    out
        Folder for checkpoints; a run that was cut off goes on from them.
    on_progress
        Called with (steps done, steps in all).
    """
    chosen = SIZES[size]
    microscope = draw_laboratory() if setting == "published" else None
    scenes = [
        draw_scene(
            np.random.default_rng([2024, number]),
            SceneParams(
                shape=(TILE_PX * chosen.tiles,) * 2,
                material="MoS2",
                oxide_nm=OXIDE_NM,
                growth="cvd" if number % 2 else "exfoliated",
                microscope=microscope,
            ),
        )
        for number in range(sum(chosen.frames))
    ]
    kept, tested = scenes[: chosen.frames[0]], scenes[chosen.frames[0] :]
    # The leak: as many tiles, the first of them from the tested frames. Only the others of those are tested on.
    seen, fair = [part[::2] for part in _cut(tested)], _cut(kept)
    leaking = tuple(np.concatenate([own, other])[: len(other)] for own, other in zip(seen, fair, strict=True))
    first, *others = chosen.networks
    jobs = {first: fair, LEAK: (leaking[0], leaking[1]), **dict.fromkeys(others, fair)}
    networks: dict[str, Verdicts] = {}
    answers: dict[str, list[Pixels]] = {}
    for done, (name, (tiles, classes)) in enumerate(jobs.items()):
        made = name if name != LEAK else first
        net = _train(
            made,
            tiles,
            classes,
            chosen,
            checkpoint=None if out is None else out / f"{size}-{setting}-{_plain(name)}.pt",
            score=partial(_score, tested=tested),
            on_progress=part_of(on_progress, number=done, parts=len(jobs), steps=chosen.steps_of(made)),
        )
        answers[name] = [_read_tiles(net, scene) for scene in tested]
        networks[name] = score_frames(tested, answers[name])
    network = Network.load("flakes")
    mine = [read_frame(scene, network) for scene in tested]
    study = Study(
        size,
        setting,
        networks,
        score_frames(tested, mine),
        _count_values(tested, [truth_of(s) for s in tested]),
    )
    part = np.s_[:TILE_PX, TILE_PX : 2 * TILE_PX]
    study.examples.extend(
        (scene.pixels[part], truth_of(scene)[part], theirs[part], ours[part])
        for scene, theirs, ours in zip(tested[:4], answers[study.best], mine, strict=False)
    )
    return study


def tabulate(study: Study) -> list[Row]:
    """The study's numbers; flatscope's own stand beside the best network's. The paper gives none by class."""
    rows = []
    for name, verdicts in study.networks.items():
        best = name == study.best
        rows += [
            Row(
                f"{name}: IoU of {CLASSES[index]}",
                None,
                verdicts.iou(index),
                study.ours.iou(index) if best else None,
            )
            for index in (1, 2, 3)
        ]
        rows.append(
            Row(f"{name}: class accuracy", None, verdicts.accuracy, study.ours.accuracy if best else None)
        )
    return rows


def present(study: Study) -> Answer:
    """The study's table, confusion of classes, pixel values of each class, and parts of the tested frames."""
    methods = {study.best: study.networks[study.best], "flatscope": study.ours}
    shares = {
        name: verdicts.confusion.sum(0) / verdicts.confusion.sum((0, 2))[:, None].clip(1)
        for name, verdicts in methods.items()
    }
    values = {"annotated": study.truth, **{name: verdicts.values for name, verdicts in methods.items()}}
    figures = {
        "Confusion of pixels, shares of the true class": draw_confusion(shares, classes=CLASSES),
        "Green pixel values of each class as annotated and as found": draw_distributions(
            values, classes=CLASSES, label="green value"
        ),
        "Parts of the tested frames: background dark, monolayer yellow, bilayer blue, thick red": draw_classes(
            study.examples, titles=("frame", "truth", study.best, "flatscope")
        ),
    }
    size = SIZES[study.size]
    steps = ", ".join(f"{name} {size.steps_of(name)}" for name in size.networks)
    notes = (
        f"Size {study.size}, steps of training: {steps}. No weights from other pictures: all start at random.",
        "Frames are drawn, since the published ones are not public: each of MoS2 on 300 nm oxide with "
        f"{MICROSCOPES[study.setting]}. No frame is both trained on and tested, except in the line that says so. "
        "Brackets: 95 % interval by frame.",
        "flatscope is given the material and 300 nm; its network has seen other drawn pictures, none of these.",
    )
    rows = tabulate(study)
    return Answer(
        f"Yang et al. 2024, layers (doi:{DOI})",
        [row.to_words() for row in rows],
        [asdict(row) for row in rows],
        figures,
        notes,
    )


def make_network(name: str) -> Callable[..., Any]:
    """The constructor of a network by the name it has in the table."""
    from flatscope.training.nets.deeplabv3 import DeepLabV3
    from flatscope.training.nets.fcn import FCN
    from flatscope.training.nets.lraspp import LRASPP
    from flatscope.training.nets.unet import YangUNet

    if name.startswith("U-Net"):
        base = int(name.rsplit(" ", 1)[1])
        return lambda: YangUNet(outputs=4, widths=(base, 2 * base, 4 * base, 8 * base, 16 * base))
    return {"DeepLabV3": DeepLabV3, "FCN": FCN, "LR-ASPP": LRASPP}[name]


def truth_of(scene: Scene) -> Pixels:
    """Layer numbers as the paper's four classes."""
    return np.minimum(scene.layers, 3).astype(np.uint8)


def make_augment(
    crop_px: int,
) -> Callable[[np.random.Generator, Pixels, Pixels], tuple[Pixels, Pixels]]:
    """Resize by half to two, flip, crop; what lies outside the tile is black and ignored."""

    def augment(rng: np.random.Generator, picture: Pixels, truth: Pixels) -> tuple[Pixels, Pixels]:
        side = round(truth.shape[0] * rng.uniform(0.5, 2.0))
        resized = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        classes = np.asarray(Image.fromarray(truth).resize((side, side), Image.Resampling.NEAREST))
        short = max(crop_px - side, 0)
        if short:
            resized = np.pad(resized, ((0, short), (0, short), (0, 0)))
            classes = np.pad(classes, ((0, short), (0, short)), constant_values=_IGNORE)
        top, left = (int(rng.integers(0, len(classes) - crop_px + 1)) for _ in range(2))
        window = np.s_[top : top + crop_px, left : left + crop_px]
        part, target = resized[window], classes[window]
        if rng.random() < 0.5:
            part, target = part[:, ::-1], target[:, ::-1]
        if rng.random() < 0.5:
            part, target = part[::-1], target[::-1]
        return np.ascontiguousarray(part), np.ascontiguousarray(target)

    return augment


def read_frame(scene: Scene, network: Network) -> Pixels:
    """flatscope's own answer as the paper's four classes; an uncertain region counts as its likeliest number."""
    table = find_flakes(Micrograph(scene.pixels, source="frame"), PARAMS, network=network)
    rows = table.found
    p = rows[[*(f"p_{layer}" for layer in range(1, 7)), "p_thick"]].to_numpy(float)
    classes = np.zeros(int(table.labels.max(initial=0)) + 1, np.uint8)
    classes[rows["region_id"].to_numpy(int)] = np.minimum(p.argmax(1) + 1, 3) if len(p) else 0
    return classes[table.labels]


def score_frames(scenes: list[Scene], answers: list[Pixels]) -> Verdicts:
    """Compare classes with the truth, frame by frame, on every other tile (see `run`)."""
    confusion = [
        confusion_matrix(_tested_part(truth_of(scene)), answer, count=4)
        for scene, answer in zip(scenes, answers, strict=True)
    ]
    return Verdicts(np.stack(confusion), _count_values(scenes, answers))


def _tested_part(truth: Pixels) -> Pixels:
    """The classes of every other tile, in the order of `_cut`, and 255 elsewhere."""
    number = np.add.outer(
        np.arange(truth.shape[0]) // TILE_PX * (truth.shape[1] // TILE_PX),
        np.arange(truth.shape[1]) // TILE_PX,
    )
    return np.where(number % 2 == 1, truth, _IGNORE).astype(np.uint8)


def _count_values(scenes: list[Scene], classes: list[Pixels]) -> NDArray[np.int64]:
    counts = np.zeros((len(CLASSES), _VALUE_BINS), np.int64)
    for scene, stated in zip(scenes, classes, strict=True):
        values = scene.pixels[..., 1].astype(int) * _VALUE_BINS // 256
        joint = np.bincount((stated.astype(int) * _VALUE_BINS + values).ravel(), minlength=counts.size)
        counts += joint.reshape(counts.shape)
    return counts


def _cut(scenes: list[Scene]) -> tuple[Pixels, Pixels]:
    """Tiles (n, rows, cols, 3) of all frames and their classes (n, rows, cols)."""
    pictures, classes = [], []
    for scene in scenes:
        truth = truth_of(scene)
        for row in range(0, truth.shape[0], TILE_PX):
            for col in range(0, truth.shape[1], TILE_PX):
                window = np.s_[row : row + TILE_PX, col : col + TILE_PX]
                pictures.append(scene.pixels[window])
                classes.append(truth[window])
    return np.stack(pictures), np.stack(classes)


def _train(
    name: str,
    tiles: Pixels,
    classes: Pixels,
    size: Size,
    *,
    checkpoint: Path | None,
    score: Callable[[Any], dict[str, float]],
    on_progress: Progress | None,
) -> Any:
    from flatscope.training import supervised
    from flatscope.training.curve import LEAST_STEPS, LearningCurve

    batch = 4
    plan = supervised.Plan(
        lr=_LEARNING_RATE_LRASPP if name == "LR-ASPP" else _LEARNING_RATE,
        steps=size.steps_of(name),
        batch=batch,
        optimiser="sgd",
        weight_decay=1e-4,
        schedule="poly",
        warmup=max(len(tiles) // batch, 1),
    )
    return supervised.fit(
        supervised.seeded(make_network(name), seed=0),
        tiles,
        classes,
        plan,
        augment=make_augment(size.crop_px),
        checkpoint=None
        if checkpoint is None
        else LearningCurve(checkpoint, score, every=max(plan.steps // _MEASUREMENTS, LEAST_STEPS)),
        on_progress=on_progress,
    )


def _score(net: Any, *, tested: list[Scene]) -> dict[str, float]:
    """IoU on the tested frames: for the learning curve, it chooses nothing."""
    verdicts = score_frames(tested, [_read_tiles(net, scene) for scene in tested])
    iou = class_iou(verdicts.confusion.sum(0))
    return dict(zip(CLASSES[1:], iou[1:].tolist(), strict=True))


def _read_tiles(net: Any, scene: Scene) -> Pixels:
    """Classes of a frame, tile by tile as in the paper."""
    from flatscope.training import supervised

    tiles, _ = _cut([scene])
    found = supervised.predict(net, tiles).argmax(1).astype(np.uint8)
    across = scene.layers.shape[1] // TILE_PX
    rows = [np.hstack(list(found[start : start + across])) for start in range(0, len(found), across)]
    return np.vstack(rows)


def _plain(name: str) -> str:
    return "leak" if name == LEAK else name.replace(" ", "-").lower()
