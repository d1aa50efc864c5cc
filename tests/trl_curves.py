"""TRL's trainers beside ours: the same model, rows, order and settings, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefdata.train.batches import order

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
