"""rank with a judge of two: which two are asked about, in which order, and what becomes of the verdicts."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from prefdata.comparisons import compare as step
from prefdata.comparisons import players
from prefdata.comparisons.compare import ORDERS, compare, orders, schedule
from prefdata.errors import InputError
from prefdata.explore.judges import judges
from prefdata.prompts.ingest import ingest
from prefdata.scorers.protocol import Comparison, Verdict
from prefdata.specs import IngestSpec, RankSpec
from prefdata.storage.run import Run

ANSWERS = ["a", "bb", "ccc", "dddd", "ddddd", " bb", ""]


class Longer:
    """A judge in plain Python that prefers the longer answer, `lean` towards the one shown first."""

    annotator = "longer"

    def __init__(self, lean: float = 0.0, fails: bool = False) -> None:
        self.versions: dict[str, str] = {}
        self.lean, self.fails, self.asked = lean, fails, list[Comparison]()

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        for match in matches:
            self.asked.append(match)
            if self.fails and len(match.shown) + len(match.other) > 8:
                yield Verdict(match.key, None, "unparsable", rationale="Hm.")
                continue
            p = min(max((len(match.shown) > len(match.other)) * 0.8 + 0.1 + self.lean, 0.0), 1.0)
            yield Verdict(match.key, p, "first" if p > 0.5 else "second", "clearly", "It is longer.")

    def close(self) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "run")
    file = tmp_path / "asked.jsonl"
    rows = [{"prompt": f"Say {i}.", "responses": [f"{i}{text}" if text else "" for text in ANSWERS]} for i in range(3)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates", "test": 0.0}))
    return run


def spec(**said) -> RankSpec:
    return RankSpec(**{"pairwise": "judge", "name": "longer", **said})


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Longer:
    judge = Longer()
    monkeypatch.setattr(step, "open_comparer", lambda _: judge)
    monkeypatch.setattr(step, "scorer_identity", lambda _: {"pairwise": "longer"})
    monkeypatch.setattr(step, "dated_scorer", lambda spec, _: spec)
    return judge


def rows(run: Run) -> list[dict]:
    return run.partition("comparisons", "longer").read().to_pylist()


@pytest.mark.parametrize(("kind", "number"), [("all", 15), ("first-round", 3), ("tournament", 5)])
def test_how_many(run: Run, judge: Longer, kind: str, number: int) -> None:
    """Six answers a prompt are not empty (" bb" stands behind a number: another text than "bb")."""
    done = compare(run, spec(schedule=kind))
    assert done.report.rows_out == 3 * 2 * number
    assert len(judge.asked) == 3 * 2 * number
    assert compare(run, spec(schedule=kind)).did == "kept"
    assert len(judge.asked) == 3 * 2 * number


def test_both_orders_say_the_same_of_a_fair_judge(run: Run, judge: Longer) -> None:
    report = compare(run, spec(schedule="all")).report
    by_pair: dict = {}
    for row in rows(run):
        by_pair.setdefault((row["first_id"], row["second_id"]), {})[row["order"]] = (row["probability"], row["verdict"])
    text = {c["candidate_id"]: c["text"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    for (first, second), both in by_pair.items():
        assert set(both) == {"first-second", "second-first"}
        if len(text[first]) != len(text[second]):
            assert both["first-second"][1] == both["second-first"][1]
            assert both["first-second"][0] == pytest.approx(both["second-first"][0])
            assert (both["first-second"][0] > 0.5) == (len(text[first]) > len(text[second]))
    assert report.figures["first"] + report.figures["second"] == report.rows_out


def test_a_judge_who_likes_the_first_place_is_found_out(run: Run, judge: Longer) -> None:
    judge.lean = 0.85
    report = compare(run, spec(schedule="all")).report
    assert report.figures["first_place_won"] > 0.9
    assert report.figures["same_in_both_orders"] < 0.1


class Undecided(Longer):
    """A judge to whom all are equal."""

    def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
        for match in matches:
            yield Verdict(match.key, 0.5, "tie")


@pytest.mark.parametrize(
    ("made", "agreement"), [(Longer(), None), (Longer(0.3), None), (Longer(0.85), 0.0), (Undecided(), 1.0)]
)
def test_a_judge_agrees_with_itself_by_one_definition(
    run: Run, judge: Longer, monkeypatch: pytest.MonkeyPatch, made: Longer, agreement: float | None
) -> None:
    """A tie in both orders is agreement, for the report of `rank` and for `eval judges` alike."""
    monkeypatch.setattr(step, "open_comparer", lambda _: made)
    figures = compare(run, spec(schedule="all")).report.figures
    (row,) = judges(run)[0].to_dicts()
    assert figures["same_in_both_orders"] == row["consistency"]
    assert figures["first_place_won"] == row["first_position_rate"]
    assert row["both_orders"] * 2 == row["comparisons"]
    if agreement is not None:
        assert row["consistency"] == agreement


def test_python_has_candidates_compared_as_the_command_line_does(run: Run, judge: Longer) -> None:
    import prefdata as library

    assert library.rank(run, spec(schedule="all")).path == run.path / "comparisons/judge=longer"


def test_what_was_not_understood_is_no_verdict(run: Run, judge: Longer) -> None:
    judge.fails = True
    report = compare(run, spec(schedule="all")).report
    nulls = [row for row in rows(run) if row["probability"] is None]
    assert report.figures["unparsable"] == len(nulls) > 0
    assert {row["verdict"] for row in nulls} == {"unparsable"}
    assert {row["rationale"] for row in nulls} == {"Hm."}


def test_a_tournament_ends_with_the_best(run: Run, judge: Longer) -> None:
    compare(run, spec(schedule="tournament"))
    text = {c["candidate_id"]: c["text"] for p in run.partitions("candidates") for c in p.read().to_pylist()}
    last = {
        row["prompt_id"]: row for row in rows(run) if 6 in (len(text[row["first_id"]]), len(text[row["second_id"]]))
    }
    assert len(last) == 3  # the longest has met somebody, and has lost to nobody
    for row in rows(run):
        loser = row["first_id"] if row["probability"] < 0.5 else row["second_id"]
        assert len(text[loser]) < 6


def test_one_order_by_a_coin(run: Run, judge: Longer) -> None:
    compare(run, spec(schedule="all", order="flip"))
    assert len(rows(run)) == 3 * 15
    assert {row["order"] for row in rows(run)} == {"first-second", "second-first"}


def test_the_coin_is_the_pairs_own_and_the_seeds() -> None:
    """The same in every process, whatever else is compared: by hash of the seed and the two ids. A fair one, too."""
    twos = [("a", str(number)) for number in range(1000)]

    def shown(seed: int) -> str:
        found = [orders(two, spec(order="flip", seed=seed)) for two in twos]
        assert all(len(one) == 1 for one in found)
        return "".join("fs"[ORDERS.index(one[0])] for one in found)

    assert shown(0)[:16] == "fsfsfsssffffffss"
    assert shown(1)[:16] != shown(0)[:16]
    assert 420 < shown(0).count("f") < 580  # five standard deviations of a fair coin are 79
    assert orders(twos[0], spec(order="both")) == ORDERS


def test_a_tournament_waits_for_verdicts() -> None:
    one = spec(schedule="tournament", order="flip")
    assert list(schedule(["a", "b", "c"], {}, one)) == [("a", "b")]
    order = orders(("a", "b"), one)[0]
    assert list(schedule(["a", "b", "c"], {(("a", "b"), order): 0.2}, one)) == [("a", "b"), ("b", "c")]
    assert list(schedule(["a", "b", "c"], {(("a", "b"), order): None}, one)) == [("a", "b"), ("a", "c")]


@pytest.mark.parametrize(
    ("both", "champion"),
    [
        ((0.5, 0.5), "a"),
        ((1.0, 0.0), "a"),
        ((0.2, 0.7), "b"),
        ((0.5, 0.4), "b"),
        ((None, 0.4), "b"),
        ((0.4, None), "b"),
    ],
)
def test_a_tournament_goes_by_the_mean_of_both_orders(both: tuple[float | None, float | None], champion: str) -> None:
    """A tie, and a judge who goes by the place, leave the champion; one verdict counts where the other is lost."""
    seen = {(("a", "b"), order): probability for order, probability in zip(ORDERS, both, strict=True)}
    assert list(schedule(["a", "b", "c"], seen, spec(schedule="tournament"))) == [("a", "b"), (champion, "c")]
    del seen[("a", "b"), ORDERS[1]]
    assert list(schedule(["a", "b", "c"], seen, spec(schedule="tournament"))) == [("a", "b")]


def test_a_tie_in_both_orders_is_the_same_in_both(run: Run, judge: Longer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the judge's ties all agree; a tie in one order and a winner in the other do not."""
    ties = iter([True] * 2 * 15 + [True, False] * 15 + [False] * 2 * 15)

    def verdicts(matches: Iterable[Comparison]) -> Iterator[Verdict]:
        for match in matches:
            tie = next(ties)
            yield Verdict(match.key, 0.5 if tie else 0.9, "tie" if tie else "first")

    monkeypatch.setattr(judge, "compare", verdicts)
    report = compare(run, spec(schedule="all")).report
    assert report.figures["tie"] == 45
    assert report.figures["same_in_both_orders"] == 15 / 45  # of the third prompt the first place always wins
    assert compare(run, spec(schedule="all")).did == "kept"


def test_stopped_and_continued(run: Run, judge: Longer, monkeypatch: pytest.MonkeyPatch) -> None:
    real = judge.compare

    def stops(matches):
        for number, verdict in enumerate(real(matches)):
            if number == 3:
                raise KeyboardInterrupt
            yield verdict

    monkeypatch.setattr(judge, "compare", stops)
    with pytest.raises(KeyboardInterrupt):
        compare(run, spec(schedule="tournament"))
    assert len(rows(run)) == 3
    monkeypatch.setattr(judge, "compare", real)
    assert compare(run, spec(schedule="tournament")).did == "continued"
    assert len(rows(run)) == 3 * 2 * 5


@pytest.mark.parametrize("kind", ["all", "first-round", "tournament"])
def test_how_many_are_held_at_a_time_changes_nothing(
    run: Run, judge: Longer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    whole = compare(run, spec(schedule=kind, order="flip"))
    expected = sorted(rows(run), key=str)
    monkeypatch.setattr(players, "SHARE", 4)
    with players.PlayerStore(run, run.partitions("candidates"), spec()) as cut:
        assert cut.shares == 6
    assert compare(run, spec(schedule=kind, order="flip")).did == "kept"
    again = compare(run, spec(schedule=kind, order="flip"), replace=True)
    assert sorted(rows(run), key=str) == expected
    assert (again.report.figures, again.report.rows_out) == (whole.report.figures, whole.report.rows_out)
    assert not list(run.path.glob("_tmp*"))


def test_new_candidates_are_compared_and_nothing_twice(run: Run, judge: Longer, tmp_path: Path) -> None:
    compare(run, spec(schedule="all"))
    asked = len(judge.asked)
    more = tmp_path / "more.jsonl"
    more.write_text(json.dumps({"prompt": "Say 1.", "response": "1 more"}) + "\n")
    ingest(run, [str(more)], IngestSpec.parse({"as": "candidates", "test": 0.0}))
    done = compare(run, spec(schedule="all"))
    assert (done.did, done.report.rows_out) == ("continued", asked + 6 * 2)
    assert len(judge.asked) == asked + 6 * 2


def test_the_progress_knows_how_many_there_will_be(run: Run, judge: Longer) -> None:
    told: list[tuple[int, int]] = []
    compare(run, spec(schedule="tournament"), progress=lambda done, total, **_: told.append((done, total)))
    assert told == [(number, 30) for number in range(1, 31)]


def test_an_answer_to_a_prompt_that_is_gone(run: Run, judge: Longer) -> None:
    shutil.rmtree(run.path / "prompts/source=asked")
    other = run.path / "other.jsonl"
    other.write_text(json.dumps({"prompt": "Another."}) + "\n")
    ingest(run, [str(other)], IngestSpec())
    with pytest.raises(InputError, match="and not the prompt"):
        compare(run, spec())


def compare_slowly(folder: Path) -> None:
    """What one of several processes does: the same command, with little in a share and time to meet the others."""

    class Slow(Longer):
        def compare(self, matches: Iterable[Comparison]) -> Iterator[Verdict]:
            for verdict in super().compare(matches):
                time.sleep(0.01)
                yield verdict

    judge = Slow()
    step.open_comparer = lambda _: judge
    step.scorer_identity = lambda _: {"pairwise": "longer"}
    step.dated_scorer = lambda spec, _: spec
    players.SHARE = 4
    compare(Run(folder), spec(schedule="tournament"))
    (folder / f"asked-{os.getpid()}").write_text(str(len(judge.asked)))


def test_processes_share_the_comparisons(run: Run, judge: Longer, tmp_path: Path) -> None:
    file = tmp_path / "more.jsonl"
    rows_ = [{"prompt": f"More {i}.", "responses": [f"{i}{text}" for text in ANSWERS[:4]]} for i in range(60)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows_))
    ingest(run, [str(file)], IngestSpec.parse({"as": "candidates", "test": 0.0}))
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=compare_slowly, args=(run.path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    asked = [int(path.read_text()) for path in run.path.glob("asked-*")]
    expected = 3 * 2 * 5 + 60 * 2 * 3
    assert len(rows(run)) == expected == sum(asked)
    assert sum(number > 0 for number in asked) >= 2
    assert compare(run, spec(schedule="tournament")).did == "kept"
    assert not list(run.path.rglob("_tmp*"))
    assert not list(run.path.rglob("_claims"))
