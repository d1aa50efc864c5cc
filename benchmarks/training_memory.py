"""The tables of docs/training.md: gigabytes that a training step takes, by model, method and precision.

    python benchmarks/training_memory.py

The models are built from their sizes on fake tensors: no weights, no download.
"""

from __future__ import annotations

from typing import Any

from transformers import LlamaConfig, Qwen2Config

from prefdata.models.files import ModelFiles
from prefdata.train.memory import estimate, model_size
from prefdata.train.precision import PRECISIONS
from prefdata.train.specs import DpoSpec

TOKENS = 4096

MODELS: dict[str, Any] = {
    "0.5 B": Qwen2Config(
        vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "1.5 B": Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, tie_word_embeddings=True,
    ),
    "8 B": LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    ),
    "70 B": LlamaConfig(
        vocab_size=128256, hidden_size=8192, intermediate_size=28672, num_hidden_layers=80, num_attention_heads=64,
        num_key_value_heads=8,
    ),
}  # fmt: skip
"""Sizes of Qwen 2.5 0.5B and 1.5B, Llama 3.1 8B and 70B."""

ROWS: list[tuple[str, dict[str, Any], bool, int]] = [
    ("all weights, `bf16-mixed`", {"dtype": "bf16-mixed"}, False, 0),
    ("the same, `--gradient-checkpointing`", {"dtype": "bf16-mixed"}, True, 0),
    ("the same, and `--sync-ref-every`", {"dtype": "bf16-mixed"}, True, 1),
    ("all weights, `bfloat16`", {"dtype": "bfloat16"}, False, 0),
    ("the same, `--gradient-checkpointing`", {"dtype": "bfloat16"}, True, 0),
    ("the same, a reward model", {"dtype": "bfloat16", "scores": True}, True, 0),
    ("`--lora-r 16`, `bf16-mixed`", {"dtype": "bf16-mixed", "lora_r": 16}, False, 0),
    ("the same, `--gradient-checkpointing`", {"dtype": "bf16-mixed", "lora_r": 16}, True, 0),
]
"""Name, settings, checkpointing, second models."""


def gigabytes(config: Any, settings: dict[str, Any], checkpointing: bool, copies: int) -> float:
    scores = settings.get("scores", False)
    spec = DpoSpec(model="m", **{name: value for name, value in settings.items() if name != "scores"})
    size = model_size(config, ModelFiles("m", "r", None, {}), spec, PRECISIONS[spec.dtype], scores=scores)
    return estimate(size, TOKENS, checkpointing=checkpointing, copies=copies).total / 1e9


def main() -> None:
    print(f"| method | {' | '.join(MODELS)} |\n| --- | {' | '.join('--:' for _ in MODELS)} |")
    for name, settings, checkpointing, copies in ROWS:
        cells = [f"{gigabytes(config, settings, checkpointing, copies):.1f}" for config in MODELS.values()]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
