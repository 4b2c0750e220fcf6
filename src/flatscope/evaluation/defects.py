"""Point defects against expert labels, and followed through drawn movies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.electron.defects import DefectParams, find_defects
from flatscope.electron.drawing.hopping import HoppingMovie, HoppingParams, draw_hopping
from flatscope.electron.kinds import SITE_KINDS
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.tracks import TrackParams, link_points, track_defects
from flatscope.evaluation.columns import MATCH_NM, match_points, read_labels
from flatscope.evaluation.metrics import Interval, Score, bootstrap
from flatscope.evaluation.windows import DOPANT, KINDS, MATERIAL, Field, draw_field
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, Movie
from flatscope.units import um_from_nm

Float = NDArray[np.float64]

_TILES = 4  # parts of a labelled field along each side, from which intervals are drawn
_ROUTE_REACH_NM = 0.15  # from a defect to its find: sites of WS2 are 0.18 nm apart
_REACH = 1.5  # times the distance for columns, within which a defect counts as found: little marks where an atom lacks

MOVIE = HoppingParams(frames=40, electrons_per_px=6.0, vacancies=0.04, hop=0.2, birth=0.02, death=0.02)
"""Vacancies too close and too faint for linking what single frames show; the specimen drifts by 1.5 Å a frame."""


@dataclass(frozen=True)
class LabelScore(Score):
    """F1, precision and recall of one kind of defect, intervals by parts of the field."""

    kind: str
    f1: Interval
    precision: Interval
    recall: Interval
    found: int
    labels: int

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "": self.kind,
            "F1": str(self.f1),
            "precision": str(self.precision),
            "recall": str(self.recall),
            "found": str(self.found),
            "labels": str(self.labels),
        }


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
    # A find just outside the labelled rectangle may match a labelled defect; it is never a false alarm.
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
class RouteScore(Score):
    """How well the whole route finds, places and names the defects of drawn fields, at one dose.

    `f1` is of place and kind, `places` of places whatever the kind is called; `worst` is the kind of the lowest
    `worst_f1`.
    """

    electrons_per_px: float
    f1: Interval
    precision: Interval
    recall: Interval
    places: Interval
    worst: str
    worst_f1: float
    defects: int

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "find, place and name": "drawn fields",
            "e/px": f"{self.electrons_per_px:g}",
            "F1 of place and kind": str(self.f1),
            "precision": str(self.precision),
            "recall": str(self.recall),
            "F1 of place": str(self.places),
            "worst kind": self.worst,
            "its F1": f"{self.worst_f1:.3f}",
            "defects": str(self.defects),
        }


def evaluate_route(
    *,
    count: int = 20,
    seed: int = 17,
    doses: tuple[float, ...] = (3.0, 10.0, 30.0),
    weights: str = "defects",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[RouteScore]:
    """Find and name the defects of drawn fields, with no help of the truth except material and dopant.

    Parameters
    ----------
    count
        Fields for each dose, none of which was trained on.
    doses
        Detected electrons a pixel of 0.027 nm, on average.

    Notes
    -----
    Rejected rows do not count, uncertain ones do. A defect counts as found within 0.15 nm, less than the distance of
    two sites. What lies within one lattice constant of the border counts neither way.
    """
    network = Network.load(weights, task="defects")
    scores = []
    for place, dose in enumerate(doses):
        tables = []
        for index in range(count):
            tables.append(_count_route(draw_field(seed, index, electrons_per_px=dose), network))
            if on_progress is not None:
                on_progress(place * count + index + 1, len(doses) * count)
        scores.append(_sum_route(dose, np.array(tables, float)))
    return scores


def _count_route(field: Field, network: Network) -> Float:
    """Right, found and true defects of each kind in a field, and last of places whatever the kind; shape (kinds, 3)."""
    crystal = find_crystal(MATERIAL)
    picture = Micrograph(
        field.image,
        full_scale=float(field.image.max()),
        calibration=Calibration((field.pixel_nm, field.pixel_nm), "user"),
        sha256="-",
    )
    found = find_defects(picture, DefectParams(MATERIAL, dopants=DOPANT), network=network).found
    places, names = found[["row_px", "col_px"]].to_numpy(float), found["kind"].to_numpy(object)
    true = np.isin(field.classes, [SITE_KINDS.index(kind) for kind in KINDS])
    rim = crystal.lattice_nm / field.pixel_nm
    last = np.array(field.image.shape) - 1.0
    inner = np.asarray(((field.places > rim) & (field.places < last - rim)).all(1))
    reach = _ROUTE_REACH_NM / field.pixel_nm
    counts = []
    for kind in (*KINDS, None):
        here = true if kind is None else field.classes == SITE_KINDS.index(kind)
        mine = places if kind is None else places[names == kind.name_in(crystal, DOPANT)]
        inside = np.asarray(((mine > rim) & (mine < last - rim)).all(1))
        pairs = np.reshape(match_points(mine, field.places[here], reach), (-1, 2)).astype(int)
        met = inner[here][pairs[:, 1]]
        # A find beyond the rim may match a defect within it, and the other way round; neither is wrong.
        false = inside.copy()
        false[pairs[:, 0]] = False
        counts.append((met.sum(), met.sum() + false.sum(), inner[here].sum()))
    return np.array(counts, float)


def _sum_route(dose: float, counts: Float) -> RouteScore:
    """The scores of all fields, from counts of shape (fields, kinds and places, 3)."""
    kinds = counts[:, :-1].sum(0)
    f1 = 2.0 * kinds[:, 0] / np.maximum(kinds[:, 1] + kinds[:, 2], 1.0)
    worst = int(f1.argmin())

    named, placed = counts[:, :-1].sum(1), counts[:, -1]

    def both(total: Float) -> float:
        return float(2.0 * total[0] / max(total[1] + total[2], 1.0))

    return RouteScore(
        dose,
        bootstrap(named, both),
        bootstrap(named, lambda total: float(total[0] / max(total[1], 1.0))),
        bootstrap(named, lambda total: float(total[0] / max(total[2], 1.0))),
        bootstrap(placed, both),
        KINDS[worst].name_in(find_crystal(MATERIAL), DOPANT),
        float(f1[worst]),
        int(named[:, 2].sum()),
    )


@dataclass(frozen=True)
class LinkScore(Score):
    """How well a method follows defects: F1 of links between consecutive frames, and of the defects in each frame."""

    method: str
    links: Interval
    detections: Interval

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "method": self.method,
            "F1 of links": str(self.links),
            "F1 of defects in frames": str(self.detections),
        }


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
    """The defects that each frame shows by itself."""
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
    """Count right, found and true links, then right, found and true defects, without those that the border cuts.

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
