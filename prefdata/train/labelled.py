"""Labels and ratings of single responses in rows of data: good or bad, safe or unsafe, ratings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefdata.formats import casts
from prefdata.formats.records import BadRowError, Record, Response
from prefdata.formats.score_columns import score_columns

SCORES = ("scores", "score", "ratings", "rating")
"""Columns of ratings that are tried in this order if none is named."""

Ratings = tuple[float, ...]
"""The ratings of a response, one for each column; NaN where there is none."""


def labelled(record: Record) -> list[tuple[Response, bool]]:
    """List the responses that a row labels good or bad: by a label, or as the chosen and rejected sides of no tie."""
    found = []
    for response in record.responses:
        side = None if record.tie or response.kind not in ("chosen", "rejected") else response.kind == "chosen"
        label = side if response.label is None else response.label
        if label is not None:
            found.append((response, label))
    return found


def rated(
    values: Mapping[str, Any], record: Record, columns: Sequence[str], *, sides: bool
) -> tuple[Sequence[str], list[tuple[Response, Ratings]]]:
    """Return the columns that a row's ratings are in, and its responses with their ratings.

    Args:
        values: the row.
        record: what it holds.
        columns: columns with the ratings; default: the first of `SCORES` that has values, else the ranks.
        sides: whether, where there are none, chosen responses are rated 1 and rejected ones 0.

    Raises:
        BadRowError: a rating is not a number, or their number differs from that of the responses.
    """
    # For ingest, a completion without a label or model is a reference.
    responses = [one for one in record.responses if one.kind != "reference"] or record.responses
    for names in [columns] if columns else [[name] for name in SCORES]:
        found = [tuple(map(_or_nan, ratings)) for ratings in score_columns(values, responses, names)]
        if columns or any(map(known, found)):
            return names, list(zip(responses, found, strict=True))
    if any(one.rank is not None for one in responses):
        return (), [(one, (_or_nan(None if one.rank is None else -one.rank),)) for one in responses]
    known_by_side = {"chosen": 1.0, "rejected": 0.0} if sides else {}
    return (), [(one, (known_by_side.get(one.kind, math.nan),)) for one in responses]


def safety(values: Mapping[str, Any], responses: Sequence[Response]) -> tuple[Ratings, ...]:
    """Return 1 for each response labelled safe, 0 for unsafe ones, NaN where the row has no label.

    Raises:
        BadRowError: `chosen_safe` or `rejected_safe` is not a label.
    """
    found = []
    for response in responses:
        column = f"{response.kind}_safe"
        label = response.label
        if label is None and values.get(column) is not None:
            label = casts.label(values[column], column)
        found.append((_or_nan(label),))
    return tuple(found)


def known(ratings: Ratings) -> bool:
    """Return whether there is any rating."""
    return not all(map(math.isnan, ratings))


def _or_nan(value: float | None) -> float:
    if value is not None and not math.isfinite(value):
        raise BadRowError("scores", f"a rating is {value}, and should be a finite number")
    return math.nan if value is None else float(value)
