"""From a rollout to an updated policy: log-probabilities and values, advantages, gradient steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefdata.train.batches import Batch, Example, micro_batches, order
from prefdata.train.head import Head, head_logps
from prefdata.train.logps import CHUNK_ELEMENTS, last_hidden, sum_responses
from prefdata.train.metrics import MetricSums, stack_sums
from prefdata.train.models import LoadedModel
from prefdata.train.ppo import advantages as adv
from prefdata.train.ppo.losses import clipped_policy_losses, clipped_value_losses, online_dpo_losses
from prefdata.train.ppo.rollout import Rollout
from prefdata.train.ppo.specs import PpoSpec


@dataclass(frozen=True)
class Experience:
    """A rollout with all that the losses read; tables are `[P * K, T]`, on the CPU.

    Attributes:
        examples: each prompt with its K responses.
        mask: where tokens are.
        logps: log-probabilities under the policy that sampled, in nats.
        ref_logps: under the reference.
        values: of the critic that saw the rollout; 0 without one.
        advantages: of the tokens.
        returns: what the critic is to say.
        rewards: `[P, K]` of the responses, the KL subtracted where it is in the reward.
    """

    examples: Sequence[Example]
    mask: Tensor
    logps: Tensor
    ref_logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    rewards: Tensor

    @property
    def kl(self) -> float:
        """The mean over responses of the KL from the reference, summed over tokens, in nats (k1)."""
        return float(torch.where(self.mask, self.logps - self.ref_logps, 0.0).sum(1).mean())


def token_values(loaded: LoadedModel, model: Any, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """`[N]` log-probabilities of a batch's tokens, values before them (with a value head), and entropies."""
    with loaded.precision():
        hidden = last_hidden(model, batch)[batch.predictors]
        logps, entropies = head_logps(Head.of(model), hidden, batch.targets, CHUNK_ELEMENTS, entropies=True)
    head = getattr(model, "value_head", None)
    return logps, None if head is None else head(hidden.float())[:, 0], entropies


@torch.no_grad()
def measure(loaded: LoadedModel, model: Any, examples: Sequence[Example]) -> tuple[Tensor, Tensor, Tensor]:
    """`[P * K, T]` mask, log-probabilities and values of all responses under `model`."""
    model.eval()
    k = len(examples[0].responses)
    columns = max(len(response) for example in examples for response in example.responses)
    mask = torch.zeros(len(examples) * k, columns, dtype=torch.bool)
    logps, values = torch.zeros(mask.shape), torch.zeros(mask.shape)

    def fill(tokens: int) -> None:
        for batch in micro_batches(examples, range(len(examples)), tokens, loaded.layout):
            cells = places(batch, k)
            found, value, _ = token_values(loaded, model, batch.to(loaded.device))
            mask[cells], logps[cells] = True, found.float().cpu()
            if value is not None:
                values[cells] = value.cpu()

    loaded.micro.whole(fill)
    return mask, logps, values


def places(batch: Batch, k: int) -> tuple[Tensor, Tensor]:
    """Where a batch's tokens stand in tables `[P * K, T]`."""
    row = batch.row.cpu()
    return torch.from_numpy(batch.index)[row // k] * k + row % k, batch.position.cpu()


def make_experience(
    spec: PpoSpec, rollout: Rollout, mask: Tensor, logps: Tensor, ref_logps: Tensor, values: Tensor, kl_coef: float
) -> Experience:
    """Score, KL and values to advantages, as the method has it."""
    scores = rollout.scores.float() - spec.missing_end_penalty * rollout.truncated
    if spec.reward_clip is not None:
        scores = scores.clamp(-spec.reward_clip, spec.reward_clip)
    inside = kl_coef if spec.kl_in == "reward" and spec.method != "online-dpo" else 0.0
    by_token = adv.token_rewards(scores.flatten(), adv.kl_estimates(logps, ref_logps, spec.kl_estimator), mask, inside)
    rewards = by_token.sum(1).view_as(scores)
    returns = values
    if spec.method == "ppo":
        if spec.whiten_rewards:
            by_token = adv.whiten(by_token, mask, shift_mean=False)
        found, returns = adv.gae(by_token, values, mask, spec.gamma, spec.lam)
        if spec.whiten_advantages:
            found = adv.whiten(found, mask)
    elif spec.method == "online-dpo":
        found = torch.zeros_like(logps)
    else:
        of = {"rloo": adv.rloo_advantages, "grpo": adv.grpo_advantages, "reinforce": adv.reinforce_advantages}
        found = of[spec.method](rewards).flatten()[:, None] * mask
    return Experience(rollout.examples, mask, logps, ref_logps, values, found, returns, rewards)


class Updater:
    """Takes the gradient steps of one rollout.

    Args:
        loaded: the policy, with its value head where the method has one.
        optimizer: of it.
        spec: the settings.
    """

    def __init__(self, loaded: LoadedModel, optimizer: torch.optim.Optimizer, spec: PpoSpec) -> None:
        self._loaded, self._optimizer, self._spec = loaded, optimizer, spec

    def __call__(self, experience: Experience, step: int, kl_coef: float) -> list[MetricSums]:
        """Update the policy by all passes over a step's (from 0) experience; returns the metrics of its minibatches."""
        pieces: list[MetricSums] = []
        count, size = len(experience.examples), -(-len(experience.examples) // self._spec.minibatches)
        for epoch in range(self._spec.update_epochs):
            shuffled = order(count, self._spec.seed, step * self._spec.update_epochs + epoch).tolist()
            for start in range(0, count, size):
                pieces += self.minibatch(experience, shuffled[start : start + size], kl_coef)
        return pieces

    def minibatch(self, experience: Experience, index: Sequence[int], kl_coef: float) -> list[MetricSums]:
        """One optimiser step on the prompts at `index`."""
        model = self._loaded.model
        pieces = self.gradient(experience, index, kl_coef)
        norm = nn.utils.clip_grad_norm_(model.parameters(), self._spec.max_grad_norm or math.inf)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return [*pieces, {"grad_norm": (norm.detach(), 1.0)}]

    def gradient(self, experience: Experience, index: Sequence[int], kl_coef: float) -> list[MetricSums]:
        """Add the gradient of the loss over the prompts at `index`, however they are cut into micro-batches."""
        self._loaded.model.eval()  # dropout would make ratios of the same weights differ from 1
        k = len(experience.examples[0].responses)
        rows = (torch.tensor(index)[:, None] * k + torch.arange(k)).flatten()
        size = float(experience.mask[rows].sum()), float(len(rows))

        def add(tokens: int) -> list[MetricSums]:
            self._optimizer.zero_grad()  # of what was added until memory ended
            pieces = []
            for batch in micro_batches(experience.examples, index, tokens, self._loaded.layout):
                loss, metrics = self._loss(experience, batch, k, size, kl_coef)
                loss.backward()  # type: ignore[no-untyped-call]
                pieces.append(metrics)
            return pieces

        return self._loaded.micro.whole(add)

    def _loss(
        self, experience: Experience, batch: Batch, k: int, size: tuple[float, float], kl_coef: float
    ) -> tuple[Tensor, MetricSums]:
        spec, cells = self._spec, places(batch, k)
        moved = batch.to(self._loaded.device)
        logps, values, entropies = token_values(self._loaded, self._loaded.model, moved)
        assert entropies is not None
        device = logps.device

        def at(table: Tensor) -> Tensor:
            return table[cells].to(device)

        old, reference = at(experience.logps), at(experience.ref_logps)
        tokens = float(len(logps))
        metrics: dict[str, tuple[Tensor | float, Tensor | float]] = {"entropy": (entropies.sum(), tokens)}
        if spec.method == "online-dpo":
            rewards = experience.rewards[torch.from_numpy(batch.index)].to(device)
            losses, differs = online_dpo_losses(sum_responses(moved, logps - reference), rewards, kl_coef)
            total = losses.sum() / (size[1] / k)
            return total, {**metrics, "loss": (total.detach(), size[1] / k), "pairs": (differs.sum(), len(differs))}
        weights = self._weights(moved, size)
        losses, ratios, clipped = clipped_policy_losses(logps, old, at(experience.advantages), spec.clip)
        if spec.kl_in == "loss":
            losses = losses + kl_coef * adv.kl_estimates(logps, reference, spec.kl_estimator)
        total = (losses * weights).sum()
        metrics |= {"loss/policy": (losses.detach().sum(), tokens), "clip_fraction": (clipped.sum(), tokens)}
        metrics |= {"ratio": (ratios.sum(), tokens)}
        if values is not None:
            critic = clipped_value_losses(values, at(experience.values), at(experience.returns), spec.value_clip)
            total = total + spec.value_coef * (critic * weights).sum()
            metrics |= {"loss/value": (critic.detach().sum(), tokens)}
        return total, metrics

    def _weights(self, batch: Batch, size: tuple[float, float]) -> Tensor:
        """`[N]` of the tokens: ppo takes the mean over tokens; grpo that of each response; the others its sum."""
        if self._spec.method == "ppo":
            return torch.full((len(batch.row),), 1 / size[0], device=batch.row.device)
        if self._spec.method == "grpo":
            return 1 / batch.counts.flatten()[batch.row] / size[1]
        return torch.full((len(batch.row),), 1 / size[1], device=batch.row.device)


def summary(spec: PpoSpec, rollout: Rollout, experience: Experience) -> dict[str, float]:
    """Return the figures about responses in a step's line of metrics.jsonl."""
    lengths = experience.mask.sum(1).float()
    return {
        "score": float(rollout.scores.float().mean()),
        "reward": float(experience.rewards.mean()),
        "kl": experience.kl,
        "tokens": float(lengths.mean()),
        "ended": float((~rollout.truncated).float().mean()),
        "left_out": float(rollout.left_out),
    }


def means(pieces: Sequence[MetricSums]) -> dict[str, float]:
    """Return the means of a step's metrics."""
    return {name: float(pair[0] / pair[1]) for name, pair in stack_sums(pieces).items()}
