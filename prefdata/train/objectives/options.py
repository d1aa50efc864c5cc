"""Options of many losses: labels that may be wrong, f-divergences, LD-DPO, WPO, a mixed-in NLL."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from prefdata.train.objectives.values import Policy

DIVERGENCES = ("reverse-kl", "forward-kl", "js", "alpha")


def link(ratios: Tensor, divergence: str, alpha: float) -> Tensor:
    """Compute `f'(exp(d))` of log-ratios d: the implicit reward over beta under an f-divergence, less a constant.

    reverse-kl: d. forward-kl: `1 - exp(-d)`. js: `log 2 + log s(d)`. alpha: `(exp((alpha - 1) d) - 1) / (alpha - 1)`,
    which is d at alpha 1 (Wang et al. 2023, arXiv:2309.16240). Exponents end at 80, as in TRL.
    """
    if divergence == "forward-kl":
        return 1 - torch.exp((-ratios).clamp(max=80.0))
    if divergence == "js":
        return math.log(2) + F.logsigmoid(ratios)
    if divergence == "alpha" and abs(alpha - 1) >= 1e-6:
        return (torch.exp(((alpha - 1) * ratios).clamp(max=80.0)) - 1) / (alpha - 1)
    return ratios


def diverged(v: Policy, divergence: str, alpha: float) -> Policy:
    """Replace log-ratios by implicit rewards under an f-divergence."""
    return v if divergence == "reverse-kl" else replace(v, links=link(v.ratios, divergence, alpha))


def token_weights(position: Tensor, row: Tensor, counts: Tensor, ld_alpha: float) -> Tensor:
    """Return LD-DPO's weights `[N]`: 1 for tokens up to the length of the pair's shorter response, `ld_alpha` beyond.

    Liu et al. (2024, arXiv:2409.06411).

    Args:
        position: `[N]` index of each token among those of its response that count.
        row: `[N]` its response, `e * K + k`.
        counts: `[E, K]` tokens of the responses.
        ld_alpha: 1 is DPO; 0 ignores the surplus tokens of the longer response.
    """
    shared = counts.min(1, keepdim=True).values.expand_as(counts).reshape(-1)[row]
    return torch.where(position < shared, 1.0, ld_alpha)


def policy_weights(v: Policy) -> Tensor:
    """`[E]` WPO's weights, `exp` of the two responses' means over tokens of `log p(token) - log sum_v p(v)^2`.

    How likely the policy itself is to write the pair; no gradient (Zhou et al. 2024, arXiv:2406.11827, equation 2).
    """
    assert v.off_policy is not None
    return v.off_policy.sum(1).exp().detach()


def mean_nll(v: Policy) -> Tensor:
    """Compute the chosen response's NLL per token, `[E]`: what RPO (Pang et al. 2024, arXiv:2404.19733) mixes in."""
    return -v.whole[:, 0] / v.counts[:, 0].clamp(min=1)
