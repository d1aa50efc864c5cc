"""Pairs from comparisons: what judges or people said, without scores."""

from __future__ import annotations

import numpy as np
import polars as pl

from prefdata.scorers.leagues import league


def verdicts(comparisons: pl.DataFrame) -> pl.DataFrame:
    """One row for every two answers that were compared: first_id, second_id, probability.

    The probability that the first is better is the mean over orders and annotators (a tie is 1/2), so that a judge
    whose verdict follows the place gives 1/2, a tie. The first is the one that wins more often, of equals the one with
    the smaller id. Rows without a probability say nothing.
    """
    games = league(comparisons)
    share = games.wins_i / (games.wins_i + games.wins_j)
    names = games.names["candidate_id"]
    i, j = names.gather(games.i), names.gather(games.j)
    rows = pl.DataFrame({"prompt_id": games.names["prompt_id"].gather(games.i), "i": i, "j": j, "share": share})
    turned = (pl.col("share") < 0.5) | ((pl.col("share") == 0.5) & (pl.col("i") > pl.col("j")))
    return rows.select(
        "prompt_id",
        first_id=pl.when(turned).then("j").otherwise("i"),
        second_id=pl.when(turned).then("i").otherwise("j"),
        probability=pl.when(turned).then(1 - pl.col("share")).otherwise("share"),
    )


def as_proposals(said: pl.DataFrame, names: pl.Series) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The verdicts between answers of `names`, by their numbers: firsts, seconds, probabilities."""
    numbers = pl.DataFrame({"name": names}).with_row_index("row")
    both = said.join(numbers.rename({"row": "first"}), left_on="first_id", right_on="name")
    both = both.join(numbers.rename({"row": "second"}), left_on="second_id", right_on="name")
    both = both.sort("first", "second")
    return (
        both["first"].to_numpy().astype(np.int64),
        both["second"].to_numpy().astype(np.int64),
        both["probability"].to_numpy(),
    )
