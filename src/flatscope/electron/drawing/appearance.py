"""What one experimental ADF-STEM image looks like, and drawn images of the same lattice.

References
----------
Ke et al. 2024, doi:10.1021/acs.nanolett.4c02654 (simulated unit cells made realistic by a single image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.electron.drawing.crops import choose_side, flatten
from flatscope.electron.drawing.noise import NoiseParams, scan, smear
from flatscope.electron.drawing.specimens import Scanned, draw_scanned
from flatscope.electron.physics.crystals import NUMBERS, Sheet, SheetParams, find_crystal
from flatscope.electron.physics.imaging import ScanParams
from flatscope.electron.sites import Sites, find_sites
from flatscope.inference.card import Card, WeightsError
from flatscope.parallel import map_in_order

Float = NDArray[np.float64]
Real = NDArray[np.float32]

_DEFECTS = {"one": 0.02, "both": 0.005, "oxygen": 0.02, "dopant": 0.03}
"""Shares of sites with each kind of defect in drawn images."""
_METALS = ("Ti", "V", "Nb", "Mo", "W", "Re")  # dopants
_LEAST_CHANGE = 0.15  # relative difference of atomic numbers from which a dopant is seen
_FEW = 4  # images that are not worth a process


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
        Noise of the training part, in the same units, and the level that counts as no electrons.
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
        return measure_constant(self.axes_px)

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
class Drawn:
    """A drawn image without noise, and what is true about it.

    Parameters
    ----------
    image
        Shape (rows, cols), see `flatscope.electron.drawing.crops.flatten`.
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


def measure_constant(axes_px: Float) -> float:
    """Lattice constant of a crystal's axes, the mean of all directions."""
    return float(np.sqrt(abs(np.linalg.det(axes_px))))


def draw_few_defects(
    rng: np.random.Generator, material: str, *, dopants: tuple[str, ...] = ()
) -> SheetParams:
    """A dichalcogenide with chalcogen vacancies, oxygen on chalcogen sites, and a metal dopant.

    Parameters
    ----------
    dopants
        One of them is chosen; if there is none, of all that differ visibly from the host.
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
    contents = draw_few_defects(rng, look.material, dopants=dopants)
    scanned = expose(rng, look, contents, microscope, side=side)
    return open_drawn(scanned.mean, scanned.sheet, look)


def expose(
    rng: np.random.Generator, look: Look, contents: SheetParams, microscope: ScanParams, *, side: float
) -> Scanned:
    """A sheet in a look's own lattice and pixels; what counts is the mean."""
    return draw_scanned(
        rng,
        contents,
        microscope,
        NoiseParams(gain=1.0),
        shape=(round(side), round(side)),
        electrons_per_px=1.0,
        axes_px=look.axes_px,
    )


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
    Shape (rows, cols), in units of the lattice's own contrast as it is after the detector's lag.
    """
    sharper = drawn.image * (drawn.image.std() / smear(drawn.image, look.scan.lag).std())
    return scan(rng, np.maximum(sharper - look.zero, 0.0), look.scan)[0] + np.float32(look.zero)


def change_dose(drawn: Drawn, image: NDArray[np.floating], times: float) -> Real:
    """An image that was made of a drawn one, as it would be with `times` the electrons: what was added to the drawn one
    is weaker by their root."""
    return np.asarray(drawn.image + (image - drawn.image) / np.sqrt(times), np.float32)
