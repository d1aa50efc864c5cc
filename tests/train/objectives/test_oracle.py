"""Losses are minimal where theory says: the tabular oracle, whose optima are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import permutations
from typing import Any

import pytest
import torch
from loss_values import losses, table

from prefdata.train.objectives.values import Policy, Scored


def minimum(loss: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
    """Where a smooth loss of a vector is least, by Newton's method with a line search (L-BFGS)."""
    at = start.clone().requires_grad_()
    search = torch.optim.LBFGS(
        [at], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        search.zero_grad()
        value = loss(at)
        value.backward()
        return value

    search.step(closure)
    return at.detach()


def both_orders(name: str, h: torch.Tensor, p: float, **settings: Any) -> torch.Tensor:
    """The expected loss of a pair with log-ratio h whose first response wins with probability p."""
    zero = torch.zeros_like(h)
    wins, loses = torch.stack([h, zero], -1), torch.stack([zero, h], -1)
    reference = torch.zeros(1, 2, dtype=torch.float64)
    of = [losses("dpo", name, Policy.of(logps.view(1, 2), reference), **settings) for logps in (wins, loses)]
    return (p * of[0] + (1 - p) * of[1]).sum()


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("sigmoid", {}, 13.862944),  # logit(.8) / .1 = 1.386294 / .1
        ("sigmoid", {"label_smoothing": 0.1}, 10.459686),  # logit(.8 * .9 + .2 * .1) = logit(.74)
        ("robust", {"label_smoothing": 0.1}, 19.459101),  # logit((.8 - .1) / .8) = logit(.875)
        ("ipo-sum", {}, 3.0),  # (2 * .8 - 1) / (2 * .1)
        ("ipo-mean", {}, 3.0),
        ("sigmoid-mean", {"beta": 0.1}, 13.862944),
        ("cpo", {"nll_weight": 0.0}, 13.862944),
    ],
)
def test_one_pair_with_both_label_orders(name: str, settings: dict[str, float], expected: float) -> None:
    """P(first wins) = .8, beta = tau = .1."""
    found = minimum(lambda h: both_orders(name, h, 0.8, **settings), torch.zeros(1, dtype=torch.float64))
    assert found.item() == pytest.approx(expected, abs=1e-4)


def test_hinge_norm_stops_at_its_margin() -> None:
    """.8 (1 - .1 h) + .2 (1 + .1 h) falls until h = 10, where the first term ends."""
    at = [both_orders("hinge", torch.tensor([h], dtype=torch.float64), 0.8).item() for h in (9.0, 10.0, 11.0)]
    assert at == pytest.approx([0.8 * 0.1 + 0.2 * 1.9, 0.4, 0.2 * 2.1])


def test_ipo_with_certain_labels_stays_near_its_reference_and_dpo_does_not() -> None:
    """Two actions, uniform reference, p = 1, tau = .1: log-ratio 5, so that pi(first) = s(5); DPO has no minimum."""
    found = minimum(lambda h: both_orders("ipo-sum", h, 1.0), torch.zeros(1, dtype=torch.float64))
    assert torch.sigmoid(found).item() == pytest.approx(0.993307, abs=1e-6)
    slope = torch.tensor([200.0], dtype=torch.float64, requires_grad=True)
    both_orders("sigmoid", slope, 1.0).backward()
    assert slope.grad is not None
    assert slope.grad.item() < 0


@pytest.mark.parametrize("kind", ["margin", "simpo"])
def test_margins_move_the_minimum(kind: str) -> None:
    """p = .8, m = 1: e^z = (.6 e + sqrt(.36 e^2 + .64)) / .4, z = 2.153962; SimPO with beta 2: z / 2 = 1.076981."""

    def loss(z: torch.Tensor) -> torch.Tensor:
        if kind == "simpo":
            return both_orders("simpo", z, 0.8, beta=2.0, gamma=1.0)
        zero, margin = torch.zeros_like(z), torch.ones(1, dtype=torch.float64)
        ways = [Scored.of(torch.stack(pair, -1).view(1, 2), margin=margin) for pair in ((z, zero), (zero, z))]
        wins, loses = (losses("rm", "bradley-terry", v).sum() for v in ways)
        return 0.8 * wins + 0.2 * loses

    expected = 2.153962 if kind == "margin" else 1.076981
    assert minimum(loss, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-5)


REFERENCE, REWARDS = table(0.5, 0.3, 0.2), table(0.0, 1.0, 2.0)
OPTIMUM = REFERENCE * REWARDS.exp() / (REFERENCE * REWARDS.exp()).sum()


def test_the_optimum_of_the_oracle() -> None:
    """pi* ~ ref exp(r): .5, .815485, 1.477811, whose sum is Z = 2.793296."""
    assert OPTIMUM.tolist() == pytest.approx([0.179000, 0.291944, 0.529056], abs=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "plackett-luce", "robust"])
def test_population_dpo_finds_the_kl_regularised_optimum(name: str) -> None:
    """A softmax table over three responses, beta 1, all pairs with Bradley-Terry labels, or all rankings with
    Plackett-Luce's: the minimum is ref exp(r) / Z. Robust DPO finds it from labels of which a tenth is flipped."""
    ref = REFERENCE.log()

    def loss(logits: torch.Tensor) -> torch.Tensor:
        logps, total = logits.log_softmax(0), torch.zeros((), dtype=torch.float64)
        if name == "plackett-luce":
            for ranking in permutations(range(3)):
                ratings = table([float(-ranking.index(i)) for i in range(3)])[..., None]
                v = Policy.of(logps[None], ref[None], ratings=ratings)
                total = total + ranking_probability(ranking) * losses("dpo", name, v, beta=1.0).sum()
            return total
        settings = {"label_smoothing": 0.1} if name == "robust" else {}
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wins = torch.sigmoid(REWARDS[i] - REWARDS[j])
            if name == "robust":
                wins = 0.9 * wins + 0.1 * (1 - wins)
            for (a, b), weight in (((i, j), wins), ((j, i), 1 - wins)):
                v = Policy.of(logps[[a, b]][None], ref[[a, b]][None])
                total = total + weight * losses("dpo", name, v, beta=1.0, **settings).sum()
        return total

    found = minimum(loss, torch.zeros(3, dtype=torch.float64)).softmax(0)
    assert found.tolist() == pytest.approx(OPTIMUM.tolist(), abs=1e-5)


def ranking_probability(ranking: tuple[int, ...]) -> float:
    strengths, probability = [math.exp(REWARDS[i]) for i in ranking], 1.0
    for place in range(3):
        probability *= strengths[place] / sum(strengths[place:])
    return probability


def test_reward_models_recover_reward_differences() -> None:
    """K-wise and Plackett-Luce losses under Plackett-Luce rankings: the scores are the rewards less a constant."""
    for name in ("plackett-luce", "k-wise"):

        def loss(scores: torch.Tensor, name: str = name) -> torch.Tensor:
            total = torch.zeros((), dtype=torch.float64)
            for ranking in permutations(range(3)):
                ratings = table([float(-ranking.index(i)) for i in range(3)])[..., None]
                v = Scored.of(scores[None], ratings=ratings)
                total = total + ranking_probability(ranking) * losses("rm", name, v).sum()
            return total

        found = minimum(loss, torch.zeros(3, dtype=torch.float64))
        assert (found - found[0]).tolist() == pytest.approx([0.0, 1.0, 2.0], abs=1e-4), name


def test_bce_finds_the_log_odds() -> None:
    """A response that is good with probability .8: score logit(.8) = 1.386294."""

    def loss(score: torch.Tensor) -> torch.Tensor:
        return sum(
            (
                p * losses("rm", "bce", Scored.of(score.view(1, 1), label=table(label))).sum()
                for p, label in ((0.8, 1.0), (0.2, 0.0))
            ),
            torch.zeros((), dtype=torch.float64),
        )

    assert minimum(loss, torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(1.386294, abs=1e-5)
