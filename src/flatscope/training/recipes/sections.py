"""The sections of recipes: the settings of one kind of training. The section's name says what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Section:
    """What all sections state about themselves.

    Parameters
    ----------
    name
        Of the section in a recipe's file.
    card_task
        What the trained network is for, as its card says.
    validates
        Whether pictures are held out.
    """

    name: ClassVar[str] = ""
    card_task: ClassVar[str] = ""
    validates: ClassVar[bool] = True


@dataclass(frozen=True)
class Flakes(Section):
    """The flake finder, on drawn scenes: see `training.flakes`.

    Parameters
    ----------
    scene_px
        Side of a square scene, px.
    contrast_scale
        The network sees ``asinh(contrast / contrast_scale)``.
    object_px
        Smallest and largest flake diameter, px, that the scenes hold: the range in which to trust the net.
    widths
        Channels a level.
    grad_clip
        Largest norm of the gradient.
    ema_decay
        Decay a step of the averaged weights that are validated and shipped; 0 switches averaging off.
    class_weights
        Weights of substrate, thin, thick, artefact in the cross entropy.
    dice_weight, edge_weight, edge_positive_weight
        See `losses.flake_loss`.
    bits
        Of the exported weights and activations: 32, or 8 for a small, fast file; see `onnx_export.export`.
    start
        Name of shipped weights or an .onnx file to go on from, of the same `widths`; empty for random weights.
    blend
        The trained weights count by this share, those of `start` by the rest, so that what they knew is not forgotten
        (Wortsman et al. 2022, arXiv:2109.01903).
    anyone_share
        Share of the scenes that look like other people's pictures: see `optical.nuisances`.
    """

    name = "flakes"
    card_task = "flakes"
    scene_px: int
    contrast_scale: float = 0.1
    object_px: tuple[float, float] = (6.0, 600.0)
    widths: tuple[int, ...] = (16, 32, 64, 128)
    grad_clip: float = 1.0
    ema_decay: float = 0.998
    class_weights: tuple[float, ...] = (1.0, 2.0, 1.0, 2.0)
    dice_weight: float = 1.0
    edge_weight: float = 1.0
    edge_positive_weight: float = 3.0
    bits: int = 32
    start: str = ""
    blend: float = 1.0
    anyone_share: float = 0.0


@dataclass(frozen=True)
class Adaptation(Flakes):
    """A flake finder that exists, trained further on labelled pictures: see `training.adapt`."""

    name = "adaptation"


@dataclass(frozen=True)
class Orientation(Section):
    """The network that says how a crystal lies, on drawn bilayers: see `training.orientation`.

    Parameters
    ----------
    widths
        Channels a level.
    """

    name = "orientation"
    card_task = "orientation"
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Columns(Section):
    """The network that finds columns, on drawn focal series: see `training.columns`.

    Parameters
    ----------
    scene_px
        Side of an image, px.
    widths
        Channels a level of the U-Net.
    material
        Of the drawn sheets.
    depth
        Layers of a mixed-scale dense network in place of the U-Net; 0 for the U-Net.
    """

    name = "columns"
    card_task = "columns"
    scene_px: int
    widths: tuple[int, ...] = (32, 64, 128)
    material: str = "MoS2"
    depth: int = 0


@dataclass(frozen=True)
class Defects(Section):
    """The network that names what stands on a site, on drawn ADF-STEM images: see `training.defects`.

    Parameters
    ----------
    scene_px
        Side of an image, px.
    widths
        Channels a level.
    """

    name = "defects"
    card_task = "defects"
    scene_px: int
    widths: tuple[int, ...]


@dataclass(frozen=True)
class Realism(Section):
    """The translator of drawn images into the look of one experimental image: see `training.translator`.

    Parameters
    ----------
    scene_px
        Side of a drawn image, px.
    widths
        The first is the width of generators and discriminators at full resolution; their number is that of the
        generator's blocks on either side of the attention.
    """

    name = "realism"
    card_task = "realism"
    validates = False
    scene_px: int
    widths: tuple[int, ...]


SECTIONS: dict[str, type[Section]] = {
    kind.name: kind for kind in (Flakes, Adaptation, Orientation, Columns, Defects, Realism)
}
