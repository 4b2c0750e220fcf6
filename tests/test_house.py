"""The house rules that a machine can hold: who imports whom, what is shipped, what a start costs."""

from __future__ import annotations

import ast
import fnmatch
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import flatscope
from flatscope.units import nm_from, nm_from_um, um_from_nm

_MOST_FILE_LINES = 500
_MOST_FUNCTION_LINES = 60  # without the docstring
_MOST_APP_LINES = 2_500  # without the server
# What several rooms have a module about, and those rooms besides the one that measures it.
_VERBS = {
    *("atoms", "benchmark", "columns", "defects", "flakes"),
    *("imaging", "moire", "orientation", "series", "simulate", "twist"),
}
_ABOUT_A_VERB = {"app/commands", "evaluation", "report", "runs", "training"}
_TWISTED = ("so many", "but for", "told of", "said by", "than which", "nothing that")


@pytest.fixture(scope="module")
def settings(repository: Path) -> dict[str, Any]:
    return tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def sources(repository: Path) -> dict[Path, ast.Module]:
    folder = repository / "src" / "flatscope"
    return {path: ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("*.py"))}


def _run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_calls_go_down_never_up(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlinter.cli import lint_imports

    monkeypatch.chdir(repository)
    assert lint_imports(config_filename="pyproject.toml", no_cache=True) == 0


def test_import_is_light_and_quick() -> None:
    """`import flatscope` takes under 0.3 s, as it loads no library; the best of three, for the machine may be busy."""
    code = (
        "import sys, time\n"
        "start = time.perf_counter()\n"
        "import flatscope\n"
        "took = time.perf_counter() - start\n"
        "heavy = {'torch', 'onnxruntime', 'numpy', 'pandas', 'scipy', 'skimage', 'matplotlib'} & set(sys.modules)\n"
        "print(took, *sorted(heavy))"
    )
    answers = [_run(code).split() for _ in range(3)]
    assert [answer[1:] for answer in answers] == [[], [], []]
    assert min(float(answer[0]) for answer in answers) < 0.3


def test_nothing_outside_training_loads_torch(sources: dict[Path, ast.Module], repository: Path) -> None:
    """Not even through a library: every other module is loaded, then torch is looked for."""
    root = repository / "src"
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in sources]
    names = [
        name.removesuffix(".__init__")
        for name in names
        if ".training" not in name and not name.endswith("__main__")
    ]
    loaded = _run(
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*({'torch', 'onnx', 'dask'} & set(sys.modules)))"
    )
    assert len(names) > 10
    assert loaded == ""


def test_public_names_are_there_and_unknown_ones_are_explained() -> None:
    for name in flatscope.__all__:
        assert getattr(flatscope, name) is not None
    assert set(dir(flatscope)) == set(flatscope.__all__)
    with pytest.raises(AttributeError, match="flatscope has no 'find_flake': it has Calibration"):
        flatscope.find_flake  # noqa: B018


def test_the_version_is_said_once() -> None:
    assert importlib.metadata.version("flatscope") == flatscope.__version__


def test_every_data_file_is_shipped(repository: Path, settings: dict[str, Any]) -> None:
    """The tests run on an editable install, which would not miss a file that the wheel leaves out."""
    patterns = settings["tool"]["setuptools"]["package-data"]["flatscope"]
    folder = repository / "src" / "flatscope"
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    left_out = [
        str(path.relative_to(folder))
        for path in files
        if not any(fnmatch.fnmatch(path.name, pattern.removeprefix("**/")) for pattern in patterns)
    ]
    assert len(files) > 20
    assert left_out == []


def test_every_module_is_shipped(sources: dict[Path, ast.Module]) -> None:
    """setuptools finds packages by their __init__.py and leaves a folder without one out."""
    assert [str(path) for path in sources if not (path.parent / "__init__.py").exists()] == []


def test_every_dependency_is_pinned(repository: Path, settings: dict[str, Any]) -> None:
    lines = (repository / "constraints.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {_plain(name): version for name, version in pins.items()}
    extras = settings["project"]["optional-dependencies"]
    wanted = settings["project"]["dependencies"] + [item for extra in extras.values() for item in extra]
    names = {_plain(_requirement_name(text)) for text in wanted} - {"flatscope"}
    assert names - set(pins) == set()
    assert pins["torch"] == "2.13.0"
    assert "torch==2.13.0" in extras["train"]


def test_the_base_install_is_free_of_torch_and_gpl(settings: dict[str, Any]) -> None:
    """All that `pip install flatscope` brings along, by the licences that the packages state."""
    seen: dict[str, str] = {}
    waiting = [_requirement_name(text) for text in settings["project"]["dependencies"]]
    while waiting:
        name = _plain(waiting.pop())
        if name in seen:
            continue
        try:
            package = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:  # for another system or Python
            continue
        stated = [
            package.metadata.get("License-Expression")
            or (package.metadata.get("License") or "").split("\n")[0]
        ]
        stated += [
            text for text in package.metadata.get_all("Classifier", []) if text.startswith("License ::")
        ]
        seen[name] = " ".join(stated)
        waiting += [_requirement_name(text) for text in package.requires or [] if "extra ==" not in text]
    assert {"numpy", "onnxruntime", "kiwisolver"} <= set(seen)
    assert {"torch", "onnx", "pyarrow"} & set(seen) == set()
    assert {name: text for name, text in seen.items() if re.search(r"GPL|GNU", text)} == {}


def test_no_function_takes_more_than_seven_arguments(sources: dict[Path, ast.Module]) -> None:
    long = []
    for path, tree in sources.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
                if count > 7 and not _is_command(node):
                    long.append(f"{path.name}:{node.lineno} {node.name} takes {count}")
    assert long == []


def test_files_are_read_in_one_sitting(sources: dict[Path, ast.Module], repository: Path) -> None:
    lengths = {_name(path, repository): _count_lines(path) for path in sources}
    assert {name: count for name, count in lengths.items() if count > _MOST_FILE_LINES} == {}


def test_functions_are_read_in_one_screen(sources: dict[Path, ast.Module], repository: Path) -> None:
    long = [
        f"{_name(path, repository)}:{node.lineno} {node.name} has {count} lines"
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := _count_body(node)) > _MOST_FUNCTION_LINES
    ]
    assert long == []


def test_the_app_stays_small(sources: dict[Path, ast.Module], repository: Path) -> None:
    """It parses, runs and shows; what measures or draws belongs to the rooms below."""
    names = {path: _name(path, repository) for path in sources}
    app = [path for path, name in names.items() if name.startswith("app/") and "/server/" not in name]
    assert sum(map(_count_lines, app)) <= _MOST_APP_LINES


def test_no_two_modules_share_a_name(sources: dict[Path, ast.Module], repository: Path) -> None:
    """A verb's module, run, command, evaluation, report and recipe do, since they are about one thing."""
    homes: dict[str, list[str]] = {}
    for path in sources:
        if not path.stem.startswith("__"):
            homes.setdefault(path.stem, []).append(_name(path.parent, repository))
    shared = {stem: rooms for stem, rooms in homes.items() if len(rooms) > 1}
    assert set(shared) - _VERBS == set()
    for stem, rooms in shared.items():
        assert set(rooms) <= {"optical", "electron", "electron/physics", *_ABOUT_A_VERB}, stem
        assert len({room.split("/")[0] for room in rooms}) == len(rooms), stem


def test_no_command_imports_another(sources: dict[Path, ast.Module], repository: Path) -> None:
    found = [
        f"{path.name}: {ast.unparse(node)}"
        for path, tree in sources.items()
        if _name(path.parent, repository) == "app/commands"
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom) and "flatscope.app.commands" in ast.unparse(node)
    ]
    assert found == []


def test_words_are_plain(repository: Path) -> None:
    """Turns of phrase that make a reader start over; a phrase may run on over the end of a line."""
    spaced = [r"\s+(?:#\s*)?".join(phrase.split()) for phrase in _TWISTED]
    twisted = re.compile(rf"\b(?:{'|'.join(spaced)})\b", re.IGNORECASE)
    pages = [*repository.glob("*.md"), *(repository / "docs").rglob("*.md")]
    pages += [path for folder in ("src", "tests", "tools") for path in (repository / folder).rglob("*.py")]
    found = [
        f"{path.relative_to(repository)}: {match[0]}"
        for path in pages
        if path != Path(__file__)
        for match in twisted.finditer(path.read_text("utf-8"))
    ]
    assert found == []


def test_no_global_randomness_and_no_pickle(sources: dict[Path, ast.Module]) -> None:
    """Random numbers come from a Generator that is handed in, and files are never code."""
    forbidden = re.compile(
        r"^(np|numpy)\.random\.(?!default_rng|Generator|SeedSequence|PCG64)|^pickle\.|^random\."
    )
    found = [
        f"{path.name}:{node.lineno} {ast.unparse(node)}"
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and forbidden.match(ast.unparse(node))
    ]
    assert found == []


def test_no_machine_is_named(repository: Path) -> None:
    """A path of the machine it was written on would break everywhere else."""
    paths = re.compile(r"""["'\s(=]/(?:home|root|work|tmp|Users)/""")
    looked_at = [
        path
        for folder in ("src", "tests", "docs", "tools")
        for path in (repository / folder).rglob("*")
        if path.suffix in (".py", ".toml", ".md", ".json") and path.is_file()
    ]
    looked_at += [repository / name for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/run")]
    looked_at += _sources_of_the_page(repository)
    named = [
        str(path) for path in looked_at if paths.search(path.read_text("utf-8")) and path != Path(__file__)
    ]
    assert named == []


def test_the_page_names_no_registry(repository: Path) -> None:
    """Node's lockfile writes down where each package came from, unless it is told not to."""
    looked_at = _sources_of_the_page(repository)
    assert {"package-lock.json", "main.tsx"} <= {path.name for path in looked_at}
    addressed = re.compile(r'"resolved"|registry\s*=|https?://(?!www\.w3\.org)')
    named = [path.name for path in looked_at if addressed.search(_without_funding(path.read_text("utf-8")))]
    assert named == []


@pytest.mark.parametrize(
    ("value", "unit", "nm"),
    [
        (1.0, "m", 1e9),
        (2.0, "micron", 2e3),
        (2.0, "μm", 2e3),
        (3.0, "Angstrom", 0.3),
        (5.0, " NM ", 5.0),
        (1.0, "in", 2.54e7),
    ],
)
def test_lengths_in_nm(value: float, unit: str, nm: float) -> None:
    assert nm_from(value, unit=unit) == pytest.approx(nm, rel=1e-12)


def test_um_and_back_and_unknown_units() -> None:
    assert um_from_nm(nm_from_um(0.384)) == pytest.approx(0.384, rel=1e-15)
    assert nm_from_um(0.384) == pytest.approx(nm_from(0.384, unit="µm"))
    with pytest.raises(ValueError, match="'furlong' is no length unit: use one of m, cm, mm, µm, nm"):
        nm_from(1.0, unit="furlong")


def _sources_of_the_page(repository: Path) -> list[Path]:
    """All that is checked in of `web/`."""
    folder = repository / "web"
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and "node_modules" not in path.parts]


def _without_funding(text: str) -> str:
    """A lockfile without the addresses where authors take donations."""
    return re.sub(r'"funding": (\{[^}]*\}|\[[^\]]*\]|"[^"]*")', "", text)


def _name(path: Path, repository: Path) -> str:
    """Path within the package."""
    return path.relative_to(repository / "src" / "flatscope").as_posix()


def _count_lines(path: Path) -> int:
    return len(path.read_text("utf-8").splitlines())


def _count_body(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    count = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        count -= (first.end_lineno or first.lineno) - first.lineno + 1
    return count


def _is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A click command: its arguments are flags, and click calls it."""
    return any("command" in ast.unparse(decorator) for decorator in node.decorator_list)


def _requirement_name(text: str) -> str:
    return re.split(r"[\s<>=!~;\[(]", text.strip(), maxsplit=1)[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
