"""Twisted bilayers and other stacks of sheets under an ADF-STEM microscope, with the truth about every layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.drawing.noise import NoiseParams, scan
from flatscope.electron.drawing.specimens import RIM_NM, Scanned
from flatscope.electron.physics.crystals import GAPS_NM, Sheet, SheetParams, build_sheet, find_crystal
from flatscope.electron.physics.imaging import ScanParams, draw_adf

Float: TypeAlias = NDArray[np.float64]
Draw: TypeAlias = Callable[..., Float]

_BEYOND = 1.06  # by which sheets reach beyond the field, so that strain and distortion leave no gap


@dataclass(frozen=True)
class LayerParams:
    """One sheet of a stack.

    Parameters
    ----------
    material
        One of `flatscope.electron.physics.crystals.CRYSTALS`.
    turn_deg
        Rotation, counter-clockwise as displayed.
    shift_nm
        Of the crystal, (rows, cols).
    strain
        Along the rows, along the columns and shear (0.01 is 1 %).
    vacancies
        See `flatscope.electron.physics.crystals.SheetParams`.
    """

    material: str = "MoS2"
    turn_deg: float = 0.0
    shift_nm: tuple[float, float] = (0.0, 0.0)
    strain: tuple[float, float, float] = (0.0, 0.0, 0.0)
    vacancies: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class BilayerParams:
    """A stack of sheets, the topmost first.

    Parameters
    ----------
    layers
        Two or more.
    relax_nm
        Largest displacement of the atoms of the first two layers by relaxation, half of it in either layer, against
        each other and about the middle of each moiré cell: AA regions shrink, AB and BA regions grow. A few hundredths
        of a nanometre at 2°, falling with the square of the angle.
    distortion
        Shape (2, 2): what the scan makes of the crystal about its middle; the unit matrix for none.
    """

    layers: tuple[LayerParams, ...] = (LayerParams(), LayerParams(turn_deg=20.0))
    relax_nm: float = 0.0
    distortion: tuple[tuple[float, float], tuple[float, float]] = ((1.0, 0.0), (0.0, 1.0))

    def __post_init__(self) -> None:
        """Refuse what is no stack."""
        if not self.layers:
            raise ValueError("a stack without layers: give at least one LayerParams")


@dataclass(frozen=True)
class ScannedBilayer:
    """An ADF-STEM image of a stack, and what is true about it.

    Parameters
    ----------
    scanned
        The image and all layers together as one sheet.
    layer
        Shape (m,): of each site of the sheet its layer, 0 on top.
    params
        What was drawn.
    """

    scanned: Scanned
    layer: NDArray[np.int64]
    params: BilayerParams

    @property
    def twist_deg(self) -> float:
        """Of the second layer against the first, counter-clockwise; strain leaves it as it is."""
        return self.params.layers[1].turn_deg - self.params.layers[0].turn_deg


def build_bilayer(
    rng: np.random.Generator, params: BilayerParams, *, field_nm: tuple[float, float]
) -> tuple[Sheet, NDArray[np.int64]]:
    """Build a stack of sheets, with the layer of each site.

    Parameters
    ----------
    rng
        Source of randomness: places of vacancies.
    params
        What to build.
    field_nm
        Height and width of the field that the stack fills.
    """
    size = np.array(field_nm)
    wide = (float(_BEYOND * size[0]), float(_BEYOND * size[1]))
    sheets, height = [], 0.0
    for place, layer in enumerate(params.layers):
        plain = SheetParams(layer.material, wide, layer.turn_deg, layer.shift_nm, layer.vacancies)
        sheet = _shift(build_sheet(rng, plain), -0.5 * wide[0], -0.5 * wide[1], 0.0)
        if place:
            pair = (layer.material, params.layers[place - 1].material)
            height -= GAPS_NM[sum(find_crystal(name).is_dichalcogenide for name in pair)]
        sheet = _deform(sheet, _strain(*layer.strain))
        if params.relax_nm and place < 2:
            sheet = _relax(sheet, params, sign=1.0 if place else -1.0)
        sheet = _shift(
            _deform(sheet, np.array(params.distortion)), 0.5 * field_nm[0], 0.5 * field_nm[1], height
        )
        sheets.append(sheet)
    return _join(sheets, size)


def _strain(down: float, across: float, shear: float) -> Float:
    return np.array([[1.0 + down, shear], [shear, 1.0 + across]])


def _deform(sheet: Sheet, matrix: Float) -> Sheet:
    return _displace(sheet, lambda at: at @ matrix.T)


def _shift(sheet: Sheet, down: float, across: float, up: float) -> Sheet:
    moved = sheet.positions_nm + np.array([down, across, up])
    return replace(sheet, positions_nm=moved, sites_nm=sheet.sites_nm + np.array([down, across]))


def _displace(sheet: Sheet, where: Callable[[Float], Float]) -> Sheet:
    """A sheet whose atoms and sites lie elsewhere in the plane."""
    flat = np.column_stack([where(sheet.positions_nm[:, :2]), sheet.positions_nm[:, 2]])
    return replace(sheet, positions_nm=flat, sites_nm=where(sheet.sites_nm))


def _relax(sheet: Sheet, params: BilayerParams, *, sign: float) -> Sheet:
    """A sheet displaced towards the stackings of low energy, to first order: along the gradient of the energy of
    stacking, whose first harmonics are those of the lattice (Nam and Koshino 2017,
    doi:10.1103/PhysRevB.96.075311)."""
    waves = [_reciprocal(layer) for layer in params.layers[:2]]
    moire = waves[0] - waves[1]
    mean = 0.5 * (waves[0] + waves[1])
    shifts = [np.array(layer.shift_nm) for layer in params.layers[:2]]
    phases = waves[1] @ shifts[1] - waves[0] @ shifts[0]

    def moved(at: Float) -> Float:
        swing = np.sin(2.0 * np.pi * (at @ moire.T + phases))
        return at + sign * 0.5 * params.relax_nm / 3.0 * swing @ (mean / np.hypot(*mean.T)[:, None])

    return _displace(sheet, moved)


def _reciprocal(layer: LayerParams) -> Float:
    """Three reciprocal vectors of a layer 120° apart, cycles a nanometre (rows, cols), shape (3, 2)."""
    length = 2.0 / np.sqrt(3.0) / find_crystal(layer.material).lattice_nm
    # The first lattice vector lies along the columns at 0°, so the first reciprocal one lies down the rows.
    angle = np.deg2rad(layer.turn_deg + 90.0 + np.array([0.0, 120.0, 240.0]))
    waves = length * np.column_stack([-np.sin(angle), np.cos(angle)])
    return np.asarray(waves @ np.linalg.inv(_strain(*layer.strain)).T)


def _join(sheets: list[Sheet], size: Float) -> tuple[Sheet, NDArray[np.int64]]:
    """All sheets as one, without what lies outside the field."""
    inside = [((sheet.sites_nm >= 0.0) & (sheet.sites_nm < size)).all(1) for sheet in sheets]
    seen = [((s.positions_nm[:, :2] >= 0.0) & (s.positions_nm[:, :2] < size)).all(1) for s in sheets]
    pairs = list(zip(sheets, inside, strict=True))
    whole = Sheet(
        np.concatenate([sheet.numbers[kept] for sheet, kept in zip(sheets, seen, strict=True)]),
        np.vstack([sheet.positions_nm[kept] for sheet, kept in zip(sheets, seen, strict=True)]),
        np.vstack([sheet.sites_nm[kept] for sheet, kept in pairs]),
        np.concatenate([sheet.sublattice[kept] for sheet, kept in pairs]),
        np.concatenate([sheet.species[kept] for sheet, kept in pairs]),
    )
    return whole, np.repeat(np.arange(len(sheets)), [int(kept.sum()) for kept in inside])


def draw_bilayer(
    rng: np.random.Generator,
    params: BilayerParams,
    optics: ScanParams,
    noise: NoiseParams,
    *,
    shape: tuple[int, int],
    electrons_per_px: float,
    draw: Draw = draw_adf,
) -> ScannedBilayer:
    """Scan a stack of sheets.

    Parameters
    ----------
    rng
        Source of randomness.
    params
        The stack.
    optics, noise, shape, electrons_per_px
        See `flatscope.electron.drawing.specimens.draw_scanned`.
    draw
        `draw_adf`, or another function with its arguments, such as multislice.

    Notes
    -----
    The fast model adds what columns scatter and lets atoms of two layers on top of each other act as a pair; the probe
    is as narrow in the second layer as in the first. Multislice (docs/moire.md) tells where that fails.
    """
    rim = int(np.ceil(RIM_NM / optics.pixel_nm))
    wide = (shape[0] + 2 * rim, shape[1] + 2 * rim)
    field_nm = (wide[0] * optics.pixel_nm, wide[1] * optics.pixel_nm)
    whole, layer = build_bilayer(rng, params, field_nm=field_nm)
    mean = draw(whole, optics, shape=wide)
    mean *= electrons_per_px / max(float(mean[rim:-rim, rim:-rim].mean()), 1e-12)
    seen, moved = scan(rng, mean, replace(noise, gain=1.0), sites_px=whole.sites_nm / optics.pixel_nm)
    by = -rim * optics.pixel_nm
    sheet = _shift(replace(whole, sites_nm=moved * optics.pixel_nm), by, by, 0.0)
    inner = (slice(rim, -rim), slice(rim, -rim))
    scanned = Scanned(seen[inner], mean[inner].astype(np.float32), sheet, optics, noise)
    return ScannedBilayer(scanned, layer, params)


def draw_distortion(
    rng: np.random.Generator, share: float
) -> tuple[tuple[float, float], tuple[float, float]]:
    """An affine distortion of a scan at random, each entry off the unit matrix by `share` (1 sigma)."""
    made = np.eye(2) + share * rng.normal(size=(2, 2))
    return (float(made[0, 0]), float(made[0, 1])), (float(made[1, 0]), float(made[1, 1]))
