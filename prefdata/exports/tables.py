"""Joined rows as a dialect's table: its columns, with their types and descriptions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

import polars as pl
import pyarrow as pa

from prefdata.exports.notation import Notation
from prefdata.exports.places import Places
from prefdata.exports.registry import Column
from prefdata.exports.templates import build


class DialectTable:
    """Rows in a dialect; what it has no place for is counted.

    Attributes:
        dropped: rows that the dialect cannot say, by reason.
        left_out: rows of which something is not written.
    """

    def __init__(self, columns: Mapping[str, Column], notation: Notation, used: Collection[str]) -> None:
        """A table with these columns; `used` are the keys that any message has."""
        self._columns, self._notation, self._used = columns, notation, used
        self._places = Places([column.is_ for column in columns.values()], notation, used)
        self.dropped: Counter[str] = Counter()
        self.left_out: Counter[str] = Counter()

    def rows(self, joined: pl.DataFrame) -> tuple[pa.Table, pl.Series]:
        """The rows that the dialect can say, and their splits."""
        reasons = self._places.reasons(joined)
        if reasons.null_count() < joined.height:
            self.dropped.update(reasons.drop_nulls().to_list())
            joined = joined.filter(reasons.is_null())
        self.left_out += self._places.left_out(joined)
        built = {name: build(joined, one.is_, self._notation, self._used) for name, one in self._columns.items()}
        arrays, fields = [], []
        for name, values in built.items():
            if len(values) != joined.height:
                values = values.extend_constant(values[0], joined.height - 1) if joined.height else values.clear()
            array = values.to_arrow()
            kind = self._kind(array.type)
            arrays.append(array.cast(kind))
            about = self._columns[name].about or ABOUT.get(name, "")
            fields.append(pa.field(name, kind, metadata={"description": about}))
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields)), joined["split"]

    def _kind(self, kind: pa.DataType) -> pa.DataType:
        """A type as trainers' loaders have it: plain texts and lists, a message's role and content never null."""
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
