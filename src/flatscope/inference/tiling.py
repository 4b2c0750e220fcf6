"""Cut a picture into overlapping tiles such that the pieces, put together, equal the whole.

Each pixel belongs to the core of exactly one tile (the owner rule); around the core lies a halo of
context that is computed and thrown away. With a halo no smaller than the network's receptive field, and
tiles that start on multiples of its stride, a core comes out as it would in the whole picture.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

Box = tuple[slice, slice]
"""Rows and cols."""


@dataclass(frozen=True)
class Tile:
    """One piece of a picture.

    Parameters
    ----------
    window
        Where the tile lies in the picture, halo included, px.
    core
        The part of the picture that this tile alone answers for, px.
    inner
        The core, counted from the window's corner, px.
    """

    window: Box
    core: Box
    inner: Box

    def owns(self, row: float, col: float) -> bool:
        """Whether a point (pixel centre = integer) is this tile's; each point of a picture has one owner."""
        rows, cols = self.core
        return bool(rows.start <= math.floor(row + 0.5) < rows.stop) and bool(
            cols.start <= math.floor(col + 0.5) < cols.stop
        )


def cut_tiles(shape: tuple[int, int], *, core_px: int, halo_px: int, multiple: int = 1) -> Iterator[Tile]:
    """Yield the tiles of a picture of `shape` (rows, cols), row by row.

    Cores are as equal as `multiple` allows and at most `core_px` a side; windows are cores grown by `halo_px`
    and clipped to the picture, so that a network's own padding acts where it would in the whole picture.

    Raises
    ------
    ValueError
        `core_px` or `halo_px` is no multiple of `multiple`, or a side is not.
    """
    if multiple < 1 or core_px < multiple or core_px % multiple or halo_px < 0 or halo_px % multiple:
        raise ValueError(
            f"core_px {core_px} and halo_px {halo_px} must be multiples of {multiple}, and core_px not 0"
        )
    if min(shape) < 1 or shape[0] % multiple or shape[1] % multiple:
        raise ValueError(f"a picture of {shape[0]} x {shape[1]} px must be padded to multiples of {multiple}")
    for rows in _split(shape[0], core_px, multiple):
        for cols in _split(shape[1], core_px, multiple):
            window = (_grow(rows, halo_px, shape[0]), _grow(cols, halo_px, shape[1]))
            inner = (_shift(rows, window[0].start), _shift(cols, window[1].start))
            yield Tile(window=window, core=(rows, cols), inner=inner)


def _split(length: int, core_px: int, multiple: int) -> list[slice]:
    units = length // multiple
    pieces = math.ceil(length / core_px)
    cuts = [units * i // pieces * multiple for i in range(pieces + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(cuts)]


def _grow(span: slice, halo_px: int, length: int) -> slice:
    return slice(max(0, span.start - halo_px), min(length, span.stop + halo_px))


def _shift(span: slice, start: int) -> slice:
    return slice(span.start - start, span.stop - start)
