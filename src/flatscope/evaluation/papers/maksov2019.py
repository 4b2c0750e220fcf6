"""Maksov et al. 2019: defects through a movie by a network trained on its first frame, beside flatscope.

References
----------
npj Comput. Mater. 5, 12 (2019), doi:10.1038/s41524-019-0152-9. The published movie of WS2 is not public: movies are
drawn, with sulphur vacancies that hop at a known rate in a specimen that drifts by 1.5 Å a frame.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.drawing.hopping import HoppingMovie, HoppingParams, draw_hopping
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.rates import count_transitions, measure_diffusion
from flatscope.electron.tracks import TrackParams, track_defects
from flatscope.evaluation.defects import as_movie, count_links, find_by_fourier, link_nearest
from flatscope.evaluation.papers import Answer, Progress
from flatscope.inference.runtime import Network
from flatscope.report.study import draw_confusion

DOI = "10.1038/s41524-019-0152-9"
CLUSTERS = 3  # classes of the Gaussian mixture, as published
_SEED = 2019  # of movie, network and mixture
_BATCH = 4  # windows a step
_LEARNING_RATE = 1e-3
_LEAST_PX = 5  # smallest blob that counts, as published
_MOST_PX = 700  # and largest
_CUT_PX = 32  # side of the window around a blob
_COMPONENTS = 8  # principal components of the windows that the mixture sees


@dataclass(frozen=True)
class Size:
    """Frames of the movie, side of the windows of its first frame, and steps of four windows."""

    frames: int
    window_px: int
    steps: int


SIZES = {"quick": Size(4, 64, 2), "cpu": Size(60, 192, 1200), "full": Size(200, 256, 12_000)}


@dataclass(frozen=True)
class Line:
    """One method on the movie: F1 of defects in frames and of links, and D in nm² a frame over the true one."""

    method: str
    defects: float
    links: float
    diffusion: float
    by_variance: float


@dataclass(frozen=True)
class Study:
    """Lines of both methods; transitions of the published classes and of flatscope's kinds; their tracks."""

    size: str
    lines: list[Line]
    transitions: dict[str, pd.DataFrame]
    tracks: dict[str, pd.DataFrame]
    true_diffusion: float


def run(size: str, *, out: Path, on_progress: Progress | None = None) -> Study:
    """Run the protocol.

    Parameters
    ----------
    size
        One of `SIZES`.
    out
        Folder for the checkpoint; the same call goes on from it.
    """
    plan = SIZES[size]
    params = HoppingParams(frames=plan.frames)
    made = draw_hopping(np.random.default_rng([_SEED, 0]), params)
    net = _train(made.frames[0], plan, checkpoint=out / "blobs.pt", on_progress=on_progress)
    theirs = _follow(made, net, params)
    table = track_defects(
        as_movie(made, params), TrackParams(params.material), network=Network.load("defects", task="defects")
    )
    frames = np.arange(plan.frames)
    true = params.hop * find_crystal(params.material).lattice_nm ** 2 / 4.0
    tracks = {"published route": theirs, "flatscope": table.frame}
    return Study(
        size,
        [_judge(name, found, made, params, true) for name, found in tracks.items()],
        {name: count_transitions(found, frames) for name, found in tracks.items()},
        tracks,
        true,
    )


def present(study: Study) -> Answer:
    """The study's table, and what a defect is one frame later."""
    rows = [
        {
            "method": line.method,
            "F1 of defects": f"{line.defects:.3f}",
            "F1 of links": f"{line.links:.3f}",
            "D / true D, by slope": f"{line.diffusion:.2f}",
            "D / true D, by variance (as published)": f"{line.by_variance:.2f}",
        }
        for line in study.lines
    ]
    figures = {}
    for name, transitions in study.transitions.items():
        if len(transitions):
            matrix = transitions.pivot(index="kind", columns="kind_after", values="p")
            order = [*matrix.index, "none"]
            square = matrix.reindex(index=order, columns=order).fillna(0.0).to_numpy()
            caption = f"{name}: what a defect is one frame later"
            figures[caption] = draw_confusion({name: square}, classes=order)
    notes = (
        f"Size {study.size}. A drawn movie of WS2, {SIZES[study.size].frames} frames of 256×256 px at 30 electrons a "
        "pixel, drifting by 1.5 Å a frame; sulphur vacancies hop to a neighbouring site in a tenth of the frames, so "
        f"that the true D is {study.true_diffusion:.5f} nm² a frame. Published route: Fourier map of the first frame, "
        "a network trained on it, blobs of 5 to 700 px, a Gaussian mixture of three classes, nearest neighbours "
        "linked.",
    )
    numbers = [asdict(line) for line in study.lines]
    return Answer(f"Maksov et al. 2019 (doi:{DOI})", rows, numbers, figures, notes)


def _train(
    frame: NDArray[np.float32],
    size: Size,
    *,
    checkpoint: Path,
    on_progress: Progress | None,
) -> Any:
    """Train the network to mark what the Fourier map of the first frame marks."""
    from flatscope.training import supervised
    from flatscope.training.nets.blobnet import BlobNet

    _, mask = find_by_fourier(np.asarray(frame, float))
    picture, truth = _scale(frame)[None], mask.astype(np.uint8)[None]

    def cut(
        rng: np.random.Generator, image: NDArray[np.float32], known: NDArray[np.uint8]
    ) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        row, col = (int(rng.integers(side - size.window_px + 1)) for side in known.shape)
        part = (slice(row, row + size.window_px), slice(col, col + size.window_px))
        turns = int(rng.integers(4))
        return np.rot90(image[part], turns), np.rot90(known[part], turns)

    net = supervised.seeded(BlobNet, seed=_SEED)
    plan = supervised.Plan(lr=_LEARNING_RATE, steps=size.steps, batch=_BATCH, seed=_SEED)
    supervised.fit(net, picture, truth, plan, augment=cut, checkpoint=checkpoint, on_progress=on_progress)
    return net


def _scale(frame: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.asarray((frame - frame.min()) / max(float(np.ptp(frame)), 1e-9), np.float32)[..., None]


def _follow(made: HoppingMovie, net: Any, params: HoppingParams) -> pd.DataFrame:
    """Blobs of every frame, named by a Gaussian mixture, each linked to the nearest one in the frame before."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    from flatscope.training import supervised

    rows: list[tuple[int, float, float]] = []
    windows = []
    half = _CUT_PX // 2
    for number, frame in enumerate(made.frames):
        logits = supervised.answer(net, supervised.to_tensor(_scale(frame)[None]).numpy())[0]
        blobs, count = ndimage.label(logits[1] > logits[0])
        sizes = (
            ndimage.sum_labels(np.ones_like(blobs), blobs, np.arange(1, count + 1)) if count else np.zeros(0)
        )
        for index in np.flatnonzero((sizes >= _LEAST_PX) & (sizes <= _MOST_PX)) + 1:
            row, col = ndimage.center_of_mass(blobs == index)
            rows.append((number, float(row), float(col)))
            padded = np.pad(frame, half, mode="reflect")
            r, c = round(row), round(col)
            windows.append(padded[r : r + _CUT_PX, c : c + _CUT_PX].ravel())
    table = pd.DataFrame(rows, columns=["frame", "row_px", "col_px"])
    kinds = np.zeros(len(table), int)
    if len(table) > max(_COMPONENTS, CLUSTERS):
        features = PCA(_COMPONENTS, random_state=_SEED).fit_transform(np.array(windows))
        kinds = GaussianMixture(CLUSTERS, random_state=_SEED).fit_predict(features)
    pixel = params.optics.pixel_nm
    reach = 1.3 * find_crystal(params.material).lattice_nm / pixel
    return table.assign(
        kind=[f"class {kind + 1}" for kind in kinds],
        track_id=link_nearest(table, reach),
        x_nm=table["col_px"] * pixel,
        y_nm=table["row_px"] * pixel,
    )


def _judge(name: str, found: pd.DataFrame, made: HoppingMovie, params: HoppingParams, true: float) -> Line:
    good, said, known, right, seen, there = count_links(found, made.truth, params)
    spread = [one for one in measure_diffusion(found) if np.isfinite(one.coefficient)]
    most = max(spread, key=lambda one: one.tracks, default=None)
    return Line(
        name,
        2.0 * right / max(seen + there, 1.0),
        2.0 * good / max(said + known, 1.0),
        most.coefficient / true if most else float("nan"),
        most.by_variance / true if most else float("nan"),
    )
