"""Pools: scored candidates with all that a decision about them needs, some prompts at a time.

What select and pair read. A pool holds all rows of its prompts; pools come as their rows lie on disk, and what is
made of them is put into the order of the prompts' ids, so that it does not hang on how they lay or were cut. Memory
does not grow with the run: a million rows at a time are held for each core.

A pool is a frame with the columns

    candidate_id, prompt_id, score                     of the source: scores, or a selection (then also draws)
    sampler, sample_index, round, finish_reason        of the candidate
    text_key      of the candidate: equal keys, equal answers (but for white space)
    chars         likewise: characters without surrounding white space; 0 is an empty answer
    left_out      why it takes no part (one of REASONS), or null

and `text` where it was asked for.

    joining.py   what a source asks for, joined with what is known of it
    parts.py     where what is asked for, and what is known, is read from
    windows.py   which prompts have their rows near each other, so that they can be joined as they are read
    sieve.py     of candidates that lie anyhow, the ones that were asked for
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl

from prefdata.ahead import ahead, cores
from prefdata.draws import Content
from prefdata.ids import digest
from prefdata.pools.joining import (
    NONE_ASKED,
    REASONS,
    Joining,
    as_it_lies,
    in_step,
    is_score,
    same_candidates,
    scorer_of,
)
from prefdata.pools.parts import Part, Rows, Stream, read
from prefdata.pools.sieve import Sieve
from prefdata.pools.windows import Windows, windows_of
from prefdata.progress import Progress, quiet
from prefdata.shelves import Shelves, how_many_shares, shelf_room
from prefdata.specs import PoolSpec
from prefdata.store import Partition, Run
from prefdata.views import chosen_samplers

__all__ = ["POOL_ROWS", "Pools", "as_it_lies", "is_score", "open_pools"]

POOL_ROWS = 1_000_000
"""Rows of a pool, about: what is held at a time."""

WINDOWS = 2
"""Windows to a pool: what is read as it lies comes in smaller ones, for memory that is used again is faster."""

_LOOK = 1000
"""Rows that tell whether candidates were scored in the order in which they were drawn."""

T = TypeVar("T")
Both = tuple[pl.DataFrame, pl.DataFrame | None]
"""What is asked for of some prompts, and what is there of them; None where the source knows."""


@dataclass(frozen=True)
class _Decided(Generic[T]):
    """What a rule made of a pool, and what the pool was."""

    result: T
    rows: Content
    reasons: Content


Decide = Callable[[Both], _Decided[T] | None]
Span = tuple[int, int]
Near = tuple[_Decided[T] | None, pl.DataFrame, pl.DataFrame]
"""What is decided about a window, and the rows of either stream that have to wait on shelves."""


class Pools:
    """The pools of a source. They are gone through once, and what is known of all of them is known then.

    Attributes:
        scorer: what stands behind the scores ("" where there are none).
    """

    def __init__(
        self,
        joining: Joining,
        named: list[Part],
        drawn: list[Part],
        room: Path,
        *,
        only: str | None = None,
        progress: Progress = quiet,
    ) -> None:
        """Pools of what `named` parts ask for and `drawn` ones hold, of all prompts or of one; shelves go to `room`."""
        self.scorer = scorer_of(joining.source)
        self._joining, self._named, self._drawn, self._room = joining, named, drawn, room
        self._only, self._progress = only, progress
        self._asked, self._there = (sum(part.rows for part in parts) for parts in (named, drawn))
        self._shares = how_many_shares(max(self._asked, self._there), POOL_ROWS) if only is None else 1
        self._rows, self._reasons = Content(), Content()

    @property
    def parents(self) -> dict[str, str]:
        """What the rows are, and why some take no part, by content: that hangs on prompts and on files as well."""
        return {str(self._joining.source): digest([self._rows.id, self._reasons.id])}

    def each(self, rule: Callable[[pl.DataFrame], T]) -> Iterator[T]:
        """What a rule makes of each pool, in no order of prompts; it works in threads, ahead of the caller.

        Raises:
            InputError: the source names candidates that the run does not hold.
        """
        done = 0
        for made in self._made(partial(_decided, self._joining, rule)):
            if made is not None:
                self._rows += made.rows
                self._reasons += made.reasons
                done += len(made.rows)
                self._progress(done, max(done, self._asked))
                yield made.result

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return self.each(lambda pool: pool)

    def whole(self) -> pl.DataFrame:
        """All pools as one: for a few prompts; without rows where there are none."""
        whole: pl.DataFrame = pl.concat([self._joining.nothing, *self])
        return whole

    def in_order(self, frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """Frames that each hold whole prompts anew, by prompt in the order of the ids; a prompt's rows stay in theirs.

        All of `frames` have been gone through when this returns.
        """
        held: list[pl.DataFrame] = []
        stream, count = iter(frames), 0
        for rows in stream:
            held.append(rows)
            count += rows.height
            if count > POOL_ROWS:
                break
        else:
            return iter([_sorted(pl.concat(held))] if held else [])
        waiting = Shelves(self._room / "waiting", self._shares, held[0])
        for rows in itertools.chain(held, stream):
            waiting.put(rows)
        return _by_prompt(waiting)

    def _made(self, decide: Decide[T]) -> Iterator[_Decided[T] | None]:
        if self._joining.self_contained:
            whole = _whole_prompts(ahead(_one_by_one(self._named), self._joining.asked_for, cores()))
            yield from ahead(((rows, None) for rows in whole), decide, cores())
            return
        with (
            Shelves(self._room / "asked", self._shares, NONE_ASKED) as asked,
            Shelves(self._room / "there", self._shares, self._joining.nothing_known) as there,
        ):
            cuts = self._windows()
            if cuts is None:
                self._fill(asked, there)
            else:
                for made, far, far_there in self._near(cuts, decide):
                    asked.put(far)
                    there.put(far_there)
                    yield made
            yield from ahead(((asked.take(share), there.take(share)) for share in range(self._shares)), decide, cores())

    def _windows(self) -> Windows | None:
        if self._only is not None or self._joining.may_repeat:
            return None
        rows = max(1, POOL_ROWS // WINDOWS)
        in_step = max(self._asked, self._there) > rows and self._look_in_step()
        return windows_of(self._named, self._drawn, rows, in_step=in_step)

    def _look_in_step(self) -> bool:
        """Whether candidates look as if they were scored in the order they were drawn: at both ends, and halfway."""
        if self._asked != self._there or not self._asked:
            return False
        streams = Stream(self._named), Stream(self._drawn)
        for begin in (0, self._asked // 2, max(0, self._asked - _LOOK)):
            one, other = (
                pl.concat(read(parts, ["candidate_id"], some) for parts, some in stream.between(begin, begin + _LOOK))
                for stream in streams
            )
            if not one.equals(other):
                return False
        return True

    def _near(self, cuts: Windows, decide: Decide[T]) -> Iterator[Near[T]]:
        streams = Stream(self._named, cuts.order[0]), Stream(self._drawn, cuts.order[1])
        spans = zip(*(itertools.pairwise([0, *ends.tolist()]) for ends in cuts.ends), strict=True)
        with_prompt = len(cuts.scattered) > 0

        def window(both: tuple[Span, Span]) -> Near[T]:
            named, drawn = (list(stream.between(*span)) for stream, span in zip(streams, both, strict=True))
            rows, known = self._asked_for(named), self._known(drawn, with_prompt=with_prompt)
            far, far_there = NONE_ASKED, self._joining.nothing_known
            if with_prompt:
                (rows, far), (known, far_there) = cuts.apart(rows), cuts.apart(known)
            if cuts.in_step and in_step(rows, known):
                known = known.drop("candidate_id")
            elif cuts.in_step and not same_candidates(rows, known):
                # Who belongs to these rows lies among others of which the same is true, or nowhere.
                return None, rows, self._known(drawn, with_prompt=True)
            return decide((rows, known)), far, far_there

        yield from ahead(spans, window, 2 * cores())

    def _asked_for(self, window: list[tuple[list[Part], Rows]]) -> pl.DataFrame:
        found = [self._joining.asked_for(parts, some) for parts, some in window]
        return pl.concat(found or [NONE_ASKED])

    def _known(self, window: list[tuple[list[Part], Rows]], *, with_prompt: bool) -> pl.DataFrame:
        found = [self._joining.known(parts, some, with_prompt=with_prompt) for parts, some in window]
        nothing = self._joining.nothing_known
        return pl.concat(found or [nothing if with_prompt else nothing.drop("prompt_id")])

    def _fill(self, asked: Shelves, there: Shelves) -> None:
        """Everything on shelves; of the candidates what was asked for, where that is the smaller part."""
        sieve = Sieve(self._asked) if self._asked * 2 < self._there and not self._joining.may_repeat else None
        for rows in ahead(_one_by_one(self._named), self._joining.asked_for, cores()):
            asked.put(self._fitting(rows))
            if sieve is not None:
                sieve.put(rows)
        for rows in ahead(_one_by_one(self._drawn), partial(self._joining.known, sieve=sieve), cores()):
            there.put(self._fitting(rows))

    def _fitting(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows if self._only is None else rows.filter(pl.col("prompt_id") == self._only)


@contextmanager
def open_pools(
    run: Run,
    spec: PoolSpec,
    source: Partition,
    *,
    beside: tuple[str, ...] = (),
    texts: bool = False,
    prompt_id: str | None = None,
    progress: Progress = quiet,
) -> Iterator[Pools]:
    """The candidates that `source` names, a partition of scores, selections or comparisons, as pools.

    `beside` names samplers whose candidates come in although the source does not name them: with the score that the
    source's scorer gave, or null. `texts` adds the column `text`. With `prompt_id` only that prompt's.

    Raises:
        UsageError: an unknown sampler, or a condition that DuckDB does not take.
    """
    wanted = {one.path for one in chosen_samplers(run, (*spec.sampler, *beside))}
    # Those asked for first: where two samplers drew by the same law, a candidate is the first one's.
    samplers = sorted(chosen_samplers(run), key=lambda one: one.path not in wanted)
    named = [Part(source, *part) for part in source.sized()]
    if beside and source.table.name == "selections" and (scorer := scorer_of(source)):
        scores = run.partition("scores", scorer)
        named += [Part(scores, *part, extra=True) for part in scores.sized()]
    drawn = [Part(sampler, *part) for sampler in samplers for part in sampler.sized()]
    joining = Joining(run, spec, source, samplers, beside=beside, texts=texts, whole=prompt_id is None)
    with shelf_room(run) as room:
        yield Pools(joining, named, drawn, room, only=prompt_id, progress=progress)


def _decided(joining: Joining, rule: Callable[[pl.DataFrame], T], both: Both) -> _Decided[T] | None:
    pool = joining.join(both)
    if not pool.height:
        return None
    rows, reasons = Content(), Content()
    rows.add(pool["candidate_id"], pool["score"])
    out = pool.select("candidate_id", "left_out").drop_nulls()
    reasons.add(out["candidate_id"], out["left_out"].replace_strict(REASONS, range(len(REASONS))))
    return _Decided(rule(pool), rows, reasons)


def _one_by_one(parts: list[Part]) -> Iterator[list[Part]]:
    return ([part] for part in parts)


def _whole_prompts(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Rows that stand by prompt, cut anew so that no prompt is in two frames."""
    waiting: pl.DataFrame | None = None
    for frame in frames:
        rows = frame if waiting is None else pl.concat([waiting, frame])
        if rows.height:
            begun = rows.height - int((rows["prompt_id"] == rows["prompt_id"][-1]).sum())
            yield rows[:begun]
            waiting = rows[begun:]
    if waiting is not None:
        yield waiting


def _by_prompt(waiting: Shelves) -> Iterator[pl.DataFrame]:
    with waiting:
        shares = (waiting.take(share) for share in range(waiting.shares))
        yield from ahead((rows for rows in shares if rows.height), _sorted, cores())


def _sorted(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.sort("prompt_id", maintain_order=True)
