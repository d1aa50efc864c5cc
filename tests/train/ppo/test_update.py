"""Experience and gradient on fixed rollouts: the first ratio, micro-batches, a reference in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_rollout import rollout_of

from prefdata.models.files import identify
from prefdata.models.memory import TokenBudget
from prefdata.train import models
from prefdata.train.ppo.experience import Experience, make_experience, measure, shaped_scores
from prefdata.train.ppo.roles import Roles
from prefdata.train.ppo.rollout import Rollout
from prefdata.train.ppo.specs import PpoSpec
from prefdata.train.ppo.update import Updater

METHODS = ["ppo", "rloo", "grpo", "reinforce", "online-dpo"]


@pytest.fixture(scope="module")
def folder(make_policy: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = make_policy(tmp_path_factory.mktemp("ppo") / "policy")
    return made


def prepared(folder: Path, **settings: Any) -> tuple[Roles, Updater, Experience, PpoSpec]:
    """Roles whose policy has moved away from the reference, and the experience of a rollout."""
    given = {"responses": 3, "model": str(folder), "reward": ("function=f.py:f",), "max_grad_norm": 0, **settings}
    spec = PpoSpec.parse(given)
    files = identify(str(folder), "causal-lm")
    roles = Roles(models.load(files, spec, models.load_chat(files, spec).tokenizer), spec)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in roles.policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    rollout = rollout_of()
    experience = make_experience(spec, rollout, measure(roles, rollout), spec.kl_coef)
    return roles, Updater(roles, roles.make_optimizer(), spec), experience, spec


def gradients(roles: Roles) -> dict[str, torch.Tensor]:
    found = roles.policy.model.named_parameters()
    return {name: parameter.grad.clone() for name, parameter in found if parameter.grad is not None}


def difference(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> float:
    off = sum(float((first[name].double() - second[name].double()).square().sum()) for name in second)
    return float((off / sum(float(one.double().square().sum()) for one in second.values())) ** 0.5)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_first_ratios_are_all_1(layout: str, folder: Path) -> None:
    """Unclipped, a loss of the first update is minus its advantage: whitened ones have mean 0 over all tokens."""
    _, updater, experience, spec = prepared(folder, batch_layout=layout)
    (metrics,) = updater.gradient(experience, [0, 1, 2], spec.kl_coef)
    tokens = metrics["ratio"][1]
    assert float(metrics["ratio"][0]) == tokens == 34.0
    assert float(metrics["clip_fraction"][0]) == 0.0
    assert float(metrics["kl_step"][0]) == 0.0
    assert float(metrics["loss/policy"][0]) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_the_gradient_does_not_depend_on_micro_batches(method: str, folder: Path) -> None:
    roles, updater, experience, spec = prepared(folder, method=method)
    updater.gradient(experience, [0, 1, 2], spec.kl_coef)
    whole = gradients(roles)
    object.__setattr__(roles.policy, "micro", TokenBudget(1))  # each prompt with its responses is a micro-batch
    updater.gradient(experience, [2, 0, 1], spec.kl_coef)
    assert difference(gradients(roles), whole) < 2e-5


def test_minibatches_in_any_order_sum_to_the_gradient_of_all(folder: Path) -> None:
    """RLOO's loss is a mean over responses: of 8, minibatches of 3 + 2 and 3 weigh 5/8 and 3/8."""
    roles, updater, experience, spec = prepared(folder, method="rloo")
    updater.gradient(experience, [0, 1, 2], spec.kl_coef)
    whole = gradients(roles)
    total: dict[str, torch.Tensor] = {}
    for index, share in (([2, 0], 5 / 8), ([1], 3 / 8)):
        updater.gradient(experience, index, spec.kl_coef)
        for name, gradient in gradients(roles).items():
            total[name] = total.get(name, torch.zeros(())) + share * gradient
    assert difference(total, whole) < 2e-5


def reference_loss(roles: Roles, experience: Experience, spec: PpoSpec) -> torch.Tensor:
    """The loss in float64, a response at a time, from the equations and nothing of the code."""
    model, head = roles.policy.model, getattr(roles.policy.model, "value_head", None)
    frozen, rollout, rows = roles.reference, experience.rollout, []
    for place, example in enumerate(rollout.examples):
        for k, response in enumerate(example.responses):
            ids = torch.tensor(np.concatenate([example.prompt, response]), dtype=torch.int64)[None]
            found = model(ids, output_hidden_states=True)
            cut = slice(len(example.prompt) - 1, -1)
            targets = ids[0, len(example.prompt) :, None]
            logps = (found.logits[0, cut] / spec.temperature).log_softmax(-1)
            with torch.no_grad():
                ref = (frozen(ids).logits[0, cut] / spec.temperature).log_softmax(-1).gather(1, targets)[:, 0]
            values = None if head is None else head(found.hidden_states[-1][0, cut])[:, 0]
            entropy = -(logps.exp() * logps).sum(-1)
            rows.append((place, k, logps.gather(1, targets)[:, 0], ref, values, entropy))
    score = {(place, k): float(rollout.scores[place, k]) for place, k, *_ in rows}
    if spec.method == "ppo":
        advantages, returns = [], []
        for place, k, logps, ref, values, _ in rows:
            assert values is not None
            rewards = [-spec.kl_coef * float(d) for d in logps.detach() - ref]
            rewards[-1] += score[place, k]
            seen, ahead, own = [*values.detach().tolist(), 0.0], 0.0, []
            for t in reversed(range(len(rewards))):
                ahead = rewards[t] + spec.gamma * seen[t + 1] - seen[t] + spec.gamma * spec.lam * ahead
                own.insert(0, ahead)
            advantages.append(torch.tensor(own, dtype=torch.float64))
            returns.append(advantages[-1] + values.detach())
        every = torch.cat(advantages)
        advantages = [(a - every.mean()) / every.std(correction=0) for a in advantages]
        count = len(every)
        losses = [-(a * (row[2] - row[2].detach()).exp()).sum() for a, row in zip(advantages, rows, strict=True)]
        critic = [(row[4] - r).square().sum() / 2 for row, r in zip(rows, returns, strict=True)]
        bonus = [row[5].sum() for row in rows]
        total = torch.stack(losses).sum() + spec.value_coef * torch.stack(critic).sum()
        return (total - spec.entropy_coef * torch.stack(bonus).sum()) / count
    reward = {(p, k): score[p, k] - spec.kl_coef * float((logps.detach() - ref).sum()) for p, k, logps, ref, *_ in rows}
    losses = []
    for place, k, logps, *_ in rows:
        others = [value for (p, j), value in reward.items() if p == place and j != k]
        losses.append(-(reward[place, k] - sum(others) / len(others)) * logps.sum())
    return torch.stack(losses).sum() / len(rows)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gamma": 0.9, "lam": 0.8, "value_coef": 1.5, "temperature": 0.7},
        {"entropy_coef": 0.3},
        {"method": "rloo", "kl_coef": 0.4},
        {"method": "rloo", "temperature": 1.3},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_a_reference_in_float64(settings: dict[str, Any], folder: Path) -> None:
    roles, updater, experience, spec = prepared(folder, batch_layout="packed", **settings)
    if hasattr(roles.policy.model, "value_head"):
        torch.nn.init.normal_(roles.policy.model.value_head.weight, generator=torch.Generator().manual_seed(3))
        experience = make_experience(spec, experience.rollout, measure(roles, experience.rollout), spec.kl_coef)
    updater.gradient(experience, [0, 1, 2], spec.kl_coef)
    found = gradients(roles)
    roles.policy.model.zero_grad()
    roles.policy.model.set_attn_implementation("eager")
    roles.reference.set_attn_implementation("eager")
    roles.policy.model.double()
    roles.reference.double()
    reference_loss(roles, experience, spec).backward()  # type: ignore[no-untyped-call]
    assert difference(found, gradients(roles)) < 2e-4


def test_scores_are_shaped_in_their_order() -> None:
    """Whitened, clipped to 1, the truncated ones -2, and a tenth lost for each token."""
    spec = PpoSpec.parse(
        {"model": "m", "reward": ("function=f.py:f",), "responses": 3, "whiten_scores": True, "reward_clip": 1.0}
        | {"missing_end_score": -2.0, "length_coef": 0.1}
    )
    rollout, lengths = rollout_of(), torch.tensor([[3, 5, 1], [7, 2, 4], [6, 6, 0]])
    inside = rollout.scores[rollout.present].double()
    white = (rollout.scores - inside.mean()) / inside.std(correction=0)
    want = torch.where(rollout.truncated, -2.0, white.clamp(-1, 1)) - 0.1 * lengths
    found = shaped_scores(spec, rollout, lengths)
    assert found[rollout.present].tolist() == pytest.approx(want[rollout.present].tolist(), abs=1e-5)


def test_a_response_that_is_not_there_changes_nothing(folder: Path) -> None:
    """The third response of the third prompt has no score: whatever stands in its cell is not read."""
    _, _, experience, spec = prepared(folder, method="rloo")
    rollout, measured = experience.rollout, experience.measured
    poisoned = torch.where(rollout.present, rollout.scores, 1e6)
    other = make_experience(spec, Rollout(**{**vars(rollout), "scores": poisoned}), measured, spec.kl_coef)
    assert torch.equal(other.advantages, experience.advantages)
