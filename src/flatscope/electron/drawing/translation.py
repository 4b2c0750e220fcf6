"""Translation of drawn ADF-STEM images into the look of an experimental one, and what it does to their columns.

References
----------
Ke et al. 2024, doi:10.1021/acs.nanolett.4c02654 (simulated unit cells made realistic by a single image).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.drawing.appearance import Drawn, Look, scan_again
from flatscope.electron.drawing.crops import cut_around, put_back
from flatscope.electron.fitting import fit_columns
from flatscope.electron.kinds import classify_marks
from flatscope.electron.physics.crystals import find_crystal
from flatscope.electron.sites import Sites, measure_sites
from flatscope.inference.runtime import Network

Float = NDArray[np.float64]
Real = NDArray[np.float32]

TASK = "realism"
MOVED_NM = 0.010
"""A column that translation shifts by more than this counts as moved."""
_DRAWS = 8  # translations of one image with other noise; their mean shows the network's doing, not chance
_VANISHED = 0.5  # share of its contrast against a perfect site below which a defect has vanished
_SEEN = 0.1  # contrast below which a clean image does not show a defect
_BATCH = 64  # crops translated at once


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
    crops = cut_around(noisy, _cover(drawn.sites, noisy.shape), side=look.side_px, clip=True)
    return put_back(run_on_crops(network, crops.images), crops, (noisy.shape[0], noisy.shape[1]))


def run_on_crops(network: Network, crops: Real) -> Real:
    """What a network makes of crops (n, side, side), crop by crop."""
    parts = np.array_split(crops[:, None], max(-(-len(crops) // _BATCH), 1))
    return np.concatenate([network.run(np.ascontiguousarray(part)) for part in parts])[:, 0]


def _cover(sites: Sites, shape: tuple[int, ...]) -> Float:
    """Centres of crops for every part of an image: its unit cells, also where no crystal is."""
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
        Shape (n,): what stands there, see `flatscope.electron.kinds.classify_marks`.
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
    kinds = classify_marks(drawn.sheet, find_crystal(drawn.material))
    seen = (kinds > 0) & (np.abs(was) > _SEEN)
    kept = np.where(seen, now / np.where(seen, was, 1.0), 1.0)
    limits = np.array(drawn.image.shape) - 1.0
    inside = ((true > 2.0 * spacing) & (true < limits - 2.0 * spacing)).all(1) & (gap < 0.5 * spacing)
    return Honesty(true[inside], kinds[inside], moved[inside], kept[inside])
