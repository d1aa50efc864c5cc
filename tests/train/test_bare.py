"""The trainer runs where only torch, transformers, pyarrow, safetensors and pydantic are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from forks import SERVER

from prefdata.train.specs import DpoSpec
from prefdata.train.train import train_dpo

BARE = """
import sys
for name in ("polars", "duckdb", "rich", "typer", "datasets", "vllm", "trl"):
    sys.modules[name] = None
from prefdata.train.train import train_dpo, train_sft
from prefdata.train.specs import DpoSpec, SftSpec
assert not {"torch", "transformers"} & set(sys.modules), "specs and runs must be light to import"
print(train_dpo(sys.argv[1], DpoSpec(model=sys.argv[2], lr=1e-3), sys.argv[3]).report.rows_out)
"""


def run(code: str, *arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=1800)


def train(data: Path, policy: Path, out: Path, after: float) -> None:
    """Train; with a number of seconds from 0 up, be killed that long after the reference's first example."""
    timers: list[threading.Timer] = []

    def progress(done: int, total: int, **figures: Any) -> None:
        if after >= 0 and not timers:
            timers.append(threading.Timer(after, os.kill, (os.getpid(), signal.SIGKILL)))
            timers[0].daemon = True
            timers[0].start()

    train_dpo(data, DpoSpec(model=str(policy), lr=1e-3, batch_size=2, epochs=2, save_every=1), out, progress=progress)


def exit_code(*arguments: Any) -> int | None:
    process = SERVER.Process(target=train, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def test_trains_without_the_rest_of_prefdata(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(4))
    done = run(BARE, data, tiny_policy, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4"


@pytest.mark.slow
def test_kill_9_and_the_same_command_gives_the_same_bits(
    tiny_policy: Path, tmp_path: Path, make_pairs: Any, write_jsonl: Any, read_metrics: Any
) -> None:
    """Killed at seven moments between the reference's first example and the end, whatever it was doing then."""
    data = write_jsonl(tmp_path / "p.jsonl", make_pairs(40))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert exit_code(data, tiny_policy, whole, -1) == 0
    codes = [exit_code(data, tiny_policy, cut, after) for after in (0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4)]
    assert codes.count(-signal.SIGKILL) >= 4
    assert exit_code(data, tiny_policy, cut, -1) == 0
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_metrics(cut) == read_metrics(whole)
    assert not list(cut.glob("_tmp-*"))
