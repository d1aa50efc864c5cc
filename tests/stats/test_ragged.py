"""Ragged arrays: rows come together by prompt in the order of generation, and stand in the block where they belong."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.stats.ragged import PaddedBlock, RaggedRows, argmin_last, argsort_desc, blocks, count_prompts

prompts = st.lists(st.integers(1, 9), max_size=8)


def rows(size: list[int], *, tied: bool = False) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "prompt_id": [ids.digest(p) for p, n in enumerate(size) for _ in range(n)],
            "candidate_id": [ids.digest([p, i]) for p, n in enumerate(size) for i in range(n)],
            "sample_index": [i // 2 if tied else i for n in size for i in range(n)],
        },
        schema={"prompt_id": pl.String, "candidate_id": pl.String, "sample_index": pl.Int32},
    )


def in_order(some: pl.DataFrame) -> pl.DataFrame:
    """Prompts in the order of their first rows, each prompt's by sample_index and then by id; by Polars' own sort."""
    came = some.with_row_index("at").with_columns(first=pl.col("at").min().over("prompt_id"))
    return came.sort("first", "sample_index", "candidate_id").drop("at", "first")


@settings(max_examples=150, deadline=None)
@given(size=prompts, tied=st.booleans(), seed=st.integers(0, 99), cuts=st.integers(1, 4))
def test_rows_are_grouped_by_prompt_whatever_their_order(size: list[int], tied: bool, seed: int, cuts: int) -> None:
    plain, random = rows(size, tied=tied), np.random.default_rng(seed)
    pieces = np.array_split(np.arange(plain.height), cuts)
    orders = [random.permutation(plain.height), np.concatenate([pieces[i] for i in random.permutation(cuts)])]
    whole = plain.partition_by("prompt_id")
    orders.append(np.arange(plain.height))
    moved = pl.concat([plain.clear(), *(whole[i] for i in random.permutation(len(whole)))])
    for some in (moved, *(plain[order.astype(np.int64)] for order in orders)):
        wanted = in_order(some)
        grouped = RaggedRows.from_frame(some)
        assert grouped.rows.equals(wanted)
        assert grouped.sizes.tolist() == wanted.group_by("prompt_id", maintain_order=True).len()["len"].to_list()
        assert grouped.prompt_index.tolist() == wanted["prompt_id"].rle_id().to_list()
        assert (grouped.rows is some) == some.equals(wanted)  # nothing is moved that is in order
        assert count_prompts(some) == len(size)
        mask = random.random(some.height) < 0.5
        kept = grouped.filter(mask)
        assert kept.rows.equals(wanted.filter(mask))
        assert kept.prompt_index.tolist() == kept.rows["prompt_id"].rle_id().to_list()


def test_a_prompt_in_two_places_is_seen_behind_others_that_are_in_one() -> None:
    some = rows([1, 2, 1])[[0, 1, 3, 2]]
    grouped = RaggedRows.from_frame(some)
    assert grouped.rows.equals(some[[0, 1, 3, 2]])
    assert grouped.sizes.tolist() == [1, 2, 1]


def test_the_largest_sample_index_there_is() -> None:
    plain = rows([257, 300, 512, 400])
    last = pl.int_range(pl.len()).over("prompt_id") == pl.len().over("prompt_id") - 1
    plain = plain.with_columns(sample_index=pl.when(last).then(2**31 - 1).otherwise("sample_index").cast(pl.Int32))
    came = plain.sample(fraction=1.0, shuffle=True, seed=0)
    assert RaggedRows.from_frame(came).rows.equals(in_order(came))


@settings(max_examples=100, deadline=None)
@given(size=st.lists(st.integers(0, 9), max_size=8), exact=st.booleans(), most=st.sampled_from([None, 1, 5, 12]))
def test_blocks_hold_every_row_once(size: list[int], exact: bool, most: int | None) -> None:
    values = np.arange(sum(size), dtype=float)
    prompt = np.repeat(np.arange(len(size)), size)
    seen, numbers = np.zeros(len(values), int), []
    for block in blocks(np.array(size, np.int64), exact=exact, max_rows=most):
        spread = block.scatter(values, -np.inf)
        assert spread.shape == block.shape
        there = np.isfinite(spread)
        assert there.all() if exact else 2 * there.sum() > there.size  # more than half full
        assert (np.diff(there.astype(int), axis=1) <= 0).all()  # padding comes last
        for line, number in zip(spread, np.arange(len(size))[block.prompts], strict=True):
            own = line[np.isfinite(line)].astype(int)
            assert set(prompt[own].tolist()) == {number}
            assert len(own) == size[number]
        assert most is None or there.sum() <= max(most, *size) + max(size)
        assert np.array_equal(block.gather(spread), values[block.rows])
        seen[block.rows] += 1
        numbers += np.arange(len(size))[block.prompts].tolist()
    assert (seen == 1).all()
    assert sorted(numbers) == [number for number, n in enumerate(size) if n]


def test_a_block_by_hand() -> None:
    block = PaddedBlock(np.array([2, 3, 4, 7, 8]), np.array([3, 2]), np.array([0, 4]))
    assert block.scatter(np.arange(10), -1).tolist() == [[2, 3, 4], [7, 8, -1]]
    assert block.scatter_own(np.array([9, 8, 7, 6, 5]), 0).tolist() == [[9, 8, 7], [6, 5, 0]]
    assert block.gather(np.array([[1, 2, 3], [4, 5, 6]])).tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("sizes", [[], [0, 0]])
def test_no_rows_no_blocks(sizes: list[int]) -> None:
    assert list(blocks(np.array(sizes, np.int64))) == []


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 20).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=n, max_size=n), min_size=1, max_size=5
        )
    )
)
def test_equal_values_stay_in_their_order(values: list[list[float]]) -> None:
    order = argsort_desc(np.array(values))
    for line, places in zip(values, order.tolist(), strict=True):
        finite = [i for i in places if line[i] > -np.inf]
        assert finite == sorted((i for i, v in enumerate(line) if v > -np.inf), key=lambda i: (-line[i], i))
        assert sorted(places) == list(range(len(line)))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1)))
def test_the_last_of_the_smallest(values: list[list[int]]) -> None:
    wanted = [max(i for i, value in enumerate(line) if value == min(line)) for line in values]
    assert argmin_last(np.array(values, np.float64)).tolist() == wanted


@settings(max_examples=50, deadline=None)
@given(named=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=9))
def test_prompts_are_counted_once_however_often_they_come(named: list[tuple[int, int]]) -> None:
    names = [f"p{p}" for p, n in named for _ in range(n)]
    assert count_prompts(pl.DataFrame({"prompt_id": names}, schema={"prompt_id": pl.String})) == len(set(names))
