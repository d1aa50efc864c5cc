"""A guard that ends an engine's processes when the command is killed.

vLLM computes in processes of its own. They survive a parent that was killed (`kill -9`, out of memory), keep the GPU's
memory, and the command that should continue the work cannot start. The guard is a small process beside us that notices
our end and kills every process that carries our mark in its environment. Linux only, as vLLM is.

This file is also the guard's program, and so it imports the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

_MARK = "PREFDATA_ENGINE_OF"
_POLL_SECONDS = 0.5
_PASSES = 6


class OrphanGuard:
    """A guard of the processes that are started between its creation and its release."""

    def __init__(self) -> None:
        """Start the guard; what this process starts from now on carries the mark."""
        token = uuid.uuid4().hex
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, str(os.getpid()), token], start_new_session=True
        )
        os.environ[_MARK] = token

    def release(self) -> None:
        """Stop watching; nothing is killed."""
        os.environ.pop(_MARK, None)
        self._watcher.terminate()
        self._watcher.wait()


def _watch(parent: int, token: str) -> None:
    """Wait until `parent` is gone, then kill what carries the mark; twice and more, for what was just starting."""
    while os.getppid() == parent:
        time.sleep(_POLL_SECONDS)
    for _ in range(_PASSES):
        for pid in _marked(f"{_MARK}={token}".encode()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def _marked(mark: bytes) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


if __name__ == "__main__":
    _watch(int(sys.argv[1]), sys.argv[2])
