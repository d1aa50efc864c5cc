"""Help that can be read at 80 columns: options under titles, every flag and every choice whole."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import typer
import typer.core

from prefdata.specs import Group

COLUMN = 26
"""The column where the text after a flag begins; a longer flag has a line of its own."""

MOST_COLUMNS = 100
"""Longer lines are hard to read."""


List = tuple[str, list[tuple[str, str]]]
"""A title, and names with a line for each: what the help of a command lists besides its options."""


class Command(typer.core.TyperCommand):
    """A command whose help lists its options in groups, and then `lists`."""

    lists: ClassVar[list[List]] = []

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
        formatter.write("\n".join(_page(self, ctx)))


class CommandGroup(typer.core.TyperGroup):
    """A group of commands, in the order in which they were added; its help ends with `lists`."""

    lists: ClassVar[list[List]] = []

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the whole page."""
        formatter.write("\n".join(_page(self, ctx)))

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        """Read the options; without any, and without a command, print the help."""
        if not args and not ctx.resilient_parsing:
            typer.echo(ctx.get_help())
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names, in order."""
        return list(self.commands)


def _page(command: Any, ctx: Any) -> Iterator[str]:
    width = min(shutil.get_terminal_size().columns, MOST_COLUMNS)
    shown = [param for param in command.get_params(ctx) if not getattr(param, "hidden", False)]
    arguments = [param for param in shown if param.param_type_name == "argument"]
    options = [param for param in shown if param.param_type_name == "option"]
    names = [_argument(param) for param in arguments]
    if isinstance(command, CommandGroup):
        names.append("COMMAND …")
    yield from _wrapped(f"Usage: {ctx.command_path} [OPTIONS] {' '.join(names)}".rstrip(), width, hang=7)
    for paragraph in re.split(r"\n\s*\n", command.help or ""):
        yield from ("", *_wrapped(paragraph, width))
    yield from _section("Arguments", [(_argument(param), param.help or "") for param in arguments], width)
    if isinstance(command, CommandGroup):
        commands = [(name, command.commands[name].get_short_help_str(limit=400)) for name in command.list_commands(ctx)]
        yield from _section("Commands", commands, width)
    for title, members in _by_group(options):
        yield from _section(title, [(_flags(param), _text(param)) for param in members], width)
    for title, rows in getattr(command, "lists", ()):
        name = max(len(term) for term, _ in rows)
        yield from ("", *(typer.style(line, bold=True) for line in _wrapped(f"{title}:", width)))
        yield from (line for term, text in rows for line in _wrapped_beside(f"  {term:<{name}}  ", text, width))
    if command.epilog:
        yield from ("", *_example(command.epilog, width))
    yield ""


def _by_group(options: Iterable[Any]) -> Iterator[tuple[str, list[Any]]]:
    """Group the options by title: in the order of `BeamGroup`, with the options of every command last."""
    groups: dict[str, list[Any]] = {}
    for param in options:
        groups.setdefault(getattr(param, "rich_help_panel", None) or Group.GENERAL.value, []).append(param)
    return ((group.value, groups[group.value]) for group in Group if group.value in groups)


def _argument(param: Any) -> str:
    name = param.metavar or param.name.upper()
    return name if param.required else f"[{name}]"


def _flags(param: Any) -> str:
    flags = ", ".join([*sorted(param.opts, key=len), *param.secondary_opts])
    return flags if param.is_flag else f"{flags} {param.metavar}"


def _text(param: Any) -> str:
    marks = " (required)" if param.required else ""
    return f"{param.help or ''}{marks}{' Repeatable.' if param.multiple else ''}".strip()


def _section(title: str, rows: list[tuple[str, str]], width: int) -> Iterator[str]:
    if not rows:
        return
    yield from ("", *(typer.style(line, bold=True) for line in _wrapped(f"{title}:", width)))
    for term, text in rows:
        head = _choices(f"  {term}", width)
        body = _wrapped(text, width - COLUMN)
        if len(head) == 1 and len(head[0]) <= COLUMN - 2:
            yield f"{head[0]:<{COLUMN}}{body[0] if body else ''}".rstrip()
            body = body[1:]
        else:
            yield from head
        yield from (" " * COLUMN + line for line in body)


def _choices(term: str, width: int) -> list[str]:
    """Write a flag with its choices; a long list is continued after a bar, so that no choice is broken."""
    lines, hang = [term], len(term) - len(term.split(" ")[-1])
    while len(lines[-1]) > width and (at := lines[-1].rfind("|", 0, width)) > 0:
        lines[-1:] = [lines[-1][: at + 1], " " * hang + lines[-1][at + 1 :]]
    return lines


def _wrapped(text: str, width: int, hang: int = 0) -> list[str]:
    plain = " ".join(text.split())
    return textwrap.wrap(
        plain, max(width, 20), break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * hang
    )


def _wrapped_beside(head: str, text: str, width: int) -> list[str]:
    lines = _wrapped(text, width - len(head))
    return [head + lines[0], *(" " * len(head) + line for line in lines[1:])]


def _example(epilog: str, width: int) -> list[str]:
    """Write a command for copying: continued by a backslash, never inside quotes or before a flag's value."""
    lines = [""]
    for word in re.findall(r'--?[\w-]+ (?!-)(?:"[^"]*"|\S+)|"[^"]*"|\S+', epilog):
        if lines[-1].strip() and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] = f"{lines[-1]} {word}" if lines[-1] else word
    return lines
