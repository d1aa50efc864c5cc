"""What pair is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import ConfigDict, model_validator

from prefdata.specs.base import Group, identity_field, runtime_field
from prefdata.specs.filters import FilterSpec


class PairSpec(FilterSpec):
    """`prefdata pair`: selections in, pairs out; or unpaired labels, groups, demonstrations."""

    model_config = ConfigDict(populate_by_name=True)
    step: ClassVar[str] = "pair"

    as_: Literal["pairs", "unpaired", "groups", "demonstrations"] = identity_field(
        "pairs",
        "What to write: pairs (DPO, RM), unpaired labels (KTO), groups of ranked responses (RRHF, SLiC, listwise RM) "
        "or demonstrations (SFT on every selected response).",
        alias="as",
        group=Group.METHOD,
    )
    strategy: Literal[
        "best-worst", "best-random", "random-labelled", "first-round", "tournament", "adjacent", "all", "top-bottom",
        "length-matched", "against-reference", "cross-sampler", "comparisons",
    ] = identity_field(
        "best-worst",
        "best-worst, best-random, random-labelled (--per-prompt random pairs, labelled by score), first-round (n/2 "
        "disjoint random pairs), tournament (n-1 by knock-out), adjacent (each with the next in rank), all (every "
        "two), top-bottom (--top best with --bottom worst), length-matched, against-reference, cross-sampler or "
        "comparisons (verdicts of judges or people).", group=Group.METHOD)  # fmt: skip
    per_prompt: int = identity_field(
        1, "best-worst, random-labelled, length-matched: pairs per prompt.", ge=1, group=Group.METHOD
    )
    top: int = identity_field(
        1, "top-bottom: how many of the best; --as unpaired: with --label-by top-bottom.", ge=1, group=Group.METHOD
    )
    bottom: int = identity_field(
        1, "top-bottom: how many of the worst; --as unpaired: with --label-by top-bottom.", ge=1, group=Group.METHOD
    )
    length_tolerance: float = identity_field(
        0.1,
        "length-matched: maximum difference of lengths in characters, as a fraction of the longer.",
        ge=0,
        le=1,
        group=Group.METHOD,
    )
    reference: str | None = identity_field(
        None, "against-reference: the sampler whose responses are the references.", group=Group.METHOD
    )
    trust_reference: bool = identity_field(
        False,
        "against-reference: the reference is always the chosen one (SPIN), and needs no score.",
        group=Group.METHOD,
    )
    judge: str | None = identity_field(None, "comparisons: of which judge (default: the only one).", group=Group.INPUT)
    ties: Literal["drop", "keep"] = identity_field(
        "drop",
        "comparisons: leave ties out, or keep them as rows with the verdict tie, which trainers do not use.",
        group=Group.LABELS,
    )
    min_margin: float = identity_field(
        0.0, "Minimum difference of scores; ties never make a pair.", ge=0, allow_inf_nan=False, group=Group.LIMITS
    )
    max_margin: float | None = identity_field(
        None, "Maximum difference of scores.", gt=0, allow_inf_nan=False, group=Group.LIMITS
    )
    min_probability: float = identity_field(
        0.5,
        "Minimum probability that the label is right.",
        ge=0.5,
        le=1,
        group=Group.LIMITS,
    )
    max_pairs_per_prompt: int | None = identity_field(
        None, "Maximum pairs per prompt; the largest margins are kept.", ge=1, group=Group.LIMITS
    )
    max_per_candidate: int | None = identity_field(
        None, "Maximum pairs per response; the largest margins are kept.", ge=1, group=Group.LIMITS
    )
    balance: Literal["none", "source", "sampler"] = identity_field(
        "none",
        "Equally many pairs of each source of prompts, or of each sampler of chosen responses, at random.",
        group=Group.LIMITS,
    )
    temperature: float = identity_field(
        1.0, "The label's probability is sigmoid(margin / temperature).", gt=0, allow_inf_nan=False, group=Group.LABELS
    )
    weight: Literal["one", "confidence"] = identity_field(
        "one", "A pair's weight in training: 1, or 2 * probability - 1.", group=Group.LABELS
    )
    label_by: Literal["threshold", "median", "top-bottom"] = identity_field(
        "median",
        "unpaired: good responses score at least --threshold, above the prompt's median, or are in the --top.",
        group=Group.LABELS,
    )
    threshold: float | None = identity_field(
        None,
        "unpaired: with --label-by threshold, the minimum score that is good.",
        allow_inf_nan=False,
        group=Group.LABELS,
    )
    seed: int = identity_field(0, "Seed of the random choices.", ge=0, group=Group.METHOD)
    truncated: Literal["drop", "rejected", "keep"] = identity_field(
        "rejected",
        "Responses truncated by max_tokens: leave out, allow as rejected only, or treat as any other.",
        group=Group.FILTERS,
    )
    selector: str | None = identity_field(
        None, 'Which selection (default: the only one in the run); "all" is every scored candidate.', group=Group.INPUT
    )
    name: str | None = runtime_field(None, "Name of the output (default: the selection's name).", group=Group.OUTPUT)

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.require_default_unless(
            "strategy",
            per_prompt=("best-worst", "random-labelled", "length-matched"),
            length_tolerance=("length-matched",),
            reference=("against-reference",),
            trust_reference=("against-reference",),
            judge=("comparisons",),
            ties=("comparisons",),
        )
        self.require_default_unless("as_", label_by=("unpaired",), threshold=("unpaired",))
        if self.as_ != "pairs":
            only_pairs = ("strategy", "max_margin", "max_pairs_per_prompt", "max_per_candidate", "balance", "weight")
            by_score = ("per_prompt", "min_margin", "min_probability", "temperature")
            self.require_default_unless("as_", **dict.fromkeys((*only_pairs, *by_score), ("pairs",)))
        decider = "label_by" if self.as_ == "unpaired" else "strategy"
        self.require_default_unless(decider, top=("top-bottom",), bottom=("top-bottom",))
        if (self.label_by == "threshold") != (self.threshold is not None):
            raise ValueError("--label-by threshold and --threshold go together")
        if self.strategy == "comparisons" or self.trust_reference:
            by = "--trust-reference" if self.trust_reference else "--strategy comparisons"
            for name in ("min_margin", "max_margin", "temperature"):
                if getattr(self, name) != type(self).model_fields[name].default:
                    flag = f"--{name.replace('_', '-')}"
                    raise ValueError(f"{flag} applies to scores, and {by} does not use scores: leave it out")
        if self.strategy == "against-reference" and self.reference is None:
            raise ValueError("--strategy against-reference needs --reference SAMPLER: whose responses they are")
        if self.max_margin is not None and self.max_margin < self.min_margin:
            raise ValueError("--max-margin is below --min-margin, so that no pair is possible")
        return self
