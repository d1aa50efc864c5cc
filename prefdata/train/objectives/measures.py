"""Metrics of a batch, as (sum, count) by name: so that the means do not depend on the micro-batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefdata.train.metrics import MetricSums
from prefdata.train.objectives.mixing import best, better, gaps
from prefdata.train.objectives.registry import Data, Loss
from prefdata.train.objectives.unpaired import mismatched_kl
from prefdata.train.objectives.values import Examples, Policy, Scored


@torch.no_grad()
def policy_measures(loss: Loss, v: Policy, settings: Mapping[str, Any]) -> MetricSums:
    """Compute rewards (beta times the loss's own reward), log-probabilities, and the policy's drift."""
    logps, tokens = v.whole, v.counts[:, 0].sum()
    sums = _entropy(loss, v)
    if loss.data == "demonstrations":
        return sums
    rewards = (settings.get("beta") or 1.0) * _reward(loss, v)
    sums |= preferences(loss.data, rewards, v)
    if loss.data == "pairs":
        sums |= {f"logps/{side}": _mean(logps[:, k]) for k, side in enumerate(("chosen", "rejected"))}
        if v.ref_logps is not None:
            sums["logps/chosen_drift"] = (v.ratios[:, 0].sum(), tokens)  # nats per token
    elif loss.data == "groups":
        sums["logps/best"] = ((logps * best(v.rating, v.present)).sum(), float(len(logps)))
    elif loss.coupled and loss.name == "kto":
        sums["kl"] = (mismatched_kl(v) * len(logps), float(len(logps)))
    return sums


def _entropy(loss: Loss, v: Policy) -> dict[str, tuple[Tensor | float, Tensor | float]]:
    if v.entropies is None:
        return {}
    own = slice(1) if loss.data == "unpaired" else slice(None)  # a mismatched response is not the example's
    return {"entropy": (v.entropies[:, own].sum(), v.counts[:, own].sum())}


def _reward(loss: Loss, v: Policy) -> Tensor:
    kinds = {"ratios": "rewards", "mean_ratios": "mean_rewards", "logps": "logps", "means": "means"}
    values: Tensor = getattr(v, kinds[loss.reward])
    return values


@torch.no_grad()
def score_measures(loss: Loss, v: Scored) -> MetricSums:
    """Compute scores by side, their agreement with the labels, and the variance of several heads on one response."""
    if loss.data == "rated":
        return {"scores": (v.score[v.present].sum(), v.present.sum())}
    sums = dict(preferences(loss.data, v.score, v))
    if v.draws is not None:
        variance = v.scores.var(-1, correction=0)
        sums["rewards/variance"] = (variance[v.present].sum(), v.present.sum())
    return sums


def preferences(data: Data, rewards: Tensor, v: Examples) -> MetricSums:
    """Compute the rewards of both sides, margins, accuracies (strict wins, as TRL counts) and ties, for any data."""
    if data == "unpaired":
        good, bad = v.label > 0.5, v.label <= 0.5
        return {
            "rewards/desirable": (rewards[good, 0].sum(), good.sum()),
            "rewards/undesirable": (rewards[bad, 0].sum(), bad.sum()),
        }
    if data == "groups":
        compared, differences = better(v.rating, v.present), gaps(rewards)
        pairs = compared.sum()
        return {
            "rewards/best": ((rewards * best(v.rating, v.present)).sum(), float(len(rewards))),
            "rewards/margins": (differences[compared].sum(), pairs),
            "rewards/accuracies": ((differences[compared] > 0).sum(), pairs),
            "rewards/ties": ((differences[compared] == 0).sum(), pairs),
        }
    chosen, rejected = rewards.unbind(1)
    return {
        "rewards/chosen": _mean(chosen),
        "rewards/rejected": _mean(rejected),
        "rewards/margins": _mean(chosen - rejected),
        "rewards/accuracies": _mean(chosen > rejected),
        "rewards/ties": _mean(chosen == rejected),
    }


def _mean(values: Tensor) -> tuple[Tensor, float]:
    return values.sum(), float(len(values))
