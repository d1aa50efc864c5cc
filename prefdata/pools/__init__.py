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
    windows.py   which prompts have their rows near each other, so that they can be joined as they are read
    sieve.py     of candidates that lie anyhow, the ones that were asked for
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

import polars as pl
import pyarrow.parquet as pq

from prefdata.ahead import ahead, cores
from prefdata.draws import Content
from prefdata.ids import digest
from prefdata.pools.joining import NONE_ASKED, REASONS, Joining, as_it_lies, is_score, scorer_of
from prefdata.pools.sieve import Sieve
from prefdata.pools.windows import Windows, cut, windows_of
from prefdata.progress import Progress, quiet
from prefdata.shelves import Shelves, how_many_shares, shelf_room
from prefdata.specs import PoolSpec
from prefdata.store import Partition, Run
from prefdata.views import chosen_samplers

__all__ = ["POOL_ROWS", "Pools", "as_it_lies", "is_score", "open_pools"]

POOL_ROWS = 1_000_000
"""Rows of a pool, about: what is held at a time."""

T = TypeVar("T")
Both = tuple[pl.DataFrame, pl.DataFrame | None]
"""What is asked for of some prompts, and what is there of them; None where the source knows."""


class Pools:
    """The pools of a source. They are gone through once, and what is known of all of them is known then.

    Attributes:
        scorer: what stands behind the scores ("" where there are none).
    """

    def __init__(
        self,
        joining: Joining,
        named: list[tuple[Partition, Path, bool]],
        drawn: list[tuple[str, Path]],
        room: Path,
        *,
        only: str | None = None,
        progress: Progress = quiet,
    ) -> None:
        """Pools of what `named` parts ask for and `drawn` ones hold, of all prompts or of one; shelves go to `room`."""
        self.scorer = scorer_of(joining.source)
        self._joining, self._named, self._drawn, self._room = joining, named, drawn, room
        self._only, self._progress = only, progress
        self._paths = [part for _, part, _ in named], [part for _, part in drawn]
        sizes = ([pq.read_metadata(part).num_rows for part in parts] for parts in self._paths)
        self._sizes: tuple[list[int], list[int]] = (*sizes,)  # type: ignore[assignment]
        self._asked, self._there = (sum(of_parts) for of_parts in self._sizes)
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
        for made in ahead(self._frames(), partial(_decided, self._joining, rule), cores()):
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
        waiting: Shelves | None = None
        for rows in frames:
            waiting = waiting or Shelves(self._room / "waiting", self._shares, rows)
            waiting.put(rows)
        return iter(()) if waiting is None else _by_prompt(waiting)

    def _frames(self) -> Iterator[Both]:
        if self._joining.self_contained:
            yield from ((rows, None) for rows in _whole_prompts(ahead(self._named, self._joining.asked_for, cores())))
            return
        with (
            Shelves(self._room / "asked", self._shares, NONE_ASKED) as asked,
            Shelves(self._room / "there", self._shares, self._joining.nothing_known) as there,
        ):
            whole = self._only is None and not self._joining.may_repeat
            cuts = windows_of(*self._paths, self._sizes, POOL_ROWS) if whole else None
            if cuts is None:
                self._fill(asked, there)
            else:
                yield from self._near(cuts, asked, there)
            yield from ((asked.take(share), there.take(share)) for share in range(self._shares))

    def _near(self, cuts: Windows, asked: Shelves, there: Shelves) -> Iterator[Both]:
        """What lies near each other, window by window; the rest is put on shelves."""
        named, drawn = [self._named[i] for i in cuts.order[0]], [self._drawn[i] for i in cuts.order[1]]
        with_prompt = len(cuts.scattered) > 0
        known = partial(self._joining.known, with_prompt=with_prompt)
        nothing = self._joining.nothing_known if with_prompt else self._joining.nothing_known.drop("prompt_id")
        streams = (
            cut(ahead(named, self._joining.asked_for, cores()), cuts.ends[0], NONE_ASKED),
            cut(ahead(drawn, known, cores()), cuts.ends[1], nothing),
        )
        for both in zip(*streams, strict=True):
            if not with_prompt:
                yield both
                continue
            (near, far), (near_there, far_there) = (cuts.apart(rows) for rows in both)
            asked.put(far)
            there.put(far_there)
            yield near, near_there

    def _fill(self, asked: Shelves, there: Shelves) -> None:
        """Everything on shelves; of the candidates what was asked for, where that is the smaller part."""
        sieve = Sieve(self._asked) if self._asked * 2 < self._there and not self._joining.may_repeat else None
        for rows in ahead(self._named, self._joining.asked_for, cores()):
            asked.put(self._fitting(rows))
            if sieve is not None:
                sieve.put(rows)
        for rows in ahead(self._drawn, partial(self._joining.known, sieve=sieve), cores()):
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
    named = [(source, part, False) for part in source.readable()]
    if beside and source.table.name == "selections" and (scorer := scorer_of(source)):
        scores = run.partition("scores", scorer)
        named += [(scores, part, True) for part in scores.readable()]
    drawn = [(sampler.name, part) for sampler in samplers for part in sampler.readable()]
    joining = Joining(run, spec, source, samplers, beside=beside, texts=texts, whole=prompt_id is None)
    with shelf_room(run) as room:
        yield Pools(joining, named, drawn, room, only=prompt_id, progress=progress)


@dataclass(frozen=True)
class _Decided(Generic[T]):
    """What a rule made of a pool, and what the pool was."""

    result: T
    rows: Content
    reasons: Content


def _decided(joining: Joining, rule: Callable[[pl.DataFrame], T], both: Both) -> _Decided[T] | None:
    pool = joining.join(both)
    if not pool.height:
        return None
    rows, reasons = Content(), Content()
    rows.add(pool["candidate_id"], pool["score"])
    out = pool.select("candidate_id", "left_out").drop_nulls()
    reasons.add(out["candidate_id"], out["left_out"].replace_strict(REASONS, range(len(REASONS))))
    return _Decided(rule(pool), rows, reasons)


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
