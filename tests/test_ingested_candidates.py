"""Answers that exist already: stored as candidates, and ranked, selected, paired, exported beside sampled ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from prefdata import ids
from prefdata.errors import BadRows, InputError, SpecConflict, UsageError
from prefdata.exports.export import export
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.selections.select import select
from prefdata.specs import ExportSpec, IngestSpec, PairSpec, RankSpec, SelectSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import CANDIDATES

USER = {"role": "user", "content": "Hi"}
AS = IngestSpec(kind="candidates", source="films")
Write = Callable[..., str]


def answers(run: Run) -> dict[str, list[tuple[str, int, str, str]]]:
    """(prompt, index, text, model) of each sampler."""
    asked = {
        row["prompt_id"]: row["messages"][-1]["content"] for p in run.all("prompts") for row in p.read().to_pylist()
    }
    return {
        p.name: [(asked[r["prompt_id"]], r["sample_index"], r["text"], r["model"]) for r in p.read().to_pylist()]
        for p in run.all("candidates")
    }


def test_each_kind_is_a_sampler(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    file = write(
        {"prompt": "a", "chosen": "good", "rejected": "", "answer": "ref", "chosen_model": "m"},
        {"prompt": "b", "responses": ["x", "y"]},
        {"prompt": "a", "chosen": "better", "rejected": "bad"},
    )
    outcome = ingest(run, [file], AS)
    assert answers(run) == {
        "films-chosen": [("a", 0, "good", "m"), ("a", 1, "better", "chosen")],
        "films-rejected": [("a", 0, "", "rejected"), ("a", 1, "bad", "rejected")],
        "films-reference": [("a", 0, "ref", "reference")],
        "films-response": [("b", 0, "x", "response"), ("b", 1, "y", "response")],
    }
    assert outcome.did == "made"
    assert (outcome.report.rows_in, outcome.report.rows_out, outcome.report.dropped) == (3, 2, {"same_prompt": 1})
    counts = {name: outcome.report.figures[name] for name in ("chosen", "rejected", "reference", "response")}
    assert counts == {"chosen": 2, "rejected": 2, "reference": 1, "response": 2}
    assert run.only("prompts").read()["reference"].to_pylist() == ["ref", None]


def test_a_row_of_the_table(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    ingest(run, [write({"prompt": "Hi", "response": "", "model": "m"})], AS)
    partition = run.only("candidates")
    (row,) = partition.read().to_pylist()
    key, lineage = ids.prompt_id([USER]), partition.lineage()
    assert lineage is not None
    filled = {
        "candidate_id": ids.candidate_id(key, lineage.fingerprint, 0),
        "prompt_id": key,
        "sample_index": 0,
        "text": "",
        "text_key": ids.text_key(""),
        "chars": 0,
        "status": "ok",
        "model": "m",
        "engine": "ingest",
        "round": 0,
    }
    assert row == {**dict.fromkeys(CANDIDATES.schema.names), **filled}


def test_the_same_answer_of_another_row_is_a_duplicate(tmp_path: Path, write: Write) -> None:
    """Of another model it is not, nor is a draw that came out like another one of the same row."""
    run = Run(tmp_path / "run")
    rows = [
        {"prompt": "a", "responses": ["x", "y", "x"], "rewards": [1, 2, 1]},
        {"prompt": "a", "response": "x"},
        {"prompt": "a", "response": "x", "model": "m"},
        {"prompt": "b", "response": "x"},
    ]
    report = ingest(run, [write(*rows)], AS).report
    assert answers(run)["films-response"] == [
        ("a", 0, "x", "response"),
        ("a", 1, "y", "response"),
        ("a", 2, "x", "response"),
        ("a", 3, "x", "m"),
        ("b", 0, "x", "response"),
    ]
    assert (report.figures["response"], report.figures["duplicate_responses"]) == (5, 1)
    success = run.only("candidates").success()
    assert success is not None
    assert (success.report.rows_in, success.report.rows_out, success.report.dropped) == (6, 5, {"duplicate": 1})
    with pytest.raises(BadRows, match=r"(?s)1 bad row\. Duplicates.*:2: the same response as .*films\.jsonl:1"):
        ingest(Run(tmp_path / "other"), [write(*rows)], AS.model_copy(update={"on_duplicates": "error"}))


@pytest.mark.parametrize("given", [{"response": None}, {}, {"response": None, "model": "m"}])
def test_a_score_without_a_response_is_a_row_without_responses(
    tmp_path: Path, write: Write, given: dict[str, Any]
) -> None:
    """A model that gave no answer is marked wrong in many tables; its row was a bad one."""
    rows = [{"prompt": "a", "response": "x", "right": True}, {"prompt": "b", **given, "right": False}]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows)], AS.model_copy(update={"score": ("right",)})).report
    assert report.figures["rows_without_responses"] == 1
    assert run.only("scores").read(["score"])["score"].to_pylist() == [1.0]


def test_what_is_lost_or_missing_is_counted(tmp_path: Path, write: Write) -> None:
    rows = [
        {"prompt": "a", "responses": ["x", "z"], "topic": 1},
        {"prompt": "a", "responses": ["y", "w"], "topic": 2},
        {"prompt": "b"},
        {"prompt": "c", "response": "half \ud83d"},
    ]
    report = ingest(Run(tmp_path / "run"), [write(*rows)], AS).report
    assert report.figures["metadata_not_kept"] == 1
    assert report.figures["rows_without_responses"] == 1
    assert answers(Run(tmp_path / "run"))["films-response"][-1][2] == "half \ufffd"


def test_bad_rows_are_told_and_nothing_is_written(tmp_path: Path, write: Write) -> None:
    file = write(
        {"prompt": "a", "chosen": "x"}, {"prompt": " ", "chosen": "x"}, {"prompt": "b", "chosen": 3}, {"chosen": "x"}
    )
    with pytest.raises(BadRows) as caught:
        ingest(Run(tmp_path / "run"), [file], AS)
    assert [row.row for row in caught.value.rows] == [2, 3, 4]
    assert not (tmp_path / "run").exists()
    dropping = AS.model_copy(update={"on_bad_rows": "drop"})
    report = ingest(Run(tmp_path / "run"), [file], dropping).report
    assert report.dropped == {"empty_content": 1, "not_text": 1, "no_prompt": 1}
    assert answers(Run(tmp_path / "run")) == {"films-chosen": [("a", 0, "x", "chosen")]}


def test_a_file_without_answers(tmp_path: Path, write: Write) -> None:
    with pytest.raises(InputError, match=r"no row holds a response \(layout prompt, no responses\)"):
        ingest(Run(tmp_path / "run"), [write({"prompt": "a"})], AS)
    assert not (tmp_path / "run").exists()


def test_the_same_again_and_other_answers(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    rows = [{"prompt": "a", "chosen": "x", "rejected": "y"}, {"prompt": "b", "chosen": "x", "rejected": "y"}]
    ingest(run, [write(*rows)], AS)
    before = answers(run)
    assert ingest(run, [write(*rows)], AS).did == "kept"
    (run.partition("candidates", "films-rejected").path / "_SUCCESS").unlink()
    assert ingest(run, [write(*rows)], AS).did != "kept"  # stopped between the two: the same command ends it
    assert answers(run) == before
    other = write(rows[0], {**rows[1], "chosen": "z"})
    with pytest.raises(SpecConflict, match="was made with other settings"):
        ingest(run, [other], AS)
    with pytest.raises(SpecConflict, match="kind: 'candidates' -> 'prompts'"):
        ingest(run, [other], IngestSpec(kind="prompts", source="films"))
    assert answers(run) == before
    ingest(run, [write({"prompt": "a", "chosen": "z"})], AS, replace=True)
    assert answers(run) == {"films-chosen": [("a", 0, "z", "chosen")]}


def test_the_same_answers_of_two_sources_are_two_samplers(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    file = write({"prompt": "a", "chosen": "x", "rejected": "x"})
    ingest(run, [file], AS)
    ingest(run, [file], AS.model_copy(update={"source": "more"}))
    keys = [row["candidate_id"] for p in run.all("candidates") for row in p.read().to_pylist()]
    assert len(set(keys)) == len(keys) == 4


def test_a_sampler_of_that_name_is_refused_before_anything_is_written(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    run.partition("candidates", "films-rejected").begin(Lineage.of(RankSpec(function="x")))
    with pytest.raises(SpecConflict, match="films-rejected was made by `prefdata rank`"):
        ingest(run, [write({"prompt": "a", "chosen": "x", "rejected": "y"})], AS)
    assert [p.name for p in run.partitions("candidates")] == ["films-rejected"]
    assert run.partitions("prompts") == []


def test_instructions_are_for_prompts(tmp_path: Path, write: Write) -> None:
    with pytest.raises(UsageError, match="existing responses"):
        IngestSpec.parse({"kind": "candidates", "instructions": "gatt"})


def sampled(run: Run) -> None:
    """Two answers to every prompt as a sampler would store them, the longer one cut off."""
    prompts = run.only("prompts").read(["prompt_id"])["prompt_id"].to_pylist()
    rows = [
        {
            "candidate_id": ids.candidate_id(key, "policy", i),
            "prompt_id": key,
            "sample_index": i,
            "text": text,
            "token_ids": [5],
            "status": "ok",
            "finish_reason": reason,
            "completion_tokens": 1,
            "model": "policy",
            "engine": "transformers",
            "seed": i,
            "round": 0,
        }
        for key in prompts
        for i, (text, reason) in enumerate([("four", "stop"), ("seven long words that never come to an", "length")])
    ]
    partition = run.partition("candidates", "policy")
    partition.begin(Lineage.of(RankSpec(function="policy")))
    partition.append(CANDIDATES.from_rows(rows))
    partition.finish(Report(step="sample", unit="candidates", rows_in=len(rows), rows_out=len(rows)))


def test_side_by_side_with_sampled_ones(tmp_path: Path, write: Write, prefdata: Any) -> None:
    """By length the best is a whole ingested answer, for the sampled one that is longer was cut off."""
    run = Run(tmp_path / "run")
    system, tools = {"role": "system", "content": "Be brief"}, [{"type": "function", "function": {"name": "f"}}]
    asked = [system, USER, {"role": "assistant", "content": "a"}, {"role": "user", "content": "More"}]
    rows = [
        {"prompt": asked, "chosen": "the longest", "rejected": "", "tools": tools, "split": "train"},
        {"prompt": [USER], "chosen": "no", "rejected": "longest", "split": "train"},
    ]
    ingest(run, [write(*rows)], AS)
    sampled(run)
    function = tmp_path / "score.py"
    function.write_text("def length(messages, response):\n    return len(response)\n")
    done = rank(run, RankSpec(function=f"{function}:length"))
    assert done.report.figures["scored"] == 8
    best = select(run, SelectSpec(method="best-of-n", scorer="length"))
    assert best.report.dropped["truncated"] == 2
    chosen = {row["candidate_id"]: row for p in run.all("candidates") for row in p.read().to_pylist()}
    kept = [chosen[row["candidate_id"]]["text"] for row in run.only("selections").read().to_pylist()]
    assert sorted(kept) == ["longest", "the longest"]
    pair(run, PairSpec(selector="all", scorer="length"))
    pairs = run.only("pairs").read().to_pylist()
    texts = {(chosen[row["chosen_id"]]["text"], chosen[row["rejected_id"]]["text"]) for row in pairs}
    assert texts == {("the longest", "four"), ("longest", "no")}  # an empty answer is scored, and teaches nothing
    code, out, err = prefdata("explain", run, next(row["pair_id"] for row in pairs if row["margin"] == 5))
    assert (code, err) == (0, "")
    assert "  longest\n  by films-rejected (rejected, ingest), sample 0\n" in out
    export(run, ExportSpec(dialect="trl"), tmp_path / "trl")
    rows_out = pq.read_table(tmp_path / "trl" / "data" / "train-00000-of-00001.parquet").to_pylist()
    (with_tools,) = [row for row in rows_out if row["prompt"] == asked]
    assert json.loads(with_tools["tools"]) == tools
    assert with_tools["chosen"] == [{"role": "assistant", "content": "the longest"}]
    card = (tmp_path / "trl" / "README.md").read_text()
    assert "`candidates/films-chosen`: the answers, by `prefdata ingest`" in card
    assert "`prompts/films`: the prompts, by `prefdata ingest`" in card


def test_the_command(tmp_path: Path, write: Write, prefdata: Any) -> None:
    file = write({"prompt": "a", "chosen": "x", "rejected": "y"})
    code, out, err = prefdata("ingest", tmp_path / "run", file, "--as", "candidates", "--source", "pairs")
    assert (code, err) == (0, "")
    assert "  chosen  " in out
    assert "  rejected" in out
    assert list(answers(Run(tmp_path / "run"))) == ["pairs-chosen", "pairs-rejected"]
    code, out, _ = prefdata("ingest", tmp_path / "run", file, "--as", "candidates", "--print-config")
    assert "  as: candidates\n" in out
    config = tmp_path / "run.yaml"
    config.write_text(out)
    code, out, _ = prefdata("ingest", tmp_path / "run", file, "-c", config, "--source", "pairs")
    assert (code, "nothing to do" in out) == (0, True)
    config.write_text("ingest: {kind: candidates}\n")
    code, _, err = prefdata("ingest", tmp_path / "run", file, "-c", config)
    assert (code, 'unknown key "kind"' in err) == (2, True)
    code, _, err = prefdata("ingest", tmp_path / "run", file, "--as", "answers")
    assert (code, "'answers'" in err) == (2, True)
