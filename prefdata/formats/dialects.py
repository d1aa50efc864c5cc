"""Dialects out: the columns that each family of trainers reads.

A dialect turns joined rows (a preference, an answer, or all answers of a prompt, with the prompt) into its own columns.
`DIALECTS` is the only list. The columns a trainer does not know are safe to leave in: it ignores them. One is renamed
for that reason: TRL's RewardTrainer adds a column called `margin` to its loss, unasked, so ours is called
`score_margin`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from prefdata.storage.schemas import TYPES, trimmed

MESSAGES = TYPES["messages"]


@dataclass(frozen=True)
class Dialect:
    """One way to hand rows to a trainer.

    `reads` are the tables that it may be made from, the usual one first. `core` are the columns that a trainer needs,
    `extra` those that a person wants, where the table has them. `build` takes the joined rows: messages, and as texts
    chosen and rejected (pairs), answers (groups) or answer, besides the table's own columns.
    """

    name: str
    description: str
    reads: tuple[str, ...]
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
        rows = self.build(joined)
        schema = self.schema(strict=strict, tools=joined["tools"].count() > 0)
        fields = [field for field in schema if field.name in rows.columns or field in self.core]
        built = rows.select([field.name for field in fields]).to_arrow()
        table = pa.Table.from_arrays([built[field.name].cast(field.type) for field in fields], schema=pa.schema(fields))
        return trimmed(table)


def _field(name: str, kind: pa.DataType, description: str, *, nullable: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"description": description})


_TOOLS = _field("tools", pa.string(), "Tools that the conversation may use, as a JSON list.", nullable=True)
_PROMPT = _field("prompt", MESSAGES, "The conversation so far, the user's message last.")
_PROMPT_ID = _field("prompt_id", pa.string(), "Hash of the prompt's messages.")
_CANDIDATE_ID = _field("candidate_id", pa.string(), "The candidate that is the answer.")
_SCORE = _field("score", pa.float64(), "The answer's score.")


def _turn(text: str) -> pl.Expr:
    """A conversation of one message: the assistant's."""
    return pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.col(text)))


def _trl(joined: pl.DataFrame) -> pl.DataFrame:
    return joined.with_columns(
        prompt=pl.col("messages"), chosen=_turn("chosen"), rejected=_turn("rejected"), score_margin=pl.col("margin")
    )


def _sft(joined: pl.DataFrame) -> pl.DataFrame:
    return joined.with_columns(prompt=pl.col("messages"), completion=_turn("answer"))


def _kto(joined: pl.DataFrame) -> pl.DataFrame:
    return _sft(joined).with_columns(label=pl.col("good"))


def _listwise(joined: pl.DataFrame) -> pl.DataFrame:
    turn = pl.concat_list(pl.struct(role=pl.lit("assistant"), content=pl.element()))
    return joined.with_columns(prompt=pl.col("messages"), completions=pl.col("answers").list.eval(turn))


DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect
    for dialect in (
        Dialect(
            name="trl",
            description="Preferences as TRL's DPOTrainer and RewardTrainer read them: explicit prompt, conversations.",
            reads=("pairs",),
            tags=("preference", "dpo", "trl"),
            core=pa.schema(
                [
                    _PROMPT,
                    _field("chosen", MESSAGES, "The preferred answer: one message of the assistant."),
                    _field("rejected", MESSAGES, "The other answer: one message of the assistant."),
                ]
            ),
            extra=pa.schema(
                [
                    _field("chosen_score", pa.float64(), "The chosen answer's score.", nullable=True),
                    _field("rejected_score", pa.float64(), "The rejected answer's score.", nullable=True),
                    _field("score_margin", pa.float64(), "chosen_score - rejected_score.", nullable=True),
                    _field("probability", pa.float64(), "Probability that the label is right; for soft labels."),
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
            description="Demonstrations as TRL's SFTTrainer reads them: a prompt and, apart, an answer to imitate.",
            reads=("selections", "demonstrations"),
            tags=("sft", "trl"),
            core=pa.schema(
                [
                    _PROMPT,
                    _field("completion", MESSAGES, "The answer: one message of the assistant."),
                ]
            ),
            extra=pa.schema(
                [
                    _SCORE,
                    _field("weight", pa.float64(), "The demonstration's weight in training: how often it was drawn."),
                    _PROMPT_ID,
                    _CANDIDATE_ID,
                ]
            ),
            build=_sft,
        ),
        Dialect(
            name="kto",
            description="Labelled answers as TRL's KTOTrainer reads them: prompt, completion, and whether it is good.",
            reads=("unpaired",),
            tags=("kto", "trl"),
            core=pa.schema(
                [
                    _PROMPT,
                    _field("completion", MESSAGES, "The answer: one message of the assistant."),
                    _field("label", pa.bool_(), "Whether the answer is desirable."),
                ]
            ),
            extra=pa.schema(
                [
                    _SCORE,
                    _field("weight", pa.float64(), "The answer's weight in training."),
                    _PROMPT_ID,
                    _CANDIDATE_ID,
                ]
            ),
            build=_kto,
        ),
        Dialect(
            name="listwise",
            description="All answers of a prompt in order, for listwise losses (RRHF, SLiC, Plackett-Luce).",
            reads=("groups",),
            tags=("preference", "listwise"),
            core=pa.schema(
                [
                    _PROMPT,
                    _field("completions", pa.list_(MESSAGES), "The answers, best first: each one message."),
                    _field("scores", pa.list_(pa.float64()), "Their scores, in the same order."),
                    _field("ranks", pa.list_(pa.int32()), "Their places, from 1; equal scores share one."),
                ]
            ),
            extra=pa.schema(
                [_PROMPT_ID, _field("candidate_ids", pa.list_(pa.string()), "The candidates, in the same order.")]
            ),
            build=_listwise,
        ),
    )
}
"""Every dialect, by name."""
