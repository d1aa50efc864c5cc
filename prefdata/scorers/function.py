"""A Python function of the user's as a scorer: `FILE.py:NAME`, called as f(messages, response).

It returns a number, None where it has no opinion, or a dict with `score` and whatever else it wants kept as details.
What it raises, and what is not a finite number, becomes a null with a reason.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from prefdata import ids
from prefdata.errors import InputError, did_you_mean
from prefdata.scorers.protocol import Item, Scored


class FunctionScorer:
    """A Scorer on a function; see `prefdata.scorers.protocol.Scorer`."""

    outputs: tuple[str, ...] = ("",)

    def __init__(self, named: str) -> None:
        """Load the function `FILE.py:NAME`.

        Raises:
            InputError: there is no such file or function, or the file cannot be imported.
        """
        self.versions = {"python": ".".join(map(str, sys.version_info[:3]))}
        self._function = load_function(named)

    def score(self, items: Iterable[Item]) -> Iterator[Scored]:
        """Score every item; see the protocol. The text's hash is that of the answer alone."""
        for item in items:
            yield self._one(item)

    def close(self) -> None:
        """Nothing to give back."""

    def _one(self, item: Item) -> Scored:
        text_hash = ids.text_hash(item.response)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # what it prints is no part of our own answer
                said = self._function([dict(message) for message in item.messages], item.response)
        except (Exception, SystemExit) as error:
            return Scored(item.key, None, type(error).__name__, text_hash, {"error": str(error)})
        details = None
        if isinstance(said, dict):
            details = {str(key): value for key, value in said.items() if key != "score"} or None
            said = said.get("score")
        score, reason = number_of(said)
        if reason == "not_a_number" and details is None:
            details = {"returned": repr(said)[:200]}
        if not is_json(details):
            return Scored(item.key, None, "details_not_json", text_hash, None)
        return Scored(item.key, score, reason, text_hash, details)


def file_and_name(named: str) -> tuple[Path, str]:
    """The file and the function that `FILE.py:NAME` names.

    Raises:
        InputError: there is no such file, or no function is named.
    """
    file, _, name = named.rpartition(":")
    if not file and Path(named).is_file():
        raise InputError(f"{named} is a file, and its function is not named. Name the function as FILE.py:NAME.")
    if not Path(file).is_file():
        raise InputError(f"there is no file {file or named}. Name the function as FILE.py:NAME.")
    return Path(file), name


def function_identity(named: str) -> str:
    """Return the id of a function `FILE.py:NAME`: its name and its file's content.

    Raises:
        InputError: there is no such file.
    """
    file, name = file_and_name(named)
    return f"{name} of {file_identity(file)}"


def file_identity(file: str | Path) -> str:
    """Return the id of a file's content.

    Raises:
        InputError: there is no such file.
    """
    if not Path(file).is_file():
        raise InputError(f"there is no file {file}.")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[: ids.ID_DIGITS]


def load_function(named: str) -> Callable[..., Any]:
    """The function `FILE.py:NAME`; its file's folder is importable while it is loaded.

    Raises:
        InputError: there is no such file or function, or the file cannot be imported.
    """
    path, name = file_and_name(named)
    file = str(path)
    spec = importlib.util.spec_from_file_location(f"_prefdata_function_{ids.text_hash(str(path.resolve()))}", path)
    if spec is None or spec.loader is None:
        raise InputError(f"{file} is not a Python file. Name the function as FILE.py:NAME.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickles look their module up there
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"{file} cannot be imported: {type(error).__name__}: {error}.") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    functions = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{file} has no function {name!r}.{did_you_mean(name, functions)}")
    return function


def number_of(said: Any) -> tuple[float | None, str | None]:
    """The finite number that a function returned, or None and the reason why it is none."""
    if said is None:
        return None, "none"
    if not hasattr(said, "__float__"):
        return None, "not_a_number"
    try:
        value = float(said)
    except OverflowError:
        return None, "overflow"
    except Exception:  # an array of several numbers, a tensor on a lost device: whatever a library's __float__ raises
        return None, "not_a_number"
    if math.isnan(value):
        return None, "nan"
    return (None, "infinite") if math.isinf(value) else (value, None)


def is_json(details: dict[str, Any] | None) -> bool:
    """Whether details can be stored: JSON has no NaN, and no objects of Python's."""
    try:
        json.dumps(details, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
