"""Intervals of accuracies: pairs of one prompt are not independent."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from prefdata.stats.proportions import effective_pairs, wilson


def test_one_pair_a_prompt_counts_whole():
    """Three right of four: variance (3 * (1/4)^2 + (3/4)^2) / 16 = (3/4 * 1/4) / 4. A tie adds none."""
    prompts = pl.Series(range(4))
    assert effective_pairs(np.array([1.0, 1, 1, 0]), prompts) == pytest.approx(4)
    assert effective_pairs(np.array([1.0, 0.5, 0.5, 0]), prompts) == 4


def test_pairs_of_a_prompt_that_agree_count_once():
    """Each pair five times: the same share, and no more known than by one of each."""
    right, prompts = np.repeat([1.0, 1, 1, 0], 5), pl.Series(np.repeat([0, 1, 2, 3], 5))
    assert effective_pairs(right, prompts) == pytest.approx(4)
    assert effective_pairs(right, pl.Series(range(20))) == pytest.approx(20)


def test_two_prompts_by_hand():
    """2 of 2 right and 1 of 2: p = 3/4, sums 1/2 and -1/2, variance (1/4 + 1/4) / 16; (3/16) / (1/32) is 6, over 4."""
    assert effective_pairs(np.array([1.0, 1, 1, 0]), pl.Series(["a", "a", "b", "b"])) == 4
    # 3 of 3 and 0 of 1: sums 3/4 and -3/4, variance (9/8) / 16; (3/16) / (9/128) = 8/3
    assert effective_pairs(np.array([1.0, 1, 1, 0]), pl.Series(["a", "a", "a", "b"])) == pytest.approx(8 / 3)


@pytest.mark.parametrize("right", [1.0, 0.0])
def test_where_all_agree_prompts_are_counted(right):
    assert effective_pairs(np.full(6, right), pl.Series(["a", "a", "a", "b", "b", "c"])) == 3


def test_intervals_of_all_pairs_cover_the_truth():
    """600 runs of 20 prompts with 15 pairs of six responses: with all 300 pairs the intervals cover it 87 in 100."""
    rng = np.random.default_rng(0)
    first, second = np.triu_indices(6, 1)
    covered = {"pairs": 0, "prompts": 0}
    for _ in range(600):
        true = -np.sort(-rng.normal(size=(20, 6)), axis=1)
        scores = true + 1.2 * rng.normal(size=true.shape)
        right = (scores[:, first] > scores[:, second]).astype(float).ravel()
        counts = {"pairs": right.size, "prompts": effective_pairs(right, pl.Series(np.repeat(range(20), 15)))}
        for name, count in counts.items():
            low, high = wilson(right.mean(), count)
            covered[name] += low <= 0.7215 <= high
    assert covered["pairs"] < 540
    assert covered["prompts"] > 552
