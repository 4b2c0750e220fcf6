"""What light micrographs are given besides a verb's settings: pixel size, flat field, weights, known regions."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.layer_labels import read_layer_labels
from flatscope.files.read import read
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.background import LIGHT_ORDER, estimate_flatfield, flatfield_from
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.known import KnownPlaces, count_from_height, question
from flatscope.optical.materials import find_material
from flatscope.optical.observations import MOST_LAYERS, KnownRegion
from flatscope.results import FlakeTable
from flatscope.runs.items import Item
from flatscope.runs.run import read_answers
from flatscope.runs.settings import SettingsError, checked, read_json

if TYPE_CHECKING:
    from flatscope.runs.edits import Known, Line

_PLACE = re.compile(
    r"(?P<file>.+)@(?P<row>\d+(\.\d+)?),(?P<col>\d+(\.\d+)?)=(?P<value>\d+(\.\d+)?)\s*(?P<unit>L|nm)", re.I
)
"""FILE@ROW,COL=1L, or =23.5nm."""
LAYER_IMAGE = ".layers.png"
"""Ending of the files that users may paint over."""
_COLOUR_SIGMA = 0.01
"""1-sigma error of a contrast that a user states in numbers."""
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
    places = KnownPlaces(flatfield=flatfield, light_order=light_order)
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
            contrast = _measure(places, read(Path(path).parent / str(region["image"])), region, where)
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


def _measure(
    places: KnownPlaces, picture: Micrograph, region: dict[str, Any], where: str
) -> tuple[float, float, float]:
    for key, side in zip(("row_px", "col_px"), picture.shape, strict=True):
        value = region[key]
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < side:
            raise SettingsError(f"{where}: {key} of {value!r} lies outside the picture (0 to {side - 1})")
    red, green, blue = places.measure(picture, region["row_px"], region["col_px"])[0].tolist()
    return red, green, blue


@dataclass(frozen=True)
class Stated:
    """What a user says of known crystals on the command line.

    Parameters
    ----------
    places
        Each FILE@ROW,COL=1L, or =23.5nm for a height.
    calibrate
        A file as `read_known` takes it, or None.
    trust
        Believe them also where the optics disagree.
    """

    places: tuple[str, ...] = ()
    calibrate: Path | None = None
    trust: bool = False


def write_down(
    stated: Stated,
    items: Sequence[Item],
    params: FlakeParams,
    *,
    flatfield: NDArray[np.float32] | None,
) -> list[Line]:
    """Turn what a user says of known crystals into corrections; the optics are asked whether it can be.

    Raises
    ------
    SettingsError
        If a place cannot be understood, or the optics disagree and nobody says to trust it.
    MicrographError
        If a picture cannot be read.
    """
    from flatscope.runs.edits import KnownColour, sign  # pydantic takes 0.1 s

    lines: list[Line] = []
    places = KnownPlaces(flatfield=flatfield, light_order=params.light_order)
    for text in stated.places:
        lines.append(_write_place(text, items, params, places, trust=stated.trust))
    if stated.calibrate is not None:
        known = read_known(stated.calibrate, flatfield=flatfield, light_order=params.light_order)
        for number, region in enumerate(known):
            where = f"{stated.calibrate}: region {number} as {region.layers}L"
            sigma = np.full(3, _COLOUR_SIGMA)
            _refuse(
                question(region.layers, region.contrast, sigma, params.prior()), where, trust=stated.trust
            )
            lines.append(
                KnownColour(
                    material=params.material,
                    layers=region.layers,
                    contrast=region.contrast,
                    trust=stated.trust,
                )
            )
    return [sign(line) for line in lines]


def measure_known(
    texts: Sequence[str], params: FlakeParams, *, trust: bool
) -> tuple[tuple[int, tuple[float, float, float]], ...]:
    """Layers and contrasts of known crystals in pictures of any run, for a profile.

    Raises
    ------
    SettingsError
        As for `write_down`.
    """
    places = KnownPlaces(light_order=params.light_order)
    lines = [_write_place(text, (), params, places, trust=trust) for text in texts]
    return tuple(
        (line.layers, line.contrast)
        for line in lines
        if line.contrast is not None and line.layers <= MOST_LAYERS
    )


def adopt_painted(
    out: Path, record: Mapping[str, Any], names: Collection[str]
) -> tuple[list[Line], list[str]]:
    """Corrections from layer images of an earlier start that somebody painted over, and what cannot be taken.

    Parameters
    ----------
    out, record
        The results folder and its run.json.
    names
        Files that were changed, such as "a.layers.png".
    """
    from flatscope.runs.replay import adopt_layer_image  # pydantic takes 0.1 s

    lines: list[Line] = []
    problems: list[str] = []
    for stem, answer in read_answers(out, record):
        path = out / f"{stem}{LAYER_IMAGE}"
        if path.name not in names:
            continue
        table = answer.tables["flakes"]
        try:
            layers = read_layer_labels(path)
        except MicrographError as error:
            problems.append(str(error))
            continue
        if not isinstance(table, FlakeTable) or layers.shape != table.labels.shape:
            problems.append(f"{path}: has another size than its picture: it does not count")
            continue
        lines += adopt_layer_image(table, layers)
    return lines, problems


def _write_place(
    text: str, items: Sequence[Item], params: FlakeParams, places: KnownPlaces, *, trust: bool
) -> Known:
    """The correction that one `--known` means."""
    from flatscope.runs.edits import Known

    found = _PLACE.fullmatch(text.strip())
    if found is None:
        raise SettingsError(
            f"--known {text}: write FILE@ROW,COL=1L, or =23.5nm for a height, such as a.jpg@120,340=1L"
        )
    item = _find_item(found["file"], items)
    path = item.sources[0] if item is not None else Path(found["file"])
    if not path.exists():
        raise SettingsError(f"--known {text}: no picture of this run is called {found['file']}")
    picture, prior = read(path), params.prior()
    row, col, value = (float(found[name]) for name in ("row", "col", "value"))
    contrast, sigma = places.measure(picture, row, col)
    is_height = found["unit"].lower() == "nm"
    layers = int(value)
    if is_height:
        layers = count_from_height(value, find_material(prior.material).layer_nm)
    _refuse(question(layers, contrast, sigma, prior), text, trust=trust)
    red, green, blue = (round(part, 5) for part in contrast.tolist())
    return checked(
        Known,
        image=path.name if item is None else item.name,
        sha256=picture.sha256,
        row_px=row,
        col_px=col,
        material=params.material,
        layers=layers,
        height_nm=value if is_height else None,
        contrast=(red, green, blue),
        trust=trust,
    )


def _find_item(name: str, items: Sequence[Item]) -> Item | None:
    """The picture of a run that a user calls so: by its name in the tables, its path, or its file name."""
    ways: tuple[Callable[[Item], str], ...] = (
        lambda item: item.name,
        lambda item: str(item.sources[0]),
        lambda item: item.sources[0].name,
    )
    for way in ways:
        meant = [item for item in items if way(item) == name]
        if len(meant) == 1:
            return meant[0]
    return None


def _refuse(doubt: str, where: str, *, trust: bool) -> None:
    if doubt and not trust:
        raise SettingsError(f"{where} {doubt} --trust uses it all the same")
