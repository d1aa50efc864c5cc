"""Transcripts: conversations as one text, with a marker before each turn."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from prefdata.formats.messages import Turns


@dataclass(frozen=True)
class Notation:
    """Notation of a transcript: the marker before each role's turn, and the end of a turn."""

    name: str
    markers: dict[str, str]
    end: str = ""

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The markers, each of which begins a turn."""
        return re.compile("|".join(f"(?P<{role}>{re.escape(marker)})" for role, marker in self.markers.items()))


HH = Notation("hh", {"user": "\n\nHuman:", "assistant": "\n\nAssistant:"})

NOTATIONS = (
    HH,
    Notation("guanaco", {"user": "### Human:", "assistant": "### Assistant:"}),
    Notation(
        "chatml",
        {role: f"<|im_start|>{role}\n" for role in ("system", "user", "assistant")},
        end="<|im_end|>",
    ),
)
"""The supported notations: HH-RLHF's, Guanaco's and ChatML."""


@dataclass(frozen=True)
class Transcript:
    """A text split into turns.

    Attributes:
        turns: the messages; the last one of a prompt may be the assistant's, and empty.
        text: the whole text.
        ends: for each turn, where its marker ends in the text.
    """

    turns: Turns
    text: str
    ends: tuple[int, ...]


_BEGINNINGS = tuple(dict.fromkeys(marker.strip() for one in NOTATIONS for marker in one.markers.values()))


def transcript(text: str) -> Transcript | None:
    """Parse a transcript, which begins with a marker; None for any other text.

    If the text does not begin with HH-RLHF's line breaks, it needs an assistant's turn: "Human: …" alone is a text.
    """
    if not text[:40].lstrip().startswith(_BEGINNINGS):
        return None
    for notation in NOTATIONS:
        for whole in (text, f"\n\n{text.lstrip()}"):
            found = list(notation.pattern.finditer(whole))
            said = whole is text or any(match.lastgroup == "assistant" for match in found)
            if found and found[0].start() == 0 and said:
                return _read(notation, whole, found)
    return None


def without_end(text: str) -> str:
    """Remove the mark that ends a turn from a response, if a notation writes one."""
    for notation in NOTATIONS:
        if notation.end and text.rstrip().endswith(notation.end):
            return text.rstrip().removesuffix(notation.end)
    return text


def _read(notation: Notation, text: str, found: list[re.Match[str]]) -> Transcript:
    starts = [match.start() for match in found[1:]]
    turns = []
    for match, end in zip(found, [*starts, len(text)], strict=True):
        content = text[match.end() : end]
        if notation.end:
            content = content.rstrip().removesuffix(notation.end)
        turns.append({"role": str(match.lastgroup), "content": _stripped(notation, content)})
    return Transcript(turns, text, tuple(match.end() for match in found))


def _stripped(notation: Notation, content: str) -> str:
    """Strip the white space that belongs to the markers around a turn's text."""
    return content.strip() if notation.name == "guanaco" else content.removeprefix(" ")
