"""curves: what the number of candidates and the temperature buy, read off a run that is scored.

Every curve is a mean over prompts of an estimate that each prompt makes from its own candidates (`estimators`), so one
pass over the scores gives all of them and all their bootstrap intervals. A curve is over one set of prompts, those with
N scored candidates or more: it cannot bend because easy prompts have more.

The table is long, a row a point: scorer, group, temperature, curve, n, value, low, high, prompts, extrapolated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from prefdata import ids
from prefdata.draws import mixed
from prefdata.errors import UsageError
from prefdata.explore import diversity, estimators
from prefdata.explore.bootstrap import interval, intervals, lots
from prefdata.explore.groups import By, Draws, Floats, Ints, group, read, read_texts
from prefdata.reports import Report
from prefdata.store import Run
from prefdata.views import chosen_samplers

SCHEMA: dict[str, pl.DataType] = {
    "scorer": pl.String(), "group": pl.String(), "temperature": pl.Float64(), "curve": pl.String(), "n": pl.Int64(),
    "value": pl.Float64(), "low": pl.Float64(), "high": pl.Float64(), "prompts": pl.Int64(),
    "extrapolated": pl.Boolean(),
}  # fmt: skip
"""The columns of the long table."""

HALVES = "halves"
"""A curve of no row: the expected maximum at N/8, N/4, N/2 and N, from which `max` is continued."""

TEXTS = 2000
"""Prompts whose texts are read for the figures of diversity, by lot."""


@dataclass(frozen=True)
class Curves:
    """The long table (SCHEMA), the account of the candidates, and what a reader has to know besides."""

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
    """The curves of a run's scored candidates.

    Args:
        run: the run.
        scorer: whose scores decide which answer is best (the only ones unless given).
        gold: whose scores tell how good that answer is: over-optimisation.
        samplers: whose candidates (all unless given).
        by: what makes a group: the sampler, the temperature, or nothing.
        n: the least number of scored candidates of a prompt that takes part; unless given, the number that most
            prompts of the group have.
        plan: numbers of candidates to tell reward and cost for; beyond n they are extrapolated.
        seed: of the resamples and of the prompts whose texts are read.
        partial: take scores that are unfinished.

    Raises:
        NotReady, UsageError: scores or samplers are not there, or the numbers make no sense.
        InputError: no candidate has a score, or no prompt has `n`.
    """
    if by not in ("sampler", "temperature", "none"):
        raise UsageError(f"curves are by sampler, temperature or none, not by {by!r}.")
    if bad := [value for value in (*plan, *([] if n is None else [n])) if value < 1]:
        raise UsageError(f"{bad[0]} candidates are not a number to plan for: give 1 or more.")
    candidates, name = read(run, scorer, gold, samplers, partial)
    groups, report, kept = group(candidates, by, n)
    rows = [row for draws in groups for row in _points(draws, _steps(draws.known, plan), seed)]
    rows += _leads(groups, plan, seed)
    rows += _diversity(run, kept, groups, plan, seed)
    table = pl.DataFrame(rows, schema={**SCHEMA, "scorer": pl.String()}, orient="row")
    return Curves(table.with_columns(scorer=pl.lit(name)), report, _notes(run, groups, kept, by, plan))


def _steps(known: int, plan: Sequence[int] = ()) -> list[int]:
    """The n of a curve: all up to 64, then eight a doubling, the last, and those that are planned for."""
    beyond = [round(64 * 2 ** (i / 8)) for i in range(1, 8 * 20)]
    return sorted({*range(1, min(known, 64) + 1), *(n for n in beyond if n < known), known, *plan})


def _estimates(values: Mapping[str, Floats], known: int, ns: Sequence[int]) -> dict[str, tuple[list[int], Floats]]:
    """Every curve of some prompts with equally many candidates: its n, and each prompt's values, (P, K)."""
    scores, within = values["score"], [n for n in ns if n <= known]
    best = estimators.expected_max(scores, within)
    median = estimators.expected_median(scores, within)
    others = [n for n in within if n < known]
    made: dict[str, tuple[list[int], Floats]] = {
        "max": (within, best),
        "median": (within, median),
        "min": (within, estimators.expected_min(scores, within)),
        "gap": (within, best - median),
        "kl_empirical": (within, estimators.kl_empirical(scores, within)),
    }
    if len(ns) > len(within):
        made[HALVES] = ([8, 4, 2, 1], np.sort(scores, axis=1) @ estimators.halving_weights(scores.shape[1], known))
    if others:
        made["win_rate"] = (others, estimators.win_rate(scores, others))
    if "logprob" in values:
        made["kl_model"] = (within, estimators.expected_beirami(scores, values["logprob"], within))
    if "gold" in values:
        made["gold"] = (within, estimators.value_of_best(scores, values["gold"], within))
        made["gold_ceiling"] = (within, estimators.expected_max(values["gold"], within))
    if "tokens" in values:
        made["best_tokens"] = (within, estimators.value_of_best(scores, values["tokens"], within))
        made["completion_tokens"] = (list(ns), values["tokens"].mean(axis=1, keepdims=True) * np.array(ns, np.float64))
    if "prompt_tokens" in values:
        made["prompt_tokens"] = (list(ns), values["prompt_tokens"][:, :1] * np.ones(len(ns)))
    return made


def _sums(draws: Draws, ns: Sequence[int], seed: int) -> tuple[list[tuple[str, int]], Floats, Floats]:
    """The points (curve, n) of a group, their sums over the prompts of each lot (lots, points), and the lots' sizes."""
    lot = lots(draws.sizes.size, seed)
    sizes = np.bincount(lot).astype(np.float64)
    points: list[tuple[str, int]] = []
    sums = np.empty((0, 0))
    for which, values in draws.blocks(lot):
        made = _estimates(values, draws.known, ns)
        points = [(curve, n) for curve, (steps, _) in made.items() for n in steps]
        if not sums.size:
            sums = np.zeros((sizes.size, len(points)))
        _add(sums, which, np.concatenate([found for _, found in made.values()], axis=1))
    return points, sums, sizes


def _points(draws: Draws, ns: Sequence[int], seed: int) -> list[tuple[object, ...]]:
    """The rows of one group."""
    points, sums, sizes = _sums(draws, ns, seed)
    gold = [place for place, (curve, _) in enumerate(points) if curve == "gold"]
    if gold:  # how far what the proxy chooses has fallen at the last n, from where it was best
        best = max(gold, key=lambda place: sums[:, place].sum())
        points = [*points, ("gold_fall", draws.known)]
        sums = np.column_stack([sums, sums[:, best] - sums[:, gold[-1]]])
    beyond = [n for n in ns if n > draws.known]
    halves = [place for place, (curve, _) in enumerate(points) if curve == HALVES]

    def of(means: Floats) -> Floats:
        more = estimators.continued(means[:, halves], draws.known, beyond) if beyond else means[:, :0]
        return np.concatenate([np.delete(means, halves, axis=1), more], axis=1)

    mean = of((sums.sum(axis=0) / sizes.sum())[None, :])[0]
    low, high = intervals(sums, sizes, seed, of)
    points = [point for point in points if point[0] != HALVES] + [("max", n) for n in beyond]
    binary = bool(np.isin(draws.values["score"], (0.0, 1.0)).all())
    rows = []
    for (curve, n), *numbers in zip(points, mean, low, high, strict=True):
        if binary and curve == "max":
            numbers = [min(number, 1.0) for number in numbers]  # a line goes on above what can be reached
            rows.append(_row(draws, "pass", n, numbers))
        rows.append(_row(draws, curve, n, numbers))
    bounds = zip(ns, estimators.kl_bound(ns), strict=True)
    return rows + [_row(draws, "kl_bound", n, [bound, math.nan, math.nan]) for n, bound in bounds]


def _row(draws: Draws, curve: str, n: int, numbers: Sequence[float], prompts: int | None = None) -> tuple[object, ...]:
    beyond = n > draws.known and curve in ("max", "pass")
    shown = [None if math.isnan(number) else float(number) for number in numbers]
    count = draws.sizes.size if prompts is None else prompts
    return (None, draws.group, draws.temperature, curve, n, *shown, count, beyond)


def _leads(groups: Sequence[Draws], plan: Sequence[int], seed: int) -> list[tuple[object, ...]]:
    """For each n the group whose best of n is best, and how far it leads the next, on the prompts that all have.

    By the score that chooses (`lead`) and, where there is one, by the gold score of what it chooses (`gold_lead`).
    """
    shared = _shared(groups)
    if len(groups) < 2 or not len(shared):
        return []
    least = min(draws.known for draws in groups)
    same = [draws.of(shared) for draws in groups]
    rows = _lead("lead", same, _steps(least, plan), seed)
    if all("gold" in draws.values for draws in groups):
        rows += _lead("gold_lead", same, [n for n in _steps(least, plan) if n <= least], seed)
    return rows


def _lead(curve: str, groups: Sequence[Draws], ns: Sequence[int], seed: int) -> list[tuple[object, ...]]:
    lot = lots(groups[0].sizes.size, seed)
    sizes = np.bincount(lot).astype(np.float64)
    sums = [_best_sums(draws, curve, ns, lot) for draws in groups]
    edges = np.cumsum([mine.shape[1] for mine in sums])[:-1]

    def of(means: Floats) -> Floats:
        """The curve of each group, (groups, resamples, ns)."""
        return np.stack(
            [_whole(mine, draws.known, ns) for mine, draws in zip(np.split(means, edges, axis=1), groups, strict=True)]
        )

    stacked = np.concatenate(sums, axis=1)
    value = of((stacked.sum(axis=0) / sizes.sum())[None, :])[:, 0]
    first, second = np.argsort(-value, axis=0, kind="stable")[:2]

    def lead(means: Floats) -> Floats:
        curves, every = of(means), np.arange(len(ns))
        found: Floats = (curves[first, :, every] - curves[second, :, every]).T
        return found

    low, high = intervals(stacked, sizes, seed, lead)
    rows = []
    for column, n in enumerate(ns):
        winner, next_ = groups[int(first[column])], groups[int(second[column])]
        ahead = value[first[column], column] - value[second[column], column]
        if not math.isnan(ahead):
            row = _row(winner, curve, n, [ahead, low[column], high[column]])
            rows.append((*row[:-1], n > min(winner.known, next_.known)))
    return rows


def _best_sums(draws: Draws, curve: str, ns: Sequence[int], lot: Ints) -> Floats:
    """Sums over each lot of the curve up to the group's N, and of what it is continued from, (lots, n up to N, + 4)."""
    within = [n for n in ns if n <= draws.known]
    sums = np.zeros((int(lot.max()) + 1, len(within) + 4))
    for which, values in draws.blocks(lot):
        scores = values["score"]
        if curve == "gold_lead":
            _add(sums[:, :-4], which, estimators.value_of_best(scores, values["gold"], within))
        else:
            total = scores.shape[1]
            weights = [estimators.max_weights(total, within), estimators.halving_weights(total, draws.known)]
            _add(sums, which, np.sort(scores, axis=1) @ np.concatenate(weights, axis=1))
    return sums


def _whole(means: Floats, known: int, ns: Sequence[int]) -> Floats:
    """The curve at all n from its means up to the group's N and what it is continued from."""
    beyond = [n for n in ns if n > known]
    more = estimators.continued(means[:, -4:], known, beyond) if beyond else means[:, :0]
    return np.concatenate([means[:, :-4], more], axis=1)


def _add(sums: Floats, lot: Ints, values: Floats) -> None:
    """Add each prompt's values, (P, points), to the sums of its lot, (lots, points); `lot` is sorted."""
    there, starts = np.unique(lot, return_index=True)
    sums[there] += np.add.reduceat(values, starts, axis=0)


def _shared(groups: Sequence[Draws]) -> pl.Series:
    shared = groups[0].prompts
    for draws in groups[1:]:
        shared = shared.filter(shared.is_in(draws.prompts.implode()))
    return shared


def _diversity(
    run: Run, kept: pl.DataFrame, groups: Sequence[Draws], plan: Sequence[int], seed: int
) -> list[tuple[object, ...]]:
    """The rows of how different the answers are: of the first N candidates of each prompt, so that all have as many."""
    rows = []
    for draws in groups:
        coin = mixed(draws.prompts.to_numpy(), ids.seed(seed, "diversity"))
        chosen = draws.prompts.gather(np.sort(np.argsort(coin)[:TEXTS]))
        mine = kept.filter((pl.col("group") == draws.group) & pl.col("prompt_id").is_in(chosen.implode()))
        mine = mine.filter(pl.int_range(pl.len()).over("prompt_id") < draws.known)
        texts = read_texts(run, mine)
        found = diverse(texts, np.repeat(np.arange(len(chosen)), draws.known), draws.known)
        for (curve, n), values in found.items():
            there = values[~np.isnan(values)]
            if there.size:
                low, high = interval(there, seed) if there.size > 1 else (math.nan, math.nan)
                rows.append(_row(draws, curve, n, [float(there.mean()), low, high], there.size))
    return rows


def diverse(texts: list[str], prompt: Ints, known: int) -> dict[tuple[str, int], Floats]:
    """Each prompt's diversity, by curve and n, from `known` answers of each; the unique share also for fewer."""
    made = {(f"distinct_{order}", known): diversity.distinct(texts, prompt, order) for order in (1, 2, 3)}
    made[("self_bleu", known)] = diversity.self_bleu(texts, prompt)
    steps = _steps(known)
    shares = diversity.unique_share(texts, prompt, steps)
    return made | {("unique_share", n): shares[:, column] for column, n in enumerate(steps)}


def _notes(run: Run, groups: Sequence[Draws], kept: pl.DataFrame, by: By, plan: Sequence[int]) -> list[str]:
    """What a reader has to know that no number says."""
    notes = []
    shared = _shared(groups)
    if len(groups) > 1 and any(draws.sizes.size != len(shared) for draws in groups):
        notes.append(f"The groups are compared on the {len(shared):,} prompts that all of them have.")
    for draws in groups:
        if draws.sizes.size == 1:
            notes.append(f"{draws.group} has one prompt: there is no interval.")
        if draws.known < 4 and any(n > draws.known for n in plan):
            notes.append(f"{draws.group} has fewer than 4 candidates a prompt: they do not tell what more would bring.")
        if "tokens" not in draws.values and plan:
            notes.append(f"Nobody counted the tokens of {draws.group}: the cost of its plan is not known.")
    for sampler in chosen_samplers(run, tuple(kept["sampler"].unique().cast(pl.String).sort())):
        lineage = sampler.lineage()
        if lineage and lineage.spec.get("search", "sample") != "sample":
            notes.append(
                f"{sampler.name} is a beam search: its candidates are no independent draws, its curve a list's."
            )
    mixed = (
        kept.group_by("group")
        .agg(pl.col("sampler").unique().cast(pl.String).sort())
        .filter(pl.col("sampler").list.len() > 1)
    )
    for name, samplers in mixed.sort("group").iter_rows() if by != "sampler" else ():
        notes.append(f"{name} mixes the samplers {', '.join(samplers)}; --sampler chooses.")
    return notes
