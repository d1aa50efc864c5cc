"""The optimiser, and the learning rate of each step."""

from __future__ import annotations

import math

import torch
from torch import nn

from prefdata.train.specs import TrainSpec


def make_optimizer(model: nn.Module, spec: TrainSpec) -> torch.optim.Optimizer:
    """AdamW (beta1 .9, epsilon 1e-8); weight decay on matrices only, not on norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    return torch.optim.AdamW(used, lr=spec.lr, betas=(0.9, spec.beta2), fused=True)


def learning_rate(spec: TrainSpec, step: int, total: int) -> float:
    """The learning rate of a step (from 0) of `total`.

    It rises linearly over the first `warmup * total` steps (rounded up), positive in the first of them, and is at its
    peak in the step after them.
    """
    warm = math.ceil(spec.warmup * total)
    if step < warm:
        return spec.lr * (step + 1) / (warm + 1)
    left = (total - step) / (total - warm)
    if spec.lr_scheduler == "linear":
        return spec.lr * left
    return spec.lr * (1 - math.cos(math.pi * left)) / 2 if spec.lr_scheduler == "cosine" else spec.lr
