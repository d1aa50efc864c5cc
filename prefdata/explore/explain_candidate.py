"""Explain a candidate: its scores, its rank among the prompt's candidates, and the decisions on it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from prefdata.errors import InputError
from prefdata.explore.run_rows import begins, candidates_where, lineages_of, one_id, prompt_of, rows_where
from prefdata.selections.explain import explain_selection
from prefdata.storage.run import MADE_BY, Lineage, Run

NOT_SCORED = "not_scored"
"""The reason where the scorer of a selection has no score of the candidate."""


@dataclass(frozen=True)
class CandidateExplanation:
    """A candidate with its scores, selections and pairs.

    Attributes:
        candidate: its row, with its `sampler`; prompt: the row of its prompt.
        scores: a row per scorer, with `rank` (1 is the highest score of the prompt's candidates; equal scores have
            equal ranks; null without a score) and `scored` (the prompt's candidates that have a score).
        selections: per selector, the rank in the selection and, where it was not selected, the reason.
        pairs: a row per pair that it is in: pairing, pair_id, side (chosen or rejected), other_id, margin, verdict.
        lineages: the steps that made the candidate and its scores.
    """

    candidate: dict[str, Any]
    prompt: dict[str, Any]
    scores: pl.DataFrame
    selections: dict[str, tuple[int | None, str | None]]
    pairs: pl.DataFrame
    lineages: list[tuple[str, Lineage]]


def explain_candidate(run: Run, candidate_id: str) -> CandidateExplanation:
    """Explain the candidate whose id is, or begins with, `candidate_id`.

    Raises:
        InputError: no candidate has that id, several begin with it, or the run does not hold its prompt.
    """
    found = candidates_where(run, begins("candidate_id", candidate_id))
    if not found.height:
        raise InputError(
            f"{run} has no candidate {candidate_id!r}. "
            f'List them with: prefdata sql {run} "select sampler, candidate_id, text from candidates"'
        )
    whole_id = one_id(found["candidate_id"], candidate_id, "candidates")
    candidate = found.row(0, named=True)
    prompt = prompt_of(run, candidate["prompt_id"])
    if prompt is None:
        raise InputError(
            f"candidate {whole_id} is of prompt {candidate['prompt_id']}, which {run} does not hold. "
            f"Run `{MADE_BY['prompts']}` again."
        )
    scores = _scores(run, candidate)
    lineages = lineages_of(run, "candidates", candidate["sampler"])
    lineages += [found for scorer in scores["scorer"] for found in lineages_of(run, "scores", scorer)]
    return CandidateExplanation(candidate, prompt, scores, _selections(run, candidate), _pairs(run, whole_id), lineages)


def _scores(run: Run, candidate: dict[str, Any]) -> pl.DataFrame:
    rows = rows_where(run, "scores", pl.col("prompt_id") == candidate["prompt_id"])
    by_scorer = pl.col("score").rank("min", descending=True).over("scorer")
    ranked = rows.with_columns(rank=by_scorer, scored=pl.col("score").count().over("scorer"))
    own = ranked.filter(pl.col("candidate_id") == candidate["candidate_id"])
    return own.select("scorer", "score", "rank", "scored").sort("scorer")


def _selections(run: Run, candidate: dict[str, Any]) -> dict[str, tuple[int | None, str | None]]:
    found: dict[str, tuple[int | None, str | None]] = {}
    rows = rows_where(run, "selections", pl.col("candidate_id") == candidate["candidate_id"])
    ranks = dict(rows.select("selector", "rank").iter_rows())
    for selection in run.partitions("selections"):
        if selection.name in ranks:
            found[selection.name] = (ranks[selection.name], None)
        elif selection.lineage() is not None:
            reasons = explain_selection(run, selection.name, candidate["prompt_id"])
            found[selection.name] = (None, reasons.get(candidate["candidate_id"]) or NOT_SCORED)
    return found


def _pairs(run: Run, candidate_id: str) -> pl.DataFrame:
    chosen = pl.col("chosen_id") == candidate_id
    rows = rows_where(run, "pairs", chosen | (pl.col("rejected_id") == candidate_id))
    return rows.select(
        "pairing",
        "pair_id",
        pl.when(chosen).then(pl.lit("chosen")).otherwise(pl.lit("rejected")).alias("side"),
        pl.when(chosen).then("rejected_id").otherwise("chosen_id").alias("other_id"),
        "margin",
        "verdict",
    ).sort("pairing", "pair_id")
