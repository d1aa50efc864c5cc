"""Agreement of judges with themselves and with each other, counted by hand on small tables."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata.stats.agreement import (
    cohen_kappa,
    fleiss_kappa,
    gwet_ac1,
    overall_agreement,
    pairwise_agreement,
    rating_counts,
    raw_agreement,
    self_consistency,
    verdicts,
)

FIRST, SECOND = "first-second", "second-first"
COLUMNS = ["prompt_id", "first_id", "second_id", "order", "annotator", "probability"]
ROWS = st.lists(
    st.tuples(*map(st.sampled_from, ["pq", "ab", "cd", [FIRST, SECOND], "xyz", [0.0, 0.2, 0.5, 1.0, None]])),
    max_size=40,
)


def table(rows) -> pl.DataFrame:
    schema = {name: pl.Float64 if name == "probability" else pl.String for name in COLUMNS}
    return pl.DataFrame(list(rows), schema=schema, orient="row")


def only(rows) -> dict:
    (row,) = self_consistency(table(rows)).to_dicts()
    return row


def test_consistency_under_swap():
    """Of three pairs in both orders, p and r are judged alike; q's verdict stays with the place; s has one order."""
    rows = [
        ("p", "a", "b", FIRST, "x", 1.0), ("p", "a", "b", SECOND, "x", 0.9),
        ("q", "a", "b", FIRST, "x", 1.0), ("q", "a", "b", SECOND, "x", 0.0),
        ("r", "a", "b", FIRST, "x", 0.5), ("r", "a", "b", SECOND, "x", 0.5),
        ("s", "a", "b", FIRST, "x", 0.0), ("s", "a", "b", SECOND, "x", None),
    ]  # fmt: skip
    found = only(rows)
    assert (found["both_orders"], found["consistent"]) == (3, 2)
    assert found["consistency"] == pytest.approx(2 / 3)
    assert (found["comparisons"], found["null"], found["ties"]) == (8, 1, 2)
    # Shown first and better: p (first order), q (both); not: p (second order), s. Ties do not count: 3 of 5.
    assert found["first_position_rate"] == pytest.approx(3 / 5)


def test_a_tie_and_a_winner_are_not_alike():
    assert only([("p", "a", "b", FIRST, "x", 0.5), ("p", "a", "b", SECOND, "x", 1.0)])["consistent"] == 0


def test_one_who_always_takes_the_first():
    """Shown a b: a (probability 1); shown b a: b (probability that a wins 0)."""
    rows = [(p, "a", "b", order, "x", float(order == FIRST)) for p in "pqr" for order in (FIRST, SECOND)]
    found = only(rows)
    assert (found["consistency"], found["first_position_rate"]) == (0.0, 1.0)


def test_which_answer_a_row_calls_first_does_not_matter():
    """b, a, first-second shows b first: with a, b, first-second it makes both orders."""
    rows = [("p", "a", "b", FIRST, "x", 1.0), ("p", "b", "a", FIRST, "x", 0.0)]
    assert only(rows)["consistent"] == only(rows)["both_orders"] == 1
    assert only(rows)["first_position_rate"] == 0.5


@given(ROWS)
def test_told_from_the_other_side_all_is_the_same(rows):
    turned = [
        (p, b, a, SECOND if order == FIRST else FIRST, who, None if x is None else 1 - x)
        for p, a, b, order, who, x in rows
    ]
    assert self_consistency(table(rows)).equals(self_consistency(table(turned)))
    assert verdicts(table(rows)).equals(verdicts(table(turned)))


def test_nothing_was_said():
    found = only([("p", "a", "b", FIRST, "x", None)])
    assert (found["null"], found["both_orders"], found["consistency"], found["first_position_rate"]) == (
        1,
        0,
        None,
        None,
    )
    assert self_consistency(table([])).height == 0
    assert pairwise_agreement(table([])).height == 0
    assert overall_agreement(table([])) == {"pairs": 0, "agreement": None, "fleiss_kappa": None, "gwet_ac1": None}


def test_a_verdict_is_that_of_both_orders():
    """x says a in both orders, y contradicts itself (a tie), z says b for sure and a by a little: b."""
    rows = [
        ("p", "a", "b", order, who, x)
        for who, both in {"x": (1.0, 0.6), "y": (0.7, 0.3), "z": (0.0, 0.6)}.items()
        for order, x in zip((FIRST, SECOND), both, strict=True)
    ]
    assert dict(verdicts(table(rows)).select("annotator", "verdict").rows()) == {"x": 1, "y": 0, "z": -1}


def test_cohens_kappa():
    """20 both yes, 5 yes-no, 10 no-yes, 15 both no: observed .7, chance .5 * .6 + .5 * .4 = .5: .2 / .5 = .4."""
    a = np.array([1] * 25 + [0] * 25)
    b = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    assert cohen_kappa(a, b) == pytest.approx(0.4)
    assert cohen_kappa(a, a) == 1
    assert cohen_kappa(np.ones(3), np.ones(3)) is None
    assert cohen_kappa(np.array([]), np.array([])) is None


def test_gwets_ac1():
    """The same table: yes is (25 + 30) / 100 = .55, chance 2 * .55 * .45 = .495: (.7 - .495) / .505 = .405941.

    95 of 100 both yes and 5 split: kappa is below 0, AC1 near the agreement of .95.
    """
    a = np.array([1] * 25 + [0] * 25)
    b = np.array([1] * 20 + [0] * 5 + [1] * 10 + [0] * 15)
    counts = rating_counts(np.column_stack([a, b]), (0, 1))
    assert gwet_ac1(counts) == pytest.approx(0.205 / 0.505)
    a, b = np.array([1] * 95 + [0, 0, 1, 1, 1]), np.array([1] * 95 + [1, 1, 0, 0, 0])
    assert cohen_kappa(a, b) < 0
    assert gwet_ac1(rating_counts(np.column_stack([a, b]), (0, 1))) > 0.94


def test_ac1_counts_the_categories_that_nobody_chose():
    """.7 again, with ties possible: chance .495 / 2 = .2475."""
    counts = np.array([[2.0, 0, 0]] * 20 + [[1, 0, 1]] * 15 + [[0, 0, 2]] * 15)
    assert gwet_ac1(counts) == pytest.approx((0.7 - 0.2475) / 0.7525)


FLEISS = np.array([
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
], float)  # fmt: skip


def test_fleiss_kappa():
    """Fourteen raters, ten items, five categories (a textbook table): agreement .378, chance .213, kappa .210."""
    assert raw_agreement(FLEISS) == pytest.approx(0.378, abs=5e-4)
    assert fleiss_kappa(FLEISS) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa(np.array([[3.0, 0], [3, 0]])) is None
    assert fleiss_kappa(np.array([[1.0, 0]])) is None
    assert raw_agreement(np.array([[1.0, 0], [2, 0]])) == 1  # one rating agrees with nobody: not an item


@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), min_size=1, max_size=40))
def test_coefficients_never_exceed_one_and_do_not_care_who_is_who(pairs):
    a, b = np.array(pairs).T
    counts = rating_counts(np.array(pairs))
    assert cohen_kappa(a, b) == pytest.approx(cohen_kappa(b, a))
    assert raw_agreement(counts) == pytest.approx(np.mean(a == b))
    for value in (cohen_kappa(a, b), fleiss_kappa(counts), gwet_ac1(counts)):
        assert value is None or -1 <= value <= 1 + 1e-9
    if (a == b).all():
        assert gwet_ac1(counts) == pytest.approx(1)


def test_between_annotators():
    """Over p, q, r: x says a a b, y a b b: 2/3; z judged p only, as x did."""
    said = {"x": (1.0, 1.0, 0.0), "y": (1.0, 0.0, 0.0), "z": (1.0,)}
    rows = [
        (p, "a", "b", FIRST, who, x) for who, all_said in said.items() for p, x in zip("pqr", all_said, strict=False)
    ]
    found = {(r["annotator"], r["other"]): r for r in pairwise_agreement(table(rows)).to_dicts()}
    assert found["x", "y"]["agreement"] == pytest.approx(2 / 3)
    # Chance: x says a in 2/3, y in 1/3: 2/9 + 2/9 = 4/9; (6/9 - 4/9) / (5/9) = .4.
    assert found["x", "y"]["kappa"] == pytest.approx(0.4)
    assert (found["x", "z"]["pairs"], found["x", "z"]["agreement"]) == (1, 1.0)
    everyone = overall_agreement(table(rows))
    assert everyone["pairs"] == 3
    # p: all three alike; q: apart; r: alike: (1 + 0 + 1) / 3.
    assert everyone["agreement"] == pytest.approx(2 / 3)
