"""The selection rules: scores in, ranks out. Pure functions, for all prompts at once.

Two things are called rejection sampling in the literature, and here they have their own names: `best-of-n` keeps the
highest score (Llama 2, 2307.09288, section 3.2.2), `rso` and `rso-algorithm1` accept candidates with a probability that
grows with their reward (statistical rejection sampling, RSO, 2309.06657).

The distributions of the two RSO rules differ. Let w = exp(r / beta).

- `rso`: draw from what remains, accept with exp((r - max) / beta), remove, repeat. The accepted sequence follows the
  Plackett-Luce distribution with weights w, which is what the k largest of r / beta + Gumbel noise follow.
- `rso-algorithm1`: the paper's Algorithm 1. It sweeps the remaining candidates in list order, each accepted with
  exp((r - max of the remaining) / beta), stops at the k-th, and removes the accepted after the sweep. It depends on
  the list's order; the order is that of generation, or random with `shuffle`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.keyed_random import gumbels, uniforms
from prefdata.specs import SelectSpec
from prefdata.stats.ragged import PaddedBlock, RaggedRows, argsort_desc

Scores = NDArray[np.float64]
"""Scores, shape (prompts, candidates), padded with -inf where a prompt has fewer candidates."""

Places = NDArray[np.int64]
"""Places from 1, shape as the scores'."""

NOWHERE = np.iinfo(np.int32).max
"""The place of what is not kept."""


def ranks(answers: RaggedRows, spec: SelectSpec) -> tuple[Places, NDArray[np.int32] | None]:
    """Return each row's rank within its prompt, and for `boltzmann` its draw count; both of shape (rows,).

    The answers have candidate_id and score. One is kept where its place is at most k.
    """
    if spec.method == "rso-algorithm1" and spec.shuffle:
        return _shuffled(answers, spec), None
    rows = answers.rows
    place = np.full(rows.height, NOWHERE, np.int64)
    drawn = np.zeros(rows.height, np.int32) if spec.method == "boltzmann" else None
    for block in answers.blocks():
        scores, coins = block.scatter(answers.column("score"), -np.inf), _coins(block, rows["candidate_id"], spec)
        if drawn is None:
            place[block.rows] = block.gather(_ranks(scores, coins, spec))
        else:
            drawn[block.rows] = block.gather(boltzmann_draws(scores, spec.beta, spec.k, coins))
    if drawn is not None:
        place = _by_draws(answers, drawn)
    return place, drawn


def gumbel_ranks(scores: Scores, beta: float, uniform: Scores, k: int | None = None) -> Places:
    """Return each candidate's rank (from 1) in a Plackett-Luce draw with weights exp(score / beta); shape as `scores`.

    With `k` only the first k ranks are exact; the others come somewhere after them.

    Sorting score / beta + Gumbel noise draws without replacement from the softmax of score / beta, distributed as RSO's
    re-draw scheme, order included. beta = 0 sorts by score, ties in list order; beta = inf ignores the scores.
    """
    return _places(_noisy(scores, beta, uniform), k)


def boltzmann_draws(scores: Scores, beta: float, k: int, draw: Callable[[int], Scores]) -> NDArray[np.int32]:
    """How often each candidate comes in k independent draws from the softmax of score / beta; shape as `scores`.

    The largest of score / beta + Gumbel noise is one draw; `draw(j)` gives the j-th one's uniforms.
    """
    drawn = np.zeros(scores.shape, np.int32)
    row = np.arange(len(scores))
    for j in range(k):
        drawn[row, _noisy(scores, beta, draw(j)).argmax(axis=1)] += 1
    return drawn


def algorithm1_ranks(scores: Scores, beta: float, k: int, draw: Callable[[int], Scores]) -> Places:
    """Return the order (from 1) in which RSO's Algorithm 1 accepts the candidates, in list order; 0 if not accepted.

    `draw(sweep)` gives one uniform for every candidate, shape as `scores`. All prompts sweep at once; the k-th
    acceptance ends a prompt's sweep. The best of the remaining is always accepted, so that k sweeps are enough.
    beta = 0 accepts only the best of the remaining (the first in list order); beta = inf the first k.
    """
    ranks = np.zeros(scores.shape, dtype=np.int64)
    remaining = ~np.isneginf(scores)
    for sweep in range(k):
        accepted_before = ranks.max(axis=1, initial=0, keepdims=True)
        open_prompts = remaining.any(axis=1, keepdims=True) & (accepted_before < k)
        if not open_prompts.any():
            break
        best = np.max(scores, axis=1, keepdims=True, where=remaining, initial=-np.inf)
        with np.errstate(invalid="ignore"):
            gap = np.where(remaining & open_prompts, scores - best, -np.inf)
        accept = _first_best(gap) if beta == 0 else draw(sweep) < np.exp(_scaled(gap, beta))
        accept &= remaining & open_prompts
        place = accepted_before + np.cumsum(accept, axis=1)
        accept &= place <= k
        ranks = np.where(accept, place, ranks)
        remaining &= ~accept
    return ranks


def acceptance(scores: Scores, beta: float) -> tuple[Scores, Scores]:
    """RSO's acceptance rate and the effective number of candidates, each of shape (prompts,).

    The rate is the mean of a = exp((score - max) / beta), what a candidate's first trial has; the effective number is
    (sum a)^2 / sum a^2 (Kish): 1 where one candidate holds all the weight, all of them where they score the same.
    """
    best = scores.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        gap = np.where(np.isneginf(scores), -np.inf, scores - best)
    weight = (gap == 0).astype(np.float64) if beta == 0 else np.exp(_scaled(gap, beta))
    there = (~np.isneginf(scores)).sum(axis=1)
    return weight.sum(axis=1) / there, weight.sum(axis=1) ** 2 / (weight**2).sum(axis=1)


def acceptances(answers: RaggedRows, beta: float) -> tuple[Scores, Scores]:
    """Return the `acceptance` of each prompt, each array of shape (prompts,), in no particular order of prompts."""
    found = [acceptance(block.scatter(answers.column("score"), -np.inf), beta) for block in answers.blocks()]
    empty = np.empty(0)
    return np.concatenate([empty, *(a for a, _ in found)]), np.concatenate([empty, *(e for _, e in found)])


def _coins(block: PaddedBlock, ids: pl.Series, spec: SelectSpec) -> Callable[[int], Scores]:
    own = ids[block.rows]
    return lambda turn: block.scatter_own(uniforms(own, spec.seed, spec.method, turn), 0.5)


def _ranks(scores: Scores, draw: Callable[[int], Scores], spec: SelectSpec) -> Places:
    if spec.method == "rso":
        return gumbel_ranks(scores, spec.beta, draw(0), spec.k)
    if spec.method == "rso-algorithm1":
        ranks = algorithm1_ranks(scores, spec.beta, spec.k, draw)
        return np.where(ranks == 0, NOWHERE, ranks)
    return _places(scores, {"best-of-n": 1, "threshold": None}.get(spec.method, spec.k))


def _shuffled(answers: RaggedRows, spec: SelectSpec) -> Places:
    rows = answers.rows
    order = np.lexsort((uniforms(rows["candidate_id"], spec.seed, "shuffle"), answers.prompt_index))
    place = np.empty(rows.height, np.int64)
    place[order], _ = ranks(RaggedRows(rows[order], answers.sizes), spec.model_copy(update={"shuffle": False}))
    return place


def _by_draws(answers: RaggedRows, drawn: NDArray[np.int32]) -> Places:
    """Places by how often a row was drawn, then by score; nowhere where it never was."""
    order = np.lexsort((-answers.column("score"), -drawn, answers.prompt_index))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(1, len(order) + 1) - answers.starts[answers.prompt_index]
    return np.where(drawn > 0, place, NOWHERE)


_CERTAIN = 64.0
"""A difference of logits that noise from 52-bit uniforms, which is between -3.7 and 36.8, never reverses."""
_FAR = 1e5
"""A distance of logits at which noise still keeps ten digits."""


def _noisy(scores: Scores, beta: float, uniform: Scores) -> Scores:
    if beta == 0:
        return scores
    noisy = gumbels(uniform)
    if np.isinf(beta):
        noisy[np.isneginf(scores)] = -np.inf
    else:
        noisy += _logits(scores, beta)  # -inf (no candidate) stays -inf
    return noisy


def _logits(scores: Scores, beta: float) -> Scores:
    """Divide differences of scores by beta, the prompt's highest at 0, so that noise that is added is not rounded off.

    Of a prompt with candidates far below the highest, differences above `_CERTAIN` between neighbours are that much:
    the order of the noisy logits stays the same, and equal scores far down are ordered by the noise.
    """
    logits: Scores = (scores - scores.max(axis=1, keepdims=True)) / beta
    far = ((logits < -_FAR) & ~np.isneginf(logits)).any(axis=1)
    if far.any():
        some = scores[far]
        order = argsort_desc(some)
        some = np.take_along_axis(some, order, axis=1)
        with np.errstate(invalid="ignore"):  # between two that are no candidates
            gaps = np.minimum((some[:, :-1] - some[:, 1:]) / beta, _CERTAIN)
        below = np.zeros_like(some)
        below[:, 1:] = -np.cumsum(np.where(np.isneginf(some[:, 1:]), np.inf, gaps), axis=1)
        capped = np.empty_like(below)
        np.put_along_axis(capped, order, below, axis=1)
        logits[far] = capped
    return logits


def _scaled(scores: Scores, beta: float) -> Scores:
    # -inf (no candidate) stays -inf even where beta is infinite.
    return np.where(np.isneginf(scores), -np.inf, np.zeros_like(scores) if np.isinf(beta) else scores / beta)


def _first_best(gap: Scores) -> NDArray[np.bool_]:
    first = np.zeros(gap.shape, dtype=bool)
    np.put_along_axis(first, gap.argmax(axis=1)[:, None], True, axis=1)
    return first


def _places(values: Scores, k: int | None = None) -> Places:
    """Places from the largest value down, equal ones in list order; with `k` all but the first k are nowhere."""
    if k is not None and k < values.shape[1]:
        least = np.partition(values, -k, axis=1)[:, -k]
        first = values >= least[:, None]
        if np.count_nonzero(first) == k * len(values):  # no ties at the end
            ranks = np.full(values.shape, NOWHERE, np.int64)
            ranks[first] = _places(values[first].reshape(-1, k)).ravel()
            return ranks
    order = argsort_desc(values)
    place = np.empty_like(order)
    np.put_along_axis(place, order, np.arange(1, values.shape[1] + 1)[None, :], axis=1)
    return place
