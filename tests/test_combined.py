"""rank --combine: several scorers as one, from stored scores alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefdata.errors import SpecConflict, UsageError
from prefdata.prompts import ingest
from prefdata.scores import rank
from prefdata.specs import IngestSpec, RankSpec
from prefdata.store import Run

FUNCTIONS = """
def length(messages, response): return float(len(response))
def vowels(messages, response): return sum(c in "aeiou" for c in response) if response != "bcd" else None
def most(scores): return max(scores.values())
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    file = tmp_path / "asked.jsonl"
    file.write_text(json.dumps({"prompt": "Say.", "responses": ["a", "aei", "bcd", "abcde"]}) + "\n")
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates"}))
    (tmp_path / "f.py").write_text(FUNCTIONS)
    for name in ("length", "vowels"):
        rank(run, RankSpec(function=f"{tmp_path / 'f.py'}:{name}"))
    return run


def scores(run: Run, name: str) -> dict[str, tuple[float | None, str | None]]:
    texts = {c["candidate_id"]: c["text"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    rows = run.partition("scores", name).read().to_pylist()
    return {texts[row["candidate_id"]]: (row["score"], row["reason"]) for row in rows}


def test_a_weighted_sum(run: Run) -> None:
    done = rank(run, RankSpec(combine="0.5*length + 2*vowels", name="both"))
    assert scores(run, "both") == {
        "a": (2.5, None),
        "aei": (7.5, None),
        "bcd": (None, "missing_vowels"),
        "abcde": (6.5, None),
    }
    assert done.report.figures["missing_vowels"] == 1
    assert rank(run, RankSpec(combine="0.5*length + 2*vowels", name="both")).did == "kept"
    with pytest.raises(SpecConflict, match="combine"):
        rank(run, RankSpec(combine="min(length, vowels)", name="both"))


def test_other_rules(run: Run, tmp_path: Path) -> None:
    rank(run, RankSpec(combine="min(length, vowels)", name="worst"))
    assert scores(run, "worst")["abcde"] == (2.0, None)
    rank(run, RankSpec(combine=f"{tmp_path / 'f.py'}:most(length, vowels)", name="most"))
    assert scores(run, "most")["abcde"] == (5.0, None)
    rank(run, RankSpec(combine="mean(length, vowels)", normalize="rank", name="ranks"))
    assert scores(run, "ranks")["a"] == (0.0, None)


def test_changed_members_make_it_anew(run: Run, tmp_path: Path) -> None:
    spec = RankSpec(combine="mean(length, vowels)", name="both")
    rank(run, spec)
    file = tmp_path / "more.jsonl"
    file.write_text(json.dumps({"prompt": "More.", "responses": ["uuu"]}) + "\n")
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates", "source": "more"}))
    for name in ("length", "vowels"):
        rank(run, RankSpec(function=f"{tmp_path / 'f.py'}:{name}"))
    assert rank(run, spec).did == "remade"
    assert scores(run, "both")["uuu"] == (3.0, None)


def test_a_scorer_that_is_not_there(run: Run) -> None:
    with pytest.raises(UsageError, match='Did you mean "vowels"'):
        rank(run, RankSpec(combine="mean(length, vowls)"))
    assert not (run.path / "scores/scorer=combined").exists()
