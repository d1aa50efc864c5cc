"""Which chat template renders conversations: settings that every command with a model shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from pydantic import model_validator

from prefdata.specs.base import Spec, what


@dataclass(frozen=True)
class TemplateChoice:
    """Which chat template to use, and with which variables.

    Attributes:
        named: a Jinja file or the name of one of the tokenizer's templates; None takes the tokenizer's default.
        variables: what the template reads beside the conversation, by name.
    """

    named: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.named is not None or bool(self.variables)


class ChatSpec(Spec):
    """The chat template of a model, and its variables."""

    chat_template: str | None = what(
        None, "Instead of the model's own chat template: a Jinja file, or the name of one of its tokenizer's templates."
    )
    chat_template_arg: tuple[str, ...] = what(
        (),
        "A variable for the chat template, as KEY=VALUE (VALUE in JSON, or text), such as enable_thinking=false; "
        "may be given several times.",
    )

    @model_validator(mode="after")
    def _variables_are_readable(self) -> Self:
        parse_variables(self.chat_template_arg)
        return self

    @property
    def template_choice(self) -> TemplateChoice:
        """The two settings as one value."""
        return TemplateChoice(self.chat_template, parse_variables(self.chat_template_arg))


def parse_variables(settings: tuple[str, ...]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts: the value as JSON where it is that, else as text.

    Raises:
        ValueError: there is no `=` or no name, or a name is given twice.
    """
    variables: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"--chat-template-arg {setting}: write it as KEY=VALUE, such as enable_thinking=false")
        if name in variables:
            raise ValueError(f"--chat-template-arg gives {name} twice: leave one of them out")
        try:
            variables[name] = json.loads(value, parse_constant=_refuse_constant)
        except ValueError:
            variables[name] = value
    return variables


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
