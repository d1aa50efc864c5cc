"""Objectives: a loss with its settings, and the forward pass that gives its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any, Literal

from torch import Tensor

from prefdata.train.batches import Batch, Example
from prefdata.train.metrics import MetricSums
from prefdata.train.objectives import options
from prefdata.train.objectives.forward import policy_values, reward_values
from prefdata.train.objectives.measures import policy_measures, score_measures
from prefdata.train.objectives.registry import Loss
from prefdata.train.objectives.values import Policy, Scored, with_labels
from prefdata.train.reference import Reference

NOUNS = {
    "demonstrations": "conversations",
    "pairs": "pairs",
    "groups": "groups",
    "unpaired": "responses",
    "rated": "responses",
}


@dataclass(frozen=True)
class Objective:
    """A loss, ready for the loop.

    Attributes:
        entry: the loss's entry in the registry.
        settings: all settings of the loss.
        reference: the reference of the policy, or None.
        reference_model: the reference's model, if the loss reads its distributions.
        seed: the seed of bootstrap samples.
    """

    entry: Loss
    settings: Mapping[str, Any]
    reference: Reference | None = None
    reference_model: Any = None
    seed: int = 0
    function: Callable[..., Tensor] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "function", bound(self.entry, self.settings))

    @property
    def noun(self) -> str:
        """The noun for an example in messages."""
        return NOUNS[self.entry.data]

    @property
    def coupled(self) -> bool:
        """Whether the loss couples the examples of an optimiser batch and needs all of them at once."""
        return self.entry.coupled

    @property
    def dropout(self) -> bool:
        """Whether the model's dropout is on in training: for demonstrations only."""
        return self.entry.command == "sft"

    @property
    def per(self) -> Literal["example", "token"]:
        """The divisor of a step's summed loss: the weights of its examples, or the weights times the tokens."""
        return "token" if self.entry.data == "demonstrations" else "example"

    def size(self, examples: Sequence[Example]) -> float:
        """Return the divisor of the summed loss of these examples."""
        return sum(e.weight * (e.trained_tokens if self.per == "token" else 1) for e in examples)

    def sizes(self, batch: Batch) -> Tensor:
        """Return the same for each example, `[E]`."""
        return batch.weight * batch.counts.sum(1) if self.per == "token" else batch.weight

    def values(self, model: Any, batch: Batch, entropies: bool = False) -> Policy | Scored:
        """Compute the loss's inputs under the model; with entropies where those are logged."""
        if self.entry.command == "rm":
            return reward_values(model, batch, self.settings, self.seed)
        theirs = None if self.reference is None else self.reference.logps(batch)
        return policy_values(model, batch, theirs, self.settings, self.reference_model, entropies=entropies)

    def loss(self, v: Policy | Scored) -> tuple[Tensor, MetricSums]:
        """Compute losses `[E]`, and metrics."""
        if isinstance(v, Scored):
            return self.function(v), score_measures(self.entry, v)
        given, own = self.settings, signature(self.function).parameters
        if given.get("label_smoothing") and "label_smoothing" not in own:
            v = with_labels(v, given["label_smoothing"])
        if "f_divergence" in given:
            v = options.diverged(v, given["f_divergence"], given["f_alpha"])
        losses = self.function(v)
        if given.get("wpo"):
            losses = losses * options.policy_weights(v)
        if given.get("nll_weight"):
            losses = losses + given["nll_weight"] * options.mean_nll(v)
        return losses, policy_measures(self.entry, v, given)


def bound(entry: Loss, settings: Mapping[str, Any]) -> Callable[..., Tensor]:
    """Bind the settings: the loss as a function of values alone."""
    function = entry.compute()
    own = signature(function).parameters
    return partial(function, **{name: value for name, value in settings.items() if name in own})
