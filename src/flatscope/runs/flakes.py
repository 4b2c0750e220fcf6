"""The run that finds flakes: regions of each picture, their layers, what is drawn and written of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

import flatscope
from flatscope.files.read import read
from flatscope.inference.runtime import Network
from flatscope.micrograph import Calibration, Micrograph, MicrographError
from flatscope.optical import batches, tabulation
from flatscope.optical import flakes as finder
from flatscope.optical.batches import Sighting, to_plain
from flatscope.optical.evidence import Evidence
from flatscope.optical.flakes import FlakeParams, recall_fit
from flatscope.optical.observations import KnownRegion
from flatscope.optical.regions import Measured, PackedRegions, Regions, Weights
from flatscope.report.figures import draw_overlay, draw_thumbnails, encode_jpeg, encode_png, to_display
from flatscope.report.page import PictureEntry, RunRecord, build_page
from flatscope.results import FLAKE_COLUMNS, FlakeTable, empty_frame, failed_frame
from flatscope.results.exports.geojson import collect_outlines, encode_outlines
from flatscope.results.table import as_plain, frame_to_csv
from flatscope.runs.items import Item
from flatscope.runs.light import LightParams
from flatscope.runs.settings import as_plain as plain_settings
from flatscope.runs.task import Answer, Content, Finished, Task, name_corrections
from flatscope.units import um_from_nm

ENDINGS = (".layers.png", ".overlay.png")
_MANY = 40
"""Pictures from which on the report shows less of each: a page with a hundred must still open on a phone."""
_SOURCES = {"file": "the file", "user": "you", "lattice": "the lattice"}


@dataclass(frozen=True)
class Given:
    """What all pictures of a run share.

    Parameters
    ----------
    params
        Of `find_flakes`.
    light
        Pixel size, and which network.
    flatfield
        Shape (rows, cols, 3), mean 1, or None.
    preview_px
        Longer side of the pictures in the report.
    thumbnails
        Flakes of each picture that get a thumbnail.
    edits
        Corrections by hand, as lines of `edits.jsonl`.
    folders
        Where each item lies, by name; pictures of different folders share no set-up.
    """

    params: FlakeParams
    light: LightParams
    flatfield: NDArray[np.float32] | None = None
    preview_px: int = 900
    thumbnails: int = 24
    edits: tuple[str, ...] = ()
    folders: Mapping[str, str] = field(default_factory=dict)


def make_task(given: Given, *, settings: dict[str, Any], title: str) -> Task:
    """The task of finding flakes; items may bring a `Given` of their own."""
    network = load_network(given.light.weights)
    flat = given.flatfield
    return Task(
        "flakes",
        settings,
        alone=find_regions,
        conclude=name_layers,
        views=_Views(title),
        endings=ENDINGS,
        view_names=("flakes.csv", "flakes.geojson", "report.html"),
        given=given,
        prepare=_prepare,
        together=share,
        tabulate=tabulate,
        list_rows=list_rows,
        recall=recall,
        lighten=PackedRegions.of,
        kinds=(Regions, Measured, Evidence, Weights),
        weights=network.describe(),
        digests={} if flat is None else {"flat field": hashlib.sha256(flat.tobytes()).hexdigest()},
        corrections=name_corrections(given.edits),
    )


def plan(given: Given, items: Sequence[Item]) -> Task:
    """The task of finding flakes in these pictures under the same settings."""
    many, count = len(items) > _MANY, len(items)
    folders = {item.name: os.path.dirname(item.sources[0]) or "." for item in items if item.sources}
    given = replace(given, preview_px=640 if many else 900, thumbnails=8 if many else 24, folders=folders)
    title = f"{given.params.material} flakes in {count} picture{'s' * (count > 1)}"
    return make_task(given, settings=plain_settings(given.params, given.light), title=title)


@cache
def load_network(weights: str) -> Network:
    """A network of one thread: the answer must not depend on the number of processes."""
    return Network.load(weights, threads=1)


def _prepare(given: Given) -> Given:
    load_network(given.light.weights)
    return given


def _read(item: Item, given: Given) -> Micrograph:
    return read(item.sources[0], um_per_px=given.light.um_per_px)


def find_regions(item: Item, given: Given) -> Regions:
    """The heavy half: the regions of one picture."""
    given = item.given or given
    micrograph = _read(item, given)
    flat = given.flatfield
    if flat is not None and flat.shape[:2] != micrograph.shape:
        (rows, cols), (height, width) = micrograph.shape, flat.shape[:2]
        raise MicrographError(
            f"{item.sources[0]}: is {cols}x{rows} px, the flat field {width}x{height}: analyse it apart, or without "
            "--flatfield"
        )
    network = load_network(given.light.weights)
    # Looked up on the module at call time, as it is a seam for tests.
    regions = finder.find_regions(micrograph, given.params, network=network, flatfield=flat)
    return replace(regions, image=item.name)


def share(parts: Mapping[str, Callable[[], Regions]], given: Given) -> dict[str, Any]:
    """What each picture must know of the others: the set-up of its batch, known crystals, corrections of itself."""
    corrections = _share_edits(parts, given)
    known: tuple[KnownRegion, ...] = given.params.known
    sightings, weights = [], None
    for name, load in parts.items():
        regions, params = _correct_regions(load(), given.params, corrections.get(name))
        sightings.append(Sighting.of(regions, given.folders.get(name, "")))
        known, weights = params.known, regions.weights
    fits = finder.fit_setups(sightings, replace(given.params, known=known), weights)
    return {
        name: {"fit": to_plain(fit), **corrections.get(name, {})}
        for name, fit in zip(parts, fits, strict=True)
    }


def recall(shared: Mapping[str, Any], given: Given) -> None:
    """Remember a fit that an earlier start stored beside an answer."""
    known = [KnownRegion(region["layers"], tuple(region["contrast"])) for region in shared.get("known", ())]
    params = replace(given.params, known=(*given.params.known, *known))
    weights = finder.describe_weights(load_network(given.light.weights))
    batches.recall(recall_fit(shared["fit"], params, weights))


def _share_edits(parts: Mapping[str, Callable[[], Regions]], given: Given) -> dict[str, Any]:
    """All known crystals, and for each picture the lines about itself."""
    if not given.edits:
        return {}
    from flatscope.runs import edits as corrections  # pydantic takes 0.1 s, and few runs have corrections
    from flatscope.runs.replay import collect_known

    edits = corrections.parse_edits(given.edits)
    known = [as_plain(region) for region in collect_known(edits, given.params.material, parts)]
    own = {name: [line.to_json() for line in edits.about(name)] for name in parts}
    return {name: {"known": known, "edits": lines} for name, lines in own.items() if known or lines}


def _correct_regions(
    regions: Regions, params: FlakeParams, shared: Mapping[str, Any] | None
) -> tuple[Regions, FlakeParams]:
    """Regions with the outlines and pixel size, and settings with the known crystals, that corrections state."""
    if not shared or "edits" not in shared:
        return regions, params
    from flatscope.runs.edits import parse_edits
    from flatscope.runs.replay import set_pixel_size
    from flatscope.runs.reshape import reshape

    known = [KnownRegion(region["layers"], tuple(region["contrast"])) for region in shared["known"]]
    params = replace(params, known=(*params.known, *known))
    lines = parse_edits(shared["edits"]).lines
    return set_pixel_size(reshape(regions, lines), lines, params), params


def _name_layers(
    regions: Regions, params: FlakeParams, shared: Mapping[str, Any], *, is_alone: bool
) -> FlakeTable:
    """The table of a picture, corrections included."""
    regions, params = _correct_regions(regions, params, shared)
    fits = None if is_alone else [recall_fit(shared["fit"], params, regions.weights)]
    (table,) = finder.name_layers([regions], params, fits=fits)
    if "edits" not in shared:
        return table
    from flatscope.runs.edits import parse_edits
    from flatscope.runs.replay import correct

    return correct(table, parse_edits(shared["edits"]).lines)


def tabulate(item: Item, regions: Regions, shared: Any, given: Given) -> dict[str, FlakeTable]:
    """The light half: the layers of every region, corrections included."""
    # An item with settings of its own shares no set-up with the others.
    params = (item.given or given).params
    return {"flakes": _name_layers(regions, params, shared, is_alone=item.given is not None)}


def list_rows(item: Item, regions: Regions, shared: Any, given: Given) -> pd.DataFrame:
    """The rows of that table alone, which takes a tenth of the time."""
    regions, params = _correct_regions(regions, (item.given or given).params, shared)
    if item.given is None:
        fit = recall_fit(shared["fit"], params, regions.weights)
    else:
        (fit,) = finder.fit_setups([Sighting.of(regions)], params, regions.weights)
    frame = tabulation.list_rows(regions, finder.place_layers(regions, fit), params.material)
    if not shared or "edits" not in shared:
        return frame
    from flatscope.runs.edits import parse_edits
    from flatscope.runs.replay import correct_rows
    from flatscope.runs.reshape import find_region

    lines = parse_edits(shared["edits"]).lines
    frame, _ = correct_rows(frame, lines, lambda place: find_region(regions, place), sha256=regions.sha256)
    return frame


def name_layers(item: Item, regions: Regions, shared: Any, given: Given) -> tuple[Answer, dict[str, bytes]]:
    """The light half, and what is drawn of it."""
    table = tabulate(item, regions, shared, given)["flakes"]
    given = item.given or given
    display = to_display(_read(item, given))
    small = draw_overlay(display, table, longest_px=given.preview_px)
    plain = Image.fromarray(display.pixels).resize(small.size, Image.Resampling.BICUBIC, reducing_gap=2.0)
    thumbnails = draw_thumbnails(display, table, most=given.thumbnails)
    figures = {"before": encode_jpeg(plain), "after": encode_jpeg(small)}
    figures |= {f"region {region}": encode_jpeg(image) for region, image in thumbnails.items()}
    brightened = (f"shown {display.gain:.1f} times brighter than taken",) if display.gain > 1 else ()
    notes = (*table.provenance.notes, *brightened)
    answer = Answer({"flakes": table}, figures, _state_facts(table, given), notes)
    files = {
        ".layers.png": encode_png(table.layer_image()),
        ".overlay.png": encode_png(draw_overlay(display, table)),
    }
    return answer, files


def _state_facts(table: FlakeTable, given: Given) -> dict[str, Any]:
    """What run.json says of a picture."""
    size = table.calibration
    rows, cols = table.marks.shape_px
    return {
        "rows_px": rows,
        "cols_px": cols,
        "pixel_size_um": None if size is None else [um_from_nm(side) for side in size.pixel_size_nm],
        "pixel_size_source": None if size is None else size.source,
        "material": given.params.material,
        "oxide_nm": given.params.oxide_nm,
        "regions_found": len(table.found),
        "regions_too_small": table.too_small,
        "regions_rejected": {str(k): int(v) for k, v in table.rejected["reason"].value_counts().items()},
    }


@dataclass(frozen=True)
class _Views:
    """Table, outlines and report of a run."""

    title: str

    def __call__(self, run: Finished) -> Iterator[tuple[str, Content]]:
        frames, outlines, entries = [], [], []
        for item, answer in run.answers():
            table = answer.tables["flakes"]
            assert isinstance(table, FlakeTable)
            frames.append(table.frame)
            outlines += collect_outlines(table)
            entries.append(_make_entry(item, answer, table))
        frame = join_rows(frames, run)
        order = {item.name: place for place, item in enumerate(run.items)}
        entries += [
            PictureEntry(name, empty_frame(FLAKE_COLUMNS), failure=why) for name, why in run.failures.items()
        ]
        entries.sort(key=lambda entry: order[entry.image])
        yield "flakes.csv", frame_to_csv(frame)
        yield "flakes.geojson", encode_outlines(outlines)
        yield "report.html", build_page(entries, frame, self._describe(run, entries))

    def _describe(self, run: Finished, entries: list[PictureEntry]) -> RunRecord:
        warnings = []
        if not run.is_complete:
            warnings.append(f"Interrupted: {len(entries)} of {len(run.items)} pictures were analysed.")
        unknown = sum(not entry.calibrated and not entry.failure for entry in entries)
        if unknown:
            warnings.append(
                f"The pixel size of {unknown} picture{'s' * (unknown > 1)} is unknown: areas are in pixels. "
                "Pass --um-per-px to get µm²."
            )
        weights = run.task.weights
        return RunRecord(
            title=self.title,
            settings=run.task.settings,
            versions={
                "flatscope": flatscope.__version__,
                "weights": f"{weights['name']} {weights['version']}, sha256 {weights['sha256']}",
            },
            warnings=tuple(warnings),
        )


def join_rows(frames: list[pd.DataFrame], run: Finished) -> pd.DataFrame:
    """All regions by interest, whatever picture they are in, then the pictures that failed."""
    rows = [tabulation.sort_by_interest(pd.concat(frames, ignore_index=True))] if frames else []
    rows += [failed_frame(FLAKE_COLUMNS, name, why) for name, why in run.failures.items()]
    if not rows:
        return empty_frame(FLAKE_COLUMNS)
    whole = pd.concat([part.astype(object) for part in rows], ignore_index=True)
    return FlakeTable.conform(whole)


def _make_entry(item: Item, answer: Answer, table: FlakeTable) -> PictureEntry:
    facts = answer.facts
    size: Calibration | None = table.calibration
    said = "pixel size unknown"
    if size is not None:
        said = f"{um_from_nm(size.pixel_size_nm[0]):.4g} µm/px (from {_SOURCES[size.source]})"
    oxide = facts["oxide_nm"]
    nominal = "" if oxide is None else f" on nominally {oxide:g} nm oxide"
    return PictureEntry(
        image=item.name,
        frame=table.frame,
        before=answer.figures["before"],
        after=answer.figures["after"],
        thumbnails={
            int(name.removeprefix("region ")): picture
            for name, picture in answer.figures.items()
            if name.startswith("region ")
        },
        notes=answer.notes,
        facts=(f"{facts['cols_px']} × {facts['rows_px']} px", said, f"{facts['material']}{nominal}"),
        calibrated=size is not None,
    )
