"""What studies and recipes promise: no leaks but those they name, no choice on the test set, maps of what is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatscope.electron.defects import DefectParams, find_defects
from flatscope.electron.drawing.appearance import Look
from flatscope.electron.drawing.microscopes import Teacher
from flatscope.electron.drawing.noise import NoiseParams
from flatscope.electron.drawing.specimens import draw_scanned
from flatscope.electron.kinds import SITE_KINDS
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.evaluation.papers import defectfinder2018, larsen2021
from flatscope.evaluation.windows import KINDS, Windows
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph

torch = pytest.importorskip("torch")


class Marked(Network):
    """A network whose map of each class carries the class's number, and is as bright as before on average."""

    def run(self, x: np.ndarray) -> np.ndarray:
        maps = super().run(x)
        marks = 1000.0 * (1.0 + np.arange(maps.shape[1], dtype=np.float32))
        maps[:, :, 0, 0] += marks
        maps[:, :, 0, 1] -= marks
        return maps

    @staticmethod
    def read(maps: np.ndarray) -> np.ndarray:
        """The classes of maps, shape (n, rows, cols)."""
        return np.rint((maps[:, 0, 0] - maps[:, 0, 1]) / 2000.0).astype(int) - 1


def test_the_evidence_of_a_defect_is_the_map_of_its_own_kind() -> None:
    scanned = draw_scanned(
        np.random.default_rng(1),
        SheetParams("WS2", vacancies={"first": 0.03, "one": 0.03, "both": 0.03}, antisites=0.03),
        ScanParams(pixel_nm=0.025),
        NoiseParams(gain=1.0),
        shape=(200, 200),
        electrons_per_px=100.0,
    )
    scan = Micrograph(scanned.image, float(scanned.image.max()), Calibration((0.025, 0.025), "user"))
    network = Marked(**vars(Network.load("defects", task="defects", threads=1)))
    table = find_defects(scan, DefectParams("WS2"), network=network)
    shown = np.isfinite(table.evidence).all((1, 2))
    rows = table.frame[shown]
    assert {"V_W", "V_S", "V_S2"} <= set(rows["kind"])
    said = [
        SITE_KINDS[index].name_in(find_crystal("WS2"), bright=ratio > 1.0)
        for index, ratio in zip(Marked.read(table.evidence[shown]), rows["intensity_ratio"], strict=True)
    ]
    assert said == list(rows["kind"])


class Memory(torch.nn.Module):
    """Knows the windows it was trained on, however they are turned or mirrored, and takes others for the first kind.

    Its activation map of a kind is that kind's number everywhere.
    """

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.known = dict(zip(map(self.recall, windows.images), windows.kinds, strict=True))

    @staticmethod
    def recall(window: Any) -> bytes:
        """How far from the middle the brightest pixels lie."""
        rows, cols = np.unravel_index(np.argsort(np.ravel(window))[-20:], (64, 64))
        return np.rint(2.0 * ((rows - 31.5) ** 2 + (cols - 31.5) ** 2)).tobytes()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kinds = torch.tensor([int(self.known.get(self.recall(window), 0)) for window in x])
        return torch.nn.functional.one_hot(kinds, len(KINDS)).float()

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        return torch.arange(float(len(KINDS)))[None, :, None, None].expand(len(x), -1, 8, 8)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> defectfinder2018.Study:
    """DefectFinder's study on noise, with a network that only remembers."""

    def draw(count: int, *, seed: int, noise: str) -> Windows:
        rng = np.random.default_rng(seed)
        sheets = np.repeat(np.arange(count), 12)
        return Windows(
            rng.normal(size=(len(sheets), 64, 64)).astype(np.float32),
            rng.normal(size=(len(sheets), 2, 24, 24)).astype(np.float32),
            np.tile(np.arange(len(KINDS)), 2 * count),
            sheets,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defectfinder2018, "draw_windows", draw)
        patch.setattr(defectfinder2018, "_train", lambda split, *_, **__: (Memory(split.known), 0))
        return defectfinder2018.run("quick", out=tmp_path_factory.mktemp("study"))


def test_defectfinder_by_copy_leaks_and_by_sheet_does_not(remembered: defectfinder2018.Study) -> None:
    """Turned copies of training windows are tested by copy: memory is enough there, and chance elsewhere."""
    chance = 1.0 / len(KINDS)
    assert remembered.by_copy.value > 0.9
    assert remembered.by_sheet.value == pytest.approx(chance)
    for trained, held in remembered.grid.values():
        assert trained == 1.0 and held == pytest.approx(chance)


def test_defectfinder_shows_the_map_of_each_windows_own_kind(remembered: defectfinder2018.Study) -> None:
    shown = [float(np.mean(activation)) for _, activation in remembered.examples]
    assert shown == list(range(len(KINDS)))


def test_larsens_thresholds_are_chosen_on_series_that_nobody_is_scored_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Series that a network reads with several thresholds choose one; flatscope only sees those that count."""
    read: dict[bytes, set[float]] = {}
    scored: set[bytes] = set()
    nothing = np.zeros((0, 2)), np.zeros(0, np.int64)

    def read_pixels(net: Any, specimen: Any, *, least: float) -> Any:
        read.setdefault(specimen.sheet.positions_nm.tobytes(), set()).add(least)
        return nothing

    def find_columns_in(specimen: Any, *settings: Any) -> Any:
        scored.add(specimen.sheet.positions_nm.tobytes())
        return (*nothing, np.zeros(0))

    for name, value in (
        ("read_pixels", read_pixels),
        ("find_columns_in", find_columns_in),
        ("_train", lambda bodies, *settings, **more: bodies),
        ("_show", lambda support, methods: ()),
        ("_time", lambda nets, network: (dict.fromkeys((*nets, larsen2021.OURS), 0.0), 1.0)),
    ):
        monkeypatch.setattr(larsen2021, name, value)
    monkeypatch.setitem(larsen2021.SIZES, "quick", larsen2021.Size(64, 1, 1, 2, (4, 8), 1, 1, (), 0))
    study = larsen2021.run("quick")
    chosen_on = {sheet for sheet, thresholds in read.items() if len(thresholds) > 1}
    assert len(chosen_on) == len(scored) == 2  # one on each support
    assert {line.method for line in study.lines} == {larsen2021.MSD, larsen2021.UNET, larsen2021.OURS}
    assert not chosen_on & scored


def test_translation_there_and_back_is_learned_from_the_cycle_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the published weight of that loss, and all others at 0."""
    from flatscope.training import recipes
    from flatscope.training import translator as home

    made: list[Any] = []

    class Kept(home.Generator):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            made.append(self)

    monkeypatch.setattr(home, "Generator", Kept)
    for name in ("ADVERSARIAL", "IDENTITY", "ATTENTION"):
        monkeypatch.setattr(home, name, 0.0)
    look = Look(
        "MoS2",
        0.026,
        np.array([[10.5, 5.0], [-4.6, 12.0]]),
        0.8,
        NoiseParams(gain=0.1),
        -1.0,
        (ScanParams(pixel_nm=0.026),),
    )
    crops = np.random.default_rng(0).normal(size=(8, look.side_px, look.side_px)).astype(np.float32)
    teacher = Teacher(look, crops, crops, np.zeros((64, 64)), "drawn")
    recipe = recipes.load(
        "realism",
        scenes_train=1,
        scene_px=128,
        widths=(4, 8),
        batch=8,
        epochs=1,
        lr=3e-3,
        weight_decay=0.0,
        max_minutes=None,
    )
    x = torch.from_numpy(crops[:, None])
    errors = []
    for epochs in (1, 5):
        made.clear()
        home.train(
            recipe.change(epochs=epochs), teacher, out=tmp_path / str(epochs), fourier=False, workers=1
        )
        to_real, to_drawn = made
        with torch.inference_mode():
            errors.append(float((to_drawn(to_real(x)) - x).abs().mean()))
    assert errors[1] < 0.7 * errors[0]
