"""Movies with known truth: vacancies that hop, come and go, in a specimen that drifts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from flatscope.electron.drawing.noise import NoiseParams, scan
from flatscope.electron.physics.crystals import Sheet, SheetParams, build_sheet, find_crystal, refill
from flatscope.electron.physics.imaging import ScanParams, draw_adf

Float = NDArray[np.float64]
_RIM_NM = 0.6  # how far the crystal goes on beyond a frame


@dataclass(frozen=True)
class HoppingParams:
    """A movie.

    Parameters
    ----------
    material
        A dichalcogenide.
    frames, shape
        Number of frames, and their rows and columns.
    optics
        The microscope; its pixel size is the movie's.
    noise
        Of each scan; its gain is replaced by one electron.
    electrons_per_px
        Detected in a pixel, on average.
    vacancies
        Share of the chalcogen sites that lack an atom in the first frame.
    hop, birth, death
        Chances a frame that a vacancy moves to a nearest site of its sublattice, that one appears (for each that was
        there in the first frame), and that one disappears.
    drift_nm
        Of the specimen from frame to frame, (rows, cols).
    wander_nm
        Scatter of that drift along either axis (1 sigma).
    """

    material: str = "WS2"
    frames: int = 50
    shape: tuple[int, int] = (256, 256)
    optics: ScanParams = field(default_factory=lambda: ScanParams(pixel_nm=0.03))
    noise: NoiseParams = field(default_factory=lambda: NoiseParams(gain=1.0))
    electrons_per_px: float = 30.0
    vacancies: float = 0.02
    hop: float = 0.1
    birth: float = 0.01
    death: float = 0.01
    drift_nm: tuple[float, float] = (0.10, 0.11)
    wander_nm: float = 0.02


@dataclass(frozen=True)
class HoppingMovie:
    """Frames (n, rows, cols), counts; and columns `frame`, `track_id`, `row_px`, `col_px`, `x_nm`, `y_nm` (in the first
    frame's coordinates), `kind`; and the drift since the first frame, pixels, shape (n, 2)."""

    frames: NDArray[np.float32]
    truth: pd.DataFrame
    drift_px: Float


def draw_hopping(rng: np.random.Generator, params: HoppingParams) -> HoppingMovie:
    """Draw a movie of single chalcogen vacancies that hop.

    Parameters
    ----------
    rng
        Source of randomness.
    params
        The movie.
    """
    crystal = find_crystal(params.material)
    pixel = params.optics.pixel_nm
    drift = np.cumsum(
        np.vstack(
            [
                np.zeros(2),
                np.array(params.drift_nm) + params.wander_nm * rng.normal(size=(params.frames - 1, 2)),
            ]
        ),
        axis=0,
    )
    # The specimen is as large as all that ever comes into view.
    low = -np.maximum(drift.max(0), 0.0) - _RIM_NM
    high = np.array(params.shape) * pixel - np.minimum(drift.min(0), 0.0) + _RIM_NM
    whole = build_sheet(
        rng,
        SheetParams(
            params.material,
            (float(high[0] - low[0]), float(high[1] - low[1])),
            turn_deg=float(rng.uniform(0.0, 60.0)),
            shift_nm=(0.05, 0.05),
        ),
    )
    frames, rows = [], []
    for number, (state, moved) in enumerate(zip(_hop(rng, whole, params), drift, strict=True)):
        species = whole.species.copy()
        species[list(state)] = crystal.second[0]
        sheet = refill(whole, species, params.material)
        # The field's first pixel looks at the specimen's point `-low - moved`.
        shifted = sheet.positions_nm[:, :2] + low + moved
        rim = int(np.ceil(_RIM_NM / pixel))
        wide = (params.shape[0] + 2 * rim, params.shape[1] + 2 * rim)
        placed = shifted + rim * pixel
        inside = ((placed >= 0.0) & (placed < np.array(wide) * pixel)).all(1)
        seen = replace(
            sheet,
            numbers=sheet.numbers[inside],
            positions_nm=np.column_stack([placed[inside], sheet.positions_nm[inside, 2]]),
        )
        mean = draw_adf(seen, params.optics, shape=wide)[rim:-rim, rim:-rim]
        mean = np.maximum(mean, 0.0) * params.electrons_per_px / float(mean.mean())
        frames.append(scan(rng, mean, replace(params.noise, gain=1.0))[0])
        for site, identity in state.items():
            row, col = (whole.sites_nm[site] + low + moved) / pixel
            if 0.0 <= row <= params.shape[0] - 1 and 0.0 <= col <= params.shape[1] - 1:
                y, x = whole.sites_nm[site] + low
                rows.append((number, identity, row, col, x, y, f"V_{crystal.second[0]}"))
    truth = pd.DataFrame(rows, columns=["frame", "track_id", "row_px", "col_px", "x_nm", "y_nm", "kind"])
    return HoppingMovie(np.stack(frames), truth, drift / pixel)


def _hop(rng: np.random.Generator, sheet: Sheet, params: HoppingParams) -> Iterator[dict[int, int]]:
    """Site and number of each vacancy, frame by frame."""
    mine = np.flatnonzero(sheet.sublattice == 1)
    tree = cKDTree(sheet.sites_nm[mine])
    reach = 1.1 * find_crystal(params.material).lattice_nm
    first = mine[rng.random(len(mine)) < params.vacancies]
    state = {int(site): number for number, site in enumerate(first)}
    count = len(state)
    yield dict(state)
    for _ in range(params.frames - 1):
        for site, identity in list(state.items()):
            chance = rng.random()
            if chance < params.death:
                del state[site]
            elif chance < params.death + params.hop:
                near = mine[tree.query_ball_point(sheet.sites_nm[site], reach)]
                free = [int(one) for one in near if one != site and int(one) not in state]
                if free:
                    del state[site]
                    state[int(rng.choice(free))] = identity
        for _ in range(rng.poisson(params.birth * len(first))):
            site = int(rng.choice(mine))
            if site not in state:
                state[site] = count
                count += 1
        yield dict(state)
