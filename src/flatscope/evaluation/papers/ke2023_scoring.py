"""How the detectors of `ke2023` are scored: in drawn images, on an expert's labels, and under counting noise alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.spatial import cKDTree

from flatscope.electron.defects import DefectParams, name_sites
from flatscope.electron.drawing.appearance import Drawn, Look, draw_few_defects, open_drawn
from flatscope.electron.drawing.crops import flatten
from flatscope.electron.drawing.microscopes import Teacher
from flatscope.electron.drawing.specimens import draw_noise, draw_scanned
from flatscope.electron.kinds import MARKS, classify_marks, find_kind
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.physics.crystals import SheetParams, build_sheet, deform, find_crystal, refill
from flatscope.electron.physics.imaging import draw_adf
from flatscope.electron.scans import Scan
from flatscope.electron.sites import Sites, level, measure_sites
from flatscope.evaluation.metrics import Interval, bootstrap
from flatscope.evaluation.windows import classify_counts
from flatscope.inference.runtime import Network

if TYPE_CHECKING:
    from flatscope.training.crop_detector import Detector

Float = NDArray[np.float64]
Reader = Callable[[Float, Sites], NDArray[np.int64]]
"""Names what stands on each site of an image, as a place in `MARKS`."""
Counts = tuple[int, int, int]
"""Defects found with their right kind, defects found, and true defects."""

MATCH = 0.25  # lattice constants: a site belongs to a true one that is nearer
_LABEL_MATCH = 0.35  # lattice constants: the same for a labelled column, whose place a person marked
_RIM = 1.0  # lattice constants along the border of a tested image that do not count
_CALLED = {"V_X": 1, "V_X2": 1, "O_X": 2, "D_M": 3, "X_M": 3}
"""Places in `MARKS` of what flatscope calls a site; any atom on a metal site that is not the metal counts as a
dopant."""
_OTHER = 9  # a defect that is none of `MARKS`
_TEST_SEED = 4242  # of tested images
_DEFOCUS_NM = 2.0  # tested images are out of focus by this, besides what their microscope is
_BLOCKS = 8  # strips of a labelled field, from which intervals are drawn
_COUNTING_SEED = 11  # of images under counting noise alone
_COUNTING_CELLS = 10.0  # lattice constants a side of these
_AROUND = 1.5  # lattice constants around the site in question that detectors see
_RIGHT = 0.9  # share of right answers at which two kinds count as distinguished
_LEAST_TIMES = (
    1.0,
    3.0,
    10.0,
    30.0,
    100.0,
)  # doses tried, over the least at which the likelihood reaches that share


# --- who is scored ---------------------------------------------------------------------------------------------------


def read_theirs(image: Float, sites: Sites, *, detector: Detector) -> NDArray[np.int64]:
    """What a U-Net says of each site."""
    from flatscope.training import crop_detector

    return crop_detector.detect(detector, image, sites)


def read_ours(image: Float, sites: Sites, *, params: DefectParams, network: Network) -> NDArray[np.int64]:
    """What flatscope's own network says of each site."""
    levelled = level(image, sites.phases.lattice.constant_px)
    frame, *_ = name_sites(levelled, sites, measure_sites(levelled, sites), params, network=network)
    called = np.zeros(len(sites.positions), np.int64)
    kept = frame[frame["status"] != "rejected"]
    called[kept["site"]] = [_CALLED.get(code, _OTHER) for code in kept["code"]]
    return called


# --- drawn images of other microscopes and scans ---------------------------------------------------------------------


@dataclass(frozen=True)
class ScannedTest:
    """A scanned image, its sites as found (None without a lattice), and what truly stands where."""

    image: Float
    sites: Sites | None
    places_px: Float
    kinds: NDArray[np.uint8]


def draw_test(look: Look, electrons: float, index: int, side: int, dopants: tuple[str, ...]) -> ScannedTest:
    """Draw an image with another defocus, scan and dose than the experimental one."""
    rng = np.random.default_rng([_TEST_SEED, index])
    microscope = look.microscopes[index % len(look.microscopes)]
    off = _DEFOCUS_NM * float(rng.choice([-1.0, 1.0]))
    scanned = draw_scanned(
        rng,
        draw_few_defects(rng, look.material, dopants=dopants),
        replace(microscope, defocus_nm=microscope.defocus_nm + off),
        draw_noise(rng),
        shape=(side, side),
        electrons_per_px=electrons,
        axes_px=look.axes_px,
    )
    true = scanned.sheet.sites_nm / look.pixel_nm
    try:
        sites = open_drawn(scanned.image, scanned.sheet, look).sites
    except NoLatticeError:
        sites = None
    return ScannedTest(
        np.asarray(scanned.image, float),
        sites,
        true,
        classify_marks(scanned.sheet, find_crystal(look.material)),
    )


def find_dose(look: Look, images: Sequence[Drawn]) -> float:
    """Electrons a pixel at which counting noise alone is as strong as the experimental image's."""
    contrasts = [float(one.mean.std() / one.mean.mean()) for one in images]
    return float(np.mean([1.0 / (contrast * look.noise) ** 2 for contrast in contrasts]))


def run_tests(
    readers: Mapping[str, Sequence[Reader]],
    look: Look,
    doses: Sequence[float],
    *,
    count: int,
    side: int,
    dopants: tuple[str, ...],
) -> dict[str, list[list[Counts]]]:
    """What each method finds in `count` drawn images at each dose, by dose and image."""
    counts: dict[str, list[list[Counts]]] = {name: [] for name in readers}
    for dose in doses:
        tested = [draw_test(look, dose, index, side, dopants) for index in range(count)]
        for name, some in readers.items():
            counts[name].append([count_defects(some, one, look) for one in tested])
    return counts


def count_defects(readers: Sequence[Reader], test: ScannedTest, look: Look) -> Counts:
    """What all readers together find in a drawn image."""
    rim = _RIM * look.constant_px
    inside = np.asarray(
        ((test.places_px > rim) & (test.places_px < np.array(test.image.shape) - 1.0 - rim)).all(1)
    )
    true = len(readers) * int(((test.kinds > 0) & inside).sum())
    if test.sites is None:
        return 0, 0, true
    flat = flatten(test.image, test.sites.phases)
    called = np.stack([reader(flat, test.sites) for reader in readers])
    gap, nearest = cKDTree(test.places_px).query(test.sites.positions)
    met = (gap < MATCH * look.constant_px) & inside[nearest]
    right = np.asarray(met & (called > 0) & (called == test.kinds[nearest]))
    return int(right.sum()), int(((called > 0) & inside[nearest]).sum()), true


def score(counts: Sequence[Counts]) -> Interval:
    """F1 with its interval by image."""
    return bootstrap(counts, _f1)


def compare(counts: Sequence[Counts], others: Sequence[Counts]) -> Interval:
    """How much higher one F1 is than another on the same images."""
    return bootstrap(np.hstack([counts, others]), lambda total: _f1(total[:3]) - _f1(total[3:]))


def _f1(total: Float) -> float:
    return float(2.0 * total[0] / max(total[1] + total[2], 1.0))


# --- an expert's labels ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """What is marked on the sites of an image: kind, whether it counts, and the strip of the field that it lies in."""

    kinds: NDArray[np.int64]
    marked: NDArray[np.bool_]
    here: NDArray[np.bool_]
    block: NDArray[np.int64]


def score_marked(
    opened: Scan,
    teacher: Teacher,
    marked: tuple[Float, list[str]] | None,
    readers: Mapping[str, Sequence[Reader]],
    detectors: Mapping[str, Sequence[Detector]],
) -> tuple[dict[str, dict[str, Interval]], dict[str, dict[str, Interval]]]:
    """Score methods on the right half of the experimental image.

    Parameters
    ----------
    marked
        Places and names of an expert's labels; None without.

    Returns
    -------
    F1 of each method by kind, and what each of the detectors would reach if its threshold were chosen on these very
    labels; both empty without labels.
    """
    if marked is None:
        return {}, {}
    known = place_labels(opened, teacher, *marked)
    labelled = {}
    for name, some in readers.items():
        called = [reader(teacher.image, opened.sites) for reader in some]
        labelled[name] = score_labels([called] * len(MARKS), known)
    ceilings = {
        name: score_labels(choose_by_labels(taught, opened, teacher, known), known)
        for name, taught in detectors.items()
    }
    return labelled, ceilings


def place_labels(opened: Scan, teacher: Teacher, places: Float, names: Sequence[str]) -> Labels:
    """Columns marked at places, (row, col), on the sites of the image; those on its right half count."""
    kinds = [find_kind(name, find_crystal(teacher.look.material)) for name in names]
    truth = np.array([{"usual": 0, "vacancy": 1}.get(kind.what if kind else "", 3) for kind in kinds])
    positions, (rows, cols) = opened.sites.positions, teacher.image.shape
    gap, nearest = cKDTree(places).query(positions)
    low, high = places.min(0), places.max(0)
    return Labels(
        truth[nearest],
        gap < _LABEL_MATCH * teacher.look.constant_px,
        np.asarray((positions[:, 1] > cols / 2) & ((positions >= low) & (positions <= high)).all(1)),
        np.clip((positions[:, 0] / rows * _BLOCKS).astype(int), 0, _BLOCKS - 1),
    )


def score_labels(called: Sequence[Sequence[NDArray[np.int64]]], labels: Labels) -> dict[str, Interval]:
    """F1 of each kind that is marked, with its interval by strips.

    Parameters
    ----------
    called
        For each of `MARKS`, what one or more detectors call the sites.
    """
    scores = {}
    for kind in (1, 3):
        counts = np.sum([_count_labels(one, labels, kind) for one in called[kind]], axis=0)
        there = int(counts[:, 2].sum()) // len(called[kind])
        if there:
            scores[f"{there} of {MARKS[kind]}"] = score([tuple(row) for row in counts.tolist()])
    return scores


def _count_labels(called: NDArray[np.int64], labels: Labels, kind: int) -> NDArray[np.int64]:
    """Sites rightly called of a kind, called so, and truly so, in each strip, shape (strips, 3)."""
    true = (labels.kinds == kind) & labels.marked & labels.here
    found = (called == kind) & labels.here
    return np.stack(
        [np.bincount(labels.block[one], minlength=_BLOCKS) for one in (true & found, found, true)], 1
    )


def choose_by_labels(
    detectors: Sequence[Detector], opened: Scan, teacher: Teacher, labels: Labels
) -> list[list[NDArray[np.int64]]]:
    """What each detector calls the sites at the threshold that is best for each of `MARKS`; an oracle."""
    from flatscope.training import crop_detector

    chosen: list[list[NDArray[np.int64]]] = [[] for _ in MARKS]
    for one in detectors:
        p = crop_detector.read(one.net, teacher.image, opened.sites, side=one.side_px)
        tried = [crop_detector.name(p, float(threshold)) for threshold in crop_detector.THRESHOLDS]
        for kind, best in enumerate(chosen):
            best.append(max(tried, key=lambda called: _f1(_count_labels(called, labels, kind).sum(0))))
    return chosen


# --- counting noise alone --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Telling:
    """How well pristine chalcogen sites, vacancies and oxygen can be distinguished under counting noise alone.

    Parameters
    ----------
    doses
        Incident electrons per Å².
    bound
        At each of them, true kinds down, found kinds across, by the likelihood with everything known; shares.
    found
        The same by each detector.
    least, least_found
        Dose from which oxygen and vacancies are distinguished in nine cases of ten, at best and by each detector; None
        where it is not reached.
    """

    doses: tuple[float, ...]
    bound: Float
    found: dict[str, Float]
    least: float
    least_found: dict[str, float | None]


def tell_apart(look: Look, readers: Mapping[str, Sequence[Reader]], *, count: int) -> Telling:
    """Name one site that is pristine, lacks a chalcogen, or holds oxygen, in images counted at several doses.

    Parameters
    ----------
    count
        Images of each kind at each dose.
    """
    clean, templates, place_px = _draw_kinds(look)
    away = np.hypot(*(clean.sites.positions - place_px).T)
    near = np.flatnonzero(away < _AROUND * look.constant_px)
    place = int(away[near].argmin())
    sites = clean.sites.take(near)
    per_px = (10.0 * look.pixel_nm) ** 2
    least = find_least_dose(templates[1], templates[2])
    doses = least * np.array(_LEAST_TIMES)
    bound = np.zeros((len(doses), 3, 3))
    found = {name: np.zeros((len(doses), 3, 3)) for name in readers}
    for step, dose in enumerate(doses):
        rng = np.random.default_rng([_COUNTING_SEED, step])
        for kind in range(3):
            counts = rng.poisson(templates[kind] * dose, (count, *templates.shape[1:])).astype(float)
            np.add.at(bound[step, kind], classify_counts(counts, templates * dose), 1.0 / count)
            flat = [flatten(one, clean.sites.phases) for one in counts]
            for name, some in readers.items():
                for reader, one in product(some, flat):
                    called = int(reader(one, sites)[place])
                    if called < 3:
                        found[name][step, kind, called] += 1.0 / (count * len(some))
    right = {name: 0.5 * (shares[:, 1, 1] + shares[:, 2, 2]) for name, shares in found.items()}
    return Telling(
        tuple(float(dose) / per_px for dose in doses),
        bound,
        found,
        least / per_px,
        {name: _find_crossing(doses / per_px, values) for name, values in right.items()},
    )


def find_least_dose(one: Float, other: Float, *, accuracy: float = _RIGHT) -> float:
    """Lowest dose at which two noiseless images can be distinguished, by the likelihood ratio of Poisson counts.

    Parameters
    ----------
    one, other
        Mean counts of each pixel at a dose of 1, same shape; both equally likely, everything else known.
    accuracy
        Share of right answers.

    Notes
    -----
    The logarithm of the ratio is assumed to be normal, which holds for many pixels (Neyman and Pearson 1933,
    doi:10.1098/rsta.1933.0009).
    """
    both = np.maximum(0.5 * (one + other), 1e-300)
    return float((2.0 * stats.norm.ppf(accuracy)) ** 2 / (np.square(one - other) / both).sum())


def _find_crossing(doses: Float, right: Float) -> float | None:
    """Dose at which nine of ten answers are right, between those that were tried."""
    above = np.flatnonzero(right >= _RIGHT)
    if not len(above):
        return None
    index = int(above[0])
    if index == 0:
        return float(doses[0])
    return float(
        np.exp(np.interp(_RIGHT, right[index - 1 : index + 1], np.log(doses[index - 1 : index + 1])))
    )


def _draw_kinds(look: Look) -> tuple[Drawn, Float, Float]:
    """A perfect crystal; shares of the beam that each pixel detects of it, of a vacancy and of oxygen about its middle,
    shape (3, rows, cols); and where these are, (row, col)."""
    crystal = find_crystal(look.material)
    side = int(np.ceil(_COUNTING_CELLS * look.constant_px))
    field_nm = (side * look.pixel_nm, side * look.pixel_nm)
    wide = (2.0 * field_nm[0], 2.0 * field_nm[1])
    rng = np.random.default_rng(_COUNTING_SEED)
    axes = look.axes_px * look.pixel_nm / crystal.lattice_nm
    sheet = deform(build_sheet(rng, SheetParams(look.material, wide)), axes, field_nm=field_nm)
    away = np.hypot(*(sheet.sites_nm - 0.5 * np.array(field_nm)).T)
    middle = int(np.where(sheet.sublattice == 1, away, np.inf).argmin())
    one = crystal.second[0]
    images = []
    for name in (crystal.species[1], one, f"O{one}"):
        species = sheet.species.copy()
        species[middle] = name
        images.append(
            draw_adf(refill(sheet, species, look.material), look.microscopes[0], shape=(side, side))
        )
    return open_drawn(images[0], sheet, look), np.stack(images), sheet.sites_nm[middle] / look.pixel_nm
