"""The expected value of best of n, estimated from N >= n samples: pure functions on arrays.

Notation: P prompts, N candidates per prompt, K values of n. `scores`: shape (P, N), finite; `ns`: K numbers, 1..N.
A row's samples are i.i.d. The estimators are means over all C(N, n) subsets (U-statistics), so they
are unbiased for every n up to N; drawing n of the N with replacement is not (`with_replacement_weights`).

Sources: WebGPT (2112.09332, appendix I) and Gao et al. (2210.10760) for the weights; Beirami et al. (2401.01879) for
the KL divergence; Chen et al. (2107.03374) for pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@lru_cache(maxsize=256)
def order_weights(total: int, n: int, place: int) -> Floats:
    """Return the weight of each sorted score in E[the `place`-th smallest of n], shape (total,).

    C(i-1, place-1) C(total-i, n-place) / C(total, n) for the i-th smallest of all: the share of subsets of n in which
    it has that place. place = n is the maximum, 1 the minimum.

    Raises:
        ValueError: n is not in 1..total, or the place not in 1..n.
    """
    if not 1 <= place <= n <= total:
        raise ValueError(f"there is no place {place} among {n} of {total}")
    i = np.arange(1, total + 1)
    logs = _log_choose(i - 1, place - 1) + _log_choose(total - i, n - place)
    weights: Floats = np.exp(logs - logs.max())
    weights /= weights.sum()  # instead of C(total, n), and the rounding of the logarithms goes with it
    return weights


def max_weights(total: int, ns: Sequence[int]) -> Floats:
    """Weights of E[max of n] on ascending scores, shape (total, K)."""
    return np.stack([order_weights(total, n, n) for n in ns], axis=1)


def min_weights(total: int, ns: Sequence[int]) -> Floats:
    """Weights of E[min of n] on ascending scores, shape (total, K)."""
    return np.stack([order_weights(total, n, 1) for n in ns], axis=1)


def median_weights(total: int, ns: Sequence[int]) -> Floats:
    """Weights of E[median of n] on ascending scores, shape (total, K); for even n the mean of the two in the middle."""
    middles = [(order_weights(total, n, (n + 1) // 2) + order_weights(total, n, n // 2 + 1)) / 2 for n in ns]
    return np.stack(middles, axis=1)


def with_replacement_weights(total: int, n: int) -> Floats:
    """Weights of the max of n draws with replacement, (total,): (i/N)^n - ((i-1)/N)^n. Biased low; for reference."""
    edges = (np.arange(total + 1) / total) ** n
    return np.diff(edges)


def expected_max(scores: Floats, ns: Sequence[int]) -> Floats:
    """E[max of n] of each prompt, shape (P, K)."""
    return np.sort(scores, axis=1) @ max_weights(scores.shape[1], ns)


def expected_min(scores: Floats, ns: Sequence[int]) -> Floats:
    """E[min of n] of each prompt, shape (P, K)."""
    return np.sort(scores, axis=1) @ min_weights(scores.shape[1], ns)


def expected_median(scores: Floats, ns: Sequence[int]) -> Floats:
    """E[median of n] of each prompt, shape (P, K)."""
    return np.sort(scores, axis=1) @ median_weights(scores.shape[1], ns)


def value_of_best(scores: Floats, values: Floats, ns: Sequence[int]) -> Floats:
    """Return E[value of the response with the highest score among n], shape (P, K): the gold score of a proxy's choice.

    Ties are broken at random, so the values of equal scores are averaged: the order of candidates does not matter.
    """
    return _by_score(scores, values) @ max_weights(scores.shape[1], ns)


def pass_at_k(total: int, correct: int, k: int) -> float:
    """Return the chance that one of k responses is correct, where `correct` of `total` are: 1 - C(N-c, k) / C(N, k).

    `expected_max` of scores 0 and 1 is the same number.
    """
    return 1.0 - math.comb(total - correct, k) / math.comb(total, k)


def win_rate(scores: Floats, ns: Sequence[int]) -> Floats:
    """Return the chance that the best of n beats one more sample, ties one half, shape (P, K).

    For each candidate as the opponent: the chance that n of the others are all below it, and that they are all at most
    equal. Unbiased for n < N; NaN for n = N, where no candidate is left to be the opponent. Without ties it is
    n / (n + 1), whatever the scores.
    """
    total, n = scores.shape[1], np.asarray(ns, np.float64)
    ordered = np.sort(scores, axis=1)
    made = np.tile(np.where(n < total, n / (n + 1), np.nan), (len(scores), 1))
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    row, low, high = _levels(ordered[tied])
    below = np.zeros((int(tied.sum()), total))
    below[row, low] += high - low
    below[row, high - 1] += high - low
    made[tied] = 1.0 - below @ _all_among(total, ns) / (2 * total)
    return made


def tied(scores: Floats) -> Floats:
    """Return the share of a prompt's candidates whose score another one has, shape (P,)."""
    ordered = np.sort(scores, axis=1)
    same = ordered[:, 1:] == ordered[:, :-1]
    either = np.pad(same, ((0, 0), (1, 0))) | np.pad(same, ((0, 0), (0, 1)))
    found: Floats = either.mean(axis=1)
    return found


def kl_bound(ns: Sequence[int]) -> Floats:
    """Bound the KL divergence of best-of-n from its policy: log n - (n-1)/n nats, (K,); exact without ties."""
    n = np.asarray(ns, np.float64)
    return np.log(n) - (n - 1) / n


def kl_empirical(scores: Floats, ns: Sequence[int]) -> Floats:
    """Return the exact KL divergence of best-of-n from the empirical distribution of the N candidates, (P, K), nats.

    Ties are broken in proportion to probability, which adds nothing, so only the shares of the
    levels of the score matter. It treats the N candidates as the whole distribution: too low for open-ended text.
    """
    prompts, total = scores.shape
    row, low, high = _levels(np.sort(scores, axis=1))
    tied = high - low > 1  # most levels have one candidate: their common value is computed once, and ties correct it
    row, low, high = row[tied], low[tied], high[tied]
    made = np.empty((prompts, len(ns)))
    for column, n in enumerate(ns):
        powers = (np.arange(total + 1) / total) ** n
        alone = np.concatenate([[0.0], np.cumsum(_divergence(np.diff(powers), np.full(total, 1 / total)))])
        level = _divergence(powers[high] - powers[low], (high - low) / total)
        made[:, column] = alone[-1] + np.bincount(row, weights=level - (alone[high] - alone[low]), minlength=prompts)
    return made


def kl_beirami(probability: Floats, n: int) -> Floats:
    """Beirami et al.'s estimate of the KL divergence of best-of-n (2401.01879), from the probability of what it chose.

    It is between 0 and `kl_bound`; exact where only the best response has a non-negligible probability.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        eps = np.clip(np.asarray(probability, np.float64), 1e-300, 1.0)
        none = np.exp(n * np.log1p(-eps))  # the chance that n draws all miss the response
        once = -np.expm1(n * np.log1p(-eps))
        missed = none * (math.log(n) + (n - 1) * np.log1p(-eps) - (n - 1) / n)
        estimate: Floats = np.where(none > 0, missed, 0.0) + once * np.log(once / eps)
    return estimate


def expected_beirami(scores: Floats, logprobs: Floats, ns: Sequence[int]) -> Floats:
    """E[`kl_beirami` of best-of-n's response], shape (P, K); `logprobs` of whole responses, (P, N), in nats.

    Few long responses have a non-negligible probability: the others are at the bound.
    """
    order = np.argsort(scores, axis=1, kind="stable")
    row, place = np.nonzero(np.take_along_axis(logprobs, order, axis=1) > math.log(1e-9))
    probability = np.exp(logprobs[row, order[row, place]])
    _, low, high = _levels(np.take_along_axis(scores, order, axis=1))
    first, end = (np.repeat(edge, high - low).reshape(scores.shape)[row, place] for edge in (low, high))
    made = np.tile(kl_bound(ns), (len(scores), 1))
    for column, (n, bound) in enumerate(zip(ns, kl_bound(ns), strict=True)):
        chosen = np.concatenate([[0.0], np.cumsum(order_weights(scores.shape[1], n, n))])
        share = (chosen[end] - chosen[first]) / (end - first)  # equal scores share the chance to be chosen
        less = share * (kl_beirami(probability, n) - bound)
        made[:, column] += np.bincount(row, weights=less, minlength=len(scores))
    return made


def best_of_n_law(p: Floats, r: Floats, n: int) -> Floats:
    """Return best-of-n's distribution where the candidates' is finite: probabilities `p`, rewards `r`, (outcomes,).

    A level of reward is chosen with F^n - F_below^n; within it, in proportion to p. Outcomes of probability 0 keep it.
    """
    levels, level = np.unique(r, return_inverse=True)
    mass = np.bincount(level, weights=p, minlength=levels.size).astype(np.float64)
    cumulative = np.cumsum(mass)
    with np.errstate(divide="ignore"):  # all of the mass is in the first level
        missed = n * np.log1p(-_quotient(mass, cumulative))
    chosen: Floats = cumulative**n * -np.expm1(
        missed
    )  # F^n (1 - (F_below / F)^n): precise where a level has little mass
    found: Floats = chosen[level] * _quotient(p, mass[level])
    return found


def kl_of_law(p: Floats, r: Floats, n: int) -> float:
    """Return the exact KL divergence of best-of-n from a finite distribution, in nats."""
    return float(_divergence(best_of_n_law(p, r, n), p).sum())


def win_rate_of_law(p: Floats, r: Floats, n: int) -> float:
    """Return the exact chance that best-of-n beats one sample of a finite distribution, ties one half."""
    beaten = (r[:, None] > r[None, :]) + 0.5 * (r[:, None] == r[None, :])
    return float(best_of_n_law(p, r, n) @ beaten @ p)


def normal_maxima(ns: Sequence[int]) -> Floats:
    """E[max of n standard normals], shape (K,), by quadrature to 1e-9."""
    x = np.linspace(-12.0, 12.0, 9601)
    log_cdf = np.log(np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x]))
    density = np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return np.array([float(np.sum(x * n * density * np.exp((n - 1) * log_cdf)) * (x[1] - x[0])) for n in ns])


def _by_score(scores: Floats, values: Floats) -> Floats:
    """Values in the order of the scores, those of equal scores averaged."""
    order = np.argsort(scores, axis=1, kind="stable")
    row, low, high = _levels(np.take_along_axis(scores, order, axis=1))
    sums = np.add.reduceat(np.take_along_axis(values, order, axis=1).ravel(), row * scores.shape[1] + low)
    return np.repeat(sums / (high - low), high - low).reshape(scores.shape)


def _levels(ordered: Floats) -> tuple[Ints, Ints, Ints]:
    """Return the runs of equal scores in sorted rows: the row of each, its begin, and its end (exclusive)."""
    first = np.ones(ordered.shape, bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    row, low = np.nonzero(first)
    high = np.full(row.size, ordered.shape[1])
    same = row[1:] == row[:-1]
    high[:-1][same] = low[1:][same]
    return row, low, high


def _all_among(total: int, ns: Sequence[int]) -> Floats:
    """C(k, n) / C(total-1, n) for k = 0..total-1: the chance that n of the other candidates are all among k of them."""
    k = np.arange(total)
    columns = [np.exp(_log_choose(k, n) - _log_choose(k[-1:], n)) if n < total else np.full(total, np.nan) for n in ns]
    return np.stack(columns, axis=1)


def _quotient(part: Floats, whole: Floats) -> Floats:
    """Divide parts by wholes, 0 where the whole is 0."""
    quotient: Floats = np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)
    return quotient


def _divergence(q: Floats, p: Floats) -> Floats:
    """Return the terms q log(q / p) of a KL divergence, 0 where q is."""
    ratio = np.divide(q, p, out=np.ones_like(q), where=q > 0)
    terms: Floats = q * np.log(ratio)
    return terms


def _log_choose(m: Ints, k: int) -> Floats:
    """Return the logarithm of C(m, k), -inf where k > m; shape as `m`."""
    logs = _log_factorials(int(m.max(initial=0)) + 1)
    there = m >= k
    left = np.where(there, m - k, 0)
    return np.where(there, logs[m] - logs[min(k, logs.size - 1)] - logs[left], -np.inf)


@lru_cache(maxsize=64)
def _log_factorials(count: int) -> Floats:
    return np.array([math.lgamma(k + 1) for k in range(count)])
