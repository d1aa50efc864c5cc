"""Joining: adding columns of another input to each row by a key, such as questions to their responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefdata.errors import InputError
from prefdata.formats import casts
from prefdata.formats.files import RawRow
from prefdata.formats.paths import dig

ROW = "@row"
"""Key column: the row number in the other input, from 0."""

Read = Callable[[str], Iterator[RawRow]]


class Join:
    """The rows of another input by their join key; they are kept in memory.

    Attributes:
        hidden: columns of the other input that were not added, because the rows have columns of that name.
    """

    def __init__(self, given: str, on: str, read: Read) -> None:
        """Read the other input.

        Args:
            given: its name, or `NAME=INPUT`: its columns are then named `NAME.column`.
            on: a column of both, or `COLUMN=OTHER`, where OTHER may be `@row`; several are separated by commas.
            read: returns the rows of an input.

        Raises:
            InputError: it cannot be read, lacks a column, or has a key twice.
        """
        self._under, self._name = _named(given)
        keys = [key.partition("=") for key in on.split(",")]
        self._own = [own for own, _, _ in keys]
        self._other = [other or own for own, _, other in keys]
        self._rows: dict[Any, Mapping[str, Any]] = {}
        self.hidden: Counter[str] = Counter()
        for number, row in enumerate(read(self._name)):
            if row.problem:
                raise InputError(f"{row.file}:{row.row}: {row.problem}. All rows of a joined file must be readable.")
            key = tuple(number if other == ROW else _key(dig(row.values, other)) for other in self._other)
            if None in key:
                missing = self._other[key.index(None)]
                raise InputError(f"{row.file}:{row.row}: the row has no {missing}, which --on names.")
            if self._rows.setdefault(key, row.values) is not row.values:
                raise InputError(
                    f"{row.file}:{row.row}: the row has the same {', '.join(self._other)} as an earlier row "
                    f"({_shown(key)})."
                )

    def rows(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Yield each row with the other input's columns added; its own win. One without a match is a bad row."""
        for row in rows:
            if row.problem:
                yield row
                continue
            key = tuple(_key(dig(row.values, own)) for own in self._own)
            found = self._rows.get(key)
            if found is None:
                problem = f"{self._name} has no row for {', '.join(self._own)} {_shown(key)}"
                yield RawRow(row.file, row.row, problem=problem, reason="not_joined")
            else:
                yield replace(row, values=self._beside(row.values, found))

    def _beside(self, own: Mapping[str, Any], found: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._under is not None:
            found = {self._under: found}
        self.hidden.update(f"{self._name}: {name}" for name in found.keys() & own.keys() - {*self._own})
        return {**found, **own}


def _named(given: str) -> tuple[str | None, str]:
    """Split NAME=INPUT into the name for the columns, if there is one, and the input."""
    name, equals, rest = given.partition("=")
    return (name, rest) if equals and name.isidentifier() and not Path(given).exists() else (None, given)


def _shown(key: tuple[Any, ...]) -> str:
    return ", ".join(map(str, key))


def _key(value: Any) -> Any:
    """Normalise a key: numbers, and texts of numbers, compare as numbers."""
    number = casts.number_of(value)
    if number is not None:
        return int(number) if number.is_integer() else number
    return value if isinstance(value, str) else None
