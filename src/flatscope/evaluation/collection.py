"""Pictures of many laboratories, what their people marked in them, and sheets to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

from flatscope.files.annotations import read_labels
from flatscope.files.read import find_pictures, read
from flatscope.micrograph import MicrographError
from flatscope.optical.materials import find_material
from flatscope.optical.observations import MOST_LAYERS
from flatscope.report.figures import draw_overlay, load_font, to_display
from flatscope.results import FlakeTable

Shape = Literal["outline", "box", "place"]

_THIN_NM = 4.0  # MaskTerial's masks mark flakes up to about this thickness, and no number
_MOST_NUMBERED = 20  # larger layer numbers are called thick whatever the material
_PLACE_RADIUS = 0.004  # radius of a marked place, as a share of the picture's width


@dataclass(frozen=True)
class Laboratory:
    """The pictures of one laboratory, and what its people say of them.

    Parameters
    ----------
    name
        Its folder below the data or below `labs`, unless `folder` names another one.
    material
        As stated, or as the colours suggest.
    oxide_nm
        Nominal oxide, or None if nobody states it.
    source, licence
        Repository, and its licence.
    um_per_px
        Pixel size, where it is stated.
    label
        What the marks say where no `NAME.classes.json` says it.
    pictures
        Which files of the folder.
    folder
        Name of the folder, if it is another one.
    places
        Picture to places (label, row, col), as shares of height and width: main flakes that the file's name or
        letters in the picture describe.
    """

    name: str
    material: str
    oxide_nm: float | None
    source: str
    licence: str
    um_per_px: float | None = None
    label: str = "thin"
    pictures: str = "*"
    folder: str = ""
    places: dict[str, tuple[tuple[str, float, float], ...]] = field(default_factory=dict)

    def find_folder(self, data: Path) -> Path:
        """Where its pictures lie, whether they are there or not."""
        name = self.folder or self.name
        return data / name if (data / name).is_dir() else data / "labs" / name


_PLACES = {
    "bl_1_bl_a_50x.jpg": (("BL", 0.66, 0.543),),
    "bl_3_bl_a_50x.jpg": (("BL", 0.513, 0.496),),
    "flg_1_b_50x.jpg": (("FL", 0.69, 0.533),),
    "mixed_1_mixed_a_20x.jpg": (("ML", 0.769, 0.657), ("BL", 0.672, 0.649), ("FL", 0.598, 0.537)),
    "ml_1_ml_a_50x.jpg": (("ML", 0.671, 0.587),),
    "ml_3_ml_a_50x.jpg": (("ML", 0.567, 0.638),),
}
_MASKTERIAL = ("Jaluus/MaskTerial", "MIT", 0.384)
_KLEINLAB = ("kleinlabphys/autoflakedet", "Apache-2.0")
_ISLANDLAB = ("islandlab-unlv/Universal-image-segementation", "MIT")
# What the README.md of shared/data says of materials, oxides and pixel sizes.
LABORATORIES = {
    lab.name: lab
    for lab in (
        Laboratory("graphene", "graphene", 90.0, *_MASKTERIAL, pictures="????????.jpg"),
        Laboratory("wse2", "WSe2", 70.0, *_MASKTERIAL),
        Laboratory("ws2", "WS2", None, *_MASKTERIAL),
        Laboratory("mose2", "MoSe2", None, *_MASKTERIAL),
        Laboratory("hbn", "hBN", None, *_MASKTERIAL),
        Laboratory(
            "cvd_mos2", "MoS2", 285.0, "yifanlu-bot/twisted-bilayer-MoS2-angle-detection", "none stated"
        ),
        Laboratory("kleinlab_hbn", "hBN", None, *_KLEINLAB, label="7-10"),
        Laboratory("kleinlab_graphene", "graphene", 285.0, *_KLEINLAB),
        Laboratory(
            "henriksen", "graphene", 290.0, "Henriksen-Lab/ESE499_FlakeFinding", "none stated", places=_PLACES
        ),
        Laboratory("iit_ws2", "WS2", None, "dpoteryayev/flakedetectron", "GPL-3.0"),
        Laboratory("galbar14", "graphene", None, "Galbar14/FlakeFinder", "none stated"),
        Laboratory(
            "islandlab_graphene", "graphene", None, *_ISLANDLAB, folder="graphene", pictures="large_*.jpg"
        ),
        Laboratory("klayoutclaw", "graphene", None, "YongXie-ICMM/KlayoutClaw", "MIT"),
        # Nobody states the material of the rest: the colours of thick crystals suggest it.
        Laboratory("karolync", "MoS2", None, "karolync/Monolayer-Detection", "CC BY 4.0", label="ML"),
        Laboratory("lubolin_cvd", "MoS2", None, "LuBolin/2D_Material_Image_Processor", "GPL-3.0"),
        Laboratory("derangedhk417", "graphene", None, "derangedhk417/Monolayer-Identifier", "MIT"),
        Laboratory("islandlab", "graphene", None, *_ISLANDLAB),
        Laboratory("umn_guilfoile", "graphene", None, "isaguilfoile/2D-Material-Search", "MIT"),
        Laboratory("tdmms", "graphene", None, "tdmms/tdmms", "BSD-3-Clause"),
        Laboratory("uark", "graphene", None, "uark-cviu/quantumflake", "MIT"),
    )
}


@dataclass(frozen=True)
class Mark:
    """A region that the people of a laboratory marked.

    Parameters
    ----------
    label
        "ML", "BL", "FL" (three or more), "thin" (no thicker than 4 nm, twelve layers of graphene) or "7-10".
    pixels
        Shape (rows, cols), bool.
    shape
        How exactly `pixels` follow it.
    """

    label: str
    pixels: NDArray[np.bool_]
    shape: Shape

    def is_right(self, name: str, material: str) -> bool:
        """Whether one number, or "thick" (more than can be counted), agrees with the label."""
        thin = range(1, int(_THIN_NM / find_material(material).layer_nm) + 1)
        numbers = {
            "ML": range(1, 2),
            "BL": range(2, 3),
            "FL": range(3, _MOST_NUMBERED),
            "7-10": range(7, 11),
            "thin": thin,
        }[self.label]
        return int(name) in numbers if name.isdigit() else numbers.stop > MOST_LAYERS + 1


def choose_laboratories(data: Path, names: Sequence[str]) -> list[Laboratory]:
    """The laboratories of these names, or all whose pictures are there.

    Raises
    ------
    MicrographError
        If the folder or a laboratory is missing.
    """
    if not data.is_dir():
        raise MicrographError(f"{data}: no such folder: --data wants the one with graphene, wse2 and labs")
    unknown = sorted(set(names) - set(LABORATORIES))
    if unknown:
        raise MicrographError(
            f"{', '.join(unknown)}: no such laboratory: there are {', '.join(LABORATORIES)}"
        )
    chosen = [LABORATORIES[name] for name in names or LABORATORIES]
    there = [lab for lab in chosen if lab.find_folder(data).is_dir()]
    if not there or (names and len(there) < len(chosen)):
        missing = next(lab for lab in chosen if lab not in there)
        raise MicrographError(f"{missing.find_folder(data)}: the pictures of {missing.name} are not there")
    return there


def list_pictures(data: Path, lab: Laboratory, most: int | None) -> list[Path]:
    """The pictures of a laboratory; at most some of them, spread over its folder."""
    paths = [
        path
        for path in find_pictures([lab.find_folder(data)])
        if path.match(lab.pictures) and not path.name.endswith((".mask.png", ".boxes.png"))
    ]
    if most is None or most >= len(paths):
        return paths
    return [paths[place] for place in np.linspace(0, len(paths) - 1, most).round().astype(int)]


def read_marks(path: Path, lab: Laboratory, shape: tuple[int, int]) -> list[Mark]:
    """The marks of a picture: masks NAME.mask.png, boxes NAME.boxes.png, or places that are listed here."""
    rows, cols = np.indices(shape, sparse=True)
    marks = []
    for label, row, col in lab.places.get(path.name, ()):
        away = np.hypot(rows - row * shape[0], cols - col * shape[1])
        marks.append(Mark(label, away <= _PLACE_RADIUS * shape[1], "place"))
    for kind in ("outline", "box"):
        file = path.with_name(f"{path.stem}.{'mask' if kind == 'outline' else 'boxes'}.png")
        if not file.is_file():
            continue
        labels = read_labels(file)
        classes = path.with_name(f"{path.stem}.classes.json")
        said = json.loads(classes.read_text("utf-8")) if kind == "outline" and classes.is_file() else {}
        for number in np.unique(labels[labels > 0]).tolist():
            label = said.get(str(number), lab.label)
            marks.append(Mark(label if label in ("ML", "BL", "FL") else lab.label, labels == number, kind))
    return marks


# --- pictures to look at --------------------------------------------------------------------------------------------

_SHOWN_PX = 900  # longer side of each half of a pair
_TILE_PX = 800  # width of a pair on a sheet
_PER_ROW = 2  # pairs beside each other


def draw_pair(
    path: Path, marks: list[Mark], answer: FlakeTable | str, *, longest_px: int = _SHOWN_PX
) -> Image.Image:
    """The picture with its marks in white, and beside it what flatscope shows, or why it shows nothing."""
    display = to_display(read(path))
    plain = Image.fromarray(display.pixels)
    plain.thumbnail((longest_px, longest_px))
    left = np.array(plain)
    for mark in marks:
        small = np.asarray(Image.fromarray(mark.pixels).resize(plain.size, Image.Resampling.NEAREST))
        left[ndimage.binary_dilation(small, iterations=3) & ~ndimage.binary_dilation(small, iterations=2)] = (
            255
        )
    pair = Image.new("RGB", (2 * plain.width, plain.height + 24))
    pair.paste(Image.fromarray(left), (0, 24))
    said = path.name
    if isinstance(answer, FlakeTable):
        pair.paste(draw_overlay(display, answer, longest_px=longest_px).resize(plain.size), (plain.width, 24))
    else:
        said += f": {answer}"
    ImageDraw.Draw(pair).text((4, 4), said, fill="white", font=load_font(14))
    return pair


def join_sheet(pairs: list[Image.Image]) -> Image.Image:
    """All pairs on one page, reduced."""
    small = [pair.resize((_TILE_PX, round(pair.height * _TILE_PX / pair.width))) for pair in pairs]
    height, rows = max(pair.height for pair in small), -(-len(small) // _PER_ROW)
    sheet = Image.new("RGB", (min(len(small), _PER_ROW) * _TILE_PX, rows * height))
    for place, pair in enumerate(small):
        sheet.paste(pair, (place % _PER_ROW * _TILE_PX, place // _PER_ROW * height))
    return sheet
