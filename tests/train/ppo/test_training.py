"""`train ppo` on tiny models: rollouts in the run, every method, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from safetensors.torch import load_file

from prefdata.errors import EngineError, UsageError
from prefdata.train.ppo.ppo import train_ppo


class Killed(Exception):
    pass


def killed_after(step: int) -> Any:
    def progress(done: int, total: int, **_: Any) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "reinforce", "online-dpo"])
def test_every_method_trains_and_stores_its_rollouts(method: str, run: Path, spec: Any, tmp_path: Path) -> None:
    asked = spec(method=method)
    done = train_ppo(run, asked, tmp_path / "out")
    assert done.did == "made"
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["kl"] != lines[0]["kl"]
    candidates = pl.read_parquet(run / "candidates/sampler=ppo/*.parquet")
    scores = pl.read_parquet(run / "scores/scorer=ppo/*.parquet")
    assert candidates.height == scores.height == 2 * 6 * asked.responses
    assert sorted(candidates["round"].unique()) == [1, 2, 3, 4]
    joined = candidates.join(scores, on="candidate_id")
    assert (joined["score"] + joined["text"].str.len_chars() / 10).abs().max() < 1e-9  # type: ignore[operator]
    assert "value_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert train_ppo(run, asked, tmp_path / "out").did == "kept"


def test_the_first_ratio_is_1(run: Path, spec: Any, tmp_path: Path) -> None:
    train_ppo(run, spec(update_epochs=1, max_steps=1), tmp_path / "out")
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert (line["ratio"], line["clip_fraction"]) == (1.0, 0.0)


@pytest.mark.parametrize("step", [1, 3])
def test_stopped_and_continued_gives_the_same_bits(step: int, run: Path, spec: Any, tmp_path: Path) -> None:
    settings = {"kl_target": 0.1, "minibatches": 2, "update_epochs": 2}
    train_ppo(run, spec(**settings), tmp_path / "whole")
    rows = pl.read_parquet(run / "candidates/sampler=ppo/*.parquet").sort("candidate_id")
    with pytest.raises(Killed):
        train_ppo(run, spec(**settings, name="cut"), tmp_path / "cut", progress=killed_after(step))
    assert train_ppo(run, spec(**settings, name="cut"), tmp_path / "cut").did == "continued"
    whole, cut = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all((whole[name] == cut[name]).all() for name in whole)
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()
    again = pl.read_parquet(run / "candidates/sampler=cut/*.parquet").sort("candidate_id")
    assert again.drop("sampler", strict=False).equals(rows.drop("sampler", strict=False))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"method": "rloo", "responses": 1}, "should be 2 or more"),
        ({"kl_in": "loss"}, "k1 in the loss"),
        ({"from_scratch": True}, "trained model"),
        ({"lora_r": 4, "lora_dropout": 0.1}, "without dropout"),
        ({"lora_r": 4, "ema": 0.9}, "whole models"),
        ({"missing_end_score": -1.0, "missing_end_penalty": 1.0}, "leave one out"),
        ({"ptx_coef": 1.0}, r"--ptx-coef goes with --ptx,"),
        ({"critic_lr": 1.0}, r"--critic-lr goes with --critic,"),
        ({"method": "rloo", "lam": 0.5}, r"--lam goes with --method ppo,"),
        ({"method": "grpo", "value_coef": 1.0}, r"--value-coef goes with --method ppo,"),
        (
            {"method": "online-dpo", "clip": 0.5},
            r"--clip goes with --method ppo or .* or --method reinforce,",
        ),
        ({"method": "online-dpo", "kl_in": "loss"}, r"--kl-in goes with --method ppo or"),
        ({"kl_horizon": 5}, r"--kl-horizon goes with --kl-target,"),
    ],
)
def test_settings_that_do_not_go_together(setting: dict[str, Any], said: str, spec: Any) -> None:
    with pytest.raises(UsageError, match=said):
        spec(**setting)


@pytest.mark.parametrize("method", ["ppo", "rloo", "grpo", "reinforce", "online-dpo"])
def test_a_response_without_a_score_is_left_out_alone(method: str, run: Path, spec: Any, tmp_path: Path) -> None:
    """Of 3 responses to each of 6 prompts those of even length have no score; the others are trained on."""
    (tmp_path / "odd.py").write_text(
        "def odd(prompt, response):\n    return float(len(response)) if len(response) % 2 else None\n"
    )
    reward = (f"function={tmp_path / 'odd.py'}:odd",)
    done = train_ppo(run, spec(method=method, reward=reward, responses=3, max_steps=1, batch_size=6), tmp_path / "out")
    text = pl.read_parquet(run / "candidates/sampler=ppo/*.parquet")["text"]
    odd = int((text.str.len_chars() % 2).sum())
    assert 0 < odd < 18
    assert (done.report.rows_in, done.report.rows_out) == (18, odd)
    assert list(done.report.dropped.values()) == [18 - odd]
    (line,) = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert line["unscored"] == 18 - odd


def test_no_score_at_all_ends_the_training_with_the_reason(run: Path, spec: Any, tmp_path: Path) -> None:
    (tmp_path / "none.py").write_text("def none(prompt, response):\n    return None\n")
    with pytest.raises(EngineError, match=r"step 1: no response has a score \(.+ 3\)"):
        train_ppo(run, spec(reward=(f"function={tmp_path / 'none.py'}:none",)), tmp_path / "out")


def test_the_report_counts_responses_not_prompts_that_were_never_sampled(run: Path, spec: Any, tmp_path: Path) -> None:
    done = train_ppo(run, spec(max_steps=1), tmp_path / "out")
    assert (done.report.unit, done.report.rows_in, done.report.rows_out) == ("responses", 3, 3)


def test_the_command(run: Path, spec: Any, tmp_path: Path, prefdata: Any) -> None:
    asked = spec()
    done = prefdata(
        *("train", "ppo", run, "--model", asked.model, "--reward", asked.reward[0], "--split", "all"),
        *("--max-tokens", "12", "--batch-size", "6", "--out", tmp_path / "out"),
    )
    assert done[0] == 0, done[2]
    assert (tmp_path / "out" / "_SUCCESS").exists()
