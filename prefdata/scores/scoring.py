"""Scoring: from candidates without a score to rows in the scorer's partitions, one stream from Parquet to Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from prefdata.claims import Claims
from prefdata.errors import InputError
from prefdata.progress import Progress
from prefdata.scorers.protocol import Item, Scored, Scorer
from prefdata.scores.index import CandidateIndex
from prefdata.shares import Shares
from prefdata.store import Appender, Partition, Run
from prefdata.tables import scan_parts

SHARE = 4096
"""Candidates that are read, claimed and joined with their prompts at a time."""

_COLUMNS = ["candidate_id", "prompt_id", "text", "status", "finish_reason"]
_PROMPT = ["prompt_id", "messages", "tools", "reference", "metadata"]

Row = dict[str, Any]


@dataclass
class Scoring:
    """One scorer at work on the candidates of some samplers.

    Attributes:
        partitions: where the scores go, by the scorer's outputs.
        scored: what is there already, for each of them.
    """

    run: Run
    samplers: list[Partition]
    partitions: dict[str, Partition]
    claims: Claims
    progress: Progress
    total: int
    done: int = 0

    def score(self, scored: list[CandidateIndex], scorer: Scorer) -> tuple[str, ...]:
        """Score until nothing lacks a score, beside other processes if there are some; returns the scorer's notes."""
        self._scored = scored
        try:
            for one_pass in Shares(self.claims, self._shares, self._lacking, self._refresh).passes():
                self._score(self._todo(one_pass), scorer)
            return getattr(scorer, "notes", ())
        finally:
            scorer.close()

    def _shares(self) -> Iterator[tuple[str, list[Row]]]:
        for sampler in self.samplers:
            for part in sampler.readable():
                for number, batch in enumerate(pq.ParquetFile(part).iter_batches(SHARE, columns=_COLUMNS)):
                    yield f"{sampler.name}-{part.stem}-{number:05d}", batch.to_pylist()

    def _lacking(self, rows: list[Row]) -> list[Row]:
        ids = [row["candidate_id"] for row in rows]
        there = [all(found) for found in zip(*(index.has(ids) for index in self._scored), strict=True)]
        return [row for row, has in zip(rows, there, strict=True) if not has]

    def _refresh(self) -> None:
        for index in self._scored:
            index.refresh()

    def _todo(self, shares: Iterable[tuple[list[Row], list[Row]]]) -> Iterator[Row]:
        self.done = 0
        for rows, lacking in shares:
            self.done += len(rows) - len(lacking)
            if lacking:
                yield from with_prompts(self.run, lacking)

    def _score(self, rows: Iterator[Row], scorer: Scorer) -> None:
        prompt_of: dict[str, list[Any]] = {}
        unanswered: list[Row] = []

        def items() -> Iterator[Item]:
            for row in rows:
                prompt_of[row["candidate_id"]] = [row["prompt_id"], len(scorer.outputs)]
                if row["status"] == "ok":
                    yield item_of(row)
                else:
                    unanswered.append(row)

        def without_answer() -> Iterator[Scored]:
            while unanswered:
                row = unanswered.pop()
                for output in scorer.outputs:
                    yield Scored(row["candidate_id"], None, row["status"], None, None, output)

        def everything() -> Iterator[Scored]:
            for scored in scorer.score(items()):
                yield scored
                yield from without_answer()
            yield from without_answer()

        with ExitStack() as stack:
            appenders = {name: stack.enter_context(Appender(one)) for name, one in self.partitions.items()}
            for scored in everything():
                left = prompt_of[scored.key]
                appenders[scored.output].add(_row(scored, left[0]))
                left[1] -= 1
                if left[1] == 0:
                    del prompt_of[scored.key]
                    self.done += 1
                    self.progress(self.done, self.total)


def with_prompts(run: Run, rows: list[Row]) -> list[Row]:
    """Rows of candidates with their prompts' messages, reference and metadata.

    Raises:
        InputError: a prompt is not in the run.
    """
    wanted = list({row["prompt_id"] for row in rows})
    parts = [part for source in run.all("prompts", partial=True) for part in source.readable()]
    scan = scan_parts(parts).select(_PROMPT)
    found = {
        row["prompt_id"]: row for row in scan.filter(pl.col("prompt_id").is_in(wanted)).collect().iter_rows(named=True)
    }
    for row in rows:
        if row["prompt_id"] not in found:
            raise InputError(
                f"candidate {row['candidate_id']} answers a prompt that is not in the run. Ingest it again."
            )
    return [{**row, **found[row["prompt_id"]]} for row in rows]


def item_of(row: Row) -> Item:
    """A candidate with its prompt, as scorers see it."""
    return Item(
        key=row["candidate_id"],
        messages=tuple(row["messages"]),
        response=row["text"],
        truncated=row["finish_reason"] == "length",
        reference=row["reference"],
        metadata=row["metadata"],
        tools=row["tools"],
    )


def _row(scored: Scored, prompt_id: str) -> Row:
    return {
        "candidate_id": scored.key,
        "prompt_id": prompt_id,
        "score": scored.score,
        "reason": scored.reason,
        "text_hash": scored.text_hash,
        "details": None if scored.details is None else json.dumps(scored.details, ensure_ascii=False),
    }
