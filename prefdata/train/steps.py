"""The gradient of one optimiser step, accumulated over micro-batches, also for losses that couple examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from prefdata.train import distributed
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
        reseed: called with the index of a micro-batch's first example before each of its forward passes, so that a
            second pass has the same dropout, and so has any process that computes it.
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
        self._coupled: tuple[Any, int, list[MetricSums]] | None = None

    def add(self, batches: Iterable[Batch]) -> list[MetricSums]:
        """Run forward and backward passes over this process's micro-batches of the step; returns their metrics.

        Called again after memory has ended, with smaller batches, it continues a coupled loss from its values.
        """
        if not self._objective.coupled:
            return [self._add_one(batch) for batch in batches]
        step = list(batches)
        if len(step) == distributed.world() == 1:
            return [self._add_one(step[0])]
        return self._add_coupled(step)

    def _add_one(self, batch: Batch) -> MetricSums:
        total, metrics = summed_loss(self._objective, self._forward(batch), *weights_of(self._objective, [batch]))
        (total / self._size).backward()  # type: ignore[no-untyped-call]
        return metrics

    def _add_coupled(self, step: Sequence[Batch]) -> list[MetricSums]:
        """Add the gradient of a loss over all micro-batches, with one micro-batch in memory at a time.

        First compute all values without gradient, and the loss's gradient by them; then run each micro-batch again with
        `sum(value * gradient)` as its loss (GradCache, Gao et al. 2021, arXiv:2101.06983, section 3.2). Every process
        has the values of all, and runs its own micro-batches.
        """
        if self._coupled is None:  # once a step: the other processes do not gather again if memory ends here
            self._coupled = self._coupled_gradient(step)
        joined, start, metrics = self._coupled
        for batch in step:
            end = start + len(batch.weight)
            _surrogate(self._forward(batch), joined, start, end).backward()  # type: ignore[no-untyped-call]
            start = end
        return metrics

    def _coupled_gradient(self, step: Sequence[Batch]) -> tuple[Any, int, list[MetricSums]]:
        """Return the step's values with their gradients, this process's first row of them, and the metrics, once."""
        with torch.no_grad():
            own = [(self._forward(batch), *weights_of(self._objective, [batch])) for batch in step]
        whole = _gathered(own, self._loaded.device)
        values, weights, sizes = zip(*(part for theirs in whole for part in theirs), strict=True)
        joined = _leaves(join_values(values))
        total, metrics = summed_loss(self._objective, joined, torch.cat(weights), sum(sizes))
        (total / self._size).backward()  # type: ignore[no-untyped-call]
        start = sum(len(weight) for theirs in whole[: distributed.rank()] for _, weight, _ in theirs)
        return joined, start, [metrics] if distributed.is_first() else []

    def _forward(self, batch: Batch) -> Any:
        self._reseed(int(batch.index[0]))
        return forward(self._loaded, self._objective, batch, entropies=self._entropies)


def forward(loaded: LoadedModel, objective: Objective, batch: Batch, *, entropies: bool = False) -> Any:
    """Compute the values that the objective's loss is a function of, for one batch."""
    with loaded.precision():
        return objective.values(loaded.model, batch.to(loaded.device), entropies)


@torch.no_grad()
def measure(loaded: LoadedModel, objective: Objective, batches: Iterable[Batch]) -> list[MetricSums]:
    """Compute the metrics of batches without gradient; of a coupled loss, those of all batches together."""
    if not objective.coupled:
        parts = ((forward(loaded, objective, batch), weights_of(objective, [batch])) for batch in batches)
        return [summed_loss(objective, values, *weights)[1] for values, weights in parts]
    step = list(batches)
    values = join_values([forward(loaded, objective, batch) for batch in step])
    return [summed_loss(objective, values, *weights_of(objective, step))[1]]


def weights_of(objective: Objective, batches: Sequence[Batch]) -> tuple[Tensor, float]:
    """Return the weights `[E]` of the batches' examples, and the divisor of their summed loss."""
    size = float(sum(objective.sizes(batch).sum() for batch in batches))
    return torch.cat([batch.weight for batch in batches]), size


def summed_loss(objective: Objective, values: Any, weight: Tensor, size: float) -> tuple[Tensor, MetricSums]:
    """Sum the weighted losses of `values`; returns the metrics too."""
    losses, metrics = objective.loss(values)
    total = (losses * weight.to(losses.device, non_blocking=True)).sum()
    return total, {"loss": (total.detach(), size), **metrics}


Part = tuple[Any, Tensor, float]
"""Values of a batch, its weights and their divisor."""


def _gathered(own: list[Part], device: torch.device) -> list[list[Part]]:
    """Return the parts of every process, on this one's device."""
    if distributed.world() == 1:
        return [own]
    sent = [(_on(values, torch.device("cpu")), weight, size) for values, weight, size in own]
    return [
        [(_on(values, device), weight, size) for values, weight, size in theirs]
        for theirs in distributed.gathered(sent)
    ]


def _on(values: Any, device: torch.device) -> Any:
    found = {name: getattr(values, name) for name in _names(values)}
    return replace(values, **{name: one.to(device) for name, one in found.items() if isinstance(one, Tensor)})


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
