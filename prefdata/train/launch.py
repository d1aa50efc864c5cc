"""The processes of one training: started here by `--nproc`, or by torchrun, which sets the same variables.

Imports no torch: the process that starts the others only waits for them.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from prefdata.errors import PrefdataError, UsageError

LAUNCHED = "PREFDATA_LAUNCHED"
"""Set in the processes that `launch` starts: the id of the one that started them."""

LOST = 75
"""The exit code, in a process that `launch` started, of those that end because another one did."""

GRACE = 10.0
"""Seconds that the other processes have to end by themselves after one has failed."""

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of this process among those of one training.

    Attributes:
        rank: its number, from 0.
        local_rank: its number on this machine, which is that of its GPU.
        world: how many there are.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1


def place() -> Place:
    """Read the place of this process from the environment; without the variables it is alone.

    Raises:
        UsageError: some of the variables are missing or are no numbers.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world == "1":
        return Place()
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {world} in the environment, and {missing[0]} is not set. Start it with torchrun or "
            "--nproc, or unset WORLD_SIZE."
        )
    rank, local = os.environ["RANK"], os.environ.get("LOCAL_RANK", os.environ["RANK"])
    if not (world.isdecimal() and rank.isdecimal() and local.isdecimal() and int(rank) < int(world)):
        raise UsageError(f"RANK {rank} of WORLD_SIZE {world} in the environment is no process of a training.")
    return Place(int(rank), int(local), int(world))


def check_count(nproc: int) -> None:
    """Refuse a number of processes that is not the number of those that were started.

    Raises:
        UsageError: another number was started, or none by the command line.
    """
    world = place().world
    if nproc > 1 and nproc != world:
        raise UsageError(
            f"--nproc {nproc} in a process of {world}: leave it out where torchrun starts the processes."
            if world > 1
            else f"nproc {nproc}: only the command line starts processes. Start your own script with torchrun."
        )


def launch(count: int, command: Sequence[str]) -> int:
    """Run `command` in `count` processes with the variables of torchrun; returns the exit code.

    The first one has this terminal. When one fails, the others are ended.

    Raises:
        PrefdataError: a process was ended by a signal, or failed where the first one did not.
    """
    shared = {**os.environ, LAUNCHED: str(os.getpid()), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    shared["MASTER_PORT"] = str(_free_port())
    shared.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with TemporaryDirectory() as folder:
        started: list[subprocess.Popen[bytes]] = []
        errors = [Path(folder, f"{rank}.err") for rank in range(count)]
        try:
            for rank in range(count):
                started.append(_start(command, {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, errors[rank]))
            codes = _wait(started)
        finally:
            _end(started)
        return _result(codes, errors)


def end_with_parent() -> None:
    """End this process as soon as the one that launched it is gone, as after `kill -9`."""
    if (parent := os.environ.get(LAUNCHED)) is not None:
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _start(command: Sequence[str], environment: Mapping[str, str], errors: Path) -> subprocess.Popen[bytes]:
    if environment["RANK"] == "0":
        return subprocess.Popen(command, env=environment)
    with errors.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=file)


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int | None]:
    """Wait until all have ended, or some seconds after one has failed; returns their codes, None of those that run."""
    limit, interrupted = float("inf"), False
    while None in [process.poll() for process in processes] and time.monotonic() < limit:  # each is polled
        try:
            time.sleep(0.05)
        except KeyboardInterrupt:  # a terminal has sent it to all of them
            limit, interrupted = min(limit, time.monotonic() + GRACE), True
        if any(process.returncode for process in processes):
            limit = min(limit, time.monotonic() + GRACE)
    if interrupted:
        raise KeyboardInterrupt
    return [process.returncode for process in processes]


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End those that still run: asked first, killed after some seconds."""
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    limit = time.monotonic() + GRACE
    for process in processes:
        try:
            process.wait(max(0.1, limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _result(codes: Sequence[int | None], errors: Sequence[Path]) -> int:
    """Return the exit code of the first process, or raise for what ended another one."""
    causes = [rank for rank, code in enumerate(codes) if code not in (None, 0, LOST)]
    if not causes:
        return 1 if any(code != 0 for code in codes) else 0
    first = causes[0]
    code = codes[first] or 0
    name = f"process {first + 1} of {len(codes)}"
    if code < 0:
        raise PrefdataError(
            f"{name} was ended by {signal.Signals(-code).name}, and the others with it. Its memory may have been full. "
            "The last checkpoint is kept, and the same command continues."
        )
    if first and code != 130:
        text = errors[first].read_text("utf-8", "replace").strip()
        print(text, file=sys.stderr)
        print(f"prefdata: {name} failed, and the others were ended. Its message is above.", file=sys.stderr)
    return code
