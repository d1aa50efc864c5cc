"""explain for two answers: every reason why they are no pair, and that a pair is one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from scored_runs import score_of

from prefdata import PairSpec, Run, SelectSpec, ids, pair, select
from prefdata.errors import InputError, NotReady, UsageError
from prefdata.pairs.explain import explain_pair
from prefdata.specs import Spec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage

PROMPT, OTHER = ids.digest("prompt"), ids.digest("another prompt")


class Made(Spec):
    step = "made"


def put(run: Run, table: str, name: str, rows: list[dict[str, Any]]) -> None:
    partition = run.partition(table, name)
    partition.begin(Lineage.of(Made()))
    partition.append(partition.table.from_rows(rows))
    partition.finish(Report(step="made", unit="rows", rows_in=len(rows), rows_out=len(rows)))


def named(name: str) -> str:
    return ids.digest(name)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """One prompt with the answers a (9), b (7), c (7), d (1), e (cut off, 8), f (empty, 0), g (no score)."""
    run = Run(tmp_path / "run")
    scores = {"a": 9.0, "b": 7.0, "c": 7.0, "d": 1.0, "e": 8.0, "f": 0.0, "g": None, "h": 3.0, "h2": 4.0}
    candidates, scored = [], []
    for i, (name, score) in enumerate(scores.items()):
        key = {"candidate_id": named(name), "prompt_id": OTHER if name.startswith("h") else PROMPT}
        text = {"f": " ", "c": "answer c"}.get(name, f"answer {name}")
        more = {"sample_index": i, "text": text, "status": "ok", "model": "m", "engine": "ingest", "round": 0}
        candidates.append({**key, **more, "finish_reason": "length" if name == "e" else "stop"})
        scored.append(score_of(candidates[-1], "policy", score))
    messages = [{"role": "user", "content": "?"}]
    asked = [{"prompt_id": p, "messages": messages, "tags": [], "split": "train"} for p in (PROMPT, OTHER)]
    put(run, "prompts", "asked", asked)
    put(run, "candidates", "policy", candidates)
    put(run, "scores", "rm", scored)
    return run


def why(run: Run, first: str, second: str, **said: Any) -> str | None:
    pair(run, PairSpec(selector="all", name="asked", **said), replace=True)
    return explain_pair(run, named(first), named(second), "asked").reason


@pytest.mark.parametrize(
    ("first", "second", "said", "reason"),
    [
        ("a", "d", {}, None),
        ("d", "a", {}, None),
        ("a", "b", {}, "not_proposed"),
        ("b", "c", {"strategy": "all"}, "tie"),
        ("a", "b", {"strategy": "all", "min_margin": 3.0}, "margin"),
        ("a", "d", {"strategy": "all", "max_margin": 3.0}, "max_margin"),
        ("e", "d", {"strategy": "all"}, "chosen_truncated"),
        ("e", "d", {"strategy": "all", "truncated": "drop"}, "truncated"),
        ("a", "f", {"strategy": "all"}, "empty"),
        ("a", "g", {"strategy": "all"}, "no_score"),
        ("a", "b", {"strategy": "all", "max_pairs_per_prompt": 1}, "per_prompt_limit"),
        ("a", "b", {"strategy": "all", "max_per_candidate": 1}, "per_candidate_limit"),
        ("a", "d", {"strategy": "all", "where": "sample_index > 0"}, "where"),
        ("a", "d", {"strategy": "all", "max_chars": 3}, "too_long"),
    ],
)
def test_every_reason(run: Run, first: str, second: str, said: dict[str, Any], reason: str | None) -> None:
    assert why(run, first, second, **said) == reason


def test_what_was_not_selected(run: Run) -> None:
    select(run, SelectSpec(method="top-k", k=2))
    pair(run, PairSpec(strategy="all"))
    found = explain_pair(run, named("a"), named("d"))
    assert (found.reason, set(found.absent)) == ("not_selected", {named("d")})
    assert explain_pair(run, named("b")[:12], named("a")[:12]).reason is None


def test_left_out_by_lot(run: Run) -> None:
    put(run, "prompts", "alone", [])
    told = [why(run, a, b, strategy="all", balance="sampler") for a, b in (("a", "d"), ("h", "h2"))]
    assert told == [None, None]  # one sampler is in balance with itself


def test_what_cannot_be_asked(run: Run) -> None:
    with pytest.raises(NotReady, match="prefdata pair"):
        explain_pair(run, named("a"), named("d"))
    pair(run, PairSpec(selector="all"))
    with pytest.raises(InputError, match="has no candidate 'zz'"):
        explain_pair(run, "zz", named("a"))
    with pytest.raises(InputError, match="candidates begin with ''"):
        explain_pair(run, "", named("a"))
    with pytest.raises(InputError, match="a pair has one prompt"):
        explain_pair(run, named("a"), named("h"))
    with pytest.raises(UsageError, match="no pairs named 'alll-rm'"):
        explain_pair(run, named("a"), named("d"), "alll-rm")


def test_the_command_says_it_in_words(run: Run, prefdata) -> None:
    pair(run, PairSpec(selector="all"))
    code, out, _ = prefdata("explain", run, named("a"), named("b"))
    assert code == 0
    assert "the strategy does not propose them" in out
    code, out, _ = prefdata("explain", run, named("d"), named("a"))
    assert out.startswith(f"pair {ids.pair_id(named('a'), named('d'))} of all-rm")
    code, out, _ = prefdata("explain", run, named("a"), named("g"))
    assert f"{named('g')} has no score" in out
    code, _, err = prefdata("explain", run, "1", "2", "3")
    assert (code, err.count("\n")) == (2, 1)


def test_why_something_was_not_selected(run: Run, prefdata) -> None:
    select(run, SelectSpec(method="top-k", k=2))
    pair(run, PairSpec(strategy="all"))
    for name, said in {
        "d": "was not selected by top-k-2: it was eligible and not kept by the method",
        "e": "was not selected by top-k-2: it was truncated by --max-tokens",
        "g": "was not selected by top-k-2: it has no score",
    }.items():
        code, out, _ = prefdata("explain", run, named("a"), named(name))
        assert (code, out.splitlines()[-1]) == (0, f"{named(name)} {said}")


def test_a_prompt_without_any_score(run: Run) -> None:
    unscored = ids.digest("unscored")
    row = {"prompt_id": unscored, "status": "ok", "model": "m", "engine": "ingest", "round": 0, "finish_reason": "stop"}
    rows = [{**row, "candidate_id": named(f"u{i}"), "sample_index": i, "text": f"text {i}"} for i in range(2)]
    put(run, "candidates", "more", rows)
    assert why(run, "u0", "u1") == "not_scored"


def test_one_answer_given_twice(run: Run, prefdata) -> None:
    pair(run, PairSpec(selector="all"))
    for again in (named("a"), named("a")[:12]):
        code, out, err = prefdata("explain", run, named("a"), again)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"the same answer twice ({named('a')})" in err


def test_answers_that_are_gone(run: Run) -> None:
    pair(run, PairSpec(selector="all"))
    shutil.rmtree(run.path / "candidates")
    run.partition("candidates", "begun").begin(Lineage.of(Made()))
    with pytest.raises(InputError, match=f"has no candidate '{named('a')}'"):
        explain_pair(run, named("a"), named("d"))


def test_what_is_stored_is_a_pair_whatever_became_of_its_selection(run: Run) -> None:
    select(run, SelectSpec(method="top-k", k=4, name="best"))
    pair(run, PairSpec(selector="best", strategy="all"))
    assert explain_pair(run, named("a"), named("d")).reason is None
    select(run, SelectSpec(method="top-k", k=2, name="best"), replace=True)
    assert explain_pair(run, named("a"), named("d")).reason is None
    assert explain_pair(run, named("b"), named("c")).reason == "not_selected"  # a tie then; now c is not there
    select(run, SelectSpec(method="top-k", k=5, name="best", truncated="keep"), replace=True)
    assert explain_pair(run, named("a"), named("e")).reason == "changed"


def test_a_selection_may_have_any_name(run: Run) -> None:
    """One that begins with `all-` is no selector `all`."""
    select(run, SelectSpec(method="top-k", k=2, name="all-rm"))
    pair(run, PairSpec(selector="all-rm", strategy="all", name="x"))
    assert explain_pair(run, named("a"), named("d")).reason == "not_selected"
    assert explain_pair(run, named("a"), named("b")).source == "selections/all-rm"
    pair(run, PairSpec(selector="all", strategy="all", name="x"), replace=True)
    assert explain_pair(run, named("a"), named("d")).source == "scores/rm"


def test_compared_without_a_verdict(run: Run, prefdata) -> None:
    said = [("a", "b", "first", 1.0, "for its words"), ("a", "d", "too_long", None, None), ("b", "d", "tie", 0.5, None)]
    rows = [
        {"first_id": named(one), "second_id": named(other), "prompt_id": PROMPT, "order": "second-first",
         "annotator": "ann", "probability": probability, "verdict": verdict, "rationale": why}
        for one, other, verdict, probability, why in said
    ]  # fmt: skip
    put(run, "comparisons", "ann", rows)
    report = pair(run, PairSpec(strategy="comparisons", name="x")).report
    assert (report.rows_in, report.rows_out, report.dropped) == (3, 1, {"no_verdict": 1, "tie": 1})
    assert explain_pair(run, named("d"), named("a")).reason == "no_verdict"
    a, b, d = (named(one)[:8] for one in "abd")
    for one, other, wanted in (
        ("a", "d", [f"they were compared, without a verdict\n\njudgments:\n  ann, shown {d} and then {a}: too long\n"]),
        ("b", "d", ["the verdicts are a tie, which is not a preference\n", f"  ann, shown {d} and then {b}: tie "]),
        ("a", "b", [f"  ann, shown {b} and then {a}: prefers {a} (1.000 that {a} is better): for its words\n"]),
    ):
        code, out, _ = prefdata("explain", run.path, named(one), named(other))
        assert code == 0
        assert "judgments:" in out
        assert all(part in out for part in wanted)


def test_verdicts_about_whoever_takes_no_part_are_counted(run: Run) -> None:
    row = {"first_id": named("h"), "second_id": named("h2"), "prompt_id": OTHER, "order": "first-second"}
    put(run, "comparisons", "ann", [{**row, "annotator": "ann", "probability": 1.0, "verdict": "first"}])
    assert pair(run, PairSpec(strategy="comparisons", name="x")).report.rows_out == 1
    put(run, "candidates", "hot", [])
    report = pair(run, PairSpec(strategy="comparisons", name="y", sampler=("hot",))).report
    assert (report.rows_in, report.rows_out, report.dropped) == (1, 0, {"answer_left_out": 1})
