"""curves: from a run's scores to a table of what N and the temperature buy."""

from __future__ import annotations

import math
import re
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from explore.conftest import candidate, fill, prompt
from scored_runs import score_of

from prefdata.errors import InputError, UsageError
from prefdata.explore.curves import groups as grouping
from prefdata.explore.curves.curves import LARGEST, SCHEMA, curves
from prefdata.explore.curves.groups import group
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.stats import best_of_n
from prefdata.stats.bootstrap import LOTS, bootstrap_blocks, bootstrap_interval, bootstrap_intervals
from prefdata.stats.extrapolation import extrapolate
from prefdata.storage.run import Run


def value(found, curve: str, name: str, n: int, column: str = "value"):
    rows = found.rows.filter((pl.col("curve") == curve) & (pl.col("group") == name) & (pl.col("n") == n))
    assert rows.height == 1, (curve, name, n)
    return rows[column][0]


def make(path: Path, scores: dict[str, list[list[float | None]]], gold=None, **columns) -> Run:
    """A run whose prompts (lists of lists of scores, by sampler) have as many candidates as they are given scores."""
    run = Run(path)
    count = max(len(prompts) for prompts in scores.values())
    fill(run, "prompts", "asked", IngestSpec(), [prompt(i) for i in range(count)])
    judged: dict[str, list[dict]] = {"rm": [], "gold": []}
    for sampler, prompts in scores.items():
        rows = []
        for i, draws in enumerate(prompts):
            for draw, score in enumerate(draws):
                row = {**candidate(sampler, i, draw), **{k: v(draw) if callable(v) else v for k, v in columns.items()}}
                rows.append(row)
                judged["rm"].append(score_of(row, sampler, score))
                judged["gold"].append({**judged["rm"][-1], "score": gold[sampler][i][draw] if gold else 0.0})
        fill(run, "candidates", sampler, SampleSpec(model=sampler), rows)
    for name in ("rm", "gold") if gold else ("rm",):
        fill(run, "scores", name, RankSpec(reward_model=name), judged[name])
    return run


def test_the_points(run: Run) -> None:
    found = curves(run)
    # {1, 2, 3} plus the prompt's number, 1.5 on average. Of two: max 2, 3, 3, min 1, 1, 2; median and mean are 2.
    assert [value(found, "max", "policy", n) for n in (1, 2, 3)] == pytest.approx([3.5, 8 / 3 + 1.5, 4.5])
    assert [value(found, "min", "policy", n) for n in (1, 2, 3)] == pytest.approx([3.5, 4 / 3 + 1.5, 2.5])
    assert [value(found, "median", "policy", n) for n in (1, 2, 3)] == pytest.approx([3.5, 3.5, 3.5])
    assert [value(found, "gap", "policy", n) for n in (1, 2, 3)] == pytest.approx([0, 2 / 3, 1])
    assert [value(found, "win_rate", "policy", n) for n in (1, 2)] == pytest.approx([1 / 2, 2 / 3])
    assert value(found, "kl_bound", "policy", 2) == pytest.approx(math.log(2) - 0.5)
    assert value(found, "completion_tokens", "policy", 2) == pytest.approx(8)  # 3, 4 and 5 tokens
    assert value(found, "best_tokens", "policy", 3) == pytest.approx(4)  # the best is draw 1
    assert value(found, "prompt_tokens", "policy", 3) == pytest.approx(4)
    assert value(found, "unique_share", "policy", 3) == 1
    assert dict(found.rows.schema) == SCHEMA
    assert set(found.rows["scorer"]) == {"rm"}
    assert found.report.rows_in == found.report.rows_out == 24
    assert not found.rows["value"].is_nan().any()


def test_the_kl_by_the_model(run: Run) -> None:
    """Every answer of the fixture has the log-probability -1.5, so the estimate is Beirami's at that one."""
    eps = math.exp(-1.5)
    wanted = (1 - eps) ** 2 * (math.log(2) + math.log(1 - eps) - 0.5) + (1 - (1 - eps) ** 2) * math.log(
        (1 - (1 - eps) ** 2) / eps
    )
    assert value(curves(run), "kl_model", "policy", 2) == pytest.approx(wanted)


def test_another_temperature_is_another_law_than_the_model_s(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[1.0, 2.0]]}, temperature=0.7))
    assert "kl_model" not in set(found.rows["curve"])


def test_who_leads(run: Run) -> None:
    found = curves(run)
    # Of {3, 4, 5} and {1, 2, 3} the best of n are two apart for every n and prompt: nothing to be unsure of.
    lead = found.rows.filter(pl.col("curve") == "lead").sort("n")
    assert lead["group"].to_list() == ["tuned"] * 3
    assert lead["n"].to_list() == [1, 2, 3]
    assert lead["value"].to_numpy() == pytest.approx(2)
    assert lead["low"].to_numpy() == pytest.approx(2)
    assert not lead["extrapolated"].any()


def test_who_leads_is_told_on_the_prompts_that_all_have(tmp_path: Path) -> None:
    """Hot has easy prompts that cold lacks: alone it looks better, and on the shared ones it is worse."""
    cold = [[1.0, 2.0], [1.0, 2.0]]
    hot = [[0.0, 1.0], [0.0, 1.0], [9.0, 9.0], [9.0, 9.0]]
    found = curves(make(tmp_path / "r", {"cold": cold, "hot": hot}))
    assert value(found, "max", "hot", 2) > value(found, "max", "cold", 2)
    assert value(found, "lead", "cold", 2) == pytest.approx(1)
    assert value(found, "lead", "cold", 2, "prompts") == 2
    assert "2 prompts that all of them have" in found.notes[0]


def test_one_curve_is_over_one_set_of_prompts(tmp_path: Path) -> None:
    """Most have three; the prompt with one, of the highest score, must not lift the beginning of the curve."""
    run = make(tmp_path / "r", {"a": [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [90.0], [1.0, 2.0, 3.0, 4.0]]})
    found = curves(run)
    assert set(found.rows.filter(pl.col("curve") == "max")["prompts"]) == {3}
    assert value(found, "max", "a", 1) == pytest.approx((2 + 2 + 2.5) / 3)
    # Of the four, the best of 3 is 4 in three subsets and 3 in one.
    assert value(found, "max", "a", 3) == pytest.approx((3 + 3 + 3.75) / 3)
    assert found.report.dropped == {"of_prompts_with_fewer_than_n": 1}
    assert found.report.figures["prompts_left_out"] == 1
    assert value(curves(run, n=4), "max", "a", 4) == 4
    assert value(curves(run, n=1), "max", "a", 1, "prompts") == 4
    with pytest.raises(InputError, match="no prompt of a has 5 scored candidates; the maximum is 4"):
        curves(run, n=5)


def test_what_has_no_score_is_counted_and_no_number(tmp_path: Path) -> None:
    rows = [[1.0, None, 3.0], [math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0]]
    found = curves(make(tmp_path / "r", {"a": rows}))
    assert found.report.dropped == {"no_score": 1, "score_is_not_finite": 2}
    assert found.report.rows_out == 6
    assert value(found, "max", "a", 2) == pytest.approx((3 + 2 + 2) / 3)
    with pytest.raises(InputError, match="none of 2 candidates has a score by rm"):
        curves(make(tmp_path / "s", {"a": [[None, math.nan]]}))


def test_the_most_common_number_and_the_larger_of_two() -> None:
    def known(*sizes: int) -> int:
        rows = [
            {"candidate_id": f"{i}/{j}", "prompt_id": str(i), "sample_index": j, "sampler": "a", "temperature": 1.0,
             "score": float(j), "truncated": False}
            for i, size in enumerate(sizes) for j in range(size)
        ]  # fmt: skip
        return group(pl.DataFrame(rows).sample(fraction=1, shuffle=True, seed=1), "sampler", None, "rm")[0][0].known

    assert known(3, 3, 8) == 3
    assert known(4, 4, 8, 8, 1) == 8
    assert known(1) == 1


def test_by_temperature(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[0.0, 1.0, 2.0, 5.0]] * 3}, temperature=lambda draw: [0.7, 1.0][draw % 2])
    found = curves(run, by="temperature")
    assert set(found.rows["group"]) == {"T=0.7", "T=1.0"}
    assert value(found, "max", "T=0.7", 2) == 2
    assert value(found, "max", "T=1.0", 2) == 5
    assert value(found, "max", "T=1.0", 2, "temperature") == 1.0
    whole = curves(run, by="none")
    assert value(whole, "max", "all", 4) == 5
    assert value(whole, "max", "all", 4, "temperature") is None


def test_a_range_of_temperatures_is_grouped_by_its_first_decimal(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[float(i) for i in range(20)]] * 2}, temperature=lambda draw: 1.0 + draw / 100)
    assert set(curves(run, by="temperature").rows["group"]) == {"T=1.0", "T=1.1", "T=1.2"}


def test_answers_that_nobody_drew_here_have_no_temperature_and_no_price(tmp_path: Path) -> None:
    unknown = dict.fromkeys(("temperature", "completion_tokens", "prompt_tokens", "logprob_sum", "top_p"))
    found = curves(make(tmp_path / "r", {"a": [[0.0, 1.0]] * 3}, **unknown), by="temperature", plan=[4])
    assert set(found.rows["group"]) == {"T unknown"}
    assert "completion_tokens" not in set(found.rows["curve"])
    assert any("were not counted" in note for note in found.notes)


def test_the_plan(tmp_path: Path) -> None:
    """Every prompt has reached the highest score of its group by 4 draws: there is nothing more to be had."""
    run = make(tmp_path / "r", {"cold": [[2.0, 2.0, 2.0, 3.0]] * 32, "hot": [[-1.0, -1.0, -1.0, 2.9]] * 32})
    found = curves(run, plan=[2, 4, 16])
    assert value(found, "max", "hot", 4, "extrapolated") is False
    assert value(found, "max", "hot", 16, "extrapolated") is True
    for column in ("value", "low", "high"):
        assert value(found, "max", "hot", 16, column) == pytest.approx(2.9)
        assert value(found, "lead", "cold", 16, column) == pytest.approx(0.1)
    assert value(found, "lead", "cold", 16, "extrapolated") is True
    assert value(found, "completion_tokens", "hot", 16) == pytest.approx(16 * 4.5)  # 3, 4, 5 and 6 tokens
    assert value(found, "completion_tokens", "hot", 16, "extrapolated") is False
    assert value(curves(run), "max", "hot", 2) == value(found, "max", "hot", 2)


def test_the_plan_beyond_what_is_measured(tmp_path: Path) -> None:
    """Half of the prompts have 1, 2, 2 and 4, half 2, 2, 4 and 4: each has 4 in the end, and some prompt has 6."""
    run = make(tmp_path / "r", {"a": [[1.0, 2.0, 2.0, 4.0], [2.0, 2.0, 4.0, 4.0]] * 15 + [[6.0, 0.0, 0.0, 0.0]] * 2})
    found = curves(run, plan=[16])
    # The best of 2 is 2, 2, 4, 2, 4, 4 in the six pairs of the first: 3; 2 and five times 4 in the second's: 11/3.
    # The best of 3 is 2 and three times 4: 3.5, and always 4. The two others: 3, 4.5 and 6.
    known = np.array([[(15 * 3 + 15 * 11 / 3 + 2 * 3) / 32, (15 * 3.5 + 15 * 4 + 2 * 4.5) / 32, (30 * 4 + 2 * 6) / 32]])
    assert [value(found, "max", "a", n) for n in (2, 3, 4)] == pytest.approx(known[0])
    likely, least, most = extrapolate(known, 6.0, 4, [16])
    assert value(found, "max", "a", 16) == pytest.approx(likely.item())
    # The interval holds both bounds, and what resampling the prompts makes of them.
    assert value(found, "max", "a", 16, "low") < least.item() < likely.item() < most.item()
    assert most.item() < value(found, "max", "a", 16, "high") <= 6


def test_groups_that_may_cross_beyond_what_is_measured_are_not_told_apart(tmp_path: Path) -> None:
    """Low is as high less a tenth, with the same noise: told apart at 4, and at 16 only where nothing else is known."""
    draws = np.random.default_rng(3).normal(size=(64, 4))
    run = make(tmp_path / "r", {"high": draws.tolist(), "low": (draws - 0.1).tolist()})
    found = curves(run, plan=[16])
    for n in (4, 16):
        assert value(found, "lead", "high", n) == pytest.approx(0.1)
    assert value(found, "lead", "high", 4, "low") == pytest.approx(0.1)
    # Low's most is further above low's likely than a tenth.
    width = value(found, "max", "high", 16, "high") - value(found, "max", "high", 16, "low")
    assert value(found, "lead", "high", 16, "low") < 0
    assert value(found, "lead", "high", 16, "high") - 0.1 < width
    far = curves(make(tmp_path / "s", {"high": draws.tolist(), "low": (draws - 9).tolist()}), plan=[16])
    assert value(far, "lead", "high", 16, "low") > 0


def test_how_far_a_plan_goes(tmp_path: Path) -> None:
    pilot = {"a": [[1.0], [2.0]], "b": [[1.0, 2.0, 3.0]] * 40, "c": [[0.0, 1.0, 2.0, i] for i in map(float, range(24))],
             "d": [[7.0] * 4] * 64, "e": [[0.0, 1.0, 2.0, i] for i in map(float, range(64))]}  # fmt: skip
    found = curves(make(tmp_path / "r", pilot), plan=[1, 12, 13, 32, 33])
    assert value(found, "max", "a", 1) == 1.5
    told = {name: [n for n in (12, 13, 32, 33) if value(found, "max", name, n) is not None] for name in pilot}
    # 24 x 4 / 8 = 12; 8 x 4 = 32.
    assert told == {"a": [], "b": [], "c": [12], "d": [], "e": [12, 13, 32]}
    said = "\n".join(found.notes)
    assert said.count("fewer than 4 candidates per prompt") == 2
    assert "c: what more than 12 would give is unknown, as 96 scores in total allow 96 / 8." in said
    assert "d: what more than 4 would give is unknown, as all scores are equal." in said
    assert "e: what more than 32 would give is unknown, as that is 8 times the samples that exist." in said
    assert found.rows.filter(pl.col("curve") == "lead")["n"].max() == 1  # the least that all are told for


def test_one_prompt_has_no_interval(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[1.0, 2.0]]}))
    assert value(found, "max", "a", 2) == 2
    assert value(found, "max", "a", 2, "low") is None
    assert "one prompt" in found.notes[0]


def test_right_and_wrong_are_pass_at_n(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]}))
    # 1 - C(3, 2) / C(4, 2) = 1/2 and 1 - 0 = 1.
    assert value(found, "pass", "a", 2) == pytest.approx(0.75)


@pytest.mark.parametrize("times", [1.0, 10.0])
def test_successes_beyond_what_is_measured(times: float, tmp_path: Path) -> None:
    """One success of four in half of the prompts: n / 8 up to 4, so the rest is taken to shrink evenly, by 2/3 in two.

    From 3/4 at 2 to 1/2 at 4; so at 16 it is 1/2 (2/3)^6. In units of ten it is ten times as much.
    """
    run = make(tmp_path / "r", {"a": [[0.0, times, 0.0, 0.0], [0.0] * 4] * 16})
    found = curves(run, plan=[16])
    assert value(found, "max", "a", 16) == pytest.approx(times * (1 - (2 / 3) ** 6 / 2))
    assert value(found, "max", "a", 16, "high") <= times
    assert found.rows.filter(pl.col("curve") == "pass").height == (5 if times == 1 else 0)


def test_a_proxy_that_is_over_optimised(tmp_path: Path) -> None:
    """Gold follows the proxy up to 3 and falls beyond: the best of one or two is good, the best of all is bad."""
    proxy = [[1.0, 2.0, 3.0, 9.0]] * 20
    gold = [[1.0 + i / 100, 2.0, 3.0, -5.0] for i in range(20)]
    found = curves(make(tmp_path / "r", {"a": proxy}, {"a": gold}), "rm", gold="gold")
    # Of two: 2, 3, -5, 3, -5, -5 in the six pairs.
    assert value(found, "gold", "a", 2) == pytest.approx(-7 / 6)
    assert value(found, "gold", "a", 4) == pytest.approx(-5)
    assert value(found, "gold_ceiling", "a", 4) == pytest.approx(3)
    first = (1.095 + 2 + 3 - 5) / 4
    assert value(found, "gold", "a", 1) == pytest.approx(first)
    assert value(found, "gold_fall", "a", 4) == pytest.approx(first + 5)
    assert value(found, "gold_fall", "a", 4, "low") > 0
    assert set(found.rows["scorer"]) == {"rm"}


def test_the_highest_of_many_is_not_told_to_have_fallen_by_chance(tmp_path: Path) -> None:
    """Gold is independent of the proxy. The interval of the fall is wider than that of an n which nobody chose."""
    proxy, gold = np.random.default_rng(105).normal(size=(2, 30, 16))
    run = make(tmp_path / "r", {"a": proxy.tolist()}, {"a": gold.tolist()})
    fall, low, high = (value(curves(run, "rm", gold="gold"), "gold_fall", "a", 16, c) for c in ("value", "low", "high"))
    by_n = best_of_n.value_of_best(proxy, gold, range(1, 17))
    lost = by_n[:, by_n.mean(axis=0).argmax()] - by_n[:, -1]
    assert fall == pytest.approx(lost.mean())
    one_low, one_high = bootstrap_interval(lost)
    assert low < 0 < one_low < fall < one_high < high


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    """A constant proxy chooses by lot: its gold is the mean at every n, but for the rounding of the weights."""
    gold = np.random.default_rng(1).normal(size=(20, 16)).tolist()
    same = {"a": [[0.3] * 16] * 20, "b": [[math.nextafter(0.3, 1)] * 16] * 20}
    found = curves(make(tmp_path / "r", same, {"a": gold, "b": gold}), "rm", gold="gold")
    for name in ("lead", "gold_lead"):
        lead = found.rows.filter(pl.col("curve") == name)
        assert lead.height == 16
        assert set(lead["group"]) == {"a"}
        for column in ("value", "low", "high"):
            assert set(lead[column]) == {0.0}
    assert value(found, "gold_fall", "a", 16) == 0


def test_scores_that_are_too_large_to_reckon_with(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[1e308, -1e308, 1.0, 2.0], [-1e100, 1e100, 0.0, 1.0]] * 20})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = curves(run, n=2, plan=[4])
    assert found.report.dropped == {"score_is_too_large": 40}
    # The best of 2 is 2, or 1e100 in three of six pairs.
    assert value(found, "max", "a", 2) == pytest.approx(2.5e99)


def test_gold_that_is_missing_is_counted(tmp_path: Path) -> None:
    gold = {"a": [[1.0, math.nan, 2.0], [1.0, 3.0, 2.0]]}
    found = curves(make(tmp_path / "r", {"a": [[1.0, 2.0, 3.0]] * 2}, gold), "rm", gold="gold", n=2)
    assert found.report.dropped == {"no_gold_score": 1}
    nothing = {"a": [[math.nan] * 3] * 2}
    run = make(tmp_path / "s", {"a": [[1.0, 2.0, 3.0], [1.0, 2.0, math.nan]]}, nothing)
    with pytest.raises(InputError, match="none of the 5 candidates that rm scored has a score by gold"):
        curves(run, "rm", gold="gold")


def test_the_same_text_again_is_a_draw_and_not_new(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[2.0, 1.0, 2.0]] * 2}, text=lambda draw: ["Good.", "Bad film.", " good. "][draw])
    found = curves(run)
    assert value(found, "max", "a", 2) == pytest.approx(2)
    assert value(found, "unique_share", "a", 3) == pytest.approx(2 / 3)
    # Shares 1/3 and 2/3 of the levels: the second is chosen of two unless both are the first, 8/9.
    wanted = 1 / 9 * math.log((1 / 9) / (1 / 3)) + 8 / 9 * math.log((8 / 9) / (2 / 3))
    assert value(found, "kl_empirical", "a", 2) == pytest.approx(wanted)


def test_beams_are_no_draws(tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[1.0, 2.0]]})
    fill(run, "candidates", "a", SampleSpec(model="a", search="beam"), [candidate("a", 0, draw) for draw in range(2)])
    assert any("beam search" in note for note in curves(run).notes)


def test_nothing_depends_on_the_order_of_rows_or_on_blocks(run: Run, monkeypatch) -> None:
    before = curves(run, gold="rm", plan=[8])
    monkeypatch.setattr(grouping, "_BLOCK", 4)
    read = grouping._compact
    monkeypatch.setattr(grouping, "_compact", lambda *given: read(*given).sample(fraction=1, shuffle=True, seed=3))
    after = curves(run, gold="rm", plan=[8])
    keys = ["curve", "group", "n"]
    for column in ("value", "low", "high"):
        one, other = (found.rows.sort(keys)[column].to_numpy() for found in (before, after))
        assert one == pytest.approx(other, abs=1e-9, nan_ok=True)


def test_scores_of_what_is_not_there(run: Run) -> None:
    fill(run, "candidates", "tuned", SampleSpec(model="tuned"), [candidate("tuned", 0, 0)])
    with pytest.raises(InputError, match=r"11 of 24 rows of scores/rm score candidates that are not in .* Run `prefd"):
        curves(run)


def test_a_candidate_that_two_processes_scored_is_one(run: Run) -> None:
    partition = run.partition("scores", "rm")
    before = curves(run)
    partition.reopen()
    partition.append(partition.read().slice(0, 5))
    assert curves(run, partial=True).rows.equals(before.rows)


def test_wrong_numbers(run: Run) -> None:
    for wrong in ({"plan": [0]}, {"plan": [LARGEST + 1]}, {"plan": [2**70]}, {"n": 0}, {"by": "model"}):
        with pytest.raises(UsageError):
            curves(run, **wrong)


def test_lots_are_of_one_size_and_few_prompts_are_their_own() -> None:
    assert bootstrap_blocks(7).tolist() == list(range(7))
    sizes = np.bincount(bootstrap_blocks(3 * LOTS + 5))
    assert sizes.size == LOTS
    assert set(sizes) == {3, 4}


def test_the_interval_of_many_prompts_is_that_of_the_mean() -> None:
    """Beyond LOTS prompts the interval is still 1.96 standard errors each way, though lots are resampled."""
    rates = np.sort(np.random.default_rng(5).exponential(size=50_000))  # sorted: lots must not be neighbours
    low, high = bootstrap_interval(rates)
    error = rates.std() / math.sqrt(rates.size)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)
    assert low < rates.mean() < high


def test_intervals_are_each_one_s_interval() -> None:
    values = np.random.default_rng(6).random((40, 3))
    low, high = bootstrap_intervals(values)
    for column in range(3):
        assert bootstrap_interval(values[:, column]) == pytest.approx((low[column], high[column]))
    assert np.isnan(bootstrap_intervals(values[:1])).all()


def test_the_page(prefdata, run: Run) -> None:
    code, out, err = prefdata("curves", run.path, "--plan", "2,6")
    assert (code, err) == (0, "")
    for said in ("best of n by rm", "tuned", "fewer than 4", "tokens", "significant", "24 in, 24 out", "self-BLEU"):
        assert said in out
    assert "\x1b" not in out
    assert "4.500" in out


def test_the_page_with_a_plan(prefdata, tmp_path: Path) -> None:
    draws = np.random.default_rng(3).normal(size=(32, 4))
    run = make(tmp_path / "r", {"high": draws.tolist(), "low": (draws - 0.1).tolist()})
    out = prefdata("curves", run.path, "--plan", "4,8,99")[1]
    plan = out[out.index("The plan") :]
    assert "; * is the best for this N" in plan
    assert re.search(r" 4 +high \* .* measured ", plan)
    assert re.search(r" 8 +high \(not significant\) .* extrapolated ", plan)
    assert re.search(r"99 +high +unknown ", plan)
    assert "note: low: what more than 16 would give is unknown" in plan
    assert "is the best" not in prefdata("curves", run.path, "--plan", "8")[1]


def test_the_page_has_the_exact_kl_where_scores_tie(prefdata, tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[0.0, 1.0, 0.0, 1.0]] * 3, "b": [[0.0, 1.0, 2.0, 3.0]] * 3}, temperature=0.7)
    of_a, of_b = prefdata("curves", run.path)[1].split("b: 3 prompts")
    # A coin: 0.131 for the best of 2, where the bound is 0.193.
    assert re.search(r"^2 .*0\.193 +0\.131", of_a, flags=re.MULTILINE)
    assert "these are" not in of_b
    assert "by the model" not in of_a
    assert "KL by" in prefdata("curves", make(tmp_path / "s", {"a": [[0.0, 1.0]]}).path)[1]


def test_the_page_with_gold(prefdata, tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[1.0, 2.0]] * 5}, {"a": [[1.0, 0.0]] * 5})
    out = prefdata("curves", run.path, "--scorer", "rm", "--gold", "gold")[1]
    assert "rm chooses, gold judges" in out
    assert "gold is highest at n = 1; at n = 2 it has lost 0.500 [0.500, 0.500]." in out
    gold = [[1.0, 0.0], [0.0, 0.9]] * 5
    run = make(tmp_path / "s", {"a": [[1.0, 2.0]] * 10}, {"a": gold})
    out = prefdata("curves", run.path, "--scorer", "rm", "--gold", "gold")[1]
    assert re.search(r"at n = 2 it has lost 0\.025 \[-0\..*\], not significant: the interval includes 0\.", out)


@pytest.mark.parametrize("form", ["table", "csv", "json", "jsonl", "markdown"])
def test_all_points_in_every_form(form: str, prefdata, run: Run) -> None:
    code, out, _ = prefdata("curves", run.path, "--format", form)
    assert code == 0
    assert out.count("unique_share") == 6


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_out(name: str, prefdata, run: Run, tmp_path: Path) -> None:
    assert prefdata("curves", run.path, "--out", tmp_path / name)[0] == 0
    reader = {"a.csv": pl.read_csv, "a.parquet": pl.read_parquet, "a.jsonl": pl.read_ndjson}[name]
    read = reader(tmp_path / name)
    assert read.columns == list(SCHEMA)
    assert read.height == curves(run).rows.height


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--plan", "8,many"], "--plan takes numbers separated by commas"),
        (["--plan", "0"], "0 candidates are not a number"),
        (["--plan", "9" * 26], f"{'9' * 26} candidates per prompt are too many to plan for: the maximum is 1,000,000."),
        (["-n", "9"], "the maximum is 3"),
        (["--scorer", "rmm"], 'Did you mean "rm"'),
        (["--gold", "truth"], "truth"),
        (["--sampler", "tund"], 'Did you mean "tuned"'),
        (["--by", "model"], "'model'"),
        (["--out", "points.xyz"], "points.xyz"),
        (["--out", "no/where.csv"], "cannot write no/where.csv"),
    ],
)
def test_wrong_usage(arguments: list[str], said: str, prefdata, run: Run) -> None:
    code, out, err = prefdata("curves", run.path, *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
