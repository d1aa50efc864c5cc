"""Diversity: the greedy rule by hand, both distances, and files of embeddings that are not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_runs import kept, pool

from prefdata.errors import InputError
from prefdata.selections.diverse import Distance, spread
from prefdata.selections.select import select_from
from prefdata.specs import SelectSpec


def words(*texts: str) -> np.ndarray:
    return Distance().between(pl.DataFrame({"text": list(texts)}))


def test_words_are_pairs_of_words() -> None:
    """{a b, b c, c d} and {b c, c d, d e}: two of four are shared, 1 - 2/4."""
    between = words("a b c d", "B C  D e", "x y")
    assert between[0, 1] == pytest.approx(0.5)
    assert between[0, 2] == 1.0
    assert np.allclose(np.diag(between), 0)


def test_answers_of_one_word_or_of_none() -> None:
    between = words("yes", "YES", "no", "", "")
    assert between[0, 1] == 0.0
    assert between[0, 2] == between[0, 3] == 1.0
    assert between[3, 4] == 0.0


def test_emoji_and_other_scripts_are_words_as_well() -> None:
    between = words("😀 😀 b", "😀 b", "我 很 好")
    assert between[0, 1] == pytest.approx(0.5)  # {😀😀, 😀b} and {😀b}
    assert between[0, 2] == 1.0
    # Seven characters make six pairs, of which the shorter text has the first four.
    between = words("とても良い映画", "とても良い", "つまらない。", "とても良い映画！")
    assert between[0, 1] == pytest.approx(1 - 4 / 6)
    assert between[0, 2] == 1.0
    assert between[0, 3] == 0.0  # punctuation is no word
    assert words("😀😀", "😀🎬")[0, 1] == 1.0
    assert words("Straße!", "STRASSE")[0, 1] == 0.0


def test_the_greedy_order_by_hand() -> None:
    """Merits (1, .9, 0); d(0, 1) = 0, d(0, 2) = d(1, 2) = 1. With w = .3, .7 * .9 = .63 is more than .3 * 1, with .5,
    .5 * 1 is more than .5 * .9; with 0 it is by score, with 1 by distance.
    """
    scores, distances = np.array([10.0, 9.0, 0.0]), np.array([[0, 0, 1], [0, 0, 1], [1, 1, 0]], float)
    assert spread(scores, distances, 3, 0.3) == [0, 1, 2]
    assert spread(scores, distances, 3, 0.5) == [0, 2, 1]
    assert spread(scores, distances, 2, 0.0) == [0, 1]
    assert spread(scores, distances, 2, 1.0) == [0, 2]
    assert spread(np.zeros(3), distances, 9, 0.5) == [0, 2, 1]  # all score the same: the earlier draw, then far from it
    assert spread(np.zeros(1), np.zeros((1, 1)), 3, 0.5) == [0]


def test_top_k_far_apart() -> None:
    texts = [["a b c d", "a b c d e", "x y z", "a b c"], ["one"]]
    frame = pool([[4.0, 3.9, 3.0, 2.0], [1.0]], texts=texts)
    assert kept(frame, method="top-k", k=2)[0] == ["0-0", "0-1", "1-0"]
    names, dropped = kept(frame, method="top-k", k=2, diverse=0.7)
    assert names == ["0-0", "0-2", "1-0"]
    assert dropped == {"not_selected": 2}


@settings(max_examples=40, deadline=None)
@given(
    texts=st.lists(st.lists(st.text("ab ", max_size=8), min_size=1, max_size=6), min_size=1, max_size=4),
    weight=st.sampled_from([0.1, 0.5, 1.0]),
    k=st.integers(1, 7),
)
def test_k_of_n_best_first_and_the_order_of_rows_changes_nothing(texts, weight: float, k: int) -> None:
    frame = pool([[float(len(t)) for t in row] for row in texts], texts=texts)
    spec = SelectSpec(method="top-k", k=k, diverse=weight, duplicates="keep")
    rows, account = select_from(frame, spec)
    assert rows.height == sum(min(k, len(row)) for row in texts)
    assert account.rows_in == account.rows_out + sum(account.dropped.values())
    first = rows.filter(pl.col("rank") == 1)
    assert first["score"].to_list() == [max(map(len, row)) for row in texts]
    shuffled = select_from(frame.sample(fraction=1, shuffle=True, seed=2), spec)[0]
    assert shuffled.sort("prompt_id", maintain_order=True).equals(rows)


def embeddings(path: Path, frame: pl.DataFrame, vectors: list[list[float | None] | None]) -> str:
    frame.select("candidate_id").with_columns(embedding=pl.Series(vectors)).write_parquet(path)
    return str(path)


def by_embedding(file: str) -> SelectSpec:
    return SelectSpec(method="top-k", k=2, diverse=0.9, distance="embedding", embeddings=file)


def test_distance_of_embeddings_is_one_minus_the_cosine(tmp_path: Path) -> None:
    frame = pool([[3.0, 2.0, 1.0]])
    file = embeddings(tmp_path / "e.parquet", frame, [[1.0, 0.0], [5.0, 0.0], [1.0, 1.0]])
    distance = Distance.of(by_embedding(file))
    between = distance.between(frame)
    assert between[0, 1] == pytest.approx(0.0)
    assert between[0, 2] == pytest.approx(1 - math.sqrt(0.5))
    rows, _ = select_from(frame, by_embedding(file), distance=distance)
    # .9 * .293 is more than .1 * .5: the third and not the second
    assert rows["score"].to_list() == [3.0, 1.0]


def test_the_id_of_embeddings_is_their_content(tmp_path: Path) -> None:
    frame = pool([[3.0, 2.0]])
    one = Distance.of(by_embedding(embeddings(tmp_path / "e.parquet", frame, [[1.0], [2.0]]))).parents
    turned = Distance.of(by_embedding(embeddings(tmp_path / "e.parquet", frame.reverse(), [[2.0], [1.0]]))).parents
    assert one == turned
    assert one != Distance.of(by_embedding(embeddings(tmp_path / "e.parquet", frame, [[1.0], [-2.0]]))).parents


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0, 2.0], [1.0]], "not of one length"),
        ([[1.0, 2.0], None], "not of one length"),
        ([[1.0, 2.0], [None, 1.0]], "1 of 2 embeddings hold null, NaN or infinity"),
        ([[1.0, 2.0], [math.nan, 1.0]], "1 of 2 embeddings"),
        (["a", "b"], "a list of numbers"),
        ([[1.0, 2.0], [0.0, 0.0]], "1 of 2 embeddings are of no length"),
        ([[], []], "2 of 2 embeddings are of no length"),
    ],
)
def test_embeddings_that_are_none(tmp_path: Path, vectors, message: str) -> None:
    file = embeddings(tmp_path / "e.parquet", pool([[1.0, 2.0]]), vectors)
    with pytest.raises(InputError, match=message):
        Distance.of(by_embedding(file))


def test_two_embeddings_of_one_candidate(tmp_path: Path) -> None:
    frame = pool([[1.0, 2.0]])
    twice = pl.concat([frame, frame.head(1)])
    file = embeddings(tmp_path / "e.parquet", twice, [[1.0], [2.0], [-1.0]])
    with pytest.raises(InputError, match=f"several embeddings of candidate {frame['candidate_id'][0]}"):
        Distance.of(by_embedding(file))


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("hello")
    pl.DataFrame({"id": ["a"]}).write_parquet(tmp_path / "columns.parquet")
    for name in ("absent", "text", "columns"):
        with pytest.raises(InputError, match=r"should be a Parquet file"):
            Distance.of(by_embedding(str(tmp_path / f"{name}.parquet")))


def test_a_candidate_without_an_embedding(tmp_path: Path) -> None:
    frame = pool([[1.0, 2.0]])
    file = embeddings(tmp_path / "e.parquet", frame.head(1), [[1.0]])
    with pytest.raises(InputError, match=frame["candidate_id"][1]):
        select_from(frame, by_embedding(file))
