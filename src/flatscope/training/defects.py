"""Train the network that names what stands on a lattice site, on drawn ADF-STEM images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import nn

from flatscope.electron.drawing.noise import SPOILS, spoil
from flatscope.electron.drawing.specimens import draw_microscope, draw_noise, draw_point_defects, draw_scanned
from flatscope.electron.kinds import GROUPS, SITE_CLASSES, classify_sites
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.physics.crystals import DICHALCOGENIDES, find_crystal
from flatscope.electron.sites import CROP_PX, cut_crops, find_sites, level
from flatscope.inference.card import Score
from flatscope.parallel import map_in_order
from flatscope.training import supervised
from flatscope.training.engine import Trained
from flatscope.training.losses import IGNORE
from flatscope.training.nets.cropnet import CropNet
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Defects

Half = NDArray[np.float16]
Classes = NDArray[np.uint8]
LATTICE_PX = (7.0, 20.0)  # lattice constants of drawn images
ELECTRONS = (2.0, 500.0)  # a pixel
INNER_MRAD = (40.0, 90.0)  # inner angle of the detector
SPOILT_VARIANCE = (1e-3, 2e-2)  # of the noise that image processing knows
_SPOILT_SHARE = 0.3  # of the images that also have such noise
_SALTED = (0.0, 0.08)  # share of pixels with salt and pepper
_PERFECT_SHARE = 1.5  # perfect sites kept for each defect
_MATCH = 0.25  # lattice constants; a found site this close to a true one is that site
_RIM_PX = 2.0  # sites closer to the border are not taught


@dataclass(frozen=True)
class Crops:
    """Crops around sites and what stands there.

    Parameters
    ----------
    images
        Shape (n, 24, 24, 2), see `flatscope.electron.sites.cut_crops`.
    classes
        Shape (n,): places in `flatscope.electron.kinds.SITE_CLASSES`.
    scans
        Shape (n,): the image each was cut from. Crops of one image never stand on both sides of a split.
    """

    images: Half
    classes: Classes
    scans: NDArray[np.int32]

    def take(self, rows: NDArray[np.bool_]) -> Crops:
        """Some of them."""
        return Crops(self.images[rows], self.classes[rows], self.scans[rows])


def draw_crops(
    count: int,
    *,
    side: int,
    seed: int,
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> Crops:
    """Crops of `count` drawn images of the four dichalcogenides in turn.

    Parameters
    ----------
    side
        Rows and columns of an image.
    seed
        Image i has the random stream (seed, i): the result does not depend on the number of workers.
    """
    jobs = [(seed, index, side) for index in range(count)]
    made = list(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress))
    scans = np.repeat(np.arange(count), [len(classes) for _, classes in made]).astype(np.int32)
    images = np.concatenate([images for images, _ in made])
    return Crops(images, np.concatenate([classes for _, classes in made]), scans)


def _draw(job: tuple[int, int, int]) -> tuple[Half, Classes]:
    seed, index, side = job
    rng = np.random.default_rng([seed, index])
    material = DICHALCOGENIDES[index % len(DICHALCOGENIDES)]
    crystal = find_crystal(material)
    pixel_nm = crystal.lattice_nm / float(rng.uniform(*LATTICE_PX))
    inner = float(rng.uniform(*INNER_MRAD))
    optics = replace(draw_microscope(rng, pixel_nm=pixel_nm), collection_mrad=(inner, 200.0))
    electrons = float(np.exp(rng.uniform(*np.log(ELECTRONS))))
    scanned = draw_scanned(
        rng,
        draw_point_defects(rng, material),
        optics,
        draw_noise(rng),
        shape=(side, side),
        electrons_per_px=electrons,
    )
    image = np.asarray(scanned.image, float)
    if rng.random() < _SPOILT_SHARE:
        image = spoil(
            rng,
            image,
            str(rng.choice(SPOILS)),
            variance=float(np.exp(rng.uniform(*np.log(SPOILT_VARIANCE)))),
            salted=float(rng.uniform(*_SALTED)),
        )
    nothing = np.zeros((0, CROP_PX, CROP_PX, 2), np.float16), np.zeros(0, np.uint8)
    try:
        sites = find_sites(image, first=0, expected_px=crystal.lattice_nm / pixel_nm)
    except NoLatticeError:
        return nothing
    true = scanned.sheet.sites_nm / pixel_nm
    known = scanned.sheet.sublattice >= 0
    gap, nearest = cKDTree(true[known]).query(sites.positions)
    meant = np.flatnonzero(known)[nearest]
    near = gap < _MATCH * sites.phases.lattice.constant_px
    if near.mean() < 0.5:
        return nothing
    # Which sublattice is the brighter one depends on the detector: the truth says it.
    if np.mean(scanned.sheet.sublattice[meant[near]] == sites.sublattice[near]) < 0.5:
        sites = sites.swap()
    classes = classify_sites(scanned.sheet, crystal)[meant]
    classes[~near | (scanned.sheet.sublattice[meant] != sites.sublattice)] = IGNORE
    rim = (sites.positions < _RIM_PX) | (sites.positions > side - 1.0 - _RIM_PX)
    classes[rim.any(1)] = IGNORE
    perfect = np.isin(classes, [first for first, _ in GROUPS])
    defects = ~perfect & (classes != IGNORE)
    keep = defects | (
        perfect & (rng.random(len(classes)) < _PERFECT_SHARE * defects.sum() / max(perfect.sum(), 1))
    )
    crops = cut_crops(level(image, sites.phases.lattice.constant_px), sites)[keep]
    return crops.transpose(0, 2, 3, 1).astype(np.float16), classes[keep].astype(np.uint8)


def mirror(rng: np.random.Generator, images: Half, classes: Classes) -> tuple[Half, Classes]:
    """A crop or its mirror image: the only symmetry that leaves a site's neighbours in place."""
    return (images[:, ::-1] if rng.random() < 0.5 else images), classes


def make_net(recipe: Recipe[Defects]) -> CropNet:
    """The network of a recipe, with first weights that follow from its seed."""
    net = supervised.seeded(
        CropNet, seed=recipe.seed, outputs=len(SITE_CLASSES), groups=GROUPS, widths=recipe.task.widths
    )
    assert isinstance(net, CropNet)
    return net


def train(
    recipe: Recipe[Defects],
    *,
    out: Path,
    workers: int = 2,
    resume: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Draw the images of a recipe and train on crops of their sites.

    Parameters
    ----------
    recipe
        A recipe with the section [defects].
    out
        Folder for the crops and the checkpoint; a run that was cut off goes on from both.
    workers
        Processes that draw.
    resume
        Go on from the checkpoint where it exists; else it is removed.
    on_progress
        Called with (images drawn, images in all), then as by `engine.train`.

    Returns
    -------
    Trained
        Its logits are calibrated on held-out images; its card's scores are the recall of each class there.
    """
    count = recipe.scenes_val + recipe.scenes_train

    def draw() -> dict[str, NDArray[Any]]:
        return vars(
            draw_crops(
                count, side=recipe.task.scene_px, seed=recipe.seed, workers=workers, on_progress=on_progress
            )
        )

    kept = out / f"crops-{recipe.version}-{recipe.seed}-{recipe.task.scene_px}-{count}.npz"
    crops = Crops(**supervised.draw_or_load(kept, draw))
    held, known = (
        crops.take(rows) for rows in (crops.scans < recipe.scenes_val, crops.scans >= recipe.scenes_val)
    )
    net = make_net(recipe)
    checkpoint = supervised.choose_checkpoint(recipe, out, resume=resume)
    supervised.fit_by(
        recipe,
        net,
        known.images,
        known.classes,
        augment=mirror,
        checkpoint=checkpoint,
        on_progress=on_progress,
    )
    net.sharpen(1.0 / _find_temperature(net, held))
    counts = np.bincount(known.classes[known.classes != IGNORE], minlength=len(SITE_CLASSES))
    net.balance(torch.from_numpy(counts.astype(np.float32)))
    card = supervised.start_card(
        recipe,
        saw=f"{recipe.scenes_train} images of {recipe.task.scene_px} px",
        channels=("crop", "usual crop"),
        classes=SITE_CLASSES,
        multiple=net.multiple,
    )
    return Trained(net, replace(card, scores=_score(net, held)))


def _answer(net: nn.Module, crops: Crops) -> NDArray[np.float32]:
    """Logits, shape (n, classes)."""
    parts = np.array_split(np.arange(len(crops.images)), max(len(crops.images) // 512, 1))
    with torch.inference_mode():
        made = [net(supervised.to_tensor(crops.images[part])).mean((2, 3)).numpy() for part in parts]
    return np.concatenate(made)


def _find_temperature(net: CropNet, held: Crops) -> float:
    """By which the logits are to be divided so that probabilities are right (Guo et al. 2017, arXiv:1706.04599)."""
    logits, truth = torch.from_numpy(_answer(net, held))[:, :, None, None], torch.from_numpy(held.classes)
    tried = np.exp(np.linspace(-0.7, 1.2, 39))
    losses = [float(net.loss(logits / value, truth)) for value in tried]
    return float(tried[int(np.argmin(losses))])


def _score(net: CropNet, held: Crops) -> dict[str, Score]:
    """Share of each class that is called so, with an interval by images."""
    logits = _answer(net, held)
    called = np.empty(len(logits), int)
    for first, end in GROUPS:
        mine = (held.classes >= first) & (held.classes < end)
        called[mine] = first + logits[mine, first:end].argmax(1)
    right = called == held.classes
    scores = {}
    for index, name in enumerate(SITE_CLASSES):
        mine = held.classes == index
        if not mine.any():
            continue
        total = np.bincount(held.scans[mine])
        shares = (np.bincount(held.scans[mine], right[mine])[total > 0]) / total[total > 0]
        mean, half = float(right[mine].mean()), 1.96 * float(shares.std() / np.sqrt(len(shares)))
        scores[f"recall of {name}"] = Score(mean, mean - half, mean + half, f"{int(mine.sum())} drawn sites")
    return scores
