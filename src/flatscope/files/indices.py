"""Tables of refractive indices as people have them: CSV of wavelength, n and k."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flatscope.micrograph import MicrographError
from flatscope.units import nm_from

Rows = tuple[tuple[float, float, float], ...]

_FORM = "write a line wavelength_nm,n,k and three numbers a line below it"
_LARGEST_UM = 50.0
"""Without a stated unit, wavelengths below this are µm: nobody has n and k at 50 nm for a camera."""


def read_indices(path: Path | str) -> Rows:
    """Read wavelength in nm, n and k.

    Parameters
    ----------
    path
        CSV with commas, semicolons, tabs or blanks between the numbers, and any header. A wavelength named
        ``wavelength_um`` or ``wl`` below 50 is in µm, else in nm. Downloads of refractiveindex.info, which list
        n first and k below, are read too; k is 0 where there is none.

    Returns
    -------
    Rows of (wavelength in nm, n, k), as `flatscope.optical.materials.choose_material` takes them.

    Raises
    ------
    MicrographError
        If the file is missing or holds no such table.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "own.csv")
    ...     _ = path.write_text("wavelength_um,n,k\\n0.4,2.6,0.9\\n0.75,2.4,0.3\\n")
    ...     read_indices(path)
    ((400.0, 2.6, 0.9), (750.0, 2.4, 0.3))
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise MicrographError(f"{path}: cannot be read ({reason}): {_FORM}") from None
    blocks = _split(text)
    try:
        tables = [np.array(rows, float) for _, rows in blocks]
    except ValueError:
        raise MicrographError(f"{path}: the lines have different numbers of columns: {_FORM}") from None
    tables = [_in_nm(table, header) for table, (header, _) in zip(tables, blocks, strict=True)]
    if not tables or tables[0].shape[1] not in (2, 3) or any("ev" in header for header, _ in blocks):
        raise MicrographError(f"{path}: holds no table of wavelength, n and k: {_FORM}")
    table = tables[0]
    if table.shape[1] == 2:
        k = np.zeros(len(table))
        if len(tables) > 1:
            order = np.argsort(tables[1][:, 0])
            k = np.interp(table[:, 0], *tables[1][order, :2].T)
        table = np.column_stack([table, k])
    return tuple((float(wavelength), float(n), float(k)) for wavelength, n, k in table)


def _split(text: str) -> list[tuple[str, list[list[str]]]]:
    """Blocks of lines of numbers, each with the words above it in small letters."""
    blocks: list[tuple[str, list[list[str]]]] = []
    words, open_block = "", False
    for line in text.splitlines():
        parts = [part for part in re.split(r"[,;\s]+", line.strip()) if part]
        if parts and re.match(r"[-+.\d]", parts[0]):
            if not open_block:
                blocks.append((words, []))
                words, open_block = "", True
            blocks[-1][1].append(parts)
        elif parts and not line.startswith("#"):
            words, open_block = line.lower(), False
    return blocks


def _in_nm(table: NDArray[np.float64], header: str) -> NDArray[np.float64]:
    """The same table with its wavelengths, the first column, in nm."""
    table = table.copy()
    micrometres = re.search(r"um\b|µm|μm|micro", header) or (
        "nm" not in header and table[:, 0].max() < _LARGEST_UM
    )
    if micrometres:
        table[:, 0] = np.round([nm_from(value, unit="µm") for value in table[:, 0]], 6)
    return table
