"""Point defects of a monolayer in an ADF-STEM image: where, of which kind, and by what evidence.

Every site of the lattice is judged against its own sublattice's neighbours: how bright it is in the residual that the
repeating part of the image leaves, by a mixture of what usual sites, empty ones, halves of a pair and other elements
look like. Which kind a defect is, a network says from a crop around the site that is turned as the lattice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage, special, stats
from scipy.spatial import cKDTree

import flatscope
from flatscope.electron.kinds import CONTAMINATION, DISORDER, GROUPS, HOLE, SITE_KINDS, list_kinds
from flatscope.electron.physics.crystals import NUMBERS, Crystal, find_crystal
from flatscope.electron.scans import ALIKE, open_scan
from flatscope.electron.sites import Readings, Sites, cut_crops, level, measure_sites
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.results import DEFECT_COLUMNS, DefectTable, Provenance

Float = NDArray[np.float64]
Mask = NDArray[np.bool_]

_NEVER = -30.0
_PRIOR = 3.0
"""So many defects of each kind are added to those of an image when their shares are estimated."""

_LEAST_P, SURE_P = 0.5, 0.8
"""A site is a defect above the first, and one to rely on above the second."""
UNSURE = "two kinds, or none, are about as likely"
_TAIL = 8.0
"""Degrees of freedom of Student's distribution for usual sites: scans scatter with longer tails than counting."""
_VACANT, _HALF = (-0.06, 0.08), (0.39, 0.08)
"""Ratio on an empty site and where one of two atoms lacks, and by how much it differs between microscopes: less than
none, since usual columns around raise the level of the hollows, which an empty site is compared with."""
_OTHER_SPREAD = 0.05
"""How far defects of one kind differ in brightness beside noise."""
_LEAST_REACH = 4.0
"""Least range of ratios that anything else may have."""
_FIRST_SHARE, _ROUNDS = 0.005, 100
_BATCH = 1024
_FAR_OFF, _LEAST_ALIKE, _LEAST_APART = 4.0, 3, 3.0
"""Sites so many sigmas off the usual are looked at for an element of their own; so many must be alike, and on average
so many sigmas off."""
_BEYOND_NOISE = 8.0
"""What is like no defect is one nevertheless where it is so many sigmas off the usual."""
_MOST_ELSE = 0.02
"""Largest share of sites that fit nothing."""
_BORDER = 0.5
"""Sites closer to the border than this part of the lattice constant are not judged."""
_AROUND, _MOSTLY = 13, 0.55
"""Where more than this share of so many nearest sites are defects there is something larger."""
_BESIDE, _ROUNDS_OF_GROWTH = 1.2, 3
"""Defects within this many lattice constants of a larger feature are parts of it, and so on so many times."""
_LEAST_GAP_CELLS = 1.5
"""Where no lattice is seen over less than this many unit cells, nothing is said."""
_DARK, _BRIGHT = 0.5, 1.3
"""Mean brightness of an extended feature over that of the crystal: a hole below, contamination above."""


@dataclass(frozen=True)
class DefectParams:
    """Settings of `find_defects`.

    Parameters
    ----------
    material
        One of `flatscope.electron.physics.crystals.CRYSTALS`.
    brighter
        "auto", or which sublattice is the brighter one ("metal" or "chalcogen"; "a" or "b" in hBN).
    dopants
        Element that is known to be there, such as "Ti": dopants are then named after it.
    weights
        Name or file of the network that names defects of dichalcogenides.
    """

    material: str = "WSe2"
    brighter: str = "auto"
    dopants: str = ""
    weights: str = "defects"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        names = ("auto", *find_crystal(self.material).sublattices)
        if self.brighter not in names:
            raise ValueError(f"brighter = {self.brighter!r}: choose one of {', '.join(names)}")
        if self.dopants and self.dopants not in NUMBERS:
            raise ValueError(f"dopants = {self.dopants!r}: give one element of {', '.join(NUMBERS)}")


def forbid(logits: Float, ratio: Float) -> Float:
    """Logits (n, classes) without what lacks atoms where a site is brighter than usual."""
    darker = np.array([kind.darker for kind in SITE_KINDS])
    return np.where((ratio > 1.0)[:, None] & darker, _NEVER, logits)


def find_defects(
    micrograph: Micrograph, params: DefectParams = DefectParams(), *, network: Network | None = None
) -> DefectTable:
    """Find and name the point defects of a monolayer in an ADF-STEM image.

    Parameters
    ----------
    micrograph
        Gray, bright where atoms are.
    params
        The material.
    network
        Loaded already; None loads `DefectParams.weights`.

    Returns
    -------
    One row a defect with its kind and how sure that is, extended features as one row each, and densities.

    Raises
    ------
    MicrographError
        If the image is not periodic, or its lattice is not this material's at the stated pixel size.

    Notes
    -----
    Fails where crystals overlap, and where a third or more of the sites are defects. Dopants next to the host in the
    periodic table, and oxygen on sulphur at low dose, look like what they replace.
    """
    crystal = find_crystal(params.material)
    notes = list(micrograph.notes)
    scan = open_scan(micrograph, crystal.name, notes, brighter=params.brighter)
    if crystal.is_dichalcogenide and network is None:
        network = Network.load(params.weights, task="defects")
    sites = scan.sites
    levelled = level(scan.image, sites.phases.lattice.constant_px)
    readings = measure_sites(levelled, sites)
    frame, (crops, evidence) = name_sites(levelled, sites, readings, params, network=network)
    if not scan.sure:
        kept = frame["status"] == "ok"
        frame.loc[kept, "status"], frame.loc[kept, "reason"] = "doubtful", ALIKE
    extended = find_extended(frame, sites, scan.image, pixel_nm=scan.calibration.pixel_size_nm[0])
    frame = pd.concat([frame, extended.rows], ignore_index=True)
    provenance = Provenance(
        flatscope.__version__,
        micrograph.name,
        micrograph.sha256,
        network.card.name if network else "",
        network.sha256 if network else "",
        {"defects": asdict(params)},
        notes=tuple(notes),
    )
    frame = _finish(frame, image=micrograph.name, pixel_nm=scan.calibration.pixel_size_nm[0])
    shown = frame["place"].to_numpy(int)
    return DefectTable(
        frame[list(DEFECT_COLUMNS)],
        float((~extended.mask).sum() * np.prod(scan.calibration.pixel_size_nm)),
        crystal.lattice_nm**2 * np.sqrt(0.75),
        {kind: int((sites.sublattice == index).sum()) for index, kind in enumerate(crystal.sublattices)},
        readings.residual,
        _take(crops, shown),
        _take(evidence, shown),
        scan.calibration,
        provenance,
    )


def _take(images: Float, rows: NDArray[np.int64]) -> Float:
    """Images of rows, NaN where there is none (-1)."""
    taken = np.full((len(rows), *images.shape[1:]), np.nan)
    taken[rows >= 0] = images[rows[rows >= 0]]
    return taken


def name_sites(
    levelled: Float, sites: Sites, readings: Readings, params: DefectParams, *, network: Network | None
) -> tuple[pd.DataFrame, tuple[Float, Float]]:
    """Name every site that is not as it should be.

    Parameters
    ----------
    levelled, sites, readings
        See `flatscope.electron.sites`.
    params
        The material and known dopants.
    network
        None where the material has no pairs: then brightness alone names.

    Returns
    -------
    Rows `row_px`, `col_px`, `site`, `kind`, `code` (of `flatscope.electron.kinds.Kind`), `kind_p`, `sublattice`,
    `z_score`, `intensity_ratio`, `status`, `reason`, `place`, and the evidence: crops (n, 24, 24) and what in them
    speaks for their kind (n, rows, cols).
    """
    crystal = find_crystal(params.material)
    unusual, names = np.zeros(len(readings.ratio)), np.full(len(readings.ratio), "", object)
    for kind in (0, 1):
        mine = np.flatnonzero(sites.sublattice == kind)
        if len(mine):
            values = readings.ratio[mine], steady(readings.sigma[mine])
            mixture = fit_mixture(*values, crystal, kind, quiet=readings.quiet[kind])
            unusual[mine], names[mine] = mixture.weigh(*values)
    constant = sites.phases.lattice.constant_px
    rim = _BORDER * constant
    shape = np.array(levelled.shape)
    cut = ((sites.positions < rim) | (sites.positions > shape - 1.0 - rim)).any(1)
    found = np.flatnonzero((unusual > _LEAST_P) & ~cut)
    kinds, ratio = sites.sublattice[found], readings.ratio[found]
    brighter = ratio > 1.0
    crops = cut_crops(levelled, sites, some=found)
    p, maps = np.ones(len(found)), np.full((len(found), 1, 1), np.nan)
    if network is None:
        named = [
            list_kinds(crystal, kind)[2 if bright else 1]
            for kind, bright in zip(kinds, brighter, strict=True)
        ]
    else:
        classes, p, maps = _ask(network, crops, kinds, ratio)
        named = [SITE_KINDS[place] for place in classes]
    frame = pd.DataFrame(
        {
            "row_px": sites.positions[found, 0],
            "col_px": sites.positions[found, 1],
            "site": found,
            "kind": [
                kind.name_in(crystal, params.dopants, bright=bool(bright))
                for kind, bright in zip(named, brighter, strict=True)
            ],
            "code": [kind.code for kind in named],
            "kind_p": p * unusual[found],
            "sublattice": np.array(crystal.sublattices)[kinds],
            "z_score": readings.z[found],
            "intensity_ratio": ratio,
            "status": "ok",
            "reason": "",
            "place": np.arange(len(found)),
        }
    )
    for rows, status, reason in (
        (frame["kind_p"] < SURE_P, "doubtful", UNSURE),
        (
            (names[found] == "else") & (np.abs(readings.z[found]) < _BEYOND_NOISE),
            "rejected",
            "neither as usual nor like any defect: noise or dirt?",
        ),
        (
            ~_stand_out(readings.over_chance(sites)[found], names[found]),
            "rejected",
            "no more than an image without order shows by chance",
        ),
    ):
        frame.loc[rows, "status"], frame.loc[rows, "reason"] = status, reason
    return frame, (crops[:, 0].astype(float), maps)


def _stand_out(over: Float, names: NDArray[np.object_]) -> Mask:
    """Which sites, or others that look like them, show more than an image without order does by chance."""
    clear = set(names[over > 1.0]) - {"else"}
    return np.asarray(np.isin(names.astype(str), list(clear)) | (over > 1.0))


@dataclass(frozen=True)
class Mixture:
    """What the brightness of a sublattice's sites is made of.

    Parameters
    ----------
    names
        "" for usual sites, "vacancy", "half" of a pair, "dark" and "bright" other elements, "else".
    middles, spreads
        Mean ratio of each, and by how much it differs beside noise; of all but the first and the last.
    shares
        How many of the sites each part holds.
    reach
        Range of ratios that anything else may have.
    quiet
        Scatter where nothing stands over that of usual sites; in between and beyond, variances grow with brightness.
    """

    names: tuple[str, ...]
    middles: Float
    spreads: Float
    shares: Float
    reach: float
    quiet: float = 1.0

    def densities(self, ratio: Float, sigma: Float) -> Float:
        """Density of each part at sites of ratio and scatter (n,), shape (parts, n)."""
        counted = self.quiet**2 + (1.0 - self.quiet**2) * np.maximum(self.middles, 0.0)
        width = np.sqrt(counted[:, None] * sigma**2 + self.spreads[:, None] ** 2)
        parts = stats.norm.pdf((ratio - self.middles[:, None]) / width) / width
        usual = stats.t.pdf((ratio - 1.0) / sigma, _TAIL) / sigma
        return np.vstack([usual, parts, np.full(len(ratio), 1.0 / self.reach)])

    def weigh(self, ratio: Float, sigma: Float) -> tuple[Float, NDArray[np.object_]]:
        """How surely each site is not as it should be, and the part it most likely belongs to."""
        weight = self.shares[:, None] * self.densities(ratio, sigma)
        weight /= weight.sum(0)
        return 1.0 - weight[0], np.array(self.names, object)[weight.argmax(0)]


def steady(sigma: Float) -> Float:
    """The scatter of thirty neighbours is itself uncertain: half way to that of the whole image."""
    return np.asarray(np.sqrt(0.5 * (sigma**2 + float(np.median(sigma)) ** 2)))


def fit_mixture(ratio: Float, sigma: Float, crystal: Crystal, kind: int, *, quiet: float = 1.0) -> Mixture:
    """Learn from an image how bright its usual sites, vacancies and other elements are, and how frequent.

    Parameters
    ----------
    ratio, sigma
        See `flatscope.electron.sites.Readings` and `steady`, shape (n,), of sublattice `kind`.
    quiet
        See `Mixture`.

    Notes
    -----
    Expectation maximisation. Empty sites and halves of a pair have known brightness; elements of their own brightness,
    one darker and one brighter than usual, are looked for where three or more sites are far off.
    """
    names, middles, spreads = ["", "vacancy"], [_VACANT[0]], [_VACANT[1]]
    if (crystal.first, crystal.second)[kind][1] == 2:
        names, middles, spreads = [*names, "half"], [*middles, _HALF[0]], [*spreads, _HALF[1]]
    else:
        for name, side in (("dark", ratio < 1.0), ("bright", ratio > 1.0)):
            far = ratio[side & (np.abs(ratio - 1.0) > _FAR_OFF * sigma)]
            if len(far) >= _LEAST_ALIKE:
                names, middles = [*names, name], [*middles, float(np.median(far))]
                spreads = [*spreads, _OTHER_SPREAD]
    names = [*names, "else"]
    shares = np.full(len(names), _FIRST_SHARE)
    shares[0] = 1.0 - shares[1:].sum()
    reach = max(float(np.ptp(ratio)), _LEAST_REACH)
    mixture = Mixture(tuple(names), np.array(middles), np.array(spreads), shares, reach, quiet)
    free, apart = np.isin(names[1:-1], ["dark", "bright"]), _LEAST_APART * float(np.median(sigma))
    for _ in range(_ROUNDS):
        weight = mixture.shares[:, None] * mixture.densities(ratio, sigma)
        weight /= weight.sum(0)
        shares = (weight.sum(1) + 0.5) / (len(ratio) + 0.5 * len(names))
        # What fits nothing is rare, or it would swallow the tails of what does.
        shares[0] += max(shares[-1] - _MOST_ELSE, 0.0)
        shares[-1] = min(shares[-1], _MOST_ELSE)
        means = (weight[1:-1] * ratio).sum(1) / np.maximum(weight[1:-1].sum(1), 1e-9)
        means = np.where(
            mixture.middles < 1.0, np.minimum(means, 1.0 - apart), np.maximum(means, 1.0 + apart)
        )
        mixture = replace(mixture, shares=shares, middles=np.where(free, means, mixture.middles))
    # What would rather be nearer to the usual is its tail, no element of its own.
    own = ~free | (np.abs(mixture.middles - 1.0) > 1.01 * apart)
    kept = np.concatenate([[True], own, [True]])
    return replace(
        mixture,
        names=tuple(np.array(names)[kept]),
        middles=mixture.middles[own],
        spreads=mixture.spreads[own],
        shares=mixture.shares[kept] / mixture.shares[kept].sum(),
    )


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
    for kind, (first, end) in enumerate(GROUPS):
        mine = np.flatnonzero(sublattice == kind)
        if not len(mine):
            continue
        # A site that is judged unusual is no usual one: that class is left out.
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
    """What is larger than a point defect: rows like those of `name_sites`, and where, shape (rows, cols)."""

    rows: pd.DataFrame
    mask: Mask


def find_extended(frame: pd.DataFrame, sites: Sites, image: Float, *, pixel_nm: float) -> Extended:
    """Find holes, contamination and disorder, and reject the defects in them.

    Parameters
    ----------
    frame
        See `name_sites`; its status and reason are changed.
    sites, image
        What it was made from.
    pixel_nm
        Pixel size.
    """
    crystal = sites.phases.crystal
    constant = sites.phases.lattice.constant_px
    unusual = np.zeros(len(sites.positions), bool)
    unusual[frame["site"]] = True
    cell = constant**2 * np.sqrt(0.75)
    mask = _drop_small(~crystal, _LEAST_GAP_CELLS * cell)
    if len(frame):
        tree = cKDTree(sites.positions)
        _, near = tree.query(sites.positions, k=min(_AROUND, len(sites.positions)))
        core = unusual[near.reshape(len(unusual), -1)].mean(1) > _MOSTLY
        mask[_pixels(sites.positions[core])] = True
        # Defects beside it belong to it, and those beside these.
        for _ in range(_ROUNDS_OF_GROWTH):
            far = ndimage.distance_transform_edt(~mask) if mask.any() else np.full(mask.shape, np.inf)
            joined = sites.positions[unusual & (far[_pixels(sites.positions)] < _BESIDE * constant)]
            away = np.ones(mask.shape, bool)
            away[_pixels(joined)] = False
            if len(joined):
                mask = mask | (ndimage.distance_transform_edt(away) < 0.5 * constant)
    mask = _drop_small(mask, _LEAST_GAP_CELLS * cell)
    labels, count = ndimage.label(mask)
    usual = max(float(np.median(image[~mask])), 1e-9) if not mask.all() else 1.0
    rows = []
    for index in range(1, count + 1):
        here = labels == index
        area = float(here.sum())
        ratio = float(np.median(image[here])) / usual
        kind = HOLE if ratio < _DARK else CONTAMINATION if ratio > _BRIGHT else DISORDER
        row, col = np.argwhere(here).mean(0)
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
                "status": "ok",
                "reason": f"{area * pixel_nm**2:.2f} nm² without a crystal that can be judged",
                "place": -1,
            }
        )
    inside = mask[_pixels(frame[["row_px", "col_px"]].to_numpy(float))]
    frame.loc[inside, "status"], frame.loc[inside, "reason"] = "rejected", "part of a larger feature"
    return Extended(pd.DataFrame(rows, columns=[name for name in frame.columns if name != "site"]), mask)


def _pixels(places: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
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
