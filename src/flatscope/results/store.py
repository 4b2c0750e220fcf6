"""Keep an answer, or a part of one, as bytes and read it back: equal values give equal bytes.

The bytes are a zip file: `tree.json` holds the structure, one `.npy` file each array. Reading it executes nothing.
Values are None, numbers, text, bytes, tuples, lists, dictionaries, arrays, data frames, shapely geometries and
dataclasses of these.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from flatscope.micrograph import Calibration
from flatscope.results.answers import TABLES
from flatscope.results.marks import Marks
from flatscope.results.model import Atoms
from flatscope.results.table import Provenance

_TREE = "tree.json"
_TAG = "~"  # marks an object of the tree that is no plain dictionary
_FAST = 1  # zlib's level: label images shrink a hundredfold at any
_DAMAGES = (
    *(OSError, EOFError, ValueError, LookupError, TypeError, NotImplementedError, RecursionError),
    *(zipfile.BadZipFile, zlib.error),
)  # what reading a damaged file may raise
_KNOWN = (Marks, Provenance, Calibration, Atoms, *TABLES)


class StoreError(ValueError):
    """Bytes that `pack` did not write, or that were damaged since."""


def pack(value: Any) -> bytes:
    """Turn a value into bytes.

    A dataclass is stored with all its fields except those that do not count in comparisons (timings).

    Raises
    ------
    TypeError
        If the value, or something in it, is of another kind than the module says.
    """
    arrays: list[NDArray[Any]] = []
    tree = json.dumps(_take_apart(value, arrays), ensure_ascii=False)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        _add(archive, _TREE, tree.encode())
        for number, array in enumerate(arrays):
            content = io.BytesIO()
            np.lib.format.write_array(content, array, allow_pickle=False)
            _add(archive, f"{number}.npy", content.getvalue())
    return stream.getvalue()


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    # A ZipInfo made by hand carries no time of day.
    archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED, _FAST)


def unpack(content: bytes, kinds: Iterable[type] = ()) -> Any:
    """Read what `pack` wrote.

    Parameters
    ----------
    content
        The bytes.
    kinds
        Dataclasses that may stand in it, besides the answers of `flatscope.results`.

    Raises
    ------
    StoreError
        If the bytes are damaged, something else, or hold a dataclass that was not expected.
    """
    known = {kind.__name__: kind for kind in (*_KNOWN, *kinds)}
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _put_together(json.loads(archive.read(_TREE)), _reader(archive), known)
    except _DAMAGES as error:
        raise StoreError(f"is damaged, or was not stored by flatscope ({error})") from None


def read_part(path: Path, *steps: str, kinds: Iterable[type] = ()) -> Any:
    """Read a part of what `pack` wrote to a file, and nothing of the rest.

    Parameters
    ----------
    path
        The file.
    steps
        Names of fields of dataclasses, or keys of dictionaries, from the outside in.
    kinds
        As for `unpack`.

    Raises
    ------
    StoreError
        As for `unpack`.
    KeyError
        If there is no such part.
    OSError
        If the file cannot be read.
    """
    known = {kind.__name__: kind for kind in (*_KNOWN, *kinds)}
    with open(path, "rb") as stream:
        try:
            with zipfile.ZipFile(stream) as archive:
                tree = json.loads(archive.read(_TREE))
                for step in steps:
                    parts = tree["fields"] if tree[_TAG] == "made" else dict(tree["items"])
                    if step not in parts:
                        raise KeyError(step)
                    tree = parts[step]
                return _put_together(tree, _reader(archive), known)
        except KeyError:
            raise
        except _DAMAGES as error:
            raise StoreError(f"is damaged, or was not stored by flatscope ({error})") from None


def _reader(archive: zipfile.ZipFile) -> Callable[[int], NDArray[Any]]:
    """Read the arrays of an archive by their numbers."""

    def load(number: int) -> NDArray[Any]:
        with archive.open(f"{number}.npy") as stream:
            return np.lib.format.read_array(io.BytesIO(stream.read()), allow_pickle=False)

    return load


def _take_apart(value: Any, arrays: list[NDArray[Any]]) -> Any:
    """The tree of a value; arrays go into the list and leave their number."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()

    def keep(array: NDArray[Any]) -> int:
        arrays.append(np.ascontiguousarray(array))
        return len(arrays) - 1

    def walk(part: Any) -> Any:
        return _take_apart(part, arrays)

    if isinstance(value, bytes):
        return {_TAG: "bytes", "array": keep(np.frombuffer(value, np.uint8))}
    if isinstance(value, np.ndarray):
        if value.dtype != object:
            return {_TAG: "array", "array": keep(value)}
        if len(value) and all(isinstance(part, BaseGeometry) for part in value):
            written = shapely.to_wkb(value).tolist()
            whole = np.frombuffer(b"".join(written), np.uint8)
            return {
                _TAG: "shapes",
                "array": keep(whole),
                "sizes": keep(np.array([len(one) for one in written])),
            }
        return {_TAG: "objects", "items": [walk(part) for part in value.tolist()]}
    if isinstance(value, pd.DataFrame):
        return {_TAG: "frame", "columns": [[str(name), _take_column(value[name], keep)] for name in value]}
    if isinstance(value, BaseGeometry):
        return {_TAG: "shape", "array": keep(np.frombuffer(shapely.to_wkb(value), np.uint8))}
    if is_dataclass(value) and not isinstance(value, type):
        stored = {part.name: walk(getattr(value, part.name)) for part in fields(value) if part.compare}
        return {_TAG: "made", "kind": type(value).__name__, "fields": stored}
    if isinstance(value, dict):
        return {_TAG: "dict", "items": [[walk(key), walk(part)] for key, part in value.items()]}
    if isinstance(value, tuple | list):
        return {_TAG: type(value).__name__, "items": [walk(part) for part in value]}
    raise TypeError(f"a {type(value).__name__} cannot be stored")


def _take_column(column: pd.Series, keep: Callable[[NDArray[Any]], int]) -> dict[str, Any]:
    """One column of a frame: text as a list, numbers as an array, with a mask where cells may be empty."""
    kind = str(column.dtype)
    if kind in ("Int64", "boolean"):
        empty = column.isna().to_numpy(bool)
        return {"kind": kind, "array": keep(column.fillna(0).to_numpy()), "empty": keep(empty)}
    if column.dtype.kind in "biuf":
        return {"kind": kind, "array": keep(column.to_numpy())}
    return {"kind": "text", "items": [str(cell) for cell in column.astype(object)]}


def _put_together(tree: Any, load: Callable[[int], NDArray[Any]], known: dict[str, type]) -> Any:
    """The value of a tree."""
    if not isinstance(tree, dict):
        return tree

    def walk(part: Any) -> Any:
        return _put_together(part, load, known)

    match tree[_TAG]:
        case "bytes":
            return load(tree["array"]).tobytes()
        case "array":
            return load(tree["array"])
        case "objects":
            made = np.empty(len(tree["items"]), object)
            made[:] = [walk(part) for part in tree["items"]]
            return made
        case "frame":
            return pd.DataFrame({name: _put_column(column, load) for name, column in tree["columns"]})
        case "shape":
            return shapely.from_wkb(load(tree["array"]).tobytes())
        case "shapes":
            ends = np.cumsum(load(tree["sizes"])).tolist()
            whole = load(tree["array"]).tobytes()
            written = [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            return np.asarray(shapely.from_wkb(np.array(written, object)), object)
        case "dict":
            return {walk(key): walk(part) for key, part in tree["items"]}
        case "tuple":
            return tuple(walk(part) for part in tree["items"])
        case "list":
            return [walk(part) for part in tree["items"]]
        case "made":
            return known[tree["kind"]](**{name: walk(part) for name, part in tree["fields"].items()})
    raise ValueError(f"unknown tag {tree[_TAG]!r}")


def _put_column(column: dict[str, Any], load: Callable[[int], NDArray[Any]]) -> Any:
    match column["kind"]:
        case "text":
            return np.array(column["items"], object)
        case "Int64":
            return pd.arrays.IntegerArray(load(column["array"]).astype("int64"), load(column["empty"]))
        case "boolean":
            return pd.arrays.BooleanArray(load(column["array"]).astype(bool), load(column["empty"]))
    return load(column["array"])
