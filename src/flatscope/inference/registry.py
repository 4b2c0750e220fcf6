"""Which weights ship with flatscope, and that they are what they were."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

from flatscope.inference.card import WeightsError

_LIST = "registry.json"
_REINSTALL = "reinstall flatscope (pip install --force-reinstall flatscope)"


def names(*, folder: Path | None = None) -> tuple[str, ...]:
    """Names of the weights that ship with flatscope (or lie in `folder`), sorted."""
    return tuple(sorted(_read(folder or shipped_folder())))


def resolve(name_or_path: str | Path, *, folder: Path | None = None) -> Path:
    """Find the .onnx file of shipped weights by name, or check that a user's own file exists.

    A text without a path separator and without ``.onnx`` is a name. Shipped files are compared with their
    sha256; a user's own file is taken as it is, since its card is checked when it is loaded.

    Raises
    ------
    WeightsError
        Unknown name (lists the names), missing file, or a shipped file that was changed.
    """
    text = str(name_or_path)
    if isinstance(name_or_path, Path) or text.endswith(".onnx") or "/" in text or os.sep in text:
        path = Path(name_or_path)
        if not path.is_file():
            raise WeightsError(f"{path}: no such weights file; shipped: {_listed(folder)}")
        return path
    folder = folder or shipped_folder()
    table = _read(folder)
    if text not in table:
        raise WeightsError(f"no weights called {text!r}; shipped: {_listed(folder)}; or give an .onnx file")
    path = folder / table[text]["file"]
    try:
        digest = hash_file(path)
    except OSError:
        raise WeightsError(f"{path}: weights {text!r} are missing: {_REINSTALL}") from None
    if digest != table[text]["sha256"]:
        raise WeightsError(f"{path}: weights {text!r} are damaged (sha256 {digest[:12]}...): {_REINSTALL}")
    return path


def register(path: str | Path, *, name: str, folder: Path | None = None) -> Path:
    """Copy an .onnx file among the shipped weights under `name`, in place of what had that name.

    Both the file and the list are written in one piece each, file first: cut off in between, the list
    still names the old sha256, and `resolve` says so.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise WeightsError(f"{name!r} cannot be a name of weights: use a-z, 0-9 and -")
    folder = folder or shipped_folder()
    folder.mkdir(parents=True, exist_ok=True)
    table = _read(folder)
    target = folder / f"{name}.onnx"
    scratch = folder / f".{name}.{os.getpid()}"
    try:
        shutil.copyfile(path, scratch)
        digest = hash_file(scratch)
        os.replace(scratch, target)
        table[name] = {"file": target.name, "sha256": digest}
        scratch.write_text(json.dumps(dict(sorted(table.items())), indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, folder / _LIST)
    except FileNotFoundError as error:
        raise WeightsError(f"{error.filename}: no such file to register") from None
    finally:
        scratch.unlink(missing_ok=True)
    return target


def hash_file(path: str | Path) -> str:
    """sha256 of a file as 64 hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def shipped_folder() -> Path:
    """Where the shipped weights lie."""
    return Path(str(resources.files("flatscope.inference"))) / "weights"


def _listed(folder: Path | None) -> str:
    return ", ".join(names(folder=folder)) or "none"


def _read(folder: Path) -> dict[str, dict[str, str]]:
    path = folder / _LIST
    if not path.is_file():
        return {}
    try:
        table: Any = json.loads(path.read_text(encoding="utf-8"))
        return {name: {"file": entry["file"], "sha256": entry["sha256"]} for name, entry in table.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}: damaged list of weights ({error}): {_REINSTALL}") from None
