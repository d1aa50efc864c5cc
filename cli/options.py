"""From a spec to a command's options, and back: flags over the YAML file over the spec's defaults."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.specs import Spec
from prefdata.specs.chat import ChatSpec

S = TypeVar("S", bound=Spec)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory; made where there is none.")]
Replace = Annotated[bool, typer.Option("--replace", help="Replace what prefdata made there before; other files stay.")]
Partial = Annotated[bool, typer.Option("--partial", help="Read the unfinished work of an earlier step as it is.")]

ChatTemplateFlag = Annotated[
    str | None, typer.Option("--chat-template", help=ChatSpec.model_fields["chat_template"].description)
]
ChatTemplateDate = Annotated[
    str | None, typer.Option("--chat-template-date", help=ChatSpec.model_fields["chat_template_date"].description)
]
ChatTemplateArg = Annotated[
    list[str] | None, typer.Option("--chat-template-arg", help=ChatSpec.model_fields["chat_template_arg"].description)
]

_CONFIG = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="YAML", help="Settings by command; flags win over them."),
]
_PRINT_CONFIG = Annotated[bool, typer.Option("--print-config", help="Print the settings as resolved, and stop.")]


def takes(spec_type: type[S]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that has a parameter `spec` one option for each field of `spec_type`, and `-c`, `--print-config`.

    Names, types, help and defaults are the spec's own; a flag that is not given leaves the field to the YAML file, and
    that to the default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        fields = spec_type.model_fields

        @functools.wraps(command)
        def typed(**given: Any) -> None:
            flags = {name: given.pop(name) for name in fields}
            config, print_config = given.pop("config"), given.pop("print_config")
            spec = resolve(spec_type, flags, config)
            if print_config:
                typer.echo(as_yaml(spec), nl=False)
                return
            command(spec=spec, **given)

        own = [p for name, p in signature.parameters.items() if name != "spec"]
        options = [_option(name, fields[name]) for name in _by_nearness(spec_type)]
        extra = [_keyword("config", _CONFIG, None), _keyword("print_config", _PRINT_CONFIG, False)]
        everything = sorted([*own, *options, *extra], key=lambda p: p.kind)
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p for p in everything if p.default is p.empty] + [p for p in everything if p.default is not p.empty]
        )
        typed.__annotations__ = {p.name: p.annotation for p in everything}
        return typed

    return decorate


def _by_nearness(spec_type: type[Spec]) -> list[str]:
    """The fields as help shows them: a command's own before those that it shares with others."""
    nearest = {name: depth for depth, base in reversed(list(enumerate(spec_type.__mro__))) for name in _own(base)}
    depth_of = {name: 0 if field.is_required() else nearest[name] for name, field in spec_type.model_fields.items()}
    return sorted(spec_type.model_fields, key=depth_of.__getitem__)


def _own(base: type) -> list[str]:
    return [name for name in vars(base).get("__annotations__", {}) if name != "step"]


def resolve(spec_type: type[S], flags: Mapping[str, Any], config: Path | None) -> S:
    """The spec that flags and YAML file ask for.

    Raises:
        UsageError: an unknown key or a value that does not fit, with the file's name where it comes from there.
    """
    names = {name: field.alias or name for name, field in spec_type.model_fields.items()}
    given = {names[name]: value for name, value in flags.items() if value is not None and value != []}
    if config is None:
        return spec_type.parse(given, where=spec_type.step, flags=True)
    section = _section(config, spec_type.step, names.values())
    if unknown := [key for key in section if key not in names.values()]:
        hint = did_you_mean(str(unknown[0]), names.values())
        raise UsageError(f'{config}: {spec_type.step}: unknown key "{unknown[0]}".{hint}')
    return spec_type.parse({**section, **given}, where=f"{config}: {spec_type.step}")


def as_yaml(spec: Spec) -> str:
    """A spec as the section of a YAML file that would give it; `***` stands for secrets in a URL."""
    import yaml

    section: Any = spec.model_dump(mode="json", by_alias=True)
    if section.get("base_url"):
        from prefdata.engines.address import without_secrets

        section["base_url"] = without_secrets(section["base_url"])
    for word in reversed(spec.step.split()):
        section = {word: section}
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True)


COMMANDS = ("ingest", "sample", "rank", "select", "pair", "export", "train")
"""The sections that a YAML file may have."""


def _section(config: Path, step: str, keys: Collection[str]) -> dict[str, Any]:
    """What the file says to a command; `keys` are its settings.

    Raises:
        InputError: there is no such file, or it is not as it should be.
    """
    said = _said(config)
    if not isinstance(said, dict):
        raise InputError(f"{config} should hold one section a command (sample:, rank:, …).")
    for key in said:
        if key not in COMMANDS and key in keys:
            raise UsageError(f'{config}: "{key}" is a setting of {step}: put it under `{step.replace(" ", ": ")}:`.')
        if key not in COMMANDS:
            raise UsageError(f'{config}: unknown section "{key}".{did_you_mean(str(key), COMMANDS)}')
    for word in step.split():
        said = said.get(word) or {}
        if not isinstance(said, dict):
            raise InputError(f"{config}: {word} should hold keys and values.")
    return said


def _said(config: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that a mapping has twice, of which YAML would take the last."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            met = set()
            for key, _ in node.value:
                if (said := (key.tag, str(key.value))) in met:
                    line = key.start_mark.line + 1
                    raise InputError(f'{config}: line {line} gives "{key.value}" again: leave one of the two out.')
                met.add(said)
            return node

    try:
        return yaml.load(config.read_text(encoding="utf-8"), Loader) or {}
    except FileNotFoundError:
        raise InputError(f"there is no file {config}.") from None
    except IsADirectoryError:
        raise InputError(f"{config} is a folder: name a YAML file.") from None
    except OSError as error:
        raise InputError(f"cannot read {config}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{config} is not YAML: {' '.join(str(error).split())}") from None


def _option(name: str, field: Any) -> inspect.Parameter:
    kind = _flag_type(field.annotation)
    dashed = (field.alias or name).replace("_", "-")
    flags = [f"--{dashed}/--no-{dashed}"] if kind is bool else [f"--{dashed}"]
    if len(name) == 1:
        flags.insert(0, f"-{name}")
    default = None if field.is_required() else field.default
    shown = "" if default in (None, ()) or kind is bool else f" (default: {default})"
    option = typer.Option(
        *flags,
        help=f"{field.description}{shown}",
        show_default=False,
        metavar=_metavar(kind),
        parser=_parser(kind),
    )
    return _keyword(name, Annotated[kind | None, option], None)


def _flag_type(annotation: Any) -> Any:
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return _flag_type(parts[0])
    if typing.get_origin(annotation) is tuple:
        return list[parts[0]]  # type: ignore[valid-type]
    return annotation


def _metavar(kind: Any) -> str | None:
    if typing.get_origin(kind) is Literal:
        return "|".join(typing.get_args(kind))
    return {int: "INT", float: "NUMBER", str: "TEXT"}.get(kind)


def _parser(kind: Any) -> Callable[[str], Any] | None:
    """How a flag's text is read where a text will not do; messages as a spec has them."""
    if typing.get_origin(kind) is Literal:
        return functools.partial(choice, typing.get_args(kind))
    return {int: whole, float: number}.get(kind)


def whole(said: str) -> int:
    """A flag's value as an integer."""
    try:
        return int(said)
    except ValueError:
        raise typer.BadParameter(f"should be a valid integer, not {said!r}") from None


def number(said: str) -> float:
    """A flag's value as a number."""
    try:
        return float(said)
    except ValueError:
        raise typer.BadParameter(f"should be a valid number, not {said!r}") from None


def choice(values: tuple[str, ...], said: str) -> str:
    """A flag's value as one of some."""
    if said not in values:
        known = " or ".join(part for part in (", ".join(values[:-1]), values[-1]) if part)
        raise typer.BadParameter(f"should be {known}, not {said!r}")
    return said


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
