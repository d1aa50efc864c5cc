"""From a spec to a command's options, and back: flags over the YAML file over the spec's defaults."""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import typer

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.specs import Group, Spec, flag_of, group_of
from prefdata.specs.chat import ChatSpec
from prefdata.specs.other_names import hint
from prefdata.train.specs import TrainSpec

S = TypeVar("S", bound=Spec)


def option(*flags: str, help: str, metavar: str | None = "TEXT", group: Group = Group.SETTINGS, **more: Any) -> Any:
    """Return an option with what its help needs: a metavar (None for a switch) and a group."""
    return typer.Option(*flags, help=help, metavar=metavar, rich_help_panel=group.value, **more)


RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory; it must exist.")]
NewRun = Annotated[Path, typer.Argument(metavar="RUN", help="The run directory; it is created if it does not exist.")]
Replace = Annotated[
    bool,
    option(
        "--replace",
        metavar=None,
        help="Replace what prefdata made there before; other files stay.",
        group=Group.OUTPUT,
    ),
]
Partial = Annotated[
    bool,
    option("--partial", metavar=None, help="Read what an earlier, unfinished step has written.", group=Group.INPUT),
]
ReportFormat = Annotated[
    Literal["text", "json"],
    option(
        "--format", "-f", metavar="text|json", help="How the report is printed. (default: text)", group=Group.OUTPUT
    ),
]
TableFormat = Annotated[
    Literal["table", "csv", "json", "jsonl", "markdown"] | None,
    option(
        "--format",
        "-f",
        metavar="table|csv|json|jsonl|markdown",
        help="default: table on a terminal, csv in a pipe.",
        group=Group.OUTPUT,
    ),
]
Safe = Annotated[
    bool,
    option(
        "--safe",
        metavar=None,
        help="csv: put ' before texts that a spreadsheet would run as formulas (they begin with = + - @).",
        group=Group.OUTPUT,
    ),
]
Split = Annotated[
    Literal["all", "train", "test"],
    option("--split", metavar="all|train|test", help="Which prompts. (default: test)", group=Group.INPUT),
]
Device = Annotated[
    str | None, option("--device", help="cpu, cuda, … (default: the best available).", group=Group.ENGINE)
]
TextFormat = Annotated[
    Path | None,
    option(
        "--text-format", metavar="FILE", help="A file with the text, {prompt} and {response} in it.", group=Group.MODEL
    ),
]


def _of(spec: type[Spec], name: str, metavar: str = "TEXT") -> Any:
    """Return the option of a spec's field, for a command without such a spec."""
    field = spec.model_fields[name]
    return option(flag_of(name), help=str(field.description), group=group_of(field), metavar=metavar)


ChatTemplateFlag = Annotated[str | None, _of(ChatSpec, "chat_template")]
ChatTemplateDate = Annotated[str | None, _of(ChatSpec, "chat_template_date")]
ChatTemplateArg = Annotated[list[str] | None, _of(ChatSpec, "chat_template_arg")]
Layout = Annotated[str | None, _of(TrainSpec, "layout")]
Ignore = Annotated[list[str] | None, _of(TrainSpec, "ignore")]
OneMeans = Annotated[Literal["first", "second"] | None, _of(TrainSpec, "one_means", "first|second")]
Verdict = Annotated[str | None, _of(TrainSpec, "verdict")]
Limit = Annotated[int | None, _of(TrainSpec, "limit", "INT")]

_CONFIG = Annotated[
    Path | None,
    option(
        "--config",
        "-c",
        metavar="YAML",
        help="A file of settings by command; flags override them.",
        group=Group.GENERAL,
    ),
]
_PRINT_CONFIG = Annotated[
    bool, option("--print-config", metavar=None, help="Print the settings as resolved, and stop.", group=Group.GENERAL)
]


def spec_options(spec_type: type[S]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command that has a parameter `spec` one option for each field of `spec_type`, and `-c`, `--print-config`.

    Names, types, help and defaults are the spec's own; a flag that is not given leaves the field to the YAML file, and
    that to the default.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        fields = spec_type.settings()

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
        options = [
            _option(name, fields[name], needed=name in spec_type.model_fields) for name in own_fields_first(spec_type)
        ]
        extra = [_keyword("config", _CONFIG, None), _keyword("print_config", _PRINT_CONFIG, False)]
        everything = sorted([*own, *options, *extra], key=lambda p: p.kind)
        typed.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p for p in everything if p.default is p.empty] + [p for p in everything if p.default is not p.empty]
        )
        typed.__annotations__ = {p.name: p.annotation for p in everything}
        return typed

    return decorate


def own_fields_first(spec_type: type[Spec]) -> list[str]:
    """Sort the fields as help shows them: a command's own before those that it shares with others."""
    fields = spec_type.settings()
    nearest = {name: depth for depth, base in reversed(list(enumerate(spec_type.__mro__))) for name in _own(base)}
    depth_of = {name: 0 if field.is_required() else nearest.get(name, 0) for name, field in fields.items()}
    return sorted(fields, key=depth_of.__getitem__)


def _own(base: type) -> list[str]:
    return [name for name in vars(base).get("__annotations__", {}) if name != "step"]


def resolve(spec_type: type[S], flags: Mapping[str, Any], config: Path | None) -> S:
    """Return the spec that flags and YAML file give.

    Raises:
        UsageError: an unknown key or a value that does not fit, with the file's name where it comes from there.
    """
    names = {name: field.alias or name for name, field in spec_type.settings().items()}
    given = {names[name]: value for name, value in flags.items() if value is not None and value != []}
    if config is None:
        return spec_type.parse(given, where=spec_type.step, flags=True)
    section = _section(config, spec_type.step, names.values())
    if unknown := [key for key in section if key not in names.values()]:
        raise UsageError(
            f'{config}: {spec_type.step}: unknown key "{unknown[0]}".{hint(str(unknown[0]), names.values())}'
        )
    return spec_type.parse({**section, **given}, where=f"{config}: {spec_type.step}")


def as_yaml(spec: Spec) -> str:
    """Write a spec as the section of a YAML file that would give it; `***` replaces secrets in a URL."""
    import yaml

    section: Any = spec.model_dump(mode="json", by_alias=True)
    if section.get("base_url"):
        from prefdata.engines.openai.address import without_secrets

        section["base_url"] = without_secrets(section["base_url"])
    for word in reversed(spec.step.split()):
        section = {word: section}
    return yaml.safe_dump(section, sort_keys=False, allow_unicode=True)


COMMANDS = ("ingest", "sample", "rank", "select", "pair", "export", "train")
"""The sections that a YAML file may have."""


def _section(config: Path, step: str, keys: Collection[str]) -> dict[str, Any]:
    """Read the section of the file for a command; `keys` are its settings.

    Raises:
        InputError: there is no such file, or its content is not valid.
    """
    section = _load_yaml(config)
    if not isinstance(section, dict):
        raise InputError(f"{config} should hold one section per command (sample:, rank:, …).")
    for key in section:
        if key not in COMMANDS and key in keys:
            raise UsageError(f'{config}: "{key}" is a setting of {step}: put it under `{step.replace(" ", ": ")}:`.')
        if key not in COMMANDS:
            raise UsageError(f'{config}: unknown section "{key}".{did_you_mean(str(key), COMMANDS)}')
    for word in step.split():
        section = section.get(word) or {}
        if not isinstance(section, dict):
            raise InputError(f"{config}: {word} should hold keys and values.")
    return section


_WITH_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
"""Numbers that YAML 1.1 reads as texts, such as 1e-4."""


def _load_yaml(config: Path) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):
        """A loader that reads 1e-4 as a number and refuses duplicate keys, of which YAML would take the last."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            met = set()
            for key, _ in node.value:
                if (name := (key.tag, str(key.value))) in met:
                    line = key.start_mark.line + 1
                    raise InputError(f'{config}: line {line} gives "{key.value}" again: leave one of the two out.')
                met.add(name)
            return node

    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _WITH_EXPONENT, list("-+.0123456789"))
    try:
        return yaml.load(config.read_text(encoding="utf-8"), Loader) or {}
    except FileNotFoundError:
        raise InputError(f"there is no file {config}.") from None
    except IsADirectoryError:
        raise InputError(f"{config} is a folder: name a YAML file.") from None
    except OSError as error:
        raise InputError(f"cannot read {config}: {error.strerror}.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise InputError(f"{config} is not YAML: {' '.join(str(error).split())}") from None


def _option(name: str, field: Any, *, needed: bool) -> inspect.Parameter:
    """Return the option of a field; `needed` if the spec is required and the field has no default."""
    kind = _flag_type(field.annotation)
    dashed = (field.alias or name).replace("_", "-")
    flags = [f"--{dashed}/--no-{dashed}"] if kind is bool else [f"--{dashed}"]
    if len(name) == 1:
        flags.insert(0, f"-{name}")
    default = None if field.is_required() else field.default
    shown = "" if default in (None, ()) or kind is bool else f" (default: {default})"
    shown = " (required)" if needed and field.is_required() else shown
    option = typer.Option(
        *flags,
        help=f"{field.description}{shown}",
        show_default=False,
        metavar=_metavar(kind),
        parser=_parser(kind),
        rich_help_panel=group_of(field).value,
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
    return {int: "INT", float: "NUMBER", str: "TEXT", list[str]: "TEXT"}.get(kind)


def _parser(kind: Any) -> Callable[[str], Any] | None:
    """Parsers of flags that are not texts, with the messages of specs."""
    if typing.get_origin(kind) is Literal:
        return functools.partial(parse_choice, typing.get_args(kind))
    return {int: parse_int, float: parse_float}.get(kind)


def parse_int(raw: str) -> int:
    """Parse a flag's value as an integer."""
    try:
        return int(raw)
    except ValueError:
        raise typer.BadParameter(f"should be a valid integer, not {raw!r}") from None


def parse_float(raw: str) -> float:
    """Parse a flag's value as a number."""
    try:
        return float(raw)
    except ValueError:
        raise typer.BadParameter(f"should be a valid number, not {raw!r}") from None


def parse_choice(values: tuple[str, ...], raw: str) -> str:
    """Parse a flag's value as one of a list of choices."""
    if raw not in values:
        known = " or ".join(part for part in (", ".join(values[:-1]), values[-1]) if part)
        raise typer.BadParameter(f"should be {known}, not {raw!r}")
    return raw


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
