"""ingest --as candidates --score: numbers that others gave, as scores that select and pair read with no model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefdata import ids
from prefdata.errors import BadRows, InputError, SpecConflict, UsageError
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec
from prefdata.storage.run import Run

Write = Callable[..., str]


def spec(*columns: str, **more: Any) -> IngestSpec:
    return IngestSpec(kind="candidates", source="films", score=columns, **more)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run")


def scores(run: Run, scorer: str) -> dict[str, tuple[float | None, str | None]]:
    """(score, reason) by the answer's text."""
    text = {row["candidate_id"]: row["text"] for p in run.all("candidates") for row in p.read().to_pylist()}
    rows = run.partition("scores", scorer).read().to_pylist()
    return {text[row["candidate_id"]]: (row["score"], row["reason"]) for row in rows}


ULTRA = {
    "instruction": "a",
    "completions": [
        {"model": "m", "response": "x", "overall_score": 8.5, "annotations": {"help": {"Rating": "5"}}},
        {"model": "n", "response": "y", "overall_score": 3, "annotations": {"help": {"Rating": None}}},
        {"model": "o", "response": "z", "overall_score": 1e1, "annotations": {}},
    ],
}

NECTAR = {"prompt": "a", "answers": [{"answer": "x", "rank": 2.0}, {"answer": "y", "rank": 1}]}
RANK = {"as": "candidates", "score": ("r=rank",)}
TWO = {"prompt": "a", "chosen": "x", "rejected": "y"}


@pytest.mark.parametrize(
    ("row", "column", "expected"),
    [
        (ULTRA, "overall_score", {"x": 8.5, "y": 3.0, "z": 10.0}),
        (ULTRA, "annotations.help.Rating", {"x": 5.0, "y": None, "z": None}),
        ({"prompt": "a", "responses": ["x", "y"], "rewards": [0.5, None]}, "rewards", {"x": 0.5, "y": None}),
        ({**TWO, "score_chosen": 2, "score_rejected": 1}, "score", {"x": 2, "y": 1}),
        ({"prompt": "a", "output": "x", "answer": "y", "correct": True}, "correct", {"x": 1, "y": None}),
        ({**TWO, "chosen_rating": 2, "rejected_rating": 1}, "rating", {"x": 2, "y": 1}),
        ({**TWO, "chosen": ["x", "z"], "s_chosen": [2, 3], "s_rejected": 1}, "s", {"x": 2, "y": 1, "z": 3}),
        ({"text": "a", "output_0": "x", "output_1": "y", "output_0_s": 0, "output_1_s": 3}, "s", {"x": 0, "y": 3}),
        ({"prompt": "a", "response_a": "x", "response_b": "y", "score_a": 4, "score_b": 3}, "score", {"x": 4, "y": 3}),
        ({"prompt": "a", "response1": "x", "response2": "y", "score1": 4, "score2": 3}, "score", {"x": 4, "y": 3}),
        ({"prompt": "a", "response": "x", "help": {"mean": 3.25}}, "help.mean", {"x": 3.25}),
        ({"prompt": "a", "output": "x", "score": 1}, "score", {"x": 1}),
        (NECTAR, "-rank", {"x": -2, "y": -1}),
        ({"prompt": "a", "responses": ["x"], "output": "ref", "score": [1]}, "score", {"x": 1, "ref": None}),
    ],
)  # fmt: skip
def test_where_the_numbers_stand(run: Run, write: Write, row: dict, column: str, expected: dict) -> None:
    ingest(run, [write(row)], spec(f"theirs={column}"))
    said = {text: (score, None if score is not None else "not_given") for text, score in expected.items()}
    assert scores(run, "theirs") == said


def test_the_cells_of_a_csv_are_numbers(run: Run, tmp_path: Path) -> None:
    (tmp_path / "films.csv").write_text("prompt,response,score\na,x,4.5\na,y,-1e-3\nb,z,\n")
    ingest(run, [str(tmp_path / "films.csv")], spec("score"))
    assert scores(run, "films-score") == {"x": (4.5, None), "y": (-0.001, None), "z": (None, "not_given")}


def test_a_row_of_scores_is_as_rank_writes_it(run: Run, write: Write) -> None:
    ingest(run, [write(ULTRA)], spec("overall_score"))
    (row, *_), (candidate, *_) = (p.read().to_pylist() for p in (*run.all("scores"), *run.all("candidates")))
    assert (row["candidate_id"], row["prompt_id"]) == (candidate["candidate_id"], candidate["prompt_id"])
    assert (row["text_hash"], row["details"]) == (ids.text_hash("x"), None)
    success = run.partition("scores", "films-overall_score").success()
    assert success is not None
    assert success.report.figures == {"scored": 3}


def test_bad_rows_are_told_all_at_once(run: Run, write: Write) -> None:
    def row(number: int, rewards: Any) -> dict[str, Any]:
        return {"prompt": f"p{number}", "responses": ["x", "y"], "rewards": rewards}

    bad = {
        "holds 3 numbers for 2 responses": [1, 2, 3],
        "rewards[1] should be a number, not 'high'": [1, "high"],
        "rewards[0] should be a number, not nan": [float("nan"), 1],
        "rewards[1] should be a number, not -inf": [1, float("-inf")],
        "rewards[0] should be a number, not '1/2'": ["1/2", 1],
        "should be a list of 2 numbers, one per response, not 7": 7,
    }
    file = write(row(0, [1, 2]), *(row(number, rewards) for number, rewards in enumerate(bad.values(), 1)))
    with pytest.raises(BadRows) as found:
        ingest(run, [file], spec("rewards"))
    for number, why in enumerate(bad, 2):
        assert any(f"films.jsonl:{number}: " in line and why in line for line in str(found.value).splitlines())
    assert not run.path.exists()
    done = ingest(run, [file], spec("rewards", on_bad_rows="drop"))
    assert done.report.dropped == {"scores": len(bad)}
    assert scores(run, "films-rewards") == {"x": (1.0, None), "y": (2.0, None)}
    many = write(*(row(number, 7) for number in range(50)), name="many.jsonl")
    with pytest.raises(BadRows, match="50 bad rows") as found:
        ingest(run, [many], spec("rewards"))
    assert "also in row 2, 3, 4, 5, … (50 rows)" in str(found.value)


def test_a_column_that_nobody_has(run: Run, write: Write) -> None:
    with pytest.raises(InputError, match=r"no response has a number in 'overal_score'.*score_chosen"):
        ingest(run, [write(ULTRA)], spec("overal_score"))
    assert not run.path.exists()


def test_answers_that_came_without_scores_get_them_later(run: Run, write: Write) -> None:
    """Which scores are read is no part of what the answers are."""
    file = write(ULTRA)
    ingest(run, [file], spec())
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    assert ingest(run, [file], spec("overall_score", "help=annotations.help.Rating")).did == "made"
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.is_file())
    assert [p.name for p in run.all("scores")] == ["films-overall_score", "help"]
    assert ingest(run, [file], spec("overall_score")).did == "kept"


def test_other_numbers_are_another_scorer(run: Run, write: Write) -> None:
    ingest(run, [write({"prompt": "a", "response": "x", "score": 1})], spec("score"))
    other = write({"prompt": "a", "response": "x", "score": 2}, name="b.jsonl")
    with pytest.raises(SpecConflict):
        ingest(run, [other], spec("score"))
    assert scores(run, "films-score") == {"x": (1.0, None)}
    ingest(run, [other], spec("score"), replace=True)
    assert scores(run, "films-score") == {"x": (2.0, None)}
    ingest(run, [write({"prompt": "b", "response": "z"}, name="c.jsonl")], spec(), replace=True)
    assert run.partitions("scores") == []


def test_replacing_a_source_leaves_other_scorers(run: Run, write: Write) -> None:
    file = write({"prompt": "a", "response": "x", "score": 1})
    ingest(run, [file], spec("score"))
    ingest(run, [file], IngestSpec(kind="candidates", source="music", score=("score",)))
    rank(run, RankSpec(combine="2*films-score", name="twice"))
    ingest(run, [file], spec(), replace=True)
    assert [p.name for p in run.partitions("scores")] == ["music-score", "twice"]


def test_the_same_answer_twice_keeps_the_first_number(run: Run, write: Write) -> None:
    said = [{"prompt": "a", "response": "x", "score": number} for number in (None, 1, 1, 2)]
    done = ingest(run, [write(*said)], spec("score"))
    assert done.report.figures["scores_not_kept"] == 1
    assert done.report.figures["scored_by_films-score"] == 1
    assert scores(run, "films-score") == {"x": (1.0, None)}


@pytest.mark.parametrize("said", [{"score": ("s",)}, {"as": "candidates", "score": ("a", "a")}, RANK])
def test_settings_that_mean_nothing(said: dict) -> None:
    with pytest.raises(UsageError, match="--score"):
        IngestSpec.parse(said)


def test_from_files_to_pairs_with_no_model(run: Run, write: Write, prefdata: Any) -> None:
    file = write(ULTRA, {"instruction": "b", "responses": ["good", "bad"], "overall_score": [2, 1]})
    commands = [
        ("ingest", run.path, file, "--as", "candidates", "--source", "films", "--score", "quality=overall_score"),
        ("select", run.path, "--method", "top-k", "--k", "2", "--scorer", "quality"),
        ("pair", run.path, "--strategy", "best-worst"),
    ]
    for command in commands:
        code, _, err = prefdata(*command)
        assert code == 0, err
    code, out, _ = prefdata("sql", run.path, "select chosen, rejected from preferences order by all", "--format", "csv")
    assert code == 0
    assert out.split() == ["chosen,rejected", "good,bad", "z,x"]
