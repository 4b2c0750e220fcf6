"""Point defects of a monolayer in an ADF-STEM image: where, of which kind, and by what evidence.

Every site of the lattice is compared with its own sublattice's neighbours: how bright it is in the residual that the
repeating part of the image leaves. A mixture of usual sites, empty ones, halves of a pair and other elements tells
which sites are unusual (`flatscope.electron.mixture`). A network names the kind of each from a crop around it that is
turned with the lattice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, special
from scipy.spatial import cKDTree

from flatscope.electron.kinds import CONTAMINATION, DISORDER, GROUPS, HOLE, SITE_KINDS, Kind, list_kinds
from flatscope.electron.mixture import ELSE, fit_mixture, steady
from flatscope.electron.physics.crystals import NUMBERS, Crystal, find_crystal
from flatscope.electron.scans import ALIKE, Scan, open_scan
from flatscope.electron.sites import Readings, Sites, cut_crops
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.results import DEFECT_COLUMNS, DefectTable, Marks, Provenance, column_names, mark
from flatscope.results.view import make_preview

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]
Whole = NDArray[np.int64]

SURE_P = 0.8  # probability of its kind from which a defect is accepted
UNSURE = "two kinds, or none, are about as likely"
BORDER_CELLS = 0.5  # sites nearer to the border than this (lattice constants) are not measured
_LEAST_P = 0.5  # probability from which a site is a defect
_BEYOND_NOISE = 8.0  # sigmas from which a site that matches no known defect still counts as one
_NEVER = -30.0  # logit of a class that is excluded
_PRIOR = 3.0  # defects of each kind added to those of an image when their shares are estimated
_ROUNDS = 100  # of that estimate
_BATCH = 1024  # crops shown to the network at once


@dataclass(frozen=True)
class _Extent:
    """From when on defects are one feature larger than a point."""

    around: int = 13  # nearest sites, the site itself among them
    mostly: float = 0.55  # share of these that are defects
    beside_cells: float = 1.2  # defects this near to a feature (lattice constants) belong to it
    rounds: int = 3  # of growth by such defects
    least_cells: float = 1.5  # smallest area, in unit cells
    dark: float = 0.5  # brightness over that of the crystal below which a feature is a hole
    bright: float = 1.3  # and above which it is contamination


_EXTENT = _Extent()


@dataclass(frozen=True)
class DefectParams:
    """Settings of `find_defects`.

    Parameters
    ----------
    material
        MoS2, WS2, MoSe2, WSe2, graphene or hBN.
    brighter
        "auto", or which sublattice is the brighter one ("metal" or "chalcogen"; "a" or "b" in hBN).
    inner_mrad
        Inner angle of the annular detector, which tells how bright either sublattice should be. Without it all usual
        detectors stay open.
    dopants
        Element that is known to be there, such as "Ti": dopants are then named after it.
    weights
        Name or file of the network that names defects of dichalcogenides.
    """

    material: str = "WSe2"
    brighter: str = "auto"
    inner_mrad: float | None = None
    dopants: str = ""
    weights: str = "defects"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = ("auto", *find_crystal(self.material).sublattices)
        if self.brighter not in names:
            raise ValueError(f"brighter = {self.brighter!r}: choose one of {', '.join(names)}")
        if self.inner_mrad is not None and not 0.0 < self.inner_mrad < 500.0:
            raise ValueError(f"inner_mrad = {self.inner_mrad:g}: give the detector's inner angle, such as 70")
        if self.dopants and self.dopants not in NUMBERS:
            raise ValueError(f"dopants = {self.dopants!r}: give one element of {', '.join(NUMBERS)}")


def load_network(params: DefectParams, network: Network | None) -> Network | None:
    """The network that names defects, or None where the material has no pairs of atoms and brightness alone names."""
    if network is None and find_crystal(params.material).is_dichalcogenide:
        return Network.load(params.weights, task="defects")
    return network


def find_defects(
    micrograph: Micrograph, params: DefectParams = DefectParams(), *, network: Network | None = None
) -> DefectTable:
    """Find and name the point defects of a monolayer in an ADF-STEM image.

    Parameters
    ----------
    micrograph
        Gray, bright where atoms are.
    params
        The material and its dopant.
    network
        Loaded already; None loads `DefectParams.weights`.

    Returns
    -------
    DefectTable
        One row a defect, columns `flatscope.results.DEFECT_COLUMNS`: its `kind` ("V_Se2", "Ti_W", see
        `flatscope.electron.kinds`; "hole", "contamination" or "disorder" for what is larger than a point), the
        probability `kind_p` of being a defect of this kind, its place in px and nm, `z_score`, how far the site's
        brightness is off the usual one in units of its scatter, and `intensity_ratio`, that brightness over the usual
        one. `status` and `reason` tell which rows count.

    Raises
    ------
    MicrographError
        If the image is not periodic, or its lattice is not this material's at the stated pixel size.

    Notes
    -----
    Fails where crystals overlap, and where a third or more of the sites are defects. Dopants next to the host in the
    periodic table, and oxygen on sulphur at low dose, look like what they replace.

    Examples
    --------
    >>> from flatscope.electron.drawing.specimens import draw_scanned
    >>> from flatscope.electron.drawing.noise import NoiseParams
    >>> from flatscope.electron.physics.crystals import SheetParams
    >>> from flatscope.electron.physics.imaging import ScanParams
    >>> sheet = SheetParams("WS2", vacancies={"first": 0.03})
    >>> optics, noise = ScanParams(pixel_nm=0.03), NoiseParams(gain=1.0)
    >>> made = draw_scanned(np.random.default_rng(1), sheet, optics, noise, shape=(96, 96), electrons_per_px=200.0)
    >>> table = find_defects(Micrograph(made.image, full_scale=float(made.image.max())), DefectParams("WS2"))
    >>> sorted(set(table.found["kind"]))
    ['V_W']
    """
    crystal = find_crystal(params.material)
    notes: list[str] = []
    scan = open_scan(
        micrograph,
        crystal.name,
        notes,
        brighter=params.brighter,
        inner_mrad=params.inner_mrad,
        dopants=[params.dopants] if params.dopants else [],
    )
    network = load_network(params, network)
    readings = scan.readings
    points, crops, evidence = name_sites(scan.levelled, scan.sites, readings, params, network=network)
    points["kind_p"] *= scan.sublattice_p
    if not scan.sure:
        points = mark(points, points["status"] == "accepted", status="uncertain", reason=ALIKE)
    extended = find_extended(points, scan)
    pixel_nm = scan.calibration.pixel_size_nm[0]
    frame = _finish(extended.rows, image=micrograph.name, pixel_nm=pixel_nm)
    shown = frame["place"].to_numpy(int)
    counts = [int((scan.sites.sublattice == index).sum()) for index in (0, 1)]
    return DefectTable(
        frame[list(column_names(DEFECT_COLUMNS))],
        Marks.points(frame["defect_id"], frame["row_px"], frame["col_px"], micrograph.shape),
        scan.calibration,
        Provenance.of(micrograph, params, network=network, notes=tuple(notes)),
        float((~extended.mask).sum() * np.prod(scan.calibration.pixel_size_nm)),
        crystal.lattice_nm**2 * np.sqrt(0.75),
        dict(zip(crystal.sublattices, counts, strict=True)),
        readings.residual,
        _take(crops, shown),
        _take(evidence, shown),
        preview=make_preview(micrograph),
    )


def _take(images: Float, rows: Whole) -> Float:
    """Images of rows, NaN where there is none (-1)."""
    taken = np.full((len(rows), *images.shape[1:]), np.nan)
    taken[rows >= 0] = images[rows[rows >= 0]]
    return taken


def name_sites(
    levelled: Float, sites: Sites, readings: Readings, params: DefectParams, *, network: Network | None
) -> tuple[pd.DataFrame, Float, Float]:
    """Name every site that is not as it should be.

    Parameters
    ----------
    levelled, sites, readings
        See `flatscope.electron.sites`.
    params
        The material and known dopants.
    network
        None where the material has no pairs of atoms; then brightness alone names.

    Returns
    -------
    Rows `row_px`, `col_px`, `site`, `kind`, `code` (of `flatscope.electron.kinds.Kind`), `kind_p`, `sublattice`,
    `z_score`, `intensity_ratio`, `status`, `reason`, `place`; their crops (n, 24, 24); and what in the crops speaks for
    their kind (n, rows, cols).
    """
    crystal = find_crystal(params.material)
    unusual, parts = _weigh_brightness(sites, readings, crystal)
    rim = BORDER_CELLS * sites.phases.lattice.constant_px
    cut = ((sites.positions < rim) | (sites.positions > np.array(levelled.shape) - 1.0 - rim)).any(1)
    found = np.flatnonzero((unusual > _LEAST_P) & ~cut)
    sublattice, ratio = sites.sublattice[found], readings.ratio[found]
    crops = cut_crops(levelled, sites, some=found)
    if network is None:
        kinds: list[Kind] = [
            list_kinds(crystal, which)[2 if bright else 1]
            for which, bright in zip(sublattice, ratio > 1.0, strict=True)
        ]
        p, maps = np.ones(len(found)), np.full((len(found), 1, 1), np.nan)
    else:
        classes, p, maps = _ask(network, crops, sublattice, ratio)
        kinds = [SITE_KINDS[index] for index in classes]
    names = [
        kind.name_in(crystal, params.dopants, bright=bool(bright))
        for kind, bright in zip(kinds, ratio > 1.0, strict=True)
    ]
    frame = pd.DataFrame(
        {
            "row_px": sites.positions[found, 0],
            "col_px": sites.positions[found, 1],
            "site": found,
            "kind": np.array(names, object),
            "code": np.array([kind.code for kind in kinds], object),
            "kind_p": p * unusual[found],
            "sublattice": np.array(crystal.sublattices)[sublattice],
            "z_score": readings.z[found],
            "intensity_ratio": ratio,
            "status": "accepted",
            "reason": "",
            "place": np.arange(len(found)),
        }
    )
    frame = _mark_doubts(frame, parts[found], readings.over_chance(sites)[found])
    return frame, crops[:, 0].astype(float), maps


def _weigh_brightness(
    sites: Sites, readings: Readings, crystal: Crystal
) -> tuple[Float, NDArray[np.object_]]:
    """Probability that each site is not as it should be, and the part of the mixture that its brightness belongs to."""
    unusual, parts = np.zeros(len(readings.ratio)), np.full(len(readings.ratio), "", object)
    for sublattice in (0, 1):
        mine = np.flatnonzero(sites.sublattice == sublattice)
        if len(mine):
            ratio, sigma = readings.ratio[mine], steady(readings.sigma[mine])
            mixture = fit_mixture(ratio, sigma, crystal, sublattice, quiet=readings.quiet[sublattice])
            unusual[mine], parts[mine] = mixture.weigh(ratio, sigma)
    return unusual, parts


def _mark_doubts(frame: pd.DataFrame, parts: NDArray[np.object_], over: Float) -> pd.DataFrame:
    """Rows with their status: which kinds are uncertain, and which sites may be noise.

    Parameters
    ----------
    frame
        See `name_sites`.
    parts
        Part of the mixture that each row's brightness belongs to.
    over
        What is seen on each site over what an image without order shows by chance.
    """
    frame = mark(frame, frame["kind_p"] < SURE_P, status="uncertain", reason=UNSURE)
    odd = (parts == ELSE) & (np.abs(frame["z_score"]) < _BEYOND_NOISE)
    frame = mark(frame, odd, status="rejected", reason="neither as usual nor like any defect: noise or dirt?")
    # A faint site counts where others that look like it stand out.
    clear = set(parts[over > 1.0]) - {ELSE}
    stands_out = np.isin(parts.astype(str), list(clear)) | (over > 1.0)
    return mark(
        frame, ~stands_out, status="rejected", reason="no more than an image without order shows by chance"
    )


def forbid(logits: Float, ratio: Float) -> Float:
    """Logits (n, classes) without what lacks atoms where a site is brighter than usual."""
    darker = np.array([kind.darker for kind in SITE_KINDS])
    return np.where((ratio > 1.0)[:, None] & darker, _NEVER, logits)


def _ask(
    network: Network, crops: NDArray[np.float32], sublattice: NDArray[np.int64], ratio: Float
) -> tuple[NDArray[np.int64], Float, Float]:
    """The likeliest class of each defect, its probability among all kinds of defect, and its activation map.

    How often each kind occurs follows from the image itself (Saerens et al. 2002, doi:10.1162/089976602753284446).
    """
    if not len(crops):
        return np.zeros(0, int), np.zeros(0), np.zeros((0, 1, 1))
    parts = np.array_split(crops, max(len(crops) // _BATCH, 1))
    maps = np.concatenate([network.run(part) for part in parts]).astype(float)
    logits = forbid(maps.mean((2, 3)), ratio)
    called, p = np.zeros(len(crops), int), np.ones(len(crops))
    for which, (first, end) in enumerate(GROUPS):
        mine = np.flatnonzero(sublattice == which)
        if not len(mine):
            continue
        # The site is known to be unusual, so the class of usual sites is left out.
        chances = special.softmax(logits[mine, first + 1 : end], axis=1)
        share = np.full(chances.shape[1], 1.0 / chances.shape[1])
        weight = chances
        for _ in range(_ROUNDS):
            weight = chances * share
            weight /= weight.sum(1, keepdims=True)
            share = (weight.sum(0) + _PRIOR) / (len(mine) + _PRIOR * len(share))
        called[mine], p[mine] = first + 1 + weight.argmax(1), weight.max(1)
    return called, p, maps[np.arange(len(crops)), called]


@dataclass(frozen=True)
class Extended:
    """Points and what is larger: rows like those of `name_sites`, and where the larger features lie, (rows, cols)."""

    rows: pd.DataFrame
    mask: Mask


def find_extended(points: pd.DataFrame, scan: Scan) -> Extended:
    """Find holes, contamination and disorder, and reject the point defects in them.

    Parameters
    ----------
    points
        See `name_sites`.
    scan
        The image that they were found in.
    """
    mask = _cover_features(points, scan.sites)
    usual = max(float(np.median(scan.image[~mask])), 1e-9) if not mask.all() else 1.0
    labels, count = ndimage.label(mask)
    rows = []
    for index in range(1, count + 1):
        here = labels == index
        ratio = float(np.median(scan.image[here])) / usual
        kind = HOLE if ratio < _EXTENT.dark else CONTAMINATION if ratio > _EXTENT.bright else DISORDER
        row, col = np.argwhere(here).mean(0)
        area_nm2 = float(here.sum()) * scan.calibration.pixel_size_nm[0] ** 2
        rows.append(
            {
                "row_px": row,
                "col_px": col,
                "kind": kind.name,
                "code": kind.code,
                "kind_p": np.nan,
                "sublattice": "",
                "z_score": np.nan,
                "intensity_ratio": ratio,
                "status": "accepted",
                "reason": f"{area_nm2:.2f} nm² without a crystal that can be measured",
                "place": -1,
            }
        )
    inside = mask[_pixels(points[["row_px", "col_px"]].to_numpy(float))]
    points = mark(points, inside, status="rejected", reason="part of a larger feature")
    features = pd.DataFrame(rows, columns=[name for name in points.columns if name != "site"])
    return Extended(pd.concat([points, features], ignore_index=True), mask)


def _cover_features(points: pd.DataFrame, sites: Sites) -> Mask:
    """Where no crystal is seen, or where most sites are defects, with the defects beside."""
    constant = sites.phases.lattice.constant_px
    unusual = np.zeros(len(sites.positions), bool)
    unusual[points["site"]] = True
    least_px = _EXTENT.least_cells * constant**2 * np.sqrt(0.75)
    mask = _drop_small(~sites.phases.crystal, least_px)
    if len(points):
        count = min(_EXTENT.around, len(sites.positions))
        _, near = cKDTree(sites.positions).query(sites.positions, k=count)
        core = unusual[near.reshape(len(unusual), -1)].mean(1) > _EXTENT.mostly
        mask[_pixels(sites.positions[core])] = True
        for _ in range(_EXTENT.rounds):
            far = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
            beside = far[_pixels(sites.positions)] < _EXTENT.beside_cells * constant
            joined = sites.positions[unusual & beside]
            away = np.ones(mask.shape, bool)
            away[_pixels(joined)] = False
            if len(joined):
                mask = mask | (ndimage.distance_transform_edt(away) < 0.5 * constant)
    return _drop_small(mask, least_px)


def _pixels(places: Float) -> tuple[Whole, Whole]:
    """The pixels that places (n, 2) lie in."""
    row, col = np.rint(places.reshape(-1, 2)).astype(int).T
    return row, col


def _drop_small(mask: Mask, least: float) -> Mask:
    """A mask without its parts of fewer pixels."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    sizes[0] = 0
    return np.asarray((sizes >= least)[labels])


def _finish(frame: pd.DataFrame, *, image: str, pixel_nm: float) -> pd.DataFrame:
    """Rows of a defect table from top to bottom, with image, numbers and places in nm."""
    frame = frame.sort_values(["row_px", "col_px"], ignore_index=True)
    frame["image"], frame["frame"], frame["track_id"] = image, 0, ""
    frame["x_nm"], frame["y_nm"] = frame["col_px"] * pixel_nm, frame["row_px"] * pixel_nm
    frame["defect_id"] = np.arange(1, len(frame) + 1)
    for name in ("kind_p", "row_px", "col_px", "x_nm", "y_nm", "z_score", "intensity_ratio"):
        frame[name] = frame[name].astype(float)  # rows without them leave objects behind
    return frame
