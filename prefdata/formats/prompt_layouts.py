"""Prompts: from the columns of a layout to the conversation that is to be answered.

If several columns hold the prompt, they have to agree: none is ignored.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefdata.formats import casts
from prefdata.formats.layout_maps import PromptMap
from prefdata.formats.messages import (
    Turns,
    are_turns,
    conversation_within,
    is_turn,
    parsed,
    text_within,
    turns_of,
)
from prefdata.formats.paths import Getter, getter
from prefdata.formats.records import BadRowError, Response
from prefdata.formats.response_layouts import Whole, shared_turns
from prefdata.formats.transcripts import Transcript, transcript

Values = Mapping[str, Any]


@dataclass(slots=True)
class Prompt:
    """The prompt from a row's columns.

    Attributes:
        turns: the conversation.
        plain: the prompt as one text, if it was written as a text.
        is_transcript: whether that text is a transcript.
        tools: the tools in the conversation's own object.
        complete: whether the conversation may end with its own response (a file of conversations).
        later: the user's later turns, if only the first is read.
    """

    turns: Turns
    plain: str | None = None
    tools: Any = None
    is_transcript: bool = False
    complete: bool = False
    later: tuple[str, ...] = ()


class PromptReader:
    """Reader of one layout's prompts."""

    def __init__(self, layout: PromptMap) -> None:
        self.map = layout
        self._turns, self._text, self._then, self._system, self._history, self._texts, self._alternate = (
            [(name, getter(name)) for name in getattr(layout, field)]
            for field in ("turns", "text", "then", "system", "history", "texts", "alternate")
        )

    def read(
        self, values: Values, wholes: Sequence[Whole], notes: Counter[str], sides: Sequence[Response] = ()
    ) -> Prompt:
        """Read the prompt; `wholes` are the conversations of the sides, if they contain it.

        Raises:
            BadRowError: there is no prompt, or its columns contradict each other.
        """
        prompt = _shared_words(sides) if self.map.shared and not wholes else self._read(values, wholes, notes)
        if prompt.turns and prompt.turns[0]["role"] == "system" and not prompt.turns[0]["content"].strip():
            prompt.turns = prompt.turns[1:]
            notes["empty system messages"] += 1
        self._put_system(prompt, values)
        return prompt

    def _read(self, values: Values, wholes: Sequence[Whole], notes: Counter[str]) -> Prompt:
        if self._texts:
            return self._listed(values)
        if self._alternate:
            return self._alternating(values)
        conversations = [
            found
            for name, get in self._turns
            if (value := get(values)) is not None and (found := _conversation(value, name, notes)) is not None
        ]
        texts = [
            (name, _text(value, name))
            for name, get in self._text
            if (value := get(values)) is not None and not are_turns(value) and _conversation(value, name, notes) is None
        ]
        if wholes:
            return _within_sides(wholes, conversations, texts)
        if conversations:
            return _longest(conversations, texts)
        if not texts:
            wanted = " or ".join(dict.fromkeys((*self.map.text, *self.map.turns)))
            raise BadRowError(
                "no_prompt", f"there is no prompt: {wanted} should hold it" if wanted else "there is no prompt"
            )
        return self._request(texts, values)

    def _request(self, texts: list[tuple[str, str]], values: Values) -> Prompt:
        name, request = texts[0]
        for other, text in texts[1:]:
            if text.strip() != request.strip():
                raise BadRowError("two_prompts", f"{name} and {other} hold two prompts")
        following = [_text(value, key) for key, get in self._then if (value := get(values)) is not None]
        following = [text for text in following if text.strip()]
        history = self._rounds(values)
        whole = "\n\n".join(part for part in (request, *following) if part.strip()) if following else request
        plain = request if name.rpartition(".")[2].lower() == "prompt" and not following and not history else None
        return Prompt([*history, {"role": "user", "content": whole}], plain)

    def _rounds(self, values: Values) -> Turns:
        rounds = next((v for _, get in self._history if (v := casts.as_json(get(values))) is not None), None)
        if rounds is None or rounds == "":
            return []
        if are_turns(rounds):
            return turns_of(rounds)
        if isinstance(rounds, list) and all(
            isinstance(one, list | tuple) and len(one) == 2 and all(isinstance(text, str) for text in one)
            for one in rounds
        ):
            return [
                {"role": role, "content": text}
                for one in rounds
                for role, text in zip(("user", "assistant"), one, strict=True)
            ]
        raise BadRowError("history", "history should be a list of [request, response], or of messages")

    def _listed(self, values: Values) -> Prompt:
        texts = _list_of_texts(self._texts, values)
        return Prompt([{"role": "user", "content": texts[0]}], later=tuple(texts[1:]))

    def _alternating(self, values: Values) -> Prompt:
        roles = itertools.cycle(("user", "assistant"))
        texts = _list_of_texts(self._alternate, values)
        return Prompt(
            [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)], complete=True
        )

    def _put_system(self, prompt: Prompt, values: Values) -> None:
        name, system = next(((n, v) for n, get in self._system if (v := get(values)) is not None), ("", None))
        if system is None:
            return
        text = str(turns_of([system])[0]["content"]) if is_turn(system) else _text(system, name)
        if not text.strip():
            return
        first = prompt.turns[0] if prompt.turns else {}
        if first.get("role") != "system":
            prompt.turns = [{"role": "system", "content": text}, *prompt.turns]
            prompt.plain = None
        elif first["content"].strip() != text.strip():
            raise BadRowError("two_prompts", f"{name} and the conversation hold two system messages")


def _conversation(value: Any, name: str, notes: Counter[str]) -> Prompt | None:
    """Read a conversation, a transcript, or either as JSON text; None if the value is another text."""
    if isinstance(value, str):
        found = parsed(value, name)
        if found is None:
            return _of_transcript(written) if (written := transcript(value)) else None
        value = found
    tools = None
    if (inner := conversation_within(value)) is not None:
        value, tools = inner, value.get("tools")
    if is_turn(value):
        value = [value]
    if not are_turns(value):
        return None
    last = name.rpartition(".")[2].lower()
    return Prompt(turns_of(value, notes), tools=tools, complete=last not in ("prompt", "context", "history"))


def _of_transcript(written: Transcript) -> Prompt:
    """Convert a transcript to a prompt; an empty assistant turn at its end is not part of the prompt."""
    asks = written.turns[-1]["role"] == "assistant" and not written.turns[-1]["content"].strip()
    turns = written.turns[:-1] if asks else written.turns
    return Prompt(turns, written.text if asks else None, is_transcript=True)


def _text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return text_within(value, name)
    raise BadRowError("no_prompt", f"{name} should hold a text or a conversation, but is {casts.shown(value)}")


def _longest(conversations: list[Prompt], texts: list[tuple[str, str]]) -> Prompt:
    """Choose the conversation of which the others are beginnings."""
    longest = max(conversations, key=lambda one: len(one.turns))
    for other in conversations:
        if other.turns != longest.turns[: len(other.turns)]:
            raise BadRowError("two_prompts", "two columns hold two different conversations")
    _agree(longest.turns, texts)
    return longest


def _agree(turns: Turns, texts: list[tuple[str, str]]) -> None:
    """Check that texts next to a conversation are in it."""
    said = {turn["content"].strip() for turn in turns}
    for name, text in texts:
        if text.strip() and text.strip() not in said:
            raise BadRowError("two_prompts", f"{name} and the conversation hold two different prompts")


def _within_sides(wholes: Sequence[Whole], conversations: list[Prompt], texts: list[tuple[str, str]]) -> Prompt:
    """Extract the prompt that whole conversations share; other prompt columns have to agree."""
    shared = shared_turns(wholes)
    beside = [one for one in conversations if any(one.turns == whole.turns[: len(one.turns)] for whole in wholes)]
    if len(beside) < len(conversations):
        raise BadRowError("two_prompts", "chosen and rejected do not begin with the prompt")
    if not shared:
        raise BadRowError("no_prompt", "there is no prompt: chosen and rejected do not start alike")
    _agree([turn for whole in wholes for turn in whole.turns], texts)
    source, place = wholes[0].source, len(shared)
    plain = source.text[: source.ends[place]] if source is not None and place < len(source.ends) else None
    tools = next((whole.tools for whole in wholes if whole.tools), None)
    return Prompt(list(shared), plain, tools, is_transcript=source is not None)


def _shared_words(sides: Sequence[Response]) -> Prompt:
    """Cut the words that all sides begin with off their texts: TRL's implicit prompt of plain texts."""
    texts = [str(one.plain) for one in sides]
    shared = _common_start(texts)
    # The prompt ends between two words, after or before white space.
    end = len(shared) - len(shared.split()[-1]) if shared.split() and not shared[-1:].isspace() else len(shared)
    if all(text[len(shared) : len(shared) + 1].isspace() or len(text) == len(shared) for text in texts):
        end = len(shared)
    if not shared[:end].strip() or len(texts) < 2:
        raise BadRowError("no_prompt", "there is no prompt: chosen and rejected do not start alike")
    for one, text in zip(sides, texts, strict=True):
        one.plain, one.turns = text[end:], [{"role": "assistant", "content": text[end:]}]
    return Prompt([{"role": "user", "content": shared[:end]}], shared[:end])


def _common_start(texts: Sequence[str]) -> str:
    same = (len({*characters}) == 1 for characters in zip(*texts, strict=False))
    return texts[0][: sum(1 for _ in itertools.takewhile(bool, same))] if texts else ""


def _list_of_texts(columns: Sequence[tuple[str, Getter]], values: Values) -> list[str]:
    name, value = next(((n, v) for n, get in columns if (v := casts.as_json(get(values))) is not None), ("", None))
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not value or not all(isinstance(text, str) for text in value):
        raise BadRowError("no_prompt", f"{name or columns[0][0]} should be a list of texts")
    return value


def tools_of(value: Any) -> str | None:
    """Tool definitions as one JSON text: the source's spacing does not matter, the order of its keys is kept.

    Raises:
        BadRowError: the value is not a list of tools.
    """
    if value is None or value in ("", []):
        return None
    listed = casts.as_json(value)
    if not isinstance(listed, list):
        raise BadRowError("tools", "tools should be a list of tool definitions, or that list as JSON")
    try:
        return json.dumps(listed, ensure_ascii=False) if listed else None
    except (TypeError, ValueError):
        raise BadRowError("tools", "tools should be a list of tool definitions, or that list as JSON") from None
