"""From experience to an updated policy: passes over a step's responses, in minibatches, in micro-batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefdata.ids import seed as seed_of
from prefdata.train.batches import Batch, Example, micro_batches, order, step_indices
from prefdata.train.logps import response_logps, sum_responses
from prefdata.train.metrics import MetricSums, stack_sums
from prefdata.train.optimizer import gradient_norm
from prefdata.train.ppo import advantages as adv
from prefdata.train.ppo.experience import Experience, places
from prefdata.train.ppo.losses import clipped_policy_losses, clipped_value_losses, online_dpo_losses
from prefdata.train.ppo.roles import Roles, TokenValues
from prefdata.train.ppo.specs import PpoSpec


@dataclass(frozen=True)
class Size:
    """What the losses of a minibatch are divided by, however it is cut into micro-batches."""

    tokens: float
    responses: float
    prompts: float


class Updater:
    """Takes the gradient steps of one rollout.

    Args:
        roles: the networks.
        optimizer: of policy and critic.
        spec: the settings.
        demonstrations: what the policy keeps imitating (PPO-ptx), if anything.
    """

    def __init__(
        self, roles: Roles, optimizer: torch.optim.Optimizer, spec: PpoSpec, demonstrations: Sequence[Example] = ()
    ) -> None:
        self._roles, self._optimizer, self._spec, self._demonstrations = roles, optimizer, spec, demonstrations

    def __call__(self, experience: Experience, step: int, kl_coef: float) -> list[MetricSums]:
        """Update the policy by all passes over a step's (from 0) experience; returns the metrics of its minibatches.

        Where the policy is further than `kl_stop` from the one that sampled, the passes end before the next update.
        """
        spec, pieces = self._spec, list[MetricSums]()
        count, size = len(experience.rollout.examples), -(-len(experience.rollout.examples) // spec.minibatches)
        updates = 0
        for epoch in range(spec.update_epochs):
            shuffled = order(count, spec.seed, step * spec.update_epochs + epoch).tolist()
            for number, start in enumerate(range(0, count, size)):
                place = (step * spec.update_epochs + epoch) * spec.minibatches + number
                found = self.gradient(experience, shuffled[start : start + size], kl_coef, self._imitated(place))
                moved = means(found).get("kl_step", 0.0)
                if spec.kl_stop is not None and moved > spec.kl_stop:
                    self._optimizer.zero_grad()
                    return [*pieces, {"updates": (updates, 1.0)}]
                pieces += [*found, self._apply(seed_of(spec.seed, "rounding", step, updates))]
                updates += 1
        return [*pieces, {"updates": (updates, 1.0)}]

    def _apply(self, seed: int) -> MetricSums:
        norms = {}
        for name, network in zip(("grad_norm", "grad_norm/critic"), self._roles.trained, strict=False):
            norm = gradient_norm(network.parameters())
            if self._spec.max_grad_norm:
                nn.utils.clip_grads_with_norm_(network.parameters(), self._spec.max_grad_norm, norm)
            norms[name] = (norm.detach(), 1.0)
        torch.manual_seed(seed)  # of the rounding of bfloat16 weights
        self._optimizer.step()
        self._optimizer.zero_grad()
        return norms

    def gradient(
        self, experience: Experience, index: Sequence[int], kl_coef: float, imitated: Sequence[int] = ()
    ) -> list[MetricSums]:
        """Set the gradient to that of the loss over the prompts at `index`, however they are cut into micro-batches.

        `imitated` are the places of demonstrations whose NLL is added.
        """
        self._roles.eval()
        rollout, policy, k = experience.rollout, self._roles.policy, experience.rollout.responses
        rows = (torch.tensor(index)[:, None] * k + torch.arange(k)).flatten()
        tokens, responses = experience.measured.mask[rows].sum(), rollout.present[list(index)].sum()
        size = Size(float(tokens), float(responses), float(len(index)))

        def within(tokens: int) -> list[MetricSums]:
            self._optimizer.zero_grad()  # of what was added until memory ended
            pieces = []
            for batch in micro_batches(rollout.examples, index, tokens, policy.layout):
                loss, metrics = self._loss(experience, batch, size, kl_coef)
                loss.backward()  # type: ignore[no-untyped-call]
                pieces.append(metrics)
            return pieces + self._imitate(imitated, tokens)

        return policy.micro.whole(within)

    def _loss(self, experience: Experience, batch: Batch, size: Size, kl_coef: float) -> tuple[Tensor, MetricSums]:
        moved = batch.to(self._roles.policy.device)
        now = self._roles.token_values(moved)
        if self._spec.method == "online-dpo":
            return self._pair_loss(experience, moved, now, size, kl_coef)
        spec, measured, cells, count = self._spec, experience.measured, places(batch, experience.rollout.responses), 0.0

        def at(table: Tensor) -> Tensor:
            return table[cells].to(now.logps.device)

        weights, count = self._weights(moved, size), float(len(now.logps))
        losses, ratios, clipped = clipped_policy_losses(
            now.logps, at(measured.logps), at(experience.advantages), spec.clip
        )
        steps = adv.kl_estimates(at(measured.logps), now.logps.detach(), "k3")
        metrics = {"loss/policy": losses.detach().sum(), "clip_fraction": clipped.sum(), "ratio": ratios.sum()}
        metrics["kl_step"] = steps.sum()
        if spec.kl_in == "loss":
            losses = losses + kl_coef * adv.kl_estimates(now.logps, at(measured.ref_logps), spec.kl_estimator)
        if spec.entropy_coef:
            losses = losses - spec.entropy_coef * now.entropies
        if now.values is not None:
            critic = clipped_value_losses(now.values, at(measured.values), at(experience.returns), spec.value_clip)
            metrics["loss/value"] = critic.detach().sum()
            losses = losses + spec.value_coef * critic
        return (losses * weights).sum(), {name: (total, count) for name, total in metrics.items()}

    def _pair_loss(
        self, experience: Experience, batch: Batch, now: TokenValues, size: Size, beta: float
    ) -> tuple[Tensor, MetricSums]:
        reference = experience.measured.ref_logps[places(batch, experience.rollout.responses)].to(now.logps.device)
        ratios = sum_responses(batch, now.logps - reference)
        rewards = experience.rewards[torch.from_numpy(batch.index), : ratios.shape[1]].to(ratios.device)
        losses, differs = online_dpo_losses(ratios, rewards, beta, batch.present)
        metrics = {"loss": (losses.detach().sum(), len(losses)), "pairs": (differs.sum(), len(differs))}
        return losses.sum() / size.prompts, metrics

    def _weights(self, batch: Batch, size: Size) -> Tensor:
        """`[N]` of the tokens: ppo takes the mean over tokens; grpo that of each response; the others its sum."""
        if self._spec.method == "grpo":
            return 1 / batch.counts.flatten()[batch.row] / size.responses
        whole = size.tokens if self._spec.method == "ppo" else size.responses
        return torch.full((len(batch.row),), 1 / whole, device=batch.row.device)

    def _imitated(self, number: int) -> Sequence[int]:
        """Which demonstrations the optimiser step `number` imitates."""
        count = len(self._demonstrations)
        if not count:
            return ()
        index: list[int] = step_indices(count, min(self._spec.ptx_batch, count), self._spec.seed, number).tolist()
        return index

    def _imitate(self, index: Sequence[int], tokens: int) -> list[MetricSums]:
        """Add the gradient of demonstrations' NLL a token, in micro-batches of `tokens` (arXiv:2203.02155, C.4)."""
        policy, pieces = self._roles.policy, list[MetricSums]()
        size = float(sum(self._demonstrations[i].trained_tokens for i in index))
        for batch in micro_batches(self._demonstrations, index, tokens, policy.layout):
            with policy.precision():
                found = response_logps(policy.model, batch.to(policy.device))
            nll = -found.tokens.sum()
            (self._spec.ptx_coef * nll / size).backward()  # type: ignore[no-untyped-call]
            pieces.append({"loss/ptx": (nll.detach(), float(len(found.tokens)))})
        return pieces


def means(pieces: Sequence[MetricSums]) -> dict[str, float]:
    """Return the means of a step's metrics."""
    return {name: float(pair[0] / pair[1]) for name, pair in stack_sums(pieces).items()}
