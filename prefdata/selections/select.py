"""select: scores in, selections out. Which candidates of each prompt are kept.

First candidates are excluded, each row for one reason (`exclusions`), then a rule ranks those that remain (`rules`,
`diversity`). The methods, with r the score and k how many:

- best-of-n: the highest r; of equals the earlier sample. With `improve`, round by round: a response of a later round
  replaces the best so far only if it scores at least `improve` more.
- top-k: the k highest; with `diverse`, k that differ (MMR).
- top-k-overall: the k highest of the whole run: some prompts have several and some none.
- threshold: all with r >= threshold; with min-max, (r - min) / (max - min) within the prompt (ReST).
- boltzmann: k independent draws from the softmax of r / beta, with replacement: `draws` says how often.
- rso, rso-algorithm1: k by statistical rejection sampling, in either of its two distributions.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa

from prefdata.progress import Watch, watched
from prefdata.scored import PromptBatches, inputs_fingerprint, open_scored
from prefdata.selections.diverse import Distance, spread_ranks
from prefdata.selections.exclusions import best_over_rounds, check_quotas, exclude, latest_round, scale_scores
from prefdata.selections.rules import NOWHERE, acceptances, ranks
from prefdata.specs import SelectSpec
from prefdata.stats.ragged import RaggedRows
from prefdata.storage.queries import chosen_samplers
from prefdata.storage.report import Report, ReportBuilder, nonzero
from prefdata.storage.run import Lineage, Outcome, Run
from prefdata.storage.schemas import SCORES

_COLUMNS = ["candidate_id", "prompt_id", "rank", "score", "copies", "copy_ids", *SCORES.copied, "draws"]


def select(
    run: Run, spec: SelectSpec, *, replace: bool = False, partial: bool = False, progress: Watch = False
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
    seen = inputs_fingerprint(run, spec, scores) | distance.parents
    if not replace and (kept := partition.unchanged(Lineage.of(spec, resolved=resolved), seen)):
        return kept
    if spec.pool == "mix":
        check_quotas(spec, [one.name for one in chosen_samplers(run, spec.sampler)])
    texts = spec.diverse > 0 and spec.distance == "words"
    with watched(progress, "select") as watch, open_scored(run, spec, scores, texts=texts, progress=watch) as batches:
        lineage = Lineage.of(spec, {**batches.parents, **distance.parents}, resolved=resolved)
        return partition.derive_in_pieces(
            lineage, lambda: _tables(batches, spec, distance, began), replace=replace, seen=seen
        )


def default_name(spec: SelectSpec) -> str:
    """Return the selection's default name: the method, and k where it has one."""
    return spec.method if spec.method in ("best-of-n", "threshold") else f"{spec.method}-{spec.k}"


def select_from(
    batch: pl.DataFrame, spec: SelectSpec, *, latest_round: int | None = None, distance: Distance | None = None
) -> tuple[pl.DataFrame, ReportBuilder]:
    """Apply the selection's rule, without side effects.

    `batch` has the columns of `prefdata.scored.reader`; the order of a prompt's rows does not matter. `latest_round` is
    the run's (the batch's own unless given). Returns the columns of the table but for the scorer, prompts in the order
    of the batch, each prompt's rows by rank.
    """
    candidates, dropped = exclude(RaggedRows.from_frame(batch), spec, latest_round)
    rank, draws = _places(candidates, spec, distance or Distance.of(spec))
    ranked = candidates.with_columns(rank=pl.Series(rank, dtype=pl.Int32), draws=_nullable(draws))
    kept = ranked.filter(rank <= _last_rank(spec))
    chosen = kept.rows[np.lexsort((kept.column("rank"), kept.prompt_index))]
    dropped["not_selected"] = candidates.rows.height - chosen.height
    account = ReportBuilder(batch.height, chosen.height, dropped, *_figures(candidates, kept, spec))
    return chosen.select(_COLUMNS), account


def run_latest_round(batches: PromptBatches, spec: SelectSpec) -> int | None:
    """Return the latest round of a run's eligible candidates, or None if there are none."""
    rounds = batches.map(lambda batch: latest_round(batch, spec))
    return max((one for one in rounds if one is not None), default=None)


def _tables(
    batches: PromptBatches, spec: SelectSpec, distance: Distance, began: float
) -> Generator[pa.Table, None, Report]:
    """Yield the rows of the table, prompt by prompt, and return the Report."""
    whole = ReportBuilder()
    latest = run_latest_round(batches, spec) if spec.pool == "latest" else None
    rows = _counted(batches.map(partial(select_from, spec=spec, distance=distance, latest_round=latest)), whole)
    for some in _top_k_overall(rows, spec.k, whole) if spec.method == "top-k-overall" else rows:
        yield some.with_columns(scorer=pl.lit(batches.scorer)).to_arrow()
    nothing = whole.rows_in and not whole.rows_out
    note = {"note": "No answer is left: there is nothing to pair or export."} if nothing else {}
    return whole.report("select", "scored candidates", **note).timed(time.monotonic() - began)


def _counted(made: Iterable[tuple[pl.DataFrame, ReportBuilder]], whole: ReportBuilder) -> Iterator[pl.DataFrame]:
    for rows, account in made:
        whole += account
        yield rows


def _top_k_overall(pieces: Iterable[pl.DataFrame], k: int, whole: ReportBuilder) -> Iterator[pl.DataFrame]:
    """Yield the k highest-scoring rows over all prompts, grouped by prompt.

    Of equals those that rank higher within their prompts, and then those with the smaller ids.
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


def _last_rank(spec: SelectSpec) -> int:
    """Return the last rank that is kept."""
    if spec.method in ("threshold", "boltzmann"):
        return NOWHERE - 1
    return 1 if spec.method == "best-of-n" else spec.k


def _places(candidates: RaggedRows, spec: SelectSpec, distance: Distance) -> tuple[np.ndarray, np.ndarray | None]:
    if spec.improve is not None:
        return best_over_rounds(candidates.rows, spec.improve), None
    if spec.diverse:
        return spread_ranks(candidates, spec, distance), None
    place, draws = ranks(candidates, spec)
    if spec.method == "threshold":
        assert spec.threshold is not None
        place = np.where(scale_scores(candidates.rows, spec) >= spec.threshold, place, NOWHERE)
    return place, draws


def _nullable(draws: np.ndarray | None) -> pl.Expr:
    return pl.lit(None, pl.Int32) if draws is None else pl.lit(pl.Series(draws, dtype=pl.Int32))


def _figures(
    candidates: RaggedRows, kept: RaggedRows, spec: SelectSpec
) -> tuple[Counter[str], dict[str, tuple[float, int]]]:
    counts = Counter(
        {
            "prompts": len(candidates.sizes),
            "prompts_with_answers": len(kept.sizes),
            "ties_at_the_top": _ties_at_the_top(candidates),
            **nonzero({"copies_scored_otherwise": int(candidates.rows["copies_score_differs"].sum())}),
        }
    )
    sums = {
        "mean_score_before": (float(candidates.rows["score"].sum()), candidates.rows.height),
        "mean_score_after": (float(kept.rows["score"].sum()), kept.rows.height),
    }
    if spec.method in ("rso", "rso-algorithm1", "boltzmann"):
        rates, effective = acceptances(candidates, spec.beta)
        sums["acceptance_rate"] = (float(rates.sum()), len(rates))
        sums["effective_candidates"] = (float(effective.sum()), len(effective))
    if spec.pool == "mix":
        of = kept.rows.unique("prompt_id").group_by("sampler").len().sort("sampler")
        counts.update({f"prompts_from_{name}": n for name, n in of.iter_rows()})
    return counts, sums


def _ties_at_the_top(candidates: RaggedRows) -> int:
    """Prompts of which several candidates share the highest score."""
    every = [block.scatter(candidates.column("score"), -np.inf) for block in candidates.blocks()]
    return sum(int(((scores == scores.max(axis=1, keepdims=True)).sum(axis=1) > 1).sum()) for scores in every)
