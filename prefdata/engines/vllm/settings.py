"""The settings of vLLM for `--engine-option`, and the one that an adapter needs.

Nothing here imports vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from prefdata.errors import ModelError, UsageError, did_you_mean

OWN_OPTIONS = {
    "model": "--model",
    "dtype": "--dtype",
    "max_model_len": "--max-model-len",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "tensor_parallel_size": "--tensor-parallel-size",
    "enable_prefix_caching": "--enable-prefix-caching",
    "max_num_seqs": "--max-num-seqs",
    "batch_invariant": "--batch-invariant",
    "quantization": "--quantization",
    "enable_lora": "--lora",
    "max_lora_rank": "--lora",
    "seed": "--seed",
    "tokenizer": None,
    "generation_config": None,
    "logprobs_mode": None,
    "skip_tokenizer_init": None,
}
"""Settings of vLLM that prefdata sets itself, and the flag for each; None where it is fixed."""


def parse_options(options: Sequence[str], known: Iterable[str]) -> dict[str, Any]:
    """Parse `KEY=VALUE` texts: the value as JSON where it is that, else as text.

    Raises:
        UsageError: no `=`, a setting that prefdata makes itself, or one that is not among the `known`.
    """
    found: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        name = key.strip().removeprefix("--").replace("-", "_")
        if not equals:
            raise UsageError(f"--engine-option {option}: write it as KEY=VALUE.")
        if name in OWN_OPTIONS:
            flag = OWN_OPTIONS[name]
            instead = f"Use {flag} instead." if flag else "Leave it out."
            raise UsageError(f"--engine-option {option}: prefdata sets {name} itself. {instead}")
        if name not in known:
            raise UsageError(f"--engine-option {option}: vLLM has no setting {name}.{did_you_mean(name, known)}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def lora_rank(folder: Path) -> int:
    """Return the `max_lora_rank` that holds this adapter: one of the ranks that vLLM has.

    Raises:
        ModelError: it is not the folder of an adapter.
    """
    try:
        config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        rank = max(int(config["r"]), *map(int, (config.get("rank_pattern") or {"": 1}).values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ModelError(
            f"{folder} is not a LoRA adapter: its adapter_config.json is unusable ({type(error).__name__}: {error}). "
            "Give the folder that PEFT saved it in."
        ) from None
    ranks = (1, 8, 16, 32, 64, 128, 256, 320, 512)
    if rank > ranks[-1]:
        raise ModelError(f"{folder} has rank {rank}, and vLLM takes at most {ranks[-1]}. Merge it into its model.")
    return next(size for size in ranks if size >= rank)
