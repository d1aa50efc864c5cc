"""Advantages, rewards and KL of reinforcement learning, against values by hand and a float64 reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prefdata.train.ppo.advantages import (
    adapted_kl_coef,
    gae,
    grpo_advantages,
    kl_estimates,
    reinforce_advantages,
    rloo_advantages,
    token_rewards,
    whiten,
)
from prefdata.train.ppo.losses import clipped_policy_losses, clipped_value_losses, online_dpo_losses


def doubles(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def all_of(values: torch.Tensor) -> torch.Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def random_table(seed: int, rows: int = 7, columns: int = 9) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rewards, values and a mask of rows of unequal lengths, one of which has no token."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(rows, columns, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = torch.randint(1, columns + 1, (rows,), generator=generator)
    lengths[0], lengths[1] = 0, columns
    return rewards, values, torch.arange(columns) < lengths[:, None]


def test_the_estimators_of_kl() -> None:
    """d = .2: k1 .2, k2 .02, k3 e^-.2 - 1 + .2 = .018731."""
    found = [float(kl_estimates(doubles([0.2]), doubles([0.0]), kind)) for kind in ("k1", "k2", "k3")]  # type: ignore[arg-type]
    assert found == pytest.approx([0.2, 0.02, 0.018731], abs=1e-6)


def test_k1_and_k3_are_unbiased_and_k3_varies_less() -> None:
    """p = (.5, .3, .2), q = (.4, .4, .2): KL .0252672; E[k2] .0248624; variances .0490864 and .0002546."""
    p, q = doubles([0.5, 0.3, 0.2]), doubles([0.4, 0.4, 0.2])
    k1, k2, k3 = (kl_estimates(p.log(), q.log(), kind) for kind in ("k1", "k2", "k3"))  # type: ignore[arg-type]
    means = [float((p * k).sum()) for k in (k1, k2, k3)]
    assert means == pytest.approx([0.0252672, 0.0248624, 0.0252672], abs=1e-7)
    variances = [float((p * k.square()).sum() - (p * k).sum() ** 2) for k in (k1, k3)]
    assert variances == pytest.approx([0.0490864, 0.0002546], abs=1e-7)


def test_k3_keeps_its_digits_near_the_reference() -> None:
    """d = 1e-4 in float32: d^2/2 = 5e-9, which exp(-d) - 1 + d loses to rounding unless expm1 is used."""
    found = float(kl_estimates(torch.tensor([1e-4]), torch.zeros(1), "k3"))
    assert found == pytest.approx(5e-9, rel=0.1)


@pytest.mark.parametrize(
    ("kl", "coef"),
    [
        (12.0, 0.15 * (1 + 0.2 * 0.0256)),  # error 1, clipped to .2: .150768
        (3.0, 0.15 * (1 - 0.2 * 0.0256)),  # error -.5, clipped to -.2: .149232
        (6.0, 0.15),
        (6.6, 0.15 * (1 + 0.1 * 0.0256)),
    ],
)
def test_the_adaptive_coefficient(kl: float, coef: float) -> None:
    assert adapted_kl_coef(0.15, kl, 6.0, 256) == pytest.approx(coef, rel=1e-12)


def test_whitening() -> None:
    """1 2 3 4 have mean 2.5 and population variance 1.25."""
    values = doubles([[1, 2, 3, 4]])
    want = [-1.341641, -0.447214, 0.447214, 1.341641]
    assert whiten(values, all_of(values))[0].tolist() == pytest.approx(want, abs=1e-6)
    unshifted = whiten(values, all_of(values), shift_mean=False)[0].tolist()
    assert unshifted == pytest.approx([2.5 + value for value in want], abs=1e-6)


def test_whitening_reads_only_the_mask() -> None:
    values, mask = doubles([[1, 2, float("nan")], [3, 4, float("inf")]]), torch.tensor([[1, 1, 0], [1, 1, 0]]).bool()
    found = whiten(values, mask)
    assert found[mask].tolist() == pytest.approx([-1.341641, -0.447214, 0.447214, 1.341641], abs=1e-6)
    assert found[~mask].tolist() == [0.0, 0.0]
    assert whiten(doubles([[5.0, 5.0]]), torch.tensor([[True, True]])).tolist() == [[0.0, 0.0]]


def test_gae_by_hand() -> None:
    """r = 0 0 1, v = .5 .6 .7, gamma 1, lambda .95: A = .46575 .385 .3."""
    rewards, values = doubles([[0, 0, 1]]), doubles([[0.5, 0.6, 0.7]])
    advantages, returns = gae(rewards, values, all_of(values), 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([0.46575, 0.385, 0.3], abs=1e-12)
    assert returns[0].tolist() == pytest.approx([0.96575, 0.985, 1.0], abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.99, 0.0)])
def test_gae_is_the_sum_of_discounted_errors(gamma: float, lam: float) -> None:
    """Equation 16 of arXiv:1506.02438 as a double sum over each response alone, in float64."""
    rewards, values, mask = random_table(1)
    advantages, _ = gae(rewards.float(), values.float(), mask, gamma, lam)
    for row in range(len(mask)):
        length = int(mask[row].sum())
        r, v = rewards[row, :length].numpy(), np.append(values[row, :length].numpy(), 0.0)
        deltas = r + gamma * v[1:] - v[:-1]
        want = [sum((gamma * lam) ** (s - t) * deltas[s] for s in range(t, length)) for t in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(want, abs=1e-5)
        assert not advantages[row, length:].any()


def test_gae_does_not_depend_on_what_pads() -> None:
    rewards, values, mask = random_table(2)
    poisoned = [torch.where(mask, table, float("nan")) for table in (rewards, values)]
    for clean, other in zip(gae(rewards, values, mask), gae(*poisoned, mask), strict=True):
        assert torch.equal(clean, other)


def test_the_score_is_at_the_end_token() -> None:
    """Two tokens and four of four (truncated); the KL is lost at every token, the score's among them."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()
    kls = doubles([[0.1, 0.2, 9, 9], [0.1, 0.1, 0.1, 0.1], [9, 9, 9, 9]])
    found = token_rewards(doubles([5.0, 7.0, 3.0]), kls, mask, 0.5)
    want = doubles([[-0.05, 4.9, 0, 0], [-0.05, -0.05, -0.05, 6.95], [0, 0, 0, 0]])
    assert torch.allclose(found, want, rtol=0, atol=1e-12)


def test_baselines_of_groups() -> None:
    """Rewards 1 2 6 and 0 0 3.

    RLOO: 1 - 4, 2 - 3.5, 6 - 1.5; 0 - 1.5 twice, 3 - 0. REINFORCE: r - (12 - r) / 5. GRPO of 1 2 6: mean 3, sample
    standard deviation sqrt((4 + 1 + 9) / 2) = sqrt 7.
    """
    rewards = doubles([[1, 2, 6], [0, 0, 3]])
    assert rloo_advantages(rewards).tolist() == [[-3, -1.5, 4.5], [-1.5, -1.5, 3]]
    assert reinforce_advantages(rewards)[0].tolist() == pytest.approx([-1.2, 0, 4.8])
    assert grpo_advantages(rewards)[0].tolist() == pytest.approx([x / (7**0.5 + 1e-4) for x in (-2, -1, 3)])
    assert grpo_advantages(doubles([[4, 4]])).tolist() == [[0, 0]]
    assert reinforce_advantages(doubles([[4]])).tolist() == [[4]]


def test_rloo_is_k_over_k_minus_1_times_the_centred_rewards() -> None:
    rewards = torch.randn(5, 4, dtype=torch.float64)
    assert torch.allclose(rloo_advantages(rewards), 4 / 3 * (rewards - rewards.mean(1, keepdim=True)))


def test_the_first_ratio_is_1_and_the_loss_minus_the_mean_advantage() -> None:
    logps = doubles([-1.0, -2.0, -3.0]).requires_grad_()
    losses, ratios, clipped = clipped_policy_losses(logps, logps.detach(), doubles([1, -2, 4]), 0.2)
    assert ratios.tolist() == [1.0, 1.0, 1.0]
    assert not clipped.any()
    assert losses.tolist() == [-1, 2, -4]
    losses.sum().backward()
    assert logps.grad.tolist() == [-1, 2, -4]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.5, 1.0, -1.2, 0.0),  # too far up already, for a good token
        (1.5, -1.0, 1.5, 1.5),  # too far up, for a bad one: comes back
        (0.5, 1.0, -0.5, -0.5),
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 1.0, -1.1, -1.1),
    ],
)
def test_clipping_of_the_policy(ratio: float, advantage: float, loss: float, slope: float) -> None:
    """The slope by log p is -A rho where the plain term is the larger one, else 0."""
    logps = doubles([ratio]).log().requires_grad_()
    losses, _, clipped = clipped_policy_losses(logps, doubles([0.0]), doubles([advantage]), 0.2)
    losses.sum().backward()
    assert float(losses.detach()) == pytest.approx(loss)
    assert float(logps.grad) == pytest.approx(slope, abs=1e-12)  # type: ignore[arg-type]
    assert bool(clipped) == (slope == 0.0)


def test_clipping_of_the_values() -> None:
    """V_old 0, clip .2, return 1: V = .1 is inside, (1 - .1)^2 / 2; V = .9 counts as .2: (1 - .2)^2 / 2; V = -.5 as it
    is: (1 + .5)^2 / 2."""
    losses = clipped_value_losses(doubles([0.1, 0.9, -0.5]), doubles([0, 0, 0]), doubles([1, 1, 1]), 0.2)
    assert losses.tolist() == pytest.approx([0.405, 0.32, 1.125])


def test_online_dpo_takes_best_and_worst() -> None:
    """Rewards 1 3 2: best log-ratio .5, worst -.5, beta .1: -log s(.1) = .644397; equal rewards teach nothing."""
    losses, differs = online_dpo_losses(doubles([[-0.5, 0.5, 9], [1, 2, 3]]), doubles([[1, 3, 2], [4, 4, 4]]), 0.1)
    assert losses.tolist() == pytest.approx([0.644397, 0.0], abs=1e-6)
    assert differs.tolist() == [True, False]


def solved(method: str, reference: torch.Tensor, scores: torch.Tensor, steps: int = 1500) -> torch.Tensor:
    """Train on samples of a token MDP with the KL in the reward, beta 1; returns the policy, averaged over the end.

    A response has one or two tokens. The last token that may come first goes on to a second one, the others end.

    Args:
        method: `ppo` or `rloo`.
        reference: `[states, V]` distributions of the first token, and where there are two states of the second.
        scores: `[V]` of responses of one token, or `[V, V]` by both tokens (whatever the second, where the first ends).
        steps: updates.
    """
    generator = torch.Generator().manual_seed(0)
    reference, states = reference.log(), len(reference)
    logits, critic = reference.clone().requires_grad_(), torch.zeros(states, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, critic], lr=0.05)
    tail: list[torch.Tensor] = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (1 - step / steps) + 1e-4
        old = logits.detach().log_softmax(1)
        tokens = torch.multinomial(old.exp(), 64, replacement=True, generator=generator).T  # [64, states]
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if states == 2:
            mask[:, 1] = tokens[:, 0] == reference.shape[1] - 1
        at = torch.arange(states).expand_as(tokens), tokens
        found = scores[tuple(tokens.T)] if states == 2 else scores[tokens[:, 0]]
        rewards = token_rewards(found, kl_estimates(old[at], reference[at]), mask, 1.0)
        values, returns = critic.expand_as(rewards), rewards
        if method == "ppo":
            advantages, returns = gae(rewards, values.detach(), mask)
            advantages = whiten(advantages, mask)
        else:
            advantages = rloo_advantages(rewards.sum(1).view(16, 4)).view(64, 1) * mask
        losses, _, _ = clipped_policy_losses(logits.log_softmax(1)[at], old[at], advantages, 0.2)
        value_losses = clipped_value_losses(values, values.detach(), returns, 1.0)
        optimizer.zero_grad()
        (losses[mask].mean() + value_losses[mask].mean()).backward()
        optimizer.step()
        if step >= steps * 3 // 4:
            tail.append(logits.detach().softmax(1))
    return torch.stack(tail).mean(0)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_bandit_is_solved_to_the_optimum(method: str) -> None:
    """pi* = ref exp(r / beta) / Z: .5 : .3 e : .2 e^2, over their sum 2.793289."""
    found = solved(method, doubles([[0.5, 0.3, 0.2]]), doubles([0.0, 1.0, 2.0]))
    assert found[0].tolist() == pytest.approx([0.179, 0.291944, 0.529056], abs=0.02)


@pytest.mark.parametrize("method", ["ppo", "rloo"])
def test_a_token_mdp_is_solved_to_the_optimum(method: str) -> None:
    """Responses E, AE and AA of reference .6, .28, .12 and reward 0, 1, 2.

    pi* is as .6 : .28 e : .12 e^2, over their sum 2.247807: .266927, .338608, .394466. So the first token is A with
    .733073, and the second A with .394466 / .733073 = .538099.
    """
    found = solved(method, doubles([[0.6, 0.4], [0.7, 0.3]]), doubles([[0.0, 0.0], [1.0, 2.0]]))
    assert found[:, 1].tolist() == pytest.approx([0.733073, 0.538099], abs=0.025)


def test_grpos_fixed_point_is_another() -> None:
    """Normalised advantages do not know the size of rewards: pi* = ref exp(r / beta) / Z is not reached.

    In a bandit of two arms with rewards 0 and c, all gaps have the same advantages for any c > 0: those of a group of 2
    with one response of each are -1 / sqrt 2 and 1 / sqrt 2 (less by the 1e-4 of the standard deviation).
    """
    for gap in (1.0, 100.0):
        assert grpo_advantages(doubles([[0.0, gap]]))[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=2e-4)


def test_k3_in_the_loss_has_the_reference_as_its_only_fixed_point_and_another_pull() -> None:
    """On-policy E[grad k3] = sum p (1 - q / p) grad log p = -sum q grad log p: that of KL(q || p), not KL(p || q).

    By logits that is p - q, where the gradient of KL(p || q) is p (log p/q - KL).
    """
    logits = doubles([0.7, -0.2, 0.1]).requires_grad_()
    reference = doubles([0.2, 0.5, 0.3]).log()
    logps = logits.log_softmax(0)
    weights = logps.detach().exp()
    (weights * kl_estimates(logps, reference, "k3")).sum().backward()
    assert torch.allclose(logits.grad, weights - reference.exp())  # type: ignore[arg-type]
    logits.grad = None
    (weights * kl_estimates(logits.log_softmax(0), reference, "k2")).sum().backward()
    difference = weights.log() - reference
    assert torch.allclose(logits.grad, weights * (difference - (weights * difference).sum()))  # type: ignore[arg-type]
