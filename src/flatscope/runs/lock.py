"""One process at a time works in a results folder; the others are told so.

The folder itself is locked, so that a killed process leaves nothing behind. Windows cannot lock folders: there a file
in the folder for temporary files stands for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from flatscope.files.write import WriteError
from flatscope.runs.settings import SettingsError

_PATIENCE_S = 0.3
"""Somebody who only asks whether the folder is in use holds the lock for less."""
_POLL_S = 0.02


@contextlib.contextmanager
def hold(out: Path) -> Iterator[None]:
    """Keep every other process from working in a folder; a killed one holds it no longer.

    Parameters
    ----------
    out
        The results folder; made if missing, and removed again if nothing came into it.

    Raises
    ------
    SettingsError
        If another process is at work there.
    WriteError
        If the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        number = _open(out)
    except OSError as error:
        raise WriteError.of(error, out) from error
    try:
        until = time.monotonic() + _PATIENCE_S
        while not _lock(number):
            if time.monotonic() > until:
                raise SettingsError(f"another flatscope is at work in {out}: wait until it has ended")
            time.sleep(_POLL_S)
        yield
    finally:
        os.close(number)
        with contextlib.suppress(OSError):
            out.rmdir()


def is_held(out: Path) -> bool:
    """Whether a process is at work in a folder."""
    try:
        number = _open(out)
    except OSError:
        return False
    try:
        return not _lock(number)
    finally:
        os.close(number)


def _open(out: Path) -> int:
    if os.name == "posix":
        return os.open(out, os.O_RDONLY | os.O_CLOEXEC)
    name = hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:32]
    return os.open(Path(tempfile.gettempdir(), f"flatscope-{name}.lock"), os.O_RDWR | os.O_CREAT)


def _lock(number: int) -> bool:
    """Lock what was opened until it is closed; False if another process has done so."""
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(number, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True  # a network folder without locks
    return True
