"""Layouts of prompts: what each reads, what it leaves, and that nothing is guessed."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from prefdata.errors import InputError, UsageError
from prefdata.formats.detection import detect
from prefdata.formats.files import RawRow
from prefdata.formats.layout_maps import named_map
from prefdata.formats.layouts import Layout
from prefdata.formats.records import BadRowError, Record

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief"}


def prompt(values: dict[str, Any], layout: str | None = None, *beside: dict[str, Any]) -> Record:
    """The record of a row, in a file that it is alone in, or `beside` others."""
    given = named_map(layout) if layout else None
    return Layout(detect([values, *beside], "file", given)).record(RawRow("file", 1, values))


def reference(record: Record) -> str | None:
    return record.references[0][0] if record.references else None


@pytest.mark.parametrize(
    ("values", "name", "messages", "references"),
    [
        ({"prompt": "Hi"}, "prompt", [USER], []),
        ({"text": "Hi"}, "text", [USER], []),
        ({"prompt": "Hi", "reference": "Hello"}, "prompt", [USER], ["Hello"]),
        ({"prompt": "Hi", "system_prompt": "Be brief"}, "prompt", [SYSTEM, USER], []),
        ({"prompt": "Hi", "system": ""}, "prompt", [USER], []),
        ({"prompt": [SYSTEM, USER]}, "conversation", [SYSTEM, USER], []),
        ({"messages": [USER, ASSISTANT]}, "messages", [USER], ["Hello"]),
        ({"messages": [USER, ASSISTANT, USER]}, "messages", [USER, ASSISTANT, USER], []),
        ({"messages": json.dumps([USER, ASSISTANT])}, "messages", [USER], ["Hello"]),
        ({"conversations": [USER]}, "messages", [USER], []),
        ({"messages": [USER, {"role": "assistant", "content": ""}], "answer": 4}, "messages", [USER], ["4"]),
        ({"messages": [USER], "system": "Be brief"}, "messages", [SYSTEM, USER], []),
        ({"context_messages": [USER]}, "context_messages", [USER], []),
        ({"context": [USER]}, "context_messages", [USER], []),
        ({"question": "Hi", "answer": "Hello"}, "question", [USER], ["Hello"]),
        ({"problem": "Hi", "answer": 7.5}, "question", [USER], ["7.5"]),
        ({"question": "Hi", "answer": ["one", 2]}, "question", [USER], ["one", "2"]),
        ({"question": "Hi", "answer": {"no": "text"}}, "question", [USER], []),
        ({"question": "Hi", "answer": "Hello", "references": ["Hello", "Hey"]}, "question", [USER], ["Hello", "Hey"]),
        ({"instruction": "Hi", "output": "Hello"}, "instruction", [USER], ["Hello"]),
        ({"instruction": "Hi", "input": " ", "text": "### all"}, "instruction", [USER], []),
        ({"instruction": "A", "input": "B"}, "instruction", [{"role": "user", "content": "A\n\nB"}], []),
        ({"instruction": "A", "context": "B"}, "instruction", [{"role": "user", "content": "A\n\nB"}], []),
        ({"instruction": "Hi", "history": [["Hi", "Hello"]]}, "instruction", [USER, ASSISTANT, USER], []),
    ],
)
def test_what_each_layout_reads(
    values: dict[str, Any], name: str, messages: list[dict[str, str]], references: list[str]
) -> None:
    assert detect([values], "file").layout == name
    read = prompt(values)
    assert read.messages == messages
    assert [text for text, _ in read.references] == references


def test_from_value_turns_and_their_role_names() -> None:
    turns = [
        {"from": "system", "value": "Be brief"},
        {"from": "Human", "value": "Hi"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
        {"from": "observation", "value": "[]"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Bye"},
    ]
    assert detect([{"conversations": turns}], "file").layout == "sharegpt"
    read = prompt({"conversations": turns})
    assert [m["role"] for m in read.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert read.messages[2] == {"role": "assistant", "content": "", "tool_calls": json.dumps([call])}
    assert reference(read) == "Bye"


@pytest.mark.parametrize(
    ("values", "reason", "said"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown_role", "message 1 has the role 'wizard'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown_role", "message 1 has the role"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "not_text", "the content of message 2 is null"),
        ({"messages": [{"role": "user", "content": 5}]}, "not_text", "content of message 1 is int"),
        ({"messages": [USER], "split": "holiday"}, "split", "split is 'holiday'; known: train"),
        ({"messages": [USER], "split": 1}, "split", "split is 1"),
        ({"messages": [USER], "tools": "{}"}, "tools", "tools should be a list"),
        ({"messages": [USER], "tools": "[{"}, "tools", "tools should be a list"),
        ({"messages": [USER], "weight": "heavy"}, "weight", "weight should be a number, not 'heavy'"),
        ({"messages": []}, "no_prompt", "there is no prompt"),
        ({"messages": None}, "no_prompt", "there is no prompt: messages should hold it"),
    ],
)
def test_rows_that_cannot_be_used(values: dict[str, Any], reason: str, said: str) -> None:
    good = {"messages": [USER], "split": "train", "weight": 1.0}
    with pytest.raises(BadRowError, match=said) as caught:
        prompt(values, None, good, good)
    assert caught.value.reason == reason


@pytest.mark.parametrize("history", [[["only one"]], "text", 5])
def test_a_history_that_is_none(history: Any) -> None:
    good = {"instruction": "x", "history": [["a", "b"]]}
    with pytest.raises(BadRowError, match="history should be a list of"):
        prompt({"instruction": "x", "history": history}, None, good, good)


def test_tags_tools_split_and_metadata() -> None:
    tools = [{"type": "function", "function": {"name": "f", "default": None}}]
    read = prompt(
        {
            "prompt": "Hi",
            "tags": ["b", "a", "b"],
            "tools": tools,
            "split": "validation",
            "category": "greeting",
            "empty": None,
            "metadata": {"id": 3},
        }
    )
    assert read.tags == ["b", "a"]
    assert read.tools == json.dumps(tools)  # a null that somebody wrote stays
    assert read.split == "test"
    assert read.metadata == {"id": 3, "category": "greeting"}
    assert prompt({"prompt": "Hi", "tags": "one"}).tags == ["one"]
    assert prompt({"prompt": "Hi", "tools": '[ {"type" :"f"} ]'}).tools == '[{"type": "f"}]'
    assert prompt({"prompt": "Hi", "tools": []}).tools is None
    bare = prompt({"prompt": "Hi"})
    assert (bare.tags, bare.tools, bare.split, bare.metadata) == ([], None, None, {})


def test_metadata_says_everything_in_json() -> None:
    given = {
        "nan": float("nan"),
        "inf": float("inf"),
        "when": datetime.date(2024, 2, 29),
        "bytes": b"\x00\xff",
        "nested": {"1": (1, [float("nan")])},
        "metadata": '{"nested": "taken"}',
        "yes": True,
    }
    assert prompt({"prompt": "Hi", **given}).metadata == {
        "nan": None,
        "inf": None,
        "when": "2024-02-29",
        "bytes": "AP8=",
        "nested": {"1": [1, [None]]},
        "metadata": '{"nested": "taken"}',
        "yes": True,
    }


def test_first_turn_only_when_named() -> None:
    values = {"turns": ["Hi", "And now?"], "reference": ["a", "b"]}
    with pytest.raises(InputError, match=r"Columns found: turns \(texts\).*\n.*first-turn"):
        prompt(values)
    read = prompt(values, "first-turn")
    assert read.messages == [USER]
    assert read.metadata == {"later_turns": ["And now?"]}
    assert [text for text, _ in read.references] == ["a", "b"]
    assert prompt({"turns": ["Hi"]}, "first-turn").metadata == {}
    with pytest.raises(BadRowError, match="turns should be a list of texts"):
        prompt({"turns": []}, "first-turn", values)


def test_unknown_layout_lists_what_is_known_and_what_was_found() -> None:
    with pytest.raises(InputError) as caught:
        detect([{"id": 1, "words": "x"}, {"id": 2, "words": ["x"], "no": None}], "my.jsonl")
    said = str(caught.value)
    assert said.startswith(
        "my.jsonl: no column holds a prompt. Rename one to prompt, define a layout with --layout FILE.yaml"
    )
    assert "join the file with the prompts (--join FILE --on COLUMN).\n" in said
    assert "\nColumns found: id (number), words (text or texts), no (null).\n" in said
    assert "Layouts known: alpaca-eval, " in said


def test_two_columns_that_both_hold_a_prompt() -> None:
    """Of those that say the same one is read; of others neither, until somebody says which."""
    agreeing = {"prompt": "Hi", "messages": [USER, ASSISTANT]}
    assert (prompt(agreeing).messages, reference(prompt(agreeing))) == ([USER], "Hello")
    assert prompt({"prompt": "Hi", "question": "Hi"}).messages == [USER]
    with pytest.raises(BadRowError, match="prompt and the conversation hold two different prompts"):
        prompt({"prompt": "Other", "messages": [USER, ASSISTANT]})
    with pytest.raises(InputError, match=r"the prompt could be prompt or question, which differ. Leave one out with"):
        prompt({"prompt": "Answer this: Hi", "question": "Hi"})
    both = {"prompt": "Other", "messages": [USER, ASSISTANT]}
    with pytest.raises(BadRowError, match="messages is part of the prompt, but the layout prompt does not read it"):
        prompt(both, "prompt")
    layout = detect([both], "file", ignore=["messages"])
    assert Layout(layout, ["messages"]).record(RawRow("file", 1, both)).messages[0]["content"] == "Other"


def test_a_column_that_asks_something_and_is_in_later_rows_alone() -> None:
    """The layout was found before such a row came: it is not read without it."""
    layout = Layout(detect([{"prompt": "Hi"}] * 3, "file"))
    for column, value in (("system", "Be brief"), ("messages", [USER]), ("instruction", "x")):
        with pytest.raises(BadRowError, match=f"{column} is part of the prompt, .*--ignore {column}") as caught:
            layout.record(RawRow("file", 9, {"prompt": "Hi", column: value}))
        assert caught.value.reason == "unread_prompt"
    assert layout.record(RawRow("file", 9, {"prompt": "Hi", "system": "", "question": 3})).messages == [USER]


def test_named_layouts() -> None:
    with pytest.raises(UsageError, match=r"unknown layout 'mesages'\. Did you mean \"messages\""):
        prompt({"prompt": "Hi"}, "mesages")
    with pytest.raises(InputError, match=r"file: nothing to read as messages\.\nColumns found: prompt \(text\)"):
        prompt({"prompt": "Hi"}, "messages")


def test_a_text_that_only_looks_like_json_is_text() -> None:
    for text in ("[{not json", "[{}]", '["a"]', "[1, 2]", '{"answer": 1}', '[{"content": "x"}]', '{"role'):
        assert prompt({"prompt": text}).messages == [{"role": "user", "content": text}]


def test_two_system_messages() -> None:
    same = {"messages": [SYSTEM, USER], "system": "Be brief"}
    assert prompt(same).messages == [SYSTEM, USER]
    with pytest.raises(BadRowError, match="system and the conversation hold two system messages"):
        prompt({**same, "system": "Be long"})


def test_one_odd_row_among_the_first_does_not_decide_the_layout() -> None:
    odd = {"messages": "not a conversation", "chosen": 3}
    good = {"messages": [USER], "chosen": "a", "rejected": "b"}
    assert detect([odd, good, good], "file") == detect([good], "file")


@pytest.mark.parametrize(
    "quoted", ["\n\nHuman: Hi.", "\n\nHuman: Hi.\n\nAssistant: Ho.", '[{"role": "user", "content": "a"}]']
)
@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_response_that_quotes_a_transcript_does_not_decide_the_layout(side: str, quoted: str) -> None:
    """Read as a whole conversation, it made every other row a bad row."""
    good = [{"prompt": f"Q{n}?", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(3)]
    odd = {**good[0], side: quoted}
    assert detect([odd, *good], "file") == detect(good, "file")
