"""What the model sees and what is trained on: preprompts by weight, an instruction once or on every user turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefdata.chat.transforms import Instructions, PromptTransform, training_messages
from prefdata.errors import InputError
from prefdata.ids import unit_uniform
from prefdata.specs import SampleSpec

SYSTEM = {"role": "system", "content": "Be brief"}


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def prompt(messages: list[dict[str, str]], **metadata: Any) -> dict[str, Any]:
    return {"prompt_id": "p", "messages": messages, "metadata": json.dumps(metadata) if metadata else None}


def view(file: Path | str, text: str | None = None, **settings: Any) -> PromptTransform:
    if text is not None:
        Path(file).write_text(text)
    return PromptTransform.of(SampleSpec(model="m", preprompts=str(file), **settings))


def test_without_either_the_model_sees_the_prompt() -> None:
    plain = PromptTransform.of(SampleSpec(model="m"))
    assert (plain.identity, plain.varies, plain.messages(prompt(turns("q")), 0.5)) == ({}, False, None)


def test_a_preprompt_in_the_system_message(tmp_path: Path) -> None:
    told = view(tmp_path / "p.yaml", "- text: Be kind.\n")
    assert told.messages(prompt(turns("q", "a", "r")), 0.5) == [
        {"role": "system", "content": "Be kind."},
        *turns("q", "a", "r"),
    ]
    assert told.messages(prompt([SYSTEM, *turns("q")]), 0.5) == [
        {"role": "system", "content": "Be kind.\n\nBe brief"},
        *turns("q"),
    ]
    assert not told.varies


def test_a_preprompt_before_the_last_user_turn(tmp_path: Path) -> None:
    told = view(tmp_path / "p.yaml", "- {text: Be kind., place: user}\n")
    asked = prompt([SYSTEM, *turns("q", "a", "r")])
    assert told.messages(asked, 0.5) == [SYSTEM, *turns("q", "a", "Be kind.\n\nr")]
    assert asked == prompt([SYSTEM, *turns("q", "a", "r")])


def test_preprompts_are_drawn_by_weight(tmp_path: Path) -> None:
    """Of 4000 candidates 1/6, 2/6 and 3/6 are expected (667, 1333, 2000; standard deviations 24, 30 and 32)."""
    told = view(tmp_path / "p.yaml", '- A\n- {text: B, weight: 2, name: b}\n- {text: "", weight: 3}\n')
    assert told.varies
    seen = [told.messages(prompt(turns("q")), unit_uniform(0, i)) for i in range(4000)]
    counts = [sum(bool(m) and m[0]["content"] == text for m in seen) for text in "AB"] + [seen.count(None)]
    for count, expected in zip(counts, (667, 1333, 2000), strict=True):
        assert abs(count - expected) < 130
    for uniform, text in ((1e-9, "A"), (0.17, "B"), (0.49, "B")):
        assert told.messages(prompt(turns("q")), uniform)[0]["content"] == text  # type: ignore[index]
    assert told.messages(prompt(turns("q")), 1 - 1e-16) is None


def test_preprompts_are_named_by_their_content(tmp_path: Path) -> None:
    one = view(tmp_path / "1.yaml", "- {text: A, name: x}\n- {text: B}\n").identity
    assert list(one) == ["preprompts"]
    assert one == view(tmp_path / "2.yaml", "- text: A\n  weight: 1.0\n- B\n").identity
    for other in ("- A\n", "- A\n- C\n", "- {text: A, weight: 2}\n- B\n", "- {text: A, place: user}\n- B\n"):
        assert view(tmp_path / "3.yaml", other).identity != one


@pytest.mark.parametrize("name", ["safety", "hhh"])
def test_the_built_in_preprompts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = view(name)
    assert told.varies
    assert len({entry.text for entry in told.preprompts}) == len(told.preprompts) >= 3
    copied = Path(__file__).parents[1] / "templates" / "preprompts" / f"{name}.yaml"
    assert view(copied).identity == told.identity
    view(tmp_path / name, "- Mine\n")
    assert view(name).preprompts[0].text == "Mine"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- A\n- {txt: B}\n", r"p\.yaml: entry 2: text is needed; unknown key \"txt\"\. Did you mean \"text\"\?"),
        ("- {text: B, weight: 0}\n", r"p\.yaml: entry 1: weight: should be greater than 0, not 0"),
        ("- {text: B, weight: .inf}\n", r"p\.yaml: entry 1: weight: .*finite"),
        ("- {text: B, place: tool}\n", r"p\.yaml: entry 1: place: should be 'system' or 'user', not 'tool'"),
        ("- A\n- 3\n", r"p\.yaml: entry 2: should be a text, or keys and values, and is int"),
        ("text: A\n", r"p\.yaml should hold a list of preprompts"),
        ("[]\n", r"p\.yaml should hold a list of preprompts"),
        ("- {a: [\n", r"p\.yaml is not YAML"),
    ],
)
def test_bad_preprompts(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        view(tmp_path / "p.yaml", text)


def test_an_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no file safty, and no built-in preprompts of that name\. Did you"):
        view("safty")
    with pytest.raises(InputError, match=r"no built-in instructions of that name\. Did you mean \"gatt\""):
        Instructions.of("gat")


def instructed(*contents: str, said: str, sampled: str) -> dict[str, Any]:
    return prompt(
        training_messages([SYSTEM, *turns(*contents)], {"said": said}), instruction={"said": said, "sampled": sampled}
    )


@pytest.mark.parametrize("said", ["Always act as Napoleon from now on.", "Figure: Napoleon."])
@pytest.mark.parametrize("contents", [("q",), ("q", "a", "r"), ("q", "a", "r", "b", "s")])
def test_ghost_attention(contents: tuple[str, ...], said: str) -> None:
    """Once in the training view, n times (n user turns) in the sampling view: ALGORITHMS.md, section 9."""
    full = "Always act as Napoleon from now on."
    asked = instructed(*contents, said=said, sampled=full)
    trained = [turn["content"] for turn in asked["messages"]]
    assert trained == ["Be brief", f"{said}\n\nq", *contents[1:]]
    seen = PromptTransform(ghost_attention=True).messages(asked, 0.5)
    said_now = ["Be brief", *(text if i % 2 else f"{full}\n\n{text}" for i, text in enumerate(contents))]
    if len(contents) == 1 and said == full:
        assert seen is None
    else:
        assert [turn["content"] for turn in seen or []] == said_now
    users = (len(contents) + 1) // 2
    assert sum(text.count("Napoleon") for text in trained) == 1
    assert sum(text.count("Napoleon") for text in said_now) == users
    assert PromptTransform().messages(asked, 0.5) is None


def test_ghost_attention_and_a_preprompt_together(tmp_path: Path) -> None:
    both = view(tmp_path / "p.yaml", "- Be kind.\n", ghost_attention=True)
    seen = both.messages(instructed("q", "a", "r", said="S", sampled="Full"), 0.5)
    assert [turn["content"] for turn in seen or []] == ["Be kind.\n\nBe brief", "Full\n\nq", "a", "Full\n\nr"]


def test_ghost_attention_without_an_instruction() -> None:
    ghost = PromptTransform.of(SampleSpec(model="m", ghost_attention=True))
    for metadata in ({}, {"instruction": "of another kind"}, {"x": '"instruction"'}):
        asked = prompt(turns("q"), **metadata)
        assert ghost.messages(asked, 0.5) is None
        with pytest.raises(InputError, match=r"no prompt carries one\. Put them in with `prefdata ingest"):
            ghost.check([asked])
        PromptTransform().check([asked])
    ghost.check([prompt(turns("q")), instructed("q", said="S", sampled="S")])


def test_an_instruction_that_is_not_there() -> None:
    asked = prompt(turns("q"), instruction={"said": "S", "sampled": "S"})
    with pytest.raises(InputError, match="prompt p: its first user turn does not begin with the instruction"):
        PromptTransform(ghost_attention=True).messages(asked, 0.5)


def test_drawn_instructions(tmp_path: Path) -> None:
    """1000 conversations: half of them short; of the single and the combination, weights 1 and 3."""
    file = tmp_path / "i.yaml"
    file.write_text(
        "- Speak up.\n"
        "- combine:\n    hobby: [{text: You enjoy tennis., short: 'Hobby: tennis.'}]\n"
        "    language: [Speak French., {text: Speak German., weight: 3}]\n  weight: 3\n"
    )
    drawn = [Instructions.of(str(file)).draw(7, f"key {i}") for i in range(1000)]
    assert drawn == [Instructions.of(str(file)).draw(7, f"key {i}") for i in range(1000)]
    assert drawn != [Instructions.of(str(file)).draw(8, f"key {i}") for i in range(1000)]
    full = [one["sampled"] for one in drawn]
    tennis, french, german = "You enjoy tennis.", "Speak French.", "Speak German."
    assert set(full) == {"Speak up.", tennis, french, german, f"{tennis} {french}", f"{tennis} {german}"}
    # Expected 250, 250 (standard deviation 14), 188 of German alone (12).
    assert abs(full.count("Speak up.") - 250) < 60
    assert abs(full.count(tennis) - 250) < 60
    assert abs(full.count(german) - 188) < 50
    with_short = [one for one in drawn if tennis in one["sampled"]]
    short = [one for one in with_short if one["said"] != one["sampled"]]
    assert abs(len(short) / len(with_short) - 0.5) < 0.1
    assert all(one["said"] == one["sampled"].replace(tennis, "Hobby: tennis.") for one in short)


def test_the_built_in_instructions() -> None:
    gatt = Instructions.of("gatt")
    assert gatt.identity == Instructions.of("gatt").identity
    drawn = [gatt.draw(0, str(i)) for i in range(200)]
    assert len({one["sampled"] for one in drawn}) > 50
    assert {"Figure: Napoleon."} & {one["said"] for one in (gatt.draw(0, str(i)) for i in range(2000))}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- {text: ' '}\n", "entry 1: text: "),
        ("- {short: A}\n", "entry 1: text is needed"),
        ("- {combine: [A]}\n", "entry 1: combine should hold lists of instructions by name"),
        ("- {combine: {a: []}}\n", "entry 1: combine should hold lists of instructions by name"),
        ("- {combine: {a: [A, 3]}}\n", "entry 1: a: entry 2: should be a text, or keys and values, and is int"),
        ("- {combine: {a: [A]}, text: B}\n", "entry 1: a combination has combine and weight, not text"),
        ("- {combine: {a: [A]}, weight: -1}\n", "entry 1: weight: should be greater than 0"),
    ],
)
def test_bad_instructions(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "i.yaml").write_text(text)
    with pytest.raises(InputError, match=f"i.yaml: {said}"):
        Instructions.of(str(tmp_path / "i.yaml"))
