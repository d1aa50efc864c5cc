"""Which chat template renders conversations: settings that every command with a model shares."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Annotated, Any, Self

from pydantic import AfterValidator, model_validator

from prefdata.specs.base import Group, Spec, identity_field


@dataclass(frozen=True)
class TemplateChoice:
    """Which chat template to use, and with which variables.

    Attributes:
        named: a Jinja file or the name of one of the tokenizer's templates; None takes the tokenizer's default.
        variables: what the template reads in addition to the conversation, by name.
        date: what the template reads as today's date, where it reads the clock (YYYY-MM-DD).
    """

    named: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __bool__(self) -> bool:
        """Whether a template or variables are chosen; a date alone chooses none."""
        return self.named is not None or bool(self.variables)


def _no_other_than_a_day(text: str | None) -> str | None:
    if text is not None:
        try:
            whole = date.fromisoformat(text).isoformat() == text
        except ValueError:
            whole = False
        if not whole:
            raise ValueError(f"should be a date, as YYYY-MM-DD, not {text!r}")
    return text


Day = Annotated[str | None, AfterValidator(_no_other_than_a_day)]
"""A date as YYYY-MM-DD, or none."""


class ChatSpec(Spec):
    """The chat template of a model, its variables and its date."""

    chat_template: str | None = identity_field(
        None,
        "Instead of the model's own chat template: a Jinja file, or the name of one of its tokenizer's templates.",
        group=Group.CHAT,
    )
    chat_template_arg: tuple[str, ...] = identity_field(
        (),
        "A variable for the chat template, as KEY=VALUE (VALUE in JSON, or text), such as enable_thinking=false.",
        group=Group.CHAT,
    )
    chat_template_date: Day = identity_field(
        None,
        "Today's date for a chat template that reads the clock, as YYYY-MM-DD (default: the day on which the work "
        "began).",
        group=Group.CHAT,
    )

    @model_validator(mode="after")
    def _variables_are_readable(self) -> Self:
        parse_variables(self.chat_template_arg)
        return self

    @property
    def template_choice(self) -> TemplateChoice:
        """The settings as one value."""
        variables = parse_variables(self.chat_template_arg)
        return TemplateChoice(self.chat_template, variables, self.chat_template_date)


def parse_variables(settings: tuple[str, ...]) -> dict[str, Any]:
    """Read `KEY=VALUE` texts: the value as JSON where possible, else as text.

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
        except (ValueError, RecursionError):
            variables[name] = value
    return variables


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
