"""Whether a rendered conversation still holds its response, and what is lost where it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefdata.chat.responses import require_prompt, require_responses
from prefdata.chat.template import ResponseChanged


@pytest.mark.parametrize(
    ("text", "responses"),
    [
        ("[user] q[assistant] a b c<eot>", ["a b c"]),
        ("[user] q[assistant] a b c<eot>", ["  a b c\n"]),
        ("[user] q[assistant] a\n\nb c<eot>", ["a b\tc"]),
        ("[user] q[assistant] <eot>", ["", " \n"]),
        ("[assistant] a[user] q[assistant] a<eot>", ["a", "a"]),
    ],
)
def test_a_response_is_kept_whatever_the_whitespace(text, responses):
    require_responses(text, 0, responses, "m")


@pytest.mark.parametrize(
    ("text", "begin", "responses", "lost"),
    [
        ("q[A]the answer.</s>", 0, ["some thoughts</think>the answer."], "'some thoughts</think>the'"),
        ("q[A]the answer.</s>", 0, ["some thoughts\n</think>\n\nthe answer."], "'some thoughts\\n</think>'"),
        ("q[A]The start is here.</s>", 0, ["The start is here. <tool>x</tool>"], "'<tool>x</tool>'"),
        ("q[A]Its start and its end.</s>", 0, ["Its start and in the middle its end."], "'in the middle'"),
        ("the answer[A]</s>", 10, ["the answer"], "'the answer'"),
        ("q[A]one</s>", 0, ["one", "one"], "'one'"),
        ("q[A]a&lt;b</s>", 0, ["a<b"], "'a<b'"),
    ],
)
def test_what_is_lost_is_named(text, begin, responses, lost):
    with pytest.raises(ResponseChanged) as caught:
        require_responses(text, begin, responses, "m")
    assert f"the chat template of m leaves out a part of the response: {lost}." in str(caught.value)


def test_a_long_loss_is_shown_by_its_two_ends():
    with pytest.raises(ResponseChanged, match=r"'first x{24} … y{25} last'"):
        require_responses("nothing", 0, ["first " + "x" * 500 + "y" * 500 + " last"], "m")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_what_stands_there_is_always_found(before, response, after):
    require_responses(before + response + after, len(before), [response], "m")


@pytest.mark.parametrize("prompt", ["[U]q[A]", "[U]q[A]\n", "[U]q[A] \n"])
def test_a_response_follows_the_prompt_whatever_whitespace_ends_it(prompt):
    require_prompt(prompt, "[U]q[A]Yes.", "m")


def test_what_a_prompt_opens_and_a_conversation_does_not_is_named():
    with pytest.raises(ResponseChanged, match=r"opens a response with '<think>' when it is sampled"):
        require_prompt("[U]q[A]<think>\n", "[U]q[A]Yes.", "m")
