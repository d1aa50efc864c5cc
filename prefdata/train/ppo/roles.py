"""The networks of a training: the policy, the reference that it is held to, and the critic."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prefdata.errors import ModelError
from prefdata.models.files import identify
from prefdata.train import models
from prefdata.train.batches import Batch
from prefdata.train.head import Head, head_entropies, head_logps
from prefdata.train.logps import CHUNK_ELEMENTS, last_hidden, score_head
from prefdata.train.models import LoadedModel
from prefdata.train.optimizer import make_optimizer
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.reference import frozen_model
from prefdata.train.specs import RmSpec


@dataclass(frozen=True)
class TokenValues:
    """What policy and critic say of a batch's `N` tokens.

    Attributes:
        logps: `[N]` log-probabilities, in nats.
        entropies: `[N]` of the distributions that the tokens were sampled from, in nats; with gradient where the loss
            has an entropy bonus.
        values: `[N]` of the states in which the tokens were sampled; None without a critic.
    """

    logps: Tensor
    entropies: Tensor
    values: Tensor | None


class Roles:
    """Policy, reference and critic.

    The reference is a frozen copy of the policy as it is now, or the policy without its adapter. The critic is a
    network of its own (`--critic`), or a linear head on the policy's last hidden states, or there is none.

    Args:
        policy: the policy.
        spec: the settings.
    """

    def __init__(self, policy: LoadedModel, spec: PpoSpec) -> None:
        self.policy, self._spec = policy, spec
        self.reference: Any = frozen_model(policy, policy)
        self.critic = None if spec.critic is None else load_critic(spec, policy)
        if spec.method == "ppo" and self.critic is None:
            policy.model.value_head = new_value_head(policy)
        self.average: Any = None if spec.ema is None else deepcopy(policy.model).requires_grad_(False)

    @property
    def trained(self) -> list[nn.Module]:
        """The networks that are trained; each has its own gradient norm."""
        return [self.policy.model] if self.critic is None else [self.policy.model, self.critic.model]

    @property
    def modules(self) -> dict[str, nn.Module]:
        """All that changes in training, by name."""
        named = dict(zip(("model", "critic"), self.trained, strict=False))
        return named if self.average is None else {**named, "average": self.average}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of policy and critic; the critic's groups have `lr_factor` times the learning rate."""
        optimizer = make_optimizer(self.policy.model, self._spec)
        if self.critic is not None:
            factor = (self._spec.critic_lr or self._spec.lr) / self._spec.lr
            for group in make_optimizer(self.critic.model, self._spec).param_groups:
                optimizer.add_param_group({**group, "lr_factor": factor})
        return optimizer

    def eval(self) -> None:
        """Switch dropout off: with it, ratios of the same weights would differ from 1."""
        for network in self.trained:
            network.eval()

    def token_values(self, batch: Batch) -> TokenValues:
        """Compute policy and critic on a batch on their device."""
        model, wanted = self.policy.model, bool(self._spec.entropy_coef)
        with self.policy.precision():
            hidden = last_hidden(model, batch)[batch.predictors]
            head = Head.of(model, self._spec.temperature)
            logps, entropies = head_logps(head, hidden, batch.targets, CHUNK_ELEMENTS, entropies=not wanted)
            if wanted:
                entropies = head_entropies(head, hidden, CHUNK_ELEMENTS)
        assert entropies is not None
        return TokenValues(logps, entropies, self._values(batch, hidden))

    def _values(self, batch: Batch, hidden: Tensor) -> Tensor | None:
        if self.critic is not None:
            with self.critic.precision():
                states = last_hidden(self.critic.model, batch)[batch.predictors]
            values: Tensor = score_head(self.critic.model)(states.float())
            return values[:, 0]
        head = getattr(self.policy.model, "value_head", None)
        return None if head is None else head(hidden.float())[:, 0]

    @torch.no_grad()
    def reference_logps(self, batch: Batch) -> Tensor:
        """`[N]` log-probabilities of a batch's tokens under the reference."""
        with self.policy.precision():
            hidden = last_hidden(self.reference, batch)[batch.predictors]
            head = Head.of(self.reference, self._spec.temperature)
            logps, _ = head_logps(head, hidden, batch.targets, CHUNK_ELEMENTS)
        return logps

    @torch.no_grad()
    def follow(self) -> None:
        """Move the average of the weights towards the policy, after a step."""
        if self.average is not None:
            assert self._spec.ema is not None
            for own, new in zip(self.average.parameters(), self.policy.model.parameters(), strict=True):
                own.lerp_(new, 1 - self._spec.ema)


def new_value_head(policy: LoadedModel) -> nn.Linear:
    """Return a head whose values are 0 at first (Huang et al. 2024, arXiv:2403.17031)."""
    head = nn.Linear(policy.model.get_output_embeddings().weight.shape[1], 1).to(policy.device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def load_critic(spec: PpoSpec, policy: LoadedModel) -> LoadedModel:
    """Return the critic that starts from a reward model.

    Raises:
        ModelError: there is no such reward model, or it has other tokens than the policy.
        UsageError: it cannot take batches as the policy's are laid out.
    """
    assert spec.critic is not None
    files = identify(spec.critic, "reward-model")
    tokenizer = models.load_chat(files, spec).tokenizer
    if tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ModelError(
            f"{files.name} has other tokens than {spec.model}, so that it cannot be its critic. Leave out --critic: a "
            "value head on the policy needs none."
        )
    fields = ("device", "dtype", "micro_tokens", "seed")
    asked = RmSpec(model=spec.critic, batch_layout=policy.layout, **{name: getattr(spec, name) for name in fields})
    return models.load(files, asked, tokenizer)
