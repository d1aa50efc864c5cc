"""pair: each strategy's rule, and that ties, duplicates and truncations are counted and never preferred."""

from __future__ import annotations

import math
from collections import Counter

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.pairs.pair import make_pairs, pair_ids
from prefdata.specs import PairSpec
from prefdata.storage.report import nonzero

STRATEGIES = ["best-worst", "best-random", "first-round", "all"]


def selected(scores: list[list[float]], texts: dict[str, str] | None = None, cut: tuple[str, ...] = ()) -> pl.DataFrame:
    rows = [
        {
            "candidate_id": ids.digest(f"{p}-{i}"),
            "prompt_id": f"{(p * 40503) % 2**16:04x}" * 5,  # in another order than they come in
            "sample_index": i,
            "score": float(score),
            "text_key": ids.seed(0, (texts or {}).get(f"{p}-{i}", f"{p}-{i}").strip()),
            "chars": len((texts or {}).get(f"{p}-{i}", f"{p}-{i}").strip()),
            "excluded": None,
            "finish_reason": "length" if f"{p}-{i}" in cut else "stop",
            "sampler": "s",
            "name": f"{p}-{i}",
        }
        for p, row in enumerate(scores)
        for i, score in enumerate(row)
    ]
    return pl.DataFrame(rows, schema_overrides={"excluded": pl.String})


def paired(frame: pl.DataFrame, strategy: str = "best-worst", **said) -> tuple[list[tuple[str, str]], dict[str, int]]:
    rows, account = make_pairs(frame, PairSpec(strategy=strategy, **said))
    names = dict(zip(frame["candidate_id"], frame["name"], strict=True))
    return [(names[c], names[r]) for c, r in zip(rows["chosen_id"], rows["rejected_id"], strict=True)], nonzero(
        account.dropped
    )


def test_best_worst() -> None:
    assert paired(selected([[1, 3, 2], [0, 5, -1]]))[0] == [("0-1", "0-0"), ("1-1", "1-2")]


def test_ties_for_the_best_go_to_the_earlier_draw_and_for_the_worst_to_the_later() -> None:
    assert paired(selected([[1, 3, 3, 1]]))[0] == [("0-1", "0-3")]


def test_several_disjoint_pairs_of_best_and_worst() -> None:
    frame = selected([[5, 1, 4, 2, 3], [7, 8]])
    assert paired(frame, per_prompt=2)[0] == [("0-0", "0-1"), ("0-2", "0-3"), ("1-1", "1-0")]
    assert paired(frame, per_prompt=9)[0] == paired(frame, per_prompt=2)[0]


def test_all_pairs_of_three() -> None:
    found = paired(selected([[1, 3, 2]]), "all")[0]
    assert found == [("0-1", "0-0"), ("0-1", "0-2"), ("0-2", "0-0")]


def test_first_round_uses_everyone_once() -> None:
    pairs = paired(selected([[1, 2, 3, 4, 5, 6, 7]]), "first-round")[0]
    assert len(pairs) == 3
    assert len({name for both in pairs for name in both}) == 6


def test_best_random_draws_among_the_others_evenly() -> None:
    found = Counter(paired(selected([[9, 1, 2, 3]]), "best-random", seed=seed)[0][0][1] for seed in range(300))
    assert set(found) == {"0-1", "0-2", "0-3"}
    assert min(found.values()) > 70


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_all_tied_gives_no_pair(strategy: str) -> None:
    pairs, dropped = paired(selected([[2, 2], [2, 2]]), strategy)
    assert pairs == []
    assert dropped == {"tie": 2}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_candidate_gives_no_pair(strategy: str) -> None:
    assert paired(selected([[2], [1, 2]]), strategy) == ([("1-1", "1-0")], {"one_candidate": 1})


def test_the_same_text_is_no_pair() -> None:
    frame = selected([[1, 2]], texts={"0-0": "same\n", "0-1": "same"})
    assert paired(frame) == ([], {"same_text": 1})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_empty_answers_take_no_part(strategy: str) -> None:
    frame = selected([[9, 1, 2], [1, 2]], texts={"0-0": " \n", "1-0": "", "1-1": ""})
    assert paired(frame, strategy) == ([("0-2", "0-1")], {"no_candidate": 1})


def test_margin() -> None:
    frame = selected([[0, 0.5], [0, 1.0]])
    assert paired(frame, min_margin=1.0) == ([("1-1", "1-0")], {"margin": 1})


def test_truncated_answers() -> None:
    frame = selected([[1, 2, 9]], cut=("0-2",))
    assert paired(frame, truncated="keep")[0] == [("0-2", "0-0")]
    assert paired(frame, truncated="rejected")[0] == [("0-1", "0-0")]
    assert paired(frame, truncated="drop")[0] == [("0-1", "0-0")]
    low = selected([[1, 2, -9]], cut=("0-2",))
    assert paired(low, truncated="rejected")[0] == [("0-1", "0-2")]
    assert paired(low, truncated="drop")[0] == [("0-1", "0-0")]
    only = selected([[1, 2]], cut=("0-0", "0-1"))
    assert paired(only, truncated="rejected") == ([], {"chosen_truncated": 1})
    assert paired(only, truncated="drop") == ([], {"no_candidate": 1})


def test_a_cut_best_is_not_rejected_for_a_worse_one() -> None:
    """With best-random the cut best may be drawn as the rejected one; it would be an inverted pair."""
    frame = selected([[1, 9]], cut=("0-1",))
    assert paired(frame, "best-random", truncated="rejected") == ([], {"best_was_truncated": 1})


def test_probability_is_the_sigmoid_of_the_margin() -> None:
    rows, _ = make_pairs(selected([[0.2, 1.2]]), PairSpec())
    assert rows["margin"][0] == pytest.approx(1.0)
    assert rows["probability"][0] == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert rows["pair_id"][0] == ids.pair_id(rows["chosen_id"][0], rows["rejected_id"][0])


@pytest.mark.parametrize("kept", [slice(0, 0), slice(3, 41), slice(None)])
def test_ids_of_many_pairs_are_those_of_each(kept: slice) -> None:
    """However the ids lie in memory: in slices, in pieces, every other one."""
    every = pl.Series([ids.digest(number) for number in range(80)])
    pieces = pl.concat([every[:50], every[60:]], rechunk=False)
    for chosen, rejected in ((every[:41], every[39:]), (pieces, pieces.reverse()), (every[::2], every[1::2])):
        chosen, rejected = chosen[kept], rejected[kept]
        known = [ids.pair_id(*pair) for pair in zip(chosen, rejected, strict=True)]
        assert pair_ids(chosen, rejected).to_list() == known


grids = st.lists(st.lists(st.integers(-3, 3), min_size=1, max_size=6), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(grid=grids, strategy=st.sampled_from(STRATEGIES), seed=st.integers(0, 9), margin=st.sampled_from([0.0, 1.5]))
def test_properties(grid, strategy, seed, margin) -> None:
    frame = selected(grid)
    spec = PairSpec(strategy=strategy, seed=seed, min_margin=margin)
    rows, report = make_pairs(frame, spec)
    assert (rows["chosen_score"] - rows["rejected_score"] >= max(margin, 1e-9)).all()
    assert (rows["chosen_id"] != rows["rejected_id"]).all()
    assert rows["pair_id"].is_unique().all()
    order = list(dict.fromkeys(frame["prompt_id"]))
    place = pl.col("prompt_id").replace_strict(order, range(len(order)))
    by_margin = rows.sort(place, "margin", "chosen_id", "rejected_id", descending=[False, True, False, False])
    assert rows.equals(by_margin)
    shuffled, _ = make_pairs(frame.sample(fraction=1.0, shuffle=True, seed=seed), spec)
    assert shuffled.sort("prompt_id", maintain_order=True).equals(rows.sort("prompt_id", maintain_order=True))
    prompt_of = dict(zip(frame["candidate_id"], frame["prompt_id"], strict=True))
    assert all(
        prompt_of[c] == p == prompt_of[r] for p, c, r in rows.select("prompt_id", "chosen_id", "rejected_id").rows()
    )
    assert report.rows_in == report.rows_out + sum(report.dropped.values())


def test_prompts_whose_ids_begin_alike_are_not_one() -> None:
    ends = ["0002", "0000", "0001"]  # the first 64 bits of the three are the same
    frame = selected([[1, 2], [4, 3], [5, 6]])
    frame = frame.with_columns(prompt_id=pl.Series([f"{'a' * 16}{end}" for end in ends for _ in range(2)]))
    assert paired(frame)[0] == [("0-1", "0-0"), ("1-0", "1-1"), ("2-1", "2-0")]
    assert sorted(paired(frame[[0, 2, 4, 1, 3, 5]])[0]) == paired(frame)[0]


def test_nothing_in_nothing_out() -> None:
    assert paired(selected([[1]]).clear()) == ([], {})
