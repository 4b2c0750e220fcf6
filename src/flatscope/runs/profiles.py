"""Profiles of microscopes: what all pictures of one set-up share, kept in the user's configuration folder.

A profile is a folder: `profile.json` and, if the user has one, a picture of the light alone.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.files.write import WriteError, write_atomic
from flatscope.micrograph import Micrograph
from flatscope.optical.background import estimate_background
from flatscope.runs.settings import SettingsError, read_json

HOME = "FLATSCOPE_HOME"
"""Environment variable that names another configuration folder."""
_FILE = "profile.json"
_GRID = 8
"""The light's shape is compared on that many fields a side."""
_LEAST_COLOUR = 0.04
"""A relative change of the substrate's colour below this is none …"""
_LEAST_LIGHT = 0.03
"""… and so is one of the light's shape …"""
_LEAST_BRIGHTNESS = 0.15
"""… and one of the brightness; exposure is often automatic."""
_SIGMA = 3.0
"""Beyond these floors, a change counts if it exceeds the scatter of the profile's own pictures by this factor."""


@dataclass(frozen=True)
class Look:
    """How empty pictures of a microscope look.

    Parameters
    ----------
    colour
        Of the substrate, red, green, blue, in fractions of full scale.
    colour_sigma
        Relative scatter of colour among the profile's pictures.
    light
        Relative brightness of the light on 8x8 fields, mean 1, averaged over the channels.
    """

    colour: tuple[float, float, float]
    colour_sigma: float
    light: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Profile:
    """What is known of a microscope; "" and None stand for what is not.

    Parameters
    ----------
    name
        As `--setup` takes it.
    um_per_px
        Pixel size in µm.
    material, oxide_nm
        Of the samples, where they are always the same.
    flatfield
        File name of a picture of the light alone, beside the profile.
    known
        Crystals of known layer number of that material: layers, and contrast in red, green, blue.
    look
        Of its pictures, for `flatscope setup check`.
    folder
        Where it is kept.
    """

    name: str
    um_per_px: float | None = None
    material: str = ""
    oxide_nm: float | None = None
    flatfield: str = ""
    known: tuple[tuple[int, tuple[float, float, float]], ...] = ()
    look: Look | None = None
    folder: Path = field(default=Path(), compare=False)

    def list_settings(self, *kinds: type, material: str | None = None) -> dict[str, Any]:
        """Its settings as a settings file would state them, those that the dataclasses know.

        Known crystals are left out if another `material` is asked for.
        """
        names = {entry.name for kind in kinds for entry in fields(kind)}
        flat = str(self.folder / self.flatfield) if self.flatfield else None
        settings: dict[str, Any] = {
            "um_per_px": self.um_per_px,
            "material": self.material or None,
            "oxide_nm": self.oxide_nm,
            "flatfield": flat,
        }
        if self.known and material in (None, self.material):
            settings["known"] = [{"layers": layers, "contrast": list(rgb)} for layers, rgb in self.known]
        return {name: value for name, value in settings.items() if name in names and value is not None}


def find_home() -> Path:
    """The folder that holds all profiles."""
    home = Path.home()
    usual = {
        "win32": Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming"),
        "darwin": home / "Library" / "Application Support",
    }
    system = usual.get(sys.platform) or Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return Path(os.environ.get(HOME) or system / "flatscope") / "setups"


def list_profiles() -> list[str]:
    """Names of all profiles."""
    return sorted(path.parent.name for path in find_home().glob(f"*/{_FILE}"))


def read_profile(name: str) -> Profile:
    """Open a profile.

    Raises
    ------
    SettingsError
        If there is none of that name, or it is damaged.
    """
    folder = find_home() / name
    if name not in list_profiles():
        known = ", ".join(list_profiles()) or "none yet: flatscope setup new NAME"
        raise SettingsError(f"no set-up called {name!r}; known are {known}")
    table = read_json(folder / _FILE)
    try:
        look = table.pop("look", None)
        table["known"] = tuple((int(layers), tuple(rgb)) for layers, rgb in table.get("known", ()))
        made = None
        if look is not None:
            light = tuple(tuple(row) for row in look["light"])
            made = Look(tuple(look["colour"]), float(look["colour_sigma"]), light)
        return Profile(**table, look=made, folder=folder)
    except (KeyError, TypeError, ValueError) as error:
        raise SettingsError(
            f"{folder / _FILE}: is damaged ({error}): make it anew with flatscope setup new"
        ) from None


def write_profile(profile: Profile, *, flatfield: Path | None = None) -> Path:
    """Keep a profile, and a copy of its flat field.

    Raises
    ------
    SettingsError
        If the name cannot be one of a folder.
    WriteError
        If the folder cannot be written.
    """
    if not re.fullmatch(r"[\w][\w .+-]*", profile.name):
        raise SettingsError(f"set-up {profile.name!r}: a name has letters, digits, dots and dashes")
    folder = find_home() / profile.name
    plain = {name: value for name, value in asdict(profile).items() if name != "folder"}
    if flatfield is not None:
        plain["flatfield"] = f"flatfield{flatfield.suffix}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(flatfield, folder / plain["flatfield"])
        except OSError as error:
            raise WriteError.of(error, folder) from error
    return write_atomic(folder / _FILE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")


def measure_look(pictures: Sequence[Micrograph]) -> Look:
    """How the empty parts of pictures look, the flakes left out."""
    seen = [_look_at(picture) for picture in pictures]
    colours = np.array([colour for colour, _ in seen])
    light = np.mean([shape for _, shape in seen], axis=0)
    scatter = float((colours.std(0) / colours.mean(0)).max()) if len(seen) > 1 else 0.0
    red, green, blue = np.round(colours.mean(0), 5).tolist()
    rows: tuple[tuple[float, ...], ...] = tuple(map(tuple, np.round(np.asarray(light), 4)))
    return Look((red, green, blue), round(scatter, 5), rows)


def _look_at(picture: Micrograph) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rgb = picture.rgb()
    background = estimate_background(rgb)
    light = background.picture(rgb.shape[:2]) / background.colour.astype(np.float32)
    rows, cols = (np.linspace(0, side, _GRID + 1).astype(int) for side in rgb.shape[:2])
    fields_of = np.add.reduceat(np.add.reduceat(light.mean(-1), rows[:-1], 0), cols[:-1], 1)
    fields_of = fields_of / np.multiply.outer(np.diff(rows), np.diff(cols))
    return np.asarray(background.colour, float), np.asarray(fields_of / fields_of.mean(), float)


def find_drift(look: Look, picture: Micrograph) -> list[str]:
    """What has changed since a profile was made, one line each; nothing where lamp and camera are as they were.

    Parameters
    ----------
    look
        Of the profile.
    picture
        Taken now, of any sample on the same substrate.
    """
    colour, light = _look_at(picture)
    ratio = colour / np.array(look.colour)
    lines = []
    brightness = float(np.exp(np.log(ratio).mean()))
    tint = ratio / brightness - 1.0
    if np.abs(tint).max() > max(_LEAST_COLOUR, _SIGMA * look.colour_sigma):
        said = ", ".join(
            f"{name} {part:+.0%}" for name, part in zip(("red", "green", "blue"), tint, strict=True)
        )
        lines.append(f"the substrate's colour has changed ({said}): lamp, white balance, or another oxide")
    if abs(brightness - 1.0) > max(_LEAST_BRIGHTNESS, _SIGMA * look.colour_sigma):
        lines.append(f"the substrate is {brightness:.2f} times as bright: exposure or lamp")
    change = ndimage.uniform_filter(light / np.array(look.light) - 1.0, 2)
    if np.abs(change).max() > _LEAST_LIGHT:
        lines.append(
            f"the light's shape has changed by up to {np.abs(change).max():.0%}: take a new flat field"
        )
    return lines
