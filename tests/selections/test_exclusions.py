"""What takes part: each candidate that does not is counted once, for the first reason that holds."""

from __future__ import annotations

from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from scored_runs import kept, pool

from prefdata import ids
from prefdata.errors import UsageError
from prefdata.selections.exclusions import parse_quotas
from prefdata.selections.select import select_from
from prefdata.specs import SelectSpec


@pytest.mark.parametrize("method", ["best-of-n", "top-k", "rso", "rso-algorithm1", "boltzmann"])
def test_what_cannot_be_selected_is_counted(method: str) -> None:
    frame = pool(
        [[1.0, None, float("nan"), 5.0, 2.0, 2.0], [float("inf")], [3.0]],
        texts=[["a", "b", "c", "d", "e", "e"], ["x"], ["y"]],
        finish_reason=["stop"] * 3 + ["length"] + ["stop"] * 4,
    )
    many = {"k": 50} if method != "best-of-n" else {}
    names, dropped = kept(frame, method=method, **many)
    assert set(names) == ({"0-4", "2-0"} if method == "best-of-n" else {"0-0", "0-4", "2-0"})
    assert {r: dropped[r] for r in ("no_score", "truncated", "duplicate")} == {
        "no_score": 3,
        "truncated": 1,
        "duplicate": 1,
    }


def test_what_was_cut_off_may_be_kept() -> None:
    frame = pool([[1.0, 5.0]], finish_reason=["stop", "length"])
    assert kept(frame, method="best-of-n") == (["0-0"], {"truncated": 1})
    assert kept(frame, method="best-of-n", truncated="keep") == (["0-1"], {"not_selected": 1})


def test_an_answer_without_a_finish_reason_was_not_cut_off() -> None:
    assert kept(pool([[1.0]], finish_reason=[None]), method="best-of-n")[0] == ["0-0"]


def test_duplicates_are_one_candidate_with_its_copies() -> None:
    frame = pool([[1.0, 2.0, 1.0, 1.0], [1.0]], texts=[["a", "b", "a", "a"], ["a"]])
    rows, account = select_from(frame, SelectSpec(method="top-k"))
    assert rows["copies"].to_list() == [1, 3, 1]
    assert account.dropped == {"duplicate": 2}
    rows, account = select_from(frame, SelectSpec(method="top-k", duplicates="keep"))
    assert rows["copies"].to_list() == [1] * 5
    assert not account.dropped


def test_the_copy_that_stands_is_the_earliest_rounds() -> None:
    """The same text came in round 0 as its fourth draw and in round 1 as its first."""
    frame = pool([[1.0, 1.0, 0.5]], texts=[["a", "a", "b"]], round=[1, 0, 0])
    assert kept(frame, method="best-of-n")[0] == ["0-1"]


def test_a_copy_that_stands_knows_the_others_and_whether_they_score_alike() -> None:
    """Of 0.1, 0.9 and 0.1 for one text the first stands with its own score, whatever the others have."""
    frame = pool([[0.1, 0.9, 0.4, 0.1], [1.0]], texts=[["same", "same", "else", "same"], ["same"]])
    rows, account = select_from(frame, SelectSpec(method="top-k", k=4))
    named = dict(frame.select("candidate_id", "name").iter_rows())
    found = {
        named[row["candidate_id"]]: (
            row["score"],
            row["copies"],
            row["copy_ids"] and [named[i] for i in row["copy_ids"]],
        )
        for row in rows.to_dicts()
    }
    assert found == {"0-0": (0.1, 3, ["0-1", "0-3"]), "0-2": (0.4, 1, None), "1-0": (1.0, 1, None)}
    assert account.counts["copies_scored_otherwise"] == 1
    _, account = select_from(frame.with_columns(score=pl.lit(1.0)), SelectSpec(method="top-k", k=4))
    assert "copies_scored_otherwise" not in account.counts
    later = select_from(frame.with_columns(round=pl.Series([1, 0, 0, 0, 0])), SelectSpec(method="best-of-n"))[0]
    assert [[named[i] for i in ids] for ids in later["copy_ids"].drop_nulls()] == [["0-3", "0-0"]]


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.lists(st.sampled_from("abcd"), min_size=1, max_size=9), min_size=1, max_size=6),
    rounds=st.lists(st.integers(0, 1), min_size=54, max_size=54),
)
def test_copies_add_up(texts, rounds) -> None:
    frame = pool([[float(ord(t)) for t in row] for row in texts], texts=texts)
    frame = frame.with_columns(round=pl.Series(rounds[: frame.height]))
    rows, account = select_from(frame, SelectSpec(method="top-k", k=9))
    assert rows["copies"].to_list() == [
        n for row in texts for _, n in sorted(Counter(row).items(), reverse=True)
    ]  # the score is the text's place in the alphabet
    assert account.dropped["duplicate"] == frame.height - rows.height
    shuffled, _ = select_from(frame.sample(fraction=1, shuffle=True, seed=1), SelectSpec(method="top-k", k=9))
    assert shuffled.sort("prompt_id", maintain_order=True).equals(rows)


def test_threshold_raw_and_min_max() -> None:
    """[0, 7, 10] is (0, .7, 1); a prompt whose answers all score 2 is (0, 0): none is better than the others."""
    frame = pool([[0.0, 7.0, 10.0], [2.0, 2.0], [-1.0]])
    assert kept(frame, method="threshold", threshold=2.0)[0] == ["0-2", "0-1", "1-0", "1-1"]
    assert kept(frame, method="threshold", threshold=0.7, scale="min-max")[0] == ["0-2", "0-1"]
    assert len(kept(frame, method="threshold", threshold=0.0, scale="min-max")[0]) == 6
    assert kept(frame, method="threshold", threshold=11.0) == ([], {"not_selected": 6})


def test_the_latest_round() -> None:
    frame = pool([[9.0, 1.0], [5.0]], round=[0, 1, 0])
    assert kept(frame, method="best-of-n", pool="latest") == (["0-1"], {"earlier_round": 2})
    rows, _ = select_from(frame, SelectSpec(method="best-of-n", pool="latest"), latest_round=2)
    assert rows.height == 0
    out = frame.with_columns(excluded=pl.Series([None, "where", None]))  # round 1 takes no part: 0 is the latest
    assert kept(out, method="best-of-n", pool="latest") == (["0-0", "1-0"], {"where": 1})


def test_improve_replaces_only_what_is_better_by_enough() -> None:
    """Rounds 0, 1, 2: the best of each, held against what stands."""
    rounds = [0, 0, 1, 1, 2]
    best = [
        ([1.0, 0.0, 1.4, 0.0, 1.6], "0-4"),  # 1.4 is not .5 more than 1, 1.6 is
        ([1.0, 0.0, 1.5, 0.0, 1.9], "0-2"),  # 1.5 is, and then 1.9 is not .5 more than 1.5
        ([1.0, 2.0, 0.0, 0.0, 0.0], "0-1"),
    ]
    for scores, stands in best:
        names, dropped = kept(pool([scores], round=rounds), method="best-of-n", improve=0.5)
        assert names == [stands]
        assert dropped["not_selected"] + dropped.get("duplicate", 0) == 4
    assert kept(pool([[1.0, 1.0]], round=[0, 1]), method="best-of-n", improve=0.0)[0] == ["0-1"]
    assert kept(pool([[1.0, 9.0]], round=[1, 3]), method="best-of-n", improve=0.5)[0] == ["0-1"]
    same = pool([[1.0, 1.0, 2.0]], [["a", "a", "b"]], round=[0, 0, 1])
    assert kept(same, method="best-of-n", improve=0.5) == (["0-2"], {"duplicate": 1, "not_selected": 1})


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.integers(0, 6)), min_size=1, max_size=8), min_size=1, max_size=4
    ),
    least=st.integers(0, 3),
)
def test_improve_is_the_loop_over_rounds(rows, least: int) -> None:
    frame = pool([[float(s) for _, s in row] for row in rows], round=[r for row in rows for r, _ in row])
    names, _ = kept(frame, method="best-of-n", improve=float(least))
    assert names == [f"{p}-{standing(row, least)}" for p, row in enumerate(rows)]


def standing(row: list[tuple[int, int]], least: int) -> int:
    """The number of the answer that stands after the last round, of (round, score) in the order of generation."""
    stands = None
    for number in sorted({r for r, _ in row}):
        best = max((i for i, (r, _) in enumerate(row) if r == number), key=lambda i: row[i][1])  # the first of equals
        if stands is None or row[best][1] >= row[stands][1] + least:
            stands = best
    return stands


def mixed(samplers: list[str], prompts: int = 2_000) -> pl.DataFrame:
    """Prompts with one answer of each sampler."""
    each = len(samplers)
    return pl.DataFrame(
        {
            "candidate_id": [ids.digest([p, s]) for p in range(prompts) for s in samplers],
            "prompt_id": [ids.digest(p) for p in range(prompts) for _ in samplers],
            "sampler": samplers * prompts,
            "text_key": pl.int_range(each * prompts, dtype=pl.Int64, eager=True),
            "chars": 5,
        }
    ).with_columns(
        score=pl.lit(1.0),
        sample_index=pl.lit(0),
        round=pl.lit(0),
        excluded=pl.lit(None, pl.String),
        finish_reason=pl.lit("stop"),
    )


@pytest.mark.parametrize(
    ("quota", "shares"),
    [((), {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}), (("a=3", "b=1", "c=0"), {"a": 0.75, "b": 0.25})],
)
def test_a_mix_has_its_shares(quota: tuple[str, ...], shares: dict[str, float]) -> None:
    frame = mixed(["a", "b", "c"])
    rows, account = select_from(frame, SelectSpec(method="top-k", pool="mix", quota=quota))
    of = dict(rows.join(frame, on="candidate_id")["sampler"].value_counts().iter_rows())
    assert set(of) == set(shares)
    assert chisquare([of[name] for name in shares], [2_000 * p for p in shares.values()]).pvalue > 1e-4
    assert account.dropped == {"other_sampler": 4_000}
    assert {name.removeprefix("prompts_from_"): n for name, n in account.counts.items() if "from" in name} == of


def test_a_mix_draws_among_the_samplers_that_a_prompt_has() -> None:
    frame = pool([[1.0, 2.0], [3.0], [4.0]], sampler=["a", "b", "b", "c"])
    names, dropped = kept(frame, method="top-k", pool="mix", quota=("a=1", "b=0"))
    assert names == ["0-0"]  # b has no weight, c was given none
    assert dropped == {"other_sampler": 3}
    assert "1-0" in kept(frame, method="top-k", pool="mix", quota=("a=1", "b=1e-9"))[0]


def test_a_mix_is_drawn_once_a_prompt_whatever_the_seed_of_the_others() -> None:
    frame = mixed(["a", "b"], 50)
    one, _ = select_from(frame, SelectSpec(method="top-k", pool="mix"))
    alone, _ = select_from(frame.filter(pl.col("prompt_id") == ids.digest(7)), SelectSpec(method="top-k", pool="mix"))
    assert one.filter(pl.col("prompt_id") == ids.digest(7)).equals(alone)
    other, _ = select_from(frame, SelectSpec(method="top-k", pool="mix", seed=1))
    assert not other.equals(one)


@pytest.mark.parametrize("quota", [("a",), ("a=x",), ("=1",), ("a=-1",), ("a=nan",), ("a=inf",), ("a=1", "a=2")])
def test_a_quota_that_is_none(quota: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="SAMPLER=WEIGHT"):
        parse_quotas(SelectSpec(pool="mix", quota=quota), ["a"])


def test_a_quota_of_nothing() -> None:
    with pytest.raises(UsageError, match="all weights are 0"):
        parse_quotas(SelectSpec(pool="mix", quota=("a=0",)), ["a"])


def test_a_sampler_whose_name_has_an_equals_sign_is_split_at_the_last() -> None:
    assert parse_quotas(SelectSpec(pool="mix", quota=("a=b=2",)), ["a"]) == {"a=b": 2.0}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"method": "best-of-n", "k": 3}, "-k goes with"),
        ({"method": "threshold"}, "needs --threshold"),
        ({"method": "threshold", "threshold": float("nan")}, "finite"),
        ({"threshold": 1.0}, "--threshold goes with --method threshold"),
        ({"min_chars": 9, "max_chars": 8}, "--max-chars is below --min-chars"),
        ({"refusal_phrases": "mine.yaml"}, "--refusal-phrases goes with --refusals drop"),
        ({"quota": ("a=1",)}, "--quota goes with --pool mix"),
        ({"improve": 0.1}, "--improve goes with --method best-of-n"),
        ({"method": "top-k", "embeddings": "e", "distance": "embedding"}, "--embeddings goes with --diverse"),
    ],
)
def test_settings_that_do_not_go_together(said, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SelectSpec.parse(said)
