"""How many pairs there may be: caps, balance, margins, weights."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import polars as pl
import pytest
from batches_by_hand import paired, pool
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.pairs.limits import balance_groups
from prefdata.pairs.pair import make_pairs
from prefdata.specs import PairSpec


def test_the_widest_margins_stay() -> None:
    answers = pool("9 5 4 1", "3 1")
    assert paired(answers, "all", max_pairs_per_prompt=2) == ("0a>0d 0a>0c 1a>1b", {"per_prompt_limit": 4})
    assert paired(answers, "all", max_per_candidate=1) == ("0a>0d 0b>0c 1a>1b", {"per_candidate_limit": 4})
    assert paired(answers, "all", max_per_candidate=1, max_pairs_per_prompt=1) == (
        "0a>0d 1a>1b",
        {"per_prompt_limit": 5},
    )


def test_what_is_no_pair_anyway_takes_no_room() -> None:
    assert paired(pool("9=x 1=x 5"), "all", max_per_candidate=1) == (
        "0c>0b",
        {"same_text": 1, "per_candidate_limit": 1},
    )


@settings(max_examples=60, deadline=None)
@given(
    lines=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=7), min_size=1, max_size=4),
    most=st.one_of(st.none(), st.integers(1, 4)),
    each=st.one_of(st.none(), st.integers(1, 3)),
)
def test_caps_hold_and_nothing_more_would_fit(lines: list[list[int]], most: int | None, each: int | None) -> None:
    answers = pool(*(" ".join(map(str, line)) for line in lines))
    asked: dict[str, Any] = {"strategy": "all"}
    every, _ = make_pairs(answers, PairSpec(**asked))
    kept, account = make_pairs(answers, PairSpec(**asked, max_pairs_per_prompt=most, max_per_candidate=each))
    account.report("pair", "pairs")
    used = Counter([*kept["chosen_id"], *kept["rejected_id"]])
    taken = Counter(kept["prompt_id"])
    most, each = most or 99, each or 99
    assert max(taken.values(), default=0) <= most
    assert max(used.values(), default=0) <= each
    there = set(kept["pair_id"])
    for pair in every.filter(~pl.col("pair_id").is_in(there)).iter_rows(named=True):
        full = max(used[pair["chosen_id"]], used[pair["rejected_id"]]) >= each
        assert full or taken[pair["prompt_id"]] >= most
    # Greedy: each prompt's widest pair stays.
    assert set(every.group_by("prompt_id", maintain_order=True).first()["pair_id"]) <= there


def test_margins() -> None:
    answers = pool("9 5", "9 7", "9 8", "9 9")
    assert paired(answers, "best-worst", min_margin=2.0) == ("0a>0b 1a>1b", {"margin": 1, "tie": 1})
    assert paired(answers, "best-worst", max_margin=2.0) == ("1a>1b 2a>2b", {"max_margin": 1, "tie": 1})
    assert paired(answers, "best-worst", min_margin=2.0, max_margin=3.0)[0] == "1a>1b"


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_probability_and_what_it_weighs(temperature: float) -> None:
    answers = pool("3 1")
    p = 1 / (1 + math.exp(-2 / temperature))
    rows, _ = make_pairs(answers, PairSpec(temperature=temperature))
    assert rows.select("probability", "weight").row(0) == (pytest.approx(p), 1.0)
    rows, _ = make_pairs(answers, PairSpec(temperature=temperature, weight="confidence"))
    assert rows["weight"][0] == pytest.approx(2 * p - 1)


def test_how_sure_a_label_must_be() -> None:
    answers = pool("9 5", "9 8", "9 9")
    assert paired(answers, "best-worst", min_probability=0.8) == ("0a>0b", {"unsure": 1, "tie": 1})
    assert paired(answers, "best-worst", min_probability=0.8, temperature=0.5)[0] == "0a>0b 1a>1b"


def test_margins_beyond_any_probability() -> None:
    """Margins whose sigmoid rounds to 1, or to 1/2, are still pairs, in the order of their margins."""
    rows, _ = make_pairs(pool("9000 1 5000"), PairSpec(strategy="all"))
    assert rows["margin"].to_list() == [8999.0, 4999.0, 4000.0]
    rows, _ = make_pairs(pool("3 1"), PairSpec(temperature=1e20))
    assert rows.select("probability", "verdict").row(0) == (0.5, "chosen")


def balance(groups: str, seed: int = 0) -> tuple[list[str], Counter[str]]:
    pairs = pl.DataFrame(
        {"pair_id": [ids.digest(f"{i}") for i in range(len(groups))], "n": range(len(groups))},
        schema_overrides={"pair_id": pl.String},
    )
    kept = balance_groups(pairs, pl.Series(list(groups)), seed)
    assert kept["n"].is_sorted()
    return kept["pair_id"].to_list(), Counter(groups[n] for n in kept["n"])


def test_balance_keeps_as_many_of_each_by_lot() -> None:
    kept, counts = balance("aaaaabbbcc")
    assert counts == {"a": 2, "b": 2, "c": 2}
    assert balance("aaaaabbbcc")[0] == kept
    assert any(balance("aaaaabbbcc", seed)[0] != kept for seed in range(1, 5))
    assert balance("aaa")[1] == {"a": 3}
    assert balance("")[1] == {}


def test_balance_is_by_lot() -> None:
    found = Counter(name for seed in range(300) for name in balance("aaaab", seed)[0])
    (always,) = [name for name, count in found.items() if count == 300]
    assert always == ids.digest("4")
    assert min(found.values()) > 45
