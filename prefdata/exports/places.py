"""What a dialect has no place for: rows that it cannot say are left out, with the reason; other things are counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

import polars as pl

from prefdata.exports.notation import Notation
from prefdata.exports.templates import RESPONSES, leaves
from prefdata.formats.transcripts import HH


class Places:
    """What the columns of a layout have a place for."""

    def __init__(self, templates: Collection[object], notation: Notation, used: Collection[str]) -> None:
        """Return the places of these templates; `used` are the keys that any message has."""
        self._parts = {leaf for template in templates for leaf in leaves(template)}
        self._notation = notation
        self._used = used
        self._rejected_alone = {"prompt + chosen", "rejected.text"} <= {
            one for one in templates if isinstance(one, str)
        }
        self._transcript = any(isinstance(one, dict) and "transcript" in one for one in templates)

    @property
    def _texts(self) -> list[str]:
        """The responses that are written as texts or as one message."""
        return sorted(part.partition(".")[0] for part in self._parts if part.endswith((".text", ".turn")))

    @property
    def _responses(self) -> list[str]:
        return sorted({part.partition(".")[0] for part in self._parts} & {*RESPONSES})

    def reasons(self, rows: pl.DataFrame) -> pl.Series:
        """Why the dialect cannot represent each row; null where it can."""
        first: pl.Expr = pl.lit(None, pl.String)
        for reason, holds in self._rules(rows):
            first = pl.coalesce(first, pl.when(holds).then(pl.lit(reason)))
        return rows.select(reason=pl.coalesce(first, pl.lit(None, pl.String)).alias("reason"))["reason"]

    def left_out(self, rows: pl.DataFrame) -> Counter[str]:
        """In how many rows something is not written, or stands elsewhere: tools, reasoning."""
        found: Counter[str] = Counter()
        if "tools" not in self._parts:
            found["left_out_tools"] = rows["tools"].count()
        if "reasoning_content" in self._used:
            lost = {"prompt", *self._responses} if self._transcript or not self._notation.has_reasoning else set()
            lost |= {part.removesuffix(".text") for part in self._parts if part.endswith(".text")}
            lost |= {"prompt"} if "request" in self._parts else set()
            found["left_out_reasoning"] = self._thinking(rows, lost)
            if self._notation.reasoning is not None:
                found["reasoning_in_the_text"] = self._thinking(rows, {"prompt", *self._responses} - lost)
        return +found

    def _thinking(self, rows: pl.DataFrame, names: Collection[str]) -> int:
        """Return the number of rows with reasoning in these conversations."""
        thinks = pl.element().struct.field("reasoning_content").is_not_null()
        any_of = [self._any(rows, name, thinks) for name in sorted(names)]
        return int(rows.select(pl.any_horizontal(any_of).sum()).item()) if any_of else 0

    def _any(self, rows: pl.DataFrame, name: str, holds: pl.Expr) -> pl.Expr:
        """Whether any message of a conversation is such; of a group's, any of all responses."""
        column = pl.col(name)
        if rows.schema[name] == pl.List(rows.schema["prompt"]):
            column = column.list.eval(pl.element().explode())
        return column.list.eval(holds).list.any()

    def _rules(self, rows: pl.DataFrame) -> Iterator[tuple[str, pl.Expr]]:
        message = pl.element()
        role, content = message.struct.field("role"), message.struct.field("content")
        prompt = pl.col("prompt")
        single = "request" in self._parts
        if "tool_calls" in self._used:
            calls = message.struct.field("tool_calls").is_not_null()
            parts = ["prompt", *self._responses]
            no_place = parts if not self._notation.has_calls or single or self._transcript else self._texts_alone
            for name in no_place:
                yield "tool_calls", self._any(rows, name, calls | (role == "tool"))
            if self._notation.call_role is not None:
                for name in parts:
                    yield "text_beside_a_call", self._any(rows, name, calls & (content != ""))
        if self._notation.one_result:
            tools = prompt.list.eval(role == "tool")
            yield "results_of_several_calls", tools.list.eval(pl.element() & pl.element().shift(1)).list.any()
        if not self._responses and "prefill" in self._used and "prefill" not in self._notation.kept:
            yield "prefill", prompt.list.last().struct.field("role") == "assistant"
        if self._transcript or (single and "system" not in self._parts):
            yield "system_message", prompt.list.first().struct.field("role") == "system"
        if single and "history" not in self._parts:
            turns = prompt.list.eval(role != "system").list.sum()
            yield "several_turns", turns > 1
        for name in self._texts:
            several = pl.col(name).list.len() > 1
            if rows.schema[name] != rows.schema["prompt"]:
                several = pl.col(name).list.eval(pl.element().list.len() > 1).list.any()
            yield "several_messages", several
        if self._rejected_alone:  # what follows the user's last message is replaced by the rejected text
            yield "ends_with_a_tool_result", prompt.list.last().struct.field("role") == "tool"
        if self._transcript:
            for name in ("prompt", *self._responses):
                marked = content.str.contains_any(list(HH.markers.values()))
                yield "a_marker_in_the_text", self._any(rows, name, marked)

    @property
    def _texts_alone(self) -> list[str]:
        return sorted(part.removesuffix(".text") for part in self._parts if part.endswith(".text"))
