"""The same work for many jobs, in processes or threads."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

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
    if start is not None:
        start(*given)


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


def stream(work: Callable[[Job], Made], jobs: Iterable[Job], *, workers: int) -> Iterator[Made]:
    """What `work` makes of each job, in order, in threads; a job is taken only when it is nearly its turn, so that
    memory does not grow with their number."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Made]] = deque()
        for job in jobs:
            waiting.append(pool.submit(work, job))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
