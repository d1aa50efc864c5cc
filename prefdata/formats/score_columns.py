"""Scores in columns: finding and checking the number of each response.

responses                                   the numbers, for the column "score"
a list of responses                         score: a list of the same length
objects                                     in each object; dots are nested keys: annotations.helpfulness.Rating
chosen and rejected                         score_chosen, chosen_score
response_0, response_a, …                   response_0_score, score_0, score_a
one response                                score
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefdata.formats import casts
from prefdata.formats.names import plain_name
from prefdata.formats.paths import dig
from prefdata.formats.records import BadRowError, Response

WHERE = (
    "The column score is found as: score (with lists of responses a list of the same length), score in each object "
    "(dots are nested keys: annotations.helpfulness), score_chosen, chosen_score, response_0_score, score_0."
)
"""The table above as one line."""


def score_columns(
    values: Mapping[str, Any], responses: Sequence[Response], columns: Sequence[str]
) -> list[tuple[float | None, ...]]:
    """Read the columns' scores of a row's responses; None if there is none, true as 1 and false as 0.

    `-column` negates its values, for ranks, of which the smallest is best.

    Raises:
        BadRowError: a value is not a number, or their number differs from that of the responses.
    """
    if not responses:  # a row whose response is null: there is nothing to score
        return []
    own = [_values(values, responses, column.removeprefix("-")) for column in columns]
    signs = [-1 if column.startswith("-") else 1 for column in columns]
    return [
        tuple(None if (number := found[i]) is None else sign * number for sign, found in zip(signs, own, strict=True))
        for i in range(len(responses))
    ]


def _values(values: Mapping[str, Any], responses: Sequence[Response], column: str) -> list[float | None]:
    given = casts.as_json(dig(values, column))
    if given is not None and len(responses) == 1 and not isinstance(given, list):
        return [_number(given, column)]
    if given is not None and not any(_attribute(one, column) is not None for one in responses):
        listed = [i for i, one in enumerate(responses) if one.kind == "response"]
        if len(listed) == 1 and not isinstance(given, list):  # a reference is among them
            return [_number(given if i == listed[0] else None, column) for i in range(len(responses))]
        if not isinstance(given, list):
            raise BadRowError(
                "scores",
                f"{column} should be a list of {len(listed)} numbers, one per response, not {casts.shown(given)}",
            )
        if len(given) != len(listed):
            raise BadRowError("scores", f"{column} holds {len(given)} numbers for {len(listed)} responses")
        found: list[float | None] = [None] * len(responses)
        for place, (i, value) in enumerate(zip(listed, given, strict=True)):
            found[i] = _number(value, f"{column}[{place}]")
        return found
    return [_number(_attribute(one, column), column) for one in responses]


def _attribute(response: Response, column: str) -> Any:
    if response.item is not None and (value := dig(response.item, column)) is not None:
        return value
    name = plain_name(column)
    return next((value for key, value in response.attributes.items() if plain_name(key) == name), None)


def _number(value: Any, name: str) -> float | None:
    if value is None:
        return None
    number = casts.number_of(value)
    if number is None:
        raise BadRowError("scores", f"{name} should be a number, not {casts.shown(value)}")
    return number
