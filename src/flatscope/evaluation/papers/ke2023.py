"""Ke, Li et al.: defects found by U-Nets that learned from images made realistic by one experimental image.

Five ways to teach the same U-Net are compared, each knowing more of the experimental image: raw simulation knows its
lattice; then come microscopes tuned to it, noise as it was fitted to it, translation by a U-GAT-IT trained on its unit
cells, and both of the latter; and flatscope's own network beside.

References
----------
Ke et al. 2024, Nano Lett., doi:10.1021/acs.nanolett.4c02654, arXiv:2311.14936; Khan et al. 2023,
doi:10.1038/s41524-023-01042-3 (the same with a CycleGAN: F1 of vacancies 0.80 to 0.91 on images of the session that it
was trained on). Their images are not public: give one with --image, else a drawn one stands in.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.defects import DefectParams, name_sites
from flatscope.electron.drawing.appearance import (
    Drawn,
    Look,
    change_dose,
    draw_clean,
    draw_few_defects,
    open_drawn,
)
from flatscope.electron.drawing.crops import flatten, mark_defects
from flatscope.electron.drawing.microscopes import Teacher, learn_look
from flatscope.electron.drawing.specimens import draw_microscope, draw_noise, draw_scanned
from flatscope.electron.drawing.translation import MOVED_NM, Honesty, check_honesty, run_on_crops
from flatscope.electron.kinds import MARKS, classify_marks, find_kind
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.physics.crystals import SheetParams, build_sheet, deform, find_crystal, refill
from flatscope.electron.physics.imaging import draw_adf
from flatscope.electron.scans import Scan, open_scan
from flatscope.electron.sites import Sites, level, measure_sites
from flatscope.evaluation.columns import read_labels
from flatscope.evaluation.metrics import Interval, bootstrap
from flatscope.evaluation.papers import part_of
from flatscope.evaluation.realism import (
    LookScore,
    Way,
    classify_counts,
    compare_looks,
    find_least_dose,
    learn_translation,
    list_ways,
    show,
)
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph

if TYPE_CHECKING:
    from flatscope.training.cells import Detector, Marked

DOI = "10.1021/acs.nanolett.4c02654"
RAW = "raw simulation"
WAYS = (RAW, "tuned microscopes", "fitted noise", "translated", "both")
OURS = "flatscope"
_PARAMS = DefectParams("MoS2")
_BASELINE = "fitted noise"
COMPARED = ("fitted noise", "translated", OURS)
"""Of which the confusion of oxygen, vacancies and pristine sites is shown."""
DOSES = (0.3, 1.0, 3.0, 10.0)
"""Of tested images, over that of the experimental one."""
_TAUGHT = (0.3, 10.0)
"""Range of doses, over that of the experimental image, of those that the U-Nets learn from."""
_SEED, _HELD_SEED, _TEST_SEED, _SHOWN_SEED = 2023, 77, 4242, 5
_HELD, _PART_PX, _TIMED = 4, 96, 256
"""One drawn image in so many chooses thresholds; side of the parts that are shown; crops timed."""
_MATCH, _LABEL_MATCH, _BESIDE, _RIM = 0.25, 0.35, 0.5, 1.0
"""In lattice constants: how near a true and a labelled site are; around rejected columns; the rim that is left out."""
_CALLED = {"V_X": 1, "V_X2": 1, "O_X": 2, "D_M": 3, "X_M": 3}
"""Places in `MARKS` of what flatscope calls a site; anything else that stands on a metal site is taken for a dopant."""
_BLOCKS, _OTHER, _PARTS = 8, 9, 1000
"""Strips of the field that intervals go by; what is none of `MARKS`; parts that progress is told in."""
_DEFOCUS_NM = 2.0
"""By which tested images are out of focus."""
_TOLD_SEED, _TOLD_CELLS, _AROUND, _RIGHT = 11, 10.0, 1.5, 0.9
_LEAST_TIMES = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Kinds are told apart in images so many lattice constants wide, by the crops so near, with that share of right
answers, at so many times the least dose."""
_STAND_IN_PX, _STAND_IN_NM, _STAND_IN_ELECTRONS = 320, 0.026, 12.0
"""Side, pixel size and electrons a pixel of the image that is drawn where none is given."""

Float = NDArray[np.float64]
Real = NDArray[np.float32]
Reader = Callable[[Float, Sites], NDArray[np.int64]]
"""What stands on each site of an image."""
Counts = tuple[int, int, int]


@dataclass(frozen=True)
class Size:
    """How much is done.

    Parameters
    ----------
    minutes, epochs, scenes
        Of training the translation, whichever ends first, and drawn images for it.
    side_px
        Of all drawn images.
    images, steps, repeats
        Drawn images and steps of 64 crops for each detector, and detectors of each way, of other seeds.
    tested
        Images at each dose.
    microscopes
        That are tried.
    told
        Sites of each kind at each dose that are told apart.
    shown
        Drawn images that are compared with the experimental one.
    """

    minutes: float
    epochs: int
    scenes: int
    side_px: int
    images: int
    steps: int
    repeats: int
    tested: int
    microscopes: int
    told: int
    shown: int


SIZES = {
    "quick": Size(0.1, 1, 2, 128, 2, 30, 1, 1, 4, 2, 1),
    "cpu": Size(40.0, 5, 60, 192, 40, 900, 2, 8, 60, 100, 4),
    "full": Size(600.0, 5, 400, 256, 400, 10_000, 3, 40, 200, 1000, 16),
}


@dataclass(frozen=True)
class Telling:
    """How far pristine chalcogen sites, vacancies and oxygen are told apart under counting noise alone.

    Parameters
    ----------
    doses
        Incident electrons per Å².
    bound
        At each of them, true kinds down, found kinds across, by the likelihood of everything known; shares.
    found
        The same by each detector.
    least, least_found
        Dose from which oxygen and vacancies are told apart in nine cases of ten, at best and by each detector; None
        where it is not reached.
    """

    doses: tuple[float, ...]
    bound: Float
    found: dict[str, Float]
    least: float
    least_found: dict[str, float | None]


@dataclass(frozen=True)
class Study:
    """What came out.

    Parameters
    ----------
    looks
        Way to how near its crops come to those of the right half of the experimental image.
    scores, overall
        Way to F1 of place and kind, one a dose; and of all doses together.
    gains
        Way to how much higher the latter is than fitted noise's on the same images.
    labelled
        Way to F1 on the right half of the experimental image, by kind; empty without labels.
    ceilings
        The same, were the threshold of each U-Net chosen on these very labels: the most that its probabilities allow.
    crops_a_second
        That ONNX Runtime translates.
    doses
        Electrons a pixel of the tested images.
    telling
        Oxygen, vacancies and pristine sites.
    examples
        Title to a part of an image, (rows, cols).
    stand_in
        Whether the experimental image is a drawn one.
    """

    looks: dict[str, LookScore]
    scores: dict[str, list[Interval]]
    overall: dict[str, Interval]
    gains: dict[str, Interval]
    labelled: dict[str, dict[str, Interval]]
    ceilings: dict[str, dict[str, Interval]]
    crops_a_second: float
    doses: tuple[float, ...]
    telling: Telling
    examples: dict[str, Real]
    stand_in: bool


def run(
    size: str,
    *,
    out: Path,
    image: Micrograph | None = None,
    params: DefectParams = _PARAMS,
    labels: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Study:
    """Run the protocol.

    Parameters
    ----------
    size
        One of `SIZES`.
    out
        Folder for checkpoints and weights; the same call goes on from them.
    image
        The experimental image; None for one that is drawn.
    params
        Its crystal; the element that is known to stand on metal sites, else all that can be told from the host do; and
        flatscope's own network.
    labels
        Marked columns of the image, see `flatscope.evaluation.columns.evaluate_labels`; those on the right half count.
    """
    from flatscope.training import cells, recipes

    plan = SIZES[size]
    those = (params.dopants,) if params.dopants else ()
    marked = None if labels is None else read_labels(labels)
    taken = draw_stand_in() if image is None else image
    opened = open_scan(taken, params.material, [])
    teacher = learn_look(opened, params.material, source=taken.name, tried=plan.microscopes)
    look = teacher.look
    parts = [
        part_of(on_progress, number=number, parts=plan.repeats * len(WAYS) + 1, steps=_PARTS)
        for number in range(plan.repeats * len(WAYS) + 1)
    ]
    recipe = replace(
        recipes.load("realism"),
        max_minutes=plan.minutes,
        epochs=plan.epochs,
        scenes_train=plan.scenes,
        scene_px=plan.side_px,
    )
    network = learn_translation(teacher, recipe, out=out, on_progress=_scale(parts[0]))
    routes: tuple[tuple[Look, dict[str, Way]], ...]
    routes = ((forget(look), {RAW: show}), (look, list_ways(teacher, network)))

    def draw(count: int, seed: int) -> list[tuple[list[Drawn], dict[str, Way]]]:
        """Images, and the ways to make them look."""
        return [
            (draw_clean(known, count, side=plan.side_px, seed=seed, dopants=those), ways)
            for known, ways in routes
        ]

    shown = draw(plan.shown, _SHOWN_SEED)
    compared: dict[str, LookScore] = {}
    examples = {"experiment": teacher.image[-_PART_PX:, -_PART_PX:].astype(np.float32)}
    for images, ways in shown:
        compared |= compare_looks(teacher, ways, images)
        for name, way in ways.items():
            examples[name] = way(np.random.default_rng(_SHOWN_SEED), images[0])[:_PART_PX, :_PART_PX]
    learned = _teach(draw(plan.images, _SEED))
    kept = _teach(draw(max(plan.images // _HELD, 2), _HELD_SEED))
    detectors: dict[str, list[Detector]] = {name: [] for name in WAYS}
    for number, (name, repeat) in enumerate(product(WAYS, range(plan.repeats))):
        detector = cells.train(
            learned[name],
            kept[name],
            side=look.side_px,
            steps=plan.steps,
            seed=_SEED + repeat,
            checkpoint=out / f"{name.replace(' ', '-')}-{repeat + 1}.pt",
            on_progress=_scale(parts[number + 1]),
        )
        detectors[name].append(detector)
    readers: dict[str, list[Reader]] = {
        name: [partial(cells.detect, one) for one in some] for name, some in detectors.items()
    }
    ours = Network.load(params.weights, task="defects")
    readers[OURS] = [partial(_read_ours, params=params, network=ours)]
    doses = tuple(_find_dose(look, shown[-1][0]) * factor for factor in DOSES)
    counts: dict[str, list[list[Counts]]] = {name: [] for name in readers}
    for dose in doses:
        tested = [_draw_test(look, dose, index, plan.side_px, those) for index in range(plan.tested)]
        for name, some in readers.items():
            counts[name].append([_count(some, one, look) for one in tested])
    labelled: dict[str, dict[str, Interval]] = {}
    ceilings: dict[str, dict[str, Interval]] = {}
    if marked is not None:
        known = _place_labels(opened, teacher, *marked)
        for name, some in readers.items():
            called = [reader(teacher.image, opened.sites) for reader in some]
            labelled[name] = _score_labels([called] * len(MARKS), known)
        for name, taught in detectors.items():
            ceilings[name] = _score_labels(_choose_by_labels(taught, opened, teacher, known), known)
    together = {name: [one for some in of_each for one in some] for name, of_each in counts.items()}
    return Study(
        compared,
        {name: [_score(some) for some in of_each] for name, of_each in counts.items()},
        {name: _score(all_of_it) for name, all_of_it in together.items()},
        {
            name: _compare(all_of_it, together[_BASELINE])
            for name, all_of_it in together.items()
            if name != _BASELINE
        },
        labelled,
        ceilings,
        time_translation(network, teacher.crops),
        doses,
        _tell_apart(look, readers, count=plan.told),
        examples,
        image is None,
    )


def tabulate(study: Study) -> list[dict[str, str]]:
    """The study's table, in words: what images look like, and what is found by who learned from them."""
    rows = []
    for name in dict.fromkeys([*study.looks, *study.scores]):
        row = {
            "": name,
            **(study.looks[name].to_words() if name in study.looks else dict.fromkeys(LookScore.HEAD, "")),
        }
        scores = study.scores.get(name, [""] * len(study.doses))
        for dose, score in zip(study.doses, scores, strict=True):
            row[f"F1 at {dose:.3g} e/px"] = str(score)
        row["F1 of all"] = str(study.overall.get(name, ""))
        row[f"over {_BASELINE}"] = str(study.gains.get(name, ""))
        for kind in sorted({kind for values in study.labelled.values() for kind in values}):
            row[f"F1 of labels, {kind}"] = str(study.labelled.get(name, {}).get(kind, ""))
            row[f"{kind}, threshold by labels"] = str(study.ceilings.get(name, {}).get(kind, ""))
        least = study.telling.least_found.get(name)
        row["O from V, e/Å²"] = f"{least:.2g}" if least else "not reached" if name in study.scores else ""
        rows.append(row)
    rows.append(
        {**dict.fromkeys(rows[0], ""), "": "best possible", "O from V, e/Å²": f"{study.telling.least:.2g}"}
    )
    return rows


def describe(study: Study, size: str) -> tuple[str, ...]:
    """What a reader of the table should know."""
    what = "a drawn one" if study.stand_in else "a real one"
    return (
        f"Size {size}. The experimental image is {what}; its left half is learned from, its right half compared with. "
        "Fréchet: distance of the features of unit-cell crops; power: that of crops over real ones in the ring of "
        "frequency where it is furthest off; row noise: power from row to row over that along rows, both at high "
        "frequency; values: largest difference of the distributions of pixel values; moved, vanished: columns that lie "
        f"more than {1e3 * MOVED_NM:.0f} pm elsewhere afterwards, and defects that lose more than half of their "
        "contrast, in the mean of eight translations, which start from fitted noise.",
        f"F1, of {SIZES[size].repeats} U-Nets of other seeds a way: place and kind of vacancies, oxygen and dopants "
        "together, in drawn images with another defocus, scan and dose than the experimental one. What each way adds "
        "to a drawn image is made as weak or strong as "
        f"{_TAUGHT[0]:g} to {_TAUGHT[1]:g} times the electrons make it. The U-Nets are alike but for what they learned "
        "from; flatscope's own network has seen drawn images of any noise, none of these. Over fitted noise: by how "
        "much F1 of all is higher on the same images. Threshold by labels: were the probability from which each U-Net "
        "calls a site a defect chosen on the very labels that it is then scored on: the most that its probabilities "
        "allow. Brackets: 95 % interval by image, of labels by strips.",
        "O from V: incident dose at which oxygen and a vacancy are told apart in nine cases of ten under counting "
        "noise alone; best possible: by the likelihood ratio, everything else known.",
        f"{study.crops_a_second:.0f} crops a second are translated in ONNX Runtime.",
    )


def draw_stand_in() -> Micrograph:
    """An image to learn from where no experimental one is given: MoS2 by a microscope and a scan that nobody knows."""
    rng = np.random.default_rng(_SEED)
    scanned = draw_scanned(
        rng,
        replace(draw_few_defects(rng, "MoS2"), turn_deg=17.0),
        replace(draw_microscope(rng, pixel_nm=_STAND_IN_NM), defocus_nm=1.0),
        replace(draw_noise(rng), row_sigma=0.4, drift_px=(1.0, -2.0)),
        shape=(_STAND_IN_PX, _STAND_IN_PX),
        electrons_per_px=_STAND_IN_ELECTRONS,
    )
    return Micrograph(scanned.image, float(scanned.image.max()), source="drawn image")


def time_translation(network: Network, crops: Real) -> float:
    """Crops a second that ONNX Runtime translates."""
    some = crops[:_TIMED]
    run_on_crops(network, some)
    begun = time.perf_counter()
    run_on_crops(network, some)
    return len(some) / (time.perf_counter() - begun)


def _scale(on_progress: Callable[[int, int], None] | None) -> Callable[[int, int], None] | None:
    """Progress of a part in thousandths."""
    return (
        None
        if on_progress is None
        else lambda done, total: on_progress(_PARTS * done // max(total, 1), _PARTS)
    )


def forget(look: Look) -> Look:
    """What is known of an image without looking at its columns: its microscopes are some at random, just aligned."""
    rng = np.random.default_rng(_SEED)
    aligned = (draw_microscope(rng, pixel_nm=look.pixel_nm) for _ in look.microscopes)
    return replace(look, microscopes=tuple(aligned))


def _teach(sets: Sequence[tuple[Sequence[Drawn], Mapping[str, Way]]]) -> dict[str, list[Marked]]:
    """Drawn images made to look in each of `WAYS`, each at its own dose, and what is to be found in them; translations
    that fail the check are left out of it."""
    made: dict[str, list[Marked]] = {name: [] for name in WAYS}
    for images, ways in sets:
        for index, drawn in enumerate(images):
            rng = np.random.default_rng([_SEED, index])
            times = float(np.exp(rng.uniform(*np.log(_TAUGHT))))
            for name, way in ways.items():
                honesty = check_honesty(rng, drawn, way) if name == "translated" else None
                made[name].append(mark(drawn, change_dose(drawn, way(rng, drawn), times), honesty))
    halves = ("fitted noise", "translated")
    made["both"] = [made[halves[index % 2]][index] for index in range(len(made["translated"]))]
    return made


def mark(drawn: Drawn, image: Real, honesty: Honesty | None) -> Marked:
    """What is to be learned from an image that was made of a drawn one; nothing of the columns that failed a check."""
    from flatscope.training.cells import Marked
    from flatscope.training.losses import IGNORE

    marks = mark_defects(drawn.sheet, drawn.material, shape=image.shape, pixel_nm=drawn.pixel_nm)
    true = drawn.sheet.sites_nm / drawn.pixel_nm
    gap, nearest = cKDTree(true).query(drawn.sites.positions)
    constant = drawn.sites.phases.lattice.constant_px
    kinds = np.where(
        gap < _MATCH * constant, classify_marks(drawn.sheet, find_crystal(drawn.material))[nearest], IGNORE
    )
    if honesty is not None and honesty.rejected.any():
        tree = cKDTree(honesty.places_px[honesty.rejected])
        grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
        marks[tree.query(grid)[0] < _BESIDE * constant] = IGNORE
        kinds[tree.query(drawn.sites.positions)[0] < _MATCH * constant] = IGNORE
    return Marked(image, marks, drawn.sites, kinds.astype(np.uint8))


@dataclass(frozen=True)
class _Test:
    """A scanned image, its sites as found (None if no lattice is), and what truly stands where."""

    image: Float
    sites: Sites | None
    places_px: Float
    kinds: NDArray[np.uint8]


def _find_dose(look: Look, images: Sequence[Drawn]) -> float:
    """Electrons a pixel at which counting noise alone is as strong as the experimental image's."""
    contrasts = [float(one.mean.std() / one.mean.mean()) for one in images]
    return float(np.mean([1.0 / (contrast * look.noise) ** 2 for contrast in contrasts]))


def _draw_test(look: Look, electrons: float, index: int, side: int, dopants: tuple[str, ...]) -> _Test:
    """Another microscope, another scan, another dose."""
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
    return _Test(
        np.asarray(scanned.image, float),
        sites,
        true,
        classify_marks(scanned.sheet, find_crystal(look.material)),
    )


def _count(readers: Sequence[Reader], test: _Test, look: Look) -> Counts:
    """Defects found with their right kind, found, and true, all readers together."""
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
    met = (gap < _MATCH * look.constant_px) & inside[nearest]
    right = np.asarray(met & (called > 0) & (called == test.kinds[nearest]))
    return int(right.sum()), int(((called > 0) & inside[nearest]).sum()), true


def _score(counts: Sequence[Counts]) -> Interval:
    return bootstrap(counts, _f1)


def _compare(counts: Sequence[Counts], others: Sequence[Counts]) -> Interval:
    """How much higher one F1 is than another on the same images."""
    return bootstrap(np.hstack([counts, others]), lambda total: _f1(total[:3]) - _f1(total[3:]))


def _f1(total: Float) -> float:
    """Of defects found rightly, found, and true."""
    return float(2.0 * total[0] / max(total[1] + total[2], 1.0))


def _read_ours(image: Float, sites: Sites, *, params: DefectParams, network: Network) -> NDArray[np.int64]:
    """What flatscope's own network says of each site."""
    levelled = level(image, sites.phases.lattice.constant_px)
    frame, _ = name_sites(levelled, sites, measure_sites(levelled, sites), params, network=network)
    called = np.zeros(len(sites.positions), np.int64)
    kept = frame[frame["status"] != "rejected"]
    called[kept["site"]] = [_CALLED.get(code, _OTHER) for code in kept["code"]]
    return called


def _tell_apart(look: Look, readers: dict[str, list[Reader]], *, count: int) -> Telling:
    """Images of one site that is pristine, lacks a chalcogen, or holds oxygen, counted at several doses."""
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
        rng = np.random.default_rng([_TOLD_SEED, step])
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
    side = int(np.ceil(_TOLD_CELLS * look.constant_px))
    field_nm = (side * look.pixel_nm, side * look.pixel_nm)
    wide = (2.0 * field_nm[0], 2.0 * field_nm[1])
    rng = np.random.default_rng(_TOLD_SEED)
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


@dataclass(frozen=True)
class _Labels:
    """What is marked on the sites of an image: kind, whether it counts, and the strip of the field that it lies in."""

    kinds: NDArray[np.int64]
    marked: NDArray[np.bool_]
    here: NDArray[np.bool_]
    block: NDArray[np.int64]


def _place_labels(opened: Scan, teacher: Teacher, places: Float, names: Sequence[str]) -> _Labels:
    """Columns marked at places, (row, col), on the sites of the image; those on its right half count."""
    kinds = [find_kind(name, find_crystal(teacher.look.material)) for name in names]
    truth = np.array([{"usual": 0, "vacancy": 1}.get(kind.what if kind else "", 3) for kind in kinds])
    positions, (rows, cols) = opened.sites.positions, teacher.image.shape
    gap, nearest = cKDTree(places).query(positions)
    low, high = places.min(0), places.max(0)
    return _Labels(
        truth[nearest],
        gap < _LABEL_MATCH * teacher.look.constant_px,
        np.asarray((positions[:, 1] > cols / 2) & ((positions >= low) & (positions <= high)).all(1)),
        np.clip((positions[:, 0] / rows * _BLOCKS).astype(int), 0, _BLOCKS - 1),
    )


def _score_labels(called: Sequence[Sequence[NDArray[np.int64]]], labels: _Labels) -> dict[str, Interval]:
    """F1 of each kind that is marked, by strips; of what one or more detectors call the sites, for each of `MARKS`."""
    scores = {}
    for kind in (1, 3):
        counts = np.sum([_count_labels(one, labels, kind) for one in called[kind]], axis=0)
        there = int(counts[:, 2].sum()) // len(called[kind])
        if there:
            scores[f"{there} of {MARKS[kind]}"] = _score([tuple(row) for row in counts.tolist()])
    return scores


def _count_labels(called: NDArray[np.int64], labels: _Labels, kind: int) -> NDArray[np.int64]:
    """Sites rightly called of a kind, called so, and truly so, in each strip, shape (strips, 3)."""
    true = (labels.kinds == kind) & labels.marked & labels.here
    found = (called == kind) & labels.here
    return np.stack(
        [np.bincount(labels.block[one], minlength=_BLOCKS) for one in (true & found, found, true)], 1
    )


def _choose_by_labels(
    detectors: Sequence[Detector], opened: Scan, teacher: Teacher, labels: _Labels
) -> list[list[NDArray[np.int64]]]:
    """What each detector calls the sites at the threshold that is best for each of `MARKS`."""
    from flatscope.training import cells

    chosen: list[list[NDArray[np.int64]]] = [[] for _ in MARKS]
    for one in detectors:
        p = cells.read(one.net, teacher.image, opened.sites, side=one.side_px)
        tried = [cells.name(p, float(threshold)) for threshold in cells.THRESHOLDS]
        for kind, best in enumerate(chosen):
            best.append(max(tried, key=lambda called: _f1(_count_labels(called, labels, kind).sum(0))))
    return chosen
