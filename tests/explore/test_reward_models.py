"""eval reward-model: figures that can be worked out by hand, from files and from runs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from prefdata import IngestSpec, PairSpec, Run, ingest, pair
from prefdata.errors import InputError
from prefdata.explore.reward_models import evaluate, from_data, stored_pairs, write_rows
from prefdata.stats.proportions import wilson

FUNCTION = "def score(messages, response):\n    return None if response == 'none' else float(len(response))\n"

ROWS = [
    {"prompt": "Q1", "chosen": "aaaa", "rejected": "a", "source": "x"},  # margin 3
    {"prompt": "Q2", "chosen": "aa", "rejected": "aaa", "source": "x"},  # margin -1
    {"prompt": "Q3", "chosen": "ab", "rejected": "ba", "source": "y"},  # a tie
    {"prompt": "Q4", "chosen": "none", "rejected": "a", "source": "y"},  # no score
]


@pytest.fixture
def data(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "f.py").write_text(FUNCTION)
    return tmp_path


@pytest.fixture
def judged(data):
    pairs = from_data(data / "pairs.jsonl")
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    return pairs, {s.key: None if s.response == "none" else float(len(s.response)) for s in sides}


def test_accuracy_counts_a_tie_as_half_and_says_what_has_no_score(judged):
    found = evaluate(*judged).accuracy.to_dicts()
    assert [(r["group"], r["value"], r["pairs"], r["unscored"], r["ties"], r["accuracy"]) for r in found] == [
        ("all", "", 4, 1, 1, 0.5),
        ("source", "x", 2, 0, 0, 0.5),
        ("source", "y", 2, 1, 1, 0.5),
    ]
    assert (found[0]["low"], found[0]["high"]) == pytest.approx(wilson(0.5, 3))
    assert found[0]["longer"] == 0.5  # the length is the score here, and of the scored pairs the same is counted
    assert found[0]["mean_margin"] == pytest.approx(2 / 3)


def test_wilson_by_hand():
    # 8 of 10 (Wilson 1927): (0.49, 0.94)
    assert wilson(0.8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(1.0, 10)[1] == pytest.approx(1.0)
    assert wilson(0.0, 10)[0] == pytest.approx(0.0)


def test_calibration_margins_and_length_by_hand(judged):
    found = evaluate(*judged)
    confidence = [1 / (1 + math.exp(-m)) for m in (3, 1, 0)]
    # 0.95 lies in its own bin and is right, 0.73 in its own and is wrong, 0.5 is a tie and half right
    assert found.ece == pytest.approx(((1 - confidence[0]) + confidence[1] + 0) / 3)
    assert found.reliability["pairs"].to_list() == [1, 1, 1]
    assert found.margins["q50"] == 0
    assert found.length["longer_answer"] == 0.5
    assert found.length["correlation_score_length"] == pytest.approx(1)
    assert (found.length["model_where_chosen_is_longer"], found.length["model_where_chosen_is_shorter"]) == (1, 0)


def test_other_samplers_answers_are_held_against_the_labelled_ones(judged):
    found = evaluate(*judged, {"policy": [10.0, 12.0]}).distributions
    labelled = np.array([4, 2, 2, 1, 3, 2])
    rows = {row["answers_of"]: row for row in found.to_dicts()}
    assert rows["sampler policy"]["mean"] == 11
    assert rows["sampler policy"]["shift"] == pytest.approx((11 - labelled.mean()) / labelled.std())
    assert rows["chosen"]["answers"] == 3


def test_nothing_with_two_scores_is_an_error(judged):
    with pytest.raises(InputError, match="none of the 4 pairs has a score for both"):
        evaluate(judged[0], {})


def test_rows_hold_scores_and_verdicts(judged, tmp_path):
    write_rows(tmp_path / "rows.jsonl", *judged)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(r["chosen_score"], r["rejected_score"], r["margin"], r["correct"]) for r in rows] == [
        (4, 1, 3, True),
        (2, 3, -1, False),
        (2, 2, 0, None),
        (None, 1, None, None),
    ]
    assert rows[0]["prompt"] == [{"role": "user", "content": "Q1"}]
    with pytest.raises(InputError, match="cannot write"):
        write_rows(tmp_path / "none" / "rows.jsonl", *judged)


def test_the_command_takes_a_function_or_a_model_and_one_file(data, prefdata, tiny_reward_model):
    code, out, _ = prefdata(
        "eval", "reward-model", f"{data}/f.py:score", data / "pairs.jsonl", "--rows", data / "rows.jsonl", "-f", "json"
    )
    assert code == 0
    assert json.loads(out)["accuracy"][0]["accuracy"] == 0.5
    assert len((data / "rows.jsonl").read_text().splitlines()) == 4
    code, out, err = prefdata("eval", "reward-model", tiny_reward_model, data / "pairs.jsonl", "--device", "cpu")
    assert code == 0, err
    assert out.startswith("accuracy (a tie is half)")
    code, out, err = prefdata("eval", "reward-model", "nowhere", data / "pairs.jsonl")
    assert code == 2
    assert "nowhere" in err


def test_a_runs_scores_and_pairs_need_no_model(data, prefdata, tiny_policy):
    run = data / "run"
    (data / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"Say {i}."}) + "\n" for i in range(6)))
    for step in (
        ("ingest", run, data / "prompts.jsonl"),
        ("sample", run, "--model", tiny_policy, "-n", "4", "--max-tokens", "20", "--name", "tiny", "--device", "cpu"),
        ("rank", run, "--function", f"{data}/f.py:score", "--name", "length"),
        ("pair", run, "--selector", "all", "--scorer", "length", "--name", "p", "--min-margin", "0.5"),
    ):
        code, _, err = prefdata(*step)
        assert code == 0, err
    code, out, err = prefdata("eval", "reward-model", "length", run, "-f", "json")
    assert code == 0, err
    found = json.loads(out)
    assert found["accuracy"][0]["accuracy"] == 1.0
    assert {row["answers_of"] for row in found["distributions"]} == {"chosen", "rejected", "sampler tiny"}
    # the same pairs, scored anew by a function
    code, out, err = prefdata("eval", "reward-model", f"{data}/f.py:score", run, "-f", "json")
    assert code == 0, err
    assert json.loads(out)["margins"] == pytest.approx(found["margins"])
    # settings of files are refused, and not passed over
    code, _, err = prefdata("eval", "reward-model", "length", run, "--limit", "3")
    assert (code, "is a run: leave out how files are read" in err) == (2, True)


def test_pairs_of_one_prompt_are_not_independent(data):
    """The pairs of two prompts, one right and one wrong, three times each: the interval of two pairs, not of six."""
    (data / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:2]))
    pairs = from_data(data / "more.jsonl") * 3
    scores = {side.key: float(len(side.response)) for pair in pairs for side in (pair.chosen, pair.rejected)}
    found = evaluate(pairs, scores).accuracy.to_dicts()[0]
    assert found["pairs"] == 6
    assert (found["low"], found["high"]) == pytest.approx(wilson(0.5, 2))


def test_rows_of_a_run_hold_their_prompts(tmp_path):
    run, file = Run(tmp_path / "run"), tmp_path / "x.jsonl"
    file.write_text(json.dumps({"prompt": "Q", "responses": ["aaaa", "a"], "score": [4, 1]}) + "\n")
    ingest(run, [str(file)], IngestSpec(kind="candidates", score=("s=score",)))
    pair(run, PairSpec(selector="all"))
    pairs, scores = stored_pairs(run, "s")
    write_rows(tmp_path / "rows.jsonl", pairs, scores)
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["prompt"] == [{"role": "user", "content": "Q"}]
    assert (row["chosen"], row["margin"]) == ("aaaa", 3)
