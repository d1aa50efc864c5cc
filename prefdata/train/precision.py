"""In which types a model is stored and computed while it is trained, and what is recomputed to save memory."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from prefdata.errors import UsageError


@dataclass(frozen=True, slots=True)
class Precision:
    """The types of a training.

    Attributes:
        name: as `--dtype` names it.
        weights: of the parameters that are trained, of their gradients and of the optimiser's state.
        products: of matrix products, where that is another one.
    """

    name: str
    weights: torch.dtype
    products: torch.dtype | None = None

    @property
    def frozen(self) -> torch.dtype:
        """The type of parameters that are not trained: that of the matrix products, which round them anyway."""
        return self.products or self.weights


PRECISIONS = {
    found.name: found
    for found in (
        Precision("float32", torch.float32),
        Precision("bf16-mixed", torch.float32, torch.bfloat16),
        Precision("bfloat16", torch.bfloat16),
    )
}


def pick_precision(asked: str, device: torch.device) -> Precision:
    """Return the precision of that name; `auto` is bf16-mixed on a GPU that computes in bfloat16, else float32."""
    if asked == "auto":
        native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        asked = "bf16-mixed" if native else "float32"
    return PRECISIONS[asked]


def round_stochastically(values: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round float32 values to bfloat16, up or down at random, such that the expected result is the value.

    A step that is smaller than half of the distance between two bfloat16 numbers then counts on average, where rounding
    to the nearest would lose it. The random numbers are those of `generator`,
    or torch's own.
    """
    low = 1 << 16  # bfloat16 is the upper half of float32
    noise = torch.randint(0, low, values.shape, dtype=torch.int32, device=values.device, generator=generator)
    rounded = (values.view(torch.int32) + noise).bitwise_and_(-low).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).to(torch.bfloat16)


def recompute_layers(model: Any, name: str) -> None:
    """Let the model keep only what enters each of its layers, and compute the rest again in the backward pass.

    It holds in train and eval mode alike: transformers' own switch has no effect in eval mode, in which most losses
    train so that dropout is off.

    Raises:
        UsageError: the model does not declare its layers.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if not layers:
        raise UsageError(
            f"{name}: {type(model).__name__} does not declare layers that can be computed again. Leave out "
            "--gradient-checkpointing."
        )
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
