"""Layouts: what each reads, what it leaves, and that nothing is guessed."""

from __future__ import annotations

import datetime
import json
from typing import Any

import pytest

from prefdata.errors import InputError, UsageError
from prefdata.formats.layouts import LAYOUTS, Prompt, Unusable, detect, named

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}
SYSTEM = {"role": "system", "content": "Be brief"}


def prompt(values: dict[str, Any], layout: str | None = None) -> Prompt:
    found = named(layout, [values], "file") if layout else detect([values], "file")
    return found.prompt(values)


@pytest.mark.parametrize(
    ("values", "name", "messages", "reference"),
    [
        ({"prompt": "Hi"}, "prompt", [USER], None),
        ({"text": "Hi"}, "text", [USER], None),
        ({"prompt": "Hi", "reference": "Hello"}, "prompt", [USER], "Hello"),
        ({"prompt": "Hi", "system_prompt": "Be brief"}, "prompt", [SYSTEM, USER], None),
        ({"prompt": "Hi", "system": ""}, "prompt", [USER], None),
        ({"prompt": [SYSTEM, USER]}, "conversation", [SYSTEM, USER], None),
        ({"messages": [USER, ASSISTANT]}, "messages", [USER], "Hello"),
        ({"messages": [USER, ASSISTANT, USER]}, "messages", [USER, ASSISTANT, USER], None),
        ({"messages": json.dumps([USER, ASSISTANT])}, "messages", [USER], "Hello"),
        ({"conversations": [USER]}, "messages", [USER], None),
        ({"messages": [USER, {"role": "assistant", "content": ""}], "answer": 4}, "messages", [USER], "4"),
        ({"messages": [USER], "system": "Be brief"}, "messages", [SYSTEM, USER], None),
        ({"context_messages": [USER]}, "context_messages", [USER], None),
        ({"context": [USER]}, "context_messages", [USER], None),
        ({"question": "Hi", "answer": "Hello"}, "question", [USER], "Hello"),
        ({"problem": "Hi", "answer": 7.5}, "question", [USER], "7.5"),
        ({"question": "Hi", "answer": ["no", "text"]}, "question", [USER], None),
        ({"instruction": "Hi", "output": "Hello"}, "instruction", [USER], "Hello"),
        ({"instruction": "Hi", "input": " ", "text": "### all"}, "instruction", [USER], None),
        ({"instruction": "A", "input": "B"}, "instruction", [{"role": "user", "content": "A\n\nB"}], None),
        ({"instruction": "A", "context": "B"}, "instruction", [{"role": "user", "content": "A\n\nB"}], None),
        ({"instruction": "Hi", "history": [["Hi", "Hello"]]}, "instruction", [USER, ASSISTANT, USER], None),
    ],
)
def test_what_each_layout_reads(
    values: dict[str, Any], name: str, messages: list[dict[str, str]], reference: str | None
) -> None:
    assert detect([values], "file").name == name
    read = prompt(values)
    assert read.messages == messages
    assert read.reference == reference


def test_from_value_turns_and_their_role_names() -> None:
    turns = [
        {"from": "system", "value": "Be brief"},
        {"from": "human", "value": "Hi"},
        {"from": "function_call", "value": "{}"},
        {"from": "observation", "value": "[]"},
        {"from": "gpt", "value": "Hello"},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Bye"},
    ]
    assert detect([{"conversations": turns}], "file").name == "sharegpt"
    read = prompt({"conversations": turns})
    assert [m["role"] for m in read.messages] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert read.messages[2]["content"] == "{}"
    assert read.reference == "Bye"


def test_content_parts_are_joined_and_other_parts_refused() -> None:
    parts = [{"type": "text", "text": "H"}, {"type": "text", "value": "i"}]
    assert prompt({"messages": [{"role": "user", "content": parts}]}).messages == [USER]
    image = [*parts, {"type": "image_url", "image_url": {"url": "x"}}]
    with pytest.raises(Unusable, match="message 1 holds a part of type image_url; only text is read") as caught:
        prompt({"messages": [{"role": "user", "content": image}]})
    assert caught.value.reason == "not_text"


@pytest.mark.parametrize(
    ("values", "reason", "said"),
    [
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown_role", "message 1 has the role 'wizard'"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "unknown_role", "message 1 has the role"),
        ({"messages": [USER, {"role": "user", "content": None}]}, "not_text", "content of message 2 is NoneType"),
        ({"messages": [{"role": "user", "content": 5}]}, "not_text", "content of message 1 is int"),
        (
            {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": 1}]}]},
            "tool_calls",
            "message 2 has tool_calls",
        ),
        ({"prompt": "x", "split": "holdout"}, "split", "split is 'holdout'; known: train"),
        ({"prompt": "x", "split": 1}, "split", "split is 1"),
        ({"prompt": "x", "tools": "{}"}, "tools", "tools should be a list"),
        ({"prompt": "x", "tools": "[{"}, "tools", "tools should be a list"),
        ({"instruction": "x", "history": [["only one"]]}, "history", "history should be a list of"),
    ],
)
def test_rows_that_cannot_be_used(values: dict[str, Any], reason: str, said: str) -> None:
    with pytest.raises(Unusable, match=said.replace("[", r"\[")) as caught:
        prompt(values)
    assert caught.value.reason == reason


def test_a_row_without_the_column_of_its_file() -> None:
    with pytest.raises(Unusable, match=r"prompt should hold the prompt \(text\)"):
        LAYOUTS["prompt"].prompt({"prompt": None, "id": 3})


def test_tags_tools_split_and_metadata() -> None:
    tools = [{"type": "function", "function": {"name": "f", "only_in_another": None}}]
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
    assert read.tools == '[{"type": "function", "function": {"name": "f"}}]'
    assert read.split == "test"
    assert json.loads(read.metadata or "") == {"id": 3, "category": "greeting"}
    assert prompt({"prompt": "Hi", "tags": "one"}).tags == ["one"]
    assert prompt({"prompt": "Hi", "tools": '[ {"type" :"f"} ]'}).tools == '[{"type": "f"}]'
    assert prompt({"prompt": "Hi", "tools": []}).tools is None
    bare = prompt({"prompt": "Hi"})
    assert (bare.tags, bare.tools, bare.split, bare.metadata) == ([], None, None, None)


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
    assert json.loads(prompt({"prompt": "Hi", **given}).metadata or "") == {
        "nan": None,
        "inf": None,
        "when": "2024-02-29",
        "bytes": "AP8=",
        "nested": {"1": [1, [None]]},
        "metadata": '{"nested": "taken"}',
        "yes": True,
    }


def test_an_answer_beside_an_answered_conversation_stays_with_the_metadata() -> None:
    read = prompt({"messages": [USER, ASSISTANT], "answer": "42"})
    assert (read.reference, read.metadata) == ("Hello", '{"answer": "42"}')


def test_first_turn_only_when_named() -> None:
    values = {"turns": ["Hi", "And now?"], "reference": ["a", "b"]}
    with pytest.raises(InputError, match="first-turn: turns"):
        prompt(values)
    read = prompt(values, "first-turn")
    assert read.messages == [USER]
    assert json.loads(read.metadata or "") == {"reference": ["a", "b"], "later_turns": ["And now?"]}
    assert prompt({"turns": ["Hi"]}, "first-turn").metadata is None
    with pytest.raises(Unusable, match="turns is an empty list"):
        LAYOUTS["first-turn"].prompt({"turns": []})


def test_unknown_layout_lists_what_is_known_and_what_was_found() -> None:
    with pytest.raises(InputError) as caught:
        detect([{"id": 1, "words": "x"}, {"id": 2, "words": ["x"], "no": None}], "my.jsonl")
    said = str(caught.value)
    assert said.startswith("my.jsonl: unknown layout. Say which with --layout NAME, or rename a column to fit one.")
    assert "\nColumns found: id (number), words (text or texts), no (null).\n" in said
    for layout in LAYOUTS.values():
        assert f"\n  {layout.name}: {layout.needs}" in said


def test_preferences_without_a_prompt_of_their_own_are_candidates() -> None:
    with pytest.raises(InputError, match="in chosen and rejected are read with --as candidates"):
        detect([{"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}], "my.jsonl")


def test_ambiguous_layouts_are_refused_and_can_be_named() -> None:
    values = {"prompt": "Hi", "messages": [USER, ASSISTANT]}
    with pytest.raises(InputError, match=r"could be read as messages or prompt\. Say which with --layout NAME"):
        detect([values], "file")
    assert prompt(values, "prompt").reference is None
    assert prompt(values, "messages").reference == "Hello"
    with pytest.raises(InputError, match="could be read as prompt or conversation"):
        detect([{"prompt": "Hi"}, {"prompt": [USER]}], "file")


def test_named_layouts() -> None:
    with pytest.raises(UsageError, match=r"there is no layout 'mesages'\. Did you mean \"messages\""):
        named("mesages", [{"prompt": "Hi"}], "file")
    with pytest.raises(InputError, match=r"file: nothing to read as messages\.\nColumns found: prompt \(text\)"):
        named("messages", [{"prompt": "Hi"}], "file")


def test_a_text_that_only_looks_like_json_is_text() -> None:
    for text in ("[{not json", "[{}]", '["a"]', "[1, 2]"):
        assert prompt({"prompt": text}).messages == [{"role": "user", "content": text}]
