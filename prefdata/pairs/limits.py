"""How many pairs there may be: of a prompt, of an answer, of a source."""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from prefdata.keyed_random import uniforms
from prefdata.specs import PairSpec

Ints = NDArray[np.int64]


def limit_reasons(prompt: Ints, chosen: Ints, rejected: Ints, answers: int, spec: PairSpec) -> pl.Series:
    """Why each pair is one too many, or null: `per_prompt_limit`, `per_candidate_limit`.

    Pairs are gone through in their order, which is by prompt and within it the best first; each is kept if neither its
    prompt nor its two answers have all that they may have. Shapes (pairs,); `answers` is one more than their largest
    number. All prompts are gone through at once.
    """
    most, each = spec.max_pairs_per_prompt or len(prompt), spec.max_per_candidate or len(prompt)
    why = np.zeros(len(prompt), np.int8)
    start = np.flatnonzero(np.diff(prompt, prepend=-1))
    size = np.diff(start, append=len(prompt))
    taken, used = np.zeros(len(size), np.int64), np.zeros(answers, np.int64)
    for turn in range(int(size.max(initial=0))):
        there = np.flatnonzero(size > turn)
        pair = start[there] + turn
        free = (used[chosen[pair]] < each) & (used[rejected[pair]] < each)
        room = taken[there] < most
        why[pair[~room]], why[pair[room & ~free]] = 1, 2
        kept = pair[room & free]
        taken[there[room & free]] += 1
        used[chosen[kept]] += 1
        used[rejected[kept]] += 1
    return pl.Series([None, "per_prompt_limit", "per_candidate_limit"], dtype=pl.String).gather(why)


def balance_groups(pairs: pl.DataFrame, group: pl.Series, seed: int) -> pl.DataFrame:
    """As many pairs of each group as the smallest has, at random; `group` has one name a pair. Order is kept."""
    uniform = pl.Series(uniforms(pairs["pair_id"], seed, "balance"))
    drawn = pairs.select("pair_id").with_columns(group=group, uniform=uniform)
    least = drawn.group_by("group").len()["len"].min()
    place = pl.col("uniform").rank("ordinal").over("group")
    return pairs.filter(drawn.select(place <= (least or 0)).to_series())
