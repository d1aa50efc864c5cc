"""The exact texts that a classifier reads, and their token ids: rendered and tokenised once, a batch at a time.

The text is what the model's own chat template makes of the conversation with its response, or what a file of the user's
says, with `{prompt}`, `{response}`, `{system}` and `{tools}` in it. The next batch is prepared in a thread while the
network works on this one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from prefdata.chat.encoder import Chat
from prefdata.chat.template import TemplateRefusal, require_unicode
from prefdata.errors import InputError
from prefdata.ids import Message
from prefdata.scorers.protocol import Score, ScoringItem

T = TypeVar("T")

_PLACE = re.compile(r"\{([a-z]+)\}")


@dataclass(frozen=True, slots=True)
class RenderedText:
    """A distinct text of a batch.

    Attributes:
        text: what is scored.
        ids: its token ids.
        prompt: the number of its prompt in the batch; texts of one prompt have a common prefix.
        keys: the items with this text.
    """

    text: str
    ids: list[int]
    prompt: int
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """Items, prepared: their distinct texts, and those that have none."""

    rows: list[RenderedText]
    refused: list[Score]


class TextRenderer:
    """Items to texts and token ids, for one model."""

    def __init__(self, chat: Chat, text_format: Path | None = None) -> None:
        """Render by the chat's template, or by the file's text.

        Raises:
            InputError: there is no such file, it is not UTF-8, or it has no place for the response.
        """
        self.format = None if text_format is None else read_format(text_format)
        self.chat = chat if self.format is None else chat.of_format()

    def text(self, messages: Sequence[Message], response: str, tools: str | None = None) -> str:
        """Return the exact text of a conversation and its response; `tools` as JSON text.

        Raises:
            TemplateRefusal: the template or the format has no place for this conversation, or changes the response.
        """
        if self.format is None:
            return self.chat.conversation(messages, response, tools)
        return require_unicode(fill(self.format, messages, tools, response=response))

    def prepare(self, items: Sequence[ScoringItem]) -> PreparedBatch:
        """Return the items as distinct texts with their token ids; those that cannot be rendered with the reason."""
        places: dict[str, tuple[int, list[str]]] = {}
        prompts: dict[tuple[Any, ...], int] = {}
        refused = []
        for item in items:
            try:
                text = self.text(item.messages, item.response, item.tools)
            except TemplateRefusal as error:
                refused.append(Score(item.key, None, error.reason, None, {"error": str(error)}))
                continue
            key = (item.tools, *(tuple(message.items()) for message in item.messages))
            prompt = prompts.setdefault(key, len(prompts))
            places.setdefault(text, (prompt, []))[1].append(item.key)
        ids = self.encode(list(places))
        rows = [RenderedText(text, row, *place) for (text, place), row in zip(places.items(), ids, strict=True)]
        return PreparedBatch(rows, refused)

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the token ids of texts, as `Chat.encode` gives them for complete ones."""
        return self.chat.encode(texts, complete=True)


def read_format(path: Path, answers: Sequence[str] = ("response",)) -> str:
    """Read a format file without the line break at its end; `answers` are the placeholders that it needs.

    Raises:
        InputError: there is no such file, it is not UTF-8, or it lacks `{prompt}` or a place for a response.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the text format {path}: {error}.") from None
    places = [f"{{{place}}}" for place in ("prompt", *answers)]
    if any(place not in text for place in places):
        needed = f"{', '.join(places[:-1])} and {places[-1]}"
        raise InputError(f"{path} should hold {needed}, where the texts go. Add them.")
    return text.removesuffix("\n")


def fill(template: str, messages: Sequence[Message], tools: str | None = None, **answers: str) -> str:
    """Fill a format with a conversation of one user message, and a system message at most.

    `answers` are the texts by their places: `response`, or `first` and `second`.

    All places are filled at once, so that braces in a prompt or a response stay what they are.

    Raises:
        TemplateRefusal: the conversation has more turns, or a system message or tools that the format has no place for.
    """
    roles = [message["role"] for message in messages]
    if roles not in (["user"], ["system", "user"]):
        found = ", ".join(roles) or "empty"
        raise TemplateRefusal(f"a text format takes one user message, after a system message at most, not: {found}")
    if roles[0] == "system" and "{system}" not in template:
        raise TemplateRefusal("the text format has no {system}, and the conversation has a system message")
    if tools is not None and "{tools}" not in template:
        raise TemplateRefusal("the text format has no {tools}, and the prompt has tools")
    system = messages[0]["content"] if roles[0] == "system" else ""
    values = {"prompt": messages[-1]["content"], "system": system, "tools": tools or "", **answers}
    return _PLACE.sub(lambda place: str(values.get(place[1], place[0])), template)


def windows(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of `size`."""
    stream = iter(items)
    while window := list(islice(stream, size)):
        yield window
