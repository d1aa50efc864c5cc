"""The DPO family: losses of pairs with a reference.

`c` and `r` are the implicit rewards over beta of the chosen and the rejected response (log-ratios, unless an
f-divergence is set), `h = c - r`, `s` the logistic function.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prefdata.train.objectives.mixing import logistic, mixed
from prefdata.train.objectives.values import Policy


def sigmoid(v: Policy, *, beta: float) -> Tensor:
    """DPO, `-log s(beta h)` (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    With labels that are right with probability 1 - e it is cDPO (Mitchell 2023): its minimum is at s(beta h) = 1 - e.
    """
    return mixed(lambda c, r: logistic(beta * (c - r)), v.rewards, v.labels)


def sigmoid_mean(v: Policy, *, beta: float) -> Tensor:
    """Length-normalised DPO, `-log s(beta (c / |chosen| - r / |rejected|))` (Lambert et al. 2024, arXiv:2411.15124)."""
    return mixed(lambda c, r: logistic(beta * (c - r)), v.mean_rewards, v.labels)


def robust(v: Policy, *, beta: float, label_smoothing: float) -> Tensor:
    """Robust DPO, `((1 - e) L(h) - e L(-h)) / (1 - 2e)`, L that of DPO (Chowdhury et al. 2024, arXiv:2403.00409).

    Its mean under labels flipped at rate e is DPO's loss under clean labels; it may be negative.
    """
    c, r = v.rewards.unbind(1)
    z, e = beta * (c - r), label_smoothing
    return ((1 - e) * logistic(z) - e * logistic(-z)) / (1 - 2 * e)


def ipo_sum(v: Policy, *, beta: float) -> Tensor:
    """IPO, `(h - 1 / (2 beta))^2`, beta the paper's tau (Azar et al. 2023, arXiv:2310.12036, equation 17)."""
    return mixed(lambda c, r: (c - r - 1 / (2 * beta)).square(), v.rewards, v.labels)


def ipo_mean(v: Policy, *, beta: float) -> Tensor:
    """IPO of log-ratios per token, `(c / |chosen| - r / |rejected| - 1 / (2 beta))^2`, as TRL and HALOs compute it."""
    return mixed(lambda c, r: (c - r - 1 / (2 * beta)).square(), v.mean_rewards, v.labels)


def hinge(v: Policy, *, beta: float) -> Tensor:
    """RSO's hinge-norm, `max(0, 1 - beta h)`, beta the paper's gamma (Liu et al. 2023, arXiv:2309.06657)."""
    return mixed(lambda c, r: torch.relu(1 - beta * (c - r)), v.rewards, v.labels)


def exo(v: Policy, *, beta: float, label_smoothing: float) -> Tensor:
    """EXO of pairs, `KL((s(beta h), s(-beta h)) || (1 - e, e))` (Ji et al. 2024, arXiv:2402.00856, equation 16)."""
    c, r = v.rewards.unbind(1)
    z, e = beta * (c - r), label_smoothing
    win, lose = torch.sigmoid(z), torch.sigmoid(-z)
    return win * (-logistic(z) - math.log1p(-e)) + lose * (-logistic(-z) - math.log(e))


def nca(v: Policy, *, beta: float) -> Tensor:
    """NCA of pairs, `-log s(beta c) - (log s(-beta c) + log s(-beta r)) / 2` (Chen et al. 2024, arXiv:2402.05369)."""

    def loss(c: Tensor, r: Tensor) -> Tensor:
        return logistic(beta * c) + (logistic(-beta * c) + logistic(-beta * r)) / 2

    return mixed(loss, v.ratios, v.labels)


def bco_pair(v: Policy, *, beta: float) -> Tensor:
    """BCO of pairs without a shift, `-log s(beta c) - log s(-beta r)` (Jung et al. 2024, arXiv:2404.04656)."""
    return mixed(lambda c, r: logistic(beta * c) + logistic(-beta * r), v.ratios, v.labels)


def sppo(v: Policy, *, beta: float) -> Tensor:
    """SPPO, `(c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2` (Wu et al. 2024, arXiv:2405.00675, equation 4.7).

    beta is the paper's 1 / eta. A label of probability p moves the targets to `(p - 1/2) / beta` and its opposite.
    """
    return mixed(lambda c, r: (c - 0.5 / beta).square() + (r + 0.5 / beta).square(), v.ratios, v.labels)


def apo_zero(v: Policy, *, beta: float) -> Tensor:
    """APO-zero, `1 - s(beta c) + s(beta r)` (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 7)."""
    return mixed(lambda c, r: torch.sigmoid(-beta * c) + torch.sigmoid(beta * r), v.ratios, v.labels)


def apo_down(v: Policy, *, beta: float) -> Tensor:
    """APO-down, `s(beta c) + 1 - s(beta h)` (D'Oosterlinck et al. 2024, arXiv:2408.06266, equation 8)."""
    return mixed(lambda c, r: torch.sigmoid(beta * c) + torch.sigmoid(-beta * (c - r)), v.ratios, v.labels)


def discopop(v: Policy, *, beta: float, tau: float) -> Tensor:
    """DiscoPOP, `(1 - m) -log s(z) + m exp(-z)`, z = beta h, m = s(z / tau) (arXiv:2406.08414, equation 5)."""

    def loss(c: Tensor, r: Tensor) -> Tensor:
        z = beta * (c - r)
        # exp(-z) s(z / tau) as one power: at a large negative z it is 0 instead of infinity times 0.
        return logistic(z) * torch.sigmoid(-z / tau) + torch.exp(-z - logistic(z / tau))

    return mixed(loss, v.rewards, v.labels)


def dpop(v: Policy, *, beta: float, penalty: float) -> Tensor:
    """DPO-Positive, `-log s(beta (h - penalty max(0, -c)))` (Pal et al. 2024, arXiv:2402.13228).

    penalty is the paper's lambda: the chosen response may not become less likely than under the reference.
    """
    return mixed(lambda c, r: logistic(beta * (c - r - penalty * torch.relu(-c))), v.ratios, v.labels)


def aot(v: Policy, *, beta: float, label_smoothing: float) -> Tensor:
    """AOT of pairs: DPO's loss between the sorted log-ratios of the policy and the sorted ones of the reference.

    `-(1 - e) log s(beta d) - e log s(-beta d)`, d the differences of the order statistics of
    `log p(chosen) - log p(rejected)` over the optimiser batch (Melnyk et al. 2024, arXiv:2406.05882).
    """
    assert v.ref_logps is not None
    ours, theirs = (logps[:, 0] - logps[:, 1] for logps in (v.logps, v.ref_logps))
    return _sorted_gap(ours, theirs, beta, label_smoothing)


def aot_unpaired(v: Policy, *, beta: float, label_smoothing: float) -> Tensor:
    """AOT without pairing: as `aot` between the sorted log-ratios of all chosen and of all rejected responses.

    Melnyk et al. (2024, arXiv:2406.05882).
    """
    return _sorted_gap(v.ratios[:, 0], v.ratios[:, 1], beta, label_smoothing)


def _sorted_gap(a: Tensor, b: Tensor, beta: float, e: float) -> Tensor:
    z = beta * (a.sort().values - b.sort().values)
    return (1 - e) * logistic(z) + e * logistic(-z)
