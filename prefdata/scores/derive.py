"""Scores made from scores or from comparisons: read what the kind of scorer names, compute, write."""

from __future__ import annotations

import time
from typing import Any

import polars as pl
import pyarrow as pa

from prefdata.scorers.open import open_deriver
from prefdata.specs import RankSpec
from prefdata.storage.report import Report, by_reason, nonzero
from prefdata.storage.run import Lineage, Outcome, Run, name_of
from prefdata.storage.schemas import SCORES


def derive(run: Run, spec: RankSpec, *, replace: bool = False, partial: bool = False) -> Outcome:
    """Compute the scores of `--combine`, `--calibrate` or `--comparisons`, and store them as `RUN/scores/scorer=NAME`.

    Raises:
        NotReady: what is read is not there, or is unfinished and `partial` was not asked for.
        UsageError: the run has no scorer, judge or pairs of that name.
        SpecConflict: a scorer of this name has other settings.
    """
    derivation = open_deriver(spec)(run, partial=partial)
    lineage = Lineage.of(spec, derivation.parents, resolved=derivation.resolved)

    def compute() -> tuple[pa.Table, Report]:
        began = time.monotonic()
        rows, figures = derivation.compute()
        return SCORES.conform(rows.to_arrow()), _report(rows, figures).timed(time.monotonic() - began)

    name = name_of(spec.name or derivation.name)
    return run.partition("scores", name).derive(lineage, compute, replace=replace, seen=derivation.seen)


def _report(rows: pl.DataFrame, also: dict[str, Any]) -> Report:
    """Build the Report of scores derived from others; `also` are further figures."""
    figures: dict[str, Any] = {"scored": rows["score"].count(), **nonzero(by_reason(rows["reason"]))}
    if rows["score"].count():
        figures |= {"mean": rows["score"].mean(), "std": rows["score"].std()}
    report = Report(step="rank", unit="candidates", rows_in=rows.height, rows_out=rows.height, figures=figures | also)
    if rows.height and not figures["scored"]:
        return report.failed(f"no candidate has a score; first error: {rows['reason'][0]}.")
    return report
