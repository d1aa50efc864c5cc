"""The columns of a file's first rows: the kinds of their values, and columns that differ only in a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from prefdata.formats import casts
from prefdata.formats.messages import are_turns, conversation_within, is_turn, parsed, text_within
from prefdata.formats.names import first_named, known_names, plain_name, vocabulary, words
from prefdata.formats.paths import dig
from prefdata.formats.records import BadRowError
from prefdata.formats.transcripts import transcript

Rows = Sequence[Mapping[str, Any]]

RESPONSE_KINDS = ("text", "turn", "turns", "object")
"""Kinds of values that can be one response."""

RARE = 0.2
"""Columns with values in a smaller fraction of the rows do not decide how other columns are read."""

_SHORT = 40
"""Maximum characters of a verdict."""


def kind_of(value: Any) -> str | None:
    """Return the kind of a value, as far as layouts distinguish kinds; None for null and an empty list."""
    if isinstance(value, str):
        try:
            value = parsed(value, "") or value
        except BadRowError:
            return "turns"
        if isinstance(value, str):
            return "text"
    if value is None or value == []:
        return None
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int | float):
        return "number"
    if are_turns(value) or conversation_within(value) is not None:
        return "turns"
    if isinstance(value, Mapping):
        return "turn" if is_turn(value) else "object"
    return _kind_of_list(value) if isinstance(value, list) else "other"


def _kind_of_list(value: list[Any]) -> str:
    items = [item for item in value if item is not None]
    if items and all(isinstance(item, str) for item in items):
        return "texts"
    if items and all(isinstance(item, Mapping) for item in items):
        return "objects"
    if items and all(are_turns(item) for item in items):
        return "conversations"
    return "list"


@dataclass
class Column:
    """A column of the first rows.

    Attributes:
        path: its name, with the objects that it is in.
        rows: number of rows.
        kinds: number of values of each kind.
        values: its values, without null and empty lists.
        lengths: lengths of its lists, by row number.
    """

    path: str
    rows: int = 1
    kinds: Counter[str] = field(default_factory=Counter)
    values: list[Any] = field(default_factory=list)
    lengths: dict[int, int] = field(default_factory=dict)

    def add(self, value: Any, row: int) -> None:
        """Count its value in a row."""
        if (kind := kind_of(value)) is not None:
            self.kinds[kind] += 1
            self.values.append(value)
        if isinstance(value, list):
            self.lengths[row] = len(value)

    def holds(self, *kinds: str) -> bool:
        """Tell whether most of its values are of these kinds; rows with others are then bad rows."""
        return 2 * sum(self.kinds[kind] for kind in kinds) > self.kinds.total()

    @property
    def name(self) -> str:
        """Name without the objects that it is in."""
        return self.path.rpartition(".")[2]

    @property
    def is_rare(self) -> bool:
        """Whether few rows have it."""
        return len(self.values) < RARE * self.rows

    @property
    def texts(self) -> list[str]:
        """Its values that are texts."""
        return [value for value in self.values if isinstance(value, str)]

    def is_as_long_as(self, other: Column) -> bool:
        """Tell whether its lists are as long as another column's, in every row that has both."""
        both = self.lengths.keys() & other.lengths.keys()
        return bool(both) and all(self.lengths[row] == other.lengths[row] for row in both)

    @property
    def is_conversation(self) -> bool:
        """Whether it holds conversations, perhaps with some texts, or transcripts."""
        if self.holds("turns", "turn") or (self.kinds["turns"] and self.holds("turns", "turn", "text")):
            return True
        return self.holds("text") and any(transcript(text) for text in self.texts)

    @property
    def is_text(self) -> bool:
        """Whether it holds texts, or objects with a text in them."""
        if not self.holds("text", "object"):
            return False
        objects = sum(_has_text(value) for value in self.values if isinstance(value, Mapping))
        return 2 * (self.kinds["text"] + objects) > len(self.values)

    @property
    def is_short(self) -> bool:
        """Whether its texts are as short as verdicts are."""
        return all(len(text) <= _SHORT for text in self.texts)

    @property
    def is_numeric(self) -> bool:
        """Whether all its values are numbers, as text too."""
        return bool(self.values) and all(casts.number_of(value) is not None for value in self.values)


def _has_text(value: Mapping[str, Any]) -> bool:
    try:
        return bool(text_within(value, ""))
    except BadRowError:
        return False


@dataclass(frozen=True)
class Family:
    """Columns whose names differ only in a number or a letter: `response_a`, `response_b`."""

    rest: tuple[str, ...]
    indices: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def is_responses(self) -> bool:
        """Whether its name is a name of responses, and its columns hold responses."""
        known = {*vocabulary("numbered")}
        named = bool(known & {*self.rest}) and not {*self.rest} - known - {*vocabulary("numbered_beside")}
        two = not self.rest and len(self.columns) == 2  # first and second, a and b
        return (named or two) and all(
            column.holds(*RESPONSE_KINDS) and not _only_codes(column) for column in self.columns
        )

    @property
    def is_rare(self) -> bool:
        """Whether few rows have any of its columns."""
        return all(column.is_rare for column in self.columns)

    @property
    def is_people(self) -> bool:
        """Whether these are annotators, each with a verdict."""
        named = len(self.rest) == 1 and self.rest[0] in vocabulary("annotators")
        return named and all(column.is_short for column in self.columns)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key among families of responses: the shorter name first."""
        known = vocabulary("numbered")
        return len(self.rest) or len(known), min((known.index(one) for one in self.rest if one in known), default=0)


def _only_codes(column: Column) -> bool:
    """Tell whether a column of texts holds only numbers."""
    return bool(column.texts) and all(text.strip().isdigit() for text in column.texts)


class Columns:
    """The columns of a file's first rows, from which the parts of a layout take theirs in turn.

    Attributes:
        rows: the first rows.
        every: all columns, by path.
        left: columns that no part has taken.
    """

    def __init__(self, rows: Rows, ignore: Iterable[str] = ()) -> None:
        """Read rows; the keys of objects become columns if the objects hold only other columns."""
        self.rows = rows
        self.every: dict[str, Column] = {}
        ignored = {*ignore}
        for number, row in enumerate(rows):
            for name, value in row.items():
                if name not in ignored:
                    self.every.setdefault(name, Column(name, len(rows))).add(value, number)
        self._open()
        self.left = dict(self.every)

    def _open(self) -> None:
        known = known_names("turns", "request", "chosen", "rejected", "lists", "single", "numbered")
        for name in [one for one in self.every if plain_name(one) in vocabulary("wrappers")]:
            objects = {n: row[name] for n, row in enumerate(self.rows) if isinstance(row.get(name), Mapping)}
            keys = (key for value in objects.values() for key in value)
            if self.every[name].holds("object", "turns") and any(known & {*words(key)} for key in keys):
                del self.every[name]
                for number, value in objects.items():
                    for key, item in value.items():
                        path = f"{name}.{key}"
                        self.every.setdefault(path, Column(path, len(self.rows))).add(item, number)

    def take(self, path: str) -> Column:
        """Take a column."""
        return self.left.pop(path)

    def drop(self, paths: Iterable[str]) -> None:
        """Remove columns, so that no part can take them."""
        for path in paths:
            self.left.pop(path, None)

    def named(self, slot: str, fits: Callable[[Column], bool] = lambda column: True) -> Iterator[str]:
        """Iterate over the remaining columns that are names of a slot and fit, in the slot's order, rare ones last."""
        found = sorted(first_named(self.left, slot), key=lambda path: self.left[path].is_rare)
        return (path for path in found if path in self.left and fits(self.left[path]))

    def first(self, slot: str, *kinds: str) -> str | None:
        """Return the first remaining column of a slot that holds these kinds."""
        return next(self.named(slot, lambda column: column.holds(*kinds)), None)

    def values_at(self, path: str) -> list[Any]:
        """Return the values at a path."""
        return [value for row in self.rows if (value := dig(row, path)) is not None]

    @cached_property
    def families(self) -> list[Family]:
        """Group the columns whose names differ only in a number or a letter."""
        return [
            Family(rest, tuple(order), tuple(by_index[index] for index in order))
            for rest, by_index in self.by_index
            if (order := _in_order(by_index)) is not None
        ]

    @cached_property
    def by_index(self) -> list[tuple[tuple[str, ...], dict[str, Column]]]:
        """Group the columns with a number or a letter in their names by the other words, then by it."""
        found: dict[tuple[str, ...], dict[str, Column]] = {}
        indices = {index for some in vocabulary("indices") for index in some}
        for path, column in sorted(self.every.items(), key=lambda item: item[1].is_rare):
            parts = words(column.name)
            for i, part in enumerate(parts):
                if (len(parts) > 1 and part.isdigit()) or part in indices:
                    rest = (path.rpartition(".")[0], *parts[:i], *parts[i + 1 :])
                    found.setdefault(rest, {}).setdefault(part, column)
        return [(rest[1:], by_index) for rest, by_index in found.items()]

    def __str__(self) -> str:
        kinds = (f"{path} ({' or '.join(sorted(column.kinds)) or 'null'})" for path, column in self.every.items())
        return f"Columns found: {', '.join(kinds)}."


def _in_order(indices: Iterable[str]) -> list[str] | None:
    """Sort indices if they are the first of a series: 0, 1 or 1, 2, 3 or a, b; else return None."""
    some = {*indices}
    if len(some) < 2:
        return None
    if all(one.isdigit() for one in some):
        numbers = sorted(map(int, some))
        whole = numbers[0] in (0, 1) and numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        return sorted(some, key=int) if whole and len(numbers) == len(some) else None
    return next((list(known[: len(some)]) for known in vocabulary("indices") if some == {*known[: len(some)]}), None)
