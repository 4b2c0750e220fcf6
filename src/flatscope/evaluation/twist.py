"""Twist angles against the truth of artificial bilayers, beside simpler ways and the bound that their edges allow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from flatscope.evaluation.metrics import Interval, bootstrap
from flatscope.optical.bilayers import PUBLISHED, RAGGED, Bilayer, BilayerParams, draw_bilayer
from flatscope.optical.twist import measure_twist

MIXES: dict[str, BilayerParams] = {"clean": PUBLISHED, "ragged": RAGGED}
"""The published generator's shapes with exact edges, and masks as a network makes them."""
_DEFINED_CUT = 0.27
"""Crystals with corners cut at more of the side look the same every 60°."""
_LEAST_TOP_PX = 400
_CORRELATION = np.sqrt(np.pi)
"""Integral of a Gaussian correlation over its length of 1/e."""


@dataclass(frozen=True)
class TwistScores:
    """Scores on artificial bilayers, errors in degrees.

    `coverage` is the share of bilayers with a defined twist (corners of both layers cut at less than 0.27 of the side,
    second layer of 400 px or more) that get an angle; `mean_error`, `p95_error` and `max_error` are those of all angles
    under the flag ok; `in_one_sigma` and `in_two_sigma` the shares within the stated error. `folded_error` is the mean
    over all angles folded to [0, 30]°, of hexagonal crystals too. `bound` is the mean error that the edges' roughness
    and length allow, nothing hidden. `constant_error` always says 30°; `moment_error` compares the third moments of
    both layers, whatever they look like.
    """

    coverage: Interval
    mean_error: Interval
    p95_error: float
    max_error: float
    in_one_sigma: Interval
    in_two_sigma: Interval
    folded_error: float
    bound: float
    constant_error: float
    moment_error: float
    bilayers: int
    a_second: float

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return asdict(self)


def evaluate_twist(
    mix: str, count: int, *, seed: int = 5, on_progress: Callable[[int, int], None] | None = None
) -> TwistScores:
    """Score `measure_twist` on artificial bilayers.

    Parameters
    ----------
    mix
        "clean" or "ragged".
    count
        How many are drawn; those with a second layer below 400 px do not count.
    seed
        Settings were chosen on seed 2; keep it apart.
    """
    rows, errors, folded, constant, moment, bounds = [], [], [], [], [], []
    spent = 0.0
    measured = 0
    for index in range(count):
        drawn = draw_bilayer(np.random.default_rng([seed, index]), MIXES[mix])
        if on_progress is not None:
            on_progress(index + 1, count)
        if int((drawn.layers == 2).sum()) < _LEAST_TOP_PX:
            continue
        measured += 1
        begun = time.perf_counter()
        frame = measure_twist(drawn.layers).frame
        spent += time.perf_counter() - begun
        row = frame.loc[frame["area_2l_px"].idxmax()] if len(frame) else None
        stated = row is not None and row["quality"] == "ok"
        defined = max(drawn.cuts) < _DEFINED_CUT
        if defined:
            constant.append(abs(drawn.twist_deg - 30.0))
            moment.append(abs(_moment_twist(drawn.layers) - drawn.twist_deg))
            bounds.append(_bound_deg(drawn, MIXES[mix]))
        if stated and row is not None:
            errors.append((abs(row["twist_deg"] - drawn.twist_deg), row["sigma_deg"]))
        if row is not None and row["quality"] in ("ok", "hexagonal"):
            folded.append(abs(row["twist_fold30_deg"] - min(drawn.twist_deg, 60.0 - drawn.twist_deg)))
        rows.append((int(defined), int(defined and stated)))
    error, sigma = np.reshape(np.array(errors, float), (-1, 2)).T
    one = np.ones_like(error)
    return TwistScores(
        coverage=bootstrap(rows, _share),
        mean_error=bootstrap(np.stack([one, error], 1), _share),
        p95_error=float(np.quantile(error, 0.95)) if len(error) else float("nan"),
        max_error=float(error.max(initial=0.0)),
        in_one_sigma=bootstrap(np.stack([one, error < sigma], 1), _share),
        in_two_sigma=bootstrap(np.stack([one, error < 2.0 * sigma], 1), _share),
        folded_error=float(np.mean(folded)),
        bound=float(np.mean(bounds)),
        constant_error=float(np.mean(constant)),
        moment_error=float(np.mean(moment)),
        bilayers=measured,
        a_second=measured / max(spent, 1e-9),
    )


def _share(sums: NDArray[np.float64]) -> float:
    return float(sums[1] / sums[0]) if sums[0] else float("nan")


def _moment_twist(layers: NDArray[np.uint8]) -> float:
    """Difference of the orientations that third moments give, in [0, 60]: a triangle's points at a corner."""
    turns = []
    for least in (1, 2):
        mask = ndimage.median_filter(layers, 3) >= least
        row, col = np.nonzero(mask)
        if len(row) == 0:
            return 30.0
        z = (col - col.mean()) - 1j * (row - row.mean())
        turns.append(float(np.rad2deg(np.angle((z**3).sum())) / 3.0))
    return abs((turns[1] - turns[0] + 60.0) % 120.0 - 60.0)


def _bound_deg(drawn: Bilayer, params: BilayerParams) -> float:
    """Mean error of the twist if every edge were seen whole and fitted by least squares."""
    variance = 0.0
    for least, cut in zip((1, 2), drawn.cuts, strict=True):
        side = np.sqrt((drawn.layers >= least).sum() / (np.sqrt(3.0) / 4.0 * (1.0 - 3.0 * cut**2)))
        lengths = side * np.array([1.0 - 2.0 * cut] * 3 + [cut] * 3)
        noise = params.roughness_px**2 * params.grain_px * _CORRELATION
        variance += noise / float((lengths**3 / 12.0).sum())
    return float(np.rad2deg(np.sqrt(variance)) * np.sqrt(2.0 / np.pi))
