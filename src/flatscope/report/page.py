"""One self-contained HTML page: what was found, where, how sure, what was left out and why, and how it came about."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import pandas as pd

from flatscope.report.figures import name_layers, pick_colours, to_data_uri

_MOST_CARDS = 24
_MOST_ROWS = 1000
"""A browser sorts this many rows without a pause; flakes.csv has them all."""

COLUMN_GUIDE = (
    ("Layers", "Number of layers. “1L or 2L” means that two numbers fit the colour and the picture cannot decide."),
    ("thin", "A thin crystal whose layer number the colours do not tell. Name the number of one such place on the "
     "command line (--known), and the others follow."),
    ("Sure", "Probability that the layer number is right (for “1L or 2L”: that it is one of the two), given that it is "
     "a crystal."),
    ("Crystal", "Probability that the region is a crystal, not residue or bare substrate."),
    ("95 % range", "The layer number lies in this range with 95 % probability; for thick regions the optics can "
     "still tell roughly how thick."),
    ("Area", "In µm² where the pixel size is known, else in pixels (px)."),
    ("Flake, region", "A flake is one connected crystal; a region is a part of it with one thickness. The region's "
     "number is on the overlay where there is room."),
    ("Row, column", "Centre of the region in pixels from the upper left corner of the picture."),
    ("Contrast", "How much brighter (+) or darker (−) than the bare substrate the region is in red, green and blue: "
     "I / I_substrate − 1."),
    ("Edge", "The region touches the edge of the picture: its true area is larger."),
    ("Oxide", "Thickness of the SiO2 that explains all colours of the picture best, with its 1-sigma error."),
)  # fmt: skip
"""Words of the page in plain language."""


@dataclass(frozen=True)
class PictureEntry:
    """What the page says about one picture.

    Parameters
    ----------
    image
        Its name as in the table.
    frame
        Its rows, columns `results.FLAKE_COLUMNS`.
    before, after
        JPEG files: the picture and its overlay. Empty if the picture could not be read.
    thumbnails
        `region_id` to a JPEG file.
    failure
        Why there is no answer, or "".
    notes
        What a user should know, one line each.
    facts
        Other lines of the caption: size, pixel size, material.
    calibrated
        True if areas are in µm².
    """

    image: str
    frame: pd.DataFrame
    before: bytes = b""
    after: bytes = b""
    thumbnails: Mapping[int, bytes] = field(default_factory=dict)
    failure: str = ""
    notes: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    calibrated: bool = False


@dataclass(frozen=True)
class RunRecord:
    """How the answer came about.

    Parameters
    ----------
    title
        Head of the page.
    settings
        As in run.json.
    versions
        Program or weights to version or digest.
    warnings
        Lines for the top of the page: pictures that were not reached, an unknown pixel size.
    """

    title: str
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    warnings: tuple[str, ...] = ()


def build_page(pictures: Sequence[PictureEntry], frame: pd.DataFrame, record: RunRecord) -> str:
    """Write the page.

    Parameters
    ----------
    pictures
        In the order of the page.
    frame
        All rows of all pictures, sorted by interest.
    record
        Settings and versions.

    Returns
    -------
    HTML that needs no other file and no network: style, script and pictures (JPEG) are inside.
    """
    found = frame[frame["status"].isin(("accepted", "uncertain"))]
    rejected = frame[frame["status"] == "rejected"]
    read = [picture for picture in pictures if not picture.failure]
    # One unit for the whole page: areas of calibrated and uncalibrated pictures cannot be compared.
    area = "area_um2" if read and all(picture.calibrated for picture in read) else "area_px"
    parts = [
        f"<header><h1>{_text(record.title)}</h1>"
        "<nav><a href='#best'>Best flakes</a><a href='#table'>Table</a><a href='#pictures'>Pictures</a>"
        "<a href='#rejected'>Left out</a><a href='#words'>Words</a><a href='#how'>How</a></nav></header>",
        _numbers(pictures, found, rejected, area),
        _warnings(pictures, record),
        "<h2 id='best'>Best flakes</h2><p class='soft'>Thin regions; large and sure ones first.</p>",
        _cards(pictures, found, area),
        "<h2 id='table'>All regions found</h2>",
        _table(found, area),
        "<h2 id='pictures'>Pictures</h2>",
        *(_picture(picture, number) for number, picture in enumerate(pictures)),
        "<h2 id='rejected'>Left out, and why</h2>",
        _reasons(rejected),
        "<h2 id='words'>What the words mean</h2><dl>",
        *(f"<dt>{_text(word)}</dt><dd>{_text(meaning)}</dd>" for word, meaning in COLUMN_GUIDE),
        "</dl><h2 id='how'>How this came about</h2>",
        _how(record),
    ]
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_text(record.title)}</title><style>{_packaged('page.css')}</style></head><body>\n"
        + "\n".join(parts)
        + f"\n<script>{_packaged('page.js')}</script></body></html>\n"
    )


def _packaged(name: str) -> str:
    return (resources.files("flatscope.report") / name).read_text(encoding="utf-8")


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)


def _number(value: Any, digits: int = 3) -> str:
    """A number as people write it, or nothing where it is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)) or pd.isna(value):
        return ""
    value = float(value)
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{min(places, 6)}f}"


def _area(row: Any, column: str) -> str:
    shown = _number(row[column])
    return f"{shown} {'µm²' if column == 'area_um2' else 'px'}" if shown else ""


def _percent(value: Any) -> str:
    if pd.isna(value):
        return ""
    return "> 99 %" if value > 0.995 else f"{100 * float(value):.0f} %"


def _range(row: Any) -> str:
    low, high = row["layers_low"], row["layers_high"]
    if pd.isna(low) or pd.isna(high):
        return ""
    low, high = f"{float(low):.0f}", f"{float(high):.0f}"
    return low if low == high else f"{low}–{high}"


def _chips(row: Any) -> str:
    colours = pick_colours(str(row["layers"]), str(row["status"]))
    return "".join(f"<span class='chip' style='background:rgb{colour}'></span>" for colour in colours)


def _numbers(pictures: Sequence[PictureEntry], found: pd.DataFrame, rejected: pd.DataFrame, area: str) -> str:
    sure = found[found["status"] == "accepted"]
    entries = [("pictures", str(len(pictures))), ("regions found", str(len(found)))]
    for layers, word in (("1", "monolayers"), ("2", "bilayers"), ("3", "trilayers")):
        entries.append((word, str(int((sure["layers"] == layers).sum()))))
    single = sure[sure["layers"] == "1"]
    if len(single):
        largest = single.loc[single[area].astype(float).idxmax()]
        entries.append(("largest monolayer", _area(largest, area)))
    entries.append(("uncertain", str(len(found) - len(sure))))
    entries.append(("left out", str(len(rejected))))
    failed = sum(bool(picture.failure) for picture in pictures)
    if failed:
        entries.append(("pictures failed", str(failed)))
    cells = "".join(f"<div><b>{_text(value)}</b>{_text(word)}</div>" for word, value in entries)
    return f"<div class='numbers'>{cells}</div>"


def _warnings(pictures: Sequence[PictureEntry], record: RunRecord) -> str:
    lines = [*record.warnings]
    lines += [
        f"{picture.image} was not analysed: {picture.failure}" for picture in pictures if picture.failure
    ]
    lines += [
        f"{picture.image}: no flake found{': ' + '; '.join(picture.notes) if picture.notes else ''}"
        for picture in pictures
        if not picture.failure and not picture.frame["status"].isin(("accepted", "uncertain")).any()
    ]
    if not lines:
        return ""
    return "<div class='notice'><ul>" + "".join(f"<li>{_text(line)}</li>" for line in lines) + "</ul></div>"


def _cards(pictures: Sequence[PictureEntry], found: pd.DataFrame, area: str) -> str:
    by_name = {picture.image: (number, picture) for number, picture in enumerate(pictures)}
    cards = []
    for _, row in found.iterrows():
        number, picture = by_name[row["image"]]
        thumbnail = picture.thumbnails.get(int(row["region_id"]))
        if thumbnail is None:
            continue
        edge = ", at the edge" if row["touches_edge"] is True or str(row["touches_edge"]) == "True" else ""
        cards.append(
            f"<div class='flake'><a href='#picture-{number}'><img loading='lazy' alt='region {int(row['region_id'])}' "
            f"src='{to_data_uri(thumbnail)}'></a><div><b>{_chips(row)}{_text(name_layers(row['layers']))}</b> "
            f"{_percent(row['layers_p'])}<br>{_text(_area(row, area))}{edge}<br>"
            f"<span class='soft'>{_text(row['image'])} #{int(row['region_id'])}</span></div></div>"
        )
        if len(cards) == _MOST_CARDS:
            break
    return f"<div class='flakes'>{''.join(cards)}</div>" if cards else "<p>No thin flake was found.</p>"


def _table(found: pd.DataFrame, area: str) -> str:
    if not len(found):
        return "<p>No region was found.</p>"
    unit = "µm²" if area == "area_um2" else "px"
    heads = (
        ("Picture", ""), ("Flake", "n"), ("Region", "n"), ("Layers", ""), ("Sure", "n"), ("Crystal", "n"),
        ("95 % range", "n"),
        (f"Area ({unit})", "n"), ("Row", "n"), ("Column", "n"), ("Contrast r, g, b", "n"), ("Edge", ""),
        ("Remark", ""),
    )  # fmt: skip
    rows = []
    for _, row in found.head(_MOST_ROWS).iterrows():
        contrast = ", ".join(f"{float(row[f'contrast_{c}']):+.2f}".replace("-", "−") for c in "rgb")
        cells = (
            ("", "", _text(row["image"])),
            ("n", "", str(int(row["flake_id"]))),
            ("n", "", str(int(row["region_id"]))),
            ("", _first_layer(row["layers"]), _chips(row) + _text(name_layers(row["layers"]))),
            ("n", f"{float(row['layers_p']):.4f}", _percent(row["layers_p"])),
            ("n", f"{float(row['p_flake']):.4f}", _percent(row["p_flake"])),
            ("n", "" if pd.isna(row["layers_low"]) else f"{float(row['layers_low']):g}", _range(row)),
            ("n", f"{float(row[area]):.6g}", _number(row[area])),
            ("n", "", f"{float(row['row_px']):.0f}"),
            ("n", "", f"{float(row['col_px']):.0f}"),
            ("n", f"{float(row['contrast_g']):.4f}", contrast),
            ("", "", "yes" if str(row["touches_edge"]) == "True" else ""),
            ("", "", _text(row["reason"] if isinstance(row["reason"], str) else "")),
        )  # fmt: skip
        rows.append(
            "<tr>"
            + "".join(
                f"<td{f' class={kind!r}' if kind else ''}{f' data-value={value!r}' if value else ''}>{shown}</td>"
                for kind, value, shown in cells
            )
            + "</tr>"
        )
    head = "".join(f"<th{f' class={kind!r}' if kind else ''}>{name}</th>" for name, kind in heads)
    rest = (
        f"<p class='soft'>The first {_MOST_ROWS} of {len(found)} regions; flakes.csv has all.</p>"
        if len(found) > _MOST_ROWS
        else "<p class='soft'>Click a column's head to sort. flakes.csv has more columns.</p>"
    )
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{rest}"
    )


def _picture(picture: PictureEntry, number: int) -> str:
    head = f"<section class='picture' id='picture-{number}'><h3>{_text(picture.image)}</h3>"
    if picture.failure:
        return f"{head}<div class='notice'>Not analysed: {_text(picture.failure)}</div></section>"
    status = picture.frame["status"]
    found = picture.frame[status.isin(("accepted", "uncertain"))]
    counts = found["layers"].value_counts().sort_index()  # thin ones first
    said = (
        ", ".join(f"{count} × {name_layers(str(name))}" for name, count in counts.items()) or "no flake found"
    )
    left_out = int((status == "rejected").sum())
    facts = [said, f"{left_out} left out", *_oxide(picture.frame), *picture.facts]
    pair = ""
    if picture.before and picture.after:
        pair = (
            "<div class='pair'>"
            f"<figure><img loading='lazy' alt='as taken' src='{to_data_uri(picture.before)}'>"
            "<figcaption>as taken</figcaption></figure>"
            f"<figure><img loading='lazy' alt='overlay' src='{to_data_uri(picture.after)}'>"
            "<figcaption>regions by layer number; black in white light: thin, number not known; dotted: left out"
            "</figcaption></figure></div>"
        )
    notes = "".join(f"<li>{_text(note)}</li>" for note in picture.notes)
    reasons = ""
    if left_out:
        counted = picture.frame[status == "rejected"]["reason"].value_counts()
        listed = "; ".join(f"{_text(reason)}: {count}" for reason, count in counted.items())
        reasons = f"<details><summary class='soft'>what was left out</summary><p class='soft'>{listed}</p></details>"
    return (
        f"{head}<p class='soft'>{_text(' · '.join(facts))}</p>{pair}"
        + (f"<ul class='soft'>{notes}</ul>" if notes else "")
        + f"{reasons}</section>"
    )


def _first_layer(layers: str) -> str:
    """What the column of layers is sorted by."""
    return layers.replace("thick", "99").replace("thin", "90").split("|")[0]


def _oxide(frame: pd.DataFrame) -> list[str]:
    known = frame["oxide_nm"].dropna()
    if not len(known):
        return []
    sigma = frame["oxide_sigma_nm"].dropna()
    error = f" ± {float(sigma.iloc[0]):.0f}" if len(sigma) else ""
    return [f"oxide {float(known.iloc[0]):.0f}{error} nm"]


def _reasons(rejected: pd.DataFrame) -> str:
    if not len(rejected):
        return "<p>Nothing was left out.</p>"
    counts = rejected["reason"].value_counts()
    rows = "".join(
        f"<tr><td>{_text(reason)}</td><td class='n'>{count}</td></tr>" for reason, count in counts.items()
    )
    return (
        f"<table><thead><tr><th>Reason</th><th class='n'>Regions</th></tr></thead><tbody>{rows}</tbody></table>"
        "<p class='soft'>Each has a dotted outline on its picture and a row in flakes.csv.</p>"
    )


def _how(record: RunRecord) -> str:
    versions = "".join(
        f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in record.versions.items()
    )
    settings = _text(json.dumps(record.settings, indent=2, ensure_ascii=False, default=str))
    return (
        f"<dl>{versions}</dl><p>Settings (they can be given back with <code>--settings run.json</code>):</p>"
        f"<pre>{settings}</pre><p>When it was made, how and how fast stands in <code>log.json</code>.</p>"
    )
