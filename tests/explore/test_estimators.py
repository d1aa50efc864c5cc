"""What best of n is worth. Expected values are counted over all subsets, or worked out in the comment beside them."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.stats import best_of_n as e

SCORES = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=8)
"""Short, and with ties: what a formula has to get right."""


def rows(*scores: list[float]) -> np.ndarray:
    return np.array(scores, dtype=float)


def every(total: int) -> list[int]:
    return list(range(1, total + 1))


def over_subsets(values: list[float], n: int, function) -> float:
    """The mean of a function over all subsets of n: what the estimators compute without visiting them."""
    return float(np.mean([function(list(subset)) for subset in combinations(values, n)]))


def test_the_weights_of_four() -> None:
    # C(i-1, n-1) / C(4, n): n = 2 has 0, 1, 2, 3 of 6 subsets, n = 3 has 0, 0, 1, 3 of 4.
    assert e.order_weights(4, 1, 1) == pytest.approx([0.25] * 4)
    assert e.order_weights(4, 2, 2) == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6])
    assert e.order_weights(4, 3, 3) == pytest.approx([0, 0, 1 / 4, 3 / 4])
    assert e.order_weights(4, 4, 4).tolist() == [0, 0, 0, 1]
    assert e.expected_max(rows([3, 1, 4, 2]), every(4))[0] == pytest.approx([2.5, 10 / 3, 3.75, 4])


def test_with_replacement_is_biased_low() -> None:
    # sum of i ((i/4)^n - ((i-1)/4)^n) = 4 - sum of (i/4)^n for i = 1, 2, 3: n = 2: 4 - 14/16, n = 3: 4 - 36/64, …
    got = [rows([1, 2, 3, 4])[0] @ e.with_replacement_weights(4, n) for n in every(4)]
    assert got == pytest.approx([2.5, 3.125, 3.4375, 3.6171875])
    assert got[1] < 10 / 3


@pytest.mark.parametrize("total", [1, 2, 7, 100, 10_000])
def test_scores_one_to_N(total: int) -> None:
    # E[max of n of 1..N without replacement] = n (N + 1) / (n + 1), the German tanks.
    ns = sorted({1, (total + 1) // 2, total})
    got = e.expected_max(np.arange(1.0, total + 1)[None, :], ns)[0]
    assert got == pytest.approx([n * (total + 1) / (n + 1) for n in ns], rel=1e-10)
    assert got[-1] == total


def test_the_weights_are_exact_fractions() -> None:
    for n in (1, 5, 20, 39, 40):
        exact = [Fraction(math.comb(i - 1, n - 1), math.comb(40, n)) for i in every(40)]
        assert e.order_weights(40, n, n) == pytest.approx([float(w) for w in exact], rel=1e-12)


def test_pass_at_k() -> None:
    # 1 - C(7, 5) / C(10, 5) = 1 - 21 / 252.
    assert e.pass_at_k(10, 3, 5) == pytest.approx(0.916667, abs=5e-7)
    assert e.pass_at_k(4, 4, 1) == 1
    for correct in range(11):
        scores = rows([1.0] * correct + [0.0] * (10 - correct))
        assert e.expected_max(scores, every(10))[0] == pytest.approx([e.pass_at_k(10, correct, k) for k in every(10)])


@settings(deadline=None)
@given(SCORES)
def test_against_every_subset(scores: list[float]) -> None:
    ns = every(len(scores))
    mine = rows(scores)
    assert e.expected_max(mine, ns)[0] == pytest.approx([over_subsets(scores, n, max) for n in ns])
    assert e.expected_min(mine, ns)[0] == pytest.approx([over_subsets(scores, n, min) for n in ns])
    assert e.expected_median(mine, ns)[0] == pytest.approx([over_subsets(scores, n, np.median) for n in ns])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(-9, 9)), min_size=1, max_size=7))
def test_the_gold_of_what_the_proxy_chooses_against_every_subset(both: list[tuple[int, int]]) -> None:
    def gold_of_best(subset: list[tuple[int, int]]) -> float:
        best = max(proxy for proxy, _ in subset)
        return float(np.mean([gold for proxy, gold in subset if proxy == best]))

    proxy, gold = (rows([float(pair[i]) for pair in both]) for i in (0, 1))
    wanted = [over_subsets(both, n, gold_of_best) for n in every(len(both))]
    assert e.value_of_best(proxy, gold, every(len(both)))[0] == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None)
@given(SCORES)
def test_the_win_rate_against_every_choice_of_opponent(scores: list[float]) -> None:
    total = len(scores)
    got = e.win_rate(rows(scores), every(total))[0]
    assert math.isnan(got[-1])
    for n in range(1, total):
        found = []
        for opponent in range(total):
            others = scores[:opponent] + scores[opponent + 1 :]
            for subset in combinations(others, n):
                found.append((np.sign(max(subset) - scores[opponent]) + 1) / 2)
        assert got[n - 1] == pytest.approx(np.mean(found))


def test_the_win_rate_without_ties_is_n_of_n_plus_one() -> None:
    assert e.win_rate(rows([5, 1, 2, 9, 7]), every(4))[0] == pytest.approx([n / (n + 1) for n in every(4)])


@settings(deadline=None)
@given(SCORES, st.floats(0.1, 10), st.floats(-10, 10), st.randoms())
def test_properties(scores: list[float], scale: float, shift: float, random) -> None:
    ns, mine = every(len(scores)), rows(scores)
    got = e.expected_max(mine, ns)[0]
    assert np.all(np.diff(got) >= -1e-12)  # more draws never hurt
    assert got[0] == pytest.approx(np.mean(scores))
    assert got[-1] == max(scores)
    assert e.expected_min(mine, ns)[0][-1] == min(scores)
    assert e.expected_max(mine * scale + shift, ns)[0] == pytest.approx(got * scale + shift)
    assert e.expected_max(-mine, ns)[0] == pytest.approx(-e.expected_min(mine, ns)[0])
    shuffled = random.sample(scores, len(scores))
    assert np.array_equal(e.expected_max(rows(shuffled), ns)[0], got)
    assert e.win_rate(rows(shuffled), ns)[0] == pytest.approx(e.win_rate(mine, ns)[0], nan_ok=True)
    assert e.kl_empirical(mine * scale + shift, ns)[0] == pytest.approx(e.kl_empirical(mine, ns)[0])


def test_the_bound_on_the_kl() -> None:
    # log n - (n - 1) / n
    wanted = {1: 0, 2: 0.193147, 4: 0.636294, 8: 1.204442, 16: 1.835089, 64: 3.174508, 100: 3.615170}
    assert e.kl_bound(list(wanted)) == pytest.approx(list(wanted.values()), abs=5e-7)


def test_a_coin() -> None:
    # F = 1/2, 1: q = 1/4, 3/4; KL = log(1/2) / 4 + 3 log(3/2) / 4; the better wins 3/4 x 3/4 + 1/4 x 1/4.
    p, r = np.array([0.5, 0.5]), np.array([0.0, 1.0])
    assert e.best_of_n_law(p, r, 2) == pytest.approx([0.25, 0.75])
    assert e.kl_of_law(p, r, 2) == pytest.approx(0.130812, abs=5e-7)
    assert e.win_rate_of_law(p, r, 2) == pytest.approx(0.625)
    assert e.kl_empirical(rows([0, 1]), [2])[0] == pytest.approx(0.130812, abs=5e-7)


def test_what_has_no_probability_keeps_none() -> None:
    """A probability of 0 at either end, in the middle, and beside another of its level."""
    p, r = np.array([0.0, 0.5, 0.0, 0.5, 0.0, 0.0]), np.array([-1.0, 0, 0.5, 1, 1, 2])
    assert e.best_of_n_law(p, r, 2).tolist() == [0, 0.25, 0, 0.75, 0, 0]
    assert e.kl_of_law(p, r, 2) == pytest.approx(0.130812, abs=5e-7)
    assert e.win_rate_of_law(p, r, 2) == pytest.approx(0.625)
    assert e.best_of_n_law(np.array([0.0, 1.0]), np.array([0.0, 0.0]), 3).tolist() == [0, 1]


def test_an_unlikely_best_outcome_is_n_times_as_likely() -> None:
    # 1 - (1 - eps)^n = n eps to first order.
    eps, n = 1e-18, 8
    q = e.best_of_n_law(np.array([1 - eps, eps]), np.array([0.0, 1.0]), n)
    assert q[1] == pytest.approx(n * eps, rel=1e-12)
    assert q[0] == pytest.approx(1)


def test_ten_alike() -> None:
    # q_i = (i/10)^4 - ((i-1)/10)^4 over p = 1/10.
    p, r = np.full(10, 0.1), np.arange(10.0)
    assert e.kl_of_law(p, r, 4) == pytest.approx(0.628825, abs=5e-7)
    assert e.win_rate_of_law(p, r, 4) == pytest.approx(0.796670, abs=5e-7)
    assert e.kl_empirical(r[None, :], [4])[0] == pytest.approx(0.628825, abs=5e-7)


@settings(deadline=None)
@given(SCORES, st.integers(1, 9))
def test_the_empirical_law_is_a_finite_law(scores: list[float], n: int) -> None:
    p, r = np.full(len(scores), 1 / len(scores)), np.array(scores)
    assert e.kl_empirical(rows(scores), [n])[0, 0] == pytest.approx(e.kl_of_law(p, r, n), abs=1e-12)
    assert e.kl_of_law(p, r, n) <= e.kl_bound([n])[0] + 1e-12
    assert e.win_rate_of_law(p, r, n) <= n / (n + 1) + 1e-12
    assert e.best_of_n_law(p, r, n).sum() == pytest.approx(1)


@pytest.mark.parametrize("n", [1, 2, 8, 100])
def test_beirami_lies_between_nothing_and_the_bound(n: int) -> None:
    found = e.kl_beirami(np.array([0.0, 1e-12, 0.01, 0.3, 0.999, 1.0]), n)
    assert np.all(found >= -1e-12)
    assert np.all(found <= e.kl_bound([n])[0] + 1e-9)
    assert found[0] == pytest.approx(e.kl_bound([n])[0])
    assert found[-1] == 0


def test_beirami_is_exact_where_only_the_best_is_an_atom() -> None:
    """The best has 0.3, the rest is spread so thin that 100,000 outcomes stand for a continuum."""
    small = 100_000
    p = np.append(np.full(small, 0.7 / small), 0.3)
    assert e.kl_beirami(np.array([0.3]), 4)[0] == pytest.approx(e.kl_of_law(p, np.arange(small + 1.0), 4), abs=1e-4)


def test_beirami_of_what_is_chosen() -> None:
    """Two of four scores are equal: each is the best of 1 in (w1 + w2) / 2 of the subsets."""
    scores, logs = rows([1, 2, 2, 3]), np.log(rows([0.4, 0.3, 0.1, 1e-30]))
    weights = e.max_weights(4, [2])[:, 0]
    shared = (weights[1] + weights[2]) / 2
    kl = e.kl_beirami(np.exp(logs[0]), 2)
    wanted = weights[0] * kl[0] + shared * (kl[1] + kl[2]) + weights[3] * kl[3]
    assert e.expected_beirami(scores, logs, [2])[0, 0] == pytest.approx(wanted)


def test_normal_scores() -> None:
    wanted = {
        1: 0, 2: 0.564190, 3: 0.846284, 4: 1.029375, 5: 1.162964, 8: 1.423600, 16: 1.765991, 32: 2.069669,
        64: 2.343733, 100: 2.507594,
    }  # fmt: skip
    assert e.normal_maxima(list(wanted)) == pytest.approx(list(wanted.values()), abs=5e-7)
    assert e.normal_maxima([2])[0] == pytest.approx(1 / math.sqrt(math.pi), abs=1e-9)
    assert e.normal_maxima([3])[0] == pytest.approx(1.5 / math.sqrt(math.pi), abs=1e-9)


def test_the_share_of_candidates_that_tie() -> None:
    assert e.tied(rows([1, 2, 2, 3], [0, 0, 1, 1], [4, 3, 2, 1])).tolist() == [0.5, 1, 0]


def test_there_is_no_best_of_more_than_there_are() -> None:
    for n in (0, 4):
        with pytest.raises(ValueError, match="of 3"):
            e.expected_max(rows([1, 2, 3]), [n])


def test_unbiased_where_replacement_is_not() -> None:
    """20,000 prompts of 6 uniforms: E[max of 4] = 4/5; with replacement it is too low by many standard errors."""
    scores = np.sort(np.random.default_rng(1).random((20_000, 6)), axis=1)
    mine, biased = e.expected_max(scores, [4])[:, 0], scores @ e.with_replacement_weights(6, 4)
    assert abs(mine.mean() - 0.8) < 4 * mine.std() / math.sqrt(20_000)
    assert biased.mean() < 0.8 - 20 * biased.std() / math.sqrt(20_000)
