"""`flatscope defects`: from ADF-STEM images and movies to tables of their point defects."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd

from flatscope.app import show
from flatscope.app.batch import name_apart
from flatscope.app.cli import EXIT_BAD_INPUT, EXIT_FINE, EXIT_INTERRUPTED, EXIT_SOME_FAILED
from flatscope.app.settings import checked
from flatscope.electron.defects import SURE_P, UNSURE, find_defects
from flatscope.electron.kinds import find_codes
from flatscope.electron.physics.crystals import CRYSTALS, find_crystal
from flatscope.electron.rates import (
    count_kinds,
    count_transitions,
    measure_diffusion,
    measure_dwell,
    measure_rates,
)
from flatscope.electron.scans import ALIKE
from flatscope.electron.tracks import TrackParams, track_defects
from flatscope.files.movie import MOVIE_SUFFIXES, VIDEO_SUFFIXES, read_movie, write_movie
from flatscope.files.read import find_pictures, read
from flatscope.files.write import write_atomic
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
    column_names,
    count_densities,
)
from flatscope.units import um_from_nm

_EXPLAIN = (
    "Marks: one colour and shape a kind of defect, thin gray circles where a site was rejected, ? where uncertain. "
    "Activation maps (orange) show where in the crop the network saw what it named. Densities are per nm² of crystal "
    "with the exact 95 % interval of a count; rates are events per defect and frame."
)


_POSITIVE = click.FloatRange(0.0, min_open=True)


@dataclass
class _Run:
    """What a run has found so far."""

    frames: list[pd.DataFrame] = field(default_factory=list)
    tracks: list[pd.DataFrame] = field(default_factory=list)
    events: list[pd.DataFrame] = field(default_factory=list)
    rows: list[dict[str, str]] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    record: dict[str, Any] = field(default_factory=dict)

    def add_table(self, caption: str, frame: pd.DataFrame) -> None:
        """Show a table in the report; an empty one, and columns of which nobody knows anything, are left out."""
        if len(frame):
            shown = frame.dropna(axis=1, how="all").map(
                lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
            )
            self.tables[caption] = shown.to_dict("records")


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--material", required=True, help=f"One of {', '.join(CRYSTALS)}.")
@click.option(
    "--nm-per-px", type=_POSITIVE, default=None, help="Pixel size; the lattice of the material corrects it."
)
@click.option("--frame-s", type=_POSITIVE, default=None, help="Time from one frame of a movie to the next.")
@click.option(
    "--dopants", default="", help="Element that is known to be there, such as Ti: Ti_W instead of X_W."
)
@click.option(
    "--brighter",
    default="auto",
    show_default=True,
    help="The sublattice that is the brighter one: metal or chalcogen (a or b in hBN).",
)
@click.option("--weights", default="defects", show_default=True, help="A name, or an .onnx file of your own.")
@click.option(
    "--workers", type=click.IntRange(1), default=2, show_default=True, help="Frames read at a time."
)
def defects(inputs: tuple[str, ...], out: Path, **options: Any) -> int:
    """Find, name and follow point defects in ADF-STEM images and movies of a monolayer.

    Images: npy, tif, png, mrc and, with the extra vendor, dm3, dm4, emd, ser. Movies: stacks of these, and with the
    extra movies mp4, avi, mov, gif.

    Writes defects.csv (one row a defect, in a movie one a defect and frame), NAME.defects.png, for movies tracks.csv,
    events.csv and NAME.defects.mp4, and report.html and run.json.
    """
    params = checked(
        TrackParams,
        material=options["material"],
        dopants=options["dopants"],
        brighter=options["brighter"],
        weights=options["weights"],
    )
    paths = _list_inputs(inputs)
    size = None if options["nm_per_px"] is None else um_from_nm(options["nm_per_px"])
    pairs = find_crystal(params.material).is_dichalcogenide
    network = Network.load(params.weights, task="defects") if pairs else None
    run = _Run()
    failed = 0
    stopped = False
    try:
        with show.progress("frames") as on_progress, _hold_interrupt() as interrupted:
            for path, (name, stem) in zip(paths, name_apart(paths), strict=True):
                try:
                    movie = _open(path, size, options["frame_s"])
                    if movie is None:
                        micrograph = _read_image(path, size)
                        table = find_defects(micrograph, params, network=network)
                        _answer_image(micrograph, table, name, stem, out=out, run=run)
                    else:
                        movie = replace(movie, open=_until(movie.open, interrupted))
                        followed = track_defects(
                            movie,
                            params,
                            network=network,
                            workers=options["workers"],
                            on_progress=on_progress,
                        )
                        _answer_movie(movie, followed, name, stem, out=out, run=run)
                except MicrographError as error:
                    failed += 1
                    click.echo(f"flatscope: {error}", err=True)
                    run.notes.append(f"failed: {error}")
                    run.record[name] = {"failed": str(error)}
                if interrupted():
                    stopped = True
                    break
    finally:
        if run.rows:
            _write(out, run)
    if stopped:
        click.echo("flatscope: interrupted, what was finished is written", err=True)
        return EXIT_INTERRUPTED
    if not run.rows:
        return EXIT_BAD_INPUT
    for note in run.notes:
        if not note.startswith("failed: "):  # said when it happened
            click.echo(note, err=True)
    show.print_rows(tuple(run.rows[0]), [tuple(row.values()) for row in run.rows])
    click.echo(f"report: {out / 'report.html'}")
    return EXIT_SOME_FAILED if failed else EXIT_FINE


def _list_inputs(inputs: tuple[str, ...]) -> list[Path]:
    """Videos as they are named, and everything else as images and stacks."""
    paths: list[Path] = []
    for item in inputs:
        if Path(item).suffix.lower() in VIDEO_SUFFIXES:
            if not Path(item).is_file():
                raise MicrographError(f"{item}: no such file: check the path")
            paths.append(Path(item))
        elif Path(item).is_dir():
            videos = sorted(path for path in Path(item).iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
            try:
                paths += [*find_pictures([item], modality="electron"), *videos]
            except MicrographError:
                if not videos:
                    raise MicrographError(f"{item}: the folder holds no pictures and no movies") from None
                paths += videos
        else:
            paths += find_pictures([item], modality="electron")
    return list(dict.fromkeys(paths))


def _open(path: Path, um_per_px: float | None, frame_s: float | None) -> Movie | None:
    """A file's movie, or None where it holds one image."""
    if path.suffix.lower() not in MOVIE_SUFFIXES:
        return None
    movie = read_movie(path, um_per_px=um_per_px, frame_s=frame_s)
    return None if movie.count == 1 and path.suffix.lower() not in VIDEO_SUFFIXES else movie


def _read_image(path: Path, um_per_px: float | None) -> Micrograph:
    """The image of a file, the only frame of a movie too."""
    if path.suffix.lower() != ".npy":
        return read(path, um_per_px=um_per_px, modality="electron")
    movie = read_movie(path, um_per_px=um_per_px)
    frame = next(iter(movie))
    if isinstance(frame, MicrographError):
        raise MicrographError(f"{path}: {frame}")
    return Micrograph(
        frame, float(np.abs(frame).max()) or 1.0, movie.calibration, movie.source, movie.sha256, movie.notes
    )


def _answer_image(
    micrograph: Micrograph, table: DefectTable, name: str, stem: str, *, out: Path, run: _Run
) -> None:
    table = table.renamed(name)
    constant = np.sqrt(2.0 / np.sqrt(3.0) * table.cell_nm2) / table.calibration.pixel_size_nm[0]
    styles = _style_kinds(table.found, table)
    overlay = encode_png(draw_defects(micrograph.pixels, table, styles, constant_px=float(constant)))
    write_atomic(out / f"{stem}.defects.png", overlay)
    run.frames.append(table.frame)
    run.figures[f"{name}: defects"] = overlay
    examples = draw_examples(table)
    if examples:
        run.figures[f"{name}: the surest of each kind, and where in the crop the network saw it"] = examples
    run.rows.append(_summarise(name, table))
    run.add_table(f"{name}: densities per nm²", table.densities())
    run.notes += [f"{name}: {note}" for note in table.provenance.notes]
    run.record[name] = table.provenance.to_dict() | {"densities": table.densities().to_dict("records")}


def _answer_movie(movie: Movie, table: TrackTable, name: str, stem: str, *, out: Path, run: _Run) -> None:
    table = table.renamed(name)
    frames = table.drift["frame"].to_numpy(int)
    run.frames.append(_as_defects(table))
    run.tracks.append(table.frame)
    run.events.append(table.events)
    counts = count_kinds(table.frame, frames)
    left = set(table.events.loc[table.events["event"] == "left", "track_id"])
    transitions = count_transitions(table.frame, frames, left=left)
    rates = measure_rates(table.events, table.frame, frames, frame_s=table.frame_s)
    spread = measure_diffusion(table.frame)
    run.record[name] = table.provenance.to_dict() | {
        "rates": rates.to_dict("records"),
        "transitions": transitions.to_dict("records"),
        "dwell": measure_dwell(table.frame, frames).to_dict("records"),
        "diffusion_nm2_per_frame": [asdict(one) for one in spread],
        "drift_nm": table.drift.to_dict("records"),
    }
    run.notes += [f"{name}: {note}" for note in table.provenance.notes]
    densities = count_densities(_round_mean(counts), table.area_nm2)
    run.add_table(f"{name}: densities per nm² in a frame, as surely as one frame tells", densities)
    run.add_table(f"{name}: events, a defect and frame", rates)
    run.add_table(f"{name}: what a defect is one frame later", transitions)
    run.notes += [
        f"{name}: diffusion of {one.kind}: {one.coefficient:.5f} nm² a frame [{one.low:.5f}, {one.high:.5f}] from "
        f"{one.tracks} tracks, error of places {one.error_nm:.3f} nm taken out; {one.by_variance:.5f} by the variance "
        "of the steps, which counts that error"
        for one in spread
    ]
    run.rows.append(_summarise_movie(name, table, counts))
    if len(table):
        styles = _style_kinds(table.frame, table)
        run.figures[f"{name}: defects against time"] = draw_counts(counts, styles, frame_s=table.frame_s)
        run.figures[f"{name}: tracks in space and time"] = draw_broom(table, styles)
        constant = np.sqrt(2.0 / np.sqrt(3.0) * table.cell_nm2) / table.calibration.pixel_size_nm[0]
        good = set(frames)
        shown = (
            (number, frame)
            for number, frame in enumerate(movie)
            if number in good and not isinstance(frame, MicrographError)
        )
        write_movie(
            out / f"{stem}.defects.mp4",
            map(np.asarray, draw_frames(shown, table, styles, constant_px=float(constant))),
            frame_s=table.frame_s,
        )


def _style_kinds(frame: pd.DataFrame, table: DefectTable | TrackTable) -> dict[str, Style]:
    """Colour and shape of each kind of defect among some rows of a table."""
    crystal = find_crystal(str(table.provenance.settings["material"]))
    return choose_styles(find_codes(frame["kind"], crystal))


def _as_defects(table: TrackTable) -> pd.DataFrame:
    """Rows of a defect table, one a defect and frame."""
    frame = table.frame.assign(status="accepted", reason="", z_score=np.nan)
    for rows, reason in (
        (frame["kind_p"] < SURE_P, UNSURE),
        (np.full(len(frame), not table.sublattices_sure), ALIKE),
    ):
        frame.loc[rows, "status"], frame.loc[rows, "reason"] = "uncertain", reason
    frame["defect_id"] = np.arange(1, len(frame) + 1)
    return frame[list(column_names(DEFECT_COLUMNS))]


def _summarise(name: str, table: DefectTable) -> dict[str, str]:
    said = [f"{row['count']} {row['kind']}" for row in table.densities().to_dict("records")]
    uncertain = int((table.found["status"] == "uncertain").sum())
    whole = count_densities({"all": len(table.found)}, table.area_nm2).iloc[0]
    return {
        "image": name,
        "frames": "1",
        "defects": f"{len(table.found)}" + (f" ({uncertain} uncertain)" if uncertain else ""),
        "kinds": ", ".join(said),
        "per nm²": f"{whole['per_nm2']:.4f} [{whole['low']:.4f}, {whole['high']:.4f}]",
        "tracks": "",
        "events": "",
    }


def _summarise_movie(name: str, table: TrackTable, counts: pd.DataFrame) -> dict[str, str]:
    events = table.events["event"].value_counts()
    mean = float(counts.sum(axis=1).mean()) if len(counts.columns) else 0.0
    # Frames show the same defects again and again: their number is known as surely as from one frame.
    whole = count_densities({"all": round(mean)}, table.area_nm2).iloc[0]
    return {
        "image": name,
        "frames": str(len(counts)),
        "defects": f"{mean:.1f} a frame",
        "kinds": ", ".join(f"{kind} {value:.1f}" for kind, value in counts.mean().items()),
        "per nm²": f"{whole['per_nm2']:.4f} [{whole['low']:.4f}, {whole['high']:.4f}]",
        "tracks": str(len(table)),
        "events": ", ".join(f"{count} {event}" for event, count in events.items()),
    }


def _round_mean(counts: pd.DataFrame) -> dict[str, int]:
    """Mean number of each kind in a frame."""
    return {str(kind): round(float(value)) for kind, value in counts.mean().items()}


def _write(out: Path, run: _Run) -> None:
    write_atomic(out / "defects.csv", _to_csv(run.frames, column_names(DEFECT_COLUMNS)))
    if run.tracks:
        write_atomic(out / "tracks.csv", _to_csv(run.tracks, column_names(TRACK_COLUMNS)))
        write_atomic(out / "events.csv", _to_csv(run.events, column_names(EVENT_COLUMNS)))
    write_atomic(out / "run.json", json.dumps(run.record, indent=2, default=str))
    page = make_study_page("Defects", run.rows, run.figures, notes=[*run.notes, _EXPLAIN], more=run.tables)
    write_atomic(out / "report.html", page)


def _to_csv(frames: list[pd.DataFrame], columns: tuple[str, ...]) -> str:
    kept = [frame for frame in frames if len(frame)]
    whole = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=list(columns))
    text: str = whole.to_csv(index=False, columns=list(columns), float_format="%.6g")
    return text


@contextmanager
def _hold_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C ends a movie after the frame in hand, so that what was seen is analysed; a second one ends at once."""
    pressed: list[int] = []

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
