"""Worker processes with a time limit: code that may hang scores responses in them, and never stops the rest.

Each worker holds one response at a time. One that has not answered within the limit is killed with everything it
started, and replaced; so is one that dies. A worker ends by itself where the process that started it is gone: at once
if it waits, by its own alarm if it hangs (without what its code started). What the code prints goes to standard error.

    python -m prefdata.scorers.rules.subprocess_pool FD LIMIT MODULE:NAME ARGUMENT …  (by `SubprocessPool`, not by hand)
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any, NoReturn

from prefdata import ids
from prefdata.errors import EngineError, InputError
from prefdata.scorers.protocol import Score, ScoringItem

START_LIMIT = 120.0
"""Seconds that a worker may take to start and to load the code."""

DEATHS = 200
"""Workers that may die one after the other, without a score in between, before it is given up."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    deadline: float
    item: ScoringItem | None = None
    ready: bool = False


class SubprocessPool:
    """Processes that score items with `MODULE:NAME(*arguments)`, a call that gives a function Item -> Scored."""

    def __init__(self, maker: str, *arguments: str, limit: float, count: int = 2) -> None:
        """Start nothing yet; `limit` is in seconds an item."""
        self._command = [f"{limit!r}", maker, *arguments]
        self._limit = limit
        self._count = max(1, count)
        self._code = " ".join(arguments) or maker
        self._deaths = 0
        self._workers: list[_Worker] = []

    def start(self) -> None:
        """Start one worker and wait until it has loaded the code.

        Raises:
            As `score`.
        """
        worker = self._start()
        while not worker.ready:
            if not worker.pipe.poll(max(0.0, worker.deadline - time.monotonic())):
                self._never_started(worker)
            self._greeted(worker)

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item once, in the order of completion; at most one item a worker is pulled ahead.

        Raises:
            InputError: the code cannot be loaded; with its own message.
            EngineError: a worker did not start, or `DEATHS` of them died one after the other.
        """
        source = iter(items)
        try:
            more = True
            while more or any(worker.item for worker in self._workers):
                more = more and self._hand_out(source)
                yield from self._collect()
        finally:
            for worker in [w for w in self._workers if w.item is not None]:  # the reader stopped in between
                self._end(worker)

    def close(self) -> None:
        """End the processes."""
        for worker in list(self._workers):
            self._end(worker)

    def _hand_out(self, source: Iterator[ScoringItem]) -> bool:
        """Give each free worker an item, starting workers up to the count; whether there may be more items."""
        while True:
            free = next((w for w in self._workers if w.ready and w.item is None), None)
            starting = sum(not w.ready for w in self._workers)
            if free is None and (len(self._workers) >= self._count or starting):
                return True
            item = next(source, None)
            if item is None:
                return False
            self._give(free or self._start(), item)

    def _give(self, worker: _Worker, item: ScoringItem) -> None:
        worker.item = item
        if worker.ready:
            worker.deadline = time.monotonic() + self._limit
            try:
                worker.pipe.send_bytes(json.dumps(asdict(item)).encode())
            except OSError:  # it died while it waited, and not of this item
                self._end(worker)
                self._start().item = item

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        fd = theirs.fileno()
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(fd), *self._command],
            pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=2, start_new_session=True,
            env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
        theirs.close()
        worker = _Worker(process, ours, time.monotonic() + START_LIMIT)
        self._workers.append(worker)
        return worker

    def _collect(self) -> Iterator[Score]:
        """Wait until something happens, and give what is finished, late or dead."""
        busy = {w.pipe: w for w in self._workers if w.item is not None}
        if not busy:
            return
        first = min(w.deadline for w in busy.values())
        for pipe in wait(list(busy), max(0.0, first - time.monotonic())):
            yield from self._receive(busy[pipe])  # type: ignore[index]
        now = time.monotonic()
        for worker in [w for w in self._workers if w.item is not None and w.deadline <= now]:
            if not worker.ready:
                self._never_started(worker)
            yield from self._receive(worker) if worker.pipe.poll() else self._lost(worker, "timeout")

    def _receive(self, worker: _Worker) -> Iterator[Score]:
        item = worker.item
        assert item is not None
        if not worker.ready:
            self._greeted(worker)
            self._give(worker, item)
            return
        try:
            message = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            yield from self._lost(worker, "worker_died")
            return
        worker.item, self._deaths = None, 0
        yield Score(item.key, *message)

    def _greeted(self, worker: _Worker) -> None:
        """Take the first message of a worker: it is ready, or says why it never will be."""
        try:
            refused = json.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            self._end(worker)
            code = worker.process.returncode
            raise EngineError(f"{self._code} ended its process while it was loaded (exit code {code}).") from None
        if refused is not None:
            self._end(worker)
            raise InputError(refused)
        worker.ready = True

    def _never_started(self, worker: _Worker) -> NoReturn:
        self._end(worker)
        raise EngineError(f"{self._code} was not loaded within {START_LIMIT:.0f} s. Run the command again.")

    def _lost(self, worker: _Worker, reason: str) -> Iterator[Score]:
        item = worker.item
        assert item is not None
        self._end(worker)
        code = worker.process.returncode
        self._deaths = self._deaths + 1 if reason == "worker_died" else 0
        if self._deaths == DEATHS:
            raise EngineError(f"{self._code} ended its process {DEATHS} times one after the other (exit code {code}).")
        details = {"limit_seconds": self._limit} if reason == "timeout" else {"exit_code": code}
        yield Score(item.key, None, reason, ids.text_hash(item.response), details)

    def _end(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.process.pid, signal.SIGKILL)  # its own session: with whatever it started
        worker.process.wait()
        worker.pipe.close()


def _main(fd: str, limit: str, maker: str, *arguments: str) -> None:
    """Run a worker: load, report that, then score one item after the other until the pipe is closed."""
    pipe: Connection[Any, Any] = Connection(int(fd))
    module, _, name = maker.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)(*arguments)
    except InputError as error:
        _say(pipe, str(error))
        return
    _say(pipe, None)
    me = os.getpid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            item = ScoringItem(**json.loads(pipe.recv_bytes()))
            # The kernel ends this process even where the code holds the interpreter and no parent is left to kill it.
            signal.setitimer(signal.ITIMER_REAL, float(limit) + 5)
            found = function(item)
            if os.getpid() != me:  # the code has forked, and returns twice
                os._exit(0)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _say(pipe, [found.score, found.reason, found.text_hash, found.details])


def _say(pipe: Connection[Any, Any], message: Any) -> None:
    """JSON and not pickles: no object of the code's is unpickled in the parent process."""
    pipe.send_bytes(json.dumps(message).encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
