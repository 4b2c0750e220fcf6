"""Profiles of microscopes: pixel size from a stage micrometer, what is kept, and whether lamp or camera drifted."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from flatscope.app.cli import run
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.micrometer import measure_pixel_size
from flatscope.runs.light import LightParams
from flatscope.runs.profiles import (
    Profile,
    find_drift,
    list_profiles,
    measure_look,
    read_profile,
    write_profile,
)


def draw_lines(pitch_px: float, turn_deg: float, *, every: int = 1, seed: int = 0) -> np.ndarray[Any, Any]:
    """Dark lines under uneven light, blurred, with noise; the others are half as long where `every` is above 1."""
    rows, cols = np.mgrid[:240, :320]
    turn = np.deg2rad(turn_deg)
    across = cols * np.cos(turn) + rows * np.sin(turn)
    along = (rows - 120) * np.cos(turn) - (cols - 160) * np.sin(turn)
    long = (np.floor(across / pitch_px) % every == 0) | (np.abs(along) < 60)
    dark = 120.0 * np.exp(-(((across % pitch_px - pitch_px / 2) / 1.5) ** 2)) * long
    picture = (200.0 - dark) * (1.0 - 3e-6 * ((rows - 120) ** 2 + (cols - 160) ** 2))
    noise = np.random.default_rng(seed).normal(0.0, 3.0, picture.shape)
    return (ndimage.gaussian_filter(picture, 1.0) + noise).clip(0, 255).astype(np.uint8)


def photograph(colour: tuple[float, float, float], fall: float = 0.1, seed: int = 0) -> Micrograph:
    """An empty substrate under light that falls off towards the corners."""
    rows, cols = np.mgrid[-1:1:120j, -1:1:160j]
    light = 1.0 - fall * (rows**2 + cols**2)
    noise = np.random.default_rng(seed).normal(0.0, 1.0, (*light.shape, 3))
    return Micrograph((light[..., None] * np.array(colour) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLATSCOPE_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.mark.parametrize(
    ("pitch_px", "turn_deg", "every"), [(25.3, 0.0, 1), (18.21, 93.7, 5), (40.7, 32.0, 10), (9.13, -60.0, 1)]
)
def test_pixel_size_from_lines_at_any_angle(pitch_px: float, turn_deg: float, every: int) -> None:
    picture = Micrograph(draw_lines(pitch_px, turn_deg, every=every))
    assert measure_pixel_size(picture, 10.0) == pytest.approx(10.0 / pitch_px, rel=1e-4)


def test_a_picture_without_lines_has_no_pixel_size() -> None:
    with pytest.raises(MicrographError, match=r"shows no periodic lines: .* or give --um-per-px"):
        measure_pixel_size(photograph((150, 110, 170)), 10.0)


def test_a_profile_comes_back_as_it_was(home: Path) -> None:
    profile = Profile(
        "zeiss 50x", 0.1234, "MoS2", 285.0, known=((1, (-0.1, -0.2, 0.05)),),
        look=measure_look([photograph((150, 110, 170)), photograph((151, 111, 171), seed=1)]),
    )  # fmt: skip
    write_profile(profile)
    assert list_profiles() == ["zeiss 50x"] and read_profile("zeiss 50x") == profile
    settings = read_profile("zeiss 50x").list_settings(FlakeParams, LightParams)
    assert (settings["um_per_px"], settings["material"], settings["oxide_nm"]) == (0.1234, "MoS2", 285.0)
    assert settings["known"] == [{"layers": 1, "contrast": [-0.1, -0.2, 0.05]}]
    assert "known" not in profile.list_settings(FlakeParams, material="WS2")


def test_drift_of_lamp_camera_and_light_is_told() -> None:
    look = measure_look([photograph((150, 110, 170))])
    assert find_drift(look, photograph((150, 110, 170), seed=5)) == []
    assert find_drift(look, photograph((156, 114, 177), seed=5)) == []  # exposure is often automatic
    (line,) = find_drift(look, photograph((165, 110, 155), seed=5))
    assert "colour has changed (red +" in line
    (line,) = find_drift(look, photograph((75, 55, 85), seed=5))
    assert "0.50 times as bright" in line
    (line,) = find_drift(look, photograph((150, 110, 170), fall=0.25, seed=5))
    assert "light's shape has changed" in line


def test_a_microscope_is_set_up_and_checked_on_the_command_line(home: Path, capsys: Any) -> None:
    Image.fromarray(draw_lines(25.3, 0.0)).save(home / "lines.png")
    for name, colour in (("a", (150, 110, 170)), ("b", (120, 110, 190))):
        Image.fromarray(photograph(colour).pixels).save(home / f"{name}.png")
    new = ["setup", "new", "mine", "--micrometer", str(home / "lines.png"), "--pitch-um", "10"]
    assert run([*new, "--material", "MoS2", "--reference", str(home / "a.png")]) == 0
    assert "lines every 25.30 px: 0.3952" in capsys.readouterr().out
    assert run(new) == 2
    assert "'mine' is there already: pass --replace" in capsys.readouterr().err
    assert run(["setup", "list"]) == 0
    assert re.fullmatch(r"mine: 0\.395\d µm/px, MoS2\n", capsys.readouterr().out)
    assert run(["setup", "check", "mine", str(home / "a.png")]) == 0
    assert capsys.readouterr().out == "a.png: as it was\n"
    assert run(["setup", "check", "mine", str(home / "b.png")]) == 1
    assert "b.png: the substrate's colour has changed" in capsys.readouterr().out
    assert run(["setup", "check", "nobody", str(home / "b.png")]) == 2
    assert "no set-up called 'nobody'; known are mine" in capsys.readouterr().err
