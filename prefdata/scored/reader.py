"""The reader of scored candidates: all rows of a prompt in one batch, from scores, a selection or comparisons.

Where each prompt's rows are together in the files, they are read in order, and batches are cut between prompts. Else
DuckDB sorts them by prompt, within `views.MEMORY` and on disk. Memory does not grow with the run.

A batch is a frame with the columns

    candidate_id, prompt_id, score, draws               of the source; draws of a selection, else null
    sampler, sample_index, round, finish_reason         of the candidate
    text_key      of the candidate: equal keys, equal texts but for white space
    chars         likewise: characters without surrounding white space; 0 is an empty response
    excluded      why it takes no part (one of EXCLUSION_REASONS), or null

and `text` where it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import polars as pl

from prefdata.ids import digest
from prefdata.keyed_random import RowSetHash
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.progress import Progress, no_progress
from prefdata.scored.filters import EXCLUSION_REASONS, Filters, refusal_phrases
from prefdata.scored.query import COLUMNS, ScoredQuery
from prefdata.specs import FilterSpec
from prefdata.storage.compaction import is_clustered, prompt_runs
from prefdata.storage.key_index import CandidateKeySet
from prefdata.storage.queries import candidate_files, chosen_samplers, twins
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import SCORES, scan_parts
from prefdata.storage.spill import spill_dir

BATCH_ROWS = 200_000
"""Rows of a batch, about: one is decided about by one thread at a time."""

T = TypeVar("T")


class PromptBatches:
    """The scored candidates of a source, in batches of whole prompts.

    Attributes:
        scorer: whose scores these are; "" where there are none.
    """

    def __init__(self, query: ScoredQuery, filters: Filters, spill: Path, progress: Progress) -> None:
        """Take the rows of a query; `spill` is a folder for what does not fit in memory, made when it is needed."""
        self.scorer = query.scorer
        self._query, self._filters, self._spill, self._progress = query, filters, spill, progress
        self._wanted = {*query.extra, *filters.spec.sampler} if filters.spec.sampler else None
        self._parts = query.source.parts_with_rows()

    @cached_property
    def parents(self) -> dict[str, str]:
        """What the rows are, and why some are excluded, by content: the order of rows does not matter."""
        rows, reasons = RowSetHash(), RowSetHash()
        if self._query.is_scan:
            groups, columns = _grouped(self._parts), ["candidate_id", "score", "sampler", "chars"]
            found = prefetch_map(groups, lambda group: self._content(_read_parts(group, columns)), usable_cores())
        else:
            found = prefetch_map(_whole_prompts(self._read()), self._content, usable_cores())
        for its_rows, its_reasons in found:
            rows += its_rows
            reasons += its_reasons
        return {str(self._query.source): digest([rows.id, reasons.id])}

    def map(self, rule: Callable[[pl.DataFrame], T]) -> Iterator[T]:
        """Apply a rule to each batch, in order; it runs in threads, ahead of the caller."""

        def decide(rows: pl.DataFrame) -> tuple[int, list[T]]:
            batch = self._prepared(rows)
            return rows.height, [rule(batch)] if batch.height else []

        done, total = 0, sum(count for _, count in self._parts)
        for count, made in prefetch_map(_whole_prompts(self._read()), decide, usable_cores()):
            done += count
            self._progress(done, max(done, total))
            yield from made

    def __iter__(self) -> Iterator[pl.DataFrame]:
        return self.map(lambda batch: batch)

    def to_frame(self) -> pl.DataFrame:
        """All batches as one: for a few prompts; without rows where there are none."""
        columns = [name for name in COLUMNS if name in SCORES.schema.names]
        frame: pl.DataFrame = pl.concat([*self] or [self._prepared(pl.DataFrame(SCORES.empty()).select(columns))])
        return frame

    def _content(self, rows: pl.DataFrame) -> tuple[RowSetHash, RowSetHash]:
        batch = self._prepared(rows)
        content, reasons = RowSetHash(), RowSetHash()
        content.add(batch["candidate_id"], batch["score"])
        excluded = batch.select("candidate_id", "excluded").drop_nulls()
        numbers = excluded["excluded"].replace_strict(EXCLUSION_REASONS, range(len(EXCLUSION_REASONS)))
        reasons.add(excluded["candidate_id"], numbers)
        return content, reasons

    def _prepared(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self._query.may_repeat:
            rows = rows.unique("candidate_id", keep="first", maintain_order=True)
        if rows["sampler"].null_count():
            raise self._query.orphan(rows.filter(pl.col("sampler").is_null())["candidate_id"][0])
        if self._wanted is not None:
            rows = rows.filter(pl.col("sampler").is_in(list(self._wanted)))
        draws = [] if "draws" in rows.columns else [pl.lit(None, pl.Int32).alias("draws")]
        return rows.with_columns(*draws, excluded=self._filters.reason(rows))

    def _read(self) -> Iterator[pl.DataFrame]:
        if self._query.is_scan and is_clustered(
            prefetch_map((part for part, _ in self._parts), prompt_runs, usable_cores())
        ):
            columns = [name for name in COLUMNS if name in self._query.source.table.schema.names]
            return prefetch_map(_grouped(self._parts), partial(_read_parts, columns=columns), usable_cores())
        return self._query.read(self._spill, BATCH_ROWS)


@contextmanager
def open_scored(
    run: Run,
    spec: FilterSpec,
    source: Partition,
    *,
    extra_samplers: tuple[str, ...] = (),
    texts: bool = False,
    prompt_id: str | None = None,
    progress: Progress = no_progress,
) -> Iterator[PromptBatches]:
    """Open the candidates that `source` names, a partition of scores, selections or comparisons, in batches.

    `extra_samplers` are samplers whose candidates are added although the source does not name them: with the score that
    the source's scorer gave, or null. `texts` adds the column `text`. With `prompt_id` only that prompt's.

    Raises:
        UsageError: an unknown sampler, or a condition that DuckDB refuses.
    """
    samplers, scorer = chosen_samplers(run), source_scorer(source)
    wanted = chosen_samplers(run, spec.sampler) if spec.sampler else []
    chosen_samplers(run, extra_samplers)
    shared = tuple(one.name for one in wanted if twins(one, samplers))
    query = ScoredQuery(run, source, scorer, samplers, shared, extra_samplers, texts, prompt_id)
    _check_orphans(query)
    with spill_dir(run) as spill:
        filters = Filters.of(run, spec, scorer, spill, unscored=extra_samplers, prompt_id=prompt_id)
        yield PromptBatches(query, filters, spill, progress)


def source_scorer(source: Partition) -> str:
    """Return the scorer behind a source's scores; "" where there is none."""
    if source.table.name == "scores":
        return source.name
    lineage = source.lineage()
    return str(lineage.spec.get("scorer") or "") if lineage and source.table.name == "selections" else ""


def inputs_fingerprint(run: Run, spec: FilterSpec, source: Partition) -> dict[str, str]:
    """Return the files on disk that decide what batches hold, by their names, sizes and times.

    These are the source's, the candidates', and those that conditions are about.

    Raises:
        UsageError: a file that holds no phrases.
    """
    scorer = source_scorer(source)
    read = [source]
    if spec.where is not None:
        read += [*run.partitions("prompts"), *([run.partition("scores", scorer)] if scorer else [])]
    if source.table.name == "selections" and scorer:
        read.append(run.partition("scores", scorer))
    phrases = {"refusals": digest(refusal_phrases(spec))} if spec.refusals == "drop" else {}
    return {str(partition): partition.stat_fingerprint() for partition in read} | candidate_files(run) | phrases


def _check_orphans(query: ScoredQuery) -> None:
    """Check that the run holds all candidates of scores or of a selection, if its files changed since these were made.

    Raises:
        InputError: it does not.
    """
    success = query.source.success()
    seen = {} if success is None else success.seen
    as_then = {name: files for name, files in seen.items() if name.startswith("candidates/")}
    if query.source.table.name == "comparisons" or as_then == candidate_files(query.run):
        return
    known = CandidateKeySet(query.samplers)
    for part in query.source.checked_parts():
        ids = _read_parts([part], ["candidate_id"])["candidate_id"]
        lost = ids.filter(pl.Series(~known.has(ids), dtype=pl.Boolean))
        if len(lost):
            raise query.orphan(lost[0])


def _read_parts(parts: Sequence[Path], columns: list[str]) -> pl.DataFrame:
    return scan_parts(list(parts)).select(columns).collect()


def _grouped(parts: Sequence[tuple[Path, int]]) -> Iterator[list[Path]]:
    """Yield the parts in groups of about a batch."""
    group, rows = list[Path](), 0
    for part, count in parts:
        group.append(part)
        rows += count
        if rows >= BATCH_ROWS:
            yield group
            group, rows = [], 0
    if group:
        yield group


def _whole_prompts(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Rows that are grouped by prompt, cut so that no prompt is in two frames."""
    waiting: pl.DataFrame | None = None
    for frame in frames:
        rows = frame if waiting is None else pl.concat([waiting, frame])
        if rows.height:
            before_last = rows.height - int((rows["prompt_id"] == rows["prompt_id"][-1]).sum())
            if before_last:
                yield rows[:before_last]
            waiting = rows[before_last:]
    if waiting is not None:
        yield waiting
