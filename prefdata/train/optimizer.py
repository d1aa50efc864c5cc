"""The optimiser, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from prefdata.ids import seed as seed_of
from prefdata.train.loop_specs import LoopSpec
from prefdata.train.precision import round_stochastically

CHUNK = 1 << 24
"""Elements of a parameter that are updated at one time: what is computed in float32 is never as large as a model."""


def make_optimizer(model: nn.Module, spec: LoopSpec) -> torch.optim.Optimizer:
    """Build AdamW (beta1 .9, epsilon 1e-8); weight decay on matrices only, not on norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    used = [group for group in groups if group["params"]]
    if any(parameter.dtype == torch.bfloat16 for parameter in trained):
        return StochasticAdamW(used, lr=spec.lr, betas=(0.9, spec.beta2), seed=spec.seed)
    return torch.optim.AdamW(used, lr=spec.lr, betas=(0.9, spec.beta2), fused=True)


class StochasticAdamW(torch.optim.Optimizer):
    """AdamW for bfloat16 weights: computed in float32; weights and moments are stored rounded stochastically.

    The moments have the type of their parameter, so that a bfloat16 parameter takes 8 bytes: weight, gradient and two
    moments. Rounded to the nearest, the second moment could not fall: with beta2 0.999 a step changes it by less than
    half of the distance between two bfloat16 numbers. Random numbers are a function of the seed, the step and the
    parameter's place.
    """

    def __init__(self, params: Any, lr: float, betas: tuple[float, float], eps: float = 1e-8, *, seed: int = 0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._seed = seed

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        places = [(group, parameter) for group in self.param_groups for parameter in group["params"]]
        for place, (group, parameter) in enumerate(places):
            if parameter.grad is not None:
                self._update(parameter, group, place)

    def _update(self, parameter: Tensor, group: dict[str, Any], place: int) -> None:
        state = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state.update(step=torch.tensor(0.0), exp_avg=zeros, exp_avg_sq=zeros.clone())
        state["step"] += 1
        generator = torch.Generator(parameter.device)
        generator.manual_seed(seed_of(self._seed, "rounding", int(state["step"]), place))
        beta1, beta2 = group["betas"]
        first, second = (1 - beta ** state["step"].item() for beta in (beta1, beta2))
        assert parameter.grad is not None
        for weight, gradient, mean, square in _chunks(
            parameter, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"]
        ):
            slope = gradient.float()
            m = mean.float().lerp_(slope, 1 - beta1)
            v = square.float().mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            new = weight.float().mul_(1 - group["lr"] * group["weight_decay"])
            new.addcdiv_(m, (v / second).sqrt_().add_(group["eps"]), value=-group["lr"] / first)
            for stored, value in ((weight, new), (mean, m), (square, v)):
                stored.copy_(round_stochastically(value, generator) if stored.dtype == torch.bfloat16 else value)


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Slices of the tensors, flat."""
    return zip(*(torch.split(tensor.view(-1), CHUNK) for tensor in tensors), strict=True)


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Compute the norm over all gradients, in float32 whatever their type."""
    norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in parameters if p.grad is not None]
    whole: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return whole


def learning_rate(spec: LoopSpec, step: int, total: int) -> float:
    """Compute the learning rate of a step (from 0) of `total`.

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
