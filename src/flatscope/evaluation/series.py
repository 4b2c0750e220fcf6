"""Columns in drawn focal series against their truth, from dose to dose, beside what counting statistics allow."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from flatscope.electron.columns import ColumnParams, find_columns
from flatscope.electron.drawing.noise import count_electrons
from flatscope.electron.drawing.specimens import Specimen, draw_contents, draw_optics, draw_specimen
from flatscope.electron.kinds import (
    BACKGROUND,
    FIRST,
    OTHER,
    PART,
    SECOND,
    UNKNOWN,
    classify_columns,
)
from flatscope.electron.physics.crystals import NUMBERS, Crystal, Sheet, find_crystal
from flatscope.electron.physics.imaging import draw_series
from flatscope.electron.physics.multislice import MultisliceError, simulate_series
from flatscope.evaluation.columns import MATCH_NM, match_points
from flatscope.evaluation.metrics import Interval, Score, bootstrap
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, MicrographError, Stack

Float = NDArray[np.float64]

SUPPORTS = ("bare", "graphene")
DOSES = tuple(float(10.0 ** (exponent / 4.0)) for exponent in range(4, 21))
"""From 10 to 100,000 electrons per Å², in quarter decades."""
_SEED = 31  # of the tested series
_FIELD_NM = 5.0  # side of the smallest field
_RIM_NM = 0.1  # columns this near to the border do not count
_PIXEL_NM = (0.010, 0.013)  # range of pixel sizes
_ALONE_PX = 180  # side of the field in which a column stands alone


@dataclass(frozen=True)
class Counts:
    """Columns of one series.

    Parameters
    ----------
    right
        Found ones within 0.05 nm of a true one and of its kind.
    placed
        Found ones within 0.05 nm of a true one.
    found, true
        All of them, without unidentifiable ones and those at the border.
    part_right, part_found, part_true
        The same of columns that lack one atom of a pair.
    squared_nm2, stated_nm2
        Sums over placed columns of the squared error along an axis, and of the stated one.
    """

    right: int
    placed: int
    found: int
    true: int
    part_right: int
    part_found: int
    part_true: int
    squared_nm2: float
    stated_nm2: float

    @property
    def f1(self) -> float:
        """Of place and kind together."""
        return 2.0 * self.right / max(self.found + self.true, 1)


def score(
    specimen: Specimen,
    crystal: Crystal,
    positions_nm: Float,
    kinds: NDArray[Any],
    *,
    sigma_nm: Float | None = None,
    other: bool = True,
) -> Counts:
    """Compare columns with the truth of a drawn series.

    Parameters
    ----------
    positions_nm
        Shape (n, 2), down and right from the centre of the first pixel.
    kinds
        Class of each, see `flatscope.electron.kinds.COLUMN_CLASSES`.
    sigma_nm
        Stated errors, if there are any.
    other
        Whether columns of other atoms than the material's count; else they are left out, like those under dirt.
    """
    side = np.array(specimen.images.shape[1:]) * specimen.optics.pixel_nm
    classes = classify_columns(specimen.sheet, crystal)
    if not other:
        classes = np.where(classes == OTHER, UNKNOWN, classes)

    def inside(places: Float) -> NDArray[np.bool_]:
        return np.asarray(((places > _RIM_NM) & (places < side - _RIM_NM)).all(1))

    true = specimen.sheet.sites_nm
    here = (classes != BACKGROUND) & inside(true)
    true, classes = true[here], classes[here]
    kept = inside(positions_nm) if len(positions_nm) else np.zeros(0, bool)
    found, kinds = positions_nm[kept], kinds[kept]
    stated = np.zeros(len(found)) if sigma_nm is None else sigma_nm[kept]
    pairs = [(i, j) for i, j in match_points(found, true, MATCH_NM)]
    ignored = sum(classes[j] == UNKNOWN for _, j in pairs)
    pairs = [(i, j) for i, j in pairs if classes[j] != UNKNOWN]
    right = [(i, j) for i, j in pairs if kinds[i] == classes[j]]
    error = np.array([found[i] - true[j] for i, j in pairs]).reshape(-1, 2)
    return Counts(
        right=len(right),
        placed=len(pairs),
        found=len(found) - int(ignored),
        true=int((classes != UNKNOWN).sum()),
        part_right=sum(classes[j] == PART for _, j in right),
        part_found=int((kinds == PART).sum()),
        part_true=int((classes == PART).sum()),
        squared_nm2=float(0.5 * np.square(error).sum()),
        stated_nm2=float(sum(stated[i] ** 2 for i, _ in pairs)),
    )


@dataclass(frozen=True)
class SeriesScores(Score):
    """Scores at one dose on one support; intervals are by series.

    `f1` counts columns of the right place and kind, `placed` of the right place, `single` those that lack one atom of
    a pair. `bound` is the F1 of `single` of an observer who knows the microscope and every other atom. `error_pm` and
    `stated_pm` are rms errors along an axis, real and stated.
    """

    support: str
    dose_e_per_a2: float
    f1: Interval
    placed: Interval
    single: Interval
    bound: float
    error_pm: float
    stated_pm: float
    series: int
    columns: int
    seconds: float
    model: str

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "sheet": self.support,
            "e/Å²": f"{self.dose_e_per_a2:g}",
            "F1": str(self.f1),
            "place alone": str(self.placed),
            "single atoms": str(self.single),
            "bound": f"{self.bound:.3f}",
            "error pm": f"{self.error_pm:.1f}",
            "stated pm": f"{self.stated_pm:.1f}",
            "columns": str(self.columns),
            "by": self.model,
        }


def evaluate_series(
    *,
    material: str = "MoS2",
    doses: tuple[float, ...] = (1e2, 1e3, 1e4, 1e5),
    series: int = 20,
    weights: str = "columns",
    seed: int = _SEED,
    exact: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[SeriesScores]:
    """Find columns in series of three images of 5 nm, 0.010 to 0.013 nm a pixel, with every kind of defect.

    Parameters
    ----------
    doses
        Electrons per Å² of a whole series; the same series are counted at each.
    series
        On each support, none of them ever trained on.
    exact
        Whether images are those of multislice where abTEM is installed, else of the fast model.
    """
    crystal = find_crystal(material)
    network = Network.load(weights, task="columns")
    params = ColumnParams(material=material, weights=weights)
    rows: dict[tuple[str, float], list[tuple[Counts, float, float]]] = {
        key: [] for key in itertools.product(SUPPORTS, doses)
    }
    model = "multislice"
    for number, (index, support) in enumerate(itertools.product(range(series), SUPPORTS)):
        specimen, model = draw_test(material, support, index, seed=seed, exact=exact)
        detectability = find_detectability(specimen, material)
        for place, dose in enumerate(doses):
            rng = np.random.default_rng([seed, index, SUPPORTS.index(support), place, 1])
            counted = expose(rng, specimen, dose)
            begun = time.perf_counter()
            positions, kinds, sigma = find_columns_in(counted, params, network)
            seconds = time.perf_counter() - begun
            counts = score(counted, crystal, positions, kinds, sigma_nm=sigma)
            share = counts.part_true / max(counts.true, 1)
            rows[support, dose].append((counts, bound_single(detectability, dose, share), seconds))
        if on_progress is not None:
            on_progress(number + 1, series * len(SUPPORTS))
    return [_summarise(support, dose, found, model) for (support, dose), found in rows.items()]


def draw_test(
    material: str, support: str, index: int, *, seed: int = _SEED, exact: bool = True
) -> tuple[Specimen, str]:
    """A test series and the name of the model that drew it."""
    rng = np.random.default_rng([seed, index, SUPPORTS.index(support)])
    pixel_nm = float(rng.uniform(*_PIXEL_NM))
    side = round(_FIELD_NM / pixel_nm)
    contents = draw_contents(
        rng, material, field_nm=(_FIELD_NM, _FIELD_NM), support="" if support == "bare" else support
    )
    optics = draw_optics(rng, pixel_nm=pixel_nm)
    state = rng.bit_generator.state
    if exact:
        try:
            return draw_specimen(
                rng, contents, optics, shape=(side, side), draw=simulate_series
            ), "multislice"
        except MultisliceError:
            rng.bit_generator.state = state
    return draw_specimen(rng, contents, optics, shape=(side, side), draw=draw_series), "fast model"


def expose(rng: np.random.Generator, specimen: Specimen, dose_e_per_a2: float) -> Specimen:
    """The same series counted again at another dose."""
    optics = replace(specimen.optics, dose_e_per_a2=dose_e_per_a2)
    electrons = dose_e_per_a2 * (10.0 * optics.pixel_nm) ** 2 / len(specimen.mean)
    images = count_electrons(rng, specimen.mean, electrons_per_px=electrons, mtf=optics.mtf)
    return replace(specimen, images=images, optics=optics)


def find_detectability(specimen: Specimen, material: str) -> float:
    """Measure how far a pair is from one of its atoms in units of counting noise, at 1 electron per Å² in the series.

    The difference of both mean images, squared and summed over all pixels and images: all the evidence of an observer
    who knows the microscope and every other atom. Infinite for materials without pairs.
    """
    crystal = find_crystal(material)
    if not crystal.is_dichalcogenide:
        return np.inf
    optics = specimen.optics
    pair, single = (
        draw_series(_stand_alone(crystal, atoms), optics, shape=(_ALONE_PX, _ALONE_PX)) for atoms in (2, 1)
    )
    electrons_per_px = (10.0 * optics.pixel_nm) ** 2 / len(pair)
    return float(np.sqrt(np.square(pair - single).sum() * electrons_per_px))


def _stand_alone(crystal: Crystal, atoms: int) -> Sheet:
    """One column of a pair, or of its upper atom, in the void."""
    element = crystal.second[0]
    heights = np.array([0.5, -0.5])[:atoms] * crystal.pair_nm
    places = np.column_stack([np.ones((atoms, 2)), heights])
    return Sheet(
        np.full(atoms, NUMBERS[element]), places, np.ones((1, 2)), np.ones(1, int), np.array([element])
    )


def bound_single(detectability: float, dose_e_per_a2: float, share: float) -> float:
    """Largest F1 of single atoms among pairs that counting statistics allow.

    Parameters
    ----------
    detectability
        See `find_detectability`.
    dose_e_per_a2
        Electrons per Å² in the series.
    share
        Of the columns that are single atoms.
    """
    distance = detectability * np.sqrt(dose_e_per_a2)
    if not np.isfinite(distance) or share <= 0.0:
        return 1.0
    threshold = np.linspace(-6.0, distance + 6.0, 400)
    hits, false = share * special.ndtr(distance - threshold), (1.0 - share) * special.ndtr(-threshold)
    return float(np.max(2.0 * hits / (hits + share + false)))


def find_columns_in(
    specimen: Specimen, params: ColumnParams, network: Network
) -> tuple[Float, NDArray[np.int64], Float]:
    """Positions (nm), classes and stated errors (nm) by the whole route from images to table."""
    pixel_nm = specimen.optics.pixel_nm
    stack = Stack(specimen.images, Calibration((pixel_nm, pixel_nm), "user"))
    try:
        frame = find_columns(stack, params, network=network).found
    except MicrographError:
        return np.zeros((0, 2)), np.zeros(0, np.int64), np.zeros(0)
    crystal = find_crystal(params.material)
    names = {crystal.species[0]: FIRST, crystal.species[1]: SECOND, crystal.second[0]: PART}
    kinds = np.array([names.get(str(name), OTHER) for name in frame["species"]], np.int64)
    return (
        frame[["row_px", "col_px"]].to_numpy(float) * pixel_nm,
        kinds,
        frame["sigma_px"].to_numpy(float) * pixel_nm,
    )


def _summarise(
    support: str, dose: float, found: list[tuple[Counts, float, float]], model: str
) -> SeriesScores:
    counts = [one for one, _, _ in found]
    sums = np.array(
        [
            (one.right, one.placed, one.found, one.true, one.part_right, one.part_found, one.part_true)
            for one in counts
        ],
        float,
    )
    placed = max(float(sums[:, 1].sum()), 1.0)
    return SeriesScores(
        support=support,
        dose_e_per_a2=dose,
        f1=bootstrap(sums, lambda s: float(2.0 * s[0] / max(s[2] + s[3], 1.0))),
        placed=bootstrap(sums, lambda s: float(2.0 * s[1] / max(s[2] + s[3], 1.0))),
        single=bootstrap(sums, lambda s: float(2.0 * s[4] / max(s[5] + s[6], 1.0))),
        bound=float(np.mean([bound for _, bound, _ in found])),
        error_pm=1e3 * float(np.sqrt(sum(one.squared_nm2 for one in counts) / placed)),
        stated_pm=1e3 * float(np.sqrt(sum(one.stated_nm2 for one in counts) / placed)),
        series=len(found),
        columns=int(sums[:, 3].sum()),
        seconds=float(np.median([seconds for _, _, seconds in found])),
        model=model,
    )
