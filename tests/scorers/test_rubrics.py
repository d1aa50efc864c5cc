"""Rubrics are strict files, and a judge's answer counts only where one verdict can be read from it."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from prefdata.errors import InputError, UsageError
from prefdata.scorers.judge.rubrics import Question, Rubric, load_question, load_rubric

CONVERSATION = ({"role": "system", "content": "Be {brief}."}, {"role": "user", "content": "Say {response} and {x}."})
ABSOLUTE = {
    "kind": "absolute",
    "text": "{conversation} | {response} | {aspects} | {low} {high} | {format}\n",
    "aspects": [{"name": "useful", "text": "Is it?", "weight": 3.0}, {"name": "true", "text": "Is it?"}],
}
PAIRWISE = {"kind": "pairwise", "text": "{prompt} {first} {second}", "strengths": ["slightly", "much"]}


def rubric(**changes) -> Rubric:
    return Rubric.parse({**ABSOLUTE, **changes})


def pairwise(**changes) -> Rubric:
    return Rubric.parse({**PAIRWISE, **changes})


def test_texts_are_put_in_once_and_braces_stay() -> None:
    (asked,) = rubric().messages(CONVERSATION, response="{aspects} {high}")
    assert asked["content"] == (
        "system: Be {brief}.\n\nuser: Say {response} and {x}. | {aspects} {high} | - useful: Is it?\n- true: Is it? | "
        '1 10 | {"rationale": "why, in a few sentences", "useful": 1 to 10, "true": 1 to 10}'
    )


def test_examples_are_turns_of_their_own() -> None:
    example = {"prompt": "q", "response": "a", "verdict": {"useful": 2, "true": 3}}
    told = rubric(text="{prompt}: {response}", examples=[example], system="Judge.").messages(CONVERSATION, response="r")
    assert [turn["role"] for turn in told] == ["system", "user", "assistant", "user"]
    assert (told[1]["content"], json.loads(told[2]["content"])) == ("q: a", {"useful": 2, "true": 3})
    assert told[3]["content"] == "Say {response} and {x}.: r"


@pytest.mark.parametrize(
    "said",
    [
        '{"useful": 3, "true": 10}',
        'I think:\n```json\n{"useful": 3, "true": 10}\n```\nThat is all {really}.',
        '{"rationale": "it says {\\"true\\": 1}\nand so on", "useful": 3, "true": 10, "overall": 4}',
        '<think>{"useful": 1, "true": 1}</think>{"useful": 3, "true": 10}',
        '{"useful": 3, "true": 10} again {"true": 10, "useful": 3}',
        '{useful: 3} {"useful": 3, "true": 10}',
    ],
)
def test_one_verdict_is_read(said: str) -> None:
    found = rubric().read(said)
    assert found is not None
    assert (found["useful"], found["true"]) == (3, 10)


@pytest.mark.parametrize(
    "said",
    [
        "",
        "10",
        "useful: 3, true: 10",
        "null",
        '{"useful": 3}',
        '{"useful": "3", "true": 10}',
        '{"useful": "high", "true": 10}',
        '{"useful": 3.0, "true": 10}',
        '{"useful": 1e0, "true": 10}',
        '{"useful": true, "true": 10}',
        '{"useful": null, "true": 10}',
        '{"useful": 0, "true": 10}',
        '{"useful": 11, "true": 10}',
        '{"useful": -1, "true": 10}',
        '{"useful": NaN, "true": 10}',
        '{"useful": [3], "true": 10}',
        '{"useful": 3, "useful": 9, "true": 10}',
        '{"useful": 3, "true": 1',
        '{"draft": {"useful": 3, "true": 10}, "final": {"usef',
        '{"verdict": {"useful": 3, "true": 10}}',
        '[{"useful": 3}, {"true": 10}]',
        '{"useful": 3, "true": 10} or rather {"useful": 4, "true": 10}',
        '<think>{"useful": 3, "true": 10}</think>',
        '{"rationale": 5, "useful": 3, "true": 10}',
        '{"a":' * 5000,
    ],
)
def test_a_parse_failure_is_neither_minus_one_nor_ten_but_nothing(said: str) -> None:
    """open-instruct averaged unparsable ratings in as -1 (PEERS.md 1b), others read the 1 of "10"."""
    assert rubric().read(said) is None


@pytest.mark.parametrize(
    ("said", "fits"),
    [
        ('{"verdict": "A", "strength": "much"}', True),
        ('{"verdict": "tie"}', True),
        ('{"verdict": "A"}', False),
        ('{"verdict": "A", "strength": "hugely"}', False),
        ('{"verdict": "a", "strength": "much"}', False),
        ('{"verdict": null, "strength": "much"}', False),
        ('{"verdict": ["A"], "strength": "much"}', False),
        ('{"verdict": "C", "strength": "much"}', False),
        ('{"verdict": "A", "strength": "much"} no: {"verdict": "B", "strength": "much"}', False),
    ],
)
def test_pairwise_verdicts(said: str, fits: bool) -> None:
    assert (pairwise().read(said) is not None) == fits


def test_without_strengths_none_is_asked_for() -> None:
    plain = pairwise(strengths=[])
    assert plain.read('{"verdict": "A"}') is not None
    assert set(json.loads(plain.verdict_schema())["required"]) == {"rationale", "verdict"}


@pytest.mark.parametrize(
    "changes",
    [
        {"text": "{response}"},
        {"text": "{prompt}"},
        {"text": "{prompt} {respones}"},
        {"text": "{prompt} {first} {second}"},
        {"aspects": []},
        {"aspects": [{"name": "rationale", "text": "x"}]},
        {"aspects": [{"name": "a", "text": "x"}, {"name": "a", "text": "x"}]},
        {"aspects": [{"name": "Not a key", "text": "x"}]},
        {"aspects": [{"name": "a", "text": "x", "weight": 0.0}]},
        {"scale": [5, 5]},
        {"scale": [1, 2, 3]},
        {"scale": ["1", "5"]},
        {"kind": "relative"},
        {"colour": "red"},
        {"examples": [{"prompt": "q", "response": "a", "verdict": {"useful": 11, "true": 3}}]},
        {"examples": [{"prompt": "q", "verdict": {"useful": 1, "true": 3}}]},
        {"text": "{prompt} {response} {reference}",
         "examples": [{"prompt": "q", "response": "a", "verdict": {"useful": 1, "true": 3}}]},
    ],
)  # fmt: skip
def test_rubrics_that_make_no_sense_are_refused(changes) -> None:
    with pytest.raises(UsageError):
        rubric(**changes)


@pytest.mark.parametrize(
    "changes", [{"labels": ["A", "AB"]}, {"labels": ["A", "A"]}, {"plain": True, "system": "s"}, {"labels": ["A"]}]
)
def test_questions_that_make_no_sense_are_refused(changes) -> None:
    sense = {"kind": "pairwise-labels", "text": "{prompt} {first} {second}", "labels": ["A", "B"]}
    Question.parse(sense)
    with pytest.raises(UsageError):
        Question.parse({**sense, **changes})


TEMPLATES = sorted((Path(__file__).parents[2] / "templates" / "rubrics").glob("*.yaml"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_the_built_in_ones_load_by_name_and_by_path(path: Path) -> None:
    load = load_question if str(yaml.safe_load(path.read_text())["kind"]).endswith("labels") else load_rubric
    assert load(path.stem).fingerprint() == load(str(path)).fingerprint()
    said = {"first": "x", "second": "y"} if "pairwise" in load(path.stem).kind else {"response": "x"}
    told = load(path.stem).messages(CONVERSATION, **said)
    assert "Be {brief}." in told[-1]["content"]
    assert all(text in told[-1]["content"] for text in said.values())


def test_the_schema_takes_what_the_rubric_takes() -> None:
    for one in (rubric(), pairwise(), load_rubric("helpful"), load_rubric("safety"), load_rubric("pairwise")):
        schema = json.loads(one.verdict_schema())
        for said in ({"useful": 3, "true": 10}, {"useful": 11, "true": 1}, {"verdict": "A", "strength": "much"}):
            whole = {"rationale": "so", **said}
            try:
                jsonschema.validate(whole, schema)
            except jsonschema.ValidationError:
                assert one.read(json.dumps(whole)) is None
            else:
                assert one.read(json.dumps(whole)) == whole


def test_files_that_are_not_there_or_not_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r'no built-in rubrics of that name\. Did you mean "helpful"'):
        load_rubric("helpfull")
    with pytest.raises(UsageError, match="Known: a-or-b, brief, good-or-bad, helpful, pairwise, safety"):
        load_rubric("xyz")
    with pytest.raises(UsageError, match="helpful is of the kind absolute, and here pairwise is needed"):
        load_rubric("helpful", "pairwise")
    with pytest.raises(UsageError, match="kind absolute, and here pointwise-labels is needed"):
        load_question("helpful", "pointwise-labels")
    (tmp_path / "list.yaml").write_text("- kind: absolute\n")
    with pytest.raises(UsageError, match="keys and values"):
        load_rubric(str(tmp_path / "list.yaml"))
    (tmp_path / "broken.yaml").write_text("kind: [absolute\n")
    with pytest.raises(InputError, match="is not YAML"):
        load_rubric(str(tmp_path / "broken.yaml"))
    (tmp_path / "typo.yaml").write_text("kind: absolute\ntxt: x\n")
    with pytest.raises(UsageError, match=r'typo.yaml: .*unknown key "txt"'):
        load_rubric(str(tmp_path / "typo.yaml"))
