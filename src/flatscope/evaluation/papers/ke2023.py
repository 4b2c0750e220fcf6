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
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.defects import DefectParams
from flatscope.electron.drawing.appearance import Drawn, Look, change_dose, draw_clean, draw_few_defects
from flatscope.electron.drawing.crops import mark_defects
from flatscope.electron.drawing.microscopes import Teacher, learn_look
from flatscope.electron.drawing.specimens import draw_microscope, draw_noise, draw_scanned
from flatscope.electron.drawing.translation import MOVED_NM, Honesty, check_honesty, run_on_crops
from flatscope.electron.kinds import classify_marks
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.scans import open_scan
from flatscope.evaluation.columns import read_labels
from flatscope.evaluation.likeness import (
    RINGS,
    VALUES,
    Likeness,
    Way,
    compare_ways,
    keep_as_drawn,
    learn_translation,
    list_ways,
)
from flatscope.evaluation.metrics import Interval
from flatscope.evaluation.papers import Answer, Progress, part_of
from flatscope.evaluation.papers.ke2023_scoring import (
    MATCH,
    Reader,
    Telling,
    compare,
    find_dose,
    read_ours,
    read_theirs,
    run_tests,
    score,
    score_marked,
    tell_apart,
)
from flatscope.inference.runtime import Network
from flatscope.micrograph import Micrograph
from flatscope.report.study import draw_confusion, draw_grays, draw_lines

if TYPE_CHECKING:
    from flatscope.training.crop_detector import Detector, Marked

DOI = "10.1021/acs.nanolett.4c02654"
RAW = "raw simulation"
WAYS = (RAW, "tuned microscopes", "fitted noise", "translated", "both")
OURS = "flatscope"
COMPARED = ("fitted noise", "translated", OURS)
"""The confusion of oxygen, vacancies and pristine sites is shown of these."""
DOSES = (0.3, 1.0, 3.0, 10.0)  # of tested images, over that of the experimental one
_PARAMS = DefectParams("MoS2")
_BASELINE = "fitted noise"  # gains are over this
_TAUGHT = (0.3, 10.0)  # range of doses that the U-Nets learn from, over that of the experimental image
_SEED = 2023  # of the images that are learned from, and of the U-Nets
_HELD_SEED = 77  # of the images that choose thresholds
_SHOWN_SEED = 5  # of the images that are compared with the experimental one
_HELD = 4  # one image for thresholds for this many to learn from
_PART_PX = 96  # side of the parts of images that are shown
_TIMED = 256  # crops whose translation is timed
_BESIDE = 0.5  # lattice constants around a rejected column that are not learned from
_PARTS = 1000  # in which progress of a training is counted
_STAND_IN_PX = 320  # side of the image that is drawn where none is given
_STAND_IN_NM = 0.026  # its pixel size
_STAND_IN_ELECTRONS = 12.0  # and its dose, electrons a pixel

Float = NDArray[np.float64]
Real = NDArray[np.float32]


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
        Sites of each kind at each dose under counting noise alone.
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
    "quick": Size(0.01, 1, 1, 128, 2, 2, 2, 1, 2, 1, 1),
    "cpu": Size(40.0, 5, 60, 192, 40, 900, 2, 8, 60, 100, 4),
    "full": Size(600.0, 5, 400, 256, 400, 10_000, 3, 40, 200, 1000, 16),
}


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

    size: str
    looks: dict[str, Likeness]
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


class _Route(NamedTuple):
    """What is known of the experimental image, and the ways to show a drawn image with this knowledge."""

    look: Look
    ways: dict[str, Way]


@dataclass(frozen=True)
class _Experiment:
    """How images are drawn like the experimental one.

    Parameters
    ----------
    look
        All that is known of it.
    routes
        From nothing but its lattice, and from all of it.
    dopants, side_px
        Of drawn images.
    """

    look: Look
    routes: tuple[_Route, ...]
    dopants: tuple[str, ...]
    side_px: int

    def draw(self, count: int, seed: int) -> list[tuple[list[Drawn], dict[str, Way]]]:
        """Draw images by each route, with the ways to show them."""
        return [
            (draw_clean(route.look, count, side=self.side_px, seed=seed, dopants=self.dopants), route.ways)
            for route in self.routes
        ]


def run(
    size: str,
    *,
    out: Path,
    image: Micrograph | None = None,
    params: DefectParams = _PARAMS,
    labels: Path | None = None,
    on_progress: Progress | None = None,
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
        Its crystal; the element known to occupy metal sites, or none for any that differs from the host; and
        flatscope's own network.
    labels
        Marked columns of the image, see `flatscope.evaluation.columns.evaluate_labels`; those on the right half count.
    """
    plan = SIZES[size]
    marked = None if labels is None else read_labels(labels)
    taken = draw_stand_in() if image is None else image
    opened = open_scan(taken, params.material, [])
    teacher = learn_look(opened, params.material, source=taken.name, tried=plan.microscopes)
    look = teacher.look
    progress = [
        _scale(part_of(on_progress, number=number, parts=plan.repeats * len(WAYS) + 1, steps=_PARTS))
        for number in range(plan.repeats * len(WAYS) + 1)
    ]
    network = _train_translation(teacher, plan, out=out, on_progress=progress[0])
    routes = (_Route(forget(look), {RAW: keep_as_drawn}), _Route(look, list_ways(teacher, network)))
    dopants = (params.dopants,) if params.dopants else ()
    experiment = _Experiment(look, routes, dopants, plan.side_px)
    shown = experiment.draw(plan.shown, _SHOWN_SEED)
    looks, examples = _compare_with(teacher, shown)
    detectors = _train_detectors(experiment, plan, out=out, progress=progress[1:])
    readers: dict[str, list[Reader]] = {
        name: [partial(read_theirs, detector=one) for one in some] for name, some in detectors.items()
    }
    ours = Network.load(params.weights, task="defects")
    readers[OURS] = [partial(read_ours, params=params, network=ours)]
    typical = find_dose(look, shown[-1][0])
    doses = tuple(typical * factor for factor in DOSES)
    counts = run_tests(readers, look, doses, count=plan.tested, side=plan.side_px, dopants=experiment.dopants)
    together = {name: [one for some in of_each for one in some] for name, of_each in counts.items()}
    return Study(
        size,
        looks,
        {name: [score(some) for some in of_each] for name, of_each in counts.items()},
        {name: score(some) for name, some in together.items()},
        {name: compare(some, together[_BASELINE]) for name, some in together.items() if name != _BASELINE},
        *score_marked(opened, teacher, marked, readers, detectors),
        time_translation(network, teacher.crops),
        doses,
        tell_apart(look, readers, count=plan.told),
        examples,
        image is None,
    )


def _train_translation(teacher: Teacher, plan: Size, *, out: Path, on_progress: Progress | None) -> Network:
    from flatscope.training import recipes

    recipe = recipes.load(
        "realism",
        max_minutes=plan.minutes,
        epochs=plan.epochs,
        scenes_train=plan.scenes,
        scene_px=plan.side_px,
    )
    return learn_translation(teacher, recipe, out=out, on_progress=on_progress)


def _compare_with(
    teacher: Teacher, shown: Sequence[tuple[list[Drawn], dict[str, Way]]]
) -> tuple[dict[str, Likeness], dict[str, Real]]:
    """How near each way of drawing comes to the experimental image, and parts of images beside each other."""
    looks: dict[str, Likeness] = {}
    examples = {"experiment": teacher.image[-_PART_PX:, -_PART_PX:].astype(np.float32)}
    for images, ways in shown:
        looks |= compare_ways(teacher, ways, images)
        for name, way in ways.items():
            examples[name] = way(np.random.default_rng(_SHOWN_SEED), images[0])[:_PART_PX, :_PART_PX]
    return looks, examples


def _train_detectors(
    experiment: _Experiment, plan: Size, *, out: Path, progress: Sequence[Progress | None]
) -> dict[str, list[Detector]]:
    """U-Nets of every way, alike except for the images that they learn from."""
    from flatscope.training import crop_detector

    learned = _teach(experiment.draw(plan.images, _SEED))
    kept = _teach(experiment.draw(max(plan.images // _HELD, 2), _HELD_SEED))
    detectors: dict[str, list[Detector]] = {name: [] for name in WAYS}
    for number, (name, repeat) in enumerate(product(WAYS, range(plan.repeats))):
        detector = crop_detector.train(
            learned[name],
            kept[name],
            side=experiment.look.side_px,
            steps=plan.steps,
            seed=_SEED + repeat,
            checkpoint=out / f"{name.replace(' ', '-')}-{repeat + 1}.pt",
            on_progress=progress[number],
        )
        detectors[name].append(detector)
    return detectors


def tabulate(study: Study) -> list[dict[str, str]]:
    """The study's table, in words: what images look like, and what the networks taught by them find."""
    rows = []
    for name in dict.fromkeys([*study.looks, *study.scores]):
        row = {
            "": name,
            **(study.looks[name].to_words() if name in study.looks else dict.fromkeys(Likeness.HEAD, "")),
        }
        scores = study.scores.get(name, [""] * len(study.doses))
        for dose, one in zip(study.doses, scores, strict=True):
            row[f"F1 at {dose:.3g} e/px"] = str(one)
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


def describe(study: Study) -> tuple[str, ...]:
    """What a reader of the table should know."""
    what = "a drawn one" if study.stand_in else "a real one"
    return (
        f"Size {study.size}. The experimental image is {what}; its left half is learned from, its right half compared "
        "with. Fréchet: distance of the features of unit-cell crops. Power: that of crops over real ones in the ring "
        "of frequency where it is furthest off. Row noise: power from row to row over that along rows, both at high "
        "frequency. Values: largest difference of the distributions of pixel values. Moved: share of columns that the "
        f"change moves by more than {1e3 * MOVED_NM:.0f} pm. Vanished: share of defects that lose more than half of "
        "their contrast, averaged over eight translations, which start from fitted noise.",
        f"F1, of {SIZES[study.size].repeats} U-Nets of other seeds a way: place and kind of vacancies, oxygen and "
        "dopants together, in drawn images with another defocus, scan and dose than the experimental one. What a way "
        "adds to a drawn image is scaled to the strength that it has at "
        f"{_TAUGHT[0]:g} to {_TAUGHT[1]:g} times the electrons. The U-Nets differ only in what they learned from; "
        "flatscope's own network has seen drawn images of any noise, none of these. Over fitted noise: how much higher "
        "F1 of all is on the same images. Threshold by labels: the F1 that each U-Net would reach with a threshold "
        "chosen on the very labels that score it, an upper limit of what its probabilities allow. Brackets: 95 % "
        "interval by image, of labels by strips.",
        "O from V: incident dose at which oxygen and a vacancy are told apart in nine of ten cases under counting "
        "noise alone. Best possible: by the likelihood ratio, with everything else known.",
        f"ONNX Runtime translates {study.crops_a_second:.0f} crops a second.",
    )


def present(study: Study) -> Answer:
    """The study's table and figures."""
    numbers = {key: value for key, value in asdict(study).items() if key not in ("size", "examples")}
    figures = {**_draw_likeness(study), **_draw_scores(study)}
    return Answer(f"Ke et al. 2024 (doi:{DOI})", tabulate(study), [numbers], figures, describe(study))


def _draw_likeness(study: Study) -> dict[str, bytes]:
    frequency = (np.arange(RINGS) + 0.5) / RINGS
    # The experiment last: so each way has one colour in all figures.
    looks = sorted(study.looks.items(), key=lambda item: item[0] not in WAYS)
    spectra = {name: (frequency, one.spectrum) for name, one in looks}
    values = {name: (VALUES[:-1], one.values) for name, one in looks}
    return {
        "Parts of the experimental image and of drawn ones": draw_grays(study.examples),
        "Power spectra of crops": draw_lines(
            {"": spectra}, labels=("frequency over the highest", "power over that of real crops")
        ),
        "Pixel values of crops": draw_lines(
            {"": values},
            labels=("value over the lattice's contrast", "share of pixels"),
            scales=("linear", "linear"),
            steps=True,
        ),
    }


def _draw_scores(study: Study) -> dict[str, bytes]:
    doses = np.array(study.doses)
    curves = {name: (doses, np.array([one.value for one in scores])) for name, scores in study.scores.items()}
    caption = "Drawn images of other microscopes and scans than were learned from"
    figures = {
        caption: draw_lines(
            {"": curves}, labels=("electrons a pixel", "F1 of place and kind"), scales=("log", "linear")
        )
    }
    telling = study.telling
    shown = (0, len(telling.doses) // 2, len(telling.doses) - 1)
    for name, shares in {
        "best possible": telling.bound,
        **{name: telling.found[name] for name in COMPARED},
    }.items():
        figures[f"Chalcogen sites under counting noise, shares of the true kind: {name}"] = draw_confusion(
            {f"{name}, {telling.doses[place]:.2g} e/Å²": shares[place] for place in shown},
            classes=("pristine", "vacancy", "oxygen"),
        )
    return figures


def draw_stand_in() -> Micrograph:
    """An image to learn from where no experimental one is given: MoS2 by an unknown microscope and scan."""
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


def _scale(on_progress: Progress | None) -> Progress | None:
    """Progress of a part in thousandths."""
    return (
        None
        if on_progress is None
        else lambda done, total: on_progress(_PARTS * done // max(total, 1), _PARTS)
    )


def forget(look: Look) -> Look:
    """What is known of an image without looking at its columns: random, aligned microscopes stand for its own."""
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
    from flatscope.training.crop_detector import Marked
    from flatscope.training.losses import IGNORE

    marks = mark_defects(drawn.sheet, drawn.material, shape=image.shape, pixel_nm=drawn.pixel_nm)
    true = drawn.sheet.sites_nm / drawn.pixel_nm
    gap, nearest = cKDTree(true).query(drawn.sites.positions)
    constant = drawn.sites.phases.lattice.constant_px
    kinds = np.where(
        gap < MATCH * constant, classify_marks(drawn.sheet, find_crystal(drawn.material))[nearest], IGNORE
    )
    if honesty is not None and honesty.rejected.any():
        tree = cKDTree(honesty.places_px[honesty.rejected])
        grid = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij"), axis=-1)
        marks[tree.query(grid)[0] < _BESIDE * constant] = IGNORE
        kinds[tree.query(drawn.sites.positions)[0] < MATCH * constant] = IGNORE
    return Marked(image, marks, drawn.sites, kinds.astype(np.uint8))
