"""Why an answer was selected, or was not: a selection's rule, asked again for one prompt."""

from __future__ import annotations

import polars as pl

from prefdata.errors import NotReady
from prefdata.grids import Standing
from prefdata.pools import open_pools
from prefdata.selections import keep
from prefdata.selections.diversity import Distance
from prefdata.selections.narrowing import able, last_round, narrowings
from prefdata.specs import SelectSpec
from prefdata.store import Run

PASSED_OVER = "passed_over"
"""The reason of an answer that took part, and that the method did not keep."""


def reasons(run: Run, selector: str, prompt_id: str) -> dict[str, str | None]:
    """Why each scored answer to a prompt is not in a selection; None for those that are.

    Raises:
        NotReady: there is no such selection.
    """
    made = run.only("selections", selector, partial=True)
    lineage = made.lineage()
    if lineage is None:
        raise NotReady(f"{made} was begun and never made: run `prefdata select {run} …` first.")
    spec = SelectSpec.of_identity(lineage.spec)
    scores = run.only("scores", str(lineage.spec["scorer"]), partial=True)
    latest = None
    if spec.pool == "latest":
        with open_pools(run, spec, scores) as pools:
            latest = last_round(pools, spec)
    with open_pools(run, spec, scores, texts=spec.diverse > 0, prompt_id=prompt_id) as pools:
        pool = pools.whole()
    return why(pool, spec, latest)


def why(pool: pl.DataFrame, spec: SelectSpec, latest_round: int | None = None) -> dict[str, str | None]:
    """The reason of each of a pool's candidates."""
    found: dict[str, str | None] = dict(pool.select("candidate_id", "left_out").iter_rows())
    answers = able(Standing.of(pool))
    for reason, kept in narrowings(spec, latest_round):
        before, answers = answers.rows, kept(answers)
        found |= dict.fromkeys(before.join(answers.rows, on="candidate_id", how="anti")["candidate_id"], reason)
    chosen, _ = keep(pool, spec, latest_round=latest_round, distance=Distance.of(spec))
    found |= dict.fromkeys(answers.rows.join(chosen, on="candidate_id", how="anti")["candidate_id"], PASSED_OVER)
    return found
