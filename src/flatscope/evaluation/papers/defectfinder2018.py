"""DefectFinder 2018: windows around defects, named by a convolutional network, beside flatscope.

References
----------
DefectFinder, University of Washington, 2018 (poster and code; no DOI), and Maksov et al. 2019,
doi:10.1038/s41524-019-0152-9. Their images are not public: windows are drawn, of WS2, six kinds, at the poster's mixed
noise. Their test set holds turned copies of training windows; here both splits are run, by sheet and by copy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.physics.crystals import find_crystal
from flatscope.evaluation.metrics import Interval, binomial_interval, confusion_matrix
from flatscope.evaluation.papers import Answer, Progress, Row, part_of
from flatscope.evaluation.windows import KINDS, MATERIAL, Windows, classify_windows, draw_windows
from flatscope.inference.runtime import Network
from flatscope.report.defects import draw_windows as draw_examples
from flatscope.report.study import draw_confusion

DOI = "10.1038/s41524-019-0152-9"
PUBLISHED = 0.9568
"""Accuracy over six classes, turned copies of the same windows on both sides of the split."""
RATES, DROPOUTS = (1.6e-5, 3.4e-4, 4.7e-3), (0.2, 0.4)
"""The published grid of learning rates and shares dropped."""
_BATCH, _SEED, _TEST_SEED = 32, 2018, 17
_HELD = 0.25
_EXAMPLES = 6


@dataclass(frozen=True)
class Size:
    """Sheets trained on and tested (some fifteen windows each), and steps of 32 windows for each point of the grid."""

    sheets: int
    tested: int
    steps: int


SIZES = {"quick": Size(12, 12, 20), "cpu": Size(120, 60, 250), "full": Size(2000, 200, 20_000)}


@dataclass(frozen=True)
class Study:
    """What came out.

    Parameters
    ----------
    grid
        (learning rate, dropout) to accuracy on windows held out for the choice.
    by_sheet, by_copy, ours
        Accuracy of the published network on other sheets, and on turned copies of what it was trained on; and
        flatscope's on the first.
    confusion
        Method to counts, shape (6, 6), true kinds down.
    examples
        Windows and the activation maps of their kind, each (64, 64).
    names
        Of the kinds.
    """

    size: str
    grid: dict[tuple[float, float], float]
    by_sheet: Interval
    by_copy: Interval
    ours: Interval
    confusion: dict[str, NDArray[np.int64]]
    examples: list[tuple[NDArray[np.float32], NDArray[np.float32]]]
    names: tuple[str, ...]


def run(size: str, *, out: Path, on_progress: Progress | None = None) -> Study:
    """Run the protocol.

    Parameters
    ----------
    size
        One of `SIZES`.
    out
        Folder for checkpoints; the same call goes on from them.
    """
    plan = SIZES[size]
    windows = draw_windows(plan.sheets, seed=_SEED, noise="mixed")
    tested = draw_windows(plan.tested, seed=_TEST_SEED, noise="mixed")
    held = windows.sheets < _HELD * plan.sheets
    known, choice = windows.take(~held), windows.take(held)
    parts = len(RATES) * len(DROPOUTS) + 1
    grid: dict[tuple[float, float], float] = {}
    nets = {}
    for number, (rate, dropout) in enumerate((rate, dropout) for rate in RATES for dropout in DROPOUTS):
        net = _train(
            known,
            rate=rate,
            dropout=dropout,
            steps=plan.steps,
            checkpoint=out / f"{rate:g}-{dropout:g}.pt",
            on_progress=part_of(on_progress, number=number, parts=parts, steps=plan.steps),
        )
        grid[rate, dropout] = float((_name(net, choice.images) == choice.kinds).mean())
        nets[rate, dropout] = net
    best = max(grid, key=lambda point: grid[point])
    called = _name(nets[best], tested.images)
    ours = classify_windows(tested, Network.load("defects", task="defects"))
    leaked = _run_leaked(
        windows,
        *best,
        steps=plan.steps,
        checkpoint=out / "leaked.pt",
        on_progress=part_of(on_progress, number=parts - 1, parts=parts, steps=plan.steps),
    )
    shown = [
        int(np.flatnonzero(tested.kinds == kind)[0])
        for kind in range(len(KINDS))
        if (tested.kinds == kind).any()
    ]
    crystal = find_crystal(MATERIAL)
    return Study(
        size,
        grid,
        binomial_interval(int((called == tested.kinds).sum()), len(called)),
        leaked,
        binomial_interval(int((ours == tested.kinds).sum()), len(ours)),
        {
            name: confusion_matrix(tested.kinds, found, count=len(KINDS))
            for name, found in (("published network", called), ("flatscope", ours))
        },
        [
            (tested.images[row], _show(nets[best], tested.images[row], int(tested.kinds[row])))
            for row in shown
        ],
        tuple(kind.name_in(crystal, "Mo") for kind in KINDS),
    )


def tabulate(study: Study) -> list[Row]:
    """The study's table."""
    return [
        Row("accuracy, turned copies on both sides (as published)", PUBLISHED, study.by_copy),
        Row("accuracy, other sheets", None, study.by_sheet, study.ours),
    ]


def present(study: Study) -> Answer:
    """The study's table, confusion of kinds, and a window of each."""
    shares = {name: counts / counts.sum(1, keepdims=True).clip(1) for name, counts in study.confusion.items()}
    figures = {
        "Confusion of kinds, shares of the true one": draw_confusion(shares, classes=study.names),
        "A window of each kind, and what in it speaks for that kind in the published network": draw_examples(
            study.examples, names=study.names
        ),
    }
    rate, dropout = max(study.grid, key=lambda point: study.grid[point])
    grid = ", ".join(f"{rate:g} and {drop:g}: {value:.3f}" for (rate, drop), value in study.grid.items())
    notes = (
        f"Size {study.size}. Windows of 64×64 px of drawn WS2 with Gaussian, salt-and-pepper and speckle noise "
        "together; six kinds; no sheet is on both sides of the split, except in the line that says so. Brackets: 95 % "
        "interval.",
        f"Accuracy on held-out windows over the published grid of learning rate and dropout: {grid}; chosen: "
        f"{rate:g} and {dropout:g}.",
        "flatscope knows from the lattice which sublattice a defect is on; its network has seen other drawn sheets, "
        "none of these.",
    )
    rows = tabulate(study)
    return Answer(
        "DefectFinder 2018", [row.to_words() for row in rows], [asdict(row) for row in rows], figures, notes
    )


def _scale(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Windows from 0 to 1, with a channel."""
    low, high = (images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True))
    return np.asarray((images - low) / np.maximum(high - low, 1e-9), np.float32)[..., None]


def _turn(
    rng: np.random.Generator, picture: NDArray[np.float32], kind: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    turned = np.rot90(picture, int(rng.integers(4)))
    return (turned[:, ::-1] if rng.random() < 0.5 else turned), kind


def _train(
    windows: Windows,
    *,
    rate: float,
    dropout: float,
    steps: int,
    checkpoint: Path,
    on_progress: Progress | None,
) -> Any:
    from flatscope.training import supervised
    from flatscope.training.nets.windownet import WindowNet

    net = supervised.seeded(WindowNet, seed=_SEED, outputs=len(KINDS), dropout=dropout)
    plan = supervised.Plan(lr=rate, steps=steps, batch=_BATCH, seed=_SEED)
    supervised.fit(
        net,
        _scale(windows.images),
        windows.kinds,
        plan,
        augment=_turn,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    return net


def _name(net: Any, images: NDArray[np.float32]) -> NDArray[np.int64]:
    from flatscope.training import supervised

    x = supervised.to_tensor(_scale(images)).numpy()
    parts = np.array_split(x, max(len(x) // 256, 1))
    return np.concatenate([supervised.answer(net, part).argmax(1) for part in parts])


def _run_leaked(
    windows: Windows,
    rate: float,
    dropout: float,
    *,
    steps: int,
    checkpoint: Path,
    on_progress: Progress | None,
) -> Interval:
    """Accuracy where eight turned and mirrored copies of each window are shuffled before they are split."""
    copies = [np.rot90(windows.images, turns, axes=(1, 2)) for turns in range(4)]
    images = np.concatenate([*copies, *(copy[:, :, ::-1] for copy in copies)])
    kinds, sheets = np.tile(windows.kinds, 8), np.tile(windows.sheets, 8)
    order = np.random.default_rng(_SEED).permutation(len(images))
    cut = int(0.8 * len(order))
    crops = np.zeros((len(images), 0), np.float32)
    whole = Windows(images, crops, kinds, sheets)
    net = _train(
        whole.take(order[:cut]),
        rate=rate,
        dropout=dropout,
        steps=steps,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    tested = whole.take(order[cut:])
    right = int((_name(net, tested.images) == tested.kinds).sum())
    return binomial_interval(right, len(tested.kinds))


def _show(net: Any, image: NDArray[np.float32], kind: int) -> NDArray[np.float32]:
    """A window's class activation map, shape (8, 8)."""
    from flatscope.training import supervised

    x = supervised.to_tensor(_scale(image[None])).numpy()
    return supervised.answer(net.activation, x)[0, kind]
