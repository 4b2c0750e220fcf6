"""A results folder: whose it is, what is finished in it, and how the files of others stay untouched.

`run.json` says what was asked and what came of it; `items/` holds every finished item; `log.json` holds what differs
from one machine and day to the next. All other files are views, made from the items.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import flatscope
from flatscope.files.read import ITEMS_FOLDER
from flatscope.files.write import WriteError, write_atomic
from flatscope.runs.settings import SettingsError

SCHEMA = 2
"""Version of run.json; before 2 each command had its own."""
_RECORD = "run.json"
_LOG = "log.json"
_ITEMS = ITEMS_FOLDER
_JOURNAL = f"{_ITEMS}/written.txt"
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
        self.log: dict[str, Any] = _read_log(out / _LOG)
        self._ours = _read_journal(out / _JOURNAL)
        for name, digest in (self.record or {}).get("files", {}).items():
            self._ours.setdefault(name, set()).add(digest)
        self.files: dict[str, str] = {}
        self.kept: list[str] = []
        self._journal = False

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
            for name in (*views, _LOG):
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
        left = [entry["name"] for entry in had["items"] if entry["name"] not in set(items)]
        if left:
            return f"a run with {len(left)} more input{'s' * (len(left) > 1)} ({left[0]}{' …' * (len(left) > 1)})"
        return ""

    def foreign_names(self) -> set[str]:
        """Names of the files in the folder that this run did not write."""
        try:
            return {entry.name for entry in os.scandir(self.out)} - set(self._ours)
        except OSError:
            return set()

    def stems(self) -> dict[str, str]:
        """The stem that each item had at an earlier start."""
        return {entry["name"]: entry["stem"] for entry in (self.record or {}).get("items", [])}

    def clear(self) -> None:
        """Remove what an earlier run wrote here; files that somebody changed since then stay.

        Raises
        ------
        WriteError
            If a file cannot be removed.
        """
        try:
            for name, digests in self._ours.items():
                path = self.out / name
                if path.is_file() and _digest(path) in digests:
                    path.unlink()
            shutil.rmtree(self.out / _ITEMS, ignore_errors=True)
            for name in (_RECORD, _LOG):
                (self.out / name).unlink(missing_ok=True)
        except OSError as error:
            raise WriteError(f"{self.out}: an earlier run cannot be removed ({error.strerror})") from None
        self.record, self.log, self._ours = None, {}, {}

    # --- items -------------------------------------------------------------------------------------------------------

    def item_path(self, name: str) -> Path:
        """Where a finished item, or its answer, lies."""
        return self.out / _ITEMS / f"{name}.zip"

    def stored(self) -> dict[str, int]:
        """Names of what lies in `items/`, without ending, to its size in bytes."""
        try:
            with os.scandir(self.out / _ITEMS) as entries:
                return {
                    entry.name.removesuffix(".zip"): entry.stat().st_size
                    for entry in entries
                    if entry.name.endswith(".zip") and not entry.name.startswith(".")
                }
        except OSError:
            return {}

    def sweep(self, keep: set[str]) -> None:
        """Remove leftovers of kills and of superseded settings from `items/`, and half-written files."""
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.out / _ITEMS)):
                if entry.name.removesuffix(".zip") not in keep:
                    os.unlink(entry.path)
        with contextlib.suppress(OSError):
            for entry in list(os.scandir(self.out)):
                is_temporary = entry.name.startswith(".") and entry.name.endswith(".tmp")
                if is_temporary and entry.name[1:].rsplit(".", 2)[0] in {*self.files, _RECORD, _LOG}:
                    os.unlink(entry.path)

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
        try:
            self.out.mkdir(parents=True, exist_ok=True)
            yield scratch
            digest = _digest(scratch)
            self.files[name] = digest
            if path.exists():
                here = _digest(path)
                if here == digest:
                    return
                if here not in self._ours.get(name, ()):
                    self.kept.append(name)
                    return
            # Noted before it happens, so that a kill in between leaves no file that seems somebody else's.
            self._note(name, digest)
            os.replace(scratch, path)
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
            journal.write(f"{digest} {name}\n")

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Write run.json; with it the notes of what was written are superseded."""
        whole = {**record, "files": dict(sorted(self.files.items()))}
        write_atomic(self.out / _RECORD, _to_json(whole))
        if record["complete"]:
            (self.out / _JOURNAL).unlink(missing_ok=True)

    def write_log(self, start: Mapping[str, Any], digests: Mapping[str, Any]) -> None:
        """Write log.json: this start added to the earlier ones, and the digests of the inputs."""
        starts = [*self.log.get("starts", []), dict(start)][-_MOST_STARTS:]
        self.log = {"flatscope": flatscope.__version__, "starts": starts, "inputs": dict(digests)}
        write_atomic(self.out / _LOG, _to_json(self.log))


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
    path = out / _RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        raise WriteError(f"{out}: is a file, not a folder: choose another folder") from None
    except (OSError, ValueError):
        raise SettingsError(f"{path} cannot be read as a run of flatscope: choose another --out") from None
    if not isinstance(record, dict) or "flatscope" not in record:
        raise SettingsError(f"{path} is not flatscope's: choose another --out")
    needed = {"verb", "settings", "weights", "digests", "items", "files", "complete"}
    if record.get("schema") != SCHEMA or not needed <= set(record):
        raise SettingsError(
            f"{path} was written by flatscope {record['flatscope']} in another format: choose another --out"
        )
    return record


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
    try:
        log = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return log if isinstance(log, dict) else {}


def _read_journal(path: Path) -> dict[str, set[str]]:
    """Name to digests of the files that an interrupted run has written."""
    ours: dict[str, set[str]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return ours
    for line in lines:
        digest, _, name = line.partition(" ")
        ours.setdefault(name, set()).add(digest)
    return ours
