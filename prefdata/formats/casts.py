"""Casts: conversion of values in files to labels, verdicts and numbers. Nothing is guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefdata.formats.records import BadRowError

_GOOD = {
    "true", "yes", "good", "desirable", "chosen", "accepted", "accept", "positive", "pos", "up", "thumbs_up",
    "thumbsup", "like", "liked", "correct", "safe", "preferred", "helpful",
}  # fmt: skip
_BAD = {
    "false", "no", "bad", "undesirable", "rejected", "reject", "negative", "neg", "down", "thumbs_down", "thumbsdown",
    "dislike", "disliked", "incorrect", "unsafe", "dispreferred", "unhelpful",
}  # fmt: skip

TIES = {
    "tie", "ties", "tied", "draw", "equal", "equally", "same", "both", "neither", "bothbad", "bothgood", "tiebothbad",
    "tiebothgood", "nopreference", "nodifference", "c", "indifferent", "a=b", "b=a", "even",
}  # fmt: skip
NO_VERDICT = {
    "",
    "none",
    "null",
    "nan",
    "unknown",
    "invalid",
    "skip",
    "skipped",
    "error",
    "na",
    "n/a",
    "unsure",
    "other",
}

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
"""A number in a CSV cell; no other text is read as a number."""

_COMPARED = re.compile(r"(\w+?)\s*(>{1,3}|<{1,3}|=+|~+|≈)\s*(\w+)")
_INDEX_WORDS = (("0", "1"), ("1", "2"), ("a", "b"), ("one", "two"), ("first", "second"), ("left", "right"))


def number_of(value: Any) -> float | None:
    """Read a finite number, also from text or a boolean; None for anything else."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, int | float) and math.isfinite(value):
        return float(value)
    return None


def label_of(value: Any) -> bool | None:
    """Read whether a response is wanted, from a boolean, 0 or 1, -1 or 1, or a word; None for other values."""
    if isinstance(value, bool):
        return value
    number = number_of(value)
    if number is not None:
        return {1.0: True, 0.0: False, -1.0: False}.get(number)
    word = _word(value)
    return True if word in _GOOD else False if word in _BAD else None


def label(value: Any, name: str) -> bool:
    """Read a label.

    Raises:
        BadRowError: the value is not a label.
    """
    found = label_of(value)
    if found is None:
        raise BadRowError(
            "label", f"{name} is {shown(value)}; a label is true or false, 1 or 0, or a word such as good and bad"
        )
    return found


def tie(value: Any) -> bool | None:
    """Read whether chosen and rejected tie; None for other values."""
    if isinstance(value, bool):
        return value
    word = _word(value)
    return True if word.replace("_", "") in TIES else False if word == "chosen" else None


def probability(value: Any, name: str) -> float:
    """Read a probability.

    Raises:
        BadRowError: it is not a number from 0 to 1.
    """
    number = number_of(value)
    if number is None or not 0 <= number <= 1:
        raise BadRowError("probability", f"{name} is {shown(value)}, but should be from 0 to 1")
    return number


def finite(value: Any, name: str, reason: str = "number") -> float:
    """Read a finite number.

    Raises:
        BadRowError: it is not a number, or not finite.
    """
    number = number_of(value)
    if number is None:
        raise BadRowError(reason, f"{name} should be a number, not {shown(value)}")
    return number


def _word(value: Any) -> str:
    return re.sub(r"[\s\[\]()\"'.]+", "", str(value)).lower().replace("-", "_") if isinstance(value, str) else ""


def shown(value: Any) -> str:
    """Shorten a value for a message."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


Answer = float | int | None
"""A verdict: the index of the best response (an int), or the probability that the first is better (a float)."""


def by_words(value: Any, names: Sequence[Sequence[str]], models: Sequence[str | None]) -> Answer:
    """Read a verdict in words: a response's name, letter or model, `A>B`, a tie; None for no verdict.

    Raises:
        KeyError: it is another text.
    """
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("verdict", "winner", "preference", "choice") if key in value), None)
    if value is None:
        return None
    text = str(value).strip()
    word = _word(text)
    if word in NO_VERDICT:
        return None
    if word.replace("_", "") in TIES:
        return 0.5
    if compared := _COMPARED.fullmatch(text.strip("[]() ")):
        return _by_comparison(compared, names)
    of_model = [i for i, model in enumerate(models) if model is not None and text == model]
    if len(of_model) == 1:
        return of_model[0]
    return named(text, names)


def _by_comparison(compared: re.Match[str], names: Sequence[Sequence[str]]) -> Answer:
    one, sign, other = compared[1], compared[2], compared[3]
    sides = named(one, names), named(other, names)
    if sides[0] == sides[1]:
        raise KeyError(compared[0])
    return 0.5 if sign[0] in "=~≈" else sides[0] if sign[0] == ">" else sides[1]


def named(text: str, names: Sequence[Sequence[str]]) -> int:
    """Find the response that a text names: by its column, its letter or number, or `first` and `second`.

    Raises:
        KeyError: it names no response, or several.
    """
    word = _word(text)
    found = [i for i, known in enumerate(names) if word in {_word(name) for name in known}]
    if not found and len(names) == 2:
        last = re.split(r"[_\W]+", text.strip().lower())[-1] if text.strip() else ""
        last = re.sub(r"^(?:model|response|output|answer|assistant|completion)(?=[ab12]$)", "", last)
        own = {name.lower() for known in names for name in known if len(name) == 1}
        # Numbers have the meaning of the responses' own numbers; words mean the same everywhere.
        sets = [pair for pair in _INDEX_WORDS if not pair[0].isdigit() or not own or set(pair) <= own]
        found = sorted({pair.index(last) for pair in sets if last in pair})
    if len(found) != 1:
        raise KeyError(text)
    return found[0]


def by_number(value: float, cast: str) -> Answer:
    """Read a verdict that is a number of a known meaning.

    Raises:
        KeyError: it is not a value of the cast.
    """
    if cast == "one-two" and 1 <= value <= 2:
        return 2 - value  # the probability of the first: 1 is the first, 2 the second, 1.5 a tie
    if cast == "one-two" and value == 0:
        return 0.5
    if cast == "probability" and 0 <= value <= 1:
        return value
    if cast == "negative-first":
        return 1.0 if value < 0 else 0.0 if value > 0 else 0.5
    if cast == "positive-first":
        return 1.0 if value > 0 else 0.0 if value < 0 else 0.5
    known = {"zero-one": {0: 1.0, 1: 0.0, 2: 0.5, 0.5: 0.5}, "one-zero": {1: 1.0, 0: 0.0, 0.5: 0.5, 2: 0.5}}
    return known[cast][value]


def as_json(value: Any) -> Any:
    """Parse a text that is JSON; return any other value unchanged."""
    if not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value, strict=False)
    except (ValueError, RecursionError):
        return value
