"""Train the network that finds flakes, on drawn scenes or on pieces of labelled pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flatscope.inference import registry
from flatscope.inference.card import NORMALISATION, Card, Score
from flatscope.training import engine, flake_scenes, supervised
from flatscope.training.engine import Moment, Report, Task, Trained
from flatscope.training.losses import IGNORE, flake_loss
from flatscope.training.nets.flakenet import CLASSES, MAPS, FlakeNet
from flatscope.training.onnx_export import OPSET
from flatscope.training.recipes import Recipe, RecipeError
from flatscope.training.recipes.sections import Flakes

THIN, THICK = CLASSES.index("thin"), CLASSES.index("thick")
CALIBRATION_SCENES = 40  # training scenes that fix the 8-bit range of every layer
_FREE_KEYS = (  # a run goes on even if these changed
    "version", "training_data", "licence", "epochs", "max_minutes", "checkpoint_minutes", "bits",
)  # fmt: skip
_BINS = 50  # steps of probability in which thresholds are looked for
_DRAWS = 1000  # of the bootstrap by scene
Batch = tuple[Tensor, Tensor, Tensor]


class Split(Protocol):
    """Scenes as arrays (or memory maps); label 255 is ignored."""

    @property
    def contrast(self) -> NDArray[np.float16]:
        """(n, 3, rows, cols), already ``asinh(contrast / contrast_scale)``."""

    @property
    def classes(self) -> NDArray[np.uint8]:
        """(n, rows, cols): 0 substrate, 1 thin, 2 thick, 3 artefact, 255 ignore."""

    @property
    def edges(self) -> NDArray[np.uint8]:
        """(n, rows, cols): 1 on a region's boundary, 0 elsewhere, 255 ignore."""


class Splits(Protocol):
    """Training and validation scenes; no scene is in both."""

    @property
    def train(self) -> Split:
        """What the weights follow."""

    @property
    def val(self) -> Split:
        """What chooses the best epoch and the thresholds."""


def train(
    recipe: Recipe[Flakes],
    *,
    out: Path,
    workers: int = 2,
    resume: bool = True,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Trained:
    """Draw the scenes of a recipe and train on them; see `train_on`.

    `workers` processes draw; `on_progress` counts scenes first, then steps.
    """
    scenes = flake_scenes.build(recipe, workers=workers, on_progress=on_progress)
    return train_on(
        scenes, recipe, out=out, resume=resume, device=device, on_progress=on_progress, on_report=on_report
    )


def train_on(
    data: Splits,
    recipe: Recipe[Flakes],
    *,
    out: Path,
    resume: bool = True,
    device: str = "auto",
    on_progress: Callable[[int, int], None] | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> Trained:
    """Train FlakeNet on scenes and return the weights of its best epoch.

    Parameters
    ----------
    data
        See `Splits`.
    out
        Folder for the checkpoint, ``NAME.pt``; see `engine.train`.
    resume
        Go on from the checkpoint where it exists; else it is removed.
    device
        "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
    on_progress, on_report
        See `engine.train`; an epoch ends with a report. It measures "loss" (a mean a scene), "iou_thin", "iou_thick"
        and "dice_edge" in [0, 1] over all validation pixels, "score", their mean, and "lr".

    Returns
    -------
    Trained
        Its card has thresholds tuned on the validation scenes and scores with 95 % intervals by scene.

    Raises
    ------
    RecipeError
        The checkpoint was made by another recipe, or the data do not fit the recipe.
    FloatingPointError
        The loss is no longer finite.
    """
    _check_data(data, recipe)
    checkpoint = supervised.choose_checkpoint(recipe, out, resume=resume)
    where = choose_device(device)
    net, optimiser = _begin(recipe, where)
    average = copy.deepcopy(net)
    schedule = supervised.read_schedule(recipe)
    own = recipe.task

    def draw(step: int) -> Batch:
        return _draw_batch(data.train, recipe, step, device=where)

    def take(batch: Batch, at: Moment) -> dict[str, float]:
        x, classes, edges = batch
        loss = _loss(own, net(x), classes, edges)
        value = engine.descend(
            optimiser,
            loss,
            rate=schedule.rate(at),
            step=at.step,
            clip=lambda: nn.utils.clip_grad_norm_(net.parameters(), own.grad_clip),
        )
        engine.follow(average, net, decay=own.ema_decay, count=at.step + 1)
        return {"loss": value}

    def measure() -> dict[str, float]:
        measured = _summarise(validate(average, data.val, recipe=recipe, device=where))
        return {**measured, "lr": float(optimiser.param_groups[0]["lr"])}

    steps = math.ceil(len(data.train.classes) / recipe.batch)
    task = Task(
        parts={"net": net, "average": average, "optimiser": optimiser},
        draw=draw,
        take=take,
        steps=recipe.epochs * steps,
        identity={key: value for key, value in recipe.settings().items() if key not in _FREE_KEYS},
        seed=recipe.seed,
        max_minutes=recipe.max_minutes,
        checkpoint_minutes=recipe.checkpoint_minutes,
        validate=measure,
        validate_every=steps,
        kept="average",
    )
    run = engine.train(task, checkpoint=checkpoint, on_progress=on_progress, on_report=on_report)
    average.load_state_dict(run.weights)
    if own.start and own.blend < 1.0:
        _blend(average, FlakeNet.from_onnx(registry.resolve(own.start)), share=own.blend)
    measured = validate(average, data.val, recipe=recipe, device=where)
    card = _make_card(recipe, average, steps=run.best_step, measured=measured)
    few = data.train.contrast[:CALIBRATION_SCENES] if own.bits == 8 else None
    return Trained(average.cpu().eval(), card, few)


def validate(net: FlakeNet, split: Split, *, recipe: Recipe[Flakes], device: torch.device) -> dict[str, Any]:
    """Loss and counts of `net` on `split`.

    Returns
    -------
    dict
        ``loss``: mean a scene. ``counts``: float64 (n, 3, 3), for each scene thin, thick (by largest
        probability) and edge (at 0.5): pixels found and true, found, true. ``thin_bins`` and
        ``edge_bins``: int64 (n, 2, 50), histograms of the probability of thin and edge
        where the truth is no, and yes.
    """
    net.eval()
    loss, counts = 0.0, []
    thin_bins, edge_bins = [], []
    size = max(1, recipe.batch)
    with torch.inference_mode():
        for start in range(0, len(split.classes), size):
            chosen = np.arange(start, min(start + size, len(split.classes)))
            x, classes, edges = _load(split, chosen, device=device, rng=None)
            logits = net(x).float()
            loss += float(_loss(recipe.task, logits, classes, edges)) * len(chosen)
            thin_p = torch.softmax(logits[:, :-1], dim=1)[:, THIN]
            edge_p = torch.sigmoid(logits[:, -1])
            winner = logits[:, :-1].argmax(dim=1)
            for i in range(len(chosen)):
                known, drawn = classes[i] != IGNORE, edges[i] != IGNORE
                pairs = (
                    ((winner[i] == THIN) & known, classes[i] == THIN),
                    ((winner[i] == THICK) & known, classes[i] == THICK),
                    ((edge_p[i] > 0.5) & drawn, edges[i] == 1),
                )
                counts.append([[int((f & t).sum()), int(f.sum()), int(t.sum())] for f, t in pairs])
                thin_bins.append(_histogram(thin_p[i][known], classes[i][known] == THIN))
                edge_bins.append(_histogram(edge_p[i][drawn], edges[i][drawn] == 1))
    return {
        "loss": loss / len(split.classes),
        "counts": np.asarray(counts, dtype=np.float64),
        "thin_bins": np.stack(thin_bins),
        "edge_bins": np.stack(edge_bins),
    }


def choose_device(device: str) -> torch.device:
    """The device of a name; "auto" is a GPU where torch sees one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RecipeError(f"no device called {device!r}: say auto, cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"torch {torch.__version__} sees no GPU for {device!r}: say device='cpu'")
    return chosen


def _begin(recipe: Recipe[Flakes], device: torch.device) -> tuple[FlakeNet, torch.optim.Optimizer]:
    """The network in training mode, and its optimiser."""
    own = recipe.task
    net: FlakeNet
    if own.start:
        net = FlakeNet.from_onnx(registry.resolve(own.start))
    else:
        net = supervised.seeded(FlakeNet, seed=recipe.seed, widths=own.widths)  # type: ignore[assignment]
    net = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    net.train()
    if own.start:
        # a network that was trained on many pictures keeps its normalisation
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
    # decaying biases and normalisation only shrinks what they must be free to set
    groups = [
        {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in net.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return net, torch.optim.AdamW(groups, lr=recipe.lr)


def _blend(net: FlakeNet, start: FlakeNet, *, share: float) -> None:
    """Draw the weights of `net` back towards those it started from, in place."""
    before = start.state_dict()
    for name, value in net.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(before[name].to(value.device), 1.0 - share)


def _draw_batch(split: Split, recipe: Recipe[Flakes], step: int, *, device: torch.device) -> Batch:
    scenes = len(split.classes)
    epoch, place = divmod(step, math.ceil(scenes / recipe.batch))
    order = _generator(recipe, epoch).permutation(scenes)
    chosen = np.sort(order[place * recipe.batch : (place + 1) * recipe.batch])
    return _load(split, chosen, device=device, rng=_generator(recipe, epoch, place))


def _generator(recipe: Recipe[Flakes], *key: int) -> np.random.Generator:
    """A stream of its own for each epoch and batch."""
    return np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(1, *key)))


def _loss(own: Flakes, logits: Tensor, classes: Tensor, edges: Tensor) -> Tensor:
    return flake_loss(
        logits,
        classes,
        edges,
        class_weights=own.class_weights,
        dice_weight=own.dice_weight,
        edge_weight=own.edge_weight,
        edge_positive_weight=own.edge_positive_weight,
    )


def _load(
    split: Split, chosen: NDArray[np.intp], *, device: torch.device, rng: np.random.Generator | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Scenes `chosen` on the device; with `rng` each under one of the symmetries of its rectangle."""
    contrast, classes, edges = split.contrast[chosen], split.classes[chosen], split.edges[chosen]
    if rng is not None:
        turns = 4 if contrast.shape[-1] == contrast.shape[-2] else 2
        drawn = [(int(rng.integers(turns)) * (4 // turns), bool(rng.integers(2))) for _ in chosen]
        contrast, classes, edges = (_turn(array, drawn) for array in (contrast, classes, edges))
    x = torch.from_numpy(np.ascontiguousarray(contrast)).to(device=device, dtype=torch.float32)
    return (
        x.contiguous(memory_format=torch.channels_last),
        torch.from_numpy(np.ascontiguousarray(classes)).to(device),
        torch.from_numpy(np.ascontiguousarray(edges)).to(device),
    )


def _turn(array: NDArray[Any], drawn: list[tuple[int, bool]]) -> NDArray[Any]:
    turned = []
    for item, (quarters, mirrored) in zip(array, drawn, strict=True):
        item = np.rot90(item, quarters, axes=(-2, -1))
        turned.append(item[..., ::-1] if mirrored else item)
    return np.stack(turned)


def _summarise(measured: dict[str, Any]) -> dict[str, float]:
    """Loss and overlaps of all scenes together."""
    both, found, true = measured["counts"].sum(axis=0).T
    iou = both / np.maximum(found + true - both, 1)
    dice = 2 * both / np.maximum(found + true, 1)
    return {
        "loss": float(measured["loss"]),
        "iou_thin": float(iou[0]),
        "iou_thick": float(iou[1]),
        "dice_edge": float(dice[2]),
        "score": float((iou[0] + iou[1] + dice[2]) / 3),
    }


def _make_card(recipe: Recipe[Flakes], net: FlakeNet, *, steps: int, measured: dict[str, Any]) -> Card:
    """The card of a network, with thresholds and scores from what `validate` measured."""
    own, bins = recipe.task, {name: measured[f"{name}_bins"].sum(axis=0) for name in ("thin", "edge")}
    card = supervised.start_card(
        recipe,
        saw=f"{recipe.scenes_train} scenes of {own.scene_px} px, {steps} steps of {recipe.batch}",
        channels=("red", "green", "blue"),
        classes=CLASSES,
        maps=MAPS,
        multiple=net.multiple,
    )
    return replace(
        card,
        normalisation=NORMALISATION,
        scale=own.contrast_scale,
        object_px=own.object_px,
        halo_px=net.halo_px,
        thresholds={name: _best_threshold(counted) for name, counted in bins.items()},
        scores=_score(recipe, measured["counts"]),
        created_with=f"{card.created_with}, ONNX opset {OPSET}, {own.bits} bits",
    )


def _score(recipe: Recipe[Flakes], counts: NDArray[np.float64]) -> dict[str, Score]:
    """Overlaps with 95 % intervals by scene."""
    draws = _generator(recipe, 0, 0, 0).integers(len(counts), size=(_DRAWS, len(counts)))
    data = f"{len(counts)} validation scenes, pixels pooled, 95 % bootstrap by scene"
    scores = {}
    for index, (name, dice) in enumerate((("iou_thin", False), ("iou_thick", False), ("dice_edge", True))):
        whole = _overlap(counts[:, index].sum(axis=0), dice=dice)
        again = _overlap(counts[:, index][draws].sum(axis=1), dice=dice)
        low, high = np.quantile(again, (0.025, 0.975))
        scores[name] = Score(float(whole), float(low), float(high), data)
    return scores


def _overlap(counts: NDArray[np.float64], *, dice: bool) -> NDArray[np.float64]:
    both, found, true = np.moveaxis(counts, -1, 0)
    overlap: NDArray[np.float64]
    overlap = 2 * both / np.maximum(found + true, 1) if dice else both / np.maximum(found + true - both, 1)
    return overlap


def _histogram(p: Tensor, truth: Tensor) -> NDArray[np.int64]:
    bins = (p * _BINS).long().clamp_(0, _BINS - 1) + _BINS * truth.long()
    counts: NDArray[np.int64] = torch.bincount(bins, minlength=2 * _BINS).cpu().numpy().reshape(2, _BINS)
    return counts


def _best_threshold(bins: NDArray[np.int64]) -> float:
    """Probability above which to call a pixel positive (largest Dice, hence IoU); 0.5 without positives."""
    no, yes = bins[:, ::-1].cumsum(axis=1)[:, ::-1].astype(np.float64)
    if yes[0] == 0:
        return 0.5
    dice = 2 * yes / (yes + no + yes[0])
    return float(np.argmax(dice) / _BINS)


def _check_data(data: Splits, recipe: Recipe[Flakes]) -> None:
    multiple = 2 ** len(recipe.task.widths)
    for name, split in (("train", data.train), ("val", data.val)):
        n, channels, rows, cols = split.contrast.shape
        if n == 0 or channels != 3 or rows % multiple or cols % multiple:
            raise RecipeError(
                f"{recipe.name}: {name}.contrast is {split.contrast.shape}, "
                f"must be (n >= 1, 3, rows, cols) with rows and cols multiples of {multiple}"
            )
        for key, labels in (("classes", split.classes), ("edges", split.edges)):
            if labels.shape != (n, rows, cols) or labels.dtype != np.uint8:
                raise RecipeError(
                    f"{recipe.name}: {name}.{key} is {labels.dtype} {labels.shape}, "
                    f"must be uint8 {(n, rows, cols)}"
                )
