"""Pictures whose layer numbers somebody marked: label images, and outlines from COCO, labelme or Label Studio.

All of them become label images of the kind that flatscope writes as NAME.layers.png: 0 substrate, 1 to 6 layers, 254
thick, 255 unknown. Outlines count pixels from the corner of the picture. Where they overlap, the smaller one lies on
top, as a terrace does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage import draw

from flatscope.files.annotations import read_labels
from flatscope.micrograph import MicrographError
from flatscope.results import REJECTED_LABEL, THICK_LABEL

Layers = NDArray[np.uint8]
_LABEL_IMAGES = (".layers.png", ".layers.tif", ".mask.png", ".mask.tif", ".png", ".tif", ".tiff")
_NAMES = {
    "substrate": 0, "background": 0,
    "monolayer": 1, "mono": 1, "ml": 1, "single": 1, "singlelayer": 1,
    "bilayer": 2, "bi": 2, "double": 2, "doublelayer": 2,
    "trilayer": 3, "tri": 3,
    "thick": THICK_LABEL, "bulk": THICK_LABEL, "multilayer": THICK_LABEL,
    "unknown": REJECTED_LABEL, "ignore": REJECTED_LABEL, "dirt": REJECTED_LABEL, "residue": REJECTED_LABEL,
    "rejected": REJECTED_LABEL,
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """One marked region.

    Parameters
    ----------
    layers
        0 to 6, 254 or 255.
    outlines
        Closed curves (n, 2) in pixels from the corner of the picture, x first; or, if `relative`, in shares of its
        width and height.
    runs
        In place of outlines: a COCO mask, run-length encoded.
    """

    layers: int
    outlines: tuple[NDArray[np.float64], ...] = ()
    relative: bool = False
    runs: Any = None


@dataclass(frozen=True)
class Labels:
    """What was marked in one picture: a label image, or shapes."""

    source: Path
    shapes: tuple[Shape, ...] | None = None

    def draw(self, shape: tuple[int, int]) -> Layers:
        """As a label image of a picture of `shape` (rows, cols).

        Raises
        ------
        MicrographError
            If they are no layer numbers or belong to a picture of another size.
        """
        if self.shapes is not None:
            return _draw(self.shapes, shape, self.source)
        labels = read_layer_labels(self.source)
        if labels.shape != shape:
            raise MicrographError(
                f"{self.source}: labels of {labels.shape[1]}x{labels.shape[0]} px on one of {shape[1]}x{shape[0]}"
            )
        return labels


def read_layer_labels(path: Path) -> Layers:
    """Open a label image of layer numbers.

    Raises
    ------
    MicrographError
        If it is no label image, or a label is no layer number.
    """
    labels = read_labels(path)
    strange = np.setdiff1d(labels, [*range(7), THICK_LABEL, REJECTED_LABEL])
    if len(strange):
        raise MicrographError(
            f"{path}: label {strange[0]} is no layer number: 0 substrate, 1 to 6, 254 thick, 255 unknown"
        )
    return labels.astype(np.uint8)


def find_layer_labels(
    pictures: Iterable[Path], masks: Path, *, on_problem: Callable[[MicrographError], None] | None = None
) -> dict[Path, Labels]:
    """Which of the pictures have labels; the others are left out.

    Parameters
    ----------
    pictures
        Files.
    masks
        A folder of label images (NAME.layers.png, NAME.mask.png, NAME.png or .tif for the picture NAME) or of JSON
        files, or one JSON file: COCO, labelme or Label Studio. Layer numbers are the names of the labels: 1L, 2 layers,
        monolayer, thick, unknown ...
    on_problem
        Called with what is wrong with a JSON file of a folder, which is then left out; None raises it.

    Raises
    ------
    MicrographError
        If `masks` does not exist, or a JSON file is of none of these formats or has names that are no layer numbers.
    """
    if not masks.exists():
        raise MicrographError(f"{masks}: no such file or folder with labels: check the path")
    listed = [masks] if masks.is_file() else sorted(masks.glob("*.json"))
    marked: dict[str, Labels] = {}
    for path in listed:
        try:
            marked.update(_read_json(path))
        except MicrographError as error:
            if on_problem is None or path == masks:
                raise
            on_problem(error)
    found = {}
    for picture in pictures:
        own = [
            masks / f"{picture.stem}{end}"
            for end in _LABEL_IMAGES
            if (masks / f"{picture.stem}{end}") != picture
        ]
        image = next((path for path in own if path.is_file()), None)
        if image is not None:
            found[picture] = Labels(image)
            continue
        # Label Studio puts a number before the name of an uploaded file.
        for name, labels in marked.items():
            if name == picture.name or name.endswith(f"-{picture.name}"):
                found[picture] = labels
    return found


def layers_of(name: str) -> int:
    """The layer number that a label's name means: 0 to 6, 254 thick, 255 unknown.

    Raises
    ------
    ValueError
        If it means none.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in _NAMES:
        return _NAMES[plain]
    number = re.fullmatch(r"(\d+)(l|ls|ml|layers?)?", plain)
    if number is None:
        raise ValueError(f"label {name!r} is no layer number: call it 1L, 2L ... thick or unknown")
    value = int(number[1])
    return value if value <= 6 or value in (THICK_LABEL, REJECTED_LABEL) else THICK_LABEL


def _read_json(path: Path) -> dict[str, Labels]:
    try:
        table = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise MicrographError(f"{path}: is no JSON ({error}): export the labels again") from None
    try:
        if isinstance(table, dict) and {"images", "annotations", "categories"} <= set(table):
            shapes = _from_coco(table)
        elif isinstance(table, dict) and "shapes" in table:
            shapes = _from_labelme(table)
        elif isinstance(table, list) and all(
            isinstance(task, dict) and "annotations" in task for task in table
        ):
            shapes = _from_label_studio(table)
        else:
            raise ValueError("is neither COCO nor labelme nor Label Studio")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        what = f"{error} missing" if isinstance(error, KeyError) else str(error)
        raise MicrographError(f"{path}: {what}") from None
    return {name: Labels(path, tuple(found)) for name, found in shapes.items()}


def _from_coco(table: dict[str, Any]) -> dict[str, list[Shape]]:
    names = {image["id"]: Path(image["file_name"]).name for image in table["images"]}
    layers = {category["id"]: layers_of(str(category["name"])) for category in table["categories"]}
    shapes: dict[str, list[Shape]] = {name: [] for name in names.values()}
    for item in table["annotations"]:
        number, marked = layers[item["category_id"]], item["segmentation"]
        if isinstance(marked, dict):
            shape = Shape(number, runs=marked)
        else:
            shape = Shape(
                number, tuple(_curve(np.reshape(np.asarray(part, float), (-1, 2))) for part in marked)
            )
        shapes[names[item["image_id"]]].append(shape)
    return shapes


def _from_labelme(table: dict[str, Any]) -> dict[str, list[Shape]]:
    shapes = []
    for item in table["shapes"]:
        points = np.asarray(item["points"], float)
        kind = item.get("shape_type") or "polygon"
        if kind == "rectangle":
            (left, top), (right, bottom) = points
            points = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        elif kind != "polygon":
            raise ValueError(f"a shape of type {kind!r}: only polygons and rectangles have an area")
        shapes.append(Shape(layers_of(str(item["label"])), (_curve(points),)))
    # labelme writes the path on the annotator's machine, which may have been another system
    return {re.split(r"[/\\]", table["imagePath"])[-1]: shapes}


def _from_label_studio(table: list[dict[str, Any]]) -> dict[str, list[Shape]]:
    shapes: dict[str, list[Shape]] = {}
    for task in table:
        name = str(task["data"]["image"]).replace("\\", "/").rsplit("/", 1)[-1]
        own = shapes.setdefault(name, [])
        for answer in task["annotations"]:
            for item in answer["result"]:
                if item.get("type") == "polygonlabels":
                    value = item["value"]
                    points = _curve(np.asarray(value["points"], float) / 100.0)
                    own.append(Shape(layers_of(str(value["polygonlabels"][0])), (points,), relative=True))
    return shapes


def _curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3 or not np.isfinite(points).all():
        raise ValueError("an outline of fewer than three points")
    return points


def _draw(shapes: tuple[Shape, ...], size: tuple[int, int], source: Path) -> Layers:
    rows, cols = size
    masks = []
    for shape in shapes:
        if shape.runs is not None:
            mask = _decode_runs(shape.runs, source)
            if mask.shape != size:
                raise MicrographError(
                    f"{source}: a mask of {mask.shape[1]}x{mask.shape[0]} px on a picture of {cols}x{rows} px"
                )
        else:
            mask = np.zeros(size, bool)
            for outline in shape.outlines:
                x, y = (outline * (cols, rows) if shape.relative else outline).T - 0.5
                mask[draw.polygon(y, x, size)] = True
        masks.append((int(mask.sum()), mask, shape.layers))
    layers = np.zeros(size, np.uint8)
    for _, mask, number in sorted(masks, key=lambda entry: -entry[0]):
        layers[mask] = number
    return layers


def _decode_runs(runs: Any, source: Path) -> NDArray[np.bool_]:
    try:
        rows, cols = (int(side) for side in runs["size"])
        counts = runs["counts"]
        if isinstance(counts, str):
            counts = _unpack_counts(counts)
        # COCO counts down the columns, zeros first.
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        return flat.reshape(cols, rows).T
    except (KeyError, TypeError, ValueError) as error:
        raise MicrographError(f"{source}: a damaged run-length mask ({error}): export it again") from None


def _unpack_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed text: five bits a character, each number less the one two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
