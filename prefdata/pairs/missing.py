"""Why two answers are a pair, or are none: a pairing's rule, asked again for one prompt."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from prefdata.errors import InputError, NotReady
from prefdata.pairs import ALL, judge, source_of
from prefdata.pairs.verdicts import verdicts
from prefdata.pools import open_pools
from prefdata.specs import PairSpec
from prefdata.store import Partition, Run
from prefdata.tables import CANDIDATES

NOT_PROPOSED = "not_proposed"
"""The reason where both answers take part, and the strategy does not bring them together."""


@dataclass(frozen=True)
class Possibility:
    """Two answers to one prompt, and what a pairing makes of them.

    Attributes:
        pairing: its name; strategy: its strategy; source: what it reads, as `selections/rso-8`.
        prompt_id: the prompt that both answer.
        chosen_id, rejected_id: the two, as proposed where they were.
        reason: why they are no pair; None where they are one.
        margin: of their scores, where they were proposed by scores.
        absent: for each that takes no part, why: in the source's own words, or not_selected, not_scored, not_compared.
    """

    pairing: str
    strategy: str
    source: str
    prompt_id: str
    chosen_id: str
    rejected_id: str
    reason: str | None
    margin: float | None
    absent: dict[str, str]


def possibility(run: Run, first: str, second: str, pairing: str | None = None) -> Possibility:
    """What became of two candidates, given by their ids or the beginnings of them, in a pairing (the only one).

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
    spec = PairSpec.of_identity(lineage.spec)
    source, _ = source_of(run, _sourced(spec, lineage.spec), partial=True)
    said = None
    if spec.strategy == "comparisons":
        rows = pl.DataFrame(source.read(["prompt_id", "first_id", "second_id", "probability"]))
        said = verdicts(rows.filter(pl.col("prompt_id") == prompts[0]))
    with open_pools(
        run, spec, source, beside=(spec.reference,) if spec.reference else (), prompt_id=prompts[0]
    ) as pools:
        judged = judge(pools.whole(), spec, said)
    both = judged.proposals.filter(pl.col("chosen_id").is_in(ids) & pl.col("rejected_id").is_in(ids))
    if both.height:
        row = both.row(0, named=True)
        return Possibility(
            made.name, spec.strategy, str(source), prompts[0], row["chosen_id"], row["rejected_id"],
            _dropped(made, spec, row), row["margin"], {},
        )  # fmt: skip
    known = dict(judged.answers.iter_rows())
    unknown = {"scores": "not_scored", "selections": "not_selected", "comparisons": "not_compared"}[source.table.name]
    absent = {one: known.get(one, unknown) for one in ids if known.get(one, unknown) is not None}
    reason = next(iter(absent.values()), NOT_PROPOSED)
    return Possibility(made.name, spec.strategy, str(source), prompts[0], ids[0], ids[1], reason, None, absent)


def _sourced(spec: PairSpec, identity: dict[str, object]) -> PairSpec:
    """The spec with the names that were resolved when it was carried out."""
    if spec.strategy == "comparisons":
        return spec.model_copy(update={"judge": identity.get("judge")})
    selector = str(identity.get("selector"))
    if spec.selector == ALL or selector.startswith(f"{ALL}-"):
        return spec.model_copy(update={"selector": ALL, "scorer": selector.removeprefix(f"{ALL}-")})
    return spec.model_copy(update={"selector": selector})


def _dropped(made: Partition, spec: PairSpec, row: dict[str, object]) -> str | None:
    if row["dropped"] is not None or spec.balance == "none":
        return None if row["dropped"] is None else str(row["dropped"])
    there = pl.DataFrame(made.read(["chosen_id", "rejected_id"]))
    kept = there.filter((pl.col("chosen_id") == row["chosen_id"]) & (pl.col("rejected_id") == row["rejected_id"]))
    return None if kept.height else "balance"


def _find(run: Run, candidate_id: str) -> tuple[str, str]:
    """The candidate whose id is or begins with this, and its prompt."""
    parts = [part for sampler in run.all("candidates", partial=True) for part in sampler.readable()]
    every = pl.scan_parquet(parts, hive_partitioning=False) if parts else pl.LazyFrame(CANDIDATES.empty())
    rows = every.select("candidate_id", "prompt_id")
    found = rows.filter(pl.col("candidate_id").str.starts_with(candidate_id)).unique().limit(4).collect()
    if found.height == 0:
        raise InputError(f"{run} has no candidate {candidate_id!r}.")
    if found.height > 1:
        some = ", ".join(found["candidate_id"].sort()[:3])
        raise InputError(f"several candidates begin with {candidate_id!r} ({some}, …). Give more of the id.")
    return found["candidate_id"][0], found["prompt_id"][0]
