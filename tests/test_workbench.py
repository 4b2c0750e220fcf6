"""The workbench in a real Chromium: see, correct, teach, export, in two tabs, and after the server was killed."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flatscope.app.cli import run
from flatscope.electron.drawing.hopping import HoppingParams, draw_hopping
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.report.figures import encode_png

_MOST_BYTES = 300_000  # of the page, compressed
_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_WIDTH, _HEIGHT = 1280, 800
_OPEN = "from flatscope.app.cli import main; main()"


def test_the_page_is_small(repository: Path) -> None:
    """It comes over an ssh tunnel too."""
    files = list((repository / "src" / "flatscope" / "app" / "server" / "static").iterdir())
    assert {path.name for path in files} == {"index.html", "app.js", "app.css"}
    assert sum(len(gzip.compress(path.read_bytes(), 9)) for path in files) <= _MOST_BYTES


# --- a server, a browser ----------------------------------------------------------------------------------------------


@dataclass
class Server:
    """`flatscope open` on a run, as a process of its own."""

    folder: Path
    process: Any = field(init=False)
    address: str = field(init=False, default="")

    def start(self) -> Server:
        command = [sys.executable, "-c", _OPEN, "open", str(self.folder), "--no-browser"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        said = self.process.stdout.readline()
        self.address = re.search(r"http://\S+", said)[0]  # type: ignore[index]
        return self

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def lines(self) -> list[dict[str, Any]]:
        """What stands in edits.jsonl."""
        path = self.folder / "edits.jsonl"
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three drawn pictures of grown MoS2, and their crystals."""
    folder = tmp_path_factory.mktemp("flakes")
    params = SceneParams(shape=(360, 480), material="MoS2", oxide_nm=285.0, growth="cvd", density=0.4)
    for seed in range(3):
        scene = draw_scene(np.random.default_rng(seed), params)
        (folder / f"photo{seed}.png").write_bytes(encode_png(scene.pixels))
    command = ["flakes", *map(str, sorted(folder.glob("*.png"))), "--material", "MoS2"]
    assert (
        run(
            [
                *command,
                "--oxide-nm",
                "285",
                "--um-per-px",
                "0.15",
                "--workers",
                "1",
                "--out",
                str(folder / "run"),
            ]
        )
        == 0
    )
    return folder


@pytest.fixture
def server(finished: Path, tmp_path: Path) -> Iterator[Server]:
    """A run of its own for each test, open in the workbench."""
    shutil.copytree(finished, tmp_path / "flakes")
    running = Server(tmp_path / "flakes" / "run").start()
    yield running
    running.kill()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=list(_FLAGS))
        yield running
        running.close()


class Tab:
    """A tab of the workbench, and how a person uses it."""

    def __init__(self, browser: Any, server: Server) -> None:
        self.context = browser.new_context(viewport={"width": _WIDTH, "height": _HEIGHT})
        self.page = self.context.new_page()
        self.server = server
        self.troubles: list[str] = []
        self.page.on("pageerror", lambda error: self.troubles.append(str(error)))
        self.page.on("response", self._note_failure)
        self.page.goto(server.address)
        self.page.wait_for_selector("nav")
        self.base = self.page.url.split("#")[0].split("?")[0]

    def _note_failure(self, response: Any) -> None:
        if response.status >= 500:
            self.troubles.append(f"{response.status} {response.url}")

    def go(self, view: str) -> None:
        """Open a view; `probe` lets the test ask where the picture lies on the screen."""
        self.page.goto(f"{self.base}?probe#/{view}")
        self.page.wait_for_selector("main > *")
        if view.split("/")[0] in ("picture", "movie", "twist"):
            self.until("window.flatscope?.viewer.placement() && window.flatscope.overlay.took > 0")

    def until(self, holds: str, *, most_s: float = 20.0) -> None:
        """Ask the page again until an expression holds; its content policy forbids to hand it over once."""
        for _ in range(round(most_s / 0.04)):
            if self.page.evaluate(holds):
                return
            self.page.wait_for_timeout(40)
        raise AssertionError(f"{holds} did not come true in {most_s:g} s")

    def key(self, keys: str) -> None:
        self.page.keyboard.press(keys)

    def on_screen(self, x: float, y: float) -> tuple[float, float]:
        """Where a pixel of the picture lies on the screen."""
        at = self.page.evaluate("flatscope.viewer.placement()")
        box = self.page.locator(".stage").bounding_box()
        return box["x"] + at["x"] + (x + 0.5) * at["scale"], box["y"] + at["y"] + (y + 0.5) * at["scale"]

    def click(self, x: float, y: float, **more: Any) -> None:
        self.page.mouse.click(*self.on_screen(x, y), **more)

    def drag(self, *places: tuple[float, float]) -> None:
        spots = [self.on_screen(*place) for place in places]
        self.page.mouse.move(*spots[0])
        self.page.mouse.down()
        for spot in spots[1:]:
            self.page.mouse.move(*spot, steps=8)
        self.page.mouse.up()

    def rows(self) -> dict[str, Any]:
        return self.page.evaluate("fetch('./api/rows').then((answer) => answer.json())")

    def edits(self) -> list[dict[str, Any]]:
        return self.page.evaluate("fetch('./api/edits').then((answer) => answer.json())")

    def wait_for_edits(self, count: int) -> list[dict[str, Any]]:
        """Wait until that many corrections are acknowledged; all of them are in the file then."""
        self.until(
            f"fetch('./api/edits').then((answer) => answer.json()).then((list) => list.length >= {count})",
        )
        self.until("!document.querySelector('.busy')")
        lines = self.server.lines()
        assert len(lines) == count
        return lines

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def tab(browser: Any, server: Server) -> Iterator[Tab]:
    opened = Tab(browser, server)
    yield opened
    opened.close()
    assert opened.troubles == []


def find_regions(tab: Tab, item: int, *, least: int = 1) -> list[dict[str, Any]]:
    """Accepted or uncertain regions of a picture, the largest first, each with a place inside it."""
    rows = tab.rows()
    marks = tab.page.evaluate(f"fetch('./api/items/{item}/marks').then((answer) => answer.json())")
    found = []
    for row, of in enumerate(rows["item"]):
        cells = {name: column[row] for name, column in rows["columns"].items()}
        if of != item or cells["status"] == "rejected":
            continue
        rings = marks["rings"][marks["ids"].index(cells["region_id"])]
        inside = tab.page.evaluate("([rings]) => flatscope.findInside(rings)", [rings])
        box = np.asarray(rings[0]).reshape(-1, 2)
        found.append({**cells, "inside": (inside["x"], inside["y"]), "low": box.min(0), "high": box.max(0)})
    found.sort(key=lambda region: -region["area_px"])
    assert len(found) >= least
    return found


# --- seeing -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_gallery_shows_the_best_first_and_filters(tab: Tab) -> None:
    rows = tab.rows()["columns"]
    cells = tab.page.locator(".cell")
    counted = sum(status != "rejected" for status in rows["status"])
    assert f"{counted}" in tab.page.locator(".tabs [aria-selected=true]").inner_text()
    assert cells.first.get_attribute("id") == "cell-0"
    tab.page.get_by_label("1L", exact=False).first.check()
    ones = sum(
        "1" in str(layers).split("|") and status != "rejected"
        for layers, status in zip(rows["layers"], rows["status"], strict=True)
    )
    tab.until(f"document.querySelector('.tabs b').textContent === '{ones}'")
    tab.page.fill("#filter-text", "photo1")
    tab.until(f"Number(document.querySelector('.tabs b').textContent) < {ones}")
    tab.page.get_by_role("button", name="Show all again").first.click()
    tab.until(f"document.querySelector('.tabs b').textContent === '{counted}'")


@pytest.mark.slow
def test_a_picture_zooms_and_says_what_lies_under_a_click(tab: Tab) -> None:
    tab.go("picture/0")
    region = find_regions(tab, 0)[0]
    before = tab.page.evaluate("flatscope.viewer.placement().scale")
    tab.page.mouse.move(*tab.on_screen(*region["inside"]))
    tab.page.mouse.wheel(0, -240)
    tab.until(f"flatscope.viewer.placement().scale > 1.2 * {before}")
    tab.page.wait_for_timeout(500)  # the zoom glides to its end
    tab.click(*region["inside"])
    card = tab.page.locator(".card")
    card.get_by_text(f"region {region['region_id']},", exact=False).wait_for()
    tab.key("d")
    tab.page.wait_for_url("**#/picture/1")
    tab.key("a")
    tab.page.wait_for_url("**#/picture/0")
    tab.key("o")
    assert tab.page.get_by_role("button", name="Outlines").get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_the_keyboard_alone_corrects_a_region(tab: Tab) -> None:
    """From the gallery to the picture, to a layer number, and back by undo: no mouse."""
    tab.page.locator(".grid").focus()
    tab.key("ArrowRight")
    tab.key("Enter")
    tab.page.wait_for_url("**#/picture/*")
    tab.page.wait_for_selector(".card h2")
    tab.key("4")
    assert tab.wait_for_edits(1)[0]["layers"] == "4"
    tab.until("document.querySelector('.card h2').textContent.includes('4L')")
    tab.key("Control+z")
    assert tab.wait_for_edits(2)[1]["edit"] == "undo"
    tab.key("?")
    tab.page.wait_for_selector("dialog[open]")
    tab.key("Escape")
    tab.page.wait_for_selector("dialog[open]", state="hidden")


# --- correcting -------------------------------------------------------------------------------------------------------


def set_layers(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.click(*regions[0]["inside"])
    tab.key("3")


def reject(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.page.keyboard.down("Control")
    tab.click(*regions[0]["inside"])
    tab.page.keyboard.up("Control")


def split(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.key("s")
    low, high = regions[0]["low"], regions[0]["high"]
    x = regions[0]["inside"][0]
    tab.drag((x, low[1] - 4), (x + 0.01, high[1] + 4))


def merge(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.click(*regions[0]["inside"])
    tab.page.keyboard.down("Shift")
    tab.click(*regions[1]["inside"])
    tab.page.keyboard.up("Shift")
    tab.key("m")


def draw(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.key("w")
    x, y = regions[0]["inside"]
    tab.drag((x - 9, y - 9), (x + 9, y - 9), (x + 9, y + 9), (x - 9, y + 9), (x - 9, y - 8))


def erase(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.key("e")
    x, y = regions[0]["inside"]
    tab.drag((x - 3, y), (x + 3, y))


def lasso(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.key("l")
    tab.drag((2, 2), (470, 2), (470, 350), (2, 350), (2, 6))
    tab.key("Delete")


def set_scale(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.key("g")
    tab.drag((100, 100), (200, 100))
    tab.page.keyboard.type("20")
    tab.key("Enter")


def star(tab: Tab, regions: list[dict[str, Any]]) -> None:
    tab.click(*regions[0]["inside"])
    tab.key("y")


CORRECTIONS: list[tuple[str, Callable[[Tab, list[dict[str, Any]]], None]]] = [
    ("layers", set_layers),
    ("residue", reject),
    ("split", split),
    ("merge", merge),
    ("outline", draw),
    ("outline", erase),
    ("residue", lasso),
    ("pixel_size", set_scale),
    ("remark", star),
]


@pytest.mark.slow
def test_each_correction_counts_at_once_and_undo_brings_all_back(tab: Tab) -> None:
    tab.go("picture/0")
    able = tab.page.evaluate("fetch('./api/run').then((answer) => answer.json())")["can"]
    before = {name: column for name, column in tab.rows()["columns"].items() if name != "note"}
    assert {kind for kind, _ in CORRECTIONS} <= set(able)
    for kind, act in CORRECTIONS:
        regions = find_regions(tab, 0, least=2)
        count = len(tab.edits())
        act(tab, regions)
        tab.until(f"fetch('./api/edits').then((a) => a.json()).then((l) => l.length > {count})")
        tab.until("!document.querySelector('.busy')")
        fresh = tab.server.lines()[count:]
        assert {line["edit"] for line in fresh} <= {kind, "merge"}, act.__name__
        after = {name: column for name, column in tab.rows()["columns"].items() if name != "note"}
        assert after != before, act.__name__
        tab.key("Escape")
        tab.key("Escape")
        tab.key("Control+z")
        tab.wait_for_edits(count + 2 * len(fresh))
        again = {name: column for name, column in tab.rows()["columns"].items() if name != "note"}
        assert again == before, act.__name__


@pytest.mark.slow
def test_two_tabs_lose_no_correction(browser: Any, server: Server) -> None:
    first, second = Tab(browser, server), Tab(browser, server)
    for tab in (first, second):
        tab.go("picture/0")
    regions = find_regions(first, 0, least=2)
    for tab, region in ((first, regions[0]), (second, regions[1])):
        tab.click(*region["inside"])
    first.key("5")
    second.key("6")
    first.wait_for_edits(2)
    for tab in (first, second):
        tab.until(
            "fetch('./api/rows').then((answer) => answer.json()).then(({columns}) => "
            "columns.layers.includes('5') && columns.layers.includes('6'))"
        )
    second.until("document.querySelector('.card h2').textContent.includes('6L')")
    second.key("Control+z")
    lines = second.wait_for_edits(3)
    assert lines[2]["edit"] == "undo"
    assert [
        line["counts"] for line in second.edits() if line["edit"] == "layers" and line["layers"] == "5"
    ] == [True]
    for tab in (first, second):
        assert tab.troubles == []
        tab.close()


@pytest.mark.slow
def test_what_was_acknowledged_outlives_a_kill(tab: Tab) -> None:
    tab.go("picture/0")
    regions = find_regions(tab, 0, least=3)
    tab.click(*regions[0]["inside"])
    tab.key("5")
    tab.wait_for_edits(1)
    acknowledged = tab.page.evaluate(
        """async ([places]) => {
          const sent = []; let known = 0;
          for (const [row_px, col_px, layers] of places) {
            const lines = [{edit: 'layers', image: 'photo0.png', row_px, col_px, layers}];
            sent.push(fetch('./api/edits', {method: 'POST', headers: {'Content-Type': 'application/json'},
              body: JSON.stringify({lines})}).then((a) => { known += a.ok; }).catch(() => 0));
          }
          await Promise.all(sent); return known; }""",
        [[[round(r["inside"][1]), round(r["inside"][0]), str(n + 1)] for n, r in enumerate(regions[:3])]],
    )
    tab.server.kill()
    assert acknowledged == 3
    again = Server(tab.server.folder).start()
    try:
        assert len(again.lines()) == 4
        tab.page.goto(again.address)
        tab.page.wait_for_selector("nav")
        assert all(line["counts"] for line in tab.edits())
    finally:
        again.kill()
        tab.server.start()


# --- teaching, exporting, movies --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lesson_says_what_it_changes_before_it_is_taken(tab: Tab) -> None:
    tab.go("picture/0")
    region = next(r for r in find_regions(tab, 0) if r["layers"] in ("1", "2", "3"))
    tab.click(*region["inside"])
    tab.page.get_by_label("Known layer number").fill(region["layers"])
    tab.page.get_by_role("button", name="Show what would change").click()
    tab.page.locator(".lesson").get_by_text(re.compile("would change|Nothing changes")).wait_for(
        timeout=20_000
    )
    assert tab.server.lines() == []
    tab.page.get_by_role("button", name="Take the lesson").click()
    assert tab.wait_for_edits(1)[0]["edit"] == "known"


@pytest.mark.slow
def test_the_page_exports_and_says_the_methods(tab: Tab) -> None:
    tab.go("export")
    with tab.page.expect_download() as started:
        tab.page.get_by_role("link", name="CSV", exact=True).click()
    header = Path(started.value.path()).read_text("utf-8").split("\n")[0]
    assert header.startswith("image,flake_id,region_id,layers")
    said = tab.page.locator("#methods")
    tab.until("document.querySelector('#methods').textContent.includes('flatscope')")
    assert re.search(r"\d", said.inner_text())


@pytest.mark.slow
def test_a_movie_plays_and_its_events_are_jumped_to(browser: Any, tmp_path: Path) -> None:
    params = HoppingParams(
        material="WS2", frames=8, shape=(128, 128), electrons_per_px=25.0, vacancies=0.04, hop=0.2
    )
    np.save(tmp_path / "movie.npy", draw_hopping(np.random.default_rng(7), params).frames)
    command = [
        "defects",
        str(tmp_path / "movie.npy"),
        "--material",
        "WS2",
        "--nm-per-px",
        "0.03",
        "--workers",
        "1",
    ]
    assert run([*command, "--out", str(tmp_path / "run")]) == 0
    server = Server(tmp_path / "run").start()
    tab = Tab(browser, server)
    try:
        tab.go("movie/0")
        output = tab.page.locator(".timebar output")
        tab.key("ArrowRight")
        assert output.inner_text().startswith("frame 2 of 8")
        tab.key("Space")
        tab.until("!document.querySelector('.timebar output').textContent.startsWith('frame 2 ')")
        tab.key("Space")
        event = tab.page.locator(".events li button").last
        frame = event.locator("b").inner_text()
        event.click()
        assert output.inner_text().startswith(f"frame {frame} of 8")
        assert tab.troubles == []
    finally:
        tab.close()
        server.kill()
