"""Joined rows as a dialect's table: its columns, with their types and descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from prefdata.exports.notation import Notation
from prefdata.exports.places import Places
from prefdata.exports.registry import Column
from prefdata.exports.templates import build, leaves
from prefdata.storage.report import by_reason


@dataclass(frozen=True)
class Built:
    """Rows in a dialect.

    Attributes:
        rows, splits: the rows that the dialect can say, and the split of each.
        dropped: the others, by reason.
        left_out: of how many rows something is not written.
    """

    rows: pa.Table
    splits: pl.Series
    dropped: Counter[str]
    left_out: Counter[str]


class DialectTable:
    """Makes a dialect's rows of joined ones."""

    def __init__(self, columns: Mapping[str, Column], notation: Notation, used: Collection[str]) -> None:
        """Return a table with these columns; `used` are the keys that any message has."""
        self._columns, self._notation, self._used = columns, notation, used
        templates = [column.is_ for column in columns.values()]
        self._places = Places(templates, notation, used)
        self.parts = frozenset(leaf.partition(".")[0] for one in templates for leaf in leaves(one))

    def rows(self, joined: pl.DataFrame) -> Built:
        """Return the rows in the dialect."""
        reasons = self._places.reasons(joined)
        if reasons.null_count() < joined.height:
            joined = joined.filter(reasons.is_null())
        arrays, fields = [], []
        for name, column in self._columns.items():
            array = build(joined, column.is_, self._notation, self._used).to_arrow()
            kind = self._kind(array.type)
            arrays.append(array.cast(kind))
            fields.append(pa.field(name, kind, metadata={"description": column.about or ABOUT.get(name, "")}))
        rows = pa.Table.from_arrays(arrays, schema=pa.schema(fields))
        return Built(rows, joined["split"], by_reason(reasons), self._places.left_out(joined))

    def _kind(self, kind: pa.DataType) -> pa.DataType:
        """Return a type as trainers' loaders read it: plain texts and lists, role and content never null."""
        if pa.types.is_large_list(kind) or pa.types.is_list(kind):
            return pa.list_(self._kind(kind.value_type))
        if pa.types.is_struct(kind):
            return pa.struct([self._field(kind.field(n)) for n in range(kind.num_fields)])
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            return pa.string()
        return kind

    def _field(self, field: pa.Field) -> pa.Field:
        needed = field.name in (self._notation.role, self._notation.content)
        kind = pa.json_() if field.name == "tool_calls" else self._kind(field.type)
        return pa.field(field.name, kind, nullable=not needed)


ABOUT = {"tools": "Tools that the conversation may use, as a JSON list."}
"""What columns hold that are called the same everywhere."""
