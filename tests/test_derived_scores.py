"""rank without a model: several scorers as one, scores from comparisons, scores corrected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prefdata.errors import SpecConflict, UsageError
from prefdata.pairs.pair import pair
from prefdata.prompts.ingest import ingest
from prefdata.scores.rank import rank
from prefdata.selections.select import select
from prefdata.specs import IngestSpec, PairSpec, RankSpec, SelectSpec
from prefdata.storage.report import Report
from prefdata.storage.run import Lineage, Run
from prefdata.storage.schemas import COMPARISONS

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


def test_scores_from_comparisons(run: Run) -> None:
    """Three answers, the longer always better: every method ranks them alike, and a null is left out."""
    ids = {c["text"]: c["candidate_id"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    prompt = run.partitions("candidates")[0].read(["prompt_id"])["prompt_id"][0].as_py()
    games = [("aei", "a", 1.0), ("abcde", "a", 1.0), ("abcde", "aei", 1.0), ("bcd", "a", None)]
    rows = [
        {
            "first_id": ids[first],
            "second_id": ids[second],
            "order": "first-second",
            "annotator": "ann",
            "prompt_id": prompt,
            "probability": probability,
            "verdict": "unparsable" if probability is None else "first",
        }
        for first, second, probability in games
    ]
    partition = run.partition("comparisons", "people")
    partition.begin(Lineage.of(RankSpec(pairwise="people")))
    partition.append(COMPARISONS.from_rows(rows))
    partition.finish(Report(step="rank", unit="comparisons", rows_in=4, rows_out=4))
    for method in ("bradley-terry", "borda", "copeland", "elo"):
        done = rank(run, RankSpec(comparisons=("people",), aggregate=method))
        found = scores(run, f"people-{method}")
        assert found["abcde"][0] > found["aei"][0] > found["a"][0]
        assert found["bcd"] == (None, "no_comparisons")
        assert done.report.figures["null"] == 1
    assert scores(run, "people-copeland")["a"] == (-2.0, None)


def test_length_is_taken_out_and_a_temperature_fitted(run: Run, tmp_path: Path) -> None:
    """A score that is its length exactly: RC-LWR leaves nothing (2409.17407), the penalty takes weight * length off."""
    rank(run, RankSpec(calibrate="length", length="rc-lwr", name="flat"))
    assert all(abs(score or 0.0) < 1e-9 for score, _ in scores(run, "flat").values())
    rank(run, RankSpec(calibrate="length", length="penalty", length_weight=0.5, name="half"))
    assert scores(run, "half")["abcde"] == (2.5, None)
    select(run, SelectSpec(method="top-k", k=4, scorer="vowels", truncated="keep"))
    pair(run, PairSpec(strategy="all", name="people"))
    done = rank(run, RankSpec(calibrate="length", labelled="people", name="fitted"))
    before, after = done.report.figures["log loss before"], done.report.figures["log loss after"]
    assert after < before
    assert done.report.figures["accuracy before"] == done.report.figures["accuracy after"]
    with pytest.raises(UsageError, match="give one of them"):
        RankSpec.parse({"calibrate": "length"})
