"""A limit for code that may never end: a chat template is a program, and may come from anywhere.

A watching thread interrupts a thread that renders for too long, between two of Python's instructions.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class TooLong(BaseException):
    """What the interrupted thread raises; no template can catch it."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Let the block take so many seconds; blocks may not be nested.

    Raises:
        TooLong: it took longer.
    """
    thread, raised = threading.get_ident(), False
    _watch.begin(thread, time.monotonic() + seconds)
    try:
        yield
    except TooLong:
        raised = True
        raise
    finally:
        if _watch.end(thread) and not raised:  # it comes at once: the block has ended as the time did
            for _ in range(1000):
                time.sleep(0.01)


class _Watch:
    def __init__(self) -> None:
        self._ends: dict[int, float] = {}
        self._interrupted: set[int] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def begin(self, thread: int, end: float) -> None:
        with self._changed:
            self._interrupted.discard(thread)
            self._ends[thread] = end
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefdata-limit", daemon=True)
                self._thread.start()

    def end(self, thread: int) -> bool:
        """Whether the thread was interrupted."""
        with self._changed:
            self._ends.pop(thread, None)
            interrupted = thread in self._interrupted
            self._interrupted.discard(thread)
            return interrupted

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait(1.0)
                now = time.monotonic()
                for thread in [thread for thread, end in self._ends.items() if end <= now]:
                    del self._ends[thread]
                    self._interrupted.add(thread)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(TooLong))


_watch = _Watch()
os.register_at_fork(after_in_child=_watch.__init__)  # type: ignore[misc]
