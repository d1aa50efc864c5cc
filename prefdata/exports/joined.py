"""Rows beside their prompts and responses: found by id, and put together some thousands at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.exports.notation import message_type, struct
from prefdata.keyed_random import Bits, id_prefix64

BATCH_ROWS = 16_384

_SIDES = ("chosen", "rejected")


class Keys:
    """Where ids stand, by their leading bits."""

    def __init__(self, ids: pl.Series) -> None:
        """Return the places of these ids; of an id that is there several times the first place counts."""
        keys = id_prefix64(ids)
        self._order = np.argsort(keys, kind="stable")
        self._keys: Bits = keys[self._order]

    def places(self, ids: pl.Series) -> NDArray[np.int64]:
        """Return the place of each id; -1 where it is not there."""
        wanted = id_prefix64(ids)
        if not len(self._keys):
            return np.full(len(wanted), -1)
        found = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        return np.where(self._keys[found] == wanted, self._order[found], -1)


@dataclass(frozen=True)
class Bucket:
    """Rows with the prompts and the candidates that they name.

    Attributes:
        kind: the table's name.
        rows: in the order in which they are exported.
        prompts, candidates: those that the rows name, and maybe more.
        used: the keys that messages have beside role and content.
        parts: what is asked for of each row.
    """

    table: str
    rows: pl.DataFrame
    prompts: pl.DataFrame
    candidates: pl.DataFrame
    used: frozenset[str]
    parts: frozenset[str]

    def slices(self) -> Iterator[tuple[Bucket, int]]:
        """Where each batch begins, for `batch`."""
        return ((self, start) for start in range(0, self.rows.height, BATCH_ROWS))

    def batch(self, start: int) -> pl.DataFrame:
        """Return the rows from `start` on: the table's columns, the prompt's, and the responses as lists of messages.

        A response that the prompt has begun is whole.
        """
        rows = self.rows.slice(start, BATCH_ROWS)
        if self.table == "prompts":
            return self._numbered(rows.rename({"messages": "prompt"}))
        places = self._prompts.places(rows["prompt_id"])
        of_prompt = [name for name in self.prompts.columns if name not in (*rows.columns, "source_number")]
        rows = rows.with_columns(self.prompts[name].gather(places) for name in of_prompt)
        rows = self._begun(rows.rename({"messages": "prompt"}))
        return self._numbered(self._grouped(rows) if self.table == "groups" else self._answered(rows))

    @cached_property
    def _prompts(self) -> Keys:
        return Keys(self.prompts["prompt_id"])

    @cached_property
    def _candidates(self) -> Keys:
        return Keys(self.candidates["candidate_id"])

    @staticmethod
    def _numbered(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.with_columns(_row=pl.int_range(pl.len()))

    def _begun(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the prompt without a prefill, and its text as the column `begun`."""
        if "prefill" not in self.used:
            return rows.with_columns(begun=pl.lit(None, pl.String))
        last = pl.col("prompt").list.last()
        rows = rows.with_columns(begun=pl.when(last.struct.field("prefill")).then(last.struct.field("content")))
        whole = pl.col("prompt").list.head(pl.col("prompt").list.len() - 1)
        return rows.with_columns(prompt=pl.when(pl.col("begun").is_null()).then("prompt").otherwise(whole))

    def _answered(self, rows: pl.DataFrame) -> pl.DataFrame:
        sides = _SIDES if self.table == "pairs" else ("response",)
        for side in sides:
            ids = rows["candidate_id" if side == "response" else f"{side}_id"]
            rows = rows.with_columns(self._turns(ids, rows["begun"]).alias(side))
        if self.parts & {"first", "second", "better"}:
            swapped = pl.col("pair_id").str.head(1).is_in(list("89abcdef"))
            rows = rows.with_columns(
                first=pl.when(swapped).then("rejected").otherwise("chosen"),
                second=pl.when(swapped).then("chosen").otherwise("rejected"),
                better=swapped.cast(pl.Int32),
            )
        return rows

    def _grouped(self, rows: pl.DataFrame) -> pl.DataFrame:
        each = rows.select("prompt_id", "begun", candidate_id="candidate_ids").explode("candidate_id")
        each = each.with_columns(self._turns(each["candidate_id"], each["begun"]).alias("response"))
        lists = each.group_by("prompt_id", maintain_order=True).agg("response")["response"]
        return rows.with_columns(
            lists,
            score=pl.coalesce("scores", pl.col("ranks").list.eval(pl.lit(None, pl.Float64))),
            rank=pl.col("ranks"),
            place=pl.col("ranks").list.eval(pl.element() - 1),
            candidate_id=pl.col("candidate_ids"),
        )

    def _turns(self, ids: pl.Series, begun: pl.Series) -> pl.Series:
        """Responses as lists of messages, from their texts, or their messages as JSON where they are more than text."""
        places = self._candidates.places(ids)
        kind = message_type(self.used)
        rows = pl.DataFrame([self.candidates["text"].gather(places).alias("text"), begun])
        content = pl.col("text") if begun.null_count() == len(begun) else pl.col("begun").fill_null("") + pl.col("text")
        nulls = {one.name: pl.lit(None, one.dtype) for one in kind.fields if one.name not in ("role", "content")}
        turns = pl.concat_list(struct({"role": pl.lit("assistant"), "content": content, **nulls}))
        plain = rows.select(turns=turns.cast(pl.List(kind)))["turns"]
        if "message" not in self.candidates.columns:
            return plain
        messages = self.candidates["message"].gather(places)
        said = [None if one is None else _read(one, start, kind) for one, start in zip(messages, begun, strict=True)]
        more = pl.Series("said", said, dtype=pl.List(kind))
        return pl.DataFrame([more, plain]).select(pl.coalesce("said", "turns")).to_series()


def _read(message: str, begun: str | None, kind: pl.Struct) -> list[dict[str, Any]]:
    """Return a response's messages from JSON, their calls as text."""
    found = json.loads(message)
    names = [field.name for field in kind.fields]
    turns = [{name: turn.get(name) for name in names} for turn in (found if isinstance(found, list) else [found])]
    for turn in turns:
        turn["role"] = turn["role"] or "assistant"
        if isinstance(calls := turn.get("tool_calls"), list):
            turn["tool_calls"] = json.dumps(calls, ensure_ascii=False)
    turns[0]["content"] = f"{begun or ''}{turns[0].get('content') or ''}"
    return turns
