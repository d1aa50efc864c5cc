"""ingest --as pairs, unpaired and demonstrations: what rows say becomes the run's tables, and nothing else does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from formats.test_kinds import KINDS

from prefdata.errors import BadRows, InputError, SpecConflict, UsageError
from prefdata.exports.export import export
from prefdata.pairs.pair import pair
from prefdata.prompts import spool as spooling
from prefdata.prompts.ingest import ingest
from prefdata.specs import ExportSpec, IngestSpec, PairSpec
from prefdata.storage.run import Run
from prefdata.train.data import open_source
from prefdata.train.parsing import Needs

Write = Callable[..., str]

ROW = {"prompt": "Which film?", "chosen": "The ghost ship.", "rejected": "None."}


def spec(kind: str = "pairs", **settings: Any) -> IngestSpec:
    return IngestSpec(kind=kind, source="films", **{"test": 0.0, **settings})


def texts(run: Run) -> dict[str, str]:
    return {row["candidate_id"]: row["text"] for p in run.all("candidates") for row in p.read().to_pylist()}


def said(run: Run) -> list[str]:
    """The run's pairs, each as `prompt | chosen > rejected`, or with = for a tie."""
    asked = {
        row["prompt_id"]: " / ".join(m["content"] for m in row["messages"])
        for p in run.all("prompts")
        for row in p.read().to_pylist()
    }
    text = texts(run)
    return [
        f"{asked[row['prompt_id']]} | {text[row['chosen_id']]} {'=' if row['verdict'] == 'tie' else '>'} "
        f"{text[row['rejected_id']]}"
        for p in run.all("pairs")
        for row in p.read().to_pylist()
    ]


def test_one_pair_a_row_and_none_that_no_row_says(tmp_path: Path, write: Write) -> None:
    """Two rows of one prompt are two pairs, and not four; no scores are asked for."""
    other = {"prompt": "Which film?", "chosen": "The western.", "rejected": "The robot."}
    run = Run(tmp_path / "run")
    report = ingest(run, [write(ROW, other)], spec()).report
    assert said(run) == ["Which film? | The ghost ship. > None.", "Which film? | The western. > The robot."]
    assert (report.unit, report.rows_in, report.rows_out, report.dropped) == ("pairs", 2, 2, {})
    counts = {name: report.figures[name] for name in ("preferences", "prompts", "responses", "train")}
    assert counts == {"preferences": 2, "prompts": 1, "responses": 4, "train": 1}


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, expected) in KINDS.items() if " > " in expected or " = " in expected]
)
def test_training_reads_what_ingest_stores(tmp_path: Path, write: Write, kind: str) -> None:
    """There is one reader: a file that is trained on, and one that is ingested first, are the same pairs."""
    file = write(KINDS[kind][0])
    run = Run(tmp_path / "run")
    ingest(run, [file], spec(ties="keep", on_contradiction="keep"))
    stored = sorted({one for one in said(run) if " > " in one})
    items = open_source(file, "preferences").items(Needs("preferences"))
    if not stored:
        with pytest.raises(InputError, match=r"all rows are left out \(tie 1\)"):
            list(items)
        return
    trained = sorted(
        {
            " / ".join([m["content"] for m in one.prompt] if isinstance(one.prompt, list) else [one.prompt])
            + " | "
            + " > ".join(side if isinstance(side, str) else side[-1]["content"] for side in one.answers)
            for one in items
        }
    )
    assert trained == stored


def test_what_a_row_says_of_its_pair_is_kept(tmp_path: Path, write: Write) -> None:
    row = {
        **ROW, "score_chosen": 8.5, "score_rejected": 4, "chosen_model": "m", "weight": 0.5, "probability": 0.75,
        "topic": "ships", "annotator": "ann",
    }  # fmt: skip
    run = Run(tmp_path / "run")
    file = write(row)
    ingest(run, [file], spec())
    (pair_,) = run.only("pairs").read().to_pylist()
    numbers = {name: pair_[name] for name in ("chosen_score", "rejected_score", "margin", "weight", "probability")}
    assert numbers == {"chosen_score": 8.5, "rejected_score": 4.0, "margin": 4.5, "weight": 0.5, "probability": 0.75}
    details = json.loads(pair_["details"])
    assert (details["file"], details["row"], details["annotator"]) == (file, 1, "ann")
    assert details["metadata"] == {"topic": "ships"}
    models = {r["text"]: r["model"] for p in run.all("candidates") for r in p.read().to_pylist()}
    assert models == {"The ghost ship.": "m", "None.": "response"}


@pytest.mark.parametrize(
    ("setting", "ties", "pairs", "dropped"),
    [
        ("drop", "drop", ["b | c > d"], {"contradiction": 2}),
        ("keep", "drop", ["a | x > y", "a | y > x", "b | c > d"], {}),
        ("tie", "keep", ["a | x = y", "b | c > d"], {"contradiction": 1}),
        ("tie", "drop", ["b | c > d"], {"contradiction": 1, "tie": 1}),
    ],
)
def test_a_pair_and_its_reverse(
    tmp_path: Path, write: Write, setting: str, ties: str, pairs: list[str], dropped: dict[str, int]
) -> None:
    rows = [
        {"prompt": "a", "chosen": "x", "rejected": "y"},
        {"prompt": "a", "chosen": "y", "rejected": "x"},
        {"prompt": "b", "chosen": "c", "rejected": "d"},
    ]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows)], spec(on_contradiction=setting, ties=ties)).report
    assert said(run) == pairs
    assert (report.rows_in, report.dropped, report.figures["contradictions"]) == (3, dropped, 2)


def test_rows_that_are_no_pair_are_counted_by_reason(tmp_path: Path, write: Write) -> None:
    rows = [
        ROW,
        ROW,
        {**ROW, "rejected": " The  ghost ship. "},
        {**ROW, "chosen": ""},
        {"prompt": "b", "chosen": "c", "rejected": "d", "verdict": "tie"},
    ]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows)], spec()).report
    assert (report.rows_in, report.rows_out) == (5, 1)
    assert report.dropped == {"duplicate": 1, "same_text": 1, "empty": 1, "tie": 1}


def test_a_tie_and_a_preference_contradict_each_other(tmp_path: Path, write: Write) -> None:
    two = {"prompt": "a", "response_a": "x", "response_b": "y"}
    rows = [{**two, "winner": "A"}, {**two, "winner": "tie"}, {"prompt": "b", **two, "winner": "B"}]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows[:2], {**rows[2], "prompt": "b"})], spec(ties="keep")).report
    assert said(run) == ["b | y > x"]
    assert report.dropped == {"contradiction": 2}


def test_the_annotators_of_a_row_are_one_pair(tmp_path: Path, write: Write) -> None:
    """Two of three: the share is the pair's probability."""
    row = {"prompt": "a", "response_a": "x", "response_b": "y", "annotator1": "A", "annotator2": "B", "annotator3": "A"}
    run = Run(tmp_path / "run")
    ingest(run, [write(row)], spec())
    (found,) = run.only("pairs").read().to_pylist()
    assert found["probability"] == pytest.approx(2 / 3)
    assert said(run) == ["a | x > y"]


def test_a_ranked_list_is_every_pair_in_order(tmp_path: Path, write: Write) -> None:
    rows = [{"prompt": "a", "responses": ["x", "y", "z"], "ranks": [2, 1, 2]}]
    run = Run(tmp_path / "run")
    ingest(run, [write(*rows)], spec(ties="keep"))
    assert sorted(said(run)) == ["a | x = z", "a | y > x", "a | y > z"]


def test_a_response_that_is_a_call_is_kept_whole(tmp_path: Path, write: Write) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    row = {
        "prompt": [{"role": "user", "content": "When?"}],
        "chosen": [{"role": "assistant", "content": "", "tool_calls": [call]}],
        "rejected": [{"role": "assistant", "content": "Long ago.", "reasoning_content": "I guess."}],
    }
    run = Run(tmp_path / "run")
    ingest(run, [write(row)], spec())
    messages = [json.loads(row["message"]) for row in run.only("candidates").read().to_pylist()]
    assert messages == [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "assistant", "content": "Long ago.", "reasoning_content": "I guess."},
    ]
    (item,) = open_source(run.path, "preferences").items(Needs("preferences"))
    assert item.answers == ([row["chosen"][0]], [row["rejected"][0]])


def test_reasoning_alone_tells_two_responses_apart(tmp_path: Path, write: Write) -> None:
    sides = {
        side: [{"role": "assistant", "content": "No.", "reasoning_content": thought}]
        for side, thought in (("chosen", "Robots calculate."), ("rejected", "Robots are funny."))
    }
    report = ingest(Run(tmp_path / "run"), [write({"prompt": "A comedy?", **sides})], spec()).report
    assert (report.rows_out, report.figures["responses"]) == (1, 2)


def test_what_the_assistant_has_begun_stays_with_the_prompt(tmp_path: Path, write: Write) -> None:
    begun = [{"role": "user", "content": "Name one."}, {"role": "assistant", "content": "Sure, it is"}]
    row = {
        "prompt": begun,
        "chosen": [{"role": "assistant", "content": " The Robot."}],
        "rejected": [{"role": "assistant", "content": " no."}],
    }
    run = Run(tmp_path / "run")
    ingest(run, [write(row)], spec())
    (prompt,) = run.only("prompts").read().to_pylist()
    assert prompt["messages"][1]["prefill"] is True
    assert prompt["reference"] is None
    (item,) = open_source(run.path, "preferences").items(Needs("preferences"))
    assert item.prompt == begun[:1]
    assert [answer[0]["content"] for answer in item.answers] == ["Sure, it is The Robot.", "Sure, it is no."]


# --- labels and demonstrations ----------------------------------------------------------------------------------------


def labels(run: Run) -> dict[str, tuple[bool, float]]:
    text = texts(run)
    rows = run.only("unpaired").read().to_pylist()
    return {text[row["candidate_id"]]: (row["good"], row["weight"]) for row in rows}


def test_labels_in_words_numbers_and_truth_values(tmp_path: Path, write: Write) -> None:
    for number, (good, bad) in enumerate([(True, False), (1, 0), ("1", "-1"), ("desirable", "undesirable")]):
        rows = [
            {"prompt": "a", "completion": "x", "label": good, "weight": 2},
            {"prompt": "a", "completion": "y", "label": bad},
        ]
        run = Run(tmp_path / f"run{number}")
        report = ingest(run, [write(*rows)], spec("unpaired")).report
        assert labels(run) == {"x": (True, 2.0), "y": (False, 1.0)}
        assert (report.unit, report.figures["good"], report.figures["bad"]) == ("labels", 1, 1)
        assert run.only("prompts").read()["reference"].to_pylist() == [
            None
        ]  # a bad response is to be imitated by nobody


def test_a_response_that_is_called_good_and_bad_has_no_label(tmp_path: Path, write: Write) -> None:
    rows = [{"prompt": "a", "completion": text, "label": label} for text, label in (("x", 1), ("x", 0), ("y", 1))]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows)], spec("unpaired")).report
    assert labels(run) == {"y": (True, 1.0)}
    assert (report.rows_in, report.dropped) == (3, {"contradiction": 2})


def test_white_space_does_not_tell_a_good_response_from_a_bad_one(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    rows = [{"prompt": "a", "completion": text, "label": label} for text, label in (("x", 1), ("x \n", 0), ("y", 1))]
    report = ingest(run, [write(*rows)], spec("unpaired")).report
    assert labels(run) == {"y": (True, 1.0)}
    assert (report.rows_in, report.dropped) == (3, {"contradiction": 2})


def test_chosen_and_rejected_are_good_and_bad(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    ingest(run, [write(ROW)], spec("unpaired"))
    assert {text: good for text, (good, _) in labels(run).items()} == {"The ghost ship.": True, "None.": False}


def test_demonstrations_are_what_is_to_be_imitated(tmp_path: Path, write: Write) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "y", "weight": 0.5}]},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "x"}]},
        {"messages": [{"role": "user", "content": "b"}, {"role": "assistant", "content": "x"}]},
    ]
    run = Run(tmp_path / "run")
    report = ingest(run, [write(*rows)], spec("demonstrations")).report
    found = run.only("demonstrations").read().to_pylist()
    text = texts(run)
    assert [(text[row["candidate_id"]], row["rank"], row["weight"]) for row in found] == [
        ("x", 1, 1.0), ("y", 2, 0.5), ("x", 1, 1.0)
    ]  # fmt: skip
    assert report.dropped == {"duplicate": 1}
    items = list(open_source(run.path, "demonstrations").items(Needs("demonstrations")))
    assert len(items) == 3


@pytest.mark.parametrize(
    ("row", "imitated"),
    [
        ({"output": ["best", "worse", "worst"]}, ["best"]),
        ({"response_a": "a", "response_b": "b", "winner": "model_b"}, ["b"]),
        ({"response_a": "a", "response_b": "b", "winner": "tie"}, ["a", "b"]),
        ({"response1": "a", "response2": "b", "overall_preference": -2, "context": [{"role": "user", "content": "q"}]},
         ["a"]),
    ],
)  # fmt: skip
def test_the_worse_response_of_a_row_is_imitated_by_nobody(
    tmp_path: Path, write: Write, row: dict[str, Any], imitated: list[str]
) -> None:
    """Neither by a run nor by a model that is trained on the file: whatever says which one is worse."""
    file = write(row if "context" in row else {"instruction": "q", **row})
    run = Run(tmp_path / "run")
    figures = ingest(run, [file], spec("demonstrations")).report.figures
    text = texts(run)
    assert [text[one["candidate_id"]] for one in run.only("demonstrations").read().to_pylist()] == imitated
    assert figures.get("worse_responses", 0) == len(text) - len(imitated)
    items = open_source(file, "demonstrations").items(Needs("demonstrations"))
    assert [item.answers[0] for item in items] in (imitated, [[{"role": "assistant", "content": t}] for t in imitated])


def test_a_reference_beside_a_question_is_imitated(tmp_path: Path, write: Write) -> None:
    """With a column of its own it is no response of the row, and yet a demonstration."""
    run = Run(tmp_path / "run")
    ingest(run, [write({"question": "2+2?", "answer": "4", "final": "4"})], spec("demonstrations"))
    (row,) = run.only("demonstrations").read().to_pylist()
    assert texts(run)[row["candidate_id"]] == "4"


def test_of_pairs_the_chosen_one_is_imitated(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    ingest(run, [write(ROW, {"prompt": "b", "chosen": "", "rejected": "x"})], spec("demonstrations"))
    (row,) = run.only("demonstrations").read().to_pylist()
    assert texts(run)[row["candidate_id"]] == "The ghost ship."


# --- what was asked for, and what was not -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "ways"),
    [
        (ROW, "--as pairs (which is preferred), --as unpaired (which is good and which bad), --as candidates"),
        ({"prompt": "a", "response_a": "x", "response_b": "y", "winner": "A"}, "--as pairs (which is preferred)"),
        ({"prompt": "a", "completion": "x", "label": True}, "--as unpaired (which is good and which bad)"),
    ],
)
def test_without_as_a_file_that_says_what_is_good_names_the_ways(
    tmp_path: Path, write: Write, row: dict[str, Any], ways: str
) -> None:
    with pytest.raises(InputError) as caught:
        ingest(Run(tmp_path / "run"), [write(row)], IngestSpec())
    assert ways in str(caught.value)
    assert "or the prompts alone with --as prompts" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_prompts_alone_say_what_is_not_kept(tmp_path: Path, write: Write) -> None:
    rows = [{**ROW, "score_chosen": 2, "topic": "ships"}, {**ROW, "prompt": "b"}]
    report = ingest(Run(tmp_path / "run"), [write(*rows)], spec("prompts")).report
    assert report.figures["not_kept"] == "chosen 2, rejected 2, score_chosen 1"
    assert report.figures["metadata"] == "topic"


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("pairs", {"prompt": "a", "response": "x"}, "no row says which of two responses is better"),
        ("unpaired", {"prompt": "a", "response": "x"}, "no row says whether a response is good"),
        ("demonstrations", {"prompt": "a"}, "no row holds a response to imitate"),
    ],
)
def test_a_file_that_does_not_hold_what_is_wanted(
    tmp_path: Path, write: Write, kind: str, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        ingest(Run(tmp_path / "run"), [write(row)], spec(kind))


def test_settings_of_other_kinds_are_refused() -> None:
    for values in ({"on_contradiction": "keep"}, {"ties": "keep"}, {"one_means": "first"}):
        with pytest.raises(UsageError, match=next(iter(values)).replace("_", "[-_]")):
            IngestSpec.parse({"as": "unpaired", **values})


def test_rows_without_the_second_side_are_bad_rows(tmp_path: Path, write: Write) -> None:
    file = write(ROW, {"prompt": "b", "chosen": "x"}, {"prompt": "c", "chosen": None, "rejected": "y"})
    with pytest.raises(BadRows) as caught:
        ingest(Run(tmp_path / "run"), [file], spec())
    assert [(row.row, row.problem) for row in caught.value.rows] == [
        (2, "rejected is missing, or null"),
        (3, "chosen is missing, or null"),
    ]
    report = ingest(Run(tmp_path / "run"), [file], spec(on_bad_rows="drop")).report
    assert (report.rows_out, report.dropped) == (1, {"one_side": 2})


def test_the_same_again_is_kept_and_other_rows_are_a_conflict(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    assert ingest(run, [write(ROW)], spec()).did == "made"
    assert ingest(run, [write(ROW)], spec()).did == "kept"
    other = write({**ROW, "chosen": "The robot."})
    with pytest.raises(SpecConflict):
        ingest(run, [other], spec())
    assert ingest(run, [other], spec(), replace=True).did == "replaced"
    assert said(run) == ["Which film? | The robot. > None."]


def test_pairs_go_out_again_as_they_came_in(tmp_path: Path, write: Write) -> None:
    run = Run(tmp_path / "run")
    tools = [{"type": "function", "function": {"name": "f"}}]
    rows = [{**ROW, "weight": 0.5, "tools": tools}, {"prompt": "b", "chosen": "x", "rejected": "y"}]
    ingest(run, [write(*rows)], spec())
    export(run, ExportSpec(dialect="trl"), tmp_path / "trl")
    again = Run(tmp_path / "again")
    ingest(again, [str(tmp_path / "trl" / "data")], spec())
    kept = ["pair_id", "chosen_id", "rejected_id"]
    first, second = (one.only("pairs").read().drop_columns([*kept, "details"]).to_pylist() for one in (run, again))
    key = json.dumps
    assert sorted(first, key=key) == sorted(second, key=key)
    assert sorted(said(run)) == sorted(said(again))


def test_select_and_pair_go_on_from_there(tmp_path: Path, write: Write) -> None:
    """Ingested pairs are a pairing of the run, beside those that `pair` makes."""
    run = Run(tmp_path / "run")
    ingest(run, [write(ROW)], spec())
    ingest(run, [write({"prompt": "b", "responses": ["x", "y"], "s": [1, 2]}, name="more.jsonl")],
           IngestSpec(kind="candidates", source="more", score=("s",), test=0.0))  # fmt: skip
    pair(run, PairSpec(selector="all", scorer="more-s"))
    assert sorted(said(run)) == ["Which film? | The ghost ship. > None.", "b | y > x"]


def test_many_rows_wait_on_disk(tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows beyond what is held in memory go through a file, and come out the same."""
    rows = [{"prompt": f"p{i % 70}", "chosen": f"good {i}", "rejected": f"bad {i}", "topic": i} for i in range(300)]
    file = write(*rows)
    small = Run(tmp_path / "small")
    ingest(small, [file], spec())
    monkeypatch.setattr(spooling, "HELD", 1)
    monkeypatch.setattr(spooling, "ROWS", 16)
    big = Run(tmp_path / "big")
    ingest(big, [file], spec())
    assert said(big) == said(small)
    for table in ("prompts", "candidates", "pairs"):
        ours, theirs = (pa.concat_tables([p.read() for p in run.all(table)]) for run in (big, small))
        assert ours.equals(theirs)
    assert not list((tmp_path / "big").rglob("tmp*"))
