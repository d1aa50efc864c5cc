"""What a training would do, without doing it: its data, its steps, and the memory that it takes, by part."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from prefdata.errors import ModelError
from prefdata.models.files import ModelFiles
from prefdata.models.loading import pick_device, silenced
from prefdata.train.batches import Example, steps_per_epoch
from prefdata.train.memory import Memory, estimate, model_size
from prefdata.train.models import micro_budget
from prefdata.train.precision import pick_precision
from prefdata.train.specs import RmSpec, TrainSpec

GB = 1e9


def planned(files: ModelFiles, spec: TrainSpec, train: list[Example], copies: int) -> dict[str, Any]:
    """Return the figures of a training: parameters, tokens, steps, and gigabytes of memory by part.

    Args:
        files: the model; its config is enough.
        spec: the settings.
        train: the examples that it is trained on.
        copies: second models that are in memory.

    Raises:
        ModelError: transformers does not know such a model.
    """
    device = pick_device(spec.device)
    precision = pick_precision(spec.dtype, device)
    try:
        size = model_size(_config(files, spec), files, spec, precision, scores=isinstance(spec, RmSpec))
    except (ValueError, RuntimeError, OSError) as error:
        raise ModelError(f"{files.name}: its memory cannot be estimated ({' '.join(str(error).split())}).") from None
    shared = sum(example.shared_tokens for example in train)
    trained = sum(example.trained_tokens for example in train)
    tokens = largest_batch(train, spec.batch_size, micro_budget(device, spec).given)
    predicted = tokens * trained // max(1, shared)
    memory = estimate(size, tokens, predicted, checkpointing=spec.gradient_checkpointing, copies=copies)
    return {
        "parameters": size.parameters,
        "trained_parameters": size.trained,
        "steps": spec.total_steps(steps_per_epoch(len(train), spec.batch_size)),
        "tokens": shared,
        "trained_tokens": trained,
        "tokens_at_a_time": tokens,
        "dtype": precision.name,
        "device": str(device),
        **in_gigabytes(memory),
        **_capacity(device),
    }


def largest_batch(examples: list[Example], batch_size: int, most: int) -> int:
    """Tokens of the largest micro-batch: `most`, unless a step has fewer or one example has more."""
    sizes = sorted(example.shared_tokens for example in examples)
    return max(sizes[-1], min(most, sum(sizes[-batch_size:])))


def in_gigabytes(memory: Memory) -> dict[str, float]:
    """Return the parts of an estimate by name, in 10^9 bytes, and their sum."""
    parts = {**asdict(memory), "total": memory.total}
    return {f"gb_{name}": round(size / GB, 4) for name, size in parts.items()}


def _capacity(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"gb_of_the_device": round(torch.cuda.get_device_properties(device).total_memory / GB, 1)}


def _config(files: ModelFiles, spec: TrainSpec) -> Any:
    """Return the config, of which no weights are downloaded."""
    folder: Path = (files.base or files).text_folder()
    with silenced():
        config = transformers.AutoConfig.from_pretrained(folder)
    if isinstance(spec, RmSpec):
        config.num_labels = spec.heads
    return config
