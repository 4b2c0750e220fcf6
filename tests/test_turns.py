"""Whole verbs find the same in a picture that is turned by quarters or mirrored.

Nothing is interpolated, so the answer is known exactly; a quarter turn and a mirror make up all eight ways to hold a
picture. Networks, grids and random draws know which way is up: how much that may change is stated at each claim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytest
from skimage import draw

from flatscope import (
    Calibration,
    ColumnParams,
    DefectParams,
    FlakeParams,
    Micrograph,
    Movie,
    TrackParams,
    TwistParams,
    find_columns,
    find_defects,
    find_flakes,
    measure_twist,
    track_defects,
)
from flatscope.electron.drawing.hopping import HoppingParams, draw_hopping
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import draw_scanned
from flatscope.electron.physics.crystals import SheetParams
from flatscope.electron.physics.imaging import ScanParams
from flatscope.optical.bilayers import cut_triangle
from flatscope.optical.scenes import SceneParams, draw_scene

PIXEL_NM = 0.025


@dataclass(frozen=True)
class Turn:
    """A symmetry of the square: what it does to a picture, to a place in it, and to a direction.

    `place` takes row, column and the last column; a direction becomes `turn_deg` plus or, mirrored, minus itself.
    """

    picture: Callable[[np.ndarray], np.ndarray]
    place: Callable[[Any, Any, int], tuple[Any, Any]]
    turn_deg: float
    sense: float

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.picture(picture))

    def find_partners(
        self, upright: pd.DataFrame, turned: pd.DataFrame, shape: tuple[int, ...], *, within_px: float
    ) -> pd.DataFrame:
        """The rows of `turned` beside those of `upright` that lie where the turn puts them, columns with suffixes."""
        rows, cols = self.place(upright["row_px"], upright["col_px"], shape[1] - 1)
        gap = np.hypot(
            *(
                one.to_numpy()[:, None] - turned[name].to_numpy()
                for one, name in ((rows, "row_px"), (cols, "col_px"))
            )
        )
        nearest = gap.argmin(1)
        partners = turned.iloc[nearest].add_suffix("_turned")
        pairs = pd.concat([part.reset_index(drop=True) for part in (upright, partners)], axis=1)
        mutual = gap.argmin(0)[nearest] == np.arange(len(upright))
        return pairs.assign(off_px=gap.min(1))[mutual & (gap.min(1) <= within_px)]


TURNS = {
    "quarter": Turn(lambda a: np.rot90(a), lambda row, col, right: (right - col, row), 90.0, 1.0),
    "mirror": Turn(lambda a: a[:, ::-1], lambda row, col, right: (row, right - col), 180.0, -1.0),
}


@pytest.fixture(params=TURNS)
def turn(request: pytest.FixtureRequest) -> Turn:
    return TURNS[request.param]


# Light


@pytest.fixture(scope="module")
def crystals() -> tuple[np.ndarray, pd.DataFrame]:
    """A picture of grown MoS2, and what is found in it."""
    params = SceneParams(shape=(256, 320), material="MoS2", growth="cvd", density=2.0, clean=True)
    picture = draw_scene(np.random.default_rng(2), params).pixels
    return picture, find_flakes(Micrograph(picture), FlakeParams("MoS2")).found


def test_flakes_turn_with_the_picture(crystals: tuple[np.ndarray, pd.DataFrame], turn: Turn) -> None:
    """Nine of ten regions, and all above 500 px: centres within 3 px, areas within 10 %, the same layer number."""
    picture, upright = crystals
    turned = find_flakes(Micrograph(turn(picture)), FlakeParams("MoS2")).found
    pairs = turn.find_partners(upright, turned, picture.shape, within_px=3.0)
    same = pairs[
        (pairs["layers"] == pairs["layers_turned"])
        & ((pairs["area_px_turned"] / pairs["area_px"] - 1.0).abs() < 0.1)
    ]
    assert len(upright) >= 12
    assert len(same) >= 0.9 * max(len(upright), len(turned))
    assert (same["area_px"] > 500).sum() == (upright["area_px"] > 500).sum()


@pytest.fixture(scope="module")
def bilayer() -> np.ndarray:
    """Layer numbers of a triangle, a corner at 17°, and of a smaller one on it at 42°."""
    layers = np.zeros((230, 210), np.uint8)
    for radius, corner_deg, centre in ((90.0, 17.0, (110, 105)), (45.0, 42.0, (112, 100))):
        outline = cut_triangle(radius, turn=corner_deg, cut=0.05) + centre[::-1]
        layers[draw.polygon(outline[:, 1], outline[:, 0], layers.shape)] += 1
    return layers


@pytest.mark.parametrize("method", ["edges", "network"])
def test_a_twist_stays_when_both_crystals_turn(bilayer: np.ndarray, turn: Turn, method: str) -> None:
    """Within 0.1°; corners turn with the picture, and a crystal has three of them."""
    params = TwistParams(method=method)
    (upright,) = measure_twist(bilayer, params).frame.to_dict("records")
    (turned,) = measure_twist(turn(bilayer), params).frame.to_dict("records")
    assert upright["twist_deg"] == pytest.approx(25.0, abs=0.3)
    assert turned["twist_deg"] == pytest.approx(upright["twist_deg"], abs=0.1)
    for layer in ("bottom_deg", "top_deg"):
        off = turned[layer] - turn.turn_deg - turn.sense * upright[layer]
        assert (off + 60.0) % 120.0 - 60.0 == pytest.approx(0.0, abs=0.1)
    place = turn.place(upright["row_px"], upright["col_px"], bilayer.shape[1] - 1)
    assert (turned["row_px"], turned["col_px"]) == pytest.approx(place, abs=1e-6)


# Electrons


def as_micrograph(image: np.ndarray) -> Micrograph:
    return Micrograph(image, float(image.max()), Calibration((PIXEL_NM, PIXEL_NM), "user"))


@pytest.fixture(scope="module")
def scan() -> np.ndarray:
    """WS2 with vacancies, (150, 190) pixels of 0.025 nm."""
    contents = SheetParams("WS2", turn_deg=17.0, vacancies={"first": 0.04, "one": 0.05, "both": 0.04})
    return draw_scanned(
        np.random.default_rng(1),
        contents,
        ScanParams(pixel_nm=PIXEL_NM),
        NoiseParams(gain=1.0),
        shape=(150, 190),
        electrons_per_px=100.0,
    ).image


@pytest.fixture(scope="module")
def columns(scan: np.ndarray) -> pd.DataFrame:
    return find_columns(as_micrograph(scan), ColumnParams("WS2")).found


def test_columns_turn_with_the_image(scan: np.ndarray, columns: pd.DataFrame, turn: Turn) -> None:
    """All but one in a hundred, of the same species, and half of them within a twentieth of their stated error."""
    turned = find_columns(as_micrograph(turn(scan)), ColumnParams("WS2")).found
    pairs = turn.find_partners(columns, turned, scan.shape, within_px=0.5)
    assert len(columns) > 250
    assert len(pairs) >= 0.99 * max(len(columns), len(turned))
    assert (pairs["off_px"] / pairs["sigma_px"]).median() < 0.05
    assert (pairs["species"] == pairs["species_turned"]).mean() > 0.99


@pytest.fixture(scope="module")
def defects(scan: np.ndarray) -> pd.DataFrame:
    return find_defects(as_micrograph(scan), DefectParams("WS2")).found


def test_defects_turn_with_the_image(scan: np.ndarray, defects: pd.DataFrame, turn: Turn) -> None:
    """All of them, of the same kind, within 0.5 px of 13 from site to site; brightness within 0.05."""
    turned = find_defects(as_micrograph(turn(scan)), DefectParams("WS2")).found
    pairs = turn.find_partners(defects, turned, scan.shape, within_px=0.5)
    assert len(pairs) == len(defects) == len(turned) >= 8
    assert (pairs["kind"] == pairs["kind_turned"]).all()
    assert (pairs["intensity_ratio"] - pairs["intensity_ratio_turned"]).abs().max() < 0.05


@pytest.fixture(scope="module")
def movie() -> np.ndarray:
    params = HoppingParams(material="WS2", frames=5, shape=(110, 130), electrons_per_px=40.0, vacancies=0.04)
    return draw_hopping(np.random.default_rng(7), params).frames


def follow(frames: np.ndarray) -> Any:
    pixel_nm = HoppingParams().optics.pixel_nm
    calibration = Calibration((pixel_nm, pixel_nm), "user")
    return track_defects(
        Movie(lambda: iter(frames), len(frames), calibration, 1.0), TrackParams("WS2"), workers=1
    )


@pytest.fixture(scope="module")
def tracks(movie: np.ndarray) -> Any:
    return follow(movie)


def test_tracks_turn_with_the_movie(movie: np.ndarray, tracks: Any, turn: Turn) -> None:
    """Nine of ten defects of all frames, in the same tracks and with the same events; drift within 5 pm."""
    turned = follow(np.stack([turn(frame) for frame in movie]))
    shape = movie.shape[1:]
    matched = [
        turn.find_partners(
            tracks.frame[tracks.frame["frame"] == number],
            turned.frame[turned.frame["frame"] == number],
            shape,
            within_px=1.0,
        )
        for number in range(len(movie))
    ]
    pairs = pd.concat(matched)
    # To one track here belongs one there.
    links = pairs.groupby("track_id")["track_id_turned"].nunique()
    drift = turn.place(tracks.drift["row_nm"], tracks.drift["col_nm"], 0)
    assert len(pairs) >= 0.9 * max(len(tracks.frame), len(turned.frame)) > 30
    assert (pairs["kind"] == pairs["kind_turned"]).all()
    assert (links == 1).mean() >= 0.9
    assert sorted(turned.events["event"]) == sorted(tracks.events["event"])
    np.testing.assert_allclose(turned.drift[["row_nm", "col_nm"]].to_numpy().T, drift, atol=0.005)
