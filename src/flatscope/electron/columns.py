"""Every atomic column of a monolayer in an ADF-STEM image: where it is, on which sublattice, and what stands there.

The lattice is followed through the image by its phase, so that every site is known before a column is looked for; then
all columns are fitted together as Gaussians on a background, which gives positions with errors and intensities.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

import flatscope
from flatscope.electron.drawing.specimens import DEFOCUS_NM, STEP_NM
from flatscope.electron.fitting import LARGEST_SHIFT, REACH_SIGMA, ColumnFit, fit_columns
from flatscope.electron.focal import (
    PIXEL_NM,
    Reading,
    align,
    find_clearest,
    find_drift,
    normalise,
    read_columns,
    resample,
    settle_sublattices,
)
from flatscope.electron.kinds import FIRST, SECOND
from flatscope.electron.kinds import OTHER as OTHER_CLASS
from flatscope.electron.lattice import NoLatticeError, Phases, find_lattice, map_phases, measure_strain
from flatscope.electron.physics.crystals import Crystal, find_crystal
from flatscope.electron.scans import ALIKE, SATURATED_SHARE, calibrate, open_scan, warn_of_lattice
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, MicrographError, Stack
from flatscope.results import COLUMN_COLUMNS, Atoms, ColumnTable, Provenance

Float = NDArray[np.float64]

_NEIGHBOURS = 30
"""So many columns of the same sublattice tell how bright a perfect one is."""
_PRIORS = {"whole": 0.965, "part": 0.02, "other": 0.01, "none": 0.005}
"""How often a column is perfect, lacks one of two atoms, holds something else, or nothing."""
_PART = (0.46, 0.05)
"""Height of one atom over that of a pair, and how far it differs between detectors: less than a half, since the two
scatter together where the detector begins at low angles."""
_NOISE_FACTOR = 1.3
"""Noise of neighbouring pixels is not independent."""
_LEAST_P = 0.8
"""Columns whose species is less sure than this are doubtful."""
_MANY_REJECTED = 0.15
"""Share of rejected sites that is worth a note."""
_CORRELATED = 1.5
"""Factor of the errors that is worth a note."""
_LEAST_USUAL = 0.3
"""Where the usual column is dimmer than this part of the whole image's there is no crystal."""
_LARGEST_SIGMA = 0.12
"""Columns whose place is less certain, in distances to the next one, are doubtful."""
_SAME_QUANTILE, _SAME_SHARE = 0.8, 0.2
"""Two images show the same columns if this share of them lie within this part of the distance to the next one."""

_COARSEST_NM, _NOTED_DRIFT_NM, _RIM_NM = 0.05, 0.02, 0.05
"""Of focal series: the largest pixel, the least drift that is said and taken out, and what a column needs beside it."""


@dataclass(frozen=True)
class ColumnParams:
    """Settings of `find_columns`.

    Parameters
    ----------
    material
        One of `flatscope.electron.physics.crystals.CRYSTALS`.
    brighter
        "auto", or which sublattice is the brighter one ("metal" or "chalcogen"; "a" or "b" in hBN).
    defocus_nm
        Of each image of a focal series, in the order of the file, positive for underfocus; empty where they ascend.
    weights
        Name or file of the network that reads focal series.
    """

    material: str = "MoS2"
    brighter: str = "auto"
    defocus_nm: tuple[float, ...] = ()
    weights: str = "columns"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = ("auto", *find_crystal(self.material).sublattices)
        if self.brighter not in names:
            raise ValueError(f"brighter = {self.brighter!r}: choose one of {', '.join(names)}")


def find_columns(
    image: Micrograph | Stack, params: ColumnParams = ColumnParams(), *, network: Network | None = None
) -> ColumnTable:
    """Find and name the atomic columns of a monolayer in an ADF-STEM image or an HRTEM focal series.

    Parameters
    ----------
    image
        A gray ADF-STEM image, bright where atoms are; or a `Stack` of three HRTEM images at different defocus.
    params
        The material.
    network
        Loaded already, for focal series; None loads `ColumnParams.weights`.

    Returns
    -------
    One row a column, its position with a 1-sigma error in nm by the material's lattice constant.

    Raises
    ------
    MicrographError
        If the image shows no hexagonal lattice, or one that is not this material's at the stated pixel size; if a
        series has not three images, or not as many values of defocus.

    Notes
    -----
    In ADF-STEM the sublattice follows from brightness at high angles (the metal is brighter, but in MoSe2); where
    both are about as bright, all columns are doubtful until `ColumnParams.brighter` settles it. At medium angles a pair
    of selenium atoms may be much brighter than tungsten: then only `brighter` is right. In a focal series a network
    names every column (see docs/training.md for what it was trained on). Both fail where crystals overlap.
    """
    if isinstance(image, Stack):
        return _find_in_series(image, params, network)
    if not isinstance(image, Micrograph):
        raise TypeError(
            f"find_columns wants a Micrograph or a Stack, not {type(image).__name__}: see flatscope.read"
        )
    return _find_in_scan(image, params)


def _find_in_scan(micrograph: Micrograph, params: ColumnParams) -> ColumnTable:
    crystal = find_crystal(params.material)
    notes = list(micrograph.notes)
    scan = open_scan(micrograph, crystal.name, notes, brighter=params.brighter)
    sites = scan.sites
    spacing = sites.phases.lattice.constant_px / np.sqrt(3.0)
    fit = fit_columns(scan.image, sites.positions, spacing)
    frame = _name(fit, sites.positions, sites.sublattice, crystal, image=scan.image)
    _warn_of_columns(fit, frame, notes)
    if not scan.sure:
        kept = frame["status"] == "ok"
        frame.loc[kept, "status"], frame.loc[kept, "reason"] = "doubtful", ALIKE
    record = _record(micrograph, params, notes)
    return _finish(frame, sites.phases, record, calibration=scan.calibration, sure=scan.sure)


def _record(
    image: Micrograph | Stack, params: ColumnParams, notes: list[str], network: Network | None = None
) -> Provenance:
    return Provenance(
        flatscope.__version__,
        image.name,
        image.sha256,
        network.card.name if network else "",
        network.sha256 if network else "",
        {"columns": asdict(params)},
        notes=tuple(notes),
    )


def _finish(
    frame: pd.DataFrame, phases: Phases, provenance: Provenance, *, calibration: Calibration, sure: bool
) -> ColumnTable:
    """Rows from top to bottom, with their place in nm and a number, and what is known of the lattice."""
    frame["image"] = provenance.image
    pixel_nm = calibration.pixel_size_nm[0]
    frame["x_nm"], frame["y_nm"] = frame["col_px"] * pixel_nm, frame["row_px"] * pixel_nm
    frame["sigma_nm"] = frame["sigma_px"] * pixel_nm
    frame = frame.sort_values(["row_px", "col_px"], ignore_index=True)
    frame["column_id"] = np.arange(1, len(frame) + 1)
    strain = measure_strain(phases)
    return ColumnTable(
        frame[list(COLUMN_COLUMNS)], phases.lattice.vectors, strain, sure, calibration, provenance
    )


def _find_in_series(series: Stack, params: ColumnParams, network: Network | None) -> ColumnTable:
    crystal = find_crystal(params.material)
    network = network or Network.load(params.weights, task="columns")
    notes = list(series.notes)
    images = _order(series, params, network, notes)
    stated = None if series.calibration is None else float(np.mean(series.calibration.pixel_size_nm))
    try:
        lattice = find_lattice(images, expected_px=None if stated is None else crystal.lattice_nm / stated)
    except NoLatticeError as error:
        raise MicrographError(f"{series.source}: {error}") from None
    calibration = calibrate(series, lattice, crystal, notes)
    pixel_nm = calibration.pixel_size_nm[0]
    if pixel_nm > _COARSEST_NM:
        raise MicrographError(
            f"{series.source}: pixels of {pixel_nm:.3f} nm do not resolve columns: at most {_COARSEST_NM} nm"
        )
    shifts = find_drift(images, lattice)
    apart = bool(np.isnan(shifts).any())
    shifts = np.nan_to_num(shifts)
    farthest = float(np.hypot(*shifts.T).max()) * pixel_nm
    if apart:
        notes.append(f"{APART}: align them with each other first")
    elif farthest > _NOTED_DRIFT_NM:
        notes.append(f"the images lie up to {farthest:.2f} nm apart: moved onto each other")
        images = align(images, shifts).astype(float)
    factor = PIXEL_NM / pixel_nm
    seen = normalise(resample(images, factor))
    reading = read_columns(network, seen)
    frame = _name_series(reading, crystal, shape=seen.shape[1:], margin=np.abs(shifts).max() / factor)
    frame["row_px"], frame["col_px"] = ((frame[name] + 0.5) * factor - 0.5 for name in ("row_px", "col_px"))
    frame["sigma_px"] *= factor
    if apart:
        kept = frame["status"] == "ok"
        frame.loc[kept, "status"], frame.loc[kept, "reason"] = "doubtful", APART
    phases = map_phases(images[find_clearest(images, lattice)], lattice)
    warn_of_lattice(phases, crystal, notes)
    return _finish(frame, phases, _record(series, params, notes, network), calibration=calibration, sure=True)


def _order(series: Stack, params: ColumnParams, network: Network, notes: list[str]) -> Float:
    """The images as floats in ascending order of defocus, after a look at whether they can be read at all."""
    source, wanted = series.source, len(network.card.channels)
    if network.card.material and network.card.material != find_crystal(params.material).name:
        raise MicrographError(
            f"{source}: the weights {network.card.name} know {network.card.material}, not {params.material}: train "
            f"your own with flatscope train columns, and pass them by --weights"
        )
    if network.card.pixel_size_nm != PIXEL_NM:
        raise MicrographError(
            f"{source}: the weights {network.card.name} want {network.card.pixel_size_nm} nm a pixel, this flatscope "
            f"reads series at {PIXEL_NM}: use weights and program of one release"
        )
    if len(series) != wanted:
        held = "one image" if len(series) == 1 else f"{len(series)} images"
        raise MicrographError(f"{source}: holds {held}, a focal series has {wanted}")
    if params.defocus_nm and len(params.defocus_nm) != len(series):
        raise MicrographError(
            f"{source}: {len(params.defocus_nm)} values of defocus for {len(series)} images: give one an image"
        )
    frames = np.asarray(series.frames, float)
    for number, frame in enumerate(frames, start=1):
        if frame.max() <= frame.min():
            raise MicrographError(
                f"{source}: all pixels of image {number} are {frame.min():g}: nothing to see"
            )
        if frame.mean() <= 0.0:
            raise MicrographError(
                f"{source}: image {number} has a mean of {frame.mean():g}: counts or intensities are needed, "
                "background not subtracted"
            )
        top = float((frame >= frame.max()).mean())
        if top > SATURATED_SHARE:
            raise MicrographError(f"{source}: {top:.0%} of the pixels of image {number} are saturated")
    if not params.defocus_nm:
        notes.append(
            "the images are taken to stand in ascending order of defocus: --defocus-nm says so, or not"
        )
        return frames
    low, high = DEFOCUS_NM[0] - STEP_NM[1], DEFOCUS_NM[1] + STEP_NM[1]
    ordered = np.sort(params.defocus_nm)
    steps = np.diff(ordered)
    if (
        ordered[0] < low
        or ordered[-1] > high
        or steps.min() < STEP_NM[0] - 0.5
        or steps.max() > STEP_NM[1] + 0.5
    ):
        notes.append(
            f"the network knows series from {low:g} to {high:g} nm in steps of {STEP_NM[0]:g} to {STEP_NM[1]:g}: "
            "this one lies outside, check its columns by eye"
        )
    return frames[np.argsort(params.defocus_nm)]


def _name_series(
    reading: Reading, crystal: Crystal, *, shape: tuple[int, ...], margin: float
) -> pd.DataFrame:
    """Rows of a column table from what a network says, in its own pixels."""
    names = np.array(["", *crystal.species, crystal.second[0], OTHER])
    sublattice, p = settle_sublattices(reading)
    called = p[:, 1:].argmax(1) + 1
    plain = np.ones(reading.contrast.shape[1])
    usual = np.stack(
        [
            np.median(reading.contrast[called == kind], axis=0) if (called == kind).any() else plain
            for kind in (FIRST, SECOND)
        ]
    )
    template = usual[sublattice]
    frame = pd.DataFrame(
        {
            "row_px": reading.positions[:, 0],
            "col_px": reading.positions[:, 1],
            "sigma_px": reading.sigma,
            "sublattice": np.array(crystal.sublattices)[sublattice],
            "species": names[called],
            "species_p": p[np.arange(len(called)), called],
            "intensity": (reading.contrast * template).sum(1) / np.maximum((template**2).sum(1), 1e-9),
            "intensity_sigma": np.nan,
            "status": "ok",
            "reason": "",
        }
    )
    for rows, status, reason in (
        (called == OTHER_CLASS, "doubtful", "neither of the material's columns"),
        (
            frame["species_p"].to_numpy() < _LEAST_P,
            "doubtful",
            "two kinds of column, or none, are about as likely",
        ),
        (reading.sigma > _LARGEST_SIGMA * _nearest(reading.positions), "doubtful", "its place is uncertain"),
    ):
        frame.loc[rows, "status"], frame.loc[rows, "reason"] = status, reason
    rim = _RIM_NM / PIXEL_NM + margin
    cut = ((reading.positions < rim) | (reading.positions > np.array(shape[-2:]) - 1.0 - rim)).any(1)
    frame.loc[cut, "status"], frame.loc[cut, "reason"] = "rejected", "cut by the border"
    return frame


def share_sites(one: ColumnTable, other: ColumnTable) -> bool:
    """Whether two images show the same columns at the same pixels, as those of two detectors in one scan do."""
    places = [table.frame[["row_px", "col_px"]].to_numpy(float) for table in (one, other)]
    if min(map(len, places)) < 2:
        return False
    gap, _ = cKDTree(places[0]).query(places[1])
    return bool(np.quantile(gap, _SAME_QUANTILE) < _SAME_SHARE * _nearest(places[0]))


def find_brighter(table: ColumnTable, sure: ColumnTable) -> str:
    """The brighter sublattice of an image by another one of the same columns whose sublattices are clear."""
    places = [one.frame[["row_px", "col_px"]].to_numpy(float) for one in (table, sure)]
    _, nearest = cKDTree(places[1]).query(places[0])
    theirs = sure.frame["sublattice"].to_numpy()[nearest]
    swapped = float(np.mean(theirs != table.frame["sublattice"].to_numpy())) > 0.5
    crystal = find_crystal(str(table.provenance.settings["columns"]["material"]))
    return crystal.sublattices[1 - crystal.brighter if swapped else crystal.brighter]


def _warn_of_columns(fit: ColumnFit, frame: pd.DataFrame, notes: list[str]) -> None:
    """And of the columns."""
    if fit.correlated > _CORRELATED:
        notes.append(
            "neighbouring pixels are alike, as after filtering or resampling: stated errors are lower limits"
        )
    lost = float((frame["status"] == "rejected").mean())
    if lost > _MANY_REJECTED:
        notes.append(
            f"{lost:.0%} of the sites are rejected: another grain, a second layer or something else in the field?"
        )


def _name(
    fit: ColumnFit, sites: Float, sublattice: NDArray[np.int64], crystal: Crystal, *, image: Float
) -> pd.DataFrame:
    """What stands in each column, by its height over that of its neighbours on the same sublattice."""
    frame = pd.DataFrame(
        {
            "row_px": fit.positions[:, 0],
            "col_px": fit.positions[:, 1],
            "sigma_px": fit.position_sigma,
            "sublattice": np.array(crystal.sublattices)[sublattice],
            "species": "",
            "species_p": 0.0,
            "intensity": 0.0,
            "intensity_sigma": 0.0,
            "status": "ok",
            "reason": "",
        }
    )
    bare = np.zeros(len(frame), bool)
    for kind in (0, 1):
        mine = np.flatnonzero(sublattice == kind)
        if len(mine) == 0:
            continue
        heights = fit.heights[mine]
        count = min(_NEIGHBOURS, len(mine))
        _, near = cKDTree(fit.positions[mine]).query(fit.positions[mine], k=count)
        usual = np.median(heights[near.reshape(len(mine), -1)], axis=1)
        everywhere = max(float(np.median(heights)), 1e-9)
        bare[mine] = usual < _LEAST_USUAL * everywhere
        usual = np.maximum(usual, _LEAST_USUAL * everywhere)
        ratio = heights / usual
        noise = fit.height_sigma[mine] / usual
        names, p = _judge(ratio, noise, crystal, kind)
        frame.loc[mine, "species"] = names
        frame.loc[mine, "species_p"] = p
        frame.loc[mine, "intensity"] = ratio
        frame.loc[mine, "intensity_sigma"] = noise
    unsure = frame["species_p"] < _LEAST_P
    frame.loc[unsure, "status"], frame.loc[unsure, "reason"] = "doubtful", "its brightness fits two species"
    other = ~unsure & (frame["species"] == OTHER)
    frame.loc[other, "status"], frame.loc[other, "reason"] = (
        "doubtful",
        "too bright or too dim for the material",
    )
    vague = fit.position_sigma > _LARGEST_SIGMA * _nearest(sites)
    frame.loc[vague, "status"], frame.loc[vague, "reason"] = "doubtful", "its place is uncertain"
    empty = frame["species"] == NOTHING
    frame.loc[empty, "status"], frame.loc[empty, "reason"] = "rejected", "no atom is seen on this site"
    frame.loc[bare, "status"], frame.loc[bare, "reason"] = "rejected", "no crystal here"
    flat = ndimage.maximum_filter(image, 3) == ndimage.minimum_filter(image, 3)
    row, col = (
        np.clip(np.rint(place).astype(int), 0, side - 1)
        for place, side in zip(sites.T, image.shape, strict=True)
    )
    frame.loc[flat[row, col], "status"] = "rejected"
    frame.loc[flat[row, col], "reason"] = "the pixels here are all alike: saturated or blank"
    rim_px = 0.5 * REACH_SIGMA * fit.width_px
    away = np.hypot(*(fit.positions - sites).T)
    ran = away > 0.99 * LARGEST_SHIFT * _nearest(sites)
    frame.loc[ran, "status"], frame.loc[ran, "reason"] = "rejected", "the fit ran away from its site"
    rim = ((fit.positions < rim_px) | (fit.positions > np.array(image.shape) - 1.0 - rim_px)).any(1)
    frame.loc[rim, "status"], frame.loc[rim, "reason"] = "rejected", "cut by the border"
    return frame


APART = "the images show the lattice in different places"
"""Reason of all columns of a series that has drifted too far."""
OTHER, NOTHING = "other", "none"
"""Species of a column that is none of the material's, and of a site without an atom."""


def _nearest(positions: Float) -> float:
    """Median distance of a site to the next one."""
    if len(positions) < 2:
        return np.inf
    return float(np.median(cKDTree(positions).query(positions, k=2)[0][:, 1]))


def _judge(ratio: Float, noise: Float, crystal: Crystal, kind: int) -> tuple[NDArray[Any], Float]:
    """The likeliest species of each column and its probability, from heights relative to the usual one."""
    element, atoms = (crystal.first, crystal.second)[kind]
    spread = max(1.4826 * float(np.median(np.abs(ratio - np.median(ratio)))), 0.02)

    def chance(prior: float, mean: float, sigma: Float | float) -> Float:
        return np.asarray(prior / sigma * np.exp(-0.5 * ((ratio - mean) / sigma) ** 2))

    density = {crystal.species[kind]: chance(_PRIORS["whole"], 1.0, spread)}
    if atoms == 2:
        density[element] = chance(_PRIORS["part"], _PART[0], float(np.hypot(spread, _PART[1])))
    # Columns of one kind scatter by more than noise; where there is nothing, there is only noise.
    density[NOTHING] = chance(_PRIORS["none"], 0.0, np.maximum(_NOISE_FACTOR * noise, 0.02))
    # What else may stand there has any brightness up to three times the usual one.
    density[OTHER] = np.full_like(ratio, _PRIORS["other"] * np.sqrt(2.0 * np.pi) / 3.0)
    p = np.stack(list(density.values()))
    p /= p.sum(0)
    return np.array(list(density))[p.argmax(0)], p.max(0)


def build_model(table: ColumnTable, params: ColumnParams, *, shape: tuple[int, int]) -> Atoms:
    """The atoms that stand in the columns found.

    Parameters
    ----------
    table
        See `find_columns`.
    params
        The material.
    shape
        Of the image.

    Notes
    -----
    An image tells nothing of heights: pairs stand where the perfect crystal has them, and a lone atom of a pair on the
    side of the source. What is neither is "X".
    """
    crystal = find_crystal(params.material)
    half = 0.5 * crystal.pair_nm
    symbols, places = [], []
    width, height = (side * table.calibration.pixel_size_nm[0] for side in (shape[1], shape[0]))
    for row in table.found.to_dict("records"):
        kind = crystal.sublattices.index(str(row["sublattice"]))
        element, atoms = (crystal.first, crystal.second)[kind]
        levels = (
            (half, -half)
            if row["species"] == crystal.species[kind] and atoms == 2
            else (half * (atoms == 2),)
        )
        for level in levels:
            symbols.append(element if row["species"] != OTHER else "X")
            places.append((float(row["x_nm"]), height - float(row["y_nm"]), level))
    return Atoms(symbols, np.reshape(places, (-1, 3)).astype(float), (width, height))
