"""Recipes: everything that decides what a trained network is, in one TOML file."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any


class RecipeError(ValueError):
    """A recipe that does not exist or does not make sense; one line with the way out."""


@dataclass(frozen=True)
class Recipe:
    """Settings of one training run.

    Parameters
    ----------
    name, version, task
        Go into the card. `task` is "flakes", "orientation", "columns", "defects" or "realism".
    training_data
        One sentence for the card: what the network saw.
    licence
        SPDX name of the weights' licence.
    seed
        Seeds the scenes, the initial weights, the order and the symmetries.
    scenes_train, scenes_val
        Number of scenes; validation scenes are never trained on.
    scene_px
        Side of a square scene, px; a multiple of 16.
    contrast_scale
        The network sees ``asinh(contrast / contrast_scale)``.
    object_px
        Smallest and largest flake diameter, px, that the scenes hold: the range in which to trust the net.
    widths
        Channels a level.
    epochs, batch
        Passes over the training scenes; scenes a step.
    max_minutes
        Ends the run, annealed, after this time (None: no limit). The schedule follows whichever of steps and
        time is nearer its end.
    lr, warmup, final_lr, weight_decay
        Peak learning rate; fraction of the run that warms up; last rate over the peak; AdamW's decay.
    grad_clip
        Largest gradient norm.
    ema_decay
        Decay a step of the averaged weights that are validated and shipped; 0 switches averaging off.
    class_weights
        Weights of substrate, thin, thick, artefact in the cross entropy.
    dice_weight, edge_weight, edge_positive_weight
        See `losses.flake_loss`.
    checkpoint_minutes
        A checkpoint is written at each epoch's end and at least this often.
    bits
        Of the exported weights and activations: 32, or 8 for a small, fast file; see `export.export`.
    start
        Name of shipped weights or an .onnx file to go on from, of the same `widths`; empty for random weights.
    pictures
        "drawn"; "labelled": then weights that exist are adapted to labelled pictures, see `training.adapt`;
        "bilayers": drawn ones, for the network of `training.orient`; "series": drawn focal series, for that of
        `training.columns`; "sites": drawn ADF-STEM images, for that of `training.defects`; or "crops": of one
        experimental image and of drawn ones, for `training.realism`.
    material
        Of drawn focal series.
    depth
        Layers of a mixed-scale dense network in place of a U-Net of `widths`; 0 for the U-Net.
    """

    name: str
    seed: int
    scenes_train: int
    scenes_val: int
    scene_px: int
    epochs: int
    batch: int
    lr: float
    version: str = "1"
    task: str = "flakes"
    training_data: str = "flatscope.optical.scenes"
    licence: str = "BSD-3-Clause"
    contrast_scale: float = 0.1
    object_px: tuple[float, float] = (6.0, 600.0)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    max_minutes: float | None = None
    warmup: float = 0.05
    final_lr: float = 0.01
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.998
    class_weights: tuple[float, ...] = (1.0, 2.0, 1.0, 2.0)
    dice_weight: float = 1.0
    edge_weight: float = 1.0
    edge_positive_weight: float = 3.0
    checkpoint_minutes: float = 5.0
    bits: int = 32
    start: str = ""
    pictures: str = "drawn"
    material: str = "MoS2"
    depth: int = 0

    def __post_init__(self) -> None:
        """Check ranges, so that a run fails in its first second and not in its last."""
        positive = (
            "scenes_train", "scenes_val", "scene_px", "epochs", "batch", "lr", "contrast_scale", "grad_clip",
            "checkpoint_minutes",
        )  # fmt: skip
        for key in positive:
            _require(self, key, getattr(self, key) > 0, "must be positive")
        for key in ("weight_decay", "dice_weight", "edge_weight", "edge_positive_weight", "seed"):
            _require(self, key, getattr(self, key) >= 0, "must not be negative")
        multiple = 2 ** len(self.widths)
        _require(self, "widths", len(self.widths) >= 2 and min(self.widths) > 0, "needs two or more levels")
        _require(self, "scene_px", self.scene_px % multiple == 0, f"must be a multiple of {multiple}")
        _require(self, "max_minutes", self.max_minutes is None or self.max_minutes > 0, "must be positive")
        _require(self, "warmup", 0 <= self.warmup < 1, "must lie in [0, 1)")
        _require(self, "final_lr", 0 < self.final_lr <= 1, "must lie in (0, 1]")
        _require(self, "ema_decay", 0 <= self.ema_decay < 1, "must lie in [0, 1)")
        four = len(self.class_weights) == 4 and min(self.class_weights) > 0
        _require(self, "class_weights", four, "must be four positive numbers (substrate, thin, ...)")
        kinds = ("drawn", "labelled", "bilayers", "series", "sites", "crops")
        _require(self, "pictures", self.pictures in kinds, f"must be one of {', '.join(kinds)}")
        _require(self, "bits", self.bits in (8, 32), "must be 8 or 32")
        low, high = self.object_px
        _require(self, "object_px", 0 < low < high, "must be (smallest, largest)")

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists."""
        plain = dataclasses.asdict(self)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def names() -> tuple[str, ...]:
    """Recipes that ship with flatscope."""
    found = (entry.name for entry in _folder().iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name.removesuffix(".toml") for name in found))


def load(name_or_path: str | Path, **overrides: object) -> Recipe:
    """Read a recipe that ships with flatscope, or any TOML file, and replace settings by `overrides`.

    Raises
    ------
    RecipeError
        Unknown name (lists the recipes), unreadable TOML, unknown, missing or mistyped key.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise RecipeError(f"{path}: no such recipe file; recipes that ship: {', '.join(names())}")
        source = path.read_text(encoding="utf-8")
    else:
        if text not in names():
            raise RecipeError(
                f"no recipe called {text!r}: choose one of {', '.join(names())}, or give a .toml file"
            )
        source = (_folder() / f"{text}.toml").read_text(encoding="utf-8")
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{text}: not valid TOML: {error}") from None
    return from_dict({**table, **overrides}, source=text)


def from_dict(table: dict[str, Any], *, source: str = "recipe") -> Recipe:
    """Make a recipe from plain values; `source` is named in errors."""
    known = {field.name: field for field in dataclasses.fields(Recipe)}
    hints = typing.get_type_hints(Recipe)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
            raise RecipeError(f"{source}: unknown key {key!r}; {hint}")
        values[key] = _convert(value, hints[key], where=f"{source}: {key}")
    missing = [
        key for key, field in known.items() if field.default is dataclasses.MISSING and key not in values
    ]
    if missing:
        raise RecipeError(f"{source}: missing {', '.join(missing)}")
    return Recipe(**values)


def _folder() -> Any:
    return resources.files("flatscope.training") / "recipes"


def _require(recipe: Recipe, key: str, holds: bool, rule: str) -> None:
    if not holds:
        raise RecipeError(f"{recipe.name}: {key} = {getattr(recipe, key)} {rule}")


def _convert(value: Any, hint: Any, *, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        return None if value is None else _convert(value, inner, where=where)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (Ellipsis not in kinds and len(value) != len(kinds)):
            raise RecipeError(f"{where} = {value!r} must be a list" + (
                "" if Ellipsis in kinds else f" of {len(kinds)}"))  # fmt: skip
        return tuple(_convert(item, kinds[0], where=where) for item in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    raise RecipeError(f"{where} = {value!r} must be {hint.__name__}")
