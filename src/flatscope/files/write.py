"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path


class WriteError(OSError):
    """A file that could not be written; the message is one line with the way out."""

    @classmethod
    def of(cls, error: OSError, path: Path, size: int = 0) -> WriteError:
        """Say what kept `size` bytes (0: unknown) from being written to a path."""
        return cls(_explain(error, path, size))


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write a file so that a reader sees the old content or all of the new, never a part.

    The content goes to a temporary file in the same folder, which then takes the name in one step. The folder is made
    if it is missing.

    Parameters
    ----------
    path
        Where to write.
    content
        Bytes, or text that is written as UTF-8.

    Returns
    -------
    The path.

    Raises
    ------
    WriteError
        If the folder cannot be made or written to, or the disk is full. No temporary file stays behind.
    """
    path = Path(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    # The process id keeps two runs that write into one folder out of each other's way.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except OSError as error:
        raise WriteError.of(error, path, len(data)) from error
    finally:
        # Also after Ctrl-C. After os.replace there is nothing left to remove.
        with contextlib.suppress(OSError):
            temporary.unlink()
    return path


def _explain(error: OSError, path: Path, size: int) -> str:
    full = {errno.ENOSPC, errno.EDQUOT} if hasattr(errno, "EDQUOT") else {errno.ENOSPC}
    if error.errno in full:
        lacking = f", {size / 1e6:.1f} MB did not fit" if size else ""
        return f"{path}: the disk is full{lacking}: free some space or choose another folder"
    if isinstance(error, PermissionError):
        return f"{path}: no permission to write here: choose another folder"
    if isinstance(error, IsADirectoryError):
        return f"{path}: a folder has this name: remove it or choose another name"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return f"{path.parent}: is a file, not a folder: choose another folder"
    return f"{path}: could not be written ({error.strerror or error}): choose another folder"
