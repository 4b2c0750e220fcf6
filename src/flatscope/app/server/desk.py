"""What the endpoints share: the open run, its pictures, who listens, and how answers are written."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, HTTPException, Request, Response

from flatscope.app.server.sprites import Sprites
from flatscope.runs.pictures import Pictures
from flatscope.runs.workbench import Entry, Workbench

_LOOK_S = 0.5
"""The folder is looked at this often for what other processes wrote."""
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

    @classmethod
    def of(cls, out: Path) -> Desk:
        """Open a run."""
        bench = Workbench(out)
        pictures = Pictures(bench)
        return cls(bench, pictures, Sprites(bench, pictures))

    def watch(self) -> None:
        """Follow the folder until `close` is called; runs in a thread of its own."""
        while not self._stop.wait(_LOOK_S):
            self.look()

    def look(self) -> None:
        """See what other processes wrote, and tell the pages."""
        before = self.bench.revision
        changed = self.bench.refresh()
        if self.bench.revision != before:
            self.tell_revision(changed)
        progress = self.measure_progress()
        if progress != self.progress:
            self.progress = progress
            self.hub.tell("progress", progress)

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
