"""What ranking asks of a scorer: answers in, scores out, as a stream.

A score belongs to one exact text, whose hash comes with it. What cannot be scored has no score and a reason; a scorer
never makes a number up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from prefdata.ids import Message


@dataclass(frozen=True, slots=True)
class Item:
    """One answer to be scored: a key of the caller's, the conversation, the answer, and whether it was cut off."""

    key: str
    messages: tuple[Message, ...]
    response: str
    truncated: bool


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer's score.

    Attributes:
        key: the item's.
        score: higher is better; None where there is none.
        reason: why there is none (`too_long`, `nan`, an exception's name, …); None where there is one.
        text_hash: id of the exact text that was scored (`ids.text_hash`); None where nothing was.
        details: whatever else the scorer says, as JSON values.
    """

    key: str
    score: float | None
    reason: str | None
    text_hash: str | None
    details: dict[str, Any] | None


class Scorer(Protocol):
    """Something that scores answers.

    Attributes:
        versions: of the libraries that decide the numbers.
    """

    versions: dict[str, str]

    def score(self, items: Iterable[Item]) -> Iterator[Scored]:
        """Score every item exactly once, in any order; items are pulled as they are needed."""
        ...

    def close(self) -> None:
        """Give back the memory. The scorer cannot be used afterwards."""
        ...
