"""How different answers are, held against the definitions written out plainly."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefdata.stats.text_diversity import distinct, self_bleu, unique_share

ANSWERS = st.lists(st.lists(st.sampled_from("abc"), max_size=7).map(" ".join), min_size=1, max_size=5)
PROMPTS = st.lists(ANSWERS, min_size=1, max_size=3)


def flat(prompts: list[list[str]]) -> tuple[list[str], np.ndarray]:
    return [text for texts in prompts for text in texts], np.repeat(np.arange(len(prompts)), [len(p) for p in prompts])


def grams(text: str, n: int) -> list[tuple[str, ...]]:
    split = text.split()
    return [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]


def plain_bleu(text: str, others: list[str]) -> float:
    length, logs = len(text.split()), []
    for n in range(1, min(4, length) + 1):
        most: Counter = Counter()
        for other in others:
            most |= Counter(grams(other, n))
        matches = (Counter(grams(text, n)) & most).total()
        logs.append(math.log((matches or 0.1) / (length - n + 1)))
    nearest = min((abs(len(o.split()) - length), len(o.split())) for o in others)[1]
    return math.exp(np.mean(logs) + min(0.0, 1 - nearest / length))


def plain_self_bleu(texts: list[str]) -> float:
    texts = [text for text in texts if text.split()]
    if len(texts) < 2:
        return math.nan
    return float(np.mean([plain_bleu(text, texts[:i] + texts[i + 1 :]) for i, text in enumerate(texts)]))


@settings(deadline=None, max_examples=300)
@given(PROMPTS)
def test_self_bleu_is_its_definition(prompts: list[list[str]]) -> None:
    wanted = [plain_self_bleu(texts) for texts in prompts]
    assert self_bleu(*flat(prompts)) == pytest.approx(wanted, nan_ok=True)


@settings(deadline=None)
@given(PROMPTS, st.integers(1, 4))
def test_distinct_is_its_definition(prompts: list[list[str]], n: int) -> None:
    found = [[gram for text in texts for gram in grams(text, n)] for texts in prompts]
    wanted = [len(set(here)) / len(here) if here else math.nan for here in found]
    assert distinct(*flat(prompts), n) == pytest.approx(wanted, nan_ok=True)


@settings(deadline=None)
@given(PROMPTS)
def test_the_unique_share_against_every_subset(prompts: list[list[str]]) -> None:
    found = unique_share(*flat(prompts), [1, 2, 3])
    for texts, row in zip(prompts, found, strict=True):
        for n, share in zip([1, 2, 3], row, strict=True):
            subsets = [len(set(subset)) / n for subset in combinations(texts, n)]
            assert share == pytest.approx(np.mean(subsets) if subsets else math.nan, nan_ok=True)


def test_by_hand() -> None:
    alike = ["the film is good fun", "the film is good fun"]
    assert self_bleu(alike, np.array([0, 0])) == pytest.approx([1])
    assert distinct(alike, np.array([0, 0]), 2) == pytest.approx([4 / 8])
    # Words 3/4, pairs 2/3, triples 1/2, fours 0.1/1, both of four words: (3/4 x 2/3 x 1/2 x 1/10) ^ (1/4).
    assert self_bleu(["a b c d", "a b c e"], np.array([0, 0])) == pytest.approx([0.025**0.25])
    assert unique_share(["A  film", "a film", "another"], np.zeros(3, int), [1, 2, 3])[0] == pytest.approx(
        [1, 5 / 6, 2 / 3]
    )


def test_scripts_without_blanks_have_words() -> None:
    # Four characters each, three of them shared by both: 5 different of 8.
    assert distinct(["好的电影", "好的电视"], np.array([0, 0]), 1) == pytest.approx([5 / 8])


def test_nothing_to_compare() -> None:
    assert math.isnan(self_bleu(["one answer alone"], np.array([0]))[0])
    assert math.isnan(self_bleu(["...", "!!"], np.array([0, 0]))[0])
    assert math.isnan(distinct(["", "one"], np.array([0, 0]), 2)[0])
    assert self_bleu([], np.array([], dtype=int)).shape == (0,)
