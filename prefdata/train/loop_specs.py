"""What every training loop is asked: the model, the optimiser, the hardware, checkpoints. Imports no torch."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import field_validator

from prefdata.specs import Group, identity_field, runtime_field
from prefdata.specs.chat import ChatSpec
from prefdata.specs.value_ranges import Number


class LoopSpec(ChatSpec):
    """What every trainer is asked."""

    model: str = identity_field(description="The model to start from: a folder or a hub name.", group=Group.MODEL)
    from_scratch: bool = identity_field(
        False,
        "Start from random weights drawn by the seed; the model folder then needs no weights, only its "
        "config.json and tokenizer.",
        group=Group.MODEL,
    )
    epochs: Number = identity_field(
        1, "Passes over the data; 0.5 is half of it.", gt=0, allow_inf_nan=False, group=Group.OPTIMISER
    )
    max_steps: int | None = identity_field(
        None,
        "Stop after so many optimiser steps, where the epochs have more; the learning rate falls over these.",
        ge=1,
        group=Group.OPTIMISER,
    )
    lr: float = identity_field(1e-5, "Peak learning rate of AdamW.", gt=0, group=Group.OPTIMISER)
    batch_size: int = identity_field(
        32, "Examples of one optimiser step (a pair is one example).", ge=1, group=Group.OPTIMISER
    )
    warmup: float = identity_field(
        0.1, "Share of all steps over which the learning rate rises from zero.", ge=0, lt=1, group=Group.OPTIMISER
    )
    lr_scheduler: Literal["linear", "cosine", "constant"] = identity_field(
        "linear",
        "The learning rate after the warm-up: falling to zero on a line or a cosine, or constant.",
        group=Group.OPTIMISER,
    )
    weight_decay: float = identity_field(
        0.0, "AdamW's decoupled weight decay, of weight matrices only.", ge=0, group=Group.OPTIMISER
    )
    beta2: float = identity_field(
        0.999,
        "AdamW's decay of squared gradients. 0.95 forgets sooner: for small models and batches.",
        ge=0,
        lt=1,
        group=Group.OPTIMISER,
    )
    max_grad_norm: float = identity_field(
        1.0, "Gradients of a larger norm, over all parameters, are scaled to it; 0 = off.", ge=0, group=Group.OPTIMISER
    )
    seed: int = identity_field(
        0, "Seed of the order of the data, of dropout and of new weights.", ge=0, group=Group.OPTIMISER
    )
    micro_tokens: int | None = runtime_field(
        None,
        "Maximum tokens, padding included, through the model at once; 1024 on a CPU, 16384 on a GPU unless given.",
        ge=1,
        group=Group.HARDWARE,
    )
    save_every: int = runtime_field(200, "Steps between checkpoints; 0 = none.", ge=0, group=Group.CHECKPOINTS)
    device: str | None = runtime_field(
        None, "cpu, cuda or cuda:N; the GPU where there is one unless given.", group=Group.HARDWARE
    )
    batch_layout: Literal["auto", "packed", "padded"] = runtime_field(
        "auto",
        "packed computes each prompt once for its responses, padded once with each; auto = packed where a check on the "
        "model finds the same numbers and gradients.",
        group=Group.HARDWARE,
    )
    dtype: Literal["auto", "float32", "bf16-mixed", "bfloat16"] = runtime_field(
        "auto",
        "bf16-mixed: float32 weights and optimiser, matrix products in bfloat16. bfloat16: weights and optimiser too, "
        "rounded stochastically, in half of the memory. auto = bf16-mixed on a GPU that has bfloat16, else float32.",
        group=Group.HARDWARE,
    )
    gradient_checkpointing: bool = runtime_field(
        False,
        "Keep only what enters each layer, and compute the layer again in the backward pass: less memory, a third more "
        "time, the same gradients.",
        group=Group.HARDWARE,
    )

    @field_validator("epochs")
    @classmethod
    def _whole_epochs_are_integers(cls, epochs: Number) -> Number:
        return int(epochs) if epochs == int(epochs) else epochs

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimiser steps of the training; a fraction of a step is a whole one."""
        steps = math.ceil(round(self.epochs * steps_per_epoch, 6))
        return min(steps, self.max_steps or steps)
