"""Pictures whose layer numbers somebody marked: label images, and outlines from COCO, labelme or Label Studio.

All of them become label images of the kind that flatscope writes as NAME.layers.png: 0 substrate, 1 to 10 layers, 253
thin and not known, 254 thick, 255 unknown. Outlines count pixels from the corner of the picture. Where they overlap,
the smaller one lies on top, as a terrace does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from skimage import draw

from flatscope.files.annotations import read_labels
from flatscope.files.border import read_bytes
from flatscope.micrograph import MicrographError
from flatscope.results import MOST_NUMBERED, REJECTED_LABEL, THICK_LABEL, THIN_LABEL
from flatscope.words import parse_json

if TYPE_CHECKING:
    from flatscope.files.label_formats import Shape

Layers = NDArray[np.uint8]
_FAR = 1000.0  # sides of the picture
_LABEL_IMAGES = (".layers.png", ".layers.tif", ".mask.png", ".mask.tif", ".png", ".tif", ".tiff")


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
    strange = np.setdiff1d(labels, [*range(MOST_NUMBERED + 1), THIN_LABEL, THICK_LABEL, REJECTED_LABEL])
    if len(strange):
        raise MicrographError(
            f"{path}: label {strange[0]} is no layer number: 0 substrate, 1 to {MOST_NUMBERED}, 253 thin, 254 thick, "
            "255 unknown"
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


def _read_json(path: Path) -> dict[str, Labels]:
    content = read_bytes(path)
    # imported here: pydantic takes a tenth of a second, and label images need none of it
    from flatscope.files.label_formats import find_shapes

    try:
        return {name: Labels(path, tuple(found)) for name, found in find_shapes(parse_json(content)).items()}
    except ValueError as error:
        raise MicrographError(f"{path}: {error}: export the labels again") from None


def _draw(shapes: tuple[Shape, ...], size: tuple[int, int], source: Path) -> Layers:
    rows, cols = size
    masks = []
    for shape in shapes:
        if shape.runs is not None:
            if shape.runs.shape != size:
                width, height = shape.runs.shape[::-1]
                raise MicrographError(
                    f"{source}: a mask of {width}x{height} px on a picture of {cols}x{rows} px"
                )
            try:
                mask = shape.runs.decode()
            except ValueError as error:
                raise MicrographError(
                    f"{source}: a damaged run-length mask ({error}): export it again"
                ) from None
        else:
            mask = np.zeros(size, bool)
            for outline in shape.outlines:
                x, y = (outline * (cols, rows) if shape.relative else outline).T - 0.5
                # far outside, so that clipping moves no edge within the picture by a pixel
                x, y = np.clip(x, -_FAR * cols, _FAR * cols), np.clip(y, -_FAR * rows, _FAR * rows)
                mask[draw.polygon(y, x, size)] = True
        masks.append((int(mask.sum()), mask, shape.layers))
    layers = np.zeros(size, np.uint8)
    for _, mask, number in sorted(masks, key=lambda entry: -entry[0]):
        layers[mask] = number
    return layers
