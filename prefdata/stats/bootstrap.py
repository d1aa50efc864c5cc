"""Bootstrap intervals over prompts: prompts are resampled, never the responses to one prompt.

Many prompts are resampled in blocks: at random, they form `LOTS` blocks of equal size, and whole blocks are resampled.
The mean of a block of m prompts has 1/m of a prompt's variance, so the interval is that of resampling prompts, and a
million prompts cost what ten thousand do. With fewer prompts than `LOTS` each is a block of its own.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
"""Bootstrap resamples of prompts."""

LOTS = 10_000
"""Maximum number of blocks."""

_AT_ONCE = 4_000_000
"""Resampled values that are held at a time."""


def bootstrap_blocks(prompts: int, seed: int = 0) -> NDArray[np.int64]:
    """Return the block of each prompt, shape (prompts,), from 0; blocks differ in size by one at most."""
    if prompts <= LOTS:
        return np.arange(prompts)
    return np.random.default_rng(seed).permutation(prompts) % LOTS


def bootstrap_intervals(
    sums: Floats, sizes: Floats | None = None, seed: int = 0, of: Callable[[Floats], Floats] | None = None
) -> tuple[Floats, Floats]:
    """Return the 95% percentile bootstrap intervals of means over prompts, or of a statistic of the means.

    Args:
        sums: of a value over the prompts of each block, shape (blocks, values).
        sizes: the number of prompts in each block, shape (blocks,); 1 each by default.
        seed: of the resamples, the same for all values: compared values are resampled together.
        of: figures from the means of each resample: (resamples, values) to (resamples, figures).

    Returns:
        low and high, each of shape (values,) or (figures,); NaN where there are fewer than two blocks, which show
        no variance.
    """
    count, values = sums.shape
    of = of or (lambda means: means)
    if count < 2:
        nothing = np.full(of(sums).shape[1], np.nan)
        return nothing, nothing
    sizes = np.ones(count) if sizes is None else sizes
    random, step = np.random.default_rng(seed), max(1, _AT_ONCE // count)
    means = np.empty((RESAMPLES, values))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = random.integers(0, count, (rows, count)) + np.arange(rows)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        means[start : start + rows] = (times @ sums) / (times @ sizes)[:, None]
    low, high = np.quantile(of(means), [0.025, 0.975], axis=0)
    return low, high


def bootstrap_interval(rates: Floats, seed: int = 0) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of one mean over prompts, given each prompt's value, (prompts,)."""
    block_of = bootstrap_blocks(rates.size, seed)
    sums, sizes = np.bincount(block_of, weights=rates).astype(np.float64), np.bincount(block_of).astype(np.float64)
    low, high = bootstrap_intervals(sums[:, None], sizes, seed)
    return float(low[0]), float(high[0])
