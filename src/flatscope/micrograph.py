"""What an image is: pixels, pixel size, and where both came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SMALLEST_SIDE_PX = 16
"""A picture with a shorter side holds no substrate to compare a flake with."""


class MicrographError(ValueError):
    """A picture that cannot be used; the message is one line with the way out."""


@dataclass(frozen=True)
class Calibration:
    """Pixel size of a micrograph.

    Parameters
    ----------
    pixel_size_nm
        Height and width of one pixel in nm.
    source
        Who said so: the file's metadata, the user, or a crystal lattice in the picture.
    rel_sigma
        Relative 1-sigma error of the pixel size.

    Raises
    ------
    MicrographError
        If a pixel size is not a positive, finite number.
    """

    pixel_size_nm: tuple[float, float]
    source: Literal["file", "user", "lattice"]
    rel_sigma: float = 0.0

    def __post_init__(self) -> None:
        if not all(np.isfinite(size) and size > 0 for size in self.pixel_size_nm):
            raise MicrographError(
                f"pixel size {self.pixel_size_nm} nm is not positive: pass the real one, for example --um-per-px 0.15"
            )

    @property
    def pixel_area_um2(self) -> float:
        """Area of one pixel in µm²."""
        return self.pixel_size_nm[0] * self.pixel_size_nm[1] * 1e-6


@dataclass(frozen=True)
class Micrograph:
    """One image as it was recorded.

    Parameters
    ----------
    pixels
        Shape (rows, cols) or (rows, cols, 3), in the file's own data type.
    full_scale
        The value at which the detector saturates (255 for 8 bit, 65535 for 16 bit, 1.0 for fractions).
    calibration
        Pixel size, or None if unknown.
    source
        File name, or a word for where the array came from.
    sha256
        Digest of the file, or of the pixels for an array; made on first use if not given.
    notes
        What the reader had to decide (a page chosen, an alpha channel dropped).

    Raises
    ------
    MicrographError
        If the array is no picture: wrong shape, too small, not numeric, NaN or infinite.
    """

    pixels: NDArray[Any]
    full_scale: float = 255.0
    calibration: Calibration | None = None
    source: str = "array"
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
            raise MicrographError(
                f"{self.source}: an array of shape {pixels.shape} is no picture: "
                "expected (rows, cols) or (rows, cols, 3)"
            )
        if not (np.issubdtype(pixels.dtype, np.integer) or np.issubdtype(pixels.dtype, np.floating)):
            raise MicrographError(
                f"{self.source}: pixels of type {pixels.dtype} are not numbers: convert to uint8, uint16 or float"
            )
        if min(pixels.shape[:2]) < SMALLEST_SIDE_PX:
            raise MicrographError(
                f"{self.source}: {pixels.shape[1]}x{pixels.shape[0]} px is too small: "
                f"at least {SMALLEST_SIDE_PX} px a side are needed"
            )
        if np.issubdtype(pixels.dtype, np.floating):
            bad = int(pixels.size - np.isfinite(pixels).sum())
            if bad:
                what = "all" if bad == pixels.size else f"{bad} of {pixels.size}"
                raise MicrographError(
                    f"{self.source}: {what} values are NaN or infinite: replace them before reading"
                )
        if not self.sha256:
            digest = hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
            object.__setattr__(self, "sha256", digest)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return Path(self.source).name

    @property
    def is_gray(self) -> bool:
        """True if there is one channel, or three equal ones."""
        if self.pixels.ndim == 2:
            return True
        sample = self.pixels[::7, ::7]
        return bool((sample[..., 0] == sample[..., 1]).all() and (sample[..., 1] == sample[..., 2]).all())

    def rgb(self) -> NDArray[np.float32]:
        """The picture as fractions of full scale.

        Returns
        -------
        Shape (rows, cols, 3), float32, 0 to 1; a gray picture has its channel three times.
        """
        scaled = np.multiply(self.pixels, np.float32(1.0 / self.full_scale), dtype=np.float32)
        if scaled.ndim == 2:
            return np.repeat(scaled[..., None], 3, axis=2)
        return scaled


@dataclass(frozen=True)
class Stack:
    """Several images of one field: a focal series or a movie.

    Parameters
    ----------
    frames
        Shape (images, rows, cols), in the file's own data type.
    calibration
        Pixel size, or None if unknown.
    source
        File name, or a word for where the array came from.
    sha256
        Digest of the file, or of the pixels for an array; made on first use if not given.
    notes
        What the reader had to decide.

    Raises
    ------
    MicrographError
        If the array is no stack of gray images, or holds NaN.
    """

    frames: NDArray[Any]
    calibration: Calibration | None = None
    source: str = "array"
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        frames = self.frames
        if frames.ndim != 3 or not len(frames):
            raise MicrographError(
                f"{self.source}: an array of shape {frames.shape} is no stack: expected (images, rows, cols)"
            )
        # What holds of one image holds of all of them.
        first = Micrograph(
            frames.reshape(-1, frames.shape[2]) if min(frames.shape[1:]) >= SMALLEST_SIDE_PX else frames[0],
            calibration=self.calibration,
            source=self.source,
            sha256=self.sha256,
        )
        if not self.sha256:
            object.__setattr__(self, "sha256", first.sha256)

    def __len__(self) -> int:
        return len(self.frames)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of an image."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return Path(self.source).name


@dataclass(frozen=True)
class Movie:
    """Frames of one field, read one after the other: never all of them in memory.

    Parameters
    ----------
    open
        Starts from the first frame each time it is called. A frame is an image, shape (rows, cols), in the file's own
        data type, or the error that kept it from being read.
    count
        Number of frames, or None where only reading tells.
    calibration
        Pixel size, or None if unknown.
    frame_s
        Time from one frame to the next, or None.
    source
        File name, or a word for where the frames came from.
    sha256
        Digest of the file.
    notes
        What the reader had to decide.
    """

    open: Callable[[], Iterator[NDArray[Any] | MicrographError]]
    count: int | None = None
    calibration: Calibration | None = None
    frame_s: float | None = None
    source: str = "array"
    sha256: str = ""
    notes: tuple[str, ...] = field(default=())

    def __iter__(self) -> Iterator[NDArray[Any] | MicrographError]:
        return self.open()

    @property
    def name(self) -> str:
        """The file name without its folder."""
        return Path(self.source).name


def join(stacks: Sequence[Stack]) -> Stack:
    """One stack of the images of several, named after the first.

    Raises
    ------
    MicrographError
        If their images differ in size.
    """
    first = stacks[0]
    for other in stacks[1:]:
        if other.shape != first.shape:
            raise MicrographError(
                f"{other.source}: {other.shape[1]}x{other.shape[0]} px beside {first.shape[1]}x{first.shape[0]} px in "
                f"{first.name}: the images of a series are of one size"
            )
    notes = tuple(dict.fromkeys(note for stack in stacks for note in stack.notes))
    frames = np.concatenate([stack.frames for stack in stacks])
    return Stack(frames, first.calibration, first.source, notes=notes)
