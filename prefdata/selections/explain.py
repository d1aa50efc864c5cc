"""Why a candidate was selected, or was not: a selection's rule, applied again to one prompt."""

from __future__ import annotations

import polars as pl

from prefdata.errors import NotReady
from prefdata.scored import open_scored
from prefdata.selections.diverse import Distance
from prefdata.selections.exclusions import eligible, exclusion_steps
from prefdata.selections.select import run_latest_round, select_from
from prefdata.specs import SelectSpec
from prefdata.stats.ragged import RaggedRows
from prefdata.storage.run import Run

PASSED_OVER = "passed_over"
"""The reason of a candidate that took part, and that the method did not keep."""


def explain_selection(run: Run, selector: str, prompt_id: str) -> dict[str, str | None]:
    """Why each scored candidate of a prompt is not in a selection; None for those that are.

    Raises:
        NotReady: there is no such selection.
    """
    made = run.only("selections", selector, partial=True)
    lineage = made.lineage()
    if lineage is None:
        raise NotReady(f"{made} was begun and never made: run `prefdata select {run} …` first.")
    spec = SelectSpec.from_identity(lineage.spec)
    scores = run.only("scores", str(lineage.spec["scorer"]), partial=True)
    latest = None
    if spec.pool == "latest":
        with open_scored(run, spec, scores) as batches:
            latest = run_latest_round(batches, spec)
    with open_scored(run, spec, scores, texts=spec.diverse > 0, prompt_id=prompt_id) as batches:
        batch = batches.to_frame()
    return exclusion_of(batch, spec, latest)


def exclusion_of(batch: pl.DataFrame, spec: SelectSpec, latest_round: int | None = None) -> dict[str, str | None]:
    """Return the exclusion reason of each of a batch's candidates, or None."""
    found: dict[str, str | None] = dict(batch.select("candidate_id", "excluded").iter_rows())
    candidates = eligible(RaggedRows.from_frame(batch))
    for reason, step in exclusion_steps(spec, latest_round):
        before, candidates = candidates.rows, step(candidates)
        found |= dict.fromkeys(before.join(candidates.rows, on="candidate_id", how="anti")["candidate_id"], reason)
    chosen, _ = select_from(batch, spec, latest_round=latest_round, distance=Distance.of(spec))
    found |= dict.fromkeys(candidates.rows.join(chosen, on="candidate_id", how="anti")["candidate_id"], PASSED_OVER)
    return found
