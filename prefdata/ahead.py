"""Work in threads, ahead of the caller: what comes out does not depend on how many there are."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")

MOST_CORES = 4
"""Cores that frames are worked on by at a time: each has frames in memory, and Polars has threads of its own."""


def cores() -> int:
    """The cores that this process may use, up to `MOST_CORES`: as a rule each works on one frame at a time."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_CORES)


def ahead(
    stream: Iterable[T],
    work: Callable[[T], U],
    workers: int = 1,
    *,
    most: int | None = None,
    begin: Callable[[], None] | None = None,
) -> Iterator[U]:
    """`work` of each, in order, that of the next ones in threads while the caller is busy with this one.

    The stream itself is read in the caller's thread. When the caller leaves, what has not begun is not done.

    Args:
        stream: what is worked on.
        work: what is done; it runs in several threads at a time if there are several workers.
        workers: threads.
        most: how many results are waited for or not fetched yet, at most; as many as workers unless given.
        begin: done once in each thread.
    """
    threads = ThreadPoolExecutor(workers, "prefdata-ahead", begin)
    waiting: deque[Future[U]] = deque()
    try:
        for one in stream:
            waiting.append(threads.submit(work, one))
            if len(waiting) > (most or workers):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        threads.shutdown(cancel_futures=True)
