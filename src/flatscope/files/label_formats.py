"""Labels of layer numbers as COCO, labelme and Label Studio write them, checked before anything is made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from flatscope.results import MOST_NUMBERED, REJECTED_LABEL, THICK_LABEL, THIN_LABEL

_NAMES = {
    "substrate": 0, "background": 0,
    "monolayer": 1, "mono": 1, "ml": 1, "single": 1, "singlelayer": 1,
    "bilayer": 2, "bi": 2, "double": 2, "doublelayer": 2,
    "trilayer": 3, "tri": 3,
    "thin": THIN_LABEL,
    "thick": THICK_LABEL, "bulk": THICK_LABEL, "multilayer": THICK_LABEL,
    "unknown": REJECTED_LABEL, "ignore": REJECTED_LABEL, "dirt": REJECTED_LABEL, "residue": REJECTED_LABEL,
    "rejected": REJECTED_LABEL,
}  # fmt: skip

Side = Annotated[int, Field(ge=1, le=100_000)]
Identifier = int | str
Points = list[tuple[float, float]]


def layers_of(name: str) -> int:
    """The layer number that a label's name means: 0 to 10, 253 thin, 254 thick, 255 unknown.

    Raises
    ------
    ValueError
        If it means none.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if plain in _NAMES:
        return _NAMES[plain]
    number = re.fullmatch(r"([0-9]{1,9})(l|ls|ml|layers?)?", plain)
    if number is None:
        raise ValueError(f"label {name[:40]!r} is no layer number: call it 1L, 2L ... thick or unknown")
    value = int(number[1])
    return value if value <= MOST_NUMBERED or value in (THIN_LABEL, REJECTED_LABEL) else THICK_LABEL


class CocoRuns(BaseModel):
    """A mask of COCO: lengths of runs down the columns, zeros first, as numbers or as compressed text."""

    size: tuple[Side, Side]
    counts: str | list[Annotated[int, Field(ge=0)]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.size

    def decode(self) -> NDArray[np.bool_]:
        """The mask.

        Raises
        ------
        ValueError
            If the runs do not fill it.
        """
        counts = _unpack_counts(self.counts) if isinstance(self.counts, str) else self.counts
        rows, cols = self.size
        if min(counts, default=0) < 0 or sum(counts) != rows * cols:
            raise ValueError(f"runs of {sum(counts)} px on {rows * cols}")
        return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(cols, rows).T


@dataclass(frozen=True)
class BrushRuns:
    """A mask of Label Studio's brush: runs of red, green, blue and alpha, packed into bits."""

    shape: tuple[int, int]
    codes: tuple[int, ...]

    def decode(self) -> NDArray[np.bool_]:
        """Where alpha is not zero.

        Raises
        ------
        ValueError
            If the bits end too early or are of another picture.
        """
        bits = _Bits(self.codes)
        total, word = bits.take(32), bits.take(5) + 1
        lengths = [bits.take(4) + 1 for _ in range(4)]
        if total != 4 * self.shape[0] * self.shape[1]:
            raise ValueError(f"runs of {total} values on {4 * self.shape[0] * self.shape[1]}")
        values = np.zeros(total, np.int64)
        at = 0
        while at < total:
            repeated = bits.take(1)
            end = at + bits.take(lengths[bits.take(2)]) + 1
            values[at:end] = bits.take(word) if repeated else [bits.take(word) for _ in range(end - at)]
            at = end
        return values.reshape(*self.shape, 4)[..., 3] > 0


class _Bits:
    """Numbers of any width from a list of bytes."""

    def __init__(self, codes: tuple[int, ...]) -> None:
        self._bits = np.unpackbits(np.array(codes, np.uint8))
        self._at = 0

    def take(self, width: int) -> int:
        """The next number."""
        end = self._at + width
        if end > len(self._bits):
            raise ValueError("runs that end too early")
        digits = self._bits[self._at : end]
        self._at = end
        return int.from_bytes(np.packbits(digits).tobytes(), "big") >> (-width % 8)


@dataclass(frozen=True)
class Shape:
    """One marked region.

    Parameters
    ----------
    layers
        0 to 10, 253, 254 or 255.
    outlines
        Closed curves (n, 2) in pixels from the corner of the picture, x first; or, if `relative`, in shares of its
        width and height.
    runs
        In place of outlines: a mask, run-length encoded.
    """

    layers: int
    outlines: tuple[NDArray[np.float64], ...] = ()
    relative: bool = False
    runs: CocoRuns | BrushRuns | None = None


def find_shapes(table: Any) -> dict[str, list[Shape]]:
    """The marked regions of every picture that a file of labels names.

    Parameters
    ----------
    table
        What `flatscope.words.parse_json` read.

    Raises
    ------
    ValueError
        If it is of none of the three formats, or a label is no layer number; in one line.
    """
    try:
        if isinstance(table, dict) and {"images", "annotations", "categories"} <= set(table):
            return _Coco.model_validate(table).shapes()
        if isinstance(table, dict) and "shapes" in table:
            return _Labelme.model_validate(table).shapes()
        if isinstance(table, list) and all(
            isinstance(task, dict) and "annotations" in task for task in table
        ):
            return _read_tasks(TypeAdapter(list[_Task]).validate_python(table))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(_describe(first["loc"], str(first["msg"]), first["type"])) from None
    raise ValueError("is neither COCO nor labelme nor Label Studio")


def _describe(place: tuple[int | str, ...], message: str, kind: str) -> str:
    where = ".".join(str(part) for part in place[:4])
    return f"{str(place[-1])!r} missing ({where})" if kind == "missing" else f"{where}: {message}"


class _CocoImage(BaseModel):
    id: Identifier
    file_name: str


class _CocoCategory(BaseModel):
    id: Identifier
    name: str | int


class _CocoMark(BaseModel):
    image_id: Identifier
    category_id: Identifier
    segmentation: list[list[float]] | CocoRuns


class _Coco(BaseModel):
    images: list[_CocoImage]
    categories: list[_CocoCategory]
    annotations: list[_CocoMark]

    def shapes(self) -> dict[str, list[Shape]]:
        names = {image.id: _last_part(image.file_name) for image in self.images}
        layers = {category.id: layers_of(str(category.name)) for category in self.categories}
        shapes: dict[str, list[Shape]] = {name: [] for name in names.values()}
        for mark in self.annotations:
            if mark.category_id not in layers or mark.image_id not in names:
                missing = mark.image_id if mark.image_id not in names else mark.category_id
                raise ValueError(f"{missing} missing among images or categories")
            number, marked = layers[mark.category_id], mark.segmentation
            if isinstance(marked, CocoRuns):
                shape = Shape(number, runs=marked)
            else:
                shape = Shape(
                    number, tuple(_curve(np.reshape(part[: len(part) // 2 * 2], (-1, 2))) for part in marked)
                )
            shapes[names[mark.image_id]].append(shape)
        return shapes


class _LabelmeMark(BaseModel):
    label: str | int
    points: Points
    shape_type: str | None = None


class _Labelme(BaseModel):
    image_path: str = Field(alias="imagePath")
    marks: list[_LabelmeMark] = Field(alias="shapes")

    def shapes(self) -> dict[str, list[Shape]]:
        shapes = []
        for mark in self.marks:
            points, kind = np.array(mark.points, float), mark.shape_type or "polygon"
            if kind == "rectangle" and points.shape == (2, 2):
                points = points[[[0, 0], [1, 0], [1, 1], [0, 1]], [0, 1]]
            elif kind != "polygon":
                raise ValueError(f"a shape of type {kind[:40]!r}: only polygons and rectangles have an area")
            shapes.append(Shape(layers_of(str(mark.label)), (_curve(points),)))
        # labelme writes the path on the annotator's machine, which may have been another system
        return {_last_part(self.image_path): shapes}


def _none_is_empty(value: Any) -> Any:
    return [] if value is None else value


Names = Annotated[list[str], BeforeValidator(_none_is_empty)]


class _Polygon(BaseModel):
    points: Points
    polygonlabels: Names


class _Rectangle(BaseModel):
    x: float
    y: float
    width: Annotated[float, Field(ge=0)]
    height: Annotated[float, Field(ge=0)]
    rotation: float = 0.0
    rectanglelabels: Names


class _Brush(BaseModel):
    format: Literal["rle"]
    rle: list[Annotated[int, Field(ge=0, le=255)]]
    brushlabels: Names


class _TaskMark(BaseModel):
    type: str = ""
    value: dict[str, Any] = Field(default_factory=dict)
    original_width: Side | None = None
    original_height: Side | None = None

    def shape(self) -> Shape | None:
        """The marked region; None for answers that mark none, such as choices and texts."""
        if self.type == "polygonlabels":
            polygon = _Polygon.model_validate(self.value)
            outline = _curve(np.array(polygon.points, float) / 100.0)
            return Shape(_first_of(polygon.polygonlabels), (outline,), relative=True)
        if self.type == "rectanglelabels":
            rectangle = _Rectangle.model_validate(self.value)
            return Shape(_first_of(rectangle.rectanglelabels), (self._turn(rectangle),), relative=True)
        if self.type == "brushlabels":
            brush = _Brush.model_validate(self.value)
            if self.original_width is None or self.original_height is None:
                raise ValueError("a brush without original_width and original_height")
            size = (self.original_height, self.original_width)
            return Shape(_first_of(brush.brushlabels), runs=BrushRuns(size, tuple(brush.rle)))
        if self.type.endswith("labels"):
            raise ValueError(
                f"a mark of type {self.type[:40]!r}: only polygons, rectangles and brushes are read"
            )
        return None

    def _turn(self, rectangle: _Rectangle) -> NDArray[np.float64]:
        """Corners of a rectangle, turned about its first one by its rotation, clockwise as displayed."""
        sides = np.array([self.original_width or 1.0, self.original_height or 1.0])
        extent = np.array([rectangle.width, rectangle.height]) / 100.0 * sides
        x, y = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]).T * extent[:, None]
        cos, sin = np.cos(np.deg2rad(rectangle.rotation)), np.sin(np.deg2rad(rectangle.rotation))
        turned = np.column_stack([cos * x - sin * y, sin * x + cos * y])
        return turned / sides + np.array([rectangle.x, rectangle.y]) / 100.0


class _TaskAnswer(BaseModel):
    result: list[_TaskMark]


class _TaskData(BaseModel):
    image: str


class _Task(BaseModel):
    data: _TaskData
    annotations: list[_TaskAnswer]


def _read_tasks(tasks: list[_Task]) -> dict[str, list[Shape]]:
    shapes: dict[str, list[Shape]] = {}
    for task in tasks:
        own = shapes.setdefault(_last_part(task.data.image), [])
        for answer in task.annotations:
            own += [shape for mark in answer.result if (shape := mark.shape()) is not None]
    return shapes


def _first_of(names: list[str]) -> int:
    if not names:
        raise ValueError("a mark without a label")
    return layers_of(names[0])


def _last_part(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 3:
        raise ValueError("an outline of fewer than three points")
    return points


def _unpack_counts(text: str) -> list[int]:
    """Run lengths from COCO's compressed text: five bits a character, each number less the one two before."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 0x1F) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 64:
            raise ValueError("compressed runs with a foreign letter")
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
