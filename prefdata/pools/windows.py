"""Windows: two streams of rows, cut so that nearly every prompt has all of its rows within one window of both.

Candidates lie in the order in which they were drawn, and scores in that in which they were given: what belongs to a
prompt lies near each other in both, if not in one piece. So both can be read side by side, and decided about as they
come. The few prompts whose rows lie in several windows are scattered, and wait on shelves.

Where a later part answers the same prompts (another sampler, a larger n), it is read beside the earlier one.
"""

from __future__ import annotations

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

MOST_PLACES = 20_000_000
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


def windows_of(
    first: Sequence[Path], second: Sequence[Path], sizes: tuple[list[int], list[int]], rows: int
) -> Windows | None:
    """Windows of about `rows` rows of the longer of two streams of parts; None where most prompts are scattered.

    `sizes` are the rows of each part.
    """
    totals = [sum(of_parts) for of_parts in sizes]
    how_many = max(1, -(-max(totals) // rows))
    if how_many == 1:
        order = list(range(len(first))), list(range(len(second)))
        return Windows(order, (np.array(totals[:1]), np.array(totals[1:])), np.empty(0, np.uint64))
    looked_at = [_looked_at(parts) for parts in (first, second)] if all(totals) else [None]
    found = [places for places in looked_at if places is not None]
    if len(found) < 2:
        return None
    prompts, numbers = np.unique(np.concatenate([each.prompts for each in (*found[0], *found[1])]), return_inverse=True)
    streams = _streams(found, sizes, numbers, len(prompts))
    one, other = (stream.beside(streams[1].first) for stream in streams)
    cuts = _seams(one, how_many)
    ends = np.append(cuts, totals[0]), np.append(_meeting(cuts, one, other), totals[1])
    scattered = prompts[_scattered((one, other), ends)]
    if len(scattered) * 2 > len(prompts):
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
class _Places:
    """Where prompts lie in a part.

    Attributes:
        prompts: the leading bits of their ids, each once.
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
        ended = np.append(begun[1:], len(codes))[: len(begun)] - 1
        return cls(leading_bits(names), *_first_and_last(len(names), [codes[begun]], [begun], [ended]))


def _looked_at(parts: Sequence[Path]) -> list[_Places] | None:
    """Where the prompts of parts lie; None where that is in too many places to be kept in mind."""
    found: list[_Places] = []
    for places in ahead(parts, _Places.of, cores()):
        found.append(places)
        if sum(len(each.prompts) for each in found) > MOST_PLACES:
            return None
    return found


def _first_and_last(count: int, prompts: list[Ints], first: list[Ints], last: list[Ints]) -> tuple[Ints, Ints]:
    """Of rising rows, each prompt's first and last, shapes (count,); -1 where it has none."""
    firsts, lasts = np.full(count, -1), np.full(count, -1)
    for some, rows in zip(prompts, last, strict=True):
        lasts[some] = rows  # of several, numpy keeps the one that is written last
    for some, rows in zip(reversed(prompts), reversed(first), strict=True):
        firsts[some[::-1]] = rows[::-1]
    return firsts, lasts


@dataclass(frozen=True)
class _Stream:
    """Parts that are read one after the other.

    Attributes:
        order: their numbers.
        sizes: their rows.
        places: where prompts lie in each, prompts by their numbers among those of both streams.
        first, last: where prompts lie in the whole stream, shapes (prompts of both,); -1 where it has none of them.
    """

    order: list[int]
    sizes: list[int]
    places: list[tuple[Ints, Ints, Ints]]
    first: Ints
    last: Ints

    @classmethod
    def of(cls, order: list[int], sizes: list[int], places: list[tuple[Ints, Ints, Ints]], count: int) -> Self:
        """Parts in this order."""
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        prompts = [some for some, _, _ in places]
        first = [rows + start for (_, rows, _), start in zip(places, starts, strict=True)]
        last = [rows + start for (_, _, rows), start in zip(places, starts, strict=True)]
        return cls(order, sizes, places, *_first_and_last(count, prompts, first, last))

    def beside(self, drawn: Ints) -> Self:
        """The parts by where their prompts were first drawn: those of the same prompts come beside each other."""
        middle = [_middle(drawn[some[:: len(some) // _SOME + 1]]) for some, _, _ in self.places]
        order = np.argsort(middle, kind="stable").tolist()
        if order == list(range(len(order))):
            return self
        sizes, places = ([those[i] for i in order] for those in (self.sizes, self.places))
        return self.of([self.order[i] for i in order], sizes, places, len(self.first))


def _streams(
    found: list[list[_Places]], sizes: tuple[list[int], list[int]], numbers: Ints, count: int
) -> list[_Stream]:
    """The streams as they lie, with the numbers of their prompts, one part's after the other's."""
    made, begun = [], 0
    for places, of_parts in zip(found, sizes, strict=True):
        numbered = []
        for each in places:
            numbered.append((numbers[begun : begun + len(each.prompts)], each.first, each.last))
            begun += len(each.prompts)
        made.append(_Stream.of(list(range(len(places))), of_parts, numbered, count))
    return made


_SOME = 100
"""Prompts that tell where a part belongs, about."""


def _middle(rows: Ints) -> float:
    known = rows[rows >= 0]
    return float(np.median(known)) if len(known) else np.inf


def _seams(one: _Stream, how_many: int) -> Ints:
    """Rows at which to cut a stream into equal windows, moved a little to where the fewest prompts are cut."""
    first, last = (np.sort(rows[rows >= 0], kind="stable") for rows in (one.first, one.last))
    rows, found = sum(one.sizes), []
    reach = rows // how_many // 4
    for target in (rows * number // how_many for number in range(1, how_many)):
        near = last[slice(*np.searchsorted(last, (target - reach, target + reach)))] + 1
        cut = np.searchsorted(first, near) - np.searchsorted(last, near)  # begun before it and not ended
        found.append(near[np.lexsort((np.abs(near - target), cut))[0]] if len(near) else target)
    return np.array(found, np.int64)


def _meeting(cuts: Ints, one: _Stream, other: _Stream) -> Ints:
    """For each row at which the one stream is cut, that of the other at which the fewest prompts are."""
    both = (one.last >= 0) & (other.last >= 0)
    ended, begun = (np.searchsorted(cuts, rows[both], side="right") for rows in (one.last, one.first))
    its_last, its_first = (
        other.last[both][np.argsort(ended, kind="stable")],
        other.first[both][np.argsort(begun, kind="stable")],
    )
    ends, begins = (np.append(0, np.cumsum(np.bincount(of, minlength=len(cuts) + 1))) for of in (ended, begun))
    found = []
    for number in range(len(cuts)):
        before = np.sort(its_last[ends[number] : ends[number + 1]])
        after = np.sort(its_first[begins[number + 1] : begins[number + 2]])
        # Cut after the i-th of those that should lie before it: the later ones are cut, and who begins before it.
        lost = np.arange(len(before), 0, -1) + np.searchsorted(after, before, side="right")
        found.append(before[lost.argmin()] + 1 if len(before) else 0)
    return np.maximum.accumulate(np.array(found, np.int64))


def _scattered(streams: tuple[_Stream, _Stream], ends: tuple[Ints, Ints]) -> NDArray[np.bool_]:
    """Whether prompts lie in several windows, shape (prompts of both,)."""
    spans = [
        (np.searchsorted(end, rows, side="right"), rows >= 0)
        for stream, end in zip(streams, ends, strict=True)
        for rows in (stream.first, stream.last)
    ]
    windows = np.stack([number for number, _ in spans])
    there = np.stack([has for _, has in spans])
    low, high = windows.min(axis=0, where=there, initial=len(ends[0])), windows.max(axis=0, where=there, initial=-1)
    apart: NDArray[np.bool_] = low < high
    return apart
