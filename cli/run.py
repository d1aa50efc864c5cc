"""prefdata run: the steps of a recipe, each as the command that a person would type; prefdata recipes lists them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from prefdata.errors import InputError, PrefdataError, UsageError, did_you_mean
from prefdata.specs import Group

from . import output
from .options import NewRun, option

if TYPE_CHECKING:
    from prefdata.pipeline import Recipe, Step

EXAMPLE = "Example: prefdata run demo runs/demo --set n=8 --dry-run"
RECIPES_EXAMPLE = "Example: prefdata recipes demo > my.yaml"


def run(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A YAML file, or the name of a built-in recipe (prefdata recipes).")
    ],
    run: NewRun,
    set: Annotated[
        list[str] | None,
        option("--set", metavar="KEY=VALUE", help="Change a variable of the recipe.", group=Group.INPUT),
    ] = None,
    start_at: Annotated[
        int | None, option("--start-at", metavar="INT", help="The first step to run, by its number (--dry-run).")
    ] = None,
    stop_after: Annotated[int | None, option("--stop-after", metavar="INT", help="The last step to run.")] = None,
    dry_run: Annotated[
        bool, option("--dry-run", metavar=None, help="Check all steps and print them; run nothing.", group=Group.OUTPUT)
    ] = False,
) -> None:
    """Run a recipe: steps from prompts to a measured model, in one file.

    Each step is printed as the command that it is. All are checked before the first one runs. A step that is done is
    not done again, so that the same command continues what was stopped.
    """
    found, where = _recipe(recipe)
    execute(found, where, run, _changes(set or []), start_at=start_at, stop_after=stop_after, dry_run=dry_run)


def recipes(
    name: Annotated[str | None, typer.Argument(metavar="RECIPE", help="Print this recipe instead.")] = None,
) -> None:
    """List the built-in recipes, or print one to copy and change."""
    folder = recipes_folder()
    if name is not None:
        output.line(_built_in(name).read_text("utf-8").rstrip())
        return
    from prefdata.pipeline import read_recipe

    names = sorted(path.stem for path in folder.glob("*.yaml"))
    width = max(map(len, names))
    for one in names:
        output.line(f"{one:<{width}}  {read_recipe(folder / f'{one}.yaml').title}")


def execute(
    recipe: Recipe,
    where: str,
    run: Path,
    changes: Mapping[str, Any],
    *,
    start_at: int | None = None,
    stop_after: int | None = None,
    dry_run: bool = False,
) -> None:
    """Check all steps of a recipe, then run them in order, each in a process of its own.

    Raises:
        UsageError, InputError: a step is wrong, by its number, or a data file is missing; nothing was run.
        PrefdataError: a step failed.
    """
    from prefdata.pipeline import steps_of

    steps = steps_of(recipe, run, changes, where)
    first, last = start_at or 1, stop_after or len(steps)
    if not 1 <= first <= last <= len(steps):
        raise UsageError(f"--start-at and --stop-after are steps from 1 to {len(steps)}, the first before the last.")
    for number, step in enumerate(steps, start=1):
        _check(step, f"{where}: step {number} of {len(steps)}, {step.name}")
    for number, step in enumerate(steps, start=1):
        if not first <= number <= last:
            continue
        command = shlex.join(["prefdata", *step.arguments])
        if dry_run:
            output.line(f"[{number}] {'done     ' if _is_done(step) else 'to do    '} {command}")
            continue
        typer.secho(f"\n[{number}] $ {command}", bold=True)
        sys.stdout.flush()
        _execute(step, number, len(steps))


def recipes_folder() -> Path:
    """Return the folder of the built-in recipes: the package's, or the checkout's."""
    try:
        return Path(str(resources.files("prefdata.recipes")))
    except ModuleNotFoundError:
        return Path(__file__).parents[1] / "recipes"


def _recipe(named: str) -> tuple[Recipe, str]:
    from prefdata.pipeline import read_recipe

    path = Path(named)
    path = path if path.suffix in (".yaml", ".yml") or path.exists() else _built_in(named)
    return read_recipe(path), str(named)


def _built_in(name: str) -> Path:
    path = recipes_folder() / f"{name}.yaml"
    if Path(name).name != name or not path.is_file():
        known = [one.stem for one in recipes_folder().glob("*.yaml")]
        raise UsageError(f"there is no recipe {name!r}.{did_you_mean(name, known)}")
    return path


def _changes(given: list[str]) -> dict[str, Any]:
    import yaml

    changes = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {one}: should be KEY=VALUE.")
        changes[name] = yaml.safe_load(value)
        if isinstance(changes[name], list | dict):
            raise UsageError(f"--set {one}: should be a text, a number or true or false.")
    return changes


def _check(step: Step, where: str) -> None:
    """Parse a step's command line as the command itself does, without running it."""
    from .main import ClickUsageError, app, usage_message

    missing = [str(path) for path in step.files if not path.exists()]
    if missing:
        raise InputError(f"{where}: there is no {missing[0]}.")
    # Commands without a spec (eval, curves) have no --print-config: their command line is only parsed.
    spec = step.arguments[0] not in ("eval", "curves")
    try:
        if spec:
            with redirect_stdout(StringIO()):
                app([*step.arguments, "--print-config"], prog_name="prefdata", standalone_mode=False)
        else:
            _parse(app, step.arguments)
    except PrefdataError as error:
        raise type(error)(f"{where}: {error}") from None
    except ClickUsageError as error:
        raise UsageError(f"{where}: {usage_message(error)}") from None


def _parse(app: typer.Typer, arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context, rest = None, list(arguments)
    while hasattr(command, "resolve_command"):
        context = command.make_context(rest[0], [rest[0]], parent=context, resilient_parsing=True)
        _, command, rest = command.resolve_command(context, rest)
    command.make_context(arguments[0], rest, parent=context)


def _is_done(step: Step) -> bool:
    return step.made is not None and (step.made / "_SUCCESS").is_file()


def _execute(step: Step, number: int, steps: int) -> None:
    # Each step in a process of its own, as a user would run it: memory that one engine holds is free for the next.
    done = subprocess.run([sys.executable, "-m", "prefdata.cli", *step.arguments], env=os.environ, check=False)
    if done.returncode == 130:
        raise KeyboardInterrupt
    if done.returncode:
        raise PrefdataError(
            f"step {number} of {steps} failed (exit code {done.returncode}). Fix that; the same command continues."
        )
