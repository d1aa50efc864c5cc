"""How a dialect writes messages: its keys, its roles, and where calls of tools and reasoning go."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from prefdata.storage.schemas import MESSAGE

KEYS = ("tool_calls", "tool_call_id", "name", "reasoning_content", "weight", "prefill")
"""What a message may hold beside its role and content."""


class Notation(BaseModel):
    """How messages are written.

    Attributes:
        role, content: the keys.
        roles: what roles are called, where they have other names.
        keeps: the other keys that are kept as they are.
        call_role: the role of a message that calls tools and whose content is the call, as JSON.
        result_role: the role of a tool's result.
        one_result: whether the results of several calls may not follow each other.
        reasoning: how reasoning is put before the content, with {} in its place.
        trained: the key that tells whether a message is trained: those of the response are.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: str = "role"
    content: str = "content"
    roles: dict[str, str] = {}
    keeps: tuple[str, ...] | None = None
    call_role: str | None = None
    result_role: str = "tool"
    one_result: bool = False
    reasoning: str | None = None
    trained: str | None = None

    @cached_property
    def kept(self) -> tuple[str, ...]:
        """The keys that are kept: what chat templates read, where messages are written as these have them."""
        return (KEYS[:4] if self.role == "role" else ()) if self.keeps is None else self.keeps

    @property
    def has_calls(self) -> bool:
        """Whether there is a place for calls of tools."""
        return self.call_role is not None or "tool_calls" in self.kept

    @property
    def has_reasoning(self) -> bool:
        """Whether there is a place for reasoning."""
        return self.reasoning is not None or "reasoning_content" in self.kept

    def turns(self, messages: pl.Expr, used: Collection[str], *, response: bool = False) -> pl.Expr:
        """Return lists of messages as the dialect has them; `used` are the keys that any message has."""
        return messages.list.eval(self._turn(pl.element(), used, response))

    def _turn(self, message: pl.Expr, used: Collection[str], response: bool) -> pl.Expr:
        def key(name: str) -> pl.Expr:
            return message.struct.field(name)

        role, content = key("role"), key("content")
        names = {**self.roles, **({"tool": self.result_role} if self.result_role != "tool" else {})}
        role = role.replace(names) if names else role
        if self.call_role is not None and "tool_calls" in used:
            calls = key("tool_calls")
            role = pl.when(calls.is_not_null()).then(pl.lit(self.call_role)).otherwise(role)
            content = pl.when(calls.is_not_null()).then(_call_texts(calls)).otherwise(content)
        if self.reasoning is not None and "reasoning_content" in used:
            before, after = self.reasoning.split("{}")
            thought = pl.lit(before) + key("reasoning_content") + pl.lit(after)
            content = thought.fill_null("") + content
        kept = {name: key(name) for name in self.kept if name in used}
        if self.trained is not None:
            kept[self.trained] = (key("role") == "assistant") & response
        return struct({self.role: role, self.content: content, **kept})


def struct(fields: Mapping[str, pl.Expr]) -> pl.Expr:
    """Return an object with these keys."""
    return pl.struct([value.alias(key) for key, value in fields.items()])


def _call_texts(calls: pl.Expr) -> pl.Expr:
    """Return calls as ShareGPT has them: the call, or the list of several, as JSON of names and arguments."""

    def text(stored: str) -> str:
        functions = [one["function"] for one in json.loads(stored)]
        named = [{"name": one["name"], "arguments": one["arguments"]} for one in functions]
        return json.dumps(named[0] if len(named) == 1 else named, ensure_ascii=False)

    return calls.map_batches(
        lambda some: pl.Series([None if one is None else text(one) for one in some], dtype=pl.String),
        return_dtype=pl.String,
        is_elementwise=True,
    )


def message_type(used: Collection[str]) -> pl.Struct:
    """Return a message as a type of Polars: role, content, and the keys that are used."""
    types: dict[str, Any] = {"string": pl.String, "double": pl.Float64, "bool": pl.Boolean}
    fields = [field for field in MESSAGE if not field.nullable or field.name in used]
    return pl.Struct({field.name: types[str(field.type)] for field in fields})
