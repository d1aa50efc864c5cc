"""Forward passes: from a model and a batch to the values that losses are functions of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefdata.ids import seed as seed_of
from prefdata.train.batches import Batch
from prefdata.train.logps import ResponseLogps, end_scores, response_logps, sum_responses
from prefdata.train.objectives.options import token_weights
from prefdata.train.objectives.values import Policy, Scored


def weighted_logps(batch: Batch, found: ResponseLogps, ld_alpha: float) -> Tensor:
    """Sum token log-probabilities by response, `[E, K]`; weighted as in LD-DPO where `ld_alpha` is not 1."""
    if ld_alpha == 1:
        return found.sums
    starts = found.counts.flatten().cumsum(0) - found.counts.flatten()
    place = torch.arange(len(found.row), device=found.row.device) - starts[found.row]
    return sum_responses(batch, found.tokens * token_weights(place, found.row, found.counts, ld_alpha))


def policy_values(
    model: Any,
    batch: Batch,
    ref_logps: Tensor | None,
    settings: Mapping[str, Any],
    reference: Any = None,
    *,
    entropies: bool = False,
) -> Policy:
    """Compute a batch's values under a policy.

    Args:
        model: the policy.
        batch: its examples.
        ref_logps: `[E, K]` log-probabilities of the reference, or None.
        settings: the loss's settings.
        reference: the reference's model, if the loss reads its distributions.
        entropies: whether to compute the policy's entropies.
    """
    wpo, ld_alpha = bool(settings.get("wpo")), settings.get("ld_alpha", 1.0)
    found = response_logps(model, batch, entropies=entropies, collisions=wpo, reference=reference)

    def summed(values: Tensor | None) -> Tensor | None:
        return None if values is None else sum_responses(batch, values)

    off_policy = None
    if found.collisions is not None:
        off_policy = sum_responses(batch, found.tokens.detach() - found.collisions) / found.counts.clamp(min=1)
    return Policy(
        counts=found.counts,
        present=batch.present,
        margin=batch.margin,
        labels=batch.labels if settings.get("soft_labels") else None,
        label=batch.label,
        ratings=batch.ratings,
        logps=weighted_logps(batch, found, ld_alpha),
        ref_logps=ref_logps,
        full_logps=None if ld_alpha == 1 else found.sums,
        kls=summed(found.kls),
        off_policy=off_policy,
        entropies=summed(found.entropies),
    )


def reward_values(model: Any, batch: Batch, settings: Mapping[str, Any], seed: int) -> Scored:
    """Compute a batch's scores under a reward model.

    Args:
        model: a sequence classifier with a head of H outputs.
        batch: its examples.
        settings: the loss's settings.
        seed: the seed of the bootstrap samples.
    """
    scores = end_scores(model, batch)
    expert = getattr(model, "length_head", None)
    return Scored(
        counts=batch.counts,
        present=batch.present,
        margin=batch.margin if settings.get("use_margin") else torch.zeros_like(batch.margin),
        labels=batch.labels if settings.get("soft_labels") else None,
        label=batch.label,
        ratings=batch.ratings,
        scores=scores,
        length_scores=None if expert is None else expert(length_features(batch.counts)).squeeze(-1),
        draws=bootstrap(batch, scores.shape[-1], seed).to(scores.device) if settings.get("members") else None,
    )


def length_features(counts: Tensor) -> Tensor:
    """Return the inputs of the length expert `[E, K, 2]`: hundreds of tokens, and the logarithm of their number."""
    return torch.stack([counts / 100, counts.float().log1p()], -1)


def bootstrap(batch: Batch, members: int, seed: int) -> Tensor:
    """Draw how often each member's bootstrap sample has each example, `[E, H]`: Poisson(1) by seed and index."""
    generator = torch.Generator()
    rows = []
    for place in batch.index.tolist():
        generator.manual_seed(seed_of(seed, "bootstrap", place))
        rows.append(torch.poisson(torch.ones(members), generator=generator))
    return torch.stack(rows)
