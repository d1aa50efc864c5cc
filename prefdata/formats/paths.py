"""Paths into a row: nested keys, elements of lists, and texts that name a column by another's value."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefdata.formats.names import plain_name

Getter = Callable[[Mapping[str, Any]], Any]

_PLACE = re.compile(r"\{([^{}]+)\}")


def dig(values: Any, path: str) -> Any:
    """Get the value at a path, or None: the key itself; else dots are nested keys, a number an index, * all items."""
    if isinstance(values, Mapping):
        if path in values:
            return values[path]
        first, dot, rest = path.partition(".")
        return dig(values[first], rest) if dot and first in values else None
    if isinstance(values, list):
        first, dot, rest = path.partition(".")
        if first == "*":
            return [dig(one, rest) if dot else one for one in values]
        number = int(first) if re.fullmatch(r"-?\d+", first) else None
        if number is None or not -len(values) <= number < len(values):
            return None
        return dig(values[number], rest) if dot else values[number]
    return None


def getter(path: str) -> Getter:
    """Compile a path, which may have other paths in braces, into a function that gets its value."""
    if _PLACE.search(path):
        return lambda values: dig(values, filled(path, values))
    if "." not in path:
        return lambda values: values.get(path)
    return lambda values: dig(values, path)


def filled(text: str, values: Mapping[str, Any]) -> str:
    """Fill in the values at the paths in braces: `response_{better_response_id}`. 1.0 is written as 1."""

    def value_at(match: re.Match[str]) -> str:
        value = dig(values, match[1])
        return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)

    return _PLACE.sub(value_at, text)


def columns_of(path: str) -> list[str]:
    """List the columns of a row that a path reads: its first key, and those in braces."""
    inner = _PLACE.findall(path)
    return [one.partition(".")[0] for one in inner] or [path.partition(".")[0]]


def resolved(path: str, columns: Sequence[str]) -> str:
    """Spell a path's first key like one of the columns, if they differ only in case or separators."""
    first, dot, rest = path.partition(".")
    if path in columns or first in columns or "{" in path:
        return path
    same = [column for column in columns if plain_name(column) == plain_name(first)]
    return f"{same[0]}{dot}{rest}" if len(same) == 1 else path
