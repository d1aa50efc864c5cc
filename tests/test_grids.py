"""Grids: rows come together by prompt in the order of generation, and lie where they belong."""

from __future__ import annotations

import itertools

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.grids import Grid, Standing, _runs, descending, grids, how_many_prompts, last_argmin, order_of

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


@settings(max_examples=150, deadline=None)
@given(size=prompts, tied=st.booleans(), seed=st.integers(0, 99), blocks=st.integers(1, 4))
def test_rows_in_any_order_come_in_one(size: list[int], tied: bool, seed: int, blocks: int) -> None:
    plain = rows(size, tied=tied)
    wanted = plain.sort("prompt_id", "sample_index", "candidate_id")
    random = np.random.default_rng(seed)
    cut = np.array_split(np.arange(plain.height), blocks)
    for came in (random.permutation(plain.height), np.concatenate([cut[i] for i in random.permutation(blocks)])):
        some = plain[came.astype(np.int64)]
        order = order_of(some)
        assert (some if order.row is None else some[order.row]).equals(wanted)
        assert order.size.tolist() == wanted.group_by("prompt_id", maintain_order=True).len()["len"].to_list()
        assert (order.row is None) == some.equals(wanted)
        assert order.names.to_list() == sorted(set(wanted["prompt_id"]))
        standing = Standing.of(some)
        assert standing.rows.sort("prompt_id", maintain_order=True).equals(wanted)
        assert standing.prompt.tolist() == standing.rows["prompt_id"].rle_id().to_list()
        mask = random.random(some.height) < 0.5
        kept = standing.only(mask)
        assert kept.rows.equals(standing.rows.filter(mask))
        assert kept.prompt.tolist() == kept.rows["prompt_id"].rle_id().to_list()


@settings(max_examples=150, deadline=None)
@given(size=prompts.filter(len), tied=st.booleans(), seed=st.integers(0, 99))
def test_prompts_that_lie_together_may_stay_where_they_are(size: list[int], tied: bool, seed: int) -> None:
    plain, random = rows(size, tied=tied), np.random.default_rng(seed)
    blocks = plain.partition_by("prompt_id")
    moved = pl.concat([blocks[i] for i in random.permutation(len(blocks))])
    assert order_of(moved, prompts_anyhow=True).row is None or tied
    for some in (moved, plain[random.permutation(plain.height)]):
        order = order_of(some, prompts_anyhow=True)
        came = (some if order.row is None else some[order.row]).with_row_index("at")
        came = came.with_columns(first=pl.col("at").min().over("prompt_id"), size=pl.len().over("prompt_id"))
        assert came.equals(came.sort("first", "sample_index", "candidate_id"))
        firsts = came.filter(pl.col("at") == pl.col("first"))
        assert order.size.tolist() == firsts["size"].to_list()
        assert order.names.equals(firsts["prompt_id"])


def test_a_prompt_in_two_places_is_seen_behind_others_that_are_in_one() -> None:
    some = rows([1, 2, 1])[[0, 1, 3, 2]]
    order = order_of(some, prompts_anyhow=True)
    assert order.row is not None
    assert some[order.row].equals(some.sort("prompt_id", "sample_index"))


def test_the_largest_sample_index_there_is() -> None:
    plain = rows([257, 300, 512, 400])
    last = pl.int_range(pl.len()).over("prompt_id") == pl.len().over("prompt_id") - 1
    plain = plain.with_columns(sample_index=pl.when(last).then(2**31 - 1).otherwise("sample_index").cast(pl.Int32))
    came = plain.sample(fraction=1.0, shuffle=True, seed=0)
    assert came[order_of(came).row].equals(plain.sort("prompt_id", "sample_index"))


@settings(max_examples=150, deadline=None)
@given(
    named=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=9), cut=st.integers(0, 4)
)
def test_runs_are_of_equal_ids_wherever_their_letters_lie(named: list[tuple[int, int, bool]], cut: int) -> None:
    names = [ids.digest(0), ids.digest(1), "", "p1"]
    copies = pl.concat(
        [pl.Series("prompt_id", [], pl.String)]
        # Each part of the series has its own letters; in some all rows share one copy of them, in others none do.
        + [pl.Series("prompt_id", [names[p]] * n).gather([0] * n if one else range(n)) for p, n, one in named],
        rechunk=False,
    )[cut:]
    frame = copies.to_frame()
    assert _runs(copies)[1].tolist() == [len(list(run)) for _, run in itertools.groupby(copies)]
    assert how_many_prompts(frame) == len(set(copies))


@settings(max_examples=100, deadline=None)
@given(size=prompts)
def test_grids_hold_every_row_once(size: list[int]) -> None:
    values = np.arange(sum(size), dtype=float)
    prompt = np.repeat(np.arange(len(size)), size)
    seen = np.zeros(len(values), int)
    for grid in grids(np.array(size, np.int64)):
        spread = grid.spread(values, -np.inf)
        assert spread.shape == grid.shape
        there = np.isfinite(spread)
        assert 2 * there.sum() > there.size  # more than half full
        assert (np.diff(there.astype(int), axis=1) <= 0).all()  # what is no row comes last
        for line in spread:
            of = prompt[line[np.isfinite(line)].astype(int)]
            assert len(set(of.tolist())) == 1
            assert len(of) == size[of[0]]
        assert np.array_equal(grid.flat(spread), values[grid.numbers])
        seen[grid.numbers] += 1
    assert (seen == 1).all()


def test_a_grid_by_hand() -> None:
    grid = Grid(np.array([2, 3, 4, 7, 8]), np.array([3, 2]), np.array([0, 4]))
    assert grid.spread(np.arange(10), -1).tolist() == [[2, 3, 4], [7, 8, -1]]
    assert grid.flat(np.array([[1, 2, 3], [4, 5, 6]])).tolist() == [1, 2, 3, 4, 5]


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 20).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from([0.0, 1.0, 2.0, -np.inf]), min_size=n, max_size=n), min_size=1, max_size=5
        )
    )
)
def test_descending_keeps_equals_in_their_order(values: list[list[float]]) -> None:
    order = descending(np.array(values))
    for line, places in zip(values, order.tolist(), strict=True):
        finite = [i for i in places if line[i] > -np.inf]
        assert finite == sorted((i for i, v in enumerate(line) if v > -np.inf), key=lambda i: (-line[i], i))
        assert sorted(places) == list(range(len(line)))


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5).flatmap(lambda n: st.lists(st.lists(st.integers(0, 2), min_size=n, max_size=n), min_size=1)))
def test_the_last_of_the_smallest(values: list[list[int]]) -> None:
    wanted = [max(i for i, value in enumerate(line) if value == min(line)) for line in values]
    assert last_argmin(np.array(values, np.float64)).tolist() == wanted
