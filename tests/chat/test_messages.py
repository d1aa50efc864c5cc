"""Messages that hold more than a role and a content: what templates, servers and judges are given of them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from families import CHATML
from transformers import AutoTokenizer

from prefdata.chat.encoder import Chat
from prefdata.chat.messages import as_text, for_server, for_template
from prefdata.chat.template import ResponseChanged, TemplateRefusal

CALLS = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
USER = {"role": "user", "content": "hi"}
CALL = {"role": "assistant", "content": "", "tool_calls": json.dumps(CALLS), "weight": 0.0, "name": None}
RESULT = {"role": "tool", "content": "42", "tool_call_id": "c1"}

CALLING = (
    "{% for m in messages %}[{{ m['role'] }}]{% if m.reasoning_content %}<{{ m.reasoning_content }}>{% endif %}"
    "{{ m['content'] }}{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.x }})"
    "{% endfor %}<eot>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)
"""Writes tool calls and reasoning."""


@pytest.fixture
def chat(tiny_policy) -> Any:
    def make(template: str) -> Chat:
        tokenizer = AutoTokenizer.from_pretrained(tiny_policy)
        tokenizer.chat_template = template
        return Chat(tokenizer, name="m")

    return make


def test_a_message_for_a_template_a_server_and_a_judge() -> None:
    assert for_template(CALL) == {"role": "assistant", "content": "", "tool_calls": CALLS}
    (call,) = for_server(CALL)["tool_calls"]
    assert call["function"]["arguments"] == '{"x": 1}'
    assert as_text(CALL) == '[calls f: {"x": 1}]'
    assert as_text({**USER, "name": "ann"}) == "hi"


def test_calls_reach_the_template_as_values(chat) -> None:
    assert chat(CALLING).text([USER, CALL, RESULT], answer_next=True).endswith("(f 1)<eot>[tool]42<eot>[assistant]")


def test_a_prefill_is_left_open(chat) -> None:
    """The turn that the assistant has begun is continued: no end token, and no second turn."""
    begun = {"role": "assistant", "content": "Once upon", "prefill": True}
    assert chat(CALLING).text([USER, begun], answer_next=True) == "[user]hi<eot>[assistant]Once upon"


def test_calls_and_reasoning_that_a_template_drops_are_refused(chat) -> None:
    with pytest.raises(TemplateRefusal, match="drops the tool calls of message 2"):
        chat(CHATML).text([USER, {**CALL, "content": "Let me see."}, RESULT], answer_next=True)
    thought = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    assert "<Two and two.>Four." in chat(CALLING).complete([USER], [thought]).text
    with pytest.raises(ResponseChanged, match=r"leaves out a part of the response: 'Two and two\.'"):
        chat(CHATML).complete([USER], [thought])
    called = {**CALL, "content": "Let me see."}
    assert "Let me see.(f 1)" in chat(CALLING).complete([USER], [called]).text
    with pytest.raises(TemplateRefusal, match="drops the tool calls of message 2"):
        chat(CHATML).complete([USER], [called])


def test_what_a_model_thought_in_earlier_turns_may_be_dropped(chat) -> None:
    """Templates of reasoning models do so on purpose."""
    thought = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
    whole = chat(CHATML).complete([USER, thought, USER], [{"role": "assistant", "content": "Five."}]).text
    assert "Two and two." not in whole
