"""An ADF-STEM image of a crystal, ready to be measured: gray, periodic, calibrated by its lattice, its sites known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
from flatscope.electron.levelling import quieten
from flatscope.electron.physics.crystals import CRYSTALS, Crystal, find_crystal
from flatscope.electron.sites import Readings, Sites, level, list_sites, measure_sites
from flatscope.electron.stacking import find_others
from flatscope.electron.sublattices import SURE_P, Naming, weigh_brightness, weigh_defects
from flatscope.micrograph import Calibration, Micrograph, MicrographError, Stack
from flatscope.results import shortest_vectors

Float = NDArray[np.float64]

_OFF_SHARE = 0.03  # error of a stated pixel size that is corrected with a note
_WRONG_SHARE = 0.45  # error that means another material
_REL_SIGMA = 0.01  # of a pixel size by the lattice: scans are calibrated differently along rows and columns
_MUCH_BARE = 0.03  # share of a field without lattice that is worth a note
_DISTORTED = 1.05  # ratio of lattice vectors that is worth a note
_ALIKE = 0.8  # ratio of their mean peaks up to which high angles tell sublattices apart
_CLEAR = 3.0  # sigmas by which sublattices differ that are not alike
_UNLIKELY = 0.6  # share of the expected ratio below which the image shows another material
ALIKE = "both sublattices are about as bright, or either could be the brighter one"
_AS_BRIGHT = 0.95  # ratio from which they may be those of a 2H bilayer, metal and chalcogens in every column


@dataclass(frozen=True)
class _Superstructure:
    """Which waves of a larger cell are sought, and when they are clear."""

    lowest: float = 0.4  # length over that of the lattice's first wave: longer waves are background
    highest: float = 1.9  # shorter ones are not resolved
    aside: float = 0.07  # by how much waves that tell the noise miss all those of half and a third
    share: float = 0.25  # of the lattice's amplitude; single dopants at random reach 0.1 and less
    over: float = 16.0  # power over the noise's mean: once in e^16 waves by chance


_SUPER = _Superstructure()
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
    sublattice_p
        Probability that the sublattices are as `sites` has them.
    levelled, readings
        See `flatscope.electron.sites.level` and `measure_sites`.
    """

    image: Float
    sites: Sites
    calibration: Calibration
    sublattice_p: float
    levelled: Float
    readings: Readings

    @property
    def sure(self) -> bool:
        """Whether the sublattices are taken for known."""
        return self.sublattice_p >= SURE_P


def open_scan(
    micrograph: Micrograph,
    material: str,
    notes: list[str],
    *,
    brighter: str = "auto",
    inner_mrad: float | None = None,
    dopants: Sequence[str] = (),
) -> Scan:
    """Find the lattice of a material in an image, and which sublattice is which.

    Parameters
    ----------
    material, brighter, inner_mrad
        See `flatscope.electron.columns.ColumnParams`.
    notes
        What a reader should know is added.
    dopants
        Elements that are known to be there.

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
    refuse_superstructure(image, phases, crystal, micrograph.source)
    refuse_stack(image, phases, micrograph.source)
    places, _ = find_honeycomb(fold_cell(image, phases))
    bright, spread = measure_honeycomb(image, phases, places)
    warn_of_lattice(phases, crystal, notes)
    if crystal.first == crystal.second and _compare(bright) + _CLEAR * spread < _UNLIKELY:
        raise MicrographError(
            f"{micrograph.source}: its two sublattices differ in brightness (1 to {_compare(bright):.2f}), those of "
            f"{crystal.name} do not: check --material"
        )
    naming = _name_brighter(bright, spread, crystal, brighter, inner_mrad)
    sites = list_sites(phases, places, first=naming.first)
    levelled = level(image, lattice.constant_px, crystal=phases.crystal)
    readings = measure_sites(levelled, sites)
    if brighter == "auto":
        naming = weigh_defects(naming, sites, readings, crystal, dopants)
        if naming.p < 0.5:
            naming, sites = naming.swap(), sites.swap()
            readings = replace(readings, quiet=readings.quiet[::-1])
    warn_of_sublattices(naming, bright, crystal, notes, brighter=brighter)
    return Scan(image, sites, calibration, naming.p, levelled, readings)


def refuse_superstructure(image: Float, phases: Phases, crystal: Crystal, source: str) -> None:
    """Refuse an image whose unit cell is larger than this crystal's: of another phase, or of another material.

    Waves of half and of a third of the lattice's own frequencies are weighed against waves that fit no cell, which
    point defects at random and noise fill alike.

    Raises
    ------
    MicrographError
        If such waves are clear; says how strong they are against the lattice's.
    """
    flat = quieten(image) * phases.crystal * np.outer(*(np.hanning(side) for side in image.shape))

    def measure(index: Float) -> float:
        turn = np.exp(-2j * np.pi * np.tensordot(index, phases.cell, 1))
        return float(np.abs((flat * turn).sum()))

    metric = phases.lattice.reciprocal @ phases.lattice.reciprocal.T
    grid = np.array([(h, k) for h in range(-12, 13) for k in range(-12, 13) if (h, k) > (0, 0)]) / 6.0
    length = np.sqrt(np.einsum("ni,ij,nj->n", grid, metric, grid) / metric[0, 0])
    near = grid[(length > _SUPER.lowest) & (length < _SUPER.highest)]
    whole, half, third = (near[np.isclose(near * part, np.rint(near * part)).all(1)] for part in (1, 2, 3))
    own = np.square([measure(index) for index in whole]).sum()
    aside = near[np.abs(near * 6 % 2 - 1.0).max(1) < 0.5] + _SUPER.aside
    noise = float(np.mean([measure(index) ** 2 for index in aside]))
    for index, words in ((half, "doubled"), (third, "tripled")):
        power = np.array([measure(one) ** 2 for one in index if not np.isclose(one, np.rint(one)).all()])
        share = float(np.sqrt(max(power.sum() - len(power) * noise, 0.0) / max(own, 1e-300)))
        if share > _SUPER.share and power.max() > _SUPER.over * noise:
            other = (
                f"not 2H {crystal.name}; 1T' (ReS2, WTe2), or another material?"
                if crystal.is_dichalcogenide
                else (f"not {crystal.name}, or {crystal.name} on a crystal?")
            )
            raise MicrographError(
                f"{source}: its cell is {words}, with waves {share:.0%} as strong as those of the lattice: {other}"
            )


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
    naming = _name_brighter(bright, 0.0, crystal, brighter, None)
    warn_of_sublattices(naming, bright, crystal, notes, brighter=brighter)
    return naming.first, naming.sure


def _name_brighter(
    bright: Float, error: float, crystal: Crystal, brighter: str, inner_mrad: float | None
) -> Naming:
    if brighter != "auto":
        return Naming(crystal.sublattices.index(brighter), 1.0)
    return weigh_brightness(_compare(bright), error, crystal, inner_mrad=inner_mrad)


def warn_of_sublattices(
    naming: Naming, bright: Float, crystal: Crystal, notes: list[str], *, brighter: str
) -> None:
    """Add what a reader should know of the sublattices."""
    alike = _compare(bright)
    if not naming.sure:
        way = f"--brighter {' or '.join(crystal.sublattices)} settles it, --inner-mrad may"
        if crystal.is_dichalcogenide and alike > _AS_BRIGHT:
            way = f"a monolayer at medium angles ({way}), or an untwisted 2H bilayer, which nothing here settles"
        brightest = crystal.sublattices[naming.first]
        notes.append(
            f"{ALIKE} (1 to {alike:.2f}; the {brightest} is brighter with p = {naming.p:.2f}): {way}"
        )
    expected = crystal.dimmer_share
    if alike < _UNLIKELY * expected:
        notes.append(
            f"its sublattices differ in brightness (1 to {alike:.2f}) by more than those of {crystal.name} should "
            f"(1 to {expected:.2f}): check --material"
        )
    elif brighter != "auto" and naming.first != crystal.brighter and alike < _ALIKE:
        notes.append(
            f"--brighter {brighter} against what high angles show of {crystal.name} (1 to {alike:.2f}): check it"
        )


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
