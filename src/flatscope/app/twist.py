"""`flatscope twist`: from pictures or label images to the twist angles of their stacked crystals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import click
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.app import show
from flatscope.app.batch import name_apart
from flatscope.app.cli import EXIT_BAD_INPUT, EXIT_FINE, EXIT_SOME_FAILED
from flatscope.app.settings import checked
from flatscope.files.annotations import LABEL_SUFFIXES
from flatscope.files.layer_labels import read_layer_labels
from flatscope.files.read import find_pictures, read
from flatscope.files.write import write_atomic
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.materials import MATERIALS
from flatscope.optical.orientation import METHODS
from flatscope.optical.twist import TwistParams, measure_twist
from flatscope.parallel import map_in_order
from flatscope.report.figures import Display, encode_png, to_display
from flatscope.report.study import make_study_page
from flatscope.report.twist import draw_histogram, draw_twist
from flatscope.results import REJECTED_LABEL, THICK_LABEL, TwistTable
from flatscope.units import nm_from_um

_LEAST_SECOND_LAYER_PX = 30
"""Second layers are small: the flake finder is asked for regions down to this area."""
_FEW = 8
"""So few pictures are done before a second process has started."""
_DRAWN = (".twist.png", ".overlay.png")
_LAYER_NUMBERS = {*range(7), THICK_LABEL, REJECTED_LABEL}
_LABEL_COLOURS = np.array([[40, 40, 48], [120, 115, 60], [60, 95, 120]], np.uint8)


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the results.")
@click.option("--labels", is_flag=True, help="INPUT are label images: 0 rest, 1 monolayer, 2 bilayer.")
@click.option("--material", default="MoS2", show_default=True, help=f"One of {', '.join(MATERIALS)}.")
@click.option("--oxide-nm", type=float, default=None, help="Nominal SiO2 thickness, for micrographs.")
@click.option("--um-per-px", type=float, default=None, help="Pixel size, where the files do not state it.")
@click.option("--weights", default="flakes", show_default=True, help="Shipped weights, or an .onnx file.")
@click.option(
    "--method",
    type=click.Choice(METHODS),
    default="auto",
    show_default=True,
    help="How a layer's orientation is told: by its straight edges, by a network, or by both, the surer weighing more.",
)
@click.option(
    "--fold", type=click.Choice(["60", "30"]), default="60", show_default=True, help="Range of angles."
)
@click.option("--workers", type=click.IntRange(1), default=2, show_default=True, help="Pictures at a time.")
def twist(
    inputs: tuple[str, ...], out: Path, labels: bool, material: str, method: str, **options: Any
) -> int:
    """Measure the twist angle of every crystal with a second layer in pictures (files, folders, globs).

    Writes twist.csv (one row a second layer; without an angle it has the reason), NAME.twist.png (outlines, axes and
    angles) and report.html. Angles lie in [0, 60]°: 0° where both layers point the same way, 60° where they point
    opposite ways; --fold 30 counts θ and 60° − θ as one.
    """
    params = checked(TwistParams, material=material, method=method)
    fold, workers = options.pop("fold"), options.pop("workers")
    look: _Look = (
        _LabelImages(options["um_per_px"]) if labels else _Micrographs.given(material=material, **options)
    )
    paths = _find_label_images(inputs) if labels else find_pictures(inputs)
    jobs = [
        _Job(path, name, stem, look, params, fold == "30")
        for path, (name, stem) in zip(paths, name_apart(paths), strict=True)
    ]
    tables: list[TwistTable] = []
    overlays: dict[str, bytes] = {}
    failed = 0
    try:
        with show.progress("pictures") as on_progress:
            workers = workers if len(jobs) > _FEW else 1
            answers = map_in_order(_measure, jobs, workers=workers, on_progress=on_progress)
            for job, answer in zip(jobs, answers, strict=True):
                if isinstance(answer, str):
                    failed += 1
                    click.echo(f"flatscope: {answer}", err=True)
                    continue
                table, picture = answer
                tables.append(table)
                write_atomic(out / f"{job.stem}.twist.png", picture)
                overlays[job.name] = picture
    finally:
        # Also after Ctrl-C or on a full disk: what is finished can be read.
        if tables:
            _write(out, _join(tables), overlays, fold=fold)
    if not tables:
        return EXIT_BAD_INPUT
    _tell(_join(tables).frame, len(tables), out)
    return EXIT_SOME_FAILED if failed else EXIT_FINE


def _find_label_images(inputs: tuple[str, ...]) -> list[Path]:
    """Label images, those that flatscope wrote included; what it drew for people is left out."""
    found: list[Path] = []
    for given in map(Path, inputs):
        if given.is_dir():
            found += sorted(
                path
                for path in given.iterdir()
                if path.suffix.lower() in LABEL_SUFFIXES and not path.name.endswith(_DRAWN)
            )
        else:
            found += [given] if given.exists() else find_pictures([given])
    if not found:
        raise MicrographError(f"{inputs[0]}: the folder holds no label images: .png or .tif")
    return found


class _Look(Protocol):
    """Where layer numbers come from."""

    def at(self, path: Path) -> tuple[Display, NDArray[np.uint8], Calibration | None]:
        """What is shown, the layer numbers and the pixel size."""


@dataclass(frozen=True)
class _Micrographs:
    """Layer numbers from `find_flakes`."""

    params: FlakeParams
    weights: str
    um_per_px: float | None

    @classmethod
    def given(
        cls, *, material: str, oxide_nm: float | None, um_per_px: float | None, weights: str
    ) -> _Micrographs:
        """Settings that make sense, and weights that exist."""
        params = checked(
            FlakeParams, material=material, oxide_nm=oxide_nm, min_area_px=_LEAST_SECOND_LAYER_PX
        )
        _load(weights)
        return cls(params, weights, um_per_px)

    def at(self, path: Path) -> tuple[Display, NDArray[np.uint8], Calibration | None]:
        """What is shown, the layer numbers and the pixel size."""
        micrograph: Micrograph = read(path, um_per_px=self.um_per_px)
        if set(np.unique(micrograph.pixels[::4, ::4]).tolist()) <= _LAYER_NUMBERS:
            raise MicrographError(f"{path}: holds layer numbers, not a photograph: pass --labels")
        table = find_flakes(micrograph, self.params, network=_load(self.weights))
        return to_display(micrograph), table.layer_image(), micrograph.calibration


@cache
def _load(weights: str) -> Network:
    return Network.load(weights)


@dataclass(frozen=True)
class _LabelImages:
    """Layer numbers made elsewhere."""

    um_per_px: float | None

    def at(self, path: Path) -> tuple[Display, NDArray[np.uint8], Calibration | None]:
        """What is shown, the layer numbers and the pixel size."""
        labels = read_layer_labels(path)
        shown = _LABEL_COLOURS[np.where(labels <= 2, labels, 2)]
        size = None if self.um_per_px is None else (nm_from_um(self.um_per_px),) * 2
        return Display(shown), labels, None if size is None else Calibration(size, "user", 0.0)


@dataclass(frozen=True)
class _Job:
    """One picture: its name in the table, what its output files are called, and how it is looked at."""

    path: Path
    name: str
    stem: str
    look: _Look
    params: TwistParams
    folded: bool


def _measure(job: _Job) -> tuple[TwistTable, bytes] | str:
    """The table of a picture and its overlay (PNG), or what is wrong with it."""
    try:
        display, layers, calibration = job.look.at(job.path)
    except MicrographError as error:
        return str(error)
    table = measure_twist(layers, job.params, calibration=calibration, image=job.name)
    if job.folded:  # the angle stands in twist_fold30_deg alone
        table = replace(table, frame=table.frame.assign(twist_deg=np.nan))
    return table, encode_png(draw_twist(display, layers, table.frame))


def _write(out: Path, table: TwistTable, overlays: dict[str, bytes], *, fold: str) -> None:
    frame = table.frame
    write_atomic(out / "twist.csv", table.to_csv())
    shown = [
        "image",
        "flake_id",
        "twist_deg",
        "sigma_deg",
        "twist_fold30_deg",
        "moire_nm",
        "status",
        "reason",
    ]
    rows = [
        {str(name): _words(value) for name, value in row.items()} for row in frame[shown].to_dict("records")
    ] or [dict.fromkeys(shown, "")]
    figures = {"Angles of the sample": draw_histogram(frame, fold=fold == "30"), **overlays}
    notes = (
        "Yellow: outline of the crystal and an axis to one of its corners; blue: the same of its second layer. Angles "
        "in [0, 60]° with 1-sigma errors; twist_fold30_deg counts θ and 60° − θ as one. Moiré period a / (2 sin(θ/2)).",
    )
    write_atomic(out / "report.html", make_study_page("Twist angles", rows, figures, notes=notes))


def _join(tables: list[TwistTable]) -> TwistTable:
    """All rows in one table; those without a row would turn columns of numbers into columns of anything."""
    some = [table for table in tables if len(table)] or tables[:1]
    return replace(some[0], frame=pd.concat([table.frame for table in some], ignore_index=True))


def _words(value: object) -> str:
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.3g}"
    return str(value)


def _tell(frame: pd.DataFrame, pictures: int, out: Path) -> None:
    good = frame[frame["twist_fold30_deg"].notna()]
    if len(good):
        angle = good["twist_deg"].where(good["twist_deg"].notna(), good["twist_fold30_deg"])
        show.print_rows(
            ("picture", "row", "col", "twist", "sigma", "moiré nm", "status"),
            [
                (
                    row["image"],
                    f"{row['row_px']:.0f}",
                    f"{row['col_px']:.0f}",
                    f"{value:.2f}°",
                    f"{row['sigma_deg']:.2f}°",
                    f"{_words(row['moire_nm'])} ± {_words(row['moire_sigma_nm'])}",
                    row["status"],
                )
                for value, row in zip(angle, good.to_dict("records"), strict=True)
            ],
        )
    reasons = frame[frame["twist_fold30_deg"].isna()]["reason"]
    without = Counter(str(reason).partition(":")[0] for reason in reasons).most_common()
    if len(frame) == 0:
        click.echo(f"no crystal with a second layer in {pictures} picture{'s' * (pictures != 1)}")
    else:
        why = "".join(f", {count} {name}" for name, count in without)
        click.echo(f"{len(good)} of {len(frame)} second layers measured{why}")
    click.echo(f"report: {out / 'report.html'}")
