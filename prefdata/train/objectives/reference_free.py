"""Losses of pairs that need no reference. `c` and `r` are log-probabilities of the chosen and the rejected response."""

from __future__ import annotations

import torch
from torch import Tensor

from prefdata.train.objectives.mixing import log1mexp, logistic, mixed
from prefdata.train.objectives.values import Policy


def orpo(v: Policy, *, lam: float) -> Tensor:
    """ORPO's odds ratio term, `-lam log s(log odds(c) - log odds(r))`, odds = P / (1 - P), P = exp(log-prob / tokens).

    Hong et al. (2024, arXiv:2403.07691), equations 4 and 7; the NLL of the chosen response is added.
    """
    return lam * mixed(lambda c, r: logistic((c - r) - (log1mexp(c) - log1mexp(r))), v.means, v.labels)


def simpo(v: Policy, *, beta: float, gamma: float) -> Tensor:
    """SimPO, `-log s(beta (c / |chosen| - r / |rejected|) - gamma)` (Meng et al. 2024, arXiv:2405.14734)."""
    return mixed(lambda c, r: logistic(beta * (c - r) - gamma), v.means, v.labels)


def cpo(v: Policy, *, beta: float) -> Tensor:
    """CPO's preference term, `-log s(beta (c - r))` (Xu et al. 2024, arXiv:2401.08417, equation 3).

    The NLL of the chosen response is added.
    """
    return mixed(lambda c, r: logistic(beta * (c - r)), v.logps, v.labels)


def slic_hf(v: Policy, *, delta: float, reg_weight: float) -> Tensor:
    """SLiC-HF, `max(0, delta - c + r) - reg_weight c` (Zhao et al. 2023, arXiv:2305.10425).

    The paper regularises with the SFT target or the best candidate; here it is the chosen response.
    """
    rank = mixed(lambda c, r: torch.relu(delta - (c - r)), v.logps, v.labels)
    return rank - reg_weight * v.whole[:, 0]
