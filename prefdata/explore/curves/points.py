"""The points of one group's curves: means over its prompts with bootstrap intervals, and what follows from them.

A row is one of the long table (`curves`), whose scorer is not filled in yet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from prefdata.explore.curves.groups import CandidateGroup, Floats, Ints
from prefdata.stats import best_of_n, extrapolation
from prefdata.stats.bootstrap import bootstrap_blocks, bootstrap_intervals

Row = tuple[object, ...]

ROUNDING = 1e-9
"""Differences of means below this fraction of the largest score are rounding errors, and count as 0."""


def n_grid(known: int, plan: Sequence[int] = ()) -> list[int]:
    """Return the n of a curve: all up to 64, then eight a doubling, the last, and those that are planned for."""
    beyond = [round(64 * 2 ** (i / 8)) for i in range(1, 8 * 20)]
    return sorted({*range(1, min(known, 64) + 1), *(n for n in beyond if n < known), known, *plan})


def row(draws: CandidateGroup, curve: str, n: int, numbers: Sequence[float], prompts: int | None = None) -> Row:
    """Return a row of the long table from a value, its low and its high end; NaN becomes null."""
    beyond = n > draws.known and curve in ("max", "pass")
    shown = [None if math.isnan(number) else float(number) for number in numbers]
    count = draws.sizes.size if prompts is None else prompts
    return (None, draws.group, draws.temperature, curve, n, *shown, count, beyond)


def max_n(draws: CandidateGroup) -> int:
    """Return the largest n at which a group's best of n is reported: its own N where all scores are equal."""
    score = draws.values["score"]
    return draws.known if score.min() == score.max() else extrapolation.max_n(draws.sizes.size, draws.known)


def without_rounding(differences: Floats, values: Floats) -> Floats:
    """Differences of means of `values`, zero where they are rounding."""
    return np.where(np.abs(differences) <= ROUNDING * np.abs(values).max(initial=0.0), 0.0, differences)


def measured_ns(draws: CandidateGroup, ns: Sequence[int]) -> list[int]:
    """Return the n up to the group's N at which best of n is needed: those of `ns`, and those of the extrapolation."""
    more = extrapolation.fit_points(draws.known) if draws.known >= extrapolation.LEAST else ()
    return sorted({*more, *(n for n in ns if n <= draws.known)})


def extrapolate(means: Floats, draws: CandidateGroup, ns: Sequence[int]) -> Floats:
    """Return the best of n at all `ns` (within `reach`): estimate, lower and upper bound, shape (3, R, K).

    Args:
        means: E[max of n] of R resamples at `measured`, shape (R, n measured).
        draws: the group's candidates.
        ns: K numbers; up to the group's N the three are equal.
    """
    place = {n: column for column, n in enumerate(measured_ns(draws, ns))}
    there = means[:, [place[n] for n in ns if n <= draws.known]]
    beyond = [n for n in ns if n > draws.known]
    if not beyond:
        return np.stack([there] * 3)
    anchors = means[:, [place[n] for n in extrapolation.fit_points(draws.known)]]
    more = extrapolation.extrapolate(anchors, draws.values["score"].max(), draws.known, beyond)
    return np.stack([np.concatenate([there, part], axis=1) for part in more])


def add(sums: Floats, block_of: Ints, values: Floats) -> None:
    """Add each prompt's values, (P, points), to the sums of its block, (blocks, points)."""
    order = np.argsort(block_of, kind="stable")
    there, starts = np.unique(block_of[order], return_index=True)
    sums[there] += np.add.reduceat(values[order], starts, axis=0)


def points(draws: CandidateGroup, ns: Sequence[int], seed: int) -> list[Row]:
    """Return the rows of one group."""
    places, sums, sizes = _sums(draws, ns, seed)
    labels = [(curve, n) for curve, found in places.items() for n in found]
    best, count = len(places["max"]), len(labels)  # `max` is the first
    farthest = max_n(draws)
    covered = [n for n in ns if n <= farthest]

    def of(means: Floats) -> Floats:
        _, least, most = extrapolate(means[:, :best], draws, covered)
        return np.concatenate([means, least, most], axis=1)

    mean = sums.sum(axis=0) / sizes.sum()
    low, high = bootstrap_intervals(sums, sizes, seed, of)
    likely = extrapolate(mean[None, :best], draws, covered)[0, 0]
    rows = _best(
        draws, ns, covered, np.stack([likely, low[count : count + len(covered)], high[count + len(covered) :]], axis=1)
    )
    numbers = np.stack([mean, low[:count], high[:count]], axis=1)
    rows += [row(draws, curve, n, found) for (curve, n), found in zip(labels[best:], numbers[best:], strict=True)]
    if "gold" in places:
        rows.append(_fall(draws, sums[:, [curve == "gold" for curve, _ in labels]], sizes, seed))
    bounds = zip(ns, best_of_n.kl_bound(ns), strict=True)
    return rows + [row(draws, "kl_bound", n, [bound, math.nan, math.nan]) for n, bound in bounds]


def _sums(draws: CandidateGroup, ns: Sequence[int], seed: int) -> tuple[dict[str, list[int]], Floats, Floats]:
    """Return the n of each curve, their sums over the prompts of each block (blocks, points), and the blocks' sizes."""
    block_of = bootstrap_blocks(draws.sizes.size, seed)
    sizes = np.bincount(block_of).astype(np.float64)
    places: dict[str, list[int]] = {}
    sums = np.empty((0, 0))
    for which, values in draws.blocks(block_of):
        made = _estimates(values, draws, ns)
        places = {curve: found for curve, (found, _) in made.items()}
        if not sums.size:
            sums = np.zeros((sizes.size, sum(map(len, places.values()))))
        add(sums, which, np.concatenate([found for _, found in made.values()], axis=1))
    return places, sums, sizes


def _estimates(
    values: Mapping[str, Floats], draws: CandidateGroup, ns: Sequence[int]
) -> dict[str, tuple[list[int], Floats]]:
    """Every curve of some prompts with equally many candidates: its n, and each prompt's values, (P, K).

    `max` is at `measured`, which has all n up to the group's N.
    """
    scores, within, wide = values["score"], [n for n in ns if n <= draws.known], measured_ns(draws, ns)
    best = best_of_n.expected_max(scores, wide)
    median = best_of_n.expected_median(scores, within)
    others = [n for n in within if n < draws.known]
    made: dict[str, tuple[list[int], Floats]] = {
        "max": (wide, best),
        "median": (within, median),
        "min": (within, best_of_n.expected_min(scores, within)),
        "gap": (within, best[:, [n in within for n in wide]] - median),
        "tied": ([draws.known], best_of_n.tied(scores)[:, None]),
        "kl_empirical": (within, best_of_n.kl_empirical(scores, within)),
    }
    if others:
        made["win_rate"] = (others, best_of_n.win_rate(scores, others))
    if "logprob" in values:
        made["kl_model"] = (within, best_of_n.expected_beirami(scores, values["logprob"], within))
    if "gold" in values:
        made["gold"] = (within, best_of_n.value_of_best(scores, values["gold"], within))
        made["gold_ceiling"] = (within, best_of_n.expected_max(values["gold"], within))
    if "tokens" in values:
        made["best_tokens"] = (within, best_of_n.value_of_best(scores, values["tokens"], within))
        made["completion_tokens"] = (list(ns), values["tokens"].mean(axis=1, keepdims=True) * np.array(ns, np.float64))
    if "prompt_tokens" in values:
        made["prompt_tokens"] = (list(ns), values["prompt_tokens"][:, :1] * np.ones(len(ns)))
    return made


def _best(draws: CandidateGroup, ns: Sequence[int], covered: Sequence[int], numbers: Floats) -> list[Row]:
    """Return the rows of best of n from its value, low and high end at the n in `covered`, (K, 3); the others are null.

    Beyond the group's N the ends are the low end of the lower bound and the high end of the upper bound.
    """
    numbers[:, 1] = np.minimum(numbers[:, 1], numbers[:, 0])
    numbers[:, 2] = np.maximum(numbers[:, 2], numbers[:, 0])
    found = dict(zip(covered, numbers, strict=True))
    binary = np.isin(draws.values["score"], (0.0, 1.0)).all()
    curves = ("max", "pass") if binary else ("max",)
    return [row(draws, curve, n, found.get(n, np.full(3, math.nan))) for curve in curves for n in ns]


def _fall(draws: CandidateGroup, sums: Floats, sizes: Floats, seed: int) -> Row:
    """Return the row of the loss at the last n against the n where the proxy's choice was best.

    That n is the maximum of many, which biases the loss upwards. So the interval is one that holds for all
    n at once: it is as many standard errors wide as the largest error among all n is, in 95% of the resamples.
    """

    def lost(means: Floats) -> Floats:
        return without_rounding(means[:, :-1] - means[:, -1:], draws.values["gold"])

    fallen = lost((sums.sum(axis=0) / sizes.sum())[None, :])[0]
    if not fallen.size or fallen.max() <= 0:
        return row(draws, "gold_fall", draws.known, [0.0, math.nan, math.nan])
    best = int(fallen.argmax())

    def errors(means: Floats) -> Floats:
        """Return the largest and the smallest error of all n, in standard errors, times that of the best n, (R, 2)."""
        error = lost(means) - fallen
        spread = error.std(axis=0)
        error = np.divide(error, spread, out=np.zeros_like(error), where=spread > 0) * spread[best]
        return np.stack([error.max(axis=1), error.min(axis=1)], axis=1)

    low, high = bootstrap_intervals(sums, sizes, seed, errors)
    return row(draws, "gold_fall", draws.known, [fallen[best], fallen[best] - high[0], fallen[best] - low[1]])
