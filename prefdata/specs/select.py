"""What select is asked to do."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from prefdata.specs.base import Group, identity_field, runtime_field
from prefdata.specs.filters import EVERYTHING, FilterSpec


class SelectSpec(FilterSpec):
    """`prefdata select`: scores in, selections out."""

    step: ClassVar[str] = "select"

    method: Literal["best-of-n", "top-k", "top-k-overall", "threshold", "boltzmann", "rso", "rso-algorithm1"] = (
        identity_field(
            "rso",
            "best-of-n (the highest score), top-k (of each prompt), top-k-overall (of the run), threshold, boltzmann "
            "(k draws with replacement), rso (statistical rejection sampling, Plackett-Luce, by Gumbel noise) "
            "or rso-algorithm1 (the RSO paper's sweep).",
            group=Group.METHOD,
        )
    )
    k: int = identity_field(
        8, "How many to keep per prompt (best-of-n keeps 1; top-k-overall: in total).", ge=1, group=Group.METHOD
    )
    beta: float = identity_field(
        0.5,
        "RSO's and Boltzmann's temperature, 0 (which is top-k) or at least 1e-100; inf ignores the scores.",
        ge=0,
        group=Group.METHOD,
    )
    threshold: float | None = identity_field(
        None, "threshold: the minimum score to keep.", allow_inf_nan=False, group=Group.METHOD
    )
    scale: Literal["raw", "min-max"] = identity_field(
        "raw",
        "threshold: raw scores, or scaled to [0, 1] per prompt first (ReST keeps above 0.7).",
        group=Group.METHOD,
    )
    seed: int = identity_field(0, "Seed of the random choices.", ge=0, group=Group.METHOD)
    shuffle: bool = identity_field(
        False, "rso-algorithm1: sweep in random order, not in the order of generation.", group=Group.METHOD
    )
    truncated: Literal["drop", "keep"] = identity_field(
        "drop", "Responses truncated by max_tokens.", group=Group.FILTERS
    )
    duplicates: Literal["collapse", "keep"] = identity_field(
        "collapse", "Duplicate texts for one prompt.", group=Group.FILTERS
    )
    pool: Literal["all", "latest", "mix"] = identity_field(
        "all",
        "Which rounds and samplers compete: all, the latest round only, or a mix: each prompt takes the responses of "
        "one sampler, drawn by --quota.",
        group=Group.POOL,
    )
    quota: tuple[str, ...] = identity_field(
        (), "mix: a sampler's share of the prompts, as SAMPLER=WEIGHT (default: equal).", group=Group.POOL
    )
    improve: float | None = identity_field(
        None, "best-of-n: a response of a later round replaces an earlier one only if it scores this much higher.",
        ge=0, allow_inf_nan=False, group=Group.METHOD)  # fmt: skip
    diverse: float = identity_field(
        0.0, "top-k: weight of diversity (MMR), from 0 (score alone) to 1 (distance from kept responses alone).",
        ge=0, le=1, group=Group.DIVERSITY)  # fmt: skip
    distance: Literal["words", "embedding"] = identity_field(
        "words", "diverse: 1 - Jaccard of word pairs, or 1 - cosine of --embeddings.", group=Group.DIVERSITY
    )
    embeddings: str | None = identity_field(
        None, "diverse: a Parquet file with candidate_id and embedding, a list of numbers.", group=Group.DIVERSITY
    )
    name: str | None = runtime_field(
        None, "Name of this selection (default: from the method and k).", group=Group.OUTPUT
    )

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        self.require_default_unless(
            "method",
            k=("rso", "rso-algorithm1", "boltzmann", "top-k", "top-k-overall"),
            beta=("rso", "rso-algorithm1", "boltzmann"),
            threshold=("threshold",),
            scale=("threshold",),
            shuffle=("rso-algorithm1",),
            improve=("best-of-n",),
            diverse=("top-k",),
        )
        self.require_default_unless("pool", quota=("mix",))
        if self.name == EVERYTHING:
            raise ValueError(f"--name {EVERYTHING} means every scored candidate to pair: give another")
        if 0 < self.beta < 1e-100:
            raise ValueError("--beta is too small to divide by: give 0, which keeps the highest scores")
        if self.method == "threshold" and self.threshold is None:
            raise ValueError("--method threshold needs --threshold, the minimum score to keep")
        if self.scale == "min-max" and self.threshold is not None and not 0 <= self.threshold <= 1:
            raise ValueError(
                f"--threshold {self.threshold:g} is not within 0 and 1, and scores with --scale min-max are: "
                "give a fraction, such as 0.7"
            )
        if (self.distance == "embedding") != (self.embeddings is not None):
            raise ValueError("--distance embedding and --embeddings FILE go together")
        if self.embeddings is not None and not self.diverse:
            raise ValueError("--embeddings goes with --diverse WEIGHT, and changes nothing here: leave it out")
        return self
