"""curves: best-of-N reward against N and temperature, from a scored run.

Every curve is a mean over prompts of an estimate that each prompt makes from its own candidates (`estimators`), so one
pass over the scores gives all of them and all their bootstrap intervals. A curve is over one set of prompts, those with
N scored candidates or more: it cannot bend because easy prompts have more.

The table is long, a row a point: scorer, group, temperature, curve, n, value, low, high, prompts, extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from prefdata import ids
from prefdata.errors import UsageError
from prefdata.explore.curves.groups import By, CandidateGroup, Floats, Ints, group, read, read_texts
from prefdata.explore.curves.leaders import leaders, shared
from prefdata.explore.curves.points import max_n, n_grid, points, row
from prefdata.keyed_random import mix64
from prefdata.stats import text_diversity
from prefdata.stats.bootstrap import bootstrap_interval
from prefdata.stats.extrapolation import FARTHEST, LEAST, POOL
from prefdata.storage.queries import chosen_samplers
from prefdata.storage.report import Report
from prefdata.storage.run import Run

SCHEMA: dict[str, pl.DataType] = {
    "scorer": pl.String(), "group": pl.String(), "temperature": pl.Float64(), "curve": pl.String(), "n": pl.Int64(),
    "value": pl.Float64(), "low": pl.Float64(), "high": pl.Float64(), "prompts": pl.Int64(),
    "extrapolated": pl.Boolean(),
}  # fmt: skip
"""The columns of the long table."""

LARGEST = 1_000_000
"""Maximum N of a plan."""

TEXTS = 2000
"""Prompts whose texts are read for the figures of diversity, chosen at random."""


@dataclass(frozen=True)
class Curves:
    """The long table (SCHEMA), the report of the candidates, and notes."""

    rows: pl.DataFrame
    report: Report
    notes: list[str] = field(default_factory=list)


def curves(
    run: Run,
    scorer: str | None = None,
    *,
    gold: str | None = None,
    samplers: tuple[str, ...] = (),
    by: By = "sampler",
    n: int | None = None,
    plan: Sequence[int] = (),
    seed: int = 0,
    partial: bool = False,
) -> Curves:
    """Compute the curves of a run's scored candidates.

    Args:
        run: the run.
        scorer: whose scores decide which response is best (default: the only ones).
        gold: whose scores tell how good that answer is: over-optimisation.
        samplers: whose candidates; None for all.
        by: what makes a group: the sampler, the temperature, or nothing.
        n: the minimum number of scored candidates of a prompt; by default, the number that most
            prompts of the group have.
        plan: numbers of candidates to estimate reward and cost for, at most `LARGEST`; beyond n they are extrapolated.
        seed: of the resamples and of the prompts whose texts are read.
        partial: take scores that are unfinished.

    Raises:
        NotReady, UsageError: scores or samplers do not exist, or the numbers are invalid.
        InputError: no candidate has a score, or no prompt has `n`.
    """
    if by not in ("sampler", "temperature", "none"):
        raise UsageError(f"curves are by sampler, temperature or none, not by {by!r}.")
    if bad := [value for value in (*plan, *([] if n is None else [n])) if value < 1]:
        raise UsageError(f"{bad[0]} candidates are not a number to plan for: give 1 or more.")
    if beyond := [value for value in plan if value > LARGEST]:
        raise UsageError(f"{beyond[0]} candidates per prompt are too many to plan for: the maximum is {LARGEST:,}.")
    candidates, name = read(run, scorer, gold, samplers, partial)
    groups, report, kept = group(candidates, by, n, name, gold)
    rows = [point for draws in groups for point in points(draws, n_grid(draws.known, plan), seed)]
    rows += leaders(groups, plan, seed)
    rows += _diversity(run, kept, groups, plan, seed)
    table = pl.DataFrame(rows, schema={**SCHEMA, "scorer": pl.String()}, orient="row")
    return Curves(table.with_columns(scorer=pl.lit(name)), report, _notes(run, groups, kept, by, plan))


def _diversity(
    run: Run, kept: pl.DataFrame, groups: Sequence[CandidateGroup], plan: Sequence[int], seed: int
) -> list[tuple[object, ...]]:
    """Return the rows of diversity: of the first N responses of each prompt, so that all have equally many."""
    rows = []
    for draws in groups:
        order = mix64(draws.prompts.to_numpy(), ids.seed(seed, "diversity"))
        chosen = draws.prompts.gather(np.sort(np.argsort(order)[:TEXTS]))
        mine = kept.filter((pl.col("group") == draws.group) & pl.col("prompt_id").is_in(chosen.implode()))
        mine = mine.filter(pl.int_range(pl.len()).over("prompt_id") < draws.known)
        texts = read_texts(run, mine)
        found = diverse(texts, np.repeat(np.arange(len(chosen)), draws.known), draws.known)
        for (curve, n), values in found.items():
            there = values[~np.isnan(values)]
            if there.size:
                low, high = bootstrap_interval(there, seed) if there.size > 1 else (math.nan, math.nan)
                rows.append(row(draws, curve, n, [float(there.mean()), low, high], there.size))
    return rows


def diverse(texts: list[str], prompt: Ints, known: int) -> dict[tuple[str, int], Floats]:
    """Each prompt's diversity, by curve and n, from `known` responses of each; the unique share also for fewer."""
    made = {(f"distinct_{order}", known): text_diversity.distinct(texts, prompt, order) for order in (1, 2, 3)}
    made[("self_bleu", known)] = text_diversity.self_bleu(texts, prompt)
    ns = n_grid(known)
    shares = text_diversity.unique_share(texts, prompt, ns)
    return made | {("unique_share", n): shares[:, column] for column, n in enumerate(ns)}


def _notes(run: Run, groups: Sequence[CandidateGroup], kept: pl.DataFrame, by: By, plan: Sequence[int]) -> list[str]:
    """List the notes that a reader needs beside the numbers."""
    notes = []
    same = shared(groups)
    if len(groups) > 1 and any(draws.sizes.size != len(same) for draws in groups):
        notes.append(f"The groups are compared on the {len(same):,} prompts that all of them have.")
    for draws in groups:
        if draws.sizes.size == 1:
            notes.append(f"{draws.group} has one prompt: there is no interval.")
        if max(plan, default=0) > max_n(draws):
            notes.append(f"{draws.group}: what more than {max_n(draws):,} would give is unknown, as {_why(draws)}.")
        if "tokens" not in draws.values and plan:
            notes.append(f"The tokens of {draws.group} were not counted: the cost of its plan is not known.")
    for sampler in chosen_samplers(run, tuple(kept["sampler"].unique().cast(pl.String).sort())):
        lineage = sampler.lineage()
        if lineage and lineage.spec.get("search", "sample") != "sample":
            notes.append(f"{sampler.name} is a beam search: its candidates are not independent samples.")
    mixed = (
        kept.group_by("group")
        .agg(pl.col("sampler").unique().cast(pl.String).sort())
        .filter(pl.col("sampler").list.len() > 1)
    )
    for name, samplers in mixed.sort("group").iter_rows() if by != "sampler" else ():
        notes.append(f"{name} mixes the samplers {', '.join(samplers)}; --sampler chooses.")
    return notes


def _why(draws: CandidateGroup) -> str:
    """Why the best of n is reported up to `reach` and no further."""
    if draws.known < LEAST:
        return f"there are fewer than {LEAST} candidates per prompt"
    if max_n(draws) == FARTHEST * draws.known:
        return f"that is {FARTHEST} times the samples that exist"
    if draws.values["score"].min() == draws.values["score"].max():
        return "all scores are equal"
    scores = draws.sizes.size * draws.known
    return f"{scores:,} scores in total allow {scores:,} / {POOL}"
