"""Parse a server's response: text, finish reason, log-probabilities and counts, whatever their types.

Servers of the same interface differ in finish reasons, in the form of a text and in what they leave out. What is
missing is None; an invalid response is `Odd`, and becomes a row without one.
"""

from __future__ import annotations

import math
import re
from typing import Any, Literal

MOST_TOKENS = (1 << 31) - 1
"""Token ids and counts above this are invalid."""

FINISHED: dict[str, Literal["stop", "length"]] = {
    **dict.fromkeys(
        (
            "stop", "eos", "eos_token", "end", "end_turn", "end_of_text", "endoftext", "stop_sequence",
            "stop_word", "stop_token", "stop_str", "complete", "completed", "finish", "finished", "word",
        ),
        "stop",
    ),
    **dict.fromkeys(
        (
            "length", "max_tokens", "max_length", "max_new_tokens", "max_output_tokens", "maximum_tokens",
            "max_completion_tokens", "model_length", "model_context_window_exceeded", "limit", "token_limit",
        ),
        "length",
    ),
}  # fmt: skip
"""Servers' names of the two ends of a response, in lower case: OpenAI, TGI, Mistral, Cohere, Gemini, Anthropic, …"""

FILTERED = (
    "content_filter", "content_filtered", "safety", "refusal", "recitation", "prohibited_content", "blocklist", "spii",
    "guardrail_intervened", "error_toxic", "sensitive",
)  # fmt: skip
"""Their names of an end by a content filter."""

REASONING = ("thinking", "reasoning", "redacted_thinking", "reasoning_content")
"""Types of parts that do not belong to the response's text."""


_SURROGATE = re.compile("[\ud800-\udfff]")


class Odd(Exception):
    """An invalid response; the message follows the words "the response"."""


def ending(choice: dict[str, Any]) -> Literal["stop", "length", "filter"]:
    """Return what ended the response; `filter` is a content filter.

    Raises:
        Odd: the server does not say, or it is something else (`tool_calls`).
    """
    reason = choice.get("finish_reason")
    if not isinstance(reason, str) or not reason:
        raise Odd("does not say how it ended (finish_reason)")
    word = reason.lower().removeprefix("finish_reason_").replace("-", "_")
    if word in FILTERED:
        return "filter"
    if word not in FINISHED:
        raise Odd(f"was ended by the server: {reason}")
    return FINISHED[word]


def refused_by_model(choice: dict[str, Any]) -> str | None:
    """Return the model's refusal, where it refused."""
    text = _message(choice).get("refusal")
    return text if isinstance(text, str) and text else None


def text_of(choice: dict[str, Any]) -> str:
    """Return the response's text: a string, or the text parts of a list of parts, joined.

    Raises:
        Odd: it is something else, or holds half of a surrogate pair.
    """
    content = choice.get("text")
    content = _message(choice).get("content") if content is None else content
    if content is None:
        return ""  # an empty response is a response
    text = "".join(map(_part, content)) if isinstance(content, list) else content
    if not isinstance(text, str):
        raise Odd(f"has a content of the type {type(text).__name__}, and no text")
    if _SURROGATE.search(text):
        raise Odd("is not Unicode: it holds half of a surrogate pair")
    return text


def has_reasoning(choice: dict[str, Any]) -> bool:
    """Return whether the response comes with reasoning beside its text."""
    message = _message(choice)
    content = message.get("content")
    parts = content if isinstance(content, list) else []
    beside = (message.get(name) for name in ("reasoning_content", "reasoning"))
    return any(beside) or any(isinstance(part, dict) and part.get("type") in REASONING for part in parts)


def token_ids(choice: dict[str, Any]) -> tuple[int, ...] | None:
    """Return the response's token ids, where the server gives them.

    Raises:
        Odd: they are not token ids.
    """
    found = choice.get("token_ids")
    if found is None:
        return None
    if not isinstance(found, list) or any(count(token) is None for token in found):
        raise Odd("has invalid token_ids")
    return tuple(found)


def logprobs_of(choice: dict[str, Any]) -> tuple[float | None, ...] | None:
    """Return the tokens' log-probabilities in nats, from either of the two forms; None for one that is not a number."""
    entry = choice.get("logprobs")
    entry = entry if isinstance(entry, dict) else {}
    found, tokens = entry.get("token_logprobs"), entry.get("content")
    if found is None and isinstance(tokens, list):
        found = [token.get("logprob") if isinstance(token, dict) else None for token in tokens]
    return tuple(map(_finite, found)) if isinstance(found, list) else None


def usage_of(answer: dict[str, Any], name: str) -> int | None:
    """Return a count of the response's usage, where the server gives one."""
    usage = answer.get("usage")
    return count(usage.get(name)) if isinstance(usage, dict) else None


def count(value: Any) -> int | None:
    """Return the value where it is a count or an id: a whole number from 0 to 2^31 - 1."""
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None


def _message(choice: dict[str, Any]) -> dict[str, Any]:
    found = choice.get("message")
    return found if isinstance(found, dict) else {}


def _part(part: Any) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in REASONING:
        return ""
    text = part.get("text") if kind in ("text", "output_text") else part
    if not isinstance(text, str):
        raise Odd(f"has a part of the type {str(kind or type(part).__name__)[:40]!r}, and no text alone")
    return text


def _finite(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300
    return float(value) if good and not math.isnan(value) else None
