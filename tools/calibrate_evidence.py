"""Fit the weights of `flatscope.optical.verdicts`: what tells crystals from dirt in drawn scenes.

Each scene is read twice, once with its own material and oxide and once with wrong ones, so that the weights hold where
the optics explain nothing. Half of the scenes are fitted; the table is of the other half.

    python tools/calibrate_evidence.py --scenes 200
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.optical.batches import Sighting
from flatscope.optical.flakes import FlakeParams, find_regions, fit_setups, place_layers
from flatscope.optical.materials import MATERIALS, find_material
from flatscope.optical.regions import Regions
from flatscope.optical.scenes import Scene, SceneParams, draw_scene
from flatscope.optical.verdicts import list_evidence

Float = NDArray[np.float64]
NAMES = ("base", "crystal", "roundness", "uneven", "explained")
BINS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def read_scene(seed: int, index: int, side_px: int, network: Network) -> tuple[Float, Float]:
    """Evidence of the regions of a scene, shape (regions, 5), and whether each is a crystal."""
    rng = np.random.default_rng(np.random.SeedSequence(entropy=(seed, 77), spawn_key=(index,)))
    scene = draw_scene(rng, SceneParams(shape=(side_px, side_px), density=float(rng.uniform(0.3, 1.4))))
    picture = Micrograph(scene.pixels, source=f"scene {index}")
    material, oxide = find_material(scene.setup.material).name, float(scene.setup.oxide_nm[0])
    right = FlakeParams(material, float(np.clip(oxide + rng.normal(0.0, 5.0), 55, 330)), 5.0)
    wrong = FlakeParams(str(rng.choice(sorted(MATERIALS))), float(rng.uniform(60.0, 320.0)), 5.0)
    regions = find_regions(picture, right, network=network)
    true = mark_crystals(regions, scene)[regions.large_enough]
    rows = []
    for params in (right, wrong):
        (setup,) = fit_setups([Sighting.of(regions)], params)
        rows.append(list_evidence(regions, place_layers(regions, setup))[regions.large_enough])
    return np.concatenate(rows), np.tile(true, 2)


def mark_crystals(regions: Regions, scene: Scene) -> Float:
    """1 for regions that lie on a crystal by more than half."""
    crystal = np.where(scene.foreign, 0, scene.regions > 0)
    share = np.bincount(regions.labels.ravel(), crystal.ravel(), len(regions) + 1)[1:]
    return (share > 0.5 * regions.measured.area_px).astype(float)


def fit_weights(evidence: Float, true: Float) -> Float:
    """Weights that make the truth likeliest; a wide prior keeps them finite."""

    def loss(weights: Float) -> tuple[float, Float]:
        odds = evidence @ weights
        chance = 1.0 / (1.0 + np.exp(-odds))
        value = np.logaddexp(0.0, -(2.0 * true - 1.0) * odds).sum() + 0.05 * (weights**2).sum()
        return float(value), evidence.T @ (chance - true) + 0.1 * weights

    return np.asarray(minimize(loss, np.zeros(len(NAMES)), jac=True, method="L-BFGS-B").x)


def main() -> None:
    """Draw, read, fit, and print weights and reliability."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="file for the evidence, to look at it in other ways")
    given = parser.parse_args()
    network = Network.load("flakes", threads=1)
    read = [read_scene(given.seed, index, given.side, network) for index in range(given.scenes)]
    if given.keep:
        scenes = np.repeat(np.arange(len(read)), [len(true) for _, true in read])
        np.savez(given.keep, evidence=np.concatenate([e for e, _ in read]), true=np.concatenate([t for _, t in read]),
                 scene=scenes)  # fmt: skip
    fitted, kept = ([np.concatenate(part) for part in zip(*read[start::2], strict=True)] for start in (0, 1))
    weights = fit_weights(*fitted)
    print(*(f"{name} {weight:.2f}" for name, weight in zip(NAMES, weights, strict=True)), sep=", ")
    chance = 1.0 / (1.0 + np.exp(-kept[0] @ weights))
    for low, high in itertools.pairwise(BINS):
        inside = (chance >= low) & (chance < high)
        if inside.any():
            print(
                f"{low:.2f} to {high:.2f}: {inside.sum():5d} regions, stated {chance[inside].mean():.3f}, "
                f"right {kept[1][inside].mean():.3f}"
            )


if __name__ == "__main__":
    main()
