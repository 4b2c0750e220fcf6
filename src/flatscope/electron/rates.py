"""What the tracks of a movie say: events, counts, dwell times, transitions and diffusion, with intervals."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from flatscope.results import EVENT_COLUMNS, column_names

Float = NDArray[np.float64]
Whole = NDArray[np.int64]

_SAME_NM = 1e-3  # places in a perfect lattice that differ by less are one site
_PRIOR = 0.5  # Jeffreys' prior of a transition matrix
_BOOTSTRAP = 500  # samples of tracks behind an interval
GONE = "none"
"""Kind of a defect that is gone one frame later."""


def find_events(
    tracks: pd.DataFrame, frames: Whole, *, shape: tuple[int, ...], margin_px: float
) -> pd.DataFrame:
    """What happens in a movie.

    Parameters
    ----------
    tracks
        Columns as `flatscope.results.TRACK_COLUMNS`.
    frames
        Numbers of the frames that were read.
    shape
        Of a frame.
    margin_px
        Tracks that begin or end so near the border have come in or gone out.

    Returns
    -------
    Columns `flatscope.results.EVENT_COLUMNS`.
    """
    rows: list[dict[str, object]] = []
    after = dict(zip(frames, [*frames[1:], frames[-1] + 1], strict=True))
    for _, track in tracks.sort_values("frame").groupby("track_id"):
        records = track.to_dict("records")
        first, last = records[0], records[-1]
        if first["frame"] != frames[0]:
            rows.append(
                _event(
                    "entered" if _at_rim(first, shape, margin_px) else "appearance", first, "", first["kind"]
                )
            )
        for one, two in itertools.pairwise(records):
            distance = float(np.hypot(two["x_nm"] - one["x_nm"], two["y_nm"] - one["y_nm"]))
            if distance > _SAME_NM:
                rows.append(_event("hop", two, one["kind"], two["kind"]) | {"distance_nm": distance})
            # After a gap elsewhere and as another kind it is rather another defect than a change.
            if one["kind"] != two["kind"] and (distance <= _SAME_NM or after[one["frame"]] == two["frame"]):
                rows.append(_event("transformation", two, one["kind"], two["kind"]))
        if last["frame"] != frames[-1]:
            name = "left" if _at_rim(last, shape, margin_px) else "disappearance"
            step = last["time_s"] / last["frame"] if last["frame"] else np.nan
            frame = int(after[last["frame"]])
            rows.append(_event(name, last, last["kind"], "") | {"frame": frame, "time_s": step * frame})
    events = pd.DataFrame(rows, columns=list(column_names(EVENT_COLUMNS)))
    return events.sort_values(["frame", "track_id"], ignore_index=True)


def _event(name: str, row: dict[str, object], before: object, after: object) -> dict[str, object]:
    kept = {key: row[key] for key in ("image", "track_id", "frame", "time_s", "x_nm", "y_nm")}
    return {**kept, "event": name, "kind": before, "kind_after": after, "distance_nm": np.nan}


def _at_rim(row: dict[str, object], shape: tuple[int, ...], margin: float) -> bool:
    place = np.array([row["row_px"], row["col_px"]], float)
    return bool(((place < margin) | (place > np.array(shape) - 1.0 - margin)).any())


def count_kinds(tracks: pd.DataFrame, frames: Whole) -> pd.DataFrame:
    """Number of defects of each kind (columns) in each frame (rows)."""
    counts = pd.crosstab(tracks["frame"], tracks["kind"])
    return counts.reindex(frames, fill_value=0)


def measure_rates(
    events: pd.DataFrame, tracks: pd.DataFrame, frames: Whole, *, frame_s: float | None
) -> pd.DataFrame:
    """How often each event happens to a defect from one frame to the next, and per second, with the exact 95 % interval
    of a count.

    Returns
    -------
    Columns `event`, `count`, `per_frame`, `low`, `high`, `per_s` (NaN where the time of a frame is unknown).
    """
    # In the last frame nothing can happen any more.
    exposure = max(float((tracks["frame"] < frames[-1]).sum()), 1.0)
    rows = []
    for name, count in sorted(events["event"].value_counts().items()):
        low = special.gammaincinv(count, 0.025) / exposure
        high = special.gammaincinv(count + 1, 0.975) / exposure
        rows.append(
            (name, int(count), count / exposure, low, high, count / exposure / frame_s if frame_s else np.nan)
        )
    return pd.DataFrame(rows, columns=["event", "count", "per_frame", "low", "high", "per_s"])


def measure_dwell(tracks: pd.DataFrame, frames: Whole) -> pd.DataFrame:
    """How long defects stay on a site as one kind.

    Returns
    -------
    Columns `track_id`, `kind`, `frames`, and `cut`: whether the stay began or ended with the movie, so that it was
    longer.
    """
    rows = []
    for track_id, track in tracks.sort_values("frame").groupby("track_id"):
        change = (track[["site", "kind"]] != track[["site", "kind"]].shift()).any(axis=1).cumsum()
        for _, stay in track.groupby(change):
            begin, end = stay["frame"].iloc[0], stay["frame"].iloc[-1]
            cut = begin == frames[0] or end == frames[-1]
            rows.append((track_id, stay["kind"].iloc[0], int(end - begin + 1), bool(cut)))
    return pd.DataFrame(rows, columns=["track_id", "kind", "frames", "cut"])


def count_transitions(tracks: pd.DataFrame, frames: Whole, *, left: Collection[int] = ()) -> pd.DataFrame:
    """What a defect is one frame later, or after a gap in which it was not seen.

    Parameters
    ----------
    tracks
        Columns as `flatscope.results.TRACK_COLUMNS`.
    frames
        Numbers of the frames that were read.
    left
        Tracks that go out of the field: how they end says nothing.

    Returns
    -------
    Columns `kind`, `kind_after` ("none" where it is gone), `count`, and the probability `p` with its 95 % interval
    `low`, `high` under a Dirichlet posterior with Jeffreys' prior.
    """
    kinds = sorted(set(tracks["kind"]))
    counts = pd.DataFrame(0, index=kinds, columns=[*kinds, GONE])
    for track_id, track in tracks.sort_values("frame").groupby("track_id"):
        names = list(track["kind"])
        for one, two in itertools.pairwise(names):
            counts.loc[one, two] += 1
        if track["frame"].iloc[-1] != frames[-1] and track_id not in left:
            counts.loc[names[-1], GONE] += 1
    rows = []
    for kind in kinds:
        total = float(counts.loc[kind].sum()) + _PRIOR * counts.shape[1]
        for other in counts.columns:
            count = int(counts.loc[kind, other])
            one = count + _PRIOR
            low, high = (float(special.betaincinv(one, total - one, q)) for q in (0.025, 0.975))
            rows.append((kind, other, count, one / total, low, high))
    return pd.DataFrame(rows, columns=["kind", "kind_after", "count", "p", "low", "high"])


@dataclass(frozen=True)
class Diffusion:
    """Diffusion of the defects of one kind, nm² a frame.

    `coefficient` with its 95 % interval (bootstrap over tracks) is the slope of the mean squared displacement, its
    intercept set free for the error of places, which is `error_nm` along either axis; `by_variance` is that of the
    published studies, the variance of the steps from one frame to the next over four, which counts that error as
    motion.
    """

    kind: str
    tracks: int
    coefficient: float
    low: float
    high: float
    error_nm: float
    by_variance: float


def measure_diffusion(tracks: pd.DataFrame, *, lags: int = 5, seed: int = 0) -> list[Diffusion]:
    """Diffusion of each kind of defect that is followed over more than `lags` frames.

    Parameters
    ----------
    tracks
        Columns as `flatscope.results.TRACK_COLUMNS`.
    lags
        Largest number of frames between two places.
    seed
        Of the bootstrap.
    """
    found = []
    rng = np.random.default_rng(seed)
    main = tracks.groupby("track_id")["kind"].agg(lambda kinds: kinds.mode().iloc[0])
    for kind in sorted(set(main)):
        sums = [
            _square(tracks[tracks["track_id"] == track_id], lags) for track_id in main.index[main == kind]
        ]
        whole = np.array([one for one in sums if one[1].min() > 0])
        if not len(whole):
            continue
        slope, intercept = _fit_slope(whole.sum(0))
        again = [
            _fit_slope(whole[rng.integers(len(whole), size=len(whole))].sum(0))[0] for _ in range(_BOOTSTRAP)
        ]
        low, high = np.quantile(again, (0.025, 0.975))
        total, count = whole.sum(0)[:, 0]
        found.append(
            Diffusion(
                kind,
                len(whole),
                slope / 4.0,
                float(low) / 4.0,
                float(high) / 4.0,
                float(np.sqrt(max(intercept, 0.0) / 4.0)),
                float(total / count) / 4.0,
            )
        )
    return found


def _square(track: pd.DataFrame, lags: int) -> Float:
    """Sum of squared displacements over 1 to `lags` frames, and how many there are, shape (2, lags)."""
    known = track.set_index("frame")[["x_nm", "y_nm"]]
    whole = known.reindex(np.arange(known.index.min(), known.index.max() + 1)).to_numpy(float)
    result = np.zeros((2, lags))
    for lag in range(1, min(lags, len(whole) - 1) + 1):
        squared = np.square(whole[lag:] - whole[:-lag]).sum(1)
        seen = np.isfinite(squared)
        result[:, lag - 1] = squared[seen].sum(), seen.sum()
    return result


def _fit_slope(sums: Float) -> tuple[float, float]:
    """Slope and intercept of the mean squared displacement against the number of frames."""
    lag = np.arange(1, sums.shape[1] + 1)
    slope, intercept = np.polyfit(lag, sums[0] / sums[1], 1, w=np.sqrt(sums[1]))
    return float(slope), float(intercept)
