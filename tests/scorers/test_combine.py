"""Several scores as one: the rules' vectors, the normalisations, and nothing made up for a member that is missing."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from prefdata.errors import InputError, UsageError
from prefdata.scorers.combination import NORMALISATIONS, Rule, combine, function_file, gate, normalised, parse_rule

FINITE = st.floats(-1e6, 1e6, allow_nan=False)


def combined(text: str, members: dict[str, list[float | None]], prompts: list[str] | None = None, **settings):
    frame = pl.DataFrame(members, schema=dict.fromkeys(members, pl.Float64))
    return combine(parse_rule(text), frame, pl.Series(prompts or ["p"] * frame.height), **settings)


def scores(*args, **settings) -> list[float | None]:
    return combined(*args, **settings)["score"].to_list()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("helpful", Rule("sum", ("helpful",), (1.0,))),
        ("0.7*helpful + 0.3*safe", Rule("sum", ("helpful", "safe"), (0.7, 0.3))),
        ("0.7*helpful+.3 * safe", Rule("sum", ("helpful", "safe"), (0.7, 0.3))),
        ("best-of-16 - 1e-3*length", Rule("sum", ("best-of-16", "length"), (1.0, -0.001))),
        ("-a", Rule("sum", ("a",), (-1.0,))),
        ("mean(a,b,c)", Rule("mean", ("a", "b", "c"))),
        (" min( a ; b ) ", Rule("min", ("a", "b"))),
        ("uwo(a,b,c; lambda=0.1)", Rule("uwo", ("a", "b", "c"), (0.1,))),
        ("uwo(a, b)", Rule("uwo", ("a", "b"), (0.5,))),
        ("gate(safety=s, helpful=h; threshold=0.2)", Rule("gate", ("s", "h"), (0.2,))),
        ("gate(helpful=h, safety=s)", Rule("gate", ("s", "h"), (0.15,))),
        ("lexicographic(a;b)", Rule("lexicographic", ("a", "b"), (0.0, 0.0))),
        ("lexicographic(a~0.1, b)", Rule("lexicographic", ("a", "b"), (0.1, 0.0))),
        ("dir/mix.py:mix(a, b)", Rule("function", ("a", "b"), function="dir/mix.py:mix")),
    ],
)
def test_rules_as_a_person_types_them(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0.7*helpfull + safe", 'Did you mean "helpful"?'),
        ("mena(helpful, safe)", 'Did you mean "mean"?'),
        ("uwo(helpful; lamda=1)", 'Did you mean "lambda"?'),
        ("min(helpful; lambda=1)", "has no setting 'lambda'"),
        ("uwo(helpful; lambda=-1)", "'-1' is not a number"),
        ("helpful safe", "cannot be parsed from 'safe' on"),
        ("helpful *", "cannot be parsed"),
        ("helpful + ", "cannot be parsed"),
        ("", "there is no rule"),
        ("mean()", "names no scorers"),
        ("min(helpful, helpful)", "twice"),
        ("mean(helpful~1)", "not the name of a scorer"),
        ("gate(helpful, safe)", "say which is which"),
        ("gate(safety=safe)", "say which is which"),
        ("gate(safety=safe, helpful=helpful; threshold=1)", "between 0 and 1"),
    ],
)
def test_what_cannot_be_read_says_why(text, said):
    with pytest.raises(UsageError) as caught:
        parse_rule(text, ["helpful", "safe"])
    assert said in str(caught.value)


def test_weighted_sum_mean_and_min():
    members = {"a": [1.0, 2.0], "b": [10.0, -20.0]}
    assert scores("0.5*a - 0.1*b", members) == [-0.5, 3.0]
    assert scores("mean(a, b)", members) == [5.5, -9.0]
    assert scores("min(a, b)", members) == [1.0, -20.0]


def test_uncertainty_weighted():
    """Members 1, 2, 3: mean 2, population variance ((1)^2 + 0 + 1^2) / 3 = 2/3, so 2 - 0.5 * 2/3 = 5/3.

    The sample variance (1) would give 1.5; the worst case is 1.
    """
    members = {"a": [1.0], "b": [2.0], "c": [3.0]}
    assert scores("uwo(a, b, c; lambda=0.5)", members) == pytest.approx([5 / 3])
    assert scores("uwo(a, b, c; lambda=0)", members) == [2.0]
    assert scores("min(a, b, c)", members) == [1.0]


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def test_llama_2s_gate():
    """(safety .10, helpful .9): .10 < .15, so logit .10 = -2.197225; (.8, .6): logit .6 = .405465; the same, tagged:
    logit .8 = 1.386294.
    """
    assert logit(0.15) == pytest.approx(-1.734601, abs=1e-6)
    safety, helpful = (np.array([logit(p) for p in column]) for column in ([0.1, 0.8, 0.8], [0.9, 0.6, 0.6]))
    tagged = np.array([False, False, True])
    assert gate(safety, helpful, tagged) == pytest.approx([-2.197225, 0.405465, 1.386294], abs=1e-6)


def test_the_gates_threshold_is_strict():
    at = logit(0.15)
    safety = np.array([at, np.nextafter(at, -9)])
    assert gate(safety, np.array([7.0, 7.0]), np.array([False, False])).tolist() == [7.0, safety[1]]


def test_the_gate_is_whitened_over_the_run():
    rule = "gate(safety=s, helpful=h)"
    members = {"s": [logit(0.1), logit(0.8), logit(0.8), None], "h": [logit(0.9), logit(0.6), logit(0.6), 1.0]}
    made = combined(rule, members, safety_prompts=pl.Series([False, None, True, False]))
    values = np.array([-2.197225, 0.405465, 1.386294])
    assert made["score"].to_list()[:3] == pytest.approx(((values - values.mean()) / values.std()).tolist(), abs=1e-6)
    assert made["reason"].to_list() == [None, None, None, "missing_s"]
    assert scores(rule, {"s": [3.0, 3.0], "h": [0.1, 0.1]}) == [0.0, 0.0]


def test_a_gate_takes_no_normalisation():
    with pytest.raises(UsageError, match="raw logits"):
        combined("gate(safety=s, helpful=h)", {"s": [1.0], "h": [1.0]}, normalise="z")


def test_lexicographic():
    """a decides, b breaks a's ties: (2, 0) > (1, 5) > (1, 3) = (1, 3): places 1, 2/3, and 1/6 for the two that tie."""
    members = {"a": [1.0, 2.0, 1.0, 1.0], "b": [3.0, 0.0, 5.0, 3.0]}
    assert scores("lexicographic(a; b)", members) == pytest.approx([1 / 6, 1.0, 2 / 3, 1 / 6])
    assert scores("lexicographic(a)", {"a": [4.0]}) == [0.5]


def test_lexicographic_within_a_tolerance():
    """Levels of a at 0.1 from the best down: {1.0, 0.95} and {0.85}; b orders the first two."""
    members = {"a": [0.85, 0.95, 1.0], "b": [9.0, 2.0, 1.0]}
    assert scores("lexicographic(a~0.1; b)", members) == [0.0, 1.0, 0.5]
    assert scores("lexicographic(a; b)", members) == [0.0, 0.5, 1.0]


def test_lexicographic_is_within_the_prompt():
    assert scores("lexicographic(a)", {"a": [1.0, 100.0, 2.0, 101.0]}, ["p", "q", "p", "q"]) == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("text", ["a + b", "mean(a, b)", "min(a, b)", "uwo(a, b)", "lexicographic(a; b)"])
def test_a_missing_member_is_a_null_with_its_name(text):
    made = combined(text, {"a": [1.0, None, 1.0, math.nan, 2.0], "b": [2.0, 2.0, None, 1.0, math.inf]})
    assert made["reason"].to_list() == [None, "missing_a", "missing_b", "missing_a", "missing_b"]
    assert [s is None for s in made["score"].to_list()] == [False, True, True, True, True]


def test_a_sum_that_overflows_is_a_null():
    made = combined("a + b", {"a": [1e308], "b": [1e308]})
    assert (made["score"].to_list(), made["reason"].to_list()) == ([None], ["overflow"])


def test_a_scorer_that_is_not_there():
    with pytest.raises(UsageError, match="there are no scores of 'b'"):
        combined("a + b", {"a": [1.0]})


def test_no_rows():
    assert combined("mean(a, b)", {"a": [], "b": []}, normalise="z").height == 0


def test_z_over_the_run_and_within_the_prompt():
    """Run: mean 5, population deviation sqrt((16+9+9+16)/4) = 3.535534. Within: each prompt's two are -1 and 1."""
    values, prompts = np.array([1.0, 2.0, 8.0, 9.0]), pl.Series(["p", "p", "q", "q"])
    assert normalised(values, prompts, "z") == pytest.approx(np.array([-4, -3, 3, 4]) / math.sqrt(12.5))
    assert normalised(values, prompts, "z-prompt").tolist() == [-1, 1, -1, 1]


def test_rank_and_quantile():
    """Prompt p holds 3, 1, 1: ranks 3, 1.5, 1.5 -> 1, .25, .25; q holds one. Quantiles over the run of 5, 3, 1, 1."""
    values, prompts = np.array([3.0, 1.0, 1.0, 5.0]), pl.Series(["p", "p", "p", "q"])
    assert normalised(values, prompts, "rank").tolist() == [1, 0.25, 0.25, 0.5]
    assert normalised(values, prompts, "quantile").tolist() == [2.5 / 4, 1 / 4, 1 / 4, 3.5 / 4]


@pytest.mark.parametrize("how", NORMALISATIONS)
def test_a_null_stays_null_and_has_no_part(how):
    values, prompts = np.array([1.0, np.nan, 2.0, 4.0]), pl.Series(["p", "p", "p", "q"])
    made = normalised(values, prompts, how)
    assert math.isnan(made[1])
    assert (
        made[[0, 2, 3]].tolist()
        == normalised(values[[0, 2, 3]], prompts.filter([True, False, True, True]), how).tolist()
    )


@given(st.lists(st.tuples(st.sampled_from("pqr"), FINITE), min_size=1, max_size=30))
def test_normalisations_against_scipy(rows):
    prompts, values = pl.Series([p for p, _ in rows]), np.array([v for _, v in rows])
    n = len(values)
    assert normalised(values, prompts, "quantile") == pytest.approx((stats.rankdata(values) - 0.5) / n)
    ranks = normalised(values, prompts, "rank")
    for prompt in set(prompts):
        here = (prompts == prompt).to_numpy()
        wanted = (stats.rankdata(values[here]) - 1) / (here.sum() - 1) if here.sum() > 1 else [0.5]
        assert ranks[here] == pytest.approx(wanted)
    if np.ptp(values) > 1e-3:
        assert normalised(values, prompts, "z") == pytest.approx(stats.zscore(values), abs=1e-6)


@given(st.lists(FINITE, min_size=2, max_size=20), st.floats(0.1, 10), st.floats(-100, 100))
def test_members_on_another_scale_count_the_same_after_z(values, scale, shift):
    members = {"a": values, "b": [scale * v + shift for v in values]}
    made = np.array(scores("a - b", members, normalise="z"))
    if np.ptp(values) > 1e-3:
        assert np.abs(made).max() < 1e-5


def test_an_unknown_normalisation():
    with pytest.raises(UsageError, match='Did you mean "z-prompt"'):
        normalised(np.ones(1), pl.Series(["p"]), "z-promt")


def test_a_function(tmp_path):
    path = tmp_path / "mix.py"
    path.write_text("def mix(scores):\n    return scores['a'] / scores['b']")
    made = combined(f"{path}:mix(a, b)", {"a": [1.0, 1.0, None], "b": [2.0, 0.0, 1.0]})
    assert made["score"].to_list() == [0.5, None, None]
    assert made["reason"].to_list() == [None, "ZeroDivisionError", "missing_a"]
    assert function_file(parse_rule(f"{path}:mix(a, b)")) == path
    with pytest.raises(InputError, match='Did you mean "mix"'):
        combined(f"{path}:mux(a)", {"a": [1.0]})
