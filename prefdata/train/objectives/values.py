"""Inputs of losses: the values of a batch's responses under the trained model and its reference.

Shapes: `E` examples, `K` the maximum number of responses of an example, `H` heads of a reward model. Log-probabilities
are in nats, summed over the trained tokens of a response. No loss averages over examples: each gives `[E]` values, and
the loop divides their weighted sum by the size of the whole optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Examples:
    """Labels and lengths of `E` examples.

    Attributes:
        counts: `[E, K]` trained tokens of each response.
        present: `[E, K]` whether the example has that response; values of absent ones are not read.
        margin: `[E]` the gap that the chosen score should have.
        labels: `[E, 2]` the probabilities that a pair's label is right and that it is flipped; None: all are right.
        label: `[E]` 1 for a desirable response, 0 for an undesirable one (unpaired data); else 0.
        ratings: `[E, K, A]` ratings of the responses by attribute, NaN where there is none.
    """

    counts: Tensor
    present: Tensor
    margin: Tensor
    labels: Tensor | None
    label: Tensor
    ratings: Tensor

    @property
    def rating(self) -> Tensor:
        """`[E, K]` the first attribute: what responses are ranked by."""
        return self.ratings[..., 0]


@dataclass(frozen=True)
class Policy(Examples):
    """Log-probabilities of `E` examples.

    Attributes:
        logps: `[E, K]` of the responses under the policy.
        ref_logps: `[E, K]` under the reference, or None.
        links: `[E, K]` implicit rewards over beta as an f-divergence defines them; None: the log-ratios.
        full_logps: `[E, K]` as `logps`, where `logps` weigh tokens (LD-DPO); None: no weights.
        kls: `[E, K]` KL(policy || reference) summed over the tokens of each response, if the loss reads it.
        off_policy: `[E, K]` mean over tokens of `log p(token) - log sum_v p(v)^2`, without gradient, for WPO.
        entropies: `[E, K]` of the policy's distributions, summed over the tokens, without gradient, if requested.
    """

    logps: Tensor
    ref_logps: Tensor | None = None
    links: Tensor | None = None
    full_logps: Tensor | None = None
    kls: Tensor | None = None
    off_policy: Tensor | None = None
    entropies: Tensor | None = None

    @classmethod
    def of(cls, logps: Tensor, ref_logps: Tensor | None = None, **more: Any) -> Self:
        """Build values from log-probabilities `[E, K]`; what is not given is as in data without it."""
        return cls(**{**_silent(logps), **more}, logps=logps, ref_logps=ref_logps)

    @property
    def ratios(self) -> Tensor:
        """`[E, K]` log-ratios `log p(y) - log p_ref(y)`."""
        assert self.ref_logps is not None
        return self.logps - self.ref_logps

    @property
    def rewards(self) -> Tensor:
        """`[E, K]` implicit rewards over beta."""
        return self.ratios if self.links is None else self.links

    @property
    def means(self) -> Tensor:
        """`[E, K]` log-probabilities per token."""
        return self.logps / self.counts.clamp(min=1)

    @property
    def mean_rewards(self) -> Tensor:
        """`[E, K]` implicit rewards over beta, per token."""
        return self.rewards / self.counts.clamp(min=1)

    @property
    def whole(self) -> Tensor:
        """`[E, K]` log-probabilities of the responses with every token counted once."""
        return self.logps if self.full_logps is None else self.full_logps


@dataclass(frozen=True)
class Scored(Examples):
    """Scores of `E` examples.

    Attributes:
        scores: `[E, K, H]` of the responses, by head.
        length_scores: `[E, K]` of the length expert, where a loss reads it.
        draws: `[E, H]` how often each head's bootstrap sample holds the example, where a loss reads it.
    """

    scores: Tensor
    length_scores: Tensor | None = None
    draws: Tensor | None = None

    @classmethod
    def of(cls, scores: Tensor, **more: Any) -> Self:
        """Build values from scores `[E, K]` or `[E, K, H]`; what is not given is as in data without it."""
        heads = scores if scores.ndim == 3 else scores[..., None]
        return cls(**{**_silent(heads[..., 0]), **more}, scores=heads)

    @property
    def score(self) -> Tensor:
        """`[E, K]` the mean over heads."""
        return self.scores.mean(-1)


def _silent(values: Tensor) -> dict[str, Any]:
    examples = len(values)
    return {
        "counts": torch.ones_like(values),
        "present": torch.ones_like(values, dtype=torch.bool),
        "margin": values.new_zeros(examples),
        "labels": None,
        "label": values.new_zeros(examples),
        "ratings": values.new_full((*values.shape, 1), torch.nan),
    }


def with_labels(values: Policy, label_smoothing: float) -> Policy:
    """Return the values with every label right with probability `1 - label_smoothing`."""
    # Rounded once from float64, like the data's probabilities, so that equal numbers give identical losses.
    one = torch.tensor([1 - label_smoothing, label_smoothing], dtype=torch.float64).to(values.logps)
    return replace(values, labels=one.expand(len(values.logps), 2))
