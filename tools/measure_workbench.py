"""Measure how quick the page of the workbench is, in a headless Chromium without a GPU, and photograph its views.

    python tools/measure_workbench.py                        # drawing, panning, a click: made-up marks, no server
    python tools/measure_workbench.py --run RUN              # the first view of a run, by a server of its own
    python tools/measure_workbench.py --run RUN --pictures FOLDER --view gallery picture/0 contrast

Needs Chromium and the extra `dev`. Times are medians on the machine as it is; let nothing else run.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import sync_playwright

STATIC = Path(__file__).parent.parent / "src" / "flatscope" / "app" / "server" / "static"
WIDTH, HEIGHT = 5472, 3648  # 20 megapixels
CORNERS = 60  # of an outline
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
TYPES = {"js": "text/javascript", "css": "text/css", "html": "text/html"}
DRAW = """(anew) => { const {overlay, viewer} = flatscope, took = [];
  for (let time = 0; time < 9; time++) {
    overlay.set(overlay.shapes, overlay.rows, overlay.look, null);
    if (anew) overlay.shapes.thinned.clear();
    const begun = performance.now();
    overlay.draw(viewer.placement());
    took.push(performance.now() - begun);
  }
  return took; }"""
PAN = """() => new Promise((done) => { const {viewer} = flatscope, frames = []; let last = performance.now(), step = 0;
  const end = last + 5000;
  const move = (now) => { frames.push(now - last); last = now; step++;
    viewer.panBy(14 * Math.cos(step / 40), 9 * Math.sin(step / 25));
    if (now < end) requestAnimationFrame(move); else done(frames.slice(3)); };
  requestAnimationFrame(move); })"""
SHEET = """() => { const image = new Image();
  image.src = getComputedStyle(document.querySelector('.sprite')).backgroundImage.slice(5, -2);
  return image.decode(); }"""
WATCH = """() => { let pressed = 0; window.answered = [];
  addEventListener('pointerup', () => { pressed = performance.now(); }, true);
  new MutationObserver(() => { if (pressed) { answered.push(performance.now() - pressed); pressed = 0; } })
    .observe(document.querySelector('.side'), {childList: true, subtree: true, characterData: true}); }"""


def make_marks(kind: str, count: int) -> dict[str, Any]:
    """Stars all over the picture, or points."""
    rng = np.random.default_rng(0)
    ids = list(range(1, count + 1))
    common = {"revision": 1, "shape": [HEIGHT, WIDTH], "kind": kind, "ids": ids}
    if kind == "points":
        return {
            **common,
            "x": rng.uniform(0, WIDTH, count).tolist(),
            "y": rng.uniform(0, HEIGHT, count).tolist(),
        }
    across = int(np.ceil(np.sqrt(count * WIDTH / HEIGHT)))
    side = WIDTH / across
    turn = np.linspace(0.0, 2.0 * np.pi, CORNERS, endpoint=False)
    rings = []
    for place in range(count):
        radius = 0.45 * side * rng.uniform(0.6, 1.0) * (1.0 + 0.15 * np.sin(5.0 * turn + place))
        x = (place % across + 0.5) * side + radius * np.cos(turn)
        y = (place // across + 0.5) * side + radius * np.sin(turn)
        rings.append([np.stack([x, y], 1).round(1).ravel().tolist()])
    return {**common, "rings": rings}


def make_answers(kind: str, count: int) -> dict[str, Any]:
    """What a server would say of a run of one picture with those marks."""
    ids, same = list(range(1, count + 1)), [0.9] * count
    columns: dict[str, Any] = {"status": ["accepted"] * count, "reason": [""] * count, "area_px": ids}
    if kind == "outlines":
        columns |= {
            "region_id": ids,
            "layers": [str(1 + place % 6) for place in ids],
            "layers_p": same,
            "p_flake": same,
        }
    else:
        columns |= {
            "column_id": ids,
            "species": [("W", "Se2", "Se")[place % 3] for place in ids],
            "species_p": same,
        }
    item = {
        "index": 0,
        "name": "a.png",
        "stem": "a",
        "status": "analysed",
        "reason": "",
        "notes": [],
        "n_rows": count,
    }
    item |= {"width": WIDTH, "height": HEIGHT, "n_frames": 1}
    run = {
        "name": "made up",
        "verb": "flakes",
        "flatscope": "",
        "complete": True,
        "running": False,
        "revision": 1,
    }
    run |= {"settings": {}, "weights": {}, "columns": [], "can": ["layers"], "items": [item]}
    run |= {"table": "flakes" if kind == "outlines" else "columns"}
    run |= {"row_id": "region_id" if kind == "outlines" else "column_id"}
    tiles = {"width": WIDTH, "height": HEIGHT, "tile_size": 512, "levels": 14, "n_frames": 1}
    return {
        "api/run": run,
        "api/rows": {"revision": 1, "item": [0] * count, "columns": columns},
        "api/items/0/marks": make_marks(kind, count),
        "api/items/0/tiles.json": tiles,
        "api/edits": [],
        "api/items/0/maps": [],
        "api/jobs": [],
    }


def make_tile(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.integers(120, 160, (32, 32, 3)), np.ones((16, 16, 1), int))
    stream = io.BytesIO()
    Image.fromarray((coarse + rng.integers(0, 12, coarse.shape)).astype(np.uint8)).save(
        stream, "JPEG", quality=88
    )
    return stream.getvalue()


def answer_all(page: Any, kind: str, count: int) -> None:
    """Answer the page's requests from here, so that no server's time is measured."""
    answers = {name: json.dumps(answer) for name, answer in make_answers(kind, count).items()}
    tiles = [make_tile(seed) for seed in range(8)]

    def answer(route: Any) -> None:
        name = route.request.url.split("?")[0].split("/", 3)[3]
        if name in answers:
            route.fulfill(body=answers[name], content_type="application/json")
        elif "/tiles/" in name:
            route.fulfill(body=tiles[len(name) * 7 % 8], content_type="image/jpeg")
        elif name.startswith("api/"):
            route.fulfill(status=404, body="{}")
        else:
            path = STATIC / (name or "index.html")
            route.fulfill(body=path.read_bytes(), content_type=TYPES[path.suffix[1:]])

    page.route("**/*", answer)


def measure_drawing(browser: Any) -> None:
    for kind, count in (("outlines", 300), ("outlines", 10_000), ("points", 50_000)):
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        answer_all(page, kind, count)
        page.goto("http://127.0.0.1:9/?probe#/picture/0")
        page.wait_for_selector(".stage canvas.marks")
        page.wait_for_timeout(3000)
        first, again = (statistics.median(page.evaluate(DRAW, anew)) for anew in (True, False))
        print(f"{count} {kind}: drawn first in {first:.0f} ms, again in {again:.0f} ms", flush=True)
        page.evaluate(WATCH)
        for step in range(40):
            page.mouse.click(120 + 20 * step, 200 + 12 * step)
            page.wait_for_timeout(60)
        clicks = page.evaluate("answered")
        print(f"  a click is answered in {statistics.median(clicks):.0f} ms ({len(clicks)} clicks)")
        for word, zoom in (("whole picture", 1.0), ("six times larger", 6.0)):
            page.evaluate(f"flatscope.viewer.zoomBy({zoom})")
            page.wait_for_timeout(1000)
            times = sorted(page.evaluate(PAN))
            late = times[int(0.95 * len(times))]
            print(
                f"  pan, {word}: {1000 / statistics.median(times):.0f} frames a second, 95 % in {late:.0f} ms"
            )
        page.close()


@contextmanager
def serve(run: Path) -> Iterator[str]:
    """Open a run; gives its address."""
    code = "from flatscope.app.cli import main; main()"
    command = [sys.executable, "-c", code, "open", str(run), "--no-browser"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, f"{run} does not open"
        yield found[0]
        process.terminate()


def measure_first_view(browser: Any, address: str) -> None:
    """From the request to the first sheet of thumbnails on the screen; the first visit may fill the server's cache."""
    for visit in ("first", "second", "third"):
        context = browser.new_context(viewport={"width": 1280, "height": 800})
        page = context.new_page()
        page.goto(address, wait_until="commit")
        page.wait_for_selector(".cell", timeout=60_000)
        page.evaluate(SHEET)
        print(f"{visit} view: {page.evaluate('performance.now()'):.0f} ms")
        context.close()


def photograph(browser: Any, address: str, views: list[str], folder: Path) -> None:
    """Views at 1280 and 1920 pixels, in both themes."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, height in ((1280, 800), (1920, 1080)):
        for theme in ("light", "dark"):
            context = browser.new_context(viewport={"width": width, "height": height})
            page = context.new_page()
            page.add_init_script(f"localStorage.setItem('theme', '{theme}')")
            page.goto(address)
            page.wait_for_selector("nav")
            base = page.url.split("#")[0]
            for view in views:
                page.goto(f"{base}#/{view}")
                page.wait_for_timeout(1500)
                if view.split("/")[0] == "picture":
                    page.keyboard.press(".")
                    page.wait_for_timeout(1200)
                page.screenshot(path=folder / f"{view.replace('/', '_')}_{width}_{theme}.png")
            context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--view", nargs="+", default=["gallery", "picture/0", "contrast", "export"])
    asked = parser.parse_args()
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=found, args=list(FLAGS))
        if asked.run is None:
            measure_drawing(browser)
        else:
            with serve(asked.run) as address:
                if asked.pictures is None:
                    measure_first_view(browser, address)
                else:
                    photograph(browser, address, asked.view, asked.pictures)
        browser.close()


if __name__ == "__main__":
    main()
