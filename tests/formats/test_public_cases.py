"""Inputs as they are in public data sets and bug reports of other trainers, each with what is right.

Every file is read twice: as `train FILE` reads it, and as `ingest` stores it for a training on the run.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from prefdata.errors import BadRows, InputError
from prefdata.prompts.ingest import ingest
from prefdata.specs import IngestSpec
from prefdata.storage.run import Run
from prefdata.train.data import open_source
from prefdata.train.parsing import Item, ItemStream, Kind, Needs

USER = {"role": "user", "content": "Review a western."}
SYSTEM = {"role": "system", "content": "Be strict."}
DULL, FUN = ({"role": "assistant", "content": text} for text in ("It is dull.", "It is fun."))
CALL = {"id": "c1", "type": "function", "function": {"name": "film_year", "arguments": {"title": "robot"}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "content": "1960", "tool_call_id": "c1"}
TOOL = {"type": "function", "function": {"name": "film_year"}}


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def stream(path: Path, kind: Kind = "preferences") -> ItemStream:
    return open_source(path, kind).items(Needs(kind))


def shown(items: Iterable[Item]) -> list[tuple[Any, ...]]:
    """What is learnt: prompt and responses."""
    return [(item.prompt, *item.answers) for item in items]


def texts(found: list[tuple[Any, ...]]) -> list[tuple[str, ...]]:
    """The same as texts: a run has turns where a file has texts."""
    return [
        tuple(part if isinstance(part, str) else " / ".join(turn["content"] for turn in part) for part in one)
        for one in found
    ]


def stored(path: Path, kind: str = "pairs", **settings: Any) -> tuple[Run, Any]:
    run = Run(path.parent / f"run-{kind}")
    return run, ingest(run, [str(path)], IngestSpec(kind=kind, test=0.0, **settings)).report


WHOLE = [([USER], [DULL], [FUN])]
PAIRS: dict[str, tuple[str, bytes, list[tuple[Any, ...]]]] = {
    "content parts": (
        "a.jsonl",
        lines(
            {
                "prompt": [{**USER, "content": [{"type": "text", "text": USER["content"]}]}],
                "chosen": [{**DULL, "content": [{"type": "text", "text": "It is dull.", "image": None}]}],
                "rejected": [{**FUN, "content": [{"type": "text", "text": "It is fun."}]}],
            }
        ),
        WHOLE,
    ),
    "messages as JSON text": (
        "a.jsonl",
        lines({name: json.dumps(value) for name, value in
               {"prompt": [USER], "chosen": [DULL], "rejected": [FUN]}.items()}),
        WHOLE,
    ),
    "objects with messages and tools as JSON text": (
        "a.jsonl",
        lines({name: json.dumps({"messages": [USER, side], "tools": [TOOL]}) for name, side in
               {"chosen": DULL, "rejected": FUN}.items()}),
        WHOLE,
    ),
    "messages as Python writes them": (
        "a.jsonl", lines({"prompt": str([USER]), "chosen": str([DULL]), "rejected": str([FUN])}), WHOLE,
    ),
    "a table that pandas saved": (
        "a.csv",
        f'prompt,chosen,rejected,score_chosen\nReview a western.,"{[USER, DULL]}","{[USER, FUN]}",8.0\n'.encode(),
        WHOLE,
    ),
    "instruction, input, system": (
        "a.jsonl",
        lines({"system": "Be strict.", "instruction": "Review a film.", "input": "One sentence.",
               "chosen": "This film is a moving mystery.", "rejected": "This film is a film."}),
        [([SYSTEM, {"role": "user", "content": "Review a film.\n\nOne sentence."}],
          [{"role": "assistant", "content": "This film is a moving mystery."}],
          [{"role": "assistant", "content": "This film is a film."}])],
    ),
    "question, empty system": (
        "a.jsonl",
        lines({"system": "", "question": "Review a film.", "chosen": "A treat.", "rejected": "A film."}),
        [([{"role": "user", "content": "Review a film."}], [{"role": "assistant", "content": "A treat."}],
          [{"role": "assistant", "content": "A film."}])],
    ),
    "conversations beside messages": (
        "a.jsonl",
        lines({"conversations": [{"from": "human", "value": USER["content"]}], "chosen": [DULL], "rejected": [FUN]}),
        WHOLE,
    ),
    "system beside messages": (
        "a.jsonl",
        lines({"system": "Be strict.", "prompt": [USER], "chosen": [DULL], "rejected": [FUN]}),
        [([SYSTEM, USER], [DULL], [FUN])],
    ),
    "an answer that begins with the other": (
        "a.jsonl",
        lines({"chosen": "\n\nHuman: Is it good?\n\nAssistant: Yes.",
               "rejected": "\n\nHuman: Is it good?\n\nAssistant: Yes. It is the best."}),
        [([{"role": "user", "content": "Is it good?"}], [{"role": "assistant", "content": "Yes."}],
          [{"role": "assistant", "content": "Yes. It is the best."}])],
    ),
    "a conversation that goes on": (
        "a.jsonl", lines({"chosen": [USER, DULL], "rejected": [USER, DULL, {**USER, "content": "Sure?"}, FUN]}),
        [([USER], [DULL], [DULL, {**USER, "content": "Sure?"}, FUN])],
    ),
    "a prefill": (
        "a.jsonl",
        lines({"prompt": [USER, {"role": "assistant", "content": "It"}],
               "chosen": [{**DULL, "content": " is dull."}], "rejected": [{**FUN, "content": " is fun."}]}),
        WHOLE,
    ),
    "reasoning alone differs": (
        "a.jsonl",
        lines({"prompt": [USER], "chosen": [{**DULL, "reasoning_content": "Slow."}], "rejected": [DULL]}),
        [([USER], [{**DULL, "reasoning_content": "Slow."}], [DULL])],
    ),
    "a call in the prompt, whose content is null": (
        "a.jsonl",
        lines({"prompt": [USER, {**CALLED, "content": None}, RESULT], "chosen": [DULL], "rejected": [FUN],
               "tools": [TOOL]}),
        [([USER, CALLED, RESULT], [DULL], [FUN])],
    ),
    "a call as the answer": (
        "a.jsonl",
        lines({"prompt": [USER], "chosen": [CALLED], "rejected": [FUN], "tools": [TOOL]}),
        [([USER], [CALLED], [FUN])],
    ),
    "a ranked list": (
        "a.jsonl",
        lines({"instruction": "And a film?", "input": "", "history": [["Review a western.", "It is dull."]],
               "output": ["Warm.", "Robots."]}),
        [([USER, DULL, {**USER, "content": "And a film?"}], [{**DULL, "content": "Warm."}],
          [{**DULL, "content": "Robots."}])],
    ),
    "HelpSteer3": (
        "a.jsonl",
        lines({"context": [USER], "response1": "It is fun.", "response2": "It is dull.", "overall_preference": 2}),
        WHOLE,
    ),
    "half an emoji, a mark, control characters": (
        "a.jsonl",
        b'\xef\xbb\xbf{"prompt": "q", "chosen": "a\t\\ud83d", "rejected": "b\\u0000"}\r\n',
        [("q", "a\t\ufffd", "b\x00")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PAIRS))
def test_pairs_are_read_as_what_they_are(name: str, tmp_path: Path) -> None:
    file, data, expected = PAIRS[name]
    path = tmp_path / file
    path.write_bytes(data)
    items = list(stream(path))
    assert shown(items) == expected
    run, report = stored(path)
    assert (report.rows_in, report.rows_out, report.dropped) == (1, 1, {})
    of_run = list(stream(run.path))
    assert texts(shown(of_run)) == texts(expected)
    assert [item.tools for item in of_run] == [item.tools for item in items]


def test_tools_reach_training(tmp_path: Path) -> None:
    for name in ("objects with messages and tools as JSON text", "a call as the answer"):
        path = tmp_path / "a.jsonl"
        path.write_bytes(PAIRS[name][1])
        assert [item.tools for item in stream(path)] == [[TOOL]]


def test_half_an_emoji_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(PAIRS["half an emoji, a mark, control characters"][1])
    items = stream(path)
    list(items)
    assert items.figures()["lone_surrogates"] == 1
    assert stored(path)[1].figures["lone_surrogates"] == 1


def test_sides_that_are_the_same_are_counted_and_left_out(tmp_path: Path) -> None:
    """A space does not make a preference, and an empty answer teaches nothing; the file is not refused for them."""
    path = tmp_path / "same.jsonl"
    sides = [("It is dull.", "It is dull."), ("Yes.", "No."), ("Maybe.", "Maybe. "), ("", "Never.")]
    path.write_bytes(lines(*({"prompt": f"q{n}", "chosen": a, "rejected": b} for n, (a, b) in enumerate(sides))))
    items = stream(path)
    assert shown(items) == [("q1", "Yes.", "No.")]
    assert items.skipped == {"same_text": 2, "empty": 1}
    assert stored(path)[1].dropped == {"same_text": 2, "empty": 1}


def test_texts_that_differ_at_once_have_no_prompt(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(lines({"chosen": "Paris ", "rejected": "London"}))
    with pytest.raises(BadRows, match=r"a\.jsonl:1: there is no prompt"):
        list(stream(path))
    with pytest.raises(BadRows, match=r"a\.jsonl:1: there is no prompt"):
        stored(path)


def test_no_pair_is_made_that_no_row_says(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    rows = [("q", "a", "b"), ("q", "c", "d"), ("r", "e", "f")]
    path.write_bytes(lines(*(dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows)))
    assert sorted(texts(shown(stream(stored(path)[0].path)))) == rows


def test_a_row_twice_is_one_and_two_that_contradict_are_none(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    once, other = {"prompt": "q", "chosen": "a", "rejected": "b"}, {"prompt": "r", "chosen": "a", "rejected": "b"}
    path.write_bytes(lines(once, other, other, {**once, "chosen": "b", "rejected": "a"}))
    run, report = stored(path)
    assert report.dropped == {"contradiction": 2, "duplicate": 1}
    assert texts(shown(stream(run.path))) == [("r", "a", "b")]


@pytest.mark.parametrize("field", ["split", None])
def test_what_is_held_out_by_any_name_is_not_trained_on(tmp_path: Path, field: str | None) -> None:
    names = ("train", "validation", "valid", "dev", "eval", "test", "test_prefs")
    row = {"prompt": [USER], "chosen": [DULL], "rejected": [FUN]}
    if field:
        (tmp_path / "a.jsonl").write_bytes(
            lines(*({**row, "prompt": [{**USER, "content": name}], field: name} for name in names))
        )
        held = Counter(item.row.split for item in stream(tmp_path / "a.jsonl"))
        assert stored(tmp_path / "a.jsonl")[1].figures["test"] == 6
    else:
        (tmp_path / "data").mkdir()
        for name in names:
            rows = lines({**row, "prompt": [{**USER, "content": name}]})
            (tmp_path / "data" / f"{name}-00000-of-00001.jsonl").write_bytes(rows)
        held = Counter(item.row.split for item in stream(tmp_path / "data"))
    assert held == {"test": 6, "train": 1}


LABELLED: dict[str, list[dict[str, Any]]] = {
    "messages and a boolean": [
        {"messages": [{"role": "system", "content": ""}, {**USER, "content": prompt}, {**DULL, "content": text}],
         "label": label} for prompt, text, label in [("q", "a", True), ("r", "b", False)]
    ],
    "messages": [
        {"messages": [{**USER, "content": prompt}, {**DULL, "content": text}], "label": label}
        for prompt, text, label in [("q", "a", True), ("r", "b", False)]
    ],
    "prompt, completion, 0 and 1": [
        {"prompt": "q", "completion": "a", "label": 1}, {"prompt": "r", "completion": "b", "label": 0}
    ],
    "prompt and completion as messages": [
        {"prompt": [{**USER, "content": prompt}], "completion": [{**DULL, "content": text}], "label": label}
        for prompt, text, label in [("q", "a", True), ("r", "b", False)]
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", list(LABELLED))
def test_a_bad_answer_is_a_label_and_imitated_by_nobody(tmp_path: Path, name: str) -> None:
    path = tmp_path / "kto.jsonl"
    path.write_bytes(lines(*LABELLED[name]))
    run, report = stored(path, "unpaired")
    assert (report.figures["good"], report.figures["bad"]) == (1, 1)
    assert run.only("prompts").read()["reference"].to_pylist() == [None, None]
    scored, _ = stored(path, "candidates", score=("label",))
    assert sorted(scored.only("scores").read()["score"].to_pylist()) == [0.0, 1.0]
    for source in (path, stored(path, "demonstrations")[0].path):
        assert texts(shown(stream(source, "demonstrations"))) == [("q", "a")]


def test_numbers_that_are_no_labels_are_scores(tmp_path: Path) -> None:
    path = tmp_path / "feedback.jsonl"
    path.write_bytes(lines({"query": "q", "response": "a", "feedback": 0.9}, {"query": "r", "response": "b",
                                                                              "feedback": 0.1}))  # fmt: skip
    with pytest.raises(InputError, match="no row says whether a response is good"):
        stored(path, "unpaired")
    run, _ = stored(path, "candidates", score=("feedback",))
    assert run.only("scores").read()["score"].to_pylist() == [0.9, 0.1]


def test_verdicts_in_the_words_of_arenas(tmp_path: Path) -> None:
    words = ("model_a", "tie", "tie (bothbad)", "model_b")
    path = tmp_path / "verdicts.jsonl"
    path.write_bytes(lines(*({"prompt": word, "response_a": "a", "response_b": "b", "winner": word} for word in words)))
    run, report = stored(path, "comparisons", source="people")
    assert (report.figures["first"], report.figures["tie"], report.figures["second"]) == (1, 2, 1)
    assert [row["verdict"] for row in run.only("comparisons").read().to_pylist()] == ["first", "tie", "tie", "second"]
    assert stored(path)[1].dropped == {"tie": 2}
