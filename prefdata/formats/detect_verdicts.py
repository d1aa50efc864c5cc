"""Detection of the columns of verdicts: which of several responses is better."""

from __future__ import annotations

from collections.abc import Sequence

from prefdata.formats import casts
from prefdata.formats.columns import Column, Columns
from prefdata.formats.detect_responses import SCORE_WORDS
from prefdata.formats.layout_maps import Cast, ResponseMap, VerdictMap
from prefdata.formats.names import plain_name, words

_WINNER_WORDS = {"winner", "win", "wins", "won", "better", "best", "preferred", "chosen"}


def verdicts_of(columns: Columns, responses: Sequence[ResponseMap]) -> tuple[VerdictMap, ...]:
    """Find the verdicts and take their columns: annotators', columns with such names, or scores."""
    compared = [one for one in responses if one.kind == "response" and one.column]
    if len(compared) < 2 and not {"first_id", "second_id"} <= columns.every.keys():
        return ()
    people = [column for family in columns.families if family.is_people for column in family.columns]
    named = [columns.left[path] for path in columns.named("verdict", _is_verdict)]
    named = [one for one in named if not one.is_rare] or named
    columns.drop(column.path for column in (*people, *named))
    if people:
        return tuple(VerdictMap(column=(one.path,), cast=_cast(one), annotator=one.name) for one in people)
    if named:
        return tuple(VerdictMap(column=(one.path,), cast=_cast(one), name=plain_name(one.name)) for one in named)
    return _by_attributes(columns, compared)


def _is_verdict(column: Column) -> bool:
    return column.holds("text", "number", "boolean", "list", "texts", "object") and column.is_short


def _cast(column: Column) -> Cast:
    values = [one for value in column.values for one in (value if isinstance(value, list) else [value])]
    return "numbers" if any(casts.number_of(value) is not None for value in values) else "words"


def _by_attributes(columns: Columns, compared: Sequence[ResponseMap]) -> tuple[VerdictMap, ...]:
    """Map attributes of single responses as a verdict: one is marked as the winner, or each has a score."""
    if not compared:
        return ()
    shared = [name for name in compared[0].attributes if all(name in one.attributes for one in compared)]
    numbers = {
        name: [casts.number_of(value) for one in compared for value in columns.values_at(one.attributes[name])]
        for name in shared
    }
    for name, values in numbers.items():
        if all(value in (0, 1) for value in values) and _WINNER_WORDS & {*name.split("_")}:
            ties = [path for path in columns.left if {"winner", "tie"} <= {*words(path)}][:1]
            columns.drop(ties)
            return (VerdictMap(column=(*(one.attributes[name] for one in compared), *ties), cast="one-hot"),)
    scores = [name for name, values in numbers.items() if None not in values and SCORE_WORDS & {*name.split("_")}]
    return (VerdictMap(column=(scores[0],), cast="scores"),) if len(scores) == 1 else ()
