"""Conversations: conversion of turns in any common notation to the messages of the contract.

A message has role and content, and optionally tool_calls (as JSON text), tool_call_id, name, reasoning_content, weight
and prefill. Keys and roles have many names, in any case. Other keys are counted as not kept; pictures and sound are
refused and never skipped.
"""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from prefdata.formats.records import BadRowError

Turns = list[dict[str, Any]]

_ROLE_NAMES = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "customer", "question"),
    "assistant": ("assistant", "gpt", "chatgpt", "bot", "chatbot", "model", "ai", "agent", "answer"),
    "tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython"),
    "call": ("function_call", "tool_call"),  # an assistant's message whose content is a call
}
ROLES = {name: role for role, names in _ROLE_NAMES.items() for name in names}
"""The names of each role; `call` is an assistant's message whose content is a tool call."""

_ROLE_KEYS = ("role", "from", "speaker", "author", "sender")
_CONTENT_KEYS = ("content", "value", "text", "message", "parts", "utterance")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking", "thought")
_WEIGHT_KEYS = ("weight", "loss_weight", "loss", "train")
_PREFILL_KEYS = ("prefill", "prefix")
_PICTURE_KEYS = ("images", "image", "image_url", "videos", "video", "audios", "audio")
_TEXT_PARTS = ("text", "input_text", "output_text")
_PLAIN = {"role", "content"}

_PLACEHOLDER = re.compile(r"<image>(?!.*</image>)|\A\s*<(video|audio)>\s*\n(?!.*</\1>)", re.DOTALL)
"""Placeholders of a picture or video in a text; in XML and HTML the element is closed."""

_AFTER: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("assistant", "tool"),
}


def role_of(name: Any) -> str | None:
    """Find the role of a name; None if it is unknown."""
    return ROLES.get(name.strip().lower().replace(" ", "_").replace("-", "_")) if isinstance(name, str) else None


def are_turns(value: Any) -> bool:
    """Tell whether a value is a conversation: a list of objects with role and content, or with roles as keys."""
    return isinstance(value, list) and bool(value) and all(is_turn(turn) for turn in value)


def is_turn(value: Any) -> bool:
    """Tell whether a value is one turn of a conversation, well or badly formed."""
    if not isinstance(value, dict):
        return False
    if value.keys() >= _PLAIN:
        return True
    keys = {key.lower() for key in value if isinstance(key, str)}
    if keys.isdisjoint(_ROLE_KEYS):
        return bool(keys) and all(role_of(key) not in (None, "call") for key in keys) and _all_texts(value.values())
    role = next(value[key] for key in value if str(key).lower() in _ROLE_KEYS)
    return not keys.isdisjoint(_CONTENT_KEYS) or "tool_calls" in keys or role_of(role) is not None


def _all_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)


def turns_of(value: Sequence[Mapping[str, Any]], unused: Counter[str] | None = None) -> Turns:
    """Convert turns in any notation to messages; `unused` counts the keys that are not kept.

    Raises:
        BadRowError: a turn has an unknown role, or its content is not text.
    """
    found: Turns = []
    for number, turn in enumerate(value, 1):
        # Fast path for the common case.
        if len(turn) == 2 and type(content := turn.get("content")) is str and type(name := turn.get("role")) is str:
            role = ROLES.get(name)
            if role is not None and role != "call":
                found.append({"role": role, "content": content})
                continue
        for message in _messages(number, turn, Counter() if unused is None else unused):
            _append(found, message)
    return found


def _append(turns: Turns, message: dict[str, Any]) -> None:
    """Append a message; a call after a text of the assistant is merged into one message with it."""
    last = turns[-1] if turns else {}
    if message.get("tool_calls") and not message["content"] and last.get("role") == "assistant":
        if "tool_calls" in last:
            calls = [*json.loads(last["tool_calls"]), *json.loads(message["tool_calls"])]
            message = {**message, "tool_calls": _json(calls)}
        turns[-1] = {**last, **message, "content": last["content"]}
    else:
        turns.append(message)


def _messages(number: int, turn: Mapping[str, Any], unused: Counter[str]) -> Iterator[dict[str, Any]]:
    keys = {str(key).lower(): value for key, value in turn.items() if value is not None}
    role_key = next((key for key in _ROLE_KEYS if key in keys), None)
    if role_key is None and keys and all(role_of(key) for key in keys):
        yield from ({"role": role_of(key), "content": text} for key, text in keys.items())
        return
    role = role_of(keys.pop(role_key, None)) if role_key else None
    if role is None:
        raise BadRowError(
            "unknown_role", f"message {number} has the role {turn.get(role_key or 'role')!r}; known: {_known()}"
        )
    content = next((keys.pop(key) for key in _CONTENT_KEYS if key in keys), None)
    message = {"role": "assistant" if role == "call" else role, **_kept(number, keys)}
    if isinstance(content, list) and any(_sort(part) == "tool_result" for part in content):
        yield from _tool_results(number, content)
    elif role == "call":
        yield from _called(message, content)
    else:
        text, more = _content(number, content, message)
        yield {"role": message.pop("role"), "content": text, **message, **more}
    unused.update(f"message key {key}" for key in keys)


def _known() -> str:
    return ", ".join(ROLES)


def _kept(number: int, keys: dict[str, Any]) -> dict[str, Any]:
    """Take the message keys other than role and content that the contract has out of `keys`."""
    if pictures := next((key for key in _PICTURE_KEYS if keys.get(key)), None):
        raise BadRowError("pictures", f"message {number} has {pictures}; only text is read")
    kept: dict[str, Any] = {}
    calls = keys.pop("tool_calls", None)
    if legacy := keys.pop("function_call", None):
        calls = [{"function": legacy}]
    if calls:
        kept["tool_calls"] = tool_calls(number, calls)
    for name in ("tool_call_id", "name"):
        if isinstance(keys.get(name), str | int):
            kept[name] = str(keys.pop(name))
    for key in _REASONING_KEYS:
        if isinstance(keys.get(key), str) and "reasoning_content" not in kept:
            kept["reasoning_content"] = keys.pop(key)
    for key in _WEIGHT_KEYS:
        if isinstance(keys.get(key), int | float):
            kept["weight"] = float(keys.pop(key))
    if any(keys.pop(key, None) is True for key in _PREFILL_KEYS):
        kept["prefill"] = True
    for key in _PICTURE_KEYS:
        keys.pop(key, None)  # an empty list
    return kept


def tool_calls(number: int, calls: Any) -> str:
    """Convert tool calls to the JSON text of chat templates: `{"type", "function": {"name", "arguments"}}`, with an id.

    Raises:
        BadRowError: they are not tool calls.
    """
    if isinstance(calls, str):
        try:
            calls = json.loads(calls, strict=False)
        except ValueError:
            calls = None
    listed = [calls] if isinstance(calls, dict) else calls
    if not isinstance(listed, list) or not all(_is_call(call) for call in listed):
        raise BadRowError("tool_calls", f"the tool_calls of message {number} are not a list of calls with a name")
    return _json([_call(call) for call in listed])


def _is_call(call: Any) -> bool:
    inner = call.get("function", call) if isinstance(call, dict) else None
    return isinstance(inner, dict) and isinstance(inner.get("name"), str)


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    inner = call.get("function", call)
    arguments: Any = next(
        (inner[key] for key in ("arguments", "parameters", "input") if inner.get(key) is not None), {}
    )
    if isinstance(arguments, str):  # JSON text in OpenAI's format, an object in chat templates
        try:
            parsed = json.loads(arguments, strict=False)
            arguments = parsed if isinstance(parsed, dict) else arguments
        except ValueError:
            pass
    known = {"id": str(call["id"])} if isinstance(call.get("id"), str | int) else {}
    return {**known, "type": "function", "function": {"name": inner["name"], "arguments": arguments}}


def _called(message: dict[str, Any], content: Any) -> Iterator[dict[str, Any]]:
    """Convert a turn in the role of a call: its content is the call, or text if it is not a call."""
    try:
        yield {"role": "assistant", "content": "", **message, "tool_calls": tool_calls(0, content)}
    except BadRowError:
        if not isinstance(content, str):
            raise
        yield {**message, "content": content}


def _content(number: int, content: Any, message: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Split a message's parts into its text, and the reasoning and calls among them."""
    if isinstance(content, str):
        return content, {}
    if content is None and ("tool_calls" in message or "reasoning_content" in message):
        return "", {}
    if isinstance(content, dict):
        return text_within(content, f"the content of message {number}"), {}
    if not isinstance(content, list):
        raise BadRowError("not_text", f"the content of message {number} is {_type(content)}, not text")
    more: dict[str, Any] = {}
    if reasoning := [str(part.get("thinking", part.get("text", ""))) for part in content if _sort(part) == "thinking"]:
        more["reasoning_content"] = "".join(reasoning)
    if calls := [part for part in content if _sort(part) == "tool_use"]:
        more["tool_calls"] = tool_calls(number, calls)
    words = [part for part in content if _sort(part) not in ("thinking", "tool_use")]
    return "".join(_part(number, part) for part in words), more


def _type(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _sort(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _part(number: int, part: Any) -> str:
    if isinstance(part, str):
        return part
    sort = part.get("type", "text") if isinstance(part, dict) else _type(part)
    text = (
        next((part[key] for key in ("text", "value", "content") if key in part), None)
        if isinstance(part, dict)
        else None
    )
    if sort in _TEXT_PARTS and isinstance(text, str):
        return text
    reason = "not_text" if sort in _TEXT_PARTS else "pictures"
    raise BadRowError(reason, f"message {number} holds a part of type {sort}; only text is read")


def _tool_results(number: int, content: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Extract tool results written as parts of a user's message, each as a message of its own."""
    for part in content:
        if _sort(part) != "tool_result":
            yield {"role": "user", "content": _part(number, part)}
            continue
        text, _ = _content(number, part.get("content", ""), {})
        call = {"tool_call_id": str(part["tool_use_id"])} if "tool_use_id" in part else {}
        yield {"role": "tool", "content": text, **call}


TEXT_KEYS = (
    "text",
    "content",
    "response",
    "answer",
    "completion",
    "output",
    "generation",
    "value",
    "full_text",
    "body",
)
"""The keys of an object's only text."""


def text_within(value: Mapping[str, Any], name: str) -> str:
    """Find the only text in an object, also inside one nested object.

    Raises:
        BadRowError: it has no text, or several.
    """
    found = [value[key] for key in TEXT_KEYS if isinstance(value.get(key), str)]
    inner = [value[key] for key in TEXT_KEYS if isinstance(value.get(key), dict)]
    if len(found) == 1:
        return str(found[0])
    if not found and len(inner) == 1:
        return text_within(inner[0], name)
    raise BadRowError("not_text", f"{name} is an object with {'several texts' if found else 'no text'}, not a text")


def parsed(text: str, name: str) -> Any:
    """Parse turns written as JSON or in Python notation; None for any other text.

    Raises:
        BadRowError: it looks like such turns but cannot be parsed.
    """
    start = text.lstrip()[:200]
    if start[:1] not in ("[", "{") or not _looks_serialised(start):
        return None
    for parse in (_from_json, ast.literal_eval):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return value if are_turns(value) or is_turn(value) or conversation_within(value) is not None else None
    raise BadRowError(
        "serialised", f"{name} looks like turns in JSON or Python notation, but cannot be parsed: {start[:60]!r}"
    )


def _from_json(text: str) -> Any:
    return json.loads(text, strict=False)


def _looks_serialised(start: str) -> bool:
    bare = "".join(start.split())
    for quote in "\"'":
        if bare.startswith(tuple(f"[{{{quote}{key}{quote}:" for key in ("role", "from", "content", "value"))):
            return bare.startswith((f"[{{{quote}role", f"[{{{quote}from")) or any(
                f"{quote}{key}{quote}:" in bare for key in ("role", "from")
            )
        if bare.startswith(tuple(f"{{{quote}{key}{quote}:" for key in ("role", "messages", "conversations"))):
            return True
    return False


def conversation_within(value: Any) -> Any:
    """Get the turns of an object with a conversation under `messages` or `conversations`, else None."""
    if not isinstance(value, dict):
        return None
    return next((value[key] for key in ("messages", "conversations") if are_turns(value.get(key))), None)


def plain(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether messages have only roles and contents."""
    return all(message.keys() == _PLAIN for message in messages)


def check(messages: Sequence[Mapping[str, Any]]) -> None:
    """Check the conversation of a prompt, which ends where a response is expected.

    At most one system message, which comes first, then user and assistant in turn; results of tools may follow an
    assistant's message. The last message is the user's, a tool's result, or the beginning of the response, marked
    prefill. Only messages that call a tool, and tool results, may be empty.

    Raises:
        BadRowError: it breaks a rule.
    """
    if not any(message["role"] == "user" for message in messages):
        raise BadRowError("no_user_turn", "there is no user message")
    before = None
    for number, message in enumerate(messages, 1):
        role = message["role"]
        if role not in _AFTER[before]:
            after = f"after {before}" if before else "first"
            either = " or ".join(_AFTER[before])
            raise BadRowError("roles_out_of_order", f"message {number} is {role}, {after}; expected {either}")
        before = role
    if before == "system" or (before == "assistant" and not messages[-1].get("prefill")):
        raise BadRowError(
            "no_user_last", f"the last message is {before}'s, but should be the user's, a tool's or marked prefill"
        )
    for number, message in enumerate(messages, 1):
        content = message["content"]
        if "<" in content and (picture := _PLACEHOLDER.search(content)):
            raise BadRowError(
                "pictures", f"message {number} has a placeholder of a picture, {picture[0].strip()}; only text is read"
            )
        empty = not content or content.isspace()
        if empty and message["role"] != "tool" and not message.get("tool_calls"):
            raise BadRowError("empty_content", f"message {number} ({message['role']}) is empty")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
