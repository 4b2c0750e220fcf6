"""The card of a network: what it expects, gives and reaches. Stored inside its .onnx file."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flatscope.words import WordsError, parse_json

KEY = "flatscope.card"
"""Name of the entry of the .onnx file's metadata that holds the card as JSON."""
FORMAT = 1
NORMALISATION, PLAIN = "asinh(contrast / scale)", "none"
"""How pictures become a network's input; the second means that they already are."""


class WeightsError(ValueError):
    """Weights that are missing, damaged or not flatscope's; one line with the way out."""


@dataclass(frozen=True)
class Score:
    """A measured number with its 95 % interval and the data it was measured on."""

    value: float
    low: float
    high: float
    data: str


@dataclass(frozen=True)
class Card:
    """What a network expects and gives.

    Parameters
    ----------
    name, version, task
        "flakes", "1", "flakes".
    recipe
        Name of the recipe it was trained by.
    training_data
        One sentence: what it saw.
    seed
        Seed of its data and training.
    channels
        Input channels, in order: "red", "green", "blue".
    classes
        Softmax channels of the output, in order.
    maps
        Sigmoid channels of the output, after the classes.
    scale, normalisation
        The input is ``asinh(contrast / scale)``, with contrast ``I / I_substrate - 1``, unless it is "none".
    pixel_size_nm
        Pixel size it was trained at, nm; None where it was trained over a range of object sizes instead.
    object_px
        Smallest and largest object, px, that it was trained on.
    multiple
        Rows and cols of the bare network's input are multiples of this.
    halo_px
        Context, px, beyond which pixels do not influence each other; a multiple of `multiple`.
    thresholds
        Probabilities above which a channel is called positive, tuned on validation data.
    scores
        What it reached.
    licence
        SPDX name.
    created_with
        Programs and versions that made the file.
    material, known
        Of weights adapted to one set-up: the material, and regions known there as (layers, red, green, blue contrast).
    look
        Of weights that learned the look of one scan: plain data that `flatscope.electron.drawing.appearance` reads.
    """

    name: str
    version: str
    task: str
    recipe: str
    training_data: str
    seed: int
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    scale: float
    multiple: int
    halo_px: int
    licence: str
    created_with: str
    maps: tuple[str, ...] = ()
    pixel_size_nm: float | None = None
    object_px: tuple[float, float] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    normalisation: str = NORMALISATION
    material: str = ""
    known: tuple[tuple[float, ...], ...] = ()
    look: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a card that the runtime could not obey."""
        outputs = self.classes + self.maps
        unknown = sorted(set(self.thresholds) - set(outputs))
        aligned = self.halo_px % max(self.multiple, 1) == 0
        checks = (
            (bool(self.name), f"name = {self.name!r} is empty"),
            (
                self.normalisation in (NORMALISATION, PLAIN),
                f"normalisation {self.normalisation!r} is unknown",
            ),
            (self.scale > 0, f"scale = {self.scale} is not positive"),
            (len(self.channels) > 0, "it names no input channel"),
            (len(outputs) > 0, "it names no output channel"),
            (len(set(outputs)) == len(outputs), f"outputs {outputs} repeat a name"),
            (self.multiple >= 1, f"multiple = {self.multiple} is not positive"),
            (self.halo_px >= 0, f"halo_px = {self.halo_px} is negative"),
            (aligned, f"halo_px = {self.halo_px} is no multiple of {self.multiple}"),
            (
                all(len(region) == 4 for region in self.known),
                "known regions are no (layers, red, green, blue)",
            ),
            (not unknown, f"thresholds name {', '.join(unknown)}, which it does not give"),
        )
        for holds, what in checks:
            if not holds:
                raise WeightsError(f"damaged card: {what}")

    @property
    def outputs(self) -> tuple[str, ...]:
        """All output channels, in order."""
        return self.classes + self.maps

    def normalise(self, contrast: ArrayLike) -> NDArray[np.float32]:
        """Turn contrast (rows, cols, channels) into the network's input (channels, rows, cols).

        Contrast is ``I / I_substrate - 1``; the arcsinh keeps monolayers (0.02-0.2) and bulk on one scale.
        Any other shape raises ValueError.
        """
        x = np.asarray(contrast, dtype=np.float32)
        if x.ndim != 3 or x.shape[2] != len(self.channels):
            wanted = f"(rows, cols, {len(self.channels)})"
            raise ValueError(f"contrast of shape {x.shape} does not fit network {self.name}: give {wanted}")
        if self.normalisation == PLAIN:
            return np.ascontiguousarray(np.moveaxis(x, 2, 0))
        result = np.empty((x.shape[2], *x.shape[:2]), dtype=np.float32)
        np.divide(np.moveaxis(x, 2, 0), np.float32(self.scale), out=result)
        np.arcsinh(result, out=result)
        return result

    def to_json(self) -> str:
        """Write the card as JSON text."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Card:
        """Read `to_json`'s text; a damaged card or one of a later version raises `WeightsError`."""
        try:
            table = parse_json(text)
        except WordsError as error:
            raise WeightsError(f"damaged card: {error}") from None
        if not isinstance(table, dict):
            raise WeightsError(f"damaged card: holds a {type(table).__name__}, not an object")
        version = table.pop("format", None)
        if version != FORMAT:
            raise WeightsError(
                f"card of format {version!r}, this flatscope reads {FORMAT}: "
                "use weights and program of one release"
            )
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        missing = [
            key
            for key, entry in known.items()
            if key not in table
            and entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise WeightsError(f"damaged card: {', '.join(missing)} missing")
        unknown = sorted(set(table) - set(known))
        if unknown:
            raise WeightsError(f"damaged card: unknown entries {', '.join(unknown)}")
        return cls(**{key: _check(key, value) for key, value in table.items()})


_TEXTS = (
    "name", "version", "task", "recipe", "training_data", "licence", "created_with", "normalisation", "material",
)  # fmt: skip
_LISTS = ("channels", "classes", "maps")


def _check(key: str, value: Any) -> Any:
    """Bring one JSON value to the type that the card wants, or say which it is not."""
    if key in _TEXTS and isinstance(value, str):
        return value
    if key in _LISTS and isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if key in ("seed", "multiple", "halo_px") and isinstance(value, int) and not isinstance(value, bool):
        return value
    if key == "scale" and _is_number(value):
        return float(value)
    if key == "look" and isinstance(value, dict):
        return value
    if key == "pixel_size_nm" and (value is None or _is_number(value)):
        return value
    if key == "object_px":
        if value is None:
            return None
        if isinstance(value, list) and len(value) == 2 and all(_is_number(item) for item in value):
            return (float(value[0]), float(value[1]))
    if (
        key == "known"
        and isinstance(value, list)
        and all(isinstance(region, list) and all(map(_is_number, region)) for region in value)
    ):
        return tuple(tuple(region) for region in value)
    if key == "thresholds" and isinstance(value, dict) and all(_is_number(item) for item in value.values()):
        return value
    if key == "scores" and isinstance(value, dict):
        try:
            return {name: Score(**score) for name, score in value.items()}
        except TypeError:
            raise WeightsError("damaged card: scores need value, low, high and data") from None
    raise WeightsError(f"damaged card: {key} = {value!r} has the wrong type")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
