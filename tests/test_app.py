"""Claims about the command line: what it writes, what it says, and how it ends."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flatscope import __version__
from flatscope.app.cli import run
from flatscope.app.flags import gather
from flatscope.files.annotations import read_outlines
from flatscope.inference.card import KEY, Card
from flatscope.optical import flakes as finder
from flatscope.optical.flakes import FlakeParams
from flatscope.optical.materials import MATERIALS
from flatscope.optical.scenes import DRAWN_MATERIALS
from flatscope.results import FLAKE_COLUMNS, column_names
from flatscope.runs import settings
from flatscope.runs.items import name_items
from flatscope.runs.light import LightParams, choose_light

SUBSTRATE = np.array([150.0, 120.0, 160.0])
GRAPHENE_90NM = {1: (-0.138, -0.139, -0.068), 2: (-0.251, -0.262, -0.147)}
FIND_REGIONS = finder.find_regions


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of a few nodes that calls thin what differs from the substrate, untrained."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto

    def constant(name: str, value: float) -> Any:
        return helper.make_node(
            "Constant", [], [name], value=helper.make_tensor(name, kind.FLOAT, [1], [value])
        )

    nodes = [
        helper.make_node("Abs", ["contrast"], ["size"]),
        helper.make_node("ReduceMax", ["size"], ["most"], axes=[1], keepdims=1),
        constant("least", 0.45),
        constant("slope", 30.0),
        constant("zero", 0.0),
        constant("never", -30.0),
        helper.make_node("Sub", ["most", "least"], ["above"]),
        helper.make_node("Mul", ["above", "slope"], ["thin"]),
        helper.make_node("Mul", ["most", "zero"], ["substrate"]),
        helper.make_node("Add", ["substrate", "never"], ["none"]),
        helper.make_node("Concat", ["substrate", "thin", "none", "none", "none"], ["logits"], axis=1),
    ]
    given = helper.make_tensor_value_info("contrast", kind.FLOAT, [1, 3, "rows", "cols"])
    made = helper.make_tensor_value_info("logits", kind.FLOAT, [1, 5, "rows", "cols"])
    model = helper.make_model(
        helper.make_graph(nodes, "threshold", [given], [made]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=9,
    )
    card = Card(
        name="threshold", version="0", task="flakes", recipe="none", training_data="none", seed=0,
        channels=("red", "green", "blue"), classes=("substrate", "thin", "thick", "artefact"), maps=("edge",),
        scale=0.1, multiple=16, halo_px=16, licence="BSD-3-Clause", created_with="test",
    )  # fmt: skip
    helper.set_model_props(model, {KEY: card.to_json()})
    path = tmp_path_factory.mktemp("weights") / "threshold.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def draw(
    path: Path, *, seed: int = 0, places: tuple[tuple[int, int, int], ...] = ((1, 40, 50), (2, 40, 130))
) -> Path:
    """A picture of graphene squares of 36 px: (layers, row, col)."""
    rng = np.random.default_rng(seed)
    field = np.ones((128, 200, 3))
    for layers, row, col in places:
        field[row : row + 36, col : col + 36] += GRAPHENE_90NM[layers]
    pixels = (field * SUBSTRATE + rng.normal(0, 1.0, field.shape)).clip(0, 255).round().astype(np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "flakes.csv").open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def record_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


@pytest.fixture
def command(tmp_path: Path, weights: Path) -> Any:
    """Run `flatscope flakes` into tmp_path/out."""

    def call(*args: object, oxide: str = "90") -> int:
        fixed = ["--out", tmp_path / "out", "--weights", weights, "--workers", 1, "--oxide-nm", oxide]
        said = {"--material", "--settings"} & set(map(str, args))
        return run(
            ["flakes", *map(str, args), *([] if said else ["--material", "graphene"]), *map(str, fixed)]
        )

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first picture's answer for all, so that a run of twenty takes a second."""
    kept: dict[str, Any] = {}

    def answer(micrograph: Any, params: Any, **rest: Any) -> Any:
        if "regions" not in kept:
            kept["regions"] = FIND_REGIONS(micrograph, params, **rest)
        return kept["regions"]

    monkeypatch.setattr(finder, "find_regions", answer)


def test_one_picture_gives_every_file_and_true_numbers(tmp_path: Path, command: Any, capsys: Any) -> None:
    picture = draw(tmp_path / "a.png")
    assert command(picture, "--um-per-px", 0.5, "--timings") == 0
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "a.layers.png", "a.overlay.png", "flakes.csv", "flakes.geojson", "items", "log.json", "report.html", "run.json",
    ]  # fmt: skip
    rows = rows_of(out)
    assert tuple(rows[0]) == column_names(FLAKE_COLUMNS)
    first, second = rows[:2]
    assert [row["layers"].split("|")[0] for row in (first, second)] == ["1", "2"]
    assert float(first["area_um2"]) == pytest.approx(36**2 * 0.25, rel=0.03)
    assert float(first["row_px"]) == pytest.approx(57.5, abs=0.5)
    assert float(second["col_px"]) == pytest.approx(147.5, abs=0.5)
    layers = np.asarray(Image.open(out / "a.layers.png"))
    assert layers[57, 67] == 1
    assert layers[57, 147] == 2
    assert layers[10, 10] == 0
    record = record_of(out)
    assert record["complete"] is True
    assert record["items"][0]["sha256"] == [hashlib.sha256(picture.read_bytes()).hexdigest()]
    assert record["weights"]["name"] == "threshold"
    assert len(record["weights"]["sha256"]) == 64
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert re.search(r"network +0\.\d+ s", said.err)


def test_outlines_land_on_the_layer_image(tmp_path: Path, command: Any) -> None:
    assert command(draw(tmp_path / "a.png"), "--um-per-px", 0.5) == 0
    layers = np.asarray(Image.open(tmp_path / "out" / "a.layers.png"))
    outlines = read_outlines(tmp_path / "out" / "flakes.geojson")
    assert len(outlines) == len(rows_of(tmp_path / "out"))
    for outline in outlines[:2]:
        number = int(outline.properties["layers"].split("|")[0])
        inside = layers == number
        rows, cols = np.nonzero(inside)
        assert outline.polygon.area == pytest.approx(inside.sum(), rel=0.03)
        assert outline.polygon.centroid.y == pytest.approx(rows.mean(), abs=0.1)
        assert outline.polygon.centroid.x == pytest.approx(cols.mean(), abs=0.1)
        assert outline.properties["area_px"] == inside.sum()


@pytest.mark.usefixtures("quick")
def test_one_bad_file_of_twenty_costs_only_itself(tmp_path: Path, command: Any, capsys: Any) -> None:
    for number in range(20):
        draw(tmp_path / "in" / f"p{number:02}.png", seed=number)
    bad = tmp_path / "in" / "p07.png"
    bad.write_bytes(bad.read_bytes()[:900])
    assert command(tmp_path / "in") == 1
    rows = rows_of(tmp_path / "out")
    (failed,) = [row for row in rows if row["status"] == "failed"]
    assert failed["image"] == "p07.png"
    assert "truncated" in failed["reason"]
    assert rows[-1] is failed
    assert len({row["image"] for row in rows if row["status"] in ("accepted", "uncertain")}) == 19
    assert len(list((tmp_path / "out").glob("*.overlay.png"))) == 19
    assert record_of(tmp_path / "out")["items"][7]["status"] == "failed"
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "p07.png was not analysed" in page
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "p07.png: is damaged or truncated" in said


def test_a_bug_in_one_picture_costs_only_that_picture(tmp_path: Path, command: Any, monkeypatch: Any) -> None:
    def answer(micrograph: Any, params: Any, **rest: Any) -> Any:
        if micrograph.name == "b.png":
            raise IndexError("index 7 is out of bounds")
        return FIND_REGIONS(micrograph, params, **rest)

    monkeypatch.setattr(finder, "find_regions", answer)
    assert command(draw(tmp_path / "a.png"), draw(tmp_path / "b.png")) == 1
    last = rows_of(tmp_path / "out")[-1]
    assert last["image"] == "b.png"
    assert "IndexError (index 7 is out of bounds)" in last["reason"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, I am text\n" * 20, "no picture|not a picture|no jpg|is no"),
        (None, "no such file"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    tmp_path: Path, command: Any, capsys: Any, content: bytes | None, message: str
) -> None:
    path = tmp_path / "bad.jpg"
    if content is not None:
        path.write_bytes(content)
    assert command(path) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(r"flatscope: [^\n]*bad\.jpg[^\n]*\n", said.err)
    assert re.search(message, said.err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--material", "unobtainium"], "unknown material 'unobtainium'.*graphene.*WSe2"),
        (["--oxide-nm", "5000"], "5000 nm lies outside 1 to 1000 nm"),
        (["--oxide-nm", "thick"], "'thick' is not a valid float"),
        (["--um-per-px", "-1"], "um_per_px of -1 is no pixel size"),
        (["--min-area-px", "0"], "min_area_px of 0"),
        (["--weights", "nonsuch"], "no weights called 'nonsuch'"),
        (["--weights", "nonsuch.onnx"], "nonsuch.onnx: no such weights file"),
        (["--flatfield", "none", "--light-order", "3"], "give one of them"),
        (["--flatfield", "nonsuch.png"], "nonsuch.png: no such file"),
        (["--settings", "nonsuch.json"], "nonsuch.json: no such file"),
        (["--nonsense"], "No such option"),
    ],
)
def test_bad_flags_are_one_line_and_code_2(
    tmp_path: Path, weights: Path, capsys: Any, args: list[str], message: str
) -> None:
    fixed = [str(draw(tmp_path / "a.png")), "--out", str(tmp_path / "out"), "--weights", str(weights)]
    stated = [] if "--material" in args else ["--material", "graphene"]
    assert run(["flakes", *fixed, *stated, *args]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"flatscope: [^\n]*\n", said)
    assert re.search(message, said), said


def test_damaged_weights_are_one_line_and_code_2(tmp_path: Path, weights: Path, capsys: Any) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(weights.read_bytes()[:300])
    picture = draw(tmp_path / "a.png")
    args = ["flakes", str(picture), "--material", "graphene", "--out", str(tmp_path / "out")]
    assert run([*args, "--weights", str(damaged)]) == 2
    assert re.fullmatch(r"flatscope: [^\n]*damaged\.onnx[^\n]*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('{"oxid_nm": 90}', "unknown setting 'oxid_nm': did you mean 'oxide_nm'"),
        ('{"oxide_nm": "90"}', "oxide_nm: Input should be a valid number"),
        ('{"min_area_px": 2.5}', "min_area_px"),
        ('{"known": [{"layers": 1}]}', r"known\.0\.contrast: Field required"),
        ('{"known": [{"layers": 1, "contrast": [0, 0, 0], "why": 1}]}', "unknown setting 'why'"),
        ('{"known": [{"layers": 99, "contrast": [0, 0, 0]}]}', "99 layers"),
        ('{"material": "lead"}', "unknown material 'lead'"),
        ("[1, 2]", "holds a list"),
        ("{", "is no JSON"),
    ],
)
def test_bad_settings_name_the_file_and_the_key(
    tmp_path: Path, command: Any, capsys: Any, table: str, message: str
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(table, encoding="utf-8")
    assert command(draw(tmp_path / "a.png"), "--settings", file) == 2
    said = capsys.readouterr().err
    assert "mine.json" in said
    assert re.search(message, said), said
    assert said.count("\n") == 1


def test_settings_survive_run_json_and_flags_beat_them(tmp_path: Path, command: Any) -> None:
    given = {
        "material": "MoS2", "oxide_sigma_nm": 4.5, "gamma": 2.2, "min_area_px": 77, "light_order": 2, "um_per_px": 0.31,
        "min_area_um2": 2, "known": [{"layers": 1, "contrast": [-0.1, -0.2, 0.05]}],
    }  # fmt: skip
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(given), encoding="utf-8")
    assert command(draw(tmp_path / "a.png"), "--settings", file, "--min-area-px", 88, oxide="285") == 0
    record = record_of(tmp_path / "out")
    options = {"settings_file": tmp_path / "out" / "run.json"}
    params, rest = gather(options, FlakeParams, LightParams)
    assert settings.as_plain(params, rest) == record["settings"]
    assert (params.material, params.gamma, params.min_area_px, params.oxide_nm) == ("MoS2", 2.2, 88, 285.0)
    assert params.known[0].contrast == (-0.1, -0.2, 0.05)
    assert rest.um_per_px == 0.31
    assert record["items"][0]["facts"]["pixel_size_um"] == [0.31, 0.31]


def test_schema_and_flags_cover_every_setting(capsys: Any) -> None:
    assert run(["schema", "flakes"]) == 0
    schema = json.loads(capsys.readouterr().out)
    names = {entry.name for kind in (FlakeParams, LightParams) for entry in fields(kind)}
    assert set(schema["properties"]) == names
    assert schema["additionalProperties"] is False
    assert all(entry["description"] for entry in schema["properties"].values())
    assert run(["flakes", "--help"]) == 0
    words = capsys.readouterr().out
    for name in names - {"known"}:
        assert f"--{name.replace('_', '-')} " in words


def test_ctrl_c_leaves_the_finished_pictures_readable(
    tmp_path: Path, command: Any, monkeypatch: Any, capsys: Any
) -> None:
    def answer(micrograph: Any, params: Any, **rest: Any) -> Any:
        if micrograph.name == "c.png":
            raise KeyboardInterrupt
        return FIND_REGIONS(micrograph, params, **rest)

    monkeypatch.setattr(finder, "find_regions", answer)
    for name in "abcd":
        draw(tmp_path / "in" / f"{name}.png")
    assert command(tmp_path / "in") == 130
    out = tmp_path / "out"
    assert {row["image"] for row in rows_of(out)} == {"a.png", "b.png"}
    record = record_of(out)
    assert record["complete"] is False
    assert [entry["status"] for entry in record["items"]] == ["analysed"] * 2 + ["not analysed"] * 2
    assert "Interrupted: 2 of 4" in (out / "report.html").read_text(encoding="utf-8")
    assert "2 of 4 pictures are finished" in capsys.readouterr().err
    assert not list(out.glob(".*")), "no temporary file stays"


@pytest.mark.parametrize("full_at", ["b.layers.png", "b.overlay.png", "report.html"])
def test_full_disk_is_one_line_and_keeps_what_was_written(
    tmp_path: Path, command: Any, monkeypatch: Any, capsys: Any, full_at: str
) -> None:
    real = os.replace

    def replace_file(source: Any, target: Any) -> None:
        if Path(target).name == full_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_file)
    assert command(draw(tmp_path / "a.png"), draw(tmp_path / "b.png")) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(rf"flatscope: [^\n]*{full_at}: the disk is full[^\n]*\n", said)
    assert {row["image"] for row in rows_of(tmp_path / "out")} >= {"a.png"}
    assert (tmp_path / "out" / "a.overlay.png").stat().st_size > 0
    assert not list((tmp_path / "out").glob(".*"))


def test_equal_names_in_two_folders_do_not_meet(tmp_path: Path, command: Any) -> None:
    draw(tmp_path / "mon" / "a.png", places=((1, 40, 50),))
    draw(tmp_path / "tue" / "a.png", places=((1, 40, 130),))
    assert command(tmp_path / "mon" / "a.png", tmp_path / "tue" / "a.png") == 0
    out = tmp_path / "out"
    assert {row["image"] for row in rows_of(out)} == {"mon/a.png", "tue/a.png"}
    files = [entry["files"] for entry in record_of(out)["items"]]
    assert len({name for pair in files for name in pair}) == 4
    crystal_at = [(np.asarray(Image.open(out / pair[0]))[57] > 0).nonzero()[0].mean() for pair in files]
    assert crystal_at == pytest.approx([67.5, 147.5], abs=1)


def test_names_are_unique_whatever_the_paths() -> None:
    paths = [
        "a.jpg",
        "A.jpg",
        "a.png",
        "x/a.jpg",
        "x/y/a.jpg",
        "z/y/a.jpg",
        "a-2",
        "x_a.jpg",
        "b.jpg",
        "x/b.b.jpg",
    ]
    items = name_items([(Path("/data") / path,) for path in paths])
    for names in ([item.stem for item in items], [item.name for item in items]):
        assert len({name.lower() for name in names}) == len(paths)
        assert not any(set(name) & set("\\:") for name in names)
    assert all("/" not in item.stem for item in items)
    assert (items[8].name, items[8].stem) == ("b.jpg", "b")


def test_picture_without_flakes_is_answered_with_its_reason(
    tmp_path: Path, command: Any, capsys: Any
) -> None:
    Image.new("RGB", (64, 64), (120, 90, 130)).save(tmp_path / "flat.png")
    assert command(tmp_path / "flat.png") == 0
    assert rows_of(tmp_path / "out") == []
    (entry,) = record_of(tmp_path / "out")["items"]
    assert entry["facts"]["regions_found"] == 0
    assert "same value" in " ".join(entry["notes"])
    assert "flat.png: no flake found" in capsys.readouterr().out
    assert "same value" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_json_is_one_object_on_stdout(tmp_path: Path, command: Any, capsys: Any) -> None:
    assert command(draw(tmp_path / "a.png"), "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["layers"].split("|")[0] for row in said["flakes"][:2]] == ["1", "2"]
    assert said["flakes"][0]["area_um2"] is None
    assert said["run"]["items"][0]["name"] == "a.png"


def test_calibration_is_measured_in_the_picture(tmp_path: Path, command: Any) -> None:
    picture = draw(tmp_path / "a.png")
    calib = tmp_path / "calib.json"
    regions: list[dict[str, Any]] = [
        {"layers": 1, "contrast": [-0.138, -0.139, -0.068]},
        {"layers": 2, "image": "a.png", "row_px": 58, "col_px": 148},
    ]
    calib.write_text(json.dumps({"regions": regions}), encoding="utf-8")
    assert command(picture, "--calibrate", calib) == 0
    lines = (tmp_path / "out" / "edits.jsonl").read_text("utf-8").splitlines()
    known = [json.loads(line) for line in lines]
    assert [region["layers"] for region in known] == [1, 2]
    assert known[0]["contrast"] == [-0.138, -0.139, -0.068]
    assert known[1]["contrast"] == pytest.approx(GRAPHENE_90NM[2], abs=0.01)


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        ([], "has no regions"),
        ([{"layers": 1}], "image.* missing"),
        ([{"layers": 1.5, "contrast": [0, 0, 0]}], "layers must be a whole number"),
        ([{"layers": 1, "contrast": [0, 0]}], "three numbers"),
        ([{"layers": 40, "contrast": [0, 0, 0]}], "40 layers"),
        (
            [{"layers": 1, "image": "a.png", "row_px": 58, "col_px": 999}],
            "col_px of 999 lies outside .*0 to 199",
        ),
        ([{"layers": 1, "image": "b.png", "row_px": 58, "col_px": 9}], "b.png: no such file"),
    ],
)
def test_bad_calibration_names_its_region(
    tmp_path: Path, command: Any, capsys: Any, regions: list[Any], message: str
) -> None:
    calib = tmp_path / "calib.json"
    calib.write_text(json.dumps({"regions": regions}), encoding="utf-8")
    assert command(draw(tmp_path / "a.png"), "--calibrate", calib) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(message, said), said


def test_flat_field_from_the_pictures_needs_one_size(tmp_path: Path, capsys: Any, command: Any) -> None:
    # Each crystal elsewhere: one that stays where it is cannot be told from uneven light.
    places = [((1, 10 + 12 * number, 20 + 24 * number),) for number in range(6)]
    paths = [draw(tmp_path / "in" / f"{place[0][1]}.png", seed=place[0][1], places=place) for place in places]
    params = FlakeParams()
    _, flat = choose_light(params, "auto", paths)
    assert flat is not None
    assert flat.shape == (128, 200, 3)
    assert np.abs(flat - 1).max() < 0.02, "these pictures are evenly lit"
    assert choose_light(params, "auto", paths[:4]) == (params, None), "four are too few"
    assert choose_light(params, "none", paths)[0].light_order == 0
    Image.new("RGB", (64, 64)).save(paths[0])
    assert command(tmp_path / "in", "--flatfield", "auto") == 2
    assert "one size" in capsys.readouterr().err


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from flatscope.app.cli import run; code = run(['--help']);"
        "heavy = {'numpy', 'pandas', 'scipy', 'torch', 'matplotlib', 'onnxruntime', 'rich'};"
        "print('LOADED', *(set(sys.modules) & heavy));"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "LOADED"
    assert "130 interrupted" in done.stdout


def test_analysis_needs_neither_torch_nor_matplotlib(tmp_path: Path, weights: Path) -> None:
    picture = draw(tmp_path / "a.png")
    args = ["flakes", str(picture), "--material", "graphene", "--out", str(tmp_path / "out")]
    args += ["--weights", str(weights)]
    program = (
        f"import sys; from flatscope.app.cli import run; code = run({args!r});"
        "print('LOADED', *(set(sys.modules) & {'torch', 'matplotlib'}), file=sys.stderr);"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == "LOADED"


@pytest.mark.slow
def test_two_workers_give_what_one_gives(tmp_path: Path, weights: Path) -> None:
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png", seed=number, places=((1, 20 + 10 * number, 50), (2, 40, 130)))
    tables = []
    for workers in ("1", "2"):
        out = tmp_path / f"out{workers}"
        args = [
            "flakes",
            tmp_path / "in",
            "--out",
            out,
            "--weights",
            weights,
            "--oxide-nm",
            90,
            "--material",
            "graphene",
            "--workers",
            workers,
        ]
        assert run(list(map(str, args))) == 0
        tables.append((out / "flakes.csv").read_bytes())
        assert len(list(out.glob("*.layers.png"))) == 3
    assert tables[0] == tables[1]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="a process cannot interrupt itself there")
def test_ctrl_c_ends_the_workers_too(tmp_path: Path, weights: Path) -> None:
    for number in range(8):
        draw(tmp_path / "in" / f"{number}.png", seed=number)
    args = ["flakes", tmp_path / "in", "--out", tmp_path / "out", "--weights", weights, "--workers", 2]
    args += ["--material", "graphene"]
    program = tmp_path / "interrupted.py"
    program.write_text(
        "import multiprocessing, os, signal, sys\n"
        "from flatscope.app import cli, show\n"
        "if __name__ == '__main__':\n"
        # a shell that starts its jobs in the background lets them ignore Ctrl-C
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    done = show.Reporter.done\n"
        "    def interrupt_once(self, *, failed):\n"
        "        show.Reporter.done = done\n"
        "        os.killpg(0, signal.SIGINT)\n"
        "    show.Reporter.done = interrupt_once\n"
        f"    code = cli.run({list(map(str, args))!r})\n"
        "    print('CHILDREN', len(multiprocessing.active_children()))\n"
        "    sys.exit(code)\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, str(program)], capture_output=True, text=True, check=False, start_new_session=True
    )
    assert done.returncode == 130, done.stderr
    assert done.stdout.splitlines()[-1] == "CHILDREN 0"
    assert "Traceback" not in done.stderr
    record = record_of(tmp_path / "out")
    finished = [entry["name"] for entry in record["items"] if entry["status"] == "analysed"]
    assert 1 <= len(finished) < 8
    assert {row["image"] for row in rows_of(tmp_path / "out")} == set(finished)


@pytest.mark.slow
def test_demo_compares_with_the_truth(tmp_path: Path, weights: Path, capsys: Any) -> None:
    assert run(["demo", "--out", str(tmp_path), "--weights", str(weights)]) == 0
    said = capsys.readouterr().out
    there, found, right = map(int, re.search(r"^all +(\d+) +(\d+) +(\d+)", said, re.M).groups())  # type: ignore[union-attr]
    assert there > 30
    assert right <= found <= there
    assert found > 0.5 * there, "even a threshold finds most crystals"
    assert "report:" in said
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 6


def test_evaluation_finds_what_was_drawn(tmp_path: Path, weights: Path, capsys: Any) -> None:
    draw(tmp_path / "images" / "a.png")
    mask = np.zeros((128, 200), np.uint8)
    mask[40:76, 50:86], mask[40:76, 130:166] = 1, 2
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "a.mask.png")
    args = ["evaluate", "flakes", "--images", tmp_path / "images", "--masks", tmp_path / "masks"]
    args += ["--weights", weights, "--oxide-nm", 90, "--material", "graphene"]
    assert run([*map(str, args), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["recall"]["value"] == 1.0
    assert scores["precision"]["value"] == 1.0
    assert run(list(map(str, args))) == 0
    assert re.search(r"recall +1\.000 \[", capsys.readouterr().out)


def test_training_without_torch_says_how_to_get_it(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else real(name, *rest)
    )
    assert run(["train", "flakes", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "flatscope: training needs torch: pip install 'flatscope[train]'\n"


def test_materials_name_their_sources(capsys: Any) -> None:
    assert run(["materials"]) == 0
    said = capsys.readouterr().out
    for name in ("graphene", "hBN", "MoS2", "WS2", "WSe2", "MoSe2"):
        assert re.search(rf"^{name} +0\.\d+ nm", said, re.M)
    assert said.count("doi") > 15


def test_the_module_is_the_command() -> None:
    said = subprocess.run(
        [sys.executable, "-m", "flatscope", "--version"], capture_output=True, text=True, check=True
    )
    assert said.stdout == f"flatscope {__version__}\n"


def test_unknown_command_and_version(capsys: Any) -> None:
    assert run(["nonsense"]) == 2
    assert "No such command 'nonsense'" in capsys.readouterr().err
    assert run(["--version"]) == 0
    assert re.fullmatch(r"flatscope \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


def test_a_finished_run_is_exported(tmp_path: Path, command: Any, capsys: Any) -> None:
    assert command(draw(tmp_path / "a.png"), draw(tmp_path / "b.png", seed=1), "--um-per-px", 0.5) == 0
    out = tmp_path / "out"
    capsys.readouterr()
    assert run(["export", str(out), "--to", "csv,gds labelme"]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(name).name for name in written] == [
        *("flakes.csv", "a.gds", "b.gds", "a.labelme.json", "b.labelme.json"),
    ]
    with (out / "export" / "flakes.csv").open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {tuple(row.values()) for row in rows} == {tuple(row.values()) for row in rows_of(out)}
    before = sorted((out / "export").iterdir())
    for args, message in (
        ([str(out), "--to", "json,cif"], "CIF holds columns, moire, not flakes: use one of"),
        ([str(out), "--to", "docx"], "no format is called 'docx': use one of csv, "),
        ([str(tmp_path), "--to", "csv"], "holds no run"),
    ):
        assert run(["export", *args]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert sorted((out / "export").iterdir()) == before, "a format that does not fit leaves nothing half done"
    record = record_of(out) | {"complete": False}
    (out / "run.json").write_text(json.dumps(record), encoding="utf-8")
    assert run(["export", str(out), "--to", "csv"]) == 2
    assert "a run that is not finished: start flatscope flakes again first" in capsys.readouterr().err


def test_the_run_json_of_another_command_is_named(tmp_path: Path, command: Any, capsys: Any) -> None:
    assert command(draw(tmp_path / "a.png")) == 0
    other = ["twist", str(tmp_path / "a.png"), "--settings", str(tmp_path / "out" / "run.json")]
    assert run([*other, "--out", str(tmp_path / "twist")]) == 2
    assert "is the run.json of flatscope flakes, which has " in capsys.readouterr().err


def test_replacing_a_run_tells_which_corrected_files_stay(tmp_path: Path, command: Any, capsys: Any) -> None:
    picture = draw(tmp_path / "a.png")
    assert command(picture) == 0
    corrected = tmp_path / "out" / "a.layers.png"
    Image.fromarray(np.zeros((128, 200), np.uint8)).save(corrected)
    kept = corrected.read_bytes()
    capsys.readouterr()
    assert command(picture, "--replace", oxide="95") == 0
    assert "a.layers.png was changed since flatscope wrote it: it stays" in capsys.readouterr().err
    assert corrected.read_bytes() == kept and (tmp_path / "out" / "a.png.layers.png").exists()


def test_a_damaged_answer_is_named(tmp_path: Path, command: Any, capsys: Any) -> None:
    assert command(draw(tmp_path / "a.png")) == 0
    answer = record_of(tmp_path / "out")["items"][0]["answer"]
    path = tmp_path / "out" / "items" / f"{answer}.zip"
    path.write_bytes(path.read_bytes()[:-50])
    assert run(["export", str(tmp_path / "out"), "--to", "csv"]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(r"flatscope: [^\n]*\.zip is damaged[^\n]*run flatscope flakes again\n", said)


@pytest.mark.parametrize("name", ["flakes", "twist", "atoms", "moire", "defects"])
def test_settings_of_every_command_come_from_its_dataclasses(name: str, capsys: Any) -> None:
    assert run(["schema", name]) == 0
    properties = json.loads(capsys.readouterr().out)["properties"]
    assert all(entry["description"] for entry in properties.values())
    assert run([name, "--help"]) == 0
    words = capsys.readouterr().out
    for key in set(properties) - {"known"}:
        assert f"--{key.replace('_', '-')}" in words


@pytest.mark.parametrize("name", ["flakes", "twist", "atoms", "moire", "defects"])
def test_help_names_every_material_and_no_python(name: str, capsys: Any) -> None:
    assert run([name, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    said = words[words.index("--material") :][:220]
    turning = [material.name for material in MATERIALS.values() if material.lattice_nm]
    known = {"flakes": list(MATERIALS), "twist": turning}.get(name, DRAWN_MATERIALS)
    assert all(material in said for material in known)
    assert "None" not in words


def test_columns_of_every_table_have_a_schema(capsys: Any) -> None:
    assert run(["schema", "twist.csv"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["items"]["properties"]["status"]["enum"] == ["accepted", "uncertain", "rejected", "failed"]
    assert "[°]" in schema["items"]["properties"]["twist_deg"]["description"]


# --- what users know better ------------------------------------------------------------------------------------------


def test_the_material_is_asked_for(tmp_path: Path, weights: Path, capsys: Any) -> None:
    picture = draw(tmp_path / "a.png")
    assert run(["flakes", str(picture), "--out", str(tmp_path / "out"), "--weights", str(weights)]) == 2
    said = capsys.readouterr().err
    assert "Missing option '--material': graphene, hBN, MoS2" in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_one_known_place_counts_at_every_start(tmp_path: Path, command: Any, capsys: Any) -> None:
    picture = draw(tmp_path / "a.png")
    assert command(picture) == 0
    keys = {item["key"] for item in record_of(tmp_path / "out")["items"]}
    capsys.readouterr()
    assert command(picture, "--known", "a.png@58,68=1L") == 0
    known = next(row for row in rows_of(tmp_path / "out") if row["reason"] == "known")
    assert (known["layers"], known["status"], float(known["col_px"])) == (
        "1",
        "accepted",
        pytest.approx(67.5, abs=1),
    )
    assert {item["key"] for item in record_of(tmp_path / "out")["items"]} == keys, "the heavy part stays"
    lines = (tmp_path / "out" / "edits.jsonl").read_text("utf-8")
    for again in ((), ("--known", "a.png@58,68=1L")):
        capsys.readouterr()
        assert command(picture, *again) == 0
        assert "finished before" in capsys.readouterr().err
    assert (tmp_path / "out" / "edits.jsonl").read_text("utf-8") == lines


def test_a_height_names_the_layer_number(tmp_path: Path, command: Any) -> None:
    assert command(draw(tmp_path / "a.png"), "--known", "a.png@58,148=0.8nm") == 0
    known = next(row for row in rows_of(tmp_path / "out") if row["reason"] == "known: 0.8 nm high")
    assert known["layers"] == "2"


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (
            "a.png@5,5=1L",
            "a.png@5,5=1L disagrees with the optics by .* sigma: is it the substrate\\? --trust uses it",
        ),
        ("a.png@58,68=1", "write FILE@ROW,COL=1L"),
        ("a.png@58,999=1L", "lies outside the picture: ROW is 0 to 127, COL 0 to 199"),
        ("b.png@58,68=1L", "no picture of this run is called b.png"),
    ],
)
def test_a_known_place_that_cannot_be_is_refused(
    tmp_path: Path, command: Any, capsys: Any, place: str, words: str
) -> None:
    picture = draw(tmp_path / "a.png")
    assert command(picture, "--known", place) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_trust_uses_what_the_optics_contradict(tmp_path: Path, command: Any, capsys: Any) -> None:
    calib = tmp_path / "calib.json"
    calib.write_text('{"regions": [{"layers": 1, "contrast": [0.5, 0.5, 0.5]}]}', encoding="utf-8")
    picture = draw(tmp_path / "a.png")
    assert command(picture, "--calibrate", calib) == 2
    assert re.search("region 0 as 1L disagrees with the optics by .* sigma", capsys.readouterr().err)
    assert command(picture, "--calibrate", calib, "--trust") == 0
    assert '"trust": true' in (tmp_path / "out" / "edits.jsonl").read_text("utf-8")


def test_a_layer_image_painted_over_becomes_corrections(tmp_path: Path, command: Any) -> None:
    picture = draw(tmp_path / "a.png")
    assert command(picture) == 0
    image = tmp_path / "out" / "a.layers.png"
    painted = np.asarray(Image.open(image)).copy()
    painted[:, :100][painted[:, :100] > 0] = 3
    painted[:, 100:][painted[:, 100:] > 0] = 255
    Image.fromarray(painted).save(image)
    assert command(picture) == 0
    first, second = sorted(rows_of(tmp_path / "out"), key=lambda row: float(row["col_px"]))[:2]
    assert (first["layers"], first["status"], first["reason"]) == ("3", "accepted", "set by hand")
    assert (second["status"], second["reason"]) == ("rejected", "marked as residue by hand")
    lines = (tmp_path / "out" / "edits.jsonl").read_text("utf-8")
    assert [json.loads(line)["before"]["layers"] for line in lines.splitlines()] == ["1", "2"]
    assert command(picture) == 0
    assert (tmp_path / "out" / "edits.jsonl").read_text("utf-8") == lines
