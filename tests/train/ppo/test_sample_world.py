"""PPO on the sample world, whose true reward is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from prefdata.candidates.sample import sample
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.specs import FunctionSpec, SampleSpec
from prefdata.specs.ingest import IngestSpec
from prefdata.storage.run import Run
from prefdata.train.ppo.ppo import train_ppo
from prefdata.train.ppo.presets import PRESETS
from prefdata.train.ppo.specs import PpoSpec

DATA = Path(__file__).parents[3] / "sample_data"
pytestmark = pytest.mark.slow


@pytest.fixture
def world(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    ingest(run, [str(DATA / "prompts.jsonl")], IngestSpec())
    return run


def spec(**more: Any) -> PpoSpec:
    fixed = {"model": str(DATA / "policy"), "reward": (f"reward_model={DATA / 'reward_model'}",), "max_tokens": 96}
    return PpoSpec.parse({**fixed, **more})


def test_the_true_reward_on_held_out_prompts_rises(world: Run, tmp_path: Path) -> None:
    """8 steps of 128 responses: by the gold reward, which training never sees, on the test split."""
    asked = spec(batch_size=64, responses=2, lr=3e-4, minibatches=4, update_epochs=2)
    train_ppo(world, asked, tmp_path / "ppo")
    for name, model in (("before", DATA / "policy"), ("after", tmp_path / "ppo")):
        sample(world, SampleSpec(model=str(model), n=4, max_tokens=96, split="test", name=name))
    rank(world, FunctionSpec(function=f"{DATA / 'world.py'}:true_reward", name="truth", sampler=("before", "after")))
    scores = (
        pl.read_parquet(world.path / "scores/scorer=truth/*.parquet").group_by("sampler").agg(pl.col("score").mean())
    )
    mean = dict(scores.iter_rows())
    assert mean["after"] > mean["before"] + 0.3


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_run(preset: str, world: Run, tmp_path: Path) -> None:
    """With few prompts, and the critic and demonstrations that the source has."""
    small = {"batch_size": 8, "minibatches": 2, "max_tokens": 96, "max_steps": 2, "preset": preset}
    reward = f"reward_model={DATA / 'reward_model'}"
    more: dict[str, Any] = {}
    if preset in ("instructgpt", "deepspeed-chat"):
        more["critic"] = str(DATA / "reward_model")
    if preset == "instructgpt":
        more |= {"ptx": str(DATA / "demonstrations.jsonl"), "ptx_batch": 8}
    if preset == "llama2":
        safe = f"safe:function={DATA / 'world.py'}:true_reward"
        more |= {"reward": (f"help:{reward}", safe), "combine": "gate(safety=safe, helpful=help)"}
    done = train_ppo(world, spec(**{"name": preset, **small, **more}), tmp_path / preset)
    assert done.report.figures["steps"] == 2
