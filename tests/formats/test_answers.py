"""Every form in which answers that exist already come, and every row in which they are broken."""

from __future__ import annotations

import json
from typing import Any

import pytest

from prefdata.formats.answers import Answer, AnsweredRow, apart
from prefdata.formats.files import RawRow
from prefdata.formats.layouts import detect

USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief"}


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def chosen(text: str, model: str | None = None) -> Answer:
    return Answer("chosen", text, model)


def rejected(text: str, model: str | None = None) -> Answer:
    return Answer("rejected", text, model)


def response(text: str, model: str | None = None) -> Answer:
    return Answer("response", text, model)


BOTH = [chosen("good"), rejected("bad")]


def split_off(values: dict[str, Any]) -> tuple[list[dict[str, str]], list[Answer], dict[str, Any]]:
    """A row's messages, answers and metadata."""
    (row,) = apart([RawRow("f", 1, values)])
    assert isinstance(row, AnsweredRow), row.problem
    prompt = detect([row.values], "f").prompt(row.values)
    return prompt.messages, row.all(prompt.reference), json.loads(prompt.metadata or "{}")


@pytest.mark.parametrize(
    ("values", "messages", "answers"),
    [
        # TRL: texts, messages, a prompt in the conversations, a prompt beside whole conversations
        ({"prompt": "Hi", "chosen": "good", "rejected": "bad"}, [USER], BOTH),
        ({"prompt": [SYSTEM, USER], "chosen": [said("good")], "rejected": [said("bad")]}, [SYSTEM, USER], BOTH),
        ({"chosen": [USER, said("good")], "rejected": [USER, said("bad")]}, [USER], BOTH),
        ({"prompt": "Hi", "chosen": [USER, said("good")], "rejected": [USER, said("bad")]}, [USER], BOTH),
        (
            {
                "prompt": "Hi",
                "messages": [USER, said("good")],
                "chosen": [USER, said("good")],
                "rejected": [USER, said("bad")],
            },
            [USER],
            BOTH,
        ),
        (
            {"chosen": [USER, said("same")], "rejected": [USER, said("same")]},
            [USER],
            [chosen("same"), rejected("same")],
        ),
        (
            {"chosen": [USER, said("a"), USER, said("good")], "rejected": [USER, said("a"), USER, said("bad")]},
            [USER, said("a"), USER],
            BOTH,
        ),
        ({"chosen": [USER, said("good")]}, [USER], [chosen("good")]),
        # one message, in both ways to write it, beside a conversation
        ({"messages": [USER], "chosen": said("good"), "rejected": said("bad")}, [USER], BOTH),
        (
            {"conversations": [{"from": "human", "value": "Hi"}], "chosen": gpt("good"), "rejected": gpt("bad")},
            [USER],
            BOTH,
        ),
        ({"instruction": "Hi", "input": "", "chosen": "good", "rejected": "bad"}, [USER], BOTH),
        (
            {
                "chosen_messages": [
                    {**USER, "content": [{"type": "text", "value": "Hi"}]},
                    {**said(""), "content": [{"type": "text", "value": "good"}]},
                ],
                "rejected_messages": [USER, said("bad")],
            },
            [USER],
            BOTH,
        ),
        ({"prompt": "Hi", "chosen_response": "good", "rejected_response": "bad"}, [USER], BOTH),
        # RewardBench 2: several; distilabel: with models
        (
            {"prompt": "Hi", "chosen": ["good"], "rejected": ["bad", "worse"]},
            [USER],
            [*BOTH, rejected("worse")],
        ),
        (
            {"prompt": "Hi", "chosen": "good", "chosen_model": "m", "rejected": "bad", "rejected_model": "n"},
            [USER],
            [chosen("good", "m"), rejected("bad", "n")],
        ),
        # hh-rlhf
        (
            {
                "chosen": "\n\nHuman: Hi\n\nAssistant: a \n\nHuman: Human: no\n\nturn\n\nAssistant: good",
                "rejected": "\n\nHuman: Hi\n\nAssistant: a \n\nHuman: Human: no\n\nturn\n\nAssistant: bad",
            },
            [USER, said("a "), {"role": "user", "content": "Human: no\n\nturn"}],
            BOTH,
        ),
        (
            {"chosen": "\n\nHuman: Hi\n\nAssistant: good", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
            [USER],
            [chosen("good"), rejected("")],
        ),
        (
            {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "good", "rejected": "bad", "response": "so"},
            [USER],
            [*BOTH, response("so")],
        ),
        # Online-RLHF, distilabel, UltraFeedback, Nectar, NeMo-RL
        (
            {"prompt": [USER], "responses": ["a", "", "a"], "rewards": [1, 2, 1]},
            [USER],
            [*map(response, ("a", "", "a"))],
        ),
        (
            {"instruction": "Hi", "generations": ["a", "b"], "generation_models": ["m", "n"]},
            [USER],
            [response("a", "m"), response("b", "n")],
        ),
        (
            {"instruction": "Hi", "models": ["m"], "completions": [{"model": "m", "response": "a", "score": 3}]},
            [USER],
            [response("a", "m")],
        ),
        (
            {
                "prompt": "\n\nHuman: Hi\n\nAssistant: ",
                "answers": [{"answer": "a", "model": "m", "rank": 2.0}, {"answer": "b", "model": "n", "rank": 1.0}],
                "turns": 1,
            },
            [USER],
            [response("a", "m"), response("b", "n")],
        ),
        ({"context": [USER], "completions": [{"rank": 0, "completion": [said("a")]}]}, [USER], [response("a")]),
        # PKU-SafeRLHF, HelpSteer3, HelpSteer2
        (
            {"prompt": "Hi", "response_0": "a", "response_1": "b", "response_0_source": "m", "response_0_sha256": "x"},
            [USER],
            [response("a", "m"), response("b")],
        ),
        ({"context": [USER], "response1": "a", "response2": "b"}, [USER], [response("a"), response("b")]),
        ({"prompt": "Hi", "response": "a", "helpfulness": 3}, [USER], [response("a")]),
        ({"question": "Hi", "solution": "a", "model": "m"}, [USER], [response("a", "m")]),
        # references: alpaca, SFT, conversations; and KTO, whose answers may be unwanted
        ({"instruction": "Hi", "input": "", "output": "a"}, [USER], [Answer("reference", "a")]),
        ({"instruction": "Hi", "output": "a", "generator": "m"}, [USER], [response("a", "m")]),
        ({"question": "Hi", "output": "", "model": "m"}, [USER], [response("", "m")]),
        ({"messages": [SYSTEM, USER, said("a")]}, [SYSTEM, USER], [Answer("reference", "a")]),
        ({"prompt": "Hi", "completion": "a"}, [USER], [Answer("reference", "a")]),
        ({"prompt": [USER], "completion": [said("a")]}, [USER], [Answer("reference", "a")]),
        ({"prompt": "Hi", "completion": "a", "label": False}, [USER], [response("a")]),
        ({"messages": [USER, said("a")], "kto_tag": True}, [USER], [response("a")]),
        ({"prompt": "Hi", "chosen": "good", "answer": "a"}, [USER], [chosen("good"), Answer("reference", "a")]),
        # no answer
        ({"prompt": "Hi", "chosen": None, "completions": [], "label": True}, [USER], []),
        ({"prompt": "Hi", "completions": ["a step", "another"], "labels": [True, False]}, [USER], []),
    ],
)
def test_answers(values: dict[str, Any], messages: list[dict[str, str]], answers: list[Answer]) -> None:
    found = split_off(values)
    assert found[0] == messages
    assert found[1] == answers


def test_what_stands_beside_is_kept() -> None:
    assert split_off(
        {
            "instruction": "Hi",
            "completions": [{"model": "m", "response": "a", "annotations": {"honesty": {"Rating": "5"}}}],
            "models": ["m"],
        }
    )[2] == {"completions": [{"model": "m", "annotations": {"honesty": {"Rating": "5"}}}], "models": ["m"]}
    assert split_off({"prompt": "Hi", "responses": ["a", "b"], "rewards": [0.5, 1]})[2] == {"rewards": [0.5, 1]}
    assert split_off({"prompt": "Hi", "response_0": "a", "response_1": "b", "better_response_id": 1})[2] == {
        "better_response_id": 1
    }


@pytest.mark.parametrize(
    ("values", "reason", "problem"),
    [
        ({"prompt": "Hi", "chosen": []}, "not_text", "chosen should be a text, a message or a conversation"),
        ({"prompt": "Hi", "chosen": 3}, "not_text", "chosen should be a text"),
        (
            {"prompt": "Hi", "chosen": [said("a"), USER]},
            "answer_turns",
            "chosen answers with the turns assistant, user",
        ),
        (
            {"chosen": [USER, said("a")], "rejected": [SYSTEM, USER, said("a")]},
            "answer_turns",
            "chosen answers with the turns user, assistant",
        ),
        (
            {"chosen": [USER, said("a")], "rejected": [USER, said("b"), USER, said("c")]},
            "answer_turns",
            "rejected answers with the turns assistant, user, assistant",
        ),
        (
            {"prompt": "Hello", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            "two_prompts",
            "chosen and rejected do not begin with what prompt says",
        ),
        ({"prompt": "Hi", "chosen": [{"role": "x", "content": "a"}]}, "unknown_role", "message 1 has the role 'x'"),
        ({"prompt": "Hi", "responses": ["a", None]}, "not_text", "responses should be a list of texts"),
        ({"prompt": "Hi", "completions": [{"response": "a"}, {"response": None}]}, "not_text", "completions should be"),
        ({"prompt": "Hi", "response": 3}, "not_text", "response should be a text"),
    ],
)
def test_broken_answers(values: dict[str, Any], reason: str, problem: str) -> None:
    (row,) = apart([RawRow("f", 7, values)])
    assert (row.file, row.row, row.reason) == ("f", 7, reason)
    assert (row.problem or "").startswith(problem)


def test_a_broken_row_stays_broken() -> None:
    row = RawRow("f", 7, problem="not JSON")
    assert list(apart([row])) == [row]
