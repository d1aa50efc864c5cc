"""Work that Ctrl-C stops at once, also where it runs in C and Python's signal handler has to wait for it."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")

_NAME = "prefdata-interruptible"
GRACE = 0.4
"""Seconds that interrupted work gets to end by itself."""


def run_interruptibly(work: Callable[[], T], interrupt: Callable[[], None], grace: float = GRACE) -> T:
    """Return what `work()` returns, computed in a thread of its own.

    The main thread only waits, so that Ctrl-C reaches it. It then calls `interrupt()`, which makes the work stop,
    waits for at most `grace` seconds, and raises KeyboardInterrupt. Work that does not stop keeps its thread
    (`still_running`).
    """
    future: Future[T] = Future()
    thread = threading.Thread(target=_settle, args=(future, work), name=_NAME, daemon=True)
    thread.start()
    try:
        _wait_for(thread)
    except KeyboardInterrupt:
        interrupt()
        _wait_for(thread, grace)
        raise
    return future.result()


def _wait_for(thread: threading.Thread, seconds: float = math.inf) -> None:
    # In short steps: a library's signal handler may let a wait go on, and Python's runs between two steps.
    end = time.monotonic() + seconds
    while thread.is_alive() and time.monotonic() < end:
        thread.join(0.1)


def let_interrupt_write() -> None:
    """Let Ctrl-C interrupt a write to a full pipe, which Polars' signal handler would restart."""
    signal.siginterrupt(signal.SIGINT, True)


def still_running() -> bool:
    """Whether interrupted work has not ended yet."""
    return any(thread.name == _NAME for thread in threading.enumerate())


def _settle(future: Future[T], work: Callable[[], T]) -> None:
    try:
        future.set_result(work())
    except BaseException as error:
        future.set_exception(error)
