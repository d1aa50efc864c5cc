"""Windows: two streams of rows, cut so that nearly every prompt has all of its rows within one window of both.

Candidates lie in the order in which they were drawn, and scores in that in which they were given: what belongs to a
prompt lies near each other in both, if not in one piece. So both can be read side by side, and decided about as they
come. The few prompts whose rows lie in several windows are scattered, and wait on shelves.

Where a later part answers the same prompts (another sampler, a larger n), it is read beside the earlier one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefdata.ahead import ahead, cores
from prefdata.draws import Bits, among, leading_bits

MOST_EXTENTS = 20_000_000
"""Prompts of parts, all parts of a stream together, above which no windows are looked for: each takes 24 bytes."""

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """Where to cut two streams.

    Attributes:
        order: for each stream, the numbers of its parts in the order in which they are to be read.
        ends: for each stream, the row at which each window ends, shape (windows,).
        scattered: the prompts whose rows lie in several windows, as the leading bits of their ids, sorted.
    """

    order: tuple[list[int], list[int]]
    ends: tuple[Ints, Ints]
    scattered: Bits

    def apart(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of prompts that lie within one window, and those of the scattered."""
        names = rows["prompt_id"].rle().struct.field("value").unique()
        far = names.filter(pl.Series(among(self.scattered, leading_bits(names)), dtype=pl.Boolean))
        if not len(far):
            return rows, rows.clear()
        scattered = rows["prompt_id"].is_in(far.implode())
        return rows.filter(~scattered), rows.filter(scattered)


def windows_of(first: Sequence[Path], second: Sequence[Path], rows: int) -> Windows | None:
    """Windows of about `rows` rows of the longer of two streams of parts; None where most prompts are scattered."""
    sizes = [[pq.read_metadata(part).num_rows for part in parts] for parts in (first, second)]
    totals = [sum(of_parts) for of_parts in sizes]
    how_many = max(1, -(-max(totals) // rows))
    if how_many == 1:
        order = list(range(len(first))), list(range(len(second)))
        return Windows(order, (np.array(totals[:1]), np.array(totals[1:])), np.empty(0, np.uint64))
    if not all(totals):
        return None
    one, other = _Stream.looked_at(first, sizes[0]), _Stream.looked_at(second, sizes[1])
    if one is None or other is None:
        return None
    drawn = other.extents()
    one, other = one.beside(drawn), other.beside(drawn)
    lies = one.extents(), other.extents()
    cuts = totals[0] * np.arange(1, how_many) // how_many
    ends = np.append(cuts, totals[0]), np.append(_meeting(cuts, *lies), totals[1])
    span = _Extents.joined([each.counted(end) for each, end in zip(lies, ends, strict=True)])
    scattered = span.prompts[span.first < span.last]
    if len(scattered) * 2 > len(span.prompts):
        return None
    return Windows((one.order, other.order), ends, scattered)


def cut(frames: Iterable[pl.DataFrame], ends: Ints, empty: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """The rows of a stream of frames, up to each of `ends`; `empty` is a frame of theirs without rows."""
    stream, begun = iter(frames), 0
    waiting = empty
    for end in ends.tolist():
        some = [waiting]
        while sum(frame.height for frame in some) < end - begun:
            some.append(next(stream))
        whole = pl.concat(some)
        yield whole[: end - begun]
        waiting, begun = whole[end - begun :], end


@dataclass(frozen=True)
class _Extents:
    """Where prompts lie in a stream.

    Attributes:
        prompts: the leading bits of their ids, sorted, each once.
        first, last: the numbers of their first and their last rows, shapes (prompts,).
    """

    prompts: Bits
    first: Ints
    last: Ints

    @classmethod
    def of(cls, part: Path) -> Self:
        """Where prompts lie in a part; their ids are read once each, not once a row."""
        file = pq.ParquetFile(part, read_dictionary=["prompt_id"])
        column = file.read(columns=["prompt_id"], use_threads=False)["prompt_id"].unify_dictionaries()
        codes = np.concatenate([np.empty(0, np.int32), *(chunk.indices.to_numpy() for chunk in column.chunks)])
        names = pl.Series(column.chunk(0).dictionary if column.num_chunks else [], dtype=pl.String)
        begun = np.flatnonzero(np.append(len(codes) > 0, codes[1:] != codes[:-1]))  # where runs of one prompt do
        last = np.append(begun[1:], len(codes))[: len(begun)] - 1
        return cls.joined([cls(leading_bits(names)[codes[begun]], begun, last)])

    @classmethod
    def joined(cls, many: Sequence[Self]) -> Self:
        """Of several, each prompt's first and last."""
        prompts, first, last = (
            np.concatenate([getattr(each, name) for each in many]) for name in ("prompts", "first", "last")
        )
        order = np.argsort(prompts, kind="stable")
        prompts = prompts[order]
        if not len(prompts):
            return cls(prompts, first, last)
        new = np.flatnonzero(np.append(True, prompts[1:] != prompts[:-1]))
        return cls(prompts[new], np.minimum.reduceat(first[order], new), np.maximum.reduceat(last[order], new))

    def moved(self, rows: int) -> Self:
        """The same, so many rows later."""
        return type(self)(self.prompts, self.first + rows, self.last + rows)

    def counted(self, ends: Ints) -> Self:
        """The same in windows, not in rows."""
        first, last = (np.searchsorted(ends, rows, side="right") for rows in (self.first, self.last))
        return type(self)(self.prompts, first, last)


@dataclass(frozen=True)
class _Stream:
    """Parts that are read one after the other: their numbers, their rows, and where prompts lie in each."""

    order: list[int]
    sizes: list[int]
    found: list[_Extents]

    @classmethod
    def looked_at(cls, parts: Sequence[Path], sizes: list[int]) -> Self | None:
        """The parts as they come; None where their prompts lie in too many places to be kept in mind."""
        found: list[_Extents] = []
        for extents in ahead(parts, _Extents.of, cores()):
            found.append(extents)
            if sum(len(each.prompts) for each in found) > MOST_EXTENTS:
                return None
        return cls(list(range(len(parts))), sizes, found)

    def extents(self) -> _Extents:
        """Where prompts lie in the whole stream."""
        starts = itertools.accumulate(self.sizes, initial=0)
        return _Extents.joined([each.moved(start) for each, start in zip(self.found, starts, strict=False)])

    def beside(self, drawn: _Extents) -> Self:
        """The parts by where their prompts were first drawn: those of the same prompts come beside each other."""
        order = np.argsort([_middle(each, drawn) for each in self.found], kind="stable")
        return type(self)(*([those[i] for i in order] for those in (self.order, self.sizes, self.found)))


def _middle(some: _Extents, drawn: _Extents) -> float:
    """The median of where prompts were first drawn."""
    known = some.prompts[among(drawn.prompts, some.prompts)]
    return float(np.median(drawn.first[np.searchsorted(drawn.prompts, known)])) if len(known) else np.inf


def _meeting(cuts: Ints, one: _Extents, other: _Extents) -> Ints:
    """For each row at which the one stream is cut, that of the other at which the fewest prompts are."""
    _, mine, its = np.intersect1d(one.prompts, other.prompts, assume_unique=True, return_indices=True)
    by_last, by_first = np.argsort(one.last[mine]), np.argsort(one.first[mine])
    ended, begun = one.last[mine][by_last], one.first[mine][by_first]
    its_last, its_first = other.last[its][by_last], other.first[its][by_first]
    found, bounds = [], [0, *cuts.tolist(), np.iinfo(np.int64).max]
    for start, at, end in zip(bounds, bounds[1:], bounds[2:], strict=False):
        before = np.sort(its_last[slice(*np.searchsorted(ended, (start, at)))])
        after = np.sort(its_first[slice(*np.searchsorted(begun, (at, end)))])
        # Cut after the i-th of those that should lie before it: the later ones are cut, and who begins before it.
        lost = np.arange(len(before), 0, -1) + np.searchsorted(after, before, side="right")
        found.append(before[lost.argmin()] + 1 if len(before) else 0)
    return np.maximum.accumulate(np.array(found, np.int64))
