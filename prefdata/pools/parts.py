"""Parts: what pools are read from, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from prefdata.store import Partition
from prefdata.tables import scan_parts

Rows = tuple[int, int | None]
"""The first of some rows, and how many; all that follow where that is None."""

EVERY_ROW: Rows = (0, None)


@dataclass(frozen=True)
class Part:
    """A part of a partition.

    Attributes:
        of: the partition that it belongs to.
        rows: how many it holds.
        extra: it names candidates that the source does not name.
    """

    of: Partition
    path: Path
    rows: int
    extra: bool = False


def read(parts: Sequence[Part], columns: list[str], some: Rows = EVERY_ROW) -> pl.DataFrame:
    """Rows of parts, one part after the other: all of them, or some, counted from the first part's beginning."""
    scan = scan_parts([part.path for part in parts])
    return scan.slice(*some).select(columns).collect()


class Stream:
    """Parts that are read one after the other, in an order of their own or in another."""

    def __init__(self, parts: Sequence[Part], order: Sequence[int] | None = None) -> None:
        self._parts = list(parts) if order is None else [parts[number] for number in order]
        self._starts = np.cumsum([0, *(part.rows for part in self._parts)])

    def between(self, begin: int, end: int) -> Iterator[tuple[list[Part], Rows]]:
        """Where the rows from `begin` on, before `end`, are to be read: one partition's at a time."""
        first = max(0, int(np.searchsorted(self._starts, begin, "right")) - 1)
        near = zip(self._parts[first : int(np.searchsorted(self._starts, end))], self._starts[first:], strict=False)
        for _, some in itertools.groupby(near, key=lambda one: (one[0].of.path, one[0].extra)):
            parts, starts = zip(*some, strict=True)
            start, stop = max(begin, int(starts[0])), min(end, int(starts[-1]) + parts[-1].rows)
            if start < stop:
                yield list(parts), (start - int(starts[0]), stop - start)
