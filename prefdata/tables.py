"""The tables: the contracts in `schemas/*.json` as Arrow schemas.

A column's type is one of the logical types in `TYPES`; a column is never null unless its contract says `nullable`.
Descriptions travel as Arrow field metadata, the table's name and version as schema metadata, so that a Parquet file
explains itself wherever it is opened.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from prefdata.errors import InputError, did_you_mean
from prefdata.ids import ID_DIGITS

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
    "messages": pa.list_(
        pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])
    ),
}
"""Logical types of columns, by the name that the contracts use."""


@dataclass(frozen=True)
class Table:
    """One table's contract.

    `partition` is the Hive key of its folders, `key` the columns that name a row, `version` the contract's version.
    """

    name: str
    version: int
    description: str
    partition: str
    key: tuple[str, ...]
    columns: tuple[dict[str, Any], ...]

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
        """Python rows as a table of this contract."""
        return pa.Table.from_pylist(rows, schema=self.schema)

    def empty(self) -> pa.Table:
        """No rows, all columns."""
        return self.schema.empty_table()


def _contracts() -> list[Table]:
    try:
        folder: Any = resources.files("prefdata.schemas")
    except ModuleNotFoundError:  # a bare checkout that was never installed
        folder = Path(__file__).parents[1] / "schemas"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".json")), key=lambda f: f.name)
    return [_contract(json.loads(file.read_text(encoding="utf-8"))) for file in files]


def _contract(said: dict[str, Any]) -> Table:
    return Table(
        name=said["table"],
        version=said["version"],
        description=said["description"],
        partition=said["partition"]["name"],
        key=tuple(said["key"]),
        columns=tuple(said["columns"]),
    )


TABLES: dict[str, Table] = {table.name: table for table in _contracts()}
"""All tables in the order of the flow."""

PROMPTS, CANDIDATES, COMPARISONS, SCORES, SELECTIONS, PAIRS, UNPAIRED, GROUPS, DEMONSTRATIONS = TABLES.values()


def rows_id(rows: pa.Table, key: str) -> str:
    """The id of a set of rows of plain columns: equal rows in any order, from any number of parts, have equal ids."""
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
