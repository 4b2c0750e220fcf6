"""What one experimental ADF-STEM image looks like, drawn images of the same lattice, and their translation into it.

References
----------
Ke et al. 2024, doi:10.1021/acs.nanolett.4c02654 (simulated unit cells made realistic by a single image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.cells import (
    choose_side,
    classify,
    cut_all,
    cut_cells,
    find_noise,
    flatten,
    put_back,
)
from flatscope.electron.crystals import NUMBERS, Sheet, SheetParams, find_crystal
from flatscope.electron.fitting import fit_columns
from flatscope.electron.imaging import ScanParams
from flatscope.electron.lattice import NoLatticeError
from flatscope.electron.noise import NoiseParams, find_repeating, fit_noise, scan
from flatscope.electron.scans import Scan
from flatscope.electron.sites import Sites, cut_crops, find_axes, find_sites, measure_sites
from flatscope.electron.specimens import draw_microscope, draw_scanned
from flatscope.inference.card import Card, WeightsError
from flatscope.inference.runtime import Network
from flatscope.parallel import map_in_order

Float = NDArray[np.float64]
Real = NDArray[np.float32]

TASK = "realism"
MOVED_NM = 0.010
"""A column that translation moves by more has been moved."""
_DRAWS = 8
"""Translations with other noise whose mean is looked at: what is left is the network's, not chance."""
_VANISHED = 0.5
"""A defect that keeps less of its contrast against a perfect site has vanished."""
_SEEN = 0.1
"""A defect of which a clean image shows less is not looked for."""
_DEFECTS = {"one": 0.02, "both": 0.005, "oxygen": 0.02, "dopant": 0.03}
"""Shares of sites with each kind of defect in drawn images."""
_METALS = ("Ti", "V", "Nb", "Mo", "W", "Re")
_LEAST_CHANGE = 0.15
"""Dopants, and by how much an atomic number must differ from the host's to be told from it."""
_BATCH, _LEAST_CROPS, _FEW = 64, 64, 4
"""Crops that are translated at once, crops that half an image must hold, and images that are not worth a process."""
_TRIED, _MATCHED, _MATCHED_CELLS = 60, 6, 8
"""So many microscopes are tried, on so many unit cells, and so many kept."""
_INNER_MRAD, _OUTER_MRAD = (40.0, 100.0), 200.0


@dataclass(frozen=True)
class Look:
    """What physics knows of an experimental image; the rest is for a network to add.

    Parameters
    ----------
    material
        Name of the crystal.
    pixel_nm, axes_px
        Pixel size, and the crystal's axes in the image, see `flatscope.electron.sites.find_axes`.
    noise
        Standard deviation of what does not repeat, in units of the lattice's.
    scan, zero
        Noise of the part that is learned from, in the same units, and the level that is taken for no electrons.
    microscopes
        Microscopes that show the crystal much as the image does.
    """

    material: str
    pixel_nm: float
    axes_px: Float
    noise: float
    scan: NoiseParams
    zero: float
    microscopes: tuple[ScanParams, ...]

    @property
    def constant_px(self) -> float:
        """Lattice constant in pixels."""
        return _measure_constant(self.axes_px)

    @property
    def side_px(self) -> int:
        """Of all crops of images with this look."""
        return choose_side(self.constant_px)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for a card."""
        return {**asdict(self), "axes_px": self.axes_px.tolist()}

    @classmethod
    def from_card(cls, card: Card) -> Look:
        """That of weights; a damaged card raises `WeightsError`."""
        try:
            known = dict(card.look)
            axes = np.array(known.pop("axes_px"), float).reshape(2, 2)
            microscopes = tuple(
                ScanParams(**{**one, "collection_mrad": tuple(one["collection_mrad"])})
                for one in known.pop("microscopes")
            )
            noise = dict(known.pop("scan"))
            fitted = NoiseParams(**{**noise, "drift_px": tuple(noise["drift_px"])})
            return cls(axes_px=axes, scan=fitted, microscopes=microscopes, **known)
        except (KeyError, TypeError, ValueError) as error:
            raise WeightsError(f"damaged card of {card.name}: no look of a scan ({error})") from None


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
        Shape (rows, cols), see `flatscope.electron.cells.flatten`.
    source
        Its name.
    """

    look: Look
    crops: Real
    held: Real
    image: Float
    source: str


@dataclass(frozen=True)
class Drawn:
    """A drawn image without noise, and what is true about it.

    Parameters
    ----------
    image
        Shape (rows, cols), see `flatscope.electron.cells.flatten`.
    mean
        The same as the detector counts it: 1 on average.
    sites
        Of the image, by its own lattice.
    sheet
        Positions count from the centre of the first pixel.
    material, pixel_nm
        Name of the crystal, side of a pixel.
    """

    image: Float
    mean: Float
    sites: Sites
    sheet: Sheet
    material: str
    pixel_nm: float


def learn_look(
    opened: Scan, material: str, *, source: str, seed: int = 0, tried: int = _TRIED, workers: int = 2
) -> Teacher:
    """What an experimental image teaches: its left half, the right one held out.

    Raises
    ------
    ValueError
        The image is too small for two halves of crops.
    """
    image = flatten(opened.image, opened.sites.phases)
    middle = image.shape[1] // 2
    axes = find_axes(opened.sites, 0)
    side = choose_side(_measure_constant(axes))
    cells = cut_all(image.astype(np.float32), opened.sites, side=side)
    left, right = cells.corners[:, 1] + side <= middle, cells.corners[:, 1] >= middle
    least = min(int(left.sum()), int(right.sum()))
    if least < _LEAST_CROPS:
        raise ValueError(
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
    return Teacher(look, cells.images[left], cells.images[right], image, source)


def _measure_constant(axes_px: Float) -> float:
    """Lattice constant of a crystal's axes, the mean of all directions."""
    return float(np.sqrt(abs(np.linalg.det(axes_px))))


def _show_usual(image: Float, sites: Sites) -> Real:
    """The median surroundings of a site of the first sublattice, see `flatscope.electron.sites.cut_crops`."""
    return cut_crops(image, sites, some=np.flatnonzero(sites.sublattice == 0)[:1])[0, 1]


def _match_microscopes(
    look: Look, usual: Real, *, seed: int, tried: int, workers: int
) -> tuple[ScanParams, ...]:
    """Of microscopes at random those that show the perfect crystal most like an image does."""
    jobs = [(look, usual, seed, index) for index in range(tried)]
    compared = list(map_in_order(_try_microscope, jobs, workers=workers))
    order = np.argsort([gap for gap, _ in compared], kind="stable")
    return tuple(compared[index][1] for index in order[:_MATCHED])


def _try_microscope(job: tuple[Look, Real, int, int]) -> tuple[float, ScanParams]:
    look, usual, seed, index = job
    rng = np.random.default_rng([seed, index])
    inner = float(rng.uniform(*_INNER_MRAD))
    drawn = draw_microscope(rng, pixel_nm=look.pixel_nm)
    microscope = replace(drawn, collection_mrad=(inner, _OUTER_MRAD))
    try:
        seen = _scan(
            rng, look, SheetParams(look.material), microscope, side=_MATCHED_CELLS * look.constant_px
        )
    except NoLatticeError:
        return np.inf, microscope
    return float(np.square(_show_usual(seen.image, seen.sites) - usual).mean()), microscope


def draw_few_defects(
    rng: np.random.Generator, material: str, *, dopants: tuple[str, ...] = ()
) -> SheetParams:
    """A dichalcogenide with chalcogen vacancies, oxygen on chalcogen sites, and a metal dopant.

    Parameters
    ----------
    dopants
        One of them is chosen; if there is none, of all that can be told from the host.
    """
    crystal = find_crystal(material)
    host = NUMBERS[crystal.first[0]]
    choice = dopants or tuple(name for name in _METALS if abs(NUMBERS[name] / host - 1.0) > _LEAST_CHANGE)
    return SheetParams(
        material,
        shift_nm=(float(rng.uniform(0.0, 0.3)), float(rng.uniform(0.0, 0.3))),
        vacancies={"first": 0.0, "one": _DEFECTS["one"], "both": _DEFECTS["both"]},
        dopant=str(rng.choice(choice)),
        dopant_share=_DEFECTS["dopant"],
        second_dopant="O",
        second_share=_DEFECTS["oxygen"],
    )


def draw_clean(
    look: Look,
    count: int,
    *,
    side: int,
    seed: int,
    dopants: tuple[str, ...] = (),
    workers: int = 2,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Drawn]:
    """Noiseless images of the lattice of an experimental image, each with another microscope and other defects.

    Parameters
    ----------
    side
        Rows and columns.
    seed
        Image i has the random stream (seed, i): the result does not depend on the number of workers.
    """
    jobs = [(look, seed, index, side, dopants) for index in range(count)]
    # Processes take longer to start than a few images to be drawn.
    workers = workers if count > _FEW else 1
    return list(map_in_order(_draw, jobs, workers=workers, on_progress=on_progress))


def _draw(job: tuple[Look, int, int, int, tuple[str, ...]]) -> Drawn:
    look, seed, index, side, dopants = job
    return draw_one(np.random.default_rng([seed, index]), look, side=side, dopants=dopants)


def draw_one(rng: np.random.Generator, look: Look, *, side: int, dopants: tuple[str, ...] = ()) -> Drawn:
    """One noiseless image, see `draw_clean`."""
    microscope = look.microscopes[int(rng.integers(len(look.microscopes)))]
    return _scan(rng, look, draw_few_defects(rng, look.material, dopants=dopants), microscope, side=side)


def _scan(
    rng: np.random.Generator, look: Look, contents: SheetParams, microscope: ScanParams, *, side: float
) -> Drawn:
    scanned = draw_scanned(
        rng,
        contents,
        microscope,
        NoiseParams(gain=1.0),
        shape=(round(side), round(side)),
        electrons_per_px=1.0,
        axes_px=look.axes_px,
    )
    return open_drawn(scanned.mean, scanned.sheet, look)


def open_drawn(image: NDArray[np.floating], sheet: Sheet, look: Look) -> Drawn:
    """A drawn image, its lattice found and its background levelled; sublattices are named by the truth."""
    sites = find_sites(image, first=find_crystal(look.material).brighter, expected_px=look.constant_px)
    known = sheet.sublattice >= 0
    places, kinds = sheet.sites_nm[known] / look.pixel_nm, sheet.sublattice[known]
    nearest = ((sites.positions[:64, None] - places) ** 2).sum(-1).argmin(1)
    if np.mean(kinds[nearest] == sites.sublattice[:64]) < 0.5:
        sites = sites.swap()
    return Drawn(
        flatten(image, sites.phases), np.asarray(image, float), sites, sheet, look.material, look.pixel_nm
    )


def scan_again(rng: np.random.Generator, drawn: Drawn, look: Look) -> Real:
    """Scan a drawn image with the noise of a look.

    Returns
    -------
    Shape (rows, cols), in units of the lattice's own contrast.
    """
    return scan(rng, np.maximum(drawn.image - look.zero, 0.0), look.scan)[0] + np.float32(look.zero)


def translate(rng: np.random.Generator, drawn: Drawn, network: Network) -> Real:
    """Give a drawn image the look that a network has learned: a scan with fitted noise, and what that lacks.

    Parameters
    ----------
    rng
        Source of the noise.
    drawn
        The image, without noise.
    network
        Weights of the task "realism".

    Returns
    -------
    Shape (rows, cols), in units of the lattice's own contrast.
    """
    look = Look.from_card(network.card)
    noisy = scan_again(rng, drawn, look)
    cells = cut_cells(noisy, _cover(drawn.sites, noisy.shape), side=look.side_px, clip=True)
    return put_back(run_on_crops(network, cells.images), cells, (noisy.shape[0], noisy.shape[1]))


def change_dose(drawn: Drawn, image: NDArray[np.floating], times: float) -> Real:
    """An image that was made of a drawn one, as it would be with so many times the electrons: what was added to the
    drawn one is weaker by their root."""
    return np.asarray(drawn.image + (image - drawn.image) / np.sqrt(times), np.float32)


def run_on_crops(network: Network, crops: Real) -> Real:
    """What a network makes of crops (n, side, side), crop by crop."""
    parts = np.array_split(crops[:, None], max(-(-len(crops) // _BATCH), 1))
    return np.concatenate([network.run(np.ascontiguousarray(part)) for part in parts])[:, 0]


def _cover(sites: Sites, shape: tuple[int, ...]) -> Float:
    """Centres of crops for every part of an image: its cells, also where no crystal is."""
    one, two = sites.phases.lattice.vectors
    reach = int(2.0 * float(np.linalg.norm(shape)) / sites.phases.lattice.constant_px) + 2
    steps = np.stack(np.meshgrid(*(np.arange(-reach, reach + 1),) * 2), axis=-1).reshape(-1, 2)
    first = sites.positions[sites.sublattice == 0]
    start = first[0] if len(first) else np.zeros(2)
    centres = start + steps @ np.stack([one, two])
    limits = np.array(shape) - 1
    beyond = 0.5 * sites.phases.lattice.constant_px
    return centres[((centres > -beyond) & (centres < limits + beyond)).all(1)]


@dataclass(frozen=True)
class Honesty:
    """What translation did to the columns of an image.

    Parameters
    ----------
    places_px
        Shape (n, 2): true places of its columns.
    kinds
        Shape (n,): what stands there, see `flatscope.electron.cells.classify`.
    moved_nm
        Shape (n,): distance between where the column is fitted before and after, beside a shift of the whole image.
    kept
        Shape (n,): contrast of a defect against perfect columns, after over before; 1 of perfect columns.
    """

    places_px: Float
    kinds: NDArray[np.uint8]
    moved_nm: Float
    kept: Float

    @property
    def moved(self) -> NDArray[np.bool_]:
        """Which columns were moved."""
        return self.moved_nm > MOVED_NM

    @property
    def vanished(self) -> NDArray[np.bool_]:
        """Which defects have vanished."""
        return self.kept < _VANISHED

    @property
    def rejected(self) -> NDArray[np.bool_]:
        """Which crops around them are not to be learned from."""
        return self.moved | self.vanished


def check_honesty(
    rng: np.random.Generator, drawn: Drawn, look_like: Callable[[np.random.Generator, Drawn], Real]
) -> Honesty:
    """Fit the columns of a drawn image before and after it was given another look.

    Parameters
    ----------
    rng
        Source of the noise.
    drawn
        The image.
    look_like
        Gives it the look; the mean of eight is fitted, so that what is left is not chance.
    """
    mean = np.mean([look_like(rng, drawn) for _ in range(_DRAWS)], axis=0)
    images = np.asarray(drawn.image, float), np.asarray(mean, float)
    spacing = drawn.sites.phases.lattice.constant_px / np.sqrt(3.0)
    true = drawn.sheet.sites_nm / drawn.pixel_nm
    stands = drawn.sheet.species != ""
    before, after = (fit_columns(image, true[stands], spacing) for image in images)
    moved = np.zeros(len(true))
    shifts = after.positions - before.positions
    # All columns together may move: a detector that lags shifts the whole image.
    moved[stands] = np.hypot(*(shifts - np.median(shifts, axis=0)).T) * drawn.pixel_nm
    gap, nearest = cKDTree(drawn.sites.positions).query(true)
    was, now = (1.0 - measure_sites(image, drawn.sites).ratio[nearest] for image in images)
    kinds = classify(drawn.sheet, drawn.material)
    seen = (kinds > 0) & (np.abs(was) > _SEEN)
    kept = np.where(seen, now / np.where(seen, was, 1.0), 1.0)
    limits = np.array(drawn.image.shape) - 1.0
    inside = ((true > 2.0 * spacing) & (true < limits - 2.0 * spacing)).all(1) & (gap < 0.5 * spacing)
    return Honesty(true[inside], kinds[inside], moved[inside], kept[inside])
