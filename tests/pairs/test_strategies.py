"""Each strategy's rule by hand, and what holds for all of them."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import numpy as np
import polars as pl
import pytest
from batches_by_hand import named, paired, pool
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from prefdata.pairs.pair import evaluate_proposals, make_pairs
from prefdata.specs import PairSpec

ASKED: dict[str, dict[str, Any]] = {
    "best-worst": {"per_prompt": 2},
    "best-random": {},
    "random-labelled": {"per_prompt": 3},
    "first-round": {},
    "tournament": {},
    "adjacent": {},
    "all": {},
    "top-bottom": {"top": 2, "bottom": 2},
    "length-matched": {"per_prompt": 2, "length_tolerance": 0.3},
    "against-reference": {"reference": "hot"},
    "cross-sampler": {},
}
"""Every strategy of scores, with settings under which its rule shows."""

ONE_SAMPLER = [name for name in ASKED if name not in ("against-reference", "cross-sampler")]


@pytest.mark.parametrize("strategy", ONE_SAMPLER)
def test_what_is_no_pair_anywhere(strategy: str) -> None:
    """One answer, none, two, equal scores, equal texts, an empty one, both cut off."""
    asked = ASKED[strategy]
    assert paired(pool("5"), strategy, **asked) == ("", {"one_candidate": 1})
    assert paired(pool("5e 3e"), strategy, **asked) == ("", {"no_candidate": 1})
    assert paired(pool("3 5"), strategy, **asked) == ("0b>0a", {})
    assert paired(pool("5 5"), strategy, **asked) == ("", {"tie": 1})
    assert paired(pool("5=x 3=x"), strategy, **asked) == ("", {"same_text": 1})
    assert paired(pool("9e 5 3"), strategy, **asked) == ("0b>0c", {})
    assert paired(pool("5c 3c"), strategy, **asked) == ("", {"chosen_truncated": 1})
    assert paired(pool("5 3 9!refusal"), strategy, **asked) == ("0a>0b", {})


@pytest.mark.parametrize("strategy", ONE_SAMPLER)
def test_a_cut_best_leaves_a_trace(strategy: str) -> None:
    """Two answers of which the better was cut off: no pair, and one reason, whatever the strategy."""
    pairs, dropped = paired(pool("9c 1"), strategy, **ASKED[strategy])
    assert pairs == ""
    assert dropped in ({"best_was_truncated": 1}, {"chosen_truncated": 1})
    assert paired(pool("9c 1"), strategy, truncated="keep", **ASKED[strategy]) == ("0a>0b", {})
    assert paired(pool("9c 1"), strategy, truncated="drop", **ASKED[strategy]) == ("", {"one_candidate": 1})
    assert paired(pool("9 1c"), strategy, **ASKED[strategy]) == ("0a>0b", {})


def test_best_worst() -> None:
    assert paired(pool("5 1 4 2 3"), "best-worst") == ("0a>0b", {})
    assert paired(pool("5 1 4 2 3"), "best-worst", per_prompt=9) == ("0a>0b 0c>0d", {})
    assert paired(pool("1 3 3 1"), "best-worst") == ("0b>0d", {})  # of equals the earlier draw is the better


def test_best_worst_with_cut_answers_stops_where_best_and_worst_pass() -> None:
    assert paired(pool("5c 4c 3 2"), "best-worst", per_prompt=2) == ("0c>0d", {})
    assert paired(pool("5c 4c 3c 2"), "best-worst", per_prompt=2)[0] == ""
    assert paired(pool("6 5 4c 3c"), "best-worst", per_prompt=2)[0] == "0a>0d 0b>0c"


PROMPTS = 3000


def drawn(strategy: str, line: str, **asked: Any) -> Counter[frozenset[str]]:
    """How often each set of pairs was drawn, over prompts that are alike and two seeds."""
    answers = pool(*[line] * PROMPTS)
    sets: dict[tuple[int, str], list[str]] = {}
    for seed in (0, 1):
        for pair in paired(answers, strategy, seed=seed, **asked)[0].split():
            prompt = re.match(r"\d+", pair)[0]  # type: ignore[index]
            sets.setdefault((seed, prompt), []).append(re.sub(r"\d", "", pair))
    return Counter(frozenset(one) for one in sets.values())


def even(found: Counter[frozenset[str]], of: int) -> bool:
    assert found.total() == 2 * PROMPTS
    return len(found) == of and chisquare(list(found.values())).pvalue > 1e-3


def test_best_random_draws_evenly_among_the_others() -> None:
    found = drawn("best-random", "2 9 1 3 0")
    assert set().union(*found) == {"b>a", "b>c", "b>d", "b>e"}
    assert even(found, 4)


@pytest.mark.parametrize(("m", "sets"), [(1, 6), (2, 15), (4, 15), (5, 6)])
def test_random_labelled_draws_distinct_pairs_evenly(m: int, sets: int) -> None:
    """All sets of m of the 6 pairs of four answers are equally likely."""
    found = drawn("random-labelled", "1 4 2 3", per_prompt=m)
    assert {len(one) for one in found} == {m}
    assert even(found, sets)


def test_first_round_draws_evenly() -> None:
    assert even(drawn("first-round", "1 4 2 3"), 3)


def test_random_labelled_with_more_than_there_are_is_all() -> None:
    answers = pool("1 4 2 3", "7", "1 2")
    assert sorted(paired(answers, "random-labelled", per_prompt=9)[0].split()) == sorted(
        paired(answers, "all")[0].split()
    )


@pytest.mark.parametrize("n", range(2, 10))
def test_first_round_is_disjoint(n: int) -> None:
    pairs = paired(pool(" ".join(map(str, range(n)))), "first-round")[0].split()
    sides = [side for pair in pairs for side in pair.split(">")]
    assert len(pairs) == n // 2
    assert len(set(sides)) == len(sides)


@pytest.mark.parametrize("n", range(2, 10))
@pytest.mark.parametrize("seed", [0, 1])
def test_a_tournament_has_one_winner_and_it_is_the_best(n: int, seed: int) -> None:
    answers = pool(" ".join(str((7 * i) % 10) for i in range(n)))
    pairs = [pair.split(">") for pair in paired(answers, "tournament", seed=seed)[0].split()]
    losers = [loser for _, loser in pairs]
    assert len(pairs) == n - 1
    assert len(set(losers)) == n - 1  # who loses is out
    (winner,) = set(answers["name"]) - set(losers)
    assert winner == answers.sort("score")["name"][-1]


def test_in_a_tournament_who_was_cut_off_wins_over_nobody_who_was_not() -> None:
    for seed in range(20):
        pairs, dropped = paired(pool("9c 1 2 3"), "tournament", seed=seed)
        assert len(pairs.split()) == 2
        assert dropped == {"chosen_truncated": 1}


def test_adjacent() -> None:
    assert paired(pool("1 4 2"), "adjacent") == ("0b>0c 0c>0a", {})  # the widest first
    assert paired(pool("3 3 1"), "adjacent") == ("0b>0c", {"tie": 1})


def test_all() -> None:
    assert set(paired(pool("1 3 2"), "all")[0].split()) == {"0b>0a", "0b>0c", "0c>0a"}
    assert paired(pool("1 3 3 3"), "all")[1] == {"tie": 3}


@pytest.mark.parametrize(
    ("line", "top", "bottom", "pairs"),
    [
        ("5 4 3 2 1", 2, 2, "0a>0d 0a>0e 0b>0d 0b>0e"),
        ("5 4 3", 2, 2, "0a>0c 0b>0c"),
        ("5 4", 3, 3, "0a>0b"),
        ("5 4 3", 1, 9, "0a>0b 0a>0c"),
        ("5c 4 3", 2, 1, ""),
        ("5c 4 3 2", 2, 1, "0b>0d 0c>0d"),
    ],
)
def test_top_bottom(line: str, top: int, bottom: int, pairs: str) -> None:
    found, dropped = paired(pool(line), "top-bottom", top=top, bottom=bottom)
    assert sorted(found.split()) == pairs.split()
    assert dropped == ({} if pairs else {"best_was_truncated": 2})


def test_length_matched() -> None:
    """Tolerances are a share of the longer; of equally near ones the worst; nobody twice."""
    line = "9/100 5/90 4/89 3/100 1/100"
    assert paired(pool(line), "length-matched") == ("0a>0e", {})
    assert paired(pool(line), "length-matched", per_prompt=2) == ("0a>0e 0b>0c", {})
    assert paired(pool(line), "length-matched", per_prompt=2, length_tolerance=0.0) == ("0a>0e", {"no_length_match": 1})
    assert paired(pool("9/100 5/90"), "length-matched") == ("0a>0b", {})
    assert paired(pool("9/100 5/89"), "length-matched") == ("", {"no_length_match": 1})
    assert paired(pool("9/100 5/89"), "length-matched", per_prompt=7) == ("", {"no_length_match": 1})


def test_length_matched_says_tie_only_where_nothing_scores_less() -> None:
    assert paired(pool("9/100 9/100 1/95"), "length-matched") == ("0a>0c", {})
    assert paired(pool("9/100 9/100 1/50"), "length-matched") == ("", {"tie": 1})
    assert paired(pool("9/100 9/100 1/93 0/50"), "length-matched", per_prompt=3)[0] == "0a>0c"


def test_against_reference() -> None:
    answers = pool("5 1 3@hot", "5 1", "4@hot", "4@hot 5@hot", "?@hot 2", "4@hot 4 4=x 4=x@hot")
    asked = {"reference": "hot"}
    pairs, dropped = paired(answers, "against-reference", **asked)
    assert pairs == "0c>0b 0a>0c"
    assert dropped == {
        "no_reference": 1,
        "one_candidate": 1,
        "nothing_but_references": 1,
        "no_score": 1,
        "tie": 3,
        "same_text": 1,
    }
    trusted, dropped = paired(answers, "against-reference", trust_reference=True, **asked)
    assert sorted(trusted.split()) == ["0c>0a", "0c>0b", "4a>4b", "5a>5b", "5a>5c", "5d>5b"]
    assert dropped == {"no_reference": 1, "one_candidate": 1, "nothing_but_references": 1, "same_text": 1}


def test_a_trusted_reference_has_no_scores_and_is_sure() -> None:
    answers = pool("5 1 3@hot")
    rows, _ = make_pairs(answers, PairSpec(strategy="against-reference", reference="hot", trust_reference=True))
    assert rows.select("chosen_score", "rejected_score", "margin").null_count().row(0) == (2, 2, 2)
    assert rows.select("probability", "weight", "verdict").rows() == [(1.0, 1.0, "chosen")] * 2
    cut = pool("5 1 3c@hot")
    asked = {"reference": "hot", "trust_reference": True}
    assert paired(cut, "against-reference", **asked) == ("", {"chosen_truncated": 2})
    assert paired(pool("5c 1 3@hot"), "against-reference", **asked)[0].count(">") == 2


def test_cross_sampler() -> None:
    two = pool("5 1 3@hot 4@hot", "5 1", "4@hot", "3 3@hot", "9c 2 1@hot")
    assert paired(two, "cross-sampler") == ("0a>0d 4b>4c", {"one_sampler": 1, "one_candidate": 1, "tie": 1})
    three = pool("5 1 3@hot 4@hot 2@cold 0@cold")
    assert sorted(paired(three, "cross-sampler")[0].split()) == ["0a>0d", "0a>0e", "0d>0e"]
    assert paired(pool("9 2c@hot 3c@hot"), "cross-sampler") == ("0a>0c", {})


ANSWER = st.builds(
    lambda score, cut, empty, text, chars, hot: (
        f"{score}{'c' * cut}{'e' * empty}{'=same' * text}/{chars}{'@hot' * hot}"
    ),
    st.integers(-2, 3), st.booleans(), st.booleans(), st.booleans(), st.integers(8, 14), st.booleans(),
)  # fmt: skip
LINES = st.lists(st.lists(ANSWER, min_size=1, max_size=7).map(" ".join), min_size=1, max_size=4)


@settings(max_examples=80, deadline=None)
@given(
    lines=LINES,
    strategy=st.sampled_from(list(ASKED)),
    truncated=st.sampled_from(["drop", "rejected", "keep"]),
    margin=st.sampled_from([0.0, 1.5]),
    seed=st.integers(0, 3),
    at=st.randoms(use_true_random=False),
)
def test_what_holds_for_every_strategy(
    lines: list[str], strategy: str, truncated: str, margin: float, seed: int, at: Any
) -> None:
    answers = pool(*lines)
    asked: dict[str, Any] = {**ASKED[strategy], "truncated": truncated, "min_margin": margin, "seed": seed}
    spec = PairSpec(strategy=strategy, **asked)  # type: ignore[arg-type]
    rows, account = make_pairs(answers, spec)
    of = {row["candidate_id"]: row for row in answers.iter_rows(named=True)}
    for pair in rows.iter_rows(named=True):
        chosen, rejected = of[pair["chosen_id"]], of[pair["rejected_id"]]
        assert chosen["prompt_id"] == rejected["prompt_id"] == pair["prompt_id"]
        assert pair["margin"] == chosen["score"] - rejected["score"] > 0
        assert pair["margin"] >= margin
        assert chosen["text_key"] != rejected["text_key"]
        assert chosen["chars"] > 0 < rejected["chars"]
        assert truncated == "keep" or chosen["finish_reason"] == "stop"
        assert 0.5 < pair["probability"] < 1
    assert rows["pair_id"].is_unique().all()

    # Each two at most once, whichever way round; what is in is out or has a reason; nothing is proposed for nobody.
    proposals = evaluate_proposals(answers, spec).proposals
    twos = {frozenset(two) for two in proposals.select("chosen_id", "rejected_id").rows()}
    assert len(twos) == proposals.height
    assert all(len(two) == 2 for two in twos)
    account.report("pair", "pairs")
    counts = account.counts
    assert counts["possible_pairs"] == counts["pairs_not_proposed"] + proposals.height
    if strategy != "length-matched":  # which counts answers
        prompts = answers["prompt_id"].n_unique() - proposals["prompt_id"].n_unique()
        assert prompts == sum(evaluate_proposals(answers, spec).missing.values())

    places = list(range(answers.height))
    at.shuffle(places)
    again, same = make_pairs(answers[places], spec)
    assert again.sort("prompt_id", maintain_order=True).equals(rows.sort("prompt_id", maintain_order=True))
    assert same == account
    alone = [make_pairs(one, spec)[0] for one in answers.partition_by("prompt_id")]
    assert pl.concat(alone).equals(rows)  # prompts in the order in which they came


@pytest.mark.parametrize("strategy", list(ASKED))
def test_scores_may_be_shifted_and_stretched(strategy: str) -> None:
    numbers = np.random.default_rng(0)
    lines = [" ".join(f"{s:.3f}/{c}{h}" for s, c, h in zip(
        numbers.normal(size=7), numbers.integers(8, 14, 7), numbers.choice(["", "@hot"], 7), strict=True,
    )) for _ in range(20)]  # fmt: skip
    answers = pool(*lines)
    spec = PairSpec(strategy=strategy, **ASKED[strategy])  # type: ignore[arg-type]
    moved = answers.with_columns(pl.col("score") * 4 - 8)
    assert sorted(named(answers, make_pairs(answers, spec)[0]).split()) == sorted(
        named(answers, make_pairs(moved, spec)[0]).split()
    )


@pytest.mark.parametrize("score", [float("nan"), float("inf"), float("-inf"), None])
def test_a_reference_whose_score_is_no_number_meets_everyone(score: float | None) -> None:
    """It may have any score, or none. Prompts of 2, 3 and 4 candidates are laid out side by side."""
    answers = pool("1 2@hot", "1 2@hot 3", "1 2 3@hot 4", "2@hot 1 2 4 5")
    scores = pl.when(pl.col("sampler") == "hot").then(pl.lit(score, pl.Float64)).otherwise("score")
    answers = answers.with_columns(score=scores)
    met, dropped = paired(answers, "against-reference", reference="hot", trust_reference=True)
    of_each = {"0b": "0a", "1b": "1a 1c", "2c": "2a 2b 2d", "3a": "3b 3c 3d 3e"}
    assert sorted(met.split()) == [f"{one}>{other}" for one, others in of_each.items() for other in others.split()]
    assert dropped == {}
    assert paired(answers, "against-reference", reference="hot")[1]["no_score"] == 10
