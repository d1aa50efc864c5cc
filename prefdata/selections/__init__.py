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

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.ahead import ahead, cores
from prefdata.grids import Standing
from prefdata.pools import Pools, as_it_lies, open_pools
from prefdata.progress import Progress, quiet
from prefdata.reports import Account, Report, nonzero
from prefdata.selections.diversity import Distance, spread_ranks
from prefdata.selections.narrowing import improved, last_round, narrowed, refuse_unknown, scaled
from prefdata.selections.rules import NOWHERE, acceptances, places
from prefdata.specs import SelectSpec
from prefdata.store import Lineage, Outcome, Run
from prefdata.views import chosen_samplers

_COLUMNS = [
    "candidate_id", "prompt_id", "rank", "score", "copies", "copy_ids", "sampler", "sample_index", "round",
    "finish_reason", "text_key", "chars", "draws",
]  # fmt: skip


def select(
    run: Run, spec: SelectSpec, *, replace: bool = False, partial: bool = False, progress: Progress = quiet
) -> Outcome:
    """Keep candidates of each prompt by their scores, and store them as `RUN/selections/selector=NAME`.

    Raises:
        NotReady: there are no finished scores (or `partial`).
        SpecConflict: a selection of this name was made with other settings.
        InputError: scores of candidates that are not there, or embeddings that some candidates lack.
        UsageError: an unknown sampler or scorer, or a condition that DuckDB does not take.
    """
    began = time.monotonic()
    scores = run.only("scores", spec.scorer, partial=partial)
    partition = run.partition("selections", spec.name or default_name(spec))
    resolved = {"scorer": scores.name}
    if not replace:
        partition.check(Lineage.of(spec, resolved=resolved))
    distance = Distance.of(spec)
    seen = as_it_lies(run, spec, scores) | distance.parents
    if not replace and (kept := partition.unchanged(Lineage.of(spec, resolved=resolved), seen)):
        return kept
    if spec.pool == "mix":
        refuse_unknown(spec, [one.name for one in chosen_samplers(run, spec.sampler)])
    texts = spec.diverse > 0 and spec.distance == "words"
    with open_pools(run, spec, scores, texts=texts, progress=progress) as pools:
        whole = Account()
        rows = _rows(pools, spec, distance, whole)
        lineage = Lineage.of(spec, {**pools.parents, **distance.parents}, resolved=resolved)
        return partition.derive_in_pieces(
            lineage, lambda: _tables(rows, scores.name, whole, began), replace=replace, seen=seen
        )


def default_name(spec: SelectSpec) -> str:
    """The selection's name where none is given: the method, and k where it has one."""
    return spec.method if spec.method in ("best-of-n", "threshold") else f"{spec.method}-{spec.k}"


def keep(
    pool: pl.DataFrame, spec: SelectSpec, *, latest_round: int | None = None, distance: Distance | None = None
) -> tuple[pl.DataFrame, Account]:
    """The selection's rule, pure.

    `pool` has the columns of `prefdata.pools`; the order of its rows does not matter. `latest_round` is the run's (the
    pool's own unless given). Returns the columns of the table but for the scorer, prompt by prompt, each prompt's rows
    by rank.
    """
    answers, dropped = narrowed(Standing.of(pool), spec, latest_round)
    rank, draws = _places(answers, spec, distance or Distance.of(spec))
    kept = answers.with_columns(rank=pl.Series(rank, dtype=pl.Int32), draws=_nullable(draws)).only(rank <= _kept(spec))
    chosen = _by_rank(kept)
    dropped["not_selected"] = answers.rows.height - chosen.height
    account = Account(pool.height, chosen.height, dropped, *_figures(answers, kept, spec))
    return chosen.select(_COLUMNS), account


def _tables(
    rows: Iterable[pl.DataFrame], scorer: str, whole: Account, began: float
) -> Generator[pa.Table, None, Report]:
    for some in rows:
        yield some.with_columns(scorer=pl.lit(scorer)).to_arrow()
    none = (
        {}
        if whole.rows_out or not whole.rows_in
        else {"note": "No answer is left: there is nothing to pair or export."}
    )
    return whole.report("select", "scored candidates", **none).timed(time.monotonic() - began)


def _rows(pools: Pools, spec: SelectSpec, distance: Distance, whole: Account) -> Iterator[pl.DataFrame]:
    """What is kept, in the order of prompts, as it is added to the account; all pools are gone through at once."""
    rule = partial(keep, spec=spec, distance=distance)
    if spec.pool == "latest":  # the run's latest round is known when all have been seen
        rounds: list[int | None] = []
        waiting = pools.in_order(_noted(pools, spec, rounds))
        latest = max((one for one in rounds if one is not None), default=None)
        made = _counted(ahead(waiting, partial(rule, latest_round=latest), cores()), whole)
    else:
        made = _counted(pools.each(rule), whole)
    if spec.method == "top-k-overall":
        return iter([*_highest(made, spec.k, whole)])
    return made if spec.pool == "latest" else pools.in_order(made)


def _noted(pools: Pools, spec: SelectSpec, rounds: list[int | None]) -> Iterator[pl.DataFrame]:
    for pool in pools:
        rounds.append(last_round([pool], spec))
        yield pool


def _counted(made: Iterable[tuple[pl.DataFrame, Account]], whole: Account) -> Iterator[pl.DataFrame]:
    for rows, account in made:
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


def _places(answers: Standing, spec: SelectSpec, distance: Distance) -> tuple[np.ndarray, np.ndarray | None]:
    if spec.improve is not None:
        return improved(answers.rows, spec.improve), None
    if spec.diverse:
        return spread_ranks(answers, spec, distance), None
    place, draws = places(answers, spec)
    if spec.method == "threshold":
        assert spec.threshold is not None
        place = np.where(scaled(answers.rows, spec) >= spec.threshold, place, NOWHERE)
    return place, draws


def _by_rank(kept: Standing) -> pl.DataFrame:
    """Each prompt's rows in the order of their ranks."""
    chosen: pl.DataFrame = kept.rows[np.lexsort((kept.column("rank"), kept.prompt))]
    return chosen


def _nullable(draws: np.ndarray | None) -> pl.Expr:
    return pl.lit(None, pl.Int32) if draws is None else pl.lit(pl.Series(draws, dtype=pl.Int32))


def _figures(answers: Standing, kept: Standing, spec: SelectSpec) -> tuple[Counter[str], dict[str, tuple[float, int]]]:
    counts = Counter(
        {
            "prompts": len(answers.size),
            "prompts_with_answers": len(kept.size),
            "ties_at_the_top": _ties_at_the_top(answers),
            **nonzero({"copies_scored_otherwise": int(answers.rows["copies_apart"].sum())}),
        }
    )
    sums = {
        "mean_score_before": (float(answers.rows["score"].sum()), answers.rows.height),
        "mean_score_after": (float(kept.rows["score"].sum()), kept.rows.height),
    }
    if spec.method in ("rso", "rso-algorithm1", "boltzmann"):
        rates, effective = acceptances(answers, spec.beta)
        sums["acceptance_rate"] = (float(rates.sum()), len(rates))
        sums["effective_candidates"] = (float(effective.sum()), len(effective))
    if spec.pool == "mix":
        of = kept.rows.unique("prompt_id").group_by("sampler").len().sort("sampler")
        counts.update({f"prompts_from_{name}": n for name, n in of.iter_rows()})
    return counts, sums


def _ties_at_the_top(answers: Standing) -> int:
    """Prompts of which several answers share the highest score."""
    every = [grid.spread(answers.column("score"), -np.inf) for grid in answers.grids()]
    return sum(int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum()) for scores in every)
