"""Reliability of judges: self-consistency in both orders, and agreement with each other."""

from __future__ import annotations

import polars as pl

from prefdata.stats.agreement import pairwise_agreement, self_consistency
from prefdata.storage.run import Run

_COLUMNS = ["prompt_id", "first_id", "second_id", "order", "annotator", "probability"]


def judges(run: Run, names: tuple[str, ...] = (), *, partial: bool = False) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Measure the judges of a run, models and people alike, each alone and in pairs.

    Args:
        run: the run.
        names: of the sets of comparisons; None for all.
        partial: whether unfinished ones may be read.

    Returns:
        `agreement.consistency` (a row an annotator) and `agreement.between_annotators` (a row two of them).

    Raises:
        NotReady: there are no comparisons, or they are unfinished and `partial` was not asked for.
        UsageError: there is no judge of that name.
    """
    chosen = [run.only("comparisons", name, partial=partial) for name in names]
    frames = [pl.from_arrow(one.read(_COLUMNS)) for one in chosen or run.all("comparisons", partial=partial)]
    rows = pl.concat([frame for frame in frames if isinstance(frame, pl.DataFrame)])
    return self_consistency(rows), pairwise_agreement(rows)
