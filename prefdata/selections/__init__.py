"""select: scores in, selections out. Which candidates of each prompt are kept.

First what takes no part is set aside, each row for one reason (`narrowing`), then a law gives those that remain their
places (`rules`, `diversity`). The methods, with r the score and k how many:

- best-of-n: the highest r; of equals the earlier draw. With `improve`, round by round: an answer of a later round
  replaces the one that stands only if it scores at least `improve` more.
- top-k: the k highest; with `diverse`, k that are far apart.
- top-k-overall: the k highest of the whole run: some prompts have several and some none.
- threshold: all with r >= threshold; with min-max, (r - min) / (max - min) within the prompt (ReST).
- boltzmann: k independent draws from the softmax of r / beta, with replacement: `draws` says how often.
- rso, rso-algorithm1: k by statistical rejection sampling, in either of its two laws.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.ahead import ahead, cores
from prefdata.grids import grids, ordered, sizes
from prefdata.pools import Pools, open_pools
from prefdata.reports import Account, Report
from prefdata.selections.diversity import Distance, spread_ranks
from prefdata.selections.narrowing import improved, narrowed, refuse_unknown, scaled
from prefdata.selections.rules import NOWHERE, acceptances, places
from prefdata.specs import SelectSpec
from prefdata.store import Lineage, Outcome, Run
from prefdata.views import chosen_samplers

_COLUMNS = ["candidate_id", "prompt_id", "rank", "score", "copies", "draws"]


def select(run: Run, spec: SelectSpec, *, replace: bool = False, partial: bool = False) -> Outcome:
    """Keep candidates of each prompt by their scores, and store them as `RUN/selections/selector=NAME`.

    Raises:
        NotReady: there are no finished scores (or `partial`).
        SpecConflict: a selection of this name was made with other settings.
        InputError: scores of candidates that are not there, or embeddings that some candidates lack.
        UsageError: an unknown sampler or scorer, or a condition that DuckDB does not take.
    """
    scores = run.only("scores", spec.scorer, partial=partial)
    partition = run.partition("selections", spec.name or default_name(spec))
    distance = Distance.of(spec)
    if spec.pool == "mix":
        refuse_unknown(spec, [one.name for one in chosen_samplers(run, spec.sampler)])
    with open_pools(run, spec, scores, texts=spec.diverse > 0 and spec.distance == "words") as pools:
        lineage = Lineage.of(spec, {**pools.parents, **distance.parents}, resolved={"scorer": pools.scorer})
        return partition.derive_in_pieces(lineage, lambda: _tables(pools, spec, distance), replace=replace)


def default_name(spec: SelectSpec) -> str:
    """The selection's name where none is given: the method, and k where it has one."""
    return spec.method if spec.method in ("best-of-n", "threshold") else f"{spec.method}-{spec.k}"


def keep(
    pool: pl.DataFrame, spec: SelectSpec, *, latest_round: int | None = None, distance: Distance | None = None
) -> tuple[pl.DataFrame, Account]:
    """The selection's rule, pure.

    `pool` has the columns of `prefdata.pools`; the order of its rows does not matter. `latest_round` is the run's (the
    pool's own unless given). Returns candidate_id, prompt_id, rank, score, copies and draws, ordered by prompt and
    rank.
    """
    pool = ordered(pool)
    usable, dropped = narrowed(pool, spec, latest_round)
    rank, draws = _places(usable, spec, distance or Distance.of(spec))
    ranked = usable.with_columns(rank=pl.Series(rank, dtype=pl.Int32), draws=_nullable(draws))
    chosen = _by_rank(ranked.filter(pl.col("rank") <= _kept(spec)))
    dropped["not_selected"] = usable.height - chosen.height
    account = Account(pool.height, chosen.height, Counter(dropped), *_figures(usable, chosen, spec))
    return chosen.select(_COLUMNS), account


def _tables(pools: Pools, spec: SelectSpec, distance: Distance) -> Generator[pa.Table, None, Report]:
    whole = Account()
    pieces = _pieces(pools, spec, distance, whole)
    for rows in _highest(pieces, spec.k, whole) if spec.method == "top-k-overall" else pieces:
        yield rows.with_columns(scorer=pl.lit(pools.scorer)).to_arrow()
    return whole.report("select", "scored candidates")


def _pieces(pools: Pools, spec: SelectSpec, distance: Distance, whole: Account) -> Iterable[pl.DataFrame]:
    rule = partial(keep, spec=spec, latest_round=pools.latest_round, distance=distance)
    for rows, account in ahead(pools, rule, cores()):
        whole += account
        yield rows


def _highest(pieces: Iterable[pl.DataFrame], k: int, whole: Account) -> Iterable[pl.DataFrame]:
    """The k rows of the highest scores of all, in the order of prompts.

    Of equals those that stand higher within their prompts, and then those with the smaller ids.
    """
    highest = pl.DataFrame()
    for rows in pieces:
        together = pl.concat([highest, rows]) if highest.width else rows
        highest = together.sort("score", "rank", "candidate_id", descending=[True, False, False]).head(k)
    if highest.width:
        whole.dropped["not_selected"] += whole.rows_out - highest.height
        whole.rows_out = highest.height
        whole.counts["prompts_with_answers"] = highest["prompt_id"].n_unique()
        whole.sums["mean_score_after"] = (float(highest["score"].sum()), highest.height)
        yield highest.sort("prompt_id", "rank")


def _kept(spec: SelectSpec) -> int:
    """The last place that is kept."""
    if spec.method in ("threshold", "boltzmann"):
        return NOWHERE - 1
    return 1 if spec.method == "best-of-n" else spec.k


def _places(usable: pl.DataFrame, spec: SelectSpec, distance: Distance) -> tuple[np.ndarray, np.ndarray | None]:
    if spec.improve is not None:
        return improved(usable, spec.improve), None
    if spec.diverse:
        return spread_ranks(usable, spec, distance), None
    place, draws = places(usable, spec)
    if spec.method == "threshold":
        assert spec.threshold is not None
        place = np.where(scaled(usable, spec) >= spec.threshold, place, NOWHERE)
    return place, draws


def _by_rank(chosen: pl.DataFrame) -> pl.DataFrame:
    """Rows that stand by prompt, each prompt's in the order of their ranks."""
    return chosen.with_columns(_prompt=chosen["prompt_id"].rle_id()).sort("_prompt", "rank").drop("_prompt")


def _nullable(draws: np.ndarray | None) -> pl.Expr:
    return pl.lit(None, pl.Int32) if draws is None else pl.lit(pl.Series(draws, dtype=pl.Int32))


def _figures(
    usable: pl.DataFrame, chosen: pl.DataFrame, spec: SelectSpec
) -> tuple[Counter[str], dict[str, tuple[float, int]]]:
    counts = Counter(
        {
            "prompts": len(sizes(usable)),
            "prompts_with_answers": chosen["prompt_id"].n_unique(),
            "ties_at_the_top": _ties_at_the_top(usable),
        }
    )
    sums = {
        "mean_score_before": (float(usable["score"].sum()), usable.height),
        "mean_score_after": (float(chosen["score"].sum()), chosen.height),
    }
    if spec.method in ("rso", "rso-algorithm1", "boltzmann"):
        rates, effective = acceptances(usable, spec.beta)
        sums["acceptance_rate"] = (float(rates.sum()), len(rates))
        sums["effective_candidates"] = (float(effective.sum()), len(effective))
    if spec.pool == "mix":
        of = chosen.unique("prompt_id").group_by("sampler").len().sort("sampler")
        counts.update({f"prompts_from_{name}": n for name, n in of.iter_rows()})
    return counts, sums


def _ties_at_the_top(usable: pl.DataFrame) -> int:
    """Prompts of which several answers share the highest score."""
    every = [grid.spread(usable["score"].to_numpy(), -np.inf) for grid in grids(sizes(usable))]
    return sum(int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum()) for scores in every)
