"""What a run works through: its items, each with names of its own and a key that says when its answer still holds."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flatscope.micrograph import MicrographError
from flatscope.results.table import as_plain

_MOST_STEM_BYTES = 200  # file systems allow 255: endings and temporary names need the rest
_encode = json.JSONEncoder(sort_keys=True).encode  # json.dumps would make an encoder for each of 20,000 items


@dataclass(frozen=True)
class Item:
    """One thing to analyse: a picture, a focal series, a movie, or an image to draw.

    Parameters
    ----------
    name
        In tables; no two items of a run share one.
    stem
        What its files are called; no two items share one.
    sources
        The files it is made of; their content is part of its key.
    given
        Settings of this item alone, a frozen dataclass or plain values, or None.
    """

    name: str
    stem: str
    sources: tuple[Path, ...] = ()
    given: Any = None


def name_items(
    sources: Sequence[tuple[Path, ...]],
    *,
    endings: Sequence[str] = (),
    taken: Collection[str] = (),
    kept: Mapping[int, tuple[str, str]] | None = None,
) -> list[Item]:
    """Make items of files, each with a name in the table and one for its own files.

    The table shows the file name, with as many folders before it as tell equal names apart. Output files are called
    after the file name without suffix; with it where `a.jpg` meets `a.png`; with folders or a number where that is not
    enough. Capitals do not count as a difference, since they do not on every disk.

    Parameters
    ----------
    sources
        The files of each item; the first one names it.
    endings
        Of the files that will be written beside a stem, such as ".overlay.png".
    taken
        Names of files in the results folder that are somebody else's: no stem leads to one of them.
    kept
        Number of an item to the name and stem that it has already.
    """
    kept = kept or {}
    paths = [_readable(str(files[0])) for files in sources]
    foreign = {name.lower() for name in taken}

    def is_free(stem: str) -> bool:
        return not any((stem + ending).lower() in foreign for ending in endings)

    names = _tell_apart(
        paths,
        [os.path.basename, *(_join_last(count, "/") for count in range(2, 6))],
        lambda name: True,
        {number: name for number, (name, _) in kept.items()},
    )
    stems = _tell_apart(
        paths,
        [
            lambda path: _shorten(os.path.splitext(os.path.basename(path))[0]),
            lambda path: _shorten(os.path.basename(path)),
            *(_join_last(count, "_") for count in range(2, 6)),
        ],
        is_free,
        {number: stem for number, (_, stem) in kept.items()},
    )
    return [Item(name, stem, tuple(files)) for files, name, stem in zip(sources, names, stems, strict=True)]


def recall_names(
    items: Sequence[Item], earlier: Sequence[Mapping[str, Any]], digest: Callable[[Path], str]
) -> dict[int, tuple[str, str]]:
    """Number of an item to the name and stem that it had at an earlier start.

    A name that an earlier start gave alone may now be shared, such as `a.jpg` when a second folder with an `a.jpg` is
    added: the content tells which one it was.

    Parameters
    ----------
    items
        As `name_items` would name them now.
    earlier
        Items of an earlier run.json.
    digest
        Gives the SHA-256 of a file; asked only where names changed.
    """
    known = {entry["name"]: (entry["name"], entry["stem"]) for entry in earlier}
    kept = {number: known.pop(item.name) for number, item in enumerate(items) if item.name in known}
    lost: dict[tuple[str, ...], list[Mapping[str, Any]]] = defaultdict(list)
    for entry in earlier:
        if entry["name"] in known:
            lost[tuple(entry["inputs"])].append(entry)
    for number, item in enumerate(items):
        alike = lost.get(tuple(map(readable_name, item.sources)), [])
        if number in kept or not alike:
            continue
        digests = [digest(path) for path in item.sources]
        same = next((entry for entry in alike if entry["sha256"] == digests), None)
        if same is not None:
            alike.remove(same)
            kept[number] = known[same["name"]]
    return kept


def readable_name(path: Path, *, whole: bool = False) -> str:
    """The name of a file, or its whole path, as text that can be written: bytes that are no UTF-8 become �."""
    return _readable(str(path) if whole else path.name)


def _readable(text: str) -> str:
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "replace")


def _shorten(stem: str) -> str:
    """A stem that leaves room for endings; a long one keeps its beginning and gets a digest."""
    data = stem.encode()
    if len(data) <= _MOST_STEM_BYTES:
        return stem
    kept = data[: _MOST_STEM_BYTES - 9].decode("utf-8", "ignore")
    return f"{kept}-{hashlib.sha256(data).hexdigest()[:8]}"


def _join_last(count: int, link: str) -> Callable[[str], str]:
    """Name a path by its last parts."""

    def name(path: str) -> str:
        joined = link.join(Path(os.path.abspath(path)).parts[1:][-count:])
        return joined if link == "/" else _shorten(joined)

    return name


def _tell_apart(
    paths: Sequence[str],
    ways: Iterable[Callable[[str], str]],
    is_free: Callable[[str], bool],
    kept: Mapping[int, str],
) -> list[str]:
    """The first way of naming under which a path differs from all others; at last a number."""
    chosen: dict[int, str] = dict(kept)
    taken = {name.lower() for name in kept.values()}
    for way in ways:
        named = {index: way(path) for index, path in enumerate(paths) if index not in chosen}
        counts = Counter(name.lower() for name in named.values())
        fresh = {
            index: name
            for index, name in named.items()
            if counts[name.lower()] == 1 and name.lower() not in taken and is_free(name)
        }
        chosen |= fresh
        taken |= {name.lower() for name in fresh.values()}
        if len(chosen) == len(paths):
            break
    for index, path in enumerate(paths):
        number = 2
        while index not in chosen:
            name = f"{_shorten(os.path.basename(path))}-{number}"
            if name.lower() not in taken and is_free(name):
                chosen[index] = name
                taken.add(name.lower())
            number += 1
    return [chosen[index] for index in range(len(paths))]


class Digests:
    """SHA-256 of files, remembered as long as a file's size and time of change stay.

    Parameters
    ----------
    known
        Path to (size, time of change in ns, digest), as `to_plain` gave it.
    """

    def __init__(self, known: dict[str, Any] | None = None) -> None:
        self._known = known or {}
        self._used: dict[str, list[Any]] = {}
        self._here = os.getcwd()

    def of(self, path: Path) -> str:
        """The digest of a file's content; "" where it cannot be read, which the reader will explain."""
        place = str(path)
        if not os.path.isabs(place):
            place = f"{self._here}/{place}"
        name = place if place.isascii() else os.fsencode(place).decode("utf-8", "backslashreplace")
        try:
            facts = os.stat(place)
            entry = self._known.get(name)
            if entry is None or entry[:2] != [facts.st_size, facts.st_mtime_ns]:
                with open(place, "rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                entry = [facts.st_size, facts.st_mtime_ns, digest]
        except OSError:
            return ""
        self._used[name] = entry
        return str(entry[2])

    @property
    def are_new(self) -> bool:
        """True if a file was read, or is asked for no more."""
        return self._used != self._known

    def to_plain(self) -> dict[str, list[Any]]:
        """What `Digests` takes: only the files that were asked for."""
        return dict(sorted(self._used.items()))


def make_key(item: Item, identity: str, digests: Sequence[str]) -> str:
    """The key of an item: equal keys have equal answers.

    Parameters
    ----------
    item
        Its name and its own settings matter.
    identity
        What all items share: verb, version, settings and weights.
    digests
        Of its files.
    """
    given = None if item.given is None else as_plain({"given": item.given})["given"]
    parts = [identity, item.name, item.stem, given, list(digests)]
    return digest_of(parts)


def digest_of(plain: Any) -> str:
    """Half a SHA-256 of plain values, as a name for what follows from them."""
    return hashlib.sha256(_encode(plain).encode()).hexdigest()[:32]


def expect_file(item: Item) -> Path:
    """The only file of an item.

    Raises
    ------
    MicrographError
        If it has several.
    """
    if len(item.sources) != 1:
        raise MicrographError(f"{item.name}: {len(item.sources)} files where one is expected")
    return item.sources[0]
