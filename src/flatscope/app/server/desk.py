"""What the endpoints share: the open run, its pictures, who listens, and how answers are written."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import multiprocessing
import os
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Response

from flatscope.app.server.sprites import Sprites
from flatscope.files.write import WriteError
from flatscope.micrograph import MicrographError
from flatscope.runs.answering import Entry
from flatscope.runs.pictures import Pictures
from flatscope.runs.reopen import bring_up_to_date
from flatscope.runs.settings import SettingsError
from flatscope.runs.workbench import Workbench

_LOOK_S = 0.5
"""The folder is looked at this often for what other processes wrote."""
_SLICE_S = 0.2
"""Rows that follow a correction are made in slices, so that a click in between is answered."""
_QUIET_S = 3.0
"""Tables and pictures in the folder follow corrections after this time without another one."""
_KEEP_ALIVE_S = 15.0
_LEAST_GZIP_BYTES = 2_000
_QUICK = 1
"""gzip's level: the page lies on the same computer."""


class Hub:
    """Passes news on to every open page."""

    def __init__(self) -> None:
        self._listeners: set[tuple[asyncio.AbstractEventLoop, asyncio.Queue[tuple[str, Any] | None]]] = set()
        self._lock = threading.Lock()

    def tell(self, name: str, data: Any) -> None:
        """Send an event to every page, from any thread."""
        with self._lock:
            listeners = list(self._listeners)
        for loop, queue in listeners:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, (name, data))

    def close(self) -> None:
        """End all streams."""
        with self._lock:
            listeners = list(self._listeners)
        for loop, queue in listeners:
            if not loop.is_closed():
                loop.call_soon_threadsafe(queue.put_nowait, None)

    async def listen(self, first: list[tuple[str, Any]]) -> AsyncIterator[str]:
        """Server-sent events, these first."""
        queue: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()
        mine = asyncio.get_running_loop(), queue
        with self._lock:
            self._listeners.add(mine)
        try:
            for name, data in first:
                yield _write_event(name, data)
            while True:
                try:
                    event = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if event is None:
                    return
                yield _write_event(*event)
        finally:
            with self._lock:
                self._listeners.discard(mine)


def _write_event(name: str, data: Any) -> str:
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False, allow_nan=False)}\n\n"


@dataclass
class Desk:
    """The open run and all that is kept beside it.

    Parameters
    ----------
    bench, pictures
        The run and its pictures.
    hub
        Who listens.
    """

    bench: Workbench
    pictures: Pictures
    sprites: Sprites
    hub: Hub = field(default_factory=Hub)
    progress: dict[str, Any] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _since: tuple[float, int] | None = None
    _is_late: bool = False
    _corrected: float = 0.0
    _written: float = 0.0
    _writer: BaseProcess | None = None

    @classmethod
    def of(cls, out: Path) -> Desk:
        """Open a run."""
        bench = Workbench(out)
        pictures = Pictures(bench)
        return cls(bench, pictures, Sprites(bench, pictures))

    def watch(self) -> None:
        """Follow the folder until `close` is called; runs in a thread of its own."""
        with contextlib.suppress(SettingsError, MicrographError):
            self.bench.answers.warm(self.bench.entries)
        while not self._stop.wait(0.0 if self._is_late else _LOOK_S):
            self.look()

    def look(self) -> None:
        """See what other processes wrote, do what corrections left to do, and tell the pages."""
        before = self.bench.revision
        changed = self.bench.refresh()
        made = self.bench.catch_up(_SLICE_S)
        self._is_late = bool(made)
        if self.bench.revision != before:
            self.tell_revision([*changed, *made])
        self._keep_up()
        progress = self.measure_progress()
        if progress != self.progress:
            self.progress = progress
            self.hub.tell("progress", progress)

    def _keep_up(self) -> None:
        """Write tables and pictures anew, in a process of its own, when nobody has corrected anything for a while."""
        if self._writer is not None and not self._writer.is_alive():
            self._writer = None
        is_due = time.monotonic() - self._corrected > _QUIET_S and self._corrected > self._written
        if self._writer is None and is_due and self.bench.is_behind() and not self.bench.is_running():
            self._written = time.monotonic()
            self._writer = multiprocessing.get_context("spawn").Process(
                target=_write_out, args=(self.bench.out,), daemon=True
            )
            self._writer.start()

    def tell_edits(self, ids: list[str]) -> None:
        """Tell the pages that corrections came in."""
        self._corrected = time.monotonic()
        for line_id in ids:
            self.hub.tell("edit", {"id": line_id})
        self.tell_revision([])

    def tell_revision(self, changed: list[int]) -> None:
        """Tell the pages that rows have changed."""
        self.hub.tell("revision", {"revision": self.bench.revision, "items": changed})

    def measure_progress(self) -> dict[str, Any]:
        """How far a running batch is."""
        entries = self.bench.entries
        done = sum(entry.status == "analysed" for entry in entries)
        failed = sum(entry.status == "failed" for entry in entries)
        running = self.bench.is_running()
        if not running or self._since is None:
            self._since = time.monotonic(), done
        passed, fresh = time.monotonic() - self._since[0], done - self._since[1]
        rate = fresh / passed if fresh and passed > 0 else None
        left = len(entries) - done - failed
        return {
            "stage": "analysing"
            if running
            else "finished"
            if self.bench.record.get("complete")
            else "stopped",
            "done": done,
            "failed": failed,
            "total": len(entries),
            "rate": None if rate is None else round(rate, 3),
            "left_s": None if rate is None else round(left / rate, 1),
        }

    def close(self) -> None:
        """Stop watching and end all streams."""
        self._stop.set()
        self.hub.close()

    def entry(self, index: int) -> Entry:
        """An item by its place.

        Raises
        ------
        HTTPException
            If there is none.
        """
        entries = self.bench.entries
        if not 0 <= index < len(entries):
            raise HTTPException(404, f"the run has {len(entries)} items, none of number {index}")
        return entries[index]


def _write_out(out: Path) -> None:
    """What the process does that brings tables and pictures up to date; the page goes first."""
    if hasattr(os, "nice"):
        os.nice(10)
    with contextlib.suppress(SettingsError, WriteError):
        bring_up_to_date(out)


def find_desk(request: Request) -> Desk:
    """The desk of the application that a request came to."""
    desk: Desk = request.app.state.desk
    return desk


AtDesk = Annotated[Desk, Depends(find_desk)]


def write_json(request: Request, value: Any) -> Response:
    """An answer of any size as JSON, compressed if it is large; NaN is not allowed in it."""
    body = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    headers = {}
    if len(body) > _LEAST_GZIP_BYTES and "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, _QUICK)
        headers["content-encoding"] = "gzip"
    return Response(body, media_type="application/json", headers=headers)
