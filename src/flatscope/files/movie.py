"""Reading movies frame by frame: mp4, avi, mov and gif (extra: movies), tif and npy stacks, mrc and vendors' files."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flatscope.files.border import check_claim, check_file, describe_error, guard
from flatscope.files.read import ELECTRON_SUFFIXES, calibrate, read_stack
from flatscope.files.tiff import check_page, find_end, find_pixel_size, open_tiff
from flatscope.files.write import write_atomic
from flatscope.micrograph import SMALLEST_SIDE_PX, Calibration, MicrographError, Movie
from flatscope.units import nm_from_um

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".gif")
_STACK_SUFFIXES = tuple(suffix for suffix in ELECTRON_SUFFIXES if suffix != ".png")
MOVIE_SUFFIXES = (*VIDEO_SUFFIXES, *_STACK_SUFFIXES)
"""What `read_movie` opens; capitals do not matter."""
_VIDEO_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,avi,matroska,webm,gif"  # FFmpeg's names of the suffixes above
_LUMINANCE = np.array([0.299, 0.587, 0.114])
_BLOCK_BYTES = 1 << 24
_REL_SIGMA = 0.02

Frame = NDArray[Any] | MicrographError


def read_movie(
    path: Path | str, *, um_per_px: float | None = None, frame_s: float | None = None, signal: str = ""
) -> Movie:
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
    signal
        As for `read`.

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
    check_file(path)
    if suffix in VIDEO_SUFFIXES:
        movie = _open_video(path)
    elif suffix == ".npy":
        movie = _open_npy(path)
    elif suffix in (".tif", ".tiff"):
        movie = _open_tiff(path)
    else:
        stack = read_stack(path, signal=signal)
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
            yield MicrographError(f"is damaged ({describe_error(error)})")


def _open_npy(path: Path) -> Movie:
    with guard(path):
        with path.open("rb") as stream:
            if stream.read(6) != b"\x93NUMPY":  # NumPy would take it for a pickle, and say how to load that
                raise MicrographError("is no npy file: export it again")
        frames = np.load(path, mmap_mode="r", allow_pickle=False)
        shape = tuple(int(side) for side in frames.shape)
    if frames.ndim == 2:
        frames = frames[None]
    coloured = frames.ndim == 4 and frames.shape[3] in (3, 4)
    if frames.ndim != 3 and not coloured:
        raise MicrographError(f"{path}: an array of shape {shape} is no movie: expected (frames, rows, cols)")
    return Movie(partial(_guarded, lambda index: np.asarray(frames[index]), len(frames)), len(frames))


def _open_tiff(path: Path) -> Movie:
    size = path.stat().st_size
    with guard(path), open_tiff(path) as file:
        count = len(file.pages)
        if not count:
            raise MicrographError("holds no page: copy or export it again")
        check_page(file.pages.first, size)
        notes: list[str] = []
        calibration = calibrate(None, find_pixel_size(file), notes)
        series = file.series[0] if count == 1 and file.series else None
        if series is not None and series.ndim == 3 and series.shape[2] not in (3, 4):
            frames = _map_packed(path, series, order=file.byteorder)
            load = partial(_guarded, lambda index: np.asarray(frames[index]), len(frames))
            return Movie(load, len(frames), calibration, notes=tuple(notes))
        with path.open("rb") as stream:
            cut = find_end(stream, size) > size

    def each() -> Iterator[Frame]:
        with open_tiff(path) as file:
            pages = file.pages

            def decode(index: int) -> NDArray[Any]:
                check_page(pages[index], size)
                return pages[index].asarray()

            yield from _guarded(decode, count)
        if cut:
            yield MicrographError("and all that follow are missing, since the file is damaged or truncated")

    return Movie(each, count, calibration, notes=tuple(notes))


def _map_packed(path: Path, series: Any, *, order: str) -> NDArray[Any]:
    """The frames that ImageJ writes behind a single page, where there are many."""
    if series.dataoffset is None:
        raise MicrographError(f"holds {series.shape} in one compressed page: save its frames as pages")
    end = series.dataoffset + series.nbytes
    check_claim(series.shape, there=path.stat().st_size, raw_bytes=end)
    return np.memmap(path, series.dtype.newbyteorder(order), "r", series.dataoffset, series.shape)


def _open_video(path: Path) -> Movie:
    try:
        import av
    except ImportError:
        raise MicrographError(f"{path.suffix} files need PyAV: pip install 'flatscope[movies]'") from None

    try:
        with guard(path), _open_container(path) as container:
            if not container.streams.video:
                raise MicrographError("holds no video")
            stream = container.streams.video[0]
            check_claim((stream.height, stream.width), there=path.stat().st_size)
            rate = stream.average_rate
            count = stream.frames or None
            first = next(container.decode(video=0), None)
            if first is None:
                raise MicrographError("holds no frame that can be read")
            colours = first.to_ndarray(format="rgb24").astype(int)
    except MicrographError as error:
        if isinstance(error.__cause__, av.FFmpegError):
            raise MicrographError(
                f"{path}: is no video that can be read ({error.__cause__.strerror})"
            ) from None
        raise
    coloured = int(np.ptp(colours, axis=2).max()) > 8
    notes = (
        ("coloured: its luminance is taken, right for colour scales that grow lighter",) if coloured else ()
    )
    each = partial(_decode_video, path, count, "rgb24" if coloured else "gray")
    return Movie(each, count, frame_s=float(1 / rate) if rate else None, notes=notes)


def _open_container(path: Path) -> Any:
    """Open a video of the formats that are read; a playlist, which can name other files, is none."""
    import av

    whitelist = {"format_whitelist": _VIDEO_FORMATS}
    return av.open(str(path), container_options=whitelist, metadata_errors="replace")


def _decode_video(path: Path, count: int | None, pixel_format: str) -> Iterator[Frame]:
    import av

    with _open_container(path) as container:
        frames = container.decode(video=0)
        for done in itertools.count():
            try:
                yield check_frame(next(frames).to_ndarray(format=pixel_format))
            except StopIteration:
                # The decoder drops what it cannot read, and says so nowhere.
                if count is not None and done < count:
                    yield MicrographError(
                        f"and {count - done - 1} more are missing: the file is damaged or truncated"
                    )
                return
            except MicrographError as error:
                yield error
            except av.FFmpegError as error:
                # What comes after a broken packet cannot be found again.
                yield MicrographError(f"is damaged ({error.strerror}), and so is what follows")
                return


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
