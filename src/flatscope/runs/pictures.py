"""The pictures of a run as a screen shows them: tiles at every size, crops, frames of movies."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flatscope.files.layer_labels import read_layer_labels
from flatscope.files.movie import MOVIE_SUFFIXES, read_movie
from flatscope.files.read import read, read_stack
from flatscope.micrograph import MicrographError
from flatscope.report.figures import encode_jpeg, to_display
from flatscope.runs.answering import Entry
from flatscope.runs.workbench import Workbench

TILE_PX = 512
"""Side of a tile."""
_KEPT_BYTES = 600_000_000
"""Pictures that stay in memory, all sizes of each."""
_SMALL_LEVEL = 8
"""Up to this level, 256 px, the picture in the stored answer is enough."""
_STRETCH = (0.2, 99.8)
"""Percentiles of an electron micrograph that become black and white."""
_CLEAR = 88
"""JPEG quality of tiles: no blocks are seen at twice the size."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class _Levels:
    """One picture at all sizes, the full one first, each half of the one before."""

    sizes: tuple[Image.Image, ...]

    @classmethod
    def of(cls, picture: Image.Image) -> _Levels:
        sizes = [picture]
        while max(sizes[-1].size) > 1:
            width, height = sizes[-1].size
            half = (max(1, -(-width // 2)), max(1, -(-height // 2)))
            sizes.append(sizes[-1].resize(half, Image.Resampling.BOX))
        return cls(tuple(sizes))

    @property
    def bytes(self) -> int:
        """Memory that the sizes take."""
        return sum(size.width * size.height * len(size.getbands()) for size in self.sizes)


class Pictures:
    """The pictures of an open run.

    Parameters
    ----------
    bench
        The run.
    """

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self._kept: OrderedDict[tuple[str, int], _Levels] = OrderedDict()
        self._sizes: dict[str, tuple[int, int, int]] = {}
        self._lock = threading.Lock()
        self._making: dict[tuple[str, int], threading.Lock] = {}

    def measure(self, index: int) -> tuple[int, int, int]:
        """Width, height and number of frames of an item.

        Raises
        ------
        MicrographError
            If its picture is gone and the run does not know its size.
        """
        entry = self._bench.entries[index]
        if entry.name not in self._sizes:
            self._sizes[entry.name] = self._measure(entry)
        return self._sizes[entry.name]

    def _measure(self, entry: Entry) -> tuple[int, int, int]:
        facts = entry.facts
        if "rows_px" in facts:
            return int(facts["cols_px"]), int(facts["rows_px"]), 1
        table = self._bench.table(entry.index)
        if table is not None:
            rows, cols = table.marks.shape_px
            return cols, rows, _count_frames(entry)
        width, height = self._levels(entry, 0).sizes[0].size
        return width, height, _count_frames(entry)

    def tile(self, index: int, frame: int, level: int, col: int, row: int) -> bytes:
        """A tile as JPEG; level 0 is one pixel, as in deep-zoom pictures.

        Raises
        ------
        MicrographError
            If there is no such tile, or the picture cannot be read.
        """
        entry = self._bench.entries[index]
        width, height, frames = self.measure(index)
        most = count_levels(width, height) - 1
        if not (0 <= level <= most and 0 <= frame < frames):
            raise MicrographError(f"{entry.name} has {frames} frames and {most + 1} levels")
        small = self._find_small(entry, frame, level, most, (width, height))
        picture = small or self._levels(entry, frame).sizes[most - level]
        left, top = col * TILE_PX, row * TILE_PX
        if not (0 <= left < picture.width and 0 <= top < picture.height):
            raise MicrographError(f"{entry.name} has no tile {col}, {row} at level {level}")
        box = (left, top, min(left + TILE_PX, picture.width), min(top + TILE_PX, picture.height))
        return encode_jpeg(picture.crop(box), quality=_CLEAR)

    def crop(
        self, index: int, frame: int, box: tuple[float, float, float, float], side_px: int
    ) -> Image.Image:
        """A square part of a picture, given as left, top, right, bottom in pixels, at another size."""
        entry = self._bench.entries[index]
        sizes = self._levels(entry, frame).sizes
        level = 0
        while level + 1 < len(sizes) and (box[2] - box[0]) / 2 ** (level + 1) > side_px:
            level += 1
        left, top, right, bottom = (value / 2**level for value in box)
        part = sizes[level].crop((round(left), round(top), round(right), round(bottom)))
        return part.resize((side_px, side_px), Image.Resampling.BICUBIC).convert("RGB")

    def whole(self, index: int, frame: int = 0) -> Image.Image:
        """A picture at its full size."""
        return self._levels(self._bench.entries[index], frame).sizes[0]

    def _find_small(
        self, entry: Entry, frame: int, level: int, most: int, size: tuple[int, int]
    ) -> Image.Image | None:
        """A small size of a picture from the stored answer, without reading the picture."""
        if level > min(_SMALL_LEVEL, most) or frame or (entry.name, frame) in self._kept:
            return None
        stored = self._bench.answers.figure(entry, "before")
        if not stored:
            return None
        with Image.open(io.BytesIO(stored)) as picture:
            scale = 2 ** (most - level)
            small = (-(-size[0] // scale), -(-size[1] // scale))
            return picture.convert("RGB").resize(small, Image.Resampling.BICUBIC, reducing_gap=2.0)

    def _levels(self, entry: Entry, frame: int) -> _Levels:
        key = entry.name, frame
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            making = self._making.setdefault(key, threading.Lock())
        with making:  # several tiles of one picture are asked for at once, and it is read once
            with self._lock:
                if key in self._kept:
                    return self._kept[key]
            levels = _Levels.of(self._open(entry, frame))
            with self._lock:
                self._kept[key] = levels
                self._making.pop(key, None)
                while sum(kept.bytes for kept in self._kept.values()) > _KEPT_BYTES and len(self._kept) > 1:
                    self._kept.popitem(last=False)
        return levels

    def _open(self, entry: Entry, frame: int) -> Image.Image:
        if not entry.sources:
            stored = self._bench.answers.figure(entry, "before")
            if not stored:
                raise MicrographError(f"{entry.name} is not where it was: its picture was moved or changed")
            width, height, _ = self.measure(entry.index)
            return Image.open(io.BytesIO(stored)).convert("RGB").resize((width, height))
        if self._bench.record["settings"].get("labels") is True:
            from flatscope.runs.twist import show_labels

            return Image.fromarray(show_labels(read_layer_labels(entry.sources[0])).pixels)
        if self._bench.verb in ("flakes", "twist"):
            return Image.fromarray(to_display(read(entry.sources[0])).pixels)
        signal = str(self._bench.record["settings"].get("signal", ""))
        return Image.fromarray(stretch(_read_frame(entry.sources[0], frame, signal)))


def count_levels(width: int, height: int) -> int:
    """Number of sizes of a deep-zoom picture, the smallest of one pixel."""
    return (max(width, height) - 1).bit_length() + 1


def stretch(pixels: NDArray[Any]) -> Pixels:
    """Gray values from their 0.2th to their 99.8th percentile as 8 bit."""
    low, high = np.percentile(pixels[::2, ::2], _STRETCH)
    scaled = (pixels - low) * (255.0 / max(float(high - low), 1e-12))
    return np.clip(scaled, 0.0, 255.0).astype(np.uint8)


def _count_frames(entry: Entry) -> int:
    """Frames of an item's movie; 1 for an image."""
    if "rates" not in entry.facts:
        return 1
    return int(entry.facts["line"]["frames"])


def _read_frame(path: Path, frame: int, signal: str) -> NDArray[Any]:
    """One gray image of a file: a frame of a movie, or the middle image of a focal series.

    Raises
    ------
    MicrographError
        If it cannot be read.
    """
    if frame or path.suffix.lower() in (".npy", ".mp4", ".avi", ".mov", ".mkv", ".gif"):
        movie = read_movie(path, signal=signal) if path.suffix.lower() in MOVIE_SUFFIXES else None
        frames: Iterator[Any] = iter(movie) if movie is not None else iter(())
        for number, image in enumerate(frames):
            if number == frame:
                if isinstance(image, MicrographError):
                    raise image
                return np.asarray(image, np.float32)
        raise MicrographError(f"{path.name} has no frame {frame}")
    try:
        pixels = read(path, modality="electron", signal=signal).pixels
    except MicrographError:
        stack = read_stack(path, signal=signal).frames
        pixels = stack[len(stack) // 2]
    return np.asarray(pixels if pixels.ndim == 2 else pixels[..., 0], np.float32)
