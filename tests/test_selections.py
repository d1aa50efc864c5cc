"""select: both RSO laws against their exact vectors, and what holds for every method."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from prefdata import ids
from prefdata.draws import uniforms
from prefdata.reports import nonzero
from prefdata.selections import keep
from prefdata.selections.rules import algorithm1_ranks, gumbel_ranks
from prefdata.specs import SelectSpec

DRAWS = 40_000
REWARDS = (0.0, 1.0, 2.0)


def draws(rewards, beta, k, law, order=None, seed=0) -> list[tuple[int, ...]]:
    """The accepted sequences of many independent draws, candidates named by their index in `rewards`."""
    order = list(range(len(rewards))) if order is None else order
    random = np.random.default_rng(seed)
    scores = np.tile(np.array(rewards, dtype=float)[order], (DRAWS, 1))
    if law == "rso":
        ranks = gumbel_ranks(scores, beta, random.random(scores.shape))
    else:
        ranks = algorithm1_ranks(scores, beta, k, lambda sweep: random.random(scores.shape))
        ranks = np.where(ranks == 0, 10**9, ranks)
    return [tuple(order[i] for i in np.argsort(row)[:k]) for row in ranks]


def fits(found: Counter, exact: dict) -> bool:
    impossible = [key for key, p in exact.items() if p == 0]
    assert not any(found[key] for key in impossible)
    keys = [key for key, p in exact.items() if p > 0]
    assert sum(found[key] for key in keys) == DRAWS
    if len(keys) == 1:
        return True
    total = sum(exact[key] for key in keys)
    return chisquare([found[k] for k in keys], [DRAWS * exact[k] / total for k in keys]).pvalue > 1e-4


@pytest.mark.parametrize(
    ("law", "order", "exact"),
    [
        # Plackett-Luce: w / sum w with w = (1, e, e^2).
        ("rso", None, (0.090031, 0.244728, 0.665241)),
        # Algorithm 1 in list order: the first with e^-2, else the second with e^-1, else the max.
        ("alg1", [0, 1, 2], (0.135335, 0.318092, 0.546572)),
        ("alg1", [2, 1, 0], (0.0, 0.0, 1.0)),
        ("alg1", [1, 0, 2], (0.085548, 0.367879, 0.546572)),
    ],
)
def test_one_accepted_follows_the_exact_law(law: str, order: list[int] | None, exact: tuple[float, ...]) -> None:
    found = Counter(sequence[0] for sequence in draws(REWARDS, 1.0, 1, law, order))
    assert fits(found, dict(enumerate(exact)))


@pytest.mark.parametrize(
    ("law", "order", "exact"),
    [
        ("rso", None, (0.053385, 0.244728, 0.701886)),
        ("alg1", [0, 1, 2], (0.049787, 0.286621, 0.663592)),
        ("alg1", [2, 1, 0], (0.0, 0.085548, 0.914452)),
    ],
)
def test_sets_of_two_follow_the_exact_law(law: str, order: list[int] | None, exact: tuple[float, ...]) -> None:
    found = Counter(tuple(sorted(sequence)) for sequence in draws(REWARDS, 1.0, 2, law, order))
    assert fits(found, dict(zip([(0, 1), (0, 2), (1, 2)], exact, strict=True)))


def test_algorithm1_in_random_order() -> None:
    """The mean of the exact laws over all orders; (.059370, .175642, .764988) for one accepted."""
    found: Counter = Counter()
    for order in itertools.permutations(range(3)):
        found.update(s[0] for s in draws(REWARDS, 1.0, 1, "alg1", list(order), seed=hash(order) % 1000))
    share = [found[i] / (6 * DRAWS) for i in range(3)]
    assert share == pytest.approx([0.059370, 0.175642, 0.764988], abs=0.004)


def exact_algorithm1(rewards: list[float], beta: float, k: int) -> dict[tuple[int, ...], float]:
    """The law of Algorithm 1's accepted sequences by recursion over the sweep's coins."""
    law: dict[tuple[int, ...], float] = {}

    def sweep(accepted: tuple[int, ...], remaining: tuple[int, ...], p: float) -> None:
        if len(accepted) == k or not remaining:
            law[accepted] = law.get(accepted, 0.0) + p
            return
        best = max(rewards[i] for i in remaining)

        def step(position: int, now: tuple[int, ...], p: float) -> None:
            if p == 0:
                return
            if len(accepted) + len(now) == k or position == len(remaining):
                sweep(accepted + now, tuple(i for i in remaining if i not in now), p)
                return
            i = remaining[position]
            a = math.exp((rewards[i] - best) / beta)
            step(position + 1, (*now, i), p * a)
            step(position + 1, now, p * (1 - a))

        step(0, (), p)

    sweep((), tuple(range(len(rewards))), 1.0)
    return law


def exact_plackett_luce(rewards: list[float], beta: float, k: int) -> dict[tuple[int, ...], float]:
    w = [math.exp((r - max(rewards)) / beta) for r in rewards]
    law = {}
    for sequence in itertools.permutations(range(len(rewards)), min(k, len(rewards))):
        p, left = 1.0, sum(w)
        for i in sequence:
            p *= w[i] / left
            left -= w[i]
        law[sequence] = p
    return law


def test_the_exact_recursion_gives_the_published_vectors() -> None:
    law = exact_algorithm1([0.0, 1.0, 2.0], 1.0, 1)
    assert [law[(i,)] for i in range(3)] == pytest.approx([0.135335, 0.318092, 0.546572], abs=1e-6)
    # r = (log .5, 0): Plackett-Luce gives the low one 1/3, Algorithm 1 gives it .5 when it comes first, 0 when last.
    assert exact_plackett_luce([math.log(0.5), 0.0], 1.0, 1)[(0,)] == pytest.approx(1 / 3)
    assert exact_algorithm1([math.log(0.5), 0.0], 1.0, 1)[(0,)] == pytest.approx(0.5)
    assert exact_algorithm1([0.0, math.log(0.5)], 1.0, 1).get((1,), 0.0) == 0.0


@settings(max_examples=12, deadline=None)
@given(
    rewards=st.lists(st.floats(-2, 2, allow_nan=False), min_size=2, max_size=5),
    beta=st.sampled_from([0.5, 1.0, 3.0]),
    k=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_both_laws_match_the_exact_recursion(rewards: list[float], beta: float, k: int, seed: int) -> None:
    for law, exact in (("rso", exact_plackett_luce), ("alg1", exact_algorithm1)):
        expected = exact(rewards, beta, k)
        found = Counter(sequence[: min(k, len(rewards))] for sequence in draws(rewards, beta, k, law, seed=seed))
        rare = {key for key, p in expected.items() if p * DRAWS < 10}
        observed = [found[key] for key in expected if key not in rare] + [sum(found[key] for key in rare)]
        wanted = [DRAWS * p for key, p in expected.items() if key not in rare]
        wanted.append(DRAWS - sum(wanted))
        if wanted[-1] < 10:
            observed, wanted = observed[:-1], wanted[:-1]
            wanted = [w * sum(observed) / sum(wanted) for w in wanted]
        if len(wanted) > 1:
            assert chisquare(observed, wanted).pvalue > 1e-6


def pool(scores: list[list[float | None]], texts: list[list[str]] | None = None, cut: set[str] = frozenset()):
    rows = [
        {
            "candidate_id": ids.digest(f"{p}-{i}"),
            "prompt_id": f"p{p}",
            "sample_index": i,
            "score": score,
            "sampler": "policy",
            "round": 0,
            "text_key": ids.seed(0, texts[p][i] if texts else f"{p}-{i}"),
            "left_out": None if score is not None and math.isfinite(score) else "no_score",
            "finish_reason": "length" if f"{p}-{i}" in cut else "stop",
            "name": f"{p}-{i}",
        }
        for p, row in enumerate(scores)
        for i, score in enumerate(row)
    ]
    return pl.DataFrame(rows, schema_overrides={"score": pl.Float64, "left_out": pl.String})


def kept(frame: pl.DataFrame, **settings) -> tuple[list[str], dict[str, int]]:
    rows, account = keep(frame, SelectSpec(**settings))
    return rows.join(frame, on="candidate_id", maintain_order="left")["name"].to_list(), nonzero(account.dropped)


RLHF_BOOK = [
    [0.7, 0.3, 0.5, 0.2],
    [0.4, 0.8, 0.6, 0.5],
    [0.9, 0.3, 0.4, 0.7],
    [0.2, 0.5, 0.8, 0.6],
    [0.5, 0.4, 0.3, 0.6],
]


def test_best_of_n_is_the_argmax() -> None:
    assert kept(pool(RLHF_BOOK), method="best-of-n")[0] == ["0-0", "1-1", "2-0", "3-2", "4-3"]


def test_top_k_ties_go_to_the_earlier_draw() -> None:
    names, dropped = kept(pool([[1.0, 3.0, 3.0, 2.0]]), method="top-k", k=2)
    assert names == ["0-1", "0-2"]
    assert dropped == {"not_selected": 2}


@pytest.mark.parametrize("method", ["best-of-n", "top-k", "rso", "rso-algorithm1"])
def test_what_cannot_be_selected_is_counted(method: str) -> None:
    frame = pool(
        [[1.0, None, float("nan"), 5.0, 2.0, 2.0], [None], [3.0]],
        texts=[["a", "b", "c", "d", "e", "e"], ["x"], ["y"]],
        cut={"0-3"},
    )
    names, dropped = kept(frame, method=method, k=8)
    assert set(names) == ({"0-4", "2-0"} if method == "best-of-n" else {"0-0", "0-4", "2-0"})
    assert {r: dropped[r] for r in ("no_score", "truncated", "duplicate")} == {
        "no_score": 3,
        "truncated": 1,
        "duplicate": 1,
    }


@pytest.mark.parametrize("method", ["rso", "rso-algorithm1"])
def test_limits_of_beta(method: str) -> None:
    scores = [[0.1, 0.9, 0.9, 0.5, 0.3]]
    assert kept(pool(scores), method=method, k=3, beta=0.0)[0] == ["0-1", "0-2", "0-3"]
    everything = kept(pool(scores), method=method, k=3, beta=math.inf)[0]
    assert len(everything) == 3
    if method == "rso-algorithm1":
        assert everything == ["0-0", "0-1", "0-2"]


def test_beta_inf_is_uniform() -> None:
    found = Counter(s[0] for s in draws((0.0, 5.0, 50.0), math.inf, 1, "rso"))
    assert fits(found, dict.fromkeys(range(3), 1 / 3))


methods = st.sampled_from(["top-k", "rso", "rso-algorithm1"])
grids = st.lists(st.lists(st.integers(-8, 8).map(lambda x: x / 2), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(grid=grids, method=methods, k=st.integers(1, 7), seed=st.integers(0, 99), shuffle=st.booleans())
def test_order_of_rows_shift_and_scale_change_nothing(grid, method, k, seed, shuffle) -> None:
    said = {"method": method, "k": k, "seed": seed, "shuffle": shuffle and method == "rso-algorithm1"}
    twice = {"beta": 1.0} if method != "top-k" else {}
    frame = pool(grid)
    names = kept(frame, **said)[0]
    assert names == kept(frame.sample(fraction=1, shuffle=True, seed=seed), **said)[0]
    assert names == kept(pool([[s + 4 for s in row] for row in grid]), **said)[0]
    assert names == kept(pool([[s * 2 for s in row] for row in grid]), **twice, **said)[0]
    counts = Counter(name.split("-")[0] for name in names)
    assert counts == Counter({str(p): min(k, len(row)) for p, row in enumerate(grid)})


@settings(max_examples=30, deadline=None)
@given(grid=grids, method=methods, seed=st.integers(0, 99))
def test_a_prompt_is_selected_from_alike_whoever_stands_beside_it(grid, method, seed) -> None:
    together = kept(pool(grid), method=method, k=2, seed=seed)[0]
    alone = kept(pool(grid).filter(pl.col("prompt_id") == "p0"), method=method, k=2, seed=seed)[0]
    assert [name for name in together if name.startswith("0-")] == alone


def test_uniforms_are_uniform_and_independent_of_order() -> None:
    names = pl.Series([ids.digest(i) for i in range(20_000)])
    u = uniforms(names, 0, "x")
    assert chisquare(np.histogram(u, 20, (0, 1))[0]).pvalue > 1e-4
    assert np.array_equal(uniforms(names.reverse(), 0, "x"), u[::-1])
    v = uniforms(names, 0, "y")
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_empty_pool() -> None:
    assert kept(pool([[None]]), method="rso")[0] == []
