"""Numbers as people and models write them: 17,000; $1,234.50; 3/4; 1 1/2; 25%; -5; 2:30; 3 million; "#### 42".

A number is read exactly, as a fraction. Some notations have two meanings (25% is 25 and 0.25, 3 million
is 3 and 3000000), so what is read is the set of values it may have; two numbers agree where their sets overlap.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction

_DIGITS = r"(?:\d{1,3}(?:,\d{3})++(?!,?\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    r"(?P<minus>(?<![\w)\]}])-(?=[$€£¥₹.\d]))?[$€£¥₹]?\s?(?P<minus2>(?<=[$€£¥₹])-)?(?<![A-Za-z0-9_])"
    r"(?:(?<!\d:)(?P<hour>\d{1,2}):(?P<minute>[0-5]\d)(?!\d|:\d)"
    r"|(?P<whole>\d+)\s+(?P<part>\d+)/(?P<parts>\d+)"
    rf"|(?P<top>{_DIGITS})(?P<power>[eE][+-]?\d{{1,3}}(?!\w))?(?:\s?/\s?(?P<bottom>{_DIGITS}))?)"
    r"(?:\s?(?P<percent>%|per\s?cent\b)|\s(?P<scale>hundred|thousand|million|billion|trillion)\b)?",
    re.IGNORECASE,
)
_END, _LONGEST = 1 << 14, 1 << 12
"""Characters from the end of a text that are read first; and those in which its first number may be half of one."""

_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]++|\{[^{}]*+\})*+)\}")
_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_PLAIN = {"\u2212": "-", "{,}": ",", "\\$": "$", "\\%": "%", "\\,": "", "\\!": "", "\u00a0": " ", "\u202f": " "}


def final_number(text: str) -> frozenset[Fraction] | None:
    r"""Return the values that the number at the end of a response may have; None where it has no number.

    A response that marks its result is read there: after the last `####` (its first number), in the last
    `\boxed{}`, in the field `answer` of a JSON object. Otherwise it is the last number of the text.
    """
    _, marked, after = text.rpartition("####")
    if marked:
        return next((values for _, values in _found(after)), None)
    boxes = _BOXED.findall(text)
    field = boxes[-1] if boxes else _answer_field(text)
    return _last(text if field is None else field)


def numbers(text: str) -> list[frozenset[Fraction]]:
    """Every number of a text in order, each as the set of values that it may have."""
    return [values for _, values in _found(text)]


def _last(text: str) -> frozenset[Fraction] | None:
    """Find the last number, searching from the end: a text may be as long as a book."""
    size = _END
    while size < len(text):
        found = [values for start, values in _found(text[-size:]) if start > _LONGEST]
        if found:
            return found[-1]
        size *= 8
    found = numbers(text)
    return found[-1] if found else None


def _found(text: str) -> Iterator[tuple[int, frozenset[Fraction]]]:
    """Yield the numbers of a text, each with the place where it begins in the text written plainly."""
    for written, plain in _PLAIN.items():
        text = text.replace(written, plain)
    text = _LATEX_FRACTION.sub(r"\1/\2", text)
    for match in _NUMBER.finditer(text):
        if values := _values(match):
            yield match.start(), values


def unfenced(text: str) -> str:
    """Return the inside of the last ``` block of a text, or the text where it has none, without blanks at the ends."""
    blocks = _FENCED.findall(text)
    return (blocks[-1] if blocks else text).strip()


def _answer_field(text: str) -> str | None:
    try:
        value = json.loads(unfenced(text), strict=False)
    except (ValueError, RecursionError):
        return None
    answer = value.get("answer") if isinstance(value, dict) else None
    return str(answer) if isinstance(answer, str | int | float) else None


def _values(match: re.Match[str]) -> frozenset[Fraction]:
    """Return the possible values of a match; none where it cannot be read (thousands of digits, a division by zero)."""
    try:
        value = _magnitude(match)
    except (ValueError, ZeroDivisionError):
        return frozenset()
    if match["minus"] or match["minus2"]:
        value = -value
    values = {value}
    if match["percent"]:
        values.add(value / 100)
    if match["scale"]:
        values.add(value * _SCALES[match["scale"].lower()])
    return frozenset(values)


def _magnitude(match: re.Match[str]) -> Fraction:
    if match["hour"]:
        return int(match["hour"]) + Fraction(int(match["minute"]), 60)
    if match["whole"]:
        return int(match["whole"]) + Fraction(int(match["part"]), int(match["parts"]))
    value = Fraction(match["top"].replace(",", "") + (match["power"] or ""))
    return value / Fraction(match["bottom"].replace(",", "")) if match["bottom"] else value
