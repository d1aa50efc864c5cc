"""Claims: several processes share one piece of work, on one machine or on many that see the same folder.

    PARTITION/_claims/worker-PROCESS-TOKEN      a process at work; it touches the file while it lives
    PARTITION/_claims/SHARE.GENERATION          a share that a worker took; the file holds the worker's name

A share is taken by creating its file, which only one process can do. A worker is dead at once when its process on this
machine is gone; a worker of another machine (or one that hangs) when its file did not change for `expires` seconds
while this process looked, by a clock that does not jump. So no machine's clock matters, and a worker that died before
we looked is found dead `expires` seconds after that, not sooner. A dead worker's share is taken by creating the next
generation of its file, which again only one can do.

What is done twice all the same (a machine that slept through its expiry) has the same keys and is kept once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from prefdata.storage.atomic import owner_is_alive, storage_errors, this_process

FOLDER = "_claims"

LeaseState = Literal["free", "left", "mine", "finished", "held"]
"""How a share was found: free (now ours), left by a dead worker (now ours), ours already, finished by another worker
that has gone, or held by one that lives."""

_POLL = 0.2
_END = "end"
"""The share that only the last worker takes."""

log = logging.getLogger("prefdata.storage")


@dataclass
class _Watched:
    """A file that another process touches: how it was last seen, since when, and whether it was ever seen to change."""

    stamp: tuple[int, bytes]
    since: float
    moved: bool = False


class WorkLeases:
    """One worker's claims on shares of the work in a folder; to be used as a context manager.

    Attributes:
        company: whether another worker was ever met.
    """

    def __init__(self, folder: Path, *, expires: float = 60.0) -> None:
        """Claims in `folder`; a worker that is silent for `expires` seconds counts as dead."""
        self.folder = folder / FOLDER
        self.company = False
        self._expires = expires
        self._me = f"worker-{this_process()}-{secrets.token_hex(4)}"
        self._watched: dict[Path, _Watched] = {}
        self._stop = threading.Event()
        self._writing = threading.Lock()
        self._taken: set[str] = set()
        self._state_now = ""

    def __enter__(self) -> Self:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / self._me).write_text("")
        threading.Thread(target=self._beats, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # What we took stays ours: others need not look at it again. Where we failed, they see that it is not done.
        with self._writing:
            self._stop.set()
        self._say("finished")
        if not self.others():
            shutil.rmtree(self.folder, ignore_errors=True)

    def acquire(self, share: str, *, again: bool = False) -> LeaseState:
        """Take a share unless another worker has it; `again` takes one that another had finished, too."""
        if share in self._taken:
            return "mine"
        took = self._take(share, again)
        if took in ("free", "left"):
            self._taken.add(share)
        return took

    def _take(self, share: str, again: bool) -> LeaseState:
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

        Of workers that finish at one moment exactly one is chosen; if it dies, the next. A worker that still works will
        end it itself: then none is. One of another machine that may be dead is watched until that is known.
        """
        self._say("ending")
        while self.acquire(_END) == "held":
            time.sleep(_POLL)
            if not self.folder.is_dir():
                return False
        if self.busy() is None:
            return True
        self._taken.discard(_END)
        for claim in self.folder.glob(f"{_END}.*"):
            claim.unlink(missing_ok=True)
        return False

    def wait_for_the_last(self) -> None:
        """Wait while another worker ends the work: it rewrites what we are about to read."""
        while any(self._state(claim) == "held" for claim in self.folder.glob(f"{_END}.*")):
            time.sleep(_POLL)

    def busy(self) -> str | None:
        """Return the name of another live worker with work left; wait where only heartbeats tell whether it lives."""
        warned, patience = False, time.monotonic() + self._expires / 6  # a live worker is seen within one heartbeat
        while names := self.others():
            for name in names:
                if owner_is_alive(_owner(name)) or self._watched[self.folder / name].moved:
                    return name
            if not warned and time.monotonic() > patience:
                log.warning("waiting up to %.0f s to see whether %s still works", self._expires, names[0])
                warned = True
            time.sleep(_POLL)
        return None

    def others(self) -> list[str]:
        """Return the names of other workers that have work left and are not known to be dead."""
        workers = self.folder.glob("worker-*") if self.folder.is_dir() else ()
        return [path.name for path in workers if path.name != self._me and self._lives(path.name, works=True)]

    def _create(self, path: Path) -> bool:
        try:
            with storage_errors(self.folder), path.open("x") as file:
                file.write(self._me)
        except FileExistsError:
            return False
        except FileNotFoundError:  # another worker ended the work, as it thought, and cleared up
            self.folder.mkdir(parents=True, exist_ok=True)
            self._say(self._state_now)
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
        if self._lives(worker):
            return "held"
        return "finished" if self._said(worker) == "finished" else "dead"

    def _lives(self, name: str, *, works: bool = False) -> bool:
        """Whether a worker is not known to be dead, and with `works` whether it has work left."""
        said = self._said(name)
        if said in (None, "finished") or (works and said == "ending"):
            return False
        return owner_is_alive(_owner(name)) is not False and self._silent(self.folder / name) < self._expires

    def _said(self, worker: str) -> str | None:
        try:
            return (self.folder / worker).read_text()
        except FileNotFoundError:
            return None

    def _say(self, state: str) -> None:
        self._state_now = state
        with contextlib.suppress(OSError):
            (self.folder / self._me).write_text(state)

    def _silent(self, path: Path) -> float:
        """Seconds for which a file has not changed while we looked: by our own clock, which does not jump."""
        try:
            with path.open("rb") as file:  # a network file system asks its server when a file is opened
                stamp = os.fstat(file.fileno()).st_mtime_ns, file.read()
        except FileNotFoundError:
            return float("inf")
        now = time.monotonic()
        seen = self._watched.setdefault(path, _Watched(stamp, now))
        if seen.stamp != stamp:
            self._watched[path] = _Watched(stamp, now, moved=True)
            return 0.0
        return now - seen.since

    def _beats(self) -> None:
        while not self._stop.wait(self._expires / 6):
            self.others()  # so that by the end it is known who lives
            with self._writing, contextlib.suppress(OSError):
                if self._stop.is_set():
                    return
                try:
                    os.utime(self.folder / self._me)
                except FileNotFoundError:  # somebody took us for dead, and cleared up
                    self.folder.mkdir(parents=True, exist_ok=True)
                    self._say(self._state_now)


def _owner(worker: str) -> str:
    """Return the process of a worker, named as by `disk.this_process`."""
    return worker.removeprefix("worker-").rpartition("-")[0]
