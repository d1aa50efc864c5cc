"""Which scored candidates take part in a decision: the settings that select and pair share."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import model_validator

from prefdata.specs.base import Condition, Group, Spec, identity_field

EVERYTHING = "all"
"""The value of `--selector` for every scored candidate."""


class FilterSpec(Spec):
    """Which scored candidates are eligible: the settings that select and pair share."""

    scorer: str | None = identity_field(None, "Which scores (default: the only ones in the run).", group=Group.INPUT)
    sampler: tuple[str, ...] = identity_field(
        (), "Only candidates of these samplers (default: all).", group=Group.INPUT
    )
    where: Condition = identity_field(
        None,
        "Only candidates for which this SQL condition holds, on columns of candidates, scores and prompts.",
        group=Group.INPUT,
    )
    refusals: Literal["keep", "drop"] = identity_field(
        "keep", "Refusals, found by the phrases of --refusal-phrases.", group=Group.FILTERS
    )
    refusal_phrases: str | None = identity_field(
        None, "A YAML file of phrases that begin a refusal (default: built in).", group=Group.FILTERS
    )
    min_chars: int = identity_field(
        0, "Minimum length of a response, in characters without surrounding space.", ge=0, group=Group.FILTERS
    )
    max_chars: int | None = identity_field(
        None, "Maximum length of a response, in characters.", ge=1, group=Group.FILTERS
    )

    @model_validator(mode="after")
    def _filters_go_together(self) -> Self:
        self.require_default_unless("refusals", refusal_phrases=("drop",))
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("--max-chars is below --min-chars, so that no response fits")
        return self
