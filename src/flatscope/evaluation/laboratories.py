"""The flake finder on the pictures of many laboratories, each one batch, beside a rule that knows no physics."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from flatscope.evaluation.collection import (
    Laboratory,
    Mark,
    choose_laboratories,
    draw_pair,
    join_sheet,
    list_pictures,
    read_marks,
)
from flatscope.evaluation.metrics import Interval, Score, bootstrap, ratio
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import MicrographError
from flatscope.optical.flakes import FlakeParams, find_regions, name_layers
from flatscope.optical.regions import Regions
from flatscope.results import FlakeTable

Labels = NDArray[np.int32]
Names = tuple[str, ...]
Oxide = Literal["stated", "open", "both"]

_IN_MARK = 0.5  # a region belongs to a mark if at least this share of it lies inside
_SAME_OUTLINE = 0.5  # intersection over union at which an outline counts as seen
_SAME_BOX = 0.1  # share of a box that its regions cover; a ribbon across the diagonal covers little


@dataclass(frozen=True)
class MarkScores(Score):
    """How flatscope does on the marks of one laboratory: shares of all marks, with 95 % intervals over pictures.

    A mark is `seen` where the regions that flatscope shows (accepted or uncertain) and that lie mostly inside it match
    it: an outline by an overlap (IoU) of one half, a box by a tenth of its area, a place by one region that covers it.
    `stated`: and a single number is named; `among`: the true number is among those named; `right`: it is the single
    one; `of_stated`: right ones of those stated. `false` is the median of thin regions a picture that lie outside
    every mark; masks are not exhaustive. The rest are the same scores of a rule without physics, see
    `number_by_levels`.
    """

    laboratory: str
    oxide: str
    pictures: int
    marks: int
    seen: Interval
    stated: Interval
    among: Interval
    right: Interval
    of_stated: Interval
    false: float
    rule_seen: Interval
    rule_right: Interval
    rule_false: float

    def to_words(self) -> dict[str, str]:
        """A row of a table that fits a terminal: two digits, and intervals for what is seen and right."""
        row = {}
        for name, value in vars(self).items():
            if isinstance(value, Interval):
                ends = f" [{value.low:.2f}, {value.high:.2f}]" if name in ("seen", "right") else ""
                value = f"{value.value:.2f}{ends}"
            row[name.replace("_", " ")] = f"{value:.3g}" if isinstance(value, float) else str(value)
        return row


@dataclass(frozen=True)
class CallScores(Score):
    """What flatscope shows in the pictures of one laboratory.

    `thin` is the median of thin regions a picture. The next five count regions in all pictures: one number named,
    several, none ("unknown"), thick, rejected (those below the smallest area left out).
    """

    laboratory: str
    oxide: str
    pictures: int
    thin: float
    one: int
    several: int
    unknown: int
    thick: int
    rejected: int
    s_a_picture: float


@dataclass(frozen=True)
class LabelScores(Score):
    """What became of the marks of one label: the answers, each with its number, the commonest first."""

    laboratory: str
    oxide: str
    label: str
    marked: int
    seen: int
    right: int
    answers: str
    rule: str


@dataclass(frozen=True)
class NoteScores(Score):
    """A note, and on how many pictures of a laboratory it stands."""

    laboratory: str
    oxide: str
    pictures: int
    note: str


@dataclass(frozen=True)
class _Reply:
    """What was answered to a mark: whether it was seen, and what its largest region was called."""

    mark: Mark
    is_seen: bool
    names: Names


@dataclass(frozen=True)
class _Picture:
    """The replies to the marks of a picture, and its thin regions: outside every mark, and in all."""

    replies: list[_Reply]
    false: int
    thin: int


def evaluate_laboratories(
    data: Path,
    names: Sequence[str] = (),
    *,
    network: Network | None = None,
    oxide: Oxide = "both",
    most_pictures: int | None = None,
    sheets: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[list[MarkScores], list[LabelScores], list[CallScores], list[NoteScores]]:
    """Score the flake finder on the pictures of each laboratory, all of one laboratory as one batch.

    Parameters
    ----------
    data
        Folder with the folders of `LABORATORIES`.
    names
        Of laboratories; none for all that are there.
    oxide
        Give flatscope the stated oxide, leave it open, or one line for each.
    most_pictures
        Pictures of each laboratory, spread over its folder.
    sheets
        Folder for what flatscope makes of each picture, beside the picture and its marks.

    Raises
    ------
    MicrographError
        If the folder or a laboratory is missing.
    """
    network = network or Network.load("flakes")
    batches = [(lab, list_pictures(data, lab, most_pictures)) for lab in choose_laboratories(data, names)]
    total, done = sum(len(paths) for _, paths in batches), 0
    marks: list[MarkScores] = []
    labels: list[LabelScores] = []
    calls: list[CallScores] = []
    notes: list[NoteScores] = []
    for lab, paths in batches:
        batch = _Batch(lab)
        for path in paths:
            batch.add(path, network)
            done += 1
            if on_progress is not None:
                on_progress(done, total)
        for oxide_nm in _choose_oxides(lab, oxide):
            answer = batch.name(oxide_nm)
            marks.extend(answer.score_marks())
            labels.extend(answer.score_labels())
            calls.append(answer.count_calls())
            notes.extend(answer.count_notes())
            if sheets is not None:
                answer.draw(sheets)
    return marks, labels, calls, notes


def _choose_oxides(lab: Laboratory, oxide: Oxide) -> list[float | None]:
    if lab.oxide_nm is None or oxide == "open":
        return [None]
    return [lab.oxide_nm] if oxide == "stated" else [lab.oxide_nm, None]


# --- a batch --------------------------------------------------------------------------------------------------------


class _Batch:
    """The pictures of a laboratory with their marks and regions."""

    def __init__(self, lab: Laboratory) -> None:
        self.lab = lab
        self.paths: list[Path] = []
        self.marks: list[list[Mark]] = []
        self.regions: list[Regions | str] = []
        self.seconds = 0.0

    def add(self, path: Path, network: Network) -> None:
        """Find the regions of one more picture, or why there are none."""
        micrograph = read(path, um_per_px=self.lab.um_per_px)
        begun = time.perf_counter()
        try:
            found: Regions | str = find_regions(micrograph, self._params(None), network=network)
        except MicrographError as error:
            found = str(error)
        self.seconds += time.perf_counter() - begun
        self.paths.append(path)
        self.marks.append(read_marks(path, self.lab, micrograph.shape))
        self.regions.append(found)

    def name(self, oxide_nm: float | None) -> _Answer:
        """Name the layers of all pictures together."""
        usable = [regions for regions in self.regions if isinstance(regions, Regions)]
        begun = time.perf_counter()
        tables = iter(name_layers(usable, self._params(oxide_nm)) if usable else ())
        seconds = self.seconds + time.perf_counter() - begun
        rule = iter(number_by_levels(usable))
        answer = _Answer(self, oxide_nm, seconds / len(self.paths))
        for regions, marks in zip(self.regions, self.marks, strict=True):
            if isinstance(regions, str):
                missed = _Picture([_Reply(mark, False, ()) for mark in marks], 0, 0)
                answer.add(regions, missed, missed)
                continue
            table = next(tables)
            shown = {int(row.region_id): _split(row.layers) for row in table.found.itertuples()}
            answer.add(
                table,
                _score_picture(table.labels, shown, marks),
                _score_picture(table.labels, next(rule), marks),
            )
        return answer

    def _params(self, oxide_nm: float | None) -> FlakeParams:
        return FlakeParams(self.lab.material, oxide_nm=oxide_nm)


@dataclass
class _Answer:
    """What flatscope and the rule without physics make of a batch."""

    batch: _Batch
    oxide_nm: float | None
    s_a_picture: float
    tables: list[FlakeTable | str] = field(default_factory=list)
    ours: list[_Picture] = field(default_factory=list)
    rule: list[_Picture] = field(default_factory=list)

    def add(self, table: FlakeTable | str, ours: _Picture, rule: _Picture) -> None:
        self.tables.append(table)
        self.ours.append(ours)
        self.rule.append(rule)

    @property
    def oxide(self) -> str:
        """The oxide that flatscope was given, in words."""
        return "open" if self.oxide_nm is None else f"{self.oxide_nm:g} nm"

    def score_marks(self) -> list[MarkScores]:
        """The line of a laboratory, or none if nothing is marked in its pictures."""
        ours, rule = self._count(self.ours), self._count(self.rule)
        if not ours[:, 0].any():
            return []
        return [
            MarkScores(
                self.batch.lab.name,
                self.oxide,
                pictures=len(self.tables),
                marks=int(ours[:, 0].sum()),
                seen=bootstrap(ours, ratio(1, 0)),
                stated=bootstrap(ours, ratio(2, 0)),
                among=bootstrap(ours, ratio(3, 0)),
                right=bootstrap(ours, ratio(4, 0)),
                of_stated=bootstrap(ours, ratio(4, 2)),
                false=float(np.median(ours[:, 5])),
                rule_seen=bootstrap(rule, ratio(1, 0)),
                rule_right=bootstrap(rule, ratio(4, 0)),
                rule_false=float(np.median(rule[:, 5])),
            )
        ]

    def count_calls(self) -> CallScores:
        """What is shown, whether or not it is marked."""
        calls = Counter(
            call for table in self.tables if isinstance(table, FlakeTable) for call in _classify(table)
        )
        return CallScores(
            self.batch.lab.name,
            self.oxide,
            pictures=len(self.tables),
            thin=float(np.median([picture.thin for picture in self.ours])),
            s_a_picture=self.s_a_picture,
            **{call: calls[call] for call in ("one", "several", "unknown", "thick", "rejected")},
        )

    def _count(self, pictures: list[_Picture]) -> NDArray[np.float64]:
        """One row a picture: marked, seen, stated, among, right, false."""
        material = self.batch.lab.material
        rows = []
        for picture in pictures:
            seen = [reply for reply in picture.replies if reply.is_seen]
            agree = [[reply.mark.is_right(name, material) for name in reply.names] for reply in seen]
            stated = sum(len(each) == 1 for each in agree)
            right = sum(each == [True] for each in agree)
            rows.append(
                (
                    len(picture.replies),
                    len(seen),
                    stated,
                    sum(map(any, agree)),
                    right,
                    picture.false,
                )
            )
        return np.array(rows, float)

    def score_labels(self) -> list[LabelScores]:
        """A line for each label of the marks."""
        ours = [reply for picture in self.ours for reply in picture.replies]
        rule = [reply for picture in self.rule for reply in picture.replies]
        lines = []
        for label in sorted({reply.mark.label for reply in ours}):
            of_label = [reply for reply in ours if reply.mark.label == label]
            right = [
                len(r.names) == 1 and r.mark.is_right(r.names[0], self.batch.lab.material) for r in of_label
            ]
            lines.append(
                LabelScores(
                    self.batch.lab.name,
                    self.oxide,
                    label,
                    len(of_label),
                    sum(reply.is_seen for reply in of_label),
                    sum(right),
                    _tally(of_label),
                    _tally([reply for reply in rule if reply.mark.label == label]),
                )
            )
        return lines

    def count_notes(self) -> list[NoteScores]:
        """Every note, with the number of its pictures; "#" stands for numbers that differ."""
        notes = Counter(
            re.sub(r"\d[\d.]*", "#", note)
            for table in self.tables
            for note in ((table,) if isinstance(table, str) else table.provenance.notes)
        )
        lab = self.batch.lab.name
        return [NoteScores(lab, self.oxide, count, note) for note, count in notes.most_common()]

    def draw(self, folder: Path) -> None:
        """Save each picture with its marks beside what flatscope shows, and one sheet of them all."""
        where = folder / f"{self.batch.lab.name}, oxide {self.oxide}"
        where.mkdir(parents=True, exist_ok=True)
        pairs = []
        for path, marks, table in zip(self.batch.paths, self.batch.marks, self.tables, strict=True):
            pair = draw_pair(path, marks, table)
            pair.save(where / f"{path.stem}.png")
            pairs.append(pair)
        join_sheet(pairs).save(folder / f"{where.name}.png")


def _split(layers: str) -> Names:
    """The numbers that a cell of the column `layers` names: none where the number is not known."""
    return tuple(name for name in str(layers).split("|") if name.isdigit() or name.startswith("thick"))


def _classify(table: FlakeTable) -> Iterator[str]:
    for row in table.frame.itertuples():
        names = _split(row.layers)
        if row.status == "rejected":
            if row.reason != "below minimum area":
                yield "rejected"
        elif not names:
            yield "unknown"
        elif names[0].startswith("thick"):
            yield "thick"
        else:
            yield "one" if len(names) == 1 else "several"


def _tally(replies: list[_Reply]) -> str:
    words = [("|".join(reply.names) or "unknown") if reply.is_seen else "not seen" for reply in replies]
    return ", ".join(f"{word}: {count}" for word, count in Counter(words).most_common())


# --- marks ----------------------------------------------------------------------------------------------------------


def _score_picture(labels: Labels, shown: dict[int, Names], marks: list[Mark]) -> _Picture:
    """Compare the regions that are shown, each with its numbers, with the marks of a picture."""
    areas = np.bincount(labels.ravel())
    is_shown = np.zeros(len(areas), bool)
    is_shown[list(shown)] = True
    marked = np.zeros(len(areas), bool)
    replies = []
    for mark in marks:
        inside = np.bincount(labels[mark.pixels], minlength=len(areas)) * is_shown
        mine = (inside >= 0.5 * mark.pixels.sum()) if mark.shape == "place" else inside >= _IN_MARK * areas
        mine &= inside > 0
        marked |= mine
        cover = inside[mine].sum() / mark.pixels.sum()
        if mark.shape == "outline":
            cover = inside[mine].sum() / (mark.pixels.sum() + (areas - inside)[mine].sum())
        is_seen = bool(cover >= (_SAME_BOX if mark.shape == "box" else _SAME_OUTLINE))
        replies.append(_Reply(mark, is_seen, shown[int((inside * mine).argmax())] if is_seen else ()))
    thin = [region for region, names in shown.items() if names[:1] != ("thick",)]
    return _Picture(replies, sum(not marked[region] for region in thin), len(thin))


# --- a rule without physics -----------------------------------------------------------------------------------------

_CREST = 0.3  # a level counts from this share of the most frequent one's density on
_LEVEL_WIDTH = 0.08  # relative width (1 sigma) of a level
_FAINTEST = 0.02  # contrast below which nothing is a level
_STRONGEST = 0.6  # contrast above which a crystal is thick


def number_by_levels(pictures: Sequence[Regions]) -> list[dict[int, Names]]:
    """Number the contrast levels of a batch: the first strong one is a monolayer, the next a bilayer.

    It knows no optics, no material and no oxide, and takes the crystals that the network sees: the baseline that layer
    counting has to beat.

    Returns
    -------
    For each picture, the regions that it shows and the number of each.
    """
    counted = [_evenly_coloured(regions) for regions in pictures]
    contrasts = [regions.measured.contrast[which] for regions, which in zip(pictures, counted, strict=True)]
    weights = np.concatenate([
        np.sqrt(regions.measured.area_px[which]) for regions, which in zip(pictures, counted, strict=True)
    ] or [np.zeros(0)])  # fmt: skip
    if not weights.sum():
        return [{} for _ in pictures]
    # The channel in which thin crystals show best.
    channel = int(
        np.average(
            np.minimum(np.abs(np.concatenate(contrasts)), _STRONGEST), axis=0, weights=weights
        ).argmax()
    )
    strengths = [np.abs(contrast[:, channel]) for contrast in contrasts]
    levels = _find_levels(np.concatenate(strengths), weights)
    shown = []
    for which, strength in zip(counted, strengths, strict=True):
        nearest = np.abs(np.log(np.maximum(strength, 1e-6))[:, None] - np.log(levels)).argmin(1)
        names: dict[int, Names] = {}
        for index, level, value in zip(np.flatnonzero(which), nearest, strength, strict=True):
            if len(levels) and value > levels[0] * (1.0 - 3.0 * _LEVEL_WIDTH):
                is_thick = value > max(_STRONGEST, levels[-1] * (1.0 + 3.0 * _LEVEL_WIDTH)) or level >= 6
                names[int(index) + 1] = ("thick",) if is_thick else (str(level + 1),)
        shown.append(names)
    return shown


def _evenly_coloured(regions: Regions) -> NDArray[np.bool_]:
    contrast = np.abs(regions.measured.contrast).max(1, initial=0.0)
    even = regions.uneven.max(1, initial=0.0) < 0.3 * contrast
    return regions.large_enough & ~regions.foreign & even & (contrast > _FAINTEST)


def _find_levels(strength: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Crests of the density of contrasts over a logarithmic scale, the weakest first."""
    scale = np.linspace(np.log(_FAINTEST), np.log(_STRONGEST), 400)
    away = (scale[:, None] - np.log(np.maximum(strength, 1e-6))) / _LEVEL_WIDTH
    density = np.pad((np.exp(-0.5 * away**2) * weights).sum(1), 1)
    crests = signal.find_peaks(density, height=_CREST * density.max())[0] - 1
    return np.exp(scale[crests])
