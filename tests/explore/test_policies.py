"""eval policies: means, win rates and their intervals; who may be compared with whom."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scored_runs import answer, scored_run, write

from prefdata.errors import InputError, UsageError
from prefdata.explore.policies import Policy, compare, meetings, win_rates
from prefdata.selections.select import select
from prefdata.specs import SelectSpec
from prefdata.stats.bootstrap import bootstrap_interval
from prefdata.storage.run import Run


def test_the_table(run: Run) -> None:
    rows = compare(run, ["rm"], ["tuned", "best"], "policy", "train").to_dicts()
    policy, tuned, best = rows
    assert [row["policy"] for row in rows] == ["policy", "tuned", "best"]
    assert policy["mean_rm"] == pytest.approx(3.0)  # (1 + 3 + 2) / 3, and the mean of 0, 1, 2 for the prompts
    assert (policy["win_rate"], policy["compared_as"], policy["note"]) == (None, None, None)
    assert policy["mean_tokens"] == 4.0
    # {4, 3, 5} against {1, 3, 2}: 4 and 5 beat all three, 3 beats two and ties one: 8.5 of 9, for every prompt.
    assert tuned["win_rate"] == pytest.approx(8.5 / 9)
    assert (tuned["low"], tuned["high"]) == (pytest.approx(8.5 / 9),) * 2
    # {1, 3, 2}, each left out: 3 beats 1, 2 loses to 3, 3 beats 2.
    assert best["win_rate"] == pytest.approx(2 / 3)
    assert best["compared_as"] == "best-of-2"
    assert "rm made the selection" in best["note"]
    assert [row["prompts"] for row in rows] == [3, 3, 3]


def responses(sampler: str, scores: Sequence[Sequence[float]], **more: Any) -> list[dict[str, Any]]:
    """Each prompt's responses by a sampler, with these scores."""
    return [
        answer(f"p{p}", i, score, sampler=sampler, **more)
        for p, row in enumerate(scores)
        for i, score in enumerate(row)
    ]


def orders(n: int) -> list[tuple[float, ...]]:
    """A prompt for every order of n + 1 scores: what iid continuous scores do on average, exactly."""
    return [tuple(map(float, row)) for row in permutations(range(n + 1))]


def row(run: Run, policy: str, baseline: str, *scorers: str) -> dict[str, Any]:
    return compare(run, [*scorers] or ["reward"], [policy], baseline, "train").row(1, named=True)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("method", ["best-of-n", "top-k"])
def test_the_best_of_n_beats_a_fresh_sample_in_n_of_n_plus_1(tmp_path: Path, n: int, method: str) -> None:
    rows = [order[:n] for order in orders(n)], [order[n:] for order in orders(n)]
    run = scored_run(tmp_path / "run", responses("policy", rows[0]) + responses("fresh", rows[1]))
    select(run, SelectSpec(method=method, sampler=("policy",), name="best"))
    found = row(run, "best", "fresh")
    assert found["win_rate"] == pytest.approx(n / (n + 1))
    assert (found["compared_as"], found["note"]) == (None, None)
    assert found["low"] < found["win_rate"] < found["high"]
    assert row(run, "fresh", "best")["win_rate"] == pytest.approx(1 / (n + 1))


def test_a_score_that_no_selection_takes_counts_in_no_mean(tmp_path: Path) -> None:
    """`select` leaves out scores above 1e100, of which no sums can be made; of {1, 3, 1e300} the mean is 2."""
    scores = [[1.0, 3.0, 1e300]] * 2
    run = scored_run(tmp_path / "run", responses("policy", scores) + responses("other", [[2.0]] * 2))
    select(run, SelectSpec(method="best-of-n", sampler=("policy",), name="best"))
    policy, best = compare(run, ["reward"], ["best"], "policy", "train").to_dicts()
    assert policy["mean_reward"] == 2.0
    assert best["mean_reward"] == 3.0
    assert best["win_rate"] == 0.5  # 3 beats 1, and of the two others left out 1 loses to 3
    assert row(run, "other", "policy")["win_rate"] == 0.5


def test_without_fresh_samples_each_is_left_out_in_turn(tmp_path: Path) -> None:
    """By the scorer that chose it is 2/3 for three scores; by one that knows nothing of it, 1/2."""
    pairs = [(a, b) for a in orders(2) for b in orders(2)]
    run = scored_run(tmp_path / "run", responses("policy", [a for a, _ in pairs]))
    write(run, "scores", "other", responses("policy", [b for _, b in pairs]))
    select(run, SelectSpec(method="best-of-n", scorer="reward", name="best"))
    assert [row(run, "best", "policy", scorer)["win_rate"] for scorer in ("reward", "other")] == [
        pytest.approx(2 / 3),
        pytest.approx(1 / 2),
    ]
    found = row(run, "best", "policy", "other")
    assert (found["compared_as"], found["note"]) == ("best-of-2", None)
    assert found["low"] < 1 / 2 < found["high"]
    turned = row(run, "policy", "best", "other")
    assert (turned["win_rate"], turned["compared_as"]) == (pytest.approx(1 / 2), "against best-of-2")


def test_the_best_of_two_is_no_more_than_one_sample_when_one_is_left_out(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", responses("policy", [(0.0, 1.0), (3.0, 2.0)]))
    select(run, SelectSpec(method="best-of-n", name="best"))
    found = row(run, "best", "policy")
    assert (found["win_rate"], found["compared_as"]) == (0.5, "best-of-1")


def test_equal_scores_and_texts_tie(tmp_path: Path) -> None:
    """Left out in turn: 1 meets the same text (half), so does its copy, and 0 loses."""
    same = [answer("p", 0, 1.0, text="same"), answer("p", 1, 0.0), answer("p", 2, 1.0, text="same")]
    run = scored_run(tmp_path / "run", same)
    select(run, SelectSpec(method="best-of-n", name="best"))
    assert row(run, "best", "policy")["win_rate"] == pytest.approx((0.5 + 1 + 0.5) / 3)


def test_a_truncated_sample_is_left_out_against_the_best_of_the_others(tmp_path: Path) -> None:
    """It could not be chosen, so that the other two face each other, and the best of them faces it."""
    rows = [answer("p", 0, 9.0, finish_reason="length"), answer("p", 1, 1.0), answer("p", 2, 2.0)]
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(method="best-of-n", name="best"))
    assert row(run, "best", "policy")["win_rate"] == pytest.approx((0 + 1 + 0) / 3)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"method": "rso", "k": 2}, "rso does not choose the best one"),
        ({"method": "rso-algorithm1", "k": 2}, "rso-algorithm1 does not"),
        ({"method": "boltzmann", "k": 2}, "boltzmann does not"),
        ({"method": "threshold", "threshold": 0.5}, "threshold does not"),
        ({"method": "top-k-overall", "k": 20}, "top-k-overall does not"),
        ({"method": "top-k", "k": 2, "diverse": 0.5}, "chosen with --diverse"),
        ({"method": "best-of-n", "improve": 1.0}, "chosen with --improve"),
        ({"method": "best-of-n", "where": "score < 2"}, "chosen with --where"),
        ({"method": "best-of-n", "min_chars": 2}, "chosen with --min-chars"),
        ({"method": "best-of-n", "pool": "latest"}, "chosen with --pool"),
    ],
)
def test_others_need_fresh_samples(tmp_path: Path, prefdata, settings: dict[str, Any], why: str) -> None:
    """Whatever chose the responses, fresh samples can be compared with, and its own cannot."""
    rows = responses("policy", orders(2)) + responses("fresh", [(0.5,)] * 6)
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(sampler=("policy",), name="chosen", **settings))
    own, fresh = row(run, "chosen", "policy"), row(run, "chosen", "fresh")
    assert (own["win_rate"], own["low"], own["compared_as"]) == (None, None, None)
    assert why in own["note"]
    assert "Sample fresh ones" in own["note"]
    assert own["mean_reward"] is not None
    assert (fresh["note"], fresh["win_rate"] is None) == (None, False)
    command = ("eval", "policies", run.path, "--scorer", "reward", "--baseline", "policy", "--policy", "chosen")
    code, out, _ = prefdata(*command, "--split", "train", "--format", "table")
    assert (code, "chosen: no win rate" in out) == (0, True)


def test_two_selections_of_the_same_samples_are_not_compared(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", responses("a", orders(2)) + responses("b", orders(2)))
    for name, sampler in (("best-a", "a"), ("all-a", "a"), ("best-b", "b")):
        select(run, SelectSpec(method="best-of-n", sampler=(sampler,), name=name))
    assert "of the same samples" in row(run, "all-a", "best-a")["note"]
    assert row(run, "best-b", "best-a")["win_rate"] == 0.5


def test_samplers_that_came_after_the_selection_are_fresh(tmp_path: Path) -> None:
    """It says of no sampler that it was chosen from, and there was only one."""
    rows = responses("policy", [order[:2] for order in orders(2)])
    run = scored_run(tmp_path / "run", rows)
    select(run, SelectSpec(method="best-of-n", name="best"))
    fresh = responses("fresh", [order[2:] for order in orders(2)])
    write(run, "candidates", "fresh", fresh)
    write(run, "scores", "reward", rows + fresh)
    found = row(run, "best", "fresh")
    assert (found["win_rate"], found["compared_as"]) == (pytest.approx(2 / 3), None)


def test_what_two_samplers_share_is_not_fresh(tmp_path: Path) -> None:
    """Samplers with the same settings have the same candidates: the longer one has one more, which is fresh."""
    short = responses("short", [order[:2] for order in orders(2)], law="same")
    long = responses("long", orders(2), law="same")
    run = scored_run(tmp_path / "run", short + long)
    select(run, SelectSpec(method="best-of-n", sampler=("short",), name="best"))
    assert row(run, "best", "long")["win_rate"] == pytest.approx(2 / 3)
    assert row(run, "short", "long")["win_rate"] == pytest.approx(1 / 2)  # no sample meets itself


def test_a_selection_that_the_scores_have_left_behind_says_so(tmp_path: Path) -> None:
    run = scored_run(tmp_path / "run", responses("policy", orders(2)))
    select(run, SelectSpec(method="best-of-n", name="best"))
    write(run, "scores", "reward", responses("policy", [order[::-1] for order in orders(2)]))
    found = row(run, "best", "policy")
    assert (found["win_rate"], "select again" in found["note"]) == (None, True)


def test_all_figures_are_over_the_prompts_that_both_have(tmp_path: Path) -> None:
    """The policy has prompts 1 and 2, the baseline 0 and 1; and prompt 1 twice as many samples as 0."""
    policy = [answer("p1", 0, 5.0), answer("p2", 0, 7.0)]
    baseline = [answer(f"p{p}", i, float(p), sampler="base") for p, n in ((0, 1), (1, 2)) for i in range(n)]
    run = scored_run(tmp_path / "run", policy + baseline)
    rows = compare(run, ["reward"], ["policy"], "base", "train")
    assert rows.select("policy", "prompts", "mean_reward", "win_rate").rows() == [
        ("base", 1, 1.0, None),
        ("policy", 1, 5.0, 1.0),
    ]
    with pytest.raises(InputError, match="no prompt that all have"):
        compare(scored_run(tmp_path / "other", policy[1:] + baseline), ["reward"], ["policy"], "base", "train")


def test_a_mean_is_over_prompts_and_not_over_samples(tmp_path: Path) -> None:
    rows = responses("policy", [(0.0, 0.0, 0.0), (1.0,)]) + responses("base", [(0.0,), (0.0,)])
    assert row(scored_run(tmp_path / "run", rows), "policy", "base")["mean_reward"] == 0.5


def test_what_has_no_score_is_no_loss(tmp_path: Path) -> None:
    rows = responses("policy", [(None, float("nan"), 1.0)]) + responses("base", [(0.0,)])
    assert row(scored_run(tmp_path / "run", rows), "policy", "base")["win_rate"] == 1.0


@pytest.mark.parametrize("fresh", [0, 2], ids=["left out", "fresh"])
def test_the_interval_covers_the_true_rate_as_often_as_it_says(fresh: int) -> None:
    """80 prompts, 4 samples, a scorer that correlates with the truth by 0.6: 95% of 200 intervals, give or take 3 SE.

    The true rate is that of the best of 3 (of 4 where there are fresh samples) of the scorer over one more, by truth.
    """
    random, n = np.random.default_rng(3), 4
    size = n if fresh else n - 1
    proxy = random.normal(size=(400_000, size + 1))
    truth = 0.6 * proxy + 0.8 * random.normal(size=proxy.shape)
    best = np.take_along_axis(truth, proxy[:, :size].argmax(axis=1)[:, None], axis=1)[:, 0]
    true = float((best > truth[:, size]).mean())
    covered = 0
    for _ in range(200):
        proxy = random.normal(size=(80, n + fresh))
        truth = 0.6 * proxy + 0.8 * random.normal(size=proxy.shape)
        low, high = bootstrap_interval(_rates(proxy, truth, n))
        covered += low <= true <= high
    assert 181 <= covered <= 199


def _rates(proxy: np.ndarray, truth: np.ndarray, n: int) -> np.ndarray:
    """Each prompt's win rate of the best of n by the proxy over the samples after them, or over its own."""
    p, i = np.indices(proxy.shape)
    names = [f"{a}-{b}" for a, b in zip(p.ravel(), i.ravel(), strict=True)]
    columns = {
        "prompt_id": p.ravel(),
        "candidate_id": names,
        "sample": i.ravel(),
        "by": proxy.ravel(),
        "truth": truth.ravel(),
    }
    rows = pl.DataFrame(columns)
    drawn = rows.filter(pl.col("sample") < n).sort("prompt_id", "by", descending=[False, True])
    ids = ["prompt_id", "candidate_id"]
    best = Policy("best", drawn.unique("prompt_id", keep="first").select(ids), drawn.select(ids), drawn.select(ids))
    base = Policy("base", rows.filter(pl.col("sample") >= n if proxy.shape[1] > n else True).select(ids))
    found = meetings(best, base)
    assert found is not None
    return win_rates(found.pairs, rows, "truth")["rate"].to_numpy()


def test_unknown_policy(run: Run) -> None:
    with pytest.raises(UsageError, match='Did you mean "tuned"'):
        compare(run, ["rm"], ["tund"], "policy")
