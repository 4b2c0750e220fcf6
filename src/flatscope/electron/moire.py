"""Twisted bilayers in an ADF-STEM image: both lattices, twist and strain, moiré, stacking, and columns a layer.

Both lattices are followed through the image (`flatscope.electron.stack_lattices`). The second is then measured in the
frame in which the first is a perfect hexagon: what the scan distorts, it distorts for both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from flatscope.electron.columns import build_model
from flatscope.electron.lattice import (
    NoLatticeError,
    Phases,
    find_honeycomb,
    find_lattice,
    fold_cell,
    map_phases,
)
from flatscope.electron.physics.crystals import GAPS_NM, Crystal, find_crystal
from flatscope.electron.scans import ALIKE, calibrate, order_sublattices, prepare
from flatscope.electron.stack_columns import find_places, list_columns
from flatscope.electron.stack_lattices import Pair, follow_both, repeat_mean
from flatscope.electron.stacking import find_others, make_hexagon
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.results import Atoms, Marks, MoireTable, Provenance, mark, shortest_vectors
from flatscope.results.view import make_preview

Float = NDArray[np.float64]

_OFF_SHARE = 0.1  # error of a stated pixel size that makes every row uncertain
_ODD_SIZE = (
    0.015  # difference of a ratio of lattice constants from the named materials' that speaks against them
)
_ALIKE_SIZE = 0.008  # ratio of lattice constants below which brightness tells two materials apart
_SMALL = 1e-7  # step of the numerical derivatives of what is measured
_UNLIKE = (
    0.5  # of a monolayer's ratio of brightness; drawn 3R bilayers of WSe2 show 0.4 of it, AB graphene 0.02
)
_AS_BRIGHT = (
    0.95  # ratio from which sublattices are those of a 2H bilayer, metal and chalcogens in every column
)
_CLEARLY = 3.0  # standard deviations from which a strain is there
_MUCH_SKEW = 0.05
"""Distortion of the scan from which strain is in doubt: what it changes from place to place is followed by polynomials
only."""


@dataclass(frozen=True)
class MoireParams:
    """Settings of `find_moire`.

    Parameters
    ----------
    material
        MoS2, WS2, MoSe2, WSe2, graphene or hBN; of two different layers both, such as MoS2/WSe2.
    brighter
        "auto", or which sublattice is the brighter one in either layer ("metal" or "chalcogen"; "a" or "b" in hBN).
    """

    material: str = "MoS2"
    brighter: str = "auto"

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        crystals = self.crystals
        names = {"auto", *(name for crystal in crystals for name in crystal.sublattices)}
        if self.brighter not in names:
            raise ValueError(f"brighter = {self.brighter!r}: choose one of {', '.join(sorted(names))}")

    @property
    def crystals(self) -> tuple[Crystal, Crystal]:
        """Of the first and the second layer."""
        names = self.material.split("/")
        if len(names) > 2:
            raise ValueError(
                f"material {self.material!r} names {len(names)} layers: flatscope moire reads two"
            )
        return find_crystal(names[0]), find_crystal(names[-1])


@dataclass(frozen=True)
class _Twist:
    """The second lattice in the first one's frame, with 1-sigma errors: `angle` in radians in (-30°, 30°], ratio of
    lattice constants, pure shear of the second layer, and the moiré's period in lattice constants of the first."""

    angle: float
    sigma: float
    ratio: float
    ratio_sigma: float
    shear: float
    shear_sigma: float
    period: float
    period_sigma: float


def find_moire(micrograph: Micrograph, params: MoireParams = MoireParams()) -> MoireTable:
    """Measure a twisted bilayer in an ADF-STEM image.

    Parameters
    ----------
    micrograph
        Gray, bright where atoms are.
    params
        The materials of both layers.

    Returns
    -------
    MoireTable
        One row, the pair of layers: `twist_deg` with its 1-sigma error (in [0, 60] where brightness tells which way
        each layer points, else in [0, 30]), strain of the second layer against the first, period of the moiré, and the
        shares of the field in each stacking. `MoireTable.columns` holds the columns of both layers.

    Raises
    ------
    MicrographError
        If the image shows no lattice, one lattice only, or three.

    Notes
    -----
    The first layer is taken to be unstrained, so that the scan's distortion cancels. An image does not tell which layer
    is on top. Where the layers are bent against each other, by relaxation or by handling, they are followed in windows
    of 1.5 nm, and the errors are those by which large parts of the field differ. Below about 2° in fields of 10 nm the
    lattices' peaks merge.

    Examples
    --------
    >>> from flatscope.electron.drawing.noise import NoiseParams
    >>> from flatscope.electron.drawing.stacks import BilayerParams, LayerParams, draw_bilayer
    >>> from flatscope.electron.physics.imaging import ScanParams
    >>> layers = BilayerParams((LayerParams("MoS2", 7.0), LayerParams("MoS2", 20.0, (0.1, 0.05))))
    >>> rng = np.random.default_rng(1)
    >>> drawn = draw_bilayer(rng, layers, ScanParams(0.025), NoiseParams(), shape=(256, 256), electrons_per_px=10.0)
    >>> image = np.asarray(drawn.scanned.image, float)
    >>> scale = Calibration((0.025, 0.025), "user")
    >>> table = find_moire(Micrograph(image, full_scale=float(image.max()), calibration=scale))
    >>> bool(abs(table.frame["twist_deg"][0] - 13.0) < 0.1)
    True
    """
    notes: list[str] = []
    image = prepare(micrograph, notes)
    pair = _find_both(image, micrograph, params)
    crystals, pair = _assign(pair, params)
    calibration = calibrate(micrograph, pair.layers[0].lattice, crystals[0], notes)
    twist = _measure(pair)
    polar = [
        order_sublattices(find_places(layer)[1], crystal, notes, brighter=_brighter(params, crystal))
        for layer, crystal in zip(pair.layers, crystals, strict=True)
    ]
    places = [
        find_places(layer)[0][[which, 1 - which]]
        for layer, (which, _) in zip(pair.layers, polar, strict=True)
    ]
    sure = all(known for _, known in polar)
    row = _describe(twist, pair, places, crystals, sure=sure, calibration=calibration)
    frame = _judge(pd.DataFrame([row]), micrograph, pair, twist, crystals, calibration)
    found = list_columns(pair, places, crystals, pixel_nm=calibration.pixel_size_nm[0], image=micrograph.name)
    if not sure:
        found = mark(found, found["status"] == "accepted", status="uncertain", reason=ALIKE)
    return MoireTable(
        frame.assign(image=micrograph.name),
        Marks.points([1], [0.5 * image.shape[0]], [0.5 * image.shape[1]], micrograph.shape),
        calibration,
        Provenance.of(micrograph, params, notes=tuple(dict.fromkeys(notes))),
        found,
        _find_stacking(pair, places),
        build_stack(found, crystals, calibration, shape=micrograph.shape),
        preview=make_preview(micrograph),
    )


def _brighter(params: MoireParams, crystal: Crystal) -> str:
    return params.brighter if params.brighter in crystal.sublattices else "auto"


def _find_both(image: Float, micrograph: Micrograph, params: MoireParams) -> Pair:
    """Both lattices, if there are two."""
    stated = micrograph.calibration
    crystal = params.crystals[0]
    expected = None if stated is None else crystal.lattice_nm / float(np.mean(stated.pixel_size_nm))
    try:
        lattice = find_lattice(image, expected_px=expected)
    except NoLatticeError as error:
        raise MicrographError(f"{micrograph.source}: not periodic: {error}") from None
    phases = map_phases(image, lattice)
    others = find_others(image, phases, most=2)
    if not others:
        raise MicrographError(
            f"{micrograph.source}: one lattice only: {_explain_one(image, phases, crystal)}: flatscope atoms"
        )
    pair = follow_both(image, phases, others[0])
    # At small twists the second's own peaks, bent by the scan, look like a third's until they are followed.
    if len(others) > 1 and find_others(image - repeat_mean(pair.layers[1]), pair.layers[0].phases):
        words = " and ".join(f"{abs(one.twist_deg):.0f}°" for one in others)
        raise MicrographError(
            f"{micrograph.source}: three lattices or more, twisted by {words}: flatscope moire reads two"
        )
    return pair


def _explain_one(image: Float, phases: Phases, crystal: Crystal) -> str:
    """What an image of one lattice may show, by the brightness of both sites of its honeycomb over the hollow."""
    _, bright = find_honeycomb(fold_cell(image, phases))
    ratio = float((bright[1] - bright[2]) / max(float(bright[0] - bright[2]), 1e-12))
    if crystal.first == crystal.second:
        if ratio < _UNLIKE * crystal.dimmer_share:
            return f"every second column is brighter (1 to {ratio:.2f}): an untwisted bilayer in AB stacking"
        return "a monolayer, or two layers straight above each other"
    if ratio > _AS_BRIGHT:
        return (
            f"its sublattices are about as bright (1 to {ratio:.2f}): an untwisted 2H bilayer, or a monolayer at "
            "medium angles"
        )
    if ratio < _UNLIKE * crystal.dimmer_share:
        return (
            f"its sublattices differ more (1 to {ratio:.2f}) than a monolayer's (1 to {crystal.dimmer_share:.2f}): an "
            "untwisted 3R bilayer, or another material"
        )
    return "a monolayer, or layers that are not twisted, which angles cannot tell apart"


def _assign(pair: Pair, params: MoireParams) -> tuple[tuple[Crystal, Crystal], Pair]:
    """Which lattice is whose, by size, or by brightness where the sizes are alike; the first material comes first."""
    crystals = params.crystals
    if crystals[0].name == crystals[1].name:
        return crystals, pair
    expected = np.log(crystals[1].lattice_nm / crystals[0].lattice_nm)
    one, two = pair.layers
    found = np.log(two.lattice.constant_px / one.lattice.constant_px)
    if abs(expected) > _ALIKE_SIZE:
        swapped = abs(found + expected) < abs(found - expected)
    else:
        bright = [float(np.ptp(layer.cell)) for layer in pair.layers]
        swapped = (bright[1] > bright[0]) != (crystals[1].strengths[0] > crystals[0].strengths[0])
    return crystals, pair.swap() if swapped else pair


# --- twist, moiré and stacking ---------------------------------------------------------------------------------------


def _match(pair: Pair) -> NDArray[np.int64]:
    """The whole numbers that take the second lattice's reciprocal vectors to those nearest to the first one's."""
    hexagon = make_hexagon(pair.layers[0].lattice)
    index = np.array([(1, 0), (0, 1), (-1, 1), (-1, 0), (0, -1), (1, -1)])
    vectors = index @ pair.link @ hexagon
    return np.asarray(index[[np.argmax(vectors @ along) for along in hexagon]])


def _measure(pair: Pair) -> _Twist:
    """Twist and strain of the second lattice against the first (polar decomposition), the moiré, and their errors."""
    hexagon, chosen = make_hexagon(pair.layers[0].lattice), _match(pair)

    def describe(link: Float) -> Float:
        """Angle, mean and difference of the stretches, and the moiré's vectors."""
        second = chosen @ link @ hexagon
        # Of real space, from the first lattice to the second.
        stretch = np.linalg.inv(np.linalg.inv(hexagon) @ second)
        left, sizes, right = np.linalg.svd(stretch)
        turn = left @ right
        # Down the rows is against the usual direction of turning.
        angle = np.arctan2(turn[1, 0], turn[0, 0])
        moire = np.asarray(np.linalg.inv(second - hexagon).T, float) / pair.layers[0].lattice.constant_px
        period = shortest_vectors(moire).mean()
        shear = (sizes[0] - sizes[1]) / sizes.sum()
        return np.array([angle, sizes.mean(), shear, period, *moire.ravel()])

    found = describe(pair.link)
    steps = _SMALL * np.eye(4).reshape(4, 2, 2)
    slopes = np.stack([describe(pair.link + step) - describe(pair.link - step) for step in steps], axis=1)
    slopes /= 2.0 * _SMALL
    sigma = np.sqrt(np.einsum("ij,jk,ik->i", slopes, pair.link_covariance, slopes))
    return _Twist(
        angle=float(found[0]),
        sigma=float(sigma[0]),
        ratio=float(found[1]),
        ratio_sigma=float(sigma[1]),
        shear=float(found[2]),
        shear_sigma=float(sigma[2]),
        period=float(found[3]),
        period_sigma=float(sigma[3]),
    )


def _find_stacking(pair: Pair, places: list[Float]) -> NDArray[np.uint8]:
    """Where each pixel lies in the cell of stackings: 0 hollow over hollow, 1 and 2 the two others of three-fold
    symmetry, 3 the saddle points between them."""
    index = _match(pair)
    hollows = [2.0 * place[1] - place[0] for place in places]
    one = pair.layers[0].phases.cell - hollows[0][:, None, None]
    two = np.einsum("ij,jrc->irc", index, pair.layers[1].phases.cell - hollows[1][:, None, None])
    shift = two - one
    # Reciprocal vectors 60° apart belong to a lattice whose vectors are 120° apart.
    thirds = np.array([(0.0, 0.0), (1.0, 2.0), (2.0, 1.0)]) / 3.0
    points = [*thirds, (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)]
    vectors = np.linalg.inv(make_hexagon(pair.layers[0].lattice))
    away = []
    for point in points:
        off = shift - np.array(point)[:, None, None]
        off -= np.ceil(off)
        around = [off + np.array(step)[:, None, None] for step in np.ndindex(2, 2)]
        lengths = [np.square(np.einsum("ij,jrc->irc", vectors, one)).sum(0) for one in around]
        away.append(np.min(lengths, axis=0))
    return np.minimum(np.argmin(away, axis=0), 3).astype(np.uint8)


def _is_parallel(pair: Pair, places: list[Float]) -> bool:
    """Whether the second sublattice lies on the same side of the first in both layers."""
    index = _match(pair)
    steps = [place[1] - place[0] for place in places]
    return bool(np.abs((steps[0] - index @ steps[1] + 0.5) % 1.0 - 0.5).sum() < 0.34)


def _describe(
    twist: _Twist,
    pair: Pair,
    places: list[Float],
    crystals: tuple[Crystal, Crystal],
    *,
    sure: bool,
    calibration: Calibration,
) -> dict[str, object]:
    """The row of a pair of layers."""
    degrees = abs(float(np.rad2deg(twist.angle)))
    polar = sure and all(crystal.first != crystal.second for crystal in crystals)
    parallel = not polar or _is_parallel(pair, places)
    stacking = _find_stacking(pair, places)
    shares = np.bincount(stacking.ravel(), minlength=4) / stacking.size
    expected = crystals[1].lattice_nm / crystals[0].lattice_nm
    return {
        "pair_id": 1,
        "layer_a": 1,
        "layer_b": 2,
        "material_a": crystals[0].name,
        "material_b": crystals[1].name,
        "twist_deg": degrees if parallel else 60.0 - degrees,
        "twist_sigma_deg": float(np.rad2deg(twist.sigma)),
        "strain_percent": 100.0 * (twist.ratio / expected - 1.0),
        "strain_sigma_percent": 100.0 * twist.ratio_sigma / expected,
        "shear_percent": 100.0 * twist.shear,
        "shear_sigma_percent": 100.0 * twist.shear_sigma,
        "moire_nm": twist.period * crystals[0].lattice_nm,
        "moire_sigma_nm": twist.period_sigma * crystals[0].lattice_nm,
        "kind": "" if not polar else "R" if parallel else "H",
        **{
            f"share_{name}": float(share)
            for name, share in zip(("aa", "ab", "ba", "sp"), shares, strict=True)
        },
        "status": "accepted",
        "reason": "",
    }


def _judge(
    frame: pd.DataFrame,
    micrograph: Micrograph,
    pair: Pair,
    twist: _Twist,
    crystals: tuple[Crystal, Crystal],
    calibration: Calibration,
) -> pd.DataFrame:
    """The row with its status."""
    expected = crystals[1].lattice_nm / crystals[0].lattice_nm
    off = twist.ratio / expected - 1.0
    reason = f"the lattices differ in size by {twist.ratio - 1.0:+.1%}, those of the materials by {expected - 1.0:+.1%}"
    frame = mark(frame, [abs(off) > _ODD_SIZE], status="uncertain", reason=f"{reason}: check --material")
    hexagon, first = make_hexagon(pair.layers[0].lattice), pair.layers[0].lattice.reciprocal
    skew = float(np.ptp(np.linalg.svd(np.linalg.inv(hexagon) @ first)[1]))
    strained = abs(off) > _CLEARLY * twist.ratio_sigma or twist.shear > _CLEARLY * twist.shear_sigma
    reason = f"strain can't be told from the scan's distortion, which is {skew:.0%}"
    frame = mark(frame, [strained and skew > _MUCH_SKEW], status="uncertain", reason=reason)
    size = float(np.hypot(*pair.slid_px).max()) * calibration.pixel_size_nm[0]
    reason = f"the layers are bent against each other, by up to {size:.2f} nm: twist and strain are means"
    frame = mark(frame, [pair.is_bent], status="uncertain", reason=reason)
    stated = micrograph.calibration
    if stated is not None:
        wrong = float(np.mean(stated.pixel_size_nm)) / calibration.pixel_size_nm[0] - 1.0
        reason = f"the stated pixel size is off by {wrong:+.0%}: check --material and --nm-per-px"
        frame = mark(frame, [abs(wrong) > _OFF_SHARE], status="uncertain", reason=reason)
    return frame


def build_stack(
    found: pd.DataFrame,
    crystals: tuple[Crystal, Crystal],
    calibration: Calibration,
    *,
    shape: tuple[int, int],
) -> Atoms:
    """The atoms of both layers, the second one below: an image does not tell which is."""
    counted = found[found["status"] != "rejected"]
    layers = [
        build_model(counted[counted["layer"] == number + 1], crystal, calibration, shape=shape)
        for number, crystal in enumerate(crystals)
    ]
    gap = GAPS_NM[sum(crystal.is_dichalcogenide for crystal in crystals)]
    below = layers[1].positions_nm - np.array([0.0, 0.0, gap])
    symbols = [*layers[0].symbols, *layers[1].symbols]
    return Atoms(symbols, np.vstack([layers[0].positions_nm, below]), layers[0].box_nm)
