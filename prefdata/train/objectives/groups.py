"""Losses of groups: several rated responses of a prompt. Equal ratings are never compared.

`r_i` are ratings, `l_i` log-probabilities of the responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from prefdata.train.objectives import mixing
from prefdata.train.objectives.mixing import better, gaps, over_pairs
from prefdata.train.objectives.values import Policy


def rrhf(v: Policy, *, rank_weight: float, sft_weight: float, length_power: float) -> Tensor:
    """RRHF, `rank_weight sum max(0, p_j - p_i) over r_i > r_j - sft_weight l_best`, `p = l / tokens^length_power`.

    Yuan et al. (2023, arXiv:2304.05302), equations 2 to 4, whose weights are 1. Several best responses share the
    SFT term equally; rank_weight 0 is best-of-n SFT, the paper's ablation.
    """
    p = v.logps / v.counts.clamp(min=1) ** length_power
    rank = over_pairs(torch.relu(-gaps(p)), better(v.rating, v.present), mean=False)
    return rank_weight * rank - sft_weight * _best_logp(v)


def slic_rank(v: Policy, *, delta: float, reg_weight: float, regularizer: str) -> Tensor:
    """SLiC's rank loss, the mean of `max(0, delta - l_i + l_j)` over `r_i > r_j`, and the regularizer.

    Zhao et al. (2022, arXiv:2210.00045).
    """
    rank = over_pairs(torch.relu(delta - gaps(v.logps)), better(v.rating, v.present))
    return rank + reg_weight * _regularizer(v, regularizer)


def slic_margin(v: Policy, *, delta: float, reg_weight: float, regularizer: str) -> Tensor:
    """SLiC's margin loss, the mean of `max(0, delta (r_i - r_j) - l_i + l_j)` over `r_i > r_j`, and the regularizer."""
    wanted = delta * gaps(v.rating.nan_to_num())
    rank = over_pairs(torch.relu(wanted - gaps(v.logps)), better(v.rating, v.present))
    return rank + reg_weight * _regularizer(v, regularizer)


def slic_list(v: Policy, *, delta: float, reg_weight: float, regularizer: str) -> Tensor:
    """SLiC's list-wise loss, `sum max(0, delta (rank_j - rank_i) - l_i + l_j)` over `r_i > r_j`, and the regularizer.

    A response's rank is the number of those that are rated above it.
    """
    above = better(v.rating, v.present)
    rank = above.sum(1).to(v.logps.dtype)  # how many are rated above each
    wanted = delta * (rank[:, None, :] - rank[:, :, None])
    return over_pairs(torch.relu(wanted - gaps(v.logps)), above, mean=False) + reg_weight * _regularizer(v, regularizer)


def slic_reward(v: Policy, *, reg_weight: float, regularizer: str) -> Tensor:
    """SLiC's expected-reward loss, `-sum_i r_i P_i / sum_j P_j` with `P = exp(l)`, and the regularizer."""
    known = v.present & ~v.rating.isnan()
    share = torch.where(known, v.logps, -torch.inf).softmax(1)
    expected = torch.where(known, share * v.rating.nan_to_num(), 0.0).sum(1)
    return reg_weight * _regularizer(v, regularizer) - expected


def plackett_luce(v: Policy, *, beta: float) -> Tensor:
    """Listwise DPO: the Plackett-Luce NLL of the ranking, of implicit rewards `beta (l_i - l_ref_i)`.

    Rafailov et al. (2023, arXiv:2305.18290), appendix A.3. Of two responses it is DPO.
    """
    return mixing.plackett_luce(beta * v.rewards, v.rating, v.present)


def _best_logp(v: Policy) -> Tensor:
    return (v.whole * mixing.best(v.rating, v.present)).sum(1)


def _regularizer(v: Policy, regularizer: str) -> Tensor:
    """Return `[E]`: cross-entropy, or the token-wise KL from the initial model, along the best response."""
    if regularizer == "ce":
        return -_best_logp(v)
    assert v.kls is not None
    return (v.kls * mixing.best(v.rating, v.present)).sum(1)
