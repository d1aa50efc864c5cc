"""Step by step the same losses as TRL's trainers, on the same model, data, order and settings in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trl_curves import BATCH, COUNT, SHARED, in_our_order, run_trl, settings

from prefdata.train.specs import DpoSpec, RmSpec, SftSpec
from prefdata.train.train import train_dpo, train_rm, train_sft

pytestmark = pytest.mark.peers


@pytest.fixture
def rows(make_pairs: Any) -> list[dict[str, Any]]:
    return make_pairs(COUNT // BATCH * BATCH)


def test_dpo_losses_and_rewards_equal_trl(
    rows: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    theirs, log = run_trl(
        DPOTrainer,
        in_our_order(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        args=settings(DPOConfig, tmp_path / "trl", beta=0.1),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    train_dpo(write_jsonl(tmp_path / "p.jsonl", rows), DpoSpec(model=str(tiny_policy), **SHARED), tmp_path / "ours")
    ours = read_metrics(tmp_path / "ours")
    assert len(ours) == len(theirs) == 24
    assert theirs[-1] < 0.6  # it learns: the comparison is not of ln 2 with ln 2
    assert [line["loss"] for line in ours] == pytest.approx(theirs, abs=1e-4)
    for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen", "logps/rejected"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in log], abs=2e-3), name
    assert [line["lr"] for line in ours] == pytest.approx([line["learning_rate"] for line in log], rel=1e-6)
    assert [line["grad_norm"] for line in ours] == pytest.approx([line["grad_norm"] for line in log], rel=1e-3)


def test_reward_losses_equal_trl(
    rows: Any, tiny_reward_model: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    theirs, _ = run_trl(
        RewardTrainer,
        in_our_order(rows),
        model=AutoModelForSequenceClassification.from_pretrained(tiny_reward_model),
        args=settings(RewardConfig, tmp_path / "trl", center_rewards_coefficient=0.01),
        processing_class=AutoTokenizer.from_pretrained(tiny_reward_model),
    )
    spec = RmSpec(model=str(tiny_reward_model), center_rewards=0.01, **SHARED)
    train_rm(write_jsonl(tmp_path / "p.jsonl", rows), spec, tmp_path / "ours")
    ours = [line["loss"] for line in read_metrics(tmp_path / "ours")]
    assert len(ours) == 24
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_sft_losses_equal_trl(
    rows: Any, tiny_policy: Path, tmp_path: Path, write_jsonl: Any, read_metrics: Any
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
    theirs, _ = run_trl(
        SFTTrainer,
        in_our_order(rows),
        model=AutoModelForCausalLM.from_pretrained(tiny_policy),
        args=settings(SFTConfig, tmp_path / "trl"),
        processing_class=AutoTokenizer.from_pretrained(tiny_policy),
    )
    train_sft(write_jsonl(tmp_path / "p.jsonl", rows), SftSpec(model=str(tiny_policy), **SHARED), tmp_path / "ours")
    ours = [line["loss"] for line in read_metrics(tmp_path / "ours")]
    assert len(ours) == 24
    assert theirs[-1] < 0.9 * theirs[0]
    assert ours == pytest.approx(theirs, abs=1e-4)
