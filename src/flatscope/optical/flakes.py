"""From a light micrograph to a table of flakes, in two halves: the regions of one picture, then their layer numbers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.optical.background import LIGHT_ORDER, estimate_background, mend_channels, note_channels
from flatscope.optical.batches import Grouping, Sighting, fit_batches, from_plain
from flatscope.optical.camera import GREY
from flatscope.optical.evidence import Evidence, gather_evidence
from flatscope.optical.layers import LayerPosterior, SetupFit, name_regions
from flatscope.optical.materials import choose_material
from flatscope.optical.observations import KnownRegion, Observation, observe_known, observe_regions
from flatscope.optical.regions import (
    Regions,
    Weights,
    is_metallic,
    mark_saturated,
    mark_seams,
    measure,
    number_flakes,
)
from flatscope.optical.setups import Prior
from flatscope.optical.substrates import Substrate
from flatscope.optical.tabulation import tabulate
from flatscope.optical.terraces import divide_picture, drop_noise
from flatscope.optical.verdicts import ROOMY
from flatscope.results import FlakeTable
from flatscope.results.table import as_plain
from flatscope.results.view import make_preview

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Ints = NDArray[np.int64]
Labels = NDArray[np.int32]

_LEAST_UM2 = 20.0
"""Smallest area that counts where the pixel size is known: what tweezers, contacts and spectra need."""
_LEAST_PX = 250.0
"""The same where it is unknown."""
_MEASURABLE_PX = 40
"""Fewer pixels have no colour of their own: blur mixes in what lies beside them."""
_WORKING_PX = 1.9e6
"""Larger pictures are averaged down by a whole number to about this size: the network knows edges of a pixel or two."""
_NO_NEWS = 10.0
"""Noise of a channel that says nothing, as a contrast: it weighs nothing against the others."""
_GRAY = "the picture is gray: brightness alone tells layers apart poorly, take a colour picture"
REGION_SETTINGS = ("min_area_um2", "min_area_px", "light_order")
"""The fields of `FlakeParams` that matter to `find_regions`; the others matter to `name_layers` only."""
_OF_EACH = ("p", "p_foreign", "low", "high")
"""What a `LayerPosterior` has of each region."""


@dataclass(frozen=True)
class FlakeParams:
    """Settings of `find_flakes`.

    Parameters
    ----------
    material
        graphene, hBN, MoS2, WS2, WSe2, MoSe2, MoTe2, WTe2, NbSe2, TaS2, ReS2, PtSe2, SnS2, In2Se3, Bi2Se3, Bi2Te3, or
        any other with layer_nm and nk.
    oxide_nm
        Nominal SiO2 thickness; without it 60 to 320 nm stay open.
    oxide_sigma_nm
        1-sigma error of the nominal oxide thickness.
    gamma
        Tone curve of the camera: it stores intensity to the power 1/gamma, and 1 is a linear camera. Without it 1 to
        2.4 stay open.
    min_area_um2
        Smaller regions are counted, not listed; needs a pixel size. Where neither this nor `min_area_px` is given, it
        is 20 if the pixel size is known.
    min_area_px
        The same in pixels; 250 where neither is given and the pixel size is unknown.
    light_order
        Order of the polynomial that follows uneven light, 0 to 8; 0 is even light.
    known
        Regions with known layer number, measured on the same set-up.
    substrate
        Films from the top with their nm, then the base: "PMMA 50 / SiO2 285 / Si", or "glass, through" for light from
        below. A film without a thickness, else the thickest, is fitted.
    layer_nm
        Thickness of one layer, for a material that is not built in.
    nk
        CSV file of wavelength_nm, n and k of the material.
    group
        Pictures that share a set-up: auto (those of one folder whose size and substrate's colour agree), folder (all of
        one folder), or none (each picture alone).
    """

    material: str = "graphene"
    oxide_nm: float | None = None
    oxide_sigma_nm: float = 10.0
    gamma: float | None = None
    min_area_um2: float | None = None
    min_area_px: int | None = None
    light_order: int = LIGHT_ORDER
    known: tuple[KnownRegion, ...] = ()
    substrate: str = "SiO2 / Si"
    layer_nm: float | None = None
    nk: tuple[tuple[float, float, float], ...] = ()
    group: Grouping = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "nk", tuple(tuple(row) for row in self.nk))  # JSON has lists
        self.prior()
        if self.min_area_px is not None and self.min_area_px < 1:
            raise ValueError(f"min_area_px of {self.min_area_px}: a region has at least 1 px")
        if self.min_area_um2 is not None and not 0 <= self.min_area_um2 < np.inf:
            raise ValueError(f"min_area_um2 of {self.min_area_um2} is no area: give 0 or more")
        if self.group not in get_args(Grouping):
            raise ValueError(f"group {self.group!r}: use auto, folder or none")
        if not 0 <= self.light_order <= 8:
            raise ValueError(
                f"light_order of {self.light_order} lies outside 0 to 8: leave it out for {LIGHT_ORDER}"
            )

    def prior(self) -> Prior:
        """The set-up as far as these settings know it."""
        material = choose_material(self.material, layer_nm=self.layer_nm, nk=self.nk)
        substrate = Substrate.parse(self.substrate)
        return Prior(material, self.oxide_nm, self.oxide_sigma_nm, self.gamma, substrate=substrate)


def find_flakes(
    micrograph: Micrograph,
    params: FlakeParams = FlakeParams(),
    *,
    network: Network | None = None,
    flatfield: Float32 | None = None,
) -> FlakeTable:
    """Find the flakes of a light micrograph and count the layers of each region.

    A network marks crystals and their edges; regions of one contrast are cut out, and the contrasts of all regions
    together are compared with thin-film optics. This is `find_regions`, then `name_layers`.

    Parameters
    ----------
    micrograph
        A picture of crystals on SiO2/Si; in a gray one only brightness counts.
    params
        Material, set-up, limits.
    network
        A loaded segmentation network; None loads the shipped one.
    flatfield
        Shape (rows, cols, 3), mean 1: the picture is divided by it.

    Returns
    -------
    FlakeTable
        One row a region, the thin, large and sure ones first, with the columns `flatscope.results.FLAKE_COLUMNS`:
        ``flake_id`` (regions that touch are one flake) and ``region_id``; ``layers`` ("1" to "6", "thick", "1|2" where
        both fit, "" if rejected) and the probability ``layers_p`` that it is right; ``p_1`` to ``p_6`` and ``p_thick``,
        the probability of each number; ``layers_low`` to ``layers_high``, its 95 % interval; ``status`` ("accepted",
        "uncertain" or "rejected") and ``reason``; ``area_um2`` (empty without a pixel size) and ``area_px``; the
        centre ``row_px``, ``col_px``; ``touches_edge``; the contrast I / I_substrate − 1 in ``contrast_r``, ``_g``,
        ``_b``; the oxide that fits the picture, ``oxide_nm`` with ``oxide_sigma_nm``. ``marks`` (outlines) and
        ``labels`` tie the rows to pixels.

    Raises
    ------
    MicrographError
        For a picture without substrate, or a minimum area in µm² without a pixel size.
    WeightsError
        If the network's weights cannot be read.

    Notes
    -----
    Fails where crystals cover nearly the whole picture (no substrate to compare with), where the material is another
    one than stated, and on crystals that lie on crystals.

    Examples
    --------
    >>> import numpy as np
    >>> from flatscope import FlakeParams, Micrograph, find_flakes
    >>> from flatscope.optical.scenes import SceneParams, draw_scene
    >>> scene = draw_scene(
    ...     np.random.default_rng(2), SceneParams((160, 240), "MoS2", oxide_nm=285.0, gamma=1.0, clean=True)
    ... )
    >>> table = find_flakes(Micrograph(scene.pixels), FlakeParams("MoS2", oxide_nm=285.0, gamma=1.0))
    >>> table.found["layers"].tolist()
    ['1', '1', '2', '2']
    """
    regions = find_regions(micrograph, params, network=network, flatfield=flatfield)
    (table,) = name_layers([regions], params)
    return table


def find_regions(
    micrograph: Micrograph,
    params: FlakeParams = FlakeParams(),
    *,
    network: Network | None = None,
    flatfield: Float32 | None = None,
) -> Regions:
    """Find the regions of uniform thickness in one picture and measure their contrasts.

    This is the heavy half of `find_flakes`: it takes one picture, and only the settings `REGION_SETTINGS` matter.

    Parameters
    ----------
    micrograph, params, network, flatfield
        As for `find_flakes`.

    Returns
    -------
    Regions
        All that `name_layers` needs; `Regions.to_bytes` stores it.

    Raises
    ------
    MicrographError
        For a picture without substrate, or a minimum area in µm² without a pixel size.
    WeightsError
        If the network's weights cannot be read.

    Examples
    --------
    >>> from flatscope.optical.scenes import SceneParams, draw_scene
    >>> scene = draw_scene(np.random.default_rng(1), SceneParams(shape=(256, 256), material="MoS2", oxide_nm=90.0))
    >>> regions = find_regions(Micrograph(scene.pixels), FlakeParams("MoS2", oxide_nm=90.0))
    >>> len(regions.measured.area_px) == len(regions)
    True
    """
    if params.min_area_um2 is not None and micrograph.calibration is None:
        raise MicrographError(f"{micrograph.name} has no pixel size for --min-area-um2: pass --um-per-px")
    clock = _Clock()
    network = network or Network.load("flakes")
    clock.lap("load_s")
    if _is_constant(micrograph):
        return _find_nothing(micrograph, network, clock.timings)
    factor = working_factor(micrograph.shape)
    rgb, usable = mend_channels(shrink(micrograph.rgb(), factor))
    flat = None if flatfield is None else shrink(flatfield, factor)
    levels = 255.0 if micrograph.full_scale == 255.0 else 4095.0
    background = estimate_background(rgb, flat=flat, order=params.light_order, levels=levels)
    contrast = background.contrast(rgb)
    clock.lap("background_s")
    chances = network.probabilities(network.card.normalise(contrast))
    clock.lap("network_s")
    least = _least_area_px(micrograph, params, factor)
    division = divide_picture(chances, contrast, network.card, least_px=least, noise=background.noise)
    division, measured = drop_noise(
        division, measure(division.labels, contrast, division.edge), background.grain
    )
    foreign = np.arange(len(measured.area_px)) >= division.crystals
    metal = foreign & is_metallic(measured.contrast) & (measured.area_px >= ROOMY * least)
    found = Regions(
        division.labels,
        measured,
        gather_evidence(division.labels, contrast, chances, network.card.outputs, measured.contrast),
        foreign=foreign,
        metal=metal,
        beside_metal=mark_seams(division.labels, metal),
        flake_id=number_flakes(division.labels, len(foreign)),
        saturated=mark_saturated(measured, rgb, background),
        noise=np.where(usable | ~usable.any(), background.noise, _NO_NEWS),
        step=background.step,
        bare_colour=background.colour,
        least_px=least,
        factor=factor,
        specks=division.specks,
        **_describe(micrograph, network),
        notes=(
            *micrograph.notes,
            *note_channels(usable),
            *background.notes,
            *([_GRAY] if micrograph.is_gray else []),
            *division.notes(factor),
        ),
        timings_s=clock.timings,
    )
    clock.lap("regions_s")
    return found


def name_layers(
    pictures: Sequence[Regions],
    params: FlakeParams = FlakeParams(),
    *,
    fits: Sequence[SetupFit] | None = None,
) -> list[FlakeTable]:
    """Count the layers of the regions of one or more pictures.

    This is the light half of `find_flakes`: it looks at no pixels. Pictures of one size whose substrates have one
    colour are fitted together: what one cannot tell, the others do. The order of the pictures does not matter.

    Parameters
    ----------
    pictures
        What `find_regions` found in each picture.
    params
        Material, set-up, known regions, and which pictures share a set-up.
    fits
        The set-up of each picture, from `fit_setups`, where other pictures had a say in it; None fits these alone.

    Returns
    -------
    One table a picture, as from `find_flakes`.

    Examples
    --------
    >>> from flatscope.optical.scenes import SceneParams, draw_scene
    >>> scene = draw_scene(np.random.default_rng(1), SceneParams(shape=(256, 256), material="MoS2", oxide_nm=90.0))
    >>> regions = find_regions(Micrograph(scene.pixels), FlakeParams("MoS2", oxide_nm=90.0))
    >>> (table,) = name_layers([regions], FlakeParams("MoS2", oxide_nm=90.0))
    >>> set(table.frame["status"]) <= {"accepted", "uncertain", "rejected"}
    True
    """
    if fits is None:
        fits = fit_setups([Sighting.of(regions) for regions in pictures], params, _weights_of(pictures))
    settings = as_plain(params)
    return [
        tabulate(regions, place_layers(regions, fit), material=params.material, settings=settings)
        for regions, fit in zip(pictures, fits, strict=True)
    ]


def _weights_of(pictures: Sequence[Regions]) -> Weights | None:
    return pictures[0].weights if pictures else None


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = round(now - self._last, 4)
        self._last = now


# --- regions --------------------------------------------------------------------------------------------------------


def _is_constant(micrograph: Micrograph) -> bool:
    return bool((micrograph.pixels == micrograph.pixels[:1, :1]).all())


def _find_nothing(micrograph: Micrograph, network: Network, timings_s: dict[str, float]) -> Regions:
    """The regions of a picture in which every pixel has the same value: none."""
    labels = np.zeros(micrograph.shape, np.int32)
    nowhere = labels > 0
    none = np.zeros(0, bool)
    return Regions(
        labels,
        measure(labels, np.zeros((*labels.shape, 3), np.float32), nowhere),
        Evidence(*np.zeros((5, 0))),
        foreign=none,
        metal=none,
        beside_metal=none,
        flake_id=number_flakes(labels, 0),
        saturated=np.zeros((0, 3), bool),
        noise=np.zeros(3),
        step=np.zeros(3),
        bare_colour=GREY,
        least_px=0.0,
        factor=1,
        specks=0,
        **_describe(micrograph, network),
        notes=(*micrograph.notes, "every pixel has the same value: nothing to find"),
        timings_s=timings_s,
    )


def working_factor(shape: tuple[int, ...]) -> int:
    """Factor by which a picture of this shape is reduced before it is analysed."""
    return max(1, round(np.sqrt(shape[0] * shape[1] / _WORKING_PX)))


def shrink(picture: Float32, factor: int) -> Float32:
    """Average blocks of `factor` x `factor` pixels; a rest at the right and bottom is dropped."""
    if factor == 1:
        return picture
    rows, cols = (side // factor for side in picture.shape[:2])
    blocks = picture[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor, 3)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def _least_area_px(micrograph: Micrograph, params: FlakeParams, factor: int) -> float:
    """The smallest area that counts, in pixels of the working picture."""
    return choose_least_px(params, micrograph.calibration) / factor**2


def choose_least_px(params: FlakeParams, calibration: Calibration | None) -> float:
    """The smallest area that counts, in pixels of the picture."""
    least_um2 = params.min_area_um2
    if least_um2 is None and params.min_area_px is None:
        if calibration is None:
            return _LEAST_PX
        least_um2 = _LEAST_UM2
    least = float(params.min_area_px or _MEASURABLE_PX)
    if least_um2 is not None and calibration is not None:
        least = max(least, least_um2 / calibration.pixel_area_um2)
    return least


def _describe(micrograph: Micrograph, network: Network) -> dict[str, Any]:
    """The fields of `Regions` that describe the picture and the network."""
    return {
        "shape": micrograph.shape,
        "is_gray": micrograph.is_gray,
        "calibration": micrograph.calibration,
        "image": micrograph.name,
        "sha256": micrograph.sha256,
        "preview": make_preview(micrograph),
        "weights": describe_weights(network),
    }


def describe_weights(network: Network) -> Weights:
    """What regions say of the network that found them."""
    card = network.card
    return Weights(card.name, card.version, network.sha256, card.material, card.known)


# --- layers ---------------------------------------------------------------------------------------------------------


def fit_setups(
    sightings: Sequence[Sighting], params: FlakeParams, weights: Weights | None = None
) -> list[SetupFit]:
    """Fit a set-up to each batch of pictures.

    Parameters
    ----------
    sightings
        What each picture shows of its set-up.
    params
        Material, set-up, known regions, and which pictures share a set-up.
    weights
        The network that found the regions; it may know some.

    Returns
    -------
    The fit that belongs to each picture.
    """
    return fit_batches(sightings, _gather_known(params, weights), params.prior(), group=params.group)


def recall_fit(plain: Mapping[str, Any], params: FlakeParams, weights: Weights) -> SetupFit:
    """A fit of `fit_setups` from the plain values of `batches.to_plain`, under the same settings."""
    return from_plain(plain, _gather_known(params, weights), params.prior())


def _gather_known(params: FlakeParams, weights: Weights | None) -> Observation:
    recalled = recall_known(weights, params.material) if weights else ()
    return observe_known((*params.known, *recalled))


def place_layers(regions: Regions, fit: SetupFit) -> LayerPosterior:
    """Layer probabilities of every region of a picture, NaN for regions below the smallest area."""
    posterior = name_regions(observe_regions(regions), fit)

    def place(values: Float) -> Float:
        placed = np.full((len(regions), *values.shape[1:]), np.nan)
        placed[regions.large_enough] = values
        return placed

    placed: dict[str, Any] = {name: place(getattr(posterior, name)) for name in _OF_EACH}
    step = np.zeros(len(regions), np.int64)
    step[regions.large_enough] = posterior.step
    thickness = posterior.thickness.spread(regions.large_enough)
    return replace(posterior, step=step, thickness=thickness, **placed)


def recall_known(weights: Weights, material: str) -> tuple[KnownRegion, ...]:
    """The known regions of weights that are adapted to this material."""
    if weights.material != material:
        return ()
    return tuple(KnownRegion(int(layers), (red, green, blue)) for layers, red, green, blue in weights.known)
