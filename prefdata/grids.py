"""Rows by prompt as grids: what is decided within each prompt is decided for all prompts at once.

`order_of` brings a prompt's rows together in the order of generation; `grids` lays them out as (prompts, candidates)
arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.draws import leading_bits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Order:
    """An order of rows, in which each prompt's stand together, as they were generated.

    Attributes:
        row: the row of each place, shape (rows,); None where they are the same.
        size: how many rows each prompt has, in that order, shape (prompts,).
        names: the prompts' ids, in that order, shape (prompts,).
    """

    row: Ints | None
    size: Ints
    names: pl.Series


def order_of(rows: pl.DataFrame, *, prompts_anyhow: bool = False) -> Order:
    """The order by prompt_id, each prompt's rows by sample_index and then by candidate_id.

    Rows are moved by runs of one prompt, and then sorted within their prompts where they must be: a sort of all of them
    costs many times more. With `prompts_anyhow` rows that need no more than that their prompts change places stay where
    they are.
    """
    named, size = _runs(rows["prompt_id"])
    index = rows["sample_index"].to_numpy()
    if prompts_anyhow and _all_differ(named) and _ascending(index, size):
        return Order(None, size, named)
    prompts = pl.DataFrame({"name": named}).with_row_index("run").group_by("name").agg("run").sort("name")
    runs = prompts["run"]
    order = runs.explode(empty_as_null=False).to_numpy().astype(np.int64)  # a prompt's runs stay as they came
    each = runs.list.len().to_numpy().astype(np.int64)
    if len(named) < rows.height:  # runs of several rows
        moved = size[order]
        each = np.add.reduceat(moved, _before(each))
        order = np.arange(rows.height) + np.repeat(_before(size)[order] - _before(moved), moved)
    if not _ascending(index[order], each):
        order = _sorted_within(order, each, index[order], rows["candidate_id"])
    return Order(None if (np.diff(order) == 1).all() else order, each, prompts["name"])


def _all_differ(names: pl.Series) -> bool:
    """Whether no name comes twice; where rows lie anyhow mostly the first one does, which takes less to see."""
    return names.is_empty() or ((names == names[0]).sum() == 1 and names.n_unique() == len(names))


def _ascending(values: NDArray[Any], size: Ints) -> bool:
    """Whether each prompt's values rise, for rows that stand by prompt; `size` rows of each."""
    falls = values[1:] <= values[:-1]
    falls[_before(size)[1:] - 1] = False  # from one prompt to the next they may
    return not falls.any()


def _sorted_within(order: Ints, size: Ints, index: NDArray[np.int32], ids: pl.Series) -> Ints:
    """`order` with each prompt's rows by index, and equal indexes by id; `size` rows of each prompt.

    `index` is in the order of `order`, and `ids` are as they came.
    """
    within, names = np.empty_like(order), None
    for grid in grids(size):
        indexes = grid.spread(index.astype(np.int64), np.iinfo(np.int64).max)  # blanks come after every index
        line = np.argsort(indexes, axis=1)
        placed = grid.flat(np.take_along_axis(indexes, line, axis=1))
        if not _ascending(placed, size[grid.prompts]):
            names = leading_bits(ids)[order] if names is None else names
            line = np.argsort(grid.spread(names, np.iinfo(names.dtype).max), axis=1)
            by_index = np.take_along_axis(indexes, line, axis=1)
            line = np.take_along_axis(line, np.argsort(by_index, axis=1, kind="stable"), axis=1)
        within[grid.numbers] = grid.flat(np.take_along_axis(grid.spread(order, -1), line, axis=1))
    return within


def how_many_prompts(rows: pl.DataFrame) -> int:
    """How many prompts rows have, that mostly stand by prompt."""
    named, _ = _runs(rows["prompt_id"])
    return named.n_unique()


def _runs(names: pl.Series) -> tuple[pl.Series, Ints]:
    """The names of runs of rows with one name, and how many rows each has."""
    runs = names.rle().struct.unnest()
    return runs["value"], runs["len"].to_numpy().astype(np.int64)


@dataclass(frozen=True)
class Standing:
    """Rows that stand by prompt, each prompt's in the order of generation, and how many each prompt has."""

    rows: pl.DataFrame
    size: Ints

    @classmethod
    def of(cls, rows: pl.DataFrame) -> Standing:
        """Rows that lie anyhow, with the columns of `order_of`; prompts come in no particular order."""
        order = order_of(rows, prompts_anyhow=True)
        return cls(rows if order.row is None else rows[order.row], order.size)

    @cached_property
    def prompt(self) -> Ints:
        """The number of each row's prompt, shape (rows,)."""
        return np.repeat(np.arange(len(self.size)), self.size)

    def only(self, mask: NDArray[np.bool_]) -> Standing:
        """The rows where `mask` holds; prompts without any are gone."""
        if mask.all():
            return self
        size = np.bincount(self.prompt[mask], minlength=len(self.size))
        return Standing(self.rows.filter(pl.Series(mask)), size[size > 0])

    def with_columns(self, **columns: pl.Series | pl.Expr) -> Standing:
        """The same rows with more columns."""
        return Standing(self.rows.with_columns(**columns), self.size)

    def column(self, name: str) -> NDArray[Any]:
        """A column's values, shape (rows,)."""
        return self.rows[name].to_numpy()

    def grids(self) -> Iterator[Grid]:
        """The rows as grids."""
        return grids(self.size)


class Grid:
    """The prompts of a frame that have about equally many rows, as a (prompts, candidates) grid.

    `numbers` are their rows' numbers in the frame and `prompts` which ones they are of all, both as an index. Places of
    the grid that no row has come last in each line.
    """

    def __init__(self, numbers: Ints | slice, size: Ints, prompts: Ints | slice) -> None:
        self.numbers = numbers
        self.prompts = prompts
        self.shape = (int(size.size), int(size.max()))
        rows = int(size.sum())
        self._full = rows == self.shape[0] * self.shape[1]
        if not self._full:
            self._row = np.repeat(np.arange(size.size), size)
            self._column = np.arange(rows) - np.repeat(_before(size), size)

    def spread(self, values: NDArray[T], fill: T | float) -> NDArray[T]:
        """The frame's values, of shape (rows,), on the grid, and `fill` where there is no row."""
        return self.lay(values[self.numbers], fill)

    def lay(self, mine: NDArray[T], fill: T | float) -> NDArray[T]:
        """Values of the grid's own rows, in the order of `numbers`, on the grid."""
        if self._full:
            return mine.reshape(self.shape)
        grid = np.full(self.shape, fill, dtype=mine.dtype)
        grid[self._row, self._column] = mine
        return grid

    def flat(self, grid: NDArray[T]) -> NDArray[T]:
        """A grid's values, one for each of `numbers`."""
        values: NDArray[T] = grid.reshape(-1) if self._full else grid[self._row, self._column]
        return values


def grids(size: Ints) -> Iterator[Grid]:
    """The grids of rows that stand by prompt, `size` of each: prompts of 1, 2, 3-4, 5-8, … rows together.

    So half of a grid is full at least.
    """
    kind = np.ceil(np.log2(size)).astype(np.int64)
    kinds = np.unique(kind)
    if len(kinds) == 1:
        yield Grid(slice(None), size, slice(None))  # nothing needs to be gathered
        return
    of_row = np.repeat(kind, size)
    for one in kinds:
        prompts = np.flatnonzero(kind == one)
        yield Grid(np.flatnonzero(of_row == one), size[prompts], prompts)


def descending(values: Floats) -> Ints:
    """The order of each row of a grid from the largest to the smallest; equal values stay in their order."""
    order = np.argsort(-values, axis=1)  # many times faster than a stable sort, which only ties need
    placed = np.take_along_axis(values, order, axis=1)
    tied = ((placed[:, 1:] == placed[:, :-1]) & np.isfinite(placed[:, 1:])).any(axis=1)
    if tied.any():
        order[tied] = np.argsort(-values[tied], axis=1, kind="stable")
    return order


def last_argmin(values: Floats) -> Ints:
    """Where the smallest value of each row of a grid is; of equals the last place."""
    place: Ints = values.argmin(axis=1)
    same = values == values[np.arange(len(values)), place][:, None]
    if np.count_nonzero(same) > len(values):
        place = values.shape[1] - 1 - same[:, ::-1].argmax(axis=1)
    return place


def _before(size: Ints) -> Ints:
    """How many rows come before each prompt's."""
    before: Ints = np.cumsum(size) - size
    return before
