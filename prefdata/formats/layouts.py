"""Layouts in: how the columns of somebody's file say what is asked.

A layout names the column that holds the prompt and what kind of value it is; `LAYOUTS` is the only list. What a layout
does not use is kept: other columns become the row's metadata.

Read with every layout: `tags` (a text or a list), `tools` (a list, or JSON), `split` (train, or test under any of its
usual names), `metadata` (an object), and a `system` or `system_prompt` column for the conversation's system message.
Where a conversation ends with the assistant's turn, that turn is the reference answer and the prompt ends before it;
else the reference is the first of the layout's `reference` columns that is there.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.formats.readers import split_of
from prefdata.ids import prompt_id

Kind = Literal["text", "messages", "from/value turns", "texts", "number", "other"]
Turns = list[dict[str, str]]

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response"), "tool"),
}
"""The four roles, by every name that they go under."""

ANSWERS = ("reference", "reference_answer", "ground_truth", "expected_output", "target", "answer")
"""Columns that hold a reference answer under any layout; a column of some model's answers is not one of them."""


class Unusable(Exception):
    """A row that is no prompt: `reason` in one word, to be counted, and in a sentence, to be read."""

    def __init__(self, reason: str, said: str) -> None:
        super().__init__(said)
        self.reason = reason


class Columns:
    """A row's columns, and which of them were used."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._left = {name: value for name, value in values.items() if value is not None}

    def take(self, names: Sequence[str], *kinds: Kind) -> Any:
        """The first of `names` that is there and of one of `kinds` (of any, where none is given), or None."""
        for name in names:
            if name in self._left and (not kinds or kind(self._left[name]) in kinds):
                return self._left.pop(name)
        return None

    def text(self, *names: str) -> str:
        """The first of `names` that is text, or an empty text."""
        name = next((name for name in names if isinstance(self._left.get(name), str)), None)
        return str(self._left.pop(name)) if name else ""

    def left(self) -> dict[str, Any]:
        """What was not taken."""
        return self._left


@dataclass(frozen=True)
class Prompt:
    """What a row says, not yet held against the rules for conversations. `metadata` is a JSON object."""

    messages: Turns
    reference: str | None
    tools: str | None
    tags: list[str]
    metadata: str | None
    split: str | None


@dataclass(frozen=True)
class Layout:
    """One way to write prompts down.

    The first of `columns` that holds a value of `kind` is the prompt; `turns` makes messages of it, and may take more
    columns. A layout that is `only_named` is never detected, `last_resort` only where no other fits.
    """

    name: str
    columns: tuple[str, ...]
    kind: Kind
    turns: Callable[[Any, Columns], Turns]
    note: str = ""
    reference: tuple[str, ...] = ANSWERS
    only_named: bool = False
    last_resort: bool = False

    @property
    def needs(self) -> str:
        """What the layout needs, in words."""
        return f"{' or '.join(self.columns)} ({self.kind}){self.note and ', '}{self.note}"

    def fits(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Whether one of `rows` at least has a prompt in this layout."""
        return any(self.kind == kind(row.get(column)) for row in rows for column in self.columns)

    def prompt(self, values: Mapping[str, Any]) -> Prompt:
        """The prompt that a row holds.

        Raises:
            Unusable: it holds none, or one that cannot be read.
        """
        columns = Columns(values)
        asked = columns.take(self.columns, self.kind)
        if asked is None:
            raise Unusable("no_prompt", f"{' or '.join(self.columns)} should hold the prompt ({self.kind})")
        messages = self.turns(asked, columns)
        if messages and messages[0]["role"] != "system" and (system := columns.text("system", "system_prompt")):
            messages = [{"role": "system", "content": system}, *messages]
        messages, reference = _answered(messages)
        tools = _tools(columns.take(("tools",)))
        if "prompt_id" in values and values["prompt_id"] == prompt_id(messages, tools):
            columns.take(("prompt_id",))  # one of our own tables: the id says nothing new
        return Prompt(
            messages=messages,
            reference=reference or self._reference(columns),
            tools=tools,
            tags=_tags(columns.take(("tags",), "text", "texts")),
            split=_split(columns.take(("split",))),
            metadata=_metadata(columns),
        )

    def _reference(self, columns: Columns) -> str | None:
        # A value that is neither text nor a number is no answer: it stays with the metadata.
        found = columns.take(self.reference, "text", "number")
        return found or None if isinstance(found, str) or found is None else json.dumps(found)


def kind(value: Any) -> Kind | None:
    """What a value is, as far as layouts care; None for a null."""
    if value is None:
        return None
    if isinstance(value, str):
        return _kind_of_list(_from_json(value)) or "text"
    if isinstance(value, int | float):
        return "number"
    return _kind_of_list(value) or "other"


def _kind_of_list(value: Any) -> Kind | None:
    if not isinstance(value, list):
        return None
    if all(isinstance(item, str) for item in value):
        return "texts"
    if all(isinstance(item, dict) and "role" in item and "content" in item for item in value):
        return "messages"
    if all(isinstance(item, dict) and "from" in item and "value" in item for item in value):
        return "from/value turns"
    return None


def _from_json(text: str) -> Any:
    """The turns of a conversation that was put into one cell as JSON, else None."""
    if not text.lstrip().startswith("[{"):
        return None
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None


def _conversation(turns: Any, _: Columns) -> Turns:
    return turns_of(turns)


def turns_of(turns: Any) -> Turns:
    """Messages from {role, content} or {from, value} turns, or from JSON with such.

    Raises:
        Unusable: a turn has an unknown role, or more than text.
    """
    listed = _from_json(turns) if isinstance(turns, str) else turns
    return [_message(number, turn) for number, turn in enumerate(listed, 1)]


def _message(number: int, turn: Mapping[str, Any]) -> dict[str, str]:
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise Unusable("unknown_role", f"message {number} has the role {role!r}; known: {', '.join(ROLES)}")
    if turn.get("tool_calls"):
        raise Unusable("tool_calls", f"message {number} has tool_calls; only text is read, write the call as content")
    return {"role": ROLES[role], "content": _content(number, turn.get("content", turn.get("value")))}


def _content(number: int, content: Any) -> str:
    """A message's text; a list of content parts is their texts, one after the other."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Unusable("not_text", f"the content of message {number} is {type(content).__name__}, not text")
    return "".join(_part(number, part) for part in content)


def _part(number: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    sort = part.get("type", "text") if isinstance(part, dict) else type(part).__name__
    text = part.get("text", part.get("value")) if isinstance(part, dict) else None
    if sort not in ("text", "input_text") or not isinstance(text, str):
        raise Unusable("not_text", f"message {number} holds a part of type {sort}; only text is read")
    return text


def _text(prompt: str, _: Columns) -> Turns:
    return [{"role": "user", "content": prompt}]


def _with_input(prompt: str, columns: Columns) -> Turns:
    """The turns of `history`, [[asked, answered]], then one user message: the instruction, a blank line, its input."""
    given = columns.text("input", "context")
    asked = "\n\n".join(part for part in (prompt, given) if part.strip())
    return [*_history(columns.take(("history",)) or []), {"role": "user", "content": asked}]


def _history(rounds: Any) -> Turns:
    if not isinstance(rounds, list) or any(kind(r) != "texts" or len(r) != 2 for r in rounds):
        raise Unusable("history", "history should be a list of [asked, answered]")
    return [{"role": role, "content": t} for r in rounds for role, t in zip(("user", "assistant"), r, strict=True)]


def _first_turn(turns: list[str], columns: Columns) -> Turns:
    if not turns:
        raise Unusable("no_prompt", "turns is an empty list")
    if turns[1:]:
        columns.left()["later_turns"] = turns[1:]
    return [{"role": "user", "content": turns[0]}]


def _answered(messages: Turns) -> tuple[Turns, str | None]:
    if messages and messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    return messages, None


def _tools(value: Any) -> str | None:
    """Tool definitions as one JSON text: the source's spacing does not matter, the order of its keys is kept."""
    if value is None or value in ("", []):
        return None
    try:
        listed = json.loads(value) if isinstance(value, str) else _without_nulls(value)
        said = json.dumps(listed, ensure_ascii=False)
    except (TypeError, ValueError):
        listed = None
    if not isinstance(listed, list):
        raise Unusable("tools", "tools should be a list of tool definitions, or that list as JSON")
    return said if listed else None


def _without_nulls(value: Any) -> Any:
    # A Parquet column gives every tool the keys of all the others, as nulls.
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _tags(value: Any) -> list[str]:
    return list(dict.fromkeys([value] if isinstance(value, str) else value or []))


def _split(value: Any) -> str | None:
    if value is None or value == "":
        return None
    split = split_of(value) if isinstance(value, str) else None
    if split is None:
        raise Unusable("split", f"split is {value!r}; known: train, test, validation, valid, val, dev, eval")
    return split


def _metadata(columns: Columns) -> str | None:
    """Everything that was not used, as a JSON object; the keys of a `metadata` object come up one level."""
    left = columns.left()
    given = left.get("metadata")
    if isinstance(given, str) and given.startswith("{"):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            given = None
    if isinstance(given, dict) and not (given.keys() & left.keys()):
        left = {**given, **{name: value for name, value in left.items() if name != "metadata"}}
    return json.dumps(_plain(left), ensure_ascii=False) if left else None


def _plain(value: Any) -> Any:
    """`value` in JSON's terms: NaN and infinities are null, bytes base64, what JSON cannot say is its text."""
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("messages", ("messages", "conversations", "conversation", "chat"), "messages", _conversation),
        Layout("sharegpt", ("conversations", "conversation", "messages"), "from/value turns", _conversation),
        Layout("prompt", ("prompt",), "text", _text),
        Layout("conversation", ("prompt",), "messages", _conversation),
        Layout("context_messages", ("context_messages", "context"), "messages", _conversation),
        Layout(
            "instruction",
            ("instruction",),
            "text",
            _with_input,
            note="with input or context, history [[asked, answered]], and output as the reference where they are there",
            reference=("output", *ANSWERS),
        ),
        Layout("question", ("question", "problem"), "text", _with_input, note="with context where it is there"),
        Layout("text", ("text",), "text", _text, note="where nothing else fits; plain text files", last_resort=True),
        Layout(
            "first-turn",
            ("turns",),
            "texts",
            _first_turn,
            note="only when named: the first is asked, the others stay in the metadata",
            only_named=True,
        ),
    )
}
"""Every layout, by name."""


def detect(rows: Sequence[Mapping[str, Any]], where: str) -> Layout:
    """The layout of a file, from its first rows; `where` names the file in the message.

    Raises:
        InputError: no layout fits, or several do; the message lists them, what each needs, and what was found.
    """
    fitting = [layout for layout in LAYOUTS.values() if not layout.only_named and layout.fits(rows)]
    if len(fitting) > 1:
        fitting = [layout for layout in fitting if not layout.last_resort]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        said = f"could be read as {' or '.join(layout.name for layout in fitting)}. Say which with --layout NAME."
    else:
        said = "unknown layout. Say which with --layout NAME, or rename a column to fit one."
        if any("chosen" in row for row in rows):
            said += " Conversations that hold their prompt in chosen and rejected are read with --as candidates."
    raise InputError(f"{where}: {said}{_found_and_known(rows)}")


def named(name: str, rows: Sequence[Mapping[str, Any]], where: str) -> Layout:
    """The layout of that name, if the file's first rows have what it needs.

    Raises:
        UsageError: there is no such layout.
        InputError: the rows do not fit it.
    """
    if name not in LAYOUTS:
        raise UsageError(f"there is no layout {name!r}.{did_you_mean(name, LAYOUTS)}")
    if not LAYOUTS[name].fits(rows):
        raise InputError(f"{where}: nothing to read as {name}.{_found_and_known(rows)}")
    return LAYOUTS[name]


def _found_and_known(rows: Sequence[Mapping[str, Any]]) -> str:
    kinds: dict[str, list[str]] = {}
    for row in rows:
        for column, value in row.items():
            said = kinds.setdefault(column, [])
            if (this := kind(value)) and this not in said:
                said.append(this)
    found = ", ".join(f"{column} ({' or '.join(said) or 'null'})" for column, said in kinds.items())
    known = "".join(f"\n  {layout.name}: {layout.needs}" for layout in LAYOUTS.values())
    return f"\nColumns found: {found}.\nLayouts known:{known}"
