"""From scores and log-probabilities to advantages: pure functions of tensors, in the precision of their input.

Tables are `[R, T]`: a row a response, a column a token; `mask` is True where there is a token. A response's tokens fill
its row from the left, its end token included where it has one. What stands outside the mask is never read.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

KlEstimator = Literal["k1", "k2", "k3"]
"""Estimators of the KL divergence from samples: Schulman, "Approximating KL divergence", 2020."""

VARIANCE_EPSILON = 1e-8
"""Added to the variance by `whiten` (Huang et al. 2024, arXiv:2403.17031)."""

STD_EPSILON = 1e-4
"""Added to a group's standard deviation by `grpo_advantages`, as TRL does."""


def kl_estimates(logps: Tensor, ref_logps: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Estimate KL(policy || reference) in nats, token by token, for tokens that the policy sampled.

    With `d = log p - log p_ref`: k1 = d (unbiased), k2 = d^2 / 2 (biased, low variance), k3 = exp(-d) - 1 + d (unbiased
    and never negative).

    Args:
        logps: log-probabilities of the sampled tokens under the policy, of any shape.
        ref_logps: the same under the reference.
        estimator: which one.
    """
    difference = logps - ref_logps
    if estimator == "k1":
        return difference
    return difference.square() / 2 if estimator == "k2" else torch.expm1(-difference) + difference


def adapted_kl_coef(coef: float, kl: float, target: float, episodes: int, horizon: int = 10_000) -> float:
    """Return the KL coefficient after a batch (Ziegler et al. 2019, arXiv:1909.08593, section 2.2).

    `coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)`.

    Args:
        coef: the coefficient of the batch.
        kl: its KL: the mean over responses of the sum over tokens of k1, in nats.
        target: the KL that is aimed at, in nats.
        episodes: responses in the batch.
        horizon: responses over which an error of 20% changes the coefficient by 20%.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * episodes / horizon)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Scale the values in the mask to variance 1 (population variance) and, with `shift_mean`, to mean 0."""
    count = mask.sum().clamp(min=1)
    inside = torch.where(mask, values, 0.0)
    mean = inside.sum() / count
    variance = torch.where(mask, values - mean, 0.0).square().sum() / count
    scaled = (values - mean) * torch.rsqrt(variance + VARIANCE_EPSILON)
    return torch.where(mask, scaled if shift_mean else scaled + mean, 0.0)


def last_tokens(mask: Tensor) -> Tensor:
    """`[R, T]` True at each response's last token, which is its end token unless the response was truncated."""
    following = torch.nn.functional.pad(mask[:, 1:], (0, 1), value=False)
    return mask & ~following


def token_rewards(scores: Tensor, kls: Tensor, mask: Tensor, kl_coef: float) -> Tensor:
    """`[R, T]` rewards: minus the KL at every token, and the score at the last one (arXiv:2203.02155, equation 2).

    The last token is known from the mask and not from comparing ids with the padding's: where the padding token is the
    end token, that comparison finds another place.

    Args:
        scores: `[R]` of the responses.
        kls: `[R, T]` estimates by token, in nats.
        mask: `[R, T]` where tokens are.
        kl_coef: reward lost for a nat.
    """
    penalties = torch.where(mask, -kl_coef * kls, 0.0)
    return penalties + torch.where(last_tokens(mask), scores[:, None], 0.0)


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """`[R, T]` advantages and returns by generalised advantage estimation (arXiv:1506.02438, equation 16).

    `delta_t = r_t + gamma V_(t+1) - V_t`, `A_t = delta_t + gamma lam A_(t+1)`, `return_t = A_t + V_t`; after the last
    token value and advantage are 0, for truncated responses too.

    Args:
        rewards: `[R, T]`.
        values: `[R, T]` of the states in which the tokens were sampled.
        mask: `[R, T]` where tokens are.
        gamma: discount of later rewards.
        lam: 0 takes one step's reward and the next value, 1 all rewards to the end.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    ahead = following = values.new_zeros(len(values))
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * following - values[:, t]
        ahead = torch.where(mask[:, t], delta + gamma * lam * ahead, 0.0)
        following = values[:, t]
        advantages[:, t] = ahead
    return advantages, advantages + values


def reinforce_advantages(rewards: Tensor, present: Tensor | None = None) -> Tensor:
    """`[P, K]` rewards minus the mean of all other responses of the batch, to whatever prompt.

    A baseline without the response's own reward leaves the gradient unbiased. With a single response the baseline is 0.

    Args:
        rewards: `[P, K]` of the responses.
        present: `[P, K]` which responses there are, all unless given; the advantage of the others is 0.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    inside = torch.where(present, rewards, 0.0)
    others = (inside.sum() - inside) / (present.sum() - 1).clamp(min=1)
    return torch.where(present, rewards - others, 0.0)


def rloo_advantages(rewards: Tensor, present: Tensor | None = None) -> Tensor:
    """`[P, K]` rewards minus the mean of the prompt's other responses (arXiv:2402.14740, section 3).

    Where a prompt has one response there is nothing to compare it with: 0. Arguments as in `reinforce_advantages`.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    inside, count = torch.where(present, rewards, 0.0), present.sum(1, keepdim=True)
    others = (inside.sum(1, keepdim=True) - inside) / (count - 1).clamp(min=1)
    return torch.where(present & (count > 1), rewards - others, 0.0)


def grpo_advantages(rewards: Tensor, present: Tensor | None = None) -> Tensor:
    """`[P, K]` rewards minus their prompt's mean, over its standard deviation (arXiv:2402.03300, section 4.1.2).

    The sample standard deviation plus 1e-4; a prompt whose rewards are all equal, or that has one, gets 0. Arguments as
    in `reinforce_advantages`.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    count = present.sum(1, keepdim=True)
    mean = torch.where(present, rewards, 0.0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(present, rewards - mean, 0.0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std + STD_EPSILON)
