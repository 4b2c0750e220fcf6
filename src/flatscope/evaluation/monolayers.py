"""Monolayer and bilayer in drawn pictures of MoS2: how well they are distinguished by pixel and by region."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.evaluation.metrics import (
    Interval,
    binomial_interval,
    bootstrap,
    class_accuracy,
    confusion_matrix,
    recall_at_precision,
    score_histogram,
    vote_regions,
)
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.flakes import FlakeParams, find_flakes
from flatscope.optical.photographs import Microscope, draw_microscope
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.optical.setups import Prior
from flatscope.results import FlakeTable

CLASSES = ("other", "monolayer", "bilayer")
"""Classes 0, 1 and 2; other is the substrate and everything thicker."""
OXIDE_NM = 300.0  # oxide of the drawn pictures, which stand in for unpublished ones of MoS2
PARAMS = FlakeParams("MoS2", oxide_nm=OXIDE_NM, oxide_sigma_nm=5.0, min_area_px=80)
"""What flatscope is given. Every pixel counts here, so it may name smaller crystals than by default (80 px, chosen on
other scenes)."""
_SIDE_PX = 512  # side of a picture
_LEAST_MONOLAYER = 0.01  # smallest share of a picture that is monolayer, else another one is drawn
_LEAST_BILAYER = 0.005  # and bilayer
_LEAST_REGION_PX = 300  # smaller regions do not vote

Classes = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


def draw_laboratory() -> Microscope:
    """Draw the one set-up of all pictures in the published setting; exposure, white balance and focus still vary."""
    rng = np.random.default_rng(2019)
    prior = Prior("MoS2", oxide_nm=OXIDE_NM, oxide_sigma_nm=0.0)
    return draw_microscope(rng, prior.draw(rng, wide=False))


def draw_scenes(count: int, *, seed: int, microscope: Microscope | None = None) -> list[Scene]:
    """Draw pictures of MoS2 on 300 nm oxide that show monolayer and bilayer, cleaved and grown in turn.

    Parameters
    ----------
    microscope
        Takes all pictures; None draws another one for each.
    """
    found: list[Scene] = []
    for trial in itertools.count():
        scene = draw_scene(
            np.random.default_rng([seed, trial]),
            SceneParams(
                shape=(_SIDE_PX, _SIDE_PX),
                material="MoS2",
                oxide_nm=OXIDE_NM,
                growth="cvd" if len(found) % 2 else "exfoliated",
                microscope=microscope,
            ),
        )
        shares = [float(np.mean(scene.layers == layers)) for layers in (1, 2)]
        if shares[0] >= _LEAST_MONOLAYER and shares[1] >= _LEAST_BILAYER:
            found.append(scene)
        if len(found) == count:
            break
    return found


def classify(layers: NDArray[np.uint8]) -> Classes:
    """Layer numbers as `CLASSES`."""
    return np.where((layers == 1) | (layers == 2), layers, 0).astype(np.uint8)


def stack(scenes: list[Scene]) -> tuple[NDArray[np.uint8], Classes]:
    """Pictures (n, rows, cols, 3) and classes (n, rows, cols)."""
    return np.stack([scene.pixels for scene in scenes]), np.stack(
        [classify(scene.layers) for scene in scenes]
    )


def find_in_scene(scene: Scene, network: Network) -> FlakeTable:
    """flatscope's own answer for a scene."""
    return find_flakes(Micrograph(scene.pixels, source="scene"), PARAMS, network=network)


def to_probabilities(table: FlakeTable) -> Probabilities:
    """A flake table as class probabilities of every pixel, shape (3, rows, cols); unknown is neither."""
    p = np.zeros((int(table.labels.max(initial=0)) + 1, 3), np.float32)
    rows = table.found
    p[rows["region_id"].to_numpy(int), 1:] = rows[["p_1", "p_2"]].fillna(0.0).to_numpy(np.float32)
    p[:, 0] = 1.0 - p[:, 1:].sum(1)
    return np.ascontiguousarray(p[table.labels].transpose(2, 0, 1))


def name_by_truth(table: FlakeTable, scene: Scene) -> Probabilities:
    """The regions of a flake table with the shares of the true classes in each, shape (3, rows, cols).

    An oracle: the only errors left are those of the borders.
    """
    labels, true = table.labels, classify(scene.layers)
    shares = np.stack([np.bincount(labels[true == index], minlength=labels.max() + 1) for index in range(3)])
    p = (shares / np.maximum(shares.sum(0), 1)).astype(np.float32)
    return np.ascontiguousarray(p[:, labels])


@dataclass(frozen=True)
class Verdicts:
    """How one method's class probabilities agree with the truth, picture by picture, so that intervals can be drawn.

    Parameters
    ----------
    confusion
        Shape (pictures, 3, 3).
    histograms
        Shape (pictures, 2, 2, bins): of monolayer and bilayer, see `score_histogram`.
    votes
        Regions voted right, and all regions.
    """

    confusion: NDArray[np.int64]
    histograms: NDArray[np.int64]
    votes: tuple[int, int] = (0, 0)

    @property
    def accuracy(self) -> Interval:
        """Mean per-class pixel accuracy."""
        flat = self.confusion.reshape(len(self.confusion), -1)
        return bootstrap(flat, lambda sums: float(np.nanmean(class_accuracy(sums.reshape(3, 3)))))

    def accuracy_of(self, index: int) -> Interval:
        """Pixel accuracy of one class."""
        flat = self.confusion.reshape(len(self.confusion), -1)
        return bootstrap(flat, lambda sums: float(class_accuracy(sums.reshape(3, 3))[index]))

    def recall(self, index: int) -> Interval:
        """Largest recall at a precision of 0.9, of monolayer (0) or bilayer (1)."""
        bins = self.histograms.shape[-1]
        flat = self.histograms[:, index].reshape(len(self.histograms), -1)
        return bootstrap(flat, lambda sums: recall_at_precision(sums.reshape(2, bins)))

    @property
    def vote(self) -> Interval:
        """Share of regions whose majority class is the true one."""
        return binomial_interval(*self.votes)


def score_scenes(
    scenes: list[Scene], guesses: list[Probabilities], extra: list[Scene], voted: list[Probabilities]
) -> Verdicts:
    """Compare class probabilities with the truth; regions of the extra scenes vote."""
    confusion, histograms = [], []
    for scene, guess in zip(scenes, guesses, strict=True):
        true = classify(scene.layers)
        confusion.append(confusion_matrix(true, decide(guess), count=3))
        histograms.append([score_histogram(guess[layer], true == layer) for layer in (1, 2)])
    right = total = 0
    for scene, guess in zip(extra, voted, strict=True):
        areas = np.bincount(scene.regions.ravel())
        marked = np.where(
            (areas[scene.regions] >= _LEAST_REGION_PX) & (classify(scene.layers) > 0), scene.regions, 0
        )
        labels, winner = vote_regions(marked.astype(np.int32), decide(guess), count=3)
        true_of = dict(zip(scene.regions.ravel().tolist(), scene.layers.ravel().tolist(), strict=True))
        right += sum(int(true_of[int(label)] == won) for label, won in zip(labels, winner, strict=True))
        total += len(labels)
    return Verdicts(np.stack(confusion), np.array(histograms), (right, total))


def decide(p: Probabilities) -> Classes:
    """The likeliest class of every pixel."""
    return p.argmax(0).astype(np.uint8)
