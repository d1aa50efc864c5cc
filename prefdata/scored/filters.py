"""Filters: which scored candidates are excluded from a decision, and for which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np
import polars as pl

from prefdata.chat.data_files import read_template
from prefdata.errors import UsageError
from prefdata.keyed_random import Bits, id_prefix64, isin_sorted
from prefdata.parallel import prefetch_map, usable_cores
from prefdata.specs import FilterSpec
from prefdata.storage.queries import WHITESPACE, chosen_samplers, matching_keys, twins
from prefdata.storage.run import Run
from prefdata.storage.schemas import SCORES, scan_parts

EXCLUSION_REASONS = ("no_score", "where", "refusal", "too_short", "too_long")
"""Why a candidate is excluded, in the order in which the reasons are looked for."""

REFUSAL_CHARS = 120
"""How far into a response the phrases of a refusal are looked for."""

LARGEST_SCORE = 1e100
"""What is larger, or below its negative, is no score: sums and differences of such would be infinite."""


@dataclass(frozen=True)
class Filters:
    """The filters of a spec on one run.

    Attributes:
        scorer: whose scores candidates need; "" where they need none.
        unscored: samplers whose candidates need none in any case.
        matching: the candidates for which `--where` holds, as sorted keys; None where there is no condition.
        refusing: likewise the candidates that refuse; None where refusals are kept.
    """

    spec: FilterSpec
    scorer: str
    unscored: Sequence[str]
    matching: Bits | None
    refusing: Bits | None

    @classmethod
    def of(
        cls,
        run: Run,
        spec: FilterSpec,
        scorer: str,
        spill: Path,
        *,
        unscored: Sequence[str] = (),
        prompt_id: str | None = None,
    ) -> Self:
        """Find the candidates that the filters of `spec` are about, of all prompts or of one.

        Raises:
            UsageError: a condition that DuckDB refuses, or a file that holds no phrases.
        """
        matching = None if spec.where is None else np.sort(_matching(run, spec.where, scorer, spill))
        refusing = np.sort(_refusing(run, spec, prompt_id)) if spec.refusals == "drop" else None
        return cls(spec, scorer, unscored, matching, refusing)

    def reason(self, rows: pl.DataFrame) -> pl.Expr:
        """Return the first reason for which a row is excluded, or null."""
        excluded = {}
        if self.scorer:
            excluded["no_score"] = ~is_valid_score("score") & ~pl.col("sampler").is_in(list(self.unscored))
        if self.matching is not None or self.refusing is not None:
            keys = id_prefix64(rows["candidate_id"])
            if self.matching is not None:
                excluded["where"] = pl.lit(pl.Series(~isin_sorted(self.matching, keys)))
            if self.refusing is not None:
                excluded["refusal"] = pl.lit(pl.Series(isin_sorted(self.refusing, keys)))
        if self.spec.min_chars:
            excluded["too_short"] = pl.col("chars") < self.spec.min_chars
        if self.spec.max_chars is not None:
            excluded["too_long"] = pl.col("chars") > self.spec.max_chars
        found = rows.select(**excluded)
        holds = [reason for reason in excluded if found[reason].any()]  # mostly none, and a column of nulls is cheap
        first = [pl.when(found[reason]).then(pl.lit(reason)) for reason in holds]
        return pl.coalesce(*first) if first else pl.lit(None, pl.String)


def is_valid_score(column: str) -> pl.Expr:
    """Whether a column holds a finite number that sums and differences can be made of; never null."""
    return (pl.col(column).is_finite() & (pl.col(column).abs() <= LARGEST_SCORE)).fill_null(False)


def refusal_phrases(spec: FilterSpec) -> list[str]:
    """Read the phrases that open a refusal, in lower case.

    Raises:
        UsageError: the file holds no list of phrases.
    """
    name = spec.refusal_phrases or "phrases"
    phrases = read_template("refusals", name)
    if not isinstance(phrases, list) or not phrases or not all(isinstance(one, str) and one for one in phrases):
        raise UsageError(f"{name} should hold a list of phrases; templates/refusals/phrases.yaml is one to copy.")
    return [phrase.replace("’", "'").lower() for phrase in phrases]


def _matching(run: Run, condition: str, scorer: str, spill: Path) -> Bits:
    """Return the keys of the candidates that match a condition on the columns of candidates, scores and prompts."""
    tables = {name: run.all(name, partial=True) for name in ("candidates", "prompts")}
    samplers = tables["candidates"]
    every = "candidates left join prompts using (prompt_id)"
    if not scorer:
        return matching_keys(tables, "candidate_id", [every], condition, spill)
    tables["scores"] = [run.partition("scores", scorer)]
    repeated = ", ".join(SCORES.copied)
    scores = f"(select * exclude ({repeated}) from scores) as scores"
    every = f"candidates join {scores} using (candidate_id, prompt_id) left join prompts using (prompt_id)"
    # In scores a candidate that two samplers hold has one of their names; in the join it is a row of each.
    cheap = (
        []
        if any(twins(one, samplers) for one in samplers)
        else ["scores", "scores left join prompts using (prompt_id)"]
    )
    return matching_keys(tables, "candidate_id", [*cheap, every], condition, spill)


def _refusing(run: Run, spec: FilterSpec, prompt_id: str | None) -> Bits:
    """Return the keys of the candidates whose responses open with a refusal; texts are read part by part."""
    parts = [part for sampler in chosen_samplers(run) for part in sampler.checked_parts()]
    of_part = partial(_refusing_of, phrases=refusal_phrases(spec), prompt_id=prompt_id)
    return np.concatenate([np.empty(0, np.uint64), *prefetch_map(parts, of_part, usable_cores())])


def _refusing_of(part: Path, phrases: list[str], prompt_id: str | None) -> Bits:
    rows = scan_parts(part)
    rows = rows if prompt_id is None else rows.filter(pl.col("prompt_id") == prompt_id)
    start = pl.col("text").fill_null("").str.strip_chars_start(WHITESPACE).str.head(REFUSAL_CHARS)
    plain = start.str.replace_all("’", "'", literal=True).str.to_lowercase()
    return id_prefix64(rows.filter(plain.str.contains_any(phrases)).select("candidate_id").collect()["candidate_id"])
