"""Sampling settings that are one value, a list, or a range.

`1.0` is the same for every candidate; `0.7,1.0,1.2` is indexed by the sample index, so that the candidates of
every prompt share the values evenly; `1.2:1.3` draws a value for each candidate, uniformly (Llama 2, 2307.09288,
section 3.2.3: the best temperature for many samples is in such a range).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator

Number = float | int


def spread(text: Any, *, whole: bool, low: float, above: bool = False, high: float = math.inf) -> str | Number:
    """Return a setting as specs store it: a number, or the canonical text of a list or a range.

    Args:
        text: a number, a list of numbers, or the text of either, or `LOW:HIGH`.
        whole: whether the values are integers.
        low: the minimum; with `above` a value must be greater.
        above: see `low`.
        high: the maximum.

    Raises:
        ValueError: it is none of these, or a value is out of bounds.
    """
    raw = ",".join(map(str, text)) if isinstance(text, list | tuple) else str(text)
    separator = ":" if ":" in raw else ","
    try:
        values = [int(part) if whole else float(part) for part in raw.split(separator)]
    except ValueError:
        kind = "integer" if whole else "number"
        raise ValueError(f"should be one {kind}, a list (a,b,c) or a range (low:high), not {raw!r}") from None
    for value in values:
        if not (value > low if above else value >= low) or value > high or not math.isfinite(value):
            bounds = f"{'above' if above else 'at least'} {low:g}" + (f", at most {high:g}" if high < math.inf else "")
            raise ValueError(f"should be {bounds}, not {value:g}")
    if len(values) == 1:
        return values[0]
    if separator == ":" and (len(values) != 2 or values[0] >= values[1]):
        raise ValueError(f"a range is low:high with low below high, not {raw!r}")
    return separator.join(map(str, values))


def value_of(setting: str | Number, index: int, uniform: float) -> Number:
    """Return the value for the candidate with that sample index; for a range, at its own `uniform` in (0, 1)."""
    if not isinstance(setting, str):
        return setting
    number: Any = float if any(c in setting for c in ".ein") else int
    if ":" in setting:
        low, high = map(number, setting.split(":"))
        drawn: Number = low + (math.floor(uniform * (high - low + 1)) if number is int else uniform * (high - low))
        return drawn
    values: list[Number] = [number(value) for value in setting.split(",")]
    return values[index % len(values)]


def is_spread(setting: str | Number) -> bool:
    """Whether the setting differs between candidates."""
    return isinstance(setting, str)


Positive = Annotated[str | float, BeforeValidator(partial(spread, whole=False, low=0, above=True))]
NotNegative = Annotated[str | float, BeforeValidator(partial(spread, whole=False, low=0))]
Share = Annotated[str | float, BeforeValidator(partial(spread, whole=False, low=0, above=True, high=1))]
ShareOrNone = Annotated[str | float, BeforeValidator(partial(spread, whole=False, low=0, high=1))]
Penalty = Annotated[str | float, BeforeValidator(partial(spread, whole=False, low=-2, high=2))]
Count = Annotated[str | int, BeforeValidator(partial(spread, whole=True, low=1))]
CountOrNone = Annotated[str | int, BeforeValidator(partial(spread, whole=True, low=0))]
