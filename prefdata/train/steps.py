"""The gradient of one optimiser step, accumulated over micro-batches, also for losses that couple examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from prefdata.train.batches import Batch
from prefdata.train.metrics import MetricSums
from prefdata.train.models import LoadedModel
from prefdata.train.objectives.objective import Objective


class StepGradient:
    """Adds an optimiser step's gradient to the model's parameters.

    Args:
        loaded: the model.
        objective: the loss.
        size: divisor of the step's summed loss, so that the result does not depend on the micro-batches.
        entropies: whether to add the policy's entropies to the metrics.
        reseed: called with a micro-batch's number before each of its forward passes, so that a second pass has the
            same dropout.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        objective: Objective,
        size: float,
        *,
        entropies: bool = False,
        reseed: Callable[[int], Any] = lambda number: None,
    ) -> None:
        self._loaded, self._objective, self._size = loaded, objective, size
        self._entropies, self._reseed = entropies, reseed

    def add(self, batches: Iterable[Batch]) -> list[MetricSums]:
        """Run forward and backward passes over the step's micro-batches; returns its metrics."""
        if not self._objective.coupled:
            return [self._add_one(number, batch) for number, batch in enumerate(batches)]
        step = list(batches)
        return [self._add_one(0, step[0])] if len(step) == 1 else [self._add_coupled(step)]

    def _add_one(self, number: int, batch: Batch) -> MetricSums:
        total, metrics = summed_loss(self._objective, self._forward(number, batch), [batch])
        (total / self._size).backward()  # type: ignore[no-untyped-call]
        return metrics

    def _add_coupled(self, step: Sequence[Batch]) -> MetricSums:
        """Add the gradient of a loss over all micro-batches, with one micro-batch in memory at a time.

        First compute all values without gradient, and the loss's gradient by them; then run each micro-batch again with
        `sum(value * gradient)` as its loss (GradCache, Gao et al. 2021, arXiv:2101.06983, section 3.2).
        """
        with torch.no_grad():
            joined = _leaves(join_values([self._forward(number, batch) for number, batch in enumerate(step)]))
        total, metrics = summed_loss(self._objective, joined, step)
        (total / self._size).backward()  # type: ignore[no-untyped-call]
        start = 0
        for number, batch in enumerate(step):
            end = start + len(batch.weight)
            _surrogate(self._forward(number, batch), joined, start, end).backward()  # type: ignore[no-untyped-call]
            start = end
        return metrics

    def _forward(self, number: int, batch: Batch) -> Any:
        self._reseed(number)
        return forward(self._loaded, self._objective, batch, entropies=self._entropies)


def forward(loaded: LoadedModel, objective: Objective, batch: Batch, *, entropies: bool = False) -> Any:
    """Compute the values that the objective's loss is a function of, for one batch."""
    with loaded.precision():
        return objective.values(loaded.model, batch.to(loaded.device), entropies)


@torch.no_grad()
def measure(loaded: LoadedModel, objective: Objective, batches: Iterable[Batch]) -> list[MetricSums]:
    """Compute the metrics of batches without gradient; of a coupled loss, those of all batches together."""
    if not objective.coupled:
        return [summed_loss(objective, forward(loaded, objective, batch), [batch])[1] for batch in batches]
    step = list(batches)
    values = join_values([forward(loaded, objective, batch) for batch in step])
    return [summed_loss(objective, values, step)[1]]


def summed_loss(objective: Objective, values: Any, batches: Sequence[Batch]) -> tuple[Tensor, MetricSums]:
    """Sum the weighted losses of the batches that `values` belong to; returns the metrics too."""
    losses, metrics = objective.loss(values)
    weight = torch.cat([batch.weight for batch in batches]).to(losses.device, non_blocking=True)
    size = float(sum(objective.sizes(batch).sum() for batch in batches))
    total = (losses * weight).sum()
    return total, {"loss": (total.detach(), size), **metrics}


def join_values(parts: Sequence[Any]) -> Any:
    """Concatenate the values (dataclasses of tensors `[E, …]`) of several batches of the same K."""
    return replace(parts[0], **{name: _join([getattr(part, name) for part in parts]) for name in _names(parts[0])})


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0]


def _names(values: Any) -> list[str]:
    return [field.name for field in fields(values)]


def _leaves(values: Any) -> Any:
    """Detach the values so that each tensor collects its own gradient."""
    found = {name: getattr(values, name) for name in _names(values)}
    numbers = {name: value for name, value in found.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return replace(values, **{name: value.detach().requires_grad_() for name, value in numbers.items()})


def _surrogate(values: Any, joined: Any, start: int, end: int) -> Tensor:
    """Return a scalar whose gradient is that of the loss by these values: rows `start` to `end` of `joined`."""
    total: Any = 0.0
    for name in _names(values):
        own, whole = getattr(values, name), getattr(joined, name)
        if isinstance(own, Tensor) and own.requires_grad and whole.grad is not None:
            total = total + (own * whole.grad[start:end]).sum()
    assert isinstance(total, Tensor)  # the loss depends on some of them
    return total
