"""The files of a run: flakes.csv, flakes.geojson, report.html, run.json, kept up to date while pictures come in."""

from __future__ import annotations

import datetime
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import flatscope
from flatscope.app.batch import Answer, Job
from flatscope.files.write import write_atomic
from flatscope.optical.flakes import sort_by_interest
from flatscope.report.page import PictureEntry, RunRecord, build_page
from flatscope.results import FLAKE_COLUMNS, column_names
from flatscope.results.exports.geojson import encode_outlines

_SAVE_EVERY_S = 10.0
_WHOLE_NUMBERS = ("flake_id", "region_id", "area_px")
_PACKAGES = ("numpy", "scipy", "scikit-image", "onnxruntime", "pillow", "pandas")


@dataclass
class RunFiles:
    """Collects answers and writes what belongs to the run as a whole.

    Parameters
    ----------
    out
        Folder; made on the first write.
    jobs
        All pictures that were asked for.
    settings
        For run.json and the report.
    weights, weights_sha256
        Name and digest of the network.
    command
        The command line.
    title
        Head of the report.
    """

    out: Path
    jobs: Sequence[Job]
    settings: dict[str, Any]
    weights: str
    weights_sha256: str
    command: Sequence[str] = ()
    title: str = ""
    answers: dict[int, Answer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._begun = time.perf_counter()
        self._saved = self._begun
        self._started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._by_stem = {job.stem: index for index, job in enumerate(self.jobs)}

    def add(self, answer: Answer) -> None:
        """Take an answer; now and then write the table, so that even a power cut leaves most of it."""
        self.answers[self._by_stem[answer.job.stem]] = answer
        if time.perf_counter() - self._saved > _SAVE_EVERY_S:
            self.write_tables(complete=False)
            self._saved = time.perf_counter()

    @property
    def ordered(self) -> list[Answer]:
        """Answers in the order of the inputs, which does not depend on the number of workers."""
        return [self.answers[index] for index in sorted(self.answers)]

    @property
    def failed(self) -> list[Answer]:
        """Answers that name a failure."""
        return [answer for answer in self.ordered if answer.failure]

    def frame(self) -> pd.DataFrame:
        """All rows: regions sorted by interest over all pictures, rejected ones after them, failed pictures last."""
        answers = self.ordered
        regions = [answer.frame for answer in answers if not answer.failure and len(answer.frame)]
        rows: list[pd.DataFrame] = []
        if regions:
            # The pictures are in the order of the inputs and the sort is stable, so ties do not move.
            rows.append(sort_by_interest(pd.concat(regions, ignore_index=True)))
        rows += [answer.frame for answer in answers if answer.failure]
        if not rows:
            return pd.DataFrame(columns=list(column_names(FLAKE_COLUMNS)))
        whole = pd.concat([part.astype(object) for part in rows], ignore_index=True)[
            list(column_names(FLAKE_COLUMNS))
        ]
        for name in whole.columns:
            whole[name] = whole[name].infer_objects()
        for name in _WHOLE_NUMBERS:
            whole[name] = whole[name].astype("Float64").astype("Int64")
        return whole

    def write_all(self, *, complete: bool) -> Path:
        """Write the table, outlines, run.json and report; the report's path."""
        frame = self.write_tables(complete=complete)
        outlines = [outline for answer in self.ordered for outline in answer.outlines]
        write_atomic(self.out / "flakes.geojson", encode_outlines(outlines))
        entries = [_as_entry(answer) for answer in self.ordered]
        page = build_page(entries, frame, self._describe(complete=complete))
        return write_atomic(self.out / "report.html", page)

    def write_tables(self, *, complete: bool) -> pd.DataFrame:
        """Write flakes.csv and run.json; all rows."""
        frame = self.frame()
        write_atomic(self.out / "flakes.csv", frame.to_csv(index=False, float_format="%.6g"))
        record = json.dumps(self.record(complete=complete), indent=2, ensure_ascii=False, allow_nan=False)
        write_atomic(self.out / "run.json", record + "\n")
        return frame

    def record(self, *, complete: bool) -> dict[str, Any]:
        """What run.json holds."""
        return {
            "flatscope": flatscope.__version__,
            "command": list(self.command),
            "started": self._started,
            "seconds": round(time.perf_counter() - self._begun, 3),
            "complete": complete,
            "settings": self.settings,
            "weights": {"name": self.weights, "sha256": self.weights_sha256},
            "machine": {
                "python": platform.python_version(),
                "system": platform.platform(),
                **{name: metadata.version(name) for name in _PACKAGES},
            },
            "timings_s": self.timings(),
            "pictures": [
                _as_record(self.answers[index]) if index in self.answers else _as_unreached(job)
                for index, job in enumerate(self.jobs)
            ],
        }

    def timings(self) -> dict[str, float]:
        """Seconds of each stage, summed over pictures."""
        total: dict[str, float] = {}
        for answer in self.ordered:
            for stage, seconds in answer.timings_s.items():
                total[stage] = round(total.get(stage, 0.0) + seconds, 4)
        return total

    def _describe(self, *, complete: bool) -> RunRecord:
        count = len(self.answers)
        warnings = []
        if not complete:
            warnings.append(f"Interrupted: {count} of {len(self.jobs)} pictures were analysed.")
        uncalibrated = sum(
            1 for answer in self.ordered if not answer.failure and answer.pixel_size_um is None
        )
        if uncalibrated:
            warnings.append(
                f"The pixel size of {uncalibrated} picture{'s are' if uncalibrated > 1 else ' is'} unknown: "
                "areas are in pixels. Pass --um-per-px to get µm²."
            )
        return RunRecord(
            title=self.title or f"Flakes in {count} picture{'s' if count != 1 else ''}",
            started=self._started,
            settings=self.settings,
            versions={
                "flatscope": flatscope.__version__,
                "weights": f"{self.weights}, sha256 {self.weights_sha256}",
                "Python": f"{sys.version_info.major}.{sys.version_info.minor}.{sys.version_info.micro}",
                "command": " ".join(self.command),
            },
            timings_s=self.timings(),
            warnings=tuple(warnings),
        )


def _as_entry(answer: Answer) -> PictureEntry:
    facts = []
    if not answer.failure:
        facts.append(f"{answer.shape[1]} × {answer.shape[0]} px")
        size = answer.pixel_size_um
        said = {"file": "the file", "user": "you", "lattice": "the lattice"}
        facts.append("pixel size unknown" if size is None else f"{size[1]:.4g} µm/px (from {said[size[2]]})")
        params = answer.job.params
        nominal = "" if params.oxide_nm is None else f" on nominally {params.oxide_nm:g} nm oxide"
        facts.append(f"{params.material}{nominal}")
    return PictureEntry(
        image=answer.job.image,
        frame=answer.frame,
        before=answer.before,
        after=answer.after,
        thumbnails=answer.thumbnails,
        failure=answer.failure,
        notes=answer.notes,
        facts=tuple(facts),
        calibrated=answer.pixel_size_um is not None,
    )


def _as_record(answer: Answer) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": answer.job.image, "source": str(answer.job.path.resolve())}
    if answer.failure:
        return {**entry, "status": "failed", "reason": answer.failure}
    status = answer.frame["status"]
    found = int(status.isin(("accepted", "uncertain")).sum())
    rejected = status == "rejected"
    entry |= {
        "status": "analysed",
        "reason": "" if found else "; ".join(answer.notes) or "nothing stands out from the substrate",
        "sha256": answer.provenance.image_sha256 if answer.provenance else "",
        "rows_px": answer.shape[0],
        "cols_px": answer.shape[1],
        "pixel_size_um": None if answer.pixel_size_um is None else list(answer.pixel_size_um[:2]),
        "pixel_size_source": None if answer.pixel_size_um is None else answer.pixel_size_um[2],
        "settings": answer.provenance.settings if answer.provenance else {},
        "regions_found": found,
        "regions_rejected": {
            str(k): int(v) for k, v in answer.frame[rejected]["reason"].value_counts().items()
        },
        "notes": list(answer.notes),
        "timings_s": answer.timings_s,
        "files": [f"{answer.job.stem}.layers.png", f"{answer.job.stem}.overlay.png"],
    }
    return json.loads(json.dumps(entry, default=_to_plain))


def _as_unreached(job: Job) -> dict[str, Any]:
    return {"image": job.image, "source": str(job.path.resolve()), "status": "not analysed"}


def _to_plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)
