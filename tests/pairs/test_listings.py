"""Unpaired labels, groups, demonstrations: each rule by hand, and every answer accounted for in any order."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.pairs.other_tables import demonstrations, groups, kto_weights, unpaired
from prefdata.specs import PairSpec
from prefdata.storage.schemas import DEMONSTRATIONS, GROUPS, UNPAIRED

RULES = {
    "unpaired": (unpaired, UNPAIRED),
    "groups": (groups, GROUPS),
    "demonstrations": (demonstrations, DEMONSTRATIONS),
}
SCHEMA = {
    "candidate_id": pl.String,
    "prompt_id": pl.String,
    "sampler": pl.String,
    "sample_index": pl.Int32,
    "round": pl.Int32,
    "score": pl.Float64,
    "text_key": pl.UInt64,
    "finish_reason": pl.String,
    "chars": pl.UInt32,
    "excluded": pl.String,
    "draws": pl.Int32,
    "name": pl.String,
}


def selected(
    *scores: list[float], cut: str = "", empty: str = "", same: str = "", draws: dict[str, int] | None = None
) -> pl.DataFrame:
    """Prompts with these scores; answers are called `0a`, `0b`, …, `1a`, …; `same` ones have one text."""
    rows = [
        {
            "candidate_id": ids.digest(name),
            "prompt_id": f"p{p}",
            "sampler": "s",
            "sample_index": i,
            "round": 0,
            "score": float(score),
            "text_key": ids.seed(0, "same" if name in same.split() else name),
            "finish_reason": "length" if name in cut.split() else "stop",
            "chars": 0 if name in empty.split() else 5,
            "excluded": None,
            "draws": (draws or {}).get(name),
            "name": name,
        }
        for p, row in enumerate(scores)
        for i, score in enumerate(row)
        for name in [f"{p}{'abcdefghij'[i]}"]
    ]
    return pl.DataFrame(rows, schema=SCHEMA)


def asked(as_: str = "unpaired", **said: Any) -> PairSpec:
    return PairSpec(as_=as_, **said)


def labels(rows: pl.DataFrame, **said: Any) -> tuple[str, str, dict[str, int]]:
    """The names of the good answers, of the bad ones, and what was dropped."""
    made, report = unpaired(rows, asked(**said))
    named = made.join(rows, on="candidate_id", maintain_order="left")
    good, bad = (" ".join(named.filter(pl.col("good") == side)["name"]) for side in (True, False))
    return good, bad, report.dropped


def test_from_the_threshold_up_is_good() -> None:
    assert labels(selected([1, 3, 2], [0, 5]), label_by="threshold", threshold=2.0) == ("0b 0c 1b", "0a 1a", {})


def test_above_the_median_is_good_and_the_median_is_neither() -> None:
    """Medians: of 1, 3, 2 it is 2; of 0, 5 it is 2.5; of 4, 4, 4, 9 it is 4; of 7 it is 7."""
    rows = selected([1, 3, 2], [0, 5], [4, 4, 4, 9], [7])
    assert labels(rows) == ("0b 1b 2d", "0a 1a", {"tie": 5})


def test_a_text_is_not_better_than_itself() -> None:
    """It came twice with two scores: the earlier draw stands, whatever it scored, and the other is counted."""
    rows = selected([3, 0, 2, 1], same="0a 0b")
    assert labels(rows) == ("0a", "0d", {"tie": 1, "same_text": 1})
    made, account = groups(rows, asked(as_="groups"))
    assert made["scores"].to_list() == [[3, 2, 1]]
    assert account.counts["left_out_same_text"] == 1
    assert demonstrations(rows, asked(as_="demonstrations"))[0].height == 4
    # In another round it is not new; and one text for two prompts is two answers.
    later = selected([3, 0, 2, 1], [3, 0], same="0a 0b 1b").with_columns(
        round=pl.when(pl.col("name") == "0a").then(1).otherwise(0).cast(pl.Int32)
    )
    assert labels(later) == ("0c 1a", "0b 1b", {"tie": 1, "same_text": 1})
    assert labels(later.reverse()) == ("1a 0c", "1b 0b", {"tie": 1, "same_text": 1})


def test_the_median_of_neighbouring_floats_rounds_nothing() -> None:
    assert labels(selected([1.0, 1.0 + 2**-52], [-1.7e308, 1.7e308])) == ("0b 1b", "0a 1a", {})


def test_top_and_bottom() -> None:
    rows = selected([5, 1, 4, 2, 3])
    assert labels(rows, label_by="top-bottom") == ("0a", "0b", {"middle": 3})
    assert labels(rows, label_by="top-bottom", top=2, bottom=2) == ("0a 0c", "0d 0b", {"middle": 1})


def test_equal_scores_across_a_border_are_dropped() -> None:
    """Two share the places 2 and 3: with top 2 neither is good; with top 3 both are; with bottom 2 of 4 neither is."""
    rows = selected([9, 5, 5, 1])
    assert labels(rows, label_by="top-bottom", top=2) == ("0a", "0d", {"tie": 2})
    assert labels(rows, label_by="top-bottom", top=3) == ("0a 0b 0c", "0d", {})
    assert labels(rows, label_by="top-bottom", bottom=2) == ("0a", "0d", {"tie": 2})
    assert labels(selected([2, 2, 2]), label_by="top-bottom") == ("", "", {"tie": 3})


def test_nothing_is_good_and_bad() -> None:
    rows = selected([3, 2, 1], [7])
    assert labels(rows, label_by="top-bottom", top=2, bottom=2) == ("0a", "0c", {"overlap": 2})


def test_cut_off_answers_may_be_bad_only() -> None:
    rows = selected([9, 5, 4, 1], cut="0a 0d")
    assert labels(rows) == ("0b", "0c 0d", {"good_truncated": 1})
    assert labels(rows, truncated="keep") == ("0a 0b", "0c 0d", {})
    assert labels(rows, truncated="drop") == ("0b", "0c", {"truncated": 2})


def test_empty_answers_take_no_part() -> None:
    rows = selected([9, 2, 1], [1], empty="0a 1a")
    assert labels(rows) == ("0b", "0c", {"empty": 2})
    assert groups(rows, PairSpec(as_="groups"))[1].dropped == {"no_candidate": 1}
    assert demonstrations(rows, PairSpec(as_="demonstrations"))[1].dropped == {"empty": 2}


def test_the_weights_of_kto() -> None:
    """2 good, 6 bad: a good one weighs 6 / 2 = 3 for a ratio of 1, and 4 for one of 4/3."""
    counts = unpaired(selected([9, 8, 1, 2, 3, 0, -1, -2]), asked(label_by="threshold", threshold=8.0))[1].counts
    assert (counts["good"], counts["bad"]) == (2, 6)
    assert kto_weights(2, 6) == {"desirable_weight": 3.0, "desirable_weight_max": pytest.approx(4.0)}
    assert kto_weights(0, 1) == {"desirable_weight": None, "desirable_weight_max": None}


def order(rows: pl.DataFrame, **said: Any) -> tuple[list[str], list[list[int]], dict[str, int]]:
    made, report = groups(rows, PairSpec(as_="groups", **said))
    names = dict(zip(rows["candidate_id"], rows["name"], strict=True))
    return [" ".join(names[c] for c in row) for row in made["candidate_ids"]], made["ranks"].to_list(), report.dropped


def test_groups_are_best_first_and_ties_share_a_rank() -> None:
    rows = selected([1, 3, 2, 3], [2, 2], [5])
    assert order(rows) == (["0b 0d 0c 0a"], [[1, 1, 3, 4]], {"tie": 1, "one_candidate": 1})
    made, report = groups(rows, PairSpec(as_="groups"))
    assert made["scores"].to_list() == [[3.0, 3.0, 2.0, 1.0]]
    assert (report.rows_in, report.rows_out, report.counts["answers"]) == (3, 1, 4)


def test_a_cut_off_answer_may_be_the_last_of_a_group_only() -> None:
    rows = selected([9, 5, 1], [3, 2, 1], [2, 1], cut="0a 1b 1c 2a")
    assert order(rows)[0] == ["0b 0c", "1a 1c"]
    assert order(rows)[2] == {"one_candidate": 1}
    assert groups(rows, PairSpec(as_="groups"))[1].counts["left_out_truncated"] == 3
    assert order(rows, truncated="keep")[0] == ["0a 0b 0c", "1a 1b 1c", "2a 2b"]
    assert order(rows, truncated="drop") == (["0b 0c"], [[1, 2]], {"one_candidate": 2})


def test_demonstrations_weigh_what_was_drawn_often() -> None:
    rows = selected([1, 3, 3], [2], cut="1a", draws={"0a": 4})
    made, report = demonstrations(rows, PairSpec(as_="demonstrations"))
    named = made.join(rows, on="candidate_id", maintain_order="left")
    assert named.select("name", "rank", "weight").rows() == [("0b", 1, 1.0), ("0c", 2, 1.0), ("0a", 3, 4.0)]
    assert report.dropped == {"truncated": 1}
    assert demonstrations(rows, PairSpec(as_="demonstrations", truncated="keep"))[1].rows_out == 4


ANSWER = st.tuples(st.integers(-2, 2), st.booleans(), st.booleans())


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(
    st.lists(st.lists(ANSWER, min_size=1, max_size=6), max_size=5),
    st.sampled_from(["drop", "rejected", "keep"]),
    st.sampled_from(["threshold", "median", "top-bottom"]),
    st.integers(1, 3),
    st.randoms(),
)
def test_every_answer_is_accounted_for_whatever_the_order(
    prompts: list[list[tuple[int, bool, bool]]], truncated: Any, label_by: Any, k: int, draw: Any
) -> None:
    def names(flag: int) -> str:
        return " ".join(f"{p}{'abcdefghij'[i]}" for p, row in enumerate(prompts) for i, a in enumerate(row) if a[flag])

    rows = selected(*[[a[0] for a in row] for row in prompts], cut=names(1), empty=names(2))
    places = list(range(rows.height))
    draw.shuffle(places)
    said: dict[str, Any] = {"label_by": label_by, "threshold": 0.0 if label_by == "threshold" else None}
    said |= {"top": k, "bottom": k} if label_by == "top-bottom" else {}
    for name, (rule, table) in RULES.items():
        spec = PairSpec(as_=name, truncated=truncated, **(said if name == "unpaired" else {}))
        made, report = rule(rows, spec)
        report.report("pair", "answers")  # refuses what does not add up
        again, same = rule(rows[places], spec)
        assert made.sort("prompt_id", maintain_order=True).equals(again.sort("prompt_id", maintain_order=True))
        assert report == same
        assert report.rows_out == made.height
        assert report.rows_in == (rows["prompt_id"].n_unique() if name == "groups" else rows.height)
        stored = table.conform(made.with_columns(scorer=pl.lit("truth")).to_arrow())
        assert stored.num_rows == made.height


@settings(deadline=None, max_examples=50)  # the machine may be busy
@given(st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=6), min_size=1, max_size=4))
def test_labels_depend_on_the_order_of_scores_alone(scores: list[list[int]]) -> None:
    rows = selected(*scores)
    stretched = rows.with_columns(pl.col("score").exp() * 7 - 3)
    for said in ({}, {"label_by": "top-bottom", "top": 2}):
        assert labels(rows, **said) == labels(stretched, **said)
