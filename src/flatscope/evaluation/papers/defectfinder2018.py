"""DefectFinder 2018: windows around defects, named by a convolutional network, beside flatscope.

References
----------
DefectFinder, University of Washington, 2018 (poster and code; no DOI), and Maksov et al. 2019,
doi:10.1038/s41524-019-0152-9. Their images are not public: windows are drawn, of WS2, six kinds, at the poster's mixed
noise. As published: one microscope, one orientation, and the poster's kinds, each window in about a hundred turned
copies, shuffled before they are split. Across set-ups: every sheet by another microscope, in another orientation, and
the kinds that flatscope names. Both splits are run in both: by copy, and by sheet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.drawing.noise import spoil
from flatscope.electron.physics.crystals import SheetParams, build_sheet, find_crystal, refill
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.evaluation.metrics import Interval, bootstrap, confusion_matrix
from flatscope.evaluation.papers import Answer, Progress, Row
from flatscope.evaluation.windows import (
    KINDS,
    MATERIAL,
    WINDOW_NM,
    WINDOW_PX,
    Windows,
    classify_windows,
    draw_windows,
)
from flatscope.inference.runtime import Network
from flatscope.report.defects import draw_windows as draw_examples
from flatscope.report.study import draw_confusion

DOI = "10.1038/s41524-019-0152-9"
PUBLISHED = 0.9568
"""Accuracy over six classes, turned copies of the same windows on both sides of the split."""
RATES = (1.6e-5, 3.4e-4, 4.7e-3)  # learning rates of the published grid
DROPOUTS = (0.2, 0.4)  # and its shares dropped
POSTER_KINDS = {
    "Mo_W": (0, "Mo"), "V_W": (0, ""), "S_W": (0, "S"), "V_S2": (1, ""), "W2_S2": (1, "W2"), "W_S": (1, "WS"),
}  # fmt: skip
"""The poster's six kinds: the sublattice, and what stands there."""
_BATCH = 32  # windows a step
_SEED = 2018  # of sheets, splits and networks
_TEST_SEED = 17  # of tested sheets
_TESTED = 0.2  # published share of windows that are tested
_HELD = 0.33  # published share of the others that choose
_PATIENCE = 1 / 3  # of a training; it ends when validation has not improved for this share
_SCORED = 4000  # windows that a point of the learning curve is measured on, of validation and of training
_SHEETS = 28  # of some eighteen windows, for a hundred copies of each as in the published code
_FIELD_PX = 256  # side of a sheet
_SHARE = 0.01  # of the sites that each kind takes
_TURN_DEG = 60.0  # largest turn of a copy, as in the published code
_SHIFT = 0.1  # and its largest shift, as a share of the side
_ZOOM = 0.2  # and its largest zoom
_OPTICS = ScanParams(pixel_nm=WINDOW_NM / WINDOW_PX, convergence_mrad=30.0, source_nm=0.0375)

Images = NDArray[Any]
"""Windows, of 8 bits or floating."""


@dataclass(frozen=True)
class Size:
    """How much of the protocol is run.

    Parameters
    ----------
    sheets, tested
        Trained on and tested across set-ups; some fifteen windows each.
    windows
        Copies in the published setting, in all.
    grid, steps
        Steps of 32 windows for each point of the grid, and at most for the best point.
    """

    sheets: int
    tested: int
    windows: int
    grid: int
    steps: int


SIZES = {
    "quick": Size(4, 4, 300, 1, 1),
    "cpu": Size(2000, 200, 50_178, 840, 60_000),
    "full": Size(2000, 200, 50_178, 20_000, 200_000),
}


@dataclass(frozen=True)
class Study:
    """What came out.

    Parameters
    ----------
    size, setting
        See `run`.
    grid
        (learning rate, dropout) to accuracy in training and on windows held out for the choice.
    by_sheet, by_copy, ours
        Accuracy of the published network on other sheets, and on turned copies of what it was trained on; and
        flatscope's on the first, None for kinds that it does not name. Intervals by sheet.
    samples
        Windows that the networks of `by_copy` and `by_sheet` saw until they stopped improving.
    confusion
        Method to counts, shape (6, 6), true kinds down.
    examples
        Windows (64, 64) and the activation maps (8, 8) of their kind.
    names
        Of the kinds.
    """

    size: str
    setting: str
    grid: dict[tuple[float, float], tuple[float, float]]
    by_sheet: Interval
    by_copy: Interval
    ours: Interval | None
    samples: tuple[int, int]
    confusion: dict[str, NDArray[np.int64]]
    examples: list[tuple[Images, NDArray[np.float32]]]
    names: tuple[str, ...]


@dataclass(frozen=True)
class _Split:
    """Windows to train on, to choose by and to test."""

    known: Windows
    choice: Windows
    tested: Windows


def run(size: str, *, setting: str = "across", out: Path, on_progress: Progress | None = None) -> Study:
    """Run the protocol.

    Parameters
    ----------
    size
        One of `SIZES`.
    setting
        One of `flatscope.evaluation.papers.SETTINGS`.
    out
        Folder for checkpoints and learning curves; the same call goes on from them.
    """
    plan = SIZES[size]
    published = setting == "published"
    by_copy, by_sheet = (
        _draw_published(plan.windows, out / f"{size}-{setting}.npz") if published else _draw_across(plan)
    )
    searched = by_copy if published else by_sheet
    points = [(rate, dropout) for rate in RATES for dropout in DROPOUTS]
    steps = [plan.grid] * len(points) + [plan.steps] * 2
    grid: dict[tuple[float, float], tuple[float, float]] = {}

    def train(split: _Split, point: tuple[float, float], name: str, number: int) -> tuple[Any, int]:
        progress = (
            None
            if on_progress is None
            else lambda step, _: on_progress(sum(steps[:number]) + step, sum(steps))
        )
        return _train(
            split,
            point,
            steps=steps[number],
            augment=_keep if published else _turn,  # published copies are turned once, before training
            checkpoint=out / f"{size}-{setting}-{name}.pt",
            on_progress=progress,
        )

    for number, point in enumerate(points):
        net, _ = train(searched, point, f"{point[0]:g}-{point[1]:g}", number)
        grid[point] = (_score(net, searched.known), _score(net, searched.choice))
    best = max(grid, key=lambda point: grid[point][1])
    leaking, seen = train(by_copy, best, "by-copy", len(points))
    honest, seen_too = train(by_sheet, best, "by-sheet", len(points) + 1)
    tested = by_sheet.tested
    answers = {"published network": _name(honest, tested.images)}
    if not published:
        answers["flatscope"] = classify_windows(tested, Network.load("defects", task="defects"))
    shown = [int(np.flatnonzero(tested.kinds == kind)[0]) for kind in np.unique(tested.kinds)]
    crystal = find_crystal(MATERIAL)
    return Study(
        size,
        setting,
        grid,
        _accuracy(answers["published network"], tested),
        _accuracy(_name(leaking, by_copy.tested.images), by_copy.tested),
        None if published else _accuracy(answers["flatscope"], tested),
        (seen, seen_too),
        {name: confusion_matrix(tested.kinds, found, count=len(KINDS)) for name, found in answers.items()},
        [(tested.images[row], _show(honest, tested.images[row], int(tested.kinds[row]))) for row in shown],
        tuple(POSTER_KINDS) if published else tuple(kind.name_in(crystal, "Mo") for kind in KINDS),
    )


def tabulate(study: Study) -> list[Row]:
    """The study's table."""
    own = PUBLISHED if study.setting == "published" else None
    return [
        Row("accuracy, turned copies on both sides (as published)", own, study.by_copy),
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
    rate, dropout = max(study.grid, key=lambda point: study.grid[point][1])
    grid = ", ".join(
        f"{rate:g} and {drop:g}: {trained:.3f}, {held:.3f}"
        for (rate, drop), (trained, held) in study.grid.items()
    )
    notes = (
        f"Size {study.size}. Windows of 64×64 px of drawn WS2 with Gaussian, salt-and-pepper and speckle noise "
        "together; six kinds; no sheet is on both sides of the split, except in the line that says so. Brackets: 95 % "
        "interval by sheet.",
        f"Accuracy in training and on held-out windows over the published grid of learning rate and dropout: {grid}; "
        f"chosen: {rate:g} and {dropout:g}. Windows seen until validation stopped improving: {study.samples[0]:,} by "
        f"copy, {study.samples[1]:,} by sheet.",
        "One microscope, one orientation, a hundred copies of each window, as published; flatscope does not name W_S."
        if study.setting == "published"
        else "flatscope knows from the lattice which sublattice a defect is on; its network has seen other drawn "
        "sheets, none of these.",
    )
    rows = tabulate(study)
    return Answer(
        "DefectFinder 2018", [row.to_words() for row in rows], [asdict(row) for row in rows], figures, notes
    )


def _draw_published(count: int, path: Path) -> tuple[_Split, _Split]:
    """`count` windows of one microscope in turned copies, kept in a file; split by copy and by sheet."""
    from flatscope.training.supervised import draw_or_load

    windows = Windows(**draw_or_load(path, lambda: vars(_copy(_draw_sheets(), count))))
    rng = np.random.default_rng(_SEED)
    shuffled = rng.permutation(count) / count
    sheets = (rng.permutation(_SHEETS) / _SHEETS)[windows.sheets]
    by_copy, by_sheet = (_split(windows, place) for place in (shuffled, sheets))
    return by_copy, by_sheet


def _split(windows: Windows, place: NDArray[np.float64]) -> _Split:
    """By places from 0 to 1."""
    first = _HELD * (1.0 - _TESTED)
    return _Split(
        windows.take((place >= first) & (place < 1.0 - _TESTED)),
        windows.take(place < first),
        windows.take(place >= 1.0 - _TESTED),
    )


def _draw_across(size: Size) -> tuple[_Split, _Split]:
    """Windows of many microscopes, split by copy, eight copies of each, and by sheet."""
    windows = draw_windows(size.sheets, seed=_SEED, noise="mixed")
    tested = draw_windows(size.tested, seed=_TEST_SEED, noise="mixed")
    held = windows.sheets < _HELD * size.sheets
    copies = [np.rot90(windows.images, turns, axes=(1, 2)) for turns in range(4)]
    images = np.concatenate([*copies, *(copy[:, :, ::-1] for copy in copies)])
    kinds, sheets = np.tile(windows.kinds, 8), np.tile(windows.sheets, 8)
    whole = Windows(images, np.zeros((len(images), 0), np.float32), kinds, sheets)
    place = np.random.default_rng(_SEED).permutation(len(images)) / len(images)
    return _split(whole, place), _Split(windows.take(~held), windows.take(held), tested)


def _draw_sheets() -> Windows:
    """Windows without noise around the poster's kinds of defect, from sheets that lie alike under one microscope."""
    side = (_FIELD_PX * _OPTICS.pixel_nm,) * 2
    half = WINDOW_PX // 2
    images, kinds, sheets = [], [], []
    for number in range(_SHEETS):
        rng = np.random.default_rng([_SEED, number])
        perfect = build_sheet(rng, SheetParams(MATERIAL, side, shift_nm=tuple(rng.uniform(0.0, 0.3, 2))))
        species, kind = perfect.species.astype("<U4"), np.full(len(perfect.species), -1)
        for place, (sublattice, name) in enumerate(POSTER_KINDS.values()):
            hit = (perfect.sublattice == sublattice) & (kind < 0) & (rng.random(len(kind)) < _SHARE)
            species[hit], kind[hit] = name, place
        image = draw_adf(refill(perfect, species, MATERIAL), _OPTICS, shape=(_FIELD_PX, _FIELD_PX))
        corners = np.rint(perfect.sites_nm / _OPTICS.pixel_nm).astype(int) - half
        inner = ((corners >= 0) & (corners <= _FIELD_PX - WINDOW_PX)).all(1)
        for site in np.flatnonzero(inner & (kind >= 0)):
            row, col = corners[site]
            images.append(image[row : row + WINDOW_PX, col : col + WINDOW_PX])
            kinds.append(kind[site])
            sheets.append(number)
    crops = np.zeros((len(images), 0), np.float32)
    return Windows(np.stack(images).astype(np.float32), crops, np.array(kinds), np.array(sheets))


def _copy(windows: Windows, count: int) -> Windows:
    """`count` copies of 8 bits: turned, shifted, zoomed, mirrored, black beyond the border, each with its own noise."""
    rows = np.arange(count) % len(windows.kinds)
    clean = _scale(windows.images)[..., 0]
    images = np.empty((count, WINDOW_PX, WINDOW_PX), np.uint8)
    middle = np.full(2, 0.5 * (WINDOW_PX - 1))
    for number, row in enumerate(rows):
        rng = np.random.default_rng([_SEED, 1, number])
        turn = np.deg2rad(rng.uniform(-_TURN_DEG, _TURN_DEG))
        axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
        axes = axes * rng.uniform(1.0 - _ZOOM, 1.0 + _ZOOM, 2) * rng.choice([-1.0, 1.0], 2)
        start = middle + rng.uniform(-_SHIFT, _SHIFT, 2) * WINDOW_PX - axes @ middle
        turned = ndimage.affine_transform(clean[row], axes, start, order=1)
        images[number] = np.rint(255.0 * spoil(rng, turned, "mixed"))
    return Windows(images, np.zeros((count, 0), np.float32), windows.kinds[rows], windows.sheets[rows])


def _scale(images: Images) -> NDArray[np.float32]:
    """Windows from 0 to 1, with a channel."""
    images = np.asarray(images, np.float32)
    low, high = (images.min((1, 2), keepdims=True), images.max((1, 2), keepdims=True))
    return ((images - low) / np.maximum(high - low, 1e-9))[..., None]


def _turn(
    rng: np.random.Generator, picture: NDArray[np.float32], kind: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    turned = np.rot90(picture, int(rng.integers(4)))
    return (turned[:, ::-1] if rng.random() < 0.5 else turned), kind


def _keep(
    _: np.random.Generator, picture: NDArray[np.float32], kind: NDArray[np.int64]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    return picture, kind


def _train(
    split: _Split,
    point: tuple[float, float],
    *,
    steps: int,
    augment: Callable[..., tuple[NDArray[np.float32], NDArray[np.int64]]],
    checkpoint: Path,
    on_progress: Progress | None,
) -> tuple[Any, int]:
    """The network, and how many windows it saw until validation stopped improving."""
    from flatscope.training import supervised
    from flatscope.training.curve import LearningCurve
    from flatscope.training.nets.windownet import WindowNet

    rate, dropout = point
    net = supervised.seeded(WindowNet, seed=_SEED, outputs=len(KINDS), dropout=dropout)
    plan = supervised.Plan(lr=rate, steps=steps, batch=_BATCH, seed=_SEED)
    some = np.random.default_rng(_SEED).permutation
    choice, known = (part.take(some(len(part.kinds))[:_SCORED]) for part in (split.choice, split.known))
    curve = LearningCurve(
        checkpoint,
        lambda net: {"validation": _score(net, choice), "training": _score(net, known)},
        every=max(len(split.known.kinds) // _BATCH, 1),
        patience=_PATIENCE,
    )
    supervised.fit(
        net,
        _scale(split.known.images),
        split.known.kinds,
        plan,
        augment=augment,
        checkpoint=curve,
        on_progress=on_progress,
    )
    return net, curve.samples


def _score(net: Any, windows: Windows) -> float:
    return float((_name(net, windows.images) == windows.kinds).mean())


def _name(net: Any, images: Images) -> NDArray[np.int64]:
    from flatscope.training import supervised

    parts = np.array_split(images, max(len(images) // 256, 1))
    return np.concatenate(
        [supervised.answer(net, supervised.to_tensor(_scale(part)).numpy()).argmax(1) for part in parts]
    )


def _accuracy(found: NDArray[np.int64], windows: Windows) -> Interval:
    """Share of windows named right; interval by sheet."""
    right, total = (
        np.bincount(windows.sheets, weights) for weights in ((found == windows.kinds).astype(float), None)
    )
    shown = total > 0
    return bootstrap(np.column_stack([right, total])[shown], lambda sums: float(sums[0] / sums[1]))


def _show(net: Any, image: Images, kind: int) -> NDArray[np.float32]:
    """A window's class activation map, shape (8, 8)."""
    from flatscope.training import supervised

    x = supervised.to_tensor(_scale(image[None])).numpy()
    return supervised.answer(net.activation, x)[0, kind]
