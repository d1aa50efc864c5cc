"""Readers as commands use them: limits, bad rows, files that are joined, what a dataset_info.json says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from formats.test_kinds import records, shown

from prefdata.errors import BadRows, InputError
from prefdata.formats.preview import preview
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec
from prefdata.storage.run import Run

Write = Callable[..., str]
ROW = {"prompt": "Q?", "chosen": "Aaa", "rejected": "Bbb"}
TWO = {"prompt": "Q?", "response_a": "Aaa", "response_b": "Bbb"}


def read(*files: str, **options: Any) -> list[str]:
    reader = Reader(files, ReadOptions(**options))
    found = [shown(record) for _, record in reader.records()]
    reader.bad.refuse(any_left=True)
    return found


def test_a_limit_holds_for_all_files_together(write: Write) -> None:
    one = write(*({**ROW, "prompt": f"a{n}"} for n in range(3)), name="one.jsonl")
    two = write(*({**ROW, "prompt": f"b{n}"} for n in range(3)), name="two.jsonl")
    assert [text[:2] for text in read(one, two, limit=4)] == ["a0", "a1", "a2", "b0"]
    assert len(read(one, two, limit=3)) == 3


def test_each_file_has_its_own_layout(write: Write) -> None:
    one, two = write(ROW, name="one.jsonl"), write({**TWO, "winner": "B"}, name="two.jsonl")
    assert read(one, two) == ["Q? | Aaa > Bbb", "Q? | Bbb > Aaa"]


def test_bad_rows_are_put_aside_with_the_reason(tmp_path: Path, write: Write, caplog: pytest.LogCaptureFixture) -> None:
    bad = {**ROW, "prompt": [{"role": "wizard", "content": "x"}]}
    file = write(ROW, bad, {**ROW, "chosen": None})
    Path(file).write_text(Path(file).read_text() + "{broken\n")
    run = Run(tmp_path / "run")
    spec = IngestSpec(kind="pairs", on_bad_rows="quarantine", source="films", test=0.0)
    report = ingest(run, [file], spec).report
    assert report.dropped == {"unknown_role": 1, "one_side": 1, "broken": 1}
    aside = [json.loads(line) for line in (run.path / "quarantine" / "films.jsonl").read_text().splitlines()]
    assert [(row["file"], row["row"], row["reason"]) for row in aside] == [
        (file, 2, "unknown_role"),
        (file, 3, "one_side"),
        (file, 4, "broken"),
    ]
    assert f"{run.path / 'quarantine' / 'films.jsonl'}: 3 bad rows, each with its reason" in caplog.messages
    assert aside[0]["values"] == bad
    assert aside[0]["problem"].startswith("message 1 has the role 'wizard'")
    ingest(run, [write(ROW)], spec, replace=True)
    assert not (run.path / "quarantine" / "films.jsonl").exists()


def test_the_same_fault_in_all_rows_is_one_line(write: Write) -> None:
    rows = [{**ROW, "prompt": [{"role": "wizard", "content": f"{n}"}]} for n in range(500)]
    with pytest.raises(BadRows) as caught:
        read(write(*rows))
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("500 bad rows.")
    assert lines[1].endswith("(also in row 2, 3, 4, 5, … (500 rows))")


def test_dropping_bad_rows_never_keeps_one_side_of_the_verdicts(write: Write) -> None:
    """Verdicts of 0 and 1: the file as a whole is refused, whatever becomes of bad rows."""
    file = write({**TWO, "label": 1}, {**TWO, "label": 0})
    for policy in ("error", "drop", "quarantine"):
        with pytest.raises(InputError, match="--one-means first if 1 means that response_a is better"):
            read(file, on_bad_rows=policy)


def test_numbers_from_standard_input_are_looked_at_before_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{**TWO, "preference": value} for value in (1, 2)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))
    assert read("-") == ["Q? | Aaa > Bbb", "Q? | Bbb > Aaa"]


def test_all_of_a_file_decides_what_its_numbers_mean(write: Write) -> None:
    """The first rows alone would be 1s, which say nothing; a 2 at the end does."""
    rows = [{**TWO, "preference": 1}] * 200
    with pytest.raises(InputError, match="--one-means"):
        read(write(*rows))
    assert read(write(*rows, {**TWO, "preference": 2}))[-1] == "Q? | Bbb > Aaa"


# --- two files --------------------------------------------------------------------------------------------------------


def test_columns_of_another_file_by_a_key(write: Write) -> None:
    questions = write({"id": 7, "prompt": "Seven?"}, {"id": "8", "prompt": "Eight?"}, name="q.jsonl")
    answers = write({"qid": "7", "chosen": "Aaa", "rejected": "Bbb"}, {"qid": 8, "chosen": "C", "rejected": "D"})
    assert read(answers, join=(questions,), on=("qid=id",)) == ["Seven? | Aaa > Bbb", "Eight? | C > D"]
    with pytest.raises(BadRows, match=r"films\.jsonl:1: .*q\.jsonl has no row for qid 9"):
        read(write({"qid": 9, "chosen": "A", "rejected": "B"}), join=(questions,), on=("qid=id",))
    twice = write({"id": 7, "prompt": "x"}, {"id": 7, "prompt": "y"}, name="twice.jsonl")
    with pytest.raises(InputError, match=r"twice\.jsonl:2: the row has the same id as an earlier row \(7\)"):
        read(answers, join=(twice,), on=("qid=id",))


def test_columns_of_another_file_by_the_row_s_number(write: Write) -> None:
    questions = write({"prompt": "Zero?"}, {"prompt": "One?"}, name="q.jsonl")
    verdicts = write({"i": 1, "response_a": "Aaa", "response_b": "Bbb", "winner": "A"})
    assert read(verdicts, join=(questions,), on=("i=@row",)) == ["One? | Aaa > Bbb"]


def test_verdicts_on_responses_that_are_in_a_file_of_their_own(tmp_path: Path, write: Write) -> None:
    """Judges' scores beside the names of two models: their responses are joined twice, each under a name."""
    questions = write({"qid": 1, "prompt": "Q?"}, name="questions.jsonl")
    answers = write(
        {"qid": 1, "model": "m", "output": "Aaa"}, {"qid": 1, "model": "n", "output": "Bbb"}, name="answers.jsonl"
    )
    beside = {"qid": 1, "one": "n", "two": "m", "judge": "J", "style": "long", "swapped": True}
    reviews = write({**beside, "winner": 1}, {**beside, "style": "short", "winner": 2})
    layout = tmp_path / "reviews.yaml"
    layout.write_text(
        "prompt: {text: prompt}\n"
        "responses: [{column: first.output, model: one}, {column: second.output, model: two}]\n"
        'verdicts: [{column: winner, values: {"1": first, "2": second}, annotator: "{judge}, {style}"}]\n'
        "order: swapped\n"
    )
    joins = {
        "join": (questions, f"first={answers}", f"second={answers}"),
        "on": ("qid", "qid,one=model", "qid,two=model"),
    }
    assert read(reviews, **joins, layout=str(layout)) == ["Q? | Bbb > Aaa", "Q? | Aaa > Bbb"]
    run = Run(tmp_path / "run")
    spec = IngestSpec(kind="comparisons", layout=str(layout), test=0.0, **joins)
    assert "not_kept" not in ingest(run, [reviews], spec).report.figures
    rows = run.only("comparisons").read().to_pylist()
    assert [(row["annotator"], row["verdict"], row["order"]) for row in rows] == [
        ("J, long", "first", "second-first"),
        ("J, short", "second", "second-first"),
    ]
    with pytest.raises(BadRows, match=r"has no row for qid, one 1, q"):
        read(write({**beside, "one": "q", "winner": 1}), **joins, layout=str(layout))


def test_a_joined_column_that_rows_have_already_is_counted(write: Write) -> None:
    """Of two columns of one name the row's own is read, and the other one is named."""
    questions = write({"prompt": "Q?", "answer": "reference"}, name="q.jsonl")
    answers = write({"i": 0, "answer": "Aaa"})
    reader = Reader([answers], ReadOptions(join=(questions,), on=("i=@row",), want="candidates"))
    (record,) = [record for _, record in reader.records()]
    assert (record.references, [one.text for one in record.responses]) in (
        ([("Aaa", None)], []), ([("Aaa", "answer")], []), ([], ["Aaa"])
    )  # fmt: skip
    assert reader.not_kept == {f"{questions}: answer": 1}


def test_one_row_of_another_kind_does_not_make_labelled_answers_references(write: Write) -> None:
    labelled = [{"question": f"{n}?", "answer": "Aaa", "is_correct": False} for n in range(7)]
    odd = {"query": "Q?", "win": "Aaa", "lose": "Bbb"}
    found = read(write(*labelled, odd), want="unpaired", on_bad_rows="drop")
    assert found == [f"{n}? | Aaa-" for n in range(7)]


def test_one_row_with_a_reference_does_not_make_outputs_responses(write: Write) -> None:
    plain = [{"instruction": f"{n}?", "input": "", "output": "R"} for n in range(7)]
    found = read(write(*plain, {"question": "Q?", "answer": "Aaa"}), want="candidates", on_bad_rows="drop")
    assert found[:7] == [f"{n}? | ref: R" for n in range(7)]


def test_join_and_on_go_together_one_for_one() -> None:
    with pytest.raises(ValueError, match="go together"):
        IngestSpec(join=("a.jsonl", "b.jsonl"), on=("id",))


# --- dataset_info.json ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "row", "want", "expected"),
    [
        ({}, {"instruction": "Q", "input": "x", "output": "R"}, "demonstrations", "Q\n\nx | ref: R"),
        (
            {"ranking": True, "columns": {"prompt": "ask", "chosen": "good", "rejected": "bad"}},
            {"ask": "Q?", "good": "Aaa", "bad": "Bbb"},
            "pairs",
            "Q? | Aaa > Bbb",
        ),
        (
            {"formatting": "sharegpt", "ranking": True,
             "columns": {"messages": "talk", "chosen": "a", "rejected": "b"}},
            {"talk": [{"from": "human", "value": "Q?"}], "a": {"from": "gpt", "value": "Aaa"},
             "b": {"from": "gpt", "value": "Bbb"}},
            "pairs",
            "Q? | Aaa > Bbb",
        ),
        (
            {"formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "liked"}},
            {"messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "Aaa"}], "liked": False},
            "unpaired",
            "Q? | Aaa-",
        ),
    ],
)  # fmt: skip
def test_what_a_dataset_info_says(
    tmp_path: Path, write: Write, entry: dict[str, Any], row: dict[str, Any], want: str, expected: str
) -> None:
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": {"file_name": "films.jsonl", **entry}}))
    assert read(write(row), want=want) == [expected]


# --- never silent -----------------------------------------------------------------------------------------------------


def test_what_is_not_kept_is_counted_by_name(tmp_path: Path, write: Write) -> None:
    message = {"role": "user", "content": "Q?", "id": 7, "timestamp": "now"}
    report = ingest(
        Run(tmp_path / "run"), [write({"prompt": [message], "chosen": "A", "rejected": "B", "topic": 1})],
        IngestSpec(kind="pairs"),
    ).report  # fmt: skip
    figures = report.figures
    assert (figures["message_key_id"], figures["message_key_timestamp"]) == (1, 1)
    assert figures["metadata"] == "topic"


def test_a_column_that_is_left_out_is_not_read() -> None:
    rows = [{**ROW, "question": "Another?"}]
    with pytest.raises(InputError, match="the prompt could be prompt or question, which differ"):
        list(records(rows))
    (record,) = records(rows, ignore=("question",))
    assert (shown(record), record.metadata) == ("Q? | Aaa > Bbb", {})


def test_the_first_rows_as_they_are_understood(write: Write) -> None:
    file = write(
        {**TWO, "winner": "B", "topic": "ships", "model_a": "m", "model_b": "n"}, {"prompt": "P"}, name="x.jsonl"
    )
    text = preview([Reader([file], ReadOptions(on_bad_rows="drop"))])
    for line in (
        f"{file}: layout prompt",
        "  verdicts:",
        "row 1:",
        "  user: Q?",
        "  response 0 (by m): Aaa",
        "  says: 1 over 0",
        '  metadata: {"topic": "ships"}',
        "row 2:",
    ):
        assert line in text.splitlines()
    shown_layout = text.partition("\n")[2].partition("row 1:")[0]
    (again,) = records(
        [{**TWO, "winner": "B", "model_a": "m", "model_b": "n"}], layout="{" + json.dumps(_yaml(shown_layout))[1:]
    )
    assert shown(again) == "Q? | Bbb > Aaa"


def _yaml(text: str) -> Any:
    import yaml

    return yaml.safe_load(text)


def test_a_dry_run_stores_nothing(tmp_path: Path, write: Write, prefdata: Any) -> None:
    code, out, err = prefdata("ingest", tmp_path / "run", write(ROW), "--as", "pairs", "--dry-run")
    assert (code, err) == (0, "")
    assert "chosen 0: Aaa" in out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", [pa.date32(), pa.timestamp("us"), pa.list_(pa.date32())], ids=str)
def test_a_date_that_python_has_not_is_a_bad_row(prefdata, tmp_path, kind) -> None:
    far = 1 << 60 if pa.types.is_timestamp(kind) else 10_000_000
    days = [[1], [far], [2]] if pa.types.is_list(kind) else [1, far, 2]
    file = tmp_path / "d.parquet"
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "at": pa.array(days, kind)}), file)
    code, _, err = prefdata("ingest", tmp_path / "r", file)
    assert (code, f"{file}:2: it holds a date that cannot be read" in err) == (2, True), err
    assert "2 out" in prefdata("ingest", tmp_path / "r", file, "--on-bad-rows", "drop")[1]


@pytest.mark.parametrize(
    "state", ['{"_data_files": "x"}', "[" * 9999, "{", "[]", '{"_data_files": [{"filename": "../x"}]}',
              '{"_data_files": [{"filename": "/etc/passwd"}]}', '{"_data_files": [7]}',
              '{"_data_files": [{"filename": "a\\u0000"}]}'],
)  # fmt: skip
def test_a_saved_dataset_that_is_none_or_leads_elsewhere(prefdata, tmp_path, state) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/state.json").write_text(state)
    code, _, err = prefdata("ingest", tmp_path / "r", tmp_path / "saved")
    assert (code, "Save the dataset again" in err) == (2, True), err


@pytest.mark.parametrize(
    "splits", ['{"splits": ["../train"]}', '{"splits": 7}', "7", '{"splits": [null]}', '{"splits": [""]}']
)
def test_the_splits_of_a_saved_dataset_that_lead_elsewhere(prefdata, tmp_path, splits) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved/dataset_dict.json").write_text(splits)
    code, _, err = prefdata("ingest", tmp_path / "r", tmp_path / "saved")
    assert (code, "Save the dataset again" in err) == (2, True), err
