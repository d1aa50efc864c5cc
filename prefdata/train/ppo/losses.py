"""The losses of policy and critic by token: pure functions of tensors `[N]`, which the caller averages."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def clipped_policy_losses(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, clip: float
) -> tuple[Tensor, Tensor, Tensor]:
    """PPO's losses `max(-A rho, -A clip(rho, 1 - clip, 1 + clip))` (arXiv:1707.06347, equation 7), and what they saw.

    Args:
        logps: `[N]` log-probabilities of the sampled tokens, with gradient.
        old_logps: the same when they were sampled.
        advantages: of the tokens.
        clip: how far a ratio may be from 1 before the gradient ends.

    Returns:
        The losses, the ratios `rho = exp(logps - old_logps)`, and where the clipped term was the larger one.
    """
    ratios = (logps - old_logps).exp()
    plain, clipped = -advantages * ratios, -advantages * ratios.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), ratios.detach(), clipped > plain


def clipped_value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Compute the critic's losses `max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2) / 2`."""
    near = torch.maximum(torch.minimum(values, old_values + clip), old_values - clip)
    return torch.maximum((values - returns).square(), (near - returns).square()) / 2


def online_dpo_losses(
    log_ratios: Tensor, rewards: Tensor, beta: float, present: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`-log s(beta (best - worst))` of each prompt (arXiv:2402.04792), best and worst by reward.

    Args:
        log_ratios: `[P, K]` log p - log p_ref of the responses, summed over tokens, in nats.
        rewards: `[P, K]`; of equal ones the first is taken.
        beta: how strongly the policy is held to the reference.
        present: `[P, K]` which responses there are; all unless given.

    Returns:
        `[P]` losses, 0 where all rewards of the prompt are equal, and whether they are not.
    """
    present = torch.ones_like(rewards, dtype=torch.bool) if present is None else present
    best = rewards.masked_fill(~present, -torch.inf).argmax(1, keepdim=True)
    worst = rewards.masked_fill(~present, torch.inf).argmin(1, keepdim=True)
    gaps = (log_ratios.gather(1, best) - log_ratios.gather(1, worst))[:, 0]
    differs = best[:, 0] != worst[:, 0]
    return torch.where(differs, -F.logsigmoid(beta * gaps), 0.0), differs
