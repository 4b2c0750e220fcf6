"""The flake finder against truth: pictures with instance masks, and scenes drawn for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.evaluation.metrics import (
    Interval,
    Score,
    bootstrap,
    match_regions,
    overlap_table,
    ratio,
    reliability,
)
from flatscope.files.annotations import read_labels
from flatscope.files.read import find_pictures, read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.materials import find_material
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.results import FlakeTable

_LEAST_PX = 300
"""Regions of scenes below this are not scored."""
BULK_NM = 4.0
"""Masks of real pictures mark flakes up to about this thickness (twelve layers of graphene, six of MoS2)."""


@dataclass(frozen=True)
class MaskScores(Score):
    """Scores against instance masks, at an overlap (IoU) of at least one half.

    `recall` is the share of marked regions that some found region covers, whatever its layer number. `precision` is the
    share of found regions that cover a marked one; thick regions that are probably thicker than `BULK_NM` do not count,
    since masks leave bulk out. `recall_thin` and `precision_thin` count only regions stated as one to six layers.
    `union_iou` compares the pixels behind `precision` with those of the masks. `counts` has a row a picture: name,
    marked, matched by any, found and matched (without bulk), found and matched (six layers or fewer), pixels in both,
    in either.
    """

    recall: Interval
    precision: Interval
    recall_thin: Interval
    precision_thin: Interval
    union_iou: Interval
    counts: list[tuple[Any, ...]]


def evaluate(
    images: Path,
    masks: Path,
    params: FlakeParams,
    *,
    network: Network | None = None,
    um_per_px: float | None = None,
    flatfield: NDArray[np.float32] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> MaskScores:
    """Score the flake finder on pictures with instance masks.

    Parameters
    ----------
    images
        Folder of pictures.
    masks
        Folder of label images, NAME.mask.png or NAME.png for the picture NAME; pictures without one are left out.
    params, network, flatfield
        As `find_flakes` takes them.
    um_per_px
        Pixel size, where the files do not state it.

    Raises
    ------
    MicrographError
        If no picture has a mask.
    """
    network = network or Network.load("flakes")
    pairs = [(path, mask) for path in find_pictures([images]) if (mask := _mask_of(path, masks)) is not None]
    if not pairs:
        raise MicrographError(f"no picture in {images} has a mask NAME.mask.png or NAME.png in {masks}")
    layer_nm = find_material(params.material).layer_nm
    names: list[str] = []
    counts: list[tuple[int, ...]] = []
    for done, (path, mask) in enumerate(pairs, start=1):
        table = find_flakes(read(path, um_per_px=um_per_px), params, network=network, flatfield=flatfield)
        names.append(path.name)
        counts.append(score_picture(table, read_labels(mask), layer_nm=layer_nm))
        if on_progress is not None:
            on_progress(done, len(pairs))
    return MaskScores(
        recall=bootstrap(counts, ratio(1, 0)),
        precision=bootstrap(counts, ratio(3, 2)),
        recall_thin=bootstrap(counts, ratio(5, 0)),
        precision_thin=bootstrap(counts, ratio(5, 4)),
        union_iou=bootstrap(counts, ratio(6, 7)),
        counts=[(name, *row) for name, row in zip(names, counts, strict=True)],
    )


def _mask_of(path: Path, masks: Path) -> Path | None:
    for name in (f"{path.stem}.mask.png", f"{path.stem}.png", f"{path.stem}.mask.tif", f"{path.stem}.tif"):
        if (masks / name).is_file() and (masks / name) != path:
            return masks / name
    return None


def score_picture(table: FlakeTable, true: NDArray[np.int32], *, layer_nm: float) -> tuple[int, ...]:
    """The numbers behind `MaskScores` for one picture, in the order of a row of `counts`."""
    rows = table.found
    thick = rows["layers"].str.startswith("thick")
    bulk = thick & (np.sqrt(rows["layers_low"] * rows["layers_high"]) * layer_nm > BULK_NM)

    def found(chosen: pd.DataFrame) -> NDArray[np.int32]:
        return np.where(np.isin(table.labels, chosen["region_id"].to_numpy(int)), table.labels, 0)

    matches = [
        len(match_regions(overlap_table(found(part), true)[2])) for part in (rows, rows[~bulk], rows[~thick])
    ]
    inside = found(rows[~bulk]) > 0
    return (
        len(np.unique(true[true > 0])),
        matches[0],
        int((~bulk).sum()),
        matches[1],
        int((~thick).sum()),
        matches[2],
        int((inside & (true > 0)).sum()),
        int((inside | (true > 0)).sum()),
    )


@dataclass(frozen=True)
class SceneScores(Score):
    """Scores on drawn scenes, over true regions of at least 300 px.

    `found` is the share with a region that overlaps by half; of those found, `right` is the share whose true layer
    number is among those named, `ambiguous` the share with more than one. `crystal` is the share of all regions of at
    least 300 px in the answer that lie on a crystal and not on residue or bare substrate. `confusion` counts true
    (rows, 1 to 6 and thick) against stated likeliest layer number; `reliability` lists stated probability, share right
    and number; `crystal_reliability` does so for `p_flake` of all regions, rejected ones too.
    """

    found: Interval
    right: Interval
    ambiguous: Interval
    crystal: Interval
    confusion: list[list[int]]
    reliability: list[tuple[float, float, int]]
    crystal_reliability: list[tuple[float, float, int]]
    oxide_pull: float
    regions: int
    scenes: int


def evaluate_scenes(
    count: int,
    *,
    seed: int = 7,
    side_px: int = 768,
    network: Network | None = None,
    oxide_sigma_nm: float = 5.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SceneScores:
    """Score layer numbers on scenes from the whole range of set-ups.

    The finder is given the material and a nominal oxide that is off from the true one by `oxide_sigma_nm` (1 sigma).
    The seed keeps these scenes apart from those that a network was trained on.
    """
    network = network or Network.load("flakes")
    per_scene, stated, correct, pulls = [], [], [], []
    flakes: list[tuple[float, bool]] = []
    confusion = np.zeros((7, 7), int)
    for index in range(count):
        rng = np.random.default_rng(np.random.SeedSequence(entropy=(seed, 990_000), spawn_key=(index,)))
        scene = draw_scene(rng, SceneParams(shape=(side_px, side_px), density=0.6))
        oxide = float(scene.setup.oxide_nm[0])
        params = FlakeParams(
            find_material(scene.setup.material).name,
            oxide_nm=float(np.clip(oxide + rng.normal(0.0, oxide_sigma_nm), 55, 330)),
            oxide_sigma_nm=oxide_sigma_nm,
        )
        table = find_flakes(Micrograph(scene.pixels, source=f"scene {index}"), params, network=network)
        answers = pair_with_truth(table, scene)
        hits = [answer for answer in answers if answer.named]
        per_scene.append(
            (
                len(answers),
                len(hits),
                sum(answer.true in answer.named for answer in hits),
                sum(len(answer.named) > 1 for answer in hits),
                *_count_crystals(table, scene),
            )
        )
        rows = table.frame[table.frame["area_px"] >= _LEAST_PX]
        flakes += zip(rows["p_flake"].tolist(), _lie_on_crystals(table, scene, rows).tolist(), strict=True)
        for answer in hits:
            confusion[answer.true - 1, answer.likeliest - 1] += 1
            if np.isfinite(answer.p):
                stated.append(answer.p)
                correct.append(answer.true in answer.named)
        if len(table):
            pulls.append(
                (table.frame["oxide_nm"].iloc[0] - oxide) / max(table.frame["oxide_sigma_nm"].iloc[0], 0.5)
            )
        if on_progress is not None:
            on_progress(index + 1, count)
    believed = np.array(flakes).reshape(-1, 2)
    return SceneScores(
        found=bootstrap(per_scene, ratio(1, 0)),
        right=bootstrap(per_scene, ratio(2, 1)),
        ambiguous=bootstrap(per_scene, ratio(3, 1)),
        crystal=bootstrap(per_scene, ratio(5, 4)),
        confusion=confusion.tolist(),
        reliability=reliability(np.array(stated), np.array(correct, bool)),
        crystal_reliability=reliability(believed[:, 0], believed[:, 1] > 0),
        oxide_pull=float(np.std(pulls)) if pulls else float("nan"),
        regions=sum(row[0] for row in per_scene),
        scenes=count,
    )


_NUMBERS = {"thick": 7, "thin": -1}
"""What stands for answers that are no layer number."""


@dataclass(frozen=True)
class Answer:
    """A true region and its answer: layer numbers 1 to 6, 7 for thick; `named` is empty if it was not found, and (-1,)
    if its layer number stayed open."""

    true: int
    named: tuple[int, ...]
    likeliest: int
    p: float
    area_px: int


def _count_crystals(table: FlakeTable, scene: Scene) -> tuple[int, int]:
    """Regions in the answer, and how many of them lie on a crystal."""
    rows = table.found[table.found["area_px"] >= _LEAST_PX]
    return len(rows), int(_lie_on_crystals(table, scene, rows).sum())


def _lie_on_crystals(table: FlakeTable, scene: Scene, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Which of these regions lie on a crystal by more than half."""
    crystal = np.where(scene.foreign, 0, scene.regions > 0)
    on_crystal = np.bincount(table.labels.ravel(), weights=crystal.ravel())
    areas = np.bincount(table.labels.ravel())
    regions = rows["region_id"].to_numpy(int)
    return np.asarray(on_crystal[regions] > 0.5 * areas[regions])


def pair_with_truth(table: FlakeTable, scene: Scene, *, least_px: int = 300) -> list[Answer]:
    """Each true region of a scene with the answer that overlaps it by half or more."""
    contrast = np.abs(scene.contrast).max(1)
    areas = np.bincount(scene.regions.ravel())
    accepted = table.found
    found = np.where(np.isin(table.labels, accepted["region_id"].to_numpy(int)), table.labels, 0)
    labels, true_labels, overlap = overlap_table(found, scene.regions)
    partner = {col: row for row, col in match_regions(overlap)}
    rows = accepted.set_index("region_id")
    answers = []
    for col, label in enumerate(true_labels):
        if areas[label] < least_px:
            continue
        value = int(scene.layers.ravel()[int((scene.regions == label).argmax())])
        true = value if value <= 6 else 7
        if true < 7 and contrast[true] < 0.02:
            continue
        if col not in partner:
            answers.append(Answer(true, (), 0, float("nan"), int(areas[label])))
            continue
        row = rows.loc[labels[partner[col]]]
        named = tuple(_NUMBERS.get(name) or min(int(name), 7) for name in row["layers"].split("|"))
        p = np.array([row[f"p_{layer}"] for layer in range(1, 7)] + [row["p_thick"]])
        answers.append(
            Answer(true, named, int(np.nan_to_num(p).argmax()) + 1, float(row["layers_p"]), int(areas[label]))
        )
    return answers
