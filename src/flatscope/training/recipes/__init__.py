"""Recipes: everything that decides what a trained network is, in one TOML file.

The core (name, seed, steps, learning rate, time) is the same for all; one section holds what only its kind of training
knows, and its name says which kind that is.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Generic, TypeVar

from flatscope.training.recipes.sections import SECTIONS, Section

S = TypeVar("S", bound=Section, covariant=True)
_KINDS = {
    "drawn": "flakes",
    "labelled": "adaptation",
    "bilayers": "orientation",
    "series": "columns",
    "sites": "defects",
    "crops": "realism",
}
"""The sections that took the place of what the key `pictures` said in recipes without sections."""
_DROPPED = frozenset(one.name for kind in SECTIONS.values() for one in dataclasses.fields(kind))
"""Keys that recipes of any kind could have before sections."""
_SCHEDULES = ("cosine", "poly", "late", "constant")


class RecipeError(ValueError):
    """A recipe that does not exist or does not make sense; one line with the way out."""


@dataclass(frozen=True)
class Recipe(Generic[S]):
    """Settings of one training run.

    Parameters
    ----------
    name, version
        Go into the card.
    seed
        Seeds the scenes, the initial weights, the order and the symmetries.
    scenes_train, scenes_val
        Number of drawn pictures to train on, and of others that validate and are never trained on.
    epochs, batch
        Passes over the training pictures; pictures a step.
    lr, schedule, warmup, final_lr
        Learning rate and how it changes: see `engine.Schedule`.
    task
        The section: what only this kind of training knows.
    training_data
        One sentence for the card: what the network saw.
    licence
        SPDX name of the weights' licence.
    weight_decay
        Of the optimiser.
    max_minutes
        Ends the run after this time (None: no limit). The schedules "cosine" and "late" then end with it.
    checkpoint_minutes
        Longest time between two checkpoints.

    Raises
    ------
    RecipeError
        A value is out of its range: a run fails in its first second and not in its last.
    """

    name: str
    seed: int
    scenes_train: int
    epochs: int
    batch: int
    lr: float
    schedule: str
    task: S
    scenes_val: int = 0
    version: str = "1"
    training_data: str = "drawn pictures"
    licence: str = "BSD-3-Clause"
    warmup: float = 0.05
    final_lr: float = 0.01
    weight_decay: float = 0.01
    max_minutes: float | None = None
    checkpoint_minutes: float = 1.0

    def __post_init__(self) -> None:
        """Check every value against its rule."""
        values = self.settings()
        for key, (holds, rule) in _RULES.items():
            if key in values and not holds(values[key]):
                raise RecipeError(f"{self.name}: {key} = {values[key]} {rule}")
        multiple = 2 ** len(values["widths"])
        if values.get("scene_px", 0) % multiple:
            raise RecipeError(
                f"{self.name}: scene_px = {values['scene_px']} must be a multiple of {multiple}"
            )
        if (self.scenes_val > 0) != self.task.validates:
            rule = "must be positive" if self.task.validates else f"has no meaning for [{self.task.name}]"
            raise RecipeError(f"{self.name}: scenes_val = {self.scenes_val} {rule}")

    def settings(self) -> dict[str, Any]:
        """All values by key, those of the section among the others: plain numbers, strings and lists."""
        table = self.to_dict()
        section = table.pop(self.task.name)
        return {**table, **section}

    def to_dict(self) -> dict[str, Any]:
        """The recipe as its file holds it, the section under its name."""
        table = {key: _plain(getattr(self, key)) for key in _keys(Recipe) if key != "task"}
        section = {key: _plain(value) for key, value in vars(self.task).items()}
        return {**table, self.task.name: section}

    def change(self, **changes: object) -> Recipe[S]:
        """The recipe with other values, of the core or of its section."""
        return from_dict(_put(self.to_dict(), changes), source=self.name)


def _is_positive(value: float) -> bool:
    return value > 0


def _is_not_negative(value: float) -> bool:
    return value >= 0


_POSITIVE = (_is_positive, "must be positive")
_NOT_NEGATIVE = (_is_not_negative, "must not be negative")
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": _NOT_NEGATIVE,
    "scenes_train": _POSITIVE,
    "scenes_val": _NOT_NEGATIVE,
    "epochs": _POSITIVE,
    "batch": _POSITIVE,
    "lr": _POSITIVE,
    "schedule": (lambda kind: kind in _SCHEDULES, f"must be one of {', '.join(_SCHEDULES)}"),
    "warmup": (lambda share: 0 <= share < 1, "must lie in [0, 1)"),
    "final_lr": (lambda share: 0 < share <= 1, "must lie in (0, 1]"),
    "weight_decay": _NOT_NEGATIVE,
    "max_minutes": (lambda minutes: minutes is None or minutes > 0, "must be positive"),
    "checkpoint_minutes": _POSITIVE,
    "scene_px": _POSITIVE,
    "contrast_scale": _POSITIVE,
    "object_px": (lambda ends: 0 < ends[0] < ends[1], "must be (smallest, largest)"),
    "widths": (lambda widths: len(widths) >= 2 and min(widths) > 0, "needs two or more levels"),
    "grad_clip": _POSITIVE,
    "ema_decay": (lambda decay: 0 <= decay < 1, "must lie in [0, 1)"),
    "class_weights": (
        lambda weights: len(weights) == 4 and min(weights) > 0,
        "must be four positive numbers (substrate, thin, thick, artefact)",
    ),
    "dice_weight": _NOT_NEGATIVE,
    "edge_weight": _NOT_NEGATIVE,
    "edge_positive_weight": _NOT_NEGATIVE,
    "bits": (lambda bits: bits in (8, 32), "must be 8 or 32"),
    "depth": _NOT_NEGATIVE,
}
"""Key to what must hold for its value, and how to say so."""


def names() -> tuple[str, ...]:
    """Recipes that ship with flatscope."""
    found = (entry.name for entry in resources.files(__name__).iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(name.removesuffix(".toml") for name in found))


def load(name_or_path: str | Path, **overrides: object) -> Recipe[Any]:
    """Read a recipe that ships with flatscope, or any TOML file, and replace settings by `overrides`.

    Raises
    ------
    RecipeError
        Unknown name (lists the recipes), unreadable TOML, unknown, missing, misplaced or mistyped key.
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
        source = (resources.files(__name__) / f"{text}.toml").read_text(encoding="utf-8")
    try:
        table = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{text}: not valid TOML: {error}") from None
    return from_dict(_put(table, overrides), source=text)


def from_dict(table: Mapping[str, Any], *, source: str = "recipe") -> Recipe[Any]:
    """Make a recipe from plain values; `source` is named in errors."""
    _refuse_without_sections(table, source)
    sections = [key for key in table if key in SECTIONS]
    if len(sections) > 1:
        raise RecipeError(f"{source}: a recipe has one section, not {', '.join(sections)}")
    kind = SECTIONS[sections[0]] if sections else None
    core = {key: value for key, value in table.items() if key not in SECTIONS}
    values = _convert_all(Recipe, core, source=source, elsewhere=kind)
    if kind is None:
        raise RecipeError(
            f"{source}: has no section: add one of {', '.join(f'[{name}]' for name in SECTIONS)}"
        )
    own = table[kind.name]
    if not isinstance(own, Mapping):
        raise RecipeError(f"{source}: {kind.name} = {own!r} must be the section [{kind.name}]")
    section = kind(**_convert_all(kind, own, source=f"{source}, [{kind.name}]", elsewhere=Recipe))
    return Recipe(task=section, **values)


def _keys(kind: type[Any]) -> tuple[str, ...]:
    return tuple(one.name for one in dataclasses.fields(kind))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _put(table: Mapping[str, Any], changes: Mapping[str, object]) -> dict[str, Any]:
    """A recipe's table with other values, each where it belongs."""
    section = next((key for key in table if key in SECTIONS), "")
    core = {key: value for key, value in changes.items() if not section or key in _keys(Recipe)}
    own = {key: value for key, value in changes.items() if key not in core}
    return {**table, **core, **({section: {**table[section], **own}} if own else {})}


def _refuse_without_sections(table: Mapping[str, Any], source: str) -> None:
    """Say where the keys went to the owner of a recipe from before sections."""
    if "pictures" not in table and "task" not in table:
        return
    name = _KINDS.get(str(table.get("pictures", "drawn")), "flakes")
    moved = [key for key in table if key in _keys(SECTIONS[name])]
    gone = ["task", "pictures", *(key for key in table if key in _DROPPED and key not in moved)]
    schedule = {"flakes": "cosine", "adaptation": "cosine", "realism": "late"}.get(name, "poly")
    raise RecipeError(
        f"{source}: recipes have a section now: move {', '.join(moved) or 'nothing'} below a last line [{name}], "
        f'remove {", ".join(gone)}, and add schedule = "{schedule}" above it'
    )


def _convert_all(
    kind: type[Any], table: Mapping[str, Any], *, source: str, elsewhere: type[Any] | None
) -> dict[str, Any]:
    """Values for the fields of a class, each of its type; `elsewhere` knows the keys of the other place."""
    hints = typing.get_type_hints(kind)
    fields = [one for one in dataclasses.fields(kind) if one.name != "task"]
    known = [one.name for one in fields]
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise RecipeError(f"{source}: {_explain_unknown(key, known, elsewhere)}")
        values[key] = _convert(value, hints[key], where=f"{source}: {key}")
    missing = [one.name for one in fields if one.default is dataclasses.MISSING and one.name not in values]
    if missing:
        raise RecipeError(f"{source}: missing {', '.join(missing)}")
    return values


def _explain_unknown(key: str, known: list[str], elsewhere: type[Any] | None) -> str:
    if elsewhere is not None and key in _keys(elsewhere):
        place = "above the section" if elsewhere is Recipe else f"below the line [{elsewhere.name}]"
        return f"{key} belongs {place}"
    everything = [*known, *(_keys(elsewhere) if elsewhere is not None else SECTIONS)]
    close = difflib.get_close_matches(key, everything, n=1)
    return f"unknown key {key!r}; " + (
        f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
    )


def _convert(value: Any, hint: Any, *, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        inner = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        return None if value is None else _convert(value, inner, where=where)
    if origin is tuple:
        kinds = typing.get_args(hint)
        if not isinstance(value, list | tuple) or (Ellipsis not in kinds and len(value) != len(kinds)):
            length = "" if Ellipsis in kinds else f" of {len(kinds)}"
            raise RecipeError(f"{where} = {value!r} must be a list{length}")
        return tuple(_convert(item, kinds[0], where=where) for item in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if hint is float and number:
        return float(value)
    if hint is int and number and float(value).is_integer():
        return int(value)
    if hint is str and isinstance(value, str):
        return value
    raise RecipeError(f"{where} = {value!r} must be {hint.__name__}")
