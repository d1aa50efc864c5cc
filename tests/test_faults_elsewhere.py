"""Faults of other tools' rankings, each from files to pairs: what must not happen here, whole way through."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl
import pytest

from prefdata.comparisons import compare as comparisons
from prefdata.comparisons.compare import compare
from prefdata.prompts.ingest import ingest
from prefdata.scorers.protocol import Comparison, Verdict
from prefdata.scores import stream
from prefdata.scores.rank import rank
from prefdata.specs import IngestSpec, RankSpec
from prefdata.storage.run import Run


class Judge:
    """Prefers the longer answer, or with a sign of -1 the shorter one; has nothing to say of some."""

    annotator = "judge"

    def __init__(self, sign: int) -> None:
        self.versions: dict[str, str] = {}
        self.sign = sign

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        for match in matches:
            if "?" in match.shown + match.other:
                yield Verdict(match.key, None, "unparsable")
                continue
            first = self.sign * (len(match.shown) - len(match.other)) > 0
            yield Verdict(match.key, float(first), "first" if first else "second")

    def close(self) -> None:
        pass


def made(run: Run, prompts: int, answers: list[str]) -> Run:
    file = run.path.with_suffix(".jsonl")
    rows = ({"prompt": f"Say {i}.", "responses": [f"{i} {text}" for text in answers]} for i in range(prompts))
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates", "source": "asked"}))
    return run


def scores(run: Run, scorer: str) -> dict[str, tuple[float | None, str | None]]:
    text = {row["candidate_id"]: row["text"] for p in run.all("candidates") for row in p.read().to_pylist()}
    rows = run.partition("scores", scorer).read().to_pylist()
    return {text[row["candidate_id"]]: (row["score"], row["reason"]) for row in rows}


@pytest.mark.parametrize("sign", [1, -1])
def test_the_judges_verdict_decides_who_is_chosen(
    tmp_path: Path, prefdata, monkeypatch: pytest.MonkeyPatch, sign: int
) -> None:
    """Elsewhere a test that is always false left chosen and rejected as they were listed, whatever was said."""
    run = made(Run(tmp_path / "run"), 20, ["short", "much longer"])
    monkeypatch.setattr(comparisons, "open_comparer", lambda _: Judge(sign))
    monkeypatch.setattr(comparisons, "scorer_identity", lambda _: {"pairwise": "judge"})
    monkeypatch.setattr(comparisons, "dated_scorer", lambda spec, _: spec)
    compare(run, RankSpec(pairwise="judge", order="flip", name="judge"))
    rank(run, RankSpec(comparisons=("judge",), name="strength"))
    assert prefdata("select", run.path, "--scorer", "strength", "--method", "top-k", "--k", "2")[0] == 0
    assert prefdata("pair", run.path)[0] == 0
    pairs = prefdata("sql", run.path, "select chosen, rejected from preferences", "--format", "jsonl")[1]
    lines = [json.loads(line) for line in pairs.splitlines()]
    assert len(lines) == 20
    assert all((len(line["chosen"]) > len(line["rejected"])) == (sign > 0) for line in lines)


def test_no_verdict_crashes_nothing_and_prefers_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere a verdict of None was used as an index into the answers."""
    run = made(Run(tmp_path / "run"), 3, ["a", "bb", "what?"])
    monkeypatch.setattr(comparisons, "open_comparer", lambda _: Judge(1))
    monkeypatch.setattr(comparisons, "scorer_identity", lambda _: {"pairwise": "judge"})
    monkeypatch.setattr(comparisons, "dated_scorer", lambda spec, _: spec)
    done = compare(run, RankSpec(pairwise="judge", schedule="all", name="judge"))
    assert done.report.figures["unparsable"] == 3 * 2 * 2
    rank(run, RankSpec(comparisons=("judge",), prior=0.0, name="strength"))
    found = scores(run, "strength")
    assert all(score is None for text, (score, _) in found.items() if "?" in text)


def test_a_row_without_a_score_shifts_no_other(tmp_path: Path) -> None:
    """Elsewhere rows that could not be read were dropped, and the rest put beside the answers by position."""
    run, function = made(Run(tmp_path / "run"), 40, ["a", "bb", "ccc"]), tmp_path / "f.py"
    function.write_text("def f(m, r):\n    number = int(r.split()[0])\n    return 1 / (number % 3) and number\n")
    rank(run, RankSpec(function=f"{function}:f", name="f"))
    for text, (score, reason) in scores(run, "f").items():
        number = int(text.split()[0])
        assert (score, reason) == ((None, "ZeroDivisionError") if number % 3 == 0 else (number, None))


@pytest.mark.parametrize("share", [8, 50, 400, 1000])
def test_101_times_4_answers_are_all_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: int) -> None:
    """Elsewhere 101 x 4 rows for 8 workers made 9 shards and 8 were scored; a second scorer changed the groups."""
    monkeypatch.setattr(stream, "SHARE", share)
    run, function = made(Run(tmp_path / "run"), 101, ["a", "bb", "ccc", "dddd"]), tmp_path / "f.py"
    function.write_text("def long(m, r): return len(r)\ndef number(m, r): return int(r.split()[0])\n")
    for name in ("long", "number"):
        assert rank(run, RankSpec(function=f"{function}:{name}", name=name)).report.figures["scored"] == 404
    rank(run, RankSpec(combine="long + number", name="both"))
    assert scores(run, "both") == {text: (len(text) + int(text.split()[0]), None) for text in scores(run, "long")}
    rows = pl.from_arrow(run.partition("scores", "both").read(["candidate_id", "prompt_id"]))
    assert isinstance(rows, pl.DataFrame)
    assert rows.group_by("prompt_id").len()["len"].to_list() == [4] * 101
