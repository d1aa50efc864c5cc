"""Kinds of preference data as repositories publish them: what one row of each is read as.

An expectation is written as `prompt | responses`: `A > B` for a preferred one, `=` for a tie, `A+` and `B-` for labels,
`A, B` where nothing says which is better, `ref: R` for a reference. Turns of a prompt are joined by ` / `.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from prefdata.errors import BadRows, InputError
from prefdata.formats.files import json_row
from prefdata.formats.reading import Reader, ReadOptions
from prefdata.formats.records import Record


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def records(rows: Sequence[Mapping[str, Any]], **options: Any) -> Iterator[Record]:
    """The records of rows, which are one file."""
    raw = [json_row("f", number, dict(row)) for number, row in enumerate(rows, 1)]
    reader = Reader(["f"], ReadOptions(**options), read=lambda _: iter(raw))
    yield from (record for _, record in reader.records())
    reader.bad.refuse(any_left=True)


def shown(record: Record) -> str:
    prompt = " / ".join(message["content"] for message in record.messages)
    texts = [one.text for one in record.responses]
    relations = [
        f"{texts[v.first]} = {texts[v.second]}"
        if v.probability == 0.5
        else " > ".join((texts[v.first], texts[v.second])[:: 1 if v.probability > 0.5 else -1])
        for v in record.relations()
    ]
    labels = [f"{one.text}{'+' if one.label else '-'}" for one in record.responses if one.label is not None]
    plain = [one.text for one in record.responses if one.kind != "reference"]
    references = [f"ref: {text}" for text, _ in record.references]
    return f"{prompt} | {', '.join([*(relations or labels or plain), *references])}"


A, B = {"response_a": "Aaa"}, {"response_b": "Bbb"}
TWO = {"prompt": "Q?", **A, **B}
SIDES = {"chosen": "Aaa", "rejected": "Bbb"}

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    # Two sides, by many names.
    "query, win, lose": ({"query": "Q?", "win": "Aaa", "lose": "Bbb"}, "Q? | Aaa > Bbb"),
    "selected": ({"prompt": "Q?", "selected": "Aaa", "rejected": "Bbb"}, "Q? | Aaa > Bbb"),
    "preferred": ({"prompt": "Q?", "preferred": "Aaa", "dispreferred": "Bbb"}, "Q? | Aaa > Bbb"),
    "accepted": ({"request": "Q?", "accepted": "Aaa", "declined": "Bbb"}, "Q? | Aaa > Bbb"),
    "capitals": ({"Prompt": "Q?", "Chosen": "Aaa", "Rejected": "Bbb"}, "Q? | Aaa > Bbb"),
    "positive": ({"prompt": "Q?", "pos_resp": "Aaa", "neg_resp": "Bbb", "pos_type": "x"}, "Q? | Aaa > Bbb"),
    "response_j": ({"qid": 1, "question": "Q?", "response_j": "Aaa", "response_k": "Bbb"}, "Q? | Aaa > Bbb"),
    "chosen_response": (
        {"instruction": "Q?", "chosen_response": "Aaa", "chosen_rating": 5, "rejected_response": "Bbb"},
        "Q? | Aaa > Bbb",
    ),
    "system beside": ({"system": "Sys", "question": "Q?", **SIDES}, "Sys / Q? | Aaa > Bbb"),
    "nested in data": ({"data": {"prompt": "Q?", **SIDES}, "id": 1}, "Q? | Aaa > Bbb"),
    "nested in input": (
        {"input": {"messages": [user("Q?")]}, "preferred_output": [assistant("Aaa")],
         "non_preferred_output": [assistant("Bbb")]},
        "Q? | Aaa > Bbb",
    ),
    "whole conversations": (
        {"prompt": "Q?", "chosen": [user("Q?"), assistant("Aaa")], "rejected": [user("Q?"), assistant("Bbb")],
         "messages": [user("Q?"), assistant("Aaa")], "score_chosen": 8.5, "score_rejected": 4.0},
        "Q? | Aaa > Bbb",
    ),
    "roles as texts": (
        {"context": [{"role": "human", "text": "Q?"}], "chosen": {"role": "assistant", "text": "Aaa"},
         "rejected": {"role": "assistant", "text": "Bbb"}},
        "Q? | Aaa > Bbb",
    ),
    "from and content": (
        {"conversations": [{"from": "human", "content": "Q?"}], "chosen": {"from": "gpt", "content": "Aaa"},
         "rejected": {"from": "gpt", "content": "Bbb"}},
        "Q? | Aaa > Bbb",
    ),
    "lists of sides": (
        {"prompt": "Q?", "chosen": ["Aaa"], "rejected": ["Bbb", "Ccc"], "models": ["a", "b", "c"]},
        "Q? | Aaa > Bbb, Aaa > Ccc",
    ),
    "the chosen one ends the conversation": (
        {"messages": [user("Q?"), assistant("Aaa")], "rejected_response": "Bbb"}, "Q? | Aaa > Bbb"
    ),
    "history beside": (
        {"query": "Q?", "response": "Aaa", "rejected_response": "Bbb", "history": [["q", "r"]]},
        "q / r / Q? | Aaa > Bbb",
    ),
    "two conversations": (
        {"messages": [user("Q?"), assistant("Aaa")], "rejected_messages": [user("Q?"), assistant("Bbb")]},
        "Q? | Aaa > Bbb",
    ),
    "ChatML": (
        {"prompt": "<|im_start|>system\nSys<|im_end|>\n<|im_start|>user\nQ?<|im_end|>\n<|im_start|>assistant\n",
         "chosen": "Aaa<|im_end|>", "rejected": "Bbb<|im_end|>\n"},
        "Sys / Q? | Aaa > Bbb",
    ),
    # A response, or a reference.
    "an answer that is labelled": ({"question": "Q?", "answer": "Aaa", "is_correct": False}, "Q? | Aaa-"),
    "an answer of a model": ({"question": "Q?", "answer": "Aaa", "model": "m"}, "Q? | Aaa"),
    "an answer": ({"question": "Q?", "answer": "Aaa", "final": "4"}, "Q? | ref: Aaa"),
    # Two responses and a verdict.
    "A>B": ({"question": "Q?", "response_A": "Aaa", "response_B": "Bbb", "label": "A>B"}, "Q? | Aaa > Bbb"),
    "A>>B in brackets": ({**TWO, "verdict": "[[B>>A]]"}, "Q? | Bbb > Aaa"),
    "a letter": ({**TWO, "winner": "b"}, "Q? | Bbb > Aaa"),
    "a letter in brackets": ({**TWO, "winner": "[[A]]"}, "Q? | Aaa > Bbb"),
    "the column's name": ({**TWO, "winner": "response_b"}, "Q? | Bbb > Aaa"),
    "the model's name": (
        {"question": "Q?", "response_1": "Aaa", "response_2": "Bbb", "model_1": "gpt", "model_2": "llama",
         "winner": "llama"},
        "Q? | Bbb > Aaa",
    ),
    "a number in words": ({"question": "Q?", "answer1": "Aaa", "answer2": "Bbb", "vote": "two"}, "Q? | Bbb > Aaa"),
    "left and right": ({"prompt": "Q?", "left": "Aaa", "right": "Bbb", "choice": "right"}, "Q? | Bbb > Aaa"),
    "a tie": ({**TWO, "winner": "tie (bothbad)"}, "Q? | Aaa = Bbb"),
    "several annotators": ({**TWO, "preferences": ["A", "B", "tie"]}, "Q? | Aaa > Bbb, Bbb > Aaa, Aaa = Bbb"),
    "annotators wide": (
        {**TWO, "annotator1": "A", "annotator2": "A", "annotator3": "B"}, "Q? | Aaa > Bbb, Aaa > Bbb, Bbb > Aaa"
    ),
    "one hot": (
        {**TWO, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}, "Q? | Bbb > Aaa"
    ),
    "scores": (
        {"question": {"dataset": "eli5", "full_text": "Q?"}, "answer_0": "Aaa", "answer_1": "Bbb", "score_0": -0.3,
         "score_1": 0.3, "tokens_0": {"x": [1]}},
        "Q? | Bbb > Aaa",
    ),
    "a list of scores": (
        {"question_body": "Q?", "answer1_body": "Aaa", "answer2_body": "Bbb", "answer1_model_id": "m",
         "answer2_model_id": "n", "score": [8.0, 3.0]},
        "Q? | Aaa > Bbb",
    ),
    "numbered with a space": (
        {"prompt": "Q?", "response 1": "Aaa", "response 2": "Bbb", "winner": "2"}, "Q? | Bbb > Aaa"
    ),
    "whole conversations and a winner": (
        {"conversation_a": [user("Q?"), assistant("Aaa")], "conversation_b": [user("Q?"), assistant("Bbb")],
         "model_a": "m", "model_b": "n", "winner": "model_b", "judge": "j"},
        "Q? | Bbb > Aaa",
    ),
    "a reference beside": (
        {"orig_instruction": "Q?", "orig_response_A": "Aaa", "orig_response_B": "Bbb", "orig_reference_answer": "R",
         "orig_preference": "B"},
        "Q? | Bbb > Aaa, ref: R",
    ),
    # Ranked lists.
    "ranks": ({"prompt": "Q?", "responses": ["Aaa", "Bbb"], "ranks": [2, 1]}, "Q? | Bbb > Aaa"),
    "ranks in objects": (
        {"prompt": "Q?", "answers": [{"answer": "Aaa", "rank": 2.0}, {"answer": "Bbb", "rank": 1.0}]},
        "Q? | Bbb > Aaa",
    ),
    "the better one first": ({"instruction": "Q?", "input": "", "output": ["Aaa", "Bbb"]}, "Q? | Aaa > Bbb"),
    # Labels of one response.
    "labels in words": ({"prompt": "Q?", "completion": "Aaa", "label": "undesirable"}, "Q? | Aaa-"),
    "labels as numbers": ({"prompt": "Q?", "completion": "Aaa", "label": 1}, "Q? | Aaa+"),
    "feedback": ({"query": "Q?", "response": "Aaa", "feedback": "thumbs up"}, "Q? | Aaa+"),
    "a label of a conversation": ({"messages": [user("Q?"), assistant("Aaa")], "label": False}, "Q? | Aaa-"),
    "safety": ({"prompt": "Q?", "response": "Aaa", "category": {"x": True}, "is_safe": False}, "Q? | Aaa-"),
    # Responses that nothing is said of.
    "null among responses": (
        {"input": "Q?", "generations": ["Aaa", None, "Ccc"], "generation_models": ["a", "b", "c"]}, "Q? | Aaa, Ccc"
    ),
    "objects": (
        {"user_input": "Q?", "responses_and_scores": [{"response": "Aaa", "source": "m", "score": 8.0}]}, "Q? | Aaa"
    ),
    "objects in objects": ({"question": "Q?", "answers": [{"content": {"answer": "Aaa"}, "model": "m"}]}, "Q? | Aaa"),
    "texts in turn": ({"chat_history": ["Q?"], "output": ["Aaa"], "generator": "g"}, "Q? | Aaa"),
    "a reference and candidates": (
        {"instruction": "Q?", "input": "", "output": "R", "candidates": [{"model": "m", "text": "Aaa"}]},
        "Q? | Aaa, ref: R",
    ),
    # References.
    "a transcript as text": ({"text": "Human: Q?\n\nAssistant: R"}, "Q? | ref: R"),
    "Guanaco": ({"text": "### Human: Q?### Assistant: R"}, "Q? | ref: R"),
    "roles as keys": (
        {"conversations": [{"human": "Q", "assistant": "A"}, {"human": "Q?", "assistant": "R"}]}, "Q / A / Q? | ref: R"
    ),
    "a rendered text beside": (
        {"instruction": "Q?", "input": "", "output": "R", "text": "Below is an instruction. ### Q?"}, "Q? | ref: R"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_row_is_read_as(kind: str) -> None:
    row, expected = KINDS[kind]
    said = expected.rpartition(" | ")[2]
    want = "pairs" if " > " in said or " = " in said else "unpaired" if said[-1] in "+-" else "candidates"
    (record,) = records([row], want=want)
    assert shown(record) == expected


def test_verdicts_in_every_spelling() -> None:
    spellings = {
        "first": ["A", "a", " A ", "[[A]]", "A>B", "A >> B", "a > b", "B<A", "response_a", "first", "model_a",
                  "answer A"],
        "second": ["B", "[[B]]", "B>A", "A<B", "second", "Response B", "model_b"],
        "tie": ["tie", "Tie", "A=B", "draw", "both", "neither", "both bad", "equal", "C"],
    }  # fmt: skip
    rows = [{**TWO, "verdict": word} for words in spellings.values() for word in words]
    expected = {"first": "Aaa > Bbb", "second": "Bbb > Aaa", "tie": "Aaa = Bbb"}
    found = [shown(record).partition(" | ")[2] for record in records(rows)]
    assert found == [expected[name] for name, words in spellings.items() for _ in words]


def test_a_verdict_that_says_nothing_is_no_pair() -> None:
    for nothing in ("unknown", "", None, "N/A"):
        good, without = records([{**TWO, "verdict": "A"}, {**TWO, "verdict": nothing}])
        assert (shown(without), without.undecided) == ("Q? | Aaa, Bbb", True)
        assert not good.undecided


@pytest.mark.parametrize(("one_means", "expected"), [("first", "Aaa > Bbb"), ("second", "Bbb > Aaa")])
def test_0_and_1_mean_what_is_said_and_are_never_guessed(one_means: str, expected: str) -> None:
    rows = [{**TWO, "label": 1}, {**TWO, "label": 0}]
    with pytest.raises(InputError, match=r"label holds 0, 1, which is ambiguous\. Set --one-means"):
        list(records(rows))
    with pytest.raises(InputError, match="--one-means"):
        list(records([{**TWO, "label": "1"}], on_bad_rows="drop"))
    first, second = (shown(record) for record in records(rows, one_means=one_means))
    assert first == f"Q? | {expected}"
    assert second != first


def test_1_and_2_are_the_first_and_the_second_and_numbers_between_are_shares() -> None:
    rows = [{**TWO, "preference": value} for value in (1.0, 2.0, 1.5, 1.25)]
    found = list(records(rows))
    assert [shown(record).partition(" | ")[2] for record in found] == [
        "Aaa > Bbb", "Bbb > Aaa", "Aaa = Bbb", "Aaa > Bbb"
    ]  # fmt: skip
    assert found[3].relations()[0].probability == 0.75


def test_an_id_names_the_better_response() -> None:
    rows = [
        {"prompt": "Q?", "response_0": "Aaa", "response_1": "Bbb", "better_response_id": number} for number in (1, 0)
    ]
    assert [shown(record) for record in records(rows)] == ["Q? | Bbb > Aaa", "Q? | Aaa > Bbb"]


def test_words_that_are_no_verdict_are_bad_rows() -> None:
    with pytest.raises(BadRows, match=r"f:2: verdict is 'nobody'; known: response_a, a"):
        list(records([{**TWO, "verdict": "A"}, {**TWO, "verdict": "nobody"}]))


def test_several_verdicts_are_several_questions() -> None:
    row = {"prompt": "Q?", "response_0": "Aaa", "response_1": "Bbb", "better_response_id": 1, "safer_response_id": 0}
    with pytest.raises(InputError, match=r"Choose one with --verdict better \(or better, safer\)"):
        list(records([row]))
    assert [shown(record) for record in records([row], verdict="safer")] == ["Q? | Aaa > Bbb"]


def test_the_words_that_both_sides_begin_with_are_the_prompt() -> None:
    """TRL's implicit prompt; it is cut between words, also where one side is all of it."""
    rows = [
        {"chosen": "The sky is blue.", "rejected": "The sky is green."},
        {"chosen": "The sky is", "rejected": "The sky is green."},
    ]
    assert [shown(record) for record in records(rows)] == ["The sky is  | blue. > green.", "The sky is |  >  green."]
    with pytest.raises(BadRows, match="chosen and rejected do not start alike"):
        list(records([*rows, {"chosen": "Paris", "rejected": "Parisian"}]))


@pytest.mark.parametrize(
    "row",
    [
        {"image": "a.jpg", "prompt": "Q?", **SIDES},
        {"images": ["a.jpg"], "messages": [user("Q?"), assistant("Aaa")], "rejected_response": "Bbb"},
        {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], **SIDES},
        {"prompt": [{"role": "user", "content": "Q?", "images": ["a.jpg"]}], **SIDES},
        {"prompt": "<image>\nWhat is it?", **SIDES},
        {"conversations": [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]},
    ],
)
def test_pictures_are_refused_and_not_passed_over(row: dict[str, Any]) -> None:
    with pytest.raises(BadRows, match="only text is read"):
        list(records([row], want="prompts"))


def test_no_pictures_are_no_pictures() -> None:
    for text in ("What does <img> mean?", "<svg><image>x</image></svg>", "Put a <video> into the page."):
        (record,) = records([{"images": [], "image": None, "prompt": text, **SIDES}])
        assert shown(record) == f"{text} | Aaa > Bbb"


def test_half_a_pair_is_refused() -> None:
    with pytest.raises(InputError, match=r"there is a chosen response but no rejected one, and meh is not read"):
        list(records([{"prompt": "Q?", "chosen": "Aaa", "meh": "Bbb bb"}]))


def test_stepwise_data_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="step-wise data has no table here"):
        list(records([{"prompt": "Q?", "completions": ["s1", "s2"], "labels": [True, False]}]))


def test_a_column_that_comes_later_is_read_too() -> None:
    rows = [{"prompt": f"Q{number}", **SIDES} for number in range(150)]
    late = {"prompt": "Q?", "split": "validation", "tools": [{"name": "f"}], "weight": 0.5, "system": "Sys", **SIDES}
    *_, record = records([*rows, late])
    assert (record.split, record.weight, record.tools) == ("test", 0.5, '[{"name": "f"}]')
    assert shown(record) == "Sys / Q? | Aaa > Bbb"
