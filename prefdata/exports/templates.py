"""Columns as data: what a column holds, as a template whose leaves are parts of a row.

A template is one of these:

- a part (`prompt`, `chosen`, `score`, …); `chosen.turn` is a response's only message, `chosen.text` its text;
- `prompt + chosen`: messages, one list after the other;
- `{const: VALUE}`: the same for every row; `{transcript: prompt + chosen}`: messages as one
  text, in HH-RLHF's notation;
- `{each: TEMPLATE}`: a list with one for each response of a group;
- `{KEY: TEMPLATE, …}` an object, `[TEMPLATE, …]` a list.

Nothing in a template is run: it becomes an expression of Polars.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import polars as pl

from prefdata.exports.notation import Notation, struct
from prefdata.formats.transcripts import HH

Template = Any
"""A template, as YAML has it."""

RESPONSES = ("chosen", "rejected", "response", "first", "second")
"""The parts that are a response's messages."""

CONVERSATIONS = ("prompt", *RESPONSES)


def leaves(template: Template) -> Iterator[str]:
    """Return the parts that a template names, those of a sum apart."""
    if isinstance(template, str):
        yield from template.split(" + ")
    elif isinstance(template, list):
        for item in template:
            yield from leaves(item)
    elif "const" not in template:
        for item in template.values():
            yield from leaves(item)


def expression(template: Template, notation: Notation, used: Collection[str]) -> pl.Expr:
    """Return the values of a template; `used` are the keys that any message has. `each` is `build`'s matter."""
    if isinstance(template, str):
        return _part(template, notation, used)
    if isinstance(template, list):
        return pl.concat_list([expression(item, notation, used) for item in template])
    if "const" in template:
        return pl.lit(template["const"])
    if "transcript" in template:
        return _transcript(_joined(template["transcript"]))
    return struct({key: expression(item, notation, used) for key, item in template.items()})


def build(rows: pl.DataFrame, template: Template, notation: Notation, used: Collection[str]) -> pl.Series:
    """Return a column, a value for each row."""
    if not (isinstance(template, dict) and "each" in template):
        return rows.with_columns(_value=expression(template, notation, used))["_value"]
    lists = [name for name, kind in rows.schema.items() if name in EACH]
    single = rows.select("_row", *lists).explode(lists)
    each = single.with_columns(_value=expression(template["each"], notation, used))
    return each.group_by("_row", maintain_order=True).agg("_value")["_value"]


EACH = ("response", "score", "rank", "place", "candidate_id")
"""The parts of a group that are lists with one for each response."""


def _part(name: str, notation: Notation, used: Collection[str]) -> pl.Expr:
    base, _, form = name.partition(".")
    if form == "text":
        return pl.col(base).list.last().struct.field("content")
    if form == "turn":
        return notation.turns(pl.col(base), used).list.last()
    if name in CONVERSATIONS or " + " in name:
        parts = [notation.turns(pl.col(one), used, response=one in RESPONSES) for one in name.split(" + ")]
        return pl.concat_list(parts) if len(parts) > 1 else parts[0]
    return {"request": _request, "system": _system, "history": _history}.get(name, lambda: pl.col(name))()


def _joined(name: str) -> pl.Expr:
    return pl.concat_list([pl.col(part) for part in name.split(" + ")]) if " + " in name else pl.col(name)


def _request() -> pl.Expr:
    return pl.col("prompt").list.last().struct.field("content")


def _system() -> pl.Expr:
    first = pl.col("prompt").list.first()
    return pl.when(first.struct.field("role") == "system").then(first.struct.field("content"))


def _history() -> pl.Expr:
    """Earlier rounds: [the user's text, the assistant's], …; null where there are none."""

    def rounds(some: pl.Series) -> pl.Series:
        found = [_rounds(one) for one in some.to_list()]
        return pl.Series(found, dtype=pl.List(pl.List(pl.String)))

    return pl.col("prompt").map_batches(rounds, return_dtype=pl.List(pl.List(pl.String)), is_elementwise=True)


def _rounds(messages: list[dict[str, Any]]) -> list[list[str]] | None:
    texts = [one["content"] for one in messages[:-1] if one["role"] != "system"]
    return [list(pair) for pair in zip(texts[::2], texts[1::2], strict=True)] or None


def _transcript(messages: pl.Expr) -> pl.Expr:
    message = pl.element()
    marker = message.struct.field("role").replace(HH.markers)
    return messages.list.eval(marker + pl.lit(" ") + message.struct.field("content")).list.join("")
