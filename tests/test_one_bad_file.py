"""One broken file of forty costs only itself, whatever the verb."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatscope.app import cli, command
from flatscope.electron.drawing.specimens import SheetParams, build_sheet
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.optical.bilayers import BilayerParams, draw_bilayer
from flatscope.runs.task import Answer

COUNT, BAD = 40, 12
ELECTRON = ("--material", "WSe2")
# Verb and kind of file to the table of the answers, and what else the command is given.
CASES = {
    ("flakes", ".png"): ("flakes.csv", ("--material", "graphene", "--oxide-nm", "90")),
    ("twist", ".png"): ("twist.csv", ("--labels", "--method", "edges", "--material", "MoS2")),
    ("atoms", ".npy"): ("columns.csv", ELECTRON),
    ("defects", ".npy"): ("defects.csv", ELECTRON),
    ("defects", ".movie.npy"): ("tracks.csv", ELECTRON),
}


def _draw(path: Path, verb: str) -> None:
    rng = np.random.default_rng(3)
    if verb == "twist":
        Image.fromarray(draw_bilayer(rng, BilayerParams()).layers).save(path)
    elif verb == "flakes":
        field = np.ones((96, 128, 3))
        field[30:66, 40:76] += (-0.138, -0.139, -0.068)
        field = field * (150.0, 120.0, 160.0) + rng.normal(0, 1.0, field.shape)
        Image.fromarray(field.clip(0, 255).astype(np.uint8)).save(path)
    else:
        crystal = build_sheet(rng, SheetParams("WSe2", (3.0, 3.0), turn_deg=10.0, vacancies={"one": 0.05}))
        scan = draw_adf(crystal, ScanParams(0.02, collection_mrad=(80.0, 250.0)), shape=(150, 150))
        shape = (4, *scan.shape) if ".movie" in path.name else scan.shape
        np.save(path, rng.poisson(scan / scan.mean() * 300.0, shape).astype(np.float32))


def _rename(made: Any, name: str) -> Any:
    """The part or the answer of one item as that of another."""
    if isinstance(made, tuple):
        return _rename(made[0], name), *made[1:]
    if isinstance(made, Answer):
        return replace(made, tables={kind: table.renamed(name) for kind, table in made.tables.items()})
    if hasattr(made, "renamed"):
        return made.renamed(name)
    return replace(made, image=name) if hasattr(made, "image") else made


def _remember(work: Callable[..., Any]) -> Callable[..., Any]:
    """Work at the first good file and at the broken one; the others get the first one's."""
    kept: list[Any] = []

    def do(item: Any, *rest: Any) -> Any:
        if item.sources[0].read_bytes() == b"broken":
            return work(item, *rest)
        if not kept:
            kept.append(work(item, *rest))
        return _rename(kept[0], item.name)

    return do


def _read(table: Path) -> list[dict[str, str]]:
    with open(table, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "suffix"), CASES)
def test_one_broken_file_of_forty_costs_only_itself(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    suffix: str,
) -> None:
    carry_out = command.carry_out

    def carry_out_quickly(plan: command.Plan, *given: Any, **more: Any) -> int:
        task = replace(plan.task, alone=_remember(plan.task.alone), conclude=_remember(plan.task.conclude))
        return carry_out(replace(plan, task=task), *given, **more)

    monkeypatch.setattr(command, "carry_out", carry_out_quickly)
    home, out = tmp_path / "in", tmp_path / "out"
    home.mkdir()
    first, *others = [home / f"p{number:03}{suffix}" for number in range(COUNT)]
    _draw(first, verb)
    for path in others:
        path.hardlink_to(first)
    bad = others[BAD - 1]
    bad.unlink()
    bad.write_bytes(b"broken")
    table, settings = CASES[verb, suffix]
    assert cli.run([verb, str(home), *settings, "--workers", "1", "--out", str(out)]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if bad.name in line]
    # Nobody knows whether what cannot be read was a movie: it fails in the table of images.
    (failed,) = [row for row in _read(out / table.replace("tracks", "defects")) if row["status"] == "failed"]
    assert failed["image"] == bad.name and failed["reason"] and len(told) == 1
    answered = {row["image"] for row in _read(out / table)} - {bad.name}
    assert answered == {path.name for path in (first, *others)} - {bad.name}
    items = json.loads((out / "run.json").read_text(encoding="utf-8"))["items"]
    assert [item["status"] for item in items].count("analysed") == COUNT - 1
    assert items[BAD]["status"] == "failed"
