"""Analyse many pictures: each in its own right, in worker processes, with everything finished kept on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.files.read import read
from flatscope.files.write import write_atomic
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical import flakes
from flatscope.optical.flakes import FlakeParams
from flatscope.parallel import worker_processes
from flatscope.report.figures import draw_overlay, draw_thumbnails, encode_jpeg, encode_png, to_display
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Provenance, failed_frame
from flatscope.results.exports.geojson import Outline, collect_outlines
from flatscope.units import um_from_nm


@dataclass(frozen=True)
class Job:
    """One picture to analyse.

    Parameters
    ----------
    path
        Where it lies.
    image
        Its name in the table; no two pictures share one.
    stem
        What its output files are called; no two pictures share one.
    params
        Settings of `find_flakes`.
    um_per_px
        Pixel size in µm, or None for the file's own.
    """

    path: Path
    image: str
    stem: str
    params: FlakeParams
    um_per_px: float | None = None


@dataclass(frozen=True)
class Bench:
    """What all pictures of a run share.

    Parameters
    ----------
    out
        Folder for the results.
    weights
        Name or path of the network.
    flatfield
        Shape (rows, cols, 3), mean 1, or None.
    preview_px
        Longer side of the pictures in the report.
    thumbnails
        How many flakes of each picture get a thumbnail.
    keep_tables
        Hand the whole table back too, with its label image.
    """

    out: Path
    weights: str
    flatfield: NDArray[np.float32] | None = None
    preview_px: int = 900
    thumbnails: int = 24
    keep_tables: bool = False


@dataclass(frozen=True)
class Answer:
    """What became of one picture.

    Parameters
    ----------
    job
        What was asked.
    frame
        Its rows, columns `FLAKE_COLUMNS`; one row with status "failed" if it could not be analysed.
    failure
        Why not, or "".
    outlines
        Of all regions, in the frame's order.
    shape
        Rows and columns in px.
    pixel_size_um
        Height and width of a pixel, and who said so; None if unknown.
    provenance
        None if failed.
    notes
        Of the reader and of the analysis.
    before, after, thumbnails
        JPEG files for the report.
    timings_s
        Stage to seconds.
    table
        The whole answer, if it was asked for.
    """

    job: Job
    frame: pd.DataFrame
    failure: str = ""
    outlines: list[Outline] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    pixel_size_um: tuple[float, float, str] | None = None
    provenance: Provenance | None = None
    notes: tuple[str, ...] = ()
    before: bytes = b""
    after: bytes = b""
    thumbnails: dict[int, bytes] = field(default_factory=dict)
    timings_s: dict[str, float] = field(default_factory=dict)
    table: FlakeTable | None = None


def plan_jobs(paths: Sequence[Path], params: FlakeParams, *, um_per_px: float | None = None) -> list[Job]:
    """Jobs for pictures, each with names of its own, see `name_apart`."""
    return [
        Job(path, image, stem, params, um_per_px)
        for path, (image, stem) in zip(paths, name_apart(paths), strict=True)
    ]


def name_apart(paths: Sequence[Path]) -> list[tuple[str, str]]:
    """For every picture a name in the table and one for its files.

    The table shows the file name, with as many folders before it as tell equal names apart. Output files are called
    after the file name without suffix; with it where `a.jpg` meets `a.png`; with folders or a number where that is not
    enough. Capitals do not count as a difference, since they do not on every disk.
    """
    full = [path.resolve() for path in paths]
    images = _tell_apart(full, [_join_last(count, "/") for count in range(1, 6)])
    stems = _tell_apart(
        full,
        [lambda path: path.stem, lambda path: path.name, *(_join_last(count, "_") for count in range(2, 6))],
    )
    return list(zip(images, stems, strict=True))


def _join_last(count: int, link: str) -> Callable[[Path], str]:
    """Name a path by its last parts."""

    def name(path: Path) -> str:
        return link.join(path.relative_to(path.anchor).parts[-count:])

    return name


def _tell_apart(paths: Sequence[Path], ways: Iterable[Callable[[Path], str]]) -> list[str]:
    """The first way of naming under which a path differs from all others; at last a number."""
    chosen: dict[int, str] = {}
    for way in ways:
        named = {index: way(path) for index, path in enumerate(paths) if index not in chosen}
        taken = {name.lower() for name in chosen.values()}
        lower = [name.lower() for name in named.values()]
        for index, name in named.items():
            if lower.count(name.lower()) == 1 and name.lower() not in taken:
                chosen[index] = name
    for index, path in enumerate(paths):
        if index not in chosen:
            taken = {name.lower() for name in chosen.values()}
            number = next(n for n in range(2, len(paths) + 3) if f"{path.name}-{n}".lower() not in taken)
            chosen[index] = f"{path.name}-{number}"
    return [chosen[index] for index in range(len(paths))]


def analyse(job: Job, bench: Bench, network: Network) -> Answer:
    """Read, analyse and draw one picture; write its layer image and overlay.

    Raises
    ------
    WriteError
        If the results cannot be written. All other trouble is the picture's and comes back as its `failure`.
    """
    begun = time.perf_counter()
    try:
        micrograph = read(job.path, um_per_px=job.um_per_px)
        read_s = time.perf_counter() - begun
        flat = bench.flatfield
        if flat is not None and flat.shape[:2] != micrograph.shape:
            raise MicrographError(
                f"{job.path}: is {micrograph.shape[1]}x{micrograph.shape[0]} px, the flat field "
                f"{flat.shape[1]}x{flat.shape[0]}: analyse it apart, or without --flatfield"
            )
        # Looked up on the module at call time, as it is a seam for tests.
        table = flakes.find_flakes(micrograph, job.params, network=network, flatfield=flat)
    except MicrographError as error:
        return fail(job, str(error))
    except MemoryError:
        return fail(job, "does not fit into memory: use fewer workers, or cut it into parts")
    except Exception as error:  # one picture's bug must not cost the others their answers
        detail = " ".join(str(error).split())[:200]
        return fail(job, f"unexpected {type(error).__name__} ({detail}): please report it with the picture")
    drawn_from = time.perf_counter()
    table = table.renamed(job.image)
    display = to_display(micrograph)
    write_atomic(bench.out / f"{job.stem}.layers.png", encode_png(table.layer_image()))
    overlay = draw_overlay(display, table)
    with ThreadPoolExecutor(1) as aside:  # compressing lets go of the interpreter
        written = aside.submit(
            lambda: write_atomic(bench.out / f"{job.stem}.overlay.png", encode_png(overlay))
        )
        small = draw_overlay(display, table, longest_px=bench.preview_px)
        plain = _shrink(display.pixels, small.size)
        thumbnails = draw_thumbnails(display, table, most=bench.thumbnails)
        written.result()
    calibration = table.calibration
    brightened = (f"shown {display.gain:.1f} times brighter than taken",) if display.gain > 1 else ()
    return Answer(
        job,
        table.frame,
        outlines=collect_outlines(table),
        shape=micrograph.shape,
        pixel_size_um=None
        if calibration is None
        else (
            um_from_nm(calibration.pixel_size_nm[0]),
            um_from_nm(calibration.pixel_size_nm[1]),
            calibration.source,
        ),
        provenance=table.provenance,
        notes=(*micrograph.notes, *table.provenance.notes, *brightened),
        before=encode_jpeg(plain),
        after=encode_jpeg(small),
        thumbnails={region: encode_jpeg(image) for region, image in thumbnails.items()},
        timings_s={
            "read_s": round(read_s, 4),
            **table.provenance.timings_s,
            "drawing_s": round(time.perf_counter() - drawn_from, 4),
        },
        table=table if bench.keep_tables else None,
    )


def _shrink(pixels: NDArray[np.uint8], size: tuple[int, int]) -> Any:
    from PIL import Image

    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def fail(job: Job, reason: str) -> Answer:
    """An answer that says why there is none."""
    # The path stands in its own column already.
    for prefix in (f"{job.path}: ", f"{job.path} "):
        reason = reason.removeprefix(prefix)
    return Answer(job, failed_frame(FLAKE_COLUMNS, job.image, reason), failure=reason)


def analyse_all(
    jobs: Sequence[Job], bench: Bench, *, network: Network, workers: int
) -> Generator[Answer, None, None]:
    """Analyse pictures as they come.

    Parameters
    ----------
    jobs
        The pictures.
    bench
        What they share.
    network
        Used in this process if there is one picture or one worker; workers load their own.
    workers
        Processes.

    Yields
    ------
    One answer a picture, in the order in which they are done. Closing the iterator, or an exception in it (Ctrl-C),
    ends the workers; what they were at is not answered.

    Raises
    ------
    WriteError
        If results cannot be written: the others would not be either.
    """
    if workers == 1 or len(jobs) == 1:
        for job in jobs:
            yield analyse(job, bench, network)
        return
    with worker_processes(min(workers, len(jobs)), start=_start_worker, given=(bench,)) as pool:
        yield from _collect({pool.submit(_analyse_in_worker, job): job for job in jobs})


def _collect(pending: dict[Future[Answer], Job]) -> Iterator[Answer]:
    left = set(pending)
    while left:
        # A timeout, because on Windows a wait without end cannot be interrupted.
        done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            try:
                answer = future.result()
            except BrokenProcessPool:
                answer = fail(
                    pending[future], "its worker process died, out of memory perhaps: use --workers 1"
                )
            yield answer


_worker: dict[str, Any] = {}


def _start_worker(bench: Bench) -> None:
    _worker["bench"], _worker["network"] = bench, Network.load(bench.weights, threads=1)


def _analyse_in_worker(job: Job) -> Answer:
    return analyse(job, _worker["bench"], _worker["network"])
