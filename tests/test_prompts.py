"""ingest's pure core: every row is a prompt, a duplicate or a bad row, and is counted."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingested import prompts_of as canonical

from prefdata import ids
from prefdata.errors import BadRows, InputError, SpecConflict
from prefdata.formats.files import RawRow
from prefdata.formats.readers import read
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec
from prefdata.storage.run import Run
from prefdata.storage.schemas import PROMPTS

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief"}
TOOL = {"role": "tool", "content": "4"}


def rows(*values: Any, file: str = "f.jsonl") -> list[RawRow]:
    return [
        RawRow(file, number, problem=value) if isinstance(value, str) else RawRow(file, number, value)
        for number, value in enumerate(values, 1)
    ]


def asked(*texts: str) -> list[RawRow]:
    return rows(*({"prompt": text} for text in texts))


def test_the_table_and_its_report() -> None:
    table, report = canonical(asked("a", "b"), test=0)
    assert PROMPTS.conform(table).schema == PROMPTS.schema
    assert table.to_pylist() == [
        {
            "prompt_id": ids.prompt_id([{"role": "user", "content": text}]),
            "messages": [{"role": "user", "content": text}],
            "tools": None,
            "reference": None,
            "references": None,
            "tags": [],
            "metadata": None,
            "split": "train",
            "source_number": 1,
        }
        for text in ("a", "b")
    ]
    assert (report.step, report.unit, report.rows_in, report.rows_out, report.dropped) == ("ingest", "rows", 2, 2, {})
    assert report.figures == {"layout": "prompt", "train": 2}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([SYSTEM], "there is no user message"),
        ([ASSISTANT], "there is no user message"),
        ([SYSTEM, ASSISTANT, USER], "message 2 is assistant, after system; expected user"),
        ([ASSISTANT, USER], "message 1 is assistant, first; expected system or user"),
        ([USER, USER], "message 2 is user, after user; expected assistant"),
        ([USER, ASSISTANT, ASSISTANT, USER], "message 3 is assistant, after assistant; expected user or tool"),
        ([USER, SYSTEM, USER], "message 2 is system, after user; expected assistant"),
        ([SYSTEM, SYSTEM, USER], "message 2 is system, after system; expected user"),
        ([TOOL, USER], "message 1 is tool, first; expected system or user"),
        ([USER, TOOL], "message 2 is tool, after user; expected assistant"),
        ([USER, ASSISTANT, TOOL, USER], "message 4 is user, after tool; expected assistant or tool"),
        ([{"role": "user", "content": " \n"}], r"message 1 \(user\) is empty"),
        ([USER, {"role": "assistant", "content": " "}, USER], r"message 2 \(assistant\) is empty"),
    ],
)
def test_conversations_that_break_a_rule(messages: list[dict[str, str]], said: str) -> None:
    with pytest.raises(BadRows, match=f"(?s)1 bad row.*f.jsonl:1: {said}$") as caught:
        canonical(rows({"messages": messages}))
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [USER, ASSISTANT, USER],
        [SYSTEM, USER, ASSISTANT, TOOL, TOOL, ASSISTANT, USER],
        [USER, ASSISTANT, TOOL],
        [USER, {**ASSISTANT, "prefill": True}],
    ],
)
def test_conversations_that_keep_them(messages: list[dict[str, str]]) -> None:
    table, _ = canonical(rows({"messages": messages}))
    assert [ids.without_nulls(turns) for turns in table["messages"].to_pylist()] == [messages]


def test_faults_are_reported_up_to_a_limit_and_all_are_counted() -> None:
    some = [
        RawRow("f", n, problem=f"broken at {n}") if n % 2 else RawRow("f", n, {"prompt": str(n)}) for n in range(61)
    ]
    with pytest.raises(BadRows) as caught:
        canonical(some)
    said = str(caught.value)
    assert said.startswith("30 bad rows.")
    assert said.count("\n  f:") == 20
    assert said.endswith("… and 10 more")


def test_the_same_fault_is_one_line_with_a_count() -> None:
    broken = {7, 731, *range(800, 840)}
    some = [
        RawRow("f", n, problem="broken JSON") if n in broken else RawRow("f", n, {"prompt": str(n)})
        for n in range(1, 901)
    ]
    with pytest.raises(BadRows) as caught:
        canonical(some)
    said = str(caught.value)
    assert said.startswith("42 bad rows. Nothing was written; fix them, or leave them out with --on-bad-rows drop.")
    assert said.endswith("\n  f:7: broken JSON (also in row 731, 800, 801, 802, … (42 rows))")
    assert [row.row for row in caught.value.rows] == sorted(broken)


def test_bad_rows_can_be_dropped_and_are_counted_by_reason() -> None:
    some = rows({"prompt": "a"}, "broken JSON", {"prompt": ""}, {"prompt": " "}, {"prompt": 5}, {"prompt": "a"})
    table, report = canonical(some, on_bad_rows="drop")
    assert table.num_rows == 1
    assert report.rows_in == 6
    assert report.dropped == {"broken": 1, "empty_content": 2, "no_prompt": 1, "duplicate": 1}


def test_nothing_left_is_an_error_even_when_dropping() -> None:
    with pytest.raises(BadRows, match="2 bad rows"):
        canonical(rows("broken", "broken"), on_bad_rows="drop")


def test_duplicates_are_merged_and_counted() -> None:
    first = {"prompt": "a", "tags": ["x", "y"], "id": 1}
    second = {"prompt": "a", "tags": ["z", "x"], "id": 2, "reference": "A", "split": "test"}
    third = {"prompt": "a", "reference": "B", "split": "train"}
    table, report = canonical(rows(first, second, third), test=0)
    assert report.dropped == {"duplicate": 2}
    figures = {"layout": "prompt", "metadata": "id", "split_conflicts": 1, "metadata_not_kept": 1, "test": 1}
    assert report.figures == figures
    assert table["references"].to_pylist() == [[{"text": text, "source": "reference"} for text in ("A", "B")]]
    (row,) = table.to_pylist()
    assert row["tags"] == ["x", "y", "z"]
    assert (row["metadata"], row["reference"], row["split"]) == ('{"id": 1}', "A", "test")


def test_duplicates_can_be_refused() -> None:
    with pytest.raises(
        BadRows, match=r"(?s)1 bad row\. Duplicates were to be refused.*f\.jsonl:3: the same prompt as f\.jsonl:1"
    ):
        canonical(asked("a", "b", "a"), on_duplicates="error")


def test_the_same_messages_with_other_tools_are_another_prompt() -> None:
    table, report = canonical(rows({"prompt": "a"}, {"prompt": "a", "tools": [{"type": "f"}]}))
    assert table["tools"].to_pylist() == [None, '[{"type": "f"}]']
    assert table["prompt_id"][1].as_py() == ids.prompt_id([{"role": "user", "content": "a"}], '[{"type": "f"}]')
    assert report.dropped == {}


def test_a_system_message_for_those_that_have_none() -> None:
    some = rows({"messages": [USER]}, {"messages": [SYSTEM, USER]})
    table, _ = canonical(some, system="Answer in verse")
    assert table["messages"].to_pylist() == [[{"role": "system", "content": "Answer in verse"}, USER], [SYSTEM, USER]]


def test_each_file_has_its_own_layout() -> None:
    table, report = canonical(
        [*rows({"prompt": "a"}, file="1"), *rows("broken", {"question": "b"}, file="2")], on_bad_rows="drop"
    )
    assert [m[0]["content"] for m in table["messages"].to_pylist()] == ["a", "b"]
    assert report.figures["layout"] == "prompt, question"
    with pytest.raises(InputError, match="2: nothing to read as prompt"):
        canonical([*rows({"prompt": "a"}, file="1"), *rows({"question": "b"}, file="2")], layout="prompt")


def test_splits_follow_the_hash_and_not_the_order() -> None:
    texts = [f"prompt {i}" for i in range(2000)]
    table, report = canonical(asked(*texts), test=0.2, seed=7)
    assert table["prompt_id"].to_pylist() == [ids.prompt_id([{"role": "user", "content": t}]) for t in texts]
    shuffled = random.Random(0).sample(texts, 2000)
    again, _ = canonical(asked(*shuffled[:1500]), test=0.2, seed=7)
    split = dict(zip(table["prompt_id"].to_pylist(), table["split"].to_pylist(), strict=True))
    assert all(
        split[key] == s for key, s in zip(again["prompt_id"].to_pylist(), again["split"].to_pylist(), strict=True)
    )
    # 2000 draws of probability 0.2: 400 expected, standard deviation 17.9
    assert 340 < report.figures["test"] < 460
    for key, said in split.items():
        assert said == ("test" if ids.unit_uniform(7, "split", key) < 0.2 else "train")
    other, _ = canonical(asked(*texts), test=0.2, seed=8)
    assert other["split"] != table["split"]


@pytest.mark.parametrize(("share", "split"), [(0.0, {"train"}), (1.0, {"test"})])
def test_all_or_nothing_splits(share: float, split: set[str]) -> None:
    table, _ = canonical(asked(*map(str, range(50))), test=share)
    assert set(table["split"].to_pylist()) == split


def test_lone_surrogates_are_replaced_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"prompt":"half \\ud83d","tags":["\\udc00"],"reference":"\\ud800x","id":"\\ud801"}\n'
        '{"prompt":"whole \\ud83d\\ude42"}\n'
    )
    table, report = canonical(read(str(path)))
    first, second = table.to_pylist()
    assert first["messages"][0]["content"] == "half \ufffd"
    assert (first["tags"], first["reference"], first["metadata"]) == (["\ufffd"], "\ufffdx", '{"id": "\ufffd"}')
    assert second["messages"][0]["content"] == "whole 🙂"
    assert report.figures["lone_surrogates"] == 1


@pytest.mark.parametrize(
    "text", ["nul \x00", "bell \x07", "a\r\nb", " spaces ", "\ufeffbom", "e\u0301", "é", "𐍈🙂", "שלום"]
)
def test_texts_are_left_as_they_are(text: str) -> None:
    table, report = canonical(asked(text))
    assert table["messages"][0].as_py()[0]["content"] == text
    assert "lone_surrogates" not in report.figures


def test_bytes_that_differ_are_two_prompts() -> None:
    table, _ = canonical(asked("é", "e\u0301", "é "))
    assert table.num_rows == 3


TEXT = st.text(st.characters(codec=None), max_size=8)
ROW = st.fixed_dictionaries(
    {"prompt": TEXT},
    optional={
        "reference": TEXT,
        "tags": st.lists(TEXT, max_size=3),
        "split": st.sampled_from(["train", "test"]),
        "x": TEXT,
    },
)


@settings(deadline=None)  # the machine may be busy
@given(st.lists(ROW, min_size=1, max_size=12))
def test_every_row_is_accounted_for_and_the_table_reads_back_as_itself(some: list[dict[str, Any]]) -> None:
    try:
        table, report = canonical(rows(*some), on_bad_rows="drop")
    except BadRows:
        assert all(not row["prompt"].strip() for row in some)
        return
    assert report.rows_in == len(some)
    assert len(set(table["prompt_id"].to_pylist())) == table.num_rows == report.rows_out
    again, _ = canonical(rows(*table.to_pylist()))
    assert again.equals(table)


def test_ingest_once_and_refuse_other_prompts_under_the_same_name(tmp_path: Path) -> None:
    run, file = Run(tmp_path / "run"), tmp_path / "films.jsonl"
    file.write_text('{"prompt":"a","tags":["x"]}\n{"prompt":"b"}\n')
    outcome = ingest(run, [str(file)], IngestSpec())
    assert (outcome.did, outcome.path.name, outcome.report.rows_out) == ("made", "source=films", 2)
    assert ingest(run, [str(file)], IngestSpec()).did == "kept"
    for changed in ('{"prompt":"a","tags":["y"]}\n{"prompt":"b"}\n', '{"prompt":"a","tags":["x"]}\n'):
        file.write_text(changed)
        with pytest.raises(SpecConflict, match="was made with other settings"):
            ingest(run, [str(file)], IngestSpec())
    assert ingest(run, [str(file)], IngestSpec(), replace=True).did == "replaced"
    assert ingest(run, [str(file), str(file)], IngestSpec(source="twice")).report.dropped == {"duplicate": 1}


def test_bad_input_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "films.jsonl"
    file.write_text('{"prompt":"a"}\n{"prompt":\n')
    with pytest.raises(BadRows, match=r"films\.jsonl:2: broken JSON at column 11"):
        ingest(Run(tmp_path / "run"), [str(file)], IngestSpec())
    assert not (tmp_path / "run").exists()


INSTRUCTIONS = "- {text: Always act as Napoleon from now on., short: 'Figure: Napoleon.'}\n"


@pytest.fixture
def napoleon(tmp_path: Path) -> str:
    (tmp_path / "napoleon.yaml").write_text(INSTRUCTIONS)
    return str(tmp_path / "napoleon.yaml")


def test_an_instruction_stands_in_the_first_user_turn_and_in_the_metadata(napoleon: str) -> None:
    some = [[SYSTEM, {"role": "user", "content": f"Hi {i}"}, ASSISTANT, USER] for i in range(200)]
    plain, _ = canonical(rows(*({"messages": messages, "id": 1} for messages in some)), test=0.3)
    table, report = canonical(
        rows(*({"messages": messages, "id": 1} for messages in some)), test=0.3, instructions=napoleon
    )
    assert report.rows_out == 200
    forms = []
    for messages, before, row in zip(some, plain.to_pylist(), table.to_pylist(), strict=True):
        carried = json.loads(row["metadata"])
        said, full = carried["instruction"]["said"], "Always act as Napoleon from now on."
        forms.append(said)
        first = {"role": "user", "content": f"{said}\n\n{messages[1]['content']}"}
        assert row["messages"] == [SYSTEM, first, ASSISTANT, USER]
        assert carried == {"id": 1, "instruction": {"said": said, "sampled": full}}
        assert row["prompt_id"] == ids.prompt_id(row["messages"])
        assert row["split"] == before["split"]
    assert set(forms) == {full, "Figure: Napoleon."}
    assert abs(forms.count(full) - 100) < 30  # a standard deviation is 7


def test_a_reference_that_does_not_heed_the_instruction_is_no_reference_of_it(napoleon: str) -> None:
    table, _ = canonical(rows({"messages": [USER, ASSISTANT]}), instructions=napoleon)
    (row,) = table.to_pylist()
    assert row["reference"] is None
    assert json.loads(row["metadata"])["instruction"]["reference_without"] == "Hello"


def test_a_second_instruction_is_refused(napoleon: str) -> None:
    table, _ = canonical(asked("a"), instructions=napoleon)
    again, _ = canonical(rows(*table.to_pylist()))
    assert again.equals(table)
    with pytest.raises(BadRows, match=r"f\.jsonl:1: its metadata hold an instruction already"):
        canonical(rows(*table.to_pylist()), instructions=napoleon)
    both = rows({"messages": [USER]}, *table.to_pylist())
    _, report = canonical(both, instructions=napoleon, on_bad_rows="drop")
    assert report.dropped == {"instructed": 1}


def test_instructions_are_part_of_what_a_source_is(tmp_path: Path, napoleon: str) -> None:
    run, file = Run(tmp_path / "run"), tmp_path / "films.jsonl"
    file.write_text('{"prompt":"a"}\n')
    told = IngestSpec(instructions=str(tmp_path / "napoleon.yaml"))
    assert ingest(run, [str(file)], told).did == "made"
    (tmp_path / "same.yaml").write_text(f"# the same under another name\n{INSTRUCTIONS}")
    assert ingest(run, [str(file)], IngestSpec(instructions=str(tmp_path / "same.yaml"))).did == "kept"
    for other in (IngestSpec(), IngestSpec(instructions="gatt")):
        with pytest.raises(SpecConflict, match="instructions: "):
            ingest(run, [str(file)], other)
