"""Losses of single responses, desirable or undesirable. `d` is a response's log-ratio, `s` the logistic."""

from __future__ import annotations

import torch
from torch import Tensor

from prefdata.train.objectives.mixing import logistic
from prefdata.train.objectives.values import Policy


def kto(v: Policy, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """KTO, `w_d (1 - s(beta (d - z0)))` of desirable and `w_u (1 - s(beta (z0 - d)))` of undesirable responses.

    `z0 = max(0, mean over the optimiser batch of the log-ratio of a mismatched response)` without gradient: response 1
    of each example is another prompt's (Ethayarajh et al. 2024, arXiv:2402.01306, equations 7 and 8).
    """
    d, sign = v.ratios[:, 0], 2 * v.label - 1
    loss = torch.sigmoid(-beta * sign * (d - mismatched_kl(v)))
    return torch.where(v.label > 0.5, desirable_weight, undesirable_weight) * loss


def mismatched_kl(v: Policy) -> Tensor:
    """Estimate KTO's `z0`, the policy's KL from the reference, from mismatched responses: a number."""
    if v.logps.shape[1] == 1:
        return v.logps.new_zeros(())
    there = v.present[:, 1]
    total = torch.where(there, v.ratios[:, 1].detach(), 0.0).sum()
    return (total / there.sum().clamp(min=1)).clamp(min=0)


def apo_zero(v: Policy, *, beta: float) -> Tensor:
    """APO-zero without pairs, `1 - s(beta d)` of desirable and `s(beta d)` of undesirable responses.

    D'Oosterlinck et al. (2024, arXiv:2408.06266), equation 7, by term.
    """
    return torch.sigmoid(-beta * (2 * v.label - 1) * v.ratios[:, 0])


def bco(v: Policy, *, beta: float) -> Tensor:
    """BCO, `-log s(beta d - shift)` of desirable and `-log s(shift - beta d)` of undesirable responses.

    The shift is the mean of the two kinds' mean rewards `beta d` in the optimiser batch, without gradient (Jung et al.
    2024, arXiv:2404.04656, which keeps a moving average over batches). Where a batch has one kind only, it
    is that kind's mean.
    """
    rewards = beta * v.ratios[:, 0]
    sides = [rewards.detach()[v.label > 0.5], rewards.detach()[v.label <= 0.5]]
    shift = torch.stack([side.mean() for side in sides if len(side)]).mean()
    return logistic((2 * v.label - 1) * (rewards - shift))
