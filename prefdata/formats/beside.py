"""Scores that stand beside answers: where a column's number for one answer is found, and that it is a number.

beside                                      where the number stands, for the column "score"
a list of answers                           score: a list of as many
objects                                     in each object; dots lead inwards: annotations.helpfulness.Rating
chosen and rejected                         score_chosen, chosen_score
response_0, response_a, …                   response_0_score, score_0, score_a
one answer                                  score
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefdata.formats.layouts import Unusable

BESIDE = (
    "For the column score there is looked for: score (beside lists of answers a list as long), score in each object "
    "(dots lead inwards: annotations.helpfulness), score_chosen, chosen_score, response_0_score, score_0."
)
"""The above on one line."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A number as a cell of a CSV file writes it; nothing else is read as one."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where an answer stands in its row.

    Attributes:
        names: what columns beside it are called, with {} for the scores' own name.
        number: which of a list of answers it is, from 0; None where it is no list.
        count: how many these are.
        item: the object that it stands in, where it does in one.
    """

    names: tuple[str, ...] = ("{}",)
    number: int | None = None
    count: int = 1
    item: Mapping[str, Any] | None = None


def score_beside(values: Mapping[str, Any], place: Place, column: str) -> float | None:
    """What `column` says of the answer that stands at `place` of a row; None where it says nothing.

    What `-column` says is the same with the other sign: ranks, of which the smallest is best.

    Raises:
        Unusable: what stands there is no number, or is not one number for each answer.
    """
    if column.startswith("-"):
        said = score_beside(values, place, column[1:])
        return None if said is None else -said
    if place.item is not None:
        return _number(_dig(place.item, column), column)
    names = [name.replace("{}", column) for name in place.names]
    name, value = next(((n, v) for n in names if (v := _dig(values, n)) is not None), ("", None))
    if value is None or place.number is None:
        return _number(value, name)
    if not isinstance(value, list):
        raise Unusable("scores", f"{name} should be a list of {place.count} numbers, one an answer, not {_said(value)}")
    if len(value) != place.count:
        raise Unusable("scores", f"{name} holds {len(value)} numbers for {place.count} answers")
    return _number(value[place.number], f"{name}[{place.number}]")


def _dig(values: Mapping[str, Any], name: str) -> Any:
    """The value of a key, or of keys in one another that are joined by dots."""
    if name in values:
        return values[name]
    first, dot, rest = name.partition(".")
    inner = values.get(first)
    return _dig(inner, rest) if dot and isinstance(inner, Mapping) else None


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    text = isinstance(value, str) and _NUMBER.fullmatch(value.strip())
    number = float(value) if text or (isinstance(value, int | float) and not isinstance(value, bool)) else math.nan
    if not math.isfinite(number):
        raise Unusable("scores", f"{name} should be a number, not {_said(value)}")
    return number


def _said(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
