"""eval policies: means, win rates and their intervals."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from prefdata.errors import UsageError
from prefdata.explore.bootstrap import interval
from prefdata.explore.policies import compare, win_rates
from prefdata.store import Run


def test_the_table(run: Run) -> None:
    rows = compare(run, ["rm"], ["tuned", "best"], "policy", "train").to_dicts()
    policy, tuned, best = rows
    assert [row["policy"] for row in rows] == ["policy", "tuned", "best"]
    assert policy["mean_rm"] == pytest.approx(3.0)  # (1 + 3 + 2) / 3, and the mean of 0, 1, 2 for the prompts
    assert policy["win_rate"] is None
    assert policy["mean_tokens"] == 4.0
    # {4, 3, 5} against {1, 3, 2}: 4 and 5 beat all three, 3 beats two and ties one: 8.5 of 9, for every prompt.
    assert tuned["win_rate"] == pytest.approx(8.5 / 9)
    assert (tuned["low"], tuned["high"]) == (pytest.approx(8.5 / 9),) * 2
    # The best of {1, 3, 2} against all of them: two wins and a tie with itself.
    assert best["win_rate"] == pytest.approx(2.5 / 3)
    assert best["prompts"] == 3


def test_only_prompts_that_both_answered_count() -> None:
    mine = pl.DataFrame({"prompt_id": ["a", "b"], "s": [1.0, 1.0]})
    other = pl.DataFrame({"prompt_id": ["b", "c"], "s": [0.0, 5.0]})
    assert win_rates(mine, other, "s").tolist() == [1.0]


def test_nulls_are_no_losses() -> None:
    mine = pl.DataFrame({"prompt_id": ["a", "a"], "s": [None, 1.0]})
    other = pl.DataFrame({"prompt_id": ["a"], "s": [0.0]})
    assert win_rates(mine, other, "s").tolist() == [1.0]


def test_the_interval_covers_the_mean_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        rates = random.binomial(1, 0.7, 100).astype(float)
        low, high = interval(rates)
        covered += low <= 0.7 <= high
    assert 180 <= covered <= 199


def test_unknown_policy(run: Run) -> None:
    with pytest.raises(UsageError, match='Did you mean "tuned"'):
        compare(run, ["rm"], ["tund"], "policy")
