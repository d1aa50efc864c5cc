"""The exact texts and token ids of a classifier."""

from __future__ import annotations

import pytest

from prefdata.chat.encoder import Chat
from prefdata.chat.template import TemplateRefusal
from prefdata.errors import InputError
from prefdata.scorers.classifier.rendering import TextRenderer, fill, read_format, windows
from prefdata.scorers.protocol import ScoringItem

USER = ({"role": "user", "content": "Q {response}"},)
SYSTEM = ({"role": "system", "content": "S"}, *USER)


def test_braces_in_texts_are_never_filled():
    assert fill("{prompt}|{response}|{x}|{{}}", USER, response="{prompt}") == "Q {response}|{prompt}|{x}|{{}}"
    assert fill("{system}{prompt}|{response}", USER, response="A") == "Q {response}|A"
    assert fill("{system}: {prompt}|{response}", SYSTEM, response="A") == "S: Q {response}|A"


@pytest.mark.parametrize("messages", [SYSTEM, (*USER, {"role": "assistant", "content": "A"}, *USER), ()])
def test_a_format_says_what_it_has_no_place_for(messages):
    with pytest.raises(TemplateRefusal):
        fill("{prompt}{response}", messages, response="A")


def test_a_format_needs_both_places_and_loses_one_line_break(tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("{prompt}\n{response}\n\n")
    assert read_format(file) == "{prompt}\n{response}\n"
    file.write_text("{prompt}")
    with pytest.raises(InputError, match=r"\{response\}"):
        read_format(file)
    with pytest.raises(InputError, match="cannot read"):
        read_format(tmp_path / "none.txt")


def test_a_format_of_two_answers():
    said = {"first": "{second}", "second": "{response}"}
    assert fill("{prompt}|{first}|{second}|{response}", USER, **said) == "Q {response}|{second}|{response}|{response}"


def test_a_format_of_two_answers_needs_all_places(tmp_path):
    file = tmp_path / "f.txt"
    file.write_text("{prompt}{first}{response}")
    with pytest.raises(InputError, match=r"\{prompt\}, \{first\} and \{second\}"):
        read_format(file, ("first", "second"))


@pytest.mark.parametrize("raw", [True, False])
def test_many_at_once_have_the_token_ids_of_each_alone(tiny_reward_model, raw):
    chat = Chat.load(tiny_reward_model, raw=raw)
    said = ["", " ", "<bos>", "<bos><bos>x", "a<eos>", "é 🎬", "<bos>y"]
    assert TextRenderer(chat).encode(said) == [chat.encode([text], complete=True)[0] for text in said]


def test_one_text_is_one_row_and_what_cannot_be_rendered_has_a_reason(tiny_reward_model):
    texts = TextRenderer(Chat.load(tiny_reward_model))
    odd = ({"role": "critic", "content": "x"},)
    asked = [
        ("a", USER, "1"),
        ("b", USER, "2"),
        ("c", SYSTEM, "1"),
        ("d", USER, "1"),
        ("e", odd, "1"),
        ("f", USER, "\ud800"),
    ]
    found = texts.prepare([ScoringItem(key, messages, response, False) for key, messages, response in asked])
    assert [(row.keys, row.prompt) for row in found.rows] == [(["a", "d"], 0), (["b"], 0), (["c"], 1)]
    assert [(s.key, s.reason) for s in found.refused] == [("e", "refused_by_template"), ("f", "not_unicode")]


def test_windows_are_whole_but_the_last():
    assert list(windows(range(5), 2)) == [[0, 1], [2, 3], [4]]
