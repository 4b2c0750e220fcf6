"""Windows of six kinds of point defect, named under noise, and the best accuracy that noise allows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.drawing.noise import SPOILS, NoiseParams, scan, spoil
from flatscope.electron.drawing.specimens import draw_microscope
from flatscope.electron.kinds import D_M, M_X2, SITE_KINDS, V_M, V_X, V_X2, X_M, Kind, classify_sites
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.physics.crystals import Sheet, SheetParams, build_sheet, find_crystal, refill
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.electron.sites import cut_crops, find_sites, level
from flatscope.evaluation.metrics import Interval, Score, binomial_interval
from flatscope.inference.runtime import Network

Float = NDArray[np.float64]

MATERIAL = "WS2"
DOPANT = "Mo"  # on tungsten sites
WINDOW_PX = 64  # side of a window
WINDOW_NM = 1.7  # and in nm, about five lattice constants
KINDS = (V_M, V_X, V_X2, M_X2, X_M, D_M)
"""Six kinds of window: vacancies of W, of S and of both S, W on both S, S on W, and a dopant (Mo) on W."""
_SPECIES = ("", "S", "", "W", "S", "Mo")  # what stands on the site of each kind
_FIELD_PX = 256  # side of a drawn sheet
_SPOILT_VARIANCE = 0.01  # of Gaussian noise in windows, whose values go from 0 to 1
_DRIFT_SEED = 31  # of coma and trefoil
_BOUND_SEED = 29  # of what follows, for the best possible accuracy
_BOUND_SHEETS = 12  # microscopes
_BOUND_DRAWS = 200  # draws of each kind by each
_BOUND_PX = 32  # side of the part of a window that is looked at


@dataclass(frozen=True)
class Windows:
    """Windows around defects.

    Parameters
    ----------
    images
        Shape (n, 64, 64), floating or of 8 bits.
    crops
        Shape (n, 2, 24, 24): the same defects as flatscope sees them.
    kinds
        Shape (n,): places in `KINDS`.
    sheets
        Shape (n,): the configuration each was cut from.
    """

    images: NDArray[Any]
    crops: NDArray[np.float32]
    kinds: NDArray[np.int64]
    sheets: NDArray[np.int64]

    def take(self, rows: NDArray[Any]) -> Windows:
        """Some of them."""
        return Windows(self.images[rows], self.crops[rows], self.kinds[rows], self.sheets[rows])


def draw_windows(
    count: int,
    *,
    seed: int,
    electrons_per_px: float | None = None,
    noise: str = "none",
    misaligned: float = 0.0,
) -> Windows:
    """Draw windows of WS2 around defects of six kinds, from sheets with their own microscope and orientation.

    Parameters
    ----------
    count
        Sheets; each gives about fifteen windows.
    seed
        Sheet i has the random stream (seed, i).
    electrons_per_px
        Of a scan with lag and jitter; None for an image without counting noise.
    noise
        "none", or one of `flatscope.electron.drawing.noise.SPOILS`, on top.
    misaligned
        Strength of coma and trefoil, see `flatscope.electron.drawing.specimens.draw_microscope`.
    """
    parts = [_draw_windows(seed, index, electrons_per_px, noise, misaligned) for index in range(count)]
    sheets = np.repeat(np.arange(count), [len(part[2]) for part in parts])
    images, crops, kinds = (np.concatenate([part[place] for part in parts]) for place in range(3))
    return Windows(images, crops, kinds, sheets)


@dataclass(frozen=True)
class Field:
    """A drawn field of defects of six kinds.

    Parameters
    ----------
    image
        Shape (256, 256).
    pixel_nm
        Its pixel size.
    places, classes
        Every site of the crystal, shape (n, 2) in pixels, and its place in `SITE_KINDS`, shape (n,).
    """

    image: Float
    pixel_nm: float
    places: Float
    classes: NDArray[np.int64]


def draw_field(
    seed: int, index: int, *, electrons_per_px: float | None, noise: str = "none", misaligned: float = 0.0
) -> Field:
    """Draw a sheet of WS2 with defects of six kinds on 1.2 % of their sites each, under a microscope of its own.

    Parameters
    ----------
    seed, index
        Of the random stream.
    electrons_per_px, noise, misaligned
        See `draw_windows`.
    """
    rng = np.random.default_rng([seed, index])
    crystal = find_crystal(MATERIAL)
    pixel_nm = WINDOW_NM / WINDOW_PX
    side = (_FIELD_PX * pixel_nm,) * 2
    sheet = build_sheet(
        rng,
        SheetParams(
            MATERIAL,
            side,
            turn_deg=float(rng.uniform(0.0, 360.0)),
            shift_nm=(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
            vacancies={"first": 0.012, "one": 0.012, "both": 0.012},
            dopant=DOPANT,
            dopant_share=0.012,
            antisites=0.012,
        ),
    )
    optics = _misalign(_draw_optics(rng), misaligned, seed=index)
    image = draw_adf(sheet, optics, shape=(_FIELD_PX, _FIELD_PX))
    places = sheet.sites_nm / pixel_nm
    if electrons_per_px is not None:
        mean = image / float(image.mean()) * electrons_per_px
        params = NoiseParams(
            gain=1.0, lag=float(rng.uniform(0.0, 0.2)), jitter_px=float(rng.uniform(0.0, 0.3))
        )
        scanned, places = scan(rng, mean, params, sites_px=places)
        image = np.asarray(scanned, float)
    if noise != "none":
        image = spoil(rng, image, noise, variance=_SPOILT_VARIANCE)
    return Field(np.asarray(image, float), pixel_nm, places, classify_sites(sheet, crystal))


def _draw_windows(
    seed: int, index: int, electrons: float | None, noise: str, misaligned: float
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    field = draw_field(seed, index, electrons_per_px=electrons, noise=noise, misaligned=misaligned)
    image, places = field.image, field.places
    wanted = [SITE_KINDS.index(kind) for kind in KINDS]
    half = WINDOW_PX // 2
    inner = ((places > half) & (places < _FIELD_PX - half)).all(1)
    mine = np.flatnonzero(inner & np.isin(field.classes, wanted))
    nothing = (
        np.zeros((0, WINDOW_PX, WINDOW_PX), np.float32),
        np.zeros((0, 2, 24, 24), np.float32),
        np.zeros(0, int),
    )
    try:
        sites = find_sites(image, first=0, expected_px=find_crystal(MATERIAL).lattice_nm / field.pixel_nm)
    except NoLatticeError:
        return nothing
    constant = sites.phases.lattice.constant_px
    gap, at = cKDTree(sites.positions).query(places[mine])
    mine, at = mine[gap < 0.3 * constant], at[gap < 0.3 * constant]
    if not len(mine):
        return nothing
    crops = cut_crops(level(image, constant), sites, some=at)
    corners = np.rint(places[mine]).astype(int) - half
    images = np.stack([image[r : r + WINDOW_PX, c : c + WINDOW_PX] for r, c in corners])
    return images.astype(np.float32), crops, np.array([wanted.index(one) for one in field.classes[mine]])


def _draw_optics(rng: np.random.Generator) -> ScanParams:
    """A microscope as windows are drawn with."""
    return ScanParams(
        pixel_nm=WINDOW_NM / WINDOW_PX,
        convergence_mrad=float(rng.uniform(28.0, 32.0)),
        defocus_nm=float(rng.normal(0.0, 1.0)),
        source_nm=float(rng.uniform(0.03, 0.045)),
    )


def _misalign(optics: ScanParams, strength: float, *, seed: int) -> ScanParams:
    """A microscope whose corrector has drifted, whatever else was drawn."""
    drifted = draw_microscope(
        np.random.default_rng([_DRIFT_SEED, seed]), pixel_nm=optics.pixel_nm, misaligned=strength
    )
    names = ("coma_nm", "coma_deg", "trefoil_nm", "trefoil_deg")
    return replace(optics, **{name: getattr(drifted, name) for name in names})


def classify_windows(windows: Windows, network: Network) -> NDArray[np.int64]:
    """Name windows by flatscope's network, as places in `KINDS`; the lattice gives the sublattice of each defect."""
    wanted = np.array([SITE_KINDS.index(kind) for kind in KINDS])
    group = np.array([kind.sublattice for kind in KINDS])
    logits = network.run(windows.crops).mean((2, 3))[:, wanted]
    logits = np.where(group[None] == group[windows.kinds][:, None], logits, -np.inf)
    return np.asarray(logits.argmax(1))


def find_best_accuracy(
    noise: str, electrons_per_px: float | None, *, misaligned: float = 0.0
) -> float | None:
    """Find the share of windows that the largest likelihood names right if everything except the kind is known.

    Parameters
    ----------
    noise, electrons_per_px, misaligned
        See `draw_windows`. Of mixed noise only the Gaussian part counts, of a scan the counting; None for noise that
        hides nothing.

    Notes
    -----
    The six kinds are equally frequent, and which sublattice a defect is on is known.
    """
    if electrons_per_px is None and noise not in ("gaussian", "mixed"):
        return None
    right = []
    for index in range(_BOUND_SHEETS):
        rng = np.random.default_rng([_BOUND_SEED, index])
        images = _draw_kinds(rng, _misalign(_draw_optics(rng), misaligned, seed=index))
        middle = (images.shape[1] - _BOUND_PX) // 2
        seen = np.s_[:, middle : middle + _BOUND_PX, middle : middle + _BOUND_PX]
        for group in (0, 1):
            mine = images[[kind.sublattice == group for kind in KINDS]]
            for kind in range(len(mine)):
                if electrons_per_px is None:
                    templates = mine[seen] / np.ptp(images)
                    noisy = templates[kind] + np.sqrt(_SPOILT_VARIANCE) * rng.standard_normal(
                        (_BOUND_DRAWS, *templates.shape[1:])
                    )
                    gaps = [np.square(noisy - template).sum((1, 2)) for template in templates]
                    called = np.argmin(gaps, axis=0)
                else:
                    means = mine[seen] / images[0].mean() * electrons_per_px
                    called = classify_counts(
                        rng.poisson(means[kind], (_BOUND_DRAWS, *means.shape[1:])).astype(float), means
                    )
                right.append(float((called == kind).mean()))
    return float(np.mean(right))


def classify_counts(counts: Float, templates: Float) -> NDArray[np.int64]:
    """Which of several known images counts come from, by the largest likelihood.

    Parameters
    ----------
    counts
        Shape (n, rows, cols).
    templates
        Shape (kinds, rows, cols), mean counts.
    """
    means = np.maximum(templates, 1e-12).reshape(len(templates), -1)
    likelihood = counts.reshape(len(counts), -1) @ np.log(means).T - means.sum(1)
    return np.asarray(likelihood.argmax(1))


def _draw_kinds(rng: np.random.Generator, optics: ScanParams) -> Float:
    """Images of a crystal whose middle site holds each of `KINDS`, all others perfect, shape (6, 128, 128)."""
    side = 2 * WINDOW_PX
    field = (side * optics.pixel_nm,) * 2
    sheet = build_sheet(rng, SheetParams(MATERIAL, field, turn_deg=float(rng.uniform(0.0, 360.0))))
    away = np.hypot(*(sheet.sites_nm - 0.5 * np.array(field)).T)

    def put(kind: Kind, name: str) -> Sheet:
        species = sheet.species.copy()
        species[np.where(sheet.sublattice == kind.sublattice, away, np.inf).argmin()] = name
        return refill(sheet, species, MATERIAL)

    return np.stack(
        [
            draw_adf(put(kind, name), optics, shape=(side, side))
            for kind, name in zip(KINDS, _SPECIES, strict=True)
        ]
    )


@dataclass(frozen=True)
class DoseScore(Score):
    """Accuracy over the six kinds of window under one noise; `electrons_per_px` is None without counting noise, `best`
    is `find_best_accuracy`, `misaligned` the strength of coma and trefoil."""

    noise: str
    electrons_per_px: float | None
    misaligned: float
    accuracy: Interval
    best: float | None
    worst: str
    worst_recall: float
    windows: int

    def to_words(self) -> dict[str, str]:
        """By the heads of a table."""
        return {
            "name at given places": f"{self.noise}, corrector drifted" if self.misaligned else self.noise,
            "e/px": "" if self.electrons_per_px is None else f"{self.electrons_per_px:g}",
            "accuracy": str(self.accuracy),
            "best possible": "" if self.best is None else f"{self.best:.3f}",
            "worst kind": self.worst,
            "its recall": f"{self.worst_recall:.3f}",
            "windows": str(self.windows),
        }


def evaluate_windows(
    *,
    count: int = 40,
    seed: int = 17,
    doses: tuple[float, ...] = (3.0, 10.0, 30.0, 100.0, 300.0),
    weights: str = "defects",
    on_progress: Callable[[int, int], None] | None = None,
) -> list[DoseScore]:
    """Name windows of six kinds at the published noise, then against dose, then with a corrector that has drifted.

    Parameters
    ----------
    count
        Sheets for each line, none of which was trained on.
    doses
        Detected electrons a pixel of 0.027 nm, on average.
    """
    network = Network.load(weights, task="defects")
    runs: list[tuple[str, float | None, float]] = [(noise, None, 0.0) for noise in ("none", *SPOILS)]
    runs += [("scan", dose, misaligned) for misaligned in (0.0, 1.0) for dose in doses]
    crystal = find_crystal(MATERIAL)
    scores = []
    for place, (noise, dose, misaligned) in enumerate(runs):
        windows = draw_windows(
            count,
            seed=seed,
            electrons_per_px=dose,
            noise="none" if noise == "scan" else noise,
            misaligned=misaligned,
        )
        right = classify_windows(windows, network) == windows.kinds
        recall = [float(right[windows.kinds == kind].mean()) for kind in range(len(KINDS))]
        worst = int(np.argmin(recall))
        scores.append(
            DoseScore(
                noise,
                dose,
                misaligned,
                binomial_interval(int(right.sum()), len(right)),
                find_best_accuracy(noise, dose, misaligned=misaligned),
                KINDS[worst].name_in(crystal, "Mo"),
                recall[worst],
                len(right),
            )
        )
        if on_progress is not None:
            on_progress(place + 1, len(runs))
    return scores
