"""Dialects out: the columns that each family of trainers reads.

A dialect turns joined rows (a preference or a best answer, with its prompt) into its own columns. `DIALECTS` is the
only list. The columns a trainer does not know are safe to leave in: it ignores them. One is renamed for that reason:
TRL's RewardTrainer adds a column called `margin` to its loss, unasked, so ours is called `score_margin`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import polars as pl
import pyarrow as pa

from prefdata.tables import TYPES

MESSAGES = TYPES["messages"]


@dataclass(frozen=True)
class Dialect:
    """One way to hand rows to a trainer.

    `reads` is the table behind it and `key` names a row of it. `core` are the columns that a trainer needs, `extra`
    those that a person wants. `build` takes the joined rows: messages, and chosen and rejected (pairs) or answer
    (selections) as texts, besides the table's own columns.
    """

    name: str
    description: str
    reads: Literal["pairs", "selections"]
    key: str
    tags: tuple[str, ...]
    core: pa.Schema
    extra: pa.Schema
    build: Callable[[pl.DataFrame], pl.DataFrame]

    def schema(self, *, strict: bool, tools: bool) -> pa.Schema:
        """The columns of an export: `strict` leaves the extra ones out, `tools` says that prompts have some."""
        fields = [*self.core, *([_TOOLS] if tools else []), *([] if strict else self.extra)]
        return pa.schema(fields)

    def rows(self, joined: pl.DataFrame, *, strict: bool = False) -> pa.Table:
        """The joined rows in this dialect, in their order."""
        schema = self.schema(strict=strict, tools=joined["tools"].count() > 0)
        built = self.build(joined).select(schema.names).to_arrow()
        return pa.Table.from_arrays([built[field.name].cast(field.type) for field in schema], schema=schema)


def _field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


_TOOLS = _field("tools", pa.string(), "Tools that the conversation may use, as a JSON list.", nullable=True)
_PROMPT_ID = _field("prompt_id", pa.string(), "Hash of the prompt's messages.")


def _turn(text: str) -> pl.Expr:
    """A conversation of one message: the assistant's."""
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(text)))


def _trl(joined: pl.DataFrame) -> pl.DataFrame:
    return joined.with_columns(
        prompt=pl.col("messages"), chosen=_turn("chosen"), rejected=_turn("rejected"), score_margin=pl.col("margin")
    )


def _sft(joined: pl.DataFrame) -> pl.DataFrame:
    return joined.with_columns(prompt=pl.col("messages"), completion=_turn("answer"))


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="trl",
            description="Preferences as TRL's DPOTrainer and RewardTrainer read them: explicit prompt, conversations.",
            reads="pairs",
            key="pair_id",
            tags=("preference", "dpo", "trl"),
            core=pa.schema(
                [
                    _field("prompt", MESSAGES, "The conversation so far, the user's message last."),
                    _field("chosen", MESSAGES, "The preferred answer: one message of the assistant."),
                    _field("rejected", MESSAGES, "The other answer: one message of the assistant."),
                ]
            ),
            extra=pa.schema(
                [
                    _field("chosen_score", pa.float64(), "The chosen answer's score.", nullable=True),
                    _field("rejected_score", pa.float64(), "The rejected answer's score.", nullable=True),
                    _field("score_margin", pa.float64(), "chosen_score - rejected_score.", nullable=True),
                    _field("weight", pa.float64(), "The pair's weight in training."),
                    _field("pair_id", pa.string(), "Hash of the two candidate ids, the chosen first."),
                    _PROMPT_ID,
                    _field("chosen_id", pa.string(), "The chosen candidate."),
                    _field("rejected_id", pa.string(), "The rejected candidate."),
                ]
            ),
            build=_trl,
        ),
        Dialect(
            name="sft",
            # Apart, because of a whole conversation trainers may learn every turn, and only the last one was selected.
            description="Demonstrations as TRL's SFTTrainer reads them: each prompt and, apart, its best answer.",
            reads="selections",
            key="candidate_id",
            tags=("sft", "trl"),
            core=pa.schema(
                [
                    _field("prompt", MESSAGES, "The conversation so far, the user's message last."),
                    _field("completion", MESSAGES, "The best answer: one message of the assistant."),
                ]
            ),
            extra=pa.schema(
                [
                    _field("score", pa.float64(), "The answer's score."),
                    _PROMPT_ID,
                    _field("candidate_id", pa.string(), "The candidate that is the answer."),
                ]
            ),
            build=_sft,
        ),
    )
}
"""Every dialect, by name."""
