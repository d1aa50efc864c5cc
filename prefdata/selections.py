"""select: scores in, selections out. Which candidates of each prompt are kept.

Two things are called rejection sampling in the literature, and here they have their own names: `best-of-n` keeps the
highest score (Llama 2, 2307.09288, section 3.2.2), `rso` and `rso-algorithm1` accept candidates with a probability that
grows with their reward (statistical rejection sampling, RSO, 2309.06657).

The two RSO laws differ. Let w = exp(r / beta).

- `rso`: draw from what remains, accept with exp((r - max) / beta), remove, repeat. The accepted sequence follows the
  Plackett-Luce law with weights w, which is what the k largest of r / beta + Gumbel noise follow; so it is computed.
- `rso-algorithm1`: the paper's Algorithm 1. It sweeps the remaining candidates in list order, each accepted with
  exp((r - max of the remaining) / beta), stops at the k-th, and removes the accepted after the sweep. Its law hangs on
  the list's order; the order is that of generation, or random with `shuffle`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from prefdata.draws import gumbels, uniforms
from prefdata.reports import Report, nonzero
from prefdata.specs import SelectSpec
from prefdata.store import Lineage, Outcome, Run
from prefdata.tables import SELECTIONS
from prefdata.views import Pool, read_pool

Scores = NDArray[np.float64]
"""Scores, shape (prompts, candidates), padded with -inf where a prompt has fewer candidates."""


def select(run: Run, spec: SelectSpec, *, replace: bool = False, partial: bool = False) -> Outcome:
    """Keep candidates of each prompt by their scores, and store them as `RUN/selections/selector=NAME`.

    Raises:
        NotReady: there are no finished scores (or `partial`).
        SpecConflict: a selection of this name was made with other settings.
    """
    pool = read_pool(run, spec.scorer, spec.sampler, partial=partial)
    partition = run.partition("selections", spec.name or default_name(spec))
    lineage = Lineage.of(spec, pool.parents, resolved={"scorer": pool.scorer})
    return partition.derive(lineage, lambda: _rows(pool, spec), replace=replace)


def default_name(spec: SelectSpec) -> str:
    """The selection's name where none is given: the method, and k where it has one."""
    return spec.method if spec.method == "best-of-n" else f"{spec.method}-{spec.k}"


def keep(pool: pl.DataFrame, spec: SelectSpec) -> tuple[pl.DataFrame, Report]:
    """The selection's rule, pure.

    `pool` has candidate_id, prompt_id, sample_index, score, text_hash and finish_reason; the order of its rows does not
    matter. Returns candidate_id, prompt_id, rank and score, ordered by prompt and rank.
    """
    pool = pool.sort("prompt_id", "sample_index", "candidate_id")
    usable, dropped = _usable(pool, spec)
    kept = usable.with_columns(rank=pl.Series(_ranks(usable, spec), dtype=pl.Int32))
    k = 1 if spec.method == "best-of-n" else spec.k
    chosen = kept.filter(pl.col("rank") <= k).sort("prompt_id", "rank")
    dropped["not_selected"] = usable.height - chosen.height
    report = Report(
        step="select",
        unit="scored candidates",
        rows_in=pool.height,
        rows_out=chosen.height,
        dropped=nonzero(dropped),
        figures={
            "prompts": usable["prompt_id"].n_unique(),
            "ties_at_the_top": _ties_at_the_top(usable),
            "mean_score_before": usable["score"].mean(),
            "mean_score_after": chosen["score"].mean(),
        },
    )
    return chosen.select("candidate_id", "prompt_id", "rank", "score"), report


def gumbel_ranks(scores: Scores, beta: float, uniform: Scores) -> NDArray[np.int64]:
    """The place (from 1) of each candidate in a Plackett-Luce draw with weights exp(score / beta); shape as `scores`.

    Sorting score / beta + Gumbel noise draws without replacement from the softmax of score / beta: the law of RSO's
    re-draw scheme, order included. beta = 0 sorts by score, ties in list order; beta = inf ignores the scores.
    """
    noisy = scores if beta == 0 else _scaled(scores, beta) + gumbels(uniform)
    noisy = np.where(np.isneginf(scores), -np.inf, noisy)
    return _places(noisy)


def algorithm1_ranks(scores: Scores, beta: float, k: int, draw: Callable[[int], Scores]) -> NDArray[np.int64]:
    """The place (from 1) in which RSO's Algorithm 1 accepts each candidate, in list order; 0 where it does not.

    `draw(sweep)` gives one uniform for every candidate, shape as `scores`. All prompts sweep at once; the k-th
    acceptance ends a prompt's sweep. The best of the remaining is always accepted, so that k sweeps are enough.
    beta = 0 accepts only the best of the remaining (the first in list order); beta = inf the first k.
    """
    ranks = np.zeros(scores.shape, dtype=np.int64)
    remaining = ~np.isneginf(scores)
    for sweep in range(k):
        accepted_before = ranks.max(axis=1, initial=0, keepdims=True)
        open_prompts = remaining.any(axis=1, keepdims=True) & (accepted_before < k)
        if not open_prompts.any():
            break
        best = np.max(scores, axis=1, keepdims=True, where=remaining, initial=-np.inf)
        with np.errstate(invalid="ignore"):
            gap = np.where(remaining & open_prompts, scores - best, -np.inf)
        accept = _first_best(gap) if beta == 0 else draw(sweep) < np.exp(_scaled(gap, beta))
        accept &= remaining & open_prompts
        place = accepted_before + np.cumsum(accept, axis=1)
        accept &= place <= k
        ranks = np.where(accept, place, ranks)
        remaining &= ~accept
    return ranks


def _scaled(scores: Scores, beta: float) -> Scores:
    # -inf (no candidate) stays -inf even where beta is infinite.
    return np.where(np.isneginf(scores), -np.inf, np.zeros_like(scores) if np.isinf(beta) else scores / beta)


def _first_best(gap: Scores) -> NDArray[np.bool_]:
    first = np.zeros(gap.shape, dtype=bool)
    np.put_along_axis(first, gap.argmax(axis=1)[:, None], True, axis=1)
    return first


def _places(values: Scores) -> NDArray[np.int64]:
    order = np.argsort(-values, axis=1, kind="stable")
    places = np.empty_like(order)
    np.put_along_axis(places, order, np.arange(1, values.shape[1] + 1)[None, :], axis=1)
    return places


def _rows(pool: Pool, spec: SelectSpec) -> tuple[pa.Table, Report]:
    rows, report = keep(pool.rows, spec)
    rows = rows.with_columns(scorer=pl.lit(pool.scorer), copies=pl.lit(1))
    return SELECTIONS.conform(rows.to_arrow()), report


def _usable(pool: pl.DataFrame, spec: SelectSpec) -> tuple[pl.DataFrame, dict[str, int]]:
    dropped: dict[str, int] = {}
    scored = pool.filter(pl.col("score").is_finite())
    dropped["no_score"] = pool.height - scored.height
    whole = scored
    if spec.truncated == "drop":
        whole = scored.filter(pl.col("finish_reason").ne_missing("length"))
    dropped["truncated"] = scored.height - whole.height
    distinct = whole
    if spec.duplicates == "collapse":
        distinct = whole.unique(["prompt_id", "text_hash"], keep="first", maintain_order=True)
    dropped["duplicate"] = whole.height - distinct.height
    return distinct, dropped


def _ranks(usable: pl.DataFrame, spec: SelectSpec) -> NDArray[np.int64]:
    if usable.height == 0:
        return np.empty(0, dtype=np.int64)
    if spec.method == "rso-algorithm1" and spec.shuffle:
        return _shuffled_ranks(usable, spec)
    row, column, shape = _grid(usable)

    def spread(values: NDArray[np.float64], fill: float = 0.5) -> Scores:
        grid = np.full(shape, fill)
        grid[row, column] = values
        return grid

    def draw(sweep: int) -> Scores:
        return spread(uniforms(usable["candidate_id"], spec.seed, spec.method, sweep))

    scores = spread(usable["score"].to_numpy(), -np.inf)
    if spec.method == "rso":
        places = gumbel_ranks(scores, spec.beta, draw(0))
    elif spec.method == "rso-algorithm1":
        places = algorithm1_ranks(scores, spec.beta, spec.k, draw)
        places = np.where(places == 0, np.iinfo(np.int32).max, places)
    else:
        places = _places(scores)
    return places[row, column]


def _shuffled_ranks(usable: pl.DataFrame, spec: SelectSpec) -> NDArray[np.int64]:
    coin = pl.Series("coin", uniforms(usable["candidate_id"], spec.seed, "shuffle"))
    shuffled = usable.with_row_index("row").with_columns(coin).sort("prompt_id", "coin", "candidate_id")
    ranks = _ranks(shuffled, spec.model_copy(update={"shuffle": False}))
    back = np.empty_like(ranks)
    back[shuffled["row"].to_numpy()] = ranks
    return back


def _grid(usable: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int]]:
    """Row, column and shape of the (prompts, candidates) grid for rows that are sorted by prompt."""
    sizes = usable.group_by("prompt_id", maintain_order=True).len()["len"].to_numpy().astype(np.int64)
    row = np.repeat(np.arange(sizes.size), sizes)
    column = np.arange(usable.height) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return row, column, (int(sizes.size), int(sizes.max()))


def _ties_at_the_top(usable: pl.DataFrame) -> int:
    best = pl.col("score") == pl.col("score").max().over("prompt_id")
    return int((usable.filter(best).group_by("prompt_id").len()["len"] > 1).sum())
