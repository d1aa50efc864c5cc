"""The command line as a person uses it: a shell with prefdata on the PATH, and the commands that a document shows."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forks import Forked


def shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run one line in bash, in `cwd`, with the environment's commands and no network."""
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    env = {"PATH": path, "HOME": str(cwd), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(["bash", "-c", command], cwd=cwd, env=env, capture_output=True, text=True, timeout=900)


def console_commands(document: Path, kind: str = "") -> list[str]:
    """The prefdata commands of a document's ```console blocks (```console KIND for those that need more), in order."""
    fence = "console" + (f" {kind}" if kind else "")
    blocks = re.findall(rf"```{fence}\n(.*?)```", document.read_text("utf-8"), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ prefdata ")]


Command = subprocess.Popen[str] | Forked


def start(*arguments: object) -> subprocess.Popen[str]:
    """A prefdata command as a process of its own, with all its imports; `Forked` is quicker."""
    command = [sys.executable, "-m", "prefdata.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments: object, by: Callable[..., Command] = Forked, but: str | None = None) -> tuple[str, float]:
    """Run a prefdata command to its end; returns what it printed and the seconds that it took.

    `but` is a failure that may be its end instead: exit 1, with this text in the error.
    """
    began = time.monotonic()
    process = by(*arguments)
    out, err = process.communicate(timeout=1800)
    assert process.returncode == 0 or (but and process.returncode == 1 and but in err), err
    return out, time.monotonic() - began


def killed_at(process: Command, seconds: float) -> bool:
    """kill -9 a process after so many seconds; whether it was still at work."""
    try:
        process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return True
    return False
