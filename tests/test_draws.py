"""Draws by key: an id's leading bits are the beginning of the id, however its letters lie in memory."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import ids
from prefdata.keyed_random import RowSetHash, id_prefix64, uniforms

some_ids = st.lists(st.text("0123456789abcdef", min_size=20, max_size=20), max_size=9)


@given(some_ids, st.integers(0, 9))
def test_leading_bits_are_the_first_sixteen_digits(names: list[str], cut: int) -> None:
    series = pl.Series(names, dtype=pl.String)
    wanted = [int(name[:16], 16) for name in names]
    assert id_prefix64(series).tolist() == wanted
    assert id_prefix64(series[cut:]).tolist() == wanted[cut:]
    backwards = np.arange(len(names))[::-1].copy()
    assert id_prefix64(series.gather(backwards)).tolist() == wanted[::-1]
    assert id_prefix64(pl.concat([series, series], rechunk=False)).tolist() == wanted * 2


@pytest.mark.parametrize("name", ["p1", "0" * 19, "0" * 21, "g" * 20, None])
def test_what_is_no_id_is_refused(name: str | None) -> None:
    with pytest.raises(ValueError, match=r"(?i)hexadecimal digit"):
        id_prefix64(pl.Series([ids.digest(1), name, "0" * 21 if name == "0" * 19 else ids.digest(2)]))


def test_a_coin_hangs_on_the_id_the_seed_and_what_it_is_for() -> None:
    names = pl.Series([ids.digest(i) for i in range(1000)])
    coins = uniforms(names, 0, "pair", "all")
    assert np.array_equal(uniforms(names[::-1], 0, "pair", "all")[::-1], coins)
    assert len({*coins, *uniforms(names, 1, "pair", "all"), *uniforms(names, 0, "pair", "first-round")}) == 3000
    assert (coins > 0).all()
    assert (coins < 1).all()


def content(rows: list[tuple[str, float | None]], cuts: int = 1) -> str:
    whole = RowSetHash()
    for start in range(cuts):
        some, part = rows[start::cuts], RowSetHash()
        part.add(
            pl.Series([row for row, _ in some], dtype=pl.String), pl.Series([v for _, v in some], dtype=pl.Float64)
        )
        whole += part
    return whole.id


def test_a_content_is_of_the_rows_and_of_nothing_else() -> None:
    """In any order and cut; another number, another row, one more of the same, or two scores exchanged are another."""
    rows = [(ids.digest(i), float(i % 7)) for i in range(200_000)]
    once = content(rows)
    assert content(rows[::-1]) == content(rows, cuts=3) == once
    others = [
        [*rows[:-1], (rows[-1][0], 99.0)],
        [*rows[:-1], (ids.digest("another"), rows[-1][1])],
        rows[:-1],
        [*rows, rows[-1]],
        [(rows[0][0], rows[1][1]), (rows[1][0], rows[0][1]), *rows[2:]],
    ]
    found = [content(other) for other in others]
    assert len({once, *found}) == len(others) + 1
    name = ids.digest("a")
    assert content([(name, 0.0)]) == content([(name, -0.0)])
    assert content([(name, None)]) == content([(name, float("nan"))]) == content([(name, -float("nan"))])


def test_a_content_is_the_same_in_every_release() -> None:
    """XXH3 (seed 0) of ids, mixed with scores by SplitMix64: the sums of that and of its squares."""
    assert content([(ids.digest(i), i / 3) for i in range(5)]) == "1545d8cc259dfe095cea"
