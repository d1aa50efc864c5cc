"""ingest --as comparisons: verdicts from files, on candidates of the run; and what ranking makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefdata.errors import BadRows, InputError, SpecConflict
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec
from prefdata.storage.run import Run

SPEC = IngestSpec.parse({"as": "comparisons", "source": "people"})


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    file = write(tmp_path / "asked.jsonl", [{"prompt": "Say.", "responses": ["good", "fair", "schlecht 🎬"]}])
    ingest(run, [file], IngestSpec.parse({"as": "candidates"}))
    return run


def comparisons(run: Run) -> list[dict]:
    return run.partition("comparisons", "people").read().to_pylist()


def test_by_texts_and_by_ids(run: Run, tmp_path: Path) -> None:
    id_of = {c["text"]: c["candidate_id"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    files = [
        [
            {"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "A", "annotator": "ann"},
            {"prompt": "Say.", "answer_a": "fair", "answer_b": "schlecht 🎬", "winner": "answer_a", "annotator": "bob"},
        ],
        [{"prompt": "Say.", "output_1": "good", "output_2": "schlecht 🎬", "label": "1", "rationale": "Besser."}],
        [{"prompt": "Say.", "first": "good", "second": "fair", "verdict": "tie", "annotator": "bob"}],
        [{"first_id": id_of["fair"], "second_id": id_of["good"], "probability": 0.25, "order": "second-first"}],
    ]
    names = [write(tmp_path / f"v{number}.jsonl", rows) for number, rows in enumerate(files)]
    with pytest.raises(InputError, match="--one-means"):
        ingest(run, names, SPEC)
    spec = SPEC.model_copy(update={"one_means": "first"})
    done = ingest(run, names, spec)
    assert (done.report.rows_in, done.report.rows_out) == (5, 5)
    counts = {"first": 3, "second": 1, "tie": 1, "annotators": 3}
    assert counts.items() <= done.report.figures.items()
    by = {(r["first_id"], r["second_id"], r["annotator"]): r for r in comparisons(run)}
    assert by[id_of["good"], id_of["fair"], "ann"]["probability"] == 1.0
    assert by[id_of["good"], id_of["schlecht 🎬"], "people"]["rationale"] == "Besser."
    assert by[id_of["fair"], id_of["good"], "people"]["verdict"] == "second"
    assert ingest(run, names, spec).did == "kept"
    rank(run, RankSpec(comparisons=("people",), name="bt"))
    score = {r["candidate_id"]: r["score"] for r in run.partition("scores", "bt").read().to_pylist()}
    assert score[id_of["good"]] > score[id_of["fair"]] > score[id_of["schlecht 🎬"]]


def test_bad_rows_are_reported_together(run: Run, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "A"},
        {"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "nobody"},
        {"prompt": "Say.", "answer_a": "good", "winner": "A"},
        {"prompt": "Say.", "answer_a": "good", "answer_b": "good", "winner": "A"},
        {"first_id": "none", "second_id": "nothing", "probability": 1},
        {"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": None},
    ]
    file = write(tmp_path / "v.jsonl", rows)
    with pytest.raises(BadRows) as found:
        ingest(run, [file], SPEC)
    said = str(found.value)
    for number, why in enumerate(("nobody", "fewer than two", "both responses are the same", "no candidate none"), 2):
        assert f"v.jsonl:{number}" in said
        assert why in said
    assert not (run.path / "comparisons").exists()
    done = ingest(run, [file], SPEC.model_copy(update={"on_bad_rows": "drop"}))
    assert done.report.dropped == {
        "no_candidate": 1, "verdict": 1, "no_verdict": 1, "no_responses": 1, "same_response": 1
    }  # fmt: skip


def test_annotators_duplicates_and_contradictions(run: Run, tmp_path: Path) -> None:
    row = {"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "A"}
    ingest(run, [write(tmp_path / "v.jsonl", [row])], SPEC)
    more = write(tmp_path / "w.jsonl", [row, {**row, "annotator": "ann"}, row])
    with pytest.raises(SpecConflict):
        ingest(run, [more], SPEC)
    again = ingest(run, [more], SPEC, replace=True)
    assert (again.report.rows_out, again.report.dropped) == (2, {"duplicate": 1})
    torn = write(tmp_path / "x.jsonl", [{**row, "winner": winner} for winner in "ABA"])
    twice = ingest(run, [torn], SPEC, replace=True)
    assert twice.report.dropped == {"contradiction": 1, "duplicate": 1}  # the first verdict stands
    assert [row["verdict"] for row in comparisons(run)] == ["first"]


def test_responses_that_the_run_lacks_become_candidates(tmp_path: Path) -> None:
    beside = {"model_a": "m1", "model_b": "m2", "winner": "B"}
    rows = [{"prompt": "Say.", "answer_a": "good", "answer_b": "fair", **beside}]
    run = Run(tmp_path / "new")
    done = ingest(run, [write(tmp_path / "v.jsonl", rows)], SPEC)
    assert done.report.figures["responses"] == 2
    candidates = {row["candidate_id"]: row for row in run.partition("candidates", "people").read().to_pylist()}
    (verdict,) = comparisons(run)
    assert candidates[verdict["first_id"]]["text"] == "good"
    assert candidates[verdict["first_id"]]["model"] == "m1"
    assert candidates[verdict["second_id"]]["text"] == "fair"
    assert verdict["verdict"] == "second"


def test_python_reads_comparisons_as_the_command_line_does(run: Run, tmp_path: Path, prefdata) -> None:
    """`prefdata.ingest` took them for prompts."""
    import prefdata as library

    rows = [{"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "A"}]
    file = write(tmp_path / "v.jsonl", rows)
    done = library.ingest(run, [file], IngestSpec(kind="comparisons", source="people"))
    assert (done.path, done.report.figures["first"]) == (run.path / "comparisons/judge=people", 1)
    code, out, _ = prefdata("ingest", run.path, file, "--as", "comparisons", "--source", "people")
    assert (code, "nothing to do" in out) == (0, True)


def test_the_command(run: Run, tmp_path: Path, prefdata) -> None:
    file = write(tmp_path / "v.jsonl", [{"prompt": "Say.", "answer_a": "good", "answer_b": "fair", "winner": "B"}])
    code, out, err = prefdata("ingest", run.path, file, "--as", "comparisons", "--source", "people")
    assert code == 0, err
    assert "second" in out
