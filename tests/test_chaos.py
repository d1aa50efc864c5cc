"""kill -9 at random moments in sample, rank, pair and train: the same command continues, and the result is the same.

Every command is first run undisturbed in one run directory; in another it is to be killed ten times at random moments
of its life (a run that is done sooner is not counted), then left to finish. The finished tables must hold the same
rows, and the trained model the same bytes.
"""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import polars as pl
import pytest
from forks import Forked
from shells import finish, killed_at, start

KILLS = 10
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def finish_in_spite_of(kills: int, lasts: float, dice: random.Random, *arguments: object) -> int:
    """Kill the command `kills` times at random moments, then let it finish; returns how often it was really killed."""
    killed = 0
    for number in range(kills):
        began = time.monotonic()
        process = start(*arguments) if number == 0 and arguments[0] == "train" else Forked(*arguments)
        if killed_at(process, dice.uniform(0.1, 0.6) * lasts):
            killed += 1
        else:
            lasts = min(lasts, time.monotonic() - began)  # there is less left to do than in the undisturbed run
    finish(*arguments)
    return killed


def table(run: Path, name: str, key: str) -> pl.DataFrame:
    return pl.read_parquet(f"{run}/{name}/*/part-*.parquet", hive_partitioning=False).sort(key)


def commands(run: Path, prompts: Path, policy: Path, reward: Path) -> dict[str, list[object]]:
    train = ["--lr", "1e-3", "--epochs", "1", "--batch-size", "16", "--save-every", "4"]
    return {
        "ingest": ["ingest", run, prompts, "--test", "0"],
        "sample": ["sample", run, "--model", policy, "-n", "16", "--max-tokens", "60", "--name", "policy"],
        "rank": ["rank", run, "--reward-model", reward, "--name", "reward"],
        "select": ["select", run, "--method", "top-k", "--k", "3", "--truncated", "keep"],
        "pair": ["pair", run, "--strategy", "all", "--truncated", "keep"],
        "train": ["train", "dpo", run, "--model", policy, "--out", run / "models/dpo", *train],
    }


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("prompts") / "asked.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(250)))
    return file


def test_killed_at_random_moments(prompts: Path, tiny_policy: Path, tiny_reward_model: Path, tmp_path: Path) -> None:
    calm, chaos = tmp_path / "calm", tmp_path / "chaos"
    dice = random.Random(7)
    killed = {}
    for (name, undisturbed), (_, disturbed) in zip(
        commands(calm, prompts, tiny_policy, tiny_reward_model).items(),
        commands(chaos, prompts, tiny_policy, tiny_reward_model).items(),
        strict=True,
    ):
        _, lasts = finish(*undisturbed)
        kills = KILLS if name in ("sample", "rank", "pair", "train") else 0
        killed[name] = finish_in_spite_of(kills, lasts, dice, *disturbed)
        assert "nothing to do" in finish(*disturbed)[0]
    assert sum(killed.values()) >= 20, killed

    for name, key in (
        ("candidates", "candidate_id"),
        ("scores", "candidate_id"),
        ("selections", "candidate_id"),
        ("pairs", "pair_id"),
    ):
        mine, whole = table(chaos, name, key), table(calm, name, key)
        assert mine[key].is_unique().all()
        exact = [c for c in whole.columns if whole[c].dtype != pl.Float64]
        assert mine.select(exact).equals(whole.select(exact)), name
        for column in set(whole.columns) - set(exact):
            difference = (mine[column] - whole[column]).abs().max()
            assert difference is None or difference < 1e-4, (name, column)
    for file in ("model.safetensors", "config.json"):
        assert (chaos / "models/dpo" / file).read_bytes() == (calm / "models/dpo" / file).read_bytes()
    metrics = [
        [{k: v for k, v in json.loads(line).items() if "per_second" not in k and k != "seconds"} for line in lines]
        for lines in ((r / "models/dpo/metrics.jsonl").read_text().splitlines() for r in (chaos, calm))
    ]
    assert [m["step"] for m in metrics[0]] == [m["step"] for m in metrics[1]]
    left = [path for path in chaos.rglob("_*") if path.name not in ("_SUCCESS", "_spec.json", "_reference")]
    assert left == []


def test_ctrl_c_keeps_what_is_finished(prompts: Path, tiny_policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    finish("ingest", run, prompts, "--test", "0")
    command = ["sample", run, "--model", tiny_policy, "-n", "400", "--max-tokens", "60", "--name", "policy"]
    process = start(*command)
    while not list(run.glob("candidates/*/part-*.parquet")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert time.monotonic() - began < 300  # not the minutes of the whole work
    assert err.endswith("prefdata: stopped; what was finished is kept, and the same command continues.\n")
    assert "Traceback" not in err
    assert table(run, "candidates", "candidate_id").height > 0
