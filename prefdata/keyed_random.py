"""Random numbers determined by (id, seed, purpose).

A number depends on the seed, its purpose, and the row's id: not on the order of rows, shards or threads.
Ids are the first 80 bits of a SHA-256; their first 64 are mixed with the key by SplitMix64 (Steele, Lea, Flood 2014).
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Iterator
from typing import Self

import numpy as np
import polars as pl
import polars_hash as plh
from numpy.typing import NDArray

from prefdata import ids

Bits = NDArray[np.uint64]

_BLOCK = 16_384
"""Ids that are processed at a time: what fits a core's cache is mixed several times faster."""

_ROWS = 65_536
"""Rows that are summed at a time: large, so that threads rarely wait for Python's lock."""

_ID = np.dtype([("leading", ">u8"), ("rest", ">u2")])


def uniforms(row_ids: pl.Series, seed: int, *key: str | int) -> NDArray[np.float64]:
    """One number in the open interval (0, 1) for each id, shape (rows,)."""
    salt, drawn = ids.seed(seed, *key), np.empty(len(row_ids))
    for block, bits in _blocks(row_ids):
        # 52 bits: with 53, the last one would round up to 1, and its Gumbel noise to infinity.
        drawn[block] = ((mix64(bits, salt) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    return drawn


def gumbels(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn uniforms into standard Gumbel noise: -log(-log u)."""
    noise: NDArray[np.float64] = np.log(uniform)
    np.negative(noise, out=noise)
    np.log(noise, out=noise)
    np.negative(noise, out=noise)
    return noise


def id_prefix64(row_ids: pl.Series) -> Bits:
    """Return the first 64 of the 80 bits of ids.

    Two of four million share them with a chance of one in two million, of a hundred million one in four thousand.
    """
    leading = np.empty(len(row_ids), np.uint64)
    for block, bits in _blocks(row_ids):
        leading[block] = bits
    return leading


def _blocks(row_ids: pl.Series) -> Iterator[tuple[slice, Bits]]:
    """Yield the leading bits of ids in blocks: the same memory is used again, Python's lock is held briefly."""
    for start in range(0, len(row_ids), _BLOCK):
        written = id_bytes(row_ids.slice(start, _BLOCK))
        yield (
            slice(start, start + len(written)),
            np.frombuffer(unhexlify(written.data), _ID)["leading"].astype(np.uint64),
        )


def id_bytes(row_ids: pl.Series) -> NDArray[np.uint8]:
    """Return the letters of ids, shape (ids, ID_DIGITS).

    Raises:
        ValueError: one is null, or has more letters or fewer.
    """
    _, ends, held = row_ids.to_arrow(compat_level=pl.CompatLevel.oldest()).buffers()
    others = np.flatnonzero(np.diff(np.frombuffer(ends or b"", np.int64)) != ids.ID_DIGITS)
    if len(others):
        raise ValueError(f"{row_ids[int(others[0])]!r} is not an id: ids have {ids.ID_DIGITS} hexadecimal digits.")
    return np.frombuffer(held or b"", np.uint8).reshape(len(row_ids), ids.ID_DIGITS)


def isin_sorted(many: Bits, some: Bits) -> NDArray[np.bool_]:
    """Whether each of `some` is among `many`, which are sorted."""
    found = np.zeros(len(some), bool)
    order = np.argsort(some)  # sorted lookups are many times faster
    some = some[order]
    place = np.searchsorted(many, some)
    there = place < len(many)
    found[order[there]] = many[place[there]] == some[there]
    return found


def distinct(bits: Bits) -> Bits:
    """Sort and deduplicate; many times as fast as numpy's own where nearly all of them differ."""
    bits = np.sort(bits)
    once: Bits = bits[np.append(bits[1:] != bits[:-1], True)[: len(bits)]]
    return once


def mix64(bits: Bits, salt: int) -> Bits:
    """Mix `bits` with a salt of 53 bits, so that each bit of the result depends on all of theirs."""
    mixture = bits ^ np.uint64(salt << 11)
    with np.errstate(over="ignore"):
        for start in range(0, len(mixture), _BLOCK):
            z = mixture[start : start + _BLOCK]
            z ^= z >> np.uint64(30)
            z *= np.uint64(0xBF58476D1CE4E5B9)
            z ^= z >> np.uint64(27)
            z *= np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
    return mixture


class RowSetHash:
    """The id of a set of rows (an id and a number each), added in batches: the same id in any order and batches.

    The sums of disjoint batches add up to that of all rows.
    """

    def __init__(self) -> None:
        self._sums = [0, 0]
        self._rows = 0

    def add(self, row_ids: pl.Series, values: pl.Series) -> None:
        """Add rows; a null is a value like any other."""
        hashes = pl.DataFrame({"id": row_ids}).select(plh.col("id").nchash.xxh3_64()).to_series().to_numpy()
        floats = values.cast(pl.Float64).fill_null(float("nan")).to_numpy()
        for start in range(0, len(hashes), _ROWS):
            some = floats[start : start + _ROWS]
            numbers = np.where(np.isnan(some), np.nan, some + 0.0).view(np.uint64)  # one NaN, one zero
            numbers += hashes[start : start + _ROWS]
            words = mix64(numbers, 1)
            # Sums do not depend on the order; twice 64 bits, so that different sets of rows do not collide.
            self._sums[0] += int(words.sum(dtype=np.uint64))
            self._sums[1] += int(np.square(words, out=words).sum(dtype=np.uint64))
        self._rows += len(row_ids)

    def __len__(self) -> int:
        return self._rows

    def __iadd__(self, other: RowSetHash) -> Self:
        self._sums = [mine + its for mine, its in zip(self._sums, other._sums, strict=True)]
        self._rows += other._rows
        return self

    @property
    def id(self) -> str:
        """20 hexadecimal digits."""
        return ids.digest([str(one % 2**64) for one in self._sums] + [self._rows])
