"""Nearness to a reference: vectors by hand, and the fast ways against the plain ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import ids
from prefdata.scorers.protocol import ScoringItem
from prefdata.scorers.rules.reference import (
    ReferenceScorer,
    exact_match,
    longest_common_subsequence,
    rouge_l,
    span_f,
    span_f_at,
    words,
)

WORDS = st.lists(st.sampled_from("abcd"), max_size=80)
STATES = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), min_size=n, max_size=n)
)


def test_exact_match_ignores_case_and_blanks_only():
    assert exact_match(" The  Cat\n", "the cat") == 1.0
    assert exact_match("Straße ﬁn", "STRASSE fin") == 1.0
    assert exact_match("the cat.", "the cat") == 0.0
    assert exact_match("a cat", "the cat") == 0.0


def test_rouge_l():
    """the cat sat / the cat lay down: common the cat, P 2/3, R 2/4, F 4/7. Order counts: b a and a b share one."""
    assert rouge_l("The cat sat.", "the cat, lay down") == pytest.approx(4 / 7)
    assert rouge_l("b a", "a b") == 0.5
    assert rouge_l("same words", "same words") == 1.0
    assert rouge_l("", "x") == rouge_l("x", "...") == rouge_l("", "") == 0.0


def test_words_of_several_scripts():
    assert words("It's 3.5 km_h!") == ["it", "s", "3", "5", "km", "h"]
    assert words("头痛 Über") == ["头", "痛", "über"]
    assert rouge_l("头痛怎么办", "头痛怎么治") == pytest.approx(0.8)


def plain_lcs(a, b):
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(WORDS, WORDS)
def test_the_longest_common_subsequence_against_the_plain_table(a, b):
    assert longest_common_subsequence(a, b) == longest_common_subsequence(b, a) == plain_lcs(a, b)


@given(WORDS, WORDS)
def test_rouge_is_symmetric_and_within_zero_and_one(a, b):
    one, other = " ".join(a), " ".join(b)
    assert rouge_l(one, other) == rouge_l(other, one)
    assert 0 <= rouge_l(one, other) <= 1
    assert rouge_l(one, one) == (1.0 if a else 0.0)


def test_span_f_of_single_states():
    """Candidate [1,0], [0,1], target [1,0]: best cosines 1 and 0, so P .5; R 1; F 2 * .5 * 1 / 1.5 = .666667."""
    answer, target = np.eye(2), np.array([[1.0, 0]])
    assert span_f_at(answer, target, 1) == pytest.approx(2 / 3)
    assert span_f(answer, target) == pytest.approx(2 / 3)


def test_a_text_with_itself_has_an_f_of_one_at_every_length_that_it_reaches():
    states = np.random.default_rng(0).normal(size=(8, 4))
    assert span_f(states, states) == pytest.approx(4)
    assert span_f(states[:5], states[:5]) == pytest.approx(3)
    assert span_f(states[:5], states) < 3  # the target reaches 8, the answer does not: nothing is gained there


def test_spans_see_the_order():
    """Swapped states: alone they match fully; as spans of two, [e1 e2] and [e2 e1] are orthogonal."""
    answer, target = np.eye(2), np.eye(2)[::-1]
    assert span_f_at(answer, target, 1) == 1
    assert span_f_at(answer, target, 2) == 0


def test_states_that_point_away_or_nowhere():
    assert span_f_at(np.array([[1.0, 0]]), np.array([[-1.0, 0]]), 1) == 0
    assert span_f_at(np.zeros((2, 2)), np.eye(2), 1) == 0
    assert span_f(np.zeros((0, 2)), np.eye(2)) == 0


@given(STATES, STATES, st.sampled_from([1, 2, 4]))
def test_span_f_against_spans_written_out(answer, target, n):
    a, b = np.array(answer, float), np.array(target, float)
    spans = [[x[i : i + n].ravel() for i in range(len(x) - n + 1)] for x in (a, b)]
    if not spans[0] or not spans[1]:
        assert span_f_at(a, b, n) == 0
        return

    def cosine(u, v):
        size = np.linalg.norm(u) * np.linalg.norm(v)
        return u @ v / size if size else 0.0

    table = np.array([[cosine(u, v) for v in spans[1]] for u in spans[0]])
    p, r = table.max(axis=1).mean(), table.max(axis=0).mean()
    if min(p, r) > 1e-9:
        assert span_f_at(a, b, n) == pytest.approx(2 * p * r / (p + r))


def test_as_a_scorer():
    scorer = ReferenceScorer(exact_match)
    items = [ScoringItem(str(i), (), "Yes", False, reference) for i, reference in enumerate(["yes", "no", None, " "])]
    found = [(s.key, s.score, s.reason, s.text_hash) for s in scorer.score(items)]
    text = ids.text_hash("Yes")
    assert found == [
        ("0", 1.0, None, text),
        ("1", 0.0, None, text),
        ("2", None, "no_reference", text),
        ("3", None, "empty_reference", text),
    ]
