"""A results folder: whose it is, what is finished in it, and how the files of others stay untouched.

`run.json` says what was asked and what came of it; `items/` holds every finished item; `log.json` holds what differs
from one machine and day to the next. All other files are views, made from the items.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatscope
from flatscope.files.write import WriteError, write_atomic
from flatscope.runs.items import Digests
from flatscope.runs.settings import LOG, RECORD, SettingsError

SCHEMA = 2
"""Version of run.json; before 2 each command had its own."""
_ITEMS = "items"
_JOURNAL = f"{_ITEMS}/written.txt"
_STORED = re.compile(r"\.?[0-9a-f]{32}(-cut)?\.zip(\.\d+\.tmp)?")  # names of our files in `items/`
_MOST_STARTS = 20  # log.json keeps this many starts


class Folder:
    """The folder of one run.

    Parameters
    ----------
    out
        Where; made on the first write.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        self.record: dict[str, Any] | None = _read_record(out)
        self.log: dict[str, Any] = _read_log(out / LOG)
        self.digests = Digests(self.log["inputs"])
        self._ours = _read_journal(out / _JOURNAL)
        for name, digest in (self.record or {}).get("files", {}).items():
            self._ours.setdefault(name, set()).add(digest)
        self.files: dict[str, str] = {}
        self.kept: set[str] = set()
        self._changed: set[str] | None = None  # what `find_changed` found, until something is written
        self.paths: dict[str, str] = {}

    # --- whose it is -------------------------------------------------------------------------------------------------

    def check(self, asked: Mapping[str, Any], items: Sequence[str], views: Sequence[str]) -> None:
        """Refuse to mix this run with another one.

        Parameters
        ----------
        asked
            Verb, version, settings and weights of this run.
        items
            Names of its items.
        views
            Names of the files it will write for the run as a whole.

        Raises
        ------
        SettingsError
            If the folder holds another run, or a file of that name that flatscope did not write.
        """
        if self.record is None:
            for name in (*views, LOG):
                if (self.out / name).exists():
                    raise SettingsError(
                        f"{self.out / name} is there already and belongs to no run that flatscope knows: "
                        "choose another --out"
                    )
            return
        other = self._describe_difference(asked, items)
        if other:
            raise SettingsError(f"{self.out} holds {other}: choose another --out, or pass --replace")

    def _describe_difference(self, asked: Mapping[str, Any], items: Sequence[str]) -> str:
        had = self.record or {}
        if had["verb"] != asked["verb"]:
            return f"a run of flatscope {had['verb']}"
        if had["flatscope"] != asked["flatscope"]:
            return f"a run of flatscope {had['flatscope']}, this is {asked['flatscope']}"
        for name in sorted({*had["settings"], *asked["settings"]}):
            before, now = had["settings"].get(name), asked["settings"].get(name)
            if before != now:
                return f"a run with other settings ({name} {_say(before)}, now {_say(now)})"
        if had["weights"] != asked["weights"]:
            return f"a run with other weights ({had['weights'].get('name', 'none')})"
        if had["digests"] != asked["digests"]:
            return f"a run with another {' and '.join({**had['digests'], **asked['digests']})}"
        now = set(items)
        left = [entry["name"] for entry in had["items"] if entry["name"] not in now]
        if left:
            return f"a run with {len(left)} more input{'s' * (len(left) > 1)} ({left[0]}{' …' * (len(left) > 1)})"
        return ""

    def foreign_names(self) -> set[str]:
        """Names of the files in the folder that this run did not write."""
        try:
            return {entry.name for entry in os.scandir(self.out)} - set(self._ours)
        except OSError:
            return set()

    def clear(self) -> list[str]:
        """Remove what an earlier run wrote here, run.json last; files that somebody changed since then stay.

        Returns
        -------
        Names of those that stay.

        Raises
        ------
        WriteError
            If a file cannot be removed.
        """
        if self.record is None:
            return []
        written = set(self._ours)
        try:
            self._tidy(keep=set(), files={})
            for name in (LOG, RECORD):
                (self.out / name).unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{self.out}: an earlier run cannot be removed ({error.strerror})") from None
        self.record, self._ours = None, {}
        return sorted(name for name in written if (self.out / name).exists())

    # --- items -------------------------------------------------------------------------------------------------------

    def item_path(self, name: str) -> Path:
        """Where a finished item, or its answer, lies."""
        return self.out / _ITEMS / f"{name}.zip"

    def stored(self) -> set[str]:
        """Names of what lies in `items/`, without ending."""
        try:
            with os.scandir(self.out / _ITEMS) as entries:
                return {
                    entry.name.removesuffix(".zip")
                    for entry in entries
                    if entry.name.endswith(".zip") and _STORED.fullmatch(entry.name)
                }
        except OSError:
            return set()

    def size_of(self, name: str) -> int:
        """Bytes of what lies in `items/` under that name; -1 where there is nothing."""
        try:
            return os.stat(f"{self.out}/{_ITEMS}/{name}.zip").st_size  # a Path each costs more than the stat
        except OSError:
            return -1

    def is_whole(self, name: str) -> bool:
        """False for a stored item that is cut off: the end of a zip file says what is in it."""
        return zipfile.is_zipfile(self.item_path(name))

    def tidy(self, keep: set[str]) -> None:
        """Remove what kills and earlier starts left behind: superseded items and views, and half-written files.

        Parameters
        ----------
        keep
            Names of the stored items that a finished run needs.
        """
        with contextlib.suppress(OSError):  # a finished run may lie where nobody may write
            self._tidy(keep, self.files or (self.record or {}).get("files", {}))

    @property
    def is_tidy(self) -> bool:
        """False where an interrupted start left its journal, and perhaps more."""
        return not (self.out / _JOURNAL).exists()

    def _tidy(self, keep: set[str], files: Mapping[str, str]) -> None:
        for name in self._ours.keys() - files.keys():
            path = self.out / name
            if path.is_file() and _digest(path) in self._ours[name]:
                path.unlink()
        for entry in list(os.scandir(self.out)):
            is_temporary = entry.name.startswith(".") and entry.name.endswith(".tmp")
            if is_temporary and entry.name[1:].rsplit(".", 2)[0] in {*self._ours, RECORD, LOG}:
                os.unlink(entry.path)
        items = self.out / _ITEMS
        if items.is_dir():
            for entry in list(os.scandir(items)):
                if entry.name.removesuffix(".zip") not in keep and _STORED.fullmatch(entry.name):
                    os.unlink(entry.path)
            (self.out / _JOURNAL).unlink(missing_ok=True)
            if not keep:
                with contextlib.suppress(OSError):  # somebody else's files lie there too
                    items.rmdir()

    # --- views -------------------------------------------------------------------------------------------------------

    def write(self, name: str, content: bytes | str) -> None:
        """Write a view; a file of that name that somebody changed, or that was never ours, stays as it is.

        Raises
        ------
        WriteError
            If it cannot be written.
        """
        data = content.encode() if isinstance(content, str) else content
        with self.writing(name) as path:
            path.write_bytes(data)

    @contextlib.contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give the path of a temporary file that becomes the view when the block ends well."""
        path = self.out / name
        scratch = self.out / f".{name}.{os.getpid()}.tmp"
        self._changed = None
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            yield scratch
            digest = _digest(scratch)
            here = _digest(path) if path.exists() else ""
            if here and here != digest and here not in self._ours.get(name, ()):
                self.kept.add(name)
            elif here != digest:
                # Noted before it happens, so that a kill in between leaves no file that seems somebody else's.
                self._note(name, digest)
                os.replace(scratch, path)
            self.files[name] = digest
        except WriteError:
            raise
        except OSError as error:
            raise WriteError.of(error, path) from error
        finally:
            with contextlib.suppress(OSError):
                scratch.unlink()

    def _note(self, name: str, digest: str) -> None:
        self._ours.setdefault(name, set()).add(digest)
        path = self.out / _JOURNAL
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as journal:
            journal.write(
                "\n" + json.dumps([name, digest])
            )  # a line that a full disk cut off spoils no other

    def find_changed(self) -> set[str]:
        """Names of files that somebody changed since an earlier start wrote them, or that this one left as they are."""
        if self.record is None:
            return self.kept
        if self._changed is None:
            self._changed = self._look_for_changes(self.record)
        return self.kept | self._changed

    def _look_for_changes(self, record: Mapping[str, Any]) -> set[str]:
        # run.json is written last: what is older is as it was
        written = os.stat(self.out / RECORD).st_mtime_ns
        suspects = {
            entry.name
            for entry in os.scandir(self.out)
            if entry.name in record["files"]
            and (entry.name in self.log["changed"] or entry.stat().st_mtime_ns > written)
        }
        return {name for name in suspects if _digest(self.out / name) not in self._ours[name]}

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json; an unfinished run still knows what an earlier start wrote."""
        earlier = {} if record["complete"] or self.record is None else self.record["files"]
        whole = {**record, "files": dict(sorted({**earlier, **self.files}.items()))}
        write_atomic(self.out / RECORD, _to_json(whole))

    def write_log(self, start: Mapping[str, Any], changed: Collection[str]) -> None:
        """Write log.json: this start added to the earlier ones, and what spares the next one to read everything."""
        log = {
            "flatscope": flatscope.__version__,
            "starts": [*self.log["starts"], dict(start)][-_MOST_STARTS:],
            "inputs": self.digests.to_plain(),
            "changed": sorted(changed),
            "settings": self.paths,
        }
        write_atomic(self.out / LOG, _to_json(log))


def _to_json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _say(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 40 else text[:37] + "..."


def _read_record(out: Path) -> dict[str, Any] | None:
    """run.json of an earlier start.

    Raises
    ------
    SettingsError
        If it is not this version's.
    """
    path = out / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise WriteError(f"{out}: is a file, not a folder: choose another folder") from None
    except (OSError, ValueError, RecursionError):
        raise SettingsError(f"{path} cannot be read as a run of flatscope: choose another --out") from None
    if not isinstance(record, dict) or "flatscope" not in record:
        raise SettingsError(f"{path} is not flatscope's: choose another --out")
    if record.get("schema") != SCHEMA:
        raise SettingsError(
            f"{path} was written by flatscope {record['flatscope']} in another format: choose another --out"
        )
    if not _is_sound(record):
        raise SettingsError(f"{path} is damaged: choose another --out")
    return record


_PARTS = {
    "verb": str,
    "flatscope": str,
    "complete": bool,
    "settings": dict,
    "weights": dict,
    "digests": dict,
    "items": list,
    "files": dict,
}
_ITEM_PARTS = {"name": str, "stem": str, "key": str, "status": str, "inputs": list, "sha256": list}
_ANSWER_PARTS = {"answer": str, "bytes": int, "notes": list, "facts": dict, "files": list}


def _is_sound(record: Mapping[str, Any]) -> bool:
    """True if a record has every part that is relied on."""

    def has(table: Any, parts: Mapping[str, type]) -> bool:
        return isinstance(table, dict) and list(map(type, map(table.get, parts))) == list(parts.values())

    return has(record, _PARTS) and all(
        has(entry, _ITEM_PARTS) and (entry["status"] != "analysed" or has(entry, _ANSWER_PARTS))
        for entry in record["items"]
    )


def read_run(out: Path) -> dict[str, Any]:
    """run.json of a results folder.

    Raises
    ------
    SettingsError
        If the folder holds no run of this version.
    """
    record = _read_record(out)
    if record is None:
        raise SettingsError(f"{out} holds no run: name the folder that flatscope wrote (its --out)")
    return record


def _read_log(path: Path) -> dict[str, Any]:
    """log.json; a damaged one is begun anew, since nothing depends on it."""
    empty: dict[str, Any] = {"starts": [], "inputs": {}, "changed": []}
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return empty
    if not isinstance(log, dict):
        return empty
    return {
        name: log[name] if isinstance(log.get(name), type(kind)) else kind for name, kind in empty.items()
    }


def _read_journal(path: Path) -> dict[str, set[str]]:
    """Name to digests of the files that an interrupted run has written."""
    ours: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        return ours
    for line in lines:
        with contextlib.suppress(ValueError):
            name, digest = json.loads(line)
            ours.setdefault(name, set()).add(digest)
    return ours
