"""Pairs from what judges and people said."""

from __future__ import annotations

import polars as pl
import pytest
from batches_by_hand import paired, pool

from prefdata.pairs.from_comparisons import mean_verdicts
from prefdata.pairs.pair import make_pairs
from prefdata.specs import PairSpec

ANSWERS = pool("? ? ? ?c", "? ?")
"""0a, 0b, 0c, 0d (cut off); 1a, 1b. Comparisons have no scores."""


def said(*verdicts_said: str, answers: pl.DataFrame = ANSWERS) -> pl.DataFrame:
    """Comparisons; "0a 0b 0.9" says that 0a, shown first, is better with probability 0.9."""
    row = {one["name"]: one for one in answers.iter_rows(named=True)}
    rows = []
    for line in verdicts_said:
        first, second, probability = line.split()
        rows.append(
            {
                "prompt_id": row[first]["prompt_id"],
                "first_id": row[first]["candidate_id"],
                "second_id": row[second]["candidate_id"],
                "probability": None if probability == "?" else float(probability),
            }
        )
    schema = {"prompt_id": pl.String, "first_id": pl.String, "second_id": pl.String, "probability": pl.Float64}
    return mean_verdicts(pl.DataFrame(rows, schema=schema))


def test_the_better_one_is_chosen_whichever_came_first() -> None:
    assert paired(ANSWERS, "comparisons", said("0a 0b 1", "1a 1b 0")) == ("0a>0b 1b>1a", {})


def test_both_orders_count_half_each() -> None:
    rows, _ = make_pairs(ANSWERS, PairSpec(strategy="comparisons"), said("0a 0b 0.9", "0b 0a 0.3"))
    assert rows["probability"][0] == pytest.approx((0.9 + 0.7) / 2)
    assert rows.select("chosen_score", "rejected_score", "margin").row(0) == (None, None, None)


def test_a_judge_that_goes_by_the_place_says_nothing() -> None:
    assert paired(ANSWERS, "comparisons", said("0a 0b 0.7", "0b 0a 0.7")) == ("", {"tie": 1})
    assert paired(ANSWERS, "comparisons", said("0a 0b 1", "0b 0a 1")) == ("", {"tie": 1})


def test_annotators_who_disagree_are_a_tie_in_whatever_order_they_are_added() -> None:
    opinions = ["0.9", "0.2", "0.1", "0.8", "0.35", "0.65", "0.7", "0.3"]
    assert paired(ANSWERS, "comparisons", said(*(f"0a 0b {p}" for p in opinions))) == ("", {"tie": 1})
    assert paired(ANSWERS, "comparisons", said("0a 0b 1", "0a 0b 1", "0a 0b 0"))[0] == "0a>0b"


def test_no_verdict_is_no_verdict() -> None:
    assert paired(ANSWERS, "comparisons", said("0a 0b ?")) == ("", {"no_verdict": 1})
    assert paired(ANSWERS, "comparisons", said("0a 0b ?", "0b 0a ?")) == ("", {"no_verdict": 1})
    assert paired(ANSWERS, "comparisons", said("0a 0b ?", "0b 0a 0.1")) == ("0a>0b", {})
    assert paired(ANSWERS, "comparisons", said()) == ("", {})


def test_a_kept_tie_is_a_row_whose_verdict_is_tie() -> None:
    spec = PairSpec(strategy="comparisons", ties="keep", weight="confidence")
    rows, account = make_pairs(ANSWERS, spec, said("0a 0b 0.5", "0a 0c 0.75"))
    assert account.dropped == {}
    assert rows.select("verdict", "probability", "weight").rows() == [("chosen", 0.75, 0.5), ("tie", 0.5, 0.0)]


def test_how_sure_verdicts_must_be() -> None:
    comparisons = said("0a 0b 0.51", "0a 0c 0.75", "0b 0c 0.5")
    assert paired(ANSWERS, "comparisons", comparisons, min_probability=0.6) == ("0a>0c", {"tie": 1, "unsure": 1})
    kept, dropped = paired(ANSWERS, "comparisons", comparisons, min_probability=0.6, ties="keep")
    assert (kept.count(">"), dropped) == (2, {"unsure": 1})


def test_cut_answers_are_not_chosen() -> None:
    comparisons = said("0a 0d 1", "0b 0d 0", "0c 0d 0.5")
    assert paired(ANSWERS, "comparisons", comparisons) == ("0a>0d", {"chosen_truncated": 1, "tie": 1})
    assert paired(ANSWERS, "comparisons", comparisons, truncated="keep")[0] == "0a>0d 0d>0b"
    assert paired(ANSWERS, "comparisons", comparisons, truncated="drop") == ("", {"answer_left_out": 3})


def test_verdicts_about_answers_that_take_no_part_are_counted() -> None:
    answers = pool("? ? ?!refusal", "? ?e", "?=x ?=x")
    comparisons = said("0a 0b 1", "0a 0c 1", "1a 1b 1", "2a 2b 1", answers=answers)
    assert paired(answers, "comparisons", comparisons) == ("0a>0b", {"answer_left_out": 2, "same_text": 1})


def test_the_surest_stay() -> None:
    comparisons = said("0a 0b 0.6", "0b 0c 0.9", "0a 0c 0.8")
    assert paired(ANSWERS, "comparisons", comparisons, max_pairs_per_prompt=1) == ("0b>0c", {"per_prompt_limit": 2})
    assert paired(ANSWERS, "comparisons", comparisons, max_per_candidate=1) == ("0b>0c", {"per_candidate_limit": 2})


def test_verdicts_about_other_prompts_are_not_this_pools() -> None:
    one = ANSWERS.filter(pl.col("name").str.starts_with("1"))
    assert paired(one, "comparisons", said("0a 0b 1", "1a 1b 1")) == ("1a>1b", {})
