"""Messages as they are stored, and as templates, servers and judges read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

_OURS = ("weight", "prefill")
"""Keys that set how a message is used; models do not see them."""


def for_template(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give a message as chat templates read it: tool calls as values, no null, and no key that says how it is used."""
    shown = {key: value for key, value in message.items() if value is not None and key not in _OURS}
    if isinstance(calls := shown.get("tool_calls"), str):
        shown["tool_calls"] = json.loads(calls)
    return shown


def for_server(message: Mapping[str, Any]) -> dict[str, Any]:
    """Give a message as OpenAI's interface reads it: the arguments of its tool calls are JSON text."""
    shown = for_template(message)
    for call in shown.get("tool_calls", ()):
        arguments = call["function"]["arguments"]
        if not isinstance(arguments, str):
            call["function"] = {**call["function"], "arguments": json.dumps(arguments, ensure_ascii=False)}
    return shown


def as_text(message: Mapping[str, Any]) -> str:
    """Give a message as a person or a judge reads it: its content, and the tools that it calls."""
    calls = [call["function"] for call in for_template(message).get("tool_calls", ())]
    called = [f"[calls {call['name']}: {json.dumps(call['arguments'], ensure_ascii=False)}]" for call in calls]
    return "\n".join(part for part in (str(message["content"]), *called) if part)
