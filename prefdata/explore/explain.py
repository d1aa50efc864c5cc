"""explain: why this answer is the chosen one and that one the rejected."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from prefdata.errors import InputError, NotReady
from prefdata.store import Lineage, Run
from prefdata.tables import TABLES


@dataclass(frozen=True)
class Explanation:
    """A pair with everything that led to it.

    `pair`, `prompt`, `chosen` and `rejected` are rows of their tables (the candidates with their `sampler`);
    `standing` is the prompt's scored candidates, best first, with `selected` (the rank in the selection) where there is
    one; `lineages` are the steps that made the pair, newest first.
    """

    pair: dict[str, Any]
    prompt: dict[str, Any]
    chosen: dict[str, Any]
    rejected: dict[str, Any]
    standing: pl.DataFrame
    lineages: list[tuple[str, Lineage]]


def explain(run: Run, pair_id: str) -> Explanation:
    """Everything about the pair whose id is, or begins with, `pair_id`.

    Raises:
        NotReady: there are no pairs.
        InputError: no pair has that id, or several begin with it.
    """
    pair = _find(run, pair_id)
    asked = pl.col("prompt_id") == pair["prompt_id"]
    prompt = _rows(run, "prompts", asked).row(0, named=True)
    candidates = _rows(run, "candidates", asked)
    by_id = {row["candidate_id"]: row for row in candidates.iter_rows(named=True)}
    lineages = _lineages(run, "pairs", pair["pairing"])
    selector = next((lineage.spec.get("selector") for _, lineage in lineages if lineage.step == "pair"), None)
    scores = _rows(run, "scores", asked).filter(pl.col("scorer") == pair["scorer"])
    standing = scores.join(candidates, on="candidate_id").sort("score", descending=True, nulls_last=True)
    standing = standing.join(_ranks(run, pair["prompt_id"], selector), on="candidate_id", how="left")
    for side in ("chosen", "rejected"):
        name = by_id[pair[f"{side}_id"]]["sampler"]
        lineages += [found for found in _lineages(run, "candidates", name) if found not in lineages]
    lineages += _lineages(run, "scores", pair["scorer"])
    columns = ["candidate_id", "sampler", "sample_index", "score", "selected", "finish_reason", "text"]
    return Explanation(
        pair, prompt, by_id[pair["chosen_id"]], by_id[pair["rejected_id"]], standing.select(columns), lineages
    )


def _find(run: Run, pair_id: str) -> dict[str, Any]:
    found = _rows(run, "pairs", pl.col("pair_id").str.starts_with(pair_id))
    if found["pair_id"].n_unique() > 1:
        some = ", ".join(found["pair_id"].unique().sort().head(3))
        raise InputError(
            f"{found['pair_id'].n_unique()} pairs begin with {pair_id!r} ({some}, …). Give more of the id."
        )
    if found.height == 0:
        raise InputError(
            f'{run} has no pair {pair_id!r}. List them with: prefdata sql {run} "select pair_id, margin from pairs"'
        )
    return found.row(0, named=True)


def _rows(run: Run, table: str, fits: pl.Expr) -> pl.DataFrame:
    """The rows of a table for which an expression holds, with the partition's name; only those are read."""
    frames = []
    for partition in run.all(table, partial=True):
        if parts := partition.readable():
            rows = pl.scan_parquet(parts, hive_partitioning=False).filter(fits).collect()
            rows = rows.unique(list(partition.table.key), keep="last", maintain_order=True)
            frames.append(rows.with_columns(pl.lit(partition.name).alias(partition.table.partition)))
    return pl.concat(frames) if frames else pl.DataFrame(pl.from_arrow(TABLES[table].empty()))


def _ranks(run: Run, prompt_id: str, selector: str | None) -> pl.DataFrame:
    try:
        selections = _rows(run, "selections", pl.col("prompt_id") == prompt_id).filter(pl.col("selector") == selector)
    except NotReady:
        selections = pl.DataFrame(schema={"candidate_id": pl.String, "rank": pl.Int32})
    return selections.select("candidate_id", selected="rank")


def _lineages(run: Run, table: str, name: str) -> list[tuple[str, Lineage]]:
    partition = run.partition(table, name)
    lineage = partition.lineage()
    if lineage is None:
        return []
    parents = [parent.split("/", 1) for parent in lineage.parents if parent.startswith(("selections/", "scores/"))]
    above = [found for table_, name_ in parents if table_ == "selections" for found in _lineages(run, table_, name_)]
    return [(str(partition), lineage), *above]
