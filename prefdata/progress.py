"""Progress: a bar on a terminal, a line per 10% in a pipe, or a function of the caller's.

A step's function takes `progress=True`, or a function that is called as `f(done, total, **figures)`. Inside, work is
cut into named phases (loading the model, scoring); `done` of `total` units of a phase are finished.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock, Timer

SILENCE = 600.0
"""Seconds after which a line is printed in a pipe, even if less than 10% was done since the last one."""

PATIENCE = 10.0
"""Seconds after which the name of a phase is printed in a pipe, if there are no numbers yet."""


class Progress:
    """The progress of a step; this base class ignores it."""

    def phase(self, name: str) -> None:
        """Begin a phase, named by what is done in it."""

    def __call__(self, done: int, total: int, **figures: float) -> None:
        """Note that `done` of `total` units of the phase are finished; `figures` are running numbers (tokens, loss)."""


no_progress = Progress()
"""The progress that ignores everything."""

Watch = bool | Progress | Callable[..., None]
"""What a caller may give: True shows progress on stderr."""


@contextmanager
def watched(watch: Watch, step: str) -> Iterator[Progress]:
    """Yield the Progress that a caller asked for; `step` is the command, as typed."""
    if isinstance(watch, Progress):
        yield watch
    elif not isinstance(watch, bool):
        yield _Function(watch)
    elif not watch:
        yield no_progress
    elif sys.stderr.isatty() and find_spec("rich"):
        with _bar(step) as bar:
            yield bar
    else:
        with _lines(step) as lines:
            yield lines


class _Function(Progress):
    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, done: int, total: int, **figures: float) -> None:
        self._function(done, total, **figures)


class _Lines(Progress):
    """Progress for logs and pipes: the phases, and a line per 10% of each.

    Names of phases wait for the first number, for the end or for `PATIENCE` seconds: a step that fails at once says
    what is wrong, and no more.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._waiting: list[str] = []
        self._lock = Lock()
        self._timer: Timer | None = None
        self.phase("")

    def phase(self, name: str) -> None:
        """Begin a phase; its numbers follow as they are known."""
        self._phase, self._began, self._last, self._tenth = name, time.monotonic(), time.monotonic(), 0
        self._first: int | None = None
        if name:
            with self._lock:
                self._waiting.append(f"{self._step}: {name}")
                if self._timer is None:
                    self._timer = Timer(PATIENCE, self._flush)
                    self._timer.daemon = True
                    self._timer.start()

    def __call__(self, done: int, total: int, **figures: float) -> None:
        now, tenth = time.monotonic(), 10 * done // total if total else 0
        if self._first is None:
            self._first, self._tenth = done, tenth if done < total else 0  # earlier work is not printed
        if tenth == self._tenth and now - self._last < SILENCE:
            return
        self._last, self._tenth = now, tenth
        percent = f" ({done / total:.0%})" if total else ""
        count = f"{self._phase} {done:,} of {total:,}{percent}".strip()
        left = _left(done - self._first, total - done, now - self._began)
        self._flush(f"{self._step}: {', '.join([count, *shown(figures, now - self._began), *left])}")

    def close(self, *, failed: bool) -> None:
        """Print pending lines, unless the step has failed."""
        with self._lock:
            if failed:
                self._waiting.clear()
        self._flush()

    def _flush(self, *lines: str) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            for line in (*self._waiting, *lines):
                print(line, file=sys.stderr, flush=True)
            self._waiting.clear()


@contextmanager
def _lines(step: str) -> Iterator[Progress]:
    lines = _Lines(step)
    try:
        yield lines
    except BaseException:
        lines.close(failed=True)
        raise
    lines.close(failed=False)


def _left(done: int, left: int, seconds: float) -> list[str]:
    return [f"{seconds / done * left:,.0f} s left"] if done > 0 and left > 0 else []


def shown(figures: dict[str, float], seconds: float) -> list[str]:
    """Format the running numbers as texts; tokens as a rate."""
    rate = [f"{figures['tokens'] / max(seconds, 1e-9):,.0f} tokens/s"] if "tokens" in figures else []
    return rate + [f"{name} {value:,.4g}" for name, value in figures.items() if name != "tokens"]


@contextmanager
def _bar(step: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(step, total=None, figures="")

        class Bar(Progress):
            began = time.monotonic()

            def phase(self, name: str) -> None:
                self.began = time.monotonic()
                bars.reset(task, total=None, description=f"{step}: {name}", figures="")

            def __call__(self, done: int, total: int, **figures: float) -> None:
                numbers = " ".join(shown(figures, time.monotonic() - self.began))
                bars.update(task, completed=done, total=total or None, figures=numbers)

        yield Bar()
