"""Names of columns: their words, in any spelling, and the vocabulary of maps/general.yaml."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from prefdata.formats.map_files import read_map

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+|[^\W\d_]+")

Words = tuple[str, ...]


@cache
def words(name: str) -> Words:
    """Split a column's name into lower-case words: `responseA`, `response_a` and `Response a` give the same."""
    noise = vocabulary("noise")
    found = tuple(word.lower() for word in _WORD.findall(name))
    return tuple(word for word in found if word not in noise) or found


@cache
def plain_name(name: str) -> str:
    """Normalise a column's name for comparison: no case, spaces, dashes or underscores."""
    return "".join(words(name))


@cache
def vocabulary(slot: str) -> Sequence[str]:
    """List the names of a slot, in the order in which they are tried."""
    names: Sequence[str] = tuple(general()[slot])
    return names


@cache
def general() -> dict[str, Any]:
    """Load the whole vocabulary."""
    found: dict[str, Any] = read_map("general")
    return found


def known_names(*slots: str) -> frozenset[str]:
    """Collect the names of several slots."""
    return frozenset(name for slot in slots for name in vocabulary(slot))


@cache
def is_known(column: str) -> bool:
    """Tell whether a column's name is in the vocabulary."""
    of_columns = general().keys() - {"noise", "indices", "of_response", "numbered_beside", "opaque", "wrappers"}
    return plain_name(column) in known_names(*of_columns) or bool({*words(column)} & {*vocabulary("numbered")})


def first_named(columns: Iterable[str], slot: str) -> list[str]:
    """List the columns that are names of a slot, in its order."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(plain_name(column.rpartition(".")[2]), []).append(column)
    return [column for name in vocabulary(slot) for column in by_name.get(name, [])]
