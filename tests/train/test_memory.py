"""The memory of a training: the estimate against what a step takes, and what `--dry-run` says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config

from prefdata.models.files import ModelFiles
from prefdata.train.adapter import add_adapter
from prefdata.train.attention import PACKED_ATTENTION
from prefdata.train.batches import Example, collate
from prefdata.train.logps import response_logps
from prefdata.train.memory import ModelSize, estimate, model_size
from prefdata.train.optimizer import make_optimizer
from prefdata.train.plan import largest_batch
from prefdata.train.precision import PRECISIONS, recompute_layers
from prefdata.train.specs import DpoSpec

FILES = ModelFiles("m", "r", None, {})

SMALL = LlamaConfig(vocab_size=1000, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4)
MIDDLE = Qwen2Config(
    vocab_size=3000, hidden_size=192, intermediate_size=512, num_hidden_layers=6, num_attention_heads=6,
    num_key_value_heads=2, tie_word_embeddings=True,
)  # fmt: skip
LARGE = LlamaConfig(
    vocab_size=4000, hidden_size=256, intermediate_size=688, num_hidden_layers=8, num_attention_heads=8,
    num_key_value_heads=4,
)  # fmt: skip


def held(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measured(config: Any, spec: DpoSpec, tokens: int) -> int:
    """Bytes at the peak of the second step's passes: what is held before them, and what they allocate."""
    precision = PRECISIONS[spec.dtype]
    dtype = precision.weights if spec.lora_r is None else precision.frozen
    model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation=PACKED_ATTENTION).eval()
    if spec.lora_r is not None:
        add_adapter(model, spec, FILES, precision.weights)
    if spec.gradient_checkpointing:
        recompute_layers(model, "m")
    optimizer = make_optimizer(model, spec)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, tokens).astype(np.int32)
    batch = collate([Example(ids[: tokens // 4], (ids[tokens // 4 :],))], np.arange(1), "packed")

    def step() -> None:
        with torch.autocast("cpu", precision.products, enabled=precision.products is not None):
            total = response_logps(model, batch).sums.sum()
        total.backward()

    step()
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    parameters = list(model.parameters())
    states = [slot for state in optimizer.state.values() for slot in state.values()]
    before = held(parameters) + held([p.grad for p in parameters if p.grad is not None]) + held(states)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return before + int(np.cumsum(changes).max())


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        pytest.param(SMALL, {"dtype": "float32"}, id="small-float32"),
        pytest.param(SMALL, {"dtype": "bf16-mixed", "lora_r": 4}, id="small-mixed-lora"),
        pytest.param(MIDDLE, {"dtype": "bf16-mixed"}, id="middle-mixed"),
        pytest.param(MIDDLE, {"dtype": "float32", "lora_r": 4, "dora": True}, id="middle-dora"),
        pytest.param(MIDDLE, {"dtype": "bfloat16"}, id="middle-bfloat16"),
        pytest.param(LARGE, {"dtype": "float32", "gradient_checkpointing": True}, id="large-checkpointing"),
        pytest.param(LARGE, {"dtype": "bfloat16", "gradient_checkpointing": True}, id="large-bfloat16-checkpointing"),
        pytest.param(
            LARGE, {"dtype": "bf16-mixed", "lora_r": 8, "gradient_checkpointing": True}, id="large-lora-checkpointing"
        ),
    ],
)
def test_the_estimate_is_within_a_fifth_of_the_peak(config: Any, settings: dict[str, Any]) -> None:
    spec = DpoSpec(model="m", **settings)
    size = model_size(config, FILES, spec, PRECISIONS[spec.dtype], scores=False)
    found = estimate(size, 512, 384, checkpointing=spec.gradient_checkpointing).total
    assert found == pytest.approx(measured(config, spec, 512), rel=0.2)


def test_what_a_model_is_made_of_is_known_without_weights() -> None:
    """Llama 3.1 8B: 8,030,261,248 parameters; LoRA of rank 16 on its 7 linear layers.

    A rank's parameters are the sum of inputs and outputs: q and o 8192 each, k and v 5120 each, gate, up and down 18432
    each: 2 * 8192 + 2 * 5120 + 3 * 18432 = 81,920, times 32 layers and 16 = 41,943,040.
    """
    config = LlamaConfig(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8,
    )  # fmt: skip
    spec = DpoSpec(model="m", lora_r=16)
    size = model_size(config, FILES, spec, PRECISIONS["bf16-mixed"], scores=False)
    assert (size.parameters, size.trained) == (8_030_261_248 + 41_943_040, 41_943_040)
    memory = estimate(size, 4096, checkpointing=True)
    assert memory.weights == pytest.approx(
        2 * 8_030_261_248 + 6 * 41_943_040, rel=0.01
    )  # adapter: float32 and its cast
    assert (memory.gradients, memory.optimiser) == (4 * 41_943_040, 8 * 41_943_040)
    assert memory.total < 24e9


def test_the_parts_of_an_estimate() -> None:
    """By hand: 10 numbers are trained, and 2 layers keep 100 bytes a token together.

    50 tokens keep 5,000 bytes; the head has 2 tables of 50 * 7 float32 = 2,800 bytes, and its states are read twice:
    2 * 50 * 3 * 4 = 1,200. With checkpointing 2 layers' inputs: 2 * 50 * 3 * 4 = 1,200.
    """
    size = ModelSize(20, 10, 80, 40, 2, 3, 4, 100.0, 0.0, 7, 0)
    whole = estimate(size, 50, copies=1)
    assert (whole.weights, whole.gradients, whole.optimiser, whole.reference) == (80, 40, 80, 80)
    assert whole.activations == 5000 + 2800 + 1200
    assert whole.total == 280 + 9000
    assert estimate(size, 50, checkpointing=True).activations == 1200 + 4000


def test_the_largest_micro_batch() -> None:
    ids = np.arange(4, 40, dtype=np.int32)
    examples = [Example(ids[:3], (ids[:length],)) for length in (2, 5, 9)]
    assert largest_batch(examples, 2, 1000) == 12 + 8  # the two longest of a step
    assert largest_batch(examples, 3, 15) == 15
    assert largest_batch(examples, 3, 4) == 12  # an example is never split


def test_a_dry_run_needs_no_weights_and_writes_nothing(
    prefdata: Any, make_policy: Any, tmp_path: Path, make_pairs: Any, write_jsonl: Any
) -> None:
    model = make_policy(tmp_path / "model")
    (model / "model.safetensors").unlink()
    data = write_jsonl(tmp_path / "pairs.jsonl", make_pairs(24))
    before = sorted(tmp_path.rglob("*"))
    for command, more in (("dpo", []), ("rm", ["--lora-r", "2"]), ("dpo", ["--sync-ref-every", "5"])):
        code, out, errors = prefdata(
            "train", command, data, "--model", model, "--out", tmp_path / "out", "--batch-size", 5, "--dry-run", *more
        )
        assert code == 0, errors
        plan = json.loads(out)
        assert (plan["examples"], plan["steps"]) == (24, 5)
        assert 0 < plan["trained_tokens"] < plan["tokens"]
        assert (plan["trained_parameters"] < plan["parameters"]) is ("--lora-r" in more)
        assert (plan["gb_reference"] > 0) is ("--sync-ref-every" in more)
        parts = [plan[f"gb_{name}"] for name in ("weights", "gradients", "optimiser", "activations", "reference")]
        assert plan["gb_total"] == pytest.approx(sum(parts), abs=3e-4)
    assert sorted(tmp_path.rglob("*")) == before
