"""`train ppo` killed with SIGKILL again and again, and continued by the same command."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from forks import Forked
from safetensors.torch import load_file
from shells import finish, killed_at


@pytest.mark.slow
def test_a_training_that_is_killed_ends_with_the_same_bits(run: Path, spec: Any, tmp_path: Path) -> None:
    """Weights, metrics, and the run's candidates and scores: each response once."""
    asked = spec()

    def command(name: str) -> tuple[object, ...]:
        settings = ("--max-tokens", "12", "--batch-size", "2", "--epochs", "6", "--lr", "1e-3", "--save-every", "1")
        more = ("--update-epochs", "2", "--minibatches", "2", "--kl-target", "0.1", "--ema", "0.9", "--name", name)
        base = ("train", "ppo", run, "--model", asked.model, "--reward", asked.reward[0], "--split", "all")
        return (*base, *settings, *more, "--out", tmp_path / name)

    finish(*command("steady"))
    dice, kills = random.Random(7), 0
    for steps in (1, 4, 5, 9, 14):
        process, metrics = Forked(*command("killed")), tmp_path / "killed/metrics.jsonl"
        while process.poll() is None and not (metrics.exists() and metrics.read_bytes().count(b"\n") >= steps):
            time.sleep(0.01)
        kills += killed_at(process, dice.uniform(0, 0.1))
    finish(*command("killed"))
    assert kills >= 3
    steady, killed = (load_file(tmp_path / name / "model.safetensors") for name in ("steady", "killed"))
    assert all((steady[name] == killed[name]).all() for name in steady)
    assert (tmp_path / "steady/metrics.jsonl").read_text() == (tmp_path / "killed/metrics.jsonl").read_text()
    for table, by in (("candidates", "sampler"), ("scores", "scorer")):
        both = [
            pl.read_parquet(run / f"{table}/{by}={name}/*.parquet").sort("candidate_id").drop("sampler", strict=False)
            for name in ("steady", "killed")
        ]
        assert both[0].height == 36
        assert both[0].equals(both[1])
