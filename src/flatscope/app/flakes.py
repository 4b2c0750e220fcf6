"""`flatscope flakes`: from pictures on disk to a folder with the answers."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from flatscope.app import cli, settings, show
from flatscope.app.batch import Answer, Bench, Job, analyse_all, plan_jobs
from flatscope.app.calibrate import read_known
from flatscope.app.outputs import RunFiles
from flatscope.files.read import find_pictures, read
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical.background import estimate_flatfield, flatfield_from
from flatscope.optical.flakes import FlakeParams

_FLATFIELD_PICTURES = 15
_FEWEST_FOR_FLATFIELD = 5
_DEFAULT_WORKERS = 2


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add a flag for every setting to a command; their values arrive in ``table``-style keywords of the same name."""
    for kind in (settings.RunParams, FlakeParams):
        for entry, value_type, words in reversed(settings.list_flags(kind)):
            default = settings.show_default(entry)
            words += f"  [default: {default}]" if default else ""
            # No default for click, so that only what was given beats the settings file.
            flag = "--" + entry.name.replace("_", "-")
            command = click.option(flag, entry.name, type=value_type, default=None, help=words)(command)
    return command


@click.command(short_help="Find flakes in pictures and count their layers.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Folder for the results; made if missing."
)
@settings_options
@click.option(
    "--settings",
    "settings_file",
    type=click.Path(path_type=Path),
    help="JSON file with settings (see: flatscope schema flakes), or the run.json of an earlier run. Flags beat it.",
)
@click.option(
    "--calibrate",
    type=click.Path(path_type=Path),
    help="JSON file with a few regions of known layer number: refits the set-up.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=None,
    help="Processes for several pictures.  [default: 2, or the number of cores if fewer]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON instead of a table.")
@click.option("--timings", is_flag=True, help="Print where the time went.")
def flakes(inputs: tuple[str, ...], **options: Any) -> int:
    """Find flakes in pictures (files, folders, globs) and count their layers.

    Writes flakes.csv (one row a region), flakes.geojson (outlines), report.html, run.json and, for each picture,
    NAME.layers.png (0 substrate, 1 to 6 layers, 254 thick, 255 rejected) and NAME.overlay.png. A picture that cannot
    be analysed is a row with status "failed"; one without flakes has no row, and its reason in run.json and the report.
    """
    begun = time.perf_counter()
    params, run = gather(options)
    jobs = plan_jobs(find_pictures(inputs), params, um_per_px=run.um_per_px)
    workers = options["workers"] or min(_DEFAULT_WORKERS, os.cpu_count() or 1)
    alone = workers == 1 or len(jobs) == 1
    network = Network.load(run.weights, threads=workers if alone else 1)
    params, flat = choose_light(params, run.flatfield, [job.path for job in jobs])
    if options["calibrate"] is not None:
        known = read_known(options["calibrate"], flatfield=flat, light_order=params.light_order)
        params = replace(params, known=(*params.known, *known))
    jobs = [replace(job, params=params) for job in jobs]
    bench = Bench(
        out=options["out"],
        weights=run.weights,
        flatfield=flat,
        # A page with a hundred pictures must still open on a phone.
        preview_px=900 if len(jobs) <= 40 else 640,
        thumbnails=24 if len(jobs) <= 40 else 8,
    )
    files = RunFiles(
        out=options["out"],
        jobs=jobs,
        settings=settings.as_plain(params, run),
        weights=network.card.name,
        weights_sha256=network.sha256,
        command=("flatscope", *sys.argv[1:]),
        title=f"{params.material} flakes in {len(jobs)} picture{'s' if len(jobs) > 1 else ''}",
    )
    code = work_through(files, bench, network=network, workers=workers)
    if code == cli.EXIT_BAD_INPUT:
        return code
    if options["as_json"]:
        show.print_json(files)
    else:
        show.print_summary(files)
    if options["timings"]:
        show.print_timings(files, total_s=time.perf_counter() - begun)
    return code


def gather(options: dict[str, Any]) -> tuple[FlakeParams, settings.RunParams]:
    """Settings from file and flags.

    Raises
    ------
    SettingsError
        If one makes no sense, or two contradict each other.
    """
    source = options.get("settings_file")
    params, run = FlakeParams(), settings.RunParams()
    if source is not None:
        params, run = settings.make_params(settings.read_settings(source), where=str(source))
    flags: list[dict[str, Any]] = [
        {
            entry.name: options[entry.name]
            for entry, _, _ in settings.list_flags(kind)
            if options.get(entry.name) is not None
        }
        for kind in (FlakeParams, settings.RunParams)
    ]
    if flags[1].get("flatfield") == "none" and flags[0].get("light_order"):
        raise settings.SettingsError(
            "--flatfield none takes the light as even, --light-order follows it: give one of them"
        )
    try:
        return replace(params, **flags[0]), replace(run, **flags[1])
    except ValueError as error:
        raise settings.SettingsError(f"command line: {error}") from None


def choose_light(
    params: FlakeParams, choice: str | None, paths: Sequence[Path]
) -> tuple[FlakeParams, NDArray[np.float32] | None]:
    """What `--flatfield` means: settings that follow the light or take it as even, and the flat field of the run.

    Raises
    ------
    MicrographError
        If the file cannot be used.
    """
    if choice == "none":
        return replace(params, light_order=0), None
    if choice is None:
        return params, None
    if choice == "auto":
        return params, _flatfield_of(paths)
    frame = read(choice)
    return params, flatfield_from(frame, frame.shape)


def _flatfield_of(paths: Sequence[Path]) -> NDArray[np.float32] | None:
    """The flat field that the pictures show themselves; None where they are too few."""
    if len(paths) < _FEWEST_FOR_FLATFIELD:
        return None
    by_shape: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
    # Evenly spread over the run, and a few more than needed, as some may be of another size or damaged.
    for index in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _FLATFIELD_PICTURES)).astype(int)):
        try:
            picture = read(paths[index])
        except MicrographError:
            continue  # it gets its own row when its turn comes
        by_shape.setdefault(picture.shape, []).append(picture.rgb())
    if len(by_shape) != 1:
        sizes = ", ".join(f"{cols}x{rows}" for rows, cols in by_shape)
        raise MicrographError(
            f"--flatfield auto needs pictures of one size, these have {sizes or 'none'}: "
            "analyse them apart, or leave it out"
        )
    pictures = next(iter(by_shape.values()))
    return estimate_flatfield(pictures) if len(pictures) >= _FEWEST_FOR_FLATFIELD else None


def work_through(files: RunFiles, bench: Bench, *, network: Network, workers: int) -> int:
    """Analyse all pictures and write everything, also if it is cut short.

    Returns
    -------
    Exit code: 0, 1 if some pictures failed, 2 if all did.

    Raises
    ------
    KeyboardInterrupt
        Passed on, after what was finished is written.
    WriteError
        If the disk is full; what was written before stays.
    """
    jobs: Sequence[Job] = files.jobs
    try:
        coming = analyse_all(jobs, bench, network=network, workers=workers)
        with closing(coming) as answers, _progress(len(jobs)) as tick:
            for answer in answers:
                files.add(answer)
                if answer.failure:
                    click.echo(f"flatscope: {answer.job.path}: {answer.failure}", err=True)
                tick(answer)
    except KeyboardInterrupt:
        if files.answers:
            files.write_all(complete=False)
            click.echo(
                f"flatscope: {len(files.answers)} of {len(jobs)} pictures are finished; "
                f"the results in {files.out} cover them",
                err=True,
            )
        raise
    except OSError:
        if files.answers:
            # The table is small and may still fit where a picture did not.
            with _quietly():
                files.write_all(complete=False)
        raise
    if len(files.failed) == len(jobs):
        if len(jobs) > 1:
            files.write_all(complete=True)
            click.echo(f"flatscope: none of the {len(jobs)} pictures could be analysed", err=True)
        return cli.EXIT_BAD_INPUT
    files.write_all(complete=True)
    return cli.EXIT_SOME_FAILED if files.failed else cli.EXIT_FINE


@contextmanager
def _quietly() -> Iterator[None]:
    try:
        yield
    except OSError:
        return


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Answer], None]]:
    """A progress bar where a person looks on; nothing in a file or a pipe."""
    if total < 2 or not sys.stderr.isatty():
        yield lambda answer: None
        return
    with show.progress("pictures") as update:
        done = 0

        def tick(answer: Answer) -> None:
            nonlocal done
            done += 1
            update(done, total)

        yield tick
