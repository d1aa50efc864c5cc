"""Diversity of the responses to a prompt: pure functions on texts, one value per prompt, all prompts at once.

`texts` are the responses of all prompts one after the other, `prompt` the number of each one's prompt, shape (texts,),
from 0. The values of a prompt change with the number of its responses: compare equal numbers only. Words are letters
and digits, case folded; a character each in scripts without blanks (`prefdata.stats.words.words`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefdata.stats.words import normalised, words

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ORDERS = 4
"""The longest n-grams of self-BLEU, in words."""

NO_MATCH = 0.1
"""Matches that count for a self-BLEU precision without any (Chen and Cherry 2014, smoothing 1)."""


def unique_share(texts: Sequence[str], prompt: Ints, ns: Sequence[int]) -> Floats:
    """Return the expected share of different texts among n responses of a prompt, (P, K); NaN where it has fewer.

    A text shared by c of the N responses is missed by C(N-c, n) of the C(N, n) subsets (rarefaction, Hurlbert 1971).
    Texts that differ only in case, blanks or Unicode form are the same.
    """
    sizes = np.bincount(prompt)
    codes = np.unique(np.array([normalised(text) for text in texts], dtype=object), return_inverse=True)[1]
    pairs, copies = np.unique(np.stack([prompt, codes]), axis=1, return_counts=True)
    kinds, kind = np.unique(np.stack([sizes[pairs[0]], copies]), axis=1, return_inverse=True)
    made = np.full((sizes.size, len(ns)), np.nan)
    for column, n in enumerate(ns):
        met = np.array([1 - _missed(total, count, n) for total, count in kinds.T.tolist()])[kind]
        enough = sizes >= n
        made[enough, column] = np.bincount(pairs[0], weights=met, minlength=sizes.size)[enough] / n
    return made


def distinct(texts: Sequence[str], prompt: Ints, order: int) -> Floats:
    """Distinct-n of each prompt's responses together (Li et al. 2016), shape (P,): different n-grams over all of them.

    NaN where no response has `order` words.
    """
    prompts = int(prompt.max(initial=-1)) + 1
    gram, text = _grams(*_encode(texts), order)
    place = prompt[text]
    different = np.unique(np.stack([place, gram]), axis=1)[0]
    counts = np.bincount(place, minlength=prompts).astype(np.float64)
    found = np.bincount(different, minlength=prompts)
    share: Floats = np.divide(found, counts, out=np.full(prompts, np.nan), where=counts > 0)
    return share


def self_bleu(texts: Sequence[str], prompt: Ints) -> Floats:
    """Self-BLEU of each prompt's responses (Zhu et al. 2018), shape (P,): 1 if all are equal, near 0 if all differ.

    The mean BLEU of each response with all the others of its prompt as references: the geometric mean of the clipped
    precisions of 1 to 4 words, times exp(1 - r/c) if the response is shorter than the nearest length r of the others.
    A response of fewer than four words has as many precisions as words; a precision without a match counts `NO_MATCH`
    matches. Responses without words are left out; NaN where fewer than two have words.
    """
    prompts = int(prompt.max(initial=-1)) + 1
    codes, text_of_word = _encode(texts)
    lengths = np.bincount(text_of_word, minlength=len(texts))
    logs, orders = np.zeros(len(texts)), np.zeros(len(texts))
    for order in range(1, ORDERS + 1):
        grams = np.maximum(lengths - order + 1, 0)
        matches = _clipped_matches(*_grams(codes, text_of_word, order), prompt, len(texts))
        there = grams > 0
        logs[there] += np.log(np.maximum(matches[there], NO_MATCH) / grams[there])
        orders += there
    some = lengths > 0
    reference = _nearest_length(lengths, prompt)
    counted = some & np.isfinite(reference)
    shorter = np.minimum(0.0, 1 - reference[counted] / lengths[counted])
    bleu = np.exp(logs[counted] / orders[counted] + shorter)
    summed = np.bincount(prompt[counted], weights=bleu, minlength=prompts)
    counts = np.bincount(prompt[counted], minlength=prompts)
    mean: Floats = np.divide(summed, counts, out=np.full(prompts, np.nan), where=counts > 0)
    return mean


def _missed(total: int, copies: int, n: int) -> float:
    return math.comb(total - copies, n) / math.comb(total, n) if n <= total else 0.0


def _encode(texts: Sequence[str]) -> tuple[Ints, Ints]:
    """Return the words of all texts as numbers, and the number of each one's text."""
    known: dict[str, int] = {}
    split = [[known.setdefault(word, len(known)) for word in words(text)] for text in texts]
    lengths = np.array([len(one) for one in split], np.int64)
    codes = np.array([code for one in split for code in one], np.int64)
    return codes, np.repeat(np.arange(len(texts)), lengths)


def _grams(codes: Ints, text: Ints, order: int) -> tuple[Ints, Ints]:
    """Every n-gram as a number, equal for equal ones, and the number of its text."""
    vocabulary = int(codes.max(initial=0)) + 1
    grams = codes
    for step in range(1, order):
        longer = grams[: max(len(codes) - step, 0)] * vocabulary + codes[step:]
        grams = np.unique(longer, return_inverse=True)[1]  # dense again, so that the next product stays small
    within = text[: len(grams)] == text[len(text) - len(grams) :]
    return grams[within], text[: len(grams)][within]


def _clipped_matches(gram: Ints, text: Ints, prompt: Ints, texts: int) -> Floats:
    """For each text, how many of its n-grams its prompt's others have, each as often as one of them at most."""
    (place, kind, who), count = np.unique(np.stack([prompt[text], gram, text]), axis=1, return_counts=True)
    order = np.lexsort([count, kind, place])
    place, kind, who, count = place[order], kind[order], who[order], count[order]
    last = np.ones(count.size, bool)  # of its prompt and n-gram: the text that has it most often
    last[:-1] = (place[1:] != place[:-1]) | (kind[1:] != kind[:-1])
    run = np.cumsum(last) - last
    most = count[last][run]
    second = np.zeros(count.size, np.int64)
    second[1:] = np.where(last[:-1], 0, count[:-1])
    others = np.where(last, second, most)
    return np.bincount(who, weights=np.minimum(count, others), minlength=texts).astype(np.float64)


def _nearest_length(lengths: Ints, prompt: Ints) -> Floats:
    """For each text with words, the nearest length of its prompt's others, the shorter of two; inf without others."""
    made = np.full(lengths.size, np.inf)
    order = np.lexsort([lengths, prompt])
    order = order[lengths[order] > 0]
    size, place = lengths[order].astype(np.float64), prompt[order]
    below, above = np.full(order.size, np.inf), np.full(order.size, np.inf)
    same = place[1:] == place[:-1]
    below[1:][same], above[:-1][same] = size[:-1][same], size[1:][same]
    made[order] = np.where(np.abs(size - below) <= np.abs(above - size), below, above)
    return made
