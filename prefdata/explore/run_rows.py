"""Rows of a run's tables, found by a condition over all partitions, and the lineages of the steps that made them."""

from __future__ import annotations

from typing import Any

import polars as pl

from prefdata.errors import InputError
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import TABLES


def rows_where(run: Run, table: str, condition: pl.Expr) -> pl.DataFrame:
    """Return the rows of a table for which a condition holds, with the partition's name; only those are read."""
    key = TABLES[table].partition
    frames = []
    for partition in run.partitions(table):
        if parts := partition.checked_parts():
            rows = partition.table.scan(parts).filter(condition).collect()
            rows = rows.unique(list(partition.table.key), keep="last", maintain_order=True)
            frames.append(rows.with_columns(pl.lit(partition.name).alias(key)))
    return pl.concat(frames) if frames else pl.DataFrame(TABLES[table].empty()).with_columns(pl.lit("").alias(key))


def candidates_where(run: Run, condition: pl.Expr) -> pl.DataFrame:
    """Return candidates once each: where two samplers with one distribution drew the same, the first sampler's."""
    return rows_where(run, "candidates", condition).unique("candidate_id", keep="first", maintain_order=True)


def begins(column: str, beginning: str) -> pl.Expr:
    """Return the condition that an id is, or begins with, a text."""
    return pl.col(column).str.starts_with(beginning)


def one_id(ids: pl.Series, beginning: str, nouns: str) -> str:
    """Return the one id among those found by its beginning.

    Raises:
        InputError: several ids begin so.
    """
    distinct = ids.unique().sort()
    if len(distinct) > 1:
        some = ", ".join(distinct.head(3))
        raise InputError(f"{len(distinct)} {nouns} begin with {beginning!r} ({some}, …). Give more of the id.")
    return str(distinct[0])


def is_candidate(run: Run, beginning: str) -> bool:
    """Return whether some candidate's id is, or begins with, a text; reads ids alone."""
    parts = [part for sampler in run.partitions("candidates") for part in sampler.checked_parts()]
    condition = begins("candidate_id", beginning).any()
    return any(TABLES["candidates"].scan([part]).select(condition).collect().item() for part in parts)


def lineages_of(run: Run, table: str, name: str) -> list[tuple[str, Lineage]]:
    """Return the lineage of a partition and of the selections and comparisons that it was made from, newest first."""
    partition = run.partition(table, name)
    lineage = partition.lineage()
    if lineage is None:
        return []
    parents = [parent.split("/", 1) for parent in lineage.parents if parent.startswith(("selections/", "comparisons/"))]
    above = [found for table_, name_ in parents for found in lineages_of(run, table_, name_)]
    return [(str(partition), lineage), *above]


def prompt_of(run: Run, prompt_id: str) -> dict[str, Any] | None:
    """Return the row of a prompt; None where the run does not hold it."""
    found = rows_where(run, "prompts", pl.col("prompt_id") == prompt_id)
    return found.row(0, named=True) if found.height else None
