"""Step by step the same losses as TRL's trainers, on the same model, data, order and settings in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prefdata.specs.train import DpoSpec, RmSpec, SftSpec
from prefdata.train.batches import order
from prefdata.train.train import train_dpo, train_rm, train_sft

pytestmark = pytest.mark.peers

COUNT, BATCH, EPOCHS = 50, 4, 2
SHARED = {"lr": 1e-3, "batch_size": BATCH, "epochs": EPOCHS, "warmup": 0.0, "weight_decay": 0.01, "max_grad_norm": 1.0}


def settings(config: Any, out: Path, **more: Any) -> Any:
    return config(
        output_dir=str(out),
        per_device_train_batch_size=BATCH,
        num_train_epochs=1,
        learning_rate=1e-3,
        lr_scheduler_type="linear",
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=1,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_length=128,
        **more,
    )


def run_trl(trainer: type, rows: list[dict[str, Any]], **arguments: Any) -> tuple[list[float], list[dict[str, float]]]:
    """The losses of every step, as computed and not as rounded for the log, and the log."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler

    losses: list[float] = []

    class InOrder(trainer):  # type: ignore[misc]
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return SequentialSampler(dataset if dataset is not None else self.train_dataset)

        def compute_loss(self, *given: Any, **named: Any) -> Any:
            result = super().compute_loss(*given, **named)
            losses.append((result[0] if isinstance(result, tuple) else result).item())
            return result

    done = InOrder(train_dataset=Dataset.from_list(rows), **arguments)
    done.train()
    return losses, [line for line in done.state.log_history if "loss" in line]


def in_our_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows as seed 0 visits them; every epoch's last batch is full, so that the steps stay aligned."""
    return [rows[i] for epoch in range(EPOCHS) for i in order(len(rows), 0, epoch)]


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
