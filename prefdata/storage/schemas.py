"""The tables: the contracts in `schemas/*.json` as Arrow schemas.

A column's type is one of the logical types in `TYPES`; a column is never null unless its contract says `nullable`.
Descriptions travel as Arrow field metadata, the table's name and version as schema metadata, so that a Parquet file
explains itself wherever it is opened.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from prefdata.errors import InputError, did_you_mean
from prefdata.ids import ID_DIGITS, chars, text_key

if TYPE_CHECKING:
    import polars as pl

MESSAGE = pa.struct(
    [
        pa.field("role", pa.string(), nullable=False),
        pa.field("content", pa.string(), nullable=False),
        pa.field("tool_calls", pa.string()),  # JSON: their arguments have no common type
        pa.field("tool_call_id", pa.string()),
        pa.field("name", pa.string()),
        pa.field("reasoning_content", pa.string()),
        pa.field("weight", pa.float64()),
        pa.field("prefill", pa.bool_()),
    ]
)
"""A message: `weight` is what the turn counts in training (1 unless given), `prefill` marks a response's beginning."""

TYPES: dict[str, pa.DataType] = {
    "id": pa.string(),
    "text": pa.string(),
    "json": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "strings": pa.list_(pa.string()),
    "tokens": pa.list_(pa.int32()),
    "ints": pa.list_(pa.int32()),
    "floats": pa.list_(pa.float64()),
    "messages": pa.list_(MESSAGE),
    "references": pa.list_(pa.struct([pa.field("text", pa.string(), nullable=False), pa.field("source", pa.string())])),
}
"""Logical types of columns, by the name that the contracts use."""


FOLLOWING: dict[str, Callable[[Any], Any]] = {"text_key": text_key, "chars": chars}
"""Columns that follow from others (from the first of `of`, in the contract, that is not null), by name: how."""


@dataclass(frozen=True)
class Table:
    """One table's contract.

    `partition` is the Hive key of its folders, `key` the columns that name a row, `version` the contract's version,
    `reads` the older versions whose parts can be read: columns that they lack are null.
    """

    name: str
    version: int
    reads: tuple[int, ...]
    description: str
    partition: str
    key: tuple[str, ...]
    columns: tuple[dict[str, Any], ...]

    @property
    def flag(self) -> str:
        """The option that names a partition."""
        return "--input" if self.name in ("unpaired", "groups", "demonstrations") else f"--{self.partition}"

    @cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with nullability, and descriptions as metadata."""
        fields = [
            pa.field(
                column["name"],
                TYPES[column["type"]],
                nullable=column.get("nullable", False),
                metadata={"description": column["description"]},
            )
            for column in self.columns
        ]
        return pa.schema(
            fields,
            metadata={"table": self.name, "version": str(self.version), "description": self.description},
        )

    @cached_property
    def copied(self) -> list[str]:
        """The columns that repeat what the candidates table says of the row's candidate."""
        return [column["name"] for column in self.columns if "from" in column]

    def conform(self, rows: pa.Table) -> pa.Table:
        """`rows` with exactly this table's columns, types and order.

        Raises:
            InputError: a column is missing, unknown, of another kind, or null where the contract forbids it.
        """
        for name in rows.column_names:
            if name not in self.schema.names:
                raise InputError(f"{self.name}: unknown column {name!r}.{did_you_mean(name, self.schema.names)}")
        columns = [self._column(rows, field) for field in self.schema]
        return pa.Table.from_arrays(columns, schema=self.schema)

    def read(self, part: Path, columns: Sequence[str] | None = None) -> pa.Table:
        """Read a part, also one of an older version, as this version has it; some columns or all, in their order."""
        wanted = self.schema.names if columns is None else list(columns)
        with pq.ParquetFile(part) as file:
            return self.upgrade(file.read([name for name in wanted if name in file.schema_arrow.names]), wanted)

    def upgrade(self, rows: pa.Table, columns: Sequence[str]) -> pa.Table:
        """`columns` of rows that were read from a part, as this version has them; those that it lacks are null."""
        fields = [self.schema.field(name) for name in columns]
        there = {name: rows[name] for name in rows.column_names}
        nulls = {f.name: pa.chunked_array([pa.nulls(rows.num_rows, f.type)]) for f in fields if f.name not in there}
        found = [nulls[f.name] if f.name in nulls else there[f.name].cast(f.type) for f in fields]
        return pa.Table.from_arrays(found, schema=pa.schema(fields, self.schema.metadata))

    def scan(self, parts: Sequence[Path]) -> pl.LazyFrame:
        """Scan parts, also of older versions, as one frame in this version."""
        import polars as pl

        frame = pl.from_arrow(self.empty())
        assert isinstance(frame, pl.DataFrame)
        inserted = pl.ScanCastOptions(missing_struct_fields="insert")
        return pl.scan_parquet(
            list(parts),
            schema=frame.schema,
            hive_partitioning=False,
            glob=False,
            missing_columns="insert",
            cast_options=inserted,
        )

    def _column(self, rows: pa.Table, field: pa.Field) -> pa.ChunkedArray:
        if field.name not in rows.column_names:
            if field.nullable:
                return pa.chunked_array([pa.nulls(rows.num_rows, field.type)])
            raise InputError(f"{self.name}: the column {field.name!r} is missing.")
        column = rows[field.name]
        if column.null_count and not field.nullable:
            row = pc.index(column.is_null(), True).as_py()
            raise InputError(f"{self.name}: {field.name} is null in row {row + 1}, and may not be.")
        try:
            return column.cast(field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise InputError(f"{self.name}: {field.name} is {column.type}, not {field.type} ({error}).") from None

    def from_rows(self, rows: list[dict[str, Any]]) -> pa.Table:
        """Python rows as a table of this contract; columns that follow from others need not be there."""
        following = {column["name"]: column["of"] for column in self.columns if "of" in column}
        if following:
            rows = [{**_following(row, following), **row} for row in rows]
        return pa.Table.from_pylist(rows, schema=self.schema)

    def empty(self) -> pa.Table:
        """No rows, all columns."""
        return pa.Table.from_batches([], self.schema)  # empty_table() would import pandas


def _following(row: dict[str, Any], following: dict[str, list[str]]) -> dict[str, Any]:
    return {
        name: FOLLOWING[name](next((row[column] for column in of if row.get(column) is not None), None))
        for name, of in following.items()
    }


def trimmed(rows: pa.Table) -> pa.Table:
    """`rows` without the keys of messages that none of them has: SQL and trainers are not shown nulls alone."""
    for place, field in enumerate(rows.schema):
        structs = [_flat(chunk) for chunk in rows[field.name].chunks]
        if any(some.type == MESSAGE for some in structs):
            used = [
                key.name
                for key in MESSAGE
                if not key.nullable or any(some.field(key.name).null_count < len(some) for some in structs)
            ]
            slim = field.with_type(_with_keys(field.type, used))
            rows = rows.set_column(place, slim, rows[field.name].cast(slim.type))
    return rows


def _flat(lists: pa.Array) -> pa.Array:
    return _flat(lists.flatten()) if pa.types.is_list(lists.type) else lists


def _with_keys(kind: pa.DataType, keys: list[str]) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_with_keys(kind.value_type, keys))
    return pa.struct([kind.field(key) for key in keys])


def _contracts() -> list[Table]:
    try:
        folder: Any = resources.files("prefdata.schemas")
    except ModuleNotFoundError:  # a bare checkout that was never installed
        folder = Path(__file__).parents[1] / "schemas"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return [_contract(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _contract(contract: dict[str, Any]) -> Table:
    return Table(
        name=contract["table"],
        version=contract["version"],
        reads=tuple(contract.get("reads", ())),
        description=contract["description"],
        partition=contract["partition"]["name"],
        key=tuple(contract["key"]),
        columns=tuple(contract["columns"]),
    )


def write_parquet(rows: pa.Table, file: IO[bytes]) -> None:
    """Write rows as a Parquet file."""
    pq.write_table(rows, file, compression="zstd", use_dictionary=_repeating(rows))


def scan_parts(parts: Path | list[Path]) -> pl.LazyFrame:
    """Scan Parquet files by their exact names: `[`, `*` and `?` are no patterns, `key=value` in a path no column."""
    import polars as pl

    return pl.scan_parquet(parts, hive_partitioning=False, glob=False)


def read_part(part: Path, columns: Sequence[str]) -> pl.DataFrame:
    """Read columns of one Parquet file, by its exact name."""
    import polars as pl

    return pl.read_parquet(part, columns=list(columns), hive_partitioning=False, glob=False)


def _repeating(rows: pa.Table) -> list[str]:
    """Return the columns (of nested ones the leaves) that are worth a dictionary: their values repeat.

    For ids and scores, nearly all different, making one takes half of the time that a part takes to write, and what is
    written is larger and slower to read. The first rows decide.
    """
    found: list[str] = []
    for field in rows.schema:
        some = rows[field.name].slice(0, _LOOKED_AT)
        if pa.types.is_nested(field.type):
            found += _leaves(field.name, field.type)
        elif pc.count_distinct(some).as_py() * 2 <= len(some):
            found.append(field.name)
    return found


_LOOKED_AT = 1000


def _leaves(path: str, kind: pa.DataType) -> list[str]:
    if pa.types.is_list(kind):
        return _leaves(f"{path}.list.element", kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(f"{path}.{field.name}", field.type)]
    return [path]


def rebatch(empty: pa.Table, pieces: Iterable[pa.Table], rows: int, size: int) -> Iterator[pa.Table]:
    """Give the rows of `pieces` in tables of so many rows, or of `size` bytes or little more where that is less.

    Where a table ends does not depend on the pieces. The rest is in the last one; there is one at least.
    """
    waiting, many = empty, 0
    for piece in pieces:
        waiting = pa.concat_tables([waiting, piece])
        while full := _full(waiting, rows, size):
            many += 1
            yield waiting.slice(0, full)
            waiting = waiting.slice(full)
    if waiting.num_rows or not many:
        yield waiting


_STEP = 4096
"""Rows by which tables of a size in bytes differ."""


def _full(waiting: pa.Table, rows: int, size: int) -> int:
    """How many of the first rows are `rows`, or `size` bytes; 0 where there are not as many."""
    most = min(waiting.num_rows, rows)
    if waiting.nbytes >= size:
        steps = range(_STEP, most + 1, _STEP)
        place = bisect_left(steps, True, key=lambda many: waiting.slice(0, many).nbytes >= size)
        if place < len(steps):
            return steps[place]
    return rows if most == rows else 0


def superseded_rows(parts: Sequence[Path], key: list[str]) -> dict[int, list[int]]:
    """Find the rows of these parts whose key occurs again later: row numbers, by the part's number.

    Keys are compared by a hash of 64 bits first, so that 8 bytes a row are held; only rows whose hash occurs twice are
    compared in full.
    """
    import numpy as np

    def keys(part: Path) -> pl.DataFrame:
        return read_part(part, key).select(key)

    hashes = [keys(part).hash_rows().to_numpy() for part in parts]
    every = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    every.sort()
    often = np.unique(every[1:][every[1:] == every[:-1]])
    del every
    seen: set[tuple[Any, ...]] = set()
    found: dict[int, list[int]] = {}
    for number in reversed(range(len(parts) if len(often) else 0)):
        rows = np.flatnonzero(np.isin(hashes[number], often))[::-1]
        for row, one in zip(rows.tolist(), keys(parts[number])[rows.tolist()].iter_rows(), strict=True):
            if one in seen:
                found.setdefault(number, []).append(row)
            seen.add(one)
    return found


def keep_last(rows: pa.Table, key: Sequence[str]) -> pa.Table:
    """Keep the last row of each key, in their order."""
    numbered = rows.select(list(key)).append_column("__row", pa.array(range(rows.num_rows), pa.int64()))
    last = numbered.group_by(list(key)).aggregate([("__row", "max")])["__row_max"]
    return rows if len(last) == rows.num_rows else rows.take(last.combine_chunks().sort())


TABLES: dict[str, Table] = {table.name: table for table in _contracts()}
"""All tables in the order of the flow."""

PROMPTS, CANDIDATES, COMPARISONS, SCORES, SELECTIONS, PAIRS, UNPAIRED, GROUPS, DEMONSTRATIONS = TABLES.values()


def rows_hash(rows: pa.Table, key: str) -> str:
    """Return the id of a set of rows of plain columns: the same for equal rows in any order and number of parts."""
    rows = rows.sort_by(key).combine_chunks()
    hashed = hashlib.sha256()
    for name in rows.column_names:
        column = rows[name].combine_chunks()
        hashed.update(name.encode() + str(column.type).replace("large_", "").encode())
        hashed.update(column.is_null().cast(pa.uint8()).to_numpy(zero_copy_only=False).tobytes())
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            lengths = pc.binary_length(column).fill_null(0).cast(pa.int64())
            hashed.update(lengths.to_numpy(zero_copy_only=False).tobytes())
            hashed.update("".join(column.fill_null("").to_pylist()).encode("utf-8", "surrogatepass"))
        else:
            hashed.update(column.fill_null(0).to_numpy(zero_copy_only=False).tobytes())
    return hashed.hexdigest()[:ID_DIGITS]
