"""curves: from a run's scores to a table of what N and the temperature buy."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from explore.conftest import candidate, fill, prompt

from prefdata import ids
from prefdata.errors import InputError, UsageError
from prefdata.explore import groups as grouping
from prefdata.explore.bootstrap import LOTS, interval, intervals, lots
from prefdata.explore.curves import SCHEMA, curves
from prefdata.explore.groups import group
from prefdata.specs import IngestSpec, RankSpec, SampleSpec
from prefdata.store import Run


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
                key = {"candidate_id": row["candidate_id"], "prompt_id": row["prompt_id"]}
                judged["rm"].append({**key, "text_hash": ids.text_hash(row["text"]), "score": score})
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
    with pytest.raises(InputError, match="no prompt of a has 5 scored candidates; the most is 4"):
        curves(run, n=5)


def test_what_has_no_score_is_counted_and_no_number(tmp_path: Path) -> None:
    rows = [[1.0, None, 3.0], [math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0]]
    found = curves(make(tmp_path / "r", {"a": rows}))
    assert found.report.dropped == {"no_score": 1, "score_is_not_finite": 2}
    assert found.report.rows_out == 6
    assert value(found, "max", "a", 2) == pytest.approx((3 + 2 + 2) / 3)
    with pytest.raises(InputError, match="none of 2 candidates has a score"):
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
    assert any("Nobody counted" in note for note in found.notes)


def test_the_plan(tmp_path: Path) -> None:
    """Cold gains nothing more beyond 4, hot does: hot is behind at 4 and ahead at 16."""
    run = make(tmp_path / "r", {"cold": [[2.0, 2.0, 2.0, 3.0]] * 4, "hot": [[-1.0, -1.0, -1.0, 2.9]] * 4})
    found = curves(run, plan=[2, 4, 16])
    assert value(found, "max", "hot", 4, "extrapolated") is False
    assert value(found, "max", "hot", 16, "extrapolated") is True
    # Hot at 1, 2, 4: -1 + 3.9 / 4, / 2 and / 1, so gains 0.975 and 1.95 with the ratio 2: 3.9 and 7.8 more.
    assert value(found, "max", "hot", 16) == pytest.approx(2.9 + 3.9 + 7.8)
    assert value(found, "lead", "cold", 4) == pytest.approx(0.1)
    # Cold likewise: 1/4 and 1/2, then 1 and 2 more.
    assert value(found, "lead", "hot", 16) == pytest.approx(14.6 - 6)
    assert value(found, "lead", "hot", 16, "extrapolated") is True
    assert value(found, "lead", "hot", 16, "low") == pytest.approx(8.6)
    assert value(found, "completion_tokens", "hot", 16) == pytest.approx(16 * 4.5)  # 3, 4, 5 and 6 tokens
    assert value(found, "completion_tokens", "hot", 16, "extrapolated") is False
    assert value(curves(run), "max", "hot", 2) == value(found, "max", "hot", 2)
    assert "halves" not in set(found.rows["curve"])


def test_fewer_than_four_candidates_do_not_tell_what_more_would_bring(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[1.0], [2.0]], "b": [[1.0, 2.0, 3.0]] * 2}), plan=[1, 4])
    assert value(found, "max", "a", 1) == 1.5
    assert value(found, "max", "a", 4) is None
    assert value(found, "max", "b", 4) is None
    assert sum("fewer than 4 candidates" in note for note in found.notes) == 2


def test_one_prompt_has_no_interval(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[1.0, 2.0]]}))
    assert value(found, "max", "a", 2) == 2
    assert value(found, "max", "a", 2, "low") is None
    assert "one prompt" in found.notes[0]


def test_right_and_wrong_are_pass_at_n(tmp_path: Path) -> None:
    found = curves(make(tmp_path / "r", {"a": [[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]}), plan=[64])
    # 1 - C(3, 2) / C(4, 2) = 1/2 and 1 - 0 = 1.
    assert value(found, "pass", "a", 2) == pytest.approx(0.75)
    assert value(found, "pass", "a", 64) == 1  # the line goes on above 1, a share cannot
    assert value(found, "max", "a", 64) == 1


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


def test_gold_that_is_missing_is_counted(tmp_path: Path) -> None:
    gold = {"a": [[1.0, math.nan, 2.0], [1.0, 3.0, 2.0]]}
    found = curves(make(tmp_path / "r", {"a": [[1.0, 2.0, 3.0]] * 2}, gold), "rm", gold="gold", n=2)
    assert found.report.dropped == {"no_gold_score": 1}


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
    partition.append(partition.read().slice(0, 5))
    assert curves(run).rows.equals(before.rows)


def test_wrong_numbers(run: Run) -> None:
    for wrong in ({"plan": [0]}, {"n": 0}, {"by": "model"}):
        with pytest.raises(UsageError):
            curves(run, **wrong)


def test_lots_are_of_one_size_and_few_prompts_are_their_own() -> None:
    assert lots(7).tolist() == list(range(7))
    sizes = np.bincount(lots(3 * LOTS + 5))
    assert sizes.size == LOTS
    assert set(sizes) == {3, 4}


def test_the_interval_of_many_prompts_is_that_of_the_mean() -> None:
    """Beyond LOTS prompts the interval is still 1.96 standard errors each way, though lots are resampled."""
    rates = np.sort(np.random.default_rng(5).exponential(size=50_000))  # sorted: lots must not be neighbours
    low, high = interval(rates)
    error = rates.std() / math.sqrt(rates.size)
    assert (high - low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.06)
    assert low < rates.mean() < high


def test_intervals_are_each_one_s_interval() -> None:
    values = np.random.default_rng(6).random((40, 3))
    low, high = intervals(values)
    for column in range(3):
        assert interval(values[:, column]) == pytest.approx((low[column], high[column]))
    assert np.isnan(intervals(values[:1])).all()


def test_the_page(prefdata, run: Run) -> None:
    code, out, err = prefdata("curves", run.path, "--plan", "2,6")
    assert (code, err) == (0, "")
    for said in ("best of n by rm", "tuned", "fewer than 4", "tokens", "told apart", "24 in, 24 out", "self-BLEU"):
        assert said in out
    assert "\x1b" not in out
    assert "4.500" in out


def test_the_page_with_a_plan(prefdata, tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[0.0, 1.0, 2.0, 5.0]] * 5})
    out = prefdata("curves", run.path, "--plan", "4,8")[1]
    assert "measured" in out
    assert "extrapolated" in out


def test_the_page_with_gold(prefdata, tmp_path: Path) -> None:
    run = make(tmp_path / "r", {"a": [[1.0, 2.0]] * 5}, {"a": [[1.0, 0.0]] * 5})
    out = prefdata("curves", run.path, "--scorer", "rm", "--gold", "gold")[1]
    assert "rm chooses, gold judges" in out
    assert "gold is highest at n = 1; at n = 2 it has lost 0.500 [0.500, 0.500]." in out


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
        (["--plan", "8,many"], "--plan takes numbers with commas"),
        (["--plan", "0"], "0 candidates are not a number"),
        (["-n", "9"], "the most is 3"),
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
