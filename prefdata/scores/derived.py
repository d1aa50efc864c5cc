"""Scores made from scores: several scorers as one. No model is run, and it takes seconds."""

from __future__ import annotations

import time
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata.reports import Report, nonzero
from prefdata.scorers import file_identity
from prefdata.scorers.combine import combine, function_file, parse_rule
from prefdata.specs import RankSpec
from prefdata.store import Lineage, Outcome, Run, name_of
from prefdata.tables import SCORES, rows_id
from prefdata.views import read_prompts

_COLUMNS = ["candidate_id", "prompt_id", "score", "reason", "text_hash"]


def combined(run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False) -> Outcome:
    """Make one scorer of several by the rule `spec.combine`, and store it as `RUN/scores/scorer=NAME`.

    A candidate that one of them has no score for has none here, and the reason says whose is missing.

    Raises:
        NotReady: there are no scores, or one of the scorers is unfinished and `partial` was not asked for.
        UsageError: the rule cannot be read, or names a scorer that there is not.
        SpecConflict: a scorer of this name is another.
    """
    run.all("scores", partial=True)
    name = spec.name or "combined"
    known = [partition.name for partition in run.partitions("scores") if partition.name != name]
    rule = parse_rule(str(spec.combine), known)
    members = {member: scores_of(run, member, partial=partial) for member in rule.members}
    parents = {
        f"scores/{member}": rows_id(rows.select("candidate_id", "score").to_arrow(), "candidate_id")
        for member, rows in members.items()
    }
    file = function_file(rule)
    lineage = Lineage.of(spec, parents, resolved={} if file is None else {"function": file_identity(str(file))})

    def compute() -> tuple[pa.Table, Report]:
        began = time.monotonic()
        joined = _joined(members)
        made = combine(
            rule,
            joined.select(rule.members),
            joined["prompt_id"],
            normalise=spec.normalize,
            safety_prompts=_safety(run, joined["prompt_id"]) if rule.kind == "gate" else None,
        )
        rows = joined.select("candidate_id", "prompt_id", "text_hash").hstack(made)
        return SCORES.conform(rows.to_arrow()), derived_report(rows).timed(time.monotonic() - began)

    return run.partition("scores", name_of(name)).derive(lineage, compute, replace=replace)


def scores_of(run: Run, scorer: str, *, partial: bool = False) -> pl.DataFrame:
    """The scores of one scorer.

    Raises:
        NotReady, UsageError: as `Run.only`.
    """
    rows = pl.from_arrow(run.only("scores", scorer, partial=partial).read(_COLUMNS))
    assert isinstance(rows, pl.DataFrame)
    return rows


def derived_report(rows: pl.DataFrame) -> Report:
    """The Report of scores that were made from others."""
    reasons = dict(rows["reason"].drop_nulls().value_counts(name="n").sort("reason").iter_rows())
    figures: dict[str, Any] = {"scored": rows["score"].count(), **nonzero(reasons)}
    if rows["score"].count():
        figures |= {"mean": rows["score"].mean(), "std": rows["score"].std()}
    return Report(step="rank", unit="candidates", rows_in=rows.height, rows_out=rows.height, figures=figures)


def _joined(members: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """A row a candidate that one of the members knows, with a column of scores for each."""
    every = pl.concat([rows.select("candidate_id", "prompt_id", "text_hash") for rows in members.values()])
    joined = every.sort("candidate_id", "text_hash", nulls_last=True).unique(
        "candidate_id", keep="first", maintain_order=True
    )
    for name, rows in members.items():
        joined = joined.join(rows.select("candidate_id", pl.col("score").alias(name)), on="candidate_id", how="left")
    return joined.sort("prompt_id", "candidate_id")


def _safety(run: Run, prompts: pl.Series) -> pl.Series:
    tagged = read_prompts(run, partial=True).select("prompt_id", safety=pl.col("tags").list.contains("safety"))
    return pl.DataFrame({"prompt_id": prompts}).join(tagged, on="prompt_id", how="left", maintain_order="left")[
        "safety"
    ]
