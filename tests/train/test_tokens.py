"""Where the prompt ends and the answer begins, one begin token, a trained end token, and what is too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from prefdata.chat.encoder import Chat
from prefdata.errors import BadRows, ModelError
from prefdata.train.encode import Encoded, Encoder
from prefdata.train.parsing import Row, parse

BOS, EOS, EOT = 1, 2, 3
GENERATION = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] "
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<eot>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<eot>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer(tiny_policy: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_policy)


def encode(
    tokenizer: Any,
    kind: Any,
    *rows: dict[str, Any],
    limit: int | None = None,
    on_long: str = "error",
    **settings: Any,
) -> Encoded:
    items = parse([Row("x", n, "train", row) for n, row in enumerate(rows, 1)], kind, "x")
    return Encoder(Chat(tokenizer, name="tiny"), limit, on_long, **settings).encode(items)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]


def chat(chosen: str = "good", rejected: str = "so bad") -> dict[str, Any]:
    said = [[{"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return {"prompt": turns("hi"), "chosen": said[0], "rejected": said[1]}


def test_chat(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, "preferences", chat()).examples
    assert tokenizer.decode(example.prompt) == "<bos>[user] hi<eot>[assistant] "
    assert [tokenizer.decode(response) for response in example.responses] == ["good<eot>", "so bad<eot>"]
    assert example.prompt.tolist().count(BOS) == 1
    assert all(BOS not in response for response in example.responses)
    assert example.trained_places(0).tolist() == [0, 1, 2, 3, 4]


def test_plain_text_gets_the_tokenizers_begin_and_its_end(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, "preferences", {"prompt": "Q: ", "chosen": "yes", "rejected": "no<eos>"}).examples
    assert tokenizer.decode(example.prompt) == "<bos>Q: "
    assert [tokenizer.decode(response) for response in example.responses] == ["yes<eos>", "no<eos>"]


def test_only_the_last_turn_without_generation_marks(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, "demonstrations", {"messages": turns("hi", "a", "more", "bc")}).examples
    assert tokenizer.decode(example.prompt) == "<bos>[user] hi<eot>[assistant] a<eot>[user] more<eot>[assistant] "
    assert tokenizer.decode(example.responses[0]) == "bc<eot>"
    assert example.trained_tokens == 3


def test_every_assistant_turn_with_generation_marks(tokenizer: Any) -> None:
    tokenizer.chat_template = GENERATION
    (example,) = encode(tokenizer, "demonstrations", {"messages": turns("hi", "a", "more", "bc")}).examples
    assert tokenizer.decode(example.prompt) == "<bos>[user] hi<eot>[assistant] "
    assert tokenizer.decode(example.responses[0][example.trained_places(0)]) == "a<eot>bc<eot>"


def test_of_a_completion_only_its_own_turns_with_generation_marks(tokenizer: Any) -> None:
    tokenizer.chat_template = GENERATION
    row = {"prompt": turns("hi", "a", "more"), "completion": [{"role": "assistant", "content": "bc"}]}
    (example,) = encode(tokenizer, "demonstrations", row).examples
    assert tokenizer.decode(example.prompt) == "<bos>[user] hi<eot>[assistant] a<eot>[user] more<eot>[assistant] "
    assert tokenizer.decode(example.responses[0]) == "bc<eot>"
    assert example.trained_tokens == 3


@pytest.fixture
def merging(tiny_policy: Path, tmp_path: Path) -> Any:
    """A tokenizer with one merge: "xy" is a token, 260."""
    values = json.loads((tiny_policy / "tokenizer.json").read_text())
    values["model"]["vocab"]["xy"] = 260
    values["model"]["merges"] = [["x", "y"]]
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((tiny_policy / name).read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(values))
    return AutoTokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "rejected", "merges_at"),
    [("yb", "c", 0), ("c", "yb", 1), ("yb", "yc", 0)],
    ids=["chosen", "rejected", "both"],
)
def test_tokens_that_merge_over_the_boundary_belong_to_the_answer(
    merging: Any, chosen: str, rejected: str, merges_at: int
) -> None:
    """The prompt ends with "x" and one side begins with "y", and "xy" is one token: both sides split before it.

    Else the side that does not merge would be trained from another place than the one that does.
    """
    (example,) = encode(merging, "preferences", {"prompt": "ax", "chosen": chosen, "rejected": rejected}).examples
    assert merging.decode(example.prompt) == "<bos>a"
    texts = [merging.decode(response) for response in example.responses]
    assert texts == [f"x{chosen}<eos>", f"x{rejected}<eos>"]
    assert example.responses[merges_at].tolist()[0] == 260


def test_without_a_template_a_single_user_message_is_plain_text(tokenizer: Any) -> None:
    tokenizer.chat_template = None
    (example,) = encode(tokenizer, "preferences", chat()).examples
    assert tokenizer.decode(example.prompt) == "<bos>hi"
    assert tokenizer.decode(example.responses[0]) == "good<eos>"
    with pytest.raises(ModelError, match="no chat template"):
        encode(tokenizer, "demonstrations", {"messages": turns("hi", "a", "more", "bc")})


def test_a_template_that_never_ends_a_turn_is_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("<eot>", "\n")
    with pytest.raises(ModelError, match="would never stop"):
        encode(tokenizer, "preferences", chat())


def test_a_begin_token_at_every_turn_is_the_templates_business(tokenizer: Any) -> None:
    """Llama 2 writes one before each user turn; ChatML models may have <|im_start|> as theirs."""
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token }}[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} {{ eos_token }}{% endif %}{% endfor %}"
    )
    (example,) = encode(tokenizer, "demonstrations", {"messages": turns("hi", "a", "more", "bc")}).examples
    assert tokenizer.decode(example.prompt) == "<bos>[INST] hi [/INST] a <eos><bos>[INST] more [/INST]"
    assert tokenizer.decode(example.responses[0]) == " bc <eos>"


def test_a_doubled_begin_token_at_the_start_is_taken_off(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ bos_token }}" + tokenizer.chat_template
    (example,) = encode(tokenizer, "preferences", chat()).examples
    assert tokenizer.decode(example.prompt) == "<bos>[user] hi<eot>[assistant] "


def test_special_tokens_in_texts_become_those_tokens_and_are_counted(tokenizer: Any) -> None:
    made = encode(tokenizer, "preferences", chat(), chat("oh <bos>"), chat("oh <eot>"))
    assert made.figures == {"special_tokens_in_text": 2}
    assert made.examples[1].responses[0].tolist()[-2:] == [BOS, EOT]
    assert made.examples[2].responses[0].tolist()[-2:] == [EOT, EOT]


def test_what_the_template_refuses_is_named_by_row(tokenizer: Any) -> None:
    tool = {"role": "tool", "content": "42"}
    row = {**chat(), "prompt": [*turns("hi", "a call"), tool]}
    with pytest.raises(
        BadRows,
        match=r"x:2: the chat template of tiny refuses this conversation \(user, assistant, tool.*: unknown role tool",
    ):
        encode(tokenizer, "preferences", chat(), row)


def test_tools_reach_the_template(tokenizer: Any) -> None:
    (example,) = encode(tokenizer, "preferences", {**chat(), "tools": '[{"name": "f"}]'}).examples
    assert tokenizer.decode(example.prompt).startswith('<bos>[tools] [{"name": "f"}]<eot>[user] hi')


def test_too_long_is_an_error_that_names_the_row(tokenizer: Any) -> None:
    with pytest.raises(BadRows, match="x:2: 40 tokens, more than 33"):
        encode(tokenizer, "preferences", chat(), chat("long good answer"), limit=33)


def test_too_long_is_dropped_and_counted(tokenizer: Any) -> None:
    made = encode(tokenizer, "preferences", chat(), chat("long good answer"), limit=33, on_long="drop")
    assert (len(made.examples), made.rows, made.dropped, made.figures) == (1, [0], {"too_long": 1}, {})


def test_too_long_is_cut_at_the_end_and_counted(tokenizer: Any) -> None:
    alike, endless = chat("samesame1samesame", "samesame1samesome"), {**chat(), "prompt": turns("x" * 50)}
    rows = [chat(), chat("long good answer", "short"), alike, endless]
    made = encode(tokenizer, "preferences", *rows, limit=33, on_long="truncate")
    assert made.rows == [0, 1]
    assert made.figures == {"truncated": 1}
    assert made.dropped == {"identical_when_truncated": 1, "prompt_too_long": 1}
    assert [tokenizer.decode(response) for response in made.examples[1].responses] == ["long good ", "short<eot>"]
    assert made.examples[1].length == 33


def test_weight_zero_is_dropped_and_counted(tokenizer: Any) -> None:
    made = encode(tokenizer, "preferences", chat(), {**chat(), "weight": 0.0}, {**chat(), "weight": 2.0})
    assert (made.dropped, [example.weight for example in made.examples]) == ({"weight_zero": 1}, [1.0, 2.0])
