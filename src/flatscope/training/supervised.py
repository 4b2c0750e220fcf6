"""Train a network from pictures with known answers: what the published protocols and the small networks need."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flatscope.files.write import write_atomic
from flatscope.inference.card import PLAIN, Card
from flatscope.training import engine
from flatscope.training.curve import LearningCurve
from flatscope.training.engine import Moment, Progress, Schedule, Task
from flatscope.training.losses import IGNORE, cross_entropy
from flatscope.training.recipes import Recipe

Pixels = NDArray[Any]
Truth = NDArray[Any]
Augment = Callable[[np.random.Generator, Pixels, Truth], tuple[Pixels, Truth]]
"""(rng, picture (rows, cols, channels), its truth) to another such pair; all of a batch must have one size."""


@dataclass(frozen=True)
class Plan:
    """How a network is trained.

    Parameters
    ----------
    lr
        Highest learning rate.
    steps, batch
        Steps in all, pictures a step.
    optimiser
        "adam", or "sgd" with `momentum`.
    weight_decay
        Of the optimiser.
    schedule, warmup, final_lr
        How the learning rate changes, see `engine.Schedule`; here `warmup` counts steps.
    class_weights
        Weights in the cross entropy; None is the plain one.
    auxiliary
        Weight of the loss of a second head, for networks that have one.
    max_minutes, checkpoint_minutes
        The run ends after this time even if steps are left; longest time between two checkpoints.
    seed
        Of order and augmentation.
    """

    lr: float
    steps: int
    batch: int = 1
    optimiser: str = "adam"
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup: int = 0
    final_lr: float = 0.01
    class_weights: tuple[float, ...] | None = None
    auxiliary: float = 0.5
    max_minutes: float | None = None
    checkpoint_minutes: float = 1.0
    seed: int = 0

    def rates(self) -> Schedule:
        """How the learning rate changes."""
        return Schedule(self.schedule, self.lr, self.warmup / self.steps, self.final_lr)


def median_frequency_weights(classes: Pixels, *, count: int) -> tuple[float, ...]:
    """Weight of each class: the median of all classes' frequencies over its own.

    A class's frequency is its share of the pixels in the pictures that show it (Eigen and Fergus 2015,
    doi:10.1109/ICCV.2015.304). A class that no picture shows has weight 1.

    Parameters
    ----------
    classes
        Shape (pictures, rows, cols), 255 ignored.
    count
        Number of classes.
    """
    pixels = np.stack([(classes == index).sum((1, 2)) for index in range(count)])
    labelled = (classes != IGNORE).sum((1, 2))
    shown = np.array([labelled[row > 0].sum() for row in pixels], float)
    frequency = pixels.sum(1) / np.maximum(shown, 1.0)
    median = float(np.median(frequency[frequency > 0]))
    return tuple(float(median / value) if value > 0 else 1.0 for value in frequency)


def fit(
    net: nn.Module,
    pictures: Pixels,
    truth: Truth,
    plan: Plan,
    *,
    augment: Augment,
    checkpoint: Path | LearningCurve | None = None,
    on_progress: Progress | None = None,
) -> nn.Module:
    """Train `net` and return it in eval mode.

    Parameters
    ----------
    net
        Takes float32 pictures in 0 to 1. Its own method `loss(answers, truth)` says how wrong it is; without one its
        answers are logits of the pixels' classes. With a method `with_auxiliary` a second head is trained too.
    pictures, truth
        Shapes (n, rows, cols, channels) and (n, rows, cols): classes of the pixels; or what `loss` compares with.
    plan
        See `Plan`.
    augment
        See `Augment`; draws every training picture afresh.
    checkpoint, on_progress
        See `engine.train`. A `LearningCurve` is a checkpoint that scores the network on the way.

    Raises
    ------
    RecipeError
        The checkpoint was made under other settings.
    FloatingPointError
        The loss is no longer finite.
    """
    optimiser = _make_optimiser(net, plan)
    schedule = plan.rates()
    net.train()

    def draw(step: int) -> tuple[Tensor, Tensor]:
        return _draw_batch(pictures, truth, plan, step, augment=augment)

    def take(batch: tuple[Tensor, Tensor], at: Moment) -> dict[str, float]:
        loss = _loss(net, *batch, plan)
        return {"loss": engine.descend(optimiser, loss, rate=schedule.rate(at), step=at.step)}

    curve, path = (
        (checkpoint, checkpoint.checkpoint) if isinstance(checkpoint, LearningCurve) else (None, checkpoint)
    )
    weights = sum(parameter.numel() for parameter in net.parameters())
    task = Task(
        parts={"net": net, "optimiser": optimiser},
        draw=draw,
        take=take,
        steps=plan.steps,
        identity={**_identify(plan), "pictures": len(pictures), "weights": weights},
        seed=plan.seed,
        max_minutes=plan.max_minutes,
        checkpoint_minutes=plan.checkpoint_minutes,
        validate=None if curve is None else lambda: curve.measure(net),
        validate_every=0 if curve is None else curve.every,
        patience=None if curve is None else curve.patience,
    )
    run = engine.train(
        task,
        checkpoint=path,
        on_progress=on_progress,
        on_report=None
        if curve is None
        else lambda report: curve.write(report, samples=report.step * plan.batch),
    )
    net.load_state_dict(run.weights)
    return net.eval()


def fit_by(
    recipe: Recipe[Any],
    net: nn.Module,
    pictures: Pixels,
    truth: Truth,
    *,
    augment: Augment,
    checkpoint: Path,
    on_progress: Progress | None = None,
) -> nn.Module:
    """`fit` by the core of a recipe."""
    steps = max(recipe.epochs * len(pictures) // recipe.batch, 1)
    plan = Plan(
        lr=recipe.lr,
        steps=steps,
        batch=recipe.batch,
        weight_decay=recipe.weight_decay,
        schedule=recipe.schedule,
        warmup=round(recipe.warmup * steps),
        final_lr=recipe.final_lr,
        max_minutes=recipe.max_minutes,
        checkpoint_minutes=recipe.checkpoint_minutes,
        seed=recipe.seed,
    )
    return fit(net, pictures, truth, plan, augment=augment, checkpoint=checkpoint, on_progress=on_progress)


def read_schedule(recipe: Recipe[Any]) -> Schedule:
    """How the learning rate changes by a recipe."""
    return Schedule(recipe.schedule, recipe.lr, recipe.warmup, recipe.final_lr)


def choose_checkpoint(recipe: Recipe[Any], out: Path, *, resume: bool) -> Path:
    """The file that a run by a recipe goes on from, ``NAME.pt``; removed where the run starts anew."""
    path = out / f"{recipe.name}.pt"
    if not resume:
        path.unlink(missing_ok=True)
    return path


def draw_or_load(path: Path, draw: Callable[[], dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Arrays by name from an .npz file; where it does not exist they are drawn and kept there."""
    if path.is_file():
        with np.load(path) as stored:
            return dict(stored)
    made = draw()
    stream = io.BytesIO()
    np.savez_compressed(stream, **made)  # type: ignore[arg-type]
    write_atomic(path, stream.getvalue())
    return made


def start_card(
    recipe: Recipe[Any],
    *,
    saw: str,
    channels: tuple[str, ...],
    classes: tuple[str, ...] = (),
    maps: tuple[str, ...] = (),
    multiple: int,
) -> Card:
    """The card of a network trained by `recipe` on pictures that come normalised; `saw` says on how many."""
    return Card(
        name=recipe.name,
        version=recipe.version,
        task=recipe.task.card_task,
        recipe=recipe.name,
        training_data=f"{recipe.training_data}; {saw}",
        seed=recipe.seed,
        channels=channels,
        classes=classes,
        maps=maps,
        scale=1.0,
        normalisation=PLAIN,
        multiple=multiple,
        halo_px=0,
        licence=recipe.licence,
        created_with=f"flatscope.training, torch {torch.__version__}",
    )


def seeded(make: Callable[..., nn.Module], *, seed: int, **settings: Any) -> nn.Module:
    """A network whose first weights follow from `seed`; `settings` are the constructor's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(**settings)


def predict(net: nn.Module, pictures: Pixels) -> NDArray[np.float32]:
    """Class probabilities of every pixel, shape (n, classes, rows, cols), for pictures (n, rows, cols, 3)."""
    with torch.inference_mode():
        made = [torch.softmax(net(to_tensor(picture[None])), dim=1)[0].numpy() for picture in pictures]
    return np.stack(made)


def answer(net: nn.Module, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits of the normalised pictures `x` (n, channels, rows, cols)."""
    with torch.inference_mode():
        logits: NDArray[np.float32] = net(torch.from_numpy(x)).numpy()
    return logits


def put_channels_last(net: nn.Module, x: NDArray[np.float32]) -> tuple[nn.Module, NDArray[np.float32]]:
    """Copies of a network and of pictures (n, channels, rows, cols) that lie channels last in memory (NHWC)."""
    turned: nn.Module = copy.deepcopy(net).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return turned, np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch use `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def to_tensor(pictures: Pixels) -> Tensor:
    """Pictures (n, rows, cols, channels) as float32 (n, channels, rows, cols); 8-bit ones in 0 to 1."""
    full = np.float32(255.0 if pictures.dtype == np.uint8 else 1.0)
    return torch.from_numpy(np.ascontiguousarray(pictures.transpose(0, 3, 1, 2), np.float32) / full)


def _draw_batch(
    pictures: Pixels, truth: Truth, plan: Plan, step: int, *, augment: Augment
) -> tuple[Tensor, Tensor]:
    pairs = []
    orders: dict[int, NDArray[np.int64]] = {}
    for place in range(plan.batch):
        number = step * plan.batch + place
        epoch, index = divmod(number, len(pictures))
        if epoch not in orders:
            orders[epoch] = np.random.default_rng([plan.seed, 1, epoch]).permutation(len(pictures))
        picture = orders[epoch][index]
        rng = np.random.default_rng([plan.seed, 2, number])
        pairs.append(augment(rng, pictures[picture], truth[picture]))
    x = to_tensor(np.stack([picture for picture, _ in pairs]))
    return x, torch.from_numpy(np.ascontiguousarray(np.stack([known for _, known in pairs])))


def _loss(net: nn.Module, x: Tensor, target: Tensor, plan: Plan) -> Tensor:
    both, own = getattr(net, "with_auxiliary", None), getattr(net, "loss", None)
    if own is not None:
        loss: Tensor = own(net(x), target)
        return loss
    if both is None:
        return cross_entropy(net(x), target, weights=plan.class_weights)
    logits, second = both(x)
    loss = cross_entropy(logits, target, weights=plan.class_weights)
    return loss + plan.auxiliary * cross_entropy(second, target, weights=plan.class_weights)


def _make_optimiser(net: nn.Module, plan: Plan) -> torch.optim.Optimizer:
    if plan.optimiser == "adam":
        return torch.optim.Adam(net.parameters(), lr=plan.lr, weight_decay=plan.weight_decay)
    return torch.optim.SGD(
        net.parameters(), lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay
    )


def _identify(plan: Plan) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {
        key: value for key, value in asdict(plan).items() if key not in ("max_minutes", "checkpoint_minutes")
    }
