"""Point defects against expert labels, in drawn windows of six kinds, and followed through drawn movies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from flatscope.electron.crystals import SheetParams, build_sheet, find_crystal
from flatscope.electron.defects import (
    CLASSES,
    GROUPS,
    DefectParams,
    classify_sites,
    find_defects,
    name_class,
)
from flatscope.electron.hopping import HoppingMovie, HoppingParams, draw_hopping
from flatscope.electron.imaging import ScanParams, draw_adf
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.noise import SPOILS, NoiseParams, scan, spoil
from flatscope.electron.sites import cut_crops, find_sites, level
from flatscope.electron.tracks import TrackParams, link_points, track_defects
from flatscope.evaluation.columns import MATCH_NM, match_points, read_labels
from flatscope.evaluation.metrics import Interval, binomial_interval, bootstrap
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, Movie
from flatscope.units import um_from_nm

Float = NDArray[np.float64]

_TILES = 4
_REACH = 1.5
"""A defect counts as found within this many times the distance for columns: labels sit on what little is left of an
atom."""

WINDOW_PX, WINDOW_NM, MATERIAL = 64, 1.7, "WS2"
KINDS = ("V_M", "V_X", "V_X2", "M_X2", "X_M", "D_M")
"""Six kinds of window: vacancies of W, of S and of both S, W on both S, S on W, and a dopant (Mo) on W."""
_FIELD_PX = 256
MOVIE = HoppingParams(frames=40, electrons_per_px=6.0, vacancies=0.04, hop=0.2, birth=0.02, death=0.02)
"""Hopping vacancies so close and so faint that linking what single frames show goes wrong; drift of 1.5 Å a frame."""


@dataclass(frozen=True)
class LabelScore:
    """F1, precision and recall of one kind of defect, intervals by parts of the field."""

    kind: str
    f1: Interval
    precision: Interval
    recall: Interval
    found: int
    labels: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def evaluate_labels(
    image: Path, labels: Path, params: DefectParams, *, nm_per_px: float | None = None
) -> list[LabelScore]:
    """Score `find_defects` on an image with marked columns.

    Parameters
    ----------
    image, labels, nm_per_px
        See `flatscope.evaluation.columns.evaluate_labels`.
    params
        The material and its dopants.

    Returns
    -------
    Scores of all defects whatever their kind, then of each labelled kind; rejected rows do not count. Last
    that of the published Fourier map (DefectFinder), its thresholds chosen on these very labels.
    """
    true, names = read_labels(labels)
    micrograph = read(
        image, um_per_px=None if nm_per_px is None else um_from_nm(nm_per_px), modality="electron"
    )
    table = find_defects(micrograph, params)
    reach = _REACH * MATCH_NM / table.calibration.pixel_size_nm[0]
    low, high = true.min(0), true.max(0)
    frame = table.found
    frame = frame[
        frame["row_px"].between(low[0] - reach, high[0] + reach)
        & frame["col_px"].between(low[1] - reach, high[1] + reach)
    ]
    perfect = set(find_crystal(params.material).species)
    label = np.array(names)
    defect = ~np.isin(label, list(perfect))
    places, kinds = frame[["row_px", "col_px"]].to_numpy(float), frame["kind"].to_numpy()
    scores = [_score("all defects", places, true[defect], reach, (low, high))]
    for kind in sorted(set(label[defect])):
        scores.append(_score(kind, places[kinds == kind], true[label == kind], reach, (low, high)))
    scores.append(_best_fourier(np.asarray(micrograph.pixels, float), true[defect], reach, (low, high)))
    return scores


def _score(kind: str, found: Float, true: Float, reach: float, box: tuple[Float, Float]) -> LabelScore:
    hit, met = np.zeros(len(found)), np.zeros(len(true))
    for i, j in match_points(found, true, reach):
        hit[i], met[j] = 1.0, 1.0
    low, high = box
    # What lies just outside the labelled rectangle may be a labelled defect, but is nothing that was missed.
    kept = (hit > 0.0) | ((found >= low) & (found <= high)).all(1)
    found, hit = found[kept], hit[kept]
    tiles = [
        (np.clip((points - low) / (high - low + 1e-9), 0.0, 0.999) * _TILES).astype(int) @ [_TILES, 1]
        for points in (found.reshape(-1, 2), true.reshape(-1, 2))
    ]
    sums = np.array(
        [
            (
                hit[tiles[0] == tile].sum(),
                (tiles[0] == tile).sum(),
                met[tiles[1] == tile].sum(),
                (tiles[1] == tile).sum(),
            )
            for tile in range(_TILES**2)
        ],
        float,
    )
    return LabelScore(
        kind,
        bootstrap(sums, lambda total: 2.0 * total[0] / max(total[1] + total[3], 1.0)),
        bootstrap(sums, lambda total: total[0] / max(total[1], 1.0)),
        bootstrap(sums, lambda total: total[2] / max(total[3], 1.0)),
        len(found),
        len(true),
    )


def find_by_fourier(
    image: Float, *, low: float = 0.25, high: float = 0.75, radius: float = 0.1
) -> tuple[Float, NDArray[np.bool_]]:
    """The published localisation: what is left when all of the spectrum outside a central disk is removed.

    Parameters
    ----------
    image
        Shape (rows, cols).
    low, high
        Thresholds on the map, scaled from 0 to 1: darker and brighter places are defects.
    radius
        Of the disk, in parts of the image's side.

    Returns
    -------
    Centres (n, 2) of blobs of 5 to 700 px, and where they are.
    """
    spectrum = np.fft.fftshift(np.fft.fft2(image))
    rows, cols = image.shape
    down, across = np.ogrid[:rows, :cols]
    disk = np.hypot(down - rows // 2, across - cols // 2) <= radius * min(rows, cols)
    smooth = np.fft.ifft2(np.fft.ifftshift(np.where(disk, spectrum, 0.0))).real
    scaled = (smooth - smooth.min()) / max(float(np.ptp(smooth)), 1e-12)
    centres: list[tuple[float, float]] = []
    kept = np.zeros(image.shape, bool)
    for mask in (scaled < low, scaled > high):
        blobs, count = ndimage.label(mask)
        sizes = ndimage.sum_labels(mask, blobs, np.arange(1, count + 1)) if count else np.zeros(0)
        good = np.flatnonzero((sizes >= 5) & (sizes <= 700)) + 1
        kept |= np.isin(blobs, good)
        if len(good):
            centres += list(ndimage.center_of_mass(mask, blobs, good))
    return np.reshape(centres, (-1, 2)).astype(float), kept


def _best_fourier(image: Float, true: Float, reach: float, box: tuple[Float, Float]) -> LabelScore:
    """The published map at the thresholds that suit the labels best."""
    best = None
    for low in np.linspace(0.1, 0.5, 17):
        for radius in (0.05, 0.075, 0.1, 0.15):
            found, _ = find_by_fourier(image, low=float(low), high=1.1, radius=radius)
            found = found[((found >= box[0] - reach) & (found <= box[1] + reach)).all(1)]
            score = _score("Fourier map, thresholds chosen on the labels", found, true, 2.0 * reach, box)
            if best is None or score.f1.value > best.f1.value:
                best = score
    assert best is not None
    return best


@dataclass(frozen=True)
class Windows:
    """Windows around defects.

    Parameters
    ----------
    images
        Shape (n, 64, 64).
    crops
        Shape (n, 2, 24, 24): the same defects as flatscope sees them.
    kinds
        Shape (n,): places in `KINDS`.
    sheets
        Shape (n,): the configuration each was cut from.
    """

    images: NDArray[np.float32]
    crops: NDArray[np.float32]
    kinds: NDArray[np.int64]
    sheets: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Windows:
        """Some of them."""
        return Windows(self.images[rows], self.crops[rows], self.kinds[rows], self.sheets[rows])


def draw_windows(
    count: int, *, seed: int, electrons_per_px: float | None = None, noise: str = "none"
) -> Windows:
    """Windows of WS2 around defects of six kinds, from so many sheets, each with its own microscope and orientation.

    Parameters
    ----------
    count
        Sheets; each gives some fifteen windows.
    seed
        Sheet i has the random stream (seed, i).
    electrons_per_px
        Of a scan with lag and jitter; None for an image without counting noise.
    noise
        "none", or one of `flatscope.electron.noise.SPOILS`, on top.
    """
    parts = [_draw_windows(seed, index, electrons_per_px, noise) for index in range(count)]
    sheets = np.repeat(np.arange(count), [len(part[2]) for part in parts])
    images, crops, kinds = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Windows(images, crops, kinds, sheets)


def _draw_windows(
    seed: int, index: int, electrons: float | None, noise: str
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng([seed, index])
    crystal = find_crystal(MATERIAL)
    pixel_nm = WINDOW_NM / WINDOW_PX
    side = (_FIELD_PX * pixel_nm,) * 2
    sheet = build_sheet(
        rng,
        SheetParams(
            MATERIAL,
            side,
            turn_deg=float(rng.uniform(0.0, 360.0)),
            shift_nm=(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
            vacancies={"first": 0.012, "one": 0.012, "both": 0.012},
            dopant="Mo",
            dopant_share=0.012,
            antisites=0.012,
        ),
    )
    optics = ScanParams(
        pixel_nm=pixel_nm,
        convergence_mrad=float(rng.uniform(28.0, 32.0)),
        defocus_nm=float(rng.normal(0.0, 1.0)),
        source_nm=float(rng.uniform(0.03, 0.045)),
    )
    image = draw_adf(sheet, optics, shape=(_FIELD_PX, _FIELD_PX))
    places = sheet.sites_nm / pixel_nm
    if electrons is not None:
        mean = image / float(image.mean()) * electrons
        params = NoiseParams(
            gain=1.0, lag=float(rng.uniform(0.0, 0.2)), jitter_px=float(rng.uniform(0.0, 0.3))
        )
        scanned, places = scan(rng, mean, params, sites_px=places)
        image = np.asarray(scanned, float)
    if noise != "none":
        image = spoil(rng, image, noise)
    classes = classify_sites(sheet, crystal)
    wanted = [CLASSES.index(kind) for kind in KINDS]
    half = WINDOW_PX // 2
    inner = ((places > half) & (places < _FIELD_PX - half)).all(1)
    mine = np.flatnonzero(inner & np.isin(classes, wanted))
    nothing = (
        np.zeros((0, WINDOW_PX, WINDOW_PX), np.float32),
        np.zeros((0, 2, 24, 24), np.float32),
        np.zeros(0, int),
    )
    try:
        sites = find_sites(image, first=0, expected_px=crystal.lattice_nm / pixel_nm)
    except NoLatticeError:
        return nothing
    gap, at = cKDTree(sites.positions).query(places[mine])
    mine, at = (
        mine[gap < 0.3 * sites.phases.lattice.constant_px],
        at[gap < 0.3 * sites.phases.lattice.constant_px],
    )
    if not len(mine):
        return nothing
    crops = cut_crops(level(image, sites.phases.lattice.constant_px), sites, some=at)
    corners = np.rint(places[mine]).astype(int) - half
    images = np.stack([image[r : r + WINDOW_PX, c : c + WINDOW_PX] for r, c in corners])
    return images.astype(np.float32), crops, np.array([wanted.index(one) for one in classes[mine]])


def classify_windows(windows: Windows, network: Network) -> NDArray[np.int64]:
    """Places in `KINDS` by flatscope's network; which sublattice a defect is on, the lattice knows."""
    wanted = np.array([CLASSES.index(kind) for kind in KINDS])
    group = np.array([next(place for place, (a, b) in enumerate(GROUPS) if a <= one < b) for one in wanted])
    logits = network.run(windows.crops).mean((2, 3))[:, wanted]
    logits = np.where(group[None] == group[windows.kinds][:, None], logits, -np.inf)
    return np.asarray(logits.argmax(1))


@dataclass(frozen=True)
class DoseScore:
    """Accuracy over the six kinds of window under one noise; `electrons_per_px` is None without counting noise."""

    noise: str
    electrons_per_px: float | None
    accuracy: Interval
    worst: str
    worst_recall: float
    windows: int

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def evaluate_windows(
    *,
    count: int = 40,
    seed: int = 17,
    doses: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0),
    weights: str = "defects",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[DoseScore]:
    """Name windows of six kinds at the published noise, then against dose.

    Parameters
    ----------
    count
        Sheets for each line; all are other ones than those of the training.
    doses
        Detected electrons a pixel of 0.027 nm, on average.
    """
    network = Network.load(weights, task="defects")
    runs: list[tuple[str, float | None]] = [(noise, None) for noise in ("none", *SPOILS)]
    runs += [("scan", dose) for dose in doses]
    crystal = find_crystal(MATERIAL)
    scores = []
    for place, (noise, dose) in enumerate(runs):
        windows = draw_windows(
            count, seed=seed, electrons_per_px=dose, noise="none" if noise == "scan" else noise
        )
        right = classify_windows(windows, network) == windows.kinds
        recall = [float(right[windows.kinds == kind].mean()) for kind in range(len(KINDS))]
        worst = int(np.argmin(recall))
        scores.append(
            DoseScore(
                noise,
                dose,
                binomial_interval(int(right.sum()), len(right)),
                name_class(CLASSES.index(KINDS[worst]), crystal, "Mo"),
                recall[worst],
                len(right),
            )
        )
        if on_progress is not None:
            on_progress(place + 1, len(runs))
    return scores


@dataclass(frozen=True)
class LinkScore:
    """How well a method follows defects: F1 of links between consecutive frames, and of the defects in each frame."""

    method: str
    links: Interval
    detections: Interval

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def evaluate_tracks(
    *,
    movies: int = 4,
    seed: int = 23,
    params: HoppingParams | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[LinkScore]:
    """Follow hopping vacancies through drawn movies, beside other ways to link what is found frame by frame.

    Parameters
    ----------
    movies
        Number of movies, each with other vacancies and another orientation.
    params
        The movies; None for `MOVIE`.

    Returns
    -------
    flatscope; then the defects that `find_defects` sees in single frames, linked to the nearest one, by trackpy, and by
    trackpy when the true drift is taken out.
    """
    params = params or MOVIE
    network = Network.load("defects", task="defects")
    crystal = find_crystal(params.material)
    reach = 1.3 * crystal.lattice_nm / params.optics.pixel_nm
    sums: dict[str, list[tuple[float, ...]]] = {}
    for index in range(movies):
        made = draw_hopping(np.random.default_rng([seed, index]), params)
        movie = as_movie(made, params)
        ours = track_defects(movie, TrackParams(params.material), network=network).frame
        single = _find_in_frames(made, params, network)
        drift = made.drift_px[single["frame"].to_numpy(int)]
        still = single.assign(row_px=single["row_px"] - drift[:, 0], col_px=single["col_px"] - drift[:, 1])
        for name, found in (
            ("flatscope", ours),
            ("single frames, nearest", single.assign(track_id=link_nearest(single, reach))),
            ("single frames, trackpy", single.assign(track_id=_link_trackpy(single, reach))),
            (
                "single frames, true drift removed, trackpy",
                single.assign(track_id=_link_trackpy(still, reach)),
            ),
        ):
            sums.setdefault(name, []).append(count_links(found, made.truth, params))
        if on_progress is not None:
            on_progress(index + 1, movies)

    def f1(total: Float, place: int) -> float:
        return float(2.0 * total[place] / max(total[place + 1] + total[place + 2], 1.0))

    return [
        LinkScore(
            name,
            bootstrap(np.array(rows), lambda total: f1(total, 0)),
            bootstrap(np.array(rows), lambda total: f1(total, 3)),
        )
        for name, rows in sums.items()
    ]


def as_movie(made: HoppingMovie, params: HoppingParams) -> Movie:
    """A drawn movie as `track_defects` takes it."""
    pixel = params.optics.pixel_nm
    return Movie(
        lambda: iter(made.frames), len(made.frames), Calibration((pixel, pixel), "user"), 1.0, "drawn movie"
    )


def _find_in_frames(made: HoppingMovie, params: HoppingParams, network: Network) -> pd.DataFrame:
    """What is found in each frame by itself."""
    pixel = params.optics.pixel_nm
    parts = []
    for number, frame in enumerate(made.frames):
        picture = Micrograph(
            frame, full_scale=float(frame.max()), calibration=Calibration((pixel, pixel), "user"), sha256="-"
        )
        table = find_defects(picture, DefectParams(params.material), network=network)
        parts.append(table.found[["row_px", "col_px", "kind"]].assign(frame=number))
    return pd.concat(parts, ignore_index=True)


def link_nearest(table: pd.DataFrame, reach: float) -> NDArray[np.int64]:
    """Each defect takes the track of the nearest one in the frame before."""
    tracks = np.zeros(len(table), np.int64)
    count = 0
    before: tuple[Float, NDArray[np.int64]] = (np.zeros((0, 2)), np.zeros(0, np.int64))
    for _, rows in table.groupby("frame"):
        places = rows[["row_px", "col_px"]].to_numpy(float)
        mine = np.zeros(len(rows), np.int64)
        pairs = match_points(places, before[0], reach)
        for i, j in pairs:
            mine[i] = before[1][j]
        new = mine == 0
        mine[new] = count + 1 + np.arange(int(new.sum()))
        count += int(new.sum())
        tracks[table.index.get_indexer(rows.index)] = mine
        before = (places, mine)
    return tracks


def _link_trackpy(table: pd.DataFrame, reach: float) -> NDArray[np.int64]:
    linked = link_points(table, reach, columns=("row_px", "col_px"), memory=2)
    return np.asarray(linked["particle"].reindex(table.index), np.int64)


def count_links(found: pd.DataFrame, truth: pd.DataFrame, params: HoppingParams) -> tuple[float, ...]:
    """Right, found and true links, then right, found and true defects; what is cut by the border is left out.

    Parameters
    ----------
    found, truth
        Columns `frame`, `track_id`, `row_px`, `col_px`.
    params
        The movie.
    """
    reach = 0.5 * find_crystal(params.material).lattice_nm / params.optics.pixel_nm
    rim = find_crystal(params.material).lattice_nm / params.optics.pixel_nm
    low, high = rim, np.array(params.shape) - 1.0 - rim

    def inside(table: pd.DataFrame) -> pd.DataFrame:
        places = table[["row_px", "col_px"]].to_numpy(float)
        return table[((places > low) & (places < high)).all(1)].reset_index(drop=True)

    found, truth = inside(found), inside(truth)
    identity = np.full(len(found), -1)
    right = 0
    for frame, rows in found.groupby("frame"):
        known = truth[truth["frame"] == frame]
        pairs = match_points(
            rows[["row_px", "col_px"]].to_numpy(float), known[["row_px", "col_px"]].to_numpy(float), reach
        )
        right += len(pairs)
        for i, j in pairs:
            identity[rows.index[i]] = known["track_id"].iloc[j]
    found = found.assign(identity=identity)
    counts = [_links(found, "track_id"), _links(truth.assign(identity=truth["track_id"]), "track_id")]
    good = sum(1 for one, two in counts[0] if one >= 0 and one == two)
    return (
        float(good),
        float(len(counts[0])),
        float(len(counts[1])),
        float(right),
        float(len(found)),
        float(len(truth)),
    )


def _links(table: pd.DataFrame, by: str) -> list[tuple[int, int]]:
    """True identities at both ends of each link between consecutive frames."""
    links = []
    for _, track in table.sort_values("frame").groupby(by):
        frames, identity = track["frame"].to_numpy(), track["identity"].to_numpy()
        links += [
            (int(one), int(two))
            for one, two, step in zip(identity[:-1], identity[1:], np.diff(frames), strict=True)
            if step == 1
        ]
    return links
