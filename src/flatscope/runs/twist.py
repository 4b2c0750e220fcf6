"""The run that measures twist angles: layers of each picture, their angles, what is drawn and written of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.files.annotations import LABEL_SUFFIXES
from flatscope.files.layer_labels import read_layer_labels
from flatscope.files.read import OWN_SUFFIXES, find_pictures, read
from flatscope.inference.registry import hash_file, resolve
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, MicrographError
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.twist import TwistParams, measure_twist
from flatscope.report.figures import Display, encode_png, to_display
from flatscope.report.study import make_study_page
from flatscope.report.twist import draw_histogram, draw_twist
from flatscope.results import (
    MOST_NUMBERED,
    REJECTED_LABEL,
    THICK_LABEL,
    THIN_LABEL,
    TWIST_COLUMNS,
    TwistTable,
    failed_frame,
)
from flatscope.results.table import frame_to_csv
from flatscope.runs.items import Item
from flatscope.runs.settings import as_plain, checked
from flatscope.runs.task import Answer, Content, Finished, Task
from flatscope.units import nm_from_um

_LEAST_SECOND_LAYER_PX = (
    30  # second layers are small: the flake finder is asked for regions down to this area
)
_LAYER_NUMBERS = {*range(MOST_NUMBERED + 1), THIN_LABEL, THICK_LABEL, REJECTED_LABEL}
_LABEL_COLOURS = np.array([[40, 40, 48], [120, 115, 60], [60, 95, 120]], np.uint8)
_DRAWN = tuple(ending for ending in OWN_SUFFIXES if ending not in (".layers.png", ".mask.png"))
_SHOWN = (
    *("image", "flake_id", "row_px", "col_px", "twist_deg", "sigma_deg"),
    *("twist_fold30_deg", "moire_nm", "status", "reason"),
)
_SHOWN_WITHOUT = ("image", "flake_id", "row_px", "col_px", "area_2l_px", "status", "reason")
_NOTE = (
    "Yellow: outline of the crystal and axes to its corners; blue: the same of its second layer; gray rings: second "
    "layers without an angle. Angles in [0, 60]° with 1-sigma errors; twist_fold30_deg counts θ and 60° − θ as one. "
    "Moiré period a / (2 sin(θ/2))."
)


@dataclass(frozen=True)
class PictureParams:
    """What `measure_twist` is given besides its own settings.

    Parameters
    ----------
    oxide_nm
        Nominal SiO2 thickness, for micrographs.
    substrate
        Films from the top with their nm, then the base, as for `flatscope flakes`, for micrographs.
    um_per_px
        Pixel size, where the files do not state it.
    weights
        Of the flake finder: name of shipped weights, or an .onnx file.
    labels
        INPUT are label images: 0 rest, 1 monolayer, 2 bilayer.
    fold
        Range of angles: 60, or 30 where θ and 60° − θ count as one.
    """

    oxide_nm: float | None = None
    substrate: str = "SiO2 / Si"
    um_per_px: float | None = None
    weights: str = "flakes"
    labels: bool = False
    fold: Literal["60", "30"] = "60"

    def __post_init__(self) -> None:
        if self.um_per_px is not None and not 0 < self.um_per_px < 1e4:
            raise ValueError(f"um_per_px of {self.um_per_px:g} is no pixel size: give µm per pixel")


@dataclass(frozen=True)
class Given:
    """What all pictures of a run share."""

    params: TwistParams
    picture: PictureParams

    def __post_init__(self) -> None:
        self.finder()

    def finder(self) -> FlakeParams:
        """Settings of the flake finder."""
        return FlakeParams(
            self.params.material,
            self.picture.oxide_nm,
            substrate=self.picture.substrate,
            min_area_px=_LEAST_SECOND_LAYER_PX,
        )


@dataclass(frozen=True)
class Measured:
    """The heavy part of one picture: its twist angles and the layer numbers they were measured on."""

    table: TwistTable
    layers: NDArray[np.uint8]


def make_task(params: TwistParams, picture: PictureParams) -> Task:
    """The task of measuring twist angles.

    Raises
    ------
    SettingsError
        If the settings make no sense together.
    """
    network = {} if picture.labels else load_network(picture.weights).describe()
    return Task(
        "twist",
        as_plain(params, picture),
        alone=measure,
        conclude=draw,
        views=make_views,
        endings=(".twist.png",),
        view_names=("twist.csv", "report.html"),
        given=checked(Given, params=params, picture=picture),
        tabulate=tabulate,
        kinds=(Measured,),
        weights=network,
        digests={}
        if params.method == "edges"
        else {"orientation network": hash_file(resolve("orientation"))},
    )


def find_label_images(inputs: Iterable[str]) -> list[Path]:
    """List label images, those that flatscope wrote included; what it drew for people is left out.

    Raises
    ------
    MicrographError
        If there are none.
    """
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
        raise MicrographError(f"{', '.join(inputs)}: the folder holds no label images: .png or .tif")
    return found


@cache
def load_network(weights: str) -> Network:
    """The flake finder's network, with one thread."""
    return Network.load(weights, threads=1)


def measure(item: Item, given: Given) -> Measured:
    """Find the layers of one picture and measure its angles."""
    path, picture = item.sources[0], given.picture
    if picture.labels:
        size = None if picture.um_per_px is None else (nm_from_um(picture.um_per_px),) * 2
        calibration = None if size is None else Calibration(size, "user")
        layers = read_layer_labels(path)
        table = measure_twist(layers, given.params, calibration=calibration, image=item.name)
    else:
        micrograph = read(path, um_per_px=picture.um_per_px)
        if set(np.unique(micrograph.pixels[::4, ::4]).tolist()) <= _LAYER_NUMBERS:
            raise MicrographError(f"{path}: holds layer numbers, not a photograph: pass --labels")
        flakes = find_flakes(micrograph, given.finder(), network=load_network(picture.weights))
        table = measure_twist(flakes, given.params).renamed(item.name)
        layers = flakes.layer_image()
    if picture.fold == "30":  # the angle stands in twist_fold30_deg alone
        table = replace(table, frame=table.frame.assign(twist_deg=np.nan))
    return Measured(table, layers)


def tabulate(item: Item, part: Measured, shared: None, given: Given) -> dict[str, TwistTable]:
    """The angles of one picture."""
    return {"twist": part.table}


def show_labels(layers: NDArray[np.uint8]) -> Display:
    """A label image in colours."""
    return Display(_LABEL_COLOURS[np.where(layers <= 2, layers, 2)])


def draw(item: Item, part: Measured, shared: None, given: Given) -> tuple[Answer, dict[str, bytes]]:
    """The angles, drawn over their picture."""
    if given.picture.labels:
        display = show_labels(part.layers)
    else:
        display = to_display(read(item.sources[0], um_per_px=given.picture.um_per_px))
    overlay = encode_png(draw_twist(display, part.layers, part.table.frame))
    facts = {"second_layers": len(part.table), "with_an_angle": len(part.table.accepted)}
    answer = Answer({"twist": part.table}, {"overlay": overlay}, facts, part.table.provenance.notes)
    return answer, {".twist.png": overlay}


def join_rows(run: Finished) -> pd.DataFrame:
    """The rows of all pictures in the order of the inputs, failed ones last."""
    frames = [answer.tables["twist"].frame for _, answer in run.answers()]
    frames += [failed_frame(TWIST_COLUMNS, name, why) for name, why in run.failures.items()]
    return TwistTable.conform(pd.concat([frame.astype(object) for frame in frames], ignore_index=True))


def make_views(run: Finished) -> Iterator[tuple[str, Content]]:
    """Table and report."""
    frame = join_rows(run)
    yield "twist.csv", frame_to_csv(frame)
    fold = run.task.settings["fold"] == "30"
    has_angle = frame["twist_fold30_deg"].notna()
    figures = {"Angles of the sample": draw_histogram(frame[has_angle], fold=fold)} if has_angle.any() else {}
    figures |= {item.name: answer.figures["overlay"] for item, answer in run.answers()}
    failed = frame["status"] == "failed"
    without = frame[~has_angle & ~failed]
    folded = {
        f"{len(without)} without: {count_reasons(without)}": _say_rows(without, _SHOWN_WITHOUT),
        f"{int(failed.sum())} inputs failed": _say_rows(frame[failed], ("image", "reason")),
    }
    page = make_study_page(
        "Twist angles",
        _say_rows(frame[has_angle], _SHOWN),
        figures,
        notes=(_NOTE, f"{int(has_angle.sum())} of {int((~failed).sum())} second layers have an angle."),
        folded={caption: rows for caption, rows in folded.items() if rows},
    )
    yield "report.html", page


def count_reasons(without: pd.DataFrame) -> str:
    """How many second layers have no angle for each reason, the commonest first."""
    counts = without["reason"].str.split(":").str[0].value_counts()
    return ", ".join(f"{count} {name}" for name, count in counts.items())


def _say_rows(frame: pd.DataFrame, names: tuple[str, ...]) -> list[dict[str, str]]:
    """Rows of the report, those that are accepted first."""
    order = frame["status"].map({"accepted": 0}).fillna(1).argsort(kind="stable")
    return [{name: say_number(row[name]) for name in names} for row in frame.iloc[order].to_dict("records")]


def say_number(value: object) -> str:
    """A number to three digits, whole from a hundred on; nothing where it is unknown."""
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
