"""The layouts that training data comes in, each row checked on its own.

Preferences: `prompt`, `chosen`, `rejected`, or without `prompt` (then it is what chosen and rejected have in common at
their start); optionally `weight`, `margin`, `probability` (that the label is right) and `verdict` (a `tie` is never
trained on). Demonstrations: `messages`, or `prompt` and `completion`, of which only
the completion is ever trained on. Every part is a text, or a conversation: a list of {role, content}. Texts are trained
as plain text, conversations through the model's chat template. `tools` (a JSON list) goes to the template.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal

from prefdata.errors import BadRow, BadRows, InputError

Kind = Literal["demonstrations", "preferences"]
Message = dict[str, str]
Turns = list[Message]
Parsed = tuple[str | Turns, tuple[str | Turns, ...]]
"""A prompt and its answers."""

ROLES = ("system", "developer", "user", "assistant", "tool")

KNOWN: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "preferences": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "demonstrations": (("messages",), ("prompt", "completion")),
}
"""The columns of each layout, the most specific first."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was read: where from, which split it belongs to, and its values."""

    file: str
    row: int
    split: str
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt and its answers (one for a demonstration; chosen and rejected for a preference).

    All parts are texts, or all are conversations. With `every_turn` the assistant's turns of the prompt may be trained
    on as well, where the chat template marks them.
    """

    prompt: str | Turns
    answers: tuple[str | Turns, ...]
    weight: float
    margin: float | None
    tools: list[Any] | None
    row: Row
    every_turn: bool
    probability: float = 1.0


class Unusable(ValueError):
    """What is wrong with a row, in a few words."""


def parse(
    rows: Iterable[Row | BadRow],
    kind: Kind,
    name: str,
    *,
    need_margin: bool = False,
    need_probability: bool = False,
    skipped: Counter[str] | None = None,
    on_bad_rows: Literal["error", "drop"] = "error",
) -> list[Item]:
    """The rows as items, in their order, without ties; `skipped` is where those, and dropped rows, are counted.

    Raises:
        InputError: there are no rows, or their columns are of no known layout.
        BadRows: rows that cannot be used, all of them, and `on_bad_rows` is error.
    """
    read: Callable[[Mapping[str, Any]], Parsed] | None = None
    items, bad, ties = [], [], 0
    for row in rows:
        if isinstance(row, BadRow):
            bad.append(row)
            continue
        if kind == "preferences" and row.values.get("verdict") == "tie":
            ties += 1
            continue
        if read is None:
            read = _reader(row.values, kind, name)
            _refuse_absent(row.values, name, margin=need_margin, probability=need_probability)
        try:
            items.append(_item(row, read(row.values), need_margin, need_probability))
        except Unusable as problem:
            bad.append(BadRow(row.file, row.row, str(problem)))
    if bad and (on_bad_rows == "error" or not items):
        raise BadRows(bad)
    if not items:
        why = f"all {ties} rows are ties" if ties else "it is empty"
        raise InputError(f"{name} has no {kind} to train on: {why}. Check the file, or the step that made it.")
    if skipped is not None:
        skipped.update(tie=ties, bad_row=len(bad))
    return items


def _reader(values: Mapping[str, Any], kind: Kind, name: str) -> Callable[[Mapping[str, Any]], Any]:
    for columns in KNOWN[kind]:
        if all(column in values for column in columns):
            return _preference if kind == "preferences" else _demonstration
    known = " or ".join(", ".join(columns) for columns in KNOWN[kind])
    raise InputError(
        f"{name} has the columns {', '.join(map(str, values)) or '(none)'}, and {kind} come as {known}. "
        "Rename its columns."
    )


_ASKED_BY = {"margin": "--use-margin", "probability": "--soft-labels"}


def _refuse_absent(values: Mapping[str, Any], name: str, **needed: bool) -> None:
    """That there is each column that a setting asks for.

    Raises:
        InputError: there is not.
    """
    for column in (column for column, need in needed.items() if need and column not in values):
        raise InputError(
            f"{name} has no column {column}, which {_ASKED_BY[column]} asks for. An export has it without "
            "--strict-columns, and a run always."
        )


def _item(row: Row, parsed: Parsed, need_margin: bool, need_probability: bool) -> Item:
    weight = _number(row.values, "weight", 1.0)
    margin = _number(row.values, "margin", None)
    if weight is None or weight < 0:
        raise Unusable(f"weight is {weight}, and should be a number from 0 up")
    if need_margin and margin is None:
        raise Unusable("margin is missing, and use_margin asks for it")
    # Read where it is asked for only: data may have a column of this name that means something else.
    probability = _number(row.values, "probability", None) if need_probability else 1.0
    if probability is None:
        raise Unusable("probability is missing, and soft_labels asks for it")
    if not 0 <= probability <= 1:
        raise Unusable(f"probability is {probability}, and should be from 0 to 1")
    every_turn = "messages" in row.values and len(parsed[1]) == 1
    return Item(*parsed, weight, margin, _tools(row.values.get("tools")), row, every_turn, probability)


def _preference(values: Mapping[str, Any]) -> Parsed:
    chosen, rejected = _part(values, "chosen"), _part(values, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Unusable("one of chosen and rejected is a text and the other a conversation")
    if chosen == rejected:
        raise Unusable("chosen and rejected are identical")
    if values.get("prompt") is None and "prompt" in values:
        raise Unusable("prompt is null")
    whole = not isinstance(chosen, str) and chosen[0]["role"] != "assistant"
    if "prompt" not in values or (whole and isinstance(values["prompt"], str)):
        return _split(chosen, rejected)
    prompt = _prompt(_part(values, "prompt"), chosen)
    return prompt, (_answer(prompt, chosen, "chosen"), _answer(prompt, rejected, "rejected"))


def _split(chosen: str | Turns, rejected: str | Turns) -> Parsed:
    """Chosen and rejected as whole texts or conversations: the prompt is what they share at their start."""
    same = (a == b for a, b in zip(chosen, rejected, strict=False))
    shared = sum(takewhile(bool, same))
    if not isinstance(chosen, str):
        shared = min(shared, len(chosen) - 1, len(rejected) - 1)
    if not shared:
        raise Unusable("there is no prompt: chosen and rejected do not start alike")
    prompt = _prompt(chosen[:shared], chosen)
    return prompt, (_answer(prompt, chosen[shared:], "chosen"), _answer(prompt, rejected[shared:], "rejected"))


def _demonstration(values: Mapping[str, Any]) -> Parsed:
    if "messages" in values:
        turns = _part(values, "messages")
        if isinstance(turns, str):
            raise Unusable("messages is a text, and should be a list of {role, content}")
        return _prompt(turns[:-1], turns), (_answer(turns[:-1], turns[-1:], "messages"),)
    completion = _part(values, "completion")
    prompt = _prompt(_part(values, "prompt"), completion)
    return prompt, (_answer(prompt, completion, "completion"),)


def _prompt(prompt: str | Turns, answer: str | Turns) -> str | Turns:
    if isinstance(prompt, str):
        return prompt if isinstance(answer, str) else [{"role": "user", "content": prompt}]
    if not prompt:
        raise Unusable("there is no prompt before the answer")
    if isinstance(answer, str):
        raise Unusable("prompt is a conversation and its answer a text")
    if prompt[-1]["role"] not in ("user", "tool"):
        raise Unusable(f"the prompt ends with a message of the {prompt[-1]['role']}, not the user")
    if any(turn["role"] in ("system", "developer") for turn in prompt[1:]):
        raise Unusable("a system message stands after the first message")
    return prompt


def _answer(prompt: str | Turns, answer: str | Turns, name: str) -> str | Turns:
    if isinstance(answer, str):
        if not answer.strip():
            raise Unusable(f"{name} is empty")
        return answer
    if answer[: len(prompt)] == prompt:
        answer = answer[len(prompt) :]  # a whole conversation beside its prompt
    if not answer:
        raise Unusable(f"{name} holds no answer")
    if answer[0]["role"] != "assistant" or answer[-1]["role"] != "assistant":
        raise Unusable(f"{name} should begin and end with a message of the assistant, not of the {answer[-1]['role']}")
    if not answer[-1]["content"].strip():
        raise Unusable(f"{name} is empty")
    return answer


def _part(values: Mapping[str, Any], name: str) -> str | Turns:
    value = values.get(name)
    if value is None:
        raise Unusable(f"{name} is {'null' if name in values else 'missing'}")
    if isinstance(value, str):
        if not value.strip():
            raise Unusable(f"{name} is empty")
        return value
    if not isinstance(value, list):
        raise Unusable(f"{name} is a {type(value).__name__}, and should be a text or a list of {{role, content}}")
    if not value:
        raise Unusable(f"{name} is empty")
    return [_message(turn, name, place) for place, turn in enumerate(value, 1)]


def _message(turn: Any, name: str, place: int) -> Message:
    role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
    if not isinstance(role, str) or not isinstance(content, str):
        raise Unusable(f"message {place} of {name} should have the texts role and content")
    if role not in ROLES:
        raise Unusable(f'message {place} of {name} has the role "{role}"; known are {", ".join(ROLES)}')
    return {"role": role, "content": content}


def _number(values: Mapping[str, Any], name: str, default: float | None) -> float | None:
    value = values.get(name, default)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unusable(f"{name} is {value!r}, and should be a finite number")
    return float(value)


def _tools(value: Any) -> list[Any] | None:
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except ValueError:
        raise Unusable("tools is not JSON") from None
    if tools is not None and not isinstance(tools, list):
        raise Unusable("tools should be a list")
    return tools or None
