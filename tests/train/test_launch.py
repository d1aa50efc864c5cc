"""Processes that `--nproc` starts: one fails and all end, with its message and exit code; none outlives the command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from prefdata.errors import PrefdataError
from prefdata.train import launch as launching
from prefdata.train.launch import LOST, launch

START = "import os, sys, time, signal; rank = int(os.environ['RANK']); "


def started(code: str, count: int = 2) -> int:
    return launch(count, [sys.executable, "-c", START + code])


def test_each_process_has_its_place_and_the_first_has_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    names = "('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR')"
    assert started(f"print(*(os.environ[name] for name in {names}))", 3) == 0
    assert capfd.readouterr().out == "0 0 3 127.0.0.1\n"


def test_what_all_refuse_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert started("print('prefdata: no such file', file=sys.stderr); sys.exit(2)") == 2
    assert capfd.readouterr().err == "prefdata: no such file\n"


def test_what_one_process_refuses_is_printed_and_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    """The first one ends because the other did, whose message says why."""
    lost = f"time.sleep(0.1), sys.exit({LOST})"
    code = started(f"({lost}) if rank == 0 else (print('prefdata: no such file', file=sys.stderr), sys.exit(2))")
    assert code == 2
    assert "prefdata: no such file\nprefdata: process 2 of 2 failed" in capfd.readouterr().err


def test_a_process_that_is_killed_ends_those_that_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launching, "GRACE", 0.2)
    waits = f"(time.sleep(20), open({str(tmp_path / 'waited')!r}, 'w'))"
    with pytest.raises(PrefdataError, match="process 2 of 2 was ended by SIGKILL") as raised:
        started(f"{waits} if rank == 0 else os.kill(os.getpid(), signal.SIGKILL)")
    assert raised.value.exit_code == 1
    assert not (tmp_path / "waited").exists()


def test_a_loss_without_a_cause_is_a_failure() -> None:
    assert started(f"sys.exit({LOST})") == 1


def test_no_process_outlives_the_command_that_is_killed(tmp_path: Path) -> None:
    """Each writes its id; then `kill -9` of the one that started them."""
    worker = (
        "import os, sys, time; from prefdata.train.launch import end_with_parent; end_with_parent(); "
        f"open({str(tmp_path)!r} + '/' + os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(60)"
    )
    parent = f"import sys; from prefdata.train.launch import launch; launch(2, [sys.executable, '-c', {worker!r}])"
    running = subprocess.Popen([sys.executable, "-c", parent])
    until(lambda: len([file for file in tmp_path.iterdir() if file.read_text()]) == 2)
    running.kill()
    running.wait()
    until(lambda: not any(alive(int(file.read_text())) for file in tmp_path.iterdir()))


def until(holds: Any) -> None:
    limit = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < limit
        time.sleep(0.05)


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process}/status")
    return "State:\tZ" not in (status.read_text() if status.exists() else "")


@pytest.mark.slow
def test_the_command_starts_processes_and_says_which_one_was_killed(
    tmp_path: Path, make_pairs: Any, write_jsonl: Any, tiny_policy: Path
) -> None:
    """`kill -9` of the second process, found by the variable that it was started with."""
    data, out = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(12)), tmp_path / "out"
    options = ["--model", tiny_policy, "--out", out, "--epochs", 10000, "--save-every", 1, "--nproc", 2]
    command = [sys.executable, "-m", "prefdata.cli", "train", "dpo", data, *options]
    running = subprocess.Popen(list(map(str, command)), stderr=subprocess.PIPE, text=True)
    try:
        until(lambda: (out / "_checkpoint").exists() or running.poll() is not None)
        children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
        second = [child for child in children if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes()]
        os.kill(int(second[0]), signal.SIGKILL)
        _, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 1
    assert "prefdata: process 2 of 2 was ended by SIGKILL" in err
    assert "Traceback" not in err
    assert (out / "_checkpoint").exists()
