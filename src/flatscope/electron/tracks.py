"""Point defects through a movie: drift removed, sites followed, and what happened to them.

Every frame's lattice numbers its sites (`flatscope.electron.movie_lattice`), so that a site keeps its number through
the movie. All frames together tell what stands on it (`flatscope.electron.occupancy`). A defect that moves from site to
site is one track.

References
----------
Maksov et al. 2019, doi:10.1038/s41524-019-0152-9 (defects through movies); Michalet 2010,
doi:10.1103/PhysRevE.82.041914 (diffusion with localisation error).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.electron.defects import DefectParams, load_network
from flatscope.electron.movie_lattice import Drift, MovieLattice, learn_lattice, take_first
from flatscope.electron.occupancy import Appearance, FrameSites, learn_appearance, read_sites, trace_sites
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.rates import find_events
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError, Movie
from flatscope.parallel import stream
from flatscope.results import TRACK_COLUMNS, Marks, Provenance, TrackTable, column_names
from flatscope.results.view import make_preview

_HOP_CELLS = 1.3  # farthest move between frames, in lattice constants: one step on a sublattice
_MEMORY = 2  # frames for which a defect may be missed
_LEAST_TRACK_P = 0.7  # mean probability from which a track counts
_CROWDED = 0.2  # smallest share of the reach that is left where defects crowd
_EDGE_CELLS = 1.5  # tracks that begin or end this near to the border (lattice constants) came in or went out
_MOST_NOTES = 5  # frames left out that are noted one by one


@dataclass(frozen=True)
class TrackParams(DefectParams):
    """Settings of `track_defects`, those of `find_defects` included.

    Parameters
    ----------
    hop_cells
        Farthest move from one frame to the next, in lattice constants.
    memory
        Number of frames for which a defect may be missed.
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
        if self.memory < 0:
            raise ValueError(f"memory = {self.memory} is negative")
        if self.least_frames < 1:
            raise ValueError(f"least_frames = {self.least_frames}: a track has at least one frame")


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
        Called with (frames done, frames in all); the latter is 0 where it is unknown.

    Returns
    -------
    TrackTable
        One row a defect and frame, columns `flatscope.results.TRACK_COLUMNS`: `track_id` counts from 1 in the order of
        appearance, `kind` and its probability `kind_p` are those of the site in that frame, `row_px` and `col_px` lie
        in the frame, `x_nm` and `y_nm` in the specimen as the first frame shows it, and `site` is the same lattice site
        in all frames. With it come the events and the drift; `flatscope.electron.rates` turns them into rates.

    Raises
    ------
    MicrographError
        If fewer than two frames can be read, the frames are not periodic, or their lattice is not this material's.

    Notes
    -----
    Frames that cannot be read, or whose size is not the first one's, are left out with a note. A perfect field that
    drifts by more than half a lattice constant a frame slips by whole lattice vectors, which changes no track, only the
    numbers of its sites. Of each frame only the brightness of its sites stays in memory.

    Examples
    --------
    >>> from flatscope.electron.drawing.hopping import HoppingParams, draw_hopping
    >>> made = draw_hopping(np.random.default_rng(1), HoppingParams(frames=2, shape=(72, 72), vacancies=0.03))
    >>> table = track_defects(Movie(lambda: iter(made.frames)), TrackParams("WS2"))
    >>> sorted(set(table.frame["kind"]))
    ['V_S']
    """
    crystal = find_crystal(params.material)
    notes: list[str] = []
    network = load_network(params, network)
    first = np.stack(take_first(movie)).astype(float)
    lattice, calibration = learn_lattice(first, movie, crystal, notes, brighter=params.brighter)
    appearance = learn_appearance(first, lattice, network)
    usable = _UsableFrames(movie, first.shape[1:])
    frames, drift = _read_frames(usable, lattice, appearance, workers=workers, on_progress=on_progress)
    notes += usable.list_notes()
    if len(frames) < 2:
        raise MicrographError(
            f"{movie.source}: {len(frames)} of its frames can be read, a movie has two: see flatscope.find_defects for "
            "a single image"
        )
    pixel_nm = calibration.pixel_size_nm[0]
    found = trace_sites(frames, drift.offsets, lattice, appearance, dopant=params.dopants, pixel_nm=pixel_nm)
    numbers = np.array(usable.numbers)
    tracks = _link(found, params, reach_nm=params.hop_cells * crystal.lattice_nm)
    tracks = _finish(tracks, numbers, movie)
    edge_px = _EDGE_CELLS * lattice.lattice.constant_px
    cell_nm2 = float(abs(np.linalg.det(lattice.lattice.vectors))) * pixel_nm**2
    return TrackTable(
        tracks,
        Marks.paths(
            tracks["track_id"], tracks["row_px"], tracks["col_px"], (usable.shape[0], usable.shape[1])
        ),
        calibration,
        Provenance.of(movie, params, network=network, notes=tuple(notes)),
        find_events(tracks, numbers, shape=usable.shape, margin_px=edge_px),
        _tabulate_drift(drift, numbers, pixel_nm),
        0.5 * float(np.median([one.inner.sum() for one in frames])) * cell_nm2,
        cell_nm2,
        lattice.sure,
        movie.frame_s,
        preview=make_preview(first[0]),
    )


class _UsableFrames:
    """The frames of a movie that can be followed, their numbers, and why the others cannot."""

    def __init__(self, movie: Movie, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.count = movie.count or 0
        self.numbers: list[int] = []
        self._movie = movie
        self._left_out: list[str] = []

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for number, frame in enumerate(self._movie):
            if isinstance(frame, MicrographError):
                self._left_out.append(f"frame {number} {frame}: left out")
            elif frame.shape != self.shape:
                (rows, cols), (height, width) = frame.shape, self.shape
                is_other = f"is {cols}x{rows} px, the first one {width}x{height}"
                self._left_out.append(f"frame {number} {is_other}: left out")
            else:
                self.numbers.append(number)
                yield frame

    def list_notes(self) -> list[str]:
        """Why frames are left out, the first few one by one."""
        more = len(self._left_out) - _MOST_NOTES
        return self._left_out[:_MOST_NOTES] + ([f"and {more} more frames"] if more > 0 else [])


def _read_frames(
    usable: _UsableFrames,
    lattice: MovieLattice,
    appearance: Appearance,
    *,
    workers: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[FrameSites], Drift]:
    """The sites of all frames, and the specimen's drift through them."""
    frames: list[FrameSites] = []
    drift = Drift(lattice.lattice)
    read = partial(read_sites, lattice=lattice, appearance=appearance)
    for sites, landmarks in stream(read, usable, workers=workers):
        drift.add(landmarks)
        if frames:
            frames[-1] = frames[-1].shrink()
        frames.append(sites)
        if on_progress is not None:
            on_progress(len(frames), usable.count)
    return frames, drift


def _finish(tracks: pd.DataFrame, numbers: NDArray[np.int64], movie: Movie) -> pd.DataFrame:
    """Rows of a track table, by track, with the movie's own frame numbers and times."""
    frame = numbers[tracks["frame"].to_numpy(int)]
    time_s = frame * movie.frame_s if movie.frame_s else np.nan
    tracks = tracks.assign(frame=frame, time_s=time_s, image=movie.name)
    return tracks.sort_values(["track_id", "frame"], ignore_index=True)[list(column_names(TRACK_COLUMNS))]


def _tabulate_drift(drift: Drift, numbers: NDArray[np.int64], pixel_nm: float) -> pd.DataFrame:
    row_nm, col_nm = (np.array(drift.px) * pixel_nm).T
    return pd.DataFrame({"frame": numbers, "row_nm": row_nm, "col_nm": col_nm})


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
            adaptive_stop=_CROWDED * reach,  # in crowds, where there are too many pairings to compare
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
