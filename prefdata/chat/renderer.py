"""Render conversations to exact texts, and check that these hold every message."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from prefdata.chat.responses import require_prompt, require_responses, shared_start
from prefdata.chat.template import ChatTemplate, Rendered, TemplateRefusal, require_unicode
from prefdata.ids import Message

PROBE = "Qx7"
"""A text that no template contains."""


class Renderer:
    """Renders conversations by a chat template, or as the plain text of a single user message without one.

    Attributes:
        template: the chat template, or None.
        name: the model's, for messages.
        raw: whether the model's own template is ignored on purpose.
    """

    def __init__(self, template: ChatTemplate | None, name: str, raw: bool = False) -> None:
        """Render by `template`."""
        self.template, self.name, self.raw = template, name, raw
        self._rendered = lru_cache(maxsize=8)(self._render_items)  # candidates of one prompt come together

    def conversation(self, messages: Sequence[Message], response: str, tools: str | None = None) -> str:
        """Render a conversation that ends with `response` as the assistant's: the exact text that a scorer reads.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
            ResponseChanged: the rendered text does not hold the response.
        """
        return self.complete(messages, [{"role": "assistant", "content": response}], tools).text

    def complete(
        self,
        messages: Sequence[Message],
        turns: Sequence[Message],
        tools: str | None = None,
        *,
        sampled: bool = False,
        every_turn: bool = False,
    ) -> Rendered:
        """Render a conversation and the turns that answer it, which the text must then hold.

        Args:
            messages: the conversation.
            turns: what follows it; the assistant's turns are the response.
            tools: the tools as JSON text, where there are some.
            sampled: require that the text begins with the prompt as it is sampled, as training a policy does.
            every_turn: the assistant's turns in `messages` are responses too.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or there is no template for it.
            ResponseChanged: the text lacks a part of a response, or does not begin with the prompt.
        """
        if self.template is None:
            if [turn["role"] for turn in turns] != ["assistant"]:
                raise self._no_template([*messages, *turns])
            return Rendered(require_unicode(self._single(messages) + str(turns[0]["content"])))
        conversation = [*messages, *turns]
        rendered = self.template.render(conversation, _parsed(tools))
        self._require_effect(conversation, tools, False, rendered.text)
        responses = _written(turns)
        begin = self._response_begin(messages, tools, rendered.text, responses)
        if every_turn:
            responses, begin = [*_contents(messages), *responses], 0
        require_responses(rendered.text, begin, responses, self.name)
        if sampled:
            require_prompt(self.text(messages, tools, answer_next=True), rendered.text, self.name)
        return rendered

    def text(
        self, messages: Sequence[Message], tools: str | None = None, *, answer_next: bool, holds: Sequence[str] = ()
    ) -> str:
        """Render a conversation with the template; `answer_next` opens the assistant's turn.

        Args:
            messages: the conversation.
            tools: the tools as JSON text, where there are some.
            answer_next: whether a response comes next.
            holds: responses that a user message quotes, which the text must hold.

        Raises:
            TemplateRefusal: the chat template does not take this conversation, or drops a message or the tools of it,
                or there is no template for it.
            ResponseChanged: the text lacks a part of what it is to hold.
        """
        if self.template is None:
            return require_unicode(self._single(messages))
        text = self._render(messages, tools, answer_next)
        self._require_effect(messages, tools, answer_next, text)
        for response in holds:
            require_responses(text, 0, [response], self.name)
        return text

    def _render(self, messages: Sequence[Message], tools: str | None, answer_next: bool) -> str:
        key = tuple(tuple(message.items()) for message in messages)
        try:
            return self._rendered(key, tools, answer_next)
        except TypeError:  # a message with a list or an object in it, which no cache takes
            return self._rendered.__wrapped__(key, tools, answer_next)

    def _render_items(self, key: Sequence[Any], tools: str | None, answer_next: bool) -> str:
        """Render a conversation that is given as its messages' items."""
        assert self.template is not None
        return self.template.render([dict(items) for items in key], _parsed(tools), answer_next=answer_next).text

    def _require_effect(self, messages: Sequence[Message], tools: str | None, answer_next: bool, text: str) -> None:
        """Require that `text`, which was rendered from these, depends on the tools and on every message of a prompt.

        Raises:
            TemplateRefusal: it does not.
        """
        if tools is not None and text == self._render(messages, None, answer_next):
            raise TemplateRefusal(f"the chat template of {self.name} has no place for tools. Choose another model.")
        for place, message in enumerate(messages):
            if message.get("tool_calls") and self._drops_calls(messages, place, tools, answer_next, text):
                raise TemplateRefusal(
                    f"the chat template of {self.name} drops the tool calls of message {place + 1}. "
                    "Choose another template with --chat-template."
                )
            content = str(message.get("content") or "").strip()
            if message.get("role") == "assistant" or content in text:
                continue
            other = [*messages[:place], {**message, "content": f"{content} {PROBE}"}, *messages[place + 1 :]]
            if self._render(other, tools, answer_next) == text:
                raise TemplateRefusal(
                    f"the chat template of {self.name} drops the {message['role']} message {place + 1}. "
                    "Leave it out, or choose another template with --chat-template."
                )

    def _drops_calls(
        self, messages: Sequence[Message], place: int, tools: str | None, answer_next: bool, text: str
    ) -> bool:
        """Whether `text` is the same without the tool calls of a message."""
        without = {key: value for key, value in messages[place].items() if key != "tool_calls"}
        try:
            return self._render([*messages[:place], without, *messages[place + 1 :]], tools, answer_next) == text
        except TemplateRefusal:
            return False

    def _response_begin(
        self, messages: Sequence[Message], tools: str | None, text: str, responses: Sequence[str]
    ) -> int:
        """Where in a rendered conversation the response may begin: behind the prompt."""
        try:
            before = self._render(messages, tools, False)
        except TemplateRefusal:  # some templates end with an assistant's turn only
            return 0
        if text.startswith(before):
            return len(before)
        same = shared_start(before, text)  # some templates close what they take for the last turn
        return max(0, same - max(map(len, responses), default=0))

    def _single(self, messages: Sequence[Message]) -> str:
        if len(messages) == 1 and messages[0]["role"] == "user":
            return str(messages[0]["content"])
        raise self._no_template(messages)

    def _no_template(self, messages: Sequence[Message]) -> TemplateRefusal:
        why = "with --raw" if self.raw else f"{self.name} has no chat template:"
        roles = ", ".join(str(message["role"]) for message in messages) or "empty"
        return TemplateRefusal(
            f"{why} only the text of a single user message can be continued, and this conversation is {roles}. "
            "Choose a model with a chat template, or give one with --chat-template."
        )


def _parsed(tools: str | None) -> Any:
    return None if tools is None else json.loads(tools)


def _written(turns: Sequence[Message]) -> list[str]:
    """Return the assistant's text in the turns of a response, its reasoning included."""
    own = [turn for turn in turns if turn["role"] == "assistant"]
    return [str(turn[key]) for turn in own for key in ("reasoning_content", "content") if turn.get(key) is not None]


def _contents(turns: Sequence[Message]) -> list[str]:
    return [str(turn["content"]) for turn in turns if turn["role"] == "assistant"]
