"""Every atomic column of a monolayer in an ADF-STEM image: where it is, on which sublattice, and what stands there.

The lattice is followed through the image by its phase, so that every site is known before a column is looked for. All
columns are then fitted together as Gaussians on a background, which gives positions with errors and intensities. Focal
series are read by `flatscope.electron.series`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import cKDTree

from flatscope.electron.fitting import (
    LARGEST_SHIFT,
    REACH_SIGMA,
    VAGUE_SHARE,
    ColumnFit,
    fit_columns,
    measure_spacing,
)
from flatscope.electron.kinds import FOREIGN, NOTHING
from flatscope.electron.lattice import Phases, measure_strain
from flatscope.electron.physics.crystals import Crystal, find_crystal
from flatscope.electron.scans import ALIKE, Scan, open_scan
from flatscope.electron.series import find_in_series
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, Stack
from flatscope.results import COLUMN_COLUMNS, Atoms, ColumnTable, Marks, Provenance, column_names, mark
from flatscope.results.view import make_preview

Float = NDArray[np.float64]


@dataclass(frozen=True)
class _Priors:
    """Assumed shares of columns that are perfect, lack one of two atoms, hold something else, or nothing."""

    whole: float = 0.965
    part: float = 0.02
    other: float = 0.01
    none: float = 0.005


_PRIORS = _Priors()
_NEIGHBOURS = 30  # columns of the same sublattice that tell how bright a perfect one is
# Height of one atom over that of a pair, and its spread between detectors: less than a half, as the two atoms of a pair
# scatter together where the detector begins at low angles.
_PART_HEIGHT = 0.46
_PART_SPREAD = 0.05
_NOISE_FACTOR = 1.3  # by which noise on a column exceeds that of independent pixels
_SURE_P = 0.8  # probability of its species from which a column is accepted
_LOST_SIGMA = 0.5  # nearest to the border (widths) that a column may lie: two thirds of it are seen
_MANY_REJECTED = 0.15  # share of rejected sites that is worth a note
_CORRELATED = 1.5  # factor of the errors that is worth a note
_LEAST_USUAL = 0.3  # brightness of usual columns over that of the whole image below which there is no crystal
_SAME_QUANTILE = 0.8  # two images show the same columns if this share of them lie together,
_SAME_SHARE = 0.2  # within this part of the distance to the next column


@dataclass(frozen=True)
class ColumnParams:
    """Settings of `find_columns`.

    Parameters
    ----------
    material
        MoS2, WS2, MoSe2, WSe2, graphene or hBN.
    brighter
        "auto", or which sublattice is the brighter one ("metal" or "chalcogen"; "a" or "b" in hBN).
    inner_mrad
        Inner angle of the annular detector, which tells how bright either sublattice should be. Without it all usual
        detectors stay open.
    defocus_nm
        Of each image of a focal series, in the order of the file, positive for underfocus; empty where they ascend.
    weights
        Name or file of the network that reads focal series.
    """

    material: str = "MoS2"
    brighter: str = "auto"
    inner_mrad: float | None = None
    defocus_nm: tuple[float, ...] = ()
    weights: str = "columns"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = ("auto", *find_crystal(self.material).sublattices)
        if self.brighter not in names:
            raise ValueError(f"brighter = {self.brighter!r}: choose one of {', '.join(names)}")
        if self.inner_mrad is not None and not 0.0 < self.inner_mrad < 500.0:
            raise ValueError(f"inner_mrad = {self.inner_mrad:g}: give the detector's inner angle, such as 70")


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
    ColumnTable
        One row a column, columns `flatscope.results.COLUMN_COLUMNS`: its place in px and, by the material's lattice
        constant, in nm, with the 1-sigma error `sigma_nm` of either coordinate; its `species` ("W", "Se2", "Se" for one
        of two atoms, "other", "none") with the probability `species_p`; and its `intensity`, the height over that of
        usual columns of the same sublattice. `status` and `reason` tell which rows count.

    Raises
    ------
    MicrographError
        If the image shows no hexagonal lattice, or one that is not this material's at the stated pixel size; if a
        series has not three images, or not as many values of defocus.

    Notes
    -----
    In ADF-STEM the sublattice follows from brightness, as a probability that `species_p` contains: by the detector's
    inner angle where it is known, else over all usual ones. Below about 65 mrad a pair of selenium atoms is brighter
    than tungsten. Where both are about as bright, all columns are uncertain until `ColumnParams.brighter` settles it.
    In a focal series a network names every column (docs/training.md tells what it was trained on). Both fail where
    crystals overlap.

    Examples
    --------
    >>> from flatscope.electron.physics.crystals import SheetParams, build_sheet
    >>> from flatscope.electron.physics.imaging import ScanParams, draw_adf
    >>> sheet = build_sheet(np.random.default_rng(0), SheetParams("WS2", (3.0, 3.0)))
    >>> image = draw_adf(sheet, ScanParams(pixel_nm=0.03), shape=(100, 100))
    >>> table = find_columns(Micrograph(image, full_scale=float(image.max())), ColumnParams("WS2"))
    >>> sorted(set(table.found["species"]))
    ['S2', 'W']
    """
    crystal = find_crystal(params.material)
    notes: list[str] = []
    if isinstance(image, Stack):
        network = network or Network.load(params.weights, task="columns")
        read = find_in_series(image, crystal, network, notes, defocus_nm=params.defocus_nm)
        record = Provenance.of(image, params, network=network, notes=tuple(notes))
        return _finish(image, read.rows, read.phases, record, calibration=read.calibration, sure=True)
    if not isinstance(image, Micrograph):
        raise TypeError(
            f"find_columns wants a Micrograph or a Stack, not {type(image).__name__}: see flatscope.read"
        )
    scan = open_scan(image, crystal.name, notes, brighter=params.brighter, inner_mrad=params.inner_mrad)
    frame = _find_in_scan(scan, crystal, notes)
    record = Provenance.of(image, params, notes=tuple(notes))
    return _finish(image, frame, scan.sites.phases, record, calibration=scan.calibration, sure=scan.sure)


def _find_in_scan(scan: Scan, crystal: Crystal, notes: list[str]) -> pd.DataFrame:
    """Rows of a column table, by columns fitted on all sites of a scan."""
    spacing = scan.sites.phases.lattice.constant_px / np.sqrt(3.0)
    fit = fit_columns(scan.image, scan.sites.positions, spacing, seen=scan.sites.phases.crystal)
    frame, bare = _name_columns(fit, scan.sites.sublattice, crystal)
    frame = _mark_doubts(frame, fit, scan, bare)
    _warn_of_columns(fit, frame, notes)
    frame["species_p"] *= scan.sublattice_p
    if not scan.sure:
        frame = mark(frame, frame["status"] == "accepted", status="uncertain", reason=ALIKE)
    return frame


def _finish(
    image: Micrograph | Stack,
    frame: pd.DataFrame,
    phases: Phases,
    provenance: Provenance,
    *,
    calibration: Calibration,
    sure: bool,
) -> ColumnTable:
    """Rows from top to bottom, with their place in nm and a number, and what is known of the lattice."""
    frame["image"] = provenance.image
    pixel_nm = calibration.pixel_size_nm[0]
    frame["x_nm"], frame["y_nm"] = frame["col_px"] * pixel_nm, frame["row_px"] * pixel_nm
    frame["sigma_nm"] = frame["sigma_px"] * pixel_nm
    frame = frame.sort_values(["row_px", "col_px"], ignore_index=True)
    frame["column_id"] = np.arange(1, len(frame) + 1)
    found = frame[frame["status"] != "rejected"]
    crystal = find_crystal(str(provenance.settings["material"]))
    return ColumnTable(
        frame[list(column_names(COLUMN_COLUMNS))],
        Marks.points(frame["column_id"], frame["row_px"], frame["col_px"], image.shape),
        calibration,
        provenance,
        phases.lattice.vectors,
        measure_strain(phases),
        sure,
        build_model(found, crystal, calibration, shape=image.shape),
        preview=make_preview(image),
    )


def share_sites(one: ColumnTable, other: ColumnTable) -> bool:
    """Whether two images show the same columns at the same pixels, as those of two detectors in one scan do."""
    places = [table.frame[["row_px", "col_px"]].to_numpy(float) for table in (one, other)]
    if min(map(len, places)) < 2:
        return False
    gap, _ = cKDTree(places[0]).query(places[1])
    return bool(np.quantile(gap, _SAME_QUANTILE) < _SAME_SHARE * measure_spacing(places[0]))


def find_brighter(table: ColumnTable, sure: ColumnTable) -> str:
    """The brighter sublattice of an image by another one of the same columns whose sublattices are clear."""
    places = [one.frame[["row_px", "col_px"]].to_numpy(float) for one in (table, sure)]
    _, nearest = cKDTree(places[1]).query(places[0])
    theirs = sure.frame["sublattice"].to_numpy()[nearest]
    swapped = float(np.mean(theirs != table.frame["sublattice"].to_numpy())) > 0.5
    crystal = find_crystal(str(table.provenance.settings["material"]))
    return crystal.sublattices[1 - crystal.brighter if swapped else crystal.brighter]


def _warn_of_columns(fit: ColumnFit, frame: pd.DataFrame, notes: list[str]) -> None:
    """Add what a reader should know of the columns."""
    if fit.correlated > _CORRELATED:
        notes.append(
            "neighbouring pixels are alike, as after filtering or resampling: stated errors are lower limits"
        )
    lost = float((frame["status"] == "rejected").mean())
    if lost > _MANY_REJECTED:
        notes.append(
            f"{lost:.0%} of the sites are rejected: another grain, a second layer or something else in the field?"
        )


def _name_columns(
    fit: ColumnFit, sublattice: NDArray[np.int64], crystal: Crystal
) -> tuple[pd.DataFrame, NDArray[np.bool_]]:
    """What stands in each column, by its height over that of its neighbours on the same sublattice; and which columns
    have such dim neighbours that there is no crystal."""
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
            "status": "accepted",
            "reason": "",
        }
    )
    bare = np.zeros(len(frame), bool)
    for which in (0, 1):
        mine = np.flatnonzero(sublattice == which)
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
        names, p = weigh_species(ratio, noise, crystal, which)
        frame.loc[mine, "species"] = names
        frame.loc[mine, "species_p"] = p
        frame.loc[mine, "intensity"] = ratio
        frame.loc[mine, "intensity_sigma"] = noise
    return frame, bare


def _mark_doubts(frame: pd.DataFrame, fit: ColumnFit, scan: Scan, bare: NDArray[np.bool_]) -> pd.DataFrame:
    """Rows with their status: which columns are uncertain, and where there is none."""
    sites, image = scan.sites.positions, scan.image
    spacing = measure_spacing(sites)
    unsure = frame["species_p"] < _SURE_P
    other = ~unsure & (frame["species"] == FOREIGN)
    flat = ndimage.maximum_filter(image, 3) == ndimage.minimum_filter(image, 3)
    row, col = (
        np.clip(np.rint(place).astype(int), 0, side - 1)
        for place, side in zip(sites.T, image.shape, strict=True)
    )
    away = np.hypot(*(fit.positions - sites).T)
    rim_px = fit.width_px * np.array([_LOST_SIGMA, 0.5 * REACH_SIGMA])
    gap = np.minimum(fit.positions, np.array(image.shape) - 1.0 - fit.positions).min(1)
    for where, status, reason in (
        (unsure, "uncertain", "its brightness fits two species"),
        (other, "uncertain", "too bright or too dim for the material"),
        (fit.position_sigma > VAGUE_SHARE * spacing, "uncertain", "its place is uncertain"),
        (frame["species"] == NOTHING, "rejected", "no atom is seen on this site"),
        (bare, "rejected", "no crystal here"),
        (flat[row, col], "rejected", "the pixels here are all alike: saturated or blank"),
        (away > 0.99 * LARGEST_SHIFT * spacing, "rejected", "the fit ran away from its site"),
        (gap < rim_px[1], "uncertain", "cut by the border"),
        (gap < rim_px[0], "rejected", "cut by the border"),
    ):
        frame = mark(frame, where, status=status, reason=reason)
    return frame


def weigh_species(
    ratio: Float, noise: Float, crystal: Crystal, sublattice: int
) -> tuple[NDArray[Any], Float]:
    """The likeliest species of each column and its probability, from heights relative to the usual one."""
    element, atoms = (crystal.first, crystal.second)[sublattice]
    spread = max(1.4826 * float(np.median(np.abs(ratio - np.median(ratio)))), 0.02)

    def chance(prior: float, mean: float, sigma: Float | float) -> Float:
        return np.asarray(prior / sigma * np.exp(-0.5 * ((ratio - mean) / sigma) ** 2))

    density = {crystal.species[sublattice]: chance(_PRIORS.whole, 1.0, spread)}
    if atoms == 2:
        density[element] = chance(_PRIORS.part, _PART_HEIGHT, float(np.hypot(spread, _PART_SPREAD)))
    # Columns of one kind scatter by more than noise; where there is nothing, there is only noise.
    density[NOTHING] = chance(_PRIORS.none, 0.0, np.maximum(_NOISE_FACTOR * noise, 0.02))
    # Anything else has any brightness up to three times the usual one.
    density[FOREIGN] = np.full_like(ratio, _PRIORS.other * np.sqrt(2.0 * np.pi) / 3.0)
    p = np.stack(list(density.values()))
    p /= p.sum(0)
    return np.array(list(density))[p.argmax(0)], p.max(0)


def build_model(
    found: pd.DataFrame, crystal: Crystal, calibration: Calibration, *, shape: tuple[int, int]
) -> Atoms:
    """Build the atoms that stand in the columns found.

    Parameters
    ----------
    found
        Rows of a column table that count.
    crystal
        The material.
    calibration
        Pixel size.
    shape
        Rows and columns of the image.

    Notes
    -----
    An image tells nothing of heights: pairs stand where the perfect crystal has them, and a lone atom of a pair on the
    side of the source. Other species are "X".
    """
    half = 0.5 * crystal.pair_nm
    symbols, places = [], []
    width, height = (side * calibration.pixel_size_nm[0] for side in (shape[1], shape[0]))
    for row in found.to_dict("records"):
        kind = crystal.sublattices.index(str(row["sublattice"]))
        element, atoms = (crystal.first, crystal.second)[kind]
        levels = (
            (half, -half)
            if row["species"] == crystal.species[kind] and atoms == 2
            else (half * (atoms == 2),)
        )
        for level in levels:
            symbols.append(element if row["species"] != FOREIGN else "X")
            places.append((float(row["x_nm"]), height - float(row["y_nm"]), level))
    return Atoms(symbols, np.reshape(places, (-1, 3)).astype(float), (width, height))
