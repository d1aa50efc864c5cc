"""Intervals of a share of pairs, some of which are of one prompt."""

from __future__ import annotations

import math

import numpy as np
import polars as pl
from numpy.typing import NDArray


def wilson(share: float, count: float, z: float = 1.959964) -> tuple[float, float]:
    """Return Wilson's interval of a share of `count` pairs (Wilson 1927); ties as half make it a little too wide."""
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def effective_pairs(right: NDArray[np.float64], prompts: pl.Series) -> float:
    """Return how many independent pairs say as much of the mean of `right` as these do: Kish's effective sample size.

    Pairs of one prompt share responses and tend to be right or wrong together. The variance of the mean p is the
    squared sum of `right - p` of each prompt, over all prompts, by the pairs squared; that of k independent pairs is
    p (1 - p) / k. One pair a prompt gives the number of pairs, and none gives more; where the variance is 0, the
    number of prompts counts.

    Args:
        right: 1 for a pair that is ranked right, 0 for wrong, 0.5 for a tie, shape (pairs,).
        prompts: the prompt of each pair, (pairs,).
    """
    share = float(right.mean())
    sums = pl.DataFrame({"prompt": prompts, "off": right - share}).group_by("prompt").agg(pl.col("off").sum())["off"]
    variance = float((sums**2).sum()) / len(right) ** 2
    if variance <= 1e-12 / len(right):
        return float(len(sums))
    return min(float(len(right)), share * (1 - share) / variance)
