"""The rows to export, each with its prompt and its responses, in the order of their keys.

Keys are hashes, so that their order is random and the same whatever the order in which rows were made. Each table is
read once. Where the texts are too many to be held, rows, prompts and candidates are divided into buckets by prompt, and
one bucket of each is held at a time: labels are then in the order of their keys within each bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefdata.errors import InputError
from prefdata.exports.joined import Bucket, Keys
from prefdata.exports.notation import KEYS
from prefdata.keyed_random import Bits, distinct, id_prefix64, isin_sorted
from prefdata.storage.queries import chosen_samplers, merged_prompts, prompt_sources
from prefdata.storage.run import MADE_BY, Partition, Run
from prefdata.storage.schemas import MESSAGE, TABLES
from prefdata.storage.spill import MAX_BUCKETS, SpillBuckets

HELD_BYTES = 300_000_000
"""Texts of a bucket in bytes, about."""

NO_KEYS: Bits = np.empty(0, np.uint64)

_PROMPT = ("prompt_id", "messages", "tools", "reference", "split")
_NOT_READ = {"details", "copy_ids", "text", "message", "token_ids", "logprobs", "sampled_messages", "metadata"}


class JoinedRows:
    """The rows of one table, or of the prompts of all sources.

    Attributes:
        left_out: how many rows of the table are not exported, and why: ties, and all but the best of each prompt.
    """

    def __init__(self, run: Run, source: Sequence[Partition]) -> None:
        """Return the rows of `source`, partitions of one table."""
        self.run, self.source = run, source
        self.table = source[0].table.name
        self.left_out: dict[str, int] = {}
        self._sources = prompt_sources(run, partial=True)
        self._samplers = [] if self.table == "prompts" else chosen_samplers(run)

    @cached_property
    def used(self) -> frozenset[str]:
        """The keys that messages have beside role and content, as the files' own statistics tell."""
        parts = [part for source in self._sources for part in source.checked_parts()]
        keys = {key for part in parts for key in KEYS if _has_values(part, f"messages.list.element.{key}")}
        more = {"tool_calls", "reasoning_content", "name", "tool_call_id"} if self._has_messages else set()
        return frozenset(keys | more)

    def counts(self) -> dict[str, int]:
        """How many rows each split has.

        Raises:
            InputError: a row names a prompt or a candidate that the run does not hold.
        """
        lost = np.zeros(self.rows.height, bool)
        prompts = pl.concat([_frame(part, ["prompt_id", "split"]) for part in self._parts(self._sources)])
        places = Keys(prompts["prompt_id"]).places(self.rows["prompt_id"])
        lost |= places < 0
        if self.table != "prompts":
            there = np.sort(np.concatenate([NO_KEYS, *(keys for _, keys in self._found)]))
            absent = self._needed[~isin_sorted(there, self._needed)]
            for ids in self._ids_of_rows:
                gone = isin_sorted(absent, id_prefix64(ids))
                lost |= gone if self.table != "groups" else self._lost_groups(gone)
        if lost.any():
            first = self.rows.filter(pl.Series(lost))[self.source[0].table.key[0]].sort()[0]
            raise InputError(
                f"{lost.sum()} of {lost.size} rows of {self.source[0]} name a prompt or a candidate that {self.run} "
                f"does not hold (first: {first}). Run `{MADE_BY[self.table]}` again."
            )
        found = prompts["split"].gather(places).value_counts().sort("split", descending=True)
        return dict(found.iter_rows())

    @cached_property
    def samplers(self) -> list[str]:
        """The samplers whose responses are in the rows."""
        return [sampler.name for sampler, _ in self._found]

    def present(self, parts: Sequence[str]) -> set[str]:
        """Which of these parts any row has."""
        if not parts:
            return set()
        of_prompts = [name for name in parts if name in ("tools", "reference")]
        found = {name for name in parts if name in self.rows.columns and self.rows[name].count()}
        wanted = Keys(self.rows["prompt_id"])
        system, history = "system" in parts, "history" in parts
        columns = ["prompt_id", *of_prompts, *(["messages"] if system or history else [])]
        for part in self._parts(self._sources):
            rows = _frame(part, columns, self.used)
            rows = rows.filter(pl.Series(wanted.places(rows["prompt_id"]) >= 0))
            found |= {name for name in of_prompts if rows[name].count()}
            if system or history:
                first = pl.col("messages").list.first().struct.field("role") == "system"
                turns = pl.col("messages").list.len() - first.cast(pl.UInt32)
                seen = rows.select(system=first.any(), history=(turns > 1).any()).row(0, named=True)
                found |= {name for name in ("system", "history") if name in parts and seen[name]}
        return found

    def batches(self, spill: Path, parts: frozenset[str]) -> Iterator[tuple[Bucket, int]]:
        """Where each batch of rows is, in order; `Bucket.batch` makes it. `parts` are asked for of each row."""
        count = self._buckets
        rows = self._divided(spill / "rows", count, [self.rows])
        prompts = self._divided(spill / "prompts", count, map(self._prompts_of, self._parts(self._sources)))
        candidates = self._divided(spill / "candidates", count, self._candidates())
        try:
            for number in range(count):
                some = prompts.bucket(number)
                merged = merged_prompts(some) if len(self._sources) > 1 else some
                named = merged if self.table == "prompts" else rows.bucket(number)
                ordered = named.sort(self._order)
                bucket = Bucket(self.table, ordered, merged, candidates.bucket(number), self.used, parts)
                yield from bucket.slices()
        finally:
            for one in (rows, prompts, candidates):
                one.close()

    @property
    def _order(self) -> list[str]:
        # A prompt's pairs stay together; its labels do not: KTO takes each one's neighbour for another prompt's.
        return (["prompt_id"] if self.table == "pairs" else []) + list(self.source[0].table.key)

    @cached_property
    def rows(self) -> pl.DataFrame:
        """The rows themselves: no tie as a preference, and of a selection the best of each prompt."""
        if self.table == "prompts":
            ids = pl.concat([_frame(part, ["prompt_id"]) for part in self._parts(self._sources)])
            return ids.unique(maintain_order=True)
        schema = self.source[0].table.schema
        rows = pl.DataFrame(self.source[0].read([name for name in schema.names if name not in _NOT_READ]))
        if self.table == "pairs":
            kept, reason = rows.filter(pl.col("verdict") != "tie"), "tie"
        elif self.table == "selections":
            first = rows.sort("prompt_id", pl.col("score").neg(), "rank")
            kept, reason = first.unique("prompt_id", keep="first", maintain_order=True), "not_the_best"
        elif self.table == "candidates":
            kept, reason = rows.filter(pl.col("status") == "ok"), "failed"
        else:
            return rows
        self.left_out = {reason: rows.height - kept.height}
        return kept

    @property
    def _ids_of_rows(self) -> list[pl.Series]:
        if self.table == "groups":
            return [self.rows["candidate_ids"].explode()]
        return [self.rows[name] for name in self.rows.columns if name in ("chosen_id", "rejected_id", "candidate_id")]

    @cached_property
    def _needed(self) -> Bits:
        """The keys of the candidates that rows name, in order."""
        return distinct(np.concatenate([NO_KEYS, *map(id_prefix64, self._ids_of_rows)]))

    @cached_property
    def _found(self) -> list[tuple[Partition, Bits]]:
        """The samplers that hold candidates which none before them holds, and the keys of these."""
        found, rest = [], self._needed
        for sampler in self._samplers:
            keys = [id_prefix64(_frame(part, ["candidate_id"])["candidate_id"]) for part in sampler.checked_parts()]
            there = isin_sorted(np.sort(np.concatenate([NO_KEYS, *keys])), rest)
            if there.any():
                found.append((sampler, rest[there]))
            rest = rest[~there]
        return found

    def _lost_groups(self, gone: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the groups of which a candidate is gone, from which candidates are, group by group."""
        each = self.rows.select(pl.int_range(pl.len()).alias("row"), "candidate_ids").explode("candidate_ids")
        lost: NDArray[np.bool_] = np.isin(np.arange(self.rows.height), each["row"].to_numpy()[gone])
        return lost

    @cached_property
    def _has_messages(self) -> bool:
        return any(_has_values(part, "message") for part in self._parts(self._samplers))

    @property
    def _buckets(self) -> int:
        """So many buckets that the texts of one can be held."""
        texts = sum(_size(part, "text") + _size(part, "message") for part in self._parts(self._samplers))
        size = texts + sum(_size(part, "messages") for part in self._parts(self._sources))
        return min(MAX_BUCKETS, max(1, -(-size // HELD_BYTES)))

    def _prompts_of(self, part: Path) -> pl.DataFrame:
        more = ["tags"] if self.table == "prompts" else []
        return _frame(part, [*_PROMPT, *more], self.used)

    def _candidates(self) -> Iterator[pl.DataFrame]:
        columns = ["prompt_id", "candidate_id", "text", *(["message"] if self._has_messages else [])]
        if self.table == "prompts":
            yield pl.DataFrame(TABLES["candidates"].empty().select(columns))
            return
        for sampler, keys in self._found:
            # Of a candidate that is there twice, because two processes did the same work, the last row counts.
            for part in reversed(sampler.checked_parts()):
                rows = _frame(part, columns)
                rows = rows.filter(pl.Series(isin_sorted(keys, id_prefix64(rows["candidate_id"]))))
                yield rows if sampler.state == "finished" else rows.reverse()

    @staticmethod
    def _divided(folder: Path, count: int, frames: Iterable[pl.DataFrame]) -> SpillBuckets:
        buckets = None
        for frame in frames:
            buckets = buckets or SpillBuckets(folder, count, frame.clear())
            buckets.put(frame)
        assert buckets is not None, "a table without parts"
        return buckets

    @staticmethod
    def _parts(partitions: Sequence[Partition]) -> list[Path]:
        return [part for partition in partitions for part in partition.checked_parts()]


def _frame(part: Path, columns: Sequence[str], used: frozenset[str] = frozenset()) -> pl.DataFrame:
    """Columns of a part; texts that an older version lacks are null, messages have the keys that are used."""
    with pq.ParquetFile(part) as file:
        rows = file.read([name for name in columns if name in file.schema_arrow.names])
    if "messages" in rows.column_names:
        fields = [field for field in MESSAGE if not field.nullable or field.name in used]
        kind = pa.list_(pa.struct(fields))
        place = rows.column_names.index("messages")
        if rows.schema.field(place).type != kind:
            rows = rows.set_column(place, "messages", rows["messages"].cast(kind))
    found = pl.DataFrame(rows)
    lacking = [name for name in columns if name not in found.columns]
    return found.with_columns(pl.lit(None, pl.String).alias(name) for name in lacking).select(columns)


def _columns(part: Path, column: str) -> Iterator[pq.ColumnChunkMetaData]:
    with pq.ParquetFile(part) as file:
        names = [file.schema.column(place).path for place in range(len(file.schema))]
        for group in range(file.metadata.num_row_groups):
            for place, name in enumerate(names):
                if name == column or name.startswith(f"{column}."):
                    yield file.metadata.row_group(group).column(place)


def _has_values(part: Path, column: str) -> bool:
    """Whether any value of a part's column is not null; a column that is not there has none."""
    found = _columns(part, column)
    return any(one.statistics is None or one.statistics.null_count < one.num_values for one in found)


def _size(part: Path, column: str) -> int:
    """Bytes of a part's column, without compression."""
    return sum(one.total_uncompressed_size for one in _columns(part, column))
