"""Names of columns: the words they are made of, however they are written, and the vocabulary of maps/general.yaml."""

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
    """The words of a column's name, in lower case: `responseA`, `response_a` and `Response a` have the same."""
    noise = vocabulary("noise")
    found = tuple(word.lower() for word in _WORD.findall(name))
    return tuple(word for word in found if word not in noise) or found


@cache
def plain_name(name: str) -> str:
    """A column's name without case, spaces, dashes and underscores, to be compared."""
    return "".join(words(name))


@cache
def vocabulary(slot: str) -> Sequence[str]:
    """The names of a slot, in the order in which they are looked for."""
    names: Sequence[str] = tuple(general()[slot])
    return names


@cache
def general() -> dict[str, Any]:
    """The whole vocabulary."""
    found: dict[str, Any] = read_map("general")
    return found


def known_names(*slots: str) -> frozenset[str]:
    """The names of several slots."""
    return frozenset(name for slot in slots for name in vocabulary(slot))


@cache
def is_known(column: str) -> bool:
    """Whether a column's name may say what it holds."""
    of_columns = general().keys() - {"noise", "indices", "of_response", "numbered_beside", "opaque", "wrappers"}
    return plain_name(column) in known_names(*of_columns) or bool({*words(column)} & {*vocabulary("numbered")})


def first_named(columns: Iterable[str], slot: str) -> list[str]:
    """The columns that are names of a slot, in its order."""
    by_name: dict[str, list[str]] = {}
    for column in columns:
        by_name.setdefault(plain_name(column.rpartition(".")[2]), []).append(column)
    return [column for name in vocabulary(slot) for column in by_name.get(name, [])]
