"""Files that define layouts: `maps/*.yaml`, and a user's own. They are data and never run code."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from prefdata.errors import InputError

_FOLDER = "maps"


def map_names() -> list[str]:
    """List the names of the built-in maps, without the vocabulary."""
    folder = resources.files("prefdata.formats") / _FOLDER
    names = (file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
    return sorted(name for name in names if name != "general")


@cache
def read_map(name: str) -> Any:
    """Read a built-in map."""
    text = (resources.files("prefdata.formats") / _FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return yaml.load(text, _Loader)


def read_map_file(name: str) -> Any:
    """Read a map from a file, or from the name itself if it is a mapping in braces.

    Raises:
        InputError: the file does not exist, or is not YAML.
    """
    try:
        return yaml.load(name if name.lstrip().startswith("{") else Path(name).read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"--layout: there is no file {name}.") from None
    except OSError as error:
        raise InputError(f"--layout: cannot read {name}: {error.strerror}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"--layout: {name} is not YAML: {' '.join(str(error).split())}") from None


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML loader that reads `yes`, `no`, `on`, `off` and dates as text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if first not in "yYnNoO"
}
