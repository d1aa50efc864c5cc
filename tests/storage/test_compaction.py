"""Clustering: when scores are finished, each prompt's rows are together, and no row is lost or comes twice."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_runs import DONE, Made, answer, score_of

from prefdata.keyed_random import id_prefix64
from prefdata.storage import compaction
from prefdata.storage.compaction import compact, is_clustered, prompt_runs
from prefdata.storage.run import Lineage, Partition, Run
from prefdata.storage.schemas import SCORES

KEY = ["candidate_id"]


def written(path: Path, parts: list[list[tuple[int, int]]]) -> Partition:
    """Scores in parts of rows, each (prompt, index); a row that comes again has its number as the score."""
    partition = Run(path).partition("scores", "s")
    partition.begin(Lineage.of(Made()), replace=True)
    number = 0
    for part in parts:
        some = []
        for prompt, index in part:
            number += 1
            some.append(score_of(answer(f"p{prompt}", index, 0.0), "policy", float(number)))
        partition.append(SCORES.from_rows(some))
    return partition


def rows_of(partition: Partition) -> list[dict[str, Any]]:
    return [row for part in partition.parts() for row in pq.read_table(part, partitioning=None).to_pylist()]


def clustered(partition: Partition) -> bool:
    return is_clustered(map(prompt_runs, partition.parts()))


CASES = st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=1, max_size=6), max_size=8)


@settings(max_examples=25, deadline=None)
@given(parts=CASES, full=st.sampled_from([1, 4, 100]))
def test_no_row_is_lost_and_each_prompt_is_together(
    parts: list[list[tuple[int, int]]], full: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The last row of each key stays; of prompts that are not too far apart all rows are together."""
    flat = [row for part in parts for row in part]
    last = {key: float(number) for number, key in enumerate(flat, 1)}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compaction, "FULL_ROWS", full)
        partition = written(tmp_path_factory.mktemp("c"), parts)
        compact(partition, KEY, by_prompt=True)
        found = {(row["prompt_id"], row["sample_index"]): row["score"] for row in rows_of(partition)}
        assert len(rows_of(partition)) == len(last)
        assert found == {(answer(f"p{p}", i, 0.0)["prompt_id"], i): score for (p, i), score in last.items()}
        again = {part.name: part.stat().st_mtime_ns for part in partition.parts()}
        compact(partition, KEY, by_prompt=True)
        assert {part.name: part.stat().st_mtime_ns for part in partition.parts()} == again or full < 100
    if full == 100:
        assert clustered(partition)
        if len(partition.parts()) == 1 and len(parts) > 1:
            order = [(row["prompt_id"], row["sample_index"]) for row in rows_of(partition)]
            firsts = list(dict.fromkeys(prompt for prompt, _ in order))
            assert order == sorted(order, key=lambda row: (firsts.index(row[0]), row[1]))


def test_rows_that_are_finished_out_of_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a scorer writes them that sorts windows of texts by length, in parts of whatever size."""
    monkeypatch.setattr(compaction, "FULL_ROWS", 40)
    dice, rows = random.Random(0), [(p, i) for p in range(60) for i in range(8)]
    for start in range(0, len(rows), 20):
        rows[start : start + 20] = random.Random(start).sample(rows[start : start + 20], 20)
    parts, left = [], rows
    while left:
        size = dice.randint(1, 30)
        parts.append(left[:size])
        left = left[size:]
    partition = written(tmp_path, parts)
    assert not clustered(partition)
    compact(partition, KEY, by_prompt=True)
    assert clustered(partition)
    prompts = list(dict.fromkeys(row["prompt_id"] for row in rows_of(partition)))
    order = [answer(f"p{p}", 0, 0.0)["prompt_id"] for p in range(60)]
    assert max(abs(prompts.index(prompt) - place) for place, prompt in enumerate(order)) <= 5  # about as they came
    assert all(pq.read_metadata(part).num_rows >= 40 for part in partition.parts()[:-1])


def test_a_top_up_leaves_full_parts_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compaction, "FULL_ROWS", 20)
    partition = written(tmp_path, [[(p, i) for i in range(4)] for p in range(13)])
    compact(partition, KEY, by_prompt=True)
    before = {part.name: part.stat().st_mtime_ns for part in partition.parts()}
    assert len(before) > 2
    more = [score_of(answer(f"p{p}", i, 0.0), "policy", 0.0) for i in (4, 5) for p in range(13)]
    partition.append(SCORES.from_rows(more))
    compact(partition, KEY, by_prompt=True)
    after = {part.name: part.stat().st_mtime_ns for part in partition.parts()}
    assert len(before.items() & after.items()) >= len(before) - 1
    assert len(rows_of(partition)) == 13 * 6
    assert not clustered(partition)  # these prompts have rows in full parts as well: readers sort


def test_prompts_that_are_far_apart_are_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two samplers, one scored after the other: memory does not grow with the number of rows."""
    monkeypatch.setattr(compaction, "FULL_ROWS", 10)
    monkeypatch.setattr(compaction, "MOST_WAITING", 25)
    parts = [[(p, 4 * sampler + i) for i in range(4)] for sampler in range(2) for p in range(50)]
    partition = written(tmp_path, parts)
    held = [rows.num_rows for rows, _ in compaction.merged(partition.parts(), {}, by_prompt=True)]
    assert max(held) <= 25 + 2 * 10 + 4
    compact(partition, KEY, by_prompt=True)
    assert len(rows_of(partition)) == 400


def test_killed_before_the_old_parts_were_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are there twice for a moment; they are read once, and the next command drops them."""
    partition = written(tmp_path, [[(p, i) for p in range(5)] for i in range(3)])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compact(partition, KEY, by_prompt=True)
    assert partition.read().num_rows == 15
    compact(partition, KEY, by_prompt=True)
    assert len(rows_of(partition)) == 15
    assert clustered(partition)
    partition.finish(DONE)


def test_runs_of_a_prompt_go_on_in_the_next_part(tmp_path: Path) -> None:
    def runs(*prompts: str) -> Any:
        return id_prefix64(pl.Series([f"{prompt:0<20}" for prompt in prompts], dtype=pl.String))

    assert is_clustered([])
    assert is_clustered([runs("a", "b"), runs("b"), runs(), runs("b", "c")])
    assert not is_clustered([runs("a", "b"), runs("c", "a")])
    assert not is_clustered([runs("a", "b", "a")])
    assert not is_clustered([runs("a"), runs("b"), runs("a")])
