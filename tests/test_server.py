"""The server of the workbench: who may speak to it, what it writes, and that nothing anyone said is lost."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from PIL import Image
from shapely.geometry import Polygon

from flatscope.app.cli import run
from flatscope.app.server.application import describe_api, make_application
from flatscope.app.server.desk import Desk
from flatscope.optical.scenes import SceneParams, draw_scene
from flatscope.runs import lock
from flatscope.runs.edits import list_edits
from flatscope.runs.settings import SettingsError
from flatscope.runs.workbench import Workbench

TOKEN = "the-token-of-the-tests"
NAMES = ("a.png", "<img src=x onerror=alert(1)>.png")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two small pictures, one with HTML in its name."""
    folder = tmp_path_factory.mktemp("workbench")
    (folder / "photos").mkdir()
    for seed, name in enumerate(NAMES, start=2):
        params = SceneParams((160, 240), "MoS2", oxide_nm=285.0, gamma=1.0, clean=True)
        scene = draw_scene(np.random.default_rng(seed), params)
        Image.fromarray(scene.pixels).save(folder / "photos" / name)
    args = ["flakes", str(folder / "photos"), "--material", "MoS2", "--oxide-nm", "285", "--gamma", "1"]
    assert run([*args, "--workers", "1", "--out", str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    """A copy of that run that a test may change."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


class Client:
    """Speaks HTTP to the server of a run, as the page does."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.headers = {
            "Host": f"127.0.0.1:{port}",
            "Origin": f"http://127.0.0.1:{port}",
            "Cookie": f"flatscope-{port}={TOKEN}",
            "Content-Type": "application/json",
        }

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> tuple[int, Any]:
        """Status and answer; a header of None is left out."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        if data is not None and "Content-Length" not in sent:
            connection.putheader("Content-Length", str(len(data)))
        connection.endheaders(data)
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        is_json = answer.headers.get_content_type() == "application/json"
        return answer.status, json.loads(content) if is_json else content

    def get(self, path: str) -> Any:
        """The answer to a question that must have one."""
        status, answer = self.ask("GET", path)
        assert status == 200, answer
        return answer

    def edit(self, **line: Any) -> tuple[int, Any]:
        """Post one correction."""
        return self.ask("POST", "/api/edits", {"lines": [line]})


@pytest.fixture
def client(out: Path) -> Iterator[Client]:
    """A server on a copy of the run."""
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        application = make_application(Desk.of(out), token=TOKEN, port=port)
        server = uvicorn.Server(uvicorn.Config(application, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        yield Client(port)
        server.should_exit = True
        thread.join(20)


def first_row(client: Client) -> dict[str, Any]:
    """The best row, its place in its item, and a place inside it as corrections name it."""
    rows = client.get("/api/rows")
    row = {name: values[0] for name, values in rows["columns"].items()} | {"item": rows["item"][0]}
    marks = client.get(f"/api/items/{row['item']}/marks")
    outer, *holes = (np.reshape(r, (-1, 2)) for r in marks["rings"][marks["ids"].index(row["region_id"])])
    inside = Polygon(outer, holes).representative_point()
    return row | {"place": {"image": row["image"], "row_px": inside.y, "col_px": inside.x}}


def snapshot(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}


# --- who may speak to it ----------------------------------------------------------------------------------------------


def test_other_hosts_other_pages_and_strangers_are_refused_in_one_line(client: Client, out: Path) -> None:
    before = snapshot(out)
    line = {"lines": [{"edit": "residue", "image": "a.png", "row_px": 1, "col_px": 1}]}
    refused = [
        client.ask("GET", "/api/run", Host="evil.example"),
        client.ask("GET", "/api/run", Host="127.0.0.1.evil.example"),
        client.ask("GET", "/api/run", Origin="http://evil.example"),
        client.ask("GET", "/api/run", Origin="null"),
        client.ask("GET", "/api/run", Sec_Fetch_Site="cross-site"),
        client.ask("GET", "/api/run", Cookie=None),
        client.ask("GET", "/api/run", Cookie=f"flatscope-{client.port}=guessed"),
        client.ask("GET", "/?token=guessed", Cookie=None),
        client.ask("GET", "/index.html", Cookie=None),
        client.ask("POST", "/api/edits", line, Origin=None),
        client.ask("POST", "/api/edits", line, Origin="http://evil.example"),
        client.ask("POST", "/api/edits", line, Cookie=None),
    ]
    for status, answer in refused:
        assert status == 403
        assert "\n" not in answer["detail"] and TOKEN not in answer["detail"]
    assert snapshot(out) == before


def test_the_token_of_the_address_becomes_a_cookie_that_scripts_cannot_read(client: Client) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.request("GET", f"/?token={TOKEN}")
    answer = connection.getresponse()
    assert (answer.status, answer.getheader("location")) == (303, "/")
    cookie = answer.getheader("set-cookie") or ""
    connection.close()
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert client.ask("GET", "/api/run", Cookie=cookie.split(";")[0])[0] == 200
    assert client.ask("GET", "/api/run", Cookie=None, X_Flatscope_Token=TOKEN)[0] == 200


def test_a_tunnel_from_another_port_is_let_in(client: Client) -> None:
    away = {"Host": "localhost:9999", "Origin": "http://localhost:9999"}
    assert client.ask("GET", "/api/run", **away)[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        *("/../run.json", "/%2e%2e/run.json", "/..%2f..%2fetc/passwd", "/api/export/..%2frun.json"),
        *("/api/items/../run", "/api/figure/..%2f0.png", "/api/items/99/marks", "/api/items/-1/marks"),
        *(
            "/docs",
            "/openapi.json",
            "/redoc",
            "/api/items/0/tiles/0/99/0_0.jpg",
            "/api/items/0/tiles/0/1/a_b.jpg",
        ),
    ],
)
def test_no_path_leads_out_of_the_run(client: Client, path: str) -> None:
    status, answer = client.ask("GET", path)
    assert status in (404, 405, 422)
    assert b"root:" not in (answer if isinstance(answer, bytes) else json.dumps(answer).encode())


def test_a_link_out_of_the_folder_is_not_followed(client: Client, out: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    (out / "report.html").unlink()
    (out / "report.html").symlink_to(secret)
    assert client.ask("GET", "/api/report")[0] == 404


def test_uploads_without_end_are_refused(client: Client, out: Path) -> None:
    before = snapshot(out)
    status, answer = client.ask("POST", "/api/edits", b"{}", Content_Length=str(10_000_000_000))
    assert (status, answer["detail"]) == (413, "a request holds at most 2 MB")
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    pieces = (b"[" * 100_000 for _ in range(40))
    connection.request("POST", "/api/edits", pieces, client.headers, encode_chunked=True)
    answer = connection.getresponse()
    assert answer.status == 413 and b"\n" not in answer.read()
    connection.close()
    assert snapshot(out) == before


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b'{"lines": []}', b'{"lines": [1]}', b'{"lines": [{"edit": "layrs"}]}'),
        b'{"lines": [{"edit": "layers", "image": "a.png", "row_px": 1, "col_px": 1, "layers": "77"}]}',
        b'{"lines": [{"edit": "layers", "image": "b.png", "row_px": 1, "col_px": 1, "layers": "1"}]}',
        b'{"lines": [{"edit": "layers", "image": "a.png", "row_px": NaN, "col_px": 1, "layers": "1"}]}',
        b'{"lines": [{"edit": "residue", "image": "a.png", "row_px": 1, "col_px": 1}, {"edit": "?"}]}',
    ],
)
def test_what_is_no_correction_is_refused_in_one_line(client: Client, out: Path, body: bytes) -> None:
    for path in ("/api/edits", "/api/edits/preview"):
        status, answer = client.ask("POST", path, body)
        assert status == 422 and "\n" not in answer["detail"]
    assert not (out / "edits.jsonl").exists()


def test_a_name_with_html_in_it_stays_a_name(client: Client) -> None:
    assert NAMES[1] in [item["name"] for item in client.get("/api/run")["items"]]
    assert NAMES[1].encode() not in client.get("/api/report")
    figure = client.get(
        f"/api/figure/{[i['name'] for i in client.get('/api/run')['items']].index(NAMES[1])}.svg"
    )
    assert b"onerror" not in figure


# --- what it says and writes ------------------------------------------------------------------------------------------


def test_the_page_is_told_what_the_table_holds(client: Client, out: Path) -> None:
    about, rows = client.get("/api/run"), client.get("/api/rows")
    lines = (out / "flakes.csv").read_text("utf-8").splitlines()
    assert len(rows["item"]) == len(lines) - 1 == sum(item["n_rows"] for item in about["items"])
    assert rows["columns"]["image"] == [line.split(",")[0] for line in lines[1:]]
    assert {"star", "note"} <= set(rows["columns"])
    for item in about["items"]:
        marks = client.get(f"/api/items/{item['index']}/marks")
        assert marks["shape"] == [item["height"], item["width"]] == [160, 240]
        here = [row for row, place in enumerate(rows["item"]) if place == item["index"]]
        assert {rows["columns"]["region_id"][row] for row in here} == set(marks["ids"])


def test_a_correction_is_previewed_kept_undone_and_done_again(client: Client, out: Path) -> None:
    row = first_row(client)
    line = {"edit": "layers", **row["place"]}
    status, preview = client.ask("POST", "/api/edits/preview", {"lines": [line | {"layers": "5"}]})
    assert status == 200 and not (out / "edits.jsonl").exists()
    (change,) = preview["changes"]
    assert (change["before"]["layers"], change["after"]["layers"]) == (row["layers"], "5")
    status, kept = client.edit(**line, layers="5")
    assert status == 200 and kept["ids"] == [line.id for line, _ in list_edits(out)]
    told = client.get(f"/api/items/{row['item']}/rows/{row['region_id']}")["row"]
    assert (told["layers"], told["reason"]) == ("5", "set by hand")
    stored = json.loads((out / "edits.jsonl").read_text("utf-8"))
    assert stored["before"]["layers"] == row["layers"] and len(stored["sha256"]) == 64 and stored["when"]
    for path, layers in (("/api/undo", row["layers"]), ("/api/redo", "5")):
        assert client.ask("POST", path, {})[1]["id"]
        assert client.get(f"/api/items/{row['item']}/rows/{row['region_id']}")["row"]["layers"] == layers
    assert client.ask("POST", "/api/redo", {})[1]["id"] == ""
    assert client.ask("POST", "/api/undo", {})[1]["id"]
    assert client.ask("POST", "/api/undo", {})[1]["id"] == ""


def test_the_command_and_the_page_give_one_answer(client: Client, out: Path) -> None:
    """What the workbench computes in memory is what the command writes under the same corrections."""
    row = first_row(client)
    place = row["place"]
    assert client.edit(edit="layers", layers="2|3", **place)[0] == 200
    assert client.edit(edit="pixel_size", um_per_px=0.2)[0] == 200
    until = time.monotonic() + 20
    while len(set(client.get("/api/rows")["columns"]["area_um2"]) & {None}) and time.monotonic() < until:
        time.sleep(0.1)
    said = client.get("/api/export/csv")
    photos = out.parent / "photos"
    args = ["flakes", str(next(iter(Workbench(out).entries)).sources[0].parent), "--material", "MoS2"]
    assert run([*args, "--oxide-nm", "285", "--gamma", "1", "--workers", "1", "--out", str(out)]) == 0
    again = Workbench(out)
    assert all(entry.is_stored for entry in again.entries), photos
    assert sorted(said.decode().splitlines()) == sorted((out / "flakes.csv").read_text("utf-8").splitlines())


def test_a_star_changes_no_answer(client: Client) -> None:
    row = first_row(client)
    place = row["place"]
    assert client.edit(edit="remark", star=True, note="the best one", **place)[0] == 200
    now = first_row(client)
    assert now.pop("star") is True and now.pop("note") == "the best one"
    assert now == {name: value for name, value in row.items() if name not in ("star", "note")}


def test_corrections_of_many_tabs_are_all_kept(client: Client, out: Path) -> None:
    row = first_row(client)
    answers: list[tuple[int, Any]] = []

    def post(number: int) -> None:
        answers.append(
            client.edit(
                edit="remark",
                image=row["image"],
                row_px=row["row_px"],
                col_px=row["col_px"],
                note=f"{number}",
            )
        )

    tabs = [threading.Thread(target=post, args=(number,)) for number in range(12)]
    for tab in tabs:
        tab.start()
    for tab in tabs:
        tab.join(60)
    assert [status for status, _ in answers] == [200] * 12
    assert {line.id for line, _ in list_edits(out)} == {answer["ids"][0] for _, answer in answers}


def test_a_second_process_in_the_folder_is_told_so(out: Path) -> None:
    with lock.hold(out):
        assert Workbench(out).is_running()
        with pytest.raises(SettingsError, match="another flatscope is at work"), lock.hold(out):
            pass
    assert not Workbench(out).is_running()


def test_what_the_endpoints_take_and_give_stands_in_the_repository(repository: Path) -> None:
    kept = (repository / "src/flatscope/app/server/openapi.json").read_text("utf-8")
    assert kept == describe_api(), "run: python tools/write_openapi.py"


@pytest.mark.slow
def test_a_kill_loses_no_correction_that_was_acknowledged(out: Path) -> None:
    command = [
        sys.executable,
        "-c",
        "from flatscope.app.cli import main; main()",
        "open",
        str(out),
        "--no-browser",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as child:
        assert child.stdout is not None
        said = child.stdout.readline()
        port, token = said.split("127.0.0.1:")[1].split(" ")[0].split("/?token=")
        client = Client(int(port))
        client.headers["Cookie"] = f"flatscope-{port}={token}"
        kept: list[str] = []

        def say(number: int) -> None:
            while True:
                try:
                    _, answer = client.edit(
                        edit="remark", image="a.png", row_px=number, col_px=number, note="x"
                    )
                except (OSError, http.client.HTTPException):
                    return
                kept.extend(answer["ids"])
                number += 3

        tabs = [threading.Thread(target=say, args=(number,)) for number in range(3)]
        for tab in tabs:
            tab.start()
        until = time.monotonic() + 60
        while len(kept) < 30 and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        for tab in tabs:
            tab.join(60)
    assert len(kept) >= 30 and set(kept) <= {line.id for line, _ in list_edits(out)}
    assert len(Workbench(out).edits.lines) >= len(kept)
