"""Reading movies frame by frame: mp4, avi, mov and gif (extra: movies), tif and npy stacks, mrc and vendors' files."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.read import read, read_stack
from flatscope.files.write import write_atomic
from flatscope.micrograph import SMALLEST_SIDE_PX, Calibration, MicrographError, Movie
from flatscope.units import nm_from_um

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".gif")
_STACK_SUFFIXES = (".npy", ".tif", ".tiff", ".mrc", ".dm3", ".dm4", ".emd", ".ser")
MOVIE_SUFFIXES = (*VIDEO_SUFFIXES, *_STACK_SUFFIXES)
"""What `read_movie` opens; capitals do not matter."""
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_BLOCK_BYTES = 1 << 24
_REL_SIGMA = 0.02

Frame = NDArray[Any] | MicrographError


def read_movie(path: Path | str, *, um_per_px: float | None = None, frame_s: float | None = None) -> Movie:
    """Open a movie; its frames are read when they are asked for.

    Parameters
    ----------
    path
        A video (mp4, avi, mov, mkv, gif; extra `movies`), or a stack: npy of shape (frames, rows, cols), tif of several
        pages, mrc, or a vendor's file.
    um_per_px
        Pixel size in µm, above the file's own.
    frame_s
        Time from one frame to the next, above the file's own.

    Raises
    ------
    MicrographError
        If there is no such file, or it holds no frames.

    Notes
    -----
    Of coloured videos the luminance is taken, which is right for gray ones and for colour scales that grow lighter.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp(), "movie.npy")
    >>> np.save(path, np.ones((5, 20, 30)))
    >>> movie = read_movie(path, frame_s=0.5)
    >>> movie.count, movie.frame_s
    (5, 0.5)
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MOVIE_SUFFIXES:
        raise MicrographError(
            f"{path}: {suffix or 'no suffix'} is no movie: convert it to one of {', '.join(MOVIE_SUFFIXES)}"
        )
    if not path.is_file():
        raise MicrographError(f"{path}: no such file: check the path")
    if path.stat().st_size == 0:
        raise MicrographError(f"{path}: the file is empty: copy it again")
    if suffix in VIDEO_SUFFIXES:
        movie = _open_video(path)
    elif suffix == ".npy":
        movie = _open_npy(path)
    elif suffix in (".tif", ".tiff"):
        movie = _open_tiff(path)
    else:
        stack = read_stack(path)
        movie = Movie(partial(iter, stack.frames), len(stack), stack.calibration, notes=stack.notes)
    calibration = movie.calibration
    if um_per_px is not None:
        calibration = Calibration((nm_from_um(um_per_px),) * 2, "user", _REL_SIGMA)
    return replace(
        movie,
        source=str(path),
        sha256=_hash(path),
        calibration=calibration,
        frame_s=movie.frame_s if frame_s is None else frame_s,
    )


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def check_frame(frame: NDArray[Any]) -> NDArray[Any]:
    """One gray image, or a `MicrographError` that says why it is none."""
    if frame.ndim == 3 and frame.shape[2] in (3, 4):
        frame = frame[..., :3] @ _LUMINANCE
    if frame.ndim != 2 or min(frame.shape) < SMALLEST_SIDE_PX:
        raise MicrographError(f"of shape {frame.shape} is no image of {SMALLEST_SIDE_PX} px a side or more")
    if frame.dtype.kind == "f" and not np.isfinite(frame).all():
        raise MicrographError("holds values that are NaN or infinite")
    if frame.min() == frame.max():
        raise MicrographError(f"is {frame.min():g} everywhere")
    return frame


def _guarded(load: Callable[[int], NDArray[Any]], count: int) -> Iterator[Frame]:
    """Frames, each with its own error."""
    for index in range(count):
        try:
            yield check_frame(load(index))
        except MicrographError as error:
            yield error
        except Exception as error:  # damaged pages make tifffile raise nearly anything
            detail = " ".join(str(error).split())[:120] or type(error).__name__
            yield MicrographError(f"is damaged ({detail})")


def _open_npy(path: Path) -> Movie:
    try:
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        raise MicrographError(f"{path}: is no npy file that can be read: export it again") from None
    if frames.ndim == 2:
        frames = frames[None]
    coloured = frames.ndim == 4 and frames.shape[3] in (3, 4)
    if frames.ndim != 3 and not coloured:
        raise MicrographError(
            f"{path}: an array of shape {frames.shape} is no movie: expected (frames, rows, cols)"
        )
    return Movie(partial(_guarded, lambda index: np.asarray(frames[index]), len(frames)), len(frames))


def _open_tiff(path: Path) -> Movie:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            count = len(file.pages)
            if not count:
                raise MicrographError(f"{path}: holds no page: copy or export it again")
            series = file.series[0] if count == 1 and file.series else None
            packed = series is not None and series.ndim == 3 and series.shape[2] not in (3, 4)
    except MicrographError:
        raise
    except Exception as error:  # see `_guarded`
        detail = " ".join(str(error).split())[:120] or type(error).__name__
        raise MicrographError(
            f"{path}: is damaged or truncated ({detail}): copy or export it again"
        ) from None
    if packed:  # ImageJ writes large stacks behind a single page
        frames = tifffile.memmap(path, mode="r")
        return Movie(partial(_guarded, lambda index: np.asarray(frames[index]), len(frames)), len(frames))

    def each() -> Iterator[Frame]:
        with tifffile.TiffFile(path) as file:
            pages = file.pages
            yield from _guarded(lambda index: pages[index].asarray(), count)

    return Movie(each, count, _find_calibration(path))


def _find_calibration(path: Path) -> Calibration | None:
    """Pixel size of a tif's first page, as a microscope program wrote it."""
    try:
        return read(path, modality="electron").calibration
    except MicrographError:
        return None


def _open_video(path: Path) -> Movie:
    try:
        import av
    except ImportError:
        raise MicrographError(f"{path.suffix} files need PyAV: pip install 'flatscope[movies]'") from None

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise MicrographError(f"{path}: holds no video")
            stream = container.streams.video[0]
            rate = stream.average_rate
            count = stream.frames or None
            first = next(container.decode(video=0), None)
            if first is None:
                raise MicrographError(f"{path}: holds no frame that can be read")
            colours = first.to_ndarray(format="rgb24").astype(int)
    except av.FFmpegError as error:
        raise MicrographError(f"{path}: is no video that can be read ({error.strerror})") from None
    coloured = int(np.ptp(colours, axis=2).max()) > 8
    notes = (
        ("coloured: its luminance is taken, right for colour scales that grow lighter",) if coloured else ()
    )

    def each() -> Iterator[Frame]:
        with av.open(str(path)) as container:
            frames = container.decode(video=0)
            while True:
                try:
                    frame = next(frames).to_ndarray(format="rgb24" if coloured else "gray")
                    yield check_frame(frame)
                except StopIteration:
                    return
                except MicrographError as error:
                    yield error
                except av.FFmpegError as error:
                    # What comes after a broken packet cannot be found again.
                    yield MicrographError(f"is damaged ({error.strerror}), and so is what follows")
                    return

    return Movie(each, count, frame_s=float(1 / rate) if rate else None, notes=notes)


def write_movie(path: Path, frames: Iterator[NDArray[np.uint8]], *, frame_s: float | None) -> Path:
    """Write RGB frames (rows, cols, 3), all of one size, as an mp4 file; all of it or nothing.

    Parameters
    ----------
    path
        Ends in .mp4.
    frames
        Taken one after the other.
    frame_s
        Time from one frame to the next; twelve frames a second if unknown, always between two and twenty-five.
    """
    try:
        import av
    except ImportError:
        raise MicrographError("writing movies needs PyAV: pip install 'flatscope[movies]'") from None
    rate = min(max(round(1.0 / (frame_s or 1.0 / 12.0)), 2), 25)
    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        video: Any = container.add_stream("libx264", rate=rate)
        for index, frame in enumerate(frames):
            high, wide = (side - side % 2 for side in frame.shape[:2])
            if index == 0:
                video.height, video.width, video.pix_fmt = high, wide, "yuv420p"
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame[:high, :wide]), format="rgb24")
            container.mux(video.encode(picture))
        container.mux(video.encode(None))
    return write_atomic(path, stream.getvalue())
