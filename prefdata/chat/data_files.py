"""YAML files that a user may replace (preprompts, instructions, rubrics, refusals), built-in ones by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

from prefdata.errors import InputError, UsageError, did_you_mean


def read_template(kind: str, name: str) -> Any:
    """Read the YAML file `name`, or the built-in template of that kind (`rubrics`, …) and name.

    Raises:
        UsageError: there is neither.
        InputError: it is not YAML.
    """
    import yaml

    file: Any = Path(name)
    if not file.is_file():
        known = {f.name.removesuffix(".yaml"): f for f in _built_in(kind).iterdir() if f.name.endswith(".yaml")}
        if name not in known:
            raise UsageError(
                f"there is no file {name}, and no built-in {kind} of that name.{did_you_mean(name, known)}"
            )
        file = known[name]
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: an impossible date
        raise InputError(f"{name} is not YAML: {' '.join(str(error).split())}") from None


def _built_in(kind: str) -> Any:
    try:
        return resources.files("prefdata.templates") / kind
    except ModuleNotFoundError:  # a bare checkout that was never installed
        return Path(__file__).parents[1] / "templates" / kind
