"""The same work for many jobs, in processes or threads."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TypeVar

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
    with ExitStack() as stack:
        made: Iterable[Made] = map(work, jobs)
        if workers > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(workers, mp_context=context))
            made = pool.map(work, jobs, chunksize=8)
        for done, item in enumerate(made, start=1):
            yield item
            if on_progress is not None:
                on_progress(done, len(jobs))


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
