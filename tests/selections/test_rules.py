"""The laws of selection against their exact vectors, and what holds for every method.

The vectors for r = (0, 1, 2), beta = 1 are exact: Plackett-Luce has w / sum(w) with w = (1, e, e^2), here
(.090031, .244728, .665241); Algorithm 1 sweeps with the coins (e^-2, e^-1, 1), so that in the order 0, 1, 2 it takes
the first with e^-2 = .135335, else the second with e^-1: (1 - .135335) * .367879 = .318092, else the max: .546572.
"""

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
from scored_runs import kept, pool

from prefdata import ids
from prefdata.keyed_random import uniforms
from prefdata.selections.rules import acceptance, algorithm1_ranks, boltzmann_draws, gumbel_ranks
from prefdata.selections.select import select_from
from prefdata.specs import SelectSpec

DRAWS = 40_000
REWARDS = [0.0, 1.0, 2.0]
NEVER = 10**9


def orders(rewards, beta, k, law, *, seed=0, draws=DRAWS) -> np.ndarray:
    """The accepted sequences of many independent draws, shape (draws, k), candidates by their index in `rewards`."""
    random = np.random.default_rng(seed)
    scores = np.tile(np.array(rewards, dtype=float), (draws, 1))
    if law == "rso":
        ranks = gumbel_ranks(scores, beta, random.random(scores.shape))
    else:
        ranks = algorithm1_ranks(scores, beta, k, lambda sweep: random.random(scores.shape))
        ranks = np.where(ranks == 0, NEVER, ranks)
    assert ((ranks < NEVER).sum(axis=1) >= min(k, len(rewards))).all()  # no sweep ends with too few
    return np.argsort(ranks, axis=1)[:, :k]


def counted(sequences: np.ndarray) -> Counter:
    rows, counts = np.unique(sequences, axis=0, return_counts=True)
    return Counter({tuple(row): int(count) for row, count in zip(rows.tolist(), counts, strict=True)})


def fits(found: Counter, exact: dict, p_value: float = 1e-4) -> bool:
    """Chi-square of counts against probabilities; outcomes that are too rare to test count as one."""
    draws = sum(found.values())
    assert set(found) <= {key for key, p in exact.items() if p > 0}
    often = [key for key, p in exact.items() if p * draws >= 10]
    observed, wanted = [found[key] for key in often], [draws * exact[key] for key in often]
    rest = draws - sum(wanted)
    if rest >= 10:
        observed, wanted = [*observed, draws - sum(observed)], [*wanted, rest]
    scale = sum(observed) / sum(wanted)
    return len(wanted) < 2 or chisquare(observed, [one * scale for one in wanted]).pvalue > p_value


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
        p, left = 1.0, [w[i] for i in range(len(w))]
        for i in sequence:
            p *= w[i] / sum(left) if sum(left) > 0 else 0.0
            left[i] = 0.0
        law[sequence] = p
    return law


def sets(law: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    found: dict[tuple[int, ...], float] = {}
    for sequence, p in law.items():
        found[tuple(sorted(sequence))] = found.get(tuple(sorted(sequence)), 0.0) + p
    return found


def in_order(order: list[int], law: dict[tuple[int, ...], float]) -> dict[tuple[int, ...], float]:
    """A law of places in a list, as one of what stands there."""
    return {tuple(order[i] for i in sequence): p for sequence, p in law.items()}


VECTORS = [
    # law, list order, k, the probabilities of (0,) (1,) (2,), or of {0,1} {0,2} {1,2}
    ("rso", [0, 1, 2], 1, (0.090031, 0.244728, 0.665241)),
    ("alg1", [0, 1, 2], 1, (0.135335, 0.318092, 0.546572)),
    ("alg1", [2, 1, 0], 1, (0.0, 0.0, 1.0)),
    ("alg1", [1, 0, 2], 1, (0.085548, 0.367879, 0.546572)),
    ("rso", [0, 1, 2], 2, (0.053385, 0.244728, 0.701886)),
    ("alg1", [0, 1, 2], 2, (0.049787, 0.286621, 0.663592)),
    ("alg1", [2, 1, 0], 2, (0.0, 0.085548, 0.914452)),
]


@pytest.mark.parametrize(("law", "order", "k", "exact"), VECTORS)
def test_the_published_vectors(law: str, order: list[int], k: int, exact: tuple[float, ...]) -> None:
    """By chi-square; and the exact recursions that the next tests go by give them to six digits."""
    rewards = [REWARDS[i] for i in order]
    outcomes = list(itertools.combinations(range(3), k))
    recursion = sets(in_order(order, (exact_plackett_luce if law == "rso" else exact_algorithm1)(rewards, 1.0, k)))
    assert [recursion.get(one, 0.0) for one in outcomes] == pytest.approx(exact, abs=1e-6)
    found: Counter = Counter()
    for sequence, count in counted(orders(rewards, 1.0, k, law)).items():
        found[tuple(sorted(order[i] for i in sequence))] += count
    assert fits(found, dict(zip(outcomes, exact, strict=True)))


@pytest.mark.parametrize(("k", "exact"), [(1, (0.059370, 0.175642, 0.764988)), (2, (0.016596, 0.202680, 0.780724))])
def test_algorithm1_with_shuffle(k: int, exact: tuple[float, ...]) -> None:
    """A random order: the mean of the six orders' laws, for 40,000 prompts of a run."""
    outcomes = list(itertools.combinations(range(3), k))
    mean: Counter = Counter()
    for order in itertools.permutations(range(3)):
        for one, p in sets(in_order(list(order), exact_algorithm1([REWARDS[i] for i in order], 1.0, k))).items():
            mean[one] += p / 6
    assert [mean[one] for one in outcomes] == pytest.approx(exact, abs=1e-6)
    rows, _ = select_from(many([REWARDS] * DRAWS), SelectSpec(method="rso-algorithm1", k=k, beta=1.0, shuffle=True))
    chosen = rows.sort("score").group_by("prompt_id").agg("score")["score"].to_list()
    found = Counter(tuple(int(score) for score in scores) for scores in chosen)
    assert fits(found, dict(zip(outcomes, exact, strict=True)))


def many(scores: list[list[float]]) -> pl.DataFrame:
    """As `pool`, for very many prompts of equally many answers."""
    each = len(scores[0])
    prompt = [ids.digest(f"p{p}") for p in range(len(scores))]
    return pl.DataFrame(
        {
            "candidate_id": [ids.digest([p, i]) for p in range(len(scores)) for i in range(each)],
            "prompt_id": np.repeat(prompt, each),
            "sample_index": np.tile(np.arange(each, dtype=np.int32), len(scores)),
            "score": np.array(scores, dtype=float).ravel(),
            "text_key": pl.int_range(each * len(scores), dtype=pl.Int64, eager=True),
            "chars": 5,
        }
    ).with_columns(
        sampler=pl.lit("policy"), round=pl.lit(0), excluded=pl.lit(None, pl.String), finish_reason=pl.lit("stop")
    )


def test_how_often_algorithm1_with_shuffle_keeps_the_best() -> None:
    """E[min(1, k / |A|)], A being who passes the first sweep: the best always, i with a_i = exp(r_i - max).

    In a random order the first k of A are kept. For r = (0, 1, 2), k = 1: (1 - a0)(1 - a1)
    + (a0(1 - a1) + a1(1 - a0)) / 2 + a0 a1 / 3 = .764988, which is the published number.
    """

    def kept_best(rewards: list[float], k: int) -> float:
        passes = [math.exp(r - max(rewards)) for r in sorted(rewards)[:-1]]
        return sum(
            math.prod(p if there else 1 - p for p, there in zip(passes, which, strict=True))
            * min(1, k / (1 + sum(which)))
            for which in itertools.product((0, 1), repeat=len(passes))
        )

    assert kept_best(REWARDS, 1) == pytest.approx(0.764988, abs=1e-6)
    for rewards, k in ((REWARDS, 2), (EIGHT, 1), (EIGHT, 3)):
        rows, _ = select_from(many([rewards] * DRAWS), SelectSpec(method="rso-algorithm1", k=k, beta=1.0, shuffle=True))
        share = rows.filter(pl.col("score") == max(rewards)).height / DRAWS
        assert share == pytest.approx(kept_best(rewards, k), abs=5 * math.sqrt(0.25 / DRAWS))


EIGHT = [-1.5, -1.0, -0.5, 0.0, 0.3, 0.8, 1.2, 2.0]


@pytest.mark.parametrize(
    ("beta", "algorithm1", "gumbel"), [(0.5, 1.006, 0.979), (5, 0.422, 0.336), (0.05, 1.075, 1.075)]
)
def test_the_mean_accepted_reward(beta: float, algorithm1: float, gumbel: float) -> None:
    """N = 8, k = 4; the standard error of 40,000 means of four is below .003."""
    random = np.random.default_rng(5)
    scores = np.array(EIGHT)[random.permuted(np.tile(np.arange(8), (DRAWS, 1)), axis=1)]
    swept = algorithm1_ranks(scores, beta, 4, lambda sweep: random.random(scores.shape))
    assert scores[swept > 0].mean() == pytest.approx(algorithm1, abs=0.006)
    drawn = gumbel_ranks(scores, beta, random.random(scores.shape))
    assert scores[drawn <= 4].mean() == pytest.approx(gumbel, abs=0.006)
    assert ((swept > 0).sum(axis=1) == 4).all()


def test_the_two_laws_differ_and_how() -> None:
    """r = (log .5, 0): Plackett-Luce gives the low one .5 / 1.5; Algorithm 1 .5 when it comes first, 0 when last."""
    low_first, low_last = [math.log(0.5), 0.0], [0.0, math.log(0.5)]
    assert fits(counted(orders(low_first, 1.0, 1, "rso")), {(0,): 1 / 3, (1,): 2 / 3})
    assert fits(counted(orders(low_first, 1.0, 1, "alg1")), {(0,): 0.5, (1,): 0.5})
    assert set(counted(orders(low_last, 1.0, 1, "alg1"))) == {(0,)}


reward_lists = st.lists(st.floats(-3, 3).map(lambda x: round(x, 2)), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(
    rewards=reward_lists,
    beta=st.sampled_from([0.3, 0.5, 1.0, 3.0]),
    k=st.integers(1, 4),
    seed=st.integers(0, 1000),
    law=st.sampled_from(["rso", "alg1"]),
)
def test_both_laws_match_the_exact_recursion(rewards, beta: float, k: int, seed: int, law: str) -> None:
    exact = exact_plackett_luce if law == "rso" else exact_algorithm1
    found = counted(orders(rewards, beta, k, law, seed=seed, draws=20_000))
    assert fits(found, exact(rewards, beta, k), p_value=1e-6)


@settings(max_examples=15, deadline=None)
@given(rewards=reward_lists, beta=st.sampled_from([0.3, 1.0, 3.0, math.inf]), seed=st.integers(0, 1000))
def test_boltzmann_draws_from_the_softmax(rewards, beta: float, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = np.tile(np.array([*rewards, -np.inf]), (5_000, 1))  # the last place of the grid has no candidate
    drawn = boltzmann_draws(scores, beta, 4, lambda j: random.random(scores.shape))
    assert (drawn.sum(axis=1) == 4).all()
    assert drawn[:, -1].sum() == 0
    weight = np.exp((np.array(rewards) - max(rewards)) / beta)
    softmax = {(i,): p for i, p in enumerate(weight / weight.sum())}
    assert fits(Counter({(i,): int(n) for i, n in enumerate(drawn.sum(axis=0)[:-1]) if n}), softmax, p_value=1e-6)


@pytest.mark.parametrize("k", [2, 3])
def test_boltzmann_draws_are_independent_of_each_other(k: int) -> None:
    """How often each of r = (0, 1, 2) is drawn is multinomial with the softmax p: both draws alike with sum p^2.

    For beta = 1, p = (.090031, .244728, .665241), two draws are the same with .008106 + .059892 + .442546 = .510543.
    """
    p = [math.exp(r) / sum(map(math.exp, REWARDS)) for r in REWARDS]
    exact: Counter = Counter()
    for drawn in itertools.product(range(3), repeat=k):
        exact[tuple(drawn.count(i) for i in range(3))] += math.prod(p[i] for i in drawn)
    rows, _ = select_from(many([REWARDS] * DRAWS), SelectSpec(method="boltzmann", k=k, beta=1.0))
    counts = rows.group_by("prompt_id").agg(
        ((pl.col("score") == r) * pl.col("draws")).sum().alias(str(r)) for r in REWARDS
    )
    found = Counter(counts.select(map(str, REWARDS)).rows())
    assert fits(found, dict(exact))
    if k == 2:
        assert sum(exact[one] for one in ((2, 0, 0), (0, 2, 0), (0, 0, 2))) == pytest.approx(0.510543, abs=1e-6)


def test_boltzmann_counts_draws_and_puts_the_most_drawn_first() -> None:
    rows, account = select_from(pool([[0.0, 1.0, 0.5], [2.0]]), SelectSpec(method="boltzmann", k=20, beta=2.0))
    first = rows.filter(pl.col("prompt_id") == f"{0:020x}")
    assert first["draws"].sum() == 20
    assert first["draws"].to_list() == sorted(first["draws"], reverse=True)
    assert first["rank"].to_list() == list(range(1, first.height + 1))
    assert rows.filter(pl.col("prompt_id") == f"{1:020x}")["draws"].to_list() == [20]
    assert account.rows_in == account.rows_out + sum(account.dropped.values())


def test_boltzmann_at_the_ends_of_beta() -> None:
    assert kept(pool([[0.1, 0.9, 0.9, 0.5]]), method="boltzmann", k=5, beta=0.0)[0] == ["0-1"]
    rows, _ = select_from(pool([[0.1, 0.9]]), SelectSpec(method="boltzmann", k=400, beta=math.inf))
    assert rows["draws"].min() > 150


def test_acceptance_by_hand() -> None:
    """a = exp((r - 2) / 1) = (e^-2, e^-1, 1), sum 1.503215; Kish: 1.503215^2 / (e^-4 + e^-2 + 1) = 1.958699."""
    scores = np.array([[0.0, 1.0, 2.0], [3.0, 3.0, -np.inf]])
    rate, effective = acceptance(scores, 1.0)
    assert rate == pytest.approx([0.501072, 1.0], abs=1e-6)
    assert effective == pytest.approx([1.958699, 2.0], abs=1e-5)
    assert acceptance(scores, 0.0)[0] == pytest.approx([1 / 3, 1.0])
    assert acceptance(scores, 0.0)[1] == pytest.approx([1.0, 2.0])
    assert acceptance(scores, math.inf)[0] == pytest.approx([1.0, 1.0])
    assert acceptance(scores, math.inf)[1] == pytest.approx([3.0, 2.0])


def test_the_report_has_the_means_over_prompts() -> None:
    _, account = select_from(pool([[0.0, 1.0, 2.0], [3.0, 3.0]]), SelectSpec(k=1, beta=1.0))
    figures = account.report("select", "rows").figures
    assert figures["acceptance_rate"] == pytest.approx((0.501072 + 1) / 2, abs=1e-6)
    assert figures["effective_candidates"] == pytest.approx((1.958699 + 2) / 2, abs=1e-5)
    assert figures["mean_score_before"] == pytest.approx(9 / 5)
    assert (figures["prompts"], figures["prompts_with_answers"], figures["ties_at_the_top"]) == (2, 2, 1)


RLHF_BOOK = [
    [0.7, 0.3, 0.5, 0.2],
    [0.4, 0.8, 0.6, 0.5],
    [0.9, 0.3, 0.4, 0.7],
    [0.2, 0.5, 0.8, 0.6],
    [0.5, 0.4, 0.3, 0.6],
]


def test_best_of_n_is_the_argmax() -> None:
    """rlhf-book's matrix: per prompt [0, 1, 0, 2, 3]."""
    assert kept(pool(RLHF_BOOK), method="best-of-n")[0] == ["0-0", "1-1", "2-0", "3-2", "4-3"]


def test_top_k_overall_is_of_the_run() -> None:
    """rlhf-book's matrix, top 5: flat {8, 5, 14, 0, 11}; the third prompt has two, the fifth none.

    `keep` gives each prompt's own k; the rest is done over all batches, as tests/selections/test_select.py shows.
    """
    from prefdata.selections.select import _top_k_overall
    from prefdata.storage.report import ReportBuilder

    rows, account = select_from(pool(RLHF_BOOK), SelectSpec(method="top-k-overall", k=5))
    whole = ReportBuilder(account.rows_in, account.rows_out, account.dropped)
    (best,) = _top_k_overall([rows], 5, whole)
    names = {ids.digest(f"{p}-{i}"): 4 * p + i for p in range(5) for i in range(4)}
    assert {names[one] for one in best["candidate_id"]} == {8, 5, 14, 0, 11}
    assert whole.report("select", "rows").rows_out == 5


def test_top_k_ties_go_to_the_earlier_draw() -> None:
    names, dropped = kept(pool([[1.0, 3.0, 3.0, 2.0]]), method="top-k", k=2)
    assert names == ["0-1", "0-2"]
    assert dropped == {"not_selected": 2}


@pytest.mark.parametrize("method", ["rso", "rso-algorithm1"])
def test_limits_of_beta(method: str) -> None:
    scores = [[0.1, 0.9, 0.9, 0.5, 0.3]]
    assert kept(pool(scores), method=method, k=3, beta=0.0)[0] == ["0-1", "0-2", "0-3"]
    everything = kept(pool(scores), method=method, k=3, beta=math.inf)[0]
    assert len(everything) == 3
    if method == "rso-algorithm1":
        assert everything == ["0-0", "0-1", "0-2"]


def test_beta_inf_is_uniform() -> None:
    third = {(i,): 1 / 3 for i in range(3)}
    assert fits(counted(orders((0.0, 5.0, 50.0), math.inf, 1, "rso")), third)
    rows, _ = select_from(
        many([[0.0, 5.0, 50.0]] * 5_000), SelectSpec(method="rso-algorithm1", k=1, beta=math.inf, shuffle=True)
    )
    assert fits(Counter({((0.0, 5.0, 50.0).index(s),): n for s, n in rows["score"].value_counts().iter_rows()}), third)


@pytest.mark.parametrize("beta", [1e-99, 1e-9, 1e-3])
def test_a_very_small_beta_keeps_the_highest(beta: float) -> None:
    scores = [[-1e6, 1e6, 0.0], [5.0], [1e90, -1e90, 1e89]]
    two = ["0-1", "0-2", "1-0", "2-0", "2-2"]
    assert kept(pool(scores), method="rso", k=2, beta=beta)[0] == two
    assert kept(pool(scores), method="rso-algorithm1", k=2, beta=beta)[0] == two
    rows, _ = select_from(pool(scores), SelectSpec(method="boltzmann", k=2, beta=beta))
    assert kept(pool(scores), method="boltzmann", k=2, beta=beta)[0] == ["0-1", "1-0", "2-0"]
    assert rows["draws"].to_list() == [2, 2, 2]


@pytest.mark.parametrize("beta", [1e9, 1e90, math.inf])
def test_a_very_large_beta_keeps_any(beta: float) -> None:
    """exp((r - max) / beta) is 1 - 2e-3 or more: each sequence of `rso`, each draw of `boltzmann` is as likely.

    Algorithm 1 accepts what comes first; to within 40 of 20,000 prompts, which is what 2e-3 comes to.
    """
    frame = many([[-1e6, 1e6, 0.0]] * 20_000)
    names = {-1e6: 0, 1e6: 1, 0.0: 2}

    def kept_of_each(method: str) -> Counter:
        rows, _ = select_from(frame, SelectSpec(method=method, k=2, beta=beta))
        each = rows.group_by("prompt_id").agg(pl.col("score").sort_by("rank"), pl.col("draws").sort_by("rank"))
        of = [[names[score] for score in scores] for scores in each["score"].to_list()]
        draws = [tuple(sorted(zip(o, d, strict=True))) for o, d in zip(of, each["draws"].to_list(), strict=True)]
        return Counter(draws if method == "boltzmann" else map(tuple, of))

    sequences = dict.fromkeys(itertools.permutations(range(3), 2), 1 / 6)
    assert fits(kept_of_each("rso"), sequences)
    twice = {((i, 2),): 1 / 9 for i in range(3)}
    once = {((i, 1), (j, 1)): 2 / 9 for i, j in itertools.combinations(range(3), 2)}
    assert fits(kept_of_each("boltzmann"), twice | once)
    assert kept_of_each("rso-algorithm1")[0, 1] >= 20_000 - 150


methods = st.sampled_from(["top-k", "rso", "rso-algorithm1", "boltzmann"])
score_grids = st.lists(
    st.lists(st.integers(-8, 8).map(lambda x: x / 2), min_size=1, max_size=6), min_size=1, max_size=5
)


def test_the_order_of_generation_is_nothing_to_rso_and_something_to_the_sweep() -> None:
    """The same candidates, generated in another order: `rso` keeps the same ones, in the same order."""
    frame = many([REWARDS * 2] * 2000)
    other = frame.with_columns(sample_index=5 - pl.col("sample_index"))
    for law, same in (("rso", True), ("rso-algorithm1", False)):
        one, two = (
            select_from(rows, SelectSpec(method=law, k=2, beta=1.0))[0].sort("prompt_id", "rank")["candidate_id"]
            for rows in (frame, other)
        )
        assert one.equals(two) == same


@settings(max_examples=60, deadline=None)
@given(grid=score_grids, method=methods, k=st.integers(1, 7), seed=st.integers(0, 99), shuffle=st.booleans())
def test_order_of_rows_shift_and_scale_change_nothing(grid, method, k, seed, shuffle) -> None:
    said = {"method": method, "k": k, "seed": seed, "shuffle": shuffle and method == "rso-algorithm1"}
    twice = {"beta": 1.0} if method != "top-k" else {}
    frame = pool(grid)
    names, dropped = kept(frame, **said)
    assert names == kept(frame.sample(fraction=1, shuffle=True, seed=seed), **said)[0]
    assert names == kept(pool([[s + 4 for s in row] for row in grid]), **said)[0]
    assert names == kept(pool([[s * 2 for s in row] for row in grid]), **twice, **said)[0]
    assert frame.height == len(names) + sum(dropped.values())
    if method != "boltzmann":  # k of n, and k >= n is all of them
        counts = Counter(name.split("-")[0] for name in names)
        assert counts == Counter({str(p): min(k, len(row)) for p, row in enumerate(grid)})


@settings(max_examples=30, deadline=None)
@given(grid=score_grids, method=methods, seed=st.integers(0, 99))
def test_a_prompt_is_selected_from_alike_whoever_stands_beside_it(grid, method, seed) -> None:
    together = kept(pool(grid), method=method, k=2, seed=seed)[0]
    alone = kept(pool(grid).filter(pl.col("prompt_id") == f"{0:020x}"), method=method, k=2, seed=seed)[0]
    assert [name for name in together if name.startswith("0-")] == alone


def test_another_seed_draws_anew() -> None:
    frame = pool([[0.0] * 6] * 5)
    found = {tuple(kept(frame, method=m, k=2, seed=s)[0]) for m in ("rso", "boltzmann") for s in range(3)}
    assert len(found) == 6


def test_uniforms_are_uniform_and_independent_of_order() -> None:
    names = pl.Series([ids.digest(i) for i in range(20_000)])
    u = uniforms(names, 0, "x")
    assert chisquare(np.histogram(u, 20, (0, 1))[0]).pvalue > 1e-4
    assert np.array_equal(uniforms(names.reverse(), 0, "x"), u[::-1])
    v = uniforms(names, 0, "y")
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_empty_pool() -> None:
    for method in ("best-of-n", "rso", "rso-algorithm1", "boltzmann", "top-k-overall"):
        assert kept(pool([[None]]), method=method) == ([], {"no_score": 1})


EXTREME = [
    ([1e6, 1e6, 0.0], 1e-10),
    ([1e6, 1e6, 0.0], 1e-11),
    ([1e17, 1e17, 1e17], 1.0),
    ([1e6, 1e6 + 1e-9, 1e6 + 2e-9], 1e-9),
    ([-1e6, -1e6, -1e6], 1e-12),
    ([1e100, -1e100, -1e100, 1e100], 1e-100),
    ([3e5, 1.0, 1.0 + 2e-10, 1.0], 1e-10),
    ([2.0, 0.0, 1e-300, 0.0], 1e-300 ** (1 / 3)),
]
"""Scores and a beta: logits from 1e9 to 1e200 apart, equal ones and some within beta of each other far below."""


def plackett_luce(rewards: list[float], beta: float) -> dict[tuple[int, ...], float]:
    """The exact probability of every order: each next one in proportion to exp((r - max of the remaining) / beta)."""
    made = {}
    for order in itertools.permutations(range(len(rewards))):
        p, remaining = 1.0, list(order)
        while remaining:
            best = max(rewards[i] for i in remaining)
            weights = [math.exp(max((rewards[i] - best) / beta, -745.0)) for i in remaining]
            p *= weights[0] / sum(weights)
            remaining.pop(0)
        made[order] = p
    return {order: p for order, p in made.items() if p > 1e-12}


@pytest.mark.parametrize(("rewards", "beta"), EXTREME)
def test_rso_draws_from_its_exact_distribution_whatever_the_scale(rewards: list[float], beta: float) -> None:
    """Noise of size 1 added to scores / beta would be rounded off: equal scores would come in list order."""
    with np.errstate(all="raise", under="ignore"):
        found = orders(rewards, beta, len(rewards), "rso")
    assert fits(counted(found), plackett_luce(rewards, beta))


@pytest.mark.parametrize(("rewards", "beta"), EXTREME)
def test_boltzmann_draws_from_its_exact_distribution_whatever_the_scale(rewards: list[float], beta: float) -> None:
    random = np.random.default_rng(0)
    scores = np.tile(np.array(rewards), (DRAWS, 1))
    drawn = boltzmann_draws(scores, beta, 1, lambda _: random.random(scores.shape)).sum(axis=0)
    first = Counter()
    for order, p in plackett_luce(rewards, beta).items():
        first[(order[0],)] += p
    assert fits(Counter({(i,): int(n) for i, n in enumerate(drawn) if n}), dict(first))


@pytest.mark.parametrize(("rewards", "beta"), EXTREME)
def test_the_acceptance_is_that_of_the_differences(rewards: list[float], beta: float) -> None:
    rate, effective = acceptance(np.array([rewards, [r - rewards[0] for r in rewards]]), beta)
    weights = [math.exp(max((r - max(rewards)) / beta, -745.0)) for r in rewards]
    assert rate[0] == pytest.approx(sum(weights) / len(weights))
    assert effective[0] == pytest.approx(sum(weights) ** 2 / sum(w * w for w in weights))


def test_a_shorter_prompt_beside_a_longer_one_is_drawn_from_alike() -> None:
    """The grid is padded: what is no candidate stays last, also where others are far below the best."""
    scores = np.array([[1e9, 0.0, 0.0, 0.0], [1e9, 0.0, 0.0, -np.inf], [1.0, 0.0, -np.inf, -np.inf]])
    uniform = np.random.default_rng(5).random((3, 4))
    together = gumbel_ranks(scores, 1e-9, uniform)
    assert together[:, 0].tolist() == [1, 1, 1]
    assert (together[1, 3], set(together[2, 2:])) == (4, {3, 4})
    assert together[1, :3].tolist() == gumbel_ranks(scores[1:2, :3], 1e-9, uniform[1:2, :3])[0].tolist()
