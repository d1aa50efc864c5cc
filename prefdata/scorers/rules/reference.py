"""Similarity of a response to a reference: exact match, ROUGE-L, and SLiC's F over spans of hidden states."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from prefdata import ids
from prefdata.scorers.protocol import Score, ScoringItem
from prefdata.stats.words import normalised, words

SPANS = (1, 2, 4, 8)
"""Lengths of spans that SLiC compares (2210.00045)."""


class ReferenceScorer:
    """A Scorer that compares a response with the prompt's reference; see `prefdata.scorers.protocol.Scorer`.

    No score: `no_reference` where there is none, `empty_reference` where it has no words.
    """

    outputs: tuple[str, ...] = ("",)

    def __init__(self, measure: Callable[[str, str], float]) -> None:
        """Create a scorer on `exact_match` or `rouge_l`, or any measure of (response, reference)."""
        self.versions = {"python": ".".join(map(str, sys.version_info[:3])), "unicode": unicodedata.unidata_version}
        self._measure = measure

    def score(self, items: Iterable[ScoringItem]) -> Iterator[Score]:
        """Score every item, in order. The text's hash is that of the response alone."""
        for item in items:
            reference, score, reason = item.reference, None, None
            if reference is None:
                reason = "no_reference"
            elif not normalised(reference):
                reason = "empty_reference"
            else:
                score = self._measure(item.response, reference)
            yield Score(item.key, score, reason, ids.text_hash(item.response), None)

    def close(self) -> None:
        """Nothing to free."""


def exact_match(answer: str, reference: str) -> float:
    """1 where the two are equal once normalised (`normalised`), else 0. Punctuation counts."""
    return float(normalised(answer) == normalised(reference))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, not stemmed; 0 where either text has no words."""
    a, b = words(answer), words(reference)
    common = longest_common_subsequence(a, b)
    return 2 * common / (len(a) + len(b)) if common else 0.0  # 2PR / (P + R) with P = c / |a|, R = c / |b|


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length. A row of the dynamic program is one integer, a bit an item of `a` (Hyyrö 2004): n * m / 64 steps."""
    places: dict[str, int] = {}
    for place, item in enumerate(a):
        places[item] = places.get(item, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every  # a zero bit: the common subsequence grows at this item
    for item in b:
        if here := row & places.get(item, 0):
            row = (row + here | row - here) & every
    return len(a) - row.bit_count()


def span_f(answer: NDArray[np.floating], target: NDArray[np.floating], spans: Sequence[int] = SPANS) -> float:
    """SLiC's similarity of two texts by their hidden states: the sum over span lengths of `span_f_at`.

    A length that either text does not reach adds nothing: the most that a response can have depends on its reference.

    Args:
        answer: a state a token, shape (T, d).
        target: the same of the reference, shape (U, d).
        spans: numbers of tokens.
    """
    return sum(span_f_at(answer, target, n) for n in spans)


def span_f_at(answer: NDArray[np.floating], target: NDArray[np.floating], n: int) -> float:
    """Return the F-measure of all spans of `n` tokens, in [0, 1].

    Precision is the mean over the response's spans of the highest cosine with a span of the target, recall the reverse;
    a span is its states side by side. 0 where either text is shorter than `n`, or a mean is not above 0.
    """
    if min(len(answer), len(target)) < n:
        return 0.0
    a, b = np.asarray(answer, np.float64), np.asarray(target, np.float64)
    rows, columns = len(a) - n + 1, len(b) - n + 1
    product = a @ b.T
    # The product of two spans is a sum along the diagonal of the product of the states.
    dots = sum(product[k : k + rows, k : k + columns] for k in range(n))
    lengths = [np.sqrt(np.convolve((x * x).sum(axis=1), np.ones(n), "valid")) for x in (a, b)]
    norms = np.outer(*lengths)
    cosines = np.divide(dots, norms, out=np.zeros_like(norms), where=norms > 0)
    precision, recall = float(cosines.max(axis=1).mean()), float(cosines.max(axis=0).mean())
    return 2 * precision * recall / (precision + recall) if min(precision, recall) > 0 else 0.0


MEASURES: dict[str, Callable[[str, str], float]] = {"exact": exact_match, "rouge-l": rouge_l}
"""What a `ReferenceScorer` measures, by the name that a person gives."""
