"""Stop texts: where an answer ends because of what it says, the same for every engine."""

from __future__ import annotations

from collections.abc import Sequence


def before_stop(text: str, stop: Sequence[str]) -> str | None:
    """The text before the first stop text in it, or None where none occurs; of two at one place, either gives it."""
    places = [place for place in (text.find(one) for one in stop if one) if place >= 0]
    return text[: min(places)] if places else None
