"""A run of six prompts, and the settings of a short training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata.specs.ingest import IngestSpec
from prefdata.storage.run import Run
from prefdata.train.ppo.specs import PpoSpec

REWARD = """def brevity(prompt, response):
    return -len(response) / 10

def size(prompt, response):
    return len(response)

def vowels(prompt, response):
    return float(sum(response.count(vowel) for vowel in "aeiou"))
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    from prefdata.prompts.ingest import ingest

    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Review {i}"}) + "\n" for i in range(6)))
    ingest(Run(tmp_path / "run"), [str(prompts)], IngestSpec())
    return tmp_path / "run"


@pytest.fixture
def spec(make_policy: Any, tmp_path: Path) -> Any:
    model = make_policy(tmp_path / "policy")
    (tmp_path / "reward.py").write_text(REWARD)
    fixed = {"model": str(model), "reward": (f"function={tmp_path / 'reward.py'}:brevity",), "split": "all"}
    fixed |= {"max_tokens": 12, "batch_size": 3, "lr": 1e-3, "save_every": 1, "epochs": 2}
    return lambda **more: PpoSpec.parse({**fixed, **more})


@pytest.fixture
def metrics(tmp_path: Path) -> Any:
    """`metrics(name="out")`: the lines of a model folder's metrics.jsonl."""

    def read(name: str = "out") -> list[dict[str, float]]:
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    return read
