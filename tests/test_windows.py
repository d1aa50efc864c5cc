"""Windows: two streams are cut so that prompts stay whole, wherever their rows lie; mostly few are scattered."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata import ids
from prefdata.draws import leading_bits
from prefdata.pools import windows as module
from prefdata.pools.parts import Part, Stream, read
from prefdata.pools.sieve import Sieve
from prefdata.pools.windows import Windows, windows_of
from prefdata.store import Run

Rows = list[list[int]]
"""Parts of rows, each given by the number of its prompt."""


def name(prompt: int) -> str:
    return ids.digest(["prompt", prompt])


def written(folder: Path, stream: Rows) -> list[Part]:
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for number, prompts in enumerate(stream):
        rows = pl.DataFrame({"prompt_id": [name(p) for p in prompts]}, schema={"prompt_id": pl.String})
        path = folder / f"part-{number:05d}.parquet"
        pq.write_table(rows.to_arrow(), path, row_group_size=7)
        parts.append(Part(Run(folder).partition("scores", "reward"), path, rows.height))
    return parts


def in_parts(rows: list[int], size: int) -> Rows:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def frames(parts: list[Part], order: list[int], ends: np.ndarray) -> list[pl.DataFrame]:
    stream, empty = Stream(parts, order), pl.DataFrame(schema={"prompt_id": pl.String})
    spans = [list(stream.between(*span)) for span in itertools.pairwise([0, *ends.tolist()])]
    return [pl.concat([empty, *(read(some, ["prompt_id"], rows) for some, rows in span)]) for span in spans]


def laid(folder: Path, first: Rows, second: Rows, rows: int) -> tuple[Windows | None, list[tuple[set[str], ...]]]:
    """The windows, and the prompts that lie in each of them, in the one stream and in the other."""
    streams = written(folder / "first", first), written(folder / "second", second)
    found = windows_of(*streams, rows)
    if found is None:
        return None, []
    cuts = [frames(parts, order, ends) for parts, order, ends in zip(streams, found.order, found.ends, strict=True)]
    for frame, stream in zip(cuts, (first, second), strict=True):  # nothing is lost, nothing comes twice
        assert sorted(pl.concat(frame)["prompt_id"]) == sorted(name(p) for part in stream for p in part)
    return found, [tuple(set(frame["prompt_id"]) for frame in both) for both in zip(*cuts, strict=True)]


def scattered(found: Windows) -> set[int]:
    return set(found.scattered.tolist())


@settings(max_examples=120, deadline=None)
@given(
    first=st.lists(st.lists(st.integers(0, 12), max_size=9), min_size=1, max_size=6),
    second=st.lists(st.lists(st.integers(0, 12), max_size=9), min_size=1, max_size=6),
    rows=st.integers(1, 20),
)
def test_who_is_not_scattered_has_all_rows_in_one_window(
    first: Rows, second: Rows, rows: int, tmp_path_factory
) -> None:
    found, lies = laid(tmp_path_factory.mktemp("w"), first, second, rows)
    if found is None:
        return
    for prompt in {p for stream in (first, second) for part in stream for p in part}:
        where = {number for number, both in enumerate(lies) for one in both if name(prompt) in one}
        far = int(leading_bits(pl.Series([name(prompt)]))[0]) in scattered(found)
        assert far == (len(where) > 1)


def drawn(prompts: int, each: int) -> list[int]:
    return [p for p in range(prompts) for _ in range(each)]


def jittered(rows: list[int], by: int, seed: int) -> list[int]:
    """Rows that ended a little sooner or later than they began."""
    dice = random.Random(seed)
    return [row for _, row in sorted((place + dice.randrange(by), row) for place, row in enumerate(rows))]


LAYOUTS = {
    "the same order, other parts": (in_parts(drawn(400, 4), 130), in_parts(drawn(400, 4), 90)),
    "as answers ended, and as they were scored": (
        in_parts(jittered(drawn(400, 4), 40, 1), 100), in_parts(jittered(drawn(400, 4), 40, 2), 70),
    ),
    "two samplers, scored one after the other": (
        in_parts(drawn(400, 4) * 2, 50), in_parts(drawn(400, 4), 60) + in_parts(drawn(400, 4), 35),
    ),
    "n was raised": (in_parts(drawn(400, 4) + drawn(400, 2), 50), in_parts(drawn(400, 4) + drawn(400, 2), 40)),
    "more prompts came": (in_parts(drawn(300, 4) + [p + 300 for p in drawn(300, 4)], 100), in_parts(drawn(600, 4), 80)),
    "half of them scored": (in_parts([p for p in drawn(400, 4) if p % 2], 50), in_parts(drawn(400, 4), 100)),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_of_what_lies_near_each_other_few_are_scattered(tmp_path: Path, layout: str) -> None:
    first, second = LAYOUTS[layout]
    found, lies = laid(tmp_path, first, second, 500)
    assert found is not None
    prompts = {p for part in second for p in part}
    assert len(lies) > 1
    assert len(found.scattered) < 0.25 * len(prompts)
    for rows in (first, second):
        frame = pl.DataFrame({"prompt_id": [name(p) for part in rows for p in part]})
        near, far = found.apart(frame)
        assert near.height + far.height == frame.height
        assert set(leading_bits(far["prompt_id"]).tolist()) <= scattered(found)
        assert not set(leading_bits(near["prompt_id"]).tolist()) & scattered(found)


def test_in_step_one_stream_tells_for_both_unless_a_prompt_would_be_cut(tmp_path: Path) -> None:
    for name, rows, alone in (("whole", drawn(400, 4), True), ("again", [*drawn(400, 4), 7], False)):
        first, second = (
            written(tmp_path / name / side, in_parts(rows, size)) for side, size in (("a", 130), ("b", 90))
        )
        found = windows_of(first, second, 500, in_step=True)
        assert found is not None
        assert found.in_step == alone
        assert scattered(found) == (
            set() if alone else set(leading_bits(pl.Series([ids.digest(["prompt", 7])])).tolist())
        )
        if alone:
            assert (found.ends[0] == found.ends[1]).all()
            assert not (found.ends[0] % 4).any()


def test_what_lies_by_turns_has_no_windows(tmp_path: Path) -> None:
    turns = in_parts(list(range(300)) * 4, 100)
    assert laid(tmp_path, turns, turns, 200)[0] is None


def test_a_few_rows_are_one_window(tmp_path: Path) -> None:
    found, lies = laid(tmp_path, [[1, 2, 1]], [[2], [1, 1]], 3)
    assert found is not None
    assert len(lies) == 1
    assert not len(found.scattered)
    assert laid(tmp_path / "none", [], [[1, 2, 3, 4]], 3)[0] is None


def test_too_many_prompts_to_keep_in_mind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = in_parts(drawn(100, 2), 20)
    assert laid(tmp_path / "a", stream, stream, 50)[0] is not None
    monkeypatch.setattr(module, "MOST_PLACES", 99)
    assert laid(tmp_path / "b", stream, stream, 50)[0] is None


@settings(max_examples=30, deadline=None)
@given(wanted=st.sets(st.integers(0, 500)), others=st.sets(st.integers(501, 1500)))
def test_a_sieve_lets_through_what_was_asked_for(wanted: set[int], others: set[int]) -> None:
    def rows(numbers: set[int]) -> pl.DataFrame:
        return pl.DataFrame({"candidate_id": [name(n) for n in numbers]}, schema={"candidate_id": pl.String})

    sieve = Sieve(len(wanted))
    sieve.put(rows(wanted))
    assert sieve.sift(rows(wanted)).height == len(wanted)
    passed = sieve.sift(rows(wanted | others))
    assert set(passed["candidate_id"]) >= {name(n) for n in wanted}
    assert passed.height - len(wanted) <= 10 + len(others) / 4
