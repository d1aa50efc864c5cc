"""prefdata commands as processes that are forked from one that has imported everything.

Kill tests start a hundred processes, and each would spend seconds of CPU time on imports. A forked process is as real:
its own pid, its own files, ended by the same signals.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from pathlib import Path

IMPORTED = [
    "prefdata.cli.main",
    "prefdata.engines.hf.generator",
    "prefdata.scorers.judge.judge",
    "prefdata.scorers.causal_lm.pairwise",
    "prefdata.scorers.classifier.hf",
    "prefdata.train.ppo.loop",
    "prefdata.train.train",
    "torch",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
]


PART_SECONDS = 0.2
"""How often these commands write a part: seconds of work then have as many moments to be killed at as minutes."""


def _server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


SERVER = _server()


class Forked:
    """A command's process, with the part of Popen's interface that the tests use."""

    def __init__(self, *arguments: object, environment: Mapping[str, str] | None = None) -> None:
        """Start `prefdata ARGUMENTS`, with some variables more in its environment."""
        self._folder = tempfile.TemporaryDirectory()
        self._printed = [Path(self._folder.name, name) for name in ("out", "err")]
        words = [str(argument) for argument in arguments]
        self._process = SERVER.Process(
            target=_run, args=(words, *map(str, self._printed), dict(environment or {})), daemon=True
        )
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """As Popen's."""
        return self._process.exitcode

    def poll(self) -> int | None:
        """As Popen's."""
        return self._process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        """As Popen's."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """As Popen's: stdout and stderr at the end, TimeoutExpired where it does not end in so many seconds."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("prefdata", timeout or 0)
        out, err = (path.read_text("utf-8") if path.exists() else "" for path in self._printed)
        return out, err


def _run(arguments: list[str], out: str, err: str, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    from prefdata.cli.main import main
    from prefdata.storage.run import PartWriter

    PartWriter.__init__.__kwdefaults__["seconds"] = PART_SECONDS
    sys.argv = ["prefdata", *arguments]
    main()
