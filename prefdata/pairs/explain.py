"""Why two candidates are a pair, or are none: a pairing's rule, applied again to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import polars as pl

from prefdata.errors import InputError, NotReady
from prefdata.pairs.from_comparisons import mean_verdicts
from prefdata.pairs.pair import EvaluatedProposals, evaluate_proposals
from prefdata.scored import open_scored
from prefdata.specs import PairSpec
from prefdata.storage.run import Lineage, Partition, Run
from prefdata.storage.schemas import CANDIDATES

NOT_PROPOSED = "not_proposed"
"""The reason where both answers take part, and the strategy does not bring them together."""

CHANGED = "changed"
"""The reason where they would be a pair now, and were none when the pairs were made."""


@dataclass(frozen=True)
class PairExplanation:
    """Two answers to one prompt, and what a pairing makes of them.

    Attributes:
        pairing: its name; strategy: its strategy; source: what it reads, as `selections/rso-8`.
        prompt_id: the prompt that both answer.
        chosen_id, rejected_id: the two, as proposed where they were.
        reason: why they are no pair; None where they are one.
        margin: of their scores, where they were proposed by scores.
        absent: for each that takes no part, the reason: in the source's own words, or not_selected, not_scored,
            not_compared.
    """

    pairing: str
    strategy: str
    source: str
    prompt_id: str
    chosen_id: str
    rejected_id: str
    reason: str | None
    margin: float | None
    absent: dict[str, str] = field(default_factory=dict)


def explain_pair(run: Run, first: str, second: str, pairing: str | None = None) -> PairExplanation:
    """Explain the outcome of two candidates, given by ids or unique prefixes, in a pairing (default: the only one).

    Raises:
        NotReady: there are no pairs yet.
        InputError: no candidate has such an id, several begin with it, the two answer different prompts, or they are
            one.
    """
    made = run.only("pairs", pairing, partial=True)
    lineage = made.lineage()
    if lineage is None:
        raise NotReady(f"{made} was begun and never made: run `prefdata pair {run} …` first.")
    ids, prompts = zip(*(_find(run, one) for one in (first, second)), strict=True)
    if ids[0] == ids[1]:
        raise InputError(f"that is the same answer twice ({ids[0]}). Give the ids of two.")
    if prompts[0] != prompts[1]:
        raise InputError(
            f"{ids[0]} answers prompt {prompts[0]} and {ids[1]} answers {prompts[1]}: a pair has one prompt."
        )
    spec = PairSpec.from_identity(lineage.spec)
    source = _source(run, lineage)
    explained = partial(PairExplanation, made.name, spec.strategy, str(source), prompts[0])
    if stored := _stored(made, ids):
        return explained(stored["chosen_id"], stored["rejected_id"], None, stored["margin"])
    evaluated = _evaluated(run, spec, source, prompts[0])
    both = evaluated.proposals.filter(pl.col("chosen_id").is_in(ids) & pl.col("rejected_id").is_in(ids))
    if both.height:
        row = both.row(0, named=True)
        kept = "balance" if spec.balance != "none" else CHANGED
        return explained(row["chosen_id"], row["rejected_id"], row["dropped"] or kept, row["margin"])
    known = dict(evaluated.candidates.iter_rows())
    unknown = {"scores": "not_scored", "selections": "not_selected", "comparisons": "not_compared"}[source.table.name]
    absent = {one: known.get(one, unknown) for one in ids if known.get(one, unknown) is not None}
    return explained(ids[0], ids[1], next(iter(absent.values()), NOT_PROPOSED), None, absent)


def _source(run: Run, lineage: Lineage) -> Partition:
    """Return the partition that a pairing was made from."""
    (name,) = lineage.parents
    return run.partition(*name.split("/", 1))


def _stored(made: Partition, ids: Sequence[str]) -> dict[str, Any] | None:
    """Return the stored pair of two responses, or None."""
    fits = pl.col("chosen_id").is_in(ids) & pl.col("rejected_id").is_in(ids)
    rows = made.table.scan(made.checked_parts()).filter(fits).collect()
    return rows.row(0, named=True) if rows.height else None


def _evaluated(run: Run, spec: PairSpec, source: Partition, prompt_id: str) -> EvaluatedProposals:
    """Evaluate the pairing rule on a prompt now."""
    run.ready(source, partial=True)
    judged = None
    if spec.strategy == "comparisons":
        rows = pl.DataFrame(source.read(["prompt_id", "first_id", "second_id", "probability"]))
        judged = mean_verdicts(rows.filter(pl.col("prompt_id") == prompt_id))
    extra = (spec.reference,) if spec.reference else ()
    with open_scored(run, spec, source, extra_samplers=extra, prompt_id=prompt_id) as batches:
        return evaluate_proposals(batches.to_frame(), spec, judged)


def _find(run: Run, candidate_id: str) -> tuple[str, str]:
    """Return the id of the candidate whose id is or begins with this, and its prompt's id."""
    parts = [part for sampler in run.all("candidates", partial=True) for part in sampler.checked_parts()]
    every = CANDIDATES.scan(parts) if parts else pl.LazyFrame(CANDIDATES.empty())
    rows = every.select("candidate_id", "prompt_id")
    found = rows.filter(pl.col("candidate_id").str.starts_with(candidate_id)).unique().limit(4).collect()
    if found.height == 0:
        raise InputError(f"{run} has no candidate {candidate_id!r}.")
    if found.height > 1:
        some = ", ".join(found["candidate_id"].sort()[:3])
        raise InputError(f"several candidates begin with {candidate_id!r} ({some}, …). Give more of the id.")
    return found["candidate_id"][0], found["prompt_id"][0]
