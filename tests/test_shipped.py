"""Each shipped network gives what it gave when it was released: the same file, the same preparation of its input."""

from __future__ import annotations

import numpy as np
import pytest

from flatscope.inference import registry
from flatscope.inference.runtime import Network

MAPS = {
    "columns": (
        (2.58503, -1.42018, -1.77785, -2.53700, -3.90822, -0.04358, -0.42586, 0.04838),
        (1.95044, -0.79035, -1.17091, -2.19048, -4.11557, 0.07148, -0.05782, 0.05509),
    ),
    "defects": (
        (-0.28589, -5.06257, 0.23471, 6.57186, 1.40059, -3.41958, -5.52065, 5.41322, -0.58263),
        (0.04643, -1.91254, 0.17905, 4.17289, 1.84672, -4.92579, -2.48930, 5.18299, -1.68381),
    ),
    "flakes": (
        (-0.18938, -3.15853, -7.51150, -1.70520, -1.40848),
        (-0.60757, -2.90352, -7.42021, -1.71428, -2.40050),
    ),
}
"""Logits of every output in row 3, column 4, and their means."""


def draw_waves(rows: int, cols: int, channels: int) -> np.ndarray:
    """Waves that no turn, mirror or change of channels leaves as they are, from -2 to 2; (rows, cols, channels)."""
    row, col, channel = np.ogrid[:rows, :cols, :channels]
    return np.sin(0.7 * row + 1.3 * channel) + np.cos(0.45 * col - 0.6 * channel) * np.sin(
        0.11 * row + 0.23 * col
    )


@pytest.mark.parametrize(
    ("name", "shape", "strength"),
    [("columns", (24, 40), 1.0), ("defects", (24, 24), 1.0), ("flakes", (32, 48), 0.15)],
)
def test_a_shipped_network_answers_as_on_its_first_day(
    name: str, shape: tuple[int, int], strength: float
) -> None:
    """Waves of contrast for flakes, of heights for crops and focal series."""
    network = Network.load(name, task=name, threads=1)
    waves = strength * draw_waves(*shape, len(network.card.channels))
    logits = network.run(network.card.normalise(waves)[None])[0]
    there, mean = MAPS[name]
    assert logits[:, 3, 4] == pytest.approx(there, abs=1e-4)
    assert logits.mean((1, 2)) == pytest.approx(mean, abs=1e-4)


def test_the_shipped_orientation_network_answers_as_on_its_first_day() -> None:
    """Layers where waves are high."""
    network = Network.load("orientation", task="orientation", threads=1)
    layers = (draw_waves(64, 64, 2) > 0.2).astype(np.float32)
    (answer,) = network.run(network.card.normalise(layers)[None])
    assert answer == pytest.approx((-9.11645, -0.90369, -1.56659, 2.75723), abs=1e-4)


def test_no_network_ships_without_its_stored_answers() -> None:
    assert set(registry.names()) == {*MAPS, "orientation"}
