"""Claims: several processes share one piece of work, on one machine or on many that see the same folder.

    PARTITION/_claims/worker-HOST-PID-TOKEN     a process at work; it touches the file while it lives
    PARTITION/_claims/SHARE.GENERATION          a share that a worker took; the file holds the worker's name

A share is taken by creating its file, which only one process can do. A worker is dead when its file was not touched for
`expires` seconds (by the clock of the file system, which all see alike), or at once when its process on this machine is
gone. A dead worker's share is taken by creating the next generation of its file, which again only one can do.

What is done twice all the same (a machine that slept through its expiry) has the same keys and is kept once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Literal, Self

from prefdata.disk import refused

FOLDER = "_claims"

Took = Literal["free", "left", "mine", "finished", "held"]
"""How a share was found: free (now ours), left by a dead worker (now ours), ours already, finished by another worker
that has gone, or held by one that lives."""

_POLL = 0.2
_END = "end"
"""The share that only the last worker takes."""


class Claims:
    """One worker's claims on shares of the work in a folder; to be used as a context manager.

    Attributes:
        company: whether another worker was ever met.
    """

    def __init__(self, folder: Path, *, expires: float = 60.0) -> None:
        """Claims in `folder`; a worker that is silent for `expires` seconds counts as dead."""
        self.folder = folder / FOLDER
        self.company = False
        self._expires = expires
        self._host = socket.gethostname()
        self._me = f"worker-{self._host}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._stop = threading.Event()
        self._taken: set[str] = set()

    def __enter__(self) -> Self:
        with refused(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / self._me).write_text("")
        threading.Thread(target=self._beats, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # What we took stays ours: others need not look at it again. Where we failed, they see that it is not done.
        self._stop.set()
        self._say("finished")
        if not self.others():
            shutil.rmtree(self.folder, ignore_errors=True)

    def take(self, share: str, *, again: bool = False) -> Took:
        """Take a share unless another worker has it; `again` takes one that another had finished, too."""
        if share in self._taken:
            return "mine"
        took = self._take(share, again)
        if took in ("free", "left"):
            self._taken.add(share)
        return took

    def _take(self, share: str, again: bool) -> Took:
        generation = 0
        while True:
            if self._create(self.folder / f"{share}.{generation}"):
                return "left" if generation else "free"
            state = self._state(self.folder / f"{share}.{generation}")
            if state == "held" or (state == "finished" and not again):
                return state
            generation += 1

    def last(self) -> bool:
        """Whether this worker, which has nothing left to do, is the one to end the whole work; waits for one that does.

        Of workers that finish at one moment exactly one is told so; if it dies, the next. A worker that still works
        will end it itself: then nobody is told so.
        """
        self._say("ending")
        while self.take(_END) == "held":
            time.sleep(_POLL)
            if not self.folder.is_dir():
                return False
        if not self.others():
            return True
        self._taken.discard(_END)
        for claim in self.folder.glob(f"{_END}.*"):
            claim.unlink(missing_ok=True)
        return False

    def wait_for_the_last(self) -> None:
        """Wait while another worker ends the work: it rewrites what we are about to read."""
        while any(self._state(claim) == "held" for claim in self.folder.glob(f"{_END}.*")):
            time.sleep(_POLL)

    def others(self) -> list[str]:
        """The names of other workers that live and work."""
        workers = self.folder.glob("worker-*") if self.folder.is_dir() else ()
        return [path.name for path in workers if path.name != self._me and self._worker(path.name, works=True)]

    def _create(self, path: Path) -> bool:
        try:
            with refused(self.folder), path.open("x") as file:
                file.write(self._me)
        except FileExistsError:
            return False
        except FileNotFoundError:  # another worker ended the work, as it thought, and cleared up
            self.folder.mkdir(parents=True, exist_ok=True)
            self._say("")
            return self._create(path)
        return True

    def _state(self, claim: Path) -> Literal["held", "finished", "dead"]:
        try:
            worker = claim.read_text()
        except FileNotFoundError:
            return "dead"
        self.company = True
        if not worker:  # it is being written at this moment, or its writer died before it wrote
            return "held" if self._silent(claim) < self._expires else "dead"
        if self._worker(worker):
            return "held"
        return "finished" if self._said(worker) == "finished" else "dead"

    def _worker(self, name: str, *, works: bool = False) -> bool:
        """Whether a worker lives, and with `works` whether it has work left."""
        host, _, pid = name.removeprefix("worker-").rpartition("-")[0].rpartition("-")
        said = self._said(name)
        if said in (None, "finished") or (works and said == "ending"):
            return False
        if host == self._host and pid.isdigit() and not _alive(int(pid)):
            return False
        return self._silent(self.folder / name) < self._expires

    def _said(self, worker: str) -> str | None:
        try:
            return (self.folder / worker).read_text()
        except FileNotFoundError:
            return None

    def _say(self, state: str) -> None:
        with contextlib.suppress(OSError):
            (self.folder / self._me).write_text(state)

    def _silent(self, path: Path) -> float:
        try:
            return self._now() - path.stat().st_mtime
        except FileNotFoundError:
            return float("inf")

    def _now(self) -> float:
        path = self.folder / self._me
        with contextlib.suppress(OSError):
            os.utime(path)
            return path.stat().st_mtime
        return 0.0

    def _beats(self) -> None:
        while not self._stop.wait(self._expires / 6):
            with contextlib.suppress(OSError):
                os.utime(self.folder / self._me)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
