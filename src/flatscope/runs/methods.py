"""What a paper says of a run: settings, versions, counts and their uncertainties, in a few sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from flatscope.results import count_densities
from flatscope.runs.workbench import Workbench

_WHAT = {
    "flakes": "Crystals of {material} were found in {count} light micrograph{s}",
    "twist": "Twist angles of stacked {material} crystals were measured in {count} light micrograph{s}",
    "atoms": "Atomic columns of {material} were located in {count} electron micrograph{s}",
    "moire": "Both lattices of twisted bilayers were measured in {count} electron micrograph{s}",
    "defects": "Point defects of {material} were identified in {count} electron micrograph{s} or movies",
}
_UNSAID = ("weights", "flatfield", "material", "nk", "signal", "labels")
"""Settings that are said elsewhere, or belong to a file."""


def describe_run(bench: Workbench) -> str:
    """Describe a run for a methods section."""
    record = bench.record
    settings: Mapping[str, Any] = record.get("settings", {})
    done = sum(entry.status == "analysed" for entry in bench.entries)
    failed = sum(entry.status == "failed" for entry in bench.entries)
    words = {"material": settings.get("material") or "the material", "count": done, "s": "s" * (done != 1)}
    said = _WHAT.get(bench.verb, "{count} micrograph{s} were analysed").format(**words)
    parts = [
        f"{said} with flatscope {record.get('flatscope', '')}{_say_weights(record)}{_say_settings(settings)}."
    ]
    if failed:
        parts.append(f"{failed} input{'s' * (failed != 1)} could not be analysed.")
    parts.append(_count(bench))
    corrections = sum(line.edit != "remark" for line in bench.edits.lines)
    if corrections:
        parts.append(f"{corrections} correction{'s were' if corrections > 1 else ' was'} made by hand.")
    return " ".join(part for part in parts if part)


def _say_weights(record: Mapping[str, Any]) -> str:
    weights = record.get("weights", {})
    if not weights.get("name"):
        return ""
    return f" (network {weights['name']} {weights['version']}, sha256 {weights['sha256'][:12]})"


def _say_settings(settings: Mapping[str, Any]) -> str:
    told = [
        f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in settings.items()
        if name not in _UNSAID and isinstance(value, str | int | float) and value != ""
    ]
    return f" ({', '.join(told)})" if told else ""


def _count(bench: Workbench) -> str:
    """How much was found, with how sure it is."""
    rows = bench.rows()
    if not len(rows) or "status" not in rows:
        return _count_tracks(rows) if len(rows) else ""
    found = rows[rows["status"].isin(("accepted", "uncertain"))]
    uncertain = int((found["status"] == "uncertain").sum())
    doubt = f", {uncertain} of them uncertain" if uncertain else ""
    if bench.verb == "flakes":
        names = found["layers"].value_counts().sort_index()
        listed = ", ".join(
            f"{count} × {name}{'L' if name.isdigit() else ''}" for name, count in names.items()
        )
        sure = found["layers_p"].dropna()
        mean = f"; mean probability of the stated layer number {sure.mean():.2f}" if len(sure) else ""
        return f"{len(found)} regions were counted{doubt} ({listed}{mean}); {len(rows) - len(found)} were rejected."
    if bench.verb == "twist":
        angles = found[found["twist_deg"].notna()]
        sigma = float(np.median(angles["sigma_deg"])) if len(angles) else float("nan")
        return f"{len(angles)} twist angles were measured, median 1-sigma error {sigma:.2g}°."
    if bench.verb == "atoms":
        sigma = 1e3 * float(found["sigma_nm"].median())
        counts = ", ".join(f"{count} {name}" for name, count in found["species"].value_counts().items())
        return f"{len(found)} columns were found{doubt} ({counts}), median 1-sigma error {sigma:.2g} pm."
    if bench.verb == "moire":
        told = [f"{row.twist_deg:.3f} ± {row.twist_sigma_deg:.3f}°" for row in found.itertuples()]
        return f"Twist angles: {', '.join(told)}."
    return _count_defects(bench, found, doubt)


def _count_defects(bench: Workbench, found: pd.DataFrame, doubt: str) -> str:
    area = sum(getattr(bench.table(e.index), "area_nm2", 0.0) for e in bench.entries if e.answer)
    rows = count_densities(found["kind"].value_counts().to_dict(), area)
    told = [f"{r.count_} {r.kind} ({r.per_nm2:.4f} [{r.low:.4f}, {r.high:.4f}] per nm²)"
            for r in rows.rename(columns={"count": "count_"}).itertuples()]  # fmt: skip
    return f"{len(found)} defects were counted{doubt}: {', '.join(told)}, with exact 95 % intervals."


def _count_tracks(rows: pd.DataFrame) -> str:
    tracks = rows.groupby(["item", "track_id"])["kind"].first().value_counts()
    told = ", ".join(f"{count} {name}" for name, count in tracks.items())
    return f"{int(tracks.sum())} defects were followed ({told})."
