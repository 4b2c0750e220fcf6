"""`flatscope atoms`: from electron micrographs to tables and models of their atomic columns."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import click
import pandas as pd

from flatscope.app import show
from flatscope.app.batch import name_apart
from flatscope.app.cli import EXIT_BAD_INPUT, EXIT_FINE, EXIT_SOME_FAILED
from flatscope.app.settings import checked
from flatscope.electron.columns import ColumnParams, find_brighter, find_columns, share_sites
from flatscope.electron.physics.crystals import CRYSTALS
from flatscope.files.read import find_pictures, read, read_stack
from flatscope.files.write import write_atomic
from flatscope.micrograph import Micrograph, MicrographError, Stack, join
from flatscope.report.atoms import draw_columns, draw_strain
from flatscope.report.figures import encode_png
from flatscope.report.study import make_study_page
from flatscope.results import ColumnTable
from flatscope.results.exports.structures import to_cif, to_xyz
from flatscope.units import um_from_nm

Load: TypeAlias = Callable[[], Micrograph | Stack]


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option(
    "--modality",
    type=click.Choice(["stem", "hrtem"]),
    default="stem",
    show_default=True,
    help="ADF-STEM images, or HRTEM focal series of three.",
)
@click.option("--material", required=True, help=f"One of {', '.join(CRYSTALS)}.")
@click.option(
    "--nm-per-px", type=float, default=None, help="Pixel size; the lattice of the material corrects it."
)
@click.option(
    "--brighter",
    default="auto",
    show_default=True,
    help="In ADF-STEM, the sublattice that is the brighter one: metal or chalcogen (a or b in hBN).",
)
@click.option(
    "--defocus-nm",
    default="",
    metavar="LIST",
    help="In HRTEM, defocus of each image, positive for underfocus, such as -3,2,7; ascending without it.",
)
@click.option(
    "--weights", default="columns", show_default=True, help="In HRTEM, a name, or an .onnx file of your own."
)
def atoms(inputs: tuple[str, ...], out: Path, modality: str, nm_per_px: float | None, **settings: Any) -> int:
    """Find and name every atomic column in images of a monolayer (npy, tif, png, mrc; with the extra vendor also dm3,
    dm4, emd, ser).

    ADF-STEM images of several detectors in one scan belong into one call: where medium angles leave it open which
    sublattice is which, another image of the same columns tells. An HRTEM focal series is one file of three images
    (rows and columns last), or three files of one.

    Writes columns.csv (one row a column), NAME.columns.png (rings around the columns), NAME.xyz and NAME.cif (the
    atomic model), report.html and run.json.
    """
    settings["defocus_nm"] = _parse_defocus(settings["defocus_nm"])
    params = checked(ColumnParams, **settings)
    paths = find_pictures(inputs, modality="electron")
    size = None if nm_per_px is None else um_from_nm(nm_per_px)
    jobs = _list_series(paths, size) if modality == "hrtem" else _list_scans(paths, size)
    answers: dict[str, _Answer] = {}
    failed = 0
    try:
        with show.progress("images") as on_progress:
            for done, (name, stem, load) in enumerate(jobs, start=1):
                try:
                    answers[name] = _answer(load, params, name=name, stem=stem, out=out)
                except MicrographError as error:
                    failed += 1
                    click.echo(f"flatscope: {error}", err=True)
                    continue
                on_progress(done, len(jobs))
        if modality == "stem":
            _settle(answers, params, out=out)
    finally:
        # Also after Ctrl-C or on a full disk: what is finished can be read.
        if answers:
            _write(out, answers)
    if not answers:
        return EXIT_BAD_INPUT
    for name, answer in answers.items():
        for note in answer.table.provenance.notes:
            click.echo(f"{name}: {note}", err=True)
    rows = [_summarise(name, answer.table) for name, answer in answers.items()]
    show.print_rows(tuple(rows[0]), [tuple(row.values()) for row in rows])
    click.echo(f"report: {out / 'report.html'}")
    return EXIT_SOME_FAILED if failed else EXIT_FINE


@dataclass(frozen=True)
class _Answer:
    """What was found in an image, how it is shown, and how to read it again."""

    stem: str
    table: ColumnTable
    overlay: bytes
    load: Load


def _parse_defocus(text: str) -> tuple[float, ...]:
    try:
        values = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError:
        raise click.UsageError(f"--defocus-nm {text!r}: give numbers, such as -3,2,7") from None
    if not all(map(math.isfinite, values)):
        raise click.UsageError(f"--defocus-nm {text!r}: give finite numbers")
    return values


def _list_scans(paths: list[Path], um_per_px: float | None) -> list[tuple[str, str, Load]]:
    """Name, stem and content of every image."""
    return [
        (name, stem, partial(read, path, um_per_px=um_per_px, modality="electron"))
        for path, (name, stem) in zip(paths, name_apart(paths), strict=True)
    ]


def _list_series(paths: list[Path], um_per_px: float | None) -> list[tuple[str, str, Load]]:
    """Name, stem and content of every focal series; files of one image are a series together."""
    jobs: list[tuple[str, str, Load]] = []
    lone: list[Stack] = []
    for path, (name, stem) in zip(paths, name_apart(paths), strict=True):
        load = partial(read_stack, path, um_per_px=um_per_px)
        try:
            stack = load()
        except MicrographError:
            stack = None  # said when its turn comes
        if stack is not None and len(stack) == 1 and len(paths) > 1:
            lone.append(stack)
        else:
            jobs.append((name, stem, load))
    if lone:
        first = lone[0]
        jobs.append((f"{first.name} and {len(lone) - 1} more", Path(first.source).stem, partial(join, lone)))
    return jobs


def _answer(load: Load, params: ColumnParams, *, name: str, stem: str, out: Path) -> _Answer:
    """Find the columns of one image or series and write what belongs to it alone."""
    image = load()
    table = find_columns(image, params).renamed(name)
    overlay = encode_png(draw_columns(image, table))
    write_atomic(out / f"{stem}.columns.png", overlay)
    write_atomic(out / f"{stem}.xyz", to_xyz(table.model, comment=f"flatscope, {name}, {params.material}"))
    write_atomic(out / f"{stem}.cif", to_cif(table.model, name=stem))
    return _Answer(stem, table, overlay, load)


def _settle(answers: dict[str, _Answer], params: ColumnParams, *, out: Path) -> None:
    """Images whose sublattices are as bright as each other take them from one of another detector in the same scan."""
    sure = {name: answer.table for name, answer in answers.items() if answer.table.sublattices_sure}
    for name, answer in list(answers.items()):
        if name in sure:
            continue
        partner = next((other for other, table in sure.items() if share_sites(answer.table, table)), None)
        if partner is not None:
            known = replace(params, brighter=find_brighter(answer.table, sure[partner]))
            note = f"sublattices are those of {partner}"
            again = partial(_load_with, answer.load, note)
            answers[name] = _answer(again, known, name=name, stem=answer.stem, out=out)


def _load_with(load: Load, note: str) -> Micrograph | Stack:
    image = load()
    return replace(image, notes=(*image.notes, note))


def _write(out: Path, answers: dict[str, _Answer]) -> None:
    tables = {name: answer.table for name, answer in answers.items()}
    figures: dict[str, bytes] = {}
    for name, answer in answers.items():
        figures[f"{name}: columns"] = answer.overlay
        figures[f"{name}: strain, distortions of the scan included"] = draw_strain(answer.table.strain)
    frames = [table.to_csv() for table in tables.values()]
    head = frames[0].split("\n", 1)[0] + "\n"
    write_atomic(out / "columns.csv", head + "".join(text.split("\n", 1)[1] for text in frames))
    record = {name: table.provenance.to_dict() for name, table in tables.items()}
    write_atomic(out / "run.json", json.dumps(record, indent=2, default=str))
    notes = [f"{name}: {note}" for name, table in tables.items() for note in table.provenance.notes]
    notes.append(
        "Rings: orange and blue for the two sublattices, green where the column is not the usual one, red where "
        "uncertain; gray crosses: rejected. Positions in nm "
        "count from the centre of the first pixel, by the lattice constant of the material. Strain is against the "
        "mean lattice; drift and flyback of a scan look the same."
    )
    rows = [_summarise(name, table) for name, table in tables.items()]
    write_atomic(out / "report.html", make_study_page("Atomic columns", rows, figures, notes=notes))


def _summarise(name: str, table: ColumnTable) -> dict[str, str]:
    found = table.found
    counts = pd.Series(found["species"]).value_counts()
    return {
        "image": name,
        "columns": str(len(found)),
        "species": ", ".join(f"{count} {species}" for species, count in counts.items()),
        "uncertain": str(int((found["status"] == "uncertain").sum())),
        "rejected": str(len(table) - len(found)),
        "nm/px": f"{table.calibration.pixel_size_nm[0]:.5f}",
        "lattice px": f"{table.lattice_px:.3f}",
        "sigma pm": f"{1e3 * found['sigma_nm'].median():.1f}" if len(found) else "",
    }
