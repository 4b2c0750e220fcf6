"""Adapt the flake finder to one laboratory's set-up from a few labelled pictures.

Two things are learned. The contrasts of the labelled layer numbers, which every later answer then passes through:
that alone repairs layer numbers where lamp, camera or oxide lie outside what the optics expect. And the network's
weights, on pieces of the pictures and on scenes drawn in the colours just measured, so that a few pictures do not make
it forget what residue looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.files.layer_labels import find_layer_labels
from flatscope.files.read import find_pictures, read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.background import LIGHT_ORDER, estimate_background
from flatscope.optical.flakes import shrink, working_factor
from flatscope.optical.layers import sample_ladders
from flatscope.optical.observations import MOST_LAYERS, KnownRegion, observe_known
from flatscope.optical.photographs import Microscope
from flatscope.optical.scenes import OPAQUE, label_regions
from flatscope.optical.setups import Prior
from flatscope.results import REJECTED_LABEL, THIN_LABEL
from flatscope.training import flake_scenes
from flatscope.training.flake_scenes import ARTEFACT, SUBSTRATE, THICK, THIN, Example, FlakeData, Scenes
from flatscope.training.losses import IGNORE
from flatscope.training.recipes import Recipe
from flatscope.training.recipes.sections import Flakes

Layers = NDArray[np.uint8]
_UNKNOWN = (THIN_LABEL, REJECTED_LABEL)  # labels that teach nothing
_INSET_PX = 2  # a region's colour is measured this far inside its outline
_LEAST_INSIDE_PX = 40  # pixels that must be left there
_MOST_REGIONS = 12  # remembered of each layer number, the largest
_SETUPS = 32  # set-ups, of those that the labelled regions allow, in which scenes are drawn
_ZOOM = 1.3  # pieces are shown larger or smaller by up to this factor
_GAIN = 0.04  # 1-sigma relative error of a piece's contrast
_OFFSET = 0.004  # 1-sigma error of a piece's contrast


@dataclass(frozen=True)
class LabelledPicture:
    """A picture whose layer numbers are known.

    Parameters
    ----------
    micrograph
        The picture.
    layers
        Shape (rows, cols), uint8: 0 substrate, 1 to 10 layers, 254 thick, 253 and 255 unknown.
    """

    micrograph: Micrograph
    layers: Layers

    def __post_init__(self) -> None:
        """Refuse labels of another size."""
        if self.layers.shape != self.micrograph.shape:
            raise ValueError(
                f"{self.micrograph.name}: labels of {self.layers.shape} on a picture of {self.micrograph.shape}"
            )


@dataclass(frozen=True)
class _Seen:
    """A labelled picture as the flake finder works on it."""

    contrast: NDArray[np.float32]
    layers: Layers
    regions: NDArray[np.int32]
    foreign: NDArray[np.bool_]


def read_labelled(
    images: Path, masks: Path, *, on_problem: Callable[[MicrographError], None]
) -> list[LabelledPicture]:
    """Read the pictures of a folder that have labels.

    Parameters
    ----------
    images
        Folder with pictures, or one picture.
    masks
        Folder or file with their labels, see `flatscope.files.layer_labels.find_layer_labels`.
    on_problem
        Called with what is wrong with a picture or its labels; it is left out.

    Raises
    ------
    MicrographError
        No picture has labels.
    """
    labels = find_layer_labels(find_pictures([images]), masks, on_problem=on_problem)
    if not labels:
        raise MicrographError(
            f"no picture in {images} has labels in {masks}: NAME.layers.png, NAME.mask.png, NAME.png, or JSON"
        )
    pictures = []
    for path, marked in labels.items():
        try:
            picture = read(path)
            pictures.append(LabelledPicture(picture, marked.draw(picture.shape)))
        except MicrographError as error:
            on_problem(error)
    return pictures


def measure_known(pictures: Sequence[LabelledPicture]) -> tuple[KnownRegion, ...]:
    """The contrasts of the labelled regions of one to six layers, at most twelve a layer number, the largest."""
    return _measure_known([_see(picture) for picture in pictures])


def build(
    train: Sequence[LabelledPicture],
    held_out: Sequence[LabelledPicture],
    recipe: Recipe[Flakes],
    prior: Prior,
    *,
    base: Network,
) -> FlakeData:
    """Pieces of labelled pictures, and scenes drawn in their colours, for `flakes.train_on`.

    Parameters
    ----------
    train, held_out
        Labelled pictures: those trained on, and those that choose the best epoch.
    recipe
        `scenes_train` counts pieces of pictures and drawn scenes together, `scenes_val` pieces of held-out pictures.
    prior
        Material and nominal set-up.
    base
        Weights that training starts from: residue is what they take for it.

    Raises
    ------
    MicrographError
        If no region of `train` is labelled with one to six layers and large enough.
    """
    rng = np.random.default_rng([recipe.seed, 17])
    seen, checked = ([_see(picture, base) for picture in part] for part in (train, held_out))
    known = _measure_known(seen)
    if not known:
        raise MicrographError(
            f"no labelled region of 1 to {MOST_LAYERS} layers is large enough: label some of 100 px or more"
        )
    setups, ladders = sample_ladders(observe_known(known), prior, count=_SETUPS, rng=rng)
    microscopes = [
        Microscope.from_contrast(setups.take(np.array([index])), ladder)
        for index, ladder in enumerate(ladders)
    ]
    side, scale = recipe.task.scene_px, recipe.task.contrast_scale
    cut = recipe.scenes_train // 2
    pieces = [_cut_piece(rng, seen[index % len(seen)], side, scale=scale) for index in range(cut)]
    scenes = [
        flake_scenes.draw_example(rng, side, scale=scale, microscope=microscopes[index % _SETUPS])
        for index in range(recipe.scenes_train - cut)
    ]
    held = [
        _cut_piece(rng, checked[index % len(checked)], side, scale=scale)
        for index in range(recipe.scenes_val)
    ]
    return FlakeData(_stack(pieces + scenes), _stack(held))


def _see(picture: LabelledPicture, base: Network | None = None) -> _Seen:
    factor = working_factor(picture.layers.shape)
    rgb = shrink(picture.micrograph.rgb(), factor)
    middle = factor // 2
    layers = picture.layers[middle::factor, middle::factor][: rgb.shape[0], : rgb.shape[1]]
    contrast = estimate_background(rgb, order=LIGHT_ORDER).contrast(rgb)
    foreign = np.zeros(layers.shape, bool)
    if base is not None:
        p = base.probabilities(base.card.normalise(contrast))
        foreign = (p[base.card.classes.index("artefact")] > 0.5) & (layers == 0)
    regions = label_regions(np.where(np.isin(layers, _UNKNOWN), 0, layers).astype(np.uint8))
    return _Seen(contrast, layers, regions, foreign)


def _measure_known(seen: Sequence[_Seen]) -> tuple[KnownRegion, ...]:
    measured: dict[int, list[tuple[int, KnownRegion]]] = {}
    for picture in seen:
        for index, box in enumerate(ndimage.find_objects(picture.regions), start=1):
            here = np.pad(picture.regions[box] == index, 1)
            inside = ndimage.binary_erosion(here, iterations=_INSET_PX)[1:-1, 1:-1]
            layers = int(picture.layers[box][here[1:-1, 1:-1]][0])
            if layers > MOST_LAYERS or inside.sum() < _LEAST_INSIDE_PX:
                continue
            red, green, blue = np.median(picture.contrast[box][inside], axis=0).tolist()
            measured.setdefault(layers, []).append(
                (int(inside.sum()), KnownRegion(layers, (red, green, blue)))
            )
    return tuple(
        region
        for _, regions in sorted(measured.items())
        for _, region in sorted(regions, key=lambda pair: -pair[0])[:_MOST_REGIONS]
    )


def _stack(examples: list[Example]) -> Scenes:
    contrast, classes, edges = zip(*examples, strict=True)
    return Scenes(np.stack(contrast), np.stack(classes), np.stack(edges))


def _cut_piece(rng: np.random.Generator, seen: _Seen, side: int, *, scale: float) -> Example:
    """A piece of `side` x `side` px, half of them about a labelled pixel; what lies outside is ignored."""
    zoom = float(np.exp(rng.uniform(-np.log(_ZOOM), np.log(_ZOOM))))
    reach = side / zoom
    rows, cols = seen.layers.shape
    labelled = np.flatnonzero(seen.regions)
    if len(labelled) and rng.random() < 0.5:
        row, col = np.unravel_index(int(rng.choice(labelled)), seen.layers.shape)
        centre = np.array([row, col]) + rng.uniform(-0.4, 0.4, 2) * reach
    else:
        centre = rng.uniform(0.0, 1.0, 2) * (rows, cols)
    low = np.minimum(reach / 2, (rows / 2, cols / 2))
    centre = np.clip(centre, low, (rows, cols) - low)
    places = [centre[axis] + (np.arange(side) - (side - 1) / 2) / zoom for axis in (0, 1)]
    grid = np.stack(np.meshgrid(*places, indexing="ij"))
    nearest = np.rint(grid).astype(int)
    outside = (nearest < 0).any(0) | (nearest[0] >= rows) | (nearest[1] >= cols)
    row, col = np.clip(nearest[0], 0, rows - 1), np.clip(nearest[1], 0, cols - 1)
    contrast = np.stack(
        [
            ndimage.map_coordinates(seen.contrast[..., channel], grid, order=1, mode="nearest")
            for channel in range(3)
        ]
    )
    contrast = contrast * (1.0 + rng.normal(0.0, _GAIN, (3, 1, 1))) + rng.normal(0.0, _OFFSET, (3, 1, 1))
    classes = _classify(seen)[row, col]
    regions = seen.regions[row, col]
    edges = flake_scenes.mark_edges(regions)
    unknown = outside | (classes == IGNORE)
    classes[outside] = IGNORE
    edges[ndimage.binary_dilation(unknown)] = IGNORE
    return np.arcsinh(contrast / scale).astype(np.float16), classes, edges


def _classify(seen: _Seen) -> NDArray[np.uint8]:
    """Class of every pixel, as in `flake_scenes.classify`; the network to start from says where residue is."""
    classes = np.where(seen.regions > 0, THIN, SUBSTRATE).astype(np.uint8)
    count = int(seen.regions.max())
    if count:
        brightest = ndimage.median(seen.contrast.max(-1), seen.regions, np.arange(1, count + 1))
        opaque = np.concatenate([[False], np.asarray(brightest) > OPAQUE])
        classes[opaque[seen.regions]] = THICK
    classes[seen.foreign] = ARTEFACT
    classes[np.isin(seen.layers, _UNKNOWN)] = IGNORE
    return classes
