"""Comparisons to scores: the vectors by hand, laws that every league obeys, and contradictions counted."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from prefdata.errors import InputError, UsageError
from prefdata.stats.ratings import ELO_PER_NAT, METHODS, aggregate, borda_points, elo, mm_step
from prefdata.stats.win_counts import contradictions, league

WINS = [[0, 6, 7], [2, 0, 5], [3, 3, 0]]
SCHEMA = {"prompt_id": pl.String, "first_id": pl.String, "second_id": pl.String, "probability": pl.Float64}


def table(rows) -> pl.DataFrame:
    """Comparisons from (prompt, first, second, probability)."""
    return pl.DataFrame(list(rows), schema=SCHEMA, orient="row")


def games(wins, prompt: str = "p") -> pl.DataFrame:
    names = "abcdefgh"
    return table(
        (prompt, names[i], names[j], 1.0) for i, row in enumerate(wins) for j, n in enumerate(row) for _ in range(n)
    )


def scored(comparisons: pl.DataFrame, method: str, **settings) -> dict[str, float | None]:
    made = aggregate(comparisons, method, **settings)
    return dict(zip(made["candidate_id"], made["score"], strict=True))


ROWS = st.lists(
    st.tuples(*map(st.sampled_from, ["pq", "abcd", "abcd", [0.0, 0.3, 0.5, 1.0, None]])),
    max_size=40,
)


def test_bradley_terrys_maximum_likelihood():
    """p = (.560277, .249336, .190387), so centred logs (.629668, -.179961, -.449707), Elo (109.385, -31.262, -78.122).

    At the maximum, expected wins are the wins: 8 p0/(p0+p1) + 10 p0/(p0+p2) = 13.
    """
    found = np.array(list(scored(games(WINS), "bradley-terry", prior=0).values()))
    assert found == pytest.approx([0.629668, -0.179961, -0.449707], abs=1e-6)
    assert np.exp(found) / np.exp(found).sum() == pytest.approx([0.560277, 0.249336, 0.190387], abs=1e-6)
    assert found * ELO_PER_NAT == pytest.approx([109.385, -31.262, -78.122], abs=1e-3)


def test_the_first_step_of_minorisation_maximisation():
    """From equal strengths p <- W / (N / 2p): 13/18, 7/16, 6/18 up to a factor: (.483721, .293023, .223256)."""
    theta = mm_step(np.zeros((1, 3)), np.array([WINS], float), 0.0)[0]
    assert np.exp(theta) / np.exp(theta).sum() == pytest.approx([0.483721, 0.293023, 0.223256], abs=1e-6)


def test_two_players_three_to_one():
    """ln 3 nats apart: 400 log10 3 = 190.8485 Elo points."""
    assert pytest.approx(173.7178, abs=1e-4) == ELO_PER_NAT
    found = scored(games([[0, 3], [1, 0]]), "bradley-terry", prior=0)
    assert (found["a"] - found["b"]) * ELO_PER_NAT == pytest.approx(190.8485, abs=1e-4)


def test_the_prior_by_hand():
    """One game, prior 1/2: with x = theta_a = -theta_b, 1.5 = s(2x) + s(x); by symmetry b's equation is the same."""
    found = scored(games([[0, 1], [0, 0]]), "bradley-terry", prior=0.5)
    x = optimize.brentq(lambda t: 1 / (1 + math.exp(-2 * t)) + 1 / (1 + math.exp(-t)) - 1.5, 0, 9)
    assert found == pytest.approx({"a": x, "b": -x})


def test_without_a_prior_what_is_not_connected_has_no_score():
    """a beat b and never lost; c and d won one each; e's only comparison has no verdict."""
    rows = [("p", "a", "b", 1.0), ("q", "c", "d", 1.0), ("q", "d", "c", 1.0), ("q", "c", "e", None)]
    made = aggregate(table(rows), "bradley-terry", prior=0)
    assert made["reason"].to_list() == ["not_connected", "not_connected", None, None, "no_comparisons"]
    assert made["score"].to_list() == [None, None, pytest.approx(0), pytest.approx(0), None]
    assert made["games"].to_list() == [1, 1, 2, 2, 0]
    with_prior = aggregate(table(rows), "bradley-terry")
    assert with_prior["reason"].to_list() == [None, None, None, None, "no_comparisons"]


def test_two_islands_in_one_prompt_are_joined_by_the_prior():
    found = scored(table([("p", "a", "b", 1.0), ("p", "c", "d", 0.0)]), "bradley-terry")
    assert found["a"] == pytest.approx(found["d"])
    assert found["a"] > found["b"]


@settings(deadline=None)
@given(ROWS, st.floats(0.01, 2))
def test_expected_wins_are_the_wins(rows, prior):
    """Stationarity: W_i + prior = sum_j N_ij s(t_i - t_j) + 2 prior s(t_i + c), c the shift that centring took."""
    made = aggregate(table(rows), "bradley-terry", prior=prior).drop_nulls("score")
    for prompt in set(made["prompt_id"]):
        here = made.filter(pl.col("prompt_id") == prompt)
        theta = dict(zip(here["candidate_id"], here["score"], strict=True))
        slopes = dict.fromkeys(theta, prior)
        for _, first, second, p in [r for r in rows if r[0] == prompt and r[3] is not None and r[1] != r[2]]:
            expected = 1 / (1 + math.exp(theta[second] - theta[first]))
            slopes[first] += p - expected
            slopes[second] -= p - expected
        shift = optimize.brentq(
            lambda c, theta=theta: sum(2 / (1 + math.exp(-t - c)) - 1 for t in theta.values()), -80, 80, xtol=1e-13
        )
        sides = [2 * prior / (1 + math.exp(-t - shift)) for t in theta.values()]
        assert list(slopes.values()) == pytest.approx(sides, abs=1e-6)


def test_leagues_do_not_touch_each_other():
    """A prompt's scores are the same alone and beside others, of its own and of another size."""
    others = [games([[0, 1], [4, 0]], "o"), games([[0, 2, 2], [1, 0, 2], [1, 1, 0]], "q")]
    for method in METHODS:
        alone = aggregate(games(WINS), method, permutations=0)
        beside = aggregate(pl.concat([others[0], games(WINS), others[1]]), method, permutations=0)
        here = beside.filter(pl.col("prompt_id") == "p")
        assert here["score"].to_list() == pytest.approx(alone["score"].to_list())


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False), st.sampled_from(METHODS))
def test_the_order_of_rows_changes_nothing(rows, random, method):
    shuffled = random.sample(rows, len(rows))
    made, again = (aggregate(table(r), method, permutations=3) for r in (rows, shuffled))
    assert made.equals(again)


@settings(deadline=None)
@given(ROWS, st.sampled_from(["bradley-terry", "borda", "copeland"]))
def test_a_comparison_can_be_told_from_either_side(rows, method):
    turned = [(p, b, a, None if x is None else 1 - x) for p, a, b, x in rows]
    made, again = (aggregate(table(r), method) for r in (rows, turned))
    assert made["score"].to_list() == pytest.approx(again["score"].to_list(), abs=1e-7)


def test_ties_and_soft_verdicts_are_fractions_of_wins():
    tie = table([("p", "a", "b", 0.5)])
    both = table([("p", "a", "b", 1.0), ("p", "a", "b", 0.0)])
    assert list(scored(tie, "bradley-terry").values()) == [0, 0]
    soft = table([("p", "a", "b", 0.75)] * 4)
    hard = table([("p", "a", "b", 1.0)] * 3 + [("p", "a", "b", 0.0)])
    assert scored(soft, "bradley-terry") == pytest.approx(scored(hard, "bradley-terry"))
    assert scored(both, "borda") == scored(tie, "borda") == {"a": 0.5, "b": 0.5}


def test_online_elo():
    """1000 against 1000, K = 4: 1002 to 998; again: expected 1 / (1 + 10^(-4/400)) = .505756, so 1003.976976."""
    once = league(table([("p", "a", "b", 1.0)]))
    assert elo(once, permutations=0).tolist() == [1002.0, 998.0]
    twice = league(table([("p", "a", "b", 1.0)] * 2))
    assert elo(twice, permutations=0) == pytest.approx([1003.976976, 996.023024], abs=1e-6)


@settings(deadline=None)
@given(ROWS)
def test_elos_sum_never_changes(rows):
    here = league(table(rows))
    ratings = elo(here, permutations=5)
    for prompt in np.unique(here.prompt):
        assert ratings[here.prompt == prompt].mean() == pytest.approx(1000)


def test_elo_averages_over_orders():
    """a beat b, b beat c, c beat a: whoever wins last is ahead; over many orders nobody is."""
    cycle = table([("p", "a", "b", 1.0), ("p", "b", "c", 1.0), ("p", "c", "a", 1.0)])
    one, many = scored(cycle, "elo", permutations=0, k=100), scored(cycle, "elo", permutations=2000, k=100)
    assert max(one.values()) - min(one.values()) > 5
    assert max(many.values()) - min(many.values()) < 1
    assert scored(cycle, "elo", seed=1, permutations=3) != scored(cycle, "elo", seed=2, permutations=3)


def test_borda_and_copeland():
    """Shares of a: 6/8 + 7/10; b: 2/8 + 5/8; c: 3/10 + 3/8. Majorities: a beats both, b beats c: 2, 0, -2."""
    assert list(scored(games(WINS), "borda").values()) == pytest.approx([1.45, 0.875, 0.675])
    assert list(scored(games(WINS), "copeland").values()) == [2, 0, -2]


def test_borda_of_one_who_met_few():
    """d met only a and won: a share of 1 of the one met, times 3 opponents."""
    rows = [("p", *pair, 1.0) for pair in [("a", "b"), ("a", "c"), ("b", "c"), ("d", "a")]]
    assert scored(table(rows), "borda") == pytest.approx({"a": 2, "b": 1.5, "c": 0, "d": 3})


def test_borda_points_average_ties():
    """Ranks 1, 2, 2, 4 of four: 3, (2 + 1) / 2 twice, 0."""
    assert borda_points(np.array([[1.0, 2, 2, 4]])).tolist() == [3, 1.5, 1.5, 0]


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=1, max_size=6))
def test_borda_of_comparisons_is_borda_of_rankings(rankings):
    """Each ranking gives its six comparisons; the shares add up to the points of one ranking on average."""
    rows = [
        ("p", "abcd"[i], "abcd"[j], (1 + np.sign(ranks[j] - ranks[i])) / 2)
        for ranks in rankings for i, j in combinations(range(4), 2)
    ]  # fmt: skip
    points = borda_points(np.array(rankings, float)) / len(rankings)
    assert list(scored(table(rows), "borda").values()) == pytest.approx(points.tolist())
    assert points == pytest.approx(np.mean([4 - stats.rankdata(r) for r in rankings], axis=0))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_with_as_many_games_each_bradley_terrys_order_is_bordas(first_wins):
    """Every two met four times; each player's wins decide both orders."""
    rows = []
    for (i, j), n in zip(combinations("abcd", 2), first_wins, strict=True):
        rows += [("p", i, j, 1.0)] * n + [("p", i, j, 0.0)] * (4 - n)
    strength, points = (list(scored(table(rows), method).values()) for method in ("bradley-terry", "borda"))
    assert stats.rankdata(np.round(strength, 6)).tolist() == stats.rankdata(np.round(points, 6)).tolist()


def test_a_condorcet_cycle():
    """Rankings ABC, BCA, CAB: Borda points (3, 3, 3), Copeland 0, equal strengths, and one cycle of one triple."""
    rankings = np.array([[1.0, 2, 3], [3, 1, 2], [2, 3, 1]])
    assert borda_points(rankings).tolist() == [3, 3, 3]
    rows = [
        ("p", "abc"[i], "abc"[j], float(ranks[i] < ranks[j]))
        for ranks in rankings
        for i, j in combinations(range(3), 2)
    ]
    for method in ("copeland", "bradley-terry"):
        assert list(scored(table(rows), method).values()) == pytest.approx([0, 0, 0], abs=1e-9)
    found = contradictions(league(table(rows)))
    assert (found["triples"], found["cycles"], found["transitivity"]) == (1, 1, 0.0)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=10, max_size=10))
def test_cycles_by_out_degrees(outcomes):
    """A full tournament of n has C(n, 3) - sum C(wins, 2) cycles of three."""
    wins = dict.fromkeys("abcde", 0)
    rows = []
    for (i, j), won in zip(combinations("abcde", 2), outcomes, strict=True):
        wins[i if won else j] += 1
        rows.append(("p", i, j, float(won)))
    rows += [("q", "x", "y", 1.0), ("q", "y", "z", 1.0), ("q", "z", "x", 0.5)]  # a tie decides no triple
    found = contradictions(league(table(rows)))
    assert found["triples"] == 10
    assert found["cycles"] == 10 - sum(math.comb(n, 2) for n in wins.values())
    assert found["prompts_with_cycles"] == (found["cycles"] > 0)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """60 leagues of three, 30 games a pair: about 95% of the true centred strengths lie inside."""
    rng = np.random.default_rng(0)
    truth = np.array([0.8, 0.0, -0.8])
    rows = [
        (f"{prompt:03}", "abc"[i], "abc"[j], float(rng.random() < 1 / (1 + np.exp(truth[j] - truth[i]))))
        for prompt in range(60) for i, j in combinations(range(3), 2) for _ in range(30)
    ]  # fmt: skip
    made = aggregate(table(rows), "bradley-terry", prior=0.01, bootstrap=200)
    wanted = np.tile(truth, 60)
    inside = ((made["low"].to_numpy() <= wanted) & (wanted <= made["high"].to_numpy())).mean()
    assert 0.88 <= inside <= 0.99
    again = aggregate(table(rows), "bradley-terry", prior=0.01, bootstrap=200)
    assert made.equals(again)


def test_games_are_resampled_within_their_prompt():
    """A single game is drawn again as itself: no spread; p's ten games, of which some were lost, have one."""
    rows = [("o", "a", "b", 1.0)] + [("p", "a", "b", float(n > 3)) for n in range(10)]
    made = aggregate(table(rows), "bradley-terry", bootstrap=50)
    width = (made["high"] - made["low"]).to_list()
    assert width[:2] == pytest.approx([0, 0], abs=1e-6)
    assert min(width[2:]) > 0.5
    assert made["low"].to_list()[:2] == pytest.approx(made["score"].to_list()[:2], abs=1e-3)


def test_what_is_left_out_is_counted():
    rows = [
        ("p", "a", "b", 1.0),
        ("p", "a", "b", None),
        ("p", "a", "a", 1.0),
        ("p", "a", "a", None),
        ("p", "b", "a", math.nan),
    ]
    here = league(table(rows))
    assert (here.null, here.same, len(here.outcome)) == (3, 1, 1)
    found = contradictions(here)
    assert (found["null"], found["same"], found["transitivity"]) == (3, 1, None)


def test_nothing_to_score():
    for method in METHODS:
        assert aggregate(table([]), method).height == 0
        made = aggregate(table([("p", "a", "b", None)]), method, bootstrap=2)
        assert made["reason"].to_list() == ["no_comparisons"] * 2


def test_what_is_refused():
    with pytest.raises(UsageError, match='Did you mean "borda"'):
        aggregate(table([]), "border")
    with pytest.raises(InputError, match="between 0 and 1"):
        league(table([("p", "a", "b", 1.5)]))


@pytest.mark.parametrize("prior", [1e-9, 0.0])
def test_a_prior_that_is_too_small_to_count_with_is_refused(prior: float) -> None:
    """Whoever never won is ln(prior) below, which leaves nothing of the curvature that Newton's steps divide by."""
    never_won = table([("p", "a", "b", 1.0), ("p", "b", "c", 1.0), ("p", "a", "c", 1.0)])
    assert (scored(never_won, "bradley-terry", prior=prior)["a"] is None) == (prior == 0)
    with pytest.raises(UsageError, match="is too small"):
        aggregate(never_won, "bradley-terry", prior=1e-50)
