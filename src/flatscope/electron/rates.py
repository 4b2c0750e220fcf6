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
_OVER_THE_BORDER = ("entered", "left")  # events of the field, not of the crystal
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
    events: pd.DataFrame, tracks: pd.DataFrame, frames: Whole, *, area_nm2: float, frame_s: float | None
) -> pd.DataFrame:
    """How often each event happens from one frame to the next, and per second.

    A new defect can appear anywhere in the crystal, so appearances count per area. All else happens to a defect that is
    there. What comes in and leaves over the border of the field is no event of the crystal and has no rate.

    Parameters
    ----------
    events
        Columns as `flatscope.results.EVENT_COLUMNS`.
    tracks
        Columns as `flatscope.results.TRACK_COLUMNS`.
    frames
        Numbers of the frames that were read.
    area_nm2
        Crystal in which a defect would have been seen.
    frame_s
        Time from one frame to the next, or None.

    Returns
    -------
    Columns `event`, `count`, `per` ("nm²" or "defect"), `per_frame` with the exact 95 % interval of a count, `low` and
    `high`, and `per_s` (NaN where the time of a frame is unknown). The events of a single track say nothing about other
    defects: their interval is NaN, unknown.
    """
    steps = _find_steps(tracks, frames, left=set(events.loc[events["event"] == "left", "track_id"]))
    at_risk = max(float(sum(steps.values())), 1.0)
    several = sum(count > 0 for count in steps.values()) > 1
    rows = []
    for name, count in sorted(events["event"].value_counts().items()):
        if name in _OVER_THE_BORDER:
            continue
        by_area = name == "appearance"
        exposure = area_nm2 * max(len(frames) - 1, 1) if by_area else at_risk
        low, high = np.nan, np.nan
        if by_area or several:
            low, high = special.gammaincinv((count, count + 1), (0.025, 0.975)) / exposure
        rate = count / exposure
        row = (name, int(count), "nm²" if by_area else "defect", rate, float(low), float(high))
        rows.append((*row, rate / frame_s if frame_s else np.nan))
    return pd.DataFrame(rows, columns=["event", "count", "per", "per_frame", "low", "high", "per_s"])


def _find_steps(tracks: pd.DataFrame, frames: Whole, *, left: Collection[int]) -> dict[int, int]:
    """From how many frames to the next each track was watched, also where a frame missed it."""
    order = {int(frame): number for number, frame in enumerate(frames)}
    spans = tracks.groupby("track_id")["frame"].agg(["min", "max"])
    return {
        int(track_id): order[last] - order[first] + int(last != frames[-1] and track_id not in left)
        for track_id, first, last in spans.itertuples()
    }


def measure_dwell(tracks: pd.DataFrame, frames: Whole, *, left: Collection[int] = ()) -> pd.DataFrame:
    """How long defects stay on a site as one kind.

    Parameters
    ----------
    tracks, frames
        As for `measure_rates`.
    left
        Tracks that go out of the field: how long their last stay goes on is unknown.

    Returns
    -------
    Columns `track_id`, `kind`, `frames`, `cut`: whether the stay began or ended with the movie, so that it was longer,
    and `ended`: whether its end was seen.
    """
    rows = []
    for track_id, track in tracks.sort_values("frame").groupby("track_id"):
        change = (track[["site", "kind"]] != track[["site", "kind"]].shift()).any(axis=1).cumsum()
        for number, stay in track.groupby(change):
            begin, end = stay["frame"].iloc[0], stay["frame"].iloc[-1]
            cut = begin == frames[0] or end == frames[-1]
            ended = number < change.iloc[-1] or (end != frames[-1] and track_id not in left)
            rows.append((track_id, stay["kind"].iloc[0], int(end - begin + 1), bool(cut), bool(ended)))
    return pd.DataFrame(rows, columns=["track_id", "kind", "frames", "cut", "ended"])


def measure_lifetimes(stays: pd.DataFrame, *, frame_s: float | None) -> pd.DataFrame:
    """Mean time for which a defect of each kind stays on its site, from stays whose ends were seen and others.

    An exponential law: the chance to leave from one frame to the next is the number of ends that were seen over the
    number of steps that were watched. It has no memory, so a stay that had begun before the movie counts from its
    first frame, and one that outlasts the movie counts without an end. Leaving out the latter would favour short stays.

    Parameters
    ----------
    stays
        What `measure_dwell` found.
    frame_s
        Time from one frame to the next, or None.

    Returns
    -------
    Columns `kind`, `stays`, `ended`, `mean_frames` with its 95 % interval `low` and `high` (from Clopper and Pearson's
    of that chance; infinite where no end was seen, NaN where all stays are one track's), and `mean_s`.
    """
    rows = []
    for kind, own in stays.groupby("kind"):
        ended = int(own["ended"].sum())
        steps = int((own["frames"] - 1).sum()) + ended
        low, high = np.nan, np.nan
        if own["track_id"].nunique() > 1 and steps:
            often = special.betaincinv(ended + 1, steps - ended, 0.975) if ended < steps else 1.0
            rarely = special.betaincinv(ended, steps - ended + 1, 0.025) if ended else 0.0
            low, high = _mean_stay(often), _mean_stay(rarely)
        mean = _mean_stay(ended / steps) if steps else np.nan
        rows.append((kind, len(own), ended, mean, low, high, mean * frame_s if frame_s else np.nan))
    return pd.DataFrame(rows, columns=["kind", "stays", "ended", "mean_frames", "low", "high", "mean_s"])


def _mean_stay(chance: float) -> float:
    """Mean time, in frames, before something happens that happens from one frame to the next with this chance."""
    if chance in (0.0, 1.0):
        return np.inf if chance == 0.0 else 0.0
    return float(-1.0 / np.log1p(-chance))


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

    `coefficient` with its 95 % interval (jackknife over tracks and Student's distribution; NaN for a single track) is
    the slope of the mean squared displacement, its intercept set free for the error of places, which is `error_nm`
    along either axis; `by_variance` is that of the published studies, the variance of the steps from one frame to the
    next over four, which counts that error as motion.
    """

    kind: str
    tracks: int
    coefficient: float
    low: float
    high: float
    error_nm: float
    by_variance: float


def measure_diffusion(tracks: pd.DataFrame, *, lags: int = 5) -> list[Diffusion]:
    """Diffusion of each kind of defect that is followed over more than `lags` frames.

    Parameters
    ----------
    tracks
        Columns as `flatscope.results.TRACK_COLUMNS`.
    lags
        Largest number of frames between two places.
    """
    found = []
    main = tracks.groupby("track_id")["kind"].agg(lambda kinds: kinds.mode().iloc[0])
    for kind in sorted(set(main)):
        sums = [
            _square(tracks[tracks["track_id"] == track_id], lags) for track_id in main.index[main == kind]
        ]
        whole = np.array([one for one in sums if one[1].min() > 0])
        if not len(whole):
            continue
        slope, intercept = _fit_slope(whole.sum(0))
        half = _find_half_width(whole)
        total, count = whole.sum(0)[:, 0]
        error = float(np.sqrt(max(intercept, 0.0) / 4.0))
        low, high = (
            (max(slope - half, 0.0) / 4.0, (slope + half) / 4.0) if half < np.inf else (np.nan, np.nan)
        )
        found.append(Diffusion(kind, len(whole), slope / 4.0, low, high, error, float(total / count) / 4.0))
    return found


def _find_half_width(sums: Float) -> float:
    """Half of the 95 % interval of the slope of all tracks together, from how it changes without each of them."""
    count = len(sums)
    if count < 2:
        return np.inf
    without = np.array([_fit_slope(sums.sum(0) - one)[0] for one in sums])
    sigma = np.sqrt((count - 1) / count * np.square(without - without.mean()).sum())
    return float(special.stdtrit(count - 1, 0.975) * sigma)


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
