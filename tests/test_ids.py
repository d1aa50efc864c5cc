"""Ids are a published contract: their byte layout is pinned here."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata import ids

GOLDEN = json.loads((Path(__file__).parent / "golden" / "ids.json").read_text("utf-8"))


@pytest.mark.parametrize("vector", GOLDEN["canonical_json"])
def test_canonical_json(vector) -> None:
    assert ids.canonical_json(vector["value"]).decode("utf-8", "surrogatepass") == vector["text"]


def test_golden_ids() -> None:
    """Each id is the first 20 digits of sha256 of the canonical JSON written out in the vectors' `hashed`."""
    for vector in GOLDEN["ids"]:
        made = getattr(ids, vector["function"])(*vector["arguments"])
        assert made == hashlib.sha256(vector["hashed"].encode()).hexdigest()[:20], vector["function"]
        assert made == vector["id"]


def test_golden_seed() -> None:
    """The first 8 bytes of sha256('[7,"p",0]'), big-endian, without the last 11 bits."""
    wanted = int.from_bytes(hashlib.sha256(b'[7,"p",0]').digest()[:8], "big") >> 11
    assert ids.seed(7, "p", 0) == wanted == 2704347542191681
    assert 0 < ids.unit_uniform(7, "p", 0) < 1


def test_seeds_of_neighbours_do_not_run_together() -> None:
    seeds = [ids.seed(s, "p", i) for s in range(3) for i in range(50)]
    assert len(set(seeds)) == 150
    assert min(abs(a - b) for a in seeds for b in seeds if a != b) > 1000


def test_a_lone_surrogate_is_kept() -> None:
    assert ids.text_hash("\ud83d") != ids.text_hash("?")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        ids.canonical_json({"score": value})


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_the_order_of_keys_does_not_matter(value) -> None:
    assert ids.digest(value) == ids.digest(dict(reversed(value.items())))


@given(st.text(), st.text())
def test_equal_ids_mean_equal_texts(a: str, b: str) -> None:
    assert (ids.text_hash(a) == ids.text_hash(b)) == (a == b)


def test_roles_and_boundaries_matter() -> None:
    one = ids.prompt_id([{"role": "user", "content": "ab"}])
    two = ids.prompt_id([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}])
    three = ids.prompt_id([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}])
    assert len({one, two, three, ids.prompt_id([{"role": "user", "content": "ab"}], "[]")}) == 4


def test_the_key_of_a_text() -> None:
    """The first 8 bytes of sha256('a b'), big-endian, signed; white space around and between words is nothing to it."""
    wanted = int.from_bytes(hashlib.sha256(b"a b").digest()[:8], "big", signed=True)
    assert ids.text_key(" a \t\n\u3000b\x1c") == wanted == -4005817690909479214
    assert ids.text_key(None) == ids.text_key("") == ids.text_key(" \u00a0") != ids.text_key("ab")
    assert ids.chars(" a \t b\n") == 5
    assert ids.chars(None) == ids.chars("\u2003") == 0
    assert ids.chars("👩‍👩‍👧 \ud83d") == 7  # code points; half an emoji is one too


@given(st.lists(st.text(max_size=4), min_size=1, max_size=4), st.sampled_from([" ", "\n\n", "\x85", "\u2009\t"]))
def test_white_space_of_any_kind_is_one_space(words: list[str], blank: str) -> None:
    assert ids.text_key(blank.join(words)) == ids.text_key(" ".join(words))
