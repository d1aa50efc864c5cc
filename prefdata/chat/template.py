"""Chat templates: which one a model is read by, with which variables, and the text that it makes of a conversation.

A template is the tokenizer's own, one of several that the tokenizer names, or a Jinja file of the user's. It is a
program: it may refuse a conversation, drop parts of it or rewrite them, which ends in a `TemplateRefusal`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from prefdata.chat.clock import NAME, frozen, unset
from prefdata.chat.limit import TooLong, limited
from prefdata.chat.messages import for_template
from prefdata.errors import InputError, ModelError, UsageError, did_you_mean
from prefdata.ids import Message, digest
from prefdata.models.files import ModelFiles
from prefdata.specs.chat import ChatSpec, TemplateChoice


class TemplateRefusal(InputError):
    """A conversation that cannot be rendered (roles out of order, a role or tools unknown).

    `reason` is its name in scores and reports, `verdict` the one in comparisons.
    """

    reason = "refused_by_template"
    verdict = "refused"


class ResponseChanged(TemplateRefusal):
    """A response of which the rendered text lacks a part, or which follows another text than the prompt's."""

    reason = "changed_by_template"
    verdict = "error"


class NotUnicode(TemplateRefusal):
    """A text with half of a surrogate pair, which no tokenizer takes."""

    reason = "not_unicode"
    verdict = "error"


VERDICTS = {kind.reason: kind.verdict for kind in (TemplateRefusal, ResponseChanged, NotUnicode)}
"""The name in comparisons of each of those reasons."""


class Rendered(NamedTuple):
    """A rendered conversation: its text, and the ranges that the template's `{% generation %}` blocks mark."""

    text: str
    marked: tuple[tuple[int, int], ...] = ()


LONGEST_RENDERING = 30.0
"""Seconds after which a template counts as endless."""

_OWN = ("messages", "tools", "documents", "add_generation_prompt", "raise_exception", NAME)
"""Variables that every template may read and users cannot set."""


@dataclass(frozen=True)
class ChatTemplate:
    """One model's chat template.

    Attributes:
        name: the model's, for messages.
        source: the Jinja text.
        tool_source: the Jinja text for conversations with tools; the same unless the tokenizer has one named tool_use.
        variables: its variables in addition to the conversation.
        tokens: the tokenizer's special tokens by name (`bos_token`, …).
        date: what it reads as today's date, or None where it may not read the clock.
    """

    name: str
    source: str
    tool_source: str
    variables: Mapping[str, Any] = field(default_factory=dict)
    tokens: Mapping[str, Any] = field(default_factory=dict)
    date: str | None = None

    @property
    def marks(self) -> bool:
        """Whether the template marks the assistant's text with `{% generation %}` blocks."""
        return _syntax(self.source).marks

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that decide its texts, as JSON values; variables and tool template only where there are some."""
        found: dict[str, Any] = {"template": self.source}
        if self.tool_source != self.source:
            found["tool_template"] = self.tool_source
        found |= {"variables": dict(self.variables)} if self.variables else {}
        return found | ({"date": self.date} if self.date else {})

    @cached_property
    def reads_clock(self) -> bool:
        """Whether the template asks for the date, with its variables, in one of some conversations of every form.

        The template's source does not show it: with `date_string` set, Llama 3's names the clock but does not read it.
        """
        asked: list[str] = []

        def note(format: str) -> str:
            asked.append(format)
            return frozen("2000-01-01")(format)

        for messages, tools, answer_next in product(_FORMS, (None, [_TOOL]), (True, False)):
            with suppress(TemplateRefusal):
                self._render(messages, tools, answer_next, note)
        return bool(asked)

    @cached_property
    def with_defaults(self) -> str | dict[str, str]:
        """The template with its variables written into it as defaults: what a model trained so is saved with."""
        sources = {"default": self.source, "tool_use": self.tool_source}
        baked = {name: _defaults(self.variables) + source for name, source in sources.items()}
        return baked["default"] if self.tool_source == self.source else baked

    def render(self, messages: Sequence[Message], tools: Any = None, *, answer_next: bool = False) -> Rendered:
        """Render a conversation; `answer_next` opens the assistant's turn, or leaves open one that is marked prefill.

        Raises:
            TemplateRefusal: the template refuses it or fails, or there is no message.
            NotUnicode: the text holds half of a surrogate pair.
            UsageError: it reads the clock, and no date is known.
            ModelError: it does not end.
        """
        return self._render(messages, tools, answer_next, frozen(self.date) if self.date else unset(self.name))

    def _render(
        self, messages: Sequence[Message], tools: Any, answer_next: bool, clock: Callable[[str], str]
    ) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template

        if not messages:
            raise TemplateRefusal("the conversation is empty.")
        marks = self.marks and not answer_next
        begun = answer_next and bool(messages[-1].get("prefill"))
        try:
            with limited(LONGEST_RENDERING):
                rendered: Any = render_jinja_template(
                    [[for_template(message) for message in messages]],
                    tools=tools,
                    chat_template=self.source if tools is None else self.tool_source,
                    return_assistant_tokens_mask=marks,
                    add_generation_prompt=answer_next and not begun,
                    continue_final_message=begun,
                    **{**self.tokens, **self.variables, NAME: clock},
                )
        except TooLong:
            raise ModelError(
                f"the chat template of {self.name} took more than {LONGEST_RENDERING:.0f} s for one conversation: it "
                "may never end. Choose another with --chat-template."
            ) from None
        except UsageError:  # the clock's
            raise
        except Exception as error:  # a template is a program and may raise anything
            roles = ", ".join(str(message.get("role")) for message in messages)
            raise TemplateRefusal(
                f"the chat template of {self.name} refuses this conversation ({roles}): {error}. "
                "Change its roles, or choose another template with --chat-template."
            ) from None
        (text,), ranges = rendered
        return Rendered(require_unicode(text), tuple(map(tuple, ranges[0])) if marks else ())


def choose(tokenizer: Any, name: str, choice: TemplateChoice) -> ChatTemplate | None:
    """Return the template that `choice` names for this tokenizer; None where it has none and none is given.

    Raises:
        UsageError: there is no such file or name, or the template does not read a variable.
        ModelError: the tokenizer has several templates, none of them the default, and none is chosen.
        InputError: the file cannot be read, or is not a Jinja template.
    """
    own = getattr(tokenizer, "chat_template", None) or {}
    named: dict[str, str] = own if isinstance(own, dict) else {"default": own}
    if choice.named is not None:
        source = _source(choice.named, named, name)
        tool_source = source
    elif not named:
        if choice.variables:
            raise UsageError(f"{name} has no chat template that could read {', '.join(choice.variables)}.")
        return None
    elif "default" not in named:
        raise ModelError(
            f"{name} has several chat templates and none named default: {', '.join(sorted(named))}. "
            "Choose one with --chat-template NAME."
        )
    else:
        source, tool_source = named["default"], named.get("tool_use", named["default"])
    template = ChatTemplate(name, source, tool_source, choice.variables, tokenizer.special_tokens_map, choice.date)
    _check_variables(template)
    return template


_FORMS: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "a"},),
    ({"role": "system", "content": "s"}, {"role": "user", "content": "a"}),
    ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}),
    tuple({"role": role, "content": role[0]} for role in ("system", "user", "assistant", "user", "assistant")),
    tuple({"role": role, "content": role[0]} for role in ("user", "assistant", "tool", "assistant")),
)
_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def template_of(files: ModelFiles, choice: TemplateChoice) -> ChatTemplate | None:
    """Find the template that `choice` means for a model; raises what `choose` does.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    return choose(load_tokenizer(files.text_folder()), files.name, choice)


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer in a model's folder.

    Raises:
        ModelError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        # Without a word on code transformers would ask at the terminal whether to run that of the folder.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer.decode(tokenizer.encode("a"))  # settings of odd types are only read here
        return tokenizer
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # of its Rust code
            raise
        raise ModelError(f"cannot load the tokenizer of {folder}: {error}. Save it there again.") from error


def template_identity(spec: ChatSpec) -> dict[str, Any]:
    """Return what a chat template adds to an identity: a file by its content, variables in order of name.

    Raises:
        InputError: the file cannot be read.
    """
    found: dict[str, Any] = {}
    if spec.chat_template is not None:
        path = Path(spec.chat_template)
        found["chat_template"] = digest(_read(path)) if path.is_file() else spec.chat_template
    if variables := spec.template_choice.variables:
        found["chat_template_arg"] = [f"{name}={json.dumps(variables[name])}" for name in sorted(variables)]
    return found


def require_unicode(text: str) -> str:
    """Return the text unchanged.

    Raises:
        NotUnicode: it holds half of a surrogate pair.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        found = text[error.start].encode("unicode_escape").decode()
        raise NotUnicode(f"the text is not Unicode: it holds {found}, half of a surrogate pair.") from None
    return text


def _source(given: str, named: Mapping[str, str], name: str) -> str:
    path = Path(given)
    if given in named and path.is_file():
        raise UsageError(f"--chat-template {given} is both a file and a template of {name}. For the file, add ./")
    if given in named:
        return named[given]
    if path.is_file():
        return _read(path)
    known = f"{name} has {', '.join(sorted(named))}" if named else f"{name} has no chat template"
    hint = did_you_mean(given, named) if named else ""
    raise UsageError(
        f"--chat-template {given}: there is no such file, and {known}.{hint if 'Did you mean' in hint else ''}"
    )


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the chat template {path}: {error}.") from None


def _check_variables(template: ChatTemplate) -> None:
    read: set[str] = set()
    for source in {template.source, template.tool_source}:
        syntax = _syntax(source)
        if syntax.error:
            raise InputError(f"the chat template of {template.name} is not Jinja: {syntax.error}.")
        read |= syntax.reads
    own = {*_OWN, *template.tokens}
    for name in template.variables:
        if name in own:
            raise UsageError(f"--chat-template-arg {name}: prefdata sets {name} itself. Leave it out.")
        if name not in read:
            others = ", ".join(sorted(read - own)) or "no variable"
            raise UsageError(
                f"--chat-template-arg {name}: the chat template of {template.name} never reads {name}. "
                f"It reads {others}."
            )


def _defaults(variables: Mapping[str, Any]) -> str:
    """Jinja statements, without any output, that set each variable where it is not given."""
    return "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {_literal(value)} %}}{{% endif %}}"
        for name, value in sorted(variables.items())
    )


def _literal(value: Any) -> str:
    """Return a JSON value in Jinja's notation."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(key)}: {_literal(entry)}' for key, entry in value.items())}}}"
    return json.dumps(value, ensure_ascii=False)


class _Syntax(NamedTuple):
    reads: frozenset[str] = frozenset()
    marks: bool = False
    error: str = ""


@lru_cache(maxsize=64)
def _syntax(source: str) -> _Syntax:
    """Which names a template looks up in what it is given, and whether it has generation blocks."""
    from jinja2 import Environment, TemplateSyntaxError, meta, nodes
    from jinja2.defaults import DEFAULT_NAMESPACE
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    environment = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"])
    try:
        tree = environment.parse(source)
    except TemplateSyntaxError as error:
        return _Syntax(error=f"line {error.lineno}: {error.message}")
    # Names that the template sets itself count only where it asks whether they were given.
    own = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "store"}
    asked = {
        node.node.name
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    reads = meta.find_undeclared_variables(tree) - set(DEFAULT_NAMESPACE) - (own - asked)
    return _Syntax(frozenset(reads), tree.find(nodes.Scope) is not None)
