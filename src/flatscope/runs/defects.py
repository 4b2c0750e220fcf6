"""The run that finds and follows point defects: each image or movie, what is drawn and written of it."""

from __future__ import annotations

import math
import multiprocessing
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from flatscope.electron.defects import SURE_P, UNSURE, DefectParams, find_defects
from flatscope.electron.kinds import find_codes
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.rates import (
    Diffusion,
    count_kinds,
    count_transitions,
    measure_diffusion,
    measure_dwell,
    measure_lifetimes,
    measure_rates,
)
from flatscope.electron.scans import ALIKE
from flatscope.electron.tracks import TrackParams, track_defects
from flatscope.files.movie import MOVIE_SUFFIXES, VIDEO_SUFFIXES, read_movie, write_movie
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError, Movie
from flatscope.report.defects import (
    Style,
    choose_styles,
    draw_broom,
    draw_counts,
    draw_defects,
    draw_examples,
    draw_frames,
)
from flatscope.report.figures import encode_png
from flatscope.report.study import make_study_page
from flatscope.results import (
    DEFECT_COLUMNS,
    EVENT_COLUMNS,
    TRACK_COLUMNS,
    DefectTable,
    TrackTable,
    count_densities,
    failed_frame,
    mark,
)
from flatscope.results.table import as_plain as plain_values
from flatscope.results.table import conform, frame_to_csv
from flatscope.runs.items import Item
from flatscope.runs.settings import as_plain
from flatscope.runs.task import Answer, Content, CutShort, Finished, Task
from flatscope.runs.work import tell_steps
from flatscope.units import um_from_nm

_NOTE = (
    "Marks: one colour and shape a kind of defect, thin gray circles where a site was rejected, ? where uncertain. "
    "Activation maps (orange) show where in the crop the network saw what it named. Densities are per nm² of crystal "
    "with the exact 95 % interval of a count. Appearances are per nm² and frame, all else per defect and frame. Mean "
    "stays count those that outlast the movie; an interval from one track is unknown."
)


@dataclass(frozen=True)
class ImageParams:
    """What `find_defects` and `track_defects` are given besides their own settings.

    Parameters
    ----------
    nm_per_px
        Pixel size; the lattice of the material corrects it.
    signal
        Of files with several data sets (Velox, HyperSpy, HDF5) the name of the one to read. Else HAADF, ADF or the
        first image.
    frame_s
        Time from one frame of a movie to the next.
    """

    nm_per_px: float | None = None
    frame_s: float | None = None
    signal: str = ""

    def __post_init__(self) -> None:
        for name in ("nm_per_px", "frame_s"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} of {value:g} is not positive")

    @property
    def um_per_px(self) -> float | None:
        """Pixel size in µm."""
        return None if self.nm_per_px is None else um_from_nm(self.nm_per_px)


@dataclass(frozen=True)
class Given:
    """What all inputs of a run share; `threads` read the frames of a movie, which changes no answer."""

    params: TrackParams
    image: ImageParams
    threads: int = 1


def make_task(params: TrackParams, image: ImageParams, *, threads: int) -> Task:
    """The task of finding and following defects; `threads` read the frames of a movie."""
    pairs = find_crystal(params.material).is_dichalcogenide
    return Task(
        "defects",
        as_plain(params, image),
        alone=measure,
        conclude=draw,
        tabulate=tabulate,
        views=make_views,
        endings=(".defects.png", ".defects.mp4"),
        view_names=("defects.csv", "tracks.csv", "events.csv", "report.html"),
        given=Given(params, image, threads),
        weights=load_network(params.weights).describe() if pairs else {},
    )


@cache
def load_network(weights: str) -> Network:
    """The network that names defects, with one thread."""
    return Network.load(weights, task="defects", threads=1)


def _network_for(params: DefectParams) -> Network | None:
    return load_network(params.weights) if find_crystal(params.material).is_dichalcogenide else None


def _open(path: Path, image: ImageParams) -> Movie | None:
    """A file's movie, or None where it holds one image."""
    if path.suffix.lower() not in MOVIE_SUFFIXES:
        return None
    movie = read_movie(path, um_per_px=image.um_per_px, frame_s=image.frame_s, signal=image.signal)
    return None if movie.count == 1 and path.suffix.lower() not in VIDEO_SUFFIXES else movie


def _read_image(path: Path, image: ImageParams) -> Micrograph:
    """The image of a file, the only frame of a movie too."""
    if path.suffix.lower() != ".npy":
        return read(path, um_per_px=image.um_per_px, modality="electron", signal=image.signal)
    movie = read_movie(path, um_per_px=image.um_per_px)
    frame = next(iter(movie))
    if isinstance(frame, MicrographError):
        raise MicrographError(f"{path}: {frame}")
    full_scale = float(np.abs(frame).max()) or 1.0
    return Micrograph(frame, full_scale, movie.calibration, movie.source, movie.sha256, movie.notes)


def measure(item: Item, given: Given) -> DefectTable | TrackTable | CutShort:
    """Find the defects of an image, or follow those of a movie."""
    movie = _open(item.sources[0], given.image)
    network = _network_for(given.params)
    if movie is None:
        micrograph = _read_image(item.sources[0], given.image)
        return find_defects(micrograph, given.params, network=network).renamed(item.name)
    with _hold_interrupt() as interrupted:
        whole = replace(movie, open=_until(movie.open, interrupted))
        table = track_defects(
            whole, given.params, network=network, workers=given.threads, on_progress=tell_steps
        )
        table = table.renamed(item.name)
        return CutShort(table) if interrupted() else table


@contextmanager
def _hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends a movie after the frame in hand, so that what was seen is analysed; a second one ends at once."""
    pressed: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or multiprocessing.parent_process() is not None:
        yield lambda: False  # a worker: the parent handles it
        return

    def remember(number: int, _: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, remember)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _until(frames: Callable[[], Iterator[Any]], stop: Callable[[], bool]) -> Callable[[], Iterator[Any]]:
    """Frames up to an interrupt."""

    def each() -> Iterator[Any]:
        for frame in frames():
            if stop():
                return
            yield frame

    return each


def tabulate(
    item: Item, table: DefectTable | TrackTable, shared: None, given: Given
) -> dict[str, DefectTable | TrackTable]:
    """The defects of one image, or the tracks of one movie."""
    return {table.NAME: table}


def draw(
    item: Item, table: DefectTable | TrackTable, shared: None, given: Given
) -> tuple[Answer, dict[str, bytes]]:
    """What was found, drawn over its image or movie."""
    if isinstance(table, DefectTable):
        return _draw_image(_read_image(item.sources[0], given.image), table)
    movie = _open(item.sources[0], given.image)
    assert movie is not None
    return _draw_movie(movie, table)


def _constant_px(table: DefectTable | TrackTable) -> float:
    """The lattice constant on the screen."""
    return float(np.sqrt(2.0 / np.sqrt(3.0) * table.cell_nm2) / table.calibration.pixel_size_nm[0])


def _draw_image(micrograph: Micrograph, table: DefectTable) -> tuple[Answer, dict[str, bytes]]:
    styles = _style_kinds(table.found, table)
    drawn = draw_defects(micrograph.pixels, table, styles, constant_px=_constant_px(table))
    overlay = encode_png(drawn)
    figures = {"defects": overlay}
    examples = draw_examples(table)
    if examples:
        figures["the surest of each kind, and where in the crop the network saw it"] = examples
    facts = {"line": _count(table), "densities": plain_values({"": table.densities().to_dict("records")})[""]}
    return Answer({"defects": table}, figures, facts, table.provenance.notes), {".defects.png": overlay}


def _draw_movie(movie: Movie, table: TrackTable) -> tuple[Answer, dict[str, bytes]]:
    frames = table.drift["frame"].to_numpy(int)
    counts = count_kinds(table.frame, frames)
    figures, files = {}, {}
    if len(table):
        styles = _style_kinds(table.frame, table)
        figures = {
            "defects against time": draw_counts(counts, styles, frame_s=table.frame_s),
            "tracks in space and time": draw_broom(table, styles),
        }
        files[".defects.mp4"] = _encode_movie(movie, table, styles, set(frames.tolist()))
    spread = measure_diffusion(table.frame)
    notes = [_describe_diffusion(one) for one in spread]
    facts = _state_rates(table, counts, frames)
    facts["diffusion_nm2_per_frame"] = _to_records(pd.DataFrame([asdict(one) for one in spread]))
    answer = Answer({"tracks": table}, figures, plain_values(facts), (*table.provenance.notes, *notes))
    return answer, files


def _describe_diffusion(spread: Diffusion) -> str:
    interval = f"[{spread.low:.5f}, {spread.high:.5f}] from {spread.tracks} tracks"
    if math.isnan(spread.low):
        interval = "from one track, interval unknown"
    return (
        f"diffusion of {spread.kind}: {spread.coefficient:.5f} nm² a frame {interval}, error of places "
        f"{spread.error_nm:.3f} nm taken out; {spread.by_variance:.5f} by the variance of the steps, which counts that "
        "error"
    )


def _state_rates(table: TrackTable, counts: pd.DataFrame, frames: Any) -> dict[str, Any]:
    """Densities, rates, transitions, dwell times and drift of a movie, as rows."""
    left = set(table.events.loc[table.events["event"] == "left", "track_id"])
    mean = {str(kind): round(float(value)) for kind, value in counts.mean().items()}
    rates = measure_rates(table.events, table.frame, frames, area_nm2=table.area_nm2, frame_s=table.frame_s)
    stays = measure_dwell(table.frame, frames, left=left)
    found = {
        "densities": count_densities(mean, table.area_nm2),
        "rates": rates,
        "transitions": count_transitions(table.frame, frames, left=left),
        "dwell": stays,
        "lifetimes": measure_lifetimes(stays, frame_s=table.frame_s),
        "drift_nm": table.drift,
    }
    rows = {name: _to_records(frame) for name, frame in found.items()}
    return {"line": _count_movie(table, counts), **rows}


def _to_records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; what nobody knows is None."""
    return [
        {str(k): None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in frame.to_dict("records")
    ]


def _style_kinds(frame: pd.DataFrame, table: DefectTable | TrackTable) -> dict[str, Style]:
    """Colour and shape of each kind of defect among some rows of a table."""
    crystal = find_crystal(str(table.provenance.settings["material"]))
    return choose_styles(find_codes(frame["kind"], crystal))


def _encode_movie(movie: Movie, table: TrackTable, styles: dict[str, Style], good: set[int]) -> bytes:
    """The movie with its marks, as an mp4 file."""
    shown = (
        (number, frame)
        for number, frame in enumerate(movie)
        if number in good and not isinstance(frame, MicrographError)
    )
    drawn = draw_frames(shown, table, styles, constant_px=_constant_px(table))
    with tempfile.TemporaryDirectory() as folder:
        path = write_movie(Path(folder) / "movie.mp4", map(np.asarray, drawn), frame_s=table.frame_s)
        return path.read_bytes()


def _count(table: DefectTable) -> dict[str, str]:
    """One line about an image."""
    uncertain = int((table.found["status"] == "uncertain").sum())
    kinds = [f"{row['count']} {row['kind']}" for row in table.densities().to_dict("records")]
    return {
        "image": table.provenance.image,
        "frames": "1",
        "defects": f"{len(table.found)}" + (f" ({uncertain} uncertain)" if uncertain else ""),
        "kinds": ", ".join(kinds),
        "per nm²": _say_density(len(table.found), table.area_nm2),
        "tracks": "",
        "events": "",
    }


def _count_movie(table: TrackTable, counts: pd.DataFrame) -> dict[str, str]:
    """One line about a movie."""
    events = table.events["event"].value_counts()
    mean = float(counts.sum(axis=1).mean()) if len(counts.columns) else 0.0
    return {
        "image": table.provenance.image,
        "frames": str(len(counts)),
        "defects": f"{mean:.1f} a frame",
        "kinds": ", ".join(f"{kind} {value:.1f}" for kind, value in counts.mean().items()),
        # Frames show the same defects again and again: their number is known as surely as from one frame.
        "per nm²": _say_density(round(mean), table.area_nm2),
        "tracks": str(len(table)),
        "events": ", ".join(f"{count} {event}" for event, count in events.items()),
    }


def _say_density(count: int, area_nm2: float) -> str:
    whole = count_densities({"all": count}, area_nm2).iloc[0]
    return f"{whole['per_nm2']:.4f} [{whole['low']:.4f}, {whole['high']:.4f}]"


def to_defects(table: TrackTable) -> pd.DataFrame:
    """Rows of a defect table, one a defect and frame of a movie."""
    frame = table.frame.assign(status="accepted", reason="", z_score=np.nan)
    frame = mark(frame, frame["kind_p"] < SURE_P, status="uncertain", reason=UNSURE)
    frame = mark(frame, np.full(len(frame), not table.sublattices_sure), status="uncertain", reason=ALIKE)
    return conform(frame.assign(defect_id=np.arange(1, len(frame) + 1)), DEFECT_COLUMNS)


_CAPTIONS = {
    "densities": "densities per nm²",
    "rates": "events, from one frame to the next",
    "lifetimes": "how long a defect stays on its site",
    "transitions": "what a defect is one frame later",
}


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """Tables and report."""
    frames, tracks, events = [], [], []
    rows: list[dict[str, str]] = []
    figures: dict[str, bytes] = {}
    tables: dict[str, list[dict[str, str]]] = {}
    notes: list[str] = []
    for item, answer in run.answers():
        for table in answer.tables.values():
            if isinstance(table, TrackTable):
                frames.append(to_defects(table))
                tracks.append(table.frame)
                events.append(table.events)
            else:
                frames.append(table.frame)
        rows.append(answer.facts["line"])
        figures |= {f"{item.name}: {caption}": picture for caption, picture in answer.figures.items()}
        for name, caption in _CAPTIONS.items():
            if answer.facts.get(name):
                tables[f"{item.name}: {caption}"] = _to_words(answer.facts[name])
        notes += [f"{item.name}: {note}" for note in answer.notes]
    frames += [failed_frame(DEFECT_COLUMNS, name, why) for name, why in run.failures.items()]
    notes += [f"{name} failed: {why}" for name, why in run.failures.items()]
    yield "defects.csv", _to_csv(frames, DEFECT_COLUMNS)
    if tracks:
        yield "tracks.csv", _to_csv(tracks, TRACK_COLUMNS)
        yield "events.csv", _to_csv(events, EVENT_COLUMNS)
    page = make_study_page(
        "Defects", rows or [{"image": "none"}], figures, notes=[*notes, _NOTE], more=tables
    )
    yield "report.html", page


def _to_csv(frames: list[pd.DataFrame], columns: Any) -> str:
    kept = [frame.astype(object) for frame in frames]
    return frame_to_csv(conform(pd.concat(kept, ignore_index=True), columns))


def _to_words(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Rows as text, without columns of which nobody knows anything; an interval is shown even then."""
    known = pd.DataFrame(rows)
    known = known[[name for name in known if name in ("low", "high") or known[name].notna().any()]]
    return known.map(_to_word).to_dict("records")


def _to_word(value: Any) -> str:
    if value is None or value != value:  # NaN is no equal of itself
        return "unknown"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
