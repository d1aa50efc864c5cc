"""Keys: every row is identified by its content, never by its position.

The byte layout is a published contract (tests/golden/ids.json pins it): a value is written as canonical JSON (UTF-8,
keys sorted by code point, no spaces, no escapes beyond what JSON asks for, no NaN), hashed with SHA-256, and the first
20 hexadecimal digits (80 bits) are the id. With 64 million rows the chance of one collision is below 2e-9.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FORMAT = 2
"""Version of what a model's identity is made of, and with it candidates' ids, seeds and scores.

It is part of the identity of all that a model made (`sample`, `rank`, `train`): what another version began is read, and
not continued. 1 (until 0.1): weights and tokenizer, without config.json.
"""

ID_DIGITS = 20
"""Hexadecimal digits of an id: 80 bits."""

_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)

Message = Mapping[str, Any]

SHOWN_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning_content", "prefill")
"""The keys of a message that decide what a model sees, and so a prompt's id; `weight` only sets what is trained."""


def canonical_json(value: Any) -> bytes:
    """`value` as canonical JSON bytes: equal values give equal bytes.

    Strings stay as they are, without Unicode normalisation: two texts that differ in bytes are two texts. A lone
    surrogate (half an emoji, from a broken tokenizer or JSON) is kept through `surrogatepass`.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for a value that JSON cannot represent.
    """
    return _ENCODER.encode(value).encode("utf-8", "surrogatepass")


def digest(value: Any) -> str:
    """Return the id of any JSON value: 20 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:ID_DIGITS]


def prompt_id(messages: Sequence[Message], tools: str | None = None) -> str:
    """Hash a prompt: its messages without null keys and loss weights, and its tools where it has some."""
    turns = [m if len(m) == 2 else {key: m[key] for key in SHOWN_KEYS if m.get(key) is not None} for m in messages]
    return digest({"messages": turns} if tools is None else {"messages": turns, "tools": tools})


def without_nulls(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Drop the null keys that a table puts into messages: a chat template may ask whether a key is there."""
    return [{key: value for key, value in message.items() if value is not None} for message in messages]


def continued(messages: Sequence[Message], response: str) -> tuple[list[dict[str, Any]], str]:
    """Move a prefill from the end of the conversation to the start of the response, which is scored as a whole."""
    turns = without_nulls(messages)
    if turns and turns[-1].get("prefill"):
        return turns[:-1], f"{turns[-1]['content']}{response}"
    return turns, response


def candidate_id(prompt: str, sampler: str, sample_index: int) -> str:
    """Return the id of a candidate: of its prompt, its sampler's fingerprint, and its sample index (from 0)."""
    return digest({"prompt_id": prompt, "sampler": sampler, "sample_index": sample_index})


def pair_id(chosen: str, rejected: str) -> str:
    """Return the id of a preference, from the chosen and the rejected candidate."""
    return digest({"chosen_id": chosen, "rejected_id": rejected})


def text_hash(text: str) -> str:
    """Return the id of an exact text: what was scored, byte for byte."""
    return digest(text)


def text_key(text: str | None) -> int:
    """Return a key of 64 bits, signed, equal for texts that differ in white space alone; None counts as an empty text.

    Each run of white space (as `str.split` knows it) counts as one space, and none at the ends. It is the beginning of
    a SHA-256, so that no two responses to a prompt share it by coincidence.
    """
    plain = " ".join((text or "").split()).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(plain).digest()[:8], "big", signed=True)


def chars(text: str | None) -> int:
    """Count the characters of a text without the white space around it; 0 for None."""
    return len((text or "").strip())


def seed(run_seed: int, *key: str | int) -> int:
    """Return a seed for the thing named by `key`: 53 bits, so that JSON, SQL and every engine carry it exactly.

    Seeds come from keys and not from counters: adding a prompt, changing the batch size or restarting changes no seed.
    """
    return int.from_bytes(hashlib.sha256(canonical_json([run_seed, *key])).digest()[:8], "big") >> 11


def unit_uniform(run_seed: int, *key: str | int) -> float:
    """Return a number in the open interval (0, 1), determined by the seed and `key`."""
    # 52 bits: with 53, the last one would round up to 1.
    return ((seed(run_seed, *key) >> 1) + 0.5) / 2.0**52
