"""Killing us ends the processes of our engine; releasing the guard leaves them alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARENT = """
import subprocess, sys, time
from prefdata.engines.vllm.orphan_guard import OrphanGuard
before = subprocess.Popen(["sleep", "600"])
guard = OrphanGuard()
code = "import subprocess as s; p = s.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
grandchild = int(child.stdout.readline())
print(before.pid, child.pid, grandchild, guard._watcher.pid, flush=True)
if sys.argv[1] == "release":
    guard.release()
    print("released", flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def gone(pid: int, seconds: float = 120) -> bool:
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.1)
    return not alive(pid)


@pytest.fixture
def started():
    """`started(how)`: the parent process and the ids of its processes, all ended with the test."""
    processes: list[int] = []

    def start(how: str) -> tuple[subprocess.Popen, list[int]]:
        parent = subprocess.Popen([sys.executable, "-c", PARENT, how], stdout=subprocess.PIPE, text=True)
        found = [int(pid) for pid in parent.stdout.readline().split()]
        processes.extend([parent.pid, *found])
        if how == "release":
            assert parent.stdout.readline() == "released\n"
        return parent, found

    yield start
    for pid in processes:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_killing_us_ends_what_we_started_after_the_guard(started):
    parent, (before, child, grandchild, watcher) = started("watch")
    assert all(alive(pid) for pid in (before, child, grandchild, watcher))
    parent.kill()
    parent.wait()
    assert gone(child)
    assert gone(grandchild)
    assert gone(watcher)
    assert alive(before)


def test_a_released_guard_kills_nothing(started):
    parent, (before, child, grandchild, watcher) = started("release")
    assert gone(watcher)
    parent.kill()
    parent.wait()
    time.sleep(2)
    assert all(alive(pid) for pid in (before, child, grandchild))


VLLM = """
import sys, time
from prefdata.engines.protocol import Request, Sampling
from prefdata.engines.vllm.generator import VllmGenerator
from prefdata.models.files import identify
from prefdata.specs import EngineSpec
if __name__ == "__main__":
    spec = EngineSpec(max_num_seqs=16, engine_option=("enforce_eager=true", "kv_cache_memory_bytes=67108864"))
    engine = VllmGenerator(identify(sys.argv[1], "causal-lm"), spec)
    list(engine.generate(iter([Request("k", (1, 70), 0, Sampling(1.0, 1.0, 0, 4))])))
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.mark.vllm
def test_killing_us_ends_vllm(tiny_policy, tmp_path):
    script = tmp_path / "sampling.py"
    script.write_text(VLLM)
    marked = {**os.environ, "PREFDATA_TEST_MARK": str(tmp_path)}
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tiny_policy)], stdout=subprocess.PIPE, text=True, env=marked
    )
    assert parent.stdout.readline() == "ready\n"
    ours = [pid for pid in family(str(tmp_path)) if pid != parent.pid]
    assert len(ours) >= 2  # the guard and vLLM's own
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in ours)


def family(mark: str) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"PREFDATA_TEST_MARK={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found
