"""What light micrographs are given besides a verb's settings: pixel size, flat field, weights, known regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.read import read
from flatscope.micrograph import MicrographError
from flatscope.optical.background import LIGHT_ORDER, estimate_background, estimate_flatfield, flatfield_from
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.observations import KnownRegion
from flatscope.runs.settings import SettingsError, read_json

_AROUND_PX = 3
"""The median over 7x7 px stands for a region: enough against noise, little enough for a small flake."""
_FLATFIELD_PICTURES = 15
"""Pictures that a flat field is taken from, evenly spread over the run."""
_FEWEST_FOR_FLATFIELD = 5
"""With fewer, the flakes would show in it."""


@dataclass(frozen=True)
class LightParams:
    """What `find_flakes` is given besides its own settings.

    Parameters
    ----------
    um_per_px
        Pixel size in µm, above the file's own; without it the file's own counts.
    flatfield
        A picture of the light alone, "auto" (from the pictures themselves), or "none" (the light is taken as even).
        Without it the light is followed in each picture.
    weights
        Name of shipped weights or path of an .onnx file.
    """

    um_per_px: float | None = None
    flatfield: str | None = None
    weights: str = "flakes"

    def __post_init__(self) -> None:
        if self.um_per_px is not None and not 0 < self.um_per_px < 1e4:
            raise ValueError(
                f"um_per_px of {self.um_per_px:g} is no pixel size: give µm per pixel, for example 0.15"
            )


def choose_light(
    params: FlakeParams, choice: str | None, paths: Sequence[Path]
) -> tuple[FlakeParams, NDArray[np.float32] | None]:
    """What `--flatfield` means: settings that follow the light or take it as even, and the flat field of the run.

    Raises
    ------
    MicrographError
        If the file cannot be used.
    """
    if choice == "none":
        return replace(params, light_order=0), None
    if choice is None:
        return params, None
    if choice == "auto":
        return params, _flatfield_of(paths)
    frame = read(choice)
    return params, flatfield_from(frame, frame.shape)


def _flatfield_of(paths: Sequence[Path]) -> NDArray[np.float32] | None:
    """The flat field that the pictures show themselves; None where they are too few."""
    if len(paths) < _FEWEST_FOR_FLATFIELD:
        return None
    by_shape: dict[tuple[int, int], list[NDArray[np.float32]]] = {}
    # Evenly spread over the run, and a few more than needed, as some may be of another size or damaged.
    for index in np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _FLATFIELD_PICTURES)).astype(int)):
        try:
            picture = read(paths[index])
        except MicrographError:
            continue  # it gets its own row when its turn comes
        by_shape.setdefault(picture.shape, []).append(picture.rgb())
    if len(by_shape) != 1:
        sizes = ", ".join(f"{cols}x{rows}" for rows, cols in by_shape)
        raise MicrographError(
            f"--flatfield auto needs pictures of one size, these have {sizes or 'none'}: "
            "analyse them apart, or leave it out"
        )
    pictures = next(iter(by_shape.values()))
    return estimate_flatfield(pictures) if len(pictures) >= _FEWEST_FOR_FLATFIELD else None


def read_known(
    path: Path | str, *, flatfield: NDArray[np.float32] | None = None, light_order: int = LIGHT_ORDER
) -> tuple[KnownRegion, ...]:
    """Read regions with known layer number.

    Parameters
    ----------
    path
        JSON: ``{"regions": [{"layers": 1, "contrast": [r, g, b]}, {"layers": 2, "image": "a.jpg", "row_px": 100,
        "col_px": 200}]}``. A place in a picture is measured: median contrast of 7x7 px. Pictures are looked for beside
        the file.
    flatfield
        As for `find_flakes`; left out for a picture of another size.
    light_order
        As in `FlakeParams`.

    Raises
    ------
    SettingsError
        If the file is not like this; the message names the region.
    MicrographError
        If a picture cannot be read.
    """
    table = read_json(path)
    regions = table.get("regions")
    if not isinstance(regions, list) or not regions:
        raise SettingsError(
            f'{path}: has no regions: write {{"regions": [{{"layers": 1, "contrast": [r, g, b]}}]}}'
        )
    contrasts: dict[Path, NDArray[np.float32]] = {}
    known = []
    for number, region in enumerate(regions):
        where = f"{path}: region {number}"
        if not isinstance(region, dict):
            raise SettingsError(f"{where}: is no object with layers and contrast")
        _check_keys(region, where)
        layers = region["layers"]
        if not isinstance(layers, int) or isinstance(layers, bool):
            raise SettingsError(f"{where}: layers must be a whole number, not {layers!r}")
        if "contrast" in region:
            contrast = _as_contrast(region["contrast"], where)
        else:
            picture = Path(path).parent / str(region["image"])
            if picture not in contrasts:
                rgb = read(picture).rgb()
                flat = flatfield if flatfield is not None and flatfield.shape == rgb.shape else None
                contrasts[picture] = estimate_background(rgb, flat=flat, order=light_order).contrast(rgb)
            contrast = _measure(contrasts[picture], region, where)
        try:
            known.append(KnownRegion(layers, contrast))
        except ValueError as error:
            raise SettingsError(f"{where}: {error}") from None
    return tuple(known)


def _check_keys(region: dict[str, Any], where: str) -> None:
    given = {"layers", "contrast"} if "contrast" in region else {"layers", "image", "row_px", "col_px"}
    missing, unknown = sorted(given - set(region)), sorted(set(region) - given)
    if missing:
        raise SettingsError(
            f"{where}: {', '.join(missing)} missing: give layers and contrast, or layers, image, row_px and col_px"
        )
    if unknown:
        raise SettingsError(
            f"{where}: unknown {', '.join(unknown)}: only {', '.join(sorted(given))} belong here"
        )


def _as_contrast(value: Any, where: str) -> tuple[float, float, float]:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(
            isinstance(part, int | float) and not isinstance(part, bool) and part > -1 for part in value
        )
    ):
        raise SettingsError(f"{where}: contrast {value!r} must be three numbers above -1 (red, green, blue)")
    return float(value[0]), float(value[1]), float(value[2])


def _measure(contrast: NDArray[np.float32], region: dict[str, Any], where: str) -> tuple[float, float, float]:
    place = []
    for key, side in (("row_px", contrast.shape[0]), ("col_px", contrast.shape[1])):
        value = region[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < side:
            raise SettingsError(f"{where}: {key} of {value!r} lies outside the picture (0 to {side - 1})")
        place.append(round(value))
    row, col = place
    around = contrast[
        max(row - _AROUND_PX, 0) : row + _AROUND_PX + 1, max(col - _AROUND_PX, 0) : col + _AROUND_PX + 1
    ]
    red, green, blue = np.median(around.reshape(-1, 3), axis=0)
    return float(red), float(green), float(blue)
