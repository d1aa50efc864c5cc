"""Stop texts: which one ends an answer, and finding it while tokens come."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prefdata.chat.encoder import Chat
from prefdata.engines.protocol import Sampling
from prefdata.engines.stop_strings import StopStrings, before_stop


@pytest.fixture(scope="module")
def texts(tiny_policy):
    return StopStrings(Chat.load(tiny_policy, name="tiny"), 260)


@pytest.mark.parametrize(
    ("text", "stop", "before"),
    [
        ("one. two.", (".",), "one"),
        ("one. two", ("three",), None),
        ("one\n\nHuman: two", ("Human:", "\n\n"), "one"),
        ("abcd", ("abcd", "bc"), "a"),  # "bc" is complete first
        ("xabc", ("bc", "abc"), "x"),  # complete at once: the longer
        ("xabc", ("abc", "bc"), "x"),
        ("text", ("",), None),
        ("text", (), None),
        (".rest", (".",), ""),
        ("Größe? 🎬!", ("🎬",), "Größe? "),
    ],
)
def test_the_text_before_the_stop_text_that_is_complete_first(text, stop, before):
    assert before_stop(text, stop) == before


def test_only_what_ends_past_a_place_counts():
    assert before_stop("a.b.c", (".",), past=0) == "a"
    assert before_stop("a.b.c", (".",), past=1) == "a"  # it ends after the second character
    assert before_stop("a.b.c", (".",), past=2) == "a.b"
    assert before_stop("a--b", ("--",), past=2) == "a"  # it begins before, and ends after
    assert before_stop("a--b", ("--",), past=3) is None


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3))
def test_character_by_character_is_the_same_as_at_once(text, stop):
    """The definition by brute force: the first prefix that ends with a stop text, less the longest such."""
    expected = None
    for end in range(len(text) + 1):
        done = [one for one in stop if text[:end].endswith(one)]
        if done:
            expected = text[: end - max(map(len, done))]
            break
    assert before_stop(text, stop) == expected


def test_a_token_is_suspect_where_it_can_complete_a_text(texts):
    suspects = texts.suspects(("xy", "ö"))
    encode = texts._chat.tokenizer.encode
    (y,), (x,) = encode("y", add_special_tokens=False), encode("x", add_special_tokens=False)
    first, second = encode("ö", add_special_tokens=False)
    assert (suspects[y], suspects[x]) == (True, False)
    assert suspects[first]  # a part of a character: who knows of which
    assert suspects[second]
    assert not suspects[2]  # an end token has no text


def test_pieces_keep_spaces_and_cover_the_models_tokens(texts):
    chat = texts._chat
    pieces = chat.pieces(300)
    assert len(pieces) == 300
    (space,) = chat.tokenizer.encode(" ", add_special_tokens=False)
    assert pieces[space] == " "
    assert pieces[260:] == [""] * 40


@given(
    st.text("ab🎬ö.", max_size=10), st.sampled_from([("🎬",), ("ö.", "b"), ("ab",), (".", "🎬ö")]), st.integers(0, 6)
)
def test_watching_token_by_token_finds_what_reading_everything_finds(tiny_chat, text, stop, min_tokens):
    texts = StopStrings(tiny_chat, 260)
    ids = tiny_chat.tokenizer.encode(text, add_special_tokens=False)
    how = Sampling(1.0, 1.0, 0, 99, stop=stop, min_tokens=min_tokens)
    watch = texts.watch([Sampling(1.0, 1.0, 0, 99), how], torch.device("cpu"))
    rows = torch.tensor([ids, ids])
    found = None
    for length in range(1, len(ids) + 1):
        ended = watch.ended(torch.tensor([0, 1]), rows[:, length - 1], rows, length)
        assert not ended[0]  # without stop texts of its own
        if ended[1]:
            found = length
            break
    reading = (n for n in range(1, len(ids) + 1) if texts.cut(ids[:n], stop, min_tokens) is not None)
    assert found == next(reading, None)
    if found is not None:
        assert found > min_tokens


@pytest.fixture(scope="module")
def tiny_chat(tiny_policy):
    return Chat.load(tiny_policy, name="tiny")


def test_no_stop_texts_no_watch(texts):
    assert texts.watch([Sampling(1.0, 1.0, 0, 9), Sampling(1.0, 1.0, 0, 9, stop=("",))], torch.device("cpu")) is None


def test_texts_that_end_within_the_first_tokens_do_not_count(texts):
    ids = texts._chat.tokenizer.encode("a.b.c", add_special_tokens=False)
    assert texts.cut(ids, (".",), 0) == "a"
    assert texts.cut(ids, (".",), 1) == "a"
    assert texts.cut(ids, (".",), 2) == "a.b"
    assert texts.cut(ids[:2], (".",), 2) is None
