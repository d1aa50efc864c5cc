"""A sieve: lets through the rows that were asked for, and few others, without looking each of them up."""

from __future__ import annotations

import numpy as np
import polars as pl

from prefdata.draws import Bits, leading_bits

MOST_BITS = 28
"""Of an id, at most: a place in memory for each that so many bits can write, which is 256 MB."""


class Sieve:
    """Which candidates were asked for, by the first bits of their ids (a Bloom filter of one hash).

    What was asked for always passes; of the others one in sixteen, and more of them above 2**(MOST_BITS - 4) ids.
    """

    def __init__(self, rows: int) -> None:
        """For about so many ids."""
        self._bits = min(MOST_BITS, max(1, rows).bit_length() + 4)
        self._there = np.zeros(1 << self._bits, bool)

    def put(self, rows: pl.DataFrame) -> None:
        """Let these candidates pass."""
        self._there[self._place(leading_bits(rows["candidate_id"]))] = True

    def sift(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows of the candidates that were asked for, and some others."""
        passes = self._there[self._place(leading_bits(rows["candidate_id"]))]
        return rows.filter(pl.Series(passes))

    def _place(self, bits: Bits) -> Bits:
        return bits >> np.uint64(64 - self._bits)
