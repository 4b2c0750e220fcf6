"""The training loop. Reads top to bottom; knows nothing of terminals."""

from __future__ import annotations

import copy
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flatscope.inference import registry
from flatscope.training.losses import IGNORE, flake_loss
from flatscope.training.nets.flakenet import CLASSES, FlakeNet
from flatscope.training.recipes import Recipe, RecipeError, from_dict

THIN, THICK = CLASSES.index("thin"), CLASSES.index("thick")
_FREE_KEYS = ("version", "training_data", "licence", "epochs", "max_minutes", "checkpoint_minutes", "bits")
_FORMAT = 1
_BINS = 50  # thresholds are looked for on this many steps of probability


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


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to; losses are means a batch, overlaps are in [0, 1] over all validation pixels."""

    epoch: int
    step: int
    minutes: float
    lr: float
    train_loss: float
    val_loss: float
    iou_thin: float
    iou_thick: float
    dice_edge: float
    best: bool

    @property
    def score(self) -> float:
        """The number that chooses the best epoch."""
        return (self.iou_thin + self.iou_thick + self.dice_edge) / 3


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    data: Splits,
    device: str = "auto",
    resume: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> Path:
    """Train FlakeNet by `recipe` and return the path of the best checkpoint, ``out/best.pt``.

    Parameters
    ----------
    out
        Folder for ``last.pt`` (to resume) and ``best.pt`` (to export); made if missing.
    data
        See `Splits`.
    device
        "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...
    resume
        Go on from ``out/last.pt`` where it exists. A run that was cut off mid-epoch goes on at the next batch
        with the same order and symmetries, so on the CPU its weights equal those of an uninterrupted run
        (when the schedule follows steps; time does not repeat).
    on_progress
        Called with (steps done, steps expected) after each step. Under `max_minutes` the latter
        is an estimate.
    on_epoch
        Called with each epoch's report.

    Raises
    ------
    RecipeError
        The checkpoint in `out` was made by another recipe, or the data do not fit the recipe.
    KeyboardInterrupt
        Passed on, after ``out/last.pt`` was written.
    FloatingPointError
        The loss is no longer finite.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    _check_data(data, recipe)
    where = _choose_device(device)
    run = _Run(recipe, where)
    if resume and (out / "last.pt").is_file():
        run.restore(out / "last.pt")
    elif not resume:
        (out / "best.pt").unlink(missing_ok=True)

    scenes = len(data.train.classes)
    steps = math.ceil(scenes / recipe.batch)
    total, budget = recipe.epochs * steps, _budget(recipe)
    run.finished = run.epoch >= recipe.epochs or run.elapsed >= budget
    with _threads(where), _on_interrupt(lambda: run.save(out / "last.pt")):
        clock, saved = _Clock(run.elapsed), run.elapsed
        while not run.finished:
            order = _generator(recipe, run.epoch).permutation(scenes)
            run.set_training()
            while run.batch < steps and run.elapsed < budget:
                chosen = np.sort(order[run.batch * recipe.batch : (run.batch + 1) * recipe.batch])
                rng = _generator(recipe, run.epoch, run.batch)
                arrays = _load(data.train, chosen, device=where, rng=rng)
                with hold_interrupt():  # a step is taken whole or not at all, also by Ctrl-C
                    run.advance(arrays, fraction=min(max(run.step / total, run.elapsed / budget), 1.0))
                    run.elapsed = clock.seconds
                if on_progress is not None:
                    fraction = max(run.step / total, run.elapsed / budget)
                    on_progress(run.step, max(run.step, min(total, math.ceil(run.step / fraction))))
                if run.elapsed - saved > 60 * recipe.checkpoint_minutes:
                    run.save(out / "last.pt")
                    saved = run.elapsed
            report = _judge(run, data.val)
            with hold_interrupt():
                run.close_epoch(report)
                run.elapsed = clock.seconds
                run.finished = run.epoch >= recipe.epochs or run.elapsed >= budget
                if report.best:
                    run.save(out / "best.pt")
                run.save(out / "last.pt")
                saved = run.elapsed
            if on_epoch is not None:
                on_epoch(report)
        if not (out / "best.pt").is_file():
            run.save(out / "best.pt")
        _add_scores(out / "best.pt", data.val, where)
    return out / "best.pt"


def load_net(checkpoint: str | Path) -> tuple[FlakeNet, dict[str, Any]]:
    """Read a checkpoint: the averaged net in eval mode on the CPU, and everything else that the file holds.

    The second has the keys recipe, step, epoch, history, elapsed (seconds) and, once a run has finished,
    scores and thresholds. Only tensors and plain values are unpickled.
    """
    state: dict[str, Any] = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state.get("format") != _FORMAT:
        raise RecipeError(f"{checkpoint}: not a checkpoint of this version; train again with resume=False")
    net = FlakeNet(widths=tuple(state["recipe"]["widths"]))
    net.load_state_dict(state["average"])
    return net.eval(), {key: value for key, value in state.items() if key not in _TENSORS}


def validate(net: FlakeNet, split: Split, *, recipe: Recipe, device: torch.device) -> dict[str, Any]:
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
            loss += float(_loss(recipe, logits, classes, edges)) * len(chosen)
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


class _Run:
    """Everything that changes during training, and how it is stored."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self.recipe, self.device = recipe, device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            net = _begin(recipe)
        self.net: FlakeNet = net.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.net)
        # decaying biases and normalisation only shrinks what they must be free to set
        decayed = [p for p in self.net.parameters() if p.ndim > 1]
        free = [p for p in self.net.parameters() if p.ndim <= 1]
        groups = [
            {"params": decayed, "weight_decay": recipe.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=recipe.lr)
        self.step, self.epoch, self.batch = 0, 0, 0
        self.elapsed, self.best_score = 0.0, -math.inf
        self.loss_sum, self.loss_count = 0.0, 0
        self.finished = False
        self.history: list[dict[str, Any]] = []

    def set_training(self) -> None:
        """Switch the net to training; one that was trained on many pictures keeps its normalisation."""
        self.net.train()
        if self.recipe.start:
            for module in self.net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def advance(self, batch: tuple[Tensor, Tensor, Tensor], *, fraction: float) -> None:
        """Take one step at `fraction` of the schedule."""
        x, classes, edges = batch
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, fraction=fraction)
        loss = _loss(self.recipe, self.net(x), classes, edges)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(
                f"loss is {value} at step {self.step}: lower lr (now {self.recipe.lr}) or check the data"
            )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), self.recipe.grad_clip)
        self.optimiser.step()
        self.step, self.batch = self.step + 1, self.batch + 1
        self.loss_sum, self.loss_count = self.loss_sum + value, self.loss_count + 1
        self._follow()

    def _follow(self) -> None:
        # the average must forget the random start: short memory first, the recipe's later
        decay = min(self.recipe.ema_decay, (1 + self.step) / (10 + self.step))
        decay = decay if self.recipe.ema_decay > 0 else 0.0
        with torch.no_grad():
            for kept, now in zip(self.average.parameters(), self.net.parameters(), strict=True):
                kept.lerp_(now, 1 - decay)
            # BatchNorm's statistics are running means already; averaged twice they lag behind the weights
            for kept, new in zip(self.average.buffers(), self.net.buffers(), strict=True):
                kept.copy_(new)

    def close_epoch(self, report: EpochReport) -> None:
        """Note what the epoch came to and turn to the next."""
        self.history.append(asdict(report))
        self.best_score = max(self.best_score, report.score)
        self.loss_sum, self.loss_count = 0.0, 0
        self.epoch, self.batch = self.epoch + 1, 0

    def save(self, path: Path) -> None:
        """Write all of it, in one piece or not at all."""
        state = {
            "format": _FORMAT,
            "recipe": self.recipe.to_dict(),
            "net": self.net.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            **{key: getattr(self, key) for key in _PLAIN},
        }
        write_state(state, path)

    def restore(self, path: Path) -> None:
        """Go on where `save` stopped."""
        state: dict[str, Any] = torch.load(path, map_location=self.device, weights_only=True)
        if state.get("format") != _FORMAT:
            raise RecipeError(f"{path}: not a checkpoint of this version; train again with resume=False")
        mine = self.recipe.to_dict()
        others = [k for k, v in mine.items() if k not in _FREE_KEYS and state["recipe"].get(k) != v]
        if others:
            key = others[0]
            raise RecipeError(
                f"{path}: made with {key} = {state['recipe'].get(key)}, this recipe says {mine[key]}; "
                "train into another folder or with resume=False"
            )
        self.net.load_state_dict(state["net"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        for key in _PLAIN:
            setattr(self, key, state[key])


def _begin(recipe: Recipe) -> FlakeNet:
    if recipe.start:
        return FlakeNet.from_onnx(registry.resolve(recipe.start))
    return FlakeNet(widths=recipe.widths)


_PLAIN = (
    "step", "epoch", "batch", "elapsed", "best_score", "loss_sum", "loss_count", "finished", "history",
)  # fmt: skip
_TENSORS = ("net", "average", "optimiser")


def learning_rate(recipe: Recipe, *, fraction: float) -> float:
    """Rate at `fraction` in [0, 1] of the run: linear warm-up, then a cosine down to ``lr * final_lr``."""
    if fraction < recipe.warmup:
        return recipe.lr * max(fraction / recipe.warmup, 0.01)
    along = (fraction - recipe.warmup) / (1 - recipe.warmup)
    return recipe.lr * (recipe.final_lr + (1 - recipe.final_lr) * (1 + math.cos(math.pi * along)) / 2)


class _Clock:
    """Seconds spent training, earlier sessions included."""

    def __init__(self, before: float) -> None:
        self._zero = time.perf_counter() - before

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._zero


def _budget(recipe: Recipe) -> float:
    return math.inf if recipe.max_minutes is None else 60 * recipe.max_minutes


def _loss(recipe: Recipe, logits: Tensor, classes: Tensor, edges: Tensor) -> Tensor:
    return flake_loss(
        logits,
        classes,
        edges,
        class_weights=recipe.class_weights,
        dice_weight=recipe.dice_weight,
        edge_weight=recipe.edge_weight,
        edge_positive_weight=recipe.edge_positive_weight,
    )


def _generator(recipe: Recipe, *key: int) -> np.random.Generator:
    """A stream of its own for each epoch and batch: a resumed run draws what the whole run would have."""
    return np.random.default_rng(np.random.SeedSequence(recipe.seed, spawn_key=(1, *key)))


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


def _judge(run: _Run, split: Split) -> EpochReport:
    measured = validate(run.average, split, recipe=run.recipe, device=run.device)
    both, found, true = measured["counts"].sum(axis=0).T
    iou = both / np.maximum(found + true - both, 1)
    dice = 2 * both / np.maximum(found + true, 1)
    score = (iou[0] + iou[1] + dice[2]) / 3
    return EpochReport(
        epoch=run.epoch,
        step=run.step,
        minutes=run.elapsed / 60,
        lr=float(run.optimiser.param_groups[0]["lr"]),
        train_loss=run.loss_sum / max(run.loss_count, 1),
        val_loss=float(measured["loss"]),
        iou_thin=float(iou[0]),
        iou_thick=float(iou[1]),
        dice_edge=float(dice[2]),
        best=bool(score > run.best_score),
    )


def _add_scores(path: Path, split: Split, device: torch.device) -> None:
    """Tune the thresholds and put scores with 95 % intervals by scene into the best checkpoint."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    net, info = load_net(path)
    recipe = from_dict(info["recipe"], source=str(path))
    measured = validate(net.to(device), split, recipe=recipe, device=device)
    counts = measured["counts"]
    rng = _generator(recipe, 0, 0, 0)
    draws = rng.integers(len(counts), size=(1000, len(counts)))
    scores = {}
    for index, (name, dice) in enumerate((("iou_thin", False), ("iou_thick", False), ("dice_edge", True))):
        whole = _overlap(counts[:, index].sum(axis=0), dice=dice)
        again = _overlap(counts[:, index][draws].sum(axis=1), dice=dice)
        low, high = np.quantile(again, (0.025, 0.975))
        scores[name] = {
            "value": float(whole), "low": float(low), "high": float(high),
            "data": f"{len(counts)} validation scenes, pixels pooled, 95 % bootstrap by scene",
        }  # fmt: skip
    state["scores"] = scores
    state["thresholds"] = {
        "thin": _best_threshold(measured["thin_bins"].sum(axis=0)),
        "edge": _best_threshold(measured["edge_bins"].sum(axis=0)),
    }
    write_state(state, path)


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


def _check_data(data: Splits, recipe: Recipe) -> None:
    multiple = 2 ** len(recipe.widths)
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


def _choose_device(device: str) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise RecipeError(f"no device called {device!r}: say auto, cpu or cuda") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise RecipeError(f"torch {torch.__version__} sees no GPU for {device!r}: say device='cpu'")
    return chosen


@contextmanager
def _threads(device: torch.device) -> Iterator[None]:
    """Use every core allowed, unless OMP_NUM_THREADS says otherwise; put the setting back after."""
    before = torch.get_num_threads()
    if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(usable or 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _on_interrupt(save: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        save()
        raise


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


def write_state(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint in one piece or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, scratch)
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)
