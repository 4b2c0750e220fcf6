"""What an experimental ADF-STEM image teaches: its lattice, its noise, and the microscopes that show it so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from flatscope.electron.drawing.appearance import Look, expose, measure_constant, open_drawn
from flatscope.electron.drawing.crops import choose_side, cut_all, find_noise, flatten
from flatscope.electron.drawing.noise import find_repeating, fit_noise, smear
from flatscope.electron.drawing.specimens import draw_microscope
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.physics.crystals import SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.scans import Scan
from flatscope.electron.sites import Sites, cut_crops, find_axes
from flatscope.micrograph import MicrographError
from flatscope.parallel import map_in_order

Float = NDArray[np.float64]
Real = NDArray[np.float32]

_LEAST_CROPS = 64  # crops that half an image must hold
_TRIED = 60  # microscopes that are tried
_TUNED = 0.3  # share of them that are tuned
_CELLS = 6  # unit cells a side that they are tried on
# Keep at most six microscopes, none more than three times worse than the best.
_MATCHED = 6
_WORSE = 3.0
_INNER_MRAD = (40.0, 100.0)  # range of the detector's inner angle
_OUTER_MRAD = 200.0  # its outer angle
_STEPS = (2.0, 2.0, 1.0, 1.0, 200.0, 200.0, 200.0, 200.0, 0.02)
"""What makes about the same difference: nm of defocus, µm of spherical aberration, nm of astigmatism, coma and trefoil
along their axes, and nm of blur."""
_TUNINGS = 12  # rounds of tuning
_TUNING_STEP = 1e-3  # relative step of its differences
_UNSEEN = 3.0  # difference to an image in which no lattice is seen


@dataclass(frozen=True)
class Teacher:
    """An experimental image, cut in two.

    Parameters
    ----------
    look
        Of the image.
    crops, held
        Shape (n, side, side): of the left half, which is learned from, and of the right one.
    image
        Shape (rows, cols), see `flatscope.electron.drawing.crops.flatten`.
    source
        Its name.
    """

    look: Look
    crops: Real
    held: Real
    image: Float
    source: str


def learn_look(
    opened: Scan, material: str, *, source: str, seed: int = 0, tried: int = _TRIED, workers: int = 2
) -> Teacher:
    """What an experimental image teaches: its left half, the right one held out.

    Raises
    ------
    MicrographError
        The image is too small for two halves of crops.
    """
    image = flatten(opened.image, opened.sites.phases)
    middle = image.shape[1] // 2
    axes = find_axes(opened.sites, 0)
    side = choose_side(measure_constant(axes))
    crops = cut_all(image.astype(np.float32), opened.sites, side=side)
    left, right = crops.corners[:, 1] + side <= middle, crops.corners[:, 1] >= middle
    least = min(int(left.sum()), int(right.sum()))
    if least < _LEAST_CROPS:
        raise MicrographError(
            f"{source}: {image.shape[1]}x{image.shape[0]} px hold {least} crops of {side} px in half of the "
            f"field: {_LEAST_CROPS} are needed"
        )
    part = image[:, :middle]
    look = Look(
        find_crystal(material).name,
        opened.calibration.pixel_size_nm[0],
        axes,
        find_noise(image, opened.sites.phases),
        fit_noise(part),
        float(find_repeating(part).min()),
        (),
    )
    usual = _show_usual(image, opened.sites)
    microscopes = _match_microscopes(look, usual, seed=seed, tried=tried, workers=workers)
    look = replace(look, microscopes=microscopes)
    return Teacher(look, crops.images[left], crops.images[right], image, source)


def _show_usual(image: Float, sites: Sites) -> Real:
    """The median surroundings of a site of the first sublattice, see `flatscope.electron.sites.cut_crops`."""
    return cut_crops(image, sites, some=np.flatnonzero(sites.sublattice == 0)[:1])[0, 1]


def _match_microscopes(
    look: Look, usual: Real, *, seed: int, tried: int, workers: int
) -> tuple[ScanParams, ...]:
    """Of microscopes at random those that show the perfect crystal most like an image does, once they are tuned."""
    jobs = [(look, usual, seed, index) for index in range(tried)]
    by_gap = itemgetter(0)
    compared = sorted(map_in_order(_try_microscope, jobs, workers=workers), key=by_gap)
    best = [(look, usual, microscope) for _, microscope in compared[: round(_TUNED * tried)]]
    tuned = list(map_in_order(_tune_microscope, best, workers=workers))
    found = sorted(tuned + compared[len(tuned) :], key=by_gap)[:_MATCHED]
    return tuple(microscope for gap, microscope in found if gap <= _WORSE * found[0][0])


def _try_microscope(job: tuple[Look, Real, int, int]) -> tuple[float, ScanParams]:
    """Mean square of how far a microscope at random is from what an image shows, and the microscope."""
    look, usual, seed, index = job
    rng = np.random.default_rng([seed, index])
    inner = float(rng.uniform(*_INNER_MRAD))
    microscope = draw_microscope(rng, pixel_nm=look.pixel_nm, misaligned=1.0)
    microscope = replace(microscope, collection_mrad=(inner, _OUTER_MRAD))
    return float(np.square(_compare_usual(look, usual, microscope)).mean()), microscope


def _tune_microscope(job: tuple[Look, Real, ScanParams]) -> tuple[float, ScanParams]:
    """A microscope whose aberrations and blur are fitted to what an image shows; how far off it is counts, as in
    `_try_microscope`, and also how unusual it is."""
    look, usual, start = job
    steps = np.array(_STEPS)

    def measure_misfit(values: Float) -> Float:
        """What is left, and how far from usual the microscope is."""
        left = _compare_usual(look, usual, _set_aberrations(start, values * steps))
        return np.concatenate([left.ravel(), values])

    fit = least_squares(
        measure_misfit, _list_aberrations(start) / steps, diff_step=_TUNING_STEP, max_nfev=_TUNINGS
    )
    return 2.0 * float(fit.cost) / usual.size, _set_aberrations(start, fit.x * steps)


def _list_aberrations(microscope: ScanParams) -> Float:
    """Defocus, spherical aberration, those with a direction along both axes, and blur."""
    turned = [
        strength * np.exp(1j * fold * np.deg2rad(direction))
        for strength, direction, fold in (
            (microscope.astigmatism_nm, microscope.astigmatism_deg, 2),
            (microscope.coma_nm, microscope.coma_deg, 1),
            (microscope.trefoil_nm, microscope.trefoil_deg, 3),
        )
    ]
    axes = np.array(turned).view(float)
    return np.array([microscope.defocus_nm, microscope.spherical_um, *axes, microscope.source_nm])


def _set_aberrations(microscope: ScanParams, values: Float) -> ScanParams:
    """The inverse of `_list_aberrations`."""
    two, one, three = values[2:8:2] + 1j * values[3:8:2]
    return replace(
        microscope,
        defocus_nm=float(values[0]),
        spherical_um=float(values[1]),
        astigmatism_nm=float(abs(two)),
        astigmatism_deg=float(np.rad2deg(np.angle(two)) / 2.0),
        coma_nm=float(abs(one)),
        coma_deg=float(np.rad2deg(np.angle(one))),
        trefoil_nm=float(abs(three)),
        trefoil_deg=float(np.rad2deg(np.angle(three)) / 3.0),
        source_nm=float(abs(values[8])),
    )


def _compare_usual(look: Look, usual: Real, microscope: ScanParams) -> Real:
    """How much brighter the surroundings of a site of a perfect crystal are than an image shows them."""
    rng = np.random.default_rng(0)
    side = _CELLS * look.constant_px
    scanned = expose(rng, look, SheetParams(look.material), microscope, side=side)
    try:
        seen = open_drawn(smear(scanned.mean, look.scan.lag), scanned.sheet, look)
    except NoLatticeError:
        return np.full_like(usual, _UNSEEN)
    return _show_usual(seen.image, seen.sites) - usual
