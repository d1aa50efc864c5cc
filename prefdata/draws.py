"""Random draws by key: every row brings its own coin.

A draw depends on the seed, on what it is for, and on the row's id: not on the order of rows, on shards or on threads.
Ids are the first 80 bits of a SHA-256; their first 64 are mixed with the key by SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata import ids


def uniforms(row_ids: pl.Series, seed: int, *key: str | int) -> NDArray[np.float64]:
    """One number in the open interval (0, 1) for each id, shape (rows,)."""
    bits = row_ids.str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64).to_numpy()
    salt = np.uint64(ids.seed(seed, *key) << 11)
    with np.errstate(over="ignore"):
        z = bits ^ salt
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    # 52 bits: with 53, the last one would round up to 1, and its Gumbel noise to infinity.
    return ((z >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def gumbels(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard Gumbel noise from uniforms: -log(-log u)."""
    noise: NDArray[np.float64] = -np.log(-np.log(uniform))
    return noise
