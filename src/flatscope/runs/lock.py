"""One process at a time works in a results folder; the others are told so."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from flatscope.files.write import WriteError
from flatscope.runs.settings import SettingsError

_NAME = ".working"
_PATIENCE_S = 0.3
"""Somebody who only asks whether the folder is in use holds the lock for less."""


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
        If nothing can be written there.
    """
    path = out / _NAME
    try:
        out.mkdir(parents=True, exist_ok=True)
        stream = _acquire(path)
    except OSError as error:
        raise WriteError.of(error, path) from error
    if stream is None:
        raise SettingsError(f"another flatscope is at work in {out}: wait until it has ended")
    with stream:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
                out.rmdir()


def is_held(out: Path) -> bool:
    """Whether a process is at work in a folder."""
    try:
        with open(out / _NAME, "r+b") as stream:
            return not _lock(stream)
    except OSError:
        return False


def _acquire(path: Path) -> IO[bytes] | None:
    """The locked file, or None if somebody else keeps it locked."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        stream = open(path, "a+b")  # noqa: SIM115
        if _lock(stream) and _is_still(stream, path):
            return stream
        stream.close()
        if time.monotonic() > until:
            return None
        time.sleep(0.02)


def _is_still(stream: IO[bytes], path: Path) -> bool:
    """False if whoever held the lock before has removed the file meanwhile."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except OSError:
        return False


def _lock(stream: IO[bytes]) -> bool:
    """Lock a file until it is closed; False if another process has done so."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            stream.seek(0)
            msvcrt.locking(stream.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
