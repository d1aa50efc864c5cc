"""Scoring: from candidates without a score to rows in the scorer's partitions, one stream from Parquet to Parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.errors import InputError
from prefdata.ids import continued
from prefdata.progress import Progress
from prefdata.scorers.protocol import Score, Scorer, ScoringItem
from prefdata.storage.key_index import CandidateKeySet
from prefdata.storage.leased_work import LeasedWork
from prefdata.storage.leases import WorkLeases
from prefdata.storage.queries import merged_prompts, prompt_sources, twins
from prefdata.storage.run import Partition, PartWriter, Run
from prefdata.storage.schemas import CANDIDATES, PROMPTS, SCORES

SHARE = 4096
"""Candidates that are read, claimed and joined with their prompts at a time."""

_KEPT = ["candidate_id", "prompt_id", *SCORES.copied]
"""What a row of scores repeats of its candidate."""

_COLUMNS = [*(name for name in _KEPT if name != "sampler"), "text", "message", "status"]
_PROMPT = ["prompt_id", "messages", "tools", "reference", "metadata"]

Row = dict[str, Any]


@dataclass
class ScoreStream:
    """One scorer at work on the candidates of some samplers.

    Attributes:
        partitions: where the scores go, by the scorer's outputs.
        scored: what is there already, for each of them.
    """

    run: Run
    samplers: list[Partition]
    partitions: dict[str, Partition]
    claims: WorkLeases
    progress: Progress
    total: int
    done: int = 0

    def score(self, scored: list[CandidateKeySet], scorer: Scorer) -> tuple[str, ...]:
        """Score until nothing lacks a score, beside other processes if there are some; returns the scorer's notes."""
        self._scored = scored
        try:
            for one_pass in LeasedWork(self.claims, self._shares, self._lacking, self._refresh).passes():
                self._score(self._todo(one_pass), scorer)
            return getattr(scorer, "notes", ())
        finally:
            scorer.close()

    def _shares(self) -> Iterator[tuple[str, list[Row]]]:
        for number, sampler in enumerate(self.samplers):
            # Candidates that an earlier sampler holds as well are scored as that one's.
            earlier = CandidateKeySet(twins(sampler, self.samplers[:number]))
            for part in sampler.checked_parts():
                for batch_number, batch in enumerate(pq.ParquetFile(part).iter_batches(SHARE, columns=_COLUMNS)):
                    rows = pl.DataFrame(CANDIDATES.upgrade(pa.table(batch), _COLUMNS))
                    rows = rows.with_columns(sampler=pl.lit(sampler.name))
                    own = rows.filter(pl.Series(~earlier.has(rows["candidate_id"]), dtype=pl.Boolean))
                    yield f"{sampler.name}-{part.stem}-{batch_number:05d}", own.to_dicts()

    def _lacking(self, rows: list[Row]) -> list[Row]:
        ids = pl.Series([row["candidate_id"] for row in rows], dtype=pl.String)
        present = np.all([index.has(ids) for index in self._scored], axis=0)
        return [row for row, has in zip(rows, present, strict=True) if not has]

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
        in_flight: dict[str, list[Any]] = {}  # what a row keeps of its candidate, and how many outputs it waits for
        unanswered: list[Row] = []

        def items() -> Iterator[ScoringItem]:
            for row in rows:
                in_flight[row["candidate_id"]] = [{name: row[name] for name in _KEPT}, len(scorer.outputs)]
                status = "not_text" if row["status"] == "ok" and not _is_text(row["message"]) else row["status"]
                if status == "ok":
                    yield item_of(row)
                else:
                    unanswered.append({**row, "status": status})

        def without_answer() -> Iterator[Score]:
            while unanswered:
                row = unanswered.pop()
                for output in scorer.outputs:
                    yield Score(row["candidate_id"], None, row["status"], None, None, output)

        def everything() -> Iterator[Score]:
            for scored in scorer.score(items()):
                yield scored
                yield from without_answer()
            yield from without_answer()

        with ExitStack() as stack:
            appenders = {name: stack.enter_context(PartWriter(one)) for name, one in self.partitions.items()}
            for scored in everything():
                waiting = in_flight[scored.key]
                appenders[scored.output].add({**waiting[0], **_score_columns(scored)})
                waiting[1] -= 1
                if waiting[1] == 0:
                    del in_flight[scored.key]
                    self.done += 1
                    self.progress(self.done, self.total)


def with_prompts(run: Run, rows: list[Row]) -> list[Row]:
    """Rows of candidates with their prompts' messages, reference and metadata.

    Raises:
        InputError: a prompt is not in the run.
    """
    wanted = list({row["prompt_id"] for row in rows})
    parts = [part for source in prompt_sources(run, partial=True) for part in source.checked_parts()]
    asked = merged_prompts(PROMPTS.scan(parts).filter(pl.col("prompt_id").is_in(wanted)).select(_PROMPT).collect())
    found = {row["prompt_id"]: row for row in asked.iter_rows(named=True)}
    for row in rows:
        if row["prompt_id"] not in found:
            raise InputError(
                f"candidate {row['candidate_id']} answers a prompt that is not in the run. Ingest it again."
            )
    return [{**row, **found[row["prompt_id"]]} for row in rows]


def _is_text(message: str | None) -> bool:
    """Whether a response's text is all that a scorer should read: it calls no tool, and has one turn."""
    if message is None:
        return True
    turns = json.loads(message)
    return isinstance(turns, dict) and not turns.get("tool_calls")


def item_of(row: Row) -> ScoringItem:
    """Return a candidate with its prompt as the item that scorers take."""
    messages, response = continued(row["messages"], row["text"])
    return ScoringItem(
        key=row["candidate_id"],
        messages=tuple(messages),
        response=response,
        truncated=row["finish_reason"] == "length",
        reference=row["reference"],
        metadata=row["metadata"],
        tools=row["tools"],
    )


def _score_columns(scored: Score) -> Row:
    return {
        "score": scored.score,
        "reason": scored.reason,
        "text_hash": scored.text_hash,
        "details": None if scored.details is None else json.dumps(scored.details, ensure_ascii=False),
    }
