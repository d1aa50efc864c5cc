"""Windows: two streams of rows, cut so that nearly every prompt has all of its rows within one window of both.

Candidates lie in the order in which they were drawn, and scores in that in which they were given: what belongs to a
prompt lies near each other in both, if not in one piece. So both can be read side by side, and decided about as they
come. The few prompts whose rows lie in several windows are scattered, and wait on shelves.

Where a later part answers the same prompts (another sampler, a larger n), it is read beside the earlier one. Where all
was scored in the order in which it was drawn, which three looks tell with good hope, one stream tells for both; who
reads them has to see to it that they are in step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefdata.ahead import ahead, cores
from prefdata.draws import Bits, among, leading_bits
from prefdata.pools.parts import Part

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
        in_step: only the first stream was looked at; the other one's rows are taken to lie as its do, one by one.
    """

    order: tuple[list[int], list[int]]
    ends: tuple[Ints, Ints]
    scattered: Bits
    in_step: bool = False

    def apart(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows of prompts that lie within one window, and those of the scattered."""
        names = rows["prompt_id"].rle().struct.field("value").unique()
        far = names.filter(pl.Series(among(self.scattered, leading_bits(names)), dtype=pl.Boolean))
        if not len(far):
            return rows, rows.clear()
        scattered = rows["prompt_id"].is_in(far.implode())
        return rows.filter(~scattered), rows.filter(scattered)


def windows_of(first: Sequence[Part], second: Sequence[Part], rows: int, *, in_step: bool = False) -> Windows | None:
    """Windows of about `rows` rows of the longer of two streams of parts; None where most prompts are scattered.

    Where the two look as if they were `in_step`, row by row, the second is not looked at if the first can be cut
    without cutting a prompt.
    """
    totals = [sum(part.rows for part in parts) for parts in (first, second)]
    as_they_are = list(range(len(first))), list(range(len(second)))
    how_many = max(1, -(-max(totals) // rows))
    if how_many == 1:
        return Windows(as_they_are, (np.array(totals[:1]), np.array(totals[1:])), np.empty(0, np.uint64))
    if not all(totals) or (looked_at := _looked_at(first)) is None:
        return None
    if in_step:
        (one,), prompts = _streams([looked_at], [first])
        cuts, whole = _seams(one, how_many)
        if whole:
            ends = np.append(cuts, totals[0])
            return Windows(as_they_are, (ends, ends), prompts[:0], in_step=True)
    if (others := _looked_at(second)) is None:
        return None
    streams, prompts = _streams([looked_at, others], [first, second])
    one, other = (stream.beside(streams[1].first) for stream in streams)
    cuts, _ = _seams(one, how_many)
    both = np.append(cuts, totals[0]), np.append(_meeting(cuts, one, other), totals[1])
    scattered = prompts[_scattered([one, other], both)]
    if len(scattered) * 2 > len(prompts):
        return None
    return Windows((one.order, other.order), both, scattered)


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
    def of(cls, part: Part) -> Self:
        """Where prompts lie in a part; their ids are read once each, not once a row."""
        file = pq.ParquetFile(
            part.path, read_dictionary=["prompt_id"], pre_buffer=False
        )  # there is nothing to read ahead
        column = file.read(columns=["prompt_id"], use_threads=False)["prompt_id"].unify_dictionaries()
        indices = [pl.Series(chunk.indices).to_numpy() for chunk in column.chunks]  # Arrow's own would import pandas
        codes = np.concatenate([np.empty(0, np.int32), *indices])
        names = pl.Series(column.chunk(0).dictionary if column.num_chunks else [], dtype=pl.String)
        begun = np.flatnonzero(np.append(len(codes) > 0, codes[1:] != codes[:-1]))  # where runs of one prompt do
        ended = np.append(begun[1:], len(codes))[: len(begun)] - 1
        return cls(leading_bits(names), *_first_and_last(len(names), [codes[begun]], [begun], [ended]))


def _looked_at(parts: Sequence[Part]) -> list[_Places] | None:
    """Where the prompts of parts lie; None where that is in too many places to be kept in mind."""
    found: list[_Places] = []
    room = MOST_PLACES
    for places in ahead(parts, _Places.of, 2 * cores()):
        found.append(places)
        room -= len(places.prompts)
        if room < 0:
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


def _streams(found: list[list[_Places]], streams: list[Sequence[Part]]) -> tuple[list[_Stream], Bits]:
    """The streams as they lie, and the prompts of them all, which they know by their numbers."""
    every = np.concatenate([each.prompts for places in found for each in places])
    prompts, numbers = np.unique(every, return_inverse=True)
    made, begun = [], 0
    for places, parts in zip(found, streams, strict=True):
        numbered = []
        for each in places:
            numbered.append((numbers[begun : begun + len(each.prompts)], each.first, each.last))
            begun += len(each.prompts)
        made.append(_Stream.of(list(range(len(places))), [part.rows for part in parts], numbered, len(prompts)))
    return made, prompts


_SOME = 100
"""Prompts that tell where a part belongs, about."""


def _middle(rows: Ints) -> float:
    known = rows[rows >= 0]
    return float(np.median(known)) if len(known) else np.inf


def _seams(one: _Stream, how_many: int) -> tuple[Ints, bool]:
    """Rows at which to cut a stream into equal windows, moved a little to where the fewest prompts are cut.

    Of such places the end of a part, which then need not be opened twice, or else the nearest. Tells also whether no
    prompt is cut at all.
    """
    first, last = (np.sort(rows[rows >= 0]) for rows in (one.first, one.last))
    rows, of_parts, found, whole = sum(one.sizes), np.cumsum(one.sizes), [], True
    reach = rows // how_many // 4
    for target in (rows * number // how_many for number in range(1, how_many)):
        near = last[slice(*np.searchsorted(last, (target - reach, target + reach)))] + 1
        near = near if len(near) else np.array([target])
        cut = np.searchsorted(first, near) - np.searchsorted(last, near)  # begun before it and not ended
        best = np.lexsort((np.abs(near - target), ~np.isin(near, of_parts), cut))[0]
        found.append(near[best])
        whole = whole and not cut[best]
    return np.array(found, np.int64), whole


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


def _scattered(streams: Sequence[_Stream], ends: Sequence[Ints]) -> NDArray[np.bool_]:
    """Whether prompts lie in several windows, shape (prompts of all streams,)."""
    count = len(streams[0].first)
    low, high = np.full(count, len(ends[0])), np.full(count, -1)
    for stream, end in zip(streams, ends, strict=True):
        there = stream.first >= 0
        begins, stops = (np.searchsorted(end, rows, side="right") for rows in (stream.first, stream.last))
        np.minimum(low, np.where(there, begins, low), out=low)
        np.maximum(high, np.where(there, stops, high), out=high)
    apart: NDArray[np.bool_] = low < high
    return apart
