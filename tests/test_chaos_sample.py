"""sample under fire: kill -9 at random moments, alone and beside another process, on transformers and on the real vLLM.

What must hold afterwards: every candidate is there exactly once, and each is what an undisturbed run draws. What must
hold in between: a row on disk is never drawn again, so that only what was in flight is lost.
"""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import polars as pl
import pytest
from forks import Forked
from kept_engines import SMALL
from shells import finish, killed_at, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PROMPTS, N = 200, 16
ON_VLLM = [*(word for option in SMALL for word in ("--engine-option", option)), "--max-num-seqs", "64"]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    file = tmp_path / "asked.jsonl"
    lines = (json.dumps({"prompt": f"Say {i}. " * (1 + i % 5)}) + "\n" for i in range(PROMPTS))
    file.write_text("".join(lines))
    for name in ("calm", "run"):
        finish("ingest", tmp_path / name, file, "--test", "0")
    return tmp_path / "run"


def command(run: Path, policy: Path, engine: str) -> list[object]:
    settings = ["-n", N, "--max-tokens", "60", "--engine", engine, "--name", "policy", "--temperature", "0.9:1.1"]
    return ["sample", run, "--model", policy, *settings, *(ON_VLLM if engine == "vllm" else [])]


def stored(run: Path) -> pl.DataFrame:
    """Every row as it lies in the parts, twice if it is there twice."""
    parts = sorted(run.glob("candidates/sampler=policy/part-*.parquet"))
    empty = pl.DataFrame(schema={"candidate_id": pl.String, "text": pl.String, "token_ids": pl.List(pl.Int32)})
    frames = [pl.read_parquet(part, hive_partitioning=False, columns=empty.columns) for part in parts]
    return pl.concat(frames) if frames else empty


@pytest.mark.parametrize(
    ("engine", "kills"), [("transformers", 30), pytest.param("vllm", 2, marks=pytest.mark.vllm)], ids=lambda x: str(x)
)
def test_killed_at_random_moments(run: Path, tiny_policy: Path, engine: str, kills: int) -> None:
    """The first process is started as a person starts it, the others on transformers are forked."""
    calm = run.with_name("calm")
    by = start if engine == "vllm" else Forked
    _, lasts = finish(*command(calm, tiny_policy, engine), by=by)
    dice, killed, before = random.Random(11), 0, stored(run)
    while killed < kills:
        process = (by if killed else start)(*command(run, tiny_policy, engine))
        killed += killed_at(process, dice.uniform(0.3, 1.05) * lasts)
        now = stored(run)
        assert now["candidate_id"].is_unique().all()
        assert before.join(now, on=["candidate_id", "text"], how="anti").height == 0  # nothing is lost or changed
        before = now
        if now.height == PROMPTS * N:  # done before the kills were: begin anew
            finish(*command(run, tiny_policy, engine), by=by)
            shutil.rmtree(run / "candidates")
            before = stored(run)
    finish(*command(run, tiny_policy, engine), by=by)
    mine, whole = stored(run), stored(calm)
    assert mine.height == PROMPTS * N
    assert mine["candidate_id"].is_unique().all()
    assert mine["candidate_id"].sort().equals(whole["candidate_id"].sort())
    differ = mine.join(whole, on="candidate_id", suffix="_calm").filter(pl.col("token_ids") != pl.col("token_ids_calm"))
    # Other neighbours in a batch may round differently: in float32 that moves one draw in thousands, at most.
    assert differ.height <= PROMPTS * N / 1000
    assert [path.name for path in run.rglob("_*") if path.name not in ("_SUCCESS", "_spec.json")] == []


def test_killed_beside_another_process(run: Path, tiny_policy: Path) -> None:
    """Two processes share the work; one of them is killed again and again."""
    calm = run.with_name("calm")
    _, lasts = finish(*command(calm, tiny_policy, "transformers"))
    dice = random.Random(5)
    steady = Forked(*command(run, tiny_policy, "transformers"))
    killed = sum(
        killed_at(Forked(*command(run, tiny_policy, "transformers")), dice.uniform(0.4, 1.0) * lasts) for _ in range(3)
    )
    _, err = steady.communicate(timeout=1800)
    assert steady.returncode == 0, err
    finish(*command(run, tiny_policy, "transformers"))
    assert killed >= 1
    assert stored(run)["candidate_id"].sort().equals(stored(calm)["candidate_id"].sort())
    assert [path.name for path in run.rglob("_*") if path.name not in ("_SUCCESS", "_spec.json")] == []
