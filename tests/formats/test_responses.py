"""Every form in which responses come, and every row in which they are broken."""

from __future__ import annotations

from typing import Any

import pytest

from prefdata.errors import InputError
from prefdata.formats.detection import detect
from prefdata.formats.files import RawRow
from prefdata.formats.layouts import Layout
from prefdata.formats.records import BadRowError, Record

USER, SYSTEM = {"role": "user", "content": "Hi"}, {"role": "system", "content": "Be brief"}
Found = tuple[str, str, str | None]
"""A response: its kind, text and model."""


def said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def chosen(text: str, model: str | None = None) -> Found:
    return ("chosen", text, model)


def rejected(text: str, model: str | None = None) -> Found:
    return ("rejected", text, model)


def response(text: str, model: str | None = None) -> Found:
    return ("response", text, model)


def record(values: dict[str, Any]) -> Record:
    return Layout(detect([values], "f")).record(RawRow("f", 1, values))


def split_off(values: dict[str, Any]) -> tuple[list[dict[str, str]], list[Found], dict[str, Any]]:
    """A row's messages, responses and metadata; a reference in a column of its own as one more response."""
    found = record(values)
    texts = {one.text for one in found.responses if one.kind == "reference"}
    references = [("reference", text, None) for text, _ in found.references if text not in texts]
    responses = [(one.kind, one.text, one.model) for one in found.responses]
    return list(found.messages), [*responses, *references], found.metadata


BOTH = [chosen("good"), rejected("bad")]


@pytest.mark.parametrize(
    ("values", "messages", "responses"),
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
        ({"instruction": "Hi", "input": "", "output": "a"}, [USER], [("reference", "a", None)]),
        ({"instruction": "Hi", "output": "a", "generator": "m"}, [USER], [response("a", "m")]),
        ({"question": "Hi", "output": "", "model": "m"}, [USER], [response("", "m")]),
        ({"messages": [SYSTEM, USER, said("a")]}, [SYSTEM, USER], [("reference", "a", None)]),
        ({"prompt": "Hi", "completion": "a"}, [USER], [("reference", "a", None)]),
        ({"prompt": [USER], "completion": [said("a")]}, [USER], [("reference", "a", None)]),
        ({"prompt": "Hi", "completion": "a", "label": False}, [USER], [response("a")]),
        ({"messages": [USER, said("a")], "kto_tag": True}, [USER], [response("a")]),
        ({"prompt": "Hi", "chosen": "good", "answer": "a"}, [USER], [chosen("good"), ("reference", "a", None)]),
        ({"prompt": "Hi", "solution": "a"}, [USER], [("reference", "a", None)]),
        ({"prompt": "Hi", "solution": "a", "is_correct": False}, [USER], [response("a")]),
        # no answer
        ({"prompt": "Hi", "chosen": None, "completions": [], "label": True}, [USER], []),
    ],
)
def test_responses(values: dict[str, Any], messages: list[dict[str, str]], responses: list[Found]) -> None:
    found = split_off(values)
    assert found[0] == messages
    assert found[1] == responses


def test_stepwise_data_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"Step-wise supervision .*: step-wise data has no table here"):
        split_off({"prompt": "Hi", "completions": ["a step", "another"], "labels": [True, False]})


def test_what_stands_beside_a_response_is_its_own_and_no_metadata_of_the_prompt() -> None:
    """Labels, ratings, annotations: kept on the prompt, those of the first row would stand for all."""
    ultra = record(
        {
            "instruction": "Hi",
            "completions": [{"model": "m", "response": "a", "annotations": {"honesty": {"Rating": "5"}}}],
            "models": ["m"],
        }
    )
    assert ultra.responses[0].attributes == {"model": "m", "annotations": {"honesty": {"Rating": "5"}}}
    assert ultra.metadata == {}
    listed = record({"prompt": "Hi", "responses": ["a", "b"], "rewards": [0.5, 1], "id": 3})
    assert [one.attributes for one in listed.responses] == [{"rewards": 0.5}, {"rewards": 1}]
    assert listed.metadata == {"id": 3}
    numbered = record({"prompt": "Hi", "response_0": "a", "response_1": "b", "is_response_0_safe": True, "score_1": 2})
    assert [one.attributes for one in numbered.responses] == [{"is_safe": True}, {}]
    sides = record({"prompt": "Hi", "chosen": "a", "chosen-rating": 5, "rejected": "b", "score_rejected": 1})
    assert [one.attributes for one in sides.responses] == [{"rating": 5}, {"score": 1}]


@pytest.mark.parametrize(
    ("values", "reason", "problem"),
    [
        ({"prompt": "Hi", "chosen": 3, "rejected": "b"}, "not_text", "chosen should be a text, a message"),
        (
            {"prompt": "Hi", "chosen": [said("a"), USER], "rejected": said("b")},
            "response_turns",
            "chosen has the turns assistant, user, but should begin and end",
        ),
        (
            {"chosen": [USER, said("a")], "rejected": [SYSTEM, USER, said("a")]},
            "no_prompt",
            "there is no prompt: chosen and rejected do not start alike",
        ),
        (
            {"prompt": "Hello", "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            "two_prompts",
            "prompt and the conversation hold two different prompts",
        ),
        (
            {"prompt": [SYSTEM, USER], "chosen": [USER, said("a")], "rejected": [USER, said("b")]},
            "two_prompts",
            "chosen and rejected do not begin with the prompt",
        ),
        ({"prompt": "Hi", "chosen": [{"role": "x", "content": "a"}]}, "unknown_role", "message 1 has the role 'x'"),
        ({"prompt": "Hi", "responses": "a"}, "not_text", "responses should be a list of responses, not 'a'"),
        ({"prompt": "Hi", "completions": [{"response": 3}]}, "not_text", "completions[0] should be a text"),
        ({"prompt": "Hi", "response": 3}, "not_text", "response should be a text"),
        (
            {"prompt": "Hi", "response": {"text": "a", "answer": "b"}},
            "not_text",
            "response is an object with several texts, not a text",
        ),
    ],
)
def test_broken_responses(values: dict[str, Any], reason: str, problem: str) -> None:
    """Among rows that are as they should be: the layout is that of most rows."""
    good = {
        "prompt": {"prompt": "Hi", "chosen": "a", "rejected": "b"},
        "responses": {"prompt": "Hi", "responses": ["a"]},
        "completions": {"prompt": "Hi", "completions": [{"response": "a"}]},
        "response": {"prompt": "Hi", "response": "a"},
    }
    kind = next((name for name in ("responses", "completions", "response") if name in values), "prompt")
    layout = Layout(detect([values, *[values if "prompt" not in values else good[kind]] * 2], "f"))
    with pytest.raises(BadRowError) as caught:
        layout.record(RawRow("f", 7, values))
    assert (caught.value.reason, str(caught.value)[: len(problem)]) == (reason, problem)


def test_a_null_in_a_list_of_responses_drops_that_response_alone() -> None:
    """distilabel writes a null where a generation failed; models and ratings beside it stay where they belong."""
    values = {
        "prompt": "Hi",
        "generations": ["a", None, "c"],
        "generation_models": ["m", "n", "o"],
        "ratings": [5, None, 3],
    }
    layout = Layout(detect([values], "f"))
    found = layout.record(RawRow("f", 1, values)).responses
    assert [(one.text, one.model, one.attributes) for one in found] == [
        ("a", "m", {"ratings": 5}),
        ("c", "o", {"ratings": 3}),
    ]
    assert layout.notes == {"null responses": 1}


def test_a_broken_row_stays_broken() -> None:
    layout = Layout(detect([{"prompt": "Hi"}], "f"))
    with pytest.raises(BadRowError, match="not JSON"):
        layout.record(RawRow("f", 7, problem="not JSON"))
