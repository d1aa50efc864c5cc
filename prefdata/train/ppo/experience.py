"""From a rollout to what the losses read: log-probabilities, values, shaped scores, rewards by token, advantages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prefdata.train.batches import Batch, micro_batches
from prefdata.train.ppo import advantages as adv
from prefdata.train.ppo.roles import Roles
from prefdata.train.ppo.rollout import Rollout
from prefdata.train.ppo.specs import PpoSpec


@dataclass(frozen=True)
class Measured:
    """What the networks say of a rollout's tokens: tables `[P * K, T]`, on the CPU, a row a response.

    Attributes:
        mask: where tokens are.
        logps: log-probabilities under the policy that sampled, in nats.
        ref_logps: under the reference.
        values: of the states in which the tokens were sampled; 0 without a critic.
        entropies: of the policy, in nats.
    """

    mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    entropies: Tensor


@dataclass(frozen=True)
class Experience:
    """A rollout with all that the losses read; tables of tokens are `[P * K, T]`, on the CPU.

    Attributes:
        rollout: the responses.
        measured: the networks' values before the first update.
        advantages: of the tokens.
        returns: what the critic is trained to predict.
        rewards: `[P, K]` of the responses, the KL subtracted where it is in the reward.
    """

    rollout: Rollout
    measured: Measured
    advantages: Tensor
    returns: Tensor
    rewards: Tensor


@torch.no_grad()
def measure(roles: Roles, rollout: Rollout) -> Measured:
    """Ask policy, reference and critic about all responses of a rollout."""
    roles.eval()
    examples, policy = rollout.examples, roles.policy
    columns = max(len(response) for example in examples for response in example.responses)

    def within(tokens: int) -> Measured:
        tables = Measured(*(torch.zeros(rollout.present.numel(), columns) for _ in range(5)))
        for batch in micro_batches(examples, range(len(examples)), tokens, policy.layout):
            cells, moved = places(batch, rollout.responses), batch.to(policy.device)
            found = roles.token_values(moved)
            tables.mask[cells], tables.logps[cells] = 1.0, found.logps.float().cpu()
            tables.ref_logps[cells], tables.entropies[cells] = roles.reference_logps(moved).cpu(), found.entropies.cpu()
            if found.values is not None:
                tables.values[cells] = found.values.cpu()
        return Measured(tables.mask > 0, tables.logps, tables.ref_logps, tables.values, tables.entropies)

    return policy.micro.whole(within)


def places(batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Where a batch's tokens stand in tables `[P * K, T]`."""
    row, width = batch.row.cpu(), batch.counts.shape[1]
    return torch.from_numpy(batch.index)[row // width] * k + row % width, batch.position.cpu()


def shaped_scores(spec: PpoSpec, rollout: Rollout, lengths: Tensor) -> Tensor:
    """`[P, K]` scores as they are rewarded: whitened, clipped, then with the terms of missing ends and of length.

    Args:
        spec: the settings.
        rollout: the responses.
        lengths: `[P, K]` their tokens.
    """
    scores = rollout.scores
    if spec.whiten_scores:
        scores = adv.whiten(scores, rollout.present)
    if spec.reward_clip is not None:
        scores = scores.clamp(-spec.reward_clip, spec.reward_clip)
    if spec.missing_end_score is not None:
        scores = torch.where(rollout.truncated, spec.missing_end_score, scores)
    return scores - spec.missing_end_penalty * rollout.truncated - spec.length_coef * lengths


RESPONSE_ADVANTAGES = {
    "rloo": adv.rloo_advantages,
    "grpo": adv.grpo_advantages,
    "reinforce": adv.reinforce_advantages,
}
"""Advantages of whole responses, by method."""


def make_experience(spec: PpoSpec, rollout: Rollout, measured: Measured, kl_coef: float) -> Experience:
    """Turn scores, KL and values into advantages, by the method."""
    mask, values = measured.mask, measured.values
    scores = shaped_scores(spec, rollout, mask.sum(1).view_as(rollout.scores))
    inside = kl_coef if spec.kl_in == "reward" and spec.method != "online-dpo" else 0.0
    kls = adv.kl_estimates(measured.logps, measured.ref_logps, spec.kl_estimator)
    by_token = adv.token_rewards(scores.flatten(), kls, mask, inside)
    rewards, returns = by_token.sum(1).view_as(scores), values
    if spec.method == "ppo":
        if spec.whiten_rewards:
            by_token = adv.whiten(by_token, mask, shift_mean=False)
        found, returns = adv.gae(by_token, values, mask, spec.gamma, spec.lam)
        if spec.whiten_advantages:
            found = adv.whiten(found, mask)
    elif spec.method == "online-dpo":
        found = torch.zeros_like(values)  # its loss reads the rewards themselves
    else:
        found = RESPONSE_ADVANTAGES[spec.method](rewards, rollout.present).flatten()[:, None] * mask
    return Experience(rollout, measured, found, returns, rewards)


def summary(experience: Experience) -> dict[str, float]:
    """Return the figures about responses in a line of metrics.jsonl: means over those that have a score."""
    rollout, measured, present = experience.rollout, experience.measured, experience.rollout.present
    mask, count = measured.mask, present.sum()
    members = {f"score/{name}": float(found.nanmean()) for name, found in rollout.members.items()}
    return {
        "score": float(rollout.scores[present].mean()),
        **members,
        "reward": float(experience.rewards[present].mean()),
        "kl": float(torch.where(mask, measured.logps - measured.ref_logps, 0.0).sum() / count),  # k1, of responses
        "entropy": float(measured.entropies[mask].mean()),
        "tokens": float(mask.sum() / count),
        "ended": float((~rollout.truncated[present]).float().mean()),
        "unscored": float(rollout.unscored.total()),
    }
