"""Ragged arrays: prompts with different numbers of rows, processed together by a few array operations.

`RaggedRows` holds a frame whose rows are grouped by prompt. `blocks` returns prompts of similar size as padded
(prompts, rows) arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.keyed_random import id_prefix64

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class RaggedRows:
    """Rows grouped by prompt, each prompt's in the order of generation.

    Attributes:
        rows: the rows.
        sizes: how many rows each prompt has, shape (prompts,).
    """

    rows: pl.DataFrame
    sizes: Ints

    @classmethod
    def from_frame(cls, rows: pl.DataFrame) -> Self:
        """Group rows by prompt_id, prompts in the order of their first rows, and sort each prompt's.

        A prompt's rows are sorted by sample_index, then by candidate_id. Rows that are in order already are not moved.
        """
        names, sizes = _runs(rows["prompt_id"])
        index = rows["sample_index"].to_numpy()
        if names.n_unique() == len(names) and _in_order(index, rows["candidate_id"], sizes):
            return cls(rows, sizes)
        runs = names.to_frame("name").with_row_index("run")
        first = runs.select(pl.col("run").min().over("name")).to_series().to_numpy()
        prompt = np.repeat(first.astype(np.int64), sizes)
        key = (prompt << 32) + index
        order = np.argsort(key)
        if (np.diff(key[order]) == 0).any():  # candidates of several samplers have the same index
            order = np.lexsort((id_prefix64(rows["candidate_id"]), key))
        return cls(rows[order], np.bincount(prompt)[np.unique(first)])

    @cached_property
    def starts(self) -> Ints:
        """The number of each prompt's first row, shape (prompts,)."""
        return offsets(self.sizes)

    @cached_property
    def prompt_index(self) -> Ints:
        """The number of each row's prompt, shape (rows,)."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def filter(self, mask: NDArray[np.bool_]) -> RaggedRows:
        """Return the rows where `mask` holds; prompts without any are gone."""
        if mask.all():
            return self
        sizes = np.bincount(self.prompt_index[mask], minlength=len(self.sizes))
        return RaggedRows(self.rows.filter(pl.Series(mask)), sizes[sizes > 0])

    def with_columns(self, **columns: pl.Series | pl.Expr) -> RaggedRows:
        """Return the same rows with more columns."""
        return RaggedRows(self.rows.with_columns(**columns), self.sizes)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column's values, shape (rows,)."""
        return self.rows[name].to_numpy()

    def blocks(self) -> Iterator[PaddedBlock]:
        """Yield the rows as padded blocks."""
        return blocks(self.sizes)


class PaddedBlock:
    """Prompts with about equally many rows, as a (prompts, rows) array; padding comes last in each line.

    Attributes:
        rows: the numbers of their rows, as an index.
        prompts: the numbers of the prompts, as an index.
        shape: (prompts, rows of the longest).
    """

    def __init__(self, rows: Ints | slice, sizes: Ints, prompts: Ints | slice) -> None:
        self.rows = rows
        self.prompts = prompts
        self.shape = (int(sizes.size), int(sizes.max()))
        count = int(sizes.sum())
        self._full = count == self.shape[0] * self.shape[1]
        if not self._full:
            self._line = np.repeat(np.arange(sizes.size), sizes)
            self._column = np.arange(count) - np.repeat(offsets(sizes), sizes)

    def scatter(self, values: NDArray[T], fill: T | float) -> NDArray[T]:
        """Values of all rows, shape (rows,), in the block; `fill` is the padding."""
        return self.scatter_own(values[self.rows], fill)

    def scatter_own(self, own: NDArray[T], fill: T | float) -> NDArray[T]:
        """Values of the block's own rows, in the order of `rows`, in the block."""
        if self._full:
            return own.reshape(self.shape)
        block = np.full(self.shape, fill, dtype=own.dtype)
        block[self._line, self._column] = own
        return block

    def gather(self, block: NDArray[T]) -> NDArray[T]:
        """Return the values of a block without the padding, one for each of `rows`."""
        values: NDArray[T] = block.reshape(-1) if self._full else block[self._line, self._column]
        return values


def blocks(sizes: Ints, *, exact: bool = False, max_rows: int | None = None) -> Iterator[PaddedBlock]:
    """Blocks of all prompts with rows, `sizes` of each: of 1, 2, 3-4, 5-8, … rows, so that half of a block is used.

    With `exact` all prompts of a block have equally many rows. With `max_rows` a block has about that many at most.
    """
    kind = sizes if exact else np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    kinds = np.unique(kind[sizes > 0])
    if len(kinds) == 1 and sizes.all() and (max_rows is None or sizes.sum() <= max_rows):
        yield PaddedBlock(slice(None), sizes, slice(None))  # nothing needs to be gathered
        return
    starts = offsets(sizes)
    for one in kinds:
        prompts = np.flatnonzero((kind == one) & (sizes > 0))
        pieces = -(-int(sizes[prompts].sum()) // max_rows) if max_rows else 1
        for some in np.array_split(prompts, min(pieces, len(prompts))):
            yield PaddedBlock(_ranges(starts[some], sizes[some]), sizes[some], some)


def offsets(sizes: Ints) -> Ints:
    """How many rows come before each prompt's, shape (prompts,)."""
    before: Ints = np.cumsum(sizes) - sizes
    return before


def count_prompts(rows: pl.DataFrame) -> int:
    """Count the prompts of rows that are mostly grouped by prompt."""
    return _runs(rows["prompt_id"])[0].n_unique()


def argsort_desc(values: Floats) -> Ints:
    """Return the order of each line from the largest value to the smallest; equal values stay in their order."""
    order = np.argsort(-values, axis=1)  # many times faster than a stable sort, which only ties need
    placed = np.take_along_axis(values, order, axis=1)
    tied = ((placed[:, 1:] == placed[:, :-1]) & np.isfinite(placed[:, 1:])).any(axis=1)
    if tied.any():
        order[tied] = np.argsort(-values[tied], axis=1, kind="stable")
    return order


def argmin_last(values: Floats) -> Ints:
    """Return the last place of the smallest value in each line."""
    place: Ints = values.argmin(axis=1)
    same = values == values[np.arange(len(values)), place][:, None]
    if np.count_nonzero(same) > len(values):
        place = values.shape[1] - 1 - same[:, ::-1].argmax(axis=1)
    return place


def _ranges(starts: Ints, sizes: Ints) -> Ints:
    """start, …, start + size - 1 of each, one after the other."""
    return np.arange(sizes.sum()) + np.repeat(starts - offsets(sizes), sizes)


def _runs(names: pl.Series) -> tuple[pl.Series, Ints]:
    """Return the names of runs of equal names, and their lengths."""
    runs = names.rle().struct.unnest()
    return runs["value"], runs["len"].to_numpy().astype(np.int64)


def _in_order(index: NDArray[Any], ids: pl.Series, sizes: Ints) -> bool:
    """Whether each prompt's rows are sorted by index, and those of equal index by id."""
    falls, ties = index[1:] < index[:-1], index[1:] == index[:-1]
    falls[offsets(sizes)[1:] - 1] = ties[offsets(sizes)[1:] - 1] = False  # the order between prompts does not matter
    if falls.any() or not ties.any():
        return not falls.any()
    bits = id_prefix64(ids)
    return not (ties & (bits[1:] < bits[:-1])).any()
