"""The spec of ingest."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from prefdata.specs.base import Group, Spec, identity_field, runtime_field

IngestKind = Literal["prompts", "candidates", "pairs", "unpaired", "comparisons", "demonstrations"]


JUDGED: tuple[IngestKind, ...] = ("pairs", "comparisons", "demonstrations")
"""The purposes of verdicts on two responses."""


class IngestSpec(Spec):
    """`prefdata ingest`: files in, prompts out, and with `--as` the responses, pairs, labels or verdicts."""

    model_config = ConfigDict(populate_by_name=True)
    step: ClassVar[str] = "ingest"
    may_be_empty: ClassVar[tuple[str, ...]] = ("system",)

    kind: IngestKind = identity_field(
        "prompts",
        "What to read: prompts (and references), candidates (the responses, with --score their scores), pairs (which "
        "response is preferred), unpaired (responses labelled good or bad), comparisons (verdicts, with annotators) or "
        "demonstrations (responses to imitate).",
        alias="as",
        group=Group.INPUT,
    )
    layout: str | None = identity_field(
        None,
        "How rows are read: a layout's name, or a YAML file of your own (default: detected from the columns).",
        group=Group.INPUT,
    )
    ignore: tuple[str, ...] = identity_field((), "A column that is left out.", group=Group.INPUT)
    one_means: Literal["first", "second"] | None = identity_field(
        None,
        "Verdicts of 0 and 1: which response 1 stands for. Files differ, and it is never guessed.",
        group=Group.LABELS,
    )
    verdict: str | None = identity_field(
        None, "Which verdict counts, where rows hold several (better, safer).", group=Group.LABELS
    )
    ties: Literal["drop", "keep"] = identity_field(
        "drop",
        "as pairs: leave ties out, or keep them as rows with the verdict tie, which trainers do not use.",
        group=Group.LABELS,
    )
    on_contradiction: Literal["drop", "keep", "tie"] = identity_field(
        "drop",
        "as pairs: a pair and its reverse, which contradict each other: leave both out, keep both, or a tie.",
        group=Group.LABELS,
    )
    join: tuple[str, ...] = identity_field(
        (),
        "Another file, whose columns are joined to each row: questions to responses. NAME=FILE puts them under "
        "NAME, as NAME.column.",
        group=Group.INPUT,
    )
    on: tuple[str, ...] = identity_field(
        (),
        "with --join, once for each: the column that both have, or COLUMN=OTHER; OTHER may be @row, the row's number "
        "from 0. Several with commas between.",
        group=Group.INPUT,
    )
    test: float = identity_field(
        0.1, "Fraction of prompts for the test split where the rows name none.", ge=0, le=1, group=Group.PROMPTS
    )
    seed: int = identity_field(0, "Seed of the split and of the instructions.", ge=0, group=Group.PROMPTS)
    system: str | None = identity_field(None, "A system message for every prompt that has none.", group=Group.PROMPTS)
    instructions: str | None = identity_field(
        None,
        "Put an instruction into each first user turn, for Ghost Attention: a YAML file, or gatt.",
        group=Group.PROMPTS,
    )
    on_duplicates: Literal["merge", "error"] = identity_field(
        "merge",
        "Duplicate prompts (as candidates: duplicate responses).",
        group=Group.INPUT,
    )
    on_bad_rows: Literal["error", "drop", "quarantine"] = identity_field(
        "error",
        "Rows that cannot be used: refuse the file, leave the row out, or put it into RUN/quarantine with the reason.",
        group=Group.INPUT,
    )
    limit: int | None = identity_field(None, "Read this many rows only.", ge=1, group=Group.INPUT)
    score: tuple[str, ...] = runtime_field(
        (),
        "as candidates: a column of scores beside the responses, as COLUMN or NAME=COLUMN; each becomes a scorer; true "
        "is 1. -COLUMN if lower is better.",
        group=Group.LABELS,
    )
    source: str | None = runtime_field(
        None, "Name of what is read (default: the first file's name).", group=Group.OUTPUT
    )

    @property
    def score_columns(self) -> tuple[tuple[str | None, str], ...]:
        """The columns of scores, each with its scorer's name if one is given; -COLUMN has its sign changed."""
        parts = (one.rpartition("=") for one in self.score)
        return tuple((name or None, column) for name, _, column in parts)

    @model_validator(mode="after")
    def _scores_stand_beside_responses(self) -> Self:
        if self.score and self.kind != "candidates":
            raise ValueError("--score goes with --as candidates, and changes nothing here: leave it out")
        if len(set(self.score_columns)) < len(self.score) or any(not column for _, column in self.score_columns):
            raise ValueError(f"--score takes columns, each once, as COLUMN or NAME=COLUMN, not {', '.join(self.score)}")
        words = ("rank", "ranking", "ranks")
        if ranks := [column for _, column in self.score_columns if column.rpartition(".")[2] in words]:
            raise ValueError(f"--score {ranks[0]}: the best rank is the lowest number; write --score=-{ranks[0]}")
        return self

    @model_validator(mode="after")
    def _joined_on_something(self) -> Self:
        if len(self.join) != len(self.on):
            raise ValueError("--join FILE and --on COLUMN go together, one for one")
        return self

    @model_validator(mode="after")
    def _settings_that_only_some_kinds_use(self) -> Self:
        self.require_default_unless("kind", ties=("pairs",), on_contradiction=("pairs",))
        self.require_default_unless("kind", verdict=JUDGED, one_means=JUDGED)
        return self

    @model_validator(mode="after")
    def _instructed_prompts_have_no_responses_yet(self) -> Self:
        if self.instructions is not None and self.kind != "prompts":
            raise ValueError("--instructions is for prompts: existing responses do not follow them")
        return self
