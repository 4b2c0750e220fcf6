"""The same work for many jobs, in processes or threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar

Job = TypeVar("Job")
Made = TypeVar("Made")


def map_in_order(
    work: Callable[[Job], Made],
    jobs: Sequence[Job],
    *,
    workers: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> Iterator[Made]:
    """What `work`, a function of a module, makes of each job, in order; with 1 worker in this process."""
    workers = min(workers, len(jobs))
    with ExitStack() as stack:
        made: Iterable[Made] = map(work, jobs)
        if workers > 1:
            pool = stack.enter_context(worker_processes(workers))
            made = pool.map(work, jobs, chunksize=max(1, min(8, len(jobs) // (4 * workers))))
        for done, item in enumerate(made, start=1):
            yield item
            if on_progress is not None:
                on_progress(done, len(jobs))


@contextmanager
def worker_processes(
    count: int, *, start: Callable[..., None] | None = None, given: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """Processes that compute with one thread each; an exception inside, Ctrl-C too, ends them at once.

    Parameters
    ----------
    count
        How many.
    start, given
        What each calls first, a function of a module, and its arguments.
    """
    with _one_thread_a_process(), _deaf_to_interrupt():
        pool = ProcessPoolExecutor(
            count,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(start, given),
        )
        pool.submit(os.getpid)  # they start with the first job: now, while all of that holds
    processes = list((getattr(pool, "_processes", None) or {}).values())
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()
        for process in processes:  # a pool that was shut down without waiting forgets to wait later
            process.join(timeout=5.0)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(start: Callable[..., None] | None, given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()
    if start is not None:
        start(*given)


def _follow_parent() -> None:
    """End this process when its parent has ended, however that happened."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _one_thread_a_process() -> Iterator[None]:
    """Workers inherit this: several processes with several threads each spin against one another."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupt() -> Iterator[None]:
    """Ctrl-C reaches every process of a terminal; workers that start in here leave it to this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class LostWorkerError(RuntimeError):
    """A worker process that died or stopped answering: twice at one job, or before its first one."""


class Workers:
    """Processes that do jobs in any order and are replaced when they die.

    Each computes with one thread, ignores Ctrl-C, which the parent handles, and ends when its parent does. With one
    worker the jobs run in this process.

    Parameters
    ----------
    count
        How many.
    start, given
        What each process calls first, a function of a module, and its arguments; with one worker this process does.
    limit_s
        A worker that needs longer for one job is ended.

    Examples
    --------
    >>> with Workers(1) as workers:
    ...     sorted(made for _, made in workers.do(abs, [-3, 2]))
    [2, 3]
    """

    def __init__(
        self,
        count: int,
        *,
        start: Callable[..., None] | None = None,
        given: tuple[Any, ...] = (),
        limit_s: float = 3600.0,
    ) -> None:
        self.count = count
        self._start, self._given, self._limit_s = start, given, limit_s
        self._slots: list[ProcessPoolExecutor] = []
        self._starts: dict[ProcessPoolExecutor, Future[int]] = {}
        self._is_started = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for slot in self._slots:
            _end(slot)

    def do(
        self, work: Callable[[Job], Made], jobs: Sequence[Job]
    ) -> Iterator[tuple[int, Made | LostWorkerError]]:
        """Do every job, and yield its number and what came of it as soon as it is done.

        A job whose worker died is tried once more in a new one; then a `LostWorkerError` stands for its result.

        Raises
        ------
        LostWorkerError
            If workers die before they begin to work.
        """
        if not jobs:
            return
        if self.count == 1:
            if not self._is_started and self._start is not None:
                self._start(*self._given)
            self._is_started = True
            yield from ((number, work(job)) for number, job in enumerate(jobs))
            return
        waiting = deque(range(len(jobs)))
        while len(self._slots) < min(self.count, len(jobs)):
            self._slots.append(self._open())
        running: dict[Future[Made], _Running] = {}
        try:
            yield from self._collect(work, jobs, waiting, running)
        finally:
            if running:  # an exception, Ctrl-C too, or nobody wants the rest
                for slot in self._slots:
                    _end(slot)
                self._slots.clear()

    def _collect(
        self,
        work: Callable[[Job], Made],
        jobs: Sequence[Job],
        waiting: deque[int],
        running: dict[Future[Made], _Running],
    ) -> Iterator[tuple[int, Made | LostWorkerError]]:
        """Keep every worker busy until no job is left."""
        lost: set[int] = set()
        free = list(range(len(self._slots)))
        while waiting or running:
            while free and waiting:
                slot, number = free.pop(), waiting.popleft()
                running[self._submit(slot, work, jobs[number])] = _Running(slot, number, time.monotonic())
            # A timeout, because on Windows a wait without end cannot be interrupted, and to see who is overdue.
            done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
            for future in done:
                ran = running.pop(future)
                free.append(ran.slot)
                try:
                    yield ran.number, future.result()
                except BrokenProcessPool:
                    self._replace(ran.slot)
                    if ran.number in lost:
                        yield ran.number, LostWorkerError(f"its worker process {ran.fate} twice")
                    else:
                        lost.add(ran.number)
                        waiting.appendleft(ran.number)
            for ran in running.values():
                if time.monotonic() - ran.since > self._limit_s:
                    ran.fate = f"gave no answer within {self._limit_s:g} s"
                    _end(self._slots[ran.slot])

    def _submit(self, slot: int, work: Callable[[Job], Made], job: Job) -> Future[Made]:
        """Hand a job to a worker, to a new one if it died while it had nothing to do."""
        try:
            return self._slots[slot].submit(work, job)
        except BrokenProcessPool:
            self._replace(slot)
            return self._slots[slot].submit(work, job)

    def _replace(self, slot: int) -> None:
        if self._starts.pop(self._slots[slot]).exception() is not None:
            raise LostWorkerError("worker processes die before they begin to work: use --workers 1")
        _end(self._slots[slot])
        self._slots[slot] = self._open()

    def _open(self) -> ProcessPoolExecutor:
        """A process of its own."""
        with _one_thread_a_process(), _deaf_to_interrupt():
            slot = ProcessPoolExecutor(
                1,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(self._start, self._given),
            )
            # It starts with its first job: now, while all of that holds.
            self._starts[slot] = slot.submit(os.getpid)
        return slot


@dataclass
class _Running:
    """A job in a worker."""

    slot: int
    number: int
    since: float
    fate: str = "died"


def _end(slot: ProcessPoolExecutor) -> None:
    """End a worker process, whatever it is doing."""
    processes = list((getattr(slot, "_processes", None) or {}).values())
    slot.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.kill()
    for process in processes:  # a pool that was shut down without waiting forgets to wait later
        process.join(timeout=5.0)


def stream(work: Callable[[Job], Made], jobs: Iterable[Job], *, workers: int) -> Iterator[Made]:
    """Yield what `work` makes of each job, in order, in threads; a job starts shortly before its turn, so memory
    does not grow with their number."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
