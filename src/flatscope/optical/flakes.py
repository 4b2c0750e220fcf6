"""From a light micrograph to a table of flakes: substrate, regions, layer numbers, reasons."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from shapely.geometry import Polygon

import flatscope
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph, MicrographError
from flatscope.optical.background import LIGHT_ORDER, Background, estimate_background
from flatscope.optical.layers import MOST_LAYERS, LayerPosterior, Observation, count_layers
from flatscope.optical.regions import Measured, cut_regions, mark_steps, measure
from flatscope.optical.setups import Prior
from flatscope.results import FLAKE_COLUMNS, FlakeTable, Provenance

Float = NDArray[np.float64]
Float32 = NDArray[np.float32]
Labels = NDArray[np.int32]
Mask = NDArray[np.bool_]

_WORKING_PX = 1.9e6
"""Pictures of more than about twice as many pixels are averaged down by a whole number: they sample the optics' blur
finer than it needs, and the network was trained on edges a pixel or two wide."""
_WITNESS_PX = 250.0
"""The optics' blur mixes the colour of smaller regions, in pixels of the working picture, with that around them."""
_SPECK_SHARE = 0.25
"""Specks below this share of the smallest area that counts are counted in a note, not listed."""
BELOW_MINIMUM = "below minimum area"
"""Reason of the regions that are listed without an outline."""
_SURE = 0.7
_ENOUGH = 0.9
_MOST_NAMED = 3
"""A layer number of at least the first probability stands alone; else the likeliest are named, until together
they reach the second, two at least and three at most."""
_UNEVEN_SHARE, _UNEVEN = 0.15, 0.05
"""A crystal of one thickness does not vary by more than this share of its contrast plus this much."""
_EVEN_SHARE, _SURELY_CRYSTAL, _THINNEST = 0.8, 0.15, 3
"""What the network calls residue is kept if it is this even, this surely no foreign matter, and has at most so many
layers."""
_DISPUTED = 0.9
"""What is left of a probability where the network says residue and the colour says crystal: that often it is one."""
_SEAM_PX, _SEAM_SHARE = 6, 0.3
"""Of what looks like a crystal but is the seam of a gold mark, at least this share lies this close to the mark."""
_KNOWN_SIGMA = 0.002
"""Error of the contrast of a known region, beyond the scatter of several (1 sigma)."""
_FAINT_CONTRAST = 0.02
"""Below this contrast a monolayer is lost in the noise of most pictures."""


_DIMMEST_WHITE = 0.85
_NEAR_WHITE = 0.93
"""A camera that stops counting does so above this share of the full scale, and a region within this share of
the stop is saturated."""


@dataclass(frozen=True)
class KnownRegion:
    """A region whose layer number the user knows: its contrast I / I_substrate − 1 in red, green, blue."""

    layers: int
    contrast: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 1 <= self.layers <= MOST_LAYERS:
            raise ValueError(
                f"a known region of {self.layers} layers: flatscope tells 1 to {MOST_LAYERS} apart"
            )


@dataclass(frozen=True)
class FlakeParams:
    """Settings of `find_flakes`.

    Parameters
    ----------
    material
        One of `flatscope.optical.materials.MATERIALS`.
    oxide_nm
        Nominal SiO2 thickness; None leaves 60 to 320 nm open.
    oxide_sigma_nm
        How far the real oxide may be from the nominal one (1 sigma).
    gamma
        The camera's tone curve, 1 for a linear camera; None leaves 1 to 2.4 open.
    min_area_um2
        Regions below this are rejected; needs a pixel size. None: only `min_area_px` counts.
    min_area_px
        Regions below this are rejected.
    light_order
        Order of the polynomial that follows uneven light; 0 takes the light as even.
    known
        Regions with known layer number, measured on the same set-up.
    """

    material: str = "graphene"
    oxide_nm: float | None = None
    oxide_sigma_nm: float = 10.0
    gamma: float | None = None
    min_area_um2: float | None = None
    min_area_px: int = 250
    light_order: int = LIGHT_ORDER
    known: tuple[KnownRegion, ...] = ()

    def __post_init__(self) -> None:
        self.prior()
        if self.min_area_px < 1:
            raise ValueError(f"min_area_px of {self.min_area_px}: a region has at least 1 px")
        if self.min_area_um2 is not None and not self.min_area_um2 >= 0:
            raise ValueError(f"min_area_um2 of {self.min_area_um2} is no area: give 0 or more")
        if not 0 <= self.light_order <= 8:
            raise ValueError(f"light_order of {self.light_order} lies outside 0 to 8")

    def prior(self) -> Prior:
        """What these settings say about the set-up."""
        return Prior(self.material, self.oxide_nm, self.oxide_sigma_nm, self.gamma)


def find_flakes(
    micrograph: Micrograph,
    params: FlakeParams = FlakeParams(),
    *,
    network: Network | None = None,
    flatfield: Float32 | None = None,
) -> FlakeTable:
    """Find the flakes of a light micrograph and say how many layers each region has.

    Parameters
    ----------
    micrograph
        A picture of crystals on SiO2/Si; from a gray one, layers are told by brightness alone.
    params
        Material, set-up, limits.
    network
        A loaded segmentation network; None loads the shipped one.
    flatfield
        Shape (rows, cols, 3), mean 1: the picture is divided by it.

    Returns
    -------
    One row a region, the thin, large and sure ones first; rejected regions follow with their reasons.

    Raises
    ------
    MicrographError
        For a picture without substrate, or a minimum area in µm² without a pixel size.
    WeightsError
        If the network's weights cannot be read.

    Notes
    -----
    Fails where crystals cover nearly the whole picture (no substrate to compare with), where the material is
    another one than stated, and on crystals that lie on crystals.
    """
    if params.min_area_um2 is not None and micrograph.calibration is None:
        raise MicrographError(f"{micrograph.name} has no pixel size for --min-area-um2: pass --um-per-px")
    clock = _Clock()
    network = network or Network.load("flakes")
    clock.lap("load_s")
    job = _Job(micrograph, params, network, clock)
    if _is_constant(micrograph):
        nothing = pd.DataFrame(columns=list(FLAKE_COLUMNS))
        return job.answer(
            nothing,
            np.zeros(micrograph.shape, np.int32),
            ("every pixel has the same value: nothing to find",),
        )
    factor = working_factor(micrograph.shape)
    rgb = shrink(micrograph.rgb(), factor)
    flat = None if flatfield is None else shrink(flatfield, factor)
    levels = 255.0 if micrograph.full_scale == 255.0 else 4095.0
    background = estimate_background(rgb, flat=flat, order=params.light_order, levels=levels)
    contrast = background.contrast(rgb)
    clock.lap("background_s")
    p = network.probabilities(network.card.normalise(contrast))
    chance = dict(zip(network.card.outputs, p, strict=True))
    clock.lap("network_s")
    least = _least_area_px(micrograph, params, factor)
    crystal, specks = _drop_specks(chance["thin"] + chance["thick"] > 0.5, least)
    edge = mark_steps(crystal, contrast, noise=background.noise)
    edge |= chance["edge"] > network.card.thresholds.get("edge", 0.5)
    labels = cut_regions(crystal, edge, contrast, noise=background.noise)
    crystals = int(labels.max())
    foreign, more_specks = _drop_specks((chance["artefact"] > 0.5) & (labels == 0), least)
    labels = _add_foreign(labels, foreign)
    found = measure(labels, contrast, edge)
    clock.lap("regions_s")
    prior = replace(params.prior(), gray=micrograph.is_gray)
    known = (*params.known, *remembered(network, params.material))
    observation = _observe(found, crystals, least, rgb, background=background, known=known)
    posterior = _count(observation, prior)
    frame = _tabulate(found, posterior, crystals, least, params=params, labels=labels, noise=background.noise)
    clock.lap("layers_s")
    notes = background.notes
    if network.card.material not in ("", params.material):
        notes = (*notes, f"the weights are adapted to {network.card.material}: its colours are left out")
    if micrograph.is_gray:
        notes = (
            *notes,
            "the picture is gray: brightness alone tells layers apart poorly, take a colour picture",
        )
    if specks + more_specks:
        size = _SPECK_SHARE * least * factor**2
        notes = (*notes, f"{specks + more_specks} specks below {size:.0f} px are not listed")
    return _deliver(frame, labels, job, factor=factor, notes=notes)


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.timings: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.timings[stage] = round(now - self._last, 4)
        self._last = now


def _is_constant(micrograph: Micrograph) -> bool:
    return bool((micrograph.pixels == micrograph.pixels[:1, :1]).all())


def working_factor(shape: tuple[int, ...]) -> int:
    """By how much a picture of this shape is reduced before anything is looked for in it."""
    return max(1, round(np.sqrt(shape[0] * shape[1] / _WORKING_PX)))


def shrink(picture: Float32, factor: int) -> Float32:
    """Average blocks of `factor` x `factor` pixels; a rest at the right and bottom is dropped."""
    if factor == 1:
        return picture
    rows, cols = (side // factor for side in picture.shape[:2])
    blocks = picture[: rows * factor, : cols * factor].reshape(rows, factor, cols, factor, 3)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def _drop_specks(mask: Mask, least: float) -> tuple[Mask, int]:
    """A mask without its parts far below the smallest area that counts, and how many these were."""
    parts, count = ndimage.label(mask, structure=np.ones((3, 3)), output=np.int32)
    large = np.bincount(parts.ravel()) >= _SPECK_SHARE * least
    large[0] = False
    return large[parts], count - int(large.sum())


def _add_foreign(labels: Labels, artefact: Mask) -> Labels:
    """Give dirt, gold and captions labels of their own, after those of the crystals."""
    foreign, _ = ndimage.label(artefact, output=np.int32)
    return np.where(foreign > 0, foreign + labels.max(), labels).astype(np.int32)


def _least_area_px(micrograph: Micrograph, params: FlakeParams, factor: int) -> float:
    """The smallest area that counts, in pixels of the working picture."""
    least = float(params.min_area_px)
    if params.min_area_um2 is not None and micrograph.calibration is not None:
        least = max(least, params.min_area_um2 / micrograph.calibration.pixel_area_um2)
    return least / factor**2


def _observe(
    found: Measured,
    crystals: int,
    least: float,
    rgb: Float32,
    *,
    background: Background,
    known: tuple[KnownRegion, ...],
) -> Observation:
    """What layer counting needs of the known regions, then of those that are large enough, in the order of labels.

    Only what the network takes for crystals tells about the set-up, and only the large ones if there are any.
    """
    counted = np.flatnonzero(found.area_px >= least)
    # Medians of correlated pixels: an area of nine pixels counts as one.
    sigma = np.sqrt(
        background.noise**2 * 9.0 / np.maximum(found.inside_px[counted], 9.0)[:, None]
        + (0.5 * background.step) ** 2 / 3.0
    )
    witness = counted < crystals
    large = witness & (found.area_px[counted] >= _WITNESS_PX)
    seen = Observation(
        found.contrast[counted],
        sigma,
        uneven=_unevenness(found, background.noise)[counted],
        saturated=_is_saturated(found, counted, rgb, background),
        area_px=found.area_px[counted],
        known=np.zeros(len(counted), np.int64),
        witness=large if large.any() else witness,
    )
    return observe_known(known).join(seen) if known else seen


def remembered(network: Network, material: str) -> tuple[KnownRegion, ...]:
    """Regions that weights adapted to this material know."""
    if network.card.material != material:
        return ()
    return tuple(
        KnownRegion(int(layers), (red, green, blue)) for layers, red, green, blue in network.card.known
    )


def observe_known(known: tuple[KnownRegion, ...]) -> Observation:
    """What layer counting needs of known regions: the median contrast of each layer number, and its scatter."""
    layers = np.unique([region.layers for region in known]).astype(np.int64)
    of_each = [np.array([region.contrast for region in known if region.layers == n]) for n in layers]
    typical = np.stack([np.median(contrasts, axis=0) for contrasts in of_each])
    scatter = np.stack(
        [
            1.4826 * np.median(np.abs(contrasts - middle), axis=0)
            for contrasts, middle in zip(of_each, typical, strict=True)
        ]
    )
    count = len(layers)
    return Observation(
        typical,
        np.full((count, 3), _KNOWN_SIGMA),
        uneven=scatter,
        saturated=np.zeros((count, 3), bool),
        area_px=np.full(count, 1e4),
        known=layers,
        witness=np.ones(count, bool),
    )


def _unevenness(found: Measured, noise: Float) -> Float:
    """How much the contrast varies within each region beyond the noise (1 sigma), shape (regions, 3)."""
    return np.sqrt(np.maximum(found.spread**2 - (1.2 * noise) ** 2, 0.0))


def _count(observation: Observation, prior: Prior) -> LayerPosterior:
    """Layer probabilities of the regions that were observed, without the known ones."""
    # The same picture and settings give the same answer.
    posterior = count_layers(observation, prior, rng=np.random.default_rng(0))
    rest = observation.known == 0
    return replace(
        posterior,
        p=posterior.p[rest],
        p_foreign=posterior.p_foreign[rest],
        low=posterior.low[rest],
        high=posterior.high[rest],
    )


def _is_saturated(
    found: Measured, which: NDArray[np.int64], rgb: Float32, background: Background
) -> NDArray[np.bool_]:
    """Which channels of which regions lie where the camera stops, shape (regions, 3).

    Many cameras stop short of the full scale: the brightest pixels of the picture tell where.
    """
    brightness = (1.0 + found.contrast[which]) * background.at(found.centre[which], rgb.shape[:2])
    white = np.maximum(np.percentile(rgb[::8, ::8].reshape(-1, 3), 99.9, axis=0), _DIMMEST_WHITE)
    return np.asarray(brightness > _NEAR_WHITE * white)


def _tabulate(
    found: Measured,
    posterior: LayerPosterior,
    crystals: int,
    least: float,
    *,
    params: FlakeParams,
    labels: Labels,
    noise: Float,
) -> pd.DataFrame:
    """One row a region, in pixels of the working picture."""
    count = len(found.area_px)
    p = np.full((count, MOST_LAYERS + 1), np.nan)
    low, high, p_foreign = np.full((3, count), np.nan)
    counted = np.flatnonzero(found.area_px >= least)
    p[counted], p_foreign[counted] = posterior.p, posterior.p_foreign
    low[counted], high[counted] = posterior.low, posterior.high
    gold = _is_gold(found.contrast) & (np.arange(count) >= crystals) & (found.area_px >= 4 * least)
    near_gold = _beside(labels, np.flatnonzero(gold) + 1)
    flake_of, _ = ndimage.label(labels > 0, structure=np.ones((3, 3)))
    uneven = _unevenness(found, noise)
    rows: list[dict[str, Any]] = []
    for index in range(count):
        if found.area_px[index] < least:
            verdict = _Verdict("", np.nan, "rejected", BELOW_MINIMUM)
        elif index >= crystals and not (
            found.area_px[index] >= 4 * least and _looks_thin(p[index], p_foreign[index], found, index)
        ):
            verdict = _reject_foreign(found.contrast[index], bool(gold[index]))
        elif index + 1 in near_gold:
            verdict = _Verdict("", np.nan, "rejected", "touches a gold mark")
        else:
            verdict = _judge(
                p[index], float(p_foreign[index]), found.contrast[index], uneven[index], params.material
            )
            if index >= crystals and verdict.status != "rejected":
                verdict = replace(
                    verdict,
                    p=_DISPUTED * verdict.p,
                    status="ambiguous",
                    reason=f"may be residue; {verdict.reason}".strip("; "),
                )
        box = found.boxes[index]
        row, col = found.centre[index]
        rows.append(
            {
                "flake_id": int(flake_of[_any_pixel(labels, box, index + 1)]),
                "region_id": index + 1,
                "layers": verdict.layers,
                "layers_p": verdict.p,
                **{f"p_{layer + 1}": p[index, layer] for layer in range(MOST_LAYERS)},
                "p_thick": p[index, MOST_LAYERS],
                "status": verdict.status,
                "reason": verdict.reason,
                "area_px": found.area_px[index],
                "row_px": row,
                "col_px": col,
                "touches_edge": any(
                    part.start == 0 or part.stop == side for part, side in zip(box, labels.shape, strict=True)
                ),
                **dict(zip(("contrast_r", "contrast_g", "contrast_b"), found.contrast[index], strict=True)),
                "oxide_nm": posterior.oxide_nm,
                "oxide_sigma_nm": posterior.oxide_sigma_nm,
                "layers_low": low[index],
                "layers_high": high[index],
            }
        )
    return pd.DataFrame(rows, columns=[name for name in FLAKE_COLUMNS if name not in ("image", "area_um2")])


@dataclass(frozen=True)
class _Verdict:
    layers: str
    p: float
    status: str
    reason: str


def _judge(p: Float, p_foreign: float, contrast: Float, uneven: Float, material: str) -> _Verdict:
    """Put a posterior into words."""
    if p_foreign > 0.5:
        return _Verdict("", np.nan, "rejected", f"colour fits no thickness of {material}")
    strongest = int(np.abs(contrast).argmax())
    if uneven[strongest] > _UNEVEN_SHARE * abs(contrast[strongest]) + _UNEVEN:
        return _Verdict("", np.nan, "rejected", "colour not uniform: out of focus, folded or crumpled")
    names = [*map(str, range(1, MOST_LAYERS + 1)), "thick"]
    order = np.argsort(-p)
    faint = "near the noise: faint contrast" if np.abs(contrast).max() < _FAINT_CONTRAST else ""
    first = int(order[0])
    if p[first] >= _SURE:
        return _Verdict(names[first], float(p[first]), "accepted", faint)
    enough = int(np.clip(np.searchsorted(np.cumsum(p[order]), _ENOUGH) + 1, 2, _MOST_NAMED))
    said = ", ".join(f"{p[place]:.0%} {names[place]}" for place in order[:enough])
    reason = "; ".join(part for part in (f"ambiguous: {said}", faint) if part)
    stated = "|".join(names[place] for place in sorted(order[:enough]))
    return _Verdict(stated, float(p[order[:enough]].sum()), "ambiguous", reason)


def _looks_thin(p: Float, p_foreign: float, found: Measured, index: int) -> bool:
    """Whether what the network takes for residue is as even, and of the colour, as a thin crystal.

    The network knows no material and no oxide; a faint monolayer and a film of glue look alike to it.
    """
    contrast, spread = found.contrast[index], found.spread[index]
    strongest = int(np.abs(contrast).argmax())
    even = spread[strongest] < _EVEN_SHARE * abs(contrast[strongest])
    return bool(even and p_foreign < _SURELY_CRYSTAL and p[:_THINNEST].sum() > _ENOUGH)


def _is_gold(contrast: Float) -> NDArray[np.bool_]:
    """Metal is much brighter than the substrate and yellowish."""
    return (contrast[..., 0] > 0.4) & (contrast[..., 0] > contrast[..., 2])


def _reject_foreign(contrast: Float, gold: bool) -> _Verdict:
    if gold:
        reason = "gold or another metal"
    elif contrast.max() < -0.25:
        reason = "dust or a hole"
    else:
        reason = "residue, scratch or caption"
    return _Verdict("", np.nan, "rejected", reason)


def _beside(labels: Labels, which: NDArray[np.int64]) -> set[int]:
    """Labels of which a good part lies beside the given ones: the blurred seam, not a crystal that touches."""
    if len(which) == 0:
        return set()
    near = ndimage.binary_dilation(np.isin(labels, which), iterations=_SEAM_PX)
    share = np.bincount(labels[near], minlength=labels.max() + 1) / np.maximum(np.bincount(labels.ravel()), 1)
    return set(np.flatnonzero(share > _SEAM_SHARE).tolist()) - set(which.tolist()) - {0}


def _any_pixel(labels: Labels, box: tuple[slice, slice], label: int) -> tuple[int, int]:
    part = labels[box]
    row, col = np.unravel_index(int((part == label).argmax()), part.shape)
    return box[0].start + int(row), box[1].start + int(col)


@dataclass(frozen=True)
class _Job:
    """One picture's way through the finder."""

    micrograph: Micrograph
    params: FlakeParams
    network: Network
    clock: _Clock

    def answer(self, frame: pd.DataFrame, labels: Labels, notes: tuple[str, ...]) -> FlakeTable:
        """The table with its record."""
        small = frame["reason"] == BELOW_MINIMUM
        outlines = trace_outlines(labels, frame.loc[~small, "region_id"].to_numpy(int))
        self.clock.lap("outlines_s")
        timings = self.clock.timings
        provenance = Provenance(
            flatscope.__version__,
            self.micrograph.source,
            self.micrograph.sha256,
            f"{self.network.card.name} {self.network.card.version}",
            self.network.sha256,
            asdict(self.params),
            {**timings, "total_s": round(sum(timings.values()), 4)},
            (*self.micrograph.notes, *notes),
        )
        return FlakeTable(frame, labels, outlines, self.micrograph.calibration, provenance)


def _deliver(
    frame: pd.DataFrame, labels: Labels, job: _Job, *, factor: int, notes: tuple[str, ...]
) -> FlakeTable:
    """Back to the picture's own pixels, areas in µm², sorted by interest."""
    micrograph = job.micrograph
    if factor > 1:
        labels = np.repeat(np.repeat(labels, factor, axis=0), factor, axis=1)
        labels = np.pad(
            labels, [(0, side - had) for side, had in zip(micrograph.shape, labels.shape, strict=True)]
        )
        frame[["row_px", "col_px"]] = (frame[["row_px", "col_px"]] + 0.5) * factor - 0.5
        frame["area_px"] *= factor**2
        notes = (*notes, f"analysed at 1/{factor} of the picture's resolution")
    if micrograph.calibration is None:
        frame["area_um2"] = np.nan
        notes = (*notes, "pixel size unknown: areas in px only; pass --um-per-px for µm²")
    else:
        frame["area_um2"] = frame["area_px"] * micrograph.calibration.pixel_area_um2
    if job.params.material == "hBN":
        notes = (*notes, "hBN monolayers have a contrast of at most 0.02: many will be missed")
    frame["image"] = micrograph.name
    frame["area_px"] = frame["area_px"].astype(int)
    return job.answer(sort_by_interest(frame[list(FLAKE_COLUMNS)]), labels, notes)


def sort_by_interest(frame: pd.DataFrame) -> pd.DataFrame:
    """Thin, large and sure regions first, rejected ones last.

    Interest is the logarithm of the area times the stated probability, over the square root of the
    expected layer number.

    Parameters
    ----------
    frame
        Rows of flake tables, of one picture or of several.
    """
    numbers = np.array([1, 2, 3, 4, 5, 6, 12.0])
    p = frame[["p_1", "p_2", "p_3", "p_4", "p_5", "p_6", "p_thick"]].to_numpy(float)
    expected = np.nan_to_num(p @ numbers, nan=50.0)
    interest = np.log(frame["area_px"]) * frame["layers_p"].fillna(0.0) / np.sqrt(expected)
    rank = frame["status"].map({"accepted": 0, "ambiguous": 0}).fillna(1)
    order = np.lexsort((-frame["area_px"], -interest, rank))
    return frame.iloc[order].reset_index(drop=True)


def trace_outlines(labels: Labels, which: NDArray[np.int64]) -> dict[int, Polygon]:
    """Outlines of regions.

    Parameters
    ----------
    labels
        Shape (rows, cols).
    which
        The labels to trace.

    Returns
    -------
    Label to polygon with holes, x = column and y = row of pixel centres; the line runs halfway between the pixels
    inside and outside.
    """
    from skimage.measure import find_contours

    outlines: dict[int, Polygon] = {}
    boxes = ndimage.find_objects(labels)
    for label in which.tolist():
        box = boxes[label - 1]
        mask = np.pad(labels[box] == label, 1).astype(np.float32)
        rings = [ring[:, ::-1] + (box[1].start - 1, box[0].start - 1) for ring in find_contours(mask, 0.5)]
        # Of the rings of one region, the outer one reaches farthest to the left.
        rings.sort(key=lambda ring: float(ring[:, 0].min()))
        outlines[label] = Polygon(rings[0], rings[1:])
    return outlines
