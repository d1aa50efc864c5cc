"""Which group is best for each n, and how far it leads the next, on the prompts that all groups have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from prefdata.explore.curves.groups import CandidateGroup, Floats, Ints
from prefdata.explore.curves.points import Row, add, extrapolate, max_n, measured_ns, n_grid, row, without_rounding
from prefdata.stats import best_of_n
from prefdata.stats.bootstrap import bootstrap_blocks, bootstrap_intervals


def leaders(groups: Sequence[CandidateGroup], plan: Sequence[int], seed: int) -> list[Row]:
    """For each n the group whose best of n is best, and how far it leads the next, on the prompts that all have.

    By the score that chooses (`lead`) and, where there is one, by the gold score of what it chooses (`gold_lead`).
    """
    prompts = shared(groups)
    if len(groups) < 2 or not len(prompts):
        return []
    same = [draws.of(prompts) for draws in groups]
    ns = n_grid(min(draws.known for draws in groups), plan)
    farthest, least = min(max_n(draws) for draws in same), min(draws.known for draws in same)
    rows = _lead("lead", same, [n for n in ns if n <= farthest], seed)
    if all("gold" in draws.values for draws in groups):
        rows += _lead("gold_lead", same, [n for n in ns if n <= least], seed)
    return rows


def shared(groups: Sequence[CandidateGroup]) -> pl.Series:
    """Return the prompts that all groups have."""
    prompts = groups[0].prompts
    for draws in groups[1:]:
        prompts = prompts.filter(prompts.is_in(draws.prompts.implode()))
    return prompts


def _lead(curve: str, groups: Sequence[CandidateGroup], ns: Sequence[int], seed: int) -> list[Row]:
    """Return the rows of one curve.

    Beyond the measured n, low is the first's lower bound less the next's upper bound, high the reverse.
    """
    block_of = bootstrap_blocks(groups[0].sizes.size, seed)
    sizes = np.bincount(block_of).astype(np.float64)
    sums = [_best_sums(draws, curve, ns, block_of) for draws in groups]
    edges = np.cumsum([mine.shape[1] for mine in sums])[:-1]
    stacked = np.concatenate(sums, axis=1)
    scale = np.concatenate([draws.values["gold" if curve == "gold_lead" else "score"] for draws in groups])

    def of(means: Floats) -> Floats:
        """Return the curve of each group: estimate, lower and upper bound, (groups, 3, R, K)."""
        split = np.split(means, edges, axis=1)
        return np.stack([extrapolate(mine, draws, ns) for mine, draws in zip(split, groups, strict=True)])

    value = of((stacked.sum(axis=0) / sizes.sum())[None, :])[:, 0, 0]
    behind = without_rounding(value - value.max(axis=0), scale)
    first, second = np.argsort(-behind, axis=0, kind="stable")[:2]
    every = np.arange(len(ns))

    def ends(means: Floats) -> Floats:
        _, least, most = np.moveaxis(of(means), 1, 0)
        ahead = [one[first, :, every] - other[second, :, every] for one, other in ((least, most), (most, least))]
        return without_rounding(np.concatenate(ahead).T, scale)

    low, high = bootstrap_intervals(stacked, sizes, seed, ends)
    ahead = without_rounding(value[first, every] - value[second, every], scale)
    rows = []
    for n, leader, next_, *numbers in zip(ns, first, second, ahead, low[: len(ns)], high[len(ns) :], strict=True):
        known = min(groups[int(leader)].known, groups[int(next_)].known)
        rows.append((*row(groups[int(leader)], curve, n, numbers)[:-1], n > known))
    return rows


def _best_sums(draws: CandidateGroup, curve: str, ns: Sequence[int], block_of: Ints) -> Floats:
    """Return sums over each block of the best of n, or of its gold score, at `measured`, (blocks, n measured)."""
    places = measured_ns(draws, ns)
    sums = np.zeros((int(block_of.max()) + 1, len(places)))
    for which, values in draws.blocks(block_of):
        if curve == "gold_lead":
            add(sums, which, best_of_n.value_of_best(values["score"], values["gold"], places))
        else:
            add(sums, which, best_of_n.expected_max(values["score"], places))
    return sums
