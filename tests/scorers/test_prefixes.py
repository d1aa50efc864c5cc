"""Planning: which rows share a beginning, and batches of little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from prefdata.scorers.classifier.prefixes import batches, group_batches, prefix_groups
from prefdata.scorers.classifier.rendering import RenderedText

BEGINNING = list(range(20))


def row(ids: list[int], prompt: int = 0) -> RenderedText:
    return RenderedText(str(ids), ids, prompt, [str(ids)])


def test_a_family_is_the_longest_common_beginning():
    (family,), whole = prefix_groups([row([*BEGINNING, 7, 8]), row([*BEGINNING, 7]), row([*BEGINNING, 7, 9, 9])])
    assert whole == []
    assert family.prefix == BEGINNING  # the shortest row keeps its last token, at which its score is read
    assert [ids for _, ids in family.branches] == [[7, 8], [7], [7, 9, 9]]


def test_rows_that_save_too_little_are_computed_whole():
    rows = [row([1, 2, 3], 0), row([1, 2, 4], 0), row([*BEGINNING, 1], 1), row([5], 2), row([5, 6], 2)]
    found, whole = prefix_groups(rows)
    assert found == []
    assert whole == rows


lengths = st.lists(st.integers(1, 60), max_size=60)


@given(lengths, st.integers(1, 500), st.integers(0, 40))
def test_batches_hold_everything_once_within_the_budget(found, budget, beside):
    made = list(batches(list(enumerate(found)), lambda one: one[1], budget, beside))
    assert sorted(one for batch in made for one in batch) == list(enumerate(found))
    for batch in made:
        assert len(batch) == 1 or len(batch) * (batch[0][1] + beside) <= budget
        assert [length for _, length in batch] == sorted((length for _, length in batch), reverse=True)


@given(st.lists(st.integers(1, 30), max_size=30), st.integers(1, 50))
def test_chunks_hold_every_family_once(found, budget):
    made = prefix_groups([row([*range(100, 100 + n), k, k], p) for p, n in enumerate(found) for k in range(17)])[0]
    parts = list(group_batches(made, budget))
    assert sorted(len(f.prefix) for part in parts for f in part) == sorted(len(f.prefix) for f in made)
    assert all(len(part) == 1 or len(part) * len(part[0].prefix) <= 4 * budget for part in parts)


def test_mixed_lengths_have_little_padding():
    found = [5 + (i * 37) % 90 for i in range(2000)]
    made = list(batches(found, lambda n: n, 2048))
    computed = sum(len(batch) * batch[0] for batch in made)
    assert 1 - sum(found) / computed < 0.02
    assert len(made) < 200
