"""Twisted bilayers against drawn truth: twist, columns of each layer, vacancies, and the stated errors.

What is drawn here is drawn by flatscope's own fast model: the figures are self-consistent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage
from scipy.spatial import cKDTree

from flatscope.electron.drawing.specimens import draw_noise, draw_scanned
from flatscope.electron.drawing.stacks import (
    BilayerParams,
    LayerParams,
    ScannedBilayer,
    draw_bilayer,
    draw_distortion,
)
from flatscope.electron.lattice import NoLatticeError, find_lattice, map_phases
from flatscope.electron.moire import MoireParams, find_moire
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.stack_columns import OVERLAPPING
from flatscope.electron.stacking import find_others
from flatscope.evaluation.metrics import Score
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.results import MoireTable

Float = NDArray[np.float64]

SIDE_PX, PIXEL_NM = 512, 0.02
_OPTICS = ScanParams(PIXEL_NM, voltage_kv=200.0, convergence_mrad=22.0, collection_mrad=(80.0, 250.0))
DISTORTED = 0.01  # affine distortion of the scan, 1 sigma of each entry
_VACANCIES = 0.01  # share of the sites of the first sublattice
_RANGES = ((2.0, 5.0), (5.0, 30.0))  # degrees of twist
_MATERIALS = (("MoS2", "MoS2"), ("graphene", "graphene"), ("WSe2", "WSe2"), ("MoS2", "WSe2"))
_RIM_PX = 6.0  # columns nearer to the border are not scored
_REACH_NM = (
    0.06  # a column found within this distance is the true one; columns nearer to another layer's overlap
)


@dataclass(frozen=True)
class MoireScore(Score):
    """Of drawn bilayers in one range of twist; self-consistent.

    `answered` counts images that were called a bilayer at all. Twist errors are median and largest; `twist_z` and
    `place_z` are the rms of errors over stated sigmas, 1 where those are honest. `f1` is that of columns with layer and
    species over all true columns; one called "not resolved" counts as found only where a column of the other layer lies
    within 0.06 nm, a share of `overlapping`. Places are scored without a common shift, which a detector's lag makes.
    `by_hand_deg` is the median error of the strongest peak of either layer in the spectrum, read automatically.
    """

    material: str
    range_deg: str
    images: int
    answered: int
    twist_error_deg: float
    twist_worst_deg: float
    twist_z: float
    by_hand_deg: float
    f1: float
    overlapping: float
    place_error_pm: float
    place_z: float
    vacancies: int
    vacancies_recall: float
    vacancies_precision: float


@dataclass(frozen=True)
class FalseStacks(Score):
    """Drawn monolayers at 0.5 to 1,000 electrons a pixel, 256×256 px; self-consistent. `periodic` counts those whose
    lattice rises from the noise."""

    images: int
    periodic: int
    called_stacks: int


def evaluate_moire(
    *, count: int = 4, seed: int = 31, on_progress: Callable[[int, int], None] | None = None
) -> list[MoireScore]:
    """Measure drawn bilayers: 512×512 px, 10 electrons a pixel, distorted by 1 %, with the noise of scans.

    Parameters
    ----------
    count
        Images of each pair of materials and range of twist.
    seed
        Of the images.
    on_progress
        Called with the number of images done and their total.
    """
    scores: list[MoireScore] = []
    total = count * len(_RANGES) * len(_MATERIALS)
    for place, (low, high) in enumerate(_RANGES):
        for kind, materials in enumerate(_MATERIALS):
            rows = []
            for index in range(count):
                rng = np.random.default_rng([seed, place, kind, index])
                rows.append(score_stack(draw_stack(rng, materials, float(rng.uniform(low, high)))))
                if on_progress is not None:
                    on_progress(len(scores) * count + index + 1, total)
            scores.append(gather_scores(rows, "/".join(dict.fromkeys(materials)), f"{low:g} to {high:g}"))
    return scores


def count_false_stacks(
    *, count: int = 100, seed: int = 33, on_progress: Callable[[int, int], None] | None = None
) -> FalseStacks:
    """Look for a second lattice in drawn monolayers of every material and dose, with vacancies, holes and dirt.

    Parameters
    ----------
    count
        Number of images.
    seed
        Of the images.
    on_progress
        Called with the number of images done and their total.
    """
    false, unseen = 0, 0
    names = ("MoS2", "WSe2", "graphene", "hBN", "WS2", "MoSe2")
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        dose = float(10.0 ** rng.uniform(-0.3, 3.0))
        sheet = SheetParams(
            names[index % len(names)],
            turn_deg=float(rng.uniform(0.0, 60.0)),
            vacancies={"first": float(rng.uniform(0.0, 0.03))},
            holes=int(rng.integers(0, 3)),
            patches=int(rng.integers(0, 3)),
        )
        drawn = draw_scanned(
            rng, sheet, _OPTICS, draw_noise(rng), shape=(SIDE_PX // 2, SIDE_PX // 2), electrons_per_px=dose
        )
        image = np.asarray(drawn.image, float)
        try:
            false += bool(find_others(image, map_phases(image, find_lattice(image))))
        except NoLatticeError:
            unseen += 1
        if on_progress is not None:
            on_progress(index + 1, count)
    return FalseStacks(images=count, periodic=count - unseen, called_stacks=false)


def draw_stack(rng: np.random.Generator, materials: tuple[str, str], twist: float) -> ScannedBilayer:
    """A bilayer at random as all figures here are measured on."""
    turn = float(rng.uniform(0.0, 360.0))
    layers = [
        LayerParams(
            name,
            turn + place * twist,
            (float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
            vacancies={"first": _VACANCIES},
        )
        for place, name in enumerate(materials)
    ]
    params = BilayerParams(tuple(layers), distortion=draw_distortion(rng, DISTORTED))
    shape = (SIDE_PX, SIDE_PX)
    return draw_bilayer(rng, params, _OPTICS, draw_noise(rng), shape=shape, electrons_per_px=10.0)


def score_stack(drawn: ScannedBilayer) -> dict[str, float]:
    """Figures of one image by name; without an answer only that by hand."""
    image = drawn.scanned.image
    calibration = Calibration((PIXEL_NM, PIXEL_NM), "file", 0.02)
    micrograph = Micrograph(image, full_scale=float(image.max()), calibration=calibration, source="drawn")
    names = [layer.material for layer in drawn.params.layers]
    truth = abs(drawn.twist_deg)
    figures = {"by_hand": abs(read_by_hand(np.asarray(image, float), names) - truth)}
    try:
        table = find_moire(micrograph, MoireParams("/".join(dict.fromkeys(names))))
    except MicrographError:
        return figures
    row = table.frame.iloc[0]
    error = abs(float(row["twist_deg"]) - truth)
    return {
        **figures,
        "twist": error,
        "z": error / float(row["twist_sigma_deg"]),
        **_score_columns(table, drawn),
    }


def _score_columns(table: MoireTable, drawn: ScannedBilayer) -> dict[str, float]:
    """Counts of columns; which layer is the first one is not known where the materials are the same."""
    same = drawn.params.layers[0].material == drawn.params.layers[1].material
    tries = [
        _compare(table.columns, drawn, swapped=swapped) for swapped in ((False, True) if same else (False,))
    ]
    return max(tries, key=lambda one: one["hits"])


def _compare(columns: pd.DataFrame, drawn: ScannedBilayer, *, swapped: bool) -> dict[str, float]:
    sheet = drawn.scanned.sheet
    places = sheet.sites_nm / PIXEL_NM
    rows = columns[columns["status"] != "rejected"]
    total: dict[str, float] = {}
    for number in (0, 1):
        mine = drawn.layer == (1 - number if swapped else number)
        other = cKDTree(places[~mine])
        found = rows[rows["layer"] == number + 1]
        found = found[_is_inside(found[["row_px", "col_px"]].to_numpy(float))]
        at = found[["row_px", "col_px"]].to_numpy(float)
        true = mine & _is_inside(places)
        gap, nearest = cKDTree(at).query(places[true])
        species = np.where(sheet.species[true] == "", "none", sheet.species[true])
        seen = found.iloc[nearest]
        called = (seen["reason"] == OVERLAPPING).to_numpy()
        overlaps = other.query(places[true])[0] * PIXEL_NM < _REACH_NM
        near = gap * PIXEL_NM < _REACH_NM
        good = near & np.where(called, overlaps, (seen["species"] == species).to_numpy())
        occupied = species != "none"
        first = (sheet.sublattice[true] == 0) & near & ~called
        empty = (seen["species"] == "none").to_numpy()
        off = (at[nearest] - places[true])[near]
        off -= np.median(off, axis=0)  # a detector that lags moves the whole image
        counts = {
            "hits": float((good & occupied).sum()),
            "true": float(occupied.sum()),
            "found": float(((found["species"] != "none") | (found["reason"] == OVERLAPPING)).sum())
            - float((called & ~occupied).sum()),
            "overlapping": float((called & overlaps & occupied).sum()),
            "squares": float(np.square(off).sum()),
            "z_squares": float(np.square(off / seen["sigma_px"].to_numpy()[near, None]).sum()),
            "places": float(off.size),
            "gone": float((first & ~occupied).sum()),
            "gone_hit": float((first & ~occupied & empty).sum()),
            "gone_called": float((first & empty).sum()),
        }
        total = {name: total.get(name, 0.0) + value for name, value in counts.items()}
    return total


def _is_inside(places: Float) -> NDArray[np.bool_]:
    return np.asarray(((places > _RIM_PX) & (places < SIDE_PX - 1 - _RIM_PX)).all(1))


_FIGURES = (
    *("by_hand", "twist", "z", "hits", "true", "found", "overlapping"),
    *("squares", "z_squares", "places", "gone", "gone_hit", "gone_called"),
)


def gather_scores(rows: list[dict[str, float]], material: str, limits: str) -> MoireScore:
    frame = pd.DataFrame(rows).reindex(columns=list(_FIGURES))
    total = frame.sum()
    nothing = float("nan")

    def share(one: str, of: str) -> float:
        return float(total[one] / total[of]) if total[of] else nothing

    return MoireScore(
        material=material,
        range_deg=limits,
        images=len(frame),
        answered=int(frame["twist"].notna().sum()),
        twist_error_deg=float(frame["twist"].median()),
        twist_worst_deg=float(frame["twist"].max()),
        twist_z=float(np.sqrt((frame["z"] ** 2).mean())),
        by_hand_deg=float(frame["by_hand"].median()),
        f1=float(2.0 * total["hits"] / max(float(total["true"] + total["found"]), 1.0)),
        overlapping=share("overlapping", "true"),
        place_error_pm=1e3 * PIXEL_NM * float(np.sqrt(share("squares", "places"))),
        place_z=float(np.sqrt(share("z_squares", "places"))),
        vacancies=int(total["gone"]),
        vacancies_recall=share("gone_hit", "gone"),
        vacancies_precision=share("gone_hit", "gone_called"),
    )


def read_by_hand(image: Float, names: list[str]) -> float:
    """The twist by the strongest Bragg peak of either layer in the spectrum, degrees in [0, 30]; no distortion is
    corrected."""
    weight = np.outer(*(np.hanning(side) for side in image.shape))
    power = np.abs(fft.fftshift(fft.fft2((image - image.mean()) * weight))) ** 2
    middle = np.array(image.shape) // 2
    lengths = [2.0 / np.sqrt(3.0) * PIXEL_NM / find_crystal(name).lattice_nm for name in names]
    tops = np.argwhere(power == ndimage.maximum_filter(power, 5))
    vectors = (tops - middle) / np.array(image.shape)
    far = np.hypot(*vectors.T)
    kept = (far > 0.94 * min(lengths)) & (far < 1.06 * max(lengths))
    order = np.argsort(power[tuple(tops[kept].T)])[::-1]
    angles = np.rad2deg(np.arctan2(*vectors[kept][order].T)) % 60.0
    off = np.abs((angles - angles[0] + 30.0) % 60.0 - 30.0)
    # Peaks of the same layer lie within a degree or two of a turn by 60°.
    other = np.flatnonzero(off > 1.5)
    return float(off[other[0]]) if len(other) else 0.0
