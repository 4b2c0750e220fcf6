"""Point defects through a movie: drift removed, sites followed, and what happened to them.

Every frame's lattice numbers its sites; the drift from one frame to the next is known to a fraction of a pixel but for
whole lattice vectors, and these follow from what does not repeat. A site then keeps its number through the movie, and
what stands on it is told from all frames together: a defect that comes and goes within a frame is noise.

References
----------
Maksov et al. 2019, doi:10.1038/s41524-019-0152-9 (defects through movies); Rabiner 1989, doi:10.1109/5.18626 (hidden
Markov models); Michalet 2010, doi:10.1103/PhysRevE.82.041914 (diffusion with localisation error).
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage, special
from scipy.spatial import cKDTree

import flatscope
from flatscope.electron.defects import (
    DefectParams,
    Mixture,
    fit_mixture,
    forbid,
    steady,
)
from flatscope.electron.kinds import GROUPS, list_kinds
from flatscope.electron.lattice import (
    Lattice,
    NoLatticeError,
    Phases,
    find_honeycomb,
    find_lattice,
    fold_cell,
    map_phases,
)
from flatscope.electron.physics.crystals import Crystal, find_crystal
from flatscope.electron.rates import find_events
from flatscope.electron.scans import calibrate, order_sublattices
from flatscope.electron.sites import Sites, cut_crops, level, list_sites, measure_sites
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, MicrographError, Movie, Stack
from flatscope.parallel import stream
from flatscope.results import TRACK_COLUMNS, Provenance, TrackTable

Float = NDArray[np.float64]
Whole = NDArray[np.int64]

_FIRST_FRAMES = 30
"""So many frames tell the lattice, the mean cell and how bright defects are."""
_LOCAL_POWER = 25.0
"""Where a frame's own Bragg peaks rise so far from the noise its distortions are followed, else it is rigid."""
_REACH_CELLS, _STEADY_CELLS = 6, 1.0
"""Drift between frames is looked for within so many lattice vectors, and changes about this much (1 sigma)."""
_NOISE_Z, _MOST_Z = 2.5, 8.0
"""Residuals below the first are taken for noise when frames are compared, above the second for no more than it."""
_RESIDUAL_CELLS, _WIDE_CELLS = 0.25, 0.7
"""Residuals are blurred by a Gaussian of the first (lattice constants) before they are compared, less one of the
second."""
_DEATH, _CHANGE, _SHARES = 0.15, 0.02, (5e-4, 0.2)
"""Chances a frame that a defect leaves its site, and that it changes its kind; and the share of sites that are defects,
at least and at most."""
_LEAST_P, _LEAST_TRACK_P = 0.5, 0.7
"""A site holds a defect above the first; a track is one if its frames are on average surer than the second."""
_CLEAR_SHARE = 0.2
"""A site is followed if one frame shows more than all frames do by chance; or if this share of its frames, and two at
least, show more than one does."""
_BESIDE, _BRIGHT = 0.7, 1.3
"""An atom between sites, so near in lattice constants, is on the one where it is brighter; sites whose ratio never
exceeds the second hold no such atom."""
_WORTH = 3.0
"""Sites whose best frame speaks for a defect by less than this are not followed."""
_NAMED = 1.0
"""Frames in which a site's brightness speaks for a defect by more than this are shown to the network."""
_HOP_CELLS, _MEMORY = 1.3, 2
"""A defect moves at most so many lattice constants a frame, and may be missed for so many frames."""
_CROWDED = 0.2
"""In crowds the reach shrinks down to this part of it."""
_BORDER, _EDGE_CELLS = 0.5, 1.5
"""Sites nearer to the border than the first (lattice constants) are not judged; what begins or ends a track within the
second has come in or gone out of the field."""
_GRID_PX = 16
"""Lattice coordinates are kept on every so many pixels."""
_MOST_NOTES = 5


@dataclass(frozen=True)
class TrackParams(DefectParams):
    """Settings of `track_defects`, those of `find_defects` included.

    Parameters
    ----------
    hop_cells
        Farthest move from one frame to the next, in lattice constants.
    memory
        A defect may be missed for so many frames.
    least_frames
        Shorter tracks are left out.
    """

    hop_cells: float = _HOP_CELLS
    memory: int = _MEMORY
    least_frames: int = 2

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        super().__post_init__()
        if not self.hop_cells > 0.0:
            raise ValueError(f"hop_cells = {self.hop_cells} is not positive")
        if self.memory < 0 or self.least_frames < 1:
            raise ValueError("memory must not be negative, and a track has at least one frame")


@dataclass(frozen=True)
class _Seen:
    """What is kept of a frame."""

    positions: Float
    cells: Whole
    sublattice: Whole
    ratio: Float
    sigma: Float
    quiet: tuple[float, float]
    over: Float
    """What is seen on each site over what an image without order shows by chance."""
    logits: dict[int, NDArray[np.float32]]
    """What the network says of the sites that look unusual."""
    residual: NDArray[np.float32]
    cell: NDArray[np.float32]
    """Lattice coordinates on a coarse grid, shape (2, n, m), see `_GRID_PX`."""
    inner: NDArray[np.bool_]


@dataclass(frozen=True)
class _Known:
    """What the first frames tell: the lattice, its sites in a cell, what defects look like."""

    crystal: Crystal
    lattice: Lattice
    places: Float
    first: int
    sure: bool
    mixtures: tuple[Mixture, Mixture] | None
    network: Network | None


def track_defects(
    movie: Movie,
    params: TrackParams = TrackParams(),
    *,
    network: Network | None = None,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> TrackTable:
    """Find, name and follow the point defects of a monolayer through a movie of ADF-STEM images.

    Parameters
    ----------
    movie
        See `flatscope.files.movie.read_movie`.
    params
        The material, and how far a defect moves.
    network
        Loaded already; None loads `DefectParams.weights`.
    workers
        Frames that are read at the same time, in threads. The result does not depend on it.
    on_progress
        Called with (frames done, frames in all); the latter is 0 where nobody knows.

    Returns
    -------
    Tracks, events and drift; `flatscope.electron.rates` says what they mean.

    Raises
    ------
    MicrographError
        If no two frames can be read, the frames are not periodic, or their lattice is not this material's.

    Notes
    -----
    Frames that cannot be read, or whose size is not the first one's, are left out with a note. Drift of more than half
    a lattice constant a frame is told by what does not repeat: a perfect field that drifts so fast slips by whole
    lattice vectors, which changes no track but the numbers of its sites. Of a frame only the brightness of its sites is
    kept.
    """
    crystal = find_crystal(params.material)
    notes = list(movie.notes)
    first = _take_first(movie)
    known, calibration = _learn(first, movie, params, notes, network)
    frames: list[_Seen] = []
    numbers, shift = [], np.zeros(2)
    offsets = [np.zeros(2, np.int64)]
    drift = [np.zeros(2)]
    shape = first[0].shape
    bad: list[tuple[int, str]] = []
    taken: list[int] = []

    def readable() -> Any:
        for number, frame in enumerate(movie):
            if isinstance(frame, MicrographError):
                bad.append((number, str(frame)))
            elif frame.shape != shape:
                bad.append(
                    (number, f"is {frame.shape[1]}x{frame.shape[0]} px, the first one {shape[1]}x{shape[0]}")
                )
            else:
                taken.append(number)
                yield frame

    for index, seen in enumerate(stream(partial(_see, known=known), readable(), workers=workers)):
        numbers.append(taken[index])
        if frames:
            before = frames[-1]
            shift = _find_shift(before, seen, known.lattice, expected=shift)
            offsets.append(offsets[-1] + _find_slip(before, seen, shift))
            drift.append(drift[-1] + shift)
            # Only the last residual is needed.
            frames[-1] = _forget(before)
        frames.append(seen)
        if on_progress is not None:
            on_progress(index + 1, movie.count or 0)
    for number, reason in bad[:_MOST_NOTES]:
        notes.append(f"frame {number} {reason}: left out")
    if len(bad) > _MOST_NOTES:
        notes.append(f"and {len(bad) - _MOST_NOTES} more frames")
    if len(frames) < 2:
        raise MicrographError(
            f"{movie.source}: {len(frames)} of its frames can be read, a movie has two: see flatscope.find_defects for "
            "a single image"
        )
    pixel_nm = calibration.pixel_size_nm[0]
    table = _follow(frames, np.array(offsets), known, params, pixel_nm=pixel_nm)
    tracks = _link(table, params, reach_nm=params.hop_cells * crystal.lattice_nm)
    tracks["frame"] = np.array(numbers)[tracks["frame"].to_numpy(int)]
    tracks["time_s"] = tracks["frame"] * movie.frame_s if movie.frame_s else np.nan
    tracks["image"] = movie.name
    provenance = Provenance(
        flatscope.__version__,
        movie.name,
        movie.sha256,
        known.network.card.name if known.network else "",
        known.network.sha256 if known.network else "",
        {"tracks": asdict(params)},
        notes=tuple(notes),
    )
    cell_nm2 = float(abs(np.linalg.det(known.lattice.vectors))) * pixel_nm**2
    sites = float(np.median([one.inner.sum() for one in frames]))
    tracks = tracks.sort_values(["track_id", "frame"], ignore_index=True)
    return TrackTable(
        tracks[list(TRACK_COLUMNS)],
        find_events(
            tracks, np.array(numbers), shape=shape, margin_px=_EDGE_CELLS * known.lattice.constant_px
        ),
        pd.DataFrame(
            {
                "frame": numbers,
                "row_nm": np.array(drift)[:, 0] * pixel_nm,
                "col_nm": np.array(drift)[:, 1] * pixel_nm,
            }
        ),
        0.5 * sites * cell_nm2,
        cell_nm2,
        known.sure,
        movie.frame_s,
        calibration,
        provenance,
    )


def _take_first(movie: Movie) -> list[NDArray[Any]]:
    """The first frames that can be read, all of one size."""
    first: list[NDArray[Any]] = []
    reasons: list[str] = []
    for frame in movie:
        if isinstance(frame, MicrographError):
            reasons.append(str(frame))
        elif not first or frame.shape == first[0].shape:
            first.append(frame)
        if len(first) == _FIRST_FRAMES:
            break
    if not first:
        why = f": the first one {reasons[0]}" if reasons else ""
        raise MicrographError(f"{movie.source}: none of its frames can be read{why}")
    return first


def _learn(
    first: list[NDArray[Any]], movie: Movie, params: TrackParams, notes: list[str], network: Network | None
) -> tuple[_Known, Calibration]:
    """The lattice of all first frames together, and what sites look like in them."""
    crystal = find_crystal(params.material)
    stated = None if movie.calibration is None else float(np.mean(movie.calibration.pixel_size_nm))
    images = np.stack(first).astype(float)
    try:
        lattice = find_lattice(images, expected_px=None if stated is None else crystal.lattice_nm / stated)
    except NoLatticeError as error:
        raise MicrographError(f"{movie.source}: not periodic: {error}") from None
    calibration = calibrate(Stack(images[:1], movie.calibration, movie.source, "-"), lattice, crystal, notes)
    phases = [_find_phases(image, lattice) for image in images]
    cell = np.mean(
        [
            fold_cell(level(image, lattice.constant_px), one)
            for image, one in zip(images, phases, strict=True)
        ],
        axis=0,
    )
    places, bright = find_honeycomb(cell)
    first_one, sure = order_sublattices(bright, crystal, notes, brighter=params.brighter)
    if crystal.is_dichalcogenide and network is None:
        network = Network.load(params.weights, task="defects")
    known = _Known(crystal, lattice, places, first_one, sure, None, network)
    parts = [_see(image, known=known) for image in images[:: max(len(images) // 6, 1)]]
    mixtures = []
    for kind in (0, 1):
        mine = [one.inner & (one.sublattice == kind) for one in parts]
        ratio = np.concatenate([one.ratio[rows] for one, rows in zip(parts, mine, strict=True)])
        sigma = np.concatenate([steady(one.sigma)[rows] for one, rows in zip(parts, mine, strict=True)])
        quiet = float(np.median([one.quiet[kind] for one in parts]))
        mixtures.append(fit_mixture(ratio, sigma, crystal, kind, quiet=quiet))
    return replace(known, mixtures=(mixtures[0], mixtures[1])), calibration


def _find_phases(image: Float, lattice: Lattice) -> Phases:
    """Where in its cell each pixel lies: followed through the image where it is clear, else of a rigid lattice."""
    flat = image - image.mean()
    window = np.outer(*(np.hanning(side) for side in image.shape))
    noise = float(np.median(np.abs(fft.rfft2(flat * window)) ** 2))
    rows, cols = (np.arange(side) for side in image.shape)
    angles, powers = [], []
    for down, across in (*lattice.reciprocal, lattice.reciprocal[1] - lattice.reciprocal[0]):
        turn = np.exp(-2j * np.pi * down * rows)[:, None] * np.exp(-2j * np.pi * across * cols)[None]
        wave = (flat * window * turn).sum()
        angles.append(float(np.angle(wave)))
        powers.append(abs(wave) ** 2 / max(noise, 1e-300))
    if min(powers) > _LOCAL_POWER:
        return map_phases(image, lattice)
    grid = np.stack(np.broadcast_arrays(rows[:, None], cols[None])).astype(float)
    cell = np.tensordot(lattice.reciprocal, grid, 1) + np.array(angles[:2])[:, None, None] / (2.0 * np.pi)
    return Phases(cell, np.ones(image.shape, bool), lattice)


def _see(frame: NDArray[Any], *, known: _Known) -> _Seen:
    """Read the sites of a frame."""
    image = np.asarray(frame, float)
    phases = _find_phases(image, known.lattice)
    sites = list_sites(phases, known.places, first=known.first)
    levelled = level(image, known.lattice.constant_px)
    readings = measure_sites(levelled, sites)
    rim = _BORDER * known.lattice.constant_px
    inner: NDArray[np.bool_] = np.asarray(
        ((sites.positions > rim) & (sites.positions < np.array(image.shape) - 1.0 - rim)).all(1)
    )
    logits: dict[int, NDArray[np.float32]] = {}
    if known.network is not None and known.mixtures is not None:
        logits = _ask(levelled, sites, readings.ratio, readings.sigma, known=known)
    return _Seen(
        sites.positions,
        sites.cells,
        sites.sublattice,
        readings.ratio,
        readings.sigma,
        readings.quiet,
        readings.over_chance(sites),
        logits,
        _keep_points(readings.residual, known.lattice.constant_px).astype(np.float32),
        phases.cell[:, ::_GRID_PX, ::_GRID_PX].astype(np.float32),
        inner,
    )


def _keep_points(residual: Float, constant_px: float) -> Float:
    """A residual without its noise, without what is larger than a point, and with nothing that outweighs all else."""
    kept = np.where(np.abs(residual) > _NOISE_Z, np.clip(residual, -_MOST_Z, _MOST_Z), 0.0)
    points, wide = (
        ndimage.gaussian_filter(kept, cells * constant_px) for cells in (_RESIDUAL_CELLS, _WIDE_CELLS)
    )
    return np.asarray(points - wide)


def _speak(ratio: Float, sigma: Float, sublattice: Whole, mixtures: tuple[Mixture, Mixture]) -> Float:
    """How much likelier each site's brightness is for a defect than for a usual site."""
    factor = np.ones(len(ratio))
    sigma = steady(sigma)
    for kind in (0, 1):
        mine = sublattice == kind
        density = mixtures[kind].densities(ratio[mine], sigma[mine])
        shares = mixtures[kind].shares[1:]
        factor[mine] = (shares @ density[1:]) / shares.sum() / np.maximum(density[0], 1e-300)
    return factor


def _ask(
    levelled: Float, sites: Sites, ratio: Float, sigma: Float, *, known: _Known
) -> dict[int, NDArray[np.float32]]:
    """The network's logits of the sites that look unusual, each of shape (classes,)."""
    assert known.network is not None and known.mixtures is not None
    some = np.flatnonzero(_speak(ratio, sigma, sites.sublattice, known.mixtures) > _NAMED)
    if not len(some):
        return {}
    said = known.network.run(cut_crops(levelled, sites, some=some)).mean((2, 3))
    return dict(zip(some.tolist(), said, strict=True))


def _forget(seen: _Seen) -> _Seen:
    """A frame without what only the next one needed."""
    small = {one.name: getattr(seen, one.name) for one in fields(seen)}
    for name in ("positions", "ratio", "sigma", "over"):
        small[name] = small[name].astype(np.float32)
    small["cells"], small["sublattice"] = seen.cells.astype(np.int32), seen.sublattice.astype(np.int8)
    small["residual"], small["cell"] = np.zeros((0, 0), np.float32), np.zeros((2, 0, 0), np.float32)
    return _Seen(**small)


def _find_shift(before: _Seen, after: _Seen, lattice: Lattice, *, expected: Float) -> Float:
    """By how much the specimen has moved in the image (rows, cols), pixels.

    The lattice says it but for whole lattice vectors. Of these, the one is taken that brings the residuals onto each
    other best and is not far from the last shift.
    """
    apart = (after.cell - before.cell).reshape(2, -1)
    turn = np.exp(2j * np.pi * apart)
    # A crystal point keeps its lattice coordinate: where it was `apart` less, it has moved by as much back.
    part = -np.angle(turn.mean(1)) / (2.0 * np.pi)
    spectrum = fft.rfft2(after.residual) * np.conj(fft.rfft2(before.residual))
    match = fft.irfft2(spectrum, after.residual.shape)
    match = (match - match.mean()) / max(float(match.std()), 1e-12)
    steps = np.arange(-_REACH_CELLS, _REACH_CELLS + 1)
    cells = np.array(list(itertools.product(steps, steps)), float) + part
    shifts = cells @ lattice.vectors
    shape = np.array(match.shape)
    places = (shifts % shape).T
    score = ndimage.map_coordinates(match, places, order=1, mode="grid-wrap")
    away = np.hypot(*(shifts - expected).T) / (_STEADY_CELLS * lattice.constant_px)
    return np.asarray(shifts[int((score - 0.5 * away**2).argmax())])


def _find_slip(before: _Seen, after: _Seen, shift: Float) -> Whole:
    """What is to be added to a frame's cell numbers so that they are those of the frame before."""
    _, rows, cols = before.cell.shape
    grid = np.stack(np.meshgrid(np.arange(rows), np.arange(cols), indexing="ij")).astype(float)
    there = grid + shift[:, None, None] / _GRID_PX
    inside = ((there >= 0.0) & (there <= np.array([rows, cols])[:, None, None] - 1.0)).all(0)
    if not inside.any():
        inside = np.ones_like(inside)
    moved = np.stack(
        [ndimage.map_coordinates(one, there[:, inside], order=1, mode="nearest") for one in after.cell]
    )
    return np.asarray(np.rint(np.median(before.cell[:, inside] - moved, axis=1)).astype(np.int64))


def _follow(
    frames: list[_Seen], offsets: Whole, known: _Known, params: TrackParams, *, pixel_nm: float
) -> pd.DataFrame:
    """Every site that is a defect in some frame: rows `frame`, site, place, `kind`, `kind_p`."""
    assert known.mixtures is not None
    factors = [_speak(seen.ratio, seen.sigma, seen.sublattice, known.mixtures) for seen in frames]
    numbers = [_number(seen, offset) for seen, offset in zip(frames, offsets, strict=True)]
    # Only sites that are a defect somewhere are looked at in all frames.
    wanted = np.unique(
        np.concatenate(
            [
                number[seen.inner & (factor > _WORTH)]
                for seen, factor, number in zip(frames, factors, numbers, strict=True)
            ]
        )
    )
    parts = []
    for frame, (seen, offset) in enumerate(zip(frames, offsets, strict=True)):
        kept = np.flatnonzero(seen.inner & np.isin(numbers[frame], wanted))
        parts.append(
            pd.DataFrame(
                {
                    "frame": frame,
                    "i": seen.cells[kept, 0] + offset[0],
                    "j": seen.cells[kept, 1] + offset[1],
                    "sublattice": seen.sublattice[kept],
                    "row_px": seen.positions[kept, 0],
                    "col_px": seen.positions[kept, 1],
                    "ratio": seen.ratio[kept],
                    "factor": factors[frame][kept],
                    "over": seen.over[kept],
                    "at": kept,
                }
            )
        )
    whole = pd.concat(parts, ignore_index=True)
    crystal = known.crystal
    # The largest of more numbers is larger: what one frame shows by chance, all of them exceed somewhere.
    count = max(float(np.mean([len(seen.positions) for seen in frames])), 2.0)
    by_chance = np.sqrt(np.log(count * len(frames)) / np.log(count))
    ideal = [_place(cells, known, kind) for cells, kind in ((frames[0].cells, 0), (frames[0].cells, 1))]
    at = np.where((frames[0].sublattice == 0)[:, None], *ideal)
    origin = np.median(frames[0].positions - at, axis=0)
    rows = []
    for (i, j, kind), site in whole.groupby(["i", "j", "sublattice"], sort=True):
        # Where it is a defect, not where it is none.
        strongest = site["ratio"].to_numpy()[np.abs(site["ratio"].to_numpy() - 1.0).argmax()]
        kinds = [
            one.name_in(crystal, params.dopants, bright=bool(strongest > 1.0))
            for one in list_kinds(crystal, int(kind))[1:]
        ]
        emission = np.ones((len(frames), 1 + len(kinds)))
        seen_at = site["frame"].to_numpy()
        chance = _name(frames, site, int(kind), known=known, count=len(kinds))
        emission[seen_at, 1:] = site["factor"].to_numpy()[:, None] * chance
        p = smooth(emission, share=_defect_share(known.mixtures[int(kind)]))
        unusual = 1.0 - p[seen_at, 0]
        found = unusual > _LEAST_P
        over = site["over"].to_numpy()[found]
        if over.max(initial=0.0) < by_chance and (over > 1.0).sum() < max(2, _CLEAR_SHARE * len(over)):
            continue
        called = p[seen_at, 1:].argmax(1)
        y, x = (_place(np.array([i, j]), known, int(kind)) + origin) * pixel_nm
        here = site[found]
        rows.append(
            pd.DataFrame(
                {
                    "frame": here["frame"],
                    "kind": np.array(kinds, object)[called[found]],
                    "kind_p": p[seen_at, 1:].max(1)[found],
                    "row_px": here["row_px"],
                    "col_px": here["col_px"],
                    "x_nm": x,
                    "y_nm": y,
                    "sublattice": crystal.sublattices[int(kind)],
                    "intensity_ratio": here["ratio"],
                    "site": f"{i},{j},{kind}",
                }
            )
        )
    columns = [
        "frame",
        "kind",
        "kind_p",
        "row_px",
        "col_px",
        "x_nm",
        "y_nm",
        "sublattice",
        "intensity_ratio",
        "site",
    ]
    if not rows:
        return pd.DataFrame(columns=columns)
    return _take_brightest(pd.concat(rows, ignore_index=True), reach_nm=_BESIDE * crystal.lattice_nm)


def _number(seen: _Seen, offset: Whole) -> Whole:
    """One number for each site of a frame, the same in all frames."""
    i, j = (seen.cells + offset).T + (1 << 20)
    return np.asarray((i << 22 | j) << 1 | seen.sublattice)


def _take_brightest(table: pd.DataFrame, *, reach_nm: float) -> pd.DataFrame:
    """Rows without those of sites that share one bright atom with a brighter site in the same frame."""
    bright = table.groupby("site")["intensity_ratio"].transform("max") > _BRIGHT
    drop: list[int] = []
    for _, rows in table[bright].groupby("frame"):
        places, ratio = rows[["y_nm", "x_nm"]].to_numpy(float), rows["intensity_ratio"].to_numpy(float)
        pairs = cKDTree(places).query_pairs(reach_nm, output_type="ndarray")
        less = np.where(ratio[pairs[:, 0]] < ratio[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        drop += list(rows.index[np.unique(less)])
    return table.drop(index=drop).reset_index(drop=True)


def _name(frames: list[_Seen], site: pd.DataFrame, kind: int, *, known: _Known, count: int) -> Float:
    """How much each frame speaks for each kind of defect on a site, relative to their mean, shape (n, kinds)."""
    if known.network is None:
        # Brightness alone: darker than usual is a vacancy.
        dark = (site["ratio"] < 1.0).to_numpy(float)
        return np.asarray(count * np.stack([0.98 * dark + 0.01, 0.99 - 0.98 * dark], axis=1))
    first, end = GROUPS[kind]
    nothing = np.zeros(GROUPS[-1][1], np.float32)
    logits = [
        frames[frame].logits.get(at, nothing) for frame, at in zip(site["frame"], site["at"], strict=True)
    ]
    likely = forbid(np.array(logits, float), site["ratio"].to_numpy(float))
    return np.asarray(count * special.softmax(likely[:, first + 1 : end], axis=1))


def _place(cells: Whole, known: _Known, kind: int) -> Float:
    """Where sites lie in a perfect lattice, pixels (row, col)."""
    return np.asarray((cells + known.places[0 if kind == known.first else 1]) @ known.lattice.vectors)


def _defect_share(mixture: Mixture) -> float:
    """How many sites of a sublattice are defects; what fits nothing is none."""
    return float(np.clip(mixture.shares[1:-1].sum(), *_SHARES))


def smooth(emission: Float, *, share: float) -> Float:
    """Probability of each state in every frame, by a hidden Markov model run forwards and backwards.

    Parameters
    ----------
    emission
        Shape (frames, states): how likely a frame is under each state; the first one is the usual site. Ones where a
        site was not seen.
    share
        Of sites that are defects.

    Returns
    -------
    Shape (frames, states), rows add up to 1.
    """
    count = emission.shape[1] - 1
    step = np.full((count + 1, count + 1), _CHANGE / max(count - 1, 1))
    # As many come as go.
    birth = _DEATH * share / (1.0 - share)
    step[0], step[1:, 0] = birth / count, _DEATH
    step[0, 0] = 1.0 - birth
    np.fill_diagonal(step[1:, 1:], 1.0 - _DEATH - (_CHANGE if count > 1 else 0.0))
    start = np.full(count + 1, share / count)
    start[0] = 1.0 - share
    forward, backward = np.empty_like(emission), np.ones_like(emission)
    state = start
    for index, seen in enumerate(emission):
        state = (state @ step if index else start) * seen
        state = state / state.sum()
        forward[index] = state
    for index in range(len(emission) - 2, -1, -1):
        ahead = step @ (emission[index + 1] * backward[index + 1])
        backward[index] = ahead / ahead.sum()
    both = forward * backward
    return np.asarray(both / both.sum(1, keepdims=True))


def link_points(table: pd.DataFrame, reach: float, *, columns: tuple[str, str], memory: int) -> pd.DataFrame:
    """Rows of a table with columns `frame` and two of places, and the `particle` each belongs to, by trackpy.

    Raises
    ------
    MicrographError
        If trackpy is not installed.
    """
    try:
        import trackpy
    except ImportError:
        raise MicrographError("following defects needs trackpy: pip install 'flatscope[movies]'") from None
    trackpy.quiet()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # trackpy 0.7 calls pandas as it was
        return trackpy.link(
            table,
            reach,
            pos_columns=list(columns),
            t_column="frame",
            memory=memory,
            adaptive_stop=_CROWDED * reach,  # where too many are too near for all pairings to be compared
        )


def _link(table: pd.DataFrame, params: TrackParams, *, reach_nm: float) -> pd.DataFrame:
    """Give every row a `track_id`, by trackpy."""
    if table.empty:
        return table.assign(track_id=np.zeros(0, int))
    linked = link_points(table, reach_nm, columns=("y_nm", "x_nm"), memory=params.memory)
    linked["track_id"] = linked.pop("particle") + 1
    frames = linked.groupby("track_id")["frame"].transform("size")
    sure = linked.groupby("track_id")["kind_p"].transform("mean")
    linked = linked[(frames >= params.least_frames) & (sure > _LEAST_TRACK_P)].copy()
    # Numbers without holes, in the order of appearance.
    order = {
        old: new for new, old in enumerate(dict.fromkeys(linked.sort_values("frame")["track_id"]), start=1)
    }
    linked["track_id"] = linked["track_id"].map(order)
    return linked
