"""The board: which candidates to compare, a share of the prompts at a time.

Responses that are empty, or repeat another one's text for the same prompt, are left out: there is nothing to judge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from prefdata.comparisons.schedule import ORDERS, Seen, Two, how_many, orders, schedule
from prefdata.errors import InputError
from prefdata.ids import Message, continued
from prefdata.keyed_random import RowSetHash, uniforms
from prefdata.scorers.protocol import Comparison
from prefdata.specs.rank import CompareSpec
from prefdata.storage.queries import WHITESPACE, blank
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import CANDIDATES, COMPARISONS, PROMPTS, TABLES, Table
from prefdata.storage.spill import SpillBuckets, bucket_count, spill_dir

SHARE = 8192
"""Candidates whose texts are held at a time, about."""

BATCH = 16_384
"""Rows that are read at a time."""

_PLAYER, _ASKED = ["candidate_id", "prompt_id", "text"], ["prompt_id", "messages"]
_VERDICT = ["prompt_id", "first_id", "second_id", "order", "verdict", "probability"]


@dataclass
class PromptBatch:
    """The candidates of some prompts, and the verdicts on them so far.

    Attributes:
        groups: each prompt's candidates, in random order.
        texts: the candidates' responses.
        prompt_of: the candidates' prompts.
        messages: the prompts' conversations.
        seen: the verdicts so far.
    """

    groups: list[list[str]]
    texts: dict[str, str]
    prompt_of: dict[str, str]
    messages: dict[str, list[Message]]
    seen: Seen

    def next(self, spec: CompareSpec) -> list[tuple[Two, str]]:
        """Return the comparisons that can be made now and have not been made."""
        return [
            (two, order)
            for group in self.groups
            for two in schedule(group, self.seen, spec)
            for order in orders(two, spec)
            if (two, order) not in self.seen
        ]

    def match(self, key: str, two: Two, order: str) -> Comparison:
        """Two candidates in the order in which they are to be shown."""
        shown, other = two if order == ORDERS[0] else two[::-1]
        asked = self.messages[self.prompt_of[shown]]
        messages, first = continued(asked, self.texts[shown])
        return Comparison(key, tuple(messages), first, continued(asked, self.texts[other])[1])


class PlayerStore:
    """All players of a run, by share; to be used as a context manager.

    Attributes:
        shares: how many there are.
        players: how many candidates take part.
        comparisons: how many comparisons there are to be.
        content: the id of the players.
    """

    def __init__(self, run: Run, samplers: Sequence[Partition], spec: CompareSpec) -> None:
        """Take the candidates of some samplers, for the schedule of `spec`."""
        self._run, self._samplers, self._spec = run, samplers, spec
        self._parts = [part for sampler in samplers for part in sampler.checked_parts()]
        rows = sum(pq.read_metadata(part).num_rows for part in self._parts)
        self.shares = bucket_count(rows, SHARE)
        self.players = self.comparisons = 0
        self.content = ""
        self._read: set[Path] = set()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        room = self._stack.enter_context(spill_dir(self._run))
        self._candidates, self._prompts, self._verdicts = (
            SpillBuckets(room / table, self.shares, pl.DataFrame(TABLES[table].empty().select(columns)))
            for table, columns in (("candidates", _PLAYER), ("prompts", _ASKED), ("comparisons", _VERDICT))
        )
        for buckets in (self._candidates, self._prompts, self._verdicts):
            self._stack.callback(buckets.close)
        for rows in _batches(CANDIDATES, self._parts, [*_PLAYER, "status"]):
            self._candidates.put(rows.filter((pl.col("status") == "ok") & ~blank("text")).select(_PLAYER))
        prompts = [part for source in self._run.all("prompts", partial=True) for part in source.checked_parts()]
        for rows in _batches(PROMPTS, prompts, _ASKED):
            self._prompts.put(rows)
        self._count()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look(self, partition: Partition) -> None:
        """Take in the verdicts that came since."""
        parts = partition.stored(self._read)
        self._read.update(parts)
        for rows in _batches(COMPARISONS, parts, _VERDICT):
            self._verdicts.put(rows)

    def missing(self) -> int:
        """How many comparisons can be made now and have not been."""
        return sum(len(self.share(number).next(self._spec)) for number in range(self.shares))

    def seen(self) -> int:
        """How many comparisons have been made, each once."""
        return sum(self.verdicts(number).height for number in range(self.shares))

    def verdicts(self, number: int) -> pl.DataFrame:
        """Return the comparisons that are stored for a share, without duplicates."""
        rows = self._verdicts.bucket(number)
        return rows.unique(["first_id", "second_id", "order"], keep="last", maintain_order=True)

    def share(self, number: int) -> PromptBatch:
        """Return one share of the prompts, with the verdicts so far.

        Raises:
            InputError: a candidate's prompt is not in the run.
        """
        rows = self._playing(number)
        verdicts = self.verdicts(number).select("first_id", "second_id", "order", "probability").iter_rows()
        groups = rows.group_by("prompt_id", maintain_order=True).agg("candidate_id")["candidate_id"].to_list()
        messages: dict[str, Any] = dict(self._prompts.bucket(number).select(_ASKED).iter_rows())
        if lost := [one for one in rows["prompt_id"].unique() if one not in messages]:
            raise InputError(f"the run has answers to the prompt {lost[0]}, and not the prompt. Ingest it again.")
        return PromptBatch(
            groups,
            dict(rows.select("candidate_id", "text").iter_rows()),
            dict(rows.select("candidate_id", "prompt_id").iter_rows()),
            messages,
            {((first, second), order): probability for first, second, order, probability in verdicts},
        )

    def _playing(self, number: int) -> pl.DataFrame:
        """Return the eligible candidates of a share, each prompt's in the random order of the schedule."""
        rows = self._candidates.bucket(number)
        rows = rows.with_columns(bare=pl.col("text").str.strip_chars(WHITESPACE)).sort("candidate_id")
        rows = rows.unique(["prompt_id", "bare"], keep="first", maintain_order=True)
        uniform = pl.Series("uniform", uniforms(rows["candidate_id"], self._spec.seed, "schedule"))
        rows = rows.with_columns(uniform).sort("prompt_id", "uniform", "candidate_id")
        return rows.select("candidate_id", "prompt_id", "text")

    def _count(self) -> None:
        content = RowSetHash()
        for number in range(self.shares):
            rows = self._playing(number)
            self.players += rows.height
            content.add(rows["candidate_id"], pl.zeros(rows.height, eager=True))
            self.comparisons += sum(how_many(n, self._spec) for n in rows.group_by("prompt_id").len()["len"])
        self.content = content.id


def _batches(table: Table, parts: Iterable[Path], columns: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield the rows of the parts, in batches."""
    for part in parts:
        for batch in pq.ParquetFile(part).iter_batches(BATCH, columns=list(columns)):
            frame = pl.from_arrow(table.upgrade(pa.table(batch), columns))
            assert isinstance(frame, pl.DataFrame)
            yield frame
