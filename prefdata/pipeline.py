"""Recipes: a YAML file of variables and steps becomes the commands that a person would type, in order.

    title: DPO on RSO pairs
    variables: {policy: sample_data/policy, n: 16}
    steps:
      - sample: {model: "{policy}", n: "{n}", name: policy}
      - train dpo: {pairing: rso, model: "{policy}", out: "{run}/models/dpo"}

A step is a command with its settings, by the keys of `-c run.yaml`. `data` is the command's own argument (files of
`ingest`; DATA of `train`, the run unless given). `{run}` is the run directory. A step `rounds` repeats steps with
`{round}` = 1, 2, … and `{previous}` = `{round}` - 1; variables of `first` hold in the first round, those of `then`
later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from prefdata.errors import InputError, UsageError, did_you_mean
from prefdata.specs import flag_of

COMMANDS = (
    "ingest", "sample", "rank", "select", "pair", "export", "curves", "eval policies", "eval judges",
    "train sft", "train rm", "train dpo", "train kto", "train ppo",
)  # fmt: skip
"""The commands that a step can be."""

_VARIABLE = re.compile(r"\{(\w*)\}")
_DATA_FILES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".arrow", ".gz", ".zst", ".yaml")

Value = str | int | float | bool | None
Settings = Mapping[str, Any]


class Rounds(BaseModel):
    """Steps that are repeated; see the module."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int | str
    first: dict[str, Value] = {}
    then: dict[str, Value] = {}
    steps: list[dict[str, Any]]


class Recipe(BaseModel):
    """The content of a recipe's file.

    Attributes:
        title: what it does, in one line.
        papers: whose method it is, by arXiv id or name.
        claim: what the papers claim.
        differs: what is different here.
        variables: defaults of the recipe's variables, which `--set` changes.
        steps: the steps, each a mapping of one command to its settings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str
    papers: list[str] = []
    claim: str = ""
    differs: str = ""
    variables: dict[str, Value] = {}
    steps: list[dict[str, Any]]


@dataclass(frozen=True)
class Step:
    """A command to run.

    Attributes:
        name: the command, with the round in rounds: `sample`, `sample (round 2)`.
        arguments: the command line behind `prefdata`.
        made: the folder that the step makes, if its settings name it.
        files: local data files that it reads and that are not made by the recipe.
    """

    name: str
    arguments: list[str]
    made: Path | None
    files: list[Path]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Raises:
        InputError: the file is missing or is not a recipe, with the key at fault.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"cannot read the recipe {path}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a recipe: it holds no keys. See `prefdata recipes`.")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {where}: {first['msg']}. See `prefdata recipes` for recipes that work.") from None


def steps_of(recipe: Recipe, run: Path, changes: Mapping[str, Value], where: str) -> list[Step]:
    """Return the steps of a recipe for a run, with `changes` of its variables; `where` names the recipe in errors.

    Raises:
        UsageError: an unknown variable, command or kind of value.
    """
    for name in changes:
        if name not in recipe.variables:
            known = ", ".join(recipe.variables) or "none"
            raise UsageError(f"{where} has no variable {name!r} (it has: {known}).")
    variables = _resolved({**recipe.variables, **changes, "run": str(run)}, where)
    return list(_expanded(recipe.steps, variables, run, where))


def _expanded(steps: Sequence[Mapping[str, Any]], variables: dict[str, Value], run: Path, where: str) -> Iterator[Step]:
    for number, step in enumerate(steps, start=1):
        if len(step) != 1:
            raise UsageError(f"{where}: step {number} should be one command with its settings, not {list(step)}.")
        ((command, settings),) = step.items()
        at = f"{where}: step {number} ({command})"
        if not isinstance(settings, dict):
            raise UsageError(f"{at}: should have its settings as keys.")
        if command == "rounds":
            yield from _rounds(settings, variables, run, at)
        elif command not in COMMANDS:
            raise UsageError(f"{at}: unknown command.{did_you_mean(command, COMMANDS)}")
        else:
            yield _step(command, {key: _value(value, variables, at) for key, value in settings.items()}, variables, run)


def _rounds(settings: Settings, variables: dict[str, Value], run: Path, at: str) -> Iterator[Step]:
    try:
        rounds = Rounds.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UsageError(f"{at}: {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    count = _value(rounds.count, variables, at)
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"{at}: count should be a whole number from 1, not {count!r}.")
    for number in range(1, count + 1):
        own: dict[str, Value] = {**variables, "round": number, "previous": number - 1}
        own |= _resolved({**own, **(rounds.first if number == 1 else rounds.then)}, at)
        yield from _expanded(rounds.steps, own, run, at)


def _step(command: str, settings: dict[str, Any], variables: Mapping[str, Value], run: Path) -> Step:
    data = settings.pop("data", None)
    given = [] if data is None else [str(one) for one in (data if isinstance(data, list) else [data])]
    own = [str(run), *given] if command == "ingest" else given or [str(run)]
    flags = [word for key, value in settings.items() for word in _flags(key, value)]
    name = command if "round" not in variables else f"{command} (round {variables['round']})"
    files = [Path(one) for one in given if one.endswith(_DATA_FILES) and not Path(one).is_relative_to(run)]
    return Step(name, [*command.split(), *own, *flags], _made(command, settings, run), files)


def _flags(key: str, value: Any) -> list[str]:
    flag = flag_of(key)
    if value is None:
        return []
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, list) else [value]
    return [word for one in values for word in (flag, str(one))]


def _made(command: str, settings: Settings, run: Path) -> Path | None:
    table = {"sample": "candidates/sampler", "rank": "scores/scorer", "select": "selections/selector"}
    table["pair"] = "pairs/pairing"
    if command in table and "name" in settings and settings.get("as", "pairs") == "pairs":
        return run / f"{table[command]}={settings['name']}"
    out = settings.get("out") if command.startswith("train") else settings.get("to") if command == "export" else None
    return None if out is None else Path(str(out))


def _value(value: Any, variables: Mapping[str, Value], where: str) -> Any:
    """Fill in variables; a text that is one variable and nothing else has that variable's own type."""
    if isinstance(value, list):
        return [_value(one, variables, where) for one in value]
    if not isinstance(value, str):
        return value
    names = _VARIABLE.findall(value)
    for name in names:
        if name not in variables:
            known = ", ".join(variables)
            raise UsageError(f"{where}: unknown variable {{{name}}} in {value!r} (known: {known}).")
    if len(names) == 1 and value == f"{{{names[0]}}}":
        return variables[names[0]]
    return _VARIABLE.sub(lambda found: str(variables[found[1]]), value)


def _resolved(variables: dict[str, Value], where: str) -> dict[str, Value]:
    """Fill in variables in variables, in order: one may name those before it, and {run}."""
    done: dict[str, Value] = {name: variables[name] for name in ("run", "round", "previous") if name in variables}
    for name, value in variables.items():
        done[name] = _value(value, done, where) if name not in done else done[name]
    return done
