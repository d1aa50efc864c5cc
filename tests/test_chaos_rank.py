"""rank under fire: kill -9 at random moments, alone and beside another process: every candidate scored once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
SLOW = """
import time
def slow(messages, response):
    time.sleep(0.002)
    return len(response)
"""


def start(*arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "prefdata.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def stored(run: Path) -> pl.DataFrame:
    parts = sorted(run.glob("scores/scorer=slow/part-*.parquet"))
    empty = pl.DataFrame(schema={"candidate_id": pl.String, "score": pl.Float64})
    frames = [pl.read_parquet(part, hive_partitioning=False, columns=empty.columns) for part in parts]
    return pl.concat(frames) if frames else empty


def test_killed_at_random_moments(tmp_path: Path) -> None:
    run, dice = tmp_path / "run", random.Random(3)
    file, function = tmp_path / "asked.jsonl", tmp_path / "f.py"
    rows = ({"prompt": f"Say {i}.", "responses": [f"{i}-{k}" for k in range(10)]} for i in range(500))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    function.write_text(SLOW)
    assert start("ingest", run, file, "--as", "candidates").wait(60) == 0
    command = ["rank", run, "--function", f"{function}:slow"]
    steady, killed, before = start(*command), 0, stored(run)
    for _ in range(6):
        process = start(*command)
        time.sleep(dice.uniform(0.5, 3.0))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.communicate()
        now = stored(run)
        assert before.join(now, on=["candidate_id", "score"], how="anti").height == 0
        before = now
    assert killed >= 3
    _, err = steady.communicate(timeout=300)
    assert steady.returncode == 0, err
    assert start(*command).wait(120) == 0
    found = stored(run)
    assert found.height == 5000
    assert found["candidate_id"].is_unique().all()
    assert [path.name for path in run.rglob("_*") if path.name not in ("_SUCCESS", "_spec.json")] == []
