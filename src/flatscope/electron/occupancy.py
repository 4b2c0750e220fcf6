"""What stands on each site of a movie through time: a defect that comes and goes within a frame is noise.

Every frame gives each of its sites a brightness and, where that is unusual, the network's opinion. All frames together
then decide what stands on a site in each of them, by a hidden Markov model.

References
----------
Rabiner 1989, doi:10.1109/5.18626 (hidden Markov models).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special
from scipy.spatial import cKDTree

from flatscope.electron.defects import BORDER_CELLS, forbid
from flatscope.electron.kinds import GROUPS, list_kinds
from flatscope.electron.mixture import Mixture, fit_mixture, steady
from flatscope.electron.movie_lattice import Landmarks, MovieLattice, find_landmarks, find_phases
from flatscope.electron.sites import Sites, cut_crops, level, measure_sites
from flatscope.inference.runtime import Network

Float = NDArray[np.float64]
Real = NDArray[np.float32]
Whole = NDArray[np.int64]

_LEARNED_FRAMES = 6  # frames among the first from which the brightness of defects is learned
_ASKED = 1.0  # the network is asked about sites whose brightness is this much likelier for a defect
_FOLLOWED = 3.0  # sites are followed whose best frame is this much likelier for a defect
_LEAST_P = 0.5  # probability from which a site holds a defect
# A site is followed if one frame shows more than chance does in all frames; or if this share of its frames, and two at
# least, show more than chance does in one.
_CLEAR_SHARE = 0.2
_BESIDE_CELLS = 0.7  # an atom between two sites this near (lattice constants) is on the brighter one
_BRIGHT = 1.3  # sites whose ratio never exceeds this hold no such atom
_COLUMNS = (
    "frame", "kind", "kind_p", "row_px", "col_px", "x_nm", "y_nm", "sublattice", "intensity_ratio", "site",
)  # fmt: skip


@dataclass(frozen=True)
class _Chances:
    """What happens to a defect from one frame to the next, and how frequent defects are."""

    leave: float = 0.15  # a defect leaves its site
    change: float = 0.02  # a defect becomes one of another kind
    least_share: float = 5e-4  # of the sites that are defects
    most_share: float = 0.2


_CHANCES = _Chances()


@dataclass(frozen=True)
class FrameSites:
    """The sites of one frame.

    Parameters
    ----------
    positions
        Shape (n, 2), (row, col) in pixels.
    cells, sublattice
        Unit cell of each site in this frame's own count, shape (n, 2), and its sublattice, shape (n,).
    ratio, sigma, quiet
        See `flatscope.electron.sites.Readings`.
    over
        What is seen on each site over what an image without order shows by chance, shape (n,).
    inner
        Which sites are far enough from the border, shape (n,).
    logits
        Site to the network's logits, for sites that look unusual.
    """

    positions: Float
    cells: Whole
    sublattice: Whole
    ratio: Float
    sigma: Float
    quiet: tuple[float, float]
    over: Float
    inner: NDArray[np.bool_]
    logits: dict[int, Real]

    def shrink(self) -> FrameSites:
        """The same in half the memory."""
        return replace(
            self,
            positions=self.positions.astype(np.float32),
            cells=self.cells.astype(np.int32),
            sublattice=self.sublattice.astype(np.int8),
            ratio=self.ratio.astype(np.float32),
            sigma=self.sigma.astype(np.float32),
            over=self.over.astype(np.float32),
        )

    def number(self, offset: Whole) -> Whole:
        """One number for each site, the same in all frames whose offsets are those of `Drift`."""
        i, j = (self.cells + offset).T + (1 << 20)
        return np.asarray((i << 22 | j) << 1 | self.sublattice)


@dataclass(frozen=True)
class Appearance:
    """What defects look like in a movie: the brightness of either sublattice, and the network that names them."""

    mixtures: tuple[Mixture, Mixture]
    network: Network | None

    def compare(self, ratio: Float, sigma: Float, sublattice: Whole) -> Float:
        """How much likelier each site's brightness is for a defect than for a usual site."""
        factor = np.ones(len(ratio))
        sigma = steady(sigma)
        for kind, mixture in enumerate(self.mixtures):
            mine = sublattice == kind
            factor[mine] = mixture.compare(ratio[mine], sigma[mine])
        return factor

    def share(self, sublattice: int) -> float:
        """Share of a sublattice's sites that are defects; what fits nothing is none."""
        shares = self.mixtures[sublattice].shares[1:-1]
        return float(np.clip(shares.sum(), _CHANCES.least_share, _CHANCES.most_share))


def learn_appearance(images: Float, lattice: MovieLattice, network: Network | None) -> Appearance:
    """How bright sites and defects are in some of the first frames, shape (frames, rows, cols)."""
    some = images[:: max(len(images) // _LEARNED_FRAMES, 1)]
    parts = [read_sites(image, lattice, None)[0] for image in some]
    mixtures = []
    for kind in (0, 1):
        mine = [one.inner & (one.sublattice == kind) for one in parts]
        ratio = np.concatenate([one.ratio[rows] for one, rows in zip(parts, mine, strict=True)])
        sigma = np.concatenate([steady(one.sigma)[rows] for one, rows in zip(parts, mine, strict=True)])
        quiet = float(np.median([one.quiet[kind] for one in parts]))
        mixtures.append(fit_mixture(ratio, sigma, lattice.crystal, kind, quiet=quiet))
    return Appearance((mixtures[0], mixtures[1]), network)


def read_sites(
    frame: NDArray[Any], lattice: MovieLattice, appearance: Appearance | None
) -> tuple[FrameSites, Landmarks]:
    """Read the sites of a frame, and what the next frame is compared with.

    Parameters
    ----------
    frame
        Shape (rows, cols).
    lattice
        Of the movie.
    appearance
        None while it is being learned: then the network is not asked.
    """
    image = np.asarray(frame, float)
    phases = find_phases(image, lattice.lattice)
    sites = lattice.list_sites(phases)
    levelled = level(image, lattice.lattice.constant_px)
    readings = measure_sites(levelled, sites)
    rim = BORDER_CELLS * lattice.lattice.constant_px
    inner = ((sites.positions > rim) & (sites.positions < np.array(image.shape) - 1.0 - rim)).all(1)
    logits: dict[int, Real] = {}
    if appearance is not None and appearance.network is not None:
        factor = appearance.compare(readings.ratio, readings.sigma, sites.sublattice)
        logits = _ask(appearance.network, levelled, sites, np.flatnonzero(factor > _ASKED))
    read = FrameSites(
        sites.positions,
        sites.cells,
        sites.sublattice,
        readings.ratio,
        readings.sigma,
        readings.quiet,
        readings.over_chance(sites),
        np.asarray(inner),
        logits,
    )
    return read, find_landmarks(readings.residual, phases)


def _ask(network: Network, levelled: Float, sites: Sites, some: Whole) -> dict[int, Real]:
    """The network's logits of some sites, each of shape (classes,)."""
    if not len(some):
        return {}
    logits = network.run(cut_crops(levelled, sites, some=some)).mean((2, 3))
    return dict(zip(some.tolist(), logits, strict=True))


def trace_sites(
    frames: Sequence[FrameSites],
    offsets: Sequence[Whole],
    lattice: MovieLattice,
    appearance: Appearance,
    *,
    dopant: str,
    pixel_nm: float,
) -> pd.DataFrame:
    """Find every site that is a defect in some frame, and what stands on it in each.

    Parameters
    ----------
    frames, offsets
        Sites of each frame, and what is to be added to its cell numbers (`Drift.offsets`).
    lattice, appearance
        Of the movie.
    dopant
        Element that is known to be there, or "".
    pixel_nm
        Pixel size.

    Returns
    -------
    One row a defect and frame: `frame` (its place in `frames`), `kind`, `kind_p`, `row_px`, `col_px`, `x_nm` and
    `y_nm` (of the site in the first frame's perfect lattice), `sublattice`, `intensity_ratio`, `site`.
    """
    crystal = lattice.crystal
    whole = _list_followed(frames, offsets, appearance)
    origin = _find_origin(frames[0], lattice)
    by_chance = _exceed_by_chance(frames)
    rows = []
    for (i, j, sublattice), site in whole.groupby(["i", "j", "sublattice"], sort=True):
        p, names = _weigh_kinds(frames, site, int(sublattice), lattice, appearance, dopant)
        unusual = 1.0 - p[:, 0]
        found = unusual > _LEAST_P
        over = site["over"].to_numpy()[found]
        if over.max(initial=0.0) < by_chance and (over > 1.0).sum() < max(2, _CLEAR_SHARE * len(over)):
            continue
        y, x = (lattice.place(np.array([i, j]), int(sublattice)) + origin) * pixel_nm
        here = site[found]
        rows.append(
            pd.DataFrame(
                {
                    "frame": here["frame"],
                    "kind": names[p[found, 1:].argmax(1)],
                    "kind_p": p[found, 1:].max(1),
                    "row_px": here["row_px"],
                    "col_px": here["col_px"],
                    "x_nm": x,
                    "y_nm": y,
                    "sublattice": crystal.sublattices[int(sublattice)],
                    "intensity_ratio": here["ratio"],
                    "site": f"{i},{j},{sublattice}",
                }
            )
        )
    if not rows:
        return pd.DataFrame(columns=list(_COLUMNS))
    return _take_brightest(pd.concat(rows, ignore_index=True), reach_nm=_BESIDE_CELLS * crystal.lattice_nm)


def _list_followed(
    frames: Sequence[FrameSites], offsets: Sequence[Whole], appearance: Appearance
) -> pd.DataFrame:
    """Rows of all frames of the sites that look like a defect in one of them."""
    factors = [appearance.compare(seen.ratio, seen.sigma, seen.sublattice) for seen in frames]
    numbers = [seen.number(offset) for seen, offset in zip(frames, offsets, strict=True)]
    unusual = [
        number[seen.inner & (factor > _FOLLOWED)]
        for seen, factor, number in zip(frames, factors, numbers, strict=True)
    ]
    followed = np.unique(np.concatenate(unusual))
    parts = []
    for frame, (seen, offset) in enumerate(zip(frames, offsets, strict=True)):
        kept = np.flatnonzero(seen.inner & np.isin(numbers[frame], followed))
        parts.append(
            pd.DataFrame(
                {
                    "frame": frame,
                    "i": seen.cells[kept, 0] + offset[0],
                    "j": seen.cells[kept, 1] + offset[1],
                    "sublattice": seen.sublattice[kept],
                    "row_px": seen.positions[kept, 0],
                    "col_px": seen.positions[kept, 1],
                    "ratio": seen.ratio[kept],
                    "factor": factors[frame][kept],
                    "over": seen.over[kept],
                    "at": kept,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def _find_origin(first: FrameSites, lattice: MovieLattice) -> Float:
    """Where the first frame's perfect lattice begins, pixels (row, col)."""
    ideal = [lattice.place(first.cells, sublattice) for sublattice in (0, 1)]
    at = np.where((first.sublattice == 0)[:, None], *ideal)
    return np.asarray(np.median(first.positions - at, axis=0))


def _exceed_by_chance(frames: Sequence[FrameSites]) -> float:
    """How far chance alone exceeds one frame's level somewhere in all frames: the largest of more numbers is larger."""
    count = max(float(np.mean([len(seen.positions) for seen in frames])), 2.0)
    return float(np.sqrt(np.log(count * len(frames)) / np.log(count)))


def _weigh_kinds(
    frames: Sequence[FrameSites],
    site: pd.DataFrame,
    sublattice: int,
    lattice: MovieLattice,
    appearance: Appearance,
    dopant: str,
) -> tuple[Float, NDArray[np.object_]]:
    """Probability of the usual column and of each kind of defect in each row of a site, and the kinds' names."""
    ratio = site["ratio"].to_numpy()
    # Named by the frame where it is a defect, not by those where it is none.
    bright = bool(ratio[np.abs(ratio - 1.0).argmax()] > 1.0)
    kinds = list_kinds(lattice.crystal, sublattice)[1:]
    names = np.array([kind.name_in(lattice.crystal, dopant, bright=bright) for kind in kinds], object)
    emission = np.ones((len(frames), 1 + len(kinds)))
    seen_at = site["frame"].to_numpy()
    chance = _compare_kinds(frames, site, sublattice, named=appearance.network is not None)
    emission[seen_at, 1:] = site["factor"].to_numpy()[:, None] * (len(kinds) * chance)
    return smooth(emission, share=appearance.share(sublattice))[seen_at], names


def _compare_kinds(
    frames: Sequence[FrameSites], site: pd.DataFrame, sublattice: int, *, named: bool
) -> Float:
    """How likely each kind of defect is in each row of a site, shape (n, kinds), rows add up to 1."""
    if not named:
        # Brightness alone: darker than usual is a vacancy.
        dark = (site["ratio"] < 1.0).to_numpy(float)
        return np.stack([0.98 * dark + 0.01, 0.99 - 0.98 * dark], axis=1)
    first, end = GROUPS[sublattice]
    nothing = np.zeros(GROUPS[-1][1], np.float32)
    logits = [
        frames[frame].logits.get(at, nothing) for frame, at in zip(site["frame"], site["at"], strict=True)
    ]
    likely = forbid(np.array(logits, float), site["ratio"].to_numpy(float))
    return np.asarray(special.softmax(likely[:, first + 1 : end], axis=1))


def _take_brightest(table: pd.DataFrame, *, reach_nm: float) -> pd.DataFrame:
    """Rows without those of sites that share one bright atom with a brighter site in the same frame."""
    bright = table.groupby("site")["intensity_ratio"].transform("max") > _BRIGHT
    drop: list[int] = []
    for _, rows in table[bright].groupby("frame"):
        places, ratio = rows[["y_nm", "x_nm"]].to_numpy(float), rows["intensity_ratio"].to_numpy(float)
        pairs = cKDTree(places).query_pairs(reach_nm, output_type="ndarray")
        less = np.where(ratio[pairs[:, 0]] < ratio[pairs[:, 1]], pairs[:, 0], pairs[:, 1])
        drop += list(rows.index[np.unique(less)])
    return table.drop(index=drop).reset_index(drop=True)


def smooth(emission: Float, *, share: float) -> Float:
    """Probability of each state in every frame, by a hidden Markov model run forwards and backwards.

    Parameters
    ----------
    emission
        Shape (frames, states): likelihood of a frame under each state, the usual site first; ones where the site was
        not seen.
    share
        Of sites that are defects.

    Returns
    -------
    Shape (frames, states), rows add up to 1.
    """
    count = emission.shape[1] - 1
    step = np.full((count + 1, count + 1), _CHANCES.change / max(count - 1, 1))
    # As many come as go.
    birth = _CHANCES.leave * share / (1.0 - share)
    step[0], step[1:, 0] = birth / count, _CHANCES.leave
    step[0, 0] = 1.0 - birth
    np.fill_diagonal(step[1:, 1:], 1.0 - _CHANCES.leave - (_CHANCES.change if count > 1 else 0.0))
    start = np.full(count + 1, share / count)
    start[0] = 1.0 - share
    forward, backward = np.empty_like(emission), np.ones_like(emission)
    state = start
    for index, seen in enumerate(emission):
        state = (state @ step if index else start) * seen
        state = state / state.sum()
        forward[index] = state
    for index in range(len(emission) - 2, -1, -1):
        ahead = step @ (emission[index + 1] * backward[index + 1])
        backward[index] = ahead / ahead.sum()
    both = forward * backward
    return np.asarray(both / both.sum(1, keepdims=True))
