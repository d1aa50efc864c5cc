"""Pairs from comparisons: verdicts of judges or people, without scores."""

from __future__ import annotations

import numpy as np
import polars as pl

from prefdata.pairs.strategies import Proposals, RankedCandidates
from prefdata.stats.win_counts import league


def mean_verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """One row for every two answers that were compared: first_id, second_id, probability.

    The probability that the first is better is the mean over orders and annotators (a tie is 1/2), so that a judge
    whose verdict follows the place gives 1/2, a tie. The first is the one that wins more often, of equals the one with
    the smaller id. Rows without a probability say nothing; two answers of which no row says anything have none.
    """
    games = league(comparisons)
    share = games.wins_i / (games.wins_i + games.wins_j)
    names = games.names["candidate_id"]
    i, j = names.gather(games.i), names.gather(games.j)
    rows = pl.DataFrame({"prompt_id": games.names["prompt_id"].gather(games.i), "i": i, "j": j, "share": share})
    turned = (pl.col("share") < 0.5) | ((pl.col("share") == 0.5) & (pl.col("i") > pl.col("j")))
    known = rows.select(
        "prompt_id",
        first_id=pl.when(turned).then("j").otherwise("i"),
        second_id=pl.when(turned).then("i").otherwise("j"),
        probability=pl.when(turned).then(1 - pl.col("share")).otherwise("share"),
    )
    two = comparisons.select(
        "prompt_id",
        first_id=pl.min_horizontal("first_id", "second_id"),
        second_id=pl.max_horizontal("first_id", "second_id"),
        probability=pl.col("probability").fill_nan(None),
    ).filter(pl.col("first_id") != pl.col("second_id"))
    unknown = two.group_by("prompt_id", "first_id", "second_id", maintain_order=True).agg(pl.col("probability").max())
    return pl.concat([known, unknown.filter(pl.col("probability").is_null())])


def proposals_from_verdicts(judged: pl.DataFrame, candidates: RankedCandidates) -> Proposals:
    """Return the verdicts between candidates of a batch as proposals; those about excluded responses are counted.

    `judged` are the verdicts, also about other prompts.
    """
    names = candidates.rows.select("candidate_id").with_row_index("number")
    both = judged
    for side in ("first", "second"):
        number = names.rename({"number": side, "candidate_id": f"{side}_id"})
        both = both.join(number, on=f"{side}_id", how="left")
    known = both.drop_nulls(["first", "second"]).sort("first", "second")
    return Proposals(
        known["first"].to_numpy().astype(np.int64),
        known["second"].to_numpy().astype(np.int64),
        decided=True,
        probability=known["probability"].to_numpy(),
        missing={"answer_left_out": both.height - known.height},
    )
