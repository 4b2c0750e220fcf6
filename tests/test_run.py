"""Claims about every run: killed at any moment it is finished by the same command, and nothing of anybody's is lost."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatscope.app import cli
from flatscope.electron.physics.crystals import SheetParams, build_sheet
from flatscope.electron.physics.imaging import ScanParams, draw_adf
from flatscope.inference.registry import shipped_folder
from flatscope.runs.folder import Folder
from flatscope.runs.run import read_answers

TOY = Path(__file__).with_name("toy.py")
spec = importlib.util.spec_from_file_location("toy", TOY)
assert spec is not None and spec.loader is not None
toy = importlib.util.module_from_spec(spec)
sys.modules["toy"] = toy
spec.loader.exec_module(toy)

no_windows = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")


@pytest.fixture(autouse=True)
def _toy_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By worker processes."""
    monkeypatch.syspath_prepend(TOY.parent)


def put(path: Path, content: str = "") -> Path:
    """A file for the toy; its own name where nothing else is asked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((content or os.fspath(path.name)).encode("utf-8", "surrogateescape"))
    return path


def start(*args: object) -> int:
    return toy.run([str(arg) for arg in args])


def content_of(out: Path) -> dict[str, bytes]:
    """All files of a results folder except log.json, by their path in it."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "log.json"
    }


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two of them."""
    for name in "ab":
        put(tmp_path / "in" / f"{name}.jpg")
    return tmp_path / "in"


# --- killed, interrupted, no room left -------------------------------------------------------------------------------


class Disturber:
    """Counts what this process does to a folder, and does something else instead from a given number on.

    An audit hook cannot be removed: it belongs into a child process.
    """

    def __init__(self, folder: Path, at: int, act: Callable[[int], None]) -> None:
        self.folder, self.at, self.act, self.count = os.fspath(folder), at, act, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = args
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_APPEND):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            path = args[0]
        else:
            return
        if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder):
            self.count += 1
            if self.count >= self.at:
                self.act(self.count - self.at)


def start_disturbed(out: Path, args: list[object], at: int, act: Callable[[int], None]) -> int:
    """Start the toy in a child process that is disturbed; the exit code, or -1 where there was nothing to disturb."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            disturber = Disturber(out, at, act)
            sys.addaudithook(disturber)
            code = start(*args)
            if disturber.count < at:
                code = 71
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return -1 if code == 71 else code


def kill(number: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def press_ctrl_c(number: int) -> None:
    if number == 0:
        raise KeyboardInterrupt


def press_ctrl_c_twice(number: int) -> None:
    if number in (0, 3):
        raise KeyboardInterrupt


def fill_disk(number: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def fill_disk_for_a_moment(number: int) -> None:
    if number == 0:
        fill_disk(number)


CODES = {
    kill: {-9},
    press_ctrl_c: {130, 1},
    press_ctrl_c_twice: {130, 1},
    fill_disk: {2, 1},
    fill_disk_for_a_moment: {2, 1},
}
ACTS = tuple(CODES)
"""What may happen to a run; with its exit codes: 1 where only leftovers were to be removed."""


@no_windows
@pytest.mark.parametrize("act", ACTS)
def test_a_run_disturbed_at_any_moment_is_finished_by_the_same_command(
    tmp_path: Path, pictures: Path, act: Callable[[int], None]
) -> None:
    put(pictures / "d.jpg", "broken")
    diary = tmp_path / "diary"
    options: list[object] = [pictures, "--workers", 1, "--diary", diary, "--joined"]
    assert start(*options, "--out", tmp_path / "calm") == 1
    calm = content_of(tmp_path / "calm")
    # Kills come at every moment; the others at every third, each at other ones.
    moments, step = (0, 1) if act is kill else (ACTS.index(act) % 3, 3)
    while True:
        diary.unlink()
        out = tmp_path / f"out{moments}"
        code = start_disturbed(out, [*options, "--out", out], moments + 1, act)
        if code == -1:
            break
        assert code in CODES[act]
        assert start(*options, "--out", out) == 1, f"after moment {moments}"
        assert content_of(out) == calm, f"after moment {moments}"
        assert (out / "log.json").exists()
        worked = Counter(diary.read_text(encoding="utf-8").split())
        assert sum(worked.values()) <= 3 + 2, "one item, and the broken one"
        moments += step
    assert moments > 30


@no_windows
def test_a_picture_added_to_a_finished_run_may_be_killed_at_any_moment_too(
    tmp_path: Path, pictures: Path
) -> None:
    args = [pictures, "--workers", 1, "--joined"]
    assert start(*args, "--out", tmp_path / "before") == 0
    put(pictures / "d.jpg", "the heaviest of them all")
    assert start(*args, "--out", tmp_path / "calm") == 0
    calm, moments, code = content_of(tmp_path / "calm"), 0, 0
    while code != -1:
        out = tmp_path / f"out{moments}"
        shutil.copytree(tmp_path / "before", out)
        code = start_disturbed(out, [*args, "--out", out], moments + 1, kill)
        assert start(*args, "--out", out) == 0
        assert content_of(out) == calm, f"after moment {moments}"
        moments += 1
    assert moments > 30


@no_windows
def test_a_run_disturbed_again_and_again_ends_with_the_same_bytes(tmp_path: Path, pictures: Path) -> None:
    args = [pictures, "--workers", 1, "--joined"]
    put(pictures / "c.jpg", "bug")
    rng = random.Random(7)
    heavier = {name: "heavier " * number for number, name in enumerate(("c.jpg", "d.jpg", "e.jpg"), start=1)}
    for number in range(12):
        out, calm = tmp_path / f"out{number}", tmp_path / f"calm{number}"
        for name, content in [("", ""), *heavier.items()]:
            if name:
                put(pictures / name, content)
            for _ in range(rng.randrange(4)):
                start_disturbed(out, [*args, "--out", out], rng.randrange(1, 50), rng.choice(ACTS))
        assert start(*args, "--out", calm) == start(*args, "--out", out) == 0
        assert content_of(out) == content_of(calm), f"in round {number}"
        for name in heavier:
            (pictures / name).unlink()
        put(pictures / "c.jpg", "bug")


@no_windows
def test_a_run_in_which_everything_fails_may_be_killed_at_any_moment_too(tmp_path: Path) -> None:
    for name in "ab":
        put(tmp_path / "in" / f"{name}.jpg", "bug")
    args = [tmp_path / "in", "--workers", 1]
    assert start(*args, "--out", tmp_path / "calm") == 2
    calm, moments, code = content_of(tmp_path / "calm"), 0, 0
    assert b"unexpected IndexError (no row 7 in a.jpg)" in calm["toy.csv"]
    while code != -1:
        out = tmp_path / f"out{moments}"
        code = start_disturbed(out, [*args, "--out", out], moments + 1, kill)
        assert start(*args, "--out", out) == 2
        assert content_of(out) == calm, f"after moment {moments}"
        moments += 1
    assert moments > 10


def test_a_note_that_a_full_disk_cut_off_spoils_no_other(tmp_path: Path) -> None:
    Folder(tmp_path).write("a.csv", "1")
    journal = tmp_path / "items" / "written.txt"
    journal.write_bytes(journal.read_bytes() + b'\n["b.cs')
    Folder(tmp_path).write("b.csv", "1")
    last = Folder(tmp_path)
    for name in ("a.csv", "b.csv"):
        last.write(name, "2")
        assert (tmp_path / name).read_text() == "2", "it was flatscope's"
    assert last.kept == set()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(tmp_path: Path, pictures: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o500)
    assert start(pictures, "--out", tmp_path / "out", "--workers", 1) == 2
    assert re.fullmatch(r"flatscope: [^\n]*no permission to write here[^\n]*\n", capsys.readouterr().err)
    (tmp_path / "out").chmod(0o700)
    assert start(pictures, "--out", tmp_path / "out", "--workers", 1) == 0


def test_a_folder_that_nobody_can_write_to_is_one_line(
    tmp_path: Path, pictures: Path, capsys: Any, monkeypatch: Any
) -> None:
    args = [pictures, "--out", tmp_path / "out", "--workers", 1]
    real = open

    def refuse(path: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "r" not in mode:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, mode, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert start(*args) == 2
    assert re.fullmatch(r"flatscope: [^\n]*no permission to write here[^\n]*\n", capsys.readouterr().err)
    assert start(*args) == 0
    capsys.readouterr()
    os.utime(pictures / "a.jpg")  # the log would like to know, but cannot
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", refuse)
        assert start(*args) == 0, "a finished run may lie where nobody may write"
    assert "nothing to do" in capsys.readouterr().err


# --- workers ---------------------------------------------------------------------------------------------------------


def test_two_workers_write_what_one_writes(tmp_path: Path, pictures: Path) -> None:
    put(pictures / "c.jpg", "broken")
    put(pictures / "d.jpg", "bug")
    for workers in (1, 2):
        assert start(pictures, "--out", tmp_path / str(workers), "--workers", workers, "--joined") == 1
    assert content_of(tmp_path / "1") == content_of(tmp_path / "2")


@no_windows
def test_an_item_that_kills_its_worker_is_tried_again_and_fails_alone(
    tmp_path: Path, pictures: Path, capsys: Any
) -> None:
    put(pictures / "c.jpg", "once deadly")
    put(pictures / "d.jpg", "deadly")
    assert start(pictures, "--out", tmp_path / "out", "--workers", 2) == 1
    assert (pictures / "c.died").exists()
    states = {entry["name"]: entry["status"] for entry in record_of(tmp_path / "out")["items"]}
    assert states == {"a.jpg": "analysed", "b.jpg": "analysed", "c.jpg": "analysed", "d.jpg": "failed"}
    said = capsys.readouterr().err
    assert "d.jpg: its worker process died twice, out of memory perhaps: use --workers 1" in said
    put(pictures / "d.jpg", "harmless")
    assert start(pictures, "--out", tmp_path / "out", "--workers", 2) == 0
    (pictures / "c.died").touch()
    assert start(pictures, "--out", tmp_path / "calm", "--workers", 1) == 0
    assert content_of(tmp_path / "out") == content_of(tmp_path / "calm")


@no_windows
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_forty_pictures_killed_ten_times_give_the_same_bytes(
    tmp_path: Path, workers: int, capsys: Any
) -> None:
    rng = random.Random(workers)
    for number in range(40):
        put(tmp_path / "in" / f"{number:02}.jpg", rng.randbytes(50).hex())
    diary, out = tmp_path / "diary", tmp_path / "out"
    args = [tmp_path / "in", "--workers", workers, "--joined", "--diary", diary, "--seconds", 0.05]
    assert start(*args, "--out", tmp_path / "calm") == 0
    diary.write_text("", encoding="utf-8")
    command = [sys.executable, TOY, *args, "--out", out]
    environment = os.environ | {"TOY_RUN": str(out)}
    for _ in range(10):
        before = diary.stat().st_size
        with subprocess.Popen(list(map(str, command)), env=environment) as process:
            while diary.stat().st_size == before and process.poll() is None:
                time.sleep(0.005)
            time.sleep(rng.uniform(0.0, 0.2))
            process.kill()
        wait_for(lambda: not list_processes(str(out)), limit_s=5.0)
    assert start(*args, "--out", out) == 0
    assert content_of(out) == content_of(tmp_path / "calm")
    again = len(diary.read_text(encoding="utf-8").split()) - 40
    with capsys.disabled():
        sys.stdout.write(f"\n{workers} workers, killed ten times: {again} of 40 items were repeated\n")
    assert again <= 10 * workers


def wait_for(condition: Callable[[], bool], *, limit_s: float = 60.0) -> None:
    until = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


def list_processes(word: str) -> list[int]:
    """Processes with this word in their command line, or whose parent had it: Linux tells."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TOY_RUN={word}".encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


# --- names -----------------------------------------------------------------------------------------------------------


def names_of(out: Path) -> dict[str, str]:
    return {entry["name"]: entry["stem"] for entry in record_of(out)["items"]}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/x.jpg", "b/x.jpg"], {"a/x.jpg": "a_x.jpg", "b/x.jpg": "b_x.jpg"}),
        (["x.jpg", "x.png"], {"x.jpg": "x.jpg", "x.png": "x.png"}),
        (["x.jpg", "X.JPG"], {"x.jpg-2": "x.jpg-2", "X.JPG-3": "X.JPG-3"}),
        (["a/x.jpg", "a/x.png", "a_x.jpg"], {}),
        (["x.jpg", "x.png", "x.jpg.tif"], {}),
        (["x.jpg", "x.overlay.png"], {"x.jpg": "x", "x.overlay.png": "x.overlay"}),
        (["a b ü µ.jpg"], {"a b ü µ.jpg": "a b ü µ"}),
        (["line\nbreak.jpg", "tab\t.jpg", "sep\u2028.jpg"], {}),
        (["n" * 236 + ".jpg", "n" * 236 + ".png"], {}),
        (["\udce4.jpg", "\udcf6.jpg"], {}),
    ],
)
def test_no_two_items_share_a_name(tmp_path: Path, files: list[str], names: dict[str, str]) -> None:
    inputs = [put(tmp_path / "in" / name, f"picture {number}") for number, name in enumerate(files)]
    out = tmp_path / "out"
    assert start(*inputs, "--out", out, "--workers", 1) == 0
    found = names_of(out)
    assert (
        len({name.lower() for name in found}) == len({stem.lower() for stem in found.values()}) == len(files)
    )
    for entry, path in zip(record_of(out)["items"], inputs, strict=True):
        assert (out / entry["files"][0]).read_bytes() == (
            np.frombuffer(path.read_bytes(), np.uint8) * 1.0
        ).tobytes()
        assert entry["sha256"] == [hashlib.sha256(path.read_bytes()).hexdigest()]
    if names:
        assert found.items() >= {name: stem for name, stem in names.items() if name in found}.items()
        assert "-2" in str(names) or found == names
    before = content_of(out)
    assert start(*inputs, "--out", out, "--workers", 1) == 0
    assert content_of(out) == before


def test_a_symlink_keeps_its_own_name(tmp_path: Path) -> None:
    real = put(tmp_path / "in" / "real.jpg")
    (tmp_path / "in" / "mine.jpg").symlink_to(real)
    assert start(tmp_path / "in", "--out", tmp_path / "out", "--workers", 1) == 0
    assert names_of(tmp_path / "out") == {"mine.jpg": "mine", "real.jpg": "real"}


def test_the_input_folder_may_be_the_output_folder(tmp_path: Path) -> None:
    folder = tmp_path / "both"
    given = [put(folder / "x.jpg"), put(folder / "x.overlay.png", "a picture of mine")]
    assert start(*given, "--out", folder, "--workers", 1) == 0
    assert given[1].read_text() == "a picture of mine"
    assert names_of(folder) == {"x.jpg": "x.jpg", "x.overlay.png": "x.overlay"}
    first = content_of(folder)
    assert start(*given, "--out", folder, "--workers", 1) == 0
    assert content_of(folder) == first
    put(folder / "y.jpg")
    assert start(folder, "--out", tmp_path / "out", "--workers", 1) == 0
    assert list(names_of(tmp_path / "out")) == ["x.jpg", "y.jpg"], "what flatscope drew is no picture"


def test_subfolders_are_taken_when_asked_and_the_results_in_them_are_not(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    put(folder / "a.jpg")
    put(folder / "items" / "b.jpg", "a folder of that name is nobody's as long as no run.json lies beside it")
    args = [folder, "--out", folder / "out", "--workers", 1]
    assert start(*args) == 0
    assert list(names_of(folder / "out")) == ["a.jpg"]
    assert start(*args, "--recursive", "--replace") == 0
    assert list(names_of(folder / "out")) == ["a.jpg", "b.jpg"]
    put(folder / "out" / "export" / "a.png", "drawn by flatscope export")
    assert start(*args, "--recursive") == 0
    assert list(names_of(folder / "out")) == ["a.jpg", "b.jpg"]


# --- whose folder it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record | {"verb": "twist"}, r"holds a run of flatscope twist: choose another --out"),
        (
            lambda record: record | {"flatscope": "0.0.1"},
            r"holds a run of flatscope 0\.0\.1, this is .*: choose",
        ),
        (
            lambda record: record | {"settings": record["settings"] | {"factor": 2.0}},
            r"other settings \(factor 2\.0, now 1\.0\)",
        ),
        (lambda record: record | {"weights": {"name": "others"}}, r"other weights \(others\)"),
        (lambda record: record | {"digests": {"flat field": "12"}}, r"another flat field"),
        (
            lambda record: record | {"items": [*record["items"], record["items"][0] | {"name": "old.jpg"}]},
            r"1 more input \(old\.jpg\)",
        ),
        (lambda record: {"flatscope": "0.0.9", "verb": "toy"}, r"flatscope 0\.0\.9 in another format"),
        (lambda record: record | {"schema": 99}, r"in another format"),
        (lambda record: {"name": "somebody's"}, r"run\.json is not flatscope's"),
        (lambda record: ["nothing"], r"run\.json is not flatscope's"),
        (lambda record: record | {"items": [{}]}, r"run\.json is damaged"),
        (lambda record: record | {"items": ["a.jpg"]}, r"run\.json is damaged"),
        (lambda record: record | {"files": ["a.jpg"]}, r"run\.json is damaged"),
        (lambda record: {**record, "settings": None}, r"run\.json is damaged"),
    ],
)
def test_another_run_is_refused_and_left_as_it_is(
    tmp_path: Path, pictures: Path, capsys: Any, change: Callable[[Any], Any], message: str
) -> None:
    out = tmp_path / "out"
    assert start(pictures, "--out", out, "--workers", 1) == 0
    (out / "run.json").write_text(json.dumps(change(record_of(out))), encoding="utf-8")
    before = content_of(out)
    capsys.readouterr()
    assert start(pictures, "--out", out, "--workers", 1) == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"flatscope: [^\n]*\n", said.err), said.err
    assert re.search(message, said.err), said.err
    assert said.out == ""
    assert content_of(out) == before


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x80"])
def test_a_damaged_record_is_refused(tmp_path: Path, pictures: Path, capsys: Any, text: str) -> None:
    put(tmp_path / "out" / "run.json", "x").write_bytes(text.encode("latin-1"))
    for more in ([], ["--replace"]):
        assert start(pictures, "--out", tmp_path / "out", "--workers", 1, *more) == 2
        assert re.fullmatch(
            r"flatscope: [^\n]*run\.json cannot be read as a run[^\n]*\n", capsys.readouterr().err
        )
    assert list(content_of(tmp_path / "out")) == ["run.json"]


@pytest.mark.parametrize("name", ["toy.csv", "report.html", "log.json"])
def test_a_file_of_somebody_else_is_not_overwritten(
    tmp_path: Path, pictures: Path, capsys: Any, name: str
) -> None:
    put(tmp_path / "out" / name, "mine")
    for more in ([], ["--replace"]):
        assert start(pictures, "--out", tmp_path / "out", "--workers", 1, *more) == 2
        assert re.fullmatch(
            rf"flatscope: [^\n]*{name} is there already [^\n]*--out\n", capsys.readouterr().err
        )
    assert (tmp_path / "out" / name).read_text() == "mine"
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_replace_removes_only_what_flatscope_wrote(tmp_path: Path, pictures: Path) -> None:
    out = tmp_path / "out"
    assert start(pictures, "--out", out, "--workers", 1) == 0
    mine = [put(out / "notes.txt"), put(out / "items" / "mine.zip"), put(out / "b.layers.png", "corrected")]
    assert start(pictures / "a.jpg", "--out", out, "--workers", 1, "--factor", 2) == 2
    assert start(pictures / "a.jpg", "--out", out, "--workers", 1, "--factor", 2, "--replace") == 0
    assert [path.read_text() for path in mine] == ["notes.txt", "mine.zip", "corrected"]
    left = set(content_of(out))
    assert "b.overlay.png" not in left
    assert len([name for name in left if name.startswith("items/")]) == 3
    assert record_of(out)["settings"]["factor"] == 2.0


def test_somebody_elses_files_in_a_folder_called_items_stay(tmp_path: Path, pictures: Path) -> None:
    mine = put(tmp_path / "out" / "items" / "holiday.zip")
    assert start(pictures, "--out", tmp_path / "out", "--workers", 1) == 0
    assert mine.exists()


@pytest.mark.parametrize("cut", [0, 30, 200])
def test_a_half_written_item_is_made_again(tmp_path: Path, pictures: Path, capsys: Any, cut: int) -> None:
    assert start(pictures, "--out", tmp_path / "calm", "--workers", 1) == 0
    for kind in ("key", "answer"):
        out = tmp_path / kind
        shutil.copytree(tmp_path / "calm", out)
        entry = record_of(out)["items"][0]
        stored = out / "items" / f"{entry[kind]}.zip"
        stored.write_bytes(stored.read_bytes()[:cut])
        if kind == "key":
            (out / "items" / f"{entry['answer']}.zip").unlink()
        capsys.readouterr()
        assert start(pictures, "--out", out, "--workers", 1) == 0
        said = capsys.readouterr().err
        assert ("a.jpg: its stored part was half-written, it is made again" in said) == (kind == "key"), said
        assert content_of(out) == content_of(tmp_path / "calm")


def test_a_stored_item_with_wrong_bytes_is_one_line_and_made_again(
    tmp_path: Path, pictures: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert start(pictures, "--out", out, "--workers", 1) == 0
    calm = content_of(out)
    stored = out / "items" / f"{record_of(out)['items'][0]['answer']}.zip"
    content = bytearray(stored.read_bytes())
    content[60:70] = bytes(10)
    stored.write_bytes(content)
    (out / "toy.csv").unlink()
    assert start(pictures, "--out", out, "--workers", 1) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"flatscope: items/\w+\.zip was damaged and is removed: start again\n", said), said
    assert start(pictures, "--out", out, "--workers", 1) == 0
    assert content_of(out) == calm


# --- what is kept ----------------------------------------------------------------------------------------------------


def test_pictures_added_to_a_run_reuse_the_finished_ones(tmp_path: Path, pictures: Path) -> None:
    diary = tmp_path / "diary"
    args = ["--out", tmp_path / "out", "--workers", 1, "--diary", diary]
    assert start(pictures, *args) == 0
    put(pictures / "0.jpg")
    assert start(pictures, *args) == 0
    assert diary.read_text().split() == ["a.jpg", "b.jpg", "0.jpg"]
    put(tmp_path / "more" / "a.jpg", "another a")
    for _ in range(2):
        assert start(pictures, tmp_path / "more", *args) == 0
    assert diary.read_text().split() == ["a.jpg", "b.jpg", "0.jpg", "more/a.jpg"]
    assert list(names_of(tmp_path / "out")) == ["0.jpg", "a.jpg", "b.jpg", "more/a.jpg"]
    put(pictures / "b.jpg", "taken again")
    assert start(pictures, tmp_path / "more", *args) == 0
    assert diary.read_text().split()[4:] == ["b.jpg"]


def test_a_layer_image_corrected_by_hand_stays_and_the_user_hears_of_it(
    tmp_path: Path, pictures: Path, capsys: Any
) -> None:
    out = tmp_path / "out"
    assert start(pictures, "--out", out, "--workers", 1, "--joined") == 0
    put(out / "a.layers.png", "corrected")
    for added in (None, "c.jpg", None, "d.jpg the heaviest of them"):
        if added:
            put(pictures / added.split()[0], added)
        capsys.readouterr()
        assert start(pictures, "--out", out, "--workers", 1, "--joined") == 0
        assert (out / "a.layers.png").read_text() == "corrected"
        said = capsys.readouterr().err
        assert "out/a.layers.png was changed since flatscope wrote it: it stays as it is" in said
        assert said.count("was changed") == 1
    (out / "a.layers.png").unlink()
    assert start(pictures, "--out", out, "--workers", 1, "--joined") == 0
    assert "was changed" not in capsys.readouterr().err
    assert start(pictures, "--out", tmp_path / "calm", "--workers", 1, "--joined") == 0
    assert content_of(out) == content_of(tmp_path / "calm")


def test_a_failure_is_remembered_as_long_as_the_file_stays(
    tmp_path: Path, pictures: Path, capsys: Any
) -> None:
    diary = tmp_path / "diary"
    args = [pictures, "--out", tmp_path / "out", "--workers", 1, "--diary", diary]
    put(pictures / "c.jpg", "broken")
    for _ in range(2):
        assert start(*args) == 1
        assert capsys.readouterr().err.count("c.jpg: is broken\n") == 1
    assert diary.read_text().split() == ["a.jpg", "b.jpg", "c.jpg"]
    put(pictures / "c.jpg", "mended")
    assert start(*args) == 0


def test_a_finished_run_is_not_done_again_and_read_once(
    tmp_path: Path, pictures: Path, capsys: Any, monkeypatch: Any
) -> None:
    args = [pictures, "--out", tmp_path / "out", "--workers", 1]
    assert start(*args) == 0
    os.utime(pictures / "a.jpg", (1, 1))
    read: list[str] = []
    real = hashlib.file_digest

    def digest(stream: Any, kind: Any) -> Any:
        read.append(Path(stream.name).name)
        return real(stream, kind)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    for _ in range(2):
        capsys.readouterr()
        assert start(*args) == 0
        said = capsys.readouterr()
        assert said.err == "flatscope: all 2 pictures were finished before: nothing to do\n"
        assert said.out == f"report: {tmp_path / 'out' / 'report.html'}\n"
    assert read == ["a.jpg"]
    for name in ("log.json", "report.html"):
        (tmp_path / "out" / name).unlink()
        assert start(*args) == 0
        assert (tmp_path / "out" / name).exists()


# --- settings that cannot be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        "flakes IN --oxide-sigma-nm inf",
        "flakes IN --um-per-px nan",
        "flakes IN --um-per-px -1",
        "twist IN --um-per-px nan",
        "twist IN --oxide-nm nan",
        "atoms IN --material MoS2 --nm-per-px -1",
        "atoms IN --material MoS2 --nm-per-px inf",
        "defects IN --material MoS2 --nm-per-px -1",
        "defects IN --material MoS2 --frame-s nan",
        "simulate stem --nm-per-px 0",
        "simulate stem --nm-per-px nan",
        "simulate stem --dose 1 inf",
        "simulate stem --dose nan 3",
        "simulate stem --translated nan",
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(
    tmp_path: Path, capsys: Any, command: str
) -> None:
    put(tmp_path / "IN" / "a.png")
    args = [str(tmp_path / word) if word == "IN" else word for word in command.split()]
    assert cli.run([*args, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert re.fullmatch(r"flatscope: [^\n]*\n", said.err), said.err
    assert said.out == ""
    assert not (tmp_path / "out").exists()


# --- where answers come from -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of inputs, one of them broken, and beside it the results of every verb, asked by absolute paths."""
    home = tmp_path_factory.mktemp("answered")
    rng = np.random.default_rng(3)
    field = np.ones((96, 128, 3))
    field[30:66, 40:76] += (-0.138, -0.139, -0.068)
    photo = (field * (150.0, 120.0, 160.0) + rng.normal(0, 1.0, field.shape)).clip(0, 255).astype(np.uint8)
    crystal = build_sheet(rng, SheetParams("WSe2", (3.0, 3.0), turn_deg=10.0))
    scan = draw_adf(crystal, ScanParams(0.02, collection_mrad=(80.0, 250.0)), shape=(150, 150))
    for verb in VERBS:
        (home / verb).mkdir()
        if verb in ("flakes", "twist"):
            Image.fromarray(photo).save(home / verb / "a.png")
        else:
            np.save(home / verb / "a.npy", rng.poisson(scan / scan.mean() * 100.0).astype(np.float32))
        put(home / verb / ("b.png" if verb in ("flakes", "twist") else "b.npy"), "broken")
        weights = shipped_folder() / f"{VERBS[verb]}.onnx"
        material = "WSe2" if verb in ("atoms", "defects") else "graphene"
        args = [home / verb, "--material", material, "--weights", weights, "--workers", 1]
        assert cli.run([verb, *map(str, args), "--out", str(home / f"{verb}-out")]) == 1, verb
    return home


VERBS = {"flakes": "flakes", "twist": "flakes", "atoms": "columns", "defects": "defects"}


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_an_answer_says_where_it_comes_from(answered: Path, verb: str) -> None:
    out = answered / f"{verb}-out"
    record = record_of(out)
    good, broken = record["items"]
    assert (good["status"], broken["status"], broken["is_lasting"]) == ("analysed", "failed", True)
    ((_, answer),) = read_answers(out, record)
    (table,) = answer.tables.values()
    source = next((answered / verb).glob("a.*"))
    provenance = table.provenance
    assert provenance.image == good["name"] == source.name
    assert provenance.image_sha256 == hashlib.sha256(source.read_bytes()).hexdigest() == good["sha256"][0]
    assert provenance.version == record["flatscope"]
    assert provenance.settings["material"] == record["settings"]["material"]
    stated = {
        "name": provenance.weights,
        "version": provenance.weights_version,
        "sha256": provenance.weights_sha256,
    }
    if verb == "twist":  # two networks: one finds the flakes, the other turns them
        assert record["digests"] == {"orientation network": provenance.weights_sha256}
    elif verb == "atoms":  # its network reads focal series only
        assert set(stated.values()) == {""} and record["weights"] == {}
    else:
        assert stated == record["weights"]


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_no_file_but_the_log_knows_places_and_times(answered: Path, verb: str) -> None:
    words = [str(answered).encode(), time.strftime("%Y-%m-%d").encode(), str(shipped_folder()).encode()]
    for path in (answered / f"{verb}-out").rglob("*"):
        if path.is_dir() or path.name == "log.json":
            continue
        contents = [path.read_bytes()]
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        assert not [word for word in words if any(word in content for content in contents)], path


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_the_settings_of_a_run_repeat_it(answered: Path, verb: str) -> None:
    first, again = answered / f"{verb}-out", answered / f"{verb}-again"
    args = [answered / verb, "--settings", first / "run.json", "--workers", 1, "--out", again]
    assert cli.run([verb, *map(str, args)]) == 1
    assert content_of(again) == content_of(first)


def test_a_start_with_nothing_to_do_loads_no_heavy_package(answered: Path) -> None:
    args = ["flakes", str(answered / "flakes"), "--material", "graphene", "--workers", "1"]
    args += ["--weights", str(shipped_folder() / "flakes.onnx"), "--out", str(answered / "flakes-out")]
    code = (
        "import sys\nfrom flatscope.app.cli import main\nfrom flatscope.app.startup import LATE\n"
        f"sys.argv[1:] = {args!r}\ntry:\n    main()\nfinally:\n"
        "    print([name for name in LATE if type(sys.modules[name]).__name__ != '_Late'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "nothing to do" in done.stderr, done.stderr
    assert done.stdout.endswith("[]\n")
