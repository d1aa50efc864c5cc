"""A tokenizer may give tokens that the network has no embedding of: tokens were added, and the model never resized.

Such a text costs its own row and no other; on a GPU it would end the process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from prefdata.storage.run import Run

Call = Callable[..., tuple[int, str, str]]


def with_a_new_token(model: Path, folder: Path) -> Path:
    """A copy of a model whose tokenizer has one token more than the network: `<new>`, number 260."""
    from transformers import AutoTokenizer

    shutil.copytree(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def policy(tiny_policy: Path, tmp_path: Path) -> Path:
    return with_a_new_token(tiny_policy, tmp_path / "policy")


@pytest.fixture
def reward_model(tiny_reward_model: Path, tmp_path: Path) -> Path:
    return with_a_new_token(tiny_reward_model, tmp_path / "reward")


@pytest.fixture
def run(tmp_path: Path, write: Callable[..., str], prefdata: Call) -> Path:
    rows = write({"prompt": "a", "responses": ["one", "a <new> word"]}, {"prompt": "b", "responses": ["two"]})
    assert prefdata("ingest", tmp_path / "run", rows, "--as", "candidates")[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize("scorer", ["--reward-model", "--mean-logprob"])
def test_a_text_with_an_unknown_token_has_no_score(
    run: Path, prefdata: Call, policy: Path, reward_model: Path, scorer: str
) -> None:
    model = [reward_model, "--engine", "transformers"] if scorer == "--reward-model" else [policy]
    code, _, err = prefdata("rank", run, scorer, *model, "--name", "s")
    assert code == 0, err
    scores = Run(run).partition("scores", "s").read(["score", "reason"]).to_pylist()
    assert sorted(str(row["reason"]) for row in scores) == ["None", "None", "unknown_token"]
    assert all((row["score"] is None) == (row["reason"] is not None) for row in scores)


@pytest.mark.parametrize("objective", ["dpo", "rm"])
def test_training_names_the_token_and_the_row(
    prefdata: Call, write: Callable[..., str], tmp_path: Path, policy: Path, reward_model: Path, objective: str
) -> None:
    model = policy if objective == "dpo" else reward_model
    rows = write(
        {"prompt": "a", "chosen": "one", "rejected": "two"}, {"prompt": "b", "chosen": "<new>", "rejected": "two"}
    )
    train = ["train", objective, rows, "--model", model, "--out", tmp_path / "out", "--batch-size", "1"]
    code, _, err = prefdata(*train)
    assert code == 2
    assert "token 260 ('<new>') is not among the model's 260" in err
    assert not (tmp_path / "out").exists()
    code, _, err = prefdata(*train, "--on-bad-rows", "drop")
    assert code == 0, err
    report = json.loads((tmp_path / "out/_SUCCESS").read_text())["report"]
    assert report["dropped"] == {"unknown_token": 1}
