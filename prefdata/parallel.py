"""Work in threads: ahead of the caller and in order (`prefetch_map`), or many requests at a time (`as_completed`)."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

T = TypeVar("T")
U = TypeVar("U")

MAX_WORKERS = 4
"""Maximum workers: each has frames in memory, and Polars has threads of its own."""


def usable_cores() -> int:
    """Count the cores that this process may use, up to `MAX_WORKERS`: usually each works on one frame at a time."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_WORKERS)


def prefetch_map(
    stream: Iterable[T],
    work: Callable[[T], U],
    workers: int = 1,
    *,
    most: int | None = None,
    begin: Callable[[], None] | None = None,
) -> Iterator[U]:
    """Apply `work` to each, in order; threads compute the next results while the caller uses this one.

    The stream itself is read in the caller's thread. When the caller leaves, work that has not begun is dropped.

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


_END: Any = object()


def as_completed(stream: Iterable[T], work: Callable[[T, Event], U], workers: int) -> Generator[U, None, None]:
    """Yield `work` of each, in the order of completion; at most `workers` are under way, each in a thread of its own.

    The stream is read in the caller's thread, as soon as a worker is free. The threads are for waiting (a server's
    responses) and do not keep the process: when the caller leaves, what is under way is abandoned, and the event that
    `work` gets beside its item is set.

    Raises:
        Whatever `work` raises, for the first that does.
    """
    tasks: SimpleQueue[T] = SimpleQueue()
    done: SimpleQueue[tuple[U | None, BaseException | None]] = SimpleQueue()
    left = Event()

    def serve() -> None:
        while (item := tasks.get()) is not _END:
            try:
                done.put((work(item, left), None))
            except BaseException as error:
                done.put((None, error))

    threads = busy = 0
    try:
        for item in stream:
            if busy == workers:
                yield _result(*done.get())
                busy -= 1
            if busy == threads:
                Thread(target=serve, name="prefdata-request", daemon=True).start()
                threads += 1
            tasks.put(item)
            busy += 1
        for _ in range(busy):
            yield _result(*done.get())
    finally:
        left.set()
        for _ in range(threads):
            tasks.put(_END)


def _result(value: Any, error: BaseException | None) -> Any:
    if error is not None:
        raise error
    return value
