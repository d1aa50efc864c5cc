"""Extrapolation of best of n beyond the N samples: an estimate between a lower and an upper bound.

What is known is E_n, the mean over prompts of the expected best of n, up to n = N, and a ceiling T, the highest score
that any prompt has. The gain of one more sample is an integral of F^n (1 - F) over the scores, F a prompt's CDF, so
the gains are moments of a positive measure on [0, 1], and so is what remains to the ceiling, T - E_n; means over
prompts as well. Moments of a positive measure are log-convex in n: their ratios from step to step never fall. Over the
last half of the samples, in two steps of N/4, this gives:

- lower bound: gains keep shrinking by their last ratio;
- upper bound: what remains to the ceiling keeps shrinking by its last ratio;
- estimate: what remains shrinks like a mean of exponentials with gamma-distributed rates, as
  (1 + theta m)^-k after m steps, through the three points. That is right for one chance of success that all prompts
  share, nearly right for beta-distributed chances, and has the limits of light tails, heavy tails and ceilings.

These are the sharp bounds of Chebyshev and Markov for three moments (Karlin and Studden 1966), whatever the prompts'
distributions, as long as no score is above the ceiling. Shapes: (..., K) for K values of n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST = 4
"""Minimum samples per prompt for an extrapolation."""

FARTHEST = 8
"""Maximum n of an extrapolation, as a multiple of the existing samples."""

POOL = 8
"""Scores of all prompts together for each n of an extrapolation: the best of n is among the highest 1/n."""


def max_n(prompts: int, known: int) -> int:
    """Return the largest n to which a curve of `known` samples of each of some prompts is continued; else `known`."""
    return known if known < LEAST else max(known, min(FARTHEST * known, prompts * known // POOL))


def fit_points(known: int) -> tuple[int, int, int]:
    """Return the three n that a curve is fitted at, a quarter of what is known (4 or more) apart."""
    step = known // LEAST
    return known - 2 * step, known - step, known


def extrapolate(means: Floats, ceiling: float | Floats, known: int, ns: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Return the estimate and the lower and upper bound of E[max of n] for n beyond what is known, each (..., K).

    Noise can make what remains to the ceiling shrink faster from step to step, as no mean over prompts does; then the
    middle of the three points is taken to be where it shrinks evenly, and the three curves coincide.

    Args:
        means: E[max of n] at the three `anchors`, shape (..., 3).
        ceiling: the highest score.
        known: the number of samples.
        ns: K numbers beyond it.
    """
    first, middle, last = np.moveaxis(np.maximum(ceiling - means, 0.0), -1, 0)[..., None]
    middle = np.minimum(middle, np.sqrt(first) * np.sqrt(last))
    steps = (np.asarray(ns, np.float64) - known) / (known // LEAST)
    gain = middle - last
    ratio = _ratio(gain, first - middle)
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = np.where(ratio < 1, ratio * (1 - ratio**steps) / (1 - ratio), steps)
    least = gain * factor
    most = last * (1 - _ratio(last, middle) ** steps)
    likely = last - first * _ratio(last, first) ** _powers(first, middle, last, steps)
    gains = [np.where(gain > 0, more, 0.0) for more in (np.clip(likely, least, np.maximum(least, most)), least, most)]
    top = means[..., 2:]
    found = [np.minimum(top + more, np.maximum(top, ceiling)) for more in gains]
    return found[0], found[1], found[2]


def _powers(first: Floats, middle: Floats, last: Floats, steps: Floats) -> Floats:
    """log(1 + theta (2 + steps)) / log(1 + 2 theta), theta being that of the curve through the three points."""
    fell, once = -np.log(_ratio(last, first, 1.0)), -np.log(_ratio(middle, first, 1.0))
    log_theta = _log_theta(_ratio(fell, once, 2.0))
    powers: Floats = np.logaddexp(0.0, log_theta + np.log(2 + steps)) / np.logaddexp(0.0, log_theta + math.log(2))
    return powers


def _log_theta(bend: Floats) -> Floats:
    """Return the log theta for which log(1 + 2 theta) / log(1 + theta) is `bend`, between 1 (infinite) and 2 (zero)."""
    bends, logs = _bends()
    found: Floats = np.interp(-bend, -bends, logs)
    return found


@lru_cache(maxsize=1)
def _bends() -> tuple[Floats, Floats]:
    logs = np.concatenate([np.linspace(-15, 20, 3501), np.geomspace(20, 1e9, 4001)[1:]])
    return np.logaddexp(0.0, logs + math.log(2)) / np.logaddexp(0.0, logs), logs


def _ratio(top: Floats, bottom: Floats, otherwise: float = 0.0) -> Floats:
    """Their ratio; `otherwise` where the denominator, or what it is divided for, is 0."""
    there = (bottom > 0) & (top > 0)
    made: Floats = np.divide(top, bottom, out=np.full(np.broadcast(top, bottom).shape, otherwise), where=there)
    return made
