"""An ADF-STEM image of a crystal, ready to be measured: gray, periodic, calibrated by its lattice, its sites known."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.lattice import (
    Lattice,
    NoLatticeError,
    Phases,
    find_honeycomb,
    find_lattice,
    fold_cell,
    map_phases,
    measure_honeycomb,
)
from flatscope.electron.physics.crystals import CRYSTALS, Crystal, find_crystal
from flatscope.electron.sites import Sites, list_sites
from flatscope.electron.stacking import find_others
from flatscope.micrograph import Calibration, Micrograph, MicrographError, Stack
from flatscope.results import shortest_vectors

Float = NDArray[np.float64]

_OFF_SHARE = 0.03  # error of a stated pixel size that is corrected with a note
_WRONG_SHARE = 0.45  # error that means another material
_REL_SIGMA = 0.01  # of a pixel size by the lattice: scans are calibrated differently along rows and columns
_MUCH_BARE = 0.03  # share of a field without lattice that is worth a note
_DISTORTED = 1.05  # ratio of lattice vectors that is worth a note
_ALIKE = 0.8  # ratio of their mean peaks from which sublattices look alike
_CLEAR = 3.0  # sigmas by which sublattices differ that are not alike
_UNLIKELY = 0.6  # share of the expected ratio below which the image shows another material
ALIKE = "both sublattices are about as bright, high angles tell which is which"
_AS_BRIGHT = 0.95  # ratio from which they may be those of a 2H bilayer, metal and chalcogens in every column
SATURATED_SHARE = 0.01  # saturated pixels that are worth a note


@dataclass(frozen=True)
class Scan:
    """An image and the sites of its lattice.

    Parameters
    ----------
    image
        Shape (rows, cols), the darkest pixel at 0 and the bright ones at 1.
    sites
        Sublattice 0 is the crystal's first one, as far as known.
    calibration
        Pixel size by the lattice.
    sure
        Whether brightness tells the sublattices apart, or the user did.
    """

    image: Float
    sites: Sites
    calibration: Calibration
    sure: bool


def open_scan(micrograph: Micrograph, material: str, notes: list[str], *, brighter: str = "auto") -> Scan:
    """Find the lattice of a material in an image, and which sublattice is which.

    Parameters
    ----------
    material, brighter
        See `flatscope.electron.columns.ColumnParams`.
    notes
        What a reader should know is added.

    Raises
    ------
    MicrographError
        If the image is coloured or constant, shows no hexagonal lattice, one that is not this material's, or two.
    """
    crystal = find_crystal(material)
    image = prepare(micrograph, notes)
    stated = micrograph.calibration
    expected = None if stated is None else crystal.lattice_nm / float(np.mean(stated.pixel_size_nm))
    try:
        lattice = find_lattice(image, expected_px=expected)
    except NoLatticeError as error:
        raise MicrographError(f"{micrograph.source}: not periodic: {error}") from None
    calibration = calibrate(micrograph, lattice, crystal, notes)
    phases = map_phases(image, lattice)
    refuse_stack(image, phases, micrograph.source)
    places, _ = find_honeycomb(fold_cell(image, phases))
    bright, spread = measure_honeycomb(image, phases, places)
    warn_of_lattice(phases, crystal, notes)
    if crystal.first == crystal.second and _compare(bright) + _CLEAR * spread < _UNLIKELY:
        raise MicrographError(
            f"{micrograph.source}: its two sublattices differ in brightness (1 to {_compare(bright):.2f}), those of "
            f"{crystal.name} do not: check --material"
        )
    first, sure = order_sublattices(bright, crystal, notes, brighter=brighter)
    return Scan(image, list_sites(phases, places, first=first), calibration, sure)


def refuse_stack(image: Float, phases: Phases, source: str) -> None:
    """Refuse an image of two layers, whose columns are no monolayer's.

    Raises
    ------
    MicrographError
        If a second lattice lies on the first; says how they are twisted.
    """
    for other in find_others(image, phases):
        raise MicrographError(f"{source}: two lattices, {other.to_words()}: flatscope moire")


def _compare(bright: Float) -> float:
    """Height of the dimmer site over that of the brighter one."""
    return float((bright[1] - bright[2]) / (bright[0] - bright[2]))


def order_sublattices(
    bright: Float, crystal: Crystal, notes: list[str], *, brighter: str
) -> tuple[int, bool]:
    """Which sublattice the brighter one is (0 or 1), and whether brightness or the user says so.

    Parameters
    ----------
    bright
        Of the brighter site, the dimmer one and the hollow, see `flatscope.electron.lattice.find_honeycomb`.
    notes
        What a reader should know is added.
    brighter
        See `flatscope.electron.columns.ColumnParams`.
    """
    alike = _compare(bright)
    sure = brighter != "auto" or crystal.first == crystal.second or alike <= _ALIKE
    if not sure:
        way = f"--brighter {' or '.join(crystal.sublattices)} settles it"
        if crystal.is_dichalcogenide and alike > _AS_BRIGHT:
            way = f"a monolayer at medium angles ({way}), or an untwisted 2H bilayer, which nothing here settles"
        notes.append(f"{ALIKE} (1 to {alike:.2f}): {way}")
    expected = crystal.dimmer_share
    if alike < _UNLIKELY * expected:
        notes.append(
            f"its sublattices differ in brightness (1 to {alike:.2f}) by more than those of {crystal.name} should "
            f"(1 to {expected:.2f}): check --material"
        )
    elif brighter != "auto" and crystal.sublattices.index(brighter) != crystal.brighter and alike < _ALIKE:
        notes.append(
            f"--brighter {brighter} against what high angles show of {crystal.name} (1 to {alike:.2f}): check it"
        )
    first = crystal.brighter if brighter == "auto" else crystal.sublattices.index(brighter)
    return first, sure


def prepare(micrograph: Micrograph, notes: list[str]) -> Float:
    """The image with its darkest pixel at 0 and its bright ones at 1."""
    if not micrograph.is_gray:
        raise MicrographError(f"{micrograph.source}: is coloured: an ADF image has one channel")
    pixels = micrograph.pixels if micrograph.pixels.ndim == 2 else micrograph.pixels[..., 0]
    image = np.asarray(pixels, float)
    low, high = float(image.min()), float(image.max())
    if high <= low:
        raise MicrographError(f"{micrograph.source}: all pixels are {low:g}: nothing to see")
    top = float((image >= high).mean())
    if top > SATURATED_SHARE:
        notes.append(f"{top:.0%} of the pixels are saturated")
    return np.asarray((image - low) / (float(np.quantile(image, 0.995)) - low + 1e-12))


def calibrate(
    micrograph: Micrograph | Stack, lattice: Lattice, crystal: Crystal, notes: list[str]
) -> Calibration:
    """Pixel size by the lattice; the stated one is compared with it."""
    size = crystal.lattice_nm / lattice.constant_px
    if micrograph.calibration is None:
        notes.append(f"pixel size {size:.5f} nm by the lattice of {crystal.name}, as the file states none")
        return Calibration((size, size), "lattice", _REL_SIGMA)
    stated = float(np.mean(micrograph.calibration.pixel_size_nm))
    off = stated / size - 1.0
    wanted = stated * lattice.constant_px
    if abs(off) > _WRONG_SHARE:
        raise MicrographError(
            f"{micrograph.source}: its lattice constant is {wanted:.3f} nm at {stated:.4f} nm a "
            f"pixel, {crystal.name} has {crystal.lattice_nm:.3f} nm: check --material and --nm-per-px"
        )
    if abs(off) > _OFF_SHARE:
        nearest = min(CRYSTALS.values(), key=lambda one: abs(np.log(one.lattice_nm / wanted)))
        other = f"; if it were right, {nearest.name} would fit better" if nearest.name != crystal.name else ""
        notes.append(
            f"the stated pixel size {stated:.5f} nm is off by {off:+.0%}: {size:.5f} nm by the lattice is used{other}"
        )
    return Calibration((size, size), "lattice", _REL_SIGMA)


def warn_of_lattice(phases: Phases, crystal: Crystal, notes: list[str]) -> None:
    """What a reader of the table should know of the lattice."""
    bare = 1.0 - float(phases.crystal.mean())
    if bare > _MUCH_BARE:
        notes.append(f"{bare:.0%} of the field shows no such lattice and is left out")
    lengths = shortest_vectors(phases.lattice.vectors) / phases.lattice.constant_px * crystal.lattice_nm
    if lengths[2] > _DISTORTED * lengths[0]:
        said = ", ".join(f"{length:.3f}" for length in lengths)
        notes.append(
            f"the scan is distorted: lattice vectors of {said} nm where {crystal.name} has three of "
            f"{crystal.lattice_nm:.3f}; positions in nm and the model are as distorted"
        )
