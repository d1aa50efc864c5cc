"""What several steps read: prompts of all sources, candidates of all samplers, scored candidates."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from prefdata.errors import InputError, StorageError, UsageError, did_you_mean
from prefdata.ids import without_nulls
from prefdata.keyed_random import Bits, id_prefix64
from prefdata.specs import SampleSpec
from prefdata.storage.run import Partition, Run
from prefdata.storage.schemas import PROMPTS, TABLES, Table, read_part

if TYPE_CHECKING:
    import duckdb

    from prefdata.sql.session import Session

WHITESPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())
"""What `str.strip` strips; Polars' own notion leaves some control characters."""


def blank(column: str) -> pl.Expr:
    """Whether a text is null, empty or whitespace alone: an empty answer, as everyone here means it."""
    return pl.col(column).fill_null("").str.strip_chars(WHITESPACE) == ""


def read_prompts(run: Run, split: str = "all", *, partial: bool = False) -> pl.DataFrame:
    """Read the prompts of all sources, each once, in a fixed order; of one split or of both.

    Raises:
        NotReady: there are none, or a source is unfinished and `partial` was not asked for.
        InputError: the split is empty.
    """
    names = TABLES["prompts"].schema.names
    prompts = merged_prompts(pl.concat([_frame(source, names) for source in prompt_sources(run, partial=partial)]))
    chosen = prompts if split == "all" else prompts.filter(pl.col("split") == split)
    if chosen.height == 0:
        raise InputError(f"{run} has {prompts.height} prompts and none in the split {split!r}. Choose another --split.")
    return chosen


def prompt_sources(run: Run, *, partial: bool = False) -> list[Partition]:
    """Return the sources of prompts in the order in which they were first ingested, by their numbers and names.

    Raises:
        NotReady: there are none, or one is unfinished and `partial` was not asked for.
    """
    return sorted(run.all("prompts", partial=partial), key=lambda source: (source_number(source), source.name))


def source_number(source: Partition) -> int:
    """Return the number of a source of prompts; 0 if it has none, as those of older versions.

    Raises:
        InputError: a part of it is damaged, missing or one too many.
    """
    numbers = [PROMPTS.read(part, ["source_number"])["source_number"] for part in source.checked_parts()[:1]]
    return next((number[0].as_py() or 0 for number in numbers if len(number)), 0)


def merged_prompts(prompts: pl.DataFrame) -> pl.DataFrame:
    """Merge the rows of prompts that several sources hold, which come in the order of `prompt_sources`.

    The first row of each prompt stays; the first reference, metadata and tags that there are win, and `references` are
    those of all sources.
    """
    if prompts["prompt_id"].n_unique() == prompts.height:
        return prompts
    found = {
        "reference": pl.col("reference").drop_nulls().first(),
        "metadata": pl.col("metadata").drop_nulls().first(),
        "tags": pl.coalesce(pl.col("tags").filter(pl.col("tags").list.len() > 0).first(), pl.col("tags").first()),
        "references": pl.col("references").explode().drop_nulls().unique(maintain_order=True),
    }
    merged = {name: how for name, how in found.items() if name in prompts.columns}
    rows = prompts.group_by("prompt_id", maintain_order=True).agg(pl.exclude("prompt_id", *merged).first(), **merged)
    if "references" in merged:
        rows = rows.with_columns(references=pl.when(pl.col("references").list.len() > 0).then("references"))
    return rows.select(prompts.columns)


def read_candidates(
    run: Run, columns: list[str], samplers: tuple[str, ...] = (), *, of_each: bool = False
) -> pl.DataFrame:
    """Columns of the candidates of some samplers or of all, with the column `sampler`; they may be unfinished.

    A candidate that several samplers drew, because they have the same settings, is one row, the first sampler's;
    with `of_each` it is a row of each.

    Raises:
        NotReady: there are no candidates.
        UsageError: there is no such sampler.
    """
    chosen = chosen_samplers(run, samplers)
    needed = list(dict.fromkeys([*columns, "candidate_id"]))
    rows = pl.concat([_frame(one, needed).with_columns(sampler=pl.lit(one.name)) for one in chosen])
    if len(chosen) > 1 and not of_each:
        rows = rows.unique("candidate_id", keep="first", maintain_order=True)
    return rows.select(*columns, "sampler")


def chosen_samplers(run: Run, samplers: tuple[str, ...] = ()) -> list[Partition]:
    """Return the candidates of these samplers, or of all.

    Raises:
        NotReady: there are no candidates.
        UsageError: there is no such sampler.
    """
    there = run.all("candidates", partial=True)
    known = [partition.name for partition in there]
    for name in samplers:
        if name not in known:
            raise UsageError(f"{run} has no candidates by a sampler {name!r}.{did_you_mean(name, known)}")
    return [partition for partition in there if not samplers or partition.name in samplers]


def candidate_files(run: Run) -> dict[str, str]:
    """Return one id for each sampler, made from the names of its files of candidates."""
    return {str(sampler): sampler.stat_fingerprint() for sampler in run.partitions("candidates")}


def twins(sampler: Partition, others: Sequence[Partition]) -> list[Partition]:
    """Those of `others` that may hold some of a sampler's candidates: they differ in limits of length alone."""
    return [other for other in others if other.name != sampler.name and _sampling(other) == _sampling(sampler)]


def _sampling(sampler: Partition) -> str:
    lineage = sampler.lineage()
    if lineage is None:
        return sampler.name
    return SampleSpec.sampler_fingerprint(lineage.spec) if lineage.step == "sample" else lineage.fingerprint


def read_preferences(pairs: Partition, columns: list[str]) -> pl.DataFrame:
    """Columns of the pairs of which one answer is preferred: ties that were kept are none."""
    rows = _frame(pairs, [*columns, "verdict"])
    return rows.filter(pl.col("verdict") != "tie").select(columns)


def _frame(partition: Partition, columns: list[str]) -> pl.DataFrame:
    frame = pl.from_arrow(partition.read(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame


SLICE = 256
"""Prompts that are read, claimed and planned at a time."""


class PromptBatchReader:
    """The prompts of a run in their files' order, some hundred at a time: memory does not grow with their texts.

    A prompt that several sources hold comes once. Each slice has a name, the same in every process: `source-part-N`.
    """

    def __init__(
        self, run: Run, split: str = "all", *, where: str | None = None, limit: int | None = None, partial: bool = False
    ) -> None:
        """Find the prompts of a split for which the SQL condition `where` holds; `limit` takes a fair sample of them.

        Raises:
            NotReady: there are none, or a source is unfinished and `partial` was not asked for.
            InputError: no prompt is left.
            UsageError: DuckDB does not take the condition.
        """
        self._parts = [(one, part) for one in prompt_sources(run, partial=partial) for part in one.checked_parts()]
        key, in_split = _keys_and_split([part for _, part in self._parts], split)
        wanted = np.zeros(len(key), dtype=bool)
        wanted[np.unique(key, return_index=True)[1]] = True  # each prompt where it stands first
        wanted &= in_split
        if not wanted.any():
            raise InputError(f"{run} has {len(key)} prompts and none in the split {split!r}. Choose another --split.")
        if where is not None:
            sources = run.all("prompts", partial=partial)
            wanted &= np.isin(key, matching_keys({"prompts": sources}, "prompt_id", ["prompts"], where))
            if not wanted.any():
                raise InputError(
                    f"no prompt of {run} fits --where {where!r}. Query the prompts with `prefdata sql {run}`."
                )
        if limit is not None and limit < wanted.sum():
            # Ids are hashes: the smallest are a fair sample.
            wanted &= key <= np.partition(key[wanted], limit - 1)[limit - 1]
        self._wanted = wanted

    def __len__(self) -> int:
        return int(self._wanted.sum())

    def __iter__(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        place = 0
        for source, part in self._parts:
            batches = pq.ParquetFile(part).iter_batches(batch_size=SLICE)
            for number, batch in enumerate(batches):
                mask = self._wanted[place : place + batch.num_rows]
                place += batch.num_rows
                if mask.any():
                    rows = batch.filter(pa.array(mask)).to_pylist()
                    messages = ({**row, "messages": without_nulls(row["messages"])} for row in rows)
                    yield f"{source.name}-{part.stem}-{number:06d}", list(messages)


def _keys_and_split(parts: list[Path], split: str) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """Return the key of each prompt in these files, and whether it is of the split."""
    ids, splits = [np.empty(0, np.uint64)], [np.empty(0, bool)]
    for part in parts:
        frame = read_part(part, ["prompt_id", "split"])
        ids.append(id_prefix64(frame["prompt_id"]))
        splits.append((frame["split"] == split).to_numpy() | (split == "all"))
    return np.concatenate(ids), np.concatenate(splits)


MEMORY = "1GB"
"""What DuckDB holds before it spills to disk, where it has a folder for that."""


@contextmanager
def duckdb_views(
    tables: Mapping[str, Sequence[Partition]], spill: Path | None = None, files: Sequence[Path] = ()
) -> Iterator[Session]:
    """Open a DuckDB session with one view per table; each has its partition key (source, sampler, …) as a column.

    It can read the parts of these partitions, `files`, and nothing else. Where a folder to spill to is given, it holds
    `MEMORY` and puts the rest there.

    Raises:
        StorageError: a query takes more memory and disk than there is, or a file that it reads is gone.
    """
    import duckdb

    from prefdata.sql.check import error_text
    from prefdata.sql.session import MEMORY_LIMIT, Session

    views = {name: [_absolute(part) for one in some for part in one.checked_parts()] for name, some in tables.items()}
    readable = {str(part) for parts in [*views.values(), map(_absolute, files)] for part in parts}
    with Session(readable.__contains__, MEMORY if spill else MEMORY_LIMIT, spill) as session:
        try:
            for name, parts in views.items():
                add_view(session.connection, name, parts)
            yield session
        except (duckdb.IOException, duckdb.OutOfMemoryException, duckdb.PermissionException) as error:
            raise StorageError(
                f"cannot read, sort or join {' and '.join(tables)}: {error_text(error)} Free some space on the disk "
                "of the run, or wait for who changes it, and run the same command again; nothing was written."
            ) from None


def matching_keys(
    tables: Mapping[str, Sequence[Partition]],
    key: str,
    rows: Sequence[str],
    condition: str,
    spill: Path | None = None,
) -> Bits:
    """Return the first 64 bits of the ids in column `key` of the rows for which a SQL condition holds.

    `rows` are from-clauses on the tables by their names, the cheapest first: the first one that has all columns of the
    condition is read.

    Raises:
        UsageError: it is no single condition that only reads these tables, or gives other rows each time.
    """
    import duckdb

    from prefdata.sql.check import check_condition, error_text

    queries = [f"select {key} from {one} where ({condition}\n)" for one in rows]

    def matches(connection: duckdb.DuckDBPyConnection) -> pa.RecordBatchReader:
        for query in queries:
            check_condition(connection, condition, query)
        return _first_that_binds(connection, queries).to_arrow_reader(_KEYS)

    with duckdb_views(tables, spill) as session:
        try:
            batches = [id_prefix64(pl.Series(batch.column(0))) for batch in session.batches(matches)]
        except (duckdb.Error, UsageError) as error:
            raise UsageError(f"--where: {error_text(error)}") from None
    return np.concatenate([np.empty(0, np.uint64), *batches])


_KEYS = 100_000
"""Ids that are fetched at a time."""


def _first_that_binds(connection: Any, queries: Sequence[str]) -> Any:
    import duckdb

    for query in queries[:-1]:
        with suppress(duckdb.BinderException):
            return connection.sql(query)
    return connection.sql(queries[-1])


def _absolute(part: Path) -> Path:
    return Path(os.path.abspath(part))  # noqa: PTH100


def add_view(connection: Any, name: str, parts: list[Path]) -> None:
    """Make a view of these parts of a table and of no others; its partition's key is a column, as text.

    The key is a column also where there are no parts. Columns that parts of older versions lack are null.
    """
    table = TABLES[name]
    if parts:
        # As text: a sampler named 2024 is not a number.
        options = "hive_partitioning = true, hive_types_autocast = false"
        if table.reads:  # by name: parts of an older version lack columns, and messages of some parts have keys more
            options += ", union_by_name = true"
        stored = parquet_sql(parts, options)
        connection.execute(f"create view {name} as select *{_lacking(connection, table, stored)} from {stored}")
        return
    empty = table.empty().append_column(table.partition, [pa.array([], pa.string())])
    connection.register(name, empty)


def _lacking(connection: Any, table: Table, stored: str) -> str:
    """Return the columns that parts of older versions lack, as nulls, for SQL's SELECT."""
    if not table.reads:
        return ""
    known = connection.sql(f"from {stored} limit 0").columns
    empty = connection.from_arrow(table.empty())
    columns = zip(empty.columns, empty.types, strict=True)
    return "".join(f", null::{kind} as {column}" for column, kind in columns if column not in known)


def parquet_sql(parts: Sequence[Path], options: str) -> str:
    """Return the SQL that reads the rows of some files, for a FROM clause."""
    from prefdata.sql.files import file_url

    urls = ", ".join(sql_text(file_url(_absolute(part))) for part in parts)
    return f"read_parquet([{urls}], {options})"


def sql_text(text: str) -> str:
    """Quote a text as a SQL literal."""
    return "'" + text.replace("'", "''") + "'"
