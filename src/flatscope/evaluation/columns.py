"""Atomic columns against expert labels, and against the truth of drawn images with counting noise."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from flatscope.electron.columns import ColumnParams, find_columns
from flatscope.electron.fitting import fit_columns
from flatscope.electron.physics.crystals import Sheet, SheetParams, build_sheet, find_crystal
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.evaluation.metrics import Interval, Score, bootstrap
from flatscope.files.read import read
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.units import um_from_nm

Float = NDArray[np.float64]

MATCH_NM = 0.05
"""A column counts as found within this distance of a true one."""
_SIDE_PX = 256  # side of a drawn image
_PIXEL_NM = 0.02  # its pixel size
_RIM_PX = 16  # columns this near to its border do not count
_TILES = 4  # parts of a labelled field along each side, from which intervals are drawn


@dataclass(frozen=True)
class LabelScores(Score):
    """Scores against expert labels; `match_px` is the distance within which a column counts as found.

    `classical_f1` is that of a Laplacian-of-Gaussian blob detector whose scale and threshold were tuned on these very
    labels. `sublattice` is the share of the matched columns on the right one. `shift_px` is the rms distance of the
    matched ones; labels are whole pixels, which alone gives 0.41 px.
    """

    f1: Interval
    precision: Interval
    recall: Interval
    sublattice: Interval
    classical_f1: float
    shift_px: float
    match_px: float
    columns: int
    labels: int
    seconds: float


def evaluate_labels(
    image: Path, labels: Path, params: ColumnParams, *, nm_per_px: float | None = None
) -> LabelScores:
    """Score `find_columns` on an image with marked columns.

    Parameters
    ----------
    image
        An electron micrograph.
    labels
        CSV with `row_px`, `col_px` and `label`: what stands there, "W", "Se2", "Ti_W" (Ti on a W site), "V_Se". Only
        the rectangle that they span counts.
    params
        The material.
    nm_per_px
        Pixel size, where the file does not state it.

    Raises
    ------
    MicrographError
        If a file cannot be read.
    """
    true, names = read_labels(labels)
    micrograph = read(
        image, um_per_px=None if nm_per_px is None else um_from_nm(nm_per_px), modality="electron"
    )
    begun = time.perf_counter()
    table = find_columns(micrograph, params)
    seconds = time.perf_counter() - begun
    low, high = true.min(0), true.max(0)
    frame = table.found
    frame = frame[frame["row_px"].between(low[0], high[0]) & frame["col_px"].between(low[1], high[1])]
    found = frame[["row_px", "col_px"]].to_numpy(float)
    reach = MATCH_NM / table.calibration.pixel_size_nm[0]
    pairs = match_points(found, true, reach)
    crystal = find_crystal(params.material)
    sites = [_sublattice_of(names[j], crystal.first[0]) for _, j in pairs]
    stated = [crystal.sublattices.index(str(frame["sublattice"].iloc[i])) for i, _ in pairs]
    right = np.zeros(len(found))
    right[[i for i, _ in pairs]] = np.equal(sites, stated)
    hit, met = np.zeros(len(found)), np.zeros(len(true))
    hit[[i for i, _ in pairs]], met[[j for _, j in pairs]] = 1.0, 1.0
    tile = [_tile_of(points, low, high) for points in (found, true)]
    sums = np.array(
        [
            (hit[mine].sum(), len(hit[mine]), met[theirs].sum(), len(met[theirs]), right[mine].sum())
            for number in range(_TILES**2)
            for mine, theirs in [(tile[0] == number, tile[1] == number)]
        ]
    )
    gap = [float(np.hypot(*(found[i] - true[j]))) for i, j in pairs]
    return LabelScores(
        f1=bootstrap(sums, lambda s: float((s[0] + s[2]) / max(s[1] + s[3], 1.0))),
        precision=bootstrap(sums, lambda s: float(s[0] / max(s[1], 1.0))),
        recall=bootstrap(sums, lambda s: float(s[2] / max(s[3], 1.0))),
        sublattice=bootstrap(sums, lambda s: float(s[4] / max(s[0], 1.0))),
        classical_f1=_classical_f1(micrograph, true, reach),
        shift_px=float(np.sqrt(np.mean(np.square(gap)))) if gap else float("nan"),
        match_px=reach,
        columns=len(found),
        labels=len(true),
        seconds=seconds,
    )


def read_labels(path: Path) -> tuple[Float, list[str]]:
    """Positions (n, 2) as (row, col) and names of marked columns; see `evaluate_labels`."""
    try:
        with open(path, newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
        places = np.array([(float(row["row_px"]), float(row["col_px"])) for row in rows])
        names = [row["label"] for row in rows]
    except OSError as error:
        raise MicrographError(f"{path}: cannot be read ({error.strerror}): check the path") from None
    except (KeyError, ValueError, TypeError, UnicodeDecodeError):
        raise MicrographError(f"{path}: holds no table with row_px, col_px and label") from None
    if len(places) < 2:
        raise MicrographError(f"{path}: holds {len(places)} columns: mark at least two")
    return places, names


def match_points(found: Float, true: Float, reach: float) -> list[tuple[int, int]]:
    """Pair points one to one, nearest first; (index in `found`, index in `true`)."""
    near = cKDTree(found).query_ball_point(true, reach) if len(found) else [[]] * len(true)
    pairs = sorted(
        (float(np.hypot(*(found[i] - true[j]))), i, j)
        for j, candidates in enumerate(near)
        for i in candidates
    )
    taken: tuple[set[int], set[int]] = (set(), set())
    kept = []
    for _, i, j in pairs:
        if i not in taken[0] and j not in taken[1]:
            taken[0].add(i)
            taken[1].add(j)
            kept.append((i, j))
    return kept


def _sublattice_of(label: str, first: str) -> int:
    """0 where the label's site, its last word, is of the first element."""
    return 0 if label.rsplit("_", 1)[-1].rstrip("0123456789") == first else 1


def _tile_of(points: Float, low: Float, high: Float) -> NDArray[np.int64]:
    place = np.clip(((points - low) / (high - low + 1e-9) * _TILES).astype(int), 0, _TILES - 1)
    return np.asarray(place[:, 0] * _TILES + place[:, 1])


def _classical_f1(micrograph: Micrograph, true: Float, reach: float) -> float:
    """The best F1 of blobs of one scale above one threshold, both tuned on the labels: an oracle."""
    image = np.asarray(micrograph.pixels, float)
    best = 0.0
    for sigma in (0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 4.0):
        blobs = -ndimage.gaussian_laplace(image, sigma)
        tops = np.argwhere((blobs == ndimage.maximum_filter(blobs, 3)) & (blobs > 0))
        inside = ((tops >= true.min(0)) & (tops <= true.max(0))).all(1)
        tops = tops[inside].astype(float)
        height = blobs[tuple(tops.T.astype(int))]
        for share in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5):
            kept = tops[height >= np.quantile(height, share)]
            hits = len(match_points(kept, true, reach))
            best = max(best, 2.0 * hits / (len(kept) + len(true)))
    return best


@dataclass(frozen=True)
class Localisation(Score):
    """Errors of positions on drawn images, of one dose and one sublattice, rms along either axis in pm.

    `oracle_pm` is that of the same joint fit started from the truth, `bound_pm` the Cramér–Rao bound for counting
    noise if everything is known except the column's own height and place. `stated_pm` is the rms of the
    stated sigma.
    """

    electrons_per_px: float
    sublattice: str
    error_pm: float
    oracle_pm: float
    stated_pm: float
    bound_pm: float
    sublattice_right: float
    columns: int

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "e/px": f"{self.electrons_per_px:g}",
            "sublattice": self.sublattice,
            "error pm": f"{self.error_pm:.2f}",
            "oracle pm": f"{self.oracle_pm:.2f}",
            "stated pm": f"{self.stated_pm:.2f}",
            "bound pm": f"{self.bound_pm:.2f}",
            "sublattice right": f"{self.sublattice_right:.4f}",
            "columns": str(self.columns),
        }


def evaluate_localisation(
    *,
    material: str = "MoS2",
    doses: tuple[float, ...] = (3.0, 10.0, 50.0),
    images: int = 10,
    seed: int = 11,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Localisation]:
    """Find columns in drawn ADF images (60 kV, 30 mrad, 0.02 nm a pixel) with counting noise.

    Parameters
    ----------
    doses
        Mean detected electrons a pixel.
    images
        Of 256×256 px for each dose, each with another orientation.
    """
    crystal = find_crystal(material)
    rows: dict[tuple[float, int], list[Float]] = {(dose, kind): [] for dose in doses for kind in (0, 1)}
    for index in range(images):
        rng = np.random.default_rng([seed, index])
        field = (_SIDE_PX * _PIXEL_NM,) * 2
        sheet = build_sheet(rng, SheetParams(material, field, turn_deg=float(rng.uniform(0.0, 60.0))))
        clean = draw_adf(sheet, ScanParams(pixel_nm=_PIXEL_NM), shape=(_SIDE_PX, _SIDE_PX))
        for place, dose in enumerate(doses):
            mean = np.maximum(clean / clean.mean() * dose, 0.0)
            for kind, values in _localise(
                rng.poisson(mean).astype(np.float32), mean, sheet, material
            ).items():
                rows[dose, kind].append(values)
            if on_progress is not None:
                on_progress(index * len(doses) + place + 1, images * len(doses))
    scores = []
    for (dose, kind), parts in rows.items():
        error, oracle, stated, bound, right = np.vstack(parts).T
        rms = [1e3 * _PIXEL_NM * float(np.sqrt(np.mean(values))) for values in (error, oracle, stated, bound)]
        name = crystal.sublattices[kind]
        scores.append(
            Localisation(dose, name, rms[0], rms[1], rms[2], rms[3], float(right.mean()), len(right))
        )
    return scores


def _localise(image: NDArray[np.float32], mean: Float, sheet: Sheet, material: str) -> dict[int, Float]:
    """Of every column by sublattice: squared errors of an axis (found, oracle, stated, bound; px²), and whether
    its sublattice is right."""
    picture = Micrograph(
        image, full_scale=float(image.max()), calibration=Calibration((_PIXEL_NM,) * 2, "user")
    )
    frame = find_columns(picture, ColumnParams(material)).found
    true = sheet.sites_nm / _PIXEL_NM
    inner = np.all((true > _RIM_PX) & (true < _SIDE_PX - 1 - _RIM_PX), axis=1)
    spacing = find_crystal(material).lattice_nm / np.sqrt(3.0) / _PIXEL_NM
    oracle = fit_columns(np.asarray(image, float), true, spacing)
    found = frame[["row_px", "col_px"]].to_numpy(float)
    names = find_crystal(material).sublattices
    rows: dict[int, list[tuple[float, ...]]] = {0: [], 1: []}
    for i, j in match_points(found, true, 0.5 * spacing):
        if inner[j]:
            kind = int(sheet.sublattice[j])
            rows[kind].append(
                (
                    float(np.mean((found[i] - true[j]) ** 2)),
                    float(np.mean((oracle.positions[j] - true[j]) ** 2)),
                    float(frame["sigma_px"].iloc[i] ** 2),
                    _bound(mean, true[j], oracle.width_px),
                    float(frame["sublattice"].iloc[i] == names[kind]),
                )
            )
    return {kind: np.reshape(values, (-1, 5)) for kind, values in rows.items()}


def _bound(mean: Float, place: Float, width: float) -> float:
    """Cramér–Rao bound of either coordinate, px², from the Fisher information of counting noise about one column."""
    reach = int(np.ceil(3.5 * width))
    row, col = np.rint(place).astype(int)
    rows, cols = np.arange(row - reach, row + reach + 1), np.arange(col - reach, col + reach + 1)
    expected = np.maximum(mean[np.ix_(rows, cols)], 1e-9)
    dy, dx = (rows - place[0])[:, None] / width, (cols - place[1])[None] / width
    shape = np.exp(-0.5 * (dy**2 + dx**2))
    height = float(mean[row, col])
    slopes = np.stack([shape, height * dy / width * shape, height * dx / width * shape]).reshape(3, -1)
    information = (slopes / expected.ravel()) @ slopes.T
    inverse = np.linalg.inv(information)
    return float(0.5 * (inverse[1, 1] + inverse[2, 2]))
