"""explain: why this response is the chosen one and that one the rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from prefdata.errors import InputError, UsageError
from prefdata.explore.run_rows import begins, candidates_where, is_candidate, lineages_of, one_id, rows_where
from prefdata.storage.run import MADE_BY, Lineage, Run


@dataclass(frozen=True)
class Explanation:
    """A pair with everything that led to it.

    `pair`, `prompt`, `chosen` and `rejected` are rows of their tables (the candidates with their `sampler`);
    `verdicts` are the comparisons of the two, where those made the label (rows of their table, with their `judge`);
    `standing` is the prompt's scored candidates, best first, with `selected` (the rank in the selection) where there is
    one, and without rows where the label is not from scores; `lineages` are the steps that made the pair, newest
    first.
    """

    pair: dict[str, Any]
    prompt: dict[str, Any]
    chosen: dict[str, Any]
    rejected: dict[str, Any]
    verdicts: pl.DataFrame
    standing: pl.DataFrame
    lineages: list[tuple[str, Lineage]]


def explain(run: Run, pair_id: str, pairing: str | None = None) -> Explanation:
    """Everything about the pair whose id is, or begins with, `pair_id`, in a pairing (the only one that holds it).

    Raises:
        NotReady: there are no pairs.
        UsageError: several pairings hold the pair and none was named, or none has that name.
        InputError: no pair has that id, several begin with it, or the run does not hold its prompt or its responses.
    """
    pair = _find(run, pair_id, pairing)
    asked = pl.col("prompt_id") == pair["prompt_id"]
    prompts = rows_where(run, "prompts", asked)
    candidates = candidates_where(run, asked)
    by_id = {row["candidate_id"]: row for row in candidates.iter_rows(named=True)}
    lost = [] if prompts.height else [f"prompt {pair['prompt_id']}"]
    lost += [f"candidate {pair[side]}" for side in ("chosen_id", "rejected_id") if pair[side] not in by_id]
    if lost:
        raise InputError(
            f"pair {pair['pair_id']} of pairs/{pair['pairing']} names rows missing in {run} ({', '.join(lost)}). "
            f"Run `{MADE_BY['pairs']}` again."
        )
    lineages = lineages_of(run, "pairs", pair["pairing"])
    selector = next((lineage.spec.get("selector") for _, lineage in lineages if lineage.step == "pair"), None)
    # A judge may have the name of a scorer; where the label is a verdict, those scores did not decide it.
    scored = pair["margin"] is not None
    scores = rows_where(run, "scores", asked).filter(pl.lit(scored) & (pl.col("scorer") == pair["scorer"]))
    standing = scores.join(candidates, on="candidate_id").sort("score", descending=True, nulls_last=True)
    standing = standing.join(_ranks(run, pair["prompt_id"], selector), on="candidate_id", how="left")
    for side in ("chosen", "rejected"):
        name = by_id[pair[f"{side}_id"]]["sampler"]
        lineages += [found for found in lineages_of(run, "candidates", name) if found not in lineages]
    lineages += lineages_of(run, "scores", pair["scorer"]) if scored else []
    columns = ["candidate_id", "sampler", "sample_index", "score", "selected", "finish_reason", "text"]
    return Explanation(
        pair,
        prompts.row(0, named=True),
        by_id[pair["chosen_id"]],
        by_id[pair["rejected_id"]],
        verdicts_of(run, lineages[0][1], pair["chosen_id"], pair["rejected_id"]),
        standing.select(columns),
        lineages,
    )


def is_pair(run: Run, beginning: str) -> bool:
    """Return whether some pair's id is, or begins with, a text."""
    return rows_where(run, "pairs", begins("pair_id", beginning)).height > 0


def verdicts_of(run: Run, lineage: Lineage, one: str, other: str) -> pl.DataFrame:
    """Return the comparisons of two responses that a pairing was made from, unchanged; none where scores decided."""
    both = pl.col("first_id").is_in([one, other]) & pl.col("second_id").is_in([one, other])
    judges = [parent.split("/", 1)[1] for parent in lineage.parents if parent.startswith("comparisons/")]
    rows = rows_where(run, "comparisons", both).filter(pl.col("judge").is_in(judges))
    return rows.sort("judge", "annotator", "order", "first_id")


def _find(run: Run, pair_id: str, pairing: str | None) -> dict[str, Any]:
    # One id may be in several pairings: it depends on the two responses only, and each pairing has its own label.
    asked = run.all("pairs", partial=True) if pairing is None else [run.only("pairs", pairing, partial=True)]
    held = rows_where(run, "pairs", begins("pair_id", pair_id))
    found = held.filter(pl.col("pairing").is_in([one.name for one in asked]))
    if found.height:
        one_id(found["pair_id"], pair_id, "pairs")
    if found.height > 1:
        names = ", ".join(found["pairing"])
        raise UsageError(
            f"pair {found['pair_id'][0]} is in {found.height} pairings ({names}): name one with --pairing."
        )
    if held.height and not found.height:
        names = ", ".join(held["pairing"].unique().sort())
        raise InputError(f"pairs/{pairing} has no pair {pair_id!r}: name with --pairing one that has it ({names}).")
    if not found.height:
        if is_candidate(run, pair_id):
            raise InputError(f"{pair_id!r} is a candidate, not a pair: see explain_candidate.")
        raise InputError(
            f"{run} has no pair or candidate {pair_id!r}. "
            f'List pairs with: prefdata sql {run} "select pairing, pair_id, margin from pairs"'
        )
    return found.row(0, named=True)


def _ranks(run: Run, prompt_id: str, selector: str | None) -> pl.DataFrame:
    selections = rows_where(run, "selections", pl.col("prompt_id") == prompt_id)
    asked = selections.filter(pl.col("selector").eq_missing(selector))
    return asked.select("candidate_id", selected="rank")
