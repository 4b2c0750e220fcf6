"""Docs: links lead somewhere, commands and Python run, tables and scores are those of the code."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from flatscope.app.cli import cli
from flatscope.electron.physics.crystals import SheetParams, build_sheet
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.optical.scenes import SceneParams, draw_scene

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LINK = re.compile(r"\]\(([^)\s]+)\)")
PYTHON = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^    (?:\.venv/bin/)?(flatscope .*|make .*|\.venv/bin/python tools/.*)$", re.MULTILINE)
SPAN = re.compile(r"`(flatscope [^`]+)`")
SCORE = re.compile(r"\d[\d.]*°? \[[^\]]*\d\]")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the photograph and the scan that the examples read."""
    folder = tmp_path_factory.mktemp("pictures")
    params = SceneParams(
        shape=(300, 400), material="graphene", oxide_nm=90.0, growth="exfoliated", clean=True
    )
    scene = draw_scene(np.random.default_rng(3), params)
    Image.fromarray(scene.pixels).save(folder / "photo.jpg", quality=95)
    sheet = build_sheet(np.random.default_rng(1), SheetParams("WSe2", (4.0, 4.0), turn_deg=10.0))
    optics = ScanParams(0.02, voltage_kv=200.0, convergence_mrad=22.0, collection_mrad=(80.0, 250.0))
    image = draw_adf(sheet, optics, shape=(200, 200))
    electrons = np.maximum(image / image.mean() * 100.0, 0.0)
    np.save(folder / "scan.npy", np.random.default_rng(2).poisson(electrons).astype(np.float32))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_and_figure_is_there(page: Path) -> None:
    broken = []
    for target in LINK.findall(page.read_text("utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        if not path.is_file() or (anchor and anchor not in _list_anchors(path)):
            broken.append(target)
    assert broken == []


def test_every_figure_is_shown() -> None:
    shown = {Path(target).name for page in PAGES for target in LINK.findall(page.read_text("utf-8"))}
    assert {path.name for path in (ROOT / "docs" / "figures").iterdir()} - shown == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_column_tables_are_those_of_the_declarations(page: Path) -> None:
    fill = runpy.run_path(str(ROOT / "tools" / "write_column_tables.py"))["fill"]
    text = page.read_text("utf-8")
    assert fill(text) == text, "run: python tools/write_column_tables.py"


def test_every_table_has_its_columns_in_the_docs() -> None:
    declared = runpy.run_path(str(ROOT / "tools" / "write_column_tables.py"))["DECLARED"]
    text = "".join(page.read_text("utf-8") for page in PAGES)
    assert {name for name in declared if f"<!-- columns: {name} -->" not in text} == set()


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_of_code_blocks_can_be_called(page: Path) -> None:
    """Each is parsed as on the command line: command, flags, values, and what must not be missing."""
    targets = re.findall(r"^([\w$()-]+(?: [\w-]+)*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for line in LINE.findall(page.read_text("utf-8")):
        program, *words = shlex.split(line, comments=True)
        if program == "make":
            wanted = [word for word in words if "=" not in word and not word.startswith("-")]
            assert set(wanted) <= set(targets), line
        elif program == "flatscope":
            command, rest = _find_command(words)
            command.make_context(line, rest)
        else:
            assert (ROOT / words[0]).is_file(), line


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_in_sentences_exist(page: Path) -> None:
    """A sentence may leave out what a command needs, but names no command or flag that is none."""
    for span in SPAN.findall(page.read_text("utf-8")):
        for words in _spell_out(span.split()[1:]):
            command, rest = _find_command(words)
            known = {name for part in command.params for name in (*part.opts, *part.secondary_opts)}
            flags = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            if command.context_settings.get("ignore_unknown_options"):  # it hands them on to another command
                continue
            assert flags <= known | {"--help"}, span


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_runs(page: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pictures)
    for block in PYTHON.findall(page.read_text("utf-8")):
        exec(compile(block, str(page), "exec"), {})


def test_the_readme_claims_no_figure_that_the_docs_do_not_explain() -> None:
    docs = "".join(page.read_text("utf-8") for page in PAGES if page.parent.name == "docs")
    scores = SCORE.findall((ROOT / "README.md").read_text("utf-8"))
    assert len(scores) > 10
    assert [score for score in scores if score not in docs] == []


def test_the_readme_is_read_in_two_minutes() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (block,) = PYTHON.findall(text)
    assert len([line for line in block.splitlines() if line.strip()]) == 5
    assert len(LINE.findall(text)) == 2
    assert text.count("![") == 1
    assert text.count("|---|---|---|---|---|") == text.count("|---") // 5 == 1


def _list_anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def _find_command(words: list[str]) -> tuple[click.Command, list[str]]:
    command: click.Command = cli
    while isinstance(command, click.Group) and words:
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, f"flatscope has no command {words[0]}"
        command, words = found, words[1:]
    return command, words


def _spell_out(words: list[str]) -> Iterator[list[str]]:
    """`evaluate defects|tracks` is two commands."""
    for number, word in enumerate(words):
        if "|" in word and not word.startswith("-") and not words[max(number - 1, 0)].startswith("-"):
            for one in word.split("|"):
                yield from _spell_out([*words[:number], one, *words[number + 1 :]])
            return
    yield words
