"""The border that every file crosses on its way in: is it a file, can it hold what it claims, what if a library fails.

Readers look at what a header claims before they decode, since a header of 35 bytes can claim gigabytes. Whatever a
library raises over a damaged file leaves as one line.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from flatscope.micrograph import MicrographError

MAX_MPX_VARIABLE = "FLATSCOPE_MAX_MPX"
"""Environment variable that lifts the limit on the size of a picture."""
_MAX_MPX = 100.0  # 10,000 px a side; a worker takes up to 40 bytes a pixel (a jpg of 169 Mpx took 6.5 GB in `flakes`)

# No camera is so free of noise that a byte could hold this many pixels: Pillow's jpg of quality 1 of a graphene flake
# holds 62. Small pictures cost nothing and may be drawn ones of a single colour.
_MOST_PX_PER_BYTE = 200
_MOST_DRAWN_PX_PER_BYTE = 8256  # deflate's limit of 1,032 bytes a byte, with eight pixels in each
_SMALL_PX = 4_000_000


def read_bytes(path: Path, *, what: str = "file") -> bytes:
    """The content of a file.

    Raises
    ------
    MicrographError
        If it is missing, empty, unreadable, a folder, or a pipe or device that would never end.
    """
    check_file(path, what=what)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MicrographError(f"{path}: no such {what}: check the path") from error
    except PermissionError as error:
        raise MicrographError(f"{path}: no permission to read it: change the file's permissions") from error
    except OSError as error:
        raise MicrographError(
            f"{path}: cannot be read ({error.strerror or error}): check the disk"
        ) from error
    if not data:
        raise MicrographError(f"{path}: the file is empty: copy it again")
    return data


def check_file(path: Path, *, what: str = "file") -> int:
    """Size of a file in bytes.

    Raises
    ------
    MicrographError
        If it is missing, empty, a folder, a pipe or a device.
    """
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise MicrographError(f"{path}: no such {what}: check the path") from None
    except (OSError, ValueError) as error:  # a name that is too long, or holds a zero byte
        reason = getattr(error, "strerror", None) or error
        raise MicrographError(f"{path}: cannot be read ({reason}): check the path") from None
    if stat.S_ISDIR(found.st_mode):
        raise MicrographError(f"{path}: is a folder, not a picture: name a file in it")
    if not stat.S_ISREG(found.st_mode):
        raise MicrographError(f"{path}: is a pipe or a device, not a file: save its data to a file first")
    if not found.st_size:
        raise MicrographError(f"{path}: the file is empty: copy it again")
    return found.st_size


def check_claim(
    shape: Sequence[int], *, there: int, raw_bytes: float | None = None, drawn: bool = False
) -> None:
    """Refuse an image whose header claims more than a worker can hold, or than the file can.

    Parameters
    ----------
    shape
        Rows and columns that the header claims, after the number of images if there are several in one array.
    there
        Bytes of the file, or of its part that holds these pixels.
    raw_bytes
        What the pixels take in the file where they are not compressed.
    drawn
        Labels and the like, of few values and without noise.

    Raises
    ------
    MicrographError
        With the size and the way out.
    """
    *count, rows, cols = (int(side) for side in shape)
    if min(rows, cols, *count) < 0:
        raise MicrographError(f"is damaged: its header claims {cols}x{rows} px: copy or export it again")
    if raw_bytes is not None and raw_bytes > there:
        raise MicrographError(say_truncated(there, math.ceil(raw_bytes)))
    pixels = rows * cols * math.prod(count)
    most = _MOST_DRAWN_PX_PER_BYTE if drawn else _MOST_PX_PER_BYTE
    if pixels > max(_SMALL_PX, most * there):
        size = " of ".join([*map(str, count), f"{cols}x{rows} px"])
        raise MicrographError(
            f"is damaged or truncated: {there} bytes hold no picture of the {size} claimed: copy or export it again"
        )
    mpx = rows * cols / 1e6
    if mpx > find_max_mpx():
        raise MicrographError(
            f"{cols}x{rows} px is more than {find_max_mpx():g} Mpx: cut it into parts, or set {MAX_MPX_VARIABLE}="
            f"{math.ceil(mpx)} where every worker has {math.ceil(mpx * 0.04)} GB of memory"
        )


def find_max_mpx() -> float:
    """Largest picture, in megapixels.

    Raises
    ------
    MicrographError
        If the environment variable is no positive number.
    """
    text = os.environ.get(MAX_MPX_VARIABLE, "")
    try:
        limit = float(text) if text else _MAX_MPX
    except ValueError:
        limit = math.nan
    if not 0.0 < limit < math.inf:
        raise MicrographError(
            f"{MAX_MPX_VARIABLE}={text!r} is no number of megapixels: set it to {_MAX_MPX:g}"
        )
    return limit


def say_truncated(there: int, expected: int) -> str:
    """The line about a file that ends too early."""
    return f"is damaged or truncated ({there} of at least {expected} bytes): copy or export it again"


@contextmanager
def guard(path: Path) -> Iterator[None]:
    """Turn whatever a library raises over a file into one line, and keep its warnings from the terminal.

    Raises
    ------
    MicrographError
        In place of any exception inside; its message begins with the file.
    """
    logger = logging.getLogger("tifffile")
    if not logger.handlers:  # without one, complaints about odd tags go to the terminal
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MicrographError as error:
        said = str(error)
        raise MicrographError(said if said.startswith(f"{path}: ") else f"{path}: {said}") from error
    except (MemoryError, Image.DecompressionBombError) as error:
        raise MicrographError(f"{path}: does not fit into memory: cut it into parts") from error
    except Exception as error:  # libraries raise nearly anything, AttributeError and RecursionError included
        raise MicrographError(
            f"{path}: is damaged or truncated ({describe_error(error)}): copy or export it again"
        ) from error


def describe_error(error: BaseException) -> str:
    """The first words of an exception, or its kind where it has none."""
    return " ".join(str(error).split())[:120] or type(error).__name__
